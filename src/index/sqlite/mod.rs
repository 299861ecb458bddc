//! The embedded index: one SQLite file, for a single node.
//!
//! Reads go over a few connections (`readers`), point lookups on the caller's own thread (they take
//! microseconds). Writes queue for one connection (`writer`): those that wait together share a
//! transaction and its fsync. Other processes may read and write the file meanwhile.

mod access;
mod companions;
mod count;
mod deleted;
mod deleted_sql;
mod facts;
mod ledger;
mod ledger_sql;
mod readers;
mod schema;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{params, Connection, ErrorCode, OptionalExtension, Row, Statement};

use self::access::Access;
use self::readers::Readers;
use self::schema::Sql;
use self::writer::{Promise, Writer};
use super::gate::{Gate, Pass};
use super::keys::{check_key, check_text};
use super::table::parse_table;
use super::{
    in_key_order, Blob, Fact, Index, KeyRange, KeyRecord, ListItem, Record, RenewItem, Renewal,
    Rows, Usage,
};
use crate::error::{Error, ErrorKind, Result};

/// Most keys that are looked up on the caller's thread; a longer list goes to a thread of the
/// index.
const FEW: usize = 32;
/// Statements kept prepared per connection.
const STATEMENTS: usize = 48;

/// How to open a [`SqliteIndex`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// The file (`indexPath`); created with its parent directories if missing.
    pub path: PathBuf,
    /// Table ([`parse_table`]); several may share a file.
    pub table: String,
    /// How long to wait for another process that writes to the file.
    pub busy_timeout: Duration,
    /// How long deleted rows can be brought back; with zero they are not kept.
    pub keep_deleted: Duration,
    /// Whether to use the file as it is: nothing is created, and every method that writes fails.
    pub only_existing: bool,
}

setters! { SqliteOptions {
    with_keep_deleted(keep_deleted: Duration);
    with_busy_timeout(busy_timeout: Duration);
    with_only_existing(only_existing: bool);
} }

impl SqliteOptions {
    /// Options with the defaults (a timeout of 10 s, deleted rows are not kept).
    pub fn new(path: impl Into<PathBuf>, table: impl Into<String>) -> Self {
        SqliteOptions {
            path: path.into(),
            table: table.into(),
            busy_timeout: Duration::from_secs(10),
            keep_deleted: Duration::ZERO,
            only_existing: false,
        }
    }
}

/// The index in an SQLite file.
pub struct SqliteIndex {
    gate: Arc<Gate>,
    inner: Arc<SqliteParts>,
}

struct SqliteParts {
    readers: Readers,
    /// `None` where nothing can be written.
    writer: Option<Writer>,
    access: Access,
    sql: Arc<Sql>,
    busy_timeout: Duration,
    /// How long deleted rows are kept.
    keep_deleted: Duration,
    /// Whether there is a table for deleted rows. A file that was written before there was one may
    /// lack it where it can only be read.
    has_deleted: bool,
    /// The note of an unfinished copy, as it was when the file was opened.
    copy: Option<String>,
}

impl SqliteIndex {
    /// Opens or creates the file. Blocking work runs on tokio's blocking threads. An existing file
    /// that may not be written serves reads ([`Index::only_reads`]).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming `indexPath` where the file cannot be used (a directory, no
    /// permission, another application's, a newer version's), [`ErrorKind::Corrupt`] where it is
    /// damaged.
    pub async fn open(options: SqliteOptions) -> Result<SqliteIndex> {
        let table = parse_table(&options.table)?;
        let opened = tokio::task::spawn_blocking(move || {
            let sql = Arc::new(Sql::new(&table));
            let (connection, access) = schema::open(&options, &table, &sql)?;
            let has_deleted = sql.deleted.exists(&connection);
            let has_deleted = has_deleted.map_err(|e| failed("opening", e))?;
            let copy = schema::copy_note(&connection, &sql).map_err(|e| failed("opening", e))?;
            let writer = match access {
                Access::Write => Some(Writer::start(connection)?),
                Access::Read(_) => None,
            };
            Ok(SqliteParts {
                readers: Readers::new(options.path, access, options.busy_timeout),
                writer,
                access,
                sql,
                busy_timeout: options.busy_timeout,
                keep_deleted: options.keep_deleted,
                has_deleted,
                copy,
            })
        });
        let inner = opened.await.unwrap_or_else(|e| {
            Err(Error::new(
                ErrorKind::Internal,
                format!("opening the index: {e}"),
            ))
        })?;
        Ok(SqliteIndex {
            gate: Arc::new(Gate::default()),
            inner: Arc::new(inner),
        })
    }

