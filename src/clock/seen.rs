//! The epochs that were seen, and which of them is the present one.
//!
//! Answers to this process's stores decide which epoch is the present one; the rows of other nodes
//! and earlier processes count until an answer disagrees with them. One answer may be absurd, so an
//! epoch that cannot have been reached since the last sighting counts only when the next such
//! answer agrees with it. One row may come from a wrong clock, so a row that does not fit the
//! others is left out.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::moment::Moment;
use super::sighting::Sighting;
use super::span::{conflict, consistent, longest, nanos, tolerance, Span};

/// Most epochs that may pass between two sightings when the length of an epoch is unknown.
const STEP: u64 = 64;

/// How many epochs that this process saw are remembered, and how many rows of others.
const OWN: usize = 8;
const OTHERS: usize = 24;

/// An epoch that answers to this process have named.
#[derive(Debug)]
struct Own {
    first: Moment,
    last: Moment,
    /// More than one answer named it, or the chain.
    certain: bool,
    /// `last` as the index has it.
    saved: Option<SystemTime>,
}

/// An epoch that another node or an earlier process has seen. A clock that showed a time that is
/// still to come was wrong.
#[derive(Debug)]
struct Other {
    first: Option<Moment>,
    last: Moment,
    /// It was seen at more than one moment.
    twice: bool,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The present epoch, as far as is known, and when it was last seen to be the present one.
    epoch: u64,
    last: Option<Moment>,
    /// Whether more than one answer agrees with `epoch`.
    confirmed: bool,
    /// An epoch that one answer named and that does not fit `epoch`.
    odd: Option<(u64, Moment)>,
    own: BTreeMap<u64, Own>,
    others: BTreeMap<u64, Other>,
}

fn from_now(age: Duration) -> i128 {
    nanos(age).saturating_neg()
}

impl Seen {
    pub(super) fn epoch(&self) -> Option<u64> {
        self.last.map(|_| self.epoch)
    }

    pub(super) fn last(&self) -> Option<(u64, Moment)> {
        self.last.map(|last| (self.epoch, last))
    }

    /// Whether the present epoch is confirmed and it cannot be `epoch` now.
    pub(super) fn surely_not(&self, now: SystemTime, epoch: u64, length: Duration) -> bool {
        self.confirmed && !self.lags(epoch) && !self.may_be(now, epoch, length)
    }

    /// Whether `epoch` is the one before the present one: the word of a source that lags around a
    /// change.
    fn lags(&self, epoch: u64) -> bool {
        self.confirmed && epoch.checked_add(1) == Some(self.epoch)
    }

    /// Whether the epoch may be `current` now.
    fn may_be(&self, now: SystemTime, current: u64, length: Duration) -> bool {
        let Some(last) = self.last else {
            return true;
        };
        let passed = match length.is_zero() {
            true => u128::from(STEP),
            false => last.age(now).as_nanos() / length.as_nanos() + 2,
        };
        current >= self.epoch && u128::from(current - self.epoch) <= passed
    }

    /// Notes an answer that says that the epoch is `current`.
    pub(super) fn note(&mut self, now: SystemTime, current: u64, length: Duration) {
        let mut first = Moment::new(now);
        let mut two_named_it = false;
        if self.may_be(now, current, length) {
            self.confirmed |= self.last.is_some();
        } else if self.lags(current) {
            return;
        } else if current < self.epoch && !self.confirmed {
            self.own.retain(|epoch, _| *epoch <= current);
        } else {
            let agrees = |(odd, _): &(u64, Moment)| current.abs_diff(*odd) <= 2;
            let Some((odd, at)) = self.odd.filter(agrees) else {
                self.odd = Some((current, first));
                return;
            };
            if odd == current {
                first = at;
                two_named_it = true;
            }
            // What was seen before is of another network, or was absurd.
            self.own.clear();
            self.others.clear();
            self.confirmed = true;
        }
        self.odd = None;
        self.epoch = current;
        let last = Moment::new(now);
        self.last = Some(last);
        if let Some(own) = self.own.get_mut(&current) {
            own.last = last;
            own.certain = true;
        } else {
            let own = Own {
                first,
                last,
                certain: two_named_it,
                saved: None,
            };
            self.own.insert(current, own);
        }
        self.forget_old();
    }

