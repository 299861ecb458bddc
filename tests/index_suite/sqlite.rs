//! The tests of the embedded index alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Error, ErrorKind, Index, Rows};

use crate::shared::{keys, row};
use crate::Env;

pub async fn env() -> Env {
    env_that_keeps(Duration::ZERO).await
}

/// With deleted rows kept.
pub async fn env_that_keeps(keep_deleted: Duration) -> Env {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/dir/index.sqlite");
    let options = SqliteOptions::new(&path, "walrus_index").with_keep_deleted(keep_deleted);
    let (a, b) = (
        SqliteIndex::open(options.clone()).await,
        SqliteIndex::open(options).await,
    );
    Env {
        a: Arc::new(a.unwrap()),
        b: Arc::new(b.unwrap()),
        quilts: false,
        _keep: Some(dir),
    }
}

async fn open(path: &Path) -> SqliteIndex {
    SqliteIndex::open(SqliteOptions::new(path, "walrus_index"))
        .await
        .unwrap()
}

async fn refused(path: &Path) -> Error {
    match SqliteIndex::open(SqliteOptions::new(path, "walrus_index")).await {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(e) => e,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("text"), "no database at all, but long enough to have a header of one hundred bytes, which it needs ......").unwrap();
    std::fs::write(at("short"), "x").unwrap();
    let other = Connection::open(at("other")).unwrap();
    other
        .execute_batch("CREATE TABLE bookmarks (url TEXT)")
        .unwrap();
    let marked = Connection::open(at("marked")).unwrap();
    marked
        .execute_batch("PRAGMA application_id = 7; PRAGMA user_version = 3")
        .unwrap();
    open(&at("newer")).await.close().await.unwrap();
    Connection::open(at("newer"))
        .unwrap()
        .execute_batch("UPDATE walrus_index_meta SET value = '99' WHERE name = 'schema_version'")
        .unwrap();
    open(&at("damaged")).await.close().await.unwrap();
    let mut bytes = std::fs::read(at("damaged")).unwrap();
    let end = bytes.len();
    bytes[100..end].fill(0xAA);
    std::fs::write(at("damaged"), bytes).unwrap();
    for (path, kind, says) in [
        (at(""), ErrorKind::Config, "is a directory"),
        (at("text/index"), ErrorKind::Config, "cannot be created"),
        (
            "/proc/walrusds/index".into(),
            ErrorKind::Config,
            "cannot be created",
        ),
        ("/proc/walrusds".into(), ErrorKind::Config, "/proc/walrusds"),
        ("/dev/null".into(), ErrorKind::Config, "no regular file"),
        ("".into(), ErrorKind::Config, "is empty"),
        (at("text"), ErrorKind::Corrupt, "no SQLite database"),
        (at("damaged"), ErrorKind::Corrupt, "damaged"),
        (at("other"), ErrorKind::Config, "another application"),
        (at("marked"), ErrorKind::Config, "another application"),
        (at("newer"), ErrorKind::Config, "schema version 99"),
    ] {
        let error = refused(&path).await;
        assert_eq!(error.kind(), kind, "{error}");
        if kind == ErrorKind::Corrupt {
            let cause = std::error::Error::source(&error);
            assert!(cause.is_some_and(|cause| cause.is::<rusqlite::Error>()));
        }
        assert!(
            error.message().contains("indexPath") && error.message().contains(says),
            "{error}"
        );
    }
    let bookmarks: i64 = other
        .query_row("SELECT count(*) FROM bookmarks", [], |r| r.get(0))
        .unwrap();
    assert_eq!(bookmarks, 0, "left as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_survive_reopening_and_tables_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    for round in 0..3 {
        let index = open(&path).await;
        let second = SqliteIndex::open(SqliteOptions::new(&path, "other.Table"))
            .await
            .unwrap();
        assert_eq!(keys(&index, "").await.len(), round);
        assert_eq!(keys(&second, "").await.len(), 2 * round);
        index
            .put(&row(&format!("/k{round}"), "b", 0, 1))
            .await
            .unwrap();
        for n in 0..2 {
            second
                .put(&row(&format!("/k{round}{n}"), "b", 0, 1))
                .await
                .unwrap();
        }
        index.close().await.unwrap();
        second.close().await.unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["index.sqlite"], "the log was emptied into the file");
    }
    // Dropped without close: nothing acknowledged is lost, nothing panics.
    let index = open(&path).await;
    index.put(&row("/dropped", "b", 0, 1)).await.unwrap();
    drop(index);
    let index = open(&path).await;
    assert!(index.get("/dropped").await.unwrap().is_some());
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_connections_read_and_write_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    let mut options = SqliteOptions::new(&path, "walrus_index");
    options.busy_timeout = Duration::from_millis(300);
    let index = SqliteIndex::open(options).await.unwrap();
    index.put(&row("/a", "b", 0, 1)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    let mode: String = other
        .query_row("PRAGMA journal_mode", [], |r| r.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    let seen: i64 = other
        .query_row("SELECT count(*) FROM walrus_index", [], |r| r.get(0))
        .unwrap();
    assert_eq!(seen, 1);
    other.execute("INSERT INTO walrus_index (key, blob_id, size, created_at, updated_at) VALUES ('/b', 'x', 1, 0, 0)", []).unwrap();
    assert!(index.get("/b").await.unwrap().is_some());

    // A long reader holds up no writer, a writer no reader.
    other
        .execute_batch("BEGIN; SELECT count(*) FROM walrus_index")
        .unwrap();
    index.put(&row("/c", "b", 0, 1)).await.unwrap();
    other
        .execute_batch("COMMIT; BEGIN IMMEDIATE; DELETE FROM walrus_index")
        .unwrap();
    assert_eq!(keys(&index, "").await, ["/a", "/b", "/c"]);
    assert!(index.get("/a").await.unwrap().is_some());
    let error = index.put(&row("/d", "b", 0, 1)).await.unwrap_err();
    assert!(
        error.is_retryable() && error.message().contains("another process"),
        "{error}"
    );
    other.execute_batch("ROLLBACK").unwrap();
    index.put(&row("/d", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_write_that_waits_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    let index = Arc::new(open(&path).await);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let put = |key: &'static str| {
        let index = index.clone();
        tokio::spawn(async move { index.put(&row(key, "b", 0, 1)).await })
    };
    let first = put("/first"); // waits for the lock
    tokio::time::sleep(Duration::from_millis(50)).await;
    let queued: Vec<_> = (0..10).map(|_| put("/abandoned")).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for task in queued {
        task.abort();
        let _ = task.await;
    }
    other.execute_batch("COMMIT").unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(keys(&*index, "").await, ["/first"]);
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_costs_its_neighbours_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    let index = Arc::new(open(&path).await);
    let other = Connection::open(&path).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON walrus_index WHEN NEW.key LIKE '/bad%' BEGIN SELECT RAISE(ABORT, 'refused'); END; BEGIN IMMEDIATE",
        )
        .unwrap();
    let puts: Vec<_> = (0..40)
        .map(|i| {
            let index = index.clone();
            let name = if i % 4 == 0 { "bad" } else { "good" };
            let rows = [
                row(&format!("/ok{i}"), "b", 0, 1),
                row(&format!("/{name}{i}"), "b", 0, 1),
            ];
            tokio::spawn(async move { index.put_many(&rows).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    other.execute_batch("COMMIT").unwrap();
    for (i, put) in puts.into_iter().enumerate() {
        let result = put.await.unwrap();
        assert_eq!(result.is_err(), i % 4 == 0, "{i}: {result:?}");
        // A call takes effect as a whole or not at all.
        let there = index.get(&format!("/ok{i}")).await.unwrap().is_some();
        assert_eq!(there, i % 4 != 0);
    }
    index.close().await.unwrap();
}

/// The other process of the next test: writes and reports the acknowledged writes.
#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Some(path) = std::env::var_os("WALRUSDS_TEST_INDEX") else {
        return;
    };
    let index = Arc::new(open(Path::new(&path)).await);
    let mut tasks = Vec::new();
    for task in 0..4 {
        let index = index.clone();
        tasks.push(tokio::spawn(async move {
            for i in 0.. {
                let key = format!("/{task}/{i}");
                index.put(&row(&key, "b", 0, 1)).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {key}").unwrap();
                out.flush().unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    // Meanwhile this process has the file open, too.
    let here = open(&path).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "on_sqlite::writer_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("WALRUSDS_TEST_INDEX", &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        let Ok(line) = line else { break };
        if let Some(at) = line.find("acknowledged ") {
            acknowledged.push(line[at + "acknowledged ".len()..].to_owned());
        }
        if acknowledged.len() == 200 {
            child.kill().unwrap(); // SIGKILL
        }
        if acknowledged.len() % 20 == 0 {
            here.put(&row("/here", "b", 0, 1)).await.unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 200, "{}", acknowledged.len());
    let found = here.get_many(&acknowledged).await.unwrap();
    assert!(found.iter().all(Option::is_some));
    here.close().await.unwrap();
    let again = open(&path).await;
    assert!(again
        .get_many(&acknowledged)
        .await
        .unwrap()
        .iter()
        .all(Option::is_some));
    again.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_create_the_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.sqlite");
    let opens: Vec<_> = (0..8)
        .map(|i| {
            let path = path.clone();
            tokio::spawn(async move {
                let index = open(&path).await;
                index.put(&row(&format!("/{i}"), "b", 0, 1)).await.unwrap();
                index.close().await.unwrap();
            })
        })
        .collect();
    for one in opens {
        one.await.unwrap();
    }
    assert_eq!(keys(&open(&path).await, "").await.len(), 8);
}

#[tokio::test]
async fn works_on_a_single_threaded_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(&dir.path().join("index.sqlite")).await;
    index.put(&row("/a", "b", 0, 1)).await.unwrap();
    assert!(index.get("/a").await.unwrap().is_some());
    index.close().await.unwrap();
}
