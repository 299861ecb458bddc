//! Storing a blob: the PUT, and what counts as a successful answer.
//!
//! `PUT {publisher}/v1/blobs?epochs=N&permanent=true` (or `deletable=true`) with the raw bytes. The
//! answer comes after certification, always with status 200, as JSON in camelCase with one
//! top-level key. Success is exactly one of `newlyCreated` and `alreadyCertified`: a 200 may as
//! well carry `error` (the same word as in the error envelope of other statuses), `markedInvalid`,
//! or a proxy's page. `certifiedEpoch` says nothing: current publishers leave it null, as the
//! object's state is taken at registration.
//!
//! `permanent=true` is always spelled out, since publishers from 1.33 on store deletable blobs by
//! default. One before 1.29 does not know the parameter and answers 400; its default is permanent,
//! so it is asked again without. That is not remembered: after an update of that publisher the bare
//! request would mean a deletable blob. Likewise `reuse_resources=true`, which publishers know from
//! 1.46 on: one that does not is asked without it, and sells new storage.
//!
//! A store never asks an aggregator first whether the blob exists: that would plant a 404 in
//! caches.

use bytes::Bytes;
use futures_util::TryStreamExt;
use reqwest::header::{HeaderValue, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

use super::blob_id;
use super::endpoints::Endpoint;
use super::observe::{attempt_span, end_span};
use super::retry::{Class, Failure, Rotation};
use super::shared::Shared;
use super::transport::{explain, send_failure, BodyReader, ErrorAnswer, Progress, PIECE};
use super::{Body, StoreOptions, StoreResult};
use crate::error::{Error, ErrorKind, Result};

/// Longest store answer that is read (bytes); real ones have about 1 KiB.
const MAX_ANSWER: u64 = 1 << 20;

/// A connection that breaks while a body is sent is taken for a size limit only above this (bytes).
const LIMIT_PLAUSIBLE: u64 = 1 << 20;

/// How long a small request to a publisher may take that shows whether it is there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

impl Shared {
    pub(super) async fn store(&self, body: &Body, options: StoreOptions) -> Result<StoreResult> {
        let stored = self.store_anywhere(body, options).await;
        let stats = &self.stats;
        match &stored {
            Ok(result) => {
                self.remember_certified(&result.blob_id);
                stats.puts.fetch_add(1, Relaxed);
                stats.put_bytes.fetch_add(body.len(), Relaxed);
                stats.cost_frost.fetch_add(result.cost, Relaxed);
                let encoded = result.encoded_size.unwrap_or(0);
                stats.encoded_bytes.fetch_add(encoded, Relaxed);
            }
            Err(_) => {
                stats.put_failures.fetch_add(1, Relaxed);
            }
        }
        stored
    }

    async fn store_anywhere(&self, body: &Body, options: StoreOptions) -> Result<StoreResult> {
        let len = body.len();
        if options.epochs == 0 {
            let text = "epochs: a blob is stored for at least 1 epoch";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if self.publishers.len() == 0 {
            let text = "publisherURL: no publisher is configured, so nothing can be stored";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let what = format!("storing {len} bytes");
        let mut rotation = Rotation::new(&self.publishers, &self.policy);
        // The publishers whose connections have broken more than once.
        let mut limited = HashSet::new();
        while let Some((index, publisher)) = rotation.next().await {
            let begun = Instant::now();
            let attempt = if publisher.surely_refuses(len) {
                let known = "does not take bodies of this size (answered 413 before)";
                Err(Failure::new(Class::TooLarge, known))
            } else {
                let span = attempt_span("upload_attempt", publisher);
                let attempt = self.put(publisher, body, options).await;
                end_span(span, &attempt);
                let attempts = &self.publishers.attempts;
                attempts.took(begun.elapsed(), attempt.is_ok());
                attempt
            };
            match attempt {
                Ok(result) => {
                    publisher.tally.answered();
                    publisher.accepted(len);
                    self.publishers.succeeded(index);
                    self.count(&rotation);
                    return Ok(result);
                }
                Err(failure) if failure.class == Class::Local => {
                    let text = format!("{what}: reading them on this side: {}", failure.reason);
                    return Err(Error::retryable(ErrorKind::Disk, text));
                }
                Err(failure) => {
                    self.note(&self.publishers, index, &failure);
                    // A publisher that refuses one upload will hardly take the next.
                    if failure.class == Class::Refused {
                        self.publishers.failed(index);
                    }
                    if failure.class == Class::BrokenSend && publisher.broke(len) {
                        limited.insert(index);
                    }
                    rotation.failed(index, failure);
                }
            }
        }
        self.count(&rotation);
        let mut broken = false;
        for (index, failure) in rotation.failures() {
            if failure.class != Class::BrokenSend || len <= LIMIT_PLAUSIBLE {
                continue;
            }
            let publisher = self.publishers.get(index);
            if !self.answers(publisher).await {
                continue;
            }
            broken = true;
            if limited.contains(&index) {
                publisher.refused(len, false);
            }
        }
        if broken || rotation.count(Class::TooLarge) > 0 {
            return Err(rotation.error(ErrorKind::TooLarge, what));
        }
        Err(rotation.error(ErrorKind::Walrus, what))
    }

    /// Whether a publisher answers a small request: one for the path of uploads, which it may
    /// refuse as it likes. What closes every connection, or answers for a publisher that is away (a
    /// proxy or a tunnel before one that is being started again) does not mind the size of a body:
    /// packs that are cut into ever smaller ones cost many times as much.
    async fn answers(&self, publisher: &Endpoint) -> bool {
        let Ok(url) = Url::parse(&publisher.url("/v1/blobs")) else {
            return false;
        };
        let mut request = self.http(&url).get(url.clone());
        if let Some(basic) = publisher.basic() {
            request = request.header(AUTHORIZATION, basic.clone());
        }
        let answer = tokio::time::timeout(ANSWERS_WITHIN, request.send()).await;
        let Ok(Ok(answer)) = answer else { return false };
        !matches!(answer.status().as_u16(), 502..=504)
    }

    /// One attempt (another request for each parameter that the publisher turns out not to know).
    async fn put(
        &self,
        publisher: &Endpoint,
        body: &Body,
        options: StoreOptions,
    ) -> std::result::Result<StoreResult, Failure> {
        let persistence = if options.deletable {
            "&deletable=true"
        } else {
            "&permanent=true"
        };
        let reuse = format!("{persistence}&reuse_resources=true");
        let asked = if options.reuse { &reuse } else { persistence };
        let mut answer = self
            .put_once(publisher, body, options.epochs, asked)
            .await?;
        if let Err(refusal) = &answer {
            let unknown = names_unknown(&refusal.body, "reuse_resources");
            if options.reuse && refusal.status.as_u16() == 400 && unknown {
                answer = self
                    .put_once(publisher, body, options.epochs, persistence)
                    .await?;
            }
        }
        let refusal = match answer {
            Ok(answer) => return Ok(answer.result),
            Err(refusal) => refusal,
        };
        if refusal.status.as_u16() != 400
            || options.deletable
            || !names_unknown(&refusal.body, "permanent")
        {
            return Err(judge(refusal, publisher, body.len()));
        }
        match self.put_once(publisher, body, options.epochs, "").await? {
            Ok(answer) if answer.deletable == Some(true) => Err(Failure::new(
                Class::Refused,
                "does not know `permanent`, and stored a deletable blob without it",
            )),
            Ok(answer) => Ok(answer.result),
            Err(refusal) => Err(judge(refusal, publisher, body.len())),
        }
    }

    /// One request. The inner error is an answer with an error status.
    async fn put_once(
        &self,
        publisher: &Endpoint,
        body: &Body,
        epochs: u32,
        persistence: &str,
    ) -> std::result::Result<std::result::Result<Answer, ErrorAnswer>, Failure> {
        let token = self.auth.token().await;
        let token = token.map_err(|reason| Failure::new(Class::Token, reason))?;
        let url = publisher.url(&format!("/v1/blobs?epochs={epochs}{persistence}"));
        let progress = Progress::upload(self.request_timeout, body.len());
        let url = Url::parse(&url).map_err(|e| Failure::new(Class::Wrong, format!("URL: {e}")))?;
        let mut request = self
            .http(&url)
            .put(url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, body.len())
            .body(stream_of(body, &progress));
        if let Some(token) = &token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Failure::new(Class::Refused, "the token makes no header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        } else if let Some(basic) = publisher.basic() {
            request = request.header(AUTHORIZATION, basic.clone());
        }
        let response = progress
            .limit(request.send())
            .await?
            .map_err(|error| send_failure(error, &progress, &url))?;
        let status = response.status();
        if status.as_u16() != 200 {
            let location = response.headers().get(LOCATION).cloned();
            let mut answer = ErrorAnswer::read(response, publisher, token.as_deref()).await;
            if status.is_redirection() {
                let host = location
                    .and_then(|l| {
                        url::Url::parse(l.to_str().ok()?)
                            .ok()?
                            .host_str()
                            .map(String::from)
                    })
                    .unwrap_or_else(|| "the same host".into());
                answer.text = format!(
                    "HTTP {}: redirects uploads to {host}; uploads are not redirected, configure that URL",
                    status.as_u16()
                );
            }
            return Ok(Err(answer));
        }
        let mut reader = BodyReader::new(response, self.request_timeout);
        let text = match reader.collect(MAX_ANSWER).await {
            Ok(text) => text,
            Err(failure) => {
                return Err(Failure {
                    class: Class::Transient,
                    ..failure
                })
            }
        };
        if let Ok(answer) = parse_answer(&text) {
            return Ok(Ok(answer));
        }
        // Once more for the reason, with secrets blotted out before anything is cut from it.
        let text = publisher.redact(&String::from_utf8_lossy(&text), token.as_deref());
        let reason = parse_answer(text.as_bytes())
            .err()
            .unwrap_or_else(|| "garbled".into());
        Err(Failure::new(
            Class::Transient,
            format!("HTTP 200 without a stored blob: {reason}"),
        ))
    }
}

fn judge(refusal: ErrorAnswer, publisher: &Endpoint, len: u64) -> Failure {
    match refusal.status.as_u16() {
        413 => {
            publisher.refused(len, true);
            refusal.failure(Class::TooLarge)
        }
        200..=299 => refusal.failure(Class::Transient),
        _ => {
            let class = refusal.class();
            refusal.failure(class)
        }
    }
}

/// Whether a 400 complains about an unknown query parameter `name`. The text is all there is to
/// tell it by: the publisher hands on the message of its parser, without a reason or a code.
fn names_unknown(body: &str, name: &str) -> bool {
    body.contains("unknown field") && {
        let said = body.split("unknown field").nth(1).unwrap_or("");
        // The text goes on with ", expected one of …", which may name anything.
        let said = said.split("expected").next().unwrap_or("");
        said.contains(name)
    }
}

/// The body as a stream of pieces, which notes how far the sending has come.
fn stream_of(body: &Body, progress: &Arc<Progress>) -> reqwest::Body {
    if body.is_empty() {
        return reqwest::Body::from(Bytes::new());
    }
    let (sent, failed) = (progress.clone(), progress.clone());
    let pieces = body
        .stream(PIECE)
        .inspect_ok(move |piece| sent.sent(piece.len()));
    reqwest::Body::wrap_stream(pieces.inspect_err(move |error| failed.unreadable(error)))
}

/// The answer of a publisher.
#[derive(Debug, PartialEq)]
struct Answer {
    result: StoreResult,
    /// Whether the new blob is deletable, if the answer says.
    deletable: Option<bool>,
}

/// Reads a store answer; `Err` is a reason for people.
fn parse_answer(text: &[u8]) -> std::result::Result<Answer, String> {
    let Ok(Value::Object(answer)) = serde_json::from_slice::<Value>(text) else {
        let (_, excerpt) = explain(&String::from_utf8_lossy(text));
        return Err(format!("not a JSON object: {excerpt}"));
    };
    if answer.contains_key("error") {
        let (_, message) = explain(&String::from_utf8_lossy(text));
        return Err(format!("the store failed: {message}"));
    }
    if answer.contains_key("markedInvalid") {
        return Err("the blob was marked invalid".into());
    }
    match (answer.get("newlyCreated"), answer.get("alreadyCertified")) {
        (Some(new), None) => newly_created(new),
        (None, Some(old)) => already_certified(old),
        (Some(_), Some(_)) => Err("both newlyCreated and alreadyCertified".into()),
        (None, None) => Err("neither newlyCreated nor alreadyCertified".into()),
    }
}

fn newly_created(new: &Value) -> std::result::Result<Answer, String> {
    let object = new["blobObject"]
        .as_object()
        .ok_or("newlyCreated without blobObject")?;
    let storage = &object.get("storage").unwrap_or(&Value::Null);
    Ok(Answer {
        result: StoreResult {
            blob_id: blob_id(object)?,
            object_id: object.get("id").and_then(Value::as_str).map(String::from),
            // Storage that was taken over from a deleted blob began earlier.
            start_epoch: (object.get("registeredEpoch").and_then(number))
                .or_else(|| number(&storage["startEpoch"])),
            end_epoch: number(&storage["endEpoch"]).ok_or("blobObject without endEpoch")?,
            encoded_size: number(&storage["storageSize"]),
            cost: number(&new["cost"]).unwrap_or(0),
            newly_created: new["resourceOperation"].get("reuseAndExtend").is_none(),
            reused: reused(&new["resourceOperation"]),
        },
        deletable: object.get("deletable").and_then(Value::as_bool),
    })
}

fn already_certified(old: &Value) -> std::result::Result<Answer, String> {
    let old = old.as_object().ok_or("alreadyCertified is no object")?;
    let end_epoch = old.get("endEpoch").and_then(number);
    Ok(Answer {
        result: StoreResult {
            blob_id: blob_id(old)?,
            object_id: old.get("object").and_then(Value::as_str).map(String::from),
            start_epoch: None,
            end_epoch: end_epoch.ok_or("alreadyCertified without endEpoch")?,
            encoded_size: None,
            cost: 0,
            newly_created: false,
            reused: None,
        },
        deletable: None,
    })
}

/// Whether this operation took over what the wallet owned already; `None` if that is not known.
fn reused(operation: &Value) -> Option<bool> {
    let mut names = operation.as_object()?.keys();
    let (name, None) = (names.next()?, names.next()) else {
        return None;
    };
    match name.as_str() {
        "registerFromScratch" => Some(false),
        "reuseStorage" | "reuseRegistration" | "reuseAndExtend" | "reuseAndExtendNonCertified" => {
            Some(true)
        }
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn blob_id(object: &Map<String, Value>) -> std::result::Result<String, String> {
    match object.get("blobId").and_then(Value::as_str) {
        Some(id) if blob_id::decode(id).is_some() => Ok(id.to_string()),
        Some(id) => {
            let shown = super::transport::one_line(id, 60);
            Err(format!("malformed blobId {shown:?}"))
        }
        None => Err("no blobId".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";

    fn parse(text: &str) -> std::result::Result<Answer, String> {
        parse_answer(text.as_bytes())
    }

    fn new_answer() -> String {
        format!(
            r#"{{"newlyCreated":{{"blobObject":{{"id":"0xab","registeredEpoch":34,"blobId":"{ID}",
            "size":17,"encodingType":"RS2","certifiedEpoch":null,"storage":{{"id":"0xcd",
            "startEpoch":34,"endEpoch":39,"storageSize":66034000}},"deletable":false}},
            "resourceOperation":{{"registerFromScratch":{{"encodedLength":66034000,
            "epochsAhead":5}}}},"cost":32760000,"news":[1]}}}}"#
        )
    }

    #[test]
    fn successful_answers() {
        let new = parse(&new_answer()).unwrap();
        assert_eq!(
            new.result,
            StoreResult {
                blob_id: ID.into(),
                object_id: Some("0xab".into()),
                start_epoch: Some(34),
                end_epoch: 39,
                encoded_size: Some(66_034_000),
                cost: 32_760_000,
                newly_created: true,
                reused: Some(false),
            }
        );
        for (operation, reused) in [
            (r#""reuseStorage":{"encodedLength":1}"#, Some(true)),
            (
                r#""reuseAndExtend":{"encodedLength":1,"epochsExtended":2}"#,
                Some(true),
            ),
            (r#""leased":{}"#, None),
            (r#""registerFromScratch":{},"reuseStorage":{}"#, None),
            ("", None),
        ] {
            let scratch = r#""registerFromScratch":{"encodedLength":66034000,
            "epochsAhead":5}"#;
            assert!(new_answer().contains(scratch));
            let text = new_answer().replace(scratch, operation);
            assert_eq!(parse(&text).unwrap().result.reused, reused, "{operation}");
        }
        assert_eq!(new.deletable, Some(false));
        for (how, object) in [
            (r#""event":{"txDigest":"x","eventSeq":"0"}"#, None),
            (r#""object":"0xab""#, Some("0xab".to_string())),
        ] {
            let text = format!(r#"{{"alreadyCertified":{{"blobId":"{ID}",{how},"endEpoch":39}}}}"#);
            let old = parse(&text).unwrap().result;
            assert_eq!((old.object_id, old.end_epoch, old.cost), (object, 39, 0));
            assert!(!old.newly_created);
        }
    }

    #[test]
    fn answers_that_are_none() {
        let new = new_answer();
        let both = format!(
            r#"{{"alreadyCertified":{{"blobId":"{ID}","endEpoch":1}},{}"#,
            &new[1..]
        );
        let with_error = format!(r#"{{"error":{{"errorMsg":"no coins"}},{}"#, &new[1..]);
        for (text, part) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("null", "not a JSON object"),
            ("\"newlyCreated\"", "not a JSON object"),
            ("<html><title>Welcome</title>", "HTML page (Welcome)"),
            (&new[..new.len() - 1], "not a JSON object"),
            ("{}", "neither"),
            (r#"{"newlycreated":{}}"#, "neither"),
            (
                r#"{"error":{"blobId":null,"failurePhase":"p","errorMsg":"no coins"}}"#,
                "no coins",
            ),
            (r#"{"error":null}"#, "failed"),
            (&with_error, "no coins"),
            (&both, "both"),
            (r#"{"markedInvalid":{"blobId":"x","event":{}}}"#, "invalid"),
            (r#"{"newlyCreated":null}"#, "without blobObject"),
            (r#"{"newlyCreated":{"blobObject":7}}"#, "without blobObject"),
            (r#"{"newlyCreated":{"blobObject":{}}}"#, "no blobId"),
            (r#"{"alreadyCertified":[]}"#, "no object"),
            (
                r#"{"alreadyCertified":{"blobId":7,"endEpoch":1}}"#,
                "no blobId",
            ),
            (&new.replace(ID, &ID[1..]), "malformed blobId"),
            (&new.replace(ID, &format!("{ID}=")), "malformed blobId"),
            (&new.replace(ID, &ID.replace('-', "+")), "malformed blobId"),
            (
                &new.replace(ID, &ID.replace("BUk", "BUl")),
                "malformed blobId",
            ),
            (
                &new.replace("\"endEpoch\":39", "\"endEpoch\":-39"),
                "endEpoch",
            ),
            (
                &new.replace("\"endEpoch\":39", "\"endEpoch\":\"x\""),
                "endEpoch",
            ),
            (&"[".repeat(100_000), "not a JSON object"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn unknown_parameters() {
        let text =
            "Failed to deserialize query string: unknown field `permanent`, expected one of \
                    `encoding_type`, `epochs`";
        assert!(names_unknown(text, "permanent"));
        assert!(!names_unknown(text, "epochs"));
        assert!(!names_unknown("permanent is wrong", "permanent"));
    }

    proptest! {
        #[test]
        fn garbage_never_passes(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_answer(&text).is_err());
        }

        #[test]
        fn damaged_answers_pass_only_with_a_good_blob_id(at in 0usize..500, with in any::<u8>()) {
            let mut text = new_answer().into_bytes();
            let at = at % text.len();
            text[at] = with;
            if let Ok(answer) = parse_answer(&text) {
                prop_assert!(blob_id::decode(&answer.result.blob_id).is_some());
            }
        }
    }
}
