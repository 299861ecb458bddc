//! The renewal of blobs as a plan: what becomes of each, with its price, before anything is paid.
//!
//! Pure: no clock, no network. [`plan`] turns rows of the ledger ([`Blob`]) and the conditions of
//! the day ([`Terms`]) into a [`Plan`], which prints as JSON and as a table.
//!
//! # What is compared
//!
//! A blob is *due* if its storage ends within the lead. All that is bought in one pass ends with
//! the same epoch, `H` = now + [`Terms::epochs`], so the ways can be compared by what they cost up
//! to `H`. With `s` FROST per unit and epoch, `w` per unit written, a blob of `U` units that ends
//! at `E`, and `n` = `H` - now:
//!
//! | way | price up to `H` | bytes moved |
//! |---|---|---|
//! | extend (on the chain, by its owner) | `U·s·(H - E)` | none |
//! | store again (read it, upload it) | `U·(s·n + w)` | twice its size |
//! | repack (its live blocks, in new packs) | its part of the `units·(s·n + w)` | twice these |
//!
//! The cheapest sum over all blobs is chosen; among equal ones, that with the fewest bytes moved.
//! A blob without a live block is left to lapse, or deleted where that is possible: its owner may
//! reuse the storage then.
//!
//! # Repacking before a blob is due
//!
//! Let a blob waste much of its storage, and end at `E`, beyond the lead. Its storage up to `E` is
//! paid, and nothing brings that back. (Deleting it would give the storage back to its owner for
//! reuse, but publishers hardly ever reuse any, so that is not counted.) Repacking its live bytes
//! costs, at `u` units for them in full packs,
//!
//! ```text
//! now:       u·(s·(H - now) + w)
//! at E:      u·(s·(H - E)   + w)
//! now - at E = u·s·(E - now) > 0
//! ```
//!
//! So it pays to wait: the storage that is bought now for the time up to `E` is bought twice. There
//! is one exception. Some pack of this pass is only partly full, and a pack costs nearly a fifth of
//! its full price before its first byte (60 of 350 units at 64 MiB). Bytes that fill it up cost
//! less, `m` < `u` units, and
//!
//! ```text
//! m·(s·(H - now) + w) < u·(s·(H - E) + w)
//! ```
//!
//! holds for a blob that ends soon enough after the lead. Such blobs are taken along if at least
//! [`Terms::max_waste_percent`] of them is waste. A blob that ends at `H` or later has nothing to
//! gain and is never taken.
//!
//! # Where storage is used again
//!
//! With [`Terms::reuse`] a deleted blob's storage is not lost: the next store takes it over. Then
//! the live blocks of a sparse blob move for the fee of the write, and what the blob wastes can be
//! had for something else. How long that would have been paid for in vain is not known: sooner or
//! later more of the blob's blocks go, and it is repacked for these. So one epoch is compared. A
//! blob of `U` units, due or not, is repacked if its share `u` of full packs is so small that
//!
//! ```text
//! u·(s + w) < U·s
//! ```
//!
//! which is at a sixth of waste, at the prices of the documentation. Packs that are not full count
//! as what they cost: where few bytes are to be moved, they wait for more. A pack for which no
//! storage is left is paid for from the present epoch on, as above, and gains only if what it
//! empties is of use to others. So the caller says how many packs it is good for.
//! [`Terms::max_waste_percent`] has no part in it.

use serde::Serialize;

use crate::walrus::cost::Prices;

mod choose;
mod decide;
mod price;
mod print;
mod spread;

pub(super) use decide::extension;
pub use decide::plan;
pub use spread::spread;

/// A renewal buys two epochs at least: see [`Terms::epochs`].
const LEAST_EPOCHS: u32 = super::MIN_RENEWAL_EPOCHS;

/// A blob as the ledger has it. Numbers may be nonsense, as they come from tables that any program
/// may have written: negative ones count as unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blob {
    /// Its ID (43 characters).
    pub blob_id: String,
    /// Its object on the chain, without which it can be neither extended nor deleted.
    pub object_id: Option<String>,
    /// The format of its content, for the reader of a plan.
    pub format: String,
    /// Its length (bytes); 0: unknown.
    pub size: i64,
    /// The length that is billed (bytes), if the network has told it.
    pub encoded_size: Option<u64>,
    /// Whether its owner may delete it.
    pub deletable: bool,
    /// The epoch in which it is no longer stored; 0: unknown.
    pub end_epoch: i64,
    /// Blocks that rows point at.
    pub live_blocks: i64,
    /// The lengths of these blocks (bytes).
    pub live_bytes: i64,
    /// Deleted rows that may be brought back still point at it, or its time of grace is not over:
    /// it is not deleted yet.
    pub held: bool,
}

