//! Rows that were deleted and are kept, in the companion `<table>_deleted`.
//!
//! Deleting moves rows there ([`keep`]), and a put of their keys removes them, each within the
//! statement for it in [`super::sql`]; the other statements are here. Times are those of the
//! server's clock. The companion has the key of the table and no other unique index, so it can be
//! distributed beside it.
//!
//! **Locks.** Deletions and puts lock rows of the table first, then rows of the companion.
//! [`Deleted::undelete`] locks them the other way round, since what it inserts is what it has just
//! taken out: that makes a row come back only as it was when it was taken. Two nodes that undelete
//! and write one key at the same moment may so deadlock; the server ends one of the two, and it is
//! tried again ([`super::call`]). Within a node the callers' locks of keys keep them apart.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::call;
use super::deadline;
use super::query::{clamped_sum, Param, Query};
use super::schema::Shape;
use super::sql::UPSERT_FORMS;
use super::{error, in_form, is_unsupported, read, rows, usage, PostgresIndex, Row};
use crate::error::Result;
use crate::index::keys::{check_key, check_text, Compare};
use crate::index::{in_key_order, Deleted, DeletedRow, KeyRange, KeyRecord, Purged, Traces, Usage};

/// The columns of the companion.
pub(super) const COLUMNS: &str = "key TEXT COLLATE \"C\" PRIMARY KEY, blob TEXT NOT NULL, \
    patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL, \
    deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
    created_at TIMESTAMPTZ NOT NULL, deleted_at TIMESTAMPTZ NOT NULL, keep_until TIMESTAMPTZ NOT NULL";

/// The columns that a row has in both tables, but for the key, the blob and the patch.
const COMMON: &str = "blob_offset, size, deletable, end_epoch, expires_at, created_at";

/// The columns that a deletion returns to [`keep`] beside key and size.
pub(super) fn returned(shape: &Shape) -> String {
    let patch = match shape.has_patch_id {
        true => "patch_id",
        false => "'' AS patch_id",
    };
    format!(", blob_id, {patch}, blob_offset, deletable, end_epoch, expires_at, created_at")
}

/// Keeps the rows that the deletion `d` has removed. A row without a blob is one that the deletion
/// itself has placed ([`super::in_doubt`]).
pub(super) fn keep(companion: &str, keep: Duration) -> String {
    let names = format!("blob, patch_id, {COMMON}, deleted_at, keep_until");
    let set = names
        .split(", ")
        .map(|name| format!("{name} = EXCLUDED.{name}"));
    format!(
        "INSERT INTO {companion} (key, {names}) SELECT key, blob_id, patch_id, {COMMON}, now(), \
         now() + interval '{} seconds' FROM d WHERE in_time AND blob_id <> '' ON CONFLICT (key) DO UPDATE SET {}",
        keep.as_secs_f64(),
        set.collect::<Vec<_>>().join(", "),
    )
}

/// The columns that [`rows::key_record`] reads, of a kept row.
const RECORD: &str =
    "FALSE AS staged, blob, patch_id, blob_offset, size, deletable, end_epoch, expires_at, key";

/// The statements that concern kept rows alone.
pub(super) struct DeletedSql {
    /// A lookup of keys with their kept rows, with (`[1]`) and without (`[0]`) the staging table.
    get_many: [Query; 2],
    of_keys: Query,
    /// Without and with the blob after which the page begins.
    by_blob: [Query; 2],
    /// `[form]`
    undelete: [Query; UPSERT_FORMS],
    page: Query,
    purge: Query,
    table: String,
}

