//! The memory cache of reads: windows, single blocks, whole blobs (from an aggregator that does not
//! know ranges) and quilt members, under one budget.
//!
//! **Problem.** Most of what is read is read once, from end to end, and some of it again and again.
//! Windows come before their readers, and a slow network has many of them on their way. The budget
//! must hold for all of it, and a long file must not drive out what is read often.
//!
//! **What leaves.** Windows and single blocks are *cold* at first, and all cold ones together, with
//! those that are still on their way, take three eighths of the budget at most. A piece of which a
//! block is asked for once more becomes *hot*, and one that is fetched again soon after it was
//! handed out and left is so from the beginning, as whole blobs, quilt members and early blocks
//! are. The least recently used goes first, cold ones before hot ones, and among the older cold
//! ones those that were handed out already before those that a reader is about to come to.
//!
//! **Invariants.**
//! - Held bytes and reserved bytes take no more than the budget, overhead included.
//! - Bytes of a blob never change, so the verdict on a block holds as long as its piece.
//! - Room for a window is reserved before the window is asked for, so that it fits when it comes.
//!
//! **Locks.** The shelf's, and inside it a piece's verdicts. No check runs, and nothing waits,
//! under either.
//!
//! | module | holds |
//! |---|---|
//! | `piece` | bytes of one blob, and the verdicts on its blocks |
//! | `shelf` | the pieces in memory, by place, and the order in which they leave |

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

mod piece;
mod shelf;
#[cfg(test)]
mod tests;

pub(super) use piece::{Block, Piece};
use shelf::Shelf;

/// See the module. Keyed by blob ID or patch ID (they cannot collide: 43 and 50 characters).
pub(super) struct Memory {
    budget: u64,
    shelf: Mutex<Shelf>,
    /// How often something came; raised under the shelf's lock.
    gained: AtomicU64,
}

/// The result of a look into memory. It does not keep the piece there.
pub(super) struct Look {
    piece: Weak<Piece>,
    gained: u64,
}

impl Look {
    /// The piece that was found, if it is still there.
    pub(super) fn piece(&self) -> Option<Arc<Piece>> {
        self.piece.upgrade()
    }
}

/// Room for a window on its way; given back when dropped.
pub(super) struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.shelf.lock().reserved -= self.bytes;
    }
}

