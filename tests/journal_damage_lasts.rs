//! Damaged blocks of the write journal across restarts: the engine's record of them lasts until
//! they are put again or deleted, and neither a restart nor a second damage changes that.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise};
use testkit::node::{log, metric, Node, BUSY};
use walrusds::log::Level;
use walrusds::{ErrorKind, Op, WalrusDatastore};

/// A journal that uploads nothing by itself, nor when it is closed.
const IDLE: &str =
    r#""packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainTimeoutSeconds":0,"#;
/// Files of 16 KiB.
const SMALL: &str = r#""journalMaxBytes":200000,"#;

fn errors(ds: &WalrusDatastore) -> Vec<String> {
    log(ds)
        .into_iter()
        .filter(|line| line.level == Level::Error)
        .map(|line| line.message)
        .collect()
}

async fn put(ds: &WalrusDatastore, value: &Bytes) -> String {
    let key = key_of(value);
    ds.put(&key, value.clone()).await.unwrap();
    key
}

async fn assert_damaged(ds: &WalrusDatastore, key: &str) {
    let error = ds.get(key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.message().contains(key), "{error}");
    assert!(!ds.has(key).await.unwrap(), "Kubo asks before it puts");
}

/// Puts other blocks until the journal has begun another file.
async fn begin_next_file(node: &Node, ds: &WalrusDatastore) {
    let before = node.segments().len();
    for i in 1000.. {
        put(ds, &noise(i, 3000)).await;
        if node.segments().len() > before {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_at_every_start_until_the_block_is_put_again() {
    for (sealed, last) in [(false, false), (false, true), (true, false)] {
        let what = format!("sealed: {sealed}, in the last write: {last}");
        let node = Node::new();
        let ds = node.open(&format!("{SMALL}{IDLE}"));
        let good = noise(1, 3000);
        put(&ds, &good).await;
        let bad = noise(0, 3000);
        let key = put(&ds, &bad).await;
        if sealed {
            begin_next_file(&node, &ds).await;
        } else if !last {
            put(&ds, &noise(2, 3000)).await;
        }
        let crashed = node.crashed();
        ds.close().await.unwrap();
        let (file, at) = crashed.damage(&bad);
        let said = |errors: &[String]| {
            let words = [key.clone(), file.clone(), at.to_string()];
            errors.iter().any(|e| words.iter().all(|w| e.contains(w)))
        };
        // Found at open or when it is read.
        let ds = crashed.open(&format!("{SMALL}{IDLE}"));
        assert_damaged(&ds, &key).await;
        let first = errors(&ds);
        assert!(said(&first), "{what}: {first:?}");
        ds.close().await.unwrap();
        // Found before.
        let ds = crashed.open(&format!("{SMALL}{IDLE}"));
        let second = errors(&ds);
        assert!(said(&second), "{what}: {second:?}");
        assert_damaged(&ds, &key).await;
        ds.close().await.unwrap();
        // The other blocks leave, the file is set aside, and the block is damaged still.
        let ds = crashed.open(&format!("{SMALL}{BUSY}"));
        eventually("the journal is empty", || crashed.segments().is_empty()).await;
        assert_eq!(crashed.put_aside().len(), 1, "{what}");
        assert_damaged(&ds, &key).await;
        ds.close().await.unwrap();
        let ds = crashed.open(&format!("{SMALL}{IDLE}"));
        let third = errors(&ds);
        let words = [&key, &at.to_string(), &file.replace(".segment", ".damaged")];
        let named = |e: &String| words.iter().all(|w| e.contains(*w));
        assert!(third.iter().any(named), "{what}: {third:?}");
        assert_damaged(&ds, &key).await;
        assert_eq!(ds.get(&key_of(&good)).await.unwrap().unwrap(), good);
        // Put again, it is whole, also after a kill and after it has left.
        put(&ds, &bad).await;
        let again = crashed.crashed();
        ds.close().await.unwrap();
        let ds = again.open(BUSY);
        assert_eq!(ds.get(&key).await.unwrap().unwrap(), bad, "{what}");
        eventually("it leaves", || {
            again.parts.index.rows.lock().contains_key(&key)
        })
        .await;
        ds.delete(&key).await.unwrap();
        assert_eq!(ds.get(&key).await.unwrap(), None, "{what}");
        ds.close().await.unwrap();
        let ds = again.open(IDLE);
        assert_eq!(ds.get(&key).await.unwrap(), None, "{what}");
        assert!(!errors(&ds).iter().any(|e| e.contains(&key)), "{what}");
        ds.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_undo_the_deletion_of_a_damaged_block() {
    for sealed in [false, true] {
        let node = Node::new();
        let ds = node.open(&format!("{SMALL}{IDLE}"));
        let bad = noise(0, 3000);
        let key = put(&ds, &bad).await;
        put(&ds, &noise(1, 3000)).await;
        if sealed {
            begin_next_file(&node, &ds).await;
        }
        let (file, at) = node.damage(&bad);
        assert_damaged(&ds, &key).await;
        ds.delete(&key).await.unwrap();
        // The record lasts even if the disk gives the right bytes again.
        for repaired in [false, true] {
            let crashed = node.crashed();
            if repaired {
                let path = crashed.journal().join(&file);
                let writing = fs::OpenOptions::new().write(true).open(path).unwrap();
                writing.write_all_at(&bad, at).unwrap();
            }
            let again = crashed.open(&format!("{SMALL}{IDLE}"));
            let what = format!("sealed: {sealed}, repaired: {repaired}");
            assert!(!again.has(&key).await.unwrap(), "{what}");
            assert_eq!(again.get(&key).await.unwrap(), None, "{what}");
            again.close().await.unwrap();
        }
        ds.close().await.unwrap();
    }
}

/// Bytes that were wrong in memory only, or for a while, are right again after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_can_be_read_again_after_a_restart_is_staged_again() {
    for sealed in [false, true] {
        let node = Node::new();
        let ds = node.open(&format!("{SMALL}{IDLE}"));
        let block = noise(0, 3000);
        let key = put(&ds, &block).await;
        put(&ds, &noise(1, 3000)).await;
        if sealed {
            begin_next_file(&node, &ds).await;
        }
        let (file, at) = node.damage(&block);
        assert_damaged(&ds, &key).await;
        let crashed = node.crashed();
        ds.close().await.unwrap();
        let path = crashed.journal().join(&file);
        let writing = fs::OpenOptions::new().write(true).open(path).unwrap();
        writing.write_all_at(&block, at).unwrap();
        let ds = crashed.open(BUSY);
        assert_eq!(ds.get(&key).await.unwrap().unwrap(), block);
        eventually("it leaves", || {
            crashed.parts.index.rows.lock().contains_key(&key)
        })
        .await;
        ds.close().await.unwrap();
        assert!(crashed.put_aside().is_empty());
    }
}

/// A block on Walrus needs no copy here: damage to that copy is no alarm.
#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_copy_that_is_not_needed_any_more_is_no_alarm() {
    let node = Node::new();
    let one = r#""packTargetSizeBytes":4000,"workers":1,"#;
    let ds = node.open(&format!("{one}{IDLE}"));
    let blocks: Vec<_> = (0..3).map(|i| noise(i, 3000)).collect();
    for block in &blocks {
        put(&ds, block).await;
    }
    eventually("the first ones leave", || {
        node.parts
            .index
            .rows
            .lock()
            .contains_key(&key_of(&blocks[0]))
    })
    .await;
    ds.delete(&key_of(&blocks[1])).await.unwrap();
    // Closed, its notes are in the file, if that is still there.
    ds.close().await.unwrap();
    if node.segments().is_empty() {
        panic!("the last block did not stay");
    }
    node.damage(&blocks[0]);
    node.damage(&blocks[1]);
    let ds = node.open(BUSY);
    assert_eq!(errors(&ds), Vec::<String>::new());
    assert_eq!(ds.get(&key_of(&blocks[1])).await.unwrap(), None);
    eventually("the journal is empty", || node.segments().is_empty()).await;
    assert!(node.put_aside().is_empty());
    ds.close().await.unwrap();
}

/// A block that cannot be read in the journal is read on Walrus if its row is there already.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_block_is_read_on_walrus() {
    for indexed in [true, false] {
        let node = Node::new();
        let ds = node.open(IDLE);
        let block = noise(0, 3000);
        let key = put(&ds, &block).await;
        // A key that names no content: its row may be of another value.
        ds.put("/record", noise(1, 3000)).await.unwrap();
        if indexed {
            let beside = node.parts.open("");
            beside.put(&key, block.clone()).await.unwrap();
            beside.put("/record", noise(2, 3000)).await.unwrap();
            beside.close().await.unwrap();
        }
        let (path, at) = node.place(&block);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(at + 100).unwrap();
        match ds.get(&key).await {
            Ok(found) => assert!(indexed && found.as_ref() == Some(&block)),
            Err(e) => assert!(!indexed && e.kind() == ErrorKind::Disk, "{indexed}: {e}"),
        }
        let error = ds.get("/record").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disk, "{indexed}: {error}");
        drop(ds);
    }
}

/// A key that does not name its content: an older value is no substitute for the damaged one.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_value_does_not_stand_in_for_a_damaged_one() {
    for indexed in [false, true] {
        let node = Node::new();
        let key = "/local/record";
        if indexed {
            let ds = node.open(BUSY);
            ds.put(key, noise(0, 2000)).await.unwrap();
            ds.close().await.unwrap();
            assert!(node.parts.index.rows.lock().contains_key(key));
        }
        let ds = node.open(IDLE);
        ds.put(key, noise(1, 2000)).await.unwrap();
        let newest = noise(2, 2000);
        ds.put(key, newest.clone()).await.unwrap();
        put(&ds, &noise(3, 2000)).await;
        let crashed = node.crashed();
        ds.close().await.unwrap();
        crashed.damage(&newest);
        for start in 0..2 {
            let ds = crashed.open(IDLE);
            let error = ds.get(key).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{indexed} {start}");
            ds.close().await.unwrap();
        }
        let ds = crashed.open(IDLE);
        ds.put(key, noise(4, 2000)).await.unwrap();
        assert_eq!(ds.get(key).await.unwrap().unwrap(), noise(4, 2000));
        ds.close().await.unwrap();
    }
}

