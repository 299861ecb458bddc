//! Rows that are written only where their keys have none: those of blobs that were found again.
//!
//! Rows, entries and the running total are one transaction: a call whose answer is lost may be made
//! again, and the total still counts each row once. As everywhere, rows are locked first, in the
//! order of their keys, then entries, then the total.

use std::sync::Arc;

use tokio_postgres::Row;

use super::call::{self, Call};
use super::conn::Answer;
use super::deadline;
use super::query::{clamped_sum, Param, Query};
use super::rows::columns;
use super::schema::Shape;
use super::sql::row_columns;
use super::{error, ledger, usage, PostgresIndex};
use crate::error::Result;
use crate::index::ledger::entries_of;
use crate::index::{in_key_order, Blob, BlobState, KeyRecord, Usage};

/// Rows of one statement, as for other bulk writes.
const PAGE: usize = 5_000;

/// The statements for one table.
pub(super) struct MissingSql {
    /// Selects for each blob how many rows were added, their bytes, and its ID.
    insert: Query,
    /// Adds to entries what is known.
    found: Query,
}

impl MissingSql {
    pub fn new(shape: &Shape) -> MissingSql {
        let table = shape.table.quoted();
        let (names, types) = row_columns(shape);
        let last = if shape.has_patch_id { 9 } else { 8 };
        let insert = format!(
            "WITH w AS (INSERT INTO {table} ({names}) SELECT {names} FROM unnest({types}) AS r({names}) \
             ON CONFLICT (key) DO NOTHING RETURNING blob_id, size) \
             SELECT count(*), {sum}, blob_id, {in_time} FROM w GROUP BY blob_id",
            sum = clamped_sum("size"),
            in_time = deadline::when_locked(last),
        );
        MissingSql {
            insert: Query::once(insert).bounded(),
            found: Query::once(ledger::found(shape)),
        }
    }
}

/// The parameters of one call.
struct Missing {
    pages: Vec<Arc<[Param]>>,
    entries: Arc<[Param]>,
}

/// What a page has added, and to which blobs.
fn added(rows: &[Row], sum: &mut Usage, gained: &mut Vec<String>) -> Answer<()> {
    for row in rows {
        *sum = sum.plus(usage(row)?);
        gained.push(row.try_get(2)?);
    }
    Ok(())
}

impl PostgresIndex {
    /// See [`Ledger::place_missing`](crate::index::Ledger::place_missing).
    pub(super) async fn add_missing(&self, blobs: &[Blob], records: &[KeyRecord]) -> Result<Usage> {
        let call = self.call("adding rows that are missing")?;
        let inner = &self.inner;
        blobs.iter().try_for_each(ledger::check)?;
        inner.check_rows(records)?;
        let rows = in_key_order(records, "place_missing")?;
        let entries = entries_of(blobs, records);
        if rows.is_empty() && entries.is_empty() {
            return Ok(Usage::default());
        }
        let pages = rows.chunks(PAGE);
        let missing = Arc::new(Missing {
            pages: pages
                .map(|page| columns(page, inner.shape.has_patch_id).into())
                .collect(),
            entries: ledger::columns(&entries).into(),
        });
        // The time of one statement for each page.
        let number = u32::try_from(missing.pages.len() + 1).unwrap_or(u32::MAX);
        let limit = call.limit.saturating_mul(number);
        let call = &Call { limit, ..call };
        let doubt = inner.in_doubt.writing(records);
        let added = self.add_all(call, &missing).await?;
        let added = added.map_err(|e| error::statement(call.what, e))?;
        doubt.settle();
        Ok(added)
    }

    async fn add_all(&self, call: &Call, missing: &Arc<Missing>) -> Result<Answer<Usage>> {
        call::run(&self.inner.pool, call, |conn, deadline| {
            let (inner, missing) = (self.inner.clone(), Arc::clone(missing));
            Box::pin(async move {
                let work = async {
                    inner.limit_statements(&conn).await?;
                    let (mut sum, mut gained) = (Usage::default(), Vec::new());
                    for page in &missing.pages {
                        let rows = conn.query(&inner.missing.insert, page, deadline).await?;
                        added(&rows, &mut sum, &mut gained)?;
                    }
                    if let Some(ledger) = &inner.ledger {
                        conn.execute(&inner.missing.found, &missing.entries).await?;
                        if !gained.is_empty() {
                            gained.sort_unstable();
                            gained.dedup();
                            let live = BlobState::Live.name().to_owned();
                            let live = [Param::Texts(gained), Param::Text(live)];
                            conn.execute(&ledger.set_state, &live).await?;
                        }
                    }
                    if sum != Usage::default() {
                        let sum = [Param::Int(sum.blocks), Param::Int(sum.bytes)];
                        conn.query(&inner.sql.add_usage, &sum, deadline).await?;
                    }
                    Ok(sum)
                };
                conn.transaction(work).await
            })
        })
        .await
    }
}
