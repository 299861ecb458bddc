//! The blocks of another datastore of walrusds, through its index and its aggregators, as a source.
//!
//! Blobs are read one after another and each from its beginning, so that blocks that lie together
//! stay together. Blocks that lie near each other are read in one range; one that is wrong there is
//! read by itself, by all rules of the client. A range of which the target wants nothing is not
//! read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use tokio::runtime::Handle;

use super::offer::{Content, Offer, Source};
use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRecord, LeftBehind};
use crate::multihash::{self, Match};
use crate::walrus::BlobStore;

/// Blobs and staged blocks that are listed at once.
const PAGE: usize = 1000;
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
            return Ok(false);
        };
        let page = staging.left_behind(Duration::ZERO, after.as_ref(), PAGE);
        let page = page.await?;
        self.staged = (page.len() >= PAGE).then(|| page.last().cloned());
        for block in page {
            if let Some(key) = self.key(&block.key) {
                let (from, whole) = (Arc::clone(&self.from), block.key.clone());
                let value = async move { from.index().staged_value(&whole).await };
                let content = Content::Later(value.boxed());
                self.offers
                    .push_back(Offer::later(key, block.size, content));
            }
        }
        Ok(true)
    }

    /// Offers the blocks of a blob.
    fn blob(&mut self, blob_id: &str, rows: Vec<KeyRecord>) {
        let mut parts: Vec<(u64, u64, KeyRecord)> = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(key) = self.key(&row.key).map(str::to_owned) else {
                continue;
            };
            let (_, store, _) = self.from.parts();
            match (row.record.range(), row.record.patch_id.clone()) {
                (Ok(range), None) => parts.push((range.start, range.end, row)),
                (Ok(range), Some(patch)) => {
                    let len = range.end - range.start;
                    let content = Content::Later(member(store, patch, len, row.key).boxed());
                    self.offers.push_back(Offer::later(key, len, content));
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
            let block = part(Arc::clone(&store), window.clone(), place, row);
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
    store: Arc<dyn BlobStore>,
    window: Window,
    (from, to): (u64, u64),
    row: KeyRecord,
) -> Result<Option<Bytes>> {
    let check = check_of(&row.key);
    if let Ok(bytes) = window.await {
        let at = |n: u64| usize::try_from(n).ok();
        let range = at(from).zip(at(to)).filter(|(_, to)| *to <= bytes.len());
        // A copy, as a part would keep the memory of the whole window while it waits in a pack.
        let block = range.map(|(from, to)| Bytes::copy_from_slice(&bytes[from..to]));
        if let Some(block) = block.filter(|block| check(block).is_ok()) {
            return Ok(Some(block));
        }
    }
    let range = row.record.range()?;
    let read = store.read_range(
        &row.record.blob_id,
        range.start,
        range.end - range.start,
        &check,
    );
    read.await.map(Some)
}

/// A member of a quilt.
async fn member(
    store: Arc<dyn BlobStore>,
    patch_id: String,
    len: u64,
    key: String,
) -> Result<Option<Bytes>> {
    let check = check_of(&key);
    store.read_patch_of(&patch_id, len, &check).await.map(Some)
}
