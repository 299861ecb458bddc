//! Files of the journal whose blocks are all on Walrus: the cache takes them over as they are.
//!
//! The problem: what was just written is read soon, and lies on this disk already. To copy it would
//! write every block a second time.
//!
//! The journal renames such a file into the cache's directory ([`DiskCache::place_for`]) and says
//! which blocks lie where in it ([`DiskCache::adopt`]). The worker writes a pointer for each block
//! that the cache does not hold yet, and the table of the pointers, behind the blocks, and gives
//! the file its name. From then on it is a file of the cache: found by its table, evicted as one.
//!
//! The journal may know the blocks until then: it gives something along that is dropped when the
//! cache knows them, or has given the file up.
//!
//! Until it has that name it has the ending `.retiring`. The next open removes what was left with
//! it: a copy of blocks that are on Walrus.

use std::any::Any;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::multihash::Multihash;

/// The ending of a file that is being taken over.
pub(super) const ENDING: &str = "retiring";

/// A block in a file that the cache takes over. Its value was checked against its name.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) name: Multihash,
    /// Where its value begins in the file, and its length (bytes).
    pub(crate) at: u64,
    pub(crate) len: u32,
    /// CRC-32 of the value.
    pub(crate) crc: u32,
}

/// A file to be taken over.
#[derive(Debug)]
pub(super) struct Adoption {
    pub(super) path: PathBuf,
    /// Where the blocks end in it (bytes).
    pub(super) end: u64,
    pub(super) blocks: Vec<Retired>,
    /// Dropped with this, when the map has the blocks, or never will.
    pub(super) _until_then: Box<dyn Any + Send>,
}

impl Adoption {
    /// Removes the file.
    pub(super) fn give_up(&self) {
        // If it stays, the next open removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what was left behind while it was being taken over.
pub(super) fn remove_left(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
