//! The crate `walrus_rs` against the local Walrus: scripts/foreign-test.sh starts both.
//!
//! `PUBLISHER` and `AGGREGATOR` are base URLs of one network. Nothing here knows the local Walrus
//! but for the /admin requests, which bring about what the real network cannot do on demand.
#![cfg(test)]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use serde_json::{json, Value};
use walrus_rs::models::{BlobObject, BlobStoreResult, QuiltMetadata};
use walrus_rs::{BlockingWalrusClient, WalrusClient, WalrusError};

const NEVER_STORED: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn url(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/foreign-test.sh"))
}

/// The network, emptied, and for one test at a time.
struct Network {
    client: WalrusClient,
    _alone: MutexGuard<'static, ()>,
}

impl Network {
    async fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let client = WalrusClient::new(&url("AGGREGATOR"), &url("PUBLISHER")).unwrap();
        let network = Network { client, _alone };
        network.admin("reset", json!(null)).await;
        network
    }

    async fn admin(&self, path: &str, body: Value) {
        let url = format!("{}/admin/{path}", url("PUBLISHER"));
        let request = self.client.http_client().post(url).json(&body);
        request.send().await.unwrap().error_for_status().unwrap();
    }

    async fn fault(&self, op: &str, action: Value) {
        self.admin(
            "faults",
            json!({"rules": [{"match": {"op": [op]}, "action": action}]}),
        )
        .await;
    }

    async fn permanent(&self, data: &'static [u8], epochs: u64) -> BlobStoreResult {
        let stored = self
            .client
            .store_blob(data, Some(epochs), None, Some(true), None);
        stored.await.unwrap()
    }
}

fn created(result: BlobStoreResult) -> BlobObject {
    assert!(result.already_certified.is_none());
    result.newly_created.expect("newlyCreated").blob_object
}

