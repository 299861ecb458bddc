//! What follows from the figures: for each topic a line of configuration, and the figure that it
//! comes from. Pure.

use serde::Serialize;

use super::{Bench, IndexSpeed, ReadSpeed, StoreSpeed, StreamSpeed};
use crate::config::Config;
use crate::read::{self, WINDOW};
use crate::walrus::cost::{self, Prices};

const MIB: f64 = 1024.0 * 1024.0;
const GIB: u64 = 1 << 30;
/// The pack that is used where nothing speaks against it (bytes).
const USUAL_PACK: u64 = 64 << 20;
/// Memory for reading where none is set (bytes).
const USUAL_MEMORY: u64 = 256 << 20;
/// So much more must several requests bring that memory is spent on them: two measurements of the
/// same differ, too.
const MORE: f64 = 1.3;
/// A synced write that is slower is felt by each put (seconds).
const SLOW_SYNC: f64 = 0.03;
/// A read that is faster needs no cache on a disk (seconds).
const NEAR_READ: f64 = 0.003;
/// A round trip from which on lookups of single blocks are felt (seconds).
const FAR_INDEX: f64 = 0.02;

/// What an advice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Topic {
    /// The length of packs.
    Packs,
    /// Uploads at a time.
    Workers,
    /// Memory for windows that are read ahead.
    Reads,
    /// The cache on the local disk.
    Cache,
    /// The write journal.
    Journal,
    /// The index.
    Index,
}

/// A line of configuration, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// What it is about.
    pub topic: Topic,
    /// Whether something is to be changed; else the line is as it is configured.
    pub change: bool,
    /// The line for `Datastore.Spec`.
    pub line: String,
    /// The figure from which it follows.
    pub why: String,
}

impl Advice {
    fn new(topic: Topic, change: bool, line: impl Into<String>, why: impl Into<String>) -> Advice {
        Advice {
            topic,
            change,
            line: line.into(),
            why: why.into(),
        }
    }
}

/// Says what follows. Where something was not measured, nothing is said.
pub(super) fn advise(config: &Config, prices: Prices, bench: &Bench) -> Vec<Advice> {
    let mut all = Vec::new();
    // The slowest publisher and the first aggregator, which is the one that nodes ask.
    let store = bench.stores.iter().filter(|s| s.small_seconds.is_some());
    let store = store.max_by(|a, b| a.small_seconds.total_cmp(&b.small_seconds));
    let read = bench.reads.iter().find(|read| !read.streams.is_empty());
    all.extend(packs(config, prices, &bench.stores));
    all.extend(store.and_then(|store| workers(config, store)));
    all.extend(read.map(|read| reads(config, read)));
    all.extend(read.and_then(|read| cache(config, bench, read)));
    all.extend(journal(config, bench, store));
    all.extend(bench.index.as_ref().and_then(index));
    all
}

/// `Option<f64>` in an order.
trait TotalCmp {
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering;
}

impl TotalCmp for Option<f64> {
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
        let or_none = |seconds: &Option<f64>| seconds.unwrap_or(-1.0);
        or_none(self).total_cmp(&or_none(other))
    }
}

/// What a GiB costs for an epoch in packs of this length (FROST).
fn frost_per_gib(config: &Config, prices: Prices, pack: u64) -> u64 {
    let n_shards = u16::try_from(config.n_shards).unwrap_or(u16::MAX);
    let units = cost::units(pack, n_shards).unwrap_or(0);
    let each = units.saturating_mul(prices.storage.saturating_add(prices.write));
    // Not a whole number of packs: the price of the bytes.
    (each as f64 * GIB as f64 / pack.max(1) as f64) as u64
}

fn packs(config: &Config, prices: Prices, stores: &[StoreSpeed]) -> Option<Advice> {
    let target = config.pack_target_size_bytes;
    let price = |pack: u64| frost(frost_per_gib(config, prices, pack));
    let line = |pack: u64| format!("\"packTargetSizeBytes\": {pack}");
    if let Some(refused) = stores.iter().find(|store| store.refused_bytes.is_some()) {
        let length = refused.refused_bytes.unwrap_or(target);
        let publisher = &refused.publisher;
        return Some(match refused.pack_seconds {
            Some(_) if refused.pack_bytes < length => Advice::new(
                Topic::Packs,
                true,
                line(refused.pack_bytes),
                format!(
                    "{publisher} refuses packs of {} and takes {}: a GiB costs {} an epoch so, and {} if it took them \
                     (walrus publisher --max-body-size {})",
                    mib(length),
                    mib(refused.pack_bytes),
                    price(refused.pack_bytes),
                    price(length),
                    length.div_ceil(1024) + 64
                ),
            ),
            _ => Advice::new(
                Topic::Packs,
                true,
                line((length / 2).max(1)),
                format!(
                    "{publisher} refuses packs of {}: half of that is a beginning (walrus publisher --max-body-size {} takes them)",
                    mib(length),
                    length.div_ceil(1024) + 64
                ),
            ),
        });
    }
    let slowest = stores.iter().filter(|store| store.pack_seconds.is_some());
    let slowest = slowest.max_by(|a, b| a.pack_seconds.total_cmp(&b.pack_seconds));
    let took = slowest.map_or(String::new(), |store| {
        format!(
            "; a pack of {} was stored in {}",
            mib(store.pack_bytes),
            time(store.pack_seconds.unwrap_or_default())
        )
    });
    let (now, usual) = (
        frost_per_gib(config, prices, target),
        frost_per_gib(config, prices, USUAL_PACK),
    );
    Some(match target < USUAL_PACK && usual < now / 10 * 9 {
        true => Advice::new(
            Topic::Packs,
            true,
            line(USUAL_PACK),
            format!(
                "a GiB costs {} an epoch in packs of {}, and {} in packs of {}{took}",
                frost(now),
                mib(target),
                frost(usual),
                mib(USUAL_PACK)
            ),
        ),
        false => Advice::new(
            Topic::Packs,
            false,
            line(target),
            format!(
                "a GiB costs {} an epoch in packs of {}{took}",
                frost(now),
                mib(target)
            ),
        ),
    })
}

