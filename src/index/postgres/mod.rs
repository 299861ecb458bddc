//! The shared index: a table in Postgres (or an engine that speaks its language).
//!
//! Short statements (lookups, deletes) go over pipelined connections (`pipe`); everything else
//! over a pool for blocking code (`pool`). Both open connections when they are first needed.

mod cancel;
mod connect;
mod direct;
mod doubt;
mod error;
mod fence;
mod order;
mod passfile;
mod pipe;
mod pool;
mod query;
mod rows;
mod schema;
mod session;
mod sql;
mod tls;
mod url;
mod v1;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::Row;

use self::connect::Connector;
use self::doubt::Doubts;
use self::error::PgError;
use self::pipe::{Param, Pipe};
use self::pool::{Pool, Repeat};
use self::query::Query;
use self::rows::Columns;
use self::schema::{Find, Found, Shape};
use self::session::Session;
use self::sql::{Sql, DELETE_FORMS, DUE_FORMS, UPSERT_FORMS};
use super::gate::{Gate, Pass};
use super::keys::{check_key, check_text};
use super::table::{parse_table, TableName};
use super::{
    new_identity, Index, KeyRange, KeyRecord, ListItem, Record, RenewItem, Renewal, Usage,
    IDENTITY, LONGEST_LEASE,
};
use crate::error::{Error, ErrorKind, Result};

/// Rows of one bulk statement: large enough that the round trip does not matter, small enough that
/// a statement stays far below its timeout and below 10 MB.
const PAGE: usize = 5_000;
/// How often a node looks whether a Go node has appeared next to it (its staging table).
const STAGING_RECHECK: Duration = Duration::from_secs(60);
/// How often a node that may not write looks whether it may by now, while writes are refused.
const RIGHTS_RECHECK: Duration = Duration::from_secs(1);
/// Setting up the tables of a large index of the Go plugin means counting and indexing it.
const MIGRATION_LIMIT: Duration = Duration::from_secs(3600);

/// What looks for blobs to renew may go through every row, of which there may be more than can be read
/// within the statement timeout: without an answer nothing would be renewed. A renewer's lease runs for longer.
const SEARCH_LIMIT: Duration = Duration::from_secs(240);

/// How to open a [`PostgresIndex`].
#[derive(Clone)]
pub struct PostgresOptions {
    /// libpq URL or `keyword=value` string: several hosts, Unix sockets (`?host=/dir`), `sslmode`
    /// with libpq's meanings (`require` does not verify unless `sslrootcert` is given; without
    /// `sslrootcert`, `verify-*` use `~/.postgresql/root.crt` if it exists, else the system's
    /// roots), `sslcert`/`sslkey`, `connect_timeout`, `application_name` (default `walrusds`),
    /// `target_session_attrs`. An unknown parameter is an error. Secret.
    pub url: String,
    /// Table, optionally with a schema ([`parse_table`]). Quoted as given; if there is only a table
    /// with the lower-case name (made by the Go plugin, which did not quote), that one is used.
    pub table: String,
    /// Connections to open at most. One is the pipelined one for lookups, one (from 3 on) that for
    /// deletes, the rest the pool; at least two are used.
    pub max_open_conns: u32,
    /// For one connection, all hosts of the URL together. `connect_timeout` in the URL wins.
    pub connect_timeout: Duration,
    /// For one statement; it is cancelled on the server then.
    pub statement_timeout: Duration,
}

