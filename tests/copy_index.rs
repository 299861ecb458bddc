//! An index moves to another place while a node works with it; and indexes are backed up while a
//! node works with them, and restored.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use testkit::citus::Citus;
use testkit::documents;
use testkit::mem::{key_of, noise};
use testkit::postgres::{blocking, execute_at, Postgres, GO_STAGING};
use walrus_devnet::{Devnet, Options};
use walrusds::clock::Sighting;
use walrusds::index::copy::copy;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{
    copy_index, Blob, BlobState, Config, CopyReport, Copying, Deleted, Error, ErrorKind, Index,
    KeyRange, KeyRecord, Ledger, Notes, Record, Result, Rows, Totals, Usage, WalrusDatastore,
};

/// More than two pages of a copy.
const ROWS: i64 = 12_000;
const IN_A_BLOB: i64 = 250;

fn end(n: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000 + n.unsigned_abs())
}

fn row(n: i64) -> KeyRecord {
    let blob = n / IN_A_BLOB;
    let record = Record::new(format!("blob-{blob:05}"), n % IN_A_BLOB * 1000, 1000)
        .with_end_epoch(40)
        .with_expires_at(Some(end(blob)));
    KeyRecord::new(format!("/KEY{n:08}"), record)
}

fn entry(blob: i64) -> Blob {
    let mut entry = Blob::default();
    entry.blob_id = format!("blob-{blob:05}");
    entry.object_id = format!("0x{blob:064x}");
    entry.format = "car".into();
    entry.size = 1000 * IN_A_BLOB;
    entry.encoded_size = 70_000_000;
    entry.cost = 5_000 + blob;
    entry.registered_epoch = 14;
    entry.end_epoch = 40;
    entry.expires_at = Some(end(blob));
    entry
}

/// Fills an index as a node does.
async fn fill(index: &dyn Index) {
    for blob in 0..ROWS / IN_A_BLOB {
        let rows: Vec<KeyRecord> = (blob * IN_A_BLOB..(blob + 1) * IN_A_BLOB)
            .map(row)
            .collect();
        index.place(&entry(blob), &rows).await.unwrap();
    }
    index
        .add_usage(Usage::new(ROWS, ROWS * 1000))
        .await
        .unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let seen = Sighting {
        epoch: 14,
        first: now,
        last: now,
    };
    index.saw_epochs(&[seen]).await.unwrap();
}

async fn sqlite(path: &Path) -> SqliteIndex {
    let options = SqliteOptions::new(path, "walrus_index");
    SqliteIndex::open(options).await.unwrap()
}

async fn postgres(url: &str) -> PostgresIndex {
    let options = PostgresOptions::new(url, "walrus_index");
    PostgresIndex::open(options).await.unwrap()
}

/// A filled index, and two empty ones to copy it to: in PostgreSQL and in a file.
async fn with_two_copies(dir: &Path) -> (SqliteIndex, PostgresIndex, SqliteIndex) {
    let from = sqlite(&dir.join("i.sqlite")).await;
    fill(&from).await;
    let pg = Postgres::shared();
    let first = postgres(&pg.url(&pg.database())).await;
    let second = sqlite(&dir.join("second.sqlite")).await;
    (from, first, second)
}

/// A blob is forgotten and stored anew between two passes, for less time and less money. The copy
/// follows, although neither an end nor a price ever falls otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_stored_anew_with_an_earlier_end_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (from, first, second) = with_two_copies(dir.path()).await;
    let copies: [&dyn Index; 2] = [&first, &second];
    for to in copies {
        copy(&from, to, Copying::Beside, &mut go_on).await.unwrap();
    }
    let rows: Vec<KeyRecord> = (3 * IN_A_BLOB..4 * IN_A_BLOB).map(row).collect();
    let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
    let mut anew = entry(3);
    let id = [anew.blob_id.clone()];
    from.delete_many(&keys).await.unwrap();
    from.set_state(&id, BlobState::Released).await.unwrap();
    assert_eq!(from.forget_blobs(&id).await.unwrap(), 1);
    anew.object_id = format!("0x{:064x}", 99);
    (anew.end_epoch, anew.expires_at, anew.cost) =
        (30, Some(end(0) - Duration::from_secs(1_000)), 7);
    let anew_rows = rows.into_iter().map(|mut row| {
        row.record.end_epoch = anew.end_epoch;
        row.record.expires_at = anew.expires_at;
        row
    });
    let anew_rows: Vec<KeyRecord> = anew_rows.collect();
    from.place(&anew, &anew_rows).await.unwrap();
    for to in copies {
        let report = copy(&from, to, Copying::Finish, &mut go_on).await.unwrap();
        assert!(report.finished && report.passes == 2, "{report:?}");
        same(&from, to).await;
    }
    first.close().await.unwrap();
}

