//! The aggregator: all reads.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{header, HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream;
use serde::de::{Deserializer, Error as _};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::{self, ApiError};
use super::Endpoint;
use crate::blob_id::BlobId;
use crate::network::{Found, Object};
use crate::object_id::ObjectId;

/// Attributes of a Blob object that are served as headers.
const ATTRIBUTE_HEADERS: [&str; 7] = [
    "content-type",
    "authorization",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "link",
];

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReadQuery {
    strict_consistency_check: bool,
    skip_consistency_check: bool,
}

impl ReadQuery {
    fn check(self) -> Result<(), ApiError> {
        if self.strict_consistency_check && self.skip_consistency_check {
            return Err(ApiError::invalid(
                "INVALID_CONSISTENCY_CHECK",
                "strict_consistency_check and skip_consistency_check exclude each other",
            ));
        }
        Ok(())
    }
}

pub(crate) async fn blob(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<BlobId>,
    Query(query): Query<ReadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    endpoint.full_or_range(id, query, &method, &headers).await
}

pub(crate) async fn by_object_id(
    State(endpoint): State<Arc<Endpoint>>,
    Path(object_id): Path<ObjectId>,
    Query(query): Query<ReadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let (id, attributes) = match endpoint.network().object(&object_id) {
        Some(Object::Blob {
            blob_id,
            attributes,
        }) => (blob_id, attributes),
        Some(Object::Other) => {
            return Err(ApiError::internal(format!(
                "the object {object_id} is not a Blob object"
            )))
        }
        None => return Err(ApiError::blob_not_found()),
    };
    let mut response = endpoint.full_or_range(id, query, &method, &headers).await?;
    add_allowed_headers(&mut response, &attributes);
    Ok(response)
}

/// Adds those attributes that may be headers, unless such a header is there already.
pub(crate) fn add_allowed_headers<'a>(
    response: &mut Response<Body>,
    attributes: impl IntoIterator<Item = &'a (String, String)>,
) {
    for (name, value) in attributes {
        let name = name.to_ascii_lowercase();
        if !ATTRIBUTE_HEADERS.contains(&name.as_str()) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            response.headers_mut().entry(name).or_insert(value);
        }
    }
}

impl Endpoint {
    pub(crate) fn find(&self, id: &BlobId) -> Result<Found, ApiError> {
        if self.network().is_blocked(id) {
            return Err(ApiError::forbidden_blob());
        }
        self.network().find(id).ok_or_else(ApiError::blob_not_found)
    }

    /// `len` bytes from `start`, after the configured latency.
    pub(crate) async fn content(
        self: &Arc<Self>,
        found: &Found,
        start: u64,
        len: u64,
    ) -> Result<Bytes, ApiError> {
        let latency = self.options().latency_get;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let result = if self.network().on_disk() {
            let (this, found) = (Arc::clone(self), found.clone());
            tokio::task::spawn_blocking(move || this.network().read(&found, start, len))
                .await
                .map_err(std::io::Error::other)
                .and_then(|result| result)
        } else {
            self.network().read(found, start, len)
        };
        result.map_err(|why| ApiError::internal(format!("reading the content: {why}")))
    }

    async fn full_or_range(
        self: &Arc<Self>,
        id: BlobId,
        query: ReadQuery,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        query.check()?;
        let range = match headers.get(header::RANGE) {
            None => None,
            Some(value) => Some(parse_range(value).ok_or_else(|| {
                ApiError::range("the range header is not a single range with both ends")
            })?),
        };
        let found = self.find(&id)?;
        let etag = id.to_string();
        let Some((first, last)) = range else {
            self.check_size(&found)?;
            let content = self.content(&found, 0, found.size).await?;
            return Ok(blob_response(&etag, content, method, headers));
        };
        if last >= found.size {
            return Err(ApiError::range(format!(
                "the range {first}-{last} exceeds the blob size {}",
                found.size
            )));
        }
        let content = self.content(&found, first, last - first + 1).await?;
        let mut response = blob_response(&etag, content, method, headers);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response.headers_mut().insert(
            header::CONTENT_RANGE,
            value(&format!("bytes {first}-{last}/{}", found.size)),
        );
        Ok(response)
    }

