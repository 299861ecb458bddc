//! One HTTP exchange: time limits that follow progress, bounded bodies, error excerpts.
//!
//! **Time limits.** `request_timeout` limits a *standstill*, not a whole transfer, so that a slow
//! link can finish a large pack. An attempt fails when
//!
//! - no connection stands after `connect_timeout`;
//! - no piece (64 KiB) of the request body could be handed on for `request_timeout`, or the average
//!   since the start is below 16 KiB/s (after a grace of `request_timeout`);
//! - after the whole request was handed on, no answer begins within `request_timeout` plus an
//!   allowance: for a store 1 s per 128 KiB (bytes that the kernel has taken but not sent yet must
//!   still go out, then a publisher encodes, registers, and spreads the slivers before it answers;
//!   10 MiB get 140 s by default), for a range read 1 s per MiB;
//! - no byte of the answer comes for `request_timeout`, or the average is below 16 KiB/s (after the
//!   same grace): a server that drips bytes does not hold a reader for ever.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::Mutex;
use reqwest::header::{
    HeaderMap, CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use url::{Host, Url};

use super::endpoints::{redact_url, Endpoint};
use super::retry::{parse_retry_after, Class, Failure};
use crate::buffer::Buffer;
pub(super) use crate::error::one_line;
use crate::error::Cause;

/// Size of the pieces in which a body is handed on (bytes).
pub(super) const PIECE: usize = 64 << 10;

/// Slowest average transfer that is put up with (bytes per second).
const MIN_RATE: u64 = 16 << 10;

/// Publisher's work: bytes per second of allowance.
const STORE_RATE: u64 = 128 << 10;

/// Aggregator's work: bytes per second of allowance.
const READ_RATE: u64 = 1 << 20;

/// How much of an error answer is read (bytes). More than the longest token, so that one quoted at
/// the beginning is complete and can be blotted out.
const ERROR_BODY: u64 = 64 << 10;

/// How long reading an error answer may take.
const ERROR_BODY_TIME: Duration = Duration::from_secs(2);

/// Longest excerpt of a foreign text in an error message (characters).
const EXCERPT: usize = 200;

fn at_rate(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}

/// How far the sending of a request has come; shared by the body stream and the time limit.
pub(super) struct Progress {
    timeout: Duration,
    len: u64,
    allowance: Duration,
    started: Instant,
    sent: Mutex<(u64, Instant)>,
    /// Why the body could not be read.
    unreadable: Mutex<Option<String>>,
}

impl Progress {
    /// An upload of `len` bytes.
    pub(super) fn upload(timeout: Duration, len: u64) -> Arc<Self> {
        Progress::new(timeout, len, at_rate(len, STORE_RATE))
    }

    /// A read of `len` bytes (0 = not known).
    pub(super) fn download(timeout: Duration, len: u64) -> Arc<Self> {
        Progress::new(timeout, 0, at_rate(len, READ_RATE))
    }

    fn new(timeout: Duration, len: u64, allowance: Duration) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Progress {
            timeout,
            len,
            allowance,
            started: now,
            sent: Mutex::new((0, now)),
            unreadable: Mutex::default(),
        })
    }

    /// The body could not be read: the request breaks off.
    pub(super) fn unreadable(&self, error: &io::Error) {
        *self.unreadable.lock() = Some(error.to_string());
    }

    /// A piece of `len` bytes was handed on.
    pub(super) fn sent(&self, len: usize) {
        let mut sent = self.sent.lock();
        sent.0 += len as u64;
        sent.1 = Instant::now();
    }

    /// Whether the whole body was handed on (the kernel may still be sending it).
    pub(super) fn all_sent(&self) -> bool {
        self.sent.lock().0 >= self.len
    }

    /// Waits for `answer`, but not longer than the rules allow.
    pub(super) async fn limit<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            failure = self.expired() => Err(failure),
        }
    }

    async fn expired(&self) -> Failure {
        loop {
            let (sent, last) = *self.sent.lock();
            let sending = sent < self.len;
            let limit = if sending {
                let stalled = last + self.timeout;
                let slow = self.started + self.timeout + at_rate(sent, MIN_RATE);
                stalled.min(slow)
            } else {
                last + self.timeout + self.allowance
            };
            if Instant::now() >= limit {
                let waited = self.started.elapsed().as_secs_f64();
                let what = if sending {
                    format!("sent only {sent} of {} bytes in {waited:.1} s", self.len)
                } else {
                    format!("no answer within {waited:.1} s")
                };
                return Failure::new(Class::Transient, format!("timed out: {what}"));
            }
            tokio::time::sleep_until(limit).await;
        }
    }
}

