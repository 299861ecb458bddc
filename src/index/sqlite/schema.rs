//! The file: is opened, checked and created; and the statements on it.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::access::{self, Access};
use super::deleted_sql::DeletedSql;
use super::ledger_sql::{LedgerSql, BLOBS};
use super::{failed, is_busy, SqliteOptions, STATEMENTS};
use crate::error::{Error, ErrorKind, Result};
use crate::index::keys::{Compare, KeyRange};
use crate::index::table::{is_index, TableName, COMPANIONS, DELETED_COLUMNS};
use crate::index::{Absent, COPY};

/// Marks a file as one of walrusds ("wds1"; SQLite's `application_id`).
const APPLICATION_ID: i32 = 0x7764_7331;
/// Version of the tables.
const VERSION: i64 = 1;

/// The statements for one table.
pub(super) struct Sql {
    pub get: String,
    pub upsert: String,
    /// Writes a row where its key has none.
    pub insert: String,
    pub move_row: String,
    pub delete: String,
    pub due: String,
    pub ending: String,
    pub note: String,
    pub notes: String,
    pub set_note: String,
    pub add_note: String,
    pub drop_note: String,
    pub rows_of_blob: String,
    pub rows_from: String,
    pub update_blob: String,
    pub usage: String,
    pub add_usage: String,
    pub try_lease: String,
    pub release_lease: String,
    pub deleted: DeletedSql,
    create: String,
    version: String,
    meta: String,
    /// The name of the ledger, unquoted.
    blobs: String,
    pub ledger: LedgerSql,
    blob_idx: String,
    blobs_due: String,
    blobs_end: String,
    blobs_released: String,
    /// The table's name, and the name in quotes.
    name: String,
    table: String,
}

