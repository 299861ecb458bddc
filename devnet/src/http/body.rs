//! Request bodies: collected once, into one buffer of the right size.

use std::time::Duration;

use axum::body::Body;
use axum::http::{header, HeaderMap, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::error;

/// The largest buffer that is reserved on the word of a declared length.
const MAX_RESERVE: u64 = 256 << 20;
/// How long the rest of a refused body is read, so that the client gets to see the answer.
const LINGER: Duration = Duration::from_secs(10);

/// A lower limit for one request, set by a fault rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitOverride(pub u64);

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Reads the whole body.
///
/// Always into a buffer of its own: a chunk as received keeps the connection's whole read buffer
/// alive, which would be many times a small blob.
pub(crate) async fn collect(mut body: Body, limit: u64) -> Result<Bytes, Response<Body>> {
    let mut data = BytesMut::new();
    let mut first = true;
    loop {
        let frame = match body.frame().await {
            None => return Ok(data.freeze()),
            Some(Ok(frame)) => frame,
            Some(Err(why)) => {
                return Err(error::text(
                    StatusCode::BAD_REQUEST,
                    format!("Failed to buffer the request body: {why}"),
                ))
            }
        };
        let Ok(chunk) = frame.into_data() else {
            continue; // trailers
        };
        if data.len() as u64 + chunk.len() as u64 > limit {
            discard_in_background(body);
            return Err(error::body_too_large());
        }
        if first {
            first = false;
            let expected = chunk.len() as u64 + body.size_hint().lower();
            data.reserve(expected.min(limit).min(MAX_RESERVE) as usize);
        }
        data.extend_from_slice(&chunk);
    }
}

/// Reads and drops the body; returns its length.
pub(crate) async fn discard(mut body: Body) -> u64 {
    let mut len = 0;
    while let Some(Ok(frame)) = body.frame().await {
        len += frame.data_ref().map_or(0, Bytes::len) as u64;
    }
    len
}

/// Lets the client finish sending while it is being answered. Closing a socket with unread data
/// resets the connection, and the answer would often be lost with it.
pub(crate) fn discard_in_background(body: Body) {
    tokio::spawn(tokio::time::timeout(LINGER, discard(body)));
}
