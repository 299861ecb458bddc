//! What the rows of one blob tell by themselves, without its bytes.

use std::time::{Duration, SystemTime};

use super::finding::{shown, FindingKind};
use crate::clock::EpochClock;
use crate::index::{Blob, BlobState, KeyRecord};
use crate::walrus;

/// Something that may be wrong with rows of a blob. Rows are named by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) kind: FindingKind,
    pub(super) rows: Vec<usize>,
    pub(super) text: String,
}

/// A block that can be read as a part of its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// The number of its row.
    pub(super) row: usize,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The rows of a blob, looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) suspects: Vec<Suspect>,
    /// The blocks that are parts of the blob, in the order of their places.
    pub(super) blocks: Vec<Block>,
    /// The rows of the blocks that are members of a quilt.
    pub(super) members: Vec<usize>,
    /// Whether the end of the blob's storage has certainly passed.
    pub(super) is_over: bool,
}

/// The time by which ends of storage are judged.
pub(super) struct Times<'a> {
    pub(super) now: SystemTime,
    pub(super) epochs: &'a EpochClock,
    /// Blobs that end within this time are reported.
    pub(super) soon: Duration,
}

/// Looks at the rows of a blob and at its entry in the ledger.
pub(super) fn look(
    blob_id: &str,
    rows: &[KeyRecord],
    entry: Option<&Blob>,
    times: &Times<'_>,
) -> Looked {
    let mut looked = Looked::default();
    let all = || (0..rows.len()).collect::<Vec<usize>>();
    if !walrus::is_blob_id(blob_id) {
        let text = match blob_id.is_empty() {
            true => "rows name no blob".to_owned(),
            false => format!("{blob_id:?} is no blob ID (43 characters of base64url)"),
        };
        looked.suspects.push(Suspect {
            kind: FindingKind::BadRow,
            rows: all(),
            text,
        });
        return looked;
    }
    let mut bad = Vec::new();
    let mut said = String::new();
    for (number, row) in rows.iter().enumerate() {
        match row.record.range() {
            Err(e) => {
                if bad.is_empty() {
                    said = e.message().to_owned();
                }
                bad.push(number);
            }
            Ok(_) if row.record.patch_id.is_some() => looked.members.push(number),
            Ok(range) => looked.blocks.push(Block {
                row: number,
                start: range.start,
                end: range.end,
            }),
        }
    }
    if !bad.is_empty() {
        looked.suspects.push(Suspect {
            kind: FindingKind::BadRow,
            rows: bad,
            text: said,
        });
    }
    looked
        .blocks
        .sort_unstable_by_key(|b| (b.start, b.end, b.row));
    looked.suspects.extend(overlaps(&looked.blocks, rows));
    ends(rows, entry, times, &mut looked);
    looked.suspects.extend(of_ledger(rows, entry));
    looked
}

/// Blocks that lie partly in the same bytes. Two keys may well name the same bytes.
fn overlaps(blocks: &[Block], rows: &[KeyRecord]) -> Option<Suspect> {
    let mut found: Vec<usize> = Vec::new();
    let mut text = String::new();
    let mut furthest: Option<Block> = None;
    for block in blocks.iter().filter(|block| block.end > block.start) {
        if let Some(before) = furthest {
            let same = (before.start, before.end) == (block.start, block.end);
            if block.start < before.end && !same {
                if found.is_empty() {
                    text = format!(
                        "blocks {} at {}..{} and {} at {}..{} lie partly in the same bytes",
                        rows[before.row].key,
                        before.start,
                        before.end,
                        rows[block.row].key,
                        block.start,
                        block.end
                    );
                }
                found.push(before.row);
                found.push(block.row);
            }
        }
        if furthest.is_none_or(|before| block.end > before.end) {
            furthest = Some(*block);
        }
    }
    found.sort_unstable();
    found.dedup();
    (!found.is_empty()).then_some(Suspect {
        kind: FindingKind::Overlap,
        rows: found,
        text,
    })
}

/// Whether the blob has lapsed, or will soon.
fn ends(rows: &[KeyRecord], entry: Option<&Blob>, times: &Times<'_>, looked: &mut Looked) {
    // A blob is stored until the latest end that is known of it.
    let epoch = rows.iter().map(|row| row.record.end_epoch).max();
    let epoch = epoch.max(entry.map(|entry| entry.end_epoch)).unwrap_or(0);
    let time = rows.iter().filter_map(|row| row.record.expires_at).max();
    let time = time.max(entry.and_then(|entry| entry.expires_at));
    let known = u64::try_from(epoch).unwrap_or(0);
    looked.is_over = times.epochs.is_over(known);
    let until = match known {
        0 => format!("until {}", shown(time)),
        known => format!("until epoch {known} began, {}", shown(time)),
    };
    let kind = if looked.is_over || time.is_some_and(|time| time <= times.now) {
        FindingKind::Lapsed
    } else if time.is_some_and(|time| time <= times.now + times.soon) {
        FindingKind::EndsSoon
    } else {
        return;
    };
    let certain = match (kind, looked.is_over) {
        (FindingKind::Lapsed, true) => "a node has seen that epoch",
        (FindingKind::Lapsed, false) => "by this machine's clock",
        _ => "and nobody has renewed it yet",
    };
    looked.suspects.push(Suspect {
        kind,
        rows: (0..rows.len()).collect(),
        text: format!("the blob is stored {until} ({certain})"),
    });
}

