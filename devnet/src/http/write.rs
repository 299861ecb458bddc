//! The publisher: all stores.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::Response;
use axum::response::IntoResponse;
use bytes::Bytes;

use super::auth::Claims;
use super::body::{self, LimitOverride};
use super::error::{self, ApiError};
use super::put_query::PutQuery;
use super::Endpoint;
use crate::blob_id::BlobId;
use crate::network::{PutError, PutRequest, PutResult, MAX_EPOCHS};

pub(crate) async fn put_blob(
    State(endpoint): State<Arc<Endpoint>>,
    Query(query): Query<PutQuery>,
    limit: Option<axum::Extension<LimitOverride>>,
    claims: Option<axum::Extension<Claims>>,
    body: Body,
) -> Result<Response<Body>, Response<Body>> {
    let limit = limit.map_or(endpoint.options().max_body, |limit| limit.0 .0);
    let data = body::collect(body, limit).await?;
    endpoint.stats().received(data.len() as u64);
    if let Some(claims) = &claims {
        claims
            .check_size(data.len() as u64)
            .map_err(IntoResponse::into_response)?;
    }
    let request = query
        .request(Vec::new())
        .map_err(IntoResponse::into_response)?;
    let (_, result) = endpoint
        .store(data, request)
        .await
        .map_err(IntoResponse::into_response)?;
    Ok(json(&result))
}

pub(crate) fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => error::with_type(axum::http::StatusCode::OK, "application/json", body),
        Err(why) => ApiError::internal(why.to_string()).into_response(),
    }
}

impl Endpoint {
    /// Encodes, checks, waits for the configured upload time, and stores.
    pub(crate) async fn store(
        self: &Arc<Self>,
        data: Bytes,
        request: PutRequest,
    ) -> Result<(BlobId, PutResult), ApiError> {
        let id = if self.network().id_is_quick(data.len()) {
            self.network().id_of(&data)
        } else {
            let (this, data) = (Arc::clone(self), data.clone());
            blocking(move || this.network().id_of(&data)).await?
        };
        let id = id.map_err(|why| ApiError::internal(why.to_string()))?;
        let latency = self.options().latency_put;
        if let Some(result) = self.network().check(&id, &request).map_err(put_error)? {
            return Ok((id, result));
        }
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let result = if self.network().on_disk() {
            let this = Arc::clone(self);
            blocking(move || this.network().store(id, data, &request)).await?
        } else {
            self.network().store(id, data, &request)
        };
        Ok((id, result.map_err(put_error)?))
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|why| ApiError::internal(why.to_string()))
}

fn put_error(why: PutError) -> ApiError {
    match why {
        PutError::TooLarge => ApiError::internal("the data is too large to be encoded/decoded"),
        PutError::Epochs(epochs) => ApiError::internal(format!(
            "the transaction failed: {epochs} epochs ahead is not between 1 and {MAX_EPOCHS}"
        )),
        PutError::Forbidden => ApiError::forbidden_blob(),
        PutError::Io(why) => ApiError::internal(format!("storing the content: {why}")),
    }
}
