//! The index: maps a datastore key to the place of the block's bytes.
//!
//! [`Index`] is the interface, the sum of [`Rows`], [`Deleted`], [`Ledger`], [`Leases`], [`Totals`]
//! and [`Notes`].
//! [`postgres`] (shared by many nodes) and [`sqlite`] (embedded, one node) implement it and pass
//! one shared test suite (`tests/index_suite.rs`).

use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::clock::EpochClock;
use crate::error::{Error, ErrorKind, Result};
use crate::patch::Columns;

mod absent;
mod combine;
pub mod copy;
mod deleted;
mod gate;
mod keys;
pub(crate) mod ledger;
pub(crate) mod lookup;
pub mod postgres;
mod rows;
pub mod sqlite;
mod staged;
pub mod table;

pub(crate) use absent::Absent;
pub use deleted::{Deleted, DeletedRow, Purged, Traces};
pub use keys::KeyRange;
pub use ledger::{Blob, BlobState, Count, EndingIn, Ledger};
pub use staged::{Claim, Claimed, LeftBehind, Staging};

/// The longest time for which a lease runs.
pub const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// The number of blobs that the default [`Rows::ending_by`] asks for at a time, for an index that
/// has no query of its own for it.
const ENDING_PAGE: usize = 4096;

/// A time later than any `expires_at` that an index holds.
fn far_future() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(200_000_000_000)
}

pub use crate::limits::MAX_KEY_BYTES;

/// The place of a block, and the end of its storage.
///
/// `offset` and `size` are as the database has them (bytes; a foreign writer may have stored
/// nonsense): [`Record::range`] is the checked form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Record {
    /// Walrus blob ID (43 characters, base64url). Empty for a staged block.
    pub blob_id: String,
    /// Quilt patch ID; `None` for a block that is a byte range of the blob.
    pub patch_id: Option<String>,
    /// First byte of the block within the blob (bytes).
    pub offset: i64,
    /// Length of the block (bytes).
    pub size: i64,
    /// Whether the blob was stored as deletable.
    pub deletable: bool,
    /// First epoch in which the blob is no longer stored (exclusive end); 0 = unknown.
    pub end_epoch: i64,
    /// Estimate of the end of storage; `None` = unknown (renewal is off).
    pub expires_at: Option<SystemTime>,
    /// The block's bytes are in `<table>_staging`, left there by a Go node, and not on Walrus yet.
    pub staged: bool,
}

setters! { Record {
    with_patch_id(patch_id: Option<String>);
    with_deletable(deletable: bool);
    with_end_epoch(end_epoch: i64);
    with_expires_at(expires_at: Option<SystemTime>);
    with_staged(staged: bool);
} }

impl Record {
    /// The place of a block of `size` bytes that begins at byte `offset` of a blob. The blob is
    /// permanent, and the end of its storage is not known.
    pub fn new(blob_id: impl Into<String>, offset: i64, size: i64) -> Self {
        Record {
            blob_id: blob_id.into(),
            offset,
            size,
            ..Record::default()
        }
    }

    /// The byte range of the block within its blob.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the row holds a negative or overflowing offset or size.
    pub fn range(&self) -> Result<Range<u64>> {
        match (u64::try_from(self.offset), u64::try_from(self.size)) {
            (Ok(start), Ok(size)) if start.checked_add(size).is_some() => Ok(start..start + size),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "index row points at offset {} size {} of blob {}: neither may be negative",
                    self.offset, self.size, self.blob_id
                ),
            )),
        }
    }
}

impl Record {
    /// The offset that holds the place of the block in a table without a column for patch IDs: that
    /// of a member of a quilt is negative and stands for its columns, so that a program that does
    /// not know of this finds an impossible place, and not other bytes. `None` for a patch ID that
    /// is none of the blob.
    pub(crate) fn offset_without_patch(&self) -> Option<i64> {
        match self.patch_id.as_deref() {
            None | Some("") => Some(self.offset),
            Some(patch) => Some(Columns::of(patch, &self.blob_id)?.as_offset()),
        }
    }

    /// This row, as it was read, with the patch ID for which its offset stands, if it does.
    pub(crate) fn with_patch_of_offset(self) -> Self {
        let columns = match self.patch_id {
            None => Columns::of_offset(self.offset),
            Some(_) => None,
        };
        match columns.and_then(|columns| columns.patch_id(&self.blob_id)) {
            None => self,
            patch_id => Record {
                offset: 0,
                patch_id,
                ..self
            },
        }
    }

