//! A moment on two clocks: the machine's, which may be set, and the monotonic one, which stands
//! still while the machine sleeps.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A moment on the machine's clock and on the monotonic one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    wall: SystemTime,
    steady: Instant,
    /// The moment lies this long before `steady`.
    before: Duration,
}

impl Moment {
    /// The present moment, which the machine's clock calls `now`.
    pub(super) fn new(now: SystemTime) -> Self {
        Moment::past(now, Duration::ZERO)
    }

    /// The moment that lies `ago` before the present one.
    pub(super) fn past(now: SystemTime, ago: Duration) -> Self {
        Moment {
            wall: now - ago.min(since_1970(now)),
            steady: Instant::now(),
            before: ago,
        }
    }

    fn ages(&self, now: SystemTime) -> (Duration, Duration) {
        // A clock that shows a time before the moment was set back.
        let wall = now.duration_since(self.wall).unwrap_or_default();
        let steady = self.before.saturating_add(self.steady.elapsed());
        (wall.min(steady), wall.max(steady))
    }

    /// The least time that may have passed since the moment.
    pub(super) fn least_age(&self, now: SystemTime) -> Duration {
        self.ages(now).0
    }

    /// The longest time that may have passed since the moment.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        self.ages(now).1
    }

    /// The moment in the machine's present time, at the earliest.
    pub(super) fn at_earliest(&self, now: SystemTime) -> SystemTime {
        now - self.age(now).min(since_1970(now))
    }

    /// The moment in the machine's present time, at the latest.
    pub(super) fn at_latest(&self, now: SystemTime) -> SystemTime {
        now - self.least_age(now).min(since_1970(now))
    }
}

/// The time from 1970 to `t`; zero if `t` lies before.
pub(super) fn since_1970(t: SystemTime) -> Duration {
    t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
