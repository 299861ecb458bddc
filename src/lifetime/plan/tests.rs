use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::walrus::cost;

const MIB: u64 = 1 << 20;
const FULL: i64 = 64 << 20;

/// Mainnet, a year at a time, at the sample prices.
fn terms() -> Terms {
    Terms {
        epoch: 100,
        lead_epochs: 1,
        epochs: 26,
        max_epochs: 53,
        prices: Prices {
            storage: 100_000,
            write: 20_000,
        },
        n_shards: 1000,
        chain: true,
        reuse: None,
        max_waste_percent: 50,
        pack_target_bytes: 64 * MIB,
        block_overhead_bytes: 0,
        budget_bytes: None,
    }
}

/// A blob of 64 MiB that ends at `end_epoch`, of which so many bytes are live.
fn blob(id: &str, end_epoch: i64, live_bytes: i64) -> Blob {
    Blob {
        blob_id: id.to_owned(),
        object_id: Some(format!("0x{id}")),
        format: "car".to_owned(),
        size: FULL,
        encoded_size: Some(366_334_000),
        end_epoch,
        live_blocks: (live_bytes + 262_143) / 262_144,
        live_bytes,
        ..Blob::default()
    }
}

fn only(plan: &Plan) -> &Decision {
    assert_eq!(plan.decisions.len(), 1, "{plan}");
    &plan.decisions[0]
}

#[test]
fn a_full_blob_is_extended_or_stored_again() {
    let full = blob("a", 101, FULL);
    let planned = plan(std::slice::from_ref(&full), &terms());
    let decision = only(&planned);
    assert_eq!((decision.action, decision.epochs), (Action::Extend, 25));
    assert_eq!(decision.frost, 350 * 25 * 100_000);
    assert_eq!((decision.read_bytes, decision.write_bytes), (0, 0));
    assert_eq!(planned.until_epoch, 126);

    let without_object = Blob {
        object_id: None,
        ..full.clone()
    };
    let no_chain = Terms {
        chain: false,
        ..terms()
    };
    for (blob, terms) in [(&full, &no_chain), (&without_object, &terms())] {
        let planned = plan(std::slice::from_ref(blob), terms);
        let decision = only(&planned);
        assert_eq!((decision.action, decision.epochs), (Action::StoreAgain, 26));
        assert_eq!(decision.frost, 350 * (26 * 100_000 + 20_000));
        assert_eq!(decision.read_bytes, 64 * MIB);
        assert_eq!(
            planned.totals.all.frost,
            planned.totals.all_stored_again_frost
        );
    }
    assert!(plan(&[blob("a", 102, FULL)], &terms()).decisions.is_empty());
}

/// The break-even: extending saves an epoch and the write, repacking the waste.
#[test]
fn a_sparse_blob_is_repacked_when_that_is_cheaper() {
    for (live_percent, action) in [
        (97, Action::Extend),
        (90, Action::Repack),
        (50, Action::Repack),
        (1, Action::Repack),
    ] {
        let planned = plan(&[blob("a", 101, FULL / 100 * live_percent)], &terms());
        assert_eq!(only(&planned).action, action, "{live_percent} %\n{planned}");
    }
    // Alone, it pays for a pack of its own.
    let live = FULL / 20;
    let alone = plan(&[blob("a", 101, live)], &terms());
    let units = cost::units(live as u64, 1000).unwrap();
    assert_eq!(only(&alone).units, units);
    // Twenty fill a pack.
    let ids: Vec<String> = (0..20).map(|n| format!("blob{n}")).collect();
    let blobs: Vec<Blob> = ids.iter().map(|id| blob(id, 101, live)).collect();
    let together = plan(&blobs, &terms());
    assert_eq!(together.totals.repack.blobs, 20);
    assert_eq!(together.totals.repack.units, 350);
    assert!(together.totals.repack.frost < 5 * only(&alone).frost);
    assert!(together.decisions.iter().all(|d| d.pack == Some(0)));
    // What else there is in a pack counts.
    let terms = Terms {
        block_overhead_bytes: 1 << 20,
        ..terms()
    };
    assert!(plan(&blobs, &terms).totals.repack.units > 2 * 350);
}

