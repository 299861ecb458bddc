//! Converts rows of Postgres to the index's types and back.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio_postgres::Row;

use super::error::PgError;
use super::query::Param;
use crate::index::{KeyRecord, Record};

/// Reads `staged, blob_id, patch_id, blob_offset, size, deletable, end_epoch, expires_at`.
pub(super) fn record(row: &Row) -> Result<Record, PgError> {
    let patch_id: String = row.try_get(2)?;
    let record = Record {
        staged: row.try_get(0)?,
        blob_id: row.try_get(1)?,
        patch_id: (!patch_id.is_empty()).then_some(patch_id),
        offset: row.try_get(3)?,
        size: row.try_get(4)?,
        deletable: row.try_get(5)?,
        end_epoch: row.try_get(6)?,
        expires_at: row.try_get(7)?,
    };
    Ok(record.with_patch_of_offset())
}

/// As [`record`], with the key after it.
pub(super) fn key_record(row: &Row) -> Result<KeyRecord, PgError> {
    Ok(KeyRecord {
        key: row.try_get(8)?,
        record: record(row)?,
    })
}

/// The rows that a lookup has found, in the order of its keys. Of a key with two, the staged one.
pub(super) fn of_keys(keys: &[String], rows: Vec<KeyRecord>) -> Vec<Option<Record>> {
    let mut found: HashMap<String, Record> = HashMap::with_capacity(rows.len());
    for row in rows {
        if row.record.staged || !found.contains_key(&row.key) {
            found.insert(row.key, row.record);
        }
    }
    keys.iter().map(|key| found.get(key).cloned()).collect()
}

/// The nearest time that a timestamptz can hold (years 1 to 9999).
pub(super) fn storable(time: SystemTime) -> SystemTime {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    const FIRST: Duration = Duration::from_secs(62_135_596_800);
    let (first, last) = (
        SystemTime::UNIX_EPOCH - FIRST,
        SystemTime::UNIX_EPOCH + LAST,
    );
    time.clamp(first, last)
}

/// The columns of rows, as the arrays that an upsert unnests.
pub(super) fn columns(rows: &[&KeyRecord], with_patch: bool) -> Vec<Param> {
    let texts = |text: fn(&KeyRecord) -> &str| {
        Param::Texts(rows.iter().map(|row| text(row).to_owned()).collect())
    };
    let ints = |int: fn(&Record) -> i64| Param::Ints(rows.iter().map(|r| int(&r.record)).collect());
    let ends = rows.iter().map(|row| row.record.expires_at.map(storable));
    let mut params = vec![
        texts(|row| &row.key),
        texts(|row| &row.record.blob_id),
        match with_patch {
            true => ints(|record| record.offset),
            // Those without such an offset were refused.
            false => ints(|record| record.offset_without_patch().unwrap_or(i64::MIN)),
        },
        ints(|record| record.size),
        Param::Bools(rows.iter().map(|row| row.record.deletable).collect()),
        ints(|record| record.end_epoch),
        Param::Times(ends.collect()),
    ];
    if with_patch {
        params.push(texts(|row| {
            row.record.patch_id.as_deref().unwrap_or_default()
        }));
    }
    params
}
