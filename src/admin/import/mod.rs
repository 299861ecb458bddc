//! Blocks of another datastore are imported: from a flatfs, CAR files, another index of walrusds,
//! or any datastore of Kubo.
//!
//! **Outline.** A thread of the import's own asks the [`Source`] for blocks. Batch by batch the
//! index is asked which of them it has; only the others are read, several at once, and hashed on
//! all cores. They fill packs in the order in which the source gives them, within a pack in the
//! order in which files are read. Full packs are stored side by side. Nothing passes through a
//! journal, so that an import works beside a node with the same configuration.
//!
//! **Invariants.**
//! - A block is stored only if it hashes to the multihash in its key, unless
//!   [`Options::unchecked`] says otherwise for keys that cannot be checked.
//! - A block counts as stored when its blob is certified, a part of that was read back, and its row
//!   is written. An import that was ended in any way is carried on by making it again: what is
//!   stored is found in the index, and is neither read nor paid for again.
//! - The end of a source is told by the source. One that breaks off is an error.
//!
//! Memory is bounded by [`Options::memory_bytes`], as much again but at most 64 MiB for blocks that
//! come with their keys, a pack, and a few MiB for each reader. Of blocks that are larger than
//! that, up to four are held.
//!
//! | module | holds |
//! |---|---|
//! | `offer` | what a source gives |
//! | `report` | options, progress, outcome |
//! | `alone` | one import at a time |
//! | `target` | the datastore into which blocks are imported |
//! | `reading` | which blocks the index lacks, and their bytes |
//! | `packs` | packs and their uploads |
//! | `files` | blocks of a flatfs; `order` puts them in the order in which they are read |
//! | `car` | blocks of CAR files |
//! | `index` | blocks of another datastore of walrusds |
//! | `frames` | blocks that a program in Go reads, for the other datastores of Kubo |
//! | `kubo` | the datastore of the blocks of a Kubo repo |

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::WalrusDatastore;

mod alone;
mod car;
mod files;
mod frames;
mod index;
mod kubo;
mod offer;
mod order;
mod packs;
mod reading;
mod report;
mod target;

use alone::Alone;
pub use car::{CarBlocks, CarFile};
pub use files::FlatfsBlocks;
pub use frames::FramedBlocks;
pub use index::IndexBlocks;
pub use kubo::repo_blocks;
pub use offer::{Content, Offer, Source};
use packs::Packs;
pub use report::{Named, Options, Progress, Report, Sum, Trouble};
use target::Target;

/// Blocks that are looked up at once.
const BATCH: usize = 1000;
/// Bytes of blocks that are here already and are looked up at once.
const BATCH_BYTES: u64 = 4 << 20;
/// Lookups that run at once.
const LOOKUPS: usize = 4;
/// The most bytes of blocks that are here already and are on their way to a pack.
const WAITING_BYTES: u64 = 64 << 20;
/// The unit in which these are shared (bytes): a semaphore counts up to a limit.
const GRAIN: u64 = 4 << 10;

/// The share of some blocks in the memory for those that wait.
type Held = Option<Arc<OwnedSemaphorePermit>>;

/// Blocks that are looked up at once.
struct Batch {
    offers: Vec<Offer>,
    held: Held,
}

/// Imports the blocks of a source. `on` is told how far the work is. Publishers are paid. When
/// `stop` is cancelled, packs that are being uploaded are still stored. Must be called within a
/// tokio runtime with several threads.
///
/// # Errors
/// [`ErrorKind::Canceled`] after `stop`; [`ErrorKind::Locked`] while another import into the same
/// index is under way; those of the source, of the index, of an upload. Blocks that were stored
/// stay; the same import carries on.
pub async fn import(
    target: &WalrusDatastore,
    source: Box<dyn Source>,
    options: &Options,
    on: &mut (dyn FnMut(&Progress) + Send),
    stop: &CancellationToken,
) -> Result<Report> {
    let target = Target::to_write(target)?;
    if options.beside {
        return run(target, source, options, on, stop).await;
    }
    let alone = Alone::take(&target, stop).await?;
    let done = run(target, source, options, on, stop).await;
    alone.end().await;
    done
}

/// What [`import`] would do. Nothing is changed and nothing is paid. The source is gone through,
/// but blocks are read only where it cannot tell of them otherwise.
///
/// # Errors
/// As [`import`].
pub async fn look(
    target: &Inspection,
    mut source: Box<dyn Source>,
    options: &Options,
    on: &mut (dyn FnMut(&Progress) + Send),
    stop: &CancellationToken,
) -> Result<Report> {
    source.look_only();
    run(Target::to_look(target), source, options, on, stop).await
}

/// Runs this as a task, which ends with the future that waits for it.
fn task<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let task = AbortOnDropHandle::new(tokio::spawn(work));
    async move {
        let failed = |e: tokio::task::JoinError| {
            Err(Error::new(ErrorKind::Internal, format!("an import: {e}")))
        };
        task.await.unwrap_or_else(failed)
    }
}

