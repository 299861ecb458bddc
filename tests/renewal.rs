//! Renewal where rows, aggregators, clocks and leases are wrong, and blocks whose blobs have
//! lapsed. Years pass in no time, by tokio's paused clock.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use testkit::epochs::{EpochStore, TokioClock};
use testkit::faulty::{Call, Fault, Faults, FaultyIndex, Fuse};
use testkit::mem::{key_of, noise, MemIndex, Parts};
use walrusds::clock::Clock;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::log::Level;
use walrusds::walrus::Check;
use walrusds::{
    BlobStore, Body, Client, ClientConfig, Config, Error, ErrorKind, Index, KeyRecord, Leases,
    Notes, Op, Record, RenewItem, Result, Rows, StoreOptions, StoreResult, WalrusDatastore,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Epochs of 1,000 s, of which a store buys 3.
const RENEWING: &str = r#""epochs":3,"epochDurationSeconds":1000,"renewIntervalSeconds":10,"#;
const EPOCH: Duration = Duration::from_secs(1000);

fn open(
    index: &Arc<MemIndex>,
    store: &Arc<Odd>,
    clock: Arc<dyn Clock>,
    extra: &str,
) -> WalrusDatastore {
    let config = format!(
        r#"{{{extra}"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}}"#
    );
    let config = Config::from_json(&config).unwrap();
    let (index, store) = (Arc::clone(index), Arc::clone(store));
    WalrusDatastore::with_parts(&config, index, store, clock).unwrap()
}

/// The faults of aggregators.
#[derive(Default)]
struct Odd {
    inner: Option<EpochStore>,
    stores: AtomicUsize,
    reads: AtomicUsize,
    /// Whole blobs come with another byte at the end, from the first aggregator.
    append: AtomicBool,
    /// A second aggregator gives the right bytes.
    second: AtomicBool,
    /// That byte is another one each time.
    random: AtomicBool,
    /// So many whole reads fail, since the answers are wrong.
    wrong: AtomicU64,
    /// An aggregator that gives the right bytes does not answer at such a read.
    away: AtomicBool,
    /// Every read is answered with 404.
    missing: AtomicBool,
    /// Stores are refused.
    refuse: AtomicBool,
    /// The next store names this epoch instead of the true one.
    claim: AtomicU64,
}

impl Odd {
    fn start(epoch: Duration) -> Arc<Odd> {
        Arc::new(Odd {
            inner: Some(EpochStore::start(epoch)),
            ..Odd::default()
        })
    }

    fn inner(&self) -> &EpochStore {
        self.inner.as_ref().unwrap()
    }

    fn stores(&self) -> usize {
        self.stores.load(SeqCst)
    }

    fn found(&self) -> Result<()> {
        self.reads.fetch_add(1, SeqCst);
        match self.missing.load(SeqCst) {
            true => Err(Error::new(ErrorKind::BlobNotFound, "404 everywhere")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl BlobStore for Odd {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        self.stores.fetch_add(1, SeqCst);
        if self.refuse.load(SeqCst) {
            return Err(Error::retryable(ErrorKind::Walrus, "publisher is down"));
        }
        let mut stored = self.inner().store(body, options).await?;
        match self.claim.swap(0, SeqCst) {
            0 => {}
            claim => stored.start_epoch = stored.start_epoch.map(|_| claim),
        }
        Ok(stored)
    }

    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes> {
        self.found()?;
        let less = |left: u64| left.checked_sub(1);
        if self.wrong.fetch_update(SeqCst, SeqCst, less).is_ok() {
            return Err(match self.away.load(SeqCst) {
                true => Error::retryable(ErrorKind::Corrupt, "wrong bytes; and one is down"),
                false => Error::new(ErrorKind::Corrupt, "wrong bytes"),
            });
        }
        if !self.append.load(SeqCst) {
            return self.inner().read(blob_id, check).await;
        }
        let mut wrong = self.inner().read(blob_id, &|_| Ok(())).await?.to_vec();
        let random = self.random.load(SeqCst);
        wrong.push(if random {
            self.reads.load(SeqCst) as u8
        } else {
            0
        });
        match check(&wrong) {
            Ok(()) => Ok(wrong.into()),
            Err(_) if self.second.load(SeqCst) => self.inner().read(blob_id, check).await,
            Err(reason) => Err(Error::new(ErrorKind::Corrupt, reason)),
        }
    }

    async fn read_range(&self, id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        self.found()?;
        self.inner().read_range(id, offset, len, check).await
    }

    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes> {
        self.inner().read_patch(patch_id, check).await
    }
}

/// A clock that is wrong by the given number of seconds for a while.
struct Ahead {
    clock: TokioClock,
    by: AtomicU64,
}

impl Ahead {
    fn start(by: Duration) -> Arc<Ahead> {
        Arc::new(Ahead {
            clock: TokioClock::start(),
            by: AtomicU64::new(by.as_secs()),
        })
    }
}

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        self.clock.now() + Duration::from_secs(self.by.load(SeqCst))
    }
}

fn blocks(count: u64) -> Vec<Op> {
    let blocks = (0..count).map(|n| noise(n, 1000));
    blocks.map(|b| Op::Put(key_of(&b), b)).collect()
}

async fn is_there(ds: &WalrusDatastore, n: u64) -> bool {
    let block = noise(n, 1000);
    matches!(ds.get(&key_of(&block)).await, Ok(Some(got)) if got == block)
}

fn metric(ds: &WalrusDatastore, name: &str) -> u64 {
    let metrics = ds.metrics();
    let found = metrics.iter().find(|(known, _)| *known == name);
    found.unwrap().1
}

fn errors(ds: &WalrusDatastore) -> Vec<String> {
    let lines = std::iter::from_fn(|| ds.next_log_line());
    let lines = lines.filter(|line| line.level == Level::Error);
    lines.map(|line| line.message).collect()
}

/// Rows of a blob that do not fit: a wrong hash, a range beyond its end, an impossible range.
#[tokio::test(start_paused = true)]
async fn an_odd_row_does_not_let_its_neighbours_lapse() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    let ds = open(&index, &store, Arc::new(TokioClock::start()), RENEWING);
    ds.commit(blocks(20)).await.unwrap();
    let row = index.rows.lock().values().next().unwrap().clone();
    let odd = |key: &str, offset, size| {
        let mut row = row.clone();
        (row.offset, row.size) = (offset, size);
        KeyRecord::new(key, row)
    };
    let wrong_hash = key_of(b"other bytes");
    index
        .put_many(&[
            odd(&wrong_hash, 0, 1000),
            odd(&key_of(b"beyond"), 19_500, 1000),
            odd("/negative", -1, 1000),
            odd("/overflow", i64::MAX, i64::MAX),
        ])
        .await
        .unwrap();
    tokio::time::sleep(10 * EPOCH).await;
    for n in 0..20 {
        assert!(is_there(&ds, n).await, "block {n} has lapsed");
    }
    let told = errors(&ds);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(&wrong_hash) && told[0].contains("/negative"),
        "{told:?}"
    );
    ds.close().await.unwrap();
}

