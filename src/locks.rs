//! One writer per key: puts and deletes of the same key run one after another on this node, so
//! that an upload which was given up can never overwrite what was written after it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Waiters of every key that is locked.
type Table = Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>;

/// The keys that writers hold.
#[derive(Debug, Default, Clone)]
pub(crate) struct KeyLocks(Arc<Table>);

/// Holds keys until dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    table: Arc<Table>,
    keys: Vec<String>,
}

impl KeyLocks {
    /// Takes all of `keys` (no key twice) at once, waiting while any is held. All or none are
    /// taken, so two callers can never wait for each other.
    pub(crate) async fn lock(&self, keys: Vec<String>) -> KeyGuard {
        loop {
            let busy = {
                let mut table = self.0.lock();
                match keys.iter().find(|k| table.contains_key(*k)) {
                    Some(key) => {
                        let (tx, rx) = oneshot::channel();
                        table.entry(key.clone()).or_default().push(tx);
                        rx
                    }
                    None => {
                        for key in &keys {
                            table.insert(key.clone(), Vec::new());
                        }
                        break;
                    }
                }
            };
            // An error means that the holder is gone, which is what is waited for.
            let _ = busy.await;
        }
        KeyGuard {
            table: Arc::clone(&self.0),
            keys,
        }
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        for key in &self.keys {
            for waiter in table.remove(key).unwrap_or_default() {
                let _ = waiter.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[tokio::test]
    async fn overlapping_sets_exclude_each_other() {
        let locks = KeyLocks::default();
        let first = locks.lock(keys(&["a", "b"])).await;
        drop(locks.lock(keys(&["c"])).await);
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock(keys(&["b", "c"])).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        drop(first);
        drop(waiting.await.unwrap());
        assert!(locks.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let locks = KeyLocks::default();
        let first = locks.lock(keys(&["a"])).await;
        let second = tokio::time::timeout(Duration::from_millis(10), locks.lock(keys(&["a"])));
        assert!(second.await.is_err());
        drop(first);
        drop(locks.lock(keys(&["a"])).await);
        assert!(locks.0.lock().is_empty());
    }
}
