//! The keys that an index takes, and ranges of keys in byte order.

use std::cmp::Ordering;
use std::ops::Bound;

use super::MAX_KEY_BYTES;
use crate::error::{Error, ErrorKind, Result};

/// Refuses a key that some engine could not store or would cut off.
pub(super) fn check_key(key: &str) -> Result<()> {
    if key.len() > MAX_KEY_BYTES {
        return Err(invalid(format!(
            "key of {} bytes is too long: at most {MAX_KEY_BYTES} bytes are allowed (starts with {:?})",
            key.len(),
            key.chars().take(40).collect::<String>(),
        )));
    }
    check_text("key", key)
}

/// Refuses a NUL: Postgres cannot store it in a text, and a C caller's string ends at it.
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

/// The keys of a listing, and their direction. Keys compare by their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRange {
    /// Lower end of the range.
    pub lower: Bound<String>,
    /// Upper end of the range.
    pub upper: Bound<String>,
    /// Keys within the range that are left out. Each of them is compared with every row, so there
    /// should be few.
    pub except: Vec<String>,
    /// Whether the listing runs from the last key to the first.
    pub descending: bool,
    /// Whether the caller wants keys only: sizes may be 0 and expirations `None`. Reading an index
    /// of keys alone is many times faster than reading the rows it leads to.
    pub keys_alone: bool,
}

/// How a row's key must compare with another text to be in a [`KeyRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Greater,
    AtLeast,
    Less,
    AtMost,
    Not,
}

impl KeyRange {
    /// Every key, in ascending order.
    pub const ALL: KeyRange = KeyRange {
        lower: Bound::Unbounded,
        upper: Bound::Unbounded,
        except: Vec::new(),
        descending: false,
        keys_alone: false,
    };

    /// Keys that start with `prefix`, in ascending order.
    pub fn prefix(prefix: &str) -> KeyRange {
        KeyRange::ALL.starting_with(prefix)
    }

    /// Narrows the range to keys that also start with `prefix`.
    pub fn starting_with(self, prefix: &str) -> KeyRange {
        let upper = match prefix_end(prefix) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        let lower = match prefix {
            "" => Bound::Unbounded,
            _ => Bound::Included(prefix.to_owned()),
        };
        self.from(lower).to(upper)
    }

    /// Narrows the range to keys that do not lie before `lower`.
    pub fn from(mut self, lower: Bound<String>) -> KeyRange {
        self.lower = tighter(self.lower, lower, Ordering::Greater);
        self
    }

    /// Narrows the range to keys that do not lie behind `upper`.
    pub fn to(mut self, upper: Bound<String>) -> KeyRange {
        self.upper = tighter(self.upper, upper, Ordering::Less);
        self
    }

    /// Leaves one key out.
    pub fn except(mut self, key: impl Into<String>) -> KeyRange {
        self.except.push(key.into());
        self
    }

    /// Lists from the last key to the first.
    pub fn descending(mut self) -> KeyRange {
        self.descending = true;
        self
    }

    /// Lists keys only, without the values that are only in the rows.
    pub fn keys_alone(mut self) -> KeyRange {
        self.keys_alone = true;
        self
    }

    /// Narrows the range to keys that come after `key` in the range's own direction: the next page.
    pub fn after(self, key: impl Into<String>) -> KeyRange {
        let position = Bound::Excluded(key.into());
        if self.descending {
            self.to(position)
        } else {
            self.from(position)
        }
    }

    /// Whether a key is in the range.
    pub fn contains(&self, key: &str) -> bool {
        self.comparisons().into_iter().all(|(compare, with)| {
            let order = key.cmp(with);
            match compare {
                Compare::Greater => order.is_gt(),
                Compare::AtLeast => order.is_ge(),
                Compare::Less => order.is_lt(),
                Compare::AtMost => order.is_le(),
                Compare::Not => order.is_ne(),
            }
        })
    }

