//! Billing, epochs, limits and tokens.

mod common;

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Instant;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::*;
use serde_json::{json, Value};
use walrus_devnet::{Jwt, Options};

#[test]
fn deletable_puts_are_billed_every_time() {
    let net = start();
    for _ in 0..2 {
        let json = put(&net.url(), "/v1/blobs", b"x").json();
        assert_eq!(json["newlyCreated"]["blobObject"]["deletable"], true);
    }
    // A permanent PUT finds deletable registrations only.
    let json = put(&net.url(), "/v1/blobs?permanent=true&epochs=3", b"x").json();
    assert_eq!(json["newlyCreated"]["blobObject"]["deletable"], false);
    // Now there is one that is long enough, or was put longer.
    for epochs in [3, 1] {
        let path = format!("/v1/blobs?permanent=true&epochs={epochs}");
        let mut json = put(&net.url(), &path, b"x").json();
        let certified = &mut json["alreadyCertified"];
        let digest = certified["event"]["txDigest"].take();
        assert!(digest.as_str().unwrap().len() >= 40);
        let id = certified["blobId"].take();
        assert_eq!(id.as_str().unwrap().len(), 43);
        let expected = json!({
            "blobId": null, "event": {"txDigest": null, "eventSeq": "0"}, "endEpoch": 4,
        });
        assert_eq!(*certified, expected);
    }
    // Too short, forced, or deletable again: paid in full.
    for query in [
        "permanent=true&epochs=4",
        "permanent=true&force=true",
        "epochs=1",
    ] {
        let json = put(&net.url(), &format!("/v1/blobs?{query}"), b"x").json();
        assert!(json["newlyCreated"].is_object(), "{query}");
    }
    let stats = net.stats();
    assert_eq!((stats.newly_created, stats.already_certified), (6, 2));
    assert_eq!(stats.billed_units, 6);
    assert_eq!(
        stats.cost_frost,
        100_000 * (1 + 1 + 3 + 4 + 1 + 1) + 6 * 20_000
    );
    let blobs = net.blobs();
    assert_eq!(blobs.len(), 1);
    assert_eq!((blobs[0].end_epoch, blobs[0].registrations.len()), (5, 6));
}

#[test]
fn a_single_wallet_reuses() {
    let net = start_with(Options {
        single_wallet: true,
        ..Options::default()
    });
    let path = |epochs| format!("/v1/blobs?permanent=true&reuse_resources=true&epochs={epochs}");
    let first = put(&net.url(), &path(1), b"x").json();
    let object = &first["newlyCreated"]["blobObject"]["id"];
    let again = put(&net.url(), &path(1), b"x").json();
    assert_eq!(again["alreadyCertified"]["object"], *object);
    assert_eq!(again["alreadyCertified"]["event"], Value::Null);
    let longer = put(&net.url(), &path(5), b"x").json();
    let longer = &longer["newlyCreated"];
    assert_eq!(longer["blobObject"]["id"], *object);
    assert_eq!(
        longer["resourceOperation"]["reuseAndExtend"]["epochsExtended"],
        4
    );
    assert_eq!(longer["cost"], 400_000);
}

#[test]
fn blobs_expire() {
    let net = start();
    let id = put(&net.url(), "/v1/blobs?epochs=2", b"x").blob_id();
    let path = format!("/v1/blobs/{id}");
    assert_eq!(net.advance_epoch(1), 2);
    assert_eq!(get(&net.url(), &path).status, 200);
    net.advance_epoch(1);
    assert_eq!(
        get(&net.url(), &path).reason(),
        (404, "BLOB_NOT_FOUND".into())
    );
    assert!(!net.blobs()[0].live);
    // The blob is there again after another store.
    let json = put(&net.url(), "/v1/blobs?epochs=2&permanent=true", b"x").json();
    assert_eq!(
        json["newlyCreated"]["blobObject"]["storage"]["startEpoch"],
        3
    );
    assert_eq!(json["newlyCreated"]["blobObject"]["storage"]["endEpoch"], 5);
    assert_eq!(get(&net.url(), &path).status, 200);
    net.set_epoch(5);
    assert_eq!(net.collect_expired(), 1);
    assert!(net.blobs().is_empty());
}

