//! The pool for everything but short lookups: bulk writes, schema, renewal, leases. Sessions in
//! `r2d2`, used by blocking code on tokio's blocking threads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{watch, Semaphore};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::Connector;
use super::error::{self, PgError, Retry};
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Pass;

/// How long a cancelled statement may take to say so.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// How long an idle session has to prove that it is alive.
const VALID_LIMIT: Duration = Duration::from_secs(3);
/// How long closing waits for connections to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Tries of a transaction that loses against others (deadlock, serialization).
const MAX_AGAIN: u32 = 5;
/// Tries of a statement that seems to come too late.
pub(super) const MAX_LATE: u32 = 2;

/// A place in the pool. r2d2 bounds and ages the places; the connection in it is opened by whoever
/// takes the place, so that its error reaches that caller at once and with its reason (r2d2 itself
/// would go on trying until its timeout and keep only a text).
#[derive(Default)]
pub(super) struct Place {
    session: Option<Session>,
}

pub(super) struct Places;

impl r2d2::ManageConnection for Places {
    type Connection = Place;
    type Error = Infallible;

    fn connect(&self) -> std::result::Result<Place, Infallible> {
        Ok(Place::default())
    }

    fn is_valid(&self, _: &mut Place) -> std::result::Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Place) -> bool {
        false
    }
}

/// See the module.
pub(super) struct Pool {
    connector: Arc<Connector>,
    places: Mutex<Option<r2d2::Pool<Places>>>,
    /// As many as places: callers wait here as tasks, not as threads.
    permits: Arc<Semaphore>,
    limit: Duration,
    runtime: Handle,
    /// What serves the sessions' sockets.
    drivers: TaskTracker,
}

/// Whether a call may be repeated when nobody knows if it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Harmless,
    Never,
}

impl Pool {
    /// A pool without connections yet.
    pub fn new(connector: Arc<Connector>, size: u32, limit: Duration) -> Pool {
        let places = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .idle_timeout(Some(Duration::from_secs(300)))
            .connection_timeout(connector.timeout())
            .build_unchecked(Places);
        Pool {
            connector,
            places: Mutex::new(Some(places)),
            permits: Arc::new(Semaphore::new(size as usize)),
            limit,
            runtime: Handle::current(),
            drivers: TaskTracker::new(),
        }
    }

