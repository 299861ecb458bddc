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

/// An epoch of the network, as the nodes that share an index have seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The epoch.
    pub epoch: u64,
    /// When it was first seen to be the present one.
    pub first: SystemTime,
    /// When it was last seen to be the present one.
    pub last: SystemTime,
}

/// Estimates when a blob's storage ends.
///
/// The only time information that Walrus gives over HTTP is in PUT answers: the epoch of the store
/// and the exclusive end epoch. They do not tell when an epoch began, so the estimate is the
/// earliest moment that is consistent with the answers so far: renewing too early costs a little,
/// too late loses data.
///
/// Two sources may be wrong. The machine's clock may jump, so the age of a sighting is measured by
/// the monotonic clock as well. An answer may name an absurd epoch, so an epoch that cannot have
/// been reached since the last sighting counts only when the next such answer agrees with it.
#[derive(Debug)]
pub struct EpochClock {
    duration: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    epoch: u64,
    /// Epoch `epoch` cannot have begun before this.
    not_before: Option<Moment>,
    /// Last time the current epoch was seen to be `epoch`.
    last: Option<Moment>,
    /// Whether more than one answer agrees with `epoch`.
    confirmed: bool,
    /// An epoch that one answer named and that does not fit `epoch`.
    odd: Option<u64>,
}

/// A moment on the machine's clock and on the monotonic one.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    fn new(wall: SystemTime) -> Self {
        Moment {
            wall,
            steady: Instant::now(),
        }
    }

    /// The time since the moment. If the two clocks disagree, the longer time counts; a wall clock
    /// that shows a time before the moment was set back.
    fn age(&self, now: SystemTime) -> Duration {
        let wall = now.duration_since(self.wall).unwrap_or_default();
        wall.max(self.steady.elapsed())
    }
}

/// Most epochs that may pass between two sightings when the length of an epoch is unknown.
const STEP: u64 = 64;

impl Seen {
    /// Whether the epoch may be `current` now.
    fn may_be(&self, now: SystemTime, current: u64, duration: Duration) -> bool {
        let Some(last) = self.last else {
            return true;
        };
        let passed = match duration.is_zero() {
            true => u128::from(STEP),
            false => last.age(now).as_nanos() / duration.as_nanos() + 2,
        };
        current >= self.epoch && u128::from(current - self.epoch) <= passed
    }

    /// Notes an answer that says that the epoch is `current`.
    fn note(&mut self, now: SystemTime, current: u64, duration: Duration) {
        if !self.may_be(now, current, duration) {
            // The answer of a publisher that lags by one epoch, around a change.
            if current + 1 == self.epoch && self.confirmed {
                return;
            }
            let agrees = |odd: u64| current.abs_diff(odd) <= 2;
            let lower_than_a_guess = current < self.epoch && !self.confirmed;
            if !lower_than_a_guess && !self.odd.is_some_and(agrees) {
                self.odd = Some(current);
                return;
            }
            self.confirmed = !lower_than_a_guess;
            self.epoch = current;
            self.not_before = None;
        } else {
            self.confirmed |= self.last.is_some();
        }
        self.odd = None;
        if current > self.epoch {
            // The boundary lies after the last moment at which an older epoch was seen, if that was
            // the epoch just before.
            self.not_before = self.last.filter(|_| current == self.epoch + 1);
            self.epoch = current;
        }
        self.last = Some(Moment::new(now));
    }

    /// The longest time for which `epoch` may have lasted.
    fn age(&self, now: SystemTime, duration: Duration) -> Option<Duration> {
        let by_last = self.last?.age(now).saturating_add(duration);
        let by_boundary = self.not_before.map(|boundary| boundary.age(now));
        Some(by_boundary.map_or(by_last, |age| age.min(by_last)))
    }
}

