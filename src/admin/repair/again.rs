//! Storing lost blocks again: packs of copies, and the rows that move to them.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::upload::{Carried, Fill, Pack, Parcel, Uploader};
use crate::walrus::cost::units;

/// A block of the pack that is being filled.
struct Taken {
    /// Without its value, if nothing is stored.
    block: Carried,
    /// The length of the value (bytes).
    len: u64,
}

/// The pack that is being filled, and what was stored.
pub(super) struct Again {
    uploader: Arc<Uploader>,
    n_shards: u16,
    fill: Fill,
    taken: Vec<Taken>,
    pub(super) packs: u64,
    pub(super) units: u64,
    pub(super) cost: u64,
    /// Whether blocks that were taken could not be stored.
    pub(super) failed: bool,
    /// Why the first block was not stored that no publisher takes.
    pub(super) too_large: Option<Error>,
}

impl Again {
    pub(super) fn new(uploader: Arc<Uploader>) -> Again {
        Again {
            fill: uploader.empty_pack(),
            n_shards: u16::try_from(uploader.quilts.n_shards()).unwrap_or(u16::MAX),
            uploader,
            taken: Vec::new(),
            packs: 0,
            units: 0,
            cost: 0,
            failed: false,
            too_large: None,
        }
    }

    /// Takes a block, and stores the pack first if it is full: as much of it as makes a good pack.
    /// Without `apply` it counts alone.
    pub(super) async fn add(&mut self, mut block: Carried, apply: bool) -> Result<()> {
        let len = block.len();
        while !self.fill.takes(&block.key, len) {
            let rest = self.fill.keep().min(self.taken.len());
            let rest = self.taken.split_off(rest);
            let stored = self.finish(apply).await;
            for taken in rest {
                self.fill.takes(&taken.block.key, taken.len);
                self.taken.push(taken);
            }
            stored?;
        }
        if !apply {
            block.value = Bytes::new();
        }
        self.taken.push(Taken { block, len });
        Ok(())
    }

    /// Stores what was taken. A block that no publisher takes is no failure, but remembered.
    pub(super) async fn finish(&mut self, apply: bool) -> Result<()> {
        let done = match self.store_taken(apply).await {
            Err(e) if e.kind() == ErrorKind::TooLarge => {
                self.too_large.get_or_insert(e);
                Ok(())
            }
            done => done,
        };
        self.failed |= done.is_err();
        done
    }

    async fn store_taken(&mut self, apply: bool) -> Result<()> {
        let taken = std::mem::take(&mut self.taken);
        self.fill = self.uploader.empty_pack();
        if taken.is_empty() {
            return Ok(());
        }
        if !apply {
            let bytes = taken.iter().map(|taken| taken.len).sum();
            self.packs += 1;
            self.units += units(bytes, self.n_shards).unwrap_or(0);
            return Ok(());
        }
        let blocks = taken.into_iter().map(|taken| taken.block).collect();
        let stored = |pack: &Pack| {
            self.packs += 1;
            self.units += units(pack.len, self.n_shards).unwrap_or(0);
            self.cost += u64::try_from(pack.entry().cost).unwrap_or(0);
        };
        let carrying = self.uploader.carry(blocks, |_| ready(()), stored);
        carrying.await?;
        let now = self.uploader.clock.now();
        let seen = self.uploader.epoch_clock.unsaved(now);
        self.uploader.index.saw_epochs(&seen).await
    }
}
