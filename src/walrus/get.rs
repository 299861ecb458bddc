//! One attempt to read from one aggregator.
//!
//! Aggregators are not trusted: status, length, `Content-Range` and encoding of each answer are
//! checked here, and the bytes by the caller's check. An answer that fails is never returned or
//! shortened.
//!
//! **Ranges.** `Range: bytes=A-B`, both ends given: aggregators accept no other form and do not
//! clamp (beyond the end is 416). A 206 must be exactly the range. Aggregators before 1.38, and
//! caches, answer 200 with the whole blob: then reads of the same blob that run at the same time
//! share one body. A blob that fits what the caller keeps is handed over as it came; of a longer
//! one the range is copied, and the connection is dropped behind it. So memory is bounded by the
//! larger of the range and what the caller keeps, and a whole read by `max_blob_bytes`.
//!
//! **Repeats** after a 404 carry a legal query that means the default
//! (`?skip_consistency_check=false` and the like), so that a cache takes it for another resource;
//! the aggregator would answer 400 to an invented parameter.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::endpoints::Endpoint;
use super::joined::WholeBody;
use super::retry::{Class, Failure};
use super::shared::Shared;
use super::transport::{is_encoded, one_line, send_failure, BodyReader, ErrorAnswer, Progress};
use super::want::{Part, Want};
use super::Fetched;
use crate::limits::MAX_BLOB_BYTES;

/// Redirects followed per attempt.
const MAX_REDIRECTS: usize = 5;

/// Queries that change a cache's key and nothing else, one per repeat.
const CACHE_BUSTERS: [&str; 5] = [
    "",
    "?skip_consistency_check=false",
    "?strict_consistency_check=false",
    "?skip_consistency_check=false&strict_consistency_check=false",
    "?strict_consistency_check=false&skip_consistency_check=false",
];

/// When a body is judged to be slow, after its answer began.
pub(super) const DRIPPING: Duration = Duration::from_secs(1);

/// The longest list of the members of a quilt (bytes): of 666 members with long names and tags.
const MOST_MEMBERS: u64 = 4 << 20;

/// Whole bodies of at most so many bytes are shared, although the caller does not keep them: a full
/// pack.
const JOINED: u64 = 64 << 20;

impl Shared {
    /// One attempt. Tells its course.
    pub(super) async fn get(
        &self,
        aggregator: &Endpoint,
        want: Want<'_>,
        repeat: usize,
        course: Option<&Course>,
    ) -> std::result::Result<Fetched, Failure> {
        let buster = CACHE_BUSTERS[repeat % CACHE_BUSTERS.len()];
        let url = aggregator.url(&format!("{}{buster}", want.path()));
        // Held from the beginning, so that a body which comes meanwhile is kept for this reader,
        // too.
        let joined = match want {
            Want::Range(part) => self.joined.of((aggregator.base(), part.id)),
            _ => Arc::default(),
        };
        let member = aggregator.crowd.join().await;
        let asked = Instant::now();
        let response = self.send_get(aggregator, &url, want).await?;
        if let Some(course) = course {
            course.answered();
        }
        let began_after = asked.elapsed();
        if response.status().is_success() {
            aggregator.answered_in(began_after);
        }
        let status = response.status().as_u16();
        match (status, want) {
            (206, Want::Range(..)) | (200, _) => {}
            _ => {
                if matches!(status, 429 | 503) {
                    member.refused();
                }
                let answer = ErrorAnswer::read(response, aggregator, None).await;
                return Err(judge(answer, want, buster));
            }
        }
        if is_encoded(response.headers()) {
            let text = format!("HTTP {status}: sent a compressed body unasked");
            return Err(Failure::new(Class::Wrong, text));
        }
        let mut total = None;
        let mut reader = match (status, want) {
            (206, Want::Range(part)) => {
                total = check_content_range(&response, part.offset, part.len)?;
                BodyReader::new(response, self.request_timeout)
            }
            _ => BodyReader::new(response, self.request_timeout),
        };
        if let Some(course) = course {
            reader.watch(&course.received);
        }
        let fetched = match (status, want) {
            (206, Want::Range(part)) => {
                let bytes = exactly(&mut reader, part.len).await;
                bytes.map(|bytes| Fetched {
                    total,
                    ..bytes.into()
                })
            }
            (_, Want::Range(part)) => self.slice(&mut reader, &joined, part).await,
            // Without a length, a broken connection would look like the end.
            _ if !reader.is_delimited() => {
                let text = format!("HTTP {status}: answer without a length");
                Err(Failure::new(Class::Wrong, text))
            }
            (_, Want::PatchOf(_, len)) => {
                let max = len.min(self.max_blob_bytes);
                match reader.collect(max).await {
                    // Longer than the row says: another's bytes.
                    Err(failure) if failure.class == Class::Refused => {
                        let text = format!("HTTP {status}: more than the {len} bytes of the patch");
                        Err(Failure::new(Class::Corrupt, text))
                    }
                    collected => collected.map(all),
                }
            }
            (_, Want::Members(_)) => reader.collect(MOST_MEMBERS).await.map(all),
            (_, Want::Blob(_, known)) => {
                let known = known.min(MAX_BLOB_BYTES.unsigned_abs());
                reader
                    .collect(self.max_blob_bytes.max(known))
                    .await
                    .map(all)
            }
            _ => reader.collect(self.max_blob_bytes).await.map(all),
        };
        self.stats.get_bytes.fetch_add(reader.received(), Relaxed);
        if fetched.is_ok() {
            member.answered(began_after);
        }
        fetched
    }

