//! The rows: the methods of [`Rows`] as statements.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_postgres::Row;

use super::call::{self, Call};
use super::conn::Answer;
use super::query::{Param, Query};
use super::rows::{self, columns};
use super::{error, ledger, read, usage, PostgresIndex, PostgresParts};
use crate::error::{Error, ErrorKind, Result};
use crate::index::keys::{check_key, check_text};
use crate::index::ledger::entries;
use crate::index::{
    in_key_order, Blob, KeyRange, KeyRecord, ListItem, Record, RenewItem, Renewal, Rows, Usage,
};

/// Rows of one bulk statement: large enough that the round trip does not matter, small enough that
/// a statement stays far below its timeout and below 10 MB.
const PAGE: usize = 5_000;

/// Runs of a deletion whose staged blocks were promoted meanwhile.
const MOST_PROMOTED: u32 = 5;

/// Rows and entries to write, and the statement for it.
struct Write<'a> {
    rows: &'a [&'a KeyRecord],
    /// The blob from which the rows are moved.
    from: Option<&'a str>,
    entries: &'a [Blob],
    query: &'a Query,
}

impl PostgresParts {
    pub(super) fn search_limit(&self) -> Duration {
        self.statement_timeout.max(super::SEARCH_LIMIT)
    }

    /// Checks rows that `method` is to write.
    pub(super) fn check_rows(&self, records: &[KeyRecord]) -> Result<()> {
        for KeyRecord { key, record } in records {
            let patch_id = record.patch_id.as_deref().unwrap_or_default();
            check_key(key)?;
            check_text("blob ID", &record.blob_id)?;
            check_text("patch ID", patch_id)?;
            if !self.shape.has_patch_id && record.offset_without_patch().is_none() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("index in Postgres: table {} has no column patch_id, and block {key} cannot be indexed without: its patch ID is none of its blob", self.shape.table),
                ));
            }
        }
        Ok(())
    }

    /// Writes rows, in pages, with a statement that returns its number of rows, and entries of the
    /// ledger; returns the number of rows. The rows come in key order, so that two writers of the
    /// same keys lock them in the same order.
    ///
    /// The statement of the last page writes the entries. A single page is one round trip and its
    /// own transaction; several pages are one transaction.
    async fn write_pages(self: &Arc<Self>, call: &Call, write: &Write<'_>) -> Result<Answer<u64>> {
        let count = |rows: &[Row]| match rows.first() {
            Some(row) => Ok(row.try_get::<_, i64>(0)?.unsigned_abs()),
            None => Ok(0),
        };
        let last = write.rows.chunks(PAGE).count().saturating_sub(1);
        let pages = write.rows.chunks(PAGE).enumerate().map(|(n, page)| {
            let mut params = columns(page, self.shape.has_patch_id);
            params.extend(write.from.map(|from| Param::Text(from.to_owned())));
            if self.ledger.is_some() {
                let entries = if n == last { write.entries } else { &[] };
                params.extend(ledger::columns(entries));
            }
            params.into()
        });
        let pages: Arc<[Arc<[Param]>]> = pages.collect();
        if let [page] = &pages[..] {
            let answer = call::query(&self.pool, call, write.query, page).await?;
            return Ok(answer.and_then(|rows| count(&rows)));
        }
        // The time of one statement for each page.
        let number = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let whole = Call {
            limit: call.limit.saturating_mul(number),
            ..call.clone()
        };
        call::run(&self.pool, &whole, |conn, deadline| {
            let (inner, pages, query) = (self.clone(), pages.clone(), write.query.clone());
            Box::pin(async move {
                let work = async {
                    inner.limit_statements(&conn).await?;
                    let mut written = 0;
                    for page in pages.iter() {
                        written += count(&conn.query(&query, page, deadline).await?)?;
                    }
                    Ok(written)
                };
                conn.transaction(work).await
            })
        })
        .await
    }

    /// Deletes rows that another transaction may be about to insert ([`super::in_doubt`]): waits
    /// for that transaction. Returns the result of the deletion, and what to add to it for the rows
    /// that it inserted itself.
    async fn delete_for_sure(
        self: &Arc<Self>,
        call: &Call,
        params: &Arc<[Param]>,
        staged: bool,
    ) -> Result<Answer<(Vec<Row>, Usage)>> {
        call::run(&self.pool, call, |conn, deadline| {
            let (inner, params) = (self.clone(), params.clone());
            Box::pin(async move {
                let work = async {
                    let placed = conn.query(&inner.sql.place, &params, deadline).await?;
                    let delete = &inner.sql.delete[usize::from(staged)];
                    let rows = conn.query(delete, &params, deadline).await?;
                    let placed = i64::try_from(placed.len()).unwrap_or(i64::MAX);
                    Ok((rows, Usage::new(-placed, 0)))
                };
                conn.transaction(work).await
            })
        })
        .await
    }
}

