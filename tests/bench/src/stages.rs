//! What the workloads do. A stage makes one repo and measures several things in it, one after
//! another.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{ensure, Context as _, Result};
use kubo_tests::{lines, noise};

use crate::kind::Kind;
use crate::load::{self, Request, Verb};
use crate::measure::{self, Cost};
use crate::node::Node;
use crate::results::{Results, Sample};
use crate::settings::Settings;
use crate::workload::{Stage, Workload};

/// Leaves of the large file (bytes), as Kubo cuts it by default.
const LEAF: u64 = 256 << 10;
/// Content of a small file (bytes).
const SMALL: usize = 4 << 10;
/// The workload of a gateway that has nothing yet.
const COLD: &str = "gateway-cold-64";
/// How the CID of a raw block begins (version 1, SHA2-256).
const RAW: &str = "bafkrei";

/// Runs the workloads of a stage on one datastore.
pub fn run(stage: Stage, bench: &mut Bench, kind: Kind) -> Result<()> {
    match stage {
        Stage::LargeFile => large_file(bench, kind),
        Stage::LargeLeaves => large_leaves(bench, kind),
        Stage::SmallFiles => small_files(bench, kind),
        Stage::Import => import(bench, kind),
        Stage::Daemon => daemon(bench, kind),
        Stage::Part => part(bench, kind),
    }
}

/// The data to add, and the results so far.
#[derive(Debug)]
pub struct Bench {
    pub settings: Rc<Settings>,
    pub results: Results,
    large: PathBuf,
    part: PathBuf,
    small: PathBuf,
    /// The large file as Kubo exports it, and its root.
    car: Option<(PathBuf, String)>,
}

impl Bench {
    /// Writes the content that is added. It looks random, so nothing is there twice.
    pub fn new(settings: Settings) -> Result<Bench> {
        let large = settings.dir.join("large");
        write_noise(&large, settings.bytes())?;
        let part = settings.dir.join("part");
        write_noise(&part, settings.part_mib() << 20)?;
        let small = settings.dir.join("small");
        fs::create_dir(&small)?;
        for i in 0..settings.files {
            fs::write(small.join(format!("{i:05}")), noise(i as u64, SMALL))?;
        }
        let mut bench = Bench {
            settings: Rc::new(settings),
            results: Results::default(),
            large,
            part,
            small,
            car: None,
        };
        if bench.settings.wants("import") {
            bench.car()?; // now: the first repo on a disk is faster than those after it
        }
        Ok(bench)
    }

    /// Does some work; a failure is recorded and the rest goes on, because a run takes long.
    pub fn attempt<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Bench) -> Result<T>,
    ) -> Option<T> {
        // The daemons of the tests' library panic.
        let why = match panic::catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(why)) => format!("{what}: {why:#}"),
            Err(_) => format!("{what}: a panic, see above"),
        };
        eprintln!("FAILED {why}");
        self.results.failures.push(why);
        None
    }

    fn record(&mut self, workload: &'static str, kind: Kind, sample: Sample) {
        if self.settings.wants(workload) {
            let fetched = sample
                .fetched
                .map(|times| format!(", fetched {times:.2} ×"));
            eprintln!(
                "  {workload}, {}: {:.2} s, {:.2} s of CPU, {:.0} MiB{}",
                kind.label(),
                sample.wall,
                sample.cpu,
                sample.rss,
                fetched.unwrap_or_default()
            );
            self.results.push(workload, kind, sample);
        }
    }

    /// A CAR file of the large file, made at first use.
    fn car(&mut self) -> Result<(PathBuf, String)> {
        if self.car.is_none() {
            let settings = Rc::clone(&self.settings);
            let node = Node::new(&settings, Kind::Flatfs)?;
            let (_, cid) = node.add(&[], &self.large)?;
            let path = self.settings.dir.join("car");
            node.output(&["dag", "export", "--progress=false", &cid], &path)?;
            self.car = Some((path, cid));
        }
        Ok(self.car.clone().expect("made above"))
    }
}

fn write_noise(path: &Path, len: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let chunk = 1 << 20;
    for i in 0..len / chunk {
        file.write_all(&noise(i.wrapping_mul(chunk), chunk as usize))?;
    }
    Ok(file.into_inner()?.sync_all()?)
}

