//! The index on a Citus cluster whose workers are restarted, killed and stopped, and whose clocks
//! differ. Each test starts a cluster of its own, where PostgreSQL has the extension:
//! `scripts/citus.sh` runs them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use testkit::citus::Citus;
use testkit::documents;
use testkit::postgres::{Postgres, ARCHIVING};
use testkit::{eventually, PATIENCE};
use walrusds::index::copy::copy;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{
    Copying, Deleted, ErrorKind, Index, KeyRange, KeyRecord, Ledger, Notes, Result, Rows, Usage,
};

use crate::on_postgres::{carries_out_nothing_late, given_up, hasty, insist, open};
use crate::shared::{keys, row};

/// The blocks of SQL in docs/operations.md that hold a text.
fn documented(text: &str) -> Vec<String> {
    documents::blocks("docs/operations.md", "sql", text)
}

fn rows(range: std::ops::Range<usize>, blob: &str) -> Vec<KeyRecord> {
    range
        .map(|n| row(&format!("/CIQ{n:05}"), blob, n as i64, 1))
        .collect()
}

fn keys_of(rows: &[KeyRecord]) -> Vec<String> {
    rows.iter().map(|row| row.key.clone()).collect()
}

/// The statements of docs/operations.md, as a role that is no superuser.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn the_documented_steps() {
    let cluster = Citus::start(2);
    let pg = &cluster.coordinator;
    let url = cluster.plain_role();
    let run = |sql: &str| testkit::postgres::execute_at(&url, sql);
    let [table, ..] = &documented("CREATE TABLE walrus_index (\n")[..] else {
        panic!("the table is not documented");
    };
    run(table);
    let [before, after] = &documented("create_distributed_table")[..] else {
        panic!("two steps are documented");
    };
    run(before);
    let options = PostgresOptions::new(&url, "walrus_index").with_keep_deleted(PATIENCE * 100);
    let index = PostgresIndex::open(options.clone()).await.unwrap();
    index.close().await.unwrap();
    run(after);
    let index = PostgresIndex::open(options).await.unwrap();
    let all = rows(0..12_000, "b");
    index.put_many(&all).await.unwrap();
    let some = keys_of(&all[..3000]);
    assert_eq!(
        index.delete_many(&some).await.unwrap(),
        Usage::new(3000, 3000)
    );
    assert_eq!(index.undelete(&all[..2000]).await.unwrap().len(), 2000);
    assert_eq!(keys(&index, "").await.len(), 11_000);
    let kept = index.list_deleted(&KeyRange::ALL, None, None, 5000).await;
    assert_eq!(kept.unwrap().len(), 1000);
    assert_eq!(
        index.live(&["b".into()]).await.unwrap(),
        [Usage::new(11_000, 11_000)]
    );
    let spread = "SELECT string_agg(DISTINCT table_name::text, ' ' ORDER BY table_name::text) FROM citus_shards";
    assert_eq!(
        pg.scalar("postgres", spread),
        "walrusds.walrus_index walrusds.walrus_index_deleted"
    );
    index.close().await.unwrap();
}

