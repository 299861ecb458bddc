//! The way of a pack from the journal to Walrus and into the index.
//!
//! The blocks of a pack were acknowledged, so no failure may lose them; a failed step is tried
//! again until it succeeds.
//!
//! Invariants:
//! - A block leaves the journal only after its row is committed, or after it was replaced, deleted
//!   or found damaged. A blob that was stored here must have been read back as well; a row that was
//!   there before counts at once, unless the block is `unproven`: then its blob is read back first.
//!   So is the blob of a deleted row that was brought back, and one that was found gone shortly
//!   before the block was put, or since.
//! - A block that is found damaged after its pack was sent gets its row all the same: it was
//!   checked while it was sent. Once the blob was read back it counts as damaged no longer. Of a
//!   block of more than `WHOLE` bytes that is not known, as it is sent in parts.
//! - A row is written only for a block that is still the newest value of its key. The keys are
//!   locked from that check until the index has answered, so no deletion falls in between.
//! - A damaged or unreadable block does not hold up the other blocks of its pack.
//! - A block that was indexed in a blob which cannot be read back goes back to the queue and is
//!   stored again.
//!
//! Outline of [`deliver`], for one pack or a part of it:
//! 1. [`prepare`] asks the index for the keys. Blocks that were replaced or deleted, and blocks
//!    that are stored already, are settled. Deleted rows whose blobs still live are brought back
//!    instead of storing their blocks. Blocks whose rows may point at a blob that was never read
//!    back are handed to [`prove`], a task of its own.
//! 2. The remaining blocks are stored as one blob. If no publisher takes so many bytes, the pack is
//!    split in two. If blocks turn out to be damaged or unreadable, [`set_apart`] forms packs
//!    without them.
//! 3. [`place`] writes the rows.
//! 4. [`read_back`] reads a part of the blob from the aggregators.
//! 5. [`Journal::settle`] forgets the blocks, or [`Journal::put_back`] queues them again.
//!
//! While the datastore is being closed, a pack that fails in steps 1 or 2 is left in the journal;
//! steps 3 and 4 are tried until [`Shared::stop`] ends the task.
//!
//! Lock order: key locks, then the journal's state. Only `place` and `bring_back` take key locks.
//! The upload permit is given back before a pause and before the rows are written.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::trouble::Failures;
use super::{Block, Journal};
use crate::backoff::doubled;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{KeyRecord, Record, Traces, Usage};
use crate::locks::KeyLocks;
use crate::log::Level;
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::trace::{self, Span};
use crate::upload::limit::Permit;
use crate::upload::{proof, usage_of, Pack, Place, Sent, Uploader};

/// Pause after a failure, doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a blob that was just stored is looked for before its blocks are stored again, which may
/// cost as much as the first time. The time doubles with each store of the same blocks.
const LOOK_FIRST: Duration = Duration::from_secs(300);
const LOOK_MAX: Duration = Duration::from_secs(86_400);

/// The parts and settings of the flusher.
pub(crate) struct FlushParts {
    pub(crate) journal: Arc<Journal>,
    pub(crate) uploader: Arc<Uploader>,
    pub(crate) locks: KeyLocks,
    /// A pack leaves when no put was written for this time.
    pub(crate) idle: Duration,
    /// A pack leaves when its oldest block has waited for this time.
    pub(crate) max_age: Duration,
    /// Whether close also uploads packs that are neither full nor `max_age` old.
    pub(crate) drain_partial: bool,
}

pub(super) struct Shared {
    pub(super) parts: FlushParts,
    pub(super) opened: Instant,
    pub(super) draining: AtomicBool,
    /// Cancelled to end the flusher and all packs, at any point.
    pub(super) stop: CancellationToken,
    pub(super) packs: TaskTracker,
}

/// Spawns work on a pack; `Shared::stop` ends it.
pub(super) fn spawn_unless_stopped(
    shared: &Shared,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let stop = shared.stop.clone();
    shared.packs.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

/// Counts the failures of one pack in a row, reports them to the log, and pauses.
struct Patience<'a> {
    journal: &'a Journal,
    failures: Failures<'a>,
}

