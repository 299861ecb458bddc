//! The speed of cold reads on a network that takes 150 ms for an answer: small files at random, as
//! the clients of a gateway ask for them, and one large file from end to end. Run by hand:
//!
//! ```sh
//! cargo test --release --test read_measure -- --ignored --nocapture --test-threads 1
//! ```
//!
//! The local Walrus, the readers and the engine share the machine's processors.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::mem::{key_of, noise};
use walrus_devnet::{Devnet, Options as Walrus};
use walrusds::{Config, Op, WalrusDatastore};

/// How long the aggregator takes to begin an answer.
const LATENCY: Duration = Duration::from_millis(150);
/// Runs of each measurement.
const ROUNDS: usize = 3;

/// A datastore whose memory is empty, and a network that holds its blocks.
struct Cold {
    net: Devnet,
    dir: tempfile::TempDir,
    config: Config,
    keys: Arc<Vec<String>>,
}

impl Cold {
    /// `commits` batches of `blocks` blocks of `len` bytes each.
    async fn new(commits: usize, blocks: usize, len: usize) -> Cold {
        let net = Devnet::start(Walrus {
            cheap_ids: true,
            max_body: 1 << 30,
            latency_get: LATENCY,
            ..Walrus::default()
        });
        let net = net.await.unwrap();
        let url = net.url();
        let config = format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index.sqlite","epochs":5}}"#
        );
        let config = Config::from_json(&config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let node = WalrusDatastore::open(config.clone(), dir.path()).await;
        let node = node.unwrap();
        let mut keys = Vec::new();
        for commit in 0..commits {
            let values = (0..blocks).map(|n| noise((commit * blocks + n) as u64, len));
            let values: Vec<_> = values.map(|value| (key_of(&value), value)).collect();
            keys.extend(values.iter().map(|(key, _)| key.clone()));
            let puts = values.into_iter().map(|(key, value)| Op::Put(key, value));
            node.commit(puts.collect()).await.unwrap();
        }
        node.close().await.unwrap();
        Cold {
            net,
            dir,
            config,
            keys: Arc::new(keys),
        }
    }

    /// Reads the blocks of these numbers in this order, `readers` at a time. Prints what it took.
    async fn read(&self, what: &str, readers: usize, picks: Vec<usize>) {
        let node = WalrusDatastore::open(self.config.clone(), self.dir.path()).await;
        let node = Arc::new(node.unwrap());
        let before = self.net.stats();
        let (next, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let picks = Arc::new(picks);
        let began = Instant::now();
        let tasks = (0..readers).map(|_| {
            let (node, keys, picks) = (
                Arc::clone(&node),
                Arc::clone(&self.keys),
                Arc::clone(&picks),
            );
            let (next, bytes) = (Arc::clone(&next), Arc::clone(&bytes));
            tokio::spawn(async move {
                while let Some(&pick) = picks.get(next.fetch_add(1, Relaxed)) {
                    let block = node.get(&keys[pick]).await.unwrap().unwrap();
                    bytes.fetch_add(block.len(), Relaxed);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let took = began.elapsed().as_secs_f64();
        let after = self.net.stats();
        let read = bytes.load(Relaxed) as f64;
        let fetched = (after.bytes_out - before.bytes_out) as f64;
        println!(
            "{what}: {:.0} blocks/s, {:.0} MiB/s, {took:.2} s, {} requests, fetched/wanted {:.2}, at most {} in flight",
            picks.len() as f64 / took,
            read / took / f64::from(1 << 20),
            after.gets - before.gets,
            fetched / read,
            after.peak_in_flight,
        );
        for (name, value) in node.metrics() {
            if name.starts_with("read_") {
                println!("    {name} {value}");
            }
        }
        Arc::into_inner(node).unwrap().close().await.unwrap();
    }
}

/// The same numbers below `end` in every run.
fn random(seed: u64, end: usize) -> impl Iterator<Item = usize> {
    StdRng::seed_from_u64(seed)
        .random_iter::<u64>()
        .map(move |n| (n % end as u64) as usize)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn small_files_at_random() {
    let cold = Cold::new(1, 10_000, 4 << 10).await;
    for round in 0..ROUNDS {
        for readers in [64, 256] {
            let picks = random(round as u64, 10_000).take(8_000).collect();
            let what = format!("4 KiB at random, {readers} readers");
            cold.read(&what, readers, picks).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn one_file_from_end_to_end() {
    let cold = Cold::new(16, 256, 256 << 10).await;
    for _ in 0..ROUNDS {
        for readers in [1, 10] {
            let what = format!("1 GiB in order, {readers} at a time");
            cold.read(&what, readers, (0..4096).collect()).await;
        }
    }
}
