//! Reads from standbys, for a node that only retrieves ([`StandbyReads`]).
//!
//! **Problem.** A standby is near and idle, and behind its primary. A row that it lacks may exist,
//! and one that it has may be deleted.
//!
//! **Outline.** The index has a second one beside it, whose connections look for standbys. Lookups
//! and pages are sent there. An answer counts only if the standby is not too far behind
//! ([`super::follow`]). A key without a row there is asked of the primary, unless the node is told
//! to trust a miss. All other methods, also those by which a write decides, ask the primary alone.
//!
//! | | standby in time | standby behind | standby down |
//! |---|---|---|---|
//! | primary up | standby, misses from the primary | primary | primary |
//! | primary down | standby, misses fail; pages fail | as on the left | everything fails |
//!
//! **Invariants.** A key is reported as unknown only by the primary (or by a standby whose misses
//! are trusted). A page is taken from a standby only if that is in time, or misses are trusted.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::timeout;

use super::call::{self, Call, Repeat};
use super::error;
use super::follow::{Follow, Position};
use super::{PostgresIndex, PostgresParts};
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Gate;
use crate::index::{KeyRange, KeyRecord, ListItem, Record, Replica, Rows, Writing};

/// Time for a lookup on a standby. It is short, because the primary can answer too.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);
/// How often a node whose reads go to the primary, for want of a standby, looks for one.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// How a node that only retrieves reads from standbys, if the URL has
/// `target_session_attrs=prefer-standby`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StandbyReads {
    /// A standby's answer counts only if it has all that the primary had committed this long ago.
    /// While the primary does not answer, rows that the standby has count nevertheless.
    pub max_lag: Duration,
    /// Whether a key without a row on a standby counts as unknown. Otherwise the primary is asked.
    pub trust_misses: bool,
}

impl StandbyReads {
    /// With this greatest lag, and misses that the primary confirms.
    #[must_use]
    pub const fn new(max_lag: Duration) -> Self {
        StandbyReads {
            max_lag,
            trust_misses: false,
        }
    }
}

setters! { StandbyReads {
    with_trust_misses(trust_misses: bool);
} }

/// The index on standbys, beside that on the primary.
pub(super) struct Near {
    index: PostgresIndex,
    follow: Arc<Follow>,
    trust_misses: bool,
}

impl Near {
    pub fn new(index: PostgresIndex, follow: Arc<Follow>, reads: StandbyReads) -> Near {
        Near {
            index,
            follow,
            trust_misses: reads.trust_misses,
        }
    }

    pub fn index(&self) -> &PostgresIndex {
        &self.index
    }

    /// Starts to note the positions of the primary, until that index is closed or dropped.
    pub fn start(&self, primary: &Arc<PostgresParts>, gate: &Arc<Gate>) {
        let (primary, near) = (Arc::downgrade(primary), Arc::downgrade(&self.index.inner));
        let task = watch(self.follow.clone(), primary, near, Arc::downgrade(gate));
        tokio::spawn(task);
    }

    /// Whether the primary has to be asked for a key. A staged block is about to move, and its
    /// bytes are on the primary.
    fn is_unsure(&self, row: Option<&Record>) -> bool {
        row.map_or(!self.trust_misses, |row| row.staged)
    }

    /// The rows that a standby has for the keys, if its answer counts.
    async fn rows(&self, keys: &[String]) -> Option<Vec<Option<Record>>> {
        self.follow.required()?;
        let asked = timeout(LOOKUP_LIMIT, self.index.get_many(keys));
        match asked.await {
            Ok(Ok(rows)) => Some(rows),
            Ok(Err(e)) => {
                self.follow.rest(e.message());
                None
            }
            Err(_) => {
                self.follow.rest("a standby does not answer");
                None
            }
        }
    }

    /// Runs a read of several rows on a standby, if its answer counts.
    async fn read<T>(&self, read: impl std::future::Future<Output = Result<T>>) -> Option<T> {
        let in_time = || self.trust_misses || !self.follow.is_silent();
        if !in_time() {
            return None;
        }
        self.follow.required()?;
        match read.await {
            Ok(rows) => in_time().then_some(rows),
            Err(e) => {
                self.follow.rest(e.message());
                None
            }
        }
    }
}

