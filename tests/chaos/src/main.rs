//! Breaks walrusds on purpose and counts the losses. See scripts/chaos.sh.

mod backend;
mod corruptor;
mod crash;
mod lifetime;
mod memory;
mod real;
mod workload;

use std::collections::BTreeMap;
use std::future::Future;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::Value;

use backend::Backend;
use crash::Crashes;
use testkit::postgres::Postgres;
use workload::Tally;

/// The number of faults, by kind.
pub type Counts = BTreeMap<String, u64>;

/// The settings of one run.
pub struct Settings {
    /// The seed of all random choices.
    pub seed: u64,
    /// Keys that every configuration gets on top.
    extra: Value,
}

impl Settings {
    /// A configuration with the extra keys.
    pub fn config(&self, mut config: Value) -> Value {
        for (key, value) in self.extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }
}

/// Runs futures at the same time, on this task.
pub async fn together<F: Future<Output = ()>>(all: impl Iterator<Item = F>) {
    let mut all: FuturesUnordered<F> = all.collect();
    while all.next().await.is_some() {}
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={text} is not what is expected"),
    }
}

fn main() -> ExitCode {
    if let Some(done) = crash::worker() {
        return done;
    }
    let smoke = variable::<u8>("CHAOS_SMOKE").is_some_and(|n| n > 0);
    let settings = Settings {
        seed: variable("CHAOS_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())),
        extra: variable("CHAOS_CONFIG").unwrap_or(Value::Null),
    };
    let ops: u64 = variable("CHAOS_OPS").unwrap_or(if smoke { 60_000 } else { 1_000_000 });
    let (rounds, kills, plans) = if smoke { (1, 3, 1) } else { (4, 40, 3) };
    let plans = variable("CHAOS_PLANS").unwrap_or(plans);
    let only: String = variable("CHAOS_ONLY").unwrap_or_default();
    let wants = |part: &str| part.starts_with(&only);
    println!("CHAOS_SEED={}", settings.seed);

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut report = Report::default();

    if wants("in memory") {
        let tally = Tally::default();
        let counts = runtime.block_on(memory::run(&settings, ops * 17 / 20, false, &tally));
        report.part("in memory", &tally, counts);
        let tally = Tally::default();
        let counts = runtime.block_on(memory::run(&settings, ops / 20, true, &tally));
        report.part("in memory, lies", &tally, counts);
    }

    let server = Arc::new(Postgres::start());
    let dir = tempfile::tempdir().expect("directory");
    let fresh_file = || {
        let name = format!("{:x}", rand::random::<u64>());
        Backend::sqlite(dir.path(), &name)
    };
    for journalled in [false, true] {
        let way = if journalled { ", journal" } else { "" };
        for backend in [fresh_file(), Backend::postgres(&server)] {
            if !wants("local Walrus") {
                continue;
            }
            let tally = Tally::default();
            let run = real::run(&settings, &backend, journalled, ops * 3 / 40, &tally);
            let counts = runtime.block_on(run);
            let caches = if journalled { " and read cache" } else { "" };
            let name = format!("local Walrus, {}{way}{caches}", backend.name());
            report.part(&name, &tally, counts);
        }
    }
    for journalled in [false, true] {
        let way = if journalled { ", journal" } else { "" };
        let database = || Backend::postgres(&server);
        if wants("fail points") {
            let crashes = crash::at_every_point(&settings, fresh_file, journalled, rounds);
            report.crashes(&format!("fail points, sqlite{way}"), crashes);
            let crashes = crash::at_every_point(&settings, database, journalled, rounds);
            report.crashes(&format!("fail points, postgres{way}"), crashes);
        }
        for backend in [fresh_file(), database()] {
            if !wants("kill -9") {
                continue;
            }
            let name = format!("kill -9, {}{way}", backend.name());
            let crashes = crash::at_any_moment(&settings, backend, journalled, kills);
            report.crashes(&name, crashes);
        }
    }
    for backend in [fresh_file(), Backend::postgres(&server)] {
        let name = format!("renewal, {}", backend.name());
        if !wants(&name) {
            continue;
        }
        let crashes = lifetime::renewal(&settings, backend, plans);
        report.crashes(&name, crashes);
    }
    if wants("adoption") {
        let crashes = lifetime::adoption(&settings, Backend::postgres(&server), plans);
        report.crashes("adoption, postgres", crashes);
    }
    report.finish(if only.is_empty() { ops } else { 0 })
}

/// Prints the results, part by part.
struct Report {
    began: Instant,
    part_began: Instant,
    writes: u64,
    faults: u64,
    lost: u64,
    wrong: u64,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            began: Instant::now(),
            part_began: Instant::now(),
            writes: 0,
            faults: 0,
            lost: 0,
            wrong: 0,
        }
    }
}

fn list(counts: &Counts) -> String {
    let all: Vec<String> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
    all.join(", ")
}

impl Report {
    fn head(&mut self, name: &str) {
        println!(
            "\n{name} ({:.1} s)",
            self.part_began.elapsed().as_secs_f64()
        );
        self.part_began = Instant::now();
    }

    fn part(&mut self, name: &str, tally: &Tally, faults: Counts) {
        self.head(name);
        let of = |n: &std::sync::atomic::AtomicU64| n.load(Relaxed);
        let (lost, wrong) = (of(&tally.lost), of(&tally.wrong));
        println!(
            "  {} writes acknowledged, {} answers compared, {} calls failed, {} given up",
            of(&tally.writes),
            of(&tally.reads),
            of(&tally.failed),
            of(&tally.gave_up)
        );
        println!("  faults: {}", list(&faults));
        println!("  errors: {}", list(&tally.errors()));
        println!(
            "  lost {lost}, wrong {wrong}, damaged under keys that cannot be checked {}",
            of(&tally.unverifiable)
        );
        for complaint in tally.complaints() {
            println!("  ! {complaint}");
        }
        self.writes += of(&tally.writes);
        self.faults += faults.values().sum::<u64>();
        self.lost += lost;
        self.wrong += wrong;
    }

    fn crashes(&mut self, name: &str, crashes: Crashes) {
        self.head(name);
        println!(
            "  {} deaths, {} damages to the cache, {} writes acknowledged, {} answers compared, {} rows followed to their bytes, {} complaints",
            crashes.deaths, crashes.damages, crashes.writes, crashes.checked, crashes.rows, crashes.complaints.len()
        );
        for complaint in &crashes.complaints {
            println!("  ! {complaint}");
        }
        self.writes += crashes.writes;
        self.faults += crashes.deaths + crashes.damages;
        self.wrong += crashes.complaints.len() as u64;
    }

    fn finish(self, ops: u64) -> ExitCode {
        println!(
            "\n{} acknowledged writes, {} faults and deaths, {} lost, {} wrong, in {:.0} s",
            self.writes,
            self.faults,
            self.lost,
            self.wrong,
            self.began.elapsed().as_secs_f64()
        );
        ExitCode::from(u8::from(self.lost + self.wrong > 0 || self.writes < ops))
    }
}