impl Sql {
    pub fn new(table: &TableName) -> Sql {
        // The schema is a part of the name here: an SQLite file has no schemas.
        let quoted = |suffix: &str| format!("\"{table}{suffix}\"");
        let (main, meta, leases, usage) = (
            quoted(""),
            quoted("_meta"),
            quoted("_leases"),
            quoted("_usage"),
        );
        let (blobs, epochs) = (quoted("_blobs"), quoted("_epochs"));
        let columns = "blob_id, blob_offset, size, deletable, end_epoch, expires_at";
        let deleted = DeletedSql::new(&main, table);
        Sql {
            get: format!("SELECT {columns} FROM {main} WHERE key = ?1"),
            upsert: format!(
                "INSERT INTO {main} (key, {columns}, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) \
                 ON CONFLICT (key) DO UPDATE SET blob_id = excluded.blob_id, blob_offset = excluded.blob_offset, \
                 size = excluded.size, deletable = excluded.deletable, end_epoch = excluded.end_epoch, \
                 expires_at = excluded.expires_at, updated_at = excluded.updated_at"
            ),
            insert: format!(
                "INSERT INTO {main} (key, {columns}, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) \
                 ON CONFLICT (key) DO NOTHING"
            ),
            move_row: format!(
                "UPDATE {main} SET blob_id = ?2, blob_offset = ?3, size = ?4, deletable = ?5, end_epoch = ?6, \
                 expires_at = ?7, updated_at = ?8 WHERE key = ?1 AND blob_id = ?9"
            ),
            delete: format!("DELETE FROM {main} WHERE key = ?1 RETURNING size"),
            due: format!(
                "SELECT blob_id, expires_at, end_epoch, deletable FROM {blobs} \
                 WHERE expires_at < ?1 AND (expires_at, blob_id) > (?2, ?3) \
                 ORDER BY expires_at, blob_id LIMIT ?4"
            ),
            ending: format!(
                "SELECT blob_id, expires_at, end_epoch, deletable FROM {blobs} \
                 WHERE end_epoch <= ?1 AND (end_epoch, blob_id) > (?2, ?3) \
                 ORDER BY end_epoch, blob_id LIMIT ?4"
            ),
            note: format!("SELECT value FROM {meta} WHERE name = ?1"),
            notes: format!(
                "SELECT name, value FROM {meta} WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name LIMIT ?2"
            ),
            set_note: format!(
                "INSERT INTO {meta} (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            ),
            add_note: format!(
                "INSERT INTO {meta} (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING"
            ),
            drop_note: format!("DELETE FROM {meta} WHERE name = ?1"),
            rows_of_blob: format!("SELECT {columns}, key FROM {main} WHERE blob_id = ?1 ORDER BY key"),
            rows_from: format!(
                "SELECT {columns}, key FROM {main} WHERE blob_id = ?1 AND blob_offset >= ?2 ORDER BY blob_offset LIMIT ?3"
            ),
            update_blob: format!(
                "UPDATE {main} SET end_epoch = max(end_epoch, ?2), \
                 expires_at = max(coalesce(expires_at, ?3), coalesce(?3, expires_at)), updated_at = ?4 WHERE blob_id = ?1"
            ),
            usage: format!("SELECT blocks, bytes FROM {usage} WHERE name = 'total'"),
            add_usage: format!(
                "INSERT INTO {usage} (name, blocks, bytes) VALUES ('total', ?1, ?2) \
                 ON CONFLICT (name) DO UPDATE SET blocks = blocks + excluded.blocks, bytes = bytes + excluded.bytes"
            ),
            try_lease: format!(
                "INSERT INTO {leases} AS l (name, owner, expires_at) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at \
                 WHERE l.owner = excluded.owner OR l.expires_at <= ?4 OR l.expires_at > ?5"
            ),
            release_lease: format!("DELETE FROM {leases} WHERE name = ?1 AND owner = ?2"),
            create: format!(
                "CREATE TABLE IF NOT EXISTS {main} (key TEXT NOT NULL PRIMARY KEY, blob_id TEXT NOT NULL, \
                 blob_offset INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL, deletable INTEGER NOT NULL DEFAULT 0, \
                 end_epoch INTEGER NOT NULL DEFAULT 0, expires_at INTEGER, \
                 created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) WITHOUT ROWID; \
                 CREATE INDEX IF NOT EXISTS {blob_idx} ON {main} (blob_id); \
                 DROP INDEX IF EXISTS {due_idx}; DROP INDEX IF EXISTS {expires_idx}; \
                 CREATE TABLE IF NOT EXISTS {blobs} ({BLOBS}) WITHOUT ROWID; \
                 CREATE INDEX IF NOT EXISTS {blobs_due} ON {blobs} (expires_at, blob_id) WHERE expires_at IS NOT NULL; \
                 CREATE INDEX IF NOT EXISTS {blobs_end} ON {blobs} (end_epoch, blob_id); \
                 CREATE INDEX IF NOT EXISTS {blobs_released} ON {blobs} (state, blob_id) WHERE state = 'released'; \
                 CREATE TABLE IF NOT EXISTS {epochs} (epoch INTEGER NOT NULL PRIMARY KEY, \
                 first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL) WITHOUT ROWID; \
                 CREATE TABLE IF NOT EXISTS {leases} (name TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID; \
                 CREATE TABLE IF NOT EXISTS {usage} (name TEXT NOT NULL PRIMARY KEY, blocks INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID; \
                 INSERT INTO {usage} (name, blocks, bytes) VALUES ('total', 0, 0) ON CONFLICT (name) DO NOTHING; \
                 {create_deleted} \
                 CREATE TABLE IF NOT EXISTS {meta} (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID; \
                 INSERT INTO {meta} (name, value) VALUES ('schema_version', '{VERSION}') \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value; \
                 PRAGMA application_id = {APPLICATION_ID};",
                create_deleted = deleted.create,
                blob_idx = quoted("_blob_id_idx"),
                blobs_due = quoted("_blobs_due"),
                blobs_end = quoted("_blobs_end"),
                blobs_released = quoted("_blobs_released"),
                // Of tables older than the ledger.
                due_idx = quoted("_due_idx"),
                expires_idx = quoted("_expires_at_idx"),
            ),
            version: format!("SELECT value FROM {meta} WHERE name = 'schema_version'"),
            meta: format!("{table}_meta"),
            blobs: format!("{table}_blobs"),
            ledger: LedgerSql::new(&main, &blobs, &epochs),
            deleted,
            blob_idx: format!("{table}_blob_id_idx"),
            blobs_due: format!("{table}_blobs_due"),
            blobs_end: format!("{table}_blobs_end"),
            blobs_released: format!("{table}_blobs_released"),
            name: table.to_string(),
            table: main,
        }
    }

    /// The names of the indexes, each with that of its table.
    fn indexes(&self) -> [(&String, &String); 4] {
        [
            (&self.blob_idx, &self.name),
            (&self.blobs_due, &self.blobs),
            (&self.blobs_end, &self.blobs),
            (&self.blobs_released, &self.blobs),
        ]
    }

    /// One page of a listing; parameters are those of [`KeyRange::comparisons`], limit and offset.
    pub fn list(&self, range: &KeyRange) -> String {
        let mut conditions = String::new();
        for (compare, _) in range.comparisons() {
            conditions.push_str(if conditions.is_empty() {
                "WHERE "
            } else {
                "AND "
            });
            conditions.push_str(match compare {
                Compare::Greater => "key > ? ",
                Compare::AtLeast => "key >= ? ",
                Compare::Less => "key < ? ",
                Compare::AtMost => "key <= ? ",
                Compare::Not => "key <> ? ",
            });
        }
        let columns = match range.keys_alone {
            true => "key, 0, NULL",
            false => "key, size, expires_at",
        };
        format!(
            "SELECT {columns} FROM {} {conditions}ORDER BY key{} LIMIT ? OFFSET ?",
            self.table,
            if range.descending { " DESC" } else { "" },
        )
    }
}

/// Opens a connection for reading. It waits at most `busy_timeout` for a lock on the file.
pub(super) fn open_reader(
    path: &Path,
    access: Access,
    busy_timeout: Duration,
) -> rusqlite::Result<Connection> {
    let connection = access.connect(path)?;
    connection.busy_timeout(busy_timeout)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -8192)?; // KiB
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Opens the write connection, after checking that the file is one of walrusds, and creates what is
/// missing. Where the file cannot or is not to be written, only checks the existing tables: the
/// connection is one for reading then.
pub(super) fn open(
    options: &SqliteOptions,
    table: &TableName,
    sql: &Sql,
) -> Result<(Connection, Access)> {
    let SqliteOptions {
        ref path,
        busy_timeout,
        only_existing,
        ..
    } = *options;
    let bad = |what: String| {
        Error::new(
            ErrorKind::Config,
            format!("indexPath {}: {what}", path.display()),
        )
    };
    if path.as_os_str().is_empty() {
        return Err(Error::new(ErrorKind::Config, "indexPath is empty"));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !only_existing {
        std::fs::create_dir_all(parent)
            .map_err(|e| bad(format!("its directory cannot be created: {e}")))?;
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(bad("is a directory; a file is expected".into())),
        Ok(meta) if !meta.is_file() => return Err(bad("is no regular file".into())),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if only_existing {
                return Err(bad(format!("cannot be used: {e}")).caused_by(Absent));
            }
        }
        Err(e) => return Err(bad(format!("cannot be used: {e}"))),
    }
    let explain = |e: rusqlite::Error| {
        let full = full_disk(&e, parent);
        let error = failed("opening", e).context(format!("indexPath {}", path.display()));
        match full {
            Some(free) => Error::retryable(
                ErrorKind::Index,
                format!("{error}: its disk is full ({free} bytes are free)"),
            ),
            None => error,
        }
    };

    let access = match only_existing {
        true => Access::Read("it was opened to be looked at"),
        false => access::find_out(path),
    };
    let connection = match access {
        Access::Write => Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        ),
        Access::Read(_) => access.connect(path),
    }
    .map_err(explain)?;
    connection.busy_timeout(busy_timeout).map_err(explain)?;
    // The objects are counted before the mark is read: another process may be creating both just
    // now.
    let objects: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(explain)?;
    let application: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(explain)?;
    if application != APPLICATION_ID && (application != 0 || objects > 0) {
        return Err(bad("is the database of another application".into()));
    }
    check_names(&connection, table).map_err(explain)??;
    if let Access::Read(why) = access {
        let version = read_version(&connection, sql).map_err(explain)?;
        if version != Some(VERSION) || !exists(&connection, &sql.blobs).map_err(explain)? {
            let error = bad(format!(
                "{why}, and it holds no table {table} that this walrusds can use as it is (schema version {VERSION}): \
                 let a node that may write to it open it first"
            ));
            let absent =
                version.is_none() && !exists(&connection, table.name()).map_err(explain)?;
            return Err(match absent {
                true => error.caused_by(Absent),
                false => error,
            });
        }
        connection.prepare(&sql.get).map_err(explain)?;
        return Ok((connection, access));
    }
    let mode = wal(&connection, busy_timeout).map_err(explain)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(bad(format!(
            "its file system does not support a write-ahead log (journal mode is {mode}); put it on a local disk"
        )));
    }
    // An acknowledged row survives a power cut: the log is synced at each commit.
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(explain)?;
    connection
        .pragma_update(None, "cache_size", -16384)
        .map_err(explain)?; // KiB
    connection.set_prepared_statement_cache_capacity(STATEMENTS);

    let version = read_version(&connection, sql).map_err(explain)?;
    match version {
        // Files that are older than the ledger and the table of deleted rows have the same version.
        Some(VERSION)
            if exists(&connection, &sql.blobs).map_err(explain)?
                && has_indexes(&connection, sql).map_err(explain)?
                && sql.deleted.exists(&connection).map_err(explain)? => {}
        Some(newer) if newer > VERSION => {
            return Err(bad(format!(
                "table {table} has schema version {newer}, this walrusds knows {VERSION}; install a newer one"
            )))
        }
        _ => {
            failpoint!("sqlite.schema.opened");
            let drop = drop_foreign_indexes(&connection, sql).map_err(explain)?;
            let batch = format!("BEGIN IMMEDIATE; {drop} {} COMMIT;", sql.create);
            connection.execute_batch(&batch).map_err(explain)?;
            failpoint!("sqlite.schema.created");
            // The new file's name must survive a power cut as well.
            std::fs::File::open(parent)
                .and_then(|dir| dir.sync_all())
                .map_err(|e| bad(format!("its directory cannot be synced: {e}")))?;
        }
    }
    // Reports missing columns or a damaged table now rather than at the first lookup.
    for statement in [&sql.get, &sql.upsert] {
        connection.prepare(statement).map_err(explain)?;
    }
    Ok((connection, access))
}