/// Notes the positions of the primary while there are reads, and looks for a standby again if there
/// was none.
async fn watch(
    follow: Arc<Follow>,
    primary: Weak<PostgresParts>,
    near: Weak<PostgresParts>,
    gate: Weak<Gate>,
) {
    let mut looked = Instant::now();
    loop {
        let open = async {
            // Dropped or closed: the check is due at least now and then.
            while gate.upgrade().is_some_and(|gate| gate.enter().is_ok()) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            () = follow.has_reads() => {}
            () = open => return,
        }
        let (Some(primary), Some(near), Some(gate)) =
            (primary.upgrade(), near.upgrade(), gate.upgrade())
        else {
            return;
        };
        let Ok(pass) = gate.enter() else { return };
        let call = Call {
            what: "asking the primary how far its log is",
            pass: Arc::new(pass),
            repeat: Repeat::Harmless,
            limit: follow.limit(),
            follow: None,
        };
        let asked = Instant::now();
        let notify = |text| primary.opener.connector.notify(text);
        match position(&primary, &follow, &call).await {
            Ok(position) => follow.note(asked, position),
            Err(e) => {
                follow.silent();
                if follow.take_silent() {
                    notify(format!(
                        "{}: lookups go on at standbys, and fail for blocks that these do not have",
                        e.message()
                    ));
                }
            }
        }
        drop(call);
        if follow.take_behind() {
            notify(
                "index in Postgres: the standbys are behind by more than standbyMaxLagSeconds for a \
                 minute: lookups go to the primary. See to the replication"
                    .into(),
            );
        }
        if let Some(why) = follow.take_failing() {
            notify(format!(
                "index in Postgres: no standby has given an answer that counts for a minute, though the URL says \
                 target_session_attrs=prefer-standby: lookups go to the primary. The latest reason: {why}"
            ));
        }
        if follow.take_astray() {
            notify(
                "index in Postgres: a standby is ahead of the primary, so it does not follow it: \
                 lookups go to the primary. Build the standby anew, or take it out of the URL"
                    .into(),
            );
        }
        if follow.take_met_primary() && looked.elapsed() >= LOOK_AGAIN {
            looked = Instant::now();
            // The next lookup connects anew, and prefers a standby.
            near.lookups.close();
        }
        drop((primary, near, gate));
        tokio::time::sleep(follow.interval()).await;
    }
}

async fn position(primary: &PostgresParts, follow: &Follow, call: &Call) -> Result<Position> {
    let answer = call::query(&*primary.lookups, call, &follow.position, &[].into()).await?;
    let read = answer.and_then(|rows| Position::read(&rows));
    let position = read.map_err(|e| error::statement(call.what, e))?;
    position.ok_or_else(|| {
        Error::new(
            ErrorKind::Index,
            "index in Postgres: the primary told no position of its log",
        )
    })
}

/// The error of a key that no standby has, if the primary could not be asked.
fn unconfirmed(error: &Error) -> Error {
    error
        .clone()
        .context("not found on a standby, and the primary could not be asked")
}

impl PostgresIndex {
    fn near(&self) -> Result<&Near> {
        let none = || Error::new(ErrorKind::Internal, "this index reads from no standby");
        self.near.as_deref().ok_or_else(none)
    }
}

#[async_trait]
impl Replica for PostgresIndex {
    async fn get_each(&self, keys: &[String]) -> Result<Vec<Result<Option<Record>>>> {
        let near = self.near()?;
        let mut first = near.rows(keys).await;
        let mut failed = None;
        if first.is_none() {
            match self.get_many(keys).await {
                Ok(rows) => return Ok(rows.into_iter().map(Ok).collect()),
                Err(e) if !e.is_retryable() => return Err(e),
                Err(e) => {
                    near.follow.silent();
                    first = near.rows(keys).await;
                    failed = Some(e);
                }
            }
        }
        let rows = match (first, &failed) {
            (Some(rows), _) => rows,
            (None, Some(e)) => return Err(e.clone()),
            (None, None) => return Err(super::follow::behind()),
        };
        let unsure = keys.iter().zip(&rows);
        let unsure = unsure.filter(|(_, row)| near.is_unsure(row.as_ref()));
        let unsure: Vec<String> = unsure.map(|(key, _)| key.clone()).collect();
        if unsure.is_empty() {
            return Ok(rows.into_iter().map(Ok).collect());
        }
        let asked = match failed {
            Some(e) => Err(e),
            None => self.get_many(&unsure).await,
        };
        let mut confirmed = match asked {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(unconfirmed(&e)); unsure.len()],
        }
        .into_iter();
        let answer = |row: Option<Record>| match near.is_unsure(row.as_ref()) {
            true => confirmed.next().unwrap_or(Ok(None)),
            false => Ok(row),
        };
        Ok(rows.into_iter().map(answer).collect())
    }

    async fn page(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        let near = self.near()?;
        match near.read(near.index.list(range, offset, limit)).await {
            Some(page) => Ok(page),
            None => self.list(range, offset, limit).await,
        }
    }

    async fn neighbours(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let near = self.near()?;
        match near.read(near.index.rows_from(blob_id, from, limit)).await {
            Some(rows) => Ok(rows),
            None => self.rows_from(blob_id, from, limit).await,
        }
    }

    fn writing(&self) -> Writing<'_> {
        Box::new(self.near.as_ref().map(|near| near.follow.writing()))
    }
}
