//! The Walrus client against servers that misbehave.

#[path = "common/hostile.rs"]
#[allow(dead_code)]
mod hostile;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hostile::{answer, envelope, newly_created, serve_blob, Act, Hostile, Seen};
use walrusds::{Auth, BlobStore, Body, Client, ClientConfig, ErrorKind, StoreOptions};

const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";
const OTHER: &str = "3GPQL3HZNnFhN_F7l5Aa-X1VOtAKwIsg9zuWk8R81v4";
const PATCH: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUkBAQAHAA";
const OPTIONS: StoreOptions = StoreOptions {
    epochs: 5,
    deletable: false,
};
const MIB: usize = 1 << 20;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A configuration that does not wait long.
fn quick() -> ClientConfig {
    ClientConfig {
        request_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(2),
        backoff_base: ms(1),
        backoff_max: ms(4),
        retry_after_max: ms(300),
        not_found_backoff: vec![ms(1); 4],
        ..ClientConfig::default()
    }
}

fn reader(aggregators: &[&Hostile]) -> ClientConfig {
    ClientConfig {
        aggregators: aggregators.iter().map(|a| a.url()).collect(),
        ..quick()
    }
}

fn writer(publishers: &[&Hostile]) -> ClientConfig {
    ClientConfig {
        publishers: publishers.iter().map(|p| p.url()).collect(),
        ..quick()
    }
}

fn client(config: ClientConfig) -> Client {
    Client::new(config).unwrap()
}

fn blob(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((7 * i + 3) % 256) as u8).collect()
}

/// A port on which nobody listens.
async fn closed_port() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn check_ok(_: &[u8]) -> Result<(), String> {
    Ok(())
}

mod storing {
    use super::*;

    #[tokio::test]
    async fn streams_the_chunks_with_the_right_request() {
        let publisher = Hostile::always(newly_created(ID)).await;
        let client = client(writer(&[&publisher]));
        let data = blob(300_000);
        let mut body = Body::default();
        for chunk in data.chunks(70_001) {
            body.push(Bytes::copy_from_slice(chunk));
        }
        let stored = client.store(body, OPTIONS).await.unwrap();
        assert_eq!(stored.blob_id, ID);
        assert_eq!(stored.object_id.as_deref(), Some("0xab"));
        assert_eq!((stored.start_epoch, stored.end_epoch), (Some(3), 8));
        assert_eq!(stored.encoded_size, Some(66_034_000));
        assert_eq!(stored.cost, 32_760_000);
        assert!(stored.newly_created);

        let seen = &publisher.seen()[0];
        assert_eq!(seen.method, "PUT");
        assert_eq!(seen.target, "/v1/blobs?epochs=5&permanent=true");
        assert_eq!(seen.header("content-length"), Some("300000"));
        assert_eq!(seen.header("transfer-encoding"), None);
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("authorization"), None);
        let agent = concat!("walrusds/", env!("CARGO_PKG_VERSION"));
        assert_eq!(seen.header("user-agent"), Some(agent));
        assert!(seen.body == data);

        let stats = client.stats();
        assert_eq!((stats.puts, stats.put_bytes), (1, 300_000));
        assert_eq!(
            (stats.cost_frost, stats.encoded_bytes),
            (32_760_000, 66_034_000)
        );
        assert_eq!((stats.retries, stats.put_failures), (0, 0));
    }

    #[tokio::test]
    async fn deletable_empty_and_already_certified() {
        let body =
            format!(r#"{{"alreadyCertified":{{"blobId":"{ID}","object":"0xab","endEpoch":9}}}}"#);
        let publisher = Hostile::always(answer("200 OK", &[], body)).await;
        let client = client(writer(&[&publisher]));
        let options = StoreOptions {
            epochs: 1,
            deletable: true,
        };
        let stored = client.store(Bytes::new(), options).await.unwrap();
        assert!(!stored.newly_created);
        assert_eq!((stored.end_epoch, stored.cost), (9, 0));
        let seen = &publisher.seen()[0];
        assert_eq!(seen.target, "/v1/blobs?epochs=1&deletable=true");
        assert_eq!(seen.header("content-length"), Some("0"));
    }

    #[tokio::test]
    async fn connections_are_reused() {
        let publisher = Hostile::always(newly_created(ID)).await;
        let client = client(writer(&[&publisher]));
        for _ in 0..3 {
            client.store(blob(10), OPTIONS).await.unwrap();
        }
        assert_eq!(publisher.seen()[2].connection, 0);
    }
}

mod reading {
    use super::*;

    #[tokio::test]
    async fn whole_range_and_patch() {
        let data = blob(1000);
        let aggregator = Hostile::start({
            let data = data.clone();
            move |seen| Act::Say(serve_blob(seen, &data))
        })
        .await;
        let client = client(reader(&[&aggregator]));
        let part = client.read_range(ID, 10, 90).await.unwrap();
        assert_eq!(part[..], data[10..100]);
        assert_eq!(client.read(ID).await.unwrap(), data);
        let whole = client.read_range(ID, 0, 1000).await.unwrap();
        assert_eq!(whole, data);
        assert_eq!(client.read_range(ID, 5, 0).await.unwrap(), Bytes::new());
        assert_eq!(client.read_patch(PATCH, &check_ok).await.unwrap(), data);
        assert_eq!(client.read_patch(PATCH, &check_ok).await.unwrap(), data);

        let seen = aggregator.seen();
        assert_eq!(seen.len(), 3, "the rest came from memory");
        assert_eq!(seen[0].target, format!("/v1/blobs/{ID}"));
        assert_eq!(seen[0].header("range"), Some("bytes=10-99"));
        assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
        assert_eq!(seen[1].header("range"), None);
        assert_eq!(
            seen[2].target,
            format!("/v1/blobs/by-quilt-patch-id/{PATCH}")
        );
        let stats = client.stats();
        assert_eq!((stats.gets, stats.get_bytes), (3, 2090));
        assert_eq!((stats.cache_hits, stats.cache_misses), (2, 3));
    }
}
