//! Repacking: the live blocks of sparse blobs are carried over into full packs.
//!
//! **Invariants.**
//! - A block is carried over only if it hashes to its key. What cannot be checked stays where it
//!   is, and its blob is stored again as a whole.
//! - The new blob is certified, and a part of it was read back, before the first row points at it.
//! - A row is moved only if it still points at the old blob: a deletion or a put that came between
//!   stays as it is. Readers see the old place or the new one; both can be read.
//! - The old blob is left alone: readers of other nodes may hold its rows for a while. It has no
//!   rows then, and ends, or is deleted after a time of grace.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::RenewalParts;
use crate::error::{caught, ErrorKind, Result};
use crate::index::KeyRecord;
use crate::log::Level;
use crate::multihash::{self, Match};
use crate::upload::{Pack, Parcel, Sent};
use crate::walrus::Body;

/// The most bytes that are read at once.
const WINDOW: u64 = 8 << 20;
/// A hole of dead blocks up to this length (bytes) is read with what lies around it.
const HOLE: u64 = 64 << 10;

/// A live block on its way to another blob.
struct Carried {
    key: String,
    value: Bytes,
    from: String,
}

impl Parcel for Carried {
    fn key(&self) -> &str {
        &self.key
    }

    fn len(&self) -> u64 {
        self.value.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        // The codec of a block is known from links that point at it, which are not looked for here.
        // Importers find a block under any codec.
        false
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.value.clone());
    }
}

/// A block and its place in its blob.
struct Live<'a> {
    row: &'a KeyRecord,
    start: u64,
    end: u64,
}

fn right(key: &str, value: &[u8]) -> bool {
    multihash::check(key, value) == Match::Yes
}

/// The blobs that were repacked, by their IDs.
#[derive(Debug, Default)]
pub(super) struct Repacked {
    /// They have no rows left.
    pub(super) empty: Vec<String>,
    /// They could not be read, which may go better later.
    pub(super) unread: Vec<String>,
}

/// Carries the live blocks of these blobs over into new packs. A blob that cannot be read keeps its
/// rows and holds up none of the others.
pub(super) async fn repack(parts: &RenewalParts, blob_ids: &[String]) -> Result<Repacked> {
    let mut unread = Vec::new();
    let mut fill = parts.uploader.empty_pack();
    let mut blocks: Vec<Carried> = Vec::new();
    for blob_id in blob_ids {
        let rows = parts.index.rows_of_blob(blob_id).await?;
        for window in windows(&rows) {
            let blocks_read = match read(parts, blob_id, &window).await {
                Ok(blocks_read) => blocks_read,
                Err(e) => {
                    let text = format!("blob {blob_id} cannot be repacked now: {e}");
                    parts.log.push(Level::Warn, text);
                    unread.push(blob_id.clone());
                    break;
                }
            };
            for block in blocks_read {
                if !fill.takes(&block.key, block.len()) {
                    deliver(parts, std::mem::take(&mut blocks)).await?;
                    fill = parts.uploader.empty_pack();
                    fill.takes(&block.key, block.len());
                }
                blocks.push(block);
            }
        }
    }
    deliver(parts, blocks).await?;
    let live = parts.index.live(blob_ids).await?;
    let empty = blob_ids.iter().zip(live);
    let empty = empty.filter(|(_, live)| live.blocks == 0);
    let empty = empty.map(|(blob_id, _)| blob_id.clone()).collect();
    Ok(Repacked { empty, unread })
}

/// The rows whose blocks can be read as parts of their blob and checked, divided into what is read
/// at once.
fn windows(rows: &[KeyRecord]) -> Vec<Vec<Live<'_>>> {
    let live = rows.iter().filter(|row| row.record.patch_id.is_none());
    let mut live: Vec<Live<'_>> = live
        .filter_map(|row| {
            let range = row.record.range().ok()?;
            (multihash::check(&row.key, b"") != Match::Unknown).then_some(Live {
                row,
                start: range.start,
                end: range.end,
            })
        })
        .collect();
    live.sort_by_key(|block| block.start);
    let mut windows: Vec<Vec<Live<'_>>> = Vec::new();
    for block in live {
        let joins = windows.last().and_then(|window| {
            let (first, last) = (window.first()?, window.last()?);
            let near = block.start <= last.end.saturating_add(HOLE);
            Some(near && block.end.saturating_sub(first.start) <= WINDOW)
        });
        match windows.last_mut().filter(|_| joins == Some(true)) {
            Some(window) => window.push(block),
            None => windows.push(vec![block]),
        }
    }
    windows
}

