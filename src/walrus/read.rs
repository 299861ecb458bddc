//! Reading blobs, ranges of them and quilt members.
//!
//! Aggregators are not trusted: status, length, `Content-Range` and encoding of each answer are
//! checked here, and the bytes by the caller's check. An answer that fails is never returned,
//! shortened or cached; the next aggregator is asked.
//!
//! **Ranges.** `Range: bytes=A-B`, both ends given: aggregators accept no other form and do not
//! clamp (beyond the end is 416). A 206 must be exactly the range. Aggregators before 1.38, and
//! caches, answer 200 with the whole blob: the client slices it, and reads of the same blob that run at the same
//! time share one body; it is kept in the cache if it fits (a
//! quarter of the budget), else only the wanted part is kept in memory and the connection dropped
//! behind it. So memory is bounded by the larger of the range and the cache's entry cap, and a whole
//! read by `max_blob_bytes`.
//!
//! **404.** The network is consistent, but caches in front of aggregators keep a 404 from before the
//! blob was certified. So a 404 is
//!
//! - *transient* for a blob that this client stored in the last minutes and has not read yet: all
//!   aggregators are asked again after 0.5, 1, 2, 4 and 8 s (`not_found_backoff`; these repeats do not count
//!   against `max_retries`). If none has it then, later reads of the blob do not wait like that;
//! - *final* for others after two aggregators said so, or the only one that answers did so twice.
//!
//! A repeat carries a legal query that means the default (`?skip_consistency_check=false` and the
//! like), so that a cache takes it for another resource; the aggregator would answer 400 to an
//! invented parameter. A 404 with an empty body or an HTML page is not Walrus' answer for a missing
//! blob, but a wrong base URL or a proxy's: it proves nothing.
//!
//! **Slow aggregators.** If no answer has begun after the time in which that aggregator usually answers
//! (mean and four deviations, between 50 ms and 5 s), the next one that this read has not asked yet is
//! asked too, the first good answer counts, and the other is dropped. At most one read in ten does so.
//! When an aggregator was overtaken in this way, every other read that waits for it without an answer
//! asks the next aggregator too; this is not counted among the one in ten.
//! An aggregator that was overtaken is asked later than others for a while.
//!
//! A body that has begun and drips is left in the same way: when a second after its beginning the rest would
//! take 3 s at its pace (8 s without credit).
//!
//! 403 BLOB_TOO_LARGE (that aggregator's limit for whole reads) and 451 (its operator's block list)
//! are that aggregator's business: the next one is asked.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::blob_id;
use super::endpoints::Endpoint;
use super::retry::{Class, Failure, Rotation};
use super::shared::Shared;
use super::transport::{is_encoded, one_line, send_failure, BodyReader, ErrorAnswer, Progress};
use super::Check;
use crate::error::{Error, ErrorKind, Result};

/// After so long without an answer a second aggregator is asked, outside the budget.
const SILENT: Duration = Duration::from_secs(5);

/// How often a read that may not ask a second aggregator yet looks again.
const RECONSIDER: Duration = Duration::from_millis(250);

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
const DRIPPING: Duration = Duration::from_secs(1);
/// A body that takes so much longer is overtaken, if there is credit for it, and if without.
const TOO_SLOW: Duration = Duration::from_secs(3);
const MUCH_TOO_SLOW: Duration = Duration::from_secs(8);
/// Whole bodies of at most so many bytes are shared, although the cache does not keep them: a full pack.
const JOINED: u64 = 64 << 20;

