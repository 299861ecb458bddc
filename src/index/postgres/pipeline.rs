//! A pipelined connection for short statements: any number of callers share it, each statement is
//! one round trip, and the next one is sent before the answer is here. It reconnects by itself.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::call::{Call, Repeat, Source};
use super::conn::{Conn, Opener};
use crate::error::Result;

/// See the module.
pub(super) struct Pipeline {
    opener: Arc<Opener>,
    current: Mutex<Option<Arc<Conn>>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Pipeline {
    /// A pipe that connects at first use.
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

    /// Lets the connection go.
    pub fn close(&self) {
        drop(self.current.lock().take());
    }
}

impl Source for Pipeline {
    const SHARED: bool = true;
    /// Most statements are done by then, and a cancel request costs a connection.
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
