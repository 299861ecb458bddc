//! What stands between a get and an aggregator.
//!
//! A block is taken from memory, from a request that is on its way already, or from one of its own:
//! for exactly the block, or, in a stream, for a window of the blob. What a stream will want next is
//! fetched before it asks.
//!
//! | module | holds |
//! |---|---|
//! | `streams` | which gets follow each other, and what is worth fetching for them |
//! | `extent` | where the blocks of a blob end |
//! | `flight` | a request on its way, and those who wait for it |
//! | `check` | whether bytes are the block that was asked for |
//! | `disk` | the cache on the local disk |
//! | `roots` | the newest directories, on the local disk always |
//!
//! Memory is the cache's business (`walrus::cache`): windows are fetched only into room that was
//! reserved. Windows are not checked as a whole; each block is when it is handed out. A block that is
//! wrong in a window, or whose window cannot be had, is read by itself, by all the rules of
//! `walrus::read`; so windows can make a read faster, and never make it fail.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dag::{self, Nodes};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::lookup::Lookups;
use crate::index::{Record, Rows as _};
use crate::metrics::Metrics;
use crate::walrus::cache::{BlobCache, Block, Piece, Reservation};
use crate::walrus::BlobStore;

mod check;
pub(crate) mod disk;
mod extent;
mod flight;
pub(crate) mod roots;
mod streams;

pub(crate) use check::BlockCheck;
use extent::{Extent, ROWS};
use flight::{Flight, Outcome, Passenger};
use streams::{Ahead, Cut, Limits, Noted, Plan, Streams};

/// The largest window (bytes), where the budget has room for it.
const WINDOW: u64 = 16 << 20;

/// How far before its block a large window begins (bytes): what Kubo commits at once.
const BEHIND: u64 = 4 << 20;

/// Blobs whose extent is remembered.
const EXTENTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Blocks that are looked through to find where a file goes on: more than a full pack of usual ones.
const LOOK_AHEAD: usize = 512;

/// How often a get looks again before it reads its block by itself: after rows were asked for, and
/// after a window that proved shorter than it was thought to be.
const LOOKS: usize = 4;

/// What a [`Reader`] is made of.
pub(crate) struct ReaderParts {
    pub(crate) index: Arc<Lookups>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) cache: Arc<BlobCache>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Reads blocks of blobs.
pub(crate) struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    index: Arc<Lookups>,
    store: Arc<dyn BlobStore>,
    cache: Arc<BlobCache>,
    metrics: Arc<Metrics>,
    limits: Limits,
    state: Mutex<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct State {
    streams: Streams,
    nodes: Nodes,
    flights: HashMap<Arc<str>, Vec<Arc<Flight>>>,
    extents: LruCache<Arc<str>, Extent>,
    /// Blobs whose rows are being asked for.
    asking: HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>,
    /// Streams whose next blob is being looked for.
    following: HashSet<u64>,
}

/// A block to be read.
struct Want<'a> {
    blob: &'a str,
    range: Range<u64>,
    check: &'a BlockCheck,
}

/// What a get does next.
enum Step {
    Take(Bytes),
    Wait(Passenger),
    /// Rows of the blob from here on decide how large the window is.
    Rows(u64),
    Alone,
}

