//! Rows that were deleted and can be brought back for a while.
//!
//! An index that keeps deleted rows moves each of them, in the statement that deletes it, to the
//! companion `<table>_deleted`, with the time until which it is kept. Readers never see such a row.
//! A put of its key removes it.
//!
//! The end of its storage is the one that was known when it was deleted: a renewal does not look
//! for kept rows, so a blob may live for longer than they say. They have no other index than that
//! of their keys, since a deletion would have to maintain it: a garbage collection deletes one key
//! at a time.
//!
//! A kept row is an offer, never a promise: its blob may lapse meanwhile, and two nodes that put
//! and delete one key at the same moment may leave a kept row beside a live one. So every method
//! that brings rows back does so only where the key has no live row.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{KeyRange, KeyRecord, Record, Rows, Usage};
use crate::error::Result;

/// A row that was deleted and is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedRow {
    /// The row as it was.
    pub row: KeyRecord,
    /// When it was deleted, by the clock of the index.
    pub deleted_at: SystemTime,
}

/// A step through the kept rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many rows were removed.
    pub removed: u64,
    /// The key of the last row that was looked at; `None`: there are no more.
    pub last: Option<String>,
}

/// What an index holds under a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// The row, as [`Rows::get`] gives it.
    pub live: Option<Record>,
    /// The row that was deleted last, if it is kept.
    pub deleted: Option<Record>,
}

impl Traces {
    /// The row that the key has, if its deleted row was `brought_back` or not.
    pub(crate) fn stored(&self, brought_back: bool) -> Option<&Record> {
        match brought_back {
            true => self.deleted.as_ref(),
            false => self.live.as_ref(),
        }
    }
}

/// The rows that were deleted and are kept. An index that does not implement these methods keeps
/// none.
#[async_trait]
pub trait Deleted: Rows {
    /// How long this node keeps the rows that it deletes; zero: it keeps none. The rows that other
    /// nodes keep can be listed and brought back all the same.
    fn keeps_deleted(&self) -> Duration {
        Duration::ZERO
    }

    /// Looks keys up in one round trip, kept rows included; the result has the keys' order.
    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        let rows = self.get_many(keys).await?.into_iter();
        let traces = rows.map(|live| Traces {
            live,
            deleted: None,
        });
        Ok(traces.collect())
    }

    /// The kept rows of these keys; the result has the keys' order.
    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        Ok(vec![None; keys.len()])
    }

    /// The kept rows of `range` in ascending order that were deleted at `since` or later and before
    /// `until`, at most `limit`. Fewer than `limit` means the end.
    async fn list_deleted(
        &self,
        _range: &KeyRange,
        _since: Option<SystemTime>,
        _until: Option<SystemTime>,
        _limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        Ok(Vec::new())
    }

    /// The blobs at which kept rows point, in the order of their IDs, after `after`, at most
    /// `limit`, with the number and the bytes of these rows. Such a blob must not be released yet.
    /// Reads every kept row: there is no index for it, since deletions would have to keep it.
    async fn deleted_by_blob(
        &self,
        _after: Option<&str>,
        _limit: usize,
    ) -> Result<Vec<(String, Usage)>> {
        Ok(Vec::new())
    }

    /// Brings kept rows back: of each key, the kept row, if it still points at one of the blobs in
    /// `rows` and the key has no live row. A kept row whose key has a live row is removed. All in
    /// one transaction. Returns the keys that were brought back. A key must not appear twice.
    async fn undelete(&self, _rows: &[KeyRecord]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Goes through the next `limit` kept rows whose keys come after `after`, and removes those
    /// whose time is over. A caller begins with an empty text, and goes on with [`Purged::last`].
    async fn purge_deleted(&self, _after: &str, _limit: usize) -> Result<Purged> {
        Ok(Purged::default())
    }
}
