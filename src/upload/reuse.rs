//! Storage that is used again: deleted blobs leave theirs to the publisher's wallet, paid for up to
//! its end.
//!
//! The publisher looks in its wallet, if it is asked to, for storage that is large enough and ends
//! no earlier than asked: it takes the smallest, whole. So what is asked for must not last longer
//! than what is there. This module remembers what was left, and asks for as few epochs as are safe
//! where something fits: the blob is extended in time, as any other.
//!
//! A publisher that looks in its wallet finds a blob of the same bytes, too, and stores nothing
//! new: it answers with the object that is there. The ledger of another index may own that object,
//! or it is about to be deleted, so it is not relied on: the bytes are stored once more, as an
//! object of their own.
//!
//! What is remembered may be wrong, since other nodes use the wallet as well. Where nothing is left
//! after all, the publisher sells storage for these few epochs; nothing is lost by that. And where
//! several stores are under way, each may get the storage that was meant for another one: what is
//! remembered follows the publisher's answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, EpochClock};
use crate::error::Result;
use crate::index::{Index, STORAGE_LEFT};
use crate::walrus::{cost, BlobStore, Body, StoreOptions, StoreResult};

/// So much is remembered at most, and noted: what ends last.
const MOST: usize = 512;
/// Storage is too large for a blob that would leave more than this part (a quarter of what it
/// needs) empty: a larger blob may come, and extending would cost as much as for that.
const ROOMY: u64 = 4;
/// A pack is full if it lacks so small a part (a twentieth).
const NEARLY: u64 = 20;
/// So often in a row storage was bought although some was left: the publisher uses none again, or
/// is not that of the wallet.
const TOLD_AFTER: u32 = 3;

/// Storage without a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Left {
    /// Encoded bytes.
    pub(crate) size: u64,
    /// The first epoch in which it is no longer paid for.
    pub(crate) end: u64,
}

/// The storage that deleted blobs have left.
pub(crate) struct Reuse {
    left: Mutex<Vec<Left>>,
    /// What is meant for the stores that are under way, by their numbers. Locked after `left`.
    taken: Mutex<BTreeMap<u64, Left>>,
    /// The note in the index, as this process has read or written it last. Held while it is read or
    /// written; locked before `left`.
    noted: tokio::sync::Mutex<Vec<Left>>,
    clock: Arc<dyn Clock>,
    epoch_clock: Arc<EpochClock>,
    n_shards: u16,
    /// Storage that ends within this time is not used: a blob in it could not be extended in time.
    spare: Duration,
    /// How often in a row storage was bought although some was known.
    bought: AtomicU32,
}

/// The terms on which blobs are bought.
pub(crate) struct Purchase {
    pub(crate) options: StoreOptions,
    /// `None`: all storage is bought anew.
    pub(crate) reuse: Option<Arc<Reuse>>,
}

