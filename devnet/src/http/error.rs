//! The publisher's and aggregator's errors: JSON made by handlers, plain text made by the
//! framework.

use axum::body::Body;
use axum::http::{header, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

pub(crate) const DAEMON: &str = "daemon.walrus.space";
pub(crate) const AUTH: &str = "auth.publisher.walrus.space";

/// An error in the JSON envelope.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    code: StatusCode,
    status: &'static str,
    reason: &'static str,
    domain: &'static str,
    message: String,
}

impl ApiError {
    pub fn new(
        code: StatusCode,
        status: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        ApiError {
            code,
            status,
            reason,
            domain: DAEMON,
            message: message.into(),
        }
    }

    pub fn in_domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    pub fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", reason, message)
    }

    pub fn not_found(reason: &'static str, message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", reason, message)
    }

    pub fn blob_not_found() -> Self {
        ApiError::not_found(
            "BLOB_NOT_FOUND",
            "the requested blob ID does not exist on Walrus, ensure that it was entered correctly",
        )
    }

    pub fn forbidden_blob() -> Self {
        ApiError::new(
            StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
            "UNAVAILABLE_FOR_LEGAL_REASONS",
            "FORBIDDEN_BLOB",
            "the requested blob is blocked",
        )
    }

    pub fn range(message: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "RANGE_NOT_SATISFIABLE",
            "INVALID_BYTE_RANGE",
            message,
        )
    }

    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::internal_because("INTERNAL_ERROR", message)
    }

    pub fn internal_because(reason: &'static str, message: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "INTERNAL",
            reason,
            message,
        )
    }

    pub fn unavailable() -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "BLOB_UNAVAILABLE",
            "the blob is temporarily unavailable",
        )
    }

    pub fn unconfirmed() -> Self {
        ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "DEADLINE_EXCEEDED",
            "INSUFFICIENT_CONFIRMATIONS",
            "the client could not collect enough storage confirmations",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut details = vec![json!({
            "@type": "ErrorInfo",
            "reason": self.reason,
            "domain": self.domain,
            "metadata": {},
        })];
        if self.code == StatusCode::INTERNAL_SERVER_ERROR {
            details.push(json!({
                "@type": "DebugInfo",
                "stackEntries": [],
                "detail": "TraceID: 0",
            }));
        }
        let body = json!({"error": {
            "status": self.status,
            "code": self.code.as_u16(),
            "message": self.message,
            "details": details,
        }});
        with_type(self.code, "application/json", body.to_string())
    }
}

/// A plain-text error, as the web framework words them.
pub(crate) fn text(code: StatusCode, message: impl Into<String>) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", message.into())
}

/// The framework's words for a query it does not understand.
pub(crate) fn bad_query(why: impl std::fmt::Display) -> Response<Body> {
    text(
        StatusCode::BAD_REQUEST,
        format!("Failed to deserialize query string: {why}"),
    )
}

/// The framework's words for a body over the limit.
pub(crate) fn body_too_large() -> Response<Body> {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        "Failed to buffer the request body: length limit exceeded",
    )
}

/// The framework's words for shed load.
pub(crate) fn overloaded(what: &str) -> Response<Body> {
    text(
        StatusCode::TOO_MANY_REQUESTS,
        format!("the {what} is temporarily overloaded, please try again later"),
    )
}

pub(crate) fn with_type(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
