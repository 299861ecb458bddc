//! `export`: DAGs, or everything, as CAR files, which any IPFS program takes (`ipfs dag import`).
//!
//! **Outline.** A walk ([`dags()`]) or the blobs of the index ([`all()`]) give blocks, each checked
//! against its key; up to some dozens are read ahead, through the windows of `read`, so that the
//! aggregator sets the pace. A thread of its own writes them ([`Target`]).
//!
//! A file that is not whole never has its name: it is written as `NAME.incomplete`, synced, and
//! renamed at the end. If blocks are missing it is removed, unless the operator wants it all the
//! same. A stream on standard output cannot be taken back, so it is cut within a section, which no
//! importer takes for an end.
//!
//! Memory holds the multihashes of the blocks that were written (about 100 bytes for each, twice as
//! much with an index), and 96 blocks at most, beside the windows of `read`.
//!
//! | module | job |
//! |---|---|
//! | `dags` | the blocks of DAGs, depth first |
//! | `all` | the blocks of all blobs, in several files |
//! | `file` | writing a CAR file |
//! | `scan` | which blocks such a file holds |

use std::path::PathBuf;

use serde::Serialize;

mod all;
mod dags;
mod file;
mod scan;

pub use all::all;
pub use dags::dags;
pub use file::Target;

/// Blocks that are named in each list of a report; all are counted.
const NAMED: usize = 100;

/// The version of a CAR file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CarVersion {
    /// Blocks one after another.
    #[default]
    V1,
    /// The same with an index, so that a program can find a block without reading the file.
    V2,
}

/// How to export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Options {
    /// The version of the files.
    pub version: CarVersion,
    /// Whether a file is kept in which blocks are missing.
    pub partial: bool,
}

setters! { Options {
    with_version(version: CarVersion);
    with_partial(partial: bool);
} }

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The roots of the DAGs.
    pub roots: Vec<String>,
    /// The files; none if blocks are missing and it was not asked for such files, and none for
    /// standard output.
    #[serde(serialize_with = "super::shown::paths")]
    pub files: Vec<PathBuf>,
    /// Whether every block was written.
    pub complete: bool,
    /// Blocks that were written.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the files.
    pub car_bytes: u64,
    /// Blocks that neither the index nor the journal has, as far as links to them were found.
    pub missing: u64,
    /// The first 100 of them: the CID.
    pub missing_blocks: Vec<String>,
    /// Blocks that are known and could not be read, and nodes that cannot be understood.
    pub unread: u64,
    /// The first 100 of them, with the reasons.
    pub unread_blocks: Vec<String>,
    /// Blocks of a codec that is not known here: they were written, and what they link to was not
    /// looked for.
    pub not_followed: u64,
    /// Entries under keys that are no multihashes, which no CAR can hold: what Kubo keeps beside
    /// blocks, if the datastore is mounted at `/`.
    pub other_keys: u64,
}

impl Exported {
    fn missing(&mut self, block: String) {
        self.missing += 1;
        if self.missing_blocks.len() < NAMED {
            self.missing_blocks.push(block);
        }
    }

    fn unread(&mut self, block: String) {
        self.unread += 1;
        if self.unread_blocks.len() < NAMED {
            self.unread_blocks.push(block);
        }
    }

    /// Before the blocks are gone through once more.
    fn forget_unread(&mut self) {
        (self.unread, self.other_keys) = (0, 0);
        self.unread_blocks.clear();
    }

    fn is_complete(&self) -> bool {
        self.missing == 0 && self.unread == 0 && self.not_followed == 0
    }
}
