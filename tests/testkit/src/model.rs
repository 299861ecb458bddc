//! The answers that a datastore may give: a map from keys to the values they may have now, and a
//! runner that plays steps on real nodes and compares.
//!
//! After an acknowledged write a key has one value. After a failed write it has the old or the new
//! one. The same holds for a write that was given up, but such a write may still be on its way: it
//! lands before the next write of that key through the same node, and at any time relative to
//! writes through other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use walrusds::{Error, ErrorKind, Op, QueryOptions, WalrusDatastore};

use super::faulty::Fuse;
use super::mem::{key_of, noise};

/// The value of a key; `None` = the key is unknown.
pub type Value = Option<Bytes>;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered without an error.
    Acked,
    /// It was answered with an error.
    Failed,
    /// Its future was dropped.
    GaveUp,
}

/// A write that a caller tried.
#[derive(Debug, Clone)]
pub struct Write {
    pub node: usize,
    pub key: String,
    pub value: Value,
    pub outcome: Outcome,
}

#[derive(Debug, Clone)]
struct Candidates {
    possible: Vec<Value>,
    /// Values of given-up writes that may still be on their way, by node.
    loose: Vec<(usize, Value)>,
}

impl Default for Candidates {
    fn default() -> Self {
        Candidates {
            possible: vec![None],
            loose: Vec::new(),
        }
    }
}

impl Candidates {
    fn add(&mut self, value: &Value) {
        if !self.possible.contains(value) {
            self.possible.push(value.clone());
        }
    }

    fn add_loose(&mut self) {
        for (_, value) in self.loose.clone() {
            self.add(&value);
        }
    }
}

/// The values that each key may hold now.
#[derive(Debug, Clone, Default)]
pub struct Model(BTreeMap<String, Candidates>);

impl Model {
    /// All keys that were ever written.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The values that a key may have now.
    pub fn possible(&self, key: &str) -> Vec<Value> {
        self.0
            .get(key)
            .map_or_else(|| vec![None], |s| s.possible.clone())
    }

    /// Records writes that ran at the same time.
    pub fn apply(&mut self, writes: &[Write]) {
        let mut by_key: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
        for write in writes {
            by_key.entry(&write.key).or_default().push(write);
        }
        for (key, writes) in by_key {
            let state = self.0.entry(key.to_owned()).or_default();
            let acked: BTreeSet<usize> = writes
                .iter()
                .filter(|w| w.outcome == Outcome::Acked)
                .map(|w| w.node)
                .collect();
            if !acked.is_empty() {
                state.possible.clear();
            }
            state.loose.retain(|(node, _)| !acked.contains(node));
            for write in writes {
                state.add(&write.value);
                if write.outcome == Outcome::GaveUp {
                    state.loose.push((write.node, write.value.clone()));
                }
            }
            state.add_loose();
        }
    }

    /// No write of this node is on its way any more.
    pub fn settle(&mut self, node: usize) {
        for state in self.0.values_mut() {
            state.loose.retain(|(n, _)| *n != node);
        }
    }

    /// Whether a write that was given up may still take effect.
    fn has_loose(&self) -> bool {
        self.0.values().any(|state| !state.loose.is_empty())
    }

    /// Compares an answer with the possible ones and keeps the values that agree with it.
    ///
    /// # Errors
    /// The observed answer and the right ones.
    pub fn observe(
        &mut self,
        key: &str,
        seen: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<(), String> {
        let state = self.0.entry(key.to_owned()).or_default();
        let left: Vec<Value> = state.possible.iter().filter(|v| fits(v)).cloned().collect();
        if left.is_empty() {
            return Err(format!(
                "{key}: {seen}, possible: {}",
                brief_all(&state.possible)
            ));
        }
        state.possible = left;
        state.add_loose();
        Ok(())
    }
}

/// A value, short enough for a message.
pub fn brief(value: &Value) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(bytes) => format!(
            "{} bytes ({})",
            bytes.len(),
            &blake3::hash(bytes).to_hex()[..8]
        ),
    }
}

