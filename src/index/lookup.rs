//! The datastore's access to its index.
//!
//! **Problem.** Lookups are frequent and cost round trips; remembered rows save most of them, but
//! must not outlive a write of this node.
//!
//! **Outline.** Every call of the datastore to its index passes through [`Lookups`]. Lookups, and
//! deletions, that run at the same time are combined (`combine`) unless the index is local. Rows
//! that were read are remembered for a while (`rows`). Every write announces its keys to the cache
//! before it begins and until it ends. Where the index has copies ([`Replica`](super::Replica)),
//! the lookups that may be answered from memory go to them, and so do listings; a write announces
//! itself to them in the same way.
//!
//! **Invariants.**
//! - Only `find`, `find_many`, `find_each` and `cached` answer from memory; all other methods ask
//!   the index. Only `find`, `find_many`, `find_each`, `list` and `rows_from` ask its copies. So no
//!   write decides by what memory or a copy says.
//! - Every reader that remembers rows takes its [`Moment`] before it reads them.
//! - The keys of a combined deletion are announced for as long as the query runs, also when its
//!   callers have left.
//! - One key that is refused, or one row that cannot be read, does not fail the other lookups of
//!   its query: keys are checked before they are combined, and a query that fails for good is
//!   repeated key by key.
//!
//! **Locks.** None of its own. It holds neither a lock of `combine` nor of `rows` while it asks the
//! index, and never both at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::combine::Combiner;
use super::keys::check_key;
pub use super::rows::Moment;
use super::rows::RowCache;
use super::{
    Blob, BlobState, Claim, Claimed, Deleted, DeletedRow, EndingIn, Fact, Index, KeyRange,
    KeyRecord, Leases, Ledger, LeftBehind, ListItem, Notes, Purged, Record, RenewItem, Renewal,
    Rows, Staging, Totals, Traces, Usage,
};
use crate::clock::Sighting;
use crate::error::{Error, ErrorKind, Result};
use crate::trace::{self, Span};

/// Memory for remembered rows (bytes): about 100,000 of them, or 25 GiB of blocks of 256 KiB.
const CACHE_BYTES: usize = 32 << 20;

/// An index, and the rows of it that are remembered.
///
/// [`find`](Lookups::find) may answer from memory; the methods of [`Rows`] never do. `find` sees a
/// write of another node after the time given to [`new`](Lookups::new), and a write of this node at
/// once. The exception is a write of this node that was given up midway, which the index may still
/// carry out: it counts as another node's.
pub struct Lookups {
    index: Arc<dyn Index>,
    cache: Arc<RowCache>,
    lookups: Combiner<Option<Record>>,
    deletes: Combiner<Usage>,
    counts: Arc<Counts>,
}

/// Counts the lookups that `find`, `find_many` and `find_each` answer.
#[derive(Debug, Default)]
struct Counts {
    queries: AtomicU64,
    keys: AtomicU64,
    hits: AtomicU64,
}

impl Counts {
    fn asked(&self, keys: usize) {
        self.queries.fetch_add(1, Relaxed);
        self.keys.fetch_add(keys as u64, Relaxed);
    }
}

/// A span of a question to the index, if the call that asks is traced.
fn query_span(keys: usize) -> Option<Span> {
    trace::begin("index_query").map(|span| span.with("keys", keys as u64))
}