/// Adds a path; then waits until all is on Walrus. Records what both gave.
fn add(
    bench: &mut Bench,
    node: &Node<'_>,
    workload: &'static str,
    args: &[&str],
    path: &Path,
    bytes: u64,
) -> Result<String> {
    let kind = node.kind();
    let (cost, cid) = node.add(args, path)?;
    let mut sample = Sample::of(cost);
    if kind.has_journal() {
        sample.on_walrus = Some(cost.wall + node.drain()?);
    }
    node.count_stored(&mut sample, bytes)?;
    bench.record(workload, kind, sample);
    Ok(cid)
}

/// Leaves what was stored on Walrus, or on flatfs' disk, and nowhere else.
fn go_cold(bench: &mut Bench, node: &Node<'_>) -> Result<()> {
    node.forget_cache()?;
    bench.results.page_cache_kept |= !measure::drop_page_cache();
    Ok(())
}

/// Collects all blocks of a file or directory, which was pinned.
fn collect(bench: &mut Bench, node: &Node<'_>, workload: &'static str, cid: &str) -> Result<()> {
    node.text(&["pin", "rm", cid])?;
    let cost = node.measured(&["repo", "gc", "-q"])?;
    let left = node.text(&["refs", "local"])?.lines().count();
    ensure!(left < 3, "{left} blocks are left after the collection");
    bench.record(workload, node.kind(), Sample::of(cost));
    Ok(())
}

/// One large file: add, add again, read, and remove.
fn large_file(bench: &mut Bench, kind: Kind) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    let (large, bytes) = (bench.large.clone(), settings.bytes());
    let node = Node::new(&settings, kind)?;
    if kind == Kind::OnlyHash {
        let (cost, _) = node.add(&["--only-hash"], &large)?;
        bench.record("add", kind, Sample::of(cost));
        bench.record("re-add", kind, Sample::of(cost));
        return Ok(());
    }
    let cid = add(bench, &node, "add", &[], &large, bytes)?;
    let mib = settings.mib as f64;

    if settings.wants("cat-after-add") {
        let cost = node.measured(&["cat", &cid])?;
        bench.record("cat-after-add", kind, Sample::of(cost).rate(mib));
    }
    if settings.wants("pin-after-add") {
        node.text(&["pin", "rm", &cid])?;
        let cost = node.measured(&["pin", "add", "--progress=false", &cid])?;
        bench.record("pin-after-add", kind, Sample::of(cost));
    }
    if settings.wants("re-add") {
        let (cost, _) = node.add(&[], &large)?;
        let mut sample = Sample::of(cost);
        if kind.has_journal() {
            sample.on_walrus = Some(cost.wall + node.drain()?);
        }
        node.count_stored(&mut sample, 0)?;
        bench.record("re-add", kind, sample);
    }
    if settings.wants("cat-cold") {
        go_cold(bench, &node)?;
        node.text(&["version"])?; // the program itself is not what is read
        let cost = node.measured(&["cat", &cid])?;
        bench.record("cat-cold", kind, Sample::of(cost).rate(mib));
    }
    if settings.smoke {
        let copy = settings.dir.join("copy");
        node.output(&["cat", &cid], &copy)?;
        ensure!(
            fs::read(&copy)? == fs::read(&large)?,
            "{}: what was read is not what was added",
            kind.label()
        );
        fs::remove_file(copy)?;
    }
    if kind.is_slow() || kind == Kind::Through {
        return Ok(()); // from here on like the journal on a fast network
    }
    if settings.wants("pin-add") {
        node.text(&["pin", "rm", &cid])?;
        let cost = node.measured(&["pin", "add", "--progress=false", &cid])?;
        bench.record("pin-add", kind, Sample::of(cost));
    }
    if settings.wants("refs-local") {
        let cost = node.measured(&["refs", "local"])?;
        bench.record("refs-local", kind, Sample::of(cost));
    }
    if settings.wants("cat-warm") {
        node.measured(&["cat", &cid])?;
        let cost = node.measured(&["cat", &cid])?;
        bench.record("cat-warm", kind, Sample::of(cost).rate(mib));
    }
    if settings.wants("gc") {
        collect(bench, &node, "gc", &cid)?;
    }
    Ok(())
}

