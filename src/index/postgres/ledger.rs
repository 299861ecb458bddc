//! The ledger of blobs: its statements and methods.
//!
//! No statement joins the ledger with the rows, which may be distributed. Rows and entries are
//! written by one statement, or by several of one transaction. Each kind is written in order, rows
//! by their keys and entries by their blob IDs, so that two writers lock in the same order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tokio_postgres::Row;

use super::call;
use super::conn::{Answer, Conn};
use super::query::{clamped, clamped_sum, Param, Query};
use super::rows::storable;
use super::schema::Shape;
use super::{error, read, usage, PostgresIndex};
use crate::clock::Sighting;
use crate::error::Result;
use crate::index::keys::check_text;
use crate::index::ledger::{COLUMNS, EPOCHS, JUDGED, WASTE};
use crate::index::{Blob, BlobState, Count, EndingIn, KeyRecord, Ledger, Usage};

/// How many parameters an entry that is written has.
pub(super) const COLUMNS_WRITTEN: usize = 12;

/// The statements for one table.
pub(super) struct LedgerSql {
    /// `$1` to `$12`: columns of entries.
    write: Query,
    renew: Query,
    get: Query,
    in_state: Query,
    pub(super) set_state: Query,
    with_rows: Query,
    forget: Query,
    /// `$1`: the last blob ID of the page before, `$2`: blobs of a page.
    page: Query,
    count: Query,
    /// Sets the count of entries whose blobs have no rows, and releases them: between two blob IDs,
    /// or after one.
    empty: Query,
    horizon: Query,
    epochs: Query,
    saw_epoch: Query,
}

/// What a statement that writes entries does where an entry exists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Anew {
    /// The blob was stored now: its price is added, unless this registration was written before,
    /// and the blob is live.
    Stored,
    /// The blob was found: the greater cost counts, and its state stays.
    Found,
}

/// The statement that writes entries of blobs that were stored, whose columns are the parameters
/// from `first` on.
pub(super) fn write(shape: &Shape, first: usize) -> String {
    write_entries(shape, first, Anew::Stored)
}

/// The statement that writes entries of blobs that were found, whose columns are the parameters
/// from 1 on.
pub(super) fn found(shape: &Shape) -> String {
    write_entries(shape, 1, Anew::Found)
}

/// Whether the object of an entry is deleted now.
const GOES: &str = "b.state = 'deleting'";

fn write_entries(shape: &Shape, first: usize, anew: Anew) -> String {
    let blobs = shape.table.companion("_blobs").quoted();
    let known = |column: &str, unknown: &str| {
        format!(
            "{column} = CASE WHEN EXCLUDED.{column} = {unknown} THEN b.{column} ELSE EXCLUDED.{column} END"
        )
    };
    // What is deleted now counts no longer.
    let goes = match anew {
        Anew::Stored => GOES,
        Anew::Found => "FALSE",
    };
    let latest = |column: &str| latest(column, goes);
    // The object is that of the registration that ends last.
    let object = format!(
        "({goes} OR EXCLUDED.object_id <> '' AND (b.object_id = '' OR EXCLUDED.end_epoch >= b.end_epoch))"
    );
    // The same registration, with the same end: its answer was lost, and it is written once more.
    let again = format!(
        "NOT {goes} AND b.object_id <> '' AND b.object_id = EXCLUDED.object_id AND b.end_epoch = EXCLUDED.end_epoch"
    );
    let types =
        "text text text bigint bigint bigint boolean bigint bigint timestamptz text timestamptz";
    let columns = types.split(' ').enumerate();
    let columns: Vec<String> = columns
        .map(|(n, kind)| format!("${}::{kind}[]", first + n))
        .collect();
    let columns = columns.join(", ");
    format!(
        "INSERT INTO {blobs} AS b (blob_id, object_id, format, size, encoded_size, cost, deletable, registered_epoch, \
         end_epoch, expires_at, digest, read_back_at) \
         SELECT * FROM unnest({columns}) \
         ON CONFLICT (blob_id) DO UPDATE SET \
         object_id = CASE WHEN {object} THEN EXCLUDED.object_id ELSE b.object_id END, \
         deletable = CASE WHEN {object} OR b.object_id = '' THEN EXCLUDED.deletable ELSE b.deletable END, \
         {format}, {size}, {encoded}, cost = {cost}, {registered}, \
         {end}, {expires}, {digest}, {state}read_back_at = GREATEST(b.read_back_at, EXCLUDED.read_back_at)",
        format = known("format", "''"),
        size = known("size", "0"),
        encoded = known("encoded_size", "0"),
        cost = match anew {
            Anew::Stored => format!(
                "CASE WHEN {again} THEN GREATEST(b.cost, EXCLUDED.cost) ELSE {} END",
                clamped("b.cost::numeric + EXCLUDED.cost")
            ),
            Anew::Found => "GREATEST(b.cost, EXCLUDED.cost)".to_owned(),
        },
        state = match anew {
            Anew::Stored => "state = 'live', state_since = EXCLUDED.state_since, ",
            Anew::Found => "",
        },
        registered = known("registered_epoch", "0"),
        digest = known("digest", "''"),
        end = latest("end_epoch"),
        expires = latest("expires_at"),
    )
}

