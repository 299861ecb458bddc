//! The ledger of blobs: its statements and methods, and the writes that touch rows and entries.

use std::collections::BTreeSet;
use std::time::SystemTime;

use async_trait::async_trait;
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::schema::Sql;
use super::{bind, checked, from_micros, to_micros, SqliteIndex};
use crate::clock::Sighting;
use crate::error::Result;
use crate::index::keys::check_text;
use crate::index::ledger::{entries, entries_of};
use crate::index::{Blob, BlobState, Count, EndingIn, KeyRecord, Ledger, Usage};

/// The columns of the ledger ([`Blob`]); times in microseconds since 1970.
pub(super) const BLOBS: &str = "blob_id TEXT NOT NULL PRIMARY KEY, object_id TEXT NOT NULL DEFAULT '', \
    format TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0, encoded_size INTEGER NOT NULL DEFAULT 0, \
    cost INTEGER NOT NULL DEFAULT 0, deletable INTEGER NOT NULL DEFAULT 0, registered_epoch INTEGER NOT NULL DEFAULT 0, \
    end_epoch INTEGER NOT NULL DEFAULT 0, expires_at INTEGER, digest TEXT NOT NULL DEFAULT '', \
    state TEXT NOT NULL DEFAULT 'live', state_since INTEGER NOT NULL, \
    live_blocks INTEGER, live_bytes INTEGER, counted_at INTEGER, read_back_at INTEGER";

/// Columns of an entry, in the order in which [`entry`] reads them.
const COLUMNS: &str = "blob_id, object_id, format, size, encoded_size, cost, deletable, registered_epoch, \
                       end_epoch, expires_at, digest, state, state_since, live_blocks, live_bytes, counted_at, read_back_at";
/// How many of the latest epochs are read.
const EPOCHS: i64 = 64;

/// The statements for one table.
pub(super) struct LedgerSql {
    write: String,
    /// As `write`, of blobs that were found and not stored now: the greater cost counts, and the
    /// state of an entry stays.
    found: String,
    renew: String,
    get: String,
    in_state: String,
    set_state: String,
    forget: String,
    live: String,
    page: String,
    count: String,
    empty: String,
    horizon: String,
    epochs: String,
    saw_epoch: String,
}

impl LedgerSql {
    /// `table`, `blobs` and `epochs` are quoted names.
    pub fn new(table: &str, blobs: &str, epochs: &str) -> LedgerSql {
        let known = |column: &str, unknown: &str| {
            format!(
                "{column} = CASE WHEN excluded.{column} = {unknown} THEN {column} ELSE excluded.{column} END"
            )
        };
        // A sum that saturates: SQLite turns a sum that overflows into a number with a fraction.
        let sum = |column: &str| format!("CAST(min(total({column}), 9.2e18) AS INTEGER)");
        let latest = "expires_at = max(coalesce(expires_at, excluded.expires_at), coalesce(excluded.expires_at, expires_at))";
        // The object is that of the registration that ends last.
        let object =
            "excluded.object_id <> '' AND (object_id = '' OR excluded.end_epoch >= end_epoch)";
        let write = |cost: &str, state: &str| {
            format!(
                "INSERT INTO {blobs} (blob_id, object_id, format, size, encoded_size, cost, deletable, registered_epoch, \
                 end_epoch, expires_at, digest, read_back_at, state_since) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT (blob_id) DO UPDATE SET \
                 object_id = CASE WHEN {object} THEN excluded.object_id ELSE object_id END, \
                 deletable = CASE WHEN {object} OR object_id = '' THEN excluded.deletable ELSE deletable END, \
                 {format}, {size}, {encoded}, cost = {cost}, {registered}, \
                 end_epoch = max(end_epoch, excluded.end_epoch), {latest}, {digest}, {state}\
                 read_back_at = coalesce(excluded.read_back_at, read_back_at)",
                format = known("format", "''"),
                size = known("size", "0"),
                encoded = known("encoded_size", "0"),
                registered = known("registered_epoch", "0"),
                digest = known("digest", "''"),
            )
        };
        LedgerSql {
            write: write(
                "CAST(min(cost + 0.0 + excluded.cost, 9.2e18) AS INTEGER)",
                "state = 'live', state_since = excluded.state_since, ",
            ),
            found: write("max(cost, excluded.cost)", ""),
            renew: format!(
                "UPDATE {blobs} SET end_epoch = max(end_epoch, ?2), \
                 expires_at = max(coalesce(expires_at, ?3), coalesce(?3, expires_at)) WHERE blob_id = ?1"
            ),
            get: format!("SELECT {COLUMNS} FROM {blobs} WHERE blob_id = ?1"),
            in_state: format!(
                "SELECT {COLUMNS} FROM {blobs} WHERE state = ?1 AND blob_id > ?2 ORDER BY blob_id LIMIT ?3"
            ),
            set_state: format!(
                "UPDATE {blobs} SET state = ?2, state_since = ?3 WHERE blob_id = ?1 AND state <> ?2"
            ),
            forget: format!(
                "DELETE FROM {blobs} WHERE blob_id = ?1 AND NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.blob_id = ?1)"
            ),
            live: format!("SELECT count(*), {} FROM {table} WHERE blob_id = ?1", sum("size")),
            page: format!(
                "SELECT blob_id, count(*), {}, max(deletable), max(end_epoch), max(expires_at) FROM {table} \
                 WHERE blob_id > ?1 AND blob_id <> '' GROUP BY blob_id ORDER BY blob_id LIMIT ?2",
                sum("size")
            ),
            count: format!(
                "INSERT INTO {blobs} (blob_id, live_blocks, live_bytes, deletable, end_epoch, expires_at, counted_at, state_since) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7) ON CONFLICT (blob_id) DO UPDATE SET \
                 live_blocks = excluded.live_blocks, live_bytes = excluded.live_bytes, counted_at = excluded.counted_at, \
                 end_epoch = max(end_epoch, excluded.end_epoch), {latest}"
            ),
            empty: format!(
                "UPDATE {blobs} SET live_blocks = 0, live_bytes = 0, counted_at = ?3 \
                 WHERE blob_id > ?1 AND blob_id < coalesce(?2, x'ff') AND (counted_at IS NULL OR counted_at < ?3)"
            ),
            horizon: format!(
                "SELECT end_epoch, count(*), {}, {}, {}, {}, {}, sum(counted_at IS NULL), min(counted_at) \
                 FROM {blobs} WHERE state = 'live' GROUP BY end_epoch ORDER BY end_epoch",
                sum("size"),
                sum("encoded_size"),
                sum("cost"),
                sum("live_blocks"),
                sum("live_bytes"),
            ),
            epochs: format!(
                "SELECT epoch, first_seen, last_seen FROM {epochs} ORDER BY epoch DESC LIMIT {EPOCHS}"
            ),
            saw_epoch: format!(
                "INSERT INTO {epochs} (epoch, first_seen, last_seen) VALUES (?1, ?2, ?3) ON CONFLICT (epoch) DO UPDATE SET \
                 first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)"
            ),
        }
    }
}

