//! The datastore on an index and a store in memory: the guarantees that a caller may rely on.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use testkit::eventually;
use testkit::mem::{key_of, noise, Parts};
use tokio::task::JoinSet;
use walrusds::{ErrorKind, KeyCondition, Op, QueryOptions, Record, Usage, Value, WalrusDatastore};

fn put(key: &str, value: &[u8]) -> Op {
    Op::Put(key.to_owned(), Bytes::copy_from_slice(value))
}

fn delete(key: &str) -> Op {
    Op::Delete(key.to_owned())
}

fn blocks(n: u64, len: usize) -> Vec<Op> {
    (0..n)
        .map(|seed| {
            let value = noise(seed, len);
            Op::Put(key_of(&value), value)
        })
        .collect()
}

/// A row of which no block can be read.
fn insert_row(parts: &Parts, key: &str) {
    let mut rows = parts.index.rows.lock();
    rows.insert(key.to_owned(), Record::default());
}

async fn all_keys(ds: &walrusds::WalrusDatastore, options: QueryOptions) -> Vec<String> {
    let mut query = ds.query(options).unwrap();
    let mut keys = Vec::new();
    loop {
        let page = query.next_page().await.unwrap();
        if page.is_empty() {
            return keys;
        }
        keys.extend(page.into_iter().map(|e| e.key));
    }
}

