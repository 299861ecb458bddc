//! Counters of one datastore. Read as a snapshot; nothing is pushed.

use crate::index::Usage;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::Mutex;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the datastore was opened.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[$doc])* pub $name: AtomicU64,)*
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
    /// Blocks handed over by put and batch commit.
    blocks_put,
    /// Bytes of those blocks.
    bytes_put,
    /// Blocks that were indexed already and therefore not uploaded.
    blocks_known,
    /// Keys deleted.
    deletes,
    /// Batches committed.
    commits,
    /// Blocks read.
    gets,
    /// Bytes of blocks read.
    get_bytes,
    /// Blocks that were taken from memory.
    read_hits,
    /// Reads of quilt members that were served from memory.
    walrus_cache_hits,
    /// Reads of single blocks and quilt members that were not, with the memory on.
    walrus_cache_misses,
    /// Windows that were asked of aggregators.
    read_windows,
    /// Bytes of the windows that came.
    read_window_bytes,
    /// Bytes of windows that were asked for ahead of their readers.
    read_ahead_bytes,
    /// Windows that did not come.
    read_windows_failed,
    /// Lookups (has, get_size).
    lookups,
    /// Blobs stored.
    packs_stored,
    /// Bytes of those blobs, before encoding.
    pack_bytes,
    /// Blocks in those blobs.
    blocks_packed,
    /// Packs split because a publisher refused their size.
    packs_split,
    /// Packs given up.
    packs_failed,
    /// Blobs renewed.
    renewals,
    /// Renewals that failed.
    renewals_failed,
}

impl Metrics {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Notes a change of what is stored, to be written to the index later.
    pub(crate) fn usage_delta(&self, delta: Usage) {
        let mut usage = self.usage.lock();
        *usage = usage.plus(delta);
    }

    /// Changes not written to the index yet.
    pub(crate) fn pending_usage(&self) -> Usage {
        *self.usage.lock()
    }

    /// Takes the changes out, to write them.
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

    /// What calls count and what they change reaches the index in full, also when a write of it fails
    /// and is given back.
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
