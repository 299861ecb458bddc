//! Publishers and aggregators: their base URLs, how they did lately, which body sizes they take.
//!
//! **Order.** A request asks healthy endpoints first, then the others, the least bad first; if all
//! are down they are still asked. Among healthy ones, aggregators are *sticky*: the first one
//! configured is used while it is well (its caches are warm, and operators list the nearest first).
//! Publishers take turns (*round robin*), because a stock publisher sheds load beyond 8 uploads at
//! a time.
//!
//! **Health.** Each failure that is the endpoint's own (no connection, time limit, 429, 5xx, wrong
//! bytes) adds 1 to its penalty, which halves every `cool_down` and drops to a quarter with each
//! success. Below one half the endpoint counts as healthy. So a single failure is forgotten after
//! one `cool_down`, a series of failures after a few.
//!
//! **Pace.** How long an aggregator takes to begin its answer is remembered as a moving mean and
//! deviation. One that was overtaken by another, asked later, counts as failed by three quarters,
//! and every request that still waits for it is told so.
//!
//! **Size limits.** No endpoint tells the largest body it takes: 10 MiB on a stock publisher, 1 MiB
//! behind a stock nginx, anything elsewhere. A refusal of N bytes teaches a cap: 10 MiB if N was
//! above that, else N/2 and a little for what a pack has around its blocks, so that half of the
//! blocks fit; but never below the largest body it has taken. A learnt cap is forgotten after an
//! hour (ten minutes if it was only guessed from two broken connections in a row), because
//! operators raise limits and weak networks recover. A publisher that does not even answer a small
//! request then is away, which teaches nothing.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use reqwest::header::HeaderValue;
use tokio::sync::futures::Notified;
use tokio::sync::Notify;
use tokio::time::Instant;
use url::Url;

use super::crowd::Crowd;
use super::tally::{Attempts, Tally};
use crate::error::{Error, ErrorKind, Result};

/// The largest body that a stock publisher takes (bytes).
const STOCK_LIMIT: u64 = 10 << 20;

/// Half of the blocks of a pack are a pack of half its length and at most so much more (bytes).
const AROUND: u64 = 1 << 10;

/// How long a 413 is remembered.
const CERTAIN_FOR: Duration = Duration::from_secs(3600);

/// How long a limit is remembered that was guessed from a broken connection.
const GUESSED_FOR: Duration = Duration::from_secs(600);

const HEALTHY_BELOW: f64 = 0.5;
const WORST_PENALTY: f64 = 32.0;

/// One publisher or aggregator.
pub(super) struct Endpoint {
    /// Base URL without user info and trailing slash. Its path may hold an API key.
    base: String,
    /// The base URL for people: without the parts that may be a key.
    shown: String,
    /// `Authorization: Basic …` of the user info, if there was some.
    basic: Option<HeaderValue>,
    /// Secrets, which must never be shown.
    secrets: Vec<String>,
    state: Mutex<Health>,
    /// Wakes the requests that wait for an answer of this endpoint when it was overtaken.
    overtaken: Notify,
    /// The reads that it is asked for.
    pub(super) crowd: Crowd,
    /// The attempts so far.
    pub(super) tally: Tally,
}

/// How long an answer may take to begin before another endpoint is asked too.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(2);
const PATIENCE_LEAST: Duration = Duration::from_millis(50);
const PATIENCE_MOST: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Health {
    /// Time until an answer begins: mean and mean deviation (seconds).
    pace: Option<(f64, f64)>,
    penalty: f64,
    penalty_at: Option<Instant>,
    accepted: u64,
    refused: Option<Refusal>,
    /// The shortest body during which the connection broke lately (bytes), and when one last did.
    broke: Option<(u64, Instant)>,
}

#[derive(Clone, Copy)]
struct Refusal {
    len: u64,
    cap: u64,
    certain: bool,
    until: Instant,
}