impl PostgresOptions {
    /// Options with the defaults (32 connections, 10 s, 30 s).
    pub fn new(url: impl Into<String>, table: impl Into<String>) -> Self {
        PostgresOptions {
            url: url.into(),
            table: table.into(),
            max_open_conns: 32,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
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
            .finish()
    }
}

/// The index in Postgres. Must be opened and used on a multi-thread tokio runtime.
pub struct PostgresIndex {
    gate: Arc<Gate>,
    inner: Arc<Inner>,
}

struct Inner {
    connector: Arc<Connector>,
    lookups: Arc<Pipe>,
    /// Deletes wait for row locks: on the lookups' connection they would hold up reads.
    deletes: Arc<Pipe>,
    pool: Pool,
    shape: Shape,
    sql: Sql,
    statement_timeout: Duration,
    staging: Staging,
    rights: Rights,
    /// The forms of [`Sql::delete`], [`Sql::upsert`] and [`Sql::due`] that the engine takes.
    delete_form: AtomicUsize,
    upsert_form: AtomicUsize,
    due_form: AtomicUsize,
    doubts: Doubts,
}

/// Whether the Go plugin's staging table exists, as last seen.
struct Staging {
    present: AtomicBool,
    checked: Mutex<Instant>,
}

/// Why nothing can be written, if so, as last seen: a standby may have become the primary since.
struct Rights {
    read_only: Mutex<Option<&'static str>>,
    checked: Mutex<Instant>,
}

/// Whether `url` can be used at all; nothing is looked up or opened.
///
/// # Errors
/// [`ErrorKind::Config`], without the URL: it may hold a password.
pub(crate) fn check_url(url: &str) -> Result<()> {
    url::parse(url).map(drop)
}

impl PostgresIndex {
    /// Connects, checks the table in one round trip and, only where it is missing or of an older
    /// version, creates or extends it (under a lock; any number of nodes may start at once).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what an operator must change (URL, password, rights, a table that
    /// is something else), [`ErrorKind::Index`] (retryable) while the server cannot be reached.
    pub async fn open(options: PostgresOptions) -> Result<PostgresIndex> {
        let wanted = parse_table(&options.table)?;
        let connector = Arc::new(Connector::new(&options.url, options.connect_timeout)?);
        let limit = options.statement_timeout;
        let lookups = Pipe::new(connector.clone(), limit);
        let own_deletes = options.max_open_conns >= 3;
        let deletes = if own_deletes {
            Pipe::new(connector.clone(), limit)
        } else {
            lookups.clone()
        };
        let size = options
            .max_open_conns
            .saturating_sub(if own_deletes { 2 } else { 1 })
            .max(1);
        let pool = Pool::new(connector.clone(), size, limit);
        let gate = Arc::new(Gate::default());
        let pass = Arc::new(gate.enter()?);

        let opened = Self::prepare(&wanted, &lookups, &pool, &pass).await;
        drop(pass);
        let (shape, read_only) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                lookups.close().await;
                return Err(e);
            }
        };
        let inner = Inner {
            sql: Sql::new(&shape),
            staging: Staging {
                present: AtomicBool::new(shape.staging_exists),
                checked: Mutex::new(Instant::now()),
            },
            rights: Rights {
                read_only: Mutex::new(read_only),
                checked: Mutex::new(Instant::now()),
            },
            connector,
            lookups,
            deletes,
            pool,
            shape,
            statement_timeout: limit,
            delete_form: AtomicUsize::new(0),
            upsert_form: AtomicUsize::new(0),
            due_form: AtomicUsize::new(0),
            doubts: Doubts::default(),
        };
        Ok(PostgresIndex {
            gate,
            inner: Arc::new(inner),
        })
    }

    async fn prepare(
        wanted: &TableName,
        lookups: &Pipe,
        pool: &Pool,
        pass: &Arc<Pass>,
    ) -> Result<(Shape, Option<&'static str>)> {
        for migrated in [false, true] {
            let (found, version) = Self::inspect(wanted, lookups, pass).await?;
            if version > 0 && schema::check_current(&found)? {
                let read_only = Self::why_read_only(&found.table, lookups, pass).await?;
                // A node that only reads leaves an older version as it is.
                if version >= schema::VERSION || read_only.is_some() {
                    return Ok((found.shape(version), read_only));
                }
            }
            if migrated {
                break;
            }
            let wanted = wanted.clone();
            pool.run(
                "setting up the tables",
                pass.clone(),
                Repeat::Harmless,
                Some(MIGRATION_LIMIT),
                move |client| {
                    for _ in 0..10 {
                        match schema::migrate(client, &wanted) {
                            Err(e) if schema::collided(&e) => std::thread::sleep(pool::pause(3)),
                            done => return done,
                        }
                    }
                    schema::migrate(client, &wanted)
                },
            )
            .await??;
        }
        Err(Error::retryable(
            ErrorKind::Index,
            format!("index in Postgres: the tables of {wanted} were changed while they were set up; try again"),
        ))
    }

    /// Why this node may not write here, if so: a standby, a role without the rights, or a setting.
    async fn why_read_only(
        table: &TableName,
        lookups: &Pipe,
        pass: &Arc<Pass>,
    ) -> Result<Option<&'static str>> {
        let what = "checking the rights";
        let params = [Param::Text(table.quoted())].into();
        let asked = Query::once(schema::MAY_WRITE);
        let answer = lookups.query_raw(what, pass.clone(), asked, params).await?;
        let rows = match answer {
            Ok(rows) => rows,
            Err(e) if error::retry(&e) != error::Retry::No => {
                return Err(error::statement(what, &e))
            }
            // An engine without these functions: its first write tells.
            Err(_) => Vec::new(),
        };
        let flag = |at: usize| rows.first().and_then(|row| row.try_get::<_, bool>(at).ok());
        Ok(match (flag(0), flag(1), flag(2)) {
            (Some(true), ..) => Some("the server is a standby"),
            (_, Some(true), _) => Some("transactions of this role are read-only"),
            (_, _, Some(false)) => Some("this role has no right to write to the table"),
            _ => None,
        })
    }

    /// One round trip: the columns and the version rows, pipelined.
    async fn inspect(wanted: &TableName, lookups: &Pipe, pass: &Arc<Pass>) -> Result<(Found, i64)> {
        let what = "checking the tables";
        let meta_of = |table: &TableName| {
            let sql = schema::read_meta(table);
            async move {
                lookups
                    .query_raw(what, pass.clone(), Query::once(sql), Arc::new([]))
                    .await
            }
        };
        let (rows, meta) = tokio::try_join!(
            lookups.find(what, pass.clone(), Find::new(wanted)),
            meta_of(wanted),
        )?;
        let found = Found::new(wanted, &rows).map_err(|e| error::statement(what, &e))??;
        let meta = if found.table == *wanted {
            meta
        } else {
            meta_of(&found.table).await?
        };
        let version = match meta {
            Ok(rows) => {
                schema::judge(&found.table, &rows).map_err(|e| error::statement(what, &e))??
            }
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => 0,
            // A schema that does not exist is said so by the migration.
            Err(e) if e.code() == Some(&SqlState::INVALID_SCHEMA_NAME) => 0,
            Err(e) => return Err(error::statement(what, &e)),
        };
        Ok((found, version))
    }

    /// Deletes rows that another transaction may be about to make ([`doubt`]): waits for it.
    async fn delete_for_sure(
        &self,
        what: &'static str,
        pass: &Arc<Pass>,
        keys: &Arc<[String]>,
        form: usize,
    ) -> Result<Usage> {
        self.recheck_staging(pass);
        for last in [false, true] {
            let staged = self.inner.staging.present.load(Ordering::Relaxed);
            let (inner, wanted) = (self.inner.clone(), keys.to_vec());
            let work = move |client: &mut Session| {
                let until = client.until()?;
                let tx = client.transaction()?;
                let placed = tx.query_typed(&inner.sql.place, &[(&wanted, Type::TEXT_ARRAY)])?;
                let delete = inner.sql.delete[usize::from(staged)][form].text();
                let params: [(&(dyn ToSql + Sync), Type); 2] =
                    [(&wanted, Type::TEXT_ARRAY), (&until, Type::TIMESTAMPTZ)];
                match tx.query_typed(delete, &params) {
                    Err(e) if staged && !last && e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                        Ok(None)
                    }
                    rows => {
                        let rows = rows?;
                        tx.commit()?;
                        Ok(Some((rows, placed.len())))
                    }
                }
            };
            let done = self
                .inner
                .pool
                .run(what, pass.clone(), Repeat::Harmless, None, work)
                .await?;
            if let Some((rows, placed)) = done {
                self.inner.doubts.settle(keys.iter());
                let placed = Usage {
                    blocks: i64::try_from(placed).unwrap_or(i64::MAX),
                    bytes: 0,
                };
                return Ok(removed(what, &rows)?.minus(placed));
            }
            self.inner.look_for_staging(pass.clone()).await?;
        }
        Err(Error::new(
            ErrorKind::Internal,
            "staging table checked in vain",
        ))
    }

    fn enter(&self) -> Result<Arc<Pass>> {
        self.gate.enter().map(Arc::new)
    }

    /// Runs a statement that has a form with and one without the staging table.
    async fn with_staging<F>(
        &self,
        pipe: &Pipe,
        what: &str,
        pass: &Arc<Pass>,
        sql: F,
        params: impl Into<Arc<[Param]>>,
    ) -> Result<Vec<Row>>
    where
        F: Fn(bool) -> Query + Send,
    {
        self.recheck_staging(pass);
        let params = params.into();
        for last in [false, true] {
            let staged = self.inner.staging.present.load(Ordering::Relaxed);
            match pipe
                .query_raw(what, pass.clone(), sql(staged), params.clone())
                .await?
            {
                Ok(rows) => return Ok(rows),
                Err(e) if staged && !last && e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                    self.inner.look_for_staging(pass.clone()).await?;
                }
                Err(e) => return Err(error::statement(what, &e)),
            }
        }
        Err(Error::new(
            ErrorKind::Internal,
            "staging table checked in vain",
        ))
    }

    /// Looks in the background whether this node may write by now, if the last look is old.
    fn recheck_rights(&self) {
        let (Ok(runtime), Ok(pass)) = (tokio::runtime::Handle::try_current(), self.enter()) else {
            return;
        };
        {
            let mut checked = self.inner.rights.checked.lock();
            if checked.elapsed() < RIGHTS_RECHECK {
                return;
            }
            *checked = Instant::now();
        }
        let inner = self.inner.clone();
        runtime.spawn(async move {
            let (table, lookups) = (&inner.shape.table, &inner.lookups);
            // Without an answer, what is known holds.
            if let Ok(found) = Self::why_read_only(table, lookups, &pass).await {
                *inner.rights.read_only.lock() = found;
            }
        });
    }

    /// Looks for the staging table in the background, if the last look is old.
    fn recheck_staging(&self, pass: &Arc<Pass>) {
        if self.inner.shape.staging.is_none() {
            return;
        }
        {
            let Some(mut checked) = self.inner.staging.checked.try_lock() else {
                return;
            };
            if checked.elapsed() < STAGING_RECHECK {
                return;
            }
            *checked = Instant::now();
        }
        let (inner, pass) = (self.inner.clone(), pass.clone());
        tokio::spawn(async move {
            // A failure shows in the callers' own statements.
            let _ = inner.look_for_staging(pass).await;
        });
    }
}

