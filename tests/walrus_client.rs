//! The Walrus client against servers that misbehave.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use testkit::hostile::{answer, envelope, newly_created, serve_blob, Act, Hostile, Seen};
use testkit::{eventually, PATIENCE};
use walrusds::{Auth, BlobStore, Body, Client, ClientConfig, ErrorKind, Fetched, StoreOptions};

const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";
const OTHER: &str = "3GPQL3HZNnFhN_F7l5Aa-X1VOtAKwIsg9zuWk8R81v4";
const PATCH: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUkBAQAHAA";
const OPTIONS: StoreOptions = StoreOptions::new(5);
const MIB: usize = 1 << 20;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A configuration that does not wait long.
fn quick() -> ClientConfig {
    ClientConfig::default()
        .with_request_timeout(Duration::from_secs(5))
        .with_connect_timeout(Duration::from_secs(2))
        .with_backoff_base(ms(1))
        .with_backoff_max(ms(4))
        .with_retry_after_max(ms(300))
        .with_not_found_backoff(vec![ms(1); 4])
}

fn reader(aggregators: &[&Hostile]) -> ClientConfig {
    quick().with_aggregators(aggregators.iter().map(|a| a.url()).collect())
}

fn writer(publishers: &[&Hostile]) -> ClientConfig {
    quick().with_publishers(publishers.iter().map(|p| p.url()).collect())
}

fn client(config: ClientConfig) -> Client {
    Client::new(config).unwrap()
}

fn blob(len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..256).map(|i| ((7 * i + 3) % 256) as u8).collect();
    let mut blob = period.repeat(len / 256 + 1);
    blob.truncate(len);
    blob
}