/// An index moves to the documented table. The copy makes the companions, and the deleted rows are
/// distributed after it, before a node starts. An index that a node has begun is refused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn a_move_makes_the_companions() {
    let cluster = Citus::start(2);
    let url = cluster.plain_role();
    let run = |sql: &str| testkit::postgres::execute_at(&url, sql);
    let table = documented("CREATE TABLE walrus_index (\n").remove(0);
    let [before, after] = &documented("create_distributed_table")[..] else {
        panic!("two steps are documented");
    };
    run(&table);
    run(before);
    let all = rows(0..3000, "b");
    let known = keys_of(&all);
    let dir = tempfile::tempdir().unwrap();
    let file = SqliteOptions::new(dir.path().join("i.sqlite"), "walrus_index");
    let from = SqliteIndex::open(file).await.unwrap();
    from.put_many(&all).await.unwrap();
    let plain = PostgresOptions::new(&url, "walrus_index");
    let to = PostgresIndex::open(plain.clone()).await.unwrap();
    copy(&from, &to, Copying::Finish, &mut |_| Ok(()))
        .await
        .unwrap();
    to.close().await.unwrap();
    run(after);
    let spread = "SELECT string_agg(DISTINCT table_name::text, ' ' ORDER BY table_name::text) FROM citus_shards";
    assert_eq!(
        cluster.coordinator.scalar("postgres", spread),
        "walrusds.walrus_index walrusds.walrus_index_deleted"
    );
    let keeping = plain.with_keep_deleted(PATIENCE * 100);
    let to = PostgresIndex::open(keeping).await.unwrap();
    assert_eq!(to.identity().await.unwrap(), from.identity().await.unwrap());
    assert_eq!(keys(&to, "").await, known);
    to.delete_many(&known[..1000]).await.unwrap();
    assert_eq!(to.undelete(&all[..500]).await.unwrap().len(), 500);
    assert_eq!(keys(&to, "").await.len(), 2500);
    let again = copy(&from, &to, Copying::Beside, &mut |_| Ok(())).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Config);
    to.close().await.unwrap();
    from.close().await.unwrap();
}

/// Each key of a lookup is looked for on its own shard alone, also by a role that is no superuser
/// and where some keys have a row that was deleted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn a_lookup_asks_each_shard_for_its_own_keys() {
    // The statistics count what is looked for in an index.
    let cluster = Citus::start_with(2, &["enable_seqscan=off"]);
    let pg = &cluster.coordinator;
    pg.execute(
        "postgres",
        "CREATE ROLE walrusds LOGIN; CREATE SCHEMA walrusds AUTHORIZATION walrusds",
    );
    let url = pg.url_as("walrusds", "postgres");
    let searches = || -> i64 {
        // Citus hides shards from views unless it is asked not to.
        let searches = "SET citus.override_table_visibility = off; \
                        SELECT COALESCE(sum(idx_scan), 0) FROM pg_stat_user_indexes \
                        WHERE indexrelname ~ '^walrus_index(_deleted)?_pkey_'";
        let of = |worker: &Postgres| worker.scalar("postgres", searches).parse::<i64>().unwrap();
        cluster.workers.iter().map(of).sum()
    };
    // The sessions on the workers count when they end.
    let ended = async || {
        let left = "SELECT count(*) FROM pg_stat_activity \
                    WHERE backend_type = 'client backend' AND usename = 'walrusds'";
        let servers = || cluster.workers.iter().chain([pg]);
        eventually("every session has ended", || {
            servers().all(|server| server.scalar("postgres", left) == "0")
        })
        .await;
    };
    let all = rows(0..400, "b");
    let some = keys_of(&all[200..]);
    for keep in [Duration::ZERO, PATIENCE * 100] {
        // The event trigger distributes the tables that this role makes, too.
        let options = PostgresOptions::new(&url, "walrusds.walrus_index").with_keep_deleted(keep);
        let index = PostgresIndex::open(options.clone()).await.unwrap();
        index.put_many(&all).await.unwrap();
        if !keep.is_zero() {
            index.delete_many(&some).await.unwrap();
        }
        index.close().await.unwrap();
        ended().await;
        let before = searches();
        let index = PostgresIndex::open(options).await.unwrap();
        let keys = keys_of(&rows(100..500, "b"));
        let found = index.get_many(&keys).await.unwrap();
        let there: usize = if keep.is_zero() { 300 } else { 100 };
        assert!(found.iter().take(there).all(Option::is_some));
        assert!(found.iter().skip(there).all(Option::is_none));
        let mut looked = 400;
        if !keep.is_zero() {
            let traces = index.get_with_deleted(&keys).await.unwrap();
            let deleted = traces.iter().filter(|trace| trace.deleted.is_some());
            assert_eq!(deleted.count(), 200);
            looked += 2 * 400;
        }
        index.close().await.unwrap();
        ended().await;
        assert_eq!(searches() - before, looked, "keys looked for on shards");
    }
}