    /// The length of the block under `key` (bytes).
    pub(crate) fn size_of(&self, key: &str) -> Result<u64> {
        let range = self.range().map_err(|e| e.context(key))?;
        Ok(range.end - range.start)
    }

    /// Whether the block is on Walrus beyond `until`, as far as this node knows. A block that a Go
    /// node has staged is not: that node may never come back.
    pub(crate) fn is_fresh(&self, until: SystemTime, epochs: &EpochClock) -> bool {
        !self.staged
            && self.expires_at.is_none_or(|t| t > until)
            && !epochs.is_over(u64::try_from(self.end_epoch).unwrap_or(0))
    }
}

/// The note that holds the identity of a table.
pub(crate) const IDENTITY: &str = "identity";

/// The note that tells what storage is left that can be used again.
pub(crate) const STORAGE_LEFT: &str = "storage.left";

/// How the names of the notes of renewal begin.
pub(crate) const OF_RENEWAL: &str = "renewal.";

/// The note of a copy that says how far it is; a finished copy has none.
const COPY: &str = "copy";

/// Why nothing can be written to an index whose server is a standby ([`Index::only_reads`]).
const STANDBY: &str = "the server is a standby";

/// A new identity of a table.
pub(crate) fn new_identity() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A [`Record`] with the key it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRecord {
    /// Datastore key, as put (`/CIQ…`).
    pub key: String,
    /// Where its block is.
    pub record: Record,
}

impl KeyRecord {
    /// The row of `key`.
    pub fn new(key: impl Into<String>, record: Record) -> Self {
        KeyRecord {
            key: key.into(),
            record,
        }
    }
}

/// The rows in the order of their keys. A key that appears twice is an error that names `method`.
fn in_key_order<'a>(records: &'a [KeyRecord], method: &str) -> Result<Vec<&'a KeyRecord>> {
    let mut order: Vec<&KeyRecord> = records.iter().collect();
    order.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    match order.windows(2).find(|pair| pair[0].key == pair[1].key) {
        Some(twice) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("key {:?} appears twice in one {method}", twice[0].key),
        )),
        None => Ok(order),
    }
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListItem {
    /// Datastore key, as put.
    pub key: String,
    /// Length of the block (bytes).
    pub size: i64,
    /// Estimate of the end of storage.
    pub expires_at: Option<SystemTime>,
}

impl ListItem {
    /// A row of `key`, whose block has `size` bytes.
    pub fn new(key: impl Into<String>, size: i64, expires_at: Option<SystemTime>) -> Self {
        ListItem {
            key: key.into(),
            size,
            expires_at,
        }
    }
}

/// A blob whose storage ends soon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RenewItem {
    /// Walrus blob ID.
    pub blob_id: String,
    /// The estimate of its end (the earliest one of its rows where an index keeps no ledger).
    pub expires_at: SystemTime,
    /// Its end epoch, as above.
    pub end_epoch: i64,
    /// Whether it was stored as deletable.
    pub deletable: bool,
}

setters! { RenewItem {
    with_end_epoch(end_epoch: i64);
    with_deletable(deletable: bool);
} }

impl RenewItem {
    /// A permanent blob whose storage ends at `expires_at`, in an epoch that is not known.
    pub fn new(blob_id: impl Into<String>, expires_at: SystemTime) -> Self {
        RenewItem {
            blob_id: blob_id.into(),
            expires_at,
            end_epoch: 0,
            deletable: false,
        }
    }
}

/// The new end of a blob's storage after a renewal (a re-upload of the blob).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// New exclusive end epoch.
    pub end_epoch: i64,
    /// New estimate of the end of storage.
    pub expires_at: Option<SystemTime>,
}

impl Renewal {
    /// Storage until `end_epoch` (exclusive), and the time at which that is estimated to begin.
    pub fn new(end_epoch: i64, expires_at: Option<SystemTime>) -> Self {
        Renewal {
            end_epoch,
            expires_at,
        }
    }
}

/// The amount of data stored under an index, as `repo stat` shows it. It is kept as a running
/// total, which is exact as long as only walrusds nodes write and none of them dies between a write
/// and its next flush of totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Blocks (rows).
    pub blocks: i64,
    /// Bytes of blocks, before Walrus' encoding.
    pub bytes: i64,
}

impl Usage {
    /// `blocks` blocks of `bytes` bytes together.
    pub const fn new(blocks: i64, bytes: i64) -> Self {
        Usage { blocks, bytes }
    }