impl Lookups {
    /// Remembers rows of `index` for `ttl`; with zero, remembers none.
    pub fn new(index: Arc<dyn Index>, ttl: Duration) -> Self {
        let cache = Arc::new(RowCache::new(ttl, CACHE_BYTES));
        let counts = Arc::<Counts>::default();
        let lookups = Combiner::new(Box::new({
            let (index, cache) = (Arc::clone(&index), Arc::clone(&cache));
            let counts = Arc::clone(&counts);
            move |keys| {
                counts.asked(keys.len());
                let (index, cache) = (Arc::clone(&index), Arc::clone(&cache));
                Box::pin(async move {
                    let span = query_span(keys.len());
                    let found = look_up(index.as_ref(), &cache, &keys).await;
                    Span::done(span, &found);
                    found
                })
            }
        }));
        let deletes = Combiner::new(Box::new({
            let (index, cache) = (Arc::clone(&index), Arc::clone(&cache));
            move |keys| {
                let (index, cache) = (Arc::clone(&index), Arc::clone(&cache));
                Box::pin(async move { delete(index.as_ref(), &cache, &keys).await })
            }
        }));
        Lookups {
            index,
            cache,
            lookups,
            deletes,
            counts,
        }
    }

    /// Counters for the metrics snapshot.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 3] {
        let Counts {
            queries,
            keys,
            hits,
        } = &*self.counts;
        [
            ("index_queries", queries.load(Relaxed)),
            ("index_query_keys", keys.load(Relaxed)),
            ("row_cache_hits", hits.load(Relaxed)),
        ]
    }

    /// Looks a key up, in memory first and then in the index. `None` if unknown.
    ///
    /// # Errors
    /// Those of [`Rows::get`].
    pub async fn find(&self, key: &str) -> Result<Option<Record>> {
        if let Some(record) = self.cached(key) {
            return Ok(Some(record));
        }
        // Checked before the key is combined with others, whose lookups it would fail.
        check_key(key)?;
        if self.index.is_local() {
            self.counts.asked(1);
            return self.read(key).await;
        }
        self.lookups.get(key.to_owned()).await
    }

    /// Looks keys up as [`find`](Self::find) does; the result has the keys' order.
    ///
    /// # Errors
    /// Those of [`Rows::get_many`].
    pub async fn find_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        let mut found: Vec<Option<Record>> = keys.iter().map(|key| self.cached(key)).collect();
        let missing = found.iter().zip(keys).filter(|(row, _)| row.is_none());
        let missing: Vec<String> = missing.map(|(_, key)| key.clone()).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        if self.index.replica().is_some() {
            return self.find_each(keys).await?.into_iter().collect();
        }
        let since = self.moment();
        self.counts.asked(missing.len());
        let span = query_span(missing.len());
        let rows = self.index.get_many(&missing).await;
        Span::done(span, &rows);
        let mut rows = rows?.into_iter();
        for (row, key) in found.iter_mut().zip(keys).filter(|(row, _)| row.is_none()) {
            *row = rows.next().flatten();
            if let Some(row) = row {
                self.cache.remember(since, key, row);
            }
        }
        Ok(found)
    }

    /// As [`find_many`](Self::find_many), with an answer for each key: a row that cannot be read
    /// does not hide the others.
    ///
    /// # Errors
    /// The errors of the index as a whole.
    pub async fn find_each(&self, keys: &[String]) -> Result<Vec<Result<Option<Record>>>> {
        let mut found: Vec<_> = keys.iter().map(|key| Ok(self.cached(key))).collect();
        let missing = found.iter().zip(keys).filter(|(row, _)| is_missing(row));
        let missing: Vec<String> = missing.map(|(_, key)| key.clone()).collect();
        if !missing.is_empty() {
            self.counts.asked(missing.len());
            let span = query_span(missing.len());
            let answers = look_up(self.index.as_ref(), &self.cache, &missing).await;
            Span::done(span, &answers);
            let answers = answers?;
            let places = found.iter_mut().filter(|row| is_missing(row));
            places.zip(answers).for_each(|(row, answer)| *row = answer);
        }
        Ok(found)
    }

    /// Looks a key up in the index alone, for a caller that has found a remembered row to be wrong.
    ///
    /// # Errors
    /// Those of [`Rows::get`].
    pub async fn find_anew(&self, key: &str) -> Result<Option<Record>> {
        self.cache.forget(key);
        self.read(key).await
    }

    async fn read(&self, key: &str) -> Result<Option<Record>> {
        let since = self.moment();
        let span = query_span(1);
        let row = self.index.get(key).await;
        Span::done(span, &row);
        let row = row?;
        if let Some(row) = &row {
            self.cache.remember(since, key, row);
        }
        Ok(row)
    }

    /// Announces that the rows of keys are written, until the result is dropped.
    fn writing<'a, K>(&'a self, keys: K) -> impl Send + 'a
    where
        K: Iterator<Item = &'a str> + Clone + Send + 'a,
    {
        let copies = self.index.replica().map(|replica| replica.writing());
        (self.cache.writing(keys), copies)
    }

    /// As [`writing`](Self::writing), for all rows that point into a blob.
    fn writing_blob(&self, blob_id: &str) -> impl Send + '_ {
        let copies = self.index.replica().map(|replica| replica.writing());
        (self.cache.writing_blob(blob_id), copies)
    }

    /// The row of a key, if it is remembered. Never waits. `None` does not mean that the key is
    /// unknown to the index.
    pub fn cached(&self, key: &str) -> Option<Record> {
        let row = self.cache.get(key);
        self.counts.hits.fetch_add(row.is_some().into(), Relaxed);
        row
    }

    /// The present moment. A caller takes it before it reads rows that are to be
    /// [remembered](Self::remember).
    pub fn moment(&self) -> Moment {
        self.cache.moment()
    }

    /// Remembers rows that were read from the index after `since`: the neighbours of a block that
    /// was asked for. Rows that this node has written since are left out.
    pub fn remember(&self, since: Moment, rows: &[KeyRecord]) {
        for row in rows {
            self.cache.remember(since, &row.key, &row.record);
        }
    }
}

