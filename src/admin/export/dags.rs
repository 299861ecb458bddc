//! The blocks of DAGs, depth first, as `ipfs dag export` orders them: a node before what it links
//! to, in the order of its links.
//!
//! **Outline.** What is to be visited is a stack, its next block last. Blocks near its end are read
//! ahead, each by a task. A node counts as much as several leaves there: what it links to comes
//! before its neighbour, so that its neighbours are not wanted soon. At most [`HELD`] blocks are
//! read or wait for their turn; beyond that the ones farthest from their turn are given up, and
//! read again later, for the most part out of the windows that `read` keeps.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::super::links::{links, Kind};
use super::super::target::{key_of, Cid};
use super::file::{Sink, Target};
use super::{Exported, Options};
use crate::datastore::{Blocks, Inspection};
use crate::error::{Error, ErrorKind, Result};
use crate::query::owned;

/// Blocks that are in memory at most, but for what `read` keeps.
pub(super) const HELD: usize = 96;

/// Leaves that are read ahead, and how many of them a node counts for.
const AHEAD: usize = 32;
const NODE: usize = 4;

/// The multihash code of a digest that is the block itself: no block is stored for it.
const IDENTITY: u64 = 0;

/// Writes DAGs into a CAR whose roots are theirs: every block once, checked against its CID.
/// `prefix`: as for [`key_of`]. `progress` is told the blocks and bytes that were written. Blocks
/// that are missing or cannot be read are counted and named, and are no error; then there is no
/// file, unless [`Options::partial`] wants one.
///
/// # Errors
/// [`ErrorKind::Index`] and [`ErrorKind::Walrus`]; [`ErrorKind::Disk`] for the file;
/// [`ErrorKind::Canceled`] when `stop` was set. Then there is no file.
pub async fn dags(
    inspection: &Inspection,
    roots: &[Cid],
    prefix: &str,
    target: Target,
    options: &Options,
    progress: &mut (dyn FnMut(u64, u64) + Send),
    stop: &CancellationToken,
) -> Result<Exported> {
    let mut walk = Walk {
        blocks: Arc::new(inspection.blocks()),
        prefix,
        partial: options.partial,
        sink: Some(Sink::begin(target, roots, options.version)?),
        seen: HashSet::new(),
        stack: Vec::new(),
        held: 0,
        lowest: 0,
        report: Exported {
            roots: roots.iter().map(Cid::to_string).collect(),
            ..Exported::default()
        },
    };
    let pending = |cid: &Cid| Pending::of(*cid);
    walk.stack.extend(roots.iter().rev().map(pending));
    let walked = walk.run(progress, stop).await;
    let Walk {
        blocks,
        sink,
        mut report,
        stack,
        ..
    } = walk;
    drop(stack);
    blocks.close().await;
    let whole = report.is_complete() || options.partial;
    match (walked, sink) {
        (Err(e), Some(sink)) => {
            // An error of the disk is the cause of others.
            sink.close().await?;
            return Err(e);
        }
        (Err(e), None) => return Err(e),
        (Ok(()), Some(sink)) if whole => {
            if let Some(written) = sink.end().await? {
                report.files.extend(written.path);
                report.car_bytes = written.len;
            }
        }
        (Ok(()), Some(sink)) => drop(sink.close().await?),
        (Ok(()), None) => {}
    }
    report.complete = report.is_complete();
    Ok(report)
}

type Reading = AbortOnDropHandle<Result<Option<Bytes>>>;

/// A link that is to be followed.
struct Pending {
    cid: Cid,
    reading: Option<Reading>,
}

impl Pending {
    fn of(cid: Cid) -> Pending {
        Pending { cid, reading: None }
    }
}

struct Walk<'a> {
    blocks: Arc<Blocks>,
    prefix: &'a str,
    partial: bool,
    /// `None`: blocks are missing, so that nothing more is written.
    sink: Option<Sink>,
    /// The CIDs that were met, without their versions.
    seen: HashSet<Box<[u8]>>,
    stack: Vec<Pending>,
    /// How many of the stack are being read, or were.
    held: usize,
    /// Nothing below this place of the stack is being read.
    lowest: usize,
    report: Exported,
}

/// A CID without its version: the same block under another codec links to other blocks, and a
/// reader of the file may look for either.
fn name(cid: &Cid) -> Box<[u8]> {
    let mut name = cid.codec().to_be_bytes().to_vec();
    name.extend(cid.hash().to_bytes());
    name.into()
}

