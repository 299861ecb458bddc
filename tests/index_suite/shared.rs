//! The behaviour that every index shares.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use walrusds::index::MAX_KEY_BYTES;
use walrusds::{
    Error, ErrorKind, Index, KeyRange, KeyRecord, ListItem, Record, RenewItem, Renewal, Usage,
};

use crate::Env;
use testkit::PATIENCE;

pub fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

pub fn row(key: &str, blob_id: &str, offset: i64, size: i64) -> KeyRecord {
    KeyRecord::new(key, Record::new(blob_id, offset, size))
}

fn due(key: &str, blob_id: &str, expires: u64, end_epoch: i64, deletable: bool) -> KeyRecord {
    let mut row = row(key, blob_id, 0, 1);
    row.record.expires_at = Some(time(expires));
    row.record.end_epoch = end_epoch;
    row.record.deletable = deletable;
    row
}

/// The keys of a range, asked for as a query does.
async fn list_in_pages(index: &dyn Index, mut range: KeyRange, page: usize) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let items = index.list(&range, 0, page).await.unwrap();
        assert!(items.len() <= page);
        let end = items.len() < page;
        all.extend(items.into_iter().map(|item| item.key));
        match all.last() {
            Some(last) if !end => range = range.after(last.as_str()),
            _ => return all,
        }
    }
}

pub async fn keys(index: &dyn Index, prefix: &str) -> Vec<String> {
    list_in_pages(index, KeyRange::prefix(prefix), 1000).await
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e.kind(),
    }
}

pub async fn put_get_and_overwrite(env: Env) {
    let record = Record::new("Q0_blob", 4096, 262_144)
        .with_deletable(true)
        .with_end_epoch(77)
        .with_expires_at(Some(time(1_900_000_000) + Duration::from_micros(123_456)));
    let key = "/CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y";
    assert_eq!(env.a.get(key).await.unwrap(), None);
    let row = KeyRecord::new(key, record);
    env.a.put(&row).await.unwrap();
    assert_eq!(env.a.get(key).await.unwrap().as_ref(), Some(&row.record));
    assert_eq!(
        env.b.get(key).await.unwrap().as_ref(),
        Some(&row.record),
        "seen by another node at once"
    );

    let mut newer = row.clone();
    newer.record = Record::new("other", 0, 0);
    env.b.put_many(std::slice::from_ref(&newer)).await.unwrap();
    assert_eq!(
        env.a.get(key).await.unwrap(),
        Some(newer.record),
        "every column is replaced"
    );
    assert_eq!(env.a.staged_value(key).await.unwrap(), None);
    env.a.put_many(&[]).await.unwrap();
}

pub async fn get_many_keeps_order(env: Env) {
    let rows: Vec<_> = (0..100)
        .map(|i| row(&format!("/k{i}"), "b", i, i))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    assert_eq!(env.a.get_many(&[]).await.unwrap(), vec![]);
    for count in [1, 3, 100] {
        let mut wanted: Vec<String> = (0..count).rev().map(|i| format!("/k{i}")).collect();
        wanted.insert(1, "/missing".into());
        wanted.push(wanted[0].clone()); // twice
        let found = env.b.get_many(&wanted).await.unwrap();
        assert_eq!(found.len(), wanted.len());
        for (key, record) in wanted.iter().zip(&found) {
            match key.strip_prefix("/k") {
                Some(i) => assert_eq!(record.as_ref().unwrap().offset.to_string(), i),
                None => assert!(record.is_none()),
            }
        }
    }
}

pub async fn deletes_count(env: Env) {
    let rows: Vec<_> = (1..=5)
        .map(|i| row(&format!("/k{i}"), "b", 0, i * 10))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    assert_eq!(env.b.delete("/k1").await.unwrap(), Usage::new(1, 10));
    assert_eq!(
        env.a.get("/k1").await.unwrap(),
        None,
        "gone for every node on return"
    );
    assert_eq!(
        env.a.delete("/k1").await.unwrap(),
        Usage::default(),
        "idempotent"
    );
    let keys: Vec<String> = ["/k2", "/none", "/k3", "/k2"].map(String::from).into();
    assert_eq!(env.a.delete_many(&keys).await.unwrap(), Usage::new(2, 50));
    assert_eq!(env.a.delete_many(&[]).await.unwrap(), Usage::default());
    assert_eq!(self::keys(&*env.a, "").await, ["/k4", "/k5"]);
    // A later put wins over an earlier delete.
    env.a.put(&rows[0]).await.unwrap();
    assert!(env.b.get("/k1").await.unwrap().is_some());
}

