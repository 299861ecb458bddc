//! The metrics of a client's endpoints, and the spans of attempts at them.

use super::endpoints::{Endpoint, Endpoints};
use super::retry::Failure;
use super::tally::CAUSES;
use crate::measure::Sample;
use crate::trace::{self, Span};

/// Everything about the endpoints of one kind. `role` is "publisher" or "aggregator".
pub(super) fn samples(role: &'static str, endpoints: &Endpoints) -> Vec<Sample> {
    let mut all = Vec::new();
    let attempts = &endpoints.attempts;
    let time = match role {
        "publisher" => "upload_attempt_duration_seconds",
        _ => "read_attempt_duration_seconds",
    };
    for (outcome, times) in [("well", &attempts.well), ("failed", &attempts.failed)] {
        all.push(Sample::histogram(time, times).with("outcome", outcome));
    }
    for (cause, count) in CAUSES.iter().zip(attempts.retries.counts()) {
        let sample = Sample::number("endpoint_retries", count as f64);
        all.push(sample.with("role", role).with("cause", *cause));
    }
    for host in hosts(endpoints) {
        let labelled = |name, value: f64| {
            let sample = Sample::number(name, value).with("role", role);
            sample.with("host", host.name.clone())
        };
        all.push(labelled("endpoint_answers", host.answered as f64));
        for (cause, count) in CAUSES.iter().zip(host.failed) {
            let sample = labelled("endpoint_failures", count as f64);
            all.push(sample.with("cause", *cause));
        }
        all.push(labelled(
            "endpoint_healthy",
            f64::from(u8::from(host.healthy)),
        ));
        if let Some(pace) = host.pace {
            all.push(labelled("endpoint_answer_seconds", pace));
        }
        if role == "publisher" {
            let empty = f64::from(u8::from(host.wallet_empty));
            all.push(labelled("publisher_wallet_empty", empty));
        }
    }
    all
}

/// The endpoints of one kind at one host.
struct Host {
    name: String,
    answered: u64,
    failed: [u64; CAUSES.len()],
    healthy: bool,
    pace: Option<f64>,
    wallet_empty: bool,
}

/// The endpoints by their hosts: base URLs may differ by their paths alone, and these may hold
/// keys.
fn hosts(endpoints: &Endpoints) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for index in 0..endpoints.len() {
        let endpoint = endpoints.get(index);
        let healthy = endpoints.is_healthy(index);
        let tally = &endpoint.tally;
        let failed = tally.failures.counts();
        let empty = tally.is_wallet_empty();
        let name = host_of(endpoint);
        match hosts.iter_mut().find(|host| host.name == name) {
            Some(host) => {
                host.answered += tally.answers();
                let sums = host.failed.iter_mut().zip(failed);
                sums.for_each(|(sum, count)| *sum += count);
                host.healthy |= healthy;
                host.pace = host.pace.or(endpoint.pace());
                host.wallet_empty |= empty;
            }
            None => hosts.push(Host {
                name,
                answered: tally.answers(),
                failed,
                healthy,
                pace: endpoint.pace(),
                wallet_empty: empty,
            }),
        }
    }
    hosts
}

/// A span of an attempt at an endpoint, if the call is traced.
pub(super) fn attempt_span(name: &'static str, endpoint: &Endpoint) -> Option<Span> {
    trace::begin(name).map(|span| span.with("host", &*host_of(endpoint)))
}

/// Ends the span of an attempt.
pub(super) fn end_span<T>(span: Option<Span>, outcome: &Result<T, Failure>) {
    if let Some(span) = span {
        let reason = outcome.as_ref().err().map(|failure| &failure.reason);
        span.end(reason.map(|reason| reason as _));
    }
}

/// Host and port of an endpoint.
fn host_of(endpoint: &Endpoint) -> String {
    let shown = endpoint.shown();
    let host = shown.split("://").nth(1).unwrap_or_default();
    host.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Value;
    use crate::walrus::tally::Cause;
    use std::time::Duration;

    #[test]
    fn endpoints_at_one_host_are_one_sample() {
        let texts = ["http://h:1/key-one", "http://h:1/key-two", "http://i"].map(String::from);
        let endpoints = Endpoints::parse("k", &texts, false, Duration::from_secs(1)).unwrap();
        endpoints.get(0).tally.answered();
        endpoints.get(1).tally.answered();
        endpoints.get(1).tally.failed(Cause::Wallet);
        endpoints.attempts.retried(Cause::Wallet);
        let all = samples("publisher", &endpoints);
        let find = |name: &str, label: &str| -> Vec<f64> {
            let named = all.iter().filter(|s| s.name == name);
            let of = named.filter(|s| s.labels.iter().any(|(_, value)| value == label));
            of.map(|s| match s.value {
                Value::Number(n) => n,
                _ => unreachable!(),
            })
            .collect()
        };
        assert_eq!(find("endpoint_answers", "h:1"), [2.0]);
        assert_eq!(find("endpoint_answers", "i"), [0.0]);
        assert_eq!(find("endpoint_failures", "wallet"), [1.0, 0.0]);
        assert_eq!(find("endpoint_retries", "wallet"), [1.0]);
        assert_eq!(find("publisher_wallet_empty", "h:1"), [1.0]);
        assert_eq!(find("publisher_wallet_empty", "i"), [0.0]);
        endpoints.get(1).tally.answered();
        let all = samples("publisher", &endpoints);
        let empty = all.iter().filter(|s| s.name == "publisher_wallet_empty");
        assert!(empty.clone().count() == 2);
        assert!(empty.clone().all(|s| s.value == Value::Number(0.0)));
    }
}
