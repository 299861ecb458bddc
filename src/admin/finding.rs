//! What an operator should act on.

use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is lost if it stays so.
    Note,
    /// It costs money or speed, or will do harm later.
    Warning,
    /// Data is lost, or about to be.
    Error,
}

impl Severity {
    /// Lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// Something that an operator should act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// A name that never changes, for scripts.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do, as a command or a line of configuration where that is possible.
    pub cure: String,
}

impl Finding {
    /// A finding.
    pub fn new(
        id: &'static str,
        severity: Severity,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        Finding {
            id,
            severity,
            what: what.into(),
            cure: cure.into(),
        }
    }
}

/// Two lines: the finding, and the cure.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.severity.as_str();
        write!(f, "{severity}: {}\n  do: {}", self.what, self.cure)
    }
}
