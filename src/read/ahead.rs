//! Fetches before a get asks for the bytes: windows of a stream, the rows that say where blocks
//! end, the blob in which a file goes on, and the nodes that tell it.
//!
//! Readers of a file ask for its nodes one after another, each when they need it. Over a network
//! that takes 150 ms for an answer, 24 nodes of a file of 1 GiB take longer than its bytes. So a
//! stream fetches the nodes that follow together, once for each node whose leaves it reads. What
//! it fetches so is at most what it has read.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::extent::ROWS;
use super::state::ReaderState;
use super::streams::{next_of, Ahead, Cut, Noted, Plan};
use super::{BlockCheck, SharedReader, Want, WINDOW};
use crate::index::{Record, Rows as _};
use crate::metrics::Metrics;
use crate::multihash::Multihash;

/// Blocks that are looked through to find where a file goes on: more than a full pack of usual
/// ones.
const LOOK_AHEAD: usize = 512;

/// Nodes that are fetched together, and the bytes that a stream has read before.
const SCOUTS: usize = 32;
const SCOUTS_AFTER: u64 = 512 << 10;
/// How often nodes that lie on the local disk lead to others at a time.
const SCOUT_ROUNDS: usize = 4;

/// Framing between pieces that is passed over at most to tell how far blocks are here: a read in a
/// stream asks for it, so of many small pieces not all are gone through.
const HOLES_AHEAD: usize = 16;

/// The purpose for which rows of a blob are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// To know where blocks end: not asked for if that is known.
    Ends,
    /// To be remembered by the index, for the lookups that follow.
    Rows,
}

impl SharedReader {
    /// Fetches ahead what the stream of a block is worth.
    pub(super) fn go_on(
        self: &Arc<Self>,
        state: &mut ReaderState,
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
        self.scout(state, id, want);
        let here = self.here(state, want.blob, want.range.end);
        state.streams.reached(id, here);
        let plan = self.fetch_planned(state, id, now);
        self.ask_planned(state, id, plan.rows);
        if plan.follow && state.following.insert(id) {
            state.streams.asked(id);
            let (inner, key) = (Arc::clone(self), want.check.key().to_owned());
            let blob = want.blob.to_owned();
            self.spawn(async move {
                let next = inner.next_blob(&key, &blob).await;
                let mut state = inner.state.lock();
                state.following.remove(&id);
                if let Some((blob, offset)) = next {
                    state.streams.follow(id, &blob, offset, Instant::now());
                    let rows = inner.fetch_answered(&mut state, id);
                    inner.ask_planned(&mut state, id, rows);
                }
            });
        }
    }

    /// Fetches the windows that a stream is worth. Returns what it needs to go on further.
    fn fetch_planned(self: &Arc<Self>, state: &mut ReaderState, stream: u64, now: Instant) -> Plan {
        let mut plan = state.plan(stream, now);
        let awaited = match plan.ahead.is_empty() {
            true => Vec::new(),
            false => state.streams.awaited(now),
        };
        for ahead in std::mem::take(&mut plan.ahead) {
            let barred = state.is_barred(&ahead.blob, now);
            if barred || !self.launch_ahead(state, &ahead, &awaited) {
                return Plan::default();
            }
        }
        plan
    }

    /// As [`fetch_planned`](Self::fetch_planned), after an answer of the index: the reader may have
    /// come to the end of the bytes that are here, and wait. Returns the rows that are needed to go
    /// on further.
    fn fetch_answered(
        self: &Arc<Self>,
        state: &mut ReaderState,
        stream: u64,
    ) -> Option<(Arc<str>, u64)> {
        let now = Instant::now();
        if !state.streams.is_read(stream, now) {
            return None;
        }
        self.fetch_planned(state, stream, now).rows
    }

    fn ask_planned(
        self: &Arc<Self>,
        state: &mut ReaderState,
        stream: u64,
        rows: Option<(Arc<str>, u64)>,
    ) {
        if let Some((blob, from)) = rows {
            self.ask_ahead(state, blob, from, Need::Ends, Some(stream));
        }
    }

    /// Fetches the nodes that follow the one above the block.
    fn scout(self: &Arc<Self>, state: &mut ReaderState, stream: u64, want: &Want<'_>) {
        // The node counts as used, however short the run is.
        let parent = state.nodes.parent(want.check.key());
        let run = state.streams.run(stream);
        let Some(parent) = parent.filter(|parent| !state.scouted.contains(parent)) else {
            return;
        };
        if run < SCOUTS_AFTER {
            return;
        }
        let keys = state.nodes.unknown_after(want.check.key(), SCOUTS);
        if keys.is_empty() {
            return;
        }
        state.scouted.put(parent, ());
        let (inner, check) = (Arc::clone(self), want.check.clone());
        self.spawn(async move {
            let mut keys = keys;
            let mut credit = run;
            for _ in 0..SCOUT_ROUNDS {
                let learnt = inner.fetch_nodes(stream, &keys, &check, &mut credit).await;
                // Nodes that lie on this disk tell of others at once.
                if !learnt {
                    return;
                }
                let state = inner.state.lock();
                keys = state.nodes.unknown_after(check.key(), SCOUTS);
            }
        });
    }

