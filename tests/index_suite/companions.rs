//! Names that two tables could share, and nodes that may only read.

use std::path::Path;
use std::sync::Arc;

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Config, Error, ErrorKind, Index, WalrusDatastore};

use crate::shared::row;
use testkit::mem::{key_of, noise};
use testkit::postgres::Postgres;

const SUFFIXES: [&str; 6] = [
    "_staging", "_meta", "_leases", "_usage", "_blobs", "_deleted",
];

async fn on_postgres(url: &str, table: &str) -> Result<Arc<dyn Index>, Error> {
    let index = PostgresIndex::open(PostgresOptions::new(url, table)).await?;
    Ok(Arc::new(index))
}

async fn on_sqlite(path: &Path, table: &str) -> Result<Arc<dyn Index>, Error> {
    let index = SqliteIndex::open(SqliteOptions::new(path, table)).await?;
    Ok(Arc::new(index))
}

fn refused(opened: Result<Arc<dyn Index>, Error>, names: [&str; 2]) {
    let Err(error) = opened else {
        panic!("{names:?}: it was opened");
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    for name in names {
        assert!(error.message().contains(name), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_a_companion_is_refused_either_way() {
    let pg = Postgres::shared();
    for suffix in SUFFIXES {
        for first in ["prod", &format!("prod{suffix}")] {
            let second = match first {
                "prod" => format!("prod{suffix}"),
                _ => "prod".to_owned(),
            };
            let db = pg.database();
            let url = pg.url(&db);
            let index = on_postgres(&url, first).await.unwrap();
            index.put(&row("/k", "b", 0, 1)).await.unwrap();
            refused(on_postgres(&url, &second).await, [first, &second]);
            // The first one goes on, also after a new start, and sees its own rows.
            let again = on_postgres(&url, first).await.unwrap();
            assert!(again
                .get("/k")
                .await
                .unwrap()
                .is_some_and(|row| !row.staged));
            for index in [index, again] {
                index.close().await.unwrap();
            }

            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("i.sqlite");
            let index = on_sqlite(&path, first).await.unwrap();
            refused(on_sqlite(&path, &second).await, [first, &second]);
            on_sqlite(&path, first)
                .await
                .unwrap()
                .close()
                .await
                .unwrap();
            index.close().await.unwrap();
        }
    }
}

/// In an SQLite file the schema is a part of the table's name.
#[tokio::test(flavor = "multi_thread")]
async fn names_in_sqlite_are_compared_with_their_schemas() {
    for [first, second] in [["s.prod", "s.prod_meta"], ["s.prod_meta", "s.prod"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.sqlite");
        let index = on_sqlite(&path, first).await.unwrap();
        refused(on_sqlite(&path, second).await, [first, second]);
        index.close().await.unwrap();
    }
    for [first, second] in [["s.prod", "prod_meta"], ["prod_meta", "s.prod"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.sqlite");
        for table in [first, second] {
            let index = on_sqlite(&path, table).await.unwrap();
            index.put(&row("/k", table, 0, 1)).await.unwrap();
            index.close().await.unwrap();
        }
    }
}

/// A table that only has the name of the Go plugin's staging table does not count as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_staging_table_is_known_by_its_columns() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(
        &db,
        "CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, note TEXT)",
    );
    pg.execute(
        &db,
        "INSERT INTO walrus_index_staging VALUES ('/k', 'mine')",
    );
    let index = on_postgres(&pg.url(&db), "walrus_index").await.unwrap();
    assert_eq!(index.get("/k").await.unwrap(), None);
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.delete("/k").await.unwrap();
    assert_eq!(
        pg.scalar(&db, "SELECT note FROM walrus_index_staging"),
        "mine"
    );
    index.close().await.unwrap();
}

/// An index that may only be read, from a reader's configuration, with one block in it.
async fn reader_on(url: &str, extra: &str) -> Result<WalrusDatastore, Error> {
    let config = format!(
        r#"{{{extra}"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1","epochDurationSeconds":1000,"renewIntervalSeconds":1,"postgresURL":"{url}"}}"#
    );
    let repo = tempfile::tempdir().unwrap();
    WalrusDatastore::open(Config::from_json(&config).unwrap(), repo.path()).await
}

async fn only_reads(url: &str, why: &str) {
    let known = noise(1, 100);
    let ds = reader_on(url, "").await.unwrap();
    // Near the end of its storage; the block is there all the same.
    assert!(ds.has(&key_of(&known)).await.unwrap());
    ds.put(&key_of(&known), known.clone()).await.unwrap();
    let new = noise(2, 100);
    let put = ds.put(&key_of(&new), new.clone()).await.unwrap_err();
    let delete = ds.delete(&key_of(&known)).await.unwrap_err();
    for error in [put, delete] {
        assert_eq!(error.kind(), ErrorKind::Index, "{error}");
        assert!(
            !error.is_retryable() && error.message().contains(why),
            "{error}"
        );
    }
    let uploads = ds
        .metrics()
        .into_iter()
        .find(|(name, _)| *name == "packs_failed");
    assert_eq!(
        uploads.unwrap().1,
        0,
        "nothing is sent that could not be indexed"
    );
    ds.close().await.unwrap();
    let Err(error) = reader_on(url, r#""journalPath":"j","#).await else {
        panic!("a journal on an index that cannot be written to");
    };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.message().contains("journalPath") && error.message().contains(why),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_only_read_says_so_at_once() {
    let pg = Postgres::start();
    let db = pg.database();
    let index = on_postgres(&pg.url(&db), "walrus_index").await.unwrap();
    let mut near = row(&key_of(&noise(1, 100)), "b", 0, 100);
    near.record.expires_at =
        Some(std::time::SystemTime::now() + std::time::Duration::from_secs(3600));
    index.put(&near).await.unwrap();
    index.close().await.unwrap();
    for sql in [
        "CREATE ROLE reader LOGIN",
        "CREATE ROLE careful LOGIN SUPERUSER",
        "ALTER ROLE careful SET default_transaction_read_only = on",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    ] {
        pg.execute(&db, sql);
    }
    // A role with all rights but that to delete does not count as a reader.
    for sql in [
        "CREATE ROLE keeper LOGIN",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO keeper",
    ] {
        pg.execute(&db, sql);
    }
    let keeper = on_postgres(&pg.url_as("keeper", &db), "walrus_index")
        .await
        .unwrap();
    assert_eq!(keeper.only_reads(), None);
    let notice = keeper.take_notice().expect("a right is missing");
    for table in ["", "_leases", "_meta", "_blobs", "_deleted", "_epochs"] {
        let lacking = format!("DELETE on \"walrus_index{table}\"");
        assert!(notice.contains(&lacking), "{notice}");
    }
    assert!(!notice.contains("INSERT on"), "{notice}");
    keeper.close().await.unwrap();
    only_reads(&pg.url_as("reader", &db), "no right to write").await;
    only_reads(&pg.url_as("careful", &db), "read-only").await;
    let replica = pg.start_replica();
    only_reads(&replica.url(&db), "standby").await;
}