fn brief_all(values: &[Value]) -> String {
    let all: Vec<String> = values.iter().map(brief).collect();
    all.join(" | ")
}

/// Keys that name their content come first, then others.
const CONTENTS: [usize; 7] = [0, 1, 40, 300, 2_000, 9_000, 700];
const OTHERS: [&str; 5] = ["/a", "/a/1", "/a/2", "/ab", "/local/pins/x"];
/// How many keys steps can name.
pub const SLOTS: u8 = (CONTENTS.len() + OTHERS.len()) as u8;
const PREFIXES: [&str; 6] = ["", "/", "/a", "a/", "/local/pins", "/none"];
const LENGTHS: [usize; 5] = [0, 1, 100, 3_000, 3_001];

/// The key of a slot.
pub fn key(slot: u8) -> String {
    slots()[usize::from(slot % SLOTS)].0.clone()
}

/// The value that a put stores: the content that the key names, or one of several values.
pub fn value(slot: u8, seed: u8) -> Bytes {
    let values = &slots()[usize::from(slot % SLOTS)].1;
    values[usize::from(seed) % values.len()].clone()
}

/// Keys with the values that may be stored under them.
fn slots() -> &'static [(String, Vec<Bytes>)] {
    static SLOTS: OnceLock<Vec<(String, Vec<Bytes>)>> = OnceLock::new();
    SLOTS.get_or_init(|| {
        let contents = CONTENTS.iter().enumerate().map(|(at, len)| {
            let content = noise(at as u64, *len);
            (name(at, &content), vec![content])
        });
        let values: Vec<Bytes> = (0..10)
            .map(|seed| noise(1000 + seed, LENGTHS[seed as usize % LENGTHS.len()]))
            .collect();
        let others = OTHERS.map(|key| (key.to_owned(), values.clone()));
        contents.chain(others).collect()
    })
}

/// A key that names its content, by several kinds of multihash.
fn name(at: usize, content: &Bytes) -> String {
    let key = |code: u8, digest: &[u8]| {
        let multihash = [&[code, digest.len() as u8], digest].concat();
        format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
    };
    match at {
        1 => key(0x00, content),
        2 => key(0x1e, blake3::hash(content).as_bytes()),
        _ => key_of(content),
    }
}

/// Whether the datastore notices a wrong block under this key. It does not under an identity
/// multihash: any short key may look like one by accident.
fn is_verified(key: &str) -> bool {
    !OTHERS.contains(&key) && key != self::key(1)
}

/// The action of a call; keys are slots.
#[derive(Debug, Clone)]
pub enum Act {
    Put(u8, u8),
    Delete(u8),
    /// Puts (with a seed) and deletes; a key may come more than once.
    Batch(Vec<(u8, Option<u8>)>),
    Get(u8),
    Has(u8),
    Size(u8),
    Query {
        prefix: u8,
        values: bool,
        offset: u8,
        limit: Option<u8>,
    },
    Sync,
}

/// When the caller drops a call's future.
#[derive(Debug, Clone, Copy)]
pub enum GiveUp {
    /// Instead of polling it once more.
    Polls(u8),
    Micros(u16),
}

/// A call at a node.
#[derive(Debug, Clone)]
pub struct Call {
    pub node: usize,
    pub act: Act,
    pub give_up: Option<GiveUp>,
}

/// The next step of a run.
#[derive(Debug, Clone)]
pub enum Step {
    /// Calls at the same time.
    Together(Vec<Call>),
    /// A node is closed; it opens again at its next call.
    Reopen(usize),
    /// A node dies in the middle of these calls; it opens again at its next call.
    Crash(usize, Vec<Call>),
    /// Time passes (seconds); blobs are renewed meanwhile.
    Pass(u16),
}

/// Nodes of a [`World`].
pub const NODES: usize = 2;

