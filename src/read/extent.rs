//! The known ends of the blocks of a blob. Ranges must be exact: an aggregator refuses a range that
//! reaches beyond a blob; and a window should hold whole blocks, or the one at its edge is fetched
//! twice.

use std::time::{Duration, Instant};

use super::streams::{Cut, FRAME};
use crate::index::KeyRecord;

/// Rows per query.
pub(super) const ROWS: usize = 2048;

/// Number of blocks that make a window, however small they are.
const ENOUGH: usize = ROWS / 2;

/// Bytes without a live block that are fetched along (bytes). Beyond a larger hole the blob counts
/// as ended.
const HOLE: u64 = 1 << 20;

/// Ends that are remembered per blob.
const ENDS: usize = 8192;

/// How long no windows are asked of a blob after one failed.
const BARRED: Duration = Duration::from_secs(10);

/// Where a block ends.
#[derive(Debug, Clone, Copy)]
struct End {
    at: u64,
    /// The bytes of framing before it, since `from`. A window is not shorter for them.
    framing: u64,
}

impl End {
    /// Where it would be without framing.
    fn bare(self) -> u64 {
        self.at - self.framing
    }
}

/// The known part of one blob.
#[derive(Debug, Default)]
pub(super) struct Extent {
    from: u64,
    /// Ends of blocks from `from` on, in order. Empty: nothing is known.
    ends: Vec<End>,
    /// Nothing worth fetching follows the last end.
    complete: bool,
    barred_until: Option<Instant>,
}

impl Extent {
    /// Where a window from `from` can end that should not reach beyond `upto`.
    pub(super) fn cut(&self, from: u64, upto: u64) -> Cut {
        let Some(last) = self.last() else {
            return Cut::Unknown;
        };
        if from < self.from || from > last {
            return Cut::Unknown;
        }
        if from == last && self.complete {
            return Cut::End;
        }
        let behind = self.ends_until(from);
        let ahead = self.ends.len() - behind;
        if upto > last && !self.complete && ahead < ENOUGH {
            return Cut::Unknown;
        }
        // The end before it, and from there on without framing.
        let before = behind.checked_sub(1).and_then(|at| self.ends.get(at));
        let framing = before.map_or(0, |end| end.framing);
        let gap = self.ends.get(behind).map_or(0, |end| end.framing - framing);
        let behind_end = before.map_or(0, |end| from - end.at);
        let begins = from - framing - gap.min(behind_end);
        let upto = begins.saturating_add(upto.saturating_sub(from));
        let next = self.ends.partition_point(|end| end.bare() <= upto);
        let whole = next.checked_sub(1).and_then(|at| self.ends.get(at));
        let end = whole.filter(|end| end.at > from).or(self.ends.get(next));
        end.map_or(Cut::Unknown, |end| Cut::At(end.at))
    }

    fn last(&self) -> Option<u64> {
        self.ends.last().map(|end| end.at)
    }

    /// How many ends lie up to a byte.
    fn ends_until(&self, byte: u64) -> usize {
        self.ends.partition_point(|end| end.at <= byte)
    }

    /// From where on rows must be asked for, for a window from `from`.
    pub(super) fn ask_from(&self, from: u64) -> u64 {
        match self.last() {
            Some(last) if self.is_next_to(from) && !self.complete => last,
            _ => from,
        }
    }

    /// Whether `from` lies within what is known, or where the next block begins.
    fn is_next_to(&self, from: u64) -> bool {
        let last = self.last().unwrap_or(0);
        (self.from..=last.saturating_add(FRAME)).contains(&from)
    }

    /// Whether the bytes from `from` to `until` are no block's, but what a format puts between two
    /// blocks.
    pub(super) fn is_framing(&self, from: u64, until: u64) -> bool {
        let known = self.last().is_some_and(|last| until <= last);
        let short = until.saturating_sub(from) <= FRAME;
        known && short && self.from <= from && self.ends_until(from) == self.ends_until(until)
    }

    /// Notes the rows from `asked` on, at most [`ROWS`].
    pub(super) fn learn(&mut self, asked: u64, rows: &[KeyRecord]) {
        if self.last() != Some(asked) {
            self.from = asked;
            let at = asked;
            self.ends = vec![End { at, framing: 0 }];
        }
        self.complete = rows.len() < ROWS;
        let ranges = rows.iter().filter(|row| row.record.patch_id.is_none());
        let mut last = asked;
        let mut framing = self.ends.last().map_or(0, |end| end.framing);
        // A nonsensical row ends nothing: its block is read, and fails, by itself.
        for range in ranges.filter_map(|row| row.record.range().ok()) {
            if range.start > last.saturating_add(HOLE) {
                self.complete = true;
                break;
            }
            if range.end > last {
                let gap = range.start.saturating_sub(last);
                if gap <= FRAME {
                    framing += gap;
                }
                last = range.end;
                self.ends.push(End { at: last, framing });
            }
        }
        if self.ends.len() > ENDS {
            self.ends.drain(..self.ends.len() - ENDS);
            self.from = self.ends.first().map_or(asked, |end| end.at);
        }
    }

    /// A window failed: for a while there are none.
    pub(super) fn bar(&mut self, now: Instant) {
        self.barred_until = Some(now + BARRED);
    }