impl Reader {
    pub(crate) fn new(parts: ReaderParts) -> Self {
        let budget = parts.cache.budget();
        let limits = Limits {
            window: WINDOW.min(budget / 16),
            ahead: budget / 4,
        };
        Reader {
            inner: Arc::new(Inner {
                index: parts.index,
                store: parts.store,
                cache: parts.cache,
                metrics: parts.metrics,
                limits,
                state: Mutex::new(State {
                    streams: Streams::new(limits),
                    nodes: Nodes::new(),
                    flights: HashMap::new(),
                    extents: LruCache::new(EXTENTS),
                    asking: HashMap::new(),
                    following: HashSet::new(),
                }),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// The block at `range` of `blob`, checked. The bytes may be a part of a window, and keep all of
    /// it in memory as long as they live.
    ///
    /// # Errors
    /// Those of [`BlobStore::read_range`].
    pub(crate) async fn block(
        &self,
        blob: &str,
        range: Range<u64>,
        check: &BlockCheck,
    ) -> Result<Bytes> {
        let inner = &self.inner;
        let want = Want { blob, range, check };
        if !inner.cache.enabled() || inner.stop.is_cancelled() {
            return inner.fetch_alone(&want).await;
        }
        let mut stream = None;
        for _ in 0..LOOKS {
            match inner.step(&want, &mut stream) {
                Step::Take(bytes) => return Ok(bytes),
                Step::Rows(from) => inner.ask_rows(blob, from).await,
                Step::Alone => break,
                Step::Wait(passenger) => match passenger.outcome().await {
                    Some(Outcome::Landed(piece)) => match inner.take(&want, &piece) {
                        Block::New(bytes) | Block::Again(bytes) => return Ok(bytes),
                        Block::Wrong => break,
                        Block::Outside => {}
                    },
                    // It was this very block, read by all the rules.
                    Some(Outcome::Failed(error))
                        if passenger.flight().alone.as_deref() == Some(check.key())
                            && passenger.flight().range == want.range =>
                    {
                        return Err(error);
                    }
                    Some(Outcome::Failed(_)) | None => break,
                },
            }
        }
        inner.fetch_alone(&want).await
    }

    /// A block that was handed out before and lies in memory; waits for nothing.
    pub(crate) fn held(&self, blob: &str, range: &Range<u64>, check: &BlockCheck) -> Option<Bytes> {
        let inner = &self.inner;
        let piece = inner.cache.find(blob, range)?;
        let bytes = piece.again(check.key(), range)?;
        let want = Want {
            blob,
            range: range.clone(),
            check,
        };
        inner.cache.reused(blob, piece.range().start);
        Metrics::add(&inner.metrics.read_hits, 1);
        let now = Instant::now();
        let mut state = inner.state.lock();
        let stream = state.streams.note(blob, range, now);
        inner.go_on(&mut state, stream, &want, now);
        Some(bytes)
    }

    /// A block was found elsewhere, but the index had to be asked where it lies: if it is one of a stream,
    /// the rows after it are fetched ahead.
    pub(crate) fn rows_follow(&self, blob: &str, range: &Range<u64>) {
        let inner = &self.inner;
        // An index on this machine answers as quickly as memory.
        if inner.index.is_local() || inner.stop.is_cancelled() {
            return;
        }
        let mut state = inner.state.lock();
        let in_stream = state.streams.note(blob, range, Instant::now()).is_some();
        if !in_stream || state.asking.contains_key(blob) {
            return;
        }
        let blob: Arc<str> = blob.into();
        state.asking.insert(Arc::clone(&blob), Arc::default());
        drop(state);
        let from = range.end;
        let asking = Arc::clone(inner);
        inner.spawn(async move {
            let _asking = Asking {
                inner: &asking,
                blob: &blob,
            };
            // They are remembered on their way. An index that cannot be asked says so to whoever needs a row.
            let _ = asking.index.rows_from(&blob, from, ROWS).await;
        });
    }

    /// Gives up what is being fetched ahead, and returns when nothing runs any more.
    pub(crate) async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Counters for the metrics snapshot.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let cache = &self.inner.cache;
        vec![
            ("read_cache_bytes", cache.used()),
            ("read_wasted_bytes", cache.wasted()),
        ]
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

impl Inner {
    /// The block out of a piece, with what is learnt from it when it is seen for the first time.
    fn take(&self, want: &Want<'_>, piece: &Piece) -> Block {
        let check = |bytes: &[u8]| want.check.judge(bytes);
        let block = piece.block(want.check.key(), &want.range, &check);
        if let Block::New(bytes) = &block {
            self.look_at(want, bytes);
        }
        block
    }

    /// Learns a node's links.
    fn look_at(&self, want: &Want<'_>, block: &[u8]) {
        if let Some(links) = dag::links(block) {
            self.state.lock().nodes.learn(want.check.key(), &links);
        }
    }

    fn step(self: &Arc<Self>, want: &Want<'_>, stream: &mut Option<Option<Noted>>) -> Step {
        let now = Instant::now();
        let (blob, range) = (want.blob, &want.range);
        loop {
            if let Some(piece) = self.cache.find(blob, range) {
                let bytes = match self.take(want, &piece) {
                    Block::New(bytes) => bytes,
                    Block::Again(bytes) => {
                        self.cache.reused(blob, piece.range().start);
                        bytes
                    }
                    Block::Wrong | Block::Outside => return Step::Alone,
                };
                Metrics::add(&self.metrics.read_hits, 1);
                let mut state = self.state.lock();
                let id = *stream.get_or_insert_with(|| state.streams.note(blob, range, now));
                self.go_on(&mut state, id, want, now);
                return Step::Take(bytes);
            }
            let mut state = self.state.lock();
            if let Some(passenger) = state.join(blob, range) {
                let id = *stream.get_or_insert_with(|| state.streams.note(blob, range, now));
                self.go_on(&mut state, id, want, now);
                return Step::Wait(passenger);
            }
            // What lands is in the cache before it is no flight any more.
            if self.cache.find(blob, range).is_some() {
                continue;
            }
            let id = *stream.get_or_insert_with(|| state.streams.note(blob, range, now));
            let cut = match id {
                Some(noted) if !state.is_barred(blob, now) => {
                    let State {
                        streams, extents, ..
                    } = &mut *state;
                    streams.window(noted, range, now, &|blob, from, upto| {
                        cut(extents, blob, from, upto)
                    })
                }
                _ => Cut::End,
            };
            let end = match cut {
                Cut::Unknown => return Step::Rows(range.start),
                Cut::At(end) if end > range.end => end,
                Cut::At(_) | Cut::End => range.end,
            };
            let window = match end > range.end {
                true => self.gap(&state, blob, range, end),
                false => range.clone(),
            };
            let reserved = match window == *range {
                true => None,
                false => self.cache.reserve(window.end - window.start),
            };
            if let Some(noted) = id {
                let part = if reserved.is_some() { &window } else { range };
                state.streams.fetched(noted.stream, part);
            }
            let passenger = match reserved {
                Some(reserved) => self
                    .launch_window(&mut state, blob, window, reserved, false)
                    .join(),
                None => self.launch_alone(&mut state, want).join(),
            };
            self.go_on(&mut state, id, want, now);
            return Step::Wait(passenger);
        }
    }

    /// The window up to `end` for the block at `range`, without what is here or on its way. A large one
    /// begins before its block: blocks that were written at the same time lie in no order, so a reader
    /// may come first to any of them.
    fn gap(&self, state: &State, blob: &str, range: &Range<u64>, end: u64) -> Range<u64> {
        let behind = match end - range.start >= BEHIND {
            true => BEHIND,
            false => 0,
        };
        let wide = range.start.saturating_sub(behind)..end;
        let least = self.limits.window / 16;
        let here = self.cache.gap(blob, range, wide, least);
        state.gap(blob, range, here, least)
    }

    /// Fetches ahead what the stream of a block is worth.
    fn go_on(
        self: &Arc<Self>,
        state: &mut State,
        noted: Option<Noted>,
        want: &Want<'_>,
        now: Instant,
    ) {
        let Some(id) = noted.filter(|n| n.follows).map(|n| n.stream) else {
            return;
        };
        if state.is_barred(want.blob, now) {
            return;
        }
        let here = self.cache.reach(want.blob, want.range.end);
        state.streams.reached(id, here);
        let plan = state.plan(id, now);
        for ahead in plan.ahead {
            if !self.launch_ahead(state, &ahead) {
                return;
            }
        }
        if let Some((blob, from)) = plan.rows {
            if !state.asking.contains_key(&blob) {
                // Registered at once, so that the next get does not ask too.
                state.asking.insert(Arc::clone(&blob), Arc::default());
                let inner = Arc::clone(self);
                self.spawn(async move { inner.ask_rows(&blob, from).await });
            }
        }
        if plan.follow && state.following.insert(id) {
            let (inner, key) = (Arc::clone(self), want.check.key().to_owned());
            let blob = want.blob.to_owned();
            self.spawn(async move {
                let next = inner.next_blob(&key, &blob).await;
                let mut state = inner.state.lock();
                state.following.remove(&id);
                if let Some((blob, offset)) = next {
                    state.streams.follow(id, &blob, offset, Instant::now());
                }
            });
        }
    }

    /// Whether the window is here, on its way, or launched.
    fn launch_ahead(self: &Arc<Self>, state: &mut State, ahead: &Ahead) -> bool {
        let Ahead {
            stream,
            blob,
            range,
        } = ahead;
        let mut at = range.start;
        while at < range.end {
            // Nothing is asked for twice.
            let here = self.cache.reach(blob, at).max(state.flying_to(blob, at));
            if here > at {
                at = here;
                continue;
            }
            let piece = state.gap(blob, &(at..at), at..range.end, self.limits.window / 16);
            let Some(reserved) = self.cache.reserve(piece.end - piece.start) else {
                return false;
            };
            Metrics::add(&self.metrics.read_ahead_bytes, piece.end - piece.start);
            at = piece.end;
            state.streams.fetched(*stream, &piece);
            self.launch_window(state, blob, piece, reserved, true);
        }
        state.streams.reached(*stream, range.end);
        true
    }

    fn launch_window(
        self: &Arc<Self>,
        state: &mut State,
        blob: &str,
        range: Range<u64>,
        reserved: Reservation,
        ahead: bool,
    ) -> Arc<Flight> {
        let inner = Arc::clone(self);
        let (blob, window) = (blob.to_owned(), range.clone());
        let fetch = {
            let blob = blob.clone();
            async move { inner.fetch_window(&blob, window, reserved).await }
        };
        self.launch(state, &blob, range, None, ahead, fetch)
    }

    fn launch_alone(self: &Arc<Self>, state: &mut State, want: &Want<'_>) -> Arc<Flight> {
        let inner = Arc::clone(self);
        let (blob, range, check) = (want.blob.to_owned(), want.range.clone(), want.check.clone());
        let fetch = async move {
            let want = Want {
                blob: &blob,
                range,
                check: &check,
            };
            let bytes = inner.read_alone(&want).await?;
            Ok(inner.keep(&want, bytes))
        };
        let key = want.check.key().into();
        self.launch(
            state,
            want.blob,
            want.range.clone(),
            Some(key),
            false,
            fetch,
        )
    }

    /// Runs a request in a task, known to all who want a part of its range.
    fn launch(
        self: &Arc<Self>,
        state: &mut State,
        blob: &str,
        range: Range<u64>,
        alone: Option<Box<str>>,
        ahead: bool,
        fetch: impl std::future::Future<Output = Result<Arc<Piece>>> + Send + 'static,
    ) -> Arc<Flight> {
        let (flight, landed) = Flight::new(range, alone, ahead);
        let name = match state.flights.get_key_value(blob) {
            Some((name, _)) => Arc::clone(name),
            None => blob.into(),
        };
        let flights = state.flights.entry(Arc::clone(&name)).or_default();
        flights.push(Arc::clone(&flight));
        let landing = (Arc::clone(self), name, Arc::clone(&flight));
        let of_task = Arc::clone(&flight);
        self.spawn(async move {
            // Made here, and not before: a runtime that is shutting down drops the task at once, on this thread,
            // which holds the lock that a landing takes.
            let (inner, blob, flight) = landing;
            let until_done = Landing {
                inner,
                blob,
                flight,
            };
            let outcome = tokio::select! {
                biased;
                () = of_task.abandoned() => return,
                outcome = caught(fetch) => outcome,
            };
            drop(until_done);
            let outcome = outcome.map_or_else(Outcome::Failed, Outcome::Landed);
            // Nobody waits: it was fetched ahead.
            let _ = landed.send(Some(outcome));
        });
        flight
    }

    /// A task that ends when the reader is closed.
    fn spawn(&self, work: impl std::future::Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn fetch_window(
        &self,
        blob: &str,
        range: Range<u64>,
        reserved: Reservation,
    ) -> Result<Arc<Piece>> {
        let len = range.end - range.start;
        Metrics::add(&self.metrics.read_windows, 1);
        let read = self.store.read_window(blob, range.start, len).await;
        let read = read.and_then(|bytes| match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} bytes for a window of {len}", bytes.len()),
            )),
        });
        match read {
            Ok(bytes) => {
                Metrics::add(&self.metrics.read_window_bytes, len);
                Ok(self.cache.insert(blob, range.start, bytes, Some(reserved)))
            }
            Err(error) => {
                Metrics::add(&self.metrics.read_windows_failed, 1);
                let mut state = self.state.lock();
                state.extent(blob).bar(Instant::now());
                Err(error)
            }
        }
    }

    /// The block by itself, by all the rules.
    async fn read_alone(&self, want: &Want<'_>) -> Result<Bytes> {
        let check = |bytes: &[u8]| want.check.judge(bytes);
        let len = want.range.end - want.range.start;
        self.store
            .read_range(want.blob, want.range.start, len, &check)
            .await
    }

    /// Keeps a block that was checked.
    fn keep(&self, want: &Want<'_>, bytes: Bytes) -> Arc<Piece> {
        self.look_at(want, &bytes);
        let key = want.check.key();
        self.cache
            .insert_block(want.blob, want.range.start, bytes, key)
    }

    /// Reads the block for this caller, past all requests on their way.
    async fn fetch_alone(&self, want: &Want<'_>) -> Result<Bytes> {
        let bytes = self.read_alone(want).await?;
        if self.cache.enabled() {
            return Ok(self.keep(want, bytes).bytes());
        }
        Ok(bytes)
    }

    /// Asks the index for the rows of `blob` that a window from `from` on needs. One asks at a time.
    async fn ask_rows(&self, blob: &str, from: u64) {
        let turn = {
            let mut state = self.state.lock();
            match state.asking.get(blob) {
                Some(turn) => Arc::clone(turn),
                None => {
                    let turn: Arc<tokio::sync::Mutex<()>> = Arc::default();
                    state.asking.insert(blob.into(), Arc::clone(&turn));
                    turn
                }
            }
        };
        let _asking = Asking { inner: self, blob };
        let _turn = turn.lock().await;
        let from = {
            let mut state = self.state.lock();
            let extent = state.extent(blob);
            // Somebody may have asked just now.
            if extent.cut(from, from.saturating_add(WINDOW)) != Cut::Unknown {
                return;
            }
            extent.ask_from(from)
        };
        let rows = self.index.rows_from(blob, from, ROWS).await;
        let mut state = self.state.lock();
        match rows {
            Ok(rows) => state.extent(blob).learn(from, &rows),
            // The index will say so to whoever needs it. There are no windows meanwhile.
            Err(_) => state.extent(blob).bar(Instant::now()),
        }
    }

    /// Where the file that holds `key` goes on when it leaves `blob`.
    async fn next_blob(&self, key: &str, blob: &str) -> Option<(String, u64)> {
        let keys = self.state.lock().nodes.after(key, LOOK_AHEAD);
        if keys.is_empty() {
            return None;
        }
        let rows = self.index.find_many(&keys).await.ok()?;
        let plain = |row: &Record| !row.staged && row.patch_id.is_none();
        let rows = rows.into_iter().flatten().filter(plain);
        let places = rows.filter_map(|row| Some((row.range().ok()?.start, row.blob_id)));
        next_of(blob, places)
    }
}

/// Where blocks go on that lie at `places` (offset and blob), in their order, when they leave `blob`. Where
/// one blob ends and the next begins, a few blocks lie in the other: a blob with few is no goal.
fn next_of(blob: &str, places: impl Iterator<Item = (u64, String)>) -> Option<(String, u64)> {
    let mut blobs: Vec<(String, u64, usize)> = Vec::new();
    for (offset, id) in places.filter(|(_, id)| id != blob) {
        match blobs.iter_mut().find(|known| known.0 == id) {
            Some(known) => (known.1, known.2) = (known.1.min(offset), known.2 + 1),
            None => blobs.push((id, offset, 1)),
        }
    }
    let most = blobs.iter().map(|known| known.2).max()?;
    let goal = blobs
        .into_iter()
        .find(|known| known.2 >= most.div_ceil(2))?;
    Some((goal.0, goal.1))
}

/// Whoever asks for rows of a blob; when nobody does any more, nothing is left behind.
struct Asking<'a> {
    inner: &'a Inner,
    blob: &'a str,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        // The map's own, and this one's.
        let last = state.asking.get(self.blob);
        if last.is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            state.asking.remove(self.blob);
        }
    }
}

