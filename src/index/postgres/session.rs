//! A connection for blocking code: statements one after another, transactions. Its socket is served
//! on the runtime, so that it can be given up while a thread waits for an answer that never comes.

use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client, Row};
use tokio_util::task::TaskTracker;

use super::connect::Opened;
use super::error::PgError;
use super::fence::Reading;

/// Values with their types, so that a statement is one round trip.
pub(super) type Params<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// See the module. For tokio's blocking threads alone.
pub(super) struct Session {
    client: Client,
    host: usize,
    driver: AbortHandle,
    runtime: Handle,
    clock: Option<Reading>,
    /// When the call that runs is given up.
    deadline: Instant,
}

impl Session {
    /// Serves the connection among `drivers`.
    pub fn new(opened: Opened, drivers: &TaskTracker, runtime: Handle) -> Self {
        let connection = opened.connection;
        let driver = drivers.spawn_on(
            async move {
                // Its error reaches the statements as "connection closed".
                let _ = connection.await;
            },
            &runtime,
        );
        Session {
            client: opened.client,
            host: opened.host,
            driver: driver.abort_handle(),
            runtime,
            clock: None,
            deadline: Instant::now(),
        }
    }

    /// For the call that begins: it is given up at `deadline`.
    pub fn begin(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Until when the server may carry out what this call sends it ([`super::fence`]). A round trip
    /// on a new session, and once a minute.
    pub fn until(&mut self) -> std::result::Result<SystemTime, PgError> {
        let clock = match self.clock.filter(|clock| !clock.is_old()) {
            Some(clock) => clock,
            None => self.runtime.block_on(Reading::take(&self.client))?,
        };
        self.clock = Some(clock);
        Ok(clock.until(self.deadline))
    }

    /// What is known of the server's clock may be wrong.
    pub fn forget_clock(&mut self) {
        self.clock = None;
    }

    /// Which host of the URL it is to.
    pub fn host(&self) -> usize {
        self.host
    }

    pub fn query_typed(
        &self,
        sql: &str,
        params: &Params<'_>,
    ) -> std::result::Result<Vec<Row>, PgError> {
        self.runtime.block_on(self.client.query_typed(sql, params))
    }

    pub fn execute_typed(
        &self,
        sql: &str,
        params: &Params<'_>,
    ) -> std::result::Result<u64, PgError> {
        self.runtime
            .block_on(self.client.execute_typed(sql, params))
    }

    pub fn transaction(&mut self) -> std::result::Result<Transaction<'_>, PgError> {
        let inner = self.runtime.block_on(self.client.transaction())?;
        Ok(Transaction {
            inner,
            runtime: &self.runtime,
        })
    }

    /// Whether the server answers within `limit`.
    pub fn is_valid(&self, limit: Duration) -> bool {
        let ping = async { tokio::time::timeout(limit, self.client.simple_query("")).await };
        matches!(self.runtime.block_on(ping), Ok(Ok(_)))
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Gives the connection up: what waits on it fails as "connection closed".
    pub fn abort_handle(&self) -> AbortHandle {
        self.driver.clone()
    }
}

/// Rolled back when dropped.
pub(super) struct Transaction<'a> {
    inner: tokio_postgres::Transaction<'a>,
    runtime: &'a Handle,
}

impl Transaction<'_> {
    pub fn query_typed(
        &self,
        sql: &str,
        params: &Params<'_>,
    ) -> std::result::Result<Vec<Row>, PgError> {
        self.runtime.block_on(self.inner.query_typed(sql, params))
    }

    pub fn execute_typed(
        &self,
        sql: &str,
        params: &Params<'_>,
    ) -> std::result::Result<u64, PgError> {
        self.runtime.block_on(self.inner.execute_typed(sql, params))
    }

    pub fn batch_execute(&self, sql: &str) -> std::result::Result<(), PgError> {
        self.runtime.block_on(self.inner.batch_execute(sql))
    }

    pub fn commit(self) -> std::result::Result<(), PgError> {
        self.runtime.block_on(self.inner.commit())
    }
}