/// The rows of a blob are deleted, and it was not counted since. Its entry is copied: no row would
/// tell of its object, nor of what was paid for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_has_lost_its_rows_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let from = sqlite(&dir.path().join("from.sqlite")).await;
    let to = sqlite(&dir.path().join("to.sqlite")).await;
    fill(&from).await;
    let rows = (3 * IN_A_BLOB..4 * IN_A_BLOB).map(row);
    let keys: Vec<String> = rows.map(|row| row.key).collect();
    from.delete_many(&keys).await.unwrap();
    copy(&from, &to, Copying::Finish, &mut go_on).await.unwrap();
    same(&from, &to).await;
    let copied = to.blobs(&[entry(3).blob_id]).await.unwrap();
    assert_eq!(copied[0].as_ref().map(|blob| blob.cost), Some(5_003));
}

/// The last entry of a blob goes from the source between two passes. The copy forgets it, too, and
/// counts that as a change.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_source_has_forgotten_is_removed_from_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, first, second) = with_two_copies(dir.path()).await;
    let copies: [&dyn Index; 2] = [&first, &second];
    let keys: Vec<String> = (3 * IN_A_BLOB..5 * IN_A_BLOB).map(|n| row(n).key).collect();
    from.delete_many(&keys).await.unwrap();
    let ids = [entry(3).blob_id, entry(4).blob_id];
    from.set_state(&ids[..1], BlobState::Released)
        .await
        .unwrap();
    for to in copies {
        copy(&from, to, Copying::Beside, &mut go_on).await.unwrap();
        assert!(to.blobs(&ids).await.unwrap().iter().all(Option::is_some));
    }
    assert_eq!(from.forget_blobs(&ids).await.unwrap(), 2);
    for to in copies {
        let report = copy(&from, to, Copying::Finish, &mut go_on).await.unwrap();
        same(&from, to).await;
        assert!(report.finished && report.passes == 2, "{report:?}");
        assert_eq!(report.blobs, 2, "{report:?}");
    }
    first.close().await.unwrap();
}

/// A standby may be behind its primary, and looks like an index that rests.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_not_finished_from_a_standby() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Postgres::start();
    let db = primary.database();
    let from = postgres(&primary.url(&db)).await;
    fill(&from).await;
    assert!(from.identity().await.unwrap().is_some());
    let standby = primary.start_replica();
    let behind = postgres(&standby.url(&db)).await;
    let to = sqlite(&dir.path().join("to.sqlite")).await;
    // A pass beside the nodes may read from it.
    copy(&behind, &to, Copying::Beside, &mut go_on)
        .await
        .unwrap();
    let refused = copy(&behind, &to, Copying::Finish, &mut go_on)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
    assert!(refused.to_string().contains("standby"), "{refused}");
    assert!(refused.to_string().contains("primary"), "{refused}");
    let report = copy(&from, &to, Copying::Finish, &mut go_on).await.unwrap();
    assert!(report.finished, "{report:?}");
    same(&from, &to).await;
    for index in [&from, &behind] {
        index.close().await.unwrap();
    }
}

