//! The datastore: keys and blocks, kept on Walrus and found through the index.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, EpochClock, SystemClock};
use crate::config::{Config, IndexConfig};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::gone::{self, Gone};
use crate::index::lookup::Lookups;
use crate::index::postgres::{PostgresIndex, PostgresOptions};
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::index::{Index, KeyRange, ListItem, Record, Usage};
use crate::lasting::Lasting;
use crate::lifetime::{self, RenewalParts, MIN_RENEWAL_EPOCHS};
use crate::limits::MAX_KEY_BYTES;
pub use crate::limits::MAX_VALUE_BYTES;
use crate::locks::KeyLocks;
use crate::log::{Level, Line, Log};
use crate::metrics::Metrics;
use crate::multihash::{self, Match, Multihash};
use crate::pack::{NewBlock, Packer, UploadParts};
use crate::query::{owned, Contents, Query, QueryOptions};
use crate::read::disk::DiskCache;
use crate::read::roots::Roots;
use crate::read::{BlockCheck, Reader, ReaderParts};
use crate::staging::{
    abandoned, had_journal, needed, AskFirst, Block, FlushParts, Flusher, Journal, Owner, Room,
    Staged,
};
use crate::walrus::cache::BlobCache;
use crate::walrus::{BlobStore, Client, StoreOptions};

/// How often the running totals are written to the index, if they changed.
const USAGE_FLUSH: Duration = Duration::from_secs(5);

/// How often the index is asked for what an operator must know.
const NOTICES: Duration = Duration::from_secs(5);

/// How long a journalled write waits for the index to say what it holds.
const INDEX_PATIENCE: Duration = Duration::from_secs(2);

/// One operation of a batch.
#[derive(Debug, Clone)]
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
/// call up: its HTTP request is dropped, and a block that was not indexed yet will not be.
/// Puts and deletes of one key run one after another.
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
    pub(crate) index: Arc<Lookups>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) verify_reads: bool,
    pub(crate) metrics: Arc<Metrics>,
    log: Arc<Log>,
    clock: Arc<dyn Clock>,
    epoch_clock: Arc<EpochClock>,
    gone: Arc<Gone>,
    /// Rows that end sooner than this do not count as stored.
    fresh_for: Duration,
    locks: KeyLocks,
    disk_cache: Option<DiskCache>,
    /// Where the datastore belongs to a repo.
    roots: Option<Roots>,
    reader: Reader,
    writes: Writes,
    calls: TaskTracker,
    stop: CancellationToken,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// What a datastore is part of.
#[derive(Default)]
struct Own<'a> {
    /// The table, if the index tells.
    owner: Option<&'a Owner>,
    repo: Option<&'a Path>,
}

/// Where writes go.
enum Writes {
    /// To Walrus, at once.
    Through(Packer),
    /// To the local journal, and to Walrus later.
    Journal {
        journal: Arc<Journal>,
        flusher: Flusher,
        drain_timeout: Duration,
        full_timeout: Duration,
        ask_first: AskFirst,
    },
}

impl Writes {
    /// Whether the block was accepted and is damaged in the journal.
    fn is_damaged(&self, key: &str) -> bool {
        matches!(self, Writes::Journal { journal, .. } if journal.damage(key).is_some())
    }
}

impl WalrusDatastore {
    /// Opens a datastore: connects to the index (creating or upgrading its tables if needed). The
    /// publisher and aggregators are not contacted. Relative paths in `config` are taken from
    /// `repo`. Must be called within a tokio runtime, which the datastore uses until closed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what the operator must change, [`ErrorKind::Index`] when the
    /// index cannot be reached or used.
    pub async fn open(config: Config, repo: &Path) -> Result<Self> {
        let config = config.resolve(repo);
        config.check_paths()?;
        config.check_repo(repo)?;
        let index: Arc<dyn Index> = match &config.index {
            IndexConfig::Postgres(url) => Arc::new(
                PostgresIndex::open(PostgresOptions {
                    max_open_conns: config.max_open_conns,
                    ..PostgresOptions::new(url, &config.table)
                })
                .await?,
            ),
            IndexConfig::Sqlite(path) => {
                Arc::new(SqliteIndex::open(SqliteOptions::new(path, &config.table)).await?)
            }
        };
        let store = Arc::new(Client::new(config.client())?);
        let cache = store.cache();
        let log = Arc::new(Log::default());
        // Asked for where there is a journal to belong to it, or might be.
        let has_place = config.journal.is_some() || had_journal(repo);
        let identity = match has_place {
            true => index.identity().await,
            false => Ok(None),
        };
        let owner = match identity {
            Ok(identity) => identity.map(|identity| Owner {
                identity,
                name: config.table.clone(),
            }),
            Err(e) => {
                let _ = index.close().await;
                return Err(e);
            }
        };
        let journal = config
            .journal
            .as_ref()
            .map(|journal| journal.path.as_path());
        let opened = abandoned(repo, journal, owner.as_ref(), &log).and_then(|()| {
            let (index, clock) = (Arc::clone(&index), Arc::new(SystemClock));
            let own = Own {
                owner: owner.as_ref(),
                // Without a repo there is no directory of ours.
                repo: Some(repo).filter(|repo| !repo.as_os_str().is_empty()),
            };
            Self::assemble(&config, index, store, clock, cache, own, log)
        });
        if opened.is_err() {
            let _ = index.close().await;
        }
        opened
    }

