//! How far a rebuild has come, noted in the index itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{Index, Usage};

/// The note.
const NOTE: &str = "rebuild.state";

/// How many blobs that were left out are named; all are counted.
pub const MOST_NAMED: usize = 10_000;

/// Why no rows were made of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Why {
    /// It is a pack of the format `concat`, which does not say which blocks it holds.
    Concat,
    /// It does not say which blocks it holds: a pack of the format `concat` that is not listed as
    /// such, or a blob that walrusds did not write.
    Undescribed,
    /// It is a file of walrusds, and damaged or forged.
    Damaged,
    /// It is a quilt, and the index takes no members of quilts. Those of this crate take them.
    NoColumn,
    /// No aggregator has it: its storage is over, or it was deleted.
    Gone,
    /// It could not be read. Another run may succeed.
    Unreadable,
}

impl Why {
    /// A few words for an operator.
    pub fn describe(self) -> &'static str {
        match self {
            Why::Concat => "format concat: it does not say which blocks it holds",
            Why::Undescribed => {
                "it does not say which blocks it holds (format concat, or not of walrusds)"
            }
            Why::Damaged => "damaged or forged",
            Why::NoColumn => "a quilt, which this index cannot hold",
            Why::Gone => "no longer stored",
            Why::Unreadable => "could not be read",
        }
    }
}

/// A blob of which no rows were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct LeftOut {
    /// The blob.
    pub blob_id: String,
    /// The reason.
    pub why: Why,
    /// What the read of it said, in one line.
    pub said: String,
}

/// Blocks and their bytes, in the note.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Usage")]
struct UsageNote {
    blocks: i64,
    bytes: i64,
}

/// What a rebuild has done so far. A run that carries another one on counts on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Report {
    /// Blobs of the list.
    pub blobs: u64,
    /// Blobs that were dealt with: rebuilt or left out.
    pub done: u64,
    /// Whether all of the list was dealt with.
    pub ended: bool,
    /// Blobs whose blocks are all in the index.
    pub rebuilt: u64,
    /// Blocks found in them. A block that lies in two blobs counts twice.
    #[serde(with = "UsageNote")]
    pub found: Usage,
    /// Rows that were added; the others were there.
    #[serde(with = "UsageNote")]
    pub added: Usage,
    /// Blobs that were rebuilt and whose end is not known: they are not renewed before it is.
    pub without_end: u64,
    /// Blobs that were left out, by the reason.
    pub left_out: BTreeMap<Why, u64>,
    /// Blobs that were left out, the first [`MOST_NAMED`] of them.
    pub named: Vec<LeftOut>,
    /// The list.
    #[serde(rename = "list")]
    pub(super) fingerprint: String,
}

impl Report {
    /// Whether every blob of the list was rebuilt.
    pub fn is_complete(&self) -> bool {
        self.ended && self.left_out.is_empty()
    }

    /// Whether another run with the same list may add something.
    pub fn may_go_on(&self) -> bool {
        !self.ended || self.left_out.contains_key(&Why::Unreadable)
    }

    pub(super) fn leave_out(&mut self, blob: LeftOut) {
        *self.left_out.entry(blob.why).or_default() += 1;
        if self.named.len() < MOST_NAMED {
            self.named.push(blob);
        }
    }
}

/// Whether the index was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebuildState {
    /// No rebuild of this index was ever begun.
    Absent,
    /// Rows are missing: a rebuild did not come to its end yet, or had to leave blobs out.
    Partial(Report),
    /// Every blob of the list was rebuilt.
    Complete(Report),
}

/// Tells whether an index was rebuilt, and how far.
///
/// # Errors
/// [`ErrorKind::Index`]; [`ErrorKind::Corrupt`] if the note in the index cannot be read.
pub async fn rebuild_state(index: &dyn Index) -> Result<RebuildState> {
    Ok(match noted(index).await? {
        None => RebuildState::Absent,
        Some(report) if report.is_complete() => RebuildState::Complete(report),
        Some(report) => RebuildState::Partial(report),
    })
}

pub(super) async fn noted(index: &dyn Index) -> Result<Option<Report>> {
    let Some(text) = index.note(NOTE).await? else {
        return Ok(None);
    };
    let report = serde_json::from_str(&text).map_err(|e| {
        let text = format!("the note {NOTE:?} in the index is no report of a rebuild: {e}");
        Error::new(ErrorKind::Corrupt, text)
    })?;
    Ok(Some(report))
}

pub(super) async fn note(index: &dyn Index, report: &Report) -> Result<()> {
    let text = serde_json::to_string(report).map_err(|e| {
        let text = format!("a report of a rebuild cannot be written: {e}");
        Error::new(ErrorKind::Internal, text)
    })?;
    index.set_note(NOTE, Some(&text)).await
}