/// A Go node has staged a block anew whose key has a row. The row is copied; a key that is staged
/// alone has no row in the copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_row_of_a_key_that_is_staged_as_well_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, GO_STAGING);
    let from = postgres(&pg.url(&db)).await;
    let to = sqlite(&dir.path().join("to.sqlite")).await;
    let rows: Vec<KeyRecord> = (0..3).map(row).collect();
    from.place(&entry(0), &rows).await.unwrap();
    copy(&from, &to, Copying::Beside, &mut go_on).await.unwrap();
    // Both a row and staged: 0. Staged alone: 1, of which the copy has a row, and 9.
    to.delete(&rows[0].key).await.unwrap();
    from.delete(&rows[1].key).await.unwrap();
    for n in [0, 1, 9] {
        let key = row(n).key;
        let stage = format!(
            "INSERT INTO walrus_index_staging (key, value, size) VALUES ('{key}', 'xyz', 3)"
        );
        pg.execute(&db, &stage);
    }
    let report = copy(&from, &to, Copying::Finish, &mut go_on).await.unwrap();
    assert!(report.finished, "{report:?}");
    assert_eq!(report.staged, 3, "{report:?}");
    assert_eq!(report.compared, Usage::new(2, 2000), "{report:?}");
    let (copied, _) = contents(&to).await;
    let expected = [&rows[0], &rows[2]].map(|row| (row.key.clone(), row.record.clone()));
    assert_eq!(copied, expected);
    assert_eq!(to.usage().await.unwrap(), Usage::new(2, 2000));
    from.close().await.unwrap();
}

