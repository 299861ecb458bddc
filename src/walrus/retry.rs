//! Decides which failures are retried, how often, and after which wait.
//!
//! One request (a store or a read) walks over the endpoints of its kind:
//!
//! - Asking an endpoint that this request has not asked yet is a *failover*: at once and free.
//! - Asking an endpoint again is a *retry*: at most `max_retries` of them per request, over all
//!   endpoints together. So a request makes at most `endpoints + max_retries` attempts, and with
//!   one endpoint and `max_retries` 0 exactly one.
//! - Retries go round the endpoints in order. Before each new round there is a wait, drawn evenly
//!   from 0 to `backoff_base · 2^round`, capped at `backoff_max` ("full jitter": clients that were
//!   shed together do not come back together).
//! - An endpoint that sent `Retry-After` is left alone that long (capped at `retry_after_max`) if
//!   another one can be asked meanwhile; otherwise the request waits.
//!
//! | what happened | then |
//! |---|---|
//! | connection, DNS or TLS failure, time limit | retried: public endpoints have no SLA |
//! | 429, 408, 425 | retried after `Retry-After` or the backoff |
//! | 5xx | retried (503/504 are usual during an epoch change; 500 hides transient causes) |
//! | 200 whose body is no valid answer | retried: a proxy's page, or a store with `error` |
//! | 429 TOKEN_ALREADY_USED, 504 EXPIRED_SIGNATURE | retried with a fresh token |
//! | other 4xx, 3xx on PUT | never again at that endpoint; the other endpoints are asked once |
//! | 404 on GET | see the `read` module |
//! | 413, or a connection broken while sending | see the `endpoints` module (learnt limits) |
//! | wrong bytes (length, range, hash) | never again at that endpoint; the others are asked |
//!
//! A store is safe to retry because it asks for a permanent blob: if the first attempt went through
//! unnoticed, the next one is answered `alreadyCertified` and costs nothing. (With `deletable` the
//! network offers no such thing: each attempt that went through is paid.)

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::endpoints::{Endpoint, Endpoints};
use super::tally;
use crate::backoff::{doubled, jittered};
use crate::error::{Cause, Error, ErrorKind};

/// The configured part of the policy.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) max_retries: u32,
    pub(super) backoff_base: Duration,
    pub(super) backoff_max: Duration,
    pub(super) retry_after_max: Duration,
}

impl Policy {
    /// The longest wait before round `round` (1 = first repeat).
    fn ceiling(&self, round: u32) -> Duration {
        doubled(self.backoff_base, round.saturating_sub(1), self.backoff_max)
    }

    fn wait(&self, round: u32) -> Duration {
        jittered(self.ceiling(round))
    }
}

/// The meaning of a failed attempt for the rest of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// May pass when asked again.
    Transient,
    /// 429, 503: may pass when asked again, later.
    Throttled,
    /// No token was to be had, or it was used up or had expired: passes with a fresh one.
    Token,
    /// The connection broke while the body was being sent: transient, or a body limit.
    BrokenSend,
    /// This endpoint will not do it.
    Refused,
    /// The aggregator knows no such blob.
    NotFound,
    /// The endpoint sent an answer that cannot be right (length, range, redirect loop).
    Wrong,
    /// The aggregator sent bytes that fail the caller's check.
    Corrupt,
    /// 413.
    TooLarge,
    /// The body could not be read on this side: no endpoint is to blame.
    Local,
}

impl Class {
    /// Whether the same endpoint may be asked again.
    pub(super) fn may_pass(self) -> bool {
        matches!(
            self,
            Class::Transient | Class::Throttled | Class::Token | Class::BrokenSend
        )
    }