pub async fn keys_that_are_refused(env: Env) {
    let long = "/".repeat(MAX_KEY_BYTES + 1);
    for bad in ["/a\0b", "\0", long.as_str()] {
        let bad_keys = ["/good".to_owned(), bad.to_owned()];
        assert_eq!(
            kind(env.a.put(&row(bad, "b", 0, 1)).await),
            ErrorKind::InvalidArgument
        );
        assert_eq!(
            kind(
                env.a
                    .put_many(&[row("/good", "b", 0, 1), row(bad, "b", 0, 1)])
                    .await
            ),
            ErrorKind::InvalidArgument
        );
        assert_eq!(kind(env.a.get(bad).await), ErrorKind::InvalidArgument);
        assert_eq!(
            kind(env.a.get_many(&bad_keys).await),
            ErrorKind::InvalidArgument
        );
        assert_eq!(
            kind(env.a.staged_value(bad).await),
            ErrorKind::InvalidArgument
        );
        assert_eq!(kind(env.a.delete(bad).await), ErrorKind::InvalidArgument);
        assert_eq!(
            kind(env.a.delete_many(&bad_keys).await),
            ErrorKind::InvalidArgument
        );
    }
    let message = env.a.get(&long).await.unwrap_err().to_string();
    assert!(
        message.contains(&MAX_KEY_BYTES.to_string()) && message.contains("2049"),
        "{message}"
    );
    assert_eq!(
        kind(env.a.list(&KeyRange::prefix("/a\0"), 0, 1).await),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(env.a.list(&KeyRange::ALL.except("/a\0"), 0, 1).await),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(env.a.put(&row("/k", "b\0", 0, 1)).await),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(env.a.try_lease("a\0", "o", Duration::from_secs(1)).await),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(
            env.a
                .put_many(&[row("/t", "b", 0, 1), row("/t", "c", 0, 1)])
                .await
        ),
        ErrorKind::InvalidArgument
    );
    assert!(
        keys(&*env.a, "").await.is_empty(),
        "nothing of a refused call is stored"
    );
}

pub fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "",
        "a",
        "/",
        "//",
        "/a",
        "/A",
        "/a/b",
        "/a//b",
        "/a_c",
        "/abc",
        "/axc",
        "/a%",
        "/a%b",
        "/a\\",
        "/a\\b",
        "/a'b",
        "/a\"b",
        "/a;--",
        "/a$1",
        "/a{b}",
        "/a b",
        "/a\tb",
        "/a\nb",
        " /a",
        "/a ",
        "/ä",
        "/a\u{308}",
        "/é",
        "/ß",
        "/ss",
        "/中文",
        "/\u{1F600}",
        "/\u{7f}",
        "/\u{80}",
        "/\u{D7FF}",
        "/\u{E000}",
        "/\u{FFFF}",
        "/\u{10FFFF}",
        "/\u{10FFFF}x",
        "\u{10FFFF}",
        "/\u{202e}x",
        "/-a",
        "/a-b",
        "/ab",
        "/aB",
        "/B",
        "/_",
        "/~",
        "/NULL",
        "/\u{feff}a",
    ]
    .map(String::from)
    .into();
    // Hard to compress, so that the limit of a B-tree entry would show.
    let mut state = 7u64;
    let noise: String = (0..MAX_KEY_BYTES)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + ((state >> 33) % 94) as u8)
        })
        .collect();
    keys.push(noise);
    keys
}

pub async fn odd_keys_are_exact(env: Env) {
    let all = odd_keys();
    let rows: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(i, key)| row(key, "b", i as i64, 1))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    for (i, key) in all.iter().enumerate() {
        let record = env
            .b
            .get(key)
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("{key:?} is missing"));
        assert_eq!(record.offset, i as i64, "{key:?}");
    }
    let found = env.a.get_many(&all).await.unwrap();
    assert!(found
        .iter()
        .enumerate()
        .all(|(i, r)| r.as_ref().unwrap().offset == i as i64));
    for key in &all {
        assert_eq!(env.a.delete(key).await.unwrap().blocks, 1, "{key:?}");
    }
    assert!(keys(&*env.a, "").await.is_empty());
}

pub async fn prefixes_are_exact(env: Env) {
    let all = odd_keys();
    let rows: Vec<_> = all.iter().map(|key| row(key, "b", 0, 1)).collect();
    env.a.put_many(&rows).await.unwrap();
    let mut prefixes: Vec<String> = vec![
        String::new(),
        "/a%b".into(),
        "/nothing".into(),
        "\u{10FFFF}\u{10FFFF}".into(),
    ];
    for key in &all {
        prefixes.extend(
            key.char_indices()
                .skip(1)
                .take(4)
                .map(|(i, _)| key[..i].to_owned()),
        );
        prefixes.push(key.clone());
    }
    for prefix in prefixes {
        let mut expected: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|k| k.starts_with(&prefix))
            .collect();
        expected.sort_unstable();
        assert_eq!(keys(&*env.a, &prefix).await, expected, "prefix {prefix:?}");
    }
}

