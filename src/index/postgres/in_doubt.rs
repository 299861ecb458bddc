//! Keys whose latest write ended without an answer.
//!
//! **Problem.** The [deadline](super::deadline) keeps a statement from beginning late. A statement
//! that the server began in time may still be held up before its commit becomes visible (by a disk
//! that stands still, for example). A later put of the same key waits for it at the row. A delete
//! of the same key would find no row and nothing to wait for, and the row would appear afterwards.
//!
//! **Outline.** A put marks its keys as in doubt unless it ends with success. A delete of such a
//! key first inserts an empty row, which waits for the other transaction at the primary key, and
//! then deletes the row, both in one transaction.
//!
//! **Invariants.**
//! - A key is in doubt from the end of a put without success until a later put or delete of it
//!   succeeds.
//! - At most [`MANY`] different keys are remembered one by one. With more, every key is in doubt
//!   from then on, and an operator is told once. No later event ends that: which statements of old
//!   connections a server still carries out is not known to a client, least of all behind a pooler
//!   or after a failover.
//!
//! **Locks.** One lock, held for no await and while no other lock is taken.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::index::KeyRecord;

/// Most keys that are remembered one by one; with more, every key is in doubt.
const MANY: usize = 100_000;

/// The keys that are in doubt. See the module.
#[derive(Default)]
pub(super) struct InDoubt(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    some: HashSet<String>,
    all: bool,
    /// Whether the operator is still to be told that all keys are in doubt.
    untold: bool,
}

impl InDoubt {
    /// Begins a write. Its keys are in doubt afterwards, unless the write is
    /// [settled](Doubt::settle).
    pub fn writing<'a>(&'a self, records: &'a [KeyRecord]) -> Doubt<'a> {
        Doubt {
            in_doubt: self,
            records,
            settled: false,
        }
    }

    /// Whether one of the keys is in doubt.
    pub fn any(&self, keys: &[String]) -> bool {
        let in_doubt = self.0.lock();
        in_doubt.all
            || (!in_doubt.some.is_empty() && keys.iter().any(|k| in_doubt.some.contains(k)))
    }

    /// Takes keys out of doubt: they have been written since, by a statement that had to wait for
    /// the doubtful one.
    pub fn settle<'a>(&self, keys: impl Iterator<Item = &'a String>) {
        let mut in_doubt = self.0.lock();
        if !in_doubt.some.is_empty() {
            for key in keys {
                in_doubt.some.remove(key);
            }
        }
    }
}

impl InDoubt {
    /// A notice for the operator's log that every key is in doubt from now on; it comes once.
    pub fn take_notice(&self) -> Option<String> {
        let untold = std::mem::take(&mut self.0.lock().untold);
        untold.then(|| {
            format!(
                "index in Postgres: writes of more than {MANY} keys ended without an answer. Until this node is restarted, \
                 each deletion waits for such writes, in a transaction of several round trips: it is slower, and right. \
                 Restart the node when the server answers again"
            )
        })
    }
}

/// A write under way. Dropping it unsettled puts its keys in doubt.
pub(super) struct Doubt<'a> {
    in_doubt: &'a InDoubt,
    records: &'a [KeyRecord],
    settled: bool,
}

impl Doubt<'_> {
    /// The write has succeeded.
    pub fn settle(mut self) {
        self.settled = true;
        self.in_doubt.settle(self.records.iter().map(|r| &r.key));
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut in_doubt = self.in_doubt.0.lock();
        if in_doubt.all {
            return;
        }
        // Keys of a write that is tried again are there already.
        let keys = self.records.iter().map(|r| r.key.clone());
        in_doubt.some.extend(keys);
        if in_doubt.some.len() > MANY {
            *in_doubt = Keys {
                some: HashSet::new(),
                all: true,
                untold: true,
            };
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
        let in_doubt = InDoubt::default();
        let (two, one) = (records(0..2), records(1..2));
        let key = |n: usize| vec![format!("/{n}")];
        in_doubt.writing(&two).settle();
        assert!(!in_doubt.any(&key(0)));
        drop(in_doubt.writing(&two));
        assert!(in_doubt.any(&key(0)) && in_doubt.any(&key(1)) && !in_doubt.any(&key(2)));
        in_doubt.writing(&one).settle();
        assert!(in_doubt.any(&key(0)) && !in_doubt.any(&key(1)));
        in_doubt.settle(key(0).iter());
        assert!(!in_doubt.any(&key(0)));
    }

    /// Packs of a journal are placed again and again while the server restarts.
    #[test]
    fn a_write_that_fails_again_counts_once() {
        let in_doubt = InDoubt::default();
        let many = records(0..60_000);
        for _ in 0..2 {
            drop(in_doubt.writing(&many));
        }
        assert!(!in_doubt.any(&["/other".to_owned()]));
        assert!(in_doubt.any(&["/0".to_owned()]));
        in_doubt.writing(&many).settle();
        assert!(!in_doubt.any(&["/0".to_owned()]));
    }

    #[test]
    fn too_many_are_all() {
        let in_doubt = InDoubt::default();
        let many = records(0..MANY);
        drop(in_doubt.writing(&many));
        assert!(!in_doubt.any(&["/other".to_owned()]));
        assert_eq!(in_doubt.take_notice(), None);
        let other = records(MANY..MANY + 1);
        drop(in_doubt.writing(&other));
        assert!(in_doubt.any(&["/other".to_owned()]));
        let notice = in_doubt.take_notice().unwrap();
        assert!(notice.contains("100000 keys"), "{notice}");
        drop(in_doubt.writing(&other));
        assert_eq!(in_doubt.take_notice(), None, "it is told once");
        in_doubt.writing(&many).settle();
        assert!(
            in_doubt.any(&["/0".to_owned()]),
            "what was forgotten stays in doubt"
        );
    }
}
