//! A private Postgres for tests: own data directory, own port, own socket; stopped when the test
//! binary ends, however it ends.
//!
//! With `WALRUSDS_TEST_CITUS=URL`, the server that the tests of a binary share is the coordinator
//! of that cluster ([`crate::citus`]), and what is called a database here is a schema there.

#![allow(dead_code)] // each test binary uses its own part of this

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Makes the Go plugin's newest table, which has a column for members of quilts.
pub const GO_TABLE: &str =
    "CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, \
    object_id TEXT NOT NULL DEFAULT '', patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, \
    size BIGINT NOT NULL, encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, \
    deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now())";

/// Makes the table in which the Go plugin stages blocks.
pub const GO_STAGING: &str =
    "CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, \
    size BIGINT NOT NULL, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ)";

/// Superuser of every test server (no password over the socket and for `trust` hosts).
pub const USER: &str = "postgres";

/// The settings of a server that keeps its log of writes, for [`Postgres::restore`].
pub const ARCHIVING: [&str; 2] = [
    "archive_mode=on",
    "archive_command='mkdir -p ../archive && cp %p ../archive/%f'",
];

/// A running server.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    server: Option<Child>,
    /// While the server is down: a socket that keeps its port from other processes, and on which
    /// nothing listens.
    kept_port: Option<tokio::net::TcpSocket>,
    /// The URL of a coordinator that this process has not started.
    coordinator: Option<String>,
}

