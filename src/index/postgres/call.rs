//! Runs one call: work on a connection, tried again where that helps, and cancelled on the server
//! when its caller leaves.
//!
//! **Problem.** A statement that its caller no longer waits for must neither take effect later nor
//! keep a connection busy, and a connection that breaks must not fail work that can be repeated.
//!
//! **Outline.** Every request of the index to the server passes through [`run`]. It waits for a
//! place, takes a connection from its [`Source`] (the pipeline or the pool), and polls the work
//! together with the deadline and the check for a server that has moved to another host. An error
//! is judged by [`error::retry`]; where another try helps and the limits below allow it, the loop
//! takes a connection again.
//!
//! **Invariants.**
//! - Work is given up at its deadline. The server knows the deadline of a bounded statement
//!   ([`super::deadline`]).
//! - Work whose caller leaves, or whose time is over, is cancelled on the server, unless it still
//!   waits for its turn. If that does not end it, its connection is closed, so that a server that
//!   hangs keeps no place.
//! - A pooled connection on which something was cancelled is not used again: the cancel request may
//!   still be on its way, and must not hit the next call. On a shared connection it may hit a
//!   neighbour, whose call is tried again.
//! - Work that must not happen twice ([`Repeat::Never`]) is tried again only if it certainly has
//!   not happened.
//! - The call's [`Pass`] through the gate and its place are kept until its work has ended, also
//!   when its caller has left: closing the index waits for abandoned work, too.
//!
//! **Lock order.** Pass, then place, then the locks of the source. This module has no lock of its
//! own; the locks of a source are released before the work is polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep_until, timeout};
use tokio_postgres::Row;

use super::conn::{Answer, Conn, Opener, CANCEL_GRACE, SENT};
use super::error::{self, Retry};
use super::follow::{self, Follow, Position};
use super::query::{Param, Query};
use crate::backoff::{doubled, jittered};
use crate::error::Result;
use crate::index::gate::Pass;

/// Tries of a transaction that loses against others (deadlock, serialization).
const MAX_AGAIN: u32 = 5;
/// Tries of a statement that seems to have come too late.
const MAX_LATE: u32 = 2;
/// Cancels meant for a neighbour after which a statement is tried again.
const MAX_STRAY_CANCELS: u32 = 20;

/// Whether a call may be repeated when it is unknown whether it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Harmless,
    Never,
}

/// A call: its name in messages, and how it is run.
#[derive(Clone)]
pub(super) struct Call {
    pub what: &'static str,
    pub pass: Arc<Pass>,
    pub repeat: Repeat,
    pub limit: Duration,
    /// For a call to a standby: decides whether its answer counts.
    pub follow: Option<Arc<Follow>>,
}

/// The origin of connections: the pipeline or the pool.
pub(super) trait Source: Send + Sync {
    /// Whether other calls use the connection at the same time. If so, the time to connect counts
    /// towards the limit, and a cancel may have been meant for a neighbour.
    const SHARED: bool;
    /// How long abandoned work may go on before it is cancelled.
    const PATIENCE: Duration;

    fn opener(&self) -> &Arc<Opener>;
    /// Waits for a place. The place is kept over all tries, and until abandoned work has ended.
    fn place(
        &self,
        call: &Call,
    ) -> impl Future<Output = Result<Option<OwnedSemaphorePermit>>> + Send;
    /// Takes a connection. After one that broke (`anew`), takes none of those that may have broken
    /// with it.
    fn take(&self, repeat: Repeat, anew: bool) -> impl Future<Output = Result<Arc<Conn>>> + Send;
    /// Takes a connection back that can be used again.
    fn put_back(&self, conn: Arc<Conn>);
    /// Closes a connection, and does not hand it out again.
    fn discard(&self, conn: &Arc<Conn>);
}

type Work<T> = Pin<Box<dyn Future<Output = Answer<T>> + Send>>;

/// Runs `work` until it succeeds, fails for good, or its time is over. `work` gets the connection
/// and its deadline. The inner result is the server's own error, for the caller to judge.
pub(super) async fn run<S, T, F>(source: &S, call: &Call, work: F) -> Result<Answer<T>>
where
    S: Source,
    T: Send + 'static,
    F: Fn(Arc<Conn>, Instant) -> Work<T> + Send + Sync,
{
    let begun = Instant::now();
    let place = source.place(call).await?.map(Arc::new);
    let (mut reconnects, mut strays, mut again, mut late) = (0, 0, 0, 0);
    let mut anew = false;
    loop {
        let conn = source.take(call.repeat, std::mem::take(&mut anew)).await?;
        let now = Instant::now();
        let deadline = if S::SHARED { begun } else { now } + call.limit;
        let sent = Arc::new(AtomicUsize::new(0));
        let mut running = Running {
            work: Some(Box::pin(
                SENT.scope(sent.clone(), work(conn.clone(), deadline)),
            )),
            sent,
            shared: S::SHARED,
            patience: S::PATIENCE,
            conn: conn.clone(),
            held: (call.pass.clone(), place.clone()),
        };
        let mut moved = false;
        let connector = &source.opener().connector;
        let over = deadline.max(now + Duration::from_millis(1));
        let result = tokio::select! {
            result = &mut running => result,
            () = connector.moved_from(conn.host) => {
                moved = true;
                source.discard(&conn);
                running.await
            }
            () = sleep_until(over.into()) => {
                // Work that changes rows may have succeeded at the last moment.
                return match running.stop::<S>().await {
                    Some(Ok(value)) => Ok(Ok(value)),
                    _ => Err(error::timed_out(call.what, call.limit)),
                };
            }
        };
        let error = match result {
            Ok(value) => {
                source.put_back(conn);
                return Ok(Ok(value));
            }
            Err(error) => error,
        };
        let in_time = begun.elapsed() < call.limit;
        let verdict = error::retry(&error);
        if verdict == Retry::Late {
            conn.forget_clock();
        }
        let again_helps = match verdict {
            Retry::Again => true,
            Retry::Worker => call.repeat == Repeat::Harmless,
            _ => false,
        };
        match verdict {
            Retry::Reconnect if (moved || reconnects == 0) && call.repeat == Repeat::Harmless => {
                anew = true;
                reconnects += u32::from(!moved);
                source.discard(&conn);
                continue;
            }
            Retry::Cancelled if S::SHARED && strays < MAX_STRAY_CANCELS && in_time => strays += 1,
            _ if again_helps && again < MAX_AGAIN && in_time => {
                again += 1;
                tokio::time::sleep(pause(again)).await;
            }
            Retry::Late if late < MAX_LATE && in_time => late += 1,
            _ => {
                if verdict != Retry::Reconnect {
                    source.put_back(conn);
                }
                return Ok(Err(error));
            }
        }
        source.put_back(conn);
    }
}