    fn check_size(&self, found: &Found) -> Result<(), ApiError> {
        match self.options().max_blob_size {
            Some(max) if found.size > max => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "SIZE_EXCEEDED",
                "BLOB_TOO_LARGE",
                format!(
                    "the blob of {} bytes exceeds the limit of {max}",
                    found.size
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Exactly `bytes=A-B` with A ≤ B.
fn parse_range(value: &HeaderValue) -> Option<(u64, u64)> {
    let (first, last) = value
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// A 200 with the headers every blob is served with. There is no content type unless the request
/// names one.
pub(crate) fn blob_response(
    etag: &str,
    content: impl Into<Body>,
    method: &Method,
    request: &HeaderMap,
) -> Response<Body> {
    let mut response = Response::new(content.into());
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=86400, stale-while-revalidate=3600"),
    );
    headers.insert(header::ETAG, value(etag)); // without quotes, like the original
    let accept = request.get(header::ACCEPT);
    let accept = accept.filter(|accept| !accept.as_bytes().contains(&b'*'));
    let content_type = request.get(header::CONTENT_TYPE);
    let content_type = content_type.filter(|_| method == Method::GET || method == Method::HEAD);
    if let Some(mirrored) = accept.or(content_type) {
        headers.insert(header::CONTENT_TYPE, mirrored.clone());
    }
    response
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByteRange {
    start: u64,
    length: u64,
}

pub(crate) async fn byte_range(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<BlobId>,
    Query(ByteRange { start, length }): Query<ByteRange>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let invalid = |why: &str| ApiError::invalid("INVALID_BYTE_RANGE", why);
    if length == 0 {
        return Err(invalid("the length must not be zero"));
    }
    let end = start
        .checked_add(length)
        .ok_or_else(|| invalid("the range overflows"))?;
    let found = endpoint.find(&id)?;
    if end > found.size {
        return Err(invalid("the range exceeds the blob size"));
    }
    let content = endpoint.content(&found, start, length).await?;
    let etag = format!("{id}-{start}-{length}");
    Ok(blob_response(&etag, content, &method, &headers))
}

pub(crate) async fn streamed(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<BlobId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    if endpoint.role() == crate::Role::Daemon {
        return Err(ApiError::internal_because(
            "SLIVER_RETRIEVAL_FAILED",
            "streaming is not available from a combined daemon",
        ));
    }
    let found = endpoint.find(&id)?;
    let content = endpoint.content(&found, 0, found.size).await?;
    let mut response = blob_response(&id.to_string(), content, &method, &headers);
    response.headers_mut().insert(
        HeaderName::from_static("x-walrus-streaming"),
        HeaderValue::from_static("true"),
    );
    Ok(response)
}

/// The GET form. The flattened options make booleans arrive as text and be refused, as they are
/// by the original.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConcatQuery {
    #[serde(deserialize_with = "comma_separated")]
    ids: Vec<String>,
    #[serde(flatten)]
    options: ConcatOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConcatOptions {
    strict_consistency_check: bool,
    skip_consistency_check: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConcatBody {
    ids: Vec<String>,
    #[serde(flatten)]
    options: ConcatOptions,
}

fn comma_separated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let ids: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect();
    if ids.is_empty() {
        return Err(D::Error::custom("at least one ID is required"));
    }
    Ok(ids)
}

pub(crate) async fn concat_get(
    State(endpoint): State<Arc<Endpoint>>,
    Query(query): Query<ConcatQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    endpoint.concat(query.ids, &query.options, &method, &headers)
}

pub(crate) async fn concat_post(
    State(endpoint): State<Arc<Endpoint>>,
    method: Method,
    headers: HeaderMap,
    Json(body): Json<ConcatBody>,
) -> Result<Response<Body>, Response<Body>> {
    if body.ids.is_empty() {
        let message = "at least one ID is required";
        return Err(error::text(StatusCode::BAD_REQUEST, message));
    }
    endpoint
        .concat(body.ids, &body.options, &method, &headers)
        .map_err(IntoResponse::into_response)
}

impl Endpoint {
    fn concat(
        self: &Arc<Self>,
        ids: Vec<String>,
        options: &ConcatOptions,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        ReadQuery {
            strict_consistency_check: options.strict_consistency_check,
            skip_consistency_check: options.skip_consistency_check,
        }
        .check()?;
        let etag = URL_SAFE_NO_PAD.encode(Sha256::digest(ids.join(",").as_bytes()));
        let resolved: Vec<BlobId> = ids
            .iter()
            .map(|id| self.resolve(id))
            .collect::<Result<_, _>>()?;
        // A missing blob shows only at its turn: the status is sent by then.
        let state = (Arc::clone(self), resolved.into_iter());
        let body = stream::unfold(Some(state), |state| async move {
            let (this, mut ids) = state?;
            let id = ids.next()?;
            let read = async {
                let found = this.find(&id)?;
                this.content(&found, 0, found.size).await
            };
            match read.await {
                Ok(content) => Some((Ok(content), Some((this, ids)))),
                Err(_) => {
                    flushed().await;
                    Some((Err("a blob could not be read"), None))
                }
            }
        });
        Ok(blob_response(
            &etag,
            Body::from_stream(body),
            method,
            headers,
        ))
    }

    fn resolve(&self, id: &str) -> Result<BlobId, ApiError> {
        if let Ok(id) = id.parse() {
            return Ok(id);
        }
        let object_id: ObjectId = id.parse().map_err(|_| {
            ApiError::invalid(
                "INVALID_ID_FORMAT",
                format!("{id:?} is neither a blob ID nor an object ID"),
            )
        })?;
        match self.network().object(&object_id) {
            Some(Object::Blob { blob_id, .. }) => Ok(blob_id),
            _ => Err(ApiError::not_found(
                "OBJECT_ID_RESOLUTION_FAILED",
                format!("the object {object_id} could not be resolved"),
            )),
        }
    }
}

/// Gives the server a moment to write out its buffer: an error right after a chunk would make it
/// drop that chunk.
pub(crate) fn flushed() -> impl Future<Output = ()> {
    tokio::time::sleep(Duration::from_millis(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closed_single_ranges() {
        let parse = |text: &str| parse_range(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("bytes=0-0"), Some((0, 0)));
        assert_eq!(parse("bytes=5-17"), Some((5, 17)));
        for wrong in [
            "bytes=5-",
            "bytes=-5",
            "bytes=6-5",
            "bytes=0-1,3-4",
            "bytes= 0-1",
            "bits=0-1",
            "bytes=0-1 ",
            "bytes=+0-1",
            "bytes=0 - 1",
            "bytes=-",
            "bytes=0-99999999999999999999",
            "0-1",
            "",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
