//! The keys that came already, for work that goes through an index several times.

use std::collections::HashSet;

/// Bytes of a key's hash that are kept: two keys with the same ones will not be met.
const KEPT: usize = 16;

/// A set of keys, of about 20 bytes for each.
#[derive(Debug, Default)]
pub(super) struct Seen(HashSet<[u8; KEPT]>);

impl Seen {
    /// Adds a key. False: it came already.
    pub(super) fn insert(&mut self, key: &str) -> bool {
        self.0.insert(short(key))
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains(&short(key))
    }
}

fn short(key: &str) -> [u8; KEPT] {
    let mut short = [0; KEPT];
    short.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..KEPT]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_once() {
        let mut seen = Seen::default();
        assert!(seen.insert("/A") && seen.insert("/B"));
        assert!(!seen.insert("/A"));
        assert!(seen.contains("/B") && !seen.contains("/C"));
    }
}
