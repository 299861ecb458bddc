//! The C ABI. `include/walrusds.h` is generated from this module; `docs/abi.md` states the rules.
//!
//! This is the only module with `unsafe` code. Entry points check their arguments, run the engine's
//! future to its end on the calling thread and hand the outcome over; they do nothing else.
#![allow(unsafe_code, non_camel_case_types)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
// Every entry point has the same contract, stated once in docs/abi.md and in the header's head:
// pointers are valid for the call as their types say, or NULL where that is allowed.
#![allow(clippy::missing_safety_doc)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::buffer;
use crate::config::{Config, KeyType, KEYS};
use crate::datastore::{Op, WalrusDatastore};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::place::{Form, Value};
use crate::query::owned;

mod buf;
mod codes;
mod entry;
mod handle;
mod last_words;
mod metrics;
mod page;
#[cfg(feature = "panic-hook")]
mod panic_hook;
mod query;
mod queue;
mod runtime;
mod spans;

use buf::{clear, invalid, slice, slice_mut};
use entry::entry;
use handle::Registry;
use last_words::LastWords;
use query::QUERIES;
use runtime::{block_on, wait, CANCELS};

pub use buf::{walrusds_buf, walrusds_value};
pub use codes::*;
pub use entry::walrusds_error;
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use metrics::*;
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use page::{walrusds_entry, walrusds_page};
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use query::*;
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use queue::*;
pub use runtime::walrusds_call;
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use runtime::walrusds_trace;
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use spans::*;

/// Values shorter than this (bytes) are copied for the caller.
const COPIED: usize = 64 << 10;

/// An open datastore; never 0.
pub type walrusds_handle = u64;
/// A cancel token; never 0.
pub type walrusds_cancel_token = u64;
/// A queue of calls that were started and not waited for; never 0.
pub type walrusds_queue = u64;

/// Operation of a batch: store `value` under `key`.
pub const WALRUSDS_OP_PUT: u32 = 1;
/// Operation of a batch: remove `key` (an unknown key is no error); `value` is ignored.
pub const WALRUSDS_OP_DELETE: u32 = 2;

/// One operation of a batch. Borrowed for the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_op {
    /// `WALRUSDS_OP_PUT` or `WALRUSDS_OP_DELETE`.
    pub kind: u32,
    /// Key, UTF-8.
    pub key: *const u8,
    /// Bytes of the key.
    pub key_len: usize,
    /// Value.
    pub value: *const u8,
    /// Bytes of the value.
    pub value_len: usize,
}

/// A key to look up, and the result. The key is borrowed for the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_lookup {
    /// Key.
    pub key: *const u8,
    /// Bytes of the key.
    pub key_len: usize,
    /// Filled in: the size of its value in bytes.
    pub size: u64,
    /// Filled in: `WALRUSDS_OK`, or the reason why this key alone could not be looked up
    /// (`walrusds_get_size` gives the message).
    pub code: i32,
    /// Filled in: whether the key is known.
    pub found: bool,
}

struct Instance {
    store: WalrusDatastore,
    /// The running queries of the datastore; `None` once it is closing.
    queries: Mutex<Option<HashSet<walrusds_query>>>,
}

static INSTANCES: Registry<Instance> = Registry::new("datastore", 1);
static LAST_WORDS: LastWords = LastWords::new();
fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        invalid(format!(
            "{name} is not valid UTF-8 from byte {} on",
            e.valid_up_to()
        ))
    })
}

unsafe fn config_from(data: *const u8, len: usize) -> Result<Config> {
    // SAFETY: readable by contract.
    let json = unsafe { slice("config", data, len) }?;
    Config::from_json(utf8("config", json)?)
}

/// The version of the interface that this library implements.
#[no_mangle]
pub extern "C" fn walrusds_abi_version() -> u32 {
    WALRUSDS_ABI_VERSION
}

/// Checks a whole configuration (a JSON object) without opening anything, and gives the part that
/// identifies the data: a JSON object with exactly the keys aggregatorURL, publisherURL, table.
#[no_mangle]
pub unsafe extern "C" fn walrusds_disk_spec(
    config: *const u8,
    config_len: usize,
    out: *mut walrusds_buf,
    err: *mut walrusds_error,
) -> i32 {
    // SAFETY: the caller's contract (see the module's head), here and in every entry point below.
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_buf::EMPTY)?;
            let spec = config_from(config, config_len)?.disk_spec();
            out.write(walrusds_buf::new(spec.to_string().into()));
            Ok(())
        })
    }
}

