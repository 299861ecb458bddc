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

use std::collections::HashMap;

use walrus_devnet::{Devnet, ObjectId, Prices};
use walrusds::walrus::cost;

use crate::history::Block;
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
        let epochs = to.min(self.epochs).saturating_sub(from);
        units * (self.prices.storage * u64::from(epochs) + self.prices.write)
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

    /// The packs in which the blocks would be stored as they come: length, first epoch, last epoch
    /// in which any of its blocks lives.
    fn packs(&self, blocks: &[Block]) -> Vec<(u64, u32, u32)> {
        let mut packs: Vec<(u64, u32, u32)> = Vec::new();
        let mut session = None;
        for block in blocks {
            let (first, last) = self.life(block);
            let len = block.len as u64;
            match packs.last_mut() {
                Some(pack) if session == Some(block.comes) && pack.0 + len <= self.target => {
                    pack.0 += len;
                    pack.2 = pack.2.max(last);
                }
                _ => packs.push((len, first, last)),
            }
            session = Some(block.comes);
        }
        packs
    }

    /// What the Go plugin's way costs: every pack with a live block is stored again, whole, in the
    /// last epoch that is paid for (FROST).
    pub fn all_stored_again(&self, blocks: &[Block]) -> u64 {
        let mut sum = 0;
        for (len, first, last) in self.packs(blocks) {
            let mut from = first;
            loop {
                sum += self.store(self.units(len), from, from + self.bought);
                let ends = from + self.bought;
                if last + 1 < ends || ends >= self.epochs {
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
        let cost = |(len, first, last): (u64, u32, u32)| {
            let mut ends = first + self.bought;
            while last + 1 >= ends && ends < self.epochs {
                ends += self.bought;
            }
            self.store(self.units(len), first, ends)
        };
        self.packs(blocks).into_iter().map(cost).sum()
    }
}

/// Every registration that was seen on the network: start, end, units.
#[derive(Default)]
pub struct Paid {
    registrations: HashMap<ObjectId, (u32, u32, u64)>,
}

impl Paid {
    /// Notes what is registered now. Must be called before anything that has ended is dropped.
    pub fn note(&mut self, net: &Devnet) {
        for blob in net.blobs() {
            for r in blob.registrations {
                let entry = (r.start_epoch, r.end_epoch, blob.units);
                self.registrations.insert(r.object_id, entry);
            }
        }
    }

    /// How many blobs were registered.
    pub fn stores(&self) -> usize {
        self.registrations.len()
    }

    /// What was paid for the epochs of the simulation, and in total (FROST). `first`: its first
    /// epoch.
    pub fn sum(&self, rates: &Rates, first: u32) -> (u64, u64) {
        let mut sums = (0, 0);
        for (start, end, units) in self.registrations.values() {
            let (from, to) = (start - first, end - first);
            sums.0 += rates.store(*units, from, to);
            let whole = rates.prices.storage * u64::from(to - from) + rates.prices.write;
            sums.1 += units * whole;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::State;

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
    }

    #[test]
    fn a_pack_costs_as_long_as_one_of_its_blocks_lives() {
        let rates = rates();
        let half = 32 << 20;
        let blocks = [block(half, 0, Some(1)), block(half, 0, None)];
        assert_eq!(rates.packs(&blocks), [(64 << 20, 0, 19)]);
        assert_eq!(rates.bound(&blocks, true), (full(1, 1) + full(20, 1)) / 2);
        // Another session, another pack.
        let blocks = [block(half, 0, None), block(half, 1, None)];
        assert_eq!(rates.packs(&blocks).len(), 2);
        let too_long = [block(half, 0, None), block(half + 1, 0, None)];
        assert_eq!(rates.packs(&too_long).len(), 2);
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
