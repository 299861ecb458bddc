//! Keys: what an index takes, and ranges of them in byte order.

use std::ops::Bound;

use super::MAX_KEY_BYTES;
use crate::error::{Error, ErrorKind, Result};

/// Refuses keys that some engine could not store or would cut off.
pub(super) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(invalid("key is empty".into()));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(invalid(format!(
            "key of {} bytes is too long: at most {MAX_KEY_BYTES} bytes are allowed (starts with {:?})",
            key.len(),
            key.chars().take(40).collect::<String>(),
        )));
    }
    check_text("key", key)
}

/// Refuses a NUL, which Postgres cannot store in text and C callers cannot see past.
pub(super) fn check_text(what: &str, text: &str) -> Result<()> {
    match text.find('\0') {
        Some(at) => Err(invalid(format!(
            "{what} contains a NUL byte (at byte {at})"
        ))),
        None => Ok(()),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

/// The keys of one page of a listing: from `lower` up to, not including, `upper`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub lower: Bound<String>,
    pub upper: Option<String>,
}

impl KeyRange {
    /// Keys that start with `prefix` and lie strictly after `after`.
    pub fn new(prefix: &str, after: Option<&str>) -> Result<KeyRange> {
        check_text("prefix", prefix)?;
        check_text("page position", after.unwrap_or_default())?;
        let lower = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ if prefix.is_empty() => Bound::Unbounded,
            _ => Bound::Included(prefix.to_owned()),
        };
        Ok(KeyRange {
            lower,
            upper: prefix_end(prefix),
        })
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Bound::Excluded(lower) | Bound::Included(lower), Some(upper)) => lower >= upper,
            _ => false,
        }
    }
}

/// The smallest text greater than everything that starts with `prefix`; `None` if there is none.
/// In UTF-8 the byte order is the order of code points, so the last character that has a
/// successor is replaced by it (a plain increment of the last byte may give invalid UTF-8).
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'), // over the surrogates
            _ => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(prefix_end(""), None);
        assert_eq!(prefix_end("/a").as_deref(), Some("/b"));
        assert_eq!(prefix_end("a\u{7f}").as_deref(), Some("a\u{80}"));
        assert_eq!(prefix_end("\u{D7FF}").as_deref(), Some("\u{E000}"));
        assert_eq!(prefix_end("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{10FFFF}\u{10FFFF}"), None);
    }

    proptest! {
        #[test]
        fn a_range_is_the_prefix(prefix in "[a-b\u{7f}\u{80}\u{D7FF}\u{E000}\u{10FFFF}]{0,3}",
                                 key in "[a-b\u{7f}\u{80}\u{D7FF}\u{E000}\u{10FFFF}]{1,4}",
                                 after in proptest::option::of("[a-b\u{7f}\u{D7FF}\u{10FFFF}]{0,4}")) {
            let range = KeyRange::new(&prefix, after.as_deref()).unwrap();
            let inside = match &range.lower {
                Bound::Included(l) => key >= *l,
                Bound::Excluded(l) => key > *l,
                Bound::Unbounded => true,
            } && range.upper.as_ref().is_none_or(|u| key < *u);
            let expected = key.starts_with(&prefix) && after.as_ref().is_none_or(|a| key > *a);
            prop_assert_eq!(inside, expected);
            if range.is_empty() { prop_assert!(!expected); }
        }
    }
}