/// Describes every configuration key: a JSON array of objects with `key`, `type` ("string",
/// "boolean" or "integer"), `default` (text; empty = none), `secret` and `doc`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_config_keys(
    out: *mut walrusds_buf,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_buf::EMPTY)?;
            let keys: Vec<_> = KEYS
                .iter()
                .map(|key| {
                    let ty = match key.ty {
                        KeyType::Text => "string",
                        KeyType::Flag => "boolean",
                        KeyType::Whole { .. } => "integer",
                    };
                    serde_json::json!({
                        "key": key.name, "type": ty, "default": key.default,
                        "secret": key.secret, "doc": key.doc,
                    })
                })
                .collect();
            let json = serde_json::Value::from(keys).to_string();
            out.write(walrusds_buf::new(json.into()));
            Ok(())
        })
    }
}

/// Opens a datastore: checks the configuration and connects to the index. Relative paths in the
/// configuration are relative to `repo_path`. Close the handle with `walrusds_close`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_open(
    config: *const u8,
    config_len: usize,
    repo_path: *const u8,
    repo_path_len: usize,
    call: *const walrusds_call,
    out: *mut walrusds_handle,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, 0)?;
            let config = config_from(config, config_len)?;
            let repo = slice("repo_path", repo_path, repo_path_len)?;
            let repo = path_from(repo);
            // Opened on the runtime's own threads, because a thread started meanwhile (the
            // connection pool has some) inherits the signal mask of the thread that starts it.
            let store = wait(call, async {
                let mut opening = JoinSet::new(); // aborts when dropped
                opening.spawn(caught(async move {
                    #[cfg(feature = "panic-hook")]
                    panic_hook::point(panic_hook::IN_TASK);
                    WalrusDatastore::open(config, &repo).await
                }));
                let opened =
                    opening.join_next().await.transpose().map_err(|e| {
                        Error::new(ErrorKind::Internal, format!("open failed: {e}"))
                    })?;
                opened.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "open was lost")))
            })?;
            out.write(INSTANCES.insert(Instance {
                store,
                queries: Mutex::new(Some(HashSet::new())),
            }));
            Ok(())
        })
    }
}

fn path_from(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned()
}

/// Closes a datastore: new calls get `WALRUSDS_CLOSED`, calls in flight are waited for, running
/// queries end. With `journalPath` the journal is emptied for at most `drainTimeoutSeconds`; blocks
/// that are left in it, on the local disk, are stored after the next open. The handle is invalid
/// afterwards, with any return code; a second close gives `WALRUSDS_CLOSED`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_close(handle: walrusds_handle, err: *mut walrusds_error) -> i32 {
    unsafe {
        entry(err, || {
            let instance = LAST_WORDS.begin(handle, || {
                let instance = INSTANCES.remove(handle)?;
                let log = instance.store.log();
                Ok((instance, log))
            })?;
            let queries = instance.queries.lock().take();
            for query in queries.iter().flatten() {
                // The owner of the query may have closed it at the same moment.
                let _ = QUERIES.remove(*query);
            }
            let closed = block_on(instance.store.close());
            LAST_WORDS.end(handle);
            closed
        })
    }
}

/// Stores `value` under `key` (UTF-8, 1 to 2,048 bytes, no NUL). Returns once it is on Walrus and
/// indexed; with `journalPath` once it is in the journal on the local disk, from where it travels
/// to Walrus later. There it survives a power cut; with `journalSync` `sync` it does so only after
/// `walrusds_sync`, or 100 ms.
#[no_mangle]
pub unsafe extern "C" fn walrusds_put(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    value: *const u8,
    value_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let instance = INSTANCES.get(handle)?;
            let key = utf8("key", slice("key", key, key_len)?)?;
            let value = Bytes::copy_from_slice(slice("value", value, value_len)?);
            wait(call, instance.store.put(key, value))
        })
    }
}

/// The value of a key, in this form.
///
/// # Safety
/// As the types say.
unsafe fn get(
    handle: walrusds_handle,
    call: *const walrusds_call,
    form: Form,
    key: *const u8,
    key_len: usize,
) -> Result<Option<Value>> {
    let instance = INSTANCES.get(handle)?;
    // SAFETY: readable by contract, here and below.
    match storable(unsafe { slice("key", key, key_len) }?) {
        Some(key) => unsafe { wait(call, instance.store.get_as(form, key)) },
        None => Ok(None),
    }
}

