//! The blocks of a journal that another process may have open, for reading alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::block::Block;
use super::disk::Disk;
use super::owner::Untouched;
use super::replay::replay;
use super::settled::Settled;
use crate::error::Result;
use crate::log::Log;

/// The blocks that a journal held when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    blocks: BTreeMap<Arc<str>, Arc<Block>>,
}

impl Copies {
    /// Looks at the journal in `dir`, which need not exist. Takes no lock and changes no file. A
    /// node that works with it meanwhile may remove a file while it is read: that is an error.
    pub(crate) fn of(dir: &Path) -> Result<Copies> {
        if !dir.exists() {
            return Ok(Copies::default());
        }
        let disk: Arc<dyn Disk> = Arc::new(Untouched);
        let state = replay(dir, &disk, &Settled::default(), &Log::default())?.state;
        Ok(Copies {
            blocks: state.blocks,
        })
    }

    /// Whether the journal holds a block under this key.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.blocks.contains_key(key)
    }

    /// The length of the block under this key (bytes).
    pub(crate) fn len_of(&self, key: &str) -> Option<u64> {
        self.blocks.get(key).map(|block| block.len())
    }

    /// The value under this key, if it can be read.
    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.blocks.get(key)?.read().ok()
    }
}
