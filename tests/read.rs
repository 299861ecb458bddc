//! How blocks are read: the parts of blobs that the reader requests, for which callers, and how
//! often.

use std::future::Future;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise, Parts};
use tokio::task::JoinHandle;
use walrusds::{ErrorKind, Op, Record, WalrusDatastore};

const KIB: u64 = 1024;
const BLOCK: u64 = 16 * KIB;

/// Codecs of CIDs.
const RAW: u8 = 0x55;
const DAG_PB: u8 = 0x70;

/// Windows of 64 KiB to 1 MiB, 5 MiB on their way.
const BUDGET: u64 = 16 << 20;
const SMALL: &str = r#""blobCacheBytes":16777216,"#;

/// Blocks of a file, side by side in packs, so that their places are easy to tell.
struct File {
    parts: Parts,
    ds: Arc<WalrusDatastore>,
    blocks: Vec<(String, Bytes)>,
}

impl File {
    /// `blocks` of 16 KiB in packs of `per_pack`; the store's record of reads is empty.
    async fn new(extra: &str, blocks: u64, per_pack: usize) -> File {
        File::packed(
            &format!(r#"{extra}"packFormat":"concat","#),
            blocks,
            per_pack,
        )
        .await
    }

    /// The same in packs of the usual format, unless `extra` names another.
    async fn packed(extra: &str, blocks: u64, per_pack: usize) -> File {
        let parts = Parts::default();
        let ds = Arc::new(parts.open(extra));
        let blocks = (0..blocks).map(|n| noise(n, BLOCK as usize));
        let blocks: Vec<_> = blocks.map(|value| (key_of(&value), value)).collect();
        for pack in blocks.chunks(per_pack) {
            let puts = pack.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
            ds.commit(puts.collect()).await.unwrap();
        }
        assert_eq!(
            parts.store.puts.load(SeqCst),
            blocks.len().div_ceil(per_pack)
        );
        File { parts, ds, blocks }
    }

    async fn get(&self, n: usize) {
        let (key, value) = &self.blocks[n];
        assert_eq!(
            self.ds.get(key).await.unwrap().as_ref(),
            Some(value),
            "block {n}"
        );
    }

    fn spawn(&self, n: usize) -> JoinHandle<()> {
        let (ds, (key, value)) = (Arc::clone(&self.ds), self.blocks[n].clone());
        tokio::spawn(async move {
            assert_eq!(ds.get(&key).await.unwrap(), Some(value), "block {n}");
        })
    }

    /// The nodes of the file, each over 174 blocks, and its root, which calls them blocks of this
    /// codec.
    fn nodes(&self, codec: u8) -> (Vec<Bytes>, Bytes) {
        let keys: Vec<String> = self.blocks.iter().map(|(key, _)| key.clone()).collect();
        let nodes = keys.chunks(174).map(|keys| node(RAW, keys));
        let nodes: Vec<Bytes> = nodes.collect();
        let keys: Vec<String> = nodes.iter().map(|n| key_of(n)).collect();
        let root = node(codec, &keys);
        (nodes, root)
    }

    /// Puts them together.
    async fn put_nodes(&self, nodes: &[Bytes], root: &Bytes) {
        let puts = nodes.iter().chain([root]);
        let puts = puts.map(|n| Op::Put(key_of(n), n.clone())).collect();
        self.ds.commit(puts).await.unwrap();
    }

    /// The reads requested from the store: offset and length.
    fn reads(&self) -> Vec<(u64, u64)> {
        let reads = self.parts.store.reads.lock();
        reads
            .iter()
            .map(|(_, offset, len)| (*offset, *len))
            .collect()
    }

    fn counter(&self, name: &str) -> u64 {
        let all = self.ds.metrics();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

#[tokio::test]
async fn random_reads_ask_for_exactly_their_blocks_and_once() {
    let file = File::new(SMALL, 256, 256).await;
    let picks = [7, 3, 200, 100, 5, 250, 30, 9];
    for n in picks {
        file.get(n).await;
    }
    let exact = picks.map(|n| (n as u64 * BLOCK, BLOCK));
    assert_eq!(file.reads(), exact);
    for n in picks {
        file.get(n).await;
    }
    assert_eq!(file.reads(), exact, "from memory");
    assert_eq!(file.counter("read_hits"), 8);
    assert_eq!(file.counter("read_windows"), 0);
}

#[tokio::test]
async fn a_file_is_read_in_few_windows_and_no_byte_twice() {
    let file = File::new(SMALL, 256, 256).await;
    for n in 0..256 {
        file.get(n).await;
    }
    let mut reads = file.reads();
    assert_eq!(reads[..2], [(0, BLOCK), (BLOCK, 64 * KIB)]);
    assert!(reads.len() <= 20, "{reads:?}");
    reads.sort_unstable();
    let mut end = 0;
    for (offset, len) in &reads {
        assert_eq!(*offset, end, "{reads:?}");
        end += len;
    }
    assert_eq!(end, 256 * BLOCK, "to the end and not beyond");
    assert!(reads.iter().any(|r| r.1 >= 512 * KIB), "{reads:?}");
    assert!(file.counter("read_ahead_bytes") > 3 << 20);
    assert_eq!(file.counter("read_wasted_bytes"), 0);
}

#[tokio::test]
async fn readers_of_one_window_share_its_request() {
    let file = File::new(SMALL, 256, 256).await;
    file.get(10).await;
    let held = file.parts.store.hold_reads.write().await;
    let window = file.spawn(11);
    eventually("the window is asked for", || file.reads().len() == 2).await;
    let others: Vec<_> = [12, 13, 14, 12, 13, 11].map(|n| file.spawn(n)).into();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let of_window = |reads: &[(u64, u64)]| {
        let within = |r: &&(u64, u64)| (11 * BLOCK..15 * BLOCK).contains(&r.0);
        reads.iter().filter(within).count()
    };
    assert_eq!(of_window(&file.reads()), 1);
    drop(held);
    window.await.unwrap();
    for other in others {
        other.await.unwrap();
    }
    assert_eq!(of_window(&file.reads()), 1);
}

#[tokio::test]
async fn readers_of_one_block_share_its_request() {
    let file = File::new(SMALL, 256, 256).await;
    let held = file.parts.store.hold_reads.write().await;
    let readers: Vec<_> = (0..64).map(|_| file.spawn(77)).collect();
    eventually("the block is asked for", || !file.reads().is_empty()).await;
    drop(held);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(file.reads(), [(77 * BLOCK, BLOCK)]);
}

#[tokio::test]
async fn single_blocks_on_their_way_are_bounded_by_memory_and_all_come() {
    // Each in a blob of its own.
    let file = File::new(SMALL, 400, 1).await;
    let most = (BUDGET / 4 / BLOCK) as usize;
    let held = file.parts.store.hold_reads.write().await;
    let readers: Vec<_> = (0..400).map(|n| file.spawn(n)).collect();
    eventually("as many are asked for as have room", || {
        file.reads().len() == most
    })
    .await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(file.reads().len(), most);
    drop(held);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(file.reads().len(), 400);
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_request_to_the_others() {
    let file = File::new(SMALL, 256, 256).await;
    file.get(10).await;
    for (first, second) in [(11, 12), (100, 100)] {
        let before = file.reads().len();
        let held = file.parts.store.hold_reads.write().await;
        let leader = file.spawn(first);
        eventually("it is asked for", || file.reads().len() > before).await;
        let follower = file.spawn(second);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        drop(held);
        follower.await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_dropped() {
    let file = File::new(SMALL, 256, 256).await;
    file.get(10).await;
    let running = || file.parts.store.reads_running.load(SeqCst);
    for n in [11, 100] {
        let held = file.parts.store.hold_reads.write().await;
        let reader = file.spawn(n);
        eventually("it is asked for", || running() == 1).await;
        reader.abort();
        eventually("it is dropped", || running() == 0).await;
        drop(held);
        file.get(n).await;
    }
}

#[tokio::test]
async fn a_wrong_block_in_a_window_is_read_by_itself_and_the_others_are_not() {
    let file = File::new(SMALL, 256, 256).await;
    *file.parts.store.wrong_in_windows.lock() = Some(100 * BLOCK + 5);
    for n in 0..256 {
        file.get(n).await;
    }
    let reads = file.reads();
    let alone = reads.iter().filter(|r| r.1 == BLOCK);
    assert_eq!(
        alone.copied().collect::<Vec<_>>(),
        [(0, BLOCK), (100 * BLOCK, BLOCK)]
    );
    assert!(reads.len() <= 21, "{reads:?}");
    file.get(100).await;
    assert_eq!(file.reads().len(), reads.len(), "kept");
}

#[tokio::test]
async fn without_windows_every_block_is_read_by_itself() {
    let file = File::new(SMALL, 64, 64).await;
    file.parts.store.fail_windows.store(true, SeqCst);
    for n in 0..64 {
        file.get(n).await;
    }
    let exact: Vec<_> = (0..64).map(|n| (n * BLOCK, BLOCK)).collect();
    assert_eq!(file.reads(), exact);
    assert_eq!(
        file.counter("read_windows_failed"),
        1,
        "not tried again at once"
    );
}

#[tokio::test]
async fn a_negative_budget_means_no_memory_and_no_windows() {
    let file = File::new(r#""blobCacheBytes":-1,"#, 16, 16).await;
    for n in (0..16).chain(0..16) {
        file.get(n).await;
    }
    let exact = (0..16).chain(0..16).map(|n| (n * BLOCK, BLOCK));
    assert_eq!(file.reads(), exact.collect::<Vec<_>>());
    assert_eq!(file.counter("read_cache_bytes"), 0);
}

#[tokio::test]
async fn memory_stays_within_the_budget() {
    let file = File::new(SMALL, 4096, 512).await;
    for n in 0..4096 {
        file.get(n).await;
        let used = file.counter("read_cache_bytes");
        assert!(used <= BUDGET / 2 + BUDGET / 8, "{used} after block {n}");
    }
    // The same block is read again and again: it is hot.
    for _ in 0..3 {
        for n in 0..300 {
            file.get(n).await;
        }
    }
    let before = file.reads().len();
    for n in 0..300 {
        file.get(n).await;
    }
    assert_eq!(file.reads().len(), before, "all from memory");
    for n in 300..4096 {
        file.get(n).await;
        assert!(file.counter("read_cache_bytes") <= BUDGET);
    }
    let before = file.reads().len();
    file.get(200).await;
    assert_eq!(
        file.reads().len(),
        before,
        "a long file does not drive it out"
    );
}

#[tokio::test]
async fn close_gives_up_what_is_fetched_ahead() {
    let file = File::new(SMALL, 256, 256).await;
    for n in 0..10 {
        file.get(n).await;
    }
    let held = file.parts.store.hold_reads.write().await;
    let running = || file.parts.store.reads_running.load(SeqCst);
    let mut n = 10;
    while running() == 0 {
        let reader = file.spawn(n);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        reader.abort();
        n += 1;
    }
    let closing = tokio::time::timeout(Duration::from_secs(10), file.ds.close());
    closing.await.expect("close hangs").unwrap();
    assert_eq!(running(), 0);
    drop(held);
    let error = file.ds.get(&file.blocks[0].0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

/// A dag-pb node that calls its children blocks of this codec.
fn node(codec: u8, children: &[String]) -> Bytes {
    let mut node = Vec::new();
    let mut field = |tag: u8, bytes: &[u8]| {
        node.push(tag);
        node.push(u8::try_from(bytes.len()).expect("a short field"));
        node.extend_from_slice(bytes);
    };
    for key in children {
        let hash = data_encoding::BASE32_NOPAD.decode(&key.as_bytes()[1..]);
        let cid = [&[0x01, codec][..], &hash.unwrap()].concat();
        let link = [&[0x0a, cid.len() as u8][..], &cid, &[0x12, 0, 0x18, 1]].concat();
        field(0x12, &link);
    }
    field(0x0a, &[0x08, 0x02]);
    node.into()
}

/// Reads the nodes, and then the blocks, each when all that was asked for ahead is here. Returns
/// the blocks that had to be asked for.
async fn read_without_haste(file: &File, nodes: &[Bytes], root: &Bytes) -> Vec<usize> {
    // As Kubo does: a node before its leaves, the next nodes ahead of time.
    assert!(file.ds.get(&key_of(root)).await.unwrap().is_some());
    for node in nodes {
        assert!(file.ds.get(&key_of(node)).await.unwrap().is_some());
    }
    let mut waited = Vec::new();
    for n in 0..file.blocks.len() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let running = || file.parts.store.reads_running.load(SeqCst);
        eventually("what was asked for ahead is here", || running() == 0).await;
        let asked = file.reads().len();
        file.get(n).await;
        let here = (n as u64 % 256) * BLOCK;
        if file.reads()[asked..].iter().any(|r| r.0 == here) {
            waited.push(n);
        }
    }
    waited
}

#[tokio::test]
async fn a_reader_does_not_wait_where_its_file_goes_on_in_another_blob() {
    let file = File::new(SMALL, 1024, 256).await;
    let (nodes, root) = file.nodes(RAW);
    file.put_nodes(&nodes, &root).await;
    // The nodes lie side by side, so the leaves go on with their stream.
    assert_eq!(read_without_haste(&file, &nodes, &root).await, [0]);
    let reads = file.reads().len();
    assert!(reads <= 40, "{reads} for 4 packs and the nodes");
}

#[tokio::test]
async fn nodes_in_the_journal_tell_where_a_file_goes_on() {
    let mut file = File::new(SMALL, 1024, 256).await;
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let idle = r#""packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainTimeoutSeconds":0,"#;
    file.ds.close().await.unwrap();
    let extra = format!(r#"{SMALL}"journalPath":{journal:?},{idle}"#);
    file.ds = Arc::new(file.parts.open(&extra));
    let (nodes, root) = file.nodes(RAW);
    file.put_nodes(&nodes, &root).await;
    assert_eq!(read_without_haste(&file, &nodes, &root).await, [0, 1]);
}

/// Reads as Kubo does: nodes ahead of time, ten at once; leaves in order. Returns the duration if
/// the store alone takes time.
async fn read_as_kubo_does(file: &File, root: &Bytes, nodes: &[Bytes]) -> Duration {
    let started = tokio::time::Instant::now();
    assert!(file.ds.get(&key_of(root)).await.unwrap().is_some());
    for (k, node) in nodes.iter().enumerate() {
        if k % 5 == 0 {
            for node in nodes.iter().skip(k).take(10) {
                let (ds, key) = (Arc::clone(&file.ds), key_of(node));
                tokio::spawn(async move { ds.get(&key).await.map(drop) });
            }
        }
        assert!(file.ds.get(&key_of(node)).await.unwrap().is_some());
        for n in (k * 174)..((k + 1) * 174).min(file.blocks.len()) {
            file.get(n).await;
        }
    }
    started.elapsed()
}

/// A sixteenth of a full-size read: 1 GiB in blocks of 256 KiB and packs of 64 MiB, with the
/// default budget.
#[tokio::test(start_paused = true)]
async fn the_time_that_an_aggregator_takes_is_hidden() {
    let file = File::new(SMALL, 4096, 256).await;
    let (nodes, root) = file.nodes(RAW);
    file.put_nodes(&nodes, &root).await;
    file.parts.store.read_ms.store(150, SeqCst);
    let took = read_as_kubo_does(&file, &root, &nodes).await;
    let reads = file.reads().len();
    // 4 MiB on their way at a time: 2.4 s at best. Block by block: 618 s.
    assert!(took < Duration::from_secs(6), "{took:?}, {reads} requests");
    assert!(reads < 160, "{reads} requests");
}

/// Nodes that are kept on this disk tell the way as well as those that come from Walrus, and of
/// packs with framing between the blocks nothing is fetched twice.
#[tokio::test(start_paused = true)]
async fn nodes_on_this_disk_tell_where_a_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let cache = format!(r#"{SMALL}"cachePath":{cache:?},"cacheBytes":1000000,"#);
    let file = File::packed(&cache, 4096, 256).await;
    let (nodes, root) = file.nodes(DAG_PB);
    file.put_nodes(&nodes, &root).await;
    file.parts.store.read_ms.store(150, SeqCst);
    let took = read_as_kubo_does(&file, &root, &nodes).await;
    let fetched: u64 = file.reads().iter().map(|(_, len)| len).sum();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(fetched < 4096 * (BLOCK + 256), "{fetched}");
    let nodes = file.reads().iter().filter(|(_, len)| *len < BLOCK).count();
    assert_eq!(nodes, 0, "all are here");
}

/// A reader that asks for each node only when it comes to it.
#[tokio::test(start_paused = true)]
async fn nodes_that_follow_are_fetched_together() {
    let file = File::packed(SMALL, 4096, 256).await;
    let (nodes, root) = file.nodes(DAG_PB);
    // Each in a pack of its own, so that none comes with another.
    for node in nodes.iter().chain([&root]) {
        file.ds.put(&key_of(node), node.clone()).await.unwrap();
    }
    file.parts.store.read_ms.store(150, SeqCst);
    let started = tokio::time::Instant::now();
    assert!(file.ds.get(&key_of(&root)).await.unwrap().is_some());
    let mut waited = 0;
    for (k, node) in nodes.iter().enumerate() {
        let asked = tokio::time::Instant::now();
        assert_eq!(
            file.ds.get(&key_of(node)).await.unwrap().as_ref(),
            Some(node)
        );
        waited += u32::from(!asked.elapsed().is_zero());
        for n in (k * 174)..((k + 1) * 174).min(file.blocks.len()) {
            file.get(n).await;
        }
    }
    assert!(waited <= 2, "{waited} nodes came late");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    let single = file.reads().iter().filter(|(_, len)| *len < BLOCK).count();
    assert!(single <= nodes.len() + 1, "{single}: none is fetched twice");
}

/// A future that is dropped before it is done, as by a deadline in C.
async fn briefly<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(5), call)
        .await
        .ok()
}

#[tokio::test]
async fn given_up_reads_leave_nothing_behind() {
    let file = File::new(SMALL, 256, 256).await;
    let held = file.parts.store.hold_reads.write().await;
    for n in 0..200 {
        assert_eq!(
            briefly(file.ds.get(&file.blocks[n].0)).await.map(drop),
            None
        );
    }
    let running = || file.parts.store.reads_running.load(SeqCst);
    drop(held);
    eventually("nothing runs", || running() == 0).await;
    for n in 0..256 {
        file.get(n).await;
    }
}

#[tokio::test]
async fn a_whole_blob_that_came_is_kept_and_read_from() {
    let file = File::new(SMALL, 256, 128).await;
    file.parts.store.sends_whole.store(true, SeqCst);
    for n in (0..128).rev() {
        file.get(n).await;
    }
    assert_eq!(file.reads(), [(127 * BLOCK, BLOCK)]);
    assert!(
        file.counter("read_cache_bytes") < 128 * BLOCK + 64 * KIB,
        "once"
    );
    assert_eq!(file.counter("read_hits"), 127);
    // The second as a window.
    for n in 128..256 {
        file.get(n).await;
    }
    let reads = file.reads();
    assert_eq!(reads[1..], [(0, BLOCK)]);
    assert_eq!(file.counter("walrus_cache_misses"), 2);
}

#[tokio::test]
async fn a_whole_blob_that_is_too_long_is_not_kept() {
    let file = File::new(SMALL, 320, 320).await;
    file.parts.store.sends_whole.store(true, SeqCst);
    let picks = [7, 3, 200, 100];
    for n in picks {
        file.get(n).await;
    }
    assert_eq!(file.reads(), picks.map(|n| (n as u64 * BLOCK, BLOCK)));
}

#[tokio::test]
async fn a_wrong_block_in_a_whole_blob_has_it_read_anew() {
    let file = File::new(SMALL, 64, 64).await;
    file.parts.store.sends_whole.store(true, SeqCst);
    let id = file.parts.store.blobs.lock().keys().next().unwrap().clone();
    let right = file.parts.store.blobs.lock()[&id].clone();
    let mut wrong = right.to_vec();
    wrong[30 * BLOCK as usize] ^= 1;
    file.parts
        .store
        .blobs
        .lock()
        .insert(id.clone(), wrong.into());
    file.get(9).await;
    file.parts.store.blobs.lock().insert(id, right);
    file.get(30).await;
    for n in 0..64 {
        file.get(n).await;
    }
    assert_eq!(file.reads(), [(9 * BLOCK, BLOCK), (30 * BLOCK, BLOCK)]);
}

#[tokio::test]
async fn quilt_members_are_kept() {
    for (extra, hits, misses) in [(SMALL, 3, 2), (r#""blobCacheBytes":-1,"#, 0, 0)] {
        let parts = Parts::default();
        let ds = parts.open(extra);
        let member = noise(1, 5000);
        let row = Record::new("quilt", 0, 5000).with_patch_id(Some("patch".into()));
        parts.index.rows.lock().insert(key_of(&member), row);
        let keep = |value: Bytes| parts.store.blobs.lock().insert("patch".into(), value);
        let get = || async { ds.get(&key_of(&member)).await };
        keep(noise(2, 5000));
        assert_eq!(get().await.unwrap_err().kind(), ErrorKind::Corrupt);
        keep(member.clone());
        for _ in 0..4 {
            assert_eq!(get().await.unwrap(), Some(member.clone()));
        }
        let counter = |name| ds.metrics().iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(counter("walrus_cache_hits"), hits, "{extra}");
        assert_eq!(counter("walrus_cache_misses"), misses, "{extra}");
        ds.close().await.unwrap();
    }
}
