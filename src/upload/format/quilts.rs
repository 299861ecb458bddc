//! Storing quilts, as plain blobs that are laid out here.
//!
//! **Problem.** The blocks of a quilt are read by their patch IDs alone. A node with a wrong
//! `nShards` would make blobs that no aggregator takes for quilts, and an aggregator before 1.29
//! knows no quilts. The blocks would be paid for, acknowledged, and lost.
//!
//! **Invariant.** No row of a member is written before an aggregator gave a member of its quilt,
//! and before the size that the publisher bills has shown that the network has as many shards as
//! were assumed. Otherwise the blocks are stored once more, in another format, and no quilt is made
//! for an hour.
//!
//! A quilt that was stored and could not be read yet is remembered: the caller tries again until
//! the aggregators answer, and a deletable blob is paid for at each store. The answer to its store
//! is the only one that names its price.
//!
//! A quilt is made in memory, because its bytes lie in another order than those of the blocks. All
//! quilts that are under way share [`MOST_BYTES`]; the others wait.
//!
//! Lock order: `refused` and `unproven` are held for a moment, never together and never across an
//! `await`. A task that waits for
//! room holds the upload's slot, and every task that has room gives it back after its upload.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::quilt::{Plan, MOST_BYTES};
use super::{proof, store_as, Body, Format, Parcel, Place, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Level, Log};
use crate::multihash::{self, Match};
use crate::patch::Columns;
use crate::upload::reuse::Purchase;
use crate::walrus::{cost, BlobStore, StoreResult};

/// How long no quilt is made after one could not be read.
const PAUSE: Duration = Duration::from_secs(3600);

/// How long a quilt that could not be read yet is remembered. Later its answer tells too little of
/// the present epoch.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// The most quilts that are remembered (some 300 bytes each).
const MOST_REMEMBERED: usize = 1024;

/// The unit in which room is given.
const MIB: u64 = 1 << 20;

/// Makes quilts of packs.
pub(crate) struct Quilts {
    n_shards: u32,
    /// The configured ceiling of a pack (bytes).
    ceiling: u64,
    log: Arc<Log>,
    /// Room for quilts in memory (MiB).
    room: Semaphore,
    /// Until when no quilt is made.
    refused: Mutex<Option<Instant>>,
    /// Quilts that were stored, and of which no member was read yet, the oldest first.
    unproven: Mutex<VecDeque<Unproven>>,
}

/// A quilt that was stored, and of which no member was read yet.
struct Unproven {
    /// The digest of its index, which names the members.
    index: blake3::Hash,
    /// The digest of all its bytes: a key that is no hash may name another value by now.
    digest: blake3::Hash,
    answer: StoreResult,
    stored: Instant,
}

impl Quilts {
    /// Quilts for a network of so many shards, of at most `ceiling` bytes each.
    pub(crate) fn new(n_shards: u32, ceiling: u64, log: Arc<Log>) -> Self {
        Quilts {
            n_shards,
            ceiling,
            log,
            room: Semaphore::new(usize::try_from(MOST_BYTES / MIB).unwrap_or(usize::MAX)),
            refused: Mutex::new(None),
            unproven: Mutex::default(),
        }
    }

    pub(crate) fn n_shards(&self) -> u32 {
        self.n_shards
    }

    /// Stores blocks as a quilt. `None` if they are better stored in another format.
    ///
    /// # Errors
    /// A block cannot be read from the local disk; those of a store, and of reading a member back.
    pub(super) async fn store<P: Parcel>(
        &self,
        blocks: &[P],
        walrus: &dyn BlobStore,
        purchase: &Purchase,
    ) -> Result<Option<Stored>> {
        if self
            .refused
            .lock()
            .is_some_and(|until| Instant::now() < until)
        {
            return Ok(None);
        }
        let ceiling = self.ceiling.min(walrus.size_limit());
        let Some(plan) = Plan::of(blocks, self.n_shards, ceiling) else {
            return Ok(None);
        };
        let room = u32::try_from(plan.len().div_ceil(MIB)).unwrap_or(u32::MAX);
        // It is never closed.
        let _room = self.room.acquire_many(room).await;
        let (body, layout) = plan.lay_out(blocks).await.map_err(|e| {
            let text = format!("reading the blocks of a pack: {e}");
            Error::retryable(ErrorKind::Disk, text).caused_by(e)
        })?;
        let index = plan.index_digest();
        let stored = match self.stored_before(index, &body).await {
            Some((digest, answer)) => Stored {
                answer,
                format: Format::Quilt,
                layout,
                digest: Some(digest),
            },
            None => match store_as(Format::Quilt, body, layout, walrus, purchase).await {
                Err(e) if e.kind() == ErrorKind::TooLarge => return Ok(None),
                stored => {
                    let stored = stored?;
                    self.remember(index, &stored);
                    stored
                }
            },
        };
        // After an error, and where the caller leaves, it stays remembered.
        let proven = self.proven(blocks, &stored, walrus).await?;
        self.unproven.lock().retain(|one| one.index != index);
        match proven {
            Ok(()) => Ok(Some(stored)),
            Err(why) => {
                *self.refused.lock() = Some(Instant::now() + PAUSE);
                self.log.push(
                    Level::Error,
                    format!(
                        "packFormat is \"quilt\", but blob {} is of no use as a quilt: {why}. Its blocks are paid for and stored again, \
                         and packs are stored as \"car\" for {} s. Check nShards (it is {}) and network, and that every aggregator of \
                         aggregatorURL is of version 1.29 or later",
                        stored.answer.blob_id,
                        PAUSE.as_secs(),
                        self.n_shards,
                    ),
                );
                Ok(None)
            }
        }
    }

