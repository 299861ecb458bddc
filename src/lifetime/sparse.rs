//! The blobs that waste much of their storage, and the price of repacking them at once.

use serde::Serialize;

use super::present::{present_epoch, prices};
use super::{RenewalParts, MIN_RENEWAL_EPOCHS};
use crate::error::Result;
use crate::index::ledger::{number, InState};
use crate::index::{Blob, BlobState, Usage};
use crate::upload::{car, quilt, Format};
use crate::walrus::cost;

/// The packs of a group: a group that fails is left as it is, and the next one is tried.
const GROUP_PACKS: u64 = 8;

/// A blob that wastes much of its storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SparseBlob {
    /// The blob.
    pub blob_id: String,
    /// Its length (bytes).
    pub bytes: u64,
    /// Its live blocks.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Units that it occupies.
    pub units: u64,
    /// The epoch in which it is no longer stored; 0: unknown.
    pub end_epoch: i64,
}

/// Blobs that waste much of their storage, the most wasteful first, and what it costs to carry
/// their live blocks over into new packs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sparse {
    /// The blobs.
    pub blobs: Vec<SparseBlob>,
    /// Their lengths (bytes).
    pub bytes: u64,
    /// Their live blocks.
    pub live_blocks: u64,
    /// The bytes of these.
    pub live_bytes: u64,
    /// Units that the blobs occupy: these are no longer paid for once their storage ends.
    pub units_now: u64,
    /// Units of the new packs.
    pub units_after: u64,
    /// Epochs that are bought for the new packs.
    pub epochs: u32,
    /// The price of the new packs, without gas (FROST).
    pub frost: u64,
    /// Whether the chain told the prices; else they are those of Walrus' documentation.
    pub prices_known: bool,
    /// Blobs whose length is not known, so that their waste is not known either.
    pub unknown: u64,
    /// The IDs of the blobs, in groups that are repacked together.
    #[serde(skip)]
    pub groups: Vec<Vec<String>>,
}

pub(crate) async fn sparse(parts: &RenewalParts, waste_percent: u32) -> Result<Sparse> {
    present_epoch(parts).await?;
    let mut found = Sparse::default();
    let mut sparse: Vec<(u64, SparseBlob)> = Vec::new();
    let mut live = InState::new(&*parts.index, BlobState::Live);
    while let Some(page) = live.next().await? {
        let page = page.into_iter().filter(|blob| {
            let ended = parts.epoch_clock.is_over(number(blob.end_epoch));
            let known = blob.size > 0;
            found.unknown += u64::from(!known && !ended);
            known && !ended
        });
        let page: Vec<Blob> = page.collect();
        let ids: Vec<String> = page.iter().map(|blob| blob.blob_id.clone()).collect();
        let counts = parts.index.live(&ids).await?;
        for (blob, live) in page.into_iter().zip(counts) {
            let live_bytes = number(live.bytes);
            if live.blocks <= 0 || !wastes(&blob, live_bytes, waste_percent) {
                continue;
            }
            let used = used(parts, &blob, live).await?;
            if !wastes(&blob, used, waste_percent) {
                continue;
            }
            let waste = number(blob.size).saturating_sub(used);
            sparse.push((
                waste,
                SparseBlob {
                    bytes: number(blob.size),
                    live_blocks: number(live.blocks),
                    live_bytes,
                    units: units(parts, &blob),
                    end_epoch: blob.end_epoch,
                    blob_id: blob.blob_id,
                },
            ));
        }
    }
    sparse.sort_by(|(a, one), (b, other)| (b, &one.blob_id).cmp(&(a, &other.blob_id)));
    found.blobs = sparse.into_iter().map(|(_, blob)| blob).collect();
    sum(parts, &mut found).await;
    Ok(found)
}

/// The bytes of a blob that its live blocks use. A file and a quilt hold more than their blocks, so
/// these use what the least file or quilt of them has: one of which no block was deleted wastes
/// nothing, however small its blocks are.
async fn used(parts: &RenewalParts, blob: &Blob, live: Usage) -> Result<u64> {
    let live_bytes = number(live.bytes);
    if blob.format == Format::Car.name() {
        return Ok(car::least_len(number(live.blocks), live_bytes));
    }
    if blob.format != Format::Quilt.name() {
        return Ok(live_bytes);
    }
    let rows = parts.index.rows_of_blob(&blob.blob_id).await?;
    let blocks = rows.iter().map(|row| (&*row.key, number(row.record.size)));
    let least = quilt::least_len(parts.uploader.quilts.n_shards(), blocks);
    Ok(live_bytes.max(least.unwrap_or(0)))
}

fn wastes(blob: &Blob, used: u64, percent: u32) -> bool {
    let size = number(blob.size);
    let waste = u128::from(size.saturating_sub(used));
    waste * 100 >= u128::from(size) * u128::from(percent)
}

fn units(parts: &RenewalParts, blob: &Blob) -> u64 {
    cost::units_of_known(number(blob.size), number(blob.encoded_size), parts.n_shards)
}

async fn sum(parts: &RenewalParts, found: &mut Sparse) {
    let target = parts.uploader.target();
    let mut group: (Vec<String>, u64) = (Vec::new(), 0);
    for blob in &found.blobs {
        found.bytes = found.bytes.saturating_add(blob.bytes);
        found.live_blocks = found.live_blocks.saturating_add(blob.live_blocks);
        found.live_bytes = found.live_bytes.saturating_add(blob.live_bytes);
        found.units_now = found.units_now.saturating_add(blob.units);
        group.0.push(blob.blob_id.clone());
        group.1 = group.1.saturating_add(blob.live_bytes);
        if group.1 >= target.saturating_mul(GROUP_PACKS) {
            found.groups.push(std::mem::take(&mut group).0);
        }
    }
    if !group.0.is_empty() {
        found.groups.push(group.0);
    }
    let of = |len: u64| cost::units(len, parts.n_shards).unwrap_or(0);
    let rest = match found.live_bytes % target {
        0 => 0,
        rest => of(rest),
    };
    found.units_after = (found.live_bytes / target)
        .saturating_mul(of(target))
        .saturating_add(rest);
    found.epochs = parts.uploader.options.epochs.max(MIN_RENEWAL_EPOCHS);
    let (prices, known) = prices(parts).await;
    let rate = prices.storage.saturating_mul(found.epochs.into());
    found.frost = found
        .units_after
        .saturating_mul(rate.saturating_add(prices.write));
    found.prices_known = known;
}
