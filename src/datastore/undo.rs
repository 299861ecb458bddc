//! Undo: brings deleted rows back, and removes those whose time is over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::puts::check_key;
use super::{Shared, WalrusDatastore};
use crate::backoff::jittered;
use crate::detached::Detached;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Deleted, DeletedRow, Index, KeyRange, KeyRecord, Usage};
use crate::log::{Level, Log};
use crate::upload::usage_of;

/// Rows that are listed, or brought back, at a time.
const PAGE: usize = 1_000;
/// Pause after each step of a round that removes rows: other writers come first.
const PURGE_PAUSE: Duration = Duration::from_millis(50);
/// How many steps lie between two notes of how far a round has come.
const PURGE_NOTED: u32 = 50;
/// The note itself: `at` and a key, or `done` and the time (seconds since 1970).
const PURGE_NOTE: &str = "undo.purge";
/// The first look comes about this long after the start, and then one each hour, or more often if
/// rows are kept for a short time only.
const PURGE_FIRST: Duration = Duration::from_secs(5);
const PURGE_LOOK: Duration = Duration::from_secs(3600);
/// The longest time between two rounds.
const PURGE_INTERVAL: Duration = Duration::from_secs(86_400);

/// Which deleted blocks are to be brought back: those that meet every condition that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeletedQuery {
    /// Deleted at this time or later, by the clock of the index.
    pub since: Option<SystemTime>,
    /// Deleted before this time.
    pub until: Option<SystemTime>,
    /// Under one of these keys; empty: under any key.
    pub keys: Vec<String>,
    /// Under a key that begins with this text.
    pub prefix: String,
}

impl DeletedQuery {
    fn admits(&self, found: &DeletedRow) -> bool {
        found.row.key.starts_with(&self.prefix)
            && self.since.is_none_or(|since| found.deleted_at >= since)
            && self.until.is_none_or(|until| found.deleted_at < until)
    }
}

/// What became of deleted blocks that were to be brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undeleted {
    /// Blocks that can be read again.
    pub back: Usage,
    /// Blocks that stay deleted since their blobs' storage is over, or is known to be gone.
    pub over: Usage,
    /// Blocks that needed nothing: they were put again since, or brought back by another call.
    pub live: Usage,
}

impl WalrusDatastore {
    /// Brings deleted blocks back, as long as the index keeps their rows (`keepDeletedSeconds` of
    /// the node that deleted them) and their blobs are stored. Nothing is uploaded. Blocks that
    /// were put again since stay as they are. After an error some blocks may be back; the same call
    /// may be made again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a key that no index takes and for an empty time range;
    /// [`ErrorKind::Index`].
    pub async fn undelete(&self, query: &DeletedQuery) -> Result<Undeleted> {
        let _call = self.enter()?;
        let shared = &self.shared;
        query.keys.iter().try_for_each(|key| check_key(key))?;
        check_key(&query.prefix)?;
        if let (Some(since), Some(until)) = (query.since, query.until) {
            if since >= until {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "the time range of an undelete is empty: its begin (since) does not lie before its end (until)",
                ));
            }
        }
        let mut sum = Undeleted::default();
        for keys in query.keys.chunks(PAGE) {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            keys.dedup();
            let found = shared.index.deleted(&keys).await?.into_iter().flatten();
            let found = found.filter(|found| query.admits(found));
            shared.undelete(found.collect(), &mut sum).await?;
        }
        if !query.keys.is_empty() {
            return Ok(sum);
        }
        let mut range = KeyRange::prefix(&query.prefix);
        loop {
            let list = shared
                .index
                .list_deleted(&range, query.since, query.until, PAGE);
            let page = list.await?;
            let Some(last) = page.last() else {
                return Ok(sum);
            };
            let (end, last) = (page.len() < PAGE, last.row.key.clone());
            shared.undelete(page, &mut sum).await?;
            if end {
                return Ok(sum);
            }
            range = range.after(&*last);
        }
    }
}

