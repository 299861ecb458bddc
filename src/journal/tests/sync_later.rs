//! Writes that return before they are synced.

use super::last_write::key_of;
use super::*;

/// A power cut as [`FaultyDisk`] makes one: which sectors that were not synced are lost, and where
/// the files end.
#[derive(Debug, Clone)]
struct PowerCut {
    /// One bit for each sector, used again and again.
    lost: Vec<bool>,
    /// The part of what was not synced that the length of a file still tells, of 255.
    length: u8,
}

const SECTOR: u64 = 512;

/// A block of which no byte becomes zero by one flipped bit: a sector that was never written cannot
/// be taken for that.
fn block(n: u8, len: usize) -> (String, Bytes) {
    let value: Vec<u8> = (0..len).map(|i| (i * i) as u8 ^ n | 3).collect();
    (key_of(&value), value.into())
}

impl FaultyDisk {
    /// Copies the files of a directory as a power cut may leave them.
    fn after(&self, cut: &PowerCut, from: &Path, into: &Path) {
        let unsynced = self.unsynced.lock();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let inode = fs::metadata(&path).unwrap().ino();
            let mut bytes = fs::read(&path).unwrap();
            let is_lost = |sector: u64| cut.lost[sector as usize % cut.lost.len()];
            for (_, at, before) in unsynced.iter().rev().filter(|(i, ..)| *i == inode) {
                for (at, byte) in (*at..).zip(before) {
                    if let Some(now) = bytes.get_mut(at as usize).filter(|_| is_lost(at / SECTOR)) {
                        *now = *byte;
                    }
                }
            }
            let synced = self.synced_lens.lock().get(&inode).copied();
            let synced = synced.unwrap_or(0).min(bytes.len() as u64);
            let more = (bytes.len() as u64 - synced) * u64::from(cut.length) / 255;
            bytes.truncate((synced + more) as usize);
            fs::write(into.join(path.file_name().unwrap()), bytes).unwrap();
        }
    }
}

/// What is there after a power cut that takes all that was not synced.
fn after_all_is_lost(scene: &Scene) -> BTreeMap<String, Bytes> {
    let cut = PowerCut {
        lost: vec![true],
        length: 0,
    };
    let copy = tempfile::tempdir().unwrap();
    scene.disk.after(&cut, scene.dir.path(), copy.path());
    contents(copy.path()).unwrap()
}

/// The log's lines of an open, and the journal.
fn opened(dir: &Path) -> (Arc<Journal>, Vec<(Level, String)>) {
    let log = Arc::new(Log::default());
    let settings = (MAX, JournalSync::Sync);
    let journal = Journal::open_on(
        (Arc::new(RealDisk), None),
        dir,
        settings,
        None,
        Arc::clone(&log),
    );
    let lines = std::iter::from_fn(|| log.pop()).map(|line| (line.level, line.message));
    let lines = lines.collect();
    (Arc::new(journal.unwrap()), lines)
}

#[test]
fn a_write_survives_a_kill_at_once_and_a_power_cut_after_a_sync() {
    runtime().block_on(async {
        let scene = Arc::new(Scene::with(JournalSync::Sync));
        scene.put(one("/a", 100)).await.unwrap();
        scene.put_queued(one("/b", 100_000)).await.unwrap();
        let written: Vec<_> = scene.now().into_keys().collect();
        assert_eq!(written, ["/a", "/b"]);
        assert_eq!(scene.after_a_kill().unwrap(), scene.now());
        scene.journal.sync().await.unwrap();
        assert_eq!(after_all_is_lost(&scene), scene.now());

        scene.journal.delete(&["/a".into()]).await.unwrap();
        scene.journal.sync().await.unwrap();
        let left: Vec<_> = after_all_is_lost(&scene).into_keys().collect();
        assert_eq!(left, ["/b"]);
        // Nothing is owed, so no sync is made.
        let syncs = scene.journal.syncs();
        scene.journal.sync().await.unwrap();
        assert_eq!(scene.journal.syncs(), syncs);
    });
}

#[test]
fn what_no_call_asks_to_be_synced_is_synced_all_the_same() {
    runtime().block_on(async {
        let scene = Scene::with(JournalSync::Sync);
        for n in 0..50 {
            scene.put(one(&format!("/{n}"), 100)).await.unwrap();
        }
        while after_all_is_lost(&scene) != scene.now() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(scene.now().len(), 50);
        scene.put(one("/last", 100)).await.unwrap();
        scene.journal.close().await;
        assert_eq!(after_all_is_lost(&scene).len(), 51);
    });
}