/// Sets a column to the later of both values, or to the new one where the condition `goes` holds.
fn latest(column: &str, goes: &str) -> String {
    format!(
        "{column} = CASE WHEN {goes} THEN EXCLUDED.{column} ELSE GREATEST(b.{column}, EXCLUDED.{column}) END"
    )
}

impl LedgerSql {
    pub fn new(shape: &Shape) -> LedgerSql {
        let table = shape.table.quoted();
        let blobs = shape.table.companion("_blobs").quoted();
        let epochs = shape.table.companion("_epochs").quoted();
        // What the Go plugin knows of a blob stands on each of its rows.
        let go = |has: bool, column: &str, none: &str| match has {
            true => format!("COALESCE(max({column}), {none})"),
            false => none.to_owned(),
        };
        let page = format!(
            "SELECT blob_id, count(*), {bytes}, bool_or(deletable), max(end_epoch), max(expires_at), {object}, {encoded}, {cost} \
             FROM {table} WHERE blob_id > $1 AND blob_id <> '' GROUP BY blob_id ORDER BY blob_id LIMIT $2",
            bytes = clamped_sum("size"),
            object = go(shape.has_object_id, "object_id", "''"),
            encoded = go(shape.has_encoded_size, "encoded_size", "0::bigint"),
            cost = go(shape.has_cost, "cost", "0::bigint"),
        );
        let count = format!(
            "INSERT INTO {blobs} AS b (blob_id, live_blocks, live_bytes, deletable, end_epoch, expires_at, object_id, encoded_size, \
             cost, counted_at) \
             SELECT blob_id, blocks, bytes, deletable, end_epoch, expires_at, object_id, encoded_size, cost, now() \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::boolean[], $5::bigint[], $6::timestamptz[], $7::text[], \
             $8::bigint[], $9::bigint[]) \
             AS r(blob_id, blocks, bytes, deletable, end_epoch, expires_at, object_id, encoded_size, cost) \
             ON CONFLICT (blob_id) DO UPDATE SET live_blocks = EXCLUDED.live_blocks, live_bytes = EXCLUDED.live_bytes, \
             counted_at = EXCLUDED.counted_at, state = 'live', \
             state_since = CASE WHEN b.state = 'live' THEN b.state_since ELSE EXCLUDED.state_since END, {end}, {expires}, \
             object_id = CASE WHEN b.object_id = '' OR {GOES} THEN EXCLUDED.object_id ELSE b.object_id END, \
             encoded_size = CASE WHEN b.encoded_size = 0 THEN EXCLUDED.encoded_size ELSE b.encoded_size END",
            end = latest("end_epoch", GOES),
            expires = latest("expires_at", GOES),
        );
        LedgerSql {
            write: Query::once(write(shape, 1)),
            renew: Query::once(format!(
                "UPDATE {blobs} SET end_epoch = GREATEST(end_epoch, $2), expires_at = GREATEST(expires_at, $3) \
                 WHERE blob_id = $1"
            )),
            get: Query::once(format!(
                "SELECT {COLUMNS} FROM {blobs} WHERE blob_id = ANY($1)"
            )),
            in_state: Query::once(format!(
                "SELECT {COLUMNS} FROM {blobs} WHERE state = $1 AND blob_id > $2 ORDER BY blob_id LIMIT $3"
            )),
            set_state: Query::once(format!(
                "UPDATE {blobs} SET state = $2, state_since = now() WHERE blob_id = ANY($1) AND state <> $2 \
                 AND ($2 <> 'deleting' OR state = 'released')"
            )),
            with_rows: Query::once(format!(
                "SELECT DISTINCT blob_id FROM {table} WHERE blob_id = ANY($1)"
            )),
            forget: Query::once(format!(
                "DELETE FROM {blobs} WHERE blob_id = ANY($1) \
                 AND (blob_id, state_since) IN (SELECT * FROM unnest($1::text[], $2::timestamptz[]))"
            )),
            page: Query::once(page),
            count: Query::once(count),
            empty: Query::once(format!(
                "UPDATE {blobs} SET live_blocks = 0, live_bytes = 0, counted_at = now(), \
                 state = CASE WHEN state = 'live' THEN 'released' ELSE state END, \
                 state_since = CASE WHEN state = 'live' THEN now() ELSE state_since END \
                 WHERE blob_id {order} > $1 AND ($2::text IS NULL OR blob_id {order} <= $2) AND NOT blob_id = ANY($3) \
                 AND state_since < now() - interval '1 minute'",
                order = shape.blob_order,
            )),
            horizon: Query::once(format!(
                "SELECT end_epoch, count(*), {size}, {encoded}, {cost}, {blocks}, {bytes}, \
                 count(*) FILTER (WHERE counted_at IS NULL), min(counted_at), {judged}, {waste} \
                 FROM {blobs} WHERE state = 'live' GROUP BY end_epoch ORDER BY end_epoch",
                size = clamped_sum("size"),
                encoded = clamped_sum("encoded_size"),
                cost = clamped_sum("cost"),
                blocks = clamped_sum("live_blocks"),
                bytes = clamped_sum("live_bytes"),
                judged = clamped_sum(JUDGED),
                waste = clamped_sum(WASTE),
            )),
            epochs: Query::once(format!(
                "SELECT epoch, first_seen, last_seen FROM {epochs} ORDER BY epoch DESC LIMIT {EPOCHS}"
            )),
            saw_epoch: Query::once(format!(
                "INSERT INTO {epochs} AS e (epoch, first_seen, last_seen) \
                 SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) ON CONFLICT (epoch) DO UPDATE SET \
                 first_seen = LEAST(e.first_seen, EXCLUDED.first_seen), last_seen = GREATEST(e.last_seen, EXCLUDED.last_seen)"
            )),
        }
    }

