//! The operator's `walrus` program.

use std::time::Duration;

use serde_json::Value;

use super::{bad, describe, Fields, WalrusCommand};
use crate::error::{Error, Result};

const NAME: &str = "walrusCommand";
const EXPECTED: &str =
    "the program and its options as a list of strings, such as [\"walrus\", \"--wallet\", \"/path\"]";

impl Fields<'_> {
    /// The program and its options: a list, or a list in a text (from an environment variable), or
    /// the program alone.
    pub(super) fn walrus_command(&self) -> Result<Option<WalrusCommand>> {
        if let Some(Value::Array(list)) = self.0.get(NAME) {
            return command(list).map(Some);
        }
        let Some(text) = self.text(NAME)?.map(str::trim) else {
            return Ok(None);
        };
        if text.starts_with('[') {
            return match serde_json::from_str::<Vec<Value>>(text) {
                Ok(list) => command(&list).map(Some),
                // Not shown: an option may hold a secret.
                Err(_) => Err(wrong("a text that begins like a list and is none")),
            };
        }
        // How a shell would split it is not guessed.
        if text.contains(char::is_whitespace) {
            return Err(wrong("a text with blanks"));
        }
        Ok(Some(WalrusCommand::new(text, Vec::new())))
    }
}

impl Fields<'_> {
    /// Whether storage is used again. Only a blob that the node's own wallet can delete leaves any,
    /// and what takes it over may end soon, so that the node must extend it.
    pub(super) fn reuse_storage(&self, renew_interval: Duration) -> Result<bool> {
        const REUSE: &str = "reuseStorage";
        if !self.flag(REUSE, false)? {
            return Ok(false);
        }
        let missing = if self.walrus_command()?.is_none() {
            "walrusCommand is not set, expected the program that deletes blobs of the publisher's wallet"
        } else if !self.flag("deletable", false)? {
            "deletable is false, expected true: only a deletable blob gives its storage back"
        } else if renew_interval.is_zero() {
            "renewIntervalSeconds is 0, expected a number above 0: storage that is used again may end soon"
        } else {
            return Ok(true);
        };
        Err(bad(format!("{REUSE} is true, but {missing}")))
    }
}

fn wrong(found: &str) -> Error {
    bad(format!("{NAME} is {found}, expected {EXPECTED}"))
}

fn command(list: &[Value]) -> Result<WalrusCommand> {
    let mut words = Vec::with_capacity(list.len());
    for word in list {
        match word {
            Value::String(word) if word.contains('\0') => {
                return Err(bad(format!("{NAME} holds a NUL character")))
            }
            Value::String(word) => words.push(word.clone()),
            other => return Err(wrong(&format!("a list that holds {}", describe(other)))),
        }
    }
    let mut words = words.into_iter();
    match words.next().filter(|program| !program.trim().is_empty()) {
        Some(program) => Ok(WalrusCommand::new(program, words.collect())),
        None => Err(wrong("a list without a program")),
    }
}
