//! Names that are remembered for a while.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The newest names; each is kept for a time after it was last inserted.
#[derive(Debug)]
pub(crate) struct Recent<K: Hash + Eq> {
    inserted: Mutex<LruCache<K, Instant>>,
    remember: Duration,
}

impl<K: Hash + Eq> Recent<K> {
    /// Remembers at most `most` names, each for `remember`.
    pub(crate) fn new(most: usize, remember: Duration) -> Self {
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Recent {
            inserted: Mutex::new(LruCache::new(most)),
            remember,
        }
    }

    pub(crate) fn insert(&self, name: K) {
        self.inserted.lock().put(name, Instant::now());
    }

    pub(crate) fn remove(&self, name: &K) {
        self.inserted.lock().pop(name);
    }

    pub(crate) fn contains(&self, name: &K) -> bool {
        self.contained(name, Instant::now())
    }

    /// Whether it was remembered at a moment, or has been inserted since. A name that was removed,
    /// or that gave way to newer ones, was not, as far as this tells.
    pub(crate) fn contained(&self, name: &K, at: Instant) -> bool {
        let inserted = self.inserted.lock();
        let inserted = inserted.peek(name);
        inserted.is_some_and(|inserted| at < *inserted + self.remember)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_remembered_until_it_is_removed_or_time_has_passed() {
        let remember = Duration::from_secs(600);
        let recent = Recent::new(2, remember);
        recent.insert("a");
        recent.insert("b");
        assert!(recent.contains(&"a") && recent.contains(&"b") && !recent.contains(&"c"));
        recent.remove(&"b");
        assert!(!recent.contains(&"b"));
        let then = Instant::now();
        tokio::time::advance(remember).await;
        assert!(!recent.contains(&"a"));
        assert!(recent.contained(&"a", then) && !recent.contained(&"b", then));
        for name in ["a", "b", "c"] {
            recent.insert(name);
        }
        assert!(!recent.contains(&"a"), "the oldest of three");
    }
}