/// No node works with a copy before it is finished: the last pass would remove what it stored.
#[tokio::test(flavor = "multi_thread")]
async fn no_node_opens_a_copy_that_is_not_finished() {
    let pg = Postgres::shared();
    let dir = tempfile::tempdir().unwrap();
    let from = sqlite(&dir.path().join("from.sqlite")).await;
    fill(&from).await;
    let source = from.identity().await.unwrap().expect("it may be written");
    let url = pg.url(&pg.database());
    let first = postgres(&url).await;
    let second = sqlite(&dir.path().join("second.sqlite")).await;
    let in_a_file = r#""indexPath": "second.sqlite""#.to_owned();
    let copies: [(&dyn Index, String); 2] = [(&first, url_key(&url)), (&second, in_a_file)];
    for (to, index) in copies {
        let config = |journal: &str| {
            let json = format!(
                r#"{{"publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1", {journal}{index}}}"#
            );
            Config::from_json(&json).unwrap()
        };
        copy(&from, to, Copying::Beside, &mut go_on).await.unwrap();
        for journal in ["", r#""journalPath": "journal", "#] {
            let refused = WalrusDatastore::open(config(journal), dir.path()).await;
            let refused = refused.err().expect("the copy is not finished");
            assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
            for part in [&*source, "copy_index -- --finish"] {
                assert!(refused.to_string().contains(part), "{refused}");
            }
        }
        let beside = WalrusDatastore::open_beside(config(""), dir.path()).await;
        assert_eq!(beside.err().map(|e| e.kind()), Some(ErrorKind::Config));
        // As a source it would be given an identity of its own.
        let on = config(r#""table": "other", "#);
        let on = copy_index(config(""), on, dir.path(), Copying::Beside, &mut go_on).await;
        assert_eq!(on.err().map(|e| e.kind()), Some(ErrorKind::Config));
        copy(&from, to, Copying::Finish, &mut go_on).await.unwrap();
        same(&from, to).await;
        let node = WalrusDatastore::open(config(""), dir.path()).await.unwrap();
        node.close().await.unwrap();
    }
    first.close().await.unwrap();
}

/// All rows and entries of an index.
async fn contents(index: &dyn Index) -> (Vec<(String, Record)>, Vec<Blob>) {
    let keys = index.list(&KeyRange::ALL, 0, 100_000).await.unwrap();
    let keys: Vec<String> = keys.into_iter().map(|item| item.key).collect();
    let rows = index.get_many(&keys).await.unwrap();
    let rows = keys.into_iter().zip(rows.into_iter().flatten()).collect();
    let mut blobs = Vec::new();
    for state in [BlobState::Live, BlobState::Released] {
        let found = index.blobs_in_state(state, "", 100_000).await.unwrap();
        blobs.extend(found.into_iter().map(|mut blob| {
            // Times and counts of this index itself.
            blob.state_since = None;
            blob.counted = None;
            blob
        }));
    }
    (rows, blobs)
}

async fn same(from: &dyn Index, to: &dyn Index) {
    let (from_rows, from_blobs) = contents(from).await;
    let (to_rows, to_blobs) = contents(to).await;
    assert_eq!(from_rows.len(), to_rows.len());
    assert!(from_rows == to_rows, "the rows differ");
    assert_eq!(from_blobs, to_blobs);
    let bytes = from_rows.iter().map(|(_, row)| row.size).sum();
    let blocks = i64::try_from(from_rows.len()).unwrap();
    assert_eq!(to.usage().await.unwrap(), Usage::new(blocks, bytes));
    assert_eq!(from.epochs().await.unwrap(), to.epochs().await.unwrap());
    let identity = from.identity().await.unwrap();
    assert!(identity.is_some());
    assert_eq!(identity, to.identity().await.unwrap());
}

fn go_on(_: &CopyReport) -> Result<()> {
    Ok(())
}

/// The copy of an index that changes meanwhile, in PostgreSQL, and then in partitions of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_moves_while_a_node_works_with_it() {
    let pg = Postgres::shared();
    let dir = tempfile::tempdir().unwrap();
    let from = sqlite(&dir.path().join("i.sqlite")).await;
    fill(&from).await;
    let first = postgres(&pg.url(&pg.database())).await;

    // It is broken off after a page.
    let mut stop = |_: &CopyReport| Err(Error::new(ErrorKind::Canceled, "that is enough"));
    let stopped = copy(&from, &first, Copying::Beside, &mut stop).await;
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Canceled);
    let some = first.list(&KeyRange::ALL, 0, 100_000).await.unwrap().len();
    assert!(some > 0 && some < 12_000, "{some}");

    // Another source must not get into it.
    let other = sqlite(&dir.path().join("other.sqlite")).await;
    other.put(&row(1)).await.unwrap();
    let refused = copy(&other, &first, Copying::Beside, &mut go_on)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("another index"), "{refused}");

    // It is carried on where it was, and does not see a change before that place.
    from.delete(&row(0).key).await.unwrap();
    let rest = copy(&from, &first, Copying::Beside, &mut go_on)
        .await
        .unwrap();
    assert_eq!(rest.added + some as u64, 12_000, "{rest:?}");
    assert!(!rest.finished);
    assert!(first.get(&row(0).key).await.unwrap().is_some());

    // A node goes on working: it deletes, adds, renews, and moves blocks to another blob.
    let gone: Vec<String> = (500..600).map(|n| row(n).key).collect();
    from.delete_many(&gone).await.unwrap();
    let mut renewed = entry(3);
    renewed.end_epoch = 60;
    renewed.expires_at = Some(end(1_000));
    renewed.cost = 77;
    from.renewed(&renewed).await.unwrap();
    let mut packed = entry(900);
    packed.blob_id = "blob-packed".into();
    let moved: Vec<KeyRecord> = (1000..1250)
        .map(|n| {
            let mut row = row(n);
            row.record.blob_id = packed.blob_id.clone();
            row
        })
        .collect();
    from.move_to("blob-00004", &packed, &moved).await.unwrap();
    let mut after = Some(String::new());
    while let Some(last) = after {
        after = from.count(&last, 1000).await.unwrap();
    }
    from.place(&entry(5000), &[row(5000 * IN_A_BLOB)])
        .await
        .unwrap();

    let report = copy(&from, &first, Copying::Finish, &mut go_on)
        .await
        .unwrap();
    assert!(report.finished && report.passes == 2, "{report:?}");
    assert_eq!(report.removed, 101, "{report:?}");
    assert_eq!(report.replaced, 250 + 250, "{report:?}");
    assert_eq!(report.added, 1, "{report:?}");
    same(&from, &first).await;
    let released = first
        .blobs_in_state(BlobState::Released, "", 9)
        .await
        .unwrap();
    assert_eq!(released.len(), 1);
    assert_eq!(released[0].blob_id, "blob-00004");
    let paid = first.blobs(&["blob-00003".into()]).await.unwrap();
    assert_eq!(paid[0].as_ref().unwrap().cost, 5_003 + 77);

    // A finished copy is no copy any more.
    let refused = copy(&from, &first, Copying::Beside, &mut go_on)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("holds rows"), "{refused}");

    // On to partitions.
    let db = pg.database();
    pg.execute(&db, &documented_partitions());
    let second = postgres(&pg.url(&db)).await;
    let report = copy(&first, &second, Copying::Finish, &mut go_on)
        .await
        .unwrap();
    assert!(report.finished, "{report:?}");
    same(&first, &second).await;
    for index in [&from as &dyn Index, &other, &first, &second] {
        index.close().await.unwrap();
    }
}