/// The free bytes on the disk of a directory, if the error was caused by a nearly full disk: SQLite
/// reports an I/O error where it has no room for its files beside the database.
fn full_disk(error: &rusqlite::Error, dir: &Path) -> Option<u64> {
    const HARDLY_ANY: u64 = 256 << 10;
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, SystemIoFailure};
    let code = error.sqlite_error_code()?;
    let may_be = matches!(code, CannotOpen | DiskFull | SystemIoFailure);
    let disk = may_be.then(|| rustix::fs::statvfs(dir).ok()).flatten()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A file system without blocks cannot fill up.
    (disk.f_blocks > 0 && free < HARDLY_ANY).then_some(free)
}

/// Refuses a table if its name, or the name of one of its companions, belongs to another index.
fn check_names(connection: &Connection, table: &TableName) -> rusqlite::Result<Result<()>> {
    // With the schema, as `Sql::new` names them.
    let companions = COMPANIONS.iter().map(|suffix| format!("{table}{suffix}"));
    let main = table.main_table().map(|main| main.to_string());
    let mut columns = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    for other in companions.chain(main) {
        let found = columns.query_map([&other], |row| row.get(0))?;
        let found = found.collect::<rusqlite::Result<Vec<String>>>()?;
        if is_index(|column| found.iter().any(|c| c == column)) {
            return Ok(Err(table.collides_with(&other)));
        }
        let deleted = other == format!("{table}_deleted") && !found.is_empty();
        if deleted
            && !DELETED_COLUMNS
                .iter()
                .all(|name| found.iter().any(|c| c == name))
        {
            return Ok(Err(table.is_no_companion(&other)));
        }
    }
    Ok(Ok(()))
}

