//! The bytes of one blob: whether they are there, and whether each block hashes to its key.
//!
//! **Reading.** Blocks that lie near each other are read together, in ranges of up to 16 MiB. All
//! ranges of all blobs share a number of permits, so memory for data is bounded by their number. A
//! range is hashed on a thread of its own while others travel, so all cores hash.
//!
//! **Judging.** A range is read without a check, since one wrong block must not make the client
//! drop 16 MiB and ask another aggregator for all of them. A block that turns out to be wrong is
//! then read by itself, with a check: the client asks the other aggregators, and only if none of
//! them has the right bytes the block counts as wrong. The same is done with the blocks of a range
//! that could not be read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::finding::FindingKind;
use super::rows::{Block, Suspect};
use crate::error::{Error, ErrorKind, Result};
use crate::index::KeyRecord;
use crate::multihash::{self, Match};
use crate::walrus::BlobStore;

/// The most bytes of a range, unless a single block is longer.
const RANGE: u64 = 16 << 20;
/// A hole between blocks of up to this length (bytes) is read along with them.
const HOLE: u64 = 1 << 20;

/// What reads share.
pub(super) struct Reading {
    pub(super) store: Arc<dyn BlobStore>,
    /// One permit for each range that is in memory.
    pub(super) permits: Semaphore,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: AtomicU64,
    pub(super) verified: AtomicU64,
    /// Blocks whose keys name no content.
    pub(super) unverifiable: AtomicU64,
    pub(super) requests: AtomicU64,
    /// Time that threads have spent on hashing (ns).
    pub(super) hashing: AtomicU64,
}

/// What was found of the bytes of a blob.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) suspects: Vec<Suspect>,
    /// Length of the blob, where an aggregator told it.
    pub(super) total: Option<u64>,
    /// The blob is at no aggregator.
    pub(super) missing: Option<String>,
    /// The first failure that may pass.
    pub(super) unreadable: Option<String>,
}

impl Found {
    fn suspect(&mut self, kind: FindingKind, row: usize, text: impl FnOnce() -> String) {
        match self.suspects.iter_mut().find(|s| s.kind == kind) {
            Some(suspect) => suspect.rows.push(row),
            None => self.suspects.push(Suspect {
                kind,
                rows: vec![row],
                text: text(),
            }),
        }
    }

    fn add(&mut self, other: Found) {
        for suspect in other.suspects {
            match self.suspects.iter_mut().find(|s| s.kind == suspect.kind) {
                Some(known) => known.rows.extend(suspect.rows),
                None => self.suspects.push(suspect),
            }
        }
        self.total = self.total.or(other.total);
        self.missing = self.missing.take().or(other.missing);
        self.unreadable = self.unreadable.take().or(other.unreadable);
    }

    /// Sorts a failure of reading blocks.
    fn failed(&mut self, rows: impl IntoIterator<Item = usize>, error: &Error) {
        match error.kind() {
            ErrorKind::BlobNotFound => {
                self.missing
                    .get_or_insert_with(|| error.message().to_owned());
            }
            kind => {
                let kind = match kind {
                    ErrorKind::Corrupt => FindingKind::WrongBytes,
                    _ => FindingKind::Unreadable,
                };
                for row in rows {
                    self.suspect(kind, row, || error.message().to_owned());
                }
                if kind == FindingKind::Unreadable {
                    self.unreadable
                        .get_or_insert_with(|| error.message().to_owned());
                }
            }
        }
    }
}

fn anything(_: &[u8]) -> std::result::Result<(), String> {
    Ok(())
}

impl Reading {
    /// Asks for one byte: whether the blob is there, and reaches to the end of the last block.
    /// `all`: the numbers of all rows that can be read.
    pub(super) async fn probe(
        &self,
        blob_id: &str,
        blocks: &[Block],
        all: &[usize],
    ) -> Result<Found> {
        let mut found = Found::default();
        let rows = || all.iter().copied();
        let end = blocks.iter().map(|block| block.end).max().unwrap_or(0);
        let _permit = self.permit().await?;
        let last = self.one_byte(blob_id, end.saturating_sub(1)).await;
        match last {
            Ok(total) => found.total = total,
            Err(e) if e.kind() == ErrorKind::BlobNotFound || e.is_retryable() || end <= 1 => {
                found.failed(rows(), &e);
            }
            // An aggregator refuses a range that ends beyond the blob.
            Err(e) => match self.one_byte(blob_id, 0).await {
                Ok(Some(total)) if total < end => {
                    found.total = Some(total);
                    beyond(blocks, total, &mut found);
                }
                Ok(_) => found.failed(rows(), &e),
                Err(e) => found.failed(rows(), &e),
            },
        }
        Ok(found)
    }

