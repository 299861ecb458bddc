//! Reads beside aggregators that hang, ask for less, or send a reader elsewhere.

mod common;
#[path = "common/hostile.rs"]
#[allow(dead_code)]
mod hostile;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hostile::{answer, newly_created, serve_blob, Act, Hostile};
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
