//! How blocks lie in the blobs that are stored: CARv2 files by default, with an index and labels,
//! and blobs of their own for blocks that cannot lie in a file.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise, Parts};
use walrusds::{Op, WalrusDatastore};

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
