//! The direct path: blocks of concurrent writers are gathered into packs, stored and indexed.
//!
//! Kubo's batches are small (16 blocks on two cores, single blocks for small files), while a blob
//! is billed at least 63 MiB encoded and an upload takes seconds. So a pack is filled with the
//! blocks of all waiting writers: the first block of a pack waits a short linger for more blocks,
//! and for a free upload slot; a pack is closed when it reaches its ceiling. It also waits for the
//! writers that are on their way ([`Packer::announce`]): they have begun and still ask which of
//! their blocks are stored. Without that, a burst of writers is cut into packs that are not full.
//!
//! A writer may give up at any time: its blocks are left out of packs that are not sent yet and get
//! no rows. A pack whose writers have all given up is dropped while it is being sent.
//!
//! Invariant: the keys of a block stay locked (`Pending::_guard`) until the block has its outcome,
//! so that a row of an upload that was given up cannot be written after a later put or deletion of
//! the same key.
//!
//! Lock order: the tasks here hold key guards that the writers have taken. They hold no other lock
//! across an `await`, and no two at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{timeout, Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::TaskTracker;

use super::format::{Fill, Parcel};
use super::limit::Permit;
use super::order::Order;
use super::ticket::{Ticket, Waiting};
use super::{Pack, Sent, Uploader};
use crate::error::{Error, ErrorKind, Result};
use crate::index::Usage;
use crate::locks::KeyGuard;
use crate::log::Level;
use crate::trace::{self, Scope};
use crate::walrus::Body;

/// The linger is this share of the time of a typical upload, so that it adds little to the wait of
/// a writer.
const LINGER_SHARE: f64 = 0.05;
const LINGER_MIN: Duration = Duration::from_micros(500);
const LINGER_MAX: Duration = Duration::from_millis(200);

/// A block on its way.
pub(crate) struct NewBlock {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    /// The usage of the row that the index holds under the key now.
    pub(crate) replaces: Usage,
}

struct Pending {
    block: NewBlock,
    /// The trace of its writer.
    scope: Option<Scope>,
    ticket: Arc<Ticket>,
    /// Whether a link says that it is a dag-pb node, and it is one.
    is_dag_pb: bool,
    /// Keeps the keys of the writer's call locked until the block is settled.
    _guard: Arc<KeyGuard>,
}

impl Parcel for Pending {
    fn key(&self) -> &str {
        &self.block.key
    }

    fn len(&self) -> u64 {
        self.block.value.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        self.is_dag_pb
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.block.value.clone());
    }
}

/// Takes blocks from any number of writers, and packs and uploads them.
pub(crate) struct Packer {
    /// The writers that are on their way.
    coming: TaskTracker,
    queue: Mutex<Option<mpsc::UnboundedSender<Vec<Pending>>>>,
    gatherer: Mutex<Option<JoinHandle<()>>>,
}

impl Packer {
    /// Starts the gatherer on the current runtime.
    pub(crate) fn start(uploader: Arc<Uploader>) -> Self {
        let (tx, rx) = mpsc::unbounded_channel();
        let coming = TaskTracker::new();
        // It counts on, and waiting for it ends when no writer is on its way.
        coming.close();
        let shared = Arc::new(Shared {
            uploader,
            coming: coming.clone(),
            typical_upload: Mutex::new(Duration::ZERO),
        });
        Packer {
            coming,
            queue: Mutex::new(Some(tx)),
            gatherer: Mutex::new(Some(tokio::spawn(gather(shared, rx)))),
        }
    }

    /// Tells that a writer has begun. The writer keeps the token until it has handed its blocks
    /// over, or has none.
    pub(crate) fn announce(&self) -> TaskTrackerToken {
        self.coming.token()
    }

    /// Hands blocks over. The returned value resolves when all of them are stored and indexed.
    /// `guard` holds the blocks' keys.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub(crate) fn submit(&self, blocks: Vec<NewBlock>, guard: Arc<KeyGuard>) -> Result<Waiting> {
        let (ticket, waiting) = Ticket::new(blocks.len());
        let scope = trace::current();
        let pending = blocks
            .into_iter()
            .map(|block| Pending {
                block,
                scope: scope.clone(),
                ticket: Arc::clone(&ticket),
                is_dag_pb: false,
                _guard: Arc::clone(&guard),
            })
            .collect();
        match self.queue.lock().as_ref() {
            Some(queue) if queue.send(pending).is_ok() => Ok(waiting),
            _ => Err(Error::closed("datastore")),
        }
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
    uploader: Arc<Uploader>,
    coming: TaskTracker,
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

    /// Waits for more blocks: for the linger, and for the writers that are on their way, as long as
    /// the longest linger.
    async fn more_may_come(&self) {
        let come = async {
            tokio::time::sleep(self.linger()).await;
            self.coming.wait().await;
        };
        let _ = timeout(LINGER_MAX, come).await;
    }

