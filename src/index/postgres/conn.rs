//! A connection: sends statements, keeps the state of its server (clock, prepared statements), and
//! can be given up.
//!
//! Statements are unnamed and typed, so parse, bind and execute travel together and nothing stays
//! behind on the server: behind a transaction pooler, a named statement prepared on one server
//! connection would be missing on the next, or be another node's (tokio-postgres counts s0, s1, …
//! in every process). Only where the connection is known to end at the server itself ([`direct`])
//! are the few hot statements prepared: not having to be planned makes a lookup 2 to 5 times as
//! cheap for the server.
//!
//! For the same reason only a connection to the server itself carries more than one request at a
//! time. A transaction pooler gives a server connection to the next client when the server is
//! ready, and pgbouncer before 1.21 (Debian 12 has 1.18) takes it for ready once it has answered
//! one of several requests. If the client of the others hangs up then, by a crash or because the
//! server hangs, the next client gets their answers for its own: a listing was empty, and a lookup
//! can miss a block that is there (`disconnect_client` in pgbouncer's `src/objects.c`;
//! `tests/outages/pooler.rs` saw it once in a hundred runs). Other poolers drop the later answers
//! (<https://github.com/supabase/supavisor/issues/1061>). A request that is dropped before its
//! answer has come closes such a connection, and pgbouncer then closes the server's. After an error
//! an empty query follows, because the next request could reach pgbouncer between the error and the
//! server's word that it is ready (<https://github.com/pgbouncer/pgbouncer/issues/759>).

use std::collections::hash_map::{Entry, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Statement};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::Connector;
use super::deadline::Reading;
use super::direct;
use super::error::PgError;
use super::query::{Param, Query};
use crate::error::Result;

/// How long sending a cancel request may take, and then how long the cancelled statement may take
/// to end.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// How long preparing a statement may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(1);
/// How long closing waits for connections to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The server's answer to a statement.
pub(super) type Answer<T> = std::result::Result<T, PgError>;

/// Opens the connections of an index and serves their sockets, as tasks of their own.
pub(super) struct Opener {
    pub connector: Arc<Connector>,
    pub runtime: Handle,
    drivers: TaskTracker,
    hang_up: CancellationToken,
}

impl Opener {
    pub fn new(connector: Connector) -> Arc<Opener> {
        Arc::new(Opener {
            connector: Arc::new(connector),
            runtime: Handle::current(),
            drivers: TaskTracker::new(),
            hang_up: CancellationToken::new(),
        })
    }

    pub async fn open(self: &Arc<Self>) -> Result<Arc<Conn>> {
        let opened = self.connector.open().await?;
        let hang_up = self.hang_up.child_token();
        let (connection, hung_up) = (opened.connection, hang_up.clone());
        let driver = async move {
            tokio::select! {
                // Statements get the connection's error as "connection closed".
                _ = connection => {}
                () = hung_up.cancelled() => {}
            }
        };
        self.drivers.spawn_on(driver, &self.runtime);
        Ok(Arc::new(Conn {
            client: opened.client,
            host: opened.host,
            opened: Instant::now(),
            opener: self.clone(),
            hang_up,
            direct: AtomicBool::new(false),
            names: AtomicBool::new(false),
            turn: tokio::sync::Mutex::default(),
            named: Mutex::default(),
            clock: Mutex::new(None),
        }))
    }

    /// Waits until the connections are closed: their last users close them by dropping them. Hangs
    /// up on those that are left after [`CLOSE_LIMIT`].
    pub async fn close(&self) {
        self.drivers.close();
        if timeout(CLOSE_LIMIT, self.drivers.wait()).await.is_err() {
            self.hang_up.cancel();
            self.drivers.wait().await;
        }
    }
}

/// A connection to the server. See the module.
pub(super) struct Conn {
    client: Client,
    /// The index of its host in the URL.
    pub host: usize,
    pub opened: Instant,
    pub opener: Arc<Opener>,
    hang_up: CancellationToken,
    /// Whether the connection is known to end at the server, without a pooler in between: then
    /// requests need not wait for one another.
    direct: AtomicBool,
    /// Whether hot statements may be prepared: the connection is direct, and the server has not
    /// lost one.
    names: AtomicBool,
    /// Held by the request under way while the connection is not known to be direct.
    turn: tokio::sync::Mutex<()>,
    /// Prepared hot statements by [`Query::id`]; `None` while one is being prepared.
    named: Mutex<HashMap<usize, Option<Statement>>>,
    clock: Mutex<Option<Reading>>,
}

