//! Checks whether bytes that an aggregator gave are those of a blob.
//!
//! The publisher computes the blob ID from the bytes, but only after it was paid. Before that, the
//! rows tell the hash of each block, which is its key, and where the block lies. Two things can be
//! wrong: the bytes, or a row. So an answer that fits all rows and ends where they end is taken at
//! once. If no aggregator gives such an answer, the best one is taken in which at least some blocks
//! hash to their keys: then either the rows that do not fit are wrong, or the bytes are, which the
//! blob ID will show.
//!
//! Members of a quilt are taken out of its matrix, whose rows and columns follow from the number of
//! shards. If none of them is found, that number is wrong, or all bytes are.
//!
//! Once bytes of a blob were stored as another blob, an answer is taken only if it is certainly
//! right, or if it comes twice: an aggregator that gives other bytes each time is never paid for
//! again, and other aggregators have their turn.

use std::collections::HashSet;
use std::ops::Range;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::index::KeyRecord;
use crate::multihash::{self, Match};
use crate::patch::Columns;
use crate::upload::quilt::Matrix;

/// The hash of a blob's bytes.
pub(super) type Digest = [u8; 32];

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The fit of an answer to the rows of its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fit {
    len: usize,
    /// The number of blocks that hash to their keys.
    verified: usize,
    /// The number of blocks whose keys are no hashes that can be checked.
    unknown: usize,
    /// The faults of the rows that do not fit, each with its key.
    pub(super) odd: Vec<String>,
    /// The bytes do not end where the last block ends, although the rows leave no gap.
    pub(super) odd_end: bool,
}

impl Fit {
    fn perfect(&self) -> bool {
        self.odd.is_empty() && !self.odd_end
    }

    /// Whether the rows may be wrong, rather than the bytes.
    fn plausible(&self) -> bool {
        self.odd.is_empty() || self.verified > 0 || self.unknown > self.odd.len()
    }

    /// The smaller, the better.
    fn rank(&self) -> (usize, bool, usize) {
        (self.odd.len(), self.odd_end, self.len)
    }

    fn reason(&self) -> String {
        match self.odd.first() {
            Some(first) if self.odd.len() > 1 => {
                format!("{first} (and {} more)", self.odd.len() - 1)
            }
            Some(first) => first.clone(),
            None if self.odd_end => format!(
                "blob of {} bytes does not end where its last block ends",
                self.len
            ),
            None => "its rows do not prove the bytes, which were wrong before".to_owned(),
        }
    }
}

/// The rows of a blob, as far as they describe its bytes.
pub(super) struct Rows<'a> {
    ranges: Vec<(&'a str, Range<u64>)>,
    /// Members of a quilt: key, columns, length.
    members: Vec<(&'a str, Columns, u64)>,
    /// The shards of the network.
    n_shards: u32,
    /// The faults of rows whose places are impossible for any bytes.
    nonsense: Vec<String>,
    /// Where the last block ends, if the blocks leave no gap.
    end: Option<u64>,
    /// Digests of bytes that are known to be another blob.
    refused: HashSet<Digest>,
    cautious: bool,
    seen: Mutex<Vec<Answer>>,
}

/// An answer that was not taken at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) fit: Fit,
    /// The digest of an answer that must come twice.
    digest: Option<Digest>,
}

const REFUSED: &str =
    "these bytes were stored before and are another blob, so they are not paid for again yet";

impl<'a> Rows<'a> {
    /// `cautious`: bytes of this blob were stored as another blob before. `refused`: the digests of
    /// such bytes that must not be paid for now.
    pub(super) fn new(rows: &'a [KeyRecord], refused: HashSet<Digest>, cautious: bool) -> Self {
        let mut ranges = Vec::new();
        let mut nonsense = Vec::new();
        let mut members = Vec::new();
        for row in rows {
            let patch_id = row.record.patch_id.as_deref();
            match row.record.range() {
                Ok(range) if patch_id.is_some() => {
                    let columns = patch_id.and_then(|id| Columns::of(id, &row.record.blob_id));
                    let member = columns.map(|c| (row.key.as_str(), c, range.end - range.start));
                    members.extend(member);
                }
                Ok(range) => ranges.push((row.key.as_str(), range)),
                Err(e) => nonsense.push(format!("block {}: {e}", row.key)),
            }
        }
        ranges.sort_by_key(|(_, range)| range.start);
        let mut end = Some(0);
        for (_, range) in &ranges {
            end = end
                .filter(|end| range.start <= *end)
                .map(|end| end.max(range.end));
        }
        Rows {
            end: end.filter(|end| *end > 0),
            ranges,
            members,
            n_shards: 0,
            nonsense,
            refused,
            cautious,
            seen: Mutex::default(),
        }
    }

    /// The same on a network of so many shards, whose quilts can be checked.
    pub(super) fn on_network(self, n_shards: u32) -> Self {
        Rows { n_shards, ..self }
    }

    /// The length that the blob has at least, according to the rows (bytes).
    pub(super) fn least_len(&self) -> u64 {
        let ends = self.ranges.iter().map(|(_, range)| range.end);
        ends.max().unwrap_or(0)
    }

