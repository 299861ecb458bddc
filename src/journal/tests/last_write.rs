//! The newest write of a journal, flipped, overwritten and cut at any place.

use std::future::Future;
use std::task::{Context, Waker};

use sha2::{Digest, Sha256};

use super::*;

pub(super) fn key_of(value: &[u8]) -> String {
    let multihash = [&[0x12, 32], &Sha256::digest(value)[..]].concat();
    format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
}

pub(super) fn block(n: u8, len: usize, zeroes: usize) -> (String, Bytes) {
    let mut value: Vec<u8> = (0..len).map(|i| (i * i) as u8 ^ n | 1).collect();
    value[len - zeroes..].fill(0);
    (key_of(&value), value.into())
}

/// The file of a journal that was killed after two writes.
struct File {
    name: String,
    bytes: Vec<u8>,
    earlier: Vec<(String, Bytes)>,
    last: Vec<(String, Bytes)>,
    /// Where the last write begins, where its values begin, and where it ends.
    start: usize,
    values: usize,
    end: usize,
}

impl File {
    fn of(last: Vec<(String, Bytes)>) -> File {
        runtime().block_on(async {
            let scene = Scene::new();
            let earlier = vec![block(100, 700, 0), block(101, 300, 3)];
            scene.put(earlier.clone()).await.unwrap();
            let segment = Arc::clone(&scene.journal.inner.state.lock().segments[0]);
            let start = segment.len() as usize;
            scene.put(last.clone()).await.unwrap();
            let end = segment.len() as usize;
            File {
                name: segment.file_name(),
                bytes: fs::read(segment.path()).unwrap(),
                values: end - last.iter().map(|(_, v)| v.len()).sum::<usize>(),
                earlier,
                last,
                start,
                end,
            }
        })
    }

    /// Blocks of several lengths; the last one ends with zeroes.
    fn usual() -> File {
        let lengths = [(90, 0), (600, 2), (20, 0), (3000, 0), (700, 1)];
        let blocks = (0..).zip(lengths);
        File::of(blocks.map(|(n, (len, z))| block(n, len, z)).collect())
    }

    /// The block whose value holds this byte of the file.
    fn block_at(&self, at: usize) -> Option<usize> {
        let mut end = self.values;
        self.last.iter().position(|(_, value)| {
            end += value.len();
            (self.values..end).contains(&at)
        })
    }

    /// Opens a journal with this file, writes to it, and opens it again, twice. The blocks found
    /// must be the same each time. Returns which blocks of the last write are found, which are told
    /// as damaged, and the lines of the first open.
    fn open(&self, bytes: &[u8], what: &str) -> Found {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(&self.name), bytes).unwrap();
        let mut first = None;
        for round in 0..3 {
            let what = format!("{what}, start {round}");
            let log = Arc::new(Log::default());
            let disk = Arc::new(FaultyDisk::default());
            let opened = Journal::open_on(
                (Arc::<FaultyDisk>::clone(&disk), None),
                dir.path(),
                (MAX, JournalSync::Put),
                None,
                Arc::clone(&log),
            );
            let journal = Arc::new(opened.expect(&what));
            let lines: Vec<_> = std::iter::from_fn(|| log.pop())
                .map(|line| (line.level, line.message))
                .collect();
            for (key, value) in &self.earlier {
                let found = journal.find(key).expect(&what).read().expect(&what);
                assert_eq!(found, value, "{what}");
            }
            let is_whole = |(key, value): &(String, Bytes)| {
                let found = journal.find(key)?;
                assert_eq!(found.read().expect(&what), value, "{what}");
                Some(())
            };
            let found: Vec<bool> = self.last.iter().map(|b| is_whole(b).is_some()).collect();
            let damaged: Vec<bool> = self
                .last
                .iter()
                .map(|(key, _)| journal.damage(key).is_some())
                .collect();
            let scene = Scene::around(tempfile::tempdir().unwrap(), &disk, journal);
            for n in 0..round {
                let key = format!("/{n}");
                assert!(scene.journal.find(&key).is_some(), "{what}");
            }
            let key = format!("/{round}");
            runtime().block_on(async {
                scene.put(one(&key, 100)).await.unwrap();
                scene.journal.close().await;
            });
            let now = Found {
                found,
                damaged,
                lines,
            };
            let before = first.get_or_insert_with(|| now.clone());
            assert_eq!(before.found, now.found, "{what}");
            assert_eq!(before.damaged, now.damaged, "{what}");
        }
        first.unwrap()
    }
}

#[derive(Debug, Clone)]
struct Found {
    found: Vec<bool>,
    damaged: Vec<bool>,
    lines: Vec<(Level, String)>,
}

impl Found {
    fn has_error(&self, word: &str) -> bool {
        let is = |(level, text): &(Level, String)| *level == Level::Error && text.contains(word);
        self.lines.iter().any(is)
    }
}

