//! The lives of a node, step by step through the years.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use walrus_devnet::{BlockingDevnet, Devnet, FaultAction, FaultPlan, FaultRule, Op, Options, Role};
use walrusds::clock::Clock;
use walrusds::log::Level;
use walrusds::{BlobStore, Client, Config, ErrorKind, Index, WalrusDatastore};

use crate::backend::Backend;
use crate::bill::{Paid, Rates};
use crate::history::{self, Block, State};
use crate::time::{runtime, Flow, SimClock};
use crate::{Settings, Way};

pub const EPOCH: Duration = Duration::from_secs(14 * 86_400);
/// The first epoch of the simulation on the network.
pub const FIRST_EPOCH: u32 = 100;
/// The wrong clock is so far ahead.
const AHEAD: Duration = Duration::from_secs(365 * 86_400);
/// How many blocks are put or deleted in one call.
const BATCH: usize = 128;
/// How many live blocks are read back in each epoch.
const SAMPLE: usize = 150;
/// How many complaints are told, and how many log lines about a lost blob.
const COMPLAINTS: usize = 6;
const LINES: usize = 12;
/// How often a call is repeated that failed.
const ATTEMPTS: u32 = 20;

/// Which aggregators lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lies {
    None,
    /// The one that is asked first.
    First,
    All,
}

/// The end of a life.
enum End {
    Killed,
    /// It was closed in order, and another one begins.
    Closed,
    Done,
}

/// What happened, for the report.
#[derive(Default)]
pub struct Tally {
    pub kills: u64,
    pub lives: u64,
    pub failed_calls: u64,
    pub compared: u64,
    /// Live blocks that could not be read when a sample was taken.
    pub unreadable: u64,
    /// Live blocks that could not be read, or were wrong, at the end.
    pub lost: u64,
    /// Deleted blocks that were still there at the end.
    pub undead: u64,
    pub complaints: Vec<String>,
    /// The log at warn and error: step and line.
    raw_log: Vec<(u32, String)>,
    /// Lines of the log at warn and error, without numbers and IDs.
    pub log: BTreeMap<(Level2, String), u64>,
    /// Counters of all lives.
    pub metrics: BTreeMap<&'static str, u64>,
}

/// `error` before `warn`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level2 {
    Error,
    Warn,
}

impl Tally {
    fn complain(&mut self, text: String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(text);
        }
    }

    fn take_log(&mut self, ds: &WalrusDatastore, step: u32) {
        while let Some(line) = ds.next_log_line() {
            let level = match line.level {
                Level::Error => Level2::Error,
                Level::Warn => Level2::Warn,
                _ => continue,
            };
            *self.log.entry((level, plain(&line.message))).or_default() += 1;
            self.raw_log.push((step, line.message));
        }
    }
}

/// A log line without what differs from blob to blob.
fn plain(message: &str) -> String {
    let word = |word: &str| match word {
        word if word
            .trim_matches(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .len()
            == 43 =>
        {
            "…".to_owned()
        }
        word if word.chars().any(|c| c.is_ascii_digit()) => "#".to_owned(),
        word => word.to_owned(),
    };
    let words: Vec<String> = message.split(' ').map(word).collect();
    words.join(" ").chars().take(230).collect()
}

/// One simulation.
pub struct Sim<'a> {
    settings: &'a Settings,
    way: Way,
    backend: Backend,
    pub net: Arc<BlockingDevnet>,
    first_aggregator: String,
    clock: Arc<SimClock>,
    began: SystemTime,
    dir: tempfile::TempDir,
    cli: PathBuf,
    pub blocks: Vec<Block>,
    rng: StdRng,
    /// The step under way, and whether its epoch has begun.
    step: u32,
    epoch: Option<u32>,
    waiting: Vec<usize>,
    leaving: Vec<usize>,
    /// Whether blocks are being put.
    putting: bool,
    admitted: Option<u32>,
    lies: Lies,
    clock_is_wrong: bool,
    /// The node dies when the network has seen so many requests.
    dies_at: Arc<AtomicU64>,
    pub paid: Paid,
    pub tally: Tally,
}

