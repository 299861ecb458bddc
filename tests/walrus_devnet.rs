//! The datastore with its real client on a local Walrus, and with each of its real indexes.

use bytes::Bytes;
use testkit::mem::{key_of, noise};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Request, Options, Role};
use walrusds::{Config, ErrorKind, Op, QueryOptions, WalrusDatastore};

async fn devnet() -> Devnet {
    Devnet::start(Options {
        cheap_ids: true,
        max_body: 64 << 20,
        publisher_concurrency: 0,
        ..Options::default()
    })
    .await
    .expect("local Walrus")
}

/// A repo directory and the configuration of a datastore in it.
struct Repo {
    dir: tempfile::TempDir,
    spec: serde_json::Value,
}

impl Repo {
    fn new(net: &Devnet) -> Self {
        Repo {
            dir: tempfile::tempdir().unwrap(),
            spec: serde_json::json!({
                "publisherURL": net.url(), "aggregatorURL": net.url(), "indexPath": "index.sqlite",
            }),
        }
    }

    fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.spec[key] = value.into();
        self
    }

    fn on_postgres(mut self) -> Self {
        let postgres = Postgres::shared();
        self.spec["postgresURL"] = postgres.url(&postgres.database()).into();
        self.spec.as_object_mut().unwrap().remove("indexPath");
        self
    }

    async fn open(&self) -> WalrusDatastore {
        let config = Config::from_json(&self.spec.to_string()).unwrap();
        WalrusDatastore::open(config, self.dir.path())
            .await
            .unwrap()
    }
}

fn blocks(n: u64, len: usize) -> Vec<(String, Bytes)> {
    (0..n)
        .map(|seed| {
            let value = noise(seed, len);
            (key_of(&value), value)
        })
        .collect()
}

fn puts(blocks: &[(String, Bytes)]) -> Vec<Op> {
    blocks
        .iter()
        .map(|(k, v)| Op::Put(k.clone(), v.clone()))
        .collect()
}

