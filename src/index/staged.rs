//! Blocks that nodes with the Go plugin have staged: their bytes wait in the database for an
//! upload.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, KeyRecord, Record, Usage};
use crate::error::Result;

/// A staged block that no node seems to take to Walrus.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftBehind {
    /// Datastore key, as put.
    pub key: String,
    /// Length of the block (bytes).
    pub size: u64,
    /// When it was staged, as the index writes it: with the key, the place in the order of
    /// [`Staging::left_behind`].
    pub staged_at: String,
}

/// The claim on a staged block. It names one claim on one value: when the block is staged anew,
/// deleted, or claimed by another node, the claim is no longer that of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// Datastore key, as put.
    pub key: String,
    /// When the claim runs out, by the clock of the index.
    pub until: SystemTime,
}

/// A staged block that was claimed, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimed {
    /// The claim.
    pub claim: Claim,
    /// The bytes that are staged.
    pub value: Bytes,
    /// The row of the key in the index, if there is one beside the staged block.
    pub row: Option<Record>,
}

/// The blocks that nodes with the Go plugin have staged. Every method may be called concurrently,
/// by several nodes.
#[async_trait]
pub trait Staging: Send + Sync {
    /// Staged blocks that were left behind: they were staged longer ago than `age`, and none of
    /// them is leased. A lease that ends later than [`LONGEST_LEASE`](super::LONGEST_LEASE) from
    /// now counts as none: no node takes one for so long, but the Go plugin writes seconds where it
    /// means nanoseconds. In the order in which they were staged, after `after`, at most `limit`;
    /// fewer than `limit` means the end.
    async fn left_behind(
        &self,
        age: Duration,
        after: Option<&LeftBehind>,
        limit: usize,
    ) -> Result<Vec<LeftBehind>>;

    /// Claims those of the keys whose blocks are [left behind](Self::left_behind), for `term`,
    /// which is shorter than [`LONGEST_LEASE`](super::LONGEST_LEASE). Neither a Go node nor another
    /// caller claims them meanwhile. A block that another transaction has locked is left out.
    async fn claim(&self, keys: &[String], age: Duration, term: Duration) -> Result<Vec<Claimed>>;

    /// Writes rows, each under its claim, and the entry of the blob at which they point, and
    /// removes the staged blocks, in one transaction. A row whose claim is no longer that of its
    /// block is left out. Returns the keys whose rows were written.
    async fn promote(&self, blob: &Blob, rows: &[(KeyRecord, Claim)]) -> Result<Vec<String>>;

    /// Removes the staged blocks that still have these claims. Returns how many were removed.
    async fn discard(&self, claims: &[Claim]) -> Result<u64>;

    /// Sums up the staged blocks whose keys have no row. The running totals count them, as they
    /// count rows: a deletion of such a key takes it off, and its promotion changes nothing.
    async fn without_rows(&self) -> Result<Usage>;

    /// Looks keys up among the rows of the index alone, where [`Rows::get_many`](super::Rows) would
    /// rather answer with a staged block. The result has the keys' order.
    async fn rows_beside(&self, keys: &[String]) -> Result<Vec<Option<Record>>>;

    /// Gives claims back: the blocks stay staged and can be claimed by any node.
    async fn release(&self, claims: &[Claim]) -> Result<()>;
}