/// One flipped bit takes the block in which it lies, and no other one. The block is named. In the
/// head and the table of the write it takes none.
#[test]
fn a_flipped_bit_in_the_last_write_takes_one_block_at_most() {
    let file = File::usual();
    let head = file.start..file.start + 32;
    let table = (file.start + 32..file.values).step_by(5);
    let values = (file.values..file.end).step_by(307);
    let ends = file.last.iter().scan(file.values, |end, (_, value)| {
        *end += value.len();
        Some([*end - 1, *end - 2])
    });
    let places = head.chain(table).chain(values).chain(ends.flatten());
    for (n, at) in places.enumerate() {
        let what = format!("byte {at} of {}..{}..{}", file.start, file.values, file.end);
        let mut bytes = file.bytes.clone();
        bytes[at] ^= 1 << (n % 8);
        let found = file.open(&bytes, &what);
        let hit = file.block_at(at);
        for i in 0..file.last.len() {
            assert_eq!(found.found[i], hit != Some(i), "{what}, block {i}");
            assert_eq!(found.damaged[i], hit == Some(i), "{what}, block {i}");
        }
        let word = hit.map_or(&*file.name, |i| &*file.last[i].0);
        assert!(found.has_error(word), "{what}: {:?}", found.lines);
    }
}

/// A byte that was overwritten takes no block of which its key proves that it is whole, unless it
/// tells how long the parts of the table are. An operator is told in any case.
#[test]
fn an_overwritten_byte_in_the_last_write_goes_nowhere_unnoticed() {
    let file = File::usual();
    let head = file.start..file.start + 32;
    let table = (file.start + 32..file.values).step_by(11);
    let values = (file.values..file.end).step_by(509).chain([file.end - 3]);
    for at in head.chain(table).chain(values) {
        let what = format!("byte {at} of {}..{}..{}", file.start, file.values, file.end);
        let mut bytes = file.bytes.clone();
        bytes[at] ^= 0xff;
        let found = file.open(&bytes, &what);
        assert!(found.has_error(&file.name), "{what}: {:?}", found.lines);
        let lost = found.found.iter().filter(|found| !**found).count();
        if file.block_at(at).is_some() {
            assert_eq!(lost, 1, "{what}");
        } else if !(file.start + 28..file.start + 32).contains(&at) {
            // The length of a key or a value in the table takes those behind it along.
            let entry = (at - file.start).checked_sub(32).map(|at| at % 67);
            if !entry.is_some_and(|at| (1..7).contains(&at)) {
                assert!(lost <= 1, "{what}: {found:?}");
            }
        }
    }
}

/// A value may end with a zero byte: a flipped bit in it is no missing end of its write, whose
/// other values were acknowledged. The keys prove nothing here.
#[test]
fn a_damaged_value_that_ends_with_a_zero_is_no_torn_write() {
    for len in [80, 600, 3000] {
        let mut value = vec![7; len];
        value[len - 1] = 0;
        let mut both = one("/a", 90);
        both.push(("/b".to_owned(), value.into()));
        let file = File::of(both);
        for at in [file.values + 90 + 10, file.end - 2, file.end - 1] {
            let mut bytes = file.bytes.clone();
            bytes[at] ^= 1;
            let found = file.open(&bytes, &format!("{len}, byte {at}"));
            assert_eq!(found.found, [true, false], "{len}");
            assert_eq!(found.damaged, [false, true], "{len}");
        }
    }
}

/// A write that a crash cut short was never acknowledged: nothing of it is reported as lost. Its
/// blocks that are whole may be there, as their keys prove them.
#[test]
fn a_write_that_was_cut_short_keeps_at_most_what_its_keys_prove() {
    let file = File::usual();
    let ends: Vec<usize> = file
        .last
        .iter()
        .scan(file.values, |end, (_, value)| {
            *end += value.len();
            Some(*end)
        })
        .collect();
    let sectors = (file.start..file.end).filter(|at| at % 512 == 0);
    let anywhere = (file.start..file.end).step_by(127);
    for cut in sectors.chain(anywhere).chain(ends.iter().copied()) {
        for zeroed in [false, true] {
            let what = format!("cut at {cut}, zeroed {zeroed}");
            let mut bytes = file.bytes[..cut].to_vec();
            if zeroed {
                bytes.resize(file.bytes.len(), 0);
            }
            let found = file.open(&bytes, &what);
            assert!(!found.damaged.contains(&true), "{what}");
            for (i, end) in ends.iter().enumerate() {
                // Zeroes at the end of a value are the same whether they were written or not.
                let zeroes = file.last[i].1.iter().rev().take_while(|b| **b == 0).count();
                let written = end - if zeroed { zeroes } else { 0 };
                assert!(!found.found[i] || written <= cut, "{what}, block {i}");
                if zeroed && cut >= file.values {
                    assert_eq!(found.found[i], written <= cut, "{what}, block {i}");
                }
            }
            // A disk leaves out whole sectors; that is no reason for an alarm.
            if cut % 512 == 0 || !zeroed || ends.contains(&cut) {
                let alarm = found.lines.iter().find(|(level, _)| *level == Level::Error);
                assert_eq!(alarm, None, "{what}");
            }
        }
    }
}