/// Reads [`COLUMNS`].
fn entry(row: &Row<'_>) -> rusqlite::Result<Blob> {
    let time =
        |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(from_micros));
    let blocks: Option<i64> = row.get(13)?;
    let bytes: Option<i64> = row.get(14)?;
    let live = blocks
        .zip(bytes)
        .map(|(blocks, bytes)| Usage { blocks, bytes });
    Ok(Blob {
        blob_id: row.get(0)?,
        object_id: row.get(1)?,
        format: row.get(2)?,
        size: row.get(3)?,
        encoded_size: row.get(4)?,
        cost: row.get(5)?,
        deletable: row.get(6)?,
        registered_epoch: row.get(7)?,
        end_epoch: row.get(8)?,
        expires_at: time(9)?,
        digest: row.get(10)?,
        state: BlobState::named(&row.get::<_, String>(11)?),
        state_since: time(12)?,
        counted: live.zip(time(15)?).map(|(live, at)| Count { live, at }),
        read_back_at: time(16)?,
    })
}

/// Writes entries of blobs that were stored; `now` in microseconds.
fn write(connection: &Connection, sql: &Sql, entries: &[Blob], now: i64) -> rusqlite::Result<()> {
    write_by(connection, &sql.ledger.write, entries, now)
}

fn write_by(
    connection: &Connection,
    statement: &str,
    entries: &[Blob],
    now: i64,
) -> rusqlite::Result<()> {
    let mut write = connection.prepare_cached(statement)?;
    for blob in entries {
        write.execute(params![
            blob.blob_id,
            blob.object_id,
            blob.format,
            blob.size,
            blob.encoded_size,
            blob.cost,
            blob.deletable,
            blob.registered_epoch,
            blob.end_epoch,
            blob.expires_at.map(to_micros),
            blob.digest,
            blob.read_back_at.map(to_micros),
            now,
        ])?;
    }
    Ok(())
}

fn usage(row: &Row<'_>) -> rusqlite::Result<Usage> {
    Ok(Usage {
        blocks: row.get(0)?,
        bytes: row.get(1)?,
    })
}

