//! Counters of one datastore, read as a snapshot (nothing is pushed), and the description of every
//! metric of a datastore.

use crate::index::Usage;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::Mutex;

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 when the datastore is opened.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricUnit {
    /// Things or events: blocks, blobs, requests.
    Count,
    /// Bytes.
    Bytes,
    /// FROST, the smallest unit of WAL: 1 WAL is 10^9 FROST.
    Frost,
}

/// The description of a metric, for programs that export it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name in [`WalrusDatastore::metrics`](crate::WalrusDatastore::metrics).
    pub name: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: MetricUnit,
    /// Its meaning, for people.
    pub help: &'static str,
}

const fn counter(name: &'static str, unit: MetricUnit, help: &'static str) -> Metric {
    let kind = MetricKind::Counter;
    Metric {
        name,
        kind,
        unit,
        help,
    }
}

const fn gauge(name: &'static str, unit: MetricUnit, help: &'static str) -> Metric {
    let kind = MetricKind::Gauge;
    Metric {
        name,
        kind,
        unit,
        help,
    }
}

/// Every metric of a datastore. The metrics of the journal and of the disk cache exist when these
/// are configured.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    counter("blocks_put", MetricUnit::Count, "blocks handed over by put and batch commit"),
    counter("bytes_put", MetricUnit::Bytes, "bytes of the blocks handed over"),
    counter("blocks_known", MetricUnit::Count, "blocks handed over that were stored already and not uploaded"),
    counter("blocks_adopted", MetricUnit::Count, "blocks that a Go node had staged and left behind, stored by this node"),
    counter("blocks_undeleted", MetricUnit::Count, "deleted blocks whose rows were brought back, by a put or an undelete"),
    counter("deletes", MetricUnit::Count, "keys deleted"),
    counter("commits", MetricUnit::Count, "puts, deletes and batch commits"),
    counter("gets", MetricUnit::Count, "blocks read"),
    counter("get_bytes", MetricUnit::Bytes, "bytes of blocks read"),
    counter("read_hits", MetricUnit::Count, "blocks read that were in memory"),
    counter("read_windows", MetricUnit::Count, "windows asked of aggregators: several blocks at once"),
    counter("read_window_bytes", MetricUnit::Bytes, "bytes of the windows that came"),
    counter("read_ahead_bytes", MetricUnit::Bytes, "bytes asked for before a reader wanted them"),
    counter("read_windows_failed", MetricUnit::Count, "windows that did not come; their blocks were read one by one"),
    counter("read_wasted_bytes", MetricUnit::Bytes, "bytes of windows that left memory unread"),
    gauge("read_cache_bytes", MetricUnit::Bytes, "memory held for reading now"),
    counter("lookups", MetricUnit::Count, "has and size lookups"),
    counter("packs_stored", MetricUnit::Count, "blobs stored"),
    counter("pack_bytes", MetricUnit::Bytes, "bytes of the blobs stored, before encoding"),
    counter("blocks_packed", MetricUnit::Count, "blocks in the blobs stored: divided by `packs_stored`, the packing ratio"),
    counter("packs_split", MetricUnit::Count, "packs split because a publisher refused their size"),
    counter("packs_failed", MetricUnit::Count, "packs given up; their writers got an error"),
    counter("renewals", MetricUnit::Count, "blobs renewed"),
    counter("blobs_extended", MetricUnit::Count, "blobs whose storage was extended on the chain (among the renewals)"),
    counter("blobs_repacked", MetricUnit::Count, "sparse blobs whose live blocks were carried over into other blobs"),
    counter("blobs_deleted", MetricUnit::Count, "blobs without live blocks that were deleted on the chain"),
    counter("renewals_failed", MetricUnit::Count, "renewals that failed, to be tried again"),
    gauge("uploads_running", MetricUnit::Count, "uploads under way now"),
    gauge("uploads_limit", MetricUnit::Count, "how many may be, at present"),
    counter("walrus_puts", MetricUnit::Count, "stores that succeeded, renewals included"),
    counter("walrus_put_bytes", MetricUnit::Bytes, "bytes of the stores that succeeded"),
    counter("walrus_put_failures", MetricUnit::Count, "stores that failed after all attempts"),
    counter("walrus_gets", MetricUnit::Count, "reads that an aggregator answered well"),
    counter("walrus_get_bytes", MetricUnit::Bytes, "bytes received from aggregators, failed attempts included"),
    counter("walrus_retries", MetricUnit::Count, "attempts at an endpoint that the request had asked before"),
    counter("walrus_failovers", MetricUnit::Count, "attempts at another endpoint after one failed"),
    counter("walrus_throttled", MetricUnit::Count, "429 and 503 answers"),
    counter("walrus_not_found", MetricUnit::Count, "404 answers"),
    counter("walrus_corrupt", MetricUnit::Count, "answers whose bytes failed the check"),
    counter("walrus_cache_hits", MetricUnit::Count, "quilt members served from memory"),
    counter("walrus_cache_misses", MetricUnit::Count, "single blocks and quilt members not served from memory, with the memory on"),
    counter("walrus_hedges", MetricUnit::Count, "reads that a second aggregator was asked for, since the first was slow to answer"),
    counter("walrus_hedge_wins", MetricUnit::Count, "reads in which the second aggregator was first"),
    counter("walrus_cost_frost", MetricUnit::Frost, "paid for blobs, renewals included (FROST)"),
    counter("walrus_encoded_bytes", MetricUnit::Bytes, "encoded size of new blobs on the network"),
    gauge("journal_blocks", MetricUnit::Count, "blocks in the journal"),
    gauge("journal_bytes", MetricUnit::Bytes, "bytes of the blocks in the journal"),
    gauge("journal_disk_bytes", MetricUnit::Bytes, "bytes of the journal's files"),
    counter("journal_syncs", MetricUnit::Count, "syncs of the journal's files"),
    counter("disk_cache_hits", MetricUnit::Count, "blocks that the disk cache had"),
    counter("disk_cache_misses", MetricUnit::Count, "blocks that the disk cache was asked for and had not"),
    gauge("disk_cache_bytes", MetricUnit::Bytes, "bytes of the disk cache's files"),
    counter("disk_cache_evictions", MetricUnit::Count, "files that the disk cache removed to make room"),
    counter("disk_cache_dropped", MetricUnit::Count, "blocks that the disk cache did not take because too many waited to be written"),
    counter("disk_cache_errors", MetricUnit::Count, "blocks that the disk cache found damaged, and failures of its disk"),
];

