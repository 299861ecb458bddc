//! Numbers, not checks: `cargo test --release --test index_suite measure -- --ignored --nocapture`.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Index, KeyRange, KeyRecord};

use crate::common::postgres::Postgres;
use crate::on_postgres::GO_NEWEST;
use crate::shared::row;

const ROWS: u64 = 200_000;

fn key(n: u64) -> String {
    format!("/CIQ{:050}", n.wrapping_mul(2_654_435_761) % 1_000_000_007)
}

fn rows(range: std::ops::Range<u64>) -> Vec<KeyRecord> {
    range
        .map(|n| {
            row(
                &key(n),
                "Q0_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                n as i64,
                262_144,
            )
        })
        .collect()
}

async fn run<F, Fut>(name: &str, callers: u64, call: F)
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (call, done) = (call.clone(), done.clone());
            tokio::spawn(async move {
                let mut n = caller * 7919;
                while started.elapsed() < Duration::from_secs(2) {
                    n = n.wrapping_mul(25_214_903_917).wrapping_add(11);
                    call(n % (2 * ROWS)).await; // half of them missing
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (count, seconds) = (
        done.load(Ordering::Relaxed) as f64,
        started.elapsed().as_secs_f64(),
    );
    println!(
        "{name:<44} {callers:>4} callers {:>9.0}/s {:>8.1} us each",
        count / seconds,
        seconds * 1e6 * callers as f64 / count
    );
}

async fn index(name: &str, index: Arc<dyn Index>) {
    let started = Instant::now();
    for page in 0..ROWS / 20_000 {
        index
            .put_many(&rows(page * 20_000..(page + 1) * 20_000))
            .await
            .unwrap();
    }
    println!(
        "{name}: put_many {:.0} rows/s",
        ROWS as f64 / started.elapsed().as_secs_f64()
    );
    for callers in [1, 16, 128] {
        let i = index.clone();
        run(&format!("{name}: get"), callers, move |n| {
            let i = i.clone();
            async move { drop(i.get(&key(n)).await.unwrap()) }
        })
        .await;
    }
    for size in [16u64, 256] {
        let i = index.clone();
        run(&format!("{name}: get_many of {size}"), 4, move |n| {
            let i = i.clone();
            async move {
                drop(
                    i.get_many(&(n..n + size).map(key).collect::<Vec<_>>())
                        .await
                        .unwrap(),
                )
            }
        })
        .await;
    }
    for callers in [1, 16, 128] {
        let i = index.clone();
        run(&format!("{name}: put"), callers, move |n| {
            let i = i.clone();
            async move { i.put(&row(&key(n), "b", 0, 1)).await.unwrap() }
        })
        .await;
    }
    for callers in [1, 16] {
        let i = index.clone();
        run(&format!("{name}: delete"), callers, move |n| {
            let i = i.clone();
            async move { assert!(i.delete(&key(n)).await.unwrap().blocks < 2) }
        })
        .await;
    }
    let started = Instant::now();
    let (mut listed, mut range) = (0, KeyRange::prefix("/CIQ"));
    loop {
        let page = index.list(&range, 0, 5000).await.unwrap();
        listed += page.len();
        if page.len() < 5000 {
            break;
        }
        range = range.after(page[4999].key.as_str());
    }
    println!(
        "{name}: list {:.0} rows/s",
        f64::from(listed as u32) / started.elapsed().as_secs_f64()
    );
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_postgres() {
    let pg = Postgres::start_with(&["fsync=on", "full_page_writes=on", "shared_buffers=256MB"]);
    let db = pg.database();
    let opened = PostgresIndex::open(PostgresOptions::new(pg.socket_url(&db), "t"))
        .await
        .unwrap();
    opened.put_many(&rows(0..20_000)).await.unwrap();
    pg.execute(&db, "VACUUM ANALYZE t");
    // The same lookup with a named statement, for comparison: what unnamed ones cost.
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(pg.socket_dir())
        .port(pg.port())
        .user("postgres")
        .dbname(&db);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let client = Arc::new(client);
    let sql = "SELECT FALSE AS staged, blob_id, '' AS patch_id, blob_offset, size, deletable, end_epoch, expires_at FROM t WHERE key = $1";
    let statement = client.prepare(sql).await.unwrap();
    for callers in [1, 16, 128] {
        let (c, s) = (client.clone(), statement.clone());
        run("named statement", callers, move |n| {
            let (c, s) = (c.clone(), s.clone());
            async move { drop(c.query(&s, &[&key(n)]).await.unwrap()) }
        })
        .await;
        let c = client.clone();
        run("unnamed statement", callers, move |n| {
            let c = c.clone();
            async move {
                drop(
                    c.query_typed(sql, &[(&key(n), tokio_postgres::types::Type::TEXT)])
                        .await
                        .unwrap(),
                )
            }
        })
        .await;
    }
    index("postgres", Arc::new(opened)).await;
    let db = pg.database();
    pg.execute(&db, &GO_NEWEST.replace("walrus_index", "t"));
    let opened = PostgresIndex::open(PostgresOptions::new(pg.socket_url(&db), "t"))
        .await
        .unwrap();
    index("postgres with staging", Arc::new(opened)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let opened = SqliteIndex::open(SqliteOptions::new(dir.path().join("i"), "t"))
        .await
        .unwrap();
    index("sqlite", Arc::new(opened)).await;
}
