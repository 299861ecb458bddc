//! Bytes of blobs in memory: whole blobs, quilt members, and windows of blobs, under one budget.
//!
//! Windows are mostly read once, from end to end. So they are *cold* at first, and all cold ones
//! together, with those that are still on their way, take three eighths of the budget at most: a long
//! file does not drive out what is read again and again, and takes no memory that serves nobody. A window
//! of which a block is asked for once more becomes *hot*, and one that is fetched again soon after it was
//! handed out and left is so from the beginning, as whole blobs are. The least recently used goes first,
//! cold ones before hot ones, and among the older cold ones those that were handed out already before those
//! that somebody is about to come to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

/// What an entry costs beside its bytes and its block's key: its places in the map and in a list, the verdict
/// on its block, and what the allocator adds (measured: 560).
const ENTRY_BYTES: u64 = 640;

/// Verdicts on blocks that are remembered per piece; they take an eighth of its length at most.
const MARKS: usize = 1024;

/// What a verdict costs beside its key (bytes).
const MARK_BYTES: u64 = 96;

/// Up to this length (bytes), a part of a larger buffer is copied before it is kept: it would keep all of
/// the buffer in memory.
const COPIED: usize = 512 << 10;

/// Pieces that were read and left, and are remembered, at most.
const LEFT: usize = 512;

/// Pieces that are looked at to find one that holds a range.
const CANDIDATES: usize = 16;

/// Pieces that are gone through at most to tell how far bytes are here: as many windows as lie ahead of a reader.
const PIECES_AHEAD: usize = 64;

/// Bytes of one blob, from some offset on. They never change.
#[derive(Debug)]
pub(crate) struct Piece {
    start: u64,
    bytes: Bytes,
    whole: bool,
    /// Length of the key of the one block that it is.
    key_bytes: u64,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// By offset in the blob.
    blocks: HashMap<u64, Mark>,
    /// What they cost.
    bytes: u64,
    /// Bytes handed out, each block once.
    taken: u64,
}

/// The verdict on one block.
#[derive(Debug)]
struct Mark {
    key: Box<str>,
    len: u64,
    good: bool,
}

/// What a piece holds of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Block {
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
    fn new(start: u64, bytes: Bytes, whole: bool) -> Piece {
        let copied = !bytes.is_unique() && bytes.len() <= COPIED;
        Piece {
            start,
            bytes: match copied {
                true => Bytes::copy_from_slice(&bytes),
                false => bytes,
            },
            whole,
            key_bytes: 0,
            marks: Mutex::default(),
        }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    fn part(&self, range: &Range<u64>) -> Option<Bytes> {
        let at = |offset: u64| usize::try_from(offset.checked_sub(self.start)?).ok();
        let (from, to) = (at(range.start)?, at(range.end)?);
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }

    /// The block `key` at `range`, checked unless it was before.
    pub(crate) fn block(
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
        let mut marks = self.marks.lock();
        let cost = MARK_BYTES + key.len() as u64;
        let room = (self.bytes.len() as u64 / 8).max(ENTRY_BYTES);
        let fits = marks.bytes + cost <= room;
        if marks.blocks.len() < MARKS && fits {
            let key = key.into();
            marks.blocks.insert(range.start, Mark { key, len, good });
            marks.bytes += cost;
        }
        if !good {
            return Block::Wrong;
        }
        marks.taken += len;
        Block::New(bytes)
    }

    /// The block `key` at `range`, if it was checked before under this key.
    pub(crate) fn again(&self, key: &str, range: &Range<u64>) -> Option<Bytes> {
        let bytes = self.part(range)?;
        let marks = self.marks.lock();
        let mark = marks.blocks.get(&range.start)?;
        let known = mark.good && mark.len == bytes.len() as u64 && *mark.key == *key;
        known.then_some(bytes)
    }

    /// A piece that is the block `key`, which was checked elsewhere.
    fn of_block(start: u64, bytes: Bytes, key: &str) -> Piece {
        let mut piece = Piece::new(start, bytes, false);
        let mark = Mark {
            key: key.into(),
            len: piece.bytes.len() as u64,
            good: true,
        };
        piece.key_bytes = key.len() as u64;
        let marks = piece.marks.get_mut();
        marks.taken = mark.len;
        marks.blocks.insert(start, mark);
        piece
    }

    /// All of its bytes.
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    fn untaken(&self) -> u64 {
        (self.bytes.len() as u64).saturating_sub(self.marks.lock().taken)
    }

    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + self.key_bytes + ENTRY_BYTES
    }
}

