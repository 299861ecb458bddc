//! One outage: the load, the books of the answers that callers got, and the report.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use walrus_devnet::{Devnet, FaultRule, Options};
use walrusds::{Config, Error, ErrorKind, Op, QueryOptions, Result, WalrusDatastore};

use testkit::mem::{key_of, noise};
pub use testkit::{eventually, PATIENCE};

/// Part of every password and token of these tests: must never appear in an error or log line.
pub const SECRET: &str = "s3cr3t";
/// After the cause is gone, every call must work again within this time. The report gives the real
/// duration; the bound only separates recovery from no recovery, also on a machine that is busy
/// with other work.
const RECOVERY_LIMIT: Duration = Duration::from_secs(90);
/// A call with a deadline returns at most this much after it, beyond the delay of a timer on a busy
/// machine. The contract says 100 ms, and the report gives the measured value; a call that ignored
/// its deadline would take as long as the outage or a request's timeout.
const OVERRUN_LIMIT: Duration = Duration::from_secs(10);
/// The deadline of the calls that have one.
const DEADLINE: Duration = Duration::from_millis(50);
/// Calls begun in the outage must end within this time after it.
const STRAGGLER_LIMIT: Duration = Duration::from_secs(90);
/// The pause between two calls of a task.
const PAUSE: Duration = Duration::from_millis(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    Put,
    Batch,
    Delete,
    Get,
    Has,
    List,
}

impl Call {
    const ALL: [Call; 6] = [
        Call::Put,
        Call::Batch,
        Call::Delete,
        Call::Get,
        Call::Has,
        Call::List,
    ];

    fn writes(self) -> bool {
        matches!(self, Call::Put | Call::Batch | Call::Delete)
    }
}

/// A call that has ended.
struct Done {
    call: Call,
    begun: Instant,
    ended: Instant,
    failed: Option<Error>,
}

/// The values that a key may hold: one after an acknowledged write, more after a failed one.
type Candidates = Vec<Option<Bytes>>;

/// The books: the acknowledged state, and the contradictions found.
#[derive(Default)]
struct Books {
    keys: Mutex<HashMap<String, Candidates>>,
    /// Acknowledged blocks that no caller changes again, for readers.
    stable: Mutex<Vec<(String, Bytes)>>,
    done: Mutex<Vec<Done>>,
    /// Values and absences that contradict the books.
    wrong: Mutex<Vec<String>>,
    overrun: Mutex<Duration>,
    /// The delay of a plain timer in the same time.
    timer_late: Mutex<Duration>,
    next: AtomicU64,
    /// The database may forget the deletes of its last moments: they do not wait for its disk.
    deletes_may_return: AtomicBool,
    only_verified_reads: AtomicBool,
    /// The number of reads under way of keys that are no multihashes.
    unverified_reads: AtomicU64,
}

impl Books {
    fn new_block(&self) -> (String, Bytes) {
        let n = self.next.fetch_add(1, Relaxed);
        let value = noise(n, 200 + (n as usize * 7919) % 12_000);
        (key_of(&value), value)
    }

    /// Notes that `key` may become `value` from now on.
    fn attempt(&self, key: &str, value: Option<Bytes>) {
        let mut keys = self.keys.lock();
        let candidates = keys.entry(key.to_owned()).or_insert_with(|| vec![None]);
        if !candidates.contains(&value) {
            candidates.push(value);
        }
    }

    fn acknowledged(&self, key: &str, value: Option<Bytes>) {
        if value.is_none() && self.deletes_may_return.load(Relaxed) {
            return;
        }
        self.keys.lock().insert(key.to_owned(), vec![value]);
    }

    fn may_be(&self, key: &str, value: Option<&Bytes>) -> bool {
        let keys = self.keys.lock();
        let candidates = keys.get(key).map(Vec::as_slice).unwrap_or(&[None]);
        candidates.iter().any(|c| c.as_ref() == value)
    }

    fn contradiction(&self, text: String) {
        self.wrong.lock().push(text);
    }

