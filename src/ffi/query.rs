//! Listings: the options of a query, and its entry points.

use std::sync::Arc;

use super::buf::{clear, invalid, slice};
use super::entry::{entry, walrusds_error};
use super::handle::Registry;
use super::page::walrusds_page;
use super::runtime::{wait, walrusds_call};
use super::{utf8, walrusds_handle, Instance, INSTANCES};
use crate::error::{Error, Result};
use crate::query::{KeyCondition, Query, QueryOptions};

/// A running query; never 0.
pub type walrusds_query = u64;
/// Condition on a key: it equals `text`. Keys compare by their bytes.
pub const WALRUSDS_KEY_EQUAL: u32 = 1;
/// Condition on a key: it does not equal `text`.
pub const WALRUSDS_KEY_NOT_EQUAL: u32 = 2;
/// Condition on a key: it comes before `text`.
pub const WALRUSDS_KEY_LESS: u32 = 3;
/// Condition on a key: it comes before `text` or equals it.
pub const WALRUSDS_KEY_LESS_OR_EQUAL: u32 = 4;
/// Condition on a key: it comes after `text`.
pub const WALRUSDS_KEY_GREATER: u32 = 5;
/// Condition on a key: it comes after `text` or equals it.
pub const WALRUSDS_KEY_GREATER_OR_EQUAL: u32 = 6;
/// Condition on a key: it starts with `text`, byte by byte ("/a" matches "/ab").
pub const WALRUSDS_KEY_STARTS_WITH: u32 = 7;

/// A condition on the keys that a query lists. Borrowed for the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_key_condition {
    /// One of `WALRUSDS_KEY_EQUAL` to `WALRUSDS_KEY_STARTS_WITH`.
    pub kind: u32,
    /// The text that keys are compared with, UTF-8 without NUL.
    pub text: *const u8,
    /// Bytes of the text.
    pub text_len: usize,
}

/// The options of a query. Borrowed for the call. All zero: every key, with values, in ascending
/// order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_query_options {
    /// Only keys strictly below this path; empty or "/" = all.
    pub prefix: *const u8,
    /// Bytes of the prefix.
    pub prefix_len: usize,
    /// Only keys that fulfil all of these conditions.
    pub conditions: *const walrusds_key_condition,
    /// Number of conditions.
    pub conditions_len: usize,
    /// Whether to list from the last key to the first.
    pub descending: bool,
    /// Whether to leave the values out (no aggregator is asked).
    pub keys_only: bool,
    /// With keys_only: whether sizes and expirations may be left out, too; entries may have 0 for
    /// both. Many times faster.
    pub without_sizes: bool,
    /// Number of entries to skip.
    pub offset: u64,
    /// Most entries to list; 0 = no limit.
    pub limit: u64,
}

pub(super) struct RunningQuery {
    owner: Arc<Instance>,
    query: tokio::sync::Mutex<Query>,
}

pub(super) static QUERIES: Registry<RunningQuery> = Registry::new("query", 2);

/// The conditions of a query.
///
/// # Safety
/// `options` must point at as many readable conditions as it says.
unsafe fn conditions(options: &walrusds_query_options) -> Result<Vec<KeyCondition>> {
    // SAFETY: readable by contract.
    let conditions = unsafe { slice("conditions", options.conditions, options.conditions_len) }?;
    let condition = |(i, c): (usize, &walrusds_key_condition)| {
        // SAFETY: readable by contract.
        let text = unsafe { slice("text", c.text, c.text_len) };
        let text = text.and_then(|text| utf8("text", text));
        condition_from(c.kind, text).map_err(|e| e.context(format_args!("condition {i}")))
    };
    conditions.iter().enumerate().map(condition).collect()
}

fn condition_from(kind: u32, text: Result<&str>) -> Result<KeyCondition> {
    let text = text?.to_owned();
    Ok(match kind {
        WALRUSDS_KEY_EQUAL => KeyCondition::Equal(text),
        WALRUSDS_KEY_NOT_EQUAL => KeyCondition::NotEqual(text),
        WALRUSDS_KEY_LESS => KeyCondition::Less(text),
        WALRUSDS_KEY_LESS_OR_EQUAL => KeyCondition::LessOrEqual(text),
        WALRUSDS_KEY_GREATER => KeyCondition::Greater(text),
        WALRUSDS_KEY_GREATER_OR_EQUAL => KeyCondition::GreaterOrEqual(text),
        WALRUSDS_KEY_STARTS_WITH => KeyCondition::StartsWith(text),
        other => {
            return Err(invalid(format!(
                "kind is {other}, expected {WALRUSDS_KEY_EQUAL} to {WALRUSDS_KEY_STARTS_WITH}"
            )))
        }
    })
}

/// Starts a listing in the order of keys. No lock is held while it runs: keys may be put and
/// deleted meanwhile. End it with `walrusds_query_close`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_query_open(
    handle: walrusds_handle,
    _call: *const walrusds_call,
    options: *const walrusds_query_options,
    out: *mut walrusds_query,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, 0)?;
            let instance = INSTANCES.get(handle)?;
            let options = options.as_ref().ok_or_else(|| invalid("options is NULL"))?;
            let prefix = slice("prefix", options.prefix, options.prefix_len)?;
            let query = instance.store.query(QueryOptions {
                prefix: utf8("prefix", prefix)?.to_owned(),
                conditions: conditions(options)?,
                descending: options.descending,
                keys_only: options.keys_only,
                without_sizes: options.without_sizes,
                offset: options.offset,
                limit: (options.limit > 0).then_some(options.limit),
            })?;
            let mut queries = instance.queries.lock();
            let Some(queries) = queries.as_mut() else {
                return Err(Error::closed("datastore"));
            };
            let handle = QUERIES.insert(RunningQuery {
                owner: Arc::clone(&instance),
                query: tokio::sync::Mutex::new(query),
            });
            queries.insert(handle);
            out.write(handle);
            Ok(())
        })
    }
}

/// Gives the next entries, in memory of the library until `walrusds_page_free`; none = the end. An
/// error in reading a value is that entry's own error. Calls on one query run one after another.
#[no_mangle]
pub unsafe extern "C" fn walrusds_query_next(
    query: walrusds_query,
    call: *const walrusds_call,
    out: *mut walrusds_page,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_page::EMPTY)?;
            let running = QUERIES.get(query)?;
            let entries = wait(call, async { running.query.lock().await.next_page().await })?;
            out.write(walrusds_page::new(entries));
            Ok(())
        })
    }
}

/// Ends a query. The handle is invalid afterwards; a second close gives `WALRUSDS_CLOSED`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_query_close(
    query: walrusds_query,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let running = QUERIES.remove(query)?;
            if let Some(queries) = running.owner.queries.lock().as_mut() {
                queries.remove(&query);
            }
            Ok(())
        })
    }
}

/// Frees a page and leaves an empty one. NULL and empty pages are allowed.
#[no_mangle]
pub unsafe extern "C" fn walrusds_page_free(page: *mut walrusds_page) {
    unsafe {
        entry(std::ptr::null_mut(), || {
            if let Some(page) = page.as_mut() {
                page.free();
            }
            Ok(())
        });
    }
}
