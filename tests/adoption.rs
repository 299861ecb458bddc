//! Blocks that nodes with the Go plugin have staged and left behind are adopted, on tables as those
//! nodes leave them. The Go plugin's statements are given in plain SQL.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise, ManualClock, MemStore};
use testkit::node::{log, metric};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, Options};
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::log::Level;
use walrusds::walrus::Check;
use walrusds::{
    Adopted, BlobStore, Body, Config, Error, ErrorKind, Index, KeyRecord, Leases, Record, Result,
    Rows, StoreOptions, StoreResult, Usage, WalrusDatastore,
};

const HOUR: Duration = Duration::from_secs(3600);

/// The Go plugin's newest tables.
const GO_TABLES: &str = "
    CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, object_id TEXT NOT NULL DEFAULT '',
        patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL,
        encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, deletable BOOLEAN NOT NULL DEFAULT FALSE,
        end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        updated_at TIMESTAMPTZ NOT NULL DEFAULT now());
    CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, size BIGINT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ);
    CREATE INDEX walrus_index_staging_created_idx ON walrus_index_staging (created_at);";

/// The lease of a Go node: 15 minutes, whose nanoseconds the server takes for seconds.
const BROKEN: &str = "now() + 900000000000 * interval '1 second'";
const LIVING: &str = "now() + interval '15 minutes'";
const OVER: &str = "now() - interval '1 second'";

struct Go {
    pg: &'static Postgres,
    db: String,
}

impl Go {
    fn new() -> Go {
        let pg = Postgres::shared();
        let db = pg.database();
        pg.execute(&db, GO_TABLES);
        Go { pg, db }
    }

    fn run(&self, sql: &str) {
        self.pg.execute(&self.db, sql);
    }

    fn ask(&self, sql: &str) -> String {
        self.pg.scalar(&self.db, sql)
    }

    /// A put that was made some hours ago, and the state of its claim since.
    fn staged(&self, key: &str, value: &[u8], hours: u32, lease: &str) {
        let hex = data_encoding::HEXLOWER.encode(value);
        self.run(&format!(
            "INSERT INTO walrus_index_staging (key, value, size, created_at, leased_until) VALUES \
             ('{key}', '\\x{hex}', {}, now() - interval '{hours} hours', {lease}) \
             ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, size = EXCLUDED.size, \
             created_at = EXCLUDED.created_at, leased_until = EXCLUDED.leased_until",
            value.len()
        ));
    }

    fn blocks(&self, seeds: std::ops::Range<u64>, lease: &str) -> Vec<(String, Bytes)> {
        let blocks = seeds.map(|seed| noise(seed, 2000));
        let blocks: Vec<_> = blocks.map(|value| (key_of(&value), value)).collect();
        for (key, value) in &blocks {
            self.staged(key, value, 2, lease);
        }
        blocks
    }

    fn left(&self) -> usize {
        let count = self.ask("SELECT count(*) FROM walrus_index_staging");
        count.parse().unwrap()
    }

    /// A node on this database. `extra` is JSON members, each followed by a comma.
    async fn node(&self, store: &Arc<MemStore>, extra: &str) -> WalrusDatastore {
        self.node_on(Arc::clone(store) as _, extra).await
    }

    async fn node_on(&self, store: Arc<dyn BlobStore>, extra: &str) -> WalrusDatastore {
        let url = self.pg.url(&self.db);
        let config = format!(
            r#"{{{extra}"publisherURL":"http://p","aggregatorURL":"http://a","postgresURL":"{url}"}}"#
        );
        let config = Config::from_json(&config).unwrap();
        let clock = Arc::<ManualClock>::default();
        let index = Arc::new(self.index().await);
        WalrusDatastore::with_parts(&config, index, store, clock).unwrap()
    }

    async fn index(&self) -> PostgresIndex {
        let options = PostgresOptions::new(self.pg.url(&self.db), "walrus_index");
        PostgresIndex::open(options.with_max_open_conns(4))
            .await
            .unwrap()
    }
}

async fn all_read(ds: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
}

