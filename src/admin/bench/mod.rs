//! How fast the index, the publishers, the aggregators and the disks of a configuration are, and
//! which settings follow from that.
//!
//! [`bench()`] measures them as they are, one after another, beside running nodes. It changes
//! nothing. With [`Options::store`] it stores blobs for one epoch at each publisher, which is paid
//! for ([`price`] tells how much, at most). It ends after [`Options::time`], or when it is told to
//! stop, with what was measured until then. What cannot be measured says why, and the rest goes on.
//!
//! Memory: one pack of at most [`LONGEST_PACK`], or 16 ranges of at most 4 MiB.
//!
//! | module | measures |
//! |---|---|
//! | `index` | a round trip to the database, lookups one by one and many at a time |
//! | `stores` | stores of a small blob, of several at once, of a full pack |
//! | `reads` | the latency of a small range, the throughput of several streams |
//! | `disk` | writing and syncing where journal and cache lie |
//! | `advice` | what follows: a line of configuration, and the figure that it comes from |
//! | `until` | the end of a measurement: its time, or the operator |

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::datastore::Inspection;
use crate::error::Result;
use crate::walrus::cost;

mod advice;
mod disk;
mod index;
mod reads;
mod stores;
mod until;

pub use advice::{Advice, Topic};
pub use disk::DiskSpeed;
pub use index::IndexSpeed;
pub use reads::{ReadSpeed, StreamSpeed};
pub use stores::StoreSpeed;
use until::Until;

/// The longest pack that is stored (bytes), whatever is configured: it lies in memory.
pub const LONGEST_PACK: u64 = 128 << 20;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether blobs are stored, which is paid for.
    pub store: bool,
    /// How long all of it takes, about.
    pub time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            store: false,
            time: Duration::from_secs(60),
        }
    }
}

setters! { Options {
    with_store(store: bool);
    with_time(time: Duration);
} }

/// Times of things that were done one after another.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// How often it was done.
    pub count: u64,
    /// The time in the middle.
    pub median_seconds: f64,
    /// Nine of ten took no longer.
    pub p90_seconds: f64,
    /// The longest time.
    pub worst_seconds: f64,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Times {
        all.sort_unstable();
        let at = |part: usize| {
            let found = all.get((all.len() * part / 10).min(all.len().saturating_sub(1)));
            found.map_or(0.0, Duration::as_secs_f64)
        };
        Times {
            count: all.len() as u64,
            median_seconds: at(5),
            p90_seconds: at(9),
            worst_seconds: at(10),
        }
    }
}

/// The price of what a bench stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Price {
    /// Billing units at all publishers together, for one epoch.
    pub units: u64,
    /// Their price without gas (FROST).
    pub frost: u64,
    /// Whether the chain told the prices; else they are those of Walrus' documentation.
    pub known: bool,
    /// The length of the pack (bytes).
    pub pack_bytes: u64,
}

/// Tells what a bench stores at most.
pub async fn price(inspection: &Inspection) -> Price {
    let config = inspection.config();
    let (prices, known) = inspection.prices().await;
    let n_shards = u16::try_from(config.n_shards).unwrap_or(u16::MAX);
    let pack_bytes = pack_bytes(config);
    let small = cost::units(stores::SMALL, n_shards).unwrap_or(0);
    let pack = cost::units(pack_bytes, n_shards).unwrap_or(0);
    let each = small
        .saturating_mul(1 + stores::AT_ONCE)
        .saturating_add(pack);
    let units = each.saturating_mul(config.publishers.len() as u64);
    Price {
        units,
        frost: units.saturating_mul(prices.storage.saturating_add(prices.write)),
        known,
        pack_bytes,
    }
}

fn pack_bytes(config: &Config) -> u64 {
    config.pack_target_size_bytes.min(LONGEST_PACK)
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Bench {
    /// The index; `None` if it was not reached in time.
    pub index: Option<IndexSpeed>,
    /// The disks of journal and cache, or of the repo.
    pub disks: Vec<DiskSpeed>,
    /// The publishers, if blobs were stored.
    pub stores: Vec<StoreSpeed>,
    /// The aggregators.
    pub reads: Vec<ReadSpeed>,
    /// What follows for the configuration.
    pub advice: Vec<Advice>,
    /// Whether everything was measured that was to be.
    pub complete: bool,
}

/// Measures. `repo` is the directory from which the configuration's relative paths were taken.
/// `on` is told what is being measured, in words for people.
///
/// # Errors
/// None today: what cannot be measured says so in the result.
pub async fn bench(
    inspection: &Inspection,
    repo: &Path,
    options: &Options,
    on: &mut (dyn FnMut(&str) + Send),
    stop: &CancellationToken,
) -> Result<Bench> {
    let config = inspection.config();
    let began = Instant::now();
    let end = began + options.time;
    // Parts of the time that is left.
    let part = |share: f64| {
        let left = end.saturating_duration_since(Instant::now());
        Until::new(left.mul_f64(share), stop)
    };
    let mut bench = Bench::default();
    on("the index");
    bench.index = index::measure(inspection, &part(0.2)).await;
    on("the local disks");
    // Short on most disks: what it leaves is for the others.
    bench.disks = disk::measure(config, repo, &part(0.5)).await;
    let mut stored = None;
    let publishers = if options.store {
        &config.publishers[..]
    } else {
        &[]
    };
    for (i, url) in publishers.iter().enumerate() {
        on(&format!("publisher {}", crate::walrus::shown_url(url)));
        let share = 0.6 / (publishers.len() - i) as f64;
        let (speed, pack) = stores::measure(config, url, &part(share)).await;
        stored = stored.or(pack);
        bench.stores.push(speed);
    }
    let blob = reads::blob(inspection, stored, &part(0.2)).await;
    for (i, url) in config.aggregators.iter().enumerate() {
        on(&format!("aggregator {}", crate::walrus::shown_url(url)));
        let share = 1.0 / (config.aggregators.len() - i) as f64;
        let speed = reads::measure(config, url, blob.as_ref(), &part(share)).await;
        bench.reads.push(speed);
    }
    bench.complete = !stop.is_cancelled() && bench.has_all(config, options);
    let (prices, _) = match stop.is_cancelled() {
        true => (crate::lifetime::SAMPLE_PRICES, false),
        false => inspection.prices().await,
    };
    bench.advice = advice::advise(config, prices, &bench);
    Ok(bench)
}

impl Bench {
    /// Whether each part was measured.
    fn has_all(&self, config: &Config, options: &Options) -> bool {
        let stores = self.stores.iter().all(StoreSpeed::is_complete);
        let reads = self.reads.iter().all(ReadSpeed::is_complete);
        let index = self
            .index
            .as_ref()
            .is_some_and(|index| index.error.is_none());
        let disks = self.disks.iter().all(|disk| disk.error.is_none());
        index
            && disks
            && stores
            && reads
            && self.reads.len() == config.aggregators.len()
            && (!options.store || self.stores.len() == config.publishers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_middle_and_of_the_end() {
        let ms = Duration::from_millis;
        let times = Times::of((1..=10).rev().map(ms).collect());
        assert_eq!(times.count, 10);
        assert_eq!(times.median_seconds, 0.006);
        assert_eq!((times.p90_seconds, times.worst_seconds), (0.010, 0.010));
        assert_eq!(Times::of(vec![ms(2)]).median_seconds, 0.002);
        assert_eq!(Times::of(Vec::new()), Times::default());
    }
}
