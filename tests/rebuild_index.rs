//! A lost index is filled again from the blobs, on a local Walrus and with real indexes.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use testkit::mem::{key_of, noise, MemStore};
use testkit::postgres::{Postgres, GO_TABLE};
use walrus_devnet::{Devnet, Options as Walrus};
use walrusds::clock::{EpochClock, SystemClock};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::rebuild::{
    export, rebuild, rebuild_state, List, Options, Parts, RebuildState, Report, Why,
};
use walrusds::walrus::Check;
use walrusds::{
    rebuild_index, BlobStore, Body, Client, Config, Error, ErrorKind, Index, KeyRange, Op,
    RebuildFrom, Result, Rows, StoreOptions, StoreResult, Totals, Usage, WalrusDatastore,
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
        self.config_on(&format!(r#"{extra}"indexPath":"index.sqlite""#))
    }

    /// `more` is JSON members.
    fn config_on(&self, more: &str) -> Config {
        let url = self.net.url();
        let json = format!(
            r#"{{{more},"publisherURL":"{url}","aggregatorURL":"{url}","packTargetSizeBytes":100000,
                "epochDurationSeconds":86400}}"#
        );
        Config::from_json(&json).unwrap()
    }

    /// Stores a quilt. Returns its blob ID.
    async fn put_quilt(&self, members: &[(String, Bytes)]) -> String {
        let mut body = Vec::new();
        for (name, value) in members {
            let head = "--xyz\r\nContent-Disposition: form-data; name=";
            body.extend(format!("{head}\"{name}\"; filename=\"x\"\r\n\r\n").bytes());
            body.extend_from_slice(value);
            body.extend(b"\r\n");
        }
        body.extend(b"--xyz--\r\n");
        let http = reqwest::Client::builder().tls_backend_preconfigured(testkit::no_tls());
        let url = format!("{}/v1/quilts?epochs=5&permanent=true", self.net.url());
        let put = http.build().unwrap().put(url).body(body);
        let put = put.header("content-type", "multipart/form-data; boundary=xyz");
        let answer = put.send().await.unwrap().text().await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).expect(&answer);
        let stored = &answer["blobStoreResult"]["newlyCreated"]["blobObject"];
        stored["blobId"].as_str().expect("a new blob").to_owned()
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
        Parts {
            index: Arc::new(node.index().await),
            store: Arc::new(Client::new(config.client()).unwrap()),
            clock: Arc::new(SystemClock),
            epochs: Arc::new(EpochClock::new(Duration::ZERO)),
        }
    };
    let options = Options::default().with_batch_rows(1).with_in_flight(3);
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
        let run = rebuild(&parts, &list, &options, &mut progress);
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
        let other = rebuild(&parts, &some, &options, &mut |_| {}).await;
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

/// As [`a_process_that_is_killed_leaves_a_rebuild_that_goes_on`] starts it: rebuilds slowly, and
/// says how far it is.
#[test]
#[ignore = "a part of another test, which starts and kills it"]
fn rebuilds_until_it_is_killed() {
    let dir = PathBuf::from(std::env::var_os(CHILD).expect("the directory"));
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = Config::from_json(&config).unwrap();
    let list = List::read(std::fs::File::open(dir.join("list")).unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = SqliteOptions::new(dir.join("index.sqlite"), "walrus_index");
        let parts = Parts {
            index: Arc::new(SqliteIndex::open(options).await.unwrap()),
            store: Arc::new(Client::new(config.client()).unwrap()),
            clock: Arc::new(SystemClock),
            epochs: Arc::new(EpochClock::new(Duration::ZERO)),
        };
        let options = Options::default().with_batch_rows(1);
        let mut progress = |report: &Report| println!("done {}", report.done);
        rebuild(&parts, &list, &options, &mut progress)
            .await
            .unwrap();
    });
}