/// The large file in leaves of 1 MiB.
fn large_leaves(bench: &mut Bench, kind: Kind) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    let large = bench.large.clone();
    let node = Node::new(&settings, kind)?;
    let mut args = vec!["--chunker=size-1048576", "--raw-leaves"];
    if kind == Kind::OnlyHash {
        args.push("--only-hash");
    }
    add(bench, &node, "add-1m", &args, &large, settings.bytes())?;
    Ok(())
}

/// Many small files in one directory.
fn small_files(bench: &mut Bench, kind: Kind) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    let small = bench.small.clone();
    let node = Node::new(&settings, kind)?;
    let mut args = vec!["-r"];
    if kind == Kind::OnlyHash {
        args.push("--only-hash");
    }
    let bytes = (settings.files * SMALL) as u64;
    let cid = add(bench, &node, "add-small", &args, &small, bytes)?;
    if kind == Kind::OnlyHash {
        return Ok(());
    }

    if settings.wants("get-small-cold") {
        go_cold(bench, &node)?;
        node.text(&["version"])?; // the program itself is not what is read
        let copy = settings.dir.join("copy");
        let path = copy.to_str().context("a path in UTF-8")?;
        let before = node.fetched();
        let cost = node.measured(&["get", "--progress=false", "-o", path, &cid])?;
        let there = fs::read_dir(&copy)?.count();
        ensure!(there == settings.files, "{there} files came");
        fs::remove_dir_all(copy)?;
        let sample = Sample::of(cost).rate(settings.files as f64);
        let sample = sample.fetched(node.fetched() - before, bytes);
        bench.record("get-small-cold", kind, sample);
    }
    if settings.wants("gc-small") && !kind.is_slow() {
        collect(bench, &node, "gc-small", &cid)?;
    }
    Ok(())
}

/// A sixteenth of the large file: write-through on a slow network takes minutes for the whole file.
fn part(bench: &mut Bench, kind: Kind) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    let part = bench.part.clone();
    let node = Node::new(&settings, kind)?;
    let bytes = fs::metadata(&part)?.len();
    add(bench, &node, "add-part", &[], &part, bytes)?;
    Ok(())
}

/// `ipfs dag import` of the large file.
fn import(bench: &mut Bench, kind: Kind) -> Result<()> {
    let (car, cid) = bench.car()?;
    let settings = Rc::clone(&bench.settings);
    let node = Node::new(&settings, kind)?;
    let path = car.to_str().context("a path in UTF-8")?;
    let cost = node.measured(&["dag", "import", path])?;
    let mut sample = Sample::of(cost);
    if kind.has_journal() {
        sample.on_walrus = Some(cost.wall + node.drain()?);
    }
    node.count_stored(&mut sample, settings.bytes())?;
    bench.record("import", kind, sample);
    let pins = node.text(&["pin", "ls", "--type=recursive", "-q"])?;
    ensure!(pins.contains(&cid), "the import pinned nothing");
    Ok(())
}

