//! Renewal by plan, the deletion of dead blobs, and adoption, in processes that die in their midst.
//!
//! Epochs are ended by hand, so that no blob lapses because the machine is slow. All blobs are due
//! whenever one has ended. After each death another process, which only reads, makes a whole round:
//! in it no read may fail, every row must point at a blob that was bought anew, and no blob may be
//! bought for longer than was wanted. At the end a second such round in the same epoch must pay
//! nothing.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{json, Value};
use walrus_devnet::{BlobId, FaultAction, FaultPlan, FaultRule, Loss, Op};

use crate::backend::Backend;
use crate::crash::{Crashes, Life, Scenario, FAILPOINTS, PATIENCE};
use crate::Settings;
use testkit::mem::{key_of, noise};

/// How long an epoch lasts (seconds), as `walrus-devnet-cli` tells it where they are ended by hand.
const EPOCH: u64 = 1_209_600;
/// How many epochs are bought.
const BOUGHT: u32 = 5;
/// Packs of few blocks, as they are written: together they fit into one pack, so repacking is the
/// cheapest.
const SMALL: u64 = 1024;
const LARGE: u64 = 65_536;
/// Writes between two deaths, and writes beside a renewal: they make some twenty blobs. Each of
/// them may be extended by a program of its own, and 256 due blobs are spread over the lead.
const WRITES: u64 = 120;
const WRITES_BESIDE: u64 = 40;

/// The end of a round of renewals leaves this note.
const ROUND: &str = "SELECT value FROM walrus_index_meta WHERE name = 'renewal.round'";
const FORGET_ROUND: &str = "DELETE FROM walrus_index_meta WHERE name = 'renewal.round'";

/// The time of an epoch passes for the index, too: rests end, counts are old, and so are the states
/// of blobs. What was seen of the epochs is forgotten, as they do not keep their length here.
const PASS: &str = "DELETE FROM walrus_index_epochs; DELETE FROM walrus_index_meta \
                    WHERE name LIKE 'renewal.%' OR name LIKE 'ledger.%'; \
                    UPDATE walrus_index_blobs SET state_since = state_since - ";

/// The tables that the Go plugin makes.
const GO_TABLES: &str = "CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, \
    object_id TEXT NOT NULL DEFAULT '', patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, \
    size BIGINT NOT NULL, encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, \
    deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now()); \
    CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, size BIGINT NOT NULL, \
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ);";
/// Blocks that a Go node leaves behind before each death, and their length.
const STAGED: u64 = 40;
const STAGED_BYTES: usize = 1000;

/// The scenario of one index, with renewal.
struct Renewing<'a>(Scenario<'a>);

impl<'a> Renewing<'a> {
    fn new(settings: &'a Settings, backend: Backend) -> Self {
        Renewing(Scenario::new(settings, backend, false))
    }

    fn config(&self, target: u64, renews: bool) -> Value {
        let program = std::env::current_exe().expect("this program");
        let chain = program.with_file_name("walrus-devnet-cli");
        let mut config = json!({
            "network": {"epochDurationSeconds": EPOCH}, "epochs": BOUGHT, "deletable": true,
            "keepDeletedSeconds": 1, "packTargetSizeBytes": target,
            // Every read goes to an aggregator.
            "blobCacheBytes": -1, "cachePath": null, "cacheBytes": null,
        });
        if renews {
            config["walrusCommand"] = json!([chain.to_str(), "--url", self.0.net.url()]);
            config["renewIntervalSeconds"] = 1.into();
            config["renewLeadSeconds"] = (u64::from(BOUGHT - 1) * EPOCH).into();
        }
        config
    }

    /// Writes small packs, and deletes some of their blocks. Then all of them are due.
    fn feed(&mut self) {
        let life = Life {
            config: self.config(SMALL, false),
            writes: WRITES,
            strict: true,
            ..Life::default()
        };
        let child = self.0.spawn(&life);
        self.0.wait(child);
        self.pass();
    }

