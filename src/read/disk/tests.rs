//! The cache alone, against a map and against a hostile disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    max: u64,
    verify: bool,
    log: Arc<Log>,
}

impl Fixture {
    fn new(max: u64) -> Fixture {
        Fixture {
            dir: tempfile::tempdir().unwrap(),
            max,
            verify: false,
            log: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("deep/cache")
    }

    fn open(&self) -> DiskCache {
        let config = DiskCacheConfig {
            path: self.path(),
            max_bytes: self.max,
        };
        let pace = Pace {
            look_idle: Duration::from_millis(5),
            look_busy: Duration::ZERO,
            rest: Duration::from_millis(20),
        };
        DiskCache::open_paced(
            &READ_CACHE,
            config,
            self.verify,
            Arc::clone(&self.log),
            pace,
        )
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.path())
    }

    fn bytes_on_disk(&self) -> u64 {
        let files = self.files();
        // One may be removed meanwhile.
        let lens = files.iter().filter_map(|f| fs::metadata(f).ok());
        lens.map(|meta| meta.len()).sum()
    }

    fn lines(&self) -> Vec<String> {
        std::iter::from_fn(|| self.log.pop())
            .map(|line| line.message)
            .collect()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "blocks"))
        .collect();
    files.sort();
    files
}

/// A block and its name. Lengths differ.
fn block(n: u32) -> (Multihash, Bytes) {
    let len = 50 + (n as usize * 37) % 100;
    block_of(n, len)
}

fn block_of(n: u32, len: usize) -> (Multihash, Bytes) {
    let mut value = vec![0; len];
    let seed = n.to_le_bytes();
    let mut output = blake3::Hasher::new().update(&seed).finalize_xof();
    output.fill(&mut value);
    let mut name = vec![0x12, 32];
    name.extend_from_slice(&Sha256::digest(&value));
    let key = format!("/{}", BASE32_NOPAD.encode(&name));
    (Multihash::of_key(&key).unwrap(), value.into())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Inserts and waits until the worker has dealt with it.
async fn insert(cache: &DiskCache, (name, value): (Multihash, Bytes)) {
    cache.insert(name, &value, true);
    settled(cache).await;
}

async fn settled(cache: &DiskCache) {
    until("the queue empties", || {
        cache.inner.queued.load(Relaxed) == 0
    })
    .await;
}

/// Looks for a block; a block that is found must be right.
async fn has(cache: &DiskCache, (name, value): (Multihash, Bytes)) -> bool {
    let found = cache.get(&name, value.len() as u64).await;
    assert!(found.as_ref().is_none_or(|found| *found == value));
    found.is_some()
}

fn count(cache: &DiskCache, what: &str) -> u64 {
    let all = cache.counters();
    all.iter().find(|(name, _)| *name == what).unwrap().1
}

#[tokio::test]
async fn blocks_stay_across_restarts() {
    let fixture = Fixture::new(1 << 20);
    for round in 0..4 {
        let cache = fixture.open();
        for n in 0..round * 10 {
            assert!(has(&cache, block(n)).await, "block {n} in round {round}");
        }
        for n in round * 10..(round + 1) * 10 {
            assert!(!has(&cache, block(n)).await);
            cache.insert(block(n).0, &block(n).1, true);
        }
        // The worker writes the queued blocks at the end.
        cache.close().await;
        assert_eq!(count(&cache, "disk_cache_bytes"), fixture.bytes_on_disk());
    }
    assert_eq!(
        fixture.files().len(),
        1,
        "a restart goes on in the same file"
    );
    assert_eq!(fixture.lines(), [""; 0]);
    let readme = fs::read_to_string(fixture.path().join("README.txt")).unwrap();
    assert!(readme.contains("may be deleted at any time"));
}

#[tokio::test]
async fn a_crash_costs_no_block_that_was_written() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    for n in 0..20 {
        insert(&cache, block(n)).await;
    }
    // The files that a kill leaves behind, and half a record.
    let crashed = Fixture::new(1 << 20);
    fs::create_dir_all(crashed.path()).unwrap();
    let [file] = fixture.files().try_into().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let half = layout::record_head(block(99).0.as_bytes(), &[1; 100]);
    bytes.extend_from_slice(&half);
    bytes.extend_from_slice(&[0; 99]);
    let copy = crashed.path().join(file.file_name().unwrap());
    fs::write(&copy, bytes).unwrap();
    let after = crashed.open();
    for n in 0..20 {
        assert!(has(&after, block(n)).await, "block {n}");
    }
    insert(&after, block(20)).await;
    after.close().await;
    let again = crashed.open();
    for n in 0..21 {
        assert!(has(&again, block(n)).await, "block {n}");
    }
    assert_eq!(crashed.lines(), [""; 0]);
}

