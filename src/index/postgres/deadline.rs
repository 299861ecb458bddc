//! Deadlines for writes: a write does not happen after its caller was told that its time is over.
//!
//! **Problem.** A statement that its caller no longer waits for may still lie in the socket of a
//! server that stands still, and be carried out after later writes of the same key when the server
//! goes on.
//! **Outline.** A statement that puts, moves or deletes rows, or changes leases or the running
//! total, is bounded ([`super::query::Query::bounded`]): it carries the time until which it may be
//! carried out, in the server's own time. A statement that comes later fails as a whole. The time
//! is derived from a [`Reading`] of the server's clock on the same connection, so the clocks of
//! node and server need not agree, and no state is left in the session. The statements for notes
//! and for the end of a renewed blob (which never moves an end backwards) are not bounded.
//!
//! **Invariants.**
//! - That time is never after the moment at which the caller is told that its write failed.
//! - This holds as long as the server does not set its clock back between the reading and the
//!   statement, and its clock does not stand still together with the server (a paused virtual
//!   machine whose time is not corrected when it goes on).
//!
//! **Locks.** None here: a connection keeps its reading ([`super::conn`]).

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::Client;

use super::error::{PgError, LATE};

/// A reading older than this is renewed at the next statement that writes.
const REFRESH: Duration = Duration::from_secs(60);
/// A reading older than this is not used any more.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How much clocks may drift apart: 1/1000, twice the rate at which an operating system slews a
/// clock at most.
const DRIFT: u32 = 1000;
/// How much earlier than its caller's a statement's time is over.
const MARGIN: Duration = Duration::from_secs(1);

/// An expression that is true, or the error [`LATE`] once the time in parameter `n` has come. It
/// stands last in the outer SELECT of a statement whose parts change rows, over an aggregate of
/// what they return: then it is evaluated when every row is locked. A later writer of a row waits
/// for this transaction, so a server that stops after the evaluation does no harm either.
///
/// The call of `nextval` is for Citus, which hands a statement about one shard to the shard's
/// worker as a whole, where another clock would be read, but keeps a statement whose outer SELECT
/// calls `nextval` to the coordinator. Its argument is always NULL, which no planner can know
/// before, and with NULL the function, being strict, is never called.
pub(super) fn when_locked(n: usize) -> String {
    let never = "CASE WHEN clock_timestamp() IS NULL THEN 0 END::oid::regclass";
    let clock = format!("nextval({never}) IS NULL AND clock_timestamp()");
    in_time(&clock, n)
}

/// The same, evaluated when the statement begins: for statements about one row of a companion.
pub(super) fn when_begun(n: usize) -> String {
    in_time("statement_timestamp()", n)
}

/// The expression raises an error instead of filtering rows, so that no part of the statement takes
/// effect. The cast raises it: SQL has no other way to raise an error that every engine knows.
fn in_time(clock: &str, n: usize) -> String {
    format!("CAST(CASE WHEN {clock} < ${n} THEN 'true' ELSE '{LATE}' END AS boolean)")
}

/// A reading of the server's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    shown: SystemTime,
    /// When the answer had arrived: the clock showed `shown` then or before.
    seen: Instant,
}

impl Reading {
    /// Reads the clock. One round trip.
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

    /// Whether the reading can still be used.
    pub fn is_usable(&self) -> bool {
        self.seen.elapsed() < MAX_AGE
    }

    /// Whether to take a new reading at the next occasion.
    pub fn is_old(&self) -> bool {
        self.seen.elapsed() >= REFRESH
    }

    /// The server's time until which a statement may be carried out whose caller gives it up at
    /// `deadline`.
    pub fn until(&self, deadline: Instant) -> SystemTime {
        let ahead = deadline.saturating_duration_since(self.seen);
        let left = deadline.saturating_duration_since(Instant::now());
        let early = ahead / DRIFT + MARGIN.min(left / 10);
        // The server's clock showed `shown` at `seen` or before. So the result is not after its
        // time at `deadline`.
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
