//! Directories that stay on the local disk, so that Kubo starts while Walrus does not answer.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use testkit::mem::{key_of, noise};
use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Request, Options};
use walrusds::{Config, Op, WalrusDatastore};

struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
}

impl Repo {
    async fn new() -> Repo {
        let net = Devnet::start(Options {
            cheap_ids: true,
            publisher_concurrency: 0,
            ..Options::default()
        })
        .await
        .expect("local Walrus");
        Repo {
            net,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> WalrusDatastore {
        let url = self.net.url();
        let config = Config::from_json(&format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index.sqlite","maxRetries":0}}"#
        ));
        WalrusDatastore::open(config.unwrap(), self.dir.path())
            .await
            .unwrap()
    }

    fn lose_walrus(&self) {
        for blob in self.net.blobs() {
            self.net.delete_blob(&blob.blob_id);
        }
    }

    /// The files that hold the directories.
    fn files(&self) -> Vec<PathBuf> {
        let dir = self.dir.path().join("walrusds-roots/walrus_index");
        let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|e| e == "blocks"))
            .collect()
    }
}

/// A node of a UnixFS directory of about `len` bytes: one link, whose name is as long as that, and
/// the data.
fn directory(seed: u64, len: usize) -> (String, Bytes) {
    fn field(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut field = vec![tag];
        let mut len = body.len();
        while len >= 0x80 {
            field.push(len as u8 | 0x80);
            len >>= 7;
        }
        field.push(len as u8);
        field.extend_from_slice(body);
        field
    }
    let mut multihash = vec![0x12, 0x20];
    multihash.extend_from_slice(&noise(seed, 32));
    let link = [field(0x0a, &multihash), field(0x12, &noise(seed, len))].concat();
    let node: Bytes = [field(0x12, &link), field(0x0a, &[0x08, 0x01])]
        .concat()
        .into();
    (key_of(&node), node)
}

/// Three times as many directories as are kept; no caller marks them as roots.
async fn put_strangers(ds: &WalrusDatastore) -> (String, Bytes) {
    let all: Vec<_> = (0..240).map(|n| directory(1_000 + n, 200 << 10)).collect();
    for batch in all.chunks(16) {
        let puts = batch.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
        ds.commit(puts.collect()).await.unwrap();
    }
    all[0].clone()
}

async fn assert_holds(ds: &WalrusDatastore, (key, node): &(String, Bytes)) {
    assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(node));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_read_while_aggregators_hang_or_have_lost_them() {
    let repo = Repo::new().await;
    let (root, file) = (directory(1, 1000), noise(9, 1000));
    let ds = repo.open().await;
    ds.put(&root.0, root.1.clone()).await.unwrap();
    ds.put(&key_of(&file), file.clone()).await.unwrap();
    ds.close().await.unwrap();

    let hang = FaultRule::new(FaultAction::Hang).on(Request::READS);
    repo.net.set_faults(hang);
    let ds = repo.open().await;
    // A read from an aggregator that hangs lasts a minute.
    let held = tokio::time::timeout(Duration::from_secs(50), assert_holds(&ds, &root)).await;
    held.expect("no aggregator is asked");
    ds.close().await.unwrap();

    repo.net.clear_faults();
    repo.lose_walrus();
    let ds = repo.open().await;
    assert_holds(&ds, &root).await;
    ds.get(&key_of(&file)).await.expect_err("no directory");
    // A block without a row in the index is not there.
    ds.delete(&root.0).await.unwrap();
    assert_eq!(ds.get(&root.0).await.unwrap(), None);
    ds.close().await.unwrap();
}

/// A killed process, like a datastore that is dropped without a close, releases its lock a moment
/// later.
#[tokio::test(flavor = "multi_thread")]
async fn directories_are_there_after_an_end_without_close() {
    let repo = Repo::new().await;
    let root = directory(1, 1000);
    let ds = repo.open().await;
    ds.put(&root.0, root.1.clone()).await.unwrap();
    drop(ds);
    repo.lose_walrus();
    let ds = repo.open().await;
    assert_holds(&ds, &root).await;
    ds.close().await.unwrap();
}

/// The blocks that Kubo syncs after putting them, and reads when it starts, are not driven out by
/// the directories of strangers, which a gateway sees by the thousand.
#[tokio::test(flavor = "multi_thread")]
async fn roots_outlive_the_directories_of_strangers() {
    for read_at_start in [false, true] {
        let repo = Repo::new().await;
        let root = directory(1, 1000);
        let ds = repo.open().await;
        ds.put(&root.0, root.1.clone()).await.unwrap();
        let ds = if read_at_start {
            ds.close().await.unwrap();
            let ds = repo.open().await;
            assert_holds(&ds, &root).await;
            ds
        } else {
            ds.sync("/").await.unwrap();
            ds
        };
        let stranger = put_strangers(&ds).await;
        ds.close().await.unwrap();
        repo.lose_walrus();

        let ds = repo.open().await;
        ds.get(&stranger.0).await.expect_err("strangers go");
        assert_holds(&ds, &root).await;
        ds.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_directory_comes_from_walrus() {
    let repo = Repo::new().await;
    let root = directory(1, 1000);
    let ds = repo.open().await;
    ds.put(&root.0, root.1.clone()).await.unwrap();
    ds.close().await.unwrap();
    for file in repo.files() {
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(8).position(|w| w == &root.1[500..508]);
        bytes[at.expect("the directory lies there")] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let ds = repo.open().await;
    assert_holds(&ds, &root).await;
    ds.close().await.unwrap();
    // And is here again.
    repo.lose_walrus();
    let ds = repo.open().await;
    assert_holds(&ds, &root).await;
    ds.close().await.unwrap();
}
