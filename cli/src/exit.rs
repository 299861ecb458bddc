//! How a command ends: the exit codes of docs/command.md.

use std::fmt;

use serde::Serialize;
use walrusds::{Error, ErrorKind};

/// A command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// There is nothing for the operator to do.
    Fine,
    /// The report names something that the operator should act on.
    Findings,
    /// The operator interrupted it, and it has printed what it had until then.
    Interrupted,
}

impl Exit {
    /// Findings, if there are any.
    pub fn findings(any: bool) -> Exit {
        match any {
            true => Exit::Findings,
            false => Exit::Fine,
        }
    }

    pub fn code(self) -> u8 {
        match self {
            Exit::Fine => 0,
            Exit::Findings => 3,
            Exit::Interrupted => 130,
        }
    }
}

/// A command that could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// The engine's error.
    Engine(Error),
    /// Arguments that do not fit together, or a value that cannot be understood.
    Usage(String),
    /// Anything else, in a sentence for the operator.
    Failed(String),
    /// The operator interrupted it; the text says how to go on.
    Interrupted(String),
    /// The reader of standard output is gone (`walrusds … | head`).
    NoReader,
}

impl Failure {
    pub fn code(&self) -> u8 {
        match self {
            Failure::Engine(e) if e.kind() == ErrorKind::Locked => 4,
            Failure::Engine(_) | Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Interrupted(_) => 130,
            Failure::NoReader => 0,
        }
    }

    /// The error as `--json` prints it.
    pub fn report(&self) -> Report {
        let (kind, retryable) = match self {
            Failure::Engine(e) => (format!("{:?}", e.kind()), e.is_retryable()),
            Failure::Usage(_) => ("Usage".to_owned(), false),
            Failure::Failed(_) | Failure::NoReader => ("Failed".to_owned(), false),
            Failure::Interrupted(_) => ("Interrupted".to_owned(), true),
        };
        Report {
            kind,
            message: self.to_string(),
            retryable,
        }
    }
}

/// An error in JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    kind: String,
    message: String,
    retryable: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Engine(e) => e.fmt(f),
            Failure::Usage(text) | Failure::Failed(text) => f.write_str(text),
            Failure::Interrupted(resume) => write!(f, "interrupted; {resume}"),
            Failure::NoReader => f.write_str("standard output was closed"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Engine(error)
    }
}
