//! Blocks become full packs, and packs are stored.
//!
//! **Invariants.**
//! - A pack is sent when it is full; the last one need not be. If the import ends early, what is
//!   not being uploaded yet is left to the next run.
//! - The keys of a pack are locked from the lookup that decides which of its blocks are stored,
//!   until their rows are written: a put or a deletion of this process comes before or after. An
//!   upload that was begun goes on if its import is dropped, and closing the datastore waits for
//!   it, so that the locks last as long as the write.
//! - The blob is certified, and a part of it was read back, before the first row points at it.
//! - A pack that is paid for gets its rows, though the index is away for a while.
//!
//! **Locks.** A pack takes its part of the memory, then its keys, then its turn to upload. Packs
//! that share a key wait for each other while they hold memory, and the one that has the keys needs
//! no more of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::reading::Ready;
use super::report::Report;
use super::target::Target;
use crate::backoff::{doubled, jittered};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::Usage;
use crate::log::Level;
use crate::upload::order::Order;
use crate::upload::{usage_of, Fill, Pack, Parcel as _, Sent, Uploader};
use crate::walrus::cost::units;

/// The unit in which memory is shared (bytes): a semaphore counts up to a limit.
const GRAIN: u64 = 64 << 10;

/// How long the rows of a pack that is paid for wait for an index that is away.
const PATIENCE: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The pack that is being filled, and those on their way.
pub(super) struct Packs {
    target: Target,
    fill: Fill,
    blocks: Vec<Ready>,
    /// The keys of `blocks`: a source may name a block twice.
    keys: HashSet<String>,
    order: Order,
    memory: Arc<Semaphore>,
    grains: u32,
    uploads: JoinSet<Result<Report>>,
    halt: CancellationToken,
}

impl Packs {
    /// When `halt` is cancelled, packs whose upload has not begun are dropped.
    pub(super) fn new(target: Target, memory_bytes: u64, halt: CancellationToken) -> Packs {
        let grains = u32::try_from(memory_bytes / GRAIN).unwrap_or(u32::MAX >> 4);
        let grains = grains.clamp(1, u32::MAX >> 4);
        Packs {
            fill: target.uploader.empty_pack(),
            target,
            blocks: Vec::new(),
            keys: HashSet::new(),
            order: Order::new(),
            memory: Arc::new(Semaphore::new(grains as usize)),
            grains,
            uploads: JoinSet::new(),
            halt,
        }
    }

    /// Takes a block. Full packs are sent, which waits for memory.
    pub(super) async fn add(&mut self, block: Ready, report: &mut Report) {
        if self.keys.contains(&block.key) {
            return report.known.add(block.len);
        }
        while !self.fill.takes(&block.key, block.len) {
            let keep = self.fill.keep().clamp(1, self.blocks.len().max(1));
            let rest = self.blocks.split_off(keep.min(self.blocks.len()));
            self.send(report).await;
            for block in rest {
                // They are fewer than a pack.
                self.fill.takes(&block.key, block.len);
                self.keys.insert(block.key.clone());
                self.blocks.push(block);
            }
        }
        self.keys.insert(block.key.clone());
        self.blocks.push(block);
    }

    /// Sends the blocks that were taken as a pack.
    pub(super) async fn send(&mut self, report: &mut Report) {
        let mut blocks = std::mem::take(&mut self.blocks);
        self.keys.clear();
        let fill = std::mem::replace(&mut self.fill, self.target.uploader.empty_pack());
        if blocks.is_empty() {
            return;
        }
        if !self.target.applies() {
            report.packs += 1;
            report.pack_bytes += fill.bytes();
            report.units += units_of(&self.target, fill.bytes());
            blocks.iter().for_each(|block| report.stored.add(block.len));
            return;
        }
        self.order.arrange_and_mark(
            &mut blocks,
            |block| (&block.key, &block.value),
            |block| block.is_dag_pb = true,
        );
        let grains = u32::try_from(fill.bytes().div_ceil(GRAIN)).unwrap_or(self.grains);
        let memory = Arc::clone(&self.memory).acquire_many_owned(grains.clamp(1, self.grains));
        // The semaphore is never closed.
        let Ok(memory) = memory.await else {
            return;
        };
        let (target, halt) = (self.target.clone(), self.halt.clone());
        self.uploads.spawn(caught(async move {
            upload(target, blocks, memory, &halt).await
        }));
    }