/// Reads the body of an answer piece by piece, under the time limits.
pub(super) struct BodyReader {
    response: Response,
    timeout: Duration,
    started: Instant,
    received: u64,
    /// Told how many bytes were received.
    watched: Option<Arc<AtomicU64>>,
}

impl BodyReader {
    pub(super) fn new(response: Response, timeout: Duration) -> Self {
        BodyReader {
            response,
            timeout,
            started: Instant::now(),
            received: 0,
            watched: None,
        }
    }

    /// Has `received` follow the bytes as they come.
    pub(super) fn watch(&mut self, received: &Arc<AtomicU64>) {
        self.watched = Some(Arc::clone(received));
    }

    /// `Content-Length`, if there is a well-formed one.
    pub(super) fn announced(&self) -> Option<u64> {
        let value = self.response.headers().get(CONTENT_LENGTH)?;
        value.to_str().ok()?.trim().parse().ok()
    }

    /// Whether the end of the body can be told from a broken connection.
    pub(super) fn is_delimited(&self) -> bool {
        let headers = self.response.headers();
        headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next piece; `None` at the end, which is an error if it comes before the announced one.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let slow = self.started + self.timeout + at_rate(self.received, MIN_RATE);
        let limit = slow.min(Instant::now() + self.timeout);
        match tokio::time::timeout_at(limit, self.response.chunk()).await {
            Ok(Ok(Some(piece))) => {
                self.received += piece.len() as u64;
                if let Some(watched) = &self.watched {
                    watched.store(self.received, Relaxed);
                }
                Ok(Some(piece))
            }
            Ok(Ok(None)) => match self.announced() {
                Some(announced) if announced != self.received => Err(self.cut("the body ended")),
                _ => Ok(None),
            },
            Ok(Err(error)) => {
                let (text, cause) = describe(error);
                let failure = self.cut(&text);
                Err(Failure { cause, ..failure })
            }
            Err(_) => Err(self.cut("timed out")),
        }
    }

    fn cut(&self, why: &str) -> Failure {
        let of = self
            .announced()
            .map_or(String::new(), |n| format!(" of {n}"));
        let received = self.received;
        Failure::new(
            Class::Transient,
            format!("answer cut after {received}{of} bytes: {why}"),
        )
    }

    /// The whole body, if it is not longer than `max` bytes.
    pub(super) async fn collect(&mut self, max: u64) -> Result<Bytes, Failure> {
        let too_long = |len: &dyn std::fmt::Display| {
            let text = format!("answer of {len} bytes, more than the {max} allowed");
            Failure::new(Class::Refused, text)
        };
        let announced = self.announced().unwrap_or(0);
        if announced > max {
            return Err(too_long(&announced));
        }
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 == announced && announced > 0 {
            self.next().await?;
            // A part of a connection's buffer, which is several times as long.
            return Ok(Bytes::copy_from_slice(&first));
        }
        // A lie in Content-Length reserves address space at most, and not much of it.
        let mut body = Buffer::with_capacity(announced.min(256 << 20) as usize);
        let mut piece = Some(first);
        while let Some(bytes) = piece {
            if self.received > max {
                return Err(too_long(&format_args!("{} or more", self.received)));
            }
            body.extend_from_slice(&bytes);
            piece = self.next().await?;
        }
        Ok(body.into())
    }
}

