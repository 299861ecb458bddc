//! The settings of a journal.

use std::path::PathBuf;
use std::time::Duration;

/// When a write returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalSync {
    /// When it survives a power cut.
    #[default]
    Put,
    /// When the kernel has it, so that it survives any end of the process. It is synced within
    /// 100 ms; [`sync`](crate::WalrusDatastore::sync) returns when it survives a power cut.
    Sync,
}

/// The settings of the local write journal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalConfig {
    /// Its directory.
    pub path: PathBuf,
    /// Size at which writers wait (bytes).
    pub max_bytes: u64,
    /// When a write returns.
    pub sync: JournalSync,
    /// How long a write waits for room.
    pub full_timeout: Duration,
    /// Flush after this time without writes.
    pub idle_flush: Duration,
    /// Flush a block after this time at most.
    pub max_age: Duration,
    /// How long close waits for the journal to empty.
    pub drain_timeout: Duration,
    /// Whether close also uploads blocks that make no full pack and are younger than `max_age`.
    pub drain_partial: bool,
}
