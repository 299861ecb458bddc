//! The longest keys and values.

/// Longest key an index takes, in bytes. Postgres refuses a B-tree entry beyond 2,704 bytes
/// (a third of a page), and a table of the Go plugin has two such indexes on the key.
pub const MAX_KEY_BYTES: usize = 2048;

/// Longest value that is stored (bytes): a reader must be able to hold one in memory as a whole.
/// Blocks of IPFS have at most 2 MiB.
pub const MAX_VALUE_BYTES: usize = 1 << 30;

/// Largest blob that Walrus takes at 1,000 shards (bytes): 334 * 667 * 65,534.
pub const MAX_BLOB_BYTES: i64 = 14_599_533_452;
