//! Three nodes, each a process of its own, on one table in Postgres and one Walrus. They are killed
//! at any moment, and clocks jump.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{json, Value};
use testkit::mem::{key_of, noise};
use testkit::postgres::{Postgres, GO_STAGING};
use testkit::{eventually, PATIENCE};
use walrus_devnet::{Devnet, FaultAction, FaultRule, Options};
use walrusds::{Config, Op, WalrusDatastore};

const NODES: u64 = 3;
/// How often each node is killed.
const KILLS: u64 = 3;
/// How many blocks each of its processes puts.
const PUTS: u64 = 60;
/// Blocks of this number and more are put by every node, those below by one.
const SHARED: u64 = 1_000_000;
/// The environment variable that holds the task of a node's process.
const TASK: &str = "WALRUSDS_TEST_NODE";

fn block(n: u64) -> (String, Bytes) {
    let value = noise(n, 300 + (n % 1000) as usize);
    (key_of(&value), value)
}

/// A node's process, and the lines in which it tells what it has done.
struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(task: &Value) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "node", "--nocapture"])
            .env(TASK, task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Process { child, lines }
    }

    /// The next line, `None` when the process has ended.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("a node hangs"),
        }
    }

    /// SIGKILL. Returns the lines that it has told.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.line()).collect()
    }

    /// Waits for the end. Returns the lines that it has told.
    fn finish(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let lines = std::iter::from_fn(|| self.line()).collect();
        assert!(self.child.wait().unwrap().success(), "{lines:?}");
        lines
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of a node.
#[test]
#[ignore = "the process of a node, which the other tests start"]
fn node() {
    let task = std::env::var(TASK).expect("the other tests start this one");
    let task: Value = serde_json::from_str(&task).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config::from_json(&task["config"].to_string()).unwrap();
        let repo = PathBuf::from(task["repo"].as_str().unwrap());
        let ds = WalrusDatastore::open(config, &repo).await.unwrap();
        println!("\nopen");
        for n in task["puts"].as_array().unwrap() {
            let n = n.as_u64().unwrap();
            let (key, value) = block(n);
            ds.commit(vec![Op::Put(key.clone(), value)]).await.unwrap();
            println!("\nput {n}");
            // One node alone collects garbage.
            if task["collects"] == true && n % 5 == 0 && n < SHARED {
                println!("\ndeleting {n}");
                ds.delete(&key).await.unwrap();
                println!("\ndeleted {n}");
            }
        }
        if task["stays"] == true {
            let wait = || std::io::stdin().read_to_end(&mut Vec::new());
            tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
        }
        ds.close().await.unwrap();
    });
}

fn numbers(lines: &[String], word: &str) -> BTreeSet<u64> {
    let numbers = lines.iter().filter_map(|line| line.strip_prefix(word));
    numbers.map(|n| n.trim().parse().unwrap()).collect()
}

struct World {
    net: Devnet,
    pg: &'static Postgres,
    db: String,
    dir: tempfile::TempDir,
}