/// A node: a datastore, and the switch that cuts it off.
#[derive(Clone)]
pub struct Node {
    pub datastore: Arc<WalrusDatastore>,
    pub fuse: Arc<Fuse>,
}

/// The shared index and network that nodes run on.
#[async_trait]
pub trait World: Sync {
    /// Starts a node on the shared index and network.
    async fn open(&self, node: usize) -> Node;
    /// Follows up the death of a node: its connections break, its leases run out.
    async fn crashed(&self, node: usize);
    /// Lets time pass until every blob that is due was renewed.
    async fn pass(&self, seconds: u16) -> Result<(), String>;
    /// Whether calls may fail.
    fn faulty(&self) -> bool;
    /// Whether answers may be wrong: then the only requirement is that no wrong block comes out.
    fn lying(&self) -> bool {
        false
    }
    /// Faults end, or come back.
    fn set_quiet(&self, quiet: bool);
}

/// Counts of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Played {
    pub acked: u64,
    pub failed: u64,
    pub gave_up: u64,
}

/// Plays steps, then checks every key at every node without faults.
///
/// # Errors
/// The first contradiction.
pub async fn play(world: &dyn World, steps: &[Step]) -> Result<Played, String> {
    let mut run = Run {
        world,
        nodes: vec![None; NODES],
        model: Model::default(),
        played: Played::default(),
    };
    for (n, step) in steps.iter().enumerate() {
        run.step(step)
            .await
            .map_err(|e| format!("step {n} ({step:?}): {e}"))?;
    }
    run.finish().await.map_err(|e| format!("at the end: {e}"))?;
    Ok(run.played)
}

struct Run<'a> {
    world: &'a dyn World,
    nodes: Vec<Option<Node>>,
    model: Model,
    played: Played,
}

/// The result of a call.
enum Answer {
    Done,
    Value(Value),
    Has(bool),
    Size(Option<u64>),
    Listed(Vec<walrusds::Entry>),
}