    /// Sends a GET and follows redirects: user info goes to its own origin only.
    async fn send_get(
        &self,
        aggregator: &Endpoint,
        url: &str,
        want: Want<'_>,
    ) -> std::result::Result<Response, Failure> {
        let wrong = |text: String| Failure::new(Class::Wrong, text);
        let mut url = Url::parse(url).map_err(|e| wrong(format!("URL: {e}")))?;
        let origin = url.origin();
        let mut visited = Vec::new();
        loop {
            let mut request = self.http(&url).get(url.clone());
            let mut expected = 0;
            if let Want::Range(Part { offset, len, .. }) = want {
                request = request.header(RANGE, format!("bytes={offset}-{}", offset + len - 1));
                expected = len;
            }
            if let Some(basic) = aggregator.basic().filter(|_| url.origin() == origin) {
                request = request.header(AUTHORIZATION, basic.clone());
            }
            let progress = Progress::download(self.request_timeout, expected);
            let response = progress
                .limit(request.send())
                .await?
                .map_err(|error| send_failure(error, &progress, &url))?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|l| l.to_str().ok());
            let next = location.and_then(|l| url.join(l).ok());
            let Some(mut next) = next.filter(|n| matches!(n.scheme(), "http" | "https")) else {
                return Err(wrong(format!("HTTP {status} without a usable Location")));
            };
            if is_downgrade(&url, &next) {
                let host = next.host_str().unwrap_or("");
                let text =
                    format!("HTTP {status} redirects from https:// to http:// ({host}): refused");
                return Err(wrong(text));
            }
            // The HTTP library would turn them into an Authorization header.
            let _ = next.set_username("");
            let _ = next.set_password(None);
            visited.push(url);
            let host = next.host_str().unwrap_or("").to_string();
            if visited.contains(&next) {
                return Err(wrong(format!("redirect loop (HTTP {status} to {host})")));
            }
            if visited.len() > MAX_REDIRECTS {
                let text = format!("more than {MAX_REDIRECTS} redirects (the last one to {host})");
                return Err(wrong(text));
            }
            url = next;
        }
    }

    /// The body of a 200 to a range: the whole blob, or the range out of it.
    async fn slice(
        &self,
        reader: &mut BodyReader,
        joined: &Arc<WholeBody>,
        part: Part<'_>,
    ) -> std::result::Result<Fetched, Failure> {
        let Part { offset, len, .. } = part;
        let end = offset + len;
        let short = |whole: u64| {
            let text = format!("HTTP 200: the blob has only {whole} bytes");
            Failure::new(Class::Wrong, text)
        };
        if let Some(announced) = reader.announced() {
            if announced < end {
                return Err(short(announced));
            }
            let keeps = announced <= part.keeps;
            if keeps || announced <= JOINED {
                let body = receive(reader, joined, (!keeps).then_some(end)).await?;
                return match keeps {
                    true => Ok(all(body)),
                    // A copy, so that it does not keep the whole in memory.
                    false => body
                        .get(offset as usize..end as usize)
                        .map(|part| Fetched {
                            total: Some(announced),
                            ..Bytes::copy_from_slice(part).into()
                        })
                        .ok_or_else(|| short(body.len() as u64)),
                };
            }
        }
        let mut part = BytesMut::new();
        while let Some(piece) = reader.next().await? {
            let start = reader.received() - piece.len() as u64;
            let from = offset.saturating_sub(start).min(piece.len() as u64) as usize;
            let to = end.saturating_sub(start).min(piece.len() as u64) as usize;
            part.extend_from_slice(&piece[from..to]);
            if reader.received() >= end {
                return Ok(Fetched {
                    total: reader.announced(),
                    ..part.freeze().into()
                });
            }
        }
        Err(short(reader.received()))
    }
}

/// The whole of a blob or patch.
fn all(bytes: Bytes) -> Fetched {
    Fetched::whole(bytes)
}

