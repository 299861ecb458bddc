//! Puts, deletes and batches.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::puts::{check_key, check_puts, check_value, last_wins, Put};
use super::{Op, Shared, WalrusDatastore};
use crate::dag;
use crate::detached::Detached;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Index as _, Record, Rows as _, Usage};
use crate::metrics::Metrics;
use crate::multihash::Multihash;

/// The node of a UnixFS directory without entries.
const EMPTY_DIRECTORY: &[u8] = &[0x0a, 0x02, 0x08, 0x01];

impl WalrusDatastore {
    /// Stores `value` under `key`. Returns once it is on Walrus and indexed; with a journal, once
    /// it survives a power cut of this machine, or with
    /// [`JournalSync::Sync`](crate::config::JournalSync::Sync) the end of the process.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a key that no index takes, and for a value that does not
    /// hash to the multihash in its key; [`ErrorKind::TooLarge`] for a value beyond
    /// [`MAX_VALUE_BYTES`](crate::datastore::MAX_VALUE_BYTES) or the limit of the publishers;
    /// [`ErrorKind::Walrus`], [`ErrorKind::Index`]; with a journal, [`ErrorKind::Disk`].
    pub async fn put(&self, key: &str, value: Bytes) -> Result<()> {
        self.commit(vec![Op::Put(key.to_owned(), value)]).await
    }

    /// Applies operations; the last one on a key wins. Blocks that are stored already are not
    /// uploaded again. Not atomic: after an error some operations may have taken effect, and the
    /// same batch may be committed again.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn commit(&self, ops: Vec<Op>) -> Result<()> {
        let call = self.enter()?;
        let operations = &self.shared.metrics.operations;
        let operation = match &ops[..] {
            [Op::Put(..)] => &operations.put,
            [Op::Delete(_)] => &operations.delete,
            _ => &operations.commit,
        };
        let begun = Instant::now();
        let applied = self.apply(call, ops).await;
        operation.ended(begun, applied.is_ok());
        applied
    }

    async fn apply(&self, call: TaskTrackerToken, ops: Vec<Op>) -> Result<()> {
        let shared = &self.shared;
        for op in &ops {
            if let Op::Put(key, value) = op {
                check_key(key)?;
                check_value(key, value.len())?;
            }
        }
        let (puts, deletes) = last_wins(ops);
        let puts = check_puts(puts).await?;
        if let Some(roots) = &shared.roots {
            let named = puts.iter().filter(|put| put.names_content);
            named.for_each(|put| roots.keep_put(&put.key, &put.value));
        }
        if let Some(cache) = &shared.disk_cache {
            // Structure is here from now on, whichever way the blocks take. The others are when
            // they leave the journal.
            let named = puts.iter().filter(|put| put.names_content);
            for put in named.filter(|put| dag::is_structure(&put.value)) {
                if let Some(name) = Multihash::of_key(&put.key) {
                    cache.insert(name, &put.value, true);
                }
            }
        }
        Metrics::add(&shared.metrics.commits, 1);
        Metrics::add(&shared.metrics.blocks_put, puts.len() as u64);
        let bytes: usize = puts.iter().map(|put| put.value.len()).sum();
        Metrics::add(&shared.metrics.bytes_put, bytes as u64);

        if let Some(why) = shared.index.only_reads() {
            return shared.refuse_new(why, puts, &deletes).await;
        }
        // Room comes before locks: a write that waits for room must not hold the keys of blocks
        // that will make it.
        let (puts, room) = shared.writes.admit(puts).await?;
        let locked = puts
            .iter()
            .map(|put| put.key.clone())
            .chain(deletes.iter().cloned())
            .collect();
        let guard = Arc::new(shared.locks.lock(locked).await);
        shared.writes.write(puts, room, &guard).await?;
        if deletes.is_empty() {
            return Ok(());
        }
        // A statement that has begun may take effect although its caller has given up. So it runs
        // to its end in the background, and the keys stay locked until then: it cannot take effect
        // after a later put.
        let shared = Arc::clone(shared);
        Detached::new(async move {
            let _until_done = (call, guard);
            caught(shared.delete(deletes)).await
        })
        .await
    }

    /// Removes `key`; an unknown key is fine. It is gone on return; for other nodes that have just
    /// looked it up, it is gone after [`Config::row_ttl`](crate::Config::row_ttl) at most.
    ///
    /// # Errors
    /// [`ErrorKind::Index`]; with a journal, [`ErrorKind::Disk`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.commit(vec![Op::Delete(key.to_owned())]).await
    }
}

