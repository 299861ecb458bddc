//! The chain: what a blob's owner can do that no publisher does over HTTP.
//!
//! The engine holds no wallet. The operator's own `walrus` program does the work
//! ([`Program`]), with the configuration and the wallet that `walrusCommand` names; where that key
//! is not set, there is no chain (`None`), and blobs are kept by storing them again.
//!
//! | module | holds |
//! |---|---|
//! | `program` | the program: its arguments, one change at a time |
//! | `answers` | what it prints, read with care |
//! | `said` | what it says when it fails, without secrets, and which failure that is |
//! | `round` | the end epochs behind a row of extensions, read back with one list |
//! | `fake` | a chain in memory, for tests |

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::walrus::cost::Prices;

mod answers;
#[cfg(any(test, feature = "internals"))]
pub mod fake;
mod program;
mod round;
mod said;
#[cfg(test)]
mod tests;

pub use program::{Program, WalrusCommand};
#[cfg_attr(not(feature = "internals"), allow(unused_imports))]
pub use {program::TimeLimits, round::Round};

/// The present epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Its number.
    pub current: u64,
    /// When it began; `None` while the network changes from one epoch to the next.
    pub started_at: Option<SystemTime>,
    /// How long an epoch lasts.
    pub length: Duration,
    /// The most epochs from the present one that storage can be bought for.
    pub max_ahead: u32,
}

/// A Blob object that the wallet owns: one registration of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedBlob {
    /// The Blob object, in the form of [`object_id`].
    pub object_id: String,
    /// The blob (43 characters of base64url).
    pub blob_id: String,
    /// Length of the blob (bytes).
    pub size: u64,
    /// Whether the blob can be read; it was only paid for otherwise.
    pub certified: bool,
    /// First epoch in which it is no longer stored (exclusive).
    pub end_epoch: u64,
    /// Whether the owner may delete it.
    pub deletable: bool,
}

/// What a caller can do about an error of the chain; the cause of such an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The program cannot be started, has other commands, or prints what is not understood: the
    /// operator must act, and the next call fails as well.
    Unusable,
    /// The wallet has not enough WAL, or not enough SUI for the gas: the operator must act, and the
    /// next change fails as well.
    EmptyWallet,
    /// The wallet has no such blob: it expired, was deleted, or belongs to another address.
    Absent,
    /// The chain refuses this change of this blob, and will refuse it again.
    Refused,
    /// It may pass. **A change may have been made all the same**: it must be looked for
    /// ([`Chain::list`]) before it is asked for again, or it is paid for twice.
    Unclear,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Unusable => "the program cannot be used",
            Failure::EmptyWallet => "the wallet cannot pay",
            Failure::Absent => "the wallet has no such blob",
            Failure::Refused => "the chain refuses",
            Failure::Unclear => "the outcome is unknown",
        })
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// The failure behind an error of a [`Chain`].
    pub fn of(error: &Error) -> Option<Failure> {
        std::error::Error::source(error)?.downcast_ref().copied()
    }

    fn error(self, message: impl Into<String>) -> Error {
        let error = match self {
            Failure::Unclear => Error::retryable(ErrorKind::Walrus, message),
            Failure::Unusable => Error::new(ErrorKind::Config, message),
            _ => Error::new(ErrorKind::Walrus, message),
        };
        error.caused_by(self)
    }
}

/// The chain, on behalf of the owner of a wallet. Every error has a [`Failure`] as its cause.
/// Dropping a returned future gives the work up; a change may have been made all the same.
#[async_trait]
pub trait Chain: Send + Sync + 'static {
    /// The present epoch.
    async fn epoch(&self) -> Result<Epoch>;

    /// The present prices, which nodes vote on for each epoch.
    async fn prices(&self) -> Result<Prices>;

    /// Extends the storage of a blob by `epochs` epochs. The price is that of their storage,
    /// without a write. `shared`: the ID is that of a shared blob. Not idempotent: see
    /// [`Failure::Unclear`].
    async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()>;

    /// Deletes blobs. The outcome of each stands beside its ID, in the order of `object_ids`. After
    /// a failure that would hit the rest as well, that is not tried, and has no outcome. The call
    /// fails as a whole if an ID is none. A blob that is gone already is
    /// [`Failure::Absent`].
    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>>;

    /// All blobs of the wallet that have not expired. Shared blobs belong to no wallet.
    async fn list(&self) -> Result<Vec<OwnedBlob>>;
}

/// The one form of an object ID: `0x` and 64 lower-case hex digits. Zeros in front may be missing
/// in the given one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if it is no object ID.
pub(crate) fn object_id(text: &str) -> Result<String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !(1..=64).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let shown = crate::error::one_line(text, 80);
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{shown:?} is no object ID: expected 0x and up to 64 hex digits"),
        ));
    }
    Ok(format!("0x{:0>64}", digits.to_ascii_lowercase()))
}