    fn forget_old(&mut self) {
        while self.own.len() > OWN {
            self.own.pop_first();
        }
    }

    /// Notes the chain's word that the present epoch is `epoch` and when it began. `began`: how
    /// long ago, if the machine's clock can be right.
    pub(super) fn note_exactly(&mut self, now: SystemTime, epoch: u64, began: Option<Duration>) {
        if self.lags(epoch) {
            return;
        }
        self.odd = None;
        self.confirmed = true;
        self.epoch = epoch;
        let last = Moment::new(now);
        self.last = Some(last);
        self.own.retain(|older, _| *older <= epoch);
        let first = began.map(|ago| Moment::past(now, ago));
        let own = self.own.entry(epoch).or_insert(Own {
            first: first.unwrap_or(last),
            last,
            certain: true,
            saved: None,
        });
        own.first = first.unwrap_or(own.first);
        own.last = last;
        own.certain = true;
        let (Some(end), Some(before)) = (first, epoch.checked_sub(1)) else {
            return;
        };
        // The epoch before lasted until then.
        let before = self.own.entry(before).or_insert(Own {
            first: end,
            last: end,
            certain: true,
            saved: None,
        });
        if before.first.age(now) < end.age(now) {
            before.first = end;
        }
        before.last = end;
        self.forget_old();
    }

    /// Adds the rows of other nodes and earlier processes.
    pub(super) fn merge(&mut self, now: SystemTime, rows: &[Sighting], length: Duration) {
        let margin = tolerance(length);
        for row in rows {
            if self.brings_nothing(now, row, margin) {
                continue;
            }
            // Zero if the moment is to come by no more than clocks may differ.
            let ago = |at: SystemTime| match now.duration_since(at) {
                Ok(ago) => Some(ago),
                Err(ahead) => (ahead.duration() <= margin).then_some(Duration::ZERO),
            };
            let first = ago(row.first);
            // An epoch that was seen in the future may have been seen long ago.
            let long_ago = length.saturating_mul(STEP as u32);
            let last = ago(row.last).or(first).unwrap_or(long_ago);
            let other = Other {
                first: first.map(|ago| Moment::past(now, ago)),
                last: Moment::past(now, last),
                twice: first.is_some_and(|first| first > last),
            };
            self.others.insert(row.epoch, other);
        }
        while self.others.len() > OTHERS {
            let oldest = self
                .others
                .iter()
                .max_by_key(|(_, other)| other.last.age(now));
            let Some(oldest) = oldest.map(|(epoch, _)| *epoch) else {
                break;
            };
            self.others.remove(&oldest);
        }
        self.choose(now, length);
    }

    /// Whether this process has seen all that the row tells.
    fn brings_nothing(&self, now: SystemTime, row: &Sighting, margin: Duration) -> bool {
        self.own.get(&row.epoch).is_some_and(|own| {
            let earliest = own.first.at_earliest(now);
            let latest = own.last.at_latest(now);
            let not_earlier = row.first.checked_add(margin).is_none_or(|t| t >= earliest);
            not_earlier && row.last <= latest + margin
        })
    }

    /// Chooses the present epoch, after rows of others were added.
    fn choose(&mut self, now: SystemTime, length: Duration) {
        let known = (!length.is_zero()).then_some(length);
        let slack = slack(length);
        let anchored = match self.own.is_empty() {
            true => {
                let mut spans = self.spans_of_others(now, length);
                let Some(anchor) = self.most_credible(&spans, known, slack) else {
                    return;
                };
                spans.swap(0, anchor);
                self.last = None;
                spans
            }
            false => self.spans(now, length),
        };
        let newest = consistent(anchored, known, slack);
        let newest = newest.iter().map(|span| span.epoch).max().unwrap_or(0);
        let Some(other) = self.others.get(&newest) else {
            return;
        };
        let last = other.last;
        if self.last.is_none() || (newest > self.epoch && self.may_be(now, newest, length)) {
            self.epoch = newest;
            self.last = Some(last);
            self.confirmed = false;
        }
    }

