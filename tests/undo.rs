//! Undo: a garbage collection is taken back, and a put of a deleted block costs no upload.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise, Parts};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, Options};
use walrusds::{Config, DeletedQuery, ErrorKind, Op, Record, Undeleted, Usage, WalrusDatastore};

const DAY: u64 = 86_400;

fn keeping() -> Parts {
    let parts = Parts::default();
    parts.index.keep_seconds.store(DAY, SeqCst);
    parts
}

fn block(seed: u64, len: usize) -> (String, Bytes) {
    let value = noise(seed, len);
    (key_of(&value), value)
}

fn blocks(seeds: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    seeds.map(|seed| block(seed, 1000)).collect()
}

fn puts(blocks: &[(String, Bytes)]) -> Vec<Op> {
    let put = |(key, value): &(String, Bytes)| Op::Put(key.clone(), value.clone());
    blocks.iter().map(put).collect()
}

fn deletes(blocks: &[(String, Bytes)]) -> Vec<Op> {
    blocks
        .iter()
        .map(|(key, _)| Op::Delete(key.clone()))
        .collect()
}

fn usage(blocks: i64) -> Usage {
    Usage::new(blocks, blocks * 1000)
}

fn uploads(parts: &Parts) -> usize {
    parts.store.puts.load(SeqCst)
}

fn metric(ds: &WalrusDatastore, name: &str) -> u64 {
    let found = ds.metrics().into_iter().find(|(known, _)| *known == name);
    found.unwrap().1
}

async fn all_read(ds: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
}

async fn none_read(ds: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, _) in blocks {
        assert!(!ds.has(key).await.unwrap());
        assert_eq!(ds.get(key).await.unwrap(), None);
    }
}

fn query(change: impl FnOnce(&mut DeletedQuery)) -> DeletedQuery {
    let mut query = DeletedQuery::default();
    change(&mut query);
    query
}

#[tokio::test]
async fn a_put_of_a_deleted_block_costs_no_upload() {
    let parts = keeping();
    let ds = parts.open("");
    let all = blocks(0..8);
    ds.commit(puts(&all)).await.unwrap();
    assert_eq!(
        (uploads(&parts), ds.disk_usage().await.unwrap()),
        (1, usage(8))
    );
    ds.commit(deletes(&all)).await.unwrap();
    none_read(&ds, &all).await;
    assert_eq!(ds.disk_usage().await.unwrap(), usage(0));

    // With new blocks in the same batch: only those travel.
    let mut more = all[..4].to_vec();
    more.extend(blocks(100..102));
    let lookups = parts.index.lookups.load(SeqCst);
    ds.commit(puts(&more)).await.unwrap();
    assert_eq!(parts.index.lookups.load(SeqCst) - lookups, 6, "one lookup");
    assert_eq!(parts.index.undelete_calls.load(SeqCst), 1);
    assert_eq!(uploads(&parts), 2);
    let mut sizes: Vec<usize> = parts.store.blobs.lock().values().map(Bytes::len).collect();
    sizes.sort_unstable();
    // Two new blocks and the first eight, and what a CAR file has around them.
    assert!(matches!(sizes[..], [2000..3000, 8000..9000]), "{sizes:?}");
    all_read(&ds, &more).await;
    none_read(&ds, &all[4..]).await;
    assert_eq!(ds.disk_usage().await.unwrap(), usage(6));
    assert_eq!(
        (metric(&ds, "blocks_undeleted"), metric(&ds, "blocks_known")),
        (4, 4)
    );
    // One by one, and twice.
    for _ in 0..2 {
        for (key, value) in &all[4..] {
            ds.put(key, value.clone()).await.unwrap();
        }
    }
    assert_eq!(uploads(&parts), 2);
    assert_eq!(ds.disk_usage().await.unwrap(), usage(10));
    assert!(parts.index.deleted.lock().is_empty());
    ds.close().await.unwrap();
    assert_eq!(*parts.index.usage.lock(), usage(10));
}

