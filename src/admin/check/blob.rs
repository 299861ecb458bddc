//! One blob: its rows, its entry in the ledger, its bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::data::{Found, Reading};
use super::finding::{Finding, FindingKind};
use super::options::Data;
use super::rows::{self, Suspect, Times};
use crate::clock::{Clock, EpochClock};
use crate::error::Result;
use crate::index::{Blob, Index, KeyRecord, Record};

/// What all blobs are looked at with.
pub(super) struct Looking {
    pub(super) index: Arc<dyn Index>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) epochs: EpochClock,
    pub(super) soon: Duration,
    pub(super) data: Data,
    pub(super) reading: Arc<Reading>,
}

/// A block that Walrus does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) kind: FindingKind,
    pub(crate) row: KeyRecord,
}

/// What was found of a blob.
#[derive(Debug, Default)]
pub(crate) struct BlobReport {
    pub(crate) blob_id: String,
    pub(crate) findings: Vec<Finding>,
    /// The blocks that Walrus does not give, in the order of their keys.
    pub(crate) lost: Vec<Lost>,
    /// Whether the end of the blob's storage has certainly passed.
    pub(crate) is_over: bool,
    /// Its rows, and their bytes.
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    /// Every block was to be read.
    pub(super) read: bool,
    /// It could not be read, by a failure that may pass.
    pub(super) unreadable: bool,
}

/// Looks at a blob.
pub(super) async fn look(
    looking: Arc<Looking>,
    blob_id: String,
    entry: Option<Blob>,
) -> Result<BlobReport> {
    let rows = Arc::new(looking.index.rows_of_blob(&blob_id).await?);
    let mut report = BlobReport {
        blocks: rows.len() as u64,
        ..BlobReport::default()
    };
    for row in rows.iter() {
        let size = row.record.size.max(0).unsigned_abs();
        report.bytes = report.bytes.saturating_add(size);
    }
    let times = Times {
        now: looking.clock.now(),
        epochs: &looking.epochs,
        soon: looking.soon,
    };
    let looked = match rows.is_empty() {
        true => rows::Looked::default(),
        false => rows::look(&blob_id, &rows, entry.as_ref(), &times),
    };
    report.is_over = looked.is_over;
    let mut readable: Vec<usize> = looked.blocks.iter().map(|block| block.row).collect();
    readable.extend(&looked.members);
    let mut found = Found::default();
    if !readable.is_empty() {
        let whole = match looking.data {
            Data::Read(sample) => sample.takes(&blob_id),
            Data::None | Data::Probe => false,
        };
        if whole {
            let (blocks, members) = (&looked.blocks, &looked.members);
            found = looking
                .reading
                .read(&blob_id, &rows, blocks, members)
                .await?;
        } else if looking.data != Data::None {
            let blocks = &looked.blocks;
            found = looking.reading.probe(&blob_id, blocks, &readable).await?;
        }
        report.read = whole;
    }
    report.unreadable = found.unreadable.is_some();
    let mut suspects = looked.suspects;
    let lapsed = suspects.iter().any(|s| s.kind == FindingKind::Lapsed);
    let gone = found.missing.is_some();
    if let Some(text) = found.missing.take().filter(|_| !lapsed) {
        suspects.push(Suspect {
            kind: FindingKind::Missing,
            rows: readable,
            text,
        });
    }
    suspects.extend(found.suspects);
    suspects.extend(size(&rows, entry.as_ref(), found.total));
    if !suspects.is_empty() {
        let now = looking.index.rows_of_blob(&blob_id).await?;
        let lapsed_is_lost = gone || looking.data == Data::None;
        judge(&blob_id, &rows, &now, suspects, lapsed_is_lost, &mut report);
    }
    report.blob_id = blob_id;
    Ok(report)
}

/// Whether the ledger holds the length of the blob.
fn size(rows: &[KeyRecord], entry: Option<&Blob>, total: Option<u64>) -> Option<Suspect> {
    let (entry, total) = (entry?, total?);
    let same = entry.size == 0 || u64::try_from(entry.size) == Ok(total);
    (!same).then(|| Suspect {
        kind: FindingKind::WrongSize,
        rows: (0..rows.len()).collect(),
        text: format!(
            "the blob has {total} bytes, and the ledger says {}",
            entry.size
        ),
    })
}

/// Makes findings of what was suspected, as far as the rows are still the same.
fn judge(
    blob_id: &str,
    rows: &[KeyRecord],
    now: &[KeyRecord],
    suspects: Vec<Suspect>,
    lapsed_is_lost: bool,
    report: &mut BlobReport,
) {
    let now: HashMap<&str, &Record> = now
        .iter()
        .map(|row| (row.key.as_str(), &row.record))
        .collect();
    let mut lost: BTreeSet<(usize, FindingKind)> = BTreeSet::new();
    for suspect in suspects {
        let kind = suspect.kind;
        let still = suspect.rows.into_iter().filter(|&number| {
            let row = &rows[number];
            now.get(row.key.as_str()).is_some_and(|now| match kind {
                FindingKind::Lapsed | FindingKind::EndsSoon | FindingKind::LedgerEnd => {
                    **now == row.record
                }
                _ => (now.offset, now.size) == (row.record.offset, row.record.size),
            })
        });
        let still: Vec<usize> = still.collect();
        if still.is_empty() {
            continue;
        }
        let is_lost = match kind {
            FindingKind::Missing | FindingKind::WrongBytes | FindingKind::BeyondEnd => true,
            FindingKind::BadRow => true,
            FindingKind::Lapsed => lapsed_is_lost,
            _ => false,
        };
        if is_lost {
            lost.extend(still.iter().map(|&number| (number, kind)));
        }
        let of: Vec<&KeyRecord> = still.iter().map(|&number| &rows[number]).collect();
        let finding = Finding::of_rows(kind, blob_id, &of, suspect.text);
        report.findings.push(finding);
    }
    let mut last = None;
    for (number, kind) in lost {
        // One of the kinds is enough.
        if last.replace(number) != Some(number) {
            report.lost.push(Lost {
                kind,
                row: rows[number].clone(),
            });
        }
    }
}
