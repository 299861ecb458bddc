//! Reading of many blocks beside the nodes.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::inspect::{journaled, Inspection};
use crate::error::{Error, ErrorKind, Result};
use crate::index::lookup::Lookups;
use crate::index::{Record, Rows as _};
use crate::journal;
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::read::{BlockCheck, Reader, ReaderParts};

/// Memory for what is read, at least (bytes), whatever a node with this configuration has.
const MEMORY: i64 = 64 << 20;

/// Reads blocks as a node does, in windows and ahead, without its caches on the disk. Every block
/// is checked against its key.
pub(crate) struct Blocks {
    index: Arc<Lookups>,
    reader: Reader,
    journal_dir: Option<PathBuf>,
    /// What the journal holds, from when the index was first found to lack a block.
    journal: OnceCell<journal::Copies>,
}

impl Inspection {
    /// A reader of many blocks, to be closed before the inspection.
    pub(crate) fn blocks(&self) -> Blocks {
        let (index, store, _) = self.parts();
        let index = Arc::new(Lookups::new(index, self.config().row_ttl));
        let reader = Reader::new(ReaderParts {
            index: Arc::clone(&index),
            store,
            metrics: Arc::<Metrics>::default(),
            memory_bytes: self.config().blob_cache_bytes.max(MEMORY),
            disk: None,
        });
        Blocks {
            index,
            reader,
            journal_dir: self.journal_dir(),
            journal: OnceCell::new(),
        }
    }
}

impl Blocks {
    /// The block under `key`, from the index or else from the journal on this machine; `None` if
    /// neither has it.
    ///
    /// # Errors
    /// [`ErrorKind::BlobNotFound`] and [`ErrorKind::Corrupt`]: no aggregator gave the block, or all
    /// gave wrong ones. The other errors of the index and of reads.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let mut record = self.index.find(key).await?;
        if record.is_none() {
            if let Some(value) = self.journaled(key).await? {
                return Ok(Some(value));
            }
            // It may have left the journal meanwhile.
            record = self.index.find_anew(key).await?;
        }
        let Some(record) = record else {
            return Ok(None);
        };
        match self.at(key, &record).await {
            // A node may have moved the block to another blob meanwhile.
            Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => {
                let moved = self.moved(key, &record).await;
                moved.map_err(|again| again.unwrap_or(e))
            }
            read => read.map(Some),
        }
    }

    /// The block under `key`, whose row was `record` and pointed at nothing that can be read;
    /// `None` if it has no row any more. `Err(None)`: the row is the same.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn moved(
        &self,
        key: &str,
        record: &Record,
    ) -> std::result::Result<Option<Bytes>, Option<Error>> {
        match self.index.find_anew(key).await.map_err(Some)? {
            Some(now) if now == *record => Err(None),
            Some(now) => self.at(key, &now).await.map(Some).map_err(Some),
            None => Ok(None),
        }
    }

    /// Whether the index or the journal on this machine has the block under `key`.
    ///
    /// # Errors
    /// Those of the index and of the journal's disk.
    pub(crate) async fn has(&self, key: &str) -> Result<bool> {
        let found = self.index.find(key).await?.is_some();
        Ok(found || self.copies().await?.contains(key))
    }

    /// The block at its place.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn at(&self, key: &str, record: &Record) -> Result<Bytes> {
        let range = record.range().map_err(|e| e.context(key))?;
        let len = range.end - range.start;
        let check = BlockCheck::new(key, record.size, true);
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("block {key}: {why}"));
        if record.staged {
            let value = self.index.staged_value(key).await?;
            let value = value.ok_or_else(|| {
                let text = format!("{key}: it was staged, and is no longer");
                Error::retryable(ErrorKind::Index, text)
            })?;
            return check.judge(&value).map(|()| value).map_err(corrupt);
        }
        if len == 0 {
            return check.judge(&[]).map(|()| Bytes::new()).map_err(corrupt);
        }
        let get = match &record.patch_id {
            Some(patch) => self.reader.patch(patch, len, &check),
            None => self.reader.block(&record.blob_id, range, &check),
        };
        get.fetch(false)
            .await
            .map_err(|e| e.context(format_args!("reading {key} (blob {})", record.blob_id)))
    }

    /// Ends the reads ahead.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
    }

    async fn journaled(&self, key: &str) -> Result<Option<Bytes>> {
        let value = self.copies().await?.get(key);
        Ok(value.filter(|value| multihash::check(key, value) != Match::No))
    }

    async fn copies(&self) -> Result<&journal::Copies> {
        let look = || journaled(self.journal_dir.clone());
        self.journal.get_or_try_init(look).await
    }
}
