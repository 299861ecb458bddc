//! The state of a journal: the blocks that are staged, those that are damaged, and those that wait
//! to travel. Guarded by one lock, `JournalParts::state`.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::block::Block;
use super::damage::{Damage, Damages};
use super::segment::Segment;
use super::Staged;
use crate::log::{Level, Log};

/// How long the disk counts as full after the last write for which there was no space.
const FULL_FOR: Duration = Duration::from_secs(60);

/// There was no space on the disk. Packs leave at once then, full or not, which costs more.
#[derive(Debug, Clone)]
pub(super) struct DiskFull {
    /// The bytes of the largest write for which there was none.
    bytes: u64,
    /// When that was last.
    pub(super) last: Instant,
}

impl DiskFull {
    /// As `before`, and now for a write of `bytes` as well.
    pub(super) fn again(before: Option<DiskFull>, bytes: u64) -> DiskFull {
        DiskFull {
            bytes: before.map_or(bytes, |before| before.bytes.max(bytes)),
            last: Instant::now(),
        }
    }

    /// Whether it is over by a write of `bytes` that has succeeded. A small one may find room where
    /// a larger one has found none, unless a while has passed.
    pub(super) fn is_over(&self, bytes: u64) -> bool {
        self.bytes <= bytes || self.last.elapsed() >= FULL_FOR
    }
}

#[derive(Debug, Default)]
pub(super) struct StagedBlocks {
    pub(super) blocks: BTreeMap<Arc<str>, Arc<Block>>,
    /// Keys whose newest value was found damaged. They are not staged any more.
    pub(super) damaged: Damages,
    /// Whether the list on disk differs.
    pub(super) damage_changed: bool,
    /// Those of them that were found damaged by a read of this process, and whose entries are still
    /// in a file: an upload may have read them before.
    pub(super) lost: HashMap<Arc<str>, Arc<Block>>,
    /// Bytes of the values in `blocks`.
    pub(super) bytes: u64,
    /// Blocks in the order in which they were written, until they travel. Some may have been
    /// replaced or deleted since.
    pub(super) queue: VecDeque<Arc<Block>>,
    pub(super) queued_bytes: u64,
    pub(super) segments: VecDeque<Arc<Segment>>,
    /// Keys that were forgotten although no note of it could be written: their entries are still in
    /// a file.
    pub(super) unnoted: HashSet<Arc<str>>,
    /// Bytes of writes that have been admitted and not written yet.
    pub(super) admitted: u64,
    pub(super) waiting_for_space: usize,
    /// There was no space on the disk, and may be none still.
    pub(super) disk_full: Option<DiskFull>,
    pub(super) last_write: Option<Instant>,
    /// The number of queued bytes at which the flusher is to be called, and whether it was.
    pub(super) call_at: u64,
    pub(super) called: bool,
}

impl StagedBlocks {
    /// Bytes that count towards the journal's limit.
    pub(super) fn used(&self) -> u64 {
        self.admitted + self.segments.iter().map(|s| s.space()).sum::<u64>()
    }

    pub(super) fn staged(&self) -> Staged {
        Staged {
            blocks: self.blocks.len() as u64,
            bytes: self.bytes,
            disk_bytes: self.segments.iter().map(|s| s.file_len()).sum(),
        }
    }

    pub(super) fn is_current(&self, block: &Arc<Block>) -> bool {
        self.blocks
            .get(&block.key)
            .is_some_and(|now| Arc::ptr_eq(now, block))
    }

    /// Whether it was found damaged, and no put and no deletion of its key came since.
    pub(super) fn is_lost(&self, block: &Arc<Block>) -> bool {
        self.lost
            .get(&block.key)
            .is_some_and(|lost| Arc::ptr_eq(lost, block))
    }

    /// Whether it was found damaged, and is on Walrus and indexed all the same.
    pub(super) fn is_saved(&self, block: &Arc<Block>) -> bool {
        block.indexed.load(Ordering::Acquire) && !block.is_doubted() && self.is_lost(block)
    }

    /// Takes a block out of the staged ones that was found damaged. Returns whether it was staged.
    pub(super) fn lose_block(&mut self, block: &Arc<Block>) -> bool {
        let staged = self.is_current(block);
        if staged {
            block.damaged.store(true, Ordering::Release);
            self.lose(&block.key, block.damage());
        }
        staged
    }

    /// The newest block of a key, staged or lost.
    pub(super) fn newest(&self, key: &str) -> Option<&Arc<Block>> {
        self.blocks.get(key).or_else(|| self.lost.get(key))
    }

    pub(super) fn forget(&mut self, key: &str) {
        if let Some(block) = self.blocks.remove(key) {
            self.bytes -= block.len();
        }
        self.heal(key);
    }

    /// Notes that the newest value of `key` is whole, or gone. Returns whether it was damaged
    /// before.
    pub(super) fn heal(&mut self, key: &str) -> bool {
        self.lost.remove(key);
        let healed = self.damaged.remove(key).is_some();
        self.damage_changed |= healed;
        healed
    }

    /// Notes that the newest value of `key` is damaged.
    pub(super) fn lose(&mut self, key: &Arc<str>, damage: Damage) {
        self.forget(key);
        self.damaged.insert(Arc::clone(key), damage);
        self.damage_changed = true;
    }

    /// Forgets the damaged blocks, as the journal belongs to another table now: blocks that were
    /// accepted for the former table are not part of this one.
    pub(super) fn forget_damage(&mut self, dir: &Path, log: &Log) {
        if self.damaged.is_empty() {
            return;
        }
        let keys = self.damaged.keys().map(|key| &**key);
        let keys: Vec<&str> = keys.take(100).collect();
        log.push(
            Level::Error,
            format!(
                "journal {}: its {} damaged blocks were accepted for another index; they are not remembered any more: {}",
                dir.display(),
                self.damaged.len(),
                keys.join(", ")
            ),
        );
        self.damaged.clear();
        self.lost.clear();
        self.damage_changed = true;
    }

    /// Notes that rows under these keys may be of blobs that were never read back.
    pub(super) fn doubt_proofs(&self, keys: &[String]) {
        let staged = keys.iter().filter_map(|key| self.blocks.get(key.as_str()));
        staged.for_each(|block| block.unproven.store(true, Ordering::Relaxed));
    }

    pub(super) fn stage(&mut self, block: Arc<Block>) {
        block.segment.add_live();
        if self.heal(&block.key) {
            block.unproven.store(true, Ordering::Relaxed);
        }
        self.bytes += block.len();
        self.queued_bytes += block.len();
        self.queue.push_back(Arc::clone(&block));
        if let Some(old) = self.blocks.insert(Arc::clone(&block.key), block) {
            self.bytes -= old.len();
        }
    }
}
