//! The pool for everything but short lookups: bulk writes, schema, renewal, leases. Blocking
//! `postgres` connections in `r2d2`, used from tokio's blocking threads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::connect::Connector;
use super::error::{self, PgError, Retry};
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Pass;

/// How long a cancelled statement may take to say so.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Tries of a transaction that loses against others (deadlock, serialization).
const MAX_AGAIN: u32 = 5;

/// A place in the pool. r2d2 bounds and ages the places; the connection in it is opened by whoever
/// takes the place, so that its error reaches that caller at once and with its reason (r2d2 itself
/// would go on trying until its timeout and keep only a text).
#[derive(Default)]
pub(super) struct Place {
    client: Option<postgres::Client>,
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
        }
    }

    /// Runs `work` on a connection, within `limit` (the statement timeout by default) once it is
    /// connected. A dropped future cancels the running statement.
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
        F: FnMut(&mut postgres::Client) -> std::result::Result<T, PgError> + Send + 'static,
    {
        let limit = limit.unwrap_or(self.limit);
        let permit = match tokio::time::timeout(limit, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(super::pipe::closed()),
            Err(_) => {
                return Err(Error::retryable(
                    ErrorKind::Index,
                    format!("index in Postgres: {what}: no connection of the pool became free within {} s (maxOpenConns)", limit.as_secs_f32()),
                ))
            }
        };
        let places = self.places.lock().clone().ok_or_else(super::pipe::closed)?;
        let run = Arc::new(Run {
            token: Mutex::new(None),
            started: Notify::new(),
            connector: self.connector.clone(),
            runtime: self.runtime.clone(),
        });
        let guard = CancelOnDrop(Some(run.clone()));
        let connector = self.connector.clone();
        let mut task = self.runtime.spawn_blocking(move || {
            let _held = (permit, pass);
            let mut place = places.get().map_err(|e| {
                Error::retryable(
                    ErrorKind::Index,
                    format!("index in Postgres: {what}: the pool gave no connection: {e}"),
                )
            })?;
            let result = run.work(&connector, &mut place, what, repeat, limit, work);
            drop(place);
            drop(places);
            result
        });
        let mut deadline =
            tokio::time::Instant::now() + self.connector.timeout() + Duration::from_secs(1);
        loop {
            tokio::select! {
                done = &mut task => {
                    guard.disarm();
                    return done.unwrap_or_else(|e| Err(Error::new(ErrorKind::Internal, format!("index in Postgres: {what}: {e}"))));
                }
                () = guard.started() => deadline = tokio::time::Instant::now() + limit,
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        guard.cancel();
        match tokio::time::timeout(CANCEL_GRACE, task).await {
            // It made it at the last moment.
            Ok(Ok(Ok(value))) => Ok(value),
            _ => Err(error::timed_out(what, limit)),
        }
    }

    /// Closes every connection, blocking until they are closed.
    pub fn close(&self) {
        self.permits.close();
        drop(self.places.lock().take());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A blocking client must not be dropped on an async thread, and the runtime may be on its
        // way out.
        if let Some(places) = self.places.lock().take() {
            let _ = std::thread::Builder::new()
                .name("walrusds-close".into())
                .spawn(move || drop(places));
        }
    }
}

/// One call, as seen by its blocking thread and its canceller.
struct Run {
    /// Set while a statement may be running; `Cancelled` stays.
    token: Mutex<Option<Cancel>>,
    started: Notify,
    connector: Arc<Connector>,
    runtime: Handle,
}

enum Cancel {
    Armed(postgres::CancelToken),
    Cancelled,
}

impl Run {
    fn work<T, F>(
        &self,
        connector: &Connector,
        place: &mut Place,
        what: &str,
        repeat: Repeat,
        limit: Duration,
        mut work: F,
    ) -> Result<T>
    where
        F: FnMut(&mut postgres::Client) -> std::result::Result<T, PgError>,
    {
        let begun = Instant::now();
        let (mut again, mut reconnects) = (0, 0);
        loop {
            let mut client = match place.client.take() {
                // Idle connections are not watched: one that died meanwhile is noticed here, by a
                // call that may be repeated in the call itself.
                Some(mut client) => {
                    if repeat == Repeat::Never && client.is_valid(limit).is_err() {
                        connector.open_blocking()?
                    } else {
                        client
                    }
                }
                None => connector.open_blocking()?,
            };
            {
                let mut token = self.token.lock();
                if matches!(*token, Some(Cancel::Cancelled)) {
                    place.client = Some(client);
                    return Err(Error::retryable(
                        ErrorKind::Index,
                        format!("{what} was abandoned"),
                    ));
                }
                *token = Some(Cancel::Armed(client.cancel_token()));
            }
            self.started.notify_one();
            let result = work(&mut client);
            let cancelled = {
                let mut token = self.token.lock();
                let cancelled = matches!(*token, Some(Cancel::Cancelled));
                if !cancelled {
                    *token = None;
                }
                cancelled
            };
            if cancelled {
                // The cancel request may still be on its way: it must not hit the next call.
                drop(client);
                return result.map_err(|e| error::statement(what, &e));
            }
            let error = match result {
                Ok(value) => {
                    place.client = Some(client);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let verdict = error::retry(&error);
            if verdict != Retry::Reconnect && !client.is_closed() {
                place.client = Some(client);
            }
            match verdict {
                Retry::Reconnect if reconnects == 0 && repeat == Repeat::Harmless => {
                    reconnects += 1
                }
                Retry::Again if again < MAX_AGAIN && begun.elapsed() < limit => {
                    again += 1;
                    std::thread::sleep(pause(again));
                }
                _ => return Err(error::statement(what, &error)),
            }
        }
    }

    fn cancel(self: Arc<Self>) {
        let mut token = self.token.lock();
        let armed = token.replace(Cancel::Cancelled);
        drop(token);
        if let Some(Cancel::Armed(token)) = armed {
            let this = self.clone();
            self.runtime
                .spawn_blocking(move || token.cancel_query(this.connector.tls()));
        }
    }
}

struct CancelOnDrop(Option<Arc<Run>>);

impl CancelOnDrop {
    async fn started(&self) {
        match &self.0 {
            Some(run) => run.started.notified().await,
            None => std::future::pending().await,
        }
    }

    fn disarm(mut self) {
        self.0 = None;
    }

    fn cancel(mut self) {
        if let Some(run) = self.0.take() {
            run.cancel();
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run.cancel();
        }
    }
}

/// How long to wait before the nth try against other transactions, with jitter.
pub(super) fn pause(nth: u32) -> Duration {
    Duration::from_millis(u64::from(rand::random::<u8>() % 8 + 2) << nth.min(6))
}