impl DeletedSql {
    /// `get_many`: the lookups of keys without kept rows.
    pub fn new(shape: &Shape, get_many: &[String; 2]) -> DeletedSql {
        let table = shape.table.quoted();
        let kept = shape.table.companion("_deleted").quoted();
        let of_keys = |last| {
            format!(
                "SELECT {RECORD}, {last} FROM {kept} WHERE key = ANY($1) AND keep_until > now()"
            )
        };
        let patch = if shape.has_patch_id { "patch_id, " } else { "" };
        let undelete = |form: usize| {
            let (begun, returning) = match form {
                0 => ("TRUE".to_owned(), deadline::when_locked(3)),
                _ => (deadline::when_begun(3), "TRUE".to_owned()),
            };
            Query::once(format!(
                "WITH u AS (DELETE FROM {kept} WHERE key = ANY($1) AND blob = ANY($2) AND keep_until > now() \
                 RETURNING key, blob, {patch}{COMMON}), \
                 w AS (INSERT INTO {table} (key, blob_id, {patch}{COMMON}, updated_at) \
                 SELECT key, blob, {patch}{COMMON}, now() FROM u WHERE {begun} ON CONFLICT (key) DO NOTHING \
                 RETURNING key, {returning} AS in_time) SELECT key FROM w WHERE in_time"
            ))
            .bounded()
        };
        let by_blob = |after| {
            Query::once(format!(
                "SELECT count(*), {}, blob COLLATE \"C\" AS blob FROM {kept} WHERE keep_until > now() {after}\
                 GROUP BY 3 ORDER BY 3 LIMIT $1",
                clamped_sum("size")
            ))
        };
        DeletedSql {
            get_many: [0, 1].map(|staged: usize| {
                Query::hot(format!(
                    "SELECT r.*, FALSE AS kept FROM ({}) AS r UNION ALL {}",
                    get_many[staged],
                    of_keys("TRUE")
                ))
            }),
            of_keys: Query::once(of_keys("deleted_at")),
            by_blob: ["", "AND blob COLLATE \"C\" > $2 "].map(by_blob),
            undelete: std::array::from_fn(undelete),
            page: Query::once(format!(
                "SELECT key, keep_until <= now() FROM {kept} WHERE key > $1 ORDER BY key LIMIT $2"
            )),
            purge: Query::once(format!(
                "DELETE FROM {kept} WHERE key = ANY($1) AND keep_until <= now()"
            )),
            table: kept,
        }
    }

    /// A page of kept rows; parameters are since, until, those of [`KeyRange::comparisons`], and
    /// the limit.
    fn list(&self, range: &KeyRange) -> String {
        let mut conditions = String::new();
        let mut last = 2;
        for (compare, _) in range.comparisons() {
            last += 1;
            let operator = match compare {
                Compare::Greater => ">",
                Compare::AtLeast => ">=",
                Compare::Less => "<",
                Compare::AtMost => "<=",
                Compare::Not => "<>",
            };
            conditions.push_str(&format!("AND key {operator} ${last} "));
        }
        format!(
            "SELECT {RECORD}, deleted_at FROM {table} WHERE keep_until > now() \
             AND ($1 IS NULL OR deleted_at >= $1) AND ($2 IS NULL OR deleted_at < $2) \
             {conditions}ORDER BY key LIMIT ${limit}",
            table = self.table,
            limit = last + 1,
        )
    }
}

fn deleted_row(row: &Row) -> super::Answer<DeletedRow> {
    Ok(DeletedRow {
        row: rows::key_record(row)?,
        deleted_at: row.try_get(9)?,
    })
}

