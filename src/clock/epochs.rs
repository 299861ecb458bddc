//! The clock of the network's epochs.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::moment::since_1970;
use super::seen::{slack, Seen};
use super::sighting::Sighting;
use super::span::{
    consistent, contradiction, duration, lengths_of_most, longest, nanos, tolerance, Lengths, Span,
};

/// Tells when epochs begin, and so when a blob's storage ends.
///
/// The only time information that Walrus gives over HTTP is in the answers to stores: the epoch of
/// the store and the exclusive end epoch. They do not tell when an epoch began. But an epoch had
/// begun when it was first seen, and lasts for longer than until it was last seen. With epochs of
/// known length each sighting bounds the beginning of every epoch, and all sightings together bound
/// it ever more sharply. The clock collects those of this process, those of other nodes and earlier
/// processes ([`merge`](Self::merge), [`unsaved`](Self::unsaved)), and the chain's exact word
/// ([`is_exactly`](Self::is_exactly)).
///
/// The estimate is the earliest moment that fits: renewing too early costs a little, too late loses
/// data. It relies on two properties of the network: no epoch is shorter than its length, and the
/// answer to a store names the epoch of that moment (a store that takes long is seen that much too
/// late).
///
/// Three sources may be wrong. The machine's clock may jump, so the age of a sighting is measured
/// by the monotonic clock as well, and the longer time counts. An answer may name an absurd epoch,
/// so an epoch that cannot have been reached since the last sighting counts only when the next such
/// answer agrees with it. Another node's clock may be wrong, so a row that does not fit the others
/// is left out; clocks that differ by up to 10 minutes (a twentieth of an epoch, if that is less)
/// are taken into account. If not even that explains what was seen, the configured length is
/// wrong: see [`contradiction`](Self::contradiction).
#[derive(Debug)]
pub struct EpochClock {
    /// The length that the configuration gives; zero if none.
    configured: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    /// The length that the chain gives.
    of_chain: Option<Duration>,
    /// The epoch that the chain named, when the answers to stores named another one for sure.
    other_chain: Option<u64>,
    /// Whether the machine's clock is wrong by the chain's last word.
    clock_is_wrong: bool,
}

/// What is believed of the present epoch. Times are nanoseconds from now.
pub(super) struct Belief {
    pub(super) epoch: u64,
    /// It had begun by then.
    pub(super) by: Option<i128>,
    /// The next epoch begins after this.
    pub(super) next: i128,
    /// The length of an epoch, the least one that is likely.
    pub(super) length: i128,
}

impl State {
    fn length(&self, configured: Duration) -> Duration {
        self.of_chain.unwrap_or(configured)
    }

    fn belief(&self, now: SystemTime, length: Duration) -> Option<Belief> {
        let epoch = self.seen.epoch()?;
        let slack = slack(length);
        let all = self.seen.spans(now, length);
        let of_chain = self.of_chain == Some(length);
        let disputed = contradiction_of(&all, length, slack).filter(|_| !of_chain);
        let (spans, length) = match disputed.and_then(|disputed| disputed.fitting) {
            // The other sightings, taken together with the wrong length, would tell anything.
            Some(fitting) => (all.get(..1)?.to_vec(), nanos(length).min(fitting.least)),
            None => (consistent(all, Some(length), slack), nanos(length)),
        };
        let known = || spans.iter().filter(|span| span.epoch <= epoch);
        let next = known().map(|span| span.next_after(epoch, length)).max()?;
        let by = known()
            .filter_map(|span| span.starts_by(epoch, length))
            .min();
        // Where the epoch was seen after the moment by which it must have ended, the network is
        // late or a clock is wrong. It had begun when it was seen: nothing more is known then.
        let by = by.map(|by| match by.saturating_add(longest(length)) < next {
            true => next,
            false => by,
        });
        Some(Belief {
            epoch,
            // The present one has begun.
            by: by.map(|by| by.min(0)),
            next: next.min(length),
            length,
        })
    }
}