    /// Runs a read that may take a while on a thread of the index. It is not interrupted when the
    /// caller leaves: every statement is bounded by a limit or one blob.
    async fn read<T, F>(&self, what: &'static str, pass: Pass, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &Sql) -> rusqlite::Result<T> + Send + 'static,
    {
        let sql = self.inner.sql.clone();
        let work = move |connection: &Connection| work(connection, &sql);
        self.inner.readers.run(what, pass, work).await
    }

    /// Runs a read of a few rows by key, which takes microseconds where the pages are in memory: on
    /// this thread if possible. In WAL mode a reader waits for no writer; if the file is locked all
    /// the same, a thread of the index waits for the lock.
    async fn quick<T, F>(&self, what: &'static str, pass: Pass, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection, &Sql) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = &self.inner.readers;
        if let Some(result) = readers.try_here(|connection| work(connection, &self.inner.sql)) {
            return result.map_err(|e| failed(what, e));
        }
        self.read(what, pass, work).await
    }

    async fn write<T, F>(&self, what: &'static str, pass: Pass, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &Sql) -> rusqlite::Result<T> + Send + 'static,
    {
        self.write_as(Promise::Durable, what, pass, work).await
    }

    async fn write_as<T, F>(
        &self,
        promise: Promise,
        what: &'static str,
        pass: Pass,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &Sql) -> rusqlite::Result<T> + Send + 'static,
    {
        let Some(writer) = &self.inner.writer else {
            let why = self.only_reads().unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Config,
                format!("index in SQLite: {what}: {why}"),
            ));
        };
        let sql = self.inner.sql.clone();
        writer
            .run(what, promise, pass, move |connection| {
                work(connection, &sql)
            })
            .await
    }
}

/// Gives a statement that writes a row its first eight parameters. `now` in microseconds.
fn bind(statement: &mut Statement<'_>, row: &KeyRecord, now: i64) -> rusqlite::Result<()> {
    let KeyRecord { key, record } = row;
    statement.raw_bind_parameter(1, key)?;
    statement.raw_bind_parameter(2, &record.blob_id)?;
    statement.raw_bind_parameter(3, record.offset_without_patch())?;
    statement.raw_bind_parameter(4, record.size)?;
    statement.raw_bind_parameter(5, record.deletable)?;
    statement.raw_bind_parameter(6, record.end_epoch)?;
    statement.raw_bind_parameter(7, record.expires_at.map(to_micros))?;
    statement.raw_bind_parameter(8, now)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// Converts an SQLite error to one that tells an operator how to react.
fn failed(what: &str, error: rusqlite::Error) -> Error {
    told(what, &error).caused_by(error)
}

/// [`failed`] without its cause, for an error that stays where it is.
fn told(what: &str, error: &rusqlite::Error) -> Error {
    let message = format!("index in SQLite: {what}: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::retryable(
            ErrorKind::Index,
            format!("{message} (another process keeps the file of indexPath locked)"),
        ),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => {
            Error::retryable(ErrorKind::Index, message)
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::new(
            ErrorKind::Corrupt,
            format!("{message} (the file of indexPath is damaged or no SQLite database)"),
        ),
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::CannotOpen
            | ErrorCode::AuthorizationForStatementDenied,
        ) => Error::new(
            ErrorKind::Config,
            format!("{message} (the file of indexPath or its directory may not be written)"),
        ),
        _ => Error::new(ErrorKind::Index, message),
    }
}

/// Microseconds since 1970, saturating.
fn to_micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        // Rounded down, like the fraction of a time after 1970.
        Err(before) => {
            i64::try_from(before.duration().as_nanos().div_ceil(1000)).map_or(i64::MIN, |m| -m)
        }
    }
}

fn from_micros(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        SystemTime::UNIX_EPOCH - distance
    } else {
        SystemTime::UNIX_EPOCH + distance
    }
}

/// Reads `blob_id, blob_offset, size, deletable, end_epoch, expires_at`.
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let record = Record {
        blob_id: row.get(0)?,
        patch_id: None,
        offset: row.get(1)?,
        size: row.get(2)?,
        deletable: row.get(3)?,
        end_epoch: row.get(4)?,
        expires_at: row.get::<_, Option<i64>>(5)?.map(from_micros),
        staged: false,
    };
    Ok(record.with_patch_of_offset())
}

/// As [`record`], with the key after it.
fn key_record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    Ok(KeyRecord {
        key: row.get(6)?,
        record: record(row)?,
    })
}

