//! A lost index is filled again from the blobs, on a local Walrus and with real indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use testkit::mem::{key_of, noise};
use walrus_devnet::{Devnet, Options as Walrus};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::rebuild::{export, rebuild_state, List, RebuildState, Report, Why};
use walrusds::{
    rebuild_index, Config, Index, KeyRange, Op, RebuildFrom, Result, Rows, Totals, Usage,
    WalrusDatastore,
};

/// A node with its index in SQLite, on a local Walrus.
struct Node {
    net: Devnet,
    dir: tempfile::TempDir,
}

/// A place: blob, offset and size.
type Places = BTreeMap<String, (String, i64, i64)>;

impl Node {
    async fn new() -> Node {
        let options = Walrus {
            cheap_ids: true,
            ..Walrus::default()
        };
        Node {
            net: Devnet::start(options).await.expect("local Walrus"),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// `extra` is JSON members, each followed by a comma.
    fn config(&self, extra: &str) -> Config {
        let url = self.net.url();
        let json = format!(
            r#"{{{extra}"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index.sqlite",
                "packTargetSizeBytes":100000,"epochDurationSeconds":86400}}"#
        );
        Config::from_json(&json).unwrap()
    }

    async fn open(&self, extra: &str) -> WalrusDatastore {
        let opened = WalrusDatastore::open(self.config(extra), self.dir.path());
        opened.await.unwrap()
    }

    async fn put(&self, extra: &str, blocks: &[(String, Bytes)]) {
        let node = self.open(extra).await;
        let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
        node.commit(puts.collect()).await.unwrap();
        node.close().await.unwrap();
    }

    async fn index(&self) -> SqliteIndex {
        let path = self.dir.path().join("index.sqlite");
        let options = SqliteOptions::new(path, "walrus_index");
        SqliteIndex::open(options).await.unwrap()
    }

    /// All places, and the running total.
    async fn places(&self) -> (Places, Usage) {
        let index = self.index().await;
        let items = index
            .list(&KeyRange::prefix(""), 0, usize::MAX)
            .await
            .unwrap();
        let keys: Vec<String> = items.into_iter().map(|item| item.key).collect();
        let rows = index.get_many(&keys).await.unwrap().into_iter();
        let rows = rows.map(|row| row.map(|row| (row.blob_id, row.offset, row.size)));
        let places = keys.into_iter().zip(rows.map(Option::unwrap)).collect();
        let total = index.usage().await.unwrap();
        index.close().await.unwrap();
        (places, total)
    }

    async fn backup(&self) -> String {
        let index = self.index().await;
        let mut lines = Vec::new();
        export(&index, &mut lines).await.unwrap();
        index.close().await.unwrap();
        String::from_utf8(lines).unwrap()
    }

