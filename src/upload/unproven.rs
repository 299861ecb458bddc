//! Packs that are stored and paid for, and could not be read back.
//!
//! Their blocks are kept where they were, and are tried again. A deletable blob that is stored
//! again is paid for again, each time. So the pack is remembered: when the same blocks are to be
//! stored, it is read back instead. A blob that the network has really lost is healed only by
//! storing it again, so that is done in the end.

use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Pack, Parcel};

/// How long a pack is only read back before it is paid for again.
const AGAIN: Duration = Duration::from_secs(6 * 3600);

/// The packs that are remembered at most: about 100 bytes for each of their blocks.
const MOST: std::num::NonZeroUsize = std::num::NonZeroUsize::new(16).unwrap();

/// A block whose value is at hand.
pub(crate) trait InMemory: Parcel {
    fn value(&self) -> &Bytes;
}

/// The packs, by what is in them.
#[derive(Debug)]
pub(crate) struct Unproven(Mutex<LruCache<blake3::Hash, Seen>>);

#[derive(Debug)]
struct Seen {
    pack: Pack,
    since: Instant,
}

impl Default for Unproven {
    fn default() -> Self {
        Unproven(Mutex::new(LruCache::new(MOST)))
    }
}

impl Unproven {
    /// The pack of these blocks, if it is to be read back and not to be stored. `lasts`: whether
    /// its storage lasts for long enough.
    pub(super) fn of<P: InMemory>(
        &self,
        blocks: &[P],
        lasts: impl FnOnce(&Pack) -> bool,
    ) -> Option<Pack> {
        if self.0.lock().is_empty() {
            return None;
        }
        let name = name_of(blocks);
        let mut all = self.0.lock();
        let seen = all.get(&name)?;
        if seen.since.elapsed() < AGAIN && lasts(&seen.pack) {
            return Some(seen.pack.clone());
        }
        all.pop(&name);
        None
    }

    /// Notes whether the pack of these blocks was read back.
    pub(super) fn note<P: InMemory>(&self, pack: &Pack, blocks: &[P], is_proven: bool) {
        if is_proven && self.0.lock().is_empty() {
            return;
        }
        let name = name_of(blocks);
        let mut all = self.0.lock();
        if is_proven {
            all.pop(&name);
        } else if !all.contains(&name) {
            let since = Instant::now();
            let pack = pack.clone();
            all.put(name, Seen { pack, since });
        }
    }
}

/// A hash of all that decides on the pack of these blocks.
fn name_of<P: InMemory>(blocks: &[P]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        for part in [
            block.key().as_bytes(),
            &[u8::from(block.is_dag_pb())],
            block.value(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize()
}