/// A port without a listener.
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
        let options = StoreOptions::new(1).with_deletable(true);
        let stored = client.store(Bytes::new(), options).await.unwrap();
        assert!(!stored.newly_created);
        assert_eq!((stored.end_epoch, stored.cost), (9, 0));
        let seen = &publisher.seen()[0];
        assert_eq!(seen.target, "/v1/blobs?epochs=1&deletable=true");
        assert_eq!(seen.header("content-length"), Some("0"));
    }

    /// Publishers before 1.46 do not know the parameter.
    #[tokio::test]
    async fn storage_is_used_again_where_the_publisher_can() {
        let unknown =
            "Failed to deserialize query string: unknown field `reuse_resources`, expected one of \
                       `encoding_type`, `epochs`, `deletable`";
        let publisher = Hostile::start(move |seen| match seen.number {
            1 => Act::Say(answer("400 Bad Request", &[], unknown)),
            _ => {
                // Storage that a blob of epoch 1 has left.
                let said = String::from_utf8(newly_created(ID)).unwrap();
                let began = said.replace("\"startEpoch\":3,", "\"startEpoch\":1,");
                Act::Say(began.into_bytes())
            }
        })
        .await;
        let client = client(writer(&[&publisher]));
        let options = StoreOptions::new(1).with_deletable(true).with_reuse(true);
        for _ in 0..2 {
            let stored = client.store(blob(10), options).await.unwrap();
            assert_eq!(stored.start_epoch, Some(3));
        }
        let targets: Vec<_> = publisher.seen().into_iter().map(|s| s.target).collect();
        let with = "/v1/blobs?epochs=1&deletable=true&reuse_resources=true";
        assert_eq!(targets, [with, with, "/v1/blobs?epochs=1&deletable=true"]);
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

    fn is_walrus(error: &walrusds::Error, parts: &[&str]) {
        assert_eq!(error.kind(), ErrorKind::Walrus, "{error}");
        for part in parts {
            assert!(error.message().contains(part), "{part:?} in {error}");
        }
    }

    #[tokio::test]
    async fn a_200_that_is_no_success_is_retried() {
        let table: Vec<Vec<u8>> = vec![
            answer(
                "200 OK",
                &[],
                r#"{"error":{"blobId":null,"errorMsg":"no coins"}}"#,
            ),
            answer("200 OK", &[], r#"{"markedInvalid":{"blobId":"x"}}"#),
            answer(
                "200 OK",
                &["content-type: text/html"],
                "<html><title>Welcome</title>",
            ),
            answer("200 OK", &[], ""),
            answer("200 OK", &[], "\0\u{1}garbage"),
            answer(
                "200 OK",
                &[],
                r#"{"newlyCreated":{"blobObject":{"blobId":"short"}}}"#,
            ),
            answer("200 OK", &[], vec![b' '; (1 << 20) + 1]),
            answer("201 Created", &[], r#"{"newlyCreated":{}}"#),
            b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"newlyCreated\":".to_vec(),
            b"\x16\x03\x01 what is this\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"new".to_vec(),
        ];
        for bad in table {
            let shown = String::from_utf8_lossy(&bad[..bad.len().min(100)]).into_owned();
            let publisher = Hostile::start(move |seen| match seen.number {
                0 => Act::SayAndClose(bad.clone()),
                _ => Act::Say(newly_created(ID)),
            })
            .await;
            let client = client(writer(&[&publisher]));
            let stored = client.store(blob(100_000), OPTIONS).await.expect(&shown);
            assert_eq!(stored.blob_id, ID);
            assert_eq!(publisher.count(), 2, "{shown}");
            assert!(publisher.seen()[1].body == blob(100_000), "{shown}");
            assert_eq!(client.stats().retries, 1);
        }
    }

    #[tokio::test]
    async fn max_retries_zero_is_one_attempt() {
        let text = envelope("503 Service Unavailable", "BLOB_UNAVAILABLE", "try\\nlater");
        let publisher = Hostile::always(text).await;
        let client = client(writer(&[&publisher]).with_max_retries(0));
        let error = client.store(blob(10), OPTIONS).await.unwrap_err();
        is_walrus(
            &error,
            &[
                "storing 10 bytes",
                &publisher.url(),
                "1 attempt)",
                "503 BLOB_UNAVAILABLE: try later",
            ],
        );
        assert!(error.is_retryable());
        assert_eq!(publisher.count(), 1);
        assert_eq!(client.stats().put_failures, 1);
    }

    #[tokio::test]
    async fn retries_are_counted_over_all_publishers_and_rotate() {
        let bad = answer(
            "502 Bad Gateway",
            &[],
            "<html><head><title>502 Bad\nGateway</title>",
        );
        let (a, b) = (
            Hostile::always(bad.clone()).await,
            Hostile::always(bad).await,
        );
        let client = client(writer(&[&a, &b]));
        let error = client.store(blob(10), OPTIONS).await.unwrap_err();
        is_walrus(
            &error,
            &[&a.url(), &b.url(), "HTTP 502: HTML page (502 Bad Gateway)"],
        );
        assert_eq!(a.count() + b.count(), 2 + 3);
        assert!(a.count().abs_diff(b.count()) == 1);
        assert_eq!((client.stats().retries, client.stats().failovers), (3, 1));
    }

    #[tokio::test]
    async fn a_4xx_goes_to_the_next_publisher_once_and_never_back() {
        for status in [
            "400 Bad Request",
            "401 Unauthorized",
            "403 Forbidden",
            "451 Legal",
            "418 T",
        ] {
            let bad = Hostile::always(answer(status, &[], "no way")).await;
            let good = Hostile::always(newly_created(ID)).await;
            let both = client(writer(&[&bad, &good]));
            assert!(both.store(blob(10), OPTIONS).await.is_ok(), "{status}");
            assert_eq!((bad.count(), good.count()), (1, 1));

            let alone = client(writer(&[&bad]));
            let error = alone.store(blob(10), OPTIONS).await.unwrap_err();
            is_walrus(&error, &[&status[..3], "no way"]);
            assert!(!error.is_retryable());
            assert_eq!(bad.count(), 2, "{status}");
        }
    }

    #[tokio::test]
    async fn uploads_are_not_redirected() {
        let target = Hostile::always(newly_created(ID)).await;
        for status in [
            "301 Moved",
            "302 Found",
            "303 See Other",
            "307 Temporary",
            "308 Permanent",
        ] {
            let location = format!(
                "location: http://u:hunter2@localhost:{}/x?key=1",
                target.port()
            );
            let publisher = Hostile::always(answer(status, &[&location], "")).await;
            let client = client(writer(&[&publisher]));
            let error = client.store(blob(10), OPTIONS).await.unwrap_err();
            is_walrus(&error, &[&status[..3], "localhost"]);
            assert!(!error.message().contains("hunter2"));
            assert_eq!(publisher.count(), 1);
        }
        assert_eq!(target.count(), 0);
    }

    #[tokio::test]
    async fn retry_after_is_obeyed_and_capped() {
        let date = std::time::SystemTime::now() + Duration::from_secs(3600);
        for value in ["3600".to_string(), httpdate::fmt_http_date(date)] {
            let header = format!("retry-after: {value}");
            let publisher = Hostile::start(move |seen| match seen.number {
                0 => Act::Say(answer("429 Too Many", &[&header], "the publisher is busy")),
                _ => Act::Say(newly_created(ID)),
            })
            .await;
            let client = client(writer(&[&publisher]));
            let start = Instant::now();
            client.store(blob(10), OPTIONS).await.unwrap();
            let took = start.elapsed();
            assert!(took >= ms(300) && took < PATIENCE, "{value}: {took:?}");
            assert_eq!(client.stats().throttled, 1);
        }
    }

    #[tokio::test]
    async fn retry_after_of_one_publisher_does_not_hold_up_the_other() {
        let busy = answer("429 Too Many", &["retry-after: 3600"], "");
        let busy = Hostile::always(busy).await;
        let other = Hostile::start(|seen| match seen.number {
            0 => Act::Say(answer("500 Internal", &[], "")),
            _ => Act::Say(newly_created(ID)),
        })
        .await;
        let client = client(writer(&[&busy, &other]));
        // The other aggregator is asked again before the busy one, which asked for a pause of an
        // hour.
        client.store(blob(10), OPTIONS).await.unwrap();
        assert_eq!((busy.count(), other.count()), (1, 2));
    }

    #[tokio::test]
    async fn a_429_storm_passes() {
        let publisher = Hostile::start(|seen| match seen.number {
            0..=9 => Act::Say(answer("429 Too Many", &[], "the publisher is busy")),
            _ => Act::Say(newly_created(ID)),
        })
        .await;
        let client = client(writer(&[&publisher]).with_max_retries(10));
        let stores = (0..10).map(|n| client.store(blob(n), OPTIONS));
        for stored in futures_util::future::join_all(stores).await {
            stored.unwrap();
        }
        assert_eq!(client.stats().throttled, 10);
    }

    #[tokio::test]
    async fn an_old_publisher_is_asked_without_permanent() {
        let unknown =
            "Failed to deserialize query string: unknown field `permanent`, expected one of \
                       `encoding_type`, `epochs`, `deletable`";
        let script = move |deletable: bool| {
            move |seen: &Seen| {
                let said = match seen.target.contains("permanent") {
                    true => answer("400 Bad Request", &[], unknown),
                    false => newly_created(ID),
                };
                let said = String::from_utf8(said).unwrap();
                // The same length, or Content-Length would be wrong.
                let to = format!(
                    "\"deletable\":{}",
                    if deletable { "true " } else { "false" }
                );
                Act::Say(said.replace("\"deletable\":false", &to).into_bytes())
            }
        };
        let old = Hostile::start(script(false)).await;
        let config = writer(&[&old]).with_max_retries(0);
        client(config).store(blob(10), OPTIONS).await.unwrap();
        let targets: Vec<_> = old.seen().into_iter().map(|s| s.target).collect();
        assert_eq!(
            targets,
            ["/v1/blobs?epochs=5&permanent=true", "/v1/blobs?epochs=5"]
        );

        let strange = Hostile::start(script(true)).await;
        let error = client(writer(&[&strange]))
            .store(blob(10), OPTIONS)
            .await
            .unwrap_err();
        is_walrus(&error, &["stored a deletable blob"]);

        let unknown = unknown.replace("field `permanent`", "field `deletable`");
        let older = Hostile::always(answer("400 Bad Request", &[], unknown)).await;
        let options = OPTIONS.with_deletable(true);
        let error = client(writer(&[&older]))
            .store(blob(10), options)
            .await
            .unwrap_err();
        is_walrus(&error, &["400", "unknown field `deletable`"]);
        assert_eq!(older.count(), 1);
    }

    #[tokio::test]
    async fn no_epochs_is_a_mistake_of_the_caller() {
        let publisher = Hostile::always(newly_created(ID)).await;
        let options = StoreOptions::new(0);
        let error = client(writer(&[&publisher]))
            .store(blob(1), options)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(publisher.count(), 0);
    }
}

mod body_limits {
    use super::*;

    fn too_large() -> Vec<u8> {
        let text = "Failed to buffer the request body: length limit exceeded";
        answer("413 Payload Too Large", &["content-type: text/plain"], text)
    }

    #[tokio::test]
    async fn a_413_teaches_the_limit() {
        let publisher = Hostile::start(|seen| {
            let len: usize = seen.header("content-length").unwrap().parse().unwrap();
            Act::Say(if len > 6 * MIB {
                too_large()
            } else {
                newly_created(ID)
            })
        })
        .await;
        let client = client(writer(&[&publisher]));
        assert_eq!(client.size_limit(), u64::MAX);
        let error = client.store(blob(12 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.message().contains("413"), "{error}");
        assert_eq!(publisher.count(), 1, "413 is final");
        assert_eq!(client.size_limit(), 10 * MIB as u64);
        // The limit is known by now: the body is not sent again.
        let error = client.store(blob(13 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert_eq!(publisher.count(), 1);
        let error = client.store(blob(10 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        // Half of the blocks of that pack fit, with what lies around them.
        assert_eq!(client.size_limit(), (5 * MIB + 1024) as u64);
        client.store(blob(6 * MIB), OPTIONS).await.unwrap();
        assert_eq!(client.size_limit(), 6 * MIB as u64);
    }

    #[tokio::test]
    async fn an_early_413_is_recognised_while_still_sending() {
        for round in 0..20 {
            let publisher = Hostile::start(|_| Act::SayEarly(too_large())).await;
            let client = client(writer(&[&publisher]).with_max_retries(0));
            let error = client.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            assert!(error.message().contains("413"), "round {round}: {error}");
            assert_eq!(client.size_limit(), 10 * MIB as u64);
        }
    }

    #[tokio::test]
    async fn another_publisher_may_take_it() {
        let small = Hostile::start(|_| Act::SayEarly(too_large())).await;
        let large = Hostile::always(newly_created(ID)).await;
        let client = client(writer(&[&small, &large]));
        for _ in 0..4 {
            client.store(blob(12 * MIB), OPTIONS).await.unwrap();
        }
        assert_eq!((small.count(), large.count()), (1, 4));
        assert_eq!(client.size_limit(), u64::MAX);
    }

    #[tokio::test]
    async fn resets_while_sending_count_after_the_retries() {
        let publisher = Hostile::start(|seen| match &*seen.method {
            "PUT" => Act::ResetAfter(MIB),
            _ => Act::Say(newly_created(ID)),
        })
        .await;
        let limited = client(writer(&[&publisher]));
        let error = limited.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.is_retryable());
        assert_eq!(publisher.count(), 4 + 1, "and whether it is there");
        assert_eq!(limited.size_limit(), 10 * MIB as u64);
        // The limit is not certain, so the client sends the body of a caller that insists.
        limited.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(publisher.count(), 2 * (4 + 1));

        let publisher = Hostile::start(|_| Act::ResetAfter(MIB / 2)).await;
        let short = client(writer(&[&publisher]));
        let error = short.store(blob(MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Walrus, "{error}");
        assert_eq!(short.size_limit(), u64::MAX);
    }

    /// What closes every connection is a proxy before a publisher that does not run just now: the
    /// pack is not cut into ever smaller ones.
    #[tokio::test]
    async fn an_outage_that_looks_like_resets_is_no_limit() {
        for away in 0..3 {
            let publisher = Hostile::start(move |seen| match (&*seen.method, away) {
                ("PUT", _) => Act::ResetAfter(MIB),
                (_, 0) => Act::ResetAfter(0),
                (_, 1) => Act::Close,
                _ => Act::Say(answer("502 Bad Gateway", &[], "")),
            })
            .await;
            let client = client(writer(&[&publisher]));
            for _ in 0..2 {
                let error = client.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Walrus, "{error}");
                assert!(error.is_retryable());
            }
            assert_eq!(client.size_limit(), u64::MAX);
        }
    }

    /// The publisher may just have closed an idle connection.
    #[tokio::test]
    async fn one_reset_is_no_limit_without_retries_either() {
        let publisher = Hostile::start(|seen| match (&*seen.method, seen.number) {
            ("GET", _) | (_, 2) => Act::Say(newly_created(ID)),
            _ => Act::ResetAfter(MIB),
        })
        .await;
        let client = client(writer(&[&publisher]).with_max_retries(0));
        let error = client.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "the caller splits it");
        assert_eq!(client.size_limit(), u64::MAX);
        client.store(blob(12 * MIB), OPTIONS).await.unwrap();
        assert_eq!(client.size_limit(), u64::MAX);
        client.store(blob(24 * MIB), OPTIONS).await.unwrap_err();
        assert_eq!(client.size_limit(), 12 * MIB as u64, "twice");
    }

    #[tokio::test]
    async fn a_reset_that_passes_is_just_retried() {
        let publisher = Hostile::start(|seen| match seen.number {
            0 => Act::ResetAfter(MIB),
            1 => Act::Close,
            _ => Act::Say(newly_created(ID)),
        })
        .await;
        let client = client(writer(&[&publisher]));
        client.store(blob(8 * MIB), OPTIONS).await.unwrap();
        assert_eq!(client.size_limit(), u64::MAX);
    }
}

mod time_limits {
    use super::*;

    fn impatient(config: ClientConfig) -> Client {
        client(config.with_request_timeout(ms(300)).with_max_retries(0))
    }

    #[tokio::test]
    async fn a_hung_server() {
        let hung = Hostile::start(|_| Act::Hang).await;
        let config = reader(&[&hung]).with_publishers(vec![hung.url()]);
        let client = impatient(config);
        for error in [
            client.store(blob(1000), OPTIONS).await.unwrap_err(),
            client.read(ID).await.unwrap_err(),
            client.read_range(ID, 0, 10).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Walrus);
            assert!(
                error.message().contains("timed out: no answer within 0."),
                "{error}"
            );
            assert!(error.is_retryable());
        }
        eventually("timed out requests close their connections", || {
            hung.open() == 0
        })
        .await;
    }

    #[tokio::test]
    async fn a_dripping_body() {
        let dripping = Hostile::start(|_| {
            let text = answer("200 OK", &[], blob(1000));
            Act::Drip(text, ms(10))
        })
        .await;
        let client = impatient(reader(&[&dripping]));
        let error = client.read_range(ID, 0, 1000).await.unwrap_err();
        assert!(error.message().contains("cut after"), "{error}");
        assert!(error.message().contains("timed out"), "{error}");
    }

    #[tokio::test]
    async fn a_slow_link_can_finish_a_large_body() {
        let slow = Hostile::start(|_| Act::ReadSlowly(MIB, ms(50), newly_created(ID))).await;
        let client = impatient(writer(&[&slow]));
        let start = Instant::now();
        client.store(blob(16 * MIB), OPTIONS).await.unwrap();
        assert!(start.elapsed() > ms(600), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_stops_reading() {
        let stuck =
            Hostile::start(|_| Act::ReadSlowly(1, Duration::from_secs(600), newly_created(ID)))
                .await;
        let client = impatient(writer(&[&stuck]));
        let error = client.store(blob(32 * MIB), OPTIONS).await.unwrap_err();
        assert!(error.message().contains("timed out: sent only"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Walrus);
    }

    #[tokio::test]
    async fn dropping_the_future_closes_the_connection() {
        let hung = Hostile::start(|_| Act::Hang).await;
        let client = client(reader(&[&hung]).with_publishers(vec![hung.url()]));
        // Drops a call once the server has its request.
        async fn give_up<T>(call: impl Future<Output = T>, hung: &Hostile, requests: usize) {
            tokio::select! {
                _ = call => panic!("the server never answers"),
                () = eventually("the request is there", || hung.count() == requests) => {}
            }
        }
        let gone = || eventually("the connection is closed", || hung.open() == 0);
        give_up(client.store(blob(MIB), OPTIONS), &hung, 1).await;
        gone().await;
        give_up(client.read_range(ID, 0, 10), &hung, 2).await;
        gone().await;
    }
}

mod unreachable {
    use super::*;

    /// Whether a cause of the error is that of the operating system.
    fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
        let io = error.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
            || error.source().is_some_and(was_refused)
    }

    async fn errors(url: String) -> [walrusds::Error; 2] {
        let client = client(
            quick()
                .with_publishers(vec![url.clone()])
                .with_aggregators(vec![url])
                .with_max_retries(1),
        );
        [
            client.store(blob(10), OPTIONS).await.unwrap_err(),
            client.read(ID).await.unwrap_err(),
        ]
    }

    #[tokio::test]
    async fn refused_port() {
        let url = format!("http://127.0.0.1:{}", closed_port().await);
        for error in errors(url.clone()).await {
            assert_eq!(error.kind(), ErrorKind::Walrus);
            let text = error.message();
            assert!(
                text.contains("refused") && text.contains("2 attempts"),
                "{text}"
            );
            assert!(text.contains(&url), "{text}");
            assert!(error.is_retryable());
            assert!(was_refused(&error), "{error:?}");
        }
    }

    #[tokio::test]
    async fn dns_failure() {
        for error in errors("http://nowhere.invalid".into()).await {
            let text = error.message();
            assert!(
                text.contains("http://nowhere.invalid (2 attempts)"),
                "{text}"
            );
            assert!(error.is_retryable(), "{text}");
        }
    }

    #[tokio::test]
    async fn tls_to_a_plain_port() {
        let plain = Hostile::always(newly_created(ID)).await;
        for error in errors(format!("https://127.0.0.1:{}", plain.port())).await {
            assert_eq!(error.kind(), ErrorKind::Walrus);
            let text = error.message().to_ascii_lowercase();
            assert!(
                text.contains("tls") || text.contains("corrupt message"),
                "{text}"
            );
        }
        assert_eq!(plain.count(), 0);
    }

    #[tokio::test]
    async fn the_next_endpoint_takes_over_and_stays_preferred() {
        let dead = format!("http://127.0.0.1:{}", closed_port().await);
        let data = blob(500);
        let good = Hostile::start({
            let data = data.clone();
            move |seen| Act::Say(serve_blob(seen, &data))
        })
        .await;
        let client = client(
            quick()
                .with_aggregators(vec![dead, good.url()])
                .with_max_retries(0),
        );
        for n in 1..=5u64 {
            assert_eq!(client.read_range(ID, n, 5).await.unwrap().len(), 5);
        }
        assert_eq!(client.stats().failovers, 1, "remembered");
    }

    #[tokio::test]
    async fn one_sided_clients() {
        let server = Hostile::always(newly_created(ID)).await;
        let error = client(writer(&[&server])).read(ID).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains("aggregatorURL"), "{error}");
        let error = client(reader(&[&server]))
            .store(blob(1), OPTIONS)
            .await
            .unwrap_err();
        assert!(error.message().contains("publisherURL"), "{error}");
        let error = Client::new(ClientConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

mod secrets {
    use super::*;

    #[tokio::test]
    async fn a_fresh_token_for_every_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let counter = dir.path().join("n");
        let command = format!(
            "echo x >> {0}; printf 'tok-%s\\n' $(wc -l < {0})",
            counter.display()
        );
        let publisher = Hostile::start(|seen| {
            Act::Say(match seen.number {
                0 => envelope("429 Too Many", "TOKEN_ALREADY_USED", "used"),
                1 => envelope("504 Gateway Timeout", "EXPIRED_SIGNATURE", "expired"),
                2 => answer("500 Internal Server Error", &[], ""),
                _ => newly_created(ID),
            })
        })
        .await;
        let client = client(writer(&[&publisher]).with_auth(Auth::Command(command)));
        client.store(blob(10), OPTIONS).await.unwrap();
        let tokens: Vec<_> = publisher
            .seen()
            .iter()
            .map(|seen| seen.header("authorization").unwrap().to_string())
            .collect();
        assert_eq!(
            tokens,
            [
                "Bearer tok-1",
                "Bearer tok-2",
                "Bearer tok-3",
                "Bearer tok-4"
            ]
        );
        assert_eq!(client.stats().throttled, 0, "a used token is no overload");
    }

    #[tokio::test]
    async fn a_token_file_is_read_for_every_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "first\n").unwrap();
        let publisher = Hostile::start({
            let file = file.clone();
            move |seen| {
                std::fs::write(&file, " second \n").unwrap();
                Act::Say(match seen.number {
                    0 => answer("500 Internal", &[], ""),
                    _ => newly_created(ID),
                })
            }
        })
        .await;
        let client = client(
            writer(&[&publisher])
                .with_auth(Auth::File(file))
                .with_aggregators(vec![publisher.url()]),
        );
        client.store(blob(10), OPTIONS).await.unwrap();
        let _ = client.read(ID).await;
        let seen = publisher.seen();
        assert_eq!(seen[0].header("authorization"), Some("Bearer first"));
        assert_eq!(seen[1].header("authorization"), Some("Bearer second"));
        assert_eq!(
            seen[2].header("authorization"),
            None,
            "reads carry no token"
        );
    }

    #[tokio::test]
    async fn without_a_token_nothing_is_sent() {
        let publisher = Hostile::always(newly_created(ID)).await;
        let client = client(
            writer(&[&publisher])
                .with_auth(Auth::Command("echo no key >&2; exit 7".into()))
                .with_max_retries(1),
        );
        let error = client.store(blob(10), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Walrus);
        let text = error.message();
        assert!(
            text.contains("authTokenCommand") && text.contains("no key"),
            "{text}"
        );
        assert!(text.contains('7') && text.contains("2 attempts"), "{text}");
        assert_eq!(publisher.count(), 0);
    }

    #[tokio::test]
    async fn cancelling_kills_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let publisher = Hostile::always(newly_created(ID)).await;
        // A pipeline, and not the shell alone.
        let command = format!("sh -c 'echo $$ > {}; exec sleep 600' | cat", pid.display());
        let client = client(writer(&[&publisher]).with_auth(Auth::Command(command)));
        let read_pid = || {
            std::fs::read_to_string(&pid)
                .ok()
                .filter(|pid| pid.ends_with('\n'))
        };
        tokio::select! {
            _ = client.store(blob(10), OPTIONS) => panic!("the command never ends"),
            () = eventually("the command runs", || read_pid().is_some()) => {}
        }
        let pid = read_pid().unwrap();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z"))
        };
        eventually("the command ends with the call", || !alive()).await;
    }

    #[tokio::test]
    async fn not_even_a_piece_of_a_long_token() {
        let token = format!("tok-secret{}", "x".repeat(3000));
        for (status, cut) in [
            ("500 X", 0),
            ("500 X", 1500),
            ("500 X", 2900),
            ("200 OK", 0),
        ] {
            let publisher = Hostile::start(move |seen| {
                let said = answer(status, &[], seen.header("authorization").unwrap());
                Act::SayAndClose(said[..said.len() - cut].to_vec())
            })
            .await;
            let client =
                client(writer(&[&publisher]).with_auth(Auth::Command(format!("echo {token}"))));
            let error = client.store(blob(10), OPTIONS).await.unwrap_err();
            assert!(!error.message().contains("tok-"), "{cut}: {error}");
            assert!(error.message().contains("[redacted]"), "{cut}: {error}");
        }
    }

    /// Echoes every header, as a debugging proxy does.
    fn echo(seen: &Seen, status: &str) -> Vec<u8> {
        answer(status, &[], format!("bad request: {:?}", seen.headers))
    }

    #[tokio::test]
    async fn no_secret_in_errors_and_debug_output() {
        let secrets = [
            "hunter2",
            "hunt%65r2",
            "alice",
            "YWxpY2U6aHVudGVyMg",
            "tok-secret",
        ];
        let clean = |text: &str| {
            for secret in secrets {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
        };
        // Its cause as well.
        let failed = |error: walrusds::Error| clean(&format!("{error:?}"));
        for status in [
            "400 Bad",
            "401 No",
            "404 Not Found",
            "413 Large",
            "500 Err",
            "200 OK",
        ] {
            let server = Hostile::start(move |seen| Act::Say(echo(seen, status))).await;
            let url = format!("http://alice:hunt%65r2@127.0.0.1:{}", server.port());
            for auth in [Auth::None, Auth::Command("echo tok-secret".into())] {
                let token = auth != Auth::None;
                let config = quick()
                    .with_publishers(vec![url.clone()])
                    .with_aggregators(vec![url.clone()])
                    .with_auth(auth);
                clean(&format!("{config:?}"));
                let client = client(config);
                clean(&format!("{client:?}"));
                failed(client.store(blob(10), OPTIONS).await.unwrap_err());
                let seen = server.seen().pop().unwrap();
                let sent = seen.header("authorization").unwrap();
                assert_eq!(sent.starts_with("Bearer"), token, "{sent}");
                if !status.starts_with('2') {
                    failed(client.read(ID).await.unwrap_err());
                    let seen = server.seen().pop().unwrap();
                    assert_eq!(
                        seen.header("authorization"),
                        Some("Basic YWxpY2U6aHVudGVyMg==")
                    );
                }
            }
        }
        for url in [
            format!("http://alice:hunter2@127.0.0.1:{}", closed_port().await),
            "http://alice:hunter2@nowhere.invalid".to_string(),
            format!("https://alice:hunter2@127.0.0.1:{}", closed_port().await),
        ] {
            let client = client(
                quick()
                    .with_publishers(vec![url.clone()])
                    .with_aggregators(vec![url]),
            );
            failed(client.store(blob(10), OPTIONS).await.unwrap_err());
            failed(client.read(ID).await.unwrap_err());
        }
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
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[0].target, format!("/v1/blobs/{ID}"));
        assert_eq!(seen[0].header("range"), Some("bytes=10-99"));
        assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
        assert_eq!(seen[1].header("range"), None);
        assert_eq!(
            seen[4].target,
            format!("/v1/blobs/by-quilt-patch-id/{PATCH}")
        );
        let stats = client.stats();
        assert_eq!((stats.gets, stats.get_bytes), (5, 4090));
    }

    async fn serving(data: &[u8]) -> Hostile {
        let data = data.to_vec();
        Hostile::start(move |seen| Act::Say(serve_blob(seen, &data))).await
    }

    #[tokio::test]
    async fn a_patch_of_another_length_is_refused() {
        let data = blob(1000);
        let aggregator = serving(&data).await;
        let client = client(reader(&[&aggregator]));
        for len in [999, 1001, 10] {
            let error = client.read_patch_of(PATCH, len, &check_ok).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
        }
        let read = client.read_patch_of(PATCH, 1000, &check_ok).await;
        assert_eq!(read.unwrap(), data);
    }

    /// A part of a blob of `total` bytes.
    fn part(bytes: &[u8], total: usize) -> Fetched {
        let mut part = Fetched::from(Bytes::copy_from_slice(bytes));
        part.total = Some(total as u64);
        part
    }

    #[tokio::test]
    async fn a_200_to_a_range_request_is_sliced_or_handed_over() {
        let data = blob(1000);
        let old = Hostile::always(answer("200 OK", &[], &data)).await;
        let client = client(reader(&[&old]));
        let whole = Fetched::whole(data.clone().into());
        for (keeps, got) in [
            (0, part(&data[100..150], 1000)),
            (999, part(&data[100..150], 1000)),
            (1000, whole),
        ] {
            let of_range = |bytes: &[u8]| match bytes == &data[100..150] {
                true => Ok(()),
                false => Err("other than was asked for".to_string()),
            };
            let block = client.read_block(ID, 100, 50, keeps, &of_range).await;
            assert_eq!(block.unwrap(), got, "{keeps}");
            let window = client.read_window(ID, 100, 50, keeps).await;
            assert_eq!(window.unwrap(), got, "{keeps}");
        }
        assert_eq!(
            client.read_range(ID, 100, 50).await.unwrap(),
            data[100..150]
        );
        assert_eq!(old.count(), 7);
    }

    #[tokio::test]
    async fn a_200_that_is_longer_than_is_kept_is_read_as_far_as_needed() {
        let data = blob(8 * MIB);
        let announced = Hostile::always(answer("200 OK", &[], &data)).await;
        let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for chunk in data.chunks(100_000) {
            chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
            chunked.extend(chunk);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        let chunked = Hostile::always(chunked).await;
        for old in [announced, chunked] {
            let client = client(reader(&[&old]));
            for offset in [0, MIB / 2, MIB] {
                let keeps = MIB as u64;
                let read = client.read_block(ID, offset as u64, 70_000, keeps, &check_ok);
                assert!(read.await.unwrap().bytes == data[offset..offset + 70_000]);
            }
            assert_eq!(old.count(), 3);
            let got = client.stats().get_bytes as usize;
            assert!(got < 5 * MIB, "the rest was not read: {got}");
        }
    }

    #[tokio::test]
    async fn a_200_that_is_too_short_is_never_clamped_nor_cached() {
        let data = blob(300);
        for whole in [50usize, 0, 299] {
            let short = Hostile::always(answer("200 OK", &[], &data[..whole])).await;
            let good = serving(&data).await;
            let both = client(reader(&[&short, &good]));
            assert_eq!(both.read_range(ID, 0, 300).await.unwrap(), data);
            assert_eq!(both.read_range(ID, 1, 299).await.unwrap(), data[1..]);
            assert_eq!(good.count(), 2, "nothing was cached");
            assert_eq!(short.count(), 1, "it comes last from now on");

            let alone = client(reader(&[&short]));
            let error = alone.read_range(ID, 0, 300).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus);
            assert!(
                error.message().contains(&format!("only {whole} bytes")),
                "{error}"
            );
            assert!(error.message().contains(ID), "{error}");
            alone.read_range(ID, 0, 300).await.unwrap_err();
        }
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let short = Hostile::always(chunked.into()).await;
        let error = client(reader(&[&short]))
            .read_range(ID, 0, 4)
            .await
            .unwrap_err();
        assert!(error.message().contains("only 3 bytes"), "{error}");
    }

    #[tokio::test]
    async fn wrong_206_answers() {
        let data = blob(1000);
        let part = |range: &str, body: &[u8]| {
            answer(
                "206 Partial Content",
                &[&format!("content-range: {range}")],
                body,
            )
        };
        for (bad, says) in [
            (part("bytes 10-18/1000", &data[10..19]), "10-18"),
            (part("bytes 11-20/1000", &data[11..21]), "11-20"),
            (part("bytes 10-19/15", &data[10..20]), "/15"),
            (part("bytes 10-19/1000", &data[10..19]), "9 bytes"),
            (part("bytes 10-19/1000", &data[10..21]), "11 bytes"),
            (part("bytes 0-999/1000", &data), "0-999"),
            (part("10-19", &data[10..20]), "Content-Range"),
            (answer("206 Partial Content", &[], &data[10..20]), "Content-Range"),
            (
                b"HTTP/1.1 206 X\r\ntransfer-encoding: chunked\r\ncontent-range: bytes 10-19/20\r\n\
                  \r\n5\r\n12345\r\n0\r\n\r\n"
                    .to_vec(),
                "5 bytes",
            ),
            (
                b"HTTP/1.1 206 X\r\ntransfer-encoding: chunked\r\ncontent-range: bytes 10-19/20\r\n\
                  \r\nb\r\n12345678901\r\n0\r\n\r\n"
                    .to_vec(),
                "11",
            ),
            (
                answer(
                    "206 Partial Content",
                    &["content-range: bytes 10-19/1000", "content-encoding: gzip"],
                    &data[10..20],
                ),
                "compressed",
            ),
        ] {
            let bad = Hostile::always(bad).await;
            let good = serving(&data).await;
            let both = client(reader(&[&bad, &good]));
            assert_eq!(both.read_range(ID, 10, 10).await.unwrap(), data[10..20], "{says}");
            let error = client(reader(&[&bad])).read_range(ID, 10, 10).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus, "{error}");
            assert!(error.message().contains(says), "{says}: {error}");
        }
        let star = Hostile::always(part("bytes 10-19/*", &data[10..20])).await;
        client(reader(&[&star]))
            .read_range(ID, 10, 10)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_416_names_the_range_and_is_not_retried() {
        let data = blob(100);
        let (a, b) = (serving(&data).await, serving(&data).await);
        let client = client(reader(&[&a, &b]));
        let error = client.read_range(ID, 90, 20).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Walrus);
        for part in ["416 INVALID_BYTE_RANGE", "bytes 90-109", ID] {
            assert!(error.message().contains(part), "{error}");
        }
        assert_eq!((a.count(), b.count()), (1, 1));
    }

    #[tokio::test]
    async fn cut_bodies_are_retried() {
        let data = blob(100_000);
        let cut: Vec<Vec<u8>> = vec![
            answer("200 OK", &[], &data)[..50_000].to_vec(),
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            b"HTTP/1.1 2".to_vec(),
            b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_vec(),
            Vec::new(),
        ];
        for cut in cut {
            let shown = String::from_utf8_lossy(&cut[..cut.len().min(80)]).into_owned();
            let aggregator = Hostile::start({
                let data = data.clone();
                move |seen| match seen.number % 2 {
                    0 => Act::SayAndClose(cut.clone()),
                    _ => Act::Say(serve_blob(seen, &data)),
                }
            })
            .await;
            let client = client(reader(&[&aggregator]));
            assert!(client.read(ID).await.expect(&shown) == data, "{shown}");
            assert_eq!(client.stats().retries, 1, "{shown}");
            assert!(
                client.read_patch(PATCH, &check_ok).await.unwrap() == data,
                "{shown}"
            );
        }
    }

    #[tokio::test]
    async fn a_whole_blob_needs_a_length() {
        let endless =
            Hostile::start(|_| Act::SayAndClose(b"HTTP/1.0 200 OK\r\n\r\nabc".into())).await;
        let client = client(reader(&[&endless]));
        let error = client.read(ID).await.unwrap_err();
        assert!(error.message().contains("without a length"), "{error}");
        // A range has one of its own.
        assert_eq!(client.read_range(ID, 1, 2).await.unwrap(), b"bc"[..]);
        let error = client.read_range(ID, 1, 3).await.unwrap_err();
        assert!(error.message().contains("only 3 bytes"), "{error}");
    }

    #[tokio::test]
    async fn bodies_are_bounded() {
        let data = blob(2000);
        let announced = serving(&data).await;
        let endless = Hostile::start(|_| {
            let mut text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..1000 {
                text.extend(b"400\r\n");
                text.extend([b'x'; 1024]);
                text.extend(b"\r\n");
            }
            Act::Say(text)
        })
        .await;
        let liar = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000000\r\n\r\nxx";
        let liar = Hostile::always(liar.into()).await;
        for aggregator in [announced, endless, liar] {
            let client = client(reader(&[&aggregator]).with_max_blob_bytes(1999));
            let error = client.read(ID).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus);
            assert!(error.message().contains("1999 allowed"), "{error}");
            assert_eq!(aggregator.count(), 1, "not retried");
        }
        // A blob whose length is known may be longer.
        let aggregator = serving(&data).await;
        let client = client(reader(&[&aggregator]).with_max_blob_bytes(1999));
        let any = |_: &[u8]| Ok(());
        let read = client.read_known(ID, 2000, &any).await;
        assert_eq!(read.unwrap(), data);
        client.read_known(ID, 1000, &any).await.unwrap_err();
    }

    /// Answers with one byte of the head replaced, or cut somewhere: a range read gives the right
    /// bytes or an error. (No line end is put in: that would end the head early and move the body,
    /// which only the caller's check can notice.)
    #[tokio::test]
    async fn damaged_answers_never_give_wrong_bytes() {
        const LEN: usize = 300;
        let seed = 7u64;
        let random = move |n: usize, salt: usize, below: usize| {
            let mut hash = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&(seed, n, salt), &mut hash);
            (std::hash::Hasher::finish(&hash) % below as u64) as usize
        };
        let data = blob(LEN);
        let damaging = Hostile::start({
            let data = data.clone();
            move |seen| {
                let n = seen.number;
                let mut said = match random(n, 0, 3) {
                    0 => answer("200 OK", &[], &data),
                    _ => serve_blob(seen, &data),
                };
                let head = said.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                match random(n, 1, 3) {
                    0 => said.truncate(random(n, 2, said.len())),
                    1 => said[random(n, 2, head)] = b"0123456789 :-/*\rx"[random(n, 3, 17)],
                    _ => said[random(n, 2, head)] = 11 + random(n, 3, 245) as u8,
                }
                Act::SayAndClose(said)
            }
        })
        .await;
        let client = client(reader(&[&damaging]).with_max_retries(0));
        let mut good = 0;
        for n in 0..1500 {
            let offset = random(n, 4, LEN);
            let len = 1 + random(n, 5, LEN - offset);
            if let Ok(bytes) = client.read_range(ID, offset as u64, len as u64).await {
                good += 1;
                assert_eq!(bytes, data[offset..offset + len], "seed {seed}, read {n}");
            }
        }
        assert!(good > 0 && damaging.count() > 300, "{good}");
    }

    #[tokio::test]
    async fn corrupt_bytes_go_to_the_next_aggregator() {
        let data = blob(1000);
        let mut flipped = data.clone();
        flipped[500] ^= 1;
        let expected = data.clone();
        let check = move |bytes: &[u8]| match bytes == &expected[..] || bytes == &expected[400..600]
        {
            true => Ok(()),
            false => Err("hash mismatch".to_string()),
        };
        let (bad, good) = (serving(&flipped).await, serving(&data).await);
        let both = client(reader(&[&bad, &good]));
        let part = BlobStore::read_range(&both, ID, 400, 200, &check)
            .await
            .unwrap();
        assert_eq!(part, data[400..600]);
        assert_eq!(both.stats().corrupt, 1);
        let whole = BlobStore::read(&both, ID, &check).await.unwrap();
        assert_eq!(whole, data);

        let other = serving(&flipped).await;
        let none = client(reader(&[&bad, &other]));
        for error in [
            BlobStore::read(&none, ID, &check).await.unwrap_err(),
            BlobStore::read_range(&none, ID, 400, 200, &check)
                .await
                .unwrap_err(),
            none.read_patch(PATCH, &check).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.message().contains(&ID[..42]), "{error}");
            assert!(error.message().contains("hash mismatch"), "{error}");
            assert!(!error.is_retryable());
        }
        assert_eq!(other.count(), 3, "once per read");
    }

    #[tokio::test]
    async fn malformed_ids_are_not_asked_for() {
        let aggregator = serving(b"x").await;
        let client = client(reader(&[&aggregator]));
        for id in [
            "",
            "../../etc",
            &ID[1..],
            &format!("{ID}="),
            "a?b",
            "a\r\nb: c",
        ] {
            let error = client.read(id).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{id:?}");
            let error = client.read_range(id, 0, 1).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{id:?}");
        }
        for id in ["", "../x", "a?b", "a b"] {
            let error = client.read_patch(id, &check_ok).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{id:?}");
        }
        for (offset, len) in [(u64::MAX, 1), (1, u64::MAX), (0, u64::MAX)] {
            let error = client.read_range(ID, offset, len).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        assert_eq!(aggregator.count(), 0);
    }

    #[tokio::test]
    async fn statuses_that_are_one_aggregators_own() {
        let data = blob(10);
        for (bad, says) in [
            (
                envelope("403 Forbidden", "BLOB_TOO_LARGE", "too large"),
                "403 BLOB_TOO_LARGE",
            ),
            (
                envelope("451 Legal", "FORBIDDEN_BLOB", "blocked"),
                "451 FORBIDDEN_BLOB",
            ),
            (answer("401 Unauthorized", &[], "who"), "401: who"),
            (
                answer("400 Bad Request", &[], "Invalid URL"),
                "400: Invalid URL",
            ),
            (
                answer("405 Method Not Allowed", &[], ""),
                "405 Method Not Allowed",
            ),
            (answer("304 Not Modified", &[], ""), "304"),
            (answer("204 No Content", &[], ""), "204"),
        ] {
            let (bad, good) = (Hostile::always(bad).await, serving(&data).await);
            assert_eq!(client(reader(&[&bad, &good])).read(ID).await.unwrap(), data);
            let error = client(reader(&[&bad])).read(ID).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus);
            assert!(error.message().contains(says), "{says}: {error}");
            assert_eq!(bad.count(), 2, "{says}: not retried");
        }
        let flaky = Hostile::start({
            let data = data.clone();
            move |seen| match seen.number {
                0 => Act::Say(envelope("503 X", "BLOB_UNAVAILABLE", "epoch change")),
                1 => Act::Say(envelope("500 X", "SLIVER_RETRIEVAL_FAILED", "x")),
                2 => Act::Say(answer("502 X", &[], "<html>")),
                _ => Act::Say(serve_blob(seen, &data)),
            }
        })
        .await;
        assert_eq!(client(reader(&[&flaky])).read(ID).await.unwrap(), data);
    }

    #[tokio::test]
    async fn redirects() {
        let data = blob(1000);
        let target = serving(&data).await;
        let to = format!("location: {}/v1/blobs/{ID}", target.url());
        let from = Hostile::always(answer("302 Found", &[&to], "")).await;
        let url = from.url().replace("http://", "http://user:pass@");
        let followed = client(quick().with_aggregators(vec![url]));
        let part = followed.read_range(ID, 10, 10).await.unwrap();
        assert_eq!(part, data[10..20]);
        assert_eq!(target.seen()[0].header("range"), Some("bytes=10-19"));
        assert!(from.seen()[0].header("authorization").is_some());
        assert_eq!(
            target.seen()[0].header("authorization"),
            None,
            "another origin"
        );

        for (location, says, count) in [
            ("", "redirect loop", 1),
            ("location: /a?secret=1", "redirect loop", 2),
            ("location: ftp://x/", "without a usable Location", 1),
        ] {
            let bad = Hostile::start(move |seen| {
                let same = format!("location: {}", seen.target);
                let location = if location.is_empty() { &same } else { location };
                Act::Say(answer("301 Moved", &[location], ""))
            })
            .await;
            let error = client(reader(&[&bad])).read(ID).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus);
            assert!(error.message().contains(says), "{error}");
            assert_eq!(bad.count(), count);
        }
        let endless = Hostile::start(|seen| {
            let next = format!("location: /{}", seen.number);
            Act::Say(answer("307 X", &[&next], ""))
        })
        .await;
        let error = client(reader(&[&endless])).read(ID).await.unwrap_err();
        assert!(error.message().contains("more than 5 redirects"), "{error}");
        assert_eq!(endless.count(), 6);
    }
}