    fn check_got(&self, key: &str, got: Option<&Bytes>) {
        if !self.may_be(key, got) {
            let got = got.map_or("nothing".to_owned(), |v| format!("{} other bytes", v.len()));
            self.contradiction(format!("{key} held {got}"));
        }
    }

    /// How many calls of each kind have ended.
    fn ended(&self) -> HashMap<Call, usize> {
        let mut ended = HashMap::new();
        for done in self.done.lock().iter() {
            *ended.entry(done.call).or_default() += 1;
        }
        ended
    }

    /// Waits until the load has ended `more` calls of every kind from now on.
    async fn load_goes_on(&self, more: usize) {
        let before = self.ended();
        eventually("the load goes on", || {
            let now = self.ended();
            let count = |of: &HashMap<Call, usize>, call| of.get(&call).copied().unwrap_or(0);
            Call::ALL
                .iter()
                .all(|&c| count(&now, c) >= count(&before, c) + more)
        })
        .await;
    }

    fn any_stable(&self) -> (String, Bytes) {
        let stable = self.stable.lock();
        stable[rand::random_range(0..stable.len())].clone()
    }

    async fn timed<T>(&self, call: Call, work: impl Future<Output = Result<T>>) -> Option<T> {
        let begun = Instant::now();
        let result = work.await;
        let (value, failed) = match result {
            Ok(value) => (Some(value), None),
            Err(e) => (None, Some(e)),
        };
        let failing = failed.is_some();
        self.done.lock().push(Done {
            call,
            begun,
            ended: Instant::now(),
            failed,
        });
        if failing {
            // A pause, so that callers that fail at once do not flood the log.
            tokio::time::sleep(PAUSE * 3).await;
        }
        value
    }
}

/// One call of each kind, with its books.
struct Caller {
    ds: Arc<WalrusDatastore>,
    books: Arc<Books>,
    /// Keys that are overwritten and deleted again and again; no other caller touches them.
    own: Vec<String>,
    old: Vec<String>,
}

impl Caller {
    fn new(ds: &Arc<WalrusDatastore>, books: &Arc<Books>) -> Self {
        let n = books.next.fetch_add(1, Relaxed);
        Caller {
            ds: Arc::clone(ds),
            books: Arc::clone(books),
            own: (0..3).map(|i| format!("/own/{n}/{i}")).collect(),
            old: Vec::new(),
        }
    }

    /// Runs a call and returns whether it succeeded.
    async fn call(&mut self, call: Call) -> bool {
        match call {
            Call::Put => self.put().await,
            Call::Batch => self.batch().await,
            Call::Delete => self.delete().await,
            Call::Get => self.get().await,
            Call::Has => self.has().await,
            Call::List => self.list().await,
        }
    }

    /// Half of the time a new block, else another value under one of this caller's keys.
    async fn put(&mut self) -> bool {
        let (mut key, value) = self.books.new_block();
        let fresh: bool = rand::random();
        if !fresh {
            key.clone_from(&self.own[rand::random_range(0..self.own.len())]);
        }
        self.books.attempt(&key, Some(value.clone()));
        let put = self.ds.put(&key, value.clone());
        let stored = self.books.timed(Call::Put, put).await.is_some();
        if stored {
            self.books.acknowledged(&key, Some(value.clone()));
            if fresh {
                self.books.stable.lock().push((key, value));
            }
        }
        stored
    }

    /// New blocks, one of which is deleted later.
    async fn batch(&mut self) -> bool {
        let blocks: Vec<_> = (0..6).map(|_| self.books.new_block()).collect();
        let mut ops = Vec::new();
        for (key, value) in &blocks {
            self.books.attempt(key, Some(value.clone()));
            ops.push(Op::Put(key.clone(), value.clone()));
        }
        let removed = self.old.pop();
        if let Some(key) = &removed {
            self.books.attempt(key, None);
            ops.push(Op::Delete(key.clone()));
        }
        let stored = self.books.timed(Call::Batch, self.ds.commit(ops)).await;
        if stored.is_none() {
            return false;
        }
        if let Some(key) = &removed {
            self.books.acknowledged(key, None);
        }
        for (i, (key, value)) in blocks.into_iter().enumerate() {
            self.books.acknowledged(&key, Some(value.clone()));
            if i == 0 {
                self.old.push(key);
            } else {
                self.books.stable.lock().push((key, value));
            }
        }
        true
    }

