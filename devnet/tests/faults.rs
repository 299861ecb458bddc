//! Faults, each as a client sees it.

mod common;

use std::time::{Duration, Instant};

use common::*;
use serde_json::{json, Value};
use walrus_devnet::{BlockingDevnet, FaultAction, FaultRule, Loss, Op};

fn blob(net: &BlockingDevnet, data: &[u8]) -> String {
    format!("/v1/blobs/{}", put(&net.url(), "/v1/blobs", data).blob_id())
}

fn once(action: FaultAction) -> FaultRule {
    FaultRule::new(action).times(1)
}

#[test]
fn answers_instead() {
    let net = start();
    let path = blob(&net, b"x");
    let url = net.url();
    net.set_faults(once(FaultAction::Status {
        status: 429,
        body: "slow down".into(),
        content_type: Some("text/html".into()),
        retry_after: Some(7),
    }));
    let answer = put(&url, "/v1/blobs", &pattern(3_000_000));
    assert_eq!((answer.status, answer.text()), (429, "slow down"));
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(get(&url, &path).status, 200, "it was for one request only");

    for (action, expected) in [
        (FaultAction::Internal, (500, "INTERNAL_ERROR")),
        (FaultAction::Unavailable, (503, "BLOB_UNAVAILABLE")),
        (FaultAction::NotFound, (404, "BLOB_NOT_FOUND")),
        (
            FaultAction::Unconfirmed,
            (504, "INSUFFICIENT_CONFIRMATIONS"),
        ),
    ] {
        net.set_faults(once(action));
        let (status, reason) = get(&url, &path).reason();
        assert_eq!((status, reason.as_str()), expected);
    }
    net.set_faults(once(FaultAction::Overloaded { retry_after: None }));
    let answer = put(&url, "/v1/blobs", b"x");
    assert_eq!((answer.status, answer.header("retry-after")), (429, None));
    net.set_faults(once(FaultAction::BadGateway));
    let answer = get(&url, &path);
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (502, Some("text/html"))
    );
    assert!(answer.text().starts_with("<html>"));

    net.set_faults(
        once(FaultAction::ErrorResult {
            message: "no".into(),
        })
        .on(Op::WRITES),
    );
    let answer = put(&url, "/v1/blobs", b"y");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["error"]["errorMsg"], "no");
    net.set_faults(once(FaultAction::MarkedInvalid));
    assert_eq!(put(&url, "/v1/blobs", b"y").status, 500);
    net.set_faults(once(FaultAction::MarkedInvalid));
    let (kind, body) = form(&[("a", b"1")]);
    let answer = send(&url, "PUT", "/v1/quilts", &[("content-type", &kind)], &body);
    assert!(answer.json()["blobStoreResult"]["markedInvalid"].is_object());
    assert_eq!(answer.json()["storedQuiltBlobs"], json!([]));
    assert_eq!(net.blobs().len(), 1, "nothing of all this was stored");
}

#[test]
fn spoilt_bodies() {
    let net = start();
    let data = pattern(100_000);
    let path = blob(&net, &data);
    let url = net.url();
    let spoilt = |action: FaultAction| {
        net.set_faults(action_rule(action));
        get(&url, &path)
    };
    for reset in [false, true] {
        let answer = spoilt(FaultAction::CutBody { after: 5000, reset });
        assert_eq!((answer.status, answer.complete), (200, false));
        assert_eq!(answer.header("content-length"), Some("100000"));
        assert!(answer.body.len() <= 5000);
        if !reset {
            assert_eq!(answer.body, data[..5000]);
        }
    }
    let answer = spoilt(FaultAction::Truncate { by: 1 });
    assert_eq!(
        (answer.complete, answer.body),
        (true, data[..99_999].to_vec())
    );
    let answer = spoilt(FaultAction::Corrupt { offset: 7 });
    assert_eq!(answer.body.len(), data.len());
    let wrong: Vec<usize> = (0..data.len())
        .filter(|i| answer.body[*i] != data[*i])
        .collect();
    assert_eq!(wrong, [7]);
    let answer = spoilt(FaultAction::Oversized { by: 10 });
    assert_eq!((answer.complete, answer.body.len()), (true, 100_010));
    let answer = spoilt(FaultAction::WrongBlob { blob_id: None });
    assert_eq!(answer.body.len(), data.len());
    assert_ne!(answer.body, data);
    net.set_faults(action_rule(FaultAction::Corrupt { offset: 0 }).on([Op::Range]));
    let answer = get_with(&url, &path, &[("range", "bytes=3-4")]);
    assert_eq!(
        (answer.status, answer.body),
        (206, vec![data[3] ^ 1, data[4]])
    );
    assert_eq!(get(&url, &path).body, data);
}

fn action_rule(action: FaultAction) -> FaultRule {
    FaultRule::new(action)
}

#[test]
fn lost_answers_and_broken_connections() {
    let net = start();
    let url = net.url();
    let store =
        |data: &[u8]| common::try_send(&url, "PUT", "/v1/blobs?permanent=true", &[], Some(data));
    net.set_faults(once(FaultAction::AnswerLost { how: Loss::Cut }));
    assert!(store(b"a").is_err());
    assert_eq!(net.blobs().len(), 1, "stored all the same");
    assert!(store(b"a").unwrap().json()["alreadyCertified"].is_object());
    net.set_faults(once(FaultAction::AnswerLost {
        how: Loss::Unconfirmed,
    }));
    assert_eq!(store(b"b").unwrap().status, 504);
    net.set_faults(once(FaultAction::AnswerLost {
        how: Loss::GatewayTimeout,
    }));
    assert_eq!(
        store(b"c").unwrap().header("content-type"),
        Some("text/html")
    );
    assert_eq!(net.blobs().len(), 3);

    net.set_faults(once(FaultAction::Reset { after: 1_000_000 }));
    let broken = store(&pattern(8_000_000)).unwrap_err();
    let kind = broken.kind();
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(matches!(kind, ConnectionReset | BrokenPipe), "{kind}");
    assert_eq!(net.blobs().len(), 3);

    net.set_faults(once(FaultAction::BodyLimit { bytes: 100 }).on([Op::Put]));
    assert_eq!(store(&pattern(101)).unwrap().status, 413);
    assert_eq!(store(&pattern(101)).unwrap().status, 200);
}

