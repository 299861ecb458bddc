//! Blobs: storing, reading, ranges, headers, queries, errors.

mod common;

use common::*;
use serde_json::{json, Value};
use walrus_devnet::{Options, Role};

const ID_4096: &str = "Yv34DLWnx4lb0q2bZ0gZQAIBzbUuG605ruJB-Lr40XM";

#[test]
fn store_and_read_back() {
    let net = start();
    let data = pattern(4096);
    let answer = put(&net.url(), "/v1/blobs?epochs=5", &data);
    assert_eq!(answer.status, 200);
    let encoded = 100 * (64 * 100 + 32) + 100 * (34 + 67) * 2;
    let mut json = answer.json();
    let object = json["newlyCreated"]["blobObject"]["id"].take();
    let storage = json["newlyCreated"]["blobObject"]["storage"]["id"].take();
    for id in [&object, &storage] {
        let id = id.as_str().unwrap();
        assert!(id.starts_with("0x") && id.len() == 66, "{id}");
    }
    assert_eq!(
        json,
        json!({"newlyCreated": {
            "blobObject": {
                "id": null, "registeredEpoch": 1, "blobId": ID_4096, "size": 4096,
                "encodingType": "RS2", "certifiedEpoch": null,
                "storage": {"id": null, "startEpoch": 1, "endEpoch": 6, "storageSize": encoded},
                "deletable": true,
            },
            "resourceOperation": {
                "registerFromScratch": {"encodedLength": encoded, "epochsAhead": 5},
            },
            "cost": 520_000,
        }})
    );

    let answer = get(&net.url(), &format!("/v1/blobs/{ID_4096}"));
    assert_eq!((answer.status, &answer.body), (200, &data));
    assert_eq!(answer.header("etag"), Some(ID_4096));
    assert_eq!(answer.header("content-length"), Some("4096"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        answer.header("cache-control"),
        Some("public, max-age=86400, stale-while-revalidate=3600")
    );
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        answer.header("vary"),
        Some("origin, access-control-request-method, access-control-request-headers")
    );
    for absent in [
        "content-type",
        "accept-ranges",
        "last-modified",
        "content-range",
    ] {
        assert_eq!(answer.header(absent), None, "{absent}");
    }

    let by_object = format!("/v1/blobs/by-object-id/{}", object.as_str().unwrap());
    assert_eq!(get(&net.url(), &by_object).body, data);
    let other = format!("/v1/blobs/by-object-id/{}", storage.as_str().unwrap());
    assert_eq!(
        get(&net.url(), &other).reason(),
        (500, "INTERNAL_ERROR".into())
    );
    let unknown = get(&net.url(), "/v1/blobs/by-object-id/0x1234");
    assert_eq!(unknown.reason(), (404, "BLOB_NOT_FOUND".into()));
}

#[test]
fn content_type_is_mirrored() {
    let net = start();
    let id = put(&net.url(), "/v1/blobs", b"x").blob_id();
    let path = format!("/v1/blobs/{id}");
    for (headers, expected) in [
        (vec![("accept", "image/png")], Some("image/png")),
        (vec![("accept", "*/*")], None),
        (
            vec![("accept", "image/*"), ("content-type", "a/b")],
            Some("a/b"),
        ),
        (vec![("content-type", "a/b")], Some("a/b")),
    ] {
        let answer = get_with(&net.url(), &path, &headers);
        assert_eq!(answer.header("content-type"), expected, "{headers:?}");
    }
}

#[test]
fn the_empty_blob() {
    let net = start();
    let id = put(&net.url(), "/v1/blobs", b"").blob_id();
    let answer = get(&net.url(), &format!("/v1/blobs/{id}"));
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let range = get_with(
        &net.url(),
        &format!("/v1/blobs/{id}"),
        &[("range", "bytes=0-0")],
    );
    assert_eq!(range.reason(), (416, "INVALID_BYTE_RANGE".into()));
}