    async fn delete(&mut self) -> bool {
        let key = self.own[rand::random_range(0..self.own.len())].clone();
        self.books.attempt(&key, None);
        let deleted = self
            .books
            .timed(Call::Delete, self.ds.delete(&key))
            .await
            .is_some();
        if deleted {
            self.books.acknowledged(&key, None);
        }
        deleted
    }

    /// A block of any caller, or the value that this caller's last write left.
    async fn get(&mut self) -> bool {
        // Counted before the flag is read: when the flag is set and the count is zero, no further
        // read begins.
        let unverified = Counted::new(&self.books.unverified_reads);
        let verified = self.books.only_verified_reads.load(SeqCst);
        let (key, _counted) = if verified || rand::random() {
            (self.books.any_stable().0, None)
        } else {
            let own = rand::random_range(0..self.own.len());
            (self.own[own].clone(), Some(unverified))
        };
        let got = self.books.timed(Call::Get, self.ds.get(&key)).await;
        if let Some(got) = &got {
            self.books.check_got(&key, got.as_ref());
        }
        got.is_some()
    }

    async fn has(&mut self) -> bool {
        let (key, value) = self.books.any_stable();
        let got = self.books.timed(Call::Has, self.ds.get_size(&key)).await;
        if let Some(got) = got {
            if got != Some(value.len() as u64) {
                self.books
                    .contradiction(format!("{key} has size {got:?}, not {}", value.len()));
            }
        }
        got.is_some()
    }

    /// Lists all keys; every block that was stable before must be in the listing.
    async fn list(&mut self) -> bool {
        let before = self.books.stable.lock().len();
        let listing = list_keys(&self.ds);
        let Some(listed) = self.books.timed(Call::List, listing).await else {
            return false;
        };
        for (key, _) in &self.books.stable.lock()[..before] {
            if listed.binary_search(key).is_err() {
                self.books.contradiction(format!(
                    "{key} was not listed ({} keys were, {:?} to {:?})",
                    listed.len(),
                    listed.first(),
                    listed.last()
                ));
            }
        }
        true
    }
}

/// Counts up until it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, SeqCst);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn list_keys(ds: &WalrusDatastore) -> Result<Vec<String>> {
    let mut query = ds.query(QueryOptions::default().with_keys_only(true))?;
    let mut keys = Vec::new();
    loop {
        let page = query.next_page().await?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page.into_iter().map(|entry| entry.key));
    }
}

/// A local Walrus, cheap and without limits.
pub async fn devnet() -> Devnet {
    Devnet::start(Options {
        cheap_ids: true,
        max_body: 64 << 20,
        publisher_concurrency: 0,
        ..Options::default()
    })
    .await
    .expect("local Walrus")
}

/// A configuration of a node on `net`; nothing is cached, so that every get is a read.
pub fn spec(net: &Devnet) -> serde_json::Value {
    serde_json::json!({
        "publisherURL": net.url(), "aggregatorURL": net.url(), "blobCacheBytes": -1,
    })
}

pub async fn open(spec: &serde_json::Value, repo: &Path) -> WalrusDatastore {
    let config = Config::from_json(&spec.to_string()).expect("configuration");
    WalrusDatastore::open(config, repo).await.expect("opening")
}

/// The length of an outage in cases where the length does not matter: short with the other tests,
/// long enough to use up the retries in `make outages`.
pub fn a_while() -> Duration {
    if std::env::var_os("OUTAGES_REPORT").is_some() {
        Duration::from_secs(6)
    } else {
        Duration::from_millis(1200)
    }
}

/// The errors that callers may see, beside success. Any other error fails the case.
#[derive(Clone, Copy)]
pub struct Allowed {
    writers: &'static [(ErrorKind, bool)],
    readers: &'static [(ErrorKind, bool)],
}