pub async fn listing_is_in_byte_order(env: Env) {
    let all = odd_keys();
    let rows: Vec<_> = all
        .iter()
        .map(|key| row(key, "b", 0, key.len() as i64))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    for page in [1usize, 2, 7, 1000] {
        let listed = list_in_pages(&*env.b, KeyRange::ALL, page).await;
        assert_eq!(listed, sorted, "pages of {page}");
        let mut back = list_in_pages(&*env.b, KeyRange::ALL.descending(), page).await;
        back.reverse();
        assert_eq!(back, sorted, "pages of {page}, descending");
    }
    let items = env.b.list(&KeyRange::ALL, 0, sorted.len()).await.unwrap();
    assert!(items.iter().all(|i| i.size == i.key.len() as i64));
    assert!(env.a.list(&KeyRange::ALL, 0, 0).await.unwrap().is_empty());
    // Positions before, within and after the prefix.
    let after = |prefix: &str, key: &str| KeyRange::prefix(prefix).after(key);
    let b = env.a.list(&after("/B", "/A"), 0, 9).await.unwrap();
    assert_eq!(b[0].key, "/B");
    for position in ["/B", "/z"] {
        let page = env.a.list(&after("/B", position), 0, 9).await.unwrap();
        assert!(page.is_empty(), "{position}");
    }
    let first = env.a.list(&after("/a", ""), 0, 1).await.unwrap();
    assert_eq!(first[0].key, "/a");
    let mut with_expiry = row("/zz", "b", 0, 5);
    with_expiry.record.expires_at = Some(time(5));
    env.a.put(&with_expiry).await.unwrap();
    let expected = ListItem::new("/zz", 5, Some(time(5)));
    let listed = env.a.list(&KeyRange::prefix("/zz"), 0, 2).await.unwrap();
    assert_eq!(listed, [expected]);
}

/// Every kind of bound, with and without an order, an offset and a limit, on every odd key.
pub async fn ranges_of_keys(env: Env) {
    let all = odd_keys();
    let rows: Vec<_> = all.iter().map(|key| row(key, "b", 0, 1)).collect();
    env.a.put_many(&rows).await.unwrap();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    for (i, key) in all.iter().enumerate() {
        let other = &all[(i * 7 + 3) % all.len()];
        let including = |key: &str| Bound::Included(key.to_owned());
        let excluding = |key: &str| Bound::Excluded(key.to_owned());
        for range in [
            KeyRange::ALL.from(including(key)),
            KeyRange::ALL.from(excluding(key)),
            KeyRange::ALL.to(including(key)),
            KeyRange::ALL.to(excluding(key)),
            KeyRange::ALL.from(including(key)).to(including(key)),
            KeyRange::ALL.except(key.as_str()).except(other.as_str()),
            KeyRange::ALL.from(including(key)).to(excluding(other)),
            KeyRange::ALL.from(excluding(other)).to(including(key)),
            KeyRange::prefix(key),
            KeyRange::prefix(key)
                .except(key.as_str())
                .to(including(other)),
        ] {
            let alone = range.clone().keys_alone();
            for range in [range.clone(), range.descending(), alone] {
                let mut expected: Vec<_> = sorted.iter().filter(|k| range.contains(k)).collect();
                if range.descending {
                    expected.reverse();
                }
                for (offset, limit) in [(0, 1000), (1, 2), (3, 1), (1000, 1)] {
                    let listed = env.b.list(&range, offset, limit).await.unwrap();
                    let listed: Vec<_> = listed.iter().map(|item| &item.key).collect();
                    let page = expected.iter().skip(offset).take(limit);
                    assert_eq!(listed, page.copied().collect::<Vec<_>>(), "{range:?}");
                }
            }
        }
    }
}

pub async fn listing_pages_while_writing(env: Env) {
    let rows: Vec<_> = (0..2000)
        .map(|i| row(&format!("/k{i:05}"), "b", 0, 1))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    let writer = tokio::spawn(async move {
        for i in (0..2000).step_by(2) {
            env.b.delete(&format!("/k{i:05}")).await.unwrap();
            env.b
                .put(&row(&format!("/new{i:05}"), "b", 0, 1))
                .await
                .unwrap();
        }
    });
    let (mut seen, mut range) = (BTreeSet::new(), KeyRange::prefix("/k"));
    loop {
        let page = env.a.list(&range, 0, 50).await.unwrap();
        for item in &page {
            assert!(seen.insert(item.key.clone()), "{} twice", item.key);
        }
        if page.len() < 50 {
            break;
        }
        range = range.after(page[49].key.as_str());
    }
    writer.await.unwrap();
    for i in (1..2000).step_by(2) {
        assert!(
            seen.contains(&format!("/k{i:05}")),
            "an untouched key was skipped: {i}"
        );
    }
}

pub async fn bulk_put_and_paging(env: Env) {
    let rows: Vec<_> = (0..12_345)
        .rev()
        .map(|i| row(&format!("/k{i:06}"), &format!("blob{}", i % 7), i, 1))
        .collect();
    env.a.put_many(&rows).await.unwrap();
    env.a.put_many(&rows).await.unwrap(); // again: upsert
    let listed = keys(&*env.b, "/k").await;
    assert_eq!(listed.len(), rows.len());
    assert!(listed.windows(2).all(|w| w[0] < w[1]));
    let found = env.b.get_many(&listed).await.unwrap();
    assert!(found
        .iter()
        .enumerate()
        .all(|(i, r)| r.as_ref().unwrap().offset == i as i64));
    let removed = env.b.delete_many(&listed[..5000]).await.unwrap();
    assert_eq!(removed.blocks, 5000);
    assert_eq!(keys(&*env.a, "").await.len(), rows.len() - 5000);
}

