//! Storing lost blocks again: packs of copies, and the rows that move to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::{Clock, EpochClock};
use crate::config::Config;
use crate::error::{caught, Result};
use crate::gone;
use crate::index::{Index, KeyRecord};
use crate::upload::limit::UploadLimit;
use crate::upload::{Fill, Parcel, Quilts, Sent, Uploader};
use crate::walrus::cost::units;
use crate::walrus::{BlobStore, Body, StoreOptions};

/// A copy of a lost block on its way to a new blob.
pub(super) struct Carried {
    pub(super) key: String,
    pub(super) value: Bytes,
    /// The blob that has lost it.
    pub(super) from: String,
}

impl Parcel for Carried {
    fn key(&self) -> &str {
        &self.key
    }

    fn len(&self) -> u64 {
        self.value.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        // The codec is known from links, which are not looked for. Importers find a block under
        // any.
        false
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.value.clone());
    }
}

/// The pack that is being filled, and what was stored.
pub(super) struct Again {
    uploader: Uploader,
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
    pub(super) fn new(
        config: &Config,
        index: &Arc<dyn Index>,
        store: &Arc<dyn BlobStore>,
        clock: &Arc<dyn Clock>,
    ) -> Again {
        let mut options = StoreOptions::new(config.epochs);
        options.deletable = config.deletable;
        let uploader = Uploader {
            store: Arc::clone(store),
            index: Arc::clone(index),
            clock: Arc::clone(clock),
            epoch_clock: Arc::new(EpochClock::new(config.epoch_duration)),
            metrics: Arc::default(),
            log: Arc::default(),
            gone: Arc::new(gone::none()),
            options,
            format: config.pack_format,
            quilts: Quilts::new(
                config.n_shards,
                config.pack_target_size_bytes,
                Arc::default(),
            ),
            target_bytes: config.pack_target_size_bytes,
            limit: UploadLimit::new(config.workers),
            fresh_for: std::time::Duration::ZERO,
            spare_for: std::time::Duration::ZERO,
        };
        Again {
            fill: uploader.empty_pack(),
            uploader,
            n_shards: u16::try_from(config.n_shards).unwrap_or(u16::MAX),
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
        let mut stack = self.uploader.format.parts(blocks);
        while let Some(mut blocks) = stack.pop() {
            let sent = self.uploader.store(&blocks).await;
            match sent {
                Sent::Stored(pack) => {
                    let read_back = self.uploader.read_back(&pack, |n| &blocks[n].value);
                    read_back.await.map_err(|e| {
                        let id = pack.blob_id();
                        e.context(format!(
                            "blob {id} is stored and paid for, but cannot be read back"
                        ))
                    })?;
                    self.packs += 1;
                    self.units += units(pack.len, self.n_shards).unwrap_or(0);
                    self.cost += u64::try_from(pack.entry().cost).unwrap_or(0);
                    self.move_rows(&pack, &blocks).await?;
                }
                Sent::TooLarge(at) => {
                    let rest = blocks.split_off(at);
                    stack.push(rest);
                    stack.push(blocks);
                }
                Sent::Failed(e) => return Err(e),
            }
        }
        let now = self.uploader.clock.now();
        let seen = self.uploader.epoch_clock.unsaved(now);
        self.uploader.index.saw_epochs(&seen).await
    }

    async fn move_rows(&self, pack: &crate::upload::Pack, blocks: &[Carried]) -> Result<()> {
        let mut by_blob: BTreeMap<&str, Vec<KeyRecord>> = BTreeMap::new();
        for (block, row) in blocks.iter().zip(pack.rows(blocks)) {
            by_blob.entry(&block.from).or_default().push(row);
        }
        let mut entry = pack.entry().clone();
        for (from, rows) in by_blob {
            caught(self.uploader.index.move_to(from, &entry, &rows)).await?;
            // The price was noted with the first of them.
            entry.cost = 0;
        }
        Ok(())
    }
}