/// Takes a flight off the list, however it ends.
struct Landing {
    inner: Arc<Inner>,
    blob: Arc<str>,
    flight: Arc<Flight>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if let Some(flights) = state.flights.get_mut(&self.blob) {
            flights.retain(|flight| !Arc::ptr_eq(flight, &self.flight));
            if flights.is_empty() {
                state.flights.remove(&self.blob);
            }
        }
    }
}

fn cut(extents: &LruCache<Arc<str>, Extent>, blob: &str, from: u64, upto: u64) -> Cut {
    let extent = extents.peek(blob);
    extent.map_or(Cut::Unknown, |extent| extent.cut(from, upto))
}

impl State {
    fn extent(&mut self, blob: &str) -> &mut Extent {
        self.extents.get_or_insert_mut(blob.into(), Extent::default)
    }

    fn is_barred(&self, blob: &str, now: Instant) -> bool {
        let extent = self.extents.peek(blob);
        extent.is_some_and(|extent| extent.is_barred(now))
    }

    fn plan(&mut self, id: u64, now: Instant) -> Plan {
        let State {
            streams, extents, ..
        } = self;
        streams.plan(id, now, &|blob, from, upto| cut(extents, blob, from, upto))
    }

    /// A seat in the request that will bring a range.
    fn join(&self, blob: &str, range: &Range<u64>) -> Option<Passenger> {
        let flights = self.flights.get(blob)?;
        let flight = flights.iter().find(|flight| flight.covers(range))?;
        Some(flight.join())
    }

