//! How far a standby has to be for its answer to count.
//!
//! **Problem.** A standby is behind its primary by an unknown time. Its own clock and its own view
//! of the primary say little about that time when the stream between the two is cut, and one name
//! in the URL may stand for several standbys that are behind by different times.
//!
//! **Outline.** While reads go to standbys, a task notes the position of the primary in its log of
//! writes again and again ([`Follow::note`]). Everything that the primary had committed by then is
//! before that position. Each statement that is sent to a standby has a question for the standby's
//! own position in front of it, on the same connection ([`super::call::query`]). Its answer counts
//! if that position has reached one that the primary had lately ([`Follow::required`]). So no clock
//! but this node's is read, and it does not matter which server answered.
//!
//! **Invariants.**
//! - A position is noted with a time before the primary was asked for it.
//! - Positions are kept in the order of their times, and so of their values: only the primary gives
//!   them.
//! - No standby is ahead of its primary. If one was, it follows another log: the primary was
//!   restored to an earlier moment, a failover has lost the latest part of the log, or the standby
//!   is of another cluster. Then no answer of a standby counts until the primary has passed it, and
//!   an answer counts after that only for positions that were noted since.
//! - An answer counts only if the standby has all that this node wrote before the read began, and
//!   none counts while this node writes.
//! - The answer of a server that is no standby does not count. It may be a standby that was
//!   promoted while the primary goes on: its log goes its own way, so its position says nothing. If
//!   it is the primary, the index on the primary finds it.
//! - While the primary does not answer, a standby may be behind by more than the limit: nothing
//!   that it has can be compared with anything newer. [`Follow::is_silent`] says so.
//!
//! **Locks.** One, held for no await.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::query::Query;
use super::{Answer, Row};
use crate::backoff::doubled;
use crate::error::{Error, ErrorKind, Result};

/// Positions to keep: more than are noted within the shortest limit.
const MOST_NOTED: usize = 256;
/// For how long after a read the positions of the primary are noted.
const NOTED_FOR: Duration = Duration::from_secs(60);
/// How long standbys are left alone after one was behind, or has failed once. Each further failure
/// doubles the time, up to [`LONGEST_REST`].
const REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long reads go to the primary, because standbys are behind, before the operator is told.
const TOLD_AFTER: Duration = Duration::from_secs(60);

/// The longest header of a page of the log: the position after a record that fills its page is
/// before the header of the next page on a standby, and may be behind it on the primary.
const PAGE_HEADER: i64 = 40;

/// A position in the log of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub standby: bool,
    at: i64,
    page: i64,
}

impl Position {
    /// The question for the position up to which a server has all changes.
    pub fn query() -> Query {
        // The primary's own changes are visible when they are in its log, and before they are on
        // its disk.
        Query::hot(
            "SELECT pg_catalog.pg_is_in_recovery(), ((CASE WHEN pg_catalog.pg_is_in_recovery() \
             THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END) \
             OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::bigint, \
             pg_catalog.current_setting('wal_block_size')::bigint"
                .into(),
        )
    }

    /// Reads the answer to [`query`](Self::query).
    pub fn read(rows: &[Row]) -> Answer<Option<Position>> {
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let (standby, page) = (row.try_get(0)?, row.try_get(2)?);
        let at: Option<i64> = row.try_get(1)?;
        Ok(at.map(|at| Position { standby, at, page }))
    }

    /// Whether all changes before `other` are before this position.
    fn has(self, other: i64) -> bool {
        let between_pages = self.page > 0 && self.at % self.page == 0;
        self.at >= other || between_pages && other - self.at <= PAGE_HEADER
    }
}

/// The smallest position that a standby must have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Required {
    /// Any position: the primary does not answer, and this node has written nothing.
    Nothing,
    At(i64),
}

impl Required {
    /// Whether the answer of a server at this position counts.
    pub fn is_met(self, by: Position) -> bool {
        match self {
            Required::Nothing => true,
            Required::At(position) => by.has(position),
        }
    }
}