impl Endpoint {
    /// Parses the base URL `text` of configuration key `key`.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self> {
        let text = text.trim();
        let wrong = |why: &str| {
            let shown = redact_url(text);
            Error::new(ErrorKind::Config, format!("{key}: {why}: {shown:?}"))
        };
        let mut url = Url::parse(text)
            .map_err(|e| wrong(&format!("not an http:// or https:// URL ({e})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("the URL must begin with http:// or https://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("the URL names no host"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a base URL takes no ?query and no #fragment"));
        }
        let mut secrets = Vec::new();
        let mut basic = None;
        if !url.username().is_empty() || url.password().is_some() {
            let user = percent_decode_str(url.username()).decode_utf8_lossy();
            let password = percent_decode_str(url.password().unwrap_or("")).decode_utf8_lossy();
            let pair = STANDARD.encode(format!("{user}:{password}"));
            let mut value = HeaderValue::from_str(&format!("Basic {pair}"))
                .map_err(|_| wrong("user info that makes no header"))?;
            value.set_sensitive(true);
            basic = Some(value);
            secrets.extend([
                pair,
                url.password().unwrap_or("").to_string(),
                password.into_owned(),
                url.username().to_string(),
                user.into_owned(),
            ]);
            secrets.retain(|s| !s.is_empty());
            secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
            let cleared = url.set_username("").and_then(|()| url.set_password(None));
            cleared.map_err(|()| wrong("user info that cannot be taken apart"))?;
        }
        secrets.extend(keys_in(url.path()).map(String::from));
        let base = url.as_str().trim_end_matches('/').to_string();
        Ok(Endpoint {
            shown: redact_url(&base),
            base,
            basic,
            secrets,
            state: Mutex::default(),
            overtaken: Notify::new(),
            crowd: Crowd::default(),
            tally: Tally::default(),
        })
    }

    /// The base URL for people: no user info, no part of the path that may be a key.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// The base URL as the endpoint's identity within this process. Never shown.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// `path_and_query` (with its leading slash) under this endpoint.
    pub(super) fn url(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.base)
    }

    /// `Authorization` header made of the URL's user info.
    pub(super) fn basic(&self) -> Option<&HeaderValue> {
        self.basic.as_ref()
    }

    /// `text` with every secret of this endpoint (and `token`) blotted out: servers and proxies
    /// like to quote requests in their error pages. A text that was cut off within a secret loses
    /// that piece too.
    pub(super) fn redact(&self, text: &str, token: Option<&str>) -> String {
        const BLOT: &str = "[redacted]";
        let secrets = || {
            token
                .into_iter()
                .chain(self.secrets.iter().map(String::as_str))
        };
        let mut text = text.to_string();
        for secret in secrets() {
            text = text.replace(secret, BLOT);
        }
        for secret in secrets() {
            let cut = (3..secret.len())
                .rev()
                .find(|&len| secret.get(..len).is_some_and(|piece| text.ends_with(piece)));
            if let Some(len) = cut {
                text.truncate(text.len() - len);
                text.push_str(BLOT);
            }
        }
        text
    }

    fn penalty(&self, now: Instant, half_life: Duration) -> f64 {
        let state = self.state.lock();
        decayed(&state, now, half_life)
    }

