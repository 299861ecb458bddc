//! Clients that write, read and delete, and know the possible answers. Each has keys of its own, so
//! its answers can be judged without looking at the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use walrusds::{Error, ErrorKind, Op, QueryOptions, WalrusDatastore};

use testkit::mem::{key_of, noise};
use testkit::model::{brief, Model, Outcome, Value, Write};

/// Keys of a client that name their content, and others.
const CONTENTS: u32 = 50;
const OTHERS: u32 = 30;

/// The calls and findings of all clients.
#[derive(Default)]
pub struct Tally {
    /// Puts and deletes that were acknowledged, each of a batch counted.
    pub writes: AtomicU64,
    /// Answers to reads that were compared.
    pub reads: AtomicU64,
    /// Calls that failed, and calls that were given up.
    pub failed: AtomicU64,
    pub gave_up: AtomicU64,
    /// Acknowledged blocks that were not there, or could not be read when nothing was wrong.
    pub lost: AtomicU64,
    /// Wrong bytes; deleted keys that came back; errors that must never come.
    pub wrong: AtomicU64,
    /// Wrong bytes under keys that do not name their content, while bytes were being damaged.
    pub unverifiable: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    complaints: Mutex<Vec<String>>,
    /// Nothing is wrong around the datastore: every call that fails is a finding. Findings are
    /// printed at once, as the process may die.
    pub strict: bool,
}

impl Tally {
    fn complain(&self, counter: &AtomicU64, what: String) {
        counter.fetch_add(1, Relaxed);
        let mut complaints = self.complaints.lock();
        if complaints.len() < 20 {
            if self.strict {
                println!("! {what}");
            }
            complaints.push(what);
        }
    }

    /// The first few wrong answers.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().clone()
    }

    /// Errors by kind.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().clone()
    }

    fn failed(&self, error: &Error) {
        self.failed.fetch_add(1, Relaxed);
        let kind = error.kind();
        *self.errors.lock().entry(format!("{kind:?}")).or_default() += 1;
        let fine = matches!(
            kind,
            ErrorKind::Index | ErrorKind::Walrus | ErrorKind::BlobNotFound | ErrorKind::Corrupt
        );
        if !fine || self.strict {
            self.complain(&self.wrong, format!("unexpected {kind:?}: {error}"));
        }
    }
}

/// How clients behave.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Operations in one batch, at most.
    pub batch: usize,
    /// Length of a value, mostly; one in sixteen is up to sixteen times as long.
    pub length: usize,
    /// The share of calls that are given up.
    pub give_up: f64,
    /// Whether bytes may be damaged on their way.
    pub damage: bool,
    /// Whether answers may be lies: then only wrong blocks count.
    pub lies: bool,
}

/// A write in a form that is short enough for the journal: `c<n>=+`, `c<n>=-`,
/// `o<n>=<seed>.<length>`, `o<n>=-`.
#[derive(Debug, Clone, Copy)]
enum Change {
    Content(u32, bool),
    Other(u32, Option<(u64, usize)>),
}

impl Change {
    fn write(self) -> String {
        match self {
            Change::Content(n, true) => format!("c{n}=+"),
            Change::Content(n, false) => format!("c{n}=-"),
            Change::Other(n, None) => format!("o{n}=-"),
            Change::Other(n, Some((seed, len))) => format!("o{n}={seed}.{len}"),
        }
    }

    fn read(text: &str) -> Option<Change> {
        let (target, what) = text.split_once('=')?;
        let n = target.get(1..)?.parse().ok()?;
        Some(match (target.as_bytes()[0], what) {
            (b'c', what) => Change::Content(n, what == "+"),
            (_, "-") => Change::Other(n, None),
            (_, what) => {
                let (seed, len) = what.split_once('.')?;
                Change::Other(n, Some((seed.parse().ok()?, len.parse().ok()?)))
            }
        })
    }
}

/// The calls that clients began and that were acknowledged; each is written before and after the
/// call. The journal outlives a killed process, since the kernel holds the written bytes.
pub struct Journal(Mutex<File>);

impl Journal {
    pub fn append(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Journal(Mutex::new(file)))
    }

    fn line(&self, line: &str) {
        let line = format!("{line}\n");
        let done = self.0.lock().write_all(line.as_bytes());
        done.expect("the journal can be written");
    }
}

/// One writer and reader.
pub struct Client {
    id: usize,
    rng: StdRng,
    model: Model,
    contents: Vec<(String, Bytes)>,
    calls: u64,
    journal: Option<Arc<Journal>>,
}

