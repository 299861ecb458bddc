//! The disk and the file under SQLite fail.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walrus_devnet::Devnet;
use walrusds::{Config, ErrorKind, Op, WalrusDatastore};

use crate::disk::SmallDisk;
use crate::scenario::{devnet, open, spec, Scenario, INDEX_WRITES, NOTHING};
use testkit::mem::{key_of, noise};

const GROUP: &str = "SQLite";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn spec_in(net: &Devnet) -> serde_json::Value {
    let mut spec = spec(net);
    spec["indexPath"] = "index.sqlite".into();
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn disk_full() {
    let Some(disk) = SmallDisk::mount(8) else {
        return;
    };
    let net = devnet().await;
    let ds = open(&spec_in(&net), disk.path()).await;
    let mut scenario = Scenario::start(GROUP, "disk full for 2 s", vec![ds]).await;
    scenario.strike(|| disk.fill()).await;
    scenario.hold(ms(2000)).await;
    scenario.until_a_call_fails(|| disk.fill()).await;
    scenario.heal(|| disk.free(), INDEX_WRITES).await;
}

/// Another process writes to the file for a long time.
async fn locked(case: &'static str, time: Duration, allowed: crate::scenario::Allowed) {
    let net = devnet().await;
    let repo = tempfile::tempdir().expect("repo");
    let ds = open(&spec_in(&net), repo.path()).await;
    let mut scenario = Scenario::start(GROUP, case, vec![ds]).await;
    let other = rusqlite::Connection::open(repo.path().join("index.sqlite")).expect("the file");
    let other = parking_lot::Mutex::new(other);
    let sql = |sql: &str| other.lock().execute_batch(sql).expect("locking");
    scenario
        .strike(|| {
            sql("PRAGMA busy_timeout = 30000");
            sql("BEGIN IMMEDIATE");
        })
        .await;
    scenario.hold(time).await;
    scenario.heal(|| sql("ROLLBACK"), allowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locked_by_another() {
    locked("locked by another process for 2 s", ms(2000), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes half a minute: make outages"]
async fn locked_by_another_for_long() {
    let case = "locked by another process for 15 s";
    locked(case, ms(15_000), INDEX_WRITES).await;
}

async fn with_blocks(net: &Devnet, repo: &Path) -> Vec<bytes::Bytes> {
    let blocks: Vec<_> = (0..300).map(|n| noise(n, 500)).collect();
    let ds = open(&spec_in(net), repo).await;
    let puts = blocks.iter().map(|b| Op::Put(key_of(b), b.clone()));
    ds.commit(puts.collect()).await.expect("putting");
    ds.close().await.expect("closing");
    blocks
}

async fn try_open(net: &Devnet, repo: &Path) -> walrusds::Result<WalrusDatastore> {
    let config = Config::from_json(&spec_in(net).to_string()).expect("configuration");
    WalrusDatastore::open(config, repo).await
}

/// The error names a file system that turned read-only, and no upload is paid for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_only() {
    let Some(disk) = SmallDisk::mount(8) else {
        return;
    };
    let net = devnet().await;
    let blocks = with_blocks(&net, disk.path()).await;
    let remount = |how: &str| {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(disk.path())
            .status();
        assert!(done.is_ok_and(|s| s.success()), "remounting");
    };
    remount("ro");
    let error = match try_open(&net, disk.path()).await {
        Err(e) => e,
        Ok(ds) => ds
            .put("/k", "v".into())
            .await
            .expect_err("a read-only file"),
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.message().contains("indexPath"), "{error}");
    remount("rw");
    let ds = open(&spec_in(&net), disk.path()).await;
    for block in &blocks {
        let got = ds.get(&key_of(block)).await.expect("reading");
        assert_eq!(got.as_ref(), Some(block));
    }
    ds.close().await.expect("closing");
}

/// For damage anywhere in the file, a read returns the right value or an error that names the
/// damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn damaged() {
    let net = devnet().await;
    let repo = tempfile::tempdir().expect("repo");
    let blocks = with_blocks(&net, repo.path()).await;
    let file = repo.path().join("index.sqlite");
    let whole = std::fs::read(&file).expect("the index");
    let page = 4096;
    let (mut refused, mut noticed) = (0, 0);
    for at in (0..whole.len()).step_by(page) {
        std::fs::write(&file, &whole).expect("restoring");
        let mut out = std::fs::File::options()
            .write(true)
            .open(&file)
            .expect("the index");
        out.seek(SeekFrom::Start(at as u64)).expect("seeking");
        out.write_all(&vec![0xa5; page]).expect("damaging");
        drop(out);
        noticed += check_damaged(&net, repo.path(), &blocks, &mut refused).await;
    }
    for len in [0, 1, 100, page, page + 17, whole.len() / 2, whole.len() - 1] {
        // SQLite takes an empty file for a new one: no property distinguishes it from a first
        // start.
        if len > 0 {
            std::fs::write(&file, &whole[..len]).expect("cutting");
            noticed += check_damaged(&net, repo.path(), &blocks, &mut refused).await;
        }
    }
    assert!(
        refused > 0 && noticed > 0,
        "{refused} refused, {noticed} noticed"
    );
    std::fs::write(&file, &whole).expect("restoring");
    let ds = open(&spec_in(&net), repo.path()).await;
    for block in &blocks {
        let got = ds.get(&key_of(block)).await.expect("reading");
        assert_eq!(got.as_ref(), Some(block));
    }
    ds.close().await.expect("closing");
}

/// The number of reads that reported the damage; a refused open is added to `refused`.
async fn check_damaged(
    net: &Devnet,
    repo: &Path,
    blocks: &[bytes::Bytes],
    refused: &mut usize,
) -> usize {
    let ds = match try_open(net, repo).await {
        Ok(ds) => ds,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            assert!(e.message().contains("indexPath"), "{e}");
            *refused += 1;
            return 0;
        }
    };
    let mut noticed = 0;
    for block in blocks.iter().step_by(5) {
        match ds.get(&key_of(block)).await {
            Ok(got) => assert!(got.is_none_or(|got| got == block), "wrong bytes"),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                noticed += 1;
            }
        }
    }
    let _ = ds.close().await;
    noticed
}
