//! Opening: a datastore is put together from its configuration, or from parts.
//!
//! [`Parts`] are the parts that look at the data: an inspection opens them alone. A working
//! datastore adds the parts that write and the tasks that run by themselves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::presence::Presence;
use super::totals::flush_usage;
use super::undo::purge;
use super::writes::Writes;
use super::{Shared, WalrusDatastore};
use crate::clock::{Clock, EpochClock, SystemClock};
use crate::config::{Config, IndexConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::gone;
use crate::index::copy::check_finished;
use crate::index::lookup::Lookups;
use crate::index::postgres::{PostgresIndex, PostgresOptions, StandbyReads};
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::index::Index;
use crate::journal::{abandoned, had_journal, Owner};
use crate::lifetime::{self, RenewalParts, MIN_RENEWAL_EPOCHS};
use crate::locks::KeyLocks;
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::read::disk::DiskCache;
use crate::read::roots::Roots;
use crate::read::{Reader, ReaderParts};
use crate::upload::limit::UploadLimit;
use crate::upload::reuse::Reuse;
use crate::upload::{adopt, none_looked_at, Quilts, Unproven, Uploader};
use crate::walrus::{BlobStore, Client, StoreOptions};

/// How often the index is asked for notices to an operator.
const NOTICES: Duration = Duration::from_secs(5);

/// The table and the repo to which a datastore belongs.
#[derive(Default)]
struct Own<'a> {
    /// The table, if the index gives its identity.
    owner: Option<Owner>,
    repo: Option<&'a Path>,
    /// It is open for a piece of an operator's work: no task but that of the totals runs by itself.
    attended: bool,
}

/// The parts that look at the data. None of them does anything by itself.
pub(super) struct Parts {
    pub(super) index: Arc<dyn Index>,
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) log: Arc<Log>,
}

impl Parts {
    /// Opens the parts. `config` must be [`resolved`]. `only_existing`: the index is used as it is;
    /// otherwise its tables are created or brought up to date. The publishers and aggregators are
    /// not contacted.
    pub(super) async fn open(config: &Config, only_existing: bool) -> Result<Parts> {
        let index: Arc<dyn Index> = match &config.index {
            IndexConfig::Postgres(url) => {
                let options = PostgresOptions {
                    max_open_conns: config.max_open_conns,
                    keep_deleted: config.keep_deleted,
                    only_existing,
                    standby_reads: config.only_retrieves().then(|| {
                        StandbyReads::new(config.standby_max_lag)
                            .with_trust_misses(config.trust_standby_misses)
                    }),
                    ..PostgresOptions::new(url, &config.table)
                };
                Arc::new(PostgresIndex::open(options).await?)
            }
            IndexConfig::Sqlite(path) => {
                let options = SqliteOptions {
                    keep_deleted: config.keep_deleted,
                    only_existing,
                    ..SqliteOptions::new(path, &config.table)
                };
                Arc::new(SqliteIndex::open(options).await?)
            }
        };
        let store = Arc::new(Client::new(config.client())?);
        Ok(Parts {
            index,
            store,
            clock: Arc::new(SystemClock),
            log: Arc::default(),
        })
    }

    /// As [`open`](Self::open), to be written to. An unfinished copy is an error: the last pass of
    /// the copy would remove the blocks that a node stored in it.
    pub(super) async fn open_for_use(config: &Config) -> Result<Parts> {
        let parts = Parts::open(config, false).await?;
        if let Err(e) = check_finished(&*parts.index) {
            let _ = parts.index.close().await;
            return Err(e);
        }
        Ok(parts)
    }

    /// As [`open_for_use`](Self::open_for_use). A table that is missing or old is an error, so that
    /// a wrong path makes none.
    pub(super) async fn open_existing(config: &Config) -> Result<Parts> {
        Parts::open(config, true).await?.index.close().await?;
        Parts::open_for_use(config).await
    }
}

/// The configuration with its paths resolved and checked.
pub(super) fn resolved(config: Config, repo: &Path) -> Result<Config> {
    let config = config.resolve(repo);
    config.check_paths()?;
    config.check_repo(repo)?;
    Ok(config)
}

