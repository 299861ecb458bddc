//! An index that was lost is filled again from the blobs of its blocks.
//!
//! [`rebuild`] takes a [`List`] of blobs and fills an index with their rows. A blob of the format
//! `car` says which blocks it holds: two reads of parts of it tell. One of the format `concat` does
//! not, and is named in the [`Report`] as left out. A quilt is rebuilt from the names of its
//! members, where they are CIDs.
//!
//! A list comes from a file, from the wallet (`walrus list-blobs`), or from the ledger's backup
//! ([`export`]), which knows more of each blob: its format, what was paid, and its end.
//!
//! | module | holds |
//! |---|---|
//! | `list` | the list of blobs, and the ledger's backup |
//! | `drive` | many blobs at once, in order, into the index |
//! | `report` | how far it has come, noted in the index |
//! | `car` | the rows of one blob, read out of the index that it ends with |
//! | `quilt` | the rows of a quilt, by the list of its members |

mod car;
mod drive;
mod list;
mod quilt;
mod report;

pub use car::{rebuild_rows, Rebuilt, RebuiltRow};
pub(crate) use drive::LEASE;
pub use drive::{rebuild, Options, Parts};
pub use list::{export, List};
pub use report::{rebuild_state, LeftOut, RebuildState, Report, Why, MOST_NAMED};
