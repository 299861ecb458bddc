//! The ledger of blobs: its methods, and the writes that touch rows and entries.

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

/// Reads the columns of an entry.
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

    fn keeps_ledger(&self) -> bool {
        true
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

    async fn blobs_of_rows(&self, after: &str, limit: usize) -> Result<Vec<Blob>> {
        let pass = self.gate.enter()?;
        let after = after.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("listing the blobs of rows", pass, move |connection, sql| {
            let now = SystemTime::now();
            let mut page = connection.prepare_cached(&sql.ledger.page)?;
            let rows = page.query_map(params![after, limit], |row| {
                let live = Usage {
                    blocks: row.get(1)?,
                    bytes: row.get(2)?,
                };
                Ok(Blob {
                    blob_id: row.get(0)?,
                    deletable: row.get(3)?,
                    end_epoch: row.get(4)?,
                    expires_at: row.get::<_, Option<i64>>(5)?.map(from_micros),
                    counted: Some(Count { live, at: now }),
                    ..Blob::default()
                })
            })?;
            rows.collect()
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
            let [live, released, deleting] = &sql.ledger.in_state;
            let in_state = match state {
                BlobState::Live => live,
                BlobState::Released => released,
                BlobState::Deleting => deleting,
            };
            let mut list = connection.prepare_cached(in_state)?;
            let rows = list.query_map(params![after, limit], entry)?;
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
        let page = self.count_page(after, limit).await?;
        self.note_counts(page).await
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
                    judged_bytes: row.get(9)?,
                    waste_bytes: row.get(10)?,
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