/// Reads the value of `key` into `out` (free it with `walrusds_buf_free`). An unknown key is no
/// error: `found` is false.
#[no_mangle]
pub unsafe extern "C" fn walrusds_get(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    out: *mut walrusds_buf,
    found: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let out_ok = clear("out", out, walrusds_buf::EMPTY);
            clear("found", found, false).and(out_ok)?;
            if let Some(value) = get(handle, call, Form::Bytes, key, key_len)? {
                let value = value.bytes()?;
                // Most callers copy the value and free it at once. Some keep it: a short value must
                // not hold a whole window in memory.
                let value = match value.len() < COPIED {
                    true => owned(value),
                    false => value,
                };
                out.write(walrusds_buf::new(value));
                found.write(true);
            }
            Ok(())
        })
    }
}

/// Finds the value of `key`, for a caller that has memory for it once it knows its length: what
/// lies in a local file is read by `walrusds_value_take`, straight into that memory. An unknown key
/// is no error: `found` is false. Take the value soon: it may keep a file, or much memory.
#[no_mangle]
pub unsafe extern "C" fn walrusds_get_value(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    out: *mut walrusds_value,
    found: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let out_ok = clear("out", out, walrusds_value::EMPTY);
            clear("found", found, false).and(out_ok)?;
            if let Some(value) = get(handle, call, Form::Place, key, key_len)? {
                out.write(walrusds_value::new(value));
                found.write(true);
            }
            Ok(())
        })
    }
}

/// Copies a value into `into`, which has room for `into_len` bytes, and frees it. If `into_len` is
/// not the value's length, the value stays as it is. `WALRUSDS_CORRUPT` and `WALRUSDS_DISK`: what
/// lies in the local file is damaged; the value is freed, and `walrusds_get` finds another copy
/// where there is one.
#[no_mangle]
pub unsafe extern "C" fn walrusds_value_take(
    value: *mut walrusds_value,
    into: *mut u8,
    into_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let value = value.as_mut().ok_or_else(|| invalid("value is NULL"))?;
            if into_len != value.len {
                return Err(invalid(format!(
                    "into_len is {into_len}, expected {}, the length of the value",
                    value.len
                )));
            }
            let into = slice_mut("into", into, into_len)?;
            value.take().map_or(Ok(()), |value| value.copy_to(into))
        })
    }
}

/// Frees a value that was not taken, and leaves an empty one. NULL is ignored.
#[no_mangle]
pub unsafe extern "C" fn walrusds_value_free(value: *mut walrusds_value) {
    unsafe {
        entry(std::ptr::null_mut(), || {
            if let Some(value) = value.as_mut() {
                drop(value.take());
            }
            Ok(())
        });
    }
}

/// The key as text; `None` if it is not UTF-8: such a key cannot be stored, so it is never found.
fn storable(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()
}

/// Whether `key` is known. Asks the index alone.
#[no_mangle]
pub unsafe extern "C" fn walrusds_has(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    found: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("found", found, false)?;
            let instance = INSTANCES.get(handle)?;
            if let Some(key) = storable(slice("key", key, key_len)?) {
                found.write(wait(call, instance.store.has(key))?);
            }
            Ok(())
        })
    }
}

/// The size in bytes of the value of `key`. Asks the index alone.
#[no_mangle]
pub unsafe extern "C" fn walrusds_get_size(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    size: *mut u64,
    found: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let size_ok = clear("size", size, 0);
            clear("found", found, false).and(size_ok)?;
            let instance = INSTANCES.get(handle)?;
            let Some(key) = storable(slice("key", key, key_len)?) else {
                return Ok(());
            };
            if let Some(bytes) = wait(call, instance.store.get_size(key))? {
                size.write(bytes);
                found.write(true);
            }
            Ok(())
        })
    }
}

/// As `walrusds_get_size`, from memory alone: never waits. `known` is false when memory does not
/// hold the answer; `found` means nothing then.
#[no_mangle]
pub unsafe extern "C" fn walrusds_peek_size(
    handle: walrusds_handle,
    key: *const u8,
    key_len: usize,
    size: *mut u64,
    found: *mut bool,
    known: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let size_ok = clear("size", size, 0);
            let found_ok = clear("found", found, false);
            clear("known", known, false).and(found_ok).and(size_ok)?;
            let instance = INSTANCES.get(handle)?;
            let answer = match storable(slice("key", key, key_len)?) {
                Some(key) => instance.store.peek_size(key)?,
                None => Some(None),
            };
            if let Some(answer) = answer {
                known.write(true);
                size.write(answer.unwrap_or(0));
                found.write(answer.is_some());
            }
            Ok(())
        })
    }
}

