//! Whether an aggregator knows the blobs of an index, so that its "there is no such blob" proves
//! something: an aggregator of another network, or any web server, says so of every blob.

use std::collections::HashSet;

use crate::error::{ErrorKind, Result};
use crate::index::Index;
use crate::walrus::{is_blob_id, BlobStore, Client};

/// The letters with which blob IDs begin. IDs are spread evenly, so blobs from behind each letter
/// are a sample of all.
const LETTERS: &str = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
/// Blobs from behind each letter.
const OF_EACH: usize = 4;
/// Failures after which an aggregator is asked no more.
const MOST_FAILURES: u32 = 3;

/// One aggregator.
pub(super) struct Witness {
    client: Client,
    /// Whether it gave a blob of the index; `None`: it was not asked yet.
    knows: Option<bool>,
}

impl Witness {
    pub(super) fn new(client: Client) -> Witness {
        Witness {
            client,
            knows: None,
        }
    }

    /// Asks for the first byte of a blob.
    pub(super) async fn read(&self, blob_id: &str) -> Result<()> {
        let store: &dyn BlobStore = &self.client;
        let read = store.read_range(blob_id, 0, 1, &|_| Ok(()));
        read.await.map(drop)
    }

    /// Whether it gives any of a sample of the blobs at which rows point.
    ///
    /// # Errors
    /// Those of the index.
    pub(super) async fn knows_the_index(&mut self, index: &dyn Index) -> Result<bool> {
        if let Some(knows) = self.knows {
            return Ok(knows);
        }
        let knows = self.look(index).await?;
        self.knows = Some(knows);
        Ok(knows)
    }

    async fn look(&self, index: &dyn Index) -> Result<bool> {
        let (mut asked, mut failures) = (HashSet::new(), 0);
        for after in std::iter::once("").chain(LETTERS.split_inclusive(|_| true)) {
            for blob in index.blobs_of_rows(after, OF_EACH).await? {
                // A sparse index gives the same blobs behind several letters.
                if !is_blob_id(&blob.blob_id) || !asked.insert(blob.blob_id.clone()) {
                    continue;
                }
                match self.read(&blob.blob_id).await {
                    Ok(()) => return Ok(true),
                    Err(e) if e.kind() == ErrorKind::BlobNotFound => {}
                    Err(_) => failures += 1,
                }
                if failures >= MOST_FAILURES {
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }
}