/// A blob that is used all the time is looked at again all the same.
#[tokio::test(start_paused = true)]
async fn a_blob_does_not_count_as_readable_for_ever() {
    let parts = keeping();
    let ds = parts.open("");
    let (key, value) = block(1, 1000);
    ds.put(&key, value.clone()).await.unwrap();
    for lost in [false, true, true] {
        if lost {
            parts.store.blobs.lock().clear();
            tokio::time::advance(Duration::from_secs(9 * 60)).await;
        }
        assert_eq!(uploads(&parts), 1);
        ds.delete(&key).await.unwrap();
        ds.put(&key, value.clone()).await.unwrap();
    }
    assert_eq!(uploads(&parts), 2);
    assert_eq!(ds.get(&key).await.unwrap(), Some(value));
    ds.close().await.unwrap();
}

/// A row may have been deleted because its blob was found lost: `walrusds repair --drop`, `ipfs
/// repo verify --drop`. Another process does not know that the blob is gone.
#[tokio::test]
async fn a_row_of_a_lost_blob_is_not_brought_back_by_a_put() {
    let parts = keeping();
    let ds = parts.open("");
    let (mut all, others) = (blocks(0..8), blocks(100..104));
    // An empty block is read without asking any aggregator.
    all.push(block(9, 0));
    ds.commit(puts(&all)).await.unwrap();
    let lost: Vec<String> = parts.store.blobs.lock().keys().cloned().collect();
    ds.commit(puts(&others)).await.unwrap();
    ds.commit(deletes(&all)).await.unwrap();
    ds.commit(deletes(&others)).await.unwrap();
    ds.close().await.unwrap();
    parts.store.blobs.lock().retain(|id, _| !lost.contains(id));
    let ds = parts.open("");
    let both = [&all[..], &others[..]].concat();
    ds.commit(puts(&both)).await.unwrap();
    assert_eq!(uploads(&parts), 3, "the blocks of the other blob come back");
    assert_eq!(metric(&ds, "blocks_undeleted"), 4);
    all_read(&ds, &both).await;
    let with_empty = Usage::new(13, usage(12).bytes);
    assert_eq!(ds.disk_usage().await.unwrap(), with_empty);
    ds.close().await.unwrap();
}