/// The status of an error, the only detail that this client keeps.
#[track_caller]
fn status<T: std::fmt::Debug>(result: Result<T, WalrusError>) -> u16 {
    match result.unwrap_err() {
        WalrusError::HttpRequest(e) => e.status().unwrap_or_else(|| panic!("{e}")).as_u16(),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn parse_error<T: std::fmt::Debug>(result: Result<T, WalrusError>) -> String {
    match result.unwrap_err() {
        WalrusError::ParseError(e) => e,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_stored_comes_back() {
    let net = Network::new().await;
    for size in [0, 1, 100_000, 10 << 20] {
        let data: Vec<u8> = (0..size).map(|i| (i * 7 + 3) as u8).collect();
        let stored = net
            .client
            .store_blob(data.clone(), None, None, None, None)
            .await;
        let blob = created(stored.unwrap());
        assert_eq!(blob.size, size as u64);
        assert_eq!(blob.encoding_type, "RS2");
        assert!(blob.deletable, "the default since 1.33");
        assert_eq!(blob.storage.end_epoch, blob.registered_epoch + 1);
        assert_eq!(blob.certified_epoch, None);
        assert!(net.client.read_blob_by_id(&blob.blob_id).await.unwrap() == data);
        assert!(net.client.read_blob_by_object_id(&blob.id).await.unwrap() == data);
    }
}

#[tokio::test]
async fn permanent_blobs_are_certified_once() {
    let net = Network::new().await;
    let first = net.permanent(b"permanent", 5).await.newly_created.unwrap();
    assert!(!first.blob_object.deletable);
    assert!(first.cost > 0);
    let operation = first.resource_operation.register_from_scratch.unwrap();
    assert_eq!(operation.epochs_ahead, 5);
    assert_eq!(
        operation.encoded_length,
        first.blob_object.storage.storage_size
    );

    let again = net.permanent(b"permanent", 3).await;
    assert!(again.newly_created.is_none());
    let again = again.already_certified.unwrap();
    assert_eq!(again.blob_id, first.blob_object.blob_id);
    assert_eq!(again.end_epoch, first.blob_object.storage.end_epoch);
    assert_eq!(again.event.event_seq.parse::<u64>().ok(), Some(0));
    assert!(
        matches!(again.event.tx_digest.len(), 43 | 44),
        "{}",
        again.event.tx_digest
    );

    // Too short by now: a second registration.
    let longer = created(net.permanent(b"permanent", 9).await);
    assert_ne!(longer.id, first.blob_object.id);
    // Deletable blobs are paid each time.
    for _ in 0..2 {
        let stored = net
            .client
            .store_blob(&b"permanent"[..], None, Some(true), None, None);
        assert!(created(stored.await.unwrap()).deletable);
    }
    let both = net
        .client
        .store_blob(&b"x"[..], None, Some(true), Some(true), None);
    assert_eq!(status(both.await), 400);
    net.admin("epoch/advance?by=9", json!(null)).await;
    assert_eq!(
        status(net.client.read_blob_by_id(&longer.blob_id).await),
        404
    );
}

#[tokio::test]
async fn quilts() {
    let net = Network::new().await;
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("walrus.txt", b"tusks".to_vec()),
        ("a-name_with.more(marks)!", vec![7; 100_000]),
        ("empty", vec![]),
    ];
    let tags = HashMap::from([("kind".to_owned(), "animal".to_owned())]);
    let metadata = vec![QuiltMetadata {
        identifier: "walrus.txt".into(),
        tags,
    }];
    let stored = net
        .client
        .store_quilt(
            files.clone(),
            Some(metadata),
            Some(2),
            None,
            Some(true),
            None,
        )
        .await
        .unwrap();
    let blob = created(stored.blob_store_result);
    assert!(!blob.deletable);
    assert_eq!(stored.stored_quilt_blobs.len(), files.len());
    assert!(stored
        .stored_quilt_blobs
        .is_sorted_by_key(|b| b.identifier.clone()));
    for (name, data) in &files {
        let patch = stored
            .stored_quilt_blobs
            .iter()
            .find(|b| b.identifier == *name)
            .unwrap();
        let by_patch = net
            .client
            .read_quilt_blob_by_patch_id(&patch.quilt_patch_id)
            .await;
        assert!(by_patch.unwrap() == *data, "{name}");
        let by_name = net
            .client
            .read_quilt_blob_by_quilt_id_and_identifier(&blob.blob_id, name);
        assert!(by_name.await.unwrap() == *data, "{name}");
    }
    let missing = net
        .client
        .read_quilt_blob_by_quilt_id_and_identifier(&blob.blob_id, "nobody");
    assert_eq!(status(missing.await), 404);
    let missing = net
        .client
        .read_quilt_blob_by_quilt_id_and_identifier(NEVER_STORED, "empty");
    assert_eq!(status(missing.await), 404);
    assert_eq!(
        status(net.client.read_quilt_blob_by_patch_id("no patch").await),
        400
    );

    // A quilt is a blob; a blob that is none is not read as one.
    assert_eq!(
        net.client
            .read_blob_by_id(&blob.blob_id)
            .await
            .unwrap()
            .len() as u64,
        blob.size
    );
    let plain = created(net.permanent(b"no quilt", 1).await);
    let read = net
        .client
        .read_quilt_blob_by_quilt_id_and_identifier(&plain.blob_id, "empty");
    assert_eq!(status(read.await), 500);

    let none = net.client.store_quilt(vec![], None, None, None, None, None);
    assert_eq!(status(none.await), 400);
    let twice = vec![("same", vec![1]), ("same", vec![2])];
    assert_eq!(
        status(
            net.client
                .store_quilt(twice, None, None, None, None, None)
                .await
        ),
        400
    );
}

#[tokio::test]
async fn errors_are_told() {
    let net = Network::new().await;
    assert_eq!(status(net.client.read_blob_by_id(NEVER_STORED).await), 404);
    assert_eq!(status(net.client.read_blob_by_id("short").await), 400);
    let object = format!("0x{}", "cd".repeat(32));
    assert_eq!(
        status(net.client.read_blob_by_object_id(&object).await),
        404
    );
    assert_eq!(
        status(net.client.get_blob_metadata(NEVER_STORED).await),
        404
    );
    let large = net
        .client
        .store_blob(vec![0; (10 << 20) + 1], None, None, None, None);
    assert_eq!(status(large.await), 413);
    net.fault("put", json!({"type": "overloaded"})).await;
    let refused = net.client.store_blob(&b"x"[..], None, None, None, None);
    assert_eq!(status(refused.await), 429);
}

#[tokio::test]
async fn a_failure_in_a_200_is_neither_variant() {
    let net = Network::new().await;
    net.fault("put", json!({"type": "error_result", "message": "no luck"}))
        .await;
    let result = net
        .client
        .store_blob(&b"x"[..], None, None, None, None)
        .await
        .unwrap();
    assert!(result.newly_created.is_none() && result.already_certified.is_none());
}

#[tokio::test]
async fn what_the_client_gets_wrong() {
    let net = Network::new().await;
    // It asks for a content type in the answer to HEAD; an aggregator has none to give.
    let blob = created(net.permanent(b"headers", 1).await);
    let error = parse_error(net.client.get_blob_metadata(&blob.blob_id).await);
    assert_eq!(error, "Missing header: content-type");
    // It writes other than plain names as `name*=`, which RFC 7578 forbids, and which the
    // publisher's form parser does not know: such a part has no name.
    for name in ["a space", "\u{fc}mlaut"] {
        let files = vec![(name, vec![1])];
        let stored = net.client.store_quilt(files, None, None, None, None, None);
        assert_eq!(status(stored.await), 400, "{name}");
    }
}

#[test]
fn the_blocking_client() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _net = runtime.block_on(Network::new());
    let client = BlockingWalrusClient::new(&url("AGGREGATOR"), &url("PUBLISHER")).unwrap();
    let stored = client
        .store_blob("blocking", Some(1), None, Some(true), None)
        .unwrap();
    let blob = created(stored);
    assert_eq!(client.read_blob_by_id(&blob.blob_id).unwrap(), b"blocking");
    assert_eq!(
        client.read_blob_by_object_id(&blob.id).unwrap(),
        b"blocking"
    );
    assert_eq!(status(client.read_blob_by_id(NEVER_STORED)), 404);
}