/// A daemon that takes files in and serves them.
fn daemon(bench: &mut Bench, kind: Kind) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    let (large, small) = (bench.large.clone(), bench.small.clone());
    let node = Node::new(&settings, kind)?;
    let mut warm = Stage::Daemon.workloads().filter(|w| is_warm(w));
    let reads = !kind.is_slow() && warm.any(|w| settings.wants(w.name));
    let cold = settings.wants(COLD) && matches!(kind, Kind::Flatfs | Kind::JournalSlow);

    let mut cid = String::new();
    if reads || settings.wants("daemon-add") {
        cid = daemon_add(bench, &node, "daemon-add", &[], &large, settings.bytes())?;
    }
    let mut names = String::new();
    if reads || cold || settings.wants("daemon-add-small") {
        let bytes = (settings.files * SMALL) as u64;
        names = daemon_add(bench, &node, "daemon-add-small", &["-r"], &small, bytes)?;
    }
    if !reads && !cold {
        return Ok(());
    }

    let list = ["ls", "--size=false", "--resolve-type=false", &names];
    let files: Vec<String> = lines(&node.text(&list)?)
        .iter()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    ensure!(
        files.len() == settings.files,
        "{} files are listed",
        files.len()
    );
    if cold {
        gateway_cold(bench, &node, &files)?;
    }
    if !reads {
        return Ok(());
    }

    let up = node.daemon()?;
    let mut leaves = lines(&node.text(&["refs", "-r", &cid])?);
    leaves.retain(|cid| cid.starts_with(RAW));
    ensure!(
        leaves.len() as u64 == settings.bytes() / LEAF,
        "{} leaves are listed",
        leaves.len()
    );
    let wanted = settings.requests;
    let gateway = up.gateway();
    let whole: Vec<Request> = load::random(1, files.len() as u64)
        .take(wanted * 2)
        .map(|i| whole_file(&gateway, &files[i as usize]))
        .collect();
    let ranges: Vec<Request> = load::random(2, settings.bytes() / LEAF)
        .take(wanted / 2)
        .map(|i| Request {
            url: format!("{gateway}/ipfs/{cid}"),
            verb: Verb::Range(i * LEAF),
            len: LEAF as usize,
        })
        .collect();
    let blocks: Vec<Request> = load::random(3, leaves.len() as u64)
        .take(wanted / 2)
        .map(|i| Request {
            url: format!("{}/api/v0/block/get?arg={}", up.api(), leaves[i as usize]),
            verb: Verb::Post,
            len: LEAF as usize,
        })
        .collect();
    for workload in Stage::Daemon.workloads().filter(|w| is_warm(w)) {
        let clients = workload.readers;
        let requests = match workload.name {
            w if w.starts_with("gateway-files") => &whole,
            w if w.starts_with("gateway-ranges") => &ranges,
            _ => &blocks,
        };
        if settings.wants(workload.name) {
            load::run(clients, requests)?; // so that what is measured is warm for all
            measure::settle();
            let (cost, ()) = measure::process(up.pid(), || load::run(clients, requests))?;
            let sample = Sample::of(cost).rate(requests.len() as f64);
            bench.record(workload.name, kind, sample);
        }
    }
    up.stop();
    Ok(())
}

/// Whether a workload reads from a daemon what was read from it before.
fn is_warm(workload: &Workload) -> bool {
    workload.readers > 0 && workload.name != COLD
}

fn whole_file(gateway: &str, cid: &str) -> Request {
    Request {
        url: format!("{gateway}/ipfs/{cid}"),
        verb: Verb::Get,
        len: SMALL,
    }
}

/// Different files in random order, of which nothing is on this disk or in memory.
fn gateway_cold(bench: &mut Bench, node: &Node<'_>, files: &[String]) -> Result<()> {
    let settings = Rc::clone(&bench.settings);
    go_cold(bench, node)?;
    let up = node.daemon()?;
    let gateway = up.gateway();
    let mut files: Vec<&String> = files.iter().collect();
    for (i, other) in (1..files.len()).rev().zip(load::random(4, u64::MAX)) {
        files.swap(i, (other % (i as u64 + 1)) as usize);
    }
    files.truncate(settings.cold_requests());
    let requests: Vec<Request> = files.iter().map(|cid| whole_file(&gateway, cid)).collect();
    measure::settle();
    let before = node.fetched();
    let (cost, ()) = measure::process(up.pid(), || load::run(64, &requests))?;
    let sample = Sample::of(cost).rate(requests.len() as f64);
    let sample = sample.fetched(node.fetched() - before, (requests.len() * SMALL) as u64);
    bench.record(COLD, node.kind(), sample);
    up.stop();
    Ok(())
}

/// As [`add`], by a daemon that is stopped afterwards.
fn daemon_add(
    bench: &mut Bench,
    node: &Node<'_>,
    workload: &'static str,
    args: &[&str],
    path: &Path,
    bytes: u64,
) -> Result<String> {
    let up = node.daemon()?;
    let (cost, (client, cid)) = measure::process(up.pid(), || node.add(args, path))?;
    let stopping = Instant::now();
    up.stop();
    let stopping = stopping.elapsed().as_secs_f64();
    // The client's own time, without the waiting for the disk before it.
    let cost = Cost {
        wall: client.wall,
        ..cost
    };
    let mut sample = Sample::of(cost);
    if node.kind().has_journal() {
        sample.on_walrus = Some(cost.wall + stopping);
    }
    node.count_stored(&mut sample, bytes)?;
    bench.record(workload, node.kind(), sample);
    Ok(cid)
}
