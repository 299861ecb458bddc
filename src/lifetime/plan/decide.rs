//! The decisions about blobs.

use super::choose::{choose, Candidate};
use super::price::{units_of_encoded, Pricing};
use super::spread::place;
use super::{Action, Blob, Decision, Plan, Sum, Terms, Totals};

/// A blob with what its numbers mean.
struct Item<'a> {
    blob: &'a Blob,
    /// `None`: unknown.
    end: Option<u64>,
    /// Its storage has ended.
    over: bool,
    due: bool,
    size: u128,
    units: u128,
    live_bytes: u128,
    live_blocks: u128,
}

/// The ways for a live blob besides repacking, and what is said of each.
struct Ways {
    extend: Option<(u128, u32)>,
    store_again: u128,
}

fn known(n: i64) -> Option<u64> {
    u64::try_from(n).ok().filter(|n| *n > 0)
}

fn cap(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl<'a> Item<'a> {
    fn new(blob: &'a Blob, terms: &Terms, pricing: &Pricing) -> Self {
        let end = known(blob.end_epoch);
        let until = until(terms);
        let soon = terms.epoch.saturating_add(terms.lead_epochs);
        let live_bytes = known(blob.live_bytes).unwrap_or(0);
        // Numbers that contradict each other never make a blob dead.
        let live_blocks = match blob.live_blocks {
            0 if live_bytes == 0 => 0,
            n => known(n).unwrap_or(1),
        };
        let size = known(blob.size).unwrap_or(live_bytes);
        let encoded = blob.encoded_size.filter(|bytes| *bytes > 0);
        Item {
            blob,
            end,
            over: end.is_some_and(|end| end <= terms.epoch),
            due: end.is_none_or(|end| end <= soon && end < until),
            size: size.into(),
            units: encoded.map_or_else(|| pricing.units(size.into()), units_of_encoded),
            live_bytes: live_bytes.into(),
            live_blocks: live_blocks.into(),
        }
    }

    fn is_live(&self) -> bool {
        self.live_blocks > 0
    }

    /// The object by which the owner can extend or delete it now.
    fn can_be_managed(&self, terms: &Terms) -> bool {
        let object = self.blob.object_id.as_deref().unwrap_or_default();
        terms.chain && !object.is_empty() && !self.over && self.end.is_some()
    }

    /// Whether its storage can be used again soon after its live blocks have moved.
    fn gives_back(&self, terms: &Terms) -> bool {
        terms.reuse.is_some()
            && self.blob.deletable
            && !self.blob.held
            && self.can_be_managed(terms)
    }

    /// Whether its live blocks need less in full packs than it occupies.
    fn is_sparse(&self, terms: &Terms, pricing: &Pricing) -> bool {
        let (packed, full) = (self.packed(terms), pricing.target_units);
        packed.saturating_mul(full)
            < self
                .shed_units(terms, pricing)
                .saturating_mul(pricing.target)
    }

    /// The units that are shed if its live blocks move. It may lie in storage that is too large for
    /// it. Where hardly a block is dead, that counts for nothing: moved alone, its blocks would
    /// make the very same blob.
    fn shed_units(&self, terms: &Terms, pricing: &Pricing) -> u128 {
        let whole = self.packed(terms).saturating_mul(100) >= self.size.saturating_mul(98);
        match whole {
            true => self.units.min(pricing.units(self.size)),
            false => self.units,
        }
    }

    fn packed(&self, terms: &Terms) -> u128 {
        let beside = u128::from(terms.block_overhead_bytes).saturating_mul(self.live_blocks);
        self.live_bytes
            .saturating_add(beside)
            .clamp(1, u64::MAX.into())
    }

    fn waste_percent(&self) -> u128 {
        let waste = self.size.saturating_sub(self.live_bytes);
        waste
            .saturating_mul(100)
            .checked_div(self.size)
            .unwrap_or(0)
    }

    fn ways(&self, terms: &Terms, pricing: &Pricing) -> Ways {
        let extend = self.end.filter(|_| self.can_be_managed(terms)).map(|end| {
            let epochs = until(terms).saturating_sub(end);
            let price = pricing.extend(self.units, epochs.into());
            (price, u32::try_from(epochs).unwrap_or(u32::MAX))
        });
        Ways {
            extend,
            store_again: pricing.store(self.units, pricing.span),
        }
    }

    /// FROST that the blob will cost from its end to that of what is bought now, if it is left
    /// alone until it is due: by the cheapest way, in packs that are full.
    fn price_later(&self, terms: &Terms, pricing: &Pricing) -> u128 {
        let epochs = self
            .end
            .map_or(0, |end| until(terms).saturating_sub(end))
            .into();
        let packed = pricing.share_of_full_packs(self.packed(terms));
        let stored = pricing.store(packed.min(self.units), epochs);
        match self.can_be_managed(terms) {
            true => stored.min(pricing.extend(self.units, epochs)),
            false => stored,
        }
    }

    fn candidate(&self, terms: &Terms, pricing: &Pricing) -> Candidate {
        let otherwise = if self.gives_back(terms) {
            let units = self.shed_units(terms, pricing);
            (pricing.extend(units, pricing.compared), 0)
        } else if self.due {
            let ways = self.ways(terms, pricing);
            let stored = (ways.store_again, 2 * self.size);
            let extended = ways.extend.map(|(price, _)| (price, 0));
            let (price, bytes) = extended.map_or(stored, |extended| extended.min(stored));
            (pricing.compared(price), bytes)
        } else {
            (pricing.compared(self.price_later(terms, pricing)), 0)
        };
        let packed = self.packed(terms);
        Candidate {
            due: self.due,
            reuses: self.gives_back(terms),
            // Prices beyond that are nonsense; with them bounded, sums do not overflow.
            otherwise: (otherwise.0.min(u64::MAX.into()), otherwise.1),
            packed,
            moved: self.live_bytes + packed,
        }
    }

    fn decision(&self, action: Action, reason: String) -> Decision {
        Decision {
            blob_id: self.blob.blob_id.clone(),
            object_id: self.blob.object_id.clone(),
            format: self.blob.format.clone(),
            end_epoch: self.blob.end_epoch.max(0),
            due: self.due,
            action,
            epochs: 0,
            read_bytes: 0,
            write_bytes: 0,
            units: 0,
            frost: 0,
            pack: None,
            deferred: false,
            reason,
        }
    }

    /// The decision about a blob without a live block, if there is anything to decide.
    fn dead(&self, terms: &Terms) -> Option<Decision> {
        let may_be_deleted = self.blob.deletable && self.can_be_managed(terms);
        if may_be_deleted && !self.blob.held {
            let reason = "no live block, and it is deletable: its storage can be reused";
            return Some(self.decision(Action::Delete, reason.to_owned()));
        }
        let why_not = match (self.over, self.blob.held && may_be_deleted) {
            (true, _) => ": its storage has ended",
            (_, true) => ": not deleted yet, as deleted blocks may be brought back",
            _ => "",
        };
        let lapses = || self.decision(Action::Lapse, format!("no live block{why_not}"));
        self.due.then(lapses)
    }

    /// The decision about a blob that is due and not repacked. `packed`: what it would cost to
    /// repack it at the price of full packs.
    fn kept(&self, terms: &Terms, pricing: &Pricing) -> Decision {
        let ways = self.ways(terms, pricing);
        let store_again = (ways.store_again, 2 * self.size);
        let packed = pricing.share_of_full_packs(self.packed(terms));
        let packed = pricing.store(packed, pricing.span);
        let extend = ways.extend.filter(|(price, _)| (*price, 0) <= store_again);
        if let Some((price, epochs)) = extend {
            let reason = format!(
                "extending costs {}, storing again {}, repacking at least {} FROST",
                cap(price),
                cap(ways.store_again),
                cap(packed)
            );
            return Decision {
                epochs,
                units: cap(self.units),
                frost: cap(price),
                ..self.decision(Action::Extend, reason)
            };
        }
        let why = match () {
            () if self.over => {
                "its storage has ended by the epochs seen, and it is read as long as it can be; "
            }
            () if self.end.is_none() => "its end is not known; ",
            () if ways.extend.is_some() => "",
            () if !terms.chain => "no chain at hand to extend it; ",
            () => "its object is not known, so it cannot be extended; ",
        };
        let reason = format!(
            "{why}storing again costs {}, repacking at least {} FROST",
            cap(ways.store_again),
            cap(packed)
        );
        Decision {
            epochs: terms.bought(),
            read_bytes: cap(self.size),
            write_bytes: cap(self.size),
            units: cap(self.units),
            frost: cap(ways.store_again),
            ..self.decision(Action::StoreAgain, reason)
        }
    }
}

/// The exclusive end epoch of all that is bought.
fn until(terms: &Terms) -> u64 {
    terms.epoch.saturating_add(terms.bought().into())
}

/// The extension of a blob that is due, if its owner can extend it.
pub(crate) fn extension(blob: &Blob, terms: &Terms) -> Option<Decision> {
    let pricing = Pricing::new(terms);
    let item = Item::new(blob, terms, &pricing);
    let decision = item.due.then(|| item.kept(terms, &pricing))?;
    (decision.action == Action::Extend).then_some(decision)
}

/// Plans what becomes of blobs; see the module. Several rows of one blob count once, the live one
/// first.
///
/// ```
/// use walrusds::plan::{plan, Action, Blob, Terms};
/// use walrusds::walrus::cost::Prices;
///
/// let terms = Terms {
///     epoch: 30,
///     lead_epochs: 1,
///     epochs: 26,
///     max_epochs: 53,
///     prices: Prices { storage: 100_000, write: 20_000 },
///     n_shards: 1000,
///     chain: true,
///     reuse: None,
///     max_waste_percent: 50,
///     pack_target_bytes: 64 << 20,
///     block_overhead_bytes: 80,
///     budget_bytes: None,
/// };
/// let full = Blob {
///     blob_id: "full".to_owned(),
///     object_id: Some("0x1".to_owned()),
///     size: 64 << 20,
///     end_epoch: 31,
///     live_blocks: 256,
///     live_bytes: 64 << 20,
///     ..Blob::default()
/// };
/// let plan = plan(&[full], &terms);
/// assert_eq!(plan.decisions[0].action, Action::Extend);
/// // 350 units for 25 epochs more.
/// assert_eq!(plan.totals.all.frost, 350 * 25 * 100_000);
/// ```
pub fn plan(blobs: &[Blob], terms: &Terms) -> Plan {
    let pricing = Pricing::new(terms);
    let mut items: Vec<Item<'_>> = blobs
        .iter()
        .map(|b| Item::new(b, terms, &pricing))
        .collect();
    // The same blob twice: the row with more live blocks counts.
    items.sort_by(|a, b| {
        let id = a.blob.blob_id.cmp(&b.blob.blob_id);
        id.then_with(|| a.preference().cmp(&b.preference()))
    });
    items.dedup_by(|a, b| a.blob.blob_id == b.blob.blob_id);
    // What has ended holds up nothing that can still be saved; then the earliest end.
    items.sort_by_cached_key(|item| (item.over, item.end, place(&item.blob.blob_id)));

    let max_waste = u128::from(terms.max_waste_percent);
    let mut totals = Totals::default();
    let mut extended = Some(0u128);
    let mut stored_again = 0u128;
    let mut decided: Vec<Option<Decision>> = Vec::with_capacity(items.len());
    let mut candidates = Vec::new();
    for (i, item) in items.iter().enumerate() {
        decided.push(None);
        if !item.is_live() {
            decided[i] = item.dead(terms);
            continue;
        }
        let ends_before = item.end.is_none_or(|end| end < until(terms));
        let wastes = match item.gives_back(terms) {
            true => item.is_sparse(terms, &pricing),
            false => ends_before && item.size > 0 && item.waste_percent() >= max_waste,
        };
        if item.due || wastes {
            candidates.push((i, item.candidate(terms, &pricing)));
        }
        if item.due {
            let ways = item.ways(terms, &pricing);
            stored_again = stored_again.saturating_add(ways.store_again);
            extended = extended
                .zip(ways.extend)
                .map(|(sum, (price, _))| sum.saturating_add(price));
        }
    }
    let (places, candidates): (Vec<usize>, Vec<Candidate>) = candidates.into_iter().unzip();
    let room = u128::from(terms.reuse.unwrap_or(0)).saturating_mul(pricing.target);
    let repacked = choose(&candidates, room, &pricing);
    let chosen = || places.iter().zip(&candidates).zip(&repacked);
    let packed: u128 = chosen()
        .filter(|(_, yes)| **yes)
        .map(|((_, c), _)| c.packed)
        .sum();
    let packs = pricing.packs(packed);
    let together = repacked.iter().filter(|yes| **yes).count();
    let mut before = 0u128;
    for ((i, candidate), repack) in chosen() {
        let item = &items[*i];
        if !repack {
            decided[*i] = item.due.then(|| item.kept(terms, &pricing));
            continue;
        }
        // Its share of the packs' units, so that the shares add up to them.
        let share = |bytes: u128| packs.saturating_mul(bytes) / packed.max(1);
        let after = before + candidate.packed;
        let units = share(after) - share(before);
        let reason = repack_reason(item, candidate, together, item.gives_back(terms));
        let epochs = match item.gives_back(terms) {
            true => pricing.compared,
            false => pricing.span,
        };
        decided[*i] = Some(Decision {
            epochs: u32::try_from(epochs).unwrap_or(u32::MAX),
            read_bytes: cap(item.live_bytes),
            write_bytes: cap(candidate.packed),
            units: cap(units),
            frost: cap(pricing.store(units, epochs)),
            pack: Some(cap(before / pricing.target)),
            ..item.decision(Action::Repack, reason)
        });
        before = after;
    }
    let mut decisions: Vec<Decision> = decided.into_iter().flatten().collect();
    if let Some(budget) = terms.budget_bytes {
        defer(&mut decisions, budget);
    }
    for decision in &decisions {
        totals.all.add(decision);
        totals.of(decision.action).add(decision);
        if decision.deferred {
            totals.deferred.add(decision);
        }
    }
    totals.all_stored_again_frost = cap(stored_again);
    totals.all_extended_frost = extended.map(cap);
    Plan {
        epoch: terms.epoch,
        until_epoch: until(terms),
        decisions,
        totals,
    }
}

impl Item<'_> {
    /// Of two rows of one blob, the one with the least of this counts.
    fn preference(&self) -> impl Ord {
        let more_live = std::cmp::Reverse((self.live_blocks, self.live_bytes));
        (
            more_live,
            self.end,
            self.blob.object_id.is_none(),
            self.size,
        )
    }
}

