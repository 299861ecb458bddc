//! Processes that die: at every fail point, and at any moment. The next process must find every
//! acknowledged write, and nothing dangling.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use walrus_devnet::{BlobId, BlockingDevnet, Devnet, Options};
use walrusds::{Config, WalrusDatastore};

use crate::backend::Backend;
use crate::corruptor::Corruptor;
use crate::workload::{Client, Journal, Manner, Tally};
use crate::Settings;
use testkit::mem::key_of;

#[cfg(failpoints)]
pub use walrusds::FAILPOINTS;
/// Without them this program is only checked by the compiler.
#[cfg(not(failpoints))]
pub const FAILPOINTS: [&str; 0] = [];

const CLIENTS: usize = 12;
const LENGTH: usize = 200;
/// The read cache's directory within the repository.
pub const READ_CACHE: &str = "read-cache";
/// A process that has not ended by then hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

fn manner() -> Manner {
    Manner {
        batch: 16,
        length: LENGTH,
        give_up: 0.03,
        damage: false,
        lies: false,
    }
}

/// The environment variable that holds a worker's task.
const TASK: &str = "WALRUS_CHAOS_WORKER";

/// The worker, if this process is one: checks every write that earlier workers acknowledged, goes
/// on until the given number of further writes is acknowledged, and closes.
pub fn worker() -> Option<ExitCode> {
    let task: serde_json::Value = serde_json::from_str(&std::env::var(TASK).ok()?).expect("task");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    Some(runtime.block_on(async {
        let text = |name: &str| task[name].as_str().expect("task").to_owned();
        let number = |name: &str| task[name].as_u64().expect("task");
        let (repo, journal) = (text("repo"), text("journal"));
        let config = Config::from_json(&task["config"].to_string()).expect("configuration");
        let clients = Client::resume(Path::new(&journal), CLIENTS, number("seed"), LENGTH);
        let journal = Arc::new(Journal::append(Path::new(&journal)).expect("journal"));
        let mut clients: Vec<Client> = clients
            .into_iter()
            .map(|client| client.with_journal(&journal))
            .collect();
        let ds = WalrusDatastore::open(config, Path::new(&repo))
            .await
            .expect("opening");
        let mut tally = Tally::default();
        tally.strict = task["strict"] == true;
        let tally = tally;
        let verifying = clients.iter_mut().map(|client| client.verify(&ds, &tally));
        crate::together(verifying).await;
        // Reported at once: this process may not live to its end.
        let found = |tally: &Tally| {
            for complaint in tally.complaints() {
                println!("{complaint}");
            }
            ExitCode::from(u8::from(
                tally.lost.load(Relaxed) + tally.wrong.load(Relaxed) > 0,
            ))
        };
        println!("checked {}", tally.reads.load(Relaxed));
        if !tally.complaints().is_empty() {
            return found(&tally);
        }
        let (stop, manner) = (CancellationToken::new(), manner());
        let target = number("writes");
        // Renewal goes on beside the writes; a worker that waits for it has time.
        let until = Instant::now() + Duration::from_millis(number("linger_ms"));
        let told_to_stop = Path::new(&repo).join(STOP);
        let lingers = || Instant::now() < until && !told_to_stop.exists();
        let only_reads = task["only_reads"] == true;
        let working = clients.iter_mut().map(|client| {
            let (ds, manner, stop, tally) = (&ds, &manner, &stop, &tally);
            async move {
                while tally.writes.load(Relaxed) < target || lingers() {
                    match only_reads && tally.writes.load(Relaxed) >= target {
                        true => client.verify(ds, tally).await,
                        false => client.act(ds, manner, tally, stop).await,
                    }
                }
            }
        });
        crate::together(working).await;
        ds.close().await.expect("closing");
        println!("closed");
        found(&tally)
    }))
}

/// A file in the repository by which a worker that lingers is told to stop.
const STOP: &str = "stop";

