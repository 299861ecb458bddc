//! Repacking: the live blocks of sparse blobs are carried over into full packs.
//!
//! **Invariants.**
//! - A block is carried over only if it hashes to its key. What cannot be checked stays where it
//!   is, and its blob is stored again as a whole.
//! - The new blob is certified, and a part of it was read back, before the first row points at it.
//! - A row is moved only if it still points at the old blob: a deletion or a put that came between
//!   stays as it is. Readers see the old place or the new one; both can be read.
//! - The old blob is left alone: readers of other nodes may hold its rows for a while. It has no
//!   rows then, is noted as released, and ends, or is deleted after a time of grace.
//!
//! **Order and labels.** Blocks come in the order of their old blobs, blob by blob. The links of
//! the nodes among them bring the parts of a file together that lay in several blobs. A block is
//! labelled as dag-pb if a link of a node that was carried before or with it says so, or if it was
//! labelled so in its old file: the node that links to it may lie elsewhere.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::RenewalParts;
use crate::dag;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{BlobState, KeyRecord};
use crate::log::Level;
use crate::multihash::{self, Match};
use crate::upload::order::Order;
use crate::upload::{car, Carried, Parcel};

/// The most bytes that are read at once.
const WINDOW: u64 = 8 << 20;
/// Requests for a blob at a time, and blobs that are read at a time: an aggregator takes its time
/// for each answer.
const READS: usize = 4;
const BLOBS: usize = 4;
/// The most bytes of the blocks of blobs that are read at a time, unless one blob has more.
const TOGETHER: u64 = 64 << 20;
/// A hole of dead blocks up to this length (bytes) is read with what lies around it.
const HOLE: u64 = 64 << 10;

/// A block and its place in its blob.
struct Live<'a> {
    row: &'a KeyRecord,
    /// Where its CID begins, if the blob is a file.
    head: u64,
    start: u64,
    end: u64,
}

impl Live<'_> {
    /// The places of its CID and of its bytes in `bytes`, which begin at `start` in the blob.
    fn places(&self, bytes: &[u8], start: u64) -> Option<(Range<usize>, Range<usize>)> {
        let at = |place: u64| usize::try_from(place.checked_sub(start)?).ok();
        let (head, from, to) = (at(self.head)?, at(self.start)?, at(self.end)?);
        (to <= bytes.len()).then_some((head..from, from..to))
    }

    /// Whether these bytes hold the block.
    fn is_in(&self, bytes: &[u8], start: u64) -> bool {
        let value = self.places(bytes, start).map(|(_, value)| value);
        let value = value.and_then(|value| bytes.get(value));
        value.is_some_and(|value| multihash::check(&self.row.key, value) == Match::Yes)
    }

    /// The block, of bytes that were found to hold it.
    fn taken(&self, bytes: &Bytes, start: u64, blob_id: &str) -> Option<Carried> {
        let (cid, value) = self.places(bytes, start)?;
        let key = &self.row.key;
        let labelled = car::labels_dag_pb(bytes.get(cid)?, key);
        let value = bytes.slice(value);
        Some(Carried {
            key: key.clone(),
            is_dag_pb: labelled && dag::is_dag_pb(&value, value.len() as u64),
            value,
            from: blob_id.to_owned(),
        })
    }
}

/// What is read at once.
enum Source<'a> {
    /// Blocks that lie near each other in the blob.
    Range(Vec<Live<'a>>),
    /// A member of a quilt, by its patch ID.
    Member(&'a KeyRecord, &'a str),
}

impl Source<'_> {
    fn blocks(&self) -> usize {
        match self {
            Source::Range(window) => window.len(),
            Source::Member(..) => 1,
        }
    }

    async fn read(self, parts: &RenewalParts, blob_id: &str) -> Result<Vec<Carried>> {
        match self {
            Source::Range(window) => read(parts, blob_id, &window).await,
            Source::Member(row, patch_id) => read_member(parts, row, patch_id).await,
        }
    }
}

/// The blobs that were repacked, by their IDs.
#[derive(Debug, Default)]
pub(super) struct Repacked {
    /// They have no rows left.
    pub(super) empty: Vec<String>,
    /// They could not be read, which may go better later.
    pub(super) unread: Vec<String>,
    /// Why packs could not be stored or read back, or rows not be moved. The blobs that are in
    /// neither list keep their rows then.
    pub(super) failed: Option<Error>,
}

impl Repacked {
    /// Of a repack that ended at once.
    pub(super) fn none(why: Error) -> Self {
        Repacked {
            failed: Some(why),
            ..Repacked::default()
        }
    }
}

