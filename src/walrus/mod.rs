//! Walrus over HTTP: publishers take blobs, aggregators give them back.
//!
//! [`BlobStore`] is the seam that tests replace; [`Client`] is the real one. The client's work for
//! a caller: the client fails over between endpoints and remembers which ones failed, retries what
//! may pass with jittered backoff, checks every length, range and answer it is given, bounds every
//! body, and gets a publisher token afresh for each attempt.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | configuration, the [`Client`] itself |
//! | `shared` | the state that its calls share: endpoints, connections, counters |
//! | `store` | the PUT and what counts as a successful answer |
//! | `read` | the aggregators asked for a blob, range, quilt member; when "not found" is final |
//! | `want`, `get`, `hedge` | a read, one attempt of it, a second aggregator beside a slow one |
//! | `joined` | whole bodies that several readers of ranges wait for |
//! | `crowd` | how many reads an aggregator is asked for at a time |
//! | `tally`, `observe` | what is counted for each endpoint and by cause, and the metrics of it |
//! | `retry` | which failures are retried, how often, after which wait |
//! | `endpoints` | base URLs, health memory, learnt size limits |
//! | `body` | the body of an upload, in memory or from a file |
//! | `transport` | one HTTP exchange: time limits, bounded bodies, error excerpts |
//! | [`auth`] | where publisher tokens come from |
//! | [`cost`] | the cost of a blob of some length on the network |

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::measure::Sample;

pub mod auth;
mod blob_id;
mod body;
pub mod client;
pub mod cost;
mod crowd;
mod endpoints;
mod get;
mod hedge;
mod joined;
mod observe;
mod read;
mod retry;
mod shared;
mod store;
mod tally;
mod transport;
mod want;

pub use auth::Auth;
pub(crate) use blob_id::usual_form;
pub(crate) use body::WHOLE;
pub use body::{Body, Source};
pub use client::{Client, ClientConfig};
pub use shared::Stats;
pub(crate) use tally::lacks_coins;
pub(crate) use transport::describe;

/// A URL as errors show it: without user info and keys.
pub(crate) fn shown_url(url: &str) -> String {
    endpoints::redact_url(url)
}

/// Whether a text is a blob ID in its usual form.
pub(crate) fn is_blob_id(text: &str) -> bool {
    blob_id::decode(text).is_some()
}

/// Judges bytes that came from an aggregator: `Err(reason)` makes the reader drop them, count the
/// failure against that aggregator and ask another.
pub type Check<'a> = &'a (dyn Fn(&[u8]) -> std::result::Result<(), String> + Send + Sync);

/// How a blob is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Storage epochs to buy (1 to 53 on today's networks).
    pub epochs: u32,
    /// false asks for a permanent blob, true for one its owner may delete.
    pub deletable: bool,
    /// Whether the publisher may use storage that its wallet owns already, left by deleted blobs,
    /// instead of buying some. That may be larger, and may end later than asked for.
    pub reuse: bool,
}

setters! { StoreOptions {
    with_deletable(deletable: bool);
    with_reuse(reuse: bool);
} }

impl StoreOptions {
    /// A permanent blob for `epochs` epochs.
    pub const fn new(epochs: u32) -> Self {
        StoreOptions {
            epochs,
            deletable: false,
            reuse: false,
        }
    }
}

/// The answer of a publisher to a successful store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreResult {
    /// Walrus blob ID (43 characters, base64url).
    pub blob_id: String,
    /// Sui object ID, if the answer named one.
    pub object_id: Option<String>,
    /// The epoch in which the blob was stored; known only for new blobs.
    pub start_epoch: Option<u64>,
    /// First epoch in which it is no longer stored (exclusive).
    pub end_epoch: u64,
    /// Encoded size on the network (bytes); known only for new blobs.
    pub encoded_size: Option<u64>,
    /// The price paid (FROST; 1 WAL = 1e9 FROST); 0 if the blob was there already.
    pub cost: u64,
    /// false if the network had the blob already (`alreadyCertified`), or the publisher's wallet
    /// did and has only extended it.
    pub newly_created: bool,
    /// Whether the blob took over what the wallet owned already (storage, or a registration), and
    /// no storage was bought from the present epoch on; `None` if the answer does not tell.
    pub reused: Option<bool>,
}

setters! { StoreResult {
    with_object_id(object_id: Option<String>);
    with_start_epoch(start_epoch: Option<u64>);
    with_encoded_size(encoded_size: Option<u64>);
    with_cost(cost: u64);
    with_newly_created(newly_created: bool);
    with_reused(reused: Option<bool>);
} }

