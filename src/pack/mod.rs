//! Gathers blocks from concurrent writers into packs, uploads the packs and indexes the blocks.
//!
//! Kubo's batches are small (16 blocks on two cores, single blocks for small files), while a blob
//! is billed at least 63 MiB encoded and an upload takes seconds. So a pack is filled from
//! whatever writers are waiting: the first block of a pack waits a short linger for company, and
//! for a free upload slot; a pack is closed when it reaches its ceiling.
//!
//! Order (design: upload first, index second): a failure between the two leaves a blob without a
//! row, never a row without a blob.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, EpochClock};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::gone::Gone;
use crate::index::{KeyRecord, Record, Rows, Usage};
use crate::locks::KeyGuard;
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::walrus::{BlobStore, Body, StoreOptions, StoreResult};

pub(crate) mod limit;
pub(crate) mod order;
mod ticket;

use limit::{Permit, UploadLimit};
use order::Order;
use ticket::Ticket;
pub(crate) use ticket::Waiting;

/// The linger is this share of a typical upload: nobody waits noticeably longer for the company.
const LINGER_SHARE: f64 = 0.05;
const LINGER_MIN: Duration = Duration::from_micros(500);
const LINGER_MAX: Duration = Duration::from_millis(200);

/// What whoever makes and uploads packs works with.
#[derive(Clone)]
pub(crate) struct UploadParts {
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) index: Arc<dyn Rows>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) epoch_clock: Arc<EpochClock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    pub(crate) gone: Arc<Gone>,
    pub(crate) options: StoreOptions,
    pub(crate) target_bytes: u64,
    pub(crate) workers: usize,
}

/// A block on its way.
pub(crate) struct NewBlock {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    /// What the index holds under the key now.
    pub(crate) replaces: Option<Usage>,
}

struct Pending {
    block: NewBlock,
    ticket: Arc<Ticket>,
    /// Keeps the keys of the writer's call locked until the block is settled.
    _guard: Arc<KeyGuard>,
}

impl Pending {
    fn len(&self) -> u64 {
        self.block.value.len() as u64
    }
}

/// Takes blocks from any number of writers.
pub(crate) struct Packer {
    queue: Mutex<Option<mpsc::UnboundedSender<Vec<Pending>>>>,
    gatherer: Mutex<Option<JoinHandle<()>>>,
    limit: UploadLimit,
}

impl Packer {
    /// Starts the gatherer on the current runtime.
    pub(crate) fn start(parts: UploadParts) -> Self {
        let (tx, rx) = mpsc::unbounded_channel();
        let limit = UploadLimit::new(parts.workers);
        let shared = Arc::new(Shared {
            parts,
            typical_upload: Mutex::new(Duration::ZERO),
        });
        let gatherer = tokio::spawn(gather(shared, rx, limit.clone()));
        Packer {
            queue: Mutex::new(Some(tx)),
            gatherer: Mutex::new(Some(gatherer)),
            limit,
        }
    }

    /// Hands blocks over; what is returned resolves when all of them are stored and indexed.
    /// `guard` holds the blocks' keys.
    pub(crate) fn submit(&self, blocks: Vec<NewBlock>, guard: Arc<KeyGuard>) -> Result<Waiting> {
        let (ticket, waiting) = Ticket::new(blocks.len());
        let pending = blocks
            .into_iter()
            .map(|block| Pending {
                block,
                ticket: Arc::clone(&ticket),
                _guard: Arc::clone(&guard),
            })
            .collect();
        match self.queue.lock().as_ref() {
            Some(queue) if queue.send(pending).is_ok() => Ok(waiting),
            _ => Err(Error::closed("datastore")),
        }
    }

    /// Uploads running and allowed now.
    pub(crate) fn uploads(&self) -> (usize, usize) {
        self.limit.snapshot()
    }

    /// Settles everything that was submitted, then stops.
    pub(crate) async fn close(&self) {
        self.queue.lock().take();
        let gatherer = self.gatherer.lock().take();
        if let Some(gatherer) = gatherer {
            // A panic in the gatherer has already failed its tickets.
            let _ = gatherer.await;
        }
    }
}

struct Shared {
    parts: UploadParts,
    /// Moving average of the time an upload takes.
    typical_upload: Mutex<Duration>,
}

impl Shared {
    fn linger(&self) -> Duration {
        self.typical_upload
            .lock()
            .mul_f64(LINGER_SHARE)
            .clamp(LINGER_MIN, LINGER_MAX)
    }

