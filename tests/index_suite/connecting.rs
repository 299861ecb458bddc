//! Connections as libpq and lib/pq make them.

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::Index;

use crate::common::postgres::Postgres;
use crate::on_postgres::openssl;
use crate::shared::row;

async fn open(url: &str) -> PostgresIndex {
    PostgresIndex::open(PostgresOptions::new(url, "walrus_index"))
        .await
        .unwrap_or_else(|e| panic!("{url}: {e}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn run_time_parameters_reach_the_server() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, "CREATE SCHEMA other");
    let url = pg
        .url(&db)
        .replace('?', "? search_path=other&statement_timeout=60000&");
    let index = open(&url).await;
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    assert_eq!(
        pg.scalar(&db, "SELECT count(*) FROM other.walrus_index"),
        "1"
    );
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_preferred_where_the_url_says_so() {
    let pg = Postgres::start();
    let db = pg.database();
    let index = open(&pg.url(&db)).await;
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
    let replica = pg.start_replica();
    let (first, second) = (pg.port(), replica.port());
    let url = |attrs: &str| {
        format!(
            "postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/{db}?sslmode=disable{attrs}"
        )
    };
    let reader = open(&url("&target_session_attrs=prefer-standby")).await;
    assert!(reader
        .only_reads()
        .is_some_and(|why| why.contains("standby")));
    assert!(reader.get("/k").await.unwrap().is_some());
    let writer = open(&url("")).await;
    assert_eq!(writer.only_reads(), None);
    for index in [reader, writer] {
        index.close().await.unwrap();
    }
    // Without a standby the primary does.
    drop(replica);
    pg.set("synchronous_standby_names", "");
    let index = open(&url("&target_session_attrs=prefer-standby")).await;
    assert_eq!(index.only_reads(), None);
    index.close().await.unwrap();
}

/// As PostgreSQL's manual makes them: without extensions, version 1.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_version_1_encrypt() {
    let dir = tempfile::tempdir().unwrap();
    openssl(
        dir.path(),
        "req -new -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost",
    );
    openssl(
        dir.path(),
        "x509 -req -in s.csr -signkey s.key -days 2 -out s.crt",
    );
    let text = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(dir.path().join("s.crt"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("Version: 1"), "{text}");
    let mut pg = Postgres::start();
    let db = pg.database();
    pg.write(
        "server.crt",
        &std::fs::read(dir.path().join("s.crt")).unwrap(),
    );
    pg.write(
        "server.key",
        &std::fs::read(dir.path().join("s.key")).unwrap(),
    );
    pg.execute("postgres", "ALTER SYSTEM SET ssl = on");
    pg.restart();
    for versions in ["TLSv1.2", "TLSv1.3"] {
        pg.execute(
            "postgres",
            &format!("ALTER SYSTEM SET ssl_max_protocol_version = '{versions}'"),
        );
        pg.restart();
        for mode in ["require", "prefer"] {
            let url = pg
                .url(&db)
                .replace("sslmode=disable", &format!("sslmode={mode}"));
            let index = open(&url).await;
            assert_eq!(index.take_notice(), None, "{mode}");
            let encrypted =
                "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                             WHERE a.application_name = 'walrusds'";
            assert_eq!(pg.scalar(&db, encrypted), "t", "{mode}, {versions}");
            index.close().await.unwrap();
        }
    }
}
