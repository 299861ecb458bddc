//! The same with a write journal and a read cache on the local disk: outages of the network, the
//! database, and the disks of the journal and of the cache.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Request};
use walrusds::ErrorKind;

use crate::disk::SmallDisk;
use crate::scenario::{a_while, devnet, Allowed, Scenario, AGGREGATOR, INDEX_RETRYABLE, NOTHING};
use crate::walrus::start_on;
use testkit::mem::{key_of, noise, Parts};
use testkit::postgres::Postgres;
use testkit::{eventually, PATIENCE};

const GROUP: &str = "Write journal and read cache";

/// A node with both, whose blocks are uploaded soon.
async fn start(
    net: &Devnet,
    case: &'static str,
    change: impl FnOnce(&mut serde_json::Value),
) -> (tempfile::TempDir, Scenario) {
    start_on(net, GROUP, case, |spec| {
        spec["journalPath"] = "journal".into();
        spec["cachePath"] = "cache".into();
        spec["packIdleFlushSeconds"] = 1.into();
        spec["packTargetSizeBytes"] = (64 << 10).into();
        change(spec);
    })
    .await
}

fn on(requests: &[Request], action: FaultAction) -> Vec<FaultRule> {
    vec![FaultRule::new(action).on(requests.iter().copied())]
}

/// Walrus fails with the given rules for a while.
async fn network(case: &'static str, rules: Vec<FaultRule>, allowed: Allowed) {
    let net = devnet().await;
    let (_repo, scenario) = start(&net, case, |_| {}).await;
    scenario.break_walrus(&net, rules, allowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publisher_away() {
    let rules = on(&[Request::Put], FaultAction::Unavailable);
    network("503 to uploads", rules, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uploads_hang() {
    let rules = on(&[Request::Put], FaultAction::Hang);
    network("no answer to uploads", rules, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn network_away() {
    let rules = vec![FaultRule::new(FaultAction::Reset { after: 0 })];
    let case = "connections reset on every request";
    network(case, rules, AGGREGATOR).await;
}

/// Blocks are damaged on their way back, when the engine checks uploads and when callers read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_damaged() {
    let reads = [Request::Get, Request::Range];
    let rules = on(&reads, FaultAction::Corrupt { offset: 17 });
    const CORRUPT: Allowed = Allowed::readers(&[(ErrorKind::Corrupt, false)]);
    network("a flipped bit in every read", rules, CORRUPT).await;
}

/// Writers wait for room: no error, and a writer with a deadline returns in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn journal_full() {
    let net = devnet().await;
    let case = "journalMaxBytes reached, uploads away";
    let (_repo, mut scenario) = start(&net, case, |spec| {
        spec["journalMaxBytes"] = (4 << 20).into();
    })
    .await;
    let rules = on(&[Request::Put], FaultAction::Unavailable);
    scenario.strike(|| net.set_faults(rules)).await;
    scenario.hold(a_while()).await;
    scenario.heal(|| net.clear_faults(), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn database_away() {
    let mut pg = Postgres::start();
    let db = pg.database();
    let net = devnet().await;
    let case = "PostgreSQL stopped";
    let url = pg.url(&db);
    let (_repo, mut scenario) = start(&net, case, |spec| {
        spec.as_object_mut().map(|s| s.remove("indexPath"));
        spec["postgresURL"] = url.into();
    })
    .await;
    scenario.strike(|| pg.down()).await;
    scenario.hold(a_while()).await;
    scenario.heal(|| pg.up(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn disk_of_the_journal_full() {
    let Some(disk) = SmallDisk::mount(16) else {
        return;
    };
    let net = devnet().await;
    let path = disk.path().join("journal");
    let (_repo, mut scenario) = start(&net, "the journal's disk full", |spec| {
        spec["journalPath"] = text(&path).into();
        spec["journalMaxBytes"] = (8 << 20).into();
    })
    .await;
    scenario.strike(|| disk.fill()).await;
    scenario.hold(a_while()).await;
    scenario.until_a_call_fails(|| disk.fill()).await;
    const DISK: Allowed = Allowed::writers(&[(ErrorKind::Disk, true)]);
    scenario.heal(|| disk.free(), DISK).await;
}

/// Blocks leave a full disk at once, also those that are neither a full pack nor old.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_disk_makes_the_journal_leave() {
    let Some(disk) = SmallDisk::mount(4) else {
        return;
    };
    let parts = Parts::default();
    let path = disk.path().join("journal");
    let config = format!(
        r#""journalPath":"{}","packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainPartialPacks":false,"#,
        text(&path)
    );
    let store = parts.try_open(&config).unwrap();
    let put = |n| {
        let value = noise(n, 100_000);
        let (store, key) = (&store, key_of(&value));
        async move { store.put(&key, value).await }
    };
    put(0).await.unwrap();
    assert_eq!(parts.store.puts.load(Relaxed), 0);
    disk.fill();
    let mut n = 1;
    while put(n).await.is_ok() {
        n += 1;
    }
    eventually("the blocks leave", || parts.store.puts.load(Relaxed) > 0).await;
    let begun = std::time::Instant::now();
    while let Err(e) = put(n).await {
        assert_eq!(e.kind(), ErrorKind::Disk, "{e}");
        assert!(begun.elapsed() < PATIENCE, "no room: {e}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn disk_of_the_cache_full() {
    let Some(disk) = SmallDisk::mount(4) else {
        return;
    };
    let net = devnet().await;
    let path = disk.path().join("cache");
    let (_repo, mut scenario) = start(&net, "the cache's disk full", |spec| {
        spec["cachePath"] = text(&path).into();
    })
    .await;
    scenario.strike(|| disk.fill()).await;
    scenario.hold(a_while()).await;
    scenario.heal(|| disk.free(), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cache_removed() {
    let net = devnet().await;
    let case = "the cache's directory removed ten times a second";
    let (repo, mut scenario) = start(&net, case, |_| {}).await;
    let (path, over) = (repo.path().join("cache"), AtomicBool::new(false));
    std::thread::scope(|threads| {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let remove = || {
                    while !over.load(Relaxed) {
                        // The engine makes the directory anew meanwhile.
                        let _ = std::fs::remove_dir_all(&path);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                };
                scenario.strike(|| drop(threads.spawn(remove))).await;
                scenario.hold(a_while()).await;
                scenario.heal(|| over.store(true, Relaxed), NOTHING).await;
            });
        });
    });
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}