fn is_missing(row: &Result<Option<Record>>) -> bool {
    matches!(row, Ok(None))
}

/// Runs a combined lookup.
async fn look_up(
    index: &dyn Index,
    cache: &RowCache,
    keys: &[String],
) -> Result<Vec<Result<Option<Record>>>> {
    let since = cache.moment();
    let copies = match index.replica() {
        Some(replica) => Some(replica.get_each(keys).await),
        None => None,
    };
    let answers = match (copies, keys) {
        (Some(Ok(answers)), _) => answers,
        (Some(Err(e)), _) if e.is_retryable() => return Err(e),
        (_, [key]) => vec![index.get(key).await],
        (_, _) => match index.get_many(keys).await {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            // One row that cannot be read must not hide the others.
            Err(e) if !e.is_retryable() => {
                let mut answers = Vec::with_capacity(keys.len());
                for key in keys {
                    answers.push(index.get(key).await);
                }
                answers
            }
            Err(e) => return Err(e),
        },
    };
    for (key, answer) in keys.iter().zip(&answers) {
        if let Ok(Some(row)) = answer {
            cache.remember(since, key, row);
        }
    }
    Ok(answers)
}

/// Runs a combined deletion. Its keys are announced as being written while it runs, whether or not
/// its callers are still there.
async fn delete(
    index: &dyn Index,
    cache: &RowCache,
    keys: &[String],
) -> Result<Vec<Result<Usage>>> {
    let _announced = index.replica().map(|replica| replica.writing());
    let _writing = cache.writing(keys.iter().map(String::as_str));
    if let [key] = keys {
        return Ok(vec![index.delete(key).await]);
    }
    let mut removed = vec![Ok(Usage::default()); keys.len()];
    if let Some(first) = removed.first_mut() {
        *first = Ok(index.delete_many(keys).await?);
    }
    Ok(removed)
}

