//! The tests of the shared index alone.

use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::{
    Error, ErrorKind, Index, KeyRange, Leases, Ledger, Notes, Record, Renewal, Rows, Totals, Usage,
};

use crate::shared::{keys, row, time};
use crate::Env;
use testkit::postgres::{blocking, signal_each, Postgres, GO_STAGING};
use testkit::{eventually, PATIENCE};

/// A database whose default collation is not byte order (as `en_US.UTF-8` is not).
pub const ICU: &str = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";

/// The Go plugin's newest tables.
pub const GO_NEWEST: &str = "
    CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, object_id TEXT NOT NULL DEFAULT '',
        patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL,
        encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, deletable BOOLEAN NOT NULL DEFAULT FALSE,
        end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        updated_at TIMESTAMPTZ NOT NULL DEFAULT now());
    CREATE INDEX walrus_index_key_prefix_idx ON walrus_index (key text_pattern_ops);
    CREATE INDEX walrus_index_expires_at_idx ON walrus_index (expires_at);
    CREATE INDEX walrus_index_blob_id_idx ON walrus_index (blob_id);
    CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, size BIGINT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ);
    CREATE INDEX walrus_index_staging_created_idx ON walrus_index_staging (created_at);";

pub async fn open(url: &str) -> PostgresIndex {
    PostgresIndex::open(options(url)).await.unwrap()
}

pub fn options(url: &str) -> PostgresOptions {
    let mut options = PostgresOptions::new(url, "walrus_index");
    options.max_open_conns = 6; // many tests share the server
    options
}

async fn env(db: &str, quilts: bool) -> Env {
    env_that_keeps(db, quilts, Duration::ZERO).await
}

async fn env_that_keeps(db: &str, quilts: bool, keep_deleted: Duration) -> Env {
    let url = Postgres::shared().url(db);
    let options = options(&url).with_keep_deleted(keep_deleted);
    let (a, b) = (
        PostgresIndex::open(options.clone()).await,
        PostgresIndex::open(options).await,
    );
    Env {
        a: Arc::new(a.unwrap()),
        b: Arc::new(b.unwrap()),
        quilts,
        _keep: None,
    }
}

/// As [`env_new`], [`env_go`] and [`env_partitioned`], with deleted rows kept.
pub async fn envs_that_keep(keep_deleted: Duration) -> Vec<Env> {
    let pg = Postgres::shared();
    if testkit::citus::given().is_some() {
        return vec![env_that_keeps(&pg.database(), false, keep_deleted).await];
    }
    let dbs = [pg.database(), pg.database_with(ICU), pg.database()];
    pg.execute(&dbs[1], GO_NEWEST);
    pg.execute(&dbs[2], &partitioned(4));
    let mut envs = Vec::new();
    for (db, quilts) in dbs.iter().zip([false, true, false]) {
        envs.push(env_that_keeps(db, quilts, keep_deleted).await);
    }
    envs
}

pub async fn env_new() -> Env {
    let db = Postgres::shared().database();
    env(&db, false).await
}

pub async fn env_go(database: &str) -> Env {
    let pg = Postgres::shared();
    let db = pg.database_with(database);
    pg.execute(&db, GO_NEWEST);
    env(&db, true).await
}

/// A table made by hand as docs/operations.md says, spread over partitions by the hash of the key.
pub fn partitioned(partitions: u32) -> String {
    let mut sql = "CREATE TABLE walrus_index (key TEXT COLLATE \"C\" PRIMARY KEY, blob_id TEXT NOT NULL, \
        blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL, deletable BOOLEAN NOT NULL DEFAULT FALSE, \
        end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now()) \
        PARTITION BY HASH (key);"
        .to_owned();
    for n in 0..partitions {
        sql.push_str(&format!(
            "CREATE TABLE walrus_index_{n} PARTITION OF walrus_index FOR VALUES WITH (MODULUS {partitions}, REMAINDER {n});"
        ));
    }
    sql
}

pub async fn env_partitioned() -> Env {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, &partitioned(16));
    env(&db, false).await
}

const KEY: &str = "/CIQKEY";

async fn refused(options: PostgresOptions) -> Error {
    match PostgresIndex::open(options).await {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e,
    }
}

fn count(db: &str, sql: &str) -> i64 {
    Postgres::shared().scalar(db, sql).parse().unwrap()
}

// ---------------------------------------------------------------------------------------------
// Opening

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_as_documented() {
    let pg = Postgres::shared();
    let db = pg.database();
    open(&pg.url(&db)).await.close().await.unwrap();
    let columns = pg.scalar(
        &db,
        "SELECT string_agg(attname || ' ' || format_type(atttypid, NULL) || CASE WHEN attnotnull THEN ' not null' ELSE '' END, ', ' ORDER BY attnum) \
         FROM pg_attribute WHERE attrelid = 'walrus_index'::regclass AND attnum > 0",
    );
    assert_eq!(
        columns,
        "key text not null, blob_id text not null, blob_offset bigint not null, size bigint not null, \
         deletable boolean not null, end_epoch bigint not null, expires_at timestamp with time zone, \
         created_at timestamp with time zone not null, updated_at timestamp with time zone not null"
    );
    let collation = "SELECT collation_name FROM information_schema.columns WHERE table_name = 'walrus_index' AND column_name = 'key'";
    assert_eq!(pg.scalar(&db, collation), "C");
    let indexes = "SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'walrus_index'";
    assert_eq!(
        pg.scalar(&db, indexes),
        "walrus_index_blob_id_idx walrus_index_pkey"
    );
}

/// An older table that was moved aside keeps its indexes, and their names.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_has_its_indexes_although_others_have_their_names() {
    let pg = Postgres::shared();
    for moved in ["", "_meta", "_usage", "_leases", "_blobs"].map(|last| last.to_owned()) {
        let db = pg.database();
        open(&pg.url(&db)).await.close().await.unwrap();
        pg.execute(&db, "ALTER TABLE walrus_index RENAME TO older");
        if !moved.is_empty() {
            pg.execute(
                &db,
                &format!("ALTER TABLE walrus_index{moved} RENAME TO older{moved}"),
            );
        }
        let url = pg.url(&db);
        open(&url).await.close().await.unwrap();
        // A second migration of a table as an older version would leave it: it makes nothing twice.
        pg.execute(
            &db,
            "DELETE FROM walrus_index_meta WHERE name = 'schema_version'",
        );
        open(&url).await.close().await.unwrap();
        let columns = pg.scalar(
            &db,
            "SELECT string_agg(a.attname, ' ' ORDER BY a.attname) FROM pg_index x \
             JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0] \
             WHERE x.indrelid = 'walrus_index'::regclass",
        );
        assert_eq!(columns, "blob_id key", "{moved}");
        let of_ledger = pg.scalar(
            &db,
            "SELECT string_agg(a.attname, ' ' ORDER BY a.attname) FROM pg_index x \
             JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0] \
             WHERE x.indrelid = 'walrus_index_blobs'::regclass",
        );
        assert_eq!(of_ledger, "blob_id end_epoch expires_at state", "{moved}");
    }
}

/// A `CREATE INDEX CONCURRENTLY` that failed leaves an invalid index behind, which serves no query.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_index_does_not_count_as_one() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, GO_NEWEST);
    for name in ["blob_id", "due"] {
        // Whether it was there before, or is made here.
        let columns = if name == "due" {
            "expires_at, blob_id"
        } else {
            "blob_id"
        };
        pg.execute(
            &db,
            &format!(
                "CREATE INDEX IF NOT EXISTS walrus_index_{name}_idx ON walrus_index ({columns}); \
                 UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'walrus_index_{name}_idx'::regclass"
            ),
        );
    }
    let url = pg.url(&db);
    for _ in 0..2 {
        open(&url).await.close().await.unwrap();
        let columns = pg.scalar(
            &db,
            "SELECT string_agg(a.attname, ' ' ORDER BY a.attname) FROM pg_index x \
             JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0] \
             JOIN pg_class c ON c.oid = x.indexrelid \
             WHERE x.indrelid = 'walrus_index'::regclass AND x.indisvalid AND c.relname ~ '(blob_id|due)_idx'",
        );
        // The ledger has taken the place of the other one.
        assert_eq!(columns, "blob_id");
    }
}

/// The staging table of another table of the same name, in a later schema of the search path.
#[tokio::test(flavor = "multi_thread")]
async fn a_staging_table_in_another_schema_belongs_to_another_index() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, GO_NEWEST);
    pg.execute(
        &db,
        "INSERT INTO walrus_index_staging (key, value, size) VALUES ('/s', 'xyz', 3); \
         CREATE SCHEMA own; CREATE TABLE own.walrus_index (LIKE walrus_index INCLUDING ALL)",
    );
    let url = pg.url(&db);
    let and = if url.contains('?') { '&' } else { '?' };
    for path in ["own,public", "public"] {
        let index = open(&format!("{url}{and}search_path={path}")).await;
        let expected: &[&str] = if path == "public" { &["/s"] } else { &[] };
        assert_eq!(keys(&index, "").await, expected, "{path}");
        assert_eq!(index.get("/s").await.unwrap().is_some(), path == "public");
        index.close().await.unwrap();
    }
}