impl WalrusDatastore {
    /// Opens a datastore: connects to the index (creating or upgrading its tables if needed). The
    /// publisher and aggregators are not contacted. Relative paths in `config` are taken from
    /// `repo`. Must be called within a tokio runtime, which the datastore uses until closed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a setting that the operator must change and for an unfinished copy
    /// ([`copy_index`](crate::copy_index)), [`ErrorKind::Index`] when the index cannot be reached
    /// or used. With a journal, also as
    /// [`with_parts`](Self::with_parts).
    pub async fn open(config: Config, repo: &Path) -> Result<Self> {
        let config = resolved(config, repo)?;
        let parts = Parts::open_for_use(&config).await?;
        let index = Arc::clone(&parts.index);
        let opened = async {
            let own = Own {
                owner: owner(&config, repo, &*index).await?,
                // An empty path means that there is no repo.
                repo: Some(repo).filter(|repo| !repo.as_os_str().is_empty()),
                attended: false,
            };
            let journal = config.journal.as_ref().map(|journal| &*journal.path);
            abandoned(repo, journal, own.owner.as_ref(), &parts.log)?;
            let log = Arc::clone(&parts.log);
            let keeps = keeps(&config, &*parts.index);
            let opened = Self::assemble(&config, parts, own)?;
            if keeps {
                let (epochs, epoch) = (config.epochs, config.epoch_duration);
                let complaint = lifetime::complaint(epochs, epoch, config.renew_interval);
                if let Some(complaint) = complaint {
                    log.push(Level::Error, complaint);
                }
            }
            Ok(opened)
        };
        let opened = opened.await;
        if opened.is_err() {
            let _ = index.close().await;
        }
        opened
    }

    /// Opens a datastore for a piece of an operator's work beside the nodes: a round of renewal, an
    /// undo, a deletion. No journal and no cache is opened, and no task runs by itself. Tables are
    /// neither created nor changed. Relative paths in `config` are taken from `repo`. Must be
    /// called within a tokio runtime, which the datastore uses until closed.
    ///
    /// # Errors
    /// As [`Inspection::open`](super::Inspection::open).
    pub async fn open_beside(mut config: Config, repo: &Path) -> Result<Self> {
        /// An operator's work needs few connections, and nodes may have all others.
        const MOST_CONNS: u32 = 4;
        config = resolved(config, repo)?;
        config.max_open_conns = config.max_open_conns.min(MOST_CONNS);
        (config.journal, config.disk_cache) = (None, None);
        let parts = Parts::open_existing(&config).await?;
        let (index, now) = (Arc::clone(&parts.index), parts.clock.now());
        let own = Own {
            attended: true,
            ..Own::default()
        };
        let opened = async {
            let seen = index.epochs().await?;
            let opened = Self::assemble(&config, parts, own)?;
            opened.shared.epoch_clock.merge(now, &seen);
            Ok(opened)
        };
        let opened = opened.await;
        if opened.is_err() {
            let _ = index.close().await;
        }
        opened
    }