impl Inner {
    fn search_limit(&self) -> Option<Duration> {
        Some(self.statement_timeout.max(SEARCH_LIMIT))
    }

    async fn look_for_staging(&self, pass: Arc<Pass>) -> Result<()> {
        let Some(staging) = &self.shape.staging else {
            return Ok(());
        };
        let rows = self
            .lookups
            .find("looking for the staging table", pass, Find::new(staging))
            .await?;
        let present = schema::has_staging(staging.name(), &rows);
        self.staging.present.store(present, Ordering::Relaxed);
        *self.staging.checked.lock() = Instant::now();
        Ok(())
    }
}

impl Drop for PostgresIndex {
    fn drop(&mut self) {
        self.gate.shut();
    }
}

/// A result's rows, or what is wrong with them.
fn read<T>(
    what: &str,
    rows: &[Row],
    each: impl Fn(&Row) -> std::result::Result<T, PgError>,
) -> Result<Vec<T>> {
    rows.iter()
        .map(|row| each(row).map_err(|e| error::statement(what, &e)))
        .collect()
}

/// What a deletion says that it removed.
fn removed(what: &str, rows: &[Row]) -> Result<Usage> {
    let usage = read(what, rows, |row| {
        Ok(Usage {
            blocks: row.try_get(0)?,
            bytes: row.try_get(1)?,
        })
    })?;
    Ok(usage.into_iter().next().unwrap_or_default())
}

