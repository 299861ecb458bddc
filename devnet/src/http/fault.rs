//! Applying faults to requests and answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::{header, HeaderValue, Method, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::{stream, StreamExt as _};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;

use super::body::{self, LimitOverride};
use super::chain::OutOfFunds;
use super::error::{self, ApiError};
use super::read::flushed;
use super::Endpoint;
use crate::faults::{FaultAction, Loss, Op, Subject};
use crate::server::Connection;

/// The 404s that a CDN would repeat, by endpoint and URL, with their end.
#[derive(Debug, Default)]
pub(crate) struct CachedNotFound(Mutex<HashMap<(usize, String), Instant>>);

impl CachedNotFound {
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Handles a request under the rules that fire for it.
pub(crate) async fn run(
    endpoint: &Arc<Endpoint>,
    op: Op,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let url = request.uri().to_string();
    let subject = Subject {
        op,
        endpoint: endpoint.index,
        url: &url,
        blob_id: request
            .uri()
            .path()
            .split('/')
            .nth(3)
            .and_then(|id| id.parse().ok()),
    };
    let actions = endpoint.shared.faults.strike(&subject);
    if actions.is_empty() {
        return next.run(request).await;
    }
    endpoint.stats().faulted();
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let head = request.method() == Method::HEAD;

    for action in &actions {
        match before(endpoint, op, &url, action, request, connection.as_ref()).await {
            Ok(unchanged) => request = unchanged,
            Err(answer) => return answer,
        }
    }
    let mut response = next.run(request).await;
    for action in actions.iter().filter(|_| !head) {
        response = after(endpoint, op, &url, action, response, connection.as_ref()).await;
    }
    response
}

/// Breaks the connection; the answer is never sent.
async fn break_off(connection: Option<&Arc<Connection>>, reset: bool) -> Response<Body> {
    if let Some(connection) = connection {
        connection.break_off(reset);
    }
    pending().await
}

/// Reads at least so many bytes of the body, if it has them.
async fn read_some(request: Request, bytes: u64) -> BodyDataStream {
    let mut body = request.into_body().into_data_stream();
    let mut read = 0;
    while read < bytes {
        match body.next().await {
            Some(Ok(chunk)) => read += chunk.len() as u64,
            _ => break,
        }
    }
    body
}

/// Answers like a proxy that has read the request.
async fn instead(request: Request, answer: Response<Body>) -> Response<Body> {
    body::discard(request.into_body()).await;
    answer
}

async fn before(
    endpoint: &Arc<Endpoint>,
    op: Op,
    url: &str,
    action: &FaultAction,
    mut request: Request,
    connection: Option<&Arc<Connection>>,
) -> Result<Request, Response<Body>> {
    let write = op.is_write();
    let answer = match action {
        FaultAction::Latency { ms, .. } => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            return Ok(request);
        }
        FaultAction::Status {
            status,
            body,
            content_type,
            retry_after,
        } => {
            let mut answer = Response::new(Body::from(body.clone()));
            *answer.status_mut() =
                StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let content_type = content_type.as_ref().map(|t| HeaderValue::from_str(t));
            if let Some(Ok(content_type)) = content_type {
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            with_retry_after(answer, *retry_after)
        }
        FaultAction::Overloaded { retry_after } => {
            let what = if write { "publisher" } else { "aggregator" };
            with_retry_after(error::overloaded(what), *retry_after)
        }
        FaultAction::Internal => ApiError::internal("a fault rule wants it").into_response(),
        FaultAction::Unavailable => ApiError::unavailable().into_response(),
        FaultAction::Unconfirmed => ApiError::unconfirmed().into_response(),
        FaultAction::NotFound => ApiError::blob_not_found().into_response(),
        FaultAction::BadGateway => proxy_page(StatusCode::BAD_GATEWAY),
        FaultAction::ErrorResult { message } if write => {
            let result = json!({"error": {
                "blobId": null,
                "failurePhase": "upload",
                "errorMsg": message,
            }});
            put_answer(op, result)
        }
        FaultAction::MarkedInvalid if op == Op::Put => {
            ApiError::internal("the blob is marked as invalid").into_response()
        }
        FaultAction::MarkedInvalid if write => {
            let result = json!({"markedInvalid": {
                "blobId": crate::BlobId(rand::random()),
                "event": {"txDigest": crate::object_id::random_digest(), "eventSeq": "0"},
            }});
            put_answer(op, result)
        }
        FaultAction::BodyLimit { bytes } if write => {
            request.extensions_mut().insert(LimitOverride(*bytes));
            return Ok(request);
        }
        FaultAction::OutOfFunds { gas } => {
            request.extensions_mut().insert(OutOfFunds { gas: *gas });
            return Ok(request);
        }
        FaultAction::Hang => {
            tokio::spawn(body::discard(request.into_body()));
            return Err(pending().await);
        }
        FaultAction::StopReading { after } if write => {
            // Held, because a dropped body would be read and thrown away.
            let _rest = read_some(request, *after).await;
            return Err(pending().await);
        }
        FaultAction::Reset { after } => {
            drop(read_some(request, *after).await);
            return Err(break_off(connection, true).await);
        }
        FaultAction::IgnoreRange if op == Op::ByteRange => {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
        FaultAction::IgnoreRange => {
            request.headers_mut().remove(header::RANGE);
            return Ok(request);
        }
        FaultAction::UnknownParameters { names } => {
            let query = request.uri().query().unwrap_or("");
            let mut keys = query.split('&').filter_map(|pair| pair.split('=').next());
            match keys.find(|key| names.iter().any(|name| name == key)) {
                Some(key) => error::bad_query(format!("{key}: unknown field `{key}`")),
                None => return Ok(request),
            }
        }
        FaultAction::CachedNotFound { .. } => {
            let key = (endpoint.index, url.to_owned());
            let until = endpoint.shared.cached.0.lock().get(&key).copied();
            match until {
                Some(until) if until > Instant::now() => {
                    let mut answer = ApiError::blob_not_found().into_response();
                    let hit = HeaderValue::from_static("HIT");
                    answer.headers_mut().insert("x-cache", hit);
                    answer
                }
                _ => return Ok(request),
            }
        }
        _ => return Ok(request),
    };
    Err(instead(request, answer).await)
}

async fn after(
    endpoint: &Arc<Endpoint>,
    op: Op,
    url: &str,
    action: &FaultAction,
    response: Response<Body>,
    connection: Option<&Arc<Connection>>,
) -> Response<Body> {
    match action {
        FaultAction::AnswerLost { how } if op.is_write() || op.is_on_chain() => match how {
            Loss::Cut => break_off(connection, false).await,
            Loss::Hang => pending().await,
            Loss::Unconfirmed => ApiError::unconfirmed().into_response(),
            Loss::GatewayTimeout => proxy_page(StatusCode::GATEWAY_TIMEOUT),
        },
        FaultAction::CachedNotFound { seconds } => {
            if op.is_read() && response.status() == StatusCode::NOT_FOUND {
                let until = Instant::now() + Duration::from_secs(*seconds);
                let key = (endpoint.index, url.to_owned());
                endpoint.shared.cached.0.lock().insert(key, until);
            }
            response
        }
        FaultAction::CutBody { .. }
        | FaultAction::Stall { .. }
        | FaultAction::Drip { .. }
        | FaultAction::Truncate { .. }
        | FaultAction::Corrupt { .. }
        | FaultAction::WrongBlob { .. }
        | FaultAction::Oversized { .. }
            if response.status().is_success() =>
        {
            spoil(endpoint, action, response, connection).await
        }
        _ => response,
    }
}

/// Tampers with the body of a successful answer.
async fn spoil(
    endpoint: &Arc<Endpoint>,
    action: &FaultAction,
    response: Response<Body>,
    connection: Option<&Arc<Connection>>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let mut data = match body.collect().await {
        Ok(collected) => Vec::from(collected.to_bytes()),
        Err(_) => Vec::new(),
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    match action {
        FaultAction::CutBody { after, .. } | FaultAction::Stall { after } => {
            let declared = HeaderValue::from(data.len());
            parts.headers.insert(header::CONTENT_LENGTH, declared);
            data.truncate(usize::try_from(*after).unwrap_or(usize::MAX));
            let first = stream::iter([Ok(Bytes::from(data))]);
            let connection = connection.cloned();
            let (stall, reset) = match action {
                FaultAction::CutBody { reset, .. } => (false, *reset),
                _ => (true, false),
            };
            let last = stream::once(async move {
                flushed().await;
                if stall {
                    return pending().await;
                }
                if let Some(connection) = connection {
                    connection.break_off(reset);
                }
                Err("cut by a fault rule")
            });
            return Response::from_parts(parts, Body::from_stream(first.chain(last)));
        }
        FaultAction::Drip { bytes, every_ms } => {
            let declared = HeaderValue::from(data.len());
            parts.headers.insert(header::CONTENT_LENGTH, declared);
            let size = usize::try_from(*bytes).unwrap_or(usize::MAX).max(1);
            let pause = Duration::from_millis(*every_ms);
            let data = Bytes::from(data);
            let drops = stream::unfold(data, move |mut left| async move {
                if left.is_empty() {
                    return None;
                }
                tokio::time::sleep(pause).await;
                let drop = left.split_to(size.min(left.len()));
                Some((Ok::<_, Infallible>(drop), left))
            });
            return Response::from_parts(parts, Body::from_stream(drops));
        }
        FaultAction::Truncate { by } => {
            let left = (data.len() as u64).saturating_sub(*by);
            data.truncate(left as usize);
        }
        FaultAction::Corrupt { offset } => {
            let len = data.len() as u64;
            if let Some(byte) = offset
                .checked_rem(len)
                .and_then(|at| data.get_mut(at as usize))
            {
                *byte ^= 1;
            }
        }
        FaultAction::WrongBlob { blob_id } => {
            let found = blob_id.and_then(|id| endpoint.find(&id).ok());
            let other = match found {
                Some(found) => endpoint.content(&found, 0, found.size).await.ok(),
                None => None,
            };
            let other = other.filter(|other| !other.is_empty());
            let other = other.unwrap_or(Bytes::from_static(b"something else entirely"));
            for (byte, wrong) in data.iter_mut().zip(other.iter().cycle()) {
                *byte = *wrong;
            }
        }
        FaultAction::Oversized { by } => {
            let len = (data.len() as u64).saturating_add(*by);
            data.resize(len as usize, 0x2a);
        }
        _ => {}
    }
    Response::from_parts(parts, Body::from(data))
}

fn put_answer(op: Op, result: serde_json::Value) -> Response<Body> {
    super::write::json(&if op == Op::PutQuilt {
        json!({"blobStoreResult": result, "storedQuiltBlobs": []})
    } else {
        result
    })
}

fn with_retry_after(mut answer: Response<Body>, seconds: Option<u64>) -> Response<Body> {
    if let Some(seconds) = seconds {
        let headers = answer.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn proxy_page(code: StatusCode) -> Response<Body> {
    let page = format!(
        "<html>\r\n<head><title>{code}</title></head>\r\n<body>\r\n\
         <center><h1>{code}</h1></center>\r\n<hr><center>proxy</center>\r\n</body>\r\n</html>\r\n"
    );
    error::with_type(code, "text/html", page)
}