async fn tour(net: &Devnet, repo: &Repo) {
    let ds = repo.open().await;
    let mut all = blocks(40, 100_000);
    for value in [Bytes::new(), Bytes::from_static(b"1"), noise(7, 20 << 20)] {
        all.push((key_of(&value), value));
    }
    ds.commit(puts(&all)).await.unwrap();
    let bytes: i64 = all.iter().map(|(_, v)| v.len() as i64).sum();
    assert_eq!(ds.disk_usage().await.unwrap().bytes, bytes);
    ds.close().await.unwrap();

    // Another process, later.
    let ds = repo.open().await;
    for (key, value) in &all {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value), "{key}");
        assert_eq!(ds.get_size(key).await.unwrap(), Some(value.len() as u64));
    }
    let usage = ds.disk_usage().await.unwrap();
    assert_eq!((usage.blocks, usage.bytes), (43, bytes));
    ds.commit(puts(&all[..40])).await.unwrap();
    assert_eq!(net.stats().newly_created, 1, "nothing was uploaded again");
    let mut query = ds.query(QueryOptions::default()).unwrap();
    let mut seen = 0;
    loop {
        let page = query.next_page().await.unwrap();
        if page.is_empty() {
            break;
        }
        for entry in page {
            let (_, value) = all.iter().find(|(k, _)| *k == entry.key).unwrap();
            assert_eq!(&entry.value.unwrap().unwrap(), value);
            ds.delete(&entry.key).await.unwrap();
            seen += 1;
        }
    }
    drop(query);
    assert_eq!(seen, 43);
    assert_eq!(ds.disk_usage().await.unwrap().blocks, 0);
    assert!(!ds.has(&all[0].0).await.unwrap());
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tour_on_sqlite() {
    let net = devnet().await;
    tour(&net, &Repo::new(&net)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tour_on_postgres() {
    let net = devnet().await;
    tour(&net, &Repo::new(&net).on_postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_share_an_index() {
    let net = devnet().await;
    let repo = Repo::new(&net).on_postgres();
    let (a, b) = (repo.open().await, repo.open().await);
    let all = blocks(10, 5000);
    a.commit(puts(&all)).await.unwrap();
    for (key, value) in &all {
        assert_eq!(b.get(key).await.unwrap().as_ref(), Some(value));
    }
    b.commit(puts(&all)).await.unwrap();
    assert_eq!(net.stats().newly_created, 1, "stored once");
    b.delete(&all[0].0).await.unwrap();
    assert!(!a.has(&all[0].0).await.unwrap(), "gone for every node");
    a.close().await.unwrap();
    b.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_with_a_lower_limit_gets_smaller_packs() {
    let net = devnet().await;
    net.set_faults(vec![FaultRule::new(FaultAction::BodyLimit {
        bytes: 1 << 20,
    })
    .on([Request::Put])]);
    let repo = Repo::new(&net);
    let ds = repo.open().await;
    let all = blocks(64, 100_000);
    ds.commit(puts(&all)).await.unwrap();
    for (key, value) in &all {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    let refused = net.stats().by_status.get(&413).copied().unwrap_or(0);
    // The client uses the learnt limit: the next commit starts below it.
    let more: Vec<_> = (100..164)
        .map(|seed| (key_of(&noise(seed, 100_000)), noise(seed, 100_000)))
        .collect();
    ds.commit(puts(&more)).await.unwrap();
    assert_eq!(
        net.stats().by_status.get(&413).copied().unwrap_or(0),
        refused
    );
    let err = ds.put("/big", noise(1, 2 << 20)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::TooLarge, "{err}");
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_make_the_reader_ask_another_aggregator() {
    let net = devnet().await;
    let (_, second) = net
        .add_endpoint(Role::Aggregator, "127.0.0.1:0".parse().unwrap())
        .unwrap();
    let all = blocks(5, 5000);
    let both = Repo::new(&net)
        .with("aggregatorURL", format!("{},{second}", net.url()))
        .with("blobCacheBytes", -1);
    let ds = both.open().await;
    ds.commit(puts(&all)).await.unwrap();
    for action in [
        FaultAction::Corrupt { offset: 17 },
        FaultAction::WrongBlob { blob_id: None },
        FaultAction::Truncate { by: 1 },
        FaultAction::NotFound,
        FaultAction::BadGateway,
    ] {
        // The first aggregator alone is bad.
        net.set_faults(vec![FaultRule::new(action.clone())
            .on([Request::Range])
            .at(0)]);
        for (key, value) in &all {
            assert_eq!(
                ds.get(key).await.unwrap().as_ref(),
                Some(value),
                "{action:?}"
            );
        }
    }
    ds.close().await.unwrap();

    net.set_faults(vec![FaultRule::new(FaultAction::Corrupt { offset: 0 })]);
    let strict = both.with("maxRetries", 0);
    let ds = strict.open().await;
    let err = ds.get(&all[0].0).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(err.message().contains(&all[0].0), "{err}");
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_knows_no_ranges_is_asked_once() {
    let net = devnet().await;
    let repo = Repo::new(&net);
    let ds = repo.open().await;
    let all = blocks(20, 5000);
    ds.commit(puts(&all)).await.unwrap();
    net.set_faults(vec![FaultRule::new(FaultAction::IgnoreRange)]);
    for (key, value) in &all {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    assert_eq!(net.stats().gets, 1, "the whole blob was kept");
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_fails_leaves_nothing_dangling() {
    let net = devnet().await;
    let repo = Repo::new(&net).with("maxRetries", 1);
    let ds = repo.open().await;
    let all = blocks(3, 1000);
    for action in [
        FaultAction::Internal,
        FaultAction::BadGateway,
        FaultAction::MarkedInvalid,
        FaultAction::ErrorResult {
            message: "no coins".into(),
        },
    ] {
        net.set_faults(vec![FaultRule::new(action.clone()).on([Request::Put])]);
        let err = ds.commit(puts(&all)).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Walrus, "{action:?}: {err}");
        assert!(err.message().contains(&net.url()), "{err}");
        assert!(!ds.has(&all[0].0).await.unwrap());
    }
    net.clear_faults();
    ds.commit(puts(&all)).await.unwrap();
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_keeps_a_blob_alive_across_epochs() {
    let net = Devnet::start(Options {
        shards: 100,
        first_epoch: 10,
        ..Options::default()
    })
    .await
    .unwrap();
    let repo = Repo::new(&net)
        .with("epochs", 1)
        .with("blobCacheBytes", -1)
        .with("epochDurationSeconds", 2)
        .with("renewIntervalSeconds", 1);
    let ds = repo.open().await;
    let all = blocks(5, 1000);
    ds.commit(puts(&all)).await.unwrap();
    let renewed = || {
        testkit::eventually("the blob lives beyond the next epoch", || {
            net.blobs()[0].end_epoch > net.epoch() + 1
        })
    };
    // Six epochs: six lifetimes of the blob as first stored.
    for _ in 0..6 {
        renewed().await;
        net.advance_epoch(1);
    }
    renewed().await;
    for (key, value) in &all {
        assert_eq!(ds.get(key).await.unwrap().as_ref(), Some(value));
    }
    assert_eq!(net.blobs().len(), 1, "the same blob all the time");
    assert!(net.blobs()[0].end_epoch > 16, "{:?}", net.blobs());
    ds.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn quilt_members_of_a_go_node_are_read_by_patch_id() {
    let net = devnet().await;
    let repo = Repo::new(&net).on_postgres();
    let url = repo.spec["postgresURL"].as_str().unwrap().to_owned();
    // A table as the Go plugin makes it, with a quilt that it stored.
    let value = Bytes::from_static(b"a member of a quilt");
    let key = key_of(&value);
    let quilt = {
        let body = format!(
            "--xyz\r\nContent-Disposition: form-data; name=\"0\"; filename=\"0\"\r\n\r\n{}\r\n--xyz--\r\n",
            std::str::from_utf8(&value).unwrap()
        );
        let answer = reqwest::Client::builder()
            .tls_backend_preconfigured(testkit::no_tls())
            .build()
            .unwrap()
            .put(format!("{}/v1/quilts?epochs=5&permanent=true", net.url()))
            .header("content-type", "multipart/form-data; boundary=xyz")
            .body(body)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        serde_json::from_str::<serde_json::Value>(&answer)
            .unwrap_or_else(|e| panic!("{e}: {answer}"))
    };
    let blob = quilt["blobStoreResult"]["newlyCreated"]["blobObject"]["blobId"]
        .as_str()
        .unwrap()
        .to_owned();
    let patch = quilt["storedQuiltBlobs"][0]["quiltPatchId"]
        .as_str()
        .unwrap()
        .to_owned();
    tokio::task::spawn_blocking({
        let (key, size) = (key.clone(), value.len() as i64);
        move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls).unwrap();
            client
                .batch_execute(
                    "CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, \
                     object_id TEXT NOT NULL DEFAULT '', patch_id TEXT NOT NULL DEFAULT '', \
                     blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL, \
                     encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, \
                     deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, \
                     expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), \
                     updated_at TIMESTAMPTZ NOT NULL DEFAULT now())",
                )
                .unwrap();
            client
                .execute(
                    "INSERT INTO walrus_index (key, blob_id, patch_id, size) VALUES ($1, $2, $3, $4)",
                    &[&key, &blob, &patch, &size],
                )
                .unwrap();
        }
    })
    .await
    .unwrap();
    let ds = repo.open().await;
    assert_eq!(ds.get(&key).await.unwrap(), Some(value));
    ds.close().await.unwrap();
}

/// A gibibyte under one key is stored and read back; a value one byte longer is refused before any
/// byte is sent.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_value() {
    let net = Devnet::start(Options {
        cheap_ids: true,
        max_body: 2 << 30,
        ..Options::default()
    })
    .await
    .unwrap();
    let repo = Repo::new(&net);
    let ds = repo.open().await;
    let value = noise(5, (1 << 30) + 1);
    let err = ds.put("/k", value.clone()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::TooLarge);
    assert_eq!(net.stats().puts, 0);
    let value = value.slice(1..);
    ds.put("/k", value.clone()).await.unwrap();
    assert!(
        ds.get("/k").await.unwrap().unwrap() == value,
        "came back different"
    );
    ds.close().await.unwrap();
}

/// 64 blocks of 256 KiB, read in order through windows of up to 16 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_order_takes_few_requests_of_any_aggregator() {
    let net = devnet().await;
    let repo = Repo::new(&net);
    let all = blocks(64, 256 << 10);
    for (faults, gets) in [
        (vec![], 12),
        // Before 1.38: the aggregator sends the whole blob, and the client keeps it.
        (vec![FaultRule::new(FaultAction::IgnoreRange)], 2),
        (
            vec![FaultRule::new(FaultAction::Corrupt { offset: 1 << 19 })
                .on([Request::Range])
                .after(1)
                .times(1)],
            14,
        ),
    ] {
        let ds = repo.open().await;
        ds.commit(puts(&all)).await.unwrap();
        net.set_faults(faults.clone());
        let before = net.stats().gets;
        for (key, value) in &all {
            let got = ds
                .get(key)
                .await
                .unwrap_or_else(|e| panic!("{faults:?}: {e}"));
            assert_eq!(got.as_ref(), Some(value));
        }
        let asked = net.stats().gets - before;
        assert!(asked <= gets, "{asked} requests with {faults:?}");
        net.clear_faults();
        ds.close().await.unwrap();
    }
}
