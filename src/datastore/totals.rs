//! Totals and counters.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::presence::{Presence, BUSY};
use super::WalrusDatastore;
use crate::error::{caught, Result};
use crate::index::{Totals, Usage};
use crate::journal::Journal;
use crate::lifetime::SAMPLE_PRICES;
use crate::measure::Sample;
use crate::metrics::{open_metrics, Metrics, Present};

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
        all.extend(shared.disk_cache.iter().flat_map(|cache| cache.counters()));
        all.extend(shared.reader.counters());
        all
    }

    /// All metrics: the counters of [`metrics`](Self::metrics), histograms, and what has labels.
    /// [`METRICS`](crate::METRICS) describes them. Never waits: what lies in the index is as the
    /// node's own tasks read it last.
    pub fn samples(&self) -> Vec<Sample> {
        let shared = &self.shared;
        let counters = self.metrics().into_iter();
        let numbers = counters.map(|(name, count)| Sample::number(name, count as f64));
        let mut all: Vec<Sample> = numbers.collect();
        let metrics = &shared.metrics;
        all.extend(metrics.operations.samples());
        all.extend(metrics.uploads.samples());
        all.extend(shared.store.samples());
        let found = shared.index.counters().into_iter();
        all.extend(found.map(|(name, count)| Sample::number(name, count as f64)));
        if let Some(journal) = shared.writes.journal() {
            all.extend(journal.samples());
        }
        let renewal = &shared.renewal;
        if !renewal.interval.is_zero() {
            let lead = renewal.lead.as_secs_f64();
            all.push(Sample::number("renewal_lead_seconds", lead));
        }
        all.extend(metrics.ledger.samples(&Present {
            now: renewal.clock.now(),
            clock: &shared.epoch_clock,
            sample: SAMPLE_PRICES,
        }));
        all
    }

    /// The same as OpenMetrics text, with the prefix `walrusds_`.
    pub fn open_metrics(&self) -> String {
        open_metrics(&self.samples())
    }
}

/// Writes the running totals every now and then, and once more at the end. Looks for the oldest
/// block of the journal, and whether the node is to be noted, as often.
pub(super) async fn flush_usage(
    index: Arc<dyn Totals>,
    metrics: Arc<Metrics>,
    journal: Option<Arc<Journal>>,
    mut presence: Option<Presence>,
    stop: CancellationToken,
) {
    let opened = Instant::now();
    // Whether anything was written since the node was noted.
    let mut wrote = false;
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(USAGE_FLUSH) => false,
        };
        if let Some(journal) = &journal {
            journal.look_for_oldest();
        }
        let delta = metrics.take_usage();
        wrote |= delta != Usage::default();
        failpoint!("usage.taken");
        if delta != Usage::default() && caught(index.add_usage(delta)).await.is_err() {
            metrics.usage_delta(delta);
        }
        failpoint!("usage.written");
        if let Some(presence) = &mut presence {
            match stopping {
                true => presence.end(wrote).await,
                false if opened.elapsed() < BUSY => {}
                false => wrote &= !presence.look(wrote).await,
            }
        }
        if stopping {
            return;
        }
    }
}