    /// Learns nodes that lie on the local disk, and fetches the others. Returns whether some lay
    /// there.
    async fn fetch_nodes(
        self: &Arc<Self>,
        stream: u64,
        keys: &[String],
        check: &BlockCheck,
        credit: &mut u64,
    ) -> bool {
        // A get that needs a row is told an error by the index.
        let rows = self.index.find_many(keys).await.unwrap_or_default();
        let mut learnt = false;
        for (key, row) in keys.iter().zip(rows) {
            let plain = row.filter(is_plain);
            let range = plain.as_ref().and_then(|row| row.range().ok());
            let Some((row, range)) = plain.zip(range) else {
                continue;
            };
            let len = range.end - range.start;
            let want = Want {
                blob: &row.blob_id,
                range,
                check: &check.of(key, row.size),
            };
            if let Some(node) = self.on_disk(key, len).await {
                self.look_at(want.check.key(), &node);
                learnt = true;
                continue;
            }
            let Some(left) = credit.checked_sub(len) else {
                break;
            };
            let mut state = self.state.lock();
            let here = self.memory.look(want.blob, &want.range).piece().is_some();
            if here || state.flying_to(want.blob, want.range.start) >= want.range.end {
                continue;
            }
            *credit = left;
            state.streams.fetched_elsewhere(stream, len);
            self.launch_alone(&mut state, &want, true);
        }
        learnt
    }

    /// The block of this length in the disk cache.
    async fn on_disk(&self, key: &str, len: u64) -> Option<Bytes> {
        let (cache, name) = (self.disk.as_ref()?, Multihash::of_key(key)?);
        cache.get(&name, len).await
    }

    /// How far the blocks from `from` on are here, at least.
    fn here(&self, state: &ReaderState, blob: &str, from: u64) -> u64 {
        let mut here = from;
        for _ in 0..HOLES_AHEAD {
            let reach = self.memory.reach(blob, here);
            let next = self.memory.next(blob, reach);
            here = beyond_framing(state, blob, reach, next);
            if here == reach {
                break;
            }
        }
        here
    }

    /// Whether the window is here, on its way, or launched.
    fn launch_ahead(
        self: &Arc<Self>,
        state: &mut ReaderState,
        ahead: &Ahead,
        awaited: &[(Arc<str>, Range<u64>)],
    ) -> bool {
        let Ahead {
            stream,
            blob,
            range,
        } = ahead;
        let mut at = range.start;
        while at < range.end {
            // Nothing is asked for twice.
            let here = self.memory.reach(blob, at).max(state.flying_to(blob, at));
            let next = [self.memory.next(blob, here), state.next_flight(blob, here)];
            let next = next.into_iter().flatten().min();
            let here = beyond_framing(state, blob, here, next);
            if here > at {
                at = here;
                continue;
            }
            let piece = state.gap(blob, &(at..at), at..range.end, self.limits.window / 16);
            let Some(reserved) = self.memory.reserve_ahead(piece.end - piece.start, awaited) else {
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

    /// Asks for rows in a task, unless rows of the blob are asked for already. `stream`: it goes on
    /// with them.
    pub(super) fn ask_ahead(
        self: &Arc<Self>,
        state: &mut ReaderState,
        blob: Arc<str>,
        from: u64,
        need: Need,
        stream: Option<u64>,
    ) {
        if state.asking.contains_key(&blob) {
            return;
        }
        // Registered at once, so that the next get does not ask too.
        state.asking.insert(Arc::clone(&blob), Arc::default());
        let inner = Arc::clone(self);
        self.spawn(async move {
            inner.ask_rows(&blob, from, need).await;
            if let Some(stream) = stream {
                let mut state = inner.state.lock();
                inner.fetch_answered(&mut state, stream);
            }
        });
    }

    /// Asks the index for the rows of `blob` from `from` on, and learns where its blocks end. One
    /// asks at a time.
    pub(super) async fn ask_rows(&self, blob: &str, from: u64, need: Need) {
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
        let upto = from.saturating_add(WINDOW);
        let from = {
            let mut state = self.state.lock();
            let extent = state.extent(blob);
            match need {
                Need::Rows => from,
                // The task that had the turn before may have asked for them.
                Need::Ends if extent.cut(from, upto) != Cut::Unknown => return,
                Need::Ends => extent.ask_from(from),
            }
        };
        let rows = self.index.rows_from(blob, from, ROWS).await;
        let mut state = self.state.lock();
        let extent = state.extent(blob);
        if extent.cut(from, upto) != Cut::Unknown {
            return;
        }
        match rows {
            Ok(rows) => extent.learn(from, &rows),
            // A get that needs a row is told so by the index. There are no windows meanwhile.
            Err(_) => extent.bar(Instant::now()),
        }
    }

    /// Where the file that holds `key` goes on when it leaves `blob`.
    async fn next_blob(&self, key: &str, blob: &str) -> Option<(String, u64)> {
        let keys = self.state.lock().nodes.after(key, LOOK_AHEAD);
        if keys.is_empty() {
            return None;
        }
        let rows = self.index.find_many(&keys).await.ok()?;
        let rows = rows.into_iter().flatten().filter(is_plain);
        let places = rows.filter_map(|row| Some((row.range().ok()?.start, row.blob_id)));
        next_of(blob, places)
    }
}

/// Whether a row is of a range of a blob.
fn is_plain(row: &Record) -> bool {
    !row.staged && row.patch_id.is_none()
}

/// The beginning of the next bytes that are here or on their way, if no block lies before them;
/// else `here`.
fn beyond_framing(state: &ReaderState, blob: &str, here: u64, next: Option<u64>) -> u64 {
    let next = next.filter(|&next| state.is_framing(blob, here, next));
    next.unwrap_or(here)
}

/// A task that asks for rows of a blob, or waits to; the last one takes the blob off the list.
struct Asking<'a> {
    inner: &'a SharedReader,
    blob: &'a str,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        // One count is the map's own, the other this task's.
        let last = state.asking.get(self.blob);
        if last.is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            state.asking.remove(self.blob);
        }
    }
}
