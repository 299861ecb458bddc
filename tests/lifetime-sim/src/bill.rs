//! What was paid, what had to be paid, and what other ways would have paid.
//!
//! All sums are for the epochs of the simulation, `0..n`: what is bought for the time after its end
//! (every way buys some epochs ahead) counts in none of them.
//!
//! # The bound
//!
//! A node that knew the future would keep each byte of each block in a full pack, for exactly the
//! epochs in which the block lives (the network sells whole epochs: the first and the last one
//! count). With `U` units of a pack of `T` bytes, `s` FROST per unit and epoch and `w` per unit
//! written, a block of `len` bytes that lives in `e` epochs needs
//!
//! ```text
//! len · U/T · (s·(e + k - 1) + w·k)
//! ```
//!
//! where `k` is how often it must be stored. With the chain, `k` = 1: the owner extends a blob
//! epoch by epoch. Over HTTP alone, a store buys `E` epochs (`epochs` of the configuration) from
//! the present one on, and the blob must be stored again while it still lives, in its last epoch at
//! the latest. So each store after the first buys one epoch that is paid already, and brings `E -
//! 1` more: `k` = 1 + ⌈(e - E) / (E - 1)⌉ if `e` > `E`.
//!
//! It leaves out what no node can avoid: it does not know which blocks will be deleted (what was
//! bought for them ahead is lost), a pack holds more than the blocks' bytes (a CAR's headers and
//! index), and the last pack of a session is not full.
//!
//! # Without foresight
//!
//! A node that does not know the future is above the bound, whatever it does, and the more so the
//! sooner blocks are deleted. So there is a second measure, [`Rates::without_foresight`].
//!
//! With the chain: a pack that holds deleted blocks is extended with them, or its live blocks are
//! stored in another pack, which is paid from the present epoch on, although that is paid already,
//! and is written. A node that repacks often pays for that, one that repacks seldom pays for
//! deleted blocks. The measure: each pack, full and without headers, is extended epoch by epoch and
//! repacked at the moments that turn out to be the best ones for it.
//!
//! Over HTTP alone: whatever lives when its storage is about to end is stored again for `E` epochs,
//! in full packs without headers.

use std::collections::{BTreeMap, HashMap, HashSet};

use walrus_devnet::{Devnet, ObjectId, Prices};
use walrusds::walrus::cost;

use crate::history::{Block, State};
use crate::Settings;

/// Prices and lengths of a simulation.
pub struct Rates {
    pub prices: Prices,
    pub n_shards: u16,
    pub target: u64,
    /// How many epochs are bought at a time.
    pub bought: u32,
    /// How many epochs the simulation lasts.
    pub epochs: u32,
    pub steps_per_epoch: u32,
}

impl Rates {
    pub fn new(settings: &Settings) -> Rates {
        Rates {
            prices: Prices::default(),
            n_shards: settings.n_shards,
            target: settings.target,
            bought: settings.bought,
            epochs: settings.epochs,
            steps_per_epoch: settings.steps_per_epoch,
        }
    }

    pub fn units(&self, len: u64) -> u64 {
        cost::units(len, self.n_shards).expect("a possible length")
    }

    /// FROST for units that are kept from one epoch to another and written once.
    fn store(&self, units: u64, from: u32, to: u32) -> u64 {
        self.keep(units, from, to) + units * self.prices.write
    }

    /// FROST for units that are kept from one epoch to another.
    fn keep(&self, units: u64, from: u32, to: u32) -> u64 {
        let epochs = to.min(self.epochs).saturating_sub(from.min(self.epochs));
        units * self.prices.storage * u64::from(epochs)
    }

    /// The first and the last epoch of a block's life.
    fn life(&self, block: &Block) -> (u32, u32) {
        let last = self.epochs - 1;
        let goes = block.goes.map_or(last, |step| step / self.steps_per_epoch);
        (block.comes / self.steps_per_epoch, goes)
    }

    /// What had to be paid for the blocks: see the module (FROST).
    pub fn bound(&self, blocks: &[Block], chain: bool) -> u64 {
        let per_byte = self.units(self.target) as f64 / self.target as f64;
        let needed = |block: &Block| {
            let (first, last) = self.life(block);
            let lives = last - first + 1;
            let again = match chain {
                true => 0,
                false => (lives.saturating_sub(self.bought)).div_ceil(self.bought - 1),
            };
            let storage = self.prices.storage * u64::from(lives + again);
            let writes = self.prices.write * u64::from(1 + again);
            block.len as f64 * per_byte * (storage + writes) as f64
        };
        blocks.iter().map(needed).sum::<f64>() as u64
    }