/// Carries the live blocks of these blobs over into new packs. A blob that cannot be read keeps its
/// rows and holds up none of the others. So does one of which some blocks are given wrong by every
/// aggregator, if it `may_wait`: it would be paid for whole for their sake, beside the new pack.
/// After a pack that cannot be stored the next one is tried, but not one more: then no publisher
/// works.
pub(super) async fn repack(
    parts: &RenewalParts,
    blob_ids: &[String],
    may_wait: impl Fn(&str) -> bool,
) -> Result<Repacked> {
    let mut unread = Vec::new();
    let mut fill = parts.uploader.empty_pack();
    let mut order = Order::new();
    let mut blocks: Vec<Carried> = Vec::new();
    let mut sources = Sources::new(blob_ids);
    let mut outcome = Outcome::default();
    'blobs: while let Some(some) = sources.next(parts).await? {
        let reads = some
            .iter()
            .map(|(blob_id, rows)| read_blob(parts, blob_id, rows, may_wait(blob_id)));
        let read = futures_util::future::join_all(reads.collect::<Vec<_>>()).await;
        for ((blob_id, _), of_blob) in some.iter().zip(read) {
            let of_blob = match of_blob {
                Ok(of_blob) => of_blob,
                Err(e) => {
                    let text = format!("blob {blob_id} cannot be repacked now: {e}");
                    parts.log.push(Level::Warn, text);
                    unread.push((*blob_id).clone());
                    continue;
                }
            };
            for block in of_blob {
                while !fill.takes(&block.key, block.len()) {
                    let rest = blocks.split_off(fill.keep().min(blocks.len()));
                    let full = std::mem::replace(&mut blocks, rest);
                    if outcome.is_last(deliver(parts, &mut order, full).await) {
                        blocks.clear();
                        break 'blobs;
                    }
                    fill = parts.uploader.empty_pack();
                    for block in &blocks {
                        fill.takes(&block.key, block.len());
                    }
                }
                blocks.push(block);
            }
        }
    }
    outcome.is_last(deliver(parts, &mut order, blocks).await);
    let live = parts.index.live(blob_ids).await?;
    let empty = blob_ids.iter().zip(live);
    let empty = empty.filter(|(_, live)| live.blocks == 0);
    let empty: Vec<String> = empty.map(|(blob_id, _)| blob_id.clone()).collect();
    // The time of grace begins now, and not when the next pass counts their blocks.
    parts.index.set_state(&empty, BlobState::Released).await?;
    failpoint!("repack.released");
    Ok(Repacked {
        empty,
        unread,
        failed: outcome.failed,
    })
}

/// What has come of the packs so far.
#[derive(Default)]
struct Outcome {
    /// Why the first pack failed that did.
    failed: Option<Error>,
    last_failed: bool,
}

impl Outcome {
    /// Notes what has come of a pack. Returns whether no more are to be tried.
    fn is_last(&mut self, delivered: Result<()>) -> bool {
        let Err(e) = delivered else {
            self.last_failed = false;
            return false;
        };
        self.failed.get_or_insert(e);
        std::mem::replace(&mut self.last_failed, true)
    }
}

/// The blobs to repack, in their order, a few at a time.
struct Sources<'a> {
    left: std::slice::Iter<'a, String>,
    /// One that did not fit with those before it.
    next: Option<(&'a String, Vec<KeyRecord>)>,
}

impl<'a> Sources<'a> {
    fn new(blob_ids: &'a [String]) -> Self {
        Sources {
            left: blob_ids.iter(),
            next: None,
        }
    }

    /// The next blobs with their rows: at most [`BLOBS`], of at most [`TOGETHER`] bytes.
    async fn next(
        &mut self,
        parts: &RenewalParts,
    ) -> Result<Option<Vec<(&'a String, Vec<KeyRecord>)>>> {
        let mut some = Vec::new();
        let mut bytes = 0_u64;
        while some.len() < BLOBS {
            let (blob_id, rows) = match self.next.take() {
                Some(next) => next,
                None => match self.left.next() {
                    Some(blob_id) => (blob_id, parts.index.rows_of_blob(blob_id).await?),
                    None => break,
                },
            };
            let sizes = rows.iter().map(|row| row.record.size.max(0).unsigned_abs());
            bytes = sizes.fold(bytes, u64::saturating_add);
            if bytes > TOGETHER && !some.is_empty() {
                self.next = Some((blob_id, rows));
                break;
            }
            some.push((blob_id, rows));
        }
        Ok((!some.is_empty()).then_some(some))
    }
}

