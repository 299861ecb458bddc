//! The speed of `check --read-data` beside that of the aggregator alone. Run by hand:
//!
//! ```sh
//! cargo test --release --test check_measure -- --ignored --nocapture
//! ```

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use testkit::mem::{key_of, noise};
use tokio_util::sync::CancellationToken;
use walrus_devnet::{Devnet, Options as Walrus};
use walrusds::admin::check::{check, Cursor, Data, Options, Sample};
use walrusds::datastore::Inspection;
use walrusds::{Config, Op, WalrusDatastore};

const BLOCK: usize = 256 << 10;
const RANGE: usize = 16 << 20;
/// Bytes of all blocks.
const ALL: usize = 1 << 30;

/// Reads every blob in ranges, eight at a time, and looks at nothing.
async fn read_alone(net: &Devnet) -> Duration {
    let http = reqwest::Client::builder().tls_backend_preconfigured(testkit::no_tls());
    let http = http.http1_only().build().unwrap();
    let mut ranges = Vec::new();
    for blob in net.blobs() {
        let size = net.content(&blob.blob_id).unwrap().len();
        for start in (0..size).step_by(RANGE) {
            let end = (start + RANGE).min(size) - 1;
            ranges.push((blob.blob_id.to_string(), format!("bytes={start}-{end}")));
        }
    }
    let began = Instant::now();
    let reads = ranges.into_iter().map(|(blob, range)| {
        let request = http.get(format!("{}/v1/blobs/{blob}", net.url()));
        tokio::spawn(async move {
            let mut answer = request.header("range", range).send().await.unwrap();
            let mut bytes = 0;
            while let Some(piece) = answer.chunk().await.unwrap() {
                bytes += piece.len();
            }
            bytes
        })
    });
    let mut reads = stream::iter(reads).buffer_unordered(8);
    let mut bytes = 0;
    while let Some(read) = reads.next().await {
        bytes += read.unwrap();
    }
    assert!(bytes >= ALL);
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn reading_and_hashing_everything() {
    let options = Walrus {
        cheap_ids: true,
        ..Walrus::default()
    };
    let net = Devnet::start(options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let url = net.url();
    let config = format!(
        r#"{{"publisherURL":"{url}","aggregatorURL":"{url}","indexPath":"index.sqlite","epochs":5}}"#
    );
    let config = Config::from_json(&config).unwrap();
    let node = WalrusDatastore::open(config.clone(), dir.path()).await;
    let node = node.unwrap();
    for pack in 0..ALL / (64 << 20) {
        let blocks = (0..(64 << 20) / BLOCK).map(|n| {
            let value = noise((pack * 1000 + n) as u64, BLOCK);
            Op::Put(key_of(&value), value)
        });
        node.commit(blocks.collect()).await.unwrap();
    }
    node.close().await.unwrap();
    let rate = |time: Duration| ALL as f64 / 1e6 / time.as_secs_f64();
    for _ in 0..3 {
        let alone = rate(read_alone(&net).await);
        let inspection = Inspection::open(config.clone(), dir.path()).await.unwrap();
        let options = Options::default()
            .with_from(Cursor::new(Data::Read(Sample::All)))
            .with_settle(Duration::ZERO);
        let stop = CancellationToken::new();
        let summary = check(&inspection, &options, &mut |_| {}, &stop)
            .await
            .unwrap();
        inspection.close().await.unwrap();
        assert_eq!(summary.findings(), 0);
        assert_eq!(summary.verified as usize, ALL / BLOCK);
        let checked = rate(summary.took);
        println!(
            "aggregator alone {alone:.0} MB/s, check {checked:.0} MB/s ({:.0} %), hashing {:.0} % of the cores' time, limit {:?}",
            checked * 100.0 / alone,
            summary.hashing * 100.0,
            summary.limit()
        );
    }
}