#[tokio::test]
async fn the_bound_holds_and_what_is_used_outlives_what_is_not() {
    let fixture = Fixture::new(64 << 10);
    let cache = fixture.open();
    let favourites = [3, 5, 7];
    for n in 0..1500 {
        insert(&cache, block(n)).await;
        assert!(fixture.bytes_on_disk() <= fixture.max, "after block {n}");
        if n >= 10 && n % 20 == 0 {
            for n in favourites {
                assert!(has(&cache, block(n)).await);
            }
        }
    }
    assert!(!has(&cache, block(20)).await, "old and unused");
    assert!(has(&cache, block(1499)).await);
    let evicted = count(&cache, "disk_cache_evictions");
    let kept = cache.inner.map.read().slots.len() as u64;
    assert_eq!(evicted + kept, 1500);
    assert!(kept > 200, "{kept} of about 450 that fit");
    // A smaller budget holds at once.
    cache.close().await;
    let smaller = Fixture {
        max: 20 << 10,
        ..fixture
    };
    let cache = smaller.open();
    assert!(has(&cache, block(1499)).await);
    assert!(smaller.bytes_on_disk() <= smaller.max);
    cache.close().await;
}

#[tokio::test]
async fn what_nobody_checked_is_checked_first() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    cache.insert(block(1).0, &block(2).1, false);
    cache.insert(block(3).0, &block(3).1, false);
    settled(&cache).await;
    assert!(!has(&cache, block(1)).await);
    assert!(has(&cache, block(3)).await);
    assert_eq!(count(&cache, "disk_cache_errors"), 0);
}

#[tokio::test]
async fn what_cannot_fit_is_not_taken() {
    for max in [1, 100, 1000, 4000] {
        let fixture = Fixture::new(max);
        let cache = fixture.open();
        for n in 0..50 {
            insert(&cache, block(n)).await;
            insert(&cache, block_of(n, 5000)).await;
            insert(&cache, block_of(n, 0)).await;
        }
        cache.close().await;
        assert!(fixture.bytes_on_disk() <= max);
        assert_eq!(fixture.lines(), [""; 0]);
    }
}

#[tokio::test]
async fn a_damaged_block_is_dropped_and_comes_back() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    for n in 0..3 {
        insert(&cache, block(n)).await;
    }
    let [file] = fixture.files().try_into().unwrap();
    let bytes = fs::read(&file).unwrap();
    for (n, in_head) in [(0, false), (1, true)] {
        let head = layout::record_head(block(n).0.as_bytes(), &block(n).1);
        let at = bytes.windows(head.len()).position(|w| w == head).unwrap();
        let mut damaged = bytes.clone();
        damaged[at + if in_head { 4 } else { head.len() }] ^= 1;
        fs::write(&file, &damaged).unwrap();
        assert!(!has(&cache, block(n)).await, "head: {in_head}");
        fs::write(&file, &bytes).unwrap();
        assert!(!has(&cache, block(n)).await, "dropped for good");
    }
    assert!(has(&cache, block(2)).await);
    assert_eq!(count(&cache, "disk_cache_errors"), 2);
    let lines = fixture.lines();
    assert_eq!(lines.len(), 1, "one complaint per file: {lines:?}");
    assert!(lines[0].contains("damaged"), "{lines:?}");
    insert(&cache, block(0)).await;
    assert!(has(&cache, block(0)).await);
}