    /// The sum. Rows may hold nonsense, which must not end in a panic: the sum saturates.
    #[must_use]
    pub(crate) fn plus(self, other: Usage) -> Usage {
        Usage {
            blocks: self.blocks.saturating_add(other.blocks),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// The difference. It saturates as well.
    #[must_use]
    pub(crate) fn minus(self, other: Usage) -> Usage {
        Usage {
            blocks: self.blocks.saturating_sub(other.blocks),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// The rows of an index: one for each block. Every method may be called concurrently. Dropping a
/// returned future abandons the wait and, where the engine can, cancels the statement. All of a
/// call's rows become visible together or not at all.
#[async_trait]
pub trait Rows: Send + Sync + 'static {
    /// Inserts or replaces one row.
    async fn put(&self, record: &KeyRecord) -> Result<()> {
        self.put_many(std::slice::from_ref(record)).await
    }

    /// Inserts or replaces rows in one transaction (bulk statement, not a statement per row).
    /// A key must not appear twice. Also removes the keys' rows from a Go node's staging table:
    /// the newest value wins.
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()>;

    /// Sets the rows of the keys in `to`, in one transaction, but only the rows that still point at
    /// the blob `from`: a row that was deleted or put anew meanwhile stays as it is. A key must not
    /// appear twice. Returns how many rows were changed.
    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64>;

    /// Looks one key up; `None` if unknown.
    async fn get(&self, key: &str) -> Result<Option<Record>>;

    /// Looks keys up in one round trip; the result has the keys' order.
    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>>;

    /// Whether a lookup asks no other process. Combining several lookups into one gains nothing
    /// then.
    fn is_local(&self) -> bool {
        false
    }

    /// The bytes of a block that a Go node staged; `None` if it is not (or no longer) staged.
    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>>;

    /// Removes a key. Returns what was removed (zero if the key was unknown: not an error).
    async fn delete(&self, key: &str) -> Result<Usage>;

    /// Removes keys in one round trip. Returns what was removed.
    async fn delete_many(&self, keys: &[String]) -> Result<Usage>;

    /// Removes the rows of these keys that still point at the blob `from`: a row that was put anew
    /// or moved meanwhile stays, and so does what a Go node has staged. All in one transaction.
    /// Returns what was removed. An index that does not implement this method removes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] from an index that does not implement it.
    async fn delete_from(&self, from: &str, keys: &[String]) -> Result<Usage> {
        let _ = (from, keys);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this index cannot remove the rows of one blob alone",
        ))
    }

    /// The rows of `range` in its order, without the first `offset` ones, at most `limit`. Fewer
    /// than `limit` means the end. No state is held between pages, so rows may be written and
    /// deleted meanwhile. The engine reads the rows that it skips, too: `offset` bounds the work.
    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>>;

    /// Up to `limit` distinct blobs whose storage ends before `before`, earliest first, in the
    /// order (expires_at, blob_id), after `after` in that order.
    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>>;

    /// Up to `limit` distinct blobs whose end epoch is known and at most `epoch`, earliest first,
    /// in the order (end_epoch, blob_id), after `after` in that order. `expires_at` plays no part;
    /// an item without it has the Unix epoch instead. An index that does not implement this method
    /// leaves out the rows without `expires_at`.
    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        fn place(item: &RenewItem) -> (i64, &str) {
            (item.end_epoch, &item.blob_id)
        }
        let mut found: Vec<RenewItem> = Vec::new();
        let mut last: Option<RenewItem> = None;
        loop {
            let page = self
                .due_for_renewal(far_future(), last.as_ref(), ENDING_PAGE)
                .await?;
            let whole = page.len() >= ENDING_PAGE;
            last = page.last().cloned();
            let ending = |item: &RenewItem| {
                (1..=epoch).contains(&item.end_epoch)
                    && after.is_none_or(|after| place(item) > place(after))
            };
            found.extend(page.into_iter().filter(ending));
            if !whole {
                break;
            }
        }
        found.sort_by(|a, b| place(a).cmp(&place(b)));
        found.truncate(limit);
        Ok(found)
    }

    /// All rows of one blob, in key order.
    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>>;

    /// The rows of one blob whose blocks begin at `from` (bytes) or later, in the order of their
    /// offsets, at most `limit`. Fewer than `limit` means that there are no more.
    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>>;

    /// Notes a renewal on every row of the blob, never moving an end backwards. Returns how many
    /// rows were changed.
    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64>;
}

/// Leases: each lets one node at a time do a certain work.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Takes or prolongs the lease `name` for `owner`; false if another owner's lease is still
    /// running by the database's clock. A lease runs for [`LONGEST_LEASE`] at most. A lease that
    /// ends later than that from now was taken while the clock was wrong, and counts as run out.
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool>;

