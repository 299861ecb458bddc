//! Real Kubo nodes for tests: every node has its own temporary repo, every test its own local
//! Walrus inside the test process, and, where it wants one, its own database in a private Postgres.
//!
//! The programs come from `scripts/kubo-test.sh`. Without them the tests fail: a test that did not
//! run must not look like one that passed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use walrus_devnet::{BlockingDevnet, Devnet, Options};

pub mod tour;

pub use testkit::postgres as pg;

use pg::Postgres;

/// No command of a test takes longer, unless something hangs.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The file that a variable of `scripts/kubo-test.sh` names.
pub fn from_script(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: these tests are run by scripts/kubo-test.sh")
    });
    let path = PathBuf::from(path);
    assert!(
        path.is_file(),
        "{variable} names {}, which is not there: run scripts/kubo-test.sh, it builds it",
        path.display()
    );
    path
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two levels below the root")
        .to_owned()
}

/// An ipfs program, and the external plugin to be installed for it.
#[derive(Debug, Clone)]
pub struct Ipfs {
    pub program: PathBuf,
    pub plugin: Option<PathBuf>,
}

impl Ipfs {
    /// Kubo v0.43.0 with walrusds built in.
    pub fn preloaded() -> Ipfs {
        Ipfs {
            program: from_script("WALRUSDS_TEST_IPFS"),
            plugin: None,
        }
    }

    /// An ordinary Kubo v0.43.0 and the plugin for it.
    pub fn external_43() -> Ipfs {
        Ipfs {
            program: from_script("WALRUSDS_TEST_IPFS_PLAIN_43"),
            plugin: Some(from_script("WALRUSDS_TEST_PLUGIN_43")),
        }
    }

    /// An ordinary Kubo v0.30.0 and the plugin for it.
    pub fn external_30() -> Ipfs {
        Ipfs {
            program: from_script("WALRUSDS_TEST_IPFS_PLAIN_30"),
            plugin: Some(from_script("WALRUSDS_TEST_PLUGIN_30")),
        }
    }
}

/// Where a node keeps its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    Sqlite,
    Postgres,
}

/// A local Walrus and the settings of nodes that use it.
pub struct World {
    pub net: BlockingDevnet,
    /// `WALRUSDS_*` variables.
    pub settings: BTreeMap<String, String>,
    /// The database, if the index is in Postgres.
    pub database: Option<String>,
}

impl World {
    /// Nodes write through to Walrus and read from it, so that what it does shows at once.
    pub fn new(index: Index) -> World {
        World::with(index, Options::default())
    }

    /// Nodes have the write journal that they have by default. It is small, and so are the packs: a
    /// file fills several. Commands leave nothing behind in it, so that it shows on Walrus.
    pub fn journalled(index: Index) -> World {
        let mut world = World::new(index);
        world.settings.remove("WALRUSDS_JOURNAL_PATH");
        world.set("WALRUSDS_JOURNAL_MAX_BYTES", (16 << 20).to_string());
        world.set("WALRUSDS_PACK_TARGET_SIZE_BYTES", (2 << 20).to_string());
        world.set("WALRUSDS_DRAIN_PARTIAL_PACKS", "true");
        world
    }

    /// As [`journalled`](Self::journalled), with the disk cache that nodes have by default.
    pub fn local(index: Index) -> World {
        let mut world = World::journalled(index);
        world.settings.remove("WALRUSDS_CACHE_PATH");
        world
    }

    /// Blob IDs are cheap ones for all options: true ones take minutes unoptimised.
    pub fn with(index: Index, options: Options) -> World {
        let net = Devnet::start_blocking(Options {
            cheap_ids: true,
            ..options
        })
        .expect("the local Walrus starts");
        let mut settings = BTreeMap::from([
            ("WALRUSDS_PUBLISHER_URL".to_owned(), net.url()),
            ("WALRUSDS_AGGREGATOR_URL".to_owned(), net.url()),
            ("WALRUSDS_JOURNAL_PATH".to_owned(), "off".to_owned()),
            ("WALRUSDS_CACHE_PATH".to_owned(), "off".to_owned()),
        ]);
        let mut database = None;
        if index == Index::Postgres {
            let name = Postgres::shared().database();
            settings.insert(
                "WALRUSDS_POSTGRES_URL".to_owned(),
                Postgres::shared().url(&name),
            );
            database = Some(name);
        }
        World {
            net,
            settings,
            database,
        }
    }

