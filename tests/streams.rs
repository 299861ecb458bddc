//! The bytes that are fetched for readers at random, which read a few blocks here and there.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use testkit::mem::ManualClock;
use walrusds::walrus::Check;
use walrusds::{
    BlobStore, Body, Config, Error, ErrorKind, Fetched, Index, KeyRange, KeyRecord, Leases,
    ListItem, Notes, Record, RenewItem, Renewal, Result, StoreOptions, StoreResult, Totals, Usage,
    WalrusDatastore,
};

/// Gives zeroes and counts.
struct Zeroes {
    bytes: AtomicU64,
    asked: AtomicU64,
    zeroes: Bytes,
    /// How long each answer takes.
    latency: Duration,
}

impl Zeroes {
    async fn wait(&self) {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
    }

    fn part(&self, len: u64) -> Result<Bytes> {
        self.bytes.fetch_add(len, SeqCst);
        self.asked.fetch_add(1, SeqCst);
        Ok(self.zeroes.slice(..len as usize))
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "not in this test"))
}

#[async_trait]
impl BlobStore for Zeroes {
    async fn store(&self, _: Body, _: StoreOptions) -> Result<StoreResult> {
        not_here()
    }
    async fn read(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        not_here()
    }
    async fn read_range(&self, _: &str, _: u64, len: u64, _: Check<'_>) -> Result<Bytes> {
        self.wait().await;
        self.part(len)
    }
    async fn read_window(&self, _: &str, _: u64, len: u64, _: u64) -> Result<Fetched> {
        self.wait().await;
        self.part(len).map(Fetched::from)
    }
    async fn read_patch(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        not_here()
    }
}

/// The rows of the blobs, which are too many to be kept in a map and looked through.
#[derive(Clone, Copy)]
struct Rows {
    block: u64,
    /// What a format puts before each block, and before all of them (bytes).
    frame: u64,
    head: u64,
    /// The bytes of a blob.
    len: u64,
}

impl Rows {
    fn concat(block: u64) -> Rows {
        Rows {
            block,
            frame: 0,
            head: 0,
            len: BLOB,
        }
    }

    fn car(block: u64) -> Rows {
        Rows {
            block,
            frame: 39,
            head: 69,
            len: BLOB,
        }
    }

    fn offset(&self, n: u64) -> u64 {
        self.head + n * (self.frame + self.block) + self.frame
    }

    fn row(&self, blob: u64, n: u64) -> Record {
        Record::new(
            format!("{blob:043}"),
            self.offset(n) as i64,
            self.block as i64,
        )
    }
}

#[async_trait]
impl walrusds::Rows for Rows {
    async fn put_many(&self, _: &[KeyRecord]) -> Result<()> {
        not_here()
    }

    async fn move_rows(&self, _: &str, _: &[KeyRecord]) -> Result<u64> {
        not_here()
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        let mut parts = key[2..].split('/').map(|part| part.parse().unwrap());
        Ok(Some(self.row(parts.next().unwrap(), parts.next().unwrap())))
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        let mut rows = Vec::new();
        for key in keys {
            rows.push(self.get(key).await?);
        }
        Ok(rows)
    }

    async fn staged_value(&self, _: &str) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn delete(&self, _: &str) -> Result<Usage> {
        not_here()
    }

    async fn delete_many(&self, _: &[String]) -> Result<Usage> {
        not_here()
    }

    async fn list(&self, _: &KeyRange, _: usize, _: usize) -> Result<Vec<ListItem>> {
        not_here()
    }

    async fn due_for_renewal(
        &self,
        _: SystemTime,
        _: Option<&RenewItem>,
        _: usize,
    ) -> Result<Vec<RenewItem>> {
        not_here()
    }

    async fn rows_of_blob(&self, _: &str) -> Result<Vec<KeyRecord>> {
        not_here()
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let blob = blob_id.parse().unwrap();
        let before = from.saturating_sub(self.head + self.frame);
        let all = before.div_ceil(self.frame + self.block)..self.len / self.block;
        let rows = all
            .take(limit)
            .map(|n| KeyRecord::new(key(blob, n), self.row(blob, n)));
        Ok(rows.collect())
    }

    async fn update_blob_after_renewal(&self, _: &str, _: &Renewal) -> Result<u64> {
        not_here()
    }
}

#[async_trait]
impl walrusds::Deleted for Rows {}

#[async_trait]
impl Leases for Rows {
    async fn try_lease(&self, _: &str, _: &str, _: Duration) -> Result<bool> {
        Ok(false)
    }