    /// Puts a datastore together from parts: for tests, and for embedders with an index or store
    /// of their own. Paths in `config` are used as they are.
    ///
    /// # Errors
    /// The journal cannot be opened: [`ErrorKind::Locked`] while another datastore has it open,
    /// [`ErrorKind::Disk`], [`ErrorKind::Corrupt`].
    pub fn with_parts(
        config: &Config,
        index: Arc<dyn Index>,
        store: Arc<dyn BlobStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let cache = Arc::new(BlobCache::new(config.blob_cache_bytes));
        let own = Own::default();
        Self::assemble(config, index, store, clock, cache, own, Arc::default())
    }

    fn assemble(
        config: &Config,
        index: Arc<dyn Index>,
        store: Arc<dyn BlobStore>,
        clock: Arc<dyn Clock>,
        cache: Arc<BlobCache>,
        own: Own<'_>,
        log: Arc<Log>,
    ) -> Result<Self> {
        let lookups = Arc::new(Lookups::new(index, config.row_ttl));
        // Whatever is written passes there.
        let index: Arc<dyn Index> = Arc::<Lookups>::clone(&lookups);
        let metrics = Arc::new(Metrics::default());
        let epoch_clock = Arc::new(EpochClock::new(config.epoch_duration));
        let options = StoreOptions {
            epochs: config.epochs,
            deletable: config.deletable,
        };
        let stop = CancellationToken::new();
        let only_reads = lookups.only_reads();
        while let Some(notice) = lookups.take_notice() {
            log.push(Level::Error, notice);
        }
        if let (Some(why), Some(journal)) = (only_reads, &config.journal) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "journalPath: {why}, so blocks in a write journal ({}) could be uploaded and paid for, and never \
                     be found: remove journalPath from this node's configuration, or give it an index to which it \
                     may write",
                    journal.path.display()
                ),
            ));
        }
        if let Some(why) = only_reads {
            log.push(
                Level::Info,
                format!(
                    "{why}: this node reads, and refuses to store and to delete while that is so"
                ),
            );
        }
        let keeps = !config.disable_flush && only_reads.is_none();
        let renewing = !config.renew_interval.is_zero() && keeps;
        // With epochs of 1 every row is due at once: only what has lapsed is stored anew.
        let fresh_for = if renewing || !keeps {
            Duration::ZERO
        } else {
            config.renew_lead.min(config.epoch_duration / 2)
        };
        let locks = KeyLocks::default();
        let gone = Arc::new(gone::none());
        let upload = UploadParts {
            store: Arc::clone(&store),
            index: Arc::clone(&index),
            clock: Arc::clone(&clock),
            epoch_clock: Arc::clone(&epoch_clock),
            metrics: Arc::clone(&metrics),
            log: Arc::clone(&log),
            gone: Arc::clone(&gone),
            options,
            target_bytes: config.pack_target_size_bytes,
            workers: config.workers,
        };
        let writes = match &config.journal {
            None => Writes::Through(Packer::start(upload)),
            Some(settings) => {
                let journal = Journal::open(
                    &settings.path,
                    settings.max_bytes,
                    own.owner,
                    Arc::clone(&log),
                )?;
                let journal = Arc::new(journal);
                Writes::Journal {
                    flusher: Flusher::start(FlushParts {
                        journal: Arc::clone(&journal),
                        upload,
                        locks: locks.clone(),
                        idle: settings.idle_flush,
                        max_age: settings.max_age,
                        drain_partial: settings.drain_partial,
                        fresh_for,
                    }),
                    journal,
                    drain_timeout: settings.drain_timeout,
                    full_timeout: settings.full_timeout,
                    ask_first: AskFirst::default(),
                }
            }
        };
        let disk_cache = config.disk_cache.clone().map(|settings| {
            cache.share_with_disk();
            DiskCache::open(settings, Arc::clone(&log))
        });
        let mut workers = vec![tokio::spawn(flush_usage(
            Arc::clone(&index),
            Arc::clone(&metrics),
            stop.clone(),
        ))];
        workers.push(tokio::spawn(log_notices(
            Arc::clone(&index),
            Arc::clone(&log),
            stop.clone(),
        )));
        if renewing {
            if config.epochs < MIN_RENEWAL_EPOCHS {
                log.push(
                    Level::Warn,
                    format!(
                        "epochs is {}: renewals buy {MIN_RENEWAL_EPOCHS}, since a blob of the present epoch alone cannot be renewed in time; 5 or more cost less",
                        config.epochs
                    ),
                );
            }
            workers.push(tokio::spawn(lifetime::renew(
                RenewalParts {
                    index: Arc::clone(&index),
                    store: Arc::clone(&store),
                    clock: Arc::clone(&clock),
                    epoch_clock: Arc::clone(&epoch_clock),
                    metrics: Arc::clone(&metrics),
                    log: Arc::clone(&log),
                    options,
                    interval: config.renew_interval,
                    lead: config.renew_lead,
                    epoch: config.epoch_duration,
                },
                stop.clone(),
            )));
        }
        let roots = own
            .repo
            .map(|repo| Roots::open(repo, &config.table, Arc::clone(&log)));
        let reader = Reader::new(ReaderParts {
            index: Arc::clone(&lookups),
            store: Arc::clone(&store),
            cache,
            metrics: Arc::clone(&metrics),
        });
        Ok(WalrusDatastore {
            shared: Arc::new(Shared {
                index: lookups,
                store,
                verify_reads: config.verify_reads,
                metrics,
                log,
                clock,
                epoch_clock,
                gone,
                fresh_for,
                locks,
                disk_cache,
                roots,
                reader,
                writes,
                calls: TaskTracker::new(),
                stop,
                workers: Mutex::new(workers),
            }),
        })
    }

    /// Registers a call, so that close waits for it.
    fn enter(&self) -> Result<TaskTrackerToken> {
        let token = self.shared.calls.token();
        if self.shared.calls.is_closed() {
            return Err(Error::closed("datastore"));
        }
        Ok(token)
    }

    /// Stores `value` under `key`. Returns once it is on Walrus and indexed; with a journal, once it
    /// survives a power cut of this machine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a key that no index takes, and for a value that is not what the
    /// multihash in its key names; [`ErrorKind::TooLarge`] for a value
    /// beyond [`MAX_VALUE_BYTES`] or what the publishers take; [`ErrorKind::Walrus`],
    /// [`ErrorKind::Index`]; with a journal, [`ErrorKind::Disk`].
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
        Metrics::add(&shared.metrics.commits, 1);
        Metrics::add(&shared.metrics.blocks_put, puts.len() as u64);
        let bytes: usize = puts.iter().map(|put| put.value.len()).sum();
        Metrics::add(&shared.metrics.bytes_put, bytes as u64);

        if let Some(why) = shared.index.only_reads() {
            return shared.refuse_new(why, puts, &deletes).await;
        }
        let (puts, room) = match &shared.writes {
            Writes::Through(_) => (puts, None),
            Writes::Journal {
                journal,
                full_timeout,
                ..
            } => {
                // Room before locks: a write that waits for room must not hold up the blocks that will make it.
                let puts = shared.without_staged(puts, journal).await?;
                let (puts, room) = shared.with_room(puts, journal, *full_timeout).await?;
                (puts, Some(room))
            }
        };
        let locked = puts
            .iter()
            .map(|put| put.key.clone())
            .chain(deletes.iter().cloned())
            .collect();
        let guard = Arc::new(shared.locks.lock(locked).await);
        match &shared.writes {
            Writes::Through(packer) => {
                let blocks = shared.not_stored_yet(puts).await?;
                if !blocks.is_empty() {
                    packer.submit(blocks, Arc::clone(&guard))?.wait().await?;
                }
            }
            Writes::Journal {
                journal, ask_first, ..
            } => {
                let puts = shared.without_indexed(puts, ask_first).await;
                if let Some(room) = room {
                    let puts = puts.into_iter().map(|put| (put.key, put.value)).collect();
                    journal.append(puts, room, Arc::clone(&guard)).await?;
                }
            }
        }
        if deletes.is_empty() {
            return Ok(());
        }
        // A statement that has begun may take effect although nobody waits for it any more: it runs
        // to its end, and the keys stay locked until then, so that it cannot land after a later put.
        let shared = Arc::clone(shared);
        Lasting::new(async move {
            let _until_done = (call, guard);
            caught(shared.delete(deletes)).await
        })
        .await
    }

    /// The value of `key`, in memory of its own; `None` if the key is unknown.
    ///
    /// # Errors
    /// [`ErrorKind::BlobNotFound`] and [`ErrorKind::Corrupt`] name key and blob: the key is known,
    /// but no aggregator gave its bytes, or all gave wrong ones.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.get_shared(key).await?.map(owned))
    }

    /// As [`get`](Self::get). The value may be a part of a window, and keep all of it in memory: for a caller
    /// who copies it at once.
    pub(crate) async fn get_shared(&self, key: &str) -> Result<Option<Bytes>> {
        let _call = self.enter()?;
        self.shared.get(key).await
    }

    /// Whether `key` is known. Asks the index alone.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn has(&self, key: &str) -> Result<bool> {
        Ok(self.get_size(key).await?.is_some())
    }

    /// The size of the value of `key` (bytes); `None` if the key is unknown. Asks the index alone.
    ///
    /// # Errors
    /// [`ErrorKind::Index`]; [`ErrorKind::Corrupt`] if the index holds nonsense.
    pub async fn get_size(&self, key: &str) -> Result<Option<u64>> {
        let _call = self.enter()?;
        Metrics::add(&self.shared.metrics.lookups, 1);
        if let Some(block) = self.shared.staged(key) {
            return Ok(Some(block.len()));
        }
        match self.shared.lookup(key).await? {
            None => Ok(None),
            Some(record) => record.size_of(key).map(Some),
        }
    }

    /// As [`get_size`](Self::get_size), from memory alone and without waiting; `None` when memory does
    /// not tell.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn peek_size(&self, key: &str) -> Result<Option<Option<u64>>> {
        let _call = self.enter()?;
        let known = if let Some(block) = self.shared.staged(key) {
            Some(Some(block.len()))
        } else if let Some(record) = self.shared.index.cached(key) {
            record.size_of(key).ok().map(Some)
        } else {
            check_key(key).is_err().then_some(None)
        };
        if known.is_some() {
            Metrics::add(&self.shared.metrics.lookups, 1);
        }
        Ok(known)
    }

    /// As [`get_size`](Self::get_size) for many keys, with one question to the index. The result has the
    /// keys' order; a row that holds nonsense is its key's own error.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn get_sizes(&self, keys: Vec<String>) -> Result<Vec<Result<Option<u64>>>> {
        let _call = self.enter()?;
        Metrics::add(&self.shared.metrics.lookups, keys.len() as u64);
        let mut sizes: Vec<_> = keys
            .iter()
            .map(|key| Ok(self.shared.staged(key).map(|block| block.len())))
            .collect();
        // Where to look next; a key that no index takes is not there.
        let rest = |(at, key): (usize, String)| {
            let ask = matches!(sizes.get(at), Some(Ok(None))) && check_key(&key).is_ok();
            ask.then_some((at, key))
        };
        let (places, keys): (Vec<_>, Vec<_>) =
            keys.into_iter().enumerate().filter_map(rest).unzip();
        let records = self.shared.index.find_each(&keys).await?;
        for ((at, key), record) in places.into_iter().zip(&keys).zip(records) {
            sizes[at] = record.and_then(|r| r.map(|r| r.size_of(key)).transpose());
        }
        Ok(sizes)
    }

    /// Removes `key`; an unknown key is fine. Gone on return; for lookups of other nodes that have
    /// just seen it, after [`Config::row_ttl`] at most.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.commit(vec![Op::Delete(key.to_owned())]).await
    }

    /// Lists keys (and values) in key order.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn query(&self, options: QueryOptions) -> Result<Query> {
        let call = self.enter()?;
        let contents = Arc::<Shared>::clone(&self.shared);
        Ok(Query::new(contents, call, options))
    }

    /// Returns when everything acknowledged so far survives a power cut of this machine. That is so
    /// already: puts return only once they are on Walrus and indexed, or synced in the journal.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub async fn sync(&self, _prefix: &str) -> Result<()> {
        let _call = self.enter()?;
        if let Some(roots) = &self.shared.roots {
            roots.synced();
        }
        Ok(())
    }

    /// What is stored under the index and in the journal, in O(1): running totals. A block that is
    /// just being indexed may count twice.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn disk_usage(&self) -> Result<Usage> {
        let _call = self.enter()?;
        let stored = self.shared.index.usage().await?;
        let now = stored.plus(self.shared.metrics.pending_usage());
        let staged = match &self.shared.writes {
            Writes::Journal { journal, .. } => journal.staged(),
            Writes::Through(_) => Staged::default(),
        };
        let indexed = Usage {
            blocks: now.blocks.max(0),
            bytes: now.bytes.max(0),
        };
        Ok(indexed.plus(Usage {
            blocks: i64::try_from(staged.blocks).unwrap_or(i64::MAX),
            bytes: i64::try_from(staged.bytes).unwrap_or(i64::MAX),
        }))
    }

    /// Counters since open, by name.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let shared = &self.shared;
        let mut all = shared.metrics.snapshot();
        let (running, limit) = match &shared.writes {
            Writes::Through(packer) => packer.uploads(),
            Writes::Journal {
                journal, flusher, ..
            } => {
                let staged = journal.staged();
                all.push(("journal_blocks", staged.blocks));
                all.push(("journal_bytes", staged.bytes));
                all.push(("journal_disk_bytes", staged.disk_bytes));
                all.push(("journal_syncs", journal.syncs()));
                flusher.uploads()
            }
        };
        all.push(("uploads_running", running as u64));
        all.push(("uploads_limit", limit as u64));
        all.extend(shared.store.counters());
        all.extend(shared.disk_cache.iter().flat_map(DiskCache::counters));
        all.extend(shared.reader.counters());
        all
    }

    /// The log, to be read when the datastore is closed.
    pub(crate) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.shared.log)
    }

    /// Takes the oldest log line out.
    pub fn next_log_line(&self) -> Option<Line> {
        self.shared.log.pop()
    }

    /// Refuses new calls, waits for those in flight, empties the journal for at most
    /// `drainTimeoutSeconds` (the rest waits for the next open, and so do packs that are neither full nor
    /// `packMaxAgeSeconds` old, if `drainPartialPacks` is false), stops the workers and closes the
    /// index. Closing again is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] if the index could not be closed in order; everything acknowledged is
    /// stored all the same.
    pub async fn close(&self) -> Result<()> {
        let shared = &self.shared;
        shared.calls.close();
        shared.calls.wait().await;
        failpoint!("close.begun");
        shared.reader.close().await;
        // Uploads that nobody waits for any more end first: the totals are written after them.
        match &shared.writes {
            Writes::Through(packer) => packer.close().await,
            Writes::Journal {
                journal,
                flusher,
                drain_timeout,
                ..
            } => {
                flusher.close(*drain_timeout).await;
                journal.close().await;
            }
        }
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

#[async_trait]
impl Contents for Shared {
    fn list_staged(&self, range: &KeyRange, limit: usize) -> Vec<ListItem> {
        match &self.writes {
            Writes::Journal { journal, .. } => journal.list(range, limit),
            Writes::Through(_) => Vec::new(),
        }
    }

    async fn list_indexed(
        &self,
        range: &KeyRange,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<ListItem>> {
        self.index.list(range, skip, limit).await
    }

    async fn value(&self, key: &str) -> Result<Option<Bytes>> {
        self.get(key).await
    }
}

impl Shared {
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        if let Some(value) = self.staged_value(key)? {
            if self.verify_reads && multihash::check(key, &value) == Match::No {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("block {key} in the journal does not hash to its key"),
                ));
            }
            if let Some(roots) = &self.roots {
                roots.keep_at_start(key, &value, self.verify_reads);
            }
            self.count_get(&value);
            return Ok(Some(value));
        }
        if multihash::check(key, &[]) == Match::Unknown {
            // A row may be of an older value.
            self.absent(key)?;
        }
        let mut failed: Option<(Record, Error)> = None;
        loop {
            let (record, asked) = match failed {
                None => match self.index.cached(key) {
                    Some(record) => (Some(record), false),
                    None => (self.lookup(key).await?, true),
                },
                Some(_) => (self.index.find_anew(key).await?, true),
            };
            let Some(record) = record else {
                return self.absent(key).map(|()| None);
            };
            if let Some((before, error)) = failed {
                // The row may have moved to another blob meanwhile; if it has not, that is it.
                if before == record {
                    if error.kind() == ErrorKind::BlobNotFound {
                        self.gone.insert(record.blob_id.clone());
                    }
                    return Err(error);
                }
                failed = None;
            }
            match self.read(key, &record, asked).await {
                Ok(Some(value)) => {
                    self.count_get(&value);
                    return Ok(Some(value));
                }
                // Staged by a Go node and promoted since: the row says where.
                Ok(None) => {}
                Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => {
                    failed = Some((record, e));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn count_get(&self, value: &Bytes) {
        Metrics::add(&self.metrics.gets, 1);
        Metrics::add(&self.metrics.get_bytes, value.len() as u64);
    }

    /// The block as it lies in the journal. Whoever does not find it there looks into the index
    /// next: a block leaves the journal only after its row is committed.
    fn staged(&self, key: &str) -> Option<Arc<Block>> {
        match &self.writes {
            Writes::Journal { journal, .. } => journal.find(key),
            Writes::Through(_) => None,
        }
    }

    /// Its value; `None` also if it is damaged, as a row may point to another copy.
    fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        let Writes::Journal { journal, .. } = &self.writes else {
            return Ok(None);
        };
        match journal.find(key).map(|block| journal.read(&block)) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(e)) if e.kind() == ErrorKind::Corrupt => Ok(None),
            Some(Err(e)) => Err(e),
        }
    }

    /// That nothing is known of a key is no answer for a block that was accepted and is damaged.
    fn absent(&self, key: &str) -> Result<()> {
        let Writes::Journal { journal, .. } = &self.writes else {
            return Ok(());
        };
        match journal.damage(key) {
            None => Ok(()),
            Some(damage) => Err(Error::new(ErrorKind::Corrupt, damage)),
        }
    }

    /// A key that no index takes is a key that is not there.
    async fn lookup(&self, key: &str) -> Result<Option<Record>> {
        if check_key(key).is_err() {
            return Ok(None);
        }
        self.index.find(key).await
    }

    /// The bytes a row points at, checked. `None` if they were staged and no longer are. `asked`: the index
    /// had to be asked for the row.
    async fn read(&self, key: &str, record: &Record, asked: bool) -> Result<Option<Bytes>> {
        if record.staged {
            let value = self.index.staged_value(key).await?;
            let wrong = |value: &Bytes| {
                let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
                let check = BlockCheck::new(key, size, self.verify_reads);
                check.judge(value).err()
            };
            if let Some(reason) = value.as_ref().and_then(wrong) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("staged block {key}: {reason}"),
                ));
            }
            return Ok(value);
        }
        let range = record.range().map_err(|e| e.context(key))?;
        let len = range.end - range.start;
        let check = BlockCheck::new(key, record.size, self.verify_reads);
        let cache = match &self.disk_cache {
            Some(cache) if len > 0 => Multihash::of_key(key).map(|name| (cache, name)),
            _ => None,
        };
        if record.patch_id.is_none() {
            if let Some(value) = self.reader.held(&record.blob_id, &range, &check) {
                return Ok(Some(value));
            }
        }
        if let Some(roots) = &self.roots {
            if let Some(value) = roots.get(key, len).await {
                return Ok(Some(value));
            }
        }
        if let Some((cache, name)) = &cache {
            if let Some(value) = cache.get(name, len).await {
                if asked && record.patch_id.is_none() {
                    self.reader.rows_follow(&record.blob_id, &range);
                }
                return Ok(Some(value));
            }
        }
        let value = if len == 0 {
            check
                .judge(&[])
                .map(|()| Bytes::new())
                .map_err(|reason| Error::new(ErrorKind::Corrupt, reason))
        } else if let Some(patch) = &record.patch_id {
            let check = |bytes: &[u8]| check.judge(bytes);
            self.store.read_patch_of(patch, len, &check).await
        } else if let Some(read) = self.read_lapsed(record, range.start, len, &check).await {
            read
        } else {
            self.reader
                .block(&record.blob_id, range.clone(), &check)
                .await
        };
        if let (Some(roots), Ok(value)) = (&self.roots, &value) {
            roots.keep_read(key, value, self.verify_reads);
        }
        if let (Some((cache, name)), Ok(value)) = (cache, &value) {
            cache.insert(name, value, self.verify_reads);
        }
        value.map(Some).map_err(|e| {
            e.context(format_args!(
                "reading {key} (blob {}, offset {}, {len} bytes)",
                record.blob_id, range.start
            ))
        })
    }

    /// Whether the epoch has begun in which a row's blob is no longer stored.
    fn is_over(&self, row: &Record) -> bool {
        self.epoch_clock
            .is_over(u64::try_from(row.end_epoch).unwrap_or(0))
    }

    /// A block of a blob that has lapsed, as far as this node knows; `None` if it has not, or if that does not
    /// settle it. Another node may have renewed it, so the aggregators are asked, but a 404 is not waited over.
    async fn read_lapsed(
        &self,
        record: &Record,
        start: u64,
        len: u64,
        check: &BlockCheck,
    ) -> Option<Result<Bytes>> {
        if !self.is_over(record) {
            return None;
        }
        match self.store.read_window(&record.blob_id, start, len).await {
            Ok(bytes) => check.judge(&bytes).is_ok().then_some(Ok(bytes)),
            Err(e) if e.kind() == ErrorKind::BlobNotFound => Some(Err(e)),
            Err(_) => None,
        }
    }

    /// Whether what a row points at is on Walrus beyond `until`, as far as this node knows.
    fn is_stored(&self, row: &Record, until: SystemTime) -> bool {
        row.is_fresh(until, &self.epoch_clock) && !self.gone.contains(&row.blob_id)
    }

    /// The blocks of a batch that must be uploaded, with what they replace.
    async fn not_stored_yet(&self, puts: Vec<Put>) -> Result<Vec<NewBlock>> {
        if puts.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let known = self.index.get_many(&keys).await?;
        let fresh_until = self.clock.now() + self.fresh_for;
        let mut blocks = Vec::with_capacity(puts.len());
        for (put, known) in puts.into_iter().zip(known) {
            if let Some(record) = &known {
                if self.is_stored(record, fresh_until) && put.is_in(record.size) {
                    Metrics::add(&self.metrics.blocks_known, 1);
                    continue;
                }
            }
            blocks.push(NewBlock {
                key: put.key,
                value: put.value,
                replaces: known.map(|record| Usage {
                    blocks: 1,
                    bytes: record.size.max(0),
                }),
            });
        }
        Ok(blocks)
    }

    /// What a node does whose index can only be read: a block that is indexed is stored, however long, and Kubo
    /// puts the empty directory at every start. Everything else is refused.
    async fn refuse_new(&self, why: &str, puts: Vec<Put>, deletes: &[String]) -> Result<()> {
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let rows = self.index.get_many(&keys).await?;
        let mut new = puts.iter().zip(&rows).filter(|(put, row)| {
            !row.as_ref()
                .is_some_and(|row| !row.staged && put.is_in(row.size))
        });
        let (what, key) = match (new.next(), deletes.first()) {
            (Some((put, _)), _) => ("stored", &put.key),
            (None, Some(key)) => ("deleted", key),
            (None, None) => {
                Metrics::add(&self.metrics.blocks_known, puts.len() as u64);
                return Ok(());
            }
        };
        // The modes of a file are set on this machine; a server may take writes again by itself.
        let kind = match self.index.is_local() {
            true => ErrorKind::Config,
            false => ErrorKind::Index,
        };
        Err(Error::new(
            kind,
            format!("{key} cannot be {what} by this node: {why}. Use a node that may write to the index"),
        ))
    }

    /// Leaves out the blocks that are in the journal already. Not where a writer holds the key: a deletion that
    /// its caller has given up takes effect before a later put, so that must wait for it. The staged copy is
    /// read before it is relied on: a damaged one is no reason to let a good one go.
    async fn without_staged(&self, puts: Vec<Put>, journal: &Arc<Journal>) -> Result<Vec<Put>> {
        let mut copies = Vec::new();
        for (at, put) in puts.iter().enumerate() {
            // In this order: a deletion that is not seen begins later.
            if !put.names_content || self.locks.is_held(&put.key) {
                continue;
            }
            let copy = journal
                .find(&put.key)
                .filter(|block| block.len() == put.value.len() as u64 && block.may_be_relied_on());
            copies.extend(copy.map(|copy| (at, copy)));
        }
        if copies.is_empty() {
            return Ok(puts);
        }
        let whole = {
            let journal = Arc::clone(journal);
            let read = move || {
                let whole =
                    |(at, copy): (usize, Arc<Block>)| journal.read(&copy).is_ok().then_some(at);
                copies.into_iter().filter_map(whole).collect::<HashSet<_>>()
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|e| Error::new(ErrorKind::Internal, format!("reading the journal: {e}")))?
        };
        Metrics::add(&self.metrics.blocks_known, whole.len() as u64);
        let new = puts.into_iter().enumerate();
        let new = new
            .filter(|(at, _)| !whole.contains(at))
            .map(|(_, put)| put);
        Ok(new.collect())
    }

    /// Room in the journal for puts. If there is none, those that are indexed need none: Kubo puts the empty
    /// directory at every start, and must start while nothing can be uploaded.
    async fn with_room(
        &self,
        puts: Vec<Put>,
        journal: &Journal,
        patience: Duration,
    ) -> Result<(Vec<Put>, Room)> {
        let bytes = |puts: &[Put]| needed(puts.iter().map(|p| (p.key.len(), p.value.len())));
        if let Some(room) = journal.room_now(bytes(&puts)) {
            return Ok((puts, room));
        }
        // As in `without_staged`: a deletion that is not seen begins later.
        let (held, free): (Vec<_>, Vec<_>) = puts
            .into_iter()
            .partition(|put| self.locks.is_held(&put.key));
        let mut puts = self.without_rows(free).await.0;
        puts.extend(held);
        let room = journal.room(bytes(&puts), patience).await?;
        Ok((puts, room))
    }

    /// Leaves out the blocks that are indexed already, as far as that is worth a question.
    async fn without_indexed(&self, puts: Vec<Put>, ask_first: &AskFirst) -> Vec<Put> {
        if puts.is_empty() || !ask_first.is_worth_it(puts.iter().map(|p| p.value.len()).sum()) {
            return puts;
        }
        let before = puts.len();
        let (new, answered) = self.without_rows(puts).await;
        if !answered {
            ask_first.rest();
        } else if new.len() < before {
            ask_first.found_one();
        }
        new
    }

    /// Leaves out the blocks that are indexed, and whether the index has answered. An index that does not
    /// does not hold a write up: the rows are looked for before the upload, too.
    async fn without_rows(&self, puts: Vec<Put>) -> (Vec<Put>, bool) {
        if puts.is_empty() {
            return (puts, true);
        }
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let asked = tokio::time::timeout(INDEX_PATIENCE, self.index.get_many(&keys)).await;
        let Ok(Ok(rows)) = asked else {
            return (puts, false);
        };
        let fresh_until = self.clock.now() + self.fresh_for;
        let before = puts.len();
        let rows = puts.into_iter().zip(rows);
        let new = rows.filter(|(put, row)| {
            // The blob of a row whose staged copy is damaged may not have been read back yet.
            !row.as_ref()
                .is_some_and(|row| self.is_stored(row, fresh_until) && put.is_in(row.size))
                || self.writes.is_damaged(&put.key)
        });
        let new: Vec<Put> = new.map(|(put, _)| put).collect();
        Metrics::add(&self.metrics.blocks_known, (before - new.len()) as u64);
        (new, true)
    }

    async fn delete(&self, mut keys: Vec<String>) -> Result<()> {
        // What cannot be stored is not there.
        keys.retain(|key| check_key(key).is_ok());
        failpoint!("delete.begun");
        if keys.is_empty() {
            return Ok(());
        }
        let deleted = self.delete_rows(&keys).await;
        // Rows may be gone all the same, of blocks that are about to leave the journal for them.
        if let (Err(_), Writes::Journal { journal, .. }) = (&deleted, &self.writes) {
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
        // After the index, so that a failure leaves everything as it was. The keys are held, so
        // nothing can be staged or indexed in between.
        if let Writes::Journal { journal, .. } = &self.writes {
            journal.delete(keys).await?;
        }
        Ok(())
    }
}

