//! A blob store in memory whose epochs follow tokio's clock: blobs lapse unless they are renewed.
//! With the clock paused, years pass in no time.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use walrusds::clock::Clock;
use walrusds::walrus::Check;
use walrusds::{BlobStore, Body, Error, ErrorKind, Result, StoreOptions, StoreResult};

/// Wall-clock time that follows tokio's clock.
pub struct TokioClock {
    began: Instant,
}

impl TokioClock {
    /// Starts now.
    pub fn start() -> Self {
        TokioClock {
            began: Instant::now(),
        }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000) + self.began.elapsed()
    }
}

/// A blob and its exclusive end epoch.
type Blobs = HashMap<String, (Bytes, u64)>;

/// See the module. Blob IDs name the content, as on Walrus.
pub struct EpochStore {
    blobs: Mutex<Blobs>,
    began: Instant,
    epoch: Duration,
}

impl EpochStore {
    /// Epochs last this long; the first one begins now.
    pub fn start(epoch: Duration) -> Self {
        EpochStore {
            blobs: Mutex::default(),
            began: Instant::now(),
            epoch,
        }
    }

    fn now(&self) -> u64 {
        1 + (self.began.elapsed().as_nanos() / self.epoch.as_nanos()) as u64
    }

    fn find(&self, blob_id: &str) -> Result<Bytes> {
        let now = self.now();
        match self.blobs.lock().get(blob_id) {
            Some((bytes, end)) if *end > now => Ok(bytes.clone()),
            Some((_, end)) => Err(Error::new(
                ErrorKind::BlobNotFound,
                format!("blob {blob_id} lapsed: epoch is {now}, it ended with {end}"),
            )),
            None => Err(Error::new(
                ErrorKind::BlobNotFound,
                format!("blob {blob_id} not found"),
            )),
        }
    }
}

fn checked(bytes: Bytes, check: Check<'_>) -> Result<Bytes> {
    check(&bytes).map_err(|reason| Error::new(ErrorKind::Corrupt, reason))?;
    Ok(bytes)
}

#[async_trait]
impl BlobStore for EpochStore {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        let bytes = body.collect().await.expect("body");
        let blob_id = blake3::hash(&bytes).to_hex()[..43].to_owned();
        let now = self.now();
        let end = now + u64::from(options.epochs);
        let mut blobs = self.blobs.lock();
        let known = blobs.get(&blob_id).map(|(_, end)| *end);
        // A deletable blob is paid for each time.
        let already = known.filter(|known| *known >= end && !options.deletable);
        if already.is_none() {
            let end = end.max(known.unwrap_or(0));
            blobs.insert(blob_id.clone(), (bytes, end));
        }
        Ok(StoreResult::new(blob_id, already.unwrap_or(end))
            .with_start_epoch(already.is_none().then_some(now))
            .with_cost(u64::from(already.is_none()))
            .with_newly_created(already.is_none()))
    }

    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes> {
        checked(self.find(blob_id)?, check)
    }

    async fn read_range(&self, id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        let blob = self.find(id)?;
        let range = offset as usize..(offset + len) as usize;
        if range.end > blob.len() {
            return Err(Error::new(ErrorKind::Corrupt, "range beyond the blob"));
        }
        checked(blob.slice(range), check)
    }

    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes> {
        checked(self.find(patch_id)?, check)
    }
}