/// Looks many keys up with one question to the index. On an error of the call nothing is filled in.
#[no_mangle]
pub unsafe extern "C" fn walrusds_get_sizes(
    handle: walrusds_handle,
    call: *const walrusds_call,
    lookups: *mut walrusds_lookup,
    lookups_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let lookups = slice_mut("lookups", lookups, lookups_len)?;
            for lookup in lookups.iter_mut() {
                (lookup.size, lookup.code, lookup.found) = (0, WALRUSDS_OK, false);
            }
            let instance = INSTANCES.get(handle)?;
            let key = |(i, lookup): (usize, &walrusds_lookup)| {
                let key = slice("key", lookup.key, lookup.key_len)
                    .map_err(|e| e.context(format_args!("lookup {i}")))?;
                // A key that is not UTF-8 is replaced by one that cannot be stored either.
                Ok(storable(key).unwrap_or("\0").to_owned())
            };
            let keys = lookups.iter().enumerate().map(key);
            let keys = keys.collect::<Result<Vec<String>>>()?;
            let sizes = wait(call, instance.store.get_sizes(keys))?;
            for (lookup, size) in lookups.iter_mut().zip(sizes) {
                match size {
                    Ok(Some(size)) => (lookup.size, lookup.found) = (size, true),
                    Ok(None) => {}
                    Err(e) => lookup.code = e.kind() as i32,
                }
            }
            Ok(())
        })
    }
}

/// Removes `key`; an unknown key is no error.
#[no_mangle]
pub unsafe extern "C" fn walrusds_delete(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let instance = INSTANCES.get(handle)?;
            match storable(slice("key", key, key_len)?) {
                Some(key) => wait(call, instance.store.delete(key)),
                None => Ok(()),
            }
        })
    }
}

/// Applies a whole batch; the last operation on a key wins. Not atomic: after an error some
/// operations may have taken effect, and the same batch may be committed again. Returns when
/// `walrusds_put` would for each value.
#[no_mangle]
pub unsafe extern "C" fn walrusds_batch_commit(
    handle: walrusds_handle,
    call: *const walrusds_call,
    ops: *const walrusds_op,
    ops_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let instance = INSTANCES.get(handle)?;
            wait(call, instance.store.commit(ops_from(ops, ops_len)?))
        })
    }
}

/// The operations of a batch, copied.
///
/// # Safety
/// As the types say.
unsafe fn ops_from(ops: *const walrusds_op, len: usize) -> Result<Vec<Op>> {
    // SAFETY: readable by contract.
    let ops = unsafe { slice("ops", ops, len) }?;
    let read = |(i, op)| {
        // SAFETY: readable by contract.
        unsafe { op_from(op) }
            .map_err(|e| e.context(format_args!("operation {i}")))
            .transpose()
    };
    let ops: Vec<_> = ops
        .iter()
        .enumerate()
        .filter_map(read)
        .collect::<Result<_>>()?;
    let values: Vec<&[u8]> = ops.iter().filter_map(|(_, value)| *value).collect();
    let mut copies = buffer::copies(&values).into_iter();
    let owned = |(key, value): OpRef<'_>| match value.and_then(|_| copies.next()) {
        Some(value) => Op::Put(key.to_owned(), value),
        None => Op::Delete(key.to_owned()),
    };
    Ok(ops.into_iter().map(owned).collect())
}

/// An operation in the caller's memory: a put, or a delete if it has no value.
type OpRef<'a> = (&'a str, Option<&'a [u8]>);

/// Reads an operation; `None` if it has no effect.
///
/// # Safety
/// As the types say; the result lives as long as the memory that they point to.
unsafe fn op_from(op: &walrusds_op) -> Result<Option<OpRef<'_>>> {
    // SAFETY: readable by contract.
    let key = unsafe { slice("key", op.key, op.key_len) }?;
    match op.kind {
        WALRUSDS_OP_PUT => {
            // SAFETY: readable by contract.
            let value = unsafe { slice("value", op.value, op.value_len) }?;
            Ok(Some((utf8("key", key)?, Some(value))))
        }
        WALRUSDS_OP_DELETE => Ok(storable(key).map(|key| (key, None))),
        other => Err(invalid(format!(
            "kind is {other}, expected {WALRUSDS_OP_PUT} (put) or {WALRUSDS_OP_DELETE} (delete)"
        ))),
    }
}

