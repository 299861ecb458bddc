//! The blocks of another datastore of walrusds, through its index and its aggregators, as a source.
//!
//! Blobs are read one after another and each from its beginning, so that blocks that lie together
//! stay together. Blocks that lie near each other are read in one range; one that is wrong there is
//! read by itself, by all rules of the client. A range of which the target wants nothing is not
//! read.
//!
//! Nodes may move blocks to other blobs meanwhile, behind the place that the listing has reached or
//! before it. So the index is listed until no key is new, and a block that is not where its row
//! said is looked up again. Memory: about 20 bytes for each block.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use tokio::runtime::Handle;

use super::super::seen::Seen;
use super::offer::{Content, Offer, Source};
use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRecord, LeftBehind, Record};
use crate::multihash::{self, Match};

/// Blobs and staged blocks that are listed at once.
const PAGE: usize = 1000;
/// How often the index is listed at most: a node that stores all the time would make an import
/// endless.
const PASSES: usize = 4;
/// How often a block that was moved is looked for.
const MOVES: usize = 3;
/// The most bytes of a range, unless a single block is longer.
const RANGE: u64 = 4 << 20;
/// A hole between blocks of up to this length (bytes) is read along with them.
const HOLE: u64 = 64 << 10;

type Window = Shared<BoxFuture<'static, Result<Bytes>>>;

/// The blocks of another datastore.
pub struct IndexBlocks {
    from: Arc<Inspection>,
    prefix: String,
    runtime: Handle,
    /// Blobs that come next; behind the last of them is another page, or none.
    blobs: VecDeque<String>,
    after: Option<String>,
    offers: VecDeque<Offer>,
    /// The last block that a Go node has staged, of those that were listed; `None`: they are all.
    staged: Option<Option<LeftBehind>>,
    /// The keys that were offered.
    seen: Seen,
    /// Whether this listing had a new key, and how many more there may be.
    any: bool,
    passes: usize,
    total_bytes: Option<u64>,
}

impl IndexBlocks {
    /// The blocks of a datastore; `prefix` is what it has before `/CIQ…` in their keys. Blocks in a
    /// journal are none of the index, and do not come. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn new(from: Arc<Inspection>, prefix: &str) -> Result<IndexBlocks> {
        let usage = from.index().usage().await?;
        Ok(IndexBlocks {
            from,
            prefix: prefix.to_owned(),
            runtime: Handle::current(),
            blobs: VecDeque::new(),
            after: Some(String::new()),
            offers: VecDeque::new(),
            staged: Some(None),
            seen: Seen::default(),
            any: false,
            passes: PASSES - 1,
            total_bytes: u64::try_from(usage.bytes).ok(),
        })
    }

    /// The key of a block, as Kubo names it; `None` for a key in another place.
    fn key<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)
            .filter(|key| key.starts_with('/'))
    }

    /// Lists what comes next. Returns false if nothing does.
    async fn more(&mut self) -> Result<bool> {
        if let Some(blob_id) = self.blobs.pop_front() {
            let rows = self.from.index().rows_of_blob(&blob_id).await?;
            self.blob(&blob_id, rows);
            return Ok(true);
        }
        if let Some(after) = &self.after {
            let page = self.from.index().blobs_of_rows(after, PAGE).await?;
            let full = page.len() >= PAGE;
            self.blobs = page.into_iter().map(|blob| blob.blob_id).collect();
            self.after = self.blobs.back().filter(|_| full).cloned();
            return Ok(true);
        }
        let Some((after, staging)) = self.staged.take().zip(self.from.index().staging()) else {
            let again = std::mem::take(&mut self.any) && self.passes > 0;
            if again {
                self.passes -= 1;
                (self.after, self.staged) = (Some(String::new()), Some(None));
            }
            return Ok(again);
        };
        let page = staging.left_behind(Duration::ZERO, after.as_ref(), PAGE);
        let page = page.await?;
        self.staged = (page.len() >= PAGE).then(|| page.last().cloned());
        for block in page {
            if !self.is_new(&block.key, block.size) {
                continue;
            }
            if let Some(key) = self.key(&block.key) {
                let value = staged(Arc::clone(&self.from), block.key.clone());
                let content = Content::Later(value.boxed());
                self.offers
                    .push_back(Offer::later(key, block.size, content));
            }
        }
        Ok(true)
    }

    /// Whether a block has to be offered. Counts a key in another place.
    fn is_new(&mut self, key: &str, len: u64) -> bool {
        if !self.seen.insert(key) {
            return false;
        }
        self.any = true;
        let is_block = self.key(key).is_some();
        if !is_block {
            let other = Offer::later(key, len, Content::Elsewhere);
            self.offers.push_back(other);
        }
        is_block
    }

    /// Offers the blocks of a blob.
    fn blob(&mut self, blob_id: &str, rows: Vec<KeyRecord>) {
        let mut parts: Vec<(u64, u64, KeyRecord)> = Vec::with_capacity(rows.len());
        for row in rows {
            let len = u64::try_from(row.record.size).unwrap_or(0);
            if !self.is_new(&row.key, len) {
                continue;
            }
            let Some(key) = self.key(&row.key).map(str::to_owned) else {
                continue;
            };
            match (row.record.range(), row.record.patch_id.is_some()) {
                (Ok(range), false) => parts.push((range.start, range.end, row)),
                (Ok(range), true) => {
                    let block = from_row(Arc::clone(&self.from), row);
                    let content = Content::Later(block.boxed());
                    self.offers
                        .push_back(Offer::later(key, range.end - range.start, content));
                }
                (Err(e), _) => {
                    let content = Content::Later(async move { Err(e) }.boxed());
                    self.offers.push_back(Offer::later(key, 0, content));
                }
            }
        }
        parts.sort_unstable_by(|a, b| (a.0, a.1, &a.2.key).cmp(&(b.0, b.1, &b.2.key)));
        let mut near: Vec<(u64, u64, KeyRecord)> = Vec::new();
        let mut reach = 0;
        for part in parts {
            let begin = near.first().map_or(part.0, |first| first.0);
            let (far, long) = (part.0 > reach + HOLE, part.1.max(reach) - begin > RANGE);
            if !near.is_empty() && (far || long) {
                self.window(blob_id, std::mem::take(&mut near), reach);
                reach = 0;
            }
            reach = reach.max(part.1);
            near.push(part);
        }
        if !near.is_empty() {
            self.window(blob_id, near, reach);
        }
    }

    /// Offers blocks that lie near each other, up to this end.
    fn window(&mut self, blob_id: &str, near: Vec<(u64, u64, KeyRecord)>, end: u64) {
        let Some(start) = near.first().map(|first| first.0) else {
            return;
        };
        let (_, store, _) = self.from.parts();
        let (reader, id) = (Arc::clone(&store), blob_id.to_owned());
        let alone = near.len() == 1;
        let read = async move {
            match alone {
                // It is read by itself, and checked by the client.
                true => Err(Error::new(ErrorKind::Corrupt, "one block")),
                false => {
                    reader
                        .read_range(&id, start, end - start, &|_| Ok(()))
                        .await
                }
            }
        };
        let window: Window = read.boxed().shared();
        for (from, to, row) in near {
            let Some(key) = self.key(&row.key).map(str::to_owned) else {
                continue;
            };
            let place = (from - start, to - start);
            let block = part(Arc::clone(&self.from), window.clone(), place, row);
            let content = Content::Later(block.boxed());
            self.offers.push_back(Offer::later(key, to - from, content));
        }
    }
}

