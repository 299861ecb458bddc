//! One round of changes. An extension does not tell where the blob ends now, and a list costs as
//! much for one blob as for all: so the list is asked for once, when the first end epoch after the
//! last change is wanted.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{object_id, Chain, OwnedBlob};
use crate::error::Result;

type Listed = Arc<HashMap<String, OwnedBlob>>;

/// The chain for the time of one round: changes, and what the wallet owned after the last of them.
pub struct Round {
    chain: Arc<dyn Chain>,
    known: Mutex<Known>,
    /// Held while the list is asked for, so that several callers share one.
    asking: tokio::sync::Mutex<()>,
}

/// **Invariant**: `listed` was asked for after change number `changes` had ended.
#[derive(Default)]
struct Known {
    changes: u64,
    listed: Option<Listed>,
}

impl Round {
    /// Begins a round; nothing is asked for yet.
    pub fn new(chain: Arc<dyn Chain>) -> Self {
        Round {
            chain,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The chain behind it, for what has no part in the round.
    #[cfg_attr(not(any(test, feature = "internals")), allow(dead_code))]
    pub fn chain(&self) -> &Arc<dyn Chain> {
        &self.chain
    }

    /// As [`Chain::extend`].
    pub async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()> {
        let _changed = Changed(self);
        self.chain.extend(object_id, epochs, shared).await
    }

    /// As [`Chain::delete`].
    pub async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        let _changed = Changed(self);
        self.chain.delete(object_ids).await
    }

    /// The Blob object, as it is after the changes so far; `None` if the wallet does not own it
    /// (any more), or if it is shared.
    pub async fn owned(&self, object: &str) -> Result<Option<OwnedBlob>> {
        let object = object_id(object)?;
        Ok(self.listed().await?.get(&object).cloned())
    }

    /// The first epoch in which the blob of this object is no longer stored; `None` as for
    /// [`owned`](Self::owned).
    pub async fn end_epoch_of(&self, object: &str) -> Result<Option<u64>> {
        Ok(self.owned(object).await?.map(|blob| blob.end_epoch))
    }

    async fn listed(&self) -> Result<Listed> {
        let _asking = self.asking.lock().await;
        let before = {
            let known = self.known.lock();
            if let Some(listed) = &known.listed {
                return Ok(Arc::clone(listed));
            }
            known.changes
        };
        let blobs = self.chain.list().await?;
        let by_object = blobs.into_iter().map(|blob| (blob.object_id.clone(), blob));
        let listed: Listed = Arc::new(by_object.collect());
        let mut known = self.known.lock();
        if known.changes == before {
            known.listed = Some(Arc::clone(&listed));
        }
        Ok(listed)
    }
}

/// Forgets the list when a change ends, however it ends.
struct Changed<'a>(&'a Round);

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let mut known = self.0.known.lock();
        known.changes += 1;
        known.listed = None;
    }
}
