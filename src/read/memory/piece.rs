//! Bytes of one blob in memory, and the verdicts on its blocks.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::streams::FRAME;

/// Cost of an entry beside its bytes and its block's key: its places in the map and in a list, the
/// verdict on its block, and what the allocator adds (measured: 560).
pub(super) const ENTRY_BYTES: u64 = 640;

/// Verdicts on blocks that are remembered per piece; they take an eighth of its length at most.
const MARKS: usize = 1024;

/// Cost of a verdict beside its key (bytes).
const MARK_BYTES: u64 = 96;

/// Up to this length (bytes), a part of a larger buffer is copied before it is kept: it would keep
/// all of the buffer in memory.
const COPIED: usize = 512 << 10;

/// Bytes of one blob, from some offset on. They never change.
#[derive(Debug)]
pub(in crate::read) struct Piece {
    start: u64,
    bytes: Bytes,
    /// All of a blob or quilt member.
    whole: bool,
    /// A block that was fetched long before its reader comes.
    early: bool,
    /// Length of the key of the one block that it is.
    key_bytes: u64,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// By offset in the blob.
    blocks: HashMap<u64, Mark>,
    /// Cost of the verdicts (bytes).
    bytes: u64,
    /// Bytes handed out, each block once, and the number of these blocks.
    taken: u64,
    blocks_taken: u64,
}

/// The verdict of the check on one block.
#[derive(Debug)]
struct Mark {
    key: Box<str>,
    len: u64,
    good: bool,
}

/// The state of a block in a piece.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::read) enum Block {
    /// Checked for the first time.
    New(Bytes),
    /// Checked before, under the same key: the bytes have not changed since.
    Again(Bytes),
    /// Bytes that fail the check.
    Wrong,
    /// Not within the piece.
    Outside,
}

impl Piece {
    pub(super) fn new(start: u64, bytes: Bytes, whole: bool) -> Piece {
        let copied = !bytes.is_unique() && bytes.len() <= COPIED;
        Piece {
            start,
            bytes: match copied {
                true => Bytes::copy_from_slice(&bytes),
                false => bytes,
            },
            whole,
            early: false,
            key_bytes: 0,
            marks: Mutex::default(),
        }
    }

    /// A block that was fetched long before its reader comes.
    pub(super) fn early(start: u64, bytes: Bytes) -> Piece {
        Piece {
            early: true,
            ..Piece::new(start, bytes, false)
        }
    }

    pub(in crate::read) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(super) fn is_early(&self) -> bool {
        self.early
    }

    pub(in crate::read) fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    /// The bytes of a range, if the piece holds them.
    fn part(&self, range: &Range<u64>) -> Option<Bytes> {
        let at = |offset: u64| usize::try_from(offset.checked_sub(self.start)?).ok();
        let (from, to) = (at(range.start)?, at(range.end)?);
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }

    /// The block `key` at `range`, checked unless it was before.
    pub(in crate::read) fn block(
        &self,
        key: &str,
        range: &Range<u64>,
        check: &dyn Fn(&[u8]) -> Result<(), String>,
    ) -> Block {
        let Some(bytes) = self.part(range) else {
            return Block::Outside;
        };
        let len = bytes.len() as u64;
        {
            let marks = self.marks.lock();
            if let Some(mark) = marks.blocks.get(&range.start) {
                if mark.len == len && *mark.key == *key {
                    return if mark.good {
                        Block::Again(bytes)
                    } else {
                        Block::Wrong
                    };
                }
            }
        }
        let good = check(&bytes).is_ok();
        self.mark(key, range.start, len, good);
        match good {
            true => Block::New(bytes),
            false => Block::Wrong,
        }
    }

    /// Remembers the verdict on a block.
    fn mark(&self, key: &str, start: u64, len: u64, good: bool) {
        let mut marks = self.marks.lock();
        let cost = MARK_BYTES + key.len() as u64;
        let room = (self.bytes.len() as u64 / 8).max(ENTRY_BYTES);
        let fits = marks.bytes + cost <= room;
        if marks.blocks.len() < MARKS && fits {
            let key = key.into();
            marks.blocks.insert(start, Mark { key, len, good });
            marks.bytes += cost;
        }
        if good {
            marks.taken += len;
            marks.blocks_taken += 1;
        }
    }

    /// The block `key` at `range`, which was checked on its way here.
    pub(in crate::read) fn checked(&self, key: &str, range: &Range<u64>) -> Option<Bytes> {
        let bytes = self.part(range)?;
        self.mark(key, range.start, bytes.len() as u64, true);
        Some(bytes)
    }

    /// The block `key` at `range`, if it was checked before under this key.
    pub(in crate::read) fn again(&self, key: &str, range: &Range<u64>) -> Option<Bytes> {
        let bytes = self.part(range)?;
        let marks = self.marks.lock();
        let mark = marks.blocks.get(&range.start)?;
        let known = mark.good && mark.len == bytes.len() as u64 && *mark.key == *key;
        known.then_some(bytes)
    }

    /// A piece that is the block `key`, which was checked elsewhere.
    pub(super) fn of_block(start: u64, bytes: Bytes, key: &str) -> Piece {
        let mut piece = Piece::new(start, bytes, false);
        let mark = Mark {
            key: key.into(),
            len: piece.bytes.len() as u64,
            good: true,
        };
        piece.key_bytes = key.len() as u64;
        let marks = piece.marks.get_mut();
        (marks.taken, marks.blocks_taken) = (mark.len, 1);
        marks.blocks.insert(start, mark);
        piece
    }

    /// Bytes of blocks that were not handed out. What a format puts between blocks is no block's:
    /// as much as that could be counts as handed out with the blocks that were.
    pub(super) fn untaken(&self) -> u64 {
        let marks = self.marks.lock();
        let len = self.bytes.len() as u64;
        let framing = (marks.blocks_taken * FRAME).min(len / 16);
        len.saturating_sub(marks.taken + framing)
    }

    pub(super) fn cost(&self) -> u64 {
        self.bytes.len() as u64 + self.key_bytes + ENTRY_BYTES
    }
}