/// Each method is that of the index behind it, except [`delete`](Rows::delete): of deletions that
/// are combined, one is told the sum of what all of them removed.
#[async_trait]
impl Rows for Lookups {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        let _writing = self.writing(records.iter().map(|r| r.key.as_str()));
        self.index.put_many(records).await
    }

    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64> {
        let _writing = self.writing(to.iter().map(|r| r.key.as_str()));
        self.index.move_rows(from, to).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        self.index.get(key).await
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        self.index.get_many(keys).await
    }

    fn is_local(&self) -> bool {
        self.index.is_local()
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        self.index.staged_value(key).await
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        check_key(key)?;
        if self.index.is_local() {
            let _writing = self.writing(std::iter::once(key));
            return self.index.delete(key).await;
        }
        self.deletes.get(key.to_owned()).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        let _writing = self.writing(keys.iter().map(String::as_str));
        self.index.delete_many(keys).await
    }

    async fn delete_from(&self, from: &str, keys: &[String]) -> Result<Usage> {
        let _writing = self.writing(keys.iter().map(String::as_str));
        self.index.delete_from(from, keys).await
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        match self.index.replica() {
            Some(replica) => replica.page(range, offset, limit).await,
            None => self.index.list(range, offset, limit).await,
        }
    }

    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        self.index.due_for_renewal(before, after, limit).await
    }

    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        self.index.ending_by(epoch, after, limit).await
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        self.index.rows_of_blob(blob_id).await
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        // Neighbours of a block that is being read: the reader is likely to ask for them next.
        let since = self.moment();
        let rows = match self.index.replica() {
            Some(replica) => replica.neighbours(blob_id, from, limit).await?,
            None => self.index.rows_from(blob_id, from, limit).await?,
        };
        self.remember(since, &rows);
        Ok(rows)
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        let _writing = self.writing_blob(blob_id);
        self.index.update_blob_after_renewal(blob_id, renewal).await
    }
}

#[async_trait]
impl Ledger for Lookups {
    async fn place(&self, blob: &Blob, rows: &[KeyRecord]) -> Result<()> {
        let _writing = self.writing(rows.iter().map(|r| r.key.as_str()));
        self.index.place(blob, rows).await
    }

    async fn move_to(&self, from: &str, blob: &Blob, rows: &[KeyRecord]) -> Result<u64> {
        let _writing = self.writing(rows.iter().map(|r| r.key.as_str()));
        self.index.move_to(from, blob, rows).await
    }

    async fn place_missing(&self, blobs: &[Blob], rows: &[KeyRecord]) -> Result<Usage> {
        let _writing = self.writing(rows.iter().map(|r| r.key.as_str()));
        self.index.place_missing(blobs, rows).await
    }

    async fn renewed(&self, blob: &Blob) -> Result<u64> {
        let _writing = self.writing_blob(&blob.blob_id);
        self.index.renewed(blob).await
    }

    fn keeps_ledger(&self) -> bool {
        self.index.keeps_ledger()
    }

    async fn blobs(&self, blob_ids: &[String]) -> Result<Vec<Option<Blob>>> {
        self.index.blobs(blob_ids).await
    }

    async fn blobs_of_rows(&self, after: &str, limit: usize) -> Result<Vec<Blob>> {
        self.index.blobs_of_rows(after, limit).await
    }

    async fn blobs_in_state(
        &self,
        state: BlobState,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Blob>> {
        self.index.blobs_in_state(state, after, limit).await
    }

    async fn set_state(&self, blob_ids: &[String], state: BlobState) -> Result<u64> {
        self.index.set_state(blob_ids, state).await
    }

    async fn forget_blobs(&self, blob_ids: &[String]) -> Result<u64> {
        self.index.forget_blobs(blob_ids).await
    }

    async fn live(&self, blob_ids: &[String]) -> Result<Vec<Usage>> {
        self.index.live(blob_ids).await
    }

    async fn count(&self, after: &str, limit: usize) -> Result<Option<String>> {
        self.index.count(after, limit).await
    }

    async fn horizon(&self) -> Result<Vec<EndingIn>> {
        self.index.horizon().await
    }

    async fn epochs(&self) -> Result<Vec<Sighting>> {
        self.index.epochs().await
    }

    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        self.index.saw_epochs(seen).await
    }
}

