//! The flusher: decides which blocks of the journal travel to Walrus, and when.
//!
//! The problem: an upload costs money by the blob and takes seconds, so packs should be full; but
//! no block may wait for ever, a full journal or disk needs room, and writers must not wake the
//! flusher for each small write.
//!
//! A pack leaves when there is enough for a full one, when nothing was written for a while, when
//! its oldest block is old enough, when writers wait for space or the disk is full, or when the
//! datastore is closed. A full pack lets a burst of writes pass first, for seconds at most: reading
//! and sending it takes processors from the burst (a third of the time of an `ipfs add` on two),
//! and an upload over a network takes longer than that.
//!
//! Outline: one task, [`run`], waits in [`due`] until a pack should leave, acquires an upload
//! permit, lets the order learn from the dag-pb nodes near the front of the queue, and takes the
//! pack. The permit comes first: while all uploads are taken, the queue goes on filling. Each pack
//! is then delivered by a task of its own (`deliver`).
//!
//! Waking up: under the state's lock, `due` notes at which number of queued bytes it must be called
//! (`StagedBlocks::call_at`) and that it was not called yet (`StagedBlocks::called`). The appender
//! notifies `JournalParts::changed` once when that number is reached. Writes that wait for room, a
//! full disk, blocks that are put back, and close notify it regardless. `Notify` keeps one
//! notification, so none is lost between the look at the state and the wait.
//!
//! The only lock taken here is the journal's state. It is not held across an `await`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::{blocking, deliver, spawn_unless_stopped, FlushParts, Shared};
use super::Block;
use crate::log::Level;
use crate::upload::order::Order;

/// How long a full pack waits for the dag-pb nodes that give the reading order of its blocks.
const LINGER: Duration = Duration::from_millis(300);
/// A burst of writes is over after this time without one, and for the uploads after the second time
/// in any case, counted from their oldest block.
const CALM: Duration = Duration::from_millis(200);
const BURST: Duration = Duration::from_secs(3);
/// It is over, too, once the waiting blocks take this part of the journal.
const BURST_PART: u64 = 4;
/// How far behind a block the dag-pb node that links to it comes, for the most part: Kubo's nodes
/// have 174 links, to blocks of 256 KiB (bytes).
const LOOKAHEAD: u64 = 48 << 20;

/// Blocks that may be dag-pb nodes are read from the disk in portions of at most this many bytes.
const PORTION: u64 = 8 << 20;