#[test]
fn the_clock_runs_by_itself() {
    let net = start_with(Options {
        epoch_duration: Some(Duration::from_millis(200)),
        first_epoch: 34,
        ..Options::default()
    });
    let first = net.epoch();
    let begun = Instant::now();
    while net.epoch() < first + 2 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the clock stands"
        );
        thread::sleep(Duration::from_millis(10));
    }
    let answer = get(&net.url(), "/admin/epoch").json();
    assert_eq!(answer["epoch_duration_seconds"], 0.2);
}

#[test]
fn bodies_over_the_limit() {
    let net = start_with(Options {
        max_body: 1000,
        max_quilt_body: 1000,
        ..Options::default()
    });
    assert_eq!(put(&net.url(), "/v1/blobs", &pattern(1000)).status, 200);
    for len in [1001, 4_000_000] {
        let answer = put(&net.url(), "/v1/blobs", &pattern(len));
        assert_eq!(answer.status, 413);
        let text = "Failed to buffer the request body: length limit exceeded";
        assert_eq!(answer.text(), text);
    }
    let mut stream = TcpStream::connect(net.address()).unwrap();
    let chunked = "PUT /v1/blobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                   transfer-encoding: chunked\r\n\r\n";
    stream.write_all(chunked.as_bytes()).unwrap();
    for _ in 0..3 {
        stream.write_all(b"190\r\n").unwrap();
        stream.write_all(&[7; 400]).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream, false).unwrap().status, 413);

    let (kind, body) = form(&[("a", &pattern(2000))]);
    let answer = send(
        &net.url(),
        "PUT",
        "/v1/quilts",
        &[("content-type", &kind)],
        &body,
    );
    assert_eq!(answer.reason(), (400, "MALFORMED_REQUEST".into()));
}

