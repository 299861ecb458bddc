//! The ledger: one entry for each blob.
//!
//! A row tells where a block lies; the ledger tells of the blob what renewal, repacking and an
//! operator need: the object that can be extended or deleted, its size and price, its end. An entry
//! is written in the transaction that writes its blob's rows.
//!
//! The live blocks of a blob are counted from its rows, exactly when a decision about the blob is
//! made ([`Ledger::live`]), and for all blobs by a pass ([`Ledger::count`]) whose time each entry
//! notes. The pass also adds entries for blobs that have rows alone: those of older versions and of
//! Go nodes.

use std::time::SystemTime;

use async_trait::async_trait;

use super::{KeyRange, KeyRecord, Record, Renewal, Rows, Usage};
use crate::clock::Sighting;
use crate::error::Result;

/// The columns of an entry, in the order in which both indexes read them.
pub(super) const COLUMNS: &str =
    "blob_id, object_id, format, size, encoded_size, cost, deletable, registered_epoch, end_epoch, expires_at, \
     digest, state, state_since, live_blocks, live_bytes, counted_at, read_back_at";
/// How many of the latest epochs [`Ledger::epochs`] reads.
pub(super) const EPOCHS: i64 = 64;

/// The state of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BlobState {
    /// Its blocks are served from it; it is kept alive as long as it has blocks.
    #[default]
    Live,
    /// The last pass that counts found no block in it: all were deleted, or carried over to another
    /// blob. Readers of other nodes may still use it for a while, and a block may be brought back
    /// ([`super::Deleted`]): what matters is the number of live blocks, counted anew.
    Released,
    /// Its object is being deleted on the chain, or was by a process that has ended since. A store
    /// of the same bytes gets another object: from then on the entry tells of that one alone.
    Deleting,
}

impl BlobState {
    /// The name in the index.
    pub fn name(self) -> &'static str {
        match self {
            BlobState::Live => "live",
            BlobState::Released => "released",
            BlobState::Deleting => "deleting",
        }
    }

    /// The state of this name. An unknown name is that of a newer version, which must be handled
    /// with care: such a blob counts as live.
    pub fn named(name: &str) -> BlobState {
        match name {
            "released" => BlobState::Released,
            "deleting" => BlobState::Deleting,
            _ => BlobState::Live,
        }
    }
}

/// The number of live blocks of a blob and their bytes, and when they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// Live blocks and their bytes.
    pub live: Usage,
    /// When they were counted, by the database's clock.
    pub at: SystemTime,
}

impl Count {
    /// A count made at this time.
    pub fn new(live: Usage, at: SystemTime) -> Count {
        Count { live, at }
    }
}

/// An entry of the ledger. Numbers are as the database has them: a foreign writer may have stored
/// nonsense.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Blob {
    /// Walrus blob ID (43 characters, base64url).
    pub blob_id: String,
    /// Sui object ID of the registration that ends last; empty if it is not known. The blob cannot
    /// be extended or deleted then.
    pub object_id: String,
    /// Format of the pack (`concat`, `car`, …); empty if it is not known.
    pub format: String,
    /// Length of the blob (bytes); 0 = unknown.
    pub size: i64,
    /// Encoded size on the network (bytes), which is billed; 0 = unknown.
    pub encoded_size: i64,
    /// All that was paid for the blob so far (FROST).
    pub cost: i64,
    /// Whether it was stored as deletable.
    pub deletable: bool,
    /// Epoch in which it was registered; 0 = unknown.
    pub registered_epoch: i64,
    /// First epoch in which the blob is no longer stored (exclusive end); 0 = unknown.
    pub end_epoch: i64,
    /// Estimate of the end of storage; `None` = unknown.
    pub expires_at: Option<SystemTime>,
    /// BLAKE3 digest of the blob's bytes (64 hexadecimal digits); empty if it is not known.
    pub digest: String,
    /// Whether the blob is still in use.
    pub state: BlobState,
    /// When the state began; `None` for an entry that was not written yet.
    pub state_since: Option<SystemTime>,
    /// The last count of its live blocks.
    pub counted: Option<Count>,
    /// When a part of it was last read back and found right.
    pub read_back_at: Option<SystemTime>,
}