/// Whether a reader may see a part of a commit: on Citus, where several workers commit it.
fn seen_in_parts() -> bool {
    testkit::citus::given().is_some()
}

pub async fn put_many_is_all_or_nothing(env: Env) {
    let rows: Vec<_> = (0..11_000)
        .map(|i| row(&format!("/k{i:06}"), "b", 0, 1))
        .collect();
    let reader = {
        let b = env.b.clone();
        tokio::spawn(async move {
            let ends = ["/k000000".to_owned(), "/k010999".to_owned()];
            loop {
                let found = b.get_many(&ends).await.unwrap();
                let seen = found.iter().flatten().count();
                assert!(
                    seen != 1 || seen_in_parts(),
                    "half of a put_many was visible"
                );
                if seen == 2 {
                    return;
                }
            }
        })
    };
    env.a.put_many(&rows).await.unwrap();
    reader.await.unwrap();
}

pub async fn extremes_survive(env: Env) {
    let mut rows = vec![
        row("/max", "b", i64::MAX, i64::MAX),
        row("/min", "b", i64::MIN, i64::MIN),
        row("/negative", "b", -1, 5),
        row("/empty", "", 0, 0),
    ];
    rows[0].record.end_epoch = i64::MAX;
    rows[1].record.end_epoch = i64::MIN;
    rows[0].record.expires_at = Some(SystemTime::UNIX_EPOCH);
    rows[2].record.expires_at = Some(SystemTime::UNIX_EPOCH - Duration::from_micros(1_500_000));
    rows[3].record.expires_at = Some(time(253_402_300_799)); // end of year 9999
    env.a.put_many(&rows).await.unwrap();
    for row in &rows {
        assert_eq!(
            env.b.get(&row.key).await.unwrap().as_ref(),
            Some(&row.record)
        );
    }
    assert!(
        env.a
            .get("/negative")
            .await
            .unwrap()
            .unwrap()
            .range()
            .is_err(),
        "read, and refused where it is used"
    );
    assert_eq!(
        env.a.get("/empty").await.unwrap().unwrap().range().unwrap(),
        0..0
    );
    // Beyond what a database can hold: stored as far away as it can be, not refused.
    let mut far = row("/far", "b", 0, 1);
    far.record.expires_at =
        Some(time(u32::MAX.into()) + Duration::from_secs(60 * 60 * 24 * 365 * 200_000));
    env.a.put(&far).await.unwrap();
    assert!(
        env.a
            .get("/far")
            .await
            .unwrap()
            .unwrap()
            .expires_at
            .unwrap()
            >= time(253_402_300_799)
    );
    let all: Vec<String> = ["/max", "/far"].map(String::from).into();
    assert_eq!(
        env.a.delete_many(&all).await.unwrap(),
        Usage::new(2, i64::MAX),
        "saturates"
    );
}

pub async fn renewal_order_and_pages(env: Env) {
    let mut rows = vec![
        due("/a1", "blobA", 300, 9, false),
        due("/a2", "blobA", 290, 7, true),
        due("/b1", "blobB", 100, 3, false),
        due("/late", "late", 5000, 99, false),
        row("/never", "never", 0, 1),
    ];
    // The same time: by blob ID, in byte order.
    for blob in ["Z", "a", "_", "-"] {
        rows.push(due(&format!("/tie{blob}"), blob, 200, 5, false));
    }
    env.a.put_many(&rows).await.unwrap();
    let item = |blob: &str, expires, end_epoch, deletable| {
        RenewItem::new(blob, time(expires))
            .with_end_epoch(end_epoch)
            .with_deletable(deletable)
    };
    let expected = [
        item("blobB", 100, 3, false),
        item("-", 200, 5, false),
        item("Z", 200, 5, false),
        item("_", 200, 5, false),
        item("a", 200, 5, false),
        item("blobA", 300, 9, true),
    ];
    assert_eq!(
        env.b.due_for_renewal(time(1000), None, 100).await.unwrap(),
        expected
    );
    for page in 1..=3 {
        let (mut all, mut after) = (Vec::new(), None::<RenewItem>);
        loop {
            let items = env
                .a
                .due_for_renewal(time(1000), after.as_ref(), page)
                .await
                .unwrap();
            if items.is_empty() {
                break;
            }
            after = items.last().cloned();
            all.extend(items);
        }
        assert_eq!(all, expected, "pages of {page}");
    }
    assert_eq!(
        env.a.due_for_renewal(time(100), None, 10).await.unwrap(),
        [],
        "strictly before"
    );
    assert_eq!(
        env.a.due_for_renewal(time(1000), None, 0).await.unwrap(),
        []
    );
}

