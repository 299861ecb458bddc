//! Room in the journal: writes are admitted in the order in which they came.
//!
//! The problem: the files of the journal must stay within a limit, while any number of writers
//! wait, some of which give up, and room becomes free only when blocks have reached Walrus.
//!
//! The journal's limit counts the bytes of its files and the bytes that were admitted and are not
//! written yet. A write that does not fit waits, and every write behind it waits too, regardless of
//! its size: otherwise a large batch would wait for ever beside small ones that take each bit of
//! room as it becomes free. The turn is a fair lock, so a writer that gives up leaves the queue by
//! being dropped.
//!
//! Lock order: `JournalParts::turn`, then `JournalParts::said_full`, then the state's lock or that
//! of `Trouble`, one at a time. A write gets its room before it locks its keys: the flusher locks
//! the same keys to write the rows that make room. Dropping a [`Room`] takes the state's lock.
//!
//! Waiting writers make the flusher send packs that are not full, which costs money. So a write
//! counts as waiting only if there is no room for it, or if another one waits already; writes that
//! merely arrive at the same time do not count.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Journal, JournalParts, StagedBlocks};
use crate::error::{Error, ErrorKind, Result};
use crate::log::Level;

/// While writers wait and Walrus takes nothing, a line is logged at once and then at this interval.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// If the journal is full although Walrus takes the packs, a line is logged after this time: the
/// node writes faster than it can upload.
const SLOW: Duration = Duration::from_secs(30);
/// How often a waiting write checks whether a line is due.
const LOOK: Duration = Duration::from_secs(1);

/// Room in the journal for a write, until it is written (then it counts as part of its file) or
/// given up.
#[derive(Debug)]
pub(crate) struct Room {
    inner: Arc<JournalParts>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.inner.state.lock().admitted -= self.bytes;
            self.inner.space.notify_waiters();
        }
    }
}

/// The most bytes that puts with keys and values of these lengths take: each put may have a frame
/// of its own, and its table is written once more, into the table of contents.
pub(crate) fn needed(lengths: impl Iterator<Item = (usize, usize)>) -> u64 {
    lengths
        .map(|(key, value)| (2 * key + value) as u64 + 96)
        .sum()
}

impl Journal {
    /// Room for `bytes` bytes (see [`needed`]), if there is room now and no write waits for some. A
    /// write of no bytes always has room.
    pub(crate) fn room_now(&self, bytes: u64) -> Option<Room> {
        let mut state = self.inner.state.lock();
        if bytes > 0 && state.waiting_for_space > 0 {
            return None;
        }
        self.admit(&mut state, bytes)
    }

    /// Waits for room, in turn, for at most `patience`. A single write that is larger than the
    /// limit is admitted into an empty journal.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`], retryable, after `patience`; the text says how much is staged, for how
    /// long, and why it does not leave. [`ErrorKind::Closed`] when the datastore is closed
    /// meanwhile.
    pub(crate) async fn room(&self, bytes: u64, patience: Duration) -> Result<Room> {
        if let Some(room) = self.room_now(bytes) {
            return Ok(room);
        }
        let _waiting = WaitingForSpace::new(Arc::clone(&self.inner));
        let begun = Instant::now();
        let waited = tokio::time::timeout(patience, async {
            let _turn = self.inner.turn.lock().await;
            loop {
                let freed = self.inner.space.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                let admitted = self.admit(&mut self.inner.state.lock(), bytes);
                if let Some(room) = admitted {
                    return room;
                }
                self.complain(begun);
                tokio::select! {
                    () = freed => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        });
        let waited = tokio::select! {
            waited = waited => waited,
            () = self.inner.closing.cancelled() => return Err(Error::closed("datastore")),
        };
        waited.map_err(|_| {
            Error::retryable(
                ErrorKind::Disk,
                format!(
                    "a write has waited for {} s (journalFullSeconds) for {bytes} bytes of room in the write \
                     journal; nothing of it was stored. {}",
                    patience.as_secs(),
                    self.why_full()
                ),
            )
        })
    }

    /// Makes writes that wait for room fail from now on: the datastore is being closed, and room
    /// may be long in coming. Nothing of such a write is stored.
    pub(crate) fn turn_away(&self) {
        self.inner.closing.cancel();
    }

    fn admit(&self, state: &mut StagedBlocks, bytes: u64) -> Option<Room> {
        let used = state.used();
        let fits = bytes == 0 || used == 0 || used.saturating_add(bytes) <= self.inner.max_bytes;
        fits.then(|| {
            state.admitted += bytes;
            Room {
                inner: Arc::clone(&self.inner),
                bytes,
            }
        })
    }

    /// Logs that writers wait since `begun`, if a line is due.
    fn complain(&self, begun: Instant) {
        let stuck = self.inner.trouble.words().is_some();
        if !stuck && begun.elapsed() < SLOW {
            return;
        }
        let mut said = self.inner.said_full.lock();
        if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            *said = Some(Instant::now());
            let waiting = self.inner.state.lock().waiting_for_space;
            self.inner.log.push(
                Level::Error,
                format!(
                    "the write journal is full and {waiting} writes wait for room. {}",
                    self.why_full()
                ),
            );
        }
    }

    fn why_full(&self) -> String {
        let staged = self.staged();
        let oldest = self.oldest().map_or(String::new(), |age| {
            format!(", the oldest for {} s", age.as_secs())
        });
        let why = match self.inner.trouble.words() {
            Some(words) => words,
            None => "Walrus takes less than is written".to_owned(),
        };
        format!(
            "{} bytes in {} blocks wait for Walrus{oldest} (limit: journalMaxBytes {}). {why}",
            staged.bytes, staged.blocks, self.inner.max_bytes
        )
    }

    /// How long the oldest staged block has waited.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let state = self.inner.state.lock();
        let oldest = state.blocks.values().map(|b| b.staged).min()?;
        Some(oldest.elapsed())
    }
}

/// Counts a writer as waiting until it is dropped.
struct WaitingForSpace(Arc<JournalParts>);

impl WaitingForSpace {
    fn new(inner: Arc<JournalParts>) -> Self {
        inner.state.lock().waiting_for_space += 1;
        inner.changed.notify_one();
        WaitingForSpace(inner)
    }
}

impl Drop for WaitingForSpace {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state.lock();
            state.waiting_for_space -= 1;
            state.waiting_for_space
        };
        if left == 0 && !self.0.broken.load(Ordering::Relaxed) {
            // No write waits any more and nothing fails: when the journal is full the next time, a
            // line is due at once.
            if self.0.trouble.words().is_none() {
                *self.0.said_full.lock() = None;
            }
        }
    }
}
