//! The layout of blocks in a pack: the seam between the blocks that travel and the bytes on Walrus.
//!
//! A format decides four things.
//! - **Parts**: which blocks may share a pack, and how many fit ([`Fill`]).
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
//! | `car` | a CARv2 file with an index; blocks whose keys are no multihashes travel as `concat` |
//! | `concat` | one block after another, nothing else |
//! | `quilt` | a quilt of Walrus where it costs hardly more than `concat`, else as `car` |

use bytes::Bytes;

use super::reuse::Purchase;
use crate::error::{Error, ErrorKind, Result};
use crate::index::Record;
use crate::patch::Columns;
use crate::walrus::{BlobStore, Body, Check, StoreResult};

pub(crate) mod car;
mod concat;
pub(crate) mod quilt;
mod quilts;

pub(crate) use quilts::Quilts;

/// A block as a format sees it.
pub(crate) trait Parcel: Sync {
    fn key(&self) -> &str;

    /// Length of its value (bytes).
    fn len(&self) -> u64;

    /// Whether its value is a dag-pb node, and a link to it says so.
    fn is_dag_pb(&self) -> bool;

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
    /// The columns of a member of a quilt: its bytes are no range of the blob.
    pub(crate) columns: Option<Columns>,
}

impl Place {
    /// The place of a block that is a range of its blob.
    pub(crate) fn range(offset: u64, len: u64) -> Place {
        Place {
            offset,
            len,
            columns: None,
        }
    }

    /// Reads the block that lies here.
    pub(crate) async fn read(
        self,
        walrus: &dyn BlobStore,
        blob_id: &str,
        check: Check<'_>,
    ) -> Result<Bytes> {
        let Some(columns) = self.columns else {
            let reading = walrus.read_range(blob_id, self.offset, self.len, check);
            return reading.await;
        };
        let patch_id = columns.patch_id(blob_id).ok_or_else(|| {
            let text = format!("{blob_id:?} is no blob ID, so that its member has no patch ID");
            Error::new(ErrorKind::Walrus, text)
        })?;
        walrus.read_patch_of(&patch_id, self.len, check).await
    }

    /// The row of a block that lies here in the blob of `row`.
    pub(super) fn in_blob(self, row: &Record) -> Record {
        Record {
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            size: i64::try_from(self.len).unwrap_or(i64::MAX),
            patch_id: self.columns.and_then(|c| c.patch_id(&row.blob_id)),
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

/// A pack that was stored.
pub(super) struct Stored {
    pub(super) answer: StoreResult,
    pub(super) format: Format,
    pub(super) layout: Layout,
    /// The digest of the blob, if all of it was sent.
    pub(super) digest: Option<blake3::Hash>,
}

/// How blocks lie in the blobs that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A CARv2 file with an index: the blob says which blocks it holds. Blocks whose keys are no
    /// multihashes travel in blobs of their own, as [`Concat`](Self::Concat).
    Car,
    /// One block after another, nothing else.
    Concat,
    /// A quilt of Walrus, whose blocks any aggregator gives by their CIDs, where it costs at most
    /// 2 % more than [`Concat`](Self::Concat); else as [`Car`](Self::Car).
    Quilt,
}

impl Format {
    /// Divides blocks into packs, so that blocks which cannot lie in a file do not keep the others
    /// from lying in one. The order within a pack stays.
    pub(crate) fn parts<P: Parcel>(self, blocks: Vec<P>) -> Vec<Vec<P>> {
        let fits = |block: &P| self == Format::Concat || car::takes(block.key());
        let (file, others): (Vec<_>, Vec<_>) = blocks.into_iter().partition(fits);
        let mut parts = vec![file, others];
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// Stores blocks, which come in the order in which they are read, as one pack.
    pub(super) async fn store<P: Parcel>(
        self,
        blocks: &[P],
        walrus: &dyn BlobStore,
        purchase: &Purchase,
        quilts: &Quilts,
    ) -> Result<Stored> {
        if self == Format::Quilt {
            if let Some(stored) = quilts.store(blocks, walrus, purchase).await? {
                return Ok(stored);
            }
        }
        let file = match self {
            Format::Car | Format::Quilt => car::lay_out(blocks),
            Format::Concat => None,
        };
        if let Some((body, layout)) = file {
            match store_as(Format::Car, body, layout, walrus, purchase).await {
                // A single block may be too large only for what is around it.
                Err(e) if e.kind() == ErrorKind::TooLarge && may_be_sent(blocks, walrus) => {}
                stored => return stored,
            }
        }
        let (body, layout) = concat::lay_out(blocks);
        store_as(Format::Concat, body, layout, walrus, purchase).await
    }

    /// The name of the format, in the configuration and in the ledger.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Car => "car",
            Format::Concat => "concat",
            Format::Quilt => "quilt",
        }
    }
}

async fn store_as(
    format: Format,
    body: Body,
    layout: Layout,
    walrus: &dyn BlobStore,
    purchase: &Purchase,
) -> Result<Stored> {
    let sent = body.clone();
    let answer = purchase.store(walrus, body).await?;
    Ok(Stored {
        answer,
        format,
        layout,
        digest: sent.digest(),
    })
}

/// Whether publishers may take the only block of a pack by itself, as far as refusals have taught.
fn may_be_sent<P: Parcel>(blocks: &[P], walrus: &dyn BlobStore) -> bool {
    matches!(blocks, [only] if only.len() <= walrus.size_limit())
}

/// The block that is to be read back, by its number and place, to know that aggregators give the
/// whole of a stored pack: the last one, as a blob that was cut short has no such range. `None` if
/// no block has bytes.
pub(crate) fn proof(places: &[Place]) -> Option<(usize, Place)> {
    let with_bytes = places.iter().copied().enumerate();
    with_bytes
        .filter(|(_, place)| place.len > 0)
        .max_by_key(|(_, place)| (place.offset, place.columns.map(Columns::start)))
}

/// Counts the bytes of a pack while it is filled.
pub(crate) struct Fill {
    format: Format,
    target: u64,
    /// The bytes of the blocks, and of what the format puts around them.
    bytes: u64,
    blocks: usize,
    groups: car::Groups,
    /// Shards of the network, on which the layout of a quilt depends.
    n_shards: u32,
    /// The blocks, if they may become a quilt.
    lengths: Vec<quilt::Lengths>,
    refused: bool,
}

impl Fill {
    /// An empty pack, to be at most `target` bytes long.
    pub(crate) fn new(format: Format, target: u64) -> Self {
        Fill {
            format,
            target,
            bytes: 0,
            blocks: 0,
            groups: car::Groups::default(),
            n_shards: 0,
            lengths: Vec::new(),
            refused: false,
        }
    }

