//! Combines lookups, or deletions, that run at the same time into one query.
//!
//! **Problem.** A query for one key costs a round trip to the database, and so does a query for
//! hundreds of keys. Waiting for a timer would collect keys, but would also delay a lookup on an
//! idle index.
//!
//! **Outline.** No caller waits for a timer. While fewer than [`IN_FLIGHT`] queries are under way,
//! a lookup leaves at once. Keys that arrive meanwhile wait, and leave as one query of at most
//! [`TOGETHER`] keys when one of the queries is back. An idle index adds no latency; a busy one
//! answers hundreds of keys in a round trip. The caller whose key starts a query gets its
//! [`Leader`], which runs that query and then the queries of the keys that wait, until none wait.
//!
//! **Invariants.**
//! - A key is answered by a query that is sent after the key was handed in.
//! - Keys wait only while [`IN_FLIGHT`] queries are under way. A leader gives its place up under
//!   the same lock under which it found no waiting keys, so a key that comes later starts a query.
//! - A leader outlives the caller that polls it: it goes on by itself ([`Detached`]) when that
//!   caller has its answer or leaves. A leader that is dropped before its end (the runtime is going
//!   down) clears the waiting keys; their callers get an error.
//! - A query whose callers have all left is dropped; its leader goes on with the next.
//!
//! **Locks.** One lock, that of `Queries`. It is held for no await, and neither a query nor an
//! answer to a caller is sent under it.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::detached::Detached;
use crate::error::{caught, Error, Result};
use crate::sync::Mutex;

/// Queries under way at once. With one, server and node would take turns at working. Measured: a
/// third gains nothing and makes the others smaller.
const IN_FLIGHT: usize = 2;
/// Most keys of one query.
const TOGETHER: usize = 1024;

/// A query: answers keys, in their order.
pub(super) type Ask<V> =
    Box<dyn Fn(Vec<String>) -> BoxFuture<'static, Result<Vec<Result<V>>>> + Send + Sync>;

/// Combines calls for one key each into queries. See the module.
pub(super) struct Combiner<V>(Arc<Shared<V>>);

struct Shared<V> {
    ask: Ask<V>,
    state: Mutex<Queries<V>>,
}

struct Queries<V> {
    /// Queries under way. Each leader takes the waiting keys when its query is back.
    in_flight: usize,
    waiting: Batch<V>,
}

struct Batch<V> {
    keys: Vec<String>,
    callers: Vec<oneshot::Sender<Result<V>>>,
}

impl<V> Default for Batch<V> {
    fn default() -> Self {
        Batch {
            keys: Vec::new(),
            callers: Vec::new(),
        }
    }
}

impl<V> Batch<V> {
    /// Takes the keys of one query, at most [`TOGETHER`].
    fn take(&mut self) -> Option<Batch<V>> {
        if self.keys.is_empty() {
            return None;
        }
        let rest = self.keys.len().min(TOGETHER);
        let rest = Batch {
            keys: self.keys.split_off(rest),
            callers: self.callers.split_off(rest),
        };
        Some(std::mem::replace(self, rest))
    }
}

impl<V: Send + 'static> Combiner<V> {
    pub(super) fn new(ask: Ask<V>) -> Self {
        Combiner(Arc::new(Shared {
            ask,
            state: Mutex::new(Queries {
                in_flight: 0,
                waiting: Batch::default(),
            }),
        }))
    }

    /// The answer for one key, from a query that is sent after this call began: it sees every write
    /// that ended before the call. Dropping the future gives up the wait. A query whose callers
    /// have all left is dropped.
    ///
    /// # Errors
    /// The errors of the query: every caller in it gets them.
    pub(super) async fn get(&self, key: String) -> Result<V> {
        let (mut answer, leader) = self.join(key);
        let answer = match leader {
            None => answer.await,
            // The leader runs in this task, which saves the way to another thread and back. When
            // this caller has its answer or leaves, the leader goes on by itself: the callers that
            // joined must not be stranded.
            Some(leader) => tokio::select! {
                biased;
                answer = &mut answer => answer,
                () = Detached::new(leader) => answer.await,
            },
        };
        answer
            // The sender is dropped without an answer when the runtime is going down.
            .unwrap_or_else(|_| Err(Error::closed("the index")))
    }

    /// Adds a key to the waiting ones. If a query may leave now, also returns its leader, which
    /// runs it and the queries after it.
    fn join(
        &self,
        key: String,
    ) -> (
        oneshot::Receiver<Result<V>>,
        Option<impl Future<Output = ()>>,
    ) {
        let (caller, answer) = oneshot::channel();
        let mut state = self.0.state.lock();
        state.waiting.keys.push(key);
        state.waiting.callers.push(caller);
        if state.in_flight >= IN_FLIGHT {
            return (answer, None);
        }
        let Some(batch) = state.waiting.take() else {
            return (answer, None);
        };
        state.in_flight += 1;
        drop(state);
        let leader = Leader {
            shared: Arc::clone(&self.0),
            leads: true,
        };
        (answer, Some(leader.run(batch)))
    }
}

