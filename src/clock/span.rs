//! What the moments at which epochs were seen say of the epochs' beginnings and length. Pure.
//!
//! Epoch `e` was seen from `first` to `last`: it had begun by `first`, and the next one had not
//! begun by `last`. No epoch is shorter than the network's length `L`, and one is hardly longer
//! (the next epoch begins when the nodes have agreed on it). Hence for two epochs `a` ≤ `b` that
//! lie `n` apart:
//!
//! ```text
//! a.last  < start(a + 1) ≤ start(b) - (n - 1)·L   and  start(b) ≤ b.first
//!     so (n - 1)·L < b.first - a.last                                     (`most`)
//! b.last  < start(b + 1) ≤ start(a) + (n + 1)·(L + delay)  and  start(a) ≤ a.first
//!     so (n + 1)·(L + delay) > b.last - a.first                           (`least`)
//! ```
//!
//! The conditions of all pairs are all that can be said of `L` (they are what is left when the
//! unknown start is eliminated from the single conditions).

use std::time::Duration;

/// An epoch is longer than the network's length by this part of it at most.
const DELAY: i128 = 256;

/// The clocks of two nodes that are set right differ by less than this.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);

/// No network has epochs shorter than this (nanoseconds).
const SHORTEST: i128 = 1_000_000_000;

/// How far clocks may differ, and answers lag, when epochs have this length (zero: unknown).
pub(super) fn tolerance(length: Duration) -> Duration {
    match length.is_zero() {
        true => CLOCKS_DIFFER,
        false => CLOCKS_DIFFER.min(length / 20),
    }
}

pub(super) fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

pub(super) fn duration(nanos: i128) -> Duration {
    const SECOND: i128 = 1_000_000_000;
    let nanos = nanos.max(0);
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos % SECOND).unwrap_or(0))
}

/// When an epoch was seen. Times are nanoseconds from now: the past is negative.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) epoch: u64,
    /// The epoch had begun by then; `None` if that is not known.
    pub(super) first: Option<i128>,
    /// The next epoch had not begun by then.
    pub(super) last: i128,
    /// How far both may be off.
    pub(super) margin: i128,
    /// Several answers of this process agree, by the monotonic clock.
    pub(super) certain: bool,
}

impl Span {
    /// The epoch after `epoch`, which is not before this one, starts after this.
    pub(super) fn next_after(&self, epoch: u64, length: i128) -> i128 {
        let n = i128::from(epoch) - i128::from(self.epoch);
        let ahead = n.saturating_mul(length);
        self.last.saturating_sub(self.margin).saturating_add(ahead)
    }

    /// `epoch`, which is not before this one, has started by then.
    pub(super) fn starts_by(&self, epoch: u64, length: i128) -> Option<i128> {
        let n = i128::from(epoch) - i128::from(self.epoch);
        let ahead = n.saturating_mul(longest(length));
        Some(
            self.first?
                .saturating_add(self.margin)
                .saturating_add(ahead),
        )
    }
}

/// The longest time that an epoch lasts.
pub(super) fn longest(length: i128) -> i128 {
    length.saturating_add(length / DELAY)
}

/// The lengths of an epoch that fit what was seen (nanoseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) least: i128,
    pub(super) most: Option<i128>,
}

impl Lengths {
    const ANY: Lengths = Lengths {
        least: SHORTEST,
        most: None,
    };

    /// Whether anything is known.
    pub(super) fn is_bounded(&self) -> bool {
        *self != Lengths::ANY
    }

    fn is_possible(&self) -> bool {
        self.most.is_none_or(|most| self.least <= most)
    }

    pub(super) fn holds(&self, length: i128) -> bool {
        self.least <= length && self.most.is_none_or(|most| length <= most)
    }

