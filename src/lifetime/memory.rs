//! The memory of earlier attempts to renew a blob, in this process and in earlier ones.
//!
//! Failures that cost nothing are remembered by this process alone. Facts on which money depends
//! are kept in the index as well, in a note under the blob's name: until when a renewed blob rests,
//! and which bytes were paid for in vain. A note never delays a blob for longer than a rest may
//! last, so a note that was written under a wrong clock does no lasting harm.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::check::Digest;
use super::RenewalParts;
use crate::backoff::doubled;
use crate::error::Result;
use crate::index::{Blob, OF_RENEWAL};

/// How many wrong bytes of one blob are remembered. So many different ones may be paid for between
/// two rests.
const WRONG_REMEMBERED: usize = 3;

/// The memory of one blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// The blob is not looked at before this moment.
    pub(super) rest: Option<Instant>,
    /// Whether it rests because it was paid for.
    pub(super) paid: bool,
    /// Failures in a row that cost nothing.
    pub(super) failures: u32,
    /// Attempts at which every aggregator answered and none gave the right bytes.
    pub(super) wrong_reads: u32,
    /// How often it was tried to carry its blocks over because of that.
    pub(super) carried: u32,
    /// How often its bytes were stored as another blob since they were last right.
    wrong_stores: u32,
    /// The digests of the bytes of the last such stores.
    wrong: Vec<Digest>,
    /// Those bytes may be paid for again after this moment.
    wrong_until: Option<Instant>,
    /// A renewal that the index could not be told of. Known to this process alone.
    pub(super) unnoted: Option<Blob>,
}

impl Past {
    pub(super) fn rests(&self) -> bool {
        self.rest.is_some_and(|until| until > Instant::now())
    }

    fn wrong_rests(&self) -> bool {
        self.wrong_until.is_some_and(|until| until > Instant::now())
    }

    /// The memory after a store of the right bytes. `paid`: the rest saves money.
    pub(super) fn renewed(rest: Option<Instant>, paid: bool) -> Past {
        Past {
            rest,
            paid,
            ..Past::default()
        }
    }

    /// The digests of the bytes that must not be paid for now.
    pub(super) fn refused(&self) -> HashSet<Digest> {
        match self.wrong_rests() {
            true => self.wrong.iter().copied().collect(),
            false => HashSet::new(),
        }
    }

    /// Whether its bytes were stored as another blob since they were last right.
    pub(super) fn was_wrong(&self) -> bool {
        self.wrong_stores > 0
    }

    /// Counts attempts, so that each of several answers is taken in turn.
    pub(super) fn turn(&self) -> u32 {
        self.wrong_stores.saturating_add(self.failures)
    }

    /// For how long nothing may be paid for the blob, because too many different bytes were wrong.
    pub(super) fn too_often(&self) -> Option<Duration> {
        let until = self.wrong_until.filter(|_| self.wrong_rests())?;
        (self.wrong.len() >= WRONG_REMEMBERED).then(|| until - Instant::now())
    }

    /// Notes that these bytes were stored, perhaps paid, and are another blob. The rest grows up to
    /// an epoch.
    pub(super) fn stored_wrong(&mut self, bytes: Digest, epoch: Duration) {
        if !self.wrong_rests() {
            self.wrong.clear();
        }
        if !self.wrong.contains(&bytes) {
            self.wrong.push(bytes);
        }
        let rest = doubled(epoch / 8, self.wrong_stores.saturating_mul(2), epoch);
        self.wrong_until = Some(Instant::now() + rest);
        self.wrong_stores = self.wrong_stores.saturating_add(1);
    }

    /// The part that is kept in the index; `None` if there is nothing to keep.
    fn text(&self, now: SystemTime) -> Option<String> {
        let kept_rest = self.rest.filter(|_| self.paid);
        if kept_rest.is_none() && self.wrong_stores == 0 {
            return None;
        }
        let at = |until: Option<Instant>| {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            left.map_or(0, |left| seconds(now).saturating_add(left.as_secs()))
        };
        let hex = |digest: &Digest| data_encoding::HEXLOWER.encode(digest);
        let wrong: Vec<String> = self.wrong.iter().map(hex).collect();
        Some(format!(
            "{} {} {} {}",
            at(kept_rest),
            at(self.wrong_until),
            self.wrong_stores,
            wrong.join(",")
        ))
    }

    /// Reads [`text`](Self::text); words that cannot be parsed are left out.
    fn parse(text: &str, now: SystemTime, longest: Duration) -> Past {
        let mut words = text.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let until = |word: &str| {
            let at: u64 = word.parse().unwrap_or(0);
            let left = Duration::from_secs(at.saturating_sub(seconds(now)));
            (!left.is_zero()).then(|| Instant::now() + left.min(longest))
        };
        let rest = until(next());
        let wrong_until = until(next());
        let wrong_stores = next().parse().unwrap_or(0);
        let digest = |hex: &str| {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?;
            Digest::try_from(bytes).ok()
        };
        Past {
            paid: rest.is_some(),
            rest,
            wrong_until,
            wrong_stores,
            wrong: next()
                .split(',')
                .filter_map(digest)
                .take(WRONG_REMEMBERED)
                .collect(),
            ..Past::default()
        }
    }
}