/// Rows of blobs that lapsed long ago are checked seldom: there may be many.
#[tokio::test(start_paused = true)]
async fn blobs_that_lapsed_are_not_asked_for_all_the_time() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    let clock = Arc::new(TokioClock::start());
    let ds = open(&index, &store, Arc::<TokioClock>::clone(&clock), RENEWING);
    let dead = KeyRecord::new(
        key_of(b"dead"),
        Record::new("dead", 0, 4)
            .with_end_epoch(1)
            .with_expires_at(Some(clock.now())),
    );
    ds.put("/tells-the-epoch", noise(1, 10)).await.unwrap();
    index.put_many(&[dead]).await.unwrap();
    tokio::time::sleep(10 * EPOCH).await;
    let reads = store.reads.load(SeqCst);
    assert!((1..=40).contains(&reads), "{reads} reads in 10 epochs");
    ds.close().await.unwrap();
}

/// An aggregator that appends a byte gives another blob, which is paid for: seldom, and at growing
/// intervals, also if the process is started again every two hours.
#[tokio::test(start_paused = true)]
async fn wrong_bytes_are_not_paid_for_again_and_again() {
    for (random, restarts) in [(false, 0), (false, 24), (true, 0), (true, 24)] {
        let store = Odd::start(DAY);
        let index = Arc::new(MemIndex::default());
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::start());
        let settings = r#""epochs":5,"epochDurationSeconds":86400,"renewIntervalSeconds":60,"renewLeadSeconds":432000,"#;
        let ds = open(&index, &store, Arc::clone(&clock), settings);
        ds.commit(blocks(3)).await.unwrap();
        // The first block was deleted, so the rows have a gap, and do not give the end of the blob.
        let first = index
            .rows
            .lock()
            .iter()
            .min_by_key(|(_, r)| r.offset)
            .unwrap()
            .0
            .clone();
        ds.delete(&first).await.unwrap();
        let other = (0..3).find(|n| key_of(&noise(*n, 1000)) != first).unwrap();
        store.append.store(true, SeqCst);
        store.random.store(random, SeqCst);
        let mut ds = Some(ds);
        for _ in 0..restarts {
            tokio::time::sleep(2 * DAY / restarts).await;
            ds.take().unwrap().close().await.unwrap();
            ds = Some(open(&index, &store, Arc::clone(&clock), settings));
        }
        if restarts == 0 {
            tokio::time::sleep(2 * DAY).await;
        }
        let paid = store.stores() - 1;
        assert!(
            (1..=9).contains(&paid),
            "paid {paid} times in 48 h (random {random}, {restarts} restarts)"
        );
        // Another aggregator that gives the right bytes: none of this keeps the blob from being
        // renewed.
        store.second.store(true, SeqCst);
        tokio::time::sleep(10 * DAY).await;
        let ds = ds.unwrap();
        assert!(
            is_there(&ds, other).await,
            "random {random}, {restarts} restarts"
        );
        ds.close().await.unwrap();
    }
}