/// Returns when every write acknowledged before survives a power cut of this machine: it is on
/// Walrus and indexed, or synced in the journal. Does not wait for the journal to empty.
#[no_mangle]
pub unsafe extern "C" fn walrusds_sync(
    handle: walrusds_handle,
    call: *const walrusds_call,
    prefix: *const u8,
    prefix_len: usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let instance = INSTANCES.get(handle)?;
            let prefix = slice("prefix", prefix, prefix_len)?;
            let prefix = String::from_utf8_lossy(prefix);
            wait(call, instance.store.sync(&prefix))
        })
    }
}

/// Bytes of all blocks stored under the index, before Walrus' encoding: a running total.
#[no_mangle]
pub unsafe extern "C" fn walrusds_disk_usage(
    handle: walrusds_handle,
    call: *const walrusds_call,
    bytes: *mut u64,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("bytes", bytes, 0)?;
            let instance = INSTANCES.get(handle)?;
            let usage = wait(call, instance.store.disk_usage())?;
            bytes.write(u64::try_from(usage.bytes).unwrap_or(0));
            Ok(())
        })
    }
}

/// Takes the oldest log line out; never waits. The lines of a datastore that is being closed, or
/// was closed, can be taken until none is left; then the handle is `WALRUSDS_CLOSED`. A line is a
/// JSON object with `time_ms` (Unix, milliseconds), `level` ("error", "warn", "info"), `about` (the
/// subject of lines that come a few at a time; empty for others) and `message`. `found` is false
/// when there is none.
#[no_mangle]
pub unsafe extern "C" fn walrusds_log_next(
    handle: walrusds_handle,
    out: *mut walrusds_buf,
    found: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let out_ok = clear("out", out, walrusds_buf::EMPTY);
            clear("found", found, false).and(out_ok)?;
            let line = match INSTANCES.get(handle) {
                Ok(instance) => instance.store.next_log_line(),
                Err(closed) => LAST_WORDS.next(handle).ok_or(closed)?,
            };
            if let Some(line) = line {
                let since = line.time.duration_since(SystemTime::UNIX_EPOCH);
                let time_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(0);
                let json = serde_json::json!({
                    "time_ms": time_ms, "level": line.level.as_str(), "about": line.about,
                    "message": line.message,
                });
                out.write(walrusds_buf::new(json.to_string().into()));
                found.write(true);
            }
            Ok(())
        })
    }
}

/// Makes a cancel token. Free it with `walrusds_cancel_free` when no call uses it any more.
#[no_mangle]
pub unsafe extern "C" fn walrusds_cancel_new(
    out: *mut walrusds_cancel_token,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, 0)?;
            out.write(CANCELS.insert(CancellationToken::new()));
            Ok(())
        })
    }
}

/// Cancels every call that uses the token, now and later. May be called from any thread, and more
/// than once.
#[no_mangle]
pub unsafe extern "C" fn walrusds_cancel(
    token: walrusds_cancel_token,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            CANCELS.get(token)?.cancel();
            Ok(())
        })
    }
}

/// Frees a cancel token; calls that still use it go on, and can no longer be cancelled.
#[no_mangle]
pub unsafe extern "C" fn walrusds_cancel_free(
    token: walrusds_cancel_token,
    err: *mut walrusds_error,
) -> i32 {
    unsafe { entry(err, || CANCELS.remove(token).map(drop)) }
}

/// Frees a buffer and leaves an empty one. NULL and empty buffers are allowed.
#[no_mangle]
pub unsafe extern "C" fn walrusds_buf_free(buf: *mut walrusds_buf) {
    unsafe {
        entry(std::ptr::null_mut(), || {
            if let Some(buf) = buf.as_mut() {
                buf.free();
            }
            Ok(())
        });
    }
}

/// Frees an error's message and leaves no error. NULL is allowed.
#[no_mangle]
pub unsafe extern "C" fn walrusds_error_free(error: *mut walrusds_error) {
    unsafe {
        entry(std::ptr::null_mut(), || {
            if let Some(error) = error.as_mut() {
                error.message.free();
                *error = walrusds_error::NONE;
            }
            Ok(())
        });
    }
}
