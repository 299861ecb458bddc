//! What a check finds.

use std::time::SystemTime;

use serde_json::{json, Value};

use crate::index::KeyRecord;

/// How many keys a finding names; it counts the others.
pub const MOST_KEYS: usize = 10;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Nothing is lost yet.
    Warning,
    /// Blocks cannot be read, or will not be.
    Error,
}

impl Severity {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// The aggregators answer that there is no such blob.
    Missing,
    /// The blob's storage has ended.
    Lapsed,
    /// No aggregator gives bytes that hash to the key.
    WrongBytes,
    /// The blob is shorter than the row says.
    BeyondEnd,
    /// The row cannot be right: a place below zero, or a text that is no blob ID.
    BadRow,
    /// Two blocks lie partly in the same bytes.
    Overlap,
    /// The block or blob could not be read; it may be there.
    Unreadable,
    /// An aggregator gave wrong bytes, and another answer had the right ones.
    WrongAnswer,
    /// The ledger holds another length than the blob has.
    WrongSize,
    /// The ledger and the rows hold other ends of storage.
    LedgerEnd,
    /// The ledger counts the blob as unused, and blocks are in it.
    LedgerState,
    /// Rows point at the blob, and the ledger has no entry for it.
    NoEntry,
    /// The blob's storage ends soon.
    EndsSoon,
    /// The running totals are not the sum of the rows.
    Totals,
    /// Blocks that a Go node has staged are not on Walrus.
    Staged,
}

impl FindingKind {
    /// Every kind, the worst first.
    pub const ALL: [FindingKind; 15] = [
        FindingKind::Missing,
        FindingKind::Lapsed,
        FindingKind::WrongBytes,
        FindingKind::BeyondEnd,
        FindingKind::BadRow,
        FindingKind::Overlap,
        FindingKind::Unreadable,
        FindingKind::WrongAnswer,
        FindingKind::WrongSize,
        FindingKind::LedgerEnd,
        FindingKind::LedgerState,
        FindingKind::EndsSoon,
        FindingKind::Totals,
        FindingKind::NoEntry,
        FindingKind::Staged,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Missing => "missing",
            FindingKind::Lapsed => "lapsed",
            FindingKind::WrongBytes => "wrong_bytes",
            FindingKind::BeyondEnd => "beyond_end",
            FindingKind::BadRow => "bad_row",
            FindingKind::Overlap => "overlap",
            FindingKind::Unreadable => "unreadable",
            FindingKind::WrongAnswer => "wrong_answer",
            FindingKind::WrongSize => "wrong_size",
            FindingKind::LedgerEnd => "ledger_end",
            FindingKind::LedgerState => "ledger_state",
            FindingKind::NoEntry => "no_entry",
            FindingKind::EndsSoon => "ends_soon",
            FindingKind::Totals => "totals",
            FindingKind::Staged => "staged",
        }
    }

    /// How much it matters.
    pub fn severity(self) -> Severity {
        match self {
            FindingKind::Missing
            | FindingKind::Lapsed
            | FindingKind::WrongBytes
            | FindingKind::BeyondEnd
            | FindingKind::BadRow
            | FindingKind::Overlap
            | FindingKind::Unreadable => Severity::Error,
            FindingKind::WrongAnswer
            | FindingKind::WrongSize
            | FindingKind::LedgerEnd
            | FindingKind::LedgerState
            | FindingKind::EndsSoon
            | FindingKind::Totals => Severity::Warning,
            FindingKind::NoEntry | FindingKind::Staged => Severity::Note,
        }
    }

    /// What mends it.
    pub fn cure(self) -> &'static str {
        match self {
            FindingKind::Missing | FindingKind::Lapsed => {
                "walrusds repair looks for copies and stores them again; rows without any copy are dropped with --yes --drop"
            }
            FindingKind::WrongBytes | FindingKind::BeyondEnd | FindingKind::Overlap => {
                "walrusds repair looks for a right copy and stores it again; give it --from or another aggregator in aggregatorURL"
            }
            FindingKind::BadRow => {
                "another program wrote the row: walrusds repair --from stores a copy of the block again; or delete the key"
            }
            FindingKind::Unreadable => {
                "see the error; walrusds doctor tests the aggregators; run the check again with --resume when they answer"
            }
            FindingKind::WrongAnswer => {
                "reads are checked, so nothing wrong is served; report it to the aggregator's operator, or put another one first in aggregatorURL"
            }
            FindingKind::WrongSize | FindingKind::LedgerEnd => {
                "the next renewal of the blob corrects the entry; if it stays, report it"
            }
            FindingKind::LedgerState | FindingKind::NoEntry => {
                "a node with renewIntervalSeconds counts the rows every few hours, and corrects the entry then"
            }
            FindingKind::EndsSoon => {
                "let a node renew: set network and renewIntervalSeconds in Datastore.Spec, and leave the daemon running"
            }
            FindingKind::Totals => "walrusds repair --totals --yes sets the totals right",
            FindingKind::Staged => {
                "start the Go node again, or set adoptStagingSeconds so that this node stores them"
            }
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// The blob, if it concerns one.
    pub blob_id: Option<String>,
    /// How many blocks it concerns.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first keys of these blocks, at most [`MOST_KEYS`].
    pub keys: Vec<String>,
    /// What was found, for people.
    pub text: String,
}

impl Finding {
    pub(super) fn of_rows(
        kind: FindingKind,
        blob_id: &str,
        rows: &[&KeyRecord],
        text: String,
    ) -> Finding {
        let bytes = rows.iter().map(|row| row.record.size.max(0).unsigned_abs());
        Finding {
            kind,
            blob_id: (!blob_id.is_empty()).then(|| blob_id.to_owned()),
            blocks: rows.len() as u64,
            bytes: bytes.fold(0, u64::saturating_add),
            keys: rows
                .iter()
                .take(MOST_KEYS)
                .map(|row| row.key.clone())
                .collect(),
            text,
        }
    }

    /// A finding that concerns the index as a whole.
    pub(super) fn of_index(kind: FindingKind, blocks: u64, bytes: u64, text: String) -> Finding {
        Finding {
            kind,
            blob_id: None,
            blocks,
            bytes,
            keys: Vec::new(),
            text,
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        self.kind.severity()
    }

    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "finding",
            "kind": self.kind.name(),
            "severity": self.severity().name(),
            "blob": self.blob_id,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "keys": self.keys,
            "text": self.text,
            "cure": self.kind.cure(),
        })
    }
}

/// A time for people, or that it is not known.
pub(super) fn shown(time: Option<SystemTime>) -> String {
    time.map_or_else(
        || "an unknown time".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
