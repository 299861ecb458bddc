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

/// A pack is read back for this long, and at least once after that, before it is paid for again.
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
    /// Whether it was read back a last time after [`AGAIN`], or is just now.
    last: bool,
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
        let seen = all.get_mut(&name)?;
        let is_late = seen.since.elapsed() >= AGAIN;
        if (is_late && seen.last) || !lasts(&seen.pack) {
            all.pop(&name);
            return None;
        }
        seen.last = is_late;
        Some(seen.pack.clone())
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
            let seen = Seen {
                pack: pack.clone(),
                since: Instant::now(),
                last: false,
            };
            all.put(name, seen);
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

#[cfg(test)]
mod tests {
    use super::super::Carried;
    use super::*;
    use crate::index::Blob;

    #[tokio::test(start_paused = true)]
    async fn a_pack_is_read_back_before_it_is_paid_for_again_however_late() {
        let unproven = Unproven::default();
        let block = |n: u8| Carried {
            key: "/k".to_owned(),
            value: Bytes::from(vec![n]),
            from: "old".to_owned(),
            is_dag_pb: false,
        };
        let pack = Pack {
            blob: Blob::default(),
            places: Vec::new(),
            len: 1,
        };
        let (blocks, others) = ([block(1)], [block(2)]);
        let is_known = |blocks: &[Carried]| unproven.of(blocks, |_| true).is_some();
        for waits in [1, 42] {
            unproven.note(&pack, &blocks, false);
            assert!(!is_known(&others));
            tokio::time::advance(Duration::from_secs(waits * 3600)).await;
            assert!(is_known(&blocks), "it is read back after {waits} hours");
            unproven.note(&pack, &blocks, false);
            tokio::time::advance(Duration::from_secs(42 * 3600)).await;
            // Another chance after the first hour, and none after 42.
            assert_eq!(is_known(&blocks), waits == 1);
            assert!(!is_known(&blocks), "it is stored again");
        }
        unproven.note(&pack, &blocks, false);
        assert!(unproven.of(&blocks, |_| false).is_none(), "it ends soon");
        unproven.note(&pack, &blocks, false);
        unproven.note(&pack, &blocks, true);
        assert!(!is_known(&blocks), "it was read back");
    }
}
