//! Reads beside aggregators that hang, limit the rate, or redirect a reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use testkit::hostile::{answer, newly_created, serve_blob, Act, Hostile};
use testkit::mem::{key_of, ManualClock, MemIndex};
use walrusds::{BlobStore, Client, ClientConfig, Config, Record, StoreOptions, WalrusDatastore};

const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";

fn config(aggregators: &[&Hostile]) -> ClientConfig {
    ClientConfig::default()
        .with_aggregators(aggregators.iter().map(|a| a.url()).collect())
        .with_backoff_base(Duration::from_millis(1))
}

#[tokio::test]
async fn readers_leave_a_hung_aggregator_together() {
    let hung = Hostile::start(|_| Act::Hang).await;
    let well = Hostile::start(|seen| Act::Say(serve_blob(seen, &[7; 4096]))).await;
    let client = Client::new(config(&[&hung, &well])).unwrap();
    let start = Instant::now();
    let reads = (0..64).map(|n| client.read_range(ID, n, 64));
    for read in join_all(reads).await {
        assert_eq!(read.unwrap(), &[7; 64][..]);
    }
    // The time limit of a silent aggregator is 60 s.
    assert!(start.elapsed() < Duration::from_secs(45));
    assert!(client.stats().hedges >= 2, "{:?}", client.stats());
}

#[tokio::test]
async fn a_refused_window_is_asked_for_again() {
    let busy = Hostile::start(|seen| match seen.number {
        0 => Act::Say(answer("429 Too Many", &["retry-after: 1"], "")),
        _ => Act::Say(serve_blob(seen, &[7; 4096])),
    })
    .await;
    let client = Client::new(config(&[&busy])).unwrap();
    let start = Instant::now();
    let window = client.read_window(ID, 0, 1024, 0).await.unwrap();
    assert_eq!(window.bytes.len(), 1024);
    assert_eq!(busy.count(), 2);
    assert!(start.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn a_window_that_fails_otherwise_is_asked_for_once() {
    let broken = Hostile::always(answer("500 Internal", &[], "")).await;
    let client = Client::new(config(&[&broken])).unwrap();
    client.read_window(ID, 0, 1024, 0).await.unwrap_err();
    assert_eq!(broken.count(), 1);
}

#[tokio::test]
async fn uploads_follow_publishers_alone() {
    let busy = Hostile::start(|seen| match (seen.method.as_str(), seen.number) {
        ("PUT", 3) | ("GET", 0) => Act::Say(answer("429 Too Many", &[], "")),
        ("PUT", _) => Act::Say(newly_created(ID)),
        _ => Act::Say(serve_blob(seen, &[7; 64])),
    })
    .await;
    let client = Client::new(config(&[&busy]).with_publishers(vec![busy.url()])).unwrap();
    let options = StoreOptions::new(5);
    client.read_range(ID, 0, 8).await.unwrap();
    assert_eq!((client.throttled(), client.stats().throttled), (0, 1));
    client.store(vec![1; 8], options).await.unwrap();
    client.store(vec![2; 8], options).await.unwrap();
    assert_eq!((client.throttled(), client.stats().throttled), (1, 2));
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

/// An aggregator that does not know ranges sends the whole blob; its readers share one body.
#[tokio::test]
async fn readers_of_an_aggregator_without_ranges_share_a_body() {
    const BLOB: usize = 8 << 20;
    let data = bytes(BLOB);
    let sent = data.clone();
    let whole = Hostile::start(move |_| Act::Say(answer("200 OK", &[], &sent))).await;
    for keeps in [0, 64 << 20] {
        let client = Client::new(config(&[&whole])).unwrap();
        // All of them have begun before the first is answered.
        let readers = (0..48usize).map(|n| {
            let (client, data) = (&client, &data);
            async move {
                let at = n * 100_000;
                let block = &data[at..at + 1000];
                let check = |bytes: &[u8]| match bytes == block {
                    true => Ok(()),
                    false => Err("another block".to_owned()),
                };
                let got = client.read_block(ID, at as u64, 1000, keeps, &check).await;
                assert_eq!(got.unwrap().whole, keeps > 0);
            }
        });
        join_all(readers).await;
        assert_eq!(client.stats().get_bytes, BLOB as u64, "one body");
    }
}

/// A reader leaves a slow body for a healthy aggregator.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_left() {
    let data = bytes(4 << 20);
    let drips = data.clone();
    let dripping = Hostile::start(move |_| {
        let last = drips.len() - 1;
        let header = format!("content-range: bytes 0-{last}/{}", drips.len());
        Act::Drip(
            answer("206 Partial Content", &[&header], &drips),
            Duration::from_millis(50),
        )
    })
    .await;
    let well = {
        let data = data.clone();
        Hostile::start(move |seen| Act::Say(serve_blob(seen, &data))).await
    };
    let client = Client::new(config(&[&dripping, &well])).unwrap();
    for _ in 0..3 {
        let got = client.read_range(ID, 0, data.len() as u64).await.unwrap();
        assert_eq!(got, data);
    }
    assert_eq!(dripping.count(), 1, "the next reads begin elsewhere");
}

/// Gets of its blocks share the body, too, and from then on the datastore has the blob in memory.
#[tokio::test]
async fn gets_at_an_aggregator_without_ranges_are_one_download() {
    const BLOB: usize = 8 << 20;
    const BLOCK: usize = 64 << 10;
    let data = bytes(BLOB);
    let sent = data.clone();
    let whole = Hostile::start(move |_| Act::Say(answer("200 OK", &[], &sent))).await;
    let index = Arc::new(MemIndex::default());
    let blocks: Vec<(String, Bytes)> = (0..BLOB / BLOCK)
        .map(|n| {
            let block = Bytes::copy_from_slice(&data[n * BLOCK..(n + 1) * BLOCK]);
            (key_of(&block), block)
        })
        .collect();
    for (n, (key, _)) in blocks.iter().enumerate() {
        let row = Record::new(ID.to_owned(), (n * BLOCK) as i64, BLOCK as i64);
        index.rows.lock().insert(key.clone(), row);
    }
    let client = Arc::new(Client::new(config(&[&whole])).unwrap());
    let config = r#"{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}"#;
    let ds = WalrusDatastore::with_parts(
        &Config::from_json(config).unwrap(),
        index,
        Arc::<Client>::clone(&client),
        Arc::new(ManualClock::default()),
    );
    let ds = ds.unwrap();
    let gets = (0..48usize).map(|n| {
        let (ds, (key, block)) = (&ds, &blocks[(n * 37) % blocks.len()]);
        async move { assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(block)) }
    });
    join_all(gets).await;
    let received = client.stats().get_bytes;
    assert!(received < 3 * BLOB as u64, "{received} bytes");
    let asked = whole.count();
    for (key, block) in &blocks {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(block));
    }
    assert_eq!(whole.count(), asked, "all from memory");
    ds.close().await.unwrap();
}
