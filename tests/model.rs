//! Random sequences of calls, reopenings, crashes and passing time at two nodes on one index,
//! compared with a map.
//!
//! Every run draws new sequences. A failure prints the shortest sequence found and a seed;
//! `MODEL_SEED=<seed>` repeats the run. `MODEL_CASES` sets the number of sequences, in percent of
//! the usual one. Sequences that failed are written to `tests/model.proptest-regressions`; those
//! that are in there are played first.

#[path = "model/journals.rs"]
mod journals;
#[path = "model/memory.rs"]
mod memory;
#[path = "model/real.rs"]
mod real;
#[path = "model/strategy.rs"]
mod strategy;

use std::ops::Range;

use memory::{play_in_memory, play_with_journals};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner};
use strategy::steps;
use testkit::faulty::Fault;
use testkit::model::Step;

/// The seed of this run, given or new.
fn seed() -> [u8; 32] {
    let hash = match std::env::var("MODEL_SEED") {
        Ok(text) => blake3::hash(text.as_bytes()),
        Err(_) => {
            let text = format!("{:016x}", rand::random::<u64>());
            #[allow(clippy::disallowed_methods)] // a process of the tests
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

#[test]
fn a_model_agrees() {
    run((steps(40), any::<u64>()), cases(4000), |(steps, seed)| {
        play_in_memory(&steps, seed, vec![(Fault::Delay, 0.3)])
    });
}

fn at_one_node(steps: &mut [Step]) {
    for step in steps {
        if let Step::Together(calls) | Step::Crash(_, calls) = step {
            calls.iter_mut().for_each(|call| call.node = 0);
        }
    }
}

/// Plays at one node, where calls fail as those of an honest network and database do.
fn run_at_one_node(
    rates: Range<f64>,
    cases: u32,
    play: impl Fn(&[Step], u64, Vec<(Fault, f64)>) -> Result<(), String>,
) {
    run(
        (steps(40), any::<u64>(), rates),
        cases,
        |(mut steps, seed, rate)| {
            at_one_node(&mut steps);
            play(
                &steps,
                seed,
                Fault::HONEST.map(|fault| (fault, rate)).into(),
            )
        },
    );
}

/// With a write journal: the next process goes on with the journal that a killed process leaves.
#[test]
fn a_model_agrees_with_a_journal() {
    run_at_one_node(0.0..0.25, cases(1500), play_with_journals);
}

/// A node that is alone remembers what it looked up.
#[test]
fn a_model_agrees_with_rows_remembered() {
    run_at_one_node(0.01..0.25, cases(2000), play_in_memory);
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

#[test]
fn a_model_agrees_on_the_real_parts_with_sqlite() {
    run((steps(16), any::<u64>()), cases(40), |(steps, seed)| {
        real::play_on_sqlite(&steps, seed)
    });
}

#[test]
fn a_model_agrees_on_the_real_parts_with_postgres() {
    run((steps(16), any::<u64>()), cases(40), |(steps, seed)| {
        real::play_on_postgres(&steps, seed)
    });
}

#[test]
fn a_model_agrees_on_the_real_parts_with_a_journal() {
    run((steps(16), any::<u64>()), cases(30), |(mut steps, seed)| {
        at_one_node(&mut steps);
        real::play_on_sqlite_with_journals(&steps, seed)
    });
}
