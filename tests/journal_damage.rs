//! Damage, owners and room of the write journal, through the datastore.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use testkit::mem::{key_of, noise, Parts};
use testkit::node::{damage, files, log, metric, Node, BUSY, IDLE};
use testkit::{eventually, PATIENCE};
use walrusds::log::Level;
use walrusds::{Config, ErrorKind, Op, Record, WalrusDatastore};

fn lines(ds: &WalrusDatastore) -> Vec<(Level, String)> {
    let lines = log(ds).into_iter();
    lines.map(|line| (line.level, line.message)).collect()
}

fn has_error(lines: &[(Level, String)], words: &[&str]) -> bool {
    lines
        .iter()
        .any(|(level, text)| *level == Level::Error && words.iter().all(|word| text.contains(word)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_holds_nothing_up_and_can_be_put_again() {
    let node = Node::new();
    let small = r#""journalMaxBytes":300000,"packTargetSizeBytes":20000,"#;
    let ds = node.open(&format!("{small}{BUSY}"));
    node.parts.store.fail_puts.store(true, SeqCst);
    let bad = noise(0, 5000);
    let key = key_of(&bad);
    ds.put(&key, bad.clone()).await.unwrap();
    node.damage(&bad[200..300]);
    node.parts.store.fail_puts.store(false, SeqCst);
    // Many times what the journal holds: it becomes free again and again.
    for i in 1..400 {
        let value = noise(i, 5000);
        let key = key_of(&value);
        let put = ds.put(&key, value);
        tokio::time::timeout(PATIENCE, put)
            .await
            .expect("a writer hangs")
            .unwrap();
    }
    eventually("everything else leaves", || {
        node.parts.index.rows.lock().len() == 399
    })
    .await;
    assert!(has_error(&lines(&ds), &[&key, "damaged"]));
    let error = ds.get(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains(&key), "{error}");
    // The answer is not required: Kubo may ask before it puts.
    assert!(!ds.has(&key).await.unwrap());
    eventually("its file is set aside", || node.put_aside().len() == 1).await;
    ds.put(&key, bad.clone()).await.unwrap();
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), bad);
    ds.close().await.unwrap();
    assert!(node.parts.index.rows.lock().contains_key(&key));
    assert!(node.segments().is_empty());
    // The next start names the file for the operator. It is no error: nothing is lost any more.
    let ds = node.open(BUSY);
    let said = lines(&ds);
    assert!(!has_error(&said, &[".damaged"]), "{said:?}");
    let words = [".damaged", "walrusds repair"];
    let named = said
        .iter()
        .find(|(_, line)| words.iter().all(|w| line.contains(w)));
    assert_eq!(
        named.map(|(level, _)| *level),
        Some(Level::Warn),
        "{said:?}"
    );
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), bad);
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_does_not_rely_on_a_damaged_copy() {
    let node = Node::new();
    let ds = node.open(IDLE);
    let bad = noise(0, 5000);
    let key = key_of(&bad);
    ds.put(&key, bad.clone()).await.unwrap();
    node.damage(&bad[200..300]);
    ds.put(&key, bad.clone()).await.unwrap();
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), bad);
    // Also after a kill, and on Walrus.
    let copy = node.crashed();
    let again = copy.open(IDLE);
    assert_eq!(again.get(&key).await.unwrap().unwrap(), bad);
    again.close().await.unwrap();
    ds.close().await.unwrap();
    assert!(node.parts.index.rows.lock().contains_key(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_that_is_deleted_is_gone() {
    let node = Node::new();
    let ds = node.open(IDLE);
    let bad = noise(0, 5000);
    let key = key_of(&bad);
    ds.put(&key, bad.clone()).await.unwrap();
    node.damage(&bad[200..300]);
    assert_eq!(ds.get(&key).await.unwrap_err().kind(), ErrorKind::Corrupt);
    ds.delete(&key).await.unwrap();
    assert_eq!(ds.get(&key).await.unwrap(), None);
    ds.close().await.unwrap();
    assert!(node.segments().is_empty());
}

/// Waits until the damaged block is settled, and checks that the node and its next start have it.
async fn assert_saved(node: &Node, ds: Arc<WalrusDatastore>, value: &Bytes) {
    let key = key_of(value);
    eventually("it is settled", || {
        let mut lines = lines(&ds).into_iter();
        lines.any(|(_, line)| line.contains(&key) && line.contains("nothing is lost"))
    })
    .await;
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), *value);
    assert!(ds.has(&key).await.unwrap());
    ds.close().await.unwrap();
    let again = node.open(IDLE);
    assert!(!has_error(&lines(&again), &[&key]), "{:?}", lines(&again));
    assert_eq!(again.get(&key).await.unwrap().unwrap(), *value);
    again.close().await.unwrap();
}

