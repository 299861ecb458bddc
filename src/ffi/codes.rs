//! The version and the codes of the ABI: the numbers of the engine's kinds of errors, as literals
//! for the header.

use crate::error::ErrorKind;

/// Version of this interface. It changes when anything in this header changes meaning or layout;
/// additions do not change it. Compare with `walrusds_abi_version()` before any other call.
pub const WALRUSDS_ABI_VERSION: u32 = 3;

/// Success.
pub const WALRUSDS_OK: i32 = 0;
/// An argument that the call cannot work with: a key with a NUL, a NULL pointer, an unknown handle.
pub const WALRUSDS_INVALID_ARGUMENT: i32 = 1;
/// A configuration key is missing, unknown, of the wrong type or out of range.
pub const WALRUSDS_CONFIG: i32 = 2;
/// The handle was closed.
pub const WALRUSDS_CLOSED: i32 = 3;
/// The call's cancel token was cancelled.
pub const WALRUSDS_CANCELED: i32 = 4;
/// The call's deadline passed.
pub const WALRUSDS_DEADLINE_EXCEEDED: i32 = 5;
/// The index (Postgres or SQLite) failed.
pub const WALRUSDS_INDEX: i32 = 6;
/// Publisher or aggregator failed, after the retries.
pub const WALRUSDS_WALRUS: i32 = 7;
/// The key is known, but its blob was found on no aggregator.
pub const WALRUSDS_BLOB_NOT_FOUND: i32 = 8;
/// Bytes or index rows that contradict themselves.
pub const WALRUSDS_CORRUPT: i32 = 9;
/// No publisher takes a body of this size.
pub const WALRUSDS_TOO_LARGE: i32 = 10;
/// Known, but not supported by this version.
pub const WALRUSDS_UNSUPPORTED: i32 = 11;
/// Another process or node holds what was asked for.
pub const WALRUSDS_LOCKED: i32 = 12;
/// A defect of the library.
pub const WALRUSDS_INTERNAL: i32 = 13;
/// A panic was caught.
pub const WALRUSDS_PANIC: i32 = 14;
/// The local disk failed or is full (write journal, read cache).
pub const WALRUSDS_DISK: i32 = 15;

// The codes are the kinds' own numbers; the header needs them as literals.
const _: () = {
    assert!(WALRUSDS_INVALID_ARGUMENT == ErrorKind::InvalidArgument as i32);
    assert!(WALRUSDS_CONFIG == ErrorKind::Config as i32);
    assert!(WALRUSDS_CLOSED == ErrorKind::Closed as i32);
    assert!(WALRUSDS_CANCELED == ErrorKind::Canceled as i32);
    assert!(WALRUSDS_DEADLINE_EXCEEDED == ErrorKind::DeadlineExceeded as i32);
    assert!(WALRUSDS_INDEX == ErrorKind::Index as i32);
    assert!(WALRUSDS_WALRUS == ErrorKind::Walrus as i32);
    assert!(WALRUSDS_BLOB_NOT_FOUND == ErrorKind::BlobNotFound as i32);
    assert!(WALRUSDS_CORRUPT == ErrorKind::Corrupt as i32);
    assert!(WALRUSDS_TOO_LARGE == ErrorKind::TooLarge as i32);
    assert!(WALRUSDS_UNSUPPORTED == ErrorKind::Unsupported as i32);
    assert!(WALRUSDS_LOCKED == ErrorKind::Locked as i32);
    assert!(WALRUSDS_INTERNAL == ErrorKind::Internal as i32);
    assert!(WALRUSDS_PANIC == ErrorKind::Panic as i32);
    assert!(WALRUSDS_DISK == ErrorKind::Disk as i32);
};