fn workers(config: &Config, store: &StoreSpeed) -> Option<Advice> {
    let (one, several) = (store.small_seconds?, store.at_once_seconds?);
    let (publisher, n) = (&store.publisher, store.at_once);
    if store.throttled > 0 {
        let few = n / 2;
        return Some(Advice::new(
            Topic::Workers,
            config.workers as u64 > few,
            format!("\"workers\": {}", few.min(config.workers as u64)),
            format!(
                "{publisher} asked for less {} times with {n} uploads at once: more are refused and sent again",
                store.throttled
            ),
        ));
    }
    let ratio = several / one.max(1e-9);
    let compared = format!(
        "{n} small uploads at once take {} and one takes {} at {publisher}",
        time(several),
        time(one)
    );
    // Nearly n times as long: one after the other.
    if ratio > 0.75 * n as f64 && several > 0.1 {
        return Some(Advice::new(
            Topic::Workers,
            config.workers > 2,
            format!("\"workers\": {}", config.workers.min(2)),
            format!("{compared}: it stores one after the other, and more wait there"),
        ));
    }
    let most = store.pack_seconds.map_or(String::new(), |seconds| {
        let rate = store.pack_bytes as f64 / seconds.max(1e-9);
        format!(
            "; a single upload brings {} MiB/s, so {} reach {} MiB/s if the publisher and the link have it",
            number(rate / MIB),
            config.workers,
            number(rate * config.workers as f64 / MIB)
        )
    });
    Some(Advice::new(
        Topic::Workers,
        false,
        format!("\"workers\": {}", config.workers),
        format!("{compared}: it stores several at once{most}"),
    ))
}

/// The windows of an amount of memory: their length (bytes), and how many are on their way at once.
fn windows(memory: u64) -> (u64, u64) {
    let limits = read::limits(memory);
    let window = limits.window.max(1);
    (window, (limits.ahead / window).max(1))
}

fn reads(config: &Config, read: &ReadSpeed) -> Advice {
    let memory = u64::try_from(config.blob_cache_bytes).unwrap_or(0);
    let line = |bytes: u64| format!("\"blobCacheBytes\": {bytes}");
    let rates: Vec<String> = read
        .streams
        .iter()
        .map(|s| {
            format!(
                "{} at a time {}",
                s.streams,
                number(s.bytes_per_second / MIB)
            )
        })
        .collect();
    let found = format!(
        "requests to {} bring, in MiB/s: {}",
        read.aggregator,
        rates.join(", ")
    );
    if memory == 0 {
        return Advice::new(
            Topic::Reads,
            true,
            line(USUAL_MEMORY),
            format!(
                "{found}; without memory each block is a request of its own, {} each",
                time(read.small.median_seconds)
            ),
        );
    }
    let (window, at_once) = windows(memory);
    let fastest = |streams: &mut dyn Iterator<Item = &StreamSpeed>| {
        let rates = streams.map(|s| (s.bytes_per_second, s.streams));
        rates.fold(
            (0.0, 1),
            |best, rate| if rate.0 > best.0 { rate } else { best },
        )
    };
    let (best, wanted) = fastest(&mut read.streams.iter());
    let (reached, _) = fastest(&mut read.streams.iter().filter(|s| s.streams <= at_once));
    let has = format!(
        "{memory} bytes of memory have {at_once} windows of {} on their way",
        mib(window)
    );
    if wanted > at_once && best > MORE * reached {
        return Advice::new(
            Topic::Reads,
            true,
            line(read::memory_for(wanted * WINDOW).next_multiple_of(1 << 20)),
            format!("{found}; {has}, and {wanted} bring more"),
        );
    }
    // A window must take much longer than the way to it.
    let one = read.streams.first().map_or(0.0, |s| s.bytes_per_second);
    if window < WINDOW && window as f64 / one.max(1.0) < 4.0 * read.small.median_seconds {
        return Advice::new(
            Topic::Reads,
            true,
            line(USUAL_MEMORY),
            format!(
                "{found}; {has}, and a request takes {} whatever its length",
                time(read.small.median_seconds)
            ),
        );
    }
    Advice::new(
        Topic::Reads,
        false,
        line(memory),
        format!("{found}; {has}, and more bring little more"),
    )
}

