//! Tells an operator of data that will lapse on a node that renews nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{caught, Result};
use crate::index::{new_owner, RenewItem};
use crate::log::Level;

use super::count::count;
use super::due::{is_due, last_due};
use super::lease::{with_lease, Lease};
use super::present::learn_epochs;
use super::{read_ledger, RenewalParts, PAGE};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The first look comes this long after the start.
const FIRST: Duration = Duration::from_secs(1);

/// The lines of configuration that let a node renew the blobs it stores, and the line for a node
/// that need not.
const RENEW: &str = "\"renewIntervalSeconds\": 3600";
const LEAVE: &str = "if another node renews this table, \"disableFlush\": true";

/// The log line at the start of a node that cannot renew, or does not; `None` if it does.
pub(crate) fn complaint(epochs: u32, epoch: Duration, interval: Duration) -> Option<String> {
    if epoch.is_zero() {
        return Some(format!(
            "this node cannot know when the data ends that it stores for {epochs} epoch{} at a time, and renews nothing: add \
             \"network\": \"mainnet\" (or \"testnet\") and {RENEW} to the entry of walrusds in Datastore.Spec; {LEAVE}",
            if epochs == 1 { "" } else { "s" }
        ));
    }
    interval.is_zero().then(|| {
        format!(
            "this node renews nothing, and what it stores is gone after {} days: add {RENEW} to the entry of walrusds \
             in Datastore.Spec; {LEAVE}",
            days(epoch.saturating_mul(epochs))
        )
    })
}

/// Whole days, or with one decimal if there are few.
fn days(time: Duration) -> String {
    let days = time.as_secs_f64() / 86_400.0;
    match days < 10.0 {
        true => format!("{days:.1}"),
        false => format!("{days:.0}"),
    }
}

/// Looks every few hours for blobs that end within the lead, on a node that renews nothing, until
/// stopped.
pub(crate) async fn watch(parts: Arc<RenewalParts>, stop: CancellationToken) {
    let owner = new_owner();
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = INTERVAL;
        // An index that does not answer is reported elsewhere.
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            found = caught(look(&parts, &owner)) => found,
        };
        if let Some(text) = looked.ok().and_then(|found| found.told()) {
            parts.log.push(Level::Error, text);
        }
    }
}

/// Blobs at which rows point and whose storage ends within the lead, or has ended.
#[derive(Debug, Default, PartialEq)]
struct Ending {
    /// Those that end within the lead.
    soon: u64,
    /// The first of them to end, and the time until then; `None` if that has passed.
    first: Option<(String, Option<Duration>)>,
    /// Those that have ended by the epochs that were seen.
    over: u64,
}

/// All blobs that end within the lead. Blobs of older versions and of Go nodes come into the ledger
/// by the pass that counts, which a node that renews nothing makes, too.
async fn look(parts: &RenewalParts, owner: &str) -> Result<Ending> {
    let lease = match parts.index.only_reads() {
        Some(_) => None,
        None => Lease::take(parts, owner).await?,
    };
    if let Some(lease) = lease {
        let counted = with_lease(parts, &lease, count(parts)).await;
        lease.give_back(parts).await;
        counted?;
    }
    learn_epochs(parts).await?;
    // A failure is no reason not to look: the figures are read again the next time.
    let _ = caught(read_ledger(parts)).await;
    let mut found = Ending::default();
    let last = last_due(parts);
    if let Some(last) = last {
        let last = i64::try_from(last).unwrap_or(i64::MAX);
        let mut after: Option<RenewItem> = None;
        loop {
            let page = parts.index.ending_by(last, after.as_ref(), PAGE).await?;
            after = page.last().filter(|_| page.len() >= PAGE).cloned();
            found.add(parts, page).await?;
            if after.is_none() {
                break;
            }
        }
    }
    // Blobs whose end epoch tells nothing.
    let before = parts.clock.now() + parts.lead;
    let mut after: Option<RenewItem> = None;
    loop {
        let due = parts.index.due_for_renewal(before, after.as_ref(), PAGE);
        let mut page = due.await?;
        after = page.last().filter(|_| page.len() >= PAGE).cloned();
        page.retain(|item| last.is_none() || item.end_epoch <= 0);
        found.add(parts, page).await?;
        if after.is_none() {
            return Ok(found);
        }
    }
}

impl Ending {
    /// Counts blobs in, which come in the order of their ends. Those without live blocks do not
    /// count.
    async fn add(&mut self, parts: &RenewalParts, mut page: Vec<RenewItem>) -> Result<()> {
        page.retain(|item| is_due(parts, item));
        let ids: Vec<String> = page.iter().map(|item| item.blob_id.clone()).collect();
        let live = parts.index.live(&ids).await?;
        let live = page.into_iter().zip(live).filter(|(_, l)| l.blocks > 0);
        let now = parts.clock.now();
        for (item, _) in live {
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            if parts.epoch_clock.is_over(end) {
                self.over += 1;
                continue;
            }
            self.soon += 1;
            self.first.get_or_insert_with(|| {
                let by_epoch = parts.epoch_clock.ends_at(now, end).filter(|_| end > 0);
                let at = by_epoch.unwrap_or(item.expires_at);
                (item.blob_id, at.duration_since(now).ok())
            });
        }
        Ok(())
    }

    /// The log line, if there is anything to tell.
    fn told(&self) -> Option<String> {
        let over = match self.over {
            0 => String::new(),
            n => format!(
                "the storage of {n} blob{} has ended, and blocks in the index lie in {}: walrusds check names them, and \
                 walrusds repair stores again what a journal or a cache still has",
                if n == 1 { "" } else { "s" },
                if n == 1 { "it" } else { "them" }
            ),
        };
        let Some((first, left)) = &self.first else {
            return (self.over > 0)
                .then(|| format!("{over}. This node renews nothing: add {RENEW} to the entry of walrusds in Datastore.Spec"));
        };
        let blobs = match self.soon {
            1 => "1 blob ends".to_owned(),
            n => format!("{n} blobs end"),
        };
        let when = match left {
            Some(left) => format!("in {} days", days(*left)),
            None => "at any moment".to_owned(),
        };
        let also = if self.over > 0 { ". Also, " } else { "" };
        Some(format!(
            "data is about to be lost: {blobs} soon, the first ({first}) {when}, and this node renews nothing: add {RENEW} \
             to the entry of walrusds in Datastore.Spec{also}{over}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_names_the_line_that_cures_it() {
        let day = Duration::from_secs(86_400);
        let blind = complaint(1, Duration::ZERO, Duration::ZERO).unwrap();
        assert!(blind.contains("1 epoch at") && blind.contains("\"network\": \"mainnet\""));
        let idle = complaint(26, 14 * day, Duration::ZERO).unwrap();
        assert!(idle.contains("after 364 days") && idle.contains(RENEW));
        assert!(complaint(3, day, Duration::ZERO)
            .unwrap()
            .contains("3.0 days"));
        assert_eq!(complaint(26, 14 * day, day), None);
    }
}
