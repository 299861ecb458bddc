//! Whole blobs and quilt members in memory, least recently used out first, bounded by bytes.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

/// Keyed by blob ID or patch ID (they cannot collide: 43 and 50 characters).
pub(super) struct BlobCache {
    budget: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    entries: LruCache<String, Bytes>,
    used: u64,
}

impl BlobCache {
    /// `budget` in bytes; zero or less disables the cache.
    pub(super) fn new(budget: i64) -> Self {
        BlobCache {
            budget: u64::try_from(budget).unwrap_or(0),
            inner: Mutex::new(Inner {
                entries: LruCache::unbounded(),
                used: 0,
            }),
        }
    }

    /// Longest entry taken (bytes): a quarter of the budget, so that one blob cannot empty the cache.
    pub(super) fn entry_cap(&self) -> u64 {
        self.budget / 4
    }

    pub(super) fn enabled(&self) -> bool {
        self.budget > 0
    }

    pub(super) fn get(&self, id: &str) -> Option<Bytes> {
        self.inner.lock().entries.get(id).cloned()
    }

    pub(super) fn insert(&self, id: &str, bytes: Bytes) {
        let cost = bytes.len() as u64;
        if !self.enabled() || cost > self.entry_cap() {
            return;
        }
        let mut inner = self.inner.lock();
        inner.used += cost;
        if let Some((_, old)) = inner.entries.push(id.to_string(), bytes) {
            inner.used -= old.len() as u64;
        }
        while inner.used > self.budget {
            match inner.entries.pop_lru() {
                Some((_, old)) => inner.used -= old.len() as u64,
                None => break,
            }
        }
    }

    pub(super) fn evict(&self, id: &str) {
        let mut inner = self.inner.lock();
        if let Some(old) = inner.entries.pop(id) {
            inner.used -= old.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn bounded_by_bytes_and_least_recent_goes_first() {
        let cache = BlobCache::new(400);
        for id in ["a", "b", "c", "d"] {
            cache.insert(id, blob(100));
        }
        assert!(cache.get("a").is_some());
        cache.insert("e", blob(50));
        assert!(cache.get("b").is_none(), "least recently used");
        assert!(cache.get("a").is_some());
        assert_eq!(cache.inner.lock().used, 350);
        cache.insert("a", blob(10));
        assert_eq!(cache.inner.lock().used, 260);
        cache.evict("a");
        cache.evict("a");
        assert_eq!(cache.inner.lock().used, 250);
    }

    #[test]
    fn entry_cap_and_disabled() {
        let cache = BlobCache::new(400);
        cache.insert("big", blob(101));
        assert!(cache.get("big").is_none());
        for budget in [0, -1, i64::MIN] {
            let off = BlobCache::new(budget);
            off.insert("a", blob(0));
            assert!(off.get("a").is_none());
        }
    }
}
