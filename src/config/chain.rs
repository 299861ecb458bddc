//! The operator's `walrus` program.

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
