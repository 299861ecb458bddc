//! Blocks that a Go node staged and left behind are adopted on demand.

use std::sync::Arc;
use std::time::Duration;

use super::WalrusDatastore;
use crate::detached::Detached;
use crate::error::{Error, ErrorKind, Result};
use crate::upload::adopt::{Adopted, Adopter};

impl WalrusDatastore {
    /// Stores every block that a node with the Go plugin staged longer ago than `age`, and that no
    /// such node takes: the blocks of a node that is gone. `adoptStagingSeconds` does the same all
    /// the time. A claim of the Go plugin that can never run out, as of one that was killed, does
    /// not count; so `age` should be longer than any upload of a Go node that still runs, or some
    /// blocks are paid for twice. A caller that gives up does not end the work; closing the
    /// datastore does.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an index that is not in Postgres; [`ErrorKind::Locked`]
    /// (retryable) while another node does this; [`ErrorKind::Index`]; those of an upload. What was
    /// stored before stays stored, and the same call may be made again.
    pub async fn adopt_staged(&self, age: Duration) -> Result<Adopted> {
        drop(self.enter()?);
        let shared = &self.shared;
        let (adopter, stop) = (
            Adopter::new(Arc::clone(&shared.uploader)),
            shared.stop.clone(),
        );
        let work = async move {
            let done = tokio::select! {
                () = stop.cancelled() => Err(Error::closed("datastore")),
                done = adopter.round(age) => done,
            };
            // Nothing is held unless the round was stopped.
            adopter.give_back().await;
            done
        };
        Detached::new(work).await?.ok_or_else(|| {
            Error::retryable(
                ErrorKind::Locked,
                "another node is storing the blocks that a Go node has staged; try again when it is done",
            )
        })
    }
}
