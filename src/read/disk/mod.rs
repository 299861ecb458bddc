//! The read cache on the local disk: blocks that came from Walrus, kept beyond the process.
//!
//! | module | holds |
//! |---|---|
//! | `adopt` | taking over files of the journal |
//! | `copies` | the blocks of a cache that another process may have open, for reading alone |
//! | `layout` | how blocks lie in a file |
//! | `retired` | what is taken over, and how |
//! | `segment` | one file: looking at records, finishing, recovering |
//! | `worker` | the one thread that loads, appends, evicts, and looks after the directory |
//!
//! It replaces an aggregator and nothing else: whether a key exists is the index's business. Only
//! blocks whose keys name their contents are taken, and only after a check against the name. What
//! is read back is compared with a checksum, which finds the damage that a disk makes, and against
//! the name as well with `verifyReads` `"always"`. So damage to the files does no harm. Nothing
//! here fails a read or a write: an error becomes a miss, a counter and at most a line in the log.
//! Nothing is synced either.
//!
//! Blocks lie in files of 1/128 of the budget that are only ever appended to, so that reading one
//! costs one call to the system and no opening of a file. The oldest file goes first. Its structure
//! (nodes with links and directories, about one byte in a hundred) moves to the newest, as long as
//! that is a small part of the whole cache, and so does what was read in it since it was written,
//! up to half its length. So trees that are known stay known, whatever passes through.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, SyncSender};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::log::{Level, Log};
use crate::multihash::Multihash;
use crate::place::{Form, Value};

mod adopt;
mod copies;
mod layout;
mod retired;
mod segment;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use copies::Copies;
pub(crate) use layout::JOURNAL_HEAD;
use layout::{Row, HEAD, RECORD_HEAD, ROW, STRUCTURE, TRAILER};
pub(crate) use retired::Retired;
pub(crate) use segment::SUFFIX as FILE_SUFFIX;
use segment::{Found, Segment};
use worker::{Job, Pace, Worker};

/// Most blocks that wait to be written: bytes, and number. Blocks beyond that are not kept.
const QUEUE_BYTES: u64 = 32 << 20;
const QUEUE: usize = 4096;

/// Where the read cache on the local disk lies, and how large it may get.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskCacheConfig {
    /// Its directory.
    pub path: PathBuf,
    /// Size of its files together (bytes).
    pub max_bytes: u64,
}

/// The purpose of a cache.
#[derive(Debug)]
pub(crate) struct Purpose {
    /// Its name in the log.
    pub(crate) name: &'static str,
    /// Text before its path in the log: the key of the configuration, if there is one.
    pub(crate) place: &'static str,
    /// The text of `README.txt`.
    pub(crate) readme: &'static str,
    /// How long after the opening reads wait for the tables to be read.
    pub(crate) load_patience: Duration,
    /// How long the opening waits for another datastore to let go of the directory. A datastore
    /// that was dropped without being closed takes a moment for that.
    pub(crate) lock_patience: Duration,
}

/// The cache that `cachePath` names.
static READ_CACHE: Purpose = Purpose {
    name: "disk cache",
    place: "cachePath",
    readme: "\
This is the read cache of walrusds: copies of blocks that are on Walrus. It may be deleted at any time,
also while the node runs.

NUMBER.blocks   blocks, in the order in which they were read or, in files that come from the write journal,
                written. The file with the lowest number goes first when the cache is full.
NUMBER.retiring a file of the journal on its way to be one of those.
LOCK            held by the running node.
",
    // What is on this disk must be found also while no aggregator answers.
    load_patience: match cfg!(test) {
        true => Duration::from_secs(120),
        false => Duration::from_secs(10),
    },
    lock_patience: Duration::ZERO,
};

/// The largest segment (bytes); larger budgets take more files.
const MAX_SEGMENT: u64 = 1 << 30;
/// Longest name that is cached (bytes): function and length of a multihash, and 64 bytes of digest.
const MAX_NAME: usize = 80;

/// The disk cache of one datastore.
#[derive(Debug)]
pub(crate) struct DiskCache {
    inner: Arc<CacheParts>,
    queue: Mutex<Option<SyncSender<Job>>>,
    dir: PathBuf,
    max_bytes: u64,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    opened: Instant,
}

/// A block on its way to the disk.
#[derive(Debug)]
struct Insert {
    name: Multihash,
    value: Bytes,
    /// Whether the name is known to name the value.
    checked: bool,
}

/// The state that readers and the worker share.
#[derive(Debug)]
struct CacheParts {
    map: RwLock<Map>,
    /// Whether blocks are checked against their names whenever they are read.
    verify: bool,
    /// The tables have been read, or cannot be.
    loaded: watch::Sender<bool>,
    stopping: AtomicBool,
    /// The directory is open.
    serving: AtomicBool,
    /// How many files were given a place to be taken over.
    retired: AtomicU64,
    /// Bytes in the queue, and in the worker's hands.
    queued: AtomicU64,
    /// A file is full at this length (bytes).
    segment_bytes: u64,
    purpose: &'static Purpose,
    log: Arc<Log>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    bytes: AtomicU64,
    evictions: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
}

