//! Blobs that a read has just shown to be gone.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How many are remembered, and for how long: a missing blob may be an aggregator's mistake, or be stored
/// again by another node.
const REMEMBERED: usize = 65_536;
const REMEMBER: Duration = Duration::from_secs(600);

/// Blobs that the aggregators answered 404 for. The row of a block in such a blob does not count as stored
/// when the block is put: without the length of an epoch, nothing else tells that a blob has lapsed.
#[derive(Debug)]
pub(crate) struct Gone(Mutex<LruCache<String, Instant>>);

impl Default for Gone {
    fn default() -> Self {
        let remembered = NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        Gone(Mutex::new(LruCache::new(remembered)))
    }
}

impl Gone {
    pub(crate) fn insert(&self, blob_id: &str) {
        self.0.lock().put(blob_id.to_owned(), Instant::now());
    }

    /// It was stored, or read.
    pub(crate) fn remove(&self, blob_id: &str) {
        self.0.lock().pop(blob_id);
    }

    pub(crate) fn contains(&self, blob_id: &str) -> bool {
        let mut gone = self.0.lock();
        match gone.peek(blob_id) {
            Some(at) if at.elapsed() < REMEMBER => true,
            Some(_) => {
                gone.pop(blob_id);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_blob_is_gone_until_it_is_stored_or_time_has_passed() {
        let gone = Gone::default();
        gone.insert("a");
        gone.insert("b");
        assert!(gone.contains("a") && gone.contains("b") && !gone.contains("c"));
        gone.remove("b");
        assert!(!gone.contains("b"));
        tokio::time::advance(REMEMBER).await;
        assert!(!gone.contains("a"));
    }
}
