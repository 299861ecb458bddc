//! smoke
mod common;
use common::postgres::Postgres;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::{Index, KeyRecord, Record};

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let pg = Postgres::shared();
    let db = pg.database();
    let index = PostgresIndex::open(PostgresOptions::new(pg.url(&db), "walrus_index")).await.unwrap();
    let t = std::time::Instant::now();
    let again = PostgresIndex::open(PostgresOptions::new(pg.url(&db), "walrus_index")).await.unwrap();
    println!("open {:?}", t.elapsed());
    let row = KeyRecord { key: "/a".into(), record: Record { blob_id: "b".into(), size: 5, ..Default::default() } };
    index.put(&row).await.unwrap();
    assert_eq!(again.get("/a").await.unwrap(), Some(row.record.clone()));
    println!("{:?}", again.list("/", None, 10).await.unwrap());
    println!("{:?}", again.delete("/a").await.unwrap());
    assert_eq!(again.get("/a").await.unwrap(), None);
    assert!(again.try_lease("x", "me", std::time::Duration::from_secs(5)).await.unwrap());
    assert!(!index.try_lease("x", "you", std::time::Duration::from_secs(5)).await.unwrap());
    println!("{:?}", again.due_for_renewal(std::time::SystemTime::now(), None, 10).await.unwrap());
    println!("{:?}", again.usage().await.unwrap());
    index.close().await.unwrap();
    again.close().await.unwrap();
    assert!(again.get("/a").await.is_err());
}