    async fn release_lease(&self, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Totals for Rows {
    async fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }

    async fn add_usage(&self, _: Usage) -> Result<()> {
        Ok(())
    }
}

impl walrusds::Ledger for Rows {}

impl Notes for Rows {}

#[async_trait]
impl Index for Rows {
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

const BLOBS: u64 = 16;
const BLOB: u64 = 64 << 20;

fn key(blob: u64, n: u64) -> String {
    format!("/b{blob:02}/{n:06}")
}

/// Blobs of 64 MiB, full of blocks of the same size.
struct Blobs {
    store: Arc<Zeroes>,
    ds: WalrusDatastore,
    block: u64,
    random: u64,
    rows: Rows,
}

impl Blobs {
    fn new(block: u64) -> Blobs {
        Self::of(Rows::concat(block))
    }

    fn of(rows: Rows) -> Blobs {
        Self::slow(rows, Duration::ZERO)
    }

    /// Of a store that takes so long for each answer.
    fn slow(rows: Rows, latency: Duration) -> Blobs {
        let (index, block) = (Arc::new(rows), rows.block);
        let store = Arc::new(Zeroes {
            bytes: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            zeroes: vec![0; 2 * BLOB as usize].into(),
            latency,
        });
        let config = r#"{"verifyReads":false,"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}"#;
        let config = Config::from_json(config).unwrap();
        let clock = Arc::new(ManualClock::default());
        let ds = WalrusDatastore::with_parts(&config, index, store.clone(), clock).unwrap();
        let random = 7;
        Blobs {
            store,
            ds,
            block,
            random,
            rows,
        }
    }

    /// Reads as Kubo does: ten blocks at a time, a second batch before the first one has ended, in
    /// no order within them.
    async fn read_in_batches(&mut self, blob: u64, blocks: u64) {
        let mut waiting: Vec<u64> = Vec::new();
        for n in 0..blocks {
            waiting.push(n);
            if waiting.len() >= 20 {
                let at = self.random(10) as usize;
                self.read(blob, waiting.swap_remove(at), 1).await;
            }
        }
        for n in waiting {
            self.read(blob, n, 1).await;
        }
        self.all_landed().await;
    }

    fn cost(&self) -> (u64, u64) {
        let asked = self.store.asked.load(SeqCst);
        (asked, self.store.bytes.load(SeqCst))
    }