/// One such blob alone is stored again for the same price, and many of them share packs.
#[test]
fn small_full_blobs_are_packed_together() {
    let small = |n: i64| Blob {
        blob_id: format!("small{n}"),
        size: 256 << 10,
        end_epoch: 101,
        live_blocks: 1,
        live_bytes: 256 << 10,
        ..Blob::default()
    };
    let alone = plan(&[small(0)], &terms());
    assert_eq!(only(&alone).action, Action::StoreAgain, "the same price");
    let blobs: Vec<Blob> = (0..512).map(small).collect();
    let planned = plan(&blobs, &terms());
    assert_eq!(planned.totals.repack.blobs, 512);
    assert_eq!(planned.totals.repack.units, 2 * 350);
    assert!(planned.totals.all.frost * 40 < planned.totals.all_stored_again_frost);
    let packs: BTreeSet<Option<u64>> = planned.decisions.iter().map(|d| d.pack).collect();
    assert_eq!(packs, BTreeSet::from([Some(0), Some(1)]));
}

#[test]
fn a_dead_blob_lapses_or_is_deleted() {
    let dead = blob("a", 101, 0);
    let deletable = Blob {
        deletable: true,
        ..dead.clone()
    };
    let with = |blob: &Blob, terms: &Terms| {
        let planned = plan(std::slice::from_ref(blob), terms);
        assert_eq!(planned.totals.all.frost, 0);
        planned.decisions.first().map(|d| d.action)
    };
    let no_chain = Terms {
        chain: false,
        ..terms()
    };
    assert_eq!(with(&dead, &terms()), Some(Action::Lapse));
    assert_eq!(with(&deletable, &terms()), Some(Action::Delete));
    assert_eq!(with(&deletable, &no_chain), Some(Action::Lapse));
    let held = Blob {
        held: true,
        ..deletable.clone()
    };
    assert_eq!(with(&held, &terms()), Some(Action::Lapse));
    let nameless = Blob {
        object_id: None,
        ..deletable.clone()
    };
    assert_eq!(with(&nameless, &terms()), Some(Action::Lapse));
    // Long before its end: there is nothing to do, but its storage can be given back.
    let later = |blob: &Blob| Blob {
        end_epoch: 120,
        ..blob.clone()
    };
    assert_eq!(with(&later(&dead), &terms()), None);
    assert_eq!(with(&later(&held), &terms()), None);
    assert_eq!(with(&later(&deletable), &terms()), Some(Action::Delete));
}

/// A blob that has ended may still be read somewhere, but waits for those that can be saved.
#[test]
fn the_most_urgent_comes_first_and_what_has_ended_last() {
    let no_chain = Terms {
        chain: false,
        lead_epochs: 5,
        ..terms()
    };
    let blobs = [
        blob("ended", 90, FULL),
        blob("late", 104, FULL),
        blob("unknown", 0, FULL),
        blob("soon", 101, FULL),
    ];
    let planned = plan(&blobs, &no_chain);
    let order: Vec<&str> = planned.decisions.iter().map(|d| &*d.blob_id).collect();
    assert_eq!(order, ["unknown", "soon", "late", "ended"]);
    assert!(planned
        .decisions
        .iter()
        .all(|d| d.action == Action::StoreAgain));
    // What has ended cannot be extended, nor what may have.
    let planned = plan(
        &blobs,
        &Terms {
            chain: true,
            ..no_chain
        },
    );
    let extended = |d: &&Decision| d.action == Action::Extend;
    let extended: Vec<&str> = planned
        .decisions
        .iter()
        .filter(extended)
        .map(|d| &*d.blob_id)
        .collect();
    assert_eq!(extended, ["soon", "late"]);
    assert_eq!(planned.totals.all_extended_frost, None);
}

