//! Times and errors of calls; times, sizes and fill of uploads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::measure::{Histogram, Sample, RATIOS, SIZES, TIMES};

/// One kind of call. A call whose caller has given up is not counted.
#[derive(Debug)]
pub(crate) struct Operation {
    time: Histogram,
    errors: AtomicU64,
}

impl Default for Operation {
    fn default() -> Self {
        Operation {
            time: Histogram::new(&TIMES),
            errors: AtomicU64::new(0),
        }
    }
}

impl Operation {
    /// Counts a call that has ended.
    pub(crate) fn ended(&self, begun: Instant, well: bool) {
        self.time.took(begun.elapsed());
        if !well {
            self.errors.fetch_add(1, Relaxed);
        }
    }
}

/// The kinds of calls.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub(crate) put: Operation,
    pub(crate) commit: Operation,
    pub(crate) delete: Operation,
    pub(crate) get: Operation,
    pub(crate) lookup: Operation,
    pub(crate) flush: Operation,
}

impl Operations {
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let named = [
            ("put", &self.put),
            ("commit", &self.commit),
            ("delete", &self.delete),
            ("get", &self.get),
            ("lookup", &self.lookup),
            ("flush", &self.flush),
        ];
        let times = named.iter().map(|(name, operation)| {
            let time = Sample::histogram("operation_duration_seconds", &operation.time);
            time.with("operation", *name)
        });
        let errors = named.iter().map(|(name, operation)| {
            let errors = operation.errors.load(Relaxed) as f64;
            Sample::number("operation_errors", errors).with("operation", *name)
        });
        times.chain(errors).collect()
    }
}

/// The formats of blobs that are told apart; the last one stands for all others.
const FORMATS: [&str; 4] = ["car", "concat", "quilt", "other"];

/// The uploads of blobs.
#[derive(Debug)]
pub(crate) struct Uploads {
    stored: Histogram,
    failed: Histogram,
    sizes: [Histogram; FORMATS.len()],
    fill: Histogram,
    opened: Instant,
    /// When the last one succeeded (milliseconds after `opened`).
    last: AtomicU64,
}

impl Default for Uploads {
    fn default() -> Self {
        Uploads {
            stored: Histogram::new(&TIMES),
            failed: Histogram::new(&TIMES),
            sizes: [const { Histogram::new(&SIZES) }; FORMATS.len()],
            fill: Histogram::new(&RATIOS),
            opened: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Uploads {
    /// Counts a blob that was stored: its format, its length and the ceiling of a pack (bytes).
    pub(crate) fn stored(&self, begun: Instant, format: &str, len: u64, ceiling: u64) {
        self.stored.took(begun.elapsed());
        let other = FORMATS.len() - 1;
        let at = FORMATS.iter().position(|name| *name == format);
        self.sizes[at.unwrap_or(other)].observe(len);
        let millionths = u128::from(len) * 1_000_000 / u128::from(ceiling.max(1));
        self.fill
            .observe(u64::try_from(millionths).unwrap_or(u64::MAX));
        self.succeeded();
    }

    /// Counts an upload that failed after all attempts.
    pub(crate) fn failed(&self, begun: Instant) {
        self.failed.took(begun.elapsed());
    }

    /// Notes that a publisher has just stored a blob.
    pub(crate) fn succeeded(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Relaxed);
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let mut all = Vec::new();
        for (outcome, times) in [("stored", &self.stored), ("failed", &self.failed)] {
            let times = Sample::histogram("upload_duration_seconds", times);
            all.push(times.with("outcome", outcome));
        }
        for (format, sizes) in FORMATS.iter().zip(&self.sizes) {
            all.push(Sample::histogram("upload_size_bytes", sizes).with("format", *format));
        }
        all.push(Sample::histogram("upload_fill_ratio", &self.fill));
        let last = Duration::from_millis(self.last.load(Relaxed));
        let age = self.opened.elapsed().saturating_sub(last);
        all.push(Sample::ago("last_upload_timestamp_seconds", age));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Value;

    #[test]
    fn an_upload_counts_by_format_and_fill() {
        let uploads = Uploads::default();
        uploads.stored(Instant::now(), "car", 32 << 20, 64 << 20);
        uploads.stored(Instant::now(), "new", 65 << 20, 64 << 20);
        let all = uploads.samples();
        let count = |name: &str, label: Option<&str>| -> u64 {
            let of = all.iter().filter(|s| s.name == name);
            let mut of = of.filter(|s| label == s.labels.first().map(|(_, v)| v.as_str()));
            match &of.next().unwrap().value {
                Value::Histogram(counts) => counts.counts.iter().sum(),
                Value::Number(_) => unreachable!(),
            }
        };
        assert_eq!(count("upload_size_bytes", Some("car")), 1);
        assert_eq!(count("upload_size_bytes", Some("other")), 1);
        assert_eq!(count("upload_duration_seconds", Some("stored")), 2);
        assert_eq!(count("upload_duration_seconds", Some("failed")), 0);
        let fill = all.iter().find(|s| s.name == "upload_fill_ratio").unwrap();
        let Value::Histogram(fill) = &fill.value else {
            unreachable!()
        };
        let half = fill.bounds.iter().position(|bound| *bound == 0.5).unwrap();
        assert_eq!((fill.counts[half], *fill.counts.last().unwrap()), (1, 1));
    }
}