#[tokio::test]
async fn a_truncated_file_loses_its_end_alone() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    for n in 0..10 {
        insert(&cache, block(n)).await;
    }
    let [file] = fixture.files().try_into().unwrap();
    let len = fs::metadata(&file).unwrap().len();
    let open = File::options().write(true).open(&file).unwrap();
    open.set_len(len / 2).unwrap();
    assert!(has(&cache, block(0)).await);
    assert!(!has(&cache, block(9)).await);
    insert(&cache, block(9)).await;
    assert!(has(&cache, block(9)).await);
    cache.close().await;
    let cache = fixture.open();
    assert!(has(&cache, block(0)).await);
    assert!(has(&cache, block(9)).await);
}

/// A record whose checksums fit and whose value is not what its name says was not made by a disk.
/// It is found where every block is checked against its name.
#[tokio::test]
async fn a_forged_record_is_found_where_names_are_checked() {
    for verify in [false, true] {
        let fixture = Fixture {
            verify,
            ..Fixture::new(1 << 20)
        };
        let (name, value) = block(1);
        let other = vec![7; value.len()];
        let forged = [
            &HEAD[..],
            &layout::record_head(name.as_bytes(), &other)[..],
            &other[..],
        ]
        .concat();
        fs::create_dir_all(fixture.path()).unwrap();
        fs::write(Segment::path(&fixture.path(), 1), forged).unwrap();
        let cache = fixture.open();
        let found = cache.get(&name, value.len() as u64).await;
        assert_eq!(found.is_none(), verify);
        assert_eq!(count(&cache, "disk_cache_errors"), u64::from(verify));
    }
}