/// The results of rounds of crashes.
#[derive(Default)]
pub struct Crashes {
    /// Processes that died.
    pub deaths: u64,
    /// The number of damages to the read cache during the rounds.
    pub damages: u64,
    /// Acknowledged writes, as the journals tell.
    pub writes: u64,
    /// Keys that were compared after the deaths.
    pub checked: u64,
    /// Rows that were compared with what lies on the network.
    pub rows: u64,
    pub complaints: Vec<String>,
}

impl Crashes {
    pub fn add(&mut self, other: Crashes) {
        self.deaths += other.deaths;
        self.damages += other.damages;
        self.writes += other.writes;
        self.checked += other.checked;
        self.rows += other.rows;
        self.complaints.extend(other.complaints);
    }
}

/// An index, a network and a journal that outlive the workers.
pub struct Scenario<'a> {
    pub settings: &'a Settings,
    pub backend: Backend,
    /// Whether writes go through a write journal.
    journalled: bool,
    pub net: BlockingDevnet,
    dir: tempfile::TempDir,
    pub result: Crashes,
}

/// The task of one worker.
pub struct Life<'a> {
    /// Keys of its configuration, beside those of every worker.
    pub config: serde_json::Value,
    /// How many writes it makes at least.
    pub writes: u64,
    /// How long it goes on with its calls then, if it is not told to stop.
    pub linger: Duration,
    /// The fail point at which it dies, and at which hit.
    pub point: Option<(&'a str, u64)>,
    /// No call of its clients may fail.
    pub strict: bool,
    /// After its writes it reads every key again and again.
    pub only_reads: bool,
}

impl Default for Life<'_> {
    fn default() -> Self {
        Life {
            config: serde_json::json!({}),
            writes: 0,
            linger: Duration::ZERO,
            point: None,
            strict: false,
            only_reads: false,
        }
    }
}