impl Totals {
    fn of(&mut self, action: Action) -> &mut Sum {
        match action {
            Action::Lapse => &mut self.lapse,
            Action::Delete => &mut self.delete,
            Action::Extend => &mut self.extend,
            Action::StoreAgain => &mut self.store_again,
            Action::Repack => &mut self.repack,
        }
    }
}

fn repack_reason(
    item: &Item<'_>,
    candidate: &Candidate,
    together: usize,
    gives_back: bool,
) -> String {
    let with = match together {
        0 | 1 => "alone in a pack".to_owned(),
        2 => "with 1 other blob".to_owned(),
        n => format!("with {} other blobs", n - 1),
    };
    let waste = item.waste_percent();
    let otherwise = cap(candidate.otherwise.0);
    if gives_back {
        return format!(
            "{waste} % waste; its storage is used again, and costs {otherwise} FROST for an epoch; {with}"
        );
    }
    match item.due {
        true => format!("{waste} % waste; otherwise {otherwise} FROST; {with}"),
        false => format!(
            "{waste} % waste; not due, but fills a pack up that is paid for anyway, and would cost {otherwise} FROST \
             later; {with}"
        ),
    }
}

/// Leaves what moves bytes beyond the budget to a later pass, the least urgent first. Blobs of one
/// pack go together.
fn defer(decisions: &mut [Decision], budget: u64) {
    let mut of_pack = std::collections::HashMap::<u64, u64>::new();
    let moved = |d: &Decision| d.read_bytes.saturating_add(d.write_bytes);
    for decision in decisions.iter() {
        if let Some(pack) = decision.pack {
            let sum = of_pack.entry(pack).or_default();
            *sum = sum.saturating_add(moved(decision));
        }
    }
    let (mut sum, mut full) = (0u64, false);
    let mut deferred_packs = std::collections::HashSet::new();
    for decision in decisions {
        let bytes = match decision.pack {
            // Zero for the later blobs of a pack.
            Some(pack) if deferred_packs.contains(&pack) => {
                decision.deferred = true;
                continue;
            }
            Some(pack) => of_pack.insert(pack, 0).unwrap_or(0),
            None => moved(decision),
        };
        if bytes == 0 {
            continue;
        }
        let after = sum.saturating_add(bytes);
        full |= sum > 0 && after > budget;
        if full {
            decision.deferred = true;
            deferred_packs.extend(decision.pack);
        } else {
            sum = after;
        }
    }
}