/// As long as another aggregator gives the right bytes, no payment is wasted.
#[tokio::test(start_paused = true)]
async fn right_bytes_of_another_aggregator_are_preferred() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    // The rows tell where the blob ends only if nothing but blocks is in it.
    let settings = format!(r#"{RENEWING}"packFormat":"concat","#);
    let ds = open(&index, &store, Arc::new(TokioClock::start()), &settings);
    ds.commit(blocks(3)).await.unwrap();
    store.append.store(true, SeqCst);
    store.second.store(true, SeqCst);
    tokio::time::sleep(10 * EPOCH).await;
    assert!(is_there(&ds, 0).await);
    assert_eq!(errors(&ds), Vec::<String>::new());
    ds.close().await.unwrap();
}

/// Blocks are carried over, which is paid for, only if no aggregator gives their blob: not after
/// one wrong answer, and not while an aggregator is down that may have the right bytes.
#[tokio::test(start_paused = true)]
async fn one_lying_aggregator_does_not_have_blocks_carried_over() {
    const FOR_EVER: u64 = u64::MAX;
    for (wrong, away, carried) in [(1, false, 0), (3, true, 0), (FOR_EVER, false, 1)] {
        let store = Odd::start(EPOCH);
        let index = Arc::new(MemIndex::default());
        let ds = open(&index, &store, Arc::new(TokioClock::start()), RENEWING);
        ds.commit(blocks(3)).await.unwrap();
        // The same blocks would make the same blob again.
        ds.delete(&key_of(&noise(2, 1000))).await.unwrap();
        store.wrong.store(wrong, SeqCst);
        store.away.store(away, SeqCst);
        tokio::time::sleep(10 * EPOCH).await;
        let repacked = metric(&ds, "blobs_repacked").min(1);
        assert_eq!(repacked, carried, "{wrong} wrong answers, away: {away}");
        assert!(metric(&ds, "renewals_failed") > 0 && is_there(&ds, 0).await);
        ds.close().await.unwrap();
    }
}