/// Switches to WAL mode, trying again until `limit`: SQLite itself does not wait for other
/// processes then.
fn wal(connection: &Connection, limit: Duration) -> rusqlite::Result<String> {
    let started = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(e) if is_busy(&e) && started.elapsed() < limit => {
                std::thread::sleep(Duration::from_millis(5))
            }
            done => return done,
        }
    }
}

fn exists(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE")?
        .exists([table])
}

/// Whether the tables have their indexes. A table that was renamed keeps its indexes under their
/// old names: those may be of another table.
fn has_indexes(connection: &Connection, sql: &Sql) -> rusqlite::Result<bool> {
    let mut own = connection.prepare(
        "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1 COLLATE NOCASE AND tbl_name = ?2 COLLATE NOCASE",
    )?;
    let mut has = true;
    for (index, table) in sql.indexes() {
        has = has && own.exists([index, table])?;
    }
    Ok(has)
}

/// The statements that drop the indexes of other tables that have the names of this one's: a table
/// that was renamed kept them, and gets indexes of its own name when it is opened.
fn drop_foreign_indexes(connection: &Connection, sql: &Sql) -> rusqlite::Result<String> {
    let mut others = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND name = ?1 COLLATE NOCASE AND tbl_name <> ?2 COLLATE NOCASE",
    )?;
    let mut drops = String::new();
    for (index, table) in sql.indexes() {
        let names = others.query_map([index, table], |row| row.get::<_, String>(0))?;
        for name in names {
            let name = name?.replace('"', "\"\"");
            drops.push_str(&format!("DROP INDEX IF EXISTS \"{name}\";"));
        }
    }
    Ok(drops)
}