/// Whether the ledger says what the rows say.
fn of_ledger(rows: &[KeyRecord], entry: Option<&Blob>) -> Vec<Suspect> {
    let all = || (0..rows.len()).collect::<Vec<usize>>();
    let Some(entry) = entry else {
        return vec![Suspect {
            kind: FindingKind::NoEntry,
            rows: all(),
            text: "the ledger has no entry for the blob".to_owned(),
        }];
    };
    let mut suspects = Vec::new();
    if entry.state != BlobState::Live {
        suspects.push(Suspect {
            kind: FindingKind::LedgerState,
            rows: all(),
            text: format!(
                "the ledger says that nothing is left in the blob, and {} blocks are",
                rows.len()
            ),
        });
    }
    let other = rows.iter().enumerate();
    let other = other.filter(|(_, row)| {
        row.record.end_epoch > 0 && entry.end_epoch > 0 && row.record.end_epoch != entry.end_epoch
    });
    let other: Vec<usize> = other.map(|(number, _)| number).collect();
    if let Some(first) = other.first() {
        let text = format!(
            "the ledger says that the blob ends with epoch {}, and rows say {}",
            entry.end_epoch, rows[*first].record.end_epoch
        );
        suspects.push(Suspect {
            kind: FindingKind::LedgerEnd,
            rows: other,
            text,
        });
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Record;

    const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";

    fn row(key: &str, offset: i64, size: i64) -> KeyRecord {
        KeyRecord::new(key, Record::new(ID, offset, size))
    }

    fn entry() -> Blob {
        Blob {
            blob_id: ID.to_owned(),
            ..Blob::default()
        }
    }

    fn kinds(id: &str, rows: &[KeyRecord], entry: Option<&Blob>) -> Vec<(FindingKind, Vec<usize>)> {
        let epochs = EpochClock::new(Duration::from_secs(100));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let _ = epochs.expires_at(now, 5, 6);
        let times = Times {
            now,
            epochs: &epochs,
            soon: Duration::from_secs(100),
        };
        let looked = look(id, rows, entry, &times);
        let found = looked.suspects.into_iter();
        found.map(|suspect| (suspect.kind, suspect.rows)).collect()
    }

    #[test]
    fn sound_rows_are_not_suspected() {
        let rows = [row("/a", 0, 10), row("/b", 10, 0), row("/c", 10, 5)];
        assert_eq!(kinds(ID, &rows, Some(&entry())), []);
        // Two keys of the same bytes.
        let rows = [row("/a", 0, 10), row("/b", 0, 10)];
        assert_eq!(kinds(ID, &rows, Some(&entry())), []);
    }

    #[test]
    fn impossible_rows_and_overlaps_are_found() {
        let rows = [row("/a", -1, 10), row("/b", 0, 10), row("/c", 9, 10)];
        assert_eq!(
            kinds(ID, &rows, Some(&entry())),
            [
                (FindingKind::BadRow, vec![0]),
                (FindingKind::Overlap, vec![1, 2])
            ]
        );
        assert_eq!(
            kinds("short", &rows[1..2], None),
            [(FindingKind::BadRow, vec![0])]
        );
    }

    #[test]
    fn ends_are_judged_by_epochs_and_by_the_clock() {
        let ending = |epoch: i64, seconds: Option<u64>| {
            let mut row = row("/a", 0, 10);
            row.record.end_epoch = epoch;
            row.record.expires_at =
                seconds.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
            kinds(ID, &[row], Some(&entry()))
                .first()
                .map(|(kind, _)| *kind)
        };
        assert_eq!(ending(5, None), Some(FindingKind::Lapsed));
        assert_eq!(ending(6, None), None);
        assert_eq!(ending(0, Some(999_999)), Some(FindingKind::Lapsed));
        assert_eq!(ending(9, Some(1_000_050)), Some(FindingKind::EndsSoon));
        assert_eq!(ending(9, Some(1_000_400)), None);
    }

    #[test]
    fn the_ledger_is_compared() {
        let mut row = row("/a", 0, 10);
        row.record.end_epoch = 9;
        let rows = [row];
        assert_eq!(kinds(ID, &rows, None), [(FindingKind::NoEntry, vec![0])]);
        let mut entry = entry();
        entry.state = BlobState::Released;
        entry.end_epoch = 12;
        assert_eq!(
            kinds(ID, &rows, Some(&entry)),
            [
                (FindingKind::LedgerState, vec![0]),
                (FindingKind::LedgerEnd, vec![0])
            ]
        );
    }
}