    /// One more setting for the nodes to come.
    pub fn set(&mut self, variable: &str, value: impl Into<String>) {
        self.settings.insert(variable.to_owned(), value.into());
    }

    /// A new node of Kubo v0.43.0 with walrusds built in.
    pub fn node(&self) -> Node {
        self.node_of(&Ipfs::preloaded())
    }

    /// A new node.
    pub fn node_of(&self, ipfs: &Ipfs) -> Node {
        let node = Node::without_repo(ipfs);
        node.init(&self.settings)
            .expect_ok("init with the walrusds profile");
        node
    }

    /// First column of the first row of a query to the index in Postgres.
    pub fn sql(&self, query: &str) -> String {
        let database = self.database.as_ref().expect("the index is in Postgres");
        Postgres::shared().scalar(database, query)
    }
}

/// The outcome of a program's run.
#[derive(Debug)]
pub struct Outcome {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// Both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), self.stderr)
    }

    /// Standard output without the white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    #[track_caller]
    pub fn expect_ok(self, what: &str) -> Outcome {
        assert!(self.status.success(), "{what}: {self}");
        self
    }

    /// The program failed by itself. Returns its messages.
    #[track_caller]
    pub fn expect_refusal(self, what: &str) -> String {
        assert!(!self.status.success(), "{what} should have failed: {self}");
        assert!(self.status.code().is_some(), "{what} crashed: {self}");
        self.said()
    }

    /// As [`Outcome::expect_refusal`], and the message is the program's own, not a crash report.
    #[track_caller]
    pub fn expect_failure(self, what: &str) -> String {
        let shown = self.to_string();
        let said = self.expect_refusal(what);
        for crash in ["goroutine ", "panicked at", "SIGSEGV"] {
            assert!(!said.contains(crash), "{what} crashed: {shown}");
        }
        said
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &str| {
            let text = text.trim();
            match text.char_indices().nth(4000) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text.to_owned(),
            }
        };
        write!(
            f,
            "`{}` ended with {} after {:.1} s\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.status,
            self.took.as_secs_f32(),
            shown(&String::from_utf8_lossy(&self.stdout)),
            shown(&self.stderr)
        )
    }
}

