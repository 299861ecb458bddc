//! `convert-repo` as an operator runs it, on a repo as Kubo makes it and a local Walrus, with both
//! indexes. (With a real Kubo: scripts/new-user.sh.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use rustix::fs::{fcntl_lock, FlockOperation};
use serde_json::{json, Value};
use testkit::mem::{key_of, noise};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Http, Options};
use walrusds::admin::flatfs::{Flatfs, Sharding};
use walrusds::datastore::Inspection;
use walrusds::{Config, KeyRange, Op, WalrusDatastore};

mod schema;

const SHARDING: &str = "/repo/flatfs/shard/v1/next-to-last/2";

struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    /// The settings of the datastore to come, as variables.
    settings: BTreeMap<&'static str, String>,
    blocks: Vec<(String, Bytes)>,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn result(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        let json: Value = serde_json::from_str(&self.out).expect(&self.out);
        schema::saw(&json);
        json["result"].clone()
    }

    #[track_caller]
    fn fine(&self) {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
    }

    /// The error of a run that ended with this code, as docs/command.md has it in its table.
    #[track_caller]
    fn error(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        assert!(self.err.contains(part), "{part:?}: {}", self.err);
        let docs = include_str!("../../docs/command.md");
        let (_, table) = docs.split_once("\n## Errors\n").unwrap();
        let mut rows = table.lines().filter(|line| line.starts_with("| `"));
        let row = rows.any(|row| row.split("` |").next().unwrap().contains(part));
        assert!(row, "docs/command.md lacks: {part}");
    }
}

/// What Kubo would do with the repo: it compares `datastore_spec` with the short form of the
/// config.
#[derive(Debug, PartialEq, Eq)]
enum Opens {
    Flatfs,
    Walrusds,
    Refuses,
}

fn blocks(seeds: std::ops::Range<u64>) -> Vec<(String, Bytes)> {
    let block = |seed| {
        let value = noise(seed, 1_000 + seed as usize);
        (key_of(&value), value)
    };
    seeds.map(block).collect()
}

impl Repo {
    async fn new(index: Value) -> Repo {
        let options = Options {
            cheap_ids: true,
            ..Options::default()
        };
        let net = Devnet::start(options).await.expect("local Walrus");
        let mut settings = BTreeMap::from([
            ("WALRUSDS_PUBLISHER_URL", net.url()),
            ("WALRUSDS_AGGREGATOR_URL", net.url()),
            ("WALRUSDS_NETWORK", "testnet".to_owned()),
            ("WALRUSDS_EPOCHS", "5".to_owned()),
            ("WALRUSDS_PACK_TARGET_SIZE_BYTES", "40000".to_owned()),
            ("WALRUSDS_MAX_RETRIES", "0".to_owned()),
        ]);
        if let Some(url) = index.as_str() {
            settings.insert("WALRUSDS_POSTGRES_URL", url.to_owned());
        }
        let repo = Repo {
            net,
            dir: tempfile::tempdir().unwrap(),
            settings,
            blocks: blocks(0..100),
        };
        let flatfs = json!({
            "mountpoint": "/blocks", "type": "flatfs", "prefix": "flatfs.datastore", "path": "blocks",
            "sync": true, "shardFunc": SHARDING,
        });
        let root = json!({"mountpoint": "/", "type": "levelds", "prefix": "leveldb.datastore",
            "path": "datastore", "compression": "none"});
        repo.write_config(&json!({"type": "mount", "mounts": [flatfs, root]}));
        let spec = format!(
            r#"{{"mounts":[{{"mountpoint":"/blocks","path":"blocks","shardFunc":"{SHARDING}","type":"flatfs"}},{{"mountpoint":"/","path":"datastore","type":"levelds"}}],"type":"mount"}}"#
        );
        repo.write("datastore_spec", &spec);
        repo.write("version", "18\n");
        repo.flatfs().put(&repo.blocks).unwrap();
        repo
    }