    /// Ends an epoch.
    fn pass(&mut self) {
        self.0.net.advance_epoch(1);
        let sqlite = format!("{PASS} 10800000000;");
        let postgres = format!("{PASS} interval '3 hours';");
        self.0.backend.run(&sqlite, &postgres);
    }

    /// Lets a process make a whole round, or more, beside its calls.
    fn live_through_a_round(&mut self, life: &Life<'_>) {
        self.0.backend.run(FORGET_ROUND, FORGET_ROUND);
        let mut child = self.0.spawn(life);
        let until = Instant::now() + PATIENCE;
        while self.0.backend.ask(ROUND).is_none() {
            if Instant::now() > until || !matches!(child.try_wait(), Ok(None)) {
                let complaint = "a process made no round of renewals".to_owned();
                self.0.result.complaints.push(complaint);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.stop();
        self.0.wait(child);
    }

    /// A round without faults.
    fn rest(&mut self) {
        let life = Life {
            config: self.config(LARGE, true),
            linger: PATIENCE,
            strict: true,
            only_reads: true,
            ..Life::default()
        };
        self.live_through_a_round(&life);
        let now = self.0.net.epoch();
        let mut complaints = Vec::new();
        let blobs = self.0.net.blobs();
        for blob in &blobs {
            let end = blob.end_epoch;
            if blob.live && end > now + BOUGHT {
                let id = blob.blob_id;
                complaints.push(format!("in epoch {now}, blob {id} is paid for up to {end}"));
            }
        }
        for row in self.0.backend.rows() {
            let id = row.blob_id.parse::<BlobId>().ok();
            let blob = blobs.iter().find(|blob| Some(blob.blob_id) == id);
            // Blocks without a byte need no blob.
            let ends = blob.map_or(now + BOUGHT, |blob| blob.end_epoch);
            if ends < now + BOUGHT && row.size > 0 {
                let (key, id) = (row.key, row.blob_id);
                complaints.push(format!(
                    "in epoch {now}, {key} in blob {id} ends with {ends}"
                ));
            }
        }
        self.0
            .result
            .complaints
            .extend(complaints.into_iter().take(5));
    }

    /// Lets a process die at a fail point of renewal.
    fn die_at(&mut self, point: &str, n: u64) {
        self.feed();
        if point.starts_with("dead.") {
            // Blobs lose their last blocks.
            self.rest();
            self.pass();
        }
        // In packs of few blocks nothing is won by repacking, so blobs are extended.
        let target = if point.starts_with("extend.") {
            SMALL
        } else {
            LARGE
        };
        self.0.die(&Life {
            config: self.config(target, true),
            writes: WRITES_BESIDE,
            only_reads: true,
            // It hangs if it does not end by then.
            linger: 2 * PATIENCE,
            point: Some((point, n)),
            strict: true,
        });
        self.rest();
    }

    /// Kills a process while it renews and writes.
    fn kill(&mut self, rng: &mut StdRng) {
        self.feed();
        let target = if rng.random_bool(0.5) { SMALL } else { LARGE };
        let life = Life {
            config: self.config(target, true),
            writes: u64::MAX,
            strict: true,
            ..Life::default()
        };
        self.0.kill(rng.random_range(1..120), &life);
        self.rest();
    }

    /// A process renews while publisher and chain fail now and then.
    fn trouble(&mut self, seed: u64) {
        self.feed();
        self.0.net.set_faults(troubles(seed));
        let life = Life {
            config: self.config(LARGE, true),
            writes: WRITES_BESIDE,
            only_reads: true,
            linger: PATIENCE,
            ..Life::default()
        };
        self.live_through_a_round(&life);
        self.0.net.clear_faults();
        self.rest();
    }

    /// A second round in the same epoch pays nothing; then all is compared.
    fn finish(mut self) -> Crashes {
        self.feed();
        self.rest();
        let paid = |scenario: &Scenario<'_>| {
            let stats = scenario.net.stats();
            (stats.newly_created, stats.extended)
        };
        let before = paid(&self.0);
        self.rest();
        let after = paid(&self.0);
        if before != after {
            let what = "a second round in the same epoch has paid: blobs stored and extended";
            let complaint = format!("{what} {before:?} before, {after:?} after");
            self.0.result.complaints.push(complaint);
        }
        self.0.finish()
    }
}

/// Faults of publisher and chain. Reads are compared meanwhile, so aggregators have none.
fn troubles(seed: u64) -> FaultPlan {
    let on = |ops: &[Op], action, probability| {
        let rule = FaultRule::new(action).on(ops.iter().copied());
        rule.with_probability(probability)
    };
    // Not the epoch and the prices: without them there is no plan.
    let chain = [Op::ChainExtend, Op::ChainDelete, Op::ChainList];
    let cut = || FaultAction::AnswerLost { how: Loss::Cut };
    let rules = vec![
        on(&[Op::Put], FaultAction::Internal, 0.1),
        on(&[Op::Put], FaultAction::Unavailable, 0.05),
        on(&[Op::Put], FaultAction::Reset { after: 100 }, 0.05),
        on(&[Op::Put], cut(), 0.05),
        on(&[Op::Put], FaultAction::Unconfirmed, 0.05),
        on(&chain, FaultAction::Internal, 0.1),
        on(&chain, cut(), 0.1),
    ];
    FaultPlan { seed, rules }
}

/// Deaths at every fail point of renewal by plan, kills at any moment, and troubles, `rounds` times
/// over.
pub fn renewal(settings: &Settings, backend: Backend, rounds: u64) -> Crashes {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut renewing = Renewing::new(settings, backend);
    let of_plan = |point: &&&str| {
        let room = point.split('.').next().unwrap_or_default();
        ["repack", "extend", "dead"].contains(&room)
    };
    for _ in 0..rounds {
        for point in FAILPOINTS.iter().filter(of_plan) {
            let most = if point.starts_with("extend.") { 3 } else { 1 };
            renewing.die_at(point, rng.random_range(1..=most));
        }
        renewing.kill(&mut rng);
        renewing.trouble(rng.random());
    }
    renewing.finish()
}

/// Deaths at every fail point of adoption, `rounds` times over.
pub fn adoption(settings: &Settings, backend: Backend, rounds: u64) -> Crashes {
    backend.run("", GO_TABLES);
    let mut scenario = Scenario::new(settings, backend, false);
    let config = json!({"adoptStagingSeconds": 4, "cachePath": null, "cacheBytes": null});
    let left = "SELECT count(*)::text FROM walrus_index_staging";
    let mut keys = Vec::new();
    let points = FAILPOINTS
        .iter()
        .filter(|point| point.starts_with("adopt."));
    for point in points.cycle().take(4 * rounds as usize) {
        for _ in 0..STAGED {
            let value = noise(keys.len() as u64, STAGED_BYTES);
            let key = key_of(&value);
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            let staged = format!(
                "INSERT INTO walrus_index_staging (key, value, size, created_at) \
                 VALUES ('{key}', '\\x{hex}', {STAGED_BYTES}, now() - interval '1 hour')"
            );
            scenario.backend.run("", &staged);
            keys.push(key);
        }
        scenario.die(&Life {
            config: config.clone(),
            linger: PATIENCE,
            point: Some((point, 1)),
            strict: true,
            ..Life::default()
        });
        // The claims of the dead run out.
        let free = "UPDATE walrus_index_staging SET leased_until = NULL";
        scenario.backend.run("", free);
    }
    let child = scenario.spawn(&Life {
        config,
        linger: PATIENCE,
        strict: true,
        ..Life::default()
    });
    let until = Instant::now() + PATIENCE;
    while scenario.backend.ask(left).is_some_and(|left| left != "0") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    scenario.stop();
    scenario.wait(child);
    let rows = scenario.backend.rows();
    let lost = keys
        .iter()
        .filter(|key| rows.iter().all(|row| row.key != **key));
    let lost: Vec<String> = lost
        .map(|key| format!("staged block {key} is lost"))
        .collect();
    scenario.result.complaints.extend(lost.into_iter().take(5));
    scenario.finish()
}