impl Belief {
    /// The earliest moment at which an epoch may begin.
    fn begins(&self, now: SystemTime, epoch: u64) -> Option<SystemTime> {
        let n = i128::from(epoch) - i128::from(self.epoch) - 1;
        let length = match n < 0 {
            true => longest(self.length),
            false => self.length,
        };
        at(now, self.next.checked_add(n.checked_mul(length)?)?)
    }

    /// The last epoch that may begin before a moment.
    fn last_before(&self, moment: i128) -> u64 {
        let time = moment.saturating_sub(self.next).saturating_sub(1);
        later(
            self.epoch,
            time.div_euclid(self.length).saturating_add(1).max(0),
        )
    }
}

/// The moment that lies so many nanoseconds after `now`; not before 1970. `None` if it lies beyond
/// what the machine can represent.
fn at(now: SystemTime, from_now: i128) -> Option<SystemTime> {
    match from_now < 0 {
        true => Some(now - duration(from_now.saturating_neg()).min(since_1970(now))),
        false => now.checked_add(duration(from_now)),
    }
}

/// Sightings that the configured length does not explain.
struct Disputed {
    pair: (Span, Span),
    fitting: Option<Lengths>,
}

fn contradiction_of(all: &[Span], length: Duration, slack: i128) -> Option<Disputed> {
    let present = all.first()?.epoch;
    // Later epochs are absurd, or of a network that was wiped.
    let spans: Vec<Span> = all.iter().filter(|s| s.epoch <= present).copied().collect();
    let pair = contradiction(&spans, length, slack)?;
    let fitting = lengths_of_most(&spans, slack);
    // What is certain fits the configured length: the clock went wrong, of this node or another.
    let clock = fitting.is_some_and(|lengths| lengths.holds(nanos(length)));
    (!clock).then_some(Disputed { pair, fitting })
}

impl EpochClock {
    /// Makes a clock for epochs of this length. With zero (unknown), nothing is estimated until the
    /// chain tells the length.
    pub fn new(length: Duration) -> Self {
        EpochClock {
            configured: length,
            state: Mutex::default(),
        }
    }

    /// Notes that the answer to a store named `current` as the present epoch. Returns the earliest
    /// moment at which `end_epoch` may begin; `None` if the length of an epoch is unknown.
    pub fn expires_at(&self, now: SystemTime, current: u64, end_epoch: u64) -> Option<SystemTime> {
        let mut state = self.state.lock();
        let length = state.length(self.configured);
        state.seen.note(now, current, length);
        if length.is_zero() {
            return None;
        }
        let belief = state.belief(now, length)?;
        if current == belief.epoch || current.checked_add(1) == Some(belief.epoch) {
            // Also for a publisher that lags: the epoch that it names began before the present one,
            // which has not lasted for longer than an epoch then.
            let next = belief.next.max(0);
            return Belief { next, ..belief }.begins(now, end_epoch);
        }
        // An epoch that is not believed may be about to end.
        let left = i128::from(end_epoch.saturating_sub(current)) - 1;
        let from_now = left.checked_mul(belief.length)?;
        at(now, from_now)
    }

    /// The earliest moment at which storage up to `end_epoch` (exclusive) may end, by all that was
    /// seen. It may lie in the past. `None` if no epoch was seen or its length is unknown.
    pub fn ends_at(&self, now: SystemTime, end_epoch: u64) -> Option<SystemTime> {
        self.belief(now)?.begins(now, end_epoch)
    }

    /// Whether a blob with this exclusive end epoch has certainly lapsed. Only epochs that were
    /// seen count, so "no" may mean "not known".
    pub fn is_over(&self, end_epoch: u64) -> bool {
        let seen = self.state.lock().seen.epoch();
        end_epoch > 0 && seen.is_some_and(|epoch| epoch >= end_epoch)
    }

    /// The last end epoch that may begin within `lead` from now, judged by the epochs that were
    /// seen and not by any clock at the moment of a store. `None` if no epoch was seen or its
    /// length is unknown.
    pub fn ends_within(&self, now: SystemTime, lead: Duration) -> Option<u64> {
        let belief = self.belief(now)?;
        Some(belief.last_before(nanos(lead)))
    }

