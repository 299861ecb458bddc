//! The check finds what is wrong, and the repair mends it: on a local Walrus, with both indexes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use testkit::eventually;
use testkit::flatfs;
use testkit::hostile::{answer, Act, Hostile};
use testkit::mem::{key_of, noise};
use testkit::node::{damage, files, metric};
use testkit::postgres::{blocking, Postgres};
use tokio_util::sync::CancellationToken;
use walrus_devnet::{
    BlobId, Devnet, FaultAction, FaultPlan, FaultRule, Op as Http, Options as Walrus,
};
use walrusds::admin::check::{
    self, Cursor, Data, Event, Finding, FindingKind, Sample, Severity, Stopped, Summary,
};
use walrusds::admin::repair::{self, Action, CopyFrom, Fate, Repaired, Told};
use walrusds::clock::Sighting;
use walrusds::config::IndexConfig;
use walrusds::datastore::Inspection;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Config, ErrorKind, Index, Op, WalrusDatastore};

const ALL: Data = Data::Read(Sample::All);

/// A repo on a local Walrus.
struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    /// JSON members that name the index, each followed by a comma.
    index: String,
    blocks: BTreeMap<String, Bytes>,
}

impl Repo {
    async fn new() -> Repo {
        Repo::on(r#""indexPath":"index.sqlite","#.to_owned()).await
    }

    async fn on(index: String) -> Repo {
        let options = Walrus {
            cheap_ids: true,
            ..Walrus::default()
        };
        Repo {
            net: Devnet::start(options).await.expect("local Walrus"),
            dir: tempfile::tempdir().unwrap(),
            index,
            blocks: BTreeMap::new(),
        }
    }

    async fn postgres() -> (Repo, String) {
        let database = blocking(|| Postgres::shared().database());
        let url = Postgres::shared().url(&database);
        let repo = Repo::on(format!(r#""postgresURL":"{url}","#)).await;
        (repo, database)
    }

    /// `extra` is JSON members, each followed by a comma.
    fn config(&self, extra: &str) -> Config {
        let (url, index) = (self.net.url(), &self.index);
        let json = format!(
            r#"{{{extra}{index}"publisherURL":"{url}","aggregatorURL":"{url}","packTargetSizeBytes":40000,
                "epochDurationSeconds":86400,"epochs":5,"maxRetries":0}}"#
        );
        Config::from_json(&json).unwrap()
    }

    async fn open(&self, extra: &str) -> WalrusDatastore {
        let opened = WalrusDatastore::open(self.config(extra), self.dir.path()).await;
        opened.unwrap()
    }

    /// Puts `n` blocks of 10,000 bytes, three to a pack, and closes.
    async fn put(&mut self, n: u64, extra: &str) {
        let node = self.open(extra).await;
        let first = self.blocks.len() as u64;
        for pack in 0..n.div_ceil(3) {
            let seeds = (first + pack * 3)..(first + n).min(first + pack * 3 + 3);
            let mut batch = Vec::new();
            for seed in seeds {
                let value = noise(seed, 10_000);
                let key = key_of(&value);
                batch.push(Op::Put(key.clone(), value.clone()));
                self.blocks.insert(key, value);
            }
            node.commit(batch).await.unwrap();
        }
        node.close().await.unwrap();
    }

    async fn inspect(&self) -> Inspection {
        Inspection::open(self.config(""), self.dir.path())
            .await
            .unwrap()
    }

    /// The blobs of the rows, in order, with the keys of each.
    async fn blobs(&self) -> BTreeMap<String, Vec<String>> {
        let inspection = self.inspect().await;
        let mut blobs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in self.blocks.keys() {
            if let Some(row) = inspection.index().get(key).await.unwrap() {
                blobs.entry(row.blob_id).or_default().push(key.clone());
            }
        }
        inspection.close().await.unwrap();
        blobs
    }

    async fn check(&self, data: Data) -> (Vec<Finding>, Summary) {
        self.check_by(options(data)).await
    }

    async fn check_by(&self, options: check::Options) -> (Vec<Finding>, Summary) {
        let inspection = self.inspect().await;
        let mut found = Vec::new();
        let mut on = |event| {
            if let Event::Finding(finding) = event {
                found.push(finding);
            }
        };
        let stop = CancellationToken::new();
        let summary = check::check(&inspection, &options, &mut on, &stop).await;
        inspection.close().await.unwrap();
        let summary = summary.unwrap();
        let severe = |severity| found.iter().filter(|f| f.severity() == severity).count() as u64;
        assert_eq!(summary.cursor.errors, severe(Severity::Error));
        assert_eq!(summary.cursor.warnings, severe(Severity::Warning));
        assert_eq!(summary.notes, severe(Severity::Note));
        (found, summary)
    }

    async fn repair(&self, extra: &str, options: repair::Options) -> (Vec<Action>, Repaired) {
        let (actions, _, repaired) = self.repair_and_tell(extra, options).await;
        (actions, repaired)
    }

    /// Also returns what it said about sources.
    async fn repair_and_tell(
        &self,
        extra: &str,
        options: repair::Options,
    ) -> (Vec<Action>, Vec<String>, Repaired) {
        let (mut actions, mut sources) = (Vec::new(), Vec::new());
        let mut on = |told| match told {
            Told::Action(action) => actions.push(action),
            Told::Source(text) => sources.push(text),
            _ => {}
        };
        let stop = CancellationToken::new();
        let config = self.config(extra);
        let repaired = repair::repair(config, self.dir.path(), &options, &mut on, &stop).await;
        (actions, sources, repaired.unwrap())
    }

    /// Notes that a node has seen an epoch, as its rounds do.
    async fn saw(&self, epoch: u64) {
        let now = SystemTime::now();
        let seen = [Sighting {
            epoch,
            first: now,
            last: now,
        }];
        let config = self.config("");
        let index: Box<dyn Index> = match config.index {
            IndexConfig::Sqlite(path) => {
                let path = self.dir.path().join(path);
                let options = SqliteOptions::new(path, "walrus_index");
                Box::new(SqliteIndex::open(options).await.unwrap())
            }
            IndexConfig::Postgres(url) => {
                let options = PostgresOptions::new(url, "walrus_index");
                Box::new(PostgresIndex::open(options).await.unwrap())
            }
            _ => unreachable!("there are two indexes"),
        };
        index.saw_epochs(&seen).await.unwrap();
        index.close().await.unwrap();
    }

    /// Changes the index file by SQL.
    fn sql(&self, sql: &str) {
        let file = self.dir.path().join("index.sqlite");
        let connection = rusqlite::Connection::open(file).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Makes the row of a block wrong, so that its place on Walrus is not known any more.
    fn lose(&self, key: &str) {
        self.sql(&format!(
            "UPDATE walrus_index SET blob_offset = 39000 WHERE key = '{key}'"
        ));
    }

    /// Whether every block can be read.
    async fn assert_whole(&self) {
        let node = self.open(r#""blobCacheBytes":-1,"#).await;
        for (key, value) in &self.blocks {
            let read = node.get(key).await.unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_eq!(read.as_ref(), Some(value), "{key}");
        }
        node.close().await.unwrap();
    }
}

fn options(data: Data) -> check::Options {
    check::Options::default()
        .with_from(Cursor::new(data))
        .with_settle(Duration::ZERO)
}

fn mending(data: Data) -> repair::Options {
    repair::Options::default().with_check(options(data))
}

fn kinds(found: &[Finding]) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = found.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    kinds
}

fn id(blob: &str) -> BlobId {
    blob.parse().expect("a blob ID")
}

fn fault(action: FaultAction, blob: &str) -> FaultPlan {
    FaultPlan::from(FaultRule::new(action).on(Http::READS).of(id(blob)))
}

async fn sound(mut repo: Repo) {
    repo.put(10, "").await;
    for data in [Data::None, Data::Probe, ALL] {
        let (found, summary) = repo.check(data).await;
        assert_eq!(found, [], "{data:?}");
        assert_eq!((summary.blobs, summary.blocks), (4, 10));
        assert_eq!(summary.bytes, 100_000);
        assert_eq!(summary.counted, summary.totals);
        assert_eq!(summary.counted.unwrap().blocks, 10);
        let (read, verified) = match data {
            ALL => (4, 10),
            _ => (0, 0),
        };
        assert_eq!((summary.blobs_read, summary.verified), (read, verified));
        assert_eq!(summary.limit().is_some(), data == ALL);
        assert_eq!(summary.stopped, None);
    }
    assert_eq!(repo.check(Data::None).await.1.requests, 0);
    assert_eq!(repo.check(Data::Probe).await.1.requests, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_index_has_no_findings() {
    sound(Repo::new().await).await;
    sound(Repo::postgres().await.0).await;
}

async fn damaged(mut repo: Repo) {
    repo.put(12, "").await;
    let blobs: Vec<(String, Vec<String>)> = repo.blobs().await.into_iter().collect();
    assert_eq!(blobs.len(), 4);
    let mut faults = fault(FaultAction::NotFound, &blobs[0].0);
    faults
        .rules
        .extend(fault(FaultAction::Truncate { by: 1 }, &blobs[1].0).rules);
    faults
        .rules
        .extend(fault(FaultAction::Corrupt { offset: 3 }, &blobs[2].0).rules);
    repo.net.set_faults(faults);
    let (found, summary) = repo.check(ALL).await;
    assert_eq!(
        kinds(&found),
        [
            FindingKind::Missing,
            FindingKind::WrongBytes,
            FindingKind::Unreadable
        ],
        "{found:#?}"
    );
    // It went on behind them: the fourth blob is verified.
    assert_eq!(summary.blobs_read, 4);
    assert!(summary.verified >= 3, "{summary:?}");
    for finding in &found {
        let (blob, keys) = match finding.kind {
            FindingKind::Missing => &blobs[0],
            FindingKind::Unreadable => &blobs[1],
            _ => &blobs[2],
        };
        assert_eq!(finding.blob_id.as_ref(), Some(blob));
        assert!(finding.keys.iter().all(|key| keys.contains(key)));
        assert!(
            finding.blocks >= 1 && finding.bytes >= 10_000,
            "{finding:?}"
        );
        assert!(!finding.text.is_empty());
    }
    // Without reading the data, wrong bytes cannot be seen.
    let (found, _) = repo.check(Data::Probe).await;
    assert!(kinds(&found).contains(&FindingKind::Missing), "{found:#?}");
    assert!(!kinds(&found).contains(&FindingKind::WrongBytes));
    // The index alone is sound.
    assert_eq!(repo.check(Data::None).await.0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_truncated_and_wrong_blobs_are_told_apart() {
    damaged(Repo::new().await).await;
    damaged(Repo::postgres().await.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_answer_is_a_warning() {
    let mut repo = Repo::new().await;
    repo.put(3, "").await;
    let blob = repo.blobs().await.into_keys().next().unwrap();
    let rule = FaultRule::new(FaultAction::Corrupt { offset: 100 });
    let rule = rule.on(Http::READS).of(id(&blob)).times(1);
    repo.net.set_faults(FaultPlan::from(rule));
    let (found, summary) = repo.check(ALL).await;
    assert_eq!(kinds(&found), [FindingKind::WrongAnswer], "{found:#?}");
    assert_eq!(found[0].severity(), Severity::Warning);
    assert_eq!(summary.verified, 3);
    assert_eq!(summary.findings(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_rows_are_found() {
    let mut repo = Repo::new().await;
    repo.put(6, "").await;
    let blobs: Vec<(String, Vec<String>)> = repo.blobs().await.into_iter().collect();
    let (one, two) = (&blobs[0].1, &blobs[1].1);
    repo.sql(&format!(
        "UPDATE walrus_index SET blob_offset = -5 WHERE key = '{}';
         UPDATE walrus_index SET blob_offset = 39000 WHERE key = '{}';
         UPDATE walrus_index_blobs SET size = size + 1, state = 'released' WHERE blob_id = '{}';
         UPDATE walrus_index_blobs SET end_epoch = end_epoch + 1 WHERE blob_id = '{}';
         INSERT INTO walrus_index (key, blob_id, size, created_at, updated_at) VALUES ('/odd', '', 3, 0, 0);",
        one[0], one[1], blobs[1].0, blobs[1].0
    ));
    let (found, summary) = repo.check(Data::Probe).await;
    let expected = [
        FindingKind::BeyondEnd,
        FindingKind::BadRow,
        FindingKind::BadRow,
        FindingKind::WrongSize,
        FindingKind::LedgerEnd,
        FindingKind::LedgerState,
        // The row that was inserted by hand is not counted.
        FindingKind::Totals,
    ];
    assert_eq!(kinds(&found), expected, "{found:#?}");
    let of = |kind| found.iter().filter(move |f: &&Finding| f.kind == kind);
    assert_eq!(
        of(FindingKind::BeyondEnd).next().unwrap().keys,
        [one[1].clone()]
    );
    assert!(of(FindingKind::BadRow).any(|f| f.keys == ["/odd"]));
    assert_eq!(
        of(FindingKind::WrongSize).next().unwrap().blocks,
        two.len() as u64
    );
    assert_eq!(summary.counted.unwrap().blocks, 7);
    // Two rows of the same bytes in part.
    let mut repo = Repo::new().await;
    repo.put(3, "").await;
    let keys = repo.blobs().await.into_values().next().unwrap();
    repo.sql(&format!(
        "UPDATE walrus_index SET blob_offset = (SELECT max(blob_offset) FROM walrus_index) - 1 WHERE key = '{}'",
        keys[0]
    ));
    let (found, _) = repo.check(ALL).await;
    let kinds = kinds(&found);
    assert!(kinds.contains(&FindingKind::WrongBytes), "{found:#?}");
}

async fn lapsing(mut repo: Repo) {
    repo.put(3, "").await;
    assert_eq!(repo.check(Data::Probe).await.0, []);
    let epoch = repo.net.advance_epoch(5);
    repo.net.collect_expired();
    repo.put(1, "").await;
    repo.saw(u64::from(epoch)).await;
    let old = repo.blobs().await;
    let old = old.iter().find(|(_, keys)| keys.len() == 3).unwrap();
    for data in [Data::None, Data::Probe, ALL] {
        let (found, _) = repo.check(data).await;
        assert_eq!(kinds(&found), [FindingKind::Lapsed], "{data:?} {found:#?}");
        assert_eq!(found[0].blob_id.as_ref(), Some(old.0));
        assert_eq!(found[0].blocks, 3);
    }
    let by = mending(Data::None).with_apply(true).with_drop(true);
    let (actions, repaired) = repo.repair("", by).await;
    assert_eq!(repaired.of(Fate::Dropped).blocks, 3, "{actions:?}");
    assert_eq!(repo.check(ALL).await.0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn lapsed_blobs_are_found_without_asking_for_them() {
    lapsing(Repo::new().await).await;
    lapsing(Repo::postgres().await.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_soon_is_told() {
    let mut repo = Repo::new().await;
    repo.put(3, "").await;
    let by = options(Data::None).with_soon(Some(Duration::from_secs(6 * 86_400)));
    let (found, _) = repo.check_by(by).await;
    assert_eq!(kinds(&found), [FindingKind::EndsSoon], "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_check_goes_on_where_it_was() {
    let mut repo = Repo::new().await;
    repo.put(60, "").await;
    let first = repo.blobs().await.into_keys().next().unwrap();
    repo.net.set_faults(fault(FaultAction::NotFound, &first));
    let mut looked = Vec::new();
    let mut cursor = Cursor::new(ALL);
    let mut rounds = 0;
    loop {
        let inspection = repo.inspect().await;
        let stop = CancellationToken::new();
        let mut on = |event| {
            if let Event::Progress(progress) = event {
                looked.push(progress.cursor.after);
                if looked.len() % 7 == 0 {
                    stop.cancel();
                }
            }
        };
        let by = options(ALL).with_from(cursor.clone());
        let summary = check::check(&inspection, &by, &mut on, &stop)
            .await
            .unwrap();
        inspection.close().await.unwrap();
        rounds += 1;
        // What the operator gets is a text.
        cursor = summary.cursor.to_string().parse().unwrap();
        assert_eq!(
            (cursor.errors, cursor.warnings),
            (1, 0),
            "it was found in round 1"
        );
        match summary.stopped {
            Some(Stopped::Asked) => {}
            None => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(rounds >= 3, "{rounds}");
    let all: Vec<String> = repo.blobs().await.into_keys().collect();
    assert_eq!(looked, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_the_blobs_are_read_and_together_they_are_all() {
    let mut repo = Repo::new().await;
    repo.put(30, "").await;
    let mut read = 0;
    for number in 1..=3 {
        let sample = Sample::parse(&format!("{number}/3"), 0).unwrap();
        let (found, summary) = repo.check(Data::Read(sample)).await;
        assert_eq!(found, []);
        assert_eq!(summary.blobs, 10);
        assert_eq!(summary.verified, summary.blobs_read * 3);
        read += summary.blobs_read;
    }
    assert_eq!(read, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_gives_up_while_no_aggregator_answers() {
    let mut repo = Repo::new().await;
    repo.put(18, "").await;
    let rule = FaultRule::new(FaultAction::Internal).on(Http::READS);
    repo.net.set_faults(FaultPlan::from(rule));
    let (found, summary) = repo.check_by(options(ALL).with_give_up_after(3)).await;
    assert_eq!(kinds(&found), [FindingKind::Unreadable; 3]);
    assert_eq!(summary.stopped, Some(Stopped::Unreadable));
    repo.net.clear_faults();
    let rest = options(ALL).with_from(summary.cursor);
    let inspection = repo.inspect().await;
    let summary = check::check(&inspection, &rest, &mut |_| {}, &CancellationToken::new()).await;
    inspection.close().await.unwrap();
    assert_eq!(summary.unwrap().blobs, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_beside_a_node_that_puts_and_deletes_finds_nothing() {
    let mut repo = Repo::new().await;
    repo.put(30, "").await;
    let node = Arc::new(repo.open("").await);
    let enough = Arc::new(AtomicBool::new(false));
    let (busy, done) = (Arc::clone(&node), Arc::clone(&enough));
    let keys: Vec<String> = repo.blocks.keys().cloned().collect();
    let working = tokio::spawn(async move {
        let mut n = 0;
        while !done.load(Ordering::Relaxed) {
            let value = noise(1000 + n, 5000);
            busy.put(&key_of(&value), value).await.unwrap();
            if let Some(key) = keys.get(n as usize) {
                busy.delete(key).await.unwrap();
            }
            n += 1;
        }
        n
    });
    for _ in 0..5 {
        let (found, _) = repo.check(ALL).await;
        // The node writes its share of the totals every few seconds.
        let wrong = found.iter().filter(|f| f.kind != FindingKind::Totals);
        assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&Finding>::new());
    }
    enough.store(true, Ordering::Relaxed);
    assert!(working.await.unwrap() > 0);
    node.close().await.unwrap();
}

async fn from_cache(mut repo: Repo) {
    const CACHE: &str = r#""cachePath":"cache","#;
    repo.put(9, "").await;
    let node = repo.open(&format!(r#"{CACHE}"blobCacheBytes":-1,"#)).await;
    for key in repo.blocks.keys() {
        node.get(key).await.unwrap();
    }
    node.close().await.unwrap();
    let before = repo.blobs().await;
    let gone = before.keys().next().unwrap().clone();
    repo.net.set_faults(fault(FaultAction::NotFound, &gone));
    // A dry run changes nothing.
    let stores = repo.net.stats();
    let (actions, repaired) = repo.repair(CACHE, mending(Data::Probe)).await;
    assert_eq!(actions.len(), 1);
    assert_eq!((actions[0].fate, actions[0].blocks), (Fate::StoredAgain, 3));
    assert!(actions[0].why.contains("cache"), "{actions:?}");
    assert!(!repaired.applied && repaired.packs == 1 && repaired.units > 0);
    assert_eq!(repo.blobs().await, before);
    assert_eq!(repo.net.stats().puts, stores.puts);
    let (_, repaired) = repo
        .repair(CACHE, mending(Data::Probe).with_apply(true))
        .await;
    assert_eq!(repaired.of(Fate::StoredAgain).blocks, 3);
    assert!(repaired.cost > 0);
    let after = repo.blobs().await;
    assert!(!after.contains_key(&gone), "{after:?}");
    assert_eq!(after.values().flatten().count(), 9);
    repo.assert_whole().await;
    let (found, _) = repo.check(ALL).await;
    assert_eq!(found, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_in_the_cache_are_stored_again() {
    from_cache(Repo::new().await).await;
    from_cache(Repo::postgres().await.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_another_repo_and_of_a_gateway_are_stored_again() {
    let mut repo = Repo::new().await;
    repo.put(6, "").await;
    let blobs: Vec<(String, Vec<String>)> = repo.blobs().await.into_iter().collect();
    let mut faults = fault(FaultAction::NotFound, &blobs[0].0);
    faults
        .rules
        .extend(fault(FaultAction::WrongBlob { blob_id: None }, &blobs[1].0).rules);
    repo.net.set_faults(faults);
    let of = |keys: &[String]| -> BTreeMap<String, Bytes> {
        let pair = |key: &String| (key.clone(), repo.blocks[key].clone());
        keys.iter().map(pair).collect()
    };
    // The other repo has a damaged copy of one block, too.
    let other = tempfile::tempdir().unwrap();
    let mut there = of(&blobs[0].1);
    *there.values_mut().next().unwrap() = Bytes::from_static(b"other");
    flatfs::write(other.path(), &there);
    let served = repo.blocks.clone();
    let gateway = Hostile::start(move |seen| {
        let cid = seen.target.trim_start_matches("/ipfs/b").split('?').next();
        let cid = cid.unwrap_or_default().to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(cid.as_bytes()).unwrap_or_default();
        let key = format!(
            "/{}",
            BASE32_NOPAD.encode(bytes.get(2..).unwrap_or_default())
        );
        Act::Say(match served.get(&key) {
            Some(value) => answer("200 OK", &[], value),
            None => answer("404 Not Found", &[], ""),
        })
    })
    .await;
    let from = vec![
        CopyFrom::parse(other.path().to_str().unwrap()),
        CopyFrom::parse(&gateway.url()),
    ];
    let by = mending(ALL).with_apply(true).with_from(from);
    let (actions, repaired) = repo.repair("", by).await;
    assert_eq!(repaired.of(Fate::Left).blocks, 0, "{actions:#?}");
    let of = |source: &str| -> u64 {
        let from = actions.iter().filter(|a| a.why.contains(source));
        from.map(|a| a.blocks).sum()
    };
    assert_eq!(of("flatfs"), 2, "{actions:#?}");
    assert_eq!(of("gateway"), 4, "{actions:#?}");
    repo.assert_whole().await;
}

/// The first blob's blocks wait for their pack when the second one's fill it, and the publisher
/// refuses: a repair that went on behind the first blob would leave its blocks out.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_whose_pack_is_refused_is_begun_anew() {
    let mut repo = Repo::new().await;
    repo.put(6, "").await;
    let rule = FaultRule::new(FaultAction::NotFound).on(Http::READS);
    let refused = FaultRule::new(FaultAction::Status {
        status: 400,
        body: String::new(),
        content_type: None,
        retry_after: None,
    });
    let mut faults = FaultPlan::from(rule);
    faults.rules.push(refused.on(Http::WRITES));
    repo.net.set_faults(faults);
    let other = tempfile::tempdir().unwrap();
    flatfs::write(other.path(), &repo.blocks);
    let from = vec![CopyFrom::parse(other.path().to_str().unwrap())];
    let by = mending(Data::Probe).with_apply(true).with_from(from);
    let stop = CancellationToken::new();
    let (config, dir) = (repo.config(""), repo.dir.path());
    let error = repair::repair(config, dir, &by, &mut |_| {}, &stop).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("begin the repair anew"), "{error}");
    repo.net.clear_faults();
}

/// Packs would be paid for, and no row could move to them.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_again_for_an_index_that_takes_no_writes() {
    let (mut repo, database) = Repo::postgres().await;
    repo.put(3, "").await;
    let rule = FaultRule::new(FaultAction::NotFound).on(Http::READS);
    repo.net.set_faults(FaultPlan::from(rule));
    let other = tempfile::tempdir().unwrap();
    flatfs::write(other.path(), &repo.blocks);
    let read_only = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    blocking(|| Postgres::shared().execute(&database, &read_only));
    let stored = repo.net.blobs().len();
    let from = vec![CopyFrom::parse(other.path().to_str().unwrap())];
    let by = mending(Data::Probe).with_apply(true).with_from(from);
    let stop = CancellationToken::new();
    let (config, dir) = (repo.config(""), repo.dir.path());
    let error = repair::repair(config, dir, &by, &mut |_| {}, &stop).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.message().contains("nothing can be repaired here"),
        "{error}"
    );
    assert_eq!(repo.net.blobs().len(), stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_aggregator_may_have_the_blob() {
    let mut repo = Repo::new().await;
    repo.put(3, "").await;
    let blob = repo.blobs().await.into_keys().next().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let second = repo
        .net
        .add_endpoint(walrus_devnet::Role::Aggregator, listen);
    let (number, url) = second.unwrap();
    assert_ne!(number, 0);
    let rule = FaultRule::new(FaultAction::NotFound)
        .on(Http::READS)
        .of(id(&blob));
    repo.net.set_faults(FaultPlan::from(rule.at(0)));
    let by = mending(Data::Probe).with_from(vec![CopyFrom::Aggregator(url)]);
    let (actions, _) = repo.repair("", by).await;
    assert_eq!((actions[0].fate, actions[0].blocks), (Fate::StoredAgain, 3));
    assert!(actions[0].why.contains("aggregator"), "{actions:?}");
}

async fn dropping(mut repo: Repo) {
    repo.put(6, "").await;
    let blobs: Vec<(String, Vec<String>)> = repo.blobs().await.into_iter().collect();
    let (gone, wrong) = (&blobs[0], &blobs[1]);
    let mut faults = fault(FaultAction::NotFound, &gone.0);
    faults
        .rules
        .extend(fault(FaultAction::Corrupt { offset: 3 }, &wrong.0).rules);
    repo.net.set_faults(faults);
    // Not without --drop.
    let (actions, _) = repo.repair("", mending(ALL).with_apply(true)).await;
    assert!(
        actions.iter().any(|a| a.fate == Fate::Dropped),
        "{actions:?}"
    );
    assert_eq!(repo.blobs().await.into_values().flatten().count(), 6);
    let by = mending(ALL).with_apply(true).with_drop(true);
    let (_, repaired) = repo.repair("", by.clone()).await;
    assert_eq!(repaired.of(Fate::Dropped).blocks, 3);
    assert!(
        repaired.of(Fate::Left).blocks >= 1,
        "wrong bytes prove nothing"
    );
    let left = repo.blobs().await;
    assert!(left.keys().eq([&wrong.0]));
    repo.net.clear_faults();
    // The totals followed.
    let (found, summary) = repo.check(ALL).await;
    assert_eq!(found, []);
    assert_eq!(summary.totals.unwrap().blocks, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_dropped_only_if_the_loss_is_certain() {
    dropping(Repo::new().await).await;
    dropping(Repo::postgres().await.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_while_an_aggregator_is_in_doubt_or_the_journal_has_it() {
    let mut repo = Repo::new().await;
    repo.put(6, "").await;
    let mut blobs = repo.blobs().await;
    let (blob, keys) = blobs.pop_first().unwrap();
    repo.net.set_faults(fault(FaultAction::NotFound, &blob));
    let by = mending(Data::Probe).with_apply(true).with_drop(true);
    // A second aggregator does not answer.
    let url = repo.net.url();
    let config = format!(
        r#"{{{}"publisherURL":"{url}","aggregatorURL":"{url},http://127.0.0.1:9","epochDurationSeconds":86400,"maxRetries":0}}"#,
        repo.index
    );
    let config = Config::from_json(&config).unwrap();
    let mut actions = Vec::new();
    let mut on = |told| {
        if let Told::Action(action) = told {
            actions.push(action);
        }
    };
    let stop = CancellationToken::new();
    let repaired = repair::repair(config, repo.dir.path(), &by, &mut on, &stop).await;
    let repaired = repaired.unwrap();
    assert_eq!(repaired.of(Fate::Dropped).blocks, 0, "{actions:?}");
    assert_eq!(repo.blobs().await.into_values().flatten().count(), 6);
    // One of the blocks was put again, and waits in the journal.
    let journal = r#""journalPath":"journal","packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainTimeoutSeconds":0,"#;
    let key = keys[0].clone();
    repo.sql(&format!("DELETE FROM walrus_index WHERE key = '{key}'"));
    let row = format!(
        "INSERT INTO walrus_index (key, blob_id, blob_offset, size, created_at, updated_at) VALUES ('{key}', '{blob}', 0, 10000, 0, 0)"
    );
    let node = repo.open(journal).await;
    node.put(&key, repo.blocks[&key].clone()).await.unwrap();
    // The node has it open meanwhile.
    repo.sql(&row);
    let (actions, repaired) = repo.repair(journal, by).await;
    assert_eq!(repaired.of(Fate::StoredAgain).blocks, 1, "{actions:?}");
    assert!(
        actions.iter().any(|a| a.why.contains("journal")),
        "{actions:?}"
    );
    assert_eq!(repaired.of(Fate::Dropped).blocks, 2, "{actions:?}");
    node.close().await.unwrap();
    let mut left = repo.blobs().await;
    left.retain(|blob, _| !blobs.contains_key(blob));
    assert_eq!(left.into_values().flatten().collect::<Vec<_>>(), [key]);
}

/// A journal that sends full packs alone, and keeps the rest when it is closed.
const JOURNAL: &str = r#""journalPath":"journal","packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainTimeoutSeconds":0,"#;

/// The files of a journal, with their contents.
fn journal_files(repo: &Repo, ending: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = files(&repo.dir.path().join("journal"), ending).into_iter();
    paths
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// A file of the journal stays until all of its blocks have travelled.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_travelled_is_found_in_the_journal() {
    let mut repo = Repo::new().await;
    let node = repo.open(JOURNAL).await;
    for seed in 100..104 {
        let value = noise(seed, 10_000);
        let key = key_of(&value);
        node.put(&key, value.clone()).await.unwrap();
        repo.blocks.insert(key, value);
    }
    eventually("a full pack has left", || {
        metric(&node, "journal_blocks") == 1
    })
    .await;
    node.close().await.unwrap();
    // Two of the three blocks are lost, so the pack that takes their place is another blob.
    let (_, keys) = repo.blobs().await.pop_first().unwrap();
    assert_eq!(keys.len(), 3);
    keys[..2].iter().for_each(|key| repo.lose(key));
    let before = journal_files(&repo, "segment");
    assert!(!before.is_empty());
    let by = mending(Data::Probe).with_apply(true).with_drop(true);
    let (actions, repaired) = repo.repair(JOURNAL, by).await;
    assert_eq!(repaired.of(Fate::StoredAgain).blocks, 2, "{actions:?}");
    assert!(actions[0].why.contains("journal"), "{actions:?}");
    assert_eq!(journal_files(&repo, "segment"), before);
    assert_eq!(repo.blobs().await.into_values().flatten().count(), 3);
    let node = repo.open(JOURNAL).await;
    for (key, value) in &repo.blocks {
        assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
    node.close().await.unwrap();
}

/// A lost block that no publisher takes holds up none of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_block_that_is_too_large_holds_up_no_other() {
    let mut repo = Repo::new().await;
    let flatfs = tempfile::tempdir().unwrap();
    repo.put(3, "").await;
    let large = noise(1000, 30_000);
    let node = repo.open("").await;
    node.put(&key_of(&large), large.clone()).await.unwrap();
    node.close().await.unwrap();
    repo.blocks.insert(key_of(&large), large.clone());
    repo.put(3, "").await;
    flatfs::write(flatfs.path(), &repo.blocks);
    repo.blocks.keys().for_each(|key| repo.lose(key));
    let limit = FaultAction::BodyLimit { bytes: 20_000 };
    repo.net.set_faults(FaultPlan::from(FaultRule::new(limit)));
    let from = vec![CopyFrom::Flatfs(flatfs.path().to_owned())];
    let by = mending(Data::Probe).with_apply(true).with_from(from);
    let stop = CancellationToken::new();
    let (config, mut on) = (repo.config(""), |_| ());
    let repaired = repair::repair(config, repo.dir.path(), &by, &mut on, &stop).await;
    let error = repaired.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().contains(&key_of(&large)), "{error}");
    repo.net.clear_faults();
    let node = repo.open(r#""blobCacheBytes":-1,"#).await;
    for (key, value) in &repo.blocks {
        let got = node.get(key).await.ok().flatten();
        assert_eq!(got.as_ref() == Some(value), *value != large, "{key}");
    }
    node.close().await.unwrap();
}

/// Only some blocks in a file that was set aside are damaged.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_set_aside_have_copies_and_are_told_about() {
    let mut repo = Repo::new().await;
    let (good, bad) = ([noise(100, 10_000), noise(101, 10_000)], noise(102, 10_000));
    let key = key_of(&good[0]);
    // Three blocks would be a full pack, which leaves at once.
    repo.net
        .set_faults(FaultPlan::from(FaultRule::new(FaultAction::Internal)));
    let node = repo.open(JOURNAL).await;
    for value in good.iter().chain([&bad]) {
        node.put(&key_of(value), value.clone()).await.unwrap();
    }
    node.close().await.unwrap();
    let (file, _) = damage(&repo.dir.path().join("journal"), &bad);
    repo.net.clear_faults();
    let busy = r#""journalPath":"journal","packIdleFlushSeconds":1,"packMaxAgeSeconds":1,"#;
    let node = repo.open(busy).await;
    eventually("its file is set aside", || {
        !journal_files(&repo, "damaged").is_empty()
    })
    .await;
    node.close().await.unwrap();
    let good = good.into_iter().map(|value| (key_of(&value), value));
    repo.blocks.extend(good);
    let before = journal_files(&repo, "damaged");
    repo.lose(&key);
    let said = |said: &[String], words: &[&str]| {
        assert_eq!(said.len(), 1, "{said:?}");
        let has = words.iter().all(|word| said[0].contains(word));
        assert!(has, "{words:?}: {said:?}");
    };
    let name = file.replace(".segment", ".damaged");
    // It may hold the last copy.
    let (actions, sources, repaired) = repo.repair_and_tell(JOURNAL, mending(Data::Probe)).await;
    assert_eq!(repaired.of(Fate::StoredAgain).blocks, 1, "{actions:?}");
    assert!(actions[0].why.contains("set aside"), "{actions:?}");
    said(
        &sources,
        &[&name, "2 whole (2 of", "1 damaged (0 of", "Keep it"],
    );
    let by = mending(Data::Probe).with_apply(true).with_drop(true);
    let (_, repaired) = repo.repair(JOURNAL, by).await;
    assert_eq!(repaired.of(Fate::StoredAgain).blocks, 1);
    repo.assert_whole().await;
    // The damaged block is lost on this disk, and then put again.
    let (_, sources, _) = repo.repair_and_tell(JOURNAL, mending(ALL)).await;
    said(
        &sources,
        &["neither put again nor deleted since: 1", "unless"],
    );
    // An index without the row of the whole block, as after a restore.
    repo.sql(&format!("CREATE TABLE kept AS SELECT * FROM walrus_index WHERE key = '{key}'; DELETE FROM walrus_index WHERE key = '{key}'"));
    let (_, sources, _) = repo.repair_and_tell(JOURNAL, mending(ALL)).await;
    said(&sources, &["2 whole (1 of", "restore from a backup"]);
    repo.sql("INSERT INTO walrus_index SELECT * FROM kept; DROP TABLE kept");
    // A check of a part proves nothing, nor does one byte of each blob.
    for data in [Data::None, Data::Probe] {
        let (_, sources, _) = repo.repair_and_tell(JOURNAL, mending(data)).await;
        said(&sources, &["Keep it", "--read-data"]);
    }
    let node = repo.open(JOURNAL).await;
    node.put(&key_of(&bad), bad.clone()).await.unwrap();
    node.close().await.unwrap();
    let (_, sources, _) = repo.repair_and_tell(JOURNAL, mending(ALL)).await;
    said(&sources, &["1 damaged (1 of", "Nothing in it is needed"]);
    assert_eq!(journal_files(&repo, "damaged"), before);
}

/// An aggregator of another network says of every blob that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_knows_no_blob_of_the_index_proves_no_loss() {
    let mut repo = Repo::new().await;
    repo.put(6, "").await;
    let rule = FaultRule::new(FaultAction::NotFound).on(Http::READS);
    repo.net.set_faults(FaultPlan::from(rule));
    let by = mending(Data::Probe).with_apply(true).with_drop(true);
    let (actions, repaired) = repo.repair("", by).await;
    assert_eq!(repaired.of(Fate::Dropped).blocks, 0, "{actions:?}");
    assert_eq!(repaired.of(Fate::Left).blocks, 6, "{actions:?}");
    assert!(actions[0].why.contains("aggregatorURL"), "{actions:?}");
    repo.net.clear_faults();
    repo.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_are_set_right() {
    let mut repo = Repo::new().await;
    repo.put(3, "").await;
    repo.sql("UPDATE walrus_index_usage SET blocks = blocks + 7, bytes = bytes - 10");
    let (found, _) = repo.check(Data::None).await;
    assert_eq!(kinds(&found), [FindingKind::Totals]);
    let by = mending(Data::None).with_totals(true);
    let (_, repaired) = repo.repair("", by.clone()).await;
    let change = repaired.totals.unwrap();
    assert_eq!((change.blocks, change.bytes), (-7, 10));
    repo.repair("", by.with_apply(true)).await;
    assert_eq!(repo.check(Data::None).await.0, []);
}

/// The running totals count staged blocks from the first opening on, and rows that name no blob: so
/// must the sum that is held against them, or the cure would subtract what a deletion subtracts
/// later.
#[tokio::test(flavor = "multi_thread")]
async fn staged_blocks_and_rows_without_a_blob_count_in_the_totals() {
    let (repo, db) = Repo::postgres().await;
    let sql = |sql: &str| blocking(|| Postgres::shared().execute(&db, sql));
    sql("CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, blob_offset BIGINT NOT NULL DEFAULT 0, \
         size BIGINT NOT NULL, deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, \
         expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now()); \
         CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, size BIGINT NOT NULL, \
         created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ); \
         INSERT INTO walrus_index (key, blob_id, size) VALUES ('/a', 'blob', 10), ('/b', 'blob', 10); \
         INSERT INTO walrus_index_staging (key, value, size) VALUES ('/c', 'abc', 3), ('/d', 'abc', 3), ('/e', 'abc', 3), \
         ('/b', 'newer', 5)");
    let node = repo.open("").await;
    let before = node.disk_usage().await.unwrap();
    node.close().await.unwrap();
    let totals = |found: &[Finding]| kinds(found).contains(&FindingKind::Totals);
    let (found, summary) = repo.check(Data::None).await;
    assert!(!totals(&found), "{found:?}");
    assert_eq!(summary.counted, Some(walrusds::Usage::new(5, 29)));
    assert_eq!(summary.counted, summary.totals);
    let by = mending(Data::None).with_totals(true).with_apply(true);
    assert_eq!(repo.repair("", by).await.1.totals, None);

    let node = repo.open("").await;
    assert_eq!(
        node.adopt_staged(Duration::ZERO)
            .await
            .unwrap()
            .stored
            .blocks,
        4
    );
    assert_eq!(node.disk_usage().await.unwrap(), before);
    node.close().await.unwrap();
    // The row of /b has the size of its newer value since, which no total was told.
    sql("UPDATE walrus_index_usage SET bytes = bytes - 5");
    let (found, summary) = repo.check(Data::None).await;
    assert!(!totals(&found), "{found:?}");
    assert_eq!(summary.totals.unwrap().blocks, 5);

    sql(
        "INSERT INTO walrus_index (key, blob_id, size) VALUES ('/f', '', 7); \
         UPDATE walrus_index_usage SET blocks = blocks + 1, bytes = bytes + 7",
    );
    let (found, _) = repo.check(Data::None).await;
    assert!(kinds(&found).contains(&FindingKind::BadRow));
    assert!(!totals(&found), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_used_are_named() {
    let mut repo = Repo::new().await;
    repo.put(1, "").await;
    for (from, part) in [
        (CopyFrom::parse("/no/such/repo"), "SHARDING"),
        (CopyFrom::parse("http://"), "--from"),
        (CopyFrom::Aggregator("ftp://x".to_owned()), "--aggregator"),
    ] {
        let by = mending(Data::None).with_from(vec![from]);
        let config = repo.config("");
        let stop = CancellationToken::new();
        let refused = repair::repair(config, repo.dir.path(), &by, &mut |_| {}, &stop).await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(part), "{error}");
    }
}
