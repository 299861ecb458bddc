//! A client for exact requests and exact answers, without hidden steps.
#![allow(dead_code, missing_docs)] // every test file uses a part of it

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use walrus_devnet::{BlockingDevnet, Devnet, Options};

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended where the headers said.
    pub complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, v)| v.as_str());
        assert!(found.next().is_none(), "{name} twice");
        value
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{}",
            self.text()
        );
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and reason of an error in the JSON envelope.
    #[track_caller]
    pub fn reason(&self) -> (u16, String) {
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["code"], self.status);
        assert_eq!(error["details"][0]["@type"], "ErrorInfo");
        assert_eq!(error["details"][0]["metadata"], serde_json::json!({}));
        let reason = error["details"][0]["reason"].as_str().unwrap();
        (self.status, reason.to_owned())
    }

    /// The blob ID in the answer to a successful PUT.
    #[track_caller]
    pub fn blob_id(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        let json = self.json();
        let id = json["newlyCreated"]["blobObject"]["blobId"].as_str();
        id.or(json["alreadyCertified"]["blobId"].as_str())
            .unwrap_or_else(|| panic!("{json}"))
            .to_owned()
    }
}

pub fn try_send(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> io::Result<Answer> {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or(&[]))?;
    read_answer(&mut stream, method == "HEAD")
}

pub fn read_answer(stream: &mut TcpStream, head_only: bool) -> io::Result<Answer> {
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") else {
        ended?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let head = String::from_utf8(all[..at].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let raw = all.split_off(at + 4);
    let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v);
    let (body, complete) = if get("transfer-encoding").is_some() {
        unchunk(&raw)
    } else {
        let declared: Option<usize> = get("content-length").map(|v| v.parse().unwrap());
        let complete = head_only || declared.is_none_or(|len| len == raw.len());
        (raw, complete && ended.is_ok())
    };
    Ok(Answer {
        status: status.parse().unwrap(),
        headers,
        body,
        complete,
    })
}

fn unchunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(at) = raw.windows(2).position(|w| w == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&raw[..at]).unwrap(), 16).unwrap();
        raw = &raw[at + 2..];
        if len == 0 {
            return (body, true);
        }
        if raw.len() < len + 2 {
            break;
        }
        body.extend_from_slice(&raw[..len]);
        raw = &raw[len + 2..];
    }
    (body, false)
}

pub fn send(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_send(url, method, path, headers, Some(body)).unwrap()
}

pub fn get(url: &str, path: &str) -> Answer {
    try_send(url, "GET", path, &[], None).unwrap()
}

pub fn get_with(url: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    try_send(url, "GET", path, headers, None).unwrap()
}

pub fn put(url: &str, path: &str, body: &[u8]) -> Answer {
    send(url, "PUT", path, &[], body)
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 3) as u8).collect()
}

/// A devnet with few shards, so that IDs are true but cheap.
pub fn start() -> BlockingDevnet {
    start_with(Options::default())
}

pub fn start_with(options: Options) -> BlockingDevnet {
    Devnet::start_blocking(Options {
        shards: 100,
        ..options
    })
    .unwrap()
}

/// A quilt form and its content type.
pub fn form(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, data) in parts {
        body.extend_from_slice(
            format!(
                "--XX\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n"
            )
            .as_bytes(),
        );
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    ("multipart/form-data; boundary=XX".to_owned(), body)
}
