//! What was written here is read here: files of the write journal become files of the read cache.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise};
use testkit::node::{files, metric, Node, BUSY, IDLE};
use walrusds::{Op, WalrusDatastore};

/// A node with both, and no memory that would answer first. The journal's files are full at 64 KiB.
fn open(node: &Node, cache_bytes: u64) -> WalrusDatastore {
    let journal = node.journal();
    let extra = format!(
        r#"{BUSY}"journalPath":"{}","journalMaxBytes":1048576,"cacheBytes":{cache_bytes},"#,
        journal.display()
    );
    node.open_cached(&node.cache(), &extra)
}

/// Blocks of more than one file of the journal.
fn blocks() -> Vec<(String, Bytes)> {
    let values = (0..60).map(|i| noise(i, 3000 + i as usize));
    values.map(|value| (key_of(&value), value)).collect()
}

async fn put_all(store: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for some in blocks.chunks(7) {
        let puts = some.iter().cloned().map(|(k, v)| Op::Put(k, v));
        store.commit(puts.collect()).await.unwrap();
    }
}

/// Waits until all is on Walrus and the journal has given its files away.
async fn uploaded(node: &Node, store: &WalrusDatastore) {
    eventually("all is uploaded", || {
        metric(store, "journal_disk_bytes") == 0 && files(&node.cache(), "retiring").is_empty()
    })
    .await;
    assert!(node.segments().is_empty());
}

/// Writes until the cache, which opens in the background, has taken over a file.
async fn taken(node: &Node, store: &WalrusDatastore) {
    for seed in 1_000_000.. {
        let value = noise(seed, 2000);
        put_all(store, &[(key_of(&value), value)]).await;
        uploaded(node, store).await;
        if !files(&node.cache(), "blocks").is_empty() {
            return;
        }
    }
}

/// Waits until the cache knows what is in its files.
async fn loaded(store: &WalrusDatastore) {
    eventually("the cache is loaded", || {
        metric(store, "disk_cache_bytes") > 0
    })
    .await;
}

async fn read_all(store: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
    }
}

