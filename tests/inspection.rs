//! Opening to look: no table is created or changed, no journal is locked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use testkit::mem::{key_of, noise};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, Options};
use walrusds::datastore::Inspection;
use walrusds::{Config, ErrorKind, KeyRecord, WalrusDatastore};

async fn walrus() -> Devnet {
    let options = Options {
        cheap_ids: true,
        ..Options::default()
    };
    Devnet::start(options).await.expect("local Walrus")
}

/// `extra` is JSON members, each followed by a comma.
fn config(net: &Devnet, extra: &str) -> Config {
    let url = net.url();
    let json = format!(
        r#"{{{extra}"publisherURL":"{url}","aggregatorURL":"{url}","drainTimeoutSeconds":0}}"#
    );
    Config::from_json(&json).unwrap()
}

const JOURNAL: &str =
    r#""journalPath":"journal","packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"#;

fn sqlite(extra: &str) -> String {
    format!(r#""indexPath":"deep/index.sqlite",{extra}"#)
}

fn block(seed: u64) -> (String, Bytes) {
    let value = noise(seed, 1000);
    (key_of(&value), value)
}

async fn put(store: &WalrusDatastore, seed: u64) -> (String, Bytes) {
    let (key, value) = block(seed);
    store.put(&key, value.clone()).await.unwrap();
    (key, value)
}

/// Every file below a directory with its content, but for SQLite's shared memory, which readers use
/// too, and for the zeroes that a journal writes ahead when it has time.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
            files.insert(path, Vec::new());
        } else if !path.to_string_lossy().ends_with("-shm") {
            let mut content = std::fs::read(&path).unwrap();
            content.truncate(content.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
            files.insert(path, content);
        }
    }
    files
}

async fn refused(config: Config, repo: &Path) -> String {
    match Inspection::open(config, repo).await {
        Ok(_) => panic!("an error was expected"),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Config, "{e}");
            e.to_string()
        }
    }
}

/// An inspection shows where a block is, and reads it.
async fn look(inspection: &Inspection, key: &str, value: &Bytes) {
    let row = inspection.index().get(key).await.unwrap().unwrap();
    let range = row.range().unwrap();
    let same = |bytes: &[u8]| match bytes == value {
        true => Ok(()),
        false => Err("other bytes".to_owned()),
    };
    let read = inspection
        .store()
        .read_range(&row.blob_id, range.start, row.size as u64, &same);
    assert_eq!(read.await.unwrap(), value);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_where_nothing_is() {
    let (net, repo) = (walrus().await, tempfile::tempdir().unwrap());
    let cache = r#""cachePath":"cache","#;
    let all = config(&net, &sqlite(&format!("{JOURNAL}{cache}")));
    let error = refused(all.clone(), repo.path()).await;
    assert!(error.contains("index.sqlite"), "{error}");
    assert_eq!(tree(repo.path()), BTreeMap::new());

    let node = WalrusDatastore::open(config(&net, &sqlite("")), repo.path());
    node.await.unwrap().close().await.unwrap();
    let before = tree(repo.path());
    let other = config(&net, &sqlite(r#""table":"other","#));
    let error = refused(other, repo.path()).await;
    assert!(error.contains("no table other"), "{error}");
    assert_eq!(tree(repo.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_journal_is_looked_at_while_it_works_and_while_it_rests() {
    let (net, repo) = (walrus().await, tempfile::tempdir().unwrap());
    let direct = WalrusDatastore::open(config(&net, &sqlite("")), repo.path())
        .await
        .unwrap();
    let (key, value) = put(&direct, 1).await;
    direct.close().await.unwrap();

    let journalled = config(&net, &sqlite(JOURNAL));
    let open = || WalrusDatastore::open(journalled.clone(), repo.path());
    let node = open().await.unwrap();
    let (staged, _) = put(&node, 2).await;
    let before = tree(repo.path());
    let inspection = Inspection::open(journalled.clone(), repo.path())
        .await
        .expect("the node holds its journal");
    look(&inspection, &key, &value).await;
    assert_eq!(inspection.index().get(&staged).await.unwrap(), None);
    let row = inspection.index().get(&key).await.unwrap().unwrap();
    let row = KeyRecord::new("/new", row);
    let written = inspection.index().put(&row).await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Config);
    inspection.close().await.unwrap();
    assert_eq!(tree(repo.path()), before);
    node.close().await.unwrap();

    let before = tree(repo.path());
    let inspection = Inspection::open(journalled.clone(), repo.path())
        .await
        .unwrap();
    look(&inspection, &key, &value).await;
    assert_eq!(tree(repo.path()), before);
    // The inspection holds nothing that a node needs.
    let node = open().await.unwrap();
    assert!(node.has(&staged).await.unwrap());
    node.close().await.unwrap();
    inspection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_postgres_no_table_is_created_or_changed() {
    const COLUMNS: &str = "SELECT coalesce(string_agg(c.relname || '.' || a.attname || ' ' || a.atttypid, ', ' \
        ORDER BY c.relname, a.attnum), 'none') FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public'";
    /// As the Go plugin's first versions left it.
    const OLD: &str = "CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, size BIGINT NOT NULL, \
        deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now())";
    let (net, repo) = (walrus().await, tempfile::tempdir().unwrap());
    let (pg, no_repo) = (Postgres::shared(), Path::new(""));
    let db = pg.database();
    let index = format!(r#""postgresURL":"{}","maxOpenConns":3,"#, pg.url(&db));
    let (plain, journalled) = (
        config(&net, &index),
        config(&net, &format!("{index}{JOURNAL}")),
    );
    let error = refused(plain.clone(), no_repo).await;
    assert!(error.contains("let a node open it first"), "{error}");
    assert_eq!(pg.scalar(&db, COLUMNS), "none");

    pg.execute(&db, OLD);
    let before = pg.scalar(&db, COLUMNS);
    let error = refused(plain.clone(), no_repo).await;
    assert!(error.contains("let a node open it first"), "{error}");
    assert_eq!(pg.scalar(&db, COLUMNS), before);

    // A node brings it up to date. What it has is looked at beside it.
    let direct = WalrusDatastore::open(plain, no_repo).await.unwrap();
    let (key, value) = put(&direct, 1).await;
    direct.close().await.unwrap();
    let open = || WalrusDatastore::open(journalled.clone(), repo.path());
    let node = open().await.unwrap();
    put(&node, 2).await;
    const ROWS: &str = "SELECT string_agg(t::text, ', ' ORDER BY t) FROM \
        (SELECT m::text AS t FROM walrus_index_meta m UNION ALL SELECT i::text FROM walrus_index i) AS all_rows";
    let seen = || (pg.scalar(&db, COLUMNS), pg.scalar(&db, ROWS));
    let (before, files) = (seen(), tree(repo.path()));
    let inspection = Inspection::open(journalled.clone(), repo.path())
        .await
        .expect("the node holds its journal");
    look(&inspection, &key, &value).await;
    assert_eq!((seen(), tree(repo.path())), (before, files));
    node.close().await.unwrap();
    // The inspection holds nothing that a node needs.
    open().await.unwrap().close().await.unwrap();
    inspection.close().await.unwrap();
}