/// Errors of the index that may be retried, for all callers.
pub const INDEX_RETRYABLE: Allowed = Allowed::both(&[(ErrorKind::Index, true)]);
/// Errors of the index that may be retried, for writers alone.
pub const INDEX_WRITES: Allowed = Allowed::writers(&[(ErrorKind::Index, true)]);
/// Errors of the publisher that may be retried; reads go on.
pub const PUBLISHER: Allowed = Allowed::writers(&[(ErrorKind::Walrus, true)]);
/// Errors of an aggregator that may be retried; writes go on.
pub const AGGREGATOR: Allowed = Allowed::readers(&[(ErrorKind::Walrus, true)]);
/// Errors of publisher and aggregator that may be retried.
pub const WALRUS: Allowed = Allowed::both(&[(ErrorKind::Walrus, true)]);
/// No caller sees an error.
pub const NOTHING: Allowed = Allowed::both(&[]);

impl Allowed {
    /// Kinds, and whether they may be retried.
    pub const fn both(errors: &'static [(ErrorKind, bool)]) -> Self {
        Allowed {
            writers: errors,
            readers: errors,
        }
    }

    pub const fn writers(errors: &'static [(ErrorKind, bool)]) -> Self {
        Allowed {
            writers: errors,
            readers: &[],
        }
    }

    pub const fn readers(errors: &'static [(ErrorKind, bool)]) -> Self {
        Allowed {
            writers: &[],
            readers: errors,
        }
    }

    pub const fn new(
        writers: &'static [(ErrorKind, bool)],
        readers: &'static [(ErrorKind, bool)],
    ) -> Self {
        Allowed { writers, readers }
    }
}

/// A running case.
pub struct Scenario {
    group: &'static str,
    case: &'static str,
    nodes: Vec<Arc<WalrusDatastore>>,
    books: Arc<Books>,
    load: JoinSet<()>,
    stop: Arc<AtomicBool>,
    struck: Option<Instant>,
    /// Calls that began before this do not belong to the outage.
    prepared: Option<Instant>,
    /// Calls have deadlines only while this is set.
    hurry: Arc<AtomicBool>,
}

