//! `check`, `repair`, `doctor` and `init` as an operator runs them.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{json, Value};
use walrus_devnet::{FaultAction, FaultPlan, FaultRule, Op as Http};

mod repo;

use repo::{walrus, Repo};

/// A program's end.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        serde_json::from_str(&self.out).expect(&self.out)
    }

    /// The error of a run that ended with this code. docs/check-and-repair.md has it in its table.
    #[track_caller]
    fn error(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        assert!(self.err.contains(part), "{part:?}: {}", self.err);
        let docs = [
            include_str!("../../docs/check-and-repair.md"),
            include_str!("../../docs/command.md"),
        ];
        let known = docs.iter().any(|text| text.contains(part));
        assert!(known, "the documents lack: {part}");
    }
}

fn walrusds(repo: &Path, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_walrusds"))
        .args(args)
        .env("IPFS_PATH", repo)
        .env("HOME", repo)
        .stdin(Stdio::null())
        .output()
        .expect("the program");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Repo {
    fn run(&self, args: &[&str]) -> Ran {
        walrusds(self.dir.path(), args)
    }

    /// The aggregator answers every read with an error.
    fn break_reads(&self) {
        let rule = FaultRule::new(FaultAction::Internal).on(Http::READS);
        self.net.set_faults(FaultPlan::from(rule));
    }

    /// One blob is gone.
    fn lose_a_blob(&self) -> String {
        let blob = self.net.blobs()[0].blob_id;
        let rule = FaultRule::new(FaultAction::NotFound)
            .on(Http::READS)
            .of(blob);
        self.net.set_faults(FaultPlan::from(rule));
        blob.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_it_found_by_text_json_lines_and_code() {
    let repo = Repo::new().await;
    let fine = repo.run(&["check", "--read-data"]);
    assert_eq!(fine.code, 0, "{}", fine.err);
    assert!(fine.out.contains("Nothing is wrong."), "{}", fine.out);
    assert!(fine.out.contains("the limit was"), "{}", fine.out);
    let blob = repo.lose_a_blob();
    let found = repo.run(&["check"]);
    assert_eq!(found.code, 3);
    for part in [
        "missing",
        &blob,
        "3 blocks",
        "1 error, 0 warnings",
        "walrusds repair",
    ] {
        assert!(found.out.contains(part), "{part}: {}", found.out);
    }
    let report = repo.dir.path().join("report");
    let shown = report.to_str().unwrap();
    let json = repo.run(&["check", "--json", "--report", shown]).json(3);
    assert_eq!(json["result"]["summary"]["schema"], "walrusds.check/1");
    assert_eq!(json["result"]["summary"]["errors"], 1);
    assert_eq!(json["result"]["findings"][0]["kind"], "missing");
    let lines = std::fs::read_to_string(&report).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let types: Vec<_> = lines.iter().map(|line| line["type"].as_str()).collect();
    assert_eq!(types, [Some("begin"), Some("finding"), Some("summary")]);
    // One blob alone, and one that is fine.
    assert_eq!(repo.run(&["check", "--blob", &blob]).code, 3);
    let other = repo.net.blobs()[1].blob_id.to_string();
    assert_eq!(repo.run(&["check", "--blob", &other]).code, 0);
    // A misspelt one is not fine.
    for verb in ["check", "repair"] {
        let misspelt = repo.run(&[verb, "--blob", "nonexist"]);
        misspelt.error(2, "expected the ID of a blob");
        let unknown = repo.run(&[verb, "--blob", &"A".repeat(43)]);
        unknown.error(1, "no row of the index points at the blob");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_what_cannot_be_read_is_not_fine() {
    let repo = Repo::new().await;
    repo.break_reads();
    let ran = repo.run(&["repair", "--yes"]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.out.contains("unreadable"), "{}", ran.out);
    assert!(ran.out.contains("2 errors"), "{}", ran.out);
    repo.net.clear_faults();
    assert_eq!(repo.run(&["repair", "--yes"]).code, 0);
}

/// The environment is not taken instead: it may be of another datastore.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_cannot_be_read_is_an_error() {
    let repo = Repo::new().await;
    let config = repo.dir.path().join("config");
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(repo.dir.path().join("nothing"), &config).unwrap();
    let url = repo.net.url();
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    let mut args = vec!["status".to_owned()];
    args.extend(set("publisherURL", &url));
    args.extend(set("aggregatorURL", &url));
    args.extend(set("indexPath", "index.sqlite"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ran = repo.run(&args);
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.err.contains("config: No such file"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_repo_has_its_own_config() {
    let repo = Repo::new().await;
    for args in [&["convert-repo", "--cancel"][..], &["init"]] {
        let args = [args, &["--config", "/backup/config"]].concat();
        repo.run(&args)
            .error(2, "this works on a whole repo, with its own config");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_goes_on_from_its_cursor() {
    let repo = Repo::new().await;
    repo.break_reads();
    // Two blobs are fewer than make it give up: both are errors, and their cause is told.
    let failed = repo.run(&["check", "--read-data"]);
    assert_eq!(failed.code, 3);
    assert!(failed.out.contains("unreadable"), "{}", failed.out);
    repo.net.clear_faults();
    let blobs = repo.net.blobs();
    let first = blobs.iter().map(|b| b.blob_id.to_string()).min().unwrap();
    let cursor = format!("check1:all:0:0:{first}");
    // The lines of the part before stay.
    let report = repo.dir.path().join("report");
    std::fs::write(&report, "the first part\n").unwrap();
    let shown = report.to_str().unwrap();
    let json = repo.run(&["check", "--json", "--resume", &cursor, "--report", shown]);
    let json = json.json(0);
    let lines = std::fs::read_to_string(&report).unwrap();
    assert!(lines.starts_with("the first part\n{"), "{lines}");
    assert_eq!(json["result"]["summary"]["blobs"], 1);
    assert_eq!(json["result"]["summary"]["blocks_verified"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_changes_nothing_until_it_is_told_to() {
    let repo = Repo::new().await;
    let blob = repo.lose_a_blob();
    let flatfs = tempfile::tempdir().unwrap();
    std::fs::write(
        flatfs.path().join("SHARDING"),
        "/repo/flatfs/shard/v1/next-to-last/2\n",
    )
    .unwrap();
    for (key, value) in &repo.blocks {
        let name = key.trim_start_matches('/');
        let dir = flatfs.path().join(&name[name.len() - 3..name.len() - 1]);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.data")), value).unwrap();
    }
    let from = flatfs.path().to_str().unwrap();
    let dry = repo.run(&["repair", "--from", from]);
    assert_eq!(dry.code, 3, "{}", dry.err);
    for part in [
        &*blob,
        "copies in: flatfs",
        "Nothing was changed",
        "63 units",
    ] {
        assert!(dry.out.contains(part), "{part}: {}", dry.out);
    }
    let json = repo
        .run(&["repair", "--json", "--from", from, "--yes"])
        .json(0);
    assert_eq!(json["result"]["repair"]["stored_again"]["blocks"], 3);
    assert_eq!(json["result"]["repair"]["applied"], true);
    let after = repo.run(&["check", "--read-data"]);
    assert_eq!(after.code, 0, "{}", after.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_drops_rows_only_with_drop() {
    let repo = Repo::new().await;
    repo.lose_a_blob();
    let kept = repo.run(&["repair", "--yes"]);
    assert_eq!(kept.code, 3, "{}", kept.err);
    assert!(
        kept.out.contains("--drop removes their rows"),
        "{}",
        kept.out
    );
    let json = repo.run(&["repair", "--yes", "--drop", "--json"]).json(0);
    assert_eq!(json["result"]["repair"]["dropped"]["blocks"], 3);
    assert_eq!(repo.run(&["check"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_a_user_can_provoke_are_in_the_documents() {
    let repo = Repo::new().await;
    repo.run(&["check", "--resume", "x"])
        .error(2, "is no cursor of a check");
    repo.run(&["check", "--read-data-subset", "8/7"])
        .error(2, "is no part of the blobs");
    repo.run(&["check", "--report", "/no/such/dir/file"])
        .error(1, "--report");
    repo.run(&["repair", "--from", "/no/such/dir"]).error(
        1,
        "expected the blocks directory of a Kubo repo with flatfs",
    );
    repo.run(&["repair", "--aggregator", "x"])
        .error(1, "expected a base URL");
    repo.run(&["doctor", "--store"])
        .error(2, "--store asks before it pays");
    repo.run(&["init"]).error(1, "uses walrusds already");
    let empty = tempfile::tempdir().unwrap();
    walrusds(empty.path(), &["init"]).error(2, "--publisher is missing");
    walrusds(empty.path(), &["check"]).error(1, "no configuration was found");
    let nowhere = "http://127.0.0.1:9";
    let args = ["init", "--publisher", nowhere, "--aggregator", nowhere];
    walrusds(empty.path(), &args).error(1, "publisherURL does not work");
    let url = repo.net.url();
    let run = |more: &[&str]| {
        let mut args = vec!["init", "--publisher", &url, "--aggregator", &url];
        args.extend(more);
        walrusds(empty.path(), &args)
    };
    run(&["--ipfs", "/no/such/ipfs"]).error(1, "cannot be run");
    std::fs::write(empty.path().join("something"), "").unwrap();
    run(&[]).error(1, "is not empty and has no config");
    std::fs::remove_file(empty.path().join("something")).unwrap();
    kubo(empty.path());
    let block = empty.path().join("blocks/XY");
    std::fs::create_dir_all(&block).unwrap();
    std::fs::write(block.join("CIQA.data"), "data").unwrap();
    run(&[]).error(1, "init never writes over data");
    std::fs::remove_file(block.join("CIQA.data")).unwrap();
    std::fs::write(empty.path().join("api"), "/ip4/127.0.0.1/tcp/5001").unwrap();
    run(&[]).error(1, "a daemon seems to run");
    std::fs::remove_file(empty.path().join("api")).unwrap();
    // Its blocks lie on another disk.
    let disk = tempfile::tempdir().unwrap();
    std::fs::write(disk.path().join("CIQA.data"), "data").unwrap();
    std::os::unix::fs::symlink(disk.path(), empty.path().join("blocks/XZ")).unwrap();
    run(&[]).error(1, "init never writes over data");
    // Nothing was written by all of this.
    assert!(!empty.path().join("config.before-walrusds").exists());
}

/// A repo as `ipfs init` leaves it.
fn kubo(repo: &Path) {
    let spec = json!({"type": "mount", "mounts": [
        {"mountpoint": "/blocks", "type": "measure", "prefix": "flatfs.datastore", "child":
            {"type": "flatfs", "path": "blocks", "sync": true, "shardFunc": "/repo/flatfs/shard/v1/next-to-last/2"}},
        {"mountpoint": "/", "type": "measure", "prefix": "leveldb.datastore", "child":
            {"type": "levelds", "path": "datastore", "compression": "none"}},
    ]});
    let config = json!({
        "Identity": {"PeerID": "12D3", "PrivKey": "secret"},
        "Datastore": {"Spec": spec, "StorageMax": "10GB"},
    });
    std::fs::write(repo.join("config"), config.to_string()).unwrap();
    std::fs::write(
        repo.join("datastore_spec"),
        r#"{"mounts":[{"mountpoint":"/blocks","path":"blocks","shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","type":"flatfs"},{"mountpoint":"/","path":"datastore","type":"levelds"}],"type":"mount"}"#,
    )
    .unwrap();
    let empty = repo.join("blocks/X3");
    std::fs::create_dir_all(&empty).unwrap();
    let name = "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y.data";
    std::fs::write(empty.join(name), [10, 2, 8, 1]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_an_empty_repo_one_on_walrus() {
    let net = walrus().await;
    let url = net.url();
    let repo = tempfile::tempdir().unwrap();
    // A program that stands for `ipfs init`: it copies what Kubo writes.
    let made = tempfile::tempdir().unwrap();
    kubo(made.path());
    let ipfs = made.path().join("ipfs");
    let from = made.path().display();
    let script = format!(
        "#!/bin/sh\nmkdir -p \"$IPFS_PATH\" && cp -r {from}/config {from}/datastore_spec {from}/blocks \"$IPFS_PATH\"\n"
    );
    std::fs::write(&ipfs, script).unwrap();
    let chmod = Command::new("chmod").arg("755").arg(&ipfs).status();
    assert!(chmod.unwrap().success());
    let program = ipfs.to_str().unwrap();
    // What `make install` puts there first.
    for installed in [
        "plugins/walrusds.so",
        "lib/libwalrusds.so",
        ".walrusds.so.42",
    ] {
        let installed = repo.path().join(installed);
        std::fs::create_dir_all(installed.parent().unwrap()).unwrap();
        std::fs::write(installed, "").unwrap();
    }
    let args = [
        "init",
        "--json",
        "--publisher",
        &url,
        "--aggregator",
        &url,
        "--network",
        "testnet",
        "--ipfs",
        program,
        "--set",
        "journalPath=my-journal",
        "--set",
        "cacheBytes=600000000",
    ];
    let json = walrusds(repo.path(), &args).json(0);
    assert_eq!(json["result"]["datastore"]["publisherURL"], url.as_str());
    let config = std::fs::read_to_string(repo.path().join("config")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["Identity"]["PrivKey"], "secret");
    assert_eq!(config["Datastore"]["StorageMax"], "10GB");
    let mounts = &config["Datastore"]["Spec"]["mounts"];
    let child = &mounts[0]["child"];
    assert_eq!(child["type"], "walrusds");
    // As the init profile would have it.
    for (key, value) in [
        ("network", json!("testnet")),
        ("epochs", json!(14)),
        ("renewIntervalSeconds", json!(3600)),
        ("keepDeletedSeconds", json!(604_800)),
        ("indexPath", json!("walrusds-index.sqlite")),
        ("journalPath", json!("my-journal")),
        ("cachePath", json!("my-journal-cache")),
        ("cacheBytes", json!(600_000_000)),
        ("drainPartialPacks", json!(false)),
    ] {
        assert_eq!(child[key], value, "{key}");
    }
    assert_eq!(mounts[1]["child"]["type"], "levelds");
    let spec = std::fs::read_to_string(repo.path().join("datastore_spec")).unwrap();
    assert_eq!(
        spec,
        format!(
            r#"{{"mounts":[{{"aggregatorURL":"{url}","mountpoint":"/blocks","publisherURL":"{url}","table":"walrus_index"}},{{"mountpoint":"/","path":"datastore","type":"levelds"}}],"type":"mount"}}"#
        )
    );
    assert!(repo.path().join("blocks.before-walrusds/X3").exists());
    assert!(!repo.path().join("blocks").exists());
    assert!(repo.path().join("config.before-walrusds").exists());
    // It is what the other commands read.
    let doctor = walrusds(repo.path(), &["doctor", "--json"]);
    let json: Value = serde_json::from_str(&doctor.out).expect(&doctor.out);
    assert_eq!(json["result"]["bad"], 0, "{}", doctor.out);
    walrusds(repo.path(), &args).error(1, "uses walrusds already");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_by_its_code_how_bad_it_is() {
    let repo = Repo::new().await;
    let json = repo.run(&["doctor", "--json"]).json(0);
    assert_eq!(json["result"]["schema"], "walrusds.doctor/1");
    assert_eq!(json["result"]["bad"], 0);
    let rule = FaultRule::new(FaultAction::IgnoreRange).on(Http::READS);
    repo.net.set_faults(FaultPlan::from(rule));
    let warned = repo.run(&["doctor"]);
    assert_eq!(warned.code, 3, "{}", warned.out);
    assert!(warned.out.contains("ignores Range"), "{}", warned.out);
    let bad = repo.run(&["doctor", "--set", "aggregatorURL=http://127.0.0.1:9"]);
    bad.error(1, "something that does not work");
    let one = repo.run(&[
        "doctor",
        "--json",
        "--set",
        "aggregatorURL=http://127.0.0.1:9",
    ]);
    let one = one.json(1);
    assert!(one["result"]["bad"].as_u64() > Some(0), "{one}");
    assert_eq!(one["error"]["kind"], "Failed");
    repo.net.clear_faults();
    let stored = repo.run(&["doctor", "--store", "--yes"]);
    assert_eq!(stored.code, 0, "{}{}", stored.out, stored.err);
    assert!(stored.err.contains("63 units"), "{}", stored.err);
    assert!(stored.out.contains("gave it back"), "{}", stored.out);
    // By a relative path.
    let name = repo.dir.path().file_name().unwrap();
    let relative = Command::new(env!("CARGO_BIN_EXE_walrusds"))
        .args(["doctor", "--json", "--repo"])
        .arg(name)
        .current_dir(repo.dir.path().parent().unwrap())
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&relative.stdout).unwrap();
    assert_eq!(json["result"]["bad"], 0, "{json:#}");
}