/// Nodes of different roles may have different search paths, such as the usual `"$user", public`.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_share_a_table_share_its_leases_whatever_their_search_paths() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, GO_NEWEST);
    pg.execute(&db, "CREATE SCHEMA own");
    let url = pg.url(&db);
    let with = |path: &str| {
        let and = if url.contains('?') { '&' } else { '?' };
        format!("{url}{and}search_path={path}")
    };
    let (a, b) = (open(&with("own,public")).await, open(&with("public")).await);
    a.put(&row(KEY, "blob", 0, 1)).await.unwrap();
    assert!(b.get(KEY).await.unwrap().is_some(), "one table");
    let ttl = Duration::from_secs(600);
    assert!(a.try_lease("renewal", "a", ttl).await.unwrap());
    assert!(!b.try_lease("renewal", "b", ttl).await.unwrap());
    assert_eq!(a.identity().await.unwrap(), b.identity().await.unwrap());
    for index in [a, b] {
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_open_is_fast_and_frugal() {
    let pg = Postgres::shared();
    let db = pg.database();
    let url = pg.url(&db);
    open(&url).await.close().await.unwrap();
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walrusds' AND datname = current_database()";
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let index = open(&url).await;
        times.push(started.elapsed());
        assert_eq!(count(&db, connections), 1);
        index.close().await.unwrap();
        index.close().await.unwrap();
        eventually("every connection is closed", || {
            count(&db, connections) == 0
        })
        .await;
    }
    // With the connect; a debug build on a busy machine.
    assert!(
        times.iter().min().unwrap() < &Duration::from_millis(100),
        "{times:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_leave_nothing_behind_in_the_session() {
    // The features that a transaction pooler would break: named statements, SET outside a
    // transaction, LISTEN, temporary tables, session advisory locks.
    let pg = Postgres::start_with(&[
        "log_statement='all'",
        "log_min_messages=warning",
        "log_destination='stderr'",
    ]);
    let db = pg.database();
    pg.execute(&db, GO_NEWEST);
    let pooler = Proxy::start_as_pooler(pg.port());
    let index = open(&format!(
        "postgres://postgres@127.0.0.1:{}/{db}?sslmode=disable",
        pooler.port
    ))
    .await;
    let rows: Vec<_> = (0..12_000)
        .map(|i| row(&format!("/k{i}"), "b", 0, 1))
        .collect();
    index.put_many(&rows).await.unwrap();
    index.put(&rows[0]).await.unwrap();
    for _ in 0..3 {
        index.get("/k1").await.unwrap();
        index.get_many(&["/k1".into(), "/x".into()]).await.unwrap();
        let page = KeyRange::prefix("/k").after("/k5");
        index.list(&page, 0, 10).await.unwrap();
        index.delete("/k1").await.unwrap();
    }
    index.due_for_renewal(time(1), None, 5).await.unwrap();
    index
        .try_lease("l", "o", Duration::from_secs(1))
        .await
        .unwrap();
    index.add_usage(Usage::new(1, 1)).await.unwrap();
    index.close().await.unwrap();
    let log = pg.log();
    let executed = |log: &str, name: &str| {
        log.lines()
            .filter(|l| l.contains(&format!("execute {name}")))
            .count()
    };
    assert!(executed(&log, "<unnamed>") > 10, "{log}");
    assert_eq!(executed(&log, "s"), 0, "{log}");
    let direct = open(&pg.url(&db)).await;
    let begun = Instant::now();
    while executed(&pg.log(), "s") < 2 {
        direct.get("/k1").await.unwrap();
        direct.delete("/none").await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "nothing is prepared");
    }
    direct.close().await.unwrap();
    for line in log.lines().filter(|l| l.contains("statement: ")) {
        let statement = line.split("statement: ").nth(1).unwrap().trim_start();
        let harmless = [
            "SET LOCAL",
            "CREATE",
            "ALTER",
            "INSERT",
            "SELECT",
            "START TRANSACTION",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
        ];
        assert!(
            statement.is_empty() || harmless.iter().any(|h| statement.starts_with(h)),
            "{line}"
        );
        assert!(
            !statement.contains("pg_advisory_lock") && !statement.contains("TEMP"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collation_that_has_changed_is_told() {
    let pg = Postgres::start();
    let db = pg.database_with("LOCALE_PROVIDER icu ICU_LOCALE 'en' TEMPLATE template0");
    let index = open(&pg.url(&db)).await;
    let told = async || {
        let facts = index.facts().await.unwrap();
        facts.into_iter().find(|fact| fact.name == "collation")
    };
    assert!(told().await.is_none());
    let older = format!("UPDATE pg_database SET datcollversion = 'older' WHERE datname = '{db}'");
    pg.execute("postgres", &older);
    let fact = told().await.expect("a fact");
    assert!(fact.matters && fact.what.contains("older"), "{fact:?}");
    let cure = fact.cure.expect("a cure");
    let (reindex, rest) = cure.split_once("; ").expect("two statements");
    let (refresh, _) = rest.split_once("; ").expect("and a word");
    pg.execute(&db, reindex);
    pg.execute(&db, refresh);
    assert!(told().await.is_none());
    index.close().await.unwrap();
}

/// A pooler may take a server connection for free when one of several requests is answered, and
/// give the other answers to the next client.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pooler_gets_one_request_at_a_time() {
    use std::sync::atomic::Ordering::SeqCst;
    let pg = Postgres::shared();
    for pooler in [true, false] {
        let db = pg.database();
        let proxy = Proxy::start_with(pg.port(), pooler);
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/{db}?sslmode=disable",
            proxy.port
        );
        // Makes the tables. A question about one that is not there ends in an error, and the next
        // request may leave before the server says that it is ready.
        open(&url).await.close().await.unwrap();
        proxy.unanswered.store(0, SeqCst);
        let index = Arc::new(open(&url).await);
        let rows: Vec<_> = (0..500)
            .map(|i| row(&format!("/k{i}"), "b", 0, 1))
            .collect();
        index.put_many(&rows).await.unwrap();
        let begun = Instant::now();
        // Without a pooler, requests overlap as soon as the node knows that there is none.
        for round in 0.. {
            let callers = (0..16).map(|caller| {
                let index = index.clone();
                tokio::spawn(async move {
                    for n in 0..20 {
                        let key = format!("/k{}", caller * 20 + n);
                        assert!(index.get(&key).await.unwrap().is_some());
                        index.get_many(&[key.clone(), "/x".into()]).await.unwrap();
                        index.delete(&format!("/x{key}")).await.unwrap();
                    }
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await.unwrap();
            }
            let overlapped = proxy.unanswered.load(SeqCst) > 1;
            if pooler {
                assert!(!overlapped, "several requests at once behind a pooler");
            }
            if overlapped || pooler && round > 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "requests never overlap");
        }
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_nodes_start_for_the_first_time_at_once() {
    let pg = Postgres::shared();
    for setup in ["", GO_TABLES[0]] {
        let db = pg.database();
        if !setup.is_empty() {
            pg.execute(&db, setup);
        }
        let opens: Vec<_> = (0..8)
            .map(|_| {
                let url = pg.url(&db);
                tokio::spawn(async move { PostgresIndex::open(options(&url)).await })
            })
            .collect();
        for opened in opens {
            let index = opened.await.unwrap().unwrap();
            index.put(&row(KEY, "b", 0, 1)).await.unwrap();
            index.close().await.unwrap();
        }
        assert_eq!(count(&db, "SELECT count(*) FROM walrus_index_usage"), 1);
    }
}

/// Tables of the Go plugin by age, as its migrations left them; the last is its newest, new.
const GO_TABLES: &[&str] = &[
    // 0.0.x: no offset.
    "CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, size BIGINT NOT NULL,
        deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now());
     CREATE INDEX walrus_index_key_prefix_idx ON walrus_index (key text_pattern_ops);
     CREATE INDEX walrus_index_expires_at_idx ON walrus_index (expires_at);",
    // 0.1.0: the offset at the end of a migrated table.
    "ALTER TABLE walrus_index ADD COLUMN IF NOT EXISTS blob_offset BIGINT NOT NULL DEFAULT 0;",
    // Quilts, then extend, then billing.
    "ALTER TABLE walrus_index ADD COLUMN IF NOT EXISTS patch_id TEXT NOT NULL DEFAULT '';",
    "ALTER TABLE walrus_index ADD COLUMN IF NOT EXISTS object_id TEXT NOT NULL DEFAULT '';
     CREATE INDEX IF NOT EXISTS walrus_index_blob_id_idx ON walrus_index (blob_id);",
    "ALTER TABLE walrus_index ADD COLUMN IF NOT EXISTS encoded_size BIGINT NOT NULL DEFAULT 0;
     ALTER TABLE walrus_index ADD COLUMN IF NOT EXISTS cost BIGINT NOT NULL DEFAULT 0;",
    GO_STAGING,
];

/// The order of the rows' blob IDs need not be that of bytes, in which the ledger has its entries.
/// The pass that counts must not set counts to zero that it has just made.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_counted_in_the_order_of_any_collation() {
    let pg = Postgres::shared();
    let blobs = ["Zy", "a-", "_b", "B1", "b0", "-c", "C9", "c_", "zZ", "Aa"];
    let rows = blobs.iter().zip(0..);
    let rows: Vec<_> = rows
        .map(|(blob, n)| row(&format!("/{n}"), blob, 0, 5))
        .collect();
    // The last one has a column that is not collated as its database.
    let by_hand = partitioned(2).replace("blob_id TEXT", "blob_id TEXT COLLATE \"en-x-icu\"");
    let setups = [("", ""), ("", ICU), (GO_NEWEST, ICU), (&*by_hand, "")];
    for (n, (setup, database)) in setups.into_iter().enumerate() {
        let db = pg.database_with(database);
        if !setup.is_empty() {
            pg.execute(&db, setup);
        }
        let index = open(&pg.url(&db)).await;
        index.put_many(&rows).await.unwrap();
        // Entries that were just written are left alone for a while.
        pg.execute(
            &db,
            "UPDATE walrus_index_blobs SET state_since = now() - interval '1 hour'",
        );
        for limit in [1, 2, 3, 100] {
            let mut after = Some(String::new());
            while let Some(last) = after {
                after = index.count(&last, limit).await.unwrap();
            }
            let ids = blobs.map(str::to_owned);
            for (id, blob) in ids.iter().zip(index.blobs(&ids).await.unwrap()) {
                let counted = blob.and_then(|blob| blob.counted).map(|count| count.live);
                let expected = Some(Usage::new(1, 5));
                assert_eq!(counted, expected, "setup {n}, {id}, pages of {limit}");
            }
        }
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_go_plugin_of_every_age() {
    let pg = Postgres::shared();
    for age in 1..=GO_TABLES.len() {
        for database in ["", ICU] {
            let db = pg.database_with(database);
            for statements in &GO_TABLES[..age] {
                pg.execute(&db, statements);
            }
            pg.execute(&db, "INSERT INTO walrus_index (key, blob_id, size, deletable, end_epoch, expires_at) \
                 VALUES ('/old', 'blob', 7, TRUE, 9, '2030-01-01Z'), ('/b', 'blob', 3, FALSE, 0, NULL)");
            let index = open(&pg.url(&db)).await;
            let old = index.get("/old").await.unwrap().unwrap();
            let expected = Record::new("blob", 0, 7)
                .with_deletable(true)
                .with_end_epoch(9)
                .with_expires_at(Some(time(1_893_456_000)));
            assert_eq!(old, expected, "age {age}");
            assert_eq!(index.usage().await.unwrap(), Usage::new(2, 10));
            index.put(&row("/new", "pack", 100, 50)).await.unwrap();
            assert_eq!(index.get("/new").await.unwrap().unwrap().offset, 100);
            assert_eq!(keys(&index, "/").await, ["/b", "/new", "/old"]);
            index.close().await.unwrap();
            // A Go node still writes the same rows as before.
            pg.execute(
                &db,
                "INSERT INTO walrus_index (key, blob_id, size) VALUES ('/go', 'blob', 1)",
            );
            let again = open(&pg.url(&db)).await;
            assert_eq!(again.get("/go").await.unwrap().unwrap().offset, 0);
            again.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_go_plugin_are_reset_by_an_overwrite() {
    let pg = Postgres::shared();
    let left = "SELECT count(*) FROM walrus_index WHERE object_id = '' AND patch_id = '' AND encoded_size = 0 AND cost = 0 \
        AND blob_offset = 9 AND updated_at > now() - interval '1 minute'";
    for moved in [false, true] {
        let db = pg.database();
        pg.execute(&db, GO_NEWEST);
        pg.execute(&db, "INSERT INTO walrus_index (key, blob_id, object_id, patch_id, size, encoded_size, cost, updated_at) \
             VALUES ('/q', 'quilt', '0xobject', 'patch', 5, 66000000, 42, '2020-01-01Z')");
        let index = open(&pg.url(&db)).await;
        let member = index.get("/q").await.unwrap().unwrap();
        assert_eq!(member.patch_id.as_deref(), Some("patch"));
        let new = [row("/q", "pack", 9, 5)];
        match moved {
            true => assert_eq!(index.move_rows("quilt", &new).await.unwrap(), 1),
            false => index.put_many(&new).await.unwrap(),
        }
        assert_eq!(index.get("/q").await.unwrap().unwrap().patch_id, None);
        assert_eq!(count(&db, left), 1);
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_staged_under_a_name_that_postgres_cuts_are_found() {
    let pg = Postgres::shared();
    let db = pg.database();
    let table = "t".repeat(58);
    // The server cuts the name of the staging table, as it did when the Go plugin gave it.
    let go = GO_NEWEST.replace("walrus_index_staging_created_idx", "created");
    pg.execute(&db, &go.replace("walrus_index", &table));
    pg.execute(
        &db,
        &format!("INSERT INTO {table}_staging (key, value, size) VALUES ('/s', 'xyz', 3)"),
    );
    let mut long = options(&pg.url(&db));
    long.table = table;
    let index = PostgresIndex::open(long).await.unwrap();
    assert!(index.get("/s").await.unwrap().unwrap().staged);
    assert_eq!(index.staged_value("/s").await.unwrap().unwrap(), "xyz");
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn upper_case_names_find_the_folded_table() {
    let pg = Postgres::shared();
    let db = pg.database();
    // In the form in which the Go plugin sent it: unquoted.
    pg.execute(&db, &GO_NEWEST.replace("walrus_index", "Walrus_Index"));
    pg.execute(
        &db,
        "INSERT INTO walrus_index (key, blob_id, size) VALUES ('/k', 'b', 5); \
        INSERT INTO walrus_index_staging (key, value, size) VALUES ('/s', 'xyz', 3)",
    );
    let mut mixed = options(&pg.url(&db));
    mixed.table = "Walrus_Index".into();
    for _ in 0..2 {
        let index = PostgresIndex::open(mixed.clone()).await.unwrap();
        assert_eq!(keys(&index, "").await, ["/k", "/s"]);
        assert!(index.get("/s").await.unwrap().unwrap().staged);
        index.close().await.unwrap();
    }
    // An exact name wins; and without either table, the exact one is made.
    pg.execute(&db, "CREATE TABLE \"Walrus_Index\" (key TEXT COLLATE \"C\" PRIMARY KEY, blob_id TEXT NOT NULL, size BIGINT NOT NULL)");
    let index = PostgresIndex::open(mixed.clone()).await.unwrap();
    assert_eq!(keys(&index, "").await, [""; 0]);
    index.close().await.unwrap();
    mixed.table = "Brand_New".into();
    PostgresIndex::open(mixed)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM \"Brand_New\""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_and_long_names() {
    let pg = Postgres::shared();
    let db = pg.database();
    let mut with = options(&pg.url(&db));
    with.table = "blocks.index".into();
    let error = refused(with.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error
            .message()
            .contains("CREATE SCHEMA IF NOT EXISTS \"blocks\""),
        "{error}"
    );
    pg.execute(&db, "CREATE SCHEMA blocks");
    let index = PostgresIndex::open(with.clone()).await.unwrap();
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM blocks.index"), 1);
    let long = |end: char| format!("{}{end}", "t".repeat(62));
    for end in ['a', 'b'] {
        with.table = long(end);
        let index = PostgresIndex::open(with.clone()).await.unwrap();
        index.put(&row(KEY, "b", 0, 1)).await.unwrap();
        index.add_usage(Usage::new(1, 1)).await.unwrap();
        assert_eq!(
            index.usage().await.unwrap().blocks,
            1,
            "not shared with the other long name"
        );
        assert!(!index.get(KEY).await.unwrap().unwrap().staged);
        index.delete(KEY).await.unwrap();
        index.close().await.unwrap();
        PostgresIndex::open(with.clone())
            .await
            .unwrap()
            .close()
            .await
            .unwrap();
    }
    with.table = format!("{}c", long('c'));
    assert!(refused(with).await.message().contains("64 bytes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_something_else() {
    let pg = Postgres::shared();
    for (setup, says) in [
        ("CREATE TABLE walrus_index (id INT)", "column key (text) is missing"),
        ("CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT)", "column size (bigint) is missing"),
        ("CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT, size INT)", "column size is of type integer, expected bigint"),
        ("CREATE TABLE walrus_index (key BYTEA PRIMARY KEY, blob_id TEXT, size BIGINT)", "column key is of type bytea, expected text"),
        ("CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT, size BIGINT, owner TEXT NOT NULL)", "column owner is unknown and has no default"),
        ("CREATE VIEW walrus_index AS SELECT 1 AS key", "no table"),
        (
            "CREATE TABLE walrus_index_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL); \
             INSERT INTO walrus_index_meta VALUES ('schema_version', '9'), ('min_version', '8')",
            "schema version 9",
        ),
    ] {
        let db = pg.database();
        pg.execute(&db, setup);
        let error = refused(options(&pg.url(&db))).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains(says) && error.message().contains("walrus_index"), "{error}");
        assert!(!error.is_retryable());
    }
    // A newer, still compatible schema is accepted (rolling upgrade).
    let db = pg.database();
    open(&pg.url(&db)).await.close().await.unwrap();
    pg.execute(&db, "UPDATE walrus_index_meta SET value = '7' WHERE name = 'schema_version'; ALTER TABLE walrus_index ADD COLUMN novel TEXT");
    open(&pg.url(&db)).await.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Rights and connections

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_create_right() {
    let pg = Postgres::shared();
    let db = pg.database();
    let role = format!("reader_{db}");
    pg.execute(
        &db,
        &format!("REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {role} LOGIN"),
    );
    let own = options(&pg.url_as(&role, &db));
    let error = refused(own.clone()).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error
            .message()
            .contains("permission denied for schema public"),
        "{error}"
    );
    // The message holds the complete SQL to run.
    let script = error
        .message()
        .split("to this one: ")
        .nth(1)
        .unwrap()
        .to_owned();
    pg.execute(&db, &script);
    let error = refused(own.clone()).await;
    assert!(
        error
            .message()
            .contains("permission denied for table walrus_index_meta"),
        "{error}"
    );
    pg.execute(
        &db,
        &format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"),
    );
    let index = PostgresIndex::open(own.clone()).await.unwrap();
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index
        .put_many(
            &(0..6000)
                .map(|i| row(&format!("/{i}"), "b", 0, 1))
                .collect::<Vec<_>>(),
        )
        .await
        .unwrap();
    assert!(index
        .try_lease("l", "o", Duration::from_secs(1))
        .await
        .unwrap());
    index.delete(KEY).await.unwrap();
    // An error names a right that was taken away later, at its first use.
    pg.execute(
        &db,
        &format!("REVOKE INSERT, DELETE ON walrus_index FROM {role}"),
    );
    for error in [
        index.put(&row(KEY, "b", 0, 1)).await.unwrap_err(),
        index.delete(KEY).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(
            error
                .message()
                .contains("permission denied for table walrus_index"),
            "{error}"
        );
    }
    index.close().await.unwrap();

    // An old table that this role may not extend.
    let db = pg.database();
    pg.execute(&db, GO_TABLES[0]);
    pg.execute(
        &db,
        &format!("GRANT ALL ON SCHEMA public TO {role}; GRANT ALL ON walrus_index TO {role}"),
    );
    let error = refused(options(&pg.url_as(&role, &db))).await;
    assert!(
        error
            .message()
            .contains("must be owner of table walrus_index"),
        "{error}"
    );
    assert!(
        error
            .message()
            .contains("ADD COLUMN IF NOT EXISTS blob_offset BIGINT NOT NULL DEFAULT 0"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_connection_is_said() {
    let pg = Postgres::start();
    pg.execute(
        "postgres",
        "CREATE ROLE alice LOGIN PASSWORD 'right'; CREATE ROLE barred LOGIN",
    );
    pg.set_hba("host all alice 127.0.0.1/32 scram-sha-256\nhost all barred 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n");
    let port = pg.port();
    let host = format!("127.0.0.1:{port}");
    let closed_port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let cases: Vec<(String, ErrorKind, bool, Vec<String>)> = vec![
        (
            format!("postgres://alice:hunter2@{host}/postgres?sslmode=disable"),
            ErrorKind::Config,
            false,
            vec![host.clone(), "wrong password".into(), "alice".into()],
        ),
        (
            format!("postgres://alice@{host}/postgres?sslmode=disable"),
            ErrorKind::Config,
            false,
            vec![host.clone(), "password".into(), "alice".into()],
        ),
        (
            format!("postgres://barred:hunter2@{host}/postgres?sslmode=disable"),
            ErrorKind::Config,
            false,
            vec![host.clone(), "barred".into(), "pg_hba".into()],
        ),
        (
            format!("postgres://postgres:hunter2@{host}/nodb?sslmode=disable"),
            ErrorKind::Config,
            false,
            vec![host.clone(), "nodb".into(), "does not exist".into()],
        ),
        (
            format!("postgres://u:hunter2@127.0.0.1:{closed_port}/d"),
            ErrorKind::Index,
            true,
            vec![
                format!("127.0.0.1:{closed_port}"),
                "connection refused".into(),
            ],
        ),
        (
            format!("postgres://u:hunter2@127.0.0.1:{silent_port}/d"),
            ErrorKind::Index,
            true,
            vec![format!("127.0.0.1:{silent_port}"), "timeout".into()],
        ),
        (
            "postgres://u:hunter2@no-such-host.invalid/d".into(),
            ErrorKind::Index,
            true,
            vec!["no-such-host.invalid:5432".into()],
        ),
        (
            "postgres://u:hunter2@%2Fnonexistent/d".into(),
            ErrorKind::Index,
            true,
            vec!["/nonexistent/.s.PGSQL.5432".into()],
        ),
        (
            format!("postgres://postgres:hunter2@{host}/postgres?sslmode=require"),
            ErrorKind::Config,
            false,
            vec![host.clone(), "TLS".into()],
        ),
        (
            format!(
                "postgres://postgres:hunter2@127.0.0.1:{closed_port},{host}/nodb?sslmode=disable"
            ),
            ErrorKind::Index,
            true,
            vec!["connection refused".into(), "nodb".into()],
        ),
        (
            format!("postgres://u:hunter2@{host}/d?sslrootcert=/nonexistent.pem&sslmode=verify-ca"),
            ErrorKind::Config,
            false,
            vec!["sslrootcert".into(), "/nonexistent.pem".into()],
        ),
    ];
    for (url, kind, retryable, parts) in cases {
        let mut options = options(&url);
        options.connect_timeout = Duration::from_secs(2);
        let error = refused(options.clone()).await;
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (kind, retryable),
            "{url}: {error}"
        );
        for part in parts {
            assert!(error.message().contains(&part), "{url}: {error}");
        }
        assert!(!error.message().contains("hunter2"), "{error}");
        assert!(!format!("{options:?}").contains("hunter2"));
    }
    // The same through the pool, whose connections are opened in another way.
    pg.execute("postgres", "CREATE DATABASE hers OWNER alice");
    let index = open(&format!(
        "postgres://alice:right@{host}/hers?sslmode=disable"
    ))
    .await;
    pg.execute("postgres", "ALTER ROLE alice PASSWORD 'changed'");
    assert_eq!(
        index.get(KEY).await.unwrap(),
        None,
        "the open connection goes on"
    );
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    pg.execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'",
    );
    for error in [
        index.put(&row(KEY, "b", 0, 1)).await.unwrap_err(),
        index.get(KEY).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(
            error.message().contains("wrong password") && !error.message().contains("right"),
            "{error}"
        );
    }
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_and_sockets() {
    let pg = Postgres::shared();
    let db = pg.database();
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for url in [
        pg.socket_url(&db),
        format!("postgres://postgres@/{db}?host={}&port={}", pg.socket_dir().display(), pg.port()),
        format!("postgres://postgres@127.0.0.1:{dead},127.0.0.1:{}/{db}?target_session_attrs=read-write", pg.port()),
        format!("host=127.0.0.1 port={} user=postgres dbname={db} sslmode=disable", pg.port()),
        format!("postgres://postgres@localhost:{}/{db}?hostaddr=127.0.0.1&sslmode=allow", pg.port()),
    ] {
        let index = open(&url).await;
        index.put(&row(KEY, "b", 0, 1)).await.unwrap();
        assert!(index.get(KEY).await.unwrap().is_some());
        index.close().await.unwrap();
    }
    pg.execute(
        &db,
        &format!("ALTER DATABASE {db} SET default_transaction_read_only = on"),
    );
    let error = refused(options(&format!(
        "{}&target_session_attrs=read-write",
        pg.url(&db)
    )))
    .await;
    assert!(error.message().contains("takes no writes"), "{error}");
    let index = open(&pg.url(&db)).await;
    let error = index.put(&row(KEY, "b", 0, 1)).await.unwrap_err();
    assert!(
        error.is_retryable() && error.message().contains("read-only"),
        "{error}"
    );
    assert!(index.get(KEY).await.unwrap().is_some());
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_is_found_again() {
    let mut pg = Postgres::start();
    let db = pg.database();
    let index = Arc::new(open(&pg.url(&db)).await);
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.delete("/x").await.unwrap();
    for _ in 0..2 {
        pg.restart();
        assert!(index.get(KEY).await.unwrap().is_some());
        index.put(&row(KEY, "b", 0, 1)).await.unwrap();
        index.delete("/x").await.unwrap();
        index.add_usage(Usage::new(1, 1)).await.unwrap();
    }
    assert_eq!(
        index.usage().await.unwrap().blocks,
        2,
        "added exactly once each"
    );
    pg.down();
    for error in [
        index.get(KEY).await.unwrap_err(),
        index.put(&row(KEY, "b", 0, 1)).await.unwrap_err(),
        index.delete(KEY).await.unwrap_err(),
        index.add_usage(Usage::new(1, 1)).await.unwrap_err(),
    ] {
        assert!(
            error.is_retryable() && error.message().contains("refused"),
            "{error}"
        );
    }
    pg.up();
    assert!(index.get(KEY).await.unwrap().is_some());
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    pg.down();
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backends_are_replaced() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = Arc::new(open(&pg.url(&db)).await);
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.delete("/x").await.unwrap();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(count(&db, kill) >= 3);
    assert!(index.get(KEY).await.unwrap().is_some());
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.delete("/x").await.unwrap();
    // Under load, again and again, no call fails.
    let rounds = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|t| {
            let (index, rounds) = (index.clone(), rounds.clone());
            tokio::spawn(async move {
                for i in 0..150 {
                    rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    assert!(index.get(KEY).await.unwrap().is_some());
                    if i % 10 == 0 {
                        index
                            .put(&row(&format!("/{t}/{i}"), "b", 0, 1))
                            .await
                            .unwrap();
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    for after in [8 * 50, 8 * 100] {
        let done = || rounds.load(std::sync::atomic::Ordering::Relaxed);
        eventually("the load goes on", || done() >= after).await;
        count(&db, kill);
    }
    for task in tasks {
        task.await.unwrap();
    }
    index.close().await.unwrap();
}

/// Also while connections break and are replaced, and calls wait for their turn.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_open_than_may_be() {
    let pg = Postgres::shared();
    let db = pg.database();
    let mut few = options(&pg.url(&db));
    few.max_open_conns = 4;
    let index = Arc::new(PostgresIndex::open(few).await.unwrap());
    let tasks: Vec<_> = (0..12)
        .map(|t| {
            let index = index.clone();
            tokio::spawn(async move {
                for i in 0..40 {
                    let key = format!("/{t}/{i}");
                    index.put(&row(&key, "b", 0, 1)).await.unwrap();
                    assert!(index.get(&key).await.unwrap().is_some());
                    index.list(&KeyRange::ALL, 0, 5).await.unwrap();
                    index.delete(&key).await.unwrap();
                }
            })
        })
        .collect();
    let ours =
        "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walrusds'";
    let (mut looks, mut most) = (0, 0);
    while tasks.iter().any(|task| !task.is_finished()) {
        let open = || count(&db, &format!("SELECT count(*) {ours}"));
        let now = open();
        assert!(now <= 4, "{now} connections");
        most = most.max(now);
        if looks == 10 {
            let kill = format!("SELECT count(pg_terminate_backend(pid)) {ours}");
            count(&db, &kill);
            // A backend tells that it ends before it is gone.
            eventually("those that were killed are gone", || open() <= 4).await;
        }
        looks += 1;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(most, 4, "the pool is used");
    index.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Time

fn blocked(db: &str) -> i64 {
    count(db, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'walrusds'")
}

/// Holds a lock on the table until dropped.
struct Locked(
    std::sync::mpsc::Sender<()>,
    Option<std::thread::JoinHandle<()>>,
);

impl Locked {
    fn new(db: &str, sql: &str) -> Locked {
        Locked::at(Postgres::shared().url(db), sql)
    }

    fn at(url: String, sql: &str) -> Locked {
        let sql = sql.to_owned();
        let (release, released) = std::sync::mpsc::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls).unwrap();
            client.batch_execute(&format!("BEGIN; {sql}")).unwrap();
            ready.send(()).unwrap();
            let _ = released.recv();
            client.batch_execute("ROLLBACK").unwrap();
        });
        is_ready.recv().unwrap();
        Locked(release, Some(thread))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.send(());
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_cancelled() {
    let pg = Postgres::shared();
    let db = pg.database();
    let mut short = options(&pg.url(&db));
    short.statement_timeout = Duration::from_millis(700);
    let index = PostgresIndex::open(short).await.unwrap();
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    let lock = Locked::new(&db, "LOCK TABLE walrus_index IN ACCESS EXCLUSIVE MODE");
    let many: Vec<_> = (0..11_000)
        .map(|i| row(&format!("/{i}"), "b", 0, 1))
        .collect();
    let new_row = row(KEY, "b", 0, 1);
    let every_key = KeyRange::prefix("/");
    let (get, put, put_many, delete, list) = tokio::join!(
        index.get(KEY),
        index.put(&new_row),
        index.put_many(&many),
        index.delete(KEY),
        index.list(&every_key, 0, 5),
    );
    for error in [
        get.unwrap_err(),
        put.unwrap_err(),
        put_many.unwrap_err(),
        delete.unwrap_err(),
        list.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Index);
        assert!(
            error.is_retryable() && error.message().contains("timeout"),
            "{error}"
        );
    }
    eventually("nothing waits any more", || blocked(&db) == 0).await;
    drop(lock);
    assert!(index.get(KEY).await.unwrap().is_some());
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}

/// The test counts the rows that the server reads, and no time. 1,000 blobs of 20 rows are due, 250
/// of them at the same moment, in a new table and in one of a version without the index for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_due_blobs_costs_what_it_holds() {
    let pg = Postgres::shared();
    let db = pg.database();
    open(&pg.url(&db)).await.close().await.unwrap();
    pg.execute(
        &db,
        "INSERT INTO walrus_index_blobs (blob_id, expires_at, end_epoch) \
         SELECT 'blob' || n, to_timestamp(n / 250), n / 250 + 1 FROM generate_series(0, 19999) AS n",
    );
    pg.execute(&db, "VACUUM ANALYZE walrus_index_blobs");
    let (mut found, mut after) = (0, None);
    let read = "SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'walrus_index_blobs') + \
        (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'walrus_index_blobs')";
    let before: i64 = pg.scalar(&db, read).parse().unwrap();
    let index = open(&pg.url(&db)).await;
    for _ in 0..30 {
        let page = index.due_for_renewal(time(9), after.as_ref(), 10).await;
        after = page.unwrap().pop();
        found += 10;
    }
    after = None;
    for _ in 0..30 {
        let page = index.ending_by(9, after.as_ref(), 10).await;
        after = page.unwrap().pop();
        found += 10;
    }
    assert!(after.is_some_and(|last| last.end_epoch == 2));
    index.close().await.unwrap();
    // A backend tells its figures when it ends.
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    eventually("its connections are gone", || pg.scalar(&db, gone) == "0").await;
    let after: i64 = pg.scalar(&db, read).parse().unwrap();
    assert!(
        after - before <= found * 2,
        "{} entries for {found} blobs",
        after - before
    );
}

/// A table of version 2 has an index of ends and blobs, and no ledger. The next start replaces the
/// one by the other; the blobs of the rows that are there are entered by the pass that counts.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_table_gets_a_ledger() {
    let pg = Postgres::shared();
    let db = pg.database();
    open(&pg.url(&db)).await.close().await.unwrap();
    pg.execute(
        &db,
        "DROP TABLE walrus_index_blobs, walrus_index_epochs; \
         ALTER TABLE walrus_index ADD COLUMN object_id TEXT DEFAULT '', ADD COLUMN encoded_size BIGINT DEFAULT 0, \
         ADD COLUMN cost BIGINT DEFAULT 0; \
         CREATE INDEX walrus_index_due_idx ON walrus_index (expires_at, blob_id COLLATE \"C\"); \
         INSERT INTO walrus_index (key, blob_id, size, end_epoch, expires_at, object_id, encoded_size, cost) \
         SELECT '/' || n, 'blob' || n / 20, 3, n / 100, to_timestamp(n / 20), '0x' || n / 20, 66034000, 7 \
         FROM generate_series(0, 199) AS n; \
         UPDATE walrus_index_meta SET value = '2' WHERE name = 'schema_version'",
    );
    let index = open(&pg.url(&db)).await;
    let indexes = "SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'walrus_index'";
    assert_eq!(
        pg.scalar(&db, indexes),
        "walrus_index_blob_id_idx walrus_index_pkey"
    );
    let due = index.due_for_renewal(time(5), None, 100).await.unwrap();
    assert_eq!(due, []);
    let mut last = Some(String::new());
    while let Some(after) = last {
        last = index.count(&after, 3).await.unwrap();
    }
    let due = index.due_for_renewal(time(5), None, 100).await.unwrap();
    let due: Vec<&str> = due.iter().map(|item| item.blob_id.as_str()).collect();
    assert_eq!(due, ["blob0", "blob1", "blob2", "blob3", "blob4"]);
    let blobs = index.blobs(&["blob7".to_owned()]).await.unwrap();
    let blob = blobs[0].as_ref().unwrap();
    assert_eq!(
        (
            blob.object_id.as_str(),
            blob.encoded_size,
            blob.cost,
            blob.end_epoch
        ),
        ("0x7", 66_034_000, 7, 1)
    );
    assert_eq!(blob.counted.unwrap().live, Usage::new(20, 60));
    index.close().await.unwrap();
}

/// A table of version 3 has a ledger without the indexes for ends and for released blobs. The next
/// start makes them, if its role may: else the node works without them, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_without_its_later_indexes_gets_them() {
    let pg = Postgres::shared();
    let db = pg.database();
    let role = format!("{db}_reader");
    open(&pg.url(&db)).await.close().await.unwrap();
    pg.execute(
        &db,
        &format!(
            "DROP INDEX walrus_index_blobs_end, walrus_index_blobs_released; \
             UPDATE walrus_index_meta SET value = '3' WHERE name = 'schema_version'; \
             CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM public; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    );
    let index = open(&pg.url_as(&role, &db)).await;
    let notice = index.take_notice().unwrap();
    assert!(
        notice.contains("walrus_index_blobs_end") && notice.contains("some searches are slow"),
        "{notice}"
    );
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    assert_eq!(index.ending_by(9, None, 10).await.unwrap(), []);
    index.close().await.unwrap();
    let indexes = "SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'walrus_index_blobs'";
    assert_eq!(
        pg.scalar(&db, indexes),
        "walrus_index_blobs_due walrus_index_blobs_pkey"
    );
    open(&pg.url(&db)).await.close().await.unwrap();
    assert_eq!(
        pg.scalar(&db, indexes),
        "walrus_index_blobs_due walrus_index_blobs_end walrus_index_blobs_pkey walrus_index_blobs_released"
    );
}

/// Rows that are due may be so many that reading them takes longer than any other statement may.
#[tokio::test(flavor = "multi_thread")]
async fn the_search_for_blobs_to_renew_may_take_longer() {
    let pg = Postgres::shared();
    let db = pg.database();
    let mut short = options(&pg.url(&db));
    short.statement_timeout = Duration::from_millis(700);
    let index = Arc::new(PostgresIndex::open(short).await.unwrap());
    let mut ending = row(KEY, "b", 0, 1);
    ending.record.expires_at = Some(time(5));
    ending.record.end_epoch = 1;
    index.put(&ending).await.unwrap();
    let lock = Locked::new(
        &db,
        "LOCK TABLE walrus_index, walrus_index_blobs IN ACCESS EXCLUSIVE MODE",
    );
    let (due, by_epoch) = (index.clone(), index.clone());
    let due = tokio::spawn(async move { due.due_for_renewal(time(9), None, 5).await });
    let by_epoch = tokio::spawn(async move { by_epoch.ending_by(1, None, 5).await });
    eventually("both wait", || blocked(&db) == 2).await;
    // Sent later, and past the time limit.
    index.list(&KeyRange::ALL, 0, 5).await.unwrap_err();
    drop(lock);
    assert_eq!(due.await.unwrap().unwrap().len(), 1);
    assert_eq!(by_epoch.await.unwrap().unwrap().len(), 1);
    // A caller that gives up ends the statement on the server all the same.
    let lock = Locked::new(
        &db,
        "LOCK TABLE walrus_index_blobs IN ACCESS EXCLUSIVE MODE",
    );
    let due = index.clone();
    let due = tokio::spawn(async move { due.due_for_renewal(time(9), None, 5).await });
    eventually("it waits", || blocked(&db) == 1).await;
    due.abort();
    eventually("it is cancelled", || blocked(&db) == 0).await;
    drop(lock);
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_cancels_its_statement() {
    let pg = Postgres::shared();
    let db = pg.database();
    for setting in ["log_statement = 'all'", "log_min_messages = 'log'"] {
        pg.execute("postgres", &format!("ALTER DATABASE {db} SET {setting}"));
    }
    let index = Arc::new(open(&pg.url(&db)).await);
    // Lookups and deletions are prepared when they have been used.
    let is_prepared = |statement: &str| {
        let executed = |line: &str| line.contains("execute s") && line.contains(statement);
        pg.log().lines().any(executed)
    };
    let begun = Instant::now();
    while !(is_prepared(": SELECT FALSE AS staged") && is_prepared(": WITH d AS (DELETE")) {
        index.get(KEY).await.unwrap();
        index.delete(KEY).await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "nothing is prepared");
    }
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    let _lock = Locked::new(&db, "LOCK TABLE walrus_index IN ACCESS EXCLUSIVE MODE");
    for call in 0..4 {
        let index = index.clone();
        let task = tokio::spawn(async move {
            match call {
                0 => drop(index.get(KEY).await),
                1 => drop(index.put(&row(KEY, "b", 0, 1)).await),
                2 => drop(index.delete(KEY).await),
                _ => drop(index.rows_of_blob("b").await),
            }
        });
        eventually("the statement waits", || blocked(&db) == 1).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        eventually("the statement is cancelled", || blocked(&db) == 0).await;
    }
    drop(_lock);
    assert!(index.get(KEY).await.unwrap().is_some());
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_does_not_fail_its_neighbours() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = Arc::new(open(&pg.url(&db)).await);
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    let lock = Locked::new(&db, "LOCK TABLE walrus_index IN ACCESS EXCLUSIVE MODE");
    // All on one connection; half of them give up.
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let index = index.clone();
            tokio::spawn(async move { index.get(KEY).await })
        })
        .collect();
    eventually("they wait", || blocked(&db) == 1).await;
    for call in calls.iter().step_by(2) {
        call.abort();
    }
    eventually("half of them have gone", || {
        calls.iter().step_by(2).all(|call| call.is_finished())
    })
    .await;
    drop(lock);
    for (i, call) in calls.into_iter().enumerate() {
        match call.await {
            Err(e) => assert!(i % 2 == 0 && e.is_cancelled()),
            Ok(record) => assert!(record.unwrap().is_some()),
        }
    }
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_waits_holds_up_no_read() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = Arc::new(open(&pg.url(&db)).await);
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    let lock = Locked::new(&db, "SELECT * FROM walrus_index FOR UPDATE");
    let deleting = {
        let index = index.clone();
        tokio::spawn(async move { index.delete(KEY).await })
    };
    eventually("the delete waits", || blocked(&db) == 1).await;
    // The lock is held until the get has ended.
    assert!(index.get(KEY).await.unwrap().is_some());
    assert!(!deleting.is_finished());
    drop(lock);
    assert_eq!(deleting.await.unwrap().unwrap().blocks, 1);
    index.close().await.unwrap();
}

/// Another node stores the bytes of a blob anew while its entry is being removed.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_stored_anew_meanwhile_is_not_forgotten() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = Arc::new(open(&pg.url(&db)).await);
    let mut blob = walrusds::Blob::default();
    blob.blob_id = "b".into();
    index.place(&blob, &[row(KEY, "b", 0, 1)]).await.unwrap();
    index.delete(KEY).await.unwrap();
    let url = pg.url(&db);
    let other = blocking(|| {
        let mut other = postgres::Client::connect(&url, postgres::NoTls).unwrap();
        let stored = "BEGIN; UPDATE walrus_index_blobs SET object_id = 'new', state_since = clock_timestamp()";
        other.batch_execute(stored).unwrap();
        other
    });
    let forgetting = {
        let index = index.clone();
        tokio::spawn(async move { index.forget_blobs(&["b".to_owned()]).await })
    };
    eventually("the removal waits", || blocked(&db) == 1).await;
    blocking(move || {
        let mut other = other;
        other.batch_execute("COMMIT").unwrap();
    });
    assert_eq!(forgetting.await.unwrap().unwrap(), 0);
    let entry = index.blobs(&["b".to_owned()]).await.unwrap().remove(0);
    assert_eq!(entry.unwrap().object_id, "new");
    assert_eq!(index.forget_blobs(&["b".to_owned()]).await.unwrap(), 1);
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_server_does_not_hang_the_node() {
    // A proxy that can stop forwarding: the socket stays open and nothing comes.
    let pg = Postgres::shared();
    let db = pg.database();
    let proxy = Proxy::start(pg.port());
    let mut through = options(&format!(
        "postgres://postgres@127.0.0.1:{}/{db}?sslmode=disable",
        proxy.port
    ));
    through.statement_timeout = Duration::from_millis(500);
    through.connect_timeout = Duration::from_secs(1);
    let index = PostgresIndex::open(through).await.unwrap();
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    proxy.hang(true);
    let new_row = row(KEY, "b", 0, 1);
    let (get, put) = tokio::join!(index.get(KEY), index.put(&new_row));
    assert!(get.unwrap_err().is_retryable());
    assert!(put.unwrap_err().is_retryable());
    proxy.hang(false);
    eventually("lookups work again", || proxy.accepted() > 0).await;
    let begun = Instant::now();
    while index.get(KEY).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "lookups never work again");
    }
    assert!(index.get(KEY).await.unwrap().is_some());
    index.put(&row(KEY, "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}

/// Forwards TCP connections to a port.
struct Proxy {
    port: u16,
    hung: tokio::sync::watch::Sender<bool>,
    accepted: Arc<std::sync::atomic::AtomicUsize>,
    /// The most requests that one client had sent without an answer.
    unanswered: Arc<std::sync::atomic::AtomicUsize>,
}

impl Proxy {
    fn start(to: u16) -> Proxy {
        Proxy::start_with(to, false)
    }

    /// Tells clients another process ID than the server's, as every pooler does.
    fn start_as_pooler(to: u16) -> Proxy {
        Proxy::start_with(to, true)
    }

    fn start_with(to: u16, pooler: bool) -> Proxy {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (hung, is_hung) = tokio::sync::watch::channel(false);
        let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let unanswered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counter, most) = (accepted.clone(), unanswered.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let requests = Requests {
                    under_way: Arc::default(),
                    most: most.clone(),
                };
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut is_hung = is_hung.clone();
                tokio::spawn(async move {
                    let server = tokio::net::TcpStream::connect(("127.0.0.1", to))
                        .await
                        .unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let mut other = is_hung.clone();
                    tokio::join!(
                        forward(
                            &mut from_client,
                            &mut to_server,
                            &mut is_hung,
                            false,
                            Messages::sent(&requests),
                        ),
                        forward(
                            &mut from_server,
                            &mut to_client,
                            &mut other,
                            pooler,
                            Messages::answered(&requests),
                        ),
                    );
                });
            }
        });
        Proxy {
            port,
            hung,
            accepted,
            unanswered,
        }
    }

    fn hang(&self, hung: bool) {
        self.hung.send_replace(hung);
    }

    fn accepted(&self) -> usize {
        self.accepted.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The requests of a client that have no answer yet, and the most that any client has had.
#[derive(Clone)]
struct Requests {
    under_way: Arc<std::sync::atomic::AtomicUsize>,
    most: Arc<std::sync::atomic::AtomicUsize>,
}

/// Counts requests, or their ends, in one direction of a connection.
struct Messages {
    requests: Requests,
    from_client: bool,
    /// What is read of the next message: its type (none for a client's first message) and length.
    head: Vec<u8>,
    /// The bytes of the last message that are still to come.
    rest: usize,
    first: bool,
}

impl Messages {
    fn sent(requests: &Requests) -> Messages {
        Messages {
            requests: requests.clone(),
            from_client: true,
            head: Vec::new(),
            rest: 0,
            first: true,
        }
    }

    fn answered(requests: &Requests) -> Messages {
        Messages {
            from_client: false,
            first: false,
            ..Messages::sent(requests)
        }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        use std::sync::atomic::Ordering::SeqCst;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            bytes = &bytes[skipped..];
            self.rest -= skipped;
            if self.rest > 0 {
                return;
            }
            let kind = usize::from(!self.first);
            while self.head.len() < kind + 4 {
                let Some((byte, after)) = bytes.split_first() else {
                    return;
                };
                self.head.push(*byte);
                bytes = after;
            }
            let length = self.head[kind..].try_into().expect("four bytes");
            self.rest = u32::from_be_bytes(length) as usize - 4;
            match self.head[0] {
                _ if self.first => {}
                // Query and Sync end in a ReadyForQuery each.
                b'Q' | b'S' if self.from_client => {
                    let now = self.requests.under_way.fetch_add(1, SeqCst) + 1;
                    self.requests.most.fetch_max(now, SeqCst);
                }
                // The one after the login answers no request.
                b'Z' if !self.from_client => {
                    let less = |n: usize| n.checked_sub(1);
                    let _ = self.requests.under_way.fetch_update(SeqCst, SeqCst, less);
                }
                _ => {}
            }
            self.first = false;
            self.head.clear();
        }
    }
}

async fn forward(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    hung: &mut tokio::sync::watch::Receiver<bool>,
    mut pooler: bool,
    mut messages: Messages,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 65_536];
    while let Ok(n) = from.read(&mut buffer).await {
        if hung.wait_for(|h| !*h).await.is_err() {
            break;
        }
        // BackendKeyData: type, length, process ID, secret.
        if let Some(at) = buffer[..n]
            .windows(5)
            .position(|w| w == b"K\0\0\0\x0c")
            .filter(|_| pooler)
        {
            buffer[at + 5] ^= 0x55;
            pooler = false;
        }
        messages.read(&buffer[..n]);
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

// ---------------------------------------------------------------------------------------------
// Abandoned writes

/// The server's processes whose latest statement of the index was like `query`.
fn backends(pg: &Postgres, db: &str, query: &str) -> Vec<u32> {
    let pids = pg.scalar(
        db,
        &format!(
            "SELECT coalesce(string_agg(pid::text, ','), '') FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'walrusds' AND query LIKE '{query}'"
        ),
    );
    pids.split(',').filter_map(|pid| pid.parse().ok()).collect()
}

const PUT: &str = "%INSERT INTO%unnest%";
const DELETE: &str = "WITH d AS (DELETE%";
const DELETE_FROM: &str = "WITH d AS (DELETE%AND blob_id = $2%";

/// Stops a process of the server until dropped.
struct Frozen(u32);

impl Frozen {
    /// Stops the only process whose latest statement was like `query`. Those of an index that was
    /// closed just now may need a moment to end.
    async fn new(pg: &Postgres, db: &str, query: &str) -> Frozen {
        let only = || backends(pg, db, query).len() == 1;
        eventually(&format!("one process runs {query}"), only).await;
        let pids = backends(pg, db, query);
        signal_each(&pids, "-STOP");
        Frozen(pids[0])
    }

    /// Lets the process go on, and returns when it has ended, since its client has hung up.
    async fn thaw(self, pg: &Postgres, db: &str) {
        signal_each(&[self.0], "-CONT");
        eventually("the process ends", || {
            !backends(pg, db, "%").contains(&self.0)
        })
        .await;
        std::mem::forget(self); // its number may be another's by now
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal_each(&[self.0], "-CONT");
    }
}

/// An index that gives up after a second, with both kinds of connection open.
pub async fn hasty(url: &str) -> PostgresIndex {
    hasty_that_keeps(url, Duration::ZERO).await
}

async fn hasty_that_keeps(url: &str, keep_deleted: Duration) -> PostgresIndex {
    let mut options = options(url);
    options.statement_timeout = Duration::from_secs(1);
    options.keep_deleted = keep_deleted;
    let index = PostgresIndex::open(options).await.unwrap();
    // On a busy machine a second may be short.
    let opens = row("/opens the pool", "b", 0, 1);
    insist(async || index.put(&opens).await).await;
    insist(async || index.delete("/opens the pipe").await).await;
    index
}

/// Repeats a call for as long as it fails with an error that says that it may be repeated.
pub async fn insist<T>(call: impl AsyncFn() -> Result<T, Error>) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(e) => assert!(e.is_retryable() && begun.elapsed() < PATIENCE, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn given_up<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_not_carried_out_later() {
    let pg = Postgres::shared();
    carries_out_nothing_late(pg, &pg.database(), false).await;
}

/// The server's process stands still with a statement in its socket, until that has failed and the
/// key was written again. (It is asked to cancel, but an idle process ignores that.)
pub async fn carries_out_nothing_late(pg: &Postgres, db: &str, on_citus: bool) {
    for (late, then, keep) in [
        ("put", "put", 0),
        ("put", "delete", 0),
        ("delete", "put", 0),
        ("pages", "put", 0),
        ("put", "delete", 86_400),
        ("delete", "put", 86_400),
        ("delete from", "put", 0),
        ("delete from", "put", 86_400),
    ] {
        let index = hasty_that_keeps(&pg.url(db), Duration::from_secs(keep)).await;
        // It makes the connection on which it is asked again later.
        let lost = insist(async || index.delete_from("none", &[KEY.to_owned()]).await).await;
        assert_eq!(lost, Usage::default());
        if late != "delete from" {
            insist(async || index.put(&row(KEY, "before", 0, 1)).await).await;
        }
        // On Citus, a deletion that keeps rows is a transaction, as several pages are.
        let shared = late == "delete" && !(on_citus && keep > 0);
        let query = match late {
            "delete" if shared => DELETE,
            "delete from" => DELETE_FROM,
            _ => PUT,
        };
        let frozen = Frozen::new(pg, db, query).await;
        match late {
            "put" => given_up(index.put(&row(KEY, "late", 0, 1)).await),
            "delete" => given_up(index.delete(KEY).await),
            // The same blob is stored anew below.
            "delete from" => given_up(index.delete_from("after", &[KEY.to_owned()]).await),
            _ => {
                let mut many: Vec<_> = (0..5_001)
                    .map(|i| row(&format!("/many/{i}"), "late", 0, 1))
                    .collect();
                many.push(row(KEY, "late", 0, 1));
                given_up(index.put_many(&many).await);
            }
        }
        match then {
            "put" => insist(async || index.put(&row(KEY, "after", 0, 1)).await).await,
            // A second try finds what the first one has left.
            _ => assert!(insist(async || index.delete(KEY).await).await.blocks <= 1),
        }
        if shared {
            drop(frozen);
            // On the same connection, so behind it.
            insist(async || index.delete("/behind").await).await;
        } else {
            frozen.thaw(pg, db).await;
        }
        let found = insist(async || index.get(KEY).await).await;
        let found = found.map(|r| r.blob_id);
        let expected = (then == "put").then(|| "after".to_owned());
        assert_eq!(found, expected, "{then} after a late {late}");
        let rows = "SELECT count(*) FROM walrus_index WHERE blob_id = 'late'";
        assert_eq!(pg.scalar(db, rows), "0");
        // What a put has brought to an end is not kept either, and what was deleted in time is.
        let kept = pg.scalar(db, "SELECT count(*) FROM walrus_index_deleted");
        let expected = if keep > 0 && then == "delete" {
            "1"
        } else {
            "0"
        };
        assert_eq!(kept, expected, "{then} after a late {late}");
        pg.execute(db, "DELETE FROM walrus_index_deleted");
        index.close().await.unwrap();
    }
}

/// The server has begun a put in time and is held up at its commit (here by a standby that does not
/// exist): the row is not visible, and appears later all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_waits_for_a_put_that_was_given_up() {
    let pg = Postgres::start();
    let db = pg.database();
    for (setup, keep) in [("", 0), (GO_NEWEST, 86_400)] {
        pg.execute(&db, setup);
        let keep = Duration::from_secs(keep);
        let index = Arc::new(hasty_that_keeps(&pg.url(&db), keep).await);
        pg.set("synchronous_standby_names", "nobody");
        // The setting takes a moment to reach the server's processes.
        let at_commit = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let begun = Instant::now();
        let writing = loop {
            let writer = index.clone();
            let put = tokio::spawn(async move { writer.put(&row(KEY, "late", 0, 1)).await });
            while !put.is_finished() && pg.scalar(&db, at_commit) != "1" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if !put.is_finished() {
                break put;
            }
            assert!(begun.elapsed() < PATIENCE, "no put waits");
            put.await.unwrap().unwrap();
            index.delete(KEY).await.unwrap();
        };
        let frozen = Frozen::new(&pg, &db, PUT).await;
        given_up(writing.await.unwrap());
        assert_eq!(index.get(KEY).await.unwrap(), None);
        // The index cannot know whether there is a row to delete.
        given_up(index.delete(KEY).await);
        let deleting = {
            let index = index.clone();
            tokio::spawn(async move { index.delete(KEY).await })
        };
        pg.set("synchronous_standby_names", "");
        frozen.thaw(&pg, &db).await;
        let removed = match deleting.await.unwrap() {
            Ok(removed) => removed,
            Err(e) if e.is_retryable() => index.delete(KEY).await.unwrap(),
            Err(e) => panic!("{e}"),
        };
        assert_eq!(removed, Usage::new(1, 1));
        assert_eq!(index.get(KEY).await.unwrap(), None);
        // No doubt is left: an absent row counts as nothing again.
        assert_eq!(index.delete(KEY).await.unwrap(), Usage::default());
        // The row is kept that was put, and not the one that the deletion has placed to wait for
        // it.
        let kept = "SELECT string_agg(blob, ' ') FROM walrus_index_deleted WHERE key = '/CIQKEY'";
        if !keep.is_zero() {
            assert_eq!(pg.scalar(&db, kept), "late");
        }
        index.close().await.unwrap();
        pg.execute(
            &db,
            "DROP TABLE walrus_index, walrus_index_meta, walrus_index_usage, walrus_index_leases, \
             walrus_index_deleted",
        );
    }
}

/// Servers' clocks differ from the node's, and are set.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_clock_may_show_anything() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(
        &db,
        &format!(
            "CREATE SCHEMA fake; CREATE TABLE fake.shift (by interval); INSERT INTO fake.shift VALUES ('0');
             CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
                 'SELECT pg_catalog.clock_timestamp() + by FROM fake.shift';
             CREATE FUNCTION fake.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
                 'SELECT pg_catalog.statement_timestamp() + by FROM fake.shift';
             ALTER DATABASE {db} SET search_path = fake, pg_catalog, public"
        ),
    );
    let index = hasty(&pg.url(&db)).await;
    for shift in ["-3 years", "0", "50 years", "1 hour", "10 hours", "0"] {
        pg.execute(&db, &format!("UPDATE fake.shift SET by = '{shift}'"));
        index.put(&row(KEY, shift, 0, 1)).await.unwrap();
        assert_eq!(index.get(KEY).await.unwrap().unwrap().blob_id, shift);
        assert_eq!(index.delete(KEY).await.unwrap().blocks, 1);
        assert!(index
            .try_lease("l", "a", Duration::from_secs(1))
            .await
            .unwrap());
        index.release_lease("l", "a").await.unwrap();
    }
    index.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Beside Go nodes

fn stage(db: &str, key: &str, value: &str) {
    Postgres::shared().execute(
        db,
        &format!(
            "INSERT INTO walrus_index_staging (key, value, size) VALUES ('{key}', '{value}', length('{value}')) \
             ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, size = EXCLUDED.size"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_staged_by_a_go_node() {
    let pg = Postgres::shared();
    for database in ["", ICU] {
        let db = pg.database_with(database);
        pg.execute(&db, GO_NEWEST);
        pg.execute(&db, "INSERT INTO walrus_index (key, blob_id, size) VALUES ('/both', 'blob', 100), ('/indexed', 'blob', 10)");
        stage(&db, "/both", "newer");
        stage(&db, "/only", "xyz");
        let index = open(&pg.url(&db)).await;
        assert_eq!(
            index.usage().await.unwrap(),
            Usage::new(3, 113),
            "a key counts once"
        );

        let staged = |size| Record::new("", 0, size).with_staged(true);
        assert_eq!(index.get("/only").await.unwrap(), Some(staged(3)));
        assert_eq!(
            index.get("/both").await.unwrap(),
            Some(staged(5)),
            "what is staged is newer"
        );
        let found = index
            .get_many(&["/indexed", "/both", "/none", "/only"].map(String::from))
            .await
            .unwrap();
        assert!(!found[0].as_ref().unwrap().staged && found[2].is_none());
        assert_eq!(
            (found[1].clone(), found[3].clone()),
            (Some(staged(5)), Some(staged(3)))
        );
        assert_eq!(
            index.staged_value("/both").await.unwrap().unwrap().as_ref(),
            b"newer"
        );
        assert_eq!(index.staged_value("/indexed").await.unwrap(), None);

        let all = KeyRange::prefix("/");
        let listed = index.list(&all, 0, 10).await.unwrap();
        let sizes: Vec<_> = listed.iter().map(|i| (i.key.as_str(), i.size)).collect();
        assert_eq!(
            sizes,
            [("/both", 5), ("/indexed", 10), ("/only", 3)],
            "no key twice"
        );
        for (after, next) in [
            (None, "/both"),
            (Some("/both"), "/indexed"),
            (Some("/indexed"), "/only"),
        ] {
            let page = after.map_or(all.clone(), |key| all.clone().after(key));
            assert_eq!(index.list(&page, 0, 1).await.unwrap()[0].key, next);
        }
        let back = all.clone().descending();
        for (skip, key) in [(0, "/only"), (1, "/indexed"), (2, "/both")] {
            let one = index.list(&back, skip, 1).await.unwrap();
            assert_eq!((one.len(), one[0].key.as_str()), (1, key));
            let rest = index.list(&all, skip, 10).await.unwrap();
            assert_eq!(rest, listed[skip..], "a key in both tables counts once");
        }
        let others = all
            .clone()
            .except("/both")
            .to(Bound::Included("/indexed".into()));
        assert_eq!(index.list(&others, 0, 9).await.unwrap(), listed[1..2]);

        // The Go node's flusher promotes a block.
        pg.execute(
            &db,
            "BEGIN; DELETE FROM walrus_index_staging WHERE key = '/only'; \
             INSERT INTO walrus_index (key, blob_id, size) VALUES ('/only', 'packed', 3); COMMIT",
        );
        assert_eq!(index.staged_value("/only").await.unwrap(), None);
        assert_eq!(index.get("/only").await.unwrap().unwrap().blob_id, "packed");

        // A put replaces what is staged, in one page or in many.
        index.put(&row("/both", "mine", 0, 5)).await.unwrap();
        assert_eq!(index.get("/both").await.unwrap().unwrap().blob_id, "mine");
        stage(&db, "/k00007", "stale");
        let many: Vec<_> = (0..11_000)
            .map(|i| row(&format!("/k{i:05}"), "mine", 0, 1))
            .collect();
        index.put_many(&many).await.unwrap();
        assert_eq!(index.get("/k00007").await.unwrap().unwrap().blob_id, "mine");
        assert_eq!(count(&db, "SELECT count(*) FROM walrus_index_staging"), 0);

        // A delete takes both, and counts a key once.
        stage(&db, "/both", "again");
        stage(&db, "/fresh", "1234");
        let removed = index
            .delete_many(&["/both", "/fresh", "/indexed"].map(String::from))
            .await
            .unwrap();
        assert_eq!(removed, Usage::new(3, 5 + 4 + 10));
        assert_eq!(index.get("/both").await.unwrap(), None);
        assert_eq!(count(&db, "SELECT count(*) FROM walrus_index_staging"), 0);

        // The table goes away (the last Go node was retired): noticed at once.
        pg.execute(&db, "DROP TABLE walrus_index_staging");
        assert!(index.get("/only").await.unwrap().is_some());
        index.put(&row("/after", "mine", 0, 5)).await.unwrap();
        assert_eq!(index.delete("/after").await.unwrap().blocks, 1);
        assert_eq!(index.staged_value("/only").await.unwrap(), None);
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_may_be_the_one_to_notice_that_staging_is_gone() {
    let pg = Postgres::shared();
    for call in 0..4 {
        let db = pg.database();
        pg.execute(&db, GO_NEWEST);
        let index = open(&pg.url(&db)).await;
        pg.execute(&db, "DROP TABLE walrus_index_staging");
        match call {
            0 => drop(index.staged_value(KEY).await.unwrap()),
            1 => index.put(&row(KEY, "b", 0, 1)).await.unwrap(),
            2 => index
                .put_many(
                    &(0..6000)
                        .map(|i| row(&format!("/{i}"), "b", 0, 1))
                        .collect::<Vec<_>>(),
                )
                .await
                .unwrap(),
            _ => drop(index.delete(KEY).await.unwrap()),
        }
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes over a minute"]
async fn a_go_node_that_joins_later_is_noticed() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = open(&pg.url(&db)).await;
    pg.execute(&db, GO_TABLES[5]);
    stage(&db, KEY, "xyz");
    tokio::time::sleep(Duration::from_secs(61)).await;
    let _ = index.get(KEY).await.unwrap();
    let begun = Instant::now();
    while !index.get(KEY).await.unwrap().is_some_and(|row| row.staged) {
        assert!(begun.elapsed() < PATIENCE, "the staged row is never seen");
    }
    index.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Plans and durability

/// The server writes a connection's counters before the connection is gone.
async fn counters_are_written(db: &str) {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    eventually("every connection has ended", || count(db, ours) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_index_scans() {
    let pg = Postgres::shared();
    // Our table by its primary key; the Go plugin's, in two collations, by its own prefix index.
    for (setup, database, index_name) in [
        ("", "", "walrus_index_pkey"),
        (GO_NEWEST, "", "walrus_index_key_prefix_idx"),
        (GO_NEWEST, ICU, "walrus_index_key_prefix_idx"),
        (GO_TABLES[0], ICU, "walrus_index_key_prefix_idx"),
    ] {
        let db = pg.database_with(database);
        if !setup.is_empty() {
            pg.execute(&db, setup);
        }
        let index = open(&pg.url(&db)).await;
        let rows: Vec<_> = (0..20_000)
            .map(|i| row(&format!("/blocks/k{i:06}"), "b", 0, 1))
            .collect();
        index.put_many(&rows).await.unwrap();
        index.close().await.unwrap();
        counters_are_written(&db).await;
        // Vacuum leaves out a page that another process looks at.
        let unseen = "SELECT relpages - relallvisible FROM pg_class WHERE relname = 'walrus_index'";
        eventually("all pages are visible to all", || {
            pg.execute(&db, "VACUUM ANALYZE walrus_index");
            count(&db, unseen) == 0
        })
        .await;
        let numbers = |what: &str| count(&db, what);
        let read = format!(
            "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = '{index_name}'"
        );
        let full = "SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = 'walrus_index'";
        counters_are_written(&db).await;
        let (read_before, full_before) = (numbers(&read), numbers(full));
        let index = open(&pg.url(&db)).await;
        let middle = || "/blocks/k010000".to_owned();
        let ranges = [
            KeyRange::prefix("/blocks").after(middle()),
            KeyRange::ALL.after(middle()),
            KeyRange::prefix("/blocks/k015"),
            KeyRange::ALL,
            KeyRange::prefix("/blocks").to(Bound::Included(middle())),
            KeyRange::ALL
                .from(Bound::Included(middle()))
                .except(middle()),
        ];
        for range in ranges {
            let back = range.clone().descending();
            assert_eq!(index.list(&range, 0, 20).await.unwrap().len(), 20);
            assert_eq!(index.list(&range, 5, 20).await.unwrap().len(), 20);
            assert_eq!(index.list(&back, 0, 20).await.unwrap().len(), 20);
            assert_eq!(
                index.list(&back.after(middle()), 0, 1).await.unwrap().len(),
                usize::from(range.contains("/blocks/k009999"))
            );
        }
        index.close().await.unwrap();
        eventually("the counters are written", || numbers(&read) > read_before).await;
        let (read_after, full_after) = (numbers(&read), numbers(full));
        assert_eq!(
            full_after, full_before,
            "{index_name}: the table was read from end to end"
        );
        assert!(
            read_after - read_before < 1_200,
            "{index_name}: {} entries for some 400 rows",
            read_after - read_before
        );

        // A listing of keys alone reads no row.
        let rows = format!(
            "SELECT idx_tup_fetch FROM pg_stat_user_indexes WHERE indexrelname = '{index_name}'"
        );
        let rows_before = numbers(&rows);
        let index = open(&pg.url(&db)).await;
        for range in [KeyRange::ALL, KeyRange::prefix("/blocks").descending()] {
            let range = range.keys_alone();
            assert_eq!(index.list(&range, 0, 500).await.unwrap().len(), 500);
        }
        index.close().await.unwrap();
        eventually("the counters are written", || numbers(&read) > read_after).await;
        assert_eq!(numbers(&rows), rows_before, "{index_name}");
    }
}

/// Lookups, deletes, renewals and neighbours of a block find their rows through an index, for every
/// kind of table (made by walrusds or the Go plugin, or in partitions): no statement may read it
/// from end to end.
#[tokio::test(flavor = "multi_thread")]
async fn no_statement_reads_the_whole_table() {
    let pg = Postgres::shared();
    // (A small partition is rightly read from end to end.)
    for (setup, database, rows) in [
        (String::new(), "", 20_000),
        (GO_NEWEST.to_owned(), "", 20_000),
        (GO_NEWEST.to_owned(), ICU, 20_000),
        (GO_TABLES[0].to_owned(), ICU, 20_000),
        (partitioned(16), "", 80_000),
    ] {
        let db = pg.database_with(database);
        pg.execute(&db, &setup);
        let index = open(&pg.url(&db)).await;
        let key = |i: i64| format!("/blocks/k{i:06}");
        let rows: Vec<_> = (0..rows)
            .map(|i| row(&key(i), &format!("b{}", i / 200), i % 200, 1))
            .collect();
        index.put_many(&rows).await.unwrap();
        index.close().await.unwrap();
        pg.execute(&db, "VACUUM ANALYZE walrus_index");
        let full = "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables \
                    WHERE relname LIKE 'walrus_index%' AND relname NOT IN ('walrus_index_meta', 'walrus_index_usage')";
        let used = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_tables WHERE relname LIKE 'walrus_index%'";
        counters_are_written(&db).await;
        let (full_before, used_before) = (count(&db, full), count(&db, used));
        let index = open(&pg.url(&db)).await;
        let some: Vec<String> = (0..10).map(|i| key(i * 1931)).collect();
        // Often enough for the statements to be prepared, and for their generic plans to be tried.
        for i in 0..20 {
            assert!(index.get(&key(i * 97)).await.unwrap().is_some());
            assert!(index.get("/blocks/none").await.unwrap().is_none());
            let found = index.get_many(&some).await.unwrap();
            assert_eq!(found.iter().flatten().count(), some.len());
            assert_eq!(index.rows_from("b7", 100, 10).await.unwrap().len(), 10);
            assert_eq!(index.rows_of_blob("b8").await.unwrap().len(), 200);
            index.put_many(&rows[..2]).await.unwrap();
            assert_eq!(index.delete(&key(i + 10_000)).await.unwrap().blocks, 1);
            let two = [key(i + 11_000), key(i + 12_000)];
            assert_eq!(index.delete_many(&two).await.unwrap().blocks, 2);
            let renewal = Renewal::new(9, Some(time(9)));
            let renewed = index.update_blob_after_renewal("b9", &renewal).await;
            assert_eq!(renewed.unwrap(), 200);
        }
        index.close().await.unwrap();
        eventually("the counters are written", || {
            count(&db, used) - used_before > 20 * 12
        })
        .await;
        assert_eq!(count(&db, full), full_before, "{setup} {database}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_does_not_wait_for_the_disk_and_a_put_does() {
    let pg = Postgres::start_with(&[
        "fsync=on",
        "wal_writer_delay=10s",
        "wal_writer_flush_after=1GB",
    ]);
    let db = pg.database();
    for setup in ["", GO_NEWEST] {
        pg.execute(&db, setup);
        let index = open(&pg.url(&db)).await;
        // Where the log ends, and how much of it is on the disk (bytes).
        let log = || {
            let sql = "SELECT pg_current_wal_insert_lsn() - '0/0' || ' ' || (pg_current_wal_flush_lsn() - '0/0')";
            let text = pg.scalar(&db, sql);
            let (end, synced) = text.split_once(' ').expect("two numbers");
            (end.parse::<u64>().unwrap(), synced.parse::<u64>().unwrap())
        };
        let puts_are_synced = async |why: &str| {
            let (end, _) = log();
            index.put(&row(KEY, "b", 0, 1)).await.unwrap();
            assert!(log().1 > end, "{why}");
        };
        puts_are_synced("an acknowledged row is on disk").await;
        // The server syncs its log on its own now and then, too.
        let mut unsynced = false;
        for _ in 0..10 {
            let (_, synced) = log();
            assert_eq!(index.delete(KEY).await.unwrap().blocks, 1);
            unsynced |= log().1 == synced;
            puts_are_synced("the setting did not outlive the delete").await;
        }
        assert!(unsynced, "every delete's commit was synced");
        index.close().await.unwrap();
        pg.execute(
            &db,
            "DROP TABLE walrus_index, walrus_index_meta, walrus_index_usage, walrus_index_leases",
        );
    }
}

// ---------------------------------------------------------------------------------------------
// TLS

pub fn openssl(dir: &std::path::Path, args: &str) {
    let out = std::process::Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("these tests need the openssl command");
    assert!(
        out.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_as_libpq_means_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    // A CA, a server certificate for localhost, a self-signed one (as most make it), a client's.
    openssl(
        dir.path(),
        &format!("req -x509 {ec} -keyout ca.key -out ca.crt -subj /CN=ca"),
    );
    openssl(
        dir.path(),
        &format!("req -x509 {ec} -keyout other.key -out other.crt -subj /CN=other"),
    );
    openssl(dir.path(), &format!("req -x509 {ec} -keyout self.key -out self.crt -subj /CN=localhost -addext subjectAltName=DNS:localhost"));
    for (name, subject, san) in [
        ("server", "/CN=localhost", "DNS:localhost"),
        ("client", "/CN=tina", "DNS:tina"),
    ] {
        std::fs::write(
            dir.path().join("ext"),
            format!("subjectAltName={san}\nbasicConstraints=CA:FALSE\n"),
        )
        .unwrap();
        openssl(
            dir.path(),
            &format!("req -new {ec} -keyout {name}.key -out {name}.csr -subj {subject}")
                .replace(" -days 2", ""),
        );
        openssl(dir.path(), &format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out {name}.crt -extfile ext"));
    }

    let mut pg = Postgres::start();
    pg.execute("postgres", "CREATE ROLE tina LOGIN");
    pg.execute("postgres", "CREATE DATABASE db OWNER tina");
    let trust = "local all all trust\nhostssl db tina 127.0.0.1/32 cert\nhostnossl plain all 127.0.0.1/32 trust\nhostssl all postgres 127.0.0.1/32 trust\nhostnossl postgres postgres 127.0.0.1/32 trust\n";
    for (cert, key) in [("server.crt", "server.key"), ("self.crt", "self.key")] {
        pg.write("server.crt", &read(cert));
        pg.write("server.key", &read(key));
        pg.write("root.crt", &read("ca.crt"));
        pg.execute("postgres", "ALTER SYSTEM SET ssl = on");
        pg.execute("postgres", "ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
        pg.set_hba(trust);
        pg.restart();
        let root = if cert == "self.crt" {
            at("self.crt")
        } else {
            at("ca.crt")
        };
        let wrong = at("other.crt");
        let url = |host: &str, rest: &str| {
            format!(
                "postgres://postgres@{host}:{}/db?hostaddr=127.0.0.1&{rest}",
                pg.port()
            )
        };
        for (host, rest, refusal) in [
            ("localhost", "sslmode=require".to_owned(), None),
            ("elsewhere", "sslmode=require".into(), None),
            ("localhost", "sslmode=prefer".into(), None),
            ("localhost", String::new(), None),
            ("localhost", "sslmode=allow".into(), None), // refused in plain, then encrypted
            ("localhost", "sslmode=disable".into(), Some("pg_hba")),
            (
                "localhost",
                format!("sslmode=verify-ca&sslrootcert={root}"),
                None,
            ),
            (
                "elsewhere",
                format!("sslmode=verify-ca&sslrootcert={root}"),
                None,
            ),
            (
                "localhost",
                format!("sslmode=verify-full&sslrootcert={root}"),
                None,
            ),
            (
                "elsewhere",
                format!("sslmode=verify-full&sslrootcert={root}"),
                Some("elsewhere"),
            ),
            (
                "localhost",
                format!("sslmode=verify-full&sslrootcert={wrong}"),
                Some("certificate"),
            ),
            (
                "localhost",
                format!("sslmode=verify-ca&sslrootcert={wrong}"),
                Some("certificate"),
            ),
            (
                "localhost",
                format!("sslmode=require&sslrootcert={wrong}"),
                Some("certificate"),
            ), // as verify-ca
            (
                "localhost",
                "sslmode=verify-full&sslrootcert=system".into(),
                Some("certificate"),
            ),
            (
                "localhost",
                "sslrootcert=system".into(),
                Some("certificate"),
            ),
        ] {
            let url = url(host, &rest);
            match (PostgresIndex::open(options(&url)).await, refusal) {
                (Ok(index), None) => {
                    index.put(&row(KEY, "b", 0, 1)).await.unwrap(); // through the pool, too
                                                                    // The server may still be
                                                                    // ending the connections of the
                                                                    // index before.
                    let encrypted = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'walrusds' AND s.ssl";
                    let two = || pg.scalar("postgres", encrypted) == "2";
                    eventually("lookups and pool are encrypted", two).await;
                    index.close().await.unwrap();
                }
                (Err(error), Some(part)) => {
                    assert_eq!(error.kind(), ErrorKind::Config, "{url}: {error}");
                    assert!(error.message().contains(part), "{url}: {error}");
                }
                (Ok(_), Some(_)) => panic!("{url} was accepted"),
                (Err(error), None) => panic!("{url}: {error}"),
            }
        }
        // Client certificates.
        let client = format!(
            "sslmode=require&sslcert={}&sslkey={}",
            at("client.crt"),
            at("client.key")
        );
        let as_tina = url("localhost", &client).replace("postgres@", "tina@");
        if cert == "server.crt" {
            let error = refused(options(
                &url("localhost", "sslmode=require").replace("postgres@", "tina@"),
            ))
            .await;
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            let error = PostgresIndex::open(options(&as_tina)).await.err();
            assert!(
                error.is_none_or(|e| e.message().contains("permission denied")),
                "logged in"
            );
        }
        // A cancel request goes over TLS as well.
        let mut short = options(&url(
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={root}"),
        ));
        short.statement_timeout = Duration::from_millis(300);
        let index = PostgresIndex::open(short).await.unwrap();
        let lock = Locked::at(
            pg.socket_url("db"),
            "LOCK TABLE walrus_index IN ACCESS EXCLUSIVE MODE",
        );
        let new_row = row(KEY, "b", 0, 1);
        let (get, put) = tokio::join!(index.get(KEY), index.put(&new_row));
        assert!(get.is_err() && put.is_err());
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("cancelled over TLS", || {
            pg.scalar("postgres", waiting) == "0"
        })
        .await;
        drop(lock);
        assert!(index.get(KEY).await.unwrap().is_some());
        index.close().await.unwrap();
    }
}

#[test]
fn dropping_without_close_is_harmless() {
    // With the runtime going down at the same moment.
    let url = {
        let pg = Postgres::shared();
        pg.url(&pg.database())
    };
    for _ in 0..5 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let index = runtime.block_on(async {
            let index = open(&url).await;
            index.put(&row(KEY, "b", 0, 1)).await.unwrap();
            drop(index.get(KEY).await.unwrap());
            index
        });
        let task = runtime.spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(index);
        });
        runtime.shutdown_timeout(Duration::from_millis(200));
        drop(task);
    }
}
