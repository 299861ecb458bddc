//! The one tokio runtime of the process, and how a C call waits on it.

use std::future::Future;
use std::mem::MaybeUninit;
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::handle::Registry;
use crate::error::{Error, ErrorKind, Result};
use crate::trace::{self, Caller, Scope};

/// The cancel tokens that callers hold.
pub(super) static CANCELS: Registry<CancellationToken> = Registry::new("cancel token", 3);

/// A span of the caller's (W3C trace context). Without a trace ID (all zero) there is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct walrusds_trace {
    /// The ID of the trace.
    pub trace_id: [u8; 16],
    /// The ID of the span under which the spans of the call come.
    pub span_id: [u8; 8],
}

/// Limits on how long a call may wait, and the trace it belongs to. Zero fields mean: no token, no
/// deadline, no trace.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_call {
    /// From `walrusds_cancel_new`; 0 = none. One token may serve several calls.
    pub cancel: u64,
    /// Milliseconds from now after which the call gives up; 0 = never.
    pub timeout_ms: u64,
    /// The caller's span: the call's parts become spans, which `walrusds_spans` gives. NULL = the
    /// call is not traced. Borrowed for the call.
    pub trace: *const walrusds_trace,
}

impl walrusds_call {
    const NONE: walrusds_call = walrusds_call {
        cancel: 0,
        timeout_ms: 0,
        trace: std::ptr::null(),
    };
}

/// The runtime, started by the first open and kept for the life of the process: its threads may
/// run code of this library at any time, so it is never unloaded.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceCell<Runtime> = OnceCell::new();
    RUNTIME.get_or_try_init(|| {
        Builder::new_multi_thread()
            .enable_all()
            .thread_name("walrusds")
            // For statements on the index; further callers wait for a thread.
            .max_blocking_threads(128)
            .on_thread_start(block_sigpipe)
            .build()
            .map_err(|e| Error::new(ErrorKind::Internal, format!("cannot start threads: {e}")))
    })
}

/// Blocks SIGPIPE on this thread: a write to a closed peer must be an error, not the end of the
/// host. On a thread that is not Go's, Go's SIGPIPE handler re-raises the default action. Threads
/// started from this one inherit the mask.
fn block_sigpipe() {
    let set = sigpipe();
    // SAFETY: `set` is initialised, and only this thread's mask is changed.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

fn sigpipe() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

/// A guard that blocks SIGPIPE on the thread of a caller, as long as it works for the library: the
/// caller's own disposition may be the default one. Afterwards the mask is as it was, and a SIGPIPE
/// caused by the library is gone.
pub(super) struct SigpipeBlocked {
    set: libc::sigset_t,
    by_us: bool,
}

impl SigpipeBlocked {
    pub(super) fn new() -> Self {
        let set = sigpipe();
        let mut before = set;
        // SAFETY: both sets are initialised, and only this thread's mask is changed.
        let by_us = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) == 0
                && libc::sigismember(&before, libc::SIGPIPE) == 0
        };
        SigpipeBlocked { set, by_us }
    }
}

impl Drop for SigpipeBlocked {
    fn drop(&mut self) {
        if !self.by_us {
            return;
        }
        // SAFETY: the set and the time are initialised. With a waiting time of zero, the call takes
        // a pending signal or returns at once: another thread may take one that was sent to the
        // process.
        unsafe {
            let at_once: libc::timespec = std::mem::zeroed();
            while libc::sigtimedwait(&self.set, std::ptr::null_mut(), &at_once) == -1
                && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
            {
            }
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.set, std::ptr::null_mut());
        }
    }
}

/// Runs `work` to its end on the calling thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let _blocked = SigpipeBlocked::new();
    runtime.block_on(observed(work))
}

/// A place where tests can ask for a panic, in builds for tests.
#[cfg(feature = "panic-hook")]
async fn observed<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::task::yield_now().await;
    super::panic_hook::point(super::panic_hook::IN_WORK);
    work.await
}
#[cfg(not(feature = "panic-hook"))]
fn observed<T>(work: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
    work
}

/// Runs `work` to its end, or until the call is cancelled or its deadline passes; then `work` is
/// dropped.
///
/// # Safety
/// `call` must be readable, unless it is NULL.
pub(super) unsafe fn wait<T>(
    call: *const walrusds_call,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // SAFETY: readable by contract.
    block_on(unsafe { limit(call, work) }?)
}

/// As [`wait`], as a future.
///
/// # Safety
/// `call` must be readable now, unless it is NULL.
pub(super) unsafe fn limited<T, W: Future<Output = Result<T>>>(
    call: *const walrusds_call,
    work: W,
) -> Result<impl Future<Output = Result<T>> + use<T, W>> {
    // SAFETY: readable by contract.
    unsafe { limit(call, observed(work)) }
}

/// `work`, which ends early when the call is cancelled or its deadline passes. With a token that is
/// already cancelled, nothing is begun.
///
/// # Safety
/// `call` must be readable now, unless it is NULL.
unsafe fn limit<T, W: Future<Output = Result<T>>>(
    call: *const walrusds_call,
    work: W,
) -> Result<impl Future<Output = Result<T>> + use<T, W>> {
    // SAFETY: readable by contract; NULL stands for the default.
    let call = unsafe { call.as_ref() }.unwrap_or(&walrusds_call::NONE);
    let timeout_ms = call.timeout_ms;
    // SAFETY: readable by contract, or NULL.
    let scope = unsafe { call.trace.as_ref() }.and_then(|trace| {
        let traced = trace.trace_id != [0; 16];
        traced.then(|| {
            Scope::of(Caller {
                trace_id: trace.trace_id,
                span_id: trace.span_id,
            })
        })
    });
    let token = match call.cancel {
        0 => None,
        handle => Some(CANCELS.get(handle)?),
    };
    let canceled = || Error::new(ErrorKind::Canceled, "the call was cancelled");
    if token.as_ref().is_some_and(|t| t.is_cancelled()) {
        return Err(canceled());
    }
    Ok(async move {
        let stop = async {
            match &token {
                Some(token) => token.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match timeout_ms {
                0 => std::future::pending().await,
                ms => tokio::time::sleep(Duration::from_millis(ms)).await,
            }
        };
        tokio::select! {
            biased;
            result = trace::scoped(scope, work) => result,
            () = stop => Err(canceled()),
            () = late => Err(Error::retryable(
                ErrorKind::DeadlineExceeded,
                format!("the call did not finish within {timeout_ms} ms"),
            )),
        }
    })
}