/// Processes that end before an interval has passed renew all the same.
#[tokio::test(start_paused = true)]
async fn short_lived_processes_renew() {
    let store = Odd::start(DAY);
    let index = Arc::new(MemIndex::default());
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::start());
    let settings = r#""epochs":3,"epochDurationSeconds":86400,"renewIntervalSeconds":3600,"#;
    let ds = open(&index, &store, Arc::clone(&clock), settings);
    ds.commit(blocks(3)).await.unwrap();
    ds.close().await.unwrap();
    for _ in 0..12 * 24 {
        let ds = open(&index, &store, Arc::clone(&clock), settings);
        tokio::time::sleep(Duration::from_secs(300)).await;
        ds.close().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3300)).await;
    }
    let ds = open(&index, &store, clock, settings);
    assert!(is_there(&ds, 1).await);
    assert!(store.stores() <= 12, "{} stores", store.stores());
    ds.close().await.unwrap();
}

/// A clock that is a year ahead while blocks are stored, and right again afterwards.
#[tokio::test(start_paused = true)]
async fn blocks_stored_under_a_clock_that_is_ahead_are_renewed() {
    // After a restart, another store may have told the epoch under the right clock, or none has, or
    // no node has kept notes.
    for (restart, told, noted, ahead) in [
        (false, false, true, 365 * DAY),
        (true, true, true, 365 * DAY),
        (true, false, true, 365 * DAY),
        (true, false, false, 365 * DAY),
        (false, false, true, 5 * EPOCH),
        (true, false, true, 5 * EPOCH),
    ] {
        let store = Odd::start(EPOCH);
        let index = Arc::new(MemIndex::default());
        let clock = Ahead::start(ahead);
        let mut ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
        ds.commit(blocks(3)).await.unwrap();
        clock.by.store(0, SeqCst);
        if restart {
            if told {
                ds.put("/later", noise(77, 10)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
            ds.close().await.unwrap();
            if !noted {
                index.notes.lock().clear();
                index.epochs.lock().clear();
            }
            ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
        }
        tokio::time::sleep(20 * EPOCH).await;
        assert!(
            is_there(&ds, 1).await,
            "restart {restart}, told {told}, noted {noted}, {ahead:?} ahead"
        );
        // Renewed as often as under a right clock, and not at every round.
        assert!(store.stores() < 50, "{} stores", store.stores());
        ds.close().await.unwrap();
    }
}

/// Blobs whose `expires_at` is not true are found by their end epochs, also while the plan fails.
#[tokio::test(start_paused = true)]
async fn what_ends_soon_is_renewed_while_the_plan_fails() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    index.fail_counts.store(true, SeqCst);
    // Several blobs: the first one is stored again to learn the epoch.
    let extra = format!(r#""packTargetSizeBytes":1,{RENEWING}"#);
    let ds = open(&index, &store, Ahead::start(Duration::ZERO), &extra);
    ds.commit(blocks(8)).await.unwrap();
    for row in index.rows.lock().values_mut() {
        row.expires_at = Some(SystemTime::now() + 365 * DAY);
    }
    tokio::time::sleep(20 * EPOCH).await;
    for n in 0..8 {
        assert!(is_there(&ds, n).await, "{n}");
    }
    ds.close().await.unwrap();
}

/// A clock that goes a year ahead makes no blob due: the first one tells the epoch, whether the
/// publisher stores it anew or answers that it is held for as long as asked.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_a_year_ahead_lets_little_be_paid() {
    for later in [Duration::ZERO, EPOCH + EPOCH / 2] {
        let store = Odd::start(EPOCH);
        let index = Arc::new(MemIndex::default());
        let clock = Ahead::start(Duration::ZERO);
        let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
        let count = 40;
        for op in blocks(count) {
            ds.commit(vec![op]).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        ds.close().await.unwrap();
        tokio::time::sleep(later).await;
        let before = store.stores();
        assert_eq!(before as u64, count);
        clock.by.store((365 * DAY).as_secs(), SeqCst);
        let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
        tokio::time::sleep(Duration::from_secs(300)).await;
        let paid = store.stores() - before;
        assert!(paid <= 4, "{paid} stores, {later:?} later");
        // All are renewed in time all the same.
        tokio::time::sleep(20 * EPOCH).await;
        for n in 0..count {
            assert!(is_there(&ds, n).await, "{n}, {later:?} later");
        }
        ds.close().await.unwrap();
    }
}

/// Rows without `expires_at`, from the time when the length of an epoch was not set.
#[tokio::test]
async fn rows_without_an_estimate_are_found_by_their_end_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(SqliteOptions::new(dir.path().join("i"), "t"))
        .await
        .unwrap();
    let row = |key: &str, blob: &str, end_epoch, expires_at| {
        KeyRecord::new(
            key,
            Record::new(blob, 0, 1)
                .with_end_epoch(end_epoch)
                .with_expires_at(expires_at),
        )
    };
    let later = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9_000_000_000));
    index
        .put_many(&[
            row("/1", "a", 8, None),
            row("/2", "b", 7, later),
            row("/3", "c", 9, later),
            row("/4", "d", 0, None),
        ])
        .await
        .unwrap();
    let found = |epoch, after: Option<RenewItem>, limit| {
        let index = &index;
        async move {
            let found = index.ending_by(epoch, after.as_ref(), limit).await;
            let found = found.unwrap().into_iter();
            found.map(|item| item.blob_id).collect::<Vec<_>>()
        }
    };
    assert_eq!(found(8, None, 10).await, ["b", "a"]);
    assert_eq!(found(9, None, 2).await, ["b", "a"]);
    let last = index.ending_by(9, None, 2).await.unwrap().pop();
    assert_eq!(found(9, last, 2).await, ["c"]);
    index.close().await.unwrap();
}

