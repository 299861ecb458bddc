//! A datastore for inspection only.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::open::{renewal_of, resolved, Parts};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Absent, Index};
use crate::journal;
use crate::lifetime::{self, RenewalParts, Sparse};
use crate::log::Line;
use crate::plan::Plan;
use crate::upload::Uploader;
use crate::walrus::cost::Prices;
use crate::walrus::BlobStore;

/// A datastore for inspection by an operator, beside the nodes that work with it: its index and
/// Walrus. No table is created or changed, no journal is locked, and no task runs by itself.
pub struct Inspection {
    config: Config,
    parts: Parts,
    renewal: RenewalParts,
}

impl Inspection {
    /// Opens the index as it is. The publishers and aggregators are not contacted. Relative paths
    /// in `config` are taken from `repo`. Must be called within a tokio runtime, which the
    /// inspection uses until closed.
    ///
    /// # Errors
    /// As [`WalrusDatastore::open`](crate::WalrusDatastore::open), but for the journal;
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) also for a table that is missing, or that a
    /// node would bring up to date first.
    pub async fn open(config: Config, repo: &Path) -> Result<Self> {
        let config = resolved(config, repo)?;
        let parts = Parts::open(&config, true).await?;
        Ok(Self::of(config, parts))
    }

    /// As [`open`](Self::open); `None` if there is no index of this configuration yet.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for a table that is missing.
    pub async fn find(config: Config, repo: &Path) -> Result<Option<Self>> {
        match Self::open(config, repo).await {
            Err(e) if Absent::is_cause_of(&e) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// As [`open`](Self::open), for a repair: the index may be written.
    pub(crate) async fn open_to_write(config: Config, repo: &Path) -> Result<Self> {
        let config = resolved(config, repo)?;
        let parts = Parts::open_existing(&config).await?;
        Ok(Self::of(config, parts))
    }

    fn of(config: Config, parts: Parts) -> Self {
        let renewal = renewal_of(&config, &parts);
        Inspection {
            config,
            parts,
            renewal,
        }
    }

    /// The parts of renewal, for tests that change them.
    #[cfg(test)]
    pub(crate) fn renewal(&mut self) -> &mut RenewalParts {
        &mut self.renewal
    }

    /// The configuration, with its paths resolved.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The index. In SQLite it takes no writes; in PostgreSQL the caller must not write.
    pub fn index(&self) -> &dyn Index {
        &*self.parts.index
    }

    /// Walrus.
    pub fn store(&self) -> &dyn BlobStore {
        &*self.parts.store
    }

    /// The plan of renewal, as [`WalrusDatastore::plan`](crate::WalrusDatastore::plan) gives it.
    /// Nothing is changed and nothing is paid.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn plan(&self) -> Result<Option<Plan>> {
        caught(lifetime::look(&self.renewal)).await
    }

    /// The live blobs of which at least so many percent are deleted blocks, and the price of
    /// carrying their live blocks over into new packs. Counts the rows of all live blobs.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn sparse(&self, waste_percent: u32) -> Result<Sparse> {
        caught(lifetime::sparse(&self.renewal, waste_percent)).await
    }

    /// The present epoch, the least and the most that it can be, by what nodes have noted in the
    /// index and by the chain, if it is at hand. `None` if neither tells it.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn epoch(&self) -> Result<Option<(u64, u64)>> {
        caught(lifetime::present_epoch(&self.renewal)).await
    }

    /// The earliest moment at which storage up to this (exclusive) end epoch may end. `None` before
    /// [`epoch`](Self::epoch) has found one.
    pub fn ends_at(&self, end_epoch: u64) -> Option<SystemTime> {
        let now = self.parts.clock.now();
        self.renewal.epoch_clock.ends_at(now, end_epoch)
    }

    /// The last end epoch that may begin within the lead: blobs that end so are due. `None` before
    /// [`epoch`](Self::epoch) has found one.
    pub fn last_due(&self) -> Option<u64> {
        lifetime::last_due(&self.renewal)
    }

    /// The network's prices, by the chain; those of Walrus' documentation where it is not at hand,
    /// and `false`.
    pub async fn prices(&self) -> (Prices, bool) {
        lifetime::prices(&self.renewal).await
    }

    /// When a node ended the last round of renewal.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn last_round(&self) -> Result<Option<SystemTime>> {
        lifetime::last_round(&self.renewal).await
    }

    /// Takes the oldest log line out: what the chain's program said, for the most part.
    pub fn next_log_line(&self) -> Option<Line> {
        self.parts.log.pop()
    }

    /// The blocks that wait in the journal on this machine's disk, whether or not a node works with
    /// it; none if no journal is configured.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub(crate) async fn journaled(&self) -> Result<journal::Copies> {
        journaled(self.journal_dir()).await
    }

    /// The directory of the journal, if one is configured.
    pub(super) fn journal_dir(&self) -> Option<PathBuf> {
        let journal = self.config.journal.as_ref();
        journal.map(|journal| journal.path.clone())
    }

    /// The way of blocks to Walrus, as a node with this configuration has it.
    pub(crate) fn uploader(&self) -> Arc<Uploader> {
        Arc::clone(&self.renewal.uploader)
    }

    /// The parts, to be taken along into tasks.
    pub(crate) fn parts(&self) -> (Arc<dyn Index>, Arc<dyn BlobStore>, Arc<dyn Clock>) {
        let parts = &self.parts;
        (
            Arc::clone(&parts.index),
            Arc::clone(&parts.store),
            Arc::clone(&parts.clock),
        )
    }

    /// Closes the index.
    ///
    /// # Errors
    /// As [`Index::close`].
    pub async fn close(&self) -> Result<()> {
        self.parts.index.close().await
    }
}

/// What the journal in this directory holds.
pub(super) async fn journaled(dir: Option<PathBuf>) -> Result<journal::Copies> {
    let Some(dir) = dir else {
        return Ok(journal::Copies::default());
    };
    let read = tokio::task::spawn_blocking(move || journal::Copies::of(&dir));
    read.await
        .map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?
}