/// The coordinator's connections to a worker break with it. No caller is told.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn a_restarted_worker_fails_no_call() {
    let mut cluster = Citus::start(2);
    let index = open(&cluster.url()).await;
    let all = rows(0..300, "b");
    index.put_many(&all).await.unwrap();
    let known = keys_of(&all);
    for round in 0..6 {
        for n in 0..2 {
            cluster.workers[n].restart();
            // Each of these is the first to use a connection that is broken, in turns.
            match (round + n) % 3 {
                0 => {
                    let found = index.get_many(&known).await.unwrap();
                    assert!(found.iter().all(Option::is_some));
                }
                1 => assert_eq!(keys(&index, "").await.len(), 300),
                _ => {
                    let found = join_all(known.iter().map(|key| index.get(key))).await;
                    assert!(found.into_iter().all(|row| row.unwrap().is_some()));
                }
            }
            let part = &all[round * 20..(round + 1) * 20];
            for row in part {
                index.put(row).await.unwrap();
                assert_eq!(index.delete(&row.key).await.unwrap(), Usage::new(1, 1));
            }
            index.put_many(part).await.unwrap();
            let moved = rows(round * 20..(round + 1) * 20, "b");
            assert_eq!(index.move_rows("b", &moved).await.unwrap(), 20);
            assert_eq!(keys(&index, "").await.len(), 300);
        }
    }
    index.close().await.unwrap();
}

