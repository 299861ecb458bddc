//! A pipelined connection for short statements.
//!
//! **Problem.** Short statements should not wait for one another, nor take up a connection each.
//!
//! **Outline.** Any number of callers share one connection. Each statement is one round trip, and
//! the next one is sent before the answer to the former has come, unless a pooler may be in between
//! ([`super::conn`]). The first call connects; a later call connects anew when the connection is
//! closed or was discarded.
//!
//! **Invariants.**
//! - At most one connection is being opened at a time. Callers that wait for it use the one that
//!   was opened meanwhile.
//! - A connection that is discarded is closed, and is no longer `current`; discarding an older
//!   connection does not affect a newer one.
//!
//! **Lock order.** `connecting`, then `current`. `connecting` is asynchronous and is held while a
//! connection is opened; `current` is held for no await.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::call::{Call, Repeat, Source};
use super::conn::{Conn, Opener};
use crate::error::Result;

/// A shared connection that reconnects by itself. See the module.
pub(super) struct Pipeline {
    opener: Arc<Opener>,
    current: Mutex<Option<Arc<Conn>>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Pipeline {
    /// A pipeline that connects at first use.
    pub fn new(opener: &Arc<Opener>) -> Arc<Pipeline> {
        Arc::new(Pipeline {
            opener: opener.clone(),
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    fn living(&self) -> Option<Arc<Conn>> {
        let current = self.current.lock();
        current.as_ref().filter(|c| !c.is_closed()).cloned()
    }

    /// Drops its own reference to the connection.
    pub fn close(&self) {
        drop(self.current.lock().take());
    }
}

impl Source for Pipeline {
    const SHARED: bool = true;
    /// Most statements have ended by then, and a cancel request costs a connection.
    const PATIENCE: Duration = Duration::from_millis(25);

    fn opener(&self) -> &Arc<Opener> {
        &self.opener
    }

    async fn place(&self, _: &Call) -> Result<Option<OwnedSemaphorePermit>> {
        Ok(None)
    }

    async fn take(&self, _: Repeat, _: bool) -> Result<Arc<Conn>> {
        if let Some(conn) = self.living() {
            return Ok(conn);
        }
        let _one = self.connecting.lock().await;
        if let Some(conn) = self.living() {
            return Ok(conn);
        }
        let conn = self.opener.open().await?;
        conn.probe();
        *self.current.lock() = Some(conn.clone());
        Ok(conn)
    }

    fn put_back(&self, _: Arc<Conn>) {}

    fn discard(&self, conn: &Arc<Conn>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, conn)) {
            *current = None;
        }
        drop(current);
        conn.abort();
    }
}