/// By configuration, on Walrus: what a Go node left that was shut down, killed in the midst of
/// uploads, or stopped when its leases were still right.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_adopts_what_a_dead_go_node_left() {
    let net = Devnet::start(Options {
        cheap_ids: true,
        ..Options::default()
    });
    let (net, go) = (net.await.unwrap(), Go::new());
    let mut blocks = go.blocks(0..20, "NULL");
    blocks.extend(go.blocks(20..40, BROKEN));
    blocks.extend(go.blocks(40..60, OVER));
    // A key that names no content, and an empty value.
    for (key, value) in [("/pins/a", &b"recursive"[..]), ("/pins/b", b"")] {
        go.staged(key, value, 2, BROKEN);
        blocks.push((key.to_owned(), Bytes::from_static(value)));
    }
    // A living Go node has claimed one and will yet take the other.
    let living = go.blocks(100..101, LIVING);
    let fresh = noise(101, 500);
    go.staged(&key_of(&fresh), &fresh, 0, "NULL");
    // A row that was damaged in the database.
    let wrong = key_of(&noise(102, 500));
    go.staged(&wrong, b"something else", 2, BROKEN);

    let (url, repo) = (net.url(), tempfile::tempdir().unwrap());
    let open = |adopt: &str| {
        let config = format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","postgresURL":"{}","maxOpenConns":4,{adopt}
                "epochs":5,"network":"mainnet","disableFlush":true}}"#,
            go.pg.url(&go.db)
        );
        WalrusDatastore::open(Config::from_json(&config).unwrap(), repo.path())
    };
    let ds = open(r#""adoptStagingSeconds":3600,"#).await.unwrap();
    let before = ds.disk_usage().await.unwrap();
    eventually("the blocks are adopted", || go.left() == 3).await;
    all_read(&ds, &blocks).await;
    let told = |ds: &WalrusDatastore| -> Vec<_> {
        let lines = log(ds).into_iter();
        lines
            .filter(|line| line.level == Level::Error && line.message.contains(&wrong))
            .collect()
    };
    let adopted = |ds: &WalrusDatastore| metric(ds, "blocks_adopted");
    eventually("the round ends", || adopted(&ds) == blocks.len() as u64).await;
    // One file for the blocks of the block store, and one pack for the others.
    assert_eq!(metric(&ds, "packs_stored"), 2);
    assert_eq!(told(&ds).len(), 1, "the wrong block is named, once");
    assert_eq!(
        ds.disk_usage().await.unwrap(),
        before,
        "they counted as staged"
    );
    assert_eq!(
        go.ask("SELECT string_agg(state || ' ' || (object_id <> '')::text, ' ') FROM walrus_index_blobs"),
        "live true live true"
    );
    ds.close().await.unwrap();

    // The Go node's blocks are read as before, and a later round pays for nothing.
    let ds = open("").await.unwrap();
    all_read(&ds, &living).await;
    let adopted = ds.adopt_staged(HOUR).await.unwrap();
    assert_eq!(
        adopted.wrong,
        Usage::new(1, 14),
        "it is named to each process"
    );
    assert_eq!((adopted.stored, adopted.known), Default::default());
    assert_eq!((metric(&ds, "packs_stored"), go.left()), (0, 3));
    ds.close().await.unwrap();
    assert_eq!(net.stats().newly_created, 2);
}

