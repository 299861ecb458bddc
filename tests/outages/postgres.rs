//! PostgreSQL fails.

use std::sync::mpsc;
use std::time::Duration;

use walrus_devnet::Devnet;
use walrusds::ErrorKind;

use crate::disk::SmallDisk;
use crate::net::Wire;
use crate::scenario::{
    devnet, open, spec, Allowed, Scenario, INDEX_RETRYABLE, INDEX_WRITES, NOTHING, SECRET,
};
use testkit::postgres::{signal_each, Postgres};

const GROUP: &str = "PostgreSQL";

/// The table of the node, and the pattern that selects the node's connections.
const OF_THE_NODE: &str = "application_name = 'walrusds' AND datname = current_database()";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A node whose index is at `url`.
async fn start_at(case: &'static str, url: &str) -> (Devnet, Scenario) {
    let net = devnet().await;
    let mut spec = spec(&net);
    spec["postgresURL"] = url.into();
    let repo = tempfile::tempdir().expect("repo");
    let ds = open(&spec, repo.path()).await;
    (net, Scenario::start(GROUP, case, vec![ds]).await)
}

/// A URL with a password; these servers do not require it.
fn url(pg: &Postgres, db: &str) -> String {
    pg.url_as(&format!("postgres:{SECRET}"), db)
}

async fn start(case: &'static str, pg: &Postgres) -> (Devnet, Scenario, String) {
    let db = pg.database();
    let (net, scenario) = start_at(case, &url(pg, &db)).await;
    (net, scenario, db)
}