    /// The present epoch: the least and the most that it can be, if epochs go on to keep their
    /// length. With an unknown length the most is not bounded. `None` if no epoch was seen.
    pub fn now_epoch(&self, now: SystemTime) -> Option<(u64, u64)> {
        let Some(belief) = self.belief(now) else {
            return Some((self.state.lock().seen.epoch()?, u64::MAX));
        };
        let passed = belief.by.map_or(0, |by| -by) / longest(belief.length);
        let most = belief.last_before(1);
        Some((later(belief.epoch, passed).min(most), most))
    }

    pub(super) fn belief(&self, now: SystemTime) -> Option<Belief> {
        let state = self.state.lock();
        let length = state.length(self.configured);
        match length.is_zero() {
            true => None,
            false => state.belief(now, length),
        }
    }

    /// Notes the chain's word: the present epoch, when it began, and the length of epochs. It
    /// counts at once, unless the answers to stores have named another epoch for sure: then the two
    /// are of different networks, which [`contradiction`](Self::contradiction) tells. A beginning
    /// that is to come, or after which the epoch would have ended already, shows that the machine's
    /// clock is wrong, and is not taken over.
    pub fn is_exactly(
        &self,
        now: SystemTime,
        epoch: u64,
        started_at: SystemTime,
        length: Duration,
    ) {
        let mut state = self.state.lock();
        if !length.is_zero() {
            state.of_chain = Some(length);
        }
        let length = state.length(self.configured);
        if state.seen.surely_not(now, epoch, length) {
            state.other_chain = Some(epoch);
            return;
        }
        state.other_chain = None;
        let ago = match now.duration_since(started_at) {
            Ok(ago) => {
                let most = duration(longest(nanos(length))).saturating_add(tolerance(length));
                (ago <= most).then_some(ago)
            }
            Err(ahead) => (ahead.duration() <= tolerance(length)).then_some(Duration::ZERO),
        };
        state.clock_is_wrong = ago.is_none();
        state.seen.note_exactly(now, epoch, ago);
    }

    /// As [`now_epoch`](Self::now_epoch), for decisions that cost little if the next epoch has
    /// begun all the same. Where the machine's clock is known to be wrong, it does not tell when an
    /// epoch ends; so the most is the epoch that was named in the last hundredth of an epoch.
    pub(crate) fn likely_epoch(&self, now: SystemTime) -> Option<(u64, u64)> {
        let (least, most) = self.now_epoch(now)?;
        let state = self.state.lock();
        let named = state.seen.last().filter(|_| state.clock_is_wrong);
        let lately = state.length(self.configured) / 100;
        Some(match named.filter(|(_, last)| last.age(now) <= lately) {
            Some((epoch, _)) => (least, epoch.clamp(least, most)),
            None => (least, most),
        })
    }

    /// Adds what other nodes and earlier processes have seen. It counts until an answer disagrees
    /// with it. To be called with all rows of the index.
    pub fn merge(&self, now: SystemTime, sightings: &[Sighting]) {
        let mut state = self.state.lock();
        let length = state.length(self.configured);
        state.seen.merge(now, sightings, length);
    }

    /// What this process has seen and the index does not have yet, for other nodes and later
    /// processes. It stays so until [`saved`](Self::saved).
    pub fn unsaved(&self, now: SystemTime) -> Vec<Sighting> {
        let state = self.state.lock();
        state.seen.unsaved(now, state.length(self.configured))
    }

    /// Notes that the index has these sightings.
    pub fn saved(&self, sightings: &[Sighting]) {
        self.state.lock().seen.saved(sightings);
    }

    /// The last epoch that was seen, and when.
    pub fn last_seen(&self, now: SystemTime) -> Option<(u64, SystemTime)> {
        let (epoch, last) = self.state.lock().seen.last()?;
        Some((epoch, last.at_earliest(now)))
    }