/// What a Go node does while its blocks are under way to Walrus counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_go_node_that_is_at_work_wins() {
    let (go, store) = (Go::new(), Arc::<MemStore>::default());
    let blocks = go.blocks(0..10, "NULL");
    go.staged("/odd", b"old", 2, "NULL");
    let ds = Arc::new(go.node(&store, "").await);
    let held = store.hold_reads.write().await;
    let work = tokio::spawn({
        let ds = Arc::clone(&ds);
        async move { ds.adopt_staged(HOUR).await }
    });
    eventually("a pack is stored", || store.puts.load(SeqCst) > 0).await;
    let [deleted, promoted, staged, reclaimed] = [0, 1, 2, 3].map(|n| &blocks[n].0);
    // Claimed blocks are leased: the flusher of a Go node does not take them.
    let free = "SELECT count(*) FROM walrus_index_staging WHERE leased_until IS NULL OR leased_until < now()";
    let leased_for =
        "SELECT max(leased_until) < now() + interval '1 hour' FROM walrus_index_staging";
    assert!(go.ask(free).parse::<usize>().unwrap() <= 1);
    assert_eq!(go.ask(leased_for), "t");
    go.run(&format!(
        "BEGIN; DELETE FROM walrus_index_staging WHERE key = '{deleted}'; DELETE FROM walrus_index WHERE key = '{deleted}'; COMMIT;
         BEGIN; DELETE FROM walrus_index_staging WHERE key = '{promoted}';
         INSERT INTO walrus_index (key, blob_id, size) VALUES ('{promoted}', 'of-the-go-node', 2000); COMMIT;
         UPDATE walrus_index_staging SET leased_until = {BROKEN} WHERE key = '{reclaimed}'"
    ));
    go.staged(staged, &blocks[2].1, 0, "NULL");
    go.staged("/odd", b"new", 0, "NULL");
    drop(held);
    let adopted = work.await.unwrap().unwrap();
    assert_eq!((adopted.stored.blocks, adopted.wrong.blocks), (6, 0));
    all_read(&ds, &blocks[2..]).await;
    assert_eq!(ds.get(deleted).await.unwrap(), None);
    assert_eq!(ds.get("/odd").await.unwrap().unwrap(), "new");
    let blob = format!("SELECT blob_id FROM walrus_index WHERE key = '{promoted}'");
    assert_eq!(go.ask(&blob), "of-the-go-node");
    let left = "SELECT string_agg(key, ' ' ORDER BY created_at) FROM walrus_index_staging";
    let left = go.ask(left);
    for key in [staged, reclaimed, "/odd"] {
        assert!(left.contains(key), "{left}");
    }
    assert_eq!(go.left(), 3);
    // The put that came meanwhile is as stored as before: the next round takes it.
    let adopted = ds.adopt_staged(Duration::ZERO).await.unwrap();
    assert_eq!((adopted.stored.blocks, go.left()), (3, 0));
    all_read(&ds, &blocks[2..]).await;
    assert_eq!(ds.get("/odd").await.unwrap().unwrap(), "new");
    ds.close().await.unwrap();
}

/// Blocks that are on Walrus already, as after a second `ipfs add` on a Go node, cost nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_already_is_not_stored_again() {
    let (go, store) = (Go::new(), Arc::<MemStore>::default());
    let blocks = go.blocks(0..5, "NULL");
    let ds = go.node(&store, "").await;
    let first = ds.adopt_staged(HOUR).await.unwrap();
    assert_eq!((first.stored.blocks, store.puts.load(SeqCst)), (5, 1));
    go.blocks(0..5, BROKEN);
    let again = ds.adopt_staged(HOUR).await.unwrap();
    assert_eq!((again.known.blocks, again.stored.blocks), (5, 0));
    assert_eq!((go.left(), store.puts.load(SeqCst)), (0, 1));
    all_read(&ds, &blocks).await;
    // A row of another length is no proof, nor is a row under a key that names no content.
    go.run("UPDATE walrus_index SET size = 7");
    go.staged("/odd", b"one", 2, "NULL");
    go.run("INSERT INTO walrus_index (key, blob_id, size) VALUES ('/odd', 'elsewhere', 3)");
    go.blocks(0..5, "NULL");
    let again = ds.adopt_staged(HOUR).await.unwrap();
    assert_eq!((again.known.blocks, again.stored.blocks), (0, 6));
    all_read(&ds, &blocks).await;
    assert_eq!(ds.get("/odd").await.unwrap().unwrap(), "one");
    ds.close().await.unwrap();
}

/// A store that takes bodies up to a length.
struct Small {
    inner: Arc<MemStore>,
    most: u64,
    /// Whether another try may succeed.
    passes: bool,
}

#[async_trait]
impl BlobStore for Small {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        if body.len() > self.most {
            let text = "413";
            return Err(match self.passes {
                true => Error::retryable(ErrorKind::TooLarge, text),
                false => Error::new(ErrorKind::TooLarge, text),
            });
        }
        self.inner.store(body, options).await
    }

    async fn read(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        self.inner.read(id, check).await
    }

    async fn read_range(&self, id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        self.inner.read_range(id, offset, len, check).await
    }

    async fn read_patch(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        self.inner.read_patch(id, check).await
    }
}

