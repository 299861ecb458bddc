//! The figures of the ledger, as they were last read from the index.
//!
//! Reading them costs the index a pass over the ledger, so the tasks of `lifetime` do it at their
//! own pace. A snapshot adds what moves with the time: how many epochs are left.

use std::time::SystemTime;

use crate::clock::EpochClock;
use crate::index::EndingIn;
use crate::measure::Sample;
use crate::sync::Mutex;
use crate::walrus::cost::{Prices, UNIT_BYTES};

/// The last figures.
#[derive(Debug, Default)]
pub(crate) struct LedgerFigures(Mutex<Figures>);

#[derive(Debug, Default, Clone)]
struct Figures {
    ledger: Option<(SystemTime, Vec<EndingIn>)>,
    /// The prices of the last plan, and whether the chain told them.
    prices: Option<(Prices, bool)>,
    /// Blobs, units and FROST of the last plan.
    due: Option<(u64, u64, u64)>,
    round: Option<SystemTime>,
}

/// The moment of a snapshot.
pub(crate) struct Present<'a> {
    pub(crate) now: SystemTime,
    pub(crate) clock: &'a EpochClock,
    /// Prices where no plan was made.
    pub(crate) sample: Prices,
}

impl LedgerFigures {
    /// Takes the sums of the live blobs by end epoch, as read at `now`.
    pub(crate) fn read(&self, now: SystemTime, horizon: Vec<EndingIn>) {
        self.0.lock().ledger = Some((now, horizon));
    }

    /// Notes the prices by which is planned; `told`: by the chain.
    pub(crate) fn prices(&self, prices: Prices, told: bool) {
        self.0.lock().prices = Some((prices, told));
    }

    /// Notes the plan of a round: blobs, units and FROST.
    pub(crate) fn planned(&self, blobs: u64, units: u64, frost: u64) {
        self.0.lock().due = Some((blobs, units, frost));
    }

    /// Notes the end of a round of renewals.
    pub(crate) fn round(&self, now: SystemTime) {
        self.0.lock().round = Some(now);
    }

    pub(crate) fn samples(&self, present: &Present<'_>) -> Vec<Sample> {
        let Figures {
            ledger,
            prices,
            due,
            round,
        } = self.0.lock().clone();
        let mut all = Vec::new();
        let mut add = |name, value: f64| all.push(Sample::number(name, value));
        if let Some(round) = round {
            add("renewal_round_timestamp_seconds", unix(round));
        }
        if let Some((blobs, units, frost)) = due {
            add("renewal_due_blobs", blobs as f64);
            add("renewal_due_units", units as f64);
            add("renewal_due_frost", frost as f64);
        }
        if let Some((read, horizon)) = ledger {
            add("ledger_read_timestamp_seconds", unix(read));
            all.extend(of_horizon(&horizon, prices, present));
        }
        all
    }
}

fn of_horizon(
    horizon: &[EndingIn],
    prices: Option<(Prices, bool)>,
    present: &Present<'_>,
) -> Vec<Sample> {
    let sum = |of: fn(&EndingIn) -> i64| -> f64 {
        let each = horizon.iter().map(|ending| of(ending).max(0) as f64);
        each.sum()
    };
    let mut all = Vec::new();
    let mut add = |name, value: f64| all.push(Sample::number(name, value));
    let (bytes, live) = (sum(|e| e.bytes), sum(|e| e.live.bytes));
    add("ledger_blobs", sum(|e| e.blobs));
    add("ledger_bytes", bytes);
    add("ledger_encoded_bytes", sum(|e| e.encoded_bytes));
    add("ledger_live_blocks", sum(|e| e.live.blocks));
    add("ledger_live_bytes", live);
    add("ledger_uncounted_blobs", sum(|e| e.uncounted));
    add("ledger_paid_frost", sum(|e| e.cost));
    // Blobs that were not counted would tell of waste where nothing is known.
    let judged = sum(|e| e.judged_bytes);
    if judged > 0.0 {
        add("ledger_waste_ratio", sum(|e| e.waste_bytes) / judged);
    }
    let counted = horizon.iter().filter_map(|ending| ending.counted_at).min();
    if let Some(at) = counted {
        add("ledger_counted_timestamp_seconds", unix(at));
    }
    let units = (sum(|e| e.encoded_bytes) / UNIT_BYTES as f64).ceil();
    add("storage_units", units);
    let over = |end: i64| present.clock.is_over(u64::try_from(end).unwrap_or(0));
    let ended = horizon.iter().filter(|ending| over(ending.end_epoch));
    add("ended_blobs", ended.map(|e| e.blobs.max(0) as f64).sum());
    let next = horizon.iter().map(|ending| ending.end_epoch);
    let next = next.filter(|end| *end > 0 && !over(*end)).min();
    let next = next.and_then(|end| u64::try_from(end).ok());
    if let Some(at) = next.and_then(|end| present.clock.ends_at(present.now, end)) {
        add("next_expiry_timestamp_seconds", unix(at));
    }
    let (prices, told) = prices.unwrap_or((present.sample, false));
    let source = match told {
        true => "chain",
        false => "sample",
    };
    let frost = Sample::number("storage_epoch_frost", units * prices.storage as f64);
    all.push(frost.with("price", source));
    all.extend(buckets(horizon, present));
    all
}