    async fn sqlite() -> Repo {
        Repo::new(Value::Null).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn write_config(&self, spec: &Value) {
        let config = json!({"Identity": {"PeerID": "12D3"}, "Datastore": {"Spec": spec, "StorageMax": "10GB"}});
        self.write("config", &config.to_string());
    }

    fn flatfs(&self) -> Flatfs {
        Flatfs::create(&self.path("blocks"), Sharding::NextToLast(2)).unwrap()
    }

    fn opens(&self) -> Opens {
        let config = self.read("config");
        assert_eq!(config["Identity"]["PeerID"], "12D3");
        let entry = &config["Datastore"]["Spec"]["mounts"][0];
        let (short, opens) = match entry.get("child") {
            Some(child) => {
                let url = |key: &str| child[key].as_str().unwrap().to_owned();
                let short = json!({"aggregatorURL": url("aggregatorURL"), "mountpoint": "/blocks",
                    "publisherURL": url("publisherURL"), "table": "walrus_index"});
                (short, Opens::Walrusds)
            }
            None => {
                let short = json!({"mountpoint": "/blocks", "path": entry["path"],
                    "shardFunc": entry["shardFunc"], "type": "flatfs"});
                (short, Opens::Flatfs)
            }
        };
        let root = json!({"mountpoint": "/", "path": "datastore", "type": "levelds"});
        // serde_json sorts the members.
        let expected = json!({"mounts": [short, root], "type": "mount"}).to_string();
        match std::fs::read_to_string(self.path("datastore_spec")).unwrap() == expected {
            true => opens,
            false => Opens::Refuses,
        }
    }

    /// With the settings as variables.
    async fn run(&self, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command.envs(&self.settings);
        ran(command).await
    }

    /// Without them.
    async fn bare(&self, args: &[&str]) -> Ran {
        ran(self.command(args)).await
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.verb("convert-repo");
        command.args(args);
        command
    }

    fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walrusds"));
        command
            .env_clear()
            .env("IPFS_PATH", self.dir.path())
            .arg(verb)
            .stdin(Stdio::null());
        command
    }

    /// Another verb, as an operator runs it.
    async fn verb_runs(&self, verb: &str, args: &[&str]) -> Ran {
        let mut command = self.verb(verb);
        command.args(args);
        ran(command).await
    }

    /// The blocks that Walrus gives, and those that it does not.
    async fn sorted(&self) -> (Vec<String>, Vec<String>) {
        let node = self.node().await;
        let (mut there, mut lost) = (Vec::new(), Vec::new());
        for (key, _) in &self.blocks {
            match node.get(key).await {
                Ok(_) => there.push(key.clone()),
                Err(_) => lost.push(key.clone()),
            }
        }
        node.close().await.unwrap();
        (there, lost)
    }

    /// What `ipfs repo verify --drop` and `ipfs repo gc` do.
    async fn delete(&self, keys: &[String]) {
        let node = self.node().await;
        let deletes = keys.iter().cloned().map(Op::Delete).collect();
        node.commit(deletes).await.unwrap();
        node.close().await.unwrap();
    }

    /// The datastore as the node opens it after the switch.
    async fn node(&self) -> WalrusDatastore {
        let child = self.read("config")["Datastore"]["Spec"]["mounts"][0]["child"].clone();
        let config = Config::from_json(&child.to_string()).unwrap();
        let opened = WalrusDatastore::open(config, self.dir.path()).await;
        opened.unwrap()
    }

    async fn assert_on_walrus(&self, blocks: &[(String, Bytes)]) {
        let node = self.node().await;
        for (key, value) in blocks {
            assert_eq!(node.get(key).await.unwrap().as_ref(), Some(value), "{key}");
        }
        node.close().await.unwrap();
    }

    fn assert_on_disk(&self, blocks: &[(String, Bytes)]) {
        let flatfs = self.flatfs();
        for (key, value) in blocks {
            assert_eq!(flatfs.get(key).unwrap().as_ref(), Some(value), "{key}");
        }
    }
}