impl Shared {
    /// Brings these rows back, as far as possible, and adds to `sum` what became of them.
    async fn undelete(self: &Arc<Self>, found: Vec<DeletedRow>, sum: &mut Undeleted) -> Result<()> {
        let rows = found.into_iter().map(|found| found.row);
        let (mut rows, over): (Vec<KeyRecord>, Vec<_>) =
            rows.partition(|row| self.writes.is_alive(&row.record));
        sum.over = sum.over.plus(usage_of_all(&over));
        if rows.is_empty() {
            return Ok(());
        }
        let all = usage_of_all(&rows);
        // The statement may take effect although the caller has given up. So it runs to its end in
        // the background, and the keys stay locked until then.
        let shared = Arc::clone(self);
        let call = self.calls.token();
        let work = async move {
            let _call = call;
            let keys = rows.iter().map(|row| row.key.clone()).collect();
            let _until_done = shared.locks.lock(keys).await;
            if let Some(journal) = shared.writes.journal() {
                rows.retain(|row| journal.find(&row.key).is_none());
            }
            let back = shared.writes.bring_back(&rows).await?;
            rows.retain(|row| back.contains(&row.key));
            Ok::<_, Error>(usage_of_all(&rows))
        };
        let back = Detached::new(work).await?;
        sum.back = sum.back.plus(back);
        sum.live = sum.live.plus(all.minus(back));
        Ok(())
    }
}

fn usage_of_all(rows: &[KeyRecord]) -> Usage {
    let usages = rows.iter().map(|row| usage_of(Some(&row.record)));
    usages.fold(Usage::default(), Usage::plus)
}

/// Removes deleted rows whose time is over, now and then. Every node does so, also one that keeps
/// none itself: a row says how long it is kept. Nodes that do it at the same moment do no harm.
///
/// A round goes through all kept rows, in steps. How far it has come is noted in the index, so that
/// nodes which live for minutes carry it on, and nodes which live side by side share it.
pub(super) async fn purge(index: Arc<dyn Index>, log: Arc<Log>, stop: CancellationToken) {
    let interval = match index.keeps_deleted() {
        keep if keep.is_zero() => PURGE_INTERVAL,
        // A row stays for at most about an eighth of its time beyond it.
        keep => (keep / 8).clamp(Duration::from_secs(1), PURGE_INTERVAL),
    };
    let mut failed = false;
    // The first look comes early; the others as often as a round can become due.
    let mut wait = PURGE_FIRST.min(interval);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait / 2 + jittered(wait)) => {}
        }
        wait = interval.min(PURGE_LOOK);
        if index.only_reads().is_some() {
            continue;
        }
        let round = tokio::select! {
            () = stop.cancelled() => return,
            round = caught(purge_round(&*index, interval)) => round,
        };
        // One line for a row of failures: the next look tries again.
        if let (Err(e), false) = (&round, failed) {
            log.push(
                Level::Warn,
                format!("deleted rows whose time (keepDeletedSeconds) is over are not removed for now: {e}"),
            );
        }
        failed = round.is_err();
    }
}

/// Carries a round on that was begun, or begins one if the last one ended `interval` ago.
async fn purge_round(index: &dyn Index, interval: Duration) -> Result<()> {
    let note = index.note(PURGE_NOTE).await?.unwrap_or_default();
    let mut after = match note.split_once(' ') {
        Some(("at", key)) => key.to_owned(),
        Some(("done", at)) if !is_over(at, interval) => return Ok(()),
        _ => String::new(),
    };
    for step in 1_u32.. {
        let purged = index.purge_deleted(&after, PAGE).await?;
        let Some(last) = purged.last else {
            break;
        };
        after = last;
        if step.is_multiple_of(PURGE_NOTED) {
            index
                .set_note(PURGE_NOTE, Some(&format!("at {after}")))
                .await?;
        }
        tokio::time::sleep(PURGE_PAUSE).await;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let done = format!("done {}", now.unwrap_or_default().as_secs());
    index.set_note(PURGE_NOTE, Some(&done)).await
}

/// Whether `interval` has passed since a moment (seconds since 1970, as text). A moment in the
/// future was noted under a wrong clock.
fn is_over(at: &str, interval: Duration) -> bool {
    let at = at.parse().ok().map(Duration::from_secs);
    let at = at.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(at));
    let since = at.and_then(|at| SystemTime::now().duration_since(at).ok());
    since.is_none_or(|since| since >= interval)
}
