//! A pipelined connection for short statements: any number of callers share it, each statement is
//! one round trip, nobody waits for another's answer to be read. It reconnects by itself.
//!
//! Statements are unnamed and typed, so parse, bind and execute travel together and nothing stays
//! behind on the server: behind a transaction pooler, a named statement prepared on one server
//! connection would be missing on the next, or be another node's (tokio-postgres counts s0, s1, …
//! in every process). Only where the connection is known to end at the server itself ([`direct`])
//! are the few hot statements prepared: not having to be planned makes a lookup 2 to 5 times as
//! cheap for the server.

use std::collections::hash_map::{Entry, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::connect::Connector;
use super::direct;
use super::error::{self, PgError, Retry};
use super::fence::Reading;
use super::query::Query;
use crate::error::Result;
use crate::index::gate::Pass;

/// How long an abandoned statement may go on before it is cancelled: most are done by then, and a
/// cancel request costs a connection.
const CANCEL_AFTER: Duration = Duration::from_millis(25);
/// How long a cancelled statement may take to end before its connection is given up.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// How long preparing a statement may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(1);
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
            Param::Int(number) => (number, Type::INT8),
        }
    }
}

struct Conn {
    client: Client,
    /// Which host of the URL it is to.
    host: usize,
    driver: Mutex<Option<JoinHandle<()>>>,
    /// There is no pooler in between: statements may be prepared.
    direct: AtomicBool,
    /// Hot statements; `None` while one is being prepared, or if it could not be.
    named: Mutex<HashMap<usize, Option<tokio_postgres::Statement>>>,
    clock: Mutex<Option<Reading>>,
}

impl Conn {
    /// Until when the server may carry out what is given up here at `deadline`. A round trip before the
    /// first such statement; later readings of the clock travel beside one ([`Conn::renew_clock`]).
    async fn until(&self, deadline: Instant) -> std::result::Result<SystemTime, PgError> {
        let known = self.clock.lock().filter(Reading::is_usable);
        let clock = match known {
            Some(clock) => clock,
            None => self.read_clock().await?,
        };
        Ok(clock.until(deadline))
    }

    async fn renew_clock(&self) {
        if self.clock.lock().is_some_and(|clock| clock.is_old()) {
            // Without it the old one does until it is too old.
            let _ = self.read_clock().await;
        }
    }

    async fn read_clock(&self) -> std::result::Result<Reading, PgError> {
        let clock = Reading::take(&self.client).await?;
        *self.clock.lock() = Some(clock);
        Ok(clock)
    }

    /// The prepared form of a statement, if there is one already.
    fn named(&self, query: &Query) -> Option<tokio_postgres::Statement> {
        if !query.hot || !self.direct.load(Ordering::Relaxed) {
            return None;
        }
        self.named.lock().get(&query.id())?.clone()
    }

    /// Prepares a statement that has just worked, where allowed, beside the callers' statements.
    fn prepare(self: &Arc<Self>, query: &Query, params: &[Param], pipe: &Pipe, pass: &Arc<Pass>) {
        if !query.hot || !self.direct.load(Ordering::Relaxed) {
            return;
        }
        match self.named.lock().entry(query.id()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => drop(entry.insert(None)),
        }
        let (conn, query, pass) = (self.clone(), query.clone(), pass.clone());
        let until = query.fenced.then_some(Type::TIMESTAMPTZ);
        let types = params.iter().map(|p| p.typed().1).chain(until);
        let types: Vec<Type> = types.collect();
        let connector = pipe.connector.clone();
        pipe.runtime.spawn(async move {
            let _pass = pass;
            let prepared = conn.client.prepare_typed(query.text(), &types);
            tokio::pin!(prepared);
            let prepared = match tokio::time::timeout(PREPARE_LIMIT, &mut prepared).await {
                Ok(prepared) => prepared,
                Err(_) => {
                    // It waits for a lock on the table, and everyone behind it.
                    let token = conn.client.cancel_token();
                    let _ = tokio::time::timeout(CANCEL_GRACE, connector.cancel(token, conn.host))
                        .await;
                    prepared.await
                }
            };
            match prepared {
                Ok(statement) => conn.named.lock().insert(query.id(), Some(statement)),
                Err(_) => conn.named.lock().remove(&query.id()),
            };
        });
    }