#[async_trait]
impl Deleted for Lookups {
    fn keeps_deleted(&self) -> Duration {
        self.index.keeps_deleted()
    }

    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        self.index.get_with_deleted(keys).await
    }

    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        self.index.deleted(keys).await
    }

    async fn list_deleted(
        &self,
        range: &KeyRange,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
        limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        self.index.list_deleted(range, since, until, limit).await
    }

    async fn deleted_by_blob(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Usage)>> {
        self.index.deleted_by_blob(after, limit).await
    }

    async fn undelete(&self, rows: &[KeyRecord]) -> Result<Vec<String>> {
        let _writing = self.writing(rows.iter().map(|r| r.key.as_str()));
        self.index.undelete(rows).await
    }

    async fn purge_deleted(&self, after: &str, limit: usize) -> Result<Purged> {
        self.index.purge_deleted(after, limit).await
    }
}

#[async_trait]
impl Leases for Lookups {
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        self.index.try_lease(name, owner, ttl).await
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        self.index.release_lease(name, owner).await
    }
}

#[async_trait]
impl Totals for Lookups {
    async fn usage(&self) -> Result<Usage> {
        self.index.usage().await
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        self.index.add_usage(delta).await
    }
}

#[async_trait]
impl Notes for Lookups {
    async fn note(&self, name: &str) -> Result<Option<String>> {
        self.index.note(name).await
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        self.index.set_note(name, text).await
    }

    async fn notes(&self, prefix: &str, limit: usize) -> Result<Vec<(String, String)>> {
        self.index.notes(prefix, limit).await
    }

    async fn identity(&self) -> Result<Option<String>> {
        self.index.identity().await
    }
}

impl Lookups {
    /// Only asked where the index has staged blocks: [`Index::staging`] hands the trait out.
    fn staged(&self) -> Result<&dyn Staging> {
        let none = || Error::new(ErrorKind::Internal, "this index holds no staged blocks");
        self.index.staging().ok_or_else(none)
    }
}

#[async_trait]
impl Staging for Lookups {
    async fn left_behind(
        &self,
        age: Duration,
        after: Option<&LeftBehind>,
        limit: usize,
    ) -> Result<Vec<LeftBehind>> {
        self.staged()?.left_behind(age, after, limit).await
    }

    async fn claim(&self, keys: &[String], age: Duration, term: Duration) -> Result<Vec<Claimed>> {
        self.staged()?.claim(keys, age, term).await
    }

    async fn promote(&self, blob: &Blob, rows: &[(KeyRecord, Claim)]) -> Result<Vec<String>> {
        let _writing = self.writing(rows.iter().map(|(row, _)| &*row.key));
        self.staged()?.promote(blob, rows).await
    }

    async fn discard(&self, claims: &[Claim]) -> Result<u64> {
        let _writing = self.writing(claims.iter().map(|claim| &*claim.key));
        self.staged()?.discard(claims).await
    }

    async fn rows_beside(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        self.staged()?.rows_beside(keys).await
    }

    async fn without_rows(&self) -> Result<Usage> {
        self.staged()?.without_rows().await
    }

    async fn release(&self, claims: &[Claim]) -> Result<()> {
        self.staged()?.release(claims).await
    }
}

#[async_trait]
impl Index for Lookups {
    fn take_notice(&self) -> Option<String> {
        self.index.take_notice()
    }

    fn only_reads(&self) -> Option<&'static str> {
        self.index.only_reads()
    }

    fn unfinished_copy(&self) -> Option<&str> {
        self.index.unfinished_copy()
    }

    fn staging(&self) -> Option<&dyn Staging> {
        self.index.staging().is_some().then_some(self)
    }

    async fn facts(&self) -> Result<Vec<Fact>> {
        self.index.facts().await
    }

    async fn close(&self) -> Result<()> {
        self.index.close().await
    }
}
