//! The blocks of a flatfs, as a source.

use std::path::PathBuf;
use std::vec::IntoIter;

use super::offer::{Content, Offer, Source};
use super::order::{self, ReadOrder};
use crate::admin::flatfs::{Flatfs, FlatfsBlock};
use crate::error::Result;

/// Directories that are counted to tell how much there is to do.
const COUNTED: usize = 64;
/// Threads that look for nodes.
const THREADS: usize = 8;

/// The blocks of a flatfs, in the order in which their files are read. Blocks that come into the
/// flatfs meanwhile may be left out.
pub struct FlatfsBlocks {
    flatfs: Flatfs,
    total_bytes: u64,
    way: Way,
}

/// How blocks come.
enum Way {
    /// Nothing was listed yet; whether they are to be put in order.
    Begin(bool),
    Ordered(ReadOrder),
    Directories(Directories),
}

struct Directories {
    /// Whether the blocks that can be put in order have come.
    ordered: bool,
    shards: IntoIter<String>,
    /// The directory whose blocks come now, and what is left of them.
    shard: String,
    listed: IntoIter<FlatfsBlock>,
}

impl FlatfsBlocks {
    /// Counts some of the directories, to tell how much there is to do.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`](crate::ErrorKind::Disk).
    pub fn new(flatfs: Flatfs) -> Result<FlatfsBlocks> {
        Ok(FlatfsBlocks {
            total_bytes: flatfs.size(COUNTED)?.bytes,
            flatfs,
            way: Way::Begin(true),
        })
    }

    fn directories(&self, ordered: bool, any: bool) -> Result<Way> {
        let shards = match any {
            true => self.flatfs.shards()?,
            false => Vec::new(),
        };
        Ok(Way::Directories(Directories {
            ordered,
            shards: shards.into_iter(),
            shard: String::new(),
            listed: Vec::new().into_iter(),
        }))
    }
}

impl Source for FlatfsBlocks {
    fn next(&mut self) -> Result<Option<Offer>> {
        let offer = |path: PathBuf, key: String, len: u64| {
            let content = Content::File(path);
            Ok(Some(Offer::later(key, len, content)))
        };
        loop {
            match &mut self.way {
                Way::Begin(in_order) => {
                    let order = match in_order {
                        true => ReadOrder::of(&self.flatfs, THREADS)?,
                        false => None,
                    };
                    self.way = match order {
                        Some(order) => Way::Ordered(order),
                        None => self.directories(false, true)?,
                    };
                }
                Way::Ordered(order) => match order.next() {
                    Some((key, len)) => {
                        if let Some(path) = self.flatfs.path_of(&key) {
                            return offer(path, key, len);
                        }
                    }
                    None => {
                        let others = order.others;
                        self.way = self.directories(true, others)?;
                    }
                },
                Way::Directories(all) => {
                    if let Some(block) = all.listed.next() {
                        if all.ordered && order::takes(&self.flatfs, &all.shard, &block) {
                            continue;
                        }
                        let path = self.flatfs.dir().join(&all.shard);
                        return offer(path.join(block.file_name()), block.key, block.len);
                    }
                    let Some(shard) = all.shards.next() else {
                        // On a disk that is gone all files look deleted.
                        self.flatfs.is_there()?;
                        return Ok(None);
                    };
                    all.listed = self.flatfs.list(&shard)?.into_iter();
                    all.shard = shard;
                }
            }
        }
    }

    fn look_only(&mut self) {
        // No file is read to find the order.
        if let Way::Begin(in_order) = &mut self.way {
            *in_order = false;
        }
    }

    fn total_bytes(&self) -> Option<u64> {
        Some(self.total_bytes)
    }
}
