//! Two years of a node on a local Walrus, in minutes: blocks come and go, the node is killed now
//! and then, an aggregator lies, a clock is wrong. Nothing may be lost, and what was paid is
//! compared with what had to be paid. See scripts/lifetime-sim.sh.
//!
//! # Scale
//!
//! The network has fewer shards than Mainnet (`n` instead of 1000), and packs are shorter by the
//! square of that: an encoded blob has `64·n²` bytes and 4.5 bytes for each of its content, so that
//! all lengths and prices, and the waste in packs that are not full, are those of Mainnet divided
//! by `(1000/n)²`. With 200 shards: 25 times shorter packs (2.56 MiB for 64 MiB) of 14 units (for
//! 350), and blocks of 2 to 16 KiB that stand for 50 to 400 KiB.
//!
//! # Time
//!
//! See [`time`]: a step is half a day, and an epoch of 14 days has 28 steps.

mod backend;
mod bill;
mod history;
mod life;
mod time;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testkit::postgres::Postgres;

use backend::Backend;
use bill::{Occupied, Purpose, Rates};
use life::{Level2, Sim, EPOCH, FIRST_EPOCH};

/// The most that may be paid, compared with what the live bytes need in full packs: see [`bill`].
const MOST: f64 = 1.15;

/// The ways of an operator to keep blobs alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Over HTTP alone.
    Without,
    /// With `walrusCommand`.
    With,
    /// With `walrusCommand` and a publisher of one wallet that uses storage again (`reuseStorage`).
    Reuse,
}

impl Way {
    fn named(name: &str) -> Way {
        match name {
            "without" => Way::Without,
            "with" => Way::With,
            "reuse" => Way::Reuse,
            other => panic!("SIM_CHAIN names {other:?}, expected some of without, with, reuse, with commas between them"),
        }
    }

    fn has_chain(self) -> bool {
        self != Way::Without
    }

    /// Whether the goal can be reached. Where storage is not used again, dead bytes are paid for,
    /// or their pack is paid for twice: hardly less than the goal is paid at best, without
    /// foresight, if every pack is full and has no header.
    fn is_judged(self) -> bool {
        self != Way::With
    }

    fn describe(self) -> &'static str {
        match self {
            Way::Without => "without walrusCommand",
            Way::With => "with walrusCommand",
            Way::Reuse => "with walrusCommand and reuseStorage",
        }
    }

    /// How many epochs are bought at a time if nothing else is asked for. Where a blob is extended
    /// without a fee and shed bytes are of use, few are best.
    fn bought(self) -> u32 {
        match self {
            Way::Reuse => 2,
            _ => 5,
        }
    }
}

/// The settings of a run.
#[derive(Clone)]
pub struct Settings {
    /// The seed of all random choices.
    pub seed: u64,
    /// How many epochs it lasts.
    pub epochs: u32,
    pub steps_per_epoch: u32,
    /// How many blocks come.
    pub blocks: usize,
    pub n_shards: u16,
    /// The length of a full pack (bytes).
    pub target: u64,
    /// How many epochs are bought at a time.
    pub bought: u32,
    /// Blobs that end within this time are renewed.
    pub lead: Duration,
    /// How likely the node is killed in a step.
    pub kill: f64,
    /// Whether writes go through a journal.
    pub journal: bool,
    /// The troubles that are left out.
    without: Vec<String>,
}

/// The troubles of a node, as SIM_WITHOUT names them.
const TROUBLES: [&str; 4] = ["kills", "liar", "liars", "clock"];

impl Settings {
    /// The length of a step.
    pub fn step(&self) -> Duration {
        EPOCH / self.steps_per_epoch
    }

    /// Whether a step lies in this part of the whole time.
    fn within(&self, step: u32, part: std::ops::Range<f64>) -> bool {
        let steps = f64::from(self.epochs * self.steps_per_epoch);
        part.contains(&(f64::from(step) / steps))
    }

    /// Whether the aggregator that is asked first lies in this step.
    pub fn first_lies(&self, step: u32) -> bool {
        !self.is_without("liar") && self.within(step, 0.25..0.4)
    }

    /// Whether all aggregators lie in this step: for two days, in the middle of an epoch.
    pub fn all_lie(&self, step: u32) -> bool {
        let day = step % self.steps_per_epoch;
        let lies = self.steps_per_epoch / 2..self.steps_per_epoch / 2 + self.steps_per_epoch / 7;
        !self.is_without("liars") && self.within(step, 0.7..0.85) && lies.contains(&day)
    }

