//! One writer per key: puts and deletes of the same key run one after another on this node, so that
//! an upload which was given up can never overwrite a later write. The guard of a write travels
//! with its blocks, and is dropped only when their outcome is known, even if the caller has given
//! up.
//!
//! Invariants:
//! - A key is in the table exactly while a guard holds it, with the waiters for it.
//! - A waiter takes all of its keys at once or none, under the table's lock, so no two waiters can
//!   hold keys that the other waits for.
//! - A dropped guard wakes all waiters of its keys. Each of them looks at the table again; the
//!   order in which they came is not kept.
//!
//! Lock order: a task takes its room in the journal before its keys, and takes keys only once. The
//! table's lock is the innermost of all: no other lock of this crate is taken under it, and it is
//! not held across an `await`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::sync::Mutex;

/// The locked keys, each with its waiters.
type Table = Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>;

/// The keys that writers hold.
#[derive(Debug, Default, Clone)]
pub(crate) struct KeyLocks(Arc<Table>);

/// Holds keys until it is dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    table: Arc<Table>,
    keys: Vec<String>,
}

impl KeyLocks {
    /// Takes all of `keys` (no key twice) at once, and waits while any is held. All or none are
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
            // An error also means that the holder is gone.
            let _ = busy.await;
        }
        KeyGuard {
            table: Arc::clone(&self.0),
            keys,
        }
    }

    /// Whether a writer holds this key.
    pub(crate) fn is_held(&self, key: &str) -> bool {
        self.0.lock().contains_key(key)
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
    use crate::interleave::{droppable, explore, lasting, pause};
    use rand::RngExt;
    use std::cell::Cell;
    use std::rc::Rc;
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

    /// In any order of the writers, some of which give up: one holder per key, and no writer waits
    /// for ever.
    #[test]
    fn every_order_excludes_and_ends() {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        explore(20_000, |random| {
            let locks = KeyLocks::default();
            let held: Rc<[Cell<bool>; 3]> = Rc::default();
            let writers = (0..5).map(|_| {
                let wanted: Vec<usize> = (0..3).filter(|_| random.random()).collect();
                let (locks, held, pauses) =
                    (locks.clone(), held.clone(), random.random_range(0..4));
                droppable(async move {
                    let names: Vec<_> = wanted.iter().map(|n| NAMES[*n]).collect();
                    let guard = locks.lock(keys(&names)).await;
                    let entered = Entered(held, wanted);
                    for n in &entered.1 {
                        assert!(!entered.0[*n].replace(true), "two hold {}", NAMES[*n]);
                    }
                    pause(pauses).await;
                    drop(entered);
                    drop(guard);
                })
            });
            let mut tasks: Vec<_> = writers.collect();
            let last = async move { drop(locks.lock(keys(&NAMES)).await) };
            tasks.push(lasting(last));
            tasks
        });
    }

    /// Marks keys as held. It is dropped before the guard, whether its task ends or is dropped.
    struct Entered(Rc<[Cell<bool>; 3]>, Vec<usize>);

    impl Drop for Entered {
        fn drop(&mut self) {
            for n in &self.1 {
                self.0[*n].set(false);
            }
        }
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::{below, droppable, explore};
    use crate::sync::atomic::{AtomicBool, Ordering};
    use shuttle::thread;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    async fn write(locks: KeyLocks, held: Arc<[AtomicBool; 3]>, wanted: Vec<usize>) {
        let names = wanted.iter().map(|n| NAMES[*n].to_owned()).collect();
        let guard = locks.lock(names).await;
        for n in &wanted {
            assert!(!held[*n].swap(true, Ordering::SeqCst), "two hold a key");
        }
        for n in &wanted {
            held[*n].store(false, Ordering::SeqCst);
        }
        drop(guard);
    }

    /// One holder per key, no writer waits for ever, and nothing is left in the table.
    #[test]
    fn writers_exclude_each_other_and_end() {
        explore(6_000, || {
            let locks = KeyLocks::default();
            let held: Arc<[AtomicBool; 3]> = Arc::default();
            let mut writers = Vec::new();
            let mut given_up = None;
            for n in 0..4 {
                // One to three of the keys.
                let keys = 1 + below(7);
                let wanted = (0..3).filter(|k| keys >> k & 1 == 1).collect();
                let write = write(locks.clone(), Arc::clone(&held), wanted);
                if n == 0 {
                    // This writer only awaits the lock, so that it is dropped there or runs to its
                    // end.
                    given_up = Some(droppable(write));
                } else {
                    writers.push(thread::spawn(|| shuttle::future::block_on(write)));
                }
            }
            for writer in writers {
                writer.join().unwrap();
            }
            given_up.into_iter().for_each(|wait| wait());
            let last = write(locks, held, vec![0, 1, 2]);
            shuttle::future::block_on(last);
        });
    }
}