#[test]
fn ranges_are_exact() {
    let net = start();
    let data = pattern(1000);
    let id = put(&net.url(), "/v1/blobs", &data).blob_id();
    let path = format!("/v1/blobs/{id}");
    for (range, content_range, expected) in [
        ("bytes=0-0", "bytes 0-0/1000", 0..1),
        ("bytes=10-19", "bytes 10-19/1000", 10..20),
        ("bytes=0-999", "bytes 0-999/1000", 0..1000),
        ("bytes=999-999", "bytes 999-999/1000", 999..1000),
    ] {
        let answer = get_with(&net.url(), &path, &[("range", range)]);
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.header("content-range"), Some(content_range));
        assert_eq!(answer.header("etag"), Some(id.as_str()));
        assert_eq!(answer.body, data[expected]);
    }
    for range in [
        "bytes=0-",
        "bytes=-5",
        "bytes=5-4",
        "bytes=0-1,5-6",
        "items=0-1",
        "bytes= 0-1",
        "bytes=0-1000",
        "bytes=1000-1000",
        "bytes=0-18446744073709551615",
        "x",
    ] {
        let answer = get_with(&net.url(), &path, &[("range", range)]);
        assert_eq!(
            answer.reason(),
            (416, "INVALID_BYTE_RANGE".into()),
            "{range}"
        );
        assert_eq!(answer.header("content-range"), None);
        assert_eq!(answer.json()["error"]["status"], "RANGE_NOT_SATISFIABLE");
    }
    let conditional = [("if-none-match", id.as_str()), ("if-range", "x")];
    assert_eq!(get_with(&net.url(), &path, &conditional).status, 200);
}

#[test]
fn byte_range_answers_200() {
    let net = start();
    let data = pattern(1000);
    let id = put(&net.url(), "/v1/blobs", &data).blob_id();
    let path = |query: &str| format!("/v1/blobs/{id}/byte-range{query}");
    let answer = get(&net.url(), &path("?start=10&length=990"));
    assert_eq!((answer.status, &answer.body[..]), (200, &data[10..]));
    assert_eq!(answer.header("etag"), Some(format!("{id}-10-990").as_str()));
    assert_eq!(answer.header("content-range"), None);
    for wrong in [
        "?start=0&length=0",
        "?start=10&length=991",
        "?start=18446744073709551615&length=1",
    ] {
        let reason = get(&net.url(), &path(wrong)).reason();
        assert_eq!(reason, (400, "INVALID_BYTE_RANGE".into()), "{wrong}");
    }
    for wrong in [
        "",
        "?start=0",
        "?length=5",
        "?start=0&length=5&x=1",
        "?start=-1&length=5",
    ] {
        let answer = get(&net.url(), &path(wrong));
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(
            answer
                .text()
                .starts_with("Failed to deserialize query string"),
            "{wrong}"
        );
    }
}

#[test]
fn head_is_get_without_a_body() {
    let net = start();
    let id = put(&net.url(), "/v1/blobs", &pattern(1000)).blob_id();
    let head = |headers: &[(&str, &str)]| {
        let path = format!("/v1/blobs/{id}");
        common::try_send(&net.url(), "HEAD", &path, headers, None).unwrap()
    };
    let answer = head(&[]);
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-length"), Some("1000"));
    assert_eq!(answer.header("etag"), Some(id.as_str()));
    let answer = head(&[("range", "bytes=0-9")]);
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (206, Some("10"))
    );
    assert_eq!(net.stats().heads, 2);
}

