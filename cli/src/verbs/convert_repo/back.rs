//! From Walrus to a flatfs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use walrusds::admin::flatfs::{Flatfs, Sharding};
use walrusds::config::IndexConfig;
use walrusds::datastore::Inspection;
use walrusds::{Config, WalrusDatastore};

use super::super::init::settings;
use super::copy::{self, Copied};
use super::report::{Report, Room};
use super::state::{kept, Phase, Standing, State, To};
use super::survey::{self, interrupted, Keys, Sum};
use super::switch::switch;
use super::{free_bytes, room, Args, Repo, RESUME};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::kubo::file::{failed, read};
use crate::kubo::lock::RepoLock;
use crate::kubo::spec;
use crate::output::count;
use crate::progress::Unit;

/// What a file takes on the disk beside its bytes, on average (bytes): the rest of its last page,
/// its name, its node.
const FILE: u64 = 2_500;
/// A time that no run lasts.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub async fn run(args: &Args, context: &Context, mut repo: Repo) -> Result<Exit, Failure> {
    repo.settle()?;
    let entry = repo.entry()?;
    if spec::kind(&entry) == "flatfs" {
        return converted(context, &repo);
    }
    let under_way = repo.under_way(To::Flatfs)?.cloned();
    let standing = match &under_way {
        Some(state) => state.standing(&repo.dir)?,
        None => {
            repo.fits(&entry)?;
            Standing::Before
        }
    };
    let settings = spec::settings(&entry).unwrap_or_default();
    let mut config = settings::checked(&settings)?;
    config.verify_reads = walrusds::config::VerifyReads::Always;
    let target = match &under_way {
        Some(state) => state.new.clone(),
        None => flatfs_of(&repo),
    };
    let mut report = Report::new(&repo.dir, To::Flatfs);
    let (total, present, journaled) = plan(context, &repo, &config, &target, &mut report).await?;
    if !args.yes {
        report.print(context)?;
        return Ok(Exit::Fine);
    }
    room(&repo.flatfs_dir(&target)?, needed(total, present))?;
    let flatfs = create(&repo, &target)?;
    let mut state = match under_way {
        Some(state) => state,
        None => {
            let state = State::new(To::Flatfs, entry, target);
            state.save(&repo.dir)?;
            state
        }
    };
    let mut first = Copied::default();
    if standing == Standing::Before {
        first = copied(context, &repo, &config, &flatfs, total.bytes, true).await?;
    }
    let held = RepoLock::take(&repo.dir, "what there is was copied, but ")?;
    state.standing(&repo.dir)?;
    let store = open_journal(context, &repo, &config).await?;
    let last = rest(context, &repo, &config, &store, &flatfs).await;
    let closed = store.close().await;
    let (last, compared) = last?;
    closed?;
    if compared.missing.number > 0 {
        return Err(Failure::Failed(format!(
            "blocks of the index are not in the flatfs after all was copied: {}; nothing was switched: run the same \
             command again",
            compared.missing.text()
        )));
    }
    sync(flatfs.dir())?;
    switch(&repo.dir, &mut state, &held, &mut |_| Ok(()))?;
    drop(held);
    report.applied = true;
    report.phase = "switched";
    report.room = None;
    report.notes.clear();
    report.source = Some(compared.both);
    report.copied = Some(Sum {
        blocks: first.copied.blocks + last.copied.blocks,
        bytes: first.copied.bytes + last.copied.bytes,
    });
    report.present = Some(present);
    report.only_there = Some(compared.only_there);
    if compared.only_there > 0 {
        report.notes.push(format!(
            "{} blocks are in the flatfs and not on Walrus: they were there before, and were removed since (the next \
             `ipfs repo gc` removes those that no pin needs)",
            count(compared.only_there)
        ));
    }
    if journaled {
        report.notes.push(
            "Blocks of the write journal that were not on Walrus yet were copied, too. Its directory is of no use to this \
             repo any more."
                .to_owned(),
        );
    }
    report.next = remains(&repo);
    report.print(context)?;
    Ok(Exit::Fine)
}

