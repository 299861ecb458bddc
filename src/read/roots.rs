//! A small copy of the newest directories on the local disk, always on.
//!
//! Kubo loads the root of its MFS, and the nodes of it if it is sharded, before anything else:
//! without them no command and no daemon starts. They must be there while no aggregator answers,
//! and also when their blob has lapsed. So the nodes of UnixFS directories that are put or read
//! stay in a cache of their own beside the repo's index. It decides nothing: whether a block exists
//! is the index's business.
//!
//! The oldest nodes leave when it is full, and a busy gateway sees more directories in an hour than
//! it holds. A node cannot be told to be the root of the MFS by its bytes. It can be told by what
//! Kubo does with it: Kubo reads it before anything else when it starts, and calls `Sync` when it
//! has put a new one. Nodes known by one of these are **wanted**, and are counted as read again and
//! again, so that they stay.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::disk::{DiskCache, DiskCacheConfig, Purpose};
use crate::dag;
use crate::log::Log;
use crate::multihash::Multihash;

/// The directory in the repo.
pub(crate) const PLACE: &str = "walrusds-roots";
/// Its size at most (bytes): a root of MFS takes at most 256 KiB, as Kubo shards larger
/// directories.
const BYTES: u64 = 16 << 20;
/// Longest node that is kept (bytes).
const LONGEST: u64 = 256 << 10;

/// Wanted nodes at most. The one that has been known for longest is forgotten first.
const WANTED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How many of the nodes that are read first are wanted: the root of the MFS, and some of a sharded
/// one.
const AT_START: usize = 64;
/// How many of the nodes that were put before a `Sync` are wanted. The last one is the root, unless
/// another writer puts directories at the same time.
const BEFORE_SYNC: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Wanted nodes are counted as read each time that so many bytes came: several times for each file
/// of the cache (a quarter of it), and so at least once before a file goes.
const TOUCH_EVERY: u64 = BYTES / 32;
/// Most bytes that a node takes on the disk besides its own.
const OVERHEAD: u64 = 200;

static KEPT: Purpose = PURPOSE;
const PURPOSE: Purpose = Purpose {
    name: "directories kept for the start",
    place: "directory",
    readme: "\
This is a copy of the newest directories that walrusds put or read, so that Kubo starts while Walrus does
not answer. It may be deleted at any time.

NUMBER.blocks   blocks, in the order in which they came. The file with the lowest number goes first when
                there are more than 16 MiB.
LOCK            held by the running node.
",
    // At the start the aggregators may be away: then these tables are the only place.
    load_patience: Duration::from_secs(10),
    lock_patience: Duration::from_secs(1),
};

/// See the module.
pub(crate) struct Roots {
    cache: DiskCache,
    state: Mutex<SeenNodes>,
}

struct SeenNodes {
    wanted: LruCache<Box<[u8]>, Multihash>,
    /// Nodes that were put since the last `Sync`.
    put: LruCache<Box<[u8]>, Multihash>,
    /// Nodes that were read since the opening, as far as they are counted.
    read: usize,
    /// Bytes that came since the wanted nodes were counted as read.
    came: u64,
}

impl Roots {
    /// The roots of one table, in a repo. `verify`: as [`DiskCache::open`].
    pub(crate) fn open(repo: &Path, table: &str, verify: bool, log: Arc<Log>) -> Roots {
        let config = DiskCacheConfig {
            path: repo.join(PLACE).join(table),
            max_bytes: BYTES,
        };
        Roots {
            cache: DiskCache::open_for(&KEPT, config, verify, log),
            state: Mutex::new(SeenNodes {
                wanted: LruCache::new(WANTED),
                put: LruCache::new(BEFORE_SYNC),
                read: 0,
                came: 0,
            }),
        }
    }