pub async fn renewal_never_goes_back(env: Env) {
    env.a
        .put_many(&[
            due("/1", "blob", 100, 5, false),
            due("/2", "blob", 900, 50, false),
            row("/3", "blob", 0, 1),
            row("/4", "other", 0, 1),
        ])
        .await
        .unwrap();
    let renewal = Renewal::new(20, Some(time(500)));
    assert_eq!(
        env.b
            .update_blob_after_renewal("blob", &renewal)
            .await
            .unwrap(),
        3
    );
    let at = |key: &'static str| {
        let a = env.a.clone();
        async move {
            let record = a.get(key).await.unwrap().unwrap();
            (record.end_epoch, record.expires_at)
        }
    };
    assert_eq!(at("/1").await, (20, Some(time(500))));
    assert_eq!(at("/2").await, (50, Some(time(900))));
    assert_eq!(at("/3").await, (20, Some(time(500))));
    assert_eq!(at("/4").await, (0, None));
    let unknown = Renewal::new(60, None);
    assert_eq!(
        env.a
            .update_blob_after_renewal("blob", &unknown)
            .await
            .unwrap(),
        3
    );
    assert_eq!(
        at("/1").await,
        (60, Some(time(500))),
        "an unknown end takes nothing away"
    );
    assert_eq!(
        env.a
            .update_blob_after_renewal("no such blob", &renewal)
            .await
            .unwrap(),
        0
    );
}

pub async fn rows_of_a_blob(env: Env) {
    let rows = [
        row("/B", "blob", 2, 2),
        row("/a", "blob", 3, 3),
        row("/ä", "blob", 4, 4),
        row("/x", "other", 0, 1),
    ];
    env.a.put_many(&rows).await.unwrap();
    assert_eq!(
        env.b.rows_of_blob("blob").await.unwrap(),
        rows[..3],
        "in byte order of the key"
    );
    assert_eq!(env.b.rows_of_blob("none").await.unwrap(), []);
}

pub async fn rows_of_a_blob_from_an_offset_on(env: Env) {
    let rows = [
        row("/d", "blob", 0, 10),
        row("/b", "blob", 10, 5),
        row("/c", "blob", 10, 5),
        row("/a", "blob", 1 << 40, 5),
    ];
    env.a.put_many(&rows).await.unwrap();
    env.a.put(&row("/x", "other", 12, 1)).await.unwrap();
    let from = async |offset, limit| {
        let rows = env.b.rows_from("blob", offset, limit).await.unwrap();
        rows.into_iter().map(|r| r.key).collect::<Vec<_>>()
    };
    let all = env.b.rows_from("blob", 0, 10).await.unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!((&all[0], &all[3]), (&rows[0], &rows[3]), "whole rows");
    assert_eq!(from(1, 10).await.len(), 3);
    assert_eq!(from(10, 2).await.len(), 2);
    assert_eq!(from(11, 10).await, ["/a"]);
    assert_eq!(from(0, 1).await, ["/d"]);
    assert_eq!(from(u64::MAX, 10).await, [""; 0]);
    assert_eq!(env.b.rows_from("none", 0, 10).await.unwrap(), []);
}

