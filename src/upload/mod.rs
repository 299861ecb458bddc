//! The way of blocks to Walrus: from blocks to a certified blob with rows.
//!
//! | module | holds |
//! |---|---|
//! | `adopt` | blocks that nodes with the Go plugin have staged and left behind |
//! | `carry` | blocks that move from one blob to another |
//! | `gather` | the direct path: packs of the blocks that writers wait for |
//! | `ticket` | the outcome that such a writer waits for |
//! | `limit` | how many uploads run at once |
//! | `order` | the order in which the blocks of a pack are read |
//! | `format` | the layout of a pack, and which part of it is read back |
//! | `reuse` | the storage that deleted blobs have left |
//! | `unproven` | packs that are paid for and could not be read back |
//!
//! This module holds the steps that all uploads share: [`Uploader::is_stored`] leaves out blocks
//! that need no upload, [`Uploader::bring_back`] spares the upload of deleted blocks whose blobs
//! still live, [`Uploader::store`] makes a blob of blocks, [`Uploader::place`] writes
//! their rows. Its users are the direct path (its blocks may be given up while they are under way),
//! the journal (it tries for ever, writes rows only for blocks that are still current, and has the
//! pack read back) and renewal (it stores a blob unchanged).
//!
//! The order is: upload first, index second. A failure between the two leaves a blob without a row,
//! never a row without a blob.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{self, StreamExt as _};

use crate::backoff::doubled;
use crate::clock::{Clock, EpochClock};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::gone::Gone;
use crate::index::{Blob, Index, KeyRecord, Record, Traces, Usage};
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::recent::Recent;
use crate::trace::{self, Span};
use crate::walrus::{BlobStore, StoreOptions, StoreResult};

pub(crate) mod adopt;
mod carry;
mod format;
mod gather;
pub(crate) mod limit;
pub(crate) mod order;
pub(crate) mod reuse;
mod ticket;
mod unproven;

pub use adopt::Adopted;
pub(crate) use carry::Carried;
pub use format::Format;
pub(crate) use format::{car, proof, quilt, Fill, Parcel, Place, Quilts};
pub(crate) use gather::{NewBlock, Packer};
use limit::UploadLimit;
use reuse::{Purchase, Reuse};
pub(crate) use unproven::{InMemory, Unproven};

/// How long a pack that was just stored is looked for.
const LOOK: Duration = Duration::from_secs(300);
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(10);

/// How many blobs with deleted blocks are looked at at a time, and how many are remembered for how
/// long.
const LOOKS: usize = 8;
const READABLE_REMEMBERED: usize = 65_536;
const READABLE_FOR: Duration = Duration::from_secs(600);
const UNREADABLE_FOR: Duration = Duration::from_secs(60);
/// How long the looks for one write take at most.
const LOOKS_FOR: Duration = Duration::from_secs(10);

/// No blob was read yet, and none could not be.
pub(crate) fn none_looked_at() -> (Recent<String>, Recent<String>) {
    let none = |time| Recent::new(READABLE_REMEMBERED, time);
    (none(READABLE_FOR), none(UNREADABLE_FOR))
}

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
    /// The storage that deleted blobs have left, if it is used again.
    pub(crate) reuse: Option<Arc<Reuse>>,
    pub(crate) format: Format,
    pub(crate) quilts: Quilts,
    /// The configured ceiling of a pack (bytes).
    pub(crate) target_bytes: u64,
    pub(crate) limit: UploadLimit,
    pub(crate) unproven: Unproven,
    /// Blobs that were read lately, since deleted blocks of theirs were put again.
    pub(crate) readable: Recent<String>,
    /// Those of which that has failed.
    pub(crate) unreadable: Recent<String>,
    /// Rows whose storage ends sooner than this do not count as stored.
    pub(crate) fresh_for: Duration,
    /// The row of a deleted block whose storage ends sooner than this is not brought back for a
    /// put: a blob without live rows is not renewed, and the next round must come in time.
    pub(crate) spare_for: Duration,
}

/// The outcome of a pack that was sent.
pub(crate) enum Sent {
    Stored(Box<Pack>),
    /// No publisher takes so many bytes. The blocks from this number on are to be sent by
    /// themselves.
    TooLarge(usize),
    Failed(Error),
}

/// A certified pack.
#[derive(Debug, Clone)]
pub(crate) struct Pack {
    /// Its entry in the ledger.
    blob: Blob,
    /// Where the blocks lie, in the order in which they were given.
    pub(crate) places: Vec<Place>,
    /// Length of the blob (bytes).
    pub(crate) len: u64,
}

impl Pack {
    /// Its entry in the ledger.
    pub(crate) fn entry(&self) -> &Blob {
        &self.blob
    }

