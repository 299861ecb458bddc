//! The write journal, on an index and a blob store in memory.

use std::fs;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise};
use testkit::node::{metric, Node, IDLE};
use walrusds::{ErrorKind, KeyCondition, Op, QueryOptions, WalrusDatastore};

/// Opens a journal that uploads nothing unless told to: by size, by pressure or at close.
async fn open(node: &Node, extra: &str) -> Arc<WalrusDatastore> {
    node.reopen(&format!("{extra}{IDLE}")).await
}

/// Opens, and finds the block.
async fn holds(node: &Node, key: &str, value: &Bytes) {
    let store = open(node, "").await;
    assert_eq!(store.get(key).await.unwrap().unwrap(), *value);
    store.close().await.unwrap();
}

fn uploads(node: &Node) -> usize {
    node.parts.store.puts.load(SeqCst)
}

/// Where `value` ends in a segment.
fn end_of(segment: &[u8], value: &[u8]) -> usize {
    let at = segment.windows(value.len()).position(|w| w == value);
    at.expect("the value is in there") + value.len()
}

async fn keys(store: &WalrusDatastore, options: QueryOptions) -> Vec<String> {
    let mut query = store.query(options).unwrap();
    let mut keys = Vec::new();
    loop {
        let page = query.next_page().await.unwrap();
        if page.is_empty() {
            return keys;
        }
        for entry in page {
            if let Some(value) = entry.value {
                assert_eq!(value.unwrap().len() as u64, entry.size);
            }
            keys.push(entry.key);
        }
    }
}

