//! Numbers on what lifetimes cost: `make lifetime-measure`, or one of them by
//! `cargo test --release --test lifetime_measure NAME -- --ignored --nocapture`.
//!
//! `BLOBS` is the number of blobs for those of due blobs and of garbage. The tests that are not
//! ignored do the same with little, so that it stays right; they measure nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use testkit::mem::{key_of, noise};
use testkit::node::metric;
use testkit::postgres::Postgres;
use testkit::{eventually, PATIENCE};
use walrus_devnet::{Devnet, Options};
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{
    Blob, BlobState, Config, Index, KeyRecord, QueryOptions, Record, RenewItem, WalrusDatastore,
};

/// Blocks of 256 KiB in a pack of 64 MiB.
const PER_BLOB: usize = 255;
const BLOCK: i64 = 256 << 10;
/// As many blobs as renewal asks for at a time.
const PAGE: usize = 1024;
const NAMES: [&str; 2] = ["PostgreSQL", "SQLite"];

/// A number from the environment.
fn number(variable: &str, default: usize) -> usize {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

/// A server that syncs each commit to the disk, as in production.
fn durable() -> Postgres {
    Postgres::start_with(&[
        "fsync=on",
        "full_page_writes=on",
        "max_wal_size=4GB",
        "shared_buffers=512MB",
        "maintenance_work_mem=512MB",
    ])
}

/// Median, least and greatest, in milliseconds.
fn spread(times: &mut [Duration]) -> (f64, String) {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = ms(times[times.len() / 2]);
    let (least, most) = (ms(times[0]), ms(times[times.len() - 1]));
    (median, format!("{median:.2} ms ({least:.2} to {most:.2})"))
}

/// An index that nothing else uses.
enum Place<'a> {
    Postgres(&'a Postgres, String),
    Sqlite(&'a Path),
}

impl Place<'_> {
    fn all<'a>(server: &'a Postgres, dir: &'a Path) -> [Place<'a>; 2] {
        [
            Place::Postgres(server, server.database()),
            Place::Sqlite(dir),
        ]
    }

    async fn open(&self) -> Arc<dyn Index> {
        match self {
            Place::Postgres(server, db) => {
                let options = PostgresOptions::new(server.url(db), "walrus_index");
                Arc::new(PostgresIndex::open(options).await.unwrap())
            }
            Place::Sqlite(dir) => {
                let options = SqliteOptions::new(dir.join("index"), "walrus_index");
                Arc::new(SqliteIndex::open(options).await.unwrap())
            }
        }
    }

    fn config(&self) -> String {
        match self {
            Place::Postgres(server, db) => format!(r#""postgresURL":"{}""#, server.url(db)),
            Place::Sqlite(dir) => format!(r#""indexPath":"{}""#, dir.join("index").display()),
        }
    }

    fn run(&self, postgres: &str, sqlite: &str) {
        match self {
            Place::Postgres(server, db) => server.execute(db, postgres),
            Place::Sqlite(dir) => {
                let connection = rusqlite::Connection::open(dir.join("index")).unwrap();
                connection.execute_batch(sqlite).unwrap();
            }
        }
    }
}

fn later(days: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400)
}

/// Fills a ledger within its database: a tenth of the blobs end in epochs 10 to 14, on days 140 to
/// 209, and the others later.
fn fill(place: &Place<'_>, blobs: usize) {
    let end = "(CASE WHEN n % 10 = 0 THEN 10 + (n / 10) % 5 ELSE 15 + n % 24 END)";
    place.run(
        &format!(
            "ALTER TABLE walrus_index_blobs DROP CONSTRAINT walrus_index_blobs_pkey;
             DROP INDEX walrus_index_blobs_due, walrus_index_blobs_end, walrus_index_blobs_released;
             ALTER TABLE walrus_index_blobs SET UNLOGGED;
             INSERT INTO walrus_index_blobs (blob_id, object_id, format, size, encoded_size, cost, registered_epoch, \
                 end_epoch, expires_at, digest) \
             SELECT translate(left(encode(hash, 'base64'), 43), '+/', '-_'), '0x' || encode(hash, 'hex'), 'car', 67108864, \
                 367000000, 100000000, 1, {end}, to_timestamp(86400 * (14 * {end} + n % 14)), encode(hash, 'hex') \
             FROM (SELECT n, sha256(n::text::bytea) AS hash FROM generate_series(1, {blobs}) AS n) AS made;
             ALTER TABLE walrus_index_blobs ADD PRIMARY KEY (blob_id);
             CREATE INDEX walrus_index_blobs_due ON walrus_index_blobs (expires_at, blob_id);
             CREATE INDEX walrus_index_blobs_end ON walrus_index_blobs (end_epoch, blob_id);
             UPDATE walrus_index_blobs SET state = 'released' WHERE ctid IN (SELECT ctid FROM walrus_index_blobs LIMIT 100);
             CREATE INDEX walrus_index_blobs_released ON walrus_index_blobs (state, blob_id) WHERE state = 'released';
             ANALYZE walrus_index_blobs"
        ),
        &format!(
            "DROP INDEX walrus_index_blobs_due; DROP INDEX walrus_index_blobs_end; DROP INDEX walrus_index_blobs_released;
             WITH RECURSIVE made(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM made WHERE n < {blobs}) \
             INSERT INTO walrus_index_blobs (blob_id, object_id, format, size, encoded_size, cost, registered_epoch, \
                 end_epoch, expires_at, digest, state_since) \
             SELECT printf('%010d', n) || lower(hex(randomblob(16))) || 'x', '0x' || lower(hex(randomblob(32))), 'car', 67108864, \
                 367000000, 100000000, 1, {end}, 86400000000 * (14 * {end} + n % 14), lower(hex(randomblob(32))), 0 FROM made;
             CREATE INDEX walrus_index_blobs_due ON walrus_index_blobs (expires_at, blob_id) WHERE expires_at IS NOT NULL;
             CREATE INDEX walrus_index_blobs_end ON walrus_index_blobs (end_epoch, blob_id);
             UPDATE walrus_index_blobs SET state = 'released' WHERE blob_id IN (SELECT blob_id FROM walrus_index_blobs LIMIT 100);
             CREATE INDEX walrus_index_blobs_released ON walrus_index_blobs (state, blob_id) WHERE state = 'released';"
        ),
    );
}

/// Asks for the blobs that are due, by their time and by their epoch. Returns the slower median of
/// first pages (ms).
async fn due(name: &str, place: &Place<'_>, blobs: usize) -> f64 {
    place.open().await.close().await.unwrap();
    let begun = Instant::now();
    fill(place, blobs);
    println!(
        "{name}: {blobs} entries were made in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let index = place.open().await;
    let (before, epoch) = (later(14 * 15), 14);
    let mut slowest = 0f64;
    for by_epoch in [false, true] {
        let page = async |after: Option<&RenewItem>| match by_epoch {
            true => index.ending_by(epoch, after, PAGE).await.unwrap(),
            false => index.due_for_renewal(before, after, PAGE).await.unwrap(),
        };
        let mut times = Vec::new();
        for _ in 0..21 {
            let begun = Instant::now();
            assert_eq!(page(None).await.len(), PAGE.min(blobs / 10));
            times.push(begun.elapsed());
        }
        let first = times[0].as_secs_f64() * 1e3;
        let (median, text) = spread(&mut times);
        slowest = slowest.max(median);
        let begun = Instant::now();
        let (mut found, mut last): (usize, Option<RenewItem>) = (0, None);
        loop {
            let next = page(last.as_ref()).await;
            assert!(next
                .iter()
                .all(|item| item.end_epoch <= epoch && item.expires_at < before));
            found += next.len();
            match next.into_iter().next_back() {
                Some(item) => last = Some(item),
                None => break,
            }
        }
        assert_eq!(found, blobs / 10, "each of them once");
        let all = begun.elapsed().as_secs_f64();
        let none = Instant::now();
        assert_eq!(index.ending_by(9, None, PAGE).await.unwrap(), []);
        let none = none.elapsed().as_secs_f64() * 1e3;
        let by = if by_epoch { "epoch" } else { "time" };
        println!(
            "{name}, due by {by}: first page {text}, the very first {first:.2} ms; {found} blobs in {all:.1} s; nothing due {none:.2} ms"
        );
    }
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = Instant::now();
        let released = index.blobs_in_state(BlobState::Released, "", PAGE).await;
        assert_eq!(released.unwrap().len(), 100);
        times.push(begun.elapsed());
    }
    println!(
        "{name}: the 100 blobs without blocks {}",
        spread(&mut times).1
    );
    index.close().await.unwrap();
    slowest
}

fn rows(blob: usize, name: &str) -> Vec<KeyRecord> {
    let blocks = 0..PER_BLOB;
    let row = |block: usize| {
        let hash = Sha256::digest([blob.to_be_bytes(), block.to_be_bytes()].concat());
        let hash = [&[0x12, 0x20][..], &hash].concat();
        let key = format!("/{}", data_encoding::BASE32_NOPAD.encode(&hash));
        let record = Record::new(name, block as i64 * BLOCK, BLOCK);
        KeyRecord::new(
            key,
            record
                .with_end_epoch(40)
                .with_expires_at(Some(later(30_000))),
        )
    };
    blocks.map(row).collect()
}

fn entry(blob: usize) -> Blob {
    let mut entry = Blob::default();
    entry.blob_id = format!("{blob:043}");
    entry.object_id = format!("0x{blob:064}");
    entry.format = "car".to_owned();
    entry.digest = format!("{blob:064}");
    entry.size = PER_BLOB as i64 * BLOCK;
    entry.encoded_size = 5 * entry.size;
    entry.cost = 1_000_000;
    (entry.registered_epoch, entry.end_epoch) = (1, 40);
    entry.expires_at = Some(later(30_000));
    entry
}

/// Deletes all blocks as `ipfs repo gc` does: one after the other, while the listing is open.
async fn collect(place: &Place<'_>, blobs: usize, keep: u64) -> Duration {
    let index = place.open().await;
    for blob in 0..blobs {
        let entry = entry(blob);
        index
            .place(&entry, &rows(blob, &entry.blob_id))
            .await
            .unwrap();
    }
    index.close().await.unwrap();
    let repo = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"publisherURL":"http://127.0.0.1:9","aggregatorURL":"http://127.0.0.1:9","journalPath":"journal",
            "keepDeletedSeconds":{keep},{}}}"#,
        place.config()
    );
    let config = Config::from_json(&config).unwrap();
    let ds = WalrusDatastore::open(config, repo.path()).await.unwrap();
    let begun = Instant::now();
    let mut deleted = 0;
    let mut query = ds
        .query(QueryOptions::default().with_keys_only(true))
        .unwrap();
    loop {
        let page = query.next_page().await.unwrap();
        if page.is_empty() {
            break;
        }
        for entry in page {
            ds.delete(&entry.key).await.unwrap();
            deleted += 1;
        }
    }
    let took = begun.elapsed();
    assert_eq!(deleted, blobs * PER_BLOB);
    // An open query holds up a close.
    drop(query);
    ds.close().await.unwrap();
    let index = place.open().await;
    let kept = index.deleted_by_blob(None, blobs + 1).await.unwrap();
    let kept: i64 = kept.iter().map(|(_, usage)| usage.blocks).sum();
    assert_eq!(kept, if keep > 0 { deleted as i64 } else { 0 });
    index.close().await.unwrap();
    took
}

