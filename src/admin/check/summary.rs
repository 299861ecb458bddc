//! What a check tells while it runs and at its end.

use std::time::Duration;

use serde_json::{json, Value};

use super::finding::{Finding, Severity};
use super::options::Cursor;
use crate::index::Usage;

/// The name and version of the report's schema. Fields may be added within a version.
pub const SCHEMA: &str = "walrusds.check/1";

/// How far a check has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// From where another check would go on.
    pub cursor: Cursor,
    /// Blobs that are done; a resumed check begins with 0.
    pub blobs: u64,
    /// Blobs that this run looks at, as counted at its beginning.
    pub blobs_in_all: u64,
    /// Bytes of blocks in the blobs that are done.
    pub bytes: u64,
    /// Bytes of blocks in the blobs that this run looks at.
    pub bytes_in_all: u64,
}

/// What happens while a check runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Something was found.
    Finding(Finding),
    /// A blob is done.
    Progress(Progress),
}

/// What set the pace of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// All cores hashed most of the time.
    Hashing,
    /// The cores waited for the aggregators, the network between, or the index.
    Aggregator,
}

impl Limit {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Hashing => "hashing",
            Limit::Aggregator => "aggregator",
        }
    }
}

/// Why a check ended before the last blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// The caller asked for it.
    Asked,
    /// Too many blobs in a row could not be read: the aggregators seem to be down.
    Unreadable,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// From where another check would go on, and the numbers of findings.
    pub cursor: Cursor,
    /// Why it ended early, if it did.
    pub stopped: Option<Stopped>,
    /// Blobs that were looked at.
    pub blobs: u64,
    /// Blobs of which all live blocks were read.
    pub blobs_read: u64,
    /// Their rows.
    pub blocks: u64,
    /// Bytes of the blocks.
    pub bytes: u64,
    /// Blocks that were read and hash to their keys.
    pub verified: u64,
    /// Blocks that were read, and whose keys name no content.
    pub unverifiable: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Requests for data.
    pub requests: u64,
    /// Notes that were made.
    pub notes: u64,
    /// The sum of the rows, where all were counted.
    pub counted: Option<Usage>,
    /// The running totals beside it.
    pub totals: Option<Usage>,
    /// How long it took.
    pub took: Duration,
    /// The part of the cores' time that went into hashing (0 to 1).
    pub hashing: f64,
}

impl Summary {
    pub(super) fn new(cursor: Cursor) -> Summary {
        Summary {
            cursor,
            stopped: None,
            blobs: 0,
            blobs_read: 0,
            blocks: 0,
            bytes: 0,
            verified: 0,
            unverifiable: 0,
            bytes_read: 0,
            requests: 0,
            notes: 0,
            counted: None,
            totals: None,
            took: Duration::ZERO,
            hashing: 0.0,
        }
    }

    /// Counts a finding.
    pub(super) fn found(&mut self, finding: &Finding) {
        match finding.severity() {
            Severity::Error => self.cursor.errors += 1,
            Severity::Warning => self.cursor.warnings += 1,
            Severity::Note => self.notes += 1,
        }
    }

    /// Errors and warnings, earlier parts of a resumed check included.
    pub fn findings(&self) -> u64 {
        self.cursor.errors + self.cursor.warnings
    }

    /// What set the pace of reading; `None` if nothing was read.
    pub fn limit(&self) -> Option<Limit> {
        (self.bytes_read > 0).then_some(match self.hashing >= 0.7 {
            true => Limit::Hashing,
            false => Limit::Aggregator,
        })
    }

    /// Bytes that were read in a second.
    pub fn rate(&self) -> f64 {
        self.bytes_read as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        let usage = |usage: Option<Usage>| {
            usage.map(|usage| json!({"blocks": usage.blocks, "bytes": usage.bytes}))
        };
        json!({
            "type": "summary",
            "schema": SCHEMA,
            "complete": self.stopped.is_none(),
            "cursor": self.stopped.map(|_| self.cursor.to_string()),
            "errors": self.cursor.errors,
            "warnings": self.cursor.warnings,
            "notes": self.notes,
            "blobs": self.blobs,
            "blobs_read": self.blobs_read,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "blocks_verified": self.verified,
            "blocks_unverifiable": self.unverifiable,
            "bytes_read": self.bytes_read,
            "requests": self.requests,
            "counted": usage(self.counted),
            "totals": usage(self.totals),
            "seconds": self.took.as_secs_f64(),
            "bytes_per_second": self.rate(),
            "hashing_share": self.hashing,
            "limit": self.limit().map(Limit::name),
        })
    }
}

impl Progress {
    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "progress",
            "cursor": self.cursor.to_string(),
            "blobs": self.blobs,
            "blobs_in_all": self.blobs_in_all,
            "bytes": self.bytes,
            "bytes_in_all": self.bytes_in_all,
        })
    }
}

impl Event {
    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        match self {
            Event::Finding(finding) => finding.to_json(),
            Event::Progress(progress) => progress.to_json(),
        }
    }
}
