//! Rows of an index that was lost, made again from blobs.
//!
//! | module | holds |
//! |---|---|
//! | `car` | the rows of one blob, read out of the index that it ends with |

mod car;

// Reached by `crate::internals`.
#[cfg_attr(not(feature = "internals"), expect(unused_imports))]
pub use car::{rebuild_rows, Rebuilt, RebuiltRow};