pub async fn rows_move_from_their_blob_alone(env: Env) {
    let keys = ["/a", "/b", "/c", "/d"];
    let all = |blob: &str, offset: i64| -> Vec<KeyRecord> {
        let row = |(n, key): (usize, &&str)| row(key, blob, offset + n as i64, 1);
        keys.iter().enumerate().map(row).collect()
    };
    env.a.put_many(&all("old", 0)).await.unwrap();
    env.b.delete("/b").await.unwrap();
    env.b.put(&row("/c", "other", 7, 1)).await.unwrap();
    let mut moved = all("new", 100);
    moved.push(row("/unknown", "new", 0, 1));
    moved[0].record.expires_at = Some(time(1000));
    moved[0].record.end_epoch = 9;
    moved[0].record.deletable = true;
    if env.quilts {
        moved[3].record.patch_id = Some("patch".into());
    }
    assert_eq!(env.a.move_rows("old", &moved).await.unwrap(), 2);
    let is = |key: &'static str| {
        let b = env.b.clone();
        async move { b.get(key).await.unwrap() }
    };
    assert_eq!(is("/a").await.as_ref(), Some(&moved[0].record));
    assert_eq!(is("/b").await, None, "a deleted row stays deleted");
    assert_eq!(
        is("/c").await.unwrap().blob_id,
        "other",
        "a newer row stays"
    );
    assert_eq!(is("/d").await.as_ref(), Some(&moved[3].record));
    assert_eq!(is("/unknown").await, None);
    assert_eq!(env.b.rows_of_blob("old").await.unwrap(), []);
    assert_eq!(env.a.move_rows("old", &moved).await.unwrap(), 0);
    assert_eq!(env.a.move_rows("old", &[]).await.unwrap(), 0);
    // Back, which takes the patch away.
    assert_eq!(env.b.move_rows("new", &all("old", 0)).await.unwrap(), 2);
    assert_eq!(is("/d").await, Some(row("/d", "old", 3, 1).record));
    let twice = [row("/a", "x", 0, 1), row("/a", "y", 0, 1)];
    let refused = [
        env.a.move_rows("old", &twice).await,
        env.a.move_rows("o\0", &all("new", 0)).await,
        env.a.move_rows("old", &all("n\0", 0)).await,
    ];
    for error in refused {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

pub async fn rows_are_deleted_from_their_blob_alone(env: Env) {
    let rows = [
        row("/a", "lost", 0, 3),
        row("/b", "lost", 3, 4),
        row("/c", "lost", 7, 5),
    ];
    env.a.put_many(&rows).await.unwrap();
    env.b.put(&row("/b", "new", 0, 4)).await.unwrap();
    let keys = ["/c", "/b", "/a", "/none"].map(String::from);
    let removed = env.a.delete_from("lost", &keys[1..]).await.unwrap();
    assert_eq!(removed, Usage::new(1, 3));
    assert_eq!(env.b.get("/a").await.unwrap(), None);
    let kept = env.b.get("/b").await.unwrap().unwrap();
    assert_eq!(kept.blob_id, "new", "a newer row stays");
    assert!(env.b.get("/c").await.unwrap().is_some(), "not asked for");
    let none = Usage::default();
    assert_eq!(env.a.delete_from("lost", &[]).await.unwrap(), none);
    assert_eq!(env.a.delete_from("none", &keys).await.unwrap(), none);
    let refused = [
        env.a.delete_from("l\0", &keys).await,
        env.a.delete_from("lost", &["/a\0".to_owned()]).await,
    ];
    for error in refused {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

pub async fn blobs_of_rows_are_listed_in_pages(env: Env) {
    let mut rows = vec![
        row("/a", "b2", 0, 3),
        row("/b", "b1", 0, 4),
        row("/c", "b2", 3, 5),
        row("/d", "b3", 0, 6),
    ];
    rows[0].record.end_epoch = 7;
    rows[2].record.end_epoch = 9;
    rows[2].record.expires_at = Some(time(1000));
    rows[2].record.deletable = true;
    env.a.put_many(&rows).await.unwrap();
    let all = env.b.blobs_of_rows("", 10).await.unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|blob| (blob.blob_id.as_str(), blob.counted.unwrap().live))
        .collect();
    let expected = [
        ("b1", Usage::new(1, 4)),
        ("b2", Usage::new(2, 8)),
        ("b3", Usage::new(1, 6)),
    ];
    assert_eq!(told, expected);
    let two = &all[1];
    assert_eq!((two.end_epoch, two.deletable), (9, true));
    assert_eq!(two.expires_at, Some(time(1000)));
    let first = env.b.blobs_of_rows("", 2).await.unwrap();
    assert_eq!(first.len(), 2);
    let rest = env.b.blobs_of_rows(&first[1].blob_id, 2).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].blob_id, "b3");
    assert!(env.b.blobs_of_rows("b3", 2).await.unwrap().is_empty());
}

pub async fn moves_of_many_rows_are_one(env: Env) {
    const ROWS: usize = 12_000;
    let all = |blob: &str| -> Vec<KeyRecord> {
        (0..ROWS)
            .map(|n| row(&format!("/{n}"), blob, n as i64, 1))
            .collect()
    };
    env.a.put_many(&all("old")).await.unwrap();
    let a = env.a.clone();
    let to = all("new");
    let moving = tokio::spawn(async move { a.move_rows("old", &to).await });
    while !moving.is_finished() {
        let rows = env.b.rows_of_blob("new").await.unwrap().len();
        let whole = rows == 0 || rows == ROWS;
        assert!(whole || seen_in_parts(), "{rows} of {ROWS} rows are seen");
    }
    assert_eq!(moving.await.unwrap().unwrap(), ROWS as u64);
    let mut moved = env.b.rows_of_blob("new").await.unwrap();
    moved.sort_by_key(|row| row.record.offset);
    assert_eq!(moved, all("new"));
}

pub async fn moves_meet_puts_and_deletes(env: Env) {
    let rows = |keys: std::ops::Range<usize>, blob: &str| -> Vec<KeyRecord> {
        keys.map(|n| row(&format!("/{n:03}"), blob, n as i64, 1))
            .collect()
    };
    for _ in 0..5 {
        env.a.put_many(&rows(0..400, "old")).await.unwrap();
        let (moved, put) = (rows(0..400, "new"), rows(0..200, "put"));
        let deleted: Vec<String> = rows(200..300, "").into_iter().map(|row| row.key).collect();
        let (moved, put, deleted) = tokio::join!(
            env.a.move_rows("old", &moved),
            env.b.put_many(&put),
            env.b.delete_many(&deleted),
        );
        put.unwrap();
        assert_eq!(deleted.unwrap().blocks, 100);
        assert!((100..=400).contains(&moved.unwrap()));
        assert_eq!(env.a.rows_of_blob("put").await.unwrap().len(), 200);
        assert_eq!(env.a.rows_of_blob("new").await.unwrap().len(), 100);
        assert_eq!(env.a.rows_of_blob("old").await.unwrap(), []);
    }
}