impl Blob {
    /// The row of a block in the blob, without the block's place.
    pub(crate) fn row(&self) -> Record {
        Record {
            blob_id: self.blob_id.clone(),
            deletable: self.deletable,
            end_epoch: self.end_epoch,
            expires_at: self.expires_at,
            ..Record::default()
        }
    }

    /// A blob and its end.
    pub(super) fn ending(blob_id: &str, renewal: &Renewal) -> Blob {
        Blob {
            blob_id: blob_id.to_owned(),
            end_epoch: renewal.end_epoch,
            expires_at: renewal.expires_at,
            ..Blob::default()
        }
    }

    /// What a row tells of its blob.
    fn of_row(row: &Record) -> Blob {
        Blob {
            blob_id: row.blob_id.clone(),
            deletable: row.deletable,
            end_epoch: row.end_epoch,
            expires_at: row.expires_at,
            ..Blob::default()
        }
    }
}

/// The entries that rows which are about to be written need, in the order of their blob IDs:
/// `blob` itself, and for each other blob what its rows tell.
pub(super) fn entries(blob: Option<&Blob>, rows: &[KeyRecord]) -> Vec<Blob> {
    let mut entries: std::collections::BTreeMap<&str, Blob> = std::collections::BTreeMap::new();
    for row in rows.iter().map(|row| &row.record) {
        if row.blob_id.is_empty() || blob.is_some_and(|blob| blob.blob_id == row.blob_id) {
            continue;
        }
        let entry = entries
            .entry(&row.blob_id)
            .or_insert_with(|| Blob::of_row(row));
        entry.end_epoch = entry.end_epoch.max(row.end_epoch);
        entry.expires_at = entry.expires_at.max(row.expires_at);
        entry.deletable |= row.deletable;
    }
    if let Some(blob) = blob {
        entries.insert(&blob.blob_id, blob.clone());
    }
    entries.into_values().collect()
}

/// As [`entries`], where more is known of several blobs.
pub(super) fn entries_of(blobs: &[Blob], rows: &[KeyRecord]) -> Vec<Blob> {
    let of_rows = entries(None, rows).into_iter();
    let mut all: std::collections::BTreeMap<String, Blob> =
        of_rows.map(|blob| (blob.blob_id.clone(), blob)).collect();
    for blob in blobs {
        all.insert(blob.blob_id.clone(), blob.clone());
    }
    all.into_values().collect()
}

/// The length of a blob whose waste its counts tell, in SQL: [`EndingIn::judged_bytes`].
pub(super) const JUDGED: &str =
    "CASE WHEN counted_at IS NOT NULL AND format <> 'quilt' THEN size ELSE 0 END";
/// What is waste of it: [`EndingIn::waste_bytes`].
pub(super) const WASTE: &str =
    "CASE WHEN counted_at IS NOT NULL AND format <> 'quilt' AND size > live_bytes THEN size - live_bytes ELSE 0 END";

/// The sum of the live blobs that end in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EndingIn {
    /// The (exclusive) end epoch; 0 = unknown.
    pub end_epoch: i64,
    /// Blobs.
    pub blobs: i64,
    /// Their bytes, as far as they are known.
    pub bytes: i64,
    /// Their encoded bytes, as far as they are known.
    pub encoded_bytes: i64,
    /// What was paid for them (FROST).
    pub cost: i64,
    /// Live blocks and bytes at the last counts.
    pub live: Usage,
    /// Blobs that were never counted.
    pub uncounted: i64,
    /// Bytes of the counted blobs that are no quilts. Blocks leave columns of a quilt empty, so its
    /// length does not tell how much of it is waste.
    pub judged_bytes: i64,
    /// Those of them that belonged to no live block at the last counts.
    pub waste_bytes: i64,
    /// The oldest of the counts.
    pub counted_at: Option<SystemTime>,
}

