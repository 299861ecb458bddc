//! Opening: a datastore is put together from its configuration, or from parts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::totals::flush_usage;
use super::{Shared, WalrusDatastore, Writes};
use crate::clock::{Clock, EpochClock, SystemClock};
use crate::config::{Config, IndexConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::gone;
use crate::index::lookup::Lookups;
use crate::index::postgres::{PostgresIndex, PostgresOptions};
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::index::Index;
use crate::lifetime::{self, RenewalParts, MIN_RENEWAL_EPOCHS};
use crate::locks::KeyLocks;
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::pack::{Packer, UploadParts};
use crate::read::disk::DiskCache;
use crate::read::roots::Roots;
use crate::read::{Reader, ReaderParts};
use crate::staging::{abandoned, had_journal, AskFirst, FlushParts, Flusher, Journal, Owner};
use crate::walrus::{BlobStore, Client, StoreOptions};

/// How often the index is asked for what an operator must know.
const NOTICES: Duration = Duration::from_secs(5);

/// What a datastore is part of.
#[derive(Default)]
struct Own<'a> {
    /// The table, if the index tells.
    owner: Option<&'a Owner>,
    repo: Option<&'a Path>,
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
            Self::assemble(&config, index, store, clock, own, log)
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
        let own = Own::default();
        Self::assemble(config, index, store, clock, own, Arc::default())
    }

    fn assemble(
        config: &Config,
        index: Arc<dyn Index>,
        store: Arc<dyn BlobStore>,
        clock: Arc<dyn Clock>,
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
        log_new_notices(&*lookups, &log);
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
        let disk_cache = config
            .disk_cache
            .clone()
            .map(|settings| DiskCache::open(settings, Arc::clone(&log)));
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
            metrics: Arc::clone(&metrics),
            memory_bytes: config.blob_cache_bytes,
            beside_disk: disk_cache.is_some(),
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
}

/// Logs what an operator must know of the index by now.
fn log_new_notices(index: &dyn Index, log: &Log) {
    while let Some(notice) = index.take_notice() {
        log.push(Level::Error, notice);
    }
}

/// Logs what an operator must know of the index, as long as the datastore is open.
async fn log_notices(index: Arc<dyn Index>, log: Arc<Log>, stop: CancellationToken) {
    loop {
        log_new_notices(&*index, &log);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(NOTICES) => {}
        }
    }
}
