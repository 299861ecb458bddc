//! The admin endpoints, which no real Walrus has.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{json, Value};

use super::write::blocking;
use super::{body, error, Endpoint};
use crate::blob_id::BlobId;
use crate::faults::FaultPlan;
use crate::object_id::ObjectId;

type Answer = Result<Json<Value>, Response<Body>>;
type Net = State<Arc<Endpoint>>;

pub(crate) fn router() -> Router<Arc<Endpoint>> {
    Router::new()
        .route("/admin/epoch", get(epoch).post(set_epoch))
        .route("/admin/epoch/advance", post(advance))
        .route("/admin/stats", get(stats))
        .route("/admin/blobs", get(blobs))
        .route("/admin/blobs/{id}", get(blob).put(insert).delete(delete))
        .route("/admin/blob-id", post(blob_id))
        .route("/admin/storage", get(storage))
        .route("/admin/blocklist/{id}", put(block).delete(unblock))
        .route("/admin/objects/{id}/attributes", put(attributes))
        .route(
            "/admin/faults",
            get(faults)
                .put(set_faults)
                .post(add_faults)
                .delete(clear_faults),
        )
        .route("/admin/gc", post(gc))
        .route("/admin/reset", post(reset))
        .layer(DefaultBodyLimit::disable())
}

fn failed(why: impl std::fmt::Display) -> Response<Body> {
    error::text(StatusCode::INTERNAL_SERVER_ERROR, why.to_string())
}

fn unknown(what: &str) -> Response<Body> {
    error::text(StatusCode::NOT_FOUND, format!("no such {what}"))
}

/// Runs a change off the async workers, since it may write to disk.
async fn change<T: Send + 'static>(
    net: Arc<Endpoint>,
    work: impl FnOnce(&Endpoint) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Response<Body>> {
    blocking(move || work(&net))
        .await
        .map_err(IntoResponse::into_response)?
        .map_err(failed)
}

async fn epoch(State(net): Net) -> Json<Value> {
    let duration = net.network().epoch_duration();
    Json(json!({
        "epoch": net.network().epoch(),
        "epoch_duration_seconds": duration.map(|duration| duration.as_secs_f64()),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewEpoch {
    epoch: u32,
}

async fn set_epoch(State(net): Net, Json(NewEpoch { epoch }): Json<NewEpoch>) -> Answer {
    change(net, move |net| net.network().set_epoch(epoch)).await?;
    Ok(Json(json!({"epoch": epoch})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    #[serde(default = "one")]
    by: u32,
}

fn one() -> u32 {
    1
}

async fn advance(State(net): Net, Query(Advance { by }): Query<Advance>) -> Answer {
    let epoch = change(net, move |net| net.network().advance_epoch(by)).await?;
    Ok(Json(json!({"epoch": epoch})))
}

async fn stats(State(net): Net) -> Json<crate::Stats> {
    Json(net.shared.stats())
}

async fn blobs(State(net): Net) -> Json<Vec<crate::BlobInfo>> {
    Json(net.network().list())
}

async fn blob(
    State(net): Net,
    Path(id): Path<BlobId>,
) -> Result<Json<crate::BlobInfo>, Response<Body>> {
    let info = net.network().info(&id);
    info.map(Json).ok_or_else(|| unknown("blob"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Insert {
    #[serde(default = "one")]
    epochs: u32,
    #[serde(default)]
    deletable: bool,
    #[serde(default = "yes")]
    certified: bool,
}

fn yes() -> bool {
    true
}

async fn insert(
    State(net): Net,
    Path(id): Path<BlobId>,
    Query(how): Query<Insert>,
    content: Body,
) -> Result<Json<crate::Registration>, Response<Body>> {
    let data = body::collect(content, u64::MAX).await?;
    change(net, move |net| {
        let network = net.network();
        network.insert(id, data, how.epochs, how.deletable, how.certified)
    })
    .await
    .map(Json)
}

async fn delete(State(net): Net, Path(id): Path<BlobId>) -> Answer {
    if change(net, move |net| net.network().delete(&id)).await? {
        Ok(Json(json!({"deleted": id})))
    } else {
        Err(unknown("blob"))
    }
}

async fn storage(State(net): Net) -> Json<Vec<crate::FreeStorage>> {
    Json(net.network().free_storage())
}

async fn blob_id(State(net): Net, content: Body) -> Answer {
    let data = body::collect(content, u64::MAX).await?;
    let id = change(net, move |net| {
        net.network().id_of(&data).map_err(std::io::Error::other)
    });
    Ok(Json(json!({"blob_id": id.await?})))
}

async fn block(State(net): Net, Path(id): Path<BlobId>) -> Json<Value> {
    net.network().block(id);
    Json(json!({"blocked": id}))
}

async fn unblock(State(net): Net, Path(id): Path<BlobId>) -> Answer {
    if net.network().unblock(&id) {
        Ok(Json(json!({"unblocked": id})))
    } else {
        Err(unknown("entry of the blocklist"))
    }
}

async fn attributes(
    State(net): Net,
    Path(id): Path<ObjectId>,
    Json(attributes): Json<BTreeMap<String, String>>,
) -> Answer {
    let list = attributes.clone().into_iter().collect();
    if change(net, move |net| net.network().set_attributes(&id, list)).await? {
        Ok(Json(json!({"object_id": id, "attributes": attributes})))
    } else {
        Err(unknown("object"))
    }
}

async fn faults(State(net): Net) -> Json<Vec<crate::FaultReport>> {
    Json(net.shared.faults.report())
}

async fn set_faults(State(net): Net, Json(plan): Json<FaultPlan>) -> Json<Value> {
    let rules = plan.rules.len();
    net.shared.faults.replace(plan);
    net.shared.cached.clear();
    Json(json!({"rules": rules}))
}

async fn add_faults(State(net): Net, Json(plan): Json<FaultPlan>) -> Json<Value> {
    net.shared.faults.add(plan);
    Json(json!({"rules": net.shared.faults.report().len()}))
}

async fn clear_faults(State(net): Net) -> Json<Value> {
    net.shared.faults.replace(FaultPlan::default());
    net.shared.cached.clear();
    Json(json!({"rules": 0}))
}

async fn gc(State(net): Net) -> Answer {
    let removed = change(net, |net| net.network().collect_expired()).await?;
    Ok(Json(json!({"removed": removed})))
}

async fn reset(State(net): Net) -> Answer {
    change(net, |net| net.shared.reset()).await?;
    Ok(Json(json!({})))
}
