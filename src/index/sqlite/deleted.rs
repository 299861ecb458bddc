//! Rows that were deleted and are kept, in the companion `<table>_deleted`. A deletion moves rows
//! there, and a put of their keys removes them, each within its own transaction.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rusqlite::{params, Connection, OptionalExtension};

use super::deleted_sql::deleted_row;
use super::schema::Sql;
use super::writer::Promise;
use super::{checked, get_one, record, to_micros, SqliteIndex, FEW};
use crate::error::Result;
use crate::index::keys::check_key;
use crate::index::{Deleted, DeletedRow, KeyRange, KeyRecord, Purged, Traces, Usage};

impl SqliteIndex {
    /// Reads something of each key: on the caller's thread, if they are few.
    async fn each_key<T: Send + 'static>(
        &self,
        what: &'static str,
        keys: &[String],
        get: fn(&Connection, &Sql, &str) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        for key in keys {
            check_key(key)?;
        }
        let pass = self.gate.enter()?;
        let (few, keys) = (keys.len() <= FEW, keys.to_vec());
        let work = move |connection: &Connection, sql: &Sql| {
            let snapshot = connection.unchecked_transaction()?;
            let found = keys.iter().map(|key| get(connection, sql, key)).collect();
            snapshot.finish()?;
            found
        };
        match few {
            true => self.quick(what, pass, work).await,
            false => self.read(what, pass, work).await,
        }
    }
}

#[async_trait]
impl Deleted for SqliteIndex {
    fn keeps_deleted(&self) -> Duration {
        match self.inner.has_deleted {
            true => self.inner.keep_deleted,
            false => Duration::ZERO,
        }
    }

    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        let live = |connection: &Connection, sql: &Sql, key: &str| {
            let live = get_one(connection, sql, key)?;
            Ok(Traces {
                live,
                deleted: None,
            })
        };
        let both = |connection: &Connection, sql: &Sql, key: &str| {
            let live = get_one(connection, sql, key)?;
            let deleted = sql.deleted.get_one(connection, key)?;
            Ok(Traces {
                live,
                deleted: deleted.map(|deleted| deleted.row.record),
            })
        };
        let get = if self.inner.has_deleted { both } else { live };
        self.each_key("looking keys up, deleted ones included", keys, get)
            .await
    }

    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        if !self.inner.has_deleted {
            return Ok(vec![None; keys.len()]);
        }
        self.each_key("looking deleted keys up", keys, |connection, sql, key| {
            sql.deleted.get_one(connection, key)
        })
        .await
    }

    async fn list_deleted(
        &self,
        range: &KeyRange,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
        limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        let pass = self.gate.enter()?;
        range.check()?;
        if limit == 0 || range.is_empty() || !self.inner.has_deleted {
            return Ok(Vec::new());
        }
        let range = range.clone();
        let since = since.map_or(i64::MIN, to_micros);
        let until = until.map_or(i64::MAX, to_micros);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("listing deleted rows", pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let comparisons = range.comparisons();
            let times: [&dyn rusqlite::ToSql; 3] = [&now, &since, &until];
            let bounds = comparisons
                .iter()
                .map(|(_, key)| key as &dyn rusqlite::ToSql);
            let last: [&dyn rusqlite::ToSql; 1] = [&limit];
            let params: Vec<_> = times.into_iter().chain(bounds).chain(last).collect();
            let mut list = connection.prepare_cached(&sql.deleted.list(&range))?;
            let rows = list.query_map(&params[..], deleted_row)?;
            rows.collect()
        })
        .await
    }

    async fn deleted_by_blob(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Usage)>> {
        let pass = self.gate.enter()?;
        if !self.inner.has_deleted {
            return Ok(Vec::new());
        }
        let after = after.unwrap_or_default().to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let work = move |connection: &Connection, sql: &Sql| {
            let now = to_micros(SystemTime::now());
            let mut by_blob = connection.prepare_cached(&sql.deleted.by_blob)?;
            let rows = by_blob.query_map(params![now, after, limit], |row| {
                let usage = Usage {
                    blocks: row.get(1)?,
                    bytes: row.get(2)?,
                };
                Ok((row.get(0)?, usage))
            })?;
            rows.collect()
        };
        self.read("listing the blobs of deleted rows", pass, work)
            .await
    }

    async fn undelete(&self, rows: &[KeyRecord]) -> Result<Vec<String>> {
        let pass = self.gate.enter()?;
        let rows = checked(rows, "undelete")?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.write(
            "bringing deleted rows back",
            pass,
            move |connection, sql| {
                let now = to_micros(SystemTime::now());
                let mut kept = connection.prepare_cached(&sql.deleted.get)?;
                let mut undelete = connection.prepare_cached(&sql.deleted.undelete)?;
                let mut taken = Vec::new();
                let mut back = Vec::new();
                for row in rows {
                    let found = kept.query_row(params![row.key, now], record).optional()?;
                    let may = |found: &crate::index::Record| found.blob_id == row.record.blob_id;
                    if !found.as_ref().is_some_and(may) {
                        continue;
                    }
                    if undelete.execute(params![row.key, now])? > 0 {
                        back.push(row.key.clone());
                    }
                    taken.push(row);
                }
                sql.deleted.forget(connection, &taken)?;
                Ok(back)
            },
        )
        .await
    }

    async fn purge_deleted(&self, after: &str, limit: usize) -> Result<Purged> {
        let what = "removing deleted rows whose time is over";
        let pass = self.gate.enter()?;
        if limit == 0 || !self.inner.has_deleted {
            return Ok(Purged::default());
        }
        let (after, most) = (after.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX));
        let look = move |connection: &Connection, sql: &Sql| {
            let mut page = connection.prepare_cached(&sql.deleted.page)?;
            let now = to_micros(SystemTime::now());
            let rows = page.query_map(params![after, now, most], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let page = self.read(what, pass, look).await?;
        let last = page.last().filter(|_| page.len() >= limit);
        let last = last.map(|(key, _)| key.clone());
        let over = page.into_iter().filter(|(_, over)| *over);
        let over: Vec<String> = over.map(|(key, _)| key).collect();
        if over.is_empty() {
            return Ok(Purged { removed: 0, last });
        }
        let pass = self.gate.enter()?;
        let purge = move |connection: &Connection, sql: &Sql| {
            let now = to_micros(SystemTime::now());
            let mut purge = connection.prepare_cached(&sql.deleted.purge)?;
            let mut removed = 0;
            for key in over {
                removed += purge.execute(params![key, now])? as u64;
            }
            Ok(removed)
        };
        let removed = self.write_as(Promise::Visible, what, pass, purge).await?;
        Ok(Purged { removed, last })
    }
}