/// The failure behind an error of the HTTP library before an answer began.
pub(super) fn send_failure(error: reqwest::Error, progress: &Progress, url: &Url) -> Failure {
    if let Some(reason) = progress.unreadable.lock().take() {
        let (_, cause) = describe(error);
        let failure = Failure::new(Class::Local, reason);
        return Failure { cause, ..failure };
    }
    let broken = !error.is_connect() && broke_while_sending(&error, progress);
    let class = if broken {
        Class::BrokenSend
    } else {
        Class::Transient
    };
    let proxy = error.is_connect().then(|| proxy_for(url)).flatten();
    let proxy = proxy.map_or(String::new(), |proxy| {
        format!(" (through the proxy {proxy})")
    });
    let (text, cause) = describe(error);
    let failure = Failure::new(class, format!("{text}{proxy}"));
    Failure { cause, ..failure }
}

/// Host and port of the proxy that the environment sets for a URL, as the HTTP library finds it.
fn proxy_for(url: &Url) -> Option<String> {
    static MATCHER: OnceLock<Matcher> = OnceLock::new();
    if is_local(url) {
        return None;
    }
    let matcher = MATCHER.get_or_init(Matcher::from_system);
    let found = matcher.intercept(&url.as_str().parse().ok()?)?;
    let proxy = found.uri();
    let port = proxy
        .port()
        .map_or(String::new(), |port| format!(":{port}"));
    Some(format!("{}{port}", proxy.host()?))
}

/// Whether `url` names this machine (`localhost`, 127.0.0.0/8, `::1`): such requests pass no proxy,
/// as in Go.
pub(super) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn broke_while_sending(error: &reqwest::Error, progress: &Progress) -> bool {
    if progress.len == 0 {
        return false;
    }
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
            if matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset
            ) {
                return true;
            }
        }
        source = error.source();
    }
    // Closed in good order without an answer: a limit only if the body was still on its way.
    !progress.all_sent()
}

/// An error of the HTTP library with its causes, without the URL: as a text, and as the cause of
/// our own error. A cause that names some other URL is left out, as that may hold a password (a
/// proxy's, for instance).
pub(crate) fn describe(error: reqwest::Error) -> (String, Option<Cause>) {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    let shown = one_line(&redact_words(&text), 2 * EXCERPT);
    let cause = (!text.contains("://")).then(|| Arc::new(error) as Cause);
    (shown, cause)
}

