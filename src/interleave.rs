//! Runs small sets of tasks in many orders and drops some of them midway, for tests of code that
//! polls and wakes by hand: after a lost wake-up the remaining tasks are never polled again. It
//! tries orders of polls; it does not take a single poll apart.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A task to run.
pub(crate) struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    droppable: bool,
}

/// A task that runs to its end.
pub(crate) fn lasting(future: impl Future<Output = ()> + 'static) -> Task {
    Task {
        future: Box::pin(future),
        droppable: false,
    }
}

/// A task that may be dropped at any await.
pub(crate) fn droppable(future: impl Future<Output = ()> + 'static) -> Task {
    Task {
        droppable: true,
        ..lasting(future)
    }
}

/// Lets the other tasks run, `times` times.
pub(crate) async fn pause(times: usize) {
    for _ in 0..times {
        let mut paused = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut paused, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs the tasks that `make` returns, in `orders` orders. Fails, naming the order, when tasks are
/// left that will never be woken.
pub(crate) fn explore(orders: u64, make: impl Fn(&mut StdRng) -> Vec<Task>) {
    // Timers can be made, but never fire.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("runtime");
    let _entered = runtime.enter();
    for order in 0..orders {
        let mut random = StdRng::seed_from_u64(order);
        let tasks = make(&mut random);
        let mut tasks: Vec<_> = tasks
            .into_iter()
            .map(|task| (task, Arc::new(Woken(AtomicBool::new(true)))))
            .collect();
        while !tasks.is_empty() {
            let any = random.random_range(0..tasks.len());
            if tasks[any].0.droppable && random.random_range(0..32) == 0 {
                tasks.swap_remove(any);
                continue;
            }
            let ready: Vec<_> = (0..tasks.len())
                .filter(|n| tasks[*n].1 .0.load(Ordering::SeqCst))
                .collect();
            assert!(
                !ready.is_empty(),
                "order {order}: {} tasks wait for ever",
                tasks.len()
            );
            let next = ready[random.random_range(0..ready.len())];
            let (task, woken) = &mut tasks[next];
            woken.0.store(false, Ordering::SeqCst);
            let waker = Arc::clone(woken).into();
            let polled = task.future.as_mut().poll(&mut Context::from_waker(&waker));
            if polled.is_ready() {
                tasks.swap_remove(next);
            }
        }
    }
}

#[test]
#[should_panic(expected = "1 tasks wait for ever")]
fn a_lost_wake_up_is_found() {
    explore(1, |_| {
        vec![lasting(pause(3)), lasting(std::future::pending())]
    });
}
