//! Whether a write asks the index which of its blocks are stored before it goes into the journal.
//!
//! The question saves writing blocks that are stored already. It may be left out: the flusher asks
//! again when it takes blocks out of the journal, for a whole pack at once. A large batch always
//! asks: the question costs little beside its bytes. For a small write the answer of a remote index
//! takes as long as the local disk; so after a row of small writes whose blocks were all new, only
//! some of them ask, until a block turns out to be known.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A write of at most this many bytes is small.
const SMALL: usize = 64 << 10;
/// After `ALWAYS` small writes without a known block, only every `NOW_AND_THEN`-th asks.
const ALWAYS: u32 = 8;
const NOW_AND_THEN: u32 = 16;
/// An index that failed is not asked for this time.
const REST: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct AskFirst {
    /// Small writes since the last known block.
    new_ones: AtomicU32,
    rests_until: Mutex<Option<Instant>>,
}

impl AskFirst {
    /// Whether a write of `bytes` bytes should ask.
    pub(crate) fn is_worth_it(&self, bytes: usize) -> bool {
        if self.is_resting() {
            return false;
        }
        if bytes > SMALL {
            return true;
        }
        let n = self.new_ones.fetch_add(1, Ordering::Relaxed);
        n < ALWAYS || n.is_multiple_of(NOW_AND_THEN)
    }

    /// Whether the index failed a short time ago.
    pub(crate) fn is_resting(&self) -> bool {
        self.rests_until.lock().is_some_and(|t| t > Instant::now())
    }

    /// Notes that a block was known.
    pub(crate) fn found_one(&self) {
        self.new_ones.store(0, Ordering::Relaxed);
    }

    /// Notes that the index failed.
    pub(crate) fn rest(&self) {
        *self.rests_until.lock() = Some(Instant::now() + REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_ask_less_while_all_is_new() {
        let ask = AskFirst::default();
        let asked = |writes| (0..writes).filter(|_| ask.is_worth_it(4096)).count();
        assert_eq!(asked(8), 8);
        assert_eq!(asked(160), 10);
        assert!(ask.is_worth_it(4 << 20), "large ones always");
        ask.found_one();
        assert_eq!(asked(8), 8);
        ask.rest();
        assert!(!ask.is_worth_it(4 << 20));
    }
}