#[test]
fn load_is_shed() {
    let net = start_with(Options {
        publisher_concurrency: 1,
        publisher_buffer: 1,
        latency_put: Duration::from_millis(500),
        ..Options::default()
    });
    let url = net.url();
    let threads: Vec<_> = (0..4u8)
        .map(|i| {
            let url = url.clone();
            thread::spawn(move || put(&url, "/v1/blobs", &[i]))
        })
        .collect();
    let answers: Vec<Answer> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let shed: Vec<&Answer> = answers.iter().filter(|a| a.status == 429).collect();
    assert_eq!(shed.len(), 2);
    assert!(shed[0].text().contains("publisher"));
    assert_eq!(shed[0].header("retry-after"), None);
    assert_eq!(
        shed[0].header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    let stats = net.stats();
    assert_eq!((stats.by_status[&429], stats.in_flight), (2, 0));
    assert!(stats.peak_puts_in_flight >= 2);
}

#[test]
fn size_limit_and_blocklist() {
    let net = start_with(Options {
        max_blob_size: Some(100),
        ..Options::default()
    });
    let id = put(&net.url(), "/v1/blobs", &pattern(101)).blob_id();
    let path = format!("/v1/blobs/{id}");
    let answer = get(&net.url(), &path);
    assert_eq!(answer.reason(), (403, "BLOB_TOO_LARGE".into()));
    assert_eq!(answer.json()["error"]["status"], "SIZE_EXCEEDED");
    assert_eq!(
        get_with(&net.url(), &path, &[("range", "bytes=0-100")]).status,
        206
    );

    net.block_blob(id.parse().unwrap(), true);
    assert_eq!(
        get(&net.url(), &path).reason(),
        (451, "FORBIDDEN_BLOB".into())
    );
    let answer = put(&net.url(), "/v1/blobs", &pattern(101));
    assert_eq!(answer.reason(), (451, "FORBIDDEN_BLOB".into()));
    net.block_blob(id.parse().unwrap(), false);
    assert_eq!(put(&net.url(), "/v1/blobs", &pattern(101)).status, 200);
}

#[test]
fn too_large_for_the_shards() {
    let net = walrus_devnet::Devnet::start_blocking(Options {
        shards: 4,
        ..Options::default()
    })
    .unwrap();
    let answer = put(&net.url(), "/v1/blobs", &pattern(393_205));
    assert_eq!(answer.reason(), (500, "INTERNAL_ERROR".into()));
    assert_eq!(answer.json()["error"]["details"][1]["@type"], "DebugInfo");
    assert_eq!(put(&net.url(), "/v1/blobs", &pattern(393_204)).status, 200);
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn token(secret: &[u8], claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key);
    format!("Bearer {}", token.unwrap())
}

#[test]
fn tokens() {
    let net = start_with(Options {
        jwt: Some(Jwt {
            secret: Some(b"secret".to_vec()),
            expiring_sec: 300,
            verify_upload: true,
            ..Jwt::default()
        }),
        ..Options::default()
    });
    let with = |token: &str, path: &str, body: &[u8]| {
        send(&net.url(), "PUT", path, &[("authorization", token)], body)
    };
    let answer = put(&net.url(), "/v1/blobs", b"x");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.text(), "Header of type `authorization` was missing");
    let answer = with("Basic eDp5", "/v1/blobs", b"x");
    assert_eq!(
        (answer.status, answer.text()),
        (400, "invalid HTTP header (authorization)")
    );

    let good =
        |id: &str| json!({"exp": now() + 300, "iat": now(), "jti": id, "max_epochs": 2, "size": 1});
    let fresh = token(b"secret", &good("1"));
    assert_eq!(with(&fresh, "/v1/blobs?epochs=2", b"x").status, 200);
    let replay = with(&fresh, "/v1/blobs?epochs=2", b"x");
    assert_eq!(replay.reason(), (429, "TOKEN_ALREADY_USED".into()));
    let details = &replay.json()["error"]["details"];
    assert_eq!(details[0]["domain"], "auth.publisher.walrus.space");

    let forged = token(b"other", &good("2"));
    assert_eq!(
        with(&forged, "/v1/blobs", b"x").reason(),
        (401, "INVALID_SIGNATURE".into())
    );
    let mut expired = good("3");
    expired["exp"] = json!(now() - 100);
    expired["iat"] = json!(now() - 400);
    let answer = with(&token(b"secret", &expired), "/v1/blobs", b"x");
    assert_eq!(answer.reason(), (504, "EXPIRED_SIGNATURE".into()));
    let mut number = 10;
    let mut check = |change: (&str, Value), path: &str, body: &[u8], reason: &str| {
        number += 1;
        let mut claims = good(&number.to_string());
        claims[change.0] = change.1;
        let answer = with(&token(b"secret", &claims), path, body);
        assert_eq!(answer.reason(), (400, reason.to_owned()));
    };
    check(
        ("exp", json!(now() + 299)),
        "/v1/blobs",
        b"x",
        "INVALID_EXPIRATION",
    );
    check(
        ("epochs", json!(1)),
        "/v1/blobs",
        b"x",
        "INCONSISTENT_TOKEN",
    );
    check(("aud", json!("x")), "/v1/blobs", b"x", "INVALID_TOKEN");
    check(
        ("x", json!(1)),
        "/v1/blobs?epochs=3",
        b"x",
        "INVALID_EPOCHS",
    );
    check(("x", json!(1)), "/v1/blobs", b"xy", "INVALID_SIZE");
    let address = json!(format!("0x{:064x}", 1));
    check(
        ("send_object_to", address),
        "/v1/blobs",
        b"x",
        "INVALID_SEND_OBJECT_TO",
    );
    // No refused token was used up, and reading needs no token.
    let id = with(&token(b"secret", &good("11")), "/v1/blobs", b"x").blob_id();
    assert_eq!(get(&net.url(), &format!("/v1/blobs/{id}")).status, 200);
}

#[test]
fn an_unasked_token_is_looked_into() {
    let net = start();
    let with = |token: &str| {
        send(
            &net.url(),
            "PUT",
            "/v1/blobs",
            &[("authorization", token)],
            b"x",
        )
    };
    assert_eq!(with("Bearer x").reason(), (500, "INTERNAL_ERROR".into()));
    let claims = json!({"exp": now(), "jti": "1", "max_size": 1});
    assert_eq!(with(&token(b"any", &claims)).status, 200);
}
