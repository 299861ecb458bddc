//! Blobs that a read has just shown to be gone.

use std::time::Duration;

use crate::recent::Recent;

/// How many are remembered, and for how long: a missing blob may be an aggregator's mistake, or be stored
/// again by another node.
const REMEMBERED: usize = 65_536;
const REMEMBER: Duration = Duration::from_secs(600);

/// IDs of blobs that the aggregators answered 404 for. The row of a block in such a blob does not count as
/// stored when the block is put: without the length of an epoch, nothing else tells that a blob has lapsed.
pub(crate) type Gone = Recent<String>;

/// None are known yet.
pub(crate) fn none() -> Gone {
    Recent::new(REMEMBERED, REMEMBER)
}