impl World {
    async fn new(options: Options) -> World {
        let options = Options {
            cheap_ids: true,
            ..options
        };
        let pg = Postgres::shared();
        World {
            net: Devnet::start(options).await.unwrap(),
            db: pg.database(),
            pg,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, extra: Value) -> Value {
        let mut config = json!({
            "publisherURL": self.net.url(), "aggregatorURL": self.net.url(), "maxOpenConns": 4,
            "postgresURL": self.pg.url(&self.db), "epochs": 5, "epochDurationSeconds": 86_400,
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn repo(&self, node: u64) -> PathBuf {
        let repo = self.dir.path().join(node.to_string());
        std::fs::create_dir_all(&repo).unwrap();
        repo
    }

    fn ask(&self, sql: &str) -> String {
        self.pg.scalar(&self.db, sql)
    }

    /// Leases that run for longer than a lease may.
    fn stuck(&self) -> String {
        self.ask(
            "SELECT count(*) FROM walrus_index_leases WHERE expires_at > now() + interval '1 hour'",
        )
    }
}

async fn open(config: &Value, repo: &Path) -> WalrusDatastore {
    let config = Config::from_json(&config.to_string()).unwrap();
    WalrusDatastore::open(config, repo).await.unwrap()
}

/// Runs a node with kills in between, and to its end at last. Returns all that it told.
fn live(task: &Value, node: u64, seed: u64) -> Vec<String> {
    let mut random = StdRng::seed_from_u64(seed + node);
    let mut told = Vec::new();
    for life in 0..=KILLS {
        let mut task = task.clone();
        // Some blocks are this node's own, some are put by all nodes at the same time.
        let puts = (0..PUTS).map(|i| match i % 3 {
            0 => SHARED + life * 100 + i,
            _ => 1 + node * 10_000 + life * 100 + i,
        });
        task["puts"] = puts.collect();
        let process = Process::start(&task);
        if life == KILLS {
            told.extend(process.finish());
            break;
        }
        let mut left = random.random_range(1..PUTS);
        while left > 0 {
            let line = process
                .line()
                .expect("it is killed before it ends, or while it ends");
            left -= u64::from(line.starts_with("put"));
            told.push(line);
        }
        told.extend(process.kill());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_of_three_killed_nodes_acknowledged_is_read_from_all() {
    let seed = rand::random::<u32>();
    println!("seed {seed}");
    let world = World::new(Options::default()).await;
    let journalled = world.config(json!({
        "journalPath": "journal", "packIdleFlushSeconds": 1, "packTargetSizeBytes": 8_000,
        "renewIntervalSeconds": 1, "drainTimeoutSeconds": 120,
    }));
    let tasks = (0..NODES).map(|node| {
        let task = json!({"config": journalled, "repo": world.repo(node), "collects": node == 0});
        tokio::task::spawn_blocking(move || live(&task, node, u64::from(seed)))
    });
    let (mut put, mut gone, mut doubtful) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for told in tasks.collect::<Vec<_>>() {
        let told = told.await.unwrap();
        put.extend(numbers(&told, "put "));
        gone.extend(numbers(&told, "deleted "));
        doubtful.extend(numbers(&told, "deleting "));
    }
    assert!(put.len() > 100 && !gone.is_empty(), "{} puts", put.len());

    // Every acknowledged block, from every node.
    let mut nodes = Vec::new();
    for node in 0..NODES {
        nodes.push(open(&journalled, &world.repo(node)).await);
    }
    let live: Vec<_> = put.difference(&doubtful).map(|n| block(*n)).collect();
    for (number, ds) in nodes.iter().enumerate() {
        for (key, value) in &live {
            let read = ds.get(key).await.unwrap();
            assert_eq!(read.as_ref(), Some(value), "node {number}, {key}");
        }
        for n in &gone {
            assert_eq!(
                ds.get(&block(*n).0).await.unwrap(),
                None,
                "node {number}, {n}"
            );
        }
    }
    assert_eq!(world.stuck(), "0");

    // The steady state: no node has anything left to store, and storing all again is free.
    let stored: BTreeSet<String> = world
        .net
        .blobs()
        .into_iter()
        .map(|blob| blob.blob_id.to_string())
        .collect();
    let puts = || {
        live.iter()
            .map(|(key, value)| Op::Put(key.clone(), value.clone()))
    };
    for ds in &nodes {
        ds.commit(puts().collect()).await.unwrap();
    }
    for ds in nodes {
        ds.close().await.unwrap();
    }
    let blobs = world
        .net
        .blobs()
        .into_iter()
        .map(|blob| blob.blob_id.to_string());
    assert_eq!(stored, blobs.collect(), "nothing is stored twice");
    let dangling = "SELECT string_agg(DISTINCT blob_id, ' ') FROM walrus_index";
    for id in world.ask(dangling).split(' ') {
        assert!(stored.contains(id), "{id} is not on Walrus");
    }
}

/// Blocks that a Go node has left, and nodes that are killed while they adopt them.
#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_adopt_what_a_go_node_left() {
    const BLOCKS: u64 = 200;
    let world = World::new(Options {
        latency_put: std::time::Duration::from_millis(30),
        ..Options::default()
    });
    let world = world.await;
    world.pg.execute(&world.db, GO_STAGING);
    let values = (0..BLOCKS).map(|n| {
        let (key, value) = block(n);
        let hex = data_encoding::HEXLOWER.encode(&value);
        let broken = "now() + 900000000000 * interval '1 second'";
        format!(
            "('{key}', '\\x{hex}', {}, now() - interval '1 hour', {broken})",
            value.len()
        )
    });
    let values: Vec<String> = values.collect();
    let stage = format!(
        "INSERT INTO walrus_index_staging VALUES {}",
        values.join(", ")
    );
    world.pg.execute(&world.db, &stage);
    let adopting = world.config(json!({"adoptStagingSeconds": 4, "packTargetSizeBytes": 8_000}));
    let start = |node| {
        let task = json!({"config": adopting, "repo": world.repo(node), "puts": [], "stays": true});
        Process::start(&task)
    };
    let mut nodes: Vec<Process> = (0..NODES).map(start).collect();
    let left = || -> u64 {
        let count = world.ask("SELECT count(*) FROM walrus_index_staging");
        count.parse().unwrap()
    };
    let mut kills = 0;
    for share in [3, 2, 1] {
        let enough = BLOCKS * share / 4;
        eventually("blocks are adopted", || left() <= enough).await;
        let owner = world.ask("SELECT owner FROM walrus_index_leases WHERE name = 'adoption'");
        let pid: Option<u32> = owner.split('-').next().and_then(|pid| pid.parse().ok());
        if let Some(at) = nodes.iter().position(|node| Some(node.child.id()) == pid) {
            nodes.remove(at).kill();
            nodes.push(start(at as u64));
            kills += 1;
        }
        // Its lease and its claims run out: by a clock that jumps, and by time.
        world.pg.execute(
            &world.db,
            "UPDATE walrus_index_leases SET expires_at = now() + interval '5 years'; \
             UPDATE walrus_index_staging SET leased_until = now() - interval '1 second'",
        );
    }
    eventually("all blocks are adopted", || left() == 0).await;
    for node in nodes {
        node.finish();
    }
    assert!(kills > 0, "no node was killed at its work");
    let ds = open(&world.config(json!({})), &world.repo(9)).await;
    for (key, value) in (0..BLOCKS).map(block) {
        assert_eq!(ds.get(&key).await.unwrap(), Some(value), "{key}");
    }
    ds.close().await.unwrap();
    assert_eq!(
        world.ask("SELECT count(*) FROM walrus_index"),
        BLOCKS.to_string()
    );
    // No more blobs than rows point at, and the one that each killed node had under way.
    let blobs = world.ask("SELECT count(DISTINCT blob_id) FROM walrus_index");
    let spare = world.net.stats().newly_created - blobs.parse::<u64>().unwrap();
    assert!(
        spare <= 2 * kills,
        "{spare} blobs without rows after {kills} kills"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_renew_each_blob_once_though_the_renewing_one_is_killed() {
    const BLOBS: u64 = 12;
    /// How many blobs a node renews at a time.
    const TOGETHER: u64 = 8;
    const HALT: u64 = 4;
    let world = World::new(Options::default()).await;
    let writer = open(&world.config(json!({})), &world.repo(9)).await;
    for n in 0..BLOBS {
        let (key, value) = block(n);
        writer.put(&key, value).await.unwrap();
    }
    writer.close().await.unwrap();
    // Four epochs later.
    world.net.advance_epoch(4);
    for table in ["walrus_index", "walrus_index_blobs"] {
        let due = format!("UPDATE {table} SET expires_at = now() + interval '1 hour'");
        world.pg.execute(&world.db, &due);
    }
    let before = world.net.stats();
    // The node that renews comes to a halt in the midst of its round.
    let halt = FaultRule::new(FaultAction::Hang).on([walrus_devnet::Op::Put]);
    world.net.set_faults(halt.after(HALT));
    let renewing = world.config(json!({"renewIntervalSeconds": 1}));
    let mut nodes: Vec<Process> = (0..NODES)
        .map(|node| {
            Process::start(
                &json!({"config": renewing, "repo": world.repo(node), "puts": [], "stays": true}),
            )
        })
        .collect();
    let paid = || world.net.stats().newly_created - before.newly_created;
    eventually("a node renews", || paid() == HALT).await;
    // One renews; its name in the lease begins with its process ID. It dies with its leases, which
    // were taken while the clock of the database was years ahead.
    let owner = world.ask("SELECT owner FROM walrus_index_leases WHERE name = 'renewal'");
    let pid: u32 = owner.split('-').next().unwrap().parse().unwrap();
    let at = nodes.iter().position(|node| node.child.id() == pid);
    nodes.remove(at.expect("a node that runs")).kill();
    world.net.clear_faults();
    let jump = "UPDATE walrus_index_leases SET expires_at = now() + interval '5 years' WHERE name LIKE 'renewal%'";
    world.pg.execute(&world.db, jump);
    let due = "SELECT count(*) FROM walrus_index_blobs WHERE expires_at < now() + interval '1 day'";
    eventually("the others renew the rest", || world.ask(due) == "0").await;
    assert_eq!(world.stuck(), "0");
    for node in nodes {
        node.finish();
    }
    let after = world.net.stats();
    assert_eq!(paid(), BLOBS, "each blob is paid for once");
    // The blobs that were under way when the node was killed may be stored again, at no cost.
    let again = after.already_certified - before.already_certified;
    assert!(again <= TOGETHER, "{again} blobs were stored by two nodes");
    let rows = "SELECT count(*) FROM walrus_index WHERE end_epoch < 9";
    assert_eq!(world.ask(rows), "0");
}