    /// The packs in which the blocks would be stored as they come.
    fn packs(&self, blocks: &[Block]) -> Vec<Pack> {
        let mut packs: Vec<Pack> = Vec::new();
        let mut session = None;
        for block in blocks {
            let (first, last) = self.life(block);
            let len = block.len as u64;
            match packs.last_mut() {
                Some(pack) if session == Some(block.comes) && pack.len + len <= self.target => {
                    pack.len += len;
                    pack.last = pack.last.max(last);
                    pack.blocks.push((len, last));
                }
                _ => packs.push(Pack {
                    len,
                    first,
                    last,
                    blocks: vec![(len, last)],
                }),
            }
            session = Some(block.comes);
        }
        packs
    }

    /// What a node pays at best that does not know the future: see the module (FROST).
    pub fn without_foresight(&self, blocks: &[Block], chain: bool) -> u64 {
        match chain {
            true => self.repacked_at_best(blocks),
            false => self.stored_while_live(blocks),
        }
    }

    fn stored_while_live(&self, blocks: &[Block]) -> u64 {
        let per_byte = self.units(self.target) as f64 / self.target as f64;
        let stores = |block: &Block| {
            let (first, last) = self.life(block);
            let again = (first + self.bought - 1..last).step_by(self.bought as usize - 1);
            let stores = std::iter::once(first).chain(again);
            let price: u64 = stores.map(|at| self.store(1, at, at + self.bought)).sum();
            block.len as f64 * per_byte * price as f64
        };
        blocks.iter().map(stores).sum::<f64>() as u64
    }

    fn repacked_at_best(&self, blocks: &[Block]) -> u64 {
        let per_byte = self.units(self.target) as f64 / self.target as f64;
        let storage = self.prices.storage as f64;
        let write = self.prices.write as f64;
        let n = self.epochs as usize;
        let mut sum = 0.0;
        for pack in self.packs(blocks) {
            let first = pack.first as usize;
            // The bytes that live in each epoch.
            let mut lives = vec![0.0; n + 1];
            for (len, last) in &pack.blocks {
                for bytes in &mut lives[first..=*last as usize] {
                    *bytes += *len as f64;
                }
            }
            // The price from an epoch on of a pack that was repacked just before it.
            let mut from = vec![0.0; n + 1];
            for k in (first..n).rev() {
                let until = |j: usize| {
                    let kept = lives[k] * storage * (j - k) as f64;
                    kept + lives[j] * (storage + write) + from[j]
                };
                from[k] = (k + 1..=n).map(until).fold(f64::INFINITY, f64::min);
            }
            sum += from[first] + lives[first] * write;
        }
        (sum * per_byte) as u64
    }

    /// What the Go plugin's way costs: every pack with a live block is stored again, whole, in the
    /// last epoch that is paid for (FROST).
    pub fn all_stored_again(&self, blocks: &[Block]) -> u64 {
        let mut sum = 0;
        for pack in self.packs(blocks) {
            let mut from = pack.first;
            loop {
                sum += self.store(self.units(pack.len), from, from + self.bought);
                let ends = from + self.bought;
                if pack.last + 1 < ends || ends >= self.epochs {
                    break;
                }
                from = ends - 1;
            }
        }
        sum
    }

    /// What plain extending costs: every pack with a live block in its last epoch is extended,
    /// whole (FROST).
    pub fn all_extended(&self, blocks: &[Block]) -> u64 {
        let cost = |pack: Pack| {
            let mut ends = pack.first + self.bought;
            while pack.last + 1 >= ends && ends < self.epochs {
                ends += self.bought;
            }
            self.store(self.units(pack.len), pack.first, ends)
        };
        self.packs(blocks).into_iter().map(cost).sum()
    }
}

/// Blocks that are stored together as they come.
struct Pack {
    len: u64,
    first: u32,
    /// The last epoch in which any of its blocks lives.
    last: u32,
    /// Length, and last epoch of its life, of each block.
    blocks: Vec<(u64, u32)>,
}

/// The purpose of a payment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Purpose {
    /// Blocks that were put.
    Put,
    /// A blob that was there already was stored again.
    Again,
    /// Blocks of other blobs were carried over.
    Repack,
    /// The node was killed: no row points at the blob, or it was put once more.
    InVain,
    /// A registration was extended.
    Extend,
}

struct Registration {
    /// From this epoch on it was paid: where it took over storage, from the end of that on.
    paid_from: u32,
    /// Its end before it was extended, as far as that was seen.
    first_end: u32,
    end: u32,
    /// The units that were written.
    units: u64,
    /// The units of its storage: more where it took over storage that was larger.
    storage: u64,
    /// Whether it took over the storage of a deleted blob, so that only the write was paid.
    reused: bool,
    purpose: Purpose,
}