/// Logs what an operator must know of the index, as long as the datastore is open.
async fn log_notices(index: Arc<dyn Index>, log: Arc<Log>, stop: CancellationToken) {
    loop {
        while let Some(notice) = index.take_notice() {
            log.push(Level::Error, notice);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(NOTICES) => {}
        }
    }
}

/// Writes the running totals every now and then, and once more at the end.
async fn flush_usage(index: Arc<dyn Index>, metrics: Arc<Metrics>, stop: CancellationToken) {
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(USAGE_FLUSH) => false,
        };
        let delta = metrics.take_usage();
        failpoint!("usage.taken");
        if delta != Usage::default() && caught(index.add_usage(delta)).await.is_err() {
            metrics.usage_delta(delta);
        }
        failpoint!("usage.written");
        if stopping {
            return;
        }
    }
}

/// A value that is to be stored.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    /// Whether the key is the multihash of the value: only then can anything that is stored under the key
    /// be known to be this value.
    names_content: bool,
}

impl Put {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the key is the multihash of other bytes: it could be stored and
    /// never be read.
    fn new((key, value): (String, Bytes)) -> Result<Put> {
        let names_content = match multihash::check(&key, &value) {
            Match::Yes => true,
            Match::Unknown => false,
            Match::No => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the value of {} bytes does not hash to the multihash in its key {key}: nothing was stored",
                        value.len()
                    ),
                ));
            }
        };
        Ok(Put {
            key,
            value,
            names_content,
        })
    }

    /// Whether a row of this size under its key is of this value.
    fn is_in(&self, size: i64) -> bool {
        self.names_content && i64::try_from(self.value.len()) == Ok(size)
    }
}

