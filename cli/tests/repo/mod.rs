//! A repo with blocks on a local Walrus.

use bytes::Bytes;
use serde_json::json;
use testkit::mem::{key_of, noise};
use walrus_devnet::{Devnet, Options};
use walrusds::{Config, Op, WalrusDatastore};

pub struct Repo {
    pub net: Devnet,
    pub dir: tempfile::TempDir,
    pub blocks: Vec<(String, Bytes)>,
}

pub async fn walrus() -> Devnet {
    let options = Options {
        cheap_ids: true,
        ..Options::default()
    };
    Devnet::start(options).await.expect("local Walrus")
}

/// Blocks of 10,000 bytes: three fill a pack of 40,000.
pub fn blocks(seeds: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    let value = seeds.map(|seed| noise(seed, 10_000));
    value.map(|value| (key_of(&value), value)).collect()
}

impl Repo {
    /// A repo with six blocks in two blobs.
    pub async fn new() -> Repo {
        let net = walrus().await;
        let dir = tempfile::tempdir().unwrap();
        let url = net.url();
        let mut spec = json!({
            "type": "walrusds", "publisherURL": url, "aggregatorURL": url, "indexPath": "index.sqlite",
            "epochDurationSeconds": 86_400, "epochs": 5, "packTargetSizeBytes": 40_000, "maxRetries": 0,
        });
        let mount =
            json!({"mountpoint": "/blocks", "type": "measure", "prefix": "w", "child": spec});
        let kubo =
            json!({"Identity": {}, "Datastore": {"Spec": {"type": "mount", "mounts": [mount]}}});
        std::fs::write(dir.path().join("config"), kubo.to_string()).unwrap();
        spec.as_object_mut().unwrap().remove("type");
        let config = Config::from_json(&spec.to_string()).unwrap();
        let node = WalrusDatastore::open(config, dir.path()).await.unwrap();
        let blocks = blocks(0..6);
        for pack in blocks.chunks(3) {
            let batch = pack.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
            node.commit(batch.collect()).await.unwrap();
        }
        node.close().await.unwrap();
        Repo { net, dir, blocks }
    }
}
