//! Calls that do not hold the thread they were made on: a call that has to wait goes on in the
//! runtime, and its outcome is fetched from a queue, together with those of others.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::buf::{clear, invalid, slice, walrusds_buf};
use super::entry::{entry, walrusds_error};
use super::handle::Registry;
use super::runtime::{limited, runtime, wait, walrusds_call, SigpipeBlocked};
use super::{ops_from, storable, walrusds_handle, walrusds_op, walrusds_queue, INSTANCES};
use crate::error::{caught, Error, Result};

/// The queues that callers hold.
static QUEUES: Registry<Queue> = Registry::new("queue", 4);

/// The outcome of a call that was started on a queue. `value` and `error` belong to the caller, who
/// frees them with `walrusds_buf_free` and `walrusds_error_free`.
#[repr(C)]
#[derive(Debug)]
pub struct walrusds_completion {
    /// The tag with which the call was started.
    pub tag: u64,
    /// Whether there is a value.
    pub found: bool,
    /// The value that was asked for.
    pub value: walrusds_buf,
    /// The error of the call; its code is `WALRUSDS_OK` if the call succeeded.
    pub error: walrusds_error,
}

/// The outcome of a call: an error, or the value if the call reads one and it exists.
type Outcome = Result<Option<Bytes>>;

/// Outcomes that wait to be fetched.
#[derive(Default)]
struct Queue {
    state: Mutex<Outcomes>,
    /// Told for each outcome, and by a `next` that leaves some behind.
    arrived: Notify,
}

#[derive(Default)]
struct Outcomes {
    done: VecDeque<(u64, Outcome)>,
    closed: bool,
}

impl Queue {
    fn push(&self, tag: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        if !state.closed {
            state.done.push_back((tag, outcome));
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Waits until there is an outcome, and returns up to `max` outcomes (at least 1).
    async fn next(&self, max: usize) -> Result<Vec<walrusds_completion>> {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // The waiter is registered from here on, so it misses no outcome.
            arrived.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.closed {
                    return Err(Error::closed("queue"));
                }
                let n = max.min(state.done.len());
                if n > 0 {
                    let taken = state.done.drain(..n).map(completion).collect();
                    if !state.done.is_empty() {
                        self.arrived.notify_one();
                    }
                    return Ok(taken);
                }
            }
            arrived.await;
        }
    }

    /// Ends every `next`, and drops the outcomes that were not fetched and those still to come.
    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.done);
        drop(state);
        self.arrived.notify_waiters();
        drop(dropped);
    }
}

fn completion((tag, outcome): (u64, Outcome)) -> walrusds_completion {
    let (value, error) = match outcome {
        Ok(value) => (value, walrusds_error::NONE),
        Err(e) => (None, walrusds_error::from(&e)),
    };
    walrusds_completion {
        tag,
        found: value.is_some(),
        value: value.map_or(walrusds_buf::EMPTY, walrusds_buf::new),
        error,
    }
}

/// Begins `work` on the calling thread. If it ends without waiting, returns its outcome at once.
/// Otherwise it goes on in the runtime, its outcome comes through `queue`, and the result is
/// `None`.
///
/// # Safety
/// `call` must be readable, unless it is NULL.
unsafe fn start(
    queue: &Arc<Queue>,
    tag: u64,
    call: *const walrusds_call,
    work: impl Future<Output = Outcome> + Send + 'static,
) -> Result<Option<Option<Bytes>>> {
    let runtime = runtime()?;
    // Entered for as long as the work exists, from its first poll to its drop.
    let _inside = runtime.enter();
    // SAFETY: readable by contract.
    let mut work = Box::pin(unsafe { limited(call, work) }?);
    {
        let _blocked = SigpipeBlocked::new();
        // The waker does nothing: if there is something to wait for, the task below polls again.
        if let Poll::Ready(outcome) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return outcome.map(Some);
        }
    }
    let queue = Arc::clone(queue);
    runtime.spawn(async move {
        #[cfg(feature = "panic-hook")]
        let work = async {
            super::panic_hook::point(super::panic_hook::IN_STARTED);
            work.await
        };
        queue.push(tag, caught(work).await);
    });
    Ok(None)
}

/// Makes a queue, for calls that shall not hold the thread they are made on. End it with
/// `walrusds_queue_close`.
#[no_mangle]
pub unsafe extern "C" fn walrusds_queue_new(
    out: *mut walrusds_queue,
    err: *mut walrusds_error,
) -> i32 {
    // SAFETY: the caller's contract (see the module's head), here and in every entry point below.
    unsafe {
        entry(err, || {
            clear("out", out, 0)?;
            out.write(QUEUES.insert(Queue::default()));
            Ok(())
        })
    }
}

