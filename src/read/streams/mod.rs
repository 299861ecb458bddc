//! Which gets follow each other, and what is worth fetching for them. Pure: no I/O, no clock of its
//! own.
//!
//! **Problem.** The readers of files name one block after another, several batches of blocks at a
//! time, and say neither that they read a file nor where they end. A window that is fetched too
//! early, or for a reader that has gone, is paid for and drives out bytes that others need.
//!
//! **Outline.** A *stream* is a reader that goes through a blob from block to block. Two blocks
//! side by side make one. From then on it may jump within what was fetched for it. A read that fits
//! no stream is random: exactly its block is fetched. A block that is not here and does not follow
//! what the stream has read counts as random, too: a reader has begun anew there. A stream that was
//! not read for a while is forgotten. A reader that goes on in another blob leaves a stream behind
//! and makes another, of the same *line*: the bytes read count on, and the two count as one.
//!
//! **Invariants.**
//! - All that is fetched for a stream is at most four times ([`TRUST`](stream::TRUST)) what it has
//!   read, from its second block on. So windows grow with it, up to the largest, and then there are
//!   several on their way; and what is fetched in vain when it stops, or leaves out much of its
//!   windows, is in proportion.
//! - What is fetched ahead of all streams together is at most the allowance, which the lines that
//!   are read now share.
//! - Streams, and first blocks that may become one, are remembered in a fixed number.
//!
//! | module | holds |
//! |---|---|
//! | `stream` | the state of one stream, and which reads belong to it |
//! | `plan` | the fetches that are worth it for a stream |
//! | `follow` | how a reader goes on in another blob |

use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod follow;
mod plan;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use follow::next_of;
pub(super) use plan::{Ahead, Plan};
pub(super) use stream::TRUST;
use stream::{Stream, ENTRANCE};

/// A stream, or a first block, that was not read for so long is forgotten.
const EXPIRES: Duration = Duration::from_secs(60);

/// A reader that has not read for so long is not fetched for on its own account any more.
const WAITS: Duration = Duration::from_secs(3);

/// Streams that are remembered, and first blocks that may become one.
const STREAMS: usize = 128;
const STARTS: usize = 64;

/// The most bytes that a format puts between two blocks (the head of a section of a CAR).
pub(super) const FRAME: u64 = 256;

/// How many reads, of all readers, may lie between two of one reader that are not side by side.
const READS_BETWEEN: u64 = 16;

/// Sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The largest window; smaller ones are a half of it, a fourth, and so on.
    pub window: u64,
    /// The bytes that all streams together may have fetched ahead.
    pub ahead: u64,
}

/// Where a window can end: windows hold whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// After this byte.
    At(u64),
    /// Nothing follows.
    End,
    /// The rows must be asked for first.
    Unknown,
}

/// Where windows of a blob that begin at some byte and should not reach beyond another can end.
pub(super) type Map<'a> = &'a dyn Fn(&str, u64, u64) -> Cut;

/// A read that belongs to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub stream: u64,
    /// The block follows what was read. If not, nothing is fetched ahead, and if it is not here it
    /// is read alone.
    pub follows: bool,
}

/// See the module.
pub(super) struct Streams {
    limits: Limits,
    list: Vec<Stream>,
    next_id: u64,
    /// Reads so far.
    reads: u64,
    hasher: RandomState,
}

impl Streams {
    pub(super) fn new(limits: Limits) -> Self {
        Streams {
            limits,
            list: Vec::new(),
            next_id: 0,
            reads: 0,
            hasher: RandomState::new(),
        }
    }

