//! The read cache on the local disk, under a datastore on an index and a blob store in memory.

#[path = "outages/disk.rs"]
mod disk;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::SmallDisk;
use testkit::mem::{key_of, noise};
use testkit::node::{files, log, metric, Node};
use walrusds::{Config, ErrorKind, Op, WalrusDatastore, METRICS};

fn open(node: &Node) -> WalrusDatastore {
    node.open_cached(&node.cache(), "")
}

/// Removes all blobs from Walrus.
fn lose_walrus(node: &Node) {
    node.parts.store.blobs.lock().clear();
}

/// The files of the cache.
fn cached(node: &Node) -> Vec<PathBuf> {
    files(&node.cache(), "blocks")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_described_and_every_description_is_of_a_metric() {
    let node = Node::new();
    let journal = node.dir.path().join("journal");
    let config = serde_json::json!({
        "publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1", "indexPath": "index",
        "journalPath": journal, "cachePath": node.cache(),
    });
    let config = Config::from_json(&config.to_string()).unwrap();
    let store = WalrusDatastore::open(config, node.dir.path())
        .await
        .unwrap();
    store.put("/k", Bytes::from_static(b"v")).await.unwrap(); // so that the journal has an oldest block
    let given: BTreeSet<_> = store.samples().iter().map(|sample| sample.name).collect();
    let described: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    // What renewal and the ledger tell is the subject of other tests (tests/renewal.rs).
    let later = [
        "ledger_",
        "renewal_",
        "storage_",
        "next_expiry_",
        "ended_blobs",
        "endpoint_answer_",
    ];
    let now = |name: &&str| !later.iter().any(|part| name.starts_with(part));
    assert_eq!(given, described.iter().copied().filter(now).collect());
    let plain: BTreeSet<_> = store.metrics().into_iter().map(|(name, _)| name).collect();
    assert!(plain.is_subset(&described), "{plain:?}");
    for sample in store.samples() {
        let metric = METRICS
            .iter()
            .find(|metric| metric.name == sample.name)
            .unwrap();
        let labels: Vec<_> = sample.labels.iter().map(|(label, _)| *label).collect();
        assert_eq!(labels, metric.labels, "{}", metric.name);
    }
    assert_eq!(METRICS.len(), described.len(), "one is described twice");
    store.close().await.unwrap();
}

fn blocks(n: u64) -> Vec<(String, Bytes)> {
    (0..n)
        .map(|i| noise(i, 1000 + i as usize))
        .map(|value| (key_of(&value), value))
        .collect()
}

async fn put_all(store: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    let puts = blocks.iter().cloned();
    store
        .commit(puts.map(|(k, v)| Op::Put(k, v)).collect())
        .await
        .unwrap();
}

async fn read_all(store: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
    }
}

fn lines(store: &WalrusDatastore) -> Vec<String> {
    log(store).into_iter().map(|line| line.message).collect()
}

