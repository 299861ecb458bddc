//! The layer between a get and an aggregator.
//!
//! **Problem.** An aggregator takes its time for each answer, however short, and readers of files
//! ask for one block after the other. So a get that belongs to a stream brings a window of the
//! blob, what the stream will want next is fetched before it asks, and gets that want the same
//! bytes share one request.
//!
//! **Outline of a get** ([`Get`]). It looks into memory once, when it begins. If memory holds the
//! block, it is checked and taken. If not, the get joins the request on its way that brings the
//! block; or else it sends one: for exactly the block, or, in a stream, for a window up to where a
//! block ends, which the rows of the index tell. It looks into memory once more only if something
//! has come since it looked. A block that is wrong in a window, or whose window cannot be had, is
//! read by itself, by all the rules of `walrus::read`.
//!
//! **Invariants.**
//! - Each block is checked before it is handed out; a window is not checked as a whole.
//! - Windows can make a read faster, and never make it fail.
//! - Nothing is asked for twice at a time (but by gets that read past a window which was wrong or
//!   did not come): bytes are in memory before their request leaves the list of flights, and a get
//!   decides under the lock of that list.
//! - A window is sent for only after room for it was reserved in memory.
//!
//! **Locks**, in this order: `ReaderState` (one for a reader), the shelf of `memory`, the verdicts
//! of a piece. No check of a block runs, and nothing waits, under any of them; a task takes its
//! turn to ask the index before it takes `ReaderState`.
//!
//! | module | holds |
//! |---|---|
//! | `memory` | bytes that were read or are on their way, under one budget |
//! | `streams` | which gets follow each other, and the fetches that are worth it for them |
//! | `scatter` | blobs that many read at random, and what is fetched along for them |
//! | `extent` | where the blocks of a blob end |
//! | `flight` | a request on its way, and the gets that wait for it |
//! | `state` | the state of a reader, under one lock |
//! | `requests` | the tasks that fetch, and what becomes of their bytes |
//! | `ahead` | fetches before a get asks for the bytes |
//! | `check` | whether bytes are the block that was asked for |
//! | `disk` | the cache on the local disk |
//! | `roots` | the newest directories, on the local disk always |

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dag;
use crate::error::{ErrorKind, Result};
use crate::index::lookup::Lookups;
use crate::index::Rows as _;
use crate::metrics::Metrics;
use crate::walrus::BlobStore;

mod ahead;
mod check;
pub(crate) mod disk;
mod extent;
mod flight;
mod memory;
mod requests;
pub(crate) mod roots;
mod scatter;
mod state;
mod streams;
#[cfg(test)]
mod tests;

use ahead::Need;
pub(crate) use check::BlockCheck;
pub use check::VerifyReads;
use disk::DiskCache;
use flight::{Outcome, Passenger};
use memory::{Block, Look, Memory, Piece};
use state::ReaderState;
pub(crate) use streams::Limits;
use streams::{Cut, Noted};

/// The largest window (bytes), where the budget has room for it.
pub(crate) const WINDOW: u64 = 8 << 20;

/// How far before its block a large window begins (bytes): the amount that Kubo commits at once.
const BEHIND: u64 = 4 << 20;

/// How often a get decides anew before it reads its block by itself: after rows were asked for, and
/// after a window that proved shorter than it was thought to be.
const LOOKS: usize = 4;

/// The parts that a [`Reader`] is made of.
pub(crate) struct ReaderParts {
    pub(crate) index: Arc<Lookups>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) metrics: Arc<Metrics>,
    /// Memory for what is read (bytes); zero or less turns memory and windows off.
    pub(crate) memory_bytes: i64,
    /// The cache on the local disk, if what is read is kept there, too.
    pub(crate) disk: Option<Arc<DiskCache>>,
}

/// The windows for so much memory (bytes). Of the three eighths that cold pieces take, what is
/// ahead leaves room for the windows that are being read.
pub(crate) fn limits(memory: u64) -> Limits {
    Limits {
        window: WINDOW.min(memory / 16),
        ahead: memory / 16 * 5,
    }
}

/// The least memory (bytes) that has so many bytes ahead.
pub(crate) fn memory_for(ahead: u64) -> u64 {
    ahead.div_ceil(5) * 16
}