/// A lead that is longer than what is bought would make each blob due for ever.
#[test]
fn nothing_is_due_that_would_not_gain() {
    let long_lead = Terms {
        lead_epochs: 10,
        epochs: 1,
        ..terms()
    };
    let planned = plan(&[blob("a", 101, FULL), blob("b", 102, FULL)], &long_lead);
    let decision = only(&planned);
    assert_eq!(decision.blob_id, "a");
    assert_eq!(
        decision.epochs, 1,
        "two epochs from now on are bought at least"
    );
    assert_eq!(planned.until_epoch, 102);
    // The network sells no more than that.
    let greedy = Terms {
        epochs: 60,
        ..terms()
    };
    assert_eq!(only(&plan(&[blob("a", 101, FULL)], &greedy)).epochs, 52);
}

/// Storage that is paid until the end is not bought twice, unless the bytes fill a pack up.
#[test]
fn a_wasteful_blob_waits_until_it_is_due_or_fills_a_pack_up() {
    let wasteful = |end| blob("wasteful", end, FULL / 8);
    for end in [102, 104, 110, 125, 126, 140] {
        let planned = plan(&[wasteful(end)], &terms());
        assert!(planned.decisions.is_empty(), "{end}\n{planned}");
    }
    let due = || blob("due", 101, FULL / 8);
    for (end, taken) in [
        (102, true),
        (104, true),
        (112, false),
        (125, false),
        (126, false),
    ] {
        let planned = plan(&[due(), wasteful(end)], &terms());
        let names: Vec<&str> = planned.decisions.iter().map(|d| &*d.blob_id).collect();
        match taken {
            true => assert_eq!(names, ["due", "wasteful"], "{end}"),
            false => assert_eq!(names, ["due"], "{end}"),
        }
    }
    // Not wasteful enough.
    let strict = Terms {
        max_waste_percent: 90,
        ..terms()
    };
    assert_eq!(plan(&[due(), wasteful(102)], &strict).decisions.len(), 1);
}

#[test]
fn a_pass_moves_no_more_than_its_budget_but_one_blob_at_least() {
    let blobs: Vec<Blob> = (0..10)
        .map(|n| blob(&format!("b{n}"), 101 + n, FULL))
        .collect();
    let with_budget = |budget_bytes| {
        let terms = Terms {
            chain: false,
            lead_epochs: 20,
            budget_bytes: Some(budget_bytes),
            ..terms()
        };
        let planned = plan(&blobs, &terms);
        let now: Vec<i64> = planned
            .decisions
            .iter()
            .filter(|d| !d.deferred)
            .map(|d| d.end_epoch)
            .collect();
        assert_eq!(planned.totals.deferred.blobs, 10 - now.len() as u64);
        now
    };
    assert_eq!(with_budget(0), [101]);
    assert_eq!(with_budget(3 * 128 * MIB), [101, 102, 103]);
    assert_eq!(with_budget(u64::MAX).len(), 10);
    // What moves no byte is never left to later.
    let extending = Terms {
        lead_epochs: 20,
        budget_bytes: Some(0),
        ..terms()
    };
    assert_eq!(plan(&blobs, &extending).totals.deferred.blobs, 0);
    // Blobs of one pack go together.
    let sparse: Vec<Blob> = (0..64)
        .map(|n| blob(&format!("s{n}"), 101, FULL / 16))
        .collect();
    let terms = Terms {
        budget_bytes: Some(130 * MIB),
        ..terms()
    };
    let planned = plan(&sparse, &terms);
    let packs = |deferred| -> BTreeSet<Option<u64>> {
        let of = planned.decisions.iter().filter(|d| d.deferred == deferred);
        of.map(|d| d.pack).collect()
    };
    assert_eq!(packs(false), BTreeSet::from([Some(0)]));
    assert_eq!(packs(true), BTreeSet::from([Some(1), Some(2), Some(3)]));
}

