//! The shared index: a table in Postgres, which Citus may have distributed.
//!
//! Short statements (lookups, deletes) go over pipelined connections (`pipeline`); all others go
//! over connections that a call has to itself (`pool`). Both open connections when they are first
//! needed. Every call passes through `call`, which repeats or cancels it as needed.

mod apart;
mod blocks;
mod call;
mod cancel;
mod companions;
mod conn;
mod connect;
mod deadline;
mod deleted;
mod deleted_sql;
mod direct;
mod error;
mod facts;
mod follow;
mod go_staging;
mod in_doubt;
mod ledger;
mod missing;
mod near;
mod open;
mod order;
mod params;
mod passfile;
mod pipeline;
mod pool;
mod query;
mod rows;
mod schema;
mod shards;
mod sql;
mod staged;
mod tls;
mod url;
mod v1;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use self::call::{Call, Repeat};
use self::conn::{Answer, Conn, Opener};
use self::connect::Connector;
use self::follow::Follow;
use self::go_staging::Staging;
use self::in_doubt::InDoubt;
use self::ledger::LedgerSql;
use self::missing::MissingSql;
use self::near::Near;
pub use self::near::StandbyReads;
use self::open::{Links, Rights};
use self::pipeline::Pipeline;
use self::pool::Pool;
use self::query::{Param, Query};
use self::schema::Shape;
use self::sql::Sql;
use super::gate::Gate;
use super::table::parse_table;
use super::Usage;

use crate::error::Result;

/// Time for the searches for blobs to renew. Such a search may go through every row, which may take
/// longer than the statement timeout: without an answer nothing would be renewed. A renewer's lease
/// runs for longer.
const SEARCH_LIMIT: Duration = Duration::from_secs(240);

/// How to open a [`PostgresIndex`].
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// libpq URL or `keyword=value` string: several hosts, Unix sockets (`?host=/dir`), `sslmode`
    /// with libpq's meanings (`require` does not verify unless `sslrootcert` is given; without
    /// `sslrootcert`, `verify-*` use `~/.postgresql/root.crt` if it exists, else the system's
    /// roots), `sslcert`/`sslkey`, `connect_timeout`, `application_name` (default `walrusds`),
    /// `target_session_attrs` (but see [`standby_reads`](Self::standby_reads)). An unknown
    /// parameter is an error. Secret.
    pub url: String,
    /// Table, optionally with a schema ([`parse_table`]). Quoted as given; if there is only a table
    /// with the lower-case name (made by the Go plugin, which did not quote), that one is used.
    pub table: String,
    /// Most connections to open. One is the pipelined connection for lookups, one (from 3 on) that
    /// for deletes, the rest are the pool's; at least two are used.
    pub max_open_conns: u32,
    /// Time for one connection, all hosts of the URL together. `connect_timeout` in the URL takes
    /// precedence.
    pub connect_timeout: Duration,
    /// Time for one statement; a statement that takes longer is cancelled on the server.
    pub statement_timeout: Duration,
    /// How long deleted rows can be brought back; with zero they are not kept.
    pub keep_deleted: Duration,
    /// Whether to use the table as it is: none is created or extended.
    pub only_existing: bool,
    /// With `target_session_attrs=prefer-standby`, this node sends lookups and pages to standbys
    /// and everything else to the primary. Without it, such a node uses the primary alone: a write
    /// must not be decided by what a standby knows.
    pub standby_reads: Option<StandbyReads>,
}

setters! { PostgresOptions {
    with_keep_deleted(keep_deleted: Duration);
    with_max_open_conns(max_open_conns: u32);
    with_connect_timeout(connect_timeout: Duration);
    with_statement_timeout(statement_timeout: Duration);
    with_only_existing(only_existing: bool);
    with_standby_reads(standby_reads: Option<StandbyReads>);
} }

impl PostgresOptions {
    /// Options with the defaults (32 connections, 10 s to connect, 30 s for a statement, deleted
    /// rows are not kept).
    pub fn new(url: impl Into<String>, table: impl Into<String>) -> Self {
        PostgresOptions {
            url: url.into(),
            table: table.into(),
            max_open_conns: 32,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            keep_deleted: Duration::ZERO,
            only_existing: false,
            standby_reads: None,
        }
    }
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("url", &"(secret)")
            .field("table", &self.table)
            .field("max_open_conns", &self.max_open_conns)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("keep_deleted", &self.keep_deleted)
            .field("only_existing", &self.only_existing)
            .field("standby_reads", &self.standby_reads)
            .finish()
    }
}

/// The index in Postgres. Must be opened and used on a multi-thread tokio runtime.
pub struct PostgresIndex {
    gate: Arc<Gate>,
    inner: Arc<PostgresParts>,
    /// The same index on standbys, where reads go to these.
    near: Option<Arc<Near>>,
}

struct PostgresParts {
    opener: Arc<Opener>,
    lookups: Arc<Pipeline>,
    /// The connection for deletes. They wait for row locks: on the lookups' connection they would
    /// delay reads.
    deletes: Arc<Pipeline>,
    pool: Arc<Pool>,
    shape: Shape,
    sql: Sql,
    /// `None` for a table of an older version that this node cannot change.
    ledger: Option<LedgerSql>,
    missing: MissingSql,
    max_open_conns: u32,
    statement_timeout: Duration,
    /// How long deleted rows are kept; zero where there is no table for them.
    keep_deleted: Duration,
    staging: Staging,
    rights: Rights,
    /// Whether its lookups may decide about writes.
    may_write: bool,
    in_doubt: InDoubt,
    /// Of an index on standbys: decides whether their answers count.
    follow: Option<Arc<Follow>>,
}