impl PostgresIndex {
    /// Inserts or replaces rows for `method`. `blob`: the entry of the blob at which they point, if
    /// more than its rows is known of it.
    pub(super) async fn write_rows(
        &self,
        method: &str,
        blob: Option<&Blob>,
        records: &[KeyRecord],
    ) -> Result<()> {
        let call = &self.call("writing rows")?;
        let inner = &self.inner;
        blob.map_or(Ok(()), ledger::check)?;
        inner.check_rows(records)?;
        let rows = &in_key_order(records, method)?;
        if rows.is_empty() {
            return Ok(());
        }
        let entries = &entries(blob, records);
        let doubt = inner.in_doubt.writing(records);
        inner
            .with_staging(call, |staged| async move {
                let write = Write {
                    rows,
                    from: None,
                    entries,
                    query: &inner.sql.upsert[usize::from(staged)],
                };
                inner.write_pages(call, &write).await
            })
            .await?;
        doubt.settle();
        Ok(())
    }

    /// Moves rows from the blob `from` for `method`; `blob` as for
    /// [`write_rows`](Self::write_rows). Returns how many rows were changed.
    pub(super) async fn change_rows(
        &self,
        method: &str,
        from: &str,
        blob: Option<&Blob>,
        to: &[KeyRecord],
    ) -> Result<u64> {
        let call = &self.call("moving rows to another blob")?;
        check_text("blob ID", from)?;
        let inner = &self.inner;
        blob.map_or(Ok(()), ledger::check)?;
        inner.check_rows(to)?;
        let rows = &in_key_order(to, method)?;
        if rows.is_empty() {
            return Ok(0);
        }
        let entries = &entries(blob, to);
        let write = Write {
            rows,
            from: Some(from),
            entries,
            query: &inner.sql.move_rows,
        };
        let moved = inner.write_pages(call, &write).await?;
        moved.map_err(|e| error::statement(call.what, e))
    }
}

fn renew_item(row: &Row) -> Answer<RenewItem> {
    let expires_at: Option<SystemTime> = row.try_get(1)?;
    Ok(RenewItem {
        blob_id: row.try_get(0)?,
        expires_at: expires_at.unwrap_or(SystemTime::UNIX_EPOCH),
        end_epoch: row.try_get(2)?,
        deletable: row.try_get(3)?,
    })
}

