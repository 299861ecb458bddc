//! The limit of concurrent uploads: additive increase while the publisher keeps up, multiplicative
//! decrease when it answers 429 or 503.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Mutex, Notify};

/// The start value: as many as a stock publisher takes at once (eight sub-wallets).
const START: f64 = 8.0;
/// On overload the limit is cut to this share (as in JuiceFS and others), at most once in
/// `DECREASE_PAUSE`: the answers of one burst are one signal.
const DECREASE: f64 = 0.7;
const DECREASE_PAUSE: Duration = Duration::from_secs(1);

/// The limit, shared by the gatherer and its uploads.
#[derive(Debug, Clone)]
pub(crate) struct UploadLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ceiling: f64,
    state: Mutex<Running>,
    freed: Notify,
}

#[derive(Debug)]
struct Running {
    limit: f64,
    running: usize,
    last_decrease: Option<Instant>,
}

/// The right to run one upload; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Shared>);

impl UploadLimit {
    pub(crate) fn new(ceiling: usize) -> Self {
        let ceiling = ceiling.max(1) as f64;
        UploadLimit(Arc::new(Shared {
            ceiling,
            state: Mutex::new(Running {
                limit: START.min(ceiling),
                running: 0,
                last_decrease: None,
            }),
            freed: Notify::new(),
        }))
    }

    /// Waits for a free place.
    pub(crate) async fn acquire(&self) -> Permit {
        loop {
            {
                let mut state = self.0.state.lock();
                if state.running < state.limit as usize {
                    state.running += 1;
                    if state.running < state.limit as usize {
                        // The limit may have grown, so the next waiting upload has a place too.
                        self.0.freed.notify_one();
                    }
                    return Permit(Arc::clone(&self.0));
                }
            }
            self.0.freed.notified().await;
        }
    }

    /// The most uploads that the limit may grow to.
    pub(crate) fn ceiling(&self) -> usize {
        self.0.ceiling as usize
    }

    /// Uploads running now, and the present limit.
    pub(crate) fn snapshot(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        (state.running, state.limit as usize)
    }
}

impl Permit {
    /// Adjusts the limit after an upload; `throttled` if the publisher asked for fewer uploads
    /// meanwhile.
    pub(crate) fn report(&self, throttled: bool) {
        let mut state = self.0.state.lock();
        if throttled {
            let now = Instant::now();
            if state
                .last_decrease
                .is_none_or(|t| now - t >= DECREASE_PAUSE)
            {
                state.limit = (state.limit * DECREASE).max(1.0);
                state.last_decrease = Some(now);
            }
        } else if state.running + 1 >= state.limit as usize {
            // The limit grows by one after each full round of uploads that used all places.
            state.limit = (state.limit + 1.0 / state.limit).min(self.0.ceiling);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::{explore, lasting, pause};
    use rand::RngExt;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    #[tokio::test]
    async fn falls_fast_and_recovers_slowly_within_the_ceiling() {
        let limit = UploadLimit::new(10);
        assert_eq!(limit.snapshot(), (0, 8));
        let permit = limit.acquire().await;
        permit.report(true);
        permit.report(true);
        assert_eq!(limit.snapshot(), (1, 5), "one burst counts once");
        let mut held = vec![permit];
        for _ in 0..4 {
            held.push(limit.acquire().await);
        }
        let blocked = tokio::time::timeout(Duration::from_millis(10), limit.acquire()).await;
        assert!(blocked.is_err());
        for _ in 0..200 {
            held[0].report(false);
        }
        while held.len() < 10 {
            held.push(limit.acquire().await);
            for _ in 0..20 {
                held[0].report(false);
            }
        }
        assert_eq!(limit.snapshot(), (10, 10));
    }

    /// The gatherer gives up waiting now and then, as it does when blocks come in. No place is lost
    /// by that.
    #[test]
    fn every_order_uses_and_frees_all_places() {
        explore(5_000, |random| {
            let ceiling = random.random_range(1..4);
            let limit = UploadLimit::new(ceiling);
            let started: Rc<RefCell<VecDeque<Permit>>> = Rc::default();
            let mut tasks = vec![lasting({
                let (limit, started) = (limit.clone(), started.clone());
                let patience: Vec<_> = (0..12).map(|_| random.random_range(0..3)).collect();
                async move {
                    for turns in patience {
                        // A permit whose wait was given up once can still be had.
                        let permit = tokio::select! {
                            biased;
                            permit = limit.acquire() => permit,
                            () = pause(turns) => limit.acquire().await,
                        };
                        assert!(limit.snapshot().0 <= ceiling);
                        started.borrow_mut().push_back(permit);
                    }
                }
            })];
            for _ in 0..12 {
                let started = started.clone();
                let (pauses, throttled) = (random.random_range(0..4), random.random());
                tasks.push(lasting(async move {
                    let permit = loop {
                        let next = started.borrow_mut().pop_front();
                        match next {
                            Some(permit) => break permit,
                            None => pause(1).await,
                        }
                    };
                    pause(pauses).await;
                    permit.report(throttled);
                }));
            }
            tasks
        });
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::{below, droppable, explore};
    use shuttle::future::{block_on, yield_now};
    use shuttle::thread;

    /// In every interleaving of uploads, reports and waits that are given up, there are never more
    /// permits than the highest limit, and no upload waits for ever.
    #[test]
    fn nobody_waits_for_ever() {
        explore(6_000, || {
            let limit = UploadLimit::new(2 + below(2));
            let ceiling = limit.0.ceiling as usize;
            let mut uploads = Vec::new();
            for _ in 0..3 {
                let (limit, throttled) = (limit.clone(), below(3) == 0);
                uploads.push(thread::spawn(move || {
                    block_on(async {
                        let permit = limit.acquire().await;
                        assert!(limit.snapshot().0 <= ceiling, "more than the limit");
                        permit.report(throttled);
                        yield_now().await;
                    });
                }));
            }
            let mut given_up = Vec::new();
            for _ in 0..2 {
                let limit = limit.clone();
                given_up.push(droppable(async move {
                    let permit = limit.acquire().await;
                    assert!(limit.snapshot().0 <= ceiling, "more than the limit");
                    yield_now().await;
                    drop(permit);
                }));
            }
            for upload in uploads {
                upload.join().unwrap();
            }
            given_up.into_iter().for_each(|wait| wait());
            assert_eq!(limit.snapshot().0, 0, "a permit is lost");
        });
    }

    /// Two places that become free at the same time are both taken, although only one wake-up is
    /// kept for uploads that are about to wait.
    #[test]
    fn no_place_stays_free() {
        explore(6_000, || {
            let limit = UploadLimit::new(2);
            let held = [block_on(limit.acquire()), block_on(limit.acquire())];
            let both = Arc::new(shuttle::sync::Barrier::new(2));
            let mut uploads = Vec::new();
            for _ in 0..2 {
                let (limit, both) = (limit.clone(), Arc::clone(&both));
                uploads.push(thread::spawn(move || {
                    let permit = block_on(limit.acquire());
                    both.wait();
                    drop(permit);
                }));
            }
            let waiting = limit.clone();
            let given_up = droppable(async move { drop(waiting.acquire().await) });
            for permit in held {
                uploads.push(thread::spawn(move || drop(permit)));
            }
            for upload in uploads {
                upload.join().unwrap();
            }
            given_up();
        });
    }
}