    /// The length of an epoch by what was seen alone: at least, and at most if that is bounded.
    /// `None` if no length fits, or nothing is known of it.
    pub fn likely_length(&self, now: SystemTime) -> Option<(Duration, Option<Duration>)> {
        let state = self.state.lock();
        let length = state.length(self.configured);
        let spans = state.seen.spans(now, length);
        let present = spans.first()?.epoch;
        let spans: Vec<Span> = spans
            .into_iter()
            .filter(|span| span.epoch <= present)
            .collect();
        let slack = match length.is_zero() {
            true => slack_by(&spans),
            false => slack(length),
        };
        let lengths = lengths_of_most(&spans, slack)?;
        lengths
            .is_bounded()
            .then(|| (duration(lengths.least), lengths.most.map(duration)))
    }

    /// One line for the error log if the configured length of an epoch cannot be true by the
    /// epochs that were seen, or the chain says otherwise.
    pub fn contradiction(&self, now: SystemTime) -> Option<String> {
        let state = self.state.lock();
        if let (Some(chain), Some(seen)) = (state.other_chain, state.seen.epoch()) {
            return Some(format!(
                "the chain says that the epoch is {chain}, but the publisher's answers say that it is {seen}: \
                 walrusCommand and publisherURL are of different networks; correct one of them"
            ));
        }
        if let Some(length) = state.of_chain {
            let differs = length != self.configured && !self.configured.is_zero();
            return differs.then(|| {
                format!(
                    "the configuration says that an epoch has {} s, but the chain says {} s, which counts: correct \
                     network or epochDurationSeconds, or walrusCommand if it is of another network",
                    self.configured.as_secs(),
                    length.as_secs()
                )
            });
        }
        let length = state.length(self.configured);
        if length.is_zero() {
            return None;
        }
        let disputed = contradiction_of(&state.seen.spans(now, length), length, slack(length))?;
        let (a, b) = disputed.pair;
        let others = match a.epoch == b.epoch {
            true => String::new(),
            false => format!(" and epoch {} {}", b.epoch, when(&b)),
        };
        let fitting = match disputed.fitting {
            Some(lengths) => format!("a length of {} would fit", text(lengths)),
            None => {
                "no length fits all that was seen, so the clock of a node is wrong too".to_owned()
            }
        };
        Some(format!(
            "the configuration says that an epoch has {} s, but epoch {} was seen {}{others}: {fitting}; correct network \
             or epochDurationSeconds, or the end of storage is estimated wrongly",
            length.as_secs(),
            a.epoch,
            when(&a),
        ))
    }

    /// As [`expires_at`](Self::expires_at), for a blob that the network had already: its answer
    /// holds no current epoch, but at least `epochs` were left.
    pub fn expires_at_least(&self, now: SystemTime, epochs: u32) -> Option<SystemTime> {
        let length = self.state.lock().length(self.configured);
        if length.is_zero() {
            return None;
        }
        now.checked_add(length.checked_mul(epochs.saturating_sub(1))?)
    }
}

/// The slack for an unknown length of an epoch: by the epochs that were seen, and the time in
/// which they were.
fn slack_by(spans: &[Span]) -> i128 {
    let firsts = spans.iter().filter_map(|span| span.first);
    let passed = firsts.min().map_or(0, |first| -first);
    let epochs = || spans.iter().map(|span| i128::from(span.epoch));
    let epochs = epochs().max().unwrap_or(0) - epochs().min().unwrap_or(0) + 1;
    slack(duration(passed / epochs).max(Duration::from_nanos(1)))
}

fn later(epoch: u64, epochs: i128) -> u64 {
    epoch.saturating_add(u64::try_from(epochs).unwrap_or(u64::MAX))
}

/// When an epoch was seen, for a log line.
fn when(span: &Span) -> String {
    let ago = |at: i128| duration(at.saturating_neg()).as_secs();
    match span.first.map(ago) {
        Some(first) if first != ago(span.last) => {
            format!("from {first} s to {} s ago", ago(span.last))
        }
        _ => format!("{} s ago", ago(span.last)),
    }
}

fn text(lengths: Lengths) -> String {
    let least = duration(lengths.least).as_secs();
    match lengths.most.map(|most| duration(most).as_secs()) {
        Some(most) => format!("{least} to {most} s"),
        None => format!("{least} s or more"),
    }
}