impl EpochClock {
    /// Makes a clock for epochs of this length. With zero (unknown), nothing is estimated.
    pub fn new(duration: Duration) -> Self {
        EpochClock {
            duration,
            seen: Mutex::default(),
        }
    }

    /// The earliest moment at which `end_epoch` may begin, given that `current` is the epoch now.
    pub fn expires_at(&self, now: SystemTime, current: u64, end_epoch: u64) -> Option<SystemTime> {
        let mut seen = self.seen.lock();
        seen.note(now, current, self.duration);
        if self.duration.is_zero() {
            return None;
        }
        let age = match seen.age(now, self.duration) {
            Some(age) if current == seen.epoch => age.min(self.duration),
            // A publisher that lags: the epoch that it names began before the present one did.
            Some(age) if seen.epoch.checked_sub(1) == Some(current) => {
                age.min(self.duration).saturating_add(self.duration)
            }
            _ => self.duration,
        };
        let begun = now - age.min(since_epoch(now));
        let epochs = u32::try_from(end_epoch.saturating_sub(current)).unwrap_or(u32::MAX);
        begun.checked_add(self.duration.checked_mul(epochs)?)
    }

    /// Whether a blob with this exclusive end epoch has certainly lapsed. Only epochs from answers
    /// to stores count, so "no" may mean "not known".
    pub fn is_over(&self, end_epoch: u64) -> bool {
        end_epoch > 0 && self.seen.lock().epoch >= end_epoch
    }

    /// The last end epoch that may begin within `lead` from now, judged by the epochs that were
    /// seen and not by any clock at the moment of a store. `None` if no epoch was seen or its
    /// length is unknown.
    pub fn ends_within(&self, now: SystemTime, lead: Duration) -> Option<u64> {
        if self.duration.is_zero() {
            return None;
        }
        let seen = self.seen.lock();
        let ahead = seen.age(now, self.duration)?.saturating_add(lead);
        // Epoch `epoch + n` begins `n` epochs after `epoch` began: within the lead if that is less
        // than `ahead`.
        let epochs = ahead.as_nanos().div_ceil(self.duration.as_nanos());
        let epochs = u64::try_from(epochs).unwrap_or(u64::MAX);
        Some(seen.epoch.saturating_add(epochs.saturating_sub(1)))
    }

    /// The last epoch that was seen and when, for [`was_seen`](Self::was_seen) after a restart.
    pub fn last_seen(&self, now: SystemTime) -> Option<(u64, SystemTime)> {
        let seen = self.seen.lock();
        let ago = seen.last?.steady.elapsed();
        Some((seen.epoch, now - ago.min(since_epoch(now))))
    }

    /// Notes an epoch that an earlier process or another node saw. It counts until an answer
    /// disagrees with it. A moment in the future shows that the clock was wrong there: the epoch
    /// may have been seen long ago, so many may have passed since.
    pub fn was_seen(&self, now: SystemTime, epoch: u64, at: SystemTime) {
        let ago = now
            .duration_since(at)
            .unwrap_or_else(|_| self.duration.saturating_mul(STEP as u32));
        let at = now - ago.min(since_epoch(now));
        let Some(steady) = Instant::now().checked_sub(ago) else {
            return;
        };
        let mut seen = self.seen.lock();
        let newer = seen.last.is_none_or(|last| last.steady < steady);
        if newer && (seen.last.is_none() || seen.may_be(now, epoch, self.duration)) {
            if epoch != seen.epoch {
                seen.not_before = None;
            }
            seen.epoch = epoch;
            seen.last = Some(Moment { wall: at, steady });
        }
    }

