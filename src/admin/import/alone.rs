//! One import at a time into an index: two that bring the same blocks would both pay for them.
//!
//! A lease says that an import is under way, and a note beside the index says whose. An import that
//! was killed cannot give its lease back, so that the next one waits until it has run out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::stopped;
use super::target::Target;
use crate::datastore::presence::machine;
use crate::error::{Error, ErrorKind, Result};
use crate::index::new_owner;
use crate::log::Level;
use crate::upload::Uploader;

/// The name of the lease, and of the note.
const NAME: &str = "import";
const TTL: Duration = Duration::from_secs(15);
/// The pause between two prolongations.
const EACH: Duration = Duration::from_secs(5);
/// The pause between two looks whether another's lease has run out.
const LOOK: Duration = Duration::from_millis(500);

/// The lease of an import that is under way. Dropped without [`end`](Self::end), it runs out by
/// itself.
pub(super) struct Alone {
    uploader: Arc<Uploader>,
    owner: String,
    _prolonged: AbortOnDropHandle<()>,
}

impl Alone {
    /// Takes the lease.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`]: another import has it, and lives. [`ErrorKind::Canceled`] after
    /// `stop`; those of the index.
    pub(super) async fn take(target: &Target, stop: &CancellationToken) -> Result<Alone> {
        let uploader = Arc::clone(&target.uploader);
        let index = Arc::clone(&uploader.index);
        let owner = new_owner();
        let begun = Instant::now();
        let mut told = false;
        while !index.try_lease(NAME, &owner, TTL).await? {
            let whose = index.note(NAME).await?;
            let whose = whose.unwrap_or_else(|| "it is not known where".to_owned());
            if begun.elapsed() > TTL + EACH {
                return Err(Error::retryable(
                    ErrorKind::Locked,
                    format!(
                        "another import into this index is under way ({whose}): wait for its end, as blocks that both bring \
                         would be paid for twice"
                    ),
                ));
            }
            if !std::mem::replace(&mut told, true) {
                let text = format!(
                    "another import into this index is under way, or was killed just now ({whose}): waiting for {} s at most",
                    (TTL + EACH).as_secs()
                );
                uploader.log.push(Level::Info, text);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(stopped()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let whose = format!("process {} on {}", std::process::id(), machine());
        index.set_note(NAME, Some(&whose)).await?;
        let (prolonging, own) = (Arc::clone(&uploader), owner.clone());
        let prolonged = tokio::spawn(async move { prolong(&prolonging, &own).await });
        Ok(Alone {
            uploader,
            owner,
            _prolonged: AbortOnDropHandle::new(prolonged),
        })
    }

    /// Gives the lease back.
    pub(super) async fn end(self) {
        let Alone {
            uploader,
            owner,
            _prolonged: prolonged,
        } = self;
        drop(prolonged);
        // If the index is away, the lease runs out by itself.
        let index = &uploader.index;
        if index.set_note(NAME, None).await.is_ok() {
            let _ = index.release_lease(NAME, &owner).await;
        }
    }
}

/// Prolongs the lease for ever. An index that is away is asked again: the pack under way may be
/// paid for already.
async fn prolong(uploader: &Uploader, owner: &str) {
    let mut lost = false;
    loop {
        tokio::time::sleep(EACH).await;
        let prolonged = uploader.index.try_lease(NAME, owner, TTL).await;
        if matches!(prolonged, Ok(false)) && !std::mem::replace(&mut lost, true) {
            uploader.log.push(
                Level::Warn,
                "another import into this index has begun while the index was away: blocks that both bring are paid for \
                 twice"
                    .to_owned(),
            );
        }
    }
}
