//! A pipelined connection for short statements: any number of callers share it, each statement is
//! one round trip, nobody waits for another's answer to be read. It reconnects by itself.
//!
//! Statements are unnamed and typed, so parse, bind and execute travel together and nothing stays
//! behind on the server: behind a transaction pooler, a named statement prepared on one server
//! connection would be missing on the next, or be another node's (tokio-postgres counts s0, s1, …
//! in every process).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::connect::Connector;
use super::error::{self, PgError, Retry};
use crate::error::{Error, Result};
use crate::index::gate::Pass;

/// How long an abandoned statement may go on before it is cancelled: most are done by then, and a
/// cancel request costs a connection.
const CANCEL_AFTER: Duration = Duration::from_millis(25);
/// How long a cancelled statement may take to end before its connection is given up.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// Cancels meant for a neighbour that a statement endures.
const MAX_STRAY_CANCELS: u32 = 20;

/// A parameter of a statement.
pub(super) enum Param {
    Text(String),
    Texts(Vec<String>),
    MaybeTexts(Option<Vec<String>>),
    Int(i64),
}

impl Param {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Param::Text(text) => (text, Type::TEXT),
            Param::Texts(texts) => (texts, Type::TEXT_ARRAY),
            Param::MaybeTexts(texts) => (texts, Type::TEXT_ARRAY),
            Param::Int(int) => (int, Type::INT8),
        }
    }
}

struct Conn {
    client: Client,
    driver: Mutex<Option<JoinHandle<()>>>,
    /// Set once the server has answered a statement.
    proven: AtomicBool,
}

impl Conn {
    /// Gives the connection up: everything on it fails as "connection closed".
    fn abort(&self) {
        if let Some(driver) = &*self.driver.lock() {
            driver.abort();
        }
    }
}

type Answer = std::result::Result<Vec<Row>, PgError>;

/// See the module.
pub(super) struct Pipe {
    connector: Arc<Connector>,
    limit: Duration,
    current: Mutex<Option<Arc<Conn>>>,
    connecting: tokio::sync::Mutex<()>,
    runtime: Handle,
}

impl Pipe {
    /// A pipe that connects at first use.
    pub fn new(connector: Arc<Connector>, limit: Duration) -> Arc<Pipe> {
        Arc::new(Pipe {
            connector,
            limit,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            runtime: Handle::current(),
        })
    }

    fn living(&self) -> Option<Arc<Conn>> {
        self.current
            .lock()
            .as_ref()
            .filter(|c| !c.client.is_closed())
            .cloned()
    }

    async fn connection(&self) -> Result<Arc<Conn>> {
        if let Some(conn) = self.living() {
            return Ok(conn);
        }
        let _one = self.connecting.lock().await;
        if let Some(conn) = self.living() {
            return Ok(conn);
        }
        let (client, connection) = self.connector.open().await?;
        let driver = self.runtime.spawn(async move {
            // Its error reaches the callers as "connection closed".
            let _ = connection.await;
        });
        let conn = Arc::new(Conn {
            client,
            driver: Mutex::new(Some(driver)),
            proven: AtomicBool::new(false),
        });
        *self.current.lock() = Some(conn.clone());
        Ok(conn)
    }

    /// Runs one statement. It must be harmless to run twice: it is repeated once after a lost
    /// connection, and whenever a cancel request for a neighbour hit it.
    pub async fn query(
        &self,
        what: &str,
        pass: Arc<Pass>,
        sql: Arc<str>,
        params: Arc<[Param]>,
    ) -> Result<Vec<Row>> {
        self.query_raw(what, pass, sql, params)
            .await?
            .map_err(|e| error::statement(what, &e))
    }