    async fn read(&self, blob: u64, from: u64, blocks: u64) {
        for n in from..from + blocks {
            let value = self.ds.get(&key(blob, n)).await.unwrap().unwrap();
            assert_eq!(value.len() as u64, self.block);
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        let next = self.random.wrapping_mul(6364136223846793005);
        self.random = next.wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    /// The bytes fetched for so many files at random, as a multiple of the bytes that they hold.
    async fn at_random(&mut self, files: u64, blocks: u64) -> f64 {
        self.all_landed().await;
        let before = self.store.bytes.load(SeqCst);
        for _ in 0..files {
            let blob = self.random(BLOBS);
            let from = self.random(BLOB / self.block - blocks);
            self.read(blob, from, blocks).await;
        }
        self.all_landed().await;
        let fetched = self.store.bytes.load(SeqCst) - before;
        fetched as f64 / (files * blocks * self.block) as f64
    }

    /// A part fetched ahead counts once it is read; the store answers at once, on this thread.
    async fn all_landed(&self) {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn small_files_at_random_cost_at_most_four_times_what_they_hold() {
    for block in [4 << 10, 32 << 10, 256 << 10] {
        for blocks in [1, 2, 3, 4, 6, 8, 16, 40] {
            // 256 KiB blocks of many files are a good part of all blocks.
            let files = if block < 256 << 10 { 1000 } else { 100 };
            let times = Blobs::new(block).at_random(files, blocks).await;
            assert!(
                times <= 4.2,
                "files of {blocks} blocks of {block}: {times:.1} times"
            );
        }
    }
}

#[tokio::test]
async fn a_scan_is_no_reason_to_fetch_more_for_readers_at_random() {
    // The first block to read, and the number of blocks.
    for (from, scanned) in [
        (8192, 256),
        (0, 256),
        (0, 16384),
        (12000, 4384),
        (4096, 8192),
    ] {
        for blocks in [1, 2] {
            let mut blobs = Blobs::new(4096);
            for blob in 0..BLOBS {
                blobs.read(blob, from, scanned).await;
            }
            let times = blobs.at_random(1000, blocks).await;
            assert!(
                times <= 4.5,
                "{blocks} blocks, after {scanned} from {from} on: {times:.1} times"
            );
        }
    }
}

#[tokio::test]
async fn a_scan_is_fetched_once_and_in_few_requests() {
    let blobs = Blobs::new(4096);
    blobs.read(3, 0, BLOB / 4096).await;
    blobs.all_landed().await;
    assert_eq!(blobs.store.bytes.load(SeqCst), BLOB);
    let asked = blobs.store.asked.load(SeqCst);
    assert!(asked <= 40, "{asked} requests for a blob");
}

/// What a format puts between blocks costs no requests, and not a byte in a thousand.
#[tokio::test]
async fn framing_between_blocks_costs_nothing() {
    let same = |what: &str, concat: (u64, u64), car: (u64, u64)| {
        assert!(
            car.0 <= concat.0,
            "{what}: {} instead of {}",
            car.0,
            concat.0
        );
        assert!(
            car.1 <= concat.1 + concat.1 / 1000,
            "{what}: {} instead of {} bytes",
            car.1,
            concat.1
        );
    };
    let block = 256 << 10;
    let both = || [Rows::concat(block), Rows::car(block)].map(Blobs::of);
    let costs = |[concat, car]: &[Blobs; 2]| (concat.cost(), car.cost());

    let mut blobs = both();
    for blobs in &mut blobs {
        blobs.read(3, 0, BLOB / block).await;
        blobs.all_landed().await;
    }
    let (concat, car) = costs(&blobs);
    same("a file from its beginning to its end", concat, car);
    let held = blobs[1].rows.offset(BLOB / block) - blobs[1].rows.offset(0) - 39;
    assert!(car.1 <= held, "no byte twice, and none of the index");

    let mut blobs = both();
    for blobs in &mut blobs {
        blobs.read_in_batches(3, BLOB / block).await;
    }
    let (concat, car) = costs(&blobs);
    same("batches", concat, car);

    let mut blobs = both();
    for blobs in &mut blobs {
        // A window ends where another reader has begun.
        for from in [200, 100, 40, 0] {
            blobs.read(5, from, 30).await;
        }
        blobs.all_landed().await;
        blobs.read(5, 0, BLOB / block).await;
        blobs.all_landed().await;
    }
    let (concat, car) = costs(&blobs);
    same("several readers of one blob", concat, car);

    let mut blobs = both();
    for blobs in &mut blobs {
        blobs.at_random(200, 3).await;
    }
    let (concat, car) = costs(&blobs);
    same("small files at random", concat, car);
}

/// By the clock of the test, which stands still while anything is computed: what the windows allow
/// on a network that takes 150 ms for an answer and no time for its bytes.
#[tokio::test(start_paused = true)]
async fn the_rate_of_a_file_is_what_may_be_ahead_of_its_reader_in_each_answers_time() {
    let (block, latency) = (256 << 10, Duration::from_millis(150));
    let mut rows = Rows::concat(block);
    rows.len = 1 << 30;
    let blobs = Blobs::slow(rows, latency);
    let began = tokio::time::Instant::now();
    let mut first = None;
    let reads = (0..rows.len / block).map(|n| blobs.read(0, n, 1));
    let mut reads = stream::iter(reads).buffered(20);
    let mut read = 0;
    while reads.next().await.is_some() {
        read += block;
        if read >= 64 << 20 {
            first.get_or_insert_with(|| began.elapsed());
        }
    }
    let took = began.elapsed();
    let rate = |bytes: u64, time: Duration| (bytes >> 20) as f64 / time.as_secs_f64();
    let first = first.unwrap();
    let later = rate(rows.len - (64 << 20), took - first);
    let all = rate(rows.len, took);
    let (asked, _) = blobs.cost();
    println!("64 MiB in {first:?}, then {later:.0} MiB/s; {all:.0} MiB/s in all, {asked} requests");
    assert!(later >= 520.0, "{later}");
    assert!(all >= 470.0, "{all}");
}

/// 64 clients of a gateway, by the same clock: small files of a pack at random.
#[tokio::test(start_paused = true)]
async fn random_reads_of_a_blob_wait_less_and_less() {
    let (block, latency) = (4 << 10, Duration::from_millis(150));
    let mut rows = Rows::car(block);
    rows.len = 40 << 20;
    let mut blobs = Blobs::slow(rows, latency);
    let (files, count) = (rows.len / block, 8000);
    let picks: Vec<u64> = (0..count).map(|_| blobs.random(files)).collect();
    let began = tokio::time::Instant::now();
    let reads = picks.iter().map(|&n| blobs.read(0, n, 1));
    let mut reads = stream::iter(reads).buffer_unordered(64);
    while reads.next().await.is_some() {}
    let rate = count as f64 / began.elapsed().as_secs_f64();
    let (asked, bytes) = blobs.cost();
    let times = bytes as f64 / (count * block) as f64;
    println!("{rate:.0}/s, {asked} requests, fetched/wanted {times:.2}");
    // 64 in 150 ms are 427 in a second.
    assert!(rate >= 1500.0, "{rate:.0} a second");
    assert!(times <= 4.0, "{times:.2}");
}