pub struct Ended {
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl<'a> Scenario<'a> {
    pub fn new(settings: &'a Settings, backend: Backend, journalled: bool) -> Self {
        let net = Devnet::start_blocking(Options {
            cheap_ids: true,
            max_body: 64 << 20,
            publisher_concurrency: 0,
            ..Options::default()
        });
        Scenario {
            settings,
            backend,
            journalled,
            net: net.expect("local Walrus"),
            dir: tempfile::tempdir().expect("directory"),
            result: Crashes::default(),
        }
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir.path().join("journal")
    }

    fn corruptor(&self) -> Corruptor {
        let seed = self.settings.seed + self.result.deaths;
        Corruptor::start(self.dir.path().join(READ_CACHE), seed)
    }

    /// Starts a worker.
    pub fn spawn(&self, life: &Life<'_>) -> Child {
        let _ = std::fs::remove_file(self.dir.path().join(STOP));
        let mut config = self.settings.config(serde_json::json!({
            "publisherURL": self.net.url(), "aggregatorURL": self.net.url(),
            "packTargetSizeBytes": 65536, "requestTimeoutSeconds": 5, "epochs": 20,
            "cachePath": READ_CACHE, "cacheBytes": 100_000,
        }));
        if self.journalled {
            // Small packs, so that many are on their way at once.
            config["journalPath"] = "write-journal".into();
            config["packTargetSizeBytes"] = 2048.into();
            config["packIdleFlushSeconds"] = 1.into();
            // What was acknowledged outlives the process in both ways.
            let sync = ["put", "sync"][self.result.deaths as usize % 2];
            config["journalSync"] = sync.into();
        }
        if let Some(all) = config.as_object_mut() {
            let own = life.config.as_object().into_iter().flatten();
            all.extend(own.map(|(key, value)| (key.clone(), value.clone())));
            all.retain(|_, value| !value.is_null());
        }
        self.backend.configure(&mut config);
        let task = serde_json::json!({
            "config": config, "repo": self.dir.path(), "journal": self.journal(),
            "seed": self.settings.seed + self.result.deaths, "writes": life.writes,
            "linger_ms": life.linger.as_millis() as u64,
            "strict": life.strict, "only_reads": life.only_reads,
        });
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .env(TASK, task.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some((name, n)) = life.point {
            command.env("WALRUSDS_FAILPOINT", format!("{name}:{n}"));
        }
        command.spawn().expect("starting a worker")
    }

    /// Tells a worker that lingers to stop.
    pub fn stop(&self) {
        std::fs::write(self.dir.path().join(STOP), b"").expect("the file");
    }

    /// Waits for the end of a worker.
    pub fn wait(&mut self, mut child: Child) -> Ended {
        let until = Instant::now() + PATIENCE;
        let corruptor = self.corruptor();
        let mut hangs = false;
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for a worker") {
                break status;
            }
            if Instant::now() > until && !hangs {
                hangs = true;
                let _ = child.kill();
                self.result.complaints.push("a worker hangs".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.result.damages += corruptor.stop();
        let mut ended = Ended {
            signal: status.signal(),
            out: String::new(),
            err: String::new(),
        };
        // A worker prints a few lines: the pipes hold them until now.
        if let Some(mut out) = child.stdout.take() {
            let _ = out.read_to_string(&mut ended.out);
        }
        if let Some(mut err) = child.stderr.take() {
            let _ = err.read_to_string(&mut ended.err);
        }
        self.backend.settle();
        let checked = ended.out.lines().find_map(|l| l.strip_prefix("checked "));
        self.result.checked += checked.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        if ended.signal.is_some() {
            self.result.deaths += 1;
            if ended.out.lines().any(|line| line.starts_with("! ")) {
                self.complain("a worker complained before it died", &ended);
            }
            return ended;
        }
        if !ended.out.contains("\nclosed\n") {
            self.complain("a worker ended early", &ended);
        }
        if !status.success() {
            self.complain("a worker complains", &ended);
        }
        ended
    }

    pub fn complain(&mut self, what: &str, ended: &Ended) {
        let text = format!(
            "{}: {what}\n{}{}",
            self.backend.name(),
            ended.out,
            ended.err
        );
        self.result.complaints.push(text);
    }

    /// Lets a worker run into a fail point.
    fn die_at(&mut self, point: &str, n: u64) {
        let renew = point.starts_with("renew.");
        let mut life = Life {
            writes: 400,
            point: Some((point, n)),
            ..Life::default()
        };
        if renew {
            life.linger = Duration::from_secs(20);
            // Its blobs are due from the beginning on.
            life.config = serde_json::json!({
                "epochDurationSeconds": 1, "renewIntervalSeconds": 1, "renewLeadSeconds": 19,
            });
        }
        self.die(&life);
        if renew {
            // The epoch is one of those bought; a lease that is not renewed again must last to the
            // end.
            self.net.advance_epoch(1);
        }
    }

    /// Lets a worker run into its fail point.
    pub fn die(&mut self, life: &Life<'_>) {
        let child = self.spawn(life);
        let ended = self.wait(child);
        let (point, _) = life.point.expect("a fail point");
        let said = ended.err.contains(&format!("fail point {point}"));
        if ended.signal != Some(6) || !said {
            self.complain(&format!("{point} was not reached"), &ended);
        }
    }

    /// Kills a worker after a further number of acknowledged writes.
    pub fn kill(&mut self, more: u64, life: &Life<'_>) {
        let lines = |path: &Path| {
            let text = std::fs::read(path).unwrap_or_default();
            text.iter().filter(|b| **b == b'\n').count() as u64
        };
        let before = lines(&self.journal());
        let mut child = self.spawn(life);
        let until = Instant::now() + PATIENCE;
        let corruptor = self.corruptor();
        while lines(&self.journal()) < before + more {
            if Instant::now() > until || !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        self.result.damages += corruptor.stop();
        let ended = self.wait(child);
        if ended.signal != Some(9) {
            self.complain("a worker was not there to be killed", &ended);
        }
    }

    /// A last worker checks everything; then each row is compared with what the network holds.
    pub fn finish(mut self) -> Crashes {
        let child = self.spawn(&Life {
            writes: 50,
            ..Life::default()
        });
        self.wait(child);
        let journal = self.journal();
        let clients = Client::resume(&journal, CLIENTS, self.settings.seed, LENGTH);
        for row in self.backend.rows() {
            self.result.rows += 1;
            let block = row
                .blob_id
                .parse::<BlobId>()
                .ok()
                .and_then(|id| self.net.content(&id))
                .and_then(|blob| {
                    let start = usize::try_from(row.offset).ok()?;
                    let end = start.checked_add(usize::try_from(row.size).ok()?)?;
                    (end <= blob.len()).then(|| blob.slice(start..end))
                });
            // Blocks without a byte need no blob.
            let right = match block {
                None => row.size == 0,
                Some(block) => {
                    row.key == key_of(&block)
                        || clients
                            .iter()
                            .any(|c| c.model().possible(&row.key).contains(&Some(block.clone())))
                }
            };
            if !right {
                self.result.complaints.push(format!(
                    "row {} points at bytes {}+{} of blob {}, which are not its block",
                    row.key, row.offset, row.size, row.blob_id
                ));
            }
        }
        self.result.writes = acked(&std::fs::read_to_string(&journal).unwrap_or_default());
        self.result
    }
}

/// Acknowledged writes in a journal.
fn acked(journal: &str) -> u64 {
    let mut pending = [0; CLIENTS];
    let mut all = 0;
    for line in journal.lines() {
        let mut words = line.split(' ');
        let kind = words.next();
        let Some(Ok(id)) = words.next().map(str::parse::<usize>) else {
            continue;
        };
        match kind {
            Some("begin") => pending[id] = words.count() as u64,
            _ => all += std::mem::take(&mut pending[id]),
        }
    }
    all
}

/// A death at every fail point that this index can reach, `rounds` times over.
pub fn at_every_point(
    settings: &Settings,
    fresh: impl Fn() -> Backend,
    journalled: bool,
    rounds: u64,
) -> Crashes {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut all = Crashes::default();
    let mut scenario = Scenario::new(settings, fresh(), journalled);
    let mine = |point: &&&str| match point.split('.').next() {
        Some("journal" | "flush") => journalled,
        Some("repack" | "extend" | "dead" | "adopt") => false, // they are reached by `lifetime`
        Some("close" | "delete") => true,
        Some(other @ ("sqlite" | "postgres")) => !journalled && other == scenario.backend.name(),
        _ => !journalled,
    };
    let points: Vec<&str> = FAILPOINTS.iter().filter(mine).copied().collect();
    for round in 0..rounds {
        for point in &points {
            // A fail point that is reached once in the life of a process, or once in the life of a
            // table.
            let once = ["close.", "usage.", "journal.created", "journal.removed"]
                .iter()
                .any(|rare| point.starts_with(rare));
            if point.contains(".schema.") {
                let mut young = Scenario::new(settings, fresh(), journalled);
                let statement = point.ends_with(".statement");
                young.die_at(
                    point,
                    if statement {
                        rng.random_range(1..=6)
                    } else {
                        1
                    },
                );
                all.add(young.finish());
            } else {
                let n = if once {
                    1
                } else {
                    1 + rng.random_range(0..=round.min(2)) * 2
                };
                scenario.die_at(point, n);
            }
        }
    }
    all.add(scenario.finish());
    all
}

/// Kills at any moment.
pub fn at_any_moment(
    settings: &Settings,
    backend: Backend,
    journalled: bool,
    rounds: u64,
) -> Crashes {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut scenario = Scenario::new(settings, backend, journalled);
    let life = Life {
        writes: u64::MAX,
        ..Life::default()
    };
    for _ in 0..rounds {
        scenario.kill(rng.random_range(1..400), &life);
    }
    scenario.finish()
}