    /// As [`Pipe::query`], with the server's own error for the caller to look at.
    pub async fn query_raw(
        &self,
        what: &str,
        pass: Arc<Pass>,
        sql: Arc<str>,
        params: Arc<[Param]>,
    ) -> Result<Answer> {
        let started = Instant::now();
        let (mut reconnects, mut strays, mut again) = (0, 0, 0);
        loop {
            let conn = self.connection().await?;
            let left = self
                .limit
                .saturating_sub(started.elapsed())
                .max(Duration::from_millis(1));
            let statement = Statement::new(
                conn.clone(),
                sql.clone(),
                params.clone(),
                pass.clone(),
                self,
            );
            let error = match tokio::time::timeout(left, statement).await {
                Err(_) => return Err(error::timed_out(what, self.limit)),
                Ok(Ok(rows)) => {
                    conn.proven.store(true, Ordering::Relaxed);
                    return Ok(Ok(rows));
                }
                Ok(Err(e)) => e,
            };
            match error::retry(&error) {
                Retry::Reconnect if reconnects == 0 => {
                    reconnects += 1;
                    self.discard(&conn);
                }
                Retry::Cancelled
                    if strays < MAX_STRAY_CANCELS && started.elapsed() < self.limit =>
                {
                    strays += 1
                }
                Retry::Again if again < 5 && started.elapsed() < self.limit => {
                    again += 1;
                    tokio::time::sleep(super::pool::pause(again)).await;
                }
                _ => return Ok(Err(error)),
            }
        }
    }

    fn discard(&self, conn: &Arc<Conn>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, conn)) {
            *current = None;
        }
        drop(current);
        conn.abort();
    }

    /// Closes the connection and waits until it is closed (not for ever).
    pub async fn close(&self) {
        let Some(conn) = self.current.lock().take() else {
            return;
        };
        let Some(mut driver) = conn.driver.lock().take() else {
            return;
        };
        // The last client sends the farewell; the driver ends when the socket is closed.
        drop(conn);
        if tokio::time::timeout(Duration::from_secs(2), &mut driver)
            .await
            .is_err()
        {
            driver.abort();
            let _ = driver.await;
        }
    }
}

/// A running statement. Dropped before its answer, it is cancelled on the server.
struct Statement {
    running: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    sent: bool,
    conn: Arc<Conn>,
    connector: Arc<Connector>,
    runtime: Handle,
    pass: Arc<Pass>,
}

impl Statement {
    fn new(
        conn: Arc<Conn>,
        sql: Arc<str>,
        params: Arc<[Param]>,
        pass: Arc<Pass>,
        pipe: &Pipe,
    ) -> Statement {
        let on = conn.clone();
        let running = async move {
            let typed: Vec<_> = params.iter().map(Param::typed).collect();
            on.client.query_typed(&sql, &typed).await
        };
        Statement {
            running: Some(Box::pin(running)),
            sent: false,
            conn,
            connector: pipe.connector.clone(),
            runtime: pipe.runtime.clone(),
            pass,
        }
    }
}

impl Future for Statement {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.sent = true;
        let Some(running) = self.running.as_mut() else {
            return Poll::Pending; // not polled after completion
        };
        let answer = running.as_mut().poll(cx);
        if answer.is_ready() {
            self.running = None;
        }
        answer
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take().filter(|_| self.sent) else {
            return;
        };
        let (conn, connector, pass) =
            (self.conn.clone(), self.connector.clone(), self.pass.clone());
        self.runtime.spawn(async move {
            let _pass = pass;
            if tokio::time::timeout(CANCEL_AFTER, &mut running)
                .await
                .is_ok()
            {
                return;
            }
            // Hits whatever runs on the connection now: if that is a neighbour's statement, the
            // neighbour repeats it.
            let token = conn.client.cancel_token();
            let cancel = token.cancel_query(connector.tls());
            let _ = tokio::time::timeout(CANCEL_GRACE, cancel).await;
            if tokio::time::timeout(CANCEL_GRACE, running).await.is_err() {
                // Not even a cancel request helps: the server or the network hangs.
                conn.abort();
            }
        });
    }
}

/// A closed index refuses calls before they get here; this is for a call that lost the race.
pub(super) fn closed() -> Error {
    Error::closed("the index")
}

impl Pipe {
    /// Runs [`super::schema::FIND`].
    pub async fn find(
        &self,
        what: &str,
        pass: Arc<Pass>,
        find: super::schema::Find,
    ) -> Result<Vec<Row>> {
        let (names, schemas) = find.into_parts();
        let params = [Param::Texts(names), Param::MaybeTexts(schemas)].into();
        self.query(what, pass, super::schema::FIND.into(), params)
            .await
    }
}