#[test]
fn no_record_with_a_damaged_byte_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    for len in [1usize, 300, 100 << 10, 200 << 10] {
        let (name, value) = block_of(1, len);
        let segment = Arc::new(Segment::create(dir.path(), len as u32).unwrap());
        let head = layout::record_head(name.as_bytes(), &value);
        let (record, at) = ([&head[..], &value[..]].concat(), HEAD.len());
        segment.write_at(&record, at as u64).unwrap();
        let find = |form: Form| {
            let found = segment.find(form, at as u32, name.as_bytes(), len as u32);
            match found.unwrap() {
                Found::Value(value) => value.bytes().map_err(|_| "damaged"),
                Found::Other => Err("another"),
                Found::Damaged => Err("damaged"),
            }
        };
        let forms = [Form::Bytes, Form::Place];
        assert_eq!(forms.map(find), [Ok(value.clone()), Ok(value)]);
        let values = (head.len()..record.len()).step_by(len.div_ceil(50));
        for byte in (0..head.len()).chain(values) {
            let place = (at + byte) as u64;
            let damaged = record[byte] ^ 1 << (byte % 8);
            segment.write_at(&[damaged], place).unwrap();
            let damaged = forms.map(find).map(|found| found == Err("damaged"));
            assert_eq!(damaged, [true; 2], "byte {byte} of a record of {len}");
            segment.write_at(&record[byte..=byte], place).unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_deleted_or_replaced_is_begun_anew() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    for round in 0..3 {
        insert(&cache, block(1)).await;
        assert!(has(&cache, block(1)).await);
        if round == 0 {
            fs::remove_dir_all(fixture.path()).unwrap();
        } else {
            let away = fixture.dir.path().join(round.to_string());
            fs::rename(fixture.path(), away).unwrap();
        }
        until("it is noticed", || {
            fixture.path().join("README.txt").exists()
        })
        .await;
        until("it is let go", || cache.inner.map.read().slots.is_empty()).await;
        assert!(!has(&cache, block(1)).await);
    }
    insert(&cache, block(1)).await;
    assert!(has(&cache, block(1)).await);
    assert_eq!(fixture.files().len(), 1);
    let lines = fixture.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[tokio::test]
async fn a_file_that_is_deleted_gives_its_space_back() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    insert(&cache, block(1)).await;
    fs::remove_file(&fixture.files()[0]).unwrap();
    until("it is noticed", || count(&cache, "disk_cache_bytes") == 0).await;
    assert!(
        cache.inner.map.read().segments.is_empty(),
        "nothing holds it open"
    );
    insert(&cache, block(1)).await;
    assert!(has(&cache, block(1)).await);
}

#[tokio::test]
async fn one_directory_serves_one_cache_at_a_time() {
    let fixture = Fixture::new(1 << 20);
    let first = fixture.open();
    insert(&first, block(1)).await;
    let second = fixture.open();
    assert!(!has(&second, block(1)).await);
    insert(&second, block(2)).await;
    assert!(!has(&second, block(2)).await);
    assert!(has(&first, block(1)).await);
    let lines = fixture.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("in use by another process"), "{lines:?}");
    first.close().await;
    // The cache tries the directory again until it is free.
    until("the second takes over", || {
        !second.inner.map.read().slots.is_empty()
    })
    .await;
    assert!(has(&second, block(1)).await);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_said_once() {
    let fixture = Fixture::new(1 << 20);
    fs::write(fixture.dir.path().join("deep"), "a file").unwrap();
    let cache = fixture.open();
    insert(&cache, block(1)).await;
    assert!(!has(&cache, block(1)).await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = fixture.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("cachePath"), "{lines:?}");
    fs::remove_file(fixture.dir.path().join("deep")).unwrap();
    until("it is made", || fixture.path().join("README.txt").exists()).await;
    until("it takes blocks", || {
        cache.insert(block(1).0, &block(1).1, true);
        !cache.inner.map.read().slots.is_empty()
    })
    .await;
    cache.close().await;
}

#[tokio::test]
async fn a_write_that_fails_is_said_once_and_tried_again() {
    let fixture = Fixture::new(1 << 20);
    let cache = fixture.open();
    assert!(!has(&cache, block(0)).await);
    // The first two files cannot be created.
    for id in [1, 2] {
        fs::create_dir(Segment::path(&fixture.path(), id)).unwrap();
    }
    until("it goes on", || {
        cache.insert(block(1).0, &block(1).1, true);
        !cache.inner.map.read().slots.is_empty()
    })
    .await;
    assert!(has(&cache, block(1)).await);
    assert_eq!(count(&cache, "disk_cache_errors"), 2);
    let lines = fixture.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
}

#[tokio::test]
async fn foreign_files_stay_and_files_of_other_versions_go() {
    let fixture = Fixture::new(1 << 20);
    fs::create_dir_all(fixture.path()).unwrap();
    let foreign = ["1.blocks", "x.blocks", "0000000001.block", "notes"];
    for name in foreign {
        fs::write(fixture.path().join(name), "mine").unwrap();
    }
    for (id, text) in [(1, ""), (2, "short"), (3, "walrusds cache 9 and more")] {
        fs::write(Segment::path(&fixture.path(), id), text).unwrap();
    }
    let cache = fixture.open();
    assert!(!has(&cache, block(1)).await);
    insert(&cache, block(1)).await;
    assert!(has(&cache, block(1)).await);
    for name in foreign {
        assert_eq!(fs::read(fixture.path().join(name)).unwrap(), b"mine");
    }
    for id in 1..=3 {
        assert!(!Segment::path(&fixture.path(), id).exists());
    }
    assert_eq!(fixture.lines().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_and_evictions_do_not_meet() {
    let fixture = Fixture::new(64 << 10);
    let cache = Arc::new(fixture.open());
    let tasks: Vec<_> = (0..8u32)
        .map(|task| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                let mut hits = 0;
                for i in 0..4000 {
                    let n = (i * 7 + task * 131) % 900;
                    if has(&cache, block(n)).await {
                        hits += 1;
                    } else {
                        cache.insert(block(n).0, &block(n).1, true);
                    }
                }
                hits
            })
        })
        .collect();
    let mut hits = 0;
    for task in tasks {
        hits += task.await.unwrap();
    }
    assert_eq!(count(&cache, "disk_cache_hits"), hits);
    assert!(hits > 0);
    assert_eq!(count(&cache, "disk_cache_errors"), 0);
    cache.close().await;
    assert!(fixture.bytes_on_disk() <= fixture.max);
    assert_eq!(fixture.lines(), [""; 0]);
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32),
    Get(u32),
    Reopen,
    /// Overwrites a byte of a file.
    Damage(usize, usize, u8),
    /// Shortens a file.
    Truncate(usize, usize),
    RemoveFile(usize),
    RemoveAll,
}

fn step() -> impl Strategy<Value = Step> {
    let block = || 0..60u32;
    prop_oneof![
        20 => block().prop_map(Step::Insert),
        20 => block().prop_map(Step::Get),
        3 => Just(Step::Reopen),
    ]
}

