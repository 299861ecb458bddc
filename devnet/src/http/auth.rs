//! Bearer tokens of the publisher.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{header, HeaderMap, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{decode, Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde::Deserialize;

use super::body;
use super::error::{self, ApiError, AUTH};
use super::put_query::PutQuery;
use super::Endpoint;
use crate::object_id::ObjectId;
use crate::Jwt;

/// The claims of a token.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Claims {
    exp: i64,
    jti: String,
    #[serde(default)]
    iat: Option<i64>,
    #[serde(default)]
    send_object_to: Option<ObjectId>,
    #[serde(default)]
    epochs: Option<u32>,
    #[serde(default)]
    max_epochs: Option<u32>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    max_size: Option<u64>,
}

/// The used tokens, kept until they expire.
#[derive(Debug, Default)]
pub(crate) struct UsedTokens(Mutex<HashMap<String, i64>>);

/// Tokens are accepted for so long after they expire, in seconds.
const LEEWAY: u64 = 60;

impl UsedTokens {
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    fn redeem(&self, claims: &Claims) -> bool {
        let mut used = self.0.lock();
        let now = now();
        used.retain(|_, exp| *exp + LEEWAY as i64 >= now);
        used.insert(claims.jti.clone(), claims.exp).is_none()
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| passed.as_secs() as i64)
}

fn rejected(reason: &'static str, message: &str) -> ApiError {
    let status = "FAILED_PRECONDITION";
    ApiError::new(StatusCode::BAD_REQUEST, status, reason, message).in_domain(AUTH)
}

impl Claims {
    /// Whether content of this size may be stored.
    pub fn check_size(&self, size: u64) -> Result<(), ApiError> {
        let exact = self.size.is_none_or(|exact| exact == size);
        let bounded = self.max_size.is_none_or(|max| size <= max);
        if exact && bounded {
            return Ok(());
        }
        let message = "the size of the content is not what the token allows";
        Err(rejected("INVALID_SIZE", message))
    }

    fn check(&self, jwt: &Jwt) -> Result<(), ApiError> {
        if (self.epochs.is_some() && self.max_epochs.is_some())
            || (self.size.is_some() && self.max_size.is_some())
        {
            let message = "the token sets both an exact value and a maximum";
            return Err(rejected("INCONSISTENT_TOKEN", message));
        }
        if self.iat.is_some_and(|iat| iat > now() + LEEWAY as i64) {
            let message = "the token was issued in the future";
            return Err(rejected("INVALID_TIMESTAMP", message));
        }
        if jwt.expiring_sec > 0
            && self.iat.map(|iat| self.exp.saturating_sub(iat))
                != i64::try_from(jwt.expiring_sec).ok()
        {
            let message = "the token's lifetime is not the configured one";
            return Err(rejected("INVALID_EXPIRATION", message));
        }
        Ok(())
    }

    fn check_upload(&self, query: &PutQuery, headers: &HeaderMap) -> Result<(), ApiError> {
        let exact = self.epochs.is_none_or(|exact| exact == query.epochs);
        let bounded = self.max_epochs.is_none_or(|max| query.epochs <= max);
        if !exact || !bounded {
            let message = "the epochs are not what the token allows";
            return Err(rejected("INVALID_EPOCHS", message));
        }
        if self.send_object_to.is_some() && self.send_object_to != query.send_object_to() {
            let message = "the destination is not what the token allows";
            return Err(rejected("INVALID_SEND_OBJECT_TO", message));
        }
        match body::content_length(headers) {
            Some(size) => self.check_size(size),
            None => Ok(()),
        }
    }
}

/// Checks the token before the body is read, and uses it up.
pub(crate) async fn authorize(
    State(endpoint): State<Arc<Endpoint>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let claims = match endpoint.claims(&request) {
        Ok(claims) => claims,
        Err(answer) => {
            body::discard_in_background(request.into_body());
            return answer;
        }
    };
    if let Some(claims) = claims {
        request.extensions_mut().insert(claims);
    }
    next.run(request).await
}

impl Endpoint {
    #[allow(clippy::result_large_err)] // an answer, made once per refused request
    fn claims(&self, request: &Request) -> Result<Option<Claims>, Response<Body>> {
        let token = match request.headers().get(header::AUTHORIZATION) {
            None => None,
            Some(value) => Some(bearer(value.to_str().unwrap_or("")).ok_or_else(|| {
                let message = "invalid HTTP header (authorization)";
                error::text(StatusCode::BAD_REQUEST, message)
            })?),
        };
        let Some(jwt) = self.options().jwt.as_ref().filter(|jwt| demands(jwt)) else {
            // No token is required, but one that is sent is inspected all the same.
            return match token {
                None => Ok(None),
                Some(token) => match unverified(token) {
                    Some(claims) => Ok(Some(claims)),
                    None => Err(ApiError::internal("failed to decode the token").into_response()),
                },
            };
        };
        let token = token.ok_or_else(|| {
            let message = "Header of type `authorization` was missing";
            error::text(StatusCode::BAD_REQUEST, message)
        })?;
        let claims = verified(jwt, token).map_err(IntoResponse::into_response)?;
        claims.check(jwt).map_err(IntoResponse::into_response)?;
        if jwt.verify_upload {
            let query = Query::<PutQuery>::try_from_uri(request.uri())
                .map_err(IntoResponse::into_response)?;
            let quilt = request.uri().path() != "/v1/blobs";
            let empty = HeaderMap::new();
            // The length of a form says little about its contents.
            let headers = if quilt { &empty } else { request.headers() };
            claims
                .check_upload(&query, headers)
                .map_err(IntoResponse::into_response)?;
        }
        if !self.shared.tokens.redeem(&claims) {
            return Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "RESOURCE_EXHAUSTED",
                "TOKEN_ALREADY_USED",
                "the token has been used already",
            )
            .in_domain(AUTH)
            .into_response());
        }
        Ok(Some(claims))
    }
}

fn demands(jwt: &Jwt) -> bool {
    jwt.secret.is_some() || jwt.expiring_sec > 0 || jwt.verify_upload
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn verified(jwt: &Jwt, token: &str) -> Result<Claims, ApiError> {
    let mut validation = Validation::new(jwt.algorithm);
    validation.leeway = LEEWAY;
    let key = match &jwt.secret {
        Some(secret) => match jwt.algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                DecodingKey::from_secret(secret)
            }
            Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_der(secret),
            Algorithm::EdDSA => DecodingKey::from_ed_der(secret),
            _ => DecodingKey::from_rsa_der(secret),
        },
        None => {
            validation.insecure_disable_signature_validation();
            DecodingKey::from_secret(&[])
        }
    };
    let decoded = decode::<Claims>(token, &key, &validation);
    decoded
        .map(|token| token.claims)
        .map_err(|why| match why.kind() {
            ErrorKind::InvalidSignature => ApiError::new(
                StatusCode::UNAUTHORIZED,
                "UNAUTHENTICATED",
                "INVALID_SIGNATURE",
                "the token's signature is invalid",
            )
            .in_domain(AUTH),
            ErrorKind::ExpiredSignature => ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                "DEADLINE_EXCEEDED",
                "EXPIRED_SIGNATURE",
                "the token has expired",
            )
            .in_domain(AUTH),
            _ => rejected("INVALID_TOKEN", &format!("the token is invalid: {why}")),
        })
}

/// The claims of a token whose signature is not verified.
fn unverified(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}