/// Reads until the cache answers all reads: the cache writes blocks in the background.
async fn warm(store: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    let started = Instant::now();
    loop {
        let hits = metric(store, "disk_cache_hits");
        read_all(store, blocks).await;
        if metric(store, "disk_cache_hits") - hits == blocks.len() as u64 {
            return;
        }
        assert!(started.elapsed() < testkit::PATIENCE, "never warm");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_reads_in_order_asks_the_index_now_and_then() {
    let node = Node::new();
    let mut blocks = blocks(200);
    let store = open(&node);
    put_all(&store, &blocks).await;
    {
        let rows = node.parts.index.rows.lock();
        blocks.sort_by_key(|(key, _)| (rows[key].blob_id.clone(), rows[key].offset));
    }
    warm(&store, &blocks).await;
    store.close().await.unwrap();

    let store = open(&node);
    let lookups = || node.parts.index.lookups.load(Relaxed);
    let before = lookups();
    for block in &blocks {
        read_all(&store, std::slice::from_ref(block)).await;
        // The rows are fetched by a task.
        tokio::task::yield_now().await;
    }
    assert_eq!(metric(&store, "disk_cache_hits"), blocks.len() as u64);
    assert!(lookups() - before < 10, "{} lookups", lookups() - before);

    // Scattered reads: each block is looked up, and no further rows are fetched for it.
    let store = open(&node);
    let before = lookups();
    for block in blocks.iter().step_by(3) {
        read_all(&store, std::slice::from_ref(block)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(lookups() - before, blocks.len().div_ceil(3));
}

#[tokio::test]
async fn what_was_read_once_needs_no_walrus_after_a_restart() {
    let node = Node::new();
    let blocks = blocks(100);
    let store = open(&node);
    put_all(&store, &blocks).await;
    assert_eq!(metric(&store, "disk_cache_bytes"), 0, "writes stay out");
    read_all(&store, &blocks).await;
    store.close().await.unwrap();

    lose_walrus(&node);
    let store = open(&node);
    read_all(&store, &blocks).await;
    assert_eq!(metric(&store, "disk_cache_hits"), 100);
    assert_eq!(metric(&store, "disk_cache_misses"), 0);
    let bytes: u64 = blocks.iter().map(|(_, v)| v.len() as u64).sum();
    assert!(metric(&store, "disk_cache_bytes") > bytes);
    assert_eq!(metric(&store, "gets"), 100);

    // The index decides whether a block exists.
    let (key, _) = &blocks[0];
    store.delete(key).await.unwrap();
    assert_eq!(store.get(key).await.unwrap(), None);
    assert!(!store.has(key).await.unwrap());
    assert_eq!(lines(&store), [""; 0]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn keys_that_do_not_name_their_contents_are_not_cached() {
    let node = Node::new();
    let store = open(&node);
    let value = noise(1, 500);
    let identity = {
        let mut multihash = vec![0, 100];
        multihash.extend_from_slice(&noise(2, 100));
        format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
    };
    for key in ["/plain/key", &identity] {
        store.put(key, value.clone()).await.unwrap();
        assert_eq!(store.get(key).await.unwrap(), Some(value.clone()));
        let other = noise(3, 500);
        store.put(key, other.clone()).await.unwrap();
        assert_eq!(store.get(key).await.unwrap(), Some(other));
    }
    store.close().await.unwrap();
    assert_eq!(cached(&node).len(), 0);
    assert_eq!(metric(&store, "disk_cache_misses"), 0);
}

#[tokio::test]
async fn a_damaged_block_comes_from_walrus_and_is_cached_again() {
    let node = Node::new();
    let blocks = blocks(20);
    let store = open(&node);
    put_all(&store, &blocks).await;
    warm(&store, &blocks).await;
    let [file] = cached(&node).try_into().unwrap();
    let whole = fs::read(&file).unwrap();
    let at = whole
        .windows(64)
        .position(|w| w == &blocks[7].1[..64])
        .unwrap();
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    fs::write(&file, damaged).unwrap();
    read_all(&store, &blocks).await;
    assert_eq!(metric(&store, "disk_cache_errors"), 1);
    warm(&store, &blocks).await;
    assert_eq!(metric(&store, "disk_cache_errors"), 1);

    // The same after Walrus has lost all blobs.
    let open = fs::File::options().write(true).open(&file).unwrap();
    open.set_len(0).unwrap();
    read_all(&store, &blocks).await;
    warm(&store, &blocks).await;
    lose_walrus(&node);
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
    assert_eq!(lines(&store).len(), 1, "one line per file");
}

#[tokio::test]
async fn a_directory_deleted_under_the_node_comes_back_by_itself() {
    let node = Node::new();
    let blocks = blocks(50);
    let store = open(&node);
    put_all(&store, &blocks).await;
    warm(&store, &blocks).await;
    fs::remove_dir_all(node.cache()).unwrap();
    let started = Instant::now();
    while !node.cache().join("README.txt").exists() {
        read_all(&store, &blocks).await;
        assert!(started.elapsed() < testkit::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    warm(&store, &blocks).await;
    store.close().await.unwrap();
    lose_walrus(&node);
    let store = open(&node);
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn two_datastores_on_one_directory_both_work() {
    let node = Node::new();
    let blocks = blocks(30);
    let first = open(&node);
    put_all(&first, &blocks).await;
    warm(&first, &blocks).await;
    let second = open(&node);
    read_all(&second, &blocks).await;
    read_all(&second, &blocks).await;
    assert_eq!(metric(&second, "disk_cache_hits"), 0);
    let said = lines(&second);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("in use by another process"), "{said:?}");
    warm(&first, &blocks).await;
    second.close().await.unwrap();
    first.close().await.unwrap();
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_costs_a_line_in_the_log() {
    let node = Node::new();
    let blocks = blocks(10);
    // A file in the way of the directory, which stops root too.
    fs::write(node.cache(), "a file").unwrap();
    let store = open(&node);
    put_all(&store, &blocks).await;
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
    let said = lines(&store);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("cachePath"), "{said:?}");
}

#[tokio::test]
async fn a_read_only_disk_costs_a_line_in_the_log() {
    let Some(disk) = SmallDisk::mount(4) else {
        return;
    };
    let node = Node::new();
    let blocks = blocks(10);
    disk.remount("ro");
    let store = node.open_cached(&disk.path().join("cache"), "");
    put_all(&store, &blocks).await;
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
    let said = lines(&store);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("Read-only"), "{said:?}");
}

#[tokio::test]
async fn a_full_disk_stops_the_growth_and_nothing_else() {
    let Some(disk) = SmallDisk::mount(4) else {
        return;
    };
    let node = Node::new();
    let blocks = blocks(200);
    let (before, after) = blocks.split_at(100);
    let cache = disk.path().join("cache");
    let store = node.open_cached(&cache, "");
    put_all(&store, &blocks).await;
    warm(&store, before).await;
    disk.fill();
    for _ in 0..3 {
        read_all(&store, after).await;
    }
    warm(&store, before).await;
    store.close().await.unwrap();
    let said = lines(&store);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("No space left"), "{said:?}");
    assert!(metric(&store, "disk_cache_dropped") > 0);

    // Cached blocks are read on a full disk, too; once there is space, the cache grows again.
    let store = node.open_cached(&cache, "");
    let hits = metric(&store, "disk_cache_hits");
    read_all(&store, before).await;
    assert_eq!(metric(&store, "disk_cache_hits") - hits, 100);
    disk.free();
    warm(&store, &blocks).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_share_a_cache_too_small_for_all() {
    let node = Node::new();
    let blocks = Arc::new(blocks(300));
    let store = node.open_cached(&node.cache(), r#""cacheBytes":200000,"#);
    let store = Arc::new(store);
    put_all(&store, &blocks).await;
    let readers: Vec<_> = (0..16)
        .map(|reader| {
            let (store, blocks) = (Arc::clone(&store), Arc::clone(&blocks));
            tokio::spawn(async move {
                for i in 0..blocks.len() {
                    let (key, value) = &blocks[(i * 7 + reader * 31) % blocks.len()];
                    assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    store.close().await.unwrap();
    assert_eq!(metric(&store, "disk_cache_errors"), 0);
    assert!(metric(&store, "disk_cache_evictions") > 0);
    let files = cached(&node);
    let bytes: u64 = files.iter().map(|f| fs::metadata(f).unwrap().len()).sum();
    assert!(bytes <= 200_000, "{bytes}");
    assert_eq!(bytes, metric(&store, "disk_cache_bytes"));
    assert_eq!(lines(&store), [""; 0]);
}

#[tokio::test]
async fn paths_that_meet_once_resolved_are_refused() {
    let repo = tempfile::tempdir().unwrap();
    let journal = repo.path().join("local");
    let config = Config::from_json(&format!(
        r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i",
            "journalPath":"{}","cachePath":"local/cache"}}"#,
        journal.display()
    ))
    .unwrap();
    let Err(refused) = WalrusDatastore::open(config, repo.path()).await else {
        panic!("a cache in the journal's directory");
    };
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.message().contains("journalPath"), "{refused}");
    assert!(!journal.exists(), "nothing was made");
}
