//! Blobs of any bytes, out of which the rows of a lost index are made.

use std::sync::atomic::Ordering::SeqCst;

use once_cell::sync::Lazy;
use tokio::runtime::Runtime;
use walrusds::rebuild::rebuild_rows;
use walrusds::{BlobStore as _, StoreOptions};

use super::mem::MemStore;
use super::Input;

static RUNTIME: Lazy<Runtime> = Lazy::new(|| {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap()
});

/// What lies before the first section of a file whose CARv1 has so many bytes.
fn head(data: u64) -> Vec<u8> {
    let numbers = [51, data, data.saturating_add(51)].map(u64::to_le_bytes);
    let characteristics = [&[0x80][..], &[0; 15]].concat();
    let pragma = &b"\x0a\xa1\x67version\x02"[..];
    let data = &b"\x11\xa2\x65roots\x80\x67version\x01"[..];
    [pragma, &characteristics, &numbers.concat(), data].concat()
}

/// The rows that are made of a blob lie within it, one after another, and memory is asked for in
/// proportion to its length.
pub fn rows_of_blobs(data: &[u8]) {
    let mut input = Input(data);
    let (hides_totals, sends_whole, any) = (input.flag(), input.flag(), input.flag());
    let blob = match any {
        true => input.rest().to_vec(),
        false => {
            let sections = input.number();
            let held = sections.min(1000) as usize;
            let head = head(sections.saturating_add(18));
            [&head[..], &vec![0; held], input.rest()].concat()
        }
    };
    let len = blob.len() as u64;
    let work = async {
        let store = MemStore::default();
        store.hides_totals.store(hides_totals, SeqCst);
        store.sends_whole.store(sends_whole, SeqCst);
        let options = StoreOptions::new(1);
        let id = store.store(blob.into(), options).await.unwrap().blob_id;
        rebuild_rows(&store, &id).await
    };
    let Ok(rebuilt) = RUNTIME.block_on(work) else {
        return;
    };
    assert!(rebuilt.blob_len <= len);
    let mut end = 69;
    for row in rebuilt.rows {
        assert!(row.offset >= end, "{} before {end}", row.offset);
        end = row.offset + row.len;
        assert!(row.key.starts_with('/'));
    }
    assert!(end <= len.max(69));
}
