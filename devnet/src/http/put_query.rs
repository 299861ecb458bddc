//! The query of a PUT.

use serde::Deserialize;

use super::error::ApiError;
use crate::network::PutRequest;
use crate::object_id::ObjectId;

/// The query of both PUTs. As in the original, the flattened last field swallows a destination
/// it cannot parse, and an unknown name is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutQuery {
    #[serde(default)]
    #[allow(dead_code)] // there is only one encoding
    encoding_type: Option<Encoding>,
    #[serde(default = "one")]
    pub epochs: u32,
    #[serde(default)]
    permanent: bool,
    #[serde(default)]
    deletable: bool,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    reuse_resources: bool,
    #[serde(default)]
    #[allow(dead_code)] // there is only one version
    quilt_version: Option<String>,
    #[serde(flatten)]
    destination: Option<Destination>,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
enum Encoding {
    RS2,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Destination {
    SendObjectTo(ObjectId),
    #[serde(deserialize_with = "crate::text::parse")]
    Share(bool),
}

impl PutQuery {
    pub fn send_object_to(&self) -> Option<ObjectId> {
        match self.destination {
            Some(Destination::SendObjectTo(address)) => Some(address),
            _ => None,
        }
    }

    pub fn request(&self, attributes: Vec<(String, String)>) -> Result<PutRequest, ApiError> {
        if self.permanent && self.deletable {
            return Err(ApiError::invalid(
                "INVALID_BLOB_PERSISTENCE",
                "a blob cannot be both permanent and deletable",
            ));
        }
        Ok(PutRequest {
            epochs: self.epochs,
            permanent: self.permanent,
            force: self.force,
            reuse_resources: self.reuse_resources,
            owner: self.send_object_to(),
            share: matches!(self.destination, Some(Destination::Share(true))),
            attributes,
        })
    }
}