#[test]
fn a_plan_is_read_by_people_and_programs() {
    let terms = Terms {
        budget_bytes: Some(1),
        ..terms()
    };
    let blobs = [
        blob("3GPQL3HZNnFhN_F7l5Aa-X1VOtAKwIsg9zuWk8R81v4", 101, FULL),
        blob("FkCKh85VFLIzZwagyyRJauNUBR3-iJ31hxrUYS5GK80", 101, FULL / 4),
        blob("LANd9j4ECAAOFrz7Qjb-EuMPCDzXy_NQHBEVe60LSSU", 101, 0),
    ];
    let planned = plan(&blobs, &terms);
    let table = planned.to_string();
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for line in [
        "blob              end action               read     write   units          FROST",
        "3GPQL3HZNnF…      101 extend 25               -         -     350      875000000",
        "    extending costs 875000000, storing again 917000000, repacking at least",
        "FkCKh85VFLI…      101 repack 26        16.0 MiB  16.0 MiB     134      351080000",
        "    75 % waste; otherwise 875000000 FROST; alone in a pack",
        "LANd9j4ECAA…      101 lapse                   -         -       0              0",
        "all                 3                  16.0 MiB  16.0 MiB     484     1226080000",
        "every one extended: 1750000000 FROST.",
    ] {
        assert!(table.lines().any(|l| l == line), "{line}\n{table}");
    }
    let json: serde_json::Value = serde_json::from_str(&planned.to_json()).unwrap();
    let of = |i: usize, key: &str| json["decisions"][i][key].to_string();
    let actions: BTreeSet<String> = (0..3).map(|i| of(i, "action")).collect();
    let expected = ["\"extend\"", "\"repack\"", "\"lapse\""].map(str::to_owned);
    assert_eq!(actions, BTreeSet::from(expected));
    assert_eq!(json["totals"]["all"]["frost"].to_string(), "1226080000");
    let nothing = plan(&[], &terms).to_string();
    assert!(nothing.contains("(no blob is due)"));
}

#[test]
fn blobs_fall_due_evenly_and_early_enough() {
    const DAY: Duration = Duration::from_secs(86_400);
    let lead = 14 * DAY;
    let ends = SystemTime::UNIX_EPOCH + 20_000 * DAY;
    let mut hours = BTreeMap::<u64, u32>::new();
    for n in 0..20_000 {
        let id = format!("blob {n}");
        let at = spread(&id, ends, lead);
        assert_eq!(at, spread(&id, ends, lead));
        let into = at.duration_since(ends - lead).unwrap();
        assert!(into < lead - lead / 4);
        *hours.entry(into.as_secs() / 3600).or_default() += 1;
    }
    // 252 hours, of 79 blobs on average.
    assert_eq!(hours.len(), 252);
    assert!(
        hours.values().all(|n| *n < 140),
        "{:?}",
        hours.values().max()
    );
    for lead in [Duration::ZERO, Duration::MAX] {
        assert!(spread("a", SystemTime::UNIX_EPOCH, lead) <= SystemTime::UNIX_EPOCH);
    }
}

/// Sizes as they are, at the edges, and nonsense.
fn number(most: i64) -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..=most, 1 => Just(0), 1 => any::<i64>()]
}

fn blobs(most: usize) -> impl Strategy<Value = Vec<Blob>> {
    let one = (
        prop_oneof![3 => Just(FULL), 1 => 1i64..100_000, 1 => number(200 << 20)],
        0u32..=100,
        prop_oneof![6 => 98i64..115, 1 => number(130)],
        prop::option::weighted(0.2, any::<u64>()),
        any::<[bool; 4]>(),
        prop::option::weighted(0.1, (any::<i64>(), any::<i64>())),
    );
    prop::collection::vec(one, 0..most).prop_map(|all| {
        let of = |(n, (size, live, end_epoch, encoded, flags, nonsense)): (usize, _)| {
            let [object, deletable, held, dead]: [bool; 4] = flags;
            let (size, live): (i64, u32) = (size, live);
            let live_bytes = match dead {
                true => 0,
                false => (i128::from(size) * i128::from(live) / 100) as i64,
            };
            let live_blocks = (live_bytes.max(0) as u64).div_ceil(262_144) as i64;
            let (live_blocks, live_bytes): (i64, i64) =
                Option::unwrap_or(nonsense, (live_blocks, live_bytes));
            let encoded_size: Option<u64> = encoded;
            Blob {
                blob_id: format!("blob {n}"),
                object_id: object.then(|| format!("0x{n}")),
                format: "car".to_owned(),
                size,
                encoded_size,
                deletable,
                end_epoch,
                live_blocks,
                live_bytes,
                held,
            }
        };
        all.into_iter().enumerate().map(of).collect()
    })
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let price = || prop_oneof![4 => 0u64..1_000_000, 1 => any::<u64>()];
    (
        (prop_oneof![8 => Just(100u64), 1 => any::<u64>()], 0u64..12),
        (0u32..70, prop_oneof![4 => Just(53u32), 1 => any::<u32>()]),
        (price(), price()),
        prop_oneof![4 => Just(1000u16), 1 => any::<u16>()],
        (
            any::<bool>(),
            prop::option::of(prop_oneof![0u64..4, any::<u64>()]),
        ),
        (
            0u32..120,
            prop_oneof![4 => MIB..100 * MIB, 1 => any::<u64>()],
        ),
        prop_oneof![4 => 0u64..100, 1 => any::<u64>()],
        prop::option::of(prop_oneof![4 => 0u64..1 << 30, 1 => any::<u64>()]),
    )
        .prop_map(
            |(
                (epoch, lead_epochs),
                (epochs, max_epochs),
                (storage, write),
                n_shards,
                (chain, reuse),
                (max_waste_percent, pack_target_bytes),
                block_overhead_bytes,
                budget_bytes,
            )| {
                Terms {
                    epoch,
                    lead_epochs,
                    epochs,
                    max_epochs,
                    prices: Prices { storage, write },
                    n_shards,
                    chain,
                    reuse,
                    max_waste_percent,
                    pack_target_bytes,
                    block_overhead_bytes,
                    budget_bytes,
                }
            },
        )
}

