//! Rows that were deleted and are kept, in the companion `<table>_deleted`.
//!
//! Deleting moves rows there ([`super::deleted_sql`]), and a put of their keys removes them, each
//! within the statement for it in [`super::sql`]; the other statements are here. Times are those of
//! the server's clock. The companion has the key of the table and no other unique index, so it can
//! be distributed beside it.
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

use super::query::{Param, Query};
use super::{read, rows, usage, PostgresIndex, Row};
use crate::error::Result;
use crate::index::keys::{check_key, check_text};
use crate::index::{in_key_order, Deleted, DeletedRow, KeyRange, KeyRecord, Purged, Traces, Usage};

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
        let inner = &self.inner;
        let look = |staged: bool| {
            let forms = match inner.shape.has_deleted {
                true => &inner.sql.deleted.get_many,
                false => &inner.sql.get_many,
            };
            inner.look_keys_up(&call, &forms[usize::from(staged)], keys)
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
        let query = &inner.sql.deleted.undelete;
        let back = inner.ask(call, query, params.clone()).await?;
        doubt.settle();
        let keys = |row: &Row| row.try_get::<_, Option<Vec<String>>>(0);
        let back = read(call.what, &back, keys)?;
        Ok(back.into_iter().flatten().flatten().collect())
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
