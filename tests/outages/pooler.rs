//! PostgreSQL behind pgbouncer in transaction mode, where no session state survives: two nodes
//! share one pooler.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use walrus_devnet::{Devnet, Options};
use walrusds::Op;

use crate::scenario::{devnet, eventually, open, spec, Scenario, INDEX_RETRYABLE, NOTHING, SECRET};
use testkit::mem::{key_of, noise};
use testkit::postgres::{as_server_user, free_port, signal_each, Postgres};

const GROUP: &str = "pgbouncer (transaction mode), two nodes";

/// A pgbouncer in front of a server.
struct Pooler {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Pooler {
    /// With the given number of server connections: fewer than the nodes would use.
    fn start(pg: &Postgres, server_connections: u32) -> Pooler {
        let dir = tempfile::Builder::new()
            .prefix("wds-pgb-")
            .tempdir()
            .expect("directory of pgbouncer");
        let port = free_port();
        let at = dir.path().display();
        let server = pg.port();
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {at}/users\n\
             pool_mode = transaction\ndefault_pool_size = {server_connections}\nmax_client_conn = 300\n\
             server_login_retry = 1\nlogfile = {at}/log\n"
        );
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("configuration of pgbouncer");
        };
        write("pgbouncer.ini", &ini);
        write("users", "\"postgres\" \"\"\n");
        if testkit::postgres::is_root() {
            let owned = Command::new("chown")
                .args(["-R", "postgres:"])
                .arg(dir.path())
                .status();
            assert!(owned.is_ok_and(|s| s.success()));
        }
        let mut pooler = Pooler {
            dir,
            port,
            process: None,
        };
        pooler.up();
        pooler
    }

    fn up(&mut self) {
        let process = as_server_user("pgbouncer".as_ref())
            .arg("-q")
            .arg(self.dir.path().join("pgbouncer.ini"))
            .env(
                "PATH",
                format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need pgbouncer: install the package of that name");
        self.process = Some(process);
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(self.dir.path().join("log"));
            assert!(
                Instant::now() < until,
                "pgbouncer did not start (is the package installed?): {log:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            signal_each(&[process.id()], signal);
        }
    }

    fn down(&mut self, signal: &str) {
        self.signal(signal);
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
    }

    fn url(&self, db: &str) -> String {
        format!(
            "postgres://postgres:{SECRET}@127.0.0.1:{}/{db}?sslmode=disable",
            self.port
        )
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.down("-KILL");
    }
}

/// Two nodes behind one pooler.
async fn start(case: &'static str, pooler: &Pooler, db: &str) -> (Devnet, Scenario) {
    let net = devnet().await;
    let mut spec = spec(&net);
    spec["postgresURL"] = pooler.url(db).into();
    let repo = tempfile::tempdir().expect("repo");
    let nodes = vec![
        open(&spec, repo.path()).await,
        open(&spec, repo.path()).await,
    ];
    (net, Scenario::start(GROUP, case, nodes).await)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// No outage: all operations of a datastore, with calls given up all the time, over fewer server
/// connections than there are callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load() {
    let pg = Postgres::start();
    let db = pg.database();
    let pooler = Pooler::start(&pg, 4);
    let (_net, mut scenario) = start("none; 4 server connections for all", &pooler, &db).await;
    scenario.strike(|| {}).await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| {}, NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restarted() {
    let pg = Postgres::start();
    let db = pg.database();
    let mut pooler = Pooler::start(&pg, 8);
    let (_net, mut scenario) = start("stopped (SIGTERM), started 1 s later", &pooler, &db).await;
    scenario.strike(|| pooler.down("-TERM")).await;
    scenario.hold(ms(1000)).await;
    scenario.heal(|| pooler.up(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed() {
    let pg = Postgres::start();
    let db = pg.database();
    let mut pooler = Pooler::start(&pg, 8);
    let (_net, mut scenario) = start("killed (-9) and started at once", &pooler, &db).await;
    scenario
        .strike(|| {
            pooler.down("-KILL");
            pooler.up();
        })
        .await;
    scenario.hold(ms(1000)).await;
    scenario.heal(|| {}, INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frozen() {
    let pg = Postgres::start();
    let db = pg.database();
    let pooler = Pooler::start(&pg, 8);
    let (_net, mut scenario) = start("frozen (SIGSTOP) for 3 s", &pooler, &db).await;
    scenario.strike(|| pooler.signal("-STOP")).await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| pooler.signal("-CONT"), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn server_restarted() {
    let mut pg = Postgres::start();
    let db = pg.database();
    let pooler = Pooler::start(&pg, 8);
    let (_net, mut scenario) = start(
        "the server behind it stopped (fast), started 1.5 s later",
        &pooler,
        &db,
    )
    .await;
    scenario.strike(|| pg.down()).await;
    scenario.hold(ms(1500)).await;
    scenario.heal(|| pg.up(), INDEX_RETRYABLE).await;
}

/// The lease of renewal works without sessions, and one node at a time renews.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn renewal() {
    let pg = Postgres::start();
    let db = pg.database();
    let pooler = Pooler::start(&pg, 4);
    let net = Devnet::start(Options {
        cheap_ids: true,
        first_epoch: 10,
        ..Options::default()
    })
    .await
    .expect("local Walrus");
    let mut spec = spec(&net);
    spec["postgresURL"] = pooler.url(&db).into();
    spec["epochDurationSeconds"] = 2.into();
    spec["renewIntervalSeconds"] = 1.into();
    let repo = tempfile::tempdir().expect("repo");
    let nodes = [
        open(&spec, repo.path()).await,
        open(&spec, repo.path()).await,
    ];
    let blocks: Vec<_> = (0..20).map(|n| noise(n, 1000)).collect();
    let puts = blocks.iter().map(|b| Op::Put(key_of(b), b.clone()));
    nodes[0].commit(puts.collect()).await.expect("putting");
    let renewals = || -> u64 {
        let all = nodes.iter().flat_map(|node| node.metrics());
        all.filter(|(name, _)| *name == "renewals")
            .map(|(_, n)| n)
            .sum()
    };
    for _ in 0..3 {
        let before = renewals();
        eventually("the blob is renewed", || renewals() > before).await;
        net.advance_epoch(1);
    }
    for (node, block) in nodes.iter().cycle().zip(&blocks) {
        let got = node.get(&key_of(block)).await.expect("reading");
        assert_eq!(got.as_ref(), Some(block));
    }
    let mut puts: Vec<_> = net.blobs().into_iter().map(|b| b.blob_id).collect();
    puts.dedup();
    assert_eq!(puts.len(), 1, "the same blob all the time");
    for node in nodes {
        node.close().await.expect("closing");
    }
}