async fn ran(mut command: Command) -> Ran {
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.unwrap().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A lock by `fcntl` belongs to a process: this test program is started once more to hold it.
#[test]
fn a_daemon() {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("WALRUSDS_TEST_LOCK") else {
        return;
    };
    let mut options = std::fs::File::options();
    let file = options.create(true).truncate(true).write(true).open(path);
    let file = file.unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    println!("\nheld");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A process that holds Kubo's lock until it is killed.
struct Daemon(Child);

impl Daemon {
    fn start(repo: &Path) -> Daemon {
        use std::io::{BufRead as _, BufReader};
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_daemon", "--nocapture"])
            .env("WALRUSDS_TEST_LOCK", repo.join("repo.lock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "held"));
        Daemon(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repo_moves_over_beside_its_daemon_and_back() {
    let pg = Postgres::shared();
    for index in [Value::Null, pg.url(&pg.database()).into()] {
        let postgres = index.is_string();
        let mut repo = Repo::new(index).await;
        let config = repo.read("config");

        // A dry run writes nothing.
        let planned = repo.run(&["--json"]).await.result(0);
        assert_eq!(
            (&planned["phase"], &planned["applied"]),
            (&json!("planned"), &json!(false))
        );
        assert_eq!(planned["copied"]["blocks"], 100);
        assert!(planned["price"]["units"].as_u64().unwrap() > 0, "{planned}");
        assert!(!repo.path("walrusds-convert.json").exists());
        assert_eq!(repo.net.stats().stored_blobs, 0);

        // With a daemon everything is copied, and nothing switched.
        let daemon = Daemon::start(repo.dir.path());
        let busy = repo.run(&["--yes"]).await;
        busy.error(4, "is in use by a daemon or another command");
        assert_eq!(repo.opens(), Opens::Flatfs);
        let puts = repo.net.stats().puts;
        assert!(puts >= 3, "{puts}");
        let late = blocks(100..103);
        repo.flatfs().put(&late).unwrap();
        repo.blocks.extend(late);
        drop(daemon);

        // The settings are those of the first run.
        let done = repo.bare(&["--yes", "--json"]).await.result(0);
        assert_eq!(done["phase"], "switched", "{done}");
        assert_eq!(done["copied"]["blocks"], 3);
        assert_eq!(done["source"]["blocks"], 103);
        assert_eq!(done["only_there"], 0);
        assert_eq!(repo.net.stats().puts, puts + 1, "nothing is stored twice");
        assert_eq!(repo.opens(), Opens::Walrusds);
        assert_eq!(repo.read("config.before-walrusds"), config);
        let again = repo.bare(&["--yes", "--json"]).await.result(0);
        assert_eq!(again["phase"], "switched");
        repo.assert_on_walrus(&repo.blocks).await;

        // What the node deletes is known to the index.
        let node = repo.node().await;
        let gone = repo.blocks.remove(0);
        let fresh = blocks(200..201);
        let put = Op::Put(fresh[0].0.clone(), fresh[0].1.clone());
        node.commit(vec![Op::Delete(gone.0.clone()), put])
            .await
            .unwrap();
        node.close().await.unwrap();
        repo.blocks.extend(fresh);

        // Another node may have deleted it, if the index is shared.
        let mut proof = vec!["--remove-old", "--json"];
        if postgres {
            let kept = repo.bare(&["--remove-old", "--yes"]).await;
            kept.error(1, "blocks of the flatfs were deleted from the index since");
            assert!(kept.err.contains(&gone.0), "{}", kept.err);
            proof.push("--force");
        }
        let proved = repo.bare(&proof).await.result(0);
        assert_eq!(
            (&proved["applied"], &proved["present"]["blocks"]),
            (&json!(false), &json!(102))
        );
        assert!(repo.path("blocks").exists());
        repo.write("blocks/mine.txt", "no block");
        proof.extend(["--read-data", "--yes"]);
        let removed = repo.bare(&proof).await.result(0);
        assert_eq!(removed["phase"], "removed");
        assert!(
            removed["notes"].to_string().contains("1 file or directory"),
            "{removed}"
        );
        assert!(repo.path("blocks/mine.txt").exists());
        std::fs::remove_dir_all(repo.path("blocks")).unwrap();
        repo.bare(&["--remove-old"])
            .await
            .error(1, "there is no flatfs left in");

        // Back, with a block that is in the journal alone.
        let planned = repo.bare(&["--to", "flatfs", "--json"]).await.result(0);
        assert_eq!(planned["source"]["blocks"], 102, "{planned}");
        assert_eq!(
            planned["notes"].to_string().contains("PostgreSQL"),
            postgres
        );
        let daemon = Daemon::start(repo.dir.path());
        let busy = repo.bare(&["--to", "flatfs", "--yes"]).await;
        busy.error(4, "is in use by a daemon or another command");
        assert_eq!(repo.opens(), Opens::Walrusds);
        drop(daemon);
        let back = repo
            .bare(&["--to", "flatfs", "--yes", "--json"])
            .await
            .result(0);
        assert_eq!(back["phase"], "switched", "{back}");
        assert_eq!(
            back["source"]["blocks"], 103,
            "the journal's block is there, too"
        );
        assert_eq!(repo.opens(), Opens::Flatfs);
        assert_eq!(repo.read("config"), config);
        repo.assert_on_disk(&repo.blocks);
        assert_eq!(repo.flatfs().get(&gone.0).unwrap(), None);
        let again = repo
            .bare(&["--to", "flatfs", "--yes", "--json"])
            .await
            .result(0);
        assert_eq!(again["phase"], "switched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_carried_on_and_nothing_is_paid_for_twice() {
    let repo = Repo::sqlite().await;
    // The tests of the publisher come first, which store nothing.
    repo.run(&[]).await.fine();
    let tests = repo.net.stats().puts;
    let hangs = FaultRule::new(FaultAction::Hang).on([Http::Put]);
    repo.net.set_faults(hangs.after(tests + 1));
    let mut command = repo.command(&["--yes", "--quiet"]);
    let mut child = command.envs(&repo.settings).spawn().unwrap();
    let hangs = || repo.net.faults()[0].fired > 0;
    testkit::eventually("a pack hangs", hangs).await;
    // Another one is stored, and its rows are written.
    let state = repo.read("walrusds-convert.json");
    let config = Config::from_json(&state["new"]["child"].to_string()).unwrap();
    let look = Inspection::open(config, repo.dir.path()).await.unwrap();
    let until = std::time::Instant::now() + testkit::PATIENCE;
    while look
        .index()
        .list(&KeyRange::ALL, 0, 1)
        .await
        .unwrap()
        .is_empty()
    {
        assert!(std::time::Instant::now() < until, "no pack was stored");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    look.close().await.unwrap();
    // A second run would pay once more.
    let puts = repo.net.stats().puts;
    for args in [&["--yes"][..], &["--cancel", "--yes"]] {
        let second = repo.bare(args).await;
        second.error(4, "another run of convert-repo works on");
    }
    assert_eq!(repo.net.stats().puts, puts);
    repo.bare(&[]).await.fine();
    child.kill().unwrap();
    child.wait().unwrap();
    repo.net.clear_faults();
    assert_eq!(repo.opens(), Opens::Flatfs);
    let done = repo.bare(&["--yes", "--json"]).await.result(0);
    assert!(done["present"]["blocks"].as_u64().unwrap() > 0, "{done}");
    assert_eq!(repo.opens(), Opens::Walrusds);
    repo.assert_on_walrus(&repo.blocks).await;

    // And the way back.
    std::fs::remove_dir_all(repo.path("blocks")).unwrap();
    let reads = [Http::Get, Http::Range, Http::ByteRange];
    repo.net
        .set_faults(FaultRule::new(FaultAction::Hang).on(reads).after(1));
    let mut child = repo
        .command(&["--to", "flatfs", "--yes", "--quiet"])
        .spawn()
        .unwrap();
    testkit::eventually("a request that hangs", || repo.net.faults()[0].fired > 0).await;
    child.kill().unwrap();
    child.wait().unwrap();
    repo.net.clear_faults();
    assert_eq!(repo.opens(), Opens::Walrusds);
    let done = repo
        .bare(&["--to", "flatfs", "--yes", "--json"])
        .await
        .result(0);
    assert_eq!(done["phase"], "switched");
    repo.assert_on_disk(&repo.blocks);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_converted_is_refused() {
    let repo = Repo::sqlite().await;
    let config = std::fs::read_to_string(repo.path("config")).unwrap();

    repo.write("version", "11");
    repo.run(&["--yes"]).await.error(1, "has the repo version");
    repo.write("version", "99");
    repo.run(&["--yes"]).await.error(1, "has the repo version");
    repo.write("version", "18");

    repo.write_config(&json!({"type": "badgerds", "path": "badgerds"}));
    repo.run(&["--yes"])
        .await
        .error(1, "Datastore.Spec has no mount at /blocks of its own");
    repo.write_config(
        &json!({"type": "mount", "mounts": [{"mountpoint": "/blocks", "type": "pebbleds"}]}),
    );
    repo.run(&["--yes"])
        .await
        .error(1, "the blocks are in a datastore of type");
    repo.write("config", &config.replace("\"blocks\"", "\"elsewhere\""));
    repo.run(&["--yes"])
        .await
        .error(1, "it does not fit the blocks' entry in config");
    repo.write("config", &config);

    repo.bare(&["--to", "flatfs"])
        .await
        .error(1, "is on flatfs already");
    repo.bare(&["--remove-old"])
        .await
        .error(1, "is not on Walrus yet, so its flatfs stays");
    repo.bare(&["--cancel", "--yes"])
        .await
        .error(1, "is under way, so there is nothing to cancel");
    assert_eq!(repo.bare(&[]).await.code, 2, "a publisher is missing");
    let empty = tempfile::tempdir().unwrap();
    let other = ["--repo", empty.path().to_str().unwrap()];
    repo.run(&other).await.error(1, "it has no config");

    // A publisher that nothing listens at.
    let unreachable = repo
        .run(&["--yes", "--publisher", "http://127.0.0.1:1"])
        .await;
    assert_eq!(unreachable.code, 1, "{}", unreachable.err);
    assert!(
        unreachable.err.contains("publisherURL does not work"),
        "{}",
        unreachable.err
    );
    assert!(!repo.path("walrusds-convert.json").exists());
    assert_eq!(repo.opens(), Opens::Flatfs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_and_a_lost_one_stop_the_switch() {
    let repo = Repo::sqlite().await;
    let path = repo.flatfs().path_of(&repo.blocks[7].0).unwrap();
    std::fs::write(&path, b"other bytes").unwrap();
    let damaged = repo.run(&["--yes"]).await;
    damaged.error(1, "blocks of the flatfs are damaged or cannot be copied");
    assert!(
        damaged.err.contains("remove their files"),
        "{}",
        damaged.err
    );
    assert!(
        damaged.err.contains(path.to_str().unwrap()),
        "{}",
        damaged.err
    );
    assert_eq!(repo.opens(), Opens::Flatfs);

    // Other settings would split the blocks between two datastores.
    let mut other = repo.command(&["--yes"]);
    other.envs(&repo.settings).env("WALRUSDS_TABLE", "another");
    ran(other)
        .await
        .error(1, "with other settings is under way");
    let back = repo.bare(&["--to", "flatfs"]).await;
    back.error(1, "is under way: go on with it");

    std::fs::remove_file(&path).unwrap();
    repo.bare(&["--yes"]).await.fine();
    assert_eq!(repo.opens(), Opens::Walrusds);

    // A blob is lost: neither is the flatfs removed, nor does the repo go back without it.
    let blob = repo.net.blobs()[0].blob_id;
    repo.net.delete_blob(&blob);
    repo.bare(&["--remove-old", "--yes"])
        .await
        .error(1, "cannot be proved to be on Walrus");
    assert!(repo.path("blocks/SHARDING").exists());
    std::fs::rename(repo.path("blocks"), repo.path("kept")).unwrap();
    let lost = repo.bare(&["--to", "flatfs", "--yes"]).await;
    lost.error(1, "blocks of the index cannot be read from Walrus");
    assert_eq!(repo.opens(), Opens::Walrusds);
    // In this direction, too, a conversion is under way, and can be forgotten.
    repo.bare(&["--yes"])
        .await
        .error(1, "is under way: go on with it");
    repo.bare(&["--cancel"]).await.fine();
    let cancelled = repo.bare(&["--cancel", "--yes", "--json"]).await.result(0);
    assert_eq!(cancelled["phase"], "cancelled");
    assert!(!repo.path("walrusds-convert.json").exists());
    let there = "uses walrusds already: there is no flatfs to convert";
    repo.bare(&["--yes"]).await.error(1, there);

    // A block of the flatfs that was never on Walrus.
    std::fs::remove_dir_all(repo.path("blocks")).unwrap();
    std::fs::rename(repo.path("kept"), repo.path("blocks")).unwrap();
    repo.flatfs().put(&blocks(300..301)).unwrap();
    let kept = repo.bare(&["--remove-old", "--yes"]).await;
    kept.error(
        1,
        "blocks of the flatfs are not on Walrus, so nothing was removed",
    );
    assert!(kept.err.contains(&blocks(300..301)[0].0), "{}", kept.err);
}

/// Whatever finds a blob lost deletes its rows, too: the flatfs has the last copy of its blocks.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_on_walrus_is_not_taken_for_deleted() {
    let repo = Repo::sqlite().await;
    repo.run(&["--yes"]).await.fine();
    let blob = repo.net.blobs()[0].blob_id;
    repo.net.delete_blob(&blob);
    let (there, lost) = repo.sorted().await;
    assert!(there.len() > 3 && lost.len() > 3, "{lost:?}");
    // Rows that were dropped, and some that a user has deleted.
    repo.delete(&lost).await;
    repo.delete(&there[..3]).await;
    let absent = "blocks of the flatfs are not on Walrus, so nothing was removed";
    for args in [&["--yes"][..], &["--yes", "--force"], &["--read-data"]] {
        let kept = repo.bare(&[&["--remove-old"], args].concat()).await;
        kept.error(1, absent);
        assert!(kept.err.contains("walrusds import --yes "), "{}", kept.err);
        let named = lost.iter().filter(|key| kept.err.contains(*key)).count();
        assert!(named > 0, "{}", kept.err);
        assert!(!kept.err.contains(&there[0]), "{}", kept.err);
    }
    repo.assert_on_disk(&repo.blocks);

    // An aggregator that fails tells nothing.
    let reads = [Http::Get, Http::Range, Http::ByteRange];
    let fails = FaultRule::new(FaultAction::Internal).on(reads);
    repo.net.set_faults(fails);
    let kept = repo.bare(&["--remove-old", "--yes"]).await;
    kept.error(1, "cannot be proved to be on Walrus");
    repo.net.clear_faults();

    // What the message says, carried out. No word of force is needed for what a user deleted.
    let blocks = repo.path("blocks").display().to_string();
    repo.verb_runs("import", &["--yes", &blocks]).await.fine();
    repo.delete(&there[..3]).await;
    let removed = repo.bare(&["--remove-old", "--yes", "--json"]).await;
    let removed = removed.result(0);
    assert_eq!(removed["phase"], "removed", "{removed}");
    assert!(removed["notes"]
        .to_string()
        .contains("3 blocks were deleted"));
    let repo = Repo {
        blocks: repo
            .blocks
            .iter()
            .filter(|(key, _)| !there[..3].contains(key))
            .cloned()
            .collect(),
        ..repo
    };
    repo.assert_on_walrus(&repo.blocks).await;
}

/// One block does not speak for the others of its blob: `ipfs repo verify --drop` deletes single
/// blocks that are bad.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_block_that_walrus_gives_wrong_keeps_the_flatfs() {
    let repo = Repo::sqlite().await;
    repo.run(&["--yes"]).await.fine();
    let child = repo.read("config")["Datastore"]["Spec"]["mounts"][0]["child"].clone();
    let index = repo.path(child["indexPath"].as_str().unwrap());
    let (bad, others) = {
        let connection = rusqlite::Connection::open(index).unwrap();
        let first = "SELECT key, blob_id FROM walrus_index WHERE size > 0 ORDER BY blob_id, blob_offset LIMIT 1";
        let first = connection.query_row(first, [], |row| Ok((row.get(0)?, row.get(1)?)));
        let (bad, blob): (String, String) = first.unwrap();
        let beside = "SELECT key FROM walrus_index WHERE blob_id = ?1 AND key <> ?2";
        let mut beside = connection.prepare(beside).unwrap();
        let beside = beside.query_map([&blob, &bad], |row| row.get::<_, String>(0));
        let others: Vec<String> = beside.unwrap().map(Result::unwrap).collect();
        let moved = "UPDATE walrus_index SET blob_offset = blob_offset + 1 WHERE key = ?1";
        connection.execute(moved, [&bad]).unwrap();
        (bad, others)
    };
    let mut deleted = others.clone();
    deleted.push(bad.clone());
    repo.delete(&deleted).await;
    for force in [&[][..], &["--force"]] {
        let args = [&["--remove-old", "--yes"][..], force].concat();
        let kept = repo.bare(&args).await;
        kept.error(1, "blocks of the flatfs are not on Walrus");
        assert!(kept.err.contains(&bad), "{}", kept.err);
        assert!(!kept.err.contains(&others[0]), "{}", kept.err);
    }
    repo.assert_on_disk(&repo.blocks);
}

/// A repair finds the copies that a conversion has left.
#[tokio::test(flavor = "multi_thread")]
async fn lost_blocks_are_stored_again_from_the_flatfs_that_was_left() {
    let repo = Repo::sqlite().await;
    repo.run(&["--yes"]).await.fine();
    let blob = repo.net.blobs()[0].blob_id;
    repo.net.delete_blob(&blob);
    let repaired = repo
        .verb_runs("repair", &["--yes", "--drop", "--json"])
        .await;
    repaired.fine();
    let repaired: Value = serde_json::from_str(&repaired.out).unwrap();
    let repaired = &repaired["result"];
    assert_eq!(repaired["repair"]["dropped"]["blocks"], 0, "{repaired}");
    repo.assert_on_walrus(&repo.blocks).await;
    repo.bare(&["--remove-old", "--yes"]).await.fine();
}

/// A directory, a file, and then the whole flatfs lie on another disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_symbolic_links_lead_to_moves_along() {
    use std::os::unix::fs::symlink;
    let repo = Repo::sqlite().await;
    let other = tempfile::tempdir().unwrap();
    let moved = |from: &Path, name: &str| {
        let to = other.path().join(name);
        std::fs::rename(from, &to).unwrap();
        symlink(&to, from).unwrap();
        to
    };
    let file = repo.flatfs().path_of(&repo.blocks[3].0).unwrap();
    let target = moved(&file, "file");
    let shard = repo.flatfs().path_of(&repo.blocks[4].0).unwrap();
    moved(shard.parent().unwrap(), "shard");
    moved(&repo.path("blocks"), "blocks");

    // Its disk is away: the block may be good, and nothing tells to remove its file.
    std::fs::rename(&target, other.path().join("away")).unwrap();
    let away = repo.run(&["--yes"]).await;
    away.error(1, "blocks of the flatfs are damaged or cannot be copied");
    let said = &away.err;
    assert!(said.contains("leads to nothing"), "{said}");
    assert!(!said.contains("remove their files"), "{said}");
    assert_eq!(repo.opens(), Opens::Flatfs);
    std::fs::rename(other.path().join("away"), &target).unwrap();

    let done = repo.bare(&["--yes", "--json"]).await.result(0);
    assert_eq!(done["source"]["blocks"], 100, "{done}");
    repo.assert_on_walrus(&repo.blocks).await;
    let state = std::fs::read(repo.path("walrusds-convert.json")).unwrap();
    let remove = ["--remove-old", "--yes", "--json"];
    let removed = repo.bare(&remove).await.result(0);
    assert_eq!(removed["phase"], "removed", "{removed}");
    assert_eq!(removed["source"]["blocks"], 100, "{removed}");
    assert!(repo.path("blocks").is_symlink());
    let left = std::fs::read_dir(other.path().join("blocks")).unwrap();
    assert_eq!(left.count(), 0);
    assert!(!repo.path("walrusds-convert.json").exists());

    // It was ended before it could note that.
    std::fs::write(repo.path("walrusds-convert.json"), state).unwrap();
    let removed = repo.bare(&remove).await.result(0);
    assert_eq!(removed["phase"], "removed", "{removed}");
    assert!(!repo.path("walrusds-convert.json").exists());

    repo.bare(&["--to", "flatfs", "--yes"]).await.fine();
    assert_eq!(repo.opens(), Opens::Flatfs);
    repo.assert_on_disk(&repo.blocks);
    assert!(other.path().join("blocks/SHARDING").exists());
}

/// A config that something else has written does not say where the blocks are.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_was_changed_by_hand_is_no_conversion() {
    let repo = Repo::sqlite().await;
    let daemon = Daemon::start(repo.dir.path());
    assert_eq!(repo.run(&["--yes"]).await.code, 4);
    drop(daemon);
    let entry = repo.read("walrusds-convert.json")["new"].clone();
    let mut config = repo.read("config");
    config["Datastore"]["Spec"]["mounts"][0] = entry;
    repo.write("config", &config.to_string());
    for args in [&[][..], &["--yes"]] {
        let wrong = repo.bare(args).await;
        wrong.error(1, "something else has changed config");
    }
    let kept = repo.bare(&["--remove-old", "--yes"]).await;
    kept.error(1, "is not on Walrus yet, so its flatfs stays");
}

/// The room is that of the disk on which the flatfs lies, and not that of the repo.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_asks_the_disk_of_the_flatfs() {
    let repo = Repo::sqlite().await;
    repo.run(&["--yes"]).await.fine();
    std::fs::remove_dir_all(repo.path("blocks")).unwrap();
    std::fs::remove_file(repo.path("walrusds-convert.json")).unwrap();
    // A file system that has no room at all.
    let mut before = repo.read("config.before-walrusds");
    before["Datastore"]["Spec"]["mounts"][0]["path"] = "/proc/blocks".into();
    repo.write("config.before-walrusds", &before.to_string());
    let planned = repo.bare(&["--to", "flatfs", "--json"]).await.result(0);
    assert_eq!(planned["room"]["free"], 0, "{planned}");
    repo.bare(&["--to", "flatfs", "--yes"])
        .await
        .error(1, "are needed: make room, and run the same command again");
    assert_eq!(repo.opens(), Opens::Walrusds);
}

/// The node of an empty repo may run without an API, so that the repo has no file `api`.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_repo_with_a_daemon_is_not_set_up() {
    let repo = Repo::sqlite().await;
    std::fs::remove_dir_all(repo.path("blocks")).unwrap();
    std::fs::create_dir(repo.path("blocks")).unwrap();
    let init = || {
        let mut command = repo.verb("init");
        command.envs(&repo.settings);
        ran(command)
    };
    let daemon = Daemon::start(repo.dir.path());
    let busy = init().await;
    busy.error(4, "is in use by a daemon or another command");
    assert_eq!(repo.opens(), Opens::Flatfs);
    assert!(repo.path("blocks").exists());
    drop(daemon);
    init().await.fine();
    assert_eq!(repo.opens(), Opens::Walrusds);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_repo_of_another_user_is_left_to_that_user() {
    let repo = Repo::sqlite().await;
    if !rustix::process::geteuid().is_root() {
        // Only root may give a file away.
        return;
    }
    std::os::unix::fs::chown(repo.path("config"), Some(4711), None).unwrap();
    let refused = repo.run(&["--yes"]).await;
    refused.error(1, "its config belongs to the user");
    assert_eq!(repo.net.stats().stored_blobs, 0);
    repo.run(&["--yes", "--force"]).await.fine();
}
