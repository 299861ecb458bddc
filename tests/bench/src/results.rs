//! The measurements and their medians.

use serde::{Deserialize, Serialize};

use crate::kind::Kind;
use crate::measure::Cost;

/// One run of a workload.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Seconds.
    pub wall: f64,
    /// Seconds of CPU of `ipfs`.
    pub cpu: f64,
    /// Peak memory of `ipfs` (MiB).
    pub rss: f64,
    /// Work done per second, in the workload's own unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Seconds from the beginning until everything was on Walrus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_walrus: Option<f64>,
    /// Blobs made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blobs: Option<u64>,
    /// Units billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<u64>,
    /// Uploads that reached the publisher, whether they were billed or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads: Option<u64>,
    /// Bytes that Walrus answered, as a multiple of those that were wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched: Option<f64>,
}

impl Sample {
    pub fn of(cost: Cost) -> Sample {
        Sample {
            wall: cost.wall,
            cpu: cost.cpu,
            rss: cost.rss,
            ..Sample::default()
        }
    }

    /// `amount` was done in the time.
    pub fn rate(mut self, amount: f64) -> Sample {
        self.rate = Some(amount / self.wall);
        self
    }

    /// So many bytes were fetched for the wanted ones. Of flatfs there are none.
    pub fn fetched(mut self, fetched: u64, wanted: u64) -> Sample {
        self.fetched = (fetched > 0).then(|| fetched as f64 / wanted as f64);
        self
    }
}

/// One run and what it was a run of.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub workload: &'static str,
    pub peer: Kind,
    #[serde(flatten)]
    pub sample: Sample,
}

/// A line of `tests/bench/ds`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Calls {
    pub index: String,
    pub call: String,
    pub goroutines: u32,
    pub calls_per_second: f64,
    pub cpu_us_per_call: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub threads: u32,
}

/// How long opening takes (milliseconds).
#[derive(Debug, Clone, Serialize)]
pub struct Opening {
    /// A bare connection to Postgres and one statement.
    pub connect: f64,
    /// A datastore with its index in Postgres.
    pub postgres: f64,
    /// A datastore with its index in SQLite.
    pub sqlite: f64,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Results {
    pub runs: Vec<Run>,
    pub calls: Vec<Calls>,
    pub opening: Option<Opening>,
    /// The stages that failed, whose measurements are therefore missing.
    pub failures: Vec<String>,
    /// Files were in the kernel's memory when they should not have been.
    pub page_cache_kept: bool,
}

impl Results {
    pub fn push(&mut self, workload: &'static str, peer: Kind, sample: Sample) {
        self.runs.push(Run {
            workload,
            peer,
            sample,
        });
    }

    /// All runs of a workload by a datastore, in order.
    pub fn of(&self, workload: &str, kind: Kind) -> impl Iterator<Item = &Sample> {
        let workload = workload.to_owned();
        self.runs
            .iter()
            .filter(move |run| run.workload == workload && run.peer == kind)
            .map(|run| &run.sample)
    }

    /// The median of a field; `None` if it was not measured.
    pub fn median(
        &self,
        workload: &str,
        kind: Kind,
        field: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        median(self.of(workload, kind).filter_map(field).collect())
    }

    pub fn wall(&self, workload: &str, kind: Kind) -> Option<f64> {
        self.median(workload, kind, |sample| Some(sample.wall))
    }

    /// Wall time in relation to that of another datastore.
    pub fn ratio(&self, workload: &str, kind: Kind, base: Kind) -> Option<f64> {
        Some(self.wall(workload, kind)? / self.wall(workload, base)?)
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }
}