/// A body that readers of one blob share: the first receives it, and the others' are dropped
/// unread. With `enough`, it ends there if no other reader has come by then.
async fn receive(
    reader: &mut BodyReader,
    joined: &Arc<WholeBody>,
    enough: Option<u64>,
) -> std::result::Result<Bytes, Failure> {
    let announced = reader.announced().unwrap_or(0);
    let mut body = joined.lock().await;
    if let Some(whole) = body.as_ref().filter(|w| w.len() as u64 == announced) {
        return Ok(whole.clone());
    }
    let Some(enough) = enough else {
        return Ok(body.insert(reader.collect(announced).await?).clone());
    };
    let mut read = BytesMut::new();
    while let Some(piece) = reader.next().await? {
        read.extend_from_slice(&piece);
        let alone = Arc::strong_count(joined) == 1;
        if read.len() as u64 >= enough && alone {
            break;
        }
    }
    let read = read.freeze();
    if read.len() as u64 == announced {
        *body = Some(read.clone());
    }
    Ok(read)
}

/// How an attempt goes.
#[derive(Default)]
pub(super) struct Course {
    /// When its answer began.
    answered: Mutex<Option<Instant>>,
    received: Arc<AtomicU64>,
}

impl Course {
    fn answered(&self) {
        *self.answered.lock() = Some(Instant::now());
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.lock().is_some()
    }

    /// How long the rest of `len` bytes takes at the pace so far, once that can be told.
    pub(super) fn left(&self, len: u64) -> Option<Duration> {
        let since = self.answered.lock().as_ref()?.elapsed();
        let received = self.received.load(Relaxed);
        if since < DRIPPING {
            return None;
        }
        let rest = len.saturating_sub(received) as f64;
        let seconds = since.as_secs_f64() * rest / received.max(1) as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

/// Whether a redirect would leave TLS: every machine on the way could read the request and change
/// the answer.
fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme() == "https" && to.scheme() != "https"
}

/// The body of a 206.
async fn exactly(reader: &mut BodyReader, len: u64) -> std::result::Result<Bytes, Failure> {
    let wrong = |got: &dyn std::fmt::Display| {
        let text = format!("HTTP 206: {got} bytes instead of {len}");
        Failure::new(Class::Wrong, text)
    };
    if let Some(announced) = reader.announced().filter(|&announced| announced != len) {
        return Err(wrong(&announced));
    }
    let bytes = match reader.collect(len).await {
        Err(failure) if failure.class == Class::Refused => return Err(wrong(&reader.received())),
        collected => collected?,
    };
    if bytes.len() as u64 != len {
        return Err(wrong(&bytes.len()));
    }
    Ok(bytes)
}

/// The length of the whole blob, if the answer of 206 tells it.
fn check_content_range(
    response: &Response,
    offset: u64,
    len: u64,
) -> std::result::Result<Option<u64>, Failure> {
    let header = response.headers().get(CONTENT_RANGE);
    let text = header.and_then(|h| h.to_str().ok()).unwrap_or("");
    let last = offset + len - 1;
    match parse_content_range(text) {
        Some((first, end, total))
            if first == offset && end == last && total.is_none_or(|total| total > last) =>
        {
            Ok(total)
        }
        _ => {
            let shown = one_line(text, 60);
            let text = format!("HTTP 206 for bytes {offset}-{last} with Content-Range {shown:?}");
            Err(Failure::new(Class::Wrong, text))
        }
    }
}

/// `bytes FIRST-LAST/TOTAL`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

fn judge(mut answer: ErrorAnswer, want: Want<'_>, buster: &str) -> Failure {
    let class = match answer.status.as_u16() {
        404 if answer.empty => {
            answer.text += ": empty answer, so there is no such path (wrong base URL, or an \
                            aggregator too old for this request)";
            Class::Wrong
        }
        404 if answer.html => Class::Wrong,
        404 => Class::NotFound,
        // An aggregator that does not know the cache buster; it said 404 without it.
        400 if !buster.is_empty() => Class::NotFound,
        416 => {
            if let Want::Range(Part { offset, len, .. }) = want {
                answer.text += &format!(" (asked for bytes {offset}-{})", offset + len - 1);
            }
            Class::Refused
        }
        _ => answer.class(),
    };
    answer.failure(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_leave_tls() {
        for (from, to, refused) in [
            ("https://a/", "http://a/", true),
            ("https://a/", "http://b/", true),
            ("https://a/", "https://b/", false),
            ("http://a/", "http://b/", false),
            ("http://a/", "https://b/", false),
        ] {
            let [from, to] = [from, to].map(|url| Url::parse(url).unwrap());
            assert_eq!(is_downgrade(&from, &to), refused, "{from} to {to}");
        }
    }

    #[test]
    fn content_ranges() {
        for (text, want) in [
            ("bytes 0-9/10", Some((0, 9, Some(10)))),
            (" bytes 5-6/* ", Some((5, 6, None))),
            ("bytes 5-6", None),
            ("bytes */10", None),
            ("bits 0-9/10", None),
            ("bytes -1-9/10", None),
            ("bytes 0-99999999999999999999/1", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), want, "{text:?}");
        }
    }
}