/// See the module. Keyed by blob ID or patch ID (they cannot collide: 43 and 50 characters).
pub(crate) struct BlobCache {
    budget: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What all pieces may take (bytes): the budget, or less.
    keeps: u64,
    /// Cold pieces that were handed out and left, the last one last: at most as many bytes as the budget.
    left: VecDeque<(Arc<str>, Range<u64>)>,
    left_bytes: u64,
    /// By blob and first byte.
    pieces: HashMap<Arc<str>, BTreeMap<u64, Slot>>,
    cold: LruCache<u64, (Arc<str>, u64)>,
    hot: LruCache<u64, (Arc<str>, u64)>,
    next_id: u64,
    cold_bytes: u64,
    hot_bytes: u64,
    /// Promised to windows on their way.
    reserved: u64,
    /// Bytes of windows that left without having been handed out.
    wasted: u64,
}

struct Slot {
    id: u64,
    hot: bool,
    piece: Arc<Piece>,
}

/// Room for a window on its way; given back when dropped.
pub(crate) struct Reservation {
    cache: Arc<BlobCache>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.inner.lock().reserved -= self.bytes;
    }
}

impl BlobCache {
    /// `budget` in bytes; zero or less disables the cache.
    pub(crate) fn new(budget: i64) -> Self {
        let budget = u64::try_from(budget).unwrap_or(0);
        BlobCache {
            budget,
            inner: Mutex::new(Inner {
                keeps: budget,
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
            }),
        }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// What is read lies on a local disk, too, and mostly in the system's memory: half of the budget is enough
    /// to keep it, the other half is for what is on its way.
    pub(crate) fn share_with_disk(&self) {
        self.inner.lock().keeps = self.budget / 2;
    }

    /// Longest entry taken (bytes): a quarter of the budget, so that one blob cannot empty the cache.
    pub(crate) fn entry_cap(&self) -> u64 {
        self.budget / 4
    }

    pub(crate) fn enabled(&self) -> bool {
        self.budget > 0
    }

    /// The whole blob or quilt member.
    pub(crate) fn whole(&self, id: &str) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        let slot = inner.pieces.get(id)?.get(&0)?;
        let (slot_id, hot, piece) = (slot.id, slot.hot, Arc::clone(&slot.piece));
        inner.touch(slot_id, hot);
        piece.whole.then(|| piece.bytes.clone())
    }

    /// As [`whole`](Self::whole), without a trace.
    pub(crate) fn peek_whole(&self, id: &str) -> Option<Bytes> {
        let inner = self.inner.lock();
        let piece = &inner.pieces.get(id)?.get(&0)?.piece;
        piece.whole.then(|| piece.bytes.clone())
    }

    /// A piece that holds `range` of a blob.
    pub(crate) fn find(&self, id: &str, range: &Range<u64>) -> Option<Arc<Piece>> {
        let mut inner = self.inner.lock();
        let pieces = inner.pieces.get(id)?.range(..=range.start).rev();
        let slot = pieces
            .take(CANDIDATES)
            .map(|(_, slot)| slot)
            .find(|slot| slot.piece.range().end >= range.end)?;
        let (slot_id, hot, piece) = (slot.id, slot.hot, Arc::clone(&slot.piece));
        inner.touch(slot_id, hot);
        Some(piece)
    }

