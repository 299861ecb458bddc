//! What was given up does not happen afterwards.
//!
//! A statement that nobody waits for any more may still lie in the socket of a server that stands
//! still, and be carried out after later writes of the same key when the server goes on. So every
//! statement that writes tells until when it may be carried out, in the server's own time: one
//! that comes later fails as a whole. That time is never after the moment at which its caller is
//! told that it failed.
//!
//! It is derived from a [`Reading`] of the server's clock on the same connection, so clocks need
//! not agree, and no state is left in the session. The server must not set its clock back in
//! between, nor have it stand still with itself (a paused virtual machine whose time is not set
//! right when it goes on).

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::Client;

use super::error::{PgError, LATE};

/// A reading older than this is renewed at the next occasion.
const REFRESH: Duration = Duration::from_secs(60);
/// A reading older than this is not used any more.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How much clocks may drift apart: 1/1000, twice what an operating system slews a clock at most.
const DRIFT: u32 = 1000;
/// For small corrections of the server's clock.
const MARGIN: Duration = Duration::from_secs(1);

/// True, or the error [`LATE`] where the time in parameter `n` has come. For RETURNING: evaluated
/// for each row when it is locked. Whoever writes the row later then waits for this transaction, so
/// that a server which stops after this does no harm either.
pub(super) fn when_locked(n: usize) -> String {
    in_time("clock_timestamp()", n)
}

/// The same, evaluated when the statement begins: for engines (Citus) that take no function like
/// `clock_timestamp()` there.
pub(super) fn when_begun(n: usize) -> String {
    in_time("statement_timestamp()", n)
}

/// An error, not a condition, so that nothing of the statement is left. The cast makes it: SQL has
/// no other way to raise one that every engine knows.
fn in_time(clock: &str, n: usize) -> String {
    format!("CAST(CASE WHEN {clock} < ${n} THEN 'true' ELSE '{LATE}' END AS boolean)")
}

/// What the server's clock showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    shown: SystemTime,
    /// When its answer was here: it was shown then or before.
    seen: Instant,
}

impl Reading {
    /// One round trip.
    pub async fn take(client: &Client) -> Result<Reading, PgError> {
        let none: &[(&(dyn ToSql + Sync), Type)] = &[];
        let rows = client.query_typed("SELECT clock_timestamp()", none).await?;
        let seen = Instant::now();
        let shown = match rows.first() {
            Some(row) => row.try_get(0)?,
            None => SystemTime::UNIX_EPOCH, // everything is too late
        };
        Ok(Reading { shown, seen })
    }

    /// Whether it can be used at all.
    pub fn is_usable(&self) -> bool {
        self.seen.elapsed() < MAX_AGE
    }

    /// Whether to take a new one at the next occasion.
    pub fn is_old(&self) -> bool {
        self.seen.elapsed() >= REFRESH
    }

    /// Until when, in the server's time, a statement may be carried out that is given up here at
    /// `deadline`.
    pub fn until(&self, deadline: Instant) -> SystemTime {
        let ahead = deadline.saturating_duration_since(self.seen);
        let left = deadline.saturating_duration_since(Instant::now());
        let early = ahead / DRIFT + MARGIN.min(left / 10);
        // `shown` is no later than the server's time at `seen`, so this is none than that at `deadline`.
        (self.shown + ahead)
            .checked_sub(early)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_after_the_deadline_and_not_much_before() {
        let now = Instant::now();
        for offset in [0_u64, 3_600, 86_400 * 365] {
            for age in [0, 1, 59, 3_500] {
                for limit in [1, 30, 600] {
                    let (age, limit) = (Duration::from_secs(age), Duration::from_secs(limit));
                    let Some(seen) = now.checked_sub(age) else {
                        continue; // the machine has just started
                    };
                    let at_seen =
                        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + offset);
                    let reading = Reading {
                        shown: at_seen,
                        seen,
                    };
                    let truth = at_seen + age + limit;
                    let early = truth.duration_since(reading.until(now + limit)).unwrap();
                    assert!(early >= MARGIN.min(limit / 20), "{early:?} of {limit:?}");
                    let bound = limit / 10 + (age + limit) / 500;
                    assert!(early <= bound, "{early:?} of {limit:?}, {age:?} old");
                }
            }
        }
    }

    #[test]
    fn a_deadline_that_is_over_is_over() {
        let now = Instant::now();
        let reading = Reading {
            shown: SystemTime::UNIX_EPOCH,
            seen: now,
        };
        assert!(reading.until(now) <= SystemTime::UNIX_EPOCH);
        let before = now.checked_sub(Duration::from_millis(1)).unwrap_or(now);
        assert!(reading.until(before) <= SystemTime::UNIX_EPOCH);
    }
}
