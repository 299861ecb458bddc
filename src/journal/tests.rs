//! Tests of the journal on a disk that fails, and on files that a crash left half written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::disk::RealDisk;
use super::segment::Segment;
use super::*;
use crate::locks::KeyLocks;
use crate::upload::Format;

mod last_write;
mod numbers;
mod sync_later;

/// A kind of call that fails, from the n-th call on and a number of times.
#[derive(Debug, Clone, Copy)]
struct Fault {
    call: Call,
    after: u32,
    times: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Write,
    SetLen,
    Sync,
    SyncDir,
    Remove,
}

const CALLS: [Call; 6] = [
    Call::Create,
    Call::Write,
    Call::SetLen,
    Call::Sync,
    Call::SyncDir,
    Call::Remove,
];

/// A real disk with faults. A write that fails leaves half of its bytes. A sync that fails loses
/// the bytes that were written since the last one, as with a kernel that drops the pages it could
/// not write, or one that keeps them in memory.
#[derive(Debug, Default)]
struct FaultyDisk {
    faults: Mutex<Vec<Fault>>,
    /// The places that were written and not synced, with the bytes that were there before: inode,
    /// offset, bytes.
    unsynced: Mutex<Vec<(u64, u64, Vec<u8>)>>,
    /// Whether the bytes can be read after a sync that failed, until a power cut.
    keeps_pages: AtomicBool,
    /// The length of each file at its last sync, by inode.
    synced_lens: Mutex<BTreeMap<u64, u64>>,
    /// An action that runs at the next write.
    meanwhile: Mutex<Option<Meanwhile>>,
}

struct Meanwhile(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl FaultyDisk {
    fn fail(&self, call: Call, after: u32, times: u32) {
        self.faults.lock().push(Fault { call, after, times });
    }

    fn recover(&self) {
        self.faults.lock().clear();
    }

    fn pass(&self, call: Call) -> io::Result<()> {
        for fault in self.faults.lock().iter_mut().filter(|f| f.call == call) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                // ENOSPC, or EIO.
                let code = if call == Call::Sync { 5 } else { 28 };
                return Err(io::Error::from_raw_os_error(code));
            }
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.pass(Call::Create)?;
        RealDisk.create(path)
    }

    fn write(&self, file: &File, at: u64, slices: &[&[u8]]) -> io::Result<()> {
        if let Some(Meanwhile(happens)) = self.meanwhile.lock().take() {
            happens();
        }
        let all = slices.concat();
        let failed = self.pass(Call::Write);
        let bytes = if failed.is_err() {
            &all[..all.len() / 2]
        } else {
            &all[..]
        };
        let meta = file.metadata()?;
        let mut before = vec![0; bytes.len()];
        let there = (meta.len().saturating_sub(at) as usize).min(before.len());
        file.read_exact_at(&mut before[..there], at)?;
        self.unsynced.lock().push((meta.ino(), at, before));
        RealDisk.write(file, at, &[bytes])?;
        failed
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.pass(Call::SetLen)?;
        RealDisk.set_len(file, len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        let failed = self.pass(Call::Sync);
        let mut unsynced = self.unsynced.lock();
        if failed.is_err() && self.keeps_pages.load(Ordering::Relaxed) {
            return failed;
        }
        if failed.is_ok() {
            self.synced_lens.lock().insert(meta.ino(), meta.len());
        }
        let all = std::mem::take(&mut *unsynced);
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(i, ..)| *i == meta.ino());
        *unsynced = elsewhere;
        if failed.is_ok() {
            return RealDisk.sync(file);
        }
        for (_, at, before) in here.into_iter().rev() {
            let there = (meta.len().saturating_sub(at) as usize).min(before.len());
            file.write_all_at(&before[..there], at)?;
        }
        failed
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.pass(Call::SyncDir)?;
        RealDisk.sync_dir(dir)
    }

    fn write_readme(&self, dir: &Path, text: &str) -> io::Result<()> {
        self.pass(Call::Write)?;
        RealDisk.write_readme(dir, text)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Call::Remove)?;
        RealDisk.remove(path)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
}

/// The limit of the journal (bytes): small enough for several files.
const MAX: u64 = 1 << 20;