/// What was paid for at the end of an epoch, in units.
#[derive(Clone, Copy, Default, Debug)]
pub struct Occupied {
    /// The storage in which a blob lies.
    pub of_blobs: f64,
    /// Of it, what the bytes of the blobs need in full packs.
    pub content: f64,
    /// Of that, what the live blocks need.
    pub live: f64,
    /// The storage that deleted blobs have left and that nothing has taken over.
    pub idle: f64,
    /// How many blobs were stored in this epoch, and how many of them in storage that was left.
    pub stores: usize,
    pub reused: usize,
}

/// Every registration that was seen on the network.
#[derive(Default)]
pub struct Paid {
    registrations: HashMap<ObjectId, Registration>,
    blobs: HashSet<String>,
    /// For each epoch that is over.
    pub occupied: Vec<Occupied>,
}

impl Paid {
    /// Notes what is registered now, or was deleted since it was called last; returns what is new:
    /// objects and blobs. Must be called before there are any, before anything that has ended is
    /// dropped, and whenever it changes whether blocks are put or renewed.
    pub fn note(&mut self, net: &Devnet, putting: bool) -> Vec<(ObjectId, String)> {
        let mut new = Vec::new();
        let deleted = net.take_deleted();
        for blob in deleted.into_iter().chain(net.blobs()) {
            let blob_id = blob.blob_id.to_string();
            for r in blob.registrations {
                if let Some(known) = self.registrations.get_mut(&r.object_id) {
                    known.end = r.end_epoch;
                    continue;
                }
                let purpose = match (self.blobs.insert(blob_id.clone()), putting) {
                    (false, true) => Purpose::InVain,
                    (false, false) => Purpose::Again,
                    (true, true) => Purpose::Put,
                    (true, false) => Purpose::Repack,
                };
                // It may have been extended since it was registered.
                let taken_over = r.reused.as_ref().map(|storage| storage.end_epoch);
                let registration = Registration {
                    paid_from: taken_over.unwrap_or(r.start_epoch),
                    first_end: taken_over.unwrap_or(r.end_epoch),
                    end: r.end_epoch,
                    units: blob.units,
                    storage: r.storage_size(blob.encoded_size).div_ceil(1 << 20),
                    reused: r.reused.is_some(),
                    purpose,
                };
                self.registrations.insert(r.object_id, registration);
                new.push((r.object_id, blob_id.clone()));
            }
        }
        new
    }

    /// Notes what is paid for at the end of an epoch; `blocks`: all, in their present state.
    pub fn end_of_epoch(&mut self, net: &Devnet, epoch: u32, rates: &Rates, blocks: &[Block]) {
        let per_byte = rates.units(rates.target) as f64 / rates.target as f64;
        let units = |bytes: u64| bytes.div_ceil(1 << 20) as f64;
        let mut sums = Occupied::default();
        for blob in net.blobs() {
            let paid = blob.registrations.iter();
            for r in paid.filter(|r| r.end_epoch > epoch) {
                sums.of_blobs += units(r.storage_size(blob.encoded_size));
                sums.content += blob.size as f64 * per_byte;
            }
        }
        let live = blocks.iter().filter(|block| block.state == State::Live);
        sums.live = live.map(|block| block.len as f64 * per_byte).sum();
        let idle = net.free_storage().into_iter();
        let idle = idle.filter(|storage| storage.end_epoch > epoch);
        sums.idle = idle.map(|storage| units(storage.size)).sum();
        let (stores, reused) = self
            .occupied
            .iter()
            .fold((0, 0), |(stores, reused), ended| {
                (stores + ended.stores, reused + ended.reused)
            });
        sums.stores = self.stores() - stores;
        sums.reused = self.reused() - reused;
        self.occupied.push(sums);
    }

    /// Notes that no row points at the blob of this object.
    pub fn in_vain(&mut self, object: &ObjectId) {
        if let Some(registration) = self.registrations.get_mut(object) {
            registration.purpose = Purpose::InVain;
        }
    }

    /// How many blobs took over the storage of deleted ones.
    pub fn reused(&self) -> usize {
        let all = self.registrations.values();
        all.filter(|registration| registration.reused).count()
    }

    /// How many blobs were registered.
    pub fn stores(&self) -> usize {
        self.registrations.len()
    }

