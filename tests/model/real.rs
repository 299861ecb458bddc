//! Nodes with the real client on a local Walrus, and a real index.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use walrus_devnet::{Devnet, FaultAction, FaultPlan, FaultRule, Loss, Op, Options};
use walrusds::clock::Clock;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Client, Config, Index, WalrusDatastore};

use crate::journals::Journals;
use testkit::faulty::{Fault, Faults, FaultyIndex, FaultyStore, Fuse};
use testkit::mem::ManualClock;
use testkit::model::{play, Node, Step, World, NODES};
use testkit::postgres::Postgres;

const EPOCH: Duration = Duration::from_secs(1000);

enum Place {
    Sqlite(tempfile::TempDir),
    Postgres { database: String, table: String },
}

struct Real {
    place: Place,
    net: Devnet,
    clock: Arc<ManualClock>,
    faults: Arc<Faults>,
    seed: u64,
    /// A directory for each node's disk cache, too small for everything.
    caches: tempfile::TempDir,
    journals: Option<Journals>,
    /// The index below each node's wrapper, to be closed when the node dies.
    open: Mutex<Vec<Option<Arc<dyn Index>>>>,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("runtime"))
}

pub fn play_on_sqlite(steps: &[Step], seed: u64) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("directory");
    play_on(Place::Sqlite(dir), steps, seed, None)
}

/// The same with write journals, at one node.
pub fn play_on_sqlite_with_journals(steps: &[Step], seed: u64) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("directory");
    play_on(Place::Sqlite(dir), steps, seed, Some(Journals::new()))
}

pub fn play_on_postgres(steps: &[Step], seed: u64) -> Result<(), String> {
    static DATABASE: OnceLock<String> = OnceLock::new();
    static TABLES: AtomicU32 = AtomicU32::new(0);
    let database = DATABASE.get_or_init(|| Postgres::shared().database());
    let place = Place::Postgres {
        database: database.clone(),
        table: format!("t{}", TABLES.fetch_add(1, Relaxed)),
    };
    play_on(place, steps, seed, None)
}

fn play_on(
    place: Place,
    steps: &[Step],
    seed: u64,
    journals: Option<Journals>,
) -> Result<(), String> {
    runtime().block_on(async {
        let net = Devnet::start(Options {
            cheap_ids: true,
            ..Options::default()
        });
        let rates = vec![
            (Fault::Before, 0.02),
            (Fault::After, 0.02),
            (Fault::Delay, 0.1),
        ];
        let world = Real {
            place,
            net: net.await.expect("local Walrus"),
            clock: Arc::default(),
            faults: Arc::new(Faults::seeded(seed, rates, Duration::from_millis(5))),
            seed,
            caches: tempfile::tempdir().expect("directory"),
            journals,
            open: Mutex::new(vec![None; NODES]),
        };
        world.set_quiet(false);
        let played = tokio::time::timeout(Duration::from_secs(120), play(&world, steps)).await;
        match played {
            Ok(done) => done.map(drop),
            Err(_) => Err("it hangs".to_owned()),
        }
    })
}

/// The faults that the network makes now and then.
fn plan(seed: u64) -> FaultPlan {
    let often = |ops: &[Op], action| {
        FaultRule::new(action)
            .on(ops.iter().copied())
            .with_probability(0.04)
    };
    let both = [Op::Put, Op::Get, Op::Range];
    let reads = [Op::Get, Op::Range];
    let cut = |reset| FaultAction::CutBody { after: 10, reset };
    let rules = vec![
        often(&both, FaultAction::Overloaded { retry_after: None }),
        often(&both, FaultAction::Internal),
        often(&both, FaultAction::Reset { after: 10 }),
        often(&[Op::Put], FaultAction::AnswerLost { how: Loss::Cut }),
        often(&[Op::Put], FaultAction::Unconfirmed),
        often(
            &[Op::Put],
            FaultAction::ErrorResult {
                message: String::new(),
            },
        ),
        often(&reads, FaultAction::NotFound),
        often(&reads, cut(false)),
        often(&reads, cut(true)),
        often(&reads, FaultAction::Truncate { by: 1 }),
        often(&reads, FaultAction::Corrupt { offset: 3 }),
        often(&reads, FaultAction::WrongBlob { blob_id: None }),
    ];
    FaultPlan { seed, rules }
}

