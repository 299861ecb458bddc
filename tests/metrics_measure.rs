//! The cost of an update and of a scrape of the metrics, and what scrapes each second cost a node
//! that does nothing but put and get. Run by hand:
//!
//! ```sh
//! cargo test --release --test metrics_measure -- --ignored --nocapture
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
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

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The time of what a call does for its metrics (ns).
fn updates() -> f64 {
    const UPDATES: u32 = 2_000_000;
    let histogram = measure::Histogram::new(&measure::TIMES);
    let counter = std::sync::atomic::AtomicU64::new(0);
    let began = Instant::now();
    for _ in 0..UPDATES {
        let begun = Instant::now();
        counter.fetch_add(1, Ordering::Relaxed);
        std::hint::black_box(&histogram).took(begun.elapsed());
    }
    let took = began.elapsed();
    assert_eq!(counter.into_inner(), u64::from(UPDATES));
    took.as_secs_f64() * 1e9 / f64::from(UPDATES)
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
    let blocks: Vec<(String, Bytes)> = (0..BLOCKS as u64)
        .map(|n| noise(n, 4096))
        .map(|value| (key_of(&value), value))
        .collect();
    calls(&node, &blocks).await;
    let mut scrapes = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        assert!(node.open_metrics().contains("walrusds_gets_total"));
        scrapes.push(began.elapsed().as_secs_f64());
    }
    println!("a scrape: {:.0} µs (median of 200)", median(scrapes) * 1e6);
    let update = updates();
    println!("an update (the clock twice, a counter, a histogram): {update:.0} ns");
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
