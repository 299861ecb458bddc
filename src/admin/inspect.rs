//! A block, or a blob: where it lies, until when, at what price.

use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;

use super::time;
use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::index::ledger::number;
use crate::index::{Blob, Record, Usage};
use crate::multihash::{self, Match};
use crate::walrus::cost::{self, Prices};

/// The place of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The blob; empty for a staged block.
    pub blob_id: String,
    /// The member of a quilt, if it is one.
    pub patch_id: Option<String>,
    /// First byte within the blob.
    pub offset: i64,
    /// Length (bytes).
    pub bytes: i64,
    /// The epoch in which the blob is no longer stored; 0: unknown.
    pub end_epoch: i64,
    /// The estimate of that moment.
    #[serde(serialize_with = "time::option::serialize")]
    pub expires_at: Option<SystemTime>,
    /// Its bytes wait in the database: a Go node staged them, and they are not on Walrus.
    pub staged: bool,
}

impl Place {
    fn of(row: &Record) -> Place {
        Place {
            blob_id: row.blob_id.clone(),
            patch_id: row.patch_id.clone(),
            offset: row.offset,
            bytes: row.size,
            end_epoch: row.end_epoch,
            expires_at: row.expires_at,
            staged: row.staged,
        }
    }
}

/// What is known of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockReport {
    /// Its datastore key.
    pub key: String,
    /// Where it lies; `None` if the index does not have it.
    pub place: Option<Place>,
    /// Whether it waits in the journal on this machine's disk.
    pub journaled: bool,
    /// Where it lay, if it was deleted and can be brought back.
    pub deleted: Option<Place>,
    /// When it was deleted.
    #[serde(serialize_with = "time::option::serialize")]
    pub deleted_at: Option<SystemTime>,
    /// Its blob.
    pub blob: Option<BlobReport>,
}

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct BlobReport {
    /// The blob.
    pub blob_id: String,
    /// Whether the ledger has an entry for it. Without one, only what its rows say is known.
    pub in_ledger: bool,
    /// Its object on the chain; empty: unknown. It cannot be extended or deleted then.
    pub object_id: String,
    /// The format of its content; empty: unknown.
    pub format: String,
    /// Its length; 0: unknown.
    pub bytes: u64,
    /// The length that is billed; 0: unknown.
    pub encoded_bytes: u64,
    /// Units that it occupies; 0: unknown.
    pub units: u64,
    /// What was paid for it so far (FROST).
    pub paid_frost: u64,
    /// What keeping it costs for an epoch (FROST).
    pub frost_per_epoch: u64,
    /// Whether the chain told that price; else it is that of Walrus' documentation.
    pub prices_known: bool,
    /// Whether its owner may delete it.
    pub deletable: bool,
    /// The epoch in which it was registered; 0: unknown.
    pub registered_epoch: i64,
    /// The epoch in which it is no longer stored; 0: unknown.
    pub end_epoch: i64,
    /// The estimate of that moment.
    #[serde(serialize_with = "time::option::serialize")]
    pub expires_at: Option<SystemTime>,
    /// Its state in the ledger (`live`, `released`).
    pub state: String,
    /// Its live blocks, counted now.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// When a part of it was last read back and found right.
    #[serde(serialize_with = "time::option::serialize")]
    pub read_back_at: Option<SystemTime>,
}

/// What is known of the block under a key.
///
/// # Errors
/// [`ErrorKind::Index`].
pub async fn block(inspection: &Inspection, key: &str) -> Result<BlockReport> {
    let index = inspection.index();
    let row = index.get(key).await?;
    let kept = index.deleted(&[key.to_owned()]).await?.pop().flatten();
    let journaled = row.is_none() && inspection.journaled().await?.contains(key);
    let of = row.as_ref().or(kept.as_ref().map(|kept| &kept.row.record));
    let blob_id = of.map(|row| row.blob_id.clone()).unwrap_or_default();
    Ok(BlockReport {
        key: key.to_owned(),
        place: row.as_ref().map(Place::of),
        journaled,
        deleted_at: kept.as_ref().map(|kept| kept.deleted_at),
        deleted: kept.as_ref().map(|kept| Place::of(&kept.row.record)),
        blob: match blob_id.is_empty() {
            true => None,
            false => blob(inspection, &blob_id).await?,
        },
    })
}

