//! Replays the committed inputs of the fuzz targets, and variations of them, without libFuzzer: a
//! finding that was fixed stays fixed, on every toolchain. `make fuzz` searches for new ones.

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs::File;
use std::io::Read as _;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The time for a target's variations.
const VARIATIONS: Duration = Duration::from_secs(3);

/// The committed inputs of a target: the files that were put there by hand, by name, then the
/// archive's.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let by_hand = std::fs::read_dir(corpus.join(target)).unwrap();
    let mut by_hand: Vec<PathBuf> = by_hand.map(|entry| entry.unwrap().path()).collect();
    by_hand.sort();
    let mut inputs: Vec<_> = by_hand.iter().map(|f| std::fs::read(f).unwrap()).collect();
    let archive = File::open(corpus.join(format!("{target}.tar.gz"))).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    for entry in archive.entries().unwrap() {
        let mut input = Vec::new();
        entry.unwrap().read_to_end(&mut input).unwrap();
        inputs.push(input);
    }
    inputs
}

/// Runs the target; a failure shows the input.
fn check(target: fn(&[u8]), name: &str, input: &[u8]) {
    if let Err(failure) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let hex = data_encoding::HEXLOWER.encode(input);
        eprintln!("{name} fails for this input, in hex: {hex}");
        std::panic::resume_unwind(failure);
    }
}

/// A few bytes changed, removed, doubled, or taken from another input.
fn vary(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let any = |random: &mut StdRng| inputs[random.random_range(0..inputs.len())].clone();
    let mut input = any(random);
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..5) {
            0 if at < input.len() => input[at] = random.random(),
            1 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            2 => input.truncate(at),
            3 => {
                let other = any(random);
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, random.random()),
        }
    }
    input
}

fn replay(name: &str) {
    let (_, target) = targets::TARGETS.iter().find(|(n, _)| *n == name).unwrap();
    let inputs = corpus(name);
    assert!(inputs.len() > 10, "{} inputs for {name}", inputs.len());
    check(*target, name, b"");
    for input in &inputs {
        check(*target, name, input);
    }
    // The same variations every time, as many as the time allows.
    let mut random = StdRng::seed_from_u64(1);
    let end = Instant::now() + VARIATIONS;
    while Instant::now() < end {
        check(*target, name, &vary(&mut random, &inputs));
    }
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn secrets() {
    replay("secrets");
}

#[test]
fn keys() {
    replay("keys");
}

#[test]
fn rows() {
    replay("rows");
}

#[test]
fn answers() {
    replay("answers");
}

#[test]
fn car() {
    replay("car");
}

#[test]
fn journal() {
    replay("journal");
}

#[test]
fn abi() {
    replay("abi");
}

#[test]
fn every_target_is_replayed_and_the_corpus_is_small() {
    let this = include_str!("fuzz_corpus.rs");
    let mut bytes = 0;
    for (name, _) in targets::TARGETS {
        assert!(this.contains(&format!("replay(\"{name}\")")), "{name}");
        bytes += corpus(name).iter().map(Vec::len).sum::<usize>();
    }
    assert!(bytes <= 256 << 10, "{bytes} bytes of inputs");
}
