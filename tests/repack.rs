//! Blocks of sparse blobs that are carried over into one pack: their order, and their labels.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use testkit::mem::{key_of, noise};
use testkit::node::{log, metric};
use testkit::PATIENCE;
use walrus_devnet::{BlobId, Devnet, Options};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{BlobState, Config, Index, KeyRecord, Ledger, Rows, WalrusDatastore};

const RAW: u8 = 0x55;
const DAG_PB: u8 = 0x70;

struct Node {
    net: Devnet,
    repo: tempfile::TempDir,
}

impl Node {
    async fn open(&self, more: &str) -> WalrusDatastore {
        let url = self.net.url();
        let config = format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index","blobCacheBytes":-1,
                "epochs":5,"epochDurationSeconds":1209600{more}}}"#
        );
        let config = Config::from_json(&config).unwrap();
        WalrusDatastore::open(config, self.repo.path())
            .await
            .unwrap()
    }

    /// Ends an epoch, and lets a node repack all that is there. Returns the rows of the new blob in
    /// the order of their places, and its content.
    async fn repack(&self, blobs: u64) -> (Vec<KeyRecord>, Bytes) {
        self.net.advance_epoch(1);
        // What ends within three and a half epochs is due, counted in whole epochs.
        let ds = self
            .open(r#","renewIntervalSeconds":1,"renewLeadSeconds":4233600"#)
            .await;
        // The answer to a store tells the epoch.
        let new = noise(99, 100);
        ds.put(&key_of(&new), new).await.unwrap();
        let repacked = async {
            while metric(&ds, "blobs_repacked") < blobs {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE / 4, repacked).await;
        let lines = log(&ds).into_iter();
        let lines: Vec<String> = lines
            .map(|line| format!("{:?} {}", line.level, line.message))
            .collect();
        assert!(done.is_ok(), "{lines:#?} {:?}", ds.metrics());
        assert_eq!(metric(&ds, "blobs_repacked"), blobs);
        ds.close().await.unwrap();
        let index = index(self.repo.path()).await;
        let left = index.blobs_in_state(BlobState::Live, "", 9).await.unwrap();
        assert_eq!(left.len(), 2, "the new block's blob, and the new pack");
        let mut rows = Vec::new();
        for blob in left {
            let of_blob = index.rows_of_blob(&blob.blob_id).await.unwrap();
            if of_blob.len() > 1 {
                rows = of_blob;
            }
        }
        index.close().await.unwrap();
        rows.sort_by_key(|row| row.record.offset);
        let id: BlobId = rows[0].record.blob_id.parse().unwrap();
        (rows, self.net.content(&id).unwrap())
    }
}

async fn index(repo: &Path) -> SqliteIndex {
    let options = SqliteOptions::new(repo.join("index"), "walrus_index");
    SqliteIndex::open(options).await.unwrap()
}

async fn node() -> Node {
    node_on(Duration::ZERO).await
}

/// A node on a network that takes this long to begin the answer to a read.
async fn node_on(latency_get: Duration) -> Node {
    let net = Devnet::start(Options {
        cheap_ids: true,
        latency_get,
        ..Options::default()
    });
    Node {
        net: net.await.unwrap(),
        repo: tempfile::tempdir().unwrap(),
    }
}

fn hash(key: &str) -> Vec<u8> {
    BASE32_NOPAD.decode(&key.as_bytes()[1..]).unwrap()
}

/// A dag-pb node with links to raw blocks, or to dag-pb nodes, and a few bytes of data.
fn dag_pb(links: &[&str], codec: u8, data: u8) -> (String, Bytes) {
    let link = |key: &&str| [&[0x12, 38, 0x0a, 36, 1, codec][..], &hash(key)].concat();
    let mut block: Vec<u8> = links.iter().flat_map(link).collect();
    block.extend([0x0a, 0x03, 0x08, 0x02, data]);
    (key_of(&block), block.into())
}

fn leaf(seed: u64) -> (String, Bytes) {
    let value = noise(seed, 3000);
    (key_of(&value), value)
}

/// The codecs by which the sections of a file are labelled.
fn labels(rows: &[KeyRecord], file: &[u8]) -> Vec<u8> {
    let label = |row: &KeyRecord| {
        let at = row.record.offset as usize;
        let hash = hash(&row.key);
        let cid = &file[at - 2 - hash.len()..at];
        assert_eq!((cid[0], &cid[2..]), (1, &hash[..]));
        cid[1]
    };
    rows.iter().map(label).collect()
}

/// The blocks of a file, each in a blob of its own, come in any order.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_lie_as_their_file_is_read() {
    let node = node().await;
    let leaves: Vec<_> = (0..6).map(leaf).collect();
    let keys: Vec<&str> = leaves.iter().map(|(key, _)| key.as_str()).collect();
    let (a, b) = (dag_pb(&keys[..3], RAW, 1), dag_pb(&keys[3..], RAW, 2));
    let root = dag_pb(&[&a.0, &b.0], DAG_PB, 3);
    let ds = node.open(r#","packTargetSizeBytes":1"#).await;
    for block in [4, 1, 5, 0, 3, 2]
        .map(|n| &leaves[n])
        .into_iter()
        .chain([&b, &a, &root])
    {
        ds.put(&block.0, block.1.clone()).await.unwrap();
    }
    ds.close().await.unwrap();
    assert_eq!(node.net.stats().stored_blobs, 9);
    let (rows, file) = node.repack(9).await;
    let found: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    let expected = [
        &root.0, &a.0, keys[0], keys[1], keys[2], &b.0, keys[3], keys[4], keys[5],
    ];
    assert_eq!(found, expected);
    let expected = [RAW, DAG_PB, RAW, RAW, RAW, DAG_PB, RAW, RAW, RAW];
    assert_eq!(labels(&rows, &file), expected, "nothing links to the root");
}

/// The node that links to a node was deleted: the label of the old file tells what it is.
#[tokio::test(flavor = "multi_thread")]
async fn labels_of_old_files_are_kept() {
    let node = node().await;
    let (one, two) = (leaf(1), leaf(2));
    let inner = dag_pb(&[&one.0], RAW, 1);
    let root = dag_pb(&[&inner.0], DAG_PB, 2);
    let ds = node.open(r#","packTargetSizeBytes":1"#).await;
    for (key, value) in [&root, &inner, &one, &two] {
        ds.put(key, value.clone()).await.unwrap();
    }
    ds.delete(&root.0).await.unwrap();
    ds.close().await.unwrap();
    let (rows, file) = node.repack(3).await;
    let found: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    let mut of_file = found.iter().filter(|key| **key != two.0);
    assert_eq!(of_file.next(), Some(&inner.0.as_str()));
    assert_eq!(of_file.next(), Some(&one.0.as_str()));
    let labelled = found.iter().zip(labels(&rows, &file));
    for (key, label) in labelled {
        assert_eq!(label == DAG_PB, *key == inner.0, "{key}");
    }
    assert_eq!(rows.len(), 3);
}

/// An aggregator takes its time for each answer: blobs do not wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_side_by_side() {
    let node = node_on(Duration::from_secs(2)).await;
    let ds = node.open(r#","packTargetSizeBytes":1"#).await;
    for seed in 0..8 {
        let (key, value) = leaf(seed);
        ds.put(&key, value).await.unwrap();
    }
    ds.close().await.unwrap();
    assert_eq!(node.net.stats().peak_in_flight, 1, "one put after another");
    let (rows, _) = node.repack(8).await;
    assert_eq!(rows.len(), 8);
    let peak = node.net.stats().peak_in_flight;
    assert!(peak >= 4, "at most {peak} requests at a time");
}
