//! The ledger of blobs, as every index keeps it.

use std::time::Duration;

use walrusds::clock::Sighting;
use walrusds::{Blob, BlobState, Renewal, Usage};

use crate::shared::{row, time};
use crate::Env;

fn blob(blob_id: &str) -> Blob {
    let mut blob = Blob::default();
    blob.blob_id = blob_id.to_owned();
    blob
}

fn usage(blocks: i64, bytes: i64) -> Usage {
    Usage::new(blocks, bytes)
}

async fn entry(env: &Env, blob_id: &str) -> Option<Blob> {
    let mut found = env.b.blobs(&[blob_id.to_owned()]).await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

async fn known(env: &Env, blob_id: &str) -> Blob {
    entry(env, blob_id).await.expect(blob_id)
}

/// Runs the pass that counts, in pages of `limit`.
async fn count(env: &Env, limit: usize) {
    let mut after = Some(String::new());
    while let Some(last) = after {
        after = env.a.count(&last, limit).await.unwrap();
        assert!(after.as_ref().is_none_or(|next| *next > last));
    }
}

pub async fn an_entry_is_written_with_its_rows(env: Env) {
    let mut told = blob("blob");
    told.object_id = "0x1".to_owned();
    told.format = "car".to_owned();
    told.size = 30;
    told.encoded_size = 66_034_000;
    told.cost = 12;
    told.deletable = true;
    told.registered_epoch = 4;
    told.end_epoch = 9;
    told.expires_at = Some(time(900) + Duration::from_micros(7));
    told.digest = "ab".repeat(32);
    let rows = [row("/a", "blob", 0, 10), row("/b", "blob", 10, 20)];
    env.a.place(&told, &rows).await.unwrap();
    let mut found = known(&env, "blob").await;
    assert!(found.state_since.take().is_some());
    assert_eq!(found, told);
    assert_eq!(env.b.rows_of_blob("blob").await.unwrap(), rows);
    let due = env.b.due_for_renewal(time(901), None, 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert!(due[0].deletable && due[0].end_epoch == 9);

    // Rows alone make an entry as well, one for each blob; a row without a blob makes none.
    let rows = [
        row("/c", "one", 0, 1),
        row("/d", "two", 0, 1),
        row("/e", "", 0, 1),
    ];
    env.a.put_many(&rows).await.unwrap();
    assert_eq!(known(&env, "one").await.size, 0);
    assert_eq!(entry(&env, "").await, None);
    assert_eq!(entry(&env, "three").await, None);
    let ids = ["two", "three", "one"].map(str::to_owned);
    let found = env.a.blobs(&ids).await.unwrap();
    let found: Vec<Option<&str>> = found
        .iter()
        .map(|blob| blob.as_ref().map(|blob| blob.blob_id.as_str()))
        .collect();
    assert_eq!(found, [Some("two"), None, Some("one")]);

    // Neither is there without the other.
    let bad = [row("/f", "bad", 0, 1), row("/\0", "bad", 0, 1)];
    env.a.place(&blob("bad"), &bad).await.unwrap_err();
    assert_eq!(entry(&env, "bad").await, None);
}

pub async fn what_is_known_anew_replaces_what_was_known(env: Env) {
    let mut told = blob("blob");
    told.object_id = "0x1".to_owned();
    told.format = "car".to_owned();
    told.size = 30;
    told.cost = 12;
    told.end_epoch = 9;
    told.expires_at = Some(time(900));
    told.digest = "ab".repeat(32);
    env.a
        .place(&told, &[row("/a", "blob", 0, 10)])
        .await
        .unwrap();

    // An answer that the network has the blob already names no object.
    let mut again = blob("blob");
    again.end_epoch = 7;
    again.cost = 1;
    env.a
        .place(&again, &[row("/b", "blob", 10, 10)])
        .await
        .unwrap();
    let found = known(&env, "blob").await;
    assert_eq!((found.end_epoch, found.cost, found.size), (9, 13, 30));
    assert_eq!(found.object_id, "0x1");
    assert_eq!((found.format, found.digest), (told.format, told.digest));
    assert_eq!(found.expires_at, Some(time(900)));

    // A new registration that ends later is the one to extend.
    again.object_id = "0x2".to_owned();
    assert_eq!(env.a.renewed(&again).await.unwrap(), 2);
    assert_eq!(known(&env, "blob").await.object_id, "0x1");
    again.end_epoch = 20;
    again.expires_at = Some(time(2000));
    assert_eq!(env.a.renewed(&again).await.unwrap(), 2);
    let found = known(&env, "blob").await;
    assert_eq!((found.object_id.as_str(), found.end_epoch), ("0x2", 20));
    assert_eq!(found.cost, 15);
    // Its answer was lost, so it is noted once more.
    assert_eq!(env.a.renewed(&again).await.unwrap(), 2);
    env.a
        .place(&again, &[row("/b", "blob", 10, 10)])
        .await
        .unwrap();
    assert_eq!(known(&env, "blob").await.cost, 15);
    let row = env.b.get("/a").await.unwrap().unwrap();
    assert_eq!((row.end_epoch, row.expires_at), (20, Some(time(2000))));

    // A cost beyond all measure saturates.
    again.cost = i64::MAX;
    again.end_epoch = 21;
    env.a.renewed(&again).await.unwrap();
    assert!(known(&env, "blob").await.cost > i64::MAX / 2);
    let renewal = Renewal::new(30, None);
    env.a
        .update_blob_after_renewal("blob", &renewal)
        .await
        .unwrap();
    let found = known(&env, "blob").await;
    assert_eq!((found.end_epoch, found.expires_at), (30, Some(time(2000))));
}

pub async fn rows_move_with_an_entry(env: Env) {
    let rows = [
        row("/a", "old", 0, 10),
        row("/b", "old", 10, 20),
        row("/c", "other", 0, 1),
    ];
    env.a.put_many(&rows).await.unwrap();
    let mut told = blob("new");
    told.size = 99;
    let to = [
        row("/a", "new", 5, 10),
        row("/c", "new", 20, 1),
        row("/gone", "new", 0, 1),
    ];
    assert_eq!(env.a.move_to("old", &told, &to).await.unwrap(), 1);
    assert_eq!(known(&env, "new").await.size, 99);
    assert_eq!(env.b.get("/c").await.unwrap().unwrap().blob_id, "other");
    let ids = ["new", "old", "none"].map(str::to_owned);
    let live = env.b.live(&ids).await.unwrap();
    assert_eq!(live, [usage(1, 10), usage(1, 20), usage(0, 0)]);
}

pub async fn states_of_blobs(env: Env) {
    for name in ["a", "b", "c"] {
        let mut told = blob(name);
        told.end_epoch = 5;
        told.expires_at = Some(time(50));
        let rows = [row(&format!("/{name}"), name, 0, 1)];
        env.a.place(&told, &rows).await.unwrap();
    }
    let ids = ["c", "a", "none"].map(str::to_owned);
    assert_eq!(env.a.set_state(&ids, BlobState::Released).await.unwrap(), 2);
    assert_eq!(env.a.set_state(&ids, BlobState::Released).await.unwrap(), 0);
    let listed = async |state, after: &str, limit| -> Vec<String> {
        let blobs = env.b.blobs_in_state(state, after, limit).await.unwrap();
        blobs.into_iter().map(|blob| blob.blob_id).collect()
    };
    assert_eq!(listed(BlobState::Released, "", 9).await, ["a", "c"]);
    assert_eq!(listed(BlobState::Released, "", 1).await, ["a"]);
    assert_eq!(listed(BlobState::Released, "a", 9).await, ["c"]);
    assert_eq!(listed(BlobState::Live, "", 9).await, ["b"]);
    // A blob that has rows stays in the ledger.
    assert_eq!(env.a.forget_blobs(&ids).await.unwrap(), 0);
    env.a.delete("/a").await.unwrap();
    assert_eq!(env.a.forget_blobs(&ids).await.unwrap(), 1);
    assert_eq!(entry(&env, "a").await, None);
    // New rows bring a released blob back.
    env.a.put_many(&[row("/d", "c", 0, 1)]).await.unwrap();
    assert_eq!(known(&env, "c").await.state, BlobState::Live);
    // Only a released blob is marked as one that is deleted, and a count leaves the mark.
    let ids = ["b", "c"].map(str::to_owned);
    env.a
        .set_state(&ids[1..], BlobState::Released)
        .await
        .unwrap();
    assert_eq!(env.a.set_state(&ids, BlobState::Deleting).await.unwrap(), 1);
    assert_eq!(listed(BlobState::Deleting, "", 9).await, ["c"]);
    assert_eq!(listed(BlobState::Deleting, "c", 9).await, [""; 0]);
    for key in ["/c", "/d"] {
        env.a.delete(key).await.unwrap();
    }
    count(&env, 9).await;
    assert_eq!(known(&env, "c").await.state, BlobState::Deleting);
    // A store of the same bytes is another object, of which alone the entry tells.
    let mut anew = blob("c");
    (anew.object_id, anew.end_epoch, anew.expires_at) = ("other".into(), 3, Some(time(30)));
    env.a.place(&anew, &[row("/c", "c", 0, 1)]).await.unwrap();
    let entry = known(&env, "c").await;
    assert_eq!((&*entry.object_id, entry.end_epoch), ("other", 3));
    assert_eq!(
        (entry.expires_at, entry.state),
        (anew.expires_at, BlobState::Live)
    );
}

pub async fn a_pass_counts_every_blob(env: Env) {
    let rows: Vec<_> = (0..40)
        .map(|n| {
            row(
                &format!("/{n:02}"),
                &format!("blob{}", n % 10),
                n / 10 * 5,
                5,
            )
        })
        .collect();
    env.a.put_many(&rows).await.unwrap();
    assert_eq!(known(&env, "blob3").await.counted, None);
    for limit in [3, 5, 100] {
        env.a.delete(&format!("/{:02}", limit % 10)).await.unwrap();
        count(&env, limit).await;
        let counted = known(&env, "blob7").await.counted.expect("a count");
        assert_eq!(counted.live, usage(4, 20));
    }
    env.a.delete("/01").await.unwrap();
    for key in ["/11", "/21", "/31"] {
        env.a.delete(key).await.unwrap();
    }
    count(&env, 4).await;
    let state = async |blob_id: &str| known(&env, blob_id).await.state;
    // PostgreSQL leaves an entry alone for a minute after it was written: its rows may be older
    // than the count.
    let released = state("blob1").await == BlobState::Released;
    assert!(released || known(&env, "blob1").await.counted.is_some());
    assert_eq!(state("blob2").await, BlobState::Live);
    let live = async |blob_id: &str| known(&env, blob_id).await.counted.map(|c| c.live);
    assert_eq!(live("blob3").await, Some(usage(3, 15)));
    assert_eq!(live("blob0").await, Some(usage(3, 15)));
}

pub async fn the_horizon_sums_up(env: Env) {
    for (name, end_epoch, size) in [("a", 5, 100), ("b", 9, 10), ("c", 5, 20), ("d", 0, 0)] {
        let mut told = blob(name);
        told.end_epoch = end_epoch;
        told.size = size;
        told.encoded_size = size * 6;
        told.cost = 3;
        let rows = [row(&format!("/{name}"), name, 0, 4)];
        env.a.place(&told, &rows).await.unwrap();
    }
    let ends = env.b.horizon().await.unwrap();
    let sums = |end: &walrusds::EndingIn| (end.end_epoch, end.blobs, end.bytes, end.encoded_bytes);
    let told: Vec<_> = ends.iter().map(sums).collect();
    assert_eq!(told, [(0, 1, 0, 0), (5, 2, 120, 720), (9, 1, 10, 60)]);
    assert_eq!(
        (ends[1].cost, ends[1].uncounted, ends[1].counted_at),
        (6, 2, None)
    );
    count(&env, 2).await;
    let ends = env.b.horizon().await.unwrap();
    assert_eq!((ends[1].live, ends[1].uncounted), (usage(2, 8), 0));
    assert!(ends[1].counted_at.is_some());
}

pub async fn epochs_are_shared(env: Env) {
    let seen = |epoch, first, last| Sighting {
        epoch,
        first: time(first),
        last: time(last),
    };
    assert_eq!(env.a.epochs().await.unwrap(), []);
    env.a.saw_epochs(&[]).await.unwrap();
    env.a
        .saw_epochs(&[seen(8, 200, 210), seen(7, 100, 150)])
        .await
        .unwrap();
    env.b.saw_epochs(&[seen(7, 120, 180)]).await.unwrap();
    env.b.saw_epochs(&[seen(8, 190, 195)]).await.unwrap();
    assert_eq!(
        env.a.epochs().await.unwrap(),
        [seen(7, 100, 180), seen(8, 190, 210)]
    );
    let many: Vec<_> = (100..300).map(|epoch| seen(epoch, 1, 2)).collect();
    env.a.saw_epochs(&many).await.unwrap();
    let latest = env.b.epochs().await.unwrap();
    assert_eq!(latest.last(), Some(&seen(299, 1, 2)));
    assert!(latest.len() >= 50 && latest.windows(2).all(|two| two[0].epoch < two[1].epoch));
}

pub async fn missing_rows_are_added_and_others_kept(env: Env) {
    env.a.put_many(&[row("/b", "first", 7, 70)]).await.unwrap();
    let total = env.a.usage().await.unwrap();
    let mut told = blob("told");
    told.object_id = "0x1".to_owned();
    told.cost = 12;
    told.end_epoch = 9;
    told.expires_at = Some(time(900));
    let mut rest = blob("rest");
    rest.format = "car".to_owned();
    let rows = [
        row("/a", "told", 0, 10),
        row("/b", "told", 10, 20),
        row("/c", "rest", 30, 40),
        row("/d", "third", 0, 1),
    ];
    let blobs = [told.clone(), rest.clone()];
    let added = env.a.place_missing(&blobs, &rows).await.unwrap();
    assert_eq!(added, usage(3, 51));
    let places = |rows: Vec<Option<walrusds::Record>>| -> Vec<(String, i64, i64)> {
        let rows = rows.into_iter().map(Option::unwrap);
        rows.map(|row| (row.blob_id, row.offset, row.size))
            .collect()
    };
    let keys = ["/a", "/b", "/c", "/d"].map(str::to_owned);
    let expected = [
        ("told".to_owned(), 0, 10),
        ("first".to_owned(), 7, 70),
        ("rest".to_owned(), 30, 40),
        ("third".to_owned(), 0, 1),
    ];
    assert_eq!(places(env.b.get_many(&keys).await.unwrap()), expected);
    let total = Usage::new(total.blocks + 3, total.bytes + 51);
    assert_eq!(env.b.usage().await.unwrap(), total, "with the total");
    let told_now = known(&env, "told").await;
    assert_eq!((told_now.cost, told_now.end_epoch), (12, 9));
    assert_eq!(known(&env, "rest").await.format, "car");
    assert_eq!(known(&env, "third").await.size, 0, "by its rows alone");

    // Once more: nothing is added, neither rows nor costs, and a state stays.
    let ids = ["told", "rest"].map(str::to_owned);
    env.a.set_state(&ids, BlobState::Released).await.unwrap();
    told.cost = 11;
    told.end_epoch = 8;
    told.size = 30;
    let again = env.b.place_missing(&[told.clone(), rest], &rows).await;
    assert_eq!(again.unwrap(), Usage::default());
    assert_eq!(env.b.usage().await.unwrap(), total);
    let told_now = known(&env, "told").await;
    assert_eq!(
        (told_now.cost, told_now.end_epoch, told_now.size),
        (12, 9, 30)
    );
    assert_eq!(told_now.state, BlobState::Released);
    assert_eq!(places(env.b.get_many(&keys).await.unwrap()), expected);

    // A blob that gains a row is live again, and only that one.
    env.a.delete("/a").await.unwrap();
    let added = env.a.place_missing(&blobs, &rows).await.unwrap();
    assert_eq!(added, usage(1, 10));
    assert_eq!(known(&env, "told").await.state, BlobState::Live);
    assert_eq!(known(&env, "rest").await.state, BlobState::Released);

    // An entry may come without rows; keys must not come twice.
    env.a.place_missing(&[blob("bare")], &[]).await.unwrap();
    assert!(entry(&env, "bare").await.is_some());
    env.a.place_missing(&[], &[]).await.unwrap();
    let twice = [row("/x", "b", 0, 1), row("/x", "c", 0, 1)];
    let e = env.a.place_missing(&[], &twice).await.unwrap_err();
    assert_eq!(e.kind(), walrusds::ErrorKind::InvalidArgument);
    assert_eq!(env.a.get("/x").await.unwrap(), None);
    let mut patch = row("/p", "quilt", 0, 5);
    patch.record.patch_id = Some("patch".to_owned());
    let added = env.a.place_missing(&[], std::slice::from_ref(&patch)).await;
    match env.quilts {
        true => {
            assert_eq!(added.unwrap(), usage(1, 5));
            assert_eq!(env.b.get("/p").await.unwrap(), Some(patch.record));
        }
        false => assert_eq!(added.unwrap_err().kind(), walrusds::ErrorKind::Unsupported),
    }
}

pub async fn missing_rows_of_many_pages_are_one(env: Env) {
    let key = |n: i64| format!("/k{:05}", (n * 7_919) % 12_345);
    let all: Vec<_> = (0..12_345).map(|n| row(&key(n), "blob", n, 2)).collect();
    let some = all.iter().filter(|row| row.record.offset % 3 == 0).cloned();
    let some: Vec<_> = some.collect();
    env.a.put_many(&some).await.unwrap();
    let blobs = [blob("blob")];
    let (one, other) = tokio::join!(
        env.a.place_missing(&blobs, &all),
        env.b.place_missing(&blobs, &all),
    );
    let added = one.unwrap().blocks + other.unwrap().blocks;
    assert_eq!(added as usize, all.len() - some.len(), "each row once");
    assert_eq!(env.b.usage().await.unwrap(), usage(added, 2 * added));
    assert_eq!(env.b.rows_of_blob("blob").await.unwrap().len(), all.len());
    // All or nothing.
    let mut bad = vec![row("/new", "blob", 0, 1)];
    bad.push(row("/\0", "blob", 0, 1));
    env.a.place_missing(&[], &bad).await.unwrap_err();
    assert_eq!(env.a.get("/new").await.unwrap(), None);
}