pub async fn running_total(env: Env) {
    assert_eq!(env.a.usage().await.unwrap(), Usage::default());
    env.a.add_usage(Usage::new(10, 1000)).await.unwrap();
    env.b.add_usage(Usage::new(-3, -250)).await.unwrap();
    env.b.add_usage(Usage::default()).await.unwrap();
    assert_eq!(env.a.usage().await.unwrap(), Usage::new(7, 750));
    let adds = (0..20).map(|i| {
        let index = if i % 2 == 0 {
            env.a.clone()
        } else {
            env.b.clone()
        };
        tokio::spawn(async move { index.add_usage(Usage::new(1, 2)).await.unwrap() })
    });
    for add in adds.collect::<Vec<_>>() {
        add.await.unwrap();
    }
    assert_eq!(env.b.usage().await.unwrap(), Usage::new(27, 790));
}

pub async fn notes(env: Env) {
    let owned = |all: &[(&str, &str)]| -> Vec<(String, String)> {
        let each = all
            .iter()
            .map(|(name, text)| ((*name).into(), (*text).into()));
        each.collect()
    };
    assert_eq!(env.a.notes("node:", 10).await.unwrap(), []);
    for (name, text) in [
        ("node:b", "2"),
        ("node:B", "1"),
        ("node:_%", "3"),
        ("nodes", "4"),
        ("NODE:a", "5"),
        ("node", "6"),
    ] {
        env.a.set_note(name, Some(text)).await.unwrap();
    }
    let all = [("node:B", "1"), ("node:_%", "3"), ("node:b", "2")];
    assert_eq!(env.b.notes("node:", 10).await.unwrap(), owned(&all));
    assert_eq!(env.b.notes("node:", 2).await.unwrap(), owned(&all[..2]));
    assert_eq!(env.b.notes("node:_", 9).await.unwrap(), owned(&all[1..2]));
    env.b.set_note("node:B", None).await.unwrap();
    env.b.set_note("node:b", Some("7")).await.unwrap();
    let left = [("node:_%", "3"), ("node:b", "7")];
    assert_eq!(env.a.notes("node:", 10).await.unwrap(), owned(&left));
    assert_eq!(env.a.note("nodes").await.unwrap().as_deref(), Some("4"));
}

pub async fn leases(env: Env) {
    let long = Duration::from_secs(60);
    assert!(env.a.try_lease("renew", "node-a", long).await.unwrap());
    assert!(!env.b.try_lease("renew", "node-b", long).await.unwrap());
    assert!(
        env.a.try_lease("renew", "node-a", long).await.unwrap(),
        "prolonged by its owner"
    );
    assert!(env.b.try_lease("other", "node-b", long).await.unwrap());
    env.b.release_lease("renew", "node-b").await.unwrap(); // not its owner: nothing happens
    assert!(!env.b.try_lease("renew", "node-b", long).await.unwrap());
    env.a.release_lease("renew", "node-a").await.unwrap();
    assert!(env
        .b
        .try_lease("renew", "node-b", Duration::from_millis(300))
        .await
        .unwrap());
    let begun = std::time::Instant::now();
    let mut refused = 0;
    while !env
        .a
        .try_lease("renew", "node-a", Duration::MAX)
        .await
        .unwrap()
    {
        assert!(begun.elapsed() < PATIENCE, "an expired lease is never free");
        refused += 1;
    }
    assert!(
        refused > 0 || begun.elapsed() >= Duration::from_millis(300),
        "a lease of another node was taken before it ended"
    );
    env.a
        .release_lease("no such lease", "node-a")
        .await
        .unwrap();
    // Many at once: one wins.
    let tries = (0..16).map(|i| {
        let index = if i % 2 == 0 {
            env.a.clone()
        } else {
            env.b.clone()
        };
        tokio::spawn(async move {
            index
                .try_lease("rush", &format!("n{i}"), Duration::from_secs(60))
                .await
                .unwrap()
        })
    });
    let mut won = 0;
    for one in tries.collect::<Vec<_>>() {
        won += usize::from(one.await.unwrap());
    }
    assert_eq!(won, 1);
}

pub async fn quilt_members(env: Env) {
    let mut member = row("/q", "quilt", 0, 10);
    member.record.patch_id = Some("patch".into());
    let result = env.a.put(&member).await;
    if !env.quilts {
        assert_eq!(kind(result), ErrorKind::Unsupported);
        return;
    }
    result.unwrap();
    assert_eq!(env.b.get("/q").await.unwrap(), Some(member.record.clone()));
    assert_eq!(env.b.rows_of_blob("quilt").await.unwrap(), [member]);
    let plain = row("/q", "concat", 5, 10);
    env.a.put(&plain).await.unwrap();
    assert_eq!(
        env.b.get("/q").await.unwrap(),
        Some(plain.record),
        "no patch ID is left behind"
    );
}