mod not_found {
    use super::*;

    fn missing() -> Vec<u8> {
        envelope("404 Not Found", "BLOB_NOT_FOUND", "no such blob")
    }

    fn is_missing(error: &walrusds::Error) {
        assert_eq!(error.kind(), ErrorKind::BlobNotFound, "{error}");
        assert!(error.message().contains(ID), "{error}");
        assert!(error.message().contains("BLOB_NOT_FOUND"), "{error}");
    }

    #[tokio::test]
    async fn final_after_two_aggregators() {
        let aggregators = [
            Hostile::always(missing()).await,
            Hostile::always(missing()).await,
            Hostile::always(missing()).await,
        ];
        let [a, b, c] = &aggregators;
        let client = client(reader(&[a, b, c]));
        let error = client.read_range(ID, 0, 10).await.unwrap_err();
        is_missing(&error);
        assert!(!error.is_retryable());
        assert_eq!([a.count(), b.count(), c.count()], [1, 1, 0]);
        assert_eq!(client.stats().not_found, 2);
    }

    #[tokio::test]
    async fn a_spurious_404_does_not_hide_the_blob() {
        let data = blob(100);
        let (a, b) = (
            Hostile::always(missing()).await,
            Hostile::always(answer("200 OK", &[], &data)).await,
        );
        assert_eq!(client(reader(&[&a, &b])).read(ID).await.unwrap(), data);
    }

