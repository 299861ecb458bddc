//! Nodes on an index and a network in memory, on tokio's paused clock.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use walrusds::{Config, WalrusDatastore};

use crate::journals::Journals;
use testkit::epochs::{EpochStore, TokioClock};
use testkit::faulty::{Fault, Faults, FaultyIndex, FaultyStore, Fuse};
use testkit::mem::MemIndex;
use testkit::model::{play, Node, Step, World};

const EPOCH: Duration = Duration::from_secs(1000);

/// With journals no lease or blob expires: while a journal's thread writes, the paused clock runs
/// ahead.
const LONG_EPOCH: Duration = Duration::from_secs(1_000_000);

/// Renewal is on: blobs of three epochs, renewed a thousand seconds before their end. Nodes that do
/// not share their index remember rows as nodes do.
fn config(shared: bool, epoch: Duration) -> Config {
    let mut config = Config::from_json(&format!(
        r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i","epochs":3,
            "epochDurationSeconds":{},"renewIntervalSeconds":30,"packTargetSizeBytes":4096}}"#,
        epoch.as_secs()
    ))
    .expect("configuration");
    if shared {
        config.row_ttl = Duration::ZERO;
    }
    config
}

/// Everything in memory, on tokio's paused clock.
struct Memory {
    index: Arc<MemIndex>,
    network: Arc<EpochStore>,
    faults: Arc<Faults>,
    clock: Arc<TokioClock>,
    faulty: bool,
    lying: bool,
    /// Whether two nodes write.
    shared: bool,
    journals: Option<Journals>,
    epoch: Duration,
}

impl Memory {
    fn new(seed: u64, rates: Vec<(Fault, f64)>, shared: bool, journals: Option<Journals>) -> Self {
        let epoch = match journals {
            Some(_) => LONG_EPOCH,
            None => EPOCH,
        };
        let can_fail = |(f, _): &(Fault, f64)| *f != Fault::Delay;
        let index = MemIndex::default();
        // In half of the sequences deleted rows are kept, and puts bring them back.
        index.keep_seconds.store(seed % 2 * 86_400, Relaxed);
        Memory {
            shared,
            journals,
            epoch,
            index: Arc::new(index),
            network: Arc::new(EpochStore::start(epoch)),
            faulty: rates.iter().any(can_fail),
            lying: rates.iter().any(|(f, _)| Fault::LIES.contains(f)),
            faults: Arc::new(Faults::seeded(seed, rates, Duration::from_millis(20))),
            clock: Arc::new(TokioClock::start()),
        }
    }
}

#[async_trait]
impl World for Memory {
    async fn open(&self, node: usize) -> Node {
        let fuse = Arc::new(Fuse::default());
        let index = FaultyIndex::new(
            Arc::clone(&self.index),
            Arc::clone(&self.faults),
            Arc::clone(&fuse),
        );
        let store = FaultyStore::new(
            Arc::clone(&self.network),
            Arc::clone(&self.faults),
            Arc::clone(&fuse),
        );
        let clock = Arc::<TokioClock>::clone(&self.clock);
        let mut config = config(self.shared, self.epoch);
        config.journal = self.journals.as_ref().map(|journals| journals.of(node));
        let datastore =
            WalrusDatastore::with_parts(&config, Arc::new(index), Arc::new(store), clock);
        Node {
            datastore: Arc::new(datastore.expect("opening")),
            fuse,
        }
    }

    async fn crashed(&self, node: usize) {
        if let Some(journals) = &self.journals {
            journals.crashed(node);
        }
        // Otherwise a node that dies again and again would delay renewal for longer than blobs
        // last.
        self.index.leases.lock().clear();
    }

    async fn pass(&self, seconds: u16) -> Result<(), String> {
        // Faults may delay renewals by less than their margin.
        let seconds = u64::from(seconds);
        tokio::time::sleep(Duration::from_secs(seconds.min(300))).await;
        self.faults.set_quiet(true);
        tokio::time::sleep(Duration::from_secs(400 + seconds.saturating_sub(300))).await;
        self.faults.set_quiet(false);
        Ok(())
    }

    fn faulty(&self) -> bool {
        self.faulty
    }

    fn lying(&self) -> bool {
        self.lying
    }

    fn set_quiet(&self, quiet: bool) {
        self.faults.set_quiet(quiet);
    }
}

/// The number of nodes that write.
fn writers(steps: &[Step]) -> usize {
    let calls = steps.iter().flat_map(|step| match step {
        Step::Together(calls) | Step::Crash(_, calls) => calls.as_slice(),
        Step::Reopen(_) | Step::Pass(_) => &[],
    });
    let nodes: HashSet<usize> = calls.map(|call| call.node).collect();
    nodes.len()
}

/// Plays steps in memory. Nothing here takes real time; a hang shows as a day gone by.
pub fn play_in_memory(steps: &[Step], seed: u64, rates: Vec<(Fault, f64)>) -> Result<(), String> {
    play_with(steps, seed, rates, None)
}

/// The same with write journals, at one node: another node does not see blocks that are not
/// uploaded yet.
pub fn play_with_journals(
    steps: &[Step],
    seed: u64,
    rates: Vec<(Fault, f64)>,
) -> Result<(), String> {
    play_with(steps, seed, rates, Some(Journals::new()))
}

fn play_with(
    steps: &[Step],
    seed: u64,
    rates: Vec<(Fault, f64)>,
    journals: Option<Journals>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let world = Memory::new(seed, rates, writers(steps) > 1, journals);
        let day = Duration::from_secs(86_400);
        match tokio::time::timeout(day, play(&world, steps)).await {
            Ok(done) => done.map(drop),
            Err(_) => Err("it hangs".to_owned()),
        }
    })
}