    /// The rows of its blocks, which are given in the order of its places.
    pub(crate) fn rows<P: Parcel>(&self, blocks: &[P]) -> Vec<KeyRecord> {
        let row = self.blob.row();
        let placed = blocks.iter().zip(&self.places);
        let row_of = |(block, place): (&P, &Place)| KeyRecord {
            key: block.key().to_owned(),
            record: place.in_blob(&row),
        };
        placed.map(row_of).collect()
    }

    pub(crate) fn blob_id(&self) -> &str {
        &self.blob.blob_id
    }
}

impl Uploader {
    /// The ceiling of a pack now: the configured one, or less if the publishers refuse that, or if
    /// storage is left that is only a little smaller.
    pub(crate) fn target(&self) -> u64 {
        let most = self.target_bytes.min(self.store.size_limit()).max(1);
        let reuse = self.reuse.as_ref();
        reuse.map_or(most, |reuse| reuse.full_pack(most))
    }

    /// Whether a value of `len` bytes is stored already, so that it needs no upload. `row` is the
    /// row that the index, and not memory, holds under its key. `same` is the caller's knowledge
    /// beyond the row: that the bytes stored under this key are this value (the key names the
    /// content) and that they can be read.
    ///
    /// The row counts if it has the value's length, is not of a block that a Go node has staged,
    /// does not end too soon, and points at a blob that no read has shown to be gone.
    pub(crate) fn is_stored(&self, row: Option<&Record>, len: u64, same: bool) -> bool {
        row.is_some_and(|row| same && self.lasts(row, len, self.fresh_for))
    }

    /// Whether a row is of `len` bytes that are stored for at least `time`, as far as this node
    /// knows.
    fn lasts(&self, row: &Record, len: u64, time: Duration) -> bool {
        i64::try_from(len) == Ok(row.size)
            && row.is_fresh(self.clock.now() + time, &self.epoch_clock)
            && !self.gone.contains(&row.blob_id)
    }

    /// The rows of keys, as the index itself, and not memory, holds them: one round trip. Where
    /// deleted rows are kept, those come along.
    pub(crate) async fn look_up(&self, keys: &[String]) -> Result<Vec<Traces>> {
        if !self.index.keeps_deleted().is_zero() {
            return self.index.get_with_deleted(keys).await;
        }
        let rows = self.index.get_many(keys).await?.into_iter();
        let traces = rows.map(|live| Traces {
            live,
            deleted: None,
        });
        Ok(traces.collect())
    }

