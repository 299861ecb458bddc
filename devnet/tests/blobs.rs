//! Storing and reading blobs over HTTP.

use reqwest::{Client, StatusCode};
use serde_json::{json, Value};
use walrus_devnet::{Devnet, Options};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 3) as u8).collect()
}

async fn start() -> Devnet {
    Devnet::start(Options {
        shards: 100,
        ..Options::default()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn store_and_read_back() {
    let net = start().await;
    let client = Client::new();
    let data = pattern(4096);
    let response = client
        .put(format!("{}/v1/blobs?epochs=5", net.url()))
        .body(data.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    let stored: Value = response.json().await.unwrap();
    let id = "Yv34DLWnx4lb0q2bZ0gZQAIBzbUuG605ruJB-Lr40XM";
    let created = &stored["newlyCreated"];
    assert_eq!(created["blobObject"]["blobId"], id);
    assert_eq!(created["blobObject"]["certifiedEpoch"], Value::Null);
    assert_eq!(created["blobObject"]["deletable"], true);
    assert_eq!(created["blobObject"]["storage"]["endEpoch"], 6);
    let encoded = 100 * (64 * 100 + 32) + 100 * (34 + 67) * 2;
    assert_eq!(
        created["resourceOperation"],
        json!({"registerFromScratch": {"encodedLength": encoded, "epochsAhead": 5}})
    );
    assert_eq!(created["cost"], 520_000);

    let url = format!("{}/v1/blobs/{id}", net.url());
    let response = client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["etag"], id);
    assert_eq!(response.bytes().await.unwrap(), data);

    let response = client
        .get(&url)
        .header("range", "bytes=10-19")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(response.headers()["content-range"], "bytes 10-19/4096");
    assert_eq!(response.bytes().await.unwrap(), data[10..20]);
    net.shutdown().await;
}
