//! Room in the journal: writes are admitted in the order in which they came.
//!
//! The journal's limit counts what lies in its files and what was admitted and is not written yet. A write
//! that does not fit waits, and every write behind it waits too, whatever its size: else a large batch
//! would wait for ever beside small ones that take each bit of room as it becomes free. The turn is a fair
//! lock, so a writer that gives up leaves the queue by being dropped. Lock order: turn, then state.
//!
//! Waiting writers make the flusher send packs that are not full, which costs money. So a write counts as
//! waiting only if there is no room for it, or another one waits already; writes that merely meet each other
//! do not.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, Journal, State};
use crate::error::{Error, ErrorKind, Result};
use crate::log::Level;

/// While writers wait and Walrus takes nothing, the log says so at once and then this often.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// A journal that is full although Walrus takes what it is given is worth a line after this time: the
/// node writes faster than it can upload.
const SLOW: Duration = Duration::from_secs(30);
/// How often a write that waits looks whether the log must be told.
const LOOK: Duration = Duration::from_secs(1);

/// Room in the journal for a write, until it is written (then it counts as part of its file) or given
/// up.
#[derive(Debug)]
pub(crate) struct Room {
    inner: Arc<Inner>,
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

/// Bytes that puts with keys and values of these lengths take at most: each put may have a frame of its
/// own, and its table is written once more, into the contents.
pub(crate) fn needed(lengths: impl Iterator<Item = (usize, usize)>) -> u64 {
    lengths
        .map(|(key, value)| (2 * key + value) as u64 + 96)
        .sum()
}

impl Journal {
    /// Room for so many bytes (see [`needed`]), if there is room now and no write waits for some. A write
    /// that brings nothing always has room.
    pub(crate) fn room_now(&self, bytes: u64) -> Option<Room> {
        let mut state = self.inner.state.lock();
        if bytes > 0 && state.waiting_for_space > 0 {
            return None;
        }
        self.admit(&mut state, bytes)
    }

    /// Waits for room, in turn, for at most `patience`. A single write that is larger than the journal
    /// may ever be is admitted into an empty one.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`], retryable, after `patience`: what waits, since when, and why it does not leave.
    /// [`ErrorKind::Closed`] when the datastore is closed meanwhile.
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

    /// Writes that wait for room fail from now on: nothing of them is stored, and room may be long in coming.
    pub(crate) fn turn_away(&self) {
        self.inner.closing.cancel();
    }

    fn admit(&self, state: &mut State, bytes: u64) -> Option<Room> {
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

    /// Tells the log that writers wait since `begun`, if that is due.
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

/// Counts a writer as waiting for as long as it does.
struct WaitingForSpace(Arc<Inner>);

impl WaitingForSpace {
    fn new(inner: Arc<Inner>) -> Self {
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
            // The next time that the journal is full is another one, unless the cause has stayed.
            if self.0.trouble.words().is_none() {
                *self.0.said_full.lock() = None;
            }
        }
    }
}
