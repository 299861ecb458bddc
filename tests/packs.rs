//! How blocks lie in the blobs that are stored: CARv2 files by default, with an index and labels,
//! and blobs of their own for blocks that cannot lie in a file; quilts where that is asked for and
//! cheap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use testkit::eventually;
use testkit::flatfs;
use testkit::mem::{key_of, noise, Parts};
use testkit::postgres::{Postgres, GO_TABLE};
use tokio_util::sync::CancellationToken;
use walrus_devnet::{
    read_quilt, BlobId, Devnet, FaultAction, FaultRule, Geometry, Op as Request, Options as Walrus,
};
use walrusds::admin::check::{Cursor, Data, Options as CheckOptions};
use walrusds::admin::repair::{repair, CopyFrom, Fate, Options as RepairOptions};
use walrusds::datastore::Inspection;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::log::Level;
use walrusds::rebuild::List;
use walrusds::{
    rebuild_index, Blob, Config, ErrorKind, Index, Op, RebuildFrom, Record, WalrusDatastore,
};

const PRAGMA: &[u8] = b"\x0a\xa1\x67version\x02";
const RAW: u8 = 0x55;
const DAG_PB: u8 = 0x70;

/// A stored CARv2 file, read by its sections, and by its index. Panics if it is none.
struct Car {
    len: u64,
    /// Codec, multihash and value of each section.
    sections: Vec<(u8, Vec<u8>, Bytes)>,
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn varint(bytes: &[u8], at: &mut usize) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

impl Car {
    fn read(blob: &Bytes) -> Car {
        assert!(blob.starts_with(PRAGMA), "no CARv2");
        assert_eq!(blob[11..27], *b"\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let (data, index) = (number(blob, 35), number(blob, 43));
        assert_eq!((number(blob, 27), index), (51, 51 + data));
        assert_eq!(
            blob[51..69],
            *b"\x11\xa2\x65roots\x80\x67version\x01",
            "the CARv1 begins with a header without roots"
        );
        let mut sections = Vec::new();
        let mut begins = BTreeMap::new();
        let mut at = 69;
        while at < index {
            let begin = at - 51;
            let len = varint(blob, &mut at);
            let end = at + len;
            assert_eq!(blob[at], 1, "CIDv1");
            let codec = blob[at + 1];
            let hash = &blob[at + 2..at + 36];
            assert_eq!(hash[..2], [0x12, 0x20]);
            begins.insert(begin, hash[2..].to_vec());
            sections.push((codec, hash.to_vec(), blob.slice(at + 36..end)));
            at = end;
        }
        assert_eq!(at, index, "the sections fill the CARv1");
        // One function, one width.
        assert_eq!(blob[index..index + 6], [0x81, 0x08, 1, 0, 0, 0]);
        assert_eq!(number(blob, index + 6), 0x12);
        assert_eq!(blob[index + 14..index + 22], [1, 0, 0, 0, 40, 0, 0, 0]);
        assert_eq!(number(blob, index + 22), 40 * sections.len());
        let entries: Vec<&[u8]> = blob[index + 30..].chunks(40).collect();
        assert_eq!(entries.len(), sections.len());
        assert!(entries.is_sorted());
        for entry in entries {
            assert_eq!(begins[&number(entry, 32)], entry[..32]);
        }
        Car {
            len: blob.len() as u64,
            sections,
        }
    }

    fn codec_of(&self, value: &[u8]) -> u8 {
        let found = self.sections.iter().find(|(_, _, block)| block == value);
        found.expect("a section with this block").0
    }
}

/// The blobs that are files, by what they hold, and the others.
fn blobs(parts: &Parts) -> (Vec<Car>, Vec<Bytes>) {
    let blobs = parts.store.blobs.lock();
    let (cars, others): (Vec<_>, Vec<_>) = blobs
        .values()
        .cloned()
        .partition(|blob| blob.starts_with(PRAGMA));
    (cars.iter().map(Car::read).collect(), others)
}

/// Settings for a node that writes directly, or has a journal in a directory.
fn ways(dir: &std::path::Path) -> [(&'static str, String); 2] {
    let journal = dir.join("journal");
    let journalled = format!(
        r#""journalPath":{:?},"packIdleFlushSeconds":1,"#,
        journal.to_str().unwrap()
    );
    [("directly", String::new()), ("journal", journalled)]
}

/// Commits, and waits until all is stored.
async fn commit(ds: &WalrusDatastore, parts: &Parts, blocks: &[(String, Bytes)]) {
    let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    ds.commit(puts.collect()).await.unwrap();
    let indexed = || {
        let rows = parts.index.rows.lock();
        blocks.iter().all(|(key, _)| rows.contains_key(key))
    };
    eventually("the blocks are indexed", indexed).await;
}

/// The blocks as they are read through a datastore that remembers nothing.
async fn assert_reads(parts: &Parts, blocks: &[(String, Bytes)]) {
    let ds = parts.open("");
    for (key, value) in blocks {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
    ds.close().await.unwrap();
}

fn named(values: impl IntoIterator<Item = Bytes>) -> Vec<(String, Bytes)> {
    let values = values.into_iter();
    values.map(|value| (key_of(&value), value)).collect()
}

#[tokio::test]
async fn a_pack_is_a_file_that_says_which_blocks_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    for (way, extra) in ways(dir.path()) {
        let parts = Parts::default();
        let ds = parts.open(&extra);
        let lens = [0, 1, 91, 92, 93, 5000, 300_000];
        let blocks = named(lens.map(|len| noise(len as u64, len)));
        commit(&ds, &parts, &blocks).await;
        ds.close().await.unwrap();
        let (cars, others) = blobs(&parts);
        assert_eq!((cars.len(), others.len()), (1, 0), "{way}");
        let mut held: Vec<Bytes> = cars[0].sections.iter().map(|s| s.2.clone()).collect();
        let mut values: Vec<Bytes> = blocks.iter().map(|b| b.1.clone()).collect();
        held.sort();
        values.sort();
        assert_eq!(held, values, "{way}");
        assert!(cars[0].sections.iter().all(|s| s.0 == RAW), "{way}");
        assert_reads(&parts, &blocks).await;
    }
}

#[tokio::test]
async fn a_link_tells_the_label_of_a_block() {
    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() < 128);
        [&[tag, bytes.len() as u8], bytes].concat()
    }
    let multihash = |block: &[u8]| {
        let text = &key_of(block)[1..];
        data_encoding::BASE32_NOPAD.decode(text.as_bytes()).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    for (way, extra) in ways(dir.path()) {
        let leaf = Bytes::from(field(0x0a, b"\x08\x02\x12\x04leaf\x18\x04"));
        let raw = Bytes::from_static(b"a raw leaf");
        let lied = Bytes::from_static(b"no node, but a link says so");
        let unlinked = Bytes::from(field(0x0a, b"\x08\x01"));
        // CIDv0 names dag-pb; CIDv1 says which codec.
        let link = |cid: &[u8]| field(0x12, &field(0x0a, cid));
        let node = [
            link(&multihash(&leaf)),
            link(&[&[1, RAW][..], &multihash(&raw)].concat()),
            link(&[&[1, DAG_PB][..], &multihash(&lied)].concat()),
        ];
        let node = Bytes::from(node.concat());
        let root = Bytes::from(link(&[&[1, DAG_PB][..], &multihash(&node)].concat()));
        let blocks = named([&leaf, &raw, &lied, &unlinked, &node, &root].map(Bytes::clone));

        let parts = Parts::default();
        let ds = parts.open(&extra);
        commit(&ds, &parts, &blocks).await;
        ds.close().await.unwrap();
        let (cars, _) = blobs(&parts);
        assert_eq!(cars.len(), 1, "{way}");
        let labels = [&leaf, &raw, &lied, &unlinked, &node, &root].map(|b| cars[0].codec_of(b));
        let expected = [DAG_PB, RAW, RAW, RAW, DAG_PB, RAW];
        assert_eq!(labels, expected, "{way}");
        assert_reads(&parts, &blocks).await;
    }
}

/// One block that cannot lie in a file does not keep the others out of it.
#[tokio::test]
async fn keys_that_are_no_multihashes_travel_apart() {
    let dir = tempfile::tempdir().unwrap();
    for (way, extra) in ways(dir.path()) {
        let parts = Parts::default();
        let ds = parts.open(&extra);
        let mut blocks = named((0..20).map(|n| noise(n, 1000)));
        let good = blocks.len();
        let of_value = key_of(b"a value");
        blocks.extend([
            ("/a/b".to_owned(), Bytes::from_static(b"other")),
            ("/local/filesroot".to_owned(), Bytes::from_static(b"root")),
            (format!("/blocks{of_value}"), Bytes::from_static(b"a value")),
        ]);
        commit(&ds, &parts, &blocks).await;
        ds.close().await.unwrap();
        let (cars, others) = blobs(&parts);
        assert_eq!((cars.len(), others.len()), (1, 1), "{way}");
        assert_eq!(cars[0].sections.len(), good, "{way}");
        assert_eq!(others[0].len(), 5 + 4 + 7, "{way}");
        assert_reads(&parts, &blocks).await;
    }
}

#[tokio::test]
async fn no_file_is_longer_than_the_ceiling_of_a_pack() {
    const CEILING: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    for (way, extra) in ways(dir.path()) {
        // Where the format takes as many bytes as the blocks, and where it takes few.
        for (count, len) in [(2000, 80), (40, 9900)] {
            let parts = Parts::default();
            let extra = format!(r#"{extra}"packTargetSizeBytes":{CEILING},"#);
            let ds = parts.open(&extra);
            let blocks = named((0..count).map(|n| noise(n, len)));
            commit(&ds, &parts, &blocks).await;
            ds.close().await.unwrap();
            let (cars, _) = blobs(&parts);
            let lens: Vec<u64> = cars.iter().map(|car| car.len).collect();
            assert!(lens.iter().all(|len| *len <= CEILING), "{way}: {lens:?}");
            let full = lens.iter().filter(|len| **len > CEILING * 8 / 10).count();
            assert!(full >= 3, "{way}: {lens:?}");
            assert_reads(&parts, &blocks).await;
        }
    }
}

/// A publisher whose limit is lower than the ceiling of a pack.
#[tokio::test]
async fn a_file_that_is_too_large_is_cut_into_files() {
    let parts = Parts::default();
    parts.store.max_body.store(20_000, SeqCst);
    let ds = parts.open("");
    let blocks = named((0..50).map(|n| noise(n, 1000)));
    commit(&ds, &parts, &blocks).await;
    let (cars, others) = blobs(&parts);
    assert!(cars.len() >= 3 && others.is_empty());
    assert!(cars.iter().all(|car| car.len <= 20_000));
    assert_reads(&parts, &blocks).await;
}

/// A block that a publisher takes only by itself.
#[tokio::test]
async fn a_block_that_is_too_large_for_a_file_travels_without_one() {
    let parts = Parts::default();
    parts.store.max_body.store(20_000, SeqCst);
    let ds = parts.open("");
    let blocks = named([19_990, 15_000].map(|len| noise(len as u64, len)));
    commit(&ds, &parts, &blocks).await;
    let (cars, others) = blobs(&parts);
    assert_eq!((cars.len(), others.len()), (1, 1));
    assert_eq!(others[0].len(), 19_990);
    assert_reads(&parts, &blocks).await;
}

#[tokio::test]
async fn concat_is_one_block_after_another() {
    let parts = Parts::default();
    let ds = parts.open(r#""packFormat":"concat","#);
    let blocks = named((0..20).map(|n| noise(n, 1000)));
    commit(&ds, &parts, &blocks).await;
    let (cars, others) = blobs(&parts);
    assert_eq!((cars.len(), others.len()), (0, 1));
    assert_eq!(others[0].len(), 20_000);
    assert_reads(&parts, &blocks).await;
}

/// A local Walrus of 100 shards, where 33 blocks of 20,000 bytes fill the 67 columns of a quilt.
async fn walrus() -> Devnet {
    let options = Walrus {
        shards: 100,
        first_epoch: 10,
        publisher_concurrency: 0,
        ..Walrus::default()
    };
    Devnet::start(options).await.unwrap()
}

/// Columns that the blocks fill, and columns that stay empty.
const FULL: std::ops::Range<u64> = 0..33;
const HALF_EMPTY: std::ops::Range<u64> = 100..140;

fn of_one_size(seeds: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    named(seeds.map(|seed| noise(seed, 20_000)))
}

/// A repo whose node stores quilts.
struct Repo {
    dir: tempfile::TempDir,
    spec: serde_json::Value,
}

impl Repo {
    fn new(net: &Devnet) -> Repo {
        Repo {
            dir: tempfile::tempdir().unwrap(),
            spec: serde_json::json!({
                "publisherURL": net.url(), "aggregatorURL": net.url(), "indexPath": "index.sqlite",
                "nShards": 100, "packFormat": "quilt", "epochDurationSeconds": 3600,
            }),
        }
    }

    /// In epochs of two seconds, one of which is bought at a time.
    fn aging(self) -> Self {
        self.with("epochs", 1)
            .with("blobCacheBytes", -1)
            .with("epochDurationSeconds", 2)
            .with("renewIntervalSeconds", 1)
    }

    fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.spec[key] = value.into();
        self
    }

    fn config(&self) -> Config {
        Config::from_json(&self.spec.to_string()).unwrap()
    }

    async fn open(&self) -> WalrusDatastore {
        let opened = WalrusDatastore::open(self.config(), self.dir.path());
        opened.await.unwrap()
    }

    async fn index(&self) -> Box<dyn Index> {
        match self.spec["postgresURL"].as_str() {
            Some(url) => {
                let options = PostgresOptions::new(url, "walrus_index");
                Box::new(PostgresIndex::open(options).await.unwrap())
            }
            None => {
                let path = self.dir.path().join("index.sqlite");
                let options = SqliteOptions::new(path, "walrus_index");
                Box::new(SqliteIndex::open(options).await.unwrap())
            }
        }
    }

    /// The rows of blocks, and the entries of their blobs.
    async fn rows(&self, blocks: &[(String, Bytes)]) -> Vec<(Record, Blob)> {
        let index = self.index().await;
        let keys: Vec<String> = blocks.iter().map(|(key, _)| key.clone()).collect();
        let rows = index.get_many(&keys).await.unwrap();
        let rows: Vec<Record> = rows.into_iter().map(Option::unwrap).collect();
        let ids: BTreeSet<String> = rows.iter().map(|row| row.blob_id.clone()).collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let blobs = index.blobs(&ids).await.unwrap().into_iter();
        let blobs: BTreeMap<String, Blob> = ids.into_iter().zip(blobs.flatten()).collect();
        index.close().await.unwrap();
        let entries = rows.iter().map(|row| blobs[&row.blob_id].clone());
        let entries: Vec<Blob> = entries.collect();
        rows.into_iter().zip(entries).collect()
    }

    /// The blob of a block.
    async fn blob_of(&self, block: &(String, Bytes)) -> BlobId {
        let rows = self.rows(std::slice::from_ref(block)).await;
        rows[0].0.blob_id.parse().unwrap()
    }

    /// Reads blocks through a datastore that remembers nothing.
    async fn reads(&self, blocks: &[(String, Bytes)]) {
        let ds = self.open().await;
        for (key, value) in blocks {
            assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value), "{key}");
            let len = ds.get_size(key).await.unwrap();
            assert_eq!(len, Some(value.len() as u64), "{key}");
        }
        ds.close().await.unwrap();
    }
}

fn puts(blocks: &[(String, Bytes)]) -> Vec<Op> {
    let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    puts.collect()
}

/// The CID of a raw block, as `ipfs` prints it.
fn cid(key: &str) -> String {
    let hash = data_encoding::BASE32_NOPAD.decode(&key.as_bytes()[1..]);
    let cid = [&[1, RAW], &hash.unwrap()[..]].concat();
    let digits = data_encoding::BASE32_NOPAD.encode(&cid);
    format!("b{}", digits.to_lowercase())
}

async fn fetch(http: &reqwest::Client, url: String) -> Bytes {
    let answer = http.get(&url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200, "{url}");
    answer.bytes().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_aggregator_gives_a_block_of_a_quilt_by_its_cid() {
    let server = Postgres::shared();
    let own = server.url(&server.database());
    let database = server.database();
    server.execute(&database, GO_TABLE);
    let of_go = server.url(&database);
    let http = reqwest::Client::builder().tls_backend_preconfigured(testkit::no_tls());
    let http = http.build().unwrap();
    for url in [None, Some(own), Some(of_go)] {
        let net = walrus().await;
        let mut repo = Repo::new(&net);
        if let Some(url) = url {
            repo = repo.with("postgresURL", url);
            repo.spec.as_object_mut().unwrap().remove("indexPath");
        }
        let (cheap, dear) = (of_one_size(FULL), of_one_size(HALF_EMPTY));
        let ds = repo.open().await;
        ds.commit(puts(&cheap)).await.unwrap();
        ds.commit(puts(&dear)).await.unwrap();
        ds.close().await.unwrap();
        assert_eq!(net.blobs().len(), 2);
        assert!(net
            .content(&repo.blob_of(&dear[0]).await)
            .unwrap()
            .starts_with(PRAGMA));

        let id = repo.blob_of(&cheap[0]).await;
        let quilt = net.content(&id).unwrap();
        let members = read_quilt(Geometry::new(100).unwrap(), &quilt).expect("a quilt");
        let names: BTreeSet<String> = members.into_iter().map(|m| m.identifier).collect();
        assert_eq!(names, cheap.iter().map(|(key, _)| cid(key)).collect());
        for ((key, value), (row, entry)) in cheap.iter().zip(repo.rows(&cheap).await) {
            let by_name = format!("{}/v1/blobs/by-quilt-id/{id}/{}", net.url(), cid(key));
            assert_eq!(fetch(&http, by_name).await, value);
            let patch = row.patch_id.expect("a patch ID");
            let by_patch = format!("{}/v1/blobs/by-quilt-patch-id/{patch}", net.url());
            assert_eq!(fetch(&http, by_patch).await, value);
            assert_eq!((row.offset, row.size), (0, value.len() as i64));
            assert_eq!(entry.format, "quilt");
            assert_eq!(entry.size, quilt.len() as i64);
            assert!(!entry.digest.is_empty());
        }
        for (row, entry) in repo.rows(&dear).await {
            assert_eq!((row.patch_id, &*entry.format), (None, "car"));
        }
        repo.reads(&cheap).await;
        repo.reads(&dear).await;
        // A block that was deleted and put again is read where it lies now.
        let ds = repo.open().await;
        ds.delete(&cheap[0].0).await.unwrap();
        ds.put("/other", Bytes::from_static(b"value"))
            .await
            .unwrap();
        ds.put(&cheap[0].0, cheap[0].1.clone()).await.unwrap();
        ds.close().await.unwrap();
        repo.reads(&cheap).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_of_quilts_is_filled_again() {
    let net = walrus().await;
    let repo = Repo::new(&net);
    let all = [of_one_size(FULL), of_one_size(HALF_EMPTY)].concat();
    let ds = repo.open().await;
    ds.commit(puts(&all[..FULL.end as usize])).await.unwrap();
    ds.commit(puts(&all[FULL.end as usize..])).await.unwrap();
    ds.close().await.unwrap();
    let lost = repo.rows(&all).await;
    let blobs = serde_json::to_string(&net.blobs()).unwrap();
    let from = RebuildFrom::List(List::read(blobs.as_bytes()).unwrap());
    let again = Repo::new(&net);
    let report = rebuild_index(again.config(), again.dir.path(), from, &mut |_| {}).await;
    let report = report.unwrap();
    assert!(report.left_out.is_empty(), "{report:?}");
    for ((lost, of), (found, entry)) in lost.iter().zip(again.rows(&all).await) {
        let place = |row: &Record| {
            (
                row.blob_id.clone(),
                row.patch_id.clone(),
                row.offset,
                row.size,
            )
        };
        assert_eq!(place(&found), place(lost));
        assert_eq!((entry.format, entry.size), (of.format.clone(), of.size));
    }
    again.reads(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quilt_is_renewed_as_the_same_blob() {
    let net = walrus().await;
    let repo = Repo::new(&net).aging();
    let blocks = of_one_size(FULL);
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    for _ in 0..3 {
        eventually("the blob lives beyond the next epoch", || {
            net.blobs()[0].end_epoch > net.epoch() + 1
        })
        .await;
        net.advance_epoch(1);
    }
    for (key, value) in &blocks {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    ds.close().await.unwrap();
    assert_eq!(net.blobs().len(), 1, "the same blob all the time");
    assert!(repo
        .rows(&blocks)
        .await
        .iter()
        .all(|(row, _)| row.patch_id.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_stores_quilts() {
    let net = walrus().await;
    let repo = Repo::new(&net)
        .with("journalPath", "journal")
        .with("packIdleFlushSeconds", 1);
    let blocks = of_one_size(FULL);
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    ds.close().await.unwrap();
    let rows = repo.rows(&blocks).await;
    assert!(rows
        .iter()
        .all(|(row, entry)| row.patch_id.is_some() && entry.format == "quilt"));
    repo.reads(&blocks).await;
}

/// More blocks wait than a pack takes: it is cut where its blocks fill their columns, and the
/// others travel in the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_pack_is_cut_for_a_quilt() {
    for journal in [false, true] {
        let net = walrus().await;
        // 35 blocks would fit.
        let mut repo = Repo::new(&net).with("packTargetSizeBytes", 706_000);
        if journal {
            repo = repo.with("journalPath", "journal");
        }
        let blocks = of_one_size(0..99);
        let ds = repo.open().await;
        ds.commit(puts(&blocks)).await.unwrap();
        ds.close().await.unwrap();
        let rows = repo.rows(&blocks).await;
        let quilts = rows.iter().filter(|(_, entry)| entry.format == "quilt");
        assert_eq!(quilts.count(), 99, "journal {journal}");
        assert_eq!(net.blobs().len(), 3, "journal {journal}");
        repo.reads(&blocks).await;
    }
}

/// A repair that has more blocks than a pack takes cuts it, too, so that they are quilts again.
#[tokio::test(flavor = "multi_thread")]
async fn repaired_packs_are_cut_for_quilts() {
    let net = walrus().await;
    let repo = Repo::new(&net).with("packTargetSizeBytes", 706_000);
    let blocks = of_one_size(0..99);
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    ds.close().await.unwrap();
    for blob in net.blobs() {
        assert!(net.delete_blob(&blob.blob_id));
    }
    let other = tempfile::tempdir().unwrap();
    flatfs::write(other.path(), blocks.iter().map(|(key, value)| (key, value)));
    let from = vec![CopyFrom::parse(other.path().to_str().unwrap())];
    for apply in [false, true] {
        let check = CheckOptions::default().with_from(Cursor::new(Data::Probe));
        let options = RepairOptions::default()
            .with_check(check)
            .with_apply(apply)
            .with_from(from.clone());
        let (config, dir, stop) = (repo.config(), repo.dir.path(), CancellationToken::new());
        let repaired = repair(config, dir, &options, &mut |_| {}, &stop).await;
        let repaired = repaired.unwrap();
        assert_eq!(repaired.of(Fate::StoredAgain).blocks, 99);
        assert_eq!(repaired.packs, 3, "applied: {apply}");
    }
    let rows = repo.rows(&blocks).await;
    assert!(rows.iter().all(|(_, entry)| entry.format == "quilt"));
    repo.reads(&blocks).await;
}

/// Small blocks leave most of their columns empty. A quilt of them wastes nothing all the same, as
/// long as none of them is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_quilt_that_is_full_is_not_wasteful() {
    let net = walrus().await;
    let repo = Repo::new(&net);
    let blocks = named((0..50).map(|seed| noise(seed, 100)));
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    let (_, entry) = repo.rows(&blocks).await.remove(0);
    assert_eq!(entry.format, "quilt");
    assert!(entry.size > 4 * 50 * 100, "{}", entry.size);
    let index = repo.index().await;
    index.count("", 10).await.unwrap();
    index.close().await.unwrap();
    let inspection = Inspection::open(repo.config(), repo.dir.path());
    let inspection = inspection.await.unwrap();
    assert_eq!(inspection.sparse(50).await.unwrap().blobs, []);
    let status = walrusds::admin::status(&inspection).await.unwrap();
    let judged = (status.ledger.waste_bytes, status.ledger.waste_percent);
    assert_eq!(judged, (0, None));
    for (key, _) in &blocks[5..] {
        ds.delete(key).await.unwrap();
    }
    let sparse = inspection.sparse(50).await.unwrap();
    assert_eq!((sparse.blobs.len(), sparse.live_blocks), (1, 5));
    inspection.close().await.unwrap();
    ds.close().await.unwrap();
}

/// The head of a small file is more than its block. A repack would make the same file again, and
/// pay for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_that_is_full_is_not_wasteful() {
    let net = walrus().await;
    let repo = Repo::new(&net).with("packFormat", "car");
    let blocks = named((0..3).map(|seed| noise(seed, 4)));
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    let (_, entry) = repo.rows(&blocks).await.remove(0);
    assert_eq!(entry.format, "car");
    let inspection = Inspection::open(repo.config(), repo.dir.path());
    let inspection = inspection.await.unwrap();
    assert_eq!(inspection.sparse(50).await.unwrap().blobs, []);
    for (key, _) in &blocks[1..] {
        ds.delete(key).await.unwrap();
    }
    assert_eq!(inspection.sparse(40).await.unwrap().live_blocks, 1);
    inspection.close().await.unwrap();
    ds.close().await.unwrap();
}

/// The blocks are stored in another format, once and for the next packs too, and an operator is
/// told.
#[tokio::test(flavor = "multi_thread")]
async fn no_quilts_are_made_for_a_network_of_another_size() {
    let net = walrus().await;
    let repo = Repo::new(&net).with("nShards", 1000);
    let blocks = of_one_size(0..40);
    let ds = repo.open().await;
    ds.commit(puts(&blocks[..20])).await.unwrap();
    ds.commit(puts(&blocks[20..])).await.unwrap();
    let errors: Vec<_> = std::iter::from_fn(|| ds.next_log_line())
        .filter(|line| line.level == Level::Error && line.message.contains("packFormat"))
        .map(|line| line.message)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for word in ["nShards", "1000", "\"car\""] {
        assert!(errors[0].contains(word), "{word}: {errors:?}");
    }
    ds.close().await.unwrap();
    assert_eq!(net.blobs().len(), 3, "one was of no use");
    let rows = repo.rows(&blocks).await;
    assert!(rows.iter().all(|(row, _)| row.patch_id.is_none()));
    repo.reads(&blocks).await;
}

/// No row points at a quilt that was not read yet, and another try does not pay for it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_quilt_is_read_back_before_its_rows_are_written() {
    let net = walrus().await;
    let repo = Repo::new(&net).with("maxRetries", 1);
    let blocks = of_one_size(FULL);
    let ds = repo.open().await;
    net.set_faults(vec![
        FaultRule::new(FaultAction::Internal).on([Request::QuiltPatch])
    ]);
    let failed = ds.commit(puts(&blocks)).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Walrus);
    assert!(failed.message().contains("quilt"), "{failed}");
    assert!(failed.is_retryable());
    assert!(!ds.has(&blocks[0].0).await.unwrap());
    net.clear_faults();
    ds.commit(puts(&blocks)).await.unwrap();
    ds.close().await.unwrap();
    assert_eq!(net.stats().newly_created, 1);
    repo.reads(&blocks).await;
}

/// A deletable blob is paid for at each store. So a quilt that cannot be read yet is not sent again
/// by another try, and the ledger has what the answer to its store told.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletable_quilt_that_cannot_be_read_yet_is_paid_for_once() {
    let net = walrus().await;
    let repo = Repo::new(&net)
        .with("maxRetries", 0)
        .with("deletable", true);
    let blocks = of_one_size(FULL);
    let ds = repo.open().await;
    net.set_faults(vec![
        FaultRule::new(FaultAction::Internal).on([Request::QuiltPatch])
    ]);
    for _ in 0..3 {
        let failed = ds.commit(puts(&blocks)).await.unwrap_err();
        assert!(failed.message().contains("quilt"), "{failed}");
    }
    net.clear_faults();
    ds.commit(puts(&blocks)).await.unwrap();
    ds.close().await.unwrap();
    assert_eq!((net.stats().puts, net.stats().newly_created), (1, 1));
    for (row, entry) in repo.rows(&blocks).await {
        assert!(row.patch_id.is_some() && row.end_epoch > 0);
        assert!(entry.cost > 0 && entry.encoded_size > 0, "{entry:?}");
        assert!(!entry.object_id.is_empty() && !entry.digest.is_empty());
    }
    repo.reads(&blocks).await;
}

/// Members of a quilt are read one by one, and travel on in another pack.
#[tokio::test(flavor = "multi_thread")]
async fn the_live_blocks_of_a_sparse_quilt_are_carried_over() {
    let net = walrus().await;
    let repo = Repo::new(&net).aging();
    let blocks = of_one_size(FULL);
    let ds = repo.open().await;
    ds.commit(puts(&blocks)).await.unwrap();
    let old = net.blobs()[0].blob_id;
    let (live, dead) = blocks.split_at(3);
    for (key, _) in dead {
        ds.delete(key).await.unwrap();
    }
    let moved = async {
        while repo.blob_of(&live[0]).await == old {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let moved = tokio::time::timeout(testkit::PATIENCE, moved).await;
    moved.expect("the blocks are carried over");
    for (key, value) in live {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    ds.close().await.unwrap();
    repo.reads(live).await;
}
