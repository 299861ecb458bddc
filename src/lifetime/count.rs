//! The pass that counts the live blocks of every blob, and enters blobs that the ledger lacks:
//! those of older versions and of Go nodes.
//!
//! A pass is made in pages. Its place is kept in the index, so that processes that live for minutes
//! finish it together, and so is the time at which the last one ended. Renewal looks for blobs in
//! the ledger, so the first pass comes before the first look.

use std::time::Duration;

use super::memory::seconds;
use super::{RenewalParts, PAGE};
use crate::error::Result;
use crate::index::ledger::InState;
use crate::index::BlobState;
use crate::log::Level;

/// The longest time between two passes.
const LONGEST: Duration = Duration::from_secs(86_400);
/// How many pages pass between two lines in the log.
const REPORT: u64 = 100;

/// Notes in the index: the last blob that the pass under way has counted, and when the last pass
/// ended.
const PLACE_NOTE: &str = "ledger.place";
const DONE_NOTE: &str = "ledger.counted";

/// The time between two passes: a blob that a Go node stored must be found several times before it
/// ends.
fn interval(parts: &RenewalParts) -> Duration {
    (parts.lead / 4).clamp(parts.interval, LONGEST.max(parts.interval))
}

/// When the last pass ended, as the index has it.
pub(super) async fn last_counted(parts: &RenewalParts) -> Result<Option<String>> {
    parts.index.note(DONE_NOTE).await
}

/// Makes a pass if the last one is old, and forgets blobs that have ended and have no rows.
pub(super) async fn count(parts: &RenewalParts) -> Result<()> {
    let now = seconds(parts.clock.now());
    let done = parts.index.note(DONE_NOTE).await?;
    let done: Option<u64> = done.and_then(|done| done.parse().ok());
    // A pass in the future was made under a wrong clock.
    let age = done.and_then(|done| now.checked_sub(done));
    if age.is_some_and(|age| Duration::from_secs(age) < interval(parts)) {
        return Ok(());
    }
    let mut after = parts.index.note(PLACE_NOTE).await?.unwrap_or_default();
    let mut pages = 0;
    while let Some(last) = parts.index.count(&after, PAGE).await? {
        parts.index.set_note(PLACE_NOTE, Some(&last)).await?;
        after = last;
        pages += 1;
        if pages % REPORT == 0 {
            let text = format!("ledger: {} blobs were counted so far", pages * PAGE as u64);
            parts.log.push(Level::Info, text);
        }
    }
    forget(parts).await?;
    parts.index.set_note(PLACE_NOTE, None).await?;
    parts
        .index
        .set_note(DONE_NOTE, Some(&now.to_string()))
        .await
}

/// Removes the entries of blobs that have no rows and are no longer stored.
async fn forget(parts: &RenewalParts) -> Result<()> {
    for state in [BlobState::Released, BlobState::Deleting] {
        let mut blobs = InState::new(&*parts.index, state);
        while let Some(page) = blobs.next().await? {
            let over = page.into_iter().filter(|blob| {
                let end = u64::try_from(blob.end_epoch).unwrap_or(0);
                parts.epoch_clock.is_over(end)
            });
            let over: Vec<String> = over.map(|blob| blob.blob_id).collect();
            parts.index.forget_blobs(&over).await?;
        }
    }
    Ok(())
}