/// Runs a command to its end, for at most `limit`.
#[track_caller]
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Outcome {
    let what = describe(&command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    thread::scope(|scope| {
        // A command that fails early does not read its input.
        scope.spawn(move || drop(stdin.write_all(input)));
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for a child") {
                break Some(status);
            }
            if started.elapsed() > limit {
                child.kill().expect("killing a child");
                child.wait().expect("waiting for a child");
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let took = started.elapsed();
        let stdout = stdout.join().expect("reading stdout");
        let stderr = String::from_utf8_lossy(&stderr.join().expect("reading stderr")).into_owned();
        let Some(status) = status else {
            panic!("{what}: no end after {limit:?}\n{stderr}");
        };
        Outcome {
            what,
            status,
            stdout,
            stderr,
            took,
        }
    })
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn describe(command: &Command) -> String {
    let mut text = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for arg in command.get_args() {
        let _ = write!(text, " {}", arg.to_string_lossy());
    }
    text
}

/// A command that sees nothing of this process' environment that could steer ipfs or walrusds.
pub fn clean_command(program: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "TMPDIR", "LANG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("HOME", home).env("IPFS_TELEMETRY", "off");
    command
}

/// A Kubo node: a repo and the program to use it with.
pub struct Node {
    dir: TempDir,
    program: PathBuf,
}

impl Node {
    /// The program, with the plugin installed where it needs one, and no repo yet.
    pub fn without_repo(ipfs: &Ipfs) -> Node {
        let node = Node {
            dir: tempfile::Builder::new()
                .prefix("wds-kubo-")
                .tempdir()
                .expect("a temporary directory"),
            program: ipfs.program.clone(),
        };
        if let Some(plugin) = &ipfs.plugin {
            node.install(plugin)
                .expect_ok("scripts/plugin-install.sh with the plugin made for this ipfs");
        }
        node
    }

    /// `scripts/plugin-install.sh --so PLUGIN`.
    pub fn install(&self, plugin: &Path) -> Outcome {
        self.install_with(["--so".as_ref(), plugin.as_os_str()])
    }

    /// `scripts/plugin-install.sh ARGS`. (It needs Go, and so the environment as it is.)
    pub fn install_with<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Outcome {
        let mut command = Command::new(root().join("scripts/plugin-install.sh"));
        command
            .args(args)
            // Cargo points it at a debug build of the library.
            .env_remove("LD_LIBRARY_PATH")
            .env("IPFS", &self.program)
            .env("IPFS_PATH", self.repo());
        run(command, b"", LIMIT)
    }

    /// `ipfs init --profile=test,walrusds` with these settings.
    pub fn init(&self, settings: &BTreeMap<String, String>) -> Outcome {
        let mut command = self.command(["init", "--profile=test,walrusds"]);
        command.envs(settings);
        run(command, b"", LIMIT)
    }

    pub fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// A path outside the repo that ends with the node.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = clean_command(&self.program, self.dir.path());
        command.env("IPFS_PATH", self.repo()).args(args);
        command
    }

    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Outcome {
        run(self.command(args), b"", LIMIT)
    }

    /// Runs a command that must succeed and returns its output.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        self.run(args).expect_ok("a command of the test").text()
    }

    /// Runs a command that must fail and returns its output.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        self.run(args).expect_failure("a command of the test")
    }

    /// Gives `input` to a command that must succeed and returns its output.
    #[track_caller]
    pub fn feed<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &[u8]) -> String {
        run(self.command(args), input, LIMIT)
            .expect_ok("a command of the test")
            .text()
    }

    /// Adds and pins; the CID.
    #[track_caller]
    pub fn add(&self, content: &[u8]) -> String {
        self.feed(["add", "-Q"], content)
    }

    #[track_caller]
    pub fn try_add(&self, content: &[u8]) -> Outcome {
        run(self.command(["add", "-Q"]), content, LIMIT)
    }

    #[track_caller]
    pub fn cat(&self, cid: &str) -> Vec<u8> {
        self.run(["cat", cid]).expect_ok("cat").stdout
    }

    /// Fails the test without printing megabytes.
    #[track_caller]
    pub fn assert_holds(&self, cid: &str, content: &[u8]) {
        assert_same(&self.cat(cid), content, &format!("ipfs cat {cid}"));
    }

    /// The block multihashes that the index holds, as CIDs.
    #[track_caller]
    pub fn refs_local(&self) -> Vec<String> {
        let mut refs: Vec<String> = lines(&self.ok(["refs", "local"]));
        refs.sort();
        refs
    }

    /// A line of `ipfs repo stat`.
    #[track_caller]
    pub fn repo_stat(&self, field: &str) -> u64 {
        let text = self.ok(["repo", "stat"]);
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {field} in the output of repo stat:\n{text}"))
    }

    /// Every block in the index is there and is what its key says.
    #[track_caller]
    pub fn verify(&self) {
        let said = self.ok(["repo", "verify"]);
        assert!(said.contains("all blocks validated"), "{said}");
    }

    /// The exact content of `datastore_spec`.
    pub fn datastore_spec(&self) -> String {
        std::fs::read_to_string(self.repo().join("datastore_spec")).expect("datastore_spec")
    }

    pub fn config(&self) -> serde_json::Value {
        let text = std::fs::read(self.repo().join("config")).expect("the repo has a config");
        serde_json::from_slice(&text).expect("the config is JSON")
    }

    /// Changes the walrusds part of the config, as an operator with an editor would.
    pub fn edit_spec(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let mut config = self.config();
        edit(&mut config["Datastore"]["Spec"]["mounts"][0]["child"]);
        let text = serde_json::to_vec_pretty(&config).expect("JSON");
        std::fs::write(self.repo().join("config"), text).expect("the config can be written");
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    #[track_caller]
    pub fn daemon_with(&self, args: &[&str]) -> Daemon {
        Daemon::start(self.command(["daemon"].iter().chain(args)))
    }
}