    /// Waits for the end of one upload; pending for ever while there is none.
    pub(super) async fn ended(&mut self) -> Result<Report> {
        match self.uploads.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(e)) => Err(Error::new(ErrorKind::Internal, format!("an upload: {e}"))),
            None => std::future::pending().await,
        }
    }

    /// Whether uploads are on their way.
    pub(super) fn are_under_way(&self) -> bool {
        !self.uploads.is_empty()
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        self.uploads.detach_all();
    }
}

fn units_of(target: &Target, len: u64) -> u64 {
    let n_shards = target.uploader.quilts.n_shards();
    units(len, u16::try_from(n_shards).unwrap_or(u16::MAX)).unwrap_or(0)
}

/// Stores the blocks of a pack that the index lacks, and writes their rows.
async fn upload(
    target: Target,
    mut blocks: Vec<Ready>,
    _memory: OwnedSemaphorePermit,
    halt: &CancellationToken,
) -> Result<Report> {
    let uploader = &target.uploader;
    let mut report = Report::default();
    let keys: Vec<String> = blocks.iter().map(|block| block.key.clone()).collect();
    let _held = target.locks.lock(keys.clone()).await;
    // An earlier pack of this import, or a node, may have stored some of them by now.
    let rows = uploader.look_up(&keys).await?;
    let mut replaced = std::collections::HashMap::new();
    let mut rows = rows.into_iter();
    blocks.retain(|block| {
        let live = rows.next().and_then(|traces| traces.live);
        let known = uploader.is_stored(live.as_ref(), block.len, block.names_content);
        if known {
            report.known.add(block.len);
        } else if live.is_some() {
            replaced.insert(block.key.clone(), usage_of(live.as_ref()));
        }
        !known
    });
    let mut stack = uploader.format.parts(blocks);
    while let Some(mut part) = stack.pop() {
        let permit = tokio::select! {
            biased;
            // Nothing is paid for yet.
            () = halt.cancelled() => return Ok(report),
            permit = uploader.limit.acquire() => permit,
        };
        let throttled = uploader.store.throttled();
        let sent = uploader.store_unless_paid(&part).await;
        permit.report(uploader.store.throttled() != throttled);
        drop(permit);
        match sent {
            Sent::Stored(pack) => {
                uploader.read_back_soon(&pack, &part).await?;
                let usage = |block: &Ready| Some(replaced.get(&block.key).copied().unwrap_or(NONE));
                let replaces = part.iter().map(usage).collect();
                place(uploader, &pack, &part, replaces).await?;
                report.packs += 1;
                report.pack_bytes += pack.len;
                report.units += units_of(&target, pack.len);
                report.cost += u64::try_from(pack.entry().cost).unwrap_or(0);
                part.iter().for_each(|block| report.stored.add(block.len()));
            }
            Sent::TooLarge(at) => {
                let rest = part.split_off(at);
                stack.push(rest);
                stack.push(part);
            }
            Sent::Failed(e) => return Err(e),
        }
    }
    let seen = uploader.epoch_clock.unsaved(uploader.clock.now());
    uploader.index.saw_epochs(&seen).await?;
    Ok(report)
}

/// Writes the rows of a pack, which is paid for: while the index is away, this waits for it.
async fn place(
    uploader: &Uploader,
    pack: &Pack,
    part: &[Ready],
    replaces: Vec<Option<Usage>>,
) -> Result<()> {
    let begun = Instant::now();
    let id = pack.blob_id();
    for times in 0.. {
        let e = match uploader.place(pack, part, replaces.clone()).await {
            Ok(()) => break,
            Err(e) => e,
        };
        if !e.is_retryable() || begun.elapsed() >= PATIENCE {
            return Err(e.context(format!(
                "blob {id} is stored and paid for, but its rows cannot be written"
            )));
        }
        if times == 0 {
            let text =
                format!("blob {id} is stored, and its rows wait for the index to be back: {e}");
            uploader.log.push(Level::Warn, text);
        }
        tokio::time::sleep(jittered(doubled(FIRST_PAUSE, times, LONGEST_PAUSE))).await;
    }
    Ok(())
}

const NONE: Usage = Usage {
    blocks: 0,
    bytes: 0,
};
