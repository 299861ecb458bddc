//! Rows ↔ the index's types.

use std::time::{Duration, SystemTime};

use tokio_postgres::Row;

use super::error::PgError;
use crate::index::{KeyRecord, Record};

/// Reads `staged, blob_id, patch_id, blob_offset, size, deletable, end_epoch, expires_at`.
pub(super) fn record(row: &Row) -> Result<Record, PgError> {
    let patch_id: String = row.try_get(2)?;
    Ok(Record {
        staged: row.try_get(0)?,
        blob_id: row.try_get(1)?,
        patch_id: (!patch_id.is_empty()).then_some(patch_id),
        offset: row.try_get(3)?,
        size: row.try_get(4)?,
        deletable: row.try_get(5)?,
        end_epoch: row.try_get(6)?,
        expires_at: row.try_get(7)?,
    })
}

/// As [`record`], with the key after it.
pub(super) fn key_record(row: &Row) -> Result<KeyRecord, PgError> {
    Ok(KeyRecord {
        key: row.try_get(8)?,
        record: record(row)?,
    })
}

/// A time that a timestamptz can hold (years 1 to 9999).
pub(super) fn storable(time: SystemTime) -> SystemTime {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    const FIRST: Duration = Duration::from_secs(62_135_596_800);
    let (first, last) = (
        SystemTime::UNIX_EPOCH - FIRST,
        SystemTime::UNIX_EPOCH + LAST,
    );
    time.clamp(first, last)
}

/// The columns of rows, as arrays for `unnest`.
#[derive(Default)]
pub(super) struct Columns {
    pub keys: Vec<String>,
    pub blob_ids: Vec<String>,
    pub patch_ids: Vec<String>,
    pub offsets: Vec<i64>,
    pub sizes: Vec<i64>,
    pub deletable: Vec<bool>,
    pub end_epochs: Vec<i64>,
    pub expires_at: Vec<Option<SystemTime>>,
}

impl Columns {
    pub fn push(&mut self, row: &KeyRecord) {
        let record = &row.record;
        self.keys.push(row.key.clone());
        self.blob_ids.push(record.blob_id.clone());
        self.patch_ids
            .push(record.patch_id.clone().unwrap_or_default());
        self.offsets.push(record.offset);
        self.sizes.push(record.size);
        self.deletable.push(record.deletable);
        self.end_epochs.push(record.end_epoch);
        self.expires_at.push(record.expires_at.map(storable));
    }
}