    /// Notes that a block is read. `None` for a random read, which belongs to no stream.
    pub(super) fn note(&mut self, blob: &str, range: &Range<u64>, now: Instant) -> Option<Noted> {
        self.list
            .retain(|s| now.saturating_duration_since(s.used) < EXPIRES);
        self.reads += 1;
        let hash = self.hasher.hash_one(blob);
        let belongs = |s: &&mut Stream| s.blob_hash == hash && s.region().contains(&range.start);
        let near = self.list.iter_mut().filter(belongs);
        // A stream before a first block: of a node at its beginning, a blob was read long before
        // its reader comes to it. But not one that is further already: a reader has begun anew at
        // the first block.
        let rank = |s: &&mut Stream| {
            let is_further = s.flows && range.start < s.pos;
            (is_further, !s.flows, s.pos.abs_diff(range.start))
        };
        if let Some(stream) = near.min_by_key(rank) {
            let begins = !stream.flows;
            let recent = self.reads - stream.last_read <= READS_BETWEEN;
            let noted = Noted {
                stream: stream.id,
                follows: stream.follows(range.start, recent),
            };
            stream.read(range, now);
            if noted.follows {
                stream.last_read = self.reads;
            } else {
                // Perhaps it is another reader: trust is earned from there on.
                (stream.run, stream.fetched) = (0, 0);
            }
            if begins {
                self.begin(noted.stream, range, now);
            }
            return Some(noted);
        }
        let before = match range.start <= ENTRANCE {
            true => self.take_ended(now),
            false => None,
        };
        let flows = before.is_some();
        let from = if flows { 0 } else { range.start };
        let stream = self.add(blob, hash, from..range.end, before, now);
        flows.then_some(Noted {
            stream,
            follows: true,
        })
    }

    /// A stream that has come to the end of `part`, of a line that has read so many bytes
    /// elsewhere; with none, a first block.
    fn add(
        &mut self,
        blob: &str,
        blob_hash: u64,
        part: Range<u64>,
        before: Option<(u64, u64)>,
        now: Instant,
    ) -> u64 {
        let flows = before.is_some();
        let most = if flows { STREAMS } else { STARTS };
        self.forget_oldest(flows, most - 1);
        let id = self.next_id;
        self.next_id += 1;
        let (line, run) = before.unwrap_or((id, 0));
        self.list.push(Stream {
            id,
            line,
            blob: blob.into(),
            blob_hash,
            from: part.start,
            pos: part.end,
            reach: part.end,
            run,
            fetched: 0,
            flows,
            end: None,
            next: None,
            expected: false,
            ask_at: 0,
            used: now,
            last_read: self.reads,
        });
        id
    }

    /// Leaves at most `most` streams, or first blocks.
    fn forget_oldest(&mut self, flows: bool, most: usize) {
        let alike = self.list.iter().filter(|s| s.flows == flows);
        if alike.clone().count() > most {
            let oldest = alike.min_by_key(|s| (s.used, s.id)).map(|s| s.id);
            self.list.retain(|s| Some(s.id) != oldest);
        }
    }

    /// The bytes that a stream has read in a row.
    pub(super) fn run(&self, id: u64) -> u64 {
        let stream = self.list.iter().find(|s| s.id == id);
        stream.map_or(0, |s| s.run)
    }

    /// So many bytes elsewhere are being fetched for a stream.
    pub(super) fn fetched_elsewhere(&mut self, id: u64, bytes: u64) {
        if let Some(stream) = self.find(id) {
            stream.fetched = stream.fetched.saturating_add(bytes);
        }
    }

    /// The parts of blobs that came for readers that are on their way through them: for each reader
    /// no more than it is worth beside the others now. A slow one has more ahead if it came first.
    pub(super) fn awaited(&self, now: Instant) -> Vec<(Arc<str>, Range<u64>)> {
        let awake = self.list.iter().filter(|s| s.is_awake(now));
        let expected = self.list.iter().filter(|s| s.expected);
        let mut lines: Vec<(u64, u64)> = Vec::new();
        let mut awaited = Vec::new();
        for s in awake.chain(expected) {
            let at = lines.iter().position(|(line, _)| *line == s.line);
            let at = at.unwrap_or_else(|| {
                lines.push((s.line, self.worth(s, now).ahead));
                lines.len() - 1
            });
            let left = &mut lines[at].1;
            let ahead = s.reach.saturating_sub(s.pos).min(*left);
            *left -= ahead;
            awaited.push((Arc::clone(&s.blob), s.from..s.pos.max(s.from) + ahead));
        }
        awaited
    }

    /// Whether a stream was read a moment ago, also by a reader that waits for a slow answer.
    pub(super) fn is_read(&self, id: u64, now: Instant) -> bool {
        let stream = self.list.iter().find(|s| s.id == id);
        stream.is_some_and(|s| now.saturating_duration_since(s.used) < WAITS)
    }

    fn find(&mut self, id: u64) -> Option<&mut Stream> {
        self.list.iter_mut().find(|s| s.id == id)
    }
}