impl<'a> Patience<'a> {
    fn new(journal: &'a Journal) -> Self {
        let failures = Failures::new(&journal.inner.trouble);
        Patience { journal, failures }
    }

    async fn after(&mut self, what: &str, e: &Error) {
        self.failures.failed(what, e, || {
            let staged = self.journal.staged();
            let oldest = self.journal.oldest().unwrap_or_default();
            format!(
                "{} bytes in {} blocks wait, the oldest for {} s",
                staged.bytes,
                staged.blocks,
                oldest.as_secs()
            )
        });
        let before = self.failures.count.saturating_sub(1);
        tokio::time::sleep(doubled(RETRY_FIRST, before, RETRY_MAX)).await;
    }

    fn well(&mut self) {
        self.failures.well();
    }
}

/// Brings a pack to Walrus and into the index, however long it takes; see the module for the steps.
/// While the datastore is being closed, preparing and storing are tried once. `first_permit` is for
/// the first upload; later ones acquire a permit of their own.
pub(super) async fn deliver(shared: Arc<Shared>, pack: Vec<Arc<Block>>, first_permit: Permit) {
    let span = trace::begin_tree("flush").map(|span| span.with("blocks", pack.len() as u64));
    let scope = span.as_ref().map(Span::scope);
    let well = trace::scoped(scope, deliver_pack(shared, pack, first_permit)).await;
    if let Some(span) = span {
        let error = (!well).then_some(&"the journal was closed before it was stored" as _);
        span.end(error);
    }
}

/// As [`deliver`]. Returns whether the pack was delivered.
async fn deliver_pack(shared: Arc<Shared>, pack: Vec<Arc<Block>>, first_permit: Permit) -> bool {
    let parts = &shared.parts;
    let uploader = &parts.uploader;
    let closing = || shared.draining.load(Ordering::Acquire);
    let begun = std::time::Instant::now();
    let flushed = |well| uploader.metrics.operations.flush.ended(begun, well);
    let mut first_permit = Some(first_permit);
    let mut patience = Patience::new(&parts.journal);
    let mut stack = uploader.format.parts(pack);
    while let Some(blocks) = stack.pop() {
        let Prepared {
            travel: mut blocks,
            replaced,
            unproven,
        } = match caught(prepare(parts, blocks.clone())).await {
            Ok(prepared) => prepared,
            Err(e) => {
                if e.kind() == ErrorKind::Disk && set_apart(parts, &blocks, &mut stack).await {
                    continue;
                }
                if closing() {
                    flushed(false);
                    left_behind(parts, &e);
                    return false;
                }
                stack.push(blocks);
                first_permit = None;
                patience.after("looking up journalled blocks", &e).await;
                continue;
            }
        };
        for (blob_id, placed) in by_blob(unproven) {
            // A task of its own: reading back may last as long as an outage of the aggregators.
            spawn_unless_stopped(&shared, prove(Arc::clone(&shared), blob_id, placed));
        }
        if blocks.is_empty() {
            continue;
        }
        let permit = match first_permit.take() {
            Some(permit) => permit,
            None => uploader.limit.acquire().await,
        };
        let throttled_before = uploader.store.throttled();
        failpoint!("flush.prepared");
        let sent = uploader.store(&blocks).await;
        permit.report(uploader.store.throttled() != throttled_before);
        drop(permit);
        let pack = match sent {
            Sent::Stored(pack) => pack,
            Sent::TooLarge(at) => {
                let second = blocks.split_off(at);
                stack.push(second);
                stack.push(blocks);
                continue;
            }
            Sent::Failed(e) => {
                // Without the damaged and the unreadable blocks, the pack can be stored at once.
                if set_apart(parts, &blocks, &mut stack).await {
                    continue;
                }
                if closing() {
                    flushed(false);
                    left_behind(parts, &e);
                    return false;
                }
                patience.after("storing a pack", &e).await;
                stack.push(blocks);
                continue;
            }
        };
        failpoint!("flush.stored");
        patience.well();
        place(parts, &pack, &blocks, &replaced, &mut patience).await;
        failpoint!("flush.indexed");
        settle_in(parts, pack.blob_id(), blocks, &pack.places, &mut patience).await;
    }
    flushed(true);
    true
}