/// Reads `blob_id, expires_at, end_epoch, deletable`.
fn renew_item(row: &Row<'_>) -> rusqlite::Result<RenewItem> {
    let expires_at = row.get::<_, Option<i64>>(1)?.map(from_micros);
    Ok(RenewItem {
        blob_id: row.get(0)?,
        expires_at: expires_at.unwrap_or(SystemTime::UNIX_EPOCH),
        end_epoch: row.get(2)?,
        deletable: row.get(3)?,
    })
}

fn get_one(connection: &Connection, sql: &Sql, key: &str) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached(&sql.get)?
        .query_row([key], record)
        .optional()
}

/// The rows, checked for writing by `method`, in the order of their keys: neighbours share pages.
fn checked(records: &[KeyRecord], method: &str) -> Result<Vec<KeyRecord>> {
    for KeyRecord { key, record } in records {
        check_key(key)?;
        check_text("blob ID", &record.blob_id)?;
        if record.offset_without_patch().is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("index in SQLite: block {key} cannot be indexed: its patch ID is none of its blob"),
            ));
        }
    }
    let order = in_key_order(records, method)?;
    Ok(order.into_iter().cloned().collect())
}

#[async_trait]
impl Rows for SqliteIndex {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        self.write_rows("put_many", None, records).await
    }

    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64> {
        self.change_rows("move_rows", from, None, to).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        check_key(key)?;
        let pass = self.gate.enter()?;
        let key = key.to_owned();
        self.quick("looking a key up", pass, move |connection, sql| {
            get_one(connection, sql, &key)
        })
        .await
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        const WHAT: &str = "looking keys up";
        for key in keys {
            check_key(key)?;
        }
        let pass = self.gate.enter()?;
        let few = keys.len() <= FEW;
        let keys = keys.to_vec();
        let work = move |connection: &Connection, sql: &Sql| {
            // One snapshot: a `put_many` of another caller is seen whole or not at all.
            let snapshot = connection.unchecked_transaction()?;
            let records = keys
                .iter()
                .map(|key| get_one(connection, sql, key))
                .collect();
            snapshot.finish()?;
            records
        };
        if few {
            self.quick(WHAT, pass, work).await
        } else {
            self.read(WHAT, pass, work).await
        }
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let _pass = self.gate.enter()?;
        Ok(None) // only Go nodes stage, and only in Postgres
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        self.delete_many(std::slice::from_ref(&key.to_owned()))
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        for key in keys {
            check_key(key)?;
        }
        let pass = self.gate.enter()?;
        if keys.is_empty() {
            return Ok(Usage::default());
        }
        let keys = keys.to_vec();
        let keep = self.inner.keep_deleted;
        // A delete that a power cut undoes is harmless: the block is collected next time.
        self.write_as(
            Promise::Visible,
            "deleting rows",
            pass,
            move |connection, sql| {
                let mut removed = Usage::default();
                let mut count = |size: i64| {
                    removed.blocks += 1;
                    removed.bytes = removed.bytes.saturating_add(size);
                };
                if !keep.is_zero() {
                    sql.deleted.move_rows(connection, &keys, keep, count)?;
                    return Ok(removed);
                }
                let mut delete = connection.prepare_cached(&sql.delete)?;
                for key in &keys {
                    let size = delete.query_row([key], |row| row.get(0)).optional()?;
                    size.into_iter().for_each(&mut count);
                }
                Ok(removed)
            },
        )
        .await
    }

    async fn delete_from(&self, from: &str, keys: &[String]) -> Result<Usage> {
        for key in keys {
            check_key(key)?;
        }
        check_text("blob ID", from)?;
        let pass = self.gate.enter()?;
        if keys.is_empty() {
            return Ok(Usage::default());
        }
        let (keys, from) = (keys.to_vec(), from.to_owned());
        let keep = self.inner.keep_deleted;
        self.write("deleting rows of a blob", pass, move |connection, sql| {
            let mut removed = Usage::default();
            let mut count = |size: i64| removed = removed.plus(Usage::new(1, size));
            // Nothing else writes within the transaction.
            let mut point_there = Vec::with_capacity(keys.len());
            for key in keys {
                let row = get_one(connection, sql, &key)?;
                if row.is_some_and(|row| row.blob_id == from) {
                    point_there.push(key);
                }
            }
            if !keep.is_zero() {
                sql.deleted
                    .move_rows(connection, &point_there, keep, count)?;
                return Ok(removed);
            }
            let mut delete = connection.prepare_cached(&sql.delete)?;
            for key in &point_there {
                let size = delete.query_row([key], |row| row.get(0)).optional()?;
                size.into_iter().for_each(&mut count);
            }
            Ok(removed)
        })
        .await
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        let pass = self.gate.enter()?;
        range.check()?;
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let range = range.clone();
        self.read("listing keys", pass, move |connection, sql| {
            let comparisons = range.comparisons();
            let whole = |n| i64::try_from(n).unwrap_or(i64::MAX);
            let (limit, offset) = (whole(limit), whole(offset));
            let bounds = comparisons
                .iter()
                .map(|(_, key)| key as &dyn rusqlite::ToSql);
            let page: [&dyn rusqlite::ToSql; 2] = [&limit, &offset];
            let params: Vec<_> = bounds.chain(page).collect();
            let mut list = connection.prepare_cached(&sql.list(&range))?;
            let rows = list.query_map(&params[..], |row| {
                Ok(ListItem {
                    key: row.get(0)?,
                    size: row.get(1)?,
                    expires_at: row.get::<_, Option<i64>>(2)?.map(from_micros),
                })
            })?;
            rows.collect()
        })
        .await
    }

    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let pass = self.gate.enter()?;
        // Before every entry: the smallest time and the empty blob ID.
        let after = after.map_or((i64::MIN, String::new()), |item| {
            (to_micros(item.expires_at), item.blob_id.clone())
        });
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(
            "listing blobs due for renewal",
            pass,
            move |connection, sql| {
                let mut due = connection.prepare_cached(&sql.due)?;
                let page = params![to_micros(before), after.0, after.1, limit];
                let rows = due.query_map(page, renew_item)?;
                rows.collect()
            },
        )
        .await
    }

    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let pass = self.gate.enter()?;
        // Before every entry whose end is known.
        let after = after.map_or((1, String::new()), |item| {
            (item.end_epoch, item.blob_id.clone())
        });
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(
            "listing blobs by their end epochs",
            pass,
            move |connection, sql| {
                let mut ending = connection.prepare_cached(&sql.ending)?;
                let rows = ending.query_map(params![epoch, after.0, after.1, limit], renew_item)?;
                rows.collect()
            },
        )
        .await
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        let pass = self.gate.enter()?;
        check_text("blob ID", blob_id)?;
        let blob_id = blob_id.to_owned();
        self.read(
            "listing the rows of a blob",
            pass,
            move |connection, sql| {
                let mut rows_of_blob = connection.prepare_cached(&sql.rows_of_blob)?;
                let rows = rows_of_blob.query_map([blob_id], key_record)?;
                rows.collect()
            },
        )
        .await
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let pass = self.gate.enter()?;
        check_text("blob ID", blob_id)?;
        let blob_id = blob_id.to_owned();
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(
            "listing rows of a blob from an offset on",
            pass,
            move |connection, sql| {
                let mut rows_from = connection.prepare_cached(&sql.rows_from)?;
                let rows = rows_from.query_map(params![blob_id, from, limit], key_record)?;
                rows.collect()
            },
        )
        .await
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        self.note_end(Blob::ending(blob_id, renewal), false).await
    }
}