const CHILD: &str = "WALRUSDS_TEST_REBUILDS";

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_leaves_a_rebuild_that_goes_on() {
    let node = Node::new().await;
    let blocks = blocks(0..300);
    node.put("", &blocks).await;
    let (lost, total) = node.places().await;
    let backup = node.backup().await;
    node.lose_index();
    let url = node.net.url();
    let config = format!(r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"i"}}"#);
    std::fs::write(node.dir.path().join("config.json"), config).unwrap();
    std::fs::write(node.dir.path().join("list"), &backup).unwrap();
    let mut killed = 0;
    for steps in [1, 3, 4] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "rebuilds_until_it_is_killed",
            ])
            .env(CHILD, node.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output.lines().map_while(std::result::Result::ok);
        let steps = said
            .filter(|line| line.contains("done "))
            .take(steps)
            .count();
        assert!(steps > 0, "it has begun");
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
    }
    assert!(killed > 0, "none of the processes was killed");
    let report = node
        .rebuild(List::read(backup.as_bytes()).unwrap())
        .await
        .unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(node.places().await, (lost, total));
    node.reads_back(&blocks).await;
}

/// Blocks that lie in two blobs: the row points at the blob that ends later, whatever the order of
/// the list, and wherever runs are killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_blob_that_ends_later_wins() {
    let node = Node::new().await;
    let all = blocks(0..240);
    node.put(r#""epochs":3,"#, &all[..160]).await;
    let (first, _) = node.places().await;
    node.lose_index();
    node.put(r#""epochs":9,"#, &all[81..]).await;
    let (second, _) = node.places().await;
    node.lose_index();
    let expected: Places = first.into_iter().chain(second).collect();
    assert_eq!(expected.len(), all.len());

    let mut lines: Vec<String> = node
        .net
        .blobs()
        .iter()
        .map(|blob| serde_json::to_string(blob).unwrap())
        .collect();
    for turn in 0..2 {
        lines.reverse();
        let list = List::read(lines.join("\n").as_bytes()).unwrap();
        assert_eq!(list.blobs().len(), lines.len());
        let index = Arc::new(node.index().await);
        let parts = Parts {
            index: index.clone(),
            store: Arc::new(Client::new(node.config("").client()).unwrap()),
            clock: Arc::new(SystemClock),
            epochs: Arc::new(EpochClock::new(Duration::ZERO)),
        };
        let options = Options::default()
            .with_batch_rows(1)
            .with_in_flight(2 + turn);
        for left in (0..lines.len()).rev() {
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let mut progress = |report: &Report| {
                if report.blobs - report.done <= left as u64 {
                    let _ = tell.send(());
                }
            };
            tokio::select! {
                biased;
                _ = told.recv() => {}
                report = rebuild(&parts, &list, &options, &mut progress) => drop(report.unwrap()),
            }
        }
        let report = rebuild(&parts, &list, &options, &mut |_| {}).await.unwrap();
        assert!(report.is_complete());
        index.close().await.unwrap();
        assert_eq!(node.places().await.0, expected);
        node.reads_back(&all).await;
        node.lose_index();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_quilt_are_blocks_again() {
    let node = Node::new().await;
    let cid = |key: &str| {
        let hash = data_encoding::BASE32_NOPAD
            .decode(&key.as_bytes()[1..])
            .unwrap();
        let cid = data_encoding::BASE32_NOPAD.encode(&[&[1, 0x55], &hash[..]].concat());
        format!("b{}", cid.to_lowercase())
    };
    let sizes = [0, 1, 5, 600, 2_000, 40_000].into_iter().enumerate();
    let small: Vec<_> = sizes.map(|(n, len)| noise(n as u64, len)).collect();
    let large: Vec<_> = (0..20).map(|n| noise(100 + n, 70_000)).collect();
    let mut blocks = Vec::new();
    for values in [small, large] {
        let of_quilt: Vec<_> = values
            .into_iter()
            .map(|value| (key_of(&value), value))
            .collect();
        let mut members: Vec<_> = of_quilt.iter().map(|(k, v)| (cid(k), v.clone())).collect();
        members.push(("read me.txt".to_owned(), Bytes::from_static(b"no block")));
        node.put_quilt(&members).await;
        blocks.extend(of_quilt);
    }
    let foreign = node
        .put_quilt(&[("a.txt".to_owned(), Bytes::from_static(b"text"))])
        .await;
    let cars = self::blocks(500..520);
    node.put("", &cars).await;
    let listing = node.listing();
    let cars_alone = listing.blobs().len() as u64 - 3;

    let server = Postgres::shared();
    let database = server.database();
    server.execute(&database, GO_TABLE);
    let url = server.url(&database);
    let config = || node.config_on(&format!(r#""postgresURL":"{url}""#));
    for added in [blocks.len() + cars.len(), 0] {
        let from = RebuildFrom::List(listing.clone());
        let report = rebuild_index(config(), node.dir.path(), from, &mut |_| {})
            .await
            .unwrap();
        assert_eq!(
            report.left_out,
            BTreeMap::from([(Why::Undescribed, 1)]),
            "{report:?}"
        );
        assert_eq!(report.named[0].blob_id, foreign);
        assert_eq!(report.rebuilt, cars_alone + 2);
        assert_eq!(report.added.blocks as usize, added);
    }
    let opened = WalrusDatastore::open(config(), node.dir.path())
        .await
        .unwrap();
    for (key, value) in blocks.iter().chain(&cars) {
        let len = opened.get_size(key).await.unwrap();
        assert_eq!(len, Some(value.len() as u64), "{key}");
        assert_eq!(
            opened.get(key).await.unwrap().as_ref(),
            Some(value),
            "{key}"
        );
    }
    opened.close().await.unwrap();

    // An index in SQLite has none, and holds them all the same.
    node.lose_index();
    let report = node.rebuild(listing).await.unwrap();
    let expected = BTreeMap::from([(Why::Undescribed, 1)]);
    assert_eq!(report.left_out, expected);
    node.reads_back(&blocks).await;
    node.reads_back(&cars).await;
}

/// A store that may be down.
struct Sometimes(MemStore, AtomicBool);

#[async_trait]
impl BlobStore for Sometimes {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        self.0.store(body, options).await
    }

    async fn read(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        self.0.read(id, check).await
    }

    async fn read_range(&self, id: &str, at: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(Error::retryable(ErrorKind::Walrus, "no aggregator answers")),
            false => self.0.read_range(id, at, len, check).await,
        }
    }

    async fn read_patch(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        self.0.read_patch(id, check).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_walrus_stops_and_is_carried_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path().join("index.sqlite"), "walrus_index");
    let store = Arc::new(Sometimes(MemStore::default(), AtomicBool::new(true)));
    let parts = Parts {
        index: Arc::new(SqliteIndex::open(options).await.unwrap()),
        store: store.clone(),
        clock: Arc::new(SystemClock),
        epochs: Arc::new(EpochClock::new(Duration::ZERO)),
    };
    let ids = (1..=70).map(|n| format!("{n}\n")).collect::<String>();
    let list = List::read(ids.as_bytes()).unwrap();
    let run = |list: List| {
        let parts = parts.clone();
        async move { rebuild(&parts, &list, &Options::default(), &mut |_| {}).await }
    };
    for _ in 0..2 {
        let e = run(list.clone()).await.unwrap_err();
        assert!(e.message().contains("no aggregator answers"), "{e}");
        assert!(e.message().contains("blob 1 of 70"), "{e}");
        let state = rebuild_state(&*parts.index).await.unwrap();
        let RebuildState::Partial(report) = state else {
            panic!("{state:?}");
        };
        assert_eq!(
            (report.done, report.named.len()),
            (0, 0),
            "nothing is given up"
        );
    }
    store.1.store(false, Ordering::SeqCst);
    let report = run(list.clone()).await.unwrap();
    assert_eq!(report.left_out, BTreeMap::from([(Why::Gone, 70)]));
    // A few are named, and left to another run.
    store.1.store(true, Ordering::SeqCst);
    let few = List::new(list.blobs()[..20].to_vec()).unwrap();
    let report = run(few).await.unwrap();
    assert_eq!(report.left_out, BTreeMap::from([(Why::Unreadable, 20)]));
    assert!(report.named[0].said.contains("no aggregator answers"));
    assert!(report.ended && !report.is_complete());
}