    #[tokio::test]
    async fn the_only_aggregator_is_asked_twice_past_its_cache() {
        let only = Hostile::always(missing()).await;
        let error = client(reader(&[&only])).read(ID).await.unwrap_err();
        is_missing(&error);
        let targets: Vec<_> = only.seen().into_iter().map(|s| s.target).collect();
        let plain = format!("/v1/blobs/{ID}");
        assert_eq!(
            targets,
            [
                plain.clone(),
                format!("{plain}?skip_consistency_check=false")
            ]
        );

        let data = blob(10);
        let cached = Hostile::start({
            let data = data.clone();
            move |seen| match seen.target.contains('?') {
                false => Act::Say(missing()),
                true => Act::Say(answer("200 OK", &[], &data)),
            }
        })
        .await;
        assert_eq!(client(reader(&[&cached])).read(ID).await.unwrap(), data);

        // An aggregator before 1.36 does not know the parameter.
        let old = Hostile::start(|seen| match seen.target.contains('?') {
            false => Act::Say(missing()),
            true => Act::Say(answer("400 Bad Request", &[], "unknown field")),
        })
        .await;
        let error = client(reader(&[&old])).read(ID).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BlobNotFound, "{error}");
    }

    #[tokio::test]
    async fn one_says_404_and_the_other_is_down() {
        let only = Hostile::always(missing()).await;
        let dead = format!("http://127.0.0.1:{}", closed_port().await);
        let client = client(quick().with_aggregators(vec![dead, only.url()]));
        let error = client.read(ID).await.unwrap_err();
        is_missing(&error);
        assert!(error.is_retryable(), "the other one may have it");
        assert!(error.message().contains("refused"), "{error}");
        assert_eq!(only.count(), 2);
    }

    #[tokio::test]
    async fn own_blobs_get_time() {
        let data = blob(100);
        let publisher = Hostile::always(newly_created(ID)).await;
        let first = Hostile::start({
            let data = data.clone();
            move |seen| match seen.number {
                0..=3 => Act::Say(missing()),
                _ => Act::Say(serve_blob(seen, &data)),
            }
        })
        .await;
        let never = Hostile::always(missing()).await;
        let client = client(
            reader(&[&first, &never])
                .with_publishers(vec![publisher.url()])
                .with_max_retries(0)
                .with_not_found_backoff(vec![ms(20); 4]),
        );
        client.store(blob(100), OPTIONS).await.unwrap();
        assert_eq!(first.count() + never.count(), 0, "nothing is probed");
        let start = Instant::now();
        assert_eq!(client.read_range(ID, 0, 100).await.unwrap(), data);
        assert!(start.elapsed() >= ms(80));
        assert_eq!((first.count(), never.count()), (5, 4));
        let targets: Vec<_> = never.seen().into_iter().map(|s| s.target).collect();
        let unique: std::collections::HashSet<_> = targets.iter().collect();
        assert_eq!(unique.len(), 4, "each past the cache: {targets:?}");

        // Quilt members count as the quilt; another blob is not our own.
        let before = never.count();
        assert!(client.read_patch(PATCH, &check_ok).await.is_ok());
        let error = client.read(OTHER).await;
        assert!(error.is_ok() && never.count() == before);
    }

    #[tokio::test]
    async fn own_blobs_do_not_get_for_ever() {
        let publisher = Hostile::always(newly_created(ID)).await;
        let never = Hostile::always(missing()).await;
        let client = client(reader(&[&never]).with_publishers(vec![publisher.url()]));
        client.store(blob(100), OPTIONS).await.unwrap();
        let error = client.read(ID).await.unwrap_err();
        is_missing(&error);
        assert!(error.is_retryable());
        assert_eq!(never.count(), 5);
    }

    #[tokio::test]
    async fn a_404_that_is_not_walrus_proves_nothing() {
        for (text, says) in [
            (answer("404 Not Found", &[], ""), "wrong base URL"),
            (
                answer("404 Not Found", &[], "<html><title>404</title>"),
                "HTML page (404)",
            ),
        ] {
            let (a, b) = (
                Hostile::always(text.clone()).await,
                Hostile::always(text).await,
            );
            let error = client(reader(&[&a, &b])).read(ID).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Walrus, "{error}");
            assert!(error.message().contains(says), "{error}");
            assert_eq!((a.count(), b.count()), (1, 1));
        }
    }
}

