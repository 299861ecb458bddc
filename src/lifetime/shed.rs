//! Where storage is used again: the blobs that are worth emptying although they are not due, and
//! what deleted blobs have left.
//!
//! The ledger tells what each blob held when its blocks were last counted. A blob that held less
//! than its storage is worth is looked at again after each pass that counts; the planner decides by
//! its blocks of that moment.

use std::collections::HashSet;

use super::count::last_counted;
use super::due::{due_within, last_rounds, time_of_rounds};
use super::plan::Decision;
use super::{RenewalParts, Rounds};
use crate::error::Result;
use crate::index::ledger::{number, InState};
use crate::index::{Blob, BlobState, RenewItem};
use crate::upload::reuse::Left;
use crate::walrus::cost;

/// Blobs are extended in this last part of the lead (a third): until then dead blocks can be shed
/// that would be paid for otherwise.
const LAST: u32 = 3;
/// And no later than so many rounds before their end: one may fail.
const ROUNDS: u32 = 2;

/// So small a part of the packs (a fortieth), and one, may be filled after each count although no
/// storage is left for them.
const SEED: u64 = 40;

/// Adds to the blobs that are due those that are sparse, if the blocks were counted since this was
/// done last. `always`: whenever they were counted. Returns whether it has looked.
pub(super) async fn add_sparse(
    parts: &RenewalParts,
    state: &mut Rounds,
    due: &mut Vec<RenewItem>,
    always: bool,
) -> Result<bool> {
    if parts.uploader.reuse.is_none() {
        return Ok(false);
    }
    let counted = last_counted(parts).await?;
    if counted == state.shed && !always {
        return Ok(false);
    }
    let known: HashSet<String> = due.iter().map(|item| item.blob_id.clone()).collect();
    let mut live = InState::new(&*parts.index, BlobState::Live);
    while let Some(page) = live.next().await? {
        let sparse = page.into_iter().filter(|blob| {
            let ended = parts.epoch_clock.is_over(number(blob.end_epoch));
            !ended && is_sparse(parts, blob) && !known.contains(&blob.blob_id)
        });
        due.extend(sparse.map(|blob| RenewItem {
            blob_id: blob.blob_id,
            deletable: blob.deletable,
            end_epoch: blob.end_epoch,
            expires_at: blob.expires_at.unwrap_or(std::time::SystemTime::UNIX_EPOCH),
        }));
    }
    state.shed = counted;
    Ok(true)
}

/// How many packs may be filled now for the sake of storage: as many as what is left is good for.
/// What these empty is good for the next ones, an hour later. To begin with, some are bought in the
/// first half of an epoch, after a count: what they empty is used before the epoch ends, by puts as
/// well.
pub(super) async fn room(parts: &RenewalParts, counted: bool) -> Result<Option<u64>> {
    let Some(reuse) = &parts.uploader.reuse else {
        return Ok(None);
    };
    let left = reuse.packs(parts.uploader.target());
    let now = parts.clock.now();
    let epoch = parts.epoch_clock.now_epoch(now);
    if parts.epoch_clock.likely_epoch(now) != epoch {
        // When the epoch ends is not known, so neither is whether what they empty would be used.
        return Ok(Some(left));
    }
    let next = epoch.and_then(|(_, epoch)| parts.epoch_clock.ends_at(now, epoch + 1));
    let to_come = next.and_then(|next| next.duration_since(now).ok());
    if !counted || to_come.is_none_or(|time| time < parts.epoch / 2) {
        return Ok(Some(left));
    }
    let ledger = parts.index.horizon().await?;
    let blobs: u64 = ledger.iter().map(|ending| number(ending.blobs)).sum();
    Ok(Some(left + 1 + blobs / SEED))
}

/// Whether the blocks that were counted last need less in full packs than the blob occupies.
fn is_sparse(parts: &RenewalParts, blob: &Blob) -> bool {
    let Some(count) = blob.counted.filter(|count| count.live.blocks > 0) else {
        return false;
    };
    let can_be_deleted = blob.deletable && !blob.object_id.is_empty();
    let (size, encoded) = (number(blob.size), number(blob.encoded_size));
    let units = u128::from(cost::units_of_known(size, encoded, parts.n_shards));
    let target = parts.uploader.target();
    let full = cost::units(target, parts.n_shards).unwrap_or(0);
    let live = u128::from(number(count.live.bytes));
    can_be_deleted && live * u128::from(full) < units * u128::from(target)
}

/// Whether an extension waits for a later round, as dead blocks may be shed until then.
pub(super) fn waits(parts: &RenewalParts, decision: &Decision) -> bool {
    let last = last_rounds(parts, LAST, ROUNDS);
    parts.uploader.reuse.is_some() && !due_within(parts, decision.end_epoch, last)
}

/// Whether a blob that is due waits for the next plan, as it came after the last one: what takes
/// over the storage of another blob may be due at once. It would be stored again at full price.
pub(super) fn is_new(parts: &RenewalParts, state: &Rounds, item: &RenewItem) -> bool {
    let planned = state.planned.as_ref();
    let is_new = planned.is_some_and(|planned| !planned.contains(&item.blob_id));
    // Nothing takes over storage that ends within two rounds.
    let next_round = time_of_rounds(parts.interval, 1);
    parts.uploader.reuse.is_some() && is_new && !due_within(parts, item.end_epoch, next_round)
}

/// Remembers what deleted blobs have left.
pub(super) async fn left(parts: &RenewalParts, gone: &[&Blob]) -> Result<()> {
    let Some(reuse) = &parts.uploader.reuse else {
        return Ok(());
    };
    for blob in gone {
        let (size, end) = (number(blob.encoded_size), number(blob.end_epoch));
        if size > 0 && !parts.epoch_clock.is_over(end) {
            reuse.give(Left { size, end });
        }
    }
    reuse.note(&*parts.index).await
}

/// Reads what was left before the start of this process, or notes what is left now.
pub(super) async fn recall(parts: &RenewalParts) -> Result<()> {
    match &parts.uploader.reuse {
        Some(reuse) => reuse.recall(&*parts.index).await,
        None => Ok(()),
    }
}