    /// Gives a lease back, if `owner` holds it.
    async fn release_lease(&self, name: &str, owner: &str) -> Result<()>;
}

/// A new name under which this process takes leases.
pub(crate) fn new_owner() -> String {
    format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
}

/// The amount of data stored under an index.
#[async_trait]
pub trait Totals: Send + Sync + 'static {
    /// The running total, read in O(1).
    async fn usage(&self) -> Result<Usage>;

    /// Adds to the running total (values may be negative).
    async fn add_usage(&self, delta: Usage) -> Result<()>;
}

/// Texts that nodes keep beside an index. An index that does not implement these methods keeps
/// none.
#[async_trait]
pub trait Notes: Send + Sync + 'static {
    /// The text that nodes keep beside the index under `name`, to know it after a restart.
    async fn note(&self, _name: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Keeps a text under `name`, in place of an earlier one; `None` removes it.
    async fn set_note(&self, _name: &str, _text: Option<&str>) -> Result<()> {
        Ok(())
    }

    /// The names and texts of the notes whose names begin with `prefix`, in the order of their
    /// names, at most `limit`.
    async fn notes(&self, _prefix: &str, _limit: usize) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }

    /// The identity of the table of this index: a text that the table keeps wherever it goes, made
    /// at the first call. `None` if the index keeps none.
    async fn identity(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// Something that an operator should know of the database behind an index.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fact {
    /// Its name, which stays.
    pub name: &'static str,
    /// Whether it will make trouble.
    pub matters: bool,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// The line that mends it, where one does.
    pub cure: Option<String>,
}

impl Fact {
    /// A fact that is as it should be.
    pub fn fine(name: &'static str, what: impl Into<String>) -> Fact {
        Fact {
            name,
            matters: false,
            what: what.into(),
            why: "",
            cure: None,
        }
    }

    /// A fact that will make trouble.
    pub fn trouble(
        name: &'static str,
        what: impl Into<String>,
        why: &'static str,
        cure: impl Into<String>,
    ) -> Fact {
        Fact {
            name,
            matters: true,
            what: what.into(),
            why,
            cure: Some(cure.into()),
        }
    }
}

/// A write of this node that is under way, until it is dropped.
pub type Writing<'a> = Box<dyn Send + 'a>;

/// Reads that copies of the index may answer, such as standbys of its database, for a node that
/// only retrieves. A copy may be behind by a bounded time, but has all that this node wrote. No
/// write may decide by what these methods return.
#[async_trait]
pub trait Replica: Send + Sync {
    /// Looks keys up; an answer for each, in the keys' order. That a key is unknown is said only of
    /// one that is missing in the index itself, unless the node was told to trust a copy.
    async fn get_each(&self, keys: &[String]) -> Result<Vec<Result<Option<Record>>>>;

    /// As [`Rows::list`].
    async fn page(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>>;

    /// As [`Rows::rows_from`].
    async fn neighbours(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>>;

    /// Announces a write of this node. Copies answer again when they have it.
    fn writing(&self) -> Writing<'_>;
}

/// An index: its parts, and the methods that concern it as a whole. A caller that needs one part
/// alone names the trait of that part.
#[async_trait]
pub trait Index: Rows + Deleted + Ledger + Leases + Totals + Notes {
    /// A notice about the index for the operator's log; each notice is returned once.
    fn take_notice(&self) -> Option<String> {
        None
    }

    /// The reason why nothing can be written to this index, if opening it found one: every method
    /// that writes fails. `None` again from when writes are found to work (a standby was promoted).
    fn only_reads(&self) -> Option<&'static str> {
        None
    }

    /// The note of the copy that this index is, if it was not finished when the index was opened
    /// ([`copy::copy`]).
    fn unfinished_copy(&self) -> Option<&str> {
        None
    }

    /// The blocks that Go nodes have staged, where the index can hold such blocks.
    fn staging(&self) -> Option<&dyn Staging> {
        None
    }

    /// What an operator should know of the database: rights, settings, what stands between. Changes
    /// nothing.
    async fn facts(&self) -> Result<Vec<Fact>> {
        Ok(Vec::new())
    }

    /// The copies of this index, where reads may go to some.
    fn replica(&self) -> Option<&dyn Replica> {
        None
    }

    /// Finishes running statements and closes every connection. Later calls fail with
    /// [`ErrorKind::Closed`]; a second close is no error.
    async fn close(&self) -> Result<()>;
}
