//! Deleted rows are kept and can be brought back: the same on both indexes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use testkit::postgres::Postgres;
use testkit::PATIENCE;
use walrusds::index::postgres::PostgresIndex;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Deleted, DeletedRow, ErrorKind, Index, KeyRange, KeyRecord, Purged, Rows, Usage};

use crate::shared::{keys, row, time};
use crate::{on_postgres, on_sqlite, Env};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

async fn envs(keep: Duration) -> Vec<Env> {
    let mut envs = on_postgres::envs_that_keep(keep).await;
    envs.push(on_sqlite::env_that_keeps(keep).await);
    envs
}

async fn kept(index: &dyn Index, range: &KeyRange) -> Vec<DeletedRow> {
    index.list_deleted(range, None, None, 1000).await.unwrap()
}

async fn kept_keys(index: &dyn Index) -> Vec<String> {
    let rows = kept(index, &KeyRange::ALL).await;
    rows.into_iter().map(|kept| kept.row.key).collect()
}

fn usage(blocks: i64, bytes: i64) -> Usage {
    Usage::new(blocks, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_come_back_as_they_were() {
    for Env { a, b, quilts, .. } in envs(WEEK).await {
        assert_eq!(a.keeps_deleted(), WEEK);
        let mut rows = vec![
            row("/a", "b1", 3, 10),
            row("/b", "b1", 13, 20),
            row("/c", "b2", 0, 30),
        ];
        rows[0].record.expires_at = Some(time(4_000_000_000));
        rows[0].record.end_epoch = 7;
        rows[1].record.deletable = true;
        if quilts {
            rows[2].record.patch_id = Some("patch".into());
        }
        a.put_many(&rows).await.unwrap();
        assert_eq!(kept_keys(&*a).await, [""; 0]);
        let before = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(a.delete("/a").await.unwrap(), usage(1, 10));
        let both: Vec<String> = ["/b", "/c", "/unknown"].map(String::from).into();
        assert_eq!(a.delete_many(&both).await.unwrap(), usage(2, 50));
        assert_eq!(a.delete("/a").await.unwrap(), usage(0, 0));

        // No reader sees them.
        assert_eq!(keys(&*b, "").await, [""; 0]);
        assert_eq!(b.get("/a").await.unwrap(), None);
        assert_eq!(b.get_many(&both).await.unwrap(), [None, None, None]);
        assert!(b.rows_of_blob("b1").await.unwrap().is_empty());
        // They are listed where they are asked for.
        let found = kept(&*b, &KeyRange::ALL).await;
        assert_eq!(
            found.iter().map(|f| f.row.clone()).collect::<Vec<_>>(),
            rows
        );
        assert!(found
            .iter()
            .all(|f| f.deleted_at > before && f.deleted_at < before + PATIENCE * 2));
        let part = kept(&*b, &KeyRange::prefix("/").after("/a").except("/b")).await;
        assert_eq!(
            part.into_iter().map(|f| f.row).collect::<Vec<_>>(),
            rows[2..]
        );
        let page = b.list_deleted(&KeyRange::ALL, None, None, 2).await.unwrap();
        assert_eq!(page[..], found[..2]);
        let (first, second) = (found[0].deleted_at, found[1].deleted_at);
        for (since, until, expected) in [
            (Some(first), Some(second), &rows[..1]),
            (Some(second), None, &rows[1..]),
            (None, Some(first), &[]),
            (Some(before), Some(SystemTime::now() + PATIENCE), &rows[..]),
        ] {
            let some = b
                .list_deleted(&KeyRange::ALL, since, until, 9)
                .await
                .unwrap();
            assert_eq!(
                some.into_iter().map(|f| f.row).collect::<Vec<_>>(),
                expected
            );
        }
        let of_keys = b.deleted(&["/unknown".into(), "/b".into()]).await.unwrap();
        assert_eq!(of_keys, [None, Some(found[1].clone())]);
        let traces = b
            .get_with_deleted(&["/b".into(), "/unknown".into()])
            .await
            .unwrap();
        assert_eq!(traces[0].deleted.as_ref(), Some(&rows[1].record));
        assert_eq!(
            (&traces[0].live, &traces[1].live, &traces[1].deleted),
            (&None, &None, &None)
        );
        let (one, two) = (
            ("b1".to_owned(), usage(2, 30)),
            ("b2".to_owned(), usage(1, 30)),
        );
        let by_blob = b.deleted_by_blob(None, 9).await.unwrap();
        assert_eq!(by_blob, [one.clone(), two.clone()]);
        assert_eq!(b.deleted_by_blob(None, 1).await.unwrap(), [one]);
        assert_eq!(b.deleted_by_blob(Some("b1"), 9).await.unwrap(), [two]);

        // Only a row that still points at its blob comes back.
        let elsewhere = row("/a", "b2", 3, 10);
        assert_eq!(b.undelete(&[elsewhere]).await.unwrap(), [""; 0]);
        let twice = [rows[0].clone(), rows[0].clone()];
        assert_eq!(
            b.undelete(&twice).await.unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        assert_eq!(b.undelete(&[]).await.unwrap(), [""; 0]);
        if quilts {
            let mut back = b.undelete(&rows).await.unwrap();
            back.sort();
            assert_eq!(back, ["/a", "/b", "/c"]);
        } else {
            assert_eq!(b.undelete(&rows[..1]).await.unwrap(), ["/a"]);
            assert_eq!(b.undelete(&rows[..2]).await.unwrap(), ["/b"]);
            assert_eq!(b.undelete(&rows[2..]).await.unwrap(), ["/c"]);
        }
        let all: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
        let live = a.get_many(&all).await.unwrap();
        assert_eq!(
            live,
            rows.iter()
                .map(|row| Some(row.record.clone()))
                .collect::<Vec<_>>()
        );
        assert_eq!(kept_keys(&*a).await, [""; 0]);
        assert_eq!(b.undelete(&rows).await.unwrap(), [""; 0], "once only");
        // And a second time round.
        assert_eq!(b.delete_many(&all).await.unwrap(), usage(3, 60));
        assert_eq!(kept_keys(&*a).await, all);
        for index in [a, b] {
            index.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_wins_over_a_kept_row() {
    for Env { a, b, .. } in envs(WEEK).await {
        let (old, new) = (row("/k", "old", 0, 5), row("/k", "new", 7, 6));
        a.put(&old).await.unwrap();
        a.delete("/k").await.unwrap();
        b.put(&new).await.unwrap();
        assert_eq!(kept_keys(&*a).await, [""; 0], "a put removes it");
        // The last deletion counts.
        b.delete("/k").await.unwrap();
        assert_eq!(kept(&*a, &KeyRange::ALL).await[0].row, new);
        // A kept row beside a live one is possible (two nodes at the same moment): it never
        // replaces the live one, and is removed at the attempt.
        let found = kept(&*a, &KeyRange::ALL).await;
        assert_eq!(a.undelete(&[found[0].row.clone()]).await.unwrap(), ["/k"]);
        assert_eq!(a.get("/k").await.unwrap(), Some(new.record));
        for index in [a, b] {
            index.close().await.unwrap();
        }
    }
}

/// The kept row of another moment beside the live one, as two nodes may leave it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_row_never_replaces_a_live_one() {
    let pg = Postgres::shared();
    let db = pg.database();
    let keeping = |url: &str| on_postgres::options(url).with_keep_deleted(WEEK);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let sqlite =
        |keep_deleted| SqliteOptions::new(&path, "walrus_index").with_keep_deleted(keep_deleted);
    let url = pg.url(&db);
    let indexes: [[Arc<dyn Index>; 2]; 2] = [
        [
            Arc::new(PostgresIndex::open(keeping(&url)).await.unwrap()),
            Arc::new(on_postgres::open(&url).await),
        ],
        [
            Arc::new(SqliteIndex::open(sqlite(WEEK)).await.unwrap()),
            Arc::new(SqliteIndex::open(sqlite(Duration::ZERO)).await.unwrap()),
        ],
    ];
    for [keeps, keeps_not] in indexes {
        let (old, new) = (row("/k", "old", 0, 5), row("/k", "new", 7, 6));
        keeps.put(&old).await.unwrap();
        keeps.delete("/k").await.unwrap();
        // A node that keeps nothing does not touch kept rows.
        assert_eq!(keeps_not.keeps_deleted(), Duration::ZERO);
        keeps_not.put(&new).await.unwrap();
        assert_eq!(kept_keys(&*keeps).await, ["/k"]);
        let traces = keeps_not.get_with_deleted(&["/k".into()]).await.unwrap();
        assert_eq!(traces[0].live, Some(new.record.clone()));
        assert_eq!(
            keeps.undelete(std::slice::from_ref(&old)).await.unwrap(),
            [""; 0]
        );
        assert_eq!(keeps.get("/k").await.unwrap(), Some(new.record.clone()));
        assert_eq!(kept_keys(&*keeps).await, [""; 0]);
        // It deletes without keeping, and can bring back what others keep.
        assert_eq!(keeps_not.delete("/k").await.unwrap(), usage(1, 6));
        assert_eq!(kept_keys(&*keeps).await, [""; 0]);
        keeps.put(&old).await.unwrap();
        keeps.delete("/k").await.unwrap();
        assert_eq!(
            keeps_not
                .undelete(std::slice::from_ref(&old))
                .await
                .unwrap(),
            ["/k"]
        );
        for index in [keeps, keeps_not] {
            index.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_rows_leave_when_their_time_is_over() {
    for Env { a, b, .. } in envs(Duration::from_secs(1)).await {
        let rows: Vec<KeyRecord> = (0..25)
            .map(|n| row(&format!("/{n:02}"), "b", n, 1))
            .collect();
        let all: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
        a.put_many(&rows).await.unwrap();
        a.delete_many(&all).await.unwrap();
        let begun = Instant::now();
        while !kept_keys(&*b).await.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "kept beyond its time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What is over is not offered any more, also before it is removed.
        assert_eq!(b.undelete(&rows[..1]).await.unwrap(), [""; 0]);
        assert_eq!(
            b.get_with_deleted(&all[..1]).await.unwrap(),
            [Default::default()]
        );
        assert_eq!(b.deleted(&all[..1]).await.unwrap(), [None]);
        assert_eq!(b.deleted_by_blob(None, 9).await.unwrap(), []);
        let mut removed = Vec::new();
        let mut after = Some(String::new());
        while let Some(key) = after {
            let step = b.purge_deleted(&key, 10).await.unwrap();
            removed.push(step.removed);
            after = step.last;
        }
        assert_eq!(removed, [10, 10, 5]);
        assert_eq!(b.purge_deleted("", 10).await.unwrap(), Purged::default());
        for index in [a, b] {
            index.close().await.unwrap();
        }
    }
    for Env { a, .. } in envs(WEEK).await {
        a.put(&row("/k", "b", 0, 1)).await.unwrap();
        a.delete("/k").await.unwrap();
        let step = a.purge_deleted("", 1).await.unwrap();
        let last = Some("/k".to_owned());
        assert_eq!(step, Purged { removed: 0, last }, "its time is not over");
        assert_eq!(kept_keys(&*a).await, ["/k"]);
        a.close().await.unwrap();
    }
}

/// Two nodes put, delete and undelete the same keys. In the end each key has the row of the last
/// put, or none; a row comes back once only, so what was counted adds up to what is there.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_delete_put_and_undelete_at_once_count_every_row_once() {
    for Env { a, b, .. } in envs(WEEK).await {
        let all: Vec<String> = (0..4).map(|n| format!("/{n}")).collect();
        let mut tasks = Vec::new();
        for (node, index) in [&a, &b, &a, &b].into_iter().enumerate() {
            let (index, all) = (Arc::clone(index), all.clone());
            tasks.push(tokio::spawn(async move {
                let mut sum = 0;
                for turn in 0..30_usize {
                    let part = &all[turn % 3..];
                    if node < 2 {
                        sum -= index.delete_many(part).await.unwrap().blocks;
                    } else {
                        let found = index.deleted(part).await.unwrap().into_iter().flatten();
                        let found: Vec<KeyRecord> = found.map(|found| found.row).collect();
                        sum += index.undelete(&found).await.unwrap().len() as i64;
                    }
                }
                sum
            }));
        }
        let first: Vec<KeyRecord> = all.iter().map(|key| row(key, "b", 0, 1)).collect();
        // Rows that exist already may be replaced: only those that did not exist count.
        a.put_many(&first).await.unwrap();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        let live = keys(&*a, "").await.len() as i64;
        // The first put found all keys without a row: no row existed before it.
        assert_eq!(all.len() as i64 + sum, live);
        // Every row is live or kept: none was lost between the tables.
        let mut somewhere = kept_keys(&*a).await;
        somewhere.extend(keys(&*a, "").await);
        somewhere.sort();
        somewhere.dedup();
        assert_eq!(somewhere, all);
        for index in [a, b] {
            index.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_can_only_be_read_lists_and_does_not_undelete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let keeping = SqliteOptions::new(&path, "walrus_index").with_keep_deleted(WEEK);
    let index = SqliteIndex::open(keeping.clone()).await.unwrap();
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.delete("/k").await.unwrap();
    index.close().await.unwrap();
    let reader = SqliteIndex::open(keeping.with_only_existing(true));
    let reader = reader.await.unwrap();
    let found = kept(&reader, &KeyRange::ALL).await;
    assert_eq!(found[0].row, row("/k", "b", 0, 1));
    let refused = reader.undelete(&[found[0].row.clone()]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    reader.close().await.unwrap();

    let pg = Postgres::shared();
    let db = pg.database();
    let url = pg.url(&db);
    let index = on_postgres::open(&url).await;
    pg.execute(
        &db,
        "INSERT INTO walrus_index_deleted (key, blob, size, created_at, deleted_at, keep_until) \
                     VALUES ('/k', 'b', 1, now(), now(), now() + interval '1 day')",
    );
    index.close().await.unwrap();
    let role = format!("reader_{db}");
    pg.execute(
        &db,
        &format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"),
    );
    let reader = on_postgres::open(&pg.url_as(&role, &db)).await;
    assert!(reader.only_reads().is_some());
    assert_eq!(kept_keys(&reader).await, ["/k"]);
    assert!(reader.undelete(&[row("/k", "b", 0, 1)]).await.is_err());
    assert_eq!(kept_keys(&reader).await, ["/k"]);
    reader.close().await.unwrap();
}

/// A table of the version before, and a file of the time before, get the companion; another table
/// of its name is refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_companion_is_made_once_and_known_by_its_columns() {
    let pg = Postgres::shared();
    let db = pg.database();
    on_postgres::open(&pg.url(&db)).await.close().await.unwrap();
    pg.execute(
        &db,
        "DROP TABLE walrus_index_deleted; UPDATE walrus_index_meta SET value = '2' WHERE name = 'schema_version'",
    );
    let options = on_postgres::options(&pg.url(&db)).with_keep_deleted(WEEK);
    let looks = options.clone().with_only_existing(true);
    let looks = PostgresIndex::open(looks).await.unwrap();
    assert_eq!(looks.keeps_deleted(), Duration::ZERO);
    assert!(kept_keys(&looks).await.is_empty());
    assert_eq!(
        looks.get_with_deleted(&["/k".into()]).await.unwrap(),
        [Default::default()]
    );
    looks.close().await.unwrap();
    let index = PostgresIndex::open(options.clone()).await.unwrap();
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.delete("/k").await.unwrap();
    assert_eq!(kept_keys(&index).await, ["/k"]);
    index.close().await.unwrap();
    let indexes = "SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'walrus_index_deleted'";
    assert_eq!(pg.scalar(&db, indexes), "walrus_index_deleted_pkey");
    pg.execute(
        &db,
        "DROP TABLE walrus_index_deleted; CREATE TABLE walrus_index_deleted (key TEXT, why TEXT)",
    );
    let Err(refused) = PostgresIndex::open(options).await else {
        panic!("another table was taken for the companion");
    };
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(
        refused.message().contains("walrus_index_deleted"),
        "{refused}"
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let open = |path: &Path| {
        SqliteIndex::open(SqliteOptions::new(path, "walrus_index").with_keep_deleted(WEEK))
    };
    open(&path).await.unwrap().close().await.unwrap();
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch("DROP TABLE walrus_index_deleted")
        .unwrap();
    let index = open(&path).await.unwrap();
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.delete("/k").await.unwrap();
    assert_eq!(kept_keys(&index).await, ["/k"]);
    index.close().await.unwrap();
    file.execute_batch(
        "DROP TABLE walrus_index_deleted; CREATE TABLE walrus_index_deleted (key TEXT, why TEXT)",
    )
    .unwrap();
    let Err(refused) = open(&path).await else {
        panic!("another table was taken for the companion");
    };
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(
        refused.message().contains("walrus_index_deleted"),
        "{refused}"
    );
}

/// What keeping costs a garbage collection, which deletes one key after another: `cargo test
/// --release --test index_suite -- --ignored keeping_deleted --nocapture`. The two indexes take
/// turns every few keys, so that what else the machine does slows both.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn keeping_deleted_rows_costs_little() {
    const ROWS: usize = 10_000;
    const TURN: usize = 500;
    let mut rows: Vec<KeyRecord> = (0..2 * ROWS)
        .map(|n| {
            let key = testkit::mem::key_of(n.to_string().as_bytes());
            let mut row = row(&key, &format!("blob{:040}", n % 80), n as i64, 262_144);
            row.record.expires_at = Some(time(4_000_000_000));
            row
        })
        .collect();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    for engine in ["SQLite", "PostgreSQL"] {
        let mut indexes: Vec<(Arc<dyn Index>, Vec<Duration>)> = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        for keep_deleted in [Duration::ZERO, WEEK] {
            let index: Arc<dyn Index> = if engine == "SQLite" {
                let path = dir.path().join(format!("{}", keep_deleted.as_secs()));
                let options =
                    SqliteOptions::new(path, "walrus_index").with_keep_deleted(keep_deleted);
                Arc::new(SqliteIndex::open(options).await.unwrap())
            } else {
                let pg = Postgres::shared();
                let options =
                    on_postgres::options(&pg.url(&pg.database())).with_keep_deleted(keep_deleted);
                Arc::new(PostgresIndex::open(options).await.unwrap())
            };
            index.put_many(&rows).await.unwrap();
            indexes.push((index, Vec::new()));
        }
        // Every second key is garbage.
        let garbage: Vec<&str> = rows.iter().step_by(2).map(|row| &*row.key).collect();
        for turn in garbage.chunks(TURN) {
            for (index, times) in &mut indexes {
                let begun = Instant::now();
                for key in turn {
                    assert_eq!(index.delete(key).await.unwrap().blocks, 1);
                }
                times.push(begun.elapsed());
            }
        }
        for (_, times) in &mut indexes {
            times.sort_unstable();
        }
        let at = |part: usize| {
            let [without, with] = [0, 1].map(|n: usize| {
                let times = &indexes[n].1;
                times[times.len() * part / 4].as_secs_f64() * 1e6 / TURN as f64
            });
            format!(
                "{without:.1} us a key without, {with:.1} us with: {:.2} times",
                with / without
            )
        };
        let whole: Vec<f64> = indexes
            .iter()
            .map(|(_, times)| times.iter().sum::<Duration>().as_secs_f64())
            .collect();
        println!(
            "{engine}, median: {}; lower quartile: {}; all: {:.2} times",
            at(2),
            at(1),
            whole[1] / whole[0]
        );
        for (index, _) in indexes {
            index.close().await.unwrap();
        }
    }
}
