//! The admin endpoints, data on disk, and the binary.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;
use serde_json::Value;
use walrus_devnet::{BlobId, Options, Stats};

#[test]
fn what_is_stored_can_be_seen_and_changed() {
    let net = start();
    let url = net.url();
    let id = put(&url, "/v1/blobs?epochs=3", &pattern(1000)).blob_id();
    let list = get(&url, "/admin/blobs").json();
    assert_eq!(list[0]["blob_id"], id);
    assert_eq!(
        (&list[0]["size"], &list[0]["end_epoch"]),
        (&1000.into(), &4.into())
    );
    assert_eq!(list[0]["registrations"][0]["deletable"], true);
    assert_eq!(get(&url, &format!("/admin/blobs/{id}")).json(), list[0]);

    get_with(&url, &format!("/v1/blobs/{id}"), &[("range", "bytes=0-9")]);
    let stats: Stats = serde_json::from_value(get(&url, "/admin/stats").json()).unwrap();
    assert_eq!((stats.puts, stats.gets, stats.range_gets), (1, 1, 1));
    assert_eq!(
        (stats.bytes_in, stats.stored_blobs, stats.stored_bytes),
        (1000, 1, 1000)
    );
    assert!(stats.bytes_out > 10);
    assert_eq!(stats, net.stats(), "the admin's own requests do not count");

    let advance = send(&url, "POST", "/admin/epoch/advance?by=2", &[], b"");
    assert_eq!(advance.json()["epoch"], 3);
    let headers = [("content-type", "application/json")];
    send(&url, "POST", "/admin/epoch", &headers, br#"{"epoch":10}"#);
    assert_eq!(
        (
            net.epoch(),
            get(&url, "/admin/epoch").json()["epoch"].as_u64()
        ),
        (10, Some(10))
    );

    // Bytes that contradict the ID.
    let raw = send(
        &url,
        "PUT",
        &format!("/admin/blobs/{id}?epochs=5"),
        &[],
        b"something else",
    );
    assert_eq!(raw.status, 200);
    assert_eq!(
        get(&url, &format!("/v1/blobs/{id}")).text(),
        "something else"
    );
    assert_eq!(
        send(&url, "DELETE", &format!("/admin/blobs/{id}"), &[], b"").status,
        200
    );
    assert_eq!(
        send(&url, "DELETE", &format!("/admin/blobs/{id}"), &[], b"").status,
        404
    );
    assert_eq!(get(&url, &format!("/v1/blobs/{id}")).status, 404);

    let computed = send(&url, "POST", "/admin/blob-id", &[], &pattern(1000)).json();
    assert_eq!(computed["blob_id"], id);
    send(&url, "PUT", &format!("/admin/blocklist/{id}"), &[], b"");
    assert_eq!(put(&url, "/v1/blobs", &pattern(1000)).status, 451);
    assert_eq!(send(&url, "POST", "/admin/reset", &[], b"").status, 200);
    assert_eq!(net.stats(), Stats::default());
    assert_eq!(net.epoch(), 1);
    assert_eq!(put(&url, "/v1/blobs", &pattern(1000)).status, 200);
}

#[test]
fn a_blocking_devnet_stops_when_dropped() {
    let net = start();
    let url = net.url();
    assert_eq!(get(&url, "/status").status, 200);
    drop(net);
    assert!(try_send(&url, "GET", "/status", &[], None).is_err());
}

#[test]
fn data_survives_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let options = || Options {
        data: Some(root.path().to_owned()),
        ..Options::default()
    };
    let data = pattern(5000);
    let (id, lost, object);
    {
        let net = start_with(options());
        let answer = put(&net.url(), "/v1/blobs?epochs=9&permanent=true", &data);
        id = answer.blob_id();
        object = answer.json()["newlyCreated"]["blobObject"]["id"].clone();
        lost = put(&net.url(), "/v1/blobs?epochs=9", b"deleted").blob_id();
        net.delete_blob(&lost.parse().unwrap());
        net.advance_epoch(4);
        let path = format!("/v1/blobs/{id}");
        assert_eq!(get(&net.url(), &path).body, data);
    }
    // A torn line and a stray file, as a kill may leave them.
    let journal = root.path().join("journal.jsonl");
    let mut text = std::fs::read_to_string(&journal).unwrap();
    text.push_str("{\"register\":{\"blob_id\":");
    std::fs::write(&journal, text).unwrap();
    std::fs::write(root.path().join("blobs/stray.1.tmp"), b"x").unwrap();

    let net = start_with(options());
    assert_eq!(net.epoch(), 5);
    assert_eq!(net.blobs().len(), 1);
    let path = format!("/v1/blobs/{id}");
    let range = get_with(&net.url(), &path, &[("range", "bytes=100-4999")]);
    assert_eq!((range.status, range.body), (206, data[100..].to_vec()));
    let by_object = format!("/v1/blobs/by-object-id/{}", object.as_str().unwrap());
    assert_eq!(get(&net.url(), &by_object).body, data);
    let again = put(&net.url(), "/v1/blobs?epochs=5&permanent=true", &data).json();
    assert_eq!(again["alreadyCertified"]["endEpoch"], 10);
    assert!(net.content(&lost.parse::<BlobId>().unwrap()).is_none());
    assert!(!root.path().join("blobs/stray.1.tmp").exists());
    drop(net);

    // A content that went missing takes its blob with it.
    for entry in std::fs::read_dir(root.path().join("blobs")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert!(start_with(options()).blobs().is_empty());
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(data: &Path, more: &[&str]) -> (Process, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_walrus-devnet"))
        .args(["--listen", "127.0.0.1:0", "--shards", "100", "--data"])
        .arg(data)
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line
        .trim_end()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    (Process(child), url)
}

#[test]
fn the_binary_survives_a_kill() {
    let root = tempfile::tempdir().unwrap();
    let port_file = root.path().join("port");
    let port = port_file.to_str().unwrap();
    let (mut process, url) = run(root.path(), &["--port-file", port]);
    let written = std::fs::read_to_string(&port_file).unwrap();
    assert!(url.ends_with(&format!(":{}", written.trim())));
    let ids: Vec<String> = (0..5u8)
        .map(|i| put(&url, "/v1/blobs", &[i; 300]).blob_id())
        .collect();
    process.0.kill().unwrap(); // SIGKILL
    process.0.wait().unwrap();
    drop(process);

    let (process, url) = run(root.path(), &["--quiet"]);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(get(&url, &format!("/v1/blobs/{id}")).body, [i as u8; 300]);
    }
    let list: Value = get(&url, "/admin/blobs").json();
    assert_eq!(list.as_array().unwrap().len(), 5);

    // SIGTERM ends it in good order.
    let mut process = process;
    let id = process.0.id().to_string();
    assert!(Command::new("kill")
        .args(["-TERM", &id])
        .status()
        .unwrap()
        .success());
    assert!(process.0.wait().unwrap().success());
}
