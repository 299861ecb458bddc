//! What the program says on stderr when it fails: the words that matter, without secrets, and which
//! failure they tell of.
//!
//! The program's texts are made for people and may change. So a text that is not known counts as a
//! failure that may pass: the caller comes back later, with growing pauses, and the log shows the
//! text.

use super::Failure;
use crate::error::one_line;
use crate::walrus::lacks_coins;

/// The most characters of the text that are shown.
const SHOWN: usize = 400;

/// Of all errors of the contracts, those that will not pass, and the texts about objects that are
/// not there or belong to others.
const REFUSALS: &[&str] = &[
    "enotcertified",
    "eblobnotdeletable",
    "eresourcebounds",
    "einvalidepochsahead",
    "etoofarinfuture",
    "does not exist",
    "notexists",
    "objectnotfound",
    "not owned by",
    "but given owner",
    "is a shared blob",
    "is not a shared blob",
];

/// The failure that a text tells of.
pub(super) fn failure(text: &str) -> Failure {
    let text = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if lacks_coins(&text) {
        Failure::EmptyWallet
    } else if has(&[
        "unexpected argument",
        "unrecognized subcommand",
        "required arguments were not provided",
        "invalid value",
        "unknown variant",
        "missing field",
        "command not found",
        "not found in path",
        "could not find a valid wallet",
        "wallet configuration",
        "client configuration",
        "no such file",
        "permission denied",
        "incompatible with this binary",
    ]) {
        Failure::Unusable
    } else if has(REFUSALS) {
        Failure::Refused
    } else {
        Failure::Unclear
    }
}

/// What an operator is told of a failure.
pub(super) fn explained(failure: Failure, text: String) -> String {
    match failure {
        Failure::EmptyWallet => format!(
            "the wallet lacks WAL, or SUI for gas, in coins that it can spend; send some to its address ({text})"
        ),
        _ => text,
    }
}

/// The words that tell why the program failed: its last error if it marks one, else the last that
/// it said. `arguments` are those of the configuration, which may hold a secret.
pub(super) fn last_words(said: &[u8], arguments: &[String]) -> String {
    let said = without_escapes(&String::from_utf8_lossy(said));
    let lines: Vec<&str> = said.lines().collect();
    let marked = |line: &&str| {
        let line = line.trim_start().to_ascii_lowercase();
        line.starts_with("error")
    };
    let text = match lines.iter().rposition(marked) {
        Some(at) => lines[at..].join(" "),
        None => lines.join(" "),
    };
    let text = redacted(&one_line(&text, usize::MAX), arguments);
    let count = text.chars().count();
    if count <= SHOWN || text.to_ascii_lowercase().starts_with("error") {
        return one_line(&text, SHOWN);
    }
    let tail: String = text.chars().skip(count - SHOWN).collect();
    format!("…{tail}")
}

/// The text without the escape sequences that colour it.
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            plain.push(c);
        } else if chars.next_if_eq(&'[').is_some() {
            // The last character of a sequence is the first letter.
            let _ = chars.by_ref().find(|c| c.is_ascii_alphabetic());
        }
    }
    plain
}

/// Blots out what may be a secret: the paths of URLs (keys of RPC services) and their user info,
/// private keys, and values from the configuration that are no paths.
fn redacted(text: &str, arguments: &[String]) -> String {
    let mut text = text.to_owned();
    for argument in arguments {
        let value = argument.split_once('=').map_or(&**argument, |(_, v)| v);
        let path = value.starts_with(['/', '.', '~', '-']) || value.contains("://");
        if value.len() >= 8 && !path {
            text = text.replace(value, "[redacted]");
        }
    }
    let word = |word: &str| {
        if word.contains("suiprivkey") {
            return "[redacted]".to_owned();
        }
        let Some((before, after)) = word.split_once("://") else {
            return word.to_owned();
        };
        let after = after.rsplit('@').next().unwrap_or_default();
        let host = after.find(['/', '?', '#']);
        match host {
            Some(end) => format!("{before}://{}/…", &after[..end]),
            None => format!("{before}://{after}"),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_tell_failures() {
        for (text, told) in [
            (
                "could not find WAL coins with sufficient balance",
                Failure::EmptyWallet,
            ),
            (
                "could not find SUI coins with sufficient balance [requested_amount=Some(5)]",
                Failure::EmptyWallet,
            ),
            ("InsufficientGas in command 1", Failure::EmptyWallet),
            (
                "transaction execution failed: contract execution failed in \
                 walrus::blob::assert_certified_not_expired at address 0x1 with error type ENotCertified",
                Failure::Refused,
            ),
            (
                "transaction execution failed: contract execution failed in \
                 walrus::system_state_inner::reserve at address 0x1 with error type EStorageExceeded",
                Failure::Unclear,
            ),
            (
                "transaction execution failed: unparsable move error occurred: InsufficientGas in command 0",
                Failure::EmptyWallet,
            ),
            (
                "the specified Walrus system object 0x1 does not exist or is incompatible with this binary",
                Failure::Unusable,
            ),
            ("object 0x1 does not exist", Failure::Refused),
            (
                "error: unexpected argument '--blob-obj-id' found",
                Failure::Unusable,
            ),
            ("sh: walrus: command not found", Failure::Unusable),
            (
                "error sending request: connection refused",
                Failure::Unclear,
            ),
            ("transaction execution failed: timed out", Failure::Unclear),
            ("something new", Failure::Unclear),
            ("", Failure::Unclear),
        ] {
            assert_eq!(failure(text), told, "{text}");
        }
    }

    #[test]
    fn the_last_error_is_shown() {
        let said = "\x1b[2m2026-01-01\x1b[0m \x1b[32m INFO\x1b[0m walrus: starting\n\
                    Error: could not extend\n\nCaused by:\n    0: no coins\x07\n";
        let shown = last_words(said.as_bytes(), &[]);
        assert_eq!(shown, "Error: could not extend Caused by: 0: no coins");
        let long = "word ".repeat(1000) + "the end";
        let shown = last_words(long.as_bytes(), &[]);
        assert!(
            shown.starts_with('…') && shown.ends_with("the end"),
            "{shown}"
        );
        assert_eq!(shown.chars().count(), SHOWN + 1);
        let marked = format!("Error: first {long}");
        assert!(last_words(marked.as_bytes(), &[]).starts_with("Error: first"));
        assert_eq!(last_words(b"\xff\xfe", &[]), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn secrets_are_blotted_out() {
        let arguments = [
            "--wallet",
            "/home/op/client.yaml",
            "--gas=1",
            "RPC_KEY=k3y-of-the-operator",
            "pass-phrase",
        ];
        let arguments = arguments.map(str::to_owned);
        let said = "Error: https://user:pw@rpc.example:443/v1/abcdef?key=ghi refused \
                    k3y-of-the-operator for /home/op/client.yaml pass-phrase suiprivkey1xyz";
        assert_eq!(
            last_words(said.as_bytes(), &arguments),
            "Error: https://rpc.example:443/… refused [redacted] for /home/op/client.yaml \
             [redacted] [redacted]"
        );
    }
}