    /// The deleted row that may be brought back instead of storing a value of `len` bytes, if there
    /// is one. `same` as in [`is_stored`](Self::is_stored). A member of a quilt does not count: it
    /// cannot be read back as a part of its blob.
    pub(crate) fn spare<'a>(&self, traces: &'a Traces, len: u64, same: bool) -> Option<&'a Record> {
        let row = traces.deleted.as_ref()?;
        let may = same && traces.live.is_none() && row.patch_id.is_none();
        (may && self.lasts(row, len, self.spare_for)).then_some(row)
    }

    /// Of these [spares](Self::spare), those whose blobs still give their bytes: a block of each
    /// blob is read, unless that was done lately. A row may have been deleted because its blob was
    /// found lost. A blob that cannot be read soon counts as lost: its blocks are stored anew,
    /// which loses nothing. The caller may hold keys: it does not wait for an aggregator that
    /// hangs.
    pub(crate) async fn readable(&self, spares: Vec<KeyRecord>) -> Vec<KeyRecord> {
        let mut blobs: BTreeMap<String, Vec<KeyRecord>> = BTreeMap::new();
        for spare in spares {
            let blob = spare.record.blob_id.clone();
            blobs.entry(blob).or_default().push(spare);
        }
        let until = tokio::time::Instant::now() + LOOKS_FOR;
        let looks = blobs.into_iter().map(|(blob_id, spares)| async move {
            let gives = match self.readable.contains(&blob_id) {
                true => true,
                false if self.unreadable.contains(&blob_id) => false,
                false => self.gives(&spares, until).await,
            };
            gives.then_some(spares)
        });
        let looks = stream::iter(looks.collect::<Vec<_>>()).buffered(LOOKS);
        let found: Vec<Option<Vec<KeyRecord>>> = looks.collect().await;
        found.into_iter().flatten().flatten().collect()
    }

    /// Whether the least of these blocks, which lie in one blob, can be read there until a moment.
    async fn gives(&self, spares: &[KeyRecord], until: tokio::time::Instant) -> bool {
        // An empty block proves nothing, and cannot be lost.
        let with_bytes = spares.iter().filter(|spare| spare.record.size > 0);
        let Some(row) = with_bytes.min_by_key(|spare| spare.record.size) else {
            return true;
        };
        let Ok(range) = row.record.range() else {
            return false;
        };
        let check = |bytes: &[u8]| match multihash::check(&row.key, bytes) {
            Match::Yes => Ok(()),
            _ => Err("the block does not hash to its key".to_owned()),
        };
        let (id, len) = (&row.record.blob_id, range.end - range.start);
        let read = self.store.read_range(id, range.start, len, &check);
        let read = tokio::time::timeout_at(until, caught(read)).await;
        let late = |_| Err(Error::retryable(ErrorKind::Walrus, "no answer in time"));
        match read.unwrap_or_else(late) {
            Ok(_) => {
                self.readable.insert(id.clone());
                true
            }
            Err(e) => {
                self.unreadable.insert(id.clone());
                if e.kind() == ErrorKind::BlobNotFound {
                    self.gone.insert(id.clone());
                }
                let text = format!(
                    "blob {id} has deleted blocks that are put again, and cannot be read, so they are stored anew: {e}"
                );
                self.log.alike("spare", Level::Warn, text);
                false
            }
        }
    }

    /// Whether the blob of a row is still stored, as far as this node knows.
    pub(crate) fn is_alive(&self, row: &Record) -> bool {
        row.is_fresh(self.clock.now(), &self.epoch_clock) && !self.gone.contains(&row.blob_id)
    }

    /// Brings deleted rows back where they are still kept and their keys have no row, and counts
    /// the change of the totals. Returns the keys that have their row again. The caller holds the
    /// keys. If it has no other copy of the blocks, it asks for the [readable](Self::readable) ones
    /// first, or reads their blobs back afterwards.
    pub(crate) async fn bring_back(&self, rows: &[KeyRecord]) -> Result<HashSet<String>> {
        if rows.is_empty() {
            return Ok(HashSet::new());
        }
        let back = caught(self.index.undelete(rows)).await?;
        let back: HashSet<String> = back.into_iter().collect();
        let counted = rows.iter().filter(|row| back.contains(&row.key));
        let usage = counted.fold(Usage::default(), |sum, row| {
            sum.plus(usage_of(Some(&row.record)))
        });
        self.metrics.usage_delta(usage);
        Metrics::add(&self.metrics.blocks_undeleted, back.len() as u64);
        Ok(back)
    }

    /// A pack to be filled with blocks.
    pub(crate) fn empty_pack(&self) -> Fill {
        Fill::new(self.format, self.target()).with_shards(self.quilts.n_shards())
    }

    /// Stores blocks as one pack.
    pub(crate) async fn store<P: Parcel>(&self, blocks: &[P]) -> Sent {
        let metrics = &self.metrics;
        let (begun, ceiling) = (Instant::now(), self.target());
        let purchase = Purchase {
            options: self.options,
            reuse: self.reuse.clone(),
        };
        let sent = self
            .format
            .store(blocks, &*self.store, &purchase, &self.quilts);
        let span = trace::begin("upload").map(|span| {
            let bytes: u64 = blocks.iter().map(P::len).sum();
            span.with("blocks", blocks.len() as u64)
                .with("bytes", bytes)
        });
        let sent = caught(sent).await;
        Span::done(span, &sent);
        if let Some(reuse) = &self.reuse {
            if reuse.is_ignored() {
                let text = "reuseStorage: the publisher has bought storage several times although deleted blobs have left \
                            some; it must know reuse_resources, and spend from the wallet that walrusCommand deletes from";
                self.log.alike("reuse", Level::Warn, text);
            }
            // Another process must not count on what was used. If it does, it buys for too short.
            if let Err(e) = caught(reuse.note(&*self.index)).await {
                let text = format!("what storage is left could not be noted: {e}");
                self.log.push(Level::Warn, text);
            }
        }
        match sent {
            Ok(stored) => {
                let layout = stored.layout;
                Metrics::add(&metrics.packs_stored, 1);
                Metrics::add(&metrics.pack_bytes, layout.len);
                Metrics::add(&metrics.blocks_packed, blocks.len() as u64);
                let format = stored.format.name();
                metrics.uploads.stored(begun, format, layout.len, ceiling);
                Sent::Stored(Box::new(Pack {
                    blob: Blob {
                        format: stored.format.name().to_owned(),
                        size: i64::try_from(layout.len).unwrap_or(i64::MAX),
                        digest: digest_text(stored.digest),
                        ..self.certified(&stored.answer, self.options)
                    },
                    places: layout.places,
                    len: layout.len,
                }))
            }
            Err(e) if e.kind() == ErrorKind::TooLarge && blocks.len() > 1 => {
                Metrics::add(&metrics.packs_split, 1);
                Sent::TooLarge(middle(blocks.iter().map(P::len)))
            }
            Err(e) => {
                Metrics::add(&metrics.packs_failed, 1);
                metrics.uploads.failed(begun);
                Sent::Failed(e)
            }
        }
    }

    /// As [`store`](Self::store), for blocks whose pack is [read back](Self::read_back). One that
    /// was stored before, and could not be read back, is not paid for again.
    pub(crate) async fn store_unless_paid<P: InMemory>(&self, blocks: &[P]) -> Sent {
        let lasts = |pack: &Pack| {
            let until = self.clock.now() + self.fresh_for;
            pack.blob.row().is_fresh(until, &self.epoch_clock)
        };
        match self.unproven.of(blocks, lasts) {
            Some(pack) => Sent::Stored(Box::new(pack)),
            None => self.store(blocks).await,
        }
    }

    /// Reads a part of the pack of these blocks back, once.
    pub(crate) async fn read_back<P: InMemory>(&self, pack: &Pack, blocks: &[P]) -> Result<()> {
        let read = self.read_proof(pack, blocks).await;
        self.unproven.note(pack, blocks, read.is_ok());
        read
    }

    async fn read_proof<P: InMemory>(&self, pack: &Pack, blocks: &[P]) -> Result<()> {
        let Some((number, place)) = proof(&pack.places) else {
            return Ok(());
        };
        let expected = blocks[number].value();
        let check = |bytes: &[u8]| match bytes == &**expected {
            true => Ok(()),
            false => Err("the bytes are not those that were stored".to_owned()),
        };
        let reading = place.read(&*self.store, pack.blob_id(), &check);
        caught(reading).await.map(drop)
    }

    /// As [`read_back`](Self::read_back), again and again for a while: an aggregator may need time
    /// to find a blob that was just stored.
    pub(crate) async fn read_back_soon<P: InMemory>(
        &self,
        pack: &Pack,
        blocks: &[P],
    ) -> Result<()> {
        let begun = Instant::now();
        let mut failures = 0;
        let read = loop {
            match self.read_proof(pack, blocks).await {
                Ok(()) => break Ok(()),
                Err(e) if begun.elapsed() >= LOOK => {
                    let text = format!(
                        "blob {} is stored, but cannot be read for {} s; check aggregatorURL",
                        pack.blob_id(),
                        LOOK.as_secs()
                    );
                    break Err(e.context(text));
                }
                Err(_) => {
                    if failures == 0 {
                        // Also for a caller that is given up meanwhile.
                        self.unproven.note(pack, blocks, false);
                    }
                    let pause = doubled(LOOK_FIRST, failures, LOOK_MAX);
                    failures += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        };
        if read.is_ok() {
            self.unproven.note(pack, blocks, true);
        }
        read
    }

    /// Notes that a blob was certified. Returns what the publisher's answer tells of it.
    pub(crate) fn certified(&self, stored: &StoreResult, options: StoreOptions) -> Blob {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.gone.remove(&stored.blob_id);
        self.metrics.uploads.succeeded();
        Blob {
            blob_id: stored.blob_id.clone(),
            object_id: stored.object_id.clone().unwrap_or_default(),
            encoded_size: number(stored.encoded_size.unwrap_or(0)),
            cost: number(stored.cost),
            deletable: options.deletable,
            registered_epoch: number(stored.start_epoch.unwrap_or(0)),
            end_epoch: number(stored.end_epoch),
            expires_at: self.expiry(stored, options.epochs),
            ..Blob::default()
        }
    }

    /// When the storage of a blob that was just stored ends, as far as the publisher's answer
    /// tells.
    fn expiry(&self, stored: &StoreResult, epochs: u32) -> Option<SystemTime> {
        let now = self.clock.now();
        match stored.start_epoch {
            // An end that is later than the epochs that were asked for does not make the renewal
            // later, unless the storage of a deleted blob was taken, which has its own end.
            Some(start) => {
                let asked = start.saturating_add(u64::from(epochs));
                let end = match stored.reused {
                    Some(true) => stored.end_epoch,
                    _ => stored.end_epoch.min(asked),
                };
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
        for (row, replaced) in pack.rows(blocks).into_iter().zip(replaced) {
            let Some(replaced) = replaced else {
                continue;
            };
            delta = delta.plus(usage_of(Some(&row.record))).minus(replaced);
            rows.push(row);
        }
        if !rows.is_empty() {
            let span = trace::begin("index_write");
            let span = span.map(|span| span.with("rows", rows.len() as u64));
            let placed = caught(self.index.place(&pack.blob, &rows)).await;
            Span::done(span, &placed);
            placed?;
            self.metrics.usage_delta(delta);
        }
        Ok(())
    }
}

/// A digest as the ledger keeps it; empty if it is not known.
pub(crate) fn digest_text(digest: Option<blake3::Hash>) -> String {
    digest.map_or_else(String::new, |digest| digest.to_hex().to_string())
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
