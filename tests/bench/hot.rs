//! `cargo bench`: the work for every block, one part at a time.
//!
//! `make bench` measures the duration of whole commands.

// Inner parts, compiled into this program: they are not public. (Their tests come along with
// clippy.)
#[allow(dead_code, unused_imports)]
#[path = "../../src/journal/frame.rs"]
mod frame;
#[allow(dead_code, unused_imports)]
#[path = "../../src/multihash.rs"]
mod multihash;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use sha2::Digest as _;
use walrus_devnet::{Devnet, Options};
use walrusds::{Config, Op, WalrusDatastore};

use frame::Write;
use multihash::Match;

/// A block as Kubo makes it by default (bytes).
const BLOCK: usize = 256 << 10;
/// Blocks in a commit of Kubo's on two cores.
const COMMIT: usize = 16;

fn block(seed: usize, len: usize) -> Bytes {
    (0..len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 ^ seed as u8)
        .collect()
}

/// Kubo's key for a digest by this hash function.
fn key(code: &[u8], digest: &[u8]) -> String {
    let multihash = [code, &[digest.len() as u8], digest].concat();
    format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
}

fn sha2_key(value: &[u8]) -> String {
    key(&[0x12], &sha2::Sha256::digest(value))
}

fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    let value = block(1, BLOCK);
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let blake2b = blake2b_simd::Params::new().hash_length(32).hash(&value);
    for (name, key) in [
        ("sha2-256", sha2_key(&value)),
        ("blake2b-256", key(&[0xa0, 0xe4, 0x02], blake2b.as_bytes())),
        ("blake3", key(&[0x1e], blake3::hash(&value).as_bytes())),
    ] {
        assert_eq!(multihash::check(&key, &value), Match::Yes, "{name}");
        group.bench_function(name, |b| {
            b.iter(|| multihash::check(black_box(&key), black_box(&value)));
        });
    }
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal frame");
    let blocks: Vec<(String, Bytes)> = (0..COMMIT)
        .map(|i| block(i, BLOCK))
        .map(|value| (sha2_key(&value), value))
        .collect();
    let encode = || {
        // The checksums of the values are a part of it.
        let writes: Vec<Write> = blocks
            .iter()
            .map(|(key, value)| Write::put(key.clone(), value.clone()))
            .collect();
        frame::encode(1, 2, &writes)
    };
    let encoded = encode();
    let decode = || frame::decode(&encoded);
    assert_eq!(decode().map(|frame| frame.entries.len()), Some(COMMIT));
    group.throughput(Throughput::Bytes((COMMIT * BLOCK) as u64));
    group.bench_function("encode, 16 blocks", |b| b.iter(encode));
    group.throughput(Throughput::Elements(COMMIT as u64));
    group.bench_function("decode, 16 blocks", |b| b.iter(decode));
}

/// The datastore as a whole, on a local Walrus and an index in SQLite.
fn datastore(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let net = Devnet::start_blocking(Options {
        cheap_ids: true,
        max_body: 1 << 30,
        ..Options::default()
    })
    .expect("a local Walrus");
    let spec = serde_json::json!({
        "publisherURL": net.url(), "aggregatorURL": net.url(),
        "indexPath": "index.sqlite", "journalPath": "journal",
    });
    let open = || {
        let config = Config::from_json(&spec.to_string()).expect("a configuration");
        runtime
            .block_on(WalrusDatastore::open(config, dir.path()))
            .expect("a datastore")
    };
    let blocks: Vec<(String, Bytes)> = (0..4 * COMMIT)
        .map(|i| block(i, BLOCK))
        .map(|value| (sha2_key(&value), value))
        .collect();
    let puts = |from: usize| -> Vec<Op> {
        let some = blocks.iter().cycle().skip(from).take(COMMIT);
        some.map(|(key, value)| Op::Put(key.clone(), value.clone()))
            .collect()
    };
    let store = open();
    for from in (0..blocks.len()).step_by(COMMIT) {
        runtime
            .block_on(store.commit(puts(from)))
            .expect("a commit");
    }
    runtime.block_on(store.close()).expect("all on Walrus");

    let store = open();
    let mut group = c.benchmark_group("datastore");
    let mut next = 0;
    let mut key = || {
        next = (next + 1) % blocks.len();
        &blocks[next].0
    };
    group.bench_function("has, known", |b| {
        b.iter(|| runtime.block_on(store.has(key())).expect("an answer"));
    });
    group.bench_function("get_size, known", |b| {
        b.iter(|| runtime.block_on(store.get_size(key())).expect("an answer"));
    });
    group.throughput(Throughput::Bytes(BLOCK as u64));
    group.bench_function("get, in memory", |b| {
        b.iter(|| runtime.block_on(store.get(key())).expect("an answer"));
    });
    group.throughput(Throughput::Bytes((COMMIT * BLOCK) as u64));
    let mut from = 0;
    group.bench_function("commit, 16 blocks that are there", |b| {
        b.iter(|| {
            from += COMMIT;
            runtime.block_on(store.commit(puts(from % blocks.len())))
        });
    });
    group.finish();
    runtime.block_on(store.close()).expect("all on Walrus");
}

/// The cost of a write into the journal: with keys that name the values' hashes, and with keys that
/// name no hash, so that there is nothing to verify. Walrus is unreachable.
fn writes(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let spec = serde_json::json!({
        "publisherURL": "http://127.0.0.1:9", "aggregatorURL": "http://127.0.0.1:9",
        "indexPath": "index.sqlite", "journalPath": "journal", "drainTimeoutSeconds": 0,
        "journalMaxBytes": 16u64 << 30,
    });
    let config = Config::from_json(&spec.to_string()).expect("a configuration");
    let store = runtime
        .block_on(WalrusDatastore::open(config, dir.path()))
        .expect("a datastore");
    let mut group = c.benchmark_group("journal write");
    group.sample_size(20);
    group.measurement_time(std::time::Duration::from_secs(2));
    group.warm_up_time(std::time::Duration::from_millis(500));
    let mut number = 0usize;
    for count in [COMMIT, 1] {
        group.throughput(Throughput::Bytes((count * BLOCK) as u64));
        for (name, checked) in [("checked", true), ("nothing to check", false)] {
            let mut batch = || -> Vec<Op> {
                let put = |_| {
                    number += 1;
                    let mut value = block(number, BLOCK).to_vec();
                    value[..8].copy_from_slice(&number.to_le_bytes());
                    let key = match checked {
                        true => sha2_key(&value),
                        false => format!("/plain/{number}"),
                    };
                    Op::Put(key, value.into())
                };
                (0..count).map(put).collect()
            };
            group.bench_function(format!("{count} new blocks, {name}"), |b| {
                b.iter_batched(
                    &mut batch,
                    |ops| runtime.block_on(store.commit(ops)).expect("a commit"),
                    criterion::BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
    runtime.block_on(store.close()).expect("closed");
}

criterion_group!(benches, verify, frames, datastore, writes);
criterion_main!(benches);