#[async_trait]
impl Index for PostgresIndex {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        const WHAT: &str = "writing rows";
        let pass = self.enter()?;
        let shape = &self.inner.shape;
        for row in records {
            check_key(&row.key)?;
            check_text("blob ID", &row.record.blob_id)?;
            check_text(
                "patch ID",
                row.record.patch_id.as_deref().unwrap_or_default(),
            )?;
            if !shape.has_patch_id
                && row
                    .record
                    .patch_id
                    .as_deref()
                    .is_some_and(|p| !p.is_empty())
            {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("index in Postgres: table {} has no column patch_id; blocks in quilts cannot be indexed there", shape.table),
                ));
            }
        }
        // In key order, so that two writers of the same keys lock them in the same order.
        let mut order: Vec<&KeyRecord> = records.iter().collect();
        order.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if let Some(twice) = order.windows(2).find(|w| w[0].key == w[1].key) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("key {:?} appears twice in one put_many", twice[0].key),
            ));
        }
        if records.is_empty() {
            return Ok(());
        }
        let pages: Vec<Columns> = order
            .chunks(PAGE)
            .map(|page| {
                let mut columns = Columns::default();
                page.iter().for_each(|row| columns.push(row));
                columns
            })
            .collect();
        self.recheck_staging(&pass);
        let (inner, limit) = (self.inner.clone(), self.inner.statement_timeout);
        // Many pages are many statements.
        let total = limit.saturating_mul(u32::try_from(pages.len()).unwrap_or(u32::MAX));
        let again = pass.clone();
        let write = move |client: &mut Session| write_pages(client, &inner, &pages, limit);
        let write = Arc::new(write);
        let doubt = self.inner.doubts.writing(records);
        for last in [false, true] {
            let staged = self.inner.staging.present.load(Ordering::Relaxed);
            let work = write.clone();
            let result = self
                .inner
                .pool
                .run(
                    WHAT,
                    again.clone(),
                    Repeat::Harmless,
                    Some(total),
                    move |client| match work(client) {
                        Err(e)
                            if staged && !last && e.code() == Some(&SqlState::UNDEFINED_TABLE) =>
                        {
                            Ok(false)
                        }
                        other => other.map(|()| true),
                    },
                )
                .await?;
            if result {
                doubt.settle();
                return Ok(());
            }
            self.inner.look_for_staging(pass.clone()).await?;
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        const WHAT: &str = "looking a key up";
        check_key(key)?;
        let pass = self.enter()?;
        let sql = |staged| self.inner.sql.get[usize::from(staged)].clone();
        let rows = self
            .with_staging(
                &self.inner.lookups,
                WHAT,
                &pass,
                sql,
                [Param::Text(key.into())],
            )
            .await?;
        let records = read(WHAT, &rows, rows::record)?;
        Ok(records.into_iter().max_by_key(|r| r.staged))
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        const WHAT: &str = "looking keys up";
        for key in keys {
            check_key(key)?;
        }
        let pass = self.enter()?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sql = |staged| self.inner.sql.get_many[usize::from(staged)].clone();
        let rows = self
            .with_staging(
                &self.inner.lookups,
                WHAT,
                &pass,
                sql,
                [Param::Texts(keys.to_vec())],
            )
            .await?;
        let mut found: HashMap<String, Record> = HashMap::with_capacity(rows.len());
        for row in read(WHAT, &rows, rows::key_record)? {
            if row.record.staged || !found.contains_key(&row.key) {
                found.insert(row.key, row.record);
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        const WHAT: &str = "reading a staged block";
        check_key(key)?;
        let pass = self.enter()?;
        if !self.inner.staging.present.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let sql = self.inner.sql.staged_value.clone();
        let rows = match self
            .inner
            .lookups
            .query_raw(WHAT, pass.clone(), sql, Arc::new([Param::Text(key.into())]))
            .await?
        {
            Ok(rows) => rows,
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                self.inner.look_for_staging(pass).await?;
                return Ok(None);
            }
            Err(e) => return Err(error::statement(WHAT, &e)),
        };
        let values = read(WHAT, &rows, |row| row.try_get::<_, Vec<u8>>(0))?;
        Ok(values.into_iter().next().map(Bytes::from))
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        self.delete_many(std::slice::from_ref(&key.to_owned()))
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        const WHAT: &str = "deleting rows";
        for key in keys {
            check_key(key)?;
        }
        let pass = self.enter()?;
        if keys.is_empty() {
            return Ok(Usage::default());
        }
        let mut keys = keys.to_vec();
        keys.sort_unstable(); // as put_many: one order of locking
        let inner = &self.inner;
        let keys: Arc<[String]> = keys.into();
        let params: Arc<[Param]> = [Param::Texts(keys.to_vec())].into();
        let mut refused = None;
        let first = inner.delete_form.load(Ordering::Relaxed);
        for form in first..DELETE_FORMS {
            let done = if inner.doubts.any(&keys) {
                self.delete_for_sure(WHAT, &pass, &keys, form).await
            } else {
                let sql = |staged| inner.sql.delete[usize::from(staged)][form].clone();
                let rows = self
                    .with_staging(&inner.deletes, WHAT, &pass, sql, params.clone())
                    .await;
                rows.and_then(|rows| removed(WHAT, &rows))
            };
            match done {
                Ok(usage) => {
                    inner.delete_form.store(form, Ordering::Relaxed);
                    return Ok(usage);
                }
                // Perhaps an engine that does not take this form.
                Err(e) if !e.is_retryable() && e.kind() == ErrorKind::Index => {
                    refused.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(refused.unwrap_or_else(|| Error::new(ErrorKind::Internal, "no form of a deletion")))
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        const WHAT: &str = "listing keys";
        let pass = self.enter()?;
        range.check()?;
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        self.recheck_staging(&pass);
        let mut found = None;
        // Not over the pipe: a page is large enough to hold lookups up.
        for last in [false, true] {
            let staged = self.inner.staging.present.load(Ordering::Relaxed);
            // Two tables are merged here, and what is skipped with them: the first n of each hold
            // the first n of both.
            let (skip, rows) = if staged {
                (0, offset.saturating_add(limit))
            } else {
                (offset, limit)
            };
            let whole = |n| i64::try_from(n).unwrap_or(i64::MAX);
            let (skip, rows) = (whole(skip), whole(rows));
            let as_array = range.keys_alone && !staged;
            let sql = match as_array {
                true => self.inner.sql.list_keys(range),
                false => self.inner.sql.list(range, staged),
            };
            let bounds = range.comparisons().into_iter();
            let bounds: Vec<String> = bounds.map(|(_, key)| key.to_owned()).collect();
            let work = move |client: &mut Session| {
                let mut params: Vec<(&(dyn ToSql + Sync), Type)> = Vec::new();
                params.extend(
                    bounds
                        .iter()
                        .map(|b| (b as &(dyn ToSql + Sync), Type::TEXT)),
                );
                params.extend([(&rows as _, Type::INT8), (&skip as _, Type::INT8)]);
                match client.query_typed(&sql, &params) {
                    Err(e) if staged && !last && e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                        Ok(None)
                    }
                    other => other.map(Some),
                }
            };
            found = self
                .inner
                .pool
                .run(WHAT, pass.clone(), Repeat::Harmless, None, work)
                .await?
                .map(|rows| (staged, as_array, rows));
            if found.is_some() {
                break;
            }
            self.inner.look_for_staging(pass.clone()).await?;
        }
        let (merge, as_array, rows) = found.unwrap_or_default();
        if as_array {
            let keys = read(WHAT, &rows, |row| row.try_get::<_, Option<Vec<String>>>(0))?;
            let item = |key| ListItem {
                key,
                size: 0,
                expires_at: None,
            };
            return Ok(keys.into_iter().flatten().flatten().map(item).collect());
        }
        let mut items = read(WHAT, &rows, |row| {
            let staged: bool = row.try_get(0)?;
            let item = ListItem {
                key: row.try_get(1)?,
                size: row.try_get(2)?,
                expires_at: row.try_get(3)?,
            };
            Ok((!staged, item))
        })?;
        if !merge {
            return Ok(items.into_iter().map(|(_, item)| item).collect());
        }
        // Staged rows come first among equal keys and win.
        items.sort_by(|(a_indexed, a), (b_indexed, b)| {
            let keys = a.key.cmp(&b.key);
            let keys = if range.descending {
                keys.reverse()
            } else {
                keys
            };
            keys.then(a_indexed.cmp(b_indexed))
        });
        let mut items: Vec<ListItem> = items.into_iter().map(|(_, item)| item).collect();
        items.dedup_by(|later, earlier| later.key == earlier.key);
        Ok(items.into_iter().skip(offset).take(limit).collect())
    }

    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        const WHAT: &str = "listing blobs due for renewal";
        let pass = self.enter()?;
        let before = rows::storable(before);
        let mut after = after.map(|item| (rows::storable(item.expires_at), item.blob_id.clone()));
        let mut found = Vec::new();
        while found.len() < limit {
            let asked = limit - found.len();
            let most = i64::try_from(asked).unwrap_or(i64::MAX);
            let (inner, behind) = (self.inner.clone(), after.take());
            let work = move |client: &mut Session| {
                let mut params: Vec<(&(dyn ToSql + Sync), Type)> =
                    vec![(&before, Type::TIMESTAMPTZ), (&most, Type::INT8)];
                if let Some((expires_at, blob_id)) = &behind {
                    params.extend([
                        (expires_at as _, Type::TIMESTAMPTZ),
                        (blob_id as _, Type::TEXT),
                    ]);
                }
                let forms = &inner.sql.due;
                engine_form(&inner.due_form, DUE_FORMS, |form| {
                    client.query_typed(&forms[form][usize::from(behind.is_some())], &params)
                })
            };
            let rows = self
                .inner
                .pool
                .run(
                    WHAT,
                    pass.clone(),
                    Repeat::Harmless,
                    self.inner.search_limit(),
                    work,
                )
                .await?;
            let items = read(WHAT, &rows, |row| {
                let item = RenewItem {
                    blob_id: row.try_get(0)?,
                    expires_at: row.try_get(1)?,
                    end_epoch: row.try_get(2)?,
                    deletable: row.try_get(3)?,
                };
                Ok((item, row.try_get(4)?))
            })?;
            let seen = items.len();
            after = items
                .last()
                .map(|(item, _)| (item.expires_at, item.blob_id.clone()));
            // A blob whose rows end at several times comes at the first of them alone.
            found.extend(
                items
                    .into_iter()
                    .filter(|(_, first)| *first)
                    .map(|(item, _)| item),
            );
            if seen < asked {
                break;
            }
        }
        Ok(found)
    }

    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        const WHAT: &str = "listing blobs by their end epochs";
        let pass = self.enter()?;
        let sql = self.inner.sql.ending[usize::from(after.is_some())].clone();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let after = after.map(str::to_owned);
        let limit_of_time = self.inner.search_limit();
        let rows = self
            .inner
            .pool
            .run(WHAT, pass, Repeat::Harmless, limit_of_time, move |client| {
                let mut params: Vec<(&(dyn ToSql + Sync), Type)> =
                    vec![(&epoch, Type::INT8), (&limit, Type::INT8)];
                params.extend(after.iter().map(|a| (a as &(dyn ToSql + Sync), Type::TEXT)));
                client.query_typed(&sql, &params)
            })
            .await?;
        read(WHAT, &rows, |row| {
            let expires_at: Option<SystemTime> = row.try_get(1)?;
            Ok(RenewItem {
                blob_id: row.try_get(0)?,
                expires_at: expires_at.unwrap_or(SystemTime::UNIX_EPOCH),
                end_epoch: row.try_get(2)?,
                deletable: row.try_get(3)?,
            })
        })
    }

    async fn note(&self, name: &str) -> Result<Option<String>> {
        const WHAT: &str = "reading a note";
        let pass = self.enter()?;
        check_text("name of a note", name)?;
        let params = Arc::new([Param::Text(name.to_owned())]);
        let sql = self.inner.sql.note.clone();
        let rows = self.inner.lookups.query(WHAT, pass, sql, params).await?;
        let found = read(WHAT, &rows, |row| row.try_get::<_, String>(0))?;
        Ok(found.into_iter().next())
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        let pass = self.enter()?;
        check_text("name of a note", name)?;
        check_text("note", text.unwrap_or_default())?;
        let (inner, name, text) = (self.inner.clone(), name.to_owned(), text.map(str::to_owned));
        self.inner
            .pool
            .run(
                "keeping a note",
                pass,
                Repeat::Harmless,
                None,
                move |client| match &text {
                    Some(text) => client.execute_typed(
                        &inner.sql.set_note,
                        &[(&name, Type::TEXT), (text, Type::TEXT)],
                    ),
                    None => client.execute_typed(&inner.sql.drop_note, &[(&name, Type::TEXT)]),
                },
            )
            .await?;
        Ok(())
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        const WHAT: &str = "listing the rows of a blob";
        let pass = self.enter()?;
        check_text("blob ID", blob_id)?;
        let (inner, blob_id) = (self.inner.clone(), blob_id.to_owned());
        let rows = self
            .inner
            .pool
            .run(WHAT, pass, Repeat::Harmless, None, move |client| {
                client.query_typed(&inner.sql.rows_of_blob, &[(&blob_id, Type::TEXT)])
            })
            .await?;
        read(WHAT, &rows, rows::key_record)
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        const WHAT: &str = "listing rows of a blob from an offset on";
        let pass = self.enter()?;
        check_text("blob ID", blob_id)?;
        let params = Arc::new([
            Param::Text(blob_id.to_owned()),
            Param::Int(i64::try_from(from).unwrap_or(i64::MAX)),
            Param::Int(i64::try_from(limit).unwrap_or(i64::MAX)),
        ]);
        let sql = self.inner.sql.rows_from.clone();
        let rows = self.inner.lookups.query(WHAT, pass, sql, params).await?;
        read(WHAT, &rows, rows::key_record)
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        let pass = self.enter()?;
        check_text("blob ID", blob_id)?;
        let (inner, blob_id) = (self.inner.clone(), blob_id.to_owned());
        let (end_epoch, expires_at) = (renewal.end_epoch, renewal.expires_at.map(rows::storable));
        self.inner
            .pool
            .run(
                "noting a renewal",
                pass,
                Repeat::Harmless,
                None,
                move |client| {
                    client.execute_typed(
                        &inner.sql.update_blob,
                        &[
                            (&blob_id, Type::TEXT),
                            (&end_epoch, Type::INT8),
                            (&expires_at, Type::TIMESTAMPTZ),
                        ],
                    )
                },
            )
            .await
    }

    fn take_notice(&self) -> Option<String> {
        self.inner.connector.take_notice()
    }

    fn only_reads(&self) -> Option<&'static str> {
        let known = *self.inner.rights.read_only.lock();
        if known.is_some() {
            self.recheck_rights();
        }
        known
    }

    async fn identity(&self) -> Result<Option<String>> {
        let known = self.note(IDENTITY).await?;
        if known.is_some() || self.inner.rights.read_only.lock().is_some() {
            return Ok(known);
        }
        let (inner, new) = (self.inner.clone(), new_identity());
        let pass = self.enter()?;
        self.inner
            .pool
            .run(
                "giving the table an identity",
                pass,
                Repeat::Harmless,
                None,
                move |client| {
                    client.execute_typed(
                        &inner.sql.add_note,
                        &[(&IDENTITY, Type::TEXT), (&new, Type::TEXT)],
                    )
                },
            )
            .await?;
        self.note(IDENTITY).await
    }

    async fn usage(&self) -> Result<Usage> {
        const WHAT: &str = "reading the running total";
        let pass = self.enter()?;
        let rows = self
            .inner
            .lookups
            .query(WHAT, pass, self.inner.sql.usage.clone(), Arc::new([]))
            .await?;
        let usage = read(WHAT, &rows, |row| {
            Ok(Usage {
                blocks: row.try_get(0)?,
                bytes: row.try_get(1)?,
            })
        })?;
        Ok(usage.into_iter().next().unwrap_or_default())
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        let pass = self.enter()?;
        if delta == Usage::default() {
            return Ok(());
        }
        let inner = self.inner.clone();
        self.inner
            .pool
            .run(
                "adding to the running total",
                pass,
                Repeat::Never,
                None,
                move |client| {
                    let until = client.until()?;
                    client.execute_typed(
                        &inner.sql.add_usage,
                        &[
                            (&delta.blocks, Type::INT8),
                            (&delta.bytes, Type::INT8),
                            (&until, Type::TIMESTAMPTZ),
                        ],
                    )
                },
            )
            .await?;
        Ok(())
    }

    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let pass = self.enter()?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let (inner, name, owner) = (self.inner.clone(), name.to_owned(), owner.to_owned());
        let ttl = ttl.min(LONGEST_LEASE).as_secs_f64();
        let rows = self
            .inner
            .pool
            .run(
                "taking a lease",
                pass,
                Repeat::Harmless,
                None,
                move |client| {
                    let until = client.until()?;
                    client.query_typed(
                        &inner.sql.try_lease,
                        &[
                            (&name, Type::TEXT),
                            (&owner, Type::TEXT),
                            (&ttl, Type::FLOAT8),
                            (&until, Type::TIMESTAMPTZ),
                        ],
                    )
                },
            )
            .await?;
        Ok(!rows.is_empty())
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let pass = self.enter()?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let (inner, name, owner) = (self.inner.clone(), name.to_owned(), owner.to_owned());
        self.inner
            .pool
            .run(
                "giving a lease back",
                pass,
                Repeat::Harmless,
                None,
                move |client| {
                    let until = client.until()?;
                    client.execute_typed(
                        &inner.sql.release_lease,
                        &[
                            (&name, Type::TEXT),
                            (&owner, Type::TEXT),
                            (&until, Type::TIMESTAMPTZ),
                        ],
                    )
                },
            )
            .await?;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.gate.shut();
        // Statements end by themselves or by their timeout; a hung server must not hold up closing.
        let limit =
            self.inner.statement_timeout + self.inner.connector.timeout() + Duration::from_secs(5);
        self.gate.emptied(limit).await;
        self.inner.lookups.close().await;
        self.inner.deletes.close().await;
        self.inner.pool.close().await;
        Ok(())
    }
}