/// Ends the lease of a run that makes a copy.
fn end_lease(copy: &Path) {
    let open = rusqlite::Connection::open(copy).unwrap();
    let ended = open.execute("DELETE FROM walrus_index_leases WHERE name = 'copy'", []);
    assert_eq!(ended.unwrap(), 1);
}

/// A run that goes on after another one has finished the copy would remove what nodes have stored
/// since: it may stand still for longer than its lease lasts.
#[tokio::test(flavor = "multi_thread")]
async fn one_run_at_a_time_makes_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let from = sqlite(&dir.path().join("from.sqlite")).await;
    let to = sqlite(&dir.path().join("to.sqlite")).await;
    fill(&from).await;
    from.set_note("storage.left", Some("100@20")).await.unwrap();
    let stored = row(ROWS + 1);
    let mut first_page = true;
    let mut meanwhile = |_: &CopyReport| {
        if !std::mem::take(&mut first_page) {
            return Ok(());
        }
        let finish = async {
            let refused = copy(&from, &to, Copying::Finish, &mut go_on).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Locked);
            // As if it had run out.
            end_lease(&dir.path().join("to.sqlite"));
            let report = copy(&from, &to, Copying::Finish, &mut go_on).await?;
            assert!(report.finished);
            to.put(&stored).await
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(finish))
    };
    let error = copy(&from, &to, Copying::Beside, &mut meanwhile)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another run"), "{error}");
    assert!(to.get(&stored.key).await.unwrap().is_some());
    assert_eq!(to.note("copy").await.unwrap(), None);
    let left = to.note("storage.left").await.unwrap();
    assert_eq!(left.as_deref(), Some("100@20"), "it is paid for");
}

/// A source that never rests is no source to finish with.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_not_finished_while_the_source_changes() {
    let dir = tempfile::tempdir().unwrap();
    let from = sqlite(&dir.path().join("from.sqlite")).await;
    let to = sqlite(&dir.path().join("to.sqlite")).await;
    fill(&from).await;
    let mut n = 0;
    let mut meanwhile = |_: &CopyReport| {
        n += 1;
        let key = row(n).key;
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(from.delete(&key))
        })
        .map(drop)
    };
    let error = copy(&from, &to, Copying::Finish, &mut meanwhile)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("stop the nodes"), "{error}");
    assert_eq!(to.note("identity").await.unwrap(), None);
    let report = copy(&from, &to, Copying::Finish, &mut go_on).await.unwrap();
    assert!(report.finished);
    same(&from, &to).await;
}

