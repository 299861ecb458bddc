//! Removing the flatfs of a repo that is on Walrus.
//!
//! **Invariant.** No file is removed before every block of the flatfs is proved: its row points
//! into a certified blob whose storage has not ended, and of each such blob a block was read back
//! from Walrus now and is the same, byte by byte; or the index says that the block was deleted
//! since, and the same holds for the blob of its deleted row. What lies in a journal alone proves
//! nothing.
//!
//! Only files that flatfs makes are removed, `SHARDING` last: a removal that was interrupted is
//! carried on, and another file in the directory stays.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::JoinSet;
use walrusds::admin::flatfs::{Flatfs, FlatfsBlock};
use walrusds::config::IndexConfig;
use walrusds::datastore::Inspection;
use walrusds::WalrusDatastore;

use super::super::init::settings;
use super::deleted::Deleted;
use super::report::Report;
use super::state::{kept, State, To};
use super::survey::{interrupted, is_stored, records, Keys, Sum, PAGE};
use super::{Args, Repo, RESUME};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::kubo::file::{failed, read, remove};
use crate::kubo::spec;
use crate::output::count;
use crate::progress::Unit;

/// Blocks that are read back at the same time.
pub const READS: usize = 8;

pub async fn run(args: &Args, context: &Context, repo: &Repo) -> Result<Exit, Failure> {
    let entry = repo.entry()?;
    if spec::kind(&entry) != "walrusds" || repo.under_way(To::Walrusds)?.is_some() {
        return Err(Failure::Failed(format!(
            "{} is not on Walrus yet, so its flatfs stays: `walrusds convert-repo --yes` first",
            repo.dir.display()
        )));
    }
    repo.fits(&entry)?;
    let old = old_entry(repo).unwrap_or_else(spec::flatfs_entry);
    let dir = repo.flatfs_dir(&old)?;
    if !dir.join("SHARDING").exists() {
        if args.yes && repo.state.is_some() {
            // A run that removed it was ended before it could note that.
            return removed(context, repo, Report::new(&repo.dir, To::Walrusds));
        }
        return Err(Failure::Failed(format!(
            "there is no flatfs left in {}",
            dir.display()
        )));
    }
    let flatfs = Flatfs::open(&dir)?;
    let settings = spec::settings(&entry).unwrap_or_default();
    let mut config = settings::checked(&settings)?;
    config.verify_reads = walrusds::config::VerifyReads::Always;
    let look = Inspection::open(config.clone(), &repo.dir);
    let look = Arc::new(context.or_stop(RESUME, look).await?);
    let proof = prove(context, &flatfs, &look, args.read_data).await;
    let closed = look.close().await;
    let proof = proof?;
    closed?;
    if proof.missing.number > 0 {
        return Err(Failure::Failed(format!(
            "blocks of the flatfs are not on Walrus, so nothing was removed: {}. If they wait in the node's journal, let it \
             empty (walrusds status). If their blobs were lost, and their rows dropped (repair --drop, ipfs repo verify \
             --drop), the flatfs has the last copy: `walrusds import --yes {dir}` stores it again. If the node has removed them since, and keepDeletedSeconds is over or not set, the index cannot tell; \
             then remove {dir} by hand",
            proof.missing.text(),
            dir = dir.display()
        )));
    }
    let shared = matches!(config.index, IndexConfig::Postgres(_));
    if shared && proof.deleted.number > 0 && !args.force {
        return Err(Failure::Failed(format!(
            "blocks of the flatfs were deleted from the index since: {}; nothing was removed. The index is in PostgreSQL, so \
             that an `ipfs repo gc` of another node may have deleted them, and then the flatfs has the last copy: `ipfs repo \
             verify` and `ipfs pin verify` show what this node lacks. If it lacks nothing, add --force",
            proof.deleted.text()
        )));
    }
    let opened = WalrusDatastore::open_beside(config, &repo.dir);
    let store = Arc::new(context.or_stop(RESUME, opened).await?);
    let read = read_back(context, &store, &flatfs, &proof.witnesses).await;
    let closed = store.close().await;
    read?;
    closed?;
    let mut report = Report::new(&repo.dir, To::Walrusds);
    report.source = Some(proof.all);
    report.present = Some(proof.stored);
    let blocks = count(proof.witnesses.len() as u64);
    report.notes.push(format!(
        "Of {} blobs, {blocks} blocks were read back, and are the same.",
        count(proof.blobs)
    ));
    if proof.deleted.number > 0 {
        report.notes.push(format!(
            "{} blocks were deleted from the repo since, by the index.",
            count(proof.deleted.number)
        ));
    }
    if args.yes {
        let left = clear(context, &flatfs)?;
        if left > 0 {
            report.notes.push(format!(
                "{} holds {} more that flatfs has not made: they stay.",
                dir.display(),
                crate::output::things(left, "file or directory", "files or directories")
            ));
        }
        return removed(context, repo, report);
    }
    report.print(context)?;
    Ok(Exit::Fine)
}

