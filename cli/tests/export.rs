//! `export` as an operator runs it: what is in the CAR files, and what is left when blocks are
//! missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use cid::Cid;
use serde_json::{json, Value};
use testkit::mem::{key_of, noise};
use walrus_devnet::{Devnet, FaultAction, FaultPlan, FaultRule, Op as Http, Options};
use walrusds::{Config, DeletedQuery, Op, WalrusDatastore};

mod schema;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;

/// A program's end.
struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    #[track_caller]
    fn result(&self, code: i32) -> Value {
        let out = String::from_utf8_lossy(&self.out);
        assert_eq!(self.code, code, "{out}\n{}", self.err);
        let json: Value = serde_json::from_slice(&self.out).expect(&out);
        schema::saw(&json);
        json["result"].clone()
    }
}

struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    config: Config,
}

impl Repo {
    /// A repo whose packs hold about ten blocks of 10,000 bytes.
    async fn new() -> Repo {
        let options = Options {
            cheap_ids: true,
            ..Options::default()
        };
        let net = Devnet::start(options).await.expect("local Walrus");
        let dir = tempfile::tempdir().unwrap();
        let url = net.url();
        let mut spec = json!({
            "publisherURL": url, "aggregatorURL": url, "indexPath": "index.sqlite", "maxRetries": 0,
            "epochDurationSeconds": 86_400, "epochs": 5, "packTargetSizeBytes": 110_000,
        });
        let config = Config::from_json(&spec.to_string()).unwrap();
        spec["type"] = json!("walrusds");
        spec["mountpoint"] = json!("/blocks");
        let kubo =
            json!({"Identity": {}, "Datastore": {"Spec": {"type": "mount", "mounts": [spec]}}});
        std::fs::write(dir.path().join("config"), kubo.to_string()).unwrap();
        Repo { net, dir, config }
    }