    /// The same for a network of so many shards.
    pub(crate) fn with_shards(self, n_shards: u32) -> Self {
        Fill { n_shards, ..self }
    }

    /// Counts a block in, unless the pack would become too long with it. The first one is taken
    /// however long it is.
    pub(crate) fn takes(&mut self, key: &str, len: u64) -> bool {
        let in_file = match self.format {
            Format::Car | Format::Quilt => self.groups.room_for(key, len),
            Format::Concat => None,
        };
        let (room, group) = in_file.map_or((len, None), |(room, group)| (room, Some(group)));
        let bytes = self.bytes + room;
        if self.blocks > 0 && bytes > self.target {
            self.refused = true;
            return false;
        }
        if self.format == Format::Quilt {
            self.lengths.extend(quilt::Lengths::of(key, len));
        }
        self.bytes = bytes;
        self.blocks += 1;
        if let Some(group) = group {
            self.groups.add(group);
        }
        true
    }

    /// How long the pack becomes (bytes). A quilt may become longer.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of the blocks that were taken travel in this pack, once it is filled; the others
    /// wait for the next one. All of them, unless the pack is full and fewer make a better quilt.
    pub(crate) fn keep(&self) -> usize {
        match self.refused && self.lengths.len() == self.blocks {
            true => quilt::keep(self.n_shards, self.target, &self.lengths),
            false => self.blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_with_bytes_proves_a_pack() {
        let place = |(offset, len)| Place::range(offset, len);
        let places = [(0, 0), (11, 0), (0, 5), (5, 6), (5, 0)].map(place);
        assert_eq!(proof(&places), Some((3, place((5, 6)))));
        assert_eq!(proof(&places[..2]), None);
        assert_eq!(proof(&[]), None);
    }

    #[test]
    fn a_pack_takes_one_block_at_least_and_then_what_fits() {
        let mut fill = Fill::new(Format::Concat, 10);
        let taken = [20, 1].map(|len| fill.takes("/a", len));
        assert_eq!(taken, [true, false]);
        // A key that is no multihash takes nothing but its bytes in either format.
        for format in [Format::Concat, Format::Car] {
            let mut fill = Fill::new(format, 10);
            let taken = [4, 6, 1, 0].map(|len| fill.takes("/a", len));
            assert_eq!(taken, [true, true, false, true]);
        }
    }
}