struct Scene {
    dir: tempfile::TempDir,
    disk: Arc<FaultyDisk>,
    journal: Arc<Journal>,
    locks: KeyLocks,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(JournalSync::Put)
    }

    fn with(sync: JournalSync) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(FaultyDisk::default());
        disk.keeps_pages
            .store(sync == JournalSync::Sync, Ordering::Relaxed);
        let journal = open_with(&disk, dir.path(), sync).unwrap();
        Scene::around(dir, &disk, journal)
    }

    fn around(dir: tempfile::TempDir, disk: &Arc<FaultyDisk>, journal: Arc<Journal>) -> Scene {
        Scene {
            dir,
            disk: Arc::clone(disk),
            journal,
            locks: KeyLocks::default(),
        }
    }

    async fn put(&self, puts: Vec<(String, Bytes)>) -> Result<()> {
        let bytes = needed(puts.iter().map(|(k, v)| (k.len(), v.len())));
        let room = self.journal.room(bytes, Duration::from_secs(600)).await?;
        let keys = puts.iter().map(|(k, _)| k.clone()).collect();
        let guard = Arc::new(self.locks.lock(keys).await);
        self.journal.append(puts, room, guard).await
    }

    /// The same from a task of the runtime, so that the write takes the way through the queue.
    async fn put_queued(self: &Arc<Self>, puts: Vec<(String, Bytes)>) -> Result<()> {
        let scene = Arc::clone(self);
        tokio::spawn(async move { scene.put(puts).await })
            .await
            .unwrap()
    }

    /// The values that a process would find that starts after this one was killed. `None` while a
    /// failed sync has removed notes that are to be written again, which may fail, too.
    fn after_a_kill(&self) -> Option<BTreeMap<String, Bytes>> {
        let copy = tempfile::tempdir().unwrap();
        let _nothing_moves = self.journal.writer.appender.lock();
        if self.journal.inner.broken.load(Ordering::Acquire) {
            return None;
        }
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        Some(contents(copy.path()).unwrap())
    }

    fn now(&self) -> BTreeMap<String, Bytes> {
        values(&self.journal.inner.state.lock())
    }
}

fn open(disk: &Arc<FaultyDisk>, dir: &Path) -> Result<Arc<Journal>> {
    open_with(disk, dir, JournalSync::Put)
}

fn open_with(disk: &Arc<FaultyDisk>, dir: &Path, sync: JournalSync) -> Result<Arc<Journal>> {
    let disk = Arc::<FaultyDisk>::clone(disk);
    Journal::open_on((disk, None), dir, (MAX, sync), None, Arc::default()).map(Arc::new)
}

fn contents(dir: &Path) -> Result<BTreeMap<String, Bytes>> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let state = replay(dir, &disk, &Settled::default(), &Log::default())?.state;
    Ok(values(&state))
}

fn values(state: &StagedBlocks) -> BTreeMap<String, Bytes> {
    let value = |(key, block): (&Arc<str>, &Arc<Block>)| (key.to_string(), block.read().unwrap());
    state.blocks.iter().map(value).collect()
}

fn one(key: &str, len: usize) -> Vec<(String, Bytes)> {
    vec![(key.to_owned(), vec![len as u8 | 1; len].into())]
}

#[test]
fn a_call_that_fails_fails_one_write_and_the_next_goes_on() {
    runtime().block_on(async {
        for call in CALLS {
            for (first, len) in [(true, 100), (false, 100), (false, 100_000)] {
                let scene = Scene::new();
                if !first {
                    scene.put(one("/before", 50)).await.unwrap();
                }
                scene.disk.fail(call, 0, 1);
                let failed = scene.put(one("/a", len)).await;
                let what = format!("{call:?}, first: {first}, {len} bytes: {failed:?}");
                if let Err(e) = &failed {
                    assert_eq!(e.kind(), ErrorKind::Disk, "{what}");
                    let dir = scene.dir.path().to_str().unwrap();
                    assert!(e.message().contains(dir), "{what}");
                    assert!(!scene.now().contains_key("/a"), "{what}");
                    assert!(!scene.after_a_kill().unwrap().contains_key("/a"), "{what}");
                }
                scene.disk.recover();
                scene.put(one("/b", 70)).await.expect(&what);
                let (now, later) = (scene.now(), scene.after_a_kill().unwrap());
                assert_eq!(now, later, "{what}");
                assert!(now.contains_key("/b"), "{what}");
                assert_eq!(now.contains_key("/before"), !first, "{what}");
                assert_eq!(now.contains_key("/a"), failed.is_ok(), "{what}");
                scene.journal.close().await;
                assert_eq!(contents(scene.dir.path()).unwrap(), now, "{what}");
            }
        }
    });
}