/// Blots out user info in every text that looks like a URL (a proxy's, for instance).
fn redact_words(text: &str) -> String {
    let word = |word: &str| match word.contains("://") {
        true => redact_url(word),
        false => word.to_string(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// An error answer, as far as the rules care.
pub(super) struct ErrorAnswer {
    pub(super) status: StatusCode,
    /// `reason` of the JSON envelope (`BLOB_NOT_FOUND`, …).
    pub(super) reason: Option<String>,
    /// Everything worth showing, secrets blotted out.
    pub(super) text: String,
    /// The body was HTML (so not Walrus' own).
    pub(super) html: bool,
    /// The body was empty.
    pub(super) empty: bool,
    /// The body, for rules that look for words in it.
    pub(super) body: String,
    pub(super) retry_after: Option<Duration>,
}

impl ErrorAnswer {
    /// Reads what there is of an error answer. The server may cut it (it often closes at once after
    /// refusing a body): then the status has to do.
    pub(super) async fn read(response: Response, endpoint: &Endpoint, token: Option<&str>) -> Self {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let mut reader = BodyReader::new(response, ERROR_BODY_TIME);
        let mut body = BytesMut::new();
        let read_some = async {
            while let Ok(Some(piece)) = reader.next().await {
                body.extend_from_slice(&piece);
                if body.len() as u64 >= ERROR_BODY {
                    break;
                }
            }
        };
        let complete = tokio::time::timeout(ERROR_BODY_TIME, read_some)
            .await
            .is_ok();
        let empty = complete && reader.announced().unwrap_or(0) == 0 && body.is_empty();
        // Before anything is cut from it: half a secret would not be recognised.
        let body = endpoint.redact(&String::from_utf8_lossy(&body), token);
        let (reason, excerpt) = explain(&body);
        let mut text = format!("HTTP {}", status.as_u16());
        if let Some(reason) = &reason {
            let _ = write!(text, " {reason}");
        } else if let (true, Some(words)) = (excerpt.is_empty(), status.canonical_reason()) {
            let _ = write!(text, " {words}");
        }
        if !excerpt.is_empty() {
            let _ = write!(text, ": {excerpt}");
        }
        ErrorAnswer {
            status,
            reason,
            text,
            html: is_html(&body),
            empty,
            body,
            retry_after,
        }
    }

    pub(super) fn failure(self, class: Class) -> Failure {
        Failure {
            retry_after: self.retry_after,
            ..Failure::new(class, self.text)
        }
    }

    /// The class of statuses that mean the same on every path; `Refused` for the rest.
    pub(super) fn class(&self) -> Class {
        match (self.status.as_u16(), self.reason.as_deref()) {
            (429, Some("TOKEN_ALREADY_USED")) | (504, Some("EXPIRED_SIGNATURE")) => Class::Token,
            (429 | 503, _) => Class::Throttled,
            (408 | 425, _) | (500..=599, _) => Class::Transient,
            _ => Class::Refused,
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    parse_retry_after(value, SystemTime::now())
}

/// Whether the body came as it is (nothing can be checked on transformed bytes).
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_ENCODING)
        .is_some_and(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn is_html(body: &str) -> bool {
    body.trim_start_matches('\u{feff}')
        .trim_start()
        .starts_with('<')
}

/// Walrus' reason and a line for people, from the body of an answer: the JSON envelope's message,
/// an HTML page's title, or the beginning of a text.
pub(super) fn explain(body: &str) -> (Option<String>, String) {
    if let Ok(Value::Object(answer)) = serde_json::from_str::<Value>(body) {
        if let Some(error) = answer.get("error") {
            let reason = error["details"]
                .as_array()
                .and_then(|details| details.iter().find_map(|d| d["reason"].as_str()))
                .map(|reason| one_line(reason, 60));
            // "message" in the envelope; "errorMsg" in the store result of the same name.
            let message = ["message", "errorMsg"].map(|k| error[k].as_str());
            let message = message.into_iter().flatten().next();
            let message = message.or(error.as_str()).unwrap_or("");
            return (reason, one_line(message, EXCERPT));
        }
    }
    if is_html(body) {
        let lower = body.to_ascii_lowercase();
        let title = lower.find("<title").and_then(|at| {
            let start = at + lower[at..].find('>')? + 1;
            let end = start + lower[start..].find("</title")?;
            body.get(start..end)
        });
        let title = one_line(title.unwrap_or("no title"), EXCERPT);
        return (None, format!("HTML page ({title})"));
    }
    (None, one_line(body, EXCERPT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine() {
        for (url, local) in [
            ("http://localhost:31415/", true),
            ("http://LOCALHOST/", true),
            ("http://127.0.0.1/", true),
            ("http://127.9.8.7:1/", true),
            ("http://[::1]:1/", true),
            ("http://localhost.example/", false),
            ("http://128.0.0.1/", false),
            ("http://[::2]/", false),
        ] {
            assert_eq!(is_local(&Url::parse(url).unwrap()), local, "{url}");
        }
    }

    #[test]
    fn explanations() {
        let envelope = r#"{"error":{"status":"NOT_FOUND","code":404,"message":"no\n such blob",
            "details":[{"@type":"ErrorInfo","reason":"BLOB_NOT_FOUND","domain":"d"}]}}"#;
        for (body, reason, line) in [
            (envelope, Some("BLOB_NOT_FOUND"), "no such blob"),
            (r#"{"error":{"errorMsg":"x"}}"#, None, "x"),
            (r#"{"error":"plain"}"#, None, "plain"),
            (r#"{"error":null}"#, None, ""),
            (r#"{"other":1}"#, None, r#"{"other":1}"#),
            (
                "<html><TITLE a=b>502\r\nBad</Title>",
                None,
                "HTML page (502 Bad)",
            ),
            (" <html><title>open", None, "HTML page (no title)"),
            ("", None, ""),
            ("a\x1b[31m\0b", None, "a [31m b"),
        ] {
            let got = explain(body);
            assert_eq!(got, (reason.map(String::from), line.to_string()), "{body}");
        }
        assert_eq!(one_line(&"é".repeat(300), 3), "ééé…");
        assert_eq!(one_line("a b", 2), "a …");
    }
}
