//! Wall-clock time behind a trait, so that tests can move it.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

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
        if self.duration.is_zero() {
            seen.epoch = seen.epoch.max(current);
            return None;
        }
        if current > seen.epoch {
            // The boundary lies after the last moment at which an older epoch was seen, if that
            // was the one just before.
            seen.not_before = seen.last.filter(|_| current == seen.epoch + 1);
            seen.epoch = current;
        }
        if current == seen.epoch {
            seen.last = Some(now);
        }
        let begun = match seen.not_before {
            Some(t) if current == seen.epoch => t.max(now - self.duration.min(since_epoch(now))),
            _ => now - self.duration.min(since_epoch(now)),
        };
        let epochs = u32::try_from(end_epoch.saturating_sub(current)).unwrap_or(u32::MAX);
        begun.checked_add(self.duration.checked_mul(epochs)?)
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
    fn an_existing_blob_has_at_least_the_epochs_asked_for() {
        let clock = EpochClock::new(Duration::from_secs(100));
        assert_eq!(clock.expires_at_least(at(1000), 3), Some(at(1200)));
    }
}