/// The numbers of files begin anew in an empty journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_set_aside_is_never_overwritten() {
    let node = Node::new();
    let bad: Vec<_> = (0..3).map(|i| noise(i, 3000)).collect();
    for (i, bad) in bad.iter().enumerate() {
        let ds = node.open(IDLE);
        let key = put(&ds, bad).await;
        node.damage(bad);
        assert_damaged(&ds, &key).await;
        ds.close().await.unwrap();
        let ds = node.open(BUSY);
        eventually("the journal is empty", || node.segments().is_empty()).await;
        ds.close().await.unwrap();
        assert_eq!(node.put_aside().len(), i + 1);
    }
    let ds = node.open(IDLE);
    for bad in &bad {
        assert_damaged(&ds, &key_of(bad)).await;
    }
    ds.close().await.unwrap();
}

/// A block that cannot be read for a while keeps its place; the others of its pack go on.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_block_does_not_hold_its_pack_up() {
    let node = Node::new();
    let ds = node.open(&format!("{SMALL}{BUSY}"));
    node.parts.store.fail_puts.store(true, SeqCst);
    // Two blocks of one write, so they are in one pack. The one that lies behind the other becomes
    // unreadable.
    let mut pair = [noise(0, 3000), noise(1, 3000)];
    let ops = pair.iter().map(|b| Op::Put(key_of(b), b.clone()));
    ds.commit(ops.collect()).await.unwrap();
    pair.sort_by_key(|b| node.place(b).1);
    let [good, bad] = pair;
    let key = key_of(&bad);
    begin_next_file(&node, &ds).await;
    let all = metric(&ds, "blocks_put");
    let (path, at) = node.place(&bad);
    let whole = fs::read(&path).unwrap();
    // The engine writes no more to this file. A read behind its end is an error, and not other
    // bytes.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(at + 100).unwrap();
    node.parts.store.fail_puts.store(false, SeqCst);
    eventually("what can be read leaves", || {
        node.parts.index.rows.lock().contains_key(&key_of(&good))
    })
    .await;
    let error = ds.get(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disk, "{error}");
    file.write_all_at(&whole, 0).unwrap();
    eventually("all is there", || {
        node.parts.index.rows.lock().len() as u64 == all
    })
    .await;
    assert_eq!(ds.get(&key).await.unwrap().unwrap(), bad);
    ds.close().await.unwrap();
    assert!(node.put_aside().is_empty());
}
