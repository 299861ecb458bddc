//! Reads beside aggregators that hang, limit the rate, or redirect a reader.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use testkit::hostile::{answer, newly_created, serve_blob, Act, Hostile};
use walrusds::{BlobStore, Client, ClientConfig, StoreOptions};

const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";

fn config(aggregators: &[&Hostile]) -> ClientConfig {
    ClientConfig {
        aggregators: aggregators.iter().map(|a| a.url()).collect(),
        backoff_base: Duration::from_millis(1),
        ..ClientConfig::default()
    }
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
    let window = client.read_window(ID, 0, 1024).await.unwrap();
    assert_eq!(window.len(), 1024);
    assert_eq!(busy.count(), 2);
    assert!(start.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn a_window_that_fails_otherwise_is_asked_for_once() {
    let broken = Hostile::always(answer("500 Internal", &[], "")).await;
    let client = Client::new(config(&[&broken])).unwrap();
    client.read_window(ID, 0, 1024).await.unwrap_err();
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
    let client = Client::new(ClientConfig {
        publishers: vec![busy.url()],
        ..config(&[&busy])
    })
    .unwrap();
    let options = StoreOptions {
        epochs: 5,
        deletable: false,
    };
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
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_an_aggregator_without_ranges_share_a_body() {
    const BLOB: usize = 8 << 20;
    let data = bytes(BLOB);
    let sent = data.clone();
    let whole = Hostile::start(move |_| Act::Say(answer("200 OK", &[], &sent))).await;
    for cache in [-1, 256 << 20] {
        let client = Client::new(ClientConfig {
            blob_cache_bytes: cache,
            ..config(&[&whole])
        })
        .unwrap();
        let readers = (0..48usize).map(|n| {
            let (client, data) = (client.clone(), data.clone());
            tokio::spawn(async move {
                let at = n * 100_000;
                let got = client.read_range(ID, at as u64, 1000).await.unwrap();
                assert_eq!(got, &data[at..at + 1000]);
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        let received = client.stats().get_bytes;
        // The first ones may come after another while the cache is off.
        assert!(
            received < 12 * BLOB as u64,
            "{} bodies",
            received / BLOB as u64
        );
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
