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
        let mut inserted = self.inserted.lock();
        match inserted.peek(name) {
            Some(at) if at.elapsed() < self.remember => true,
            Some(_) => {
                inserted.pop(name);
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
    async fn a_name_is_remembered_until_it_is_removed_or_time_has_passed() {
        let remember = Duration::from_secs(600);
        let recent = Recent::new(2, remember);
        recent.insert("a");
        recent.insert("b");
        assert!(recent.contains(&"a") && recent.contains(&"b") && !recent.contains(&"c"));
        recent.remove(&"b");
        assert!(!recent.contains(&"b"));
        tokio::time::advance(remember).await;
        assert!(!recent.contains(&"a"));
        for name in ["a", "b", "c"] {
            recent.insert(name);
        }
        assert!(!recent.contains(&"a"), "the oldest of three");
    }
}
