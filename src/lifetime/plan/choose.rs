//! Which blobs are repacked together.
//!
//! The price of a repacked blob depends on the others: a pack costs about as much as 14 MiB of
//! content before its first byte, so a lone sparse blob pays for a pack of its own, and twenty of
//! them fill one. The problem: choose the set of blobs for which the sum of
//!
//! - the price of the packs that hold the live bytes of the set, and
//! - the prices of the best other way for each blob outside the set
//!
//! is least. The packs' price depends on the sum of the bytes alone. So blobs are taken in the
//! order of what they save for each of their live bytes; every beginning of that order is priced,
//! and the cheapest is the choice, the empty one included. Then blobs change sides as long as a
//! single change makes the sum smaller. Hence the sum is never above that of the other ways.
//!
//! This is done for all blobs, and once more for those that are due alone, which the others may
//! then join: so the others are never taken along at a loss.

use super::price::Pricing;

/// A blob that may be repacked.
pub(super) struct Candidate {
    pub(super) due: bool,
    /// It is repacked for the sake of its storage.
    pub(super) reuses: bool,
    /// FROST and bytes moved if it is not repacked.
    pub(super) otherwise: (u128, u128),
    /// Bytes that it brings into packs, at least 1.
    pub(super) packed: u128,
    /// Bytes moved if it is repacked.
    pub(super) moved: u128,
}

/// How often all blobs are looked at for a single change.
const PASSES: usize = 4;

/// The running sums of a choice.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// FROST and moved bytes of the blobs that are not repacked.
    otherwise: (u128, u128),
    packed: u128,
    moved: u128,
    /// The packed bytes of those that are repacked for the sake of their storage.
    reused: u128,
}

impl Sums {
    fn with(self, candidate: &Candidate, repacked: bool) -> Sums {
        let (packed, moved) = (candidate.packed, candidate.moved);
        let (frost, bytes) = candidate.otherwise;
        let reused = if candidate.reuses { packed } else { 0 };
        let mut sums = self;
        match repacked {
            true => {
                sums.otherwise.0 -= frost;
                sums.otherwise.1 -= bytes;
                sums.packed += packed;
                sums.moved += moved;
                sums.reused += reused;
            }
            false => {
                sums.otherwise.0 += frost;
                sums.otherwise.1 += bytes;
                sums.packed -= packed;
                sums.moved -= moved;
                sums.reused -= reused;
            }
        }
        sums
    }

    /// FROST, then bytes moved: ties go to fewer bytes.
    fn cost(&self, pricing: &Pricing) -> (u128, u128) {
        let packs = pricing.store(pricing.packs(self.packed), pricing.compared);
        (
            packs.saturating_add(self.otherwise.0),
            self.moved.saturating_add(self.otherwise.1),
        )
    }
}

/// For each candidate, whether it is repacked. At most `room` bytes are, for the sake of storage.
pub(super) fn choose(candidates: &[Candidate], room: u128, pricing: &Pricing) -> Vec<bool> {
    let saved = |i: usize| candidates[i].otherwise.0 as f64 / candidates[i].packed as f64;
    let mut all: Vec<usize> = (0..candidates.len()).collect();
    all.sort_by(|a, b| saved(*b).total_cmp(&saved(*a)));
    let due: Vec<usize> = all.iter().copied().filter(|i| candidates[*i].due).collect();
    let mut at_once = Choice::of_none(candidates, room, pricing);
    at_once.take_beginning(&all);
    at_once.improve(&all);
    if due.len() == all.len() {
        return at_once.repacked;
    }
    let mut due_first = Choice::of_none(candidates, room, pricing);
    due_first.take_beginning(&due);
    due_first.improve(&due);
    due_first.improve(&all);
    match due_first.cost <= at_once.cost {
        true => due_first.repacked,
        false => at_once.repacked,
    }
}

struct Choice<'a> {
    candidates: &'a [Candidate],
    room: u128,
    pricing: &'a Pricing,
    repacked: Vec<bool>,
    sums: Sums,
    cost: (u128, u128),
}

impl<'a> Choice<'a> {
    fn of_none(candidates: &'a [Candidate], room: u128, pricing: &'a Pricing) -> Self {
        let mut sums = Sums::default();
        for candidate in candidates {
            sums.otherwise.0 += candidate.otherwise.0;
            sums.otherwise.1 += candidate.otherwise.1;
        }
        Choice {
            candidates,
            room,
            pricing,
            repacked: vec![false; candidates.len()],
            cost: sums.cost(pricing),
            sums,
        }
    }

    /// Takes the cheapest beginning of an order, where none was taken yet.
    fn take_beginning(&mut self, order: &[usize]) {
        let (mut sums, mut taken) = (self.sums, 0);
        let mut beginning = Vec::with_capacity(order.len());
        for i in order {
            let next = sums.with(&self.candidates[*i], true);
            if next.reused > self.room {
                continue;
            }
            sums = next;
            beginning.push(*i);
            let cost = sums.cost(self.pricing);
            if cost < self.cost {
                (self.sums, self.cost, taken) = (sums, cost, beginning.len());
            }
        }
        for i in beginning.into_iter().take(taken) {
            self.repacked[i] = true;
        }
    }

    /// Makes single changes that make the sum smaller.
    fn improve(&mut self, order: &[usize]) {
        for _ in 0..PASSES {
            let mut changed = false;
            for i in order {
                let sums = self.sums.with(&self.candidates[*i], !self.repacked[*i]);
                let cost = sums.cost(self.pricing);
                if cost < self.cost && sums.reused <= self.room {
                    (self.sums, self.cost) = (sums, cost);
                    self.repacked[*i] = !self.repacked[*i];
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }
}