#[tokio::test]
async fn a_batch_is_one_pack_and_its_blocks_are_slices_of_it() {
    let parts = Parts::default();
    let ds = parts.open("");
    let ops = blocks(16, 1000);
    ds.commit(ops.clone()).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 1);
    let ids: HashSet<String> = parts
        .index
        .rows
        .lock()
        .values()
        .map(|r| r.blob_id.clone())
        .collect();
    assert_eq!(ids.len(), 1);
    for op in &ops {
        let Op::Put(key, value) = op else {
            unreachable!()
        };
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
        assert_eq!(ds.get_size(key).await.unwrap(), Some(1000));
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn packs_keep_under_their_ceiling() {
    let parts = Parts::default();
    let ds = parts.open(r#""packFormat":"concat","packTargetSizeBytes":4000,"#);
    let mut ops = blocks(10, 1000);
    ops.push(Op::Put("/big".into(), noise(99, 9000)));
    ds.commit(ops).await.unwrap();
    let mut sizes: Vec<usize> = parts.store.blobs.lock().values().map(Bytes::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2000, 4000, 4000, 9000]);
    ds.close().await.unwrap();
}

/// Puts small blocks at once, each by a writer of its own.
fn put_at_once(ds: &Arc<WalrusDatastore>, seeds: Range<u64>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for seed in seeds {
        let ds = Arc::clone(ds);
        tasks.spawn(async move {
            let value = noise(seed, 100);
            ds.put(&key_of(&value), value).await.unwrap();
        });
    }
    tasks
}

#[tokio::test]
async fn concurrent_puts_share_packs() {
    let parts = Parts::default();
    parts.store.put_ms.store(50, SeqCst);
    let ds = Arc::new(parts.open(""));
    put_at_once(&ds, 0..200).join_all().await;
    assert_eq!(parts.index.rows.lock().len(), 200);
    let packs = parts.store.puts.load(SeqCst);
    assert!(packs <= 10, "{packs} packs for 200 concurrent puts");
    ds.close().await.unwrap();
}

/// A pack waits for the writers that have begun and still ask which of their blocks are stored.
#[tokio::test(start_paused = true)]
async fn a_burst_of_writers_fills_one_pack() {
    let parts = Parts::default();
    parts.index.lookup_ms.store(20, SeqCst);
    let ds = Arc::new(parts.open(""));
    let first = put_at_once(&ds, 0..1);
    while parts.index.lookups.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Their lookups take longer than that of the first writer.
    parts.index.lookup_ms.store(60, SeqCst);
    let others = put_at_once(&ds, 1..8);
    first.join_all().await;
    others.join_all().await;
    assert_eq!(parts.store.puts.load(SeqCst), 1);
    ds.close().await.unwrap();
}

#[tokio::test]
async fn what_is_stored_is_not_uploaded_again() {
    let parts = Parts::default();
    let ds = parts.open(r#""packFormat":"concat","#);
    let ops = blocks(8, 500);
    ds.commit(ops.clone()).await.unwrap();
    ds.commit(ops.clone()).await.unwrap();
    let Op::Put(key, value) = &ops[0] else {
        unreachable!()
    };
    ds.put(key, value.clone()).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 1);
    // A key that is twice in one batch is stored once.
    let twice = [blocks(1, 700), blocks(1, 700)].concat();
    ds.commit(twice).await.unwrap();
    assert_eq!(
        parts
            .store
            .blobs
            .lock()
            .values()
            .map(Bytes::len)
            .sum::<usize>(),
        4000 + 700
    );
    ds.close().await.unwrap();
}

#[tokio::test]
async fn keys_that_do_not_name_their_content_are_overwritten() {
    let parts = Parts::default();
    let ds = parts.open("");
    for value in [&b"one"[..], b"two", b"six", b""] {
        ds.put("/k", Bytes::copy_from_slice(value)).await.unwrap();
        assert_eq!(ds.get("/k").await.unwrap().unwrap(), value);
        assert!(ds.has("/k").await.unwrap());
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn the_last_operation_on_a_key_wins() {
    let parts = Parts::default();
    let ds = parts.open("");
    ds.put("/c", Bytes::from_static(b"c")).await.unwrap();
    ds.commit(vec![
        put("/a", b"1"),
        put("/a", b"2"),
        put("/b", b"1"),
        delete("/b"),
        delete("/c"),
        put("/c", b"3"),
        delete("/never"),
    ])
    .await
    .unwrap();
    assert_eq!(ds.get("/a").await.unwrap().unwrap(), &b"2"[..]);
    assert_eq!(ds.get("/b").await.unwrap(), None);
    assert_eq!(ds.get("/c").await.unwrap().unwrap(), &b"3"[..]);
    assert_eq!(ds.disk_usage().await.unwrap(), Usage::new(2, 2));
    ds.close().await.unwrap();
    assert_eq!(*parts.index.usage.lock(), Usage::new(2, 2));
}

#[tokio::test]
async fn odd_keys_are_refused_on_put_and_absent_otherwise() {
    let parts = Parts::default();
    let ds = parts.open("");
    for (key, what) in [("/a\0b".into(), "NUL"), ("/".repeat(64 << 10), "too long")] {
        let err = ds.put(&key, Bytes::new()).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        assert!(err.message().contains(what), "{err}");
        assert!(!ds.has(&key).await.unwrap());
        assert_eq!(ds.get(&key).await.unwrap(), None);
        ds.delete(&key).await.unwrap();
    }
    for key in ["", "/", "/a%b_c\\'\"", "/é/\u{10ffff}", "x"] {
        ds.put(key, Bytes::from(key.to_owned())).await.unwrap();
        assert_eq!(ds.get(key).await.unwrap().unwrap(), key.as_bytes());
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn a_pack_that_is_too_large_is_split_and_nothing_is_lost() {
    let parts = Parts::default();
    parts.store.max_body.store(2500, SeqCst);
    let ds = parts.open("");
    let ops = blocks(20, 1000);
    ds.commit(ops.clone()).await.unwrap();
    for op in &ops {
        let Op::Put(key, value) = op else {
            unreachable!()
        };
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    let err = ds.put("/huge", noise(1, 3000)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::TooLarge);
    assert!(!ds.has("/huge").await.unwrap());
    ds.close().await.unwrap();
}

#[tokio::test]
async fn failures_leave_no_row_and_the_batch_can_be_retried() {
    let parts = Parts::default();
    let ds = parts.open("");
    let ops = blocks(4, 100);
    parts.store.fail_puts.store(true, SeqCst);
    let err = ds.commit(ops.clone()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Walrus);
    assert!(err.is_retryable());
    assert!(parts.index.rows.lock().is_empty());
    parts.store.fail_puts.store(false, SeqCst);
    parts.index.fail_puts.store(true, SeqCst);
    assert_eq!(
        ds.commit(ops.clone()).await.unwrap_err().kind(),
        ErrorKind::Index
    );
    assert!(ds
        .next_log_line()
        .unwrap()
        .message
        .contains("could not be indexed"));
    parts.index.fail_puts.store(false, SeqCst);
    ds.commit(ops).await.unwrap();
    assert_eq!(parts.index.rows.lock().len(), 4);
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_put_that_was_given_up_stays_invisible_and_stops_sending() {
    let parts = Parts::default();
    parts.store.put_ms.store(200, SeqCst);
    let ds = parts.open("");
    let late = tokio::time::timeout(
        Duration::from_millis(50),
        ds.put("/k", Bytes::from_static(b"old")),
    );
    assert!(late.await.is_err());
    // The next put of the key waits for the first alone, and wins.
    ds.put("/k", Bytes::from_static(b"new")).await.unwrap();
    assert_eq!(ds.get("/k").await.unwrap().unwrap(), &b"new"[..]);
    ds.close().await.unwrap();
    assert_eq!(
        parts.store.blobs.lock().len(),
        1,
        "the abandoned upload was stopped"
    );
}

#[tokio::test(start_paused = true)]
async fn a_put_that_was_given_up_while_indexed_lands_before_the_next() {
    let parts = Parts::default();
    parts.index.write_ms.store(300, SeqCst);
    let ds = parts.open("");
    let late = tokio::time::timeout(
        Duration::from_millis(100),
        ds.put("/k", Bytes::from_static(b"old")),
    );
    assert!(late.await.is_err());
    assert_eq!(
        parts.index.put_calls.load(SeqCst),
        1,
        "its row was being written"
    );
    parts.index.write_ms.store(0, SeqCst);
    ds.put("/k", Bytes::from_static(b"new")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(ds.get("/k").await.unwrap().unwrap(), &b"new"[..]);
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_was_given_up_lands_before_the_next_put() {
    let parts = Parts::default();
    let ds = parts.open("");
    ds.put("/k", Bytes::from_static(b"old")).await.unwrap();
    parts.index.write_ms.store(300, SeqCst);
    let late = tokio::time::timeout(Duration::from_millis(100), ds.delete("/k"));
    assert!(late.await.is_err());
    parts.index.write_ms.store(0, SeqCst);
    ds.put("/k", Bytes::from_static(b"new")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(ds.get("/k").await.unwrap().unwrap(), &b"new"[..]);
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_callers_departure_does_not_disturb_the_others() {
    let parts = Parts::default();
    parts.store.put_ms.store(100, SeqCst);
    let ds = parts.open("");
    let stays = ds.commit(vec![put("/stays", b"1"), put("/too", b"2")]);
    let leaves = tokio::time::timeout(
        Duration::from_millis(50),
        ds.put("/leaves", Bytes::from_static(b"3")),
    );
    let (stays, leaves) = tokio::join!(stays, leaves);
    stays.unwrap();
    assert!(leaves.is_err());
    assert_eq!(parts.store.puts.load(SeqCst), 1, "they shared a pack");
    assert!(!ds.has("/leaves").await.unwrap());
    assert_eq!(ds.get("/stays").await.unwrap().unwrap(), &b"1"[..]);
    assert_eq!(ds.get("/too").await.unwrap().unwrap(), &b"2"[..]);
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_after_a_put_in_flight_wins() {
    let parts = Parts::default();
    parts.store.put_ms.store(50, SeqCst);
    let ds = parts.open("");
    let putting = ds.put("/k", Bytes::from_static(b"v"));
    let deleting = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ds.delete("/k").await
    };
    let (p, d) = tokio::join!(putting, deleting);
    p.unwrap();
    d.unwrap();
    assert!(!ds.has("/k").await.unwrap());
    ds.close().await.unwrap();
}

#[tokio::test]
async fn wrong_bytes_are_never_returned() {
    let parts = Parts::default();
    let ds = parts.open("");
    let value = noise(1, 1000);
    let key = key_of(&value);
    ds.put(&key, value).await.unwrap();
    let Record {
        blob_id: blob,
        offset,
        ..
    } = parts.index.rows.lock()[&key].clone();
    let wrong = noise(2, 2000);
    let store = &parts.store.blobs;
    store.lock().insert(blob.clone(), wrong.clone());
    let err = ds.get(&key).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(
        err.message().contains(&key) && err.message().contains(&blob),
        "{err}"
    );
    parts.store.blobs.lock().remove(&blob);
    let err = ds.get(&key).await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::BlobNotFound,
        "not «unknown key»: the index knows it"
    );
    ds.close().await.unwrap();

    store.lock().insert(blob, wrong.clone());
    let trusting = parts.open(r#""verifyReads":false,"#);
    let there = wrong.slice(offset as usize..).slice(..1000);
    assert_eq!(trusting.get(&key).await.unwrap().unwrap(), there);
    trusting.close().await.unwrap();
}

#[tokio::test]
async fn rows_with_nonsense_are_errors() {
    let parts = Parts::default();
    let ds = parts.open("");
    for (offset, size) in [(-1, 5), (0, -5), (i64::MAX, i64::MAX)] {
        let record = Record::new("b", offset, size);
        parts.index.rows.lock().insert("/k".into(), record);
        let err = ds.get("/k").await.unwrap_err();
        assert!(
            matches!(err.kind(), ErrorKind::Corrupt | ErrorKind::BlobNotFound),
            "{err}"
        );
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn many_sizes_at_once_and_what_memory_knows_of_them() {
    let parts = Parts::default();
    let ds = parts.open("");
    ds.commit(vec![put("/a", b"1"), put("/empty", b""), put("/b", b"22")])
        .await
        .unwrap();
    parts
        .index
        .rows
        .lock()
        .insert("/nonsense".to_owned(), Record::new("", -1, 0));
    assert_eq!(ds.peek_size("/a").unwrap(), None);
    assert_eq!(ds.peek_size("/a\0").unwrap(), Some(None));
    let keys = [
        "/b",
        "/unknown",
        "",
        "/nonsense",
        "/a\0",
        "/empty",
        "/b",
        "/a",
    ];
    // The second read is partly from memory.
    for _ in 0..2 {
        let sizes = ds
            .get_sizes(keys.map(str::to_owned).to_vec())
            .await
            .unwrap();
        let sizes: Vec<_> = sizes.into_iter().map(|s| s.map_err(|e| e.kind())).collect();
        let found = |n| Ok::<_, ErrorKind>(Some(n));
        let expected = [
            found(2),
            Ok(None),
            Ok(None),
            Err(ErrorKind::Corrupt),
            Ok(None),
            found(0),
            found(2),
            found(1),
        ];
        assert_eq!(sizes, expected);
    }
    // A key that fails alone is an error of the call for the metrics, as by a single lookup.
    let errors = || {
        let of_lookups = ("operation", "lookup".to_owned());
        let samples = ds.samples().into_iter();
        let mut errors = samples.filter(|sample| {
            sample.name == "operation_errors" && sample.labels.contains(&of_lookups)
        });
        errors.next().map(|sample| sample.value)
    };
    assert_eq!(errors(), Some(Value::Number(2.0)));
    ds.get_size("/nonsense").await.unwrap_err();
    ds.get_size("/unknown").await.unwrap();
    assert_eq!(errors(), Some(Value::Number(3.0)));
    assert_eq!(ds.peek_size("/a").unwrap(), Some(Some(1)));
    assert_eq!(ds.peek_size("/unknown").unwrap(), None);
    assert_eq!(ds.peek_size("/nonsense").unwrap(), None);
    ds.delete("/a").await.unwrap();
    assert_eq!(ds.peek_size("/a").unwrap(), None);
    ds.close().await.unwrap();
    assert_eq!(ds.peek_size("/b").unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn blocks_staged_by_a_go_node_are_read_and_replaced() {
    let parts = Parts::default();
    let ds = parts.open("");
    parts
        .index
        .staged
        .lock()
        .insert("/s".into(), Bytes::from_static(b"staged"));
    assert_eq!(ds.get("/s").await.unwrap().unwrap(), &b"staged"[..]);
    assert_eq!(ds.get_size("/s").await.unwrap(), Some(6));
    ds.put("/s", Bytes::from_static(b"newer")).await.unwrap();
    assert_eq!(ds.get("/s").await.unwrap().unwrap(), &b"newer"[..]);
    ds.close().await.unwrap();
}

#[tokio::test]
async fn queries_page_skip_and_limit() {
    let parts = Parts::default();
    let ds = parts.open("");
    let n = 5000;
    ds.commit((0..n).map(|i| put(&format!("/p/{i:05}"), b"x")).collect())
        .await
        .unwrap();
    ds.commit(vec![
        put("/p", b"self"),
        put("/pq", b"sibling"),
        put("/q/1", b"other"),
    ])
    .await
    .unwrap();
    let below = |prefix: &str| {
        QueryOptions::default()
            .with_prefix(prefix)
            .with_keys_only(true)
    };
    assert_eq!(all_keys(&ds, below("")).await.len(), n + 3);
    let keys = all_keys(&ds, below("/p")).await;
    assert_eq!(keys.len(), n);
    assert!(keys.is_sorted());
    let some = all_keys(&ds, below("/p/").with_offset(4000).with_limit(Some(7))).await;
    assert_eq!(
        some,
        (4000..4007)
            .map(|i| format!("/p/{i:05}"))
            .collect::<Vec<_>>()
    );
    assert!(all_keys(&ds, below("/p").with_offset(9999))
        .await
        .is_empty());
    ds.close().await.unwrap();
}

#[tokio::test]
async fn conditions_and_orders_are_the_index_s_work() {
    use KeyCondition::*;
    let parts = Parts::default();
    let ds = parts.open("");
    let keys = ["/a", "/a/1", "/a/2", "/a/2/x", "/a/20", "/a/3", "/b/2"];
    for key in keys {
        insert_row(&parts, key);
    }
    let k = || "/a/2".to_owned();
    for (conditions, expected) in [
        (vec![], &keys[1..6]),
        (vec![Equal(k())], &keys[2..3]),
        (vec![Less(k())], &keys[1..2]),
        (vec![LessOrEqual(k())], &keys[1..3]),
        (vec![Greater(k())], &keys[3..6]),
        (vec![GreaterOrEqual(k())], &keys[2..6]),
        (vec![StartsWith(k())], &keys[2..5]),
        (
            vec![NotEqual("/a/1".into()), NotEqual("/a/3".into())],
            &keys[2..5],
        ),
        (
            vec![Greater(k()), Less("/a/3".into()), StartsWith(k())],
            &keys[3..5],
        ),
        (vec![Greater(k()), Less(k())], &[]),
        (vec![Equal(k()), NotEqual(k())], &[]),
        (vec![Equal("/b/2".into())], &[]),
    ] {
        let mut options = QueryOptions::default()
            .with_prefix("/a")
            .with_conditions(conditions)
            .with_keys_only(true);
        assert_eq!(
            all_keys(&ds, options.clone()).await,
            expected,
            "{options:?}"
        );
        options.descending = true;
        let mut back = all_keys(&ds, options.clone()).await;
        back.reverse();
        assert_eq!(back, expected, "{options:?}");
        options.offset = 1;
        options.limit = Some(1);
        let one = expected.iter().rev().skip(1).take(1).copied();
        assert_eq!(all_keys(&ds, options).await, one.collect::<Vec<_>>());
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn what_is_skipped_is_not_fetched() {
    let parts = Parts::default();
    let ds = parts.open("");
    for i in 0..40_000 {
        insert_row(&parts, &format!("/{i:05}"));
    }
    for (offset, statements) in [(0, 1), (16_384, 1), (16_385, 2), (39_990, 3)] {
        for descending in [false, true] {
            let before = parts.index.list_calls.load(SeqCst);
            let listed = all_keys(
                &ds,
                QueryOptions::default()
                    .with_keys_only(true)
                    .with_descending(descending)
                    .with_offset(offset)
                    .with_limit(Some(5)),
            )
            .await;
            let key = |i| format!("/{:05}", if descending { 39_999 - i } else { i });
            assert_eq!(listed, (offset..offset + 5).map(key).collect::<Vec<_>>());
            let asked = parts.index.list_calls.load(SeqCst) - before;
            assert_eq!(asked, statements, "offset {offset}");
        }
    }
    for offset in [40_000, u64::MAX] {
        let nothing = QueryOptions::default().with_offset(offset);
        assert!(all_keys(&ds, nothing).await.is_empty());
    }
    ds.close().await.unwrap();
}

#[tokio::test]
async fn a_listing_goes_on_where_a_whole_page_was_deleted_meanwhile() {
    let parts = Parts::default();
    let ds = parts.open("");
    let keys: Vec<_> = (0..300).map(|i| format!("/{i:03}")).collect();
    ds.commit(keys.iter().map(|key| put(key, b"x")).collect())
        .await
        .unwrap();
    let mut query = ds.query(QueryOptions::default()).unwrap();
    let first = query.next_page().await.unwrap().len();
    // The next rows are listed; their values are not read yet.
    while parts.index.list_calls.load(SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    for key in &keys[first..290] {
        ds.delete(key).await.unwrap();
    }
    let rest = query.next_page().await.unwrap();
    let rest: Vec<_> = rest.into_iter().map(|entry| entry.key).collect();
    assert_eq!(rest, keys[290..]);
    assert!(query.next_page().await.unwrap().is_empty());
    drop(query);
    ds.close().await.unwrap();
}

#[tokio::test]
async fn a_query_reads_values_and_survives_a_lost_one_and_deletes() {
    let parts = Parts::default();
    let ds = parts.open("");
    for i in 0..200 {
        ds.put(&format!("/{i:03}"), Bytes::from(format!("value {i}")))
            .await
            .unwrap();
    }
    let lost = parts.index.rows.lock()["/150"].blob_id.clone();
    parts.store.blobs.lock().remove(&lost);
    let mut query = ds.query(QueryOptions::default()).unwrap();
    let (mut good, mut bad) = (0, 0);
    loop {
        let page = query.next_page().await.unwrap();
        if page.is_empty() {
            break;
        }
        for entry in page {
            match entry.value.unwrap() {
                Ok(value) => {
                    assert_eq!(
                        value,
                        format!("value {}", entry.key[1..].parse::<u32>().unwrap())
                    );
                    assert_eq!(entry.size, value.len() as u64);
                    good += 1;
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::BlobNotFound);
                    assert_eq!(entry.key, "/150");
                    bad += 1;
                }
            }
            // Kubo's garbage collection deletes while it lists.
            ds.delete(&entry.key).await.unwrap();
        }
    }
    assert_eq!((good, bad), (199, 1));
    assert!(parts.index.rows.lock().is_empty());
    drop(query);
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_calls_in_flight_and_refuses_later_ones() {
    let parts = Parts::default();
    parts.store.put_ms.store(100, SeqCst);
    let ds = Arc::new(parts.open(""));
    let putting = tokio::spawn({
        let ds = Arc::clone(&ds);
        async move { ds.put("/k", Bytes::from_static(b"v")).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    ds.close().await.unwrap();
    putting.await.unwrap().unwrap();
    assert!(parts.index.rows.lock().contains_key("/k"));
    assert_eq!(ds.get("/k").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        ds.put("/k", Bytes::new()).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(ds.sync("/").await.unwrap_err().kind(), ErrorKind::Closed);
    assert!(ds.query(QueryOptions::default()).is_err());
    ds.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn uploads_run_in_parallel_up_to_the_limit() {
    let parts = Parts::default();
    parts.store.put_ms.store(30, SeqCst);
    let ds = parts.open(r#""packTargetSizeBytes":100,"workers":5,"#);
    ds.commit(blocks(30, 100)).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 30);
    assert_eq!(parts.store.puts_peak.load(SeqCst), 5);
    ds.close().await.unwrap();
}

const RENEWING: &str = r#""epochs":3,"epochDurationSeconds":1000,"renewIntervalSeconds":1,"#;

#[tokio::test(start_paused = true)]
async fn blobs_are_renewed_before_they_lapse_and_once() {
    let parts = Parts::default();
    let ds = parts.open(RENEWING);
    let other_node = parts.open(RENEWING);
    ds.commit(blocks(5, 100)).await.unwrap();
    let first: SystemTime = parts
        .index
        .rows
        .lock()
        .values()
        .next()
        .unwrap()
        .expires_at
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(parts.store.puts.load(SeqCst), 1, "not due yet");
    parts.store.epoch.store(3, SeqCst);
    parts.clock.advance(Duration::from_secs(1500));
    eventually("renewal", || {
        parts
            .index
            .rows
            .lock()
            .values()
            .all(|r| r.end_epoch == 6 && r.expires_at.unwrap() > first)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        parts.store.puts.load(SeqCst),
        2,
        "renewed once, by one node"
    );
    ds.close().await.unwrap();
    other_node.close().await.unwrap();
    let leases = parts.index.leases.lock();
    assert!(leases.is_empty(), "not given back: {leases:?}");
}

/// A command need not wait for minutes after each round of a node.
#[tokio::test(start_paused = true)]
async fn a_command_renews_beside_a_node_between_its_rounds() {
    let parts = Parts::default();
    let node = parts.open(RENEWING);
    let rounds = || parts.index.notes.lock().contains_key("renewal.round");
    eventually("a round of the node", rounds).await;
    let command = parts.open(r#""epochs":3,"epochDurationSeconds":1000,"#);
    command.renew_once(std::future::pending()).await.unwrap();
    let held = parts.index.leases.lock().contains_key("renewal-turn");
    assert!(held, "the node keeps its turn");
    command.close().await.unwrap();
    node.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_reads_wrong_is_not_renewed_nor_paid() {
    let parts = Parts::default();
    let ds = parts.open(RENEWING);
    ds.commit(blocks(3, 100)).await.unwrap();
    let blob = parts
        .index
        .rows
        .lock()
        .values()
        .next()
        .unwrap()
        .blob_id
        .clone();
    parts
        .store
        .blobs
        .lock()
        .insert(blob.clone(), noise(77, 300));
    parts.clock.advance(Duration::from_secs(5000));
    let mut line = None;
    eventually("a complaint", || {
        line = ds.next_log_line();
        line.is_some()
    })
    .await;
    let message = line.unwrap().message;
    assert!(
        message.contains(&blob) && message.contains("does not hash"),
        "{message}"
    );
    assert_eq!(parts.store.puts.load(SeqCst), 1);
    ds.close().await.unwrap();
}

#[tokio::test]
async fn a_block_about_to_lapse_is_stored_anew() {
    let parts = Parts::default();
    let ds = parts.open(r#""epochs":3,"epochDurationSeconds":1000,"#);
    let ops = blocks(1, 100);
    ds.commit(ops.clone()).await.unwrap();
    ds.commit(ops.clone()).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 1);
    parts.clock.advance(Duration::from_secs(1800));
    ds.commit(ops).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 2);
    ds.close().await.unwrap();
}

/// The default of one epoch with renewal on: a publisher takes no second store for the same epoch.
#[tokio::test(start_paused = true)]
async fn renewals_buy_two_epochs_at_least() {
    let parts = Parts::default();
    let ds = parts.open(r#""epochs":1,"epochDurationSeconds":1000,"renewIntervalSeconds":1,"#);
    ds.commit(blocks(3, 100)).await.unwrap();
    eventually("renewal", || {
        parts.index.rows.lock().values().all(|r| r.end_epoch == 3)
    })
    .await;
    let line = ds.next_log_line().unwrap();
    assert!(line.message.contains("epochs is 1"), "{}", line.message);
    ds.close().await.unwrap();
}

/// A store that bills every upload must not be asked at every round of the renewer.
#[tokio::test(start_paused = true)]
async fn a_renewed_blob_rests_although_the_lead_is_long() {
    let parts = Parts::default();
    let ds = parts.open(
        r#""epochs":2,"deletable":true,"epochDurationSeconds":1000,"renewIntervalSeconds":1,"renewLeadSeconds":5000,"#,
    );
    ds.commit(blocks(3, 100)).await.unwrap();
    eventually("renewal", || parts.store.puts.load(SeqCst) == 2).await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(parts.store.puts.load(SeqCst), 2, "paid again");
    ds.close().await.unwrap();
}

/// Rows without an estimate (renewal off): a later store tells that their epoch is over.
#[tokio::test]
async fn a_block_whose_epoch_is_over_is_stored_anew() {
    let parts = Parts::default();
    let ds = parts.open(r#""epochs":2,"#);
    let ops = blocks(1, 100);
    ds.commit(ops.clone()).await.unwrap();
    parts.store.epoch.store(3, SeqCst);
    ds.put("/other", Bytes::from_static(b"tells the epoch"))
        .await
        .unwrap();
    ds.commit(ops).await.unwrap();
    assert_eq!(parts.store.puts.load(SeqCst), 3);
    ds.close().await.unwrap();
}
