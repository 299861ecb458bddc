//! The answers of publisher and program, in their own words.

use serde::Serialize;

use crate::blob_id::BlobId;
use crate::object_id::ObjectId;
use crate::registration::Registration;

/// The answer to a PUT, in the publisher's own words.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum PutResult {
    NewlyCreated {
        blob_object: BlobObject,
        resource_operation: ResourceOperation,
        cost: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        shared_blob_object: Option<ObjectId>,
    },
    AlreadyCertified {
        blob_id: BlobId,
        #[serde(flatten)]
        proof: Proof,
        end_epoch: u32,
    },
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Proof {
    Event(EventId),
    Object(ObjectId),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventId {
    pub tx_digest: String,
    pub event_seq: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlobObject {
    pub id: ObjectId,
    registered_epoch: u32,
    blob_id: BlobId,
    size: u64,
    encoding_type: &'static str,
    pub certified_epoch: Option<u32>,
    storage: Storage,
    deletable: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Storage {
    id: ObjectId,
    start_epoch: u32,
    end_epoch: u32,
    storage_size: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ResourceOperation {
    RegisterFromScratch {
        encoded_length: u64,
        epochs_ahead: u32,
    },
    ReuseStorage {
        encoded_length: u64,
    },
    ReuseAndExtend {
        encoded_length: u64,
        epochs_extended: u32,
    },
}

pub(super) fn blob_object(
    blob_id: BlobId,
    size: u64,
    encoded_length: u64,
    registration: &Registration,
) -> BlobObject {
    BlobObject {
        id: registration.object_id,
        registered_epoch: registration.start_epoch,
        blob_id,
        size,
        encoding_type: "RS2",
        // The publisher takes its picture of the object before it certifies it.
        certified_epoch: None,
        storage: Storage {
            id: registration.storage_id,
            start_epoch: registration.storage_start(),
            end_epoch: registration.end_epoch,
            storage_size: registration.storage_size(encoded_length),
        },
        deletable: registration.deletable,
    }
}