fn hostile_step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        40 => step(),
        4 => (any(), any(), 1..=255u8).prop_map(|(f, at, by)| Step::Damage(f, at, by)),
        2 => (any(), any()).prop_map(|(f, at)| Step::Truncate(f, at)),
        1 => any().prop_map(Step::RemoveFile),
        1 => Just(Step::RemoveAll),
    ]
}

/// Plays steps. Whatever the steps do to the files, the cache returns only right bytes and keeps
/// its bound; as long as no step touches the files and everything fits, every inserted block is
/// there.
fn play(steps: Vec<Step>, max: u64, everything_fits: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let fixture = Fixture::new(max);
        let mut cache = fixture.open();
        let mut inserted = BTreeSet::new();
        until("loaded", || *cache.inner.loaded.borrow()).await;
        assert!(!has(&cache, block(0)).await);
        for step in steps {
            let any_file = |n: usize| {
                let files = fixture.files();
                (!files.is_empty()).then(|| files[n % files.len()].clone())
            };
            match step {
                Step::Insert(n) => {
                    insert(&cache, block(n)).await;
                    inserted.insert(n);
                }
                Step::Get(n) => {
                    let found = has(&cache, block(n)).await;
                    assert!(inserted.contains(&n) || !found);
                    assert!(found || !everything_fits || !inserted.contains(&n));
                }
                Step::Reopen => {
                    cache.close().await;
                    cache = fixture.open();
                    until("loaded", || *cache.inner.loaded.borrow()).await;
                }
                Step::Damage(file, at, by) => {
                    if let Some(file) = any_file(file) {
                        let mut bytes = fs::read(&file).unwrap();
                        if !bytes.is_empty() {
                            let at = at % bytes.len();
                            bytes[at] ^= by;
                        }
                        // In place: the running cache has the file open.
                        fs::write(&file, bytes).unwrap();
                    }
                }
                Step::Truncate(file, at) => {
                    if let Some(file) = any_file(file) {
                        let open = File::options().write(true).open(file).unwrap();
                        let len = open.metadata().unwrap().len();
                        open.set_len(at as u64 % (len + 1)).unwrap();
                    }
                }
                Step::RemoveFile(file) => {
                    if let Some(file) = any_file(file) {
                        fs::remove_file(file).unwrap();
                    }
                }
                Step::RemoveAll => {
                    // The cache may be making it anew at this moment.
                    let _ = fs::remove_dir_all(fixture.path());
                    until("it is begun anew", || {
                        fixture.path().join("README.txt").exists()
                    })
                    .await;
                }
            }
            assert!(fixture.bytes_on_disk() <= max);
        }
        cache.close().await;
        assert!(fixture.bytes_on_disk() <= max);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_map_agrees(steps in prop::collection::vec(step(), 1..150)) {
        play(steps, 64 << 10, true);
    }

    #[test]
    fn a_map_agrees_when_not_everything_fits(steps in prop::collection::vec(step(), 1..200)) {
        play(steps, 4 << 10, false);
    }

    #[test]
    fn a_hostile_disk_costs_misses_alone(
        steps in prop::collection::vec(hostile_step(), 1..120),
        max in prop_oneof![Just(4u64 << 10), Just(64 << 10)],
    ) {
        play(steps, max, false);
    }

    #[test]
    fn files_of_noise_harm_nobody(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        table in any::<bool>(),
        at in 0..10_000u32,
    ) {
        let fixture = Fixture::new(64 << 10);
        fs::create_dir_all(fixture.path()).unwrap();
        let mut bytes = HEAD.to_vec();
        bytes.extend_from_slice(&noise);
        if table {
            // A table with a right checksum and wrong rows.
            let lie = layout::Row { tag: layout::tag(block(1).0.as_bytes()), offset: at, value_len: 5, structure: false };
            let end = bytes.len() as u64;
            bytes.extend_from_slice(&layout::table(&[lie], end));
        }
        fs::write(Segment::path(&fixture.path(), 7), bytes).unwrap();
        play_on(&fixture);
    }
}

fn play_on(fixture: &Fixture) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let cache = fixture.open();
        assert!(!has(&cache, block(1)).await);
        insert(&cache, block(1)).await;
        assert!(has(&cache, block(1)).await);
        cache.close().await;
    });
}
