//! What an operator asks of a repo, for the program `walrusds` and for embedders: beside running
//! nodes, over an [`Inspection`](crate::datastore::Inspection), and without changing anything
//! unless the question says so. Every report is `Serialize`, and docs/command.md describes its
//! JSON.
//!
//! | module | answers |
//! |---|---|
//! | `status` | what is the state of the datastore? |
//! | `forecast` | what will its renewals cost? |
//! | `local` | which files have its journal and its cache? |
//! | `nodes` | which nodes work with the index, and which are gone? |
//! | `inspect` | where is a block, what is in a blob? |
//! | `walk` | where do the blocks of a DAG lie, and are all of them there? |
//! | `links` | what does a block link to? |
//! | `target` | which key, CID or blob does an operator mean? |
//! | `finding` | what should an operator act on, and what is the cure? |
//! | `prices` | what does storage cost? |
//! | `time` | moments in JSON |
//! | `seen` | which keys came already? |
//! | [`bench`](mod@bench) | how fast are index, publishers, aggregators, disks; what follows? |
//! | [`check`](mod@check) | does Walrus hold what the index says? |
//! | [`flatfs`] | which blocks has a repo with flatfs? |
//! | [`import`](mod@import) | how do blocks of another datastore come here? |
//! | [`export`](mod@export) | which blocks of the repo does a CAR file hold? |
//! | [`doctor`](mod@doctor) | is everything as a node needs it? |
//! | [`repair`](mod@repair) | which lost blocks have copies, and what becomes of the others? |

pub mod bench;
pub mod check;
pub mod doctor;
pub mod export;
mod finding;
pub mod flatfs;
mod forecast;
mod http;
pub mod import;
mod inspect;
mod links;
mod local;
mod nodes;
mod prices;
pub mod repair;
mod seen;
mod shown;
mod status;
mod target;
mod time;
mod walk;

pub use finding::{Finding, Severity};
pub use forecast::{forecast, Due, Ending};
pub use inspect::{blob, block, BlobReport, BlockReport, Place};
pub use local::Files;
pub use nodes::{nodes, NodeJournal, NodeSeen};
pub use prices::prices;
pub use status::{status, LedgerSums, Price, RenewalState, Status};
pub use target::{hashes_to, key_of, Cid, Target};
pub use walk::{keys, walk, Dag, End, Share};