/// Checks values against their keys. A large batch is shared among the processors: to hash a block takes about
/// as long as to write it into the journal.
async fn check_puts(mut puts: Vec<(String, Bytes)>) -> Result<Vec<Put>> {
    /// A part of fewer bytes is not worth another thread.
    const PART_LEAST: usize = 512 << 10;
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = *PROCESSORS
        .get_or_init(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let check = |puts: Vec<(String, Bytes)>| -> Result<Vec<Put>> {
        puts.into_iter().map(Put::new).collect()
    };
    let bytes: usize = puts.iter().map(|(_, value)| value.len()).sum();
    let part = bytes.div_ceil(processors).max(PART_LEAST);
    let mut others = Vec::new();
    let mut in_part = 0;
    for at in (1..puts.len()).rev() {
        in_part += puts[at].1.len();
        if in_part >= part {
            let part = puts.split_off(at);
            others.push(tokio::task::spawn_blocking(move || check(part)));
            in_part = 0;
        }
    }
    let mut checked = check(puts)?;
    for part in others.into_iter().rev() {
        let part = part
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("checking a batch: {e}")))?;
        checked.extend(part?);
    }
    Ok(checked)
}

/// Refuses keys that the index cannot hold exactly.
fn check_key(key: &str) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::InvalidArgument, what));
    if key.len() > MAX_KEY_BYTES {
        return bad(format!(
            "key of {} bytes is too long: an index holds keys of up to {MAX_KEY_BYTES} bytes",
            key.len()
        ));
    }
    if key.contains('\0') {
        return bad(format!(
            "key {key:?} holds a NUL byte, which no index can store"
        ));
    }
    Ok(())
}

fn check_value(key: &str, len: usize) -> Result<()> {
    if len > MAX_VALUE_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("value of {len} bytes under {key} is too large: at most {MAX_VALUE_BYTES} bytes are stored under one key"),
        ));
    }
    Ok(())
}

/// The last operation on each key, in the order of first mention.
fn last_wins(ops: Vec<Op>) -> (Vec<(String, Bytes)>, Vec<String>) {
    let mut position: HashMap<String, usize> = HashMap::with_capacity(ops.len());
    let mut last: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops {
        match position.get(op.key()) {
            Some(&at) => last[at] = op,
            None => {
                position.insert(op.key().to_owned(), last.len());
                last.push(op);
            }
        }
    }
    let mut puts = Vec::new();
    let mut deletes = Vec::new();
    for op in last {
        match op {
            Op::Put(key, value) => puts.push((key, value)),
            Op::Delete(key) => deletes.push(key),
        }
    }
    (puts, deletes)
}
