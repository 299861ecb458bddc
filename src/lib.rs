//! walrusds keeps the blocks of an IPFS node on Walrus, a decentralised blob store reached over
//! HTTP, with an index key → (blob, offset, size) in Postgres or SQLite.
#![deny(unsafe_code, missing_docs)]

pub mod error;
pub mod index;
mod tls;
pub mod walrus;

pub use error::{Error, ErrorKind, Result};
pub use index::{Index, KeyRecord, ListItem, Record, RenewItem, Renewal, Usage};
pub use walrus::{BlobStore, Body, StoreOptions, StoreResult};