/// See the module.
pub(super) struct Follow {
    max_lag: Duration,
    pub position: Query,
    state: Mutex<State>,
    reading: Notify,
}

#[derive(Default)]
struct State {
    /// Positions of the primary, and times before they were asked for.
    noted: VecDeque<(Instant, i64)>,
    silent: bool,
    told_silent: bool,
    /// Writes of this node that are under way.
    writing: usize,
    /// The end of its latest write.
    wrote: Option<Instant>,
    last_read: Option<Instant>,
    rest_until: Option<Instant>,
    /// Failures of standbys one after another.
    failures: u32,
    /// The latest answer did not count.
    was_behind: bool,
    /// Since when no answer of a standby has counted.
    behind_since: Option<Instant>,
    told: bool,
    /// Standbys have failed, without an answer that counted.
    failing: Option<Failing>,
    /// An answer came from a server that is no standby.
    met_primary: bool,
    /// The largest position of an answer, and when it had come.
    furthest: Option<(Instant, i64)>,
    /// The position of a standby that was ahead of the primary.
    astray: Option<i64>,
    told_astray: bool,
}

struct Failing {
    since: Instant,
    /// The latest reason.
    why: String,
    told: bool,
}

impl Failing {
    fn begin() -> Failing {
        Failing {
            since: Instant::now(),
            why: String::new(),
            told: false,
        }
    }
}

impl Follow {
    pub fn new(max_lag: Duration) -> Follow {
        Follow {
            max_lag,
            position: Position::query(),
            state: Mutex::default(),
            reading: Notify::new(),
        }
    }

    /// The time between two notes of the primary's position.
    pub fn interval(&self) -> Duration {
        let most = Duration::from_secs(1);
        (self.max_lag / 4).clamp(Duration::from_millis(50), most)
    }

    /// The time that the primary has to tell its position.
    pub fn limit(&self) -> Duration {
        let most = Duration::from_secs(2);
        (self.max_lag / 2).clamp(Duration::from_millis(500), most)
    }

    /// Waits until there are reads, if there were none lately.
    pub async fn has_reads(&self) {
        loop {
            let waiting = self.reading.notified();
            let last = self.state.lock().last_read;
            if last.is_some_and(|last| last.elapsed() < NOTED_FOR) {
                return;
            }
            waiting.await;
        }
    }

    /// Notes a position of the primary, which was asked for at `asked`.
    pub fn note(&self, asked: Instant, position: Position) {
        if position.standby {
            return; // a proxy led the question astray
        }
        let mut state = self.state.lock();
        state.silent = false;
        state.told_silent = false;
        let before = state.furthest.filter(|(come, _)| *come < asked);
        if let Some((_, at)) = before.filter(|(_, at)| *at > position.at) {
            state.noted.clear();
            state.astray = Some(at);
        }
        if state.astray.is_some_and(|at| at >= position.at) {
            return;
        }
        if state.astray.take().is_some() {
            state.furthest = None;
            state.told_astray = false;
        }
        if state.noted.len() >= MOST_NOTED {
            state.noted.pop_front();
        }
        state.noted.push_back((asked, position.at));
    }

    /// Notes that the primary gave no answer.
    pub fn silent(&self) {
        self.state.lock().silent = true;
    }

    /// Whether the operator is to be told that the primary is silent; once until it answers again.
    pub fn take_silent(&self) -> bool {
        let mut state = self.state.lock();
        state.silent && !std::mem::replace(&mut state.told_silent, true)
    }

    pub fn is_silent(&self) -> bool {
        self.state.lock().silent
    }