/// Notes that the flatfs is gone.
fn removed(context: &Context, repo: &Repo, mut report: Report) -> Result<Exit, Failure> {
    State::clear(&repo.dir)?;
    report.applied = true;
    report.phase = "removed";
    report.print(context)?;
    Ok(Exit::Fine)
}

/// The flatfs that a conversion has left in a repo on Walrus, if it can be read: a place with
/// copies of blocks that are lost there.
///
/// # Errors
/// It is there, and cannot be read: blocks in it must not count as lost.
pub fn left(dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let dir = dir.to_owned();
    let Ok(state) = State::load(&dir) else {
        return Ok(None);
    };
    let repo = Repo { dir, state };
    let Some(Ok(flatfs)) = old_entry(&repo).map(|entry| repo.flatfs_dir(&entry)) else {
        return Ok(None);
    };
    if std::fs::symlink_metadata(&flatfs).is_err() {
        return Ok(None);
    }
    match Flatfs::open(&flatfs) {
        Ok(_) => Ok(Some(flatfs)),
        Err(e) => Err(Failure::Failed(format!(
            "the flatfs that convert-repo has left may have copies, and cannot be read: {e}. Mount its disk, or remove it if \
             it is of no more use"
        ))),
    }
}

/// The entry of the flatfs from before the conversion.
fn old_entry(repo: &Repo) -> Option<serde_json::Value> {
    let last = repo.state.as_ref().filter(|state| state.to == To::Walrusds);
    let last = last.map(|state| state.old.clone());
    let before = || {
        let config = read(&kept(&repo.dir, "config", To::Walrusds)).ok()?;
        spec::of_config(&config).cloned()
    };
    last.or_else(before)
        .filter(|entry| spec::kind(entry) == "flatfs")
}

/// What is known of the blocks of a flatfs.
#[derive(Default)]
struct Proof {
    all: Sum,
    stored: Sum,
    /// Blocks that the index says were deleted, in blobs that Walrus has.
    deleted: Keys,
    /// Blocks that have no row, or a deleted one whose blob is gone.
    missing: Keys,
    blobs: u64,
    /// The blocks that are to be read back.
    witnesses: Vec<String>,
}

/// Looks every block up. One block of each blob is to be read back, that which ends last; with
/// `each`, every one.
async fn prove(
    context: &Context,
    flatfs: &Flatfs,
    look: &Arc<Inspection>,
    each: bool,
) -> Result<Proof, Failure> {
    let now = SystemTime::now();
    let mut proof = Proof::default();
    // Of each blob the block that reaches farthest; an empty one proves nothing.
    let mut blobs: BTreeMap<String, ((bool, i64), String)> = BTreeMap::new();
    let mut dropped = Deleted::default();
    let mut progress = context.progress("proving", Unit::Things("blocks"));
    for shard in flatfs.shards()? {
        for page in flatfs.list(&shard)?.chunks(PAGE) {
            interrupted(context)?;
            let mut lacking: Vec<&FlatfsBlock> = Vec::new();
            for (block, row) in page.iter().zip(records(look.index(), page).await?) {
                proof.all.add(block.len);
                let Some(row) = row.filter(|row| is_stored(row, now)) else {
                    lacking.push(block);
                    continue;
                };
                proof.stored.add(block.len);
                if each {
                    proof.witnesses.push(block.key.clone());
                }
                let reach = (row.size > 0, row.offset.saturating_add(row.size));
                let last = blobs.entry(row.blob_id).or_default();
                if last.1.is_empty() || reach > last.0 {
                    *last = (reach, block.key.clone());
                }
            }
            let keys: Vec<String> = lacking.iter().map(|block| block.key.clone()).collect();
            let deleted = match keys.is_empty() {
                true => Vec::new(),
                false => look.index().deleted(&keys).await?,
            };
            for (key, deleted) in keys.iter().zip(deleted) {
                match deleted {
                    Some(deleted) => dropped.add(deleted.row),
                    None => proof.missing.add(key),
                }
            }
            progress.at(proof.all.blocks);
        }
    }
    let found = dropped.look(context, look, flatfs).await?;
    proof.deleted = found.stored;
    proof.missing.add_all(found.missing);
    proof.blobs = blobs.len() as u64;
    if !each {
        proof.witnesses = blobs.into_values().map(|(_, key)| key).collect();
    }
    Ok(proof)
}

