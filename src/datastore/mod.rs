//! The datastore: keys and blocks, kept on Walrus and found through the index.
//!
//! | module | holds |
//! |---|---|
//! | `open` | how a datastore is put together |
//! | `inspect` | a datastore for inspection only |
//! | `presence` | each node notes beside the index that it is there |
//! | `blocks` | many blocks are read beside the nodes |
//! | `write` | puts, deletes, batches |
//! | `puts` | the values of a batch, and the checks that refuse some |
//! | `writes` | the two ways of writing: directly, or through the journal |
//! | `read` | gets, questions for keys, the contents of a listing |
//! | `copy` | an index is copied to another place |
//! | `import` | the parts with which blocks are imported
//! | `rebuild` | an index that was lost is filled again |
//! | `staged` | blocks that a Go node staged are adopted |
//! | `totals` | totals and counters |
//! | `undo` | deleted blocks are brought back |
//! | `upkeep` | the lifetimes of blobs: plans, and a round at an operator's request |

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::TaskTracker;

use crate::clock::EpochClock;
use crate::error::{Error, Result};
use crate::gone::Gone;
use crate::index::lookup::Lookups;
use crate::index::Index;
use crate::lifetime::RenewalParts;
pub use crate::limits::MAX_VALUE_BYTES;
use crate::locks::KeyLocks;
use crate::log::{Line, Log};
use crate::metrics::Metrics;
use crate::query::{Query, QueryOptions};
use crate::read::disk::DiskCache;
use crate::read::roots::Roots;
use crate::read::{Reader, VerifyReads};
use crate::upload::Uploader;
use crate::walrus::BlobStore;

mod blocks;
mod copy;
mod import;
mod inspect;
mod open;
pub(crate) mod presence;
mod puts;
mod read;
mod rebuild;
mod staged;
mod totals;
mod undo;
mod upkeep;
mod write;
mod writes;

pub use crate::upload::Adopted;
pub(crate) use blocks::Blocks;
pub use copy::copy_index;
pub use inspect::Inspection;
pub use rebuild::{rebuild_index, RebuildFrom};
pub use undo::{DeletedQuery, Undeleted};
pub use upkeep::Round;
use writes::Writes;

/// One operation of a batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Op {
    /// Stores a value under a key.
    Put(String, Bytes),
    /// Removes a key; an unknown key is fine.
    Delete(String),
}

impl Op {
    fn key(&self) -> &str {
        match self {
            Op::Put(key, _) | Op::Delete(key) => key,
        }
    }
}

/// A datastore on Walrus.
///
/// Every method may be called from any task, concurrently. Dropping a returned future gives the
/// call up: its HTTP request is dropped, and a block that was not indexed yet will not be. Puts and
/// deletes of one key run one after another.
///
/// ```
/// use walrusds::{Config, WalrusDatastore};
///
/// # let runtime = tokio::runtime::Runtime::new()?;
/// # let net = walrus_devnet::Devnet::start_blocking(walrus_devnet::Options {
/// #     cheap_ids: true, ..Default::default() })?;
/// # let repo = tempfile::tempdir()?;
/// # let url = net.url();
/// let config = Config::from_json(&format!(
///     r#"{{"publisherURL": "{url}", "aggregatorURL": "{url}", "indexPath": "index.sqlite"}}"#
/// ))?;
/// # runtime.block_on(async {
/// let store = WalrusDatastore::open(config, repo.path()).await?;
/// store.put("/greeting", b"hello"[..].into()).await?;
/// assert_eq!(store.get("/greeting").await?.as_deref(), Some(&b"hello"[..]));
/// assert_eq!(store.get("/nothing").await?, None);
/// store.close().await?;
/// # Ok::<(), walrusds::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WalrusDatastore {
    shared: Arc<Shared>,
}

struct Shared {
    index: Arc<Lookups>,
    store: Arc<dyn BlobStore>,
    uploader: Arc<Uploader>,
    verify_reads: VerifyReads,
    metrics: Arc<Metrics>,
    log: Arc<Log>,
    epoch_clock: Arc<EpochClock>,
    gone: Arc<Gone>,
    locks: KeyLocks,
    disk_cache: Option<Arc<DiskCache>>,
    /// The roots that are kept on disk, if the datastore belongs to a repo.
    roots: Option<Roots>,
    reader: Reader,
    writes: Writes,
    /// The parts of renewal, whether or not this node renews.
    renewal: Arc<RenewalParts>,
    calls: TaskTracker,
    stop: CancellationToken,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl WalrusDatastore {
    /// Registers a call, so that close waits for it.
    fn enter(&self) -> Result<TaskTrackerToken> {
        let token = self.shared.calls.token();
        if self.shared.calls.is_closed() {
            return Err(Error::closed("datastore"));
        }
        Ok(token)
    }

    /// Lists keys (and values) in key order.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    pub fn query(&self, options: QueryOptions) -> Result<Query> {
        let call = self.enter()?;
        let contents = Arc::<Shared>::clone(&self.shared);
        Ok(Query::new(contents, call, options))
    }

    /// Returns when everything acknowledged so far survives a power cut of this machine. That is
    /// the case already where puts return only once they are on Walrus and indexed, or synced in
    /// the journal; with [`JournalSync::Sync`](crate::config::JournalSync::Sync) the journal is
    /// synced now, whatever the prefix.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed); [`ErrorKind::Disk`](crate::ErrorKind::Disk)
    /// if the journal cannot be synced.
    pub async fn sync(&self, _prefix: &str) -> Result<()> {
        let _call = self.enter()?;
        if let Some(journal) = self.shared.writes.journal() {
            journal.sync().await?;
        }
        if let Some(roots) = &self.shared.roots {
            roots.synced();
        }
        Ok(())
    }

    /// The log; it can still be read when the datastore is closed.
    pub(crate) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.shared.log)
    }

    /// Takes the oldest log line out.
    pub fn next_log_line(&self) -> Option<Line> {
        self.shared.log.pop()
    }

    /// Refuses new calls and writes that wait for room in a full journal, waits for the calls in
    /// flight, empties the journal for at most `drainTimeoutSeconds`, stops the workers and closes
    /// the index. Blocks that are left in the journal wait for the next open, and so do packs that
    /// are neither full nor `packMaxAgeSeconds` old, if `drainPartialPacks` is false. Closing again
    /// is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index) if the index could not be closed in order;
    /// everything acknowledged is stored all the same.
    pub async fn close(&self) -> Result<()> {
        let shared = &self.shared;
        shared.calls.close();
        if let Some(journal) = shared.writes.journal() {
            // Writes that wait for room would delay the end for as long as Walrus takes nothing.
            journal.turn_away();
        }
        shared.calls.wait().await;
        failpoint!("close.begun");
        shared.reader.close().await;
        // Uploads whose callers have given up end before the workers stop: the totals are written
        // after them.
        shared.writes.close().await;
        failpoint!("close.packed");
        shared.stop.cancel();
        let workers = std::mem::take(&mut *shared.workers.lock());
        for worker in workers {
            let _ = worker.await;
        }
        if let Some(cache) = &shared.disk_cache {
            cache.close().await;
        }
        if let Some(roots) = &shared.roots {
            roots.close().await;
        }
        failpoint!("close.stopped");
        shared.index.close().await
    }
}

impl Drop for WalrusDatastore {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
