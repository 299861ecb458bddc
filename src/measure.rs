//! Measurements with labels: histograms that are filled while the engine works, and samples that
//! are taken out of them.
//!
//! Every part of the engine may fill a histogram at any moment: two atomic additions, no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// A scale of a histogram: the upper ends of its buckets, in ticks.
#[derive(Debug)]
pub(crate) struct Scale {
    bounds: &'static [u64],
    /// Ticks in one unit of the exported value.
    per_unit: f64,
}

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const MIB: u64 = 1 << 20;

/// Times, in nanoseconds; exported in seconds. From a block in memory to an upload of minutes.
#[rustfmt::skip]
pub(crate) static TIMES: Scale = Scale {
    bounds: &[
        MS / 10, MS / 2, MS, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS, 500 * MS,
        S, 5 * S / 2, 5 * S, 10 * S, 30 * S, 60 * S, 300 * S,
    ],
    per_unit: 1e9,
};

/// Sizes of blobs, in bytes.
#[rustfmt::skip]
pub(crate) static SIZES: Scale = Scale {
    bounds: &[
        MIB / 16, MIB / 4, MIB, 4 * MIB, 8 * MIB, 10 * MIB, 16 * MIB, 32 * MIB, 64 * MIB, 128 * MIB,
        256 * MIB,
    ],
    per_unit: 1.0,
};

/// Parts of a whole, in millionths; exported as ratios.
#[rustfmt::skip]
pub(crate) static RATIOS: Scale = Scale {
    bounds: &[50_000, 100_000, 250_000, 500_000, 750_000, 900_000, 950_000, 1_000_000],
    per_unit: 1e6,
};

/// Most buckets of a scale, the one without an upper end included.
const BUCKETS: usize = 18;

/// Counts values by size.
#[derive(Debug)]
pub(crate) struct Histogram {
    scale: &'static Scale,
    counts: [AtomicU64; BUCKETS],
    /// The sum of the values (ticks).
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) const fn new(scale: &'static Scale) -> Self {
        assert!(scale.bounds.len() < BUCKETS);
        Histogram {
            scale,
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value (ticks of the scale).
    pub(crate) fn observe(&self, ticks: u64) {
        let at = self.scale.bounds.partition_point(|bound| *bound < ticks);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add(ticks, Relaxed);
    }

    /// Counts a time, on the scale [`TIMES`].
    pub(crate) fn took(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        let Scale { bounds, per_unit } = *self.scale;
        let bounds: Vec<f64> = bounds.iter().map(|b| *b as f64 / per_unit).collect();
        let counts = &self.counts[..=bounds.len()];
        Counts {
            counts: counts.iter().map(|count| count.load(Relaxed)).collect(),
            sum: self.sum.load(Relaxed) as f64 / per_unit,
            bounds,
        }
    }
}

/// The contents of a histogram.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// The upper ends of the buckets (inclusive), in the metric's unit.
    pub bounds: Vec<f64>,
    /// How many values each bucket holds; the last one has no upper end.
    pub counts: Vec<u64>,
    /// The sum of all values, in the metric's unit.
    pub sum: f64,
}

/// The value of a metric for one set of labels.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A counter or a gauge.
    Number(f64),
    /// A histogram.
    Histogram(Counts),
}

/// A metric's value with the labels that tell it from the others of that metric.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// The name of the metric, as in [`METRICS`](crate::METRICS).
    pub name: &'static str,
    /// Names and values of the labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

impl Sample {
    /// A number without labels.
    pub fn number(name: &'static str, value: f64) -> Self {
        Sample {
            name,
            labels: Vec::new(),
            value: Value::Number(value),
        }
    }

    /// The moment that was so long ago (seconds since 1970).
    pub(crate) fn ago(name: &'static str, ago: Duration) -> Self {
        let at = SystemTime::now().checked_sub(ago);
        let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        Sample::number(name, since.unwrap_or_default().as_secs_f64())
    }

    /// The contents of a histogram, without labels.
    pub(crate) fn histogram(name: &'static str, histogram: &Histogram) -> Self {
        Sample {
            name,
            labels: Vec::new(),
            value: Value::Histogram(histogram.counts()),
        }
    }

    /// The same with one more label. Its values must be few.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_the_end_of_a_bucket_belongs_to_it() {
        let histogram = Histogram::new(&TIMES);
        histogram.took(Duration::from_millis(5));
        histogram.took(Duration::from_nanos(5_000_001));
        histogram.took(Duration::from_secs(1000));
        let counts = histogram.counts();
        let in_bucket = |end: f64| {
            let at = counts.bounds.iter().position(|bound| *bound == end);
            counts.counts[at.unwrap()]
        };
        assert_eq!((in_bucket(0.005), in_bucket(0.01)), (1, 1));
        assert_eq!(counts.counts.last(), Some(&1));
        assert_eq!(counts.counts.len(), counts.bounds.len() + 1);
        assert_eq!(counts.counts.iter().sum::<u64>(), 3);
        assert!((counts.sum - 1_000.010_000_001).abs() < 1e-6);
    }

    #[test]
    fn every_scale_ascends() {
        for scale in [&TIMES, &SIZES, &RATIOS] {
            assert!(scale.bounds.is_sorted_by(|a, b| a < b), "{scale:?}");
        }
    }
}
