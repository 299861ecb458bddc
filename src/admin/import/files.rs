//! The blocks of a flatfs, as a source.

use std::path::PathBuf;
use std::vec::IntoIter;

use super::offer::{Content, Offer, Source};
use crate::admin::flatfs::{Flatfs, FlatfsBlock};
use crate::error::Result;

/// Directories that are counted to tell how much there is to do.
const COUNTED: usize = 64;

/// The blocks of a flatfs, directory by directory.
#[derive(Debug)]
pub struct FlatfsBlocks {
    flatfs: Flatfs,
    shards: IntoIter<String>,
    /// The directory whose blocks come now, and what is left of them.
    dir: PathBuf,
    listed: IntoIter<FlatfsBlock>,
    total_bytes: u64,
}

impl FlatfsBlocks {
    /// Counts some of the directories, to tell how much there is to do.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`](crate::ErrorKind::Disk).
    pub fn new(flatfs: Flatfs) -> Result<FlatfsBlocks> {
        Ok(FlatfsBlocks {
            shards: flatfs.shards()?.into_iter(),
            dir: PathBuf::new(),
            listed: Vec::new().into_iter(),
            total_bytes: flatfs.size(COUNTED)?.bytes,
            flatfs,
        })
    }
}

impl Source for FlatfsBlocks {
    fn next(&mut self) -> Result<Option<Offer>> {
        loop {
            if let Some(block) = self.listed.next() {
                let content = Content::File(self.dir.join(block.file_name()));
                return Ok(Some(Offer::later(block.key, block.len, content)));
            }
            let Some(shard) = self.shards.next() else {
                return Ok(None);
            };
            self.dir = self.flatfs.dir().join(&shard);
            self.listed = self.flatfs.list(&shard)?.into_iter();
        }
    }

    fn total_bytes(&self) -> Option<u64> {
        Some(self.total_bytes)
    }
}
