//! The parts with which blocks are imported beside the writes of this datastore.

use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::WalrusDatastore;
use crate::error::Result;
use crate::locks::KeyLocks;
use crate::upload::Uploader;

impl WalrusDatastore {
    /// The way of blocks to Walrus without the journal, the locks of keys, and a token for which
    /// closing waits.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    pub(crate) fn import_parts(&self) -> Result<(Arc<Uploader>, KeyLocks, TaskTrackerToken)> {
        let call = self.enter()?;
        let shared = &self.shared;
        Ok((Arc::clone(&shared.uploader), shared.locks.clone(), call))
    }
}