#[test]
fn slow_and_silent() {
    let net = start();
    let path = blob(&net, b"xyz");
    net.set_faults(once(FaultAction::Latency {
        ms: 200,
        jitter_ms: 10,
    }));
    let start = Instant::now();
    assert_eq!(get(&net.url(), &path).status, 200);
    assert!(start.elapsed() >= Duration::from_millis(200));

    for (action, expected) in [
        (FaultAction::Hang, &b""[..]),
        (FaultAction::Stall { after: 2 }, b"xy"),
    ] {
        net.set_faults(once(action));
        let mut stream = std::net::TcpStream::connect(net.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut got = Vec::new();
        let why = std::io::Read::read_to_end(&mut stream, &mut got).unwrap_err();
        assert_eq!(why.kind(), std::io::ErrorKind::WouldBlock);
        assert!(got.ends_with(expected));
        assert_eq!(got.is_empty(), expected.is_empty());
    }
}

#[test]
fn a_drip_is_slow_and_right() {
    let net = start();
    let data = pattern(50);
    let path = blob(&net, &data);
    net.set_faults(once(FaultAction::Drip {
        bytes: 10,
        every_ms: 40,
    }));
    let start = Instant::now();
    let answer = get(&net.url(), &path);
    assert!(start.elapsed() >= Duration::from_millis(5 * 40));
    assert_eq!((answer.complete, answer.body), (true, data));
}

#[test]
fn a_publisher_that_stops_reading() {
    let net = start();
    net.set_faults(once(FaultAction::StopReading { after: 1000 }));
    let mut stream = std::net::TcpStream::connect(net.address()).unwrap();
    let limit = Some(Duration::from_millis(300));
    stream.set_write_timeout(limit).unwrap();
    let head = "PUT /v1/blobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99000000\r\n\r\n";
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    // Far beyond what the sockets' buffers take.
    let why = std::io::Write::write_all(&mut stream, &vec![0; 99_000_000]).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::WouldBlock);
    assert!(net.blobs().is_empty());
}

#[test]
fn older_versions() {
    let net = start();
    let data = pattern(1000);
    let path = blob(&net, &data);
    net.set_faults(FaultRule::new(FaultAction::IgnoreRange));
    let answer = get_with(&net.url(), &path, &[("range", "bytes=0-1")]);
    assert_eq!((answer.status, answer.body), (200, data));
    let answer = get(&net.url(), &format!("{path}/byte-range?start=0&length=1"));
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    let names = vec!["permanent".to_owned()];
    net.set_faults(FaultRule::new(FaultAction::UnknownParameters { names }));
    let answer = put(&net.url(), "/v1/blobs?epochs=1&permanent=true", b"x");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("unknown field `permanent`"));
    assert_eq!(put(&net.url(), "/v1/blobs?epochs=1", b"x").status, 200);
}

#[test]
fn a_cdn_remembers_what_was_missing() {
    let net = start();
    let data = b"late";
    let id = net.blob_id(data).unwrap();
    let path = format!("/v1/blobs/{id}");
    net.set_faults(FaultRule::new(FaultAction::CachedNotFound { seconds: 60 }).on(Op::READS));
    assert_eq!(get(&net.url(), &path).status, 404);
    assert_eq!(put(&net.url(), "/v1/blobs", data).blob_id(), id.to_string());
    assert_eq!(get(&net.url(), &path).status, 404);
    // A URL of its own was never asked for.
    let variant = format!("{path}?skip_consistency_check=false");
    assert_eq!(get(&net.url(), &variant).status, 200);
    net.clear_faults();
    assert_eq!(get(&net.url(), &path).status, 200);
}

#[test]
fn by_http_for_one_blob_and_endpoint() {
    let net = start();
    let (one, two) = (blob(&net, b"1"), blob(&net, b"2"));
    let id = one.rsplit('/').next().unwrap();
    let plan = json!({"seed": 1, "rules": [
        {"match": {"op": ["get", "range"], "blob_id": id, "endpoint": 0}, "nth": [2],
         "action": {"type": "unavailable"}},
    ]});
    let headers = [("content-type", "application/json")];
    let set = |plan: &Value| {
        send(
            &net.url(),
            "PUT",
            "/admin/faults",
            &headers,
            plan.to_string().as_bytes(),
        )
    };
    assert_eq!(set(&plan).json()["rules"], 1);
    assert_eq!(get(&net.url(), &one).status, 200);
    assert_eq!(get(&net.url(), &two).status, 200);
    assert_eq!(get(&net.url(), &one).status, 503);
    assert_eq!(get(&net.url(), &one).status, 200);
    let report = get(&net.url(), "/admin/faults").json();
    assert_eq!(
        (&report[0]["seen"], &report[0]["fired"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(
        set(&json!({"rules": [{"action": {"type": "?"}}]})).status,
        422
    );
    assert_eq!(
        send(&net.url(), "DELETE", "/admin/faults", &[], b"").status,
        200
    );
    assert!(net.faults().is_empty());
}
