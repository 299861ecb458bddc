//! Quilts over HTTP.

mod common;

use common::*;
use serde_json::json;

#[test]
fn store_and_read_patches() {
    let net = start();
    let metadata = br#"[{"identifier":"b/ c","tags":{"content-type":"image/png","n":1}}]"#;
    let (kind, body) = form(&[
        ("b/ c", b"second"),
        ("_metadata", metadata),
        ("a", &pattern(5000)),
    ]);
    let headers = [("content-type", kind.as_str())];
    let answer = send(
        &net.url(),
        "PUT",
        "/v1/quilts?epochs=2&permanent=true",
        &headers,
        &body,
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    let quilt = json["blobStoreResult"]["newlyCreated"]["blobObject"]["blobId"]
        .as_str()
        .unwrap();
    let stored = json["storedQuiltBlobs"].as_array().unwrap();
    assert_eq!(stored.len(), 2);
    assert_eq!(
        (&stored[0]["identifier"], &stored[0]["range"][0]),
        (&json!("a"), &json!(1))
    );
    let patch_id = stored[1]["quiltPatchId"].as_str().unwrap();
    assert_eq!(patch_id.len(), 50);

    for path in [
        format!("/v1/blobs/by-quilt-patch-id/{patch_id}"),
        format!("/v1/blobs/by-quilt-id/{quilt}/b%2F%20c?ignored=1"),
    ] {
        let answer = get_with(&net.url(), &path, &[("range", "bytes=0-1")]);
        assert_eq!((answer.status, answer.text()), (200, "second"), "{path}");
        assert_eq!(answer.header("etag"), Some(quilt));
        assert_eq!(answer.header("x-quilt-patch-identifier"), Some("b/ c"));
        assert_eq!(answer.header("content-type"), Some("image/png"));
        assert_eq!(answer.header("n"), None);
    }
    let path = format!("/v1/blobs/by-quilt-id/{quilt}/a");
    assert_eq!(get(&net.url(), &path).body, pattern(5000));
    let list = get(&net.url(), &format!("/v1/quilts/{quilt}/patches")).json();
    assert_eq!(list[1]["identifier"], "b/ c");
    assert_eq!(list[1]["patch_id"], patch_id);
    assert_eq!(
        list[1]["tags"],
        json!({"content-type": "image/png", "n": "1"})
    );
    assert_eq!(list[0]["tags"], json!({}));

    // The same quilt, put as a plain blob elsewhere, is the same quilt.
    let bytes = get(&net.url(), &format!("/v1/blobs/{quilt}")).body;
    net.reset();
    assert_eq!(put(&net.url(), "/v1/blobs", &bytes).blob_id(), quilt);
    assert_eq!(get(&net.url(), &path).body, pattern(5000));
}

#[test]
fn what_goes_wrong() {
    let net = start();
    let upload = |parts: &[(&str, &[u8])]| {
        let (kind, body) = form(parts);
        send(
            &net.url(),
            "PUT",
            "/v1/quilts",
            &[("content-type", &kind)],
            &body,
        )
    };
    let stray = br#"[{"identifier":"b","tags":{}}]"#;
    let wrong: [&[(&str, &[u8])]; 5] = [
        &[],
        &[("a", b"1"), ("a", b"2")],
        &[("a ", b"1")],
        &[("a", b"1"), ("_metadata", b"nonsense")],
        &[("a", b"1"), ("_metadata", stray)],
    ];
    for parts in wrong {
        let reason = upload(parts).reason();
        assert_eq!(reason, (400, "MALFORMED_REQUEST".into()), "{parts:?}");
    }
    let answer = put(&net.url(), "/v1/quilts", b"x");
    assert_eq!(answer.status, 400);
    assert!(answer
        .text()
        .starts_with("Invalid `boundary` for `multipart/form-data` request"));

    let quilt = upload(&[("a", b"1")]).json();
    let quilt = &quilt["blobStoreResult"]["newlyCreated"]["blobObject"]["blobId"];
    let path = format!("/v1/blobs/by-quilt-id/{}/b", quilt.as_str().unwrap());
    assert_eq!(
        get(&net.url(), &path).reason(),
        (404, "QUILT_PATCH_NOT_FOUND".into())
    );
    let plain = put(&net.url(), "/v1/blobs", b"plain").blob_id();
    let path = format!("/v1/quilts/{plain}/patches");
    assert_eq!(get(&net.url(), &path).status, 500);
    let missing = format!("/v1/blobs/by-quilt-id/{}/a", walrus_devnet::BlobId([0; 32]));
    assert_eq!(
        get(&net.url(), &missing).reason(),
        (404, "BLOB_NOT_FOUND".into())
    );
    let answer = get(&net.url(), "/v1/blobs/by-quilt-patch-id/nonsense");
    assert_eq!(answer.status, 400);
    assert!(answer
        .text()
        .starts_with("Invalid URL: Cannot parse `quilt_patch_id`"));
}