    /// The row that was seen last and that was seen twice or does not stand alone; if there is
    /// none, the one of the lowest epoch, since absurd ones are mostly high.
    fn most_credible(
        &self,
        spans: &[Span],
        length: Option<Duration>,
        slack: i128,
    ) -> Option<usize> {
        let credible = |i: &usize| {
            let span = &spans[*i];
            let fits =
                |(j, other): (usize, &Span)| j != *i && !conflict(span, other, length, slack);
            let twice = self
                .others
                .get(&span.epoch)
                .is_some_and(|other| other.twice);
            twice || spans.iter().enumerate().any(fits)
        };
        let all = 0..spans.len();
        let best = all.clone().filter(credible).max_by_key(|i| spans[*i].last);
        best.or_else(|| all.min_by_key(|i| spans[*i].epoch))
    }

    /// All that was seen, the present epoch first.
    pub(super) fn spans(&self, now: SystemTime, length: Duration) -> Vec<Span> {
        let mut spans = Vec::with_capacity(1 + OWN + OTHERS);
        let of_own = |(epoch, own): (&u64, &Own)| Span {
            epoch: *epoch,
            first: Some(from_now(own.first.least_age(now))),
            last: from_now(own.last.age(now)),
            margin: 0,
            certain: own.certain,
        };
        let present = self.own.get_key_value(&self.epoch).map(of_own);
        spans.extend(present);
        let mut others = self.spans_of_others(now, length);
        if present.is_none() {
            let at = others.iter().position(|span| span.epoch == self.epoch);
            spans.extend(at.map(|at| others.remove(at)));
        }
        if let Some((epoch, last)) = self.last().filter(|_| spans.is_empty()) {
            let last = from_now(last.age(now));
            spans.push(Span {
                epoch,
                first: None,
                last,
                margin: nanos(tolerance(length)),
                certain: false,
            });
        }
        let older = self.own.iter().filter(|(epoch, _)| **epoch != self.epoch);
        spans.extend(older.map(of_own));
        spans.extend(others);
        spans
    }

    fn spans_of_others(&self, now: SystemTime, length: Duration) -> Vec<Span> {
        let margin = nanos(tolerance(length));
        let of_other = |(epoch, other): (&u64, &Other)| {
            let last = from_now(other.last.age(now));
            let first = other.first.map(|first| from_now(first.least_age(now)));
            // An epoch cannot have lasted for so long. The later moment is more likely right: the
            // earlier one may be of a network that was wiped.
            let most = longest(nanos(length)).saturating_add(2 * margin);
            let too_long = |first: i128| !length.is_zero() && last.saturating_sub(first) > most;
            Span {
                epoch: *epoch,
                first: first.map(|first| if too_long(first) { last } else { first }),
                last,
                margin,
                certain: false,
            }
        };
        self.others.iter().map(of_other).collect()
    }

    /// What this process has seen and the index does not have.
    pub(super) fn unsaved(&self, now: SystemTime, length: Duration) -> Vec<Sighting> {
        // A row is written again when that sharpens the estimate.
        let step = tolerance(length) / 2;
        let unsaved = self.own.iter().filter_map(|(epoch, own)| {
            let last = own.last.at_earliest(now);
            let is_new = own.saved.is_none_or(|saved| last > saved + step);
            is_new.then(|| Sighting {
                epoch: *epoch,
                // Both clocks round: by them, the one may come to lie behind the other.
                first: own.first.at_latest(now).min(last),
                last,
            })
        });
        unsaved.collect()
    }

    /// Notes that the index has these.
    pub(super) fn saved(&mut self, rows: &[Sighting]) {
        for row in rows {
            if let Some(own) = self.own.get_mut(&row.epoch) {
                own.saved = own.saved.max(Some(row.last));
            }
        }
    }
}

/// How far the times of two spans may be off in sum (nanoseconds).
pub(super) fn slack(length: Duration) -> i128 {
    2 * nanos(tolerance(length))
}
