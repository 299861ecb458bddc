//! The program as an operator runs it: on a local Walrus, with both indexes, beside a running
//! datastore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use serde_json::{json, Value};
use testkit::mem::{key_of, noise};
use testkit::postgres::{Postgres, GO_STAGING};
use walrus_devnet::{Devnet, FaultAction, FaultRule, Options};
use walrusds::{Config, Op, WalrusDatastore};

mod schema;

/// An hour is longer than a test: a blob is due by the settings of a test, and not by the clock.
const EPOCH: u64 = 3600;

struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    spec: Value,
}

/// An outcome of the program.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: &Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The result of a run with `--json` that ended with this code.
    #[track_caller]
    fn result(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        let json: Value = serde_json::from_str(&self.out).expect(&self.out);
        assert_eq!(json["schema"], 1);
        schema::saw(&json);
        json["result"].clone()
    }

    /// The error of a run that ended with this code. docs/command.md has it in its table.
    #[track_caller]
    fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        assert!(
            documented(&self.err),
            "docs/command.md does not have this error: {}",
            self.err
        );
        &self.err
    }

    /// The text of a run that ended with this code.
    #[track_caller]
    fn text(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        &self.out
    }
}

impl Repo {
    /// A repo with the config of a Kubo node.
    async fn new(index: Value) -> Repo {
        let options = Options {
            cheap_ids: true,
            ..Options::default()
        };
        let net = Devnet::start(options).await.expect("local Walrus");
        let url = net.url();
        let mut spec = json!({
            "type": "walrusds", "publisherURL": url, "aggregatorURL": url, "epochs": 5,
            "epochDurationSeconds": EPOCH, "keepDeletedSeconds": 86_400,
        });
        for (key, value) in index.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let repo = Repo {
            net,
            dir: tempfile::tempdir().unwrap(),
            spec,
        };
        repo.write_config();
        repo
    }

    async fn sqlite() -> Repo {
        Repo::new(json!({"indexPath": "index.sqlite"})).await
    }

    async fn postgres() -> Repo {
        let pg = Postgres::shared();
        Repo::new(json!({"postgresURL": pg.url(&pg.database())})).await
    }

    fn write_config(&self) {
        let child =
            json!({"type": "measure", "prefix": "w", "mountpoint": "/blocks", "child": self.spec});
        let level = json!({"type": "levelds", "path": "datastore", "mountpoint": "/"});
        let spec = json!({"type": "mount", "mounts": [child, level]});
        let config = json!({"Identity": {}, "Datastore": {"Spec": spec}});
        std::fs::write(self.dir.path().join("config"), config.to_string()).unwrap();
    }

    async fn open(&self, extra: Value) -> WalrusDatastore {
        let mut spec = self.spec.clone();
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let config = Config::from_json(&spec.to_string()).unwrap();
        WalrusDatastore::open(config, self.dir.path())
            .await
            .unwrap()
    }

