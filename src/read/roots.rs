//! A small copy of the newest directories on the local disk, always on.
//!
//! Kubo loads the root of its MFS, and the nodes of it if it is sharded, before anything else: without them no
//! command and no daemon starts. They must be there while no aggregator answers, and also when their blob has
//! lapsed. So the nodes of UnixFS directories that are put or read stay in a cache of their own beside the
//! repo's index. It decides nothing: whether a block exists is the index's business.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskCache;
use crate::config::DiskCacheConfig;
use crate::dag;
use crate::log::Log;
use crate::multihash::Multihash;

/// The directory in the repo.
const PLACE: &str = "walrusds-roots";
/// Its size at most (bytes): a root of MFS takes at most 256 KiB, as Kubo shards larger directories.
const BYTES: u64 = 16 << 20;
/// Longest node that is kept (bytes).
const LONGEST: u64 = 256 << 10;

/// See the module.
pub(crate) struct Roots(DiskCache);

impl Roots {
    /// Those of one table, in a repo.
    pub(crate) fn open(repo: &Path, table: &str, log: Arc<Log>) -> Roots {
        Roots(DiskCache::open(
            DiskCacheConfig {
                path: repo.join(PLACE).join(table),
                max_bytes: BYTES,
            },
            log,
        ))
    }

    /// Keeps a block, if it is a node of a directory. `checked`: the key is its multihash.
    pub(crate) fn keep(&self, key: &str, block: &Bytes, checked: bool) {
        if block.len() as u64 > LONGEST || !dag::is_directory(block) {
            return;
        }
        if let Some(name) = Multihash::of_key(key) {
            self.0.insert(name, block, checked);
        }
    }

    /// The block of `len` bytes under a key, if it is here. Checked.
    pub(crate) async fn get(&self, key: &str, len: u64) -> Option<Bytes> {
        if len == 0 || len > LONGEST {
            return None;
        }
        self.0.get(&Multihash::of_key(key)?, len).await
    }

    /// Writes what was kept.
    pub(crate) async fn close(&self) {
        self.0.close().await;
    }
}
