//! Random sequences of calls, reopenings, crashes and passing time at two nodes on one index,
//! compared with a map.
//!
//! Every run draws new sequences. A failure prints the shortest sequence found and a seed;
//! `MODEL_SEED=<seed>` repeats the run. `MODEL_CASES` multiplies the number of sequences (in
//! percent). Sequences that once failed are kept in `tests/model.proptest-regressions` and played
//! first.

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::epochs::{EpochStore, TokioClock};
use common::faulty::{Fault, Faults, FaultyIndex, FaultyStore, Fuse};
use common::mem::MemIndex;
use common::model::{play, Act, Call, GiveUp, Node, Step, World, NODES, SLOTS};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner};
use walrusds::{Config, WalrusDatastore};

const EPOCH: Duration = Duration::from_secs(1000);

/// Renewal is on: blobs of three epochs, renewed a thousand seconds before their end.
fn config() -> Config {
    Config::from_json(
        r#"{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i","epochs":3,
            "epochDurationSeconds":1000,"renewIntervalSeconds":30,"packTargetSizeBytes":4096}"#,
    )
    .expect("configuration")
}

/// Everything in memory, on tokio's paused clock.
struct Memory {
    index: Arc<MemIndex>,
    network: Arc<EpochStore>,
    faults: Arc<Faults>,
    clock: Arc<TokioClock>,
    faulty: bool,
    lying: bool,
}

impl Memory {
    fn new(seed: u64, rates: Vec<(Fault, f64)>) -> Self {
        let can_fail = |(f, _): &(Fault, f64)| *f != Fault::Delay;
        Memory {
            index: Arc::default(),
            network: Arc::new(EpochStore::start(EPOCH)),
            faulty: rates.iter().any(can_fail),
            lying: rates.iter().any(|(f, _)| Fault::LIES.contains(f)),
            faults: Arc::new(Faults::seeded(seed, rates, Duration::from_millis(20))),
            clock: Arc::new(TokioClock::start()),
        }
    }
}

#[async_trait]
impl World for Memory {
    async fn open(&self, _node: usize) -> Node {
        let fuse = Arc::new(Fuse::default());
        let index = FaultyIndex::new(
            Arc::clone(&self.index),
            Arc::clone(&self.faults),
            Arc::clone(&fuse),
        );
        let store = FaultyStore::new(
            Arc::clone(&self.network),
            Arc::clone(&self.faults),
            Arc::clone(&fuse),
        );
        let clock = Arc::<TokioClock>::clone(&self.clock);
        let datastore =
            WalrusDatastore::with_parts(&config(), Arc::new(index), Arc::new(store), clock);
        Node {
            datastore: Arc::new(datastore),
            fuse,
        }
    }

    async fn crashed(&self) {
        // Else a node that dies again and again would hold renewal up for longer than blobs last.
        *self.index.lease.lock() = None;
    }

    async fn pass(&self, seconds: u16) -> Result<(), String> {
        // Faults may hold renewals up for less than what they have to spare.
        let seconds = u64::from(seconds);
        tokio::time::sleep(Duration::from_secs(seconds.min(300))).await;
        self.faults.set_quiet(true);
        tokio::time::sleep(Duration::from_secs(400 + seconds.saturating_sub(300))).await;
        self.faults.set_quiet(false);
        Ok(())
    }

    fn faulty(&self) -> bool {
        self.faulty
    }

    fn lying(&self) -> bool {
        self.lying
    }

    fn set_quiet(&self, quiet: bool) {
        self.faults.set_quiet(quiet);
    }
}