impl SqliteIndex {
    /// Inserts or replaces rows for `method`. `blob`: the entry of the blob at which they point, if
    /// more than its rows is known of it.
    pub(super) async fn write_rows(
        &self,
        method: &str,
        blob: Option<&Blob>,
        records: &[KeyRecord],
    ) -> Result<()> {
        let pass = self.gate.enter()?;
        let rows = checked(records, method)?;
        if rows.is_empty() {
            return Ok(());
        }
        let entries = entries(blob, &rows);
        let keeps = !self.inner.keep_deleted.is_zero();
        self.write("writing rows", pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let mut upsert = connection.prepare_cached(&sql.upsert)?;
            for row in &rows {
                bind(&mut upsert, row, now)?;
                upsert.raw_execute()?;
            }
            if keeps {
                sql.deleted.forget(connection, &rows)?;
            }
            write(connection, sql, &entries, now)
        })
        .await
    }

    /// Writes rows of keys that have none, with entries and the running total.
    async fn add_missing(&self, blobs: &[Blob], records: &[KeyRecord]) -> Result<Usage> {
        let pass = self.gate.enter()?;
        let rows = checked(records, "place_missing")?;
        for blob in blobs {
            check_text("blob ID", &blob.blob_id)?;
        }
        let entries = entries_of(blobs, &rows);
        self.write(
            "adding rows that are missing",
            pass,
            move |connection, sql| {
                let now = to_micros(SystemTime::now());
                let mut insert = connection.prepare_cached(&sql.insert)?;
                let mut added = Usage::default();
                let mut gained: BTreeSet<&str> = BTreeSet::new();
                for row in &rows {
                    bind(&mut insert, row, now)?;
                    if insert.raw_execute()? > 0 {
                        added = added.plus(Usage::new(1, row.record.size));
                        gained.insert(&row.record.blob_id);
                    }
                }
                write_by(connection, &sql.ledger.found, &entries, now)?;
                let mut set_state = connection.prepare_cached(&sql.ledger.set_state)?;
                for blob_id in gained {
                    set_state.execute(params![blob_id, BlobState::Live.name(), now])?;
                }
                if added != Usage::default() {
                    connection
                        .prepare_cached(&sql.add_usage)?
                        .execute(params![added.blocks, added.bytes])?;
                }
                Ok(added)
            },
        )
        .await
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
        let pass = self.gate.enter()?;
        check_text("blob ID", from)?;
        let (rows, from) = (checked(to, method)?, from.to_owned());
        if rows.is_empty() {
            return Ok(0);
        }
        let entries = entries(blob, &rows);
        self.write(
            "moving rows to another blob",
            pass,
            move |connection, sql| {
                let now = to_micros(SystemTime::now());
                let mut move_row = connection.prepare_cached(&sql.move_row)?;
                let mut moved = 0;
                for row in &rows {
                    bind(&mut move_row, row, now)?;
                    move_row.raw_bind_parameter(9, &from)?;
                    moved += move_row.raw_execute()?;
                }
                write(connection, sql, &entries, now)?;
                Ok(moved as u64)
            },
        )
        .await
    }

    /// Notes the end of a blob on its rows and on its entry, and with `entry` all that the entry
    /// tells. Returns how many rows were changed.
    pub(super) async fn note_end(&self, blob: Blob, entry: bool) -> Result<u64> {
        let pass = self.gate.enter()?;
        check_text("blob ID", &blob.blob_id)?;
        self.write("noting a renewal", pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let expires_at = blob.expires_at.map(to_micros);
            let changed = connection
                .prepare_cached(&sql.update_blob)?
                .execute(params![blob.blob_id, blob.end_epoch, expires_at, now])?;
            if entry {
                write(connection, sql, std::slice::from_ref(&blob), now)?;
            } else {
                connection
                    .prepare_cached(&sql.ledger.renew)?
                    .execute(params![blob.blob_id, blob.end_epoch, expires_at])?;
            }
            Ok(changed as u64)
        })
        .await
    }
}