    async fn put(&self, blocks: &[Block]) {
        let node = WalrusDatastore::open(self.config.clone(), self.dir.path());
        let node = node.await.unwrap();
        for some in blocks.chunks(10) {
            let puts = some
                .iter()
                .map(|b| Op::Put(key_of(&b.bytes), b.bytes.clone()));
            node.commit(puts.collect()).await.unwrap();
        }
        node.close().await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_walrusds"))
            .arg("export")
            .args(args)
            .env_clear()
            .env("IPFS_PATH", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("the program");
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// One of the blobs is gone.
    fn lose_a_blob(&self) {
        let blob = self.net.blobs()[0].blob_id;
        let rule = FaultRule::new(FaultAction::NotFound)
            .on(Http::READS)
            .of(blob);
        self.net.set_faults(FaultPlan::from(rule));
    }
}

#[derive(Clone)]
struct Block {
    cid: Cid,
    bytes: Bytes,
}

fn block(codec: u64, bytes: Bytes) -> Block {
    let hash = data_encoding::BASE32_NOPAD
        .decode(&key_of(&bytes).as_bytes()[1..])
        .unwrap();
    let hash = cid::multihash::Multihash::from_bytes(&hash).unwrap();
    let cid = Cid::new_v1(codec, hash);
    Block { cid, bytes }
}

fn leaf(seed: u64) -> Block {
    block(RAW, noise(seed, 10_000))
}

/// A dag-pb node with links to these blocks.
fn node(children: &[&Block]) -> Block {
    let mut bytes = Vec::new();
    for child in children {
        let cid = child.cid.to_bytes();
        bytes.extend([0x12, cid.len() as u8 + 2, 0x0a, cid.len() as u8]);
        bytes.extend(cid);
    }
    bytes.extend([0x0a, 2, 8, 1]);
    block(DAG_PB, bytes.into())
}

/// A DAG of three levels, depth first: one of its leaves is linked twice.
fn dag() -> Vec<Block> {
    let leaves: Vec<Block> = (0..40).map(leaf).collect();
    let mut below = Vec::new();
    let mut nodes = Vec::new();
    for part in leaves.chunks(10) {
        let mut links: Vec<&Block> = part.iter().collect();
        links.push(&leaves[0]);
        let node = node(&links);
        below.push(node.clone());
        below.extend_from_slice(part);
        nodes.push(node);
    }
    let root = node(&nodes.iter().collect::<Vec<_>>());
    [vec![root], below].concat()
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// The roots (as CIDs) and sections of a CARv1, with the places of these; `None` if it is cut.
#[allow(clippy::type_complexity)]
fn car(whole: &[u8]) -> (Vec<u8>, Option<Vec<(usize, Cid, Bytes)>>) {
    let mut rest = whole;
    let len = varint(&mut rest) as usize;
    let (header, mut rest) = rest.split_at(len);
    let mut sections = Vec::new();
    while !rest.is_empty() {
        let at = whole.len() - rest.len();
        let len = varint(&mut rest) as usize;
        if rest.len() < len {
            return (header.to_vec(), None);
        }
        let (mut section, after) = rest.split_at(len);
        rest = after;
        let cid = Cid::read_bytes(&mut section).unwrap();
        let bytes = Bytes::copy_from_slice(section);
        assert_eq!(block(cid.codec(), bytes.clone()).cid, cid);
        sections.push((at, cid, bytes));
    }
    (header.to_vec(), Some(sections))
}

/// The header of a CARv1 with these roots, as DAG-CBOR has it.
fn header(roots: &[Cid]) -> Vec<u8> {
    let mut out = b"\xa2\x65roots".to_vec();
    out.push(0x80 + roots.len() as u8);
    for root in roots {
        let bytes = root.to_bytes();
        out.extend([0xd8, 42, 0x58, bytes.len() as u8 + 1, 0]);
        out.extend(bytes);
    }
    out.extend(b"\x67version\x01");
    out
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .filter(|name| name.contains(".car"))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dag_is_written_depth_first_and_each_block_once() {
    let repo = Repo::new().await;
    let dag = dag();
    let other = leaf(1_000);
    repo.put(&dag).await;
    repo.put(std::slice::from_ref(&other)).await;
    let root = dag[0].cid.to_string();
    let single = other.cid.to_string();
    let result = repo
        .run(&[&root, &single, "-o", "a.car", "--json"])
        .result(0);
    assert_eq!(result["complete"], true);
    assert_eq!(result["blocks"], 46);
    assert_eq!(result["files"], json!(["a.car"]));
    let bytes = std::fs::read(repo.path("a.car")).unwrap();
    assert_eq!(result["car_bytes"], bytes.len());
    let (found, sections) = car(&bytes);
    assert_eq!(found, header(&[dag[0].cid, other.cid]));
    let order: Vec<Cid> = sections.unwrap().iter().map(|(_, cid, _)| *cid).collect();
    let expected: Vec<Cid> = dag.iter().chain([&other]).map(|b| b.cid).collect();
    assert_eq!(order, expected);

    // Version 2: the same, with an index of the places of its sections.
    let v2 = repo.run(&[&root, "-o", "b.car", "--car-version", "2"]);
    assert_eq!(v2.code, 0, "{}", v2.err);
    let bytes = std::fs::read(repo.path("b.car")).unwrap();
    assert_eq!(&bytes[..11], b"\x0a\xa1\x67version\x02");
    assert_eq!(bytes[11], 0x80, "the index holds all sections");
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (data, len, index) = (number(27), number(35), number(43));
    assert_eq!((data, index), (51, 51 + len));
    let (_, sections) = car(&bytes[data..index]);
    let places: BTreeMap<Vec<u8>, usize> = sections
        .unwrap()
        .iter()
        .map(|(at, cid, _)| (cid.hash().digest().to_vec(), *at))
        .collect();
    assert_eq!(places.len(), dag.len());
    let entries = &bytes[index + 2 + 4 + 8 + 4 + 4 + 8..];
    let indexed: BTreeMap<Vec<u8>, usize> = entries
        .chunks(40)
        .map(|entry| {
            let at = u64::from_le_bytes(entry[32..].try_into().unwrap());
            (entry[..32].to_vec(), at as usize)
        })
        .collect();
    assert_eq!(indexed, places);

    // Standard output has the CAR and nothing else.
    let piped = repo.run(&[&root, "-o", "-"]);
    assert_eq!(piped.code, 0, "{}", piped.err);
    assert_eq!(car(&piped.out).1.unwrap().len(), dag.len());
    assert!(piped.err.contains("45, 392.5 KiB"), "{}", piped.err);
    assert_eq!(names(repo.dir.path()), ["a.car", "b.car"]);
}

/// `ipfs add --inline --inline-limit` takes up to 128 bytes; the crate's own CID ends at 64.
#[tokio::test(flavor = "multi_thread")]
async fn a_dag_with_blocks_in_its_cids_is_written_whole() {
    let repo = Repo::new().await;
    let (below, beside) = (leaf(1), leaf(2));
    let cid = below.cid.to_bytes();
    let link = [&[0x0a, cid.len() as u8][..], &cid].concat();
    let inner = [&[0x12, link.len() as u8][..], &link, &[0x0a, 38], &[7; 38]].concat();
    assert_eq!(inner.len(), 80);
    let identity = |codec, block: &[u8]| {
        let hash = cid::multihash::Multihash::wrap(0, block).unwrap();
        cid::CidGeneric::<128>::new_v1(codec, hash).to_bytes()
    };
    let mut bytes = Vec::new();
    let links = [
        identity(DAG_PB, &inner),
        identity(RAW, &[7; 120]),
        beside.cid.to_bytes(),
    ];
    for cid in links {
        // Lengths of 128 and more take two bytes.
        let len = |n: usize| [n as u8 | 0x80, (n >> 7) as u8];
        bytes.push(0x12);
        bytes.extend(len(cid.len() + 3));
        bytes.push(0x0a);
        bytes.extend(len(cid.len()));
        bytes.extend(cid);
    }
    let root = block(DAG_PB, bytes.into());
    repo.put(&[root.clone(), below.clone(), beside.clone()])
        .await;
    let name = root.cid.to_string();
    let result = repo.run(&[&name, "-o", "a.car", "--json"]).result(0);
    assert_eq!(result["complete"], true);
    let (_, sections) = car(&std::fs::read(repo.path("a.car")).unwrap());
    let order: Vec<Cid> = sections.unwrap().iter().map(|(_, cid, _)| *cid).collect();
    assert_eq!(order, [root.cid, below.cid, beside.cid]);
    // The list of all blocks labels it as a node, and a root may be inlined too.
    let all = repo.run(&["--all", "-o", "out", "--json"]).result(0);
    assert_eq!(all["blocks"], 3);
    assert!(written(&repo.path("out")).contains_key(&root.cid));
    let hash = cid::multihash::Multihash::wrap(0, &inner).unwrap();
    let inline = cid::CidGeneric::<128>::new_v1(DAG_PB, hash).to_string();
    let result = repo.run(&[&inline, "-o", "b.car", "--json"]).result(0);
    assert_eq!(
        (&result["complete"], &result["blocks"]),
        (&json!(true), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dag_with_missing_blocks_leaves_no_file_that_looks_whole() {
    let repo = Repo::new().await;
    let dag = dag();
    // One leaf was never stored.
    let lost = dag[30].cid;
    let stored: Vec<Block> = dag.iter().filter(|b| b.cid != lost).cloned().collect();
    repo.put(&stored).await;
    let root = dag[0].cid.to_string();
    let result = repo.run(&[&root, "-o", "a.car", "--json"]).result(3);
    assert_eq!(result["complete"], false);
    assert_eq!(result["missing_blocks"], json!([lost.to_string()]));
    assert_eq!(result["files"], json!([]));
    assert!(names(repo.dir.path()).is_empty());
    let text = repo.run(&[&root, "-o", "a.car"]);
    let out = String::from_utf8_lossy(&text.out).into_owned();
    assert_eq!(text.code, 3);
    for part in ["1 block is missing", &lost.to_string(), "No whole CAR"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // A stream is cut, so that no importer takes it for a whole one.
    let piped = repo.run(&[&root, "-o", "-"]);
    assert_eq!(piped.code, 3);
    assert_eq!(car(&piped.out).1.map(|sections| sections.len()), None);
    // What is there can be had all the same.
    let partial = repo
        .run(&[&root, "-o", "a.car", "--partial", "--json"])
        .result(3);
    assert_eq!(
        (&partial["complete"], &partial["blocks"]),
        (&json!(false), &json!(44))
    );
    let (_, sections) = car(&std::fs::read(repo.path("a.car")).unwrap());
    assert_eq!(sections.unwrap().len(), 44);
    // A blob that is gone makes its blocks unreadable.
    let rule = FaultRule::new(FaultAction::NotFound).on(Http::READS);
    repo.net.set_faults(FaultPlan::from(rule));
    let gone = repo.run(&[&root, "-o", "b.car", "--json"]).result(3);
    assert_eq!(gone["unread"], 1, "{gone}");
    assert_eq!(names(repo.dir.path()), ["a.car"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_written_into_bounded_files() {
    let repo = Repo::new().await;
    let blocks: Vec<Block> = (0..300)
        .map(|seed| block(RAW, noise(seed, 10_000)))
        .collect();
    let nodes: Vec<Block> = blocks
        .chunks(50)
        .map(|part| node(&part.iter().collect::<Vec<_>>()))
        .collect();
    let all = [blocks, nodes].concat();
    repo.put(&all).await;
    let args = ["--all", "-o", "out", "--max-bytes", "1048576"];
    let result = repo.run(&[&args[..], &["--json"]].concat()).result(0);
    let files = result["files"].as_array().unwrap();
    assert!(files.len() >= 3, "{result}");
    assert_eq!(result["blocks"], all.len());
    let read = || {
        let mut found = BTreeMap::new();
        for name in names(&repo.path("out")) {
            let bytes = std::fs::read(repo.path("out").join(name)).unwrap();
            let (roots, sections) = car(&bytes);
            assert_eq!(roots, header(&[]));
            let sections = sections.unwrap();
            assert!(sections.iter().map(|(.., b)| b.len()).sum::<usize>() <= 1 << 20);
            for (_, cid, bytes) in sections {
                assert!(found.insert(cid, bytes).is_none(), "{cid} twice");
            }
        }
        found
    };
    let expected: BTreeMap<Cid, Bytes> = all.iter().map(|b| (b.cid, b.bytes.clone())).collect();
    assert!(read() == expected);
    // The directory is whole; nothing is added to it.
    let again = repo.run(&args);
    assert_eq!(again.code, 2);
    assert!(again.err.contains("holds a whole export"), "{}", again.err);

    // As after an interruption: the list has one file, and the others are made anew.
    let list = repo.path("out/walrusds-export.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    state["whole"] = json!(false);
    state["files"].as_array_mut().unwrap().truncate(1);
    std::fs::write(&list, state.to_string()).unwrap();
    for name in &names(&repo.path("out"))[1..] {
        std::fs::remove_file(repo.path("out").join(name)).unwrap();
    }
    let first = std::fs::metadata(repo.path("out/000001.car")).unwrap();
    let resumed = repo.run(&[&args[..], &["--json"]].concat()).result(0);
    assert_eq!(resumed["blocks"], all.len());
    assert!(read() == expected);
    let now = std::fs::metadata(repo.path("out/000001.car")).unwrap();
    assert_eq!(now.modified().unwrap(), first.modified().unwrap());

    // As after a crash between a file and its place in the list.
    let mut state: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    state["whole"] = json!(false);
    state["files"].as_array_mut().unwrap().truncate(1);
    std::fs::write(&list, state.to_string()).unwrap();
    let resumed = repo.run(&[&args[..], &["--json"]].concat()).result(0);
    assert_eq!(resumed["blocks"], all.len());

    // A file that the list names is gone: its blocks are written again.
    let mut state: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    state["whole"] = json!(false);
    std::fs::write(&list, state.to_string()).unwrap();
    std::fs::remove_file(repo.path("out/000002.car")).unwrap();
    let resumed = repo.run(&[&args[..], &["--json"]].concat()).result(0);
    assert_eq!(resumed["blocks"], all.len());
    let files = resumed["files"].as_array().unwrap().iter();
    let mut found = BTreeMap::new();
    for file in files {
        let bytes = std::fs::read(repo.path(file.as_str().unwrap())).unwrap();
        let sections = car(&bytes).1.unwrap();
        found.extend(sections.into_iter().map(|(_, cid, bytes)| (cid, bytes)));
    }
    assert!(found == expected);
}

/// The blocks of all files of an export.
fn written(dir: &Path) -> BTreeMap<Cid, Bytes> {
    let mut found = BTreeMap::new();
    for name in names(dir) {
        let bytes = std::fs::read(dir.join(name)).unwrap();
        let sections = match bytes.starts_with(b"\x0a\xa1\x67version\x02") {
            true => {
                let len = u64::from_le_bytes(bytes[35..43].try_into().unwrap()) as usize;
                car(&bytes[51..51 + len]).1
            }
            false => car(&bytes).1,
        };
        found.extend(sections.unwrap().into_iter().map(|(_, cid, b)| (cid, b)));
    }
    found
}

/// What could not be read is tried again by the same command, in both versions of the files.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_with_unread_blocks_is_not_whole() {
    let repo = Repo::new().await;
    let all: Vec<Block> = (0..60).map(leaf).collect();
    repo.put(&all).await;
    let expected: BTreeMap<Cid, Bytes> = all.iter().map(|b| (b.cid, b.bytes.clone())).collect();
    for version in ["1", "2"] {
        repo.lose_a_blob();
        let dir = format!("lossy{version}");
        let args = ["--all", "-o", &dir, "--car-version", version, "--json"];
        let lossy = repo.run(&args).result(3);
        let unread = lossy["unread"].as_u64().unwrap();
        assert!(unread > 0);
        assert_eq!(lossy["blocks"].as_u64().unwrap() + unread, 60);
        assert_eq!(lossy["complete"], false);
        let again = repo.run(&args).result(3);
        assert_eq!(again["unread"], unread);
        let text = repo.run(&args[..5]);
        let text = String::from_utf8_lossy(&text.out).into_owned();
        assert!(text.contains("The export is not whole"), "{text}");
        repo.net.clear_faults();
        let mended = repo.run(&args).result(0);
        assert_eq!(
            (&mended["blocks"], &mended["unread"]),
            (&json!(60), &json!(0))
        );
        assert!(written(&repo.path(&dir)) == expected);
        assert_eq!(repo.run(&args).code, 2, "it is whole now");
    }
}

/// A block that was deleted while its blob was read, and has come back into that blob.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_came_back_into_a_blob_that_was_read_is_written() {
    let mut repo = Repo::new().await;
    let json = format!(
        r#"{{"publisherURL":"{0}","aggregatorURL":"{0}","indexPath":"index.sqlite","maxRetries":0,
            "epochDurationSeconds":86400,"epochs":5,"packTargetSizeBytes":110000,"keepDeletedSeconds":86400}}"#,
        repo.net.url()
    );
    repo.config = Config::from_json(&json).unwrap();
    let all: Vec<Block> = (0..30).map(leaf).collect();
    repo.put(&all).await;
    let node = WalrusDatastore::open(repo.config.clone(), repo.dir.path());
    let node = node.await.unwrap();
    let gone = Op::Delete(key_of(&all[5].bytes));
    node.commit(vec![gone]).await.unwrap();
    node.close().await.unwrap();
    let args = ["--all", "-o", "out", "--json"];
    assert_eq!(repo.run(&args).result(0)["blocks"], 29);
    // As after an interruption.
    let list = repo.path("out/walrusds-export.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    state["whole"] = json!(false);
    std::fs::write(&list, state.to_string()).unwrap();
    let stored = repo.net.stats().stored_blobs;
    repo.put(&all[5..6]).await;
    assert_eq!(repo.net.stats().stored_blobs, stored, "it has come back");
    assert_eq!(repo.run(&args).result(0)["blocks"], 30);
    let expected: BTreeMap<Cid, Bytes> = all.iter().map(|b| (b.cid, b.bytes.clone())).collect();
    assert!(written(&repo.path("out")) == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_exports_do_not_write_the_same_file() {
    let repo = Repo::new().await;
    repo.put(&[leaf(1)]).await;
    let cid = leaf(1).cid.to_string();
    // As a running export holds it.
    let other = std::fs::File::create(repo.path("a.car.incomplete")).unwrap();
    other.lock().unwrap();
    let busy = repo.run(&[&cid, "-o", "a.car"]);
    assert_eq!(busy.code, 4, "{}", busy.err);
    let part = "another export writes this file";
    assert!(busy.err.contains(part), "{}", busy.err);
    assert!(repo.path("a.car.incomplete").exists());
    drop(other);
    assert_eq!(repo.run(&[&cid, "-o", "a.car"]).code, 0);
    assert_eq!(names(repo.dir.path()), ["a.car"]);

    std::fs::create_dir(repo.path("out")).unwrap();
    let other = std::fs::File::create(repo.path("out/LOCK")).unwrap();
    other.lock().unwrap();
    let busy = repo.run(&["--all", "-o", "out"]);
    assert_eq!(busy.code, 4, "{}", busy.err);
    let part = "another export writes into this directory";
    assert!(busy.err.contains(part), "{}", busy.err);
    drop(other);
    assert_eq!(repo.run(&["--all", "-o", "out"]).code, 0);
}

/// A blob that an earlier run has read may hold more when the run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_brought_back_is_written_by_the_run_that_goes_on() {
    let mut repo = Repo::new().await;
    repo.config.keep_deleted = std::time::Duration::from_secs(3600);
    let blocks: Vec<Block> = (0..8).map(|n| block(RAW, noise(n, 10_000))).collect();
    repo.put(&blocks).await;
    let deleted = key_of(&blocks[3].bytes);
    let node = WalrusDatastore::open(repo.config.clone(), repo.dir.path());
    let node = node.await.unwrap();
    node.delete(&deleted).await.unwrap();
    let args = ["--all", "-o", "out", "--json"];
    assert_eq!(repo.run(&args).result(0)["blocks"], 7);
    let list = repo.path("out/walrusds-export.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    state["whole"] = json!(false);
    std::fs::write(&list, state.to_string()).unwrap();
    node.undelete(&DeletedQuery::default()).await.unwrap();
    node.close().await.unwrap();
    repo.run(&args).result(0);
    let mut found = BTreeSet::new();
    for name in names(&repo.path("out")) {
        let bytes = std::fs::read(repo.path("out").join(name)).unwrap();
        let sections = car(&bytes).1.unwrap();
        found.extend(sections.into_iter().map(|(_, cid, _)| cid));
    }
    assert_eq!(found, blocks.iter().map(|b| b.cid).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_refused_before_anything_is_written() {
    let repo = Repo::new().await;
    repo.put(&[leaf(1)]).await;
    let cid = leaf(1).cid.to_string();
    let key = key_of(&leaf(1).bytes);
    std::fs::write(repo.path("there.car"), b"x").unwrap();
    for (args, part) in [
        (vec![&*cid, "-o", "there.car"], "of this name already"),
        (vec![&*cid, "-o", "-", "--json"], "--json and the CAR"),
        (
            vec![&*cid, "-o", "-", "--car-version", "2"],
            "version 2 cannot",
        ),
        (vec![&*key, "-o", "k.car"], "is no CID"),
        (vec!["--all", "-o", "-"], "name a directory"),
        (
            vec!["--all", "-o", "d", "--max-bytes", "5"],
            "at least 1048576",
        ),
        (vec!["--all", &*cid, "-o", "d"], "cannot be used with"),
        (vec!["-o", "d"], "required"),
    ] {
        let ran = repo.run(&args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert_eq!(std::fs::read(repo.path("there.car")).unwrap(), b"x");
    let nowhere = repo.run(&[&cid, "-o", "no/such/dir.car"]);
    assert_eq!(nowhere.code, 1, "{}", nowhere.err);
    assert!(
        nowhere.err.contains("dir.car.incomplete"),
        "{}",
        nowhere.err
    );
    assert_eq!(names(repo.dir.path()), ["there.car"]);
}