impl Conn {
    /// Runs a statement whose caller gives it up at `deadline`.
    pub async fn query(
        self: &Arc<Self>,
        query: &Query,
        params: &[Param],
        deadline: Instant,
    ) -> Answer<Vec<Row>> {
        let until = match query.bounded {
            true => Some(self.until(deadline).await?),
            false => None,
        };
        let mut typed: Vec<_> = params.iter().map(Param::typed).collect();
        if let Some(until) = &until {
            typed.push((until, Type::TIMESTAMPTZ));
        }
        loop {
            let named = self.named(query);
            let answer = async {
                match &named {
                    Some(named) => {
                        let untyped: Vec<_> = typed.iter().map(|(param, _)| *param).collect();
                        let request = self.client.query(named, &untyped);
                        self.in_turn(Box::pin(request)).await
                    }
                    None => {
                        let request = self.client.query_typed(query.text(), &typed);
                        self.in_turn(Box::pin(request)).await
                    }
                }
            };
            let answer = match query.bounded {
                true => tokio::join!(answer, self.renew_clock()).0,
                false => answer.await,
            };
            match &answer {
                Err(e) if named.is_some() && lost_statement(e) => self.forget_named(),
                Ok(_) if named.is_none() => {
                    let types = typed.iter().map(|(_, kind)| kind.clone());
                    self.prepare(query, types.collect());
                    return answer;
                }
                _ => return answer,
            }
        }
    }

    /// As [`query`](Self::query), but returns the number of changed rows.
    pub async fn execute(&self, query: &Query, params: &[Param]) -> Answer<u64> {
        let typed: Vec<_> = params.iter().map(Param::typed).collect();
        let request = self.client.execute_typed(query.text(), &typed);
        self.in_turn(Box::pin(request)).await
    }

    /// Runs statements without parameters.
    pub async fn batch(&self, sql: &str) -> Answer<()> {
        self.in_turn(Box::pin(self.client.batch_execute(sql))).await
    }

    /// Runs `work` in one transaction. The connection must not be shared.
    pub async fn transaction<T>(&self, work: impl Future<Output = Answer<T>>) -> Answer<T> {
        self.transaction_if(work, |_| true).await
    }

    /// As [`transaction`](Self::transaction); a transaction is undone unless its result `fits`.
    pub async fn transaction_if<T>(
        &self,
        work: impl Future<Output = Answer<T>>,
        fits: impl Fn(&T) -> bool,
    ) -> Answer<T> {
        tokio::join!(self.batch("BEGIN"), self.renew_clock()).0?;
        let done = match work.await {
            // Where a statement has failed unseen, the server would answer COMMIT with ROLLBACK,
            // and this is an error.
            Ok(done) if fits(&done) => match self.batch("SELECT 1; COMMIT").await {
                Ok(()) => return Ok(done),
                Err(e) => Err(e),
            },
            undone => undone,
        };
        // A connection on which ROLLBACK fails must not serve another call.
        if self.batch("ROLLBACK").await.is_err() {
            self.abort();
        }
        done
    }

    /// The server's time until which it may carry out a statement whose caller gives it up at
    /// `deadline`. Costs a round trip before the first such statement; later readings of the clock
    /// travel beside a statement.
    async fn until(&self, deadline: Instant) -> Answer<SystemTime> {
        let known = self.clock.lock().filter(Reading::is_usable);
        let clock = match known {
            Some(clock) => clock,
            None => self.read_clock().await?,
        };
        Ok(clock.until(deadline))
    }

    async fn renew_clock(&self) {
        if self.clock.lock().is_some_and(|clock| clock.is_old()) {
            // If this fails, the old reading is used until it is too old.
            let _ = self.read_clock().await;
        }
    }

    async fn read_clock(&self) -> Answer<Reading> {
        let clock = self.in_turn(Box::pin(Reading::take(&self.client))).await?;
        *self.clock.lock() = Some(clock);
        Ok(clock)
    }

    /// Drops the reading of the server's clock, which may be wrong.
    pub fn forget_clock(&self) {
        *self.clock.lock() = None;
    }