/// A node with a block that was damaged, and found so, after its pack was sent and before the index
/// takes its row.
async fn damaged_after_it_was_sent() -> (Node, Arc<WalrusDatastore>, Bytes) {
    let node = Node::new();
    node.parts.index.fail_puts.store(true, SeqCst);
    let ds = node.open(BUSY);
    let value = noise(0, 5000);
    let key = key_of(&value);
    ds.put(&key, value.clone()).await.unwrap();
    eventually("it is on Walrus and not in the index", || {
        node.parts.index.put_calls.load(SeqCst) > 0
    })
    .await;
    node.damage(&value[200..300]);
    assert_eq!(ds.get(&key).await.unwrap_err().kind(), ErrorKind::Corrupt);
    (node, ds, value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_damaged_after_it_was_sent_is_indexed() {
    let (node, ds, value) = damaged_after_it_was_sent().await;
    node.parts.index.fail_puts.store(false, SeqCst);
    assert_saved(&node, ds, &value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_damaged_before_its_blob_is_read_back_is_whole_afterwards() {
    let node = Node::new();
    let held = node.parts.store.hold_reads.write().await;
    let ds = node.open(BUSY);
    let value = noise(0, 5000);
    let key = key_of(&value);
    ds.put(&key, value.clone()).await.unwrap();
    eventually("its row is written", || {
        !node.parts.index.rows.lock().is_empty()
    })
    .await;
    node.damage(&value[200..300]);
    let reader = tokio::spawn({
        let (ds, key) = (Arc::clone(&ds), key.clone());
        async move { ds.get(&key).await }
    });
    eventually("the damage is found", || has_error(&lines(&ds), &[&key])).await;
    drop(held);
    assert_eq!(reader.await.unwrap().unwrap().unwrap(), value);
    assert_saved(&node, ds, &value).await;
}

/// A damaged block that was sent is not brought back where its key was deleted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_wins_over_a_damaged_block_that_was_sent() {
    let (node, ds, value) = damaged_after_it_was_sent().await;
    let key = key_of(&value);
    ds.delete(&key).await.unwrap();
    node.parts.index.fail_puts.store(false, SeqCst);
    ds.close().await.unwrap();
    assert!(node.parts.index.rows.lock().is_empty());
    let again = node.open(IDLE);
    assert_eq!(again.get(&key).await.unwrap(), None);
    again.close().await.unwrap();
}

/// A node that ended after its row was written and before its blob was read back, and that blob's
/// ID.
async fn ended_before_the_read_back(value: &Bytes) -> (Node, String) {
    let node = Node::new();
    let held = node.parts.store.hold_reads.write().await;
    let ds = node.open(BUSY);
    ds.put(&key_of(value), value.clone()).await.unwrap();
    eventually("the row is written and the blob asked for", || {
        let store = &node.parts.store;
        !node.parts.index.rows.lock().is_empty() && !store.reads.lock().is_empty()
    })
    .await;
    let copy = node.crashed();
    drop(ds);
    drop(held);
    copy.parts.store.reads.lock().clear();
    let blob_id = node.parts.index.rows.lock()[&key_of(value)].blob_id.clone();
    (copy, blob_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_from_before_the_open_is_no_proof_that_its_blob_can_be_read() {
    let value = noise(0, 5000);
    let key = key_of(&value);
    let (node, blob_id) = ended_before_the_read_back(&value).await;
    let blob = node.parts.store.blobs.lock().remove(&blob_id).unwrap();
    let ds = node.open(BUSY);
    eventually("the blob is asked for", || {
        !node.parts.store.reads.lock().is_empty()
    })
    .await;
    assert_eq!(metric(&ds, "journal_blocks"), 1);
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), value);
    assert_eq!(node.parts.store.puts.load(SeqCst), 1, "it is paid for once");
    node.parts.store.blobs.lock().insert(blob_id, blob);
    eventually("the block leaves", || metric(&ds, "journal_blocks") == 0).await;
    assert_eq!(node.parts.store.puts.load(SeqCst), 1);
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_quilt_needs_no_proof_by_a_journal() {
    let node = Node::new();
    let ds = node.open(IDLE);
    let value = noise(0, 5000);
    let key = key_of(&value);
    ds.put(&key, value.clone()).await.unwrap();
    let node = node.crashed();
    drop(ds);
    // As a node of the Go plugin writes it.
    let row = Record::new("quilt", 0, 5000).with_patch_id(Some("patch".into()));
    node.parts.index.rows.lock().insert(key, row);
    let ds = node.open(BUSY);
    eventually("the block leaves", || metric(&ds, "journal_blocks") == 0).await;
    assert_eq!(node.parts.store.puts.load(SeqCst), 0);
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_heals_a_block_does_not_rely_on_its_row() {
    let value = noise(0, 5000);
    let key = key_of(&value);
    let (node, blob_id) = ended_before_the_read_back(&value).await;
    node.damage(&value[200..300]);
    node.parts.store.blobs.lock().remove(&blob_id);
    let ds = node.open(&format!(r#""drainTimeoutSeconds":0,{BUSY}"#));
    ds.put(&key, value.clone()).await.unwrap();
    eventually("the blob is asked for", || {
        !node.parts.store.reads.lock().is_empty()
    })
    .await;
    assert_eq!(metric(&ds, "journal_blocks"), 1);
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), value);
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_loses_one_block_of_a_write() {
    for which in 0..11 {
        let node = Node::new();
        let blocks: Vec<_> = (0..11).map(|i| noise(i, 3000)).collect();
        let ds = node.open(IDLE);
        let puts = blocks.iter().map(|b| Op::Put(key_of(b), b.clone()));
        ds.commit(puts.collect()).await.unwrap();
        let copy = node.crashed();
        copy.damage(&blocks[which][1000..1100]);
        let again = copy.open(IDLE);
        for (i, block) in blocks.iter().enumerate() {
            let got = again.get(&key_of(block)).await;
            match i == which {
                true => assert!(!matches!(got, Ok(Some(_))), "{i}"),
                false => assert_eq!(got.unwrap().as_ref(), Some(block), "{i} of {which}"),
            }
        }
        let said = lines(&again);
        assert!(
            said.iter()
                .any(|(_, text)| text.contains(&key_of(&blocks[which]))),
            "{said:?}"
        );
        again.close().await.unwrap();
        ds.close().await.unwrap();
    }
}

/// A flipped bit in the head of a write takes that write's blocks, and none of those behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_head_does_not_take_later_writes_along() {
    let node = Node::new();
    let blocks: Vec<_> = (0..20).map(|i| noise(i, 3000)).collect();
    let ds = node.open(IDLE);
    for block in &blocks {
        ds.put(&key_of(block), block.clone()).await.unwrap();
    }
    let copy = node.crashed();
    // The key stands in the table behind the head.
    copy.damage(key_of(&blocks[4]).as_bytes());
    let again = copy.open(IDLE);
    for (i, block) in blocks.iter().enumerate().filter(|(i, _)| *i != 4) {
        assert_eq!(
            again.get(&key_of(block)).await.unwrap().as_ref(),
            Some(block),
            "{i}"
        );
    }
    assert!(has_error(&lines(&again), &["damaged", ".segment"]));
    // It goes on with the same file.
    let more = noise(99, 3000);
    again.put(&key_of(&more), more.clone()).await.unwrap();
    let third = copy.crashed();
    let last = third.open(IDLE);
    assert_eq!(last.get(&key_of(&more)).await.unwrap().unwrap(), more);
    for ds in [ds, again, last] {
        ds.close().await.unwrap();
    }
}

// ---------------------------------------------------------------------------------------------
// Room

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_gets_its_turn_beside_small_writers() {
    let node = Node::new();
    node.parts.store.put_ms.store(20, SeqCst);
    let small = r#""journalMaxBytes":400000,"packTargetSizeBytes":50000,"workers":1,"#;
    let ds = node.open(&format!("{small}{BUSY}"));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..8u64)
        .map(|writer| {
            let (ds, stop) = (ds.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(SeqCst) {
                    n += 1;
                    let value = noise(writer << 32 | n, 5000);
                    ds.put(&key_of(&value), value).await.unwrap();
                }
            })
        })
        .collect();
    eventually("the journal is full", || {
        metric(&ds, "journal_disk_bytes") > 380_000
    })
    .await;
    for round in 0..3u64 {
        let batch = (0..60).map(|i| noise(1 << 50 | round << 8 | i, 5000));
        let batch = batch.map(|v| Op::Put(key_of(&v), v)).collect();
        let done = tokio::time::timeout(PATIENCE, ds.commit(batch)).await;
        done.expect("the batch starves").unwrap();
    }
    stop.store(true, SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_says_why_and_lets_known_blocks_pass() {
    let node = Node::new();
    let known = noise(1, 100);
    let known_key = key_of(&known);
    {
        let ds = node.open(BUSY);
        ds.put(&known_key, known.clone()).await.unwrap();
        ds.close().await.unwrap();
    }
    node.parts.store.fail_puts.store(true, SeqCst);
    let full = r#""journalMaxBytes":60000,"journalFullSeconds":2,"packTargetSizeBytes":20000,"drainTimeoutSeconds":0,"#;
    let ds = node.open(&format!("{full}{BUSY}"));
    let mut refused = None;
    for i in 10..100 {
        let value = noise(i, 5000);
        if let Err(e) = ds.put(&key_of(&value), value).await {
            refused = Some(e);
            break;
        }
    }
    let error = refused.expect("a full journal refuses in the end");
    assert!(error.is_retryable(), "{error}");
    for word in ["journalFullSeconds", "bytes", "publisher is down"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    assert!(has_error(&lines(&ds), &["full", "publisher is down"]));
    // As Kubo does at each start, also in a process of its own.
    ds.put(&known_key, known.clone()).await.unwrap();
    ds.close().await.unwrap();
    let ds = node.open(&format!("{full}{BUSY}"));
    ds.put(&known_key, known.clone()).await.unwrap();
    // A caller's deadline is kept.
    let value = noise(500, 5000);
    let key = key_of(&value);
    let put = tokio::time::timeout(Duration::from_millis(200), ds.put(&key, value));
    assert!(put.await.is_err());
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nothing_reaches_walrus_is_an_error_in_the_log() {
    let node = Node::new();
    node.parts.store.fail_puts.store(true, SeqCst);
    let ds = node.open(BUSY);
    let value = noise(1, 1000);
    ds.put(&key_of(&value), value).await.unwrap();
    let mut said = Vec::new();
    eventually("it is said", || {
        said.extend(lines(&ds));
        has_error(&said, &["publisher is down", "1 blocks"])
    })
    .await;
    node.parts.store.fail_puts.store(false, SeqCst);
    eventually("that it is over, too", || {
        said.extend(lines(&ds));
        said.iter()
            .any(|(level, text)| *level == Level::Info && text.contains("again"))
    })
    .await;
    ds.close().await.unwrap();
}

/// What waits for room was not begun, and room may be long in coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_for_room_does_not_hold_up_the_end() {
    let node = Node::new();
    node.parts.store.fail_puts.store(true, SeqCst);
    let config = r#""journalMaxBytes":200000,"drainTimeoutSeconds":0,"#;
    let ds = node.open(config);
    let kept = noise(1, 150_000);
    ds.put(&key_of(&kept), kept.clone()).await.unwrap();
    let waiting = {
        let (ds, value) = (Arc::clone(&ds), noise(2, 150_000));
        tokio::spawn(async move { ds.put(&key_of(&value), value).await })
    };
    let mut told = Vec::new();
    eventually("a write waits", || {
        told.extend(lines(&ds));
        has_error(&told, &["wait for room"])
    })
    .await;
    let closed = tokio::time::timeout(PATIENCE, ds.close()).await;
    closed.expect("it waits for room").unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    drop(ds);
    let ds = node.open(config);
    assert_eq!(ds.get(&key_of(&kept)).await.unwrap().unwrap(), kept);
    ds.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Owners

async fn open_repo(repo: &Path, index: &Path, extra: &str) -> walrusds::Result<WalrusDatastore> {
    let config = format!(
        r#"{{{extra}"drainTimeoutSeconds":0,"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1","indexPath":"{}"}}"#,
        index.display()
    );
    WalrusDatastore::open(Config::from_json(&config).unwrap(), repo).await
}

/// Makes a repo with a block in its journal `j`; returns key and value of the block, and the
/// setting that names the journal, for any repo.
async fn repo_with_a_block(repo: &Path) -> (String, Bytes, String) {
    let with = format!(r#""journalPath":"{}","#, repo.join("j").display());
    let value = noise(1, 1000);
    let key = key_of(&value);
    let ds = open_repo(repo, Path::new("i.sqlite"), r#""journalPath":"j","#);
    let ds = ds.await.unwrap();
    ds.put(&key, value.clone()).await.unwrap();
    ds.close().await.unwrap();
    (key, value, with)
}

fn refused(opened: walrusds::Result<WalrusDatastore>, words: &[&str]) {
    let Err(error) = opened else {
        panic!("it was opened");
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_belongs_to_one_table() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (key, value, with) = repo_with_a_block(a.path()).await;
    let own = Path::new("i.sqlite");

    // Another repo's index, and another table of the same one.
    refused(
        open_repo(b.path(), own, &with).await,
        &["journalPath", "1 blocks", "walrus_index"],
    );
    let table = format!(r#"{with}"table":"other","#);
    refused(
        open_repo(a.path(), own, &table).await,
        &["journalPath", "other"],
    );
    // Removed, or misspelt.
    refused(
        open_repo(a.path(), own, "").await,
        &["journalPath", "1 blocks", "j"],
    );
    let misspelt = format!(r#""journalPath":"{}","#, a.path().join("jj").display());
    refused(
        open_repo(a.path(), own, &misspelt).await,
        &["journalPath", "1 blocks"],
    );

    // The index may be moved: it is the same one.
    fs::rename(a.path().join("i.sqlite"), a.path().join("moved.sqlite")).unwrap();
    let ds = open_repo(a.path(), Path::new("moved.sqlite"), &with)
        .await
        .unwrap();
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), value);
    // An empty journal has no owner, and may be abandoned.
    ds.delete(&key).await.unwrap();
    ds.close().await.unwrap();
    let ds = open_repo(b.path(), own, &with).await.unwrap();
    ds.close().await.unwrap();
    let ds = open_repo(a.path(), Path::new("moved.sqlite"), "")
        .await
        .unwrap();
    ds.close().await.unwrap();
}

/// A block that was accepted for one table and is damaged is unknown to another table, which may
/// ask other nodes for it.
#[tokio::test(flavor = "multi_thread")]
async fn damage_does_not_pass_to_the_next_table() {
    for looked_at in [true, false] {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (key, value, with) = repo_with_a_block(a.path()).await;
        let own = Path::new("i.sqlite");
        damage(&a.path().join("j"), &value);
        if looked_at {
            let ds = open_repo(a.path(), own, &with).await.unwrap();
            ds.get(&key).await.unwrap_err();
            ds.close().await.unwrap();
        }
        let ds = open_repo(b.path(), own, &with).await.unwrap();
        assert_eq!(ds.get(&key).await.unwrap(), None, "{looked_at}");
        let lines = lines(&ds);
        assert!(has_error(&lines, &["another index", &key]), "{lines:?}");
        ds.close().await.unwrap();
        let ds = open_repo(b.path(), own, &with).await.unwrap();
        assert_eq!(ds.get(&key).await.unwrap(), None, "{looked_at}");
        ds.close().await.unwrap();
    }
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = all.map(|p| (p.clone(), fs::read(&p).unwrap())).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_table_is_not_touched() {
    let repo = tempfile::tempdir().unwrap();
    repo_with_a_block(repo.path()).await;
    let journal = repo.path().join("j");
    fs::remove_file(journal.join("README.txt")).unwrap();
    let before = contents(&journal);
    let other = r#""journalPath":"j","table":"other","#;
    refused(
        open_repo(repo.path(), Path::new("i.sqlite"), other).await,
        &["journalPath", "other"],
    );
    assert!(contents(&journal) == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_out_of_reach_for_a_while_is_not_forgotten() {
    let repo = tempfile::tempdir().unwrap();
    repo_with_a_block(repo.path()).await;
    let (journal, away) = (repo.path().join("j"), repo.path().join("away"));
    fs::rename(&journal, &away).unwrap();
    // The disk is not mounted.
    for extra in ["", r#""journalPath":"k","#] {
        let ds = open_repo(repo.path(), Path::new("i.sqlite"), extra).await;
        ds.unwrap().close().await.unwrap();
    }
    fs::rename(&away, &journal).unwrap();
    refused(
        open_repo(repo.path(), Path::new("i.sqlite"), "").await,
        &["journalPath", "1 blocks"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_of_another_table_stops_no_start() {
    let repo = tempfile::tempdir().unwrap();
    repo_with_a_block(repo.path()).await;
    let segments = files(&repo.path().join("j"), "segment");
    let older = &segments[0];
    let newer = older.with_file_name("00000000000000ff.segment");
    fs::copy(older, newer).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(older).unwrap();
    cut.set_len(500).unwrap();
    let other = r#""table":"other","#;
    let ds = open_repo(repo.path(), Path::new("i.sqlite"), other);
    let ds = Arc::new(ds.await.unwrap());
    assert!(has_error(&lines(&ds), &["walrus_index", "cannot be read"]));
    ds.close().await.unwrap();
    let own = open_repo(repo.path(), Path::new("i.sqlite"), "").await;
    assert_eq!(own.err().unwrap().kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_remembered_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join(std::ffi::OsStr::from_bytes(b"r\xff"));
    fs::create_dir(&repo).unwrap();
    repo_with_a_block(&repo).await;
    refused(
        open_repo(&repo, Path::new("i.sqlite"), "").await,
        &["journalPath", "1 blocks"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_journals_that_cannot_be_read_is_told_and_kept() {
    let repo = tempfile::tempdir().unwrap();
    let list = repo.path().join("walrusds-journals");
    fs::create_dir(&list).unwrap();
    let ds = open_repo(repo.path(), Path::new("i.sqlite"), r#""journalPath":"k","#);
    let ds = Arc::new(ds.await.unwrap());
    assert!(has_error(
        &lines(&ds),
        &["walrusds-journals", "cannot be read"]
    ));
    ds.close().await.unwrap();
    assert!(list.is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_given_up_on_purpose_is_no_hindrance() {
    let repo = tempfile::tempdir().unwrap();
    let own = Path::new("i.sqlite");
    let ds = open_repo(repo.path(), own, r#""journalPath":"walrusds-journal","#)
        .await
        .unwrap();
    ds.put("/k", Bytes::from_static(b"v")).await.unwrap();
    ds.close().await.unwrap();
    // The engine looks into the default place although no key names it.
    let _ = fs::remove_file(repo.path().join("walrusds-journals"));
    refused(open_repo(repo.path(), own, "").await, &["walrusds-journal"]);
    fs::rename(
        repo.path().join("walrusds-journal"),
        repo.path().join("given-up"),
    )
    .unwrap();
    let ds = open_repo(repo.path(), own, "").await.unwrap();
    ds.close().await.unwrap();
}

// ---------------------------------------------------------------------------------------------
// Keys

fn without_and_with_journal() -> [(Node, Arc<WalrusDatastore>); 2] {
    let (without, with) = (Node::new(), Node::new());
    let through = Arc::new(without.parts.open(""));
    let journalled = with.open(IDLE);
    [(without, through), (with, journalled)]
}

#[tokio::test]
async fn a_value_that_its_key_does_not_name_is_refused_at_once() {
    for (_node, ds) in without_and_with_journal() {
        let good = noise(1, 100);
        let wrong = key_of(&noise(2, 100));
        let ops = vec![
            Op::Put(key_of(&good), good.clone()),
            Op::Put(wrong.clone(), good.clone()),
        ];
        let error = ds.commit(ops).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(&wrong), "{error}");
        assert!(
            !ds.has(&key_of(&good)).await.unwrap(),
            "nothing of the batch is stored"
        );
        // Keys that are no multihash accept any value.
        ds.put("/CIQ", good.clone()).await.unwrap();
        ds.close().await.unwrap();
    }
}

/// Records of IPNS and the filestore, which Kubo writes where the datastore is mounted at `/`.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_anywhere_in_a_large_batch_is_refused() {
    let puts: Vec<_> = (0..12).map(|i| noise(i, 300_000)).collect();
    let puts: Vec<_> = puts.into_iter().map(|v| (key_of(&v), v)).collect();
    let ops = |puts: &[(String, Bytes)]| -> Vec<Op> {
        let put = |(key, value): &(String, Bytes)| Op::Put(key.clone(), value.clone());
        puts.iter().map(put).collect()
    };
    for (node, ds) in without_and_with_journal() {
        for at in 0..puts.len() {
            let mut wrong = puts.clone();
            wrong[at].1 = noise(99, 300_000);
            let e = ds.commit(ops(&wrong)).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::InvalidArgument);
            assert!(e.message().contains(&puts[at].0), "{e}");
        }
        assert_eq!(metric(&ds, "blocks_put"), 0);
        ds.commit(ops(&puts)).await.unwrap();
        for (key, value) in &puts {
            assert_eq!(ds.get(key).await.unwrap().unwrap(), *value);
        }
        ds.close().await.unwrap();
        drop(node);
    }
}

#[tokio::test]
async fn records_under_keys_that_end_in_the_hash_of_something_else_are_kept() {
    for (_node, ds) in without_and_with_journal() {
        let hash = key_of(&noise(1, 100));
        for namespace in ["/ipns", "/filestore", "/providers/CIQ"] {
            let (key, record) = (format!("{namespace}{hash}"), noise(2, 100));
            ds.put(&key, record.clone()).await.unwrap();
            assert_eq!(ds.get(&key).await.unwrap(), Some(record), "{key}");
        }
        ds.close().await.unwrap();
    }
}

/// `ipfs block put --mhtype blake2b-512 --mhlen 32`.
#[tokio::test]
async fn blocks_under_digests_that_are_cut_short_are_read() {
    let parts = Parts::default();
    let ds = parts.open("");
    let value = noise(1, 1000);
    let full = blake2b_simd::Params::new().hash_length(64).hash(&value);
    let multihash = [&[0xc0, 0xe4, 0x02, 32], &full.as_bytes()[..32]].concat();
    let key = format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash));
    ds.put(&key, value.clone()).await.unwrap();
    assert_eq!(ds.get(&key).await.unwrap(), Some(value));
    ds.close().await.unwrap();
}