    /// Whether the failure counts against the endpoint in later requests, too.
    pub(super) fn is_bad_sign(self) -> bool {
        match self {
            Class::Transient | Class::Throttled | Class::BrokenSend => true,
            Class::Wrong | Class::Corrupt => true,
            Class::Token | Class::Refused | Class::NotFound | Class::TooLarge => false,
            Class::Local => false,
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) class: Class,
    /// For people: HTTP status, Walrus' reason, an excerpt. Without secrets.
    pub(super) reason: String,
    /// The error of the HTTP library behind it. Without secrets.
    pub(super) cause: Option<Cause>,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(class: Class, reason: impl Into<String>) -> Self {
        Failure {
            class,
            reason: reason.into(),
            cause: None,
            retry_after: None,
        }
    }

    /// The cause for the metrics. A publisher answers 500 when its wallet is empty, as it does to
    /// many other failures, so its words decide.
    pub(super) fn cause(&self) -> tally::Cause {
        use tally::Cause;
        match self.class {
            Class::Transient | Class::Refused if tally::lacks_coins(&self.reason) => Cause::Wallet,
            Class::Transient => Cause::Transient,
            Class::Throttled => Cause::Throttled,
            Class::Token => Cause::Token,
            Class::BrokenSend => Cause::BrokenSend,
            Class::Refused => Cause::Refused,
            Class::NotFound => Cause::NotFound,
            Class::Wrong => Cause::WrongAnswer,
            Class::Corrupt => Cause::WrongBytes,
            Class::TooLarge => Cause::TooLarge,
            Class::Local => Cause::Local,
        }
    }
}

/// How far a request has come with one endpoint.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// Attempts counted against `max_retries`.
    asked: u32,
    /// All attempts.
    attempts: u32,
    excluded: bool,
    hold: Option<Instant>,
    last: Option<Failure>,
}

/// One request's walk over the endpoints.
pub(super) struct Rotation<'a> {
    endpoints: &'a Endpoints,
    policy: &'a Policy,
    order: Vec<usize>,
    slots: Vec<Slot>,
    retries_left: u32,
    waits: u32,
    /// Only endpoints that failed in this way last are asked again.
    repeat_only: Option<Class>,
    pub(super) retries: u64,
    pub(super) failovers: u64,
}

impl<'a> Rotation<'a> {
    pub(super) fn new(endpoints: &'a Endpoints, policy: &'a Policy) -> Self {
        Rotation {
            endpoints,
            policy,
            order: endpoints.order(),
            slots: vec![Slot::default(); endpoints.len()],
            retries_left: policy.max_retries,
            waits: 0,
            repeat_only: None,
            retries: 0,
            failovers: 0,
        }
    }

    /// Asks endpoints again only if their last failure was of `class`.
    pub(super) fn repeat_only(&mut self, class: Class) {
        self.repeat_only = Some(class);
    }

    fn may_repeat(&self, slot: &Slot) -> bool {
        let last = slot.last.as_ref().map(|failure| failure.class);
        !slot.excluded && (self.repeat_only.is_none() || last == self.repeat_only)
    }

    /// The endpoint to ask next, after the wait that the policy wants; `None` when the request has
    /// run out of attempts.
    pub(super) async fn next(&mut self) -> Option<(usize, &'a Endpoint)> {
        let index = match self.fresh() {
            Some(index) => {
                self.failovers += u64::from(self.slots.iter().any(|s| s.attempts > 0));
                index
            }
            None => self.again().await?,
        };
        self.slots[index].asked += 1;
        self.slots[index].attempts += 1;
        Some((index, self.endpoints.get(index)))
    }

    fn fresh(&self) -> Option<usize> {
        let fresh = |i: &&usize| !self.slots[**i].excluded && self.slots[**i].asked == 0;
        self.order.iter().find(fresh).copied()
    }

    /// Whether there is an endpoint that this request has not asked.
    pub(super) fn has_fresh(&self) -> bool {
        self.fresh().is_some()
    }

    /// The next endpoint that this request has not asked, to be asked beside another one.
    pub(super) fn take_fresh(&mut self) -> Option<usize> {
        let index = self.fresh()?;
        self.slots[index].asked += 1;
        self.slots[index].attempts += 1;
        Some(index)
    }

    async fn again(&mut self) -> Option<usize> {
        if self.retries_left == 0 {
            return None;
        }
        let now = Instant::now();
        let held = |slot: &Slot| slot.hold.map_or(Duration::ZERO, |h| h - now.min(h));
        let index = self
            .order
            .iter()
            .copied()
            .filter(|&i| self.may_repeat(&self.slots[i]))
            .min_by_key(|&i| (held(&self.slots[i]), self.slots[i].asked))?;
        self.retries_left -= 1;
        self.retries += 1;
        if let Some(failure) = &self.slots[index].last {
            self.endpoints.attempts.retried(failure.cause());
        }
        let mut wait = held(&self.slots[index]);
        if self.slots[index].asked > self.waits {
            self.waits += 1;
            wait = wait.max(self.policy.wait(self.waits));
        }
        tokio::time::sleep(wait).await;
        Some(index)
    }