/// A query under way, and the queries that follow it.
struct Leader<V> {
    shared: Arc<Shared<V>>,
    leads: bool,
}

impl<V> Leader<V> {
    async fn run(mut self, first: Batch<V>) {
        let mut batch = first;
        loop {
            self.answer(batch).await;
            // One lock for the look and the decrease: a caller that comes later must see that no
            // leader is left to take its key.
            let mut state = self.shared.state.lock();
            match state.waiting.take() {
                Some(next) => batch = next,
                None => {
                    state.in_flight -= 1;
                    self.leads = false;
                    break;
                }
            }
        }
    }

    async fn answer(&self, batch: Batch<V>) {
        let Batch { keys, mut callers } = batch;
        let abandoned = async {
            for caller in &mut callers {
                caller.closed().await;
            }
        };
        let answers = tokio::select! {
            biased;
            answers = caught((self.shared.ask)(keys)) => answers,
            () = abandoned => return,
        };
        match answers {
            Ok(answers) => {
                for (caller, answer) in callers.into_iter().zip(answers) {
                    let _ = caller.send(answer);
                }
            }
            Err(e) => {
                for caller in callers {
                    let _ = caller.send(Err(e.clone()));
                }
            }
        }
    }
}

/// Reached before the leader's end only when the runtime is going down: no leader will come again,
/// so the waiting callers are dropped.
impl<V> Drop for Leader<V> {
    fn drop(&mut self) {
        if self.leads {
            let mut state = self.shared.state.lock();
            state.in_flight -= 1;
            state.waiting = Batch::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream::{FuturesUnordered, StreamExt};
    use rand::RngExt;
    use tokio::sync::mpsc;

    use super::*;
    use crate::error::ErrorKind;
    use crate::interleave::{droppable, explore, lasting, pause};

    /// Counts a query as running until dropped.
    struct Running(Arc<AtomicUsize>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Answers every key with its length. The key "fails" fails the whole query, "panics" panics.
    fn lengths(running: &Arc<AtomicUsize>) -> Combiner<usize> {
        let running = Arc::clone(running);
        Combiner::new(Box::new(move |keys| {
            let running = Arc::clone(&running);
            Box::pin(async move {
                assert!(running.fetch_add(1, Ordering::SeqCst) < IN_FLIGHT);
                let _running = Running(running);
                pause(keys.len() % 4).await;
                if keys.iter().any(|k| k == "panics") {
                    std::panic::resume_unwind(Box::new("as asked"));
                }
                if keys.iter().any(|k| k == "fails") {
                    return Err(Error::new(ErrorKind::Index, "as asked"));
                }
                Ok(keys.iter().map(|k| Ok(k.len())).collect())
            })
        }))
    }

    /// In every order, with callers that leave midway: a caller that stays gets the answer to its
    /// own key, and in the end no query is under way.
    #[test]
    fn every_order_answers_everyone() {
        explore(20_000, |random| {
            let running = Arc::new(AtomicUsize::new(0));
            let combiner = Rc::new(lengths(&running));
            let (spawn, mut spawned) = mpsc::unbounded_channel();
            let mut tasks = Vec::new();
            let broken = random.random_range(0..4) == 0;
            for caller in 0..6 {
                let key = match caller {
                    0 if broken => "fails".to_owned(),
                    1 if broken => "panics".to_owned(),
                    _ => "k".repeat(caller + 1),
                };
                let pauses = random.random_range(0..6);
                let (combiner, spawn) = (Rc::clone(&combiner), spawn.clone());
                let call = async move {
                    pause(pauses).await;
                    let len = key.len();
                    let (answer, leader) = combiner.join(key);
                    if let Some(leader) = leader {
                        assert!(spawn.send(leader).is_ok());
                    }
                    drop(spawn);
                    match answer.await.expect("an answer") {
                        Ok(answer) => assert_eq!(answer, len),
                        Err(_) => assert!(broken),
                    }
                };
                let stays = random.random_range(0..2) == 0;
                tasks.push(if stays {
                    lasting(call)
                } else {
                    droppable(call)
                });
            }
            tasks.push(lasting(async move {
                let mut leaders = FuturesUnordered::new();
                loop {
                    tokio::select! {
                        leader = spawned.recv() => match leader {
                            Some(leader) => leaders.push(leader),
                            None => break,
                        },
                        Some(()) = leaders.next() => {}
                    }
                }
                while leaders.next().await.is_some() {}
                let state = combiner.0.state.lock();
                assert_eq!(state.in_flight, 0);
                assert!(state.waiting.keys.is_empty());
                assert_eq!(running.load(Ordering::SeqCst), 0);
            }));
            tasks
        });
    }

    #[tokio::test]
    async fn what_waits_leaves_together() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let combiner = Arc::new({
            let (sizes, gate) = (Arc::clone(&sizes), Arc::clone(&gate));
            Combiner::new(Box::new(move |keys: Vec<String>| {
                let (sizes, gate) = (Arc::clone(&sizes), Arc::clone(&gate));
                Box::pin(async move {
                    sizes.lock().push(keys.len());
                    drop(gate.acquire().await);
                    Ok(keys.into_iter().map(Ok).collect())
                })
            }))
        });
        let callers: Vec<_> = (0..2000)
            .map(|n| {
                let combiner = Arc::clone(&combiner);
                tokio::spawn(async move { combiner.get(format!("{n}")).await })
            })
            .collect();
        while combiner.0.state.lock().waiting.keys.len() < 2000 - IN_FLIGHT {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        for (n, caller) in callers.into_iter().enumerate() {
            assert_eq!(caller.await.unwrap().unwrap(), format!("{n}"));
        }
        let mut sizes = sizes.lock().clone();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 2000 - IN_FLIGHT - TOGETHER, TOGETHER]);
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::error::ErrorKind;
    use crate::schedules::{below, droppable, explore};
    use crate::sync::atomic::{AtomicUsize, Ordering};

    type Leaders = Arc<Mutex<Vec<shuttle::future::JoinHandle<()>>>>;

    /// As `Combiner::get`, with the scheduler's tasks.
    async fn get(combiner: Arc<Combiner<usize>>, key: String, leaders: Leaders) -> Result<usize> {
        let (answer, leader) = combiner.join(key);
        if let Some(leader) = leader {
            let leader = shuttle::future::spawn(leader);
            leaders.lock().push(leader);
        }
        answer.await.expect("an answer")
    }

    /// Callers on threads of their own, some of which leave: a caller that stays gets the answer to
    /// its own key, from a query that began after it asked, and none is left waiting.
    #[test]
    fn everyone_gets_a_fresh_answer() {
        explore(6_000, || {
            let written = Arc::new(AtomicUsize::new(0));
            let fails = below(4) == 0;
            let combiner = Arc::new(Combiner::new(Box::new({
                let written = Arc::clone(&written);
                move |keys: Vec<String>| {
                    let written = Arc::clone(&written);
                    Box::pin(async move {
                        let seen = written.load(Ordering::SeqCst);
                        shuttle::future::yield_now().await;
                        if fails && keys.iter().any(|k| k == "fails") {
                            return Err(Error::new(ErrorKind::Index, "as asked"));
                        }
                        Ok(keys.iter().map(|k| Ok(k.len() * 100 + seen)).collect())
                    })
                }
            })));
            let leaders = Leaders::default();
            let mut callers = Vec::new();
            for caller in 1..5 {
                let leaders = Arc::clone(&leaders);
                let (combiner, written) = (Arc::clone(&combiner), Arc::clone(&written));
                callers.push(shuttle::thread::spawn(move || {
                    let before = written.fetch_add(1, Ordering::SeqCst) + 1;
                    match shuttle::future::block_on(get(combiner, "k".repeat(caller), leaders)) {
                        Ok(answer) => {
                            assert_eq!(answer / 100, caller, "another one's answer");
                            assert!(answer % 100 >= before, "a query from before");
                        }
                        Err(e) => assert!(fails, "{e}"),
                    }
                }));
            }
            let leaving = get(
                Arc::clone(&combiner),
                "fails".to_owned(),
                Arc::clone(&leaders),
            );
            let left = droppable(async move { drop(leaving.await) });
            for caller in callers {
                caller.join().unwrap();
            }
            left();
            let leaders = std::mem::take(&mut *leaders.lock());
            for leader in leaders {
                shuttle::future::block_on(leader).expect("a leader's end");
            }
            let state = combiner.0.state.lock();
            assert_eq!(state.in_flight, 0);
            assert!(state.waiting.keys.is_empty());
        });
    }
}