#[test]
fn notes_outlive_a_sync_that_fails_after_them() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/gone", 50)).await.unwrap();
        scene.put(one("/kept", 60)).await.unwrap();
        scene.journal.delete(&["/gone".into()]).await.unwrap();
        scene.disk.fail(Call::Sync, 0, 1);
        scene.put(one("/failed", 70)).await.unwrap_err();
        scene.put(one("/next", 80)).await.unwrap();
        let keys: Vec<_> = scene.after_a_kill().unwrap().into_keys().collect();
        assert_eq!(keys, ["/kept", "/next"]);
    });
}

/// As long as the remains of a failed write may still be read, a deletion must not rely on their
/// absence.
#[test]
fn a_deletion_fails_while_a_failed_write_cannot_be_undone() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/kept", 60)).await.unwrap();
        scene.disk.fail(Call::Sync, 0, u32::MAX);
        scene.put(one("/failed", 70)).await.unwrap_err();
        let e = scene.journal.delete(&["/failed".into()]).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Disk);
        scene.disk.recover();
        scene.journal.delete(&["/failed".into()]).await.unwrap();
        let keys: Vec<_> = scene.after_a_kill().unwrap().into_keys().collect();
        assert_eq!(keys, ["/kept"]);
    });
}

/// A block may hold bytes that look like a frame. They must not count as one when the frame of that
/// block is damaged.
#[test]
fn bytes_of_a_block_that_look_like_a_frame_undo_nothing() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/victim", 50)).await.unwrap();
        let forged = frame::encode(3, 0, &[Write::Delete("/victim".into())]);
        let forged = [vec![1; 10_000], forged, vec![1; 10_000]].concat();
        scene.put(vec![("/a".into(), forged.into())]).await.unwrap();
        scene.put(one("/b", 50)).await.unwrap();
        scene.journal.close().await;
        let segments = Segment::all_in(scene.dir.path(), &(Arc::new(RealDisk) as _)).unwrap();
        let path = segments[0].path();
        let mut bytes = fs::read(path).unwrap();
        // Not sealed, as after a kill, and the head of the second frame is damaged.
        let head = &segments[0].scan(0).unwrap().frames[1];
        bytes[head.0 as usize + 9] ^= 1;
        let end = segments[0].scan(0).unwrap().len as usize;
        bytes.truncate(end);
        let unsealed = frame::encode_seal(None);
        let seal = frame::SEAL_AT as usize;
        bytes[seal..seal + unsealed.len()].copy_from_slice(&unsealed);
        fs::write(path, bytes).unwrap();
        let disk = scene.disk;
        for round in 0..3 {
            let journal = open(&disk, scene.dir.path()).unwrap();
            let staged = values(&journal.inner.state.lock());
            assert!(staged.contains_key("/victim"), "round {round}");
            let scene = Scene {
                dir: tempfile::tempdir().unwrap(),
                disk: Arc::clone(&disk),
                journal: Arc::clone(&journal),
                locks: KeyLocks::default(),
            };
            scene.put(one(&format!("/{round}"), 5000)).await.unwrap();
            journal.close().await;
        }
    });
}

#[test]
fn the_flusher_looks_at_what_is_near_the_front_of_the_queue() {
    runtime().block_on(async {
        let scene = Scene::new();
        for key in ["/a", "/b", "/c"] {
            scene.put(one(key, 100)).await.unwrap();
        }
        let keys = |after, bytes| -> Vec<String> {
            let near = scene.journal.queued_after(after, bytes);
            near.iter().map(|block| block.key().to_owned()).collect()
        };
        assert_eq!(keys(None, 150), ["/a", "/b"]);
        assert_eq!(keys(None, 200), ["/a", "/b"]);
        assert_eq!(keys(None, 201), ["/a", "/b", "/c"]);
        let first = scene.journal.find("/a").unwrap().seq;
        assert_eq!(keys(Some(first), 150), ["/b"]);
    });
}

/// Writes that arrive at the same time do not count as waiting: waiting writes make packs leave
/// before they are full.
#[test]
fn writes_that_meet_each_other_do_not_wait_for_room() {
    let scene = Scene::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    assert!(scene.journal.room_now(10).is_some());
                }
            });
        }
    });
}

#[test]
fn a_file_that_was_removed_takes_no_more_writes() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/a", 60)).await.unwrap();
        let files = Segment::all_in(scene.dir.path(), &scene.journal.inner.disk).unwrap();
        fs::remove_file(files[0].path()).unwrap();
        let e = scene.put(one("/b", 60)).await.unwrap_err();
        assert!(e.message().contains("removed"), "{e}");
        assert!(scene.now().contains_key("/a"), "it can still be read");
    });
}

