//! walrusds keeps the blocks of an IPFS node on Walrus, a decentralised blob store reached over
//! HTTP, with an index key → (blob, offset, size) in Postgres or SQLite.
//!
//! [`WalrusDatastore`] is the whole datastore; [`Client`] speaks to Walrus and [`Index`] maps keys
//! to the places of blocks. C programs (and Kubo, through cgo) use the same engine through
//! `include/walrusds.h`.
#![deny(unsafe_code, missing_docs)]
// A future is copied to the stack by each future that awaits it. The threads of a runtime have
// 2 MiB, and a renewal is dozens of futures deep: the large ones go to the heap.
#![warn(clippy::large_futures)]

#[macro_use]
mod failpoint;
#[macro_use]
mod setters;

pub mod admin;
mod backoff;
mod buffer;
pub mod clock;
mod command;
pub mod config;
mod dag;
pub mod datastore;
mod detached;
mod dirlock;
pub mod error;
mod ffi;
mod gone;
pub mod index;
#[cfg(test)]
mod interleave;
mod journal;
mod lifetime;
mod limits;
mod locks;
pub mod log;
mod measure;
mod metrics;
mod multihash;
mod patch;
mod place;
pub mod query;
mod read;
mod recent;
#[cfg(all(test, shuttle))]
mod schedules;
mod sync;
mod tls;
mod trace;
mod upload;
pub mod walrus;

/// Modules that the project's own tests and fuzz targets use; not a part of the interface.
#[cfg(feature = "internals")]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internals {
    pub use crate::index::lookup::Lookups;
    pub mod chain {
        pub use crate::lifetime::chain::fake::{Call, Fake};
        pub use crate::lifetime::chain::{
            Chain, Epoch, Failure, OwnedBlob, Program, Round, TimeLimits,
        };
    }
    pub use crate::lifetime::rebuild::{rebuild_rows, Rebuilt, RebuiltRow};
    pub mod ffi {
        pub use crate::ffi::*;
    }
}

pub use config::Config;
pub use datastore::{
    copy_index, rebuild_index, Adopted, DeletedQuery, Op, RebuildFrom, Round, Undeleted,
    WalrusDatastore,
};
pub use error::{Error, ErrorKind, Result};
#[cfg(failpoints)]
pub use failpoint::FAILPOINTS;
pub use index::copy::{CopyReport, Copying};
pub use index::{
    Blob, BlobState, Claim, Claimed, Count, Deleted, DeletedRow, EndingIn, Fact, Index, KeyRange,
    KeyRecord, Leases, Ledger, LeftBehind, ListItem, Notes, Purged, Record, RenewItem, Renewal,
    Replica, Rows, Staging, Totals, Traces, Usage, Writing,
};
pub use lifetime::{plan, rebuild, Sparse, SparseBlob};
pub use measure::{Counts, Sample, Value};
pub use metrics::{Metric, MetricKind, MetricUnit, METRICS};
pub use query::{Entry, KeyCondition, Query, QueryOptions};
pub use walrus::{
    Auth, BlobStore, Body, Client, ClientConfig, Fetched, Source, StoreOptions, StoreResult,
};