    fn change_penalty(&self, half_life: Duration, change: impl FnOnce(f64) -> f64) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.penalty = change(decayed(&state, now, half_life)).min(WORST_PENALTY);
        state.penalty_at = Some(now);
    }

    /// Notes how long an answer took to begin.
    pub(super) fn answered_in(&self, time: Duration) {
        let time = time.as_secs_f64();
        let mut state = self.state.lock();
        // The weights of TCP's estimate of a round trip (RFC 6298).
        state.pace = Some(match state.pace {
            None => (time, time / 2.0),
            Some((mean, deviation)) => (
                mean + (time - mean) / 8.0,
                deviation + ((time - mean).abs() - deviation) / 4.0,
            ),
        });
    }

    /// How long an answer takes to begin, on average (seconds); `None` before the first.
    pub(super) fn pace(&self) -> Option<f64> {
        self.state.lock().pace.map(|(mean, _)| mean)
    }

    /// How long to wait for an answer to begin before another endpoint is asked too.
    pub(super) fn patience(&self) -> Duration {
        let pace = self.state.lock().pace;
        pace.map_or(PATIENCE_UNKNOWN, |(mean, deviation)| {
            let usual = Duration::from_secs_f64(mean + 4.0 * deviation);
            usual.clamp(PATIENCE_LEAST, PATIENCE_MOST)
        })
    }

    /// Ends when another endpoint has overtaken this one after this call.
    pub(super) fn overtaken(&self) -> Notified<'_> {
        self.overtaken.notified()
    }

    /// Notes that a body of `len` bytes was taken.
    pub(super) fn accepted(&self, len: u64) {
        let mut state = self.state.lock();
        state.accepted = state.accepted.max(len);
        state.broke.take_if(|(broke, _)| *broke <= len);
        let accepted = state.accepted;
        match &mut state.refused {
            Some(refusal) if len >= refusal.len => state.refused = None,
            Some(refusal) => refusal.cap = refusal.cap.max(accepted),
            None => {}
        }
    }

    /// Notes that a body of `len` bytes was refused for its size (`certain`: with a 413).
    pub(super) fn refused(&self, len: u64, certain: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        // An earlier success with a body of at least this length proves nothing any more.
        if state.accepted >= len {
            state.accepted = 0;
        }
        if state.refused.is_some_and(|r| r.until > now && r.len < len) {
            return;
        }
        let guess = if len > STOCK_LIMIT {
            STOCK_LIMIT
        } else {
            len / 2 + AROUND.min(len / 4)
        };
        state.refused = Some(Refusal {
            len,
            cap: guess.max(state.accepted),
            certain,
            until: now + if certain { CERTAIN_FOR } else { GUESSED_FOR },
        });
    }

    /// Notes that the connection broke while a body of `len` bytes was sent. Returns whether that
    /// happened before, and no body as long was taken since: once alone, the publisher may just
    /// have closed an idle connection.
    pub(super) fn broke(&self, len: u64) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        let before = state.broke.filter(|(_, at)| now < *at + GUESSED_FOR);
        let shortest = before.map_or(len, |(before, _)| before.min(len));
        state.broke = Some((shortest, now));
        before.is_some()
    }

    /// The learnt cap (bytes).
    fn cap(&self, now: Instant) -> u64 {
        let refused = self.state.lock().refused;
        refused
            .filter(|r| r.until > now)
            .map_or(u64::MAX, |r| r.cap)
    }

    /// Whether this publisher is known to answer 413 to `len` bytes.
    pub(super) fn surely_refuses(&self, len: u64) -> bool {
        let refused = self.state.lock().refused;
        refused.is_some_and(|r| r.certain && r.until > Instant::now() && len >= r.len)
    }
}

fn decayed(state: &Health, now: Instant, half_life: Duration) -> f64 {
    let Some(at) = state.penalty_at else {
        return 0.0;
    };
    let age = now.saturating_duration_since(at).as_secs_f64();
    let half_life = half_life.as_secs_f64();
    if half_life <= 0.0 {
        return 0.0;
    }
    state.penalty * (-age / half_life).exp2()
}

/// Keeps requests that are asked of two endpoints at once to one in ten.
pub(super) struct Hedging {
    /// Tenths of a request.
    credit: AtomicU32,
}

impl Default for Hedging {
    fn default() -> Self {
        // One request is free: none has been counted yet.
        Hedging {
            credit: AtomicU32::new(HEDGE_PRICE),
        }
    }
}

const HEDGE_PRICE: u32 = 10;
const HEDGE_CREDIT: u32 = 100;