impl Memory {
    /// `budget` in bytes; zero or less keeps nothing. `beside_disk`: blocks that were read lie on a
    /// local disk, too, and mostly in the system's memory, so half of the budget is enough to keep
    /// it; the other half is for what is on its way.
    pub(super) fn new(budget: i64, beside_disk: bool) -> Self {
        let budget = u64::try_from(budget).unwrap_or(0);
        let keeps = if beside_disk { budget / 2 } else { budget };
        Memory {
            budget,
            shelf: Mutex::new(Shelf::new(budget, keeps)),
            gained: AtomicU64::new(0),
        }
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// Longest entry taken (bytes): a quarter of the budget, so that one blob cannot drive all
    /// others out.
    pub(super) fn entry_cap(&self) -> u64 {
        self.budget / 4
    }

    /// The most bytes of windows that are on their way, or lie before their readers.
    fn ahead(&self) -> u64 {
        super::limits(self.budget).ahead
    }

    pub(super) fn enabled(&self) -> bool {
        self.budget > 0
    }

    /// Looks for a piece that holds `range` of a blob.
    pub(super) fn look(&self, id: &str, range: &Range<u64>) -> Look {
        let mut shelf = self.shelf.lock();
        let found = shelf.find(id, range);
        Look {
            piece: found.map_or_else(Weak::new, |piece| Arc::downgrade(&piece)),
            gained: self.gained.load(Ordering::Acquire),
        }
    }

    /// Looks once more, if something has come since.
    pub(super) fn look_again(
        &self,
        look: &mut Look,
        id: &str,
        range: &Range<u64>,
    ) -> Option<Arc<Piece>> {
        if self.gained.load(Ordering::Acquire) == look.gained {
            return None;
        }
        *look = self.look(id, range);
        look.piece()
    }

    /// How far the bytes from `from` on are here without a gap, at least (the offset of the first
    /// that is not). Every read in a stream asks: of many small pieces not all are gone through.
    pub(super) fn reach(&self, id: &str, from: u64) -> u64 {
        self.shelf.lock().reach(id, from)
    }

    /// Where the first piece behind `from` begins.
    pub(super) fn next(&self, id: &str, from: u64) -> Option<u64> {
        self.shelf.lock().next(id, from)
    }

    /// The part of `wide` around `range` that is not here: back to the end of the piece before
    /// `range`, and on to the next piece of `least` bytes or more (below that, fetching again costs
    /// less than a cut).
    pub(super) fn gap(
        &self,
        id: &str,
        range: &Range<u64>,
        wide: Range<u64>,
        least: u64,
    ) -> Range<u64> {
        self.shelf.lock().gap(id, range, wide, least)
    }

    /// Keeps a whole blob or quilt member.
    pub(super) fn insert_whole(&self, id: &str, bytes: Bytes) -> Arc<Piece> {
        let piece = Arc::new(Piece::new(0, bytes, true));
        self.put(id, &piece, false);
        piece
    }

    /// Keeps a single block that was checked, even if a window holds it: it is wrong there.
    pub(super) fn insert_block(&self, id: &str, start: u64, bytes: Bytes, key: &str) -> Arc<Piece> {
        let piece = Arc::new(Piece::of_block(start, bytes, key));
        self.put(id, &piece, true);
        piece
    }

    /// Keeps bytes of a blob from `start` on, for which room was reserved until now.
    pub(super) fn insert(&self, id: &str, start: u64, bytes: Bytes) -> Arc<Piece> {
        let piece = Arc::new(Piece::new(start, bytes, false));
        self.put(id, &piece, false);
        piece
    }

    /// Keeps a single block that comes long before its reader: many windows come in between.
    pub(super) fn insert_early(&self, id: &str, start: u64, bytes: Bytes) -> Arc<Piece> {
        let piece = Arc::new(Piece::early(start, bytes));
        self.put(id, &piece, false);
        piece
    }

    fn put(&self, id: &str, piece: &Arc<Piece>, though_held: bool) {
        let len = piece.range().end - piece.range().start;
        if self.enabled() && len <= self.entry_cap() {
            let mut shelf = self.shelf.lock();
            shelf.put(id, Arc::clone(piece), though_held);
            self.gained.fetch_add(1, Ordering::Release);
        }
    }

    /// A block of the piece at `start` was asked for once more.
    pub(super) fn reused(&self, id: &str, start: u64) {
        self.shelf.lock().reused(id, start);
    }

    /// Room for a window of `bytes`; `None` if those on their way would take more than
    /// [`ahead`](Self::ahead).
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.reserve_ahead(bytes, &[])
    }

    /// As [`reserve`](Self::reserve), for a window that no get waits for yet: none also if windows
    /// would have to leave for it that came for the readers of these parts of blobs and were not
    /// read yet.
    pub(super) fn reserve_ahead(
        self: &Arc<Self>,
        bytes: u64,
        awaited: &[(Arc<str>, Range<u64>)],
    ) -> Option<Reservation> {
        let mut shelf = self.shelf.lock();
        let unread = shelf.unread(awaited);
        let ahead = shelf.reserved.saturating_add(bytes).saturating_add(unread);
        if ahead > self.ahead() {
            return None;
        }
        shelf.reserved += bytes;
        shelf.trim();
        Some(Reservation {
            memory: Arc::clone(self),
            bytes,
        })
    }

    /// Forgets a whole blob or quilt member.
    pub(super) fn forget_whole(&self, id: &str) {
        self.shelf.lock().remove_whole(id);
    }

    /// Bytes of windows that were dropped without having been handed out.
    pub(super) fn wasted(&self) -> u64 {
        self.shelf.lock().wasted
    }

    /// Bytes that are held, windows on their way included.
    pub(super) fn used(&self) -> u64 {
        self.shelf.lock().used()
    }
}