impl Source for IndexBlocks {
    fn next(&mut self) -> Result<Option<Offer>> {
        let runtime = self.runtime.clone();
        loop {
            if let Some(offer) = self.offers.pop_front() {
                return Ok(Some(offer));
            }
            if !runtime.block_on(self.more())? {
                return Ok(None);
            }
        }
    }

    fn look_only(&mut self) {
        // A block that is missed changes little.
        self.passes = 0;
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }
}

fn check_of(key: &str) -> impl Fn(&[u8]) -> std::result::Result<(), String> + Send + Sync + '_ {
    move |bytes| match multihash::check(key, bytes) {
        Match::No => Err("the bytes do not hash to the multihash in the key".to_owned()),
        _ => Ok(()),
    }
}

/// A block from a window, or from its own place if the window or the block in it is wrong.
async fn part(
    from: Arc<Inspection>,
    window: Window,
    (begin, end): (u64, u64),
    row: KeyRecord,
) -> Result<Option<Bytes>> {
    if let Ok(bytes) = window.await {
        let at = |n: u64| usize::try_from(n).ok();
        let range = at(begin)
            .zip(at(end))
            .filter(|(_, end)| *end <= bytes.len());
        // A copy, as a part would keep the memory of the whole window while it waits in a pack.
        let block = range.map(|(begin, end)| Bytes::copy_from_slice(&bytes[begin..end]));
        if let Some(block) = block.filter(|block| check_of(&row.key)(block).is_ok()) {
            return Ok(Some(block));
        }
    }
    from_row(from, row).await
}

/// A block at its own place, or where it was moved. `None`: it was deleted.
async fn from_row(from: Arc<Inspection>, row: KeyRecord) -> Result<Option<Bytes>> {
    let KeyRecord { key, mut record } = row;
    for _ in 0..MOVES {
        let lost = match at(&from, &key, &record).await {
            Ok(block) => return Ok(Some(block)),
            Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => e,
            Err(e) => return Err(e),
        };
        match from.index().get(&key).await? {
            None => return Ok(None),
            Some(now) if now == record => return Err(lost),
            Some(now) => record = now,
        }
    }
    at(&from, &key, &record).await.map(Some)
}

/// A block that a Go node has staged, or that it has stored since. `None`: it was deleted.
async fn staged(from: Arc<Inspection>, key: String) -> Result<Option<Bytes>> {
    if let Some(value) = from.index().staged_value(&key).await? {
        return Ok(Some(value));
    }
    match from.index().get(&key).await? {
        Some(record) => from_row(from, KeyRecord::new(key, record)).await,
        None => Ok(None),
    }
}

/// The block at the place that a row names.
async fn at(from: &Inspection, key: &str, record: &Record) -> Result<Bytes> {
    if record.staged {
        let value = from.index().staged_value(key).await?;
        let gone = || {
            let text = "it was staged, and is no longer";
            Error::new(ErrorKind::BlobNotFound, text)
        };
        return value.ok_or_else(gone);
    }
    let check = check_of(key);
    let range = record.range()?;
    let len = range.end - range.start;
    let (_, store, _) = from.parts();
    match &record.patch_id {
        Some(patch) => store.read_patch_of(patch, len, &check).await,
        None => {
            let read = store.read_range(&record.blob_id, range.start, len, &check);
            read.await
        }
    }
}