    /// Puts a datastore together from parts: for tests, and for embedders with an index or store of
    /// their own. Paths in `config` are used as they are. Must be called within a tokio runtime.
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
        let parts = Parts {
            index,
            store,
            clock,
            log: Arc::default(),
        };
        Self::assemble(config, parts, Own::default())
    }

    /// Adds the parts that write and the tasks that run by themselves.
    fn assemble(config: &Config, parts: Parts, own: Own<'_>) -> Result<Self> {
        let (store, log) = (Arc::clone(&parts.store), Arc::clone(&parts.log));
        let lookups = Arc::new(Lookups::new(Arc::clone(&parts.index), config.row_ttl));
        // All writes pass through it, so that it learns of changed rows.
        let index: Arc<dyn Index> = Arc::<Lookups>::clone(&lookups);
        let metrics = Arc::new(Metrics::default());
        let only_reads = lookups.only_reads();
        log_new_notices(&*lookups, &log);
        if let Some(why) = only_reads {
            check_only_reads(config, why, &log)?;
        }
        let keeps = keeps(config, &*lookups);
        let renewing = !config.renew_interval.is_zero() && keeps;
        // With `epochs` of 1 every row is due at once: then only blocks that have lapsed are stored
        // anew.
        let spare_for = config.renew_lead.min(config.epoch_duration / 2);
        let fresh_for = match renewing || !keeps {
            true => Duration::ZERO,
            false => spare_for,
        };
        let locks = KeyLocks::default();
        let uploader = Arc::new(Uploader {
            fresh_for,
            spare_for,
            ..uploader(config, Arc::clone(&index), &parts, &metrics)
        });
        let disk_cache = config.disk_cache.clone().map(|settings| {
            let verify = config.verify_reads.local();
            Arc::new(DiskCache::open(settings, verify, Arc::clone(&log)))
        });
        let writes = Writes::start(
            config,
            own.owner.as_ref(),
            Arc::clone(&uploader),
            locks.clone(),
            disk_cache.as_ref(),
        )?;
        let stop = CancellationToken::new();
        let renewal = Arc::new(renewal(config, &uploader));
        let presence = own.repo.and_then(|repo| {
            let dir = config.journal.as_ref().map(|journal| &*journal.path);
            let (journal, clock) = (writes.journal().cloned(), Arc::clone(&parts.clock));
            Presence::new(repo, dir, journal, Arc::clone(&index), clock)
        });
        let usage = flush_usage(
            index.clone(),
            Arc::clone(&metrics),
            writes.journal().cloned(),
            presence,
            stop.clone(),
        );
        let mut workers = vec![tokio::spawn(usage)];
        if !own.attended {
            workers.push(tokio::spawn(purge(
                index.clone(),
                Arc::clone(&log),
                stop.clone(),
            )));
            workers.push(tokio::spawn(log_notices(
                index,
                Arc::clone(&log),
                stop.clone(),
            )));
            if !config.adopt_staging.is_zero() {
                workers.push(tokio::spawn(adopt::adopt(
                    Arc::clone(&uploader),
                    config.adopt_staging,
                    stop.clone(),
                )));
            }
        }
        if renewing && !own.attended {
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
                Arc::clone(&renewal),
                stop.clone(),
            )));
        } else if keeps && !config.epoch_duration.is_zero() && !own.attended {
            let watch = lifetime::watch(Arc::clone(&renewal), stop.clone());
            workers.push(tokio::spawn(watch));
        }
        let roots = own.repo.map(|repo| {
            let verify = config.verify_reads.local();
            Roots::open(repo, &config.table, verify, Arc::clone(&log))
        });
        let reader = Reader::new(ReaderParts {
            index: Arc::clone(&lookups),
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
            memory_bytes: config.blob_cache_bytes,
            disk: disk_cache.clone(),
        });
        Ok(WalrusDatastore {
            shared: Arc::new(Shared {
                index: lookups,
                store,
                verify_reads: config.verify_reads,
                metrics,
                log,
                epoch_clock: Arc::clone(&uploader.epoch_clock),
                gone: Arc::clone(&uploader.gone),
                locks,
                disk_cache,
                roots,
                reader,
                writes,
                renewal,
                uploader,
                calls: TaskTracker::new(),
                stop,
                workers: Mutex::new(workers),
            }),
        })
    }
}

