//! Storing lost blocks again: packs of copies, and the rows that move to them.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::upload::{Carried, Fill, Pack, Parcel, Uploader};
use crate::walrus::cost::units;

/// The pack that is being filled, and what was stored.
pub(super) struct Again {
    uploader: Arc<Uploader>,
    n_shards: u16,
    fill: Fill,
    blocks: Vec<Carried>,
    bytes: u64,
    pub(super) packs: u64,
    pub(super) units: u64,
    pub(super) cost: u64,
    /// Whether blocks that were taken could not be stored.
    pub(super) failed: bool,
}

impl Again {
    pub(super) fn new(uploader: Arc<Uploader>) -> Again {
        Again {
            fill: uploader.empty_pack(),
            n_shards: u16::try_from(uploader.quilts.n_shards()).unwrap_or(u16::MAX),
            uploader,
            blocks: Vec::new(),
            bytes: 0,
            packs: 0,
            units: 0,
            cost: 0,
            failed: false,
        }
    }

    /// Takes a block, and stores the pack first if it is full. Without `apply` it counts alone.
    pub(super) async fn add(&mut self, mut block: Carried, apply: bool) -> Result<()> {
        let len = block.len();
        if !self.fill.takes(&block.key, len) {
            self.finish(apply).await?;
            self.fill.takes(&block.key, len);
        }
        self.bytes += len;
        if !apply {
            block.value = Bytes::new();
        }
        self.blocks.push(block);
        Ok(())
    }

    /// Stores what was taken.
    pub(super) async fn finish(&mut self, apply: bool) -> Result<()> {
        let done = self.store_taken(apply).await;
        self.failed |= done.is_err();
        done
    }

    async fn store_taken(&mut self, apply: bool) -> Result<()> {
        let blocks = std::mem::take(&mut self.blocks);
        let bytes = std::mem::take(&mut self.bytes);
        self.fill = self.uploader.empty_pack();
        if blocks.is_empty() {
            return Ok(());
        }
        if !apply {
            self.packs += 1;
            self.units += units(bytes, self.n_shards).unwrap_or(0);
            return Ok(());
        }
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