/// Settles blocks whose rows an earlier process wrote, once their blob was read: that process may
/// have ended before it settled them.
async fn prove(shared: Arc<Shared>, blob_id: String, (blocks, places): Placed) {
    let mut patience = Patience::new(&shared.parts.journal);
    blocks.iter().for_each(|block| block.note_indexed());
    settle_in(&shared.parts, &blob_id, blocks, &places, &mut patience).await;
}

/// Blocks of one blob and their places in it.
type Placed = (Vec<Arc<Block>>, Vec<Place>);

fn by_blob(blocks: Vec<(Arc<Block>, Record)>) -> HashMap<String, Placed> {
    let mut blobs = HashMap::<_, Placed>::new();
    for (block, row) in blocks {
        let (blocks, places) = blobs.entry(row.blob_id).or_default();
        let offset = u64::try_from(row.offset).unwrap_or(0);
        places.push(Place::range(offset, block.len()));
        blocks.push(block);
    }
    blobs
}

/// Settles indexed blocks if their blob can be read back; otherwise they go back to the queue, to
/// be stored again.
async fn settle_in(
    parts: &FlushParts,
    blob_id: &str,
    blocks: Vec<Arc<Block>>,
    places: &[Place],
    patience: &mut Patience<'_>,
) {
    if read_back(parts, blob_id, &blocks, places, patience).await {
        failpoint!("flush.read_back");
        parts.journal.settle(blocks).await;
        failpoint!("flush.settled");
    } else {
        for block in &blocks {
            block.lost.fetch_add(1, Ordering::Relaxed);
        }
        parts.journal.put_back(blocks);
    }
}

/// The blocks of a pack that [`prepare`] has not settled.
struct Prepared {
    travel: Vec<Arc<Block>>,
    /// For each block of `travel`, the usage of the row that its own row will replace.
    replaced: Vec<Usage>,
    /// Blocks that are indexed, with their rows; their blobs may never have been read back.
    unproven: Vec<(Arc<Block>, Record)>,
}

/// Leaves out and settles the blocks that need not travel (any more) or must not.
async fn prepare(parts: &FlushParts, blocks: Vec<Arc<Block>>) -> Result<Prepared> {
    // Blocks of more than `WHOLE` bytes travel in parts, which cannot be checked on their way.
    let long = blocks.iter().filter(|b| !b.is_checked_when_sent());
    let long: Vec<Arc<Block>> = long.cloned().collect();
    look_at(parts, &long).await;
    let current = parts.journal.current(&blocks);
    let (blocks, mut obsolete) = partition(blocks, &current);
    let keys: Vec<String> = blocks.iter().map(|b| b.key().to_owned()).collect();
    let rows = if keys.is_empty() {
        Vec::new()
    } else {
        for block in &blocks {
            block.doubted.store(false, Ordering::Release);
        }
        parts.uploader.look_up(&keys).await?
    };
    let fresh = |(row, block): (&Traces, &Arc<Block>)| {
        let readable = block.lost.load(Ordering::Relaxed) == 0;
        let (uploader, len) = (&parts.uploader, block.len());
        uploader.is_stored(row.live.as_ref(), len, readable)
            || uploader.spare(row, len, readable).is_some()
    };
    let fresh: Vec<bool> = rows.iter().zip(&blocks).map(fresh).collect();
    // Only blocks that are indexed already must be read here: the others are checked on their way.
    let same = {
        let (blocks, journal) = (blocks.clone(), Arc::clone(&parts.journal));
        blocking(move || {
            let same =
                |(block, fresh): (&Arc<Block>, bool)| match fresh.then(|| journal.read(block)) {
                    None => Ok(false),
                    Some(Ok(value)) => Ok(multihash::check(block.key(), &value) == Match::Yes),
                    // It was damaged and is staged no longer.
                    Some(Err(e)) if e.kind() == ErrorKind::Corrupt => Ok(false),
                    Some(Err(e)) => Err(e),
                };
            blocks
                .iter()
                .zip(fresh)
                .map(same)
                .collect::<Result<Vec<_>>>()
        })
        .await??
    };
    let back = bring_back(parts, &blocks, &rows, &same).await?;
    let current = parts.journal.current(&blocks);
    let mut travel = Vec::with_capacity(blocks.len());
    let mut replaced = Vec::with_capacity(blocks.len());
    let mut known = Vec::new();
    let mut unproven = Vec::new();
    for (((block, row), same), current) in blocks.into_iter().zip(rows).zip(same).zip(current) {
        if !current {
            obsolete.push(block);
        } else if let (true, Some(row)) = (same, row.stored(back.contains(block.key()))) {
            // A quilt is read back before the first row of its blocks is written.
            // The blob was found gone shortly before the put, so the put was not taken for a block
            // that is stored. That is no less true now that the memory of it has ended.
            let gone = parts.uploader.gone.contained(&row.blob_id, block.staged);
            let doubtful = gone || block.unproven.load(Ordering::Relaxed);
            let doubtful = doubtful || back.contains(block.key());
            let owed = doubtful && row.patch_id.is_none();
            match owed {
                true => unproven.push((block, row.clone())),
                false => known.push(block),
            }
        } else {
            travel.push(block);
            replaced.push(usage_of(row.live.as_ref()));
        }
    }
    let count = known.len() + unproven.len();
    Metrics::add(&parts.uploader.metrics.blocks_known, count as u64);
    // Settled last, when no step can fail any more, so that each block is settled once.
    known.extend(obsolete);
    parts.journal.settle(known).await;
    Ok(Prepared {
        travel,
        replaced,
        unproven,
    })
}