/// Reads blocks from Walrus, and compares them with their files.
async fn read_back(
    context: &Context,
    store: &Arc<WalrusDatastore>,
    flatfs: &Flatfs,
    keys: &[String],
) -> Result<(), Failure> {
    let mut progress = context.progress("reading back", Unit::Things("blocks"));
    progress.total(keys.len() as u64);
    let mut reads = JoinSet::new();
    let (mut waiting, mut done) = (keys.iter(), 0);
    loop {
        while reads.len() < READS {
            let Some(key) = waiting.next() else { break };
            let (store, flatfs, key) = (Arc::clone(store), flatfs.clone(), key.clone());
            reads.spawn(async move {
                let stored = store.get(&key).await;
                let file = flatfs.get(&key);
                match (stored, file) {
                    (Ok(Some(stored)), Ok(Some(file))) if stored == file => Ok(()),
                    (Ok(Some(_)), Ok(_)) => Err(format!(
                        "{key}: Walrus gives a good block, and the file in the flatfs is another"
                    )),
                    (Ok(None), _) => Err(format!("{key}: it was deleted just now")),
                    (Err(e), _) | (_, Err(e)) => Err(format!("{key}: {e}")),
                }
            });
        }
        let Some(read) = reads.join_next().await else {
            return Ok(());
        };
        interrupted(context)?;
        let read = read.map_err(|e| Failure::Failed(e.to_string()))?;
        read.map_err(unproved)?;
        done += 1;
        progress.at(done);
    }
}

/// The error for a block of which Walrus does not say that it is there.
pub fn unproved(why: String) -> Failure {
    Failure::Failed(format!(
        "a block of the flatfs cannot be proved to be on Walrus, so nothing was removed: {why}"
    ))
}

/// Removes the files of a flatfs. Returns how many other files are left in its directory.
fn clear(context: &Context, flatfs: &Flatfs) -> Result<u64, Failure> {
    let dir = flatfs.dir();
    let mut progress = context.progress("removing", Unit::Things("directories"));
    let mut left = 0;
    for (n, shard) in flatfs.shards()?.iter().enumerate() {
        interrupted(context)?;
        for block in flatfs.list(shard)? {
            if let Some(path) = flatfs.path_of(&block.key) {
                remove(&path).map_err(|e| failed(&path, e))?;
            }
        }
        let shard = dir.join(shard);
        let others = clear_dir(&shard, &|name| name.starts_with("put-"))?;
        if others == 0 && shard.is_symlink() {
            remove(&shard).map_err(|e| failed(&shard, e))?;
        }
        left += others;
        progress.at(n as u64);
    }
    left += clear_dir(&dir.join(".temp"), &|_| true)?;
    let own = ["_README", "diskUsage.cache"];
    for name in own {
        let path = dir.join(name);
        remove(&path).map_err(|e| failed(&path, e))?;
    }
    if left == 0 {
        left += clear_dir(dir, &|name| name == "SHARDING")?;
    }
    Ok(left)
}

/// Removes the files of a directory by their names, and the directory if nothing else is in it and
/// it is neither a symbolic link nor a file system of its own. Returns what else is in it.
fn clear_dir(dir: &Path, takes: &dyn Fn(&str) -> bool) -> Result<u64, Failure> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|e| failed(dir, e))?,
    };
    let mut left = 0;
    for entry in entries {
        let entry = entry.map_err(|e| failed(dir, e))?;
        let is_dir = entry.file_type().map_err(|e| failed(dir, e))?.is_dir();
        let name = entry.file_name();
        match name.to_str().is_some_and(takes) && !is_dir {
            true => remove(&entry.path()).map_err(|e| failed(&entry.path(), e))?,
            false => left += 1,
        }
    }
    if left == 0 {
        match std::fs::remove_dir(dir) {
            Err(e) if [ErrorKind::NotADirectory, ErrorKind::ResourceBusy].contains(&e.kind()) => {}
            removed => removed.map_err(|e| failed(dir, e))?,
        }
    }
    Ok(left)
}