/// Reads blocks of blobs, and members of quilts.
pub(crate) struct Reader {
    inner: Arc<SharedReader>,
}

struct SharedReader {
    index: Arc<Lookups>,
    store: Arc<dyn BlobStore>,
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    disk: Option<Arc<DiskCache>>,
    limits: Limits,
    state: Mutex<ReaderState>,
    /// Room for single blocks on their way, in KiB.
    room: Semaphore,
    room_kib: u64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A block to be read.
struct Want<'a> {
    /// Or the patch ID of a quilt member.
    blob: &'a str,
    range: Range<u64>,
    check: &'a BlockCheck,
}

/// The next step of a get.
enum Step {
    Take(Bytes),
    Wait(Passenger),
    /// Rows of the blob from here on decide how large the window is.
    Rows(u64),
    Alone,
}

/// One get, and what memory held when it began.
pub(crate) struct Get<'a> {
    inner: &'a Arc<SharedReader>,
    want: Want<'a>,
    is_patch: bool,
    look: Look,
}

impl Reader {
    pub(crate) fn new(parts: ReaderParts) -> Self {
        let memory = Memory::new(parts.memory_bytes, parts.disk.is_some());
        let limits = limits(memory.budget());
        let keeps = memory.budget() / 2;
        let room_kib = requests::room_kib(&memory);
        Reader {
            inner: Arc::new(SharedReader {
                index: parts.index,
                store: parts.store,
                memory: Arc::new(memory),
                metrics: parts.metrics,
                disk: parts.disk,
                limits,
                state: Mutex::new(ReaderState::new(limits, keeps)),
                room: Semaphore::new(room_kib as usize),
                room_kib,
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Begins to read the block at `range` of `blob`.
    pub(crate) fn block<'a>(
        &'a self,
        blob: &'a str,
        range: Range<u64>,
        check: &'a BlockCheck,
    ) -> Get<'a> {
        self.get(Want { blob, range, check }, false)
    }

    /// Begins to read a quilt member of `len` bytes.
    pub(crate) fn patch<'a>(&'a self, patch: &'a str, len: u64, check: &'a BlockCheck) -> Get<'a> {
        let (blob, range) = (patch, 0..len);
        self.get(Want { blob, range, check }, true)
    }

    /// A block was found in the journal: the links of a node tell where files go on.
    pub(crate) fn learn(&self, key: &str, block: &[u8]) {
        self.inner.look_at(key, block);
    }

    fn get<'a>(&'a self, want: Want<'a>, is_patch: bool) -> Get<'a> {
        Get {
            inner: &self.inner,
            look: self.inner.memory.look(want.blob, &want.range),
            want,
            is_patch,
        }
    }

    /// Gives up what is being fetched ahead, and returns when nothing runs any more.
    pub(crate) async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Counters for the metrics snapshot.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let memory = &self.inner.memory;
        vec![
            ("read_cache_bytes", memory.used()),
            ("read_wasted_bytes", memory.wasted()),
        ]
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

impl Get<'_> {
    /// The block, if it was handed out before and lies in memory; waits for nothing.
    pub(crate) fn held(&self) -> Option<Bytes> {
        let (inner, want) = (self.inner, &self.want);
        let piece = self.look.piece().filter(|_| !self.is_patch)?;
        let bytes = piece.again(want.check.key(), &want.range)?;
        inner.memory.reused(want.blob, piece.range().start);
        Metrics::add(&inner.metrics.read_hits, 1);
        let now = Instant::now();
        let mut state = inner.state.lock();
        let stream = state.streams.note(want.blob, &want.range, now);
        inner.go_on(&mut state, stream, want, now);
        Some(bytes)
    }

    /// The block was found elsewhere: the links of a node tell all the same where files go on.
    pub(crate) fn learn(&self, block: &[u8]) {
        self.inner.look_at(self.want.check.key(), block);
    }

