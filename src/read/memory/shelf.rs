//! The pieces in memory, by place, and the order in which they leave.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;

use super::piece::{Piece, ENTRY_BYTES};

/// Pieces that were read and left, and are remembered, at most.
const LEFT: usize = 512;

/// Pieces that are looked at to find one that holds a range.
const CANDIDATES: usize = 16;

/// Pieces that are gone through at most to tell how far bytes are here: as many windows as lie
/// ahead of a reader.
const PIECES_AHEAD: usize = 64;

/// Cold pieces that are looked at to tell those that were read from those that were not.
const LOOKED_AT: usize = 128;

/// The pieces, and the lists by which they leave.
pub(super) struct Shelf {
    budget: u64,
    /// The bytes that all pieces may take: the budget, or less.
    keeps: u64,
    /// Cold pieces that were handed out and left, the last one last: at most as many bytes as the
    /// budget.
    pub(super) left: VecDeque<(Arc<str>, Range<u64>)>,
    left_bytes: u64,
    /// By blob and first byte.
    pieces: HashMap<Arc<str>, BTreeMap<u64, Slot>>,
    cold: LruCache<u64, (Arc<str>, u64)>,
    hot: LruCache<u64, (Arc<str>, u64)>,
    next_id: u64,
    cold_bytes: u64,
    hot_bytes: u64,
    /// Promised to windows on their way.
    pub(super) reserved: u64,
    /// Bytes of windows that left without having been handed out.
    pub(super) wasted: u64,
}

struct Slot {
    id: u64,
    hot: bool,
    piece: Arc<Piece>,
}

