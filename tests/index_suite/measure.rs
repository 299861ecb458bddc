//! Numbers, not checks: `cargo test --release --test index_suite measure -- --ignored --nocapture`.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::internals::Lookups;
use walrusds::{Index, KeyRange, KeyRecord, Rows};

use crate::on_postgres::GO_NEWEST;
use crate::shared::row;
use testkit::postgres::Postgres;

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
    // The same lookup with a named statement, to compare the cost of unnamed ones.
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

/// Keys as SQL can make them, as random as multihashes: neighbours in time are no neighbours in the
/// tree.
fn random_key(n: u64) -> String {
    let digest = Sha256::digest(n.to_string());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("/CIQ{}", &hex[..52])
}

/// A table of `rows` rows as `random_key` names them, in packs of 256.
fn fill(pg: &Postgres, db: &str, rows: u64, partitions: u64) {
    let columns = "key TEXT COLLATE \"C\" NOT NULL, blob_id TEXT NOT NULL, blob_offset BIGINT NOT NULL DEFAULT 0,
        size BIGINT NOT NULL, deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0,
        expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now()";
    if partitions == 0 {
        pg.execute(db, &format!("CREATE TABLE t ({columns})"));
    } else {
        pg.execute(
            db,
            &format!("CREATE TABLE t ({columns}) PARTITION BY HASH (key)"),
        );
        for n in 0..partitions {
            pg.execute(db, &format!("CREATE TABLE t_{n} PARTITION OF t FOR VALUES WITH (MODULUS {partitions}, REMAINDER {n})"));
        }
    }
    pg.execute(
        db,
        &format!(
            "INSERT INTO t (key, blob_id, blob_offset, size, end_epoch, expires_at)
             SELECT '/CIQ' || left(encode(sha256(convert_to(n::text, 'UTF8')), 'hex'), 52),
                    'Q0_' || lpad((n / 256)::text, 40, 'a'), (n % 256) * 262144, 262144, 60, now() + interval '1 year'
             FROM generate_series(0, {rows} - 1) AS n"
        ),
    );
    pg.execute(
        db,
        "SET maintenance_work_mem = '512MB'; ALTER TABLE t ADD PRIMARY KEY (key)",
    );
}

/// Times one call, `rounds` times; the median and the 99th percentile.
async fn each<F, Fut>(name: &str, rounds: u64, call: F)
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut times = Vec::new();
    for n in 0..rounds {
        let started = Instant::now();
        call(n.wrapping_mul(25_214_903_917).wrapping_add(11)).await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let at = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "{name:<44} p50 {:>9.1} us  p99 {:>9.1} us",
        at(0.5),
        at(0.99)
    );
}

