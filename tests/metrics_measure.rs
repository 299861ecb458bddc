//! What the metrics cost: a scrape, scrapes each second, and the updates of a call. Run by hand:
//!
//! ```sh
//! cargo test --release --test metrics_measure -- --ignored --nocapture --test-threads 1
//! ```
//!
//! The updates of a call cannot be left out of it to compare. So calls as they are take turns with
//! calls that make the same updates [`MORE`] times over again: the difference is `MORE` times what
//! the updates of a call cost. Both are measured by the time that the thread had a processor, in
//! many short slices, so that other work on the machine moves neither.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use testkit::mem::{key_of, noise, Parts};
use walrusds::{Op, WalrusDatastore};

// An inner part, compiled into this program: it is not public.
#[allow(dead_code)]
#[path = "../src/measure.rs"]
mod measure;

/// The time of one measurement with and one without scrapes.
const EACH: Duration = Duration::from_secs(4);
const ROUNDS: usize = 7;
const BLOCKS: usize = 64;
/// How often the updates of a call are made over again.
const MORE: u32 = 16;
/// Slices of each kind.
const SLICES: usize = 101;
/// Passes through the blocks in a slice.
const PASSES: usize = 20;
/// The length of a block of a large file as `ipfs add` makes it (bytes).
const USUAL: usize = 256 << 10;
/// How many such blocks are read from a file.
const FILE_BLOCKS: u64 = 256;

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// How long this thread had a processor so far (seconds).
fn on_cpu() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is there for the call.
    let told = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(told, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What the updates of a call write to. A get counts in four counters and one histogram, a commit
/// likewise (src/datastore); a histogram needs the clock twice.
struct Updates {
    counters: [AtomicU64; 4],
    histogram: measure::Histogram,
}

impl Updates {
    fn new() -> Updates {
        Updates {
            counters: Default::default(),
            histogram: measure::Histogram::new(&measure::TIMES),
        }
    }

    fn make(&self, times: u32) {
        for _ in 0..times {
            let begun = Instant::now();
            for counter in &self.counters {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            std::hint::black_box(&self.histogram).took(begun.elapsed());
        }
    }
}

/// The time of a get and of a put of a known block with all that belongs to it (seconds each), with
/// the updates of a call made so many times more.
async fn slice(
    node: &WalrusDatastore,
    blocks: &[(String, Bytes)],
    updates: &Updates,
    more: u32,
) -> [f64; 2] {
    let calls = (PASSES * blocks.len()) as f64;
    let begun = on_cpu();
    for _ in 0..PASSES {
        for (key, _) in blocks {
            assert!(node.get(key).await.unwrap().is_some());
            updates.make(more);
        }
    }
    let between = on_cpu();
    for _ in 0..PASSES {
        for (key, value) in blocks {
            let put = vec![Op::Put(key.clone(), value.clone())];
            node.commit(put).await.unwrap();
            updates.make(more);
        }
    }
    let end = on_cpu();
    [(between - begun) / calls, (end - between) / calls]
}

/// The updates of a call are at most a hundredth of the least that `ipfs add` and `ipfs cat` do
/// for a block of 256 KiB: hashing it, and reading it from a file in the system's memory.
#[tokio::test]
#[ignore = "a measurement"]
async fn updates_cost_little() {
    let parts = Parts::default();
    let node = parts.open("");
    let blocks = made(4096);
    node.commit(
        blocks
            .iter()
            .map(|(k, v)| Op::Put(k.clone(), v.clone()))
            .collect(),
    )
    .await
    .unwrap();
    let updates = Updates::new();
    slice(&node, &blocks, &updates, MORE).await;
    let (mut plain, mut more) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for round in 0..2 * SLICES {
        // Each pair begins with the other kind.
        let over = (round / 2 + round) % 2 == 1;
        let took = slice(&node, &blocks, &updates, if over { MORE } else { 0 }).await;
        let kind = if over { &mut more } else { &mut plain };
        kind.iter_mut().zip(took).for_each(|(all, t)| all.push(t));
    }
    node.close().await.unwrap();
    // The least work for a block of a large file.
    let block = noise(1, USUAL);
    let mut file = tempfile::tempfile().unwrap();
    for _ in 0..FILE_BLOCKS {
        file.write_all(&block).unwrap();
    }
    let (mut hashes, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        let begun = on_cpu();
        for _ in 0..50 {
            std::hint::black_box(Sha256::digest(std::hint::black_box(&block[..])));
        }
        let between = on_cpu();
        for at in 0..FILE_BLOCKS {
            let mut block = vec![0; USUAL];
            file.read_exact_at(&mut block, at * USUAL as u64).unwrap();
            std::hint::black_box(block);
        }
        hashes.push((between - begun) / 50.0);
        reads.push((on_cpu() - between) / FILE_BLOCKS as f64);
    }
    let least = [median(reads), median(hashes)];
    for (at, name) in ["get", "put"].into_iter().enumerate() {
        let of = |all: &[Vec<f64>; 2]| median(all[at].clone());
        let (plain, more) = (of(&plain), of(&more));
        let cost = (more - plain).max(0.0) / f64::from(MORE);
        println!(
            "{name}: {:.2} µs of the processor, of which the updates take {:.0} ns ({:.1} %)",
            plain * 1e6,
            cost * 1e9,
            cost / plain * 100.0
        );
        let part = cost / least[at];
        println!(
            "  the least work for a block of 256 KiB takes {:.0} µs: {:.2} % of it",
            least[at] * 1e6,
            part * 100.0
        );
        assert!(
            part <= 0.01,
            "{name}: the updates cost {:.1} %",
            part * 100.0
        );
    }
}

fn made(len: usize) -> Vec<(String, Bytes)> {
    (0..BLOCKS as u64)
        .map(|n| noise(n, len))
        .map(|value| (key_of(&value), value))
        .collect()
}

/// Calls in a second: a batch is put anew (its blocks are known), and all of its blocks are read
/// from memory. Nothing waits for anything, so that an update of a counter weighs the most.
async fn calls(node: &WalrusDatastore, blocks: &[(String, Bytes)]) -> f64 {
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < EACH {
        let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
        node.commit(puts.collect()).await.unwrap();
        for (key, _) in blocks {
            assert!(node.get(key).await.unwrap().is_some());
        }
        done += 2 * blocks.len() as u64;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn scrapes_each_second() {
    let parts = Parts::default();
    let node = Arc::new(parts.open(""));
    let blocks = made(4096);
    calls(&node, &blocks).await;
    let mut scrapes = Vec::new();
    for _ in 0..200 {
        let began = on_cpu();
        assert!(node.open_metrics().contains("walrusds_gets_total"));
        scrapes.push(on_cpu() - began);
    }
    let scrape = median(scrapes);
    println!(
        "a scrape: {:.0} µs of the processor (median of 200)",
        scrape * 1e6
    );
    assert!(scrape < 0.002);
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let mut rates = [0.0; 2];
        // Each round begins with another one.
        for turn in 0..2 {
            let scraped = (round + turn) % 2 == 1;
            let stop = Arc::new(AtomicBool::new(!scraped));
            let scraper = {
                let (node, stop) = (Arc::clone(&node), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert!(!node.open_metrics().is_empty());
                        std::thread::sleep(Duration::from_secs(1));
                    }
                })
            };
            rates[usize::from(scraped)] = calls(&node, &blocks).await;
            stop.store(true, Ordering::Relaxed);
            scraper.join().unwrap();
        }
        let [without, with] = rates;
        ratios.push(with / without);
        println!(
            "{without:.0} calls/s without scrapes, {with:.0} with one each second: {:.3}",
            with / without
        );
    }
    println!("median of the ratios: {:.3}", median(ratios));
    node.close().await.unwrap();
}