impl Client {
    pub fn new(id: usize, seed: u64, length: usize) -> Self {
        let contents = (0..CONTENTS).map(|n| {
            let len = match n {
                n if n % 16 == 1 => length * 16,
                n => 8 + length * n as usize / CONTENTS as usize,
            };
            let value = noise(((id as u64) << 32) | u64::from(n), len);
            (key_of(&value), value)
        });
        Client {
            id,
            rng: StdRng::seed_from_u64(seed ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            model: Model::default(),
            contents: contents.collect(),
            calls: 0,
            journal: None,
        }
    }

    /// Clients that go on where the journal ends: no call that was begun is under way any more.
    pub fn resume(path: &Path, clients: usize, seed: u64, length: usize) -> Vec<Client> {
        let mut all: Vec<Client> = (0..clients)
            .map(|id| Client::new(id, seed, length))
            .collect();
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut begun: Vec<Vec<(Vec<Change>, bool)>> = vec![Vec::new(); clients];
        // The last line may have been cut off: without its end it does not count.
        for line in text
            .split_inclusive('\n')
            .filter_map(|l| l.strip_suffix('\n'))
        {
            let mut words = line.split(' ');
            let (Some(kind), Some(Ok(id))) = (words.next(), words.next().map(str::parse::<usize>))
            else {
                continue;
            };
            match kind {
                "begin" => begun[id].push((words.filter_map(Change::read).collect(), false)),
                _ => {
                    if let Some(last) = begun[id].last_mut() {
                        last.1 = true;
                    }
                }
            }
        }
        for (client, calls) in all.iter_mut().zip(begun) {
            for (changes, acked) in calls {
                let outcome = if acked {
                    Outcome::Acked
                } else {
                    Outcome::Failed
                };
                let writes: Vec<Write> = changes
                    .iter()
                    .map(|change| client.write(*change, outcome))
                    .collect();
                client.model.apply(&writes);
            }
        }
        all
    }

    pub fn with_journal(mut self, journal: &Arc<Journal>) -> Self {
        self.journal = Some(Arc::clone(journal));
        self
    }

    /// The values that this client's keys may hold.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Drops the values of given-up calls that can no longer land: none is under way any more.
    pub fn settle(&mut self) {
        self.model.settle(0);
    }

    fn write(&self, change: Change, outcome: Outcome) -> Write {
        let (key, value) = match change {
            Change::Content(n, put) => {
                let (key, value) = &self.contents[n as usize];
                (key.clone(), put.then(|| value.clone()))
            }
            Change::Other(n, what) => (
                format!("/chaos/{}/{n}", self.id),
                what.map(|(seed, len)| noise(seed, len)),
            ),
        };
        Write {
            node: 0,
            key,
            value,
            outcome,
        }
    }

    fn draw_change(&mut self, manner: &Manner, put: f64) -> Change {
        let put = self.rng.random_bool(put);
        if self.rng.random_bool(0.6) {
            Change::Content(self.rng.random_range(0..CONTENTS), put)
        } else {
            let long = if self.rng.random_ratio(1, 16) { 16 } else { 1 };
            let len = self.rng.random_range(0..=manner.length * long);
            let value = put.then(|| (self.rng.random(), len));
            Change::Other(self.rng.random_range(0..OTHERS), value)
        }
    }

    /// One call at random.
    pub async fn act(
        &mut self,
        ds: &WalrusDatastore,
        manner: &Manner,
        tally: &Tally,
        stop: &CancellationToken,
    ) {
        self.calls += 1;
        match self.rng.random_range(0..100) {
            0..=54 => {
                let n = self.rng.random_range(1..=manner.batch);
                let changes = (0..n).map(|_| self.draw_change(manner, 0.75)).collect();
                self.commit(ds, manner, tally, stop, changes).await;
            }
            55..=64 => {
                let change = self.draw_change(manner, 1.0);
                self.commit(ds, manner, tally, stop, vec![change]).await;
            }
            65..=71 => {
                let change = self.draw_change(manner, 0.0);
                self.commit(ds, manner, tally, stop, vec![change]).await;
            }
            72..=94 => {
                let change = self.draw_change(manner, 0.0);
                let key = self.write(change, Outcome::Failed).key;
                match ds.get(&key).await {
                    Ok(seen) => self.compare(manner, tally, &key, &seen),
                    Err(e) => tally.failed(&e),
                }
            }
            95..=98 => {
                let change = self.draw_change(manner, 0.0);
                let key = self.write(change, Outcome::Failed).key;
                match ds.get_size(&key).await {
                    Ok(_) if manner.lies => {}
                    Ok(seen) => {
                        tally.reads.fetch_add(1, Relaxed);
                        let fits = |v: &Value| v.as_ref().map(|v| v.len() as u64) == seen;
                        if let Err(e) = self.model.observe(&key, &format!("size {seen:?}"), fits) {
                            tally.complain(&tally.wrong, e);
                        }
                    }
                    Err(e) => tally.failed(&e),
                }
            }
            _ => self.list(ds, manner, tally).await,
        }
    }

    async fn commit(
        &mut self,
        ds: &WalrusDatastore,
        manner: &Manner,
        tally: &Tally,
        stop: &CancellationToken,
        changes: Vec<Change>,
    ) {
        // As the datastore does: the last operation on a key wins.
        let mut last: BTreeMap<String, Write> = BTreeMap::new();
        let mut ops = Vec::with_capacity(changes.len());
        for change in &changes {
            let write = self.write(*change, Outcome::GaveUp);
            ops.push(match &write.value {
                Some(value) => Op::Put(write.key.clone(), value.clone()),
                None => Op::Delete(write.key.clone()),
            });
            last.insert(write.key.clone(), write);
        }
        if let Some(journal) = &self.journal {
            let mut line = format!("begin {}", self.id);
            for change in &changes {
                line.push(' ');
                line.push_str(&change.write());
            }
            journal.line(&line);
        }
        let patience = if self.rng.random_bool(manner.give_up) {
            Duration::from_micros(self.rng.random_range(0..20_000))
        } else {
            Duration::from_secs(3600)
        };
        let count = ops.len() as u64;
        let result = tokio::select! {
            done = tokio::time::timeout(patience, ds.commit(ops)) => done.ok(),
            () = stop.cancelled() => None,
        };
        let outcome = match result {
            Some(Ok(())) => {
                tally.writes.fetch_add(count, Relaxed);
                Outcome::Acked
            }
            Some(Err(e)) => {
                tally.failed(&e);
                Outcome::Failed
            }
            None => {
                tally.gave_up.fetch_add(1, Relaxed);
                Outcome::GaveUp
            }
        };
        if let (Some(journal), Outcome::Acked) = (&self.journal, outcome) {
            journal.line(&format!("acked {}", self.id));
        }
        let writes: Vec<Write> = last
            .into_values()
            .map(|write| Write { outcome, ..write })
            .collect();
        self.model.apply(&writes);
    }

    fn compare(&mut self, manner: &Manner, tally: &Tally, key: &str, seen: &Value) {
        tally.reads.fetch_add(1, Relaxed);
        let content = self.contents.iter().find(|(k, _)| k == key);
        if manner.lies {
            if let (Some((_, right)), Some(seen)) = (content, seen) {
                if right != seen {
                    tally.complain(&tally.wrong, format!("{key}: a wrong block"));
                }
            }
            return;
        }
        let possible = self.model.possible(key);
        let Err(e) = self.model.observe(key, &brief(seen), |v| v == seen) else {
            return;
        };
        let same_length = |v: &Value| v.as_ref().map(Bytes::len) == seen.as_ref().map(Bytes::len);
        if manner.damage && content.is_none() && seen.is_some() && possible.iter().any(same_length)
        {
            tally.unverifiable.fetch_add(1, Relaxed);
        } else if seen.is_none() {
            tally.complain(&tally.lost, e);
        } else {
            tally.complain(&tally.wrong, e);
        }
    }

    async fn list(&mut self, ds: &WalrusDatastore, manner: &Manner, tally: &Tally) {
        let prefix = format!("/chaos/{}", self.id);
        let options = QueryOptions::default()
            .with_prefix(prefix.clone())
            .with_keys_only(true);
        let mut listed = BTreeSet::new();
        let mut query = match ds.query(options) {
            Ok(query) => query,
            Err(e) => return tally.failed(&e),
        };
        loop {
            match query.next_page().await {
                Ok(page) if page.is_empty() => break,
                Ok(page) => listed.extend(page.into_iter().map(|entry| entry.key)),
                Err(e) => return tally.failed(&e),
            }
        }
        if manner.lies {
            return;
        }
        tally.reads.fetch_add(1, Relaxed);
        for n in 0..OTHERS {
            let key = format!("{prefix}/{n}");
            let there = listed.remove(&key);
            if let Err(e) = self
                .model
                .observe(&key, &format!("listed: {there}"), |v| v.is_some() == there)
            {
                let counter = if there { &tally.wrong } else { &tally.lost };
                tally.complain(counter, e);
            }
        }
        if let Some(key) = listed.first() {
            tally.complain(&tally.wrong, format!("{key} is listed and was never put"));
        }
    }

    /// Reads every key, once there are no faults any more.
    pub async fn verify(&mut self, ds: &WalrusDatastore, tally: &Tally) {
        let manner = Manner {
            batch: 0,
            length: 0,
            give_up: 0.0,
            damage: false,
            lies: false,
        };
        let keys: Vec<String> = self.model.keys().cloned().collect();
        for key in keys {
            match ds.get(&key).await {
                Ok(seen) => self.compare(&manner, tally, &key, &seen),
                Err(e) => tally.complain(&tally.lost, format!("{key}: {e}")),
            }
        }
    }
}
