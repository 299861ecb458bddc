//! The statements about rows that were deleted and are kept, and their part in deletions and puts.

use std::time::{Duration, SystemTime};

use rusqlite::types::ToSqlOutput;
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::{from_micros, key_record, to_micros};
use crate::index::keys::Compare;
use crate::index::table::TableName;
use crate::index::{DeletedRow, KeyRange, KeyRecord};

/// The columns that a row has in both tables, but for the key and the blob.
const COMMON: &str = "blob_offset, size, deletable, end_epoch, expires_at, created_at";
/// The columns that [`key_record`] reads, of a kept row.
const RECORD: &str = "blob, blob_offset, size, deletable, end_epoch, expires_at, key";

/// The statements that concern kept rows. Times are in microseconds.
pub(super) struct DeletedSql {
    pub create: String,
    take: String,
    keep: String,
    forget: String,
    pub purge: String,
    pub get: String,
    pub by_blob: String,
    pub undelete: String,
    pub page: String,
    name: String,
    table: String,
}

impl DeletedSql {
    pub fn new(main: &str, table: &TableName) -> DeletedSql {
        let name = format!("{table}_deleted");
        let kept = format!("\"{name}\"");
        DeletedSql {
            create: format!(
                "CREATE TABLE IF NOT EXISTS {kept} (key TEXT NOT NULL PRIMARY KEY, blob TEXT NOT NULL, \
                 blob_offset INTEGER NOT NULL, size INTEGER NOT NULL, deletable INTEGER NOT NULL, \
                 end_epoch INTEGER NOT NULL, expires_at INTEGER, created_at INTEGER NOT NULL, \
                 deleted_at INTEGER NOT NULL, keep_until INTEGER NOT NULL) WITHOUT ROWID;"
            ),
            take: format!("DELETE FROM {main} WHERE key = ?1 RETURNING size, blob_id, {COMMON}"),
            keep: format!(
                "INSERT OR REPLACE INTO {kept} (key, blob, {COMMON}, deleted_at, keep_until) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            ),
            forget: format!("DELETE FROM {kept} WHERE key = ?1"),
            purge: format!("DELETE FROM {kept} WHERE key = ?1 AND keep_until <= ?2"),
            get: format!("SELECT {RECORD}, deleted_at FROM {kept} WHERE key = ?1 AND keep_until > ?2"),
            by_blob: format!(
                "SELECT blob, count(*), CAST(total(size) AS INTEGER) FROM {kept} WHERE keep_until > ?1 AND blob > ?2 \
                 GROUP BY blob ORDER BY blob LIMIT ?3"
            ),
            undelete: format!(
                "INSERT INTO {main} (key, blob_id, {COMMON}, updated_at) \
                 SELECT key, blob, {COMMON}, ?2 FROM {kept} WHERE key = ?1 AND keep_until > ?2 \
                 ON CONFLICT (key) DO NOTHING"
            ),
            page: format!(
                "SELECT key, keep_until <= ?2 FROM {kept} WHERE key > ?1 ORDER BY key LIMIT ?3"
            ),
            table: kept,
            name,
        }
    }

    /// Whether the companion exists.
    pub fn exists(&self, connection: &Connection) -> rusqlite::Result<bool> {
        connection
            .prepare(
                "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
            )?
            .exists([&self.name])
    }

    /// Deletes the rows of keys and keeps them. `removed` is told the size of each.
    pub fn move_rows(
        &self,
        connection: &Connection,
        keys: &[String],
        time: Duration,
        mut removed: impl FnMut(i64),
    ) -> rusqlite::Result<()> {
        let now = SystemTime::now();
        let until = now.checked_add(time).map_or(i64::MAX, to_micros);
        let now = to_micros(now);
        let mut take = connection.prepare_cached(&self.take)?;
        let mut keep = connection.prepare_cached(&self.keep)?;
        for key in keys {
            let mut rows = take.query([key])?;
            let Some(row) = rows.next()? else {
                continue;
            };
            keep.raw_bind_parameter(1, key)?;
            // The blob, and the columns of `COMMON`.
            for at in 1..8 {
                keep.raw_bind_parameter(at + 1, ToSqlOutput::Borrowed(row.get_ref(at)?))?;
            }
            keep.raw_bind_parameter(9, now)?;
            keep.raw_bind_parameter(10, until)?;
            removed(row.get(0)?);
            keep.raw_execute()?;
        }
        Ok(())
    }

    /// Removes the kept rows of keys that were put.
    pub fn forget(&self, connection: &Connection, rows: &[KeyRecord]) -> rusqlite::Result<()> {
        let mut forget = connection.prepare_cached(&self.forget)?;
        for row in rows {
            forget.execute([&row.key])?;
        }
        Ok(())
    }

    pub fn get_one(
        &self,
        connection: &Connection,
        key: &str,
    ) -> rusqlite::Result<Option<DeletedRow>> {
        connection
            .prepare_cached(&self.get)?
            .query_row(params![key, to_micros(SystemTime::now())], deleted_row)
            .optional()
    }

    /// A page of kept rows; parameters are now, since, until, those of [`KeyRange::comparisons`],
    /// and the limit.
    pub fn list(&self, range: &KeyRange) -> String {
        let mut conditions = String::new();
        for (compare, _) in range.comparisons() {
            conditions.push_str(match compare {
                Compare::Greater => "AND key > ? ",
                Compare::AtLeast => "AND key >= ? ",
                Compare::Less => "AND key < ? ",
                Compare::AtMost => "AND key <= ? ",
                Compare::Not => "AND key <> ? ",
            });
        }
        format!(
            "SELECT {RECORD}, deleted_at FROM {} WHERE keep_until > ? AND deleted_at >= ? AND deleted_at < ? \
             {conditions}ORDER BY key LIMIT ?",
            self.table
        )
    }
}

/// Reads the columns of [`RECORD`] and the time of the deletion.
pub(super) fn deleted_row(row: &Row<'_>) -> rusqlite::Result<DeletedRow> {
    Ok(DeletedRow {
        row: key_record(row)?,
        deleted_at: from_micros(row.get(7)?),
    })
}