/// `ROWS=10000000 PARTITIONS=16`: the cost of lookups, pages and writes by the size of a table.
/// With `INDEX_URL` on the table `t` of a server that runs already, filled as by `fill`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_large() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |n| n.parse::<u64>().expect("a number"))
    };
    let (count, partitions) = (number("ROWS", 1_000_000), number("PARTITIONS", 0));
    let mut server = None;
    let url = std::env::var("INDEX_URL").unwrap_or_else(|_| {
        let pg = Postgres::start_with(&[
            "wal_level=minimal",
            "max_wal_senders=0",
            "max_wal_size=8GB",
            "shared_buffers=1GB",
            "fsync=on",
        ]);
        let db = pg.database();
        fill(&pg, &db, count, partitions);
        pg.execute(&db, "VACUUM ANALYZE t");
        let url = pg.socket_url(&db);
        server = Some(pg);
        url
    });
    let started = Instant::now();
    let opened = PostgresIndex::open(PostgresOptions::new(url, "t"));
    let index: Arc<dyn Index> = Arc::new(opened.await.unwrap());
    println!("{count} rows; open {:?}", started.elapsed());
    let known = |n: u64| random_key(n % count);
    let unknown = |n: u64| random_key(n % count + count);
    let i = &index;
    each("get, known", 2000, |n| async move {
        assert!(i.get(&known(n)).await.unwrap().is_some())
    })
    .await;
    each("get, unknown", 2000, |n| async move {
        assert!(i.get(&unknown(n)).await.unwrap().is_none())
    })
    .await;
    for size in [16, 100, 512] {
        each(
            &format!("get_many of {size}, half unknown"),
            200,
            |n| async move {
                let keys: Vec<_> = (n..n + size)
                    .map(|m| if m % 2 == 0 { known(m) } else { unknown(m) })
                    .collect();
                assert_eq!(i.get_many(&keys).await.unwrap().len(), keys.len());
            },
        )
        .await;
    }
    let lookups = Arc::new(Lookups::new(index.clone(), Duration::from_secs(5)));
    let l = &lookups;
    each("combined, unknown", 2000, |n| async move {
        assert!(l.find(&unknown(n)).await.unwrap().is_none())
    })
    .await;
    // The task of each caller makes the next key: two hashes are part of what is counted.
    for callers in [1, 16, 128, 512] {
        let l = lookups.clone();
        run("combined, unknown", callers, move |n| {
            let l = l.clone();
            async move {
                assert!(l
                    .find(&random_key(n + 3_000_000_000))
                    .await
                    .unwrap()
                    .is_none())
            }
        })
        .await;
    }
    let i = index.clone();
    run("not combined, unknown", 128, move |n| {
        let i = i.clone();
        async move {
            assert!(i
                .get(&random_key(n + 3_000_000_000))
                .await
                .unwrap()
                .is_none())
        }
    })
    .await;
    let hot = random_key(7);
    for callers in [1, 2, 16, 128] {
        let (l, hot) = (lookups.clone(), hot.clone());
        run("combined, remembered", callers, move |_| {
            let (l, hot) = (l.clone(), hot.clone());
            async move {
                for _ in 0..1000 {
                    assert!(l.find(&hot).await.unwrap().is_some());
                }
            }
        })
        .await;
    }
    let i = &index;
    each("first page of 64, anywhere", 200, |n| async move {
        let range = KeyRange::ALL.after(known(n));
        assert!(!i.list(&range, 0, 64).await.unwrap().is_empty());
    })
    .await;
    for rows in [2048, 8192] {
        let started = Instant::now();
        let (mut listed, mut range) = (0, KeyRange::ALL);
        while listed < count.min(1_000_000) as usize {
            let page = index.list(&range, 0, rows).await.unwrap();
            let Some(last) = page.last() else { break };
            range = range.after(last.key.as_str());
            listed += page.len();
        }
        println!(
            "pages of {rows}: {:.0} rows/s",
            listed as f64 / started.elapsed().as_secs_f64()
        );
    }
    let new = |range: std::ops::Range<u64>| -> Vec<KeyRecord> {
        let blob = |n: u64| format!("Q1_{:040}", n / 256);
        range
            .map(|n| row(&random_key(n + 5_000_000_000), &blob(n), 0, 262_144))
            .collect()
    };
    for rows in [16, 256] {
        each(&format!("put_many of {rows}, new"), 50, |n| {
            let rows = new(n % (1 << 40)..n % (1 << 40) + rows);
            async move { i.put_many(&rows).await.unwrap() }
        })
        .await;
    }
    for what in ["new", "overwritten"] {
        let rows = new(1 << 41..(1 << 41) + 100_000);
        let started = Instant::now();
        index.put_many(&rows).await.unwrap();
        println!(
            "put_many of 100,000, {what}: {:.0} rows/s",
            1e5 / started.elapsed().as_secs_f64()
        );
    }
    each("delete, one after another", 4000, |n| async move {
        i.delete(&known(n)).await.unwrap();
    })
    .await;
    let i = index.clone();
    run("delete", 16, move |n| {
        let i = i.clone();
        async move { assert!(i.delete(&random_key(n % count)).await.unwrap().blocks < 2) }
    })
    .await;
    index.close().await.unwrap();
    drop(server);
}