/// The command again, for a repo that is on flatfs.
fn converted(context: &Context, repo: &Repo) -> Result<Exit, Failure> {
    repo.under_way(To::Flatfs)?;
    let last = repo.state.as_ref().filter(|state| state.to == To::Flatfs);
    if last.is_none() {
        return Err(Failure::Failed(format!(
            "{} is on flatfs already",
            repo.dir.display()
        )));
    }
    repo.has_switched()?;
    let mut report = Report::new(&repo.dir, To::Flatfs);
    report.applied = true;
    report.phase = "switched";
    report.next = remains(repo);
    report.print(context)?;
    Ok(Exit::Fine)
}

fn remains(repo: &Repo) -> Vec<String> {
    let path = repo.dir.display();
    vec![
        format!("IPFS_PATH={path} ipfs daemon"),
        format!("IPFS_PATH={path} ipfs repo verify"),
        "if no other node uses the index: remove it, the journal and the cache by hand. The blobs are no longer renewed \
         by this node, and end"
            .to_owned(),
    ]
}

/// The entry of the flatfs that the repo had, or that Kubo's own init writes.
fn flatfs_of(repo: &Repo) -> Value {
    let is_flatfs = |entry: &Value| {
        let sharding = spec::datastore(entry)["shardFunc"].as_str();
        spec::kind(entry) == "flatfs"
            && sharding.is_some_and(|text| Sharding::parse(text).is_some())
    };
    let before = || {
        let config = read(&kept(&repo.dir, "config", To::Walrusds)).ok()?;
        spec::of_config(&config).cloned()
    };
    let last = repo.state.as_ref().filter(|state| state.to == To::Walrusds);
    let last = last.map(|state| state.old.clone()).filter(is_flatfs);
    let last = last.or_else(|| before().filter(is_flatfs));
    last.unwrap_or_else(spec::flatfs_entry)
}

fn create(repo: &Repo, entry: &Value) -> Result<Flatfs, Failure> {
    let text = spec::datastore(entry)["shardFunc"].as_str();
    let sharding = text.and_then(Sharding::parse).ok_or_else(|| {
        Failure::Failed(format!(
            "the flatfs has a sharding that is not known: {text:?}"
        ))
    })?;
    Ok(Flatfs::create(&repo.flatfs_dir(entry)?, sharding)?)
}

/// Makes all of a flatfs last through a power cut: also what a node without `sync`, or a run that
/// was killed, has written.
fn sync(dir: &Path) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        let opened = std::fs::File::open(dir).map_err(|e| failed(dir, e))?;
        rustix::fs::syncfs(&opened).map_err(|e| failed(dir, e))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        rustix::fs::sync();
        Ok(())
    }
}

/// Bytes of the disk that the blocks which are not there yet need.
fn needed(total: Sum, present: Sum) -> u64 {
    let blocks = total.blocks.saturating_sub(present.blocks);
    let bytes = total.bytes.saturating_sub(present.bytes);
    bytes.saturating_add(blocks.saturating_mul(FILE))
}

/// Counts both sides. Returns the index's blocks, those of the flatfs, and whether a journal is
/// configured.
async fn plan(
    context: &Context,
    repo: &Repo,
    config: &Config,
    target: &Value,
    report: &mut Report,
) -> Result<(Sum, Sum, bool), Failure> {
    let opened = Inspection::open(config.clone(), &repo.dir);
    let look = context.or_stop(RESUME, opened).await?;
    let total = survey::count_index(context, &look).await;
    let closed = look.close().await;
    let total = total?;
    closed?;
    let dir = repo.flatfs_dir(target)?;
    let present = match dir.join("SHARDING").exists() {
        true => survey::count_flatfs(context, &Flatfs::open(&dir)?)?,
        false => Sum::default(),
    };
    report.source = Some(total);
    report.present = Some(present);
    let lacks = |all: u64, there: u64| all.saturating_sub(there);
    report.copied = Some(Sum {
        blocks: lacks(total.blocks, present.blocks),
        bytes: lacks(total.bytes, present.bytes),
    });
    report.room = Some(Room {
        needed: needed(total, present),
        free: free_bytes(&dir)?,
    });
    if matches!(config.index, IndexConfig::Postgres(_)) {
        report.notes.push(format!(
            "The index is in PostgreSQL, which other nodes may share: their blocks are copied, too, {} in all.",
            count(total.blocks)
        ));
    }
    let journaled = config.journal.is_some();
    if journaled {
        report.notes.push(
            "Blocks in the write journal are copied besides these, when the daemon is stopped."
                .to_owned(),
        );
    }
    if repo
        .state
        .as_ref()
        .is_some_and(|state| state.phase != Phase::Switched)
    {
        report
            .notes
            .push("A conversion is under way, and --yes goes on with it.".to_owned());
    }
    Ok((total, present, journaled))
}

