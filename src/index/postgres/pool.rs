//! Connections that a call has to itself: for bulk writes, transactions, listings, and whatever else is not
//! short. Those that are idle wait for the next call, for a while.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::call::{Call, Repeat, Source};
use super::conn::{Conn, Opener};
use crate::error::{Error, ErrorKind, Result};

/// How long an idle connection has to prove that it is alive.
const VALID_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection stays idle.
const IDLE_FOR: Duration = Duration::from_secs(300);
/// How old a connection gets.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// How often idle connections are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Pool {
    opener: Arc<Opener>,
    /// As many as connections.
    places: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last comes last, and is used next.
    conns: Vec<(Instant, Arc<Conn>)>,
    looked_at: bool,
}

impl Pool {
    /// A pool without connections yet.
    pub fn new(opener: &Arc<Opener>, size: u32) -> Arc<Pool> {
        Arc::new(Pool {
            opener: opener.clone(),
            places: Arc::new(Semaphore::new(size as usize)),
            idle: Mutex::default(),
        })
    }

    /// Lets every idle connection go and refuses calls from now on.
    pub fn close(&self) {
        self.places.close();
        self.idle.lock().conns.clear();
    }
}

impl Source for Arc<Pool> {
    const SHARED: bool = false;
    const PATIENCE: Duration = Duration::ZERO;

    fn opener(&self) -> &Arc<Opener> {
        &self.opener
    }

    async fn place(&self, call: &Call) -> Result<Option<OwnedSemaphorePermit>> {
        match timeout(call.limit, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            Ok(Err(_)) => Err(super::error::closed()),
            Err(_) => Err(Error::retryable(
                ErrorKind::Index,
                format!(
                    "index in Postgres: {}: no connection of the pool became free within {} s (maxOpenConns)",
                    call.what,
                    call.limit.as_secs_f32()
                ),
            )),
        }
    }

    async fn take(&self, repeat: Repeat, anew: bool) -> Result<Arc<Conn>> {
        let known = match anew {
            true => None, // in place of the one that broke
            false => self.idle.lock().conns.pop(),
        };
        if let Some((_, conn)) = known {
            // One that died meanwhile is noticed by the call itself if that may be repeated, and here
            // otherwise. One to a host that the server has left since may even seem alive.
            let usable = !conn.is_closed() && conn.host == self.opener.connector.home();
            if usable && (repeat == Repeat::Harmless || conn.answers(VALID_LIMIT).await) {
                return Ok(conn);
            }
        }
        self.opener.open().await
    }

    fn put_back(&self, conn: Arc<Conn>) {
        if conn.is_closed() || conn.opened.elapsed() > MAX_AGE || self.places.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        idle.conns.push((Instant::now(), conn));
        if !std::mem::replace(&mut idle.looked_at, true) {
            let looking = look(Arc::downgrade(self));
            self.opener.runtime.spawn(looking);
        }
    }

    fn discard(&self, conn: &Arc<Conn>) {
        conn.abort();
    }
}

/// Lets connections go that were idle for long, until there are none.
async fn look(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock();
        let keep = |(since, conn): &(Instant, Arc<Conn>)| {
            since.elapsed() < IDLE_FOR && conn.opened.elapsed() < MAX_AGE && !conn.is_closed()
        };
        idle.conns.retain(keep);
        if idle.conns.is_empty() {
            idle.looked_at = false;
            return;
        }
    }
}