impl<'a> Sim<'a> {
    pub fn new(
        settings: &'a Settings,
        backend: Backend,
        dir: tempfile::TempDir,
        way: Way,
    ) -> Sim<'a> {
        let net = Devnet::start_blocking(Options {
            shards: settings.n_shards,
            cheap_ids: true,
            max_body: 64 << 20,
            publisher_concurrency: 0,
            aggregator_concurrency: 0,
            first_epoch: FIRST_EPOCH,
            single_wallet: way == Way::Reuse,
            ..Options::default()
        });
        let net = net.expect("a local Walrus");
        let listen = ([127, 0, 0, 1], 0).into();
        let (_, first_aggregator) = net
            .add_endpoint(Role::Aggregator, listen)
            .expect("an aggregator");
        let began = SystemTime::now();
        net.set_epoch_since(FIRST_EPOCH, began);
        let exe = std::env::current_exe().expect("the program's path");
        Sim {
            settings,
            way,
            backend,
            net: Arc::new(net),
            first_aggregator,
            clock: Arc::new(SimClock::at(began)),
            began,
            dir,
            cli: exe.with_file_name("walrus-devnet-cli"),
            blocks: history::make(settings),
            rng: StdRng::seed_from_u64(settings.seed ^ 0xfeed),
            step: 0,
            epoch: None,
            waiting: Vec::new(),
            leaving: Vec::new(),
            putting: false,
            admitted: None,
            lies: Lies::None,
            clock_is_wrong: false,
            dies_at: Arc::new(AtomicU64::new(u64::MAX)),
            paid: Paid::default(),
            tally: Tally::default(),
        }
    }

    /// Lives until the years are over.
    pub fn run(&mut self) {
        loop {
            let runtime = runtime();
            let end = runtime.block_on(self.live());
            // Nothing of the node runs on: that is its death.
            runtime.shutdown_background();
            self.dies_at.store(u64::MAX, Relaxed);
            self.tally.lives += 1;
            match end {
                End::Killed => {
                    self.tally.kills += 1;
                    self.backend.bury();
                }
                End::Closed => {}
                End::Done => return,
            }
        }
    }

    fn config(&self) -> Config {
        let net = self.net.url();
        let mut config = json!({
            "publisherURL": net,
            "aggregatorURL": format!("{},{net}", self.first_aggregator),
            "network": {"epochDurationSeconds": EPOCH.as_secs()},
            "epochs": self.settings.bought,
            "deletable": self.way.has_chain(),
            "reuseStorage": self.way == Way::Reuse,
            "nShards": self.settings.n_shards,
            "packTargetSizeBytes": self.settings.target,
            "renewIntervalSeconds": self.settings.step().as_secs(),
            "renewLeadSeconds": self.settings.lead.as_secs(),
            // Every read goes to an aggregator.
            "blobCacheBytes": -1,
            // In simulated time: nothing real takes so long.
            "requestTimeoutSeconds": 3600,
        });
        if self.settings.journal {
            let path = self.dir.path().join("journal");
            config["journalPath"] = path.display().to_string().into();
        }
        if self.way.has_chain() {
            let cli = self.cli.display().to_string();
            config["walrusCommand"] = json!([cli, "--url", net]);
        }
        self.backend.configure(&mut config);
        Config::from_json(&config.to_string()).expect("the configuration")
    }

    async fn open(&self, flow: &mut Flow) -> WalrusDatastore {
        let config = self.config();
        let index: Arc<dyn Index> = self.backend.open().await.expect("opening the index");
        let store: Arc<dyn BlobStore> = Arc::new(Client::new(config.client()).expect("a client"));
        loop {
            let clock: Arc<dyn Clock> = Arc::<SimClock>::clone(&self.clock);
            let (index, store) = (Arc::clone(&index), Arc::clone(&store));
            match WalrusDatastore::with_parts(&config, index, store, clock) {
                // The dead one's last thread is just ending.
                Err(e) if e.kind() == ErrorKind::Locked => flow.tick().await,
                opened => return opened.expect("opening the datastore"),
            }
        }
    }

    /// One life of the node.
    async fn live(&mut self) -> End {
        let mut flow = Flow::start(&self.clock, &self.net);
        self.note_death().await;
        let ds = self.open(&mut flow).await;
        let (dies_at, mut death) = (Arc::clone(&self.dies_at), flow.clone());
        let death = async move {
            loop {
                death.tick().await;
                if death.requests() >= dies_at.load(Relaxed) {
                    return;
                }
            }
        };
        let end = tokio::select! {
            end = self.steps(&ds, &mut flow) => end,
            () = death => End::Killed,
        };
        self.tally.take_log(&ds, self.step);
        for (name, value) in ds.metrics() {
            *self.tally.metrics.entry(name).or_default() += value;
        }
        if !matches!(end, End::Killed) {
            ds.close().await.expect("closing");
        }
        end
    }

    /// Notes what the node has paid before its death, and what of that no row points at.
    async fn note_death(&mut self) {
        let new = self.paid.note(&self.net, self.putting);
        if new.is_empty() {
            return;
        }
        let ids: Vec<String> = new.iter().map(|(_, blob_id)| blob_id.clone()).collect();
        let index = self.backend.open().await.expect("opening the index");
        let live = index.live(&ids).await.expect("counting live blocks");
        let _ = index.close().await;
        for ((object, _), live) in new.iter().zip(live) {
            if live.blocks == 0 {
                self.paid.in_vain(object);
            }
        }
    }

    async fn steps(&mut self, ds: &WalrusDatastore, flow: &mut Flow) -> End {
        let steps = self.settings.epochs * self.settings.steps_per_epoch;
        while self.step < steps {
            if self.clock_was_set() {
                return End::Closed;
            }
            self.begin_epoch();
            self.set_lies();
            if self.dies_at.load(Relaxed) == u64::MAX && self.rng.random_bool(self.settings.kill) {
                let requests = self.rng.random_range(1..40);
                self.dies_at.store(flow.requests() + requests, Relaxed);
            }
            self.admit();
            self.paid.note(&self.net, self.putting);
            self.putting = true;
            self.write(ds, flow).await;
            self.paid.note(&self.net, self.putting);
            self.putting = false;
            let ends = self.began + self.settings.step() * (self.step + 1);
            flow.leap_to(ends).await;
            self.paid.note(&self.net, self.putting);
            self.tally.take_log(ds, self.step);
            let done = self.step + 1;
            if done.is_multiple_of(self.settings.steps_per_epoch) && self.lies != Lies::All {
                self.sample(ds, flow).await;
            }
            self.step = done;
        }
        self.end_epoch();
        self.net.clear_faults();
        self.compare_all(ds).await;
        End::Done
    }

    /// Lets the clock go wrong for a while, and right again. Whether that has just happened: a
    /// machine's clock is set while the node is down.
    fn clock_was_set(&mut self) -> bool {
        let wrong = self.settings.is_wrong_clock(self.step);
        if wrong == self.clock_is_wrong {
            return false;
        }
        self.clock_is_wrong = wrong;
        self.clock
            .set_ahead(if wrong { AHEAD } else { Duration::ZERO });
        true
    }

    fn begin_epoch(&mut self) {
        let epoch = self.step / self.settings.steps_per_epoch;
        if self.epoch == Some(epoch) {
            return;
        }
        self.paid.note(&self.net, self.putting);
        self.end_epoch();
        self.net
            .set_epoch_since(FIRST_EPOCH + epoch, self.began + EPOCH * epoch);
        self.net.collect_expired();
        self.epoch = Some(epoch);
    }

    /// Notes what was paid for in the epoch that is over, if there was one.
    fn end_epoch(&mut self) {
        if let Some(over) = self.epoch {
            let rates = Rates::new(self.settings);
            self.paid
                .end_of_epoch(&self.net, FIRST_EPOCH + over, &rates, &self.blocks);
        }
    }

    fn set_lies(&mut self) {
        let lies = match () {
            () if self.settings.all_lie(self.step) => Lies::All,
            () if self.settings.first_lies(self.step) => Lies::First,
            () => Lies::None,
        };
        if lies == self.lies {
            return;
        }
        self.lies = lies;
        let lie = |action, probability| {
            let reads = [Op::Get, Op::Range, Op::ByteRange];
            let rule = FaultRule::new(action)
                .on(reads)
                .with_probability(probability);
            if lies == Lies::First {
                rule.at(1)
            } else {
                rule
            }
        };
        // An offset near the beginning is in no block of a CAR.
        let rules = vec![
            lie(FaultAction::Corrupt { offset: 17 }, 0.5),
            lie(FaultAction::Corrupt { offset: 1000 }, 0.5),
            lie(FaultAction::WrongBlob { blob_id: None }, 0.2),
            lie(FaultAction::Truncate { by: 3 }, 0.2),
            // So that every answer is wrong.
            lie(FaultAction::Corrupt { offset: 1 }, 1.0),
        ];
        let seed = self.settings.seed + u64::from(self.step);
        match lies {
            Lies::None => self.net.clear_faults(),
            _ => self.net.set_faults(FaultPlan { seed, rules }),
        }
    }

    /// Adds the blocks that come and go in this step to those that wait for it.
    fn admit(&mut self) {
        if self.admitted == Some(self.step) {
            return;
        }
        self.admitted = Some(self.step);
        for (number, block) in self.blocks.iter_mut().enumerate() {
            if block.comes == self.step {
                block.key = testkit::mem::key_of(&block.bytes());
                self.waiting.push(number);
            }
            if block.goes == Some(self.step) {
                self.leaving.push(number);
            }
        }
    }

    /// Puts and deletes what waits for it. Whatever was not acknowledged before a kill is done
    /// again in the next life.
    async fn write(&mut self, ds: &WalrusDatastore, flow: &mut Flow) {
        for attempt in 1.. {
            let Sim {
                blocks,
                waiting,
                leaving,
                tally,
                ..
            } = &mut *self;
            let mut calls = FuturesUnordered::new();
            for (numbers, state) in [(&*waiting, State::Live), (&*leaving, State::Deleted)] {
                for batch in numbers.chunks(BATCH) {
                    let op = |number: &usize| {
                        let block = &blocks[*number];
                        match state {
                            State::Live => walrusds::Op::Put(block.key.clone(), block.bytes()),
                            _ => walrusds::Op::Delete(block.key.clone()),
                        }
                    };
                    let ops = batch.iter().map(op).collect();
                    let batch = batch.to_vec();
                    calls.push(async move { (ds.commit(ops).await, batch, state) });
                }
            }
            let mut done = Vec::new();
            while let Some((result, batch, state)) = calls.next().await {
                match result {
                    Ok(()) => done.push((batch, state)),
                    Err(e) => {
                        tally.failed_calls += 1;
                        assert!(attempt < ATTEMPTS, "a write fails again and again: {e}");
                    }
                }
            }
            drop(calls);
            for (batch, state) in done {
                for number in batch {
                    blocks[number].state = state;
                }
            }
            waiting.retain(|number| blocks[*number].state == State::Waiting);
            leaving.retain(|number| blocks[*number].state != State::Deleted);
            if waiting.is_empty() && leaving.is_empty() {
                return;
            }
            flow.tick().await;
        }
    }

    /// Reads some live blocks back.
    async fn sample(&mut self, ds: &WalrusDatastore, flow: &mut Flow) {
        let is_live = |number: &usize| self.blocks[*number].state == State::Live;
        let live: Vec<usize> = (0..self.blocks.len()).filter(is_live).collect();
        if live.is_empty() {
            return;
        }
        for _ in 0..SAMPLE {
            let number = live[self.rng.random_range(0..live.len())];
            if let Err(why) = self.compare(ds, number).await {
                self.tally.unreadable += 1;
                let epoch = self.step / self.settings.steps_per_epoch;
                self.tally
                    .complain(format!("epoch {epoch}, a sample: {why}"));
            }
        }
        flow.tick().await;
    }

    async fn compare(&mut self, ds: &WalrusDatastore, number: usize) -> Result<(), String> {
        let block = &self.blocks[number];
        self.tally.compared += 1;
        match ds.get(&block.key).await {
            Ok(Some(bytes)) if bytes == block.bytes() => Ok(()),
            Ok(Some(_)) => Err(format!("{} has wrong bytes", block.key)),
            Ok(None) => Err(format!("{} is unknown", block.key)),
            Err(e) => {
                let why: String = e.to_string();
                let tail = why.char_indices().rev().nth(150).map_or(0, |(at, _)| at);
                Err(format!("{} cannot be read: …{}", block.key, &why[tail..]))
            }
        }
    }

    /// What is known of the blob of a lost block.
    async fn investigate(&mut self, number: usize) {
        let index = self.backend.open().await.expect("opening the index");
        let rows = index.get(&self.blocks[number].key).await;
        let _ = index.close().await;
        let Ok(Some(row)) = rows else {
            return self.tally.complain("  it has no row".to_owned());
        };
        let per_epoch = self.settings.steps_per_epoch;
        let mut told = vec![format!(
            "  its blob {} ended with epoch {} (of the simulation: {}) by its row; the blob's log:",
            row.blob_id,
            row.end_epoch,
            row.end_epoch - i64::from(FIRST_EPOCH),
        )];
        let lines = self.tally.raw_log.iter();
        let about = lines.filter(|(_, line)| line.contains(&row.blob_id));
        for (step, line) in about.take(LINES) {
            let line: String = line.chars().take(260).collect();
            told.push(format!(
                "    epoch {}, day {}: {line}",
                step / per_epoch,
                step % per_epoch * 14 / per_epoch
            ));
        }
        self.tally.complaints.extend(told);
    }

    /// Reads every live block back, and asks for every deleted one.
    async fn compare_all(&mut self, ds: &WalrusDatastore) {
        for number in 0..self.blocks.len() {
            match self.blocks[number].state {
                State::Live => {
                    if let Err(why) = self.compare(ds, number).await {
                        self.tally.lost += 1;
                        if self.tally.lost == 1 {
                            self.tally.complaints.push(format!("at the end: {why}"));
                            self.investigate(number).await;
                        }
                    }
                }
                State::Deleted => {
                    if ds.has(&self.blocks[number].key).await.unwrap_or(true) {
                        self.tally.undead += 1;
                    }
                }
                State::Waiting => panic!("a block was never put"),
            }
        }
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}