/// The node of an index that has moved goes on with its journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_its_journal_along() {
    let pg = Postgres::shared();
    let dir = tempfile::tempdir().unwrap();
    let config = |index: &str| {
        let json = format!(
            r#"{{"publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1", "drainTimeoutSeconds": 0,
                "journalPath": "journal", {index}}}"#
        );
        Config::from_json(&json).unwrap()
    };
    let old = config(r#""indexPath": "i.sqlite""#);
    let new = config(&format!(r#""postgresURL": "{}""#, pg.url(&pg.database())));
    let moves = |from: &Config, to: &Config, copying| {
        let (from, to, repo) = (from.clone(), to.clone(), dir.path().to_owned());
        async move { copy_index(from, to, &repo, copying, &mut go_on).await }
    };
    let missing = moves(&old, &new, Copying::Beside).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Config);
    let itself = moves(&old, &old, Copying::Beside).await.unwrap_err();
    assert!(itself.to_string().contains("one index"), "{itself}");

    let (indexed, journalled) = (noise(1, 1000), noise(2, 1000));
    let index = sqlite(&dir.path().join("i.sqlite")).await;
    let known = KeyRecord::new(key_of(&indexed), Record::new("b", 0, 1000));
    index.put(&known).await.unwrap();
    index.close().await.unwrap();
    let node = WalrusDatastore::open(old.clone(), dir.path())
        .await
        .unwrap();
    node.put(&key_of(&journalled), journalled.clone())
        .await
        .unwrap();
    // Beside the node, then without it.
    let report = moves(&old, &new, Copying::Beside).await.unwrap();
    assert_eq!(report.added, 1);
    node.close().await.unwrap();
    let report = moves(&old, &new, Copying::Finish).await.unwrap();
    assert!(report.finished, "{report:?}");

    let node = WalrusDatastore::open(new, dir.path()).await.unwrap();
    assert_eq!(
        node.get(&key_of(&journalled)).await.unwrap(),
        Some(journalled)
    );
    assert_eq!(node.get_size(&key_of(&indexed)).await.unwrap(), Some(1000));
    node.close().await.unwrap();
}

/// The table of docs/operations.md that is made before the first start.
fn documented_table() -> String {
    documents::block("docs/operations.md", "sql", "CREATE TABLE walrus_index (\n")
}

/// The same table in the partitions of docs/operations.md.
fn documented_partitions() -> String {
    let table = documented_table();
    let (table, _) = table.rsplit_once(");").expect("the table ends");
    let block = documents::block("docs/operations.md", "sql", " PARTITION OF ");
    let lines: Vec<&str> = block.lines().collect();
    let [first, _, last] = lines[..] else {
        panic!("the first and the last partition are documented: {block}");
    };
    let part = |n: u32| {
        let name = first.replace("walrus_index_0", &format!("walrus_index_{n}"));
        name.replace("REMAINDER 0", &format!("REMAINDER {n}"))
    };
    assert_eq!(part(15), last);
    let parts: Vec<String> = (0..16).map(part).collect();
    format!("{table}) PARTITION BY HASH (key); {}", parts.join(" "))
}

/// The commands of docs/growing-the-index.md in the block that holds a text, with databases of the
/// test in place of those that are named there.
fn documented(text: &str, databases: &[(&str, &str)]) -> Vec<String> {
    let mut block = documents::block("docs/growing-the-index.md", "sh", text);
    for (name, url) in databases {
        let name = format!("postgres://walrusds@db/{name}");
        assert!(block.contains(&name), "{name} is not named");
        block = block.replace(&name, url);
    }
    block.lines().map(str::to_owned).collect()
}

/// Runs commands in a directory whose `repo` is the repo of a node.
fn run(dir: &Path, commands: &[String]) {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &commands.join("\n")])
        .env("PATH", format!("{}:{path}", dir.join("bin").display()))
        .env("IPFS_PATH", dir.join("repo"))
        .current_dir(dir);
    let done = blocking(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{commands:?}: {said}");
}

