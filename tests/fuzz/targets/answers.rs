//! Answers of publishers and aggregators, down to the byte.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use once_cell::sync::Lazy;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use walrusds::{BlobStore, Client, ClientConfig, StoreOptions};

use super::Input;

/// The stored blob: an answer is right if it gives these bytes.
const BLOB: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const BLOB_ID: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Answers every request with the contents of ANSWER, and closes.
static SERVER: Lazy<String> = Lazy::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that goes away is no failure.
            let _ = stream.and_then(answer);
        }
    });
    url
});

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let asked = loop {
        let head = request.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let sent = text.split("content-length: ").nth(1);
            let sent = sent
                .and_then(|n| n.lines().next()?.parse().ok())
                .unwrap_or(0);
            if request.len() >= head + 4 + sent {
                break true;
            }
        }
        match stream.read(&mut buffer)? {
            0 => break false,
            n => request.extend_from_slice(&buffer[..n]),
        }
    };
    if asked {
        let text = ANSWER.lock().clone();
        stream.write_all(&text)?;
    }
    Ok(())
}

static RUNTIME: Lazy<Runtime> = Lazy::new(|| {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().unwrap()
});

/// For any answer of a server, the client returns the right bytes or an error, and no attempt
/// lasts.
pub fn answers_of_servers(data: &[u8]) {
    let mut input = Input(data);
    let what = input.byte() % 4;
    let (offset, len) = (input.byte() % 70, input.byte() % 70);
    let whole = input.flag();
    let mut text = Vec::new();
    if whole {
        text = input.rest().to_vec();
    } else {
        let status = input.pick(&[
            200, 206, 400, 403, 404, 413, 416, 429, 500, 503, 504, 301, 204,
        ]);
        text.extend_from_slice(format!("HTTP/1.1 {status} x\r\n").as_bytes());
        let form = input.byte();
        let headers = input.piece();
        text.extend_from_slice(headers);
        if !headers.is_empty() {
            text.extend_from_slice(b"\r\n");
        }
        let body = input.rest();
        match form % 4 {
            0 | 1 => {
                text.extend_from_slice(
                    format!("content-length: {}\r\n\r\n", body.len()).as_bytes(),
                );
                text.extend_from_slice(body);
            }
            2 => {
                let chunk = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
                text.extend_from_slice(chunk.as_bytes());
                text.extend_from_slice(body);
                text.extend_from_slice(b"\r\n0\r\n\r\n");
            }
            _ => {
                text.extend_from_slice(b"\r\n");
                text.extend_from_slice(body);
            }
        }
    }
    *ANSWER.lock() = text;

    let client = Client::new(
        ClientConfig::default()
            .with_publishers(vec![SERVER.clone()])
            .with_aggregators(vec![SERVER.clone()])
            .with_request_timeout(Duration::from_millis(500))
            .with_max_retries(u32::from(whole))
            .with_backoff_base(Duration::from_millis(1))
            .with_backoff_max(Duration::from_millis(1))
            .with_retry_after_max(Duration::from_millis(1))
            .with_not_found_backoff(Vec::new())
            .with_max_blob_bytes(1 << 20),
    );
    // The methods of the store trait, which check the bytes that they return, not the client's own.
    let client: &dyn BlobStore = &client.unwrap();
    let exact = |expected: &'static [u8]| {
        move |bytes: &[u8]| {
            if bytes == expected {
                Ok(())
            } else {
                Err("wrong bytes".to_owned())
            }
        }
    };
    let work = async {
        if what == 0 {
            let options = StoreOptions::new(1);
            if let Ok(stored) = client.store(BLOB.into(), options).await {
                let id = stored.blob_id;
                let in_alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                assert!(
                    id.len() == 43 && id.bytes().all(in_alphabet),
                    "stored as {id:?}"
                );
            }
        } else if what == 1 {
            if let Ok(read) = client.read(BLOB_ID, &exact(BLOB)).await {
                assert_eq!(read, BLOB);
            }
        } else if what == 2 {
            let patch = "A".repeat(50);
            if let Ok(read) = client.read_patch(&patch, &exact(BLOB)).await {
                assert_eq!(read, BLOB);
            }
        } else {
            let (from, to) = (usize::from(offset), usize::from(offset) + usize::from(len));
            let expected = BLOB.get(from..to).unwrap_or(b"nothing is there");
            let check = |bytes: &[u8]| {
                assert_eq!(bytes.len(), usize::from(len), "other than asked for");
                exact(expected)(bytes)
            };
            let read = client.read_range(BLOB_ID, offset.into(), len.into(), &check);
            if let Ok(read) = read.await {
                assert!(len == 0 || read == expected);
            }
        }
    };
    let patience = Duration::from_secs(20);
    let ended = RUNTIME.block_on(async { tokio::time::timeout(patience, work).await });
    ended.expect("a request that does not end");
}