    pub(super) fn is_barred(&self, now: Instant) -> bool {
        self.barred_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Record;

    fn rows(ranges: &[(i64, i64)]) -> Vec<KeyRecord> {
        let row = |&(offset, size): &(i64, i64)| KeyRecord {
            key: format!("/{offset}"),
            record: Record {
                offset,
                size,
                ..Record::default()
            },
        };
        ranges.iter().map(row).collect()
    }

    #[test]
    fn windows_end_with_blocks() {
        let mut extent = Extent::default();
        assert_eq!(extent.cut(0, 10), Cut::Unknown);
        assert_eq!(extent.ask_from(7), 7);
        extent.learn(100, &rows(&[(100, 50), (150, 50), (210, 90)]));
        assert_eq!(extent.cut(100, 199), Cut::At(150));
        assert_eq!(extent.cut(100, 200), Cut::At(200));
        assert_eq!(extent.cut(100, 120), Cut::At(150), "one block at least");
        assert_eq!(extent.cut(150, 9999), Cut::At(300));
        assert_eq!(extent.cut(300, 9999), Cut::End);
        assert_eq!(extent.cut(301, 9999), Cut::Unknown);
        assert_eq!(extent.cut(99, 150), Cut::Unknown);
    }

    /// As in a CAR: 39 bytes before each block.
    #[test]
    fn framing_between_blocks_is_told_from_blocks() {
        let mut extent = Extent::default();
        assert!(!extent.is_framing(0, 10));
        let page: Vec<_> = (0..ROWS as i64).map(|n| (100 + n * 139, 100)).collect();
        extent.learn(0, &rows(&page));
        assert!(extent.is_framing(200, 239), "between two");
        assert!(extent.is_framing(0, 99), "before the first");
        for (from, until) in [(200, 400), (199, 239), (200, 1000)] {
            assert!(!extent.is_framing(from, until), "{from}..{until}");
        }
        let end = ROWS as u64 * 139 + 61;
        assert_eq!(extent.cut(end, end + 1), Cut::Unknown);
        assert!(
            !extent.is_framing(end, end + 39),
            "what follows is not known"
        );
        assert_eq!(extent.ask_from(end + 39), end);
        assert_eq!(extent.ask_from(end + 1000), end + 1000);
        extent.learn(end, &rows(&[(end as i64 + 39, 100)]));
        assert!(extent.is_framing(end, end + 39));
        assert_eq!(extent.cut(end + 39, u64::MAX), Cut::At(end + 139));
        assert!(extent.is_framing(200, 239), "still known");
    }

    #[test]
    fn a_window_is_not_shorter_for_framing_and_is_for_holes() {
        let mut extent = Extent::default();
        let framed: Vec<_> = (0..100).map(|n| (39 + n * 139, 100)).collect();
        extent.learn(0, &rows(&framed));
        // From the end of a block, from the beginning of the next, and from within it.
        for (from, len) in [(139, 400), (150, 400), (178, 400), (188, 390)] {
            assert_eq!(extent.cut(from, from + len), Cut::At(139 * 5), "{from}");
            assert_eq!(extent.cut(from, from + len - 1), Cut::At(139 * 4), "{from}");
        }
        assert_eq!(extent.cut(0, 399), Cut::At(139 * 3));
        assert_eq!(extent.cut(0, 400), Cut::At(139 * 4));
        let hole = FRAME as i64 + 1;
        extent.learn(0, &rows(&[(0, 100), (100 + hole, 100)]));
        assert_eq!(extent.cut(0, 200), Cut::At(100));
        assert_eq!(extent.cut(0, 200 + FRAME + 1), Cut::At(200 + FRAME + 1));
    }

    #[test]
    fn rows_are_asked_for_piece_by_piece() {
        let mut extent = Extent::default();
        let page: Vec<_> = (0..ROWS as i64).map(|n| (n * 10, 10)).collect();
        let end = ROWS as u64 * 10;
        extent.learn(0, &rows(&page));
        assert_eq!(extent.cut(5, end), Cut::At(end));
        assert_eq!(extent.cut(5, end + 1), Cut::At(end), "enough for a window");
        assert_eq!(extent.cut(end / 2 + 10, end + 1), Cut::Unknown);
        assert_eq!(extent.cut(end, end + 1), Cut::Unknown);
        assert_eq!(extent.ask_from(5), end);
        assert_eq!(extent.ask_from(end), end);
        extent.learn(end, &rows(&[(end as i64 + 5, 10)]));
        assert_eq!(extent.cut(5, u64::MAX), Cut::At(end + 15));
        assert_eq!(extent.cut(end + 15, u64::MAX), Cut::End);
        for n in 1..9 {
            let at = (n * 1_000_000) as i64;
            let page: Vec<_> = (0..ROWS as i64).map(|n| (at + n * 10, 10)).collect();
            extent.learn(at as u64, &rows(&page));
        }
        assert!(extent.ends.len() <= ENDS);
    }

    #[test]
    fn a_hole_ends_it_and_nonsense_does_not() {
        let hole = HOLE as i64;
        let mut extent = Extent::default();
        extent.learn(
            0,
            &rows(&[(0, 10), (-5, 10), (10, -1), (10, hole), (2 * hole + 20, 10)]),
        );
        assert_eq!(extent.cut(0, u64::MAX), Cut::At(10 + HOLE));
        assert_eq!(extent.cut(10 + HOLE, u64::MAX), Cut::End);
        let beyond = 2 * HOLE + 20;
        assert_eq!(extent.cut(beyond, u64::MAX), Cut::Unknown);
        extent.learn(beyond, &[]);
        assert_eq!(extent.cut(beyond, u64::MAX), Cut::End);
    }

    #[test]
    fn barred_for_a_while() {
        let (mut extent, now) = (Extent::default(), Instant::now());
        assert!(!extent.is_barred(now));
        extent.bar(now);
        assert!(extent.is_barred(now));
        assert!(!extent.is_barred(now + BARRED));
    }
}
