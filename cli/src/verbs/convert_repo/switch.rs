//! The switch of a repo from one datastore of its blocks to another.
//!
//! **Problem.** Kubo reads `config` and compares it with `datastore_spec`. Both must change, and no
//! step changes two files. The process may end at any moment, by a kill or a power cut.
//!
//! **Order.** Each step is one synced rename. The caller holds Kubo's lock of the repo, has copied
//! every block, and has compared the keys under that lock.
//!
//! | ended after | state of the repo | what the next run does |
//! |---|---|---|
//! | nothing | the old datastore | copies what came since, compares, switches |
//! | `switching` is noted | the old datastore, which may change | the same: that proves no copy |
//! | the old files are kept | as before | the same; the copies are written again |
//! | `datastore_spec` is replaced | Kubo opens nothing, all stays | compares, replaces `config` |
//! | `config` is replaced | the new datastore, whole | notes that |
//! | `switched` is noted | the new datastore, whole | tells what remains |
//!
//! `datastore_spec` comes first, since `config` says where the blocks are: in the state between,
//! the old datastore is still the one that is configured, and nothing was taken from it.
//!
//! **Invariants.** The directory of the old datastore is not touched. The kept files are those of
//! the old datastore: they are written only while both files are the old ones. What another program
//! has changed in `config` meanwhile stays: the entry of the blocks alone is replaced, in the file
//! as it is at that moment.

use std::path::Path;

use serde_json::Value;

use super::state::{kept, Phase, Standing, State};
use crate::exit::Failure;
use crate::kubo::file::{failed, read, replace};
use crate::kubo::lock::RepoLock;
use crate::kubo::spec;

/// A durable step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Noted,
    Kept,
    SpecReplaced,
    ConfigReplaced,
    Ended,
}

/// Switches the repo. `after` is told each step; tests end the switch there.
pub fn switch(
    repo: &Path,
    state: &mut State,
    _held: &RepoLock,
    after: &mut dyn FnMut(Step) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (config, disk) = (repo.join("config"), repo.join("datastore_spec"));
    let mut standing = state.standing(repo)?;
    if state.phase != Phase::Switching && standing != Standing::After {
        state.phase = Phase::Switching;
        state.save(repo)?;
        after(Step::Noted)?;
    }
    if standing == Standing::Before {
        for (path, name) in [(&config, "config"), (&disk, "datastore_spec")] {
            let bytes = std::fs::read(path).map_err(|e| failed(path, e))?;
            replace(&kept(repo, name, state.to), &bytes)?;
        }
        after(Step::Kept)?;
        write_spec(&disk, &state.new)?;
        standing = Standing::Between;
        after(Step::SpecReplaced)?;
    }
    if standing == Standing::Between {
        write_config(&config, &state.new)?;
        after(Step::ConfigReplaced)?;
    }
    state.ended();
    state.save(repo)?;
    after(Step::Ended)
}

/// Forgets a conversion that has not switched `config` yet.
///
/// # Errors
/// It has.
pub fn cancel(repo: &Path, state: &State, _held: &RepoLock) -> Result<(), Failure> {
    match state.standing(repo)? {
        Standing::Before => {}
        // Until the state is gone, the next run may also go on with the conversion.
        Standing::Between => write_spec(&repo.join("datastore_spec"), &state.old)?,
        Standing::After => {
            return Err(Failure::Failed(format!(
                "the repo is on {to} already, so there is nothing to cancel: `walrusds convert-repo --to {from}` converts it back",
                to = state.to.name(),
                from = state.to.from().name(),
            )))
        }
    }
    State::clear(repo)
}

/// Replaces the entry of the blocks in a `datastore_spec`.
fn write_spec(path: &Path, entry: &Value) -> Result<(), Failure> {
    let mut disk = read(path)?;
    let short = spec::short_form(entry).map_err(|e| failed(path, e))?;
    spec::set_in_spec(&mut disk, short)
        .ok_or_else(|| failed(path, "it has no mount at /blocks"))?;
    replace(path, spec::as_go(&disk).as_bytes())
}

/// Replaces the entry of the blocks in a config. The members come in the order of their names, as
/// Kubo writes them at each `ipfs config`.
fn write_config(path: &Path, entry: &Value) -> Result<(), Failure> {
    let mut kubo = read(path)?;
    spec::set_in_config(&mut kubo, entry.clone())
        .ok_or_else(|| failed(path, "Datastore.Spec has no mount at /blocks"))?;
    let text = serde_json::to_string_pretty(&kubo).map_err(|e| failed(path, e))?;
    replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