/// Runs one statement. It must be harmless to run twice unless the call says otherwise.
pub(super) async fn query<S: Source>(
    source: &S,
    call: &Call,
    query: &Query,
    params: &Arc<[Param]>,
) -> Result<Answer<Vec<Row>>> {
    if let Some(follow) = &call.follow {
        return followed(source, call, follow, query, params).await;
    }
    run(source, call, |conn, deadline| {
        let (query, params) = (query.clone(), params.clone());
        Box::pin(async move { conn.query(&query, &params, deadline).await })
    })
    .await
}

/// Runs one statement on a standby. An answer that does not count is an error.
async fn followed<S: Source>(
    source: &S,
    call: &Call,
    follow: &Arc<Follow>,
    query: &Query,
    params: &Arc<[Param]>,
) -> Result<Answer<Vec<Row>>> {
    let answer = run(source, call, |conn, deadline| {
        let (follow, query, params) = (follow.clone(), query.clone(), params.clone());
        Box::pin(async move {
            // Now, and not before it waited for its place.
            let Some(required) = follow.required() else {
                return Ok(None);
            };
            // The server reads its position before the rows.
            let position = conn.query(&follow.position, &[], deadline);
            let rows = conn.query(&query, &params, deadline);
            let (position, rows) = match conn.is_direct() {
                true => join(position, rows).await, // sends the two in this order
                false => (position.await, rows.await),
            };
            let rows = rows?;
            Ok(Some((required, Position::read(&position?)?, rows)))
        })
    });
    Ok(match answer.await? {
        Ok(Some((required, position, rows))) => {
            follow.judge(required, position)?;
            Ok(rows)
        }
        Ok(None) => return Err(follow::behind()),
        Err(e) => Err(e),
    })
}

/// Work on a connection. If it is dropped before its end, it is cancelled on the server.
struct Running<T: Send + 'static> {
    work: Option<Work<T>>,
    /// How many of its requests were sent and have no answer yet.
    sent: Arc<AtomicUsize>,
    shared: bool,
    patience: Duration,
    conn: Arc<Conn>,
    /// Kept until the work has ended.
    held: (Arc<Pass>, Option<Arc<OwnedSemaphorePermit>>),
}

impl<T: Send + 'static> Running<T> {
    /// Cancels the work because its time is over, and waits for its result unless the connection is
    /// shared: only reads and deletions run on a shared one, and their result does not matter then.
    async fn stop<S: Source>(mut self) -> Option<Answer<T>> {
        if S::SHARED {
            return None;
        }
        let conn = self.conn.clone();
        let ended = async { tokio::join!(conn.cancel(), &mut self).1 };
        let ended = timeout(2 * CANCEL_GRACE, ended).await;
        if ended.is_err() {
            self.conn.abort();
        }
        ended.ok()
    }
}

impl<T: Send + 'static> Future for Running<T> {
    type Output = Answer<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T>> {
        let Some(work) = self.work.as_mut() else {
            return Poll::Pending; // not polled after completion
        };
        let answer = work.as_mut().poll(cx);
        if answer.is_ready() {
            self.work = None;
        }
        answer
    }
}

impl<T: Send + 'static> Unpin for Running<T> {}

impl<T: Send + 'static> Drop for Running<T> {
    fn drop(&mut self) {
        let Some(mut work) = self.work.take() else {
            return;
        };
        if self.shared && self.sent.load(Ordering::Relaxed) == 0 {
            return; // it waits for its turn
        }
        let (conn, held, patience) = (self.conn.clone(), self.held.clone(), self.patience);
        let runtime = conn.opener.runtime.clone();
        runtime.spawn(async move {
            let _held = held;
            if !patience.is_zero() && timeout(patience, &mut work).await.is_ok() {
                return;
            }
            // The work is polled on: others wait for their turn on the connection.
            let cancelled = async {
                if !conn.is_closed() {
                    conn.cancel().await;
                }
                tokio::time::sleep(CANCEL_GRACE).await;
            };
            let ended = tokio::select! {
                _ = &mut work => true,
                () = cancelled => false,
            };
            if !ended {
                // Even a cancel request does not help: the server or the network hangs.
                conn.abort();
            }
        });
    }
}

/// The pause before the nth try against other transactions (with jitter).
pub(super) fn pause(nth: u32) -> Duration {
    let most = doubled(Duration::from_millis(10), nth, Duration::from_millis(640));
    most.mul_f64(0.2) + jittered(most.mul_f64(0.8))
}