    /// As [`BlobCache::gap`], for what is on its way.
    fn gap(&self, blob: &str, range: &Range<u64>, wide: Range<u64>, least: u64) -> Range<u64> {
        let flights = self.flights.get(blob).into_iter().flatten();
        flights.fold(wide, |wide, flight| {
            let other = &flight.range;
            if other.end <= range.start {
                wide.start.max(other.end)..wide.end
            } else if other.start >= range.end && other.end - other.start >= least {
                wide.start..wide.end.min(other.start)
            } else {
                wide
            }
        })
    }

    /// How far the bytes from `from` on are on their way in one request (the offset of the first that is
    /// not).
    fn flying_to(&self, blob: &str, from: u64) -> u64 {
        let flights = self.flights.get(blob).into_iter().flatten();
        let here = flights.filter(|flight| flight.range.contains(&from));
        here.map(|flight| flight.range.end).max().unwrap_or(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_on_where_most_of_it_lies() {
        let places = |of: &[(&str, u64)]| {
            let owned = of.iter().map(|(id, offset)| (*offset, (*id).to_owned()));
            owned.collect::<Vec<_>>().into_iter()
        };
        let next = |of: &[(&str, u64)]| next_of("here", places(of));
        assert_eq!(next(&[("here", 1), ("here", 2)]), None);
        assert_eq!(next(&[("here", 9), ("b", 7)]), Some(("b".into(), 7)));
        // Two of the last blob, then the next, in no order at its beginning, and the one after it.
        let mut mixed = vec![
            ("last", 900),
            ("here", 3),
            ("last", 800),
            ("b", 30),
            ("b", 10),
        ];
        mixed.extend([
            ("b", 20),
            ("b", 40),
            ("c", 0),
            ("c", 1),
            ("c", 2),
            ("c", 3),
            ("c", 4),
        ]);
        assert_eq!(next(&mixed), Some(("b".into(), 10)));
    }
}