#[async_trait]
impl Rows for PostgresIndex {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        self.write_rows("put_many", None, records).await
    }

    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64> {
        self.change_rows("move_rows", from, None, to).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        check_key(key)?;
        let call = self.call("looking a key up")?;
        let (inner, params) = (&self.inner, [Param::Text(key.into())].into());
        let get = |staged| {
            let query = &inner.sql.get[usize::from(staged)];
            call::query(&*inner.lookups, &call, query, &params)
        };
        let rows = inner.with_staging(&call, get).await?;
        let records = read(call.what, &rows, rows::record)?;
        Ok(records.into_iter().max_by_key(|r| r.staged))
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("looking keys up")?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let inner = &self.inner;
        let get_many = |staged| {
            let query = &inner.sql.get_many[usize::from(staged)];
            inner.look_keys_up(&call, query, keys)
        };
        let rows = inner.with_staging(&call, get_many).await?;
        let rows = read(call.what, &rows, rows::key_record)?;
        Ok(rows::of_keys(keys, rows))
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let call = self.call("reading a staged block")?;
        let (inner, params) = (&self.inner, [Param::Text(key.into())].into());
        let (call, params) = (&call, &params);
        let value = |staged| async move {
            match staged {
                true => call::query(&*inner.lookups, call, &inner.sql.staged_value, params).await,
                false => Ok(Ok(Vec::new())),
            }
        };
        let rows = inner.with_staging(call, value).await?;
        let values = read(call.what, &rows, |row| row.try_get::<_, Vec<u8>>(0))?;
        Ok(values.into_iter().next().map(Bytes::from))
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        self.delete_many(std::slice::from_ref(&key.to_owned()))
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("deleting rows")?;
        if keys.is_empty() {
            return Ok(Usage::default());
        }
        let mut keys = keys.to_vec();
        keys.sort_unstable(); // as put_many: one order of locking
        let (inner, call, keys) = (&self.inner, &call, &keys);
        let params: &Arc<[Param]> = &[Param::Texts(keys.clone())].into();
        let delete = |staged: bool| async move {
            if inner.in_doubt.any(keys) {
                let done = inner.delete_for_sure(call, params, staged).await?;
                if done.is_ok() {
                    inner.in_doubt.settle(keys.iter());
                }
                return Ok(done);
            }
            if inner.deletes_apart(staged) {
                let deleted = inner.delete_apart(call, params).await?;
                return Ok(deleted.map(|deleted| (Vec::new(), deleted)));
            }
            let query = &inner.sql.delete[usize::from(staged)];
            let mut removed: Vec<Row> = Vec::new();
            for last in (0..MOST_PROMOTED).rev() {
                match call::query(&*inner.deletes, call, query, params).await? {
                    Ok(rows) => removed.extend(rows),
                    Err(e) => return Ok(Err(e)),
                }
                // Staged blocks were promoted while it waited for them: now their rows are seen.
                let promoted = removed.last().map(|row| row.try_get::<_, bool>(2));
                match promoted.transpose() {
                    Ok(Some(true)) if last > 0 => {}
                    Ok(_) => break,
                    Err(e) => return Ok(Err(e)),
                }
            }
            Ok(Ok((removed, Usage::default())))
        };
        let (rows, more) = inner.with_staging(call, delete).await?;
        let removed = read(call.what, &rows, usage)?.into_iter();
        Ok(removed.fold(more, Usage::plus))
    }

    async fn delete_from(&self, from: &str, keys: &[String]) -> Result<Usage> {
        keys.iter().try_for_each(|key| check_key(key))?;
        check_text("blob ID", from)?;
        let call = self.call("deleting rows of a blob")?;
        if keys.is_empty() {
            return Ok(Usage::default());
        }
        let mut keys = keys.to_vec();
        keys.sort_unstable(); // as put_many: one order of locking
        let params = [Param::Texts(keys), Param::Text(from.to_owned())].into();
        let query = &self.inner.sql.delete_from;
        let rows = self.inner.ask(&call, query, params).await?;
        let removed = read(call.what, &rows, usage)?.into_iter();
        Ok(removed.fold(Usage::default(), Usage::plus))
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        let call = self.call("listing keys")?;
        range.check()?;
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let (inner, call) = (&self.inner, &call);
        let page = |staged| async move {
            // The two tables are merged here, and the offset is applied to the merged rows: the
            // first n rows of each contain the first n of both.
            let (skip, rows) = match staged {
                true => (0, offset.saturating_add(limit)),
                false => (offset, limit),
            };
            let as_array = range.keys_alone && !staged;
            let query = Query::once(match as_array {
                true => inner.sql.list_keys(range),
                false => inner.sql.list(range, staged),
            });
            let bounds = range.comparisons().into_iter();
            let bounds = bounds.map(|(_, key)| Param::Text(key.to_owned()));
            let params = bounds.chain([Param::count(rows), Param::count(skip)]);
            // Not over the pipeline: a page is large enough to delay lookups.
            let rows = call::query(&inner.pool, call, &query, &params.collect()).await?;
            Ok(rows.map(|rows| (staged, as_array, rows)))
        };
        let (merge, as_array, rows) = inner.with_staging(call, page).await?;
        if as_array {
            let get = |row: &Row| row.try_get::<_, Option<Vec<String>>>(0);
            let keys = read(call.what, &rows, get)?;
            let item = |key| ListItem {
                key,
                size: 0,
                expires_at: None,
            };
            return Ok(keys.into_iter().flatten().flatten().map(item).collect());
        }
        let mut items = read(call.what, &rows, |row| {
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
            let keys = match range.descending {
                true => b.key.cmp(&a.key),
                false => a.key.cmp(&b.key),
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
        let mut call = self.call("listing blobs due for renewal")?;
        call.limit = self.inner.search_limit();
        let before = Param::Time(Some(rows::storable(before)));
        let mut params = vec![before, Param::count(limit)];
        let query = &self.inner.sql.due[usize::from(after.is_some())];
        if let Some(item) = after {
            let expires_at = Param::Time(Some(rows::storable(item.expires_at)));
            params.extend([expires_at, Param::Text(item.blob_id.clone())]);
        }
        let rows = self.inner.ask(&call, query, params.into()).await?;
        read(call.what, &rows, renew_item)
    }

    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let mut call = self.call("listing blobs by their end epochs")?;
        call.limit = self.inner.search_limit();
        let query = &self.inner.sql.ending[usize::from(after.is_some())];
        let mut params = vec![Param::Int(epoch), Param::count(limit)];
        if let Some(item) = after {
            params.extend([
                Param::Int(item.end_epoch),
                Param::Text(item.blob_id.clone()),
            ]);
        }
        let rows = self.inner.ask(&call, query, params.into()).await?;
        read(call.what, &rows, renew_item)
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        let call = self.call("listing the rows of a blob")?;
        check_text("blob ID", blob_id)?;
        let params = [Param::Text(blob_id.to_owned())].into();
        let query = &self.inner.sql.rows_of_blob;
        let rows = self.inner.ask(&call, query, params).await?;
        read(call.what, &rows, rows::key_record)
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let call = self.call("listing rows of a blob from an offset on")?;
        check_text("blob ID", blob_id)?;
        let from = Param::Int(i64::try_from(from).unwrap_or(i64::MAX));
        let params = [Param::Text(blob_id.to_owned()), from, Param::count(limit)].into();
        let query = &self.inner.sql.rows_from;
        let rows = self.inner.look_up(&call, query, params).await?;
        read(call.what, &rows, rows::key_record)
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        self.note_end(&Blob::ending(blob_id, renewal), false).await
    }
}
