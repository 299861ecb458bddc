//! Blobs that could not be found on any aggregator a moment ago: blocks in them do not count as stored, so
//! that a put of the same block stores it anew.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a verdict counts: the aggregators may have been wrong.
const COUNTS: Duration = Duration::from_secs(600);
const MOST: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// See the module.
#[derive(Debug)]
pub(crate) struct Missing(Mutex<LruCache<String, Instant>>);

impl Default for Missing {
    fn default() -> Self {
        Missing(Mutex::new(LruCache::new(MOST)))
    }
}

impl Missing {
    /// No aggregator has the blob.
    pub(crate) fn note(&self, blob_id: &str) {
        self.0.lock().put(blob_id.to_owned(), Instant::now());
    }

    /// The blob was read, or stored.
    pub(crate) fn found(&self, blob_id: &str) {
        let mut missing = self.0.lock();
        if !missing.is_empty() {
            missing.pop(blob_id);
        }
    }

    /// Whether the blob was missing lately.
    pub(crate) fn has(&self, blob_id: &str) -> bool {
        let missing = self.0.lock();
        missing
            .peek(blob_id)
            .is_some_and(|at| at.elapsed() < COUNTS)
    }
}