/// A running `ipfs daemon`; killed when dropped.
pub struct Daemon {
    child: Option<Child>,
    said: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Daemon {
    /// `command` must become the daemon: by `exec`, if it is a script.
    #[track_caller]
    pub fn start(mut command: Command) -> Daemon {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting the daemon");
        let said = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            keep_reading(child.stdout.take().expect("piped"), &said),
            keep_reading(child.stderr.take().expect("piped"), &said),
        ];
        let mut daemon = Daemon {
            child: Some(child),
            said,
            readers,
        };
        let started = Instant::now();
        while !daemon.said().contains("Daemon is ready") {
            let child = daemon.child.as_mut().expect("not stopped yet");
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                // The last lines of its output.
                for reader in daemon.readers.drain(..) {
                    let _ = reader.join();
                }
                panic!("the daemon ended with {status}:\n{}", daemon.said());
            }
            assert!(
                started.elapsed() < LIMIT,
                "the daemon is not ready:\n{}",
                daemon.said()
            );
            thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not stopped yet").id()
    }

    /// The daemon's output so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("no reader panics").clone()
    }

    /// Sends SIGTERM; the daemon must exit by itself and successfully. Returns its output.
    #[track_caller]
    pub fn stop(mut self) -> String {
        let mut child = self.child.take().expect("stopped once");
        let sent = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .expect("running kill");
        assert!(sent.success());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                break status;
            }
            if started.elapsed() > LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon does not stop:\n{}", self.said());
            }
            thread::sleep(Duration::from_millis(10));
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let said = self.said();
        assert!(status.success(), "the daemon ended with {status}:\n{said}");
        said
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The port on which the daemon reports a listener.
    #[track_caller]
    fn port_of(&self, what: &str) -> u16 {
        let said = self.said();
        said.lines()
            .filter(|line| line.starts_with(what))
            .find_map(|line| line.rsplit('/').next()?.parse().ok())
            .unwrap_or_else(|| panic!("the daemon did not say {what}:\n{said}"))
    }

    /// The base URL of the RPC API.
    #[track_caller]
    pub fn api(&self) -> String {
        format!(
            "http://127.0.0.1:{}",
            self.port_of("RPC API server listening on")
        )
    }

    /// The base URL of the gateway.
    #[track_caller]
    pub fn gateway(&self) -> String {
        let port = self.port_of("Gateway server listening on");
        format!("http://127.0.0.1:{port}")
    }

    /// `GET path` at the gateway.
    #[track_caller]
    pub fn get(&self, path: &str, range: Option<&str>) -> Response {
        let port = self.port_of("Gateway server listening on");
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the gateway");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let range = range.map_or(String::new(), |r| format!("Range: bytes={r}\r\n"));
        // HTTP/1.0: the body ends with the connection.
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{range}\r\n"
        )
        .expect("sending a request");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("reading the answer");
        let end = all
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("an HTTP answer");
        let head = String::from_utf8_lossy(&all[..end]).into_owned();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| panic!("no status in {head}"));
        Response {
            status,
            head,
            body: all.split_off(end + 4),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_now();
        if thread::panicking() {
            eprintln!("the daemon said:\n{}", self.said());
        }
    }
}

fn keep_reading(
    from: impl Read + Send + 'static,
    into: &Arc<Mutex<String>>,
) -> thread::JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut into = into.lock().expect("no reader panics");
            into.push_str(&String::from_utf8_lossy(&line));
            into.push('\n');
        }
    })
}

/// An answer of the gateway.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// Fails without printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], want: &[u8], what: &str) {
    let differ = got.iter().zip(want).position(|(a, b)| a != b);
    assert!(
        got.len() == want.len() && differ.is_none(),
        "{what}: {} bytes instead of {}, first difference at {differ:?}",
        got.len(),
        want.len()
    );
}

/// Bytes that look random, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// All files below `dir`, by path relative to it.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).expect("a directory") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below dir").to_owned();
                files.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    files
}
