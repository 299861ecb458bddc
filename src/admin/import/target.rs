//! The datastore into which blocks are imported.

use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::locks::KeyLocks;
use crate::upload::Uploader;
use crate::WalrusDatastore;

/// What an import needs of the datastore.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uploader: Arc<Uploader>,
    pub(super) locks: KeyLocks,
    /// Closing the datastore waits for it. `None`: it is only looked at, and nothing is stored.
    pub(super) call: Option<TaskTrackerToken>,
}

impl Target {
    /// # Errors
    /// [`ErrorKind::Closed`]; [`ErrorKind::Config`] if the index takes no writes.
    pub(super) fn to_write(store: &WalrusDatastore) -> Result<Target> {
        let (uploader, locks, call) = store.import_parts()?;
        if let Some(why) = uploader.index.only_reads() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("nothing can be imported here, as no rows can be written for what is paid for: {why}"),
            ));
        }
        Ok(Target {
            uploader,
            locks,
            call: Some(call),
        })
    }

    pub(super) fn to_look(inspection: &Inspection) -> Target {
        Target {
            uploader: inspection.uploader(),
            locks: KeyLocks::default(),
            call: None,
        }
    }

    /// Whether blocks are stored.
    pub(super) fn applies(&self) -> bool {
        self.call.is_some()
    }
}