    /// Writes entries within a transaction.
    pub async fn write(&self, conn: &Arc<Conn>, entries: &[Param]) -> Answer<()> {
        conn.execute(&self.write, entries).await.map(drop)
    }
}

/// The columns of entries, as the arrays that the statement unnests.
pub(super) fn columns(entries: &[Blob]) -> [Param; COLUMNS_WRITTEN] {
    let texts = |text: fn(&Blob) -> &str| {
        Param::Texts(entries.iter().map(|b| text(b).to_owned()).collect())
    };
    let ints = |int: fn(&Blob) -> i64| Param::Ints(entries.iter().map(int).collect());
    let times = |time: fn(&Blob) -> Option<SystemTime>| {
        Param::Times(entries.iter().map(|b| time(b).map(storable)).collect())
    };
    [
        texts(|blob| &blob.blob_id),
        texts(|blob| &blob.object_id),
        texts(|blob| &blob.format),
        ints(|blob| blob.size),
        ints(|blob| blob.encoded_size),
        ints(|blob| blob.cost),
        Param::Bools(entries.iter().map(|blob| blob.deletable).collect()),
        ints(|blob| blob.registered_epoch),
        ints(|blob| blob.end_epoch),
        times(|blob| blob.expires_at),
        texts(|blob| &blob.digest),
        times(|blob| blob.read_back_at),
    ]
}

/// Checks the texts of an entry that is to be written.
pub(super) fn check(blob: &Blob) -> Result<()> {
    check_text("blob ID", &blob.blob_id)?;
    check_text("object ID", &blob.object_id)?;
    check_text("format of a blob", &blob.format)?;
    check_text("digest of a blob", &blob.digest)
}