    fn lose_index(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("index.sqlite") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    /// The listing of the local Walrus.
    fn listing(&self) -> List {
        let blobs = serde_json::to_string_pretty(&self.net.blobs()).unwrap();
        List::read(blobs.as_bytes()).unwrap()
    }

    async fn rebuild(&self, list: List) -> Result<Report> {
        let from = RebuildFrom::List(list);
        rebuild_index(self.config(""), self.dir.path(), from, &mut |_| {}).await
    }

    async fn state(&self) -> RebuildState {
        let index = self.index().await;
        let state = rebuild_state(&index).await.unwrap();
        index.close().await.unwrap();
        state
    }

    async fn reads_back(&self, blocks: &[(String, Bytes)]) {
        let node = self.open("").await;
        for (key, value) in blocks {
            assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
        }
        node.close().await.unwrap();
    }
}

fn blocks(range: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    let values = range.map(|seed| noise(seed, 1_000 + (seed as usize * 37) % 9_000));
    values.map(|value| (key_of(&value), value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_filled_again_row_by_row() {
    let node = Node::new().await;
    let blocks = blocks(0..300);
    node.put("", &blocks).await;
    let (lost, total) = node.places().await;
    let blobs = lost.values().map(|place| &place.0);
    let blobs: std::collections::BTreeSet<&String> = blobs.collect();
    assert_eq!(lost.len(), 300);
    assert!(blobs.len() > 10, "{}", blobs.len());
    let backup = node.backup().await;
    let entries = |backup: &str| List::read(backup.as_bytes()).unwrap();
    let ids: String = blobs.iter().map(|id| format!("{id}\n")).collect();
    for list in [node.listing(), entries(&backup), entries(&ids)] {
        node.lose_index();
        let knows_ends = list.blobs()[0].end_epoch > 0;
        assert_eq!(node.state().await, RebuildState::Absent);
        let report = node.rebuild(list.clone()).await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.rebuilt, blobs.len() as u64);
        assert_eq!((report.added, report.found), (total, total));
        assert_eq!(report.without_end > 0, !knows_ends);
        assert_eq!(node.places().await, (lost.clone(), total));
        assert_eq!(node.state().await, RebuildState::Complete(report));
        // Once more, nothing is added.
        let report = node.rebuild(list).await.unwrap();
        assert_eq!((report.added, report.found), (Usage::default(), total));
        assert_eq!(node.places().await, (lost.clone(), total));
    }
    node.reads_back(&blocks).await;
    // The backup of a ledger that was made of the backup is the same.
    node.lose_index();
    node.rebuild(entries(&backup)).await.unwrap();
    assert_eq!(node.backup().await, backup);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_no_description_is_named_and_the_rest_goes_on() {
    let node = Node::new().await;
    let (concat, car, others) = (blocks(0..40), blocks(100..140), blocks(200..210));
    node.put(r#""packFormat":"concat","#, &concat).await;
    let old = node.backup().await;
    node.put("", &car).await;
    let backup = node.backup().await;
    let listing = node.listing();
    node.lose_index();
    // Some blocks are there again already, in other blobs.
    node.put("", &[&car[..3], &others].concat()).await;
    let (kept, _) = node.places().await;

    let concats = old.lines().count() as u64;
    let report = node
        .rebuild(List::read(backup.as_bytes()).unwrap())
        .await
        .unwrap();
    assert!(report.ended && !report.is_complete());
    assert_eq!(report.left_out, BTreeMap::from([(Why::Concat, concats)]));
    assert!(report.named.iter().all(|blob| old.contains(&blob.blob_id)));
    assert_eq!(report.added.blocks, 37);
    let (places, _) = node.places().await;
    for (key, place) in &kept {
        assert_eq!(&places[key], place, "kept");
    }
    node.reads_back(&[&car[..], &others].concat()).await;
    assert_eq!(node.state().await, RebuildState::Partial(report));

    // Where the list does not say so, the blob does. A blob that is gone, or is no blob, too.
    let none = "A".repeat(43);
    let ids = listing
        .blobs()
        .iter()
        .map(|blob| format!("{}\n", blob.blob_id));
    let ids: String = ids.chain([none.clone()]).collect();
    let report = node
        .rebuild(List::read(ids.as_bytes()).unwrap())
        .await
        .unwrap();
    let expected = BTreeMap::from([(Why::Undescribed, concats), (Why::Gone, 1)]);
    assert_eq!(report.left_out, expected);
    let gone = report.named.iter().find(|blob| blob.why == Why::Gone);
    assert_eq!(gone.unwrap().blob_id, none);
    assert_eq!(report.added, Usage::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_killed_is_carried_on() {
    let node = Node::new().await;
    let blocks = blocks(0..300);
    node.put("", &blocks).await;
    let (lost, total) = node.places().await;
    let list = node.listing();
    node.lose_index();
    let parts = || async {
        let config = node.config("");
        walrusds::rebuild::Parts {
            index: Arc::new(node.index().await),
            store: Arc::new(walrusds::Client::new(config.client()).unwrap()),
            clock: Arc::new(walrusds::clock::SystemClock),
            epochs: Arc::new(walrusds::clock::EpochClock::new(std::time::Duration::ZERO)),
        }
    };
    let options = walrusds::rebuild::Options::default()
        .with_batch_rows(1)
        .with_in_flight(3);
    let (mut begun, mut runs) = (0, 0);
    let report = loop {
        let parts = parts().await;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut first = None;
        let mut steps = 0;
        let mut progress = |report: &Report| {
            first.get_or_insert(report.done);
            steps += 1;
            if steps == 2 + runs % 2 && report.done < report.blobs {
                tell.send(report.done).unwrap();
            }
        };
        let run = walrusds::rebuild::rebuild(&parts, &list, &options, &mut progress);
        let ended = tokio::select! {
            biased;
            done = told.recv() => Err(done.unwrap()),
            report = run => Ok(report.unwrap()),
        };
        // What was noted is not done again.
        assert!(first.unwrap() > begun, "{first:?} after {begun}");
        runs += 1;
        match ended {
            Ok(report) => break report,
            Err(done) => begun = done,
        }
        match rebuild_state(&*parts.index).await.unwrap() {
            RebuildState::Partial(report) => {
                assert!(!report.ended && report.done >= begun && report.blobs >= report.done);
            }
            other => panic!("{other:?}"),
        }
        // Another list has to wait: what it would write first may end later than what comes here.
        let some = List::new(list.blobs()[1..].to_vec()).unwrap();
        let other = walrusds::rebuild::rebuild(&parts, &some, &options, &mut |_| {}).await;
        assert_eq!(other.unwrap_err().kind(), walrusds::ErrorKind::Locked);
    };
    assert!(runs > 2, "{runs}");
    assert!(report.is_complete());
    assert_eq!(
        (report.rebuilt, report.found),
        (list.blobs().len() as u64, total)
    );
    assert_eq!(node.places().await, (lost, total));
    node.reads_back(&blocks).await;
}