fn is_live(blob: &Blob) -> bool {
    blob.live_blocks != 0 || blob.live_bytes > 0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the numbers are: no live blob is given up, each that is due is decided once, and
    /// the plan is the same on every node.
    #[test]
    fn every_live_blob_is_kept(blobs in blobs(40), terms in any_terms(), rotate in any::<usize>()) {
        let planned = plan(&blobs, &terms);
        let until = planned.until_epoch;
        let mut decided = BTreeMap::new();
        for decision in &planned.decisions {
            prop_assert!(decided.insert(decision.blob_id.clone(), decision).is_none());
        }
        for blob in &blobs {
            let end = u64::try_from(blob.end_epoch).unwrap_or(0);
            let soon = terms.epoch.saturating_add(terms.lead_epochs);
            let due = end == 0 || (end <= soon && end < until);
            let decision = decided.get(&blob.blob_id);
            match decision {
                Some(decision) => prop_assert_eq!(decision.due, due),
                None => prop_assert!(!due),
            }
            let Some(decision) = decision else { continue };
            let kept = matches!(decision.action, Action::Extend | Action::StoreAgain | Action::Repack);
            prop_assert_eq!(kept, is_live(blob));
            match decision.action {
                Action::Extend => {
                    prop_assert!(terms.chain && blob.object_id.is_some() && end > terms.epoch);
                    prop_assert_eq!(end + u64::from(decision.epochs), until);
                }
                Action::Delete => prop_assert!(blob.deletable && !blob.held && terms.chain),
                Action::StoreAgain => prop_assert!(due),
                Action::Repack => prop_assert!(
                    due || end < until && !terms.max_waste_percent.gt(&100)
                        || terms.reuse.is_some() && blob.deletable && !blob.held
                ),
                Action::Lapse => prop_assert!(due && decision.frost == 0),
            }
        }
        let mut other = blobs.clone();
        other.rotate_left(rotate % blobs.len().max(1));
        other.extend(blobs.first().cloned());
        prop_assert_eq!(&plan(&other, &terms), &planned, "in another order, one twice");
        for line in planned.to_string().lines() {
            prop_assert!(line.chars().count() <= 80, "{}", line);
        }
        let json: serde_json::Value = serde_json::from_str(&planned.to_json()).unwrap();
        prop_assert_eq!(json["decisions"].as_array().unwrap().len(), planned.decisions.len());
    }

    /// The sum is never above that of the simple ways, and the sums are those of the decisions.
    #[test]
    fn no_simple_way_is_cheaper(blobs in blobs(40), terms in any_terms()) {
        let terms = Terms { max_waste_percent: 101, reuse: None, ..terms };
        let planned = plan(&blobs, &terms);
        let totals = &planned.totals;
        prop_assert!(totals.all.frost <= totals.all_stored_again_frost);
        prop_assert!(totals.all_extended_frost.is_none_or(|frost| totals.all.frost <= frost));
        let sum = |of: fn(&Decision) -> u64| {
            planned.decisions.iter().fold(0u64, |sum, d| sum.saturating_add(of(d)))
        };
        prop_assert_eq!(totals.all.frost, sum(|d| d.frost));
        prop_assert_eq!(totals.all.units, sum(|d| d.units));
        prop_assert_eq!(totals.all.read_bytes, sum(|d| d.read_bytes));
        prop_assert_eq!(totals.deferred.blobs, sum(|d| d.deferred.into()));
        // The budget.
        let moved = |d: &Decision| d.read_bytes.saturating_add(d.write_bytes);
        let now = planned.decisions.iter().filter(|d| !d.deferred && moved(d) > 0);
        let (mut bytes, mut ways) = (0u64, BTreeSet::new());
        for decision in now {
            bytes = bytes.saturating_add(moved(decision));
            ways.insert((decision.pack, decision.pack.is_none().then_some(&decision.blob_id)));
        }
        prop_assert!(terms.budget_bytes.is_none_or(|most| bytes <= most || ways.len() <= 1));
    }

    /// What is taken along before it is due costs no more than it would cost later.
    #[test]
    fn what_is_taken_along_pays(blobs in blobs(40), terms in any_terms()) {
        let Prices { storage, write } = terms.prices;
        let prices = Prices { storage: storage % (1 << 20), write: write % (1 << 20) };
        let terms = Terms { epoch: 100, max_epochs: 53, reuse: None, n_shards: 1000, prices, ..terms };
        let alone = plan(&blobs, &Terms { max_waste_percent: 101, ..terms.clone() });
        let along = plan(&blobs, &Terms { max_waste_percent: 0, ..terms.clone() });
        let mut later = 0u128;
        for decision in along.decisions.iter().filter(|d| !d.due && d.action == Action::Repack) {
            let blob = blobs.iter().find(|b| b.blob_id == decision.blob_id).unwrap();
            let more = u128::from(along.until_epoch - blob.end_epoch as u64);
            let target = terms.pack_target_bytes.clamp(1, cost::max_blob_size(1000));
            let packed = u128::from(decision.write_bytes) * u128::from(cost::units(target, 1000).unwrap());
            let packed = packed.div_ceil(target.into());
            later += packed * (u128::from(prices.storage) * more + u128::from(prices.write));
        }
        let (alone, along) = (alone.totals.all.frost, along.totals.all.frost);
        prop_assert!(u128::from(along) <= u128::from(alone) + later, "{along} {alone} {later}");
    }

    /// Against all ways there are, priced by another program: at most 5 % above the best.
    #[test]
    fn hardly_any_plan_is_cheaper(
        lives in prop::collection::vec((1i64..=20, 101i64..104, any::<bool>()), 1..7),
        chain in any::<bool>(),
        epochs in 4u32..40,
        target in prop_oneof![Just(64 * MIB), Just(10 * MIB)],
    ) {
        let terms = Terms { chain, epochs, lead_epochs: 3, pack_target_bytes: target, ..terms() };
        let blobs: Vec<Blob> = lives.iter().enumerate().map(|(n, (live, end, object))| {
            let mut blob = blob(&format!("b{n}"), *end, FULL / 20 * live);
            blob.object_id = blob.object_id.filter(|_| *object);
            blob
        }).collect();
        let Prices { storage, write } = terms.prices;
        let stored = |units: u64| units * (storage * u64::from(epochs) + write);
        let mut best = u64::MAX;
        for repacked in 0u32..1 << blobs.len() {
            let (mut frost, mut bytes) = (0, 0);
            for (n, blob) in blobs.iter().enumerate() {
                if repacked >> n & 1 == 1 {
                    bytes += blob.live_bytes as u64;
                    continue;
                }
                let more = terms.epoch + u64::from(epochs) - blob.end_epoch as u64;
                let extended = 350 * storage * more;
                let can = chain && blob.object_id.is_some();
                frost += if can { extended.min(stored(350)) } else { stored(350) };
            }
            let units = |len| cost::units(len, 1000).unwrap();
            let rest = if bytes % target == 0 { 0 } else { units(bytes % target) };
            best = best.min(frost + stored(bytes / target * units(target) + rest));
        }
        let planned = plan(&blobs, &terms).totals.all.frost;
        prop_assert!(planned >= best, "{planned} {best}");
        prop_assert!(planned <= best + best / 20, "{planned} {best}");
    }
}

