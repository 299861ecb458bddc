//! The log lines about blocks that cannot leave the journal.
//!
//! A pack that fails is tried again for ever, so the failure is no error to any caller. It is
//! logged at `error`, the level that Kubo shows: when the first step fails, and again every ten
//! minutes for as long as some step fails, with the amount of waiting blocks. One line is logged
//! when all packs go on.
//!
//! The lock of [`Trouble`] is not held while the journal's state is looked at.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::Error;
use crate::log::{Level, Log};

const AGAIN: Duration = Duration::from_secs(600);
/// Failures that come and go are logged at most once in this time.
const SELDOM: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Trouble {
    log: Arc<Log>,
    state: Mutex<Ongoing>,
}

#[derive(Debug, Default)]
struct Ongoing {
    /// Packs whose last step failed.
    failing: usize,
    since: Option<Instant>,
    failures: u64,
    last: String,
    /// When the failures that still last were last logged, and when any were.
    told: Option<Instant>,
    told_last: Option<Instant>,
}

impl Trouble {
    pub(super) fn new(log: Arc<Log>) -> Self {
        Trouble {
            log,
            state: Mutex::default(),
        }
    }

    /// A text: since when steps fail, how often, and the last error; `None` if none fails.
    pub(super) fn words(&self) -> Option<String> {
        let state = self.state.lock();
        let since = state.since?;
        Some(format!(
            "Nothing can be brought there since {} s ({} failures); the last: {}",
            since.elapsed().as_secs(),
            state.failures,
            state.last
        ))
    }

    /// How many steps have failed since all packs last went on, and since when.
    pub(super) fn failures(&self) -> (u64, Duration) {
        let state = self.state.lock();
        let since = state.since.map(|since| since.elapsed());
        (state.failures, since.unwrap_or_default())
    }

    /// Counts a step of a pack that failed. `first`: the pack's step before it had not failed.
    /// `waiting` makes the text about the waiting blocks.
    fn failed(&self, first: bool, what: &str, e: &Error, waiting: impl FnOnce() -> String) {
        let mut state = self.state.lock();
        state.failing += usize::from(first);
        state.failures += 1;
        state.since.get_or_insert_with(Instant::now);
        state.last = format!("{what}: {e}");
        let tell = state.told.is_none_or(|at| at.elapsed() >= AGAIN)
            && state.told_last.is_none_or(|at| at.elapsed() >= SELDOM);
        if tell {
            state.told = Some(Instant::now());
            state.told_last = state.told;
            let (last, failures) = (state.last.clone(), state.failures);
            drop(state);
            self.log.push(
                Level::Error,
                format!(
                    "blocks in the write journal do not reach Walrus ({failures} failures; they stay in the journal and \
                     are tried again): {}. {last}",
                    waiting()
                ),
            );
        }
    }

    /// Notes that a pack that failed goes on (`well`), or is given up until the next start.
    fn ended(&self, well: bool) {
        let mut state = self.state.lock();
        state.failing -= 1;
        if state.failing > 0 {
            return;
        }
        let told = state.told.is_some();
        let lasted = state.since.take().map(|since| since.elapsed());
        let failures = std::mem::take(&mut state.failures);
        state.told = None;
        drop(state);
        if let (true, true, Some(lasted)) = (told, well, lasted) {
            self.log.push(
                Level::Info,
                format!(
                    "blocks in the write journal reach Walrus again, after {failures} failures in {} s",
                    lasted.as_secs()
                ),
            );
        }
    }
}

/// The failures in a row of one pack.
pub(super) struct Failures<'a> {
    trouble: &'a Trouble,
    /// How many in a row.
    pub(super) count: u32,
}

impl<'a> Failures<'a> {
    pub(super) fn new(trouble: &'a Trouble) -> Self {
        Failures { trouble, count: 0 }
    }

    pub(super) fn failed(&mut self, what: &str, e: &Error, waiting: impl FnOnce() -> String) {
        self.trouble.failed(self.count == 0, what, e, waiting);
        self.count = self.count.saturating_add(1);
    }

    /// Notes that a step has worked.
    pub(super) fn well(&mut self) {
        if self.count > 0 {
            self.count = 0;
            self.trouble.ended(true);
        }
    }
}

impl Drop for Failures<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.trouble.ended(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn lines(log: &Log) -> Vec<(Level, String)> {
        std::iter::from_fn(|| log.pop())
            .map(|line| (line.level, line.message))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_at_once_and_every_ten_minutes_and_its_end_once() {
        let log = Arc::new(Log::default());
        let trouble = Trouble::new(Arc::clone(&log));
        assert_eq!(trouble.words(), None);
        let refused = Error::retryable(ErrorKind::Walrus, "503 busy");
        let waiting = || "7 blocks".to_owned();
        let (mut one, mut two) = (Failures::new(&trouble), Failures::new(&trouble));
        one.failed("storing a pack", &refused, waiting);
        let first = lines(&log);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].0, Level::Error);
        assert!(
            first[0].1.contains("503 busy") && first[0].1.contains("7 blocks"),
            "{first:?}"
        );
        // Another pack that fails and goes on in turn causes no line.
        for _ in 0..50 {
            two.failed("storing a pack", &refused, waiting);
            two.well();
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(lines(&log), []);
        for _ in 0..120 {
            tokio::time::advance(Duration::from_secs(10)).await;
            one.failed("storing a pack", &refused, waiting);
        }
        let later = lines(&log);
        assert_eq!(later.len(), 2, "{later:?}");
        assert!(later.iter().all(|line| line.0 == Level::Error));
        assert!(trouble
            .words()
            .is_some_and(|words| words.contains("503 busy")));
        one.well();
        let end = lines(&log);
        assert_eq!((end.len(), end[0].0), (1, Level::Info));
        assert_eq!(trouble.words(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pack_that_is_given_up_is_no_recovery() {
        let log = Arc::new(Log::default());
        let trouble = Trouble::new(Arc::clone(&log));
        let mut one = Failures::new(&trouble);
        one.failed("x", &Error::new(ErrorKind::Walrus, "no"), String::new);
        drop(one);
        assert_eq!(lines(&log).len(), 1);
        assert_eq!(trouble.words(), None);
    }
}
