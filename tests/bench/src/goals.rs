//! The goals in figures, and whether they are reached.

use serde::Serialize;

use crate::kind::Kind;
use crate::results::{Results, Sample};
use crate::settings::Settings;

/// Peak memory beyond that of flatfs, for any workload (MiB).
const MEMORY: f64 = 128.0;

/// An open when tables are current (milliseconds).
const OPENING: f64 = 50.0;

/// A figure to reach.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// The measured quantity.
    pub what: String,
    /// The value to reach.
    pub goal: String,
    /// The measured value.
    pub measured: String,
    pub met: bool,
}

/// All goals whose workloads were measured. Those about sizes count at full size only, since small
/// workloads measure how long programs take to start.
pub fn check(settings: &Settings, results: &Results) -> Vec<Goal> {
    let mut goals = Goals {
        results,
        list: Vec::new(),
    };
    use Kind::{Flatfs, FlatfsSync, Journal, JournalPostgres, JournalSlow, JournalSync, OnlyHash};

    for kind in [JournalSlow, Journal, JournalPostgres] {
        goals.ratio("add", kind, Flatfs, 1.0);
        goals.ratio("daemon-add", kind, Flatfs, 1.0);
    }
    for kind in [JournalSlow, Journal, JournalPostgres] {
        goals.ratio("add-small", kind, Flatfs, 0.6);
        goals.ratio("daemon-add-small", kind, Flatfs, 0.6);
    }
    // Like with like: what a write promises when it returns.
    for (workload, sync, put) in [
        ("add", 1.0, 0.8),
        ("add-1m", 1.0, 0.8),
        ("add-small", 0.5, 0.4),
    ] {
        goals.ratio(workload, JournalSync, Flatfs, sync);
        goals.ratio(workload, Journal, FlatfsSync, put);
    }
    goals.ratio("daemon-add-small", JournalSync, Flatfs, 0.9);
    for kind in [Journal, JournalPostgres] {
        goals.ratio("cat-after-add", kind, Flatfs, 1.15);
        goals.ratio("pin-after-add", kind, Flatfs, 1.3);
    }
    goals.rate("cat-cold", JournalSlow, 400.0, "MiB/s");
    goals.ratio("get-small-cold", JournalSlow, Flatfs, 1.0);
    goals.rate("gateway-cold-64", JournalSlow, 1500.0, "requests/s");
    goals.fetched("gateway-cold-64", JournalSlow, 4.0);
    for kind in [Journal, JournalPostgres] {
        goals.ratio("cat-cold", kind, Flatfs, 1.3);
    }
    for kind in [Journal, JournalPostgres] {
        goals.ratio("cat-warm", kind, Flatfs, 1.15);
        goals.ratio("gateway-files-64", kind, Flatfs, 1.2);
        goals.ratio("gateway-ranges-64", kind, Flatfs, 1.2);
    }
    for kind in [Journal, JournalPostgres, JournalSlow] {
        goals.count("add", kind, "blobs", |s| s.blobs, settings.fewest_blobs());
        goals.count("add-small", kind, "blobs", |s| s.blobs, 2);
    }
    for kind in [Journal, JournalPostgres] {
        goals.count("re-add", kind, "uploads", |s| s.uploads, 0);
        goals.ratio("re-add", kind, OnlyHash, 1.2);
    }
    for (kind, large, small) in [(Journal, 0.6, 0.6), (JournalPostgres, 0.8, 1.0)] {
        goals.ratio("gc", kind, Flatfs, large);
        goals.ratio("gc-small", kind, Flatfs, small);
    }
    for kind in [JournalSlow, Journal, JournalPostgres] {
        goals.cpu("add", kind, 1.1);
        goals.cpu("daemon-add", kind, 1.1);
    }
    goals.memory();
    goals.calls();
    goals.opening();
    goals.list
}

struct Goals<'a> {
    results: &'a Results,
    list: Vec<Goal>,
}