    fn note_upload(&self, took: Duration) {
        let mut typical = self.typical_upload.lock();
        *typical = if typical.is_zero() {
            took
        } else {
            typical.mul_f64(0.8) + took.mul_f64(0.2)
        };
    }

    /// The ceiling of a pack now: the configured one, or less if the publishers refuse that.
    fn target(&self) -> u64 {
        self.parts
            .target_bytes
            .min(self.parts.store.size_limit())
            .max(1)
    }
}

/// Blocks waiting for a pack, oldest first.
#[derive(Default)]
struct Gathered {
    blocks: std::collections::VecDeque<Pending>,
    bytes: u64,
}

impl Gathered {
    fn add(&mut self, blocks: Vec<Pending>) {
        for block in blocks {
            self.bytes += block.len();
            self.blocks.push_back(block);
        }
    }

    /// Takes the next pack out: at least one block, then as many as fit under `target`.
    fn take_pack(&mut self, target: u64) -> Vec<Pending> {
        let mut pack = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.blocks.front() {
            if !pack.is_empty() && bytes + next.len() > target {
                break;
            }
            bytes += next.len();
            pack.extend(self.blocks.pop_front());
        }
        self.bytes -= bytes;
        pack
    }
}

async fn gather(
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<Vec<Pending>>,
    limit: UploadLimit,
) {
    let uploads = TaskTracker::new();
    let mut gathered = Gathered::default();
    let mut order = Order::new();
    let mut open = true;
    while open || !gathered.blocks.is_empty() {
        if gathered.blocks.is_empty() {
            match queue.recv().await {
                Some(blocks) => gathered.add(blocks),
                None => break,
            }
        }
        let linger = tokio::time::sleep(shared.linger());
        tokio::pin!(linger);
        while open && gathered.bytes < shared.target() {
            tokio::select! {
                more = queue.recv() => match more {
                    Some(blocks) => gathered.add(blocks),
                    None => open = false,
                },
                () = &mut linger => break,
            }
        }
        // While all upload slots are taken, the pack goes on filling.
        let permit = loop {
            tokio::select! {
                permit = limit.acquire() => break permit,
                more = queue.recv(), if open => match more {
                    Some(blocks) => gathered.add(blocks),
                    None => open = false,
                },
            }
        };
        let mut pack = gathered.take_pack(shared.target());
        for pending in &pack {
            order.learn(&pending.block.key, &pending.block.value);
        }
        order.arrange(&mut pack, |pending| &pending.block.key);
        uploads.spawn(upload(Arc::clone(&shared), pack, permit));
    }
    uploads.close();
    uploads.wait().await;
}

async fn upload(shared: Arc<Shared>, pack: Vec<Pending>, permit: Permit) {
    let throttled_before = shared.parts.store.throttled();
    store_and_index(&shared, Settling(pack)).await;
    permit.report(shared.parts.store.throttled() != throttled_before);
}

/// Returns once every caller with blocks in this pack has left.
async fn abandoned(pack: &[Pending]) {
    for pending in pack {
        pending.ticket.given_up().await;
    }
}

/// Blocks that get an outcome whatever happens, a panic or a dropped task included.
struct Settling(Vec<Pending>);

impl Settling {
    fn settle(&mut self, result: std::result::Result<(), &Error>) {
        for pending in self.0.drain(..) {
            pending.ticket.finish_one(result);
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.settle(Err(&Error::retryable(
                ErrorKind::Canceled,
                "the upload was given up",
            )));
        }
    }
}

/// Uploads a pack and indexes its blocks. A pack that is too large for the publisher is split in
/// two, down to single blocks.
async fn store_and_index(shared: &Shared, pack: Settling) {
    let mut stack = vec![pack];
    while let Some(mut part) = stack.pop() {
        part.0.retain(|pending| {
            let keep = !pending.ticket.is_given_up();
            if !keep {
                pending.ticket.finish_one(Ok(()));
            }
            keep
        });
        if part.0.is_empty() {
            continue;
        }
        failpoint!("pack.gathered");
        let stored = tokio::select! {
            stored = caught(store(shared, &part.0)) => stored,
            // Everybody who waited has left: stop sending and paying. Once the rows are being
            // written it is too late for that: the keys stay locked until the outcome is known, or
            // the write might land after a later one.
            () = abandoned(&part.0) => continue,
        };
        match stored {
            Ok(stored) => {
                failpoint!("pack.stored");
                let indexed = caught(index(shared, &mut part, &stored)).await;
                failpoint!("pack.indexed");
                part.settle(indexed.as_ref().map(|_| ()));
            }
            Err(e) if e.kind() == ErrorKind::TooLarge && part.0.len() > 1 => {
                let second = split(&mut part.0);
                Metrics::add(&shared.parts.metrics.packs_split, 1);
                stack.push(Settling(second));
                stack.push(part);
            }
            Err(e) => {
                Metrics::add(&shared.parts.metrics.packs_failed, 1);
                part.settle(Err(&e));
            }
        }
    }
}