/// Calls that are under way while a worker is restarted, lookups on the shared connection and
/// listings and deletions among them, succeed or fail with an error that says that they may be
/// repeated; and what was acknowledged is there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn calls_beside_restarts_may_be_repeated() {
    let mut cluster = Citus::start(2);
    let index = &open(&cluster.url()).await;
    let (kept, changed) = (&rows(0..200, "b"), &rows(200..260, "b"));
    index.put_many(kept).await.unwrap();
    let known = &keys_of(kept);
    let gone = &keys_of(changed);
    let over = &AtomicBool::new(false);
    let calls = &[const { AtomicUsize::new(0) }; 4];
    let refused = &[const { AtomicUsize::new(0) }; 4];
    let judge = |kind: usize, result: Result<()>| {
        calls[kind].fetch_add(1, Ordering::Relaxed);
        if let Err(e) = result {
            assert!(e.is_retryable(), "call {kind}: {e}");
            refused[kind].fetch_add(1, Ordering::Relaxed);
        }
    };
    let go_on = || !over.load(Ordering::Relaxed);
    let lookups = async {
        while go_on() {
            let one = async {
                judge(
                    0,
                    index.get(&known[7]).await.map(|row| assert!(row.is_some())),
                );
            };
            let many = async {
                let found = index.get_many(known).await;
                judge(
                    1,
                    found.map(|rows| assert!(rows.iter().all(Option::is_some))),
                );
            };
            tokio::join!(one, many);
        }
    };
    let pages = async {
        while go_on() {
            let page = index.list(&KeyRange::ALL, 0, 200).await;
            judge(2, page.map(|page| assert_eq!(page.len(), 200)));
        }
    };
    let changes = async {
        while go_on() {
            judge(3, index.put_many(changed).await);
            judge(3, index.delete_many(gone).await.map(drop));
        }
    };
    let restarts = async {
        for _ in 0..12 {
            let before: Vec<_> = calls.iter().map(|n| n.load(Ordering::Relaxed)).collect();
            let mut worker = cluster.workers.remove(0);
            let again = tokio::task::spawn_blocking(move || {
                worker.restart();
                worker
            });
            cluster.workers.push(again.await.unwrap());
            eventually("every kind of call has been made since", || {
                let now = calls.iter().map(|n| n.load(Ordering::Relaxed));
                now.zip(&before).all(|(now, before)| now > before + 2)
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(lookups, pages, changes, restarts);
    println!("calls {calls:?}, of which failed with such an error {refused:?}");
    insist(async || index.put_many(changed).await).await;
    assert_eq!(keys(index, "").await.len(), 260);
    assert_eq!(index.delete_many(gone).await.unwrap().blocks, 60);
    assert_eq!(keys(index, "").await, *known);
    index.close().await.unwrap();
}

/// While a worker is down, calls that concern it fail and may be repeated. What was acknowledged is
/// there afterwards, and what was prepared is brought to an end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn a_killed_worker_loses_nothing() {
    let mut cluster = Citus::start(2);
    let index = open(&cluster.url()).await;
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let part = rows(round * 1000..round * 1000 + 500, "b");
        index.put_many(&part).await.unwrap();
        acknowledged.extend(keys_of(&part));
        let more = rows(round * 1000 + 500..round * 1000 + 1000, "b");
        // The worker dies in the middle of a commit, sooner or later.
        let (stored, ()) = tokio::join!(index.put_many(&more), async {
            tokio::time::sleep(Duration::from_millis(3 * round as u64)).await;
            cluster.workers[0].kill();
        });
        match stored {
            Ok(()) => acknowledged.extend(keys_of(&more)),
            Err(e) => assert!(e.is_retryable(), "{e}"),
        }
        let error = index.put_many(&more).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        cluster.workers[0].up();
        insist(async || index.put_many(&more).await).await;
        acknowledged.extend(keys_of(&more));
        let found = index.get_many(&acknowledged).await.unwrap();
        assert!(found.iter().all(Option::is_some));
    }
    for worker in &cluster.workers {
        let prepared = "SELECT count(*) FROM pg_prepared_xacts";
        eventually("nothing is prepared any more", || {
            worker.scalar("postgres", prepared) == "0"
        })
        .await;
    }
    index.close().await.unwrap();
}

/// Workers stand still with a statement that the caller gives up. It is not carried out after later
/// writes of the same keys.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn frozen_workers_carry_out_nothing_late() {
    let cluster = Citus::start(2);
    let still = |signal| {
        cluster.workers.iter().for_each(|worker| {
            worker.signal_all(signal);
        })
    };
    let all = rows(0..40, "before");
    let late = rows(0..40, "late");
    let some = keys_of(&all);
    for case in ["put", "delete", "one put", "one delete", "move"] {
        let index = hasty(&cluster.url()).await;
        insist(async || index.put_many(&all).await).await;
        still("-STOP");
        match case {
            "put" => given_up(index.put_many(&late).await),
            "delete" => given_up(index.delete_many(&some).await),
            "one put" => given_up(index.put(&late[0]).await),
            "one delete" => given_up(index.delete(&some[0]).await),
            _ => given_up(index.move_rows("before", &late).await),
        }
        still("-CONT");
        let after = rows(0..40, "after");
        insist(async || index.put_many(&after).await).await;
        quiet(&cluster).await;
        let found = index.get_many(&some).await.unwrap();
        let blobs: Vec<_> = found.iter().flatten().map(|r| &*r.blob_id).collect();
        assert_eq!(blobs, ["after"; 40], "{case}");
        insist(async || index.delete_many(&some).await).await;
        quiet(&cluster).await;
        assert_eq!(keys(&index, "/CIQ").await, [""; 0], "{case}");
        index.close().await.unwrap();
    }
}

/// Waits until no server has a transaction of the tests under way.
async fn quiet(cluster: &Citus) {
    let busy = "SELECT (SELECT count(*) FROM pg_prepared_xacts) + \
                (SELECT count(*) FROM pg_locks WHERE relation::regclass::text LIKE 'walrus_index%')";
    let servers = || cluster.workers.iter().chain([&cluster.coordinator]);
    eventually("no transaction is under way", || {
        servers().all(|server: &Postgres| server.scalar("postgres", busy) == "0")
    })
    .await;
}