    /// As [`expires_at`](Self::expires_at), for a blob that the network had already: its answer
    /// holds no current epoch, but at least `epochs` were left.
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
        // A gap of several epochs says nothing about when this one began.
        assert_eq!(clock.expires_at(at(2000), 20, 21), Some(at(2000)));
    }

    #[test]
    fn a_publisher_that_lags_makes_no_blob_live_longer() {
        let clock = EpochClock::new(Duration::from_secs(100));
        clock.expires_at(at(1000), 7, 9);
        clock.expires_at(at(1010), 8, 10);
        // Epoch 8 began after 1000, even though this answer names epoch 7: so epoch 9 may begin at
        // 1100.
        assert_eq!(clock.expires_at(at(1090), 7, 9), Some(at(1100)));
        assert_eq!(clock.expires_at(at(1090), 8, 9), Some(at(1100)));
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

    /// One answer with an absurd epoch does not end every blob; two that agree are believed.
    #[test]
    fn one_absurd_epoch_is_not_believed() {
        for duration in [Duration::ZERO, Duration::from_secs(100)] {
            let clock = EpochClock::new(duration);
            clock.expires_at(at(1000), 7, 9);
            clock.expires_at(at(1001), u64::MAX - 1, u64::MAX);
            assert!(!clock.is_over(9));
            clock.expires_at(at(1002), 1 << 40, (1 << 40) + 2);
            assert!(!clock.is_over(9));
            clock.expires_at(at(1003), 7, 9);
            clock.expires_at(at(1004), 1 << 40, (1 << 40) + 2);
            assert!(
                !clock.is_over(9),
                "two answers that did not follow each other"
            );
            clock.expires_at(at(1005), 1 << 40, (1 << 40) + 2);
            assert!(clock.is_over(9), "two answers that agree");
        }
    }

    /// The first answer of all may be the absurd one: the next ordinary answer corrects it.
    #[test]
    fn an_absurd_first_epoch_is_corrected() {
        let clock = EpochClock::new(Duration::from_secs(100));
        clock.expires_at(at(1000), 1 << 40, (1 << 40) + 2);
        clock.expires_at(at(1001), 7, 9);
        assert!(!clock.is_over(9));
        assert!(clock.is_over(7));
    }

    /// A clock that was ahead and was set back does not move the beginning of an epoch.
    #[test]
    fn a_clock_that_is_set_back_makes_no_epoch_begin_later() {
        let clock = EpochClock::new(Duration::from_secs(100));
        clock.expires_at(at(900_000), 7, 8);
        clock.expires_at(at(900_010), 8, 9);
        assert!(clock.expires_at(at(1000), 8, 10) <= Some(at(1200)));
    }

    #[test]
    fn end_epochs_within_a_lead_are_judged_by_sightings() {
        let clock = EpochClock::new(Duration::from_secs(100));
        let lead = Duration::from_secs(90);
        assert_eq!(clock.ends_within(at(1000), lead), None);
        clock.expires_at(at(1000), 7, 9);
        // Epoch 7 may be about to end: 8 may begin now, 9 in 100 s, which is beyond the lead.
        assert_eq!(clock.ends_within(at(1000), lead), Some(8));
        assert_eq!(clock.ends_within(at(1050), lead), Some(9));
        assert_eq!(clock.ends_within(at(1450), lead), Some(13));
        let other = EpochClock::new(Duration::from_secs(100));
        let (epoch, seen_at) = clock.last_seen(at(1000)).unwrap();
        other.was_seen(at(1450), epoch, seen_at);
        assert_eq!(other.ends_within(at(1450), lead), Some(13));
        let other = EpochClock::new(Duration::from_secs(100));
        // Seen in the future: it may have been long ago, until an answer to a store names the
        // epoch.
        other.was_seen(at(500), epoch, seen_at);
        assert!(other.ends_within(at(500), lead) > Some(50));
        other.expires_at(at(500), 8, 10);
        assert_eq!(other.ends_within(at(500), lead), Some(9));
    }

    #[test]
    fn an_existing_blob_has_at_least_the_epochs_asked_for() {
        let clock = EpochClock::new(Duration::from_secs(100));
        assert_eq!(clock.expires_at_least(at(1000), 3), Some(at(1200)));
    }
}