/// Cuts the list where half of its bytes are passed.
fn split(blocks: &mut Vec<Pending>) -> Vec<Pending> {
    let at = middle(blocks.iter().map(Pending::len));
    blocks.split_off(at)
}

/// Where to cut a list of at least two lengths, so that half of the bytes are passed and both parts
/// hold at least one.
pub(crate) fn middle(lengths: impl ExactSizeIterator<Item = u64> + Clone) -> usize {
    let total: u64 = lengths.clone().sum();
    let most = lengths.len() - 1;
    let mut bytes = 0;
    let at = lengths.into_iter().position(|len| {
        bytes += len;
        bytes * 2 >= total
    });
    (at.unwrap_or(0) + 1).min(most)
}

async fn store(shared: &Shared, pack: &[Pending]) -> Result<StoreResult> {
    let mut body = Body::default();
    for pending in pack {
        body.push(pending.block.value.clone());
    }
    let len = body.len();
    let started = Instant::now();
    let stored = shared.parts.store.store(body, shared.parts.options).await?;
    shared.parts.gone.remove(&stored.blob_id);
    shared.note_upload(started.elapsed());
    let metrics = &shared.parts.metrics;
    Metrics::add(&metrics.packs_stored, 1);
    Metrics::add(&metrics.pack_bytes, len);
    Metrics::add(&metrics.blocks_packed, pack.len() as u64);
    Ok(stored)
}

/// Writes the rows of a certified blob. Blocks whose writer left meanwhile get none.
async fn index(shared: &Shared, pack: &mut Settling, stored: &StoreResult) -> Result<()> {
    let parts = &shared.parts;
    let row = row_of(stored, parts.options, &parts.epoch_clock, parts.clock.now());
    let mut offset = 0;
    let mut rows = Vec::with_capacity(pack.0.len());
    let mut delta = Usage::default();
    for pending in &pack.0 {
        let size = pending.len() as i64;
        if !pending.ticket.is_given_up() {
            let replaced = pending.block.replaces.unwrap_or_default();
            delta = delta
                .plus(Usage {
                    blocks: 1,
                    bytes: size,
                })
                .minus(replaced);
            rows.push(KeyRecord {
                key: pending.block.key.clone(),
                record: Record {
                    offset,
                    size,
                    ..row.clone()
                },
            });
        }
        offset += size;
    }
    let written = parts.index.put_many(&rows).await;
    match &written {
        Ok(()) => parts.metrics.usage_delta(delta),
        Err(e) => parts.log.push(
            Level::Warn,
            format!(
                "blob {} of {offset} bytes is stored but its {} blocks could not be indexed: {e}",
                stored.blob_id,
                rows.len()
            ),
        ),
    }
    written
}

/// The row of a block in a blob just stored, but for where in it the block lies.
pub(crate) fn row_of(
    stored: &StoreResult,
    options: StoreOptions,
    epoch_clock: &EpochClock,
    now: SystemTime,
) -> Record {
    Record {
        blob_id: stored.blob_id.clone(),
        deletable: options.deletable,
        end_epoch: i64::try_from(stored.end_epoch).unwrap_or(i64::MAX),
        expires_at: expiry(epoch_clock, now, stored, options.epochs),
        ..Record::default()
    }
}

/// When the storage of a blob just stored ends, as far as its answer tells.
pub(crate) fn expiry(
    epoch_clock: &EpochClock,
    now: SystemTime,
    stored: &StoreResult,
    epochs: u32,
) -> Option<SystemTime> {
    match stored.start_epoch {
        // An end that is farther away than what was asked for is no reason to renew later.
        Some(start) => {
            let asked = start.saturating_add(u64::from(epochs));
            epoch_clock.expires_at(now, start, stored.end_epoch.min(asked))
        }
        None => epoch_clock.expires_at_least(now, epochs),
    }
}