/// One answer that names an absurd epoch neither renews everything nor stores everything anew.
#[tokio::test(start_paused = true)]
async fn an_absurd_epoch_costs_little() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    let settings = r#""epochs":20,"epochDurationSeconds":1000,"renewIntervalSeconds":10,"#;
    let ds = open(&index, &store, Arc::new(TokioClock::start()), settings);
    for n in 0..20 {
        ds.put(&key_of(&noise(n, 1000)), noise(n, 1000))
            .await
            .unwrap();
    }
    store.claim.store(1 << 40, SeqCst);
    ds.put("/odd", noise(99, 10)).await.unwrap();
    ds.commit(blocks(20)).await.unwrap();
    assert_eq!(store.stores(), 21, "nothing is over");
    tokio::time::sleep(5 * EPOCH).await;
    assert!(store.stores() <= 23, "{} stores", store.stores());
    ds.close().await.unwrap();
}

async fn sqlite(path: &Path) -> SqliteIndex {
    let options = SqliteOptions::new(path, "t");
    SqliteIndex::open(options).await.unwrap()
}

/// A lease that was taken while the clock was years ahead.
#[tokio::test]
async fn a_lease_from_the_far_future_has_lapsed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let index = sqlite(&path).await;
    let ttl = Duration::from_secs(300);
    assert!(index.try_lease("renewal", "a", ttl).await.unwrap());
    assert!(!index.try_lease("renewal", "b", ttl).await.unwrap());
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute(
        "UPDATE t_leases SET expires_at = expires_at + 5 * 365 * 86400 * 1000000",
        [],
    )
    .unwrap();
    assert!(index.try_lease("renewal", "b", ttl).await.unwrap());
    assert!(!index.try_lease("renewal", "a", ttl).await.unwrap());
    // No lease is given for longer than a lease may run.
    assert!(index.try_lease("long", "a", Duration::MAX).await.unwrap());
    assert!(!index.try_lease("long", "b", ttl).await.unwrap());
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_from_the_far_future_has_lapsed_on_postgres() {
    use testkit::postgres::Postgres;
    use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
    let server = Postgres::shared();
    let database = server.database();
    let options = PostgresOptions::new(server.url(&database), "t");
    let index = PostgresIndex::open(options).await.unwrap();
    let ttl = Duration::from_secs(300);
    assert!(index.try_lease("renewal", "a", ttl).await.unwrap());
    assert!(!index.try_lease("renewal", "b", ttl).await.unwrap());
    let later = "UPDATE t_leases SET expires_at = expires_at + interval '5 years'";
    server.execute(&database, later);
    assert!(index.try_lease("renewal", "b", ttl).await.unwrap());
    assert!(!index.try_lease("renewal", "a", ttl).await.unwrap());
    // Notes, and blobs by their end epochs.
    assert_eq!(index.note("n").await.unwrap(), None);
    for text in ["one", "two"] {
        index.set_note("n", Some(text)).await.unwrap();
        assert_eq!(index.note("n").await.unwrap().as_deref(), Some(text));
    }
    index.set_note("n", None).await.unwrap();
    assert_eq!(index.note("n").await.unwrap(), None);
    let row = |key: &str, blob: &str, end_epoch| {
        KeyRecord::new(key, Record::new(blob, 0, 1).with_end_epoch(end_epoch))
    };
    let rows = [
        row("/1", "a", 7),
        row("/2", "b", 8),
        row("/3", "c", 9),
        row("/4", "d", 0),
    ];
    index.put_many(&rows).await.unwrap();
    let first = index.ending_by(8, None, 1).await.unwrap();
    assert_eq!(first[0].blob_id, "a");
    let rest = index.ending_by(8, first.first(), 9).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!((rest[0].blob_id.as_str(), rest[0].end_epoch), ("b", 8));
    index.close().await.unwrap();
}