/// Begins the same call as `walrusds_get`. A call that needs no waiting ends at once: `done` is
/// true, and `out` and `found` are filled. Otherwise the outcome comes through `queue`, once, with
/// `tag`. When this function fails, no outcome comes.
#[no_mangle]
pub unsafe extern "C" fn walrusds_get_start(
    handle: walrusds_handle,
    call: *const walrusds_call,
    key: *const u8,
    key_len: usize,
    queue: walrusds_queue,
    tag: u64,
    out: *mut walrusds_buf,
    found: *mut bool,
    done: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            let out_ok = clear("out", out, walrusds_buf::EMPTY);
            let found_ok = clear("found", found, false);
            clear("done", done, false).and(found_ok).and(out_ok)?;
            let (instance, queue) = (INSTANCES.get(handle)?, QUEUES.get(queue)?);
            let Some(key) = storable(slice("key", key, key_len)?).map(str::to_owned) else {
                done.write(true);
                return Ok(());
            };
            let work = async move { instance.store.get(&key).await };
            if let Some(value) = start(&queue, tag, call, work)? {
                done.write(true);
                found.write(value.is_some());
                out.write(value.map_or(walrusds_buf::EMPTY, walrusds_buf::new));
            }
            Ok(())
        })
    }
}

/// Begins the same call as `walrusds_batch_commit`, with a copy of the operations. If it ends at
/// once, `done` is true. Otherwise the outcome comes through `queue`, once, with `tag`. When this
/// function fails, no outcome comes.
#[no_mangle]
pub unsafe extern "C" fn walrusds_batch_start(
    handle: walrusds_handle,
    call: *const walrusds_call,
    ops: *const walrusds_op,
    ops_len: usize,
    queue: walrusds_queue,
    tag: u64,
    done: *mut bool,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("done", done, false)?;
            let (instance, queue) = (INSTANCES.get(handle)?, QUEUES.get(queue)?);
            let ops = ops_from(ops, ops_len)?;
            let work = async move { instance.store.commit(ops).await.map(|()| None) };
            done.write(start(&queue, tag, call, work)?.is_some());
            Ok(())
        })
    }
}

/// Waits until calls that were started on this queue have ended, and gives up to `max` outcomes,
/// in the order in which the calls ended.
#[no_mangle]
pub unsafe extern "C" fn walrusds_queue_next(
    queue: walrusds_queue,
    call: *const walrusds_call,
    out: *mut walrusds_completion,
    max: usize,
    len: *mut usize,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("len", len, 0)?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            if max == 0 {
                return Err(invalid("max is 0, expected at least 1"));
            }
            let queue = QUEUES.get(queue)?;
            let ended = wait(call, queue.next(max))?;
            len.write(ended.len());
            for (i, completion) in ended.into_iter().enumerate() {
                out.add(i).write(completion);
            }
            Ok(())
        })
    }
}

/// Closes a queue: threads that wait for outcomes get `WALRUSDS_CLOSED`. Calls that were started go
/// on (cancel them if they shall not), and their outcomes are freed. The handle is invalid
/// afterwards.
#[no_mangle]
pub unsafe extern "C" fn walrusds_queue_close(
    queue: walrusds_queue,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            QUEUES.remove(queue)?.close();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn outcome(n: u8) -> Outcome {
        Ok(Some(Bytes::from(vec![n])))
    }

    fn free(completions: Vec<walrusds_completion>) -> Vec<u64> {
        let free = |mut c: walrusds_completion| {
            c.value.free();
            c.tag
        };
        completions.into_iter().map(free).collect()
    }

    #[tokio::test]
    async fn every_outcome_is_fetched_once() {
        let queue = Arc::new(Queue::default());
        let fetchers: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move {
                    let mut tags = Vec::new();
                    while let Ok(some) = queue.next(3).await {
                        assert!((1..=3).contains(&some.len()));
                        tags.extend(free(some));
                    }
                    tags
                })
            })
            .collect();
        for tag in 0..1000 {
            queue.push(tag, outcome(1));
            if tag % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        while !queue.state.lock().done.is_empty() {
            tokio::task::yield_now().await;
        }
        queue.close();
        let mut all = Vec::new();
        for fetcher in fetchers {
            all.extend(fetcher.await.unwrap());
        }
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn closing_drops_what_is_there_and_what_comes() {
        let queue = Queue::default();
        let value = Bytes::from(vec![1]);
        queue.push(1, Ok(Some(value.clone())));
        queue.close();
        queue.push(2, Ok(Some(value.clone())));
        assert!(value.is_unique());
        assert_eq!(queue.next(1).await.unwrap_err().kind(), ErrorKind::Closed);
    }
}