#[test]
fn queries_are_strict() {
    let net = start();
    let id = put(&net.url(), "/v1/blobs", b"x").blob_id();
    for (query, status) in [
        ("", 200),
        ("?skip_consistency_check=false", 200),
        ("?strict_consistency_check=true", 200),
        ("?skip_consistency_check=1", 400),
        ("?skip_consistency_check=True", 400),
        ("?skip_consistency_check=", 400),
        ("?cb=17", 400),
    ] {
        let answer = get(&net.url(), &format!("/v1/blobs/{id}{query}"));
        assert_eq!(answer.status, status, "{query}");
        if status == 400 {
            assert!(answer
                .text()
                .starts_with("Failed to deserialize query string: "));
            assert_eq!(
                answer.header("content-type"),
                Some("text/plain; charset=utf-8")
            );
        }
    }
    let both = "?skip_consistency_check=true&strict_consistency_check=true";
    let answer = get(&net.url(), &format!("/v1/blobs/{id}{both}"));
    assert_eq!(answer.reason(), (400, "INVALID_CONSISTENCY_CHECK".into()));

    for (query, status) in [
        ("epochs=1&permanent=true&force=false&reuse_resources=true", 200),
        ("encoding_type=RS2", 200), ("encoding_type=RedStuffRaptorQ", 400),
        ("deletable=true", 200), ("deletable=true&permanent=true", 400),
        ("epochs=max", 400), ("epochs=-1", 400), ("epochs=", 400), ("epochs=4294967296", 400),
        ("permanent=1", 400), ("nonsense=1", 400), ("quilt_version=v9", 200),
        ("share=true", 200), ("share=maybe", 200), ("send_object_to=nonsense", 200),
        ("share=true&send_object_to=0x1111111111111111111111111111111111111111111111111111111111111111", 400),
        ("epochs=0", 500), ("epochs=53", 200), ("epochs=54", 500),
    ] {
        let answer = put(&net.url(), &format!("/v1/blobs?{query}"), b"y");
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
    }
    let answer = put(&net.url(), "/v1/blobs?share=true", b"y");
    assert!(answer.json()["newlyCreated"]["sharedBlobObject"].is_string());
    let answer = put(&net.url(), "/v1/blobs?share=nonsense", b"y");
    assert_eq!(
        answer.json()["newlyCreated"]["sharedBlobObject"],
        Value::Null
    );
    let answer = put(&net.url(), "/v1/blobs?deletable=true&permanent=true", b"y");
    assert_eq!(answer.reason(), (400, "INVALID_BLOB_PERSISTENCE".into()));
}

#[test]
fn errors_of_the_framework() {
    let net = start();
    let answer = get(&net.url(), "/v1/blobs/nonsense");
    assert_eq!(answer.status, 400);
    let text = answer.text();
    assert!(
        text.starts_with("Invalid URL: Cannot parse `blob_id` with value"),
        "{text}"
    );
    for path in ["/", "/health", "/v1/store", "/v1/blobs/a/b/c"] {
        let answer = get(&net.url(), path);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    let answer = send(
        &net.url(),
        "DELETE",
        &format!("/v1/blobs/{ID_4096}"),
        &[],
        b"",
    );
    assert_eq!((answer.status, answer.body.len()), (405, 0));
    assert_eq!(answer.header("allow"), Some("GET,HEAD"));
    let answer = get(&net.url(), "/v1/blobs");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("PUT")));
    let missing = get(&net.url(), &format!("/v1/blobs/{ID_4096}"));
    assert_eq!(missing.reason(), (404, "BLOB_NOT_FOUND".into()));
    let details = &missing.json()["error"]["details"];
    assert_eq!(details[0]["domain"], "daemon.walrus.space");
    let answer = get(&net.url(), "/status");
    assert_eq!((answer.status, answer.text()), (200, "OK"));
    for path in ["/v1/blobs", "/nowhere"] {
        let answer = send(&net.url(), "OPTIONS", path, &[], b"");
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.header("access-control-allow-methods"), Some("*"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("*"));
        assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    }
}

