//! The rows of a blob, made again from the blob alone.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use sha2::Digest as _;
use testkit::mem::{key_of, noise, Parts};
use walrusds::rebuild::{rebuild_rows, Rebuilt, RebuiltRow};
use walrusds::{BlobStore as _, ErrorKind, Op, Result, StoreOptions};

async fn rebuilt(parts: &Parts, blob_id: &str) -> Result<Rebuilt> {
    rebuild_rows(&*parts.store, blob_id).await
}

/// The rows of an index, as they are made again of its only blob.
fn rows(parts: &Parts) -> (String, Vec<RebuiltRow>) {
    let rows = parts.index.rows.lock();
    let blob = rows.values().next().unwrap().blob_id.clone();
    assert!(rows.values().all(|row| row.blob_id == blob), "one blob");
    let row = |(key, row): (&String, &walrusds::Record)| RebuiltRow {
        key: key.clone(),
        offset: row.offset as u64,
        len: row.size as u64,
    };
    let mut rows: Vec<_> = rows.iter().map(row).collect();
    rows.sort_by_key(|row| row.offset);
    (blob, rows)
}

/// Blocks of several hash functions and lengths of digests.
fn blocks() -> Vec<(String, Bytes)> {
    let lens = [
        0, 1, 90, 91, 92, 93, 127, 128, 16_347, 16_348, 16_349, 300_000,
    ];
    let values = lens.map(|len| noise(len as u64, len));
    let mut blocks: Vec<_> = values.map(|value| (key_of(&value), value)).into();
    for n in 0..60 {
        let value = noise(1000 + n, 50 + n as usize);
        let digest = sha2::Sha512::digest(&value);
        let len = [64, 32, 20][n as usize % 3];
        let hash = [&[0x13, len as u8], &digest[..len]].concat();
        let blake = blake3::hash(&value);
        let blake = [&[0x1e, 32], &blake.as_bytes()[..]].concat();
        for hash in [hash, blake] {
            let text = data_encoding::BASE32_NOPAD.encode(&hash);
            blocks.push((format!("/{text}"), value.clone()));
        }
    }
    blocks
}

async fn stored(blocks: &[(String, Bytes)], extra: &str) -> Parts {
    let parts = Parts::default();
    let ds = parts.open(extra);
    let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    ds.commit(puts.collect()).await.unwrap();
    ds.close().await.unwrap();
    parts
}

#[tokio::test]
async fn the_rows_of_a_blob_are_those_of_the_lost_index() {
    let parts = stored(&blocks(), "").await;
    let (blob, lost) = rows(&parts);
    let blob_len = parts.store.blobs.lock()[&blob].len() as u64;
    let rebuilt_of = Rebuilt {
        blob_len,
        rows: lost,
    };
    parts.store.reads.lock().clear();
    assert_eq!(rebuilt(&parts, &blob).await.unwrap(), rebuilt_of);
    let reads = parts.store.reads.lock().clone();
    assert_eq!(reads.len(), 2, "{reads:?}");
    let bytes: u64 = reads.iter().map(|read| read.2).sum();
    assert!(bytes < blob_len / 10, "no blocks: {bytes}");

    // Where answers do not tell how long the blob is: a read for each group of the index.
    parts.store.hides_totals.store(true, SeqCst);
    parts.store.reads.lock().clear();
    assert_eq!(rebuilt(&parts, &blob).await.unwrap(), rebuilt_of);
    let reads = parts.store.reads.lock().clone();
    assert!(reads.len() <= 11, "{reads:?}");
    assert!(reads.iter().all(|(_, at, len)| at + len <= blob_len));
    // The usual blob has one group.
    let one = stored(&blocks()[..12], "").await;
    let (blob, lost) = rows(&one);
    one.store.hides_totals.store(true, SeqCst);
    assert_eq!(rebuilt(&one, &blob).await.unwrap().rows, lost);
    assert_eq!(one.store.reads.lock().len(), 3);
    // From an aggregator that does not know ranges.
    one.store.hides_totals.store(false, SeqCst);
    one.store.sends_whole.store(true, SeqCst);
    assert_eq!(rebuilt(&one, &blob).await.unwrap().rows, lost);
}

async fn put(parts: &Parts, bytes: impl Into<Bytes>) -> String {
    let options = StoreOptions::new(1);
    let stored = parts.store.store(bytes.into().into(), options).await;
    stored.unwrap().blob_id
}

#[tokio::test]
async fn what_is_no_file_is_named_as_such() {
    let parts = stored(&blocks()[..12], r#""packFormat":"concat","#).await;
    let (concat, _) = rows(&parts);
    let of = stored(&blocks()[..12], "").await;
    let (id, _) = rows(&of);
    let file = of.store.blobs.lock()[&id].clone();
    // Another program's: padding before the data, roots, or an index without some blocks.
    let changed = |at: usize, byte: u8| {
        let mut other = file.to_vec();
        other[at] = byte;
        other
    };
    let mut ids = vec![concat];
    for other in [changed(27, 52), changed(52, 0xa3), changed(11, 0)] {
        ids.push(put(&parts, other).await);
    }
    for short in [0, 1, 11, 51, 68] {
        if short > 0 {
            ids.push(put(&parts, file.slice(..short)).await);
        }
    }
    for id in ids {
        let e = rebuilt(&parts, &id).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        assert!(e.message().contains(&id), "{e}");
    }
    let e = rebuilt(&parts, "no such blob").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BlobNotFound);
}