/// A sync that fails must lose nothing that was acknowledged: it is written again, into another
/// file.
#[test]
fn a_sync_that_fails_loses_nothing() {
    runtime().block_on(async {
        let scene = Scene::with(JournalSync::Sync);
        scene.put(one("/synced", 100)).await.unwrap();
        scene.journal.sync().await.unwrap();
        scene.disk.fail(Call::Sync, 0, 1);
        scene.put(one("/a", 200)).await.unwrap();
        scene.journal.delete(&["/synced".into()]).await.unwrap();
        scene.put(one("/a", 300)).await.unwrap();
        scene.put(one("/b", 400)).await.unwrap();
        let before = scene.now();
        scene.journal.sync().await.unwrap();
        assert_eq!(scene.now(), before);
        assert_eq!(scene.after_a_kill().unwrap(), before);
        assert_eq!(after_all_is_lost(&scene), before);
    });
}

/// A value that is on Walrus is not written again after a sync that failed; the older value that it
/// replaced, and that was synced, must not come back in its place.
#[test]
fn a_sync_that_fails_revives_no_older_value() {
    for call in [None, Some(Call::Create), Some(Call::Write)] {
        runtime().block_on(async {
            let scene = Scene::with(JournalSync::Sync);
            scene.put(one("/a", 100)).await.unwrap();
            scene.put(one("/waits", 100)).await.unwrap();
            scene.journal.sync().await.unwrap();
            scene.disk.fail(Call::Sync, 0, u32::MAX);
            scene.put(one("/a", 300)).await.unwrap();
            let all = scene.journal.take_pack(Fill::new(Format::Concat, MAX));
            let (on_walrus, waits) = all.into_iter().partition(|block| block.key() == "/a");
            scene.journal.put_back(waits);
            scene.journal.settle(on_walrus).await;
            scene.journal.sync().await.unwrap_err();
            scene.disk.recover();
            if let Some(call) = call {
                scene.disk.fail(call, 0, 1);
            }
            while scene.journal.sync().await.is_err() {}
            for there in [scene.after_a_kill().unwrap(), after_all_is_lost(&scene)] {
                let there: Vec<_> = there.into_keys().collect();
                assert_eq!(there, ["/waits"], "{call:?}");
            }
        });
    }
}

/// The file of an older value that was synced is free once a newer one is there. It must not go
/// before that one is on the disk: a power cut would take both.
#[test]
fn a_file_goes_when_what_replaced_its_values_is_on_the_disk() {
    runtime().block_on(async {
        let scene = Arc::new(Scene::with(JournalSync::Sync));
        scene.put(one("/a", 100)).await.unwrap();
        // The file is full.
        scene.put(one("/fills", 70_000)).await.unwrap();
        scene.put(one("/next", 100)).await.unwrap();
        scene.journal.sync().await.unwrap();
        assert_eq!(scene.journal.inner.state.lock().segments.len(), 2);
        scene.disk.fail(Call::Sync, 0, u32::MAX);
        scene.put(one("/a", 200)).await.unwrap();
        let all = scene.journal.take_pack(Fill::new(Format::Concat, MAX));
        let (fills, others) = all.into_iter().partition(|block| block.key() == "/fills");
        scene.journal.put_back(others);
        scene.journal.settle(fills).await;
        // The thread that removes files has come to it.
        let _ = scene.put_queued(one("/last", 100)).await;
        let there: Vec<_> = after_all_is_lost(&scene).into_keys().collect();
        assert!(there.contains(&"/a".to_owned()), "{there:?}");
        scene.disk.recover();
        scene.journal.sync().await.unwrap();
        scene.journal.writer.reclaim();
        scene.put_queued(one("/last", 100)).await.unwrap();
        scene.journal.sync().await.unwrap();
        let there: Vec<_> = after_all_is_lost(&scene).into_keys().collect();
        assert_eq!(there, ["/a", "/last", "/next"]);
    });
}

#[test]
fn a_disk_that_cannot_be_synced_is_told_and_values_stay_readable() {
    runtime().block_on(async {
        let scene = Scene::with(JournalSync::Sync);
        scene.put(one("/a", 200)).await.unwrap();
        scene.journal.sync().await.unwrap();
        scene.put(one("/b", 300)).await.unwrap();
        for call in [Call::Sync, Call::Create, Call::SetLen] {
            scene.disk.fail(call, 0, u32::MAX);
        }
        let e = scene.journal.sync().await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Disk);
        assert!(e.is_retryable());
        let block = scene.journal.find("/b").unwrap();
        assert_eq!(scene.journal.read(&block).unwrap(), one("/b", 300)[0].1);
        let e = scene.put(one("/c", 100)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Disk);
        scene.disk.recover();
        scene.journal.sync().await.unwrap();
        let left: Vec<_> = after_all_is_lost(&scene).into_keys().collect();
        assert_eq!(left, ["/a", "/b"]);
    });
}