impl Reuse {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        epoch_clock: Arc<EpochClock>,
        n_shards: u16,
        spare: Duration,
    ) -> Reuse {
        Reuse {
            left: Mutex::default(),
            taken: Mutex::default(),
            noted: tokio::sync::Mutex::default(),
            clock,
            epoch_clock,
            n_shards,
            spare,
            bought: AtomicU32::new(0),
        }
    }

    /// Remembers storage that a deleted blob has left.
    pub(crate) fn give(&self, left: Left) {
        let mut all = self.left.lock();
        all.push(left);
        if all.len() > MOST {
            all.sort_unstable_by_key(|left| left.end);
            all.remove(0);
        }
    }

    /// For how many epochs to ask, and the first end of storage that is long enough for that.
    fn wanted(&self) -> Option<(u64, u64)> {
        let now = self.clock.now();
        // If a later one has begun all the same, the publisher sells storage.
        let (least, most) = self.epoch_clock.likely_epoch(now)?;
        let too_soon = self.epoch_clock.ends_within(now, self.spare)?;
        let epochs = too_soon.saturating_sub(least).saturating_add(1);
        // The publisher counts from its present epoch, which may be the latest that is possible.
        Some((epochs, most.saturating_add(epochs)))
    }

    /// The length of a full pack (bytes): `most`, or a little less, so that it fits into what packs
    /// have left that were not filled to the last byte.
    pub(crate) fn full_pack(&self, most: u64) -> u64 {
        let full = cost::encoded_size(most, self.n_shards);
        let Some((full, (_, wanted))) = full.zip(self.wanted()) else {
            return most;
        };
        let all = self.left.lock();
        let sizes = all.iter().filter(|left| left.end >= wanted);
        let sizes = sizes.map(|left| left.size);
        let nearly = sizes.filter(|size| (full - full / NEARLY..full).contains(size));
        let least = nearly.min();
        least.map_or(most, |size| cost::longest_within(size, self.n_shards))
    }

    /// How many packs of this length could be stored in what is left.
    pub(crate) fn packs(&self, len: u64) -> u64 {
        let needed = cost::encoded_size(len, self.n_shards);
        let Some((needed, (_, wanted))) = needed.zip(self.wanted()) else {
            return 0;
        };
        let all = self.left.lock();
        let fitting = all.iter();
        let fitting = fitting.filter(|left| left.size >= needed && left.end >= wanted);
        fitting.count() as u64
    }

    /// Takes storage for a blob of `len` bytes, if any fits: what the publisher will take, and for
    /// how many epochs to ask.
    fn take(&self, len: u64) -> Option<(Left, u32)> {
        let (epochs, wanted) = self.wanted()?;
        let needed = cost::encoded_size(len, self.n_shards)?;
        let mut all = self.left.lock();
        all.retain(|left| !self.epoch_clock.is_over(left.end));
        let fitting = all.iter().enumerate();
        let fitting = fitting.filter(|(_, left)| left.size >= needed && left.end >= wanted);
        let (place, least) = fitting.min_by_key(|(_, left)| **left)?;
        if least.size > needed + needed / ROOMY {
            return None;
        }
        Some((all.swap_remove(place), u32::try_from(epochs).ok()?))
    }

    /// Notes that a store is under way for which this is meant.
    fn begin(&self, left: Left) -> UnderWay<'_> {
        let mut taken = self.taken.lock();
        let number = taken.last_key_value().map_or(0, |(last, _)| last + 1);
        taken.insert(number, left);
        UnderWay {
            reuse: self,
            number,
        }
    }

    /// Whether the publisher does not seem to use storage again. True once for each few stores that
    /// show it.
    pub(super) fn is_ignored(&self) -> bool {
        let enough = |bought: u32| (bought >= TOLD_AFTER).then_some(0);
        self.bought.fetch_update(Relaxed, Relaxed, enough).is_ok()
    }

    /// Forgets storage that is not there: all of this size, or more, that lasts as long. `known`:
    /// the storage that this process knew when it asked the publisher. Storage that deleted blobs
    /// have left since then is there.
    fn forget(&self, size: Option<u64>, end: u64, known: &[Left]) {
        let is_not_there = |left: &Left| Some(left.size) >= size && left.end >= end;
        let mut all = self.left.lock();
        let since = beyond(&all, known);
        all.retain(|left| !is_not_there(left));
        all.extend(since.into_iter().filter(is_not_there));
    }

    /// Takes over what an earlier process or other nodes have changed in the note since the last
    /// look.
    pub(crate) async fn recall(&self, index: &dyn Index) -> Result<()> {
        let mut noted = self.noted.lock().await;
        self.take_over(index, &mut noted).await
    }

    /// Notes what is left. What other nodes have noted meanwhile is kept.
    pub(crate) async fn note(&self, index: &dyn Index) -> Result<()> {
        let mut noted = self.noted.lock().await;
        self.take_over(index, &mut noted).await?;
        let left = self.left.lock().clone();
        if beyond(&left, &noted).is_empty() && beyond(&noted, &left).is_empty() {
            return Ok(());
        }
        let entry = |left: &Left| format!("{}@{}", left.size, left.end);
        let text: Vec<String> = left.iter().map(entry).collect();
        let text = text.join(" ");
        let kept = (!text.is_empty()).then_some(&*text);
        index.set_note(STORAGE_LEFT, kept).await?;
        *noted = left;
        Ok(())
    }

    /// Makes the changes here that other processes have made in the note. Those that this process
    /// has made since stay.
    async fn take_over(&self, index: &dyn Index, noted: &mut Vec<Left>) -> Result<()> {
        let note = index.note(STORAGE_LEFT).await?.unwrap_or_default();
        let read = |entry: &str| {
            let (size, end) = entry.split_once('@')?;
            Some(Left {
                size: size.parse().ok()?,
                end: end.parse().ok()?,
            })
        };
        let note: Vec<Left> = note.split(' ').filter_map(read).collect();
        let mut left = self.left.lock();
        for gone in beyond(noted, &note) {
            if let Some(place) = left.iter().position(|left| *left == gone) {
                left.swap_remove(place);
            }
        }
        left.extend(beyond(&note, noted));
        drop(left);
        *noted = note;
        Ok(())
    }
}

