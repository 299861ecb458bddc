//! Blocks of a flatfs whose rows were deleted since the conversion.
//!
//! A user deletes rows (`ipfs repo gc`), and so does whatever finds a blob lost: `walrusds repair
//! --drop`, `ipfs repo verify --drop`. The index does not tell one from the other; Walrus does.
//!
//! **Invariant.** A block is taken for deleted only if it was read from Walrus now, is the same as
//! its file, and its storage has not ended. Any other block is missing: the flatfs may have the
//! last copy. One block does not speak for others of its blob: `ipfs repo verify --drop` deletes
//! single blocks that are bad.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::JoinSet;
use walrusds::admin::flatfs::Flatfs;
use walrusds::datastore::Inspection;
use walrusds::{ErrorKind, KeyRecord};

use super::remove::READS;
use super::survey::{interrupted, Keys};
use crate::context::Context;
use crate::exit::Failure;
use crate::progress::Unit;

/// The rows of deleted blocks.
#[derive(Default)]
pub struct Deleted(Vec<KeyRecord>);

/// Which of the deleted blocks Walrus still has.
#[derive(Default)]
pub struct Found {
    pub stored: Keys,
    pub missing: Keys,
}

impl Deleted {
    /// Notes a kept row.
    pub fn add(&mut self, row: KeyRecord) {
        self.0.push(row);
    }

    /// Reads the blocks from Walrus.
    ///
    /// # Errors
    /// Walrus does not tell of a block whether it is there.
    pub async fn look(
        self,
        context: &Context,
        look: &Arc<Inspection>,
        flatfs: &Flatfs,
    ) -> Result<Found, Failure> {
        let mut rows = self.0.into_iter();
        let mut progress = context.progress("reading deleted blocks", Unit::Things("blocks"));
        progress.total(rows.len() as u64);
        let (mut reads, mut done) = (JoinSet::new(), 0);
        let mut found = Found::default();
        loop {
            while reads.len() < READS {
                let Some(row) = rows.next() else { break };
                let (look, flatfs) = (Arc::clone(look), flatfs.clone());
                reads.spawn(async move {
                    let is_stored = is_stored(&look, &flatfs, &row).await;
                    is_stored.map(|is_stored| (row.key, is_stored))
                });
            }
            let Some(read) = reads.join_next().await else {
                return Ok(found);
            };
            interrupted(context)?;
            let read = read.map_err(|e| Failure::Failed(e.to_string()))?;
            match read.map_err(super::remove::unproved)? {
                (key, true) => found.stored.add(&key),
                (key, false) => found.missing.add(&key),
            }
            done += 1;
            progress.at(done);
        }
    }
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
    let ends = match look
        .index()
        .blobs(std::slice::from_ref(&record.blob_id))
        .await
    {
        // A renewal does not change kept rows.
        Ok(mut entries) => entries.pop().flatten().and_then(|entry| entry.expires_at),
        Err(e) => return Err(failed(e)),
    };
    if ends
        .max(record.expires_at)
        .is_some_and(|ends| ends <= SystemTime::now())
    {
        return Ok(false);
    }
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