/// The conditions under which a plan is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The present epoch, the least that it can be ([`EpochClock::now_epoch`]): a blob that has
    /// ended for sure is no longer extended.
    ///
    /// [`EpochClock::now_epoch`]: crate::clock::EpochClock::now_epoch
    pub epoch: u64,
    /// A blob is due if it ends so many epochs from now or sooner: those that may be over before
    /// the lead is.
    pub lead_epochs: u64,
    /// How many epochs from now are bought. Two at least, since a blob that ends with the present
    /// epoch cannot be bought for this epoch again.
    pub epochs: u32,
    /// The most epochs from now that the network sells (53).
    pub max_epochs: u32,
    /// The network's prices.
    pub prices: Prices,
    /// The network's shards.
    pub n_shards: u16,
    /// Whether blobs can be extended and deleted.
    pub chain: bool,
    /// Where the storage of deleted blobs is used again by this node's stores: how many packs may
    /// be filled for the sake of it in this pass. `None`: it is not used again.
    pub reuse: Option<u64>,
    /// A blob that is not due is repacked only if this part of it, or more, is waste.
    pub max_waste_percent: u32,
    /// The length of a full pack (bytes).
    pub pack_target_bytes: u64,
    /// Bytes that each block takes in a pack beside its own.
    pub block_overhead_bytes: u64,
    /// The most bytes that one pass moves; `None`: any number. A pass moves one blob at least.
    pub budget_bytes: Option<u64>,
}

impl Terms {
    /// How many epochs from now are bought.
    fn bought(&self) -> u32 {
        let most = self.max_epochs.max(LEAST_EPOCHS);
        self.epochs.clamp(LEAST_EPOCHS, most)
    }
}

/// What becomes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing is done: no block of it is live, so it may end.
    Lapse,
    /// It is deleted on the chain: no block of it is live, and its owner may reuse its storage.
    Delete,
    /// Its storage is prolonged on the chain.
    Extend,
    /// Its bytes are read and stored again.
    StoreAgain,
    /// Its live blocks are carried over into new packs.
    Repack,
}

/// The decision about a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The blob.
    pub blob_id: String,
    /// Its object on the chain, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,
    /// The format of its content.
    pub format: String,
    /// The epoch in which it is no longer stored; 0: unknown.
    pub end_epoch: i64,
    /// Whether it ends within the lead. Blobs that do not are repacked or deleted only.
    pub due: bool,
    /// What becomes of it.
    pub action: Action,
    /// The epochs that are bought: those that are added (extend), or from now on (store again,
    /// repack).
    pub epochs: u32,
    /// Bytes to read.
    pub read_bytes: u64,
    /// Bytes to write.
    pub write_bytes: u64,
    /// Units that are bought; of a repacked blob, its share of the packs.
    pub units: u64,
    /// The price, without gas (FROST).
    pub frost: u64,
    /// The pack in which the first of its blocks come to lie, counted from 0. Blobs of one pack are
    /// repacked together, or their price is not this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<u64>,
    /// Whether it is left to a later pass, because this one moves enough bytes.
    pub deferred: bool,
    /// The reason, in words.
    pub reason: String,
}

/// A sum over decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Blobs.
    pub blobs: u64,
    /// Bytes to read.
    pub read_bytes: u64,
    /// Bytes to write.
    pub write_bytes: u64,
    /// Units that are bought.
    pub units: u64,
    /// The price (FROST).
    pub frost: u64,
}

impl Sum {
    fn add(&mut self, decision: &Decision) {
        self.blobs = self.blobs.saturating_add(1);
        self.read_bytes = self.read_bytes.saturating_add(decision.read_bytes);
        self.write_bytes = self.write_bytes.saturating_add(decision.write_bytes);
        self.units = self.units.saturating_add(decision.units);
        self.frost = self.frost.saturating_add(decision.frost);
    }
}

/// The sums of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Blobs that lapse.
    pub lapse: Sum,
    /// Blobs that are deleted.
    pub delete: Sum,
    /// Blobs that are extended.
    pub extend: Sum,
    /// Blobs that are stored again.
    pub store_again: Sum,
    /// Blobs that are repacked.
    pub repack: Sum,
    /// All of them.
    pub all: Sum,
    /// Those that are left to a later pass; the other sums hold them, too.
    pub deferred: Sum,
    /// The price if every blob that is due and live were stored again (FROST).
    pub all_stored_again_frost: u64,
    /// The price if every such blob were extended (FROST); `None` if not all can be.
    pub all_extended_frost: Option<u64>,
}

/// What becomes of the blobs that are due, and of those that pay for themselves. The most urgent
/// comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The present epoch.
    pub epoch: u64,
    /// The exclusive end epoch of all that is bought.
    pub until_epoch: u64,
    /// One decision per blob.
    pub decisions: Vec<Decision>,
    /// Their sums.
    pub totals: Totals,
}

#[cfg(test)]
mod tests;
