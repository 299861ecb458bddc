//! When a read asks a second aggregator beside a slow one.
//!
//! If no answer has begun after the time in which that aggregator usually answers (mean and four
//! deviations, between 50 ms and 5 s), the next one that this read has not asked yet is asked too,
//! the first good answer counts, and the other is dropped. At most one read in ten does so. When an
//! aggregator was overtaken in this way, every other read that waits for it without an answer asks
//! the next aggregator too; this is not counted among the one in ten. An aggregator that was
//! overtaken is asked later than others for a while.
//!
//! A body that has begun and drips is left in the same way: when a second after its beginning the
//! rest would take 3 s at its pace (8 s without credit).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::get::{Course, DRIPPING};
use super::observe::{attempt_span, end_span};
use super::retry::{Class, Failure, Rotation};
use super::shared::Shared;
use super::transport::one_line;
use super::want::Want;
use super::{Check, Fetched};

/// After so long without an answer a second aggregator is asked, outside the budget.
const SILENT: Duration = Duration::from_secs(5);

/// How often a read that may not ask a second aggregator yet looks again.
const RECONSIDER: Duration = Duration::from_millis(250);

/// A body that takes so much longer is overtaken, if there is credit for it, and if without.
const TOO_SLOW: Duration = Duration::from_secs(3);
const MUCH_TOO_SLOW: Duration = Duration::from_secs(8);

impl Shared {
    /// Asks the aggregator at `first`, and one that was not asked yet if that is slower than usual.
    /// The first good answer counts; failures are noted.
    pub(super) async fn ask(
        &self,
        first: usize,
        want: Want<'_>,
        check: Check<'_>,
        repeat: usize,
        rotation: &mut Rotation<'_>,
    ) -> Option<Fetched> {
        let course = Course::default();
        let attempt = |index: usize| {
            let course = (index == first).then_some(&course);
            async move {
                let aggregator = self.aggregators.get(index);
                let begun = Instant::now();
                let span = attempt_span("read_attempt", aggregator);
                let fetched = self.get(aggregator, want, repeat, course).await;
                end_span(span, &fetched);
                let attempts = &self.aggregators.attempts;
                attempts.took(begun.elapsed(), fetched.is_ok());
                let fetched = fetched.and_then(|fetched| {
                    let wanted = want.wanted(&fetched).unwrap_or(&[]);
                    let wrong =
                        |reason: String| Failure::new(Class::Corrupt, one_line(&reason, 400));
                    check(wanted).map_err(wrong).map(|()| fetched)
                });
                (index, fetched)
            }
        };
        let mut running = FuturesUnordered::new();
        running.push(attempt(first));
        let asked = Instant::now();
        let patience = tokio::time::sleep(self.aggregators.get(first).patience());
        tokio::pin!(patience);
        let overtaken = self.aggregators.get(first).overtaken();
        tokio::pin!(overtaken);
        // Requests that are made from now on are told.
        overtaken.as_mut().enable();
        let mut told = self.aggregators.len() < 2;
        self.hedging.asked();
        let mut waited = self.aggregators.len() < 2;
        let mut second = None;
        let mut looks = tokio::time::interval_at(asked + DRIPPING, RECONSIDER);
        loop {
            let beside = tokio::select! {
                biased;
                Some((index, fetched)) = running.next() => match fetched {
                    Ok(fetched) => {
                        self.aggregators.get(index).tally.answered();
                        self.aggregators.succeeded(index);
                        if second == Some(index) {
                            self.stats.hedge_wins.fetch_add(1, Relaxed);
                            self.aggregators.was_slow(first);
                        }
                        return Some(fetched);
                    }
                    Err(failure) => {
                        self.note(&self.aggregators, index, &failure);
                        rotation.failed(index, failure);
                        if running.is_empty() {
                            return None;
                        }
                        false
                    }
                },
                _ = looks.tick(), if second.is_none() && rotation.has_fresh() => {
                    let left = want.len().and_then(|len| course.left(len));
                    left.is_some_and(|left| {
                        left > MUCH_TOO_SLOW || left > TOO_SLOW && self.hedging.allows()
                    })
                }
                () = &mut overtaken, if !told => {
                    told = true;
                    let beside = !course.has_answered() && second.is_none();
                    waited |= beside;
                    beside
                }
                () = &mut patience, if !waited => {
                    if course.has_answered() || !rotation.has_fresh() {
                        waited = true;
                        false
                    } else if asked.elapsed() < SILENT && !self.hedging.allows() {
                        patience.as_mut().reset(Instant::now() + RECONSIDER);
                        false
                    } else {
                        // A long silence is reason enough, however many reads were asked twice
                        // before.
                        waited = true;
                        true
                    }
                }
            };
            if let Some(index) = beside.then(|| rotation.take_fresh()).flatten() {
                self.stats.hedges.fetch_add(1, Relaxed);
                second = Some(index);
                running.push(attempt(index));
            }
        }
    }
}