    /// A node stores blocks, and makes a round of renewal, which notes the epoch.
    async fn with_epoch(&self, blocks: &[(String, Bytes)]) {
        let node = self.open(json!({"renewIntervalSeconds": 1})).await;
        put(&node, blocks).await;
        let config = Config::from_json(&self.spec.to_string()).unwrap();
        let look = walrusds::datastore::Inspection::open(config, self.dir.path());
        let look = look.await.unwrap();
        let until = std::time::Instant::now() + testkit::PATIENCE;
        while look.last_round().await.unwrap().is_none() {
            assert!(std::time::Instant::now() < until, "no round was made");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        look.close().await.unwrap();
        node.close().await.unwrap();
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let mut command = program();
        command.env("IPFS_PATH", self.dir.path()).args(args);
        let output = tokio::task::spawn_blocking(move || command.output());
        Ran::of(&output.await.unwrap().unwrap())
    }

    async fn json(&self, args: &[&str]) -> Ran {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.run(&args).await
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Whether the table of errors in docs/command.md has this one. An ellipsis in it stands for any
/// text.
fn documented(error: &str) -> bool {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, table) = text.split_once("\n## Errors\n").unwrap();
    let rows = table.lines().take_while(|line| !line.starts_with("## "));
    let mut errors = rows.filter_map(|row| row.strip_prefix("| `")?.split("` |").next());
    errors.any(|row| {
        let mut rest = error;
        row.split('…')
            .all(|part| match rest.split_once(part.trim()) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
    })
}

/// The program, with nothing of the environment of the tests.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrusds"));
    command
        .env_clear()
        .env("COLUMNS", "80")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Ran {
    Ran::of(&program().args(args).output().unwrap())
}

fn block(seed: u64) -> (String, Bytes) {
    let value = noise(seed, 1000);
    (key_of(&value), value)
}

fn blocks(seeds: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    seeds.map(block).collect()
}

async fn put(node: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    let puts = blocks.iter().map(|(k, v)| Op::Put(k.clone(), v.clone()));
    node.commit(puts.collect()).await.unwrap();
}

async fn all_read(node: &WalrusDatastore, blocks: &[(String, Bytes)]) {
    for (key, value) in blocks {
        assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
    }
}

/// A CID of a block (raw, or a dag-pb node).
fn cid(codec: u64, block: &[u8]) -> cid::Cid {
    let key = key_of(block);
    let hash = data_encoding::BASE32_NOPAD
        .decode(&key.as_bytes()[1..])
        .unwrap();
    cid::Cid::new_v1(codec, cid::multihash::Multihash::from_bytes(&hash).unwrap())
}

/// A dag-pb node with links to raw blocks.
fn node_of(children: &[(String, Bytes)]) -> (String, Bytes) {
    let mut node = Vec::new();
    for (_, value) in children {
        let hash = cid(0x55, value).to_bytes();
        node.extend([0x12, hash.len() as u8 + 2, 0x0a, hash.len() as u8]);
        node.extend(hash);
    }
    node.extend([0x0a, 2, 8, 1]);
    (key_of(&node), node.into())
}

/// Every file below a directory, but for SQLite's shared memory.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else if !path.to_string_lossy().ends_with("-shm") {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_shown_beside_a_running_node_and_nothing_changes() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        repo.with_epoch(&blocks(0..20)).await;
        let node = repo.open(json!({"journalPath": "journal"})).await;
        let before = tree(repo.dir.path());
        let result = repo.json(&["status"]).await.result(0);
        assert_eq!(
            (&result["blocks"], &result["bytes"]),
            (&json!(20), &json!(20_000))
        );
        assert_eq!(result["ledger"]["blobs"], 1);
        assert_eq!(result["forecast"].as_array().unwrap().len(), 10);
        assert_eq!(result["findings"], json!([]));
        assert_eq!(result["no_node"], "not running");
        let text = repo.run(&[]).await;
        let text = text.text(0);
        assert!(text.contains("20, 19.5 KiB, in 1 blob"), "{text}");
        assert!(text.contains("Nothing needs your attention"), "{text}");
        assert_eq!(
            text.lines().take_while(|line| !line.is_empty()).count(),
            10,
            "{text}"
        );
        let full = repo.run(&["status"]).await;
        assert!(full.text(0).contains("What ends when"), "{}", full.out);
        assert!(
            full.out.lines().all(|line| line.chars().count() <= 160),
            "{}",
            full.out
        );
        assert_eq!(tree(repo.dir.path()), before);
        // The node goes on as before.
        put(&node, &blocks(50..51)).await;
        node.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_about_to_lapse_is_found() {
    let repo = Repo::sqlite().await;
    repo.with_epoch(&blocks(0..3)).await;
    // Five epochs were bought: a fifth of a lead of thirty holds them.
    let lead = format!("renewLeadSeconds={}", 30 * EPOCH);
    let result = repo.json(&["status", "--set", &lead]).await.result(3);
    let finding = &result["findings"][0];
    assert_eq!(
        (&finding["id"], &finding["severity"]),
        (&json!("renewal-late"), &json!("error"))
    );
    let text = repo.run(&["--set", &lead]).await;
    assert!(
        text.text(3).contains("error: 1 blob is within a fifth"),
        "{}",
        text.out
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_shown_and_renewed_on_demand() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        let all = blocks(0..10);
        // Without an epoch there is no plan, and the error says what to do.
        let node = repo.open(json!({})).await;
        put(&node, &all).await;
        node.close().await.unwrap();
        let ran = repo.json(&["plan"]).await;
        ran.error(1);
        let error: Value = serde_json::from_str(&ran.out).unwrap();
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("present epoch"),
            "{error}"
        );
        schema::saw(&error);

        repo.with_epoch(&blocks(10..11)).await;
        let result = repo.json(&["plan"]).await.result(0);
        assert_eq!(result["decisions"], json!([]));
        // A lead of six epochs makes all due, and nine are bought.
        let lead = format!("renewLeadSeconds={}", 6 * EPOCH);
        let due = ["--set", &lead, "--set", "epochs=9"];
        let with = |verb: &'static str| -> Vec<&str> { [verb].into_iter().chain(due).collect() };
        let result = repo.json(&with("plan")).await.result(0);
        assert_eq!(result["decisions"].as_array().unwrap().len(), 2);
        // Two small blobs cost less as one.
        assert_eq!(result["decisions"][0]["action"], "repack");
        let stored = repo.net.stats().puts;
        let dry = repo.run(&with("renew")).await;
        assert!(dry.text(0).contains("Nothing was done"), "{}", dry.out);
        assert_eq!(repo.net.stats().puts, stored);

        let yes: Vec<&str> = with("renew").into_iter().chain(["--yes"]).collect();
        let result = repo.json(&yes).await.result(0);
        assert_eq!(
            (&result["applied"], &result["done"]["repacked"]),
            (&json!(true), &json!(2))
        );
        assert_eq!(result["done"]["failed"], 0);
        let result = repo.json(&with("plan")).await.result(0);
        assert_eq!(
            result["totals"]["all"]["frost"], 0,
            "what was renewed is no longer due"
        );
        let node = repo.open(json!({})).await;
        all_read(&node, &all).await;
        node.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_does_not_know_the_epoch_is_not_fine() {
    let repo = Repo::sqlite().await;
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..3)).await;
    node.close().await.unwrap();
    let blind = repo.run(&["renew", "--yes"]).await;
    let told = "as far as the ends of storage are known";
    assert!(blind.text(3).contains(told), "{}", blind.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_waits_for_the_node_that_makes_one() {
    let repo = Repo::sqlite().await;
    repo.with_epoch(&blocks(0..2)).await;
    let node = repo.open(json!({})).await;
    let index =
        walrusds::index::sqlite::SqliteIndex::open(walrusds::index::sqlite::SqliteOptions::new(
            repo.dir.path().join("index.sqlite"),
            "walrus_index",
        ));
    let index = index.await.unwrap();
    let hour = std::time::Duration::from_secs(3600);
    use walrusds::{Index as _, Leases as _};
    assert!(index.try_lease("renewal", "another", hour).await.unwrap());
    let ran = repo.json(&["renew", "--yes"]).await;
    assert!(ran.error(4).contains("another node renews"));
    index.release_lease("renewal", "another").await.unwrap();
    let result = repo.json(&["renew", "--yes"]).await.result(0);
    assert_eq!(result["done"]["renewed"], 0);
    // The lease was given back.
    assert!(index.try_lease("renewal", "another", hour).await.unwrap());
    index.close().await.unwrap();
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_blobs_are_repacked_on_demand() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        let all = blocks(0..20);
        repo.with_epoch(&all).await;
        let node = repo.open(json!({})).await;
        let gone = all[5..].iter().map(|(key, _)| Op::Delete(key.clone()));
        node.commit(gone.collect()).await.unwrap();
        let result = repo.json(&["repack"]).await.result(0);
        let sparse = &result["sparse"];
        assert_eq!(
            (&sparse["live_blocks"], &sparse["units_now"]),
            (&json!(5), &json!(63))
        );
        assert!(sparse["frost"].as_u64().unwrap() > 0);
        let text = repo.run(&["repack"]).await;
        assert!(text.text(0).contains("Nothing was done"), "{}", text.out);
        let none = repo.run(&["repack", "--waste", "99"]).await;
        assert_eq!(none.text(0), "No blob wastes 99 % or more.\n");

        let result = repo.json(&["repack", "--yes"]).await.result(0);
        assert_eq!(result["done"]["repacked"], 1);
        all_read(&node, &all[..5]).await;
        node.close().await.unwrap();
        assert_eq!(repo.net.blobs().len(), 2);
        let none = repo.run(&["repack"]).await;
        assert!(none.text(0).starts_with("No blob wastes"), "{}", none.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_blocks_come_back() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        let all = blocks(0..6);
        let node = repo.open(json!({"blobCacheBytes": -1})).await;
        put(&node, &all).await;
        let gone = all.iter().map(|(key, _)| Op::Delete(key.clone()));
        node.commit(gone.collect()).await.unwrap();
        assert_eq!(repo.run(&["undelete"]).await.code, 2);
        let result = repo.json(&["undelete", "--since", "1h"]).await.result(0);
        assert_eq!(result["found"], json!({"blocks": 6, "bytes": 6000}));
        let result = repo.json(&["undelete", &all[0].0]).await.result(0);
        assert_eq!(result["found"]["blocks"], 1);
        let none = repo.run(&["undelete", "--until", "2001-01-01"]).await;
        assert_eq!(none.text(0), "No deleted block meets this.\n");
        assert!(!node.has(&all[0].0).await.unwrap());
        let seen = repo.json(&["inspect", &all[0].0]).await.result(3);
        assert_eq!(
            (&seen["block"]["place"], &seen["block"]["deleted"]["bytes"]),
            (&Value::Null, &json!(1000))
        );

        let result = repo.json(&["undelete", &all[0].0, "--yes"]).await.result(0);
        assert_eq!(result["back"]["blocks"], 1);
        let rest = repo.run(&["undelete", "--all", "--yes"]).await;
        assert!(rest.text(0).starts_with("back: 5 blocks"), "{}", rest.out);
        node.close().await.unwrap();
        let node = repo.open(json!({})).await;
        all_read(&node, &all).await;
        assert_eq!(node.disk_usage().await.unwrap().blocks, 6);
        node.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_blobs_and_dags_are_inspected() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        let leaves = blocks(0..4);
        let root = node_of(&leaves);
        let name = cid(0x70, &root.1).to_string();
        repo.with_epoch(&leaves).await;
        let node = repo.open(json!({})).await;
        put(&node, std::slice::from_ref(&root)).await;

        let key = &leaves[0].0;
        let result = repo.json(&["inspect", key]).await.result(0);
        let blob_id = result["block"]["place"]["blob_id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(result["block"]["blob"]["live_blocks"], 4);
        let bare = repo
            .json(&["inspect", &cid(0x55, &leaves[0].1).to_string()])
            .await
            .result(0);
        assert_eq!(bare["block"]["key"], json!(key));
        let result = repo.json(&["inspect", &blob_id]).await.result(0);
        assert_eq!(
            (&result["blob"]["units"], &result["blob"]["format"]),
            (&json!(63), &json!("car"))
        );
        let text = repo.run(&["inspect", &blob_id]).await;
        assert!(
            text.text(0).contains("4 live blocks, 3.9 KiB"),
            "{}",
            text.out
        );
        let unknown = "M".repeat(42) + "A";
        repo.json(&["inspect", &unknown]).await.result(3);
        repo.json(&["inspect", &block(99).0]).await.result(3);

        let result = repo.json(&["inspect", "-r", &name]).await.result(0);
        let dag = &result["dag"];
        assert_eq!(
            (&dag["complete"], &dag["blocks"]),
            (&json!(true), &json!(5))
        );
        assert_eq!(dag["blobs"].as_array().unwrap().len(), 2);
        assert_eq!(dag["units"], 126);
        assert!(dag["first_end"]["epoch"].as_i64().unwrap() > 0);
        let text = repo.run(&["inspect", "-r", &name]).await;
        assert!(text.text(0).contains("all of it is there"), "{}", text.out);

        node.delete(&leaves[3].0).await.unwrap();
        let result = repo.json(&["inspect", "-r", &name]).await.result(3);
        assert_eq!(result["dag"]["missing_keys"], json!([leaves[3].0]));
        // The blob of the root is gone, so the walk cannot know the blocks below it.
        let lost = repo.json(&["inspect", &root.0]).await.result(0);
        let lost = lost["block"]["place"]["blob_id"]
            .as_str()
            .unwrap()
            .to_owned();
        node.close().await.unwrap();
        assert!(repo.net.delete_blob(&lost.parse().unwrap()));
        let result = repo.json(&["inspect", "-r", &name]).await.result(3);
        assert_eq!(
            (&result["dag"]["unread"], &result["dag"]["blocks"]),
            (&json!(1), &json!(1))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dag_is_forgotten_but_for_what_pins_need() {
    let repo = Repo::sqlite().await;
    let leaves = blocks(0..6);
    let (mine, other) = (node_of(&leaves[..4]), node_of(&leaves[3..]));
    let node = repo.open(json!({})).await;
    put(&node, &leaves).await;
    put(&node, &[mine.clone(), other.clone()]).await;
    let name = cid(0x70, &mine.1).to_string();
    assert_eq!(
        repo.run(&["forget", &name]).await.code,
        2,
        "pins must be named"
    );
    let pins = format!(
        "{} recursive\n{} direct\n",
        cid(0x70, &other.1),
        cid(0x55, &leaves[0].1)
    );
    let pins = repo.file("pins", &pins);
    let args = ["forget", &name, "--keep-pinned", &pins];
    let result = repo.json(&args).await.result(0);
    assert_eq!(
        (&result["blocks"], &result["kept"], &result["deleted"]),
        (&json!(5), &json!(2), &json!(3))
    );
    all_read(&node, &leaves).await;

    let yes: Vec<&str> = args.into_iter().chain(["--yes"]).collect();
    assert_eq!(repo.json(&yes).await.result(0)["applied"], true);
    node.close().await.unwrap();
    let node = repo.open(json!({})).await;
    assert_eq!(node.disk_usage().await.unwrap().blocks, 5);
    all_read(
        &node,
        &[
            leaves[0].clone(),
            leaves[3].clone(),
            leaves[5].clone(),
            other.clone(),
        ],
    )
    .await;
    assert!(!node.has(&leaves[1].0).await.unwrap() && !node.has(&mine.0).await.unwrap());

    // The root is gone, so what lies below it is not found.
    for args in [&args[..], &yes[..]] {
        let again = repo.json(args).await.result(3);
        assert_eq!(again["complete"], false);
    }

    // A pin of which a part is missing may need anything.
    node.delete(&leaves[5].0).await.unwrap();
    node.close().await.unwrap();
    let name = cid(0x55, &leaves[4].1).to_string();
    let refused = repo
        .run(&["forget", &name, "--keep-pinned", &pins, "--yes"])
        .await;
    assert!(refused.error(1).contains("not known completely"));
    let forced = repo.run(&["forget", &name, "--no-pins", "--yes"]).await;
    assert!(
        forced.text(0).contains("deleted        1"),
        "{}",
        forced.out
    );
}

/// What lies below a block of an unknown codec may need any block, also if the block is known as a
/// leaf, or lies in its CID.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_of_an_unknown_codec_is_never_taken_for_known() {
    const DAG_JSON: u64 = 0x0129;
    let repo = Repo::sqlite().await;
    let leaves = blocks(0..2);
    let node = repo.open(json!({})).await;
    put(&node, &leaves).await;
    node.close().await.unwrap();
    let leaf = cid(0x55, &leaves[0].1);
    let inline = |codec, block| {
        let hash = cid::multihash::Multihash::wrap(0, block).unwrap();
        cid::Cid::new_v1(codec, hash)
    };
    let name = cid(0x55, &leaves[1].1).to_string();
    for (unknown, n) in [
        (format!("{leaf}\n{}", cid(DAG_JSON, &leaves[0].1)), 1),
        (format!("{leaf}\n{}", inline(DAG_JSON, b"{}")), 2),
        (format!("{leaf}\n{}", inline(0x70, b"no dag-pb")), 3),
    ] {
        let pins = repo.file("pins", &unknown);
        let refused = repo
            .run(&["forget", &name, "--keep-pinned", &pins, "--yes"])
            .await;
        let text = refused.error(1);
        assert!(text.contains("not known completely"), "{n}: {text}");
    }
    let node = repo.open(json!({})).await;
    all_read(&node, &leaves).await;
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_a_misspelt_index_makes_none() {
    let repo = Repo::sqlite().await;
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..1)).await;
    node.close().await.unwrap();
    let args = ["repair", "--yes", "--set", "indexPath=indeks.sqlite"];
    let refused = repo.run(&args).await;
    assert!(refused.error(1).contains("cannot be used"));
    assert!(!repo.dir.path().join("indeks.sqlite").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_filled_again() {
    let repo = Repo::sqlite().await;
    let all = blocks(0..8);
    let node = repo.open(json!({})).await;
    put(&node, &all).await;
    node.close().await.unwrap();
    let list: Vec<String> = repo
        .net
        .blobs()
        .iter()
        .map(|blob| blob.blob_id.to_string())
        .collect();
    let list = repo.file("list", &list.join("\n"));
    for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(repo.dir.path().join(file));
    }
    assert_eq!(repo.run(&["rebuild-index"]).await.code, 2);
    let looked = repo.json(&["rebuild-index", &list]).await.result(0);
    assert_eq!(
        (&looked["blobs"], &looked["state"]),
        (&json!(1), &Value::Null)
    );
    assert!(
        !repo.dir.path().join("index.sqlite").exists(),
        "nothing was made"
    );
    // What is there and cannot be opened is no index that is missing.
    repo.file(
        "other.sqlite",
        "this is no database, and longer than the head of one",
    );
    for place in [".", "other.sqlite"] {
        let place = format!("indexPath={place}");
        let args = ["rebuild-index", &list, "--set", &place];
        let refused = repo.run(&args).await;
        assert_eq!(refused.code, 1, "{place}: {}", refused.out);
        assert!(refused.err.contains("indexPath"), "{}", refused.err);
    }
    let result = repo
        .json(&["rebuild-index", &list, "--yes"])
        .await
        .result(0);
    assert_eq!(
        (&result["state"], &result["done"]["added"]["blocks"]),
        (&json!("complete"), &json!(8))
    );
    let again = repo.run(&["rebuild-index", &list, "--yes"]).await;
    assert!(
        again.text(0).contains("8 blocks found, 0 rows added"),
        "{}",
        again.out
    );
    let node = repo.open(json!({})).await;
    all_read(&node, &all).await;
    node.close().await.unwrap();
    let bad = repo.file("bad", "not an id\n");
    let refused = repo.run(&["rebuild-index", &bad]).await;
    assert!(refused.error(1).contains("number 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_blocks_of_a_go_node_are_adopted() {
    let repo = Repo::postgres().await;
    repo.open(json!({})).await.close().await.unwrap();
    let url = repo.spec["postgresURL"].as_str().unwrap();
    let db = url
        .rsplit('/')
        .next()
        .unwrap()
        .split('?')
        .next()
        .unwrap()
        .to_owned();
    let pg = Postgres::shared();
    pg.execute(&db, GO_STAGING);
    let none = repo.run(&["adopt-staging"]).await;
    assert_eq!(none.text(0), "No Go node has left blocks behind.\n");
    let (key, value) = block(7);
    let hex = data_encoding::HEXLOWER.encode(&value);
    pg.execute(
        &db,
        &format!(
            "INSERT INTO walrus_index_staging (key, value, size, created_at)
             VALUES ('{key}', '\\x{hex}', 1000, now() - interval '3 hours')"
        ),
    );
    let status = repo.json(&["status"]).await.result(3);
    let ids: Vec<&Value> = status["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| &f["id"])
        .collect();
    assert!(ids.contains(&&json!("staged")), "{ids:?}");
    let young = repo
        .json(&["adopt-staging", "--older-than", "1day"])
        .await
        .result(0);
    assert_eq!(young["left"]["blocks"], 0);
    let left = repo.json(&["adopt-staging"]).await.result(0);
    assert_eq!(left["left"], json!({"blocks": 1, "bytes": 1000}));
    let result = repo.json(&["adopt-staging", "--yes"]).await.result(0);
    assert_eq!(result["stored"]["blocks"], 1);
    let node = repo.open(json!({})).await;
    all_read(&node, &[(key, value)]).await;
    node.close().await.unwrap();

    let lite = Repo::sqlite().await;
    lite.open(json!({})).await.close().await.unwrap();
    let refused = lite.run(&["adopt-staging"]).await;
    assert!(refused.error(1).contains("only an index in Postgres"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_with_blocks_in_its_journal_is_found() {
    let journal = json!({
        "journalPath": "journal", "packIdleFlushSeconds": 3600, "packMaxAgeSeconds": 3600, "drainTimeoutSeconds": 0,
    });
    for mut repo in [Repo::sqlite().await, Repo::postgres().await] {
        for (key, value) in journal.as_object().unwrap() {
            repo.spec[key] = value.clone();
        }
        repo.write_config();
        let node = repo.open(json!({})).await;
        put(&node, &blocks(0..3)).await;
        node.close().await.unwrap();
        let result = repo.json(&["status"]).await.result(0);
        let seen = &result["nodes"][0];
        assert_eq!(
            (&seen["closed"], &seen["journal"]["blocks"]),
            (&json!(true), &json!(3)),
            "{result}"
        );
        let text = repo.run(&["status"]).await;
        let row = "3 blocks, 2.9 KiB";
        assert!(text.text(0).contains(row), "{}", text.out);
        let name = seen["node"].as_str().unwrap().to_owned();

        // Some hours later, as the note would say.
        let config = Config::from_json(&repo.spec.to_string()).unwrap();
        let (index, note) = (
            index_of(&config, repo.dir.path()).await,
            format!("node:{name}"),
        );
        let text = index.note(&note).await.unwrap().unwrap();
        let mut noted: Value = serde_json::from_str(&text).unwrap();
        noted["at"] = json!(noted["at"].as_u64().unwrap() - 5 * 3600);
        index
            .set_note(&note, Some(&noted.to_string()))
            .await
            .unwrap();
        index.close().await.unwrap();
        let result = repo.json(&["status"]).await.result(3);
        assert_eq!(result["findings"][0]["id"], "node-gone", "{result}");
        let what = result["findings"][0]["what"].as_str().unwrap();
        assert!(
            what.contains("5 h ago") && what.contains("3 blocks"),
            "{what}"
        );

        let unknown = repo.run(&["forget-node", "no-such", "--yes"]).await;
        unknown.error(1);
        let looked = repo.json(&["forget-node", &name[..6]]).await.result(0);
        assert_eq!(looked["applied"], false);
        let result = repo.json(&["status"]).await.result(3);
        assert_eq!(result["nodes"].as_array().unwrap().len(), 1);
        let text = repo.run(&["forget-node", &name, "--yes"]).await;
        assert!(text.text(0).contains("It is forgotten"), "{}", text.out);
        let result = repo.json(&["status"]).await.result(0);
        assert_eq!(result["nodes"], json!([]));

        // The journal keeps its blocks, and the node its name.
        let node = repo.open(json!({"drainTimeoutSeconds": 600})).await;
        all_read(&node, &blocks(0..3)).await;
        node.close().await.unwrap();
        let result = repo.json(&["status"]).await.result(0);
        assert_eq!(result["nodes"][0]["node"], json!(name));
        assert_eq!(result["nodes"][0]["journal"]["blocks"], 0);
    }
}

/// The index of a configuration, as a node has it.
async fn index_of(config: &Config, repo: &Path) -> std::sync::Arc<dyn walrusds::Index> {
    use walrusds::config::IndexConfig;
    use walrusds::index::{postgres, sqlite};
    if let IndexConfig::Postgres(url) = &config.index {
        let options = postgres::PostgresOptions::new(url, &config.table);
        return std::sync::Arc::new(postgres::PostgresIndex::open(options).await.unwrap());
    }
    let options = sqlite::SqliteOptions::new(repo.join("index.sqlite"), &config.table);
    std::sync::Arc::new(sqlite::SqliteIndex::open(options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_comes_from_a_file_or_the_environment() {
    let repo = Repo::sqlite().await;
    repo.open(json!({})).await.close().await.unwrap();
    let settings = repo.file("settings.json", &repo.spec.to_string());
    let from_file = run(&["status", "--config", &settings, "--json"]);
    assert_eq!(from_file.result(0)["config"], json!(settings));
    let index = repo.dir.path().join("index.sqlite");
    let url = repo.net.url();
    let mut command = program();
    command
        .env("WALRUSDS_PUBLISHER_URL", &url)
        .env("WALRUSDS_AGGREGATOR_URL", &url)
        .env("WALRUSDS_INDEX_PATH", &index)
        .args(["status", "--json", "--set", "epochDurationSeconds=3600"]);
    let ran = Ran::of(&command.output().unwrap());
    assert_eq!(ran.result(0)["config"], "the environment (WALRUSDS_*)");

    // A misspelt repo does not fall back to another datastore; IPFS_PATH alone may.
    let absent = repo.dir.path().join("misspelt");
    let in_environment = || {
        let mut command = program();
        command
            .env("WALRUSDS_PUBLISHER_URL", &url)
            .env("WALRUSDS_AGGREGATOR_URL", &url)
            .env("WALRUSDS_INDEX_PATH", &index)
            .env("IPFS_PATH", &absent);
        command
    };
    for before in [true, false] {
        let mut command = in_environment();
        let (named, absent) = (["--repo"], absent.to_str().unwrap());
        match before {
            true => command.args(named).arg(absent).arg("status"),
            false => command.arg("status").args(named).arg(absent),
        };
        let misspelt = Ran::of(&command.output().unwrap());
        let error = misspelt.error(1);
        assert!(error.contains("where there is no config"), "{error}");
        assert!(error.contains(absent), "{error}");
    }
    let mut command = in_environment();
    command.args(["status", "--json", "--set", "epochDurationSeconds=3600"]);
    let ran = Ran::of(&command.output().unwrap());
    assert_eq!(ran.result(0)["config"], "the environment (WALRUSDS_*)");

    // Nothing comes from the environment where --set gives all.
    let mut command = program();
    command
        .arg("--repo")
        .arg(&absent)
        .args(["status", "--json"]);
    for (name, value) in [
        ("publisherURL", &*url),
        ("aggregatorURL", &*url),
        ("indexPath", index.to_str().unwrap()),
        ("epochDurationSeconds", "3600"),
    ] {
        command.args(["--set", &format!("{name}={value}")]);
    }
    Ran::of(&command.output().unwrap()).result(0);

    let none = run(&["status", "--json"]);
    assert!(none.error(1).contains("no configuration was found"));
    let error: Value = serde_json::from_str(&none.out).unwrap();
    assert_eq!(
        (&error["command"], &error["error"]["kind"]),
        (&json!("status"), &json!("Failed"))
    );
    let wrong = repo.run(&["status", "--set", "epoch=5"]).await;
    assert!(wrong.error(1).contains("did you mean \"epochs\""));
    let twice = json!({"Datastore": {"Spec": {"mounts": [repo.spec, repo.spec]}}});
    repo.file("config", &twice.to_string());
    repo.run(&["status"]).await.error(1);
    let other = repo.file("config", r#"{"Datastore": {"Spec": {"type": "flatfs"}}}"#);
    let refused = repo.run(&["status"]).await;
    let error = refused.error(1);
    assert!(
        error.contains(&other) && error.contains("does not use walrusds"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_is_an_error_and_is_not_made() {
    let repo = Repo::sqlite().await;
    for args in [
        &["status"][..],
        &["renew", "--yes"],
        &["undelete", "--all", "--yes"],
    ] {
        let ran = repo.run(args).await;
        assert!(ran.error(1).contains("index.sqlite"), "{}", ran.err);
    }
    assert!(!repo.dir.path().join("index.sqlite").exists());
}

#[test]
fn a_wrong_command_line_is_told_from_an_error() {
    for args in [
        &["statsu"][..],
        &["inspect"],
        &["inspect", "hello"],
        &["inspect", "-r", "/CIQX"],
        &["undelete", "--since", "yesterday"],
        &["repack", "--waste", "200"],
        &["status", "--set", "epochs"],
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--set", "table=t"]).collect();
        let ran = run(&args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(
            ran.err.len() > 20 && ran.out.is_empty(),
            "{args:?}: {}",
            ran.err
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_signal_and_a_closed_pipe_is_no_error() {
    use std::io::BufRead as _;
    let repo = Repo::sqlite().await;
    repo.open(json!({})).await.close().await.unwrap();
    for signal in ["INT", "TERM"] {
        let mut child = program()
            .env("IPFS_PATH", repo.dir.path())
            .args(["status", "--watch", "1", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        // Two looks: it goes on.
        for _ in 0..2 {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(line["command"], "status");
        }
        let id = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(killed.unwrap().success());
        drop(lines);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let mut child = program()
        .env("IPFS_PATH", repo.dir.path())
        .args(["status", "--watch", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_round_says_how_to_go_on_and_gives_the_lease_back() {
    let repo = Repo::sqlite().await;
    let all = blocks(0..2);
    repo.with_epoch(&all).await;
    let lead = format!("renewLeadSeconds={}", 6 * EPOCH);
    let args = [
        "renew", "--yes", "--json", "--set", &lead, "--set", "epochs=9",
    ];
    repo.net.set_faults(FaultRule::new(FaultAction::Hang));
    let child = program()
        .env("IPFS_PATH", repo.dir.path())
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let at_work = || repo.net.stats().faulted > 0;
    testkit::eventually("the round reads its first blob", at_work).await;
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-s", "INT", &id]).status();
    assert!(killed.unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let ran = Ran::of(&ended.await.unwrap().unwrap());
    assert_eq!(ran.code, 130, "{}\n{}", ran.out, ran.err);
    assert!(
        ran.err.contains("run walrusds renew --yes again"),
        "{}",
        ran.err
    );
    let error: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(error["error"]["kind"], "Interrupted");
    schema::saw(&error);

    repo.net.clear_faults();
    let result = repo.run(&args).await.result(0);
    // A blob that is repacked alone, and wastes nothing, keeps its ID: its end alone changes.
    let turn = "the lease is free, and the blob has its turn";
    assert_eq!(result["done"]["stores"], 1, "{turn}: {result}");
    let plan = repo.json(&["plan", "--set", &lead]).await.result(0);
    assert_eq!(plan["decisions"], json!([]));
    let node = repo.open(json!({})).await;
    all_read(&node, &all).await;
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_fails_for_a_blob_says_so() {
    let repo = Repo::sqlite().await;
    repo.with_epoch(&blocks(0..2)).await;
    for blob in repo.net.blobs() {
        assert!(repo.net.delete_blob(&blob.blob_id));
    }
    let lead = format!("renewLeadSeconds={}", 6 * EPOCH);
    let args = ["renew", "--yes", "--set", &lead, "--set", "epochs=9"];
    let ran = repo.run(&args).await;
    assert!(
        ran.text(3).contains("the lines above say why"),
        "{}",
        ran.out
    );
    assert!(ran.err.contains("could not be renewed"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_wait_in_the_journal_are_found_there() {
    let repo = Repo::new(json!({
        "indexPath": "index.sqlite", "journalPath": "journal", "packIdleFlushSeconds": 3600,
        "packMaxAgeSeconds": 3600, "drainTimeoutSeconds": 0,
    }));
    let repo = repo.await;
    let node = repo.open(json!({})).await;
    let leaves = blocks(0..4);
    let root = node_of(&leaves);
    let name = cid(0x70, &root.1).to_string();
    put(&node, &leaves[1..]).await;
    put(&node, std::slice::from_ref(&root)).await;
    for beside in [true, false] {
        let result = repo.json(&["inspect", &leaves[1].0]).await.result(0);
        assert_eq!(
            (&result["block"]["place"], &result["block"]["journaled"]),
            (&Value::Null, &json!(true)),
            "beside a node: {beside}"
        );
        let text = repo.run(&["inspect", &leaves[1].0]).await;
        assert!(text.text(0).contains("in the journal"), "{}", text.out);
        let dag = repo.json(&["inspect", "-r", &name]).await.result(3);
        assert_eq!(
            (&dag["dag"]["journaled"], &dag["dag"]["missing_keys"]),
            (&json!(4), &json!([leaves[0].0]))
        );
        if beside {
            node.close().await.unwrap();
        }
    }
    repo.json(&["inspect", &leaves[0].0]).await.result(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_and_the_figures_of_a_running_node_are_shown() {
    use std::io::{Read as _, Write as _};
    let journal = json!({
        "indexPath": "index.sqlite", "journalPath": "journal", "packIdleFlushSeconds": 3600,
        "packMaxAgeSeconds": 3600, "drainTimeoutSeconds": 0, "cachePath": "cache",
    });
    let repo = Repo::new(journal).await;
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..3)).await;
    // What Kubo serves at its API, in a few lines.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let api = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming().take(2) {
            let (mut stream, mut request) = (stream.unwrap(), [0; 1024]);
            let len = stream.read(&mut request).unwrap();
            asked.push(String::from_utf8_lossy(&request[..len]).into_owned());
            let answer = "HTTP/1.0 200 OK\r\n\r\n# TYPE walrusds_gets_total counter\nwalrusds_gets_total 7\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    });
    repo.file("api", &format!("/ip4/127.0.0.1/tcp/{port}"));
    let result = repo.json(&["status"]).await.result(0);
    assert_eq!(
        result["node"]["metrics"],
        json!({"walrusds_gets_total": 7.0})
    );
    assert_eq!(
        result["blocks"], 0,
        "what is in the journal is not in the index"
    );
    assert!(
        result["journal"]["segments"].as_u64().unwrap() >= 1,
        "{result}"
    );
    assert!(result["cache"]["exists"].is_boolean(), "{result}");
    let text = repo.run(&["status"]).await;
    assert!(text.text(0).contains("walrusds_gets_total"), "{}", text.out);
    let asked = api.join().unwrap();
    assert!(
        asked[0].starts_with("GET /debug/metrics/prometheus "),
        "{asked:?}"
    );
    node.close().await.unwrap();
}

/// Writes blocks as Kubo's flatfs does. Returns the directory.
fn flatfs(dir: &Path, blocks: &[(String, Bytes)]) -> String {
    let dir = dir.join("old").join("blocks");
    std::fs::create_dir_all(&dir).unwrap();
    let sharding = walrusds::admin::flatfs::Sharding::NextToLast(2);
    let flatfs = walrusds::admin::flatfs::Flatfs::create(&dir, sharding).unwrap();
    flatfs.put(blocks).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_imported_once_and_beside_a_node() {
    for repo in [Repo::sqlite().await, Repo::postgres().await] {
        let all = blocks(0..40);
        let node = repo.open(json!({"journalPath": "journal"})).await;
        put(&node, &all[..5]).await;
        let old = flatfs(repo.dir.path(), &all);
        let stored = repo.net.stats().puts;
        let would = repo.json(&["import", &old]).await.result(0);
        assert_eq!(
            (&would["applied"], &would["packs"]),
            (&json!(false), &json!(1))
        );
        assert_eq!(would["found"], json!({"blocks": 40, "bytes": 40_000}));
        assert_eq!(would["units"], 63);
        assert!(would["frost"].as_u64().unwrap() > 0);
        assert!(
            repo.net.stats().puts <= stored + 1,
            "the journal alone stores"
        );
        let text = repo.run(&["import", &old]).await;
        assert!(text.text(0).contains("Nothing was done"), "{}", text.out);
        assert!(text.out.contains("63 units"), "{}", text.out);

        let done = repo.json(&["import", &old, "--yes"]).await.result(0);
        assert_eq!(done["applied"], true);
        let known = done["known"]["blocks"].as_u64().unwrap();
        assert_eq!(known + done["stored"]["blocks"].as_u64().unwrap(), 40);
        all_read(&node, &all).await;
        let again = repo.run(&["import", &old, "--yes"]).await;
        assert!(
            again.text(0).contains("Nothing is left to import"),
            "{}",
            again.out
        );
        node.close().await.unwrap();

        // The index of this repo is a source for another one.
        let other = Repo::sqlite().await;
        other.open(json!({})).await.close().await.unwrap();
        let config = repo.dir.path().join("config");
        let from = ["import", "--from-config", config.to_str().unwrap(), "--yes"];
        let done = other.json(&from).await.result(0);
        assert_eq!(done["stored"], json!({"blocks": 40, "bytes": 40_000}));
        let node = other.open(json!({})).await;
        all_read(&node, &all).await;
        node.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_is_named() {
    let repo = Repo::sqlite().await;
    repo.open(json!({})).await.close().await.unwrap();
    let all = blocks(0..6);
    let old = flatfs(repo.dir.path(), &all);
    let file = walrusds::admin::flatfs::Flatfs::open(Path::new(&old)).unwrap();
    let file = file.path_of(&all[0].0).unwrap();
    std::fs::write(file, b"other bytes").unwrap();
    let other = format!("{old}/AB/HELLO.data");
    std::fs::create_dir_all(format!("{old}/AB")).unwrap();
    std::fs::write(&other, b"no multihash").unwrap();
    let done = repo.json(&["import", &old, "--yes"]).await.result(3);
    assert_eq!(
        (&done["stored"]["blocks"], &done["damaged"]["blocks"]),
        (&json!(5), &json!(1))
    );
    let text = repo.run(&["import", &old]).await;
    assert!(
        text.text(3)
            .contains("refused: /HELLO: its key is no multihash"),
        "{}",
        text.out
    );
    let done = repo
        .json(&["import", &old, "--unchecked", "--yes"])
        .await
        .result(3);
    assert_eq!(
        (&done["stored"]["blocks"], &done["refused"]["blocks"]),
        (&json!(1), &json!(0))
    );

    let no_car = repo.file("no.car", "some text");
    repo.run(&["import", &no_car]).await.error(1);
    let empty = repo.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    repo.run(&["import", empty]).await.error(1);
    repo.run(&["import", &no_car, empty]).await.error(1);
    let own = repo.dir.path().to_str().unwrap();
    repo.run(&["import", "--kubo-repo", own]).await.error(1);
    repo.run(&["import", "--stream", &no_car]).await.error(1);
    let cut = "\u{11}\u{0}";
    let cut = repo.file("cut.car", cut);
    repo.run(&["import", &cut]).await.error(1);
    // What a conversion has left behind, and what is not in use.
    let before = repo.dir.path().join("old");
    let old_config = before.join("config");
    std::fs::copy(repo.dir.path().join("config"), &old_config).unwrap();
    let before = before.to_str().unwrap();
    let done = repo.json(&["import", before]).await.result(3);
    assert_eq!(done["found"]["blocks"], 7);
    let badger = json!({"Datastore": {"Spec": {"type": "badgerds", "path": "badgerds"}}});
    std::fs::write(&old_config, badger.to_string()).unwrap();
    repo.run(&["import", before]).await.error(1);
    std::fs::write(Path::new(empty).join("config"), badger.to_string()).unwrap();
    let ran = repo.run(&["import", empty]).await;
    assert!(ran.error(1).contains("make kubo-datastore"), "{}", ran.err);
    assert_eq!(repo.run(&["import"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_car_comes_through_a_pipe_and_an_import_is_killed_and_carried_on() {
    let repo = Repo::new(json!({
        "indexPath": "index.sqlite", "packTargetSizeBytes": 4_000, "workers": 1,
    }))
    .await;
    repo.open(json!({})).await.close().await.unwrap();
    let all = blocks(0..300);
    let old = flatfs(repo.dir.path(), &all);
    let slow = FaultAction::Latency {
        ms: 50,
        jitter_ms: 0,
    };
    repo.net.set_faults(FaultRule::new(slow));
    let mut known = 0;
    for signal in ["INT", "KILL"] {
        let before = repo.net.stats().newly_created;
        let mut command = program();
        command.env("IPFS_PATH", repo.dir.path());
        command.args(["import", &old, "--yes", "--memory", "1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        testkit::eventually("packs are stored", || {
            repo.net.stats().newly_created >= before + 3
        })
        .await;
        let id = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(killed.unwrap().success());
        let ran = tokio::task::spawn_blocking(move || child.wait_with_output());
        let ran = Ran::of(&ran.await.unwrap().unwrap());
        if signal == "INT" {
            assert_eq!(ran.code, 130, "{}\n{}", ran.out, ran.err);
            assert!(
                ran.err.contains("the same command carries on"),
                "{}",
                ran.err
            );
        }
        let would = repo.json(&["import", &old]).await.result(0);
        let now = would["known"]["blocks"].as_u64().unwrap();
        assert!(now > known && now < 300, "{now}, {known} before");
        known = now;
    }
    repo.net.clear_faults();
    let done = repo.json(&["import", &old, "--yes"]).await.result(0);
    assert_eq!(done["known"]["blocks"], known);
    assert_eq!(done["stored"]["blocks"], 300 - known);

    // A pack is a CAR file, which another repo takes from a pipe.
    let blob = repo
        .net
        .blobs()
        .into_iter()
        .max_by_key(|blob| blob.size)
        .unwrap();
    let pack = repo.net.content(&blob.blob_id).unwrap();
    let other = Repo::sqlite().await;
    other.open(json!({})).await.close().await.unwrap();
    let mut command = program();
    command.env("IPFS_PATH", other.dir.path());
    command.args(["import", "-", "--yes", "--json"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let ran = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        child.stdin.take().unwrap().write_all(&pack).unwrap();
        child.wait_with_output()
    });
    let done = Ran::of(&ran.await.unwrap().unwrap()).result(0);
    assert_eq!(
        (&done["from"], &done["damaged"]["blocks"]),
        (&json!("standard input"), &json!(0))
    );
    assert!(done["stored"]["blocks"].as_u64().unwrap() > 1, "{done}");
    let node = repo.open(json!({})).await;
    all_read(&node, &all).await;
    node.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_without_stores_measures_the_rest() {
    let repo = Repo::postgres().await;
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..20)).await;
    node.close().await.unwrap();
    let stored = repo.net.stats().puts;
    let args = ["bench", "--no-store", "--seconds", "20"];
    let result = repo.json(&args).await.result(0);
    assert_eq!(repo.net.stats().puts, stored, "nothing is stored");
    assert_eq!(result["complete"], true, "{result}");
    assert_eq!(
        (&result["index"]["kind"], &result["index"]["keys"]),
        (&json!("postgres"), &json!(20))
    );
    assert_eq!(result["stores"], json!([]));
    let positive = |value: &Value| value.as_f64().is_some_and(|n| n > 0.0);
    for path in [
        "/index/trip/median_seconds",
        "/index/one_per_second",
        "/index/many_per_second",
        "/disks/0/bytes_per_second",
        "/disks/0/sync_seconds",
        "/reads/0/small/median_seconds",
        "/reads/0/streams/2/bytes_per_second",
    ] {
        assert!(positive(result.pointer(path).unwrap()), "{path}: {result}");
    }
    assert_eq!(result["disks"][0]["part"], "repo");
    // The blocks lie in a CAR, which is longer than they are.
    assert_eq!(result["reads"][0]["blob_bytes"], 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_measures_every_part_and_advises() {
    let mut repo = Repo::sqlite().await;
    repo.spec["cachePath"] = json!("cache");
    repo.write_config();
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..20)).await;
    node.close().await.unwrap();
    let stored = repo.net.stats().puts;
    let set = ["--set", "packTargetSizeBytes=1048576"];
    let args = ["bench", "--yes", "--seconds", "20"];
    let args: Vec<&str> = args.into_iter().chain(set).collect();
    let ran = repo.json(&args).await;
    let result = ran.result(0);
    // Five small blobs of 63 units, and a pack of 67.
    assert!(ran.err.contains("at most 382 units"), "{}", ran.err);
    assert_eq!(repo.net.stats().puts, stored + 6);
    let store = &result["stores"][0];
    assert!(store["paid_frost"].as_u64().unwrap() > 0, "{store}");
    assert_eq!(store["pack_bytes"], 1 << 20);
    assert_eq!(result["disks"][0]["part"], "cache");
    let advice = result["advice"].as_array().unwrap();
    let of = |topic: &str| advice.iter().find(|a| a["topic"] == topic).unwrap();
    for topic in ["packs", "workers", "reads", "cache", "journal", "index"] {
        assert!(!of(topic)["why"].as_str().unwrap().is_empty(), "{topic}");
    }
    assert_eq!(of("packs")["line"], "\"packTargetSizeBytes\": 67108864");
    let text = repo.run(&["bench", "--no-store", "--seconds", "20"]).await;
    for part in [
        "lookups/s one by one",
        "16 at a time",
        "What follows",
        "keep ",
    ] {
        assert!(text.text(0).contains(part), "{part}: {}", text.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_of_an_empty_index_says_what_it_cannot_measure() {
    let repo = Repo::sqlite().await;
    repo.open(json!({})).await.close().await.unwrap();
    let result = repo.json(&["bench", "--no-store", "--seconds", "20"]).await;
    let result = result.result(3);
    assert_eq!(
        (&result["complete"], &result["index"]["keys"]),
        (&json!(false), &json!(0))
    );
    let error = result["reads"][0]["error"].as_str().unwrap();
    assert!(error.contains("no blob"), "{error}");
    // What is stored is read, too.
    let args = [
        "bench",
        "--yes",
        "--seconds",
        "20",
        "--set",
        "packTargetSizeBytes=100000",
    ];
    let result = repo.json(&args).await.result(0);
    assert_eq!(result["reads"][0]["blob_bytes"], 100_000);
    assert!(result["reads"][0]["passes"].as_f64().unwrap() > 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_finds_a_publisher_that_refuses_full_packs() {
    let repo = Repo::sqlite().await;
    repo.open(json!({})).await.close().await.unwrap();
    repo.net
        .set_faults(FaultRule::new(FaultAction::BodyLimit { bytes: 1 << 20 }));
    let set = ["--set", "packTargetSizeBytes=2097152"];
    let args = ["bench", "--yes", "--seconds", "30"];
    let args: Vec<&str> = args.into_iter().chain(set).collect();
    let result = repo.json(&args).await.result(3);
    let store = &result["stores"][0];
    assert_eq!(store["refused_bytes"], 2 << 20, "{store}");
    assert!(store["small_seconds"].is_f64(), "{store}");
    let packs = &result["advice"][0];
    assert_eq!(packs["line"], "\"packTargetSizeBytes\": 1048576", "{packs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_bench_shows_what_it_has() {
    let repo = Repo::sqlite().await;
    let node = repo.open(json!({})).await;
    put(&node, &blocks(0..2)).await;
    node.close().await.unwrap();
    let child = program()
        .env("IPFS_PATH", repo.dir.path())
        .args(["bench", "--no-store", "--json", "--seconds", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id().to_string();
    let ended = tokio::task::spawn_blocking(move || {
        use std::io::BufRead as _;
        let mut child = child;
        let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let told: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
        assert_eq!(told, ["measuring the index", "measuring the local disks"]);
        let killed = Command::new("kill").args(["-s", "INT", &id]).status();
        assert!(killed.unwrap().success());
        child.wait_with_output()
    });
    let ran = Ran::of(&ended.await.unwrap().unwrap());
    let result = ran.result(130);
    assert_eq!(result["complete"], false, "{result}");
    assert_eq!(result["index"]["keys"], 2, "{result}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert!(ran.text(0).contains("rebuild-index"), "{shell}");
    }
    assert!(run(&["man"]).text(0).contains(".TH walrusds"), "the page");
    let dir = tempfile::tempdir().unwrap();
    run(&["man", "--dir", dir.path().to_str().unwrap()]).text(0);
    assert!(dir.path().join("walrusds-undelete.1").exists());
}
