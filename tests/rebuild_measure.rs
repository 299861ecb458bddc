//! Numbers on rebuilding an index of a million blocks, and the proof that it equals the lost one:
//! `cargo test --release --test rebuild_measure -- --ignored --nocapture`.
//!
//! The blobs are files of 255 blocks of 256 KiB (64 MiB), which a store makes up as they are read:
//! their headers and indexes, that is, since no byte of a block is read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use testkit::mem::ManualClock;
use testkit::postgres::Postgres;
use walrusds::clock::EpochClock;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::rebuild::{rebuild, List, Options, Parts};
use walrusds::walrus::Check;
use walrusds::{
    Blob, BlobStore, Body, Error, ErrorKind, Fetched, Index, Result, StoreOptions, StoreResult,
    Usage,
};

const BLOCK: u64 = 256 << 10;
const PER_BLOB: u64 = 255;
/// A varint of three bytes, and a CIDv1 of a SHA-256.
const SECTION_HEAD: u64 = 3 + 36;
const SECTION: u64 = SECTION_HEAD + BLOCK;
const DATA_AT: u64 = 51;
const DATA_HEADER: &[u8] = b"\x11\xa2\x65roots\x80\x67version\x01";

fn blob_id(n: u64) -> String {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn number_of(id: &str) -> u64 {
    let bytes = URL_SAFE_NO_PAD.decode(id).unwrap();
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

fn digest(blob: u64, block: u64) -> [u8; 32] {
    Sha256::digest([blob.to_be_bytes(), block.to_be_bytes()].concat()).into()
}

fn key(digest: &[u8; 32]) -> String {
    let hash = [&[0x12, 0x20], &digest[..]].concat();
    format!("/{}", data_encoding::BASE32_NOPAD.encode(&hash))
}

/// Makes up the files of `blocks` blocks.
struct MadeUp {
    blocks: u64,
    reads: AtomicU64,
}

impl MadeUp {
    fn in_blob(&self, n: u64) -> u64 {
        PER_BLOB.min(self.blocks - n * PER_BLOB)
    }

    fn head(&self, n: u64) -> Vec<u8> {
        let data = DATA_HEADER.len() as u64 + self.in_blob(n) * SECTION;
        let mut head = b"\x0a\xa1\x67version\x02\x80".to_vec();
        head.resize(27, 0);
        for number in [DATA_AT, data, DATA_AT + data] {
            head.extend(number.to_le_bytes());
        }
        head.extend(DATA_HEADER);
        head
    }

    fn index(&self, n: u64) -> Vec<u8> {
        let blocks = 0..self.in_blob(n);
        let mut entries: Vec<_> = blocks
            .map(|block| (digest(n, block), DATA_HEADER.len() as u64 + block * SECTION))
            .collect();
        entries.sort_unstable();
        let mut index = b"\x81\x08\x01\0\0\0".to_vec();
        index.extend(0x12_u64.to_le_bytes());
        index.extend(1_u32.to_le_bytes());
        index.extend(40_u32.to_le_bytes());
        index.extend((40 * entries.len() as u64).to_le_bytes());
        for (digest, at) in entries {
            index.extend(digest);
            index.extend(at.to_le_bytes());
        }
        index
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "not in this test"))
}

#[async_trait]
impl BlobStore for MadeUp {
    async fn store(&self, _: Body, _: StoreOptions) -> Result<StoreResult> {
        not_here()
    }

    async fn read(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        not_here()
    }

    async fn read_range(&self, _: &str, _: u64, _: u64, _: Check<'_>) -> Result<Bytes> {
        not_here()
    }

    async fn read_block(
        &self,
        id: &str,
        offset: u64,
        len: u64,
        _: u64,
        check: Check<'_>,
    ) -> Result<Fetched> {
        self.reads.fetch_add(1, Relaxed);
        let n = number_of(id);
        let index = self.index(n);
        let index_at = DATA_AT + DATA_HEADER.len() as u64 + self.in_blob(n) * SECTION;
        let bytes = match offset {
            0 => self.head(n),
            at => index[(at - index_at) as usize..].to_vec(),
        };
        assert_eq!(bytes.len() as u64, len);
        check(&bytes).unwrap();
        let mut fetched = Fetched::from(Bytes::from(bytes));
        fetched.total = Some(index_at + index.len() as u64);
        Ok(fetched)
    }

    async fn read_patch(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        not_here()
    }
}

/// Every row is that of the index that was lost.
async fn assert_equal(index: &dyn Index, store: &MadeUp, blobs: u64) {
    for n in 0..blobs {
        let mut rows = index.rows_of_blob(&blob_id(n)).await.unwrap();
        rows.sort_by_key(|row| row.record.offset);
        assert_eq!(rows.len() as u64, store.in_blob(n), "blob {n}");
        for (block, row) in (0..).zip(&rows) {
            let offset = DATA_AT + DATA_HEADER.len() as u64 + block * SECTION + SECTION_HEAD;
            assert_eq!(row.key, key(&digest(n, block)));
            let place = (row.record.offset as u64, row.record.size as u64);
            assert_eq!(place, (offset, BLOCK));
            assert_eq!(row.record.end_epoch, 40);
        }
    }
    let usage = Usage::new(store.blocks as i64, (store.blocks * BLOCK) as i64);
    assert_eq!(index.usage().await.unwrap(), usage);
}

async fn measure(name: &str, index: Arc<dyn Index>, blocks: u64) -> f64 {
    let store = Arc::new(MadeUp {
        blocks,
        reads: AtomicU64::new(0),
    });
    let blobs = blocks.div_ceil(PER_BLOB);
    let list = List::new((0..blobs).map(|n| {
        let mut blob = Blob::default();
        blob.blob_id = blob_id(n);
        blob.end_epoch = 40;
        blob
    }));
    let parts = Parts {
        index: Arc::clone(&index),
        store: Arc::clone(&store) as Arc<dyn BlobStore>,
        clock: Arc::new(ManualClock::default()),
        epochs: Arc::new(EpochClock::new(Duration::ZERO)),
    };
    let begun = Instant::now();
    let list = list.unwrap();
    let report = rebuild(&parts, &list, &Options::default(), &mut |_| {}).await;
    let seconds = begun.elapsed().as_secs_f64();
    let report = report.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.added.blocks as u64, blocks);
    assert_eq!(store.reads.load(Relaxed), 2 * blobs, "two reads per blob");
    assert_equal(&*index, &store, blobs).await;
    let rate = blocks as f64 / seconds;
    println!("{name}: {blocks} rows of {blobs} blobs in {seconds:.1} s: {rate:.0} rows/s");
    index.close().await.unwrap();
    rate
}

