//! The settings from the environment. `scripts/bench.sh` explains the variables.

use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{bail, ensure, Context as _, Result};

use crate::kind::{Kind, Latency};

/// Largest pack that walrusds makes (its default).
const PACK: u64 = 64 << 20;

/// The workloads to measure and their sizes.
#[derive(Debug)]
pub struct Settings {
    /// Names of workloads, or beginnings of them; empty for all.
    only: Vec<String>,
    /// Datastores; empty for all.
    peers: Vec<String>,
    pub rounds: usize,
    /// Size of the large file (MiB).
    pub mib: u64,
    /// Number of small files.
    pub files: usize,
    /// Requests to the gateway or for blocks, per run.
    pub requests: usize,
    /// A trial that measures nothing: tiny, and what is read is compared with what was written.
    pub smoke: bool,
    /// Write the results into the documentation.
    pub update: bool,
    /// Kubo with walrusds built in.
    pub ipfs: PathBuf,
    /// A server of our own.
    pub postgres: String,
    /// All data of the run, of all peers; on a disk.
    pub dir: PathBuf,
    /// The root of the source tree.
    pub root: PathBuf,
}

impl Settings {
    pub fn from_env() -> Result<Settings> {
        let smoke = env::var("BENCH_SMOKE").is_ok_and(|v| !v.is_empty());
        let settings = Settings {
            only: list("BENCH_ONLY"),
            peers: list("BENCH_PEERS"),
            rounds: number("BENCH_ROUNDS", if smoke { 1 } else { 3 })?,
            mib: number("BENCH_MIB", if smoke { 8 } else { 1024 })?,
            files: number("BENCH_FILES", if smoke { 50 } else { 10_000 })?,
            requests: number("BENCH_REQUESTS", if smoke { 100 } else { 4_000 })?,
            smoke,
            update: env::var("UPDATE").is_ok_and(|v| !v.is_empty()),
            ipfs: required("BENCH_IPFS")?.into(),
            postgres: required("BENCH_POSTGRES_URL")?,
            dir: required("BENCH_DIR")?.into(),
            root: kubo_tests::root(),
        };
        ensure!(settings.rounds > 0, "BENCH_ROUNDS is 0");
        ensure!(settings.mib > 0, "BENCH_MIB is 0");
        ensure!(settings.files > 0, "BENCH_FILES is 0");
        for peer in &settings.peers {
            if !Kind::ALL.iter().any(|kind| kind.id() == peer) {
                let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.id()).collect();
                bail!("BENCH_PEERS: {peer:?} is none of {}", known.join(", "));
            }
        }
        Ok(settings)
    }

    /// Refuses names that select none of the workloads.
    pub fn check_names(&self, workloads: &[&str]) -> Result<()> {
        for name in &self.only {
            ensure!(
                workloads
                    .iter()
                    .any(|known| known.starts_with(name.as_str())),
                "BENCH_ONLY: no workload begins with {name:?}: {}",
                workloads.join(", ")
            );
        }
        Ok(())
    }

    /// Whether a workload is to be measured.
    pub fn wants(&self, workload: &str) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|name| workload.starts_with(name.as_str()))
    }

    pub fn wants_peer(&self, kind: Kind) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|peer| peer == kind.id())
    }

    /// Everything, at the sizes that the goals are about.
    pub fn is_complete(&self) -> bool {
        self.only.is_empty() && self.peers.is_empty() && self.is_full_size() && self.rounds >= 3
    }

    /// The sizes that the goals are about.
    pub fn is_full_size(&self) -> bool {
        self.mib == 1024 && self.files == 10_000
    }

    pub fn latency(&self, kind: Kind) -> Latency {
        let (put, get) = match (kind.is_slow(), self.smoke) {
            (false, _) => (0, 0),
            (true, true) => (200, 15),
            (true, false) => (2_000, 150),
        };
        Latency {
            put: Duration::from_millis(put),
            get: Duration::from_millis(get),
        }
    }

    /// Requests for different small files.
    pub fn cold_requests(&self) -> usize {
        (self.requests * 2).min(self.files)
    }

    /// Size of the large file (bytes).
    pub fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// Size of the file for what takes long on a slow network (MiB).
    pub fn part_mib(&self) -> u64 {
        (self.mib / 16).max(1)
    }

    /// The fewest blobs that hold the large file with its inner nodes: these are some KiB more.
    pub fn fewest_blobs(&self) -> u64 {
        self.bytes() / PACK + 1
    }
}

fn list(variable: &str) -> Vec<String> {
    let text = env::var(variable).unwrap_or_default();
    text.split([',', ' '])
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn number<T: FromStr>(variable: &str, default: T) -> Result<T> {
    match env::var(variable).ok().filter(|text| !text.is_empty()) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(number) => Ok(number),
            Err(_) => bail!("{variable} is {text:?}, expected a whole number"),
        },
    }
}

fn required(variable: &str) -> Result<String> {
    env::var(variable).with_context(|| format!("{variable} is not set: run scripts/bench.sh"))
}
