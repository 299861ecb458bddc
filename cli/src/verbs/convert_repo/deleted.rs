//! Blocks of a flatfs whose rows were deleted since the conversion.
//!
//! A user deletes rows (`ipfs repo gc`), and so does whatever finds a blob lost: `walrusds repair
//! --drop`, `ipfs repo verify --drop`. The index does not tell one from the other; Walrus does.
//!
//! **Invariant.** Blocks are taken for deleted only if a block of their blob was read from Walrus
//! now and is the same as its file. The blocks of any other blob are missing: the flatfs may have
//! the last copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;
use walrusds::admin::flatfs::Flatfs;
use walrusds::datastore::Inspection;
use walrusds::{ErrorKind, KeyRecord};

use super::remove::READS;
use super::survey::{interrupted, Keys};
use crate::context::Context;
use crate::exit::Failure;
use crate::progress::Unit;

/// The deleted blocks of each blob.
pub struct Deleted {
    /// Whether each block is read back, instead of one of each blob.
    each: bool,
    blobs: BTreeMap<String, OfBlob>,
}

#[derive(Default)]
struct OfBlob {
    keys: Keys,
    /// The rows whose blocks are to be read.
    witnesses: Vec<KeyRecord>,
}

/// Which of the deleted blocks Walrus still has.
#[derive(Default)]
pub struct Found {
    pub stored: Keys,
    pub missing: Keys,
}

impl Deleted {
    pub fn new(each: bool) -> Deleted {
        let blobs = BTreeMap::new();
        Deleted { each, blobs }
    }

    /// Notes a kept row.
    pub fn add(&mut self, row: KeyRecord) {
        let blob = self.blobs.entry(row.record.blob_id.clone()).or_default();
        blob.keys.add(&row.key);
        match blob.witnesses.first_mut() {
            Some(last) if !self.each => {
                if reach(&row) > reach(last) {
                    *last = row;
                }
            }
            _ => blob.witnesses.push(row),
        }
    }

    /// Asks Walrus for the blobs.
    ///
    /// # Errors
    /// Walrus does not tell of a blob whether it is there.
    pub async fn look(
        self,
        context: &Context,
        look: &Arc<Inspection>,
        flatfs: &Flatfs,
    ) -> Result<Found, Failure> {
        let rows = self.blobs.values().flat_map(|blob| blob.witnesses.clone());
        let mut rows = rows.collect::<Vec<_>>().into_iter();
        let mut progress = context.progress("reading deleted blocks", Unit::Things("blocks"));
        progress.total(rows.len() as u64);
        let (mut reads, mut done) = (JoinSet::new(), 0);
        let mut gone: Vec<String> = Vec::new();
        loop {
            while reads.len() < READS {
                let Some(row) = rows.next() else { break };
                let (look, flatfs) = (Arc::clone(look), flatfs.clone());
                reads.spawn(async move {
                    let is_stored = is_stored(&look, &flatfs, &row).await;
                    is_stored.map(|is_stored| (!is_stored).then_some(row.record.blob_id))
                });
            }
            let Some(read) = reads.join_next().await else {
                break;
            };
            interrupted(context)?;
            let read = read.map_err(|e| Failure::Failed(e.to_string()))?;
            gone.extend(read.map_err(super::remove::unproved)?);
            done += 1;
            progress.at(done);
        }
        let mut found = Found::default();
        for (blob, of) in self.blobs {
            match gone.contains(&blob) {
                true => found.missing.add_all(of.keys),
                false => found.stored.add_all(of.keys),
            }
        }
        Ok(found)
    }
}

/// How far into its blob a block reaches. An empty block proves nothing, so it comes last.
fn reach(row: &KeyRecord) -> (bool, i64) {
    let record = &row.record;
    (record.size > 0, record.offset.saturating_add(record.size))
}

/// Whether Walrus has the block at which a deleted row points, as its file is. The caches of a node
/// are not asked.
async fn is_stored(look: &Inspection, flatfs: &Flatfs, row: &KeyRecord) -> Result<bool, String> {
    let record = &row.record;
    let failed = |e: walrusds::Error| format!("{} (deleted since): {e}", row.key);
    let file = flatfs.get(&row.key).map_err(failed)?.unwrap_or_default();
    let (false, false, Ok(range)) = (record.staged, record.blob_id.is_empty(), record.range())
    else {
        return Ok(false);
    };
    let len = range.end - range.start;
    let check = |bytes: &[u8]| match bytes == file {
        true => Ok(()),
        false => Err("the bytes are not those of the file in the flatfs".to_owned()),
    };
    let store = look.store();
    let read = match &record.patch_id {
        Some(patch) => store.read_patch_of(patch, len, &check).await,
        None => {
            let read = store.read_range(&record.blob_id, range.start, len, &check);
            read.await
        }
    };
    match read {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}