#[async_trait]
impl Ledger for SqliteIndex {
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
        self.note_end(blob.clone(), true).await
    }

    async fn blobs(&self, blob_ids: &[String]) -> Result<Vec<Option<Blob>>> {
        let pass = self.gate.enter()?;
        let blob_ids = blob_ids.to_vec();
        self.read("reading the ledger", pass, move |connection, sql| {
            let mut get = connection.prepare_cached(&sql.ledger.get)?;
            let blobs = blob_ids
                .iter()
                .map(|id| get.query_row([id], entry).optional());
            blobs.collect()
        })
        .await
    }

    async fn blobs_in_state(
        &self,
        state: BlobState,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Blob>> {
        let pass = self.gate.enter()?;
        let after = after.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("listing blobs", pass, move |connection, sql| {
            let mut list = connection.prepare_cached(&sql.ledger.in_state)?;
            let rows = list.query_map(params![state.name(), after, limit], entry)?;
            rows.collect()
        })
        .await
    }

    async fn set_state(&self, blob_ids: &[String], state: BlobState) -> Result<u64> {
        let pass = self.gate.enter()?;
        let blob_ids = blob_ids.to_vec();
        self.write("noting the state of blobs", pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let mut set = connection.prepare_cached(&sql.ledger.set_state)?;
            let mut changed = 0;
            for blob_id in &blob_ids {
                changed += set.execute(params![blob_id, state.name(), now])?;
            }
            Ok(changed as u64)
        })
        .await
    }

    async fn forget_blobs(&self, blob_ids: &[String]) -> Result<u64> {
        let pass = self.gate.enter()?;
        let blob_ids = blob_ids.to_vec();
        self.write(
            "removing blobs from the ledger",
            pass,
            move |connection, sql| {
                let mut forget = connection.prepare_cached(&sql.ledger.forget)?;
                let mut removed = 0;
                for blob_id in &blob_ids {
                    removed += forget.execute([blob_id])?;
                }
                Ok(removed as u64)
            },
        )
        .await
    }

    async fn live(&self, blob_ids: &[String]) -> Result<Vec<Usage>> {
        let pass = self.gate.enter()?;
        let blob_ids = blob_ids.to_vec();
        self.read(
            "counting the blocks of blobs",
            pass,
            move |connection, sql| {
                let mut live = connection.prepare_cached(&sql.ledger.live)?;
                let counted = blob_ids.iter().map(|id| live.query_row([id], usage));
                counted.collect()
            },
        )
        .await
    }

    async fn count(&self, after: &str, limit: usize) -> Result<Option<String>> {
        let pass = self.gate.enter()?;
        let after = after.to_owned();
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        // In one transaction: no row is written between the count and its note.
        self.write(
            "counting the blocks of all blobs",
            pass,
            move |connection, sql| {
                let now = to_micros(SystemTime::now());
                let mut page = connection.prepare_cached(&sql.ledger.page)?;
                let mut count = connection.prepare_cached(&sql.ledger.count)?;
                let mut rows = page.query(params![after, most])?;
                let (mut seen, mut last) = (0, None);
                while let Some(row) = rows.next()? {
                    let blob_id: String = row.get(0)?;
                    count.execute(params![
                        blob_id,
                        row.get::<_, i64>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, bool>(3)?,
                        row.get::<_, i64>(4)?,
                        row.get::<_, Option<i64>>(5)?,
                        now,
                    ])?;
                    seen += 1;
                    last = Some(blob_id);
                }
                let last = last.filter(|_| seen >= limit);
                connection
                    .prepare_cached(&sql.ledger.empty)?
                    .execute(params![after, last, now])?;
                Ok(last)
            },
        )
        .await
    }

    async fn horizon(&self) -> Result<Vec<EndingIn>> {
        let pass = self.gate.enter()?;
        self.read("summing up the ledger", pass, |connection, sql| {
            let mut horizon = connection.prepare_cached(&sql.ledger.horizon)?;
            let rows = horizon.query_map([], |row| {
                Ok(EndingIn {
                    end_epoch: row.get(0)?,
                    blobs: row.get(1)?,
                    bytes: row.get(2)?,
                    encoded_bytes: row.get(3)?,
                    cost: row.get(4)?,
                    live: Usage {
                        blocks: row.get(5)?,
                        bytes: row.get(6)?,
                    },
                    uncounted: row.get(7)?,
                    counted_at: row.get::<_, Option<i64>>(8)?.map(from_micros),
                })
            })?;
            rows.collect()
        })
        .await
    }

    async fn epochs(&self) -> Result<Vec<Sighting>> {
        let pass = self.gate.enter()?;
        self.read(
            "reading the epochs that were seen",
            pass,
            |connection, sql| {
                let mut epochs = connection.prepare_cached(&sql.ledger.epochs)?;
                let rows = epochs.query_map([], |row| {
                    Ok(Sighting {
                        epoch: row.get::<_, i64>(0)?.unsigned_abs(),
                        first: from_micros(row.get(1)?),
                        last: from_micros(row.get(2)?),
                    })
                })?;
                let mut seen = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                seen.reverse();
                Ok(seen)
            },
        )
        .await
    }

    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        let pass = self.gate.enter()?;
        let seen = seen.to_vec();
        if seen.is_empty() {
            return Ok(());
        }
        self.write("noting an epoch", pass, move |connection, sql| {
            let mut saw = connection.prepare_cached(&sql.ledger.saw_epoch)?;
            for sighting in &seen {
                let epoch = i64::try_from(sighting.epoch).unwrap_or(i64::MAX);
                let (first, last) = (to_micros(sighting.first), to_micros(sighting.last));
                saw.execute(params![epoch, first, last])?;
            }
            Ok(())
        })
        .await
    }
}