pub(super) fn seconds(t: SystemTime) -> u64 {
    let since = t.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn name(blob_id: &str) -> String {
    format!("{OF_RENEWAL}blob.{blob_id}")
}

/// The memory of the blobs that were due.
#[derive(Debug, Default)]
pub(super) struct Memory {
    blobs: HashMap<String, Past>,
    /// Blobs whose odd rows were named in the log.
    pub(super) odd_rows_named: parking_lot::Mutex<HashSet<String>>,
}

impl Memory {
    pub(super) async fn of(&mut self, parts: &RenewalParts, blob_id: &str) -> Result<Past> {
        if let Some(past) = self.blobs.get(blob_id) {
            return Ok(past.clone());
        }
        let note = parts.index.note(&name(blob_id)).await?;
        let longest = parts.longest_rest();
        let past = note.map(|text| Past::parse(&text, parts.clock.now(), longest));
        let past = past.unwrap_or_default();
        self.blobs.insert(blob_id.to_owned(), past.clone());
        Ok(past)
    }

    /// Remembers `past` of a blob, in the index too where that matters to later processes.
    pub(super) async fn keep(
        &mut self,
        parts: &RenewalParts,
        blob_id: &str,
        past: Past,
    ) -> Result<()> {
        let now = parts.clock.now();
        let before = self.blobs.insert(blob_id.to_owned(), past.clone());
        let before = before.and_then(|before| before.text(now));
        let text = past.text(now);
        if before == text {
            return Ok(());
        }
        parts.index.set_note(&name(blob_id), text.as_deref()).await
    }

    /// Forgets blobs that were not due in this round (`due`) and for which nothing is pending.
    /// Their notes go, too, unless other bytes of the blob were paid for and it has rows still.
    pub(super) async fn tidy(&mut self, parts: &RenewalParts, due: &HashSet<String>) -> Result<()> {
        let now = parts.clock.now();
        for (blob_id, past) in self.retain(due) {
            let noted = past.text(now).is_some();
            if noted && (!past.was_wrong() || parts.index.rows_of_blob(&blob_id).await?.is_empty())
            {
                parts.index.set_note(&name(&blob_id), None).await?;
            }
        }
        Ok(())
    }

    /// The part of [`tidy`](Self::tidy) that concerns this process alone; returns what it forgot.
    fn retain(&mut self, due: &HashSet<String>) -> Vec<(String, Past)> {
        let over = self.blobs.extract_if(|blob_id, past| {
            let waits = past.rests() || past.wrong_rests() || past.unnoted.is_some();
            !waits && !due.contains(blob_id)
        });
        over.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    }

    #[tokio::test(start_paused = true)]
    async fn what_costs_money_survives_a_restart() {
        let mut past = Past::default();
        assert_eq!(past.text(now()), None);
        past.stored_wrong([7; 32], EPOCH);
        let text = past.text(now()).unwrap();
        let read = Past::parse(&text, now(), EPOCH / 2);
        assert_eq!(read.refused(), HashSet::from([[7; 32]]));
        assert_eq!(read.wrong_stores, 1);
        past.rest = Some(Instant::now() + Duration::from_secs(500));
        past.paid = true;
        let read = Past::parse(&past.text(now()).unwrap(), now(), EPOCH);
        assert_eq!(read.rest, past.rest);
        // The rest after a failure that costs nothing does not survive a restart.
        past.paid = false;
        let read = Past::parse(&past.text(now()).unwrap(), now(), EPOCH);
        assert_eq!(read.rest, None);
    }

    /// A note from a clock that was years ahead delays nothing for long.
    #[tokio::test(start_paused = true)]
    async fn a_note_never_holds_up_for_longer_than_a_rest_may_last() {
        let past = Past::parse("9999999999 9999999999 1 xyz,", now(), EPOCH / 2);
        assert_eq!(past.rest, Some(Instant::now() + EPOCH / 2));
        assert_eq!(past.wrong_until, past.rest);
        assert_eq!(past.refused(), HashSet::new());
        for nonsense in ["", "a b c d", "-1 -1 -1 -1", "1 2 3"] {
            let past = Past::parse(nonsense, now(), EPOCH);
            assert!(!past.rests() && past.too_often().is_none(), "{nonsense}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_bytes_are_paid_for_ever_more_seldom() {
        let mut past = Past::default();
        let begun = Instant::now();
        let mut paid = 0;
        while begun.elapsed() < 10 * EPOCH {
            if !past.refused().contains(&[1; 32]) {
                past.stored_wrong([1; 32], EPOCH);
                paid += 1;
            }
            tokio::time::advance(EPOCH / 100).await;
        }
        assert!((8..=12).contains(&paid), "{paid}");
        // Bytes that are wrong in another way each time.
        let mut past = Past::default();
        let mut paid = 0;
        for n in 0..200 {
            if past.too_often().is_none() {
                past.stored_wrong([n; 32], EPOCH);
                paid += 1;
            }
            tokio::time::advance(EPOCH / 100).await;
        }
        assert!(paid <= 9, "{paid}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_remembered_until_it_may_be_looked_at() {
        let later = Some(Instant::now() + EPOCH);
        let resting = Past::renewed(later, false);
        let mut wrong = Past::default();
        wrong.stored_wrong([7; 32], EPOCH);
        wrong.rest = None;
        let unnoted = Past {
            unnoted: Some(Blob::default()),
            ..Past::default()
        };
        let mut memory = Memory::default();
        let all = [
            ("resting", resting),
            ("wrong", wrong),
            ("unnoted", unnoted),
            ("due", Past::default()),
            ("nothing", Past::default()),
        ];
        memory.blobs = all.map(|(id, past)| (id.to_owned(), past)).into();
        memory.retain(&HashSet::from(["due".to_owned()]));
        assert_eq!(memory.blobs.len(), 4);
        assert!(!memory.blobs.contains_key("nothing"));
        tokio::time::advance(10 * EPOCH).await;
        memory.retain(&HashSet::new());
        assert_eq!(memory.blobs.into_keys().collect::<Vec<_>>(), ["unnoted"]);
    }
}