    /// Runs `work` on a connection, within `limit` (the statement timeout by default) once it is
    /// connected. A dropped future cancels the running statement. Where not even a cancel request
    /// helps, the connection is given up: a server that hangs keeps neither place nor thread.
    pub async fn run<T, F>(
        &self,
        what: &'static str,
        pass: Arc<Pass>,
        repeat: Repeat,
        limit: Option<Duration>,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Session) -> std::result::Result<T, PgError> + Send + 'static,
    {
        let limit = limit.unwrap_or(self.limit);
        let permit = match tokio::time::timeout(limit, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(super::error::closed()),
            Err(_) => {
                return Err(Error::retryable(
                    ErrorKind::Index,
                    format!("index in Postgres: {what}: no connection of the pool became free within {} s (maxOpenConns)", limit.as_secs_f32()),
                ))
            }
        };
        let places = self
            .places
            .lock()
            .clone()
            .ok_or_else(super::error::closed)?;
        let run = Arc::new(Run {
            running: Mutex::new(None),
            cancelled: CancellationToken::new(),
            started: watch::Sender::new(None),
            connector: self.connector.clone(),
            runtime: self.runtime.clone(),
            drivers: self.drivers.clone(),
        });
        let mut started = run.started.subscribe();
        let guard = CancelOnDrop(run.clone());
        let mut task = self.runtime.spawn_blocking(move || {
            let _held = (permit, pass);
            let mut place = places.get().map_err(|e| {
                Error::retryable(
                    ErrorKind::Index,
                    format!("index in Postgres: {what}: the pool gave no connection: {e}"),
                )
            })?;
            let result = run.work(&mut place, what, repeat, limit, work);
            drop(place);
            drop(places);
            result
        });
        let mut deadline =
            tokio::time::Instant::now() + self.connector.timeout() + Duration::from_secs(1);
        loop {
            let host = *started.borrow();
            let moved = async {
                match host {
                    Some(host) => self.connector.moved_from(host).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = &mut task => return done.unwrap_or_else(|e| {
                    Err(Error::new(ErrorKind::Internal, format!("index in Postgres: {what}: {e}")))
                }),
                Ok(()) = started.changed() => deadline = tokio::time::Instant::now() + limit,
                () = moved => guard.0.give_up(),
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        drop(guard);
        match tokio::time::timeout(2 * CANCEL_GRACE, task).await {
            // It made it at the last moment.
            Ok(Ok(Ok(value))) => Ok(value),
            _ => Err(error::timed_out(what, limit)),
        }
    }

    /// Closes every connection and waits until they are closed (not for ever).
    pub async fn close(&self) {
        self.permits.close();
        drop(self.places.lock().take());
        self.drivers.close();
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.drivers.wait()).await;
    }
}

/// One call, as seen by its blocking thread and its canceller.
struct Run {
    /// What may be running.
    running: Mutex<Option<Running>>,
    cancelled: CancellationToken,
    /// The host to which a statement was sent; changes with every try.
    started: watch::Sender<Option<usize>>,
    connector: Arc<Connector>,
    runtime: Handle,
    drivers: TaskTracker,
}

/// How to stop what runs: by asking the server, or by hanging up.
struct Running {
    cancel: tokio_postgres::CancelToken,
    host: usize,
    hang_up: AbortHandle,
}

impl Run {
    fn work<T, F>(
        &self,
        place: &mut Place,
        what: &str,
        repeat: Repeat,
        limit: Duration,
        mut work: F,
    ) -> Result<T>
    where
        F: FnMut(&mut Session) -> std::result::Result<T, PgError>,
    {
        let begun = Instant::now();
        let (mut again, mut reconnects, mut late) = (0, 0, 0);
        loop {
            let mut session = self.session(place, repeat)?;
            *self.running.lock() = Some(Running {
                cancel: session.cancel_token(),
                host: session.host(),
                hang_up: session.abort_handle(),
            });
            if self.cancelled.is_cancelled() {
                // The canceller may have seen it already: not for the next call.
                return Err(abandoned());
            }
            // Before the caller's time starts, so that it is over first.
            session.begin(Instant::now() + limit);
            self.started.send_replace(Some(session.host()));
            let result = work(&mut session);
            *self.running.lock() = None;
            if self.cancelled.is_cancelled() {
                // The cancel request may still be on its way: it must not hit the next call.
                drop(session);
                return result.map_err(|e| error::statement(what, &e));
            }
            let error = match result {
                Ok(value) => {
                    place.session = Some(session);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let verdict = error::retry(&error);
            if verdict == Retry::Late {
                session.forget_clock();
            }
            if verdict != Retry::Reconnect && !session.is_closed() {
                place.session = Some(session);
            }
            match verdict {
                Retry::Reconnect if reconnects == 0 && repeat == Repeat::Harmless => {
                    reconnects += 1
                }
                Retry::Again if again < MAX_AGAIN && begun.elapsed() < limit => {
                    again += 1;
                    std::thread::sleep(pause(again));
                }
                Retry::Late if late < MAX_LATE && begun.elapsed() < limit => late += 1,
                _ => return Err(error::statement(what, &error)),
            }
        }
    }

    /// The session of the place, or a new one.
    fn session(&self, place: &mut Place, repeat: Repeat) -> Result<Session> {
        // Idle sessions are not watched: one that died meanwhile is noticed by the call itself if
        // that may be repeated, and here otherwise. One to a host that the server has left since
        // may even seem alive.
        let usable = |session: &Session| {
            session.host() == self.connector.home()
                && (repeat == Repeat::Harmless || session.is_valid(VALID_LIMIT))
        };
        if let Some(session) = place.session.take().filter(usable) {
            return Ok(session);
        }
        let opening = async {
            tokio::select! {
                opened = self.connector.open() => opened,
                () = self.cancelled.cancelled() => Err(abandoned()),
            }
        };
        let opened = self.runtime.block_on(opening)?;
        Ok(Session::new(opened, &self.drivers, self.runtime.clone()))
    }

    /// Hangs up on the server: the running statement fails as if the connection had broken.
    fn give_up(&self) {
        if let Some(running) = &*self.running.lock() {
            running.hang_up.abort();
        }
    }

    fn cancel(&self) {
        self.cancelled.cancel();
        let Some(running) = self.running.lock().take() else {
            return;
        };
        let connector = self.connector.clone();
        self.runtime.spawn(async move {
            let request = connector.cancel(running.cancel, running.host);
            let _ = tokio::time::timeout(CANCEL_GRACE, request).await;
            tokio::time::sleep(CANCEL_GRACE).await;
            // The session is not used again either way.
            running.hang_up.abort();
        });
    }
}

fn abandoned() -> Error {
    Error::retryable(
        ErrorKind::Index,
        "index in Postgres: the call was abandoned",
    )
}

/// Cancels a call that nobody waits for any more; one that is done has nothing to cancel.
struct CancelOnDrop(Arc<Run>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How long to wait before the nth try against other transactions, with jitter.
pub(super) fn pause(nth: u32) -> Duration {
    Duration::from_millis(u64::from(rand::random::<u8>() % 8 + 2) << nth.min(6))
}