#[test]
fn roles_serve_their_part() {
    let net = start_with(Options {
        role: Role::Publisher,
        ..Options::default()
    });
    let free = "127.0.0.1:0".parse().unwrap();
    let (number, aggregator) = net.add_endpoint(Role::Aggregator, free).unwrap();
    assert_eq!(number, 1);
    let id = put(&net.url(), "/v1/blobs", b"x").blob_id();
    let path = format!("/v1/blobs/{id}");
    assert_eq!(get(&net.url(), &path).status, 404);
    assert_eq!(put(&aggregator, "/v1/blobs", b"x").status, 404);
    assert_eq!(get(&aggregator, &path).body, b"x");
    let stream = get(
        &aggregator,
        &format!("/v1alpha/blobs/{id}/stream?ignored=1"),
    );
    assert_eq!((stream.status, stream.body.as_slice()), (200, &b"x"[..]));
    assert_eq!(stream.header("x-walrus-streaming"), Some("true"));
    let (_, daemon) = net.add_endpoint(Role::Daemon, free).unwrap();
    let stream = get(&daemon, &format!("/v1alpha/blobs/{id}/stream"));
    assert_eq!(stream.reason(), (500, "SLIVER_RETRIEVAL_FAILED".into()));
    net.stop_endpoint(number);
    assert!(common::try_send(&aggregator, "GET", &path, &[], None).is_err());
    assert_eq!(get(&daemon, &path).body, b"x");
}

#[test]
fn concatenation() {
    let net = start();
    let answer = put(&net.url(), "/v1/blobs", b"first ");
    let first = answer.blob_id();
    let object = answer.json()["newlyCreated"]["blobObject"]["id"].clone();
    let second = put(&net.url(), "/v1/blobs", b"second").blob_id();
    let path = format!("/v1alpha/blobs/concat?ids={first},{second}");
    let answer = get(&net.url(), &path);
    assert_eq!(
        (answer.status, answer.text(), answer.complete),
        (200, "first second", true)
    );
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.header("etag").map(str::len), Some(43));
    let answer = get(&net.url(), &format!("{path}&skip_consistency_check=true"));
    assert_eq!(answer.status, 400);

    let post = |kind: &str, body: &Value| {
        let body = body.to_string();
        let headers = [("content-type", kind)];
        send(
            &net.url(),
            "POST",
            "/v1alpha/blobs/concat",
            &headers,
            body.as_bytes(),
        )
    };
    let answer = post(
        "application/json",
        &json!({"ids": [object, second], "skip_consistency_check": true}),
    );
    assert_eq!((answer.status, answer.text()), (200, "first second"));
    assert_eq!(post("text/plain", &json!({"ids": [second]})).status, 415);
    assert_eq!(post("application/json", &json!({"ids": []})).status, 400);
    let answer = get(
        &net.url(),
        &format!("/v1alpha/blobs/concat?ids={first},nonsense"),
    );
    assert_eq!(answer.reason(), (400, "INVALID_ID_FORMAT".into()));
    let answer = get(
        &net.url(),
        &format!("/v1alpha/blobs/concat?ids={first},0x12"),
    );
    assert_eq!(answer.reason(), (404, "OBJECT_ID_RESOLUTION_FAILED".into()));
    let answer = get(
        &net.url(),
        &format!("/v1alpha/blobs/concat?ids={first},{ID_4096}"),
    );
    assert_eq!(
        (answer.status, answer.text(), answer.complete),
        (200, "first ", false)
    );
}

#[test]
fn attributes_become_headers() {
    let net = start();
    let json = put(&net.url(), "/v1/blobs", b"x").json();
    let object = json["newlyCreated"]["blobObject"]["id"].as_str().unwrap();
    let attributes = json!({"content-type": "image/png", "secret": "x"}).to_string();
    let path = format!("/admin/objects/{object}/attributes");
    let headers = [("content-type", "application/json")];
    assert_eq!(
        send(&net.url(), "PUT", &path, &headers, attributes.as_bytes()).status,
        200
    );
    let path = format!("/v1/blobs/by-object-id/{object}");
    let answer = get_with(&net.url(), &path, &[("range", "bytes=0-0")]);
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("content-type"), Some("image/png"));
    assert_eq!(answer.header("secret"), None);
}