/// Puts a `cargo` into the directory's `bin` that runs the example as it was built with these
/// tests.
fn with_the_example(dir: &Path) {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap();
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    // With the features of the whole workspace, so that nothing is compiled a second time.
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked", "--workspace"])
        .args(["--example", "copy_index", "--profile", profile])
        .arg("--target-dir")
        .arg(built.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(blocking(|| build.status()).unwrap().success(), "{build:?}");
    let cargo = dir.join("bin/cargo");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $2 $3 $4 $5\" = 'run --release --example copy_index --' ] || exit 64\nshift 5\nexec '{}' \"$@\"\n",
        built.join("examples/copy_index").display()
    );
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::fs::write(&cargo, script).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The documented way from SQLite to PostgreSQL, beside the node and then without it.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_move() {
    let pg = Postgres::shared();
    let dir = tempfile::tempdir().unwrap();
    with_the_example(dir.path());
    let url = pg.url(&pg.database());
    let commands = documented("copy_index", &[("walrusds", &url)]);
    let stop = commands.iter().position(|line| line.starts_with("# stop"));
    let (beside, without) = commands.split_at(stop.expect("the nodes stop"));

    std::fs::create_dir(dir.path().join("repo")).unwrap();
    let file = dir.path().join("repo/walrusds-index.sqlite");
    let from = sqlite(&file).await;
    fill(&from).await;
    run(dir.path(), beside);
    from.delete(&row(7).key).await.unwrap();
    from.add_usage(Usage::new(-1, -1000)).await.unwrap();
    from.put(&row(ROWS)).await.unwrap();
    from.add_usage(Usage::new(1, 1000)).await.unwrap();
    run(dir.path(), beside); // to catch up
    from.close().await.unwrap();
    run(dir.path(), without);
    let (from, to) = (sqlite(&file).await, postgres(&url).await);
    same(&from, &to).await;
    assert_eq!(to.usage().await.unwrap(), Usage::new(ROWS, ROWS * 1000));
    assert!(to.get(&row(7).key).await.unwrap().is_none());
    for index in [&from as &dyn Index, &to] {
        index.close().await.unwrap();
    }
}

/// The key of the documented index in a file.
const IN_A_FILE: &str = r#""indexPath": "walrusds-index.sqlite""#;

/// A node with a journal, and the blocks that it has put and deleted.
struct Node {
    net: Devnet,
    dir: tempfile::TempDir,
    next: u64,
    there: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

fn block(n: u64) -> (String, bytes::Bytes) {
    let value = noise(n, 500);
    (key_of(&value), value)
}

impl Node {
    async fn new() -> Node {
        let options = Options {
            cheap_ids: true,
            ..Options::default()
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("repo")).unwrap();
        with_the_example(dir.path());
        Node {
            net: Devnet::start(options).await.unwrap(),
            dir,
            next: 0,
            there: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    /// Opens the node with the key that names its index. Blocks travel while it works, and some are
    /// left in the journal when it stops.
    async fn open(&self, index: &str) -> WalrusDatastore {
        let url = self.net.url();
        let json = format!(
            r#"{{"publisherURL": "{url}", "aggregatorURL": "{url}", "epochs": 5, "epochDurationSeconds": 86400,
                "journalPath": "journal", "packTargetSizeBytes": 8000, "packIdleFlushSeconds": 3600,
                "drainTimeoutSeconds": 60, {index}}}"#
        );
        let config = Config::from_json(&json).unwrap();
        let repo = self.dir.path().join("repo");
        WalrusDatastore::open(config, &repo).await.unwrap()
    }

    /// Puts some blocks, which fill a pack, and deletes the oldest one.
    async fn works(&mut self, store: &WalrusDatastore) {
        for _ in 0..20 {
            self.next += 1;
            let (key, value) = block(self.next);
            store.put(&key, value).await.unwrap();
            self.there.insert(self.next);
        }
        let oldest = self.there.pop_first().expect("it has just put some");
        store.delete(&block(oldest).0).await.unwrap();
        self.gone.insert(oldest);
    }

    async fn has_all(&self, store: &WalrusDatastore) {
        for n in &self.there {
            let (key, value) = block(*n);
            assert_eq!(store.get(&key).await.unwrap(), Some(value), "{n}");
        }
        for n in &self.gone {
            assert_eq!(store.get(&block(*n).0).await.unwrap(), None, "{n}");
        }
    }

    /// Moves the index by the documented commands: twice while the node works, and to the end when
    /// it has stopped. `from` is the key that names the old index, `to` the URL of the new one.
    async fn moves(&mut self, from: &str, to: &str) {
        let documented = documented("copy_index", &[("walrusds", to)]);
        let commands = documented.iter().map(|line| line.replace(IN_A_FILE, from));
        let commands: Vec<String> = commands.collect();
        assert!(commands.iter().any(|line| line.contains(from)), "{from}");
        let stop = commands.iter().position(|line| line.starts_with("# stop"));
        let (beside, without) = commands.split_at(stop.expect("the nodes stop"));

        let store = self.open(from).await;
        for _ in 0..2 {
            let (dir, beside) = (self.dir.path().to_owned(), beside.to_vec());
            let copying = tokio::task::spawn_blocking(move || run(&dir, &beside));
            let mut worked = 0;
            while worked < 3 || !copying.is_finished() {
                self.works(&store).await;
                worked += 1;
            }
            copying.await.unwrap();
        }
        store.close().await.unwrap();
        run(self.dir.path(), without);
        let file = self.dir.path().join("repo/walrusds-index.sqlite");
        let to_index = postgres(to).await;
        let from_index: Box<dyn Index> = match from.split('"').nth(3) {
            Some(url) if url.starts_with("postgres://") => Box::new(postgres(url).await),
            _ => Box::new(sqlite(&file).await),
        };
        same(&*from_index, &to_index).await;
        for index in [&*from_index, &to_index] {
            index.close().await.unwrap();
        }
        let store = self.open(&url_key(to)).await;
        self.has_all(&store).await;
        self.works(&store).await;
        self.has_all(&store).await;
        store.close().await.unwrap();
    }
}

fn url_key(url: &str) -> String {
    format!(r#""postgresURL": "{url}""#)
}

/// From the file to one PostgreSQL, and on to partitions, as documented. The node works on, with
/// the journal that it had at the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_moves_beside_a_node() {
    let pg = Postgres::shared();
    let mut node = Node::new().await;
    let (one, in_parts) = (pg.database(), pg.database());
    let (one, parts) = (pg.url(&one), pg.url(&in_parts));
    node.moves(IN_A_FILE, &one).await;
    pg.execute(&in_parts, &documented_partitions());
    node.moves(&url_key(&one), &parts).await;
    let filled = "SELECT count(*) > 0 FROM walrus_index_15";
    assert_eq!(pg.scalar(&in_parts, filled), "t");
}

/// From one PostgreSQL to Citus, as documented, with a role that is no superuser.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn the_documented_move_to_citus_beside_a_node() {
    let one = Postgres::start();
    let one = one.url(&one.database());
    let mut node = Node::new().await;
    node.moves(IN_A_FILE, &one).await;
    let cluster = Citus::start(2);
    let pg = &cluster.coordinator;
    let distribute = documents::block(
        "docs/operations.md",
        "sql",
        "create_distributed_table('walrus_index',",
    );
    let url = cluster.plain_role();
    for sql in [documented_table(), distribute] {
        execute_at(&url, &sql);
    }
    node.moves(&url_key(&one), &url).await;
    let spread = "SELECT string_agg(DISTINCT table_name::text, ' ') FROM citus_shards";
    assert_eq!(pg.scalar("postgres", spread), "walrusds.walrus_index");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_postgresql_made_beside_a_node_is_restored() {
    let pg = Postgres::shared();
    let dir = tempfile::tempdir().unwrap();
    let (from_db, to_db) = (pg.database(), pg.database());
    let from = postgres(&pg.url(&from_db)).await;
    fill(&from).await;
    let identity = from.identity().await.unwrap();
    let plain = |db: &str| pg.url(db).replace("?sslmode=disable", "");
    let (old, new) = (plain(&from_db), plain(&to_db));
    let databases = [("walrusds", &*old), ("restored", &*new)];
    let commands = documented("pg_dump", &databases);
    let [dump, restore] = &commands[..] else {
        panic!("two commands are documented: {commands:?}");
    };
    run(dir.path(), std::slice::from_ref(dump));
    from.delete(&row(7).key).await.unwrap(); // after the backup
    run(dir.path(), std::slice::from_ref(restore));
    let to = postgres(&pg.url(&to_db)).await;
    assert_eq!(to.take_notice(), None);
    assert!(to.get(&row(7).key).await.unwrap().is_some());
    from.put(&row(7)).await.unwrap();
    let (rows, blobs) = contents(&from).await;
    let restored = contents(&to).await;
    assert!(rows == restored.0 && blobs == restored.1, "the two differ");
    assert_eq!(to.usage().await.unwrap(), from.usage().await.unwrap());
    assert_eq!(to.identity().await.unwrap(), identity);
    to.put(&row(99_999)).await.unwrap();
    for index in [from, to] {
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_sqlite_file_made_beside_a_node_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("repo")).unwrap();
    let file = dir.path().join("repo/walrusds-index.sqlite");
    let commands = documented("sqlite3", &[]);
    let (backup, restore) = commands.split_first().expect("documented");
    let from = sqlite(&file).await;
    fill(&from).await;
    let identity = from.identity().await.unwrap();
    from.delete(&row(7).key).await.unwrap(); // still in the log of writes alone
    run(dir.path(), std::slice::from_ref(backup));
    let saved = contents(&from).await;
    // The other way, for machines without that program.
    let other = dir.path().join("other.sqlite");
    blocking(|| {
        let open = rusqlite::Connection::open(&file).unwrap();
        let path = other.to_str().unwrap();
        open.execute("VACUUM INTO ?1", [path]).unwrap();
    });
    from.delete(&row(8).key).await.unwrap(); // after the backup
    from.close().await.unwrap();
    run(dir.path(), restore);
    for file in [&file, &other] {
        let to = sqlite(file).await;
        assert!(to.get(&row(7).key).await.unwrap().is_none());
        assert!(to.get(&row(8).key).await.unwrap().is_some());
        assert!(contents(&to).await == saved, "the two differ");
        assert_eq!(to.identity().await.unwrap(), identity);
        assert!(to.keeps_deleted().is_zero());
        to.put(&row(99_999)).await.unwrap();
        to.close().await.unwrap();
    }
}
