//! Blobs of which many readers want blocks in no order. Pure: no I/O, no clock of its own.
//!
//! **Problem.** A reader at random waits an aggregator's time for each block. So the clients of a
//! gateway get one block each in that time, however many the aggregator could give.
//!
//! **Outline.** A blob of which many blocks were read lately, in no order, is likely to be read on.
//! A block of it that is not in memory is fetched together with the bytes around it. The window may
//! begin and end within a block: that needs no rows. It ends no later than the last block that was
//! read, so it never reaches beyond the blob. The more of the blob lies in memory, the fewer reads
//! wait.
//!
//! **Invariants.**
//! - All that is fetched for the random reads of a blob is at most four times
//!   ([`TRUST`](super::streams::TRUST)) the bytes that they have read. A block that is read again
//!   while it lies in memory does not count.
//! - Nothing is fetched in addition while all blobs that are read at random are longer together
//!   than memory: most of the bytes would leave it before a reader comes to them.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::streams::{FRAME, TRUST};

/// Random reads of a blob after which more than their blocks is fetched.
const MANY: u32 = 32;

/// A window has room for so many blocks, or is the largest: until there is credit for it, blocks
/// are fetched alone. Of a short one, the cut blocks at its ends are a large part.
const LEAST: u64 = 16;

/// A read that is not further from the one before (bytes) may be of the same reader, which comes to
/// the blocks of its file in some order: more than two of Kubo's batches.
const NEAR: u64 = 8 << 20;

/// A blob that was not read at random for so long is not read on.
const RECENT: Duration = Duration::from_secs(5);

/// Blobs that are remembered.
const BLOBS: usize = 32;

/// From this length on (bytes), what was read and what was fetched count half.
const LONG: u64 = 128 << 20;

/// See the module.
pub(super) struct Scatter {
    /// The largest window, and what memory keeps (bytes).
    window: u64,
    keeps: u64,
    /// The one that was read last comes last.
    list: VecDeque<Blob>,
    hasher: RandomState,
}

struct Blob {
    hash: u64,
    /// Reads apart from streams, and far from the read before.
    reads: u32,
    last: u64,
    read: u64,
    fetched: u64,
    /// From the first to the last byte that was read.
    span: Range<u64>,
    used: Instant,
}

impl Scatter {
    /// `window`: the most that is fetched at once; `keeps`: what memory keeps (bytes).
    pub(super) fn new(window: u64, keeps: u64) -> Self {
        Scatter {
            window,
            keeps,
            list: VecDeque::new(),
            hasher: RandomState::new(),
        }
    }

    /// Notes that a block is read at random, for the first time since it is in memory. `apart`: it
    /// lies where no stream is. Only such reads show that many read at random, if they are far from
    /// the read before: a reader of a file may just come to its blocks in another order.
    pub(super) fn read(&mut self, blob: &str, range: &Range<u64>, apart: bool, now: Instant) {
        self.list
            .retain(|b| now.saturating_duration_since(b.used) < RECENT);
        let hash = self.hasher.hash_one(blob);
        let known = self.list.iter().position(|b| b.hash == hash);
        let mut blob = match known.and_then(|at| self.list.remove(at)) {
            Some(blob) => blob,
            None => Blob {
                hash,
                reads: 0,
                last: range.start,
                read: 0,
                fetched: 0,
                span: range.clone(),
                used: now,
            },
        };
        let far = range.start.abs_diff(blob.last) > NEAR;
        blob.reads = blob.reads.saturating_add(u32::from(apart && far));
        blob.last = range.start;
        blob.read = blob.read.saturating_add(range.end - range.start);
        if blob.read > LONG {
            blob.read /= 2;
            blob.fetched /= 2;
        }
        blob.span = blob.span.start.min(range.start)..blob.span.end.max(range.end);
        blob.used = now;
        self.list.push_back(blob);
        if self.list.len() > BLOBS {
            self.list.pop_front();
        }
    }

    /// The window for a block at `range` that is not here: the block alone, or with bytes around
    /// it. `gap`: from the end of what is here or on its way before it to the beginning of what is
    /// behind it. The window laps over both by the length of the block, unless the block is next to
    /// them: what lies there may begin or end within a block. The caller reports by
    /// [`fetched`](Self::fetched) what it did.
    pub(super) fn window(&self, blob: &str, range: &Range<u64>, gap: &Range<u64>) -> Range<u64> {
        let hash = self.hasher.hash_one(blob);
        let Some(blob) = self.list.iter().find(|b| b.hash == hash) else {
            return range.clone();
        };
        let spans = self.list.iter().map(|b| b.span.end - b.span.start);
        if blob.reads < MANY || spans.sum::<u64>() > self.keeps {
            return range.clone();
        }
        let credit = blob.read.saturating_mul(TRUST).saturating_sub(blob.fetched);
        let most = credit.min(self.window);
        let len = range.end - range.start;
        if most < len.saturating_mul(LEAST).min(self.window) {
            return range.clone();
        }
        let first = match range.start.saturating_sub(gap.start) <= FRAME {
            true => range.start,
            false => gap.start.saturating_sub(len),
        };
        let start = first.max(range.end.saturating_sub(most)).min(range.start);
        // Blocks were read up to the end of the span, so the blob is that long.
        let last = match gap.end.saturating_sub(range.end) <= FRAME {
            true => range.end,
            false => gap.end.saturating_add(len).min(blob.span.end),
        };
        let rest = most.saturating_sub(range.end - start);
        start..last.min(range.end.saturating_add(rest)).max(range.end)
    }