#[tokio::test]
async fn notes_are_kept_across_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let index = sqlite(&path).await;
    assert_eq!(index.note("n").await.unwrap(), None);
    index.set_note("n", Some("one")).await.unwrap();
    index.set_note("n", Some("two")).await.unwrap();
    index.close().await.unwrap();
    let index = sqlite(&path).await;
    assert_eq!(index.note("n").await.unwrap().as_deref(), Some("two"));
    index.set_note("n", None).await.unwrap();
    assert_eq!(index.note("n").await.unwrap(), None);
    index.close().await.unwrap();
}

/// Without the length of an epoch, a 404 is the only sign that a blob has lapsed: the same block is
/// stored anew when it is put.
#[tokio::test]
async fn a_block_that_a_read_has_missed_is_stored_anew() {
    for journal in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let journal = match journal {
            true => format!(
                r#""journalPath":"{}","packIdleFlushSeconds":1,"#,
                dir.path().join("j").display()
            ),
            false => String::new(),
        };
        let store = Odd::start(EPOCH);
        let index = Arc::new(MemIndex::default());
        let settings = format!(r#""epochs":1,{journal}"#);
        let ds = open(&index, &store, Arc::new(TokioClock::start()), &settings);
        let stored = |count| {
            let store = Arc::clone(&store);
            testkit::eventually("a store", move || store.stores() == count)
        };
        ds.commit(blocks(1)).await.unwrap();
        stored(1).await;
        while !index.rows.lock().contains_key(&key_of(&noise(0, 1000))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Time jumps while no call is under way. A jump while the journal waits for its disk could
        // be longer than a 404 is remembered.
        tokio::time::pause();
        tokio::time::sleep(3 * EPOCH).await;
        tokio::time::resume();
        assert!(!is_there(&ds, 0).await);
        ds.commit(blocks(1)).await.unwrap();
        stored(2).await;
        assert!(is_there(&ds, 0).await);
        ds.commit(blocks(1)).await.unwrap();
        ds.close().await.unwrap();
        assert_eq!(store.stores(), 2, "known again");
    }
}

/// A stored pack that no aggregator knows is looked for at growing intervals before it is paid for
/// again.
#[tokio::test(start_paused = true)]
async fn a_pack_that_cannot_be_read_back_is_not_paid_for_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let settings = format!(
        r#""epochs":5,"deletable":true,"journalPath":"{}","packIdleFlushSeconds":1,"drainTimeoutSeconds":0,"#,
        dir.path().join("j").display()
    );
    let store = Odd::start(DAY);
    store.missing.store(true, SeqCst);
    let index = Arc::new(MemIndex::default());
    let ds = open(&index, &store, Arc::new(TokioClock::start()), &settings);
    ds.commit(blocks(3)).await.unwrap();
    tokio::time::sleep(2 * DAY).await;
    let paid = store.stores();
    assert!((2..=12).contains(&paid), "paid {paid} times in 48 h");
    assert!(
        errors(&ds).iter().any(|e| e.contains("stored again")),
        "an operator is told"
    );
    assert!(is_there(&ds, 1).await, "the journal keeps it");
    ds.close().await.unwrap();
}

