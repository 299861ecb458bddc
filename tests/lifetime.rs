//! Renewal that must neither lapse nor pay twice, and blobs that have lapsed.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use testkit::epochs::{EpochStore, TokioClock};
use testkit::mem::{key_of, noise, MemIndex, MemStore, Parts};
use walrusds::clock::Clock;
use walrusds::log::Level;
use walrusds::walrus::Check;
use walrusds::{
    BlobState, BlobStore, Body, Config, Error, ErrorKind, Index, Ledger as _, Op, Result,
    StoreOptions, StoreResult, WalrusDatastore,
};

const DAY: Duration = Duration::from_secs(86_400);
const EPOCH: Duration = Duration::from_secs(14 * 86_400);

fn config(extra: &str) -> Config {
    Config::from_json(&format!(
        r#"{{{extra}"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}}"#
    ))
    .unwrap()
}

fn metric(ds: &WalrusDatastore, name: &str) -> u64 {
    ds.metrics()
        .into_iter()
        .find(|(n, _)| *n == name)
        .unwrap()
        .1
}

fn log(ds: &WalrusDatastore) -> Vec<String> {
    std::iter::from_fn(|| ds.next_log_line())
        .map(|l| l.message)
        .collect()
}

/// Rows that do not fit (damaged by hand, or by another program) do not keep their neighbours from
/// renewal.
#[tokio::test(start_paused = true)]
async fn odd_rows_do_not_let_a_pack_lapse() {
    for odd in 0..4 {
        let epoch = Duration::from_secs(1000);
        let store = Arc::new(EpochStore::start(epoch));
        let index = Arc::new(MemIndex::default());
        let config = config(r#""epochs":3,"epochDurationSeconds":1000,"renewIntervalSeconds":1,"#);
        let clock = Arc::new(TokioClock::start());
        let ds = WalrusDatastore::with_parts(&config, index.clone(), store, clock).unwrap();
        let blocks: Vec<Bytes> = (0..20).map(|n| noise(n, 1000)).collect();
        let puts = blocks.iter().map(|b| Op::Put(key_of(b), b.clone()));
        ds.commit(puts.collect()).await.unwrap();
        {
            let mut rows = index.rows.lock();
            let mut row = rows[&key_of(&blocks[3])].clone();
            match odd {
                0 => row.offset += 1,
                1 => row.size = 1 << 40,
                2 => row.offset = -5,
                _ => row.size = i64::MAX,
            }
            rows.insert(key_of(&noise(999, 10)), row);
        }
        tokio::time::sleep(10 * epoch).await;
        for block in &blocks {
            assert_eq!(
                ds.get(&key_of(block)).await.unwrap().as_ref(),
                Some(block),
                "case {odd}"
            );
        }
        let said = log(&ds);
        assert!(
            said.iter()
                .any(|text| text.contains(&key_of(&noise(999, 10)))),
            "{said:?}"
        );
        ds.close().await.unwrap();
    }
}

/// A store whose whole reads come with a byte too many, or whose reads find nothing, or not what
/// was stored lately.
struct Odd {
    inner: Arc<MemStore>,
    longer: AtomicBool,
    missing: AtomicBool,
    /// So many new blobs that are stored next cannot be read.
    hides: AtomicUsize,
    hidden: Mutex<HashSet<String>>,
    paid: AtomicUsize,
}

impl Odd {
    fn of(parts: &Parts) -> Arc<Odd> {
        Arc::new(Odd {
            inner: parts.store.clone(),
            longer: AtomicBool::new(false),
            missing: AtomicBool::new(false),
            hides: AtomicUsize::new(0),
            hidden: Mutex::default(),
            paid: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl BlobStore for Odd {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        self.paid.fetch_add(1, SeqCst);
        let before = self.inner.blobs.lock().len();
        let stored = self.inner.store(body, options).await?;
        let is_new = self.inner.blobs.lock().len() > before;
        let one_less = |hides: usize| hides.checked_sub(1);
        let mut hidden = self.hidden.lock();
        match is_new && self.hides.fetch_update(SeqCst, SeqCst, one_less).is_ok() {
            true => hidden.insert(stored.blob_id.clone()),
            false => hidden.remove(&stored.blob_id),
        };
        Ok(stored)
    }

    async fn read(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        let bytes = self.inner.read(id, check).await?;
        if !self.longer.load(SeqCst) {
            return Ok(bytes);
        }
        let longer = [&bytes[..], &[0]].concat();
        check(&longer).map_err(|reason| Error::new(ErrorKind::Corrupt, reason))?;
        Ok(longer.into())
    }

    async fn read_range(&self, id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        if self.missing.load(SeqCst) || self.hidden.lock().contains(id) {
            return Err(Error::new(ErrorKind::BlobNotFound, "404"));
        }
        self.inner.read_range(id, offset, len, check).await
    }

    async fn read_patch(&self, id: &str, check: Check<'_>) -> Result<Bytes> {
        self.inner.read_patch(id, check).await
    }
}

fn open(parts: &Parts, store: Arc<dyn BlobStore>, extra: &str) -> WalrusDatastore {
    let clock: Arc<dyn Clock> = parts.clock.clone();
    WalrusDatastore::with_parts(&config(extra), parts.index.clone(), store, clock).unwrap()
}

/// As [`open`], on an index in a file.
async fn open_on_file(
    parts: &Parts,
    store: Arc<dyn BlobStore>,
    file: &std::path::Path,
    extra: &str,
) -> WalrusDatastore {
    let options = walrusds::index::sqlite::SqliteOptions::new(file, "walrus_index");
    let index = walrusds::index::sqlite::SqliteIndex::open(options).await;
    let index: Arc<dyn Index> = Arc::new(index.unwrap());
    let clock: Arc<dyn Clock> = parts.clock.clone();
    WalrusDatastore::with_parts(&config(extra), index, store, clock).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_wrong_blob_is_not_paid_for_again_and_again() {
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let renewing = r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":600,"#;
    let ds = open(&parts, store.clone(), renewing);
    ds.put("/k", noise(1, 100)).await.unwrap();
    parts.clock.advance(EPOCH * 7 / 2);
    store.longer.store(true, SeqCst);
    let before = store.paid.load(SeqCst);
    tokio::time::sleep(2 * DAY).await;
    let paid = store.paid.load(SeqCst) - before;
    assert!(
        (1..4).contains(&paid),
        "{paid} paid stores of wrong blobs in two days"
    );
    assert!(log(&ds).iter().any(|text| text.contains("paid for")));
    ds.close().await.unwrap();
}

/// Other nodes, and this one after a new start, know that a blob's renewal is paused.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_paid_for_wrongly_rests_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::default();
    let store = Odd::of(&parts);
    store.longer.store(true, SeqCst);
    let renewing = r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":1,"#;
    let mut tried = 0;
    for start in 0..3 {
        let file = dir.path().join("i.sqlite");
        let ds = open_on_file(&parts, store.clone(), &file, renewing).await;
        if start == 0 {
            ds.put("/k", noise(1, 100)).await.unwrap();
            // A blob of an older version: the ledger has no digest of it, so wrong bytes are not
            // told before they are paid for.
            rusqlite::Connection::open(&file)
                .and_then(|c| c.execute("UPDATE walrus_index_blobs SET digest = ''", []))
                .unwrap();
            parts.clock.advance(EPOCH * 7 / 2);
            tried = store.paid.load(SeqCst);
            testkit::eventually("it is tried", || store.paid.load(SeqCst) > tried).await;
            tried = store.paid.load(SeqCst);
            testkit::eventually("that is noted", || metric(&ds, "renewals_failed") > 0).await;
        } else {
            // A round of the renewer passes: another blob is renewed in it.
            store.longer.store(false, SeqCst);
            let other = noise(100 + start, 50);
            ds.put(&key_of(&other), other.clone()).await.unwrap();
            tried += 1;
            parts.clock.advance(EPOCH * 7 / 2);
            let renewed = || metric(&ds, "renewals") > 0;
            testkit::eventually("the other blob is renewed", renewed).await;
            tried += metric(&ds, "renewals") as usize;
            store.longer.store(true, SeqCst);
        }
        ds.close().await.unwrap();
    }
    assert!(
        store.paid.load(SeqCst) <= tried + 1,
        "paid again after a start"
    );
}

/// The live blocks of sparse blobs are carried over into packs of which all but the last one are
/// full, also where the blocks of one blob come to lie in two packs. What cannot be read in parts
/// waits for that, and is not stored again as a whole, while there is time.
#[tokio::test(flavor = "multi_thread")]
async fn sparse_blobs_are_repacked_into_full_packs() {
    const BLOBS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let file = dir.path().join("i.sqlite");
    let settings = r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":1,"packTargetSizeBytes":100000,"#;
    let ds = open_on_file(&parts, store.clone(), &file, settings).await;
    let block = |n| noise(n, 30_000);
    for blob in 0..BLOBS {
        let puts = (3 * blob..3 * blob + 3).map(|n| Op::Put(key_of(&block(n)), block(n)));
        ds.commit(puts.collect()).await.unwrap();
    }
    for blob in 0..BLOBS {
        ds.delete(&key_of(&block(3 * blob))).await.unwrap();
    }
    // Tells that the first epoch lasts so long at least.
    parts.clock.advance(EPOCH * 9 / 10);
    let late = noise(1000, 100);
    ds.put(&key_of(&late), late.clone()).await.unwrap();
    let before = parts.store.blobs.lock().len() as u64;
    assert_eq!(before, BLOBS + 1);
    let paid = store.paid.load(SeqCst);
    store.missing.store(true, SeqCst);
    parts.store.epoch.store(5, SeqCst);
    parts.clock.advance(EPOCH * 31 / 10);
    let mut refused = 0;
    let mut is_refused = || {
        let lines = log(&ds);
        refused += lines
            .iter()
            .filter(|l| l.contains("cannot be repacked now"))
            .count();
        refused >= 3 * BLOBS as usize
    };
    testkit::eventually("it is tried several times", &mut is_refused).await;
    // The first blob is stored again, so that it tells the epoch.
    assert!(store.paid.load(SeqCst) <= paid + 1);
    store.missing.store(false, SeqCst);
    let repacked = || metric(&ds, "blobs_repacked") >= BLOBS;
    testkit::eventually("they are repacked", repacked).await;
    let new = parts.store.blobs.lock().len() as u64 - before;
    assert_eq!(new, 8, "packs of three blocks for 22 or 24 blocks");
    for n in (0..3 * BLOBS).filter(|n| n % 3 > 0) {
        assert_eq!(ds.get(&key_of(&block(n))).await.unwrap(), Some(block(n)));
    }
    assert_eq!(ds.get(&key_of(&late)).await.unwrap(), Some(late));
    ds.close().await.unwrap();
}

/// A node with sparse blobs that are due, which makes 8 packs of three blocks of them. Epochs have
/// eight seconds, so that a repack that failed rests for one.
async fn due_and_sparse(parts: &Parts, store: &Arc<Odd>, file: &Path) -> WalrusDatastore {
    const EPOCH: Duration = Duration::from_secs(8);
    let settings = r#""epochs":5,"deletable":true,"epochDurationSeconds":8,"renewIntervalSeconds":1,"packTargetSizeBytes":100000,"#;
    let ds = open_on_file(parts, store.clone(), file, settings).await;
    for blob in 0..SPARSE {
        let puts = (3 * blob..3 * blob + 3).map(|n| noise(n, 30_000));
        let puts = puts.map(|block| Op::Put(key_of(&block), block));
        ds.commit(puts.collect()).await.unwrap();
        ds.delete(&key_of(&noise(3 * blob, 30_000))).await.unwrap();
    }
    parts.clock.advance(EPOCH * 9 / 10);
    let late = noise(1000, 100);
    ds.put(&key_of(&late), late).await.unwrap();
    parts.store.epoch.store(5, SeqCst);
    parts.clock.advance(EPOCH * 31 / 10);
    ds
}

const SPARSE: u64 = 12;

/// A new pack that no aggregator gives is not paid for again each time that its blobs are repacked.
#[tokio::test(flavor = "multi_thread")]
async fn a_repacked_pack_that_cannot_be_read_back_is_paid_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let ds = due_and_sparse(&parts, &store, &dir.path().join("i.sqlite")).await;
    store.hides.store(1000, SeqCst);
    let mut failed = 0;
    let has_failed = || {
        let lines = log(&ds);
        let failures = lines.iter().filter(|l| l.contains("cannot be read back"));
        failed += failures.count();
        failed >= 4
    };
    testkit::eventually("it is tried several times", has_failed).await;
    store.hides.store(0, SeqCst);
    store.hidden.lock().clear();
    let repacked = || metric(&ds, "blobs_repacked") >= SPARSE;
    testkit::eventually("they are repacked", repacked).await;
    // The first blob is stored again, so that it tells the epoch.
    let paid = store.paid.load(SeqCst) as u64;
    assert!(paid <= SPARSE + 1 + 1 + 8, "{paid}");
    ds.close().await.unwrap();
}

/// Other blobs are repacked although one pack cannot be read back, and are known to be empty.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_cannot_be_read_back_does_not_hold_up_others() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let file = dir.path().join("i.sqlite");
    let ds = due_and_sparse(&parts, &store, &file).await;
    store.hides.store(1, SeqCst);
    let repacked = || metric(&ds, "blobs_repacked") >= SPARSE - 3;
    testkit::eventually("others are repacked", repacked).await;
    assert!(!store.hidden.lock().is_empty());
    ds.close().await.unwrap();
    let options = walrusds::index::sqlite::SqliteOptions::new(file, "walrus_index");
    let index = walrusds::index::sqlite::SqliteIndex::open(options).await;
    let released = index.unwrap();
    let released = released.blobs_in_state(BlobState::Released, "", 100).await;
    assert!(released.unwrap().len() as u64 >= SPARSE - 3);
}

/// A table of an older version has no entries in the ledger. A node that renews nothing enters its
/// blobs all the same, and tells of those that are about to end.
#[tokio::test]
async fn a_node_that_renews_nothing_tells_of_older_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts::default();
    let file = dir.path().join("i.sqlite");
    let settings = r#""epochs":2,"epochDurationSeconds":1209600,"#;
    let open = async || open_on_file(&parts, parts.store.clone(), &file, settings).await;
    let ds = open().await;
    ds.put("/k", noise(1, 100)).await.unwrap();
    ds.close().await.unwrap();
    rusqlite::Connection::open(&file)
        .and_then(|c| c.execute("DELETE FROM walrus_index_blobs", []))
        .unwrap();
    parts.clock.advance(EPOCH * 3 / 2);
    let ds = open().await;
    let mut log = String::new();
    let told = || {
        while let Some(line) = ds.next_log_line() {
            log.push_str(&line.message);
        }
        log.contains("data is about to be lost: 1 blob ends soon")
    };
    testkit::eventually("it is told", told).await;
    ds.close().await.unwrap();
}

/// What is remembered of a blob goes when it has no rows any more and nothing is pending.
#[tokio::test(start_paused = true)]
async fn the_note_of_a_blob_goes_with_its_rows() {
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let renewing = r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":600,"#;
    let ds = open(&parts, store.clone(), renewing);
    ds.put("/k", noise(1, 100)).await.unwrap();
    parts.clock.advance(EPOCH * 7 / 2);
    store.longer.store(true, SeqCst);
    let notes = || {
        let notes = parts.index.notes.lock();
        notes
            .keys()
            .filter(|name| name.starts_with("renewal.blob."))
            .count()
    };
    let begun = tokio::time::Instant::now();
    while notes() == 0 && begun.elapsed() < 2 * DAY {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(notes(), 1, "wrong bytes were paid for");
    ds.delete("/k").await.unwrap();
    tokio::time::sleep(3 * DAY).await;
    assert_eq!(notes(), 0);
    ds.close().await.unwrap();
}

/// The clock of a machine that jumps, stands still, or is wrong for good.
struct WrongClock {
    begun: tokio::time::Instant,
    wrong: Wrong,
}

/// By how much a clock is wrong (seconds) after so much time.
type Wrong = fn(Duration) -> i64;

impl Clock for WrongClock {
    fn now(&self) -> SystemTime {
        let passed = self.begun.elapsed();
        let seconds = 20_000 * 86_400 + passed.as_secs() as i64 + (self.wrong)(passed);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
    }
}

/// Whatever the machine's clock does while a node runs: nothing lapses, and little is bought too
/// early.
#[tokio::test(start_paused = true)]
async fn jumps_of_the_clock_let_nothing_lapse() {
    const EPOCH: Duration = Duration::from_secs(7200);
    const HOUR: i64 = 3600;
    const YEAR: i64 = 365 * 24 * HOUR;
    /// When the clock goes wrong, or right.
    const THEN: Duration = Duration::from_secs(3 * 7200);
    let clocks: [(&str, Wrong); 5] = [
        ("jumps each hour", |passed| {
            let jumps = [0, HOUR, -HOUR, 300 * HOUR, -300 * HOUR, YEAR, -YEAR];
            jumps[(passed.as_secs() / 3600) as usize % jumps.len()]
        }),
        ("back by a year for good", |passed| match passed > THEN {
            true => -YEAR,
            false => 0,
        }),
        ("ahead by a year for good", |passed| match passed > THEN {
            true => YEAR,
            false => 0,
        }),
        ("a year ahead until it is put right", |passed| {
            match passed > THEN {
                true => 0,
                false => YEAR,
            }
        }),
        ("stands still", |passed| {
            -(passed.saturating_sub(THEN).as_secs() as i64)
        }),
    ];
    for (what, wrong) in clocks {
        let store = Arc::new(EpochStore::start(EPOCH));
        let index = Arc::new(MemIndex::default());
        let clock = Arc::new(WrongClock {
            begun: tokio::time::Instant::now(),
            wrong,
        });
        let config =
            config(r#""epochs":5,"epochDurationSeconds":7200,"renewIntervalSeconds":300,"#);
        let ds = WalrusDatastore::with_parts(&config, index, store, clock).unwrap();
        let block = noise(1, 100);
        ds.put(&key_of(&block), block.clone()).await.unwrap();
        let epochs = 20;
        for quarter in 0..4 * epochs {
            tokio::time::sleep(EPOCH / 4).await;
            let got = ds.get(&key_of(&block)).await;
            assert_eq!(got.unwrap().as_ref(), Some(&block), "{what}: {quarter}");
        }
        let renewals = metric(&ds, "renewals");
        assert!(renewals <= 2 * epochs, "{what}: {renewals} renewals");
        ds.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_live_shortly_renew_too() {
    let parts = Parts::default();
    let renewing = r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":3600,"#;
    let ds = parts.open(renewing);
    ds.put("/k", noise(1, 100)).await.unwrap();
    ds.close().await.unwrap();
    let mut renewed = 0;
    for _ in 0..(5 * 14 * 24) {
        let ds = parts.open(renewing);
        tokio::time::sleep(Duration::from_secs(3000)).await;
        renewed += metric(&ds, "renewals");
        ds.close().await.unwrap();
        parts.clock.advance(Duration::from_secs(3600));
    }
    assert!(renewed > 0, "the blob has lapsed");
}

struct SetClock(Mutex<SystemTime>);

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_at_the_store_lets_nothing_lapse() {
    let store = Arc::new(EpochStore::start(EPOCH));
    let start = SystemTime::UNIX_EPOCH + 20_000 * DAY;
    let clock = Arc::new(SetClock(Mutex::new(start + 365 * DAY)));
    let index = Arc::new(MemIndex::default());
    let config =
        config(r#""epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":3600,"#);
    let ds = WalrusDatastore::with_parts(&config, index, store, clock.clone()).unwrap();
    let block = noise(1, 100);
    ds.put(&key_of(&block), block.clone()).await.unwrap();
    let began = tokio::time::Instant::now();
    for _ in 0..(7 * 14 * 4) {
        *clock.0.lock() = start + began.elapsed();
        tokio::time::sleep(DAY / 4).await;
    }
    assert_eq!(ds.get(&key_of(&block)).await.unwrap(), Some(block));
    ds.close().await.unwrap();
}

/// A round goes on behind a full page of blobs that are due.
#[tokio::test(start_paused = true)]
async fn one_round_renews_more_than_a_page_of_blobs() {
    const BLOBS: u64 = 1024 + 6;
    let store = Arc::new(EpochStore::start(Duration::from_secs(1000)));
    let clock = Arc::new(TokioClock::start());
    let index = Arc::new(MemIndex::default());
    let open = |extra: &str| {
        let extra =
            format!(r#"{extra}"epochs":3,"epochDurationSeconds":1000,"packTargetSizeBytes":100,"#);
        let (index, store, clock) = (index.clone(), store.clone(), clock.clone());
        WalrusDatastore::with_parts(&config(&extra), index, store, clock).unwrap()
    };
    let ds = open(r#""disableFlush":true,"#);
    let puts = (0..BLOBS)
        .map(|n| noise(n, 100))
        .map(|block| Op::Put(key_of(&block), block));
    ds.commit(puts.collect()).await.unwrap();
    assert_eq!(metric(&ds, "packs_stored"), BLOBS);
    ds.close().await.unwrap();
    // The last epoch that is paid for has begun.
    tokio::time::sleep(Duration::from_secs(2100)).await;
    let ds = open(r#""renewIntervalSeconds":500,"#);
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(metric(&ds, "renewals"), BLOBS, "in the first round");
    ds.close().await.unwrap();
}

/// A node that renews nothing names what is about to end, long before it does.
#[tokio::test(start_paused = true)]
async fn data_that_will_lapse_is_told_of() {
    let store = Arc::new(EpochStore::start(EPOCH));
    let clock = Arc::new(TokioClock::start());
    let index = Arc::new(MemIndex::default());
    let config = config(r#""epochs":5,"network":"mainnet","#);
    let ds = WalrusDatastore::with_parts(&config, index, store, clock).unwrap();
    let block = noise(1, 100);
    ds.put(&key_of(&block), block).await.unwrap();
    tokio::time::sleep(40 * DAY).await;
    assert_eq!(log(&ds), [""; 0], "it ends in 16 days at the earliest");
    tokio::time::sleep(4 * DAY).await;
    let said = log(&ds);
    assert!(said.len() >= 8, "{} lines in two days", said.len());
    assert!(said[0].contains("1 blob ends soon") && said[0].contains("in 14 days"));
    assert!(
        said[0].contains("\"renewIntervalSeconds\": 3600"),
        "{said:?}"
    );
    ds.close().await.unwrap();
}

/// However many blobs have ended before: the next one that is about to end is told of, and all of
/// them are counted.
#[tokio::test(start_paused = true)]
async fn many_blobs_that_have_ended_do_not_hide_one_that_is_about_to() {
    const BLOBS: u64 = 1024 + 6;
    const EPOCH: Duration = Duration::from_secs(12 * 3600);
    let store = Arc::new(EpochStore::start(EPOCH));
    let clock = Arc::new(TokioClock::start());
    let index = Arc::new(MemIndex::default());
    let config = config(r#""epochs":3,"epochDurationSeconds":43200,"packTargetSizeBytes":100,"#);
    let ds = WalrusDatastore::with_parts(&config, index, store, clock).unwrap();
    let puts = (0..BLOBS)
        .map(|n| noise(n, 100))
        .map(|block| Op::Put(key_of(&block), block));
    ds.commit(puts.collect()).await.unwrap();
    assert_eq!(metric(&ds, "packs_stored"), BLOBS);
    tokio::time::sleep(EPOCH * 5 / 2).await;
    let said = log(&ds).pop().expect("a line");
    assert!(said.contains("1030 blobs end soon"), "{said}");
    // A store in epoch 4 tells that they have ended.
    tokio::time::sleep(EPOCH).await;
    let late = noise(BLOBS, 100);
    ds.put(&key_of(&late), late).await.unwrap();
    log(&ds);
    tokio::time::sleep(EPOCH * 5 / 2).await;
    let said = log(&ds).pop().expect("a line");
    assert!(said.contains("1 blob ends soon"), "{said}");
    assert!(
        said.contains("the storage of 1030 blobs has ended"),
        "{said}"
    );
    ds.close().await.unwrap();
}

/// A node that cannot know when its data ends, or renews nothing, says so at every start.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_node_from_renewing_is_told_at_every_start() {
    let dir = tempfile::tempdir().unwrap();
    for (extra, said) in [
        ("", Some("\"network\": \"mainnet\"")),
        (
            r#""network":"mainnet","epochs":26,"#,
            Some("after 364 days"),
        ),
        (r#""disableFlush":true,"#, None),
        (
            r#""network":"testnet","epochs":14,"renewIntervalSeconds":3600,"#,
            None,
        ),
    ] {
        for _ in 0..2 {
            let ds = WalrusDatastore::open(config(extra), dir.path())
                .await
                .unwrap();
            let lines: Vec<_> = std::iter::from_fn(|| ds.next_log_line()).collect();
            let errors = lines.iter().filter(|line| line.level == Level::Error);
            let errors: Vec<_> = errors.map(|line| line.message.as_str()).collect();
            match said {
                Some(said) => assert!(errors.len() == 1 && errors[0].contains(said), "{errors:?}"),
                None => assert!(errors.is_empty(), "{errors:?}"),
            }
            ds.close().await.unwrap();
        }
    }
}

/// `deletable` blobs are paid for each time.
#[tokio::test(start_paused = true)]
async fn a_pack_that_no_aggregator_sees_is_not_paid_for_every_minute() {
    let parts = Parts::default();
    let store = Odd::of(&parts);
    store.missing.store(true, SeqCst);
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("j");
    let extra = format!(
        r#""deletable":true,"packIdleFlushSeconds":1,"drainTimeoutSeconds":0,"journalPath":"{}","#,
        journal.display()
    );
    let ds = open(&parts, store.clone(), &extra);
    let block = noise(1, 100);
    ds.put(&key_of(&block), block.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let paid = store.paid.load(SeqCst);
    assert!((1..6).contains(&paid), "paid {paid} times in an hour");
    store.missing.store(false, SeqCst);
    ds.close().await.unwrap();
}

/// A block that no aggregator has any more is stored anew when it is put again, with and without a
/// journal, also where no length of an epoch is configured.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_whose_blob_is_gone_is_stored_anew() {
    for journal in [false, true] {
        let parts = Parts::default();
        let dir = tempfile::tempdir().unwrap();
        let extra = match journal {
            false => String::new(),
            true => format!(r#""journalPath":"{}","#, dir.path().join("j").display()),
        };
        let block = noise(1, 5000);
        let key = key_of(&block);
        let ds = parts.open(&extra);
        ds.put(&key, block.clone()).await.unwrap();
        ds.close().await.unwrap();
        parts.store.blobs.lock().clear();
        let ds = parts.open(&extra);
        assert_eq!(
            ds.get(&key).await.unwrap_err().kind(),
            ErrorKind::BlobNotFound
        );
        ds.put(&key, block.clone()).await.unwrap();
        ds.close().await.unwrap();
        assert_eq!(parts.store.blobs.lock().len(), 1, "journal: {journal}");
        let ds = parts.open("");
        assert_eq!(ds.get(&key).await.unwrap(), Some(block));
        ds.close().await.unwrap();
    }
}

/// As above, and the block travels only after the node has forgotten that its blob is gone.
#[tokio::test]
async fn a_block_whose_blob_was_gone_at_the_put_is_stored_anew_whenever_it_travels() {
    let parts = Parts::default();
    let store = Odd::of(&parts);
    let dir = tempfile::tempdir().unwrap();
    let extra = format!(
        r#""journalPath":"{}","packIdleFlushSeconds":5000,"packMaxAgeSeconds":5000,"blobCacheBytes":-1,"#,
        dir.path().join("j").display()
    );
    let block = noise(1, 5000);
    let key = key_of(&block);
    let ds = open(&parts, store.clone(), &extra);
    ds.put(&key, block.clone()).await.unwrap();
    ds.close().await.unwrap();
    let blobs: Vec<String> = parts.store.blobs.lock().keys().cloned().collect();
    store.hidden.lock().extend(blobs);
    let ds = open(&parts, store.clone(), &extra);
    let lost = ds.get(&key).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::BlobNotFound);
    ds.put(&key, block.clone()).await.unwrap();
    assert_eq!(metric(&ds, "journal_blocks"), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5000)).await;
    let has_left = || metric(&ds, "journal_blocks") == 0;
    testkit::eventually("it has left the journal", has_left).await;
    assert_eq!(store.paid.load(SeqCst), 2);
    assert_eq!(ds.get(&key).await.unwrap(), Some(block));
    ds.close().await.unwrap();
}