/// The labels of the horizon, in the order of [`bucket`].
const LEFT: [&str; 8] = ["0", "1", "2-3", "4-7", "8-15", "16-31", "32+", "unknown"];

fn buckets(horizon: &[EndingIn], present: &Present<'_>) -> Vec<Sample> {
    let epoch = present.clock.now_epoch(present.now).map(|(least, _)| least);
    let mut blobs = [0.0; LEFT.len()];
    for ending in horizon {
        let end = u64::try_from(ending.end_epoch).unwrap_or(0);
        let left = epoch
            .filter(|_| end > 0)
            .map(|now| end.saturating_sub(now + 1));
        blobs[bucket(left)] += ending.blobs.max(0) as f64;
    }
    let labelled = LEFT.iter().zip(blobs).map(|(left, blobs)| {
        Sample::number("ledger_horizon_blobs", blobs).with("epochs_left", *left)
    });
    labelled.collect()
}

/// The place in [`LEFT`] of a number of whole epochs after the present one.
fn bucket(left: Option<u64>) -> usize {
    let Some(left) = left else {
        return LEFT.len() - 1;
    };
    let bits = (u64::BITS - left.leading_zeros()) as usize;
    bits.min(LEFT.len() - 2)
}

fn unix(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Usage;
    use crate::measure::Value;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);

    fn number(all: &[Sample], name: &str, label: Option<&str>) -> Option<f64> {
        let of = all.iter().filter(|s| s.name == name);
        let mut of = of.filter(|s| s.labels.first().map(|(_, v)| v.as_str()) == label);
        of.next().map(|s| match s.value {
            Value::Number(n) => n,
            Value::Histogram(_) => unreachable!(),
        })
    }

    #[test]
    fn epochs_are_told_apart_by_powers_of_two() {
        let label = |left| LEFT[bucket(Some(left))];
        let labels = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, u64::MAX].map(label);
        assert_eq!(
            labels,
            [
                "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "8-15", "16-31", "16-31", "32+",
                "32+"
            ]
        );
        assert_eq!(LEFT[bucket(None)], "unknown");
    }

    #[test]
    fn the_horizon_moves_with_the_epochs() {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let clock = EpochClock::new(DAY);
        clock.is_exactly(now, 10, now, DAY);
        let ending = |end_epoch, blobs, bytes, live| EndingIn {
            end_epoch,
            blobs,
            bytes,
            encoded_bytes: 2 * bytes,
            cost: 7,
            live: Usage::new(1, live),
            judged_bytes: bytes,
            waste_bytes: bytes - live,
            counted_at: Some(now),
            ..EndingIn::default()
        };
        const MIB: i64 = 1 << 20;
        let figures = LedgerFigures::default();
        let sample = Prices {
            storage: 100,
            write: 1,
        };
        let present = |now| Present {
            now,
            clock: &clock,
            sample,
        };
        assert_eq!(figures.samples(&present(now)), []);
        let horizon = vec![
            ending(9, 1, MIB, MIB),
            ending(12, 2, MIB, MIB / 2),
            ending(30, 4, 2 * MIB, MIB / 2),
            ending(0, 8, 0, 0),
        ];
        figures.read(now, horizon);
        let all = figures.samples(&present(now));
        let blobs = |left| number(&all, "ledger_horizon_blobs", Some(left)).unwrap();
        assert_eq!((blobs("0"), blobs("1"), blobs("16-31")), (1.0, 2.0, 4.0));
        assert_eq!((blobs("2-3"), blobs("unknown")), (0.0, 8.0));
        assert_eq!(number(&all, "ended_blobs", None), Some(1.0));
        assert_eq!(number(&all, "ledger_waste_ratio", None), Some(0.5));
        assert_eq!(number(&all, "storage_units", None), Some(8.0));
        let frost = number(&all, "storage_epoch_frost", Some("sample"));
        assert_eq!(frost, Some(800.0));
        let next = number(&all, "next_expiry_timestamp_seconds", None).unwrap();
        // The clock measures what has passed since it was told.
        assert!((next - unix(now + 2 * DAY)).abs() < 60.0, "{next}");
        figures.prices(sample, true);
        clock.is_exactly(now + DAY, 11, now + DAY, DAY);
        let all = figures.samples(&present(now + DAY));
        assert_eq!(number(&all, "ledger_horizon_blobs", Some("0")), Some(3.0));
        assert_eq!(
            number(&all, "storage_epoch_frost", Some("chain")),
            Some(800.0)
        );
    }
}
