//! A local Walrus.
#![deny(unsafe_code, missing_docs)]

mod blob_id;

pub use blob_id::{cheap_blob_id, BlobId, BlobIdParseError, Geometry, TooLarge};