/// Rows, if there are any, lie within the file one after another.
fn assert_sound(rebuilt: &Rebuilt, what: &str) {
    let mut end = 69;
    for row in &rebuilt.rows {
        assert!(row.offset >= end, "{what}: {row:?}");
        end = row.offset + row.len;
        assert!(row.key.starts_with('/') && row.key.len() > 35, "{what}");
    }
    assert!(end <= rebuilt.blob_len, "{what}");
}

#[tokio::test]
async fn a_damaged_file_gives_an_error_or_rows_within_it() {
    let parts = stored(&blocks()[..7], "").await;
    let (id, lost) = rows(&parts);
    let file = parts.store.blobs.lock()[&id].clone();
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let index = number(43);
    assert_eq!(rebuilt(&parts, &id).await.unwrap().rows, lost);
    let (mut errors, mut tried) = (0, 0);
    for at in (0..69).chain(index..file.len()) {
        for byte in [0, 1, file[at] ^ 1, file[at] ^ 0x80, 0xff] {
            let mut other = file.to_vec();
            other[at] = byte;
            if byte == file[at] {
                continue;
            }
            let what = format!("byte {at} is {byte}");
            let other = put(&parts, other).await;
            for hides in [false, true] {
                parts.store.hides_totals.store(hides, SeqCst);
                tried += 1;
                match rebuilt(&parts, &other).await {
                    Ok(rebuilt) => assert_sound(&rebuilt, &what),
                    Err(e) => {
                        use ErrorKind::{Corrupt, Unsupported};
                        assert!(matches!(e.kind(), Corrupt | Unsupported), "{what}: {e}");
                        errors += 1;
                    }
                }
            }
        }
    }
    assert!(errors > tried / 5, "{errors} of {tried}");
    for cut in index..file.len() {
        parts.store.hides_totals.store(false, SeqCst);
        let cut = put(&parts, file.slice(..cut)).await;
        let e = rebuilt(&parts, &cut).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    }
    let longer = put(&parts, [&file[..], b"x"].concat()).await;
    let e = rebuilt(&parts, &longer).await.unwrap_err();
    assert!(e.message().contains("after its index"), "{e}");
}

/// Numbers that ask for memory, or for rows that no file of this length holds.
#[tokio::test]
async fn forged_numbers_are_refused() {
    let head = |data: u64, index: u64| {
        let numbers = [51, data, index].map(u64::to_le_bytes).concat();
        let characteristics = [&[0x80][..], &[0; 15]].concat();
        let data = b"\x11\xa2\x65roots\x80\x67version\x01";
        let pragma = &b"\x0a\xa1\x67version\x02"[..];
        [pragma, &characteristics, &numbers, data].concat()
    };
    let entry = |digest: u8, at: u64| [&[digest; 32][..], &at.to_le_bytes()].concat();
    let index = |functions: u32, widths: u32, width: u32, len: u64, entries: &[u8]| {
        let mut out = vec![0x81, 0x08];
        out.extend(functions.to_le_bytes());
        out.extend(0x12_u64.to_le_bytes());
        out.extend(widths.to_le_bytes());
        out.extend(width.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(entries);
        out
    };
    let data = 18 + 200;
    let file = |index: Vec<u8>| [head(data, 51 + data), vec![0; 200], index].concat();
    let two = [entry(1, 18), entry(2, 118)].concat();
    let parts = Parts::default();
    let good = put(&parts, file(index(1, 1, 40, 80, &two))).await;
    let good = rebuilt(&parts, &good).await.unwrap();
    let places: Vec<_> = good.rows.iter().map(|row| (row.offset, row.len)).collect();
    // 100 bytes: a length of one byte, a CID of 36, and the rest.
    assert_eq!(places, [(51 + 18 + 37, 63), (51 + 118 + 37, 63)]);

    let swapped = [entry(2, 18), entry(1, 118)].concat();
    let same = [entry(1, 18), entry(2, 18)].concat();
    let beyond = [entry(1, 18), entry(2, 219)].concat();
    let late = [entry(1, 19), entry(2, 118)].concat();
    let near = [entry(1, 18), entry(2, 50)].concat();
    let many = entry(1, 18).repeat(10);
    let forged = [
        file(index(u32::MAX, 1, 40, 80, &two)),
        file(index(1, u32::MAX, 40, 80, &two)),
        file(index(1, 1, u32::MAX, 80, &two)),
        file(index(1, 1, 40, u64::MAX, &two)),
        file(index(1, 1, 40, u64::MAX - 39, &two)),
        file(index(1, 1, 8, 80, &two)),
        file(index(1, 1, 0, 80, &two)),
        file(index(1, 0, 40, 80, &two)),
        file(index(0, 1, 40, 80, &two)),
        file(index(1, 1, 40, 81, &two)),
        file(index(1, 1, 40, 80, &swapped)),
        file(index(1, 1, 40, 80, &same)),
        file(index(1, 1, 40, 80, &beyond)),
        file(index(1, 1, 40, 80, &late)),
        file(index(1, 1, 40, 80, &near)),
        file(index(1, 1, 40, 400, &many)),
        head(u64::MAX, 50),
        head(17, 68),
        head(i64::MAX as u64, 51 + i64::MAX as u64),
        head(1 << 40, 51 + (1 << 40)),
        head(data, 51 + data),
    ];
    for (n, forged) in forged.into_iter().enumerate() {
        let forged = put(&parts, forged).await;
        for hides in [false, true] {
            parts.store.hides_totals.store(hides, SeqCst);
            let e = rebuilt(&parts, &forged).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{n}: {e}");
        }
    }
}
