//! Work that goes on when the task that waits for it gives up.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// Work that runs on the task that awaits it, which saves a task of its own and the way to another
/// thread. When that task gives up midway, the rest of the work runs to its end in the background.
pub(crate) struct Detached<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    begun: bool,
    runtime: Handle,
}

impl<T: Send + 'static> Detached<T> {
    /// Must be called within a runtime: the rest of abandoned work runs there.
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Detached {
            work: Some(Box::pin(work)),
            begun: false,
            runtime: Handle::current(),
        }
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.begun = true;
        let Some(work) = self.work.as_mut() else {
            return Poll::Pending; // awaited after its end
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        // Work that has not begun has no effect that would have to be completed.
        if let (Some(work), true) = (self.work.take(), self.begun) {
            self.runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Notify;
    use tokio::time::{timeout, Duration};

    #[tokio::test]
    async fn is_done_where_it_is_awaited() {
        let there = Detached::new(async {
            tokio::task::yield_now().await;
            tokio::task::id()
        });
        let in_task = tokio::spawn(async move { (tokio::task::id(), there.await) });
        let (waits, works) = in_task.await.unwrap();
        assert_eq!(waits, works);
    }

    #[tokio::test]
    async fn what_is_given_up_midway_comes_to_its_end() {
        let (go_on, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = {
            let (go_on, done) = (go_on.clone(), done.clone());
            Detached::new(async move {
                go_on.notified().await;
                done.notify_one();
            })
        };
        assert!(timeout(Duration::from_millis(1), work).await.is_err());
        go_on.notify_one();
        timeout(Duration::from_secs(10), done.notified())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_was_not_begun_is_dropped() {
        let held = Arc::new(());
        let work = {
            let held = held.clone();
            Detached::new(async move { drop(held) })
        };
        drop(work);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