/// A process that was killed may have left bytes that are only in the system's memory.
#[test]
fn an_open_relies_on_nothing_that_it_could_not_sync() {
    let runtime = runtime();
    let scene = Scene::new();
    runtime.block_on(async { scene.put(one("/a", 100)).await.unwrap() });
    let copy = tempfile::tempdir().unwrap();
    let file = Arc::clone(&scene.journal.inner.state.lock().segments[0]);
    let name = file.path().file_name().unwrap();
    fs::copy(file.path(), copy.path().join(name)).unwrap();
    let disk = Arc::new(FaultyDisk::default());
    disk.fail(Call::Sync, 0, 1);
    let error = open(&disk, copy.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disk, "{error}");
    assert!(open(&disk, copy.path()).unwrap().find("/a").is_some());
}

/// A deletion fails while the note is written that a block needs no upload any more: the block goes
/// back to the queue, and no later put relies on it, as it would not be back after a kill.
#[test]
fn a_block_that_was_let_go_on_paper_is_not_relied_on() {
    let runtime = runtime();
    runtime.block_on(async {
        let scene = Scene::new();
        scene.put(one("/a", 100)).await.unwrap();
        let taken = scene.journal.take_pack(Fill::new(Format::Concat, 1000));
        assert!(taken[0].may_be_relied_on());
        let journal = Arc::clone(&scene.journal);
        let doubts = move || journal.doubt(&["/a".to_owned()]);
        *scene.disk.meanwhile.lock() = Some(Meanwhile(Box::new(doubts)));
        scene.journal.settle(taken).await;
        let block = scene.journal.find("/a").unwrap();
        assert!(!scene.after_a_kill().unwrap().contains_key("/a"));
        // The flusher does the same before it looks up the row again.
        block.doubted.store(false, Ordering::Release);
        assert!(!block.may_be_relied_on());
    });
}

/// A frame cut at every byte, with nothing, zeroes or an older frame's bytes behind the cut.
#[test]
fn a_frame_torn_at_any_byte_is_not_there() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let scene = Scene::new();
        scene.put(one("/kept", 100)).await.unwrap();
        let mut both = one("/a", 90);
        both.extend(one("/b", 80));
        scene.put(both).await.unwrap();
        scene
    });
    let segment = Arc::clone(&scene.journal.inner.state.lock().segments[0]);
    let whole = fs::read(segment.path()).unwrap();
    let end = segment.len() as usize;
    let start = end - (32 + 2 * 11 + 4 + 90 + 80);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(segment.path().file_name().unwrap());
    let last_byte = |path: &Path| fs::read(path).unwrap().get(end - 1).copied().unwrap_or(0);
    for cut in start..=end {
        let tails = [Vec::new(), vec![0; 500], whole[64..200].to_vec()];
        for (n, tail) in tails.into_iter().enumerate() {
            fs::write(&path, [&whole[..cut], &tail].concat()).unwrap();
            let last_byte = last_byte(&path);
            // Twice: the bytes that are cut off are gone for good.
            for _ in 0..2 {
                let found: Vec<_> = contents(dir.path()).unwrap().into_keys().collect();
                let expected: &[&str] = match (cut == end, n) {
                    (true, _) => &["/a", "/b", "/kept"],
                    // Other bytes than zeroes up to the end: the write is damaged, not torn, and
                    // its first block is whole.
                    (_, 2) if cut >= end - 80 && last_byte != 0 => &["/a", "/kept"],
                    _ => &["/kept"],
                };
                assert_eq!(found, expected, "cut at {cut} of {start}..{end}, tail {n}");
            }
        }
    }
}

/// A block whose row comes to be in doubt while its pack is settled is settled twice.
#[test]
fn ranges_of_notes_may_overlap() {
    runtime().block_on(async {
        let scene = Scene::new();
        for i in 0..10 {
            scene.put(one(&format!("/{i}"), 50)).await.unwrap();
        }
        let note = |first, last| scene.journal.writer.note(vec![Write::Done(first, last)]);
        for (first, last) in [(5, 5), (1, 9), (3, 4), (3, 6)] {
            note(first, last).await.unwrap();
        }
        let left: Vec<_> = scene.after_a_kill().unwrap().into_keys().collect();
        assert_eq!(left, ["/9"]);
    });
}