    fn and(self, other: Lengths) -> Lengths {
        Lengths {
            least: self.least.max(other.least),
            most: match (self.most, other.most) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// The lengths that fit two spans, or one (`a` = `b`), whose times are off by `slack` in sum.
fn of_pair(a: &Span, b: &Span, slack: i128) -> Lengths {
    let (a, b) = if a.epoch <= b.epoch { (a, b) } else { (b, a) };
    let n = i128::from(b.epoch) - i128::from(a.epoch);
    let least_by = |a: &Span, b: &Span| {
        let lasted = b.last.saturating_sub(a.first?).saturating_sub(slack);
        Some((lasted.max(0) / (n + 1)).saturating_mul(DELAY) / (DELAY + 1))
    };
    let mut least = least_by(a, b).unwrap_or(0);
    if n == 0 {
        least = least.max(least_by(b, a).unwrap_or(0));
    }
    let passed = |b_first: i128| b_first.saturating_add(slack).saturating_sub(a.last);
    let most = match (n, b.first.map(passed)) {
        (0, _) | (_, None) => None,
        (_, Some(passed)) if passed < 0 => Some(-1),
        (1, _) => None,
        (_, Some(passed)) => Some(passed / (n - 1) + 1),
    };
    Lengths { least, most }
}

/// Whether two spans cannot both be true. `length`: the length of an epoch, if it is known.
pub(super) fn conflict(a: &Span, b: &Span, length: Option<Duration>, slack: i128) -> bool {
    let lengths = of_pair(a, b, slack);
    match length {
        Some(length) => !lengths.holds(nanos(length)),
        None => !lengths.and(Lengths::ANY).is_possible(),
    }
}

/// The lengths that fit all spans; `None` if no length does.
pub(super) fn lengths_of<'a>(
    spans: impl Iterator<Item = &'a Span> + Clone,
    slack: i128,
) -> Option<Lengths> {
    let mut lengths = Lengths::ANY;
    for (i, a) in spans.clone().enumerate() {
        for b in spans.clone().skip(i) {
            lengths = lengths.and(of_pair(a, b, slack));
        }
    }
    lengths.is_possible().then_some(lengths)
}

/// The lengths that fit the spans, or all of them but one that is not certain, or at least those
/// that are certain.
pub(super) fn lengths_of_most(spans: &[Span], slack: i128) -> Option<Lengths> {
    let without = |left_out: usize| {
        let rest = spans
            .iter()
            .enumerate()
            .filter(move |(i, _)| *i != left_out);
        lengths_of(rest.map(|(_, span)| span), slack)
    };
    let doubtful = || (0..spans.len()).filter(|i| !spans[*i].certain);
    lengths_of(spans.iter(), slack)
        .or_else(|| doubtful().find_map(without))
        .or_else(|| lengths_of(spans.iter().filter(|span| span.certain), slack))
}

/// The spans without those that conflict with most others. The first one, the anchor, stays.
pub(super) fn consistent(mut spans: Vec<Span>, length: Option<Duration>, slack: i128) -> Vec<Span> {
    loop {
        let conflicts = |i: usize| {
            let others = spans.iter().enumerate().filter(|(j, _)| *j != i);
            others
                .filter(|(_, other)| conflict(&spans[i], other, length, slack))
                .count()
        };
        let counted = (1..spans.len()).map(|i| (conflicts(i), -spans[i].last, i));
        match counted.max() {
            Some((1.., _, worst)) => drop(spans.remove(worst)),
            _ => return spans,
        }
    }
}

/// Two spans that cannot both be true under this length, if more than one wrong clock or absurd
/// answer is needed to explain all such conflicts: a single span that is not certain and takes part
/// in all of them is taken for the wrong one.
pub(super) fn contradiction(spans: &[Span], length: Duration, slack: i128) -> Option<(Span, Span)> {
    let mut pairs = Vec::new();
    for i in 0..spans.len() {
        for j in i..spans.len() {
            if conflict(&spans[i], &spans[j], Some(length), slack) {
                pairs.push((i, j));
            }
        }
    }
    let explains = |wrong: usize| pairs.iter().all(|(i, j)| *i == wrong || *j == wrong);
    let one_is_wrong = (0..spans.len()).any(|i| !spans[i].certain && explains(i));
    let (i, j) = pairs.first().filter(|_| !one_is_wrong)?;
    Some((spans[*i], spans[*j]))
}
