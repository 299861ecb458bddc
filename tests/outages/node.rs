//! The node's own process and clock fail.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use walrusds::clock::Clock;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Client, Config, ErrorKind, WalrusDatastore};

use crate::scenario::{devnet, open, spec, Allowed, Scenario, NOTHING, SECRET};
use testkit::postgres::{signal_each, Postgres};

const GROUP: &str = "The node itself";

/// Configuration and name of the case for [`frozen_node`], which runs in a process of its own.
const SPEC: &str = "OUTAGES_FROZEN_NODE";

/// The whole process stands still for longer than every timeout, under load, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frozen() {
    let pg = Postgres::start();
    let db = pg.database();
    let net = devnet().await;
    let mut spec = spec(&net);
    spec["postgresURL"] = pg.url_as(&format!("postgres:{SECRET}"), &db).into();
    spec["requestTimeoutSeconds"] = 1.into();
    let mut node = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "node::frozen_node", "--ignored", "--nocapture"])
        .env(SPEC, spec.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting the node");
    let mut lines = BufReader::new(node.stdout.take().expect("its output")).lines();
    tokio::task::block_in_place(|| {
        let mut said = lines.by_ref().map(|line| line.expect("a line"));
        said.find(|line| line.contains("under load"))
            .expect("the node works");
        signal_each(&[node.id()], "-STOP");
        std::thread::sleep(Duration::from_secs(4));
        signal_each(&[node.id()], "-CONT");
        said.for_each(|line| println!("{line}"));
        assert!(node.wait().expect("the node ends").success());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "started by the test `frozen`"]
async fn frozen_node() {
    let Ok(spec) = std::env::var(SPEC) else {
        return;
    };
    let spec = serde_json::from_str(&spec).expect("configuration");
    let repo = tempfile::tempdir().expect("repo");
    let ds = open(&spec, repo.path()).await;
    let case = "its process frozen (SIGSTOP) for 4 s, timeouts 1 s";
    let mut scenario = Scenario::start(GROUP, case, vec![ds]).await;
    scenario.strike_unhurried(|| println!("under load")).await;
    loop {
        let begun = Instant::now();
        scenario.hold(Duration::from_millis(20)).await;
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    const ALLOWED: Allowed = Allowed::both(&[(ErrorKind::Walrus, true), (ErrorKind::Index, true)]);
    scenario.heal(|| {}, ALLOWED).await;
}

/// The machine's clock and its error.
#[derive(Default)]
struct Jumping(Mutex<(Duration, bool)>);

impl Jumping {
    fn set(&self, by: Duration, back: bool) {
        *self.0.lock() = (by, back);
    }
}

impl Clock for Jumping {
    fn now(&self) -> SystemTime {
        let (by, back) = *self.0.lock();
        let now = SystemTime::now();
        if back {
            now.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
        } else {
            now + by
        }
    }
}

async fn clock_jumps(case: &'static str, by: Duration, back: bool) {
    let net = devnet().await;
    let mut spec = spec(&net);
    spec["indexPath"] = "index.sqlite".into();
    spec["epochs"] = 5.into();
    spec["epochDurationSeconds"] = 86_400.into();
    let repo = tempfile::tempdir().expect("repo");
    let config = Config::from_json(&spec.to_string()).expect("configuration");
    let path = repo.path().join("index.sqlite");
    let index = SqliteIndex::open(SqliteOptions::new(path, &config.table));
    let index = Arc::new(index.await.expect("the index"));
    let client = Arc::new(Client::new(config.client()).expect("the client"));
    let clock = Arc::new(Jumping::default());
    let ds =
        WalrusDatastore::with_parts(&config, index, client, Arc::clone(&clock) as Arc<dyn Clock>)
            .expect("opening");
    let mut scenario = Scenario::start(GROUP, case, vec![ds]).await;
    scenario.strike(|| clock.set(by, back)).await;
    scenario.hold(Duration::from_millis(1000)).await;
    let cure = || clock.set(Duration::ZERO, false);
    scenario.heal(cure, NOTHING).await;
}

const YEAR: Duration = Duration::from_secs(365 * 86_400);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clock_ahead() {
    clock_jumps(
        "its clock 10 years ahead, then right again",
        10 * YEAR,
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clock_behind() {
    clock_jumps("its clock in 1970, then right again", 200 * YEAR, true).await;
}