    /// Whether several requests may be under way.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Makes a request, alone on the connection unless that is known to be direct. See the module.
    /// The result must be polled until it has come, because others wait for their turn.
    async fn in_turn<T>(&self, request: BoxFuture<'_, Answer<T>>) -> Answer<T> {
        if self.is_direct() {
            let _sent = Sent::new();
            return request.await;
        }
        let _turn = self.turn.lock().await;
        let _sent = Sent::new();
        let unanswered = self.hang_up.clone().drop_guard();
        let answer = request.await;
        if answer.as_ref().is_err_and(|e| e.code().is_some()) {
            // An error comes before the word that the server is ready. This comes after it.
            let _ = self.client.batch_execute("").await;
        }
        unanswered.disarm();
        answer
    }

    /// Finds out, between other statements, whether statements may be prepared on this connection.
    /// Only for a shared one: a statement that is prepared beside a transaction takes part in it.
    pub fn probe(self: &Arc<Self>) {
        let conn = self.clone();
        self.opener.runtime.spawn(async move {
            let direct = conn
                .in_turn(Box::pin(direct::is_direct(&conn.client)))
                .await;
            let direct = direct.unwrap_or(false);
            conn.direct.store(direct, Ordering::Relaxed);
            conn.names.store(direct, Ordering::Relaxed);
        });
    }

    /// The prepared form of a statement, if it exists already.
    fn named(&self, query: &Query) -> Option<Statement> {
        if !query.hot || !self.names.load(Ordering::Relaxed) {
            return None;
        }
        self.named.lock().get(&query.id())?.clone()
    }

    /// Prepares a statement that has just worked, where allowed, beside the callers' statements.
    fn prepare(self: &Arc<Self>, query: &Query, types: Vec<Type>) {
        if !query.hot || !self.names.load(Ordering::Relaxed) {
            return;
        }
        match self.named.lock().entry(query.id()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => drop(entry.insert(None)),
        }
        let (conn, query) = (self.clone(), query.clone());
        self.opener.runtime.spawn(async move {
            let prepared = conn.client.prepare_typed(query.text(), &types);
            tokio::pin!(prepared);
            let prepared = match timeout(PREPARE_LIMIT, &mut prepared).await {
                Ok(prepared) => prepared,
                Err(_) => {
                    // The preparation waits for a lock on the table, and every later statement on
                    // the connection waits behind it.
                    conn.cancel().await;
                    prepared.await
                }
            };
            match prepared {
                Ok(statement) => conn.named.lock().insert(query.id(), Some(statement)),
                Err(_) => conn.named.lock().remove(&query.id()),
            };
        });
    }

    /// Stops using prepared statements on this connection.
    fn forget_named(&self) {
        self.names.store(false, Ordering::Relaxed);
        self.named.lock().clear();
    }

    /// Asks the server to cancel the statement that runs on this connection now.
    pub async fn cancel(&self) {
        let token = self.client.cancel_token();
        let request = self.opener.connector.cancel(token, self.host);
        let _ = timeout(CANCEL_GRACE, request).await;
    }

    /// Gives the connection up: everything on it fails as "connection closed".
    pub fn abort(&self) {
        self.hang_up.cancel();
    }

    pub fn is_closed(&self) -> bool {
        self.hang_up.is_cancelled() || self.client.is_closed()
    }

    /// Whether the server answers within `limit`.
    pub async fn answers(&self, limit: Duration) -> bool {
        matches!(timeout(limit, self.batch("")).await, Ok(Ok(())))
    }
}

tokio::task_local! {
    /// How many requests of the present work were sent and have no answer yet.
    pub(super) static SENT: Arc<AtomicUsize>;
}

/// Counts a request in [`SENT`].
struct Sent;

impl Sent {
    fn new() -> Sent {
        let _ = SENT.try_with(|sent| sent.fetch_add(1, Ordering::Relaxed));
        Sent
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let _ = SENT.try_with(|sent| sent.fetch_sub(1, Ordering::Relaxed));
    }
}

/// Whether the server does not know a prepared statement any more, or the statement no longer fits
/// the table.
fn lost_statement(error: &PgError) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || *code == SqlState::DUPLICATE_PSTATEMENT
            || *code == SqlState::PROTOCOL_VIOLATION
            || *code == SqlState::FEATURE_NOT_SUPPORTED // "cached plan must not change result type"
    })
}