/// The ledger of blobs and the epochs that nodes have seen. The default methods are those of an
/// index that keeps no ledger.
#[async_trait]
pub trait Ledger: Rows {
    /// As [`Rows::put_many`], and writes the entry of the blob that the rows point at, in the same
    /// transaction. Where the entry exists, what is known anew replaces what was known, an end is
    /// never moved backwards, and the cost is added to what was paid before, unless the entry has
    /// this object ID and end epoch already.
    async fn place(&self, blob: &Blob, rows: &[KeyRecord]) -> Result<()> {
        let _ = blob;
        self.put_many(rows).await
    }

    /// As [`Rows::move_rows`], and writes the entry of the new blob, in the same transaction.
    async fn move_to(&self, from: &str, blob: &Blob, rows: &[KeyRecord]) -> Result<u64> {
        let _ = blob;
        self.move_rows(from, rows).await
    }

    /// Writes rows of keys that have none, in one transaction with the entries of their blobs and
    /// the running total. A key that has a row keeps it. The entry that is given is merged into the
    /// blob's entry; a cost is not added to an equal one, so the same call may be made again. A
    /// blob that gained rows is live again. Returns what was added. A key must not appear twice.
    ///
    /// The default, for an index that keeps no ledger, is no transaction and leaves the running
    /// total to the caller.
    async fn place_missing(&self, blobs: &[Blob], rows: &[KeyRecord]) -> Result<Usage> {
        let _ = blobs;
        let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
        let found = self.get_many(&keys).await?;
        let missing = rows.iter().zip(found).filter(|(_, found)| found.is_none());
        let missing: Vec<KeyRecord> = missing.map(|(row, _)| row.clone()).collect();
        self.put_many(&missing).await?;
        let added = missing.iter().map(|row| Usage::new(1, row.record.size));
        Ok(added.fold(Usage::default(), Usage::plus))
    }

    /// Notes a renewal: the new end of a blob on its entry and on every row, never moving an end
    /// backwards, and adds its cost. Returns how many rows were changed.
    async fn renewed(&self, blob: &Blob) -> Result<u64> {
        let renewal = Renewal {
            end_epoch: blob.end_epoch,
            expires_at: blob.expires_at,
        };
        self.update_blob_after_renewal(&blob.blob_id, &renewal)
            .await
    }

    /// Whether this index keeps a ledger.
    fn keeps_ledger(&self) -> bool {
        false
    }

    /// The entries of blobs, in the order of `blob_ids`; `None` for a blob without entry.
    async fn blobs(&self, blob_ids: &[String]) -> Result<Vec<Option<Blob>>> {
        Ok(vec![None; blob_ids.len()])
    }

    /// The blobs at which rows point, as the rows tell of them, in the order of the index, after
    /// `after`, at most `limit`; fewer than `limit` means the end. The end is the latest of the
    /// blob's rows, and `counted` holds its rows now. Rows without a blob are left out. A table of
    /// any age has these, with or without a ledger.
    ///
    /// The default reads every row for each page.
    async fn blobs_of_rows(&self, after: &str, limit: usize) -> Result<Vec<Blob>> {
        let mut found: std::collections::BTreeMap<String, Blob> = std::collections::BTreeMap::new();
        let now = SystemTime::now();
        let mut range = KeyRange::ALL;
        loop {
            let page = self.list(&range, 0, PAGE).await?;
            let keys: Vec<String> = page.into_iter().map(|item| item.key).collect();
            let records = self.get_many(&keys).await?;
            for record in records.iter().flatten() {
                if record.staged || record.blob_id.as_str() <= after {
                    continue;
                }
                let of_row = Blob::of_row(record);
                let blob = found
                    .entry(record.blob_id.clone())
                    .or_insert_with(|| of_row.clone());
                let live = blob.counted.map_or(Usage::default(), |count| count.live);
                blob.counted = Some(Count::new(live.plus(Usage::new(1, record.size)), now));
                blob.end_epoch = blob.end_epoch.max(of_row.end_epoch);
                blob.expires_at = blob.expires_at.max(of_row.expires_at);
                blob.deletable |= of_row.deletable;
            }
            match keys.last().filter(|_| keys.len() >= PAGE) {
                Some(last) => range = KeyRange::ALL.after(last),
                None => break,
            }
        }
        Ok(found.into_values().take(limit).collect())
    }