impl Postgres {
    /// The server of this test binary, started at first use and stopped with the process.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| {
            if let Some(url) = crate::citus::given() {
                return Postgres::at(url);
            }
            let postgres = Postgres::start();
            postgres.stop_with_process();
            postgres
        })
    }

    /// The coordinator of a cluster that runs already.
    pub fn at(url: String) -> Postgres {
        let mut postgres = Postgres::new();
        postgres.coordinator = Some(url);
        postgres
    }

    /// Starts another server, for tests that restart or break it.
    pub fn start() -> Postgres {
        Postgres::start_with(&[])
    }

    /// As [`Postgres::start`], with more lines for `postgresql.conf`.
    pub fn start_with(settings: &[&str]) -> Postgres {
        let mut postgres = Postgres::new();
        let data = postgres.data();
        run(as_server_user(&postgres.bin.join("initdb"))
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
                "-U",
                USER,
                "-D",
            ])
            .arg(&data));
        let mut conf = format!(
            "\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\nfsync=off\nfull_page_writes=off\n\
             shared_buffers=32MB\nmax_connections=200\nautovacuum=off\nlog_min_messages=fatal\n",
            postgres.socket_dir().display()
        );
        for line in settings {
            conf.push_str(line);
            conf.push('\n');
        }
        postgres.append("postgresql.conf", &conf);
        postgres.up();
        postgres
    }

    /// A server without a data directory yet.
    fn new() -> Postgres {
        let dir = tempfile::Builder::new()
            .prefix("wds-pg-")
            .tempdir()
            .expect("temporary directory for Postgres");
        if is_root() {
            // The server refuses to run as root.
            run(Command::new("chown")
                .arg(format!("{USER}:"))
                .arg(dir.path()));
        }
        Postgres {
            port: free_port(),
            dir,
            bin: find_bin(),
            server: None,
            kept_port: None,
            coordinator: None,
        }
    }

    /// A copy of the running server, made as backups are, which is not started yet.
    pub fn back_up(&self) -> Postgres {
        self.copy(&[])
    }

    fn copy(&self, flags: &[&str]) -> Postgres {
        let copy = Postgres::new();
        run(as_server_user(&self.bin.join("pg_basebackup"))
            .args(["--checkpoint=fast", "--no-sync"])
            .args(flags)
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()])
            .arg("-D")
            .arg(copy.data()));
        let conf = format!(
            "\nunix_socket_directories='{}'\nsynchronous_standby_names=''\n",
            copy.socket_dir().display()
        );
        copy.append("postgresql.conf", &conf);
        copy
    }

    /// Stops this server, which has [`ARCHIVING`], and puts a backup of it in its place: as it was
    /// at a restore point, and at its port.
    pub fn restore(&mut self, mut backup: Postgres, point: &str) {
        self.down();
        self.kept_port = None;
        let archive = self.dir.path().join("archive");
        let conf = format!(
            "\nrestore_command='cp {}/%f %p'\nrecovery_target_name='{point}'\n\
             recovery_target_action='promote'\n",
            archive.display()
        );
        backup.append("postgresql.conf", &conf);
        backup.write("recovery.signal", b"");
        backup.port = self.port;
        backup.up();
        assert_eq!(backup.port, self.port, "another process took the port");
        let until = Instant::now() + crate::PATIENCE;
        while backup.scalar("postgres", "SELECT pg_is_in_recovery()") == "t" {
            assert!(Instant::now() < until, "not restored:\n{}", backup.log());
            std::thread::sleep(Duration::from_millis(30));
        }
        *self = backup;
    }

    /// Waits until all that was written is in the archive.
    pub fn archived(&self) {
        let last = self.scalar("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        let archived = format!("SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver");
        let until = Instant::now() + crate::PATIENCE;
        while self.scalar("postgres", &archived) != "t" {
            assert!(Instant::now() < until, "not archived:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Starts a streaming replica of this server (read-only until [`Postgres::promote`]). Commits
    /// here wait from now on until the replica has applied them.
    pub fn start_replica(&self) -> Postgres {
        let mut replica = self.copy(&["--write-recovery-conf"]);
        replica.up();
        self.set("synchronous_commit", "remote_apply");
        self.set("synchronous_standby_names", "*");
        let until = Instant::now() + Duration::from_secs(20);
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        while self.scalar("postgres", synchronous) != "1" {
            assert!(Instant::now() < until, "the replica does not follow");
            std::thread::sleep(Duration::from_millis(30));
        }
        replica
    }

    /// Promotes a replica to a server of its own, and waits until it takes writes.
    pub fn promote(&self) {
        self.execute("postgres", "SELECT pg_promote(true, 30)");
    }

    /// Changes a setting of the running server.
    pub fn set(&self, name: &str, value: &str) {
        let url = self.url("postgres");
        let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
        blocking(move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls)
                .expect("connecting to the test server");
            for sql in [
                "SET default_transaction_read_only = off",
                &sql,
                "SELECT pg_reload_conf()",
            ] {
                client
                    .batch_execute(sql)
                    .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            }
        });
    }

    /// Starts the server if it is down, and waits until it answers.
    pub fn up(&mut self) {
        assert!(self.server.is_none(), "Postgres is already running");
        for attempt in 0.. {
            let log = std::fs::File::create(self.dir.path().join("log")).expect("log file");
            self.kept_port = None;
            let child = as_server_user(&self.bin.join("postgres"))
                .arg("-D")
                .arg(self.data())
                .arg("-p")
                .arg(self.port.to_string())
                .env("HOME", self.dir.path()) // it looks for certificates there
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("log file"))
                .stderr(log)
                .spawn()
                .expect("starting postgres");
            self.server = Some(child);
            if self.wait_ready() {
                return;
            }
            self.down_now();
            // Another process took the port between the check and the bind.
            assert!(attempt < 3, "Postgres did not start:\n{}", self.log());
            self.port = free_port();
        }
    }

    fn wait_ready(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(Ok(Some(_))) = self.server.as_mut().map(Child::try_wait) {
                return false;
            }
            let url = self.url("postgres");
            if blocking(move || postgres::Client::connect(&url, postgres::NoTls).is_ok()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        false
    }

    /// Stops the server at once (connections break).
    pub fn down(&mut self) {
        self.signal("-INT"); // "fast shutdown"
        self.reap(Duration::from_secs(20));
        self.keep_port();
    }

    /// Stops the server without writing anything more, as an "immediate shutdown" does.
    pub fn down_now(&mut self) {
        self.signal("-QUIT");
        self.reap(Duration::from_secs(10));
        self.keep_port();
    }

    fn keep_port(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        // The connections of the stopped server may linger.
        socket.set_reuseaddr(true).expect("socket");
        let bound = socket.bind(([127, 0, 0, 1], self.port).into());
        self.kept_port = bound.is_ok().then_some(socket);
    }

    /// Kills every process of the server, as the kernel or a power cut would.
    pub fn kill(&mut self) {
        let all = self.processes();
        signal_each(&all, "-KILL");
        self.reap(Duration::from_secs(10));
        // The next server refuses to start while one of them holds the shared memory.
        for pid in all {
            while parent_of(pid).is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.keep_port();
    }

    /// Sends a signal to every process of the server.
    pub fn signal_all(&self, signal: &str) {
        signal_each(&self.processes(), signal);
    }

    /// The postmaster and its children.
    fn processes(&self) -> Vec<u32> {
        let Some(child) = &self.server else {
            return Vec::new();
        };
        let parent = self.pid(child);
        let children = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| parent_of(*pid) == Some(parent));
        std::iter::once(parent).chain(children).collect()
    }

    /// Stops and starts.
    pub fn restart(&mut self) {
        self.down();
        self.up();
    }

    /// Sends a signal to the postmaster (not to its children).
    pub fn signal(&self, signal: &str) {
        if let Some(child) = &self.server {
            let _ = Command::new("kill")
                .arg(signal)
                .arg(self.pid(child).to_string())
                .status();
        }
    }

    /// The postmaster's own pid (the child may be `setpriv`, which becomes the server by exec).
    fn pid(&self, child: &Child) -> u32 {
        child.id()
    }

    fn reap(&mut self, limit: Duration) {
        let Some(mut child) = self.server.take() else {
            return;
        };
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// A static is never dropped: a watcher process stops the server when this process is gone.
    pub(crate) fn stop_with_process(&self) {
        let Some(child) = &self.server else { return };
        let (server, dir) = (self.pid(child), self.dir.path().display().to_string());
        let script = format!(
            "while kill -0 {me} 2>/dev/null; do sleep 0.2; done; kill -QUIT {server} 2>/dev/null; \
             for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 {server} 2>/dev/null || break; sleep 0.2; done; rm -rf '{dir}'",
            me = std::process::id(),
        );
        // Outlives this process on purpose.
        #[allow(clippy::zombie_processes)]
        Command::new("setsid")
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starting the watcher of Postgres");
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's output.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// TCP URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        match &self.coordinator {
            Some(url) => crate::citus::url_of(url, database),
            None => self.url_as(USER, database),
        }
    }

    /// TCP URL of a database for another role (`user` or `user:password`).
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!(
            "postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// URL over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        let dir = self.socket_dir().display().to_string().replace('/', "%2F");
        format!("postgres://{USER}@{dir}:{}/{database}", self.port)
    }

    /// Creates an empty database with a name of its own; returns the name.
    pub fn database(&self) -> String {
        self.database_with("")
    }

    /// As [`Postgres::database`], with options of `CREATE DATABASE`.
    pub fn database_with(&self, options: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "t{}_{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let sql = match self.coordinator {
            Some(_) => {
                assert_eq!(options, "", "no such database can be made on Citus");
                format!("CREATE SCHEMA {name}")
            }
            None => format!("CREATE DATABASE {name} {options}"),
        };
        self.execute("postgres", &sql);
        name
    }

    /// A connection as superuser.
    pub fn client(&self, database: &str) -> postgres::Client {
        postgres::Client::connect(&self.url(database), postgres::NoTls)
            .expect("connecting to the test server")
    }

    /// Runs SQL as superuser. Not from async code (use [`blocking`]).
    pub fn execute(&self, database: &str, sql: &str) {
        execute_at(&self.url(database), sql);
    }

    /// First column of the first row of a query, as text.
    pub fn scalar(&self, database: &str, sql: &str) -> String {
        let (url, sql) = (self.url(database), sql.to_owned());
        blocking(move || {
            let mut client = postgres::Client::connect(&url, postgres::NoTls)
                .expect("connecting to the test server");
            let rows = client
                .simple_query(&sql)
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            rows.iter()
                .find_map(|m| match m {
                    postgres::SimpleQueryMessage::Row(row) => {
                        Some(row.get(0).unwrap_or("NULL").to_owned())
                    }
                    _ => None,
                })
                .unwrap_or_default()
        })
    }

    /// Puts a file into the data directory, readable by the server alone.
    pub fn write(&self, name: &str, content: &[u8]) {
        let path = self.data().join(name);
        std::fs::write(&path, content).expect("writing into the data directory");
        if is_root() {
            run(Command::new("chown").arg(format!("{USER}:")).arg(&path));
        }
        run(Command::new("chmod").arg("600").arg(&path));
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        let old = std::fs::read_to_string(&path).expect("reading the server's configuration");
        self.write(name, format!("{old}{text}").as_bytes());
    }

    /// Replaces `pg_hba.conf` and makes the server read it.
    pub fn set_hba(&self, rules: &str) {
        self.write("pg_hba.conf", rules.as_bytes());
        self.signal("-HUP");
        std::thread::sleep(Duration::from_millis(300));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.down_now();
    }
}