fn cache(config: &Config, bench: &Bench, read: &ReadSpeed) -> Option<Advice> {
    let waits = read.small.median_seconds;
    let block = format!(
        "a block that is not in memory takes {} from {}",
        time(waits),
        read.aggregator
    );
    let disk = |part: &str| {
        let found = bench
            .disks
            .iter()
            .find(|d| d.part == part && d.error.is_none());
        found.map(|disk| disk.bytes_per_second)
    };
    if let Some(cache) = &config.disk_cache {
        let path = cache.path.display();
        let rate = disk("cache")?;
        let best = read
            .streams
            .iter()
            .map(|s| s.bytes_per_second)
            .fold(0.0, f64::max);
        let why = format!(
            "{block}; the disk of the cache takes {} MiB/s, and the aggregator brings {}",
            number(rate / MIB),
            number(best / MIB)
        );
        // A disk that is slower than the aggregator drops what it cannot take.
        return Some(match rate < best && waits < NEAR_READ {
            true => Advice::new(
                Topic::Cache,
                true,
                "no cachePath",
                format!("{why}: it gains nothing"),
            ),
            false => Advice::new(
                Topic::Cache,
                false,
                format!("\"cachePath\": \"{path}\""),
                why,
            ),
        });
    }
    Some(match waits >= NEAR_READ {
        true => Advice::new(
            Topic::Cache,
            true,
            "\"cachePath\": \"walrusds-cache\"",
            format!("{block} each time; from a disk of this machine it comes without a request"),
        ),
        false => Advice::new(
            Topic::Cache,
            false,
            "no cachePath",
            format!("{block}: as near as a disk"),
        ),
    })
}

fn journal(config: &Config, bench: &Bench, store: Option<&StoreSpeed>) -> Option<Advice> {
    let disk = |part: &str| {
        let found = bench
            .disks
            .iter()
            .find(|d| d.part == part && d.error.is_none());
        found.map(|disk| disk.sync_seconds)
    };
    if let Some(journal) = &config.journal {
        let sync = disk("journal")?;
        let path = journal.path.display();
        let why = format!("a synced write takes {} there, and each put waits for one (puts at the same moment share it)", time(sync));
        return Some(match sync > SLOW_SYNC {
            true => Advice::new(
                Topic::Journal,
                true,
                "\"journalPath\": a directory on an SSD",
                why,
            ),
            false => Advice::new(
                Topic::Journal,
                false,
                format!("\"journalPath\": \"{path}\""),
                why,
            ),
        });
    }
    let waits = store?.small_seconds?;
    let sync = disk("repo").or_else(|| disk("cache"))?;
    Some(match waits > 10.0 * sync {
        true => Advice::new(
            Topic::Journal,
            !config.disable_flush,
            "\"journalPath\": \"walrusds-journal\"",
            format!(
                "a put waits {} for its upload; in a journal it waits {} for this disk",
                time(waits),
                time(sync)
            ),
        ),
        false => Advice::new(
            Topic::Journal,
            false,
            "no journalPath",
            format!(
                "a put waits {} for its upload, and would wait {} for this disk",
                time(waits),
                time(sync)
            ),
        ),
    })
}

fn index(index: &IndexSpeed) -> Option<Advice> {
    if index.trip.count == 0 {
        return None;
    }
    let trip = index.trip.median_seconds;
    let key = match index.kind {
        "sqlite" => "indexPath",
        _ => "postgresURL",
    };
    let why = format!(
        "a round trip takes {}: {} lookups a second one by one, {} at {} at a time",
        time(trip),
        number(index.one_per_second),
        number(index.many_per_second),
        index.at_once
    );
    Some(match trip > FAR_INDEX {
        true => Advice::new(
            Topic::Index,
            true,
            match key {
                "indexPath" => "\"indexPath\": a file on an SSD".to_owned(),
                key => format!("\"{key}\": a server, or a standby for a node that only reads, near this machine"),
            },
            format!("{why}; each block that is not in memory waits for one"),
        ),
        false => Advice::new(Topic::Index, false, format!("\"{key}\" as it is"), why),
    })
}

/// A price in words.
fn frost(n: u64) -> String {
    match n {
        0..=999_999 => format!("{n} FROST"),
        n => format!("{:.4} WAL", n as f64 / 1e9),
    }
}

fn mib(bytes: u64) -> String {
    match bytes {
        0..=1_048_575 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        bytes => format!("{:.1} MiB", bytes as f64 / MIB),
    }
}

/// Three digits or so.
fn number(n: f64) -> String {
    match n {
        n if n >= 100.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 10.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.0995 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.000_1 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

#[cfg(test)]
mod tests;