impl Scenario {
    /// Stores a few blocks through the first node and puts the load on all.
    pub async fn start(
        group: &'static str,
        case: &'static str,
        nodes: Vec<WalrusDatastore>,
    ) -> Self {
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        let books = Arc::new(Books::default());
        let mut first = Caller::new(&nodes[0], &books);
        for _ in 0..8 {
            assert!(first.batch().await, "{case}: the first batches must work");
        }
        let mut scenario = Scenario {
            group,
            case,
            nodes,
            books,
            load: JoinSet::new(),
            stop: Arc::new(AtomicBool::new(false)),
            struck: None,
            prepared: None,
            hurry: Arc::new(AtomicBool::new(false)),
        };
        let tasks = [
            &[Call::Put, Call::Delete, Call::Get][..],
            &[Call::Put, Call::Put, Call::Delete],
            &[Call::Batch],
            &[Call::Batch, Call::Has],
            &[Call::Get],
            &[Call::Get, Call::Has],
            &[Call::Has],
            &[Call::List],
        ];
        for (n, calls) in tasks.into_iter().enumerate() {
            let node = Arc::clone(&scenario.nodes[n % scenario.nodes.len()]);
            let mut caller = Caller::new(&node, &scenario.books);
            let stop = Arc::clone(&scenario.stop);
            scenario.load.spawn(async move {
                for call in calls.iter().cycle() {
                    if stop.load(Relaxed) {
                        return;
                    }
                    caller.call(*call).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        for node in scenario.nodes.clone() {
            scenario.spawn_hurried(node);
        }
        // Every connection and prepared statement is in use before the outage begins.
        scenario.books.load_goes_on(3).await;
        scenario
    }

    /// Calls whose callers give up after [`DEADLINE`]; their delay beyond it is recorded.
    fn spawn_hurried(&mut self, node: Arc<WalrusDatastore>) {
        let (books, stop) = (Arc::clone(&self.books), Arc::clone(&self.stop));
        self.load.spawn(async move {
            while !stop.load(Relaxed) {
                let begun = Instant::now();
                tokio::time::sleep(DEADLINE).await;
                let mut late = books.timer_late.lock();
                *late = (*late).max(begun.elapsed().saturating_sub(DEADLINE));
            }
        });
        for call in Call::ALL {
            let (books, stop) = (Arc::clone(&self.books), Arc::clone(&self.stop));
            let hurry = Arc::clone(&self.hurry);
            let mut caller = Caller::new(&node, &books);
            self.load.spawn(async move {
                while !stop.load(Relaxed) {
                    tokio::time::sleep(DEADLINE * 3).await;
                    if !hurry.load(Relaxed) {
                        continue;
                    }
                    let begun = Instant::now();
                    if tokio::time::timeout(DEADLINE, caller.call(call))
                        .await
                        .is_err()
                    {
                        let late = begun.elapsed().saturating_sub(DEADLINE);
                        let mut overrun = books.overrun.lock();
                        *overrun = (*overrun).max(late);
                    }
                }
            });
        }
    }

    /// The database will crash: the crash may undo deletes that it has not written to its disk yet
    /// (no other event may), which is harmless and documented.
    pub async fn deletes_may_return(&self) {
        self.books.deletes_may_return.store(true, Relaxed);
        // A put waits for the database's disk, and the log goes there in its order: with the put,
        // the deletes before it are on the disk.
        let mut caller = Caller::new(&self.nodes[0], &self.books);
        assert!(caller.put().await, "{}: a put before the crash", self.case);
    }

    /// Aggregators will give wrong bytes: only keys that are multihashes are read until the end,
    /// since others cannot be verified.
    pub async fn only_verified_reads(&self) {
        self.books.only_verified_reads.store(true, SeqCst);
        let running = &self.books.unverified_reads;
        eventually("unverified reads end", || running.load(SeqCst) == 0).await;
    }

    /// The outage begins; `cause` may block.
    pub async fn strike(&mut self, cause: impl FnOnce() + Send) {
        self.struck = Some(Instant::now());
        tokio::task::block_in_place(cause);
        self.hurry.store(true, Relaxed);
    }

    /// Changes what the outage needs. What calls meet meanwhile is no part of it.
    pub async fn prepare(&mut self, change: impl FnOnce() + Send) {
        tokio::task::block_in_place(change);
        self.prepared = Some(Instant::now());
    }

    /// As [`Scenario::strike`], without putting deadlines to the test.
    pub async fn strike_unhurried(&mut self, cause: impl FnOnce() + Send) {
        self.strike(cause).await;
        self.hurry.store(false, Relaxed);
    }

    /// The outage lasts for the given time. A case that must see an effect in it waits for the
    /// effect ([`Scenario::until`], [`Scenario::until_a_call_fails`]).
    pub async fn hold(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The outage lasts until `condition` is true.
    pub async fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        eventually(&format!("{}: {what}", self.case), condition).await;
    }

    /// The outage lasts until a caller got an error. `keep_up` keeps the cause in place, and is
    /// called again and again.
    pub async fn until_a_call_fails(&self, keep_up: impl Fn()) {
        let struck = self.struck.expect("struck first");
        self.until("a call fails", || {
            keep_up();
            let done = self.books.done.lock();
            let mut since = done.iter().rev().take_while(|d| d.ended >= struck);
            since.any(|d| d.failed.is_some())
        })
        .await;
    }

    /// Runs a whole case in which Walrus breaks with the given rules for a while.
    pub async fn break_walrus(mut self, net: &Devnet, rules: Vec<FaultRule>, allowed: Allowed) {
        self.only_verified_reads().await;
        self.strike(|| net.set_faults(rules)).await;
        self.hold(a_while()).await;
        let fired = || net.faults().iter().any(|fault| fault.fired > 0);
        self.until("the fault strikes", fired).await;
        self.heal(|| net.clear_faults(), allowed).await;
    }

    /// The cause goes away (`cure` may block): waits until every kind of call works, reads all
    /// blocks back, writes the report, and fails on any forbidden result in it.
    pub async fn heal(mut self, cure: impl FnOnce() + Send, allowed: Allowed) {
        self.hurry.store(false, Relaxed);
        tokio::task::block_in_place(cure);
        let healed = Instant::now();
        let mut recovery = self.wait_until_well(healed).await;
        self.books.load_goes_on(1).await;
        let stragglers = self.stop_load(healed).await;
        let struck = self.struck.expect("struck first");
        let done = std::mem::take(&mut *self.books.done.lock());
        for late in done
            .iter()
            .filter(|d| d.begun >= healed && d.failed.is_some())
        {
            recovery = recovery.max(late.ended - healed);
        }
        self.read_back().await;
        let outage: Vec<_> = done
            .iter()
            .filter(|d| d.ended >= struck && d.begun < healed)
            .filter(|d| self.prepared.is_none_or(|prepared| d.begun >= prepared))
            .collect();
        let row = Row {
            group: self.group,
            case: self.case,
            writers: saw(outage.iter().filter(|d| d.call.writes())),
            readers: saw(outage.iter().filter(|d| !d.call.writes())),
            acknowledged: self
                .books
                .keys
                .lock()
                .values()
                .filter(|c| c.len() == 1)
                .count(),
            wrong: self.books.wrong.lock().len(),
            recovery,
            stragglers,
            overrun: *self.books.overrun.lock(),
        };
        let mut messages: BTreeMap<Call, Vec<String>> = BTreeMap::new();
        for failed in outage.iter().filter(|d| d.failed.is_some()) {
            let text = failed.failed.as_ref().map(ToString::to_string);
            messages.entry(failed.call).or_default().extend(text);
        }
        row.publish(&messages);
        self.check_secrets(&messages);
        self.check(&row, &outage, allowed);
        for node in &self.nodes {
            node.close().await.expect("closing");
        }
    }

    /// The time from `healed` until every kind of call succeeded without further errors.
    async fn wait_until_well(&self, healed: Instant) -> Duration {
        let mut probes = JoinSet::new();
        for (node, call) in self.nodes.iter().flat_map(|n| Call::ALL.map(|c| (n, c))) {
            let mut caller = Caller::new(node, &self.books);
            probes.spawn(async move {
                let (mut streak, mut well) = (0, None);
                while streak < 5 {
                    assert!(healed.elapsed() < PATIENCE, "{call:?} never worked again");
                    if caller.call(call).await {
                        streak += 1;
                        well.get_or_insert_with(|| healed.elapsed());
                    } else {
                        (streak, well) = (0, None);
                    }
                }
                well.unwrap_or_default()
            });
        }
        let mut recovery = Duration::ZERO;
        while let Some(well) = probes.join_next().await {
            recovery = recovery.max(well.expect("probe"));
        }
        recovery
    }

    /// Ends the load; returns the time from `healed` until the last call ended.
    async fn stop_load(&mut self, healed: Instant) -> Duration {
        self.stop.store(true, Relaxed);
        let all = async {
            while let Some(task) = self.load.join_next().await {
                task.expect("load");
            }
        };
        if tokio::time::timeout(STRAGGLER_LIMIT, all).await.is_err() {
            self.load.abort_all();
            self.books
                .contradiction("calls begun in the outage never ended".into());
        }
        let done = self.books.done.lock();
        let ends = done.iter().filter(|d| d.begun < healed).map(|d| d.ended);
        ends.max()
            .map_or(Duration::ZERO, |end| end.saturating_duration_since(healed))
    }

    /// Reads every key of the books, and a whole listing.
    async fn read_back(&self) {
        let keys: Vec<String> = self.books.keys.lock().keys().cloned().collect();
        let (ds, books) = (&self.nodes[0], &self.books);
        stream::iter(&keys)
            .for_each_concurrent(16, |key| async move {
                match ds.get(key).await {
                    Ok(got) => books.check_got(key, got.as_ref()),
                    Err(e) => books.contradiction(format!("{key} cannot be read: {e}")),
                }
            })
            .await;
        let listed = list_keys(ds).await.expect("listing");
        for (key, candidates) in &*books.keys.lock() {
            let is = listed.binary_search(key).is_ok();
            if !candidates.iter().any(|c| c.is_some() == is) {
                books.contradiction(format!("{key} is listed: {is}"));
            }
        }
    }

    fn check_secrets(&self, messages: &BTreeMap<Call, Vec<String>>) {
        let logged = self
            .nodes
            .iter()
            .flat_map(|node| std::iter::from_fn(|| node.next_log_line()))
            .map(|line| line.message);
        for text in messages.values().flatten().cloned().chain(logged) {
            assert!(!text.contains(SECRET), "a secret is told: {text}");
        }
    }

    fn check(&self, row: &Row, outage: &[&Done], allowed: Allowed) {
        let case = self.case;
        let wrong = self.books.wrong.lock();
        assert!(wrong.is_empty(), "{case}: lost or wrong: {wrong:#?}");
        for done in outage {
            let Some(e) = &done.failed else { continue };
            let list = if done.call.writes() {
                allowed.writers
            } else {
                allowed.readers
            };
            assert!(
                list.contains(&(e.kind(), e.is_retryable())),
                "{case}: {:?} failed unexpectedly ({:?}, retryable: {}): {e}",
                done.call,
                e.kind(),
                e.is_retryable()
            );
        }
        assert!(
            row.recovery < RECOVERY_LIMIT,
            "{case}: recovery took {:?}",
            row.recovery
        );
        let timer_late = *self.books.timer_late.lock();
        assert!(
            row.overrun < OVERRUN_LIMIT + timer_late,
            "{case}: a deadline was overrun by {:?} (a timer by {timer_late:?})",
            row.overrun
        );
    }
}

/// A line of the report.
struct Row {
    group: &'static str,
    case: &'static str,
    writers: String,
    readers: String,
    acknowledged: usize,
    wrong: usize,
    recovery: Duration,
    stragglers: Duration,
    overrun: Duration,
}

/// A short summary of the results that a group of callers saw in the outage.
fn saw<'a>(done: impl Iterator<Item = &'a &'a Done>) -> String {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let (mut all, mut slowest) = (0usize, Duration::ZERO);
    for done in done {
        all += 1;
        slowest = slowest.max(done.ended - done.begun);
        if let Some(e) = &done.failed {
            let retryable = if e.is_retryable() {
                "retryable"
            } else {
                "final"
            };
            *kinds
                .entry(format!("{:?}, {retryable}", e.kind()))
                .or_default() += 1;
        }
    }
    let mut text = String::new();
    for (kind, n) in &kinds {
        let _ = write!(text, "{kind}: {n} of {all}; ");
    }
    if kinds.is_empty() {
        text.push_str("no error; ");
    }
    let _ = write!(text, "longest call {}", seconds(slowest));
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Row {
    /// One line to stdout and, for `make outages`, to the file named by `OUTAGES_REPORT`:
    /// `OUTAGE`, group, case, writers, readers, acknowledged, wrong, recovery, stragglers, overrun;
    /// tab-separated. Then a message of each kind of call, for people.
    fn publish(&self, messages: &BTreeMap<Call, Vec<String>>) {
        let line = format!(
            "OUTAGE\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{} ms\n",
            self.group,
            self.case,
            self.writers,
            self.readers,
            self.acknowledged,
            self.wrong,
            seconds(self.recovery),
            seconds(self.stragglers),
            self.overrun.as_millis(),
        );
        let mut text = line.clone();
        for (call, messages) in messages {
            let mut kinds: Vec<&String> = messages.iter().collect();
            kinds.dedup();
            for message in kinds.iter().take(3) {
                let _ = writeln!(text, "    {call:?}: {message}");
            }
        }
        print!("{text}");
        if let Some(path) = std::env::var_os("OUTAGES_REPORT") {
            // One write, so that lines of parallel cases do not mix.
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .expect("writing the report");
        }
    }
}