/// Runs SQL and stays connected until dropped (an open transaction with it).
struct Session {
    end: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Session {
    fn new(pg: &Postgres, db: &str, sql: &'static str) -> Session {
        let url = pg.url(db);
        let (end, ended) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("session");
            client.batch_execute(sql).expect("its statement");
            ready.send(()).expect("the test waits");
            let _ = ended.recv();
        });
        is_ready.recv().expect("the session is ready");
        Session {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restarted_fast() {
    let mut pg = Postgres::start();
    let (_net, mut scenario, _) = start("stopped (fast), started 1.5 s later", &pg).await;
    scenario.strike(|| pg.down()).await;
    scenario.hold(ms(1500)).await;
    scenario.heal(|| pg.up(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restarted_immediate() {
    let mut pg = Postgres::start();
    let (_net, mut scenario, _) = start("stopped (immediate), started 1.5 s later", &pg).await;
    scenario.deletes_may_return().await;
    scenario.strike(|| pg.down_now()).await;
    scenario.hold(ms(1500)).await;
    scenario.heal(|| pg.up(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed() {
    let mut pg = Postgres::start();
    let (_net, mut scenario, _) =
        start("every process killed (-9), started 1.5 s later", &pg).await;
    scenario.deletes_may_return().await;
    scenario.strike(|| pg.kill()).await;
    scenario.hold(ms(1500)).await;
    scenario.heal(|| pg.up(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_only() {
    let pg = Postgres::start();
    let (_net, mut scenario, _) = start("read-only for 2 s", &pg).await;
    let read_only = |on| pg.set("default_transaction_read_only", on);
    scenario.strike(|| read_only("on")).await;
    scenario.hold(ms(2000)).await;
    scenario.heal(|| read_only("off"), INDEX_WRITES).await;
}

/// Takes every connection that a role can get.
fn take_all(pg: &Postgres, user: &str, db: &str) -> Vec<postgres::Client> {
    let url = pg.url_as(user, db);
    std::iter::from_fn(|| postgres::Client::connect(&url, postgres::NoTls).ok()).collect()
}

/// Other clients take every connection; those of the node are cut.
async fn no_connections(case: &'static str, hog: &str) {
    let pg = Postgres::start_with(&["max_connections=24", "superuser_reserved_connections=3"]);
    let db = pg.database();
    pg.execute("postgres", "CREATE ROLE node LOGIN; CREATE ROLE hog LOGIN");
    pg.execute(&db, "GRANT ALL ON SCHEMA public TO node");
    let mut spec_url = pg.url_as(&format!("node:{SECRET}"), &db);
    spec_url.push_str("&connect_timeout=3");
    let net = devnet().await;
    let mut spec = spec(&net);
    spec["postgresURL"] = spec_url.into();
    spec["maxOpenConns"] = 10.into();
    let repo = tempfile::tempdir().expect("repo");
    let ds = open(&spec, repo.path()).await;
    let mut scenario = Scenario::start(GROUP, case, vec![ds]).await;
    let mut taken = Vec::new();
    let hogging = std::sync::Mutex::new(&mut taken);
    scenario
        .strike(|| {
            testkit::postgres::blocking(|| {
                let mut admin = pg.client(&db);
                let taken = &mut *hogging.lock().expect("one thread");
                // The node reconnects meanwhile: the loop goes on until no connection is left for
                // it.
                loop {
                    taken.extend(take_all(&pg, hog, &db));
                    let cut = format!(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OF_THE_NODE}"
                    );
                    let cut: i64 = admin.query_one(&cut, &[]).expect("cutting").get(0);
                    if cut == 0 {
                        break;
                    }
                }
            });
        })
        .await;
    scenario.hold(ms(1500)).await;
    scenario
        .heal(
            || testkit::postgres::blocking(|| taken.clear()),
            INDEX_RETRYABLE,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_used_up() {
    no_connections("connections used up by others, node's cut (1.5 s)", "hog").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_used_up_by_superusers() {
    no_connections(
        "connections used up, reserved ones included (1.5 s)",
        "postgres",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fewer_connections_than_the_pool() {
    let pg = Postgres::start();
    let db = pg.database();
    pg.execute("postgres", "CREATE ROLE node LOGIN");
    pg.execute(&db, "GRANT ALL ON SCHEMA public TO node");
    let (_net, mut scenario) = start_at(
        "role limited to 4 connections (maxOpenConns 32), for 1.5 s",
        &pg.url_as(&format!("node:{SECRET}"), &db),
    )
    .await;
    scenario
        .strike(|| {
            pg.execute("postgres", "ALTER ROLE node CONNECTION LIMIT 4");
            pg.execute(
                &db,
                &format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OF_THE_NODE}"
                ),
            );
        })
        .await;
    scenario.hold(ms(1500)).await;
    scenario
        .heal(
            || pg.execute("postgres", "ALTER ROLE node CONNECTION LIMIT -1"),
            INDEX_RETRYABLE,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slow_writes() {
    let pg = Postgres::start();
    let (_net, mut scenario, db) = start("each write takes 0.4 s (trigger), for 2 s", &pg).await;
    scenario
        .strike(|| {
            pg.execute(
                &db,
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END $$; \
                 CREATE TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE ON walrus_index \
                 FOR EACH STATEMENT EXECUTE FUNCTION slow()",
            );
        })
        .await;
    scenario.hold(ms(2000)).await;
    let cure = || pg.execute(&db, "DROP TRIGGER slow ON walrus_index");
    scenario.heal(cure, NOTHING).await;
}

async fn locked(case: &'static str, sql: &'static str) {
    let pg = Postgres::start();
    let (_net, mut scenario, db) = start(case, &pg).await;
    let mut lock = None;
    let take = std::sync::Mutex::new(&mut lock);
    scenario
        .strike(|| **take.lock().expect("one thread") = Some(Session::new(&pg, &db, sql)))
        .await;
    scenario.hold(ms(2000)).await;
    scenario.heal(|| drop(lock), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locked_for_writes() {
    locked(
        "table locked against writes for 2 s",
        "BEGIN; LOCK TABLE walrus_index IN SHARE MODE",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locked_for_all() {
    locked(
        "table locked against everything for 2 s",
        "BEGIN; LOCK TABLE walrus_index IN ACCESS EXCLUSIVE MODE",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frozen() {
    let pg = Postgres::start();
    let (_net, mut scenario, _) = start("every process frozen (SIGSTOP) for 3 s", &pg).await;
    scenario.strike(|| pg.signal_all("-STOP")).await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| pg.signal_all("-CONT"), NOTHING).await;
}

/// The outage is longer than a statement may take: callers get an error, and a write that they gave
/// up must not land after their next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a minute: make outages"]
async fn frozen_for_long() {
    let pg = Postgres::start();
    let (_net, mut scenario, _) = start("every process frozen (SIGSTOP) for 45 s", &pg).await;
    scenario.strike(|| pg.signal_all("-STOP")).await;
    scenario.hold(ms(45_000)).await;
    scenario
        .heal(|| pg.signal_all("-CONT"), INDEX_RETRYABLE)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn backends_frozen() {
    let pg = Postgres::start();
    let (_net, mut scenario, db) = start("the node's backends frozen (SIGSTOP) for 3 s", &pg).await;
    let mut pids = Vec::new();
    scenario
        .strike(|| {
            let list = pg.scalar(
                &db,
                &format!(
                    "SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE {OF_THE_NODE}"
                ),
            );
            pids = list.split(',').map(|p| p.parse().expect("pid")).collect();
            signal_each(&pids, "-STOP");
        })
        .await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| signal_each(&pids, "-CONT"), NOTHING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn backends_terminated() {
    let pg = Postgres::start();
    let (_net, mut scenario, db) = start(
        "pg_terminate_backend on all its sessions, 5 times in 2 s",
        &pg,
    )
    .await;
    let kill =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OF_THE_NODE}");
    scenario.strike(|| pg.execute(&db, &kill)).await;
    for _ in 0..4 {
        scenario.hold(ms(400)).await;
        tokio::task::block_in_place(|| pg.execute(&db, &kill));
    }
    scenario.heal(|| {}, INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn failed_over() {
    let mut primary = Postgres::start();
    let replica = primary.start_replica();
    let db = primary.database();
    let url = format!(
        "postgres://postgres:{SECRET}@127.0.0.1:{},127.0.0.1:{}/{db}?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        replica.port()
    );
    let (_net, mut scenario) =
        start_at("primary killed (-9), replica promoted 1 s later", &url).await;
    scenario.deletes_may_return().await;
    scenario.strike(|| primary.kill()).await;
    scenario.hold(ms(1000)).await;
    scenario.heal(|| replica.promote(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn switched_over() {
    // As in a failover by an operator: the old primary comes back as a server that takes no writes.
    let mut primary = Postgres::start();
    let replica = primary.start_replica();
    let db = primary.database();
    let url = format!(
        "postgres://postgres:{SECRET}@127.0.0.1:{},127.0.0.1:{}/{db}?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        replica.port()
    );
    let (_net, mut scenario) = start_at(
        "switched over to the replica, old primary back read-only",
        &url,
    )
    .await;
    scenario
        .strike(|| {
            primary.set("default_transaction_read_only", "on");
            primary.restart();
        })
        .await;
    scenario.hold(ms(1000)).await;
    scenario.heal(|| replica.promote(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_network() {
    let pg = Postgres::start();
    let db = pg.database();
    let wire = Wire::to(pg.port()).await;
    let url = format!(
        "postgres://postgres:{SECRET}@127.0.0.1:{}/{db}?sslmode=disable",
        wire.port()
    );
    let (_net, mut scenario) = start_at("no packet passes for 3 s", &url).await;
    scenario.strike(|| wire.set_dead(true)).await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| wire.set_dead(false), NOTHING).await;
}

/// The primary vanishes without a sign: no connection is closed, and none can be opened. (Before
/// the engine detected a silent host, listings never worked again.)
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_failover() {
    let primary = Postgres::start();
    let replica = primary.start_replica();
    let db = primary.database();
    let wire = Wire::to(primary.port()).await;
    let url = format!(
        "postgres://postgres:{SECRET}@127.0.0.1:{},127.0.0.1:{}/{db}?sslmode=disable&target_session_attrs=read-write",
        wire.port(),
        replica.port()
    );
    let (_net, mut scenario) = start_at(
        "primary vanishes without a word, replica promoted 1 s later",
        &url,
    )
    .await;
    scenario.strike(|| wire.set_dead(true)).await;
    scenario.hold(ms(1000)).await;
    scenario.heal(|| replica.promote(), INDEX_RETRYABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn disk_full() {
    let pg = Postgres::start();
    let Some(disk) = SmallDisk::mount(24) else {
        return;
    };
    let space = disk.path().join("space");
    std::fs::create_dir(&space).expect("directory of the tablespace");
    let owned = std::process::Command::new("chown")
        .arg("postgres:")
        .args([&space, &disk.path().to_owned()])
        .status();
    assert!(owned.is_ok_and(|s| s.success()));
    let create = format!("CREATE TABLESPACE small LOCATION '{}'", space.display());
    pg.execute("postgres", &create);
    let db = pg.database_with("TABLESPACE small");
    let (_net, mut scenario) = start_at("its disk full (tablespace) for 2 s", &url(&pg, &db)).await;
    scenario.strike(|| disk.fill()).await;
    scenario.hold(ms(2000)).await;
    scenario.until_a_call_fails(|| disk.fill()).await;
    scenario.heal(|| disk.free(), INDEX_WRITES).await;
    pg.execute("postgres", &format!("DROP DATABASE {db}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rights_taken_away() {
    let pg = Postgres::start();
    let db = pg.database();
    pg.execute("postgres", "CREATE ROLE node LOGIN");
    pg.execute(&db, "GRANT ALL ON SCHEMA public TO node");
    let (_net, mut scenario) = start_at(
        "the role's right to write taken away for 1.5 s",
        &pg.url_as(&format!("node:{SECRET}"), &db),
    )
    .await;
    scenario
        .strike(|| {
            pg.execute(
                &db,
                "REVOKE INSERT, UPDATE, DELETE ON walrus_index FROM node",
            )
        })
        .await;
    scenario.hold(ms(1500)).await;
    let cure = || pg.execute(&db, "GRANT INSERT, UPDATE, DELETE ON walrus_index TO node");
    let allowed = Allowed::writers(&[(ErrorKind::Config, false)]);
    scenario.heal(cure, allowed).await;
}