/// Collections with and without keeping, in turns. Returns how many times longer it takes with
/// keeping, for each index.
async fn garbage(server: &Postgres, blobs: usize, runs: usize) -> [f64; 2] {
    let mut times = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for run in 0..runs {
        for which in [run % 2, 1 - run % 2] {
            let keep = if which == 1 { 604_800 } else { 0 };
            let dir = tempfile::tempdir().unwrap();
            for (place, times) in Place::all(server, dir.path()).iter().zip(&mut times) {
                times[which].push(collect(place, blobs, keep).await);
                if let Place::Postgres(server, db) = place {
                    let drop = format!("DROP DATABASE {db} WITH (FORCE)");
                    server.execute("postgres", &drop);
                }
            }
        }
    }
    let mut ratios = [0.0; 2];
    for ((name, [without, with]), ratio) in NAMES.iter().zip(&mut times).zip(&mut ratios) {
        let ((a, without), (b, with)) = (spread(without), spread(with));
        *ratio = b / a;
        let deleted = blobs * PER_BLOB;
        println!("{name}, {deleted} deletions, {runs} runs in turns: {without} without keeping, {with} with: {ratio:.2} times");
    }
    ratios
}

/// Writes the rows of packs, with and without an entry for each in the ledger.
async fn overhead(name: &str, place: &Place<'_>, packs: usize) -> f64 {
    let index = place.open().await;
    let mut times = [Vec::new(), Vec::new()];
    for blob in 0..2 * packs {
        let entry = entry(blob);
        // A row that names no blob has no entry; the index of blobs holds it all the same.
        let name = if blob % 2 == 0 { "" } else { &entry.blob_id };
        let rows = rows(blob, name);
        let begun = Instant::now();
        match blob % 2 {
            0 => index.put_many(&rows).await.unwrap(),
            _ => index.place(&entry, &rows).await.unwrap(),
        }
        times[blob % 2].push(begun.elapsed());
    }
    let ids: Vec<String> = (0..2 * packs).map(|blob| entry(blob).blob_id).collect();
    let entries = index.blobs(&ids).await.unwrap().into_iter().flatten();
    assert_eq!(entries.count(), packs);
    let [without, with] = &mut times;
    let ((a, without), (b, with)) = (spread(without), spread(with));
    println!("{name}, a pack of {PER_BLOB} rows: {without} without an entry in the ledger, {with} with: {:.3} times", b / a);
    index.close().await.unwrap();
    b / a
}

