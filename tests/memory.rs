//! The memory held for read blocks, counted where it is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;

use bytes::Bytes;
use testkit::mem::{key_of, noise, Parts};
use walrusds::{Op, WalrusDatastore};

/// Bytes that are allocated now.
static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), SeqCst);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counter(ds: &WalrusDatastore, name: &str) -> usize {
    let all = ds.metrics();
    all.iter().find(|(n, _)| *n == name).unwrap().1 as usize
}

async fn fill(ds: &WalrusDatastore, blocks: u64, len: usize) -> Vec<String> {
    let blocks = (0..blocks).map(|n| noise(n, len));
    let puts: Vec<(String, Bytes)> = blocks.map(|value| (key_of(&value), value)).collect();
    let keys = puts.iter().map(|(key, _)| key.clone()).collect();
    let puts = puts.into_iter().map(|(key, value)| Op::Put(key, value));
    ds.commit(puts.collect()).await.unwrap();
    keys
}

/// One test, as all of the process is counted.
#[tokio::test]
async fn memory_for_blocks_is_what_is_counted() {
    // Parts handed out of a window do not hold the window.
    let parts = Parts::default();
    let ds = Arc::new(parts.open(r#""blobCacheBytes":67108864,"#));
    let keys = fill(&ds, 8192, 4096).await;
    let mut kept = Vec::new();
    let blobs: usize = parts.store.blobs.lock().values().map(Bytes::len).sum();
    let before = HELD.load(SeqCst) - blobs;
    for (n, key) in keys.iter().enumerate() {
        let value = ds.get(key).await.unwrap().unwrap();
        if n % 64 == 0 {
            kept.push(value);
        }
    }
    assert!(counter(&ds, "read_windows") > 0);
    ds.close().await.unwrap();
    drop(ds);
    drop(parts);
    let held = HELD.load(SeqCst).saturating_sub(before);
    assert!(held < 8 << 20, "{held} bytes for {} blocks", kept.len());
    drop(kept);

    // Small blocks that were read alone out of a large buffer hold their own size in memory, not
    // the buffer.
    let parts = Parts::default();
    let ds = parts.open(r#""blobCacheBytes":67108864,"#);
    let keys = fill(&ds, 40_000, 512).await;
    let blobs: usize = parts.store.blobs.lock().values().map(Bytes::len).sum();
    let before = HELD.load(SeqCst) - blobs;
    for key in keys.iter().step_by(8) {
        ds.get(key).await.unwrap().unwrap();
    }
    parts.store.blobs.lock().clear();
    let held = HELD.load(SeqCst).saturating_sub(before);
    let counted = counter(&ds, "read_cache_bytes");
    assert!(counted >= 5000 * 512);
    // Beside it the rows, and the store's record of reads.
    assert!(held < 2 * counted, "{held} bytes, {counted} counted");
    ds.close().await.unwrap();
    drop(ds);
    drop(parts);

    // Dag-pb nodes with a link of 1 MiB each.
    let parts = Parts::default();
    let ds = parts.open(r#""blobCacheBytes":-1,"#);
    let before = HELD.load(SeqCst);
    for n in 0..50 {
        let field = |tag: u8, bytes: &[u8]| {
            let mut out = vec![tag];
            let mut len = bytes.len();
            while len > 0x7f {
                out.push(len as u8 | 0x80);
                len >>= 7;
            }
            out.push(len as u8);
            out.extend_from_slice(bytes);
            out
        };
        let digest = noise(n, 1 << 20);
        // CIDv1, dag-pb, SHA2-256, and 1 MiB of digest.
        let cid = [&[0x01, 0x70, 0x12, 0x80, 0x80, 0x40][..], &digest].concat();
        let value: Bytes = field(0x12, &field(0x0a, &cid)).into();
        ds.put(&key_of(&value), value).await.unwrap();
        parts.store.blobs.lock().clear();
    }
    let held = HELD.load(SeqCst).saturating_sub(before);
    assert!(held < 48 << 20, "{held} bytes after 50 nodes of 1 MiB");
    ds.close().await.unwrap();
}
