//! The layout of blocks in a pack: the seam between the blocks that travel and the bytes on Walrus.
//!
//! A format decides three things.
//! - **Layout**: in which order the blocks lie, and which bytes lie before, between and after them.
//!   It sees all blocks before the first byte is sent, so a header and an index may depend on all
//!   of them. It may also ask the publisher for something else than a plain blob; the places of the
//!   blocks may then be known from the answer alone.
//! - **Places**: where each block lies. Rows hold places, and a place can be read without knowing
//!   the format.
//! - **Proof**: which part of a stored pack is read back to know that aggregators give all of it.
//!
//! | format | layout |
//! |---|---|
//! | `concat` | one block after another, nothing else |

use bytes::Bytes;

use crate::error::Result;
use crate::index::Record;
use crate::walrus::{BlobStore, Body, Check, StoreOptions, StoreResult};

mod concat;

/// A block as a format sees it.
pub(crate) trait Parcel: Sync {
    fn key(&self) -> &str;

    /// Length of its value (bytes).
    fn len(&self) -> u64;

    /// Appends its value to the body that is sent.
    fn append_to(&self, body: &mut Body);
}

/// Where a block lies in its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its first byte.
    pub(crate) offset: u64,
    /// How many bytes it has.
    pub(crate) len: u64,
}

impl Place {
    /// Reads the block that lies here.
    pub(crate) async fn read(
        self,
        walrus: &dyn BlobStore,
        blob_id: &str,
        check: Check<'_>,
    ) -> Result<Bytes> {
        walrus
            .read_range(blob_id, self.offset, self.len, check)
            .await
    }

    /// The row of a block that lies here in the blob of `row`.
    pub(super) fn in_blob(self, row: &Record) -> Record {
        Record {
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            size: i64::try_from(self.len).unwrap_or(i64::MAX),
            ..row.clone()
        }
    }
}

/// A pack, laid out.
#[derive(Debug)]
pub(super) struct Layout {
    /// Where the blocks lie, in the order in which they were given.
    pub(super) places: Vec<Place>,
    /// Length of the blob (bytes).
    pub(super) len: u64,
}

/// The formats of packs that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Concat,
}

impl Format {
    /// Stores blocks, which come in the order in which they are read, as one pack. Returns the
    /// digest of the blob as well, if all of it was sent.
    pub(super) async fn store<P: Parcel>(
        self,
        blocks: &[P],
        walrus: &dyn BlobStore,
        options: StoreOptions,
    ) -> Result<(StoreResult, Option<blake3::Hash>, Layout)> {
        let (body, layout) = match self {
            Format::Concat => concat::lay_out(blocks),
        };
        let sent = body.clone();
        Ok((walrus.store(body, options).await?, sent.digest(), layout))
    }

    /// The name of the format, in the configuration and in the ledger.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Concat => "concat",
        }
    }

    /// The block that is to be read back, by its number and place, to know that aggregators give
    /// the whole of a stored pack. `None` if no block has bytes.
    pub(crate) fn proof(self, places: &[Place]) -> Option<(usize, Place)> {
        match self {
            Format::Concat => concat::proof(places),
        }
    }
}
