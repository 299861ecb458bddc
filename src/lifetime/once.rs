//! A round at an operator's request, under the lease of the rounds that nodes make.

use std::future::Future;
use std::time::{Duration, SystemTime};

use super::lease::{with_lease, Lease, LEASE_TTL};
use super::present::learn_epochs;
use super::repack::{repack, Repacked};
use super::{round, shed, RenewalParts, Rounds, ROUND_NOTE};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::new_owner;
use crate::log::Level;
use crate::metrics::Metrics;

/// When a node ended the last round.
pub(crate) async fn last_round(parts: &RenewalParts) -> Result<Option<SystemTime>> {
    let note = parts.index.note(ROUND_NOTE).await?;
    let seconds = note.and_then(|note| note.parse().ok());
    let after_1970 = seconds.map(Duration::from_secs);
    Ok(after_1970.and_then(|after| SystemTime::UNIX_EPOCH.checked_add(after)))
}

/// Renews all that is due now. Ends early when `stop` is ready.
pub(crate) async fn renew_once(parts: &RenewalParts, stop: impl Future<Output = ()>) -> Result<()> {
    let lease = take(parts).await?;
    let mut state = Rounds {
        at_once: true,
        ..Rounds::default()
    };
    let work = round(parts, &lease, &mut state);
    let done = until(stop, work).await;
    lease.give_back(parts).await;
    done
}

/// Carries the live blocks of blobs over into new packs, group by group. A group that fails is
/// logged, and the next one is tried. Ends early when `stop` is ready.
pub(crate) async fn repack_once(
    parts: &RenewalParts,
    groups: &[Vec<String>],
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let lease = take(parts).await?;
    let work = async {
        for group in groups {
            let repacked = caught(repack(parts, group, |_| false)).await;
            let repacked = repacked.unwrap_or_else(Repacked::none);
            let done = repacked.empty.len();
            Metrics::add(&parts.metrics.blobs_repacked, done as u64);
            let left = match repacked.failed {
                None => repacked.unread.len(),
                Some(e) => {
                    let left = group.len().saturating_sub(done);
                    let text = format!("{left} blobs could not be repacked: {e}");
                    parts.log.push(Level::Error, text);
                    left
                }
            };
            Metrics::add(&parts.metrics.renewals_failed, left as u64);
        }
        Ok(())
    };
    let done = until(stop, with_lease(parts, &lease, work)).await;
    lease.give_back(parts).await;
    done
}

/// Takes the lease of the rounds for a command.
///
/// # Errors
/// [`ErrorKind::Locked`] while another holds it; [`ErrorKind::Config`] where nothing can be
/// written.
async fn take(parts: &RenewalParts) -> Result<Lease> {
    if let Some(why) = parts.index.only_reads() {
        return Err(Error::new(
            ErrorKind::Config,
            format!("nothing can be renewed or repacked here: {why}"),
        ));
    }
    let lease = Lease::take(parts, &new_owner()).await?;
    // What this process may use, as a node knows it from its first look on.
    let known = caught(async {
        learn_epochs(parts).await?;
        shed::recall(parts).await
    });
    if let Err(e) = known.await {
        let text = format!("what storage is left is not known, so more is bought: {e}");
        parts.log.push(Level::Warn, text);
    }
    lease.ok_or_else(|| {
        Error::retryable(
            ErrorKind::Locked,
            format!(
                "another node renews or repacks just now, or was killed while it did so less than {} s ago: try again \
                 later",
                LEASE_TTL.as_secs()
            ),
        )
    })
}

/// Does the work, unless `stop` is ready first.
async fn until<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = stop => Err(Error::new(ErrorKind::Canceled, "the round was stopped before its end")),
        done = caught(work) => done,
    }
}