/// What a write costs where nothing was deleted: no statement more than without undo.
#[tokio::test]
async fn an_ordinary_put_makes_no_more_statements() {
    for seconds in [0, DAY] {
        let parts = Parts::default();
        parts.index.keep_seconds.store(seconds, SeqCst);
        let ds = parts.open("");
        for round in 0..2 {
            ds.commit(puts(&blocks(0..8))).await.unwrap();
            assert_eq!(parts.index.lookups.load(SeqCst), 8 * (round + 1));
            assert_eq!(parts.index.put_calls.load(SeqCst), 1);
        }
        assert_eq!(parts.index.undelete_calls.load(SeqCst), 0);
        ds.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_row_that_does_not_serve_is_not_brought_back_by_a_put() {
    let parts = keeping();
    let ds = parts.open(r#""epochDurationSeconds":1000,"epochs":3,"#);
    let name = "/a name".to_owned();
    let odd = vec![
        block(1, 1000),
        block(2, 1000),
        block(3, 1000),
        (name.clone(), noise(4, 1000)),
    ];
    let good = vec![block(5, 1000)];
    let all = [odd.clone(), good.clone()].concat();
    ds.commit(puts(&all)).await.unwrap();
    ds.commit(deletes(&all)).await.unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    {
        let mut deleted = parts.index.deleted.lock();
        let mut change = |n: usize, change: fn(&mut Record, SystemTime)| {
            change(&mut deleted.get_mut(&odd[n].0).unwrap().0, now);
        };
        change(0, |row, now| {
            row.expires_at = Some(now + Duration::from_secs(400))
        });
        change(1, |row, _| row.size += 1);
        change(2, |row, _| row.patch_id = Some("patch".into()));
    }
    ds.commit(puts(&all)).await.unwrap();
    // The block whose key is no multihash has a pack of its own, each time.
    assert_eq!((uploads(&parts), metric(&ds, "blocks_undeleted")), (4, 1));
    all_read(&ds, &all).await;
    // A key that does not name the content gets the newest value.
    ds.delete(&name).await.unwrap();
    ds.put(&name, noise(9, 1000)).await.unwrap();
    assert_eq!(ds.get(&name).await.unwrap(), Some(noise(9, 1000)));
    ds.close().await.unwrap();
}

#[tokio::test]
async fn a_garbage_collection_is_undone_by_time_by_key_and_by_prefix() {
    let parts = keeping();
    let ds = parts.open("");
    let all = blocks(0..12);
    ds.commit(puts(&all)).await.unwrap();
    ds.commit(deletes(&all[..4])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let between = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(2)).await;
    for (key, _) in &all[4..] {
        ds.delete(key).await.unwrap();
    }
    assert_eq!(ds.disk_usage().await.unwrap(), usage(0));

    let back = |done: Undeleted| (done.back, done.over, done.live);
    let done = ds
        .undelete(&query(|q| q.until = Some(between)))
        .await
        .unwrap();
    assert_eq!(back(done), (usage(4), usage(0), usage(0)));
    all_read(&ds, &all[..4]).await;
    none_read(&ds, &all[4..]).await;

    let one = query(|q| q.keys = vec![all[4].0.clone(), all[4].0.clone(), "/unknown".into()]);
    assert_eq!(
        back(ds.undelete(&one).await.unwrap()),
        (usage(1), usage(0), usage(0))
    );
    assert_eq!(
        ds.undelete(&one).await.unwrap(),
        Undeleted::default(),
        "once"
    );
    let none = query(|q| {
        q.keys = vec![all[5].0.clone()];
        q.until = Some(between);
    });
    assert_eq!(ds.undelete(&none).await.unwrap(), Undeleted::default());

    let prefix = query(|q| q.prefix = all[5].0[..20].to_owned());
    assert_eq!(
        back(ds.undelete(&prefix).await.unwrap()),
        (usage(1), usage(0), usage(0))
    );
    all_read(&ds, &all[..6]).await;
    none_read(&ds, &all[6..]).await;

    // All that is left, but for a block whose storage is over.
    parts
        .index
        .deleted
        .lock()
        .get_mut(&all[6].0)
        .unwrap()
        .0
        .expires_at = Some(SystemTime::UNIX_EPOCH);
    let done = ds
        .undelete(&query(|q| q.since = Some(between)))
        .await
        .unwrap();
    assert_eq!(back(done), (usage(5), usage(1), usage(0)));
    none_read(&ds, &all[6..7]).await;
    all_read(&ds, &all[7..]).await;
    assert_eq!(
        (uploads(&parts), ds.disk_usage().await.unwrap()),
        (1, usage(11))
    );
    ds.close().await.unwrap();
    assert_eq!(*parts.index.usage.lock(), usage(11));
}

#[tokio::test]
async fn many_blocks_come_back_in_pages_and_bad_questions_are_refused() {
    let parts = keeping();
    let ds = parts.open("");
    let all: Vec<_> = (0..2500).map(|seed| block(seed, 10)).collect();
    ds.commit(puts(&all)).await.unwrap();
    ds.commit(deletes(&all)).await.unwrap();
    let now = SystemTime::now();
    let empty = query(|q| (q.since, q.until) = (Some(now), Some(now)));
    for bad in [
        empty,
        query(|q| q.keys = vec!["/\0".into()]),
        query(|q| q.prefix = "\0".into()),
    ] {
        let error = ds.undelete(&bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let done = ds.undelete(&DeletedQuery::default()).await.unwrap();
    assert_eq!(done.back, Usage::new(2500, 25_000));
    all_read(&ds, &all[..20]).await;
    ds.close().await.unwrap();
    let closed = ds.undelete(&DeletedQuery::default()).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
}

/// Puts, deletions and undeletes of the same blocks at once, in an index that takes a while.
/// Afterwards each block is there if its row is, its bytes are right, and the totals add up.
async fn meet(journal: bool, give_up: bool) {
    let dir = tempfile::tempdir().unwrap();
    let parts = keeping();
    parts.index.write_ms.store(1, SeqCst);
    let extra = match journal {
        true => format!(
            r#""journalPath":"{}","packIdleFlushSeconds":1,"#,
            dir.path().display()
        ),
        false => String::new(),
    };
    let ds = Arc::new(parts.open(&extra));
    let all = Arc::new(blocks(0..4));
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..6_usize {
        let (ds, all) = (Arc::clone(&ds), Arc::clone(&all));
        tasks.spawn(async move {
            for turn in 0..60_usize {
                let (key, value) = &all[(turn * 7 + worker) % all.len()];
                let call = async {
                    match worker % 3 {
                        0 => ds.put(key, value.clone()).await.unwrap(),
                        1 => ds.delete(key).await.unwrap(),
                        _ => drop(ds.undelete(&DeletedQuery::default()).await.unwrap()),
                    }
                };
                if give_up {
                    let patience = Duration::from_micros(500 * (turn as u64 % 9 + 1));
                    let _ = tokio::time::timeout(patience, call).await;
                } else {
                    call.await;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    // A put at the end wins, and so does a deletion.
    ds.commit(puts(&all[..2])).await.unwrap();
    ds.commit(deletes(&all[2..])).await.unwrap();
    all_read(&ds, &all[..2]).await;
    none_read(&ds, &all[2..]).await;
    ds.close().await.unwrap();
    let rows = parts.index.rows.lock();
    let mut keys: Vec<&String> = all[..2].iter().map(|(key, _)| key).collect();
    keys.sort();
    assert_eq!(rows.keys().collect::<Vec<_>>(), keys);
    // A write that is given up may go uncounted, as without undo.
    if !give_up {
        assert_eq!(*parts.index.usage.lock(), usage(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_deletes_and_undeletes_of_one_block_meet() {
    meet(false, false).await;
    meet(false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_meet_with_a_journal_too() {
    meet(true, false).await;
    meet(true, true).await;
}

/// With a journal, a put is in the journal at once. The flusher finds the deleted row, brings it
/// back, and reads its blob back before it lets go of the journal's copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_journal_brings_rows_back_and_proves_their_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let extra = format!(
        r#""journalPath":"{}","packIdleFlushSeconds":1,"#,
        dir.path().display()
    );
    let parts = keeping();
    let ds = parts.open(&extra);
    let all = blocks(0..6);
    ds.commit(puts(&all)).await.unwrap();
    eventually("the journal is empty", || {
        metric(&ds, "journal_blocks") == 0
    })
    .await;
    ds.commit(deletes(&all)).await.unwrap();
    none_read(&ds, &all).await;
    let reads = parts.store.reads.lock().len();
    ds.commit(puts(&all)).await.unwrap();
    all_read(&ds, &all).await;
    eventually("the journal is empty again", || {
        metric(&ds, "journal_blocks") == 0
    })
    .await;
    assert_eq!((uploads(&parts), metric(&ds, "blocks_undeleted")), (1, 6));
    assert!(
        parts.store.reads.lock().len() > reads,
        "the blob was read back"
    );
    assert_eq!(ds.disk_usage().await.unwrap(), usage(6));

    // A deletion that comes first wins over the flusher.
    ds.commit(deletes(&all)).await.unwrap();
    ds.commit(puts(&all)).await.unwrap();
    ds.commit(deletes(&all)).await.unwrap();
    none_read(&ds, &all).await;
    ds.commit(puts(&all[..1])).await.unwrap();
    ds.close().await.unwrap();
    assert_eq!(parts.index.rows.lock().len(), 1);
    assert_eq!((uploads(&parts), *parts.index.usage.lock()), (1, usage(1)));
}

/// On the real index and a local Walrus: what is paid stays the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_and_its_undo_on_walrus() {
    let net = Devnet::start(Options {
        cheap_ids: true,
        ..Options::default()
    });
    let net = net.await.unwrap();
    let url = net.url();
    let pg = Postgres::shared();
    let postgres = pg.url(&pg.database());
    for index in [
        r#""indexPath":"i""#.to_owned(),
        format!(r#""postgresURL":"{postgres}","maxOpenConns":4"#),
    ] {
        let repo = tempfile::tempdir().unwrap();
        let open = |keep: u64| {
            let config = Config::from_json(&format!(
                r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","epochDurationSeconds":86400,
                    "epochs":5,"keepDeletedSeconds":{keep},{index}}}"#
            ));
            WalrusDatastore::open(config.unwrap(), repo.path())
        };
        let ds = open(DAY).await.unwrap();
        let all = blocks(0..20);
        ds.commit(puts(&all)).await.unwrap();
        for (key, _) in &all {
            ds.delete(key).await.unwrap();
        }
        none_read(&ds, &all).await;
        assert_eq!(ds.disk_usage().await.unwrap(), usage(0));
        ds.close().await.unwrap();
        // Another process, which keeps nothing itself, undoes it.
        let ds = open(0).await.unwrap();
        let done = ds.undelete(&DeletedQuery::default()).await.unwrap();
        assert_eq!((done.back, done.over), (usage(20), usage(0)));
        all_read(&ds, &all).await;
        assert_eq!(ds.disk_usage().await.unwrap(), usage(20));
        ds.close().await.unwrap();
        // And a put does.
        let ds = open(DAY).await.unwrap();
        ds.commit(deletes(&all)).await.unwrap();
        ds.commit(puts(&all)).await.unwrap();
        all_read(&ds, &all).await;
        assert_eq!(
            (
                metric(&ds, "packs_stored"),
                metric(&ds, "walrus_cost_frost")
            ),
            (0, 0)
        );
        assert_eq!(metric(&ds, "blocks_undeleted"), 20);
        ds.close().await.unwrap();
    }
}

/// Rows whose time is over leave by themselves, also at a node that keeps none any more.
#[tokio::test(flavor = "multi_thread")]
async fn kept_rows_leave_by_themselves() {
    let repo = tempfile::tempdir().unwrap();
    let config = |keep: u64| {
        Config::from_json(&format!(
            r#"{{"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1",
                "indexPath":"i","keepDeletedSeconds":{keep}}}"#
        ))
    };
    for nodes in [[1, 1], [1, 0]] {
        let ds = WalrusDatastore::open(config(nodes[0]).unwrap(), repo.path());
        let ds = ds.await.unwrap();
        let file = rusqlite::Connection::open(repo.path().join("i")).unwrap();
        file.execute_batch(
            "DELETE FROM walrus_index_meta WHERE name = 'undo.purge'; \
             WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 2999) \
             INSERT INTO walrus_index (key, blob_id, size, created_at, updated_at) SELECT '/' || n, 'b', 1, 0, 0 FROM n",
        )
        .unwrap();
        let all = (0..3000).map(|n| Op::Delete(format!("/{n}")));
        ds.commit(all.collect()).await.unwrap();
        let ds = match nodes[1] {
            0 => {
                ds.close().await.unwrap();
                let other = WalrusDatastore::open(config(0).unwrap(), repo.path());
                other.await.unwrap()
            }
            _ => ds,
        };
        let count = || {
            let count = "SELECT count(*) FROM walrus_index_deleted";
            file.query_row(count, [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        eventually("all have left", || count() == 0).await;
        ds.close().await.unwrap();
    }
}