/// Reads [`COLUMNS`].
fn entry(row: &Row) -> Answer<Blob> {
    let blocks: Option<i64> = row.try_get(13)?;
    let bytes: Option<i64> = row.try_get(14)?;
    let at: Option<SystemTime> = row.try_get(15)?;
    let live = blocks
        .zip(bytes)
        .map(|(blocks, bytes)| Usage { blocks, bytes });
    Ok(Blob {
        blob_id: row.try_get(0)?,
        object_id: row.try_get(1)?,
        format: row.try_get(2)?,
        size: row.try_get(3)?,
        encoded_size: row.try_get(4)?,
        cost: row.try_get(5)?,
        deletable: row.try_get(6)?,
        registered_epoch: row.try_get(7)?,
        end_epoch: row.try_get(8)?,
        expires_at: row.try_get(9)?,
        digest: row.try_get(10)?,
        state: BlobState::named(row.try_get(11)?),
        state_since: row.try_get(12)?,
        counted: live.zip(at).map(|(live, at)| Count { live, at }),
        read_back_at: row.try_get(16)?,
    })
}

/// One page of the pass that counts, as columns for the statement that notes it.
#[derive(Default)]
struct Page {
    blob_ids: Vec<String>,
    blocks: Vec<i64>,
    bytes: Vec<i64>,
    deletable: Vec<bool>,
    end_epochs: Vec<i64>,
    expires_at: Vec<Option<SystemTime>>,
    objects: Vec<String>,
    encoded: Vec<i64>,
    costs: Vec<i64>,
}

impl Page {
    fn add(&mut self, row: &Row) -> Answer<()> {
        self.blob_ids.push(row.try_get(0)?);
        self.blocks.push(row.try_get(1)?);
        self.bytes.push(row.try_get(2)?);
        self.deletable.push(row.try_get(3)?);
        self.end_epochs.push(row.try_get(4)?);
        self.expires_at.push(row.try_get(5)?);
        self.objects.push(row.try_get(6)?);
        self.encoded.push(row.try_get(7)?);
        self.costs.push(row.try_get(8)?);
        Ok(())
    }
}

impl PostgresIndex {
    /// Notes the end of a blob on its rows and on its entry, and with `entry` all that the entry
    /// tells. Returns how many rows were changed.
    pub(super) async fn note_end(&self, blob: &Blob, entry: bool) -> Result<u64> {
        check(blob)?;
        let call = self.call("noting a renewal")?;
        let end: Arc<[Param]> = [
            Param::Text(blob.blob_id.clone()),
            Param::Int(blob.end_epoch),
            Param::Time(blob.expires_at.map(storable)),
        ]
        .into();
        let columns: Arc<[Param]> = columns(std::slice::from_ref(blob)).into();
        let inner = &self.inner;
        let answer = call::run(&inner.pool, &call, |conn, _| {
            let (inner, end, columns) = (inner.clone(), end.clone(), columns.clone());
            Box::pin(async move {
                let work = async {
                    let changed = conn.execute(&inner.sql.update_blob, &end).await?;
                    match &inner.ledger {
                        Some(ledger) if entry => ledger.write(&conn, &columns).await?,
                        Some(ledger) => drop(conn.execute(&ledger.renew, &end).await?),
                        None => {}
                    }
                    Ok(changed)
                };
                conn.transaction(work).await
            })
        });
        answer.await?.map_err(|e| error::statement(call.what, e))
    }

    /// The statements of the ledger, where the table has one: a node that only reads leaves an
    /// older table as it is.
    fn ledger(&self) -> Option<&LedgerSql> {
        self.inner.ledger.as_ref()
    }
}

fn ids(blob_ids: &[String]) -> Result<Param> {
    for blob_id in blob_ids {
        check_text("blob ID", blob_id)?;
    }
    let mut sorted = blob_ids.to_vec();
    sorted.sort_unstable();
    Ok(Param::Texts(sorted))
}

#[async_trait]
impl Ledger for PostgresIndex {
    async fn place(&self, blob: &Blob, rows: &[KeyRecord]) -> Result<()> {
        self.write_rows("place", Some(blob), rows).await
    }

    async fn move_to(&self, from: &str, blob: &Blob, rows: &[KeyRecord]) -> Result<u64> {
        self.change_rows("move_to", from, Some(blob), rows).await
    }