    /// The position that a standby must have reached for its answer to count; `None` if none can
    /// count now, or standbys are left alone. A caller that is about to read asks.
    pub fn required(&self) -> Option<Required> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let idle = state.last_read.replace(now);
        if idle.is_none_or(|last| now.duration_since(last) >= NOTED_FOR / 2) {
            self.reading.notify_waiters();
        }
        if state.writing > 0 || state.astray.is_some() {
            return None;
        }
        let wrote = state.wrote;
        let own = |&(asked, _): &(Instant, i64)| wrote.is_none_or(|wrote| asked > wrote);
        if state.silent {
            let oldest = state.noted.iter().find(|note| own(note));
            return match oldest {
                // Without writes of this node nothing is asked of a standby that is all there is.
                _ if wrote.is_none() => Some(Required::Nothing),
                Some(&(_, at)) => Some(Required::At(at)),
                None => None,
            };
        }
        if state.rest_until.is_some_and(|until| until > now) {
            return None;
        }
        let lately = |&(asked, _): &(Instant, i64)| now.duration_since(asked) <= self.max_lag;
        let mut fitting = state.noted.iter().filter(|note| lately(note) && own(note));
        fitting.next().map(|&(_, at)| Required::At(at))
    }

    /// Notes the position at which a server answered. Returns an error if the answer does not
    /// count.
    pub fn judge(&self, required: Required, position: Option<Position>) -> Result<()> {
        let mut state = self.state.lock();
        if position.is_some_and(|position| !position.standby) {
            state.met_primary = true;
            return Err(no_standby());
        }
        if let Some(Position { at, .. }) = position {
            if state.furthest.is_none_or(|(_, furthest)| furthest < at) {
                state.furthest = Some((Instant::now(), at));
            }
        }
        match position.filter(|position| required.is_met(*position)) {
            Some(_) => {
                state.behind_since = None;
                state.told = false;
                state.failures = 0;
                state.failing = None;
                Ok(())
            }
            None => {
                state.behind_since.get_or_insert_with(Instant::now);
                state.was_behind = true;
                Err(behind())
            }
        }
    }

    /// Leaves standbys alone for a while: one has failed for this reason, or was behind. One that
    /// keeps silent would otherwise hold up lookups again and again.
    pub fn rest(&self, why: &str) {
        let mut state = self.state.lock();
        let rest = match std::mem::take(&mut state.was_behind) {
            true => REST,
            false => {
                let failed = state.failures;
                state.failures = failed.saturating_add(1);
                let failing = state.failing.get_or_insert_with(Failing::begin);
                failing.why = why.to_owned();
                doubled(REST, failed, LONGEST_REST)
            }
        };
        state.rest_until = Some(Instant::now() + rest);
    }

    /// Whether an answer came from a server that is no standby, since the last call.
    pub fn take_met_primary(&self) -> bool {
        std::mem::take(&mut self.state.lock().met_primary)
    }

    /// Whether standbys have been behind for so long that the operator is to be told; once.
    pub fn take_behind(&self) -> bool {
        let mut state = self.state.lock();
        let long = |since: Instant| since.elapsed() >= TOLD_AFTER;
        let tell = state.behind_since.is_some_and(long) && !state.told;
        state.told |= tell;
        tell
    }

    /// The latest reason, if standbys have failed for so long that the operator is to be told; once
    /// until an answer counts again.
    pub fn take_failing(&self) -> Option<String> {
        let mut state = self.state.lock();
        let failing = state.failing.as_mut()?;
        let tell = failing.since.elapsed() >= TOLD_AFTER && !failing.told;
        failing.told |= tell;
        tell.then(|| failing.why.clone())
    }

    /// Whether the operator is to be told that a standby is ahead of the primary; once until the
    /// primary has passed it.
    pub fn take_astray(&self) -> bool {
        let mut state = self.state.lock();
        state.astray.is_some() && !std::mem::replace(&mut state.told_astray, true)
    }

    /// Announces a write of this node, until the result is dropped.
    pub fn writing(&self) -> Writing<'_> {
        self.state.lock().writing += 1;
        Writing(self)
    }
}

fn no_standby() -> Error {
    Error::retryable(
        ErrorKind::Index,
        "index in Postgres: the server that was asked as a standby is none (any more)",
    )
}

pub(super) fn behind() -> Error {
    Error::retryable(
        ErrorKind::Index,
        "index in Postgres: the standby is behind the primary by more than standbyMaxLagSeconds",
    )
}

/// A write of this node that is under way.
pub(super) struct Writing<'a>(&'a Follow);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.writing -= 1;
        state.wrote = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests;
