//! One stream: how far its reader has come, what was fetched for it, and which reads belong to it.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FRAME;

/// How far behind a stream's furthest block a read still belongs to it (bytes).
pub(super) const BACK: u64 = 16 << 20;

/// Largest gap between two blocks of a stream (bytes): a node between leaves, deleted blocks.
const GAP: u64 = 64 << 10;

/// Where a reader may enter the next blob of its file (bytes): blocks that were written at the same
/// time lie in no order, and Kubo commits 4 MiB at once.
pub(super) const ENTRANCE: u64 = 4 << 20;

/// How many bytes may be fetched for each byte that was read.
pub(in crate::read) const TRUST: u64 = 4;

/// What a format puts between blocks is at most this part of the blocks, where they are large.
const FRAMING: u64 = 64;

/// From this length on (bytes), what a stream read and what was fetched for it count half: waste of
/// long ago is forgiven, and thrift of long ago is no credit. Enough for the largest allowance.
const LONG: u64 = 128 << 20;

/// A stream that has not been read for so long takes no share. A fast reader leaves several behind
/// in a second, each a few blocks before the end of its blob.
pub(super) const ASLEEP: Duration = Duration::from_millis(400);

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u64,
    /// The first stream of its reader.
    pub(super) line: u64,
    pub(super) blob: Arc<str>,
    pub(super) blob_hash: u64,
    /// Beginning of what was read or fetched for it.
    pub(super) from: u64,
    /// End of the furthest block that was read.
    pub(super) pos: u64,
    /// End of what is here or on its way.
    pub(super) reach: u64,
    /// Bytes read in a row, without its first block.
    pub(super) run: u64,
    /// Bytes fetched meanwhile.
    pub(super) fetched: u64,
    /// Whether it is more than a first block.
    pub(super) flows: bool,
    /// Where the blob's blocks end.
    pub(super) end: Option<u64>,
    /// Where it goes on.
    pub(super) next: Option<u64>,
    /// Expected to be read, because another stream will come to its end.
    pub(super) expected: bool,
    /// Asks for the next blob when it is here.
    pub(super) ask_at: u64,
    pub(super) used: Instant,
    /// Number of the last read that followed the one before.
    pub(super) last_read: u64,
}

impl Stream {
    /// Where a read belongs to it.
    pub(super) fn region(&self) -> RangeInclusive<u64> {
        if !self.flows {
            return self.pos..=self.pos.saturating_add(FRAME);
        }
        let before = self.from.saturating_sub(self.near());
        let from = before.max(self.pos.saturating_sub(BACK));
        from..=self.reach.max(self.pos).saturating_add(GAP)
    }

    /// How far from its furthest block a read still follows it (bytes): blocks that were written at
    /// the same time lie in no order, and several are read at once.
    fn near(&self) -> u64 {
        let blocks = self.run.min(ENTRANCE);
        blocks + blocks / FRAMING
    }

    /// Whether a block at `start` follows what was read. `recent`: its reader was there a few reads
    /// ago.
    pub(super) fn follows(&self, start: u64, recent: bool) -> bool {
        let near = if recent { self.near() } else { 0 };
        let from = self.pos.saturating_sub(near);
        let until = self.pos.saturating_add(near).saturating_add(GAP);
        !self.flows || self.expected || (from..=until).contains(&start)
    }

    /// Notes that a block is read.
    pub(super) fn read(&mut self, range: &Range<u64>, now: Instant) {
        self.pos = self.pos.max(range.end);
        self.reach = self.reach.max(self.pos);
        self.run = self.run.saturating_add(range.end - range.start);
        if self.run > LONG {
            self.run /= 2;
            self.fetched /= 2;
        }
        self.flows = true;
        self.expected = false;
        self.used = now;
    }

    /// Bytes that may be fetched now.
    pub(super) fn credit(&self) -> u64 {
        let blocks = self.run.saturating_mul(TRUST);
        let with_framing = blocks.saturating_add(blocks / FRAMING);
        with_framing.saturating_sub(self.fetched)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some_and(|end| self.pos >= end)
    }

    /// Whether a reader is at it now.
    pub(super) fn is_awake(&self, now: Instant) -> bool {
        let recent = now.saturating_duration_since(self.used) < ASLEEP;
        self.flows && recent && !self.expected && !self.has_ended()
    }
}