    async fn place_missing(&self, blobs: &[Blob], rows: &[KeyRecord]) -> Result<Usage> {
        self.add_missing(blobs, rows).await
    }

    async fn renewed(&self, blob: &Blob) -> Result<u64> {
        self.note_end(blob, true).await
    }

    fn keeps_ledger(&self) -> bool {
        self.inner.ledger.is_some()
    }

    async fn blobs(&self, blob_ids: &[String]) -> Result<Vec<Option<Blob>>> {
        let call = self.call("reading the ledger")?;
        let Some(sql) = self.ledger().filter(|_| !blob_ids.is_empty()) else {
            return Ok(vec![None; blob_ids.len()]);
        };
        let rows = self.inner.ask(&call, &sql.get, [ids(blob_ids)?].into());
        let found = read(call.what, &rows.await?, entry)?;
        let mut found: HashMap<String, Blob> = found
            .into_iter()
            .map(|blob| (blob.blob_id.clone(), blob))
            .collect();
        Ok(blob_ids.iter().map(|id| found.remove(id)).collect())
    }

    async fn blobs_of_rows(&self, after: &str, limit: usize) -> Result<Vec<Blob>> {
        let mut call = self.call("listing the blobs of rows")?;
        call.limit = self.inner.search_limit();
        check_text("blob ID", after)?;
        let params = [Param::Text(after.to_owned()), Param::count(limit)];
        let query = &self.inner.sql.blobs_of_rows;
        let rows = self.inner.ask(&call, query, params.into()).await?;
        let now = SystemTime::now();
        read(call.what, &rows, |row| {
            let live = Usage {
                blocks: row.try_get(1)?,
                bytes: row.try_get(2)?,
            };
            Ok(Blob {
                blob_id: row.try_get(0)?,
                deletable: row.try_get(3)?,
                end_epoch: row.try_get(4)?,
                expires_at: row.try_get(5)?,
                counted: Some(Count { live, at: now }),
                ..Blob::default()
            })
        })
    }

