//! Tells an operator of data that will lapse on a node that renews nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{caught, Result};
use crate::index::RenewItem;
use crate::log::Level;

use super::count::count;
use super::due::is_due;
use super::lease::{new_owner, with_lease, LEASE, LEASE_TTL};
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
            due = caught(look(&parts, &owner)) => due,
        };
        let now = parts.clock.now();
        if let Some(text) = looked.ok().and_then(|due| ending(&due, now)) {
            parts.log.push(Level::Error, text);
        }
    }
}

/// The first blobs that end within the lead. Blobs of older versions and of Go nodes come into the
/// ledger by the pass that counts, which a node that renews nothing makes, too.
async fn look(parts: &RenewalParts, owner: &str) -> Result<Vec<RenewItem>> {
    let taken = Instant::now();
    if parts.index.only_reads().is_none() && parts.index.try_lease(LEASE, owner, LEASE_TTL).await? {
        let counted = with_lease(parts, owner, taken, count(parts)).await;
        parts.index.release_lease(LEASE, owner).await?;
        counted?;
    }
    learn_epochs(parts).await?;
    // A failure is no reason not to look: the figures are read again the next time.
    let _ = caught(read_ledger(parts)).await;
    let before = parts.clock.now() + parts.lead;
    let mut due = parts.index.due_for_renewal(before, None, PAGE).await?;
    due.retain(|item| is_due(parts, item));
    let ids: Vec<String> = due.iter().map(|item| item.blob_id.clone()).collect();
    let live = parts.index.live(&ids).await?;
    let live = due
        .into_iter()
        .zip(live)
        .filter(|(_, live)| live.blocks > 0);
    Ok(live.map(|(item, _)| item).collect())
}

/// The log line about blobs that end soon, the first one first.
fn ending(due: &[RenewItem], now: SystemTime) -> Option<String> {
    let first = due.first()?;
    let blobs = match due.len() {
        1 => "1 blob ends".to_owned(),
        PAGE => format!("{PAGE} blobs or more end"),
        n => format!("{n} blobs end"),
    };
    let when = match first.expires_at.duration_since(now) {
        Ok(left) => format!("in {} days", days(left)),
        Err(ago) => format!("{} days ago", days(ago.duration())),
    };
    Some(format!(
        "data is about to be lost: {blobs} soon, the first ({}) {when}, and this node renews nothing: add {RENEW} to \
         the entry of walrusds in Datastore.Spec",
        first.blob_id
    ))
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
