use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;

use super::*;
use crate::error::Error;
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::walrus::{Body, Check, StoreOptions, StoreResult};

const BLOCK: &[u8] = &[7; 100];

/// A store that gives the same bytes for every read, and counts the reads.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Counting {
    fn give(&self, check: Check<'_>) -> Result<Bytes> {
        self.0.fetch_add(1, SeqCst);
        check(BLOCK).map_err(|reason| Error::new(ErrorKind::Corrupt, reason))?;
        Ok(Bytes::from_static(BLOCK))
    }
}

#[async_trait]
impl BlobStore for Counting {
    async fn store(&self, _: Body, _: StoreOptions) -> Result<StoreResult> {
        Err(Error::new(ErrorKind::Internal, "not in this test"))
    }

    async fn read(&self, _: &str, check: Check<'_>) -> Result<Bytes> {
        self.give(check)
    }

    async fn read_range(&self, _: &str, _: u64, _: u64, check: Check<'_>) -> Result<Bytes> {
        self.give(check)
    }

    async fn read_patch(&self, _: &str, check: Check<'_>) -> Result<Bytes> {
        self.give(check)
    }
}

#[tokio::test]
async fn a_get_takes_what_has_come_since_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path().join("index.sqlite"), "t");
    let index = Arc::new(SqliteIndex::open(options).await.unwrap());
    let store = Arc::new(Counting::default());
    let reader = Reader::new(ReaderParts {
        index: Arc::new(Lookups::new(index, std::time::Duration::ZERO)),
        store: Arc::<Counting>::clone(&store),
        metrics: Arc::default(),
        memory_bytes: 16 << 20,
        disk: None,
    });
    let check = BlockCheck::new("/k", BLOCK.len() as i64, false);
    let gets = || {
        let block = reader.block("blob", 500..600, &check);
        [block, reader.patch("patch", 100, &check)]
    };
    let (early, late) = (gets(), gets());
    for get in late.into_iter().chain(early).chain(gets()) {
        assert_eq!(get.fetch(false).await.unwrap(), BLOCK);
    }
    assert_eq!(
        store.0.load(SeqCst),
        2,
        "one for the block, one for the member"
    );
    for get in gets() {
        assert_eq!(get.held().is_some(), !get.is_patch);
    }
    reader.close().await;
}