/// Backups of all servers, each made at a moment of its own, are restored to one moment: to the
/// second restore point of the documented statement. The first one is in the log of a server alone
/// that has the oldest backup.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn a_cluster_is_restored_to_one_moment() {
    let mut cluster = Citus::start_with(2, &ARCHIVING);
    let index = open(&cluster.url()).await;
    let all = rows(0..3000, "b");
    let known = keys_of(&all);
    let growing = "docs/growing-the-index.md";
    let point = documents::block(growing, "sql", "citus_create_restore_point");
    let mut points = Vec::new();
    index.put_many(&all[..1000]).await.unwrap();
    let mut backups = Vec::new();
    for server in cluster.workers.iter().chain([&cluster.coordinator]) {
        backups.push(server.back_up());
        if points.is_empty() {
            points.push(cluster.coordinator.scalar("postgres", &point));
        }
        let more = 1000 + 300 * backups.len();
        index.put_many(&all[1000..more]).await.unwrap();
    }
    index.delete_many(&known[..100]).await.unwrap();
    let identity = index.identity().await.unwrap();
    eventually("the second of the first name is over", || {
        let second = "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD-HH24MISS')";
        !points[0].contains(&cluster.coordinator.scalar("postgres", second))
    })
    .await;
    points.push(cluster.coordinator.scalar("postgres", &point));
    assert_ne!(points[0], points[1]);
    // What comes later is not in the restored cluster.
    index.put_many(&all[1900..]).await.unwrap();
    index.delete_many(&known[500..1500]).await.unwrap();
    index.close().await.unwrap();
    let Citus {
        coordinator,
        workers,
    } = &mut cluster;
    for server in workers.iter_mut().chain([coordinator]) {
        server.archived();
        server.restore(backups.remove(0), &points[1]);
    }
    let index = open(&cluster.url()).await;
    assert_eq!(index.identity().await.unwrap(), identity);
    assert_eq!(keys(&index, "").await, known[100..1900]);
    insist(async || index.put_many(&all).await).await;
    assert_eq!(index.delete_many(&known).await.unwrap().blocks, 3000);
    index.close().await.unwrap();
}

/// The workers' clocks differ from the coordinator's, by which a call's time is over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/citus.sh runs it"]
async fn the_workers_clocks_may_show_anything() {
    let cluster = Citus::start(2);
    for shift in ["1 hour", "-1 hour"] {
        for worker in &cluster.workers {
            let clocks = ["clock_timestamp", "now"];
            let clocks = clocks.map(|clock| {
                format!(
                    "CREATE OR REPLACE FUNCTION fake.{clock}() RETURNS timestamptz LANGUAGE sql VOLATILE AS \
                     $$ SELECT pg_catalog.{clock}() + interval '{shift}' $$;"
                )
            });
            worker.execute(
                "postgres",
                &format!(
                    "SET citus.enable_ddl_propagation = off; CREATE SCHEMA IF NOT EXISTS fake; {} \
                     ALTER DATABASE postgres SET search_path = fake, pg_catalog, public",
                    clocks.concat()
                ),
            );
        }
        // New sessions have the setting.
        let index = open(&cluster.url()).await;
        let all = rows(0..40, "b");
        index.put_many(&all).await.unwrap();
        index.put(&all[0]).await.unwrap();
        assert_eq!(index.delete(&all[0].key).await.unwrap(), Usage::new(1, 1));
        let rest = keys_of(&all);
        assert_eq!(index.delete_many(&rest).await.unwrap().blocks, 39);
        index.close().await.unwrap();
        carries_out_nothing_late(&cluster.coordinator, "postgres", true).await;
    }
}