#[test]
fn a_new_directory_is_synced_into_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("one/two");
    let disk = Arc::new(FaultyDisk::default());
    disk.fail(Call::SyncDir, 1, 1);
    // The sync of its parent succeeds, that of its parent's parent fails.
    assert_eq!(
        open(&disk, &journal).map(drop).unwrap_err().kind(),
        ErrorKind::Disk
    );
    open(&disk, &journal).unwrap();
}

/// A copy of the file of a block in which a sector of the block is missing.
fn without_a_sector(block: &Block) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(block.segment.path()).unwrap();
    let sector = (block.offset as usize).next_multiple_of(512) + 512;
    bytes[sector..sector + 512].fill(0);
    fs::write(copy.path().join(block.segment.file_name()), bytes).unwrap();
    copy
}

/// A power cut may leave out any sector of a write that was not synced. Such a write was never
/// acknowledged, even if other writes follow it later.
#[test]
fn a_value_with_a_missing_sector_in_the_last_write_was_never_acknowledged() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/kept", 100)).await.unwrap();
        let mut last = one("/a", 5000);
        last.extend(one("/b", 80));
        scene.put(last).await.unwrap();
        let block = scene.journal.find("/a").unwrap();
        let copy = without_a_sector(&block);
        let disk = Arc::new(FaultyDisk::default());
        for start in 0..3 {
            let journal = open(&disk, copy.path()).unwrap();
            assert!(journal.find("/kept").is_some() && journal.find("/a").is_none());
            assert_eq!(journal.damage("/a"), None, "start {start}");
            let scene = Scene::around(tempfile::tempdir().unwrap(), &disk, journal);
            scene.put(one(&format!("/{start}"), 100)).await.unwrap();
            scene.journal.close().await;
        }
    });
}

/// Neither a write that a crash left unfinished nor a damaged copy takes an acknowledged value
/// away: not at the first start after it, and not when other writes have followed and the file has
/// its table of contents.
#[test]
fn what_is_not_whole_does_not_take_the_acknowledged_value_along() {
    runtime().block_on(async {
        // Another value, or the same one again; it is the last write, or another one follows.
        for (older, follows) in [(100, false), (5000, false), (5000, true)] {
            let scene = Scene::new();
            scene.put(one("/a", older)).await.unwrap();
            let mut last = one("/a", 5000);
            last.extend(one("/b", 80));
            scene.put(last).await.unwrap();
            let block = scene.journal.find("/a").unwrap();
            if follows {
                scene.put(one("/c", 80)).await.unwrap();
            }
            let copy = without_a_sector(&block);
            let disk = Arc::new(FaultyDisk::default());
            for start in 0..3 {
                let case = format!("{older} {follows}, start {start}");
                let journal = open(&disk, copy.path()).unwrap();
                assert_eq!(journal.damage("/a"), None, "{case}");
                let found = journal.find("/a").unwrap();
                let value = found.read();
                assert!(value.is_ok_and(|v| v == one("/a", older)[0].1), "{case}");
                assert!(found.unproven.load(Ordering::Relaxed), "{case}");
                let scene = Scene::around(tempfile::tempdir().unwrap(), &disk, journal);
                scene.put(one(&format!("/{start}"), 100)).await.unwrap();
                scene.journal.close().await;
            }
        }
    });
}