/// A blob that this client stored, and that has lapsed: a read does not wait for an aggregator to
/// catch up.
#[tokio::test]
async fn reads_of_own_blobs_that_lapsed_do_not_wait() {
    let options = walrus_devnet::Options {
        cheap_ids: true,
        ..Default::default()
    };
    let net = tokio::task::spawn_blocking(|| walrus_devnet::Devnet::start_blocking(options))
        .await
        .unwrap()
        .unwrap();
    let client = |wait: Duration| {
        Client::new(
            ClientConfig::default()
                .with_publishers(vec![net.url()])
                .with_aggregators(vec![net.url()])
                .with_not_found_backoff(vec![wait]),
        )
        .unwrap()
    };
    let once = StoreOptions::new(1);
    // It was read once, so the aggregator had caught up.
    let patient = client(Duration::from_secs(3600));
    let read = patient.store(&b"read before"[..], once).await.unwrap();
    patient.read_range(&read.blob_id, 0, 4).await.unwrap();
    net.advance_epoch(2);
    let gone = tokio::time::timeout(testkit::PATIENCE, patient.read_range(&read.blob_id, 0, 5));
    let gone = gone.await.expect("a read waits").unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::BlobNotFound);
    // It was not: the first read waits, later ones do not.
    let client = client(Duration::from_millis(1));
    let unread = client.store(&b"never read"[..], once).await.unwrap();
    net.advance_epoch(2);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let before = client.stats().not_found;
        let gone = client.read_range(&unread.blob_id, 0, 5).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::BlobNotFound);
        asked.push((client.stats().not_found - before, gone.is_retryable()));
    }
    assert!(asked[0].1, "an aggregator may lag: {asked:?}");
    assert!(!asked[1].1 && !asked[2].1, "it has lapsed: {asked:?}");
}

/// Blobs that lapsed long ago give no epoch, however many of them come first: those behind them are
/// renewed all the same.
#[tokio::test(start_paused = true)]
async fn dead_blobs_do_not_keep_the_epoch_from_being_learnt() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    let clock = Ahead::start(365 * DAY);
    let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
    ds.commit(blocks(3)).await.unwrap();
    ds.close().await.unwrap();
    clock.by.store(0, SeqCst);
    index.notes.lock().clear();
    let live = index.rows.lock().values().next().unwrap().clone();
    let dead = (0..12).map(|n| {
        let mut row = live.clone();
        // Before every ID in hexadecimal digits.
        row.blob_id = format!(" dead {n:02}");
        KeyRecord::new(key_of(&noise(1000 + n, 10)), row)
    });
    index.put_many(&dead.collect::<Vec<_>>()).await.unwrap();
    let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
    tokio::time::sleep(20 * EPOCH).await;
    assert!(is_there(&ds, 1).await, "the live blob has lapsed");
    ds.close().await.unwrap();
}