/// What uploads share. Rows count as stored for as long as they have storage.
fn uploader(
    config: &Config,
    index: Arc<dyn Index>,
    parts: &Parts,
    metrics: &Arc<Metrics>,
) -> Uploader {
    let epoch_clock = Arc::new(EpochClock::new(config.epoch_duration));
    let reuse = config.reuse_storage.then(|| {
        // The next round extends what is stored just before, and one more can fail.
        let spare = (config.renew_lead / 4).max(2 * config.renew_interval);
        let (clock, epoch_clock) = (Arc::clone(&parts.clock), Arc::clone(&epoch_clock));
        let n_shards = u16::try_from(config.n_shards).unwrap_or(u16::MAX);
        Arc::new(Reuse::new(clock, epoch_clock, n_shards, spare))
    });
    let (readable, unreadable) = none_looked_at();
    Uploader {
        store: Arc::clone(&parts.store),
        index,
        clock: Arc::clone(&parts.clock),
        epoch_clock,
        reuse,
        metrics: Arc::clone(metrics),
        log: Arc::clone(&parts.log),
        gone: Arc::new(gone::none()),
        options: StoreOptions {
            epochs: config.epochs,
            deletable: config.deletable,
            reuse: false,
        },
        format: config.pack_format,
        quilts: Quilts::new(
            config.n_shards,
            config.pack_target_size_bytes,
            Arc::clone(&parts.log),
        ),
        target_bytes: config.pack_target_size_bytes,
        limit: UploadLimit::new(config.workers),
        unproven: Unproven::default(),
        readable,
        unreadable,
        fresh_for: Duration::ZERO,
        spare_for: Duration::ZERO,
    }
}

/// The parts of renewal, whether or not this node renews.
fn renewal(config: &Config, uploader: &Arc<Uploader>) -> RenewalParts {
    RenewalParts {
        index: Arc::clone(&uploader.index),
        clock: Arc::clone(&uploader.clock),
        epoch_clock: Arc::clone(&uploader.epoch_clock),
        metrics: Arc::clone(&uploader.metrics),
        log: Arc::clone(&uploader.log),
        uploader: Arc::clone(uploader),
        interval: config.renew_interval,
        // Every blob is due in one round before its end at least.
        lead: config
            .renew_lead
            .max(lifetime::time_of_rounds(config.renew_interval, 1)),
        epoch: config.epoch_duration,
        chain: config.walrus_command.clone().map(lifetime::chain_of),
        n_shards: u16::try_from(config.n_shards).unwrap_or(u16::MAX),
        max_waste_percent: config.max_waste_percent,
        bytes_per_second: config.maintenance_bytes_per_second,
        pace: lifetime::Pace::new(config.maintenance_bytes_per_second),
    }
}

/// The parts of renewal for parts that are only looked at.
pub(super) fn renewal_of(config: &Config, parts: &Parts) -> RenewalParts {
    let (index, metrics) = (Arc::clone(&parts.index), Arc::default());
    renewal(config, &Arc::new(uploader(config, index, parts, &metrics)))
}

/// The table to which a journal of this repo must belong. The index is asked for it if there is a
/// journal, or might be one.
async fn owner(config: &Config, repo: &Path, index: &dyn Index) -> Result<Option<Owner>> {
    if config.journal.is_none() && !had_journal(repo) {
        return Ok(None);
    }
    let identity = index.identity().await?;
    Ok(identity.map(|identity| Owner {
        identity,
        name: config.table.clone(),
    }))
}

/// Whether this node has to keep alive what is stored. Others leave that to another node: one that
/// is told so, and one that only reads.
fn keeps(config: &Config, index: &dyn Index) -> bool {
    !config.disable_flush && index.only_reads().is_none()
}

/// Checks the configuration of a node whose index can only be read, and logs that it refuses
/// writes.
///
/// # Errors
/// [`ErrorKind::Config`] if a journal is configured.
fn check_only_reads(config: &Config, why: &str, log: &Log) -> Result<()> {
    if let Some(journal) = &config.journal {
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
    log.push(
        Level::Info,
        format!("{why}: this node reads, and refuses to store and to delete while that is so"),
    );
    Ok(())
}

/// Logs the notices that the index has for an operator by now.
fn log_new_notices(index: &dyn Index, log: &Log) {
    while let Some(notice) = index.take_notice() {
        log.push(Level::Error, notice);
    }
}

/// Logs the notices that the index has for an operator, as long as the datastore is open.
async fn log_notices(index: Arc<dyn Index>, log: Arc<Log>, stop: CancellationToken) {
    loop {
        log_new_notices(&*index, &log);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(NOTICES) => {}
        }
    }
}
