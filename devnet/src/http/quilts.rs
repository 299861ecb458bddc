//! Storing quilts and reading their patches.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{Multipart, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use axum::response::IntoResponse;
use axum::Extension;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{json, Value};

use super::auth::Claims;
use super::error::ApiError;
use super::put_query::PutQuery;
use super::read::{add_allowed_headers, blob_response};
use super::write::{blocking, json as json_answer};
use super::Endpoint;
use crate::blob_id::BlobId;
use crate::network::PutResult;
use crate::quilt::{check_identifier, encode, NewPatch, PatchId, Quilt};

const METADATA: &str = "_metadata";

fn malformed(why: impl Into<String>) -> ApiError {
    ApiError::invalid("MALFORMED_REQUEST", why)
}

#[derive(Debug, Deserialize)]
struct Metadata {
    identifier: String,
    #[serde(default)]
    tags: BTreeMap<String, Value>,
}

pub(crate) async fn put(
    State(endpoint): State<Arc<Endpoint>>,
    Query(query): Query<PutQuery>,
    claims: Option<Extension<Claims>>,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<Response<Body>, Response<Body>> {
    let multipart = multipart.map_err(IntoResponse::into_response)?;
    store(&endpoint, &query, claims.as_deref(), multipart)
        .await
        .map_err(IntoResponse::into_response)
}

async fn store(
    endpoint: &Arc<Endpoint>,
    query: &PutQuery,
    claims: Option<&Claims>,
    multipart: Multipart,
) -> Result<Response<Body>, ApiError> {
    let patches = collect(multipart).await?;
    let total: u64 = patches.iter().map(|patch| patch.data.len() as u64).sum();
    endpoint.stats().received(total);
    if let Some(claims) = claims {
        claims.check_size(total)?;
    }
    let request = query.request(vec![("_walrusBlobType".to_owned(), "quilt".to_owned())])?;
    let geometry = endpoint.network().geometry();
    let encoded = blocking(move || encode(geometry, patches)).await?;
    let (data, patches) = encoded.map_err(ApiError::internal)?;
    let (quilt, result) = endpoint.store(Bytes::from(data), request).await?;
    let stored: Vec<Value> = match result {
        PutResult::NewlyCreated { .. } | PutResult::AlreadyCertified { .. } => patches
            .into_iter()
            .map(|patch| {
                json!({
                    "identifier": patch.identifier,
                    "range": [patch.columns.start, patch.columns.end],
                    "quiltPatchId": PatchId { quilt, columns: patch.columns },
                })
            })
            .collect(),
    };
    Ok(json_answer(
        &json!({"blobStoreResult": result, "storedQuiltBlobs": stored}),
    ))
}

async fn collect(mut multipart: Multipart) -> Result<Vec<NewPatch>, ApiError> {
    let mut patches = Vec::new();
    let mut names = HashSet::new();
    let mut metadata: Vec<Metadata> = Vec::new();
    let unreadable = |why: axum::extract::multipart::MultipartError| {
        malformed(format!("failed to read the form: {}", why.body_text()))
    };
    while let Some(field) = multipart.next_field().await.map_err(unreadable)? {
        let name = field
            .name()
            .ok_or_else(|| malformed("a part has no name"))?
            .to_owned();
        let data = field.bytes().await.map_err(unreadable)?;
        if name == METADATA {
            metadata = serde_json::from_slice(&data)
                .map_err(|why| malformed(format!("invalid {METADATA}: {why}")))?;
            continue;
        }
        check_identifier(&name).map_err(malformed)?;
        if !names.insert(name.clone()) {
            return Err(malformed(format!("duplicate identifier {name:?}")));
        }
        patches.push(NewPatch {
            identifier: name,
            tags: BTreeMap::new(),
            data,
        });
    }
    if patches.is_empty() {
        return Err(malformed("there is no file in the form"));
    }
    let mut tags: HashMap<String, BTreeMap<String, String>> = HashMap::new();
    for entry in metadata {
        if !names.contains(&entry.identifier) {
            let name = entry.identifier;
            return Err(malformed(format!(
                "{METADATA} names {name:?}, which is missing"
            )));
        }
        let texts = entry.tags.into_iter().map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        });
        if tags.insert(entry.identifier, texts.collect()).is_some() {
            return Err(malformed(format!("{METADATA} names a patch twice")));
        }
    }
    for patch in &mut patches {
        patch.tags = tags.remove(&patch.identifier).unwrap_or_default();
    }
    Ok(patches)
}

fn no_quilt() -> ApiError {
    ApiError::internal("the blob is not a quilt, or a damaged one")
}

impl Endpoint {
    /// Reads the blob and looks at it as a quilt, off the async workers.
    async fn with_quilt<T: Send + 'static>(
        self: &Arc<Self>,
        id: BlobId,
        look: impl FnOnce(Quilt<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let found = self.find(&id)?;
        let data = self.content(&found, 0, found.size).await?;
        let geometry = self.network().geometry();
        blocking(move || look(Quilt::new(geometry, &data).map_err(|_| no_quilt())?)).await?
    }
}

fn answer(quilt: BlobId, patch: NewPatch, method: &Method, headers: &HeaderMap) -> Response<Body> {
    // The quilt's ID for every patch, as in the original.
    let mut response = blob_response(&quilt.to_string(), patch.data, method, headers);
    if let Ok(name) = HeaderValue::from_bytes(patch.identifier.as_bytes()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-quilt-patch-identifier"), name);
    }
    let tags: Vec<(String, String)> = patch.tags.into_iter().collect();
    add_allowed_headers(&mut response, &tags);
    response
}

pub(crate) async fn by_patch_id(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<PatchId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let PatchId { quilt, columns } = id;
    let patch = endpoint
        .with_quilt(quilt, move |quilt| {
            quilt.patch(&columns).map_err(|_| no_quilt())
        })
        .await?;
    Ok(answer(quilt, patch, &method, &headers))
}

pub(crate) async fn by_identifier(
    State(endpoint): State<Arc<Endpoint>>,
    Path((id, identifier)): Path<(BlobId, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let patch = endpoint
        .with_quilt(id, move |quilt| {
            let patches = quilt.patches().map_err(|_| no_quilt())?;
            let patch = patches.iter().find(|patch| patch.identifier == identifier);
            let patch = patch.ok_or_else(|| {
                ApiError::not_found(
                    "QUILT_PATCH_NOT_FOUND",
                    format!("the quilt has no patch {identifier:?}"),
                )
            })?;
            quilt.patch(&patch.columns).map_err(|_| no_quilt())
        })
        .await?;
    Ok(answer(id, patch, &method, &headers))
}

pub(crate) async fn patches(
    State(endpoint): State<Arc<Endpoint>>,
    Path(id): Path<BlobId>,
) -> Result<Response<Body>, ApiError> {
    let patches = endpoint
        .with_quilt(id, |quilt| quilt.patches().map_err(|_| no_quilt()))
        .await?;
    let list: Vec<Value> = patches
        .into_iter()
        .map(|patch| {
            json!({
                "identifier": patch.identifier,
                "patch_id": PatchId { quilt: id, columns: patch.columns },
                "tags": patch.tags,
            })
        })
        .collect();
    Ok(json_answer(&list))
}