async fn run(
    target: Target,
    source: Box<dyn Source>,
    options: &Options,
    on: &mut (dyn FnMut(&Progress) + Send),
    stop: &CancellationToken,
) -> Result<Report> {
    let mut progress = Progress {
        total_bytes: source.total_bytes(),
        ..Progress::default()
    };
    let mut report = Report {
        applied: target.applies(),
        ..Report::default()
    };
    let halt = stop.child_token();
    let mut packs = Packs::new(target.clone(), options.memory_bytes, halt.clone());
    let mut ended = {
        // Lookups and reads are tasks of their own. They go on while the packs wait for memory, and
        // so for uploads: a connection whose answer is not read would hold up the lookups of these
        // uploads, and times out.
        let look_up = |batch: Result<Batch>| {
            let (target, options) = (target.clone(), options.clone());
            task(async move { reading::look_up(&target, &options, batch?).await })
        };
        let looked = batches(source, options.memory_bytes)?
            .map(look_up)
            .buffered(LOOKUPS)
            .flat_map(|pieces| {
                let pieces = match pieces {
                    Ok(pieces) => pieces.into_iter().map(Ok).collect(),
                    Err(e) => vec![Err(e)],
                };
                stream::iter(pieces)
            });
        let read = looked.map(|piece: Result<reading::Piece>| {
            let target = target.clone();
            task(async move { piece?.read(&target).await })
        });
        let mut read = pin!(read.buffered(options.readers.max(1)));
        loop {
            let ready = tokio::select! {
                biased;
                () = stop.cancelled() => break Err(stopped()),
                done = packs.ended() => match done {
                    Ok(done) => {
                        report.plus(done);
                        tell(&report, &mut progress, on);
                        continue;
                    }
                    Err(e) => break Err(e),
                },
                ready = read.next() => ready,
            };
            match ready {
                None => break Ok(()),
                Some(Err(e)) => break Err(e),
                Some(Ok((blocks, more, held))) => {
                    report.plus(more);
                    for block in blocks {
                        packs.add(block, &mut report).await;
                    }
                    drop(held);
                    tell(&report, &mut progress, on);
                }
            }
        }
    };
    match ended {
        Ok(()) => packs.send(&mut report).await,
        Err(_) => halt.cancel(),
    }
    // What is being uploaded is paid for, so that it is stored in any case.
    while packs.are_under_way() {
        match packs.ended().await {
            Ok(done) => report.plus(done),
            Err(e) => {
                halt.cancel();
                ended = ended.and(Err(e));
            }
        }
        tell(&report, &mut progress, on);
        if ended.is_ok() && stop.is_cancelled() {
            ended = Err(stopped());
        }
    }
    ended.map(|()| report)
}

fn stopped() -> Error {
    Error::retryable(
        ErrorKind::Canceled,
        "the import was stopped; what was stored stays, and the same import carries on",
    )
}

fn tell(report: &Report, progress: &mut Progress, on: &mut (dyn FnMut(&Progress) + Send)) {
    let mut done = report.stored;
    for sum in [
        report.known,
        report.undeleted,
        report.damaged,
        report.unreadable,
        report.refused,
        report.gone,
        report.elsewhere,
    ] {
        done.plus(sum);
    }
    (progress.done, progress.stored) = (done, report.stored);
    on(progress);
}

/// The blocks of a source, in batches. The last item before the end is an error, or the source has
/// told its end.
fn batches(
    source: Box<dyn Source>,
    memory_bytes: u64,
) -> Result<impl stream::Stream<Item = Result<Batch>>> {
    let (give, take) = mpsc::channel(LOOKUPS);
    let grains = memory_bytes.min(WAITING_BYTES).div_ceil(GRAIN).max(1);
    let grains = u32::try_from(grains).unwrap_or(u32::MAX);
    let room = Room {
        memory: Arc::new(Semaphore::new(grains as usize)),
        grains,
        runtime: Handle::current(),
    };
    std::thread::Builder::new()
        .name("walrusds-import".to_owned())
        .spawn(move || feed(source, &room, &give))
        .map_err(|e| {
            Error::new(
                ErrorKind::Internal,
                format!("no thread can be started: {e}"),
            )
            .caused_by(e)
        })?;
    let next = |mut take: Option<mpsc::Receiver<Option<Result<Batch>>>>| async move {
        let taken = take.as_mut()?.recv().await;
        match taken {
            Some(Some(Ok(batch))) => Some((Ok(batch), take)),
            Some(Some(Err(e))) => Some((Err(e), None)),
            Some(None) => None,
            // The thread has panicked.
            None => {
                let text = "the source ended without telling so; please report this";
                Some((Err(Error::new(ErrorKind::Internal, text)), None))
            }
        }
    };
    Ok(stream::unfold(Some(take), next))
}

/// The memory for blocks that came with their keys.
struct Room {
    memory: Arc<Semaphore>,
    grains: u32,
    runtime: Handle,
}

impl Room {
    /// Waits until there is room for so many bytes; more than there is at all come alone.
    fn hold(&self, bytes: u64) -> Held {
        let grains = u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(self.grains);
        if grains == 0 {
            return None;
        }
        let memory = Arc::clone(&self.memory).acquire_many_owned(grains.min(self.grains));
        // The semaphore is never closed.
        self.runtime.block_on(memory).ok().map(Arc::new)
    }
}

/// Gives the blocks of a source away, in batches; `None` is the end. Returns when nobody takes them
/// any more, too.
fn feed(mut source: Box<dyn Source>, room: &Room, give: &mpsc::Sender<Option<Result<Batch>>>) {
    let most = BATCH_BYTES.min(u64::from(room.grains) * GRAIN);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    loop {
        let end = match source.next() {
            Ok(Some(offer)) => {
                if let Content::Here(value) = &offer.content {
                    bytes += value.len() as u64;
                }
                batch.push(offer);
                None
            }
            Ok(None) => Some(None),
            Err(e) => Some(Some(Err(e))),
        };
        if end.is_some() || batch.len() >= BATCH || bytes >= most {
            let full = Batch {
                offers: std::mem::take(&mut batch),
                held: room.hold(std::mem::take(&mut bytes)),
            };
            if !full.offers.is_empty() && give.blocking_send(Some(Ok(full))).is_err() {
                return;
            }
        }
        if let Some(end) = end {
            let _ = give.blocking_send(end);
            return;
        }
    }
}