    /// The answer to the store of this quilt, if that was made before and could not be proven yet.
    async fn stored_before(
        &self,
        index: blake3::Hash,
        body: &Body,
    ) -> Option<(blake3::Hash, StoreResult)> {
        let (known, answer) = {
            let mut unproven = self.unproven.lock();
            unproven.retain(|one| one.stored.elapsed() < REMEMBERED);
            let one = unproven.iter().find(|one| one.index == index)?;
            (one.digest, one.answer.clone())
        };
        let mut pieces = pin!(body.stream(MIB as usize));
        while let Some(piece) = pieces.next().await {
            piece.ok()?;
        }
        (body.digest() == Some(known)).then_some((known, answer))
    }

    /// Remembers a quilt that is to be proven.
    fn remember(&self, index: blake3::Hash, stored: &Stored) {
        let Some(digest) = stored.digest else {
            return;
        };
        let mut unproven = self.unproven.lock();
        unproven.retain(|one| one.index != index);
        if unproven.len() == MOST_REMEMBERED {
            unproven.pop_front();
        }
        unproven.push_back(Unproven {
            index,
            digest,
            // When it is used, another epoch may have begun.
            answer: StoreResult {
                start_epoch: None,
                ..stored.answer.clone()
            },
            stored: Instant::now(),
        });
    }

    /// Whether a stored quilt can be read as one; else the reason.
    async fn proven<P: Parcel>(
        &self,
        blocks: &[P],
        stored: &Stored,
        walrus: &dyn BlobStore,
    ) -> Result<std::result::Result<(), String>> {
        let blob_id = &stored.answer.blob_id;
        let n_shards = u16::try_from(self.n_shards).unwrap_or(u16::MAX);
        let expected = cost::encoded_size(stored.layout.len, n_shards);
        // Storage that was taken over may be larger.
        let is_reused = stored.answer.reused == Some(true);
        let differs = |billed, expected| billed < expected || (billed > expected && !is_reused);
        match (stored.answer.encoded_size, expected) {
            (Some(billed), Some(expected)) if differs(billed, expected) => {
                let text = format!(
                    "the network keeps {billed} bytes for it, and one of {n_shards} shards would keep {expected}"
                );
                return Ok(Err(text));
            }
            _ => {}
        }
        let places = &stored.layout.places;
        let named = |place: &Place| {
            let id = place
                .columns
                .map(|columns: Columns| columns.patch_id(blob_id));
            id.flatten().is_some()
        };
        if !places.iter().all(named) {
            return Ok(Err("that is no blob ID".to_owned()));
        }
        let Some((number, place)) = proof(places) else {
            return Ok(Ok(()));
        };
        let key = blocks[number].key();
        let check = |bytes: &[u8]| match multihash::check(key, bytes) {
            Match::No => Err("the block does not hash to its key".to_owned()),
            Match::Yes | Match::Unknown => Ok(()),
        };
        match place.read(walrus, blob_id, &check).await {
            Ok(_) => Ok(Ok(())),
            Err(e) if e.is_retryable() && e.kind() != ErrorKind::BlobNotFound => {
                let text =
                    format!("quilt {blob_id} is stored, but no block of it could be read yet");
                Err(e.context(text))
            }
            Err(e) => Ok(Err(e.message().to_owned())),
        }
    }
}