fn act() -> impl Strategy<Value = Act> {
    let slot = || 0..SLOTS;
    let seed = || 0..10u8;
    prop_oneof![
        6 => (slot(), seed()).prop_map(|(s, v)| Act::Put(s, v)),
        3 => slot().prop_map(Act::Delete),
        4 => prop::collection::vec((slot(), prop::option::weighted(0.7, seed())), 0..8)
            .prop_map(Act::Batch),
        5 => slot().prop_map(Act::Get),
        1 => slot().prop_map(Act::Has),
        1 => slot().prop_map(Act::Size),
        2 => (0..6u8, any::<bool>(), 0..3u8, prop::option::weighted(0.3, 0..4u8)).prop_map(
            |(prefix, values, offset, limit)| Act::Query { prefix, values, offset, limit }
        ),
        1 => Just(Act::Sync),
    ]
}

fn give_up() -> impl Strategy<Value = Option<GiveUp>> {
    prop_oneof![
        4 => Just(None),
        1 => (0..6u8).prop_map(|n| Some(GiveUp::Polls(n))),
        1 => (0..3000u16).prop_map(|n| Some(GiveUp::Micros(n))),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    (0..NODES, act(), give_up()).prop_map(|(node, act, give_up)| Call { node, act, give_up })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => call().prop_map(|call| Step::Together(vec![call])),
        5 => prop::collection::vec(call(), 2..6).prop_map(Step::Together),
        2 => (0..NODES).prop_map(Step::Reopen),
        2 => (0..NODES, prop::collection::vec(call(), 0..4)).prop_map(|(n, c)| Step::Crash(n, c)),
        1 => (1..1500u16).prop_map(Step::Pass),
    ]
}

fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..longest)
}

/// The seed of this run, given or new.
fn seed() -> [u8; 32] {
    let hash = match std::env::var("MODEL_SEED") {
        Ok(text) => blake3::hash(text.as_bytes()),
        Err(_) => {
            let text = format!("{:016x}", rand::random::<u64>());
            std::env::set_var("MODEL_SEED", &text);
            blake3::hash(text.as_bytes())
        }
    };
    *hash.as_bytes()
}

fn cases(all: u32) -> u32 {
    let percent = std::env::var("MODEL_CASES").map_or(100, |n| n.parse().expect("MODEL_CASES"));
    (all * percent).div_ceil(100)
}

/// Draws sequences and plays them; panics with the shortest that fails.
fn run<S: Strategy>(strategy: S, cases: u32, test: impl Fn(S::Value) -> Result<(), String>) {
    let seed = seed();
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/model.proptest-regressions",
        ))),
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    match runner.run(&strategy, |input| test(input).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, input)) => panic!(
            "{reason}\nshortest sequence: {input:#?}\nMODEL_SEED={} repeats this run",
            std::env::var("MODEL_SEED").unwrap_or_default()
        ),
        Err(e) => panic!("{e}"),
    }
}

/// Plays steps in memory. Nothing here takes real time; what hangs shows as a day gone by.
fn play_in_memory(steps: &[Step], seed: u64, rates: Vec<(Fault, f64)>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let world = Memory::new(seed, rates);
        let day = Duration::from_secs(86_400);
        match tokio::time::timeout(day, play(&world, steps)).await {
            Ok(done) => done.map(drop),
            Err(_) => Err("it hangs".to_owned()),
        }
    })
}

#[test]
fn a_model_agrees() {
    run((steps(40), any::<u64>()), cases(4000), |(steps, seed)| {
        play_in_memory(&steps, seed, vec![(Fault::Delay, 0.3)])
    });
}

#[test]
fn a_model_agrees_under_faults() {
    run(
        (steps(40), any::<u64>(), 0.01..0.25f64),
        cases(4500),
        |(steps, seed, rate)| {
            let rates = Fault::HONEST.map(|fault| (fault, rate)).into();
            play_in_memory(&steps, seed, rates)
        },
    );
}

#[test]
fn lies_never_bring_a_wrong_block_out() {
    run(
        (steps(40), any::<u64>(), 0.01..0.25f64),
        cases(1500),
        |(steps, seed, rate)| {
            let all = Fault::HONEST.iter().chain(&Fault::LIES);
            let rates = all.map(|fault| (*fault, rate)).collect();
            play_in_memory(&steps, seed, rates)
        },
    );
}