/// Where every block lies.
#[derive(Debug, Default)]
struct Map {
    slots: HashMap<u64, Slot>,
    segments: HashMap<u32, Arc<Segment>>,
}

/// Where one block lies. There may be millions: 16 bytes each with their tags.
#[derive(Debug)]
struct Slot {
    segment: u32,
    /// Where its record begins in the segment, `USED` and `STRUCTURE`.
    at: AtomicU32,
}

/// Marks a block that was read since it was written.
const USED: u32 = 1 << 30;

/// A block of a file that goes, which may move to another one.
#[derive(Debug)]
struct Stays {
    /// Where its record begins in the file.
    offset: u32,
    structure: bool,
    /// Whether it was read since it was written.
    used: bool,
}

impl Slot {
    fn new(segment: u32, row: &Row) -> Slot {
        let mark = if row.structure { STRUCTURE } else { 0 };
        Slot {
            segment,
            at: AtomicU32::new(row.offset | mark),
        }
    }

    fn offset(&self) -> u32 {
        self.at.load(Relaxed) & !(USED | STRUCTURE)
    }

    fn is_structure(&self) -> bool {
        self.at.load(Relaxed) & STRUCTURE != 0
    }

    fn is_used(&self) -> bool {
        self.at.load(Relaxed) & USED != 0
    }

    fn mark_used(&self) {
        if !self.is_used() {
            self.at.fetch_or(USED, Relaxed);
        }
    }
}

impl DiskCache {
    /// Starts the cache. The directory is created, locked and read behind the caller's back; if it
    /// cannot be used, the log says so and the cache holds nothing.
    /// `verify`: blocks are checked against their names whenever they are read.
    pub(crate) fn open(config: DiskCacheConfig, verify: bool, log: Arc<Log>) -> DiskCache {
        Self::open_for(&READ_CACHE, config, verify, log)
    }

    /// As [`open`](Self::open), for another purpose than `cachePath`.
    pub(crate) fn open_for(
        purpose: &'static Purpose,
        config: DiskCacheConfig,
        verify: bool,
        log: Arc<Log>,
    ) -> DiskCache {
        Self::open_paced(purpose, config, verify, log, Pace::default())
    }

    fn open_paced(
        purpose: &'static Purpose,
        config: DiskCacheConfig,
        verify: bool,
        log: Arc<Log>,
        pace: Pace,
    ) -> DiskCache {
        let max = config.max_bytes;
        // Large enough for a block of IPFS, and a small part of the whole.
        let segment_bytes = (max / 128).clamp((max / 4).min(8 << 20), MAX_SEGMENT);
        let inner = Arc::new(CacheParts {
            map: RwLock::default(),
            verify,
            loaded: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
            serving: AtomicBool::new(false),
            retired: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            segment_bytes,
            purpose,
            log,
            counters: Counters::default(),
        });
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        let dir = config.path.clone();
        let worker = Worker::new(Arc::clone(&inner), config, pace, jobs);
        let thread = std::thread::Builder::new()
            .name("walrusds-cache".into())
            .spawn(move || worker.run());
        if let Err(e) = &thread {
            inner.loaded.send_replace(true);
            inner.complain(format_args!("no thread for it: {e}"));
        }
        DiskCache {
            inner,
            queue: Mutex::new(thread.is_ok().then_some(queue)),
            dir,
            max_bytes: max,
            thread: Mutex::new(thread.ok()),
            opened: Instant::now(),
        }
    }

    /// The block of `len` bytes that `name` names, if it is here. Checked. Reads from the local
    /// disk (mostly its cache) on the calling thread.
    pub(crate) async fn get(&self, name: &Multihash, len: u64) -> Option<Bytes> {
        self.get_as(Form::Bytes, name, len).await?.bytes().ok()
    }

    /// As [`get`](Self::get), in a form that the caller chooses. A value at its place is not
    /// checked yet.
    pub(crate) async fn get_as(&self, form: Form, name: &Multihash, len: u64) -> Option<Value> {
        self.loaded().await;
        let found = self.inner.find(form, name, len);
        let counters = &self.inner.counters;
        let counter = match found {
            Some(_) => &counters.hits,
            None => &counters.misses,
        };
        counter.fetch_add(1, Relaxed);
        found
    }

    /// A node that has just started would ask Walrus for what it has.
    async fn loaded(&self) {
        if !*self.inner.loaded.borrow() {
            let mut loaded = self.inner.loaded.subscribe();
            let until = self.opened + self.inner.purpose.load_patience;
            let _ = tokio::time::timeout_at(until, loaded.wait_for(|loaded| *loaded)).await;
        }
    }

