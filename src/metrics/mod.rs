//! What is measured of one datastore, read as a snapshot (nothing is pushed).
//!
//! | module | holds |
//! |---|---|
//! | `describe` | the description of every metric |
//! | `operations` | times and errors of calls; times, sizes and fill of uploads |
//! | `ledger` | figures of the ledger, as they were last read |
//! | `text` | samples as OpenMetrics text |
//!
//! A snapshot waits for nothing: counters are atomics, and what must be asked of the index is read
//! by the tasks of `lifetime` at their own pace.

use crate::index::Usage;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::Mutex;

mod describe;
mod ledger;
mod operations;
mod text;

pub use describe::{Metric, MetricKind, MetricUnit, METRICS};
pub(crate) use ledger::{LedgerFigures, Present};
use operations::{Operations, Uploads};
pub(crate) use text::open_metrics;

macro_rules! counters {
    ($($name:ident,)*) => {
        /// Counters since the datastore was opened; [`METRICS`] describes them.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(pub $name: AtomicU64,)*
            usage: Mutex<Usage>,
            pub(crate) operations: Operations,
            pub(crate) uploads: Uploads,
            pub(crate) ledger: LedgerFigures,
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
    blocks_put, bytes_put, blocks_known, blocks_adopted, blocks_undeleted, deletes, commits, gets, get_bytes, read_hits, journal_hits, walrus_cache_hits, walrus_cache_misses, read_windows, read_window_bytes, read_ahead_bytes, read_windows_failed, lookups, packs_stored, pack_bytes, blocks_packed, packs_split, packs_failed, renewals, blobs_extended, blobs_repacked, blobs_deleted, renewals_failed,
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