mod slow {
    use super::*;

    /// Answers `well` requests, then hangs.
    async fn then_hangs(well: usize, data: &[u8]) -> Hostile {
        let data = data.to_vec();
        Hostile::start(move |seen| match seen.number < well {
            true => Act::Say(serve_blob(seen, &data)),
            false => Act::Hang,
        })
        .await
    }

    #[tokio::test]
    async fn an_aggregator_that_is_slower_than_usual_is_overtaken() {
        let data = blob(500);
        let (slow, good) = (then_hangs(5, &data).await, then_hangs(1000, &data).await);
        let client = client(reader(&[&slow, &good]));
        for n in 0..5 {
            client.read_range(ID, n, 5).await.unwrap();
        }
        let got = client.read_range(ID, 7, 5).await.unwrap();
        assert_eq!(got, data[7..12]);
        // A busy machine may be slow by itself, and another read may have been hedged before.
        assert!(client.stats().hedges >= 1);
        // The client does not ask it first again at once.
        let before = (slow.count(), good.count());
        client.read_range(ID, 8, 5).await.unwrap();
        assert_eq!((slow.count(), good.count()), (before.0, before.1 + 1));
    }

    #[tokio::test]
    async fn few_reads_are_asked_of_two() {
        let data = blob(500);
        let (slow, other) = (then_hangs(0, &data).await, then_hangs(0, &data).await);
        let config = reader(&[&slow, &other])
            .with_request_timeout(ms(4000))
            .with_max_retries(0)
            // Bad records do not last.
            .with_cool_down(ms(1));
        let client = client(config);
        let reads = (0..20).map(|n| client.read_range(ID, n, 5));
        for read in futures_util::future::join_all(reads).await {
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Walrus);
        }
        let stats = client.stats();
        assert_eq!(
            (stats.hedges, stats.hedge_wins),
            (3, 0),
            "one, and one in ten"
        );
        assert_eq!(slow.count() + other.count(), 40);
    }

    #[tokio::test]
    async fn the_only_aggregator_is_waited_for() {
        let data = blob(500);
        let slow = then_hangs(1, &data).await;
        let client = client(
            reader(&[&slow])
                .with_request_timeout(ms(300))
                .with_max_retries(0),
        );
        client.read_range(ID, 0, 5).await.unwrap();
        client.read_range(ID, 0, 5).await.unwrap_err();
        assert_eq!((client.stats().hedges, slow.count()), (0, 2));
    }
}