#[async_trait]
impl Index for SqliteIndex {
    fn only_reads(&self) -> Option<&'static str> {
        match self.inner.access {
            Access::Write => None,
            Access::Read(why) => Some(why),
        }
    }

    fn unfinished_copy(&self) -> Option<&str> {
        self.inner.copy.as_deref()
    }

    async fn facts(&self) -> Result<Vec<Fact>> {
        let _pass = self.gate.enter()?;
        let path = self.inner.readers.path().to_owned();
        let shown = path.display().to_string();
        let looked = tokio::task::spawn_blocking(move || facts::of(&path)).await;
        let looked = looked.map_err(std::io::Error::other).and_then(|read| read);
        looked.map_err(|e| Error::new(ErrorKind::Index, format!("index in SQLite: {shown}: {e}")))
    }

    async fn close(&self) -> Result<()> {
        self.gate.shut();
        let limit = self
            .inner
            .busy_timeout
            .saturating_add(Duration::from_secs(30));
        self.gate.emptied(limit).await;
        let inner = self.inner.clone();
        let closed = tokio::task::spawn_blocking(move || {
            inner.readers.stop();
            // The writer is stopped last, so that it empties the write-ahead log into the file.
            if let Some(writer) = &inner.writer {
                writer.stop();
            }
        });
        closed
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("closing the index: {e}")))
    }
}

impl Drop for SqliteIndex {
    fn drop(&mut self) {
        self.gate.shut();
    }
}