fn reusing() -> Terms {
    Terms {
        reuse: Some(u64::MAX),
        ..terms()
    }
}

fn deletable(id: &str, end_epoch: i64, live_bytes: i64) -> Blob {
    Blob {
        deletable: true,
        ..blob(id, end_epoch, live_bytes)
    }
}

#[test]
fn where_storage_is_used_again_sparse_blobs_are_emptied_early() {
    // Five blobs that end late, of which 4/5 are live, fill four packs.
    let five = |live: i64| -> Vec<Blob> {
        let ids = ["a", "b", "c", "d", "e"];
        ids.map(|id| deletable(id, 120, live)).to_vec()
    };
    let blobs = five(FULL / 5 * 4);
    let planned = plan(&blobs, &reusing());
    assert_eq!(planned.totals.repack.blobs, 5, "{planned}");
    // Four packs for the fee of the write and an epoch, instead of five for an epoch.
    assert_eq!(planned.totals.repack.units, 4 * 350);
    assert_eq!(planned.totals.repack.frost, 4 * 350 * 120_000);
    assert!(planned.decisions.iter().all(|d| d.epochs == 1 && !d.due));
    assert!(plan(&blobs, &terms()).decisions.is_empty());

    // No more than there is room for: two packs, of which two blobs fill one.
    let room = |packs| Terms {
        reuse: Some(packs),
        ..terms()
    };
    let blobs = five(FULL / 2);
    assert_eq!(plan(&blobs, &room(2)).totals.repack.blobs, 4);
    assert!(plan(&blobs, &room(0)).decisions.is_empty());

    // A tenth is not worth a write yet, and more is not worth a pack that is not full.
    assert!(plan(&five(FULL / 10 * 9), &reusing()).decisions.is_empty());
    let lone = deletable("a", 120, FULL / 20 * 17);
    assert!(plan(&[lone], &reusing()).decisions.is_empty());
}