    /// Reads and hashes every block.
    pub(super) async fn read(
        self: &Arc<Self>,
        blob_id: &str,
        rows: &Arc<Vec<KeyRecord>>,
        blocks: &[Block],
        members: &[usize],
    ) -> Result<Found> {
        let mut found = Found::default();
        let mut running = JoinSet::new();
        for range in ranges(blocks) {
            let (reading, rows, blob_id) = (Arc::clone(self), Arc::clone(rows), blob_id.to_owned());
            running.spawn(async move { reading.range(&blob_id, &rows, range).await });
            // No more tasks wait than can run.
            while running.len() > 16 {
                join(&mut running, &mut found).await?;
            }
        }
        for &row in members {
            let (reading, rows) = (Arc::clone(self), Arc::clone(rows));
            running.spawn(async move { reading.member(&rows, row).await });
            while running.len() > 16 {
                join(&mut running, &mut found).await?;
            }
        }
        while !running.is_empty() {
            join(&mut running, &mut found).await?;
        }
        for suspect in &mut found.suspects {
            suspect.rows.sort_unstable();
        }
        Ok(found)
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        self.permits
            .acquire()
            .await
            .map_err(|_| Error::closed("check"))
    }

    async fn one_byte(&self, blob_id: &str, at: u64) -> Result<Option<u64>> {
        self.counters.requests.fetch_add(1, Relaxed);
        let read = self.store.read_block(blob_id, at, 1, 0, &anything);
        Ok(read.await?.total)
    }

    /// Reads the blocks of a range.
    async fn range(
        &self,
        blob_id: &str,
        rows: &Arc<Vec<KeyRecord>>,
        blocks: Vec<Block>,
    ) -> Result<Found> {
        let mut found = Found::default();
        let start = blocks.first().map_or(0, |block| block.start);
        let end = blocks.iter().map(|block| block.end).max().unwrap_or(start);
        let permit = self.permit().await?;
        self.counters.requests.fetch_add(1, Relaxed);
        let read = self
            .store
            .read_block(blob_id, start, end - start, 0, &anything);
        let again = match read.await {
            Ok(fetched) => {
                found.total = fetched.total;
                self.counters.bytes.fetch_add(end - start, Relaxed);
                self.hash(rows, &blocks, start, fetched.bytes).await?
            }
            Err(e) if e.kind() == ErrorKind::BlobNotFound => {
                found.failed([], &e);
                return Ok(found);
            }
            // The client has tried again already; single blocks would fare no better.
            Err(e) if e.is_retryable() => {
                found.failed(blocks.iter().map(|block| block.row), &e);
                return Ok(found);
            }
            Err(e) => match self.one_byte(blob_id, 0).await {
                Ok(Some(total)) if total < end => {
                    found.total = Some(total);
                    beyond(&blocks, total, &mut found);
                    blocks.into_iter().filter(|b| b.end <= total).collect()
                }
                _ if blocks.len() == 1 => {
                    found.failed(blocks.iter().map(|block| block.row), &e);
                    return Ok(found);
                }
                _ => blocks,
            },
        };
        drop(permit);
        for block in again {
            self.alone(blob_id, rows, block, &mut found).await?;
        }
        Ok(found)
    }

