//! The methods of [`Staging`] as statements.
//!
//! **Problem.** A Go node may be at work on the same staged blocks: it stages a key anew, deletes
//! it, claims it, or promotes it. What it does must count, whichever comes first.
//!
//! **Outline.** A claim is the column `leased_until`, as for the Go plugin, whose own claims pass
//! over blocks that are leased. The Go plugin clears the column when it stages a key anew, and
//! writes another time when it claims one. So the time itself tells whether a block is still the
//! one that was claimed. A claim ends at a random microsecond within a second, so that a clock that
//! was set back does not give the same time twice. [`promote`](Staging::promote) locks the staged
//! rows whose time is that of the claim, then writes the rows and removes the staged ones, in one
//! transaction.
//!
//! **Locks.** Staged rows first, then rows of the table, as the Go plugin locks them. Puts and
//! deletions of this crate lock them the other way round: the server ends one of two transactions
//! that so wait for each other, and it is tried again ([`super::call`]). A claim waits for no lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_postgres::Row;

use super::call::{self, Call};
use super::conn::Answer;
use super::query::{clamped_sum, Param, Query};
use super::rows::{self, columns, storable};
use super::{error, ledger, read, usage, PostgresIndex};
use crate::error::Result;
use crate::index::keys::check_key;
use crate::index::ledger::entries;
use crate::index::{
    in_key_order, Blob, Claim, Claimed, KeyRecord, LeftBehind, Record, Staging, Usage,
    LONGEST_LEASE,
};

/// The condition of a staged block that was left behind; parameter `age` is in seconds.
fn is_left(age: usize) -> String {
    let longest = LONGEST_LEASE.as_secs();
    format!(
        "(s.created_at <= now() - ${age} * interval '1 second' OR s.created_at > now() + interval '{longest} seconds') \
         AND (s.leased_until IS NULL OR s.leased_until <= now() OR s.leased_until > now() + interval '{longest} seconds')"
    )
}

/// Parameters of claims: keys in order, and the ends of their claims.
fn claims<'a>(claims: impl Iterator<Item = &'a Claim>) -> Arc<[Param]> {
    let mut sorted: Vec<&Claim> = claims.collect();
    sorted.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let until = sorted.iter().map(|claim| Some(storable(claim.until)));
    let until = Param::Times(until.collect());
    let keys = sorted.into_iter().map(|claim| claim.key.clone());
    [Param::Texts(keys.collect()), until].into()
}

/// The rows in the order of their keys, in which every writer locks them.
fn in_key_order_of(rows: &[KeyRecord]) -> Vec<&KeyRecord> {
    let mut order: Vec<&KeyRecord> = rows.iter().collect();
    order.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    order
}

/// The staged rows of [`claims`] that still have their claims.
const STILL_CLAIMED: &str = "unnest($1::text[], $2::timestamptz[]) AS r(key, until) \
                             WHERE s.key = r.key AND s.leased_until = r.until";

impl PostgresIndex {
    /// The name of the staging table in a statement. Without such a table, none is asked.
    fn staged(&self) -> String {
        let staging = self.inner.shape.staging.as_ref();
        staging.map(|table| table.quoted()).unwrap_or_default()
    }

    /// Asks the staging table, if there is one.
    async fn ask_staged(
        &self,
        call: &Call,
        query: &Query,
        params: &Arc<[Param]>,
    ) -> Result<Vec<Row>> {
        let inner = &self.inner;
        let ask = |staged: bool| async move {
            match staged {
                true => call::query(&inner.pool, call, query, params).await,
                false => Ok(Ok(Vec::new())),
            }
        };
        inner.with_staging(call, ask).await
    }

    /// Writes rows in a transaction, where their claims still hold. Returns the keys of those that
    /// were written.
    async fn promote_held(
        &self,
        call: &Call,
        blob: &Blob,
        rows: &[(KeyRecord, Claim)],
    ) -> Result<Answer<Vec<String>>> {
        let inner = &self.inner;
        let held = claims(rows.iter().map(|(_, claim)| claim));
        let lock = Query::once(format!(
            "SELECT s.key FROM {} AS s, {STILL_CLAIMED} ORDER BY s.key FOR UPDATE OF s",
            self.staged()
        ));
        let records: Arc<[KeyRecord]> = rows.iter().map(|(row, _)| row.clone()).collect();
        let blob = Arc::new(blob.clone());
        call::run(&inner.pool, call, |conn, deadline| {
            let (inner, held, lock) = (inner.clone(), held.clone(), lock.clone());
            let (records, blob) = (records.clone(), blob.clone());
            Box::pin(async move {
                let work = async {
                    let locked = conn.query(&lock, &held, deadline).await?;
                    let locked: Vec<String> = locked
                        .iter()
                        .map(|row| row.try_get(0))
                        .collect::<Answer<_>>()?;
                    if locked.is_empty() {
                        return Ok(locked);
                    }
                    let keys: HashSet<&str> = locked.iter().map(String::as_str).collect();
                    let rows = records.iter().filter(|row| keys.contains(&*row.key));
                    let rows: Vec<KeyRecord> = rows.cloned().collect();
                    let entries = entries(Some(&blob), &rows);
                    let ordered = &in_key_order_of(&rows);
                    let mut params = columns(ordered, inner.shape.has_patch_id);
                    if inner.ledger.is_some() {
                        params.extend(ledger::columns(&entries));
                    }
                    // It removes the staged rows as well.
                    let upsert = &inner.sql.upsert[1];
                    conn.query(upsert, &Arc::from(params), deadline).await?;
                    Ok(locked)
                };
                conn.transaction(work).await
            })
        })
        .await
    }
}