/// Brings back the deleted rows of blocks that are stored in blobs which still live. `rows` are
/// those of the blocks, and `same` says of which blocks the stored bytes are known to be theirs.
/// Returns the keys that have their row again.
async fn bring_back(
    parts: &FlushParts,
    blocks: &[Arc<Block>],
    rows: &[Traces],
    same: &[bool],
) -> Result<HashSet<String>> {
    let of = blocks.iter().zip(rows).zip(same);
    let spares = of.filter_map(|((block, row), same)| {
        let record = parts.uploader.spare(row, block.len(), *same)?;
        Some((Arc::clone(block), record.clone()))
    });
    let (blocks, records): (Vec<_>, Vec<_>) = spares.unzip();
    if blocks.is_empty() {
        return Ok(HashSet::new());
    }
    let keys = blocks.iter().map(|b| b.key().to_owned()).collect();
    // As in `place`: a deletion that is under way ends before the lock is taken, and its block is
    // not current any more.
    let _guard = parts.locks.lock(keys).await;
    let current = parts.journal.current(&blocks);
    let rows = blocks.iter().zip(records).zip(current);
    let rows = rows.filter(|(_, current)| *current);
    let rows = rows.map(|((block, record), _)| KeyRecord {
        key: block.key().to_owned(),
        record,
    });
    parts.uploader.bring_back(&rows.collect::<Vec<_>>()).await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, format!("reading the journal: {e}")))
}

/// The result of reading a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Whole,
    /// It is staged no longer.
    Damaged,
    /// It may be whole, but the disk does not give it now.
    Unreadable,
}

/// Reads blocks. Damaged ones are staged no longer afterwards.
async fn look_at(parts: &FlushParts, blocks: &[Arc<Block>]) -> Vec<Look> {
    if blocks.is_empty() {
        return Vec::new();
    }
    let (blocks, journal) = (blocks.to_vec(), Arc::clone(&parts.journal));
    let look = move |block: &Arc<Block>| match journal.read(block) {
        Ok(_) => Look::Whole,
        Err(e) if e.kind() == ErrorKind::Corrupt => Look::Damaged,
        Err(_) => Look::Unreadable,
    };
    blocking(move || blocks.iter().map(look).collect())
        .await
        .unwrap_or_default()
}