/// Whether `url` can be used at all; nothing is looked up or opened.
///
/// # Errors
/// [`ErrorKind::Config`](crate::ErrorKind::Config), without the URL: it may hold a password.
pub(crate) fn check_url(url: &str) -> Result<()> {
    url::parse(url).map(drop)
}

impl PostgresIndex {
    /// Connects, checks the table in one round trip and, only where it is missing or of an older
    /// version, creates or extends it (under a lock; any number of nodes may start at once).
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for a problem that an operator must solve
    /// (URL, password, rights, a table that is something else),
    /// [`ErrorKind::Index`](crate::ErrorKind::Index) (retryable) while the server cannot be
    /// reached.
    pub async fn open(options: PostgresOptions) -> Result<PostgresIndex> {
        let wanted = parse_table(&options.table)?;
        let connector = Connector::new(&options.url, options.connect_timeout)?;
        let (connector, near) = open::roles(connector, &options);
        let conns = options.max_open_conns;
        let half = if near.is_some() { conns / 2 } else { 0 };
        let near = near.map(|(connector, reads)| (Links::new(connector, half), reads));
        let links = Links::new(connector, conns - half);
        let prepared = links.prepare(&wanted, &options, options.only_existing);
        let mut opened = Box::pin(prepared).await;
        if let (Err(e), Some((near, _))) = (&opened, &near) {
            // Standbys are enough to begin with.
            if e.is_retryable() {
                if let Ok((shape, _)) = Box::pin(near.prepare(&wanted, &options, true)).await {
                    opened = Ok((shape, Some(open::NO_PRIMARY)));
                }
            }
        }
        let (shape, read_only) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                links.close().await;
                if let Some((near, _)) = near {
                    near.close().await;
                }
                return Err(e);
            }
        };
        let near = near.map(|(near, reads)| {
            let follow = Arc::new(Follow::new(reads.max_lag));
            let index = near.index(shape.clone(), read_only, &options, Some(follow.clone()));
            Arc::new(Near::new(index, follow, reads))
        });
        let mut index = links.index(shape, read_only, &options, None);
        if let Some(near) = &near {
            near.start(&index.inner, &index.gate);
        }
        index.near = near;
        Ok(index)
    }

    /// A call that may be repeated and has the usual time.
    fn call(&self, what: &'static str) -> Result<Call> {
        Ok(Call {
            what,
            pass: Arc::new(self.gate.enter()?),
            repeat: Repeat::Harmless,
            limit: self.inner.statement_timeout,
            follow: self.inner.follow.clone(),
        })
    }

    async fn close_all(&self) {
        self.gate.shut();
        // Statements end by themselves or by their timeout; a hung server must not delay closing
        // for longer.
        let inner = &self.inner;
        let connecting = inner.opener.connector.timeout();
        let limit = inner.statement_timeout + connecting + Duration::from_secs(5);
        self.gate.emptied(limit).await;
        inner.lookups.close();
        inner.deletes.close();
        inner.pool.close();
        inner.opener.close().await;
    }
}

impl PostgresParts {
    /// The rows of a statement on the shared connection for lookups.
    async fn look_up(&self, call: &Call, query: &Query, params: Arc<[Param]>) -> Result<Vec<Row>> {
        let answer = call::query(&*self.lookups, call, query, &params).await?;
        answer.map_err(|e| error::statement(call.what, e))
    }

    /// The rows of a statement on a connection of its own.
    async fn ask(&self, call: &Call, query: &Query, params: Arc<[Param]>) -> Result<Vec<Row>> {
        let answer = call::query(&self.pool, call, query, &params).await?;
        answer.map_err(|e| error::statement(call.what, e))
    }

    /// Gives each statement of the transaction that runs on a connection the usual time.
    async fn limit_statements(&self, conn: &Conn) -> Answer<()> {
        let limit = self.statement_timeout.as_millis();
        let limit = limit.clamp(1, i32::MAX as u128);
        conn.batch(&format!("SET LOCAL statement_timeout = {limit}"))
            .await
    }

    /// Changes rows by a statement on a connection of its own; returns how many.
    async fn change(&self, call: &Call, query: &Query, params: Arc<[Param]>) -> Result<u64> {
        let answer = call::run(&self.pool, call, |conn, _| {
            let (query, params) = (query.clone(), params.clone());
            Box::pin(async move { conn.execute(&query, &params).await })
        });
        answer.await?.map_err(|e| error::statement(call.what, e))
    }
}

impl Drop for PostgresIndex {
    fn drop(&mut self) {
        self.gate.shut();
    }
}

/// Reads the columns of a [`Usage`]: blocks and bytes.
fn usage(row: &Row) -> Answer<Usage> {
    Ok(Usage {
        blocks: row.try_get(0)?,
        bytes: row.try_get(1)?,
    })
}

/// The parsed rows of a result, or the error of the first row that cannot be parsed.
fn read<T>(what: &str, rows: &[Row], each: impl Fn(&Row) -> Answer<T>) -> Result<Vec<T>> {
    rows.iter()
        .map(|row| each(row).map_err(|e| error::statement(what, e)))
        .collect()
}