#[async_trait]
impl Deleted for PostgresIndex {
    fn keeps_deleted(&self) -> Duration {
        self.inner.keep_deleted
    }

    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("looking keys up, deleted ones included")?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (inner, params) = (&self.inner, [Param::Texts(keys.to_vec())].into());
        let look = |staged: bool| {
            let forms = match inner.shape.has_deleted {
                true => &inner.sql.deleted.get_many,
                false => &inner.sql.get_many,
            };
            call::query(&*inner.lookups, &call, &forms[usize::from(staged)], &params)
        };
        let rows = inner.with_staging(&call, look).await?;
        let kept = |row: &Row| match inner.shape.has_deleted {
            true => row.try_get(9),
            false => Ok(false),
        };
        let found = read(call.what, &rows, |row| {
            Ok((rows::key_record(row)?, kept(row)?))
        })?;
        let mut traces: HashMap<String, Traces> = HashMap::with_capacity(found.len());
        for (KeyRecord { key, record }, kept) in found {
            let traces = traces.entry(key).or_default();
            if kept {
                traces.deleted = Some(record);
            } else if record.staged || traces.live.is_none() {
                traces.live = Some(record);
            }
        }
        let of = |key: &String| traces.get(key).cloned().unwrap_or_default();
        Ok(keys.iter().map(of).collect())
    }

    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("looking deleted keys up")?;
        if keys.is_empty() || !self.inner.shape.has_deleted {
            return Ok(vec![None; keys.len()]);
        }
        let params = [Param::Texts(keys.to_vec())].into();
        let query = &self.inner.sql.deleted.of_keys;
        let rows = self.inner.ask(&call, query, params).await?;
        let found = read(call.what, &rows, deleted_row)?.into_iter();
        let found: HashMap<_, _> = found.map(|found| (found.row.key.clone(), found)).collect();
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn list_deleted(
        &self,
        range: &KeyRange,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
        limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        let call = self.call("listing deleted rows")?;
        range.check()?;
        if limit == 0 || range.is_empty() || !self.inner.shape.has_deleted {
            return Ok(Vec::new());
        }
        let times = [since, until].map(|time| Param::Time(time.map(rows::storable)));
        let bounds = range.comparisons().into_iter();
        let bounds = bounds.map(|(_, key)| Param::Text(key.to_owned()));
        let params = times.into_iter().chain(bounds).chain([Param::count(limit)]);
        let query = Query::once(self.inner.sql.deleted.list(range));
        let rows = self.inner.ask(&call, &query, params.collect()).await?;
        read(call.what, &rows, deleted_row)
    }

    async fn deleted_by_blob(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Usage)>> {
        let mut call = self.call("listing the blobs of deleted rows")?;
        call.limit = self.inner.search_limit();
        check_text("blob ID", after.unwrap_or_default())?;
        if !self.inner.shape.has_deleted {
            return Ok(Vec::new());
        }
        let query = &self.inner.sql.deleted.by_blob[usize::from(after.is_some())];
        let mut params = vec![Param::count(limit)];
        params.extend(after.map(|after| Param::Text(after.to_owned())));
        let rows = self.inner.ask(&call, query, params.into()).await?;
        read(call.what, &rows, |row| Ok((row.try_get(2)?, usage(row)?)))
    }

    async fn undelete(&self, rows: &[KeyRecord]) -> Result<Vec<String>> {
        for KeyRecord { key, record } in rows {
            check_key(key)?;
            check_text("blob ID", &record.blob_id)?;
        }
        let call = &self.call("bringing deleted rows back")?;
        if rows.is_empty() || !self.inner.shape.has_deleted {
            return Ok(Vec::new());
        }
        let order = in_key_order(rows, "undelete")?;
        let keys = order.iter().map(|row| row.key.clone()).collect();
        let mut blobs: Vec<_> = rows.iter().map(|row| row.record.blob_id.clone()).collect();
        blobs.sort_unstable();
        blobs.dedup();
        let params: &Arc<[Param]> = &[Param::Texts(keys), Param::Texts(blobs)].into();
        let inner = &self.inner;
        // As after a put: a deletion that follows must meet the rows that are brought back late.
        let doubt = inner.in_doubt.writing(rows);
        let back = in_form(&inner.upsert_form, UPSERT_FORMS, is_unsupported, |form| {
            call::query(&inner.pool, call, &inner.sql.deleted.undelete[form], params)
        });
        let back = back.await?.map_err(|e| error::statement(call.what, e))?;
        doubt.settle();
        read(call.what, &back, |row| row.try_get(0))
    }

    async fn purge_deleted(&self, after: &str, limit: usize) -> Result<Purged> {
        let call = self.call("removing deleted rows whose time is over")?;
        check_text("key", after)?;
        if limit == 0 || !self.inner.shape.has_deleted {
            return Ok(Purged::default());
        }
        let (inner, sql) = (&self.inner, &self.inner.sql.deleted);
        let params = [Param::Text(after.to_owned()), Param::count(limit)].into();
        let rows = inner.ask(&call, &sql.page, params).await?;
        let page = read(call.what, &rows, |row| {
            Ok((row.try_get::<_, String>(0)?, row.try_get::<_, bool>(1)?))
        })?;
        let last = page.last().filter(|_| page.len() >= limit);
        let last = last.map(|(key, _)| key.clone());
        let over = page.into_iter().filter(|(_, over)| *over);
        let over: Vec<String> = over.map(|(key, _)| key).collect();
        let removed = match over.is_empty() {
            true => 0,
            false => {
                let keys = [Param::Texts(over)].into();
                inner.change(&call, &sql.purge, keys).await?
            }
        };
        Ok(Purged { removed, last })
    }
}
