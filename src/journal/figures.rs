//! The journal's figures for the metrics.
//!
//! The oldest block is not at the front of anything: packs on their way fail and come back. To look
//! for it costs a walk over all blocks under the state's lock, so that a large journal is looked
//! through by a task ([`Journal::look_for_oldest`]) for at most one part in a hundred of its time,
//! and a snapshot takes what was found last.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Journal;
use crate::measure::Sample;

/// So many blocks are looked through at once (some tenths of a millisecond).
const FEW: usize = 4096;
/// A look may take one part in so many of the time between two looks.
const SHARE: u32 = 100;

/// The oldest block, as far as it was looked for.
#[derive(Debug, Default)]
pub(super) struct Oldest(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    staged: Option<Instant>,
    /// When to look again.
    next: Option<Instant>,
}

impl Journal {
    /// Looks for the oldest block, unless that was done shortly ago.
    pub(crate) fn look_for_oldest(&self) {
        let begun = Instant::now();
        if self
            .inner
            .oldest
            .0
            .lock()
            .next
            .is_some_and(|next| begun < next)
        {
            return;
        }
        let staged = self.oldest_staged();
        let mut found = self.inner.oldest.0.lock();
        found.staged = staged;
        found.next = Some(Instant::now() + begun.elapsed() * SHARE);
    }

    fn oldest_staged(&self) -> Option<Instant> {
        let state = self.inner.state.lock();
        state.blocks.values().map(|block| block.staged).min()
    }

    /// The age of the oldest block, as far as it was looked for. Never waits for a walk over many
    /// blocks.
    pub(crate) fn oldest_age(&self) -> Option<Duration> {
        let blocks = self.inner.state.lock().blocks.len();
        self.oldest_of(blocks).map(|at| at.elapsed())
    }

    fn oldest_of(&self, blocks: usize) -> Option<Instant> {
        match blocks {
            0 => None,
            blocks if blocks <= FEW => self.oldest_staged(),
            _ => self.inner.oldest.0.lock().staged,
        }
    }

    /// The gauges of the journal that are no plain numbers of blocks and bytes.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let (blocks, waiting) = {
            let state = self.inner.state.lock();
            (state.blocks.len(), state.waiting_for_space)
        };
        let oldest = self.oldest_of(blocks);
        let (failures, failing) = self.inner.trouble.failures();
        let numbers = [
            ("journal_max_bytes", self.inner.max_bytes as f64),
            ("journal_waiting_writes", waiting as f64),
            ("journal_failures_in_row", failures as f64),
            ("journal_failing_seconds", failing.as_secs_f64()),
        ];
        let named = numbers.map(|(name, value)| Sample::number(name, value));
        let oldest = oldest.map(|at| Sample::ago("journal_oldest_timestamp_seconds", at.elapsed()));
        named.into_iter().chain(oldest).collect()
    }
}