    fn note_upload(&self, took: Duration) {
        let mut typical = self.typical_upload.lock();
        *typical = if typical.is_zero() {
            took
        } else {
            typical.mul_f64(0.8) + took.mul_f64(0.2)
        };
    }
}

/// Blocks waiting for a pack, oldest first.
#[derive(Default)]
struct Gathered {
    blocks: VecDeque<Pending>,
    bytes: u64,
}

impl Gathered {
    fn add(&mut self, blocks: Vec<Pending>) {
        for block in blocks {
            self.bytes += block.len();
            self.blocks.push_back(block);
        }
    }

    /// Takes the next pack out: at least one block, then as many as fit.
    fn take_pack(&mut self, mut fill: Fill) -> Vec<Pending> {
        let mut pack = Vec::new();
        while let Some(next) = self.blocks.front() {
            if !fill.takes(next.key(), next.len()) {
                break;
            }
            self.bytes -= next.len();
            pack.extend(self.blocks.pop_front());
        }
        for block in pack.drain(fill.keep().min(pack.len())..).rev() {
            self.bytes += block.len();
            self.blocks.push_front(block);
        }
        pack
    }
}

async fn gather(shared: Arc<Shared>, mut queue: mpsc::UnboundedReceiver<Vec<Pending>>) {
    let uploader = &shared.uploader;
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
        let linger = shared.more_may_come();
        tokio::pin!(linger);
        while open && gathered.bytes < uploader.target() {
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
                permit = uploader.limit.acquire() => break permit,
                more = queue.recv(), if open => match more {
                    Some(blocks) => gathered.add(blocks),
                    None => open = false,
                },
            }
        };
        while let Ok(blocks) = queue.try_recv() {
            gathered.add(blocks);
        }
        let mut pack = gathered.take_pack(uploader.empty_pack());
        for pending in &pack {
            order.learn(&pending.block.key, &pending.block.value);
        }
        order.arrange(&mut pack, |pending| &pending.block.key);
        for Pending {
            block, is_dag_pb, ..
        } in &mut pack
        {
            *is_dag_pb = order.is_dag_pb(&block.key, &block.value);
        }
        let scope = Scope::together(pack.iter().filter_map(|pending| pending.scope.as_ref()));
        uploads.spawn(trace::scoped(
            scope,
            upload(Arc::clone(&shared), pack, permit),
        ));
    }
    uploads.close();
    uploads.wait().await;
}

async fn upload(shared: Arc<Shared>, pack: Vec<Pending>, permit: Permit) {
    let store = &shared.uploader.store;
    let throttled_before = store.throttled();
    let parts = shared.uploader.format.parts(pack);
    let parts = parts.into_iter().map(Settling).collect();
    store_and_place(&shared, parts).await;
    permit.report(store.throttled() != throttled_before);
}

/// Returns once all callers with blocks in this pack have given up.
async fn abandoned(pack: &[Pending]) {
    for pending in pack {
        pending.ticket.given_up().await;
    }
}

/// Blocks that get an outcome in every case, a panic or a dropped task included.
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

/// Uploads packs, the last one first, and indexes their blocks. A pack that is too large for the
/// publisher is split in two, down to single blocks.
async fn store_and_place(shared: &Shared, mut stack: Vec<Settling>) {
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
        let started = Instant::now();
        let sent = tokio::select! {
            sent = shared.uploader.store(&part.0) => sent,
            // All writers have given up, so sending and paying stop. Once the rows are being
            // written it is too late for that: the keys stay locked until the outcome is known, or
            // the rows might be written after a later put.
            () = abandoned(&part.0) => continue,
        };
        match sent {
            Sent::Stored(pack) => {
                shared.note_upload(started.elapsed());
                failpoint!("pack.stored");
                let placed = place(&shared.uploader, &pack, &part.0).await;
                failpoint!("pack.indexed");
                part.settle(placed.as_ref().map(|_| ()));
            }
            Sent::TooLarge(at) => {
                let second = part.0.split_off(at);
                stack.push(Settling(second));
                stack.push(part);
            }
            Sent::Failed(e) => part.settle(Err(&e)),
        }
    }
}

/// Writes the rows of a certified pack. Blocks whose writer has given up meanwhile get none.
async fn place(uploader: &Uploader, pack: &Pack, blocks: &[Pending]) -> Result<()> {
    let replaced = |pending: &Pending| {
        let wanted = !pending.ticket.is_given_up();
        wanted.then_some(pending.block.replaces)
    };
    let replaced: Vec<_> = blocks.iter().map(replaced).collect();
    let rows = replaced.iter().flatten().count();
    let placed = uploader.place(pack, blocks, replaced).await;
    if let Err(e) = &placed {
        uploader.log.push(
            Level::Warn,
            format!(
                "blob {} of {} bytes is stored but its {rows} blocks could not be indexed: {e}",
                pack.blob_id(),
                pack.len
            ),
        );
    }
    placed
}