    /// Records how an attempt failed.
    pub(super) fn failed(&mut self, index: usize, failure: Failure) {
        let slot = &mut self.slots[index];
        slot.excluded |= !failure.class.may_pass();
        slot.hold = failure
            .retry_after
            .map(|after| Instant::now() + after.min(self.policy.retry_after_max));
        slot.last = Some(failure);
    }

    /// Lets the endpoints whose last failure was of `class` be asked once more, for free.
    pub(super) fn readmit(&mut self, class: Class) {
        for slot in &mut self.slots {
            if slot.last.as_ref().is_some_and(|f| f.class == class) {
                slot.asked = 0;
                slot.excluded = false;
            }
        }
    }

    /// Endpoints whose last failure was of `class`.
    pub(super) fn count(&self, class: Class) -> usize {
        self.failures().filter(|(_, f)| f.class == class).count()
    }

    /// The last failure of each endpoint that was asked, by endpoint index.
    pub(super) fn failures(&self) -> impl Iterator<Item = (usize, &Failure)> {
        self.order
            .iter()
            .filter_map(|&i| self.slots[i].last.as_ref().map(|f| (i, f)))
    }

    /// The error of the whole request. It may be retried if at least one endpoint may change its
    /// mind. Its cause is the first one among the endpoints' last failures.
    pub(super) fn error(&self, kind: ErrorKind, what: impl fmt::Display) -> Error {
        let mut text = format!("{what} failed: ");
        for (n, (index, failure)) in self.failures().enumerate() {
            let attempts = self.slots[index].attempts;
            let plural = if attempts == 1 { "" } else { "s" };
            let gap = if n == 0 { "" } else { "; " };
            text += &format!(
                "{gap}{} ({attempts} attempt{plural}): {}",
                self.endpoints.get(index).shown(),
                failure.reason
            );
            if failure.cause() == tally::Cause::Wallet {
                text += " (its wallet lacks WAL, or SUI for gas: send some to its address)";
            }
        }
        let error = if self.failures().any(|(_, f)| f.class.may_pass()) {
            Error::retryable(kind, text)
        } else {
            Error::new(kind, text)
        };
        error.with_source(self.failures().find_map(|(_, f)| f.cause.clone()))
    }
}

/// The wait that a `Retry-After` header asks for: seconds, or an HTTP date (a past one is zero).
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(
            value.parse().unwrap_or(u32::MAX.into()),
        ));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, want) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(
                parse_retry_after(text, now),
                want.map(Duration::from_secs),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_words_about_an_empty_wallet_are_known() {
        let cause = |class, reason: &str| Failure::new(class, reason).cause();
        for said in [
            "HTTP 500: could not find WAL coins with sufficient balance",
            "HTTP 500: InsufficientGas in command 0",
        ] {
            assert_eq!(cause(Class::Transient, said), tally::Cause::Wallet);
        }
        assert_eq!(
            cause(Class::Transient, "HTTP 500: busy"),
            tally::Cause::Transient
        );
        let endpoints = Endpoints::parse("k", &["http://h".to_owned()], true, Duration::ZERO);
        let endpoints = endpoints.unwrap();
        let policy = policy();
        let mut rotation = Rotation::new(&endpoints, &policy);
        rotation.failed(
            0,
            Failure::new(Class::Transient, "HTTP 500: insufficient funds"),
        );
        let error = rotation.error(ErrorKind::Walrus, "storing").to_string();
        assert!(error.contains("send some to its address"), "{error}");
        // A 429 is about load.
        let load = cause(Class::Throttled, "no sufficient balance of permits");
        assert_eq!(load, tally::Cause::Throttled);
    }

    fn policy() -> Policy {
        Policy {
            max_retries: 3,
            backoff_base: Duration::from_millis(200),
            backoff_max: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(30),
        }
    }

    #[test]
    fn backoff_doubles_up_to_the_cap() {
        let policy = policy();
        let ceilings: Vec<_> = [1, 2, 3, 4, 40, u32::MAX]
            .map(|round| policy.ceiling(round).as_millis())
            .into();
        assert_eq!(ceilings, [200, 400, 800, 1000, 1000, 1000]);
        for _ in 0..100 {
            assert!(policy.wait(1) <= policy.ceiling(1));
        }
    }
}