/// Blobs that could be paid for are stored to learn the epoch few at a time.
#[tokio::test(start_paused = true)]
async fn few_blobs_are_tried_at_a_time_to_learn_the_epoch() {
    let store = Odd::start(EPOCH);
    let index = Arc::new(MemIndex::default());
    let clock = Ahead::start(365 * DAY);
    let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
    for n in 0..10 {
        let value = noise(n, 100);
        ds.put(&key_of(&value), value).await.unwrap();
    }
    ds.close().await.unwrap();
    clock.by.store(0, SeqCst);
    index.notes.lock().clear();
    store.refuse.store(true, SeqCst);
    let before = store.stores();
    let ds = open(&index, &store, Arc::<Ahead>::clone(&clock), RENEWING);
    // One round.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(store.stores() - before, 3);
    ds.close().await.unwrap();
}

/// A datastore that has a deletable blob of one block, of which the storage ends soon. The index
/// goes wrong as planned, and stores take 250 s from now on.
async fn due_and_slow(parts: &Parts, faults: &Arc<Faults>) -> WalrusDatastore {
    let config = Config::from_json(
        r#"{"deletable":true,"epochs":5,"epochDurationSeconds":1209600,"renewIntervalSeconds":60,
            "publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}"#,
    )
    .unwrap();
    let index = FaultyIndex::new(
        Arc::clone(&parts.index),
        Arc::clone(faults),
        Arc::<Fuse>::default(),
    );
    let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
    let ds = WalrusDatastore::with_parts(&config, Arc::new(index), store, clock).unwrap();
    ds.commit(blocks(1)).await.unwrap();
    // A round has passed, in which no blob was due.
    tokio::time::sleep(Duration::from_secs(30)).await;
    parts.clock.advance(14 * DAY * 9 / 2);
    parts.store.put_ms.store(250_000, SeqCst);
    ds
}

fn renewals(ds: &WalrusDatastore) -> u64 {
    metric(ds, "renewals")
}

/// The index fails once while a blob travels, and the lease lasts for minutes yet: the upload in
/// progress is not given up.
#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_prolonged_at_once_is_held_all_the_same() {
    let parts = Parts::default();
    let faults = Arc::new(Faults::none());
    let ds = due_and_slow(&parts, &faults).await;
    // The round takes its turn and the lease, which the plan and the blob's renewal prolong, and
    // its upload, twice.
    faults.plan(Call::Lease, 5, Fault::Before);
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(renewals(&ds), 1, "{:?}", errors(&ds));
    let stores = parts.store.puts.load(SeqCst);
    assert_eq!(stores, 2, "the put, and one renewal");
    ds.close().await.unwrap();
}

/// The index fails when the renewal is to be recorded: it is recorded later, and not paid for
/// again.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_could_not_be_noted_is_not_paid_for_again() {
    let parts = Parts::default();
    let faults = Arc::new(Faults::none());
    let ds = due_and_slow(&parts, &faults).await;
    let before = parts.index.rows.lock().values().next().unwrap().expires_at;
    // The index calls: the due blobs, the blob's note, its rows, and then the record of the
    // renewal.
    faults.plan(Call::Renewal, 4, Fault::Before);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(faults.struck().len(), 1);
    let after = parts.index.rows.lock().values().next().unwrap().expires_at;
    assert!(after > before, "{:?}", errors(&ds));
    let stores = parts.store.puts.load(SeqCst);
    assert_eq!(stores, 2, "the put, and one renewal");
    ds.close().await.unwrap();
}