impl Goals<'_> {
    fn push(&mut self, what: String, goal: String, measured: String, met: bool) {
        self.list.push(Goal {
            what,
            goal,
            measured,
            met,
        });
    }

    /// Wall time at most `limit` times that of `base`.
    fn ratio(&mut self, workload: &str, kind: Kind, base: Kind, limit: f64) {
        if let Some(ratio) = self.results.ratio(workload, kind, base) {
            self.push(
                format!("{workload}, {}", kind.label()),
                format!("≤ {limit} × {}", base.label()),
                format!("{ratio:.2} ×"),
                ratio <= limit,
            );
        }
    }

    fn cpu(&mut self, workload: &str, kind: Kind, limit: f64) {
        let cpu = |kind| self.results.median(workload, kind, |s| Some(s.cpu));
        if let (Some(ours), Some(theirs)) = (cpu(kind), cpu(Kind::Flatfs)) {
            self.push(
                format!("CPU seconds of {workload}, {}", kind.label()),
                format!("≤ {limit} × flatfs"),
                format!("{:.2} × ({ours:.2} s of {theirs:.2} s)", ours / theirs),
                ours <= limit * theirs,
            );
        }
    }

    /// At least the given rate per second.
    fn rate(&mut self, workload: &str, kind: Kind, limit: f64, unit: &str) {
        if let Some(rate) = self.results.median(workload, kind, |s| s.rate) {
            self.push(
                format!("{workload}, {}", kind.label()),
                format!("≥ {limit} {unit}"),
                format!("{rate:.0} {unit}"),
                rate >= limit,
            );
        }
    }

    /// At most so many bytes fetched for each that was wanted.
    fn fetched(&mut self, workload: &str, kind: Kind, limit: f64) {
        if let Some(times) = self.results.median(workload, kind, |s| s.fetched) {
            self.push(
                format!("bytes fetched by {workload}, {}", kind.label()),
                format!("≤ {limit} × wanted"),
                format!("{times:.2} ×"),
                times <= limit,
            );
        }
    }

    /// At most the given number in the worst of all runs.
    fn count(
        &mut self,
        workload: &str,
        kind: Kind,
        what: &str,
        field: impl Fn(&Sample) -> Option<u64>,
        limit: u64,
    ) {
        if let Some(most) = self.results.of(workload, kind).filter_map(field).max() {
            self.push(
                format!("{what} of {workload}, {}", kind.label()),
                format!("≤ {limit}"),
                most.to_string(),
                most <= limit,
            );
        }
    }

    /// The workload that takes the most beyond flatfs.
    fn memory(&mut self) {
        let rss = |workload, kind| self.results.median(workload, kind, |s| Some(s.rss));
        let worst = self
            .results
            .runs
            .iter()
            .filter(|run| run.peer.is_walrusds())
            .filter_map(|run| {
                let over = rss(run.workload, run.peer)? - rss(run.workload, Kind::Flatfs)?;
                Some((over, run))
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((over, run)) = worst {
            self.push(
                "peak RSS over flatfs, the largest of all workloads".to_owned(),
                format!("≤ {MEMORY} MiB"),
                format!("{over:+.0} MiB ({}, {})", run.workload, run.peer.label()),
                over <= MEMORY,
            );
        }
    }

    /// Calls of the datastore, without Kubo.
    fn calls(&mut self) {
        for line in &self.results.calls {
            let at = format!("{}, {}", line.call, line.index);
            let (rate, p50) = (line.calls_per_second, line.p50_us);
            let postgres = line.index == "postgres";
            match (line.call.as_str(), line.goroutines) {
                ("Has, unknown", 128) if postgres => {
                    self.fast(&at, line.goroutines, rate, 150_000.0);
                }
                ("Has, known", 128) if postgres => {
                    self.fast(&at, line.goroutines, rate, 500_000.0);
                }
                ("Has, unknown", 1) => self.soon(&at, "p50", p50, 100.0),
                ("Has, known", 1) => self.soon(&at, "p50", p50, 2.0),
                (call, _) if call.starts_with("Query, keys") => {
                    self.fast(&at, line.goroutines, rate, 1_500_000.0);
                    self.soon(&at, "first row", p50, 20_000.0);
                }
                _ => {}
            }
        }
    }

    /// An open beyond the connection that it needs.
    fn opening(&mut self) {
        if let Some(opening) = &self.results.opening {
            let beyond = opening.postgres - opening.connect;
            self.push(
                "opening, beyond the connection to Postgres".to_owned(),
                format!("≤ {OPENING} ms"),
                format!("{beyond:.1} ms"),
                beyond <= OPENING,
            );
        }
    }

    fn fast(&mut self, what: &str, goroutines: u32, rate: f64, limit: f64) {
        self.push(
            format!("{what}, {goroutines} at once"),
            format!("≥ {limit:.0}/s"),
            format!("{rate:.0}/s"),
            rate >= limit,
        );
    }

    fn soon(&mut self, what: &str, which: &str, micros: f64, limit: f64) {
        self.push(
            format!("{what}, {which}"),
            format!("≤ {limit:.0} µs"),
            format!("{micros:.1} µs"),
            micros <= limit,
        );
    }
}