/// The note of an unfinished copy, if the file holds one.
pub(super) fn copy_note(connection: &Connection, sql: &Sql) -> rusqlite::Result<Option<String>> {
    if !exists(connection, &sql.meta)? {
        return Ok(None);
    }
    connection
        .query_row(&sql.note, [COPY], |row| row.get(0))
        .optional()
}

fn read_version(connection: &Connection, sql: &Sql) -> rusqlite::Result<Option<i64>> {
    if !exists(connection, &sql.meta)? {
        return Ok(None);
    }
    let value: Option<String> = connection
        .query_row(&sql.version, [], |row| row.get(0))
        .optional()?;
    Ok(Some(value.and_then(|v| v.parse().ok()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::table::parse_table;

    fn opened(dir: &Path) -> (Sql, Connection) {
        let table = parse_table("t").unwrap();
        let sql = Sql::new(&table);
        let opened = open(&SqliteOptions::new(dir.join("i"), "t"), &table, &sql);
        (sql, opened.unwrap().0)
    }

    #[test]
    fn an_acknowledged_row_survives_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (_, connection) = opened(dir.path());
        let pragma = |name: &str| -> String {
            connection
                .query_row(
                    &format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"),
                    [],
                    |row| row.get(0),
                )
                .unwrap()
        };
        assert_eq!(
            pragma("synchronous"),
            "2",
            "FULL: the log is synced at each commit"
        );
        assert_eq!(pragma("journal_mode"), "wal");
    }

    /// SQLite keeps the names of indexes when their table is renamed.
    #[test]
    fn a_table_that_was_renamed_and_the_next_of_its_name_have_their_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        let (_, connection) = opened(dir.path());
        for suffix in ["", "_meta", "_leases", "_usage"] {
            let rename = format!("ALTER TABLE t{suffix} RENAME TO old{suffix}");
            connection.execute_batch(&rename).unwrap();
        }
        drop(connection);
        // In both orders, and again: none takes the other's away.
        for name in ["t", "old", "t", "old", "t"] {
            let table = parse_table(name).unwrap();
            let sql = Sql::new(&table);
            let opened = open(&SqliteOptions::new(&path, name), &table, &sql);
            let (connection, _) = opened.unwrap();
            assert!(has_indexes(&connection, &sql).unwrap(), "{name}");
        }
        for name in ["t", "old"] {
            let sql = Sql::new(&parse_table(name).unwrap());
            let connection = Connection::open(&path).unwrap();
            assert!(has_indexes(&connection, &sql).unwrap(), "{name}");
        }
    }

    /// Counts steps of SQLite's virtual machine instead of time.
    #[test]
    fn a_page_of_due_blobs_costs_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (sql, connection) = opened(dir.path());
        connection
            .execute_batch(
                "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 999) \
                 INSERT INTO t_blobs (blob_id, expires_at, end_epoch, state_since) \
                 SELECT 'blob' || n, n / 250, n / 250 + 1, 0 FROM n",
            )
            .unwrap();
        let steps = |statement: &str, after: (i64, &str), limit: i64| {
            let mut due = connection.prepare(statement).unwrap();
            let mut rows = due
                .query(rusqlite::params![1000, after.0, after.1, limit])
                .unwrap();
            let mut found = 0;
            while rows.next().unwrap().is_some() {
                found += 1;
            }
            drop(rows);
            assert_eq!(found, limit);
            due.get_status(rusqlite::StatementStatus::VmStep)
        };
        for statement in [&sql.due, &sql.ending] {
            let all = steps(statement, (i64::MIN, ""), 1000);
            for after in [(i64::MIN, ""), (2, "blob700"), (3, "")] {
                let few = steps(statement, after, 10);
                assert!(
                    few < all / 30,
                    "{few} steps for 10 of 1,000 blobs, {all} for all: {statement}"
                );
            }
        }
    }

    #[test]
    fn lookups_and_pages_use_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let (sql, connection) = opened(dir.path());
        let range = KeyRange::prefix("/a").after("/ab").except("/ac");
        let (page, back) = (sql.list(&range), sql.list(&range.clone().descending()));
        let alone = sql.list(&range.clone().keys_alone());
        for statement in [
            &sql.get,
            &page,
            &back,
            &alone,
            &sql.delete,
            &sql.rows_of_blob,
            &sql.rows_from,
            &sql.due,
            &sql.ending,
            &sql.update_blob,
        ] {
            let mut plan = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
                .unwrap();
            let count = plan.parameter_count();
            let steps: Vec<String> = plan
                .query_map(rusqlite::params_from_iter(vec!["1"; count]), |row| {
                    row.get(3)
                })
                .unwrap()
                .map(|step| step.unwrap())
                .collect();
            let plan = steps.join("; ");
            assert!(
                plan.contains("SEARCH") && !plan.contains("SCAN t"),
                "{statement}: {plan}"
            );
            let sorts = plan.contains("TEMP B-TREE");
            let may_sort = [&sql.rows_from].contains(&statement);
            assert!(!sorts || may_sort, "{statement}: {plan}");
        }
    }
}
