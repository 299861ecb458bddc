//! Reports for an operator, over an [`Inspection`](crate::datastore::Inspection): nothing is
//! changed and nothing is paid for. The program `walrusds` prints them; every report is
//! `Serialize`, and docs/command.md describes its JSON.
//!
//! | module | holds |
//! |---|---|
//! | `status` | the state of a datastore |
//! | `forecast` | what its renewals will cost |
//! | `local` | the files of its journal and its cache |
//! | `inspect` | a block, a blob |
//! | `walk` | a DAG: where its blocks lie, whether all are there |
//! | `links` | the links of a block |
//! | `target` | what an operator may name: a key, a CID, a blob |
//! | `finding` | what an operator should act on, with its cure |
//! | `time` | moments in JSON |

mod finding;
mod forecast;
mod inspect;
mod links;
mod local;
mod status;
mod target;
mod time;
mod walk;

pub use finding::{Finding, Severity};
pub use forecast::{forecast, Due, Ending};
pub use inspect::{blob, block, BlobReport, BlockReport, Place};
pub use local::Files;
pub use status::{status, LedgerSums, Price, RenewalState, Status};
pub use target::{key_of, Target};
pub use walk::{keys, walk, Dag, End, Share};
