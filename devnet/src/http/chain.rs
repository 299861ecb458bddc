//! The chain, for `walrus-devnet-cli`: the body of an answer with status 200 is what the program
//! prints, that of any other answer is the program's error. So every fault of an answer is a fault
//! of the program.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{json, Value};

use super::write::blocking;
use super::{error, Endpoint};
use crate::blob_id::BlobId;
use crate::network::{Deleted, Refusal, PUBLISHER_ADDRESS};
use crate::object_id::ObjectId;

type Net = State<Arc<Endpoint>>;
type Answer = Result<Json<Value>, Response<Body>>;

pub(crate) fn router() -> Router<Arc<Endpoint>> {
    Router::new()
        .route("/admin/chain/extend", post(extend))
        .route("/admin/chain/delete", post(delete))
        .route("/admin/chain/list", post(list))
        .route("/admin/chain/status", post(status))
        .route("/admin/chain/price", post(price))
        .route("/admin/chain/epoch", post(epoch))
}

/// The wallet of a request lacks this, by a fault rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutOfFunds {
    pub gas: bool,
}

impl OutOfFunds {
    fn text(self) -> &'static str {
        match self.gas {
            true => {
                "could not find SUI coins with sufficient balance [requested_amount=Some(500000000)]"
            }
            false => "could not find WAL coins with sufficient balance",
        }
    }
}

fn refused(why: impl std::fmt::Display) -> Response<Body> {
    error::text(StatusCode::BAD_REQUEST, why.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Extend {
    sender: Option<ObjectId>,
    blob_obj_id: ObjectId,
    shared: bool,
    epochs_extended: u32,
}

async fn extend(
    State(net): Net,
    poor: Option<Extension<OutOfFunds>>,
    Json(wanted): Json<Extend>,
) -> Answer {
    if let Some(Extension(poor)) = poor {
        return Err(refused(poor.text()));
    }
    let epochs = wanted.epochs_extended;
    let done = blocking(move || {
        let sender = wanted.sender.unwrap_or(PUBLISHER_ADDRESS);
        net.network()
            .extend_object(sender, wanted.blob_obj_id, wanted.shared, epochs)
    });
    match done.await {
        Ok(Ok(())) => Ok(Json(json!({"epochsExtended": epochs}))),
        Ok(Err(why)) => Err(refused(why)),
        Err(_) => Err(refused("the operation panicked")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Delete {
    sender: Option<ObjectId>,
    #[serde(default)]
    object_ids: Vec<ObjectId>,
    #[serde(default)]
    blob_ids: Vec<BlobId>,
    #[serde(default)]
    no_status_check: bool,
}

/// Failures are told in each entry's `error`, never by the status.
async fn delete(
    State(net): Net,
    poor: Option<Extension<OutOfFunds>>,
    Json(wanted): Json<Delete>,
) -> Answer {
    let poor = poor.map(|Extension(poor)| poor);
    let entries = blocking(move || {
        let sender = wanted.sender.unwrap_or(PUBLISHER_ADDRESS);
        let network = net.network();
        let delete_all = |identity: Value, objects: &[ObjectId]| {
            let mut entry = json!({
                "blobIdentity": identity, "deletedBlobs": [], "noBlobFound": false, "aborted": false,
            });
            let mut gone = Vec::new();
            for object in objects {
                let deleted = match poor {
                    Some(poor) => Err(poor.text().to_owned()),
                    None => (network.delete_object(sender, *object))
                        .map_err(|why: Refusal| why.to_string()),
                };
                match deleted {
                    Ok(Deleted::Blob(object)) => gone.push(object),
                    Ok(Deleted::NotFound) => entry["noBlobFound"] = true.into(),
                    Err(why) => {
                        entry["error"] = why.into();
                        break;
                    }
                }
            }
            entry["deletedBlobs"] = json!(gone);
            entry
        };
        let mut entries = Vec::new();
        for id in &wanted.blob_ids {
            let objects = network.deletable_of(sender, id);
            let identity = json!({"blobId": id, "file": null, "objectId": null});
            let mut entry = delete_all(identity, &objects);
            if objects.is_empty() {
                entry["noBlobFound"] = true.into();
            } else if !wanted.no_status_check && entry.get("error").is_none() {
                entry["postDeletionStatus"] = network.status(id);
            }
            entries.push(entry);
        }
        for id in &wanted.object_ids {
            let identity = json!({"blobId": null, "file": null, "objectId": id});
            entries.push(delete_all(identity, &[*id]));
        }
        Value::Array(entries)
    });
    match entries.await {
        Ok(entries) => Ok(Json(entries)),
        Err(_) => Err(refused("the operation panicked")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct List {
    sender: Option<ObjectId>,
    #[serde(default)]
    include_expired: bool,
}

async fn list(State(net): Net, Json(wanted): Json<List>) -> Json<Value> {
    let sender = wanted.sender.unwrap_or(PUBLISHER_ADDRESS);
    Json(json!(net.network().owned(sender, wanted.include_expired)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Status {
    blob_id: BlobId,
}

async fn status(State(net): Net, Json(Status { blob_id }): Json<Status>) -> Json<Value> {
    let status = net.network().status(&blob_id);
    Json(json!({"blobId": blob_id, "status": status}))
}

async fn price(State(net): Net) -> Json<Value> {
    Json(net.network().price_info())
}

async fn epoch(State(net): Net) -> Json<Value> {
    Json(net.network().epoch_info())
}