    /// How far the bytes from `from` on are here without a gap, at least (the offset of the first that is not).
    /// Every read in a stream asks: of many small pieces not all are gone through.
    pub(crate) fn reach(&self, id: &str, from: u64) -> u64 {
        let inner = self.inner.lock();
        let mut reach = from;
        let Some(pieces) = inner.pieces.get(id) else {
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

    /// What of `wide` around `range` is not here: back to the end of what comes before `range`, and on
    /// to the next piece of `least` bytes or more (below that, fetching again costs less than a cut).
    pub(crate) fn gap(
        &self,
        id: &str,
        range: &Range<u64>,
        wide: Range<u64>,
        least: u64,
    ) -> Range<u64> {
        let inner = self.inner.lock();
        let Some(pieces) = inner.pieces.get(id) else {
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

    /// Keeps a whole blob or quilt member.
    pub(crate) fn insert_whole(&self, id: &str, bytes: Bytes) {
        if self.takes(&bytes) {
            self.put(id, Arc::new(Piece::new(0, bytes, true)), true, false);
        }
    }

    /// Keeps a single block that was checked, even if a window holds it: it is wrong there.
    pub(crate) fn insert_block(&self, id: &str, start: u64, bytes: Bytes, key: &str) -> Arc<Piece> {
        let piece = Arc::new(Piece::of_block(start, bytes, key));
        self.put(id, Arc::clone(&piece), false, true);
        piece
    }

    /// Keeps bytes of a blob from `start` on, in place of what was reserved for them.
    pub(crate) fn insert(
        &self,
        id: &str,
        start: u64,
        bytes: Bytes,
        reserved: Option<Reservation>,
    ) -> Arc<Piece> {
        let piece = Arc::new(Piece::new(start, bytes, false));
        drop(reserved);
        self.put(id, Arc::clone(&piece), false, false);
        piece
    }

    fn takes(&self, bytes: &Bytes) -> bool {
        self.enabled() && bytes.len() as u64 <= self.entry_cap()
    }

    fn put(&self, id: &str, piece: Arc<Piece>, hot: bool, though_held: bool) {
        if !self.takes(&piece.bytes) {
            return;
        }
        let range = piece.range();
        let mut inner = self.inner.lock();
        // What lies within it is superseded; what it lies within makes it superfluous.
        let mut within = Vec::new();
        if let Some(pieces) = inner.pieces.get(id) {
            let held = |slot: &Slot| {
                let old = slot.piece.range();
                old.start <= range.start && old.end >= range.end && slot.piece.whole >= piece.whole
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
            inner.remove(id, start);
        }
        let hot = hot || inner.is_back(id, &range);
        inner.add(id, piece, hot);
        inner.trim(self.budget);
    }

    /// A block of the piece at `start` was asked for once more.
    pub(crate) fn reused(&self, id: &str, start: u64) {
        let mut inner = self.inner.lock();
        let slot = inner.pieces.get_mut(id).and_then(|p| p.get_mut(&start));
        let Some(slot) = slot.filter(|slot| !slot.hot) else {
            return;
        };
        slot.hot = true;
        let (slot_id, cost) = (slot.id, slot.piece.cost());
        if let Some(place) = inner.cold.pop(&slot_id) {
            inner.hot.put(slot_id, place);
            inner.cold_bytes -= cost;
            inner.hot_bytes += cost;
        }
    }

    /// Room for a window of `bytes`; `None` if those on their way take a quarter of the budget already.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut inner = self.inner.lock();
        if inner.reserved.saturating_add(bytes) > self.budget / 4 {
            return None;
        }
        inner.reserved += bytes;
        inner.trim(self.budget);
        Some(Reservation {
            cache: Arc::clone(self),
            bytes,
        })
    }

    /// Forgets a whole blob or quilt member.
    pub(crate) fn evict(&self, id: &str) {
        self.inner.lock().remove(id, 0);
    }

    /// Bytes of windows that were dropped without having been handed out.
    pub(crate) fn wasted(&self) -> u64 {
        self.inner.lock().wasted
    }

    /// What is held, windows on their way included (bytes).
    pub(crate) fn used(&self) -> u64 {
        let inner = self.inner.lock();
        inner.cold_bytes + inner.hot_bytes + inner.reserved
    }
}

impl Inner {
    fn touch(&mut self, id: u64, hot: bool) {
        let list = if hot { &mut self.hot } else { &mut self.cold };
        list.promote(&id);
    }

    fn add(&mut self, id: &str, piece: Arc<Piece>, hot: bool) {
        let name = match self.pieces.get_key_value(id) {
            Some((name, _)) => Arc::clone(name),
            None => id.into(),
        };
        let slot_id = self.next_id;
        self.next_id += 1;
        let (start, cost) = (piece.start, piece.cost());
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
        if !slot.piece.whole {
            self.wasted += slot.piece.untaken();
        }
    }

    fn trim(&mut self, budget: u64) {
        while self.cold_bytes + self.reserved > budget / 8 * 3 {
            let Some((name, start)) = self.coldest() else {
                break;
            };
            self.leave(name, start, budget);
        }
        while self.cold_bytes + self.hot_bytes + self.reserved > self.keeps {
            if let Some((name, start)) = self.coldest() {
                self.leave(name, start, budget);
            } else if let Some((_, (name, start))) = self.hot.peek_lru() {
                let (name, start) = (Arc::clone(name), *start);
                self.remove(&name, start);
            } else {
                break;
            }
        }
    }

    /// Removes a cold piece, and remembers it if it was read.
    fn leave(&mut self, name: Arc<str>, start: u64, budget: u64) {
        let range = self.handed_out(&name, start).map(|piece| piece.range());
        self.remove(&name, start);
        let Some(range) = range else {
            return;
        };
        self.left_bytes += range.end - range.start + ENTRY_BYTES;
        self.left.push_back((name, range));
        while self.left_bytes > budget || self.left.len() > LEFT {
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

    /// The cold piece to go next.
    fn coldest(&self) -> Option<(Arc<str>, u64)> {
        let mut oldest = self.cold.iter().rev().map(|(_, place)| place);
        let mut older = oldest.clone().take(CANDIDATES);
        let done = older.find(|(name, start)| self.handed_out(name, *start).is_some());
        done.or_else(|| oldest.next()).cloned()
    }

    /// The piece at a place, if all of it was handed out.
    fn handed_out(&self, name: &str, start: u64) -> Option<&Piece> {
        let piece = &self.pieces.get(name)?.get(&start)?.piece;
        (piece.untaken() == 0).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn blob(len: u64) -> Bytes {
        Bytes::from(vec![7; len as usize])
    }

    fn good(_: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn bad(_: &[u8]) -> Result<(), String> {
        Err("wrong".into())
    }

    /// The cache with a budget of so many KiB, entries' overhead aside.
    fn cache(kib: u64) -> Arc<BlobCache> {
        Arc::new(BlobCache::new((kib * KIB + 8 * ENTRY_BYTES) as i64))
    }

    #[test]
    fn whole_blobs_are_bounded_and_the_least_recent_goes_first() {
        let cache = cache(400);
        for id in ["a", "b", "c", "d"] {
            cache.insert_whole(id, blob(100 * KIB));
        }
        assert!(cache.whole("a").is_some());
        cache.insert_whole("e", blob(50 * KIB));
        assert!(cache.whole("b").is_none(), "least recently used");
        assert!(cache.whole("a").is_some());
        assert_eq!(cache.used(), 350 * KIB + 4 * ENTRY_BYTES);
        cache.evict("a");
        cache.evict("a");
        assert_eq!(cache.used(), 250 * KIB + 3 * ENTRY_BYTES);
    }

    #[test]
    fn entry_cap_and_disabled() {
        let cache = cache(400);
        cache.insert_whole("big", blob(102 * KIB));
        assert!(cache.whole("big").is_none());
        for budget in [0, -1, i64::MIN] {
            let off = Arc::new(BlobCache::new(budget));
            off.insert_whole("a", blob(0));
            assert!(off.whole("a").is_none());
            assert!(off.reserve(1).is_none());
        }
    }

    #[test]
    fn beside_a_disk_half_is_kept_and_windows_have_as_much_as_ever() {
        let cache = cache(800);
        cache.share_with_disk();
        for id in ["a", "b", "c", "d", "e"] {
            cache.insert_whole(id, blob(100 * KIB));
        }
        assert_eq!(cache.used(), 400 * KIB + 4 * ENTRY_BYTES);
        let on_its_way = cache.reserve(200 * KIB);
        assert!(on_its_way.is_some(), "a quarter of the budget");
        assert_eq!(cache.used(), 400 * KIB + 2 * ENTRY_BYTES);
        assert!(cache.whole("d").is_some() && cache.whole("c").is_none());
    }

    #[test]
    fn pieces_are_found_by_what_they_hold() {
        let cache = cache(4000);
        cache.insert("a", 100, blob(50), None);
        cache.insert("a", 150, blob(50), None);
        cache.insert("a", 120, blob(10), None);
        let found = |range: Range<u64>| cache.find("a", &range).map(|p| p.range());
        assert_eq!(found(100..150), Some(100..150));
        assert_eq!(found(120..130), Some(100..150), "held already");
        assert_eq!(found(140..160), None, "two pieces are not joined");
        assert_eq!(found(99..101), None);
        assert_eq!(cache.reach("a", 110), 200);
        assert_eq!(cache.reach("a", 99), 99);
        assert_eq!(cache.reach("b", 7), 7);
        cache.insert("a", 90, blob(200), None);
        assert_eq!(found(140..160), Some(90..290));
        assert_eq!(cache.used(), 200 + ENTRY_BYTES, "what it holds is gone");
        assert!(cache.whole("a").is_none());
        cache.insert_whole("a", blob(300));
        assert!(cache.whole("a").is_some());
        assert_eq!(found(0..300), Some(0..300));
    }

    #[test]
    fn of_many_small_pieces_not_all_are_gone_through() {
        let cache = cache(4000);
        for n in 0..1000 {
            cache.insert_block("a", n * 10, blob(10), "k");
        }
        let reach = cache.reach("a", 0);
        assert!((10..1000).contains(&reach), "{reach}");
        assert!(cache.reach("a", reach) > reach, "more is here");
        assert_eq!(cache.reach("a", 9995), 10_000);
    }

    #[test]
    fn windows_take_a_part_of_the_budget_until_they_are_read_again() {
        let cache = cache(800);
        for n in 0..8 {
            cache.insert("a", n * 100 * KIB, blob(100 * KIB), None);
        }
        let held = || {
            let at = |n: &u64| n * 100 * KIB..n * 100 * KIB + 1;
            let found = (0..8).filter(|n| cache.find("a", &at(n)).is_some());
            found.collect::<Vec<_>>()
        };
        assert_eq!(held(), [5, 6, 7]);
        assert_eq!(cache.wasted(), 500 * KIB);
        for n in 5..8 {
            cache.reused("a", n * 100 * KIB);
        }
        for n in 0..3 {
            cache.insert("a", n * 100 * KIB, blob(100 * KIB), None);
        }
        assert_eq!(held(), [0, 1, 2, 5, 6, 7]);
        let reserved = cache.reserve(200 * KIB).unwrap();
        assert!(cache.reserve(2 * KIB).is_none(), "a quarter is on its way");
        assert!(cache.used() <= cache.budget());
        assert_eq!(held(), [2, 5, 6, 7]);
        cache.insert("b", 0, blob(200 * KIB), Some(reserved));
        assert_eq!(cache.inner.lock().reserved, 0);
        assert!(cache.find("b", &(0..200 * KIB)).is_some());
    }

    #[test]
    fn what_was_handed_out_goes_before_what_somebody_comes_to() {
        let cache = cache(800);
        let ahead = cache.insert("a", 0, blob(100 * KIB), None);
        let read = cache.insert("b", 0, blob(100 * KIB), None);
        let block = read.block("k", &(0..100 * KIB), &good);
        assert!(matches!(block, Block::New(_)));
        cache.find("b", &(0..1));
        for n in 0..2 {
            cache.insert("c", n * 100 * KIB, blob(100 * KIB), None);
        }
        assert!(cache.find("b", &(0..1)).is_none(), "though used last");
        assert!(Arc::ptr_eq(&cache.find("a", &(0..1)).unwrap(), &ahead));
        assert_eq!(cache.wasted(), 0);
    }

    #[test]
    fn what_is_read_again_after_it_left_stays() {
        let cache = cache(800);
        let read = |id: &str| {
            for n in 0..4 {
                let range = n * 100 * KIB..(n + 1) * 100 * KIB;
                let piece = match cache.find(id, &range) {
                    Some(piece) => piece,
                    None => cache.insert(id, range.start, blob(100 * KIB), None),
                };
                piece.block("k", &range, &good);
            }
        };
        let held = |id: &str| {
            let at = |n: &u64| n * 100 * KIB..n * 100 * KIB + 1;
            (0..4).filter(|n| cache.find(id, &at(n)).is_some()).count()
        };
        read("a");
        assert_eq!(held("a"), 3, "more than the share");
        read("b");
        assert_eq!(held("a"), 0);
        read("a");
        read("c");
        read("d");
        assert_eq!(held("a"), 4);
        let left = &cache.inner.lock().left;
        assert!(left.len() <= 8, "as much as the budget");
    }

    #[test]
    fn a_block_is_checked_once_and_a_wrong_one_stays_wrong() {
        let cache = cache(400);
        let piece = cache.insert("a", 1000, blob(100), None);
        assert_eq!(piece.block("k", &(1000..1010), &good), Block::New(blob(10)));
        assert_eq!(
            piece.block("k", &(1000..1010), &bad),
            Block::Again(blob(10))
        );
        assert_eq!(piece.block("other", &(1000..1010), &bad), Block::Wrong);
        assert_eq!(piece.block("k", &(1010..1020), &bad), Block::Wrong);
        assert_eq!(piece.block("k", &(1010..1020), &good), Block::Wrong);
        assert_eq!(piece.block("k", &(1010..1021), &good), Block::New(blob(11)));
        for outside in [990..1000, 1095..1101, 0..u64::MAX] {
            assert_eq!(piece.block("k", &outside, &good), Block::Outside);
        }
    }
}
