//! One tour through everything an operator does with a node, the same for every Kubo version, for
//! walrusds built in and as an external plugin. A tour is a list of named steps on one node; a step
//! that fails does not keep the later ones from being tried.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

use crate::{noise, Index, Ipfs, Node, World};

mod daemon;
mod init;
mod objects;
mod repo;

/// The state that every step works on.
pub struct Tour {
    ipfs: Ipfs,
    /// The program's own version, with a `v`.
    version: String,
    index: Index,
    world: World,
    node: Option<Node>,
    large: Vec<u8>,
}

/// The result of one step.
#[derive(Debug)]
pub struct StepResult {
    pub name: &'static str,
    pub took: Duration,
    /// The message of a failed step.
    pub failure: Option<String>,
}

type Step = (&'static str, fn(&mut Tour));

/// In this order: the first ones make the node that the others use.
const STEPS: [Step; 20] = [
    ("init --profile=test,walrusds", init::with_test_profile),
    ("init --profile=walrusds", init::with_own_profile),
    ("init, Datastore.Spec by hand", init::by_hand),
    ("add, cat: large file", objects::large_file),
    ("add, ls, get: directories", objects::directories),
    ("add, get: many small files", objects::small_files),
    ("add: chunks of 1 MiB, raw leaves", objects::chunkings),
    ("pin add, ls, update, verify, rm", objects::pins),
    ("block put, get, stat, rm", objects::blocks),
    ("dag put, get, export, import", objects::dags),
    ("dag import of the blobs", objects::blobs_as_files),
    ("files (MFS)", objects::mfs),
    ("refs local, repo stat, verify", repo::whole_index),
    ("repo gc", repo::garbage),
    ("daemon: parallel adds over HTTP", daemon::parallel_adds),
    ("daemon: gateway, ranges, CAR", daemon::gateway),
    ("daemon: metrics during adds", daemon::metrics),
    ("daemon: gc under load", daemon::garbage_under_load),
    ("SIGTERM in an add, restart", daemon::terminated),
    ("kill -9 in an add, restart", daemon::killed),
];

/// The names of all steps, in order.
pub fn step_names() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|(name, _)| *name)
}

/// Runs every step and reports each when it is done; `index` is that of the main node (the one
/// configured by hand has the other).
pub fn run(ipfs: &Ipfs, index: Index, report: impl Fn(&StepResult)) -> Vec<StepResult> {
    let mut tour = Tour {
        version: version_of(ipfs),
        ipfs: ipfs.clone(),
        index,
        world: World::journalled(index),
        node: None,
        large: noise(1, objects::LARGE),
    };
    STEPS
        .iter()
        .map(|(name, step)| {
            let started = Instant::now();
            // A failed step leaves at most objects behind that no other step knows.
            let result = catch_unwind(AssertUnwindSafe(|| step(&mut tour)));
            tour.world.net.clear_faults();
            let result = StepResult {
                name,
                took: started.elapsed(),
                failure: result.err().map(|panic| message(panic.as_ref())),
            };
            report(&result);
            result
        })
        .collect()
}

/// Runs every step and panics, with all failures, if one failed.
///
/// # Panics
///
/// If a step failed.
pub fn check(ipfs: &Ipfs, index: Index) {
    let failures: Vec<String> = run(ipfs, index, |_| ())
        .into_iter()
        .filter_map(|step| Some(format!("{}: {}", step.name, step.failure?)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// `ipfs version --number`, with a `v`.
fn version_of(ipfs: &Ipfs) -> String {
    let bare = Node::without_repo(&Ipfs {
        plugin: None,
        ..ipfs.clone()
    });
    format!("v{}", bare.ok(["version", "--number"]))
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without words".to_owned(),
    }
}

impl Tour {
    fn node(&self) -> &Node {
        self.node
            .as_ref()
            .expect("the first step could not make the node")
    }
}