#[async_trait]
impl Staging for PostgresIndex {
    async fn left_behind(
        &self,
        age: Duration,
        after: Option<&LeftBehind>,
        limit: usize,
    ) -> Result<Vec<LeftBehind>> {
        let mut call = self.call("looking for staged blocks that were left behind")?;
        call.limit = self.inner.search_limit();
        let later = match after {
            Some(_) => " AND (s.created_at, s.key) > ($3::text::timestamptz, $4)",
            None => "",
        };
        let query = Query::once(format!(
            "SELECT s.key, octet_length(s.value)::bigint, s.created_at::text FROM {} AS s WHERE {}{later} \
             ORDER BY s.created_at, s.key LIMIT $2",
            self.staged(),
            is_left(1)
        ));
        let mut params = vec![Param::Float(age.as_secs_f64()), Param::count(limit)];
        if let Some(after) = after {
            let place = [after.staged_at.clone(), after.key.clone()];
            params.extend(place.map(Param::Text));
        }
        let rows = self.ask_staged(&call, &query, &params.into()).await?;
        read(call.what, &rows, |row| {
            let size: i64 = row.try_get(1)?;
            Ok(LeftBehind {
                key: row.try_get(0)?,
                size: size.unsigned_abs(),
                staged_at: row.try_get(2)?,
            })
        })
    }

    async fn without_rows(&self) -> Result<Usage> {
        let mut call = self.call("summing up staged blocks")?;
        call.limit = self.inner.search_limit();
        let query = Query::once(format!(
            "SELECT count(*), {} FROM {} AS s WHERE NOT EXISTS (SELECT 1 FROM {} AS t WHERE t.key = s.key)",
            clamped_sum("s.size"),
            self.staged(),
            self.inner.shape.table.quoted(),
        ));
        let rows = self.ask_staged(&call, &query, &[].into()).await?;
        let sums = read(call.what, &rows, usage)?;
        Ok(sums.into_iter().fold(Usage::default(), Usage::plus))
    }

    async fn claim(&self, keys: &[String], age: Duration, term: Duration) -> Result<Vec<Claimed>> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("claiming staged blocks")?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let query = Query::once(format!(
            "WITH c AS (SELECT s.key FROM {staging} AS s WHERE s.key = ANY($1) AND {left} ORDER BY s.key FOR UPDATE SKIP LOCKED) \
             UPDATE {staging} AS s SET leased_until = now() + $3 * interval '1 second' FROM c WHERE s.key = c.key \
             RETURNING s.key, s.value, s.leased_until",
            staging = self.staged(),
            left = is_left(2)
        ));
        let term = term.min(LONGEST_LEASE).as_secs_f64() - rand::random::<f64>();
        let params = [
            Param::Texts(keys.to_vec()),
            Param::Float(age.as_secs_f64()),
            Param::Float(term),
        ];
        let found = self.ask_staged(&call, &query, &params.into()).await?;
        let found = read(call.what, &found, |row| {
            let value: Vec<u8> = row.try_get(1)?;
            let claim = Claim {
                key: row.try_get(0)?,
                until: row.try_get::<_, SystemTime>(2)?,
            };
            Ok((claim, Bytes::from(value)))
        })?;
        // Read after the claim, so that rows that were promoted before it are seen.
        let keys = found.iter().map(|(claim, _)| claim.key.clone());
        let params = [Param::Texts(keys.collect())].into();
        let query = &self.inner.sql.get_many[0];
        let rows = self.inner.ask(&call, query, params).await?;
        let rows = read(call.what, &rows, rows::key_record)?.into_iter();
        let mut rows: HashMap<_, _> = rows.map(|row| (row.key, row.record)).collect();
        let claimed = found.into_iter().map(|(claim, value)| Claimed {
            row: rows.remove(&claim.key),
            claim,
            value,
        });
        Ok(claimed.collect())
    }

    async fn promote(&self, blob: &Blob, rows: &[(KeyRecord, Claim)]) -> Result<Vec<String>> {
        let call = &self.call("promoting staged blocks")?;
        ledger::check(blob)?;
        let records: Vec<KeyRecord> = rows.iter().map(|(row, _)| row.clone()).collect();
        self.inner.check_rows(&records)?;
        in_key_order(&records, "promote")?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let doubt = self.inner.in_doubt.writing(&records);
        let write = |staged: bool| async move {
            match staged {
                true => self.promote_held(call, blob, rows).await,
                false => Ok(Ok(Vec::new())),
            }
        };
        let promoted = self.inner.with_staging(call, write).await?;
        doubt.settle();
        Ok(promoted)
    }

    async fn discard(&self, held: &[Claim]) -> Result<u64> {
        let call = self.call("removing staged blocks that are stored")?;
        let query = Query::once(format!(
            "DELETE FROM {} AS s USING {STILL_CLAIMED} RETURNING s.key",
            self.staged()
        ));
        let removed = self.ask_staged(&call, &query, &claims(held.iter())).await?;
        Ok(removed.len() as u64)
    }

    async fn rows_beside(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let call = self.call("looking up the rows of staged keys")?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let inner = &self.inner;
        let rows = inner.look_keys_up(&call, &inner.sql.get_many[0], keys);
        let rows = rows.await?.map_err(|e| error::statement(call.what, e))?;
        let rows = read(call.what, &rows, rows::key_record)?;
        Ok(rows::of_keys(keys, rows))
    }

    async fn release(&self, held: &[Claim]) -> Result<()> {
        let call = self.call("giving staged blocks back")?;
        let query = Query::once(format!(
            "UPDATE {} AS s SET leased_until = NULL FROM {STILL_CLAIMED} RETURNING s.key",
            self.staged()
        ));
        let held = claims(held.iter());
        self.ask_staged(&call, &query, &held).await.map(drop)
    }
}