/// A block that no publisher takes stays where it is, and holds up none of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_too_large_holds_up_no_other() {
    let go = Go::new();
    let mut blocks = go.blocks(0..3, "NULL");
    let large = noise(100, 30_000);
    go.staged(&key_of(&large), &large, 3, "NULL");
    blocks.extend(go.blocks(3..6, "NULL"));
    let store = Arc::new(Small {
        inner: Arc::default(),
        most: 20_000,
        passes: false,
    });
    let ds = go.node_on(store, "").await;
    for stored in [6, 0] {
        let adopted = ds.adopt_staged(HOUR).await.unwrap();
        assert_eq!(adopted.stored.blocks, stored);
        let too_large = (adopted.too_large.blocks, adopted.too_large.bytes);
        assert_eq!(too_large, (1, 30_000));
    }
    all_read(&ds, &blocks).await;
    assert_eq!(go.left(), 1);
    let lines: Vec<String> = log(&ds).into_iter().map(|line| line.message).collect();
    let named = |line: &String| line.contains(&key_of(&large)) && line.contains("30000 bytes");
    assert_eq!(
        lines.iter().filter(|line| named(line)).count(),
        2,
        "{lines:?}"
    );
    ds.close().await.unwrap();
}

/// A publisher that is away may take what another one refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_refused_for_a_while_is_tried_again() {
    let go = Go::new();
    let mut blocks = go.blocks(0..3, "NULL");
    let large = noise(100, 30_000);
    go.staged(&key_of(&large), &large, 3, "NULL");
    let store = |most| Small {
        inner: Arc::default(),
        most,
        passes: true,
    };
    let small = Arc::new(store(20_000));
    let ds = go.node_on(small, "").await;
    let failed = ds.adopt_staged(HOUR).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::TooLarge);
    all_read(&ds, &blocks).await;
    let failed = ds.adopt_staged(HOUR).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::TooLarge, "it is tried again");
    assert_eq!(go.left(), 1);
    ds.close().await.unwrap();
    let ds = go.node_on(Arc::new(store(u64::MAX)), "").await;
    let adopted = ds.adopt_staged(HOUR).await.unwrap();
    assert_eq!((adopted.stored.blocks, go.left()), (1, 0));
    blocks = vec![(key_of(&large), large)];
    all_read(&ds, &blocks).await;
    ds.close().await.unwrap();
}

/// A node that is killed holds nothing back for ever, whatever the clock of the database did; two
/// nodes at once store each block once.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_the_work_and_outlive_each_other() {
    let (go, store) = (Go::new(), Arc::<MemStore>::default());
    let blocks = go.blocks(0..30, BROKEN);
    let keys: Vec<String> = blocks.iter().map(|(key, _)| key.clone()).collect();
    // Killed after it has claimed a part, and has taken the lease.
    let killed = go.index().await;
    let term = Duration::from_secs(1200);
    let staging = killed.staging().unwrap();
    let claimed = staging.claim(&keys[..10], HOUR, term).await.unwrap();
    assert_eq!(claimed.len(), 10);
    assert!(staging
        .claim(&keys[..10], HOUR, term)
        .await
        .unwrap()
        .is_empty());
    assert!(killed.try_lease("adoption", "killed", HOUR).await.unwrap());
    let small = r#""packTargetSizeBytes":8000,"#;
    let (a, b) = (go.node(&store, small).await, go.node(&store, small).await);
    let busy = a.adopt_staged(HOUR).await.unwrap_err();
    assert_eq!(
        (busy.kind(), busy.is_retryable()),
        (ErrorKind::Locked, true)
    );
    // Its lease was taken while the clock of the database was wrong.
    go.run("UPDATE walrus_index_leases SET expires_at = now() + interval '3 years' WHERE name = 'adoption'");
    let until_done = |ds: WalrusDatastore| async move {
        let mut sum = Adopted::default();
        for _ in 0..3 {
            match ds.adopt_staged(HOUR).await {
                Ok(adopted) => sum = adopted,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Locked, "{e}"),
            }
            if sum.stored.blocks > 0 {
                break;
            }
        }
        (ds, sum.stored.blocks)
    };
    let ((a, by_a), (b, by_b)) = tokio::join!(until_done(a), until_done(b));
    assert_eq!((by_a + by_b, go.left()), (20, 10));
    // The claims run out; those of a wrong clock do not count.
    for lease in [OVER, "now() + interval '2 hours'"] {
        go.run(&format!(
            "UPDATE walrus_index_staging SET leased_until = {lease} WHERE key IN (SELECT key FROM walrus_index_staging LIMIT 5)"
        ));
        let left = go.left();
        assert_eq!(a.adopt_staged(HOUR).await.unwrap().stored.blocks, 5);
        assert_eq!(go.left(), left - 5);
    }
    // The killed node was only slow, and promotes now: its claims are over.
    let rows = claimed.iter().map(|claimed| {
        let row = KeyRecord::new(claimed.claim.key.clone(), Record::new("late", 0, 2000));
        (row, claimed.claim.clone())
    });
    let rows: Vec<_> = rows.collect();
    let mut blob = walrusds::Blob::default();
    blob.blob_id = "late".into();
    assert!(staging.promote(&blob, &rows).await.unwrap().is_empty());
    assert!(staging.discard(&[claimed[0].claim.clone()]).await.unwrap() == 0);
    all_read(&b, &blocks).await;
    let twice = "SELECT count(*) FROM (SELECT blob_id FROM walrus_index GROUP BY blob_id) AS b";
    assert_eq!(go.ask(twice), store.puts.load(SeqCst).to_string());
    for ds in [a, b] {
        ds.close().await.unwrap();
    }
    killed.close().await.unwrap();
}

