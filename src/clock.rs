//! Wall-clock time behind a trait, so that tests can move it.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Estimates when a blob's storage ends.
///
/// The only time information Walrus gives over HTTP is in PUT answers: the epoch of the store and
/// the exclusive end epoch. When an epoch began is not told, so the estimate is the earliest
/// moment that is consistent with what was seen: renewing too early costs a little, too late
/// loses data.
#[derive(Debug)]
pub struct EpochClock {
    duration: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    epoch: u64,
    /// Epoch `epoch` cannot have begun before this.
    not_before: Option<SystemTime>,
    /// Last time the current epoch was seen to be `epoch`.
    last: Option<SystemTime>,
    /// The same on a clock that nobody sets.
    at: Option<Instant>,
    /// An epoch that is too far from `epoch` to be believed of one answer.
    doubtful: Option<u64>,
}

/// Epochs that lie further apart than this are not believed of one answer: longer than any storage that is
/// sold, after which a node has nothing left to judge.
const JUMP: u64 = 64;

impl Seen {
    /// Notes that an answer said that `current` is the epoch now; false if it is not believed.
    fn note(&mut self, current: u64, now: SystemTime) -> bool {
        let near = |a: u64, b: u64| a.abs_diff(b) <= JUMP;
        let first = self.at.is_none();
        if !first && !near(current, self.epoch) {
            // One publisher's nonsense must not make everything lapsed, or nothing. A second answer that
            // agrees says that the epoch before was the nonsense.
            if !self.doubtful.is_some_and(|other| near(current, other)) {
                self.doubtful = Some(current);
                return false;
            }
            (self.epoch, self.not_before, self.last) = (current, None, None);
        }
        self.doubtful = None;
        if current > self.epoch {
            // The boundary lies after the last moment at which an older epoch was seen, if that
            // was the one just before.
            self.not_before = self.last.filter(|_| current == self.epoch + 1);
            self.epoch = current;
        }
        if current == self.epoch {
            (self.last, self.at) = (Some(now), Some(Instant::now()));
        }
        true
    }
}

impl EpochClock {
    /// `duration` zero: unknown, nothing is estimated.
    pub fn new(duration: Duration) -> Self {
        EpochClock {
            duration,
            seen: Mutex::default(),
        }
    }

    /// The earliest moment at which `end_epoch` may begin, given that `current` is the epoch now.
    pub fn expires_at(&self, now: SystemTime, current: u64, end_epoch: u64) -> Option<SystemTime> {
        let mut seen = self.seen.lock();
        seen.note(current, now);
        if self.duration.is_zero() {
            return None;
        }
        let begun = match seen.not_before {
            Some(t) if current == seen.epoch => t.max(now - self.duration.min(since_epoch(now))),
            _ => now - self.duration.min(since_epoch(now)),
        };
        let epochs = u32::try_from(end_epoch.saturating_sub(current)).unwrap_or(u32::MAX);
        begun.checked_add(self.duration.checked_mul(epochs)?)
    }

    /// How long a blob with this exclusive end epoch is stored at least, by the last epoch that an answer told and
    /// the time since, on a clock that is never set; `None` if no answer told any.
    pub(crate) fn left_until(&self, end_epoch: u64) -> Option<Duration> {
        let seen = self.seen.lock();
        let since = seen.at?.elapsed();
        let epochs = u32::try_from(end_epoch.saturating_sub(seen.epoch)).unwrap_or(u32::MAX);
        // The epoch may have been about to end when it was told.
        let total = self.duration.saturating_mul(epochs.saturating_sub(1));
        Some(total.saturating_sub(since))
    }

    /// Whether a blob with this exclusive end epoch has certainly lapsed. Only what stores have told
    /// counts, so "no" may mean "not known".
    pub fn is_over(&self, end_epoch: u64) -> bool {
        end_epoch > 0 && self.seen.lock().epoch >= end_epoch
    }

    /// As [`expires_at`](Self::expires_at) for a blob that the network had already: its answer holds no current epoch, but
    /// at least `epochs` were left.
    pub fn expires_at_least(&self, now: SystemTime, epochs: u32) -> Option<SystemTime> {
        if self.duration.is_zero() {
            return None;
        }
        now.checked_add(self.duration.checked_mul(epochs.saturating_sub(1))?)
    }
}

fn since_epoch(t: SystemTime) -> Duration {
    t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_epoch_of_unknown_age_may_be_about_to_end() {
        let clock = EpochClock::new(Duration::from_secs(100));
        assert_eq!(clock.expires_at(at(1000), 7, 12), Some(at(1400)));
        assert_eq!(clock.expires_at(at(1000), 7, 8), Some(at(1000)));
    }

    #[test]
    fn a_seen_boundary_sharpens_the_estimate() {
        let clock = EpochClock::new(Duration::from_secs(100));
        clock.expires_at(at(1000), 7, 8);
        // Epoch 8 began after 1000, so epoch 9 begins after 1100.
        assert_eq!(clock.expires_at(at(1010), 8, 9), Some(at(1100)));
        assert_eq!(clock.expires_at(at(1050), 8, 10), Some(at(1200)));
        // A gap of epochs tells nothing.
        assert_eq!(clock.expires_at(at(2000), 20, 21), Some(at(2000)));
    }

    #[test]
    fn without_a_duration_nothing_is_known() {
        let clock = EpochClock::new(Duration::ZERO);
        assert!(!clock.is_over(7));
        assert_eq!(clock.expires_at(at(1000), 7, 8), None);
        assert!(clock.is_over(7));
        assert!(!clock.is_over(8));
        assert!(!clock.is_over(0), "0 = unknown");
        assert_eq!(clock.expires_at_least(at(1000), 3), None);
    }

    #[test]
    fn one_absurd_epoch_is_not_believed() {
        let clock = EpochClock::new(Duration::from_secs(100));
        clock.expires_at(at(1000), 7, 9);
        clock.expires_at(at(1010), 1_000_000_007, 1_000_000_009);
        assert!(!clock.is_over(8));
        clock.expires_at(at(1020), 7, 9);
        assert!(!clock.is_over(8));
        // The first answer may be the absurd one.
        let clock = EpochClock::new(Duration::ZERO);
        clock.expires_at(at(1000), 1_000_000_007, 1_000_000_009);
        clock.expires_at(at(1010), 7, 9);
        clock.expires_at(at(1020), 7, 9);
        assert!(!clock.is_over(8));
        clock.expires_at(at(1030), 8, 9);
        assert!(clock.is_over(8));
    }

    #[test]
    fn an_existing_blob_has_at_least_the_epochs_asked_for() {
        let clock = EpochClock::new(Duration::from_secs(100));
        assert_eq!(clock.expires_at_least(at(1000), 3), Some(at(1200)));
    }
}
