//! The engine keeps its blobs on a local Walrus for as long as their blocks live: by plan, through
//! the chain where that is at hand.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::*;
use parking_lot::Mutex;
use testkit::eventually;
use testkit::mem::{key_of, noise};
use testkit::node::metric;
use walrus_devnet::{BlockingDevnet, FaultAction, FaultRule, Op};
use walrusds::clock::Clock;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{
    Client, ClientConfig, Config, Index, KeyRange, Ledger as _, Op as Write, Rows as _,
    WalrusDatastore,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_walrus-devnet-cli");
/// An epoch of devnet, and of Mainnet.
const EPOCH: Duration = Duration::from_secs(14 * 86_400);

/// The time of this machine, and what a test adds to it.
struct Shifted(Mutex<Duration>);

impl Clock for Shifted {
    fn now(&self) -> SystemTime {
        SystemTime::now() + *self.0.lock()
    }
}

struct Scene {
    net: BlockingDevnet,
    clock: Arc<Shifted>,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            net: start(),
            clock: Arc::new(Shifted(Mutex::default())),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    async fn index(&self) -> SqliteIndex {
        let path = self.dir.path().join("index.sqlite");
        let options = SqliteOptions::new(path, "walrus_index");
        SqliteIndex::open(options).await.unwrap()
    }

    /// A node with these members of the configuration besides.
    async fn node(&self, more: serde_json::Value) -> Arc<WalrusDatastore> {
        let mut spec = serde_json::json!({
            "publisherURL": self.net.url(), "aggregatorURL": self.net.url(), "indexPath": "index.sqlite",
            "network": {"epochDurationSeconds": EPOCH.as_secs()}, "renewIntervalSeconds": 1, "epochs": 5,
            "nShards": 100,
        });
        let members = spec.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        let config = Config::from_json(&spec.to_string()).unwrap();
        let url = self.net.url();
        let urls = ClientConfig::default()
            .with_publishers(vec![url.clone()])
            .with_aggregators(vec![url]);
        let client = Client::new(urls).unwrap();
        let index: Arc<dyn Index> = Arc::new(self.index().await);
        let clock: Arc<dyn Clock> = Arc::<Shifted>::clone(&self.clock);
        let node = WalrusDatastore::with_parts(&config, index, Arc::new(client), clock);
        Arc::new(node.unwrap())
    }

    fn chain(&self) -> serde_json::Value {
        serde_json::json!([PROGRAM, "--url", self.net.url()])
    }

    /// Lets epochs pass for the network and for the node.
    fn pass(&self, epochs: u32) {
        self.net.advance_epoch(epochs);
        *self.clock.0.lock() += EPOCH * epochs;
    }
}

/// Puts blocks in one commit, which makes one blob. Returns them with their keys.
async fn put(node: &WalrusDatastore, seed: u64, blocks: u64) -> Vec<(String, Bytes)> {
    let blocks: Vec<_> = (0..blocks)
        .map(|n| noise(seed * 1000 + n, 4096))
        .map(|block| (key_of(&block), block))
        .collect();
    let puts = blocks
        .iter()
        .cloned()
        .map(|(key, value)| Write::Put(key, value));
    node.commit(puts.collect()).await.unwrap();
    blocks
}

async fn all_there(node: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_blob_is_extended_on_the_chain() {
    let scene = Scene::new();
    let node = scene
        .node(serde_json::json!({"walrusCommand": scene.chain()}))
        .await;
    let blocks = put(&node, 1, 50).await;
    let before = scene.net.stats();
    scene.pass(4);
    eventually("the extension", || metric(&node, "blobs_extended") == 1).await;
    let after = scene.net.stats();
    assert_eq!((after.puts, after.extended), (before.puts, 1));
    // Up to five epochs from now, for the price of their storage alone.
    let units = scene.net.blobs()[0].units;
    assert_eq!(after.cost_frost - before.cost_frost, units * 100_000 * 4);
    scene.pass(4);
    eventually("the next extension", || {
        metric(&node, "blobs_extended") == 2
    })
    .await;
    all_there(&node, &blocks).await;
    node.close().await.unwrap();
    let index = scene.index().await;
    let row = index.get(&blocks[0].0).await.unwrap().unwrap();
    let entry = index
        .blobs(std::slice::from_ref(&row.blob_id))
        .await
        .unwrap();
    let entry = entry[0].as_ref().unwrap();
    assert_eq!((row.end_epoch, entry.end_epoch), (14, 14));
    let paid = scene.net.stats().cost_frost;
    assert_eq!(u64::try_from(entry.cost), Ok(paid), "all that was paid");
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_stored_again_where_the_wallet_is_empty() {
    let scene = Scene::new();
    let node = scene
        .node(serde_json::json!({"walrusCommand": scene.chain()}))
        .await;
    let blocks = put(&node, 1, 50).await;
    let rule = FaultRule::new(FaultAction::OutOfFunds { gas: false });
    scene.net.set_faults(rule.on([Op::ChainExtend]));
    scene.pass(4);
    eventually("the renewal", || metric(&node, "renewals") == 1).await;
    assert_eq!(metric(&node, "blobs_extended"), 0);
    scene.pass(2);
    all_there(&node, &blocks).await;
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_blobs_are_repacked_into_one() {
    let scene = Scene::new();
    // No round of its own comes between the steps of this test.
    let off = serde_json::json!({"renewIntervalSeconds": 0});
    let node = scene.node(off).await;
    let mut live = Vec::new();
    for seed in 0..3 {
        let mut blocks = put(&node, seed, 40).await;
        let rest = blocks.split_off(10);
        for (key, _) in rest {
            node.delete(&key).await.unwrap();
        }
        live.extend(blocks);
    }
    scene.pass(4);
    // A store tells the epoch.
    live.extend(put(&node, 99, 1).await);
    let before = scene.net.stats();
    node.renew_once(std::future::pending()).await.unwrap();
    assert_eq!(metric(&node, "blobs_repacked"), 3);
    let after = scene.net.stats();
    assert_eq!(after.puts, before.puts + 1, "one pack for all of them");
    // The old blobs end, and are not paid for.
    scene.pass(3);
    all_there(&node, &live).await;
    assert_eq!(scene.net.stats().puts, after.puts);
    node.close().await.unwrap();
    let index = scene.index().await;
    let keys = index.list(&KeyRange::ALL, 0, 1000).await.unwrap();
    assert_eq!(keys.len(), live.len());
    let mut blobs = std::collections::BTreeSet::new();
    for (key, _) in &live {
        blobs.insert(index.get(key).await.unwrap().unwrap().blob_id);
    }
    assert_eq!(blobs.len(), 2);
    index.close().await.unwrap();
}

/// Most failures of an extension pass, and some are made all the same. So a blob with time left
/// waits for the next round, and is not stored again at full price.
#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_fails_is_tried_again_while_there_is_time() {
    let scene = Scene::new();
    let lead = EPOCH.as_secs() * 5 / 2;
    let node = scene
        .node(serde_json::json!({"walrusCommand": scene.chain(), "renewLeadSeconds": lead}))
        .await;
    let blocks = put(&node, 1, 50).await;
    let before = scene.net.stats();
    let asked = || scene.net.stats().by_op.get(&Op::ChainExtend).copied();
    let rule = FaultRule::new(FaultAction::Internal);
    scene.net.set_faults(rule.on([Op::ChainExtend]));
    // The blob ends with the next epoch but one.
    scene.pass(3);
    eventually("three attempts, or a store", || {
        asked().unwrap_or(0) >= 3 || scene.net.stats().puts > before.puts
    })
    .await;
    assert_eq!(scene.net.stats().puts, before.puts, "it is stored again");
    scene.net.set_faults(Vec::<FaultRule>::new());
    eventually("the extension", || metric(&node, "blobs_extended") == 1).await;
    assert_eq!(scene.net.stats().puts, before.puts);
    all_there(&node, &blocks).await;
    node.close().await.unwrap();
}

/// A round at an operator's request leaves nothing to a later one, which may never come.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_on_request_defers_nothing() {
    let scene = Scene::new();
    let node = scene
        .node(serde_json::json!({
            "renewIntervalSeconds": 0, "maintenanceBytesPerSecond": 100_000, "packTargetSizeBytes": 100_000,
        }))
        .await;
    let mut live = Vec::new();
    for seed in 0..6 {
        let mut blocks = put(&node, seed, 20).await;
        let rest = blocks.split_off(11);
        for (key, _) in rest {
            node.delete(&key).await.unwrap();
        }
        live.extend(blocks);
    }
    scene.pass(4);
    // A store tells the epoch.
    live.extend(put(&node, 99, 1).await);
    let plan = node.plan().await.unwrap().unwrap();
    assert_eq!(plan.totals.repack.blobs, 6, "{plan}");
    assert_eq!(plan.totals.deferred.blobs, 0, "{plan}");
    let done = node.renew_once(std::future::pending()).await.unwrap();
    assert_eq!((done.repacked, done.failed), (6, 0));
    scene.pass(3);
    all_there(&node, &live).await;
    node.close().await.unwrap();
}

/// What would be done is shown by a node that does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_printed_before_anything_is_paid() {
    let scene = Scene::new();
    let still = serde_json::json!({"walrusCommand": scene.chain(), "renewIntervalSeconds": 0});
    let node = scene.node(still).await;
    let dead = put(&node, 1, 3).await;
    for (key, _) in &dead {
        node.delete(key).await.unwrap();
    }
    put(&node, 2, 50).await;
    scene.pass(4);
    let before = scene.net.stats();
    let plan = node
        .plan()
        .await
        .unwrap()
        .expect("the chain tells the epoch");
    assert_eq!((plan.totals.lapse.blobs, plan.totals.extend.blobs), (1, 1));
    let units = scene
        .net
        .blobs()
        .iter()
        .map(|blob| blob.units)
        .max()
        .unwrap();
    assert_eq!(plan.totals.all.frost, units * 100_000 * 4);
    let json: serde_json::Value = serde_json::from_str(&plan.to_json()).unwrap();
    assert_eq!(json["decisions"].as_array().unwrap().len(), 2);
    assert!(plan.to_string().contains("extend"), "{plan}");
    let ends = node.horizon().await.unwrap();
    assert_eq!((ends.len(), ends[0].end_epoch, ends[0].blobs), (1, 6, 2));
    let after = scene.net.stats();
    assert_eq!((after.puts, after.extended), (before.puts, 0));
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_without_blocks_are_left_to_end_or_deleted() {
    let scene = Scene::new();
    let node = scene
        .node(serde_json::json!({"walrusCommand": scene.chain(), "deletable": true}))
        .await;
    let dead = put(&node, 1, 10).await;
    let live = put(&node, 2, 10).await;
    for (key, _) in &dead {
        node.delete(key).await.unwrap();
    }
    let before = scene.net.stats();
    // A pass counts them, and after the time of grace the dead one is deleted. A pass comes once a
    // day at least.
    *scene.clock.0.lock() += Duration::from_secs(2 * 86_400);
    eventually("the deletion", || {
        *scene.clock.0.lock() += Duration::from_secs(60);
        metric(&node, "blobs_deleted") == 1
    })
    .await;
    assert_eq!(scene.net.stats().deleted, 1);
    assert_eq!(scene.net.stats().cost_frost, before.cost_frost);
    assert_eq!(scene.net.blobs().len(), 1);
    all_there(&node, &live).await;
    node.close().await.unwrap();
}

/// An aggregator that sends wrong bytes costs nothing, and lets nothing lapse once it is right.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_paid_for() {
    let scene = Scene::new();
    let node = scene.node(serde_json::json!({})).await;
    let blocks = put(&node, 1, 50).await;
    let before = scene.net.stats();
    // In a block, also where a block is read with its CID in front.
    let wrong = FaultRule::new(FaultAction::Corrupt { offset: 100 });
    scene.net.set_faults(wrong.on(Op::READS));
    scene.pass(4);
    eventually("a failure", || metric(&node, "renewals_failed") > 0).await;
    let after = scene.net.stats();
    assert_eq!(
        (after.puts, after.cost_frost),
        (before.puts, before.cost_frost)
    );
    scene.net.clear_faults();
    eventually("the renewal", || {
        // Its rests are measured by tokio's clock: half a minute, then a minute.
        metric(&node, "renewals") + metric(&node, "blobs_repacked") == 1
    })
    .await;
    scene.pass(2);
    all_there(&node, &blocks).await;
    node.close().await.unwrap();
}