    /// A part of a blob is being fetched for a random read.
    pub(super) fn fetched(&mut self, blob: &str, part: &Range<u64>) {
        let hash = self.hasher.hash_one(blob);
        if let Some(blob) = self.list.iter_mut().find(|b| b.hash == hash) {
            blob.fetched = blob.fetched.saturating_add(part.end - part.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const BLOCK: u64 = 4 * KIB;
    /// Nothing is here.
    const EVERYTHING: Range<u64> = 0..u64::MAX;

    /// Reads block `n` by itself, or with what is fetched along; returns that length.
    fn read(scatter: &mut Scatter, blob: &str, n: u64, now: Instant) -> u64 {
        let range = n * BLOCK..(n + 1) * BLOCK;
        scatter.read(blob, &range, true, now);
        let window = scatter.window(blob, &range, &EVERYTHING);
        assert!(window.start <= range.start && window.end >= range.end);
        assert!(window.end <= 10_000 * BLOCK, "not beyond the blob");
        scatter.fetched(blob, &window);
        window.end - window.start
    }

    #[test]
    fn few_reads_fetch_exactly_their_blocks_and_many_at_most_four_times_as_much() {
        let mut scatter = Scatter::new(MIB, 96 * MIB);
        let now = Instant::now();
        let mut fetched = 0;
        for n in 1..=10_000 {
            let len = read(&mut scatter, "a", (n * 7919) % 10_000, now);
            assert!(n > u64::from(MANY) || len == BLOCK, "{n}");
            assert!(len <= MIB);
            fetched += len;
            assert!(fetched <= TRUST * n * BLOCK, "{n}: {fetched}");
        }
        assert!(fetched > (TRUST - 1) * 10_000 * BLOCK, "{fetched}");
    }

    #[test]
    fn nothing_is_added_where_memory_does_not_keep_what_is_read() {
        let mut scatter = Scatter::new(MIB, 96 * MIB);
        let now = Instant::now();
        for n in 0..1000 {
            for blob in ["a", "b", "c"] {
                let len = read(&mut scatter, blob, (n * 7919) % 10_000, now);
                // Until their lengths are known.
                assert!(n < u64::from(MANY) || len == BLOCK, "{blob} {n}: {len}");
            }
        }
        // Alone again.
        let later = now + RECENT;
        let lens: Vec<u64> = (0..100)
            .map(|n| read(&mut scatter, "a", (n * 7919) % 10_000, later))
            .collect();
        assert!(lens.iter().any(|&len| len > BLOCK), "{lens:?}");
    }

    #[test]
    fn a_window_laps_over_what_is_here() {
        let mut scatter = Scatter::new(MIB, 96 * MIB);
        let now = Instant::now();
        for n in 1..1000 {
            let n = if n % 2 == 0 { 9000 + n } else { n };
            scatter.read("a", &(n * BLOCK..(n + 1) * BLOCK), true, now);
        }
        let block = 500 * BLOCK..501 * BLOCK;
        let window = |gap| scatter.window("a", &block, &gap);
        assert_eq!(window(EVERYTHING), 501 * BLOCK - MIB..501 * BLOCK);
        let near = 490 * BLOCK..520 * BLOCK;
        assert_eq!(window(near), 489 * BLOCK..521 * BLOCK);
        let before = 490 * BLOCK..u64::MAX;
        assert_eq!(window(before), 489 * BLOCK..489 * BLOCK + MIB);
        let at_the_end = 9998 * BLOCK..9999 * BLOCK;
        let wide = scatter.window("a", &at_the_end, &(9990 * BLOCK..u64::MAX));
        assert_eq!(wide, 9989 * BLOCK..9999 * BLOCK, "not beyond what was read");
        let closed = window(block.clone());
        assert_eq!(closed, block, "nothing else is missing there");
    }

    #[test]
    fn blocks_of_a_stream_in_another_order_are_no_reason() {
        let mut scatter = Scatter::new(MIB, 96 * MIB);
        let at = |n: u64| n * BLOCK..(n + 1) * BLOCK;
        for n in 0..1000 {
            scatter.read("a", &at(n), true, Instant::now());
        }
        for n in 0..1000 {
            scatter.read("a", &at(9999 - n), false, Instant::now());
            scatter.read("a", &at(n), false, Instant::now());
        }
        let block = 500 * BLOCK..501 * BLOCK;
        assert_eq!(scatter.window("a", &block, &EVERYTHING), block);
    }

    #[test]
    fn a_fixed_number_of_blobs_is_remembered() {
        let mut scatter = Scatter::new(MIB, 96 * MIB);
        for n in 0..1000 {
            read(&mut scatter, &format!("blob {n}"), 0, Instant::now());
        }
        assert_eq!(scatter.list.len(), BLOBS);
        assert_eq!(scatter.window("blob 0", &(8..9), &EVERYTHING), 8..9);
    }
}