impl Shelf {
    pub(super) fn new(budget: u64, keeps: u64) -> Self {
        Shelf {
            budget,
            keeps,
            left: VecDeque::new(),
            left_bytes: 0,
            pieces: HashMap::new(),
            cold: LruCache::unbounded(),
            hot: LruCache::unbounded(),
            next_id: 0,
            cold_bytes: 0,
            hot_bytes: 0,
            reserved: 0,
            wasted: 0,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.cold_bytes + self.hot_bytes + self.reserved
    }

    pub(super) fn find(&mut self, id: &str, range: &Range<u64>) -> Option<Arc<Piece>> {
        let pieces = self.pieces.get(id)?.range(..=range.start).rev();
        let slot = pieces
            .take(CANDIDATES)
            .map(|(_, slot)| slot)
            .find(|slot| slot.piece.range().end >= range.end)?;
        let list = if slot.hot {
            &mut self.hot
        } else {
            &mut self.cold
        };
        list.promote(&slot.id);
        Some(Arc::clone(&slot.piece))
    }

    pub(super) fn reach(&self, id: &str, from: u64) -> u64 {
        let mut reach = from;
        let Some(pieces) = self.pieces.get(id) else {
            return reach;
        };
        for _ in 0..PIECES_AHEAD {
            let ends = pieces.range(..=reach).rev().take(CANDIDATES);
            let end = ends.map(|(_, slot)| slot.piece.range().end).max();
            match end {
                Some(end) if end > reach => reach = end,
                _ => break,
            }
        }
        reach
    }

    /// Where the first piece behind `from` begins.
    pub(super) fn next(&self, id: &str, from: u64) -> Option<u64> {
        let pieces = self.pieces.get(id)?;
        pieces
            .range(from.checked_add(1)?..)
            .next()
            .map(|(start, _)| *start)
    }

    pub(super) fn gap(
        &self,
        id: &str,
        range: &Range<u64>,
        wide: Range<u64>,
        least: u64,
    ) -> Range<u64> {
        let Some(pieces) = self.pieces.get(id) else {
            return wide;
        };
        let before = pieces.range(..range.start).rev().take(CANDIDATES);
        let before = before.map(|(_, slot)| slot.piece.range().end);
        let start = before.filter(|&end| end <= range.start).max();
        let mut after = pieces
            .range(range.end..)
            .map(|(_, slot)| slot.piece.range());
        let end = after.find(|piece| piece.end - piece.start >= least);
        wide.start.max(start.unwrap_or(0))..wide.end.min(end.map_or(u64::MAX, |p| p.start))
    }

    /// Takes a piece in, unless one that is here holds it (and `though_held` does not want it all
    /// the same).
    pub(super) fn put(&mut self, id: &str, piece: Arc<Piece>, though_held: bool) {
        let range = piece.range();
        // The new piece supersedes pieces that lie within it; a piece that holds it makes it
        // superfluous.
        let mut within = Vec::new();
        if let Some(pieces) = self.pieces.get(id) {
            let held = |slot: &Slot| {
                let old = slot.piece.range();
                let holds = old.start <= range.start && old.end >= range.end;
                holds && slot.piece.is_whole() >= piece.is_whole()
            };
            let mut before = pieces.range(..=range.start).rev().take(CANDIDATES);
            if !though_held && before.any(|(_, slot)| held(slot)) {
                return;
            }
            let inside = pieces.range(range.start..=range.end);
            let inside = inside.filter(|(_, slot)| slot.piece.range().end <= range.end);
            within.extend(inside.map(|(start, _)| *start));
            // One that begins at the same byte and is longer stays.
            if pieces.contains_key(&range.start) && !within.contains(&range.start) {
                return;
            }
        }
        for start in within {
            self.remove(id, start);
        }
        let hot = piece.is_whole() || piece.is_early() || self.is_back(id, &range);
        self.add(id, piece, hot);
        self.trim();
    }

    pub(super) fn reused(&mut self, id: &str, start: u64) {
        let slot = self.pieces.get_mut(id).and_then(|p| p.get_mut(&start));
        let Some(slot) = slot.filter(|slot| !slot.hot) else {
            return;
        };
        slot.hot = true;
        let (slot_id, cost) = (slot.id, slot.piece.cost());
        if let Some(place) = self.cold.pop(&slot_id) {
            self.hot.put(slot_id, place);
            self.cold_bytes -= cost;
            self.hot_bytes += cost;
        }
    }

    fn add(&mut self, id: &str, piece: Arc<Piece>, hot: bool) {
        let name = match self.pieces.get_key_value(id) {
            Some((name, _)) => Arc::clone(name),
            None => id.into(),
        };
        let slot_id = self.next_id;
        self.next_id += 1;
        let (start, cost) = (piece.range().start, piece.cost());
        let slot = Slot {
            id: slot_id,
            hot,
            piece,
        };
        let pieces = self.pieces.entry(Arc::clone(&name)).or_default();
        pieces.insert(start, slot);
        if hot {
            self.hot_bytes += cost;
            self.hot.put(slot_id, (name, start));
        } else {
            self.cold_bytes += cost;
            self.cold.put(slot_id, (name, start));
        }
    }

    pub(super) fn remove_whole(&mut self, id: &str) {
        let first = self.pieces.get(id).and_then(|pieces| pieces.get(&0));
        if first.is_some_and(|slot| slot.piece.is_whole()) {
            self.remove(id, 0);
        }
    }

    fn remove(&mut self, id: &str, start: u64) {
        let Some(pieces) = self.pieces.get_mut(id) else {
            return;
        };
        let Some(slot) = pieces.remove(&start) else {
            return;
        };
        if pieces.is_empty() {
            self.pieces.remove(id);
        }
        let cost = slot.piece.cost();
        if slot.hot {
            self.hot.pop(&slot.id);
            self.hot_bytes -= cost;
        } else {
            self.cold.pop(&slot.id);
            self.cold_bytes -= cost;
        }
        if !slot.piece.is_whole() {
            self.wasted += slot.piece.untaken();
        }
    }

    pub(super) fn trim(&mut self) {
        while self.cold_bytes + self.reserved > self.budget / 8 * 3 {
            let Some((name, start)) = self.coldest() else {
                break;
            };
            self.leave(name, start);
        }
        while self.used() > self.keeps {
            if let Some((name, start)) = self.coldest() {
                self.leave(name, start);
            } else if let Some((_, (name, start))) = self.hot.peek_lru() {
                let (name, start) = (Arc::clone(name), *start);
                self.remove(&name, start);
            } else {
                break;
            }
        }
    }

    /// Removes a cold piece, and remembers it if it was read.
    fn leave(&mut self, name: Arc<str>, start: u64) {
        let range = self.handed_out(&name, start).map(|piece| piece.range());
        self.remove(&name, start);
        let Some(range) = range else {
            return;
        };
        self.left_bytes += range.end - range.start + ENTRY_BYTES;
        self.left.push_back((name, range));
        while self.left_bytes > self.budget || self.left.len() > LEFT {
            let Some((_, oldest)) = self.left.pop_front() else {
                break;
            };
            self.left_bytes -= oldest.end - oldest.start + ENTRY_BYTES;
        }
    }

    /// Whether most of a range was read, and left, not long ago.
    fn is_back(&self, id: &str, range: &Range<u64>) -> bool {
        let left = self.left.iter().filter(|(name, _)| **name == *id);
        let common = left.map(|(_, old)| {
            let end = old.end.min(range.end);
            end.saturating_sub(old.start.max(range.start))
        });
        common.sum::<u64>() * 2 > range.end - range.start
    }

    /// Bytes of cold pieces in these parts of blobs that were not handed out.
    pub(super) fn unread(&self, awaited: &[(Arc<str>, Range<u64>)]) -> u64 {
        let mut seen = HashSet::new();
        let mut unread = 0;
        for (blob, part) in awaited {
            let Some(pieces) = self.pieces.get(blob) else {
                continue;
            };
            let within = pieces.range(part.clone()).take(PIECES_AHEAD);
            for (_, slot) in within.filter(|(_, slot)| !slot.hot) {
                if seen.insert(slot.id) {
                    unread += slot.piece.untaken();
                }
            }
        }
        unread
    }

    /// The cold piece to go next. Each read makes a piece one of the latest, so those that were not
    /// read yet are among the oldest.
    fn coldest(&self) -> Option<(Arc<str>, u64)> {
        let mut oldest = self.cold.iter().rev().map(|(_, place)| place);
        let mut older = oldest.clone().take(LOOKED_AT);
        let done = older.find(|(name, start)| self.handed_out(name, *start).is_some());
        done.or_else(|| oldest.next()).cloned()
    }

    /// The piece at a place, if all of it was handed out.
    fn handed_out(&self, name: &str, start: u64) -> Option<&Piece> {
        let piece = &self.pieces.get(name)?.get(&start)?.piece;
        (piece.untaken() == 0).then_some(piece)
    }
}