/// Runs statements at this URL.
pub fn execute_at(url: &str, sql: &str) {
    blocking(|| {
        let mut client =
            postgres::Client::connect(url, postgres::NoTls).expect("connecting to the test server");
        client
            .batch_execute(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    });
}

/// Runs blocking database code from async code as well.
pub fn blocking<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Sends a signal to processes.
pub fn signal_each(pids: &[u32], signal: &str) {
    let pids = pids.iter().map(u32::to_string);
    let _ = Command::new("kill").arg(signal).args(pids).status();
}

/// The parent of a running process (`None` for a zombie).
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state parent …; the name may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    match fields.next()? {
        "Z" => None,
        _ => fields.next()?.parse().ok(),
    }
}

/// Whether this process may mount and become other users.
pub fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output().expect("running id");
    String::from_utf8_lossy(&out.stdout).trim() == "0"
}

/// A command that runs as the user `postgres` if this process is root. By `exec`, so that its pid
/// is the server's.
pub fn as_server_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            &format!("--reuid={USER}"),
            &format!("--regid={USER}"),
            "--init-groups",
            "--",
        ])
        .arg(program);
    command
}

fn find_bin() -> PathBuf {
    let programs = ["initdb", "postgres", "pg_basebackup"];
    let complete = |dir: &Path| programs.iter().all(|p| dir.join(p).is_file());
    let mut dirs: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    dirs.sort();
    dirs.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    dirs.into_iter()
        .rev()
        .find(|dir| complete(dir))
        .expect("these tests need a Postgres server: install the package postgresql (initdb, postgres and pg_basebackup must be on the PATH or in /usr/lib/postgresql/*/bin)")
}

/// A TCP port that had no listener a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port")
        .port()
}

fn run(command: &mut Command) {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