/// What is to be read.
#[derive(Clone, Copy)]
pub(super) enum Want<'a> {
    Blob(&'a str),
    Range(&'a str, u64, u64),
    Patch(&'a str),
    /// A patch of known length.
    PatchOf(&'a str, u64),
}

/// How hard a read tries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// By all the rules of this module.
    Full,
    /// The same, but a whole blob is not kept.
    Aside,
    /// Each aggregator is asked once, since the caller has another way; but one that asks for less (429,
    /// 503) is waited for and asked again: the caller's other way would ask it for more.
    Once,
}

/// A good answer.
struct Fetched {
    /// What was asked for.
    bytes: Bytes,
    /// The whole blob or patch, if it came and is worth keeping.
    whole: Option<Bytes>,
}

impl Fetched {
    fn whole(bytes: Bytes) -> Self {
        let whole = Some(bytes.clone());
        Fetched { bytes, whole }
    }
}

impl<'a> Want<'a> {
    fn id(self) -> &'a str {
        match self {
            Want::Blob(id) | Want::Range(id, ..) | Want::Patch(id) | Want::PatchOf(id, _) => id,
        }
    }

    /// Its length, where that is known beforehand (bytes).
    fn len(self) -> Option<u64> {
        match self {
            Want::Range(_, _, len) | Want::PatchOf(_, len) => Some(len),
            Want::Blob(_) | Want::Patch(_) => None,
        }
    }

    fn path(self) -> String {
        match self {
            Want::Blob(id) | Want::Range(id, ..) => format!("/v1/blobs/{id}"),
            Want::Patch(id) | Want::PatchOf(id, _) => format!("/v1/blobs/by-quilt-patch-id/{id}"),
        }
    }

    fn describe(self) -> String {
        match self {
            Want::Blob(id) => format!("reading blob {id}"),
            Want::Range(id, offset, len) => {
                format!("reading bytes {offset}-{} of blob {id}", offset + len - 1)
            }
            Want::Patch(id) | Want::PatchOf(id, _) => format!("reading quilt patch {id}"),
        }
    }

    /// The blob's 32 bytes, to look up whether this client stored it.
    fn blob_key(self) -> Option<[u8; 32]> {
        match self {
            Want::Blob(id) | Want::Range(id, ..) => blob_id::decode(id),
            // A patch ID is the quilt's blob ID and five more bytes.
            Want::Patch(id) | Want::PatchOf(id, _) => {
                URL_SAFE_NO_PAD.decode(id).ok()?.get(..32)?.try_into().ok()
            }
        }
    }

    fn validate(self, max: u64) -> Result<()> {
        let wrong = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        let id = self.id();
        match self {
            Want::Patch(_) | Want::PatchOf(..) => {
                let url_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if id.is_empty() || id.len() > 128 || !id.bytes().all(url_safe) {
                    let shown = one_line(id, 60);
                    return wrong(format!("{shown:?} is no quilt patch ID (base64url)"));
                }
            }
            _ if blob_id::decode(id).is_none() => {
                let shown = one_line(id, 60);
                return wrong(format!(
                    "{shown:?} is no blob ID (43 characters of base64url)"
                ));
            }
            Want::Range(_, offset, len) if offset.checked_add(len).is_none() || len > max => {
                return wrong(format!(
                    "reading {len} bytes at {offset} of blob {id}: at most {max} bytes at a time"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a whole blob holds of it; a copy if that is little, so that it does not keep the whole
    /// in memory.
    fn cut_from(self, whole: &Bytes) -> Option<Bytes> {
        let Want::Range(_, offset, len) = self else {
            return Some(whole.clone());
        };
        let start = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        let part = whole.get(start..end)?;
        Some(if part.len() == whole.len() {
            whole.clone()
        } else {
            Bytes::copy_from_slice(part)
        })
    }
}

impl Shared {
    pub(super) async fn fetch(&self, want: Want<'_>, check: Check<'_>) -> Result<Bytes> {
        want.validate(self.max_blob_bytes)?;
        if let Some(bytes) = self.cached(want, check) {
            return Ok(bytes);
        }
        self.fetch_anew(want, check, Effort::Full).await
    }

    /// As [`fetch`](Self::fetch), past the cache.
    pub(super) async fn fetch_anew(
        &self,
        want: Want<'_>,
        check: Check<'_>,
        effort: Effort,
    ) -> Result<Bytes> {
        want.validate(self.max_blob_bytes)?;
        if self.aggregators.len() == 0 {
            let text = "aggregatorURL: no aggregator is configured, so nothing can be read";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let mut rotation = Rotation::new(&self.aggregators, &self.policy);
        if effort == Effort::Once {
            rotation.repeat_only(Class::Throttled);
        }
        let fetched = self
            .fetch_anywhere(want, check, effort, &mut rotation)
            .await;
        self.count(&rotation);
        let fetched = fetched?;
        self.stats.gets.fetch_add(1, Relaxed);
        if let Some(whole) = fetched.whole.filter(|_| effort != Effort::Aside) {
            self.cache.insert_whole(want.id(), whole);
        }
        Ok(fetched.bytes)
    }

    fn cached(&self, want: Want<'_>, check: Check<'_>) -> Option<Bytes> {
        if !self.cache.enabled() {
            return None;
        }
        let bytes = self.cache.whole(want.id()).and_then(|whole| {
            let part = want.cut_from(&whole).filter(|part| check(part).is_ok());
            if part.is_none() {
                self.cache.evict(want.id());
            }
            part
        });
        let counter = match bytes {
            Some(_) => &self.stats.cache_hits,
            None => &self.stats.cache_misses,
        };
        counter.fetch_add(1, Relaxed);
        bytes
    }

    async fn fetch_anywhere(
        &self,
        want: Want<'_>,
        check: Check<'_>,
        effort: Effort,
        rotation: &mut Rotation<'_>,
    ) -> Result<Fetched> {
        let just_stored = want.blob_key().filter(|key| self.certified.contains(key));
        let own = just_stored.is_some();
        let mut repeat = 0;
        loop {
            while let Some((index, _)) = rotation.next().await {
                if let Some(fetched) = self.ask(index, want, check, repeat, rotation).await {
                    just_stored.inspect(|key| self.certified.remove(key));
                    return Ok(fetched);
                }
                if !own && rotation.count(Class::NotFound) >= 2 {
                    break;
                }
            }
            if effort == Effort::Once {
                break;
            }
            let missing = rotation.count(Class::NotFound);
            let wait = match (own, missing) {
                (_, 0) => None,
                (true, _) => self.not_found_backoff.get(repeat).copied(),
                (false, 1) if repeat == 0 => Some(Default::default()),
                (false, _) => None,
            };
            let Some(wait) = wait else {
                break;
            };
            tokio::time::sleep(wait).await;
            repeat += 1;
            rotation.readmit(Class::NotFound);
        }
        if effort != Effort::Once && rotation.count(Class::NotFound) > 0 {
            just_stored.inspect(|key| self.certified.remove(key));
        }
        let what = want.describe();
        let (corrupt, missing) = (
            rotation.count(Class::Corrupt),
            rotation.count(Class::NotFound),
        );
        Err(if corrupt > 0 {
            rotation.error(ErrorKind::Corrupt, what)
        } else if missing > 0 && own {
            let error = rotation.error(ErrorKind::BlobNotFound, what);
            let text = format!("{error} (this node stored it: an aggregator may lag behind)");
            Error::retryable(ErrorKind::BlobNotFound, text)
        } else if missing > 0 {
            rotation.error(ErrorKind::BlobNotFound, what)
        } else {
            rotation.error(ErrorKind::Walrus, what)
        })
    }

    /// Asks the aggregator at `first`, and one that was not asked yet if that is slower than usual.
    /// The first good answer counts; what failed is noted.
    async fn ask(
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
                let fetched = self.get(aggregator, want, repeat, course).await;
                let fetched = fetched.and_then(|fetched| match check(&fetched.bytes) {
                    Ok(()) => Ok(fetched),
                    Err(reason) => Err(Failure::new(Class::Corrupt, one_line(&reason, 400))),
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
        // A request that is made from now on is told.
        overtaken.as_mut().enable();
        let mut told = self.aggregators.len() < 2;
        self.hedging.asked();
        let mut waited = self.aggregators.len() < 2;
        let mut second = None;
        let mut looks = tokio::time::interval_at(asked + DRIPPING, RECONSIDER);
        loop {
            tokio::select! {
                biased;
                Some((index, fetched)) = running.next() => match fetched {
                    Ok(fetched) => {
                        self.aggregators.succeeded(index);
                        if second == Some(index) {
                            self.stats.hedge_wins.fetch_add(1, Relaxed);
                            self.aggregators.was_slow(first);
                        }
                        return Some(fetched);
                    }
                    Err(failure) => {
                        self.note(&self.aggregators, index, failure.class);
                        rotation.failed(index, failure);
                        if running.is_empty() {
                            return None;
                        }
                    }
                },
                _ = looks.tick(), if second.is_none() && rotation.has_fresh() => {
                    let left = want.len().and_then(|len| course.left(len));
                    let slow = left.is_some_and(|left| {
                        left > MUCH_TOO_SLOW || left > TOO_SLOW && self.hedging.allows()
                    });
                    if let Some(index) = slow.then(|| rotation.take_fresh()).flatten() {
                        self.stats.hedges.fetch_add(1, Relaxed);
                        second = Some(index);
                        running.push(attempt(index));
                    }
                }
                () = &mut overtaken, if !told => {
                    told = true;
                    if course.has_answered() || second.is_some() {
                        continue;
                    }
                    if let Some(index) = rotation.take_fresh() {
                        waited = true;
                        self.stats.hedges.fetch_add(1, Relaxed);
                        second = Some(index);
                        running.push(attempt(index));
                    }
                }
                () = &mut patience, if !waited => {
                    if course.has_answered() || !rotation.has_fresh() {
                        waited = true;
                        continue;
                    }
                    // A long silence is reason enough, whatever was asked twice before.
                    if asked.elapsed() < SILENT && !self.hedging.allows() {
                        patience.as_mut().reset(Instant::now() + RECONSIDER);
                        continue;
                    }
                    waited = true;
                    if let Some(index) = rotation.take_fresh() {
                        self.stats.hedges.fetch_add(1, Relaxed);
                        second = Some(index);
                        running.push(attempt(index));
                    }
                }
            }
        }
    }

    /// One attempt. Tells its course.
    async fn get(
        &self,
        aggregator: &Endpoint,
        want: Want<'_>,
        repeat: usize,
        course: Option<&Course>,
    ) -> std::result::Result<Fetched, Failure> {
        let buster = CACHE_BUSTERS[repeat % CACHE_BUSTERS.len()];
        let url = aggregator.url(&format!("{}{buster}", want.path()));
        let member = aggregator.crowd.join().await;
        let asked = Instant::now();
        let response = self.send_get(aggregator, &url, want).await?;
        if let Some(course) = course {
            course.answered();
        }
        if response.status().is_success() {
            aggregator.answered_in(asked.elapsed());
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
        let mut reader = match (status, want) {
            (206, Want::Range(_, offset, len)) => {
                check_content_range(&response, offset, len)?;
                BodyReader::new(response, self.request_timeout)
            }
            _ => BodyReader::new(response, self.request_timeout),
        };
        if let Some(course) = course {
            reader.watch(&course.received);
        }
        let fetched = match (status, want) {
            (206, Want::Range(_, _, len)) => exactly(&mut reader, len).await,
            (_, Want::Range(id, offset, len)) => {
                let from = (aggregator.shown(), id);
                self.slice(&mut reader, from, offset, len).await
            }
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
                    collected => collected.map(Fetched::whole),
                }
            }
            _ => reader
                .collect(self.max_blob_bytes)
                .await
                .map(Fetched::whole),
        };
        self.stats.get_bytes.fetch_add(reader.received(), Relaxed);
        if fetched.is_ok() {
            member.answered();
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
            if let Want::Range(_, offset, len) = want {
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

    /// Takes a range out of a 200, which is the whole blob.
    async fn slice(
        &self,
        reader: &mut BodyReader,
        from: (&str, &str),
        offset: u64,
        len: u64,
    ) -> std::result::Result<Fetched, Failure> {
        let end = offset + len;
        let short = |whole: u64| {
            let text = format!("HTTP 200: the blob has only {whole} bytes");
            Failure::new(Class::Wrong, text)
        };
        if let Some(announced) = reader.announced() {
            if announced < end {
                return Err(short(announced));
            }
            if announced <= self.cache.entry_cap().max(JOINED) {
                // Readers of one blob share one body: the others' are dropped unread.
                let joined = self.joined.of(from);
                let mut body = joined.lock().await;
                let keeps = announced <= self.cache.entry_cap();
                let whole = match &*body {
                    Some(whole) if whole.len() as u64 == announced => whole.clone(),
                    _ if keeps => body.insert(reader.collect(announced).await?).clone(),
                    _ => {
                        let mut read = BytesMut::new();
                        while let Some(piece) = reader.next().await? {
                            read.extend_from_slice(&piece);
                            let alone = Arc::strong_count(&joined) == 1;
                            if read.len() as u64 >= end && alone {
                                break;
                            }
                        }
                        let read = read.freeze();
                        if read.len() as u64 == announced {
                            *body = Some(read.clone());
                        }
                        read
                    }
                };
                drop(body);
                let part = Want::Range("", offset, len).cut_from(&whole);
                return Ok(Fetched {
                    bytes: part.ok_or_else(|| short(whole.len() as u64))?,
                    whole: keeps.then_some(whole),
                });
            }
        }
        let mut part = BytesMut::new();
        while let Some(piece) = reader.next().await? {
            let start = reader.received() - piece.len() as u64;
            let from = offset.saturating_sub(start).min(piece.len() as u64) as usize;
            let to = end.saturating_sub(start).min(piece.len() as u64) as usize;
            part.extend_from_slice(&piece[from..to]);
            if reader.received() >= end {
                let bytes = part.freeze();
                return Ok(Fetched { bytes, whole: None });
            }
        }
        Err(short(reader.received()))
    }
}

/// How an attempt goes.
#[derive(Default)]
struct Course {
    /// When its answer began.
    answered: Mutex<Option<Instant>>,
    received: Arc<AtomicU64>,
}

impl Course {
    fn answered(&self) {
        *self.answered.lock() = Some(Instant::now());
    }

    fn has_answered(&self) -> bool {
        self.answered.lock().is_some()
    }

    /// How long the rest of `len` bytes takes at the pace so far, once that can be told.
    fn left(&self, len: u64) -> Option<Duration> {
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

/// Whether a redirect would leave TLS: every machine on the way could read the request and change the answer.
fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme() == "https" && to.scheme() != "https"
}

/// The body of a 206.
async fn exactly(reader: &mut BodyReader, len: u64) -> std::result::Result<Fetched, Failure> {
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
    Ok(Fetched { bytes, whole: None })
}

fn check_content_range(
    response: &Response,
    offset: u64,
    len: u64,
) -> std::result::Result<(), Failure> {
    let header = response.headers().get(CONTENT_RANGE);
    let text = header.and_then(|h| h.to_str().ok()).unwrap_or("");
    let last = offset + len - 1;
    match parse_content_range(text) {
        Some((first, end, total))
            if first == offset && end == last && total.is_none_or(|total| total > last) =>
        {
            Ok(())
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
            if let Want::Range(_, offset, len) = want {
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
