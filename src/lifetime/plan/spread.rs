//! When a blob is renewed within its lead.
//!
//! What was imported in one week ends with one epoch, and would fall due in one moment. So each
//! blob gets a moment of its own within the lead, which depends on its ID alone: all nodes agree on
//! it without asking each other, and after a restart it is the same.

use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

/// The last part of the lead (a quarter) is left free for what fails.
const FREE: u32 = 4;

/// The place of a blob among all that end with the same epoch, from 0 to `u32::MAX`.
pub(super) fn place(blob_id: &str) -> u32 {
    let digest: [u8; 32] = Sha256::digest(blob_id.as_bytes()).into();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The moment from which a blob is renewed whose storage ends at `ends`: within the lead, and
/// before its last quarter. Blobs that are packed together are all renewed at the moment of the
/// first one.
pub fn spread(blob_id: &str, ends: SystemTime, lead: Duration) -> SystemTime {
    let window = lead - lead / FREE;
    // At most the whole window but one 2^32nd.
    let into = (u128::from(place(blob_id)) * window.as_nanos()) >> 32;
    let into = u64::try_from(into / 1_000_000).unwrap_or(u64::MAX);
    let before = lead.saturating_sub(Duration::from_millis(into));
    ends.checked_sub(before).unwrap_or(SystemTime::UNIX_EPOCH)
}