impl Run<'_> {
    async fn node(&mut self, at: usize) -> Node {
        match &self.nodes[at] {
            Some(node) => node.clone(),
            None => self.nodes[at].insert(self.world.open(at).await).clone(),
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Together(calls) => self.together(calls, None).await,
            Step::Reopen(node) => {
                if let Some(open) = self.nodes[*node].take() {
                    let closed = open.datastore.close().await;
                    if let Err(e) = closed {
                        self.tolerate(&e)?;
                    }
                    self.model.settle(*node);
                }
                Ok(())
            }
            Step::Crash(node, calls) => {
                self.together(calls, Some(*node)).await?;
                if let Some(dead) = self.nodes[*node].take() {
                    dead.fuse.blow();
                    drop(dead.datastore);
                    dead.fuse.idle().await;
                    self.world.crashed(*node).await;
                }
                self.model.settle(*node);
                Ok(())
            }
            Step::Pass(seconds) => {
                self.node(0).await;
                self.world.pass(*seconds).await
            }
        }
    }

    /// Runs calls at the same time; those at a node that crashes are dropped before their end.
    async fn together(&mut self, calls: &[Call], crash: Option<usize>) -> Result<(), String> {
        let mut running = Vec::new();
        for call in calls {
            let node = self.node(call.node).await;
            let give_up = call
                .give_up
                .or_else(|| (crash == Some(call.node)).then_some(GiveUp::Polls(2)));
            let act = call.act.clone();
            let work = async move { perform(&node.datastore, act).await };
            running.push(giving_up(Box::pin(work), give_up));
        }
        let answers = join_all(running).await;

        let mut writes = Vec::new();
        let mut errors = Vec::new();
        for (call, answer) in calls.iter().zip(&answers) {
            let outcome = match answer {
                None => Outcome::GaveUp,
                Some(Ok(_)) => Outcome::Acked,
                Some(Err(e)) => {
                    errors.push(e.clone());
                    Outcome::Failed
                }
            };
            match outcome {
                Outcome::Acked => self.played.acked += 1,
                Outcome::Failed => self.played.failed += 1,
                Outcome::GaveUp => self.played.gave_up += 1,
            }
            for (key, value) in written(&call.act) {
                writes.push(Write {
                    node: call.node,
                    key,
                    value,
                    outcome,
                });
            }
        }
        for e in &errors {
            self.tolerate(e)?;
        }
        // A read beside writes may see the old value, and any of those being written.
        let mut around = self.model.clone();
        for write in &writes {
            around.apply(&[Write {
                outcome: Outcome::Failed,
                ..write.clone()
            }]);
        }
        // So may reads at the same time, one before and one after a write that was given up
        // earlier.
        let alone = writes.is_empty() && (calls.len() == 1 || !self.model.has_loose());
        self.model.apply(&writes);
        if alone {
            around = std::mem::take(&mut self.model);
        }
        let strict = alone && calls.len() == 1;
        for (call, answer) in calls.iter().zip(answers) {
            if let Some(Ok(answer)) = answer {
                if alone {
                    self.check(&mut around, &call.act, answer, strict)?;
                } else {
                    // Each read may have happened at another moment: one implies nothing about the
                    // other.
                    self.check(&mut around.clone(), &call.act, answer, false)?;
                }
            }
        }
        if alone {
            self.model = around;
        }
        Ok(())
    }

    /// Whether this error may come now.
    fn tolerate(&self, error: &Error) -> Result<(), String> {
        let fine = matches!(
            error.kind(),
            ErrorKind::Index | ErrorKind::Walrus | ErrorKind::BlobNotFound | ErrorKind::Corrupt
        );
        if fine && self.world.faulty() {
            return Ok(());
        }
        Err(format!("unexpected error {:?}: {error}", error.kind()))
    }

    fn check(
        &self,
        model: &mut Model,
        act: &Act,
        answer: Answer,
        strict: bool,
    ) -> Result<(), String> {
        if self.world.lying() {
            return self.check_no_wrong_block(act, answer);
        }
        match (act, answer) {
            (Act::Get(slot), Answer::Value(seen)) => self.check_value(model, &key(*slot), &seen),
            (Act::Has(slot), Answer::Has(seen)) => {
                model.observe(&key(*slot), &format!("has = {seen}"), |v| {
                    v.is_some() == seen
                })
            }
            (Act::Size(slot), Answer::Size(seen)) => {
                model.observe(&key(*slot), &format!("size = {seen:?}"), |v| {
                    v.as_ref().map(|b| b.len() as u64) == seen
                })
            }
            (
                Act::Query {
                    prefix,
                    offset,
                    limit,
                    ..
                },
                Answer::Listed(entries),
            ) => {
                let whole = *offset == 0 && limit.is_none();
                self.check_listing(model, *prefix, &entries, whole)?;
                if strict {
                    check_slice(model, *prefix, *offset, *limit, &entries)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_value(&self, model: &mut Model, key: &str, seen: &Value) -> Result<(), String> {
        let known = model.observe(key, &format!("get = {}", brief(seen)), |v| v == seen);
        match known {
            // Damage that keeps the length is seen only where the key names the content.
            Err(_) if self.world.faulty() && !is_verified(key) && seen.is_some() => {
                let len = seen.as_ref().map(Bytes::len);
                model.observe(key, &format!("get = {}", brief(seen)), |v| {
                    v.as_ref().map(Bytes::len) == len
                })
            }
            other => other,
        }
    }

    fn check_no_wrong_block(&self, act: &Act, answer: Answer) -> Result<(), String> {
        let right = |key: &str, seen: &Bytes| {
            let slot = (0..SLOTS).find(|s| self::key(*s) == key);
            let content = slot.map(|s| value(s, 0));
            if is_verified(key) && content.as_ref() != Some(seen) {
                return Err(format!("{key}: a wrong block of {} bytes", seen.len()));
            }
            Ok(())
        };
        match (act, answer) {
            (Act::Get(slot), Answer::Value(Some(seen))) => right(&key(*slot), &seen),
            (Act::Query { .. }, Answer::Listed(entries)) => entries
                .iter()
                .filter_map(|e| e.value.as_ref()?.as_ref().ok().map(|v| (&e.key, v)))
                .try_for_each(|(key, seen)| right(key, seen)),
            _ => Ok(()),
        }
    }

    fn check_listing(
        &self,
        model: &mut Model,
        prefix: u8,
        entries: &[walrusds::Entry],
        whole: bool,
    ) -> Result<(), String> {
        if let Some(w) = entries.windows(2).find(|w| w[0].key >= w[1].key) {
            return Err(format!("listed {} before {}", w[0].key, w[1].key));
        }
        for entry in entries {
            if !below(prefix, &entry.key) {
                return Err(format!("{} is not below the prefix", entry.key));
            }
            match &entry.value {
                Some(Ok(seen)) => self.check_value(model, &entry.key, &Some(seen.clone()))?,
                Some(Err(e)) => self.tolerate(e)?,
                None => model.observe(&entry.key, "listed", |v| {
                    v.as_ref().is_some_and(|b| b.len() as u64 == entry.size)
                })?,
            }
        }
        if whole {
            let listed: BTreeSet<&String> = entries.iter().map(|e| &e.key).collect();
            let missing: Vec<String> = model
                .keys()
                .filter(|k| below(prefix, k) && !listed.contains(k))
                .cloned()
                .collect();
            for key in missing {
                model.observe(&key, "not listed", Option::is_none)?;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), String> {
        self.world.set_quiet(true);
        for at in 0..NODES {
            // Twice: a journal may hold what the last close could not bring away, and a call that
            // was begun before the faults ended may still fail in this one.
            for _ in 0..2 {
                self.node(at).await;
                // Under lies a close may find faults in the index; no other step may fail now.
                self.step(&Step::Reopen(at)).await?;
            }
        }
        for at in 0..NODES {
            let ds = self.node(at).await.datastore;
            for slot in 0..SLOTS {
                let key = key(slot);
                let fail = |e: Error| format!("node {at}: {key}: {e}");
                let seen = ds.get(&key).await;
                if self.world.lying() {
                    if let Ok(seen) = seen {
                        self.check_no_wrong_block(&Act::Get(slot), Answer::Value(seen))?;
                    }
                    continue;
                }
                let seen = seen.map_err(fail)?;
                let now = format!("node {at}: get = {}", brief(&seen));
                self.model.observe(&key, &now, |v| *v == seen)?;
                let size = ds.get_size(&key).await.map_err(fail)?;
                if size != seen.as_ref().map(|v| v.len() as u64) {
                    return Err(format!("{key}: {now}, but size = {size:?}"));
                }
                if ds.has(&key).await.map_err(fail)? != seen.is_some() {
                    return Err(format!("{key}: {now}, but has says otherwise"));
                }
            }
            if !self.world.lying() {
                let all = Act::Query {
                    prefix: 0,
                    values: true,
                    offset: 0,
                    limit: None,
                };
                let listed = perform(&ds, all.clone()).await.map_err(|e| e.to_string())?;
                if let Answer::Listed(entries) = &listed {
                    if let Some(e) = entries.iter().find(|e| !matches!(e.value, Some(Ok(_)))) {
                        return Err(format!("{} is listed, but: {:?}", e.key, e.value));
                    }
                }
                let mut model = std::mem::take(&mut self.model);
                self.check(&mut model, &all, listed, true)?;
                self.model = model;
            }
        }
        for at in 0..NODES {
            self.step(&Step::Reopen(at)).await?;
        }
        Ok(())
    }
}

fn below(prefix: u8, key: &str) -> bool {
    let path = PREFIXES[usize::from(prefix) % PREFIXES.len()].trim_matches('/');
    path.is_empty() || key.starts_with(&format!("/{path}/"))
}

/// If it is certain which keys there are, offset and limit cut exactly.
fn check_slice(
    model: &Model,
    prefix: u8,
    offset: u8,
    limit: Option<u8>,
    entries: &[walrusds::Entry],
) -> Result<(), String> {
    let mut there = Vec::new();
    for key in model.keys().filter(|k| below(prefix, k)) {
        let possible = model.possible(key);
        let some = possible.iter().filter(|v| v.is_some()).count();
        if some == possible.len() {
            there.push(key.clone());
        } else if some > 0 {
            return Ok(());
        }
    }
    let want: Vec<String> = there
        .into_iter()
        .skip(usize::from(offset))
        .take(limit.map_or(usize::MAX, usize::from))
        .collect();
    let got: Vec<&String> = entries.iter().map(|e| &e.key).collect();
    if got != want.iter().collect::<Vec<_>>() {
        return Err(format!("listed {got:?}, expected {want:?}"));
    }
    Ok(())
}

/// The values that a call leaves in the keys it writes, if it succeeds.
fn written(act: &Act) -> Vec<(String, Value)> {
    match act {
        Act::Put(slot, seed) => vec![(key(*slot), Some(value(*slot, *seed)))],
        Act::Delete(slot) => vec![(key(*slot), None)],
        Act::Batch(ops) => {
            let mut last: BTreeMap<String, Value> = BTreeMap::new();
            for (slot, seed) in ops {
                last.insert(key(*slot), seed.map(|seed| value(*slot, seed)));
            }
            last.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

async fn perform(ds: &WalrusDatastore, act: Act) -> Result<Answer, Error> {
    Ok(match act {
        Act::Put(slot, seed) => {
            ds.put(&key(slot), value(slot, seed)).await?;
            Answer::Done
        }
        Act::Delete(slot) => {
            ds.delete(&key(slot)).await?;
            Answer::Done
        }
        Act::Batch(ops) => {
            let ops = ops.into_iter().map(|(slot, seed)| match seed {
                Some(seed) => Op::Put(key(slot), value(slot, seed)),
                None => Op::Delete(key(slot)),
            });
            ds.commit(ops.collect()).await?;
            Answer::Done
        }
        Act::Get(slot) => Answer::Value(ds.get(&key(slot)).await?),
        Act::Has(slot) => Answer::Has(ds.has(&key(slot)).await?),
        Act::Size(slot) => Answer::Size(ds.get_size(&key(slot)).await?),
        Act::Query {
            prefix,
            values,
            offset,
            limit,
        } => {
            let mut query = ds.query(
                QueryOptions::default()
                    .with_prefix(PREFIXES[usize::from(prefix) % PREFIXES.len()].to_owned())
                    .with_keys_only(!values)
                    .with_offset(offset.into())
                    .with_limit(limit.map(u64::from)),
            )?;
            let mut entries = Vec::new();
            loop {
                let page = query.next_page().await?;
                if page.is_empty() {
                    break;
                }
                entries.extend(page);
            }
            Answer::Listed(entries)
        }
        Act::Sync => {
            ds.sync("/").await?;
            Answer::Done
        }
    })
}

/// Runs a future until its caller gives up; `None` if that came first.
async fn giving_up<T>(
    work: Pin<Box<dyn Future<Output = T> + Send + '_>>,
    when: Option<GiveUp>,
) -> Option<T> {
    match when {
        None => Some(work.await),
        Some(GiveUp::Micros(micros)) => {
            tokio::time::timeout(Duration::from_micros(micros.into()), work)
                .await
                .ok()
        }
        Some(GiveUp::Polls(polls)) => {
            Patience {
                work: Some(work),
                polls,
            }
            .await
        }
    }
}

/// Drops a future instead of polling it once too often.
struct Patience<'a, T> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send + 'a>>>,
    polls: u8,
}

impl<T> Future for Patience<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if self.polls == 0 {
            self.work = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        match self.work.as_mut().map(|work| work.as_mut().poll(cx)) {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(done)) => Poll::Ready(Some(done)),
            None => Poll::Ready(None),
        }
    }
}
