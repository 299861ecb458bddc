//! Totals and counters.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::WalrusDatastore;
use crate::error::{caught, Result};
use crate::index::{Totals, Usage};
use crate::metrics::Metrics;
use crate::read::disk::DiskCache;

/// How often the running totals are written to the index, if they changed.
const USAGE_FLUSH: Duration = Duration::from_secs(5);

impl WalrusDatastore {
    /// The blocks and bytes that are stored under the index and in the journal, in O(1): running
    /// totals. A block that is just being indexed may count twice.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn disk_usage(&self) -> Result<Usage> {
        let _call = self.enter()?;
        let stored = self.shared.index.usage().await?;
        let now = stored.plus(self.shared.metrics.pending_usage());
        let journal = self.shared.writes.journal();
        let staged = journal.map(|journal| journal.staged()).unwrap_or_default();
        let indexed = Usage {
            blocks: now.blocks.max(0),
            bytes: now.bytes.max(0),
        };
        Ok(indexed.plus(Usage {
            blocks: i64::try_from(staged.blocks).unwrap_or(i64::MAX),
            bytes: i64::try_from(staged.bytes).unwrap_or(i64::MAX),
        }))
    }

    /// Counters since open, by name.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let shared = &self.shared;
        let mut all = shared.metrics.snapshot();
        all.extend(shared.writes.counters());
        all.extend(shared.store.counters());
        all.extend(shared.disk_cache.iter().flat_map(DiskCache::counters));
        all.extend(shared.reader.counters());
        all
    }
}

/// Writes the running totals every now and then, and once more at the end.
pub(super) async fn flush_usage(
    index: Arc<dyn Totals>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(USAGE_FLUSH) => false,
        };
        let delta = metrics.take_usage();
        failpoint!("usage.taken");
        if delta != Usage::default() && caught(index.add_usage(delta)).await.is_err() {
            metrics.usage_delta(delta);
        }
        failpoint!("usage.written");
        if stopping {
            return;
        }
    }
}