impl Shared {
    /// The writes of a node whose index can only be read. A put of a block that is stored succeeds,
    /// as long as its storage lasts: then nothing is left to do. So does a put of the empty
    /// directory that is indexed, even if its storage has ended: Kubo puts it at every start, and
    /// it is kept on this disk (`read::roots`). All other writes are refused.
    async fn refuse_new(&self, why: &str, puts: Vec<Put>, deletes: &[String]) -> Result<()> {
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let rows = match self.index.get_many(&keys).await {
            // Kubo must be able to start while the primary is down and standbys answer.
            Err(e) if e.is_retryable() && puts.iter().all(|put| put.value == EMPTY_DIRECTORY) => {
                self.index.find_many(&keys).await?
            }
            rows => rows?,
        };
        let mut refused = puts.iter().zip(&rows).filter(|(put, row)| {
            let row = row.as_ref().filter(|row| !row.staged);
            let kept = |row: &Record| put.is_in(row.size) && put.value == EMPTY_DIRECTORY;
            !row.is_some_and(|row| put.is_in(row.size) && self.writes.is_alive(row) || kept(row))
        });
        let what = match (refused.next(), deletes.first()) {
            (Some((put, Some(row))), _) if !row.staged && put.is_in(row.size) => format!(
                "{} is indexed, but its storage has ended, and it cannot be stored anew",
                put.key
            ),
            (Some((put, _)), _) => format!("{} cannot be stored", put.key),
            (None, Some(key)) => format!("{key} cannot be deleted"),
            (None, None) => {
                Metrics::add(&self.metrics.blocks_known, puts.len() as u64);
                return Ok(());
            }
        };
        // The modes of a file are set by an operator of this machine; a server may take writes
        // again by itself.
        let kind = match self.index.is_local() {
            true => ErrorKind::Config,
            false => ErrorKind::Index,
        };
        Err(Error::new(
            kind,
            format!("{what} by this node: {why}. Use a node that may write to the index"),
        ))
    }

    async fn delete(&self, mut keys: Vec<String>) -> Result<()> {
        // A key that cannot be stored is unknown.
        keys.retain(|key| check_key(key).is_ok());
        failpoint!("delete.begun");
        if keys.is_empty() {
            return Ok(());
        }
        let deleted = self.delete_rows(&keys).await;
        // The rows may be gone although the deletion failed, among them rows for which blocks are
        // about to leave the journal.
        if let (Err(_), Some(journal)) = (&deleted, self.writes.journal()) {
            journal.doubt(&keys);
        }
        deleted
    }

    /// Deletes from the index, then from the journal.
    async fn delete_rows(&self, keys: &[String]) -> Result<()> {
        let removed = match keys {
            [key] => self.index.delete(key).await?,
            keys => self.index.delete_many(keys).await?,
        };
        failpoint!("delete.done");
        Metrics::add(&self.metrics.deletes, keys.len() as u64);
        self.metrics.usage_delta(Usage::default().minus(removed));
        // The journal comes after the index, so that a failure of the index leaves everything as it
        // was. The keys are held, so nothing can be staged or indexed in between.
        if let Some(journal) = self.writes.journal() {
            journal.delete(keys).await?;
        }
        Ok(())
    }
}
