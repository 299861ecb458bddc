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
/// Rows whose time is over that are removed by one statement.
const PURGE: usize = 1_000;
/// Pause between two such statements: other writers come first.
const PURGE_PAUSE: Duration = Duration::from_millis(50);
/// The first look for rows whose time is over comes about this long after the start, so that nodes
/// which live for minutes remove rows, too.
const PURGE_FIRST: Duration = Duration::from_secs(5);
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);

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
    /// Brings deleted blocks back, as long as the index keeps their rows (`keepDeletedSeconds` of the
    /// node that deleted them) and their blobs are stored. Nothing is uploaded. Blocks that were put
    /// again since stay as they are. After an error some blocks may be back; the same call may be
    /// made again.
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
        let work = async move {
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
pub(super) async fn purge(index: Arc<dyn Index>, log: Arc<Log>, stop: CancellationToken) {
    let keep = index.keeps_deleted();
    // A row stays for at most an eighth of its time beyond it.
    let interval = match keep.is_zero() {
        true => PURGE_INTERVAL,
        false => (keep / 8).clamp(Duration::from_secs(1), PURGE_INTERVAL),
    };
    let mut wait = interval.min(PURGE_FIRST);
    let mut failed = false;
    loop {
        wait = wait / 2 + jittered(wait);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        if index.only_reads().is_some() {
            wait = interval;
            continue;
        }
        let purged = tokio::select! {
            () = stop.cancelled() => return,
            purged = caught(index.purge_deleted(PURGE)) => purged,
        };
        let more = matches!(&purged, Ok(removed) if *removed >= PURGE as u64);
        wait = if more { PURGE_PAUSE } else { interval };
        // One line for a row of failures: the next look tries again.
        if let (Err(e), false) = (&purged, failed) {
            log.push(
                Level::Warn,
                format!("deleted rows whose time (keepDeletedSeconds) is over are not removed for now: {e}"),
            );
        }
        failed = purged.is_err();
    }
}