/// Members of quilts whose patch IDs are of their blobs are rows of every table.
pub async fn members_of_a_true_quilt(env: Env) {
    let blob = "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCw";
    let patches = [
        "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCwBAQACAA",
        "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCwBAgADAA",
    ];
    let members = ["/q1", "/q2"].iter().zip(patches).map(|(key, patch)| {
        let mut member = row(key, blob, 0, 10);
        member.record.patch_id = Some(patch.to_owned());
        member
    });
    let members: Vec<_> = members.collect();
    env.a.put_many(&members).await.unwrap();
    let keys: Vec<String> = members.iter().map(|member| member.key.clone()).collect();
    let all = || members.iter().map(|member| Some(member.record.clone()));
    assert_eq!(
        env.b.get_many(&keys).await.unwrap(),
        all().collect::<Vec<_>>()
    );
    assert_eq!(env.b.get("/q2").await.unwrap(), all().nth(1).unwrap());
    let mut rows = env.b.rows_of_blob(blob).await.unwrap();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(rows, members);
    let moved = [row("/q1", "new", 7, 10)];
    assert_eq!(env.a.move_rows(blob, &moved).await.unwrap(), 1);
    assert_eq!(
        env.b.get("/q1").await.unwrap().as_ref(),
        Some(&moved[0].record)
    );
    env.a.delete("/q2").await.unwrap();
    assert_eq!(env.b.get("/q2").await.unwrap(), None);
    let mut other = members[0].clone();
    other.record.blob_id = "isJUV15Cqlr3O0HUFwK2cURUQ20sFo9Gt1BVOQ_3TZQ".into();
    let put = env.a.put(&other).await;
    match env.quilts {
        true => put.unwrap(),
        false => assert_eq!(kind(put), ErrorKind::Unsupported),
    }
}

pub async fn concurrent_use(env: Env) {
    let mut tasks = Vec::new();
    for task in 0..32 {
        let index = if task % 2 == 0 {
            env.a.clone()
        } else {
            env.b.clone()
        };
        tasks.push(tokio::spawn(async move {
            for i in 0..20 {
                let key = format!("/t{task}/{i}");
                index.put(&row(&key, "b", i, 1)).await.unwrap();
                assert_eq!(index.get(&key).await.unwrap().unwrap().offset, i);
                // Rows that others write too, in another order.
                let mut shared: Vec<_> = (0..10)
                    .map(|n| row(&format!("/shared{n}"), "b", i, 1))
                    .collect();
                if task % 3 == 0 {
                    shared.reverse();
                }
                index.put_many(&shared).await.unwrap();
                if i % 5 == 0 {
                    index
                        .delete_many(&["/shared3".into(), "/shared1".into()])
                        .await
                        .unwrap();
                }
                if i % 2 == 0 {
                    assert_eq!(index.delete(&key).await.unwrap().blocks, 1);
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(keys(&*env.a, "/t").await.len(), 32 * 10);
}

pub async fn closing(env: Env) {
    env.a.put(&row("/k", "b", 0, 1)).await.unwrap();
    let a = env.a.clone();
    let running = tokio::spawn(async move {
        let mut done = 0;
        loop {
            match a.put(&row("/running", "b", done, 1)).await {
                Ok(()) => done += 1,
                Err(e) => return (done, e),
            }
        }
    });
    let begun = std::time::Instant::now();
    while env.a.get("/running").await.unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "no put is done");
    }
    env.a.close().await.unwrap();
    let (done, error) = running.await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    env.a.close().await.unwrap();

    let key = "/k".to_owned();
    let keys = [key.clone()];
    let record = row("/k", "b", 0, 1);
    let renewal = Renewal::new(1, None);
    let a = &env.a;
    assert_eq!(kind(a.put(&record).await), ErrorKind::Closed);
    assert_eq!(
        kind(a.move_rows("b", std::slice::from_ref(&record)).await),
        ErrorKind::Closed
    );
    assert_eq!(kind(a.put_many(&[record]).await), ErrorKind::Closed);
    assert_eq!(kind(a.get(&key).await), ErrorKind::Closed);
    assert_eq!(kind(a.get_many(&keys).await), ErrorKind::Closed);
    assert_eq!(kind(a.staged_value(&key).await), ErrorKind::Closed);
    assert_eq!(kind(a.delete(&key).await), ErrorKind::Closed);
    assert_eq!(kind(a.delete_many(&keys).await), ErrorKind::Closed);
    assert_eq!(kind(a.list(&KeyRange::ALL, 0, 1).await), ErrorKind::Closed);
    assert_eq!(
        kind(a.due_for_renewal(time(1), None, 1).await),
        ErrorKind::Closed
    );
    assert_eq!(kind(a.rows_of_blob("b").await), ErrorKind::Closed);
    assert_eq!(
        kind(a.update_blob_after_renewal("b", &renewal).await),
        ErrorKind::Closed
    );
    assert_eq!(kind(a.usage().await), ErrorKind::Closed);
    assert_eq!(kind(a.add_usage(Usage::new(1, 1)).await), ErrorKind::Closed);
    assert_eq!(
        kind(a.try_lease("l", "o", Duration::from_secs(1)).await),
        ErrorKind::Closed
    );
    assert_eq!(kind(a.release_lease("l", "o").await), ErrorKind::Closed);

    assert!(
        env.b.get("/k").await.unwrap().is_some(),
        "the other node is not affected"
    );
    if done > 0 {
        assert_eq!(
            env.b.get("/running").await.unwrap().unwrap().offset,
            done - 1,
            "what was acknowledged is there"
        );
    }
    let both = Arc::new(env.b);
    let (one, two) = tokio::join!(both.close(), both.close());
    one.unwrap();
    two.unwrap();
}