/// Reads the blocks of a blob that can be checked. `all`: it is an error if some are given wrong by
/// every aggregator; else they are left out.
async fn read_blob(
    parts: &RenewalParts,
    blob_id: &str,
    rows: &[KeyRecord],
    all: bool,
) -> Result<Vec<Carried>> {
    let windows = windows(rows).into_iter().map(Source::Range);
    let reads = windows.chain(members(rows)).map(|from| async move {
        let asked = from.blocks();
        let read = from.read(parts, blob_id).await?;
        Ok::<_, Error>((asked.saturating_sub(read.len()), read))
    });
    let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READS);
    let mut blocks = Vec::new();
    while let Some((wrong, read)) = reads.try_next().await? {
        if all && wrong > 0 {
            let text = format!("{wrong} of its blocks are given wrong by every aggregator");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        blocks.extend(read);
    }
    Ok(blocks)
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
                head: range.start.saturating_sub(car::cid_len(&row.key)),
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
            let near = block.head <= last.end.saturating_add(HOLE);
            Some(near && block.end.saturating_sub(first.head) <= WINDOW)
        });
        match windows.last_mut().filter(|_| joins == Some(true)) {
            Some(window) => window.push(block),
            None => windows.push(vec![block]),
        }
    }
    windows
}

/// The members of a quilt that can be checked.
fn members(rows: &[KeyRecord]) -> impl Iterator<Item = Source<'_>> {
    let checkable = |row: &&KeyRecord| multihash::check(&row.key, b"") != Match::Unknown;
    let members = rows.iter().filter(checkable);
    members.filter_map(|row| Some(Source::Member(row, row.record.patch_id.as_deref()?)))
}

/// Reads a member of a quilt. It is left out if no aggregator gives it right.
async fn read_member(
    parts: &RenewalParts,
    row: &KeyRecord,
    patch_id: &str,
) -> Result<Vec<Carried>> {
    let Ok(range) = row.record.range() else {
        return Ok(Vec::new());
    };
    let check = |bytes: &[u8]| match multihash::check(&row.key, bytes) {
        Match::Yes => Ok(()),
        _ => Err("the block does not hash to its key".to_owned()),
    };
    let store = &parts.uploader.store;
    let len = range.end - range.start;
    match store.read_patch_of(patch_id, len, &check).await {
        Ok(value) => Ok(vec![Carried {
            key: row.key.clone(),
            is_dag_pb: false,
            value,
            from: row.record.blob_id.clone(),
        }]),
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Reads the blocks of a window. A block that no aggregator gives right is left out.
async fn read(parts: &RenewalParts, blob_id: &str, window: &[Live<'_>]) -> Result<Vec<Carried>> {
    let all = read_at_once(parts, blob_id, window).await;
    match all {
        Err(e) if e.kind() == ErrorKind::Corrupt => {}
        all => return all,
    }
    let mut blocks = Vec::new();
    if window.len() == 1 {
        return Ok(blocks);
    }
    for block in window.chunks(1) {
        match read_at_once(parts, blob_id, block).await {
            Ok(block) => blocks.extend(block),
            Err(e) if e.kind() == ErrorKind::Corrupt => {}
            Err(e) => return Err(e),
        }
    }
    Ok(blocks)
}

/// Reads the blocks of a window by one request, and with each what lies before it: its CID, if the
/// blob is a file. The error is [`ErrorKind::Corrupt`] if no aggregator gives all of them right.
async fn read_at_once(
    parts: &RenewalParts,
    blob_id: &str,
    window: &[Live<'_>],
) -> Result<Vec<Carried>> {
    let Some(start) = window.iter().map(|block| block.head).min() else {
        return Ok(Vec::new());
    };
    let end = window.iter().map(|block| block.end).max().unwrap_or(start);
    let check = |bytes: &[u8]| match window.iter().all(|block| block.is_in(bytes, start)) {
        true => Ok(()),
        false => Err("a block does not hash to its key".to_owned()),
    };
    let store = &parts.uploader.store;
    let bytes = store
        .read_range(blob_id, start, end - start, &check)
        .await?;
    let blocks = window.iter();
    Ok(blocks
        .filter_map(|block| block.taken(&bytes, start, blob_id))
        .collect())
}

/// Stores blocks, and points their rows at the new blob.
async fn deliver(parts: &RenewalParts, order: &mut Order, mut blocks: Vec<Carried>) -> Result<()> {
    order.arrange_and_mark(
        &mut blocks,
        |block| (&block.key, &block.value),
        |block| block.is_dag_pb = true,
    );
    failpoint!("repack.read");
    let paced = |bytes| parts.pace.moved(bytes);
    parts.uploader.carry(blocks, paced, |_| ()).await
}