    /// Keeps a block that is put under a key that names it, if it is a node of a directory.
    pub(crate) fn keep_put(&self, key: &str, block: &Bytes) {
        if let Some(name) = named_directory(key, block) {
            self.keep(&name, block, true);
            let mut state = self.state.lock();
            state.put.put(name.as_bytes().into(), name);
        }
    }

    /// Keeps a block that was read from Walrus, if it is a node of a directory. `checked`: the key
    /// names it.
    pub(crate) fn keep_read(&self, key: &str, block: &Bytes, checked: bool) {
        if let Some(name) = named_directory(key, block) {
            self.keep(&name, block, checked);
            self.was_read(name);
        }
    }

    /// As [`keep_read`](Self::keep_read), for a block that was read in the journal: it is here
    /// since it was put, and needs attention only if it is among the first.
    pub(crate) fn keep_at_start(&self, key: &str, block: &Bytes, checked: bool) {
        if self.state.lock().read < AT_START {
            self.keep_read(key, block, checked);
        }
    }

    /// The block of `len` bytes under a key, if it is here. Checked.
    pub(crate) async fn get(&self, key: &str, len: u64) -> Option<Bytes> {
        if len == 0 || len > LONGEST {
            return None;
        }
        let name = Multihash::of_key(key)?;
        let block = self.cache.get(&name, len).await?;
        self.was_read(name);
        Some(block)
    }

    /// Kubo makes sure that what it put stays: a root may be among it.
    pub(crate) fn synced(&self) {
        let mut state = self.state.lock();
        let SeenNodes { wanted, put, .. } = &mut *state;
        while let Some((key, name)) = put.pop_lru() {
            wanted.put(key, name);
        }
    }

    /// Writes what was kept.
    pub(crate) async fn close(&self) {
        self.cache.close().await;
    }

    fn keep(&self, name: &Multihash, block: &Bytes, checked: bool) {
        self.cache.touch(name);
        self.cache.insert(name.clone(), block, checked);
        let mut state = self.state.lock();
        state.came += block.len() as u64 + OVERHEAD;
        if state.came >= TOUCH_EVERY {
            state.came = 0;
            for (_, name) in &state.wanted {
                self.cache.touch(name);
            }
        }
    }

    fn was_read(&self, name: Multihash) {
        let mut state = self.state.lock();
        if state.read < AT_START {
            state.read += 1;
            state.wanted.put(name.as_bytes().into(), name);
        }
    }
}

/// The name of a block, if it is a node of a directory and not too long.
fn named_directory(key: &str, block: &Bytes) -> Option<Multihash> {
    let wanted = block.len() as u64 <= LONGEST && dag::is_directory(block);
    wanted.then(|| Multihash::of_key(key)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirlock::DirLock;

    const EMPTY: &[u8] = &[0x0a, 0x02, 0x08, 0x01];
    const KEY: &str = "/CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y";

    /// The first read of a start comes at once, and on a busy machine before the tables are read,
    /// or before the datastore that was open before has let go of the directory.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_first_read_waits_for_lock_and_tables() {
        static PATIENT: Purpose = Purpose {
            load_patience: Duration::from_secs(120),
            lock_patience: Duration::from_secs(120),
            ..PURPOSE
        };
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let config = DiskCacheConfig {
                path: dir.path().to_owned(),
                max_bytes: BYTES,
            };
            DiskCache::open_for(&PATIENT, config, false, Arc::default())
        };
        let block = Bytes::from_static(EMPTY);
        let name = named_directory(KEY, &block).unwrap();
        let cache = open();
        cache.insert(name.clone(), &block, false);
        cache.close().await;

        let lock = DirLock::take(dir.path()).unwrap();
        let cache = open();
        let mut read = std::pin::pin!(cache.get(&name, block.len() as u64));
        tokio::select! {
            biased;
            found = &mut read => panic!("the directory is locked: {found:?}"),
            () = std::future::ready(()) => {}
        }
        drop(lock);
        assert_eq!(read.await, Some(block));
        cache.close().await;
    }
}
