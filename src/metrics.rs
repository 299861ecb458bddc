//! Counters of one datastore. Read as a snapshot; nothing is pushed.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::index::Usage;

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