fn blocks(n: u64) -> Vec<(String, Bytes)> {
    (0..n)
        .map(|i| noise(i, 100 + i as usize % 50))
        .map(|value| (key_of(&value), value))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_local_and_everything_sees_it() {
    let node = Node::new();
    let store = open(&node, "").await;
    let blocks = blocks(100);
    for (key, value) in &blocks[..50] {
        store.put(key, value.clone()).await.unwrap();
    }
    let batch = blocks[50..].iter().cloned();
    store
        .commit(batch.map(|(k, v)| Op::Put(k, v)).collect())
        .await
        .unwrap();
    assert_eq!(uploads(&node), 0);
    for (key, value) in &blocks {
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
        assert!(store.has(key).await.unwrap());
        assert_eq!(store.get_size(key).await.unwrap(), Some(value.len() as u64));
    }
    let mut expected: Vec<String> = blocks.iter().map(|(k, _)| k.clone()).collect();
    expected.sort();
    assert_eq!(keys(&store, QueryOptions::default()).await, expected);
    let usage = store.disk_usage().await.unwrap();
    assert_eq!(usage.blocks, 100);
    store.close().await.unwrap();

    assert_eq!(uploads(&node), 1, "one pack for all of it");
    assert_eq!(node.parts.index.rows.lock().len(), 100);
    assert!(node.segments().is_empty());
    let store = open(&node, "").await;
    for (key, value) in &blocks {
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
    }
    assert_eq!(store.disk_usage().await.unwrap().blocks, 100);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_merges_journal_and_index_in_pages() {
    let node = Node::new();
    let all: Vec<String> = (0..6000).map(|i| format!("/m/{i:05}")).collect();
    let store = open(&node, "").await;
    let every = |step: usize, from: usize| {
        let ops = all.iter().skip(from).step_by(step);
        ops.map(|k| Op::Put(k.clone(), Bytes::from(k.clone())))
            .collect::<Vec<_>>()
    };
    store.commit(every(3, 0)).await.unwrap();
    store.close().await.unwrap();
    let store = open(&node, "").await;
    store.commit(every(3, 1)).await.unwrap();
    store.commit(every(3, 2)).await.unwrap();
    // In both: indexed, and staged anew.
    store.commit(every(9, 0)).await.unwrap();
    let keys_only = QueryOptions::default().with_keys_only(true);
    assert_eq!(keys(&store, keys_only.clone()).await, all);
    let middle = keys_only.clone().with_offset(1000).with_limit(Some(2500));
    assert_eq!(keys(&store, middle).await, all[1000..3500]);
    let backwards = keys_only
        .with_descending(true)
        .with_conditions(vec![KeyCondition::Less(all[4000].clone())])
        .with_offset(10)
        .with_limit(Some(2500));
    let expected: Vec<String> = all[..3990].iter().rev().take(2500).cloned().collect();
    assert_eq!(keys(&store, backwards).await, expected);
    let with_values = QueryOptions::default()
        .with_prefix("/m")
        .with_limit(Some(500));
    assert_eq!(keys(&store, with_values).await, all[..500]);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_puts_share_syncs_and_packs() {
    let node = Node::new();
    let store = open(&node, "").await;
    let mut tasks = Vec::new();
    for (key, value) in blocks(2000) {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            store.put(&key, value).await.unwrap()
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(metric(&store, "journal_syncs") < 1000);
    assert_eq!(metric(&store, "journal_blocks"), 2000);
    store.close().await.unwrap();
    assert_eq!(uploads(&node), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pack_leaves_at_once() {
    let node = Node::new();
    let store = open(&node, r#""packTargetSizeBytes":10000,"#).await;
    for (key, value) in blocks(200) {
        store.put(&key, value).await.unwrap();
    }
    eventually("full packs leave", || {
        metric(&store, "journal_bytes") < 10_000
    })
    .await;
    assert!(uploads(&node) >= 2);
    assert!(
        metric(&store, "journal_blocks") > 0,
        "the rest waits for company"
    );
    store.close().await.unwrap();
    let store_blobs = node.parts.store.blobs.lock();
    assert!(store_blobs.values().all(|b| b.len() <= 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_old_blocks_leave_on_their_own() {
    for setting in ["packIdleFlushSeconds", "packMaxAgeSeconds"] {
        let node = Node::new();
        let soon = IDLE.replace(
            &format!(r#""{setting}":3600"#),
            &format!(r#""{setting}":1"#),
        );
        let store = node.open(&soon);
        store.put("/k", Bytes::from_static(b"v")).await.unwrap();
        eventually(setting, || metric(&store, "journal_blocks") == 0).await;
        assert_eq!(uploads(&node), 1);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    let node = Node::new();
    let store = open(&node, "").await;
    let blocks = blocks(300);
    for (key, value) in &blocks[..100] {
        store.put(key, value.clone()).await.unwrap();
    }
    let batch = blocks[100..].iter().cloned();
    store
        .commit(batch.map(|(k, v)| Op::Put(k, v)).collect())
        .await
        .unwrap();
    store.delete(&blocks[7].0).await.unwrap();
    store.put("/over", Bytes::from_static(b"1")).await.unwrap();
    store.put("/over", Bytes::from_static(b"2")).await.unwrap();
    let after = node.crashed();
    let reopened = open(&after, "").await;
    for (i, (key, value)) in blocks.iter().enumerate() {
        let expected = (i != 7).then_some(value);
        assert_eq!(reopened.get(key).await.unwrap().as_ref(), expected, "{i}");
    }
    assert_eq!(reopened.get("/over").await.unwrap().unwrap(), "2");
    reopened.close().await.unwrap();
    assert_eq!(node.parts.index.rows.lock().len(), 300);
    // The node that was taken for dead closes only now: it stores nothing twice.
    let before = uploads(&node);
    store.close().await.unwrap();
    assert!(
        uploads(&node) <= before + 1,
        "only the key that names no content"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_loses_only_what_was_not_acknowledged() {
    let node = Node::new();
    let store = open(&node, "").await;
    store.put("/kept", noise(1, 300)).await.unwrap();
    let pair = vec![
        Op::Put("/a".into(), noise(2, 300)),
        Op::Put("/b".into(), noise(3, 300)),
    ];
    store.commit(pair).await.unwrap();
    let file = fs::read(&node.segments()[0]).unwrap();
    let (whole, end) = (end_of(&file, &noise(1, 300)), end_of(&file, &noise(3, 300)));
    assert!(whole < end && end < file.len(), "zeroes follow");
    for cut in (whole..=end).step_by(13).chain([end]) {
        for zeroed in [false, true] {
            let after = node.crashed();
            let path = &after.segments()[0];
            let mut torn = file[..cut].to_vec();
            if zeroed {
                torn.resize(file.len(), 0);
            }
            fs::write(path, torn).unwrap();
            let store = open(&after, r#""drainTimeoutSeconds":0,"#).await;
            assert!(store.has("/kept").await.unwrap());
            let both = [
                store.has("/a").await.unwrap(),
                store.has("/b").await.unwrap(),
            ];
            let complete = cut == end;
            assert_eq!(both, [complete, complete], "cut at {cut}, zeroed {zeroed}");
            // The journal goes on from there.
            store.put("/c", noise(4, 10)).await.unwrap();
            store.close().await.unwrap();
            let store = open(&after, r#""drainTimeoutSeconds":0,"#).await;
            assert_eq!(store.get("/kept").await.unwrap().unwrap(), noise(1, 300));
            assert_eq!(store.get("/c").await.unwrap().unwrap(), noise(4, 10));
            store.close().await.unwrap();
        }
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_never_served() {
    let node = Node::new();
    let store = open(&node, "").await;
    let (good, bad) = (noise(1, 5000), noise(2, 5000));
    store.put("/bad", bad.clone()).await.unwrap();
    store.put("/good", good.clone()).await.unwrap();
    // A bit flips in the middle of a value that is staged.
    let path = &node.segments()[0];
    let mut file = fs::read(path).unwrap();
    let at = file.windows(100).position(|w| w == &bad[200..300]).unwrap();
    file[at] ^= 1;
    fs::write(path, &file).unwrap();
    let e = store.get("/bad").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert_eq!(store.get("/good").await.unwrap().unwrap(), good);
    store.close().await.unwrap();
    assert!(!node.parts.index.rows.lock().contains_key("/bad"));
    assert!(node.parts.index.rows.lock().contains_key("/good"));
}

/// A journal of several files: a small one has small files.
const SMALL_FILES: &str = r#""journalMaxBytes":300000,"drainTimeoutSeconds":0,"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_older_file_is_refused_by_name() {
    let node = Node::new();
    let store = open(&node, SMALL_FILES).await;
    for i in 0..20 {
        store.put(&format!("/{i}"), noise(i, 5000)).await.unwrap();
    }
    store.close().await.unwrap();
    let files = node.segments();
    assert!(files.len() > 3);
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("head", |bytes| bytes[20] ^= 1),
        ("all of it", Vec::clear),
        ("its end", |bytes| bytes.truncate(bytes.len() - 6000)),
        ("a frame and the contents", |bytes| {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            bytes[64] ^= 1;
        }),
        ("zeroes in the middle", |bytes| bytes[64..].fill(0)),
    ];
    for (what, damage) in damages {
        let after = node.crashed();
        let file = &after.segments()[1];
        let mut bytes = fs::read(file).unwrap();
        damage(&mut bytes);
        fs::write(file, bytes).unwrap();
        let e = after.try_open(IDLE).err().expect(what);
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{what}");
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(e.message().contains(name), "{what}: {e}");
    }
    // Damaged contents tables are dispensable: the frames are all there.
    let after = node.crashed();
    let file = &after.segments()[1];
    let mut bytes = fs::read(file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, bytes).unwrap();
    let store = open(&after, SMALL_FILES).await;
    for i in 0..20 {
        let value = store.get(&format!("/{i}")).await.unwrap();
        assert_eq!(value, Some(noise(i, 5000)));
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_that_follow_each_other_go_on_in_one_file() {
    let node = Node::new();
    for i in 0..20 {
        let store = open(&node, r#""drainTimeoutSeconds":0,"#).await;
        store.put(&format!("/{i}"), noise(i, 500)).await.unwrap();
        store.close().await.unwrap();
    }
    let files = node.segments();
    assert_eq!(files.len(), 1);
    assert_eq!(fs::metadata(&files[0]).unwrap().len(), 64 << 10, "small");
    let store = open(&node, "").await;
    assert_eq!(metric(&store, "journal_disk_bytes"), 64 << 10);
    for i in 0..20 {
        let value = store.get(&format!("/{i}")).await.unwrap();
        assert_eq!(value, Some(noise(i, 500)));
    }
    store.close().await.unwrap();
    assert_eq!(uploads(&node), 1);
}

/// Segments as the first version of the layout wrote them: a head of 16 bytes, no zeroes, no
/// contents.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_the_first_layout_is_read() {
    let node = Node::new();
    let store = open(&node, SMALL_FILES).await;
    for i in 0..8 {
        store.put(&format!("/{i}"), noise(i, 5000)).await.unwrap();
    }
    store.close().await.unwrap();
    for (i, file) in node.segments().iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        let last = (0..8).filter_map(|i| {
            let value = noise(i, 5000);
            let at = bytes.windows(5000).position(|w| w == value)?;
            Some(at + 5000)
        });
        let frames = &bytes[64..last.max().unwrap()];
        let id = i as u64 + 1;
        let old = [&b"WDSJRNL1"[..], &id.to_le_bytes(), frames].concat();
        fs::write(file, old).unwrap();
    }
    // A torn end, as a crash leaves it.
    let newest = node.segments().pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes.extend_from_slice(&bytes.clone()[16..50]);
    fs::write(&newest, bytes).unwrap();
    for round in 0..2 {
        let store = open(&node, SMALL_FILES).await;
        for i in 0..8 {
            let value = store.get(&format!("/{i}")).await.unwrap();
            assert_eq!(value, Some(noise(i, 5000)), "round {round}");
        }
        store.put("/new", noise(99, 100)).await.unwrap();
        store.close().await.unwrap();
    }
    let store = open(&node, "").await;
    store.close().await.unwrap();
    assert_eq!(node.parts.index.rows.lock().len(), 9);
    assert!(node.segments().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_journal_belongs_to_one_datastore() {
    let node = Node::new();
    let store = open(&node, "").await;
    let e = node.try_open(IDLE).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Locked);
    assert!(e.message().contains("journalPath"), "{e}");
    store.close().await.unwrap();
    drop(store);
    open(&node, "").await.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_wins_over_the_upload_under_way() {
    let node = Node::new();
    node.parts.store.put_ms.store(300, SeqCst);
    let store = open(&node, r#""packTargetSizeBytes":1,"#).await;
    store.put("/gone", noise(1, 50)).await.unwrap();
    store.put("/back", noise(2, 50)).await.unwrap();
    let running = || node.parts.store.puts_running.load(SeqCst);
    eventually("both are on their way", || running() >= 2).await;
    store.delete("/gone").await.unwrap();
    store.delete("/back").await.unwrap();
    store.put("/back", noise(3, 50)).await.unwrap();
    assert!(!store.has("/gone").await.unwrap());
    let after = node.crashed();
    store.close().await.unwrap();
    assert!(!node.parts.index.rows.lock().contains_key("/gone"));
    let store = open(&after, "").await;
    assert!(!store.has("/gone").await.unwrap(), "nor after a kill");
    assert_eq!(store.get("/back").await.unwrap().unwrap(), noise(3, 50));
    store.close().await.unwrap();
}

/// Uploads each block by itself.
const ALONE: &str = r#""packTargetSizeBytes":1,"#;

fn is_indexed(node: &Node, key: &str) -> bool {
    node.parts.index.rows.lock().contains_key(key)
}

/// Puts a block and waits for its row. While the caller holds up reads its blob is not read back,
/// so the journal has it still.
async fn put_and_indexed(node: &Node, store: &WalrusDatastore, value: &Bytes) {
    let key = key_of(value);
    store.put(&key, value.clone()).await.unwrap();
    eventually("it is indexed", || is_indexed(node, &key)).await;
}

/// Deletes a block; its row is removed, and the answer is lost.
async fn delete_without_answer(node: &Node, store: &WalrusDatastore, key: &str) {
    node.parts.index.lose_deletes.store(true, SeqCst);
    let failed = store.delete(key).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Index, "{failed}");
    assert!(!is_indexed(node, key));
    node.parts.index.lose_deletes.store(false, SeqCst);
}

/// Opens once more, and finds the block damaged.
async fn is_damaged(node: &Node, key: &str) {
    let store = open(node, "").await;
    let error = store.get(key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_failed_and_removed_the_row_does_not_lose_the_block() {
    let node = Node::new();
    let (value, key) = (noise(1, 50), key_of(&noise(1, 50)));
    let store = open(&node, ALONE).await;
    let held = node.parts.store.hold_reads.write().await;
    put_and_indexed(&node, &store, &value).await;
    delete_without_answer(&node, &store, &key).await;
    store.put(&key, value.clone()).await.unwrap();
    drop(held);
    store.close().await.unwrap();
    assert!(is_indexed(&node, &key));
    holds(&node, &key, &value).await;
}

/// A block that is damaged in its file is lost if its row is gone, and must be called so.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_failed_does_not_hide_that_a_block_was_lost_before() {
    let node = Node::new();
    let (value, key) = (noise(1, 5000), key_of(&noise(1, 5000)));
    let store = open(&node, ALONE).await;
    let held = node.parts.store.hold_reads.write().await;
    put_and_indexed(&node, &store, &value).await;
    node.damage(&value[200..300]);
    let reader = tokio::spawn({
        let (store, key) = (Arc::clone(&store), key.clone());
        async move { store.get(&key).await }
    });
    let found = || metric(&store, "journal_blocks") == 0;
    eventually("the damage is found", found).await;
    delete_without_answer(&node, &store, &key).await;
    drop(held);
    // It may have the bytes from Walrus: it asked for them before the deletion.
    let _ = reader.await;
    store.close().await.unwrap();
    is_damaged(&node, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_failed_does_not_hide_that_a_block_is_lost_later() {
    let node = Node::new();
    let (value, key) = (noise(1, 5000), key_of(&noise(1, 5000)));
    let store = open(&node, ALONE).await;
    let held = node.parts.store.hold_reads.write().await;
    put_and_indexed(&node, &store, &value).await;
    delete_without_answer(&node, &store, &key).await;
    node.parts.store.fail_puts.store(true, SeqCst);
    let stored = uploads(&node);
    drop(held);
    eventually("it is stored again", || uploads(&node) > stored).await;
    store.put(&key, value.clone()).await.unwrap();
    node.damage(&value[200..300]);
    let error = store.get(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    store.close().await.unwrap();
    is_damaged(&node, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_comes_after_a_deletion_that_was_given_up() {
    let node = Node::new();
    let (value, key) = (noise(1, 50), key_of(&noise(1, 50)));
    let store = open(&node, "").await;
    store.put(&key, value.clone()).await.unwrap();
    node.parts.index.write_ms.store(200, SeqCst);
    let given_up = tokio::time::timeout(Duration::from_millis(20), store.delete(&key));
    assert!(given_up.await.is_err());
    store.put(&key, value.clone()).await.unwrap();
    node.parts.index.write_ms.store(0, SeqCst);
    store.close().await.unwrap();
    holds(&node, &key, &value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_holds_writers_up_and_loses_nothing() {
    let node = Node::new();
    node.parts.store.fail_puts.store(true, SeqCst);
    let store = open(&node, r#""journalMaxBytes":100000,"#).await;
    let blocks: Vec<_> = (0..40).map(|i| noise(i, 10_000)).collect();
    let writing = tokio::spawn({
        let (store, blocks) = (Arc::clone(&store), blocks.clone());
        async move {
            for value in blocks {
                store.put(&key_of(&value), value).await.unwrap();
            }
        }
    });
    eventually("there is no room for another block", || {
        metric(&store, "journal_disk_bytes") > 90_000
    })
    .await;
    assert!(!writing.is_finished());
    assert!(metric(&store, "journal_disk_bytes") <= 100_000);
    // A caller that gives up while it waits leaves nothing behind.
    let impatient = store.put("/impatient", noise(99, 50_000));
    let gave_up = tokio::time::timeout(Duration::from_millis(50), impatient).await;
    assert!(gave_up.is_err());
    // Calls that need no room do not wait for any: deletions, and puts of blocks that are there.
    store.delete("/unknown").await.unwrap();
    let first = &blocks[0];
    store.put(&key_of(first), first.clone()).await.unwrap();
    node.parts.store.fail_puts.store(false, SeqCst);
    tokio::time::timeout(testkit::PATIENCE, writing)
        .await
        .expect("goes on once there is room")
        .unwrap();
    for value in &blocks {
        assert_eq!(
            store.get(&key_of(value)).await.unwrap().as_ref(),
            Some(value)
        );
    }
    assert!(!store.has("/impatient").await.unwrap());
    store.close().await.unwrap();
    assert_eq!(node.parts.index.rows.lock().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_of_publisher_and_index_do_not_fail_writes() {
    let node = Node::new();
    node.parts.store.fail_puts.store(true, SeqCst);
    node.parts.index.fail_puts.store(true, SeqCst);
    let store = open(&node, r#""packTargetSizeBytes":1,"#).await;
    let blocks = blocks(20);
    for (key, value) in &blocks {
        store.put(key, value.clone()).await.unwrap();
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(value));
    }
    node.parts.store.fail_puts.store(false, SeqCst);
    let stored = || node.parts.store.blobs.lock().len();
    eventually("all are uploaded", || stored() == 20).await;
    node.parts.index.fail_puts.store(false, SeqCst);
    store.close().await.unwrap();
    assert_eq!(node.parts.index.rows.lock().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_already_is_neither_journalled_nor_uploaded() {
    let node = Node::new();
    let store = open(&node, "").await;
    let blocks = blocks(50);
    let batch = || blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    store.commit(batch().collect()).await.unwrap();
    store.commit(batch().collect()).await.unwrap();
    assert_eq!(metric(&store, "blocks_known"), 50, "staged already");
    store.close().await.unwrap();
    let before = uploads(&node);
    let store = open(&node, "").await;
    store.commit(batch().collect()).await.unwrap();
    assert_eq!(metric(&store, "blocks_known"), 50, "indexed already");
    assert_eq!(metric(&store, "journal_blocks"), 0);
    store.close().await.unwrap();
    assert_eq!(uploads(&node), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_leaves_what_it_cannot_drain_for_the_next_open() {
    let node = Node::new();
    node.parts.store.put_ms.store(u64::from(u32::MAX), SeqCst);
    let store = open(&node, r#""drainTimeoutSeconds":1,"#).await;
    store.put("/k", noise(1, 100)).await.unwrap();
    // The upload would take weeks longer than the wait of this test.
    store.close().await.unwrap();
    assert_eq!(node.segments().len(), 1);
    node.parts.store.put_ms.store(0, SeqCst);
    let store = open(&node, "").await;
    assert_eq!(store.get("/k").await.unwrap().unwrap(), noise(1, 100));
    store.close().await.unwrap();
    assert!(node.parts.index.rows.lock().contains_key("/k"));
    assert!(node.segments().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_too_large_for_the_publisher_is_split() {
    let node = Node::new();
    node.parts.store.max_body.store(1000, SeqCst);
    let store = open(&node, "").await;
    for (key, value) in blocks(50) {
        store.put(&key, value).await.unwrap();
    }
    store.close().await.unwrap();
    assert_eq!(node.parts.index.rows.lock().len(), 50);
    let blobs = node.parts.store.blobs.lock();
    assert!(blobs.values().all(|b| b.len() <= 1000));
}
