//! Blobs that a read has just shown to be gone.

use std::time::Duration;

use crate::recent::Recent;

/// How many blobs are remembered, and for how long: a 404 may be an aggregator's mistake, and
/// another node may store the blob again.
const REMEMBERED: usize = 65_536;
const REMEMBER: Duration = Duration::from_secs(600);

/// IDs of blobs for which the aggregators answered 404. The row of a block in such a blob does not
/// count as stored when the block is put: if the length of an epoch is not configured, no other
/// fact shows that a blob has lapsed.
pub(crate) type Gone = Recent<String>;

/// An empty set.
pub(crate) fn none() -> Gone {
    Recent::new(REMEMBERED, REMEMBER)
}
