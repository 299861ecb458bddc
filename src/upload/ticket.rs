//! The outcome of a write call, for which a writer waits while its blocks travel in one or several
//! packs.
//!
//! The ticket counts the blocks that are not settled yet. The last one sends the outcome: the first
//! error, if there was one. The packs learn from a token whether the caller has given up. The only
//! lock, [`Ticket::outcome`], is not held across an `await`.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::Mutex;

/// The packs' end of a write call.
#[derive(Debug)]
pub(super) struct Ticket {
    remaining: AtomicUsize,
    outcome: Mutex<Outcome>,
    given_up: CancellationToken,
}

#[derive(Debug)]
struct Outcome {
    error: Option<Error>,
    done: Option<oneshot::Sender<Result<()>>>,
}

/// The caller's end: waits for all blocks, or gives up when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    done: oneshot::Receiver<Result<()>>,
    given_up: CancellationToken,
}

impl Ticket {
    pub(super) fn new(blocks: usize) -> (Arc<Self>, Waiting) {
        let (tx, rx) = oneshot::channel();
        let given_up = CancellationToken::new();
        let ticket = Ticket {
            remaining: AtomicUsize::new(blocks),
            outcome: Mutex::new(Outcome {
                error: None,
                done: Some(tx),
            }),
            given_up: given_up.clone(),
        };
        (Arc::new(ticket), Waiting { done: rx, given_up })
    }

    /// Whether the caller no longer waits: its blocks must not become visible.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Notes that one block is settled. The first error becomes the error of the call.
    pub(super) fn finish_one(&self, result: std::result::Result<(), &Error>) {
        if let Err(e) = result {
            self.outcome.lock().error.get_or_insert_with(|| e.clone());
        }
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut outcome = self.outcome.lock();
            let result = outcome.error.take().map_or(Ok(()), Err);
            if let Some(done) = outcome.done.take() {
                let _ = done.send(result);
            }
        }
    }
}

impl Waiting {
    /// Returns once every block is on Walrus and indexed, or one of them failed and the others
    /// are settled.
    pub(crate) async fn wait(mut self) -> Result<()> {
        match (&mut self.done).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::Internal,
                "a pack was dropped without an outcome",
            )),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.given_up.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::{droppable, explore, lasting, pause};
    use rand::RngExt;

    /// The outcome comes once, when all blocks are settled, and it is an error if a block failed.
    /// Packs learn of a caller that has given up.
    #[test]
    fn every_order_has_one_outcome() {
        explore(20_000, |random| {
            let blocks = random.random_range(1..5);
            let (ticket, waiting) = Ticket::new(blocks);
            let failing: Vec<bool> = (0..blocks)
                .map(|_| random.random_range(0..4) == 0)
                .collect();
            let fails = failing.contains(&true);
            let all = Arc::clone(&ticket);
            let mut tasks = vec![droppable(async move {
                let outcome = waiting.wait().await;
                assert_eq!(all.remaining.load(Ordering::SeqCst), 0, "too early");
                assert_eq!(outcome.is_err(), fails);
            })];
            for fails in failing {
                let (ticket, pauses) = (Arc::clone(&ticket), random.random_range(0..4));
                tasks.push(lasting(async move {
                    pause(pauses).await;
                    let error = Error::new(ErrorKind::Walrus, "on purpose");
                    ticket.finish_one(if fails { Err(&error) } else { Ok(()) });
                }));
            }
            // `Waiting` ends when its wait does, or with its task.
            tasks.push(lasting(async move { ticket.given_up().await }));
            tasks
        });
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::{below, explore};
    use shuttle::thread;

    /// Packs that end at the same time on several threads: there is one outcome, after the last of
    /// them, and it is an error if any of them failed.
    #[test]
    fn one_outcome_after_the_last() {
        explore(8_000, || {
            let blocks = 1 + below(4);
            let failing = below(2 * blocks);
            let (ticket, waiting) = Ticket::new(blocks);
            for block in 0..blocks {
                let ticket = Arc::clone(&ticket);
                thread::spawn(move || {
                    let error = Error::new(ErrorKind::Walrus, "on purpose");
                    ticket.finish_one(if block == failing {
                        Err(&error)
                    } else {
                        Ok(())
                    });
                });
            }
            let outcome = shuttle::future::block_on(waiting.wait());
            assert_eq!(ticket.remaining.load(Ordering::SeqCst), 0, "too early");
            match outcome {
                Ok(()) => assert!(failing >= blocks, "a failure is forgotten"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Walrus, "{e}"),
            }
            assert!(
                ticket.is_given_up(),
                "packs learn that nobody waits any more"
            );
        });
    }
}