    /// What was paid for each purpose for the epochs of the simulation, and in total (FROST).
    /// `first`: its first epoch.
    pub fn sum(&self, rates: &Rates, first: u32) -> (BTreeMap<Purpose, u64>, u64) {
        let (mut by_purpose, mut total) = (BTreeMap::new(), 0);
        for r in self.registrations.values() {
            let written = r.units * rates.prices.write;
            let stored = rates.keep(r.storage, r.paid_from - first, r.first_end - first);
            *by_purpose.entry(r.purpose).or_default() += stored + written;
            let extended = rates.keep(r.storage, r.first_end - first, r.end - first);
            *by_purpose.entry(Purpose::Extend).or_default() += extended;
            total += r.storage * rates.prices.storage * u64::from(r.end - r.paid_from) + written;
        }
        (by_purpose, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mainnet, with packs of 64 MiB.
    fn rates() -> Rates {
        Rates {
            prices: Prices::default(),
            n_shards: 1000,
            target: 64 << 20,
            bought: 5,
            epochs: 20,
            steps_per_epoch: 2,
        }
    }

    fn block(len: usize, comes: u32, goes: Option<u32>) -> Block {
        Block {
            seed: 0,
            len,
            comes,
            goes,
            key: String::new(),
            state: State::Waiting,
        }
    }

    /// FROST for a full pack that is kept for so many epochs and written so often.
    fn full(epochs: u64, writes: u64) -> u64 {
        350 * (100_000 * epochs + 20_000 * writes)
    }

    #[test]
    fn full_packs_cost_what_is_needed() {
        let rates = rates();
        // In step 7, in the middle of epoch 3, its last byte goes.
        let short = [block(64 << 20, 2, Some(7))];
        assert_eq!(rates.bound(&short, true), full(3, 1));
        assert_eq!(rates.bound(&short, false), full(3, 1));
        assert_eq!(rates.all_extended(&short), full(5, 1));
        assert_eq!(rates.all_stored_again(&short), full(5, 1));
        // It lives for all 20 epochs: stored in 0, and again in 4, 8, 12 and 16.
        let long = [block(64 << 20, 0, None)];
        assert_eq!(rates.bound(&long, true), full(20, 1));
        assert_eq!(rates.bound(&long, false), full(24, 5));
        assert_eq!(rates.all_extended(&long), full(20, 1));
        assert_eq!(rates.all_stored_again(&long), full(24, 5));
        assert_eq!(rates.without_foresight(&long, true), full(20, 1));
        assert_eq!(rates.without_foresight(&long, false), full(24, 5));
    }

    #[test]
    fn a_pack_costs_as_long_as_one_of_its_blocks_lives() {
        let rates = rates();
        let half = 32 << 20;
        let blocks = [block(half, 0, Some(1)), block(half, 0, None)];
        let packs = rates.packs(&blocks);
        assert_eq!(packs.len(), 1);
        let (len, life) = (packs[0].len, packs[0].first..=packs[0].last);
        assert_eq!((len, life), (64 << 20, 0..=19));
        assert_eq!(rates.bound(&blocks, true), (full(1, 1) + full(20, 1)) / 2);
        // Another session, another pack.
        let blocks = [block(half, 0, None), block(half, 1, None)];
        assert_eq!(rates.packs(&blocks).len(), 2);
        let too_long = [block(half, 0, None), block(half + 1, 0, None)];
        assert_eq!(rates.packs(&too_long).len(), 2);
    }

    #[test]
    fn the_best_moment_to_repack_is_found() {
        let rates = rates();
        let whole = [block(64 << 20, 2, Some(7))];
        assert_eq!(rates.without_foresight(&whole, true), full(3, 1));
        assert_eq!(rates.without_foresight(&whole, false), full(5, 1));
        // One half goes in the first epoch: the other one is repacked in it, and paid for it twice.
        let half = 32 << 20;
        let blocks = [block(half, 0, Some(1)), block(half, 0, None)];
        assert_eq!(
            rates.without_foresight(&blocks, true),
            full(1, 1) + full(20, 1) / 2
        );
        // Where it ends soon, too, the whole pack is extended by one epoch.
        let blocks = [block(half, 0, Some(1)), block(half, 0, Some(3))];
        assert_eq!(rates.without_foresight(&blocks, true), full(2, 1));
    }

    #[test]
    fn nothing_counts_that_is_bought_for_the_time_after_the_end() {
        let rates = rates();
        let late = [block(64 << 20, 38, None)];
        assert_eq!(rates.all_extended(&late), full(1, 1));
        assert_eq!(rates.all_stored_again(&late), full(1, 1));
        assert_eq!(rates.bound(&late, false), full(1, 1));
    }
}
