//! Requests to aggregators, each in a task of its own, and what becomes of their bytes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::flight::{Flight, Outcome};
use super::memory::{Block, Memory, Piece, Reservation};
use super::state::ReaderState;
use super::{SharedReader, Want};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::trace::{self, Span};
use crate::walrus::Fetched;

const KIB: u64 = 1 << 10;

/// Room for single blocks on their way (KiB), for this memory (bytes): as much as for windows.
pub(super) fn room_kib(memory: &Memory) -> u64 {
    match memory.enabled() {
        true => (memory.budget() / 4 / KIB).clamp(1, MOST_ROOM),
        false => MOST_ROOM,
    }
}

/// The most of it (KiB).
const MOST_ROOM: u64 = 64 << 10;

impl SharedReader {
    pub(super) fn launch_window(
        self: &Arc<Self>,
        state: &mut ReaderState,
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

    pub(super) fn launch_alone(
        self: &Arc<Self>,
        state: &mut ReaderState,
        want: &Want<'_>,
        ahead: bool,
    ) -> Arc<Flight> {
        let inner = Arc::clone(self);
        let (blob, range, check) = (want.blob.to_owned(), want.range.clone(), want.check.clone());
        let fetch = async move {
            let want = Want {
                blob: &blob,
                range,
                check: &check,
            };
            let fetched = inner.read_block(&want).await?;
            Ok(inner.keep(&want, fetched, ahead))
        };
        let key = want.check.key().into();
        self.launch(
            state,
            want.blob,
            want.range.clone(),
            Some(key),
            ahead,
            fetch,
        )
    }

    /// Runs a request in a task, known to all who want a part of its range.
    fn launch(
        self: &Arc<Self>,
        state: &mut ReaderState,
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
        let scope = trace::current();
        self.spawn(trace::scoped(scope, async move {
            // Made here, and not before: a runtime that is shutting down drops the task at once, on
            // this thread, which holds the lock that a landing takes.
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
            // Fails if the request was fetched ahead, and no get waits.
            let _ = landed.send(Some(outcome));
        }));
        flight
    }

    /// A task that ends when the reader is closed.
    pub(super) fn spawn(&self, work: impl std::future::Future<Output = ()> + Send + 'static) {
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
        let keeps = self.memory.entry_cap();
        let span = trace::begin("window").map(|span| span.with("bytes", len));
        let read = self.store.read_window(blob, range.start, len, keeps).await;
        Span::done(span, &read);
        let read = read.and_then(|fetched| match fetched.bytes.len() as u64 {
            all if fetched.whole && all >= range.end => Ok(fetched),
            part if !fetched.whole && part == len => Ok(fetched),
            other => Err(Error::new(
                ErrorKind::Corrupt,
                format!("{other} bytes for a window of {len}"),
            )),
        });
        match read {
            Ok(Fetched { bytes, whole, .. }) => {
                Metrics::add(&self.metrics.read_window_bytes, len);
                drop(reserved);
                Ok(match whole {
                    true => self.memory.insert_whole(blob, bytes),
                    false => self.memory.insert(blob, range.start, bytes),
                })
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
    async fn read_block(&self, want: &Want<'_>) -> Result<Fetched> {
        let check = |bytes: &[u8]| want.check.judge(bytes);
        let (start, len) = (want.range.start, want.range.end - want.range.start);
        let room = len.div_ceil(KIB).clamp(1, self.room_kib);
        // It is never closed.
        let _room = self.room.acquire_many(room as u32).await.ok();
        self.missed();
        let keeps = self.memory.entry_cap();
        self.store
            .read_block(want.blob, start, len, keeps, &check)
            .await
    }

    /// The block, if the first aggregator that answers has it. Each is asked once.
    pub(super) async fn read_once(&self, want: &Want<'_>) -> Result<Option<Bytes>> {
        let (start, len) = (want.range.start, want.range.end - want.range.start);
        let keeps = self.memory.entry_cap();
        let read = self.store.read_window(want.blob, start, len, keeps).await;
        let Fetched { bytes, whole, .. } = read?;
        if !whole {
            return Ok(want.check.judge(&bytes).is_ok().then_some(bytes));
        }
        let piece = self.memory.insert_whole(want.blob, bytes);
        Ok(match self.take(want, &piece) {
            Block::New(bytes) | Block::Again(bytes) => Some(bytes),
            Block::Wrong | Block::Outside => None,
        })
    }

    /// An aggregator is asked for what is not in memory.
    pub(super) fn missed(&self) {
        if self.memory.enabled() {
            Metrics::add(&self.metrics.walrus_cache_misses, 1);
        }
    }

    /// Keeps what came for a block that was checked. `ahead`: no get has asked for it yet, so it
    /// does not count as handed out.
    fn keep(&self, want: &Want<'_>, fetched: Fetched, ahead: bool) -> Arc<Piece> {
        let key = want.check.key();
        if fetched.whole {
            let piece = self.memory.insert_whole(want.blob, fetched.bytes);
            if let Some(block) = piece.checked(key, &want.range) {
                self.look_at(key, &block);
            }
            return piece;
        }
        self.look_at(key, &fetched.bytes);
        if ahead {
            let (blob, start) = (want.blob, want.range.start);
            return self.memory.insert_early(blob, start, fetched.bytes);
        }
        self.memory
            .insert_block(want.blob, want.range.start, fetched.bytes, key)
    }

    /// Reads the block for this caller, past all requests on their way.
    pub(super) async fn fetch_alone(&self, want: &Want<'_>) -> Result<Bytes> {
        let fetched = self.read_block(want).await?;
        if !self.memory.enabled() {
            return Ok(fetched.bytes);
        }
        match self.take(want, &self.keep(want, fetched, false)) {
            Block::New(bytes) | Block::Again(bytes) => Ok(bytes),
            Block::Wrong | Block::Outside => Err(Error::new(
                ErrorKind::Corrupt,
                "the store gave other bytes than were checked",
            )),
        }
    }
}

/// Takes a flight off the list, however it ends.
struct Landing {
    inner: Arc<SharedReader>,
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