/// Copies what is on Walrus, beside a node. Blocks that are lost end the conversion.
async fn copied(
    context: &Context,
    repo: &Repo,
    config: &Config,
    flatfs: &Flatfs,
    total: u64,
    checks: bool,
) -> Result<Copied, Failure> {
    let opened = WalrusDatastore::open_beside(config.clone(), &repo.dir);
    let store = Arc::new(context.or_stop(RESUME, opened).await?);
    let done = copy_from(context, repo, config, &store, flatfs, total, checks).await;
    let closed = store.close().await;
    let done = done?;
    closed?;
    Ok(done)
}

async fn copy_from(
    context: &Context,
    repo: &Repo,
    config: &Config,
    store: &Arc<WalrusDatastore>,
    flatfs: &Flatfs,
    total: u64,
    checks: bool,
) -> Result<Copied, Failure> {
    let look = Inspection::open(config.clone(), &repo.dir);
    let look = context.or_stop(RESUME, look).await?;
    let done = copy::to_flatfs(context, store, &look, flatfs, total, checks).await;
    let closed = look.close().await;
    let done = done?;
    closed?;
    match done.lost.number {
        0 => Ok(done),
        _ => Err(Failure::Failed(format!(
            "blocks of the index cannot be read from Walrus: {}; nothing was switched. `walrusds repair` looks for copies \
             of them, or drops them; then run the same command again",
            done.lost.text()
        ))),
    }
}

/// Opens the datastore with its journal, whose blocks are copied as well. What it holds is neither
/// uploaded nor lost: the journal stays as it is.
async fn open_journal(
    context: &Context,
    repo: &Repo,
    config: &Config,
) -> Result<Arc<WalrusDatastore>, Failure> {
    let mut config = config.clone();
    config.disk_cache = None;
    config.renew_interval = Duration::ZERO;
    config.adopt_staging = Duration::ZERO;
    if let Some(journal) = &mut config.journal {
        (journal.idle_flush, journal.max_age) = (NEVER, NEVER);
        journal.drain_timeout = Duration::ZERO;
        journal.drain_partial = false;
    }
    let opened = WalrusDatastore::open(config, &repo.dir);
    Ok(Arc::new(context.or_stop(RESUME, opened).await?))
}

/// How the index and the flatfs differ.
#[derive(Default)]
struct Compared {
    both: Sum,
    missing: Keys,
    /// Blocks that the flatfs alone has.
    only_there: u64,
}

/// Copies what came since, and compares the keys of both sides.
async fn rest(
    context: &Context,
    repo: &Repo,
    config: &Config,
    store: &Arc<WalrusDatastore>,
    flatfs: &Flatfs,
) -> Result<(Copied, Compared), Failure> {
    let done = copy_from(context, repo, config, store, flatfs, 0, false).await?;
    let mut found = Compared::default();
    let mut progress = context.progress("comparing", Unit::Things("blocks"));
    let mut query = copy::keys_of(store)?;
    loop {
        interrupted(context)?;
        let page = query.next_page().await?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            match flatfs.size_of(&entry.key)? {
                Some(len) => found.both.add(len),
                None => found.missing.add(&entry.key),
            }
        }
        progress.at(found.both.blocks);
    }
    drop(progress);
    let all = survey::count_flatfs(context, flatfs)?;
    found.only_there = all.blocks.saturating_sub(found.both.blocks);
    Ok((done, found))
}