/// Whether a pack that failed can be tried again at once without some of its blocks. If so, its
/// parts are pushed onto the stack; blocks that cannot be read now form a pack of their own, which
/// comes last: the disk may give them later.
async fn set_apart(
    parts: &FlushParts,
    blocks: &[Arc<Block>],
    stack: &mut Vec<Vec<Arc<Block>>>,
) -> bool {
    let looks = look_at(parts, blocks).await;
    let any = |look| looks.contains(&look);
    let helps = any(Look::Damaged) || (any(Look::Unreadable) && any(Look::Whole));
    if !helps {
        return false;
    }
    let readable: Vec<bool> = looks.iter().map(|l| *l != Look::Unreadable).collect();
    let (readable, unreadable) = partition(blocks.to_vec(), &readable);
    if !unreadable.is_empty() {
        stack.insert(0, unreadable);
    }
    stack.push(readable);
    true
}

fn left_behind(parts: &FlushParts, e: &Error) {
    parts.uploader.log.push(
        Level::Error,
        format!("a pack could not be stored before the end; its blocks stay in the journal: {e}"),
    );
}

fn partition<T>(items: Vec<T>, keep: &[bool]) -> (Vec<T>, Vec<T>) {
    let mut kept = Vec::with_capacity(items.len());
    let mut rest = Vec::new();
    for (item, keep) in items.into_iter().zip(keep) {
        if *keep {
            kept.push(item);
        } else {
            rest.push(item);
        }
    }
    (kept, rest)
}

/// Writes the rows of a certified pack, except for blocks that were replaced or deleted meanwhile.
/// Repeats until the index takes them.
async fn place(
    parts: &FlushParts,
    pack: &Pack,
    blocks: &[Arc<Block>],
    replaced: &[Usage],
    patience: &mut Patience<'_>,
) {
    loop {
        let keys = blocks.iter().map(|b| b.key().to_owned()).collect();
        // A deletion that is under way ends before the lock is taken; a later one finds the rows.
        let guard = parts.locks.lock(keys).await;
        let newest = parts.journal.newest(blocks);
        let replaced = newest.iter().zip(replaced);
        let replaced = replaced.map(|(newest, replaced)| newest.then_some(*replaced));
        let placed = parts.uploader.place(pack, blocks, replaced.collect()).await;
        if placed.is_ok() {
            let rows = blocks.iter().zip(newest).filter(|(_, newest)| *newest);
            rows.for_each(|(block, _)| block.note_indexed());
        }
        drop(guard);
        match placed {
            Ok(()) => return patience.well(),
            Err(e) => patience.after("indexing a stored pack", &e).await,
        }
    }
}

/// Whether the blob can be read back. As long as no aggregator answers, this waits: the journal's
/// copy is the only one that can be read, so it is kept. False: aggregators answered for the time
/// of `look` that they have no such blob, or gave wrong bytes.
async fn read_back(
    parts: &FlushParts,
    blob_id: &str,
    blocks: &[Arc<Block>],
    places: &[Place],
    patience: &mut Patience<'_>,
) -> bool {
    let store = &parts.uploader.store;
    let Some((number, place)) = proof(places) else {
        return true;
    };
    let check = |bytes: &[u8]| match crc32fast::hash(bytes) == blocks[number].crc {
        true => Ok(()),
        false => Err("the bytes are not those that were stored".to_owned()),
    };
    patience.well();
    let times = blocks.iter().map(|b| b.lost.load(Ordering::Relaxed));
    let look = doubled(LOOK_FIRST, times.max().unwrap_or(0), LOOK_MAX);
    let mut lost_since = None;
    loop {
        let reading = place.read(&**store, blob_id, &check);
        let Err(e) = caught(reading).await else {
            patience.well();
            return true;
        };
        let lost = matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt);
        if lost && lost_since.get_or_insert_with(Instant::now).elapsed() >= look {
            parts.uploader.log.push(
                Level::Error,
                format!(
                    "blob {blob_id} is stored, but cannot be read for {} s: its blocks are paid for and stored again. \
                     Check aggregatorURL: {e}",
                    look.as_secs()
                ),
            );
            return false;
        }
        patience.after("reading a stored pack back", &e).await;
    }
}