/// Reads the blocks of a window. A block that no aggregator gives right is left out.
async fn read(parts: &RenewalParts, blob_id: &str, window: &[Live<'_>]) -> Result<Vec<Carried>> {
    let Some(first) = window.first() else {
        return Ok(Vec::new());
    };
    let start = first.start;
    let end = window.iter().map(|block| block.end).max().unwrap_or(start);
    let part = |bytes: &[u8], block: &Live<'_>| -> Option<std::ops::Range<usize>> {
        let from = usize::try_from(block.start - start).ok()?;
        let to = usize::try_from(block.end - start).ok()?;
        let value = bytes.get(from..to)?;
        right(&block.row.key, value).then_some(from..to)
    };
    let all_right = |bytes: &[u8]| match window.iter().all(|block| part(bytes, block).is_some()) {
        true => Ok(()),
        false => Err("a block does not hash to its key".to_owned()),
    };
    let store = &parts.uploader.store;
    let carried = |block: &Live<'_>, value: Bytes| Carried {
        key: block.row.key.clone(),
        value,
        from: blob_id.to_owned(),
    };
    match store
        .read_range(blob_id, start, end - start, &all_right)
        .await
    {
        Ok(bytes) => {
            let blocks = window.iter().filter_map(|block| {
                let range = part(&bytes, block)?;
                Some(carried(block, bytes.slice(range)))
            });
            return Ok(blocks.collect());
        }
        Err(e) if e.kind() != ErrorKind::Corrupt || window.len() == 1 => {
            return match e.kind() {
                ErrorKind::Corrupt => Ok(Vec::new()),
                _ => Err(e),
            }
        }
        Err(_) => {}
    }
    let mut blocks = Vec::new();
    for block in window {
        let check = |bytes: &[u8]| match right(&block.row.key, bytes) {
            true => Ok(()),
            false => Err("the block does not hash to its key".to_owned()),
        };
        let len = block.end - block.start;
        match store.read_range(blob_id, block.start, len, &check).await {
            Ok(value) => blocks.push(carried(block, value)),
            Err(e) if e.kind() == ErrorKind::Corrupt => {}
            Err(e) => return Err(e),
        }
    }
    Ok(blocks)
}

/// Stores blocks, and points their rows at the new blob.
async fn deliver(parts: &RenewalParts, blocks: Vec<Carried>) -> Result<()> {
    let mut stack = parts.uploader.format.parts(blocks);
    while let Some(mut blocks) = stack.pop() {
        let bytes = blocks.iter().map(Parcel::len).sum();
        parts.pace.moved(bytes).await;
        let permit = parts.uploader.limit.acquire().await;
        let sent = parts.uploader.store(&blocks).await;
        drop(permit);
        match sent {
            Sent::Stored(pack) => {
                let read_back = parts.uploader.read_back(&pack, |n| &blocks[n].value);
                read_back.await.map_err(|e| {
                    let id = pack.blob_id();
                    e.context(format!(
                        "blob {id} is stored and paid for, but cannot be read back"
                    ))
                })?;
                move_rows(parts, &pack, &blocks).await?;
            }
            Sent::TooLarge(at) => {
                let rest = blocks.split_off(at);
                stack.push(rest);
                stack.push(blocks);
            }
            Sent::Failed(e) => return Err(e),
        }
    }
    Ok(())
}

async fn move_rows(parts: &RenewalParts, pack: &Pack, blocks: &[Carried]) -> Result<()> {
    let mut by_blob: BTreeMap<&str, Vec<KeyRecord>> = BTreeMap::new();
    for (block, row) in blocks.iter().zip(pack.rows(blocks)) {
        by_blob.entry(&block.from).or_default().push(row);
    }
    let mut entry = pack.entry().clone();
    for (from, rows) in by_blob {
        caught(parts.index.move_to(from, &entry, &rows)).await?;
        // The price was noted with the first of them.
        entry.cost = 0;
    }
    Ok(())
}
