//! The lifetimes of blobs: what would be done, what ends when, and a round at an operator's
//! request.

use std::future::Future;

use super::{presence, WalrusDatastore};
use crate::error::{caught, Result};
use crate::index::{EndingIn, Ledger};
use crate::lifetime::{look, renew_once, repack_once, Sparse};
use crate::plan::Plan;

/// What a round at an operator's request has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Round {
    /// Blobs whose storage was prolonged: extended, or stored again.
    pub renewed: u64,
    /// Those of them that were extended on the chain.
    pub extended: u64,
    /// Blobs whose live blocks were carried over into other blobs.
    pub repacked: u64,
    /// Blobs without live blocks that were deleted on the chain.
    pub deleted: u64,
    /// Failures, of which the log tells. A blob that can be neither repacked nor stored again
    /// counts twice.
    pub failed: u64,
    /// Blobs that were stored.
    pub stores: u64,
    /// The price of these (FROST); extensions are paid from the operator's wallet beside it.
    pub frost: u64,
}

impl WalrusDatastore {
    /// The plan of renewal for the blobs that end within the lead, as it would be carried out now,
    /// with bytes, units and FROST for each. It prints as a table (`Display`) and as JSON
    /// ([`Plan::to_json`]). Nothing is changed and nothing is paid. `None` while the present epoch
    /// is not known: no store and no chain has told it, or the length of an epoch is not
    /// configured.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn plan(&self) -> Result<Option<Plan>> {
        let _call = self.enter()?;
        caught(look(&self.shared.renewal)).await
    }

    /// The live blobs by the epochs in which they end, from the ledger: how many, their bytes, what
    /// was paid for them, and their live blocks at the last counts, with the time of the oldest
    /// count.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn horizon(&self) -> Result<Vec<EndingIn>> {
        let _call = self.enter()?;
        caught(self.shared.index.horizon()).await
    }

    /// Renews now what is due, by the plan and under the lease of the rounds that nodes make: the
    /// blobs of [`plan`](Self::plan) are extended, repacked and stored again, and paid for. All
    /// that is due has its turn at once. The log tells of failures; what was done before one stays
    /// done. The round ends early when `stop` is ready. A caller that gives up without it leaves
    /// the lease taken for up to five minutes.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) (retryable) while another node makes a
    /// round; [`ErrorKind::Canceled`](crate::ErrorKind::Canceled) if it was stopped;
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) where nothing can be written;
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn renew_once(&self, stop: impl Future<Output = ()> + Send) -> Result<Round> {
        let _call = self.enter()?;
        let before = self.round();
        renew_once(&self.shared.renewal, stop).await?;
        Ok(self.round().since(before))
    }

    /// Carries the live blocks of sparse blobs over into new packs now, which are paid for. The old
    /// blobs are left to end. Otherwise as [`renew_once`](Self::renew_once).
    ///
    /// # Errors
    /// As [`renew_once`](Self::renew_once).
    pub async fn repack_once(
        &self,
        sparse: &Sparse,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Round> {
        let _call = self.enter()?;
        let before = self.round();
        repack_once(&self.shared.renewal, &sparse.groups, stop).await?;
        Ok(self.round().since(before))
    }

    /// Forgets a node that is gone for good, so that [`status`](crate::admin::status) does not tell
    /// of it any more. Returns whether it was known. A node that comes back notes itself again.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn forget_node(&self, node: &str) -> Result<bool> {
        let _call = self.enter()?;
        caught(presence::forget(&*self.shared.index, node)).await
    }

    /// What the rounds of this datastore have done so far.
    pub fn round(&self) -> Round {
        let metrics = self.metrics();
        let of = |name: &str| {
            let found = metrics.iter().find(|(known, _)| *known == name);
            found.map_or(0, |(_, value)| *value)
        };
        Round {
            renewed: of("renewals"),
            extended: of("blobs_extended"),
            repacked: of("blobs_repacked"),
            deleted: of("blobs_deleted"),
            failed: of("renewals_failed"),
            stores: of("walrus_puts"),
            frost: of("walrus_cost_frost"),
        }
    }
}

impl Round {
    fn since(self, before: Round) -> Round {
        Round {
            renewed: self.renewed.saturating_sub(before.renewed),
            extended: self.extended.saturating_sub(before.extended),
            repacked: self.repacked.saturating_sub(before.repacked),
            deleted: self.deleted.saturating_sub(before.deleted),
            failed: self.failed.saturating_sub(before.failed),
            stores: self.stores.saturating_sub(before.stores),
            frost: self.frost.saturating_sub(before.frost),
        }
    }
}
