//! Blocks of other datastores are imported, on a local Walrus and with real indexes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use testkit::faulty::{Call, Fault, Faults, FaultyIndex, Fuse};
use testkit::mem::{key_of, noise, MemIndex, MemStore};
use testkit::postgres::Postgres;
use tokio_util::sync::CancellationToken;
use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Request, Options as Walrus};
use walrusds::admin::flatfs::{Flatfs, Sharding};
use walrusds::admin::import::{
    import, look, repo_blocks, CarBlocks, CarFile, Content, FlatfsBlocks, FramedBlocks,
    IndexBlocks, Offer, Options, Progress, Report, Source, Trouble,
};
use walrusds::clock::SystemClock;
use walrusds::datastore::Inspection;
use walrusds::{Config, Error, ErrorKind, Op, Result, WalrusDatastore};

/// A repo whose datastore is walrusds, and one with flatfs.
struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    flatfs: Flatfs,
    index: String,
}

fn blocks(seeds: std::ops::Range<u64>) -> BTreeMap<String, Bytes> {
    let block = |seed| {
        let value = noise(seed, 3000);
        (key_of(&value), value)
    };
    seeds.map(block).collect()
}

impl Repo {
    async fn on(index: String) -> Repo {
        let options = Walrus {
            cheap_ids: true,
            ..Walrus::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let blocks = dir.path().join("blocks");
        let repo = Repo {
            net: Devnet::start(options).await.expect("local Walrus"),
            flatfs: Flatfs::create(&blocks, Sharding::NextToLast(2)).unwrap(),
            dir,
            index,
        };
        repo.node("").await.close().await.unwrap();
        repo
    }

    async fn new() -> Repo {
        Repo::on(r#""indexPath":"index.sqlite""#.to_owned()).await
    }

    async fn postgres() -> Repo {
        let pg = Postgres::shared();
        Repo::on(format!(r#""postgresURL":"{}""#, pg.url(&pg.database()))).await
    }

    /// `extra` is JSON members, each followed by a comma. A pack takes ten blocks.
    fn config(&self, extra: &str) -> Config {
        let (url, index) = (self.net.url(), &self.index);
        let json = format!(
            r#"{{{extra}{index},"publisherURL":"{url}","aggregatorURL":"{url}","packTargetSizeBytes":31500,
                "maxRetries":0,"epochs":5,"epochDurationSeconds":86400}}"#
        );
        Config::from_json(&json).unwrap()
    }

    async fn node(&self, extra: &str) -> WalrusDatastore {
        let opened = WalrusDatastore::open(self.config(extra), self.dir.path());
        opened.await.unwrap()
    }

    fn write(&self, blocks: &BTreeMap<String, Bytes>) {
        let blocks: Vec<(String, Bytes)> = blocks.clone().into_iter().collect();
        self.flatfs.put(&blocks).unwrap();
    }

    fn files(&self) -> Box<dyn Source> {
        Box::new(FlatfsBlocks::new(self.flatfs.clone()).unwrap())
    }

    async fn try_import(&self, source: Box<dyn Source>, options: &Options) -> Result<Report> {
        let store = WalrusDatastore::open_beside(self.config(""), self.dir.path());
        let store = store.await.unwrap();
        let stop = CancellationToken::new();
        let done = import(&store, source, options, &mut |_| {}, &stop).await;
        store.close().await.unwrap();
        done
    }

    async fn import(&self) -> Report {
        let options = Options::default();
        self.try_import(self.files(), &options).await.unwrap()
    }

    async fn look(&self, source: Box<dyn Source>) -> Report {
        let inspection = Inspection::open(self.config(""), self.dir.path());
        let inspection = inspection.await.unwrap();
        let (options, stop) = (Options::default(), CancellationToken::new());
        let report = look(&inspection, source, &options, &mut |_| {}, &stop).await;
        inspection.close().await.unwrap();
        report.unwrap()
    }

    async fn assert_holds(&self, blocks: &BTreeMap<String, Bytes>) {
        let node = self.node("").await;
        for (key, value) in blocks {
            assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
        }
        let usage = node.disk_usage().await.unwrap();
        assert_eq!(usage.blocks, blocks.len() as i64);
        node.close().await.unwrap();
    }
}

/// A source of a few offers, and then an end or an error.
struct Few(Vec<Offer>, Option<Error>);

impl Source for Few {
    fn next(&mut self) -> Result<Option<Offer>> {
        match (self.0.is_empty(), self.1.take()) {
            (false, error) => {
                self.1 = error;
                Ok(Some(self.0.remove(0)))
            }
            (true, Some(e)) => Err(e),
            (true, None) => Ok(None),
        }
    }
}

fn here(blocks: &BTreeMap<String, Bytes>) -> Vec<Offer> {
    let offer = |(key, value): (&String, &Bytes)| Offer::here(key.clone(), value.clone());
    blocks.iter().map(offer).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flatfs_is_imported_in_full_packs_and_once() {
    for repo in [Repo::new().await, Repo::postgres().await] {
        let all = blocks(0..95);
        repo.write(&all);
        // What it would do is what it does.
        let would = repo.look(repo.files()).await;
        assert!(!would.applied);
        assert_eq!((would.stored.blocks, would.packs), (95, 10));
        assert_eq!(repo.net.stats().puts, 0);
        let done = repo.import().await;
        assert!(done.applied);
        assert_eq!((done.found, done.stored), (would.found, would.stored));
        assert_eq!(done.stored.bytes, 95 * 3000);
        assert_eq!((done.packs, done.pack_bytes), (10, would.pack_bytes));
        assert_eq!((done.units, done.left_out()), (would.units, 0));
        assert!(done.cost > 0);
        repo.assert_holds(&all).await;
        // Full packs, and one with the rest.
        let mut lengths: Vec<u64> = repo.net.blobs().iter().map(|blob| blob.size).collect();
        lengths.sort_unstable();
        assert_eq!(lengths.len(), 10);
        assert!(lengths[1] > 30_000 && lengths[0] < 16_000, "{lengths:?}");
        // Again: nothing is read, stored or paid for.
        let reads = repo.net.stats();
        let again = repo.import().await;
        assert_eq!((again.known, again.stored.blocks), (done.found, 0));
        assert_eq!((again.packs, again.cost), (0, 0));
        let now = repo.net.stats();
        assert_eq!((now.puts, now.gets), (reads.puts, reads.gets));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blocks_are_named_and_not_stored() {
    let repo = Repo::new().await;
    let mut all = blocks(0..25);
    repo.write(&all);
    let keys: Vec<String> = all.keys().cloned().collect();
    let file = |key: &str| repo.flatfs.path_of(key).unwrap();
    // Other bytes, a cut file, no bytes; a file that is none.
    std::fs::write(file(&keys[3]), noise(77, 3000)).unwrap();
    std::fs::write(file(&keys[4]), &all[&keys[4]][..2999]).unwrap();
    std::fs::write(file(&keys[5]), b"").unwrap();
    std::fs::write(repo.flatfs.dir().join("AB").join("HELLO.data"), b"x")
        .or_else(|_| {
            std::fs::create_dir(repo.flatfs.dir().join("AB"))?;
            std::fs::write(repo.flatfs.dir().join("AB").join("HELLO.data"), b"x")
        })
        .unwrap();
    let done = repo.import().await;
    assert_eq!((done.damaged.blocks, done.refused.blocks), (3, 1));
    assert_eq!((done.stored.blocks, done.left_out()), (22, 4));
    let named = |trouble| {
        let named = done.named.iter().filter(|named| named.trouble == trouble);
        let mut keys: Vec<&str> = named.map(|named| &*named.key).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(named(Trouble::Damaged), keys[3..6]);
    assert_eq!(named(Trouble::Refused), ["/HELLO"]);
    for key in &keys[3..6] {
        all.remove(key);
    }
    repo.assert_holds(&all).await;
    // Keys that cannot be checked are taken on demand.
    let unchecked = Options::default().with_unchecked(true);
    let done = repo.try_import(repo.files(), &unchecked).await.unwrap();
    assert_eq!((done.stored.blocks, done.damaged.blocks), (1, 3));
    let node = repo.node("").await;
    assert_eq!(
        node.get("/HELLO").await.unwrap().as_deref(),
        Some(&b"x"[..])
    );
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_broke_off_is_carried_on() {
    let repo = Repo::new().await;
    let all = blocks(0..60);
    repo.write(&all);
    // The fourth pack and all later ones fail.
    repo.net.set_faults(
        FaultRule::new(FaultAction::Internal)
            .on([Request::Put])
            .after(3),
    );
    let one = Options::default().with_memory_bytes(1);
    let failed = repo.try_import(repo.files(), &one).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Walrus, "{failed}");
    repo.net.clear_faults();
    let done = repo.import().await;
    assert_eq!((done.known.blocks, done.stored.blocks), (30, 30));
    repo.assert_holds(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_stopped_and_carried_on() {
    let repo = Repo::new().await;
    let all = blocks(0..400);
    repo.write(&all);
    let store = WalrusDatastore::open_beside(repo.config(""), repo.dir.path());
    let store = store.await.unwrap();
    let stop = CancellationToken::new();
    let mut last = Progress::default();
    let mut on = |progress: &Progress| {
        last = *progress;
        if progress.stored.blocks >= 20 {
            stop.cancel();
        }
    };
    let one = Options::default().with_memory_bytes(1).with_readers(1);
    let stopped = import(&store, repo.files(), &one, &mut on, &stop).await;
    let stopped = stopped.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Canceled);
    assert!((20..400).contains(&last.stored.blocks), "{last:?}");
    assert!(last.total_bytes.is_some_and(|bytes| bytes > 900_000));
    store.close().await.unwrap();
    let done = repo.import().await;
    assert_eq!(done.known.blocks, last.stored.blocks);
    assert_eq!(done.known.blocks + done.stored.blocks, 400);
    repo.assert_holds(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_journal_works_meanwhile() {
    for repo in [Repo::new().await, Repo::postgres().await] {
        let journal = r#""journalPath":"journal","#;
        let node = repo.node(journal).await;
        let (theirs, ours) = (blocks(1000..1040), blocks(0..100));
        repo.write(&ours);
        let put = async {
            for (key, value) in theirs.iter().chain(ours.iter().step_by(9)) {
                node.put(key, value.clone()).await.unwrap();
            }
        };
        let (done, ()) = tokio::join!(repo.import(), put);
        assert_eq!(done.known.blocks + done.stored.blocks, 100);
        node.close().await.unwrap();
        let node = repo.node("").await;
        for (key, value) in theirs.iter().chain(&ours) {
            assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
        }
        node.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_comes_twice_is_stored_once() {
    let repo = Repo::new().await;
    let all = blocks(0..35);
    let twice = || here(&all).into_iter().chain(here(&all)).collect();
    let would = repo.look(Box::new(Few(twice(), None))).await;
    assert_eq!(would.found.blocks, 70);
    let few = Box::new(Few(twice(), None));
    let done = repo.try_import(few, &Options::default()).await.unwrap();
    assert_eq!((done.stored.blocks, done.known.blocks), (35, 35));
    repo.assert_holds(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_cannot_read_is_told() {
    let repo = Repo::new().await;
    let all = blocks(0..4);
    let keys: Vec<&String> = all.keys().collect();
    let failed = || async { Err(Error::new(ErrorKind::Disk, "a bad sector")) };
    let offers = vec![
        Offer::here(keys[0].clone(), all[keys[0]].clone()),
        Offer::later(keys[1].clone(), 3000, Content::Later(Box::pin(failed()))),
        Offer::later(
            keys[2].clone(),
            3000,
            Content::Later(Box::pin(async { Ok(None) })),
        ),
        Offer::later(
            keys[3].clone(),
            3000,
            Content::File(repo.dir.path().to_owned()),
        ),
    ];
    let few = Box::new(Few(offers, None));
    let done = repo.try_import(few, &Options::default()).await.unwrap();
    assert_eq!((done.unreadable.blocks, done.gone.blocks), (2, 1));
    assert_eq!((done.stored.blocks, done.left_out()), (1, 2));
    assert!(
        done.named.iter().any(|named| named.why == "a bad sector"),
        "{done:?}"
    );
    // A source that breaks off is no end, and neither is one that panics.
    let broken = Error::new(ErrorKind::Disk, "the pipe broke");
    let few = Box::new(Few(here(&blocks(10..13)), Some(broken)));
    let error = repo.try_import(few, &Options::default()).await.unwrap_err();
    assert_eq!(error.message(), "the pipe broke");
    struct Panics;
    impl Source for Panics {
        fn next(&mut self) -> Result<Option<Offer>> {
            panic!("on purpose")
        }
    }
    let ended = repo.try_import(Box::new(Panics), &Options::default()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Internal);
}

/// A disk that is unmounted meanwhile looks like one from which all blocks were deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_flatfs_that_vanishes_is_no_end() {
    for many in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let flatfs = Flatfs::create(dir.path(), Sharding::NextToLast(2)).unwrap();
        let all: Vec<(String, Bytes)> = blocks(0..40).into_iter().collect();
        flatfs.put(&all).unwrap();
        let mut source = FlatfsBlocks::new(flatfs).unwrap();
        if many {
            source.look_only();
        }
        assert!(source.next().unwrap().is_some());
        std::fs::rename(dir.path(), dir.path().with_extension("away")).unwrap();
        let end = loop {
            match source.next() {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        std::fs::rename(dir.path().with_extension("away"), dir.path()).unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::Disk, "{many}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_blocks_come_back_without_an_upload() {
    let repo = Repo::new().await;
    let keep = r#""keepDeletedSeconds":86400,"#;
    let all = blocks(0..12);
    let node = repo.node(keep).await;
    let puts = all.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    node.commit(puts.collect()).await.unwrap();
    let gone = all.keys().take(5).map(|key| Op::Delete(key.clone()));
    node.commit(gone.collect()).await.unwrap();
    node.close().await.unwrap();
    repo.write(&all);
    let puts = repo.net.stats().puts;
    let store = WalrusDatastore::open_beside(repo.config(keep), repo.dir.path());
    let store = store.await.unwrap();
    let (options, stop) = (Options::default(), CancellationToken::new());
    let done = import(&store, repo.files(), &options, &mut |_| {}, &stop).await;
    store.close().await.unwrap();
    let done = done.unwrap();
    assert_eq!((done.undeleted.blocks, done.known.blocks), (5, 7));
    assert_eq!(repo.net.stats().puts, puts);
    repo.assert_holds(&all).await;
}

/// A CAR file (version 1) of blocks.
fn car(blocks: &BTreeMap<String, Bytes>) -> Vec<u8> {
    let mut file = b"\x11\xa2\x65roots\x80\x67version\x01".to_vec();
    for (key, value) in blocks {
        let hash = data_encoding::BASE32_NOPAD.decode(&key.as_bytes()[1..]);
        let cid = [&[1, 0x55][..], &hash.unwrap()].concat();
        let mut len = cid.len() + value.len();
        while len > 0x7f {
            file.push(len as u8 | 0x80);
            len >>= 7;
        }
        file.push(len as u8);
        file.extend([&cid[..], value].concat());
    }
    file
}

fn car_file(name: &str, file: Vec<u8>) -> CarFile {
    let len = Some(file.len() as u64);
    CarFile::new(name, len, move || Ok(Box::new(std::io::Cursor::new(file))))
}

#[tokio::test(flavor = "multi_thread")]
async fn car_files_are_imported() {
    let repo = Repo::new().await;
    let (first, second) = (blocks(0..30), blocks(20..50));
    let mut damaged = car(&second);
    *damaged.last_mut().unwrap() ^= 1;
    let lost = second.keys().last().unwrap().clone();
    let files = |damaged: Vec<u8>| {
        let files = vec![car_file("1.car", car(&first)), car_file("2.car", damaged)];
        Box::new(CarBlocks::new(files))
    };
    let would = repo.look(files(damaged.clone())).await;
    assert_eq!((would.found.blocks, would.damaged.blocks), (60, 1));
    let options = Options::default();
    let done = repo.try_import(files(damaged), &options).await.unwrap();
    // The block that is damaged in the second file may be whole in the first one.
    let stored = 49 + u64::from(first.contains_key(&lost));
    assert_eq!((done.stored.blocks, done.damaged.blocks), (stored, 1));
    assert_eq!(done.named[0].key, lost);
    let mut all: BTreeMap<String, Bytes> =
        first.clone().into_iter().chain(second.clone()).collect();
    if !first.contains_key(&lost) {
        all.remove(&lost);
    }
    repo.assert_holds(&all).await;
    // The packs of this datastore are CAR files themselves.
    let blob = repo
        .net
        .blobs()
        .into_iter()
        .max_by_key(|blob| blob.size)
        .unwrap();
    let pack = repo.net.content(&blob.blob_id).unwrap().to_vec();
    let other = Repo::new().await;
    let pack = Box::new(CarBlocks::new(vec![car_file("pack", pack)]));
    let done = other.try_import(pack, &options).await.unwrap();
    assert_eq!(done.stored.blocks, 10);
    // A file that is cut is no whole file, and what is cut is told.
    let cut = car(&first)[..50_000].to_vec();
    let cut = Box::new(CarBlocks::new(vec![car_file("cut.car", cut)]));
    let error = other.try_import(cut, &options).await.unwrap_err();
    let message = error.message();
    assert!(
        message.starts_with("cut.car, at byte 50000: the file is cut"),
        "{message}"
    );
}

/// What `walrusds-kubo-datastore` writes for blocks.
fn frames(blocks: &BTreeMap<String, Bytes>) -> Vec<u8> {
    let mut out = b"WDSBLK1\n".to_vec();
    for (key, value) in blocks {
        out.extend((key.len() as u32).to_le_bytes());
        out.extend((value.len() as u32).to_le_bytes());
        out.extend([key.as_bytes(), value].concat());
    }
    out
}

fn end(blocks: u64) -> Vec<u8> {
    [&u32::MAX.to_le_bytes()[..], &blocks.to_le_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blocks_of_a_go_datastore_are_imported() {
    let repo = Repo::new().await;
    let all = blocks(0..25);
    let options = Options::default();
    let whole = [frames(&all), end(25)].concat();
    let stream = |bytes: Vec<u8>| Box::new(FramedBlocks::new(std::io::Cursor::new(bytes)));
    let done = repo
        .try_import(stream(whole.clone()), &options)
        .await
        .unwrap();
    assert_eq!(done.stored.blocks, 25);
    repo.assert_holds(&all).await;
    for (bytes, part) in [
        (frames(&all), "it ends after 25 blocks"),
        ([frames(&all), end(26)].concat(), "its end tells of 26"),
        (whole[..1000].to_vec(), "it ends after 0 blocks"),
        (
            b"Usage: of another program".to_vec(),
            "and \"WDSBLK1\\n\" is expected",
        ),
        (Vec::new(), "it ends after 0 blocks"),
        (
            [&b"WDSBLK1\n"[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat(),
            "a block of 0 bytes under a key",
        ),
    ] {
        let error = repo.try_import(stream(bytes), &options).await.unwrap_err();
        assert!(error.message().contains(part), "{error}");
        assert!(error.message().contains("not whole"), "{error}");
    }
    // The same from a program, with each of its ends.
    let file = repo.dir.path().join("stream");
    let program = |bytes: &[u8], rest: &str| {
        std::fs::write(&file, bytes).unwrap();
        let mut shell = std::process::Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("cat {}; {rest}", file.display()));
        Box::new(FramedBlocks::of_program(shell).unwrap())
    };
    let done = repo
        .try_import(program(&whole, "exit 0"), &options)
        .await
        .unwrap();
    assert_eq!(done.known.blocks, 25);
    let unreadable = "echo '/blocks/CIQA: it cannot be read: a hole' >&2; echo 'error: 3 blocks cannot be read; the other 25 were' >&2; exit 3";
    let done = repo
        .try_import(program(&frames(&all), unreadable), &options)
        .await
        .unwrap();
    assert_eq!((done.known.blocks, done.unreadable.blocks), (25, 3));
    let hole = done
        .named
        .iter()
        .find(|named| named.key == "/CIQA")
        .unwrap();
    assert_eq!((hole.trouble, &*hole.why), (Trouble::Unreadable, "a hole"));
    // With the same end, a stream that breaks off within a block lacks more than it says.
    for cut in [frames(&all).len() - 1, 1000, 5] {
        let cut = program(&whole[..cut], unreadable);
        let error = repo.try_import(cut, &options).await.unwrap_err();
        assert!(error.message().contains("not whole"), "{error}");
    }
    let silent = program(&frames(&all), "exit 3");
    let done = repo.try_import(silent, &options).await.unwrap();
    assert_eq!(done.unreadable.blocks, 1);
    let in_use = program(b"", "echo 'error: the repo is in use' >&2; exit 4");
    let error = repo.try_import(in_use, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.message().contains("the repo is in use"), "{error}");
    // It fails behind its end, and its stream is of another version while it still writes.
    let failed = program(&whole, "echo 'error: a lost table' >&2; exit 1");
    let error = repo.try_import(failed, &options).await.unwrap_err();
    assert!(error.message().contains("a lost table"), "{error}");
    let other = program(b"WDSBLK9\n", "cat /dev/zero");
    let error = repo.try_import(other, &options).await.unwrap_err();
    assert!(error.message().contains("WDSBLK9"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_datastore_is_imported() {
    for (from, to) in [
        (Repo::new().await, Repo::postgres().await),
        (Repo::postgres().await, Repo::new().await),
    ] {
        let mut all = blocks(0..60);
        let node = from.node(r#""packFormat":"quilt","#).await;
        let put = |blocks: &BTreeMap<String, Bytes>| {
            let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
            node.commit(puts.collect())
        };
        put(&blocks(0..20)).await.unwrap();
        node.close().await.unwrap();
        let node = from.node("").await;
        let puts = blocks(20..60).into_iter().map(|(k, v)| Op::Put(k, v));
        node.commit(puts.collect()).await.unwrap();
        node.close().await.unwrap();
        let inspection = Inspection::open(from.config(""), from.dir.path());
        let inspection = std::sync::Arc::new(inspection.await.unwrap());
        let source = IndexBlocks::new(inspection.clone(), "").await.unwrap();
        assert_eq!(source.total_bytes(), Some(180_000));
        let before = from.net.stats().gets;
        let options = Options::default();
        let done = to.try_import(Box::new(source), &options).await.unwrap();
        assert_eq!((done.stored.blocks, done.left_out()), (60, 0), "{done:?}");
        to.assert_holds(&all).await;
        // Ranges hold several blocks.
        let reads = from.net.stats().gets - before;
        assert!(reads < 40, "{reads} reads");
        // Again: nothing is read.
        let source = IndexBlocks::new(inspection.clone(), "").await.unwrap();
        let done = to.try_import(Box::new(source), &options).await.unwrap();
        assert_eq!((done.known.blocks, done.stored.blocks), (60, 0));
        assert_eq!(from.net.stats().gets - before, reads);
        inspection.close().await.unwrap();
        // A blob that is gone: its blocks are named, and the others come.
        let inspection = Inspection::open(from.config(""), from.dir.path());
        let inspection = std::sync::Arc::new(inspection.await.unwrap());
        let key = all.keys().next().unwrap().clone();
        let row = inspection.index().get(&key).await.unwrap().unwrap();
        let gone = inspection.index().rows_of_blob(&row.blob_id).await.unwrap();
        from.net.delete_blob(&row.blob_id.parse().unwrap());
        let other = Repo::new().await;
        let source = IndexBlocks::new(inspection.clone(), "").await.unwrap();
        let done = other.try_import(Box::new(source), &options).await.unwrap();
        assert_eq!(done.unreadable.blocks, gone.len() as u64, "{done:?}");
        for row in &gone {
            all.remove(&row.key);
        }
        other.assert_holds(&all).await;
        inspection.close().await.unwrap();
    }
}

/// A source whose first block is told after something else has happened.
struct Meddled<F> {
    source: Box<dyn Source>,
    meddle: Option<F>,
}

impl<F: FnOnce(&Offer) + Send> Source for Meddled<F> {
    fn next(&mut self) -> Result<Option<Offer>> {
        let offer = self.source.next()?;
        if let Some(meddle) = self.meddle.take() {
            meddle(offer.as_ref().unwrap());
        }
        Ok(offer)
    }
}

/// The blobs that hold the first and the last blocks of the listing are gone when it comes to them:
/// their blocks were moved, and lie in blobs that no listing had.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_moved_meanwhile_are_imported() {
    for from in [Repo::new().await, Repo::postgres().await] {
        let to = Repo::new().await;
        let mut all = blocks(0..60);
        let node = from.node("").await;
        let puts = all.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
        node.commit(puts.collect()).await.unwrap();
        let inspection = Inspection::open(from.config(""), from.dir.path());
        let inspection = std::sync::Arc::new(inspection.await.unwrap());
        let page = inspection.index().blobs_of_rows("", 100).await.unwrap();
        assert!(page.len() >= 6, "{page:?}");
        let mut moved = Vec::new();
        for blob in [&page[0], page.last().unwrap()] {
            let rows = inspection.index().rows_of_blob(&blob.blob_id).await;
            moved.extend(rows.unwrap().into_iter().map(|row| row.key));
        }
        let (mut again, fresh) = (Vec::new(), blocks(1000..1001));
        again.extend(fresh.iter().map(|(k, v)| Op::Put(k.clone(), v.clone())));
        again.extend(
            moved
                .iter()
                .map(|key| Op::Put(key.clone(), all[key].clone())),
        );
        all.extend(fresh);
        // As after a repack, the old blob is gone.
        let gone = FaultRule::new(FaultAction::NotFound).on(Request::READS);
        from.net
            .set_faults(gone.of(page[0].blob_id.parse().unwrap()));
        let runtime = tokio::runtime::Handle::current();
        let source = IndexBlocks::new(inspection.clone(), "").await.unwrap();
        let meddle = move |offer: &Offer| {
            assert!(moved.contains(&offer.key));
            runtime.block_on(async {
                let deletes = moved.into_iter().map(Op::Delete).collect();
                node.commit(deletes).await.unwrap();
                node.commit(again).await.unwrap();
                node.close().await.unwrap();
            });
        };
        let source = Meddled {
            source: Box::new(source),
            meddle: Some(meddle),
        };
        let done = to.try_import(Box::new(source), &Options::default()).await;
        let done = done.unwrap();
        assert_eq!((done.stored.blocks, done.left_out()), (61, 0), "{done:?}");
        to.assert_holds(&all).await;
        inspection.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_place_are_counted() {
    let (from, to) = (Repo::new().await, Repo::new().await);
    let all = blocks(0..10);
    let node = from.node("").await;
    let puts = all
        .iter()
        .map(|(k, v)| Op::Put(format!("/blocks{k}"), v.clone()));
    let others = (0..3).map(|n| Op::Put(format!("/pins/{n}"), Bytes::from_static(b"pin")));
    node.commit(puts.chain(others).collect()).await.unwrap();
    node.close().await.unwrap();
    let inspection = Inspection::open(from.config(""), from.dir.path());
    let inspection = std::sync::Arc::new(inspection.await.unwrap());
    let source = || async {
        let source = IndexBlocks::new(inspection.clone(), "/blocks").await;
        Box::new(source.unwrap())
    };
    let looked = to.look(source().await).await;
    assert_eq!(
        (
            looked.found.blocks,
            looked.elsewhere.blocks,
            looked.elsewhere.bytes
        ),
        (10, 3, 9)
    );
    let options = Options::default();
    let done = to.try_import(source().await, &options).await.unwrap();
    assert_eq!((done.stored.blocks, done.elsewhere.blocks), (10, 3));
    assert_eq!(done.left_out(), 0);
    to.assert_holds(&all).await;
    inspection.close().await.unwrap();
}

/// Two imports at once would both pay. One that was killed holds the next one up for a while.
#[tokio::test(flavor = "multi_thread")]
async fn one_import_at_a_time_works_on_an_index() {
    let repo = Repo::new().await;
    let (first, both) = (blocks(0..15), Options::default());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    // The first one waits for its first block until the second one has been refused.
    let slow = Meddled {
        source: Box::new(Few(here(&first), None)) as Box<dyn Source>,
        meddle: Some(move |_: &Offer| {
            tell.send(()).unwrap();
            wait.recv().unwrap();
        }),
    };
    let running = repo.try_import(Box::new(slow), &both);
    let second = async {
        told.recv().await.unwrap();
        let few = Box::new(Few(here(&first), None));
        let refused = repo.try_import(few, &Options::default()).await;
        let few = Box::new(Few(here(&first), None));
        let beside = Options::default().with_beside(true);
        let beside = repo.try_import(few, &beside).await;
        go.send(()).unwrap();
        (refused.unwrap_err(), beside.unwrap())
    };
    let (done, (refused, beside)) = tokio::join!(running, second);
    assert_eq!(refused.kind(), ErrorKind::Locked);
    let text = refused.message();
    assert!(
        text.contains("another import into this index is under way"),
        "{text}"
    );
    let whose = format!("(process {} on ", std::process::id());
    assert!(text.contains(&whose), "{text}");
    assert_eq!(beside.stored.blocks, 15);
    assert_eq!(done.unwrap().known.blocks, 15);
    // It is given back; and one that was killed is waited for.
    let few = Box::new(Few(Vec::new(), None));
    repo.try_import(few, &both).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (_go, wait) = std::sync::mpsc::channel::<()>();
    let stuck = Meddled {
        source: Box::new(Few(here(&first), None)) as Box<dyn Source>,
        meddle: Some(move |_: &Offer| {
            tell.send(()).unwrap();
            let _ = wait.recv();
        }),
    };
    tokio::select! {
        done = repo.try_import(Box::new(stuck), &both) => panic!("{done:?}"),
        begun = told.recv() => begun.unwrap(),
    }
    let few = Box::new(Few(Vec::new(), None));
    repo.try_import(few, &both).await.unwrap();
}

/// Blocks that come with their bytes wait in bounded memory for their packs.
#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_blocks_that_come_along_is_bounded() {
    use std::sync::atomic::AtomicUsize;
    /// A block that counts itself.
    struct Counted(Bytes, Arc<[AtomicUsize; 2]>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1[0].fetch_sub(1, Ordering::SeqCst);
        }
    }
    struct Lazy(u64, Arc<[AtomicUsize; 2]>);
    impl Source for Lazy {
        fn next(&mut self) -> Result<Option<Offer>> {
            if self.0 == 40 {
                return Ok(None);
            }
            let value = noise(self.0, 60_000);
            self.0 += 1;
            let now = self.1[0].fetch_add(1, Ordering::SeqCst) + 1;
            self.1[1].fetch_max(now, Ordering::SeqCst);
            let key = key_of(&value);
            let value = Bytes::from_owner(Counted(value, self.1.clone()));
            Ok(Some(Offer::here(key, value)))
        }
    }
    let repo = Repo::new().await;
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let source = Box::new(Lazy(0, counts.clone()));
    let options = Options::default().with_memory_bytes(64 << 10);
    let done = repo.try_import(source, &options).await.unwrap();
    assert_eq!(done.stored.blocks, 40);
    let most = counts[1].load(Ordering::SeqCst);
    assert!(most <= 10, "{most} blocks were held at once");
}

/// The index is away when a pack has been paid for, and its answer is lost once more.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_pack_that_is_paid_for_wait_for_the_index() {
    let repo = Repo::new().await;
    let all = blocks(0..25);
    let faults = Arc::new(Faults::none());
    for (n, fault) in [(1, Fault::Before), (2, Fault::Before), (3, Fault::After)] {
        faults.plan(Call::PutRows, n, fault);
    }
    let (index, store) = (Arc::new(MemIndex::default()), Arc::new(MemStore::default()));
    let faulty = FaultyIndex::new(index.clone(), faults.clone(), Arc::<Fuse>::default());
    let clock = Arc::new(SystemClock);
    let target =
        WalrusDatastore::with_parts(&repo.config(""), Arc::new(faulty), store.clone(), clock);
    let target = target.unwrap();
    let source = Box::new(Few(here(&all), None));
    let (options, stop) = (Options::default(), CancellationToken::new());
    let done = import(&target, source, &options, &mut |_| {}, &stop).await;
    assert_eq!(done.unwrap().stored.blocks, 25);
    assert_eq!(faults.struck().values().sum::<u64>(), 3);
    assert_eq!(
        store.puts.load(Ordering::SeqCst),
        3,
        "nothing is paid for twice"
    );
    for (key, value) in &all {
        assert_eq!(target.get(key).await.unwrap().as_ref(), Some(value));
    }
    target.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_datastore_of_a_kubo_repo_is_found() {
    let repo = Repo::new().await;
    let all = blocks(0..5);
    repo.write(&all);
    let config = |entry: &str| {
        let text = format!(
            r#"{{"Datastore":{{"Spec":{{"type":"mount","mounts":[
                {{"mountpoint":"/blocks","type":"measure","prefix":"x","child":{entry}}},
                {{"mountpoint":"/","type":"levelds","path":"datastore"}}]}}}}}}"#
        );
        std::fs::write(repo.dir.path().join("config"), text).unwrap();
    };
    config(r#"{"type":"flatfs","path":"blocks"}"#);
    let source = repo_blocks(repo.dir.path()).unwrap();
    let done = repo.try_import(source, &Options::default()).await.unwrap();
    assert_eq!(done.stored.blocks, 5);
    for (entry, part) in [
        (
            r#"{"type":"flatfs","path":"nowhere"}"#,
            "it has a file SHARDING",
        ),
        (r#"{"type":"flatfs"}"#, "has no path"),
        (r#"{"type":"walrusds"}"#, "--from-config"),
        // The program is not beside a test.
        (
            r#"{"type":"badgerds","path":"badgerds"}"#,
            "walrusds-kubo-datastore",
        ),
        ("{}", "no datastore for /blocks"),
    ] {
        config(entry);
        let Err(error) = repo_blocks(repo.dir.path()) else {
            panic!("{entry}");
        };
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(part), "{error}");
    }
    assert!(repo_blocks(&repo.dir.path().join("no")).is_err());
}

/// A dag-pb node with links to raw blocks.
fn node_of(children: &[(String, Bytes)]) -> (String, Bytes) {
    let mut node = Vec::new();
    for (key, _) in children {
        let hash = data_encoding::BASE32_NOPAD.decode(&key.as_bytes()[1..]);
        let cid = [&[1, 0x55][..], &hash.unwrap()].concat();
        node.extend([0x12, cid.len() as u8 + 2, 0x0a, cid.len() as u8]);
        node.extend(cid);
    }
    node.extend([0x0a, 2, 8, 2]);
    (key_of(&node), node.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blocks_of_a_file_lie_as_they_are_read() {
    let repo = Repo::new().await;
    // Four files of 20 blocks, in the order of the seeds, and blocks of no file.
    let mut all = blocks(1000..1030);
    let mut files = Vec::new();
    for file in 0..4 {
        let leaves = blocks(file * 20..file * 20 + 20);
        let mut leaves: Vec<(String, Bytes)> = leaves.into_iter().collect();
        // Not that of their hashes.
        leaves.reverse();
        let node = node_of(&leaves);
        all.extend(leaves.iter().cloned());
        files.push([vec![node.clone()], leaves].concat());
        all.extend([node]);
    }
    repo.write(&all);
    // A short name, and a block in another directory than its own: they come all the same.
    let stray = blocks(2000..2001).pop_first().unwrap();
    let elsewhere = repo.flatfs.dir().join("QQ");
    std::fs::create_dir_all(&elsewhere).unwrap();
    let file = format!("{}.data", &stray.0[1..]);
    std::fs::write(elsewhere.join(file), &stray.1).unwrap();
    all.extend([stray]);
    // One pack at a time, so that they are stored in their order.
    let one = Options::default().with_memory_bytes(1);
    let done = repo.try_import(repo.files(), &one).await.unwrap();
    assert_eq!((done.stored.blocks, done.left_out()), (115, 0));
    repo.assert_holds(&all).await;
    let inspection = Inspection::open(repo.config(""), repo.dir.path());
    let inspection = inspection.await.unwrap();
    for file in files {
        let keys: Vec<String> = file.into_iter().map(|(key, _)| key).collect();
        let rows = inspection.index().get_many(&keys).await.unwrap();
        let rows: Vec<_> = rows.into_iter().map(Option::unwrap).collect();
        // Within a pack in the order of the links, and in no more packs than needed.
        let packs: Vec<_> = rows.chunk_by(|a, b| a.blob_id == b.blob_id).collect();
        assert!((2..=4).contains(&packs.len()), "{} packs", packs.len());
        for pack in packs {
            assert!(pack.is_sorted_by_key(|row| row.offset), "{pack:?}");
        }
    }
    inspection.close().await.unwrap();
}