/// A failed upload, and a node that is closed in the midst of one, give the blocks back at once.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_ends_early_gives_the_blocks_back() {
    let (go, store) = (Go::new(), Arc::<MemStore>::default());
    let blocks = go.blocks(0..5, BROKEN);
    let free = || go.ask("SELECT count(*) FROM walrus_index_staging WHERE leased_until IS NULL");
    let ds = go.node(&store, "").await;
    store.fail_puts.store(true, SeqCst);
    ds.adopt_staged(HOUR).await.unwrap_err();
    assert_eq!((free(), go.left()), ("5".to_owned(), 5));
    all_read(&ds, &blocks).await;
    ds.close().await.unwrap();

    store.fail_puts.store(false, SeqCst);
    go.run(&format!(
        "UPDATE walrus_index_staging SET leased_until = {BROKEN}"
    ));
    let held = store.hold_reads.write().await;
    let ds = go.node(&store, r#""adoptStagingSeconds":3600,"#).await;
    let stored = || !store.blobs.lock().is_empty();
    eventually("a pack is stored", stored).await;
    ds.close().await.unwrap();
    assert_eq!((free(), go.left()), ("5".to_owned(), 5));
    assert_eq!(go.ask("SELECT count(*) FROM walrus_index_leases"), "0");
    drop(held);
}

/// A deletion that meets a promotion waits for it and takes its row: the block stays deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_takes_what_is_promoted_meanwhile() {
    let go = Go::new();
    let index = Arc::new(go.index().await);
    let (key, value) = &go.blocks(0..1, "NULL")[0];
    let (begun, mut begin) = tokio::sync::mpsc::channel::<()>(1);
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let promotion = std::thread::spawn({
        let (url, key) = (go.pg.url(&go.db), key.clone());
        move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls).unwrap();
            let mut work = client.transaction().unwrap();
            let promote = format!(
                "DELETE FROM walrus_index_staging WHERE key = '{key}'; \
                 INSERT INTO walrus_index (key, blob_id, size) VALUES ('{key}', 'promoted', 2000)"
            );
            work.batch_execute(&promote).unwrap();
            begun.blocking_send(()).unwrap();
            ended.recv().unwrap();
            work.commit().unwrap();
        }
    });
    begin.recv().await.unwrap();
    let deletion = tokio::spawn({
        let (index, key) = (Arc::clone(&index), key.clone());
        async move { index.delete(&key).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("the deletion waits", || go.ask(waits) == "1").await;
    end.send(()).unwrap();
    let removed = deletion.await.unwrap().unwrap();
    promotion.join().unwrap();
    assert_eq!(removed, Usage::new(1, value.len() as i64));
    assert_eq!(index.get(key).await.unwrap(), None);
    index.close().await.unwrap();
}

#[tokio::test]
async fn an_index_of_one_node_has_nothing_to_adopt() {
    let config = |extra: &str| {
        Config::from_json(&format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"{extra}}}"#
        ))
    };
    let refused = config(r#","adoptStagingSeconds":60"#).unwrap_err();
    assert!(
        refused
            .message()
            .contains("adoptStagingSeconds is 60, expected 0"),
        "{refused}"
    );
    config(r#","adoptStagingSeconds":0"#).unwrap();
    let repo = tempfile::tempdir().unwrap();
    let ds = WalrusDatastore::open(config("").unwrap(), repo.path());
    let ds = ds.await.unwrap();
    let e = ds.adopt_staged(HOUR).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    ds.close().await.unwrap();
    assert_eq!(
        ds.adopt_staged(HOUR).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}
