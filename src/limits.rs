//! How long keys and values may be.

/// Longest key an index takes, in bytes. Postgres refuses a B-tree entry beyond 2,704 bytes
/// (a third of a page), and a table of the Go plugin has two such indexes on the key.
pub const MAX_KEY_BYTES: usize = 2048;

/// Longest value that is stored (bytes): what a reader will hold in memory at once. Blocks of IPFS
/// have at most 2 MiB.
pub const MAX_VALUE_BYTES: usize = 1 << 30;