    fn fit(&self, blob: &[u8]) -> Fit {
        let mut fit = Fit {
            len: blob.len(),
            verified: 0,
            unknown: 0,
            odd: self.nonsense.clone(),
            odd_end: self.end.is_some_and(|end| end != blob.len() as u64),
        };
        for (key, range) in &self.ranges {
            let block = usize::try_from(range.start)
                .ok()
                .zip(usize::try_from(range.end).ok())
                .and_then(|(start, end)| blob.get(start..end));
            let Some(block) = block else {
                fit.odd.push(format!(
                    "blob of {} bytes is too short for block {key} at {}..{}",
                    blob.len(),
                    range.start,
                    range.end
                ));
                continue;
            };
            match multihash::check(key, block) {
                Match::Yes => fit.verified += 1,
                Match::Unknown => fit.unknown += 1,
                Match::No => fit
                    .odd
                    .push(format!("block {key} does not hash to its key")),
            }
        }
        self.fit_members(blob, &mut fit);
        fit
    }

    fn fit_members(&self, blob: &[u8], fit: &mut Fit) {
        let matrix = Matrix::of(blob.len() as u64, self.n_shards);
        let judged = self.members.iter().map(|(key, columns, len)| {
            let member = matrix.and_then(|matrix| matrix.member(blob, *columns));
            let member = member.filter(|member| member.len() as u64 == *len);
            member.map_or(Match::No, |member| multihash::check(key, &member))
        });
        let judged: Vec<Match> = judged.collect();
        // With another number of shards than the network has, no member is found. Then they tell
        // nothing of the bytes.
        let found = judged.contains(&Match::Yes);
        for ((key, ..), judged) in self.members.iter().zip(judged) {
            match judged {
                Match::Yes => fit.verified += 1,
                Match::No if found => fit
                    .odd
                    .push(format!("block {key} is no member of the quilt")),
                Match::No | Match::Unknown => fit.unknown += 1,
            }
        }
    }

    /// The faults of the rows that do not fit these bytes.
    pub(super) fn odd(&self, blob: &[u8]) -> Vec<String> {
        self.fit(blob).odd
    }

    fn refuses(&self, blob: &[u8]) -> bool {
        !self.refused.is_empty() && self.refused.contains(&digest(blob))
    }

    /// Whether every byte belongs to a block that hashes to its key.
    fn proves(&self, fit: &Fit) -> bool {
        fit.perfect() && self.end.is_some() && fit.unknown == 0
    }

    /// Accepts an answer that fits all rows and was not refused; after wrong bytes, only one that
    /// the rows prove.
    pub(super) fn strictly(&self, blob: &[u8]) -> Result<(), String> {
        if self.refuses(blob) {
            return Err(REFUSED.to_owned());
        }
        let fit = self.fit(blob);
        if self.proves(&fit) || (fit.perfect() && !self.cautious) {
            return Ok(());
        }
        let reason = fit.reason();
        let digest = self.cautious.then(|| digest(blob));
        self.seen.lock().push(Answer { fit, digest });
        Err(reason)
    }

    /// The best of the answers that were not accepted, if it may be right all the same. Of several
    /// equally good ones (of all, after wrong bytes), another one at each `turn`.
    pub(super) fn best(&self, turn: u32) -> Option<Answer> {
        let seen = self.seen.lock();
        let plausible = || seen.iter().filter(|answer| answer.fit.plausible());
        let rank = plausible().map(|answer| answer.fit.rank()).min()?;
        let mut best: Vec<&Answer> = plausible()
            .filter(|answer| self.cautious || answer.fit.rank() == rank)
            .collect();
        best.sort_by_key(|answer| answer.fit.rank());
        let turn = usize::try_from(turn).unwrap_or(0) % best.len().max(1);
        best.get(turn).copied().cloned()
    }

