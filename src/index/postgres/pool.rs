//! Connections that a call has to itself: for bulk writes, transactions, listings, and all other
//! statements that are not short.
//!
//! **Problem.** The number of connections is bounded, opening one is slow, and an idle one may have
//! died unnoticed.
//!
//! **Outline.** A call waits for one of `places` ([`super::call`] keeps it until the call's work
//! has ended). It then takes the connection that was used last, if one is idle, or opens one. After
//! the call the connection goes back to `idle`, unless it is closed, too old, or was cancelled on.
//! A task closes connections that were idle for [`IDLE_FOR`] or are older than [`MAX_AGE`]; it runs
//! only while connections are idle.
//!
//! **Invariants.**
//! - At most as many calls as there are places use or open connections.
//! - A connection is used by one call at a time.
//! - A call that must not be repeated ([`Repeat::Never`]) gets an idle connection only after that
//!   has proved to be alive. Other calls notice a dead one by themselves and are tried again.
//! - An idle connection is handed out only if it is to the host of the latest connection.
//!
//! **Lock order.** A place, then `idle`. `idle` is held for no await.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::call::{Call, Repeat, Source};
use super::conn::{Conn, Opener};
use crate::error::{Error, ErrorKind, Result};

/// How long an idle connection may take to prove that it is alive.
const VALID_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection may stay idle.
const IDLE_FOR: Duration = Duration::from_secs(300);
/// Age from which a connection is not used for another call.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// How often idle connections are checked.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A pool of connections. See the module.
pub(super) struct Pool {
    opener: Arc<Opener>,
    /// One permit for each connection.
    places: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Sorted by the time of last use; the last one is used next.
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

    /// Closes every idle connection and refuses calls from now on.
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
            // A call that may be repeated notices a dead connection by itself; for other calls the
            // connection is checked here. A connection to a host that the server has left since may
            // even seem alive.
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

/// Closes connections that were idle for long, until none is idle.
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