impl Walk<'_> {
    async fn run(
        &mut self,
        progress: &mut (dyn FnMut(u64, u64) + Send),
        stop: &CancellationToken,
    ) -> Result<()> {
        loop {
            self.read_ahead();
            let Some(next) = self.stack.pop() else {
                return Ok(());
            };
            self.held -= usize::from(next.reading.is_some());
            let cid = next.cid;
            if !self.seen.insert(name(&cid)) {
                continue;
            }
            if cid.hash().code() == IDENTITY {
                // The block is in the link.
                self.follow(&cid, cid.hash().digest());
                continue;
            }
            let reading = next.reading.unwrap_or_else(|| self.read(&cid));
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    return Err(Error::new(ErrorKind::Canceled, "the export was stopped"));
                }
                read = reading => read,
            };
            let read = read.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
            self.took(cid, read).await?;
            progress(self.report.blocks, self.report.bytes);
        }
    }

    /// Deals with a block that was read.
    async fn took(&mut self, cid: Cid, read: Result<Option<Bytes>>) -> Result<()> {
        let block = match read {
            Ok(Some(block)) => block,
            Ok(None) => {
                self.report.missing(cid.to_string());
                return self.lacks_a_block().await;
            }
            Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => {
                self.report.unread(format!("{cid}: {}", e.message()));
                return self.lacks_a_block().await;
            }
            Err(e) => return Err(e),
        };
        self.follow(&cid, &block);
        if !self.report.is_complete() {
            self.lacks_a_block().await?;
        }
        if let Some(sink) = &self.sink {
            self.report.blocks += 1;
            self.report.bytes += block.len() as u64;
            if !sink.block(cid, block).await {
                let text = "the CAR cannot be written";
                return Err(Error::new(ErrorKind::Disk, text));
            }
        }
        Ok(())
    }

    /// The file will not be whole: nothing more is written, and leaves are only looked up.
    async fn lacks_a_block(&mut self) -> Result<()> {
        if self.partial {
            return Ok(());
        }
        match self.sink.take() {
            Some(sink) => sink.close().await.map(drop),
            None => Ok(()),
        }
    }

    /// Adds what a block links to.
    fn follow(&mut self, cid: &Cid, block: &[u8]) {
        match Kind::of(cid) {
            Kind::Leaf => {}
            Kind::Unknown => self.report.not_followed += 1,
            Kind::Node => match links(cid.codec(), block) {
                Ok(below) => {
                    let below = below.into_iter().rev().map(Pending::of);
                    self.stack.extend(below);
                }
                Err(why) => self.report.unread(format!("{cid}: {why}")),
            },
        }
    }

    /// Begins to read the blocks whose turn comes soon.
    fn read_ahead(&mut self) {
        let mut left = AHEAD;
        for at in (0..self.stack.len()).rev() {
            let cid = self.stack[at].cid;
            let cost = match Kind::of(&cid) {
                Kind::Leaf | Kind::Unknown => 1,
                Kind::Node => NODE,
            };
            if left < cost {
                break;
            }
            left -= cost;
            let embedded = cid.hash().code() == IDENTITY;
            if self.stack[at].reading.is_some() || embedded || self.seen.contains(&name(&cid)) {
                continue;
            }
            self.make_room(at);
            self.stack[at].reading = Some(self.read(&cid));
            self.held += 1;
            self.lowest = self.lowest.min(at);
        }
    }

    /// Gives up what is farthest from its turn, where too much is held.
    fn make_room(&mut self, above: usize) {
        while self.held >= HELD && self.lowest < above {
            if self.stack[self.lowest].reading.take().is_some() {
                self.held -= 1;
            }
            self.lowest += 1;
        }
    }

    fn read(&self, cid: &Cid) -> Reading {
        let (blocks, key) = (Arc::clone(&self.blocks), key_of(cid, self.prefix));
        let whole = self.sink.is_some() || Kind::of(cid) == Kind::Node;
        AbortOnDropHandle::new(tokio::spawn(async move {
            match whole {
                // A block that waits for its turn must not hold a whole window.
                true => blocks.get(&key).await.map(|block| block.map(owned)),
                false => blocks.has(&key).await.map(|has| has.then(Bytes::new)),
            }
        }))
    }
}