    /// Whether the bounds alone leave no key.
    pub fn is_empty(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
            (
                Bound::Included(lower) | Bound::Excluded(lower),
                Bound::Included(upper) | Bound::Excluded(upper),
            ) => lower >= upper,
        }
    }

    /// The conditions of the range. A row must fulfil all of them.
    pub(super) fn comparisons(&self) -> Vec<(Compare, &str)> {
        let mut all = Vec::with_capacity(2 + self.except.len());
        match &self.lower {
            Bound::Unbounded => {}
            Bound::Included(key) => all.push((Compare::AtLeast, key.as_str())),
            Bound::Excluded(key) => all.push((Compare::Greater, key.as_str())),
        }
        match &self.upper {
            Bound::Unbounded => {}
            Bound::Included(key) => all.push((Compare::AtMost, key.as_str())),
            Bound::Excluded(key) => all.push((Compare::Less, key.as_str())),
        }
        all.extend(self.except.iter().map(|key| (Compare::Not, key.as_str())));
        all
    }

    /// Refuses a range whose texts no engine accepts in a query.
    pub(super) fn check(&self) -> Result<()> {
        self.comparisons()
            .into_iter()
            .try_for_each(|(_, key)| check_text("bound of a listing", key))
    }
}

/// The one of two bounds on the same side that leaves fewer keys; `inward` is how it compares.
fn tighter(a: Bound<String>, b: Bound<String>, inward: Ordering) -> Bound<String> {
    match (&a, &b) {
        (Bound::Unbounded, _) => b,
        (_, Bound::Unbounded) => a,
        (Bound::Included(x) | Bound::Excluded(x), Bound::Included(y) | Bound::Excluded(y)) => {
            match x.cmp(y) {
                Ordering::Equal if matches!(a, Bound::Excluded(_)) => a,
                order if order == inward => a,
                _ => b,
            }
        }
    }
}

/// The smallest text greater than every text that starts with `prefix`; `None` if there is none. In
/// UTF-8 the byte order is the order of code points, so the last character that has a successor is
/// replaced by it (incrementing the last byte instead may give invalid UTF-8).
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'), // after the surrogates
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

    fn bound() -> impl Strategy<Value = Bound<String>> {
        let key = "[a-b\u{7f}\u{D7FF}\u{10FFFF}]{0,3}";
        prop_oneof![
            Just(Bound::Unbounded),
            key.prop_map(Bound::Included),
            key.prop_map(Bound::Excluded),
        ]
    }

    proptest! {
        #[test]
        fn a_range_is_the_prefix(prefix in "[a-b\u{7f}\u{80}\u{D7FF}\u{E000}\u{10FFFF}]{0,3}",
                                 key in "[a-b\u{7f}\u{80}\u{D7FF}\u{E000}\u{10FFFF}]{1,4}",
                                 after in proptest::option::of("[a-b\u{7f}\u{D7FF}\u{10FFFF}]{0,4}"),
                                 descending: bool) {
            let mut range = KeyRange::prefix(&prefix);
            range.descending = descending;
            let mut expected = key.starts_with(&prefix);
            if let Some(after) = after {
                expected &= if descending { key < after } else { key > after };
                range = range.after(after);
            }
            prop_assert_eq!(range.contains(&key), expected);
            if range.is_empty() { prop_assert!(!expected); }
        }

        #[test]
        fn bounds_only_tighten(bounds in proptest::collection::vec((bound(), bound()), 1..4),
                               except in "[a-b]{0,2}",
                               key in "[a-b\u{7f}\u{D7FF}\u{10FFFF}]{1,3}") {
            let mut range = KeyRange::ALL.except(except.clone());
            for (lower, upper) in bounds.clone() {
                range = range.from(lower).to(upper);
            }
            let within = bounds.into_iter().all(|pair| std::ops::RangeBounds::contains(&pair, &key));
            prop_assert_eq!(range.contains(&key), within && key != except);
            if range.is_empty() { prop_assert!(!within); }
        }
    }
}