#[test]
fn a_whole_blob_in_storage_that_is_too_large_stays() {
    let whole = Blob {
        size: FULL / 2,
        ..deletable("whole", 120, FULL / 2)
    };
    assert!(plan(&[whole], &reusing()).decisions.is_empty());
}

#[test]
fn only_storage_that_comes_back_soon_is_used_again() {
    let sparse = |n: i64| deletable(&format!("b{n}"), 120, FULL / 2);
    let all: Vec<Blob> = (0..4).map(sparse).collect();
    assert_eq!(plan(&all, &reusing()).totals.repack.blobs, 4);
    let spoilt: [fn(&mut Blob); 3] = [
        |blob| blob.deletable = false,
        |blob| blob.object_id = None,
        |blob| blob.held = true,
    ];
    for spoil in spoilt {
        let mut blobs = all.clone();
        blobs.iter_mut().for_each(spoil);
        // At most what is repacked where nothing is used again.
        let planned = plan(&blobs, &reusing());
        assert!(planned.decisions.is_empty(), "{planned}");
    }
    // A blob that is due and full is extended all the same.
    let planned = plan(&[deletable("full", 101, FULL)], &reusing());
    assert_eq!(only(&planned).action, Action::Extend);
    // One that is due and permanent is repacked as ever: it pays from a fifth of waste on.
    let permanent: Vec<Blob> = (0..4)
        .map(|n| blob(&format!("p{n}"), 101, FULL / 4 * 3))
        .collect();
    let with = plan(&permanent, &reusing());
    let without = plan(&permanent, &terms());
    assert_eq!(with.totals.repack.blobs, without.totals.repack.blobs);
    assert_eq!(with.totals.all, without.totals.all);
}