/// How long it takes to store `blobs` blobs again, `workers` at a time, on a publisher that takes
/// any number at once.
async fn renew(blobs: u64, workers: usize, latency: Duration) -> Duration {
    let net = Devnet::start(Options {
        cheap_ids: true,
        publisher_concurrency: 0,
        ..Options::default()
    });
    let net = net.await.unwrap();
    let repo = tempfile::tempdir().unwrap();
    let (url, bytes) = (net.url(), 64 << 10);
    let open = |more: &str| {
        let config = format!(
            r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index","deletable":true,"epochs":3,
                "epochDurationSeconds":1209600,"packTargetSizeBytes":{bytes},"packFormat":"concat"{more}}}"#
        );
        WalrusDatastore::open(Config::from_json(&config).unwrap(), repo.path())
    };
    let ds = open("").await.unwrap();
    for seed in 0..blobs {
        let value = noise(seed, bytes);
        ds.put(&key_of(&value), value).await.unwrap();
    }
    ds.close().await.unwrap();
    let stored = net.stats().newly_created;
    assert_eq!(stored, blobs);
    let slow = walrus_devnet::FaultRule::new(walrus_devnet::FaultAction::Latency {
        ms: latency.as_millis() as u64,
        jitter_ms: 0,
    });
    net.set_faults(slow.on([walrus_devnet::Op::Put]));
    let renewing =
        format!(r#","workers":{workers},"renewIntervalSeconds":1,"renewLeadSeconds":3628800"#);
    let ds = open(&renewing).await.unwrap();
    let begins = || {
        let stats = net.stats();
        stats.puts > stored || stats.in_flight > 0
    };
    eventually("the first is stored", begins).await;
    let begun = Instant::now();
    let all = async {
        while metric(&ds, "renewals") < blobs {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE.max(blobs as u32 * latency * 2), all)
        .await
        .unwrap();
    let took = begun.elapsed();
    assert_eq!(net.stats().newly_created, 2 * stored, "each once");
    ds.close().await.unwrap();
    took
}

async fn workers(blobs: u64, latency: Duration, counts: &[usize]) -> Vec<f64> {
    let mut one = Duration::ZERO;
    let mut speeds = Vec::new();
    for workers in counts {
        let took = renew(blobs, *workers, latency).await;
        if one.is_zero() {
            one = took;
        }
        let times = one.as_secs_f64() / took.as_secs_f64();
        let (seconds, ms) = (took.as_secs_f64(), latency.as_millis());
        println!("{blobs} blobs, {ms} ms an upload, {workers} at a time: {seconds:.2} s, {times:.2} times");
        speeds.push(times);
    }
    speeds
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_with_little() {
    let dir = tempfile::tempdir().unwrap();
    let server = Postgres::shared();
    for (name, place) in NAMES.iter().zip(Place::all(server, dir.path())) {
        due(name, &place, 20_000).await;
    }
    garbage(server, 1, 1).await;
    let dir = tempfile::tempdir().unwrap();
    for (name, place) in NAMES.iter().zip(Place::all(server, dir.path())) {
        overhead(name, &place, 2).await;
    }
    workers(6, Duration::from_millis(5), &[1, 2]).await;
}

/// Ten million entries take 5 GB in PostgreSQL, and as much in SQLite.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and 10 GB"]
async fn the_first_page_of_a_million_due_blobs() {
    const GOAL: f64 = 50.0;
    let blobs = number("BLOBS", 10_000_000);
    let dir = tempfile::tempdir().unwrap();
    let server = durable();
    for (name, place) in NAMES.iter().zip(Place::all(&server, dir.path())) {
        let slowest = due(name, &place, blobs).await;
        assert!(slowest <= GOAL, "{slowest:.1} ms");
        if let Place::Postgres(server, db) = &place {
            server.execute("postgres", &format!("DROP DATABASE {db} WITH (FORCE)"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_collection_of_garbage_that_can_be_undone() {
    const GOAL: f64 = 1.3;
    let ratios = garbage(&durable(), number("BLOBS", 100), 5).await;
    assert!(ratios.iter().all(|ratio| *ratio <= GOAL), "{ratios:.2?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn the_ledgers_part_in_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let server = durable();
    for (name, place) in NAMES.iter().zip(Place::all(&server, dir.path())) {
        overhead(name, &place, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn workers_move_as_many_blobs_as_they_are() {
    let speeds = workers(64, Duration::from_millis(250), &[1, 2, 4, 8]).await;
    for (speed, least) in speeds.iter().zip([1.0, 1.7, 3.2, 6.0]) {
        assert!(*speed >= least, "{speeds:.2?}");
    }
}