    /// Uses no prepared statements any more.
    fn forget_named(&self) {
        self.direct.store(false, Ordering::Relaxed);
        self.named.lock().clear();
    }

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
        let opened = self.connector.open().await?;
        let driver = self.runtime.spawn(async move {
            // Its error reaches the callers as "connection closed".
            let _ = opened.connection.await;
        });
        let conn = Arc::new(Conn {
            client: opened.client,
            host: opened.host,
            driver: Mutex::new(Some(driver)),
            direct: AtomicBool::new(false),
            named: Mutex::new(HashMap::new()),
            clock: Mutex::new(None),
        });
        let probed = conn.clone();
        self.runtime.spawn(async move {
            if direct::is_direct(&probed.client).await {
                probed.direct.store(true, Ordering::Relaxed);
            }
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
        query: Query,
        params: Arc<[Param]>,
    ) -> Result<Vec<Row>> {
        self.query_raw(what, pass, query, params)
            .await?
            .map_err(|e| error::statement(what, &e))
    }

    /// As [`Pipe::query`], with the server's own error for the caller to look at.
    pub async fn query_raw(
        &self,
        what: &str,
        pass: Arc<Pass>,
        query: Query,
        params: Arc<[Param]>,
    ) -> Result<Answer> {
        let started = Instant::now();
        let deadline = started + self.limit;
        let (mut reconnects, mut strays, mut again, mut late) = (0, 0, 0, 0);
        loop {
            let conn = self.connection().await?;
            let left = self
                .limit
                .saturating_sub(started.elapsed())
                .max(Duration::from_millis(1));
            let named = conn.named(&query);
            let was_named = named.is_some();
            let statement = Statement::new(
                conn.clone(),
                named,
                query.clone(),
                params.clone(),
                deadline,
                pass.clone(),
                self,
            );
            let answer = tokio::select! {
                answer = tokio::time::timeout(left, statement) => answer,
                () = self.connector.moved_from(conn.host) => {
                    self.discard(&conn);
                    continue;
                }
            };
            let error = match answer {
                Err(_) => return Err(error::timed_out(what, self.limit)),
                Ok(Ok(rows)) => {
                    if !was_named {
                        conn.prepare(&query, &params, self, &pass);
                    }
                    return Ok(Ok(rows));
                }
                Ok(Err(e)) => e,
            };
            if was_named && lost_statement(&error) {
                conn.forget_named();
                continue;
            }
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
                Retry::Late if late < super::pool::MAX_LATE && started.elapsed() < self.limit => {
                    late += 1;
                    *conn.clock.lock() = None;
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
        named: Option<tokio_postgres::Statement>,
        query: Query,
        params: Arc<[Param]>,
        deadline: Instant,
        pass: Arc<Pass>,
        pipe: &Pipe,
    ) -> Statement {
        let on = conn.clone();
        let running = async move {
            let until = match query.fenced {
                true => Some(on.until(deadline).await?),
                false => None,
            };
            let mut typed: Vec<_> = params.iter().map(Param::typed).collect();
            if let Some(until) = &until {
                typed.push((until, Type::TIMESTAMPTZ));
            }
            let answer = async {
                match named {
                    Some(named) => {
                        let untyped: Vec<_> = typed.iter().map(|(param, _)| *param).collect();
                        on.client.query(&named, &untyped).await
                    }
                    None => on.client.query_typed(query.text(), &typed).await,
                }
            };
            if !query.fenced {
                return answer.await;
            }
            tokio::join!(answer, on.renew_clock()).0
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
            let cancel = connector.cancel(token, conn.host);
            let _ = tokio::time::timeout(CANCEL_GRACE, cancel).await;
            if tokio::time::timeout(CANCEL_GRACE, running).await.is_err() {
                // Not even a cancel request helps: the server or the network hangs.
                conn.abort();
            }
        });
    }
}

/// The server does not know a prepared statement any more, or it no longer fits the table.
fn lost_statement(error: &PgError) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || *code == SqlState::DUPLICATE_PSTATEMENT
            || *code == SqlState::PROTOCOL_VIOLATION
            || *code == SqlState::FEATURE_NOT_SUPPORTED // "cached plan must not change result type"
    })
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
        self.query(what, pass, Query::once(super::schema::FIND), params)
            .await
    }
}