    async fn blobs_in_state(
        &self,
        state: BlobState,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Blob>> {
        let call = self.call("listing blobs")?;
        check_text("blob ID", after)?;
        let Some(sql) = self.ledger() else {
            return Ok(Vec::new());
        };
        let params = [
            Param::Text(state.name().to_owned()),
            Param::Text(after.to_owned()),
            Param::count(limit),
        ];
        let rows = self.inner.ask(&call, &sql.in_state, params.into()).await?;
        read(call.what, &rows, entry)
    }

    async fn set_state(&self, blob_ids: &[String], state: BlobState) -> Result<u64> {
        let call = self.call("noting the state of blobs")?;
        let Some(sql) = self.ledger().filter(|_| !blob_ids.is_empty()) else {
            return Ok(0);
        };
        let params = [ids(blob_ids)?, Param::Text(state.name().to_owned())];
        self.inner
            .change(&call, &sql.set_state, params.into())
            .await
    }

    async fn forget_blobs(&self, blob_ids: &[String]) -> Result<u64> {
        let call = self.call("removing blobs from the ledger")?;
        let Some(sql) = self.ledger().filter(|_| !blob_ids.is_empty()) else {
            return Ok(0);
        };
        // Before the rows: a store of the same bytes that comes meanwhile sets the state anew, and
        // its entry stays.
        let entries = self.blobs(blob_ids).await?;
        let asked = [ids(blob_ids)?].into();
        let rows = self.inner.ask(&call, &sql.with_rows, asked).await?;
        let used = read(call.what, &rows, |row| row.try_get::<_, String>(0))?;
        let free = entries.into_iter().flatten();
        let free = free.filter(|blob| !used.contains(&blob.blob_id));
        let (free, since): (Vec<String>, Vec<Option<SystemTime>>) =
            free.map(|blob| (blob.blob_id, blob.state_since)).unzip();
        let params = [ids(&free)?, Param::Times(since)];
        self.inner.change(&call, &sql.forget, params.into()).await
    }

    async fn live(&self, blob_ids: &[String]) -> Result<Vec<Usage>> {
        let mut call = self.call("counting the blocks of blobs")?;
        call.limit = self.inner.search_limit();
        if blob_ids.is_empty() {
            return Ok(Vec::new());
        }
        let query = &self.inner.sql.live;
        let rows = self
            .inner
            .ask(&call, query, [ids(blob_ids)?].into())
            .await?;
        let counted = read(call.what, &rows, |row| {
            Ok((row.try_get::<_, String>(2)?, usage(row)?))
        })?;
        let counted: HashMap<String, Usage> = counted.into_iter().collect();
        let live = |id| counted.get(id).copied().unwrap_or_default();
        Ok(blob_ids.iter().map(live).collect())
    }

    async fn count(&self, after: &str, limit: usize) -> Result<Option<String>> {
        let mut call = self.call("counting the blocks of all blobs")?;
        call.limit = self.inner.search_limit();
        check_text("blob ID", after)?;
        let Some(sql) = self.ledger() else {
            return Ok(None);
        };
        let params = [Param::Text(after.to_owned()), Param::count(limit)];
        let rows = self.inner.ask(&call, &sql.page, params.into()).await?;
        let mut page = Page::default();
        for row in &rows {
            page.add(row).map_err(|e| error::statement(call.what, e))?;
        }
        let last = page.blob_ids.last().cloned();
        let last = last.filter(|_| page.blob_ids.len() >= limit);
        let params = [
            Param::Text(after.to_owned()),
            Param::MaybeText(last.clone()),
            Param::Texts(page.blob_ids.clone()),
        ];
        self.inner.change(&call, &sql.empty, params.into()).await?;
        if !page.blob_ids.is_empty() {
            let params = [
                Param::Texts(page.blob_ids),
                Param::Ints(page.blocks),
                Param::Ints(page.bytes),
                Param::Bools(page.deletable),
                Param::Ints(page.end_epochs),
                Param::Times(page.expires_at),
                Param::Texts(page.objects),
                Param::Ints(page.encoded),
                Param::Ints(page.costs),
            ];
            self.inner.change(&call, &sql.count, params.into()).await?;
        }
        Ok(last)
    }

    async fn horizon(&self) -> Result<Vec<EndingIn>> {
        let call = self.call("summing up the ledger")?;
        let Some(sql) = self.ledger() else {
            return Ok(Vec::new());
        };
        let rows = self.inner.ask(&call, &sql.horizon, [].into()).await?;
        read(call.what, &rows, |row| {
            Ok(EndingIn {
                end_epoch: row.try_get(0)?,
                blobs: row.try_get(1)?,
                bytes: row.try_get(2)?,
                encoded_bytes: row.try_get(3)?,
                cost: row.try_get(4)?,
                live: Usage {
                    blocks: row.try_get(5)?,
                    bytes: row.try_get(6)?,
                },
                uncounted: row.try_get(7)?,
                counted_at: row.try_get(8)?,
                judged_bytes: row.try_get(9)?,
                waste_bytes: row.try_get(10)?,
            })
        })
    }

    async fn epochs(&self) -> Result<Vec<Sighting>> {
        let call = self.call("reading the epochs that were seen")?;
        let Some(sql) = self.ledger() else {
            return Ok(Vec::new());
        };
        let rows = self.inner.ask(&call, &sql.epochs, [].into()).await?;
        let mut seen = read(call.what, &rows, |row| {
            let epoch: i64 = row.try_get(0)?;
            Ok(Sighting {
                epoch: epoch.unsigned_abs(),
                first: row.try_get(1)?,
                last: row.try_get(2)?,
            })
        })?;
        seen.reverse();
        Ok(seen)
    }

    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        let call = self.call("noting an epoch")?;
        let Some(sql) = self.ledger().filter(|_| !seen.is_empty()) else {
            return Ok(());
        };
        let mut seen = seen.to_vec();
        seen.sort_by_key(|sighting| sighting.epoch);
        seen.dedup_by_key(|sighting| sighting.epoch);
        let epoch = |s: &Sighting| i64::try_from(s.epoch).unwrap_or(i64::MAX);
        let times = |time: fn(&Sighting) -> SystemTime| {
            Param::Times(seen.iter().map(|s| Some(storable(time(s)))).collect())
        };
        let params = [
            Param::Ints(seen.iter().map(epoch).collect()),
            times(|s| s.first),
            times(|s| s.last),
        ];
        let noted = self.inner.change(&call, &sql.saw_epoch, params.into());
        noted.await.map(drop)
    }
}
