//! The way of blocks to Walrus: from blocks to a certified blob with rows.
//!
//! | module | holds |
//! |---|---|
//! | `gather` | the direct path: packs of the blocks that writers wait for |
//! | `ticket` | the outcome that such a writer waits for |
//! | `limit` | how many uploads run at once |
//! | `order` | the order in which the blocks of a pack are read |
//! | `format` | the layout of a pack, and which part of it is read back |
//!
//! This module holds the steps that all uploads share: [`Uploader::is_stored`] leaves out blocks
//! that need no upload, [`Uploader::store`] makes a blob of blocks, [`Uploader::place`] writes
//! their rows. Its users are the direct path (its blocks may be given up while they are under way),
//! the journal (it tries for ever, writes rows only for blocks that are still current, and has the
//! pack read back) and renewal (it stores a blob unchanged).
//!
//! The order is: upload first, index second. A failure between the two leaves a blob without a row,
//! never a row without a blob.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::{Clock, EpochClock};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::gone::Gone;
use crate::index::{Index, KeyRecord, Record, Usage};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::walrus::{BlobStore, StoreOptions, StoreResult};

mod format;
mod gather;
pub(crate) mod limit;
pub(crate) mod order;
mod ticket;

pub use format::Format;
pub(crate) use format::{car, proof, Fill, Parcel, Place};
pub(crate) use gather::{NewBlock, Packer};
use limit::UploadLimit;

/// The parts and settings that all uploads of a datastore share.
pub(crate) struct Uploader {
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) index: Arc<dyn Index>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) epoch_clock: Arc<EpochClock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    pub(crate) gone: Arc<Gone>,
    pub(crate) options: StoreOptions,
    pub(crate) format: Format,
    /// The configured ceiling of a pack (bytes).
    pub(crate) target_bytes: u64,
    pub(crate) limit: UploadLimit,
    /// Rows whose storage ends sooner than this do not count as stored.
    pub(crate) fresh_for: Duration,
}

/// The outcome of a pack that was sent.
pub(crate) enum Sent {
    Stored(Pack),
    /// No publisher takes so many bytes. The blocks from this number on are to be sent by
    /// themselves.
    TooLarge(usize),
    Failed(Error),
}

/// A certified pack.
pub(crate) struct Pack {
    /// The row of each of its blocks, without the block's place.
    row: Record,
    /// Where the blocks lie, in the order in which they were given.
    pub(crate) places: Vec<Place>,
    /// Length of the blob (bytes).
    pub(crate) len: u64,
}

impl Pack {
    pub(crate) fn blob_id(&self) -> &str {
        &self.row.blob_id
    }
}

impl Uploader {
    /// The ceiling of a pack now: the configured one, or less if the publishers refuse that.
    pub(crate) fn target(&self) -> u64 {
        self.target_bytes.min(self.store.size_limit()).max(1)
    }

    /// Whether a value of `len` bytes is stored already, so that it needs no upload. `row` is the
    /// row that the index, and not memory, holds under its key. `same` is the caller's knowledge
    /// beyond the row: that the bytes stored under this key are this value (the key names the
    /// content) and that they can be read.
    ///
    /// The row counts if it has the value's length, is not of a block that a Go node has staged,
    /// does not end too soon, and points at a blob that no read has shown to be gone.
    pub(crate) fn is_stored(&self, row: Option<&Record>, len: u64, same: bool) -> bool {
        row.is_some_and(|row| {
            same && i64::try_from(len) == Ok(row.size)
                && row.is_fresh(self.clock.now() + self.fresh_for, &self.epoch_clock)
                && !self.gone.contains(&row.blob_id)
        })
    }

    /// A pack to be filled with blocks.
    pub(crate) fn empty_pack(&self) -> Fill {
        Fill::new(self.format, self.target())
    }

    /// Stores blocks as one pack.
    pub(crate) async fn store<P: Parcel>(&self, blocks: &[P]) -> Sent {
        let metrics = &self.metrics;
        let sent = self.format.store(blocks, &*self.store, self.options);
        match caught(sent).await {
            Ok((stored, layout)) => {
                Metrics::add(&metrics.packs_stored, 1);
                Metrics::add(&metrics.pack_bytes, layout.len);
                Metrics::add(&metrics.blocks_packed, blocks.len() as u64);
                Sent::Stored(Pack {
                    row: self.certified(&stored, self.options),
                    places: layout.places,
                    len: layout.len,
                })
            }
            Err(e) if e.kind() == ErrorKind::TooLarge && blocks.len() > 1 => {
                Metrics::add(&metrics.packs_split, 1);
                Sent::TooLarge(middle(blocks.iter().map(P::len)))
            }
            Err(e) => {
                Metrics::add(&metrics.packs_failed, 1);
                Sent::Failed(e)
            }
        }
    }

    /// Notes that a blob was certified. Returns the row of a block in it, without the block's
    /// place.
    pub(crate) fn certified(&self, stored: &StoreResult, options: StoreOptions) -> Record {
        self.gone.remove(&stored.blob_id);
        Record {
            blob_id: stored.blob_id.clone(),
            deletable: options.deletable,
            end_epoch: i64::try_from(stored.end_epoch).unwrap_or(i64::MAX),
            expires_at: self.expiry(stored, options.epochs),
            ..Record::default()
        }
    }

    /// When the storage of a blob that was just stored ends, as far as the publisher's answer
    /// tells.
    fn expiry(&self, stored: &StoreResult, epochs: u32) -> Option<SystemTime> {
        let now = self.clock.now();
        match stored.start_epoch {
            // An end that is later than the epochs that were asked for does not make the renewal
            // later.
            Some(start) => {
                let asked = start.saturating_add(u64::from(epochs));
                let end = stored.end_epoch.min(asked);
                self.epoch_clock.expires_at(now, start, end)
            }
            None => self.epoch_clock.expires_at_least(now, epochs),
        }
    }

    /// Writes the rows of a pack's blocks, all or none, and counts the change of the totals.
    /// `replaced` holds for each block the usage of the row that its own replaces; a block with
    /// `None` gets no row.
    pub(crate) async fn place<P: Parcel>(
        &self,
        pack: &Pack,
        blocks: &[P],
        replaced: Vec<Option<Usage>>,
    ) -> Result<()> {
        let mut rows = Vec::with_capacity(blocks.len());
        let mut delta = Usage::default();
        for ((block, place), replaced) in blocks.iter().zip(&pack.places).zip(replaced) {
            let Some(replaced) = replaced else {
                continue;
            };
            let record = place.in_blob(&pack.row);
            delta = delta.plus(usage_of(Some(&record))).minus(replaced);
            rows.push(KeyRecord {
                key: block.key().to_owned(),
                record,
            });
        }
        if !rows.is_empty() {
            caught(self.index.put_many(&rows)).await?;
            self.metrics.usage_delta(delta);
        }
        Ok(())
    }
}

/// The blocks and bytes that a row adds to the totals.
pub(crate) fn usage_of(row: Option<&Record>) -> Usage {
    row.map_or(Usage::default(), |row| Usage {
        blocks: 1,
        bytes: row.size.max(0),
    })
}

/// Where to cut a list of at least two lengths, so that the first part holds half of the bytes and
/// both parts hold at least one length.
fn middle(lengths: impl ExactSizeIterator<Item = u64> + Clone) -> usize {
    let total: u64 = lengths.clone().sum();
    let most = lengths.len() - 1;
    let mut bytes = 0;
    let at = lengths.into_iter().position(|len| {
        bytes += len;
        bytes * 2 >= total
    });
    (at.unwrap_or(0) + 1).min(most)
}