/// Runs a statement that has several forms, in the first one that the engine takes.
fn engine_form<T>(
    known: &AtomicUsize,
    forms: usize,
    mut run: impl FnMut(usize) -> std::result::Result<T, PgError>,
) -> std::result::Result<T, PgError> {
    let mut form = known.load(Ordering::Relaxed);
    loop {
        match run(form) {
            Err(e) if form + 1 < forms && e.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                form += 1
            }
            done => {
                if done.is_ok() {
                    known.store(form, Ordering::Relaxed);
                }
                return done;
            }
        }
    }
}

/// Upserts pages, in the form that the engine takes.
fn write_pages(
    client: &mut Session,
    inner: &Inner,
    pages: &[Columns],
    limit: Duration,
) -> std::result::Result<(), PgError> {
    engine_form(&inner.upsert_form, UPSERT_FORMS, |form| {
        write_pages_as(client, inner, pages, limit, form)
    })
}

/// A single page as one statement (one round trip, its own transaction), several in one transaction.
fn write_pages_as(
    client: &mut Session,
    inner: &Inner,
    pages: &[Columns],
    limit: Duration,
    form: usize,
) -> std::result::Result<(), PgError> {
    let until = client.until()?;
    let staged = inner.staging.present.load(Ordering::Relaxed);
    if let [page] = pages {
        let params = page_params(page, inner.shape.has_patch_id, &until);
        client.query_typed(&inner.sql.upsert[usize::from(staged)][form], &params)?;
        return Ok(());
    }
    let tx = client.transaction()?;
    tx.batch_execute(&format!(
        "SET LOCAL statement_timeout = {}",
        limit.as_millis().clamp(1, i32::MAX as u128)
    ))?;
    for page in pages {
        let params = page_params(page, inner.shape.has_patch_id, &until);
        tx.query_typed(&inner.sql.upsert[0][form], &params)?;
        if staged {
            tx.execute_typed(&inner.sql.delete_staged, &params[..1])?;
        }
    }
    tx.commit()
}

fn page_params<'a>(
    page: &'a Columns,
    with_patch: bool,
    until: &'a SystemTime,
) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&page.keys, Type::TEXT_ARRAY),
        (&page.blob_ids, Type::TEXT_ARRAY),
        (&page.offsets, Type::INT8_ARRAY),
        (&page.sizes, Type::INT8_ARRAY),
        (&page.deletable, Type::BOOL_ARRAY),
        (&page.end_epochs, Type::INT8_ARRAY),
        (&page.expires_at, Type::TIMESTAMPTZ_ARRAY),
    ];
    if with_patch {
        params.push((&page.patch_ids, Type::TEXT_ARRAY));
    }
    params.push((until, Type::TIMESTAMPTZ));
    params
}