    /// Entries in a state, in the order of their blob IDs, after `after`, at most `limit`.
    async fn blobs_in_state(
        &self,
        state: BlobState,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Blob>> {
        let _ = (state, after, limit);
        Ok(Vec::new())
    }

    /// Sets the state of blobs, but only where it is another one; [`BlobState::Deleting`] only
    /// where it is [`BlobState::Released`]. Returns how many were changed.
    async fn set_state(&self, blob_ids: &[String], state: BlobState) -> Result<u64> {
        let _ = (blob_ids, state);
        Ok(0)
    }

    /// Removes the entries of blobs that have no row.
    async fn forget_blobs(&self, blob_ids: &[String]) -> Result<u64> {
        let _ = blob_ids;
        Ok(0)
    }

    /// The live blocks of blobs, counted now, in the order of `blob_ids`.
    async fn live(&self, blob_ids: &[String]) -> Result<Vec<Usage>> {
        let mut live = Vec::with_capacity(blob_ids.len());
        for blob_id in blob_ids {
            let rows = self.rows_of_blob(blob_id).await?;
            let sum = rows.iter().fold(Usage::default(), |sum, row| {
                sum.plus(Usage {
                    blocks: 1,
                    bytes: row.record.size,
                })
            });
            live.push(sum);
        }
        Ok(live)
    }

    /// One page of the pass that counts live blocks: of the `limit` blobs that come after `after`
    /// in the order of the index. Blobs without any become [`BlobState::Released`], others
    /// [`BlobState::Live`]. Returns the last of them; `None` at the end.
    async fn count(&self, after: &str, limit: usize) -> Result<Option<String>> {
        let _ = (after, limit);
        Ok(None)
    }

    /// The live blobs by the epochs in which they end, in order.
    async fn horizon(&self) -> Result<Vec<EndingIn>> {
        Ok(Vec::new())
    }

    /// The epochs that nodes of this index have seen, the latest ones, in order.
    async fn epochs(&self) -> Result<Vec<Sighting>> {
        Ok(Vec::new())
    }

    /// Notes epochs that were seen: widens the time in which each was seen.
    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        let _ = seen;
        Ok(())
    }
}

/// How many entries [`InState`] reads at a time.
const PAGE: usize = 1024;

/// A number of the index; a negative one is nonsense and counts as unknown.
pub(crate) fn number(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// All entries in a state, page by page, in the order of their blob IDs. Entries may be changed and
/// removed between pages.
pub(crate) struct InState<'a> {
    ledger: &'a dyn Ledger,
    state: BlobState,
    /// The last blob ID that was read; `None` at the end.
    after: Option<String>,
}

impl<'a> InState<'a> {
    pub(crate) fn new(ledger: &'a dyn Ledger, state: BlobState) -> Self {
        InState {
            ledger,
            state,
            after: Some(String::new()),
        }
    }

    /// The next page, which may be empty; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Blob>>> {
        let Some(after) = self.after.take() else {
            return Ok(None);
        };
        let page = self.ledger.blobs_in_state(self.state, &after, PAGE).await?;
        let last = page.last().filter(|_| page.len() >= PAGE);
        self.after = last.map(|blob| blob.blob_id.clone());
        Ok(Some(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_blob_of_the_rows_has_one_entry() {
        let row = |key: &str, blob_id: &str, end_epoch| KeyRecord {
            key: key.to_owned(),
            record: Record {
                blob_id: blob_id.to_owned(),
                end_epoch,
                ..Record::default()
            },
        };
        let rows = [
            row("/1", "b", 4),
            row("/2", "a", 1),
            row("/3", "b", 5),
            row("/4", "", 9),
        ];
        let ends = |blob| -> Vec<(String, i64)> {
            let entries = entries(blob, &rows).into_iter();
            entries
                .map(|entry| (entry.blob_id, entry.end_epoch))
                .collect()
        };
        assert_eq!(ends(None), [("a".to_owned(), 1), ("b".to_owned(), 5)]);
        let told = Blob {
            blob_id: "b".to_owned(),
            end_epoch: 7,
            ..Blob::default()
        };
        assert_eq!(
            ends(Some(&told)),
            [("a".to_owned(), 1), ("b".to_owned(), 7)]
        );
    }
}