    /// Accepts an answer that is as good as `best`, or the same bytes if that must come twice.
    pub(super) fn like(&self, best: &Answer, blob: &[u8]) -> Result<(), String> {
        if self.refuses(blob) {
            return Err(REFUSED.to_owned());
        }
        if let Some(expected) = &best.digest {
            return match digest(blob) == *expected {
                true => Ok(()),
                false => Err("other bytes than in the answer before".to_owned()),
            };
        }
        let fit = self.fit(blob);
        match fit.plausible() && fit.rank() <= best.fit.rank() {
            true => Ok(()),
            false => Err(fit.reason()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Record;

    fn row(key: &str, offset: i64, size: i64) -> KeyRecord {
        KeyRecord {
            key: key.to_owned(),
            record: Record {
                offset,
                size,
                ..Record::default()
            },
        }
    }

    fn key_of(block: &[u8]) -> String {
        let mut multihash = vec![0x12, 0x20];
        multihash.extend_from_slice(&digest(block));
        format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
    }

    fn judge(rows: &[KeyRecord], blob: &[u8]) -> (bool, Option<Fit>) {
        let rows = Rows::new(rows, HashSet::new(), false);
        let taken = rows.strictly(blob).is_ok();
        let best = rows.best(0);
        if let Some(best) = &best {
            assert!(rows.like(best, blob).is_ok());
        }
        (taken, best.map(|best| best.fit))
    }

    #[test]
    fn rows_and_bytes_are_told_apart() {
        let (a, b) = (key_of(b"first"), key_of(b"second"));
        let rows = [row(&a, 0, 5), row(&b, 5, 6)];
        assert!(judge(&rows, b"firstsecond").0);
        for (wrong, plausible) in [
            (&b"firstsecond!"[..], true), // a byte too many
            (b"firstsecon", true),        // cut
            (b"firstsxcond", true),       // one block of two
            (b"f1rsts3cond", false),      // none
            (b"", false),
        ] {
            let (taken, best) = judge(&rows, wrong);
            assert!(!taken, "{wrong:?}");
            assert_eq!(best.is_some(), plausible, "{wrong:?}");
        }
    }

    #[test]
    fn rows_that_point_nowhere_do_not_speak_against_the_bytes() {
        let a = key_of(b"first");
        let rows = [row(&a, 0, 5), row("/x", -1, 5), row("/y", 3, i64::MAX)];
        let (taken, best) = judge(&rows, b"first");
        assert!(!taken);
        assert_eq!(best.unwrap().odd.len(), 2);
    }

    /// The last block was deleted, or one in between.
    #[test]
    fn a_blob_may_be_longer_than_rows_with_gaps_say() {
        let b = key_of(b"second");
        assert!(judge(&[row(&b, 5, 6)], b"firstsecond...").0);
        let (taken, best) = judge(&[row(&key_of(b"first"), 0, 5)], b"firstsecond");
        assert!(!taken && best.is_some());
    }

    #[test]
    fn members_of_a_quilt_prove_its_bytes() {
        let blob_id = "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCw";
        let geometry = walrus_devnet::Geometry::new(100).unwrap();
        let values = [vec![1; 5000], vec![2; 3000], Vec::new()];
        let tags = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let members = values
            .iter()
            .enumerate()
            .map(|(n, value)| walrus_devnet::QuiltMember {
                identifier: format!("name {n}"),
                tags: if n == 1 {
                    tags.clone()
                } else {
                    Default::default()
                },
                columns: 0..0,
                data: value.clone().into(),
            });
        let quilt = walrus_devnet::make_quilt(geometry, &members.collect::<Vec<_>>()).unwrap();
        let found = walrus_devnet::read_quilt(geometry, &quilt).unwrap();
        let rows: Vec<KeyRecord> = found
            .iter()
            .map(|member| {
                let columns = Columns::new(member.columns.start, member.columns.end);
                let patch_id = columns.unwrap().patch_id(blob_id);
                let mut row = row(&key_of(&member.data), 0, member.data.len() as i64);
                row.record.blob_id = blob_id.to_owned();
                row.record.patch_id = patch_id;
                row
            })
            .collect();
        let judge = |n_shards, bytes: &[u8]| {
            let rows = Rows::new(&rows, HashSet::new(), false).on_network(n_shards);
            let taken = rows.strictly(bytes).is_ok();
            (taken, rows.best(0).map(|best| best.fit.odd.len()))
        };
        assert_eq!(judge(100, &quilt), (true, None));
        let mut damaged = quilt.clone();
        let at = damaged.iter().rposition(|byte| *byte == 1).unwrap();
        damaged[at] = 7;
        assert_eq!(judge(100, &damaged), (false, Some(1)));
        // The number of shards is wrong.
        assert_eq!(judge(1000, &quilt), (true, None));
    }

    #[test]
    fn known_wrong_bytes_are_refused() {
        let rows = [row(&key_of(b"first"), 0, 5)];
        let rows = Rows::new(&rows, HashSet::from([digest(b"first!")]), true);
        assert_eq!(rows.strictly(b"first!"), Err(REFUSED.to_owned()));
        assert_eq!(rows.best(0), None);
        assert!(rows.strictly(b"first").is_ok(), "every byte is proven");
    }

    /// After wrong bytes, an answer that the rows do not prove must come twice.
    #[test]
    fn bytes_that_change_each_time_are_not_taken_after_a_wrong_store() {
        let rows = [row(&key_of(b"second"), 5, 6)];
        let rows = Rows::new(&rows, HashSet::new(), true);
        for answer in [&b"firstsecond1"[..], b"firstsecond"] {
            assert!(rows.strictly(answer).is_err());
        }
        let (one, other) = (rows.best(0).unwrap(), rows.best(1).unwrap());
        assert_ne!(one, other);
        assert!(rows.like(&one, b"firstsecond2").is_err());
        assert!(rows.like(&other, b"firstsecond2").is_err());
        let like = [&one, &other].map(|best| rows.like(best, b"firstsecond").is_ok());
        assert_eq!(like.iter().filter(|ok| **ok).count(), 1);
        assert_eq!(rows.best(2).unwrap(), one);
    }
}
