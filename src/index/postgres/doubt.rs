//! Keys whose latest write ended without an answer.
//!
//! The [fence](super::fence) keeps a statement from beginning late. One that the server began in
//! time may still be held up before its commit can be seen (by a disk that stands still, say). A
//! later put of the same key waits for it, at the row. A delete would find no row and nothing to
//! wait for: for these keys it has to make sure.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::index::KeyRecord;

/// Keys remembered one by one; with more, every key is in doubt.
const MANY: usize = 100_000;

/// See the module.
#[derive(Default)]
pub(super) struct Doubts(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    some: HashSet<String>,
    all: bool,
}

impl Doubts {
    /// For a write that begins: leaves its keys in doubt unless it is [settled](Doubt::settle).
    pub fn writing<'a>(&'a self, records: &'a [KeyRecord]) -> Doubt<'a> {
        Doubt {
            doubts: self,
            records,
            settled: false,
        }
    }

    /// Whether one of the keys is in doubt.
    pub fn any(&self, keys: &[String]) -> bool {
        let doubts = self.0.lock();
        doubts.all || (!doubts.some.is_empty() && keys.iter().any(|k| doubts.some.contains(k)))
    }

    /// The keys have been written since, by a statement that had to wait for the doubtful one.
    pub fn settle<'a>(&self, keys: impl Iterator<Item = &'a String>) {
        let mut doubts = self.0.lock();
        if !doubts.some.is_empty() {
            for key in keys {
                doubts.some.remove(key);
            }
        }
    }
}

/// A write under way.
pub(super) struct Doubt<'a> {
    doubts: &'a Doubts,
    records: &'a [KeyRecord],
    settled: bool,
}

impl Doubt<'_> {
    /// It is done.
    pub fn settle(mut self) {
        self.settled = true;
        self.doubts.settle(self.records.iter().map(|r| &r.key));
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut doubts = self.doubts.0.lock();
        if doubts.all || doubts.some.len() + self.records.len() > MANY {
            *doubts = Keys {
                some: HashSet::new(),
                all: true,
            };
        } else {
            let keys = self.records.iter().map(|r| r.key.clone());
            doubts.some.extend(keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(keys: std::ops::Range<usize>) -> Vec<KeyRecord> {
        keys.map(|key| KeyRecord {
            key: format!("/{key}"),
            record: crate::index::Record::default(),
        })
        .collect()
    }

    #[test]
    fn what_failed_is_in_doubt_until_it_is_written() {
        let doubts = Doubts::default();
        let (two, one) = (records(0..2), records(1..2));
        let key = |n: usize| vec![format!("/{n}")];
        doubts.writing(&two).settle();
        assert!(!doubts.any(&key(0)));
        drop(doubts.writing(&two));
        assert!(doubts.any(&key(0)) && doubts.any(&key(1)) && !doubts.any(&key(2)));
        doubts.writing(&one).settle();
        assert!(doubts.any(&key(0)) && !doubts.any(&key(1)));
        doubts.settle(key(0).iter());
        assert!(!doubts.any(&key(0)));
    }

    #[test]
    fn too_many_are_all() {
        let doubts = Doubts::default();
        let many = records(0..MANY);
        drop(doubts.writing(&many));
        assert!(!doubts.any(&["/other".to_owned()]));
        let one = records(0..1);
        drop(doubts.writing(&one));
        assert!(doubts.any(&["/other".to_owned()]));
        doubts.writing(&many).settle();
        assert!(
            doubts.any(&["/0".to_owned()]),
            "what was forgotten stays in doubt"
        );
    }
}