impl StoreResult {
    /// A blob that the network had already, stored until `end_epoch` (exclusive).
    pub fn new(blob_id: impl Into<String>, end_epoch: u64) -> Self {
        StoreResult {
            blob_id: blob_id.into(),
            object_id: None,
            start_epoch: None,
            end_epoch,
            encoded_size: None,
            cost: 0,
            newly_created: false,
            reused: None,
        }
    }
}

/// The bytes that a read of a blob returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// The range that was asked for, or all of the blob.
    pub bytes: Bytes,
    /// Whether it is all of the blob: an aggregator that does not know ranges sends that.
    pub whole: bool,
    /// Length of all of the blob (bytes), where the aggregator told it.
    pub total: Option<u64>,
}

impl Fetched {
    /// All of the blob.
    pub fn whole(bytes: Bytes) -> Self {
        Fetched {
            total: Some(bytes.len() as u64),
            bytes,
            whole: true,
        }
    }
}

impl From<Bytes> for Fetched {
    /// The range that was asked for.
    fn from(bytes: Bytes) -> Self {
        Fetched {
            bytes,
            whole: false,
            total: None,
        }
    }
}

/// The verdict of a check on bytes of a required length.
fn of_length(len: u64, check: Check<'_>, bytes: &[u8]) -> std::result::Result<(), String> {
    match bytes.len() as u64 == len {
        true => check(bytes),
        false => Err(format!("{} bytes instead of {len}", bytes.len())),
    }
}

/// Stores and reads blobs. Every method may be called concurrently; dropping a returned future
/// drops the HTTP request.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Stores a blob and returns once it is certified.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] if no publisher takes a body of this
    /// size (413 from each, or resets while sending): the caller splits it.
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult>;

    /// Reads a whole blob.
    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes>;

    /// As [`read`](Self::read), for a blob that is known to have `len` bytes at least: it may be
    /// longer than what this node reads otherwise, as a node with other settings may have stored
    /// it.
    async fn read_known(&self, blob_id: &str, len: u64, check: Check<'_>) -> Result<Bytes> {
        let _ = len;
        self.read(blob_id, check).await
    }

    /// Reads exactly `len` bytes from `offset` on (bytes). `len` 0 gives no bytes without asking.
    async fn read_range(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        check: Check<'_>,
    ) -> Result<Bytes>;

    /// As [`read_range`](Self::read_range), for a caller who keeps what is read: where the
    /// aggregator sends the whole blob, and that has at most `keeps` bytes, all of it is returned.
    /// `check` judges the range.
    async fn read_block(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        keeps: u64,
        check: Check<'_>,
    ) -> Result<Fetched> {
        let _ = keeps;
        let bytes = self.read_range(blob_id, offset, len, check).await?;
        Ok(bytes.into())
    }

    /// As [`read_block`](Self::read_block), to be checked block by block later. Gives up soon: the
    /// caller reads single blocks then.
    async fn read_window(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        keeps: u64,
    ) -> Result<Fetched> {
        let unchecked = &|_: &[u8]| Ok(());
        self.read_block(blob_id, offset, len, keeps, unchecked)
            .await
    }

    /// Lists the members of a quilt, as an aggregator answers: a JSON array of objects with
    /// `identifier` and `patch_id`. The order is that of their places.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the store keeps no quilts.
    async fn members(&self, quilt_id: &str, check: Check<'_>) -> Result<Bytes> {
        let _ = check;
        let text = format!("the members of quilt {quilt_id} cannot be listed");
        Err(crate::error::Error::new(ErrorKind::Unsupported, text))
    }

    /// Reads one member of a quilt.
    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes>;

    /// Reads one member of a quilt that is `len` bytes long. Another length is an error, and no
    /// more than that is taken into memory.
    async fn read_patch_of(&self, patch_id: &str, len: u64, check: Check<'_>) -> Result<Bytes> {
        let judge = |bytes: &[u8]| of_length(len, check, bytes);
        self.read_patch(patch_id, &judge).await
    }

    /// The largest body worth sending, as far as refusals have taught (bytes).
    fn size_limit(&self) -> u64 {
        u64::MAX
    }

    /// How often publishers have asked for less so far (429 and 503 answers to stores): uploads
    /// running at once follow it.
    fn throttled(&self) -> u64 {
        0
    }

    /// Counters for the metrics snapshot.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Metrics with labels, and histograms, for the metrics snapshot. Must not wait.
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}