/// The blocks of a journal must leave to make room, so a full disk does not stop a start: neither
/// for a README nor for the name of the table, both of which another version may not have written.
#[test]
fn a_full_disk_does_not_keep_a_journal_closed() {
    runtime().block_on(async {
        let scene = Scene::new();
        scene.put(one("/a", 100)).await.unwrap();
        scene.journal.close().await;
        let owner = |identity: &str| Owner {
            identity: identity.to_owned(),
            name: "t".to_owned(),
        };
        let open = |identity| {
            let disk = Arc::<FaultyDisk>::clone(&scene.disk);
            let owner = owner(identity);
            Journal::open_on(
                (disk, None),
                scene.dir.path(),
                (MAX, JournalSync::Put),
                Some(&owner),
                Arc::default(),
            )
        };
        for failing in [Call::Write, Call::Create] {
            scene.disk.fail(failing, 0, 100);
            let journal = Arc::new(open("one").unwrap());
            assert!(journal.find("/a").is_some());
            journal.close().await;
            scene.disk.recover();
        }
        let journal = Arc::new(open("one").unwrap());
        journal.close().await;
        assert_eq!(open("two").unwrap_err().kind(), ErrorKind::Config);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Put {
        queued: bool,
        slots: Vec<(u8, u16)>,
    },
    Delete(u8),
    /// A pack of at most so many bytes has reached Walrus and is settled.
    Settle(u64),
    Fault(usize, u32, u32),
    Recover,
    Kill,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..6u8;
    let len = prop_oneof![4 => 1..300u16, 1 => Just(60_000u16)];
    prop_oneof![
        6 => (any::<bool>(), prop::collection::vec((slot(), len), 1..4))
            .prop_map(|(queued, slots)| Step::Put { queued, slots }),
        3 => slot().prop_map(Step::Delete),
        2 => (1..100_000u64).prop_map(Step::Settle),
        3 => (0..CALLS.len(), 0..4u32, 1..3u32).prop_map(|(c, a, t)| Step::Fault(c, a, t)),
        2 => Just(Step::Recover),
        2 => Just(Step::Kill),
        1 => Just(Step::Reopen),
    ]
}

/// Plays steps against a map from each key to the values that it may have.
async fn play(steps: &[Step], sync: JournalSync) -> std::result::Result<(), String> {
    let mut scene = Arc::new(Scene::with(sync));
    let mut model: BTreeMap<String, Vec<Option<Bytes>>> = BTreeMap::new();
    let mut n = 0u64;
    let check = |model: &BTreeMap<String, Vec<Option<Bytes>>>,
                 found: &BTreeMap<String, Bytes>,
                 when: &str| {
        for (key, possible) in model {
            let value = found.get(key).cloned();
            if !possible.contains(&value) {
                let len = |v: &Option<Bytes>| v.as_ref().map(Bytes::len);
                let possible: Vec<_> = possible.iter().map(len).collect();
                return Err(format!(
                    "{key} {when}: {:?} bytes, not one of {possible:?}",
                    len(&value)
                ));
            }
        }
        Ok(())
    };
    for step in steps {
        match step {
            Step::Put { queued, slots } => {
                let mut puts: BTreeMap<String, Bytes> = BTreeMap::new();
                for (slot, len) in slots {
                    n += 1;
                    let mut value = n.to_le_bytes().to_vec();
                    value.resize(8 + usize::from(*len), *slot);
                    puts.insert(format!("/{slot}"), value.into());
                }
                let list: Vec<_> = puts.clone().into_iter().collect();
                let put = if *queued {
                    scene.put_queued(list).await
                } else {
                    scene.put(list).await
                };
                for (key, value) in puts {
                    let possible = model.entry(key).or_insert_with(|| vec![None]);
                    if put.is_ok() {
                        possible.clear();
                    }
                    possible.push(Some(value));
                }
            }
            Step::Delete(slot) => {
                let key = format!("/{slot}");
                let deleted = scene.journal.delete(std::slice::from_ref(&key)).await;
                let possible = model.entry(key).or_insert_with(|| vec![None]);
                if deleted.is_ok() {
                    possible.clear();
                }
                possible.push(None);
            }
            Step::Settle(target) => {
                let pack = scene.journal.take_pack(Fill::new(Format::Concat, *target));
                for block in &pack {
                    // The block may be back after a restart, if the note of it cannot be written.
                    let may_be = model.entry(block.key().to_owned()).or_default();
                    may_be.push(None);
                }
                scene.journal.settle(pack).await;
            }
            Step::Fault(call, after, times) => scene.disk.fail(CALLS[*call], *after, *times),
            Step::Recover => scene.disk.recover(),
            Step::Kill => {
                if let Some(found) = scene.after_a_kill() {
                    check(&model, &found, "after a kill")?;
                }
            }
            Step::Reopen => {
                scene.disk.recover();
                scene.journal.close().await;
                let old = Arc::into_inner(scene).expect("the only one");
                let journal = open_with(&old.disk, old.dir.path(), sync);
                let journal = journal.map_err(|e| e.to_string())?;
                scene = Arc::new(Scene { journal, ..old });
            }
        }
        check(&model, &scene.now(), "now")?;
    }
    scene.disk.recover();
    scene.journal.close().await;
    check(
        &model,
        &contents(scene.dir.path()).map_err(|e| e.to_string())?,
        "closed",
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Under any faults, acknowledged values are there after a kill, and deleted ones are not.
    #[test]
    fn no_fault_loses_or_revives_anything(steps in prop::collection::vec(step(), 1..30)) {
        for sync in [JournalSync::Put, JournalSync::Sync] {
            let played = runtime().block_on(play(&steps, sync));
            prop_assert!(played.is_ok(), "{sync:?}: {}", played.unwrap_err());
        }
    }
}
