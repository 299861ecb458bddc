//! The known ends of the blocks of a blob. Ranges must be exact: an aggregator refuses a range that
//! reaches beyond a blob; and a window should hold whole blocks, or the one at its edge is fetched
//! twice.

use std::time::{Duration, Instant};

use super::streams::Cut;
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

/// The known part of one blob.
#[derive(Debug, Default)]
pub(super) struct Extent {
    from: u64,
    /// Ends of blocks from `from` on, in order. Empty: nothing is known.
    ends: Vec<u64>,
    /// Nothing worth fetching follows the last end.
    complete: bool,
    barred_until: Option<Instant>,
}

impl Extent {
    /// Where a window from `from` can end that should not reach beyond `upto`.
    pub(super) fn cut(&self, from: u64, upto: u64) -> Cut {
        let Some(&last) = self.ends.last() else {
            return Cut::Unknown;
        };
        if from < self.from || from > last {
            return Cut::Unknown;
        }
        if from == last && self.complete {
            return Cut::End;
        }
        let ahead = self.ends.len() - self.ends.partition_point(|&end| end <= from);
        if upto > last && !self.complete && ahead < ENOUGH {
            return Cut::Unknown;
        }
        let next = self.ends.partition_point(|&end| end <= upto);
        let whole = next.checked_sub(1).and_then(|at| self.ends.get(at));
        let end = whole.filter(|&&end| end > from).or(self.ends.get(next));
        end.map_or(Cut::Unknown, |&end| Cut::At(end))
    }

    /// From where on rows must be asked for, for a window from `from`.
    pub(super) fn ask_from(&self, from: u64) -> u64 {
        match self.ends.last() {
            Some(&last) if (self.from..=last).contains(&from) && !self.complete => last,
            _ => from,
        }
    }

    /// Notes the rows from `asked` on, at most [`ROWS`].
    pub(super) fn learn(&mut self, asked: u64, rows: &[KeyRecord]) {
        if self.ends.last() != Some(&asked) {
            self.from = asked;
            self.ends = vec![asked];
        }
        self.complete = rows.len() < ROWS;
        let ranges = rows.iter().filter(|row| row.record.patch_id.is_none());
        let mut last = asked;
        // A nonsensical row ends nothing: its block is read, and fails, by itself.
        for range in ranges.filter_map(|row| row.record.range().ok()) {
            if range.start > last.saturating_add(HOLE) {
                self.complete = true;
                break;
            }
            if range.end > last {
                last = range.end;
                self.ends.push(last);
            }
        }
        if self.ends.len() > ENDS {
            self.ends.drain(..self.ends.len() - ENDS);
            self.from = self.ends.first().copied().unwrap_or(asked);
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