/// A kernel may drop the pages that it could not write. Then the value is gone, and that must not
/// go unnoticed.
#[test]
fn a_value_that_is_gone_with_a_failed_sync_is_reported() {
    runtime().block_on(async {
        let scene = Scene::with(JournalSync::Sync);
        scene.disk.keeps_pages.store(false, Ordering::Relaxed);
        scene.put(one("/a", 200)).await.unwrap();
        scene.journal.sync().await.unwrap();
        scene.disk.fail(Call::Sync, 0, 1);
        scene.put(one("/b", 300)).await.unwrap();
        scene.journal.sync().await.unwrap();
        assert!(scene.journal.find("/b").is_none());
        assert!(scene.journal.damage("/b").is_some());
        let log = &scene.journal.inner.log;
        let lines = std::iter::from_fn(|| log.pop());
        let mut errors = lines.filter(|line| line.level == Level::Error);
        assert!(errors.any(|line| line.message.contains("/b")));
        let left: Vec<_> = scene.now().into_keys().collect();
        assert_eq!(left, ["/a"]);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<(u8, u16)>),
    Delete(u8),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 1..600u16, 1 => 2000..9000u16, 1 => Just(60_000u16)];
    prop_oneof![
        6 => prop::collection::vec((0..12u8, len), 1..4).prop_map(Step::Put),
        1 => (0..12u8).prop_map(Step::Delete),
        1 => Just(Step::Sync),
    ]
}

fn cut() -> impl Strategy<Value = PowerCut> {
    (prop::collection::vec(any::<bool>(), 1..200), any::<u8>())
        .prop_map(|(lost, length)| PowerCut { lost, length })
}

/// Writes, loses the power, and opens several times. Of each key a value must be there that it had
/// at the last sync or later.
async fn lose_power(steps: &[Step], cut: &PowerCut) -> std::result::Result<(), String> {
    let scene = Scene::with(JournalSync::Sync);
    let mut possible: BTreeMap<String, Vec<Option<Bytes>>> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put(blocks) => {
                let puts = blocks.iter().map(|(n, len)| block(*n, usize::from(*len)));
                let puts: BTreeMap<String, Bytes> = puts.collect();
                for (key, value) in &puts {
                    let possible = possible.entry(key.clone()).or_insert_with(|| vec![None]);
                    possible.push(Some(value.clone()));
                }
                scene.put(puts.into_iter().collect()).await.unwrap();
            }
            Step::Delete(n) => {
                let key = possible.keys().nth(usize::from(*n)).cloned();
                if let Some(key) = key {
                    let keys = std::slice::from_ref(&key);
                    scene.journal.delete(keys).await.unwrap();
                    possible.entry(key).or_default().push(None);
                }
            }
            Step::Sync => {
                scene.journal.sync().await.unwrap();
                possible
                    .values_mut()
                    .for_each(|p| drop(p.drain(..p.len() - 1)));
            }
        }
    }
    let copy = tempfile::tempdir().unwrap();
    {
        let _nothing_moves = scene.journal.writer.appender.lock();
        scene.disk.after(cut, scene.dir.path(), copy.path());
    }
    let mut first = None;
    for start in 0..3 {
        let (journal, lines) = opened(copy.path());
        // One byte of a head in a sector that was never written looks like a flipped bit. No block
        // is lost by it.
        let is_alarm = |(level, line): &&(Level, String)| {
            *level == Level::Error && !line.contains("a bit is flipped in the head")
        };
        if let Some((_, line)) = lines.iter().find(is_alarm) {
            return Err(format!("start {start}: {line}"));
        }
        let scene = Scene::around(tempfile::tempdir().unwrap(), &scene.disk, journal);
        let mut now = scene.now();
        now.retain(|key, _| possible.contains_key(key));
        for (key, possible) in &possible {
            if !possible.contains(&now.get(key).cloned()) {
                return Err(format!("start {start}: {key} is not as it was: {lines:?}"));
            }
            if let Some(damage) = scene.journal.damage(key) {
                return Err(format!("start {start}: {damage}"));
            }
        }
        let first = first.get_or_insert_with(|| now.clone());
        if *first != now {
            return Err(format!("start {start}: other blocks than at the first one"));
        }
        scene.put(one(&format!("/{start}"), 100)).await.unwrap();
        scene.journal.close().await;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut takes at most what was not synced, and the journal opens without an alarm.
    #[test]
    fn a_power_cut_takes_at_most_what_was_not_synced(
        steps in prop::collection::vec(step(), 1..20),
        cut in cut(),
    ) {
        let lost = runtime().block_on(lose_power(&steps, &cut));
        prop_assert!(lost.is_ok(), "{}", lost.unwrap_err());
    }
}