/// What is known of a blob; `None` if the index knows none of this ID.
///
/// # Errors
/// [`ErrorKind::Index`].
pub async fn blob(inspection: &Inspection, blob_id: &str) -> Result<Option<BlobReport>> {
    let index = inspection.index();
    let ids = [blob_id.to_owned()];
    let entry = index.blobs(&ids).await?.pop().flatten();
    let live = index.live(&ids).await?.pop().unwrap_or_default();
    let in_ledger = entry.is_some();
    let entry = match entry {
        Some(entry) => entry,
        None => {
            let Some(row) = index.rows_from(blob_id, 0, 1).await?.pop() else {
                return Ok(None);
            };
            Blob {
                blob_id: blob_id.to_owned(),
                deletable: row.record.deletable,
                end_epoch: row.record.end_epoch,
                expires_at: row.record.expires_at,
                ..Blob::default()
            }
        }
    };
    let (prices, known) = inspection.prices().await;
    let n_shards = inspection.config().n_shards;
    let mut report = BlobReport::of(entry, live, n_shards);
    report.in_ledger = in_ledger;
    (report.frost_per_epoch, report.prices_known) = (per_epoch(report.units, prices), known);
    Ok(Some(report))
}

/// The price of keeping units for an epoch (FROST).
pub(super) fn per_epoch(units: u64, prices: Prices) -> u64 {
    units.saturating_mul(prices.storage)
}

/// The units of a blob; 0 if its length is not known.
pub(super) fn units(blob: &Blob, n_shards: u32) -> u64 {
    let n_shards = u16::try_from(n_shards).unwrap_or(u16::MAX);
    cost::units_of_known(number(blob.size), number(blob.encoded_size), n_shards)
}

impl BlobReport {
    fn of(blob: Blob, live: Usage, n_shards: u32) -> BlobReport {
        let units = units(&blob, n_shards);
        BlobReport {
            in_ledger: true,
            bytes: number(blob.size),
            encoded_bytes: number(blob.encoded_size),
            units,
            paid_frost: number(blob.cost),
            deletable: blob.deletable,
            registered_epoch: blob.registered_epoch,
            end_epoch: blob.end_epoch,
            expires_at: blob.expires_at,
            state: blob.state.name().to_owned(),
            live_blocks: number(live.blocks),
            live_bytes: number(live.bytes),
            read_back_at: blob.read_back_at,
            blob_id: blob.blob_id,
            object_id: blob.object_id,
            format: blob.format,
            ..BlobReport::default()
        }
    }
}

/// Reads a block at its place, and checks it against its key.
///
/// # Errors
/// Those of the index or the aggregators; [`ErrorKind::Corrupt`] for a row that makes no sense, or
/// bytes that are not the block.
pub(super) async fn read(inspection: &Inspection, key: &str, row: &Record) -> Result<Bytes> {
    let range = row.range().map_err(|e| e.context(key))?;
    let len = range.end - range.start;
    let check = |bytes: &[u8]| match multihash::check(key, bytes) {
        Match::No => Err("the bytes do not hash to the multihash in the key".to_owned()),
        _ => Ok(()),
    };
    let store = inspection.store();
    if row.staged {
        let staged = inspection.index().staged_value(key).await?;
        return staged.ok_or_else(|| {
            let text = format!("{key}: it was staged, and is no longer");
            Error::retryable(ErrorKind::Index, text)
        });
    }
    let read = match &row.patch_id {
        Some(patch_id) => store.read_patch_of(patch_id, len, &check).await,
        None => {
            let read = store.read_range(&row.blob_id, range.start, len, &check);
            read.await
        }
    };
    read.map_err(|e| e.context(key))
}
