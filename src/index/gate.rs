//! Counts running calls. Closing waits for them, and calls that come later are refused.
//!
//! The state is behind one lock, which is held for no await. The last call tells [`Notify`] under
//! it. The closing task registers with [`Notify`] before it looks at the state, so that it misses
//! no such call.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::{Mutex, Notify};

#[derive(Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// Counts running calls until it is shut.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    left: Notify,
}

/// A running call; counted until dropped.
pub(super) struct Pass(Arc<Gate>);

impl Gate {
    /// Lets a call in, or refuses it with [`crate::error::ErrorKind::Closed`] after
    /// [`shut`](Self::shut).
    pub fn enter(self: &Arc<Self>) -> Result<Pass> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::closed("the index"));
        }
        state.inside += 1;
        Ok(Pass(self.clone()))
    }

    /// Refuses calls from now on.
    pub fn shut(&self) {
        self.state.lock().closed = true;
    }

    /// Waits until the running calls have ended; false if they have not within `limit`.
    pub async fn emptied(&self, limit: Duration) -> bool {
        let wait = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.state.lock().inside == 0 {
                    return;
                }
                left.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        if state.inside == 0 {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::{droppable, explore, lasting, pause};
    use rand::RngExt;

    /// In every order: the last call wakes the task that waits for the calls to end, and no call
    /// gets in afterwards.
    #[test]
    fn every_order_empties() {
        explore(20_000, |random| {
            let gate = Arc::new(Gate::default());
            let mut tasks: Vec<_> = (0..4)
                .map(|_| {
                    let (gate, turns) = (gate.clone(), random.random_range(1..4));
                    droppable(async move {
                        for _ in 0..turns {
                            let Ok(pass) = gate.enter() else { return };
                            pause(turns).await;
                            drop(pass);
                            pause(1).await;
                        }
                    })
                })
                .collect();
            for _ in 0..2 {
                let (gate, pauses) = (gate.clone(), random.random_range(0..6));
                tasks.push(lasting(async move {
                    pause(pauses).await;
                    gate.shut();
                    assert!(gate.emptied(Duration::from_secs(3600)).await);
                    assert_eq!(gate.state.lock().inside, 0);
                    assert!(gate.enter().is_err());
                }));
            }
            tasks
        });
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::explore;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use shuttle::thread;

    /// The thread that closes sees the last call out, on whichever threads the calls run, and no
    /// call gets in after it.
    #[test]
    fn closing_sees_the_last_call_out() {
        explore(8_000, || {
            let gate = Arc::new(Gate::default());
            let inside = Arc::new(AtomicUsize::new(0));
            for _ in 0..3 {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                thread::spawn(move || {
                    for _ in 0..2 {
                        let Ok(pass) = gate.enter() else { return };
                        inside.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                });
            }
            let mut closing = Vec::new();
            for _ in 0..2 {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                closing.push(thread::spawn(move || {
                    gate.shut();
                    let emptied = gate.emptied(Duration::from_secs(3600));
                    assert!(shuttle::future::block_on(emptied));
                    assert_eq!(inside.load(Ordering::SeqCst), 0, "a call is still inside");
                    assert!(gate.enter().is_err());
                }));
            }
            for closing in closing {
                closing.join().unwrap();
            }
        });
    }
}
