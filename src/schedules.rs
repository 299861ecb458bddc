//! Runs threads and tasks under a scheduler that decides at every use of `crate::sync` which of
//! them goes on: it finds a lost wake-up, a deadlock or a wrong outcome of an interleaving, and
//! repeats it exactly. Code inside tokio (`Notify`, `oneshot`) runs in one piece. All threads see
//! all operations in one order: reorderings that weaker orders of memory allow are not tried.
//!
//! `scripts/interleavings.sh` builds and runs it.

use std::future::Future;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, Runner};

/// Tries `schedules` schedules: half of them random at every step, half with a few switches between
/// threads that otherwise run through. `SCHEDULES` multiplies the number, `SCHEDULE` repeats one
/// that a failure has printed, `SCHEDULE_SEED` draws others.
pub(crate) fn explore(schedules: usize, run: impl Fn() + Send + Sync + 'static) {
    fn number(name: &str, otherwise: u64) -> u64 {
        std::env::var(name).map_or(otherwise, |n| n.parse().expect(name))
    }
    let mut config = Config::new();
    // Debug builds of futures are large, and there are few threads.
    config.stack_size = 512 << 10;
    // Timers can be made, but never fire.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("runtime");
    let _entered = runtime.enter();
    if let Ok(schedule) = std::env::var("SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(run);
        return;
    }
    let half = schedules / 2 * number("SCHEDULES", 1) as usize;
    let seed = number("SCHEDULE_SEED", 1);
    let run = std::sync::Arc::new(run);
    let again = std::sync::Arc::clone(&run);
    Runner::new(RandomScheduler::new_from_seed(seed, half), config.clone()).run(move || run());
    Runner::new(PctScheduler::new_from_seed(seed, 3, half), config).run(move || again());
}

/// Starts a task that may be dropped at any await: a thread of its own decides when. The returned
/// function waits for the task's end.
pub(crate) fn droppable(work: impl Future<Output = ()> + Send + 'static) -> impl FnOnce() {
    let task = shuttle::future::spawn(work);
    let dropping = task.abort_handle();
    let dropping = shuttle::thread::spawn(move || dropping.abort());
    move || {
        dropping.join().unwrap();
        // An error means that it was dropped.
        let _ = shuttle::future::block_on(task);
    }
}

/// A number below `end`, the same one whenever the schedule is repeated.
pub(crate) fn below(end: usize) -> usize {
    use shuttle::rand::Rng;
    shuttle::rand::thread_rng().gen_range(0..end)
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_lost_wake_up_is_found() {
    explore(200, || {
        // The task checks the flag before it registers and not again: a wake-up in between is lost.
        let (flag, woken) = (
            std::sync::Arc::new(crate::sync::Mutex::new(false)),
            std::sync::Arc::new(crate::sync::Notify::new()),
        );
        let (set, wake) = (flag.clone(), woken.clone());
        shuttle::thread::spawn(move || {
            *set.lock() = true;
            wake.notify_waiters();
        });
        shuttle::future::block_on(async move {
            if !*flag.lock() {
                woken.notified().await;
            }
        });
    });
}

#[test]
#[should_panic(expected = "an update is lost")]
fn a_lost_update_is_found() {
    use crate::sync::atomic::{AtomicU64, Ordering};
    explore(200, || {
        let sum = std::sync::Arc::new(AtomicU64::new(0));
        let adding = || {
            let sum = sum.clone();
            shuttle::thread::spawn(move || {
                sum.store(sum.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
            })
        };
        let threads = [adding(), adding()];
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(sum.load(Ordering::SeqCst), 2, "an update is lost");
    });
}
