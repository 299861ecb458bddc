//! The leases in the index under which one node at a time makes rounds.
//!
//! [`LEASE`] is held while a round goes on, by a node or by an operator's command. [`TURN`] lasts
//! beyond the round, so that the same node makes the next one if it comes soon: what it remembers
//! of blobs that failed is its own. A command needs no turn, so it works beside a node that rests.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::RenewalParts;
use crate::error::{caught, Error, ErrorKind, Result};

pub(super) const LEASE: &str = "renewal";
pub(super) const TURN: &str = "renewal-turn";
/// The time of both leases: a node that dies keeps the others from renewing for this long.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(300);
/// Pause after a prolongation that failed, while the lease lasts.
const LEASE_RETRY: Duration = Duration::from_secs(10);

/// The lease of the rounds, held by `owner`.
pub(super) struct Lease {
    pub(super) owner: String,
    /// A moment that is not after the lease was taken.
    pub(super) taken: Instant,
}

impl Lease {
    /// `None` while another holds it.
    pub(super) async fn take(parts: &RenewalParts, owner: &str) -> Result<Option<Lease>> {
        let taken = Instant::now();
        let is_ours = parts.index.try_lease(LEASE, owner, LEASE_TTL).await?;
        Ok(is_ours.then(|| Lease {
            owner: owner.to_owned(),
            taken,
        }))
    }

    pub(super) async fn give_back(self, parts: &RenewalParts) {
        // It runs out by itself.
        let _ = caught(parts.index.release_lease(LEASE, &self.owner)).await;
    }
}

/// Keeps the lease alive while `work` goes on, which may take longer than the lease lasts.
pub(super) async fn with_lease<T>(
    parts: &RenewalParts,
    lease: &Lease,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        error = lease_lost(parts, lease) => Err(error),
    }
}

/// Keeps the turn for this node while it works.
pub(super) async fn keep_turn(parts: &RenewalParts, owner: &str) {
    loop {
        tokio::time::sleep(LEASE_TTL / 3).await;
        // If that fails, another node may make the next round.
        let _ = parts.index.try_lease(TURN, owner, LEASE_TTL).await;
    }
}

/// Prolongs the lease until that fails, and returns the error. An index that does not answer at
/// once is asked again as long as the lease lasts: the upload under way may be paid for already.
async fn lease_lost(parts: &RenewalParts, lease: &Lease) -> Error {
    let mut held_until = lease.taken + LEASE_TTL;
    let mut pause = LEASE_TTL / 3;
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        let prolonged = parts.index.try_lease(LEASE, &lease.owner, LEASE_TTL);
        match tokio::time::timeout_at(held_until, prolonged).await {
            Ok(Ok(true)) => (held_until, pause) = (asked + LEASE_TTL, LEASE_TTL / 3),
            Ok(Ok(false)) => {
                return Error::retryable(
                    ErrorKind::Locked,
                    "another node has taken the renewal over",
                )
            }
            Ok(Err(_)) if Instant::now() + LEASE_RETRY < held_until => pause = LEASE_RETRY,
            Ok(Err(e)) => return e,
            Err(_) => {
                return Error::retryable(
                    ErrorKind::Index,
                    "the index did not prolong the lease in time",
                )
            }
        }
    }
}