fn reads(node: &Node) -> usize {
    node.parts.store.reads.lock().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_without_walrus_after_its_upload() {
    let node = Node::new();
    let store = open(&node, 16 << 20);
    taken(&node, &store).await;
    let blocks = blocks();
    put_all(&store, &blocks).await;
    uploaded(&node, &store).await;
    assert!(files(&node.cache(), "blocks").len() > 2);
    let asked = reads(&node);
    read_all(&store, &blocks).await;
    assert_eq!(reads(&node), asked);
    assert_eq!(metric(&store, "disk_cache_hits"), blocks.len() as u64);
    store.close().await.unwrap();

    // A restart finds them by the tables of the files.
    let store = open(&node, 16 << 20);
    loaded(&store).await;
    read_all(&store, &blocks).await;
    assert_eq!(reads(&node), asked);
    assert_eq!(metric(&store, "disk_cache_misses"), 0);

    // The index decides whether a block exists.
    let (key, value) = &blocks[0];
    store.delete(key).await.unwrap();
    assert_eq!(store.get(key).await.unwrap(), None);
    assert!(!store.has(key).await.unwrap());
    store.close().await.unwrap();
    let store = open(&node, 16 << 20);
    assert_eq!(store.get(key).await.unwrap(), None);
    store.put(key, value.clone()).await.unwrap();
    assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_file_that_was_taken_over_costs_misses_alone() {
    let node = Node::new();
    let store = open(&node, 16 << 20);
    taken(&node, &store).await;
    let blocks = blocks();
    put_all(&store, &blocks).await;
    uploaded(&node, &store).await;
    let places: Vec<(PathBuf, usize)> = blocks
        .iter()
        .map(|(_, value)| {
            let of = |file: PathBuf| {
                let bytes = fs::read(&file).unwrap();
                let at = bytes.windows(value.len()).position(|w| w == value)?;
                Some((file, at))
            };
            let all = files(&node.cache(), "blocks").into_iter();
            all.filter_map(of).next().expect("each block is in a file")
        })
        .collect();
    for (file, at) in places.iter().step_by(3) {
        let mut bytes = fs::read(file).unwrap();
        bytes[at + 1000] ^= 4;
        fs::write(file, bytes).unwrap();
    }
    let asked = reads(&node);
    read_all(&store, &blocks).await;
    assert!(reads(&node) > asked, "damaged blocks come from Walrus");
    assert_eq!(metric(&store, "disk_cache_errors"), 20);
    store.close().await.unwrap();

    // A file whose table is gone is no file of the cache any more.
    for file in files(&node.cache(), "blocks") {
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    }
    let store = open(&node, 16 << 20);
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_over_stays_within_the_bound() {
    let node = Node::new();
    // Room for some of the files, and a budget too small for any.
    for cache_bytes in [150_000u64, 300_000, 20_000] {
        let store = open(&node, cache_bytes);
        let values = (0..120u64).map(|i| noise(cache_bytes + i, 3000));
        let blocks: Vec<_> = values.map(|value| (key_of(&value), value)).collect();
        for some in blocks.chunks(30) {
            put_all(&store, some).await;
            uploaded(&node, &store).await;
            let sizes = files(&node.cache(), "blocks").into_iter();
            let size: u64 = sizes.map(|f| fs::metadata(f).map_or(0, |m| m.len())).sum();
            assert!(size <= cache_bytes, "{size} of {cache_bytes}");
        }
        read_all(&store, &blocks).await;
        store.close().await.unwrap();
    }
}

/// A node that uploads nothing at close.
fn open_split(node: &Node, pace: &str) -> WalrusDatastore {
    let extra = format!(
        r#"{pace}"journalPath":"{}","journalMaxBytes":1048576,"cacheBytes":16777216,"drainTimeoutSeconds":0,"#,
        node.journal().display()
    );
    node.open_cached(&node.cache(), &extra)
}

/// Blocks that have travelled while their files stay: a block in front of them is one that no
/// publisher takes. Returns that block, and the others.
async fn behind_a_stuck_one(
    node: &Node,
    store: &WalrusDatastore,
) -> (String, Vec<(String, Bytes)>) {
    node.parts.store.max_body.store(7000, SeqCst);
    let stuck = noise(7, 20_000);
    let stuck = [(key_of(&stuck), stuck)];
    put_all(store, &stuck).await;
    let puts = &node.parts.store.puts;
    eventually("the large block is tried", || puts.load(SeqCst) > 0).await;
    let blocks = blocks();
    put_all(store, &blocks).await;
    eventually("one block is left", || metric(store, "journal_blocks") == 1).await;
    let [(stuck, _)] = stuck;
    (stuck, blocks)
}

/// Files leave the journal oldest first: one block that no publisher takes keeps them all.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_travelled_is_read_here_while_its_file_stays() {
    let node = Node::new();
    let store = open_split(&node, BUSY);
    let (stuck, blocks) = behind_a_stuck_one(&node, &store).await;
    assert!(node.segments().len() > 2, "the files stay");
    let known: HashSet<String> = node.parts.store.blobs.lock().keys().cloned().collect();
    let asked = |node: &Node| {
        let reads = node.parts.store.reads.lock();
        reads
            .iter()
            .filter(|(blob, ..)| known.contains(blob))
            .count()
    };
    let before = asked(&node);
    read_all(&store, &blocks).await;
    assert_eq!(asked(&node), before);
    assert_eq!(
        metric(&store, "disk_cache_hits"),
        0,
        "the files are not there"
    );
    assert_eq!(metric(&store, "journal_hits"), blocks.len() as u64);

    // A kill in this state, and a start that finds which blocks have travelled.
    let killed = node.crashed();
    let again = open_split(&killed, IDLE);
    read_all(&again, &blocks).await;
    assert_eq!(asked(&killed), before);
    again.close().await.unwrap();

    // At the next start no block of the files is needed, and the cache is not open yet when the
    // journal sees it.
    let dropped = killed.crashed();
    let again = open_split(&dropped, IDLE);
    again.delete(&stuck).await.unwrap();
    again.close().await.unwrap();
    let again = open_split(&dropped, IDLE);
    eventually("the cache has the files", || dropped.segments().is_empty()).await;
    read_all(&again, &blocks).await;
    assert_eq!(asked(&dropped), before);
    let retiring = || !files(&dropped.cache(), "retiring").is_empty();
    eventually("the files have their names", || !retiring()).await;
    let hits = metric(&again, "disk_cache_hits");
    read_all(&again, &blocks).await;
    let hits = metric(&again, "disk_cache_hits") - hits;
    assert_eq!(hits, blocks.len() as u64);
    assert_eq!(asked(&dropped), before);
    again.close().await.unwrap();

    // The files become files of the cache while their blocks are read.
    node.parts.store.max_body.store(u64::MAX, SeqCst);
    while !node.segments().is_empty() || !files(&node.cache(), "retiring").is_empty() {
        read_all(&store, &blocks).await;
    }
    read_all(&store, &blocks).await;
    assert_eq!(asked(&node), before);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_what_has_travelled_costs_misses_alone() {
    let node = Node::new();
    let store = open_split(&node, BUSY);
    let (_, blocks) = behind_a_stuck_one(&node, &store).await;
    for (_, value) in blocks.iter().step_by(3) {
        node.damage(value);
    }
    let before = reads(&node);
    read_all(&store, &blocks).await;
    assert_eq!(reads(&node) - before, 20, "damaged blocks come from Walrus");
    store.close().await.unwrap();
}

/// A node of dag-pb with a link, a node of dag-cbor with one, and the empty directory.
fn structure(seed: u64) -> Vec<(String, Bytes)> {
    let hash = [&[0x12, 0x20][..], &noise(seed, 32)].concat();
    let link = [&[0x0a, 34][..], &hash].concat();
    let pb = [&[0x12, 36][..], &link, &[0x0a, 0x02, 0x08, 0x02]].concat();
    let cbor = [&[0x81, 0xd8, 42, 0x58, 37, 0, 0x01, 0x71][..], &hash].concat();
    let nodes = [pb, cbor, vec![0x0a, 0x02, 0x08, 0x01]];
    let nodes = nodes.into_iter().map(Bytes::from);
    nodes.map(|node| (key_of(&node), node)).collect()
}

/// Writes more than a cache of 400,000 bytes holds. (A file of the journal is at most a fourth of
/// that.)
async fn strangers(node: &Node, store: &WalrusDatastore, round: u64) {
    let values = (0..200u64).map(|i| noise(1000 * (round + 1) + i, 3000));
    let blocks: Vec<_> = values.map(|value| (key_of(&value), value)).collect();
    put_all(store, &blocks).await;
    uploaded(node, store).await;
}

/// Trees that are known stay known, whatever passes through the cache.
#[tokio::test(flavor = "multi_thread")]
async fn structure_outlives_what_passes_through() {
    let node = Node::new();
    let store = open(&node, 400_000);
    taken(&node, &store).await;
    let tree: Vec<_> = (0..20).flat_map(structure).collect();
    put_all(&store, &tree).await;
    let leaf = noise(1, 3000);
    let leaf = [(key_of(&leaf), leaf)];
    put_all(&store, &leaf).await;
    uploaded(&node, &store).await;
    for round in 0..4 {
        strangers(&node, &store, round).await;
        let asked = reads(&node);
        read_all(&store, &tree).await;
        assert_eq!(reads(&node), asked, "round {round}");
        if round == 2 {
            read_all(&store, &leaf).await;
            assert!(reads(&node) > asked, "a leaf that nobody reads goes");
        }
    }
    assert!(metric(&store, "disk_cache_bytes") <= 400_000);
    store.close().await.unwrap();

    // A restart knows what is structure.
    let store = open(&node, 400_000);
    loaded(&store).await;
    strangers(&node, &store, 4).await;
    let asked = reads(&node);
    read_all(&store, &tree).await;
    assert_eq!(reads(&node), asked);
    store.close().await.unwrap();
}

/// A node that was killed while a file was taken over leaves no litter.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_not_taken_over_to_the_end_is_removed() {
    let node = Node::new();
    fs::create_dir_all(node.cache()).unwrap();
    let left = node.cache().join("0000000003.retiring");
    fs::write(&left, "half a file").unwrap();
    let store = open(&node, 16 << 20);
    taken(&node, &store).await;
    assert!(!left.exists());
    let blocks = blocks();
    put_all(&store, &blocks).await;
    uploaded(&node, &store).await;
    read_all(&store, &blocks).await;
    store.close().await.unwrap();
}