/// Two writes that shared a sync were acknowledged together or not at all. A power cut may leave a
/// hole in the first one although the second one is whole.
#[test]
fn a_hole_in_a_write_that_shared_its_sync_is_no_damage() {
    runtime().block_on(async {
        for shared in [true, false] {
            let scene = Scene::new();
            scene.put(one("/a", 100)).await.unwrap();
            let (first, second) = (one("/a", 5000), one("/b", 80));
            if shared {
                let held = scene.journal.writer.appender.lock();
                let mut first = Box::pin(scene.put(first));
                let mut second = Box::pin(scene.put(second));
                // Each goes into the queue when it is polled.
                let mut context = Context::from_waker(Waker::noop());
                assert!(first.as_mut().poll(&mut context).is_pending());
                assert!(second.as_mut().poll(&mut context).is_pending());
                drop(held);
                first.await.unwrap();
                second.await.unwrap();
            } else {
                scene.put(first).await.unwrap();
                scene.put(second).await.unwrap();
            }
            let copy = without_a_sector(&scene.journal.find("/a").unwrap());
            let disk = Arc::new(FaultyDisk::default());
            for start in 0..3 {
                let what = format!("shared {shared}, start {start}");
                let journal = open(&disk, copy.path()).unwrap();
                assert!(journal.find("/b").is_some(), "{what}");
                assert_eq!(journal.damage("/a").is_none(), shared, "{what}");
                let older = journal.find("/a").map(|block| block.read().unwrap());
                let expected = shared.then(|| one("/a", 100)[0].1.clone());
                assert_eq!(older, expected, "{what}");
                let scene = Scene::around(tempfile::tempdir().unwrap(), &disk, journal);
                scene.put(one(&format!("/{start}"), 100)).await.unwrap();
                scene.journal.close().await;
            }
        }
    });
}

/// If an open cannot note which values of the last write do not count, it is noted before any other
/// write: a later open could not tell any more.
#[test]
fn what_does_not_count_is_noted_before_another_write_follows() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/a", 100)).await.unwrap();
        scene.put(one("/a", 5000)).await.unwrap();
        let copy = without_a_sector(&scene.journal.find("/a").unwrap());
        let disk = Arc::new(FaultyDisk::default());
        // Neither the README nor the note.
        disk.fail(Call::Write, 0, 2);
        for start in 0..3 {
            let journal = open(&disk, copy.path()).unwrap();
            disk.recover();
            assert_eq!(journal.damage("/a"), None, "start {start}");
            let value = journal.find("/a").unwrap().read().unwrap();
            assert_eq!(value, one("/a", 100)[0].1, "start {start}");
            let scene = Scene::around(tempfile::tempdir().unwrap(), &disk, journal);
            // The first try fails in its sync, which takes what was written before along.
            if start == 0 {
                scene.disk.fail(Call::Sync, 0, 1);
                scene.put(one("/0", 100)).await.unwrap_err();
            }
            scene.put(one(&format!("/{start}"), 100)).await.unwrap();
            scene.journal.close().await;
        }
    });
}

/// A small write may find room where a large one has found none: the disk is full until one as
/// large has succeeded, a while has passed, or nothing is left that could leave.
#[test]
fn a_small_write_does_not_mean_that_the_disk_has_room() {
    runtime().block_on(async {
        let scene = Scene::new();
        let is_full = || scene.journal.inner.state.lock().disk_full.is_some();
        scene.put(one("/a", 100)).await.unwrap();
        assert!(!is_full());
        scene.disk.fail(Call::Write, 0, 1);
        scene.put(one("/large", 200_000)).await.unwrap_err();
        scene.put(one("/b", 100)).await.unwrap();
        assert!(is_full());
        scene.put(one("/large", 200_000)).await.unwrap();
        assert!(!is_full());
        scene.disk.fail(Call::Create, 0, 1);
        scene.put(one("/larger", 300_000)).await.unwrap_err();
        assert!(is_full());
        let full = scene.journal.inner.state.lock().disk_full.clone();
        if let Some(full) = &mut scene.journal.inner.state.lock().disk_full {
            full.last -= Duration::from_secs(60);
        }
        scene.put(one("/c", 100)).await.unwrap();
        assert!(!is_full());
        scene.journal.inner.state.lock().disk_full = full;
        let pack = scene.journal.take_pack(Fill::new(Format::Concat, u64::MAX));
        scene.journal.settle(pack).await;
        let emptied = || scene.journal.inner.state.lock().segments.is_empty();
        while !emptied() {
            tokio::task::yield_now().await;
        }
        assert!(!is_full());
    });
}