    /// The block was found elsewhere, but the index had to be asked where it lies: if it is one of
    /// a stream, the rows after it are fetched ahead.
    pub(crate) fn rows_follow(&self) {
        let (inner, Want { blob, range, .. }) = (self.inner, &self.want);
        // An index on this machine answers as quickly as memory.
        if self.is_patch || inner.index.is_local() || inner.stop.is_cancelled() {
            return;
        }
        let mut state = inner.state.lock();
        if state.streams.note(blob, range, Instant::now()).is_some() {
            inner.ask_ahead(&mut state, (*blob).into(), range.end, Need::Rows, None);
        }
    }

    /// The block, checked. The bytes may be a part of a window, and keep all of it in memory as
    /// long as they live. `lapsed`: the blob is no longer stored, as far as this node knows.
    ///
    /// # Errors
    /// Those of [`BlobStore::read_range`] and [`BlobStore::read_patch_of`].
    pub(crate) async fn fetch(mut self, lapsed: bool) -> Result<Bytes> {
        if self.is_patch {
            return self.fetch_patch().await;
        }
        if lapsed {
            if let Some(settled) = self.fetch_lapsed().await {
                return settled;
            }
        }
        let (inner, want) = (self.inner, &self.want);
        if !inner.memory.enabled() || inner.stop.is_cancelled() {
            return inner.fetch_alone(want).await;
        }
        let mut stream = None;
        for _ in 0..LOOKS {
            match inner.step(want, &mut self.look, &mut stream) {
                Step::Take(bytes) => return Ok(bytes),
                Step::Rows(from) => inner.ask_rows(want.blob, from, Need::Ends).await,
                Step::Alone => break,
                Step::Wait(passenger) => match passenger.outcome().await {
                    Some(Outcome::Landed(piece)) => match inner.take(want, &piece) {
                        Block::New(bytes) | Block::Again(bytes) => return Ok(bytes),
                        Block::Wrong => break,
                        Block::Outside => {}
                    },
                    // The flight was for this very block, read by all the rules.
                    Some(Outcome::Failed(error))
                        if passenger.flight().alone.as_deref() == Some(want.check.key())
                            && passenger.flight().range == want.range =>
                    {
                        return Err(error);
                    }
                    Some(Outcome::Failed(_)) | None => break,
                },
            }
        }
        inner.fetch_alone(want).await
    }

    /// The block of a blob that has lapsed: another node may have renewed it, so the aggregators
    /// are asked, but a 404 is not waited over. `None` if that does not settle it.
    async fn fetch_lapsed(&self) -> Option<Result<Bytes>> {
        match self.inner.read_once(&self.want).await {
            Ok(bytes) => bytes.map(Ok),
            Err(e) if e.kind() == ErrorKind::BlobNotFound => Some(Err(e)),
            Err(_) => None,
        }
    }

    async fn fetch_patch(mut self) -> Result<Bytes> {
        let (inner, Want { blob, range, check }) = (self.inner, self.want);
        let judge = |bytes: &[u8]| check.judge(bytes);
        let piece = match self.look.piece() {
            None => inner.memory.look_again(&mut self.look, blob, &range),
            found => found,
        };
        if let Some(piece) = piece.filter(|piece| piece.range() == range) {
            if let Block::New(bytes) | Block::Again(bytes) =
                piece.block(check.key(), &range, &judge)
            {
                Metrics::add(&inner.metrics.walrus_cache_hits, 1);
                return Ok(bytes);
            }
            inner.memory.forget_whole(blob);
        }
        inner.missed();
        let bytes = inner.store.read_patch_of(blob, range.end, &judge).await?;
        if inner.memory.enabled() {
            let piece = inner.memory.insert_whole(blob, bytes.clone());
            piece.checked(check.key(), &range);
        }
        Ok(bytes)
    }
}

impl SharedReader {
    /// The block out of a piece, with what is learnt from it when it is seen for the first time.
    fn take(&self, want: &Want<'_>, piece: &Piece) -> Block {
        let check = |bytes: &[u8]| want.check.judge(bytes);
        let block = piece.block(want.check.key(), &want.range, &check);
        match &block {
            Block::New(bytes) => self.look_at(want.check.key(), bytes),
            Block::Wrong if piece.is_whole() => self.memory.forget_whole(want.blob),
            _ => {}
        }
        block
    }