    /// Whether the node's clock is a year ahead in this step.
    pub fn is_wrong_clock(&self, step: u32) -> bool {
        !self.is_without("clock") && self.within(step, 0.5..0.56)
    }

    fn is_without(&self, trouble: &str) -> bool {
        self.without.iter().any(|without| without == trouble)
    }
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={text} is not what is expected"),
    }
}

/// The length of a pack that stands for 64 MiB on a network of 1000 shards.
fn scaled_pack(n_shards: u16) -> u64 {
    let n = u64::from(n_shards);
    (64 << 20) * n * n / 1_000_000
}

fn main() -> ExitCode {
    let short = variable::<u8>("SIM_SHORT").is_some_and(|n| n > 0);
    let strict = std::env::args().any(|arg| arg == "--strict");
    let n_shards = variable("SIM_SHARDS").unwrap_or(if short { 100 } else { 200 });
    let lead_days: u64 = variable("SIM_LEAD_DAYS").unwrap_or(7);
    let without: String = variable("SIM_WITHOUT").unwrap_or_default();
    let without = without.split(',').filter(|name| !name.is_empty());
    let without: Vec<String> = without.map(str::to_owned).collect();
    for name in &without {
        assert!(
            TROUBLES.contains(&name.as_str()),
            "SIM_WITHOUT names {name:?}, expected some of {TROUBLES:?}, with commas between them"
        );
    }
    let settings = Settings {
        seed: variable("SIM_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())),
        epochs: variable("SIM_EPOCHS").unwrap_or(if short { 12 } else { 52 }),
        steps_per_epoch: 28,
        blocks: variable("SIM_BLOCKS").unwrap_or(if short { 2000 } else { 100_000 }),
        n_shards,
        target: variable("SIM_PACK").unwrap_or_else(|| scaled_pack(n_shards)),
        bought: 0,
        lead: Duration::from_secs(lead_days * 86_400),
        kill: match () {
            () if without.iter().any(|name| name == "kills") => 0.0,
            () if short => 0.03,
            () => 0.02,
        },
        journal: variable::<u8>("SIM_JOURNAL").is_some_and(|n| n > 0),
        without,
    };
    let bought: Option<u32> = variable("SIM_BOUGHT");
    assert!(
        bought.is_none_or(|epochs| epochs > 1),
        "SIM_BOUGHT must be 2 at least"
    );
    let ways: String = variable("SIM_CHAIN").unwrap_or_else(|| "without,with,reuse".to_owned());
    let ways: Vec<Way> = ways.split(',').map(Way::named).collect();
    let index = variable::<String>("SIM_INDEX").unwrap_or_else(|| "sqlite".to_owned());
    let server = match index.as_str() {
        "sqlite" => None,
        "postgres" => Some(Arc::new(Postgres::start())),
        other => panic!("SIM_INDEX={other}: expected sqlite or postgres"),
    };
    println!("SIM_SEED={}", settings.seed);
    let mut failed = false;
    for way in ways {
        let settings = Settings {
            bought: bought.unwrap_or(way.bought()),
            ..settings.clone()
        };
        // In memory where that is possible: a busy disk looks like a node that has nothing to do.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("a directory");
        let backend = match &server {
            None => Backend::Sqlite(dir.path().join("index.sqlite")),
            Some(server) => Backend::Postgres(Arc::clone(server), server.database()),
        };
        let began = Instant::now();
        let mut sim = Sim::new(&settings, backend, dir, way);
        sim.run();
        failed |= !report(&settings, &sim, way, began.elapsed(), strict);
    }
    ExitCode::from(u8::from(failed))
}

/// Prints what was paid for at the end of each epoch.
fn print_table(ended: &[Occupied]) {
    println!(
        "  epoch  live units  dead, headers  too large  idle  stores  in storage that was left"
    );
    for (epoch, o) in ended.iter().enumerate() {
        println!(
            "  {epoch:>5} {:>11.1} {:>14.1} {:>10.1} {:>5} {:>7} {:>7}",
            o.live,
            o.content - o.live,
            o.of_blobs - o.content,
            o.idle,
            o.stores,
            o.reused,
        );
    }
}

/// Prints the results of a simulation; whether it passed.
fn report(settings: &Settings, sim: &Sim<'_>, way: Way, took: Duration, strict: bool) -> bool {
    let chain = way.has_chain();
    let rates = Rates::new(settings);
    let tally = &sim.tally;
    println!(
        "\n{} epochs, {}, {}, {} blocks, packs of {} bytes ({} units), {} epochs bought at a time ({:.0} s)",
        settings.epochs,
        sim.backend().name(),
        way.describe(),
        settings.blocks,
        settings.target,
        rates.units(settings.target),
        settings.bought,
        took.as_secs_f64(),
    );
    println!(
        "  {} lives, {} kills, {} calls failed and were repeated, {} stores ({} in storage that was left), {} extensions, {} deletions on the chain",
        tally.lives,
        tally.kills,
        tally.failed_calls,
        sim.paid.stores(),
        sim.paid.reused(),
        sim.net.stats().extended,
        sim.net.stats().deleted,
    );
    let metric = |name: &str| tally.metrics.get(name).copied().unwrap_or(0);
    println!(
        "  {} renewals, {} that failed; {} answers of aggregators were wrong",
        metric("renewals"),
        metric("renewals_failed"),
        metric("walrus_corrupt"),
    );
    let bound = rates.bound(&sim.blocks, chain);
    let (by_purpose, in_total) = sim.paid.sum(&rates, FIRST_EPOCH);
    let paid: u64 = by_purpose.values().sum();
    let line = |name: &str, frost: u64| {
        let ratio = frost as f64 / bound as f64;
        println!(
            "  {name:<44} {:>10.3} WAL {ratio:>7.3}×",
            frost as f64 / 1e9
        );
    };
    line("needed: live bytes in full packs", bound);
    let at_best = rates.without_foresight(&sim.blocks, chain);
    line("at best, without foresight", at_best);
    line("paid by walrusds", paid);
    for (purpose, frost) in &by_purpose {
        let what = match purpose {
            Purpose::Put => "  blocks that were put",
            Purpose::Again => "  blobs stored again",
            Purpose::Repack => "  repacked",
            Purpose::InVain => "  in vain, as the node was killed",
            Purpose::Extend => "  extended",
        };
        line(what, *frost);
    }
    let ended = &sim.paid.occupied;
    let storage = |units: f64| (units * rates.prices.storage as f64) as u64;
    let sum = |of: fn(&Occupied) -> f64| storage(ended.iter().map(of).sum());
    line("at the ends of the epochs: live bytes", sum(|o| o.live));
    line(
        "  dead bytes and headers",
        sum(|o| (o.content - o.live).max(0.0)),
    );
    line(
        "  storage larger than its blob needs",
        sum(|o| (o.of_blobs - o.content).max(0.0)),
    );
    line("  storage without a blob", sum(|o| o.idle));
    if variable::<u8>("SIM_TABLE").is_some_and(|n| n > 0) {
        print_table(ended);
    }
    line(
        "every pack stored again (the Go plugin)",
        rates.all_stored_again(&sim.blocks),
    );
    line("every pack extended", rates.all_extended(&sim.blocks));
    let mut passed = true;
    let mut fails = |text: String| {
        println!("  ! {text}");
        passed = false;
    };
    for ((level, message), n) in &tally.log {
        let level = if *level == Level2::Error {
            "error"
        } else {
            "warn"
        };
        println!("  log, {n}×, {level}: {message}");
    }
    for complaint in &tally.complaints {
        fails(complaint.clone());
    }
    let billed = sim.net.stats().cost_frost;
    if billed != in_total {
        fails(format!(
            "the network billed {billed} FROST, its registrations cost {in_total}"
        ));
    }
    if tally.undead > 0 {
        fails(format!("{} deleted blocks are still there", tally.undead));
    }
    let ratio = paid as f64 / bound as f64;
    if ratio > MOST {
        let text = format!(
            "{ratio:.3} times what the live bytes need in full packs was paid, at most {MOST} times is the goal"
        );
        if strict && way.is_judged() {
            fails(text);
        } else {
            println!("  (not judged) {text}");
        }
    }
    println!(
        "  {} answers compared, {} unreadable meanwhile, {} live blocks lost: {}",
        tally.compared,
        tally.unreadable,
        tally.lost,
        if passed && tally.lost == 0 {
            "passed"
        } else {
            "FAILED"
        }
    );
    passed && tally.lost == 0
}