impl Real {
    async fn index(&self) -> Arc<dyn Index> {
        // In half of the sequences deleted rows are kept, and puts bring them back.
        let keep_deleted = Duration::from_secs(self.seed % 2 * 86_400);
        match &self.place {
            Place::Sqlite(dir) => {
                let options = SqliteOptions::new(dir.path().join("index"), "t")
                    .with_keep_deleted(keep_deleted);
                Arc::new(SqliteIndex::open(options).await.expect("index"))
            }
            Place::Postgres { database, table } => {
                let options = PostgresOptions::new(Postgres::shared().url(database), table)
                    .with_max_open_conns(4)
                    .with_keep_deleted(keep_deleted);
                Arc::new(PostgresIndex::open(options).await.expect("index"))
            }
        }
    }

    fn config(&self, node: usize) -> Config {
        let url = self.net.url();
        let cache = self.caches.path().join(node.to_string());
        let cache = cache.display();
        let mut config = Config::from_json(&format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"i","epochs":3,
                "epochDurationSeconds":1000,"renewIntervalSeconds":1,"packTargetSizeBytes":4096,
                "requestTimeoutSeconds":5,"maxRetries":2,"cachePath":"{cache}","cacheBytes":20000}}"#
        ))
        .expect("configuration");
        // Time passes by command here, so the test need not wait for it.
        config.renew_interval = Duration::from_millis(20);
        // Each node sees the other's deletions at once.
        config.row_ttl = Duration::ZERO;
        config
    }

    fn free_leases(&self) {
        match &self.place {
            Place::Sqlite(dir) => {
                let file = rusqlite::Connection::open(dir.path().join("index")).expect("index");
                file.busy_timeout(Duration::from_secs(10)).expect("index");
                file.execute("DELETE FROM t_leases", []).expect("leases");
            }
            Place::Postgres { database, table } => {
                Postgres::shared().execute(database, &format!("DELETE FROM {table}_leases"));
            }
        }
    }
}

#[async_trait]
impl World for Real {
    async fn open(&self, node: usize) -> Node {
        let fuse = Arc::new(Fuse::default());
        let mut config = self.config(node);
        config.journal = self.journals.as_ref().map(|journals| {
            let mut journal = journals.of(node);
            journal.idle_flush = Duration::from_millis(50);
            journal
        });
        let inner = self.index().await;
        self.open.lock()[node] = Some(Arc::clone(&inner));
        let index = FaultyIndex::new(inner, Arc::clone(&self.faults), Arc::clone(&fuse));
        let client = Client::new(
            config
                .client()
                .with_backoff_base(Duration::from_millis(2))
                .with_backoff_max(Duration::from_millis(10))
                .with_not_found_backoff(vec![Duration::from_millis(5); 2])
                .with_cool_down(Duration::from_millis(20)),
        );
        // The network makes this node's faults; the wrapper is there for the fuse.
        let none = Arc::new(Faults::none());
        let store = FaultyStore::new(Arc::new(client.expect("client")), none, Arc::clone(&fuse));
        let clock = Arc::<ManualClock>::clone(&self.clock);
        let datastore =
            WalrusDatastore::with_parts(&config, Arc::new(index), Arc::new(store), clock);
        Node {
            datastore: Arc::new(datastore.expect("opening")),
            fuse,
        }
    }

    async fn crashed(&self, node: usize) {
        if let Some(journals) = &self.journals {
            journals.crashed(node);
        }
        let inner = self.open.lock()[node].take();
        if let Some(inner) = inner {
            inner.close().await.expect("closing the dead node's index");
        }
        self.free_leases();
    }

    async fn pass(&self, _seconds: u16) -> Result<(), String> {
        self.set_quiet(true);
        self.net.advance_epoch(1);
        self.clock.advance(EPOCH);
        let index = self.index().await;
        let until = Instant::now() + Duration::from_secs(60);
        let lead = self.clock.now() + EPOCH;
        let renewed = loop {
            // A blob without live blocks is left to end.
            let live = async {
                let due = index.due_for_renewal(lead, None, 1000).await?;
                let ids: Vec<String> = due.into_iter().map(|item| item.blob_id).collect();
                index.live(&ids).await
            };
            let live = live.await.map_err(|e| e.to_string())?;
            if live.iter().all(|live| live.blocks == 0) {
                break Ok(());
            }
            if Instant::now() > until {
                break Err("blobs that are due are not renewed".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        index.close().await.map_err(|e| e.to_string())?;
        self.set_quiet(false);
        renewed
    }

    fn faulty(&self) -> bool {
        true
    }

    fn set_quiet(&self, quiet: bool) {
        self.faults.set_quiet(quiet);
        if quiet {
            self.net.clear_faults();
        } else {
            self.net.set_faults(plan(self.seed));
        }
    }
}