macro_rules! counters {
    ($($name:ident,)*) => {
        /// Counters since the datastore was opened; [`METRICS`] describes them.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(pub $name: AtomicU64,)*
            usage: Mutex<Usage>,
        }

        impl Metrics {
            /// Every counter with its name.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    blocks_put, bytes_put, blocks_known, blocks_adopted, blocks_undeleted, deletes, commits, gets, get_bytes, read_hits, walrus_cache_hits, walrus_cache_misses, read_windows, read_window_bytes, read_ahead_bytes, read_windows_failed, lookups, packs_stored, pack_bytes, blocks_packed, packs_split, packs_failed, renewals, blobs_extended, blobs_repacked, blobs_deleted, renewals_failed,
}

impl Metrics {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Notes a change of the stored blocks and bytes, which is written to the index later.
    pub(crate) fn usage_delta(&self, delta: Usage) {
        let mut usage = self.usage.lock();
        *usage = usage.plus(delta);
    }

    /// Changes not written to the index yet.
    pub(crate) fn pending_usage(&self) -> Usage {
        *self.usage.lock()
    }

    /// Takes the changes out, for writing them.
    pub(crate) fn take_usage(&self) -> Usage {
        std::mem::take(&mut *self.usage.lock())
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::{below, explore};
    use shuttle::thread;
    use std::sync::Arc;

    /// The counts and changes of all calls reach the index in full, also when writing them fails
    /// and they are given back.
    #[test]
    fn every_change_is_written_once() {
        explore(8_000, || {
            let metrics = Arc::new(Metrics::default());
            let mut calls = Vec::new();
            for _ in 0..3 {
                let metrics = Arc::clone(&metrics);
                calls.push(thread::spawn(move || {
                    for bytes in [5, -2] {
                        Metrics::add(&metrics.gets, 1);
                        metrics.usage_delta(Usage { blocks: 1, bytes });
                    }
                }));
            }
            let flush = {
                let metrics = Arc::clone(&metrics);
                move || {
                    let taken = metrics.take_usage();
                    if below(2) == 0 {
                        return taken;
                    }
                    metrics.usage_delta(taken);
                    Usage::default()
                }
            };
            let flushing = thread::spawn({
                let flush = flush.clone();
                move || flush().plus(flush())
            });
            for call in calls {
                call.join().unwrap();
            }
            let written = flushing.join().unwrap().plus(metrics.pending_usage());
            let expected = Usage {
                blocks: 6,
                bytes: 9,
            };
            assert_eq!(written, expected);
            assert!(metrics.snapshot().contains(&("gets", 6)));
        });
    }
}