async fn sqlite(dir: &std::path::Path) -> Arc<dyn Index> {
    let options = SqliteOptions::new(dir.join("index.sqlite"), "walrus_index");
    Arc::new(SqliteIndex::open(options).await.unwrap())
}

async fn postgres(server: &Postgres) -> Arc<dyn Index> {
    let url = server.url(&server.database());
    let options = PostgresOptions::new(&url, "walrus_index");
    Arc::new(PostgresIndex::open(options).await.unwrap())
}

/// The same with few blocks, so that it stays right.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_index_equals_the_lost_one() {
    let dir = tempfile::tempdir().unwrap();
    measure("SQLite", sqlite(dir.path()).await, 30_000).await;
    measure("PostgreSQL", postgres(Postgres::shared()).await, 30_000).await;
}

/// Each row reaches the disk, as in production.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn rows_per_second_of_a_million_blocks() {
    const GOAL: f64 = 50_000.0;
    let dir = tempfile::tempdir().unwrap();
    let sqlite = measure("SQLite", sqlite(dir.path()).await, 1_000_000).await;
    let server = Postgres::start_with(&["fsync=on", "full_page_writes=on", "max_wal_size=4GB"]);
    let postgres = measure("PostgreSQL", postgres(&server).await, 1_000_000).await;
    assert!(
        sqlite >= GOAL && postgres >= GOAL,
        "{sqlite:.0}, {postgres:.0} rows/s"
    );
}