    /// Hashes the blocks of a range on a thread of its own. Returns those that are wrong.
    async fn hash(
        &self,
        rows: &Arc<Vec<KeyRecord>>,
        blocks: &[Block],
        start: u64,
        bytes: Bytes,
    ) -> Result<Vec<Block>> {
        let (rows, blocks) = (Arc::clone(rows), blocks.to_vec());
        let hashing = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let (mut verified, mut unverifiable) = (0, 0);
            let mut wrong = Vec::new();
            for block in blocks {
                let from = usize::try_from(block.start - start).unwrap_or(usize::MAX);
                let to = usize::try_from(block.end - start).unwrap_or(usize::MAX);
                let value = bytes.get(from..to);
                match value.map(|value| multihash::check(&rows[block.row].key, value)) {
                    Some(Match::Yes) => verified += 1,
                    Some(Match::Unknown) => unverifiable += 1,
                    Some(Match::No) | None => wrong.push(block),
                }
            }
            (verified, unverifiable, wrong, began.elapsed())
        });
        let (verified, unverifiable, wrong, time) = hashing
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("hashing blocks: {e}")))?;
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counters.verified.fetch_add(verified, Relaxed);
        self.counters.unverifiable.fetch_add(unverifiable, Relaxed);
        self.counters.hashing.fetch_add(nanos, Relaxed);
        Ok(wrong)
    }

    /// Reads one block by itself; the client asks every aggregator for the right bytes.
    async fn alone(
        &self,
        blob_id: &str,
        rows: &Arc<Vec<KeyRecord>>,
        block: Block,
        found: &mut Found,
    ) -> Result<()> {
        let key = &rows[block.row].key;
        let check = |bytes: &[u8]| match multihash::check(key, bytes) {
            Match::No => Err("the bytes do not hash to the multihash in the key".to_owned()),
            Match::Yes | Match::Unknown => Ok(()),
        };
        let _permit = self.permit().await?;
        self.counters.requests.fetch_add(1, Relaxed);
        let len = block.end - block.start;
        match self
            .store
            .read_range(blob_id, block.start, len, &check)
            .await
        {
            Ok(_) => {
                self.counters.bytes.fetch_add(len, Relaxed);
                self.counters.verified.fetch_add(1, Relaxed);
                found.suspect(FindingKind::WrongAnswer, block.row, || {
                    format!("block {key} came wrong, or not at all, in a longer range, and right when it was asked for alone")
                });
            }
            Err(e) => found.failed([block.row], &e),
        }
        Ok(())
    }

    /// Reads a member of a quilt.
    async fn member(&self, rows: &Arc<Vec<KeyRecord>>, number: usize) -> Result<Found> {
        let mut found = Found::default();
        let row = &rows[number];
        let patch = row.record.patch_id.as_deref().unwrap_or_default();
        let len = u64::try_from(row.record.size).unwrap_or(0);
        let check = |bytes: &[u8]| match multihash::check(&row.key, bytes) {
            Match::No => Err("the bytes do not hash to the multihash in the key".to_owned()),
            Match::Yes | Match::Unknown => Ok(()),
        };
        let _permit = self.permit().await?;
        self.counters.requests.fetch_add(1, Relaxed);
        match self.store.read_patch_of(patch, len, &check).await {
            Ok(_) => {
                let counter = match multihash::names_content(&row.key) {
                    true => &self.counters.verified,
                    false => &self.counters.unverifiable,
                };
                counter.fetch_add(1, Relaxed);
                self.counters.bytes.fetch_add(len, Relaxed);
            }
            // The member alone may be missing.
            Err(e) if e.kind() == ErrorKind::BlobNotFound => {
                found.suspect(FindingKind::Missing, number, || e.message().to_owned());
            }
            Err(e) => found.failed([number], &e),
        }
        Ok(found)
    }
}

async fn join(running: &mut JoinSet<Result<Found>>, found: &mut Found) -> Result<()> {
    if let Some(joined) = running.join_next().await {
        let part = joined
            .map_err(|e| Error::new(ErrorKind::Internal, format!("reading a blob: {e}")))??;
        found.add(part);
    }
    Ok(())
}

/// Notes the blocks that lie beyond the end of the blob.
fn beyond(blocks: &[Block], total: u64, found: &mut Found) {
    for block in blocks.iter().filter(|block| block.end > total) {
        found.suspect(FindingKind::BeyondEnd, block.row, || {
            format!(
                "the blob has {total} bytes, and a row names the bytes {}..{}",
                block.start, block.end
            )
        });
    }
}

/// The blocks, divided into what is read at once.
fn ranges(blocks: &[Block]) -> Vec<Vec<Block>> {
    let mut ranges: Vec<(u64, Vec<Block>)> = Vec::new();
    for &block in blocks.iter().filter(|block| block.end > block.start) {
        let joins = ranges.last().is_some_and(|(end, range)| {
            let start = range.first().map_or(block.start, |first| first.start);
            block.start <= end.saturating_add(HOLE) && block.end.max(*end) - start <= RANGE
        });
        match ranges.last_mut().filter(|_| joins) {
            Some((end, range)) => {
                *end = block.end.max(*end);
                range.push(block);
            }
            None => ranges.push((block.end, vec![block])),
        }
    }
    ranges.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_blocks_are_read_together_and_a_range_is_bounded() {
        const MIB: u64 = 1 << 20;
        let block = |row: usize, start: u64, len: u64| Block {
            row,
            start,
            end: start + len,
        };
        let blocks = [
            block(0, 0, 0),
            block(1, 0, MIB),
            block(2, 2 * MIB, MIB),
            // Beyond a hole.
            block(3, 5 * MIB, MIB),
            // Longer than a range.
            block(4, 6 * MIB, 20 * MIB),
            block(5, 26 * MIB, MIB),
            block(6, 27 * MIB, 15 * MIB),
            block(7, 42 * MIB, 1),
        ];
        let rows: Vec<Vec<usize>> = ranges(&blocks)
            .into_iter()
            .map(|range| range.into_iter().map(|block| block.row).collect())
            .collect();
        assert_eq!(rows, [vec![1, 2], vec![3], vec![4], vec![5, 6], vec![7]]);
        assert!(ranges(&[]).is_empty());
    }
}