/// The storage in `all` that `others` lacks; of equal pieces, as many as `all` has more.
fn beyond(all: &[Left], others: &[Left]) -> Vec<Left> {
    let mut others = others.to_vec();
    let mut is_beyond = |left: &Left| match others.iter().position(|other| other == left) {
        Some(place) => {
            others.swap_remove(place);
            false
        }
        None => true,
    };
    all.iter().filter(|left| is_beyond(left)).copied().collect()
}

/// A store that is under way, and the storage that is meant for it. If it is given up, it is not
/// known whether that was used, and it is forgotten.
struct UnderWay<'a> {
    reuse: &'a Reuse,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.reuse.taken.lock().remove(&self.number);
    }
}

impl UnderWay<'_> {
    /// What is meant for it now: the storage of another store, if that one got what was meant for
    /// this one.
    fn meant(&self) -> Option<Left> {
        self.reuse.taken.lock().get(&self.number).copied()
    }

    /// Whether this storage is meant for another store.
    fn is_of_another(&self, storage: Left) -> bool {
        let taken = self.reuse.taken.lock();
        let mut others = taken.iter().filter(|(number, _)| **number != self.number);
        others.any(|(_, other)| *other == storage)
    }

    /// Nothing was used.
    fn failed(self) {
        if let Some(left) = self.meant() {
            self.reuse.give(left);
        }
    }

    /// This storage was used.
    fn used(self, used: Left) {
        let mut left = self.reuse.left.lock();
        let mut taken = self.reuse.taken.lock();
        let Some(meant) = taken.remove(&self.number).filter(|meant| *meant != used) else {
            return;
        };
        if let Some(other) = taken.values_mut().find(|other| **other == used) {
            *other = meant;
            return;
        }
        // Else this node did not know of it.
        if let Some(place) = left.iter().position(|left| *left == used) {
            left.swap_remove(place);
        }
        left.push(meant);
    }
}

/// Whether storage was bought, although some was known that the publisher would have taken. Where
/// the answer does not name the operation, that is judged by size and end; if the known storage was
/// of the very same, the answer would not tell.
fn is_bought(answer: &StoreResult, left: Left, epochs: u32, needed: Option<u64>) -> bool {
    if let Some(reused) = answer.reused {
        return !reused;
    }
    let new_end = answer.start_epoch.map(|start| start + u64::from(epochs));
    let is_new = answer.encoded_size == needed && new_end == Some(answer.end_epoch);
    is_new && (Some(left.size) != needed || left.end != answer.end_epoch)
}

impl Purchase {
    /// Stores a blob on these terms.
    pub(crate) async fn store(&self, walrus: &dyn BlobStore, body: Body) -> Result<StoreResult> {
        let reuse = self.reuse.as_deref();
        let taken = reuse.and_then(|reuse| Some((reuse, reuse.take(body.len())?)));
        let Some((reuse, (left, epochs))) = taken else {
            return walrus.store(body, self.options).await;
        };
        let options = StoreOptions {
            epochs,
            reuse: true,
            ..self.options
        };
        let needed = cost::encoded_size(body.len(), reuse.n_shards);
        let under_way = reuse.begin(left);
        let known = reuse.left.lock().clone();
        let stored = walrus.store(body.clone(), options).await;
        let meant = under_way.meant().unwrap_or(left);
        let got = |answer: &StoreResult| Left {
            size: answer.encoded_size.unwrap_or(meant.size),
            end: answer.end_epoch,
        };
        match &stored {
            Err(_) => under_way.failed(),
            Ok(answer) if !answer.newly_created => {
                under_way.failed();
                return walrus.store(body, self.options).await;
            }
            Ok(answer)
                if is_bought(answer, meant, epochs, needed)
                    && (answer.reused.is_some() || !under_way.is_of_another(got(answer))) =>
            {
                reuse.bought.fetch_add(1, Relaxed);
                reuse.forget(needed, answer.end_epoch, &known);
            }
            Ok(answer) => {
                reuse.bought.store(0, Relaxed);
                under_way.used(got(answer));
            }
        }
        stored
    }
}

#[cfg(test)]
mod tests;