/// Empties a journal.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    /// Starts on the current runtime.
    pub(crate) fn start(parts: FlushParts) -> Self {
        let shared = Arc::new(Shared {
            parts,
            opened: Instant::now(),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            packs: TaskTracker::new(),
        });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Flusher {
            shared,
            task: Mutex::new(Some(task)),
        }
    }

    /// Brings to Walrus the blocks that should leave and can be brought there within `timeout`,
    /// then stops. The others stay in the journal.
    pub(crate) async fn close(&self, timeout: Duration) {
        let shared = &self.shared;
        if timeout.is_zero() {
            // Without any time, no upload is begun.
            shared.stop.cancel();
        }
        shared.draining.store(true, Ordering::Release);
        shared.parts.journal.inner.changed.notify_one();
        let task = self.task.lock().take();
        let drain = async {
            if let Some(task) = task {
                let _ = task.await;
            }
            shared.packs.close();
            shared.packs.wait().await;
        };
        if tokio::time::timeout(timeout, drain).await.is_err() {
            shared.stop.cancel();
            shared.packs.close();
            shared.packs.wait().await;
        }
        let left = shared.parts.journal.staged();
        if left.blocks > 0 {
            shared.parts.uploader.log.push(
                Level::Info,
                format!(
                    "{} blocks ({} bytes) stay in the journal and will be uploaded after the next start",
                    left.blocks, left.bytes
                ),
            );
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

async fn run(shared: Arc<Shared>) {
    let work = async {
        let uploader = &shared.parts.uploader;
        let mut order = Order::new();
        let mut seen = None;
        while due(&shared).await {
            let permit = uploader.limit.acquire().await;
            learn(&shared.parts, &mut order, &mut seen).await;
            let mut pack = shared.parts.journal.take_pack(uploader.empty_pack());
            order.arrange(&mut pack, |block| block.key());
            if !pack.is_empty() {
                label(&order, &pack).await;
                let deliver = deliver(Arc::clone(&shared), pack, permit);
                spawn_unless_stopped(&shared, deliver);
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => {}
        () = work => {}
    }
}

/// Lets the order learn from the dag-pb nodes of the next pack and behind it: a node comes after
/// the blocks it links to. `seen` is the number of the last block that was looked at.
async fn learn(parts: &FlushParts, order: &mut Order, seen: &mut Option<u64>) {
    let near = parts.uploader.target().saturating_add(lookahead(parts));
    let blocks = parts.journal.queued_after(*seen, near);
    *seen = blocks.iter().map(|block| block.seq).max().max(*seen);
    // Any block may look like a node, so the pack is read in portions, not all at once.
    for blocks in portions(&blocks) {
        let blocks = blocks.to_vec();
        // An error is ignored: it only makes the order of the blocks worse.
        let nodes = blocking(move || super::block::nodes(&blocks)).await;
        for (key, node) in nodes.unwrap_or_default() {
            order.learn(&key, &node);
        }
    }
}

/// Notes which blocks of a pack are dag-pb nodes, by the links of the nodes that were learnt.
async fn label(order: &Order, pack: &[Arc<Block>]) {
    let called = pack.iter().filter(|block| order.calls_dag_pb(block.key()));
    let called: Vec<Arc<Block>> = called.cloned().collect();
    if called.is_empty() {
        return;
    }
    // An error is ignored: it only makes labels less exact.
    let _ = blocking(move || super::block::note_dag_pb(&called)).await;
}

/// Blocks in portions of at most [`PORTION`] bytes, or of a single block.
fn portions(blocks: &[Arc<Block>]) -> impl Iterator<Item = &[Arc<Block>]> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |block: &&Arc<Block>| {
            bytes += block.len();
            bytes <= PORTION
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (portion, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(portion)
    })
}

/// For how many bytes beyond a full pack the flusher waits for a moment.
fn lookahead(parts: &FlushParts) -> u64 {
    lookahead_of(parts.uploader.target(), parts.journal.inner.max_bytes)
}

/// The same, for packs of at most `pack` bytes and a journal of at most `journal` bytes.
fn lookahead_of(pack: u64, journal: u64) -> u64 {
    pack.min(LOOKAHEAD).min(journal / 4)
}

/// Waits until a pack should leave. Returns false once the datastore is being closed and nothing is
/// left that close should upload.
async fn due(shared: &Shared) -> bool {
    let inner = &shared.parts.journal.inner;
    let mut full_since = None;
    loop {
        let full = shared.parts.uploader.target();
        let enough = full.saturating_add(lookahead(&shared.parts));
        let many = enough.max(inner.max_bytes / BURST_PART);
        let draining = shared.draining.load(Ordering::Acquire);
        let wake = {
            let mut state = inner.state.lock();
            state.called = false;
            // The first block of an empty queue starts the clock. After that the flusher is called
            // once the queue holds a full pack, then once it also holds the bytes of the lookahead,
            // and then once it holds more than a burst may leave waiting.
            state.call_at = match state.queued_bytes {
                _ if state.queue.is_empty() => 0,
                queued if queued < full => full,
                queued if queued < enough => enough,
                _ => many,
            };
            match state.queue.front() {
                None if draining => return false,
                None => None,
                Some(_)
                    if state.waiting_for_space > 0
                        || state.disk_full.is_some()
                        || state.queued_bytes >= many =>
                {
                    return true;
                }
                Some(_) if draining && state.queued_bytes >= full => return true,
                Some(oldest) if state.queued_bytes >= full => {
                    let now = Instant::now();
                    let lingers = match state.queued_bytes >= enough {
                        true => now,
                        false => *full_since.get_or_insert(now) + LINGER,
                    };
                    let over = burst_ends(state.last_write, oldest.staged);
                    Some(over.map_or(lingers, |over| over.max(lingers)))
                }
                Some(oldest) if draining => {
                    let parts = &shared.parts;
                    return parts.drain_partial || oldest.staged.elapsed() >= parts.max_age;
                }
                Some(oldest) => {
                    // Blocks that an earlier process left behind count from the open: a one-shot
                    // command should not begin an upload that it will not finish.
                    let since = |t: Instant| t.max(shared.opened);
                    let last = since(state.last_write.unwrap_or(oldest.staged));
                    let idle = last + shared.parts.idle;
                    Some(idle.min(since(oldest.staged) + shared.parts.max_age))
                }
            }
        };
        match wake {
            Some(at) if at <= Instant::now() => return true,
            Some(at) => {
                tokio::select! {
                    () = inner.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                }
            }
            None => inner.changed.notified().await,
        }
    }
}

/// When a burst of writes is over, as far as its last write and the oldest waiting block tell.
fn burst_ends(last_write: Option<Instant>, oldest: Instant) -> Option<Instant> {
    let calm = last_write? + CALM;
    Some(calm.min(oldest + BURST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_holds_uploads_up_for_seconds_at_most() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        assert_eq!(burst_ends(None, begun), None);
        for (last, ends) in [(0, 200), (2_500, 2_700), (2_900, 3_000), (60_000, 3_000)] {
            assert_eq!(burst_ends(Some(after(last)), begun), Some(after(ends)));
        }
    }

    #[test]
    fn a_pack_waits_for_as_much_as_its_limits_allow() {
        const MIB: u64 = 1 << 20;
        for (pack, journal, ahead) in [(64, 4096, 48), (10, 4096, 10), (64, 100, 25)] {
            assert_eq!(lookahead_of(pack * MIB, journal * MIB), ahead * MIB);
        }
    }
}