    /// Keeps a block that `name` names; if that was not `checked` yet it will be. Never waits: when
    /// the disk cannot keep up, the block is not kept. The queue holds copies: the value may be a
    /// part of a window, and would keep all of it in memory.
    pub(crate) fn insert(&self, name: Multihash, value: &Bytes, checked: bool) {
        let inner = &self.inner;
        let len = value.len() as u64;
        if len == 0 || len > inner.longest() || name.as_bytes().len() > MAX_NAME {
            return;
        }
        let tag = layout::tag(name.as_bytes());
        if inner.map.read().slots.contains_key(&tag) {
            return;
        }
        let taken = inner.queued.fetch_add(len, Relaxed) + len <= QUEUE_BYTES
            && self.queue.lock().as_ref().is_some_and(|queue| {
                let value = Bytes::copy_from_slice(value);
                let insert = Insert {
                    name,
                    value,
                    checked,
                };
                queue.try_send(Job::Insert(insert)).is_ok()
            });
        if !taken {
            inner.queued.fetch_sub(len, Relaxed);
            inner.counters.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Counts a block as read, if it is here, so that it stays when its file goes.
    pub(crate) fn touch(&self, name: &Multihash) {
        let map = self.inner.map.read();
        if let Some(slot) = map.slots.get(&layout::tag(name.as_bytes())) {
            slot.mark_used();
        }
    }

    /// Counters for the metrics snapshot.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 6] {
        let counters = &self.inner.counters;
        [
            ("disk_cache_hits", &counters.hits),
            ("disk_cache_misses", &counters.misses),
            ("disk_cache_bytes", &counters.bytes),
            ("disk_cache_evictions", &counters.evictions),
            ("disk_cache_dropped", &counters.dropped),
            ("disk_cache_errors", &counters.errors),
        ]
        .map(|(name, counter)| (name, counter.load(Relaxed)))
    }

    /// Writes what is queued and lets go of the directory.
    pub(crate) async fn close(&self) {
        self.stop();
        let thread = self.thread.lock().take();
        let joining = tokio::task::spawn_blocking(move || thread.map(|thread| thread.join()));
        // A panic in the thread was reported already.
        let _ = joining.await;
    }

    fn stop(&self) {
        self.inner.stopping.store(true, Relaxed);
        self.queue.lock().take();
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.stop();
    }
}

impl CacheParts {
    /// Longest block that is kept (bytes).
    fn longest(&self) -> u64 {
        let around = HEAD.len() + RECORD_HEAD + MAX_NAME + ROW + TRAILER;
        self.segment_bytes.saturating_sub(around as u64)
    }

    fn find(&self, form: Form, name: &Multihash, len: u64) -> Option<Value> {
        // Also bounds what a wrong length makes us allocate.
        let value_len = u32::try_from(len).ok().filter(|_| len <= self.longest())?;
        let tag = layout::tag(name.as_bytes());
        let (segment, offset) = {
            let map = self.map.read();
            let slot = map.slots.get(&tag)?;
            slot.mark_used();
            (Arc::clone(map.segments.get(&slot.segment)?), slot.offset())
        };
        let form = form.checked(self.verify);
        let wrong = match segment.find(form, offset, name.as_bytes(), value_len) {
            Ok(Found::Value(Value::Memory(value))) if self.verify && !name.names(&value) => {
                "damaged".to_owned()
            }
            Ok(Found::Value(value)) => return Some(value),
            Ok(Found::Other) => return None,
            Ok(Found::Damaged) => "damaged".to_owned(),
            Err(e) => e.to_string(),
        };
        self.forget(tag, segment.id, offset);
        self.counters.errors.fetch_add(1, Relaxed);
        if segment.complains_first() {
            self.complain(format_args!(
                "a block in {}, byte {offset}: {wrong}; what cannot be read there comes from Walrus",
                segment.shown()
            ));
        }
        None
    }

    /// Forgets a block, unless it lies elsewhere by now.
    fn forget(&self, tag: u64, segment: u32, offset: u32) {
        let mut map = self.map.write();
        let same = |slot: &Slot| slot.segment == segment && slot.offset() == offset;
        if map.slots.get(&tag).is_some_and(same) {
            map.slots.remove(&tag);
        }
    }

    /// The blocks of a segment that may stay when it goes, structure first, and how many blocks it
    /// has.
    fn leaving(&self, id: u32) -> (Vec<Stays>, u64) {
        let mut stay = Vec::new();
        let mut blocks = 0;
        let map = self.map.read();
        for slot in map.slots.values().filter(|slot| slot.segment == id) {
            blocks += 1;
            let (structure, used) = (slot.is_structure(), slot.is_used());
            if structure || used {
                let offset = slot.offset();
                stay.push(Stays {
                    offset,
                    structure,
                    used,
                });
            }
        }
        drop(map);
        stay.sort_unstable_by_key(|stays| (!stays.structure, stays.offset));
        (stay, blocks)
    }

    /// Forgets a segment, and the blocks that are found in it.
    fn forget_segment(&self, id: u32) {
        let mut map = self.map.write();
        map.segments.remove(&id);
        map.slots.retain(|_, slot| slot.segment != id);
    }

    fn complain(&self, what: std::fmt::Arguments<'_>) {
        let name = self.purpose.name;
        self.log.push(Level::Warn, format!("{name}: {what}"));
    }
}