    /// Learns a node's links, unless they are known.
    fn look_at(&self, key: &str, block: &[u8]) {
        if block.first() != Some(&dag::LINKS_FIRST) || self.state.lock().nodes.knows(key) {
            return;
        }
        let Some(links) = dag::links(block) else {
            return;
        };
        let is_directory = dag::is_directory(block);
        let nodes = &mut self.state.lock().nodes;
        nodes.learn(key, &links);
        if is_directory {
            nodes.note_directory(key);
        }
    }

    /// Decides the next step of a get. `look`: the state of memory at its last look.
    fn step(
        self: &Arc<Self>,
        want: &Want<'_>,
        look: &mut Look,
        stream: &mut Option<Option<Noted>>,
    ) -> Step {
        let now = Instant::now();
        let (blob, range) = (want.blob, &want.range);
        let mut found = look.piece();
        loop {
            if let Some(piece) = found.take() {
                let (bytes, is_new) = match self.take(want, &piece) {
                    Block::New(bytes) => (bytes, true),
                    Block::Again(bytes) => {
                        self.memory.reused(blob, piece.range().start);
                        (bytes, false)
                    }
                    Block::Wrong | Block::Outside => return Step::Alone,
                };
                Metrics::add(&self.metrics.read_hits, 1);
                let mut state = self.state.lock();
                let id = *stream.get_or_insert_with(|| match is_new {
                    true => state.note(blob, range, now),
                    false => state.streams.note(blob, range, now),
                });
                self.go_on(&mut state, id, want, now);
                return Step::Take(bytes);
            }
            let mut state = self.state.lock();
            if let Some(passenger) = state.join(blob, range) {
                let id = *stream.get_or_insert_with(|| state.note(blob, range, now));
                self.go_on(&mut state, id, want, now);
                return Step::Wait(passenger);
            }
            // A window that landed since the look is in memory: it is kept before its flight leaves
            // the list.
            found = self.memory.look_again(look, blob, range);
            if found.is_some() {
                continue;
            }
            let id = *stream.get_or_insert_with(|| state.note(blob, range, now));
            let is_barred = state.is_barred(blob, now);
            let cut = match id {
                Some(noted) if !is_barred => state.window(noted, range, now),
                _ => Cut::End,
            };
            let end = match cut {
                Cut::Unknown => return Step::Rows(range.start),
                Cut::At(end) if end > range.end => end,
                Cut::At(_) | Cut::End => range.end,
            };
            let is_random = !id.is_some_and(|noted| noted.follows);
            let window = if end > range.end {
                self.gap(&state, blob, range, end)
            } else if is_random && !is_barred {
                self.around(&state, blob, range)
            } else {
                range.clone()
            };
            let reserved = match window == *range {
                true => None,
                false => self.memory.reserve(window.end - window.start),
            };
            let part = if reserved.is_some() { &window } else { range };
            if let Some(noted) = id {
                let of_stream = if is_random { range } else { part };
                state.streams.fetched(noted.stream, of_stream);
            }
            if is_random {
                state.scatter.fetched(blob, part);
            }
            let passenger = match reserved {
                Some(reserved) => self
                    .launch_window(&mut state, blob, window, reserved, false)
                    .join(),
                None => self.launch_alone(&mut state, want, false).join(),
            };
            self.go_on(&mut state, id, want, now);
            return Step::Wait(passenger);
        }
    }

    /// The window up to `end` for the block at `range`, without what is here or on its way. A large
    /// one begins before its block: blocks that were written at the same time lie in no order, so a
    /// reader may come first to any of them.
    fn gap(&self, state: &ReaderState, blob: &str, range: &Range<u64>, end: u64) -> Range<u64> {
        let behind = match end - range.start >= BEHIND {
            true => BEHIND,
            false => 0,
        };
        let wide = range.start.saturating_sub(behind)..end;
        let least = self.limits.window / 16;
        let here = self.memory.gap(blob, range, wide, least);
        state.gap(blob, range, here, least)
    }

    /// The window for a random read.
    fn around(&self, state: &ReaderState, blob: &str, range: &Range<u64>) -> Range<u64> {
        let here = self.memory.gap(blob, range, 0..u64::MAX, 0);
        let gap = state.gap(blob, range, here, 0);
        state.scatter.window(blob, range, &gap)
    }
}