impl Hedging {
    /// Counts a request that is made.
    pub(super) fn asked(&self) {
        let more = |credit: u32| (credit < HEDGE_CREDIT).then_some(credit + 1);
        let _ = self
            .credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether one more may be asked of a second endpoint; if so, it counts.
    pub(super) fn allows(&self) -> bool {
        let pay = |credit: u32| credit.checked_sub(HEDGE_PRICE);
        let paid = self
            .credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        paid.is_ok()
    }
}

/// All endpoints of one kind.
pub(super) struct Endpoints {
    list: Vec<Endpoint>,
    turn: Option<AtomicUsize>,
    cool_down: Duration,
    pub(super) attempts: Attempts,
}

impl Endpoints {
    /// `round_robin`: healthy endpoints take turns; otherwise the first healthy one is used.
    pub(super) fn parse(
        key: &str,
        texts: &[String],
        round_robin: bool,
        cool_down: Duration,
    ) -> Result<Self> {
        let list = texts.iter().map(|text| Endpoint::parse(key, text));
        Ok(Endpoints {
            list: list.collect::<Result<_>>()?,
            turn: round_robin.then(AtomicUsize::default),
            cool_down,
            attempts: Attempts::default(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, index: usize) -> &Endpoint {
        &self.list[index]
    }

    /// The order in which one request asks.
    pub(super) fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let mut order: Vec<_> = self
            .list
            .iter()
            .map(|endpoint| {
                let penalty = endpoint.penalty(now, self.cool_down);
                if penalty < HEALTHY_BELOW {
                    0.0
                } else {
                    penalty
                }
            })
            .enumerate()
            .collect();
        if let (Some(turn), false) = (&self.turn, order.is_empty()) {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let n = order.len();
            order.rotate_left(turn % n);
        }
        order.sort_by(|a, b| a.1.total_cmp(&b.1));
        order.into_iter().map(|(index, _)| index).collect()
    }

    /// Whether it is asked before those that failed lately.
    pub(super) fn is_healthy(&self, index: usize) -> bool {
        self.list[index].penalty(Instant::now(), self.cool_down) < HEALTHY_BELOW
    }

    pub(super) fn succeeded(&self, index: usize) {
        self.list[index].change_penalty(self.cool_down, |penalty| penalty / 4.0);
    }

    pub(super) fn failed(&self, index: usize) {
        self.list[index].change_penalty(self.cool_down, |penalty| penalty + 1.0);
    }

    /// Another endpoint answered first although it was asked later.
    pub(super) fn was_slow(&self, index: usize) {
        self.list[index].change_penalty(self.cool_down, |penalty| penalty + 0.75);
        self.list[index].overtaken.notify_waiters();
    }

    /// The largest body worth sending: the largest cap among the healthy endpoints (among all, if
    /// none is healthy).
    pub(super) fn size_limit(&self) -> u64 {
        let now = Instant::now();
        let healthy = |e: &&Endpoint| e.penalty(now, self.cool_down) < HEALTHY_BELOW;
        let caps = self.list.iter().filter(healthy).map(|e| e.cap(now)).max();
        caps.or_else(|| self.list.iter().map(|e| e.cap(now)).max())
            .unwrap_or(u64::MAX)
    }
}

/// The parts of a path that may be a key: providers of aggregators and publishers put one into it.
fn keys_in(path: &str) -> impl Iterator<Item = &str> {
    /// Names of services and versions are shorter.
    const SHORTEST: usize = 16;
    path.split(['/', '?', '#', '&', '=', ';'])
        .filter(|part| part.len() >= SHORTEST)
}

/// A URL (well-formed or not) without its user info, and without parts of its path or query that
/// may be a key.
pub(super) fn redact_url(text: &str) -> String {
    let text = without_user(text);
    let host = text.find("://").map_or(0, |at| at + 3);
    let path = text[host..].find(['/', '?', '#']);
    let Some(path) = path.map(|at| host + at) else {
        return text;
    };
    let mut shown = text[path..].to_string();
    let mut keys: Vec<&str> = keys_in(&text[path..]).collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.len()));
    for key in keys {
        shown = shown.replace(key, "[redacted]");
    }
    format!("{}{shown}", &text[..path])
}

/// A URL (well-formed or not) without its user info.
fn without_user(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let end = text[start..]
        .find(['/', '?', '#'])
        .map_or(text.len(), |at| start + at);
    // A password with an unescaped slash reaches beyond `end`; look for the last @ then.
    let at = match text[start..end].rfind('@') {
        Some(at) => Some(at),
        None => text[start..].rfind('@'),
    };
    match at {
        Some(at) => format!("{}[redacted]{}", &text[..start], &text[start + at..]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn endpoints(n: usize, round_robin: bool) -> Endpoints {
        let urls: Vec<_> = (0..n).map(|i| format!("http://h{i}/")).collect();
        Endpoints::parse("k", &urls, round_robin, Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn base_urls() {
        for (text, base) in [
            ("http://a", "http://a"),
            (
                " https://A.example:8080/x/y// ",
                "https://a.example:8080/x/y",
            ),
            ("http://user:p%40ss@h/", "http://h"),
            ("http://[::1]:3/", "http://[::1]:3"),
        ] {
            assert_eq!(Endpoint::parse("k", text).unwrap().shown(), base);
        }
        for text in [
            "",
            "a.example",
            "localhost:31415",
            "ftp://a",
            "http://",
            "http://u:hunter2@",
            "http://u:hunter2@h:99999",
            "http://u:hunter2@h/?q",
            "http://u:hun/hunter2@h#f",
            "u:hunter2@h",
            "postgres://u:hunter2@h",
        ] {
            let error = Endpoint::parse("aggregatorURL", text).err().expect(text);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().starts_with("aggregatorURL: "), "{error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn user_info_becomes_a_header_and_is_blotted_out() {
        let endpoint = Endpoint::parse("k", "http://us%65r:p%40ss@h/").unwrap();
        let pair = STANDARD.encode("user:p@ss");
        assert_eq!(*endpoint.basic().unwrap(), format!("Basic {pair}"));
        let echoed = format!("you sent Basic {pair}, user=user, p@ss or p%40ss, tok");
        let shown = endpoint.redact(&echoed, Some("tok"));
        for secret in [&pair, "p@ss", "p%40ss", "tok", "user:"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let endpoint = Endpoint::parse("k", "https://h/rpc/0123456789abcdef0123/walrus").unwrap();
        assert_eq!(endpoint.shown(), "https://h/rpc/[redacted]/walrus");
        assert_eq!(
            endpoint.url("/v1"),
            "https://h/rpc/0123456789abcdef0123/walrus/v1"
        );
        let page = endpoint.redact("no /rpc/0123456789abcdef0123/walrus/v1/blobs here", None);
        assert_eq!(page, "no /rpc/[redacted]/walrus/v1/blobs here");
        let error = Endpoint::parse(
            "k",
            "http://h/0123456789abcdef0123?key=fedcba98765432100000",
        );
        let text = error.err().unwrap().to_string();
        assert!(
            !text.contains("0123456789") && !text.contains("fedcba"),
            "{text}"
        );
        let endpoint = Endpoint::parse("k", "http://user:p%40ss@h").unwrap();
        assert_eq!(
            endpoint.redact("it was Bearer tok", Some("token")),
            "it was Bearer [redacted]"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn health_is_remembered_and_fades() {
        let sticky = endpoints(3, false);
        assert_eq!(sticky.order(), [0, 1, 2]);
        sticky.failed(0);
        assert_eq!(sticky.order(), [1, 2, 0]);
        sticky.failed(1);
        sticky.failed(1);
        assert_eq!(sticky.order(), [2, 0, 1]);
        sticky.failed(2);
        sticky.failed(2);
        sticky.failed(2);
        assert_eq!(sticky.order(), [0, 1, 2], "all down: least bad first");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(sticky.order(), [0, 1, 2]);
        sticky.succeeded(1);
        assert_eq!(sticky.order(), [0, 1, 2]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(sticky.order(), [0, 1, 2], "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_follows_the_pace() {
        let two = endpoints(2, false);
        let first = two.get(0);
        assert_eq!(first.patience(), PATIENCE_UNKNOWN);
        for _ in 0..50 {
            first.answered_in(Duration::from_millis(200));
        }
        let patience = first.patience().as_millis();
        assert!((200..210).contains(&patience), "{patience}");
        first.answered_in(Duration::from_millis(600));
        assert!(first.patience() > Duration::from_millis(500), "it varies");
        two.get(1).answered_in(Duration::from_micros(10));
        assert_eq!(two.get(1).patience(), PATIENCE_LEAST);
        two.get(1).answered_in(Duration::from_secs(600));
        assert_eq!(two.get(1).patience(), PATIENCE_MOST);
        two.was_slow(0);
        assert_eq!(two.order(), [1, 0]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(two.order(), [0, 1], "another chance");
    }

    #[test]
    fn one_request_in_ten_may_be_hedged() {
        let hedging = Hedging::default();
        assert!(hedging.allows());
        assert!(!hedging.allows());
        let mut hedged = 0;
        for _ in 0..1000 {
            hedging.asked();
            hedged += u32::from(hedging.allows());
        }
        assert_eq!(hedged, 100);
        for _ in 0..100_000 {
            hedging.asked();
        }
        let saved = (0..1000).filter(|_| hedging.allows()).count();
        assert_eq!(saved, 10, "not more than so many at a time");
    }

    #[test]
    fn healthy_publishers_take_turns() {
        let turns = endpoints(3, true);
        assert_eq!(turns.order(), [0, 1, 2]);
        assert_eq!(turns.order(), [1, 2, 0]);
        turns.failed(2);
        assert_eq!(turns.order(), [0, 1, 2]);
        assert_eq!(turns.order(), [0, 1, 2]);
        assert_eq!(turns.order(), [1, 0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn learnt_limits() {
        let one = endpoints(1, true);
        let publisher = one.get(0);
        assert_eq!(one.size_limit(), u64::MAX);
        publisher.refused(64 * MIB, true);
        assert_eq!(one.size_limit(), 10 * MIB);
        assert!(publisher.surely_refuses(64 * MIB));
        assert!(!publisher.surely_refuses(64 * MIB - 1));
        publisher.refused(10 * MIB, true);
        assert_eq!(one.size_limit(), 5 * MIB + AROUND);
        publisher.accepted(7 * MIB);
        assert_eq!(one.size_limit(), 7 * MIB);
        publisher.refused(80 * MIB, true);
        assert_eq!(
            one.size_limit(),
            7 * MIB,
            "a larger refusal teaches nothing"
        );
        publisher.refused(8 * MIB, false);
        assert_eq!(one.size_limit(), 7 * MIB);
        publisher.accepted(9 * MIB);
        assert_eq!(one.size_limit(), u64::MAX, "it takes what it refused");
        publisher.refused(2 * MIB, false);
        assert!(!publisher.surely_refuses(2 * MIB));
        assert_eq!(one.size_limit(), MIB + AROUND);
        tokio::time::advance(GUESSED_FOR).await;
        assert_eq!(one.size_limit(), u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn one_broken_connection_is_no_limit() {
        let one = endpoints(1, true);
        let publisher = one.get(0);
        assert!(!publisher.broke(64 * MIB));
        assert!(publisher.broke(64 * MIB), "twice in a row");
        publisher.accepted(32 * MIB);
        assert!(publisher.broke(64 * MIB), "what it took was shorter");
        publisher.accepted(64 * MIB);
        assert!(!publisher.broke(64 * MIB), "it has taken such a body");
        tokio::time::advance(GUESSED_FOR).await;
        assert!(!publisher.broke(64 * MIB), "long ago");
    }

    #[test]
    fn the_most_generous_healthy_publisher_counts() {
        let two = endpoints(2, true);
        two.get(0).refused(64 * MIB, true);
        assert_eq!(two.size_limit(), u64::MAX);
        two.failed(1);
        assert_eq!(two.size_limit(), 10 * MIB);
        two.failed(0);
        assert_eq!(two.size_limit(), u64::MAX);
    }
}
