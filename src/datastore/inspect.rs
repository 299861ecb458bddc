//! A datastore for inspection only.

use std::path::Path;
use std::sync::Arc;

use super::open::{resolved, Parts};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Result;
use crate::index::Index;
use crate::walrus::BlobStore;

/// A datastore for inspection by an operator, beside the nodes that work with it: its index and
/// Walrus. No table is created or changed, no journal is locked or read, and no task runs by
/// itself.
pub struct Inspection {
    config: Config,
    parts: Parts,
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
        Ok(Inspection { config, parts })
    }

    /// As [`open`](Self::open), for a repair: the index is brought up to date, and may be written.
    pub(crate) async fn open_to_write(config: Config, repo: &Path) -> Result<Self> {
        let config = resolved(config, repo)?;
        let parts = Parts::open(&config, false).await?;
        Ok(Inspection { config, parts })
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
