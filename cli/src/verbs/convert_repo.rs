//! `convert-repo`: the blocks of a Kubo repo move from flatfs to Walrus, or back.
//!
//! A run copies what the other side lacks while a daemon may work, takes Kubo's lock of the repo,
//! copies what came since, compares the keys in both directions, and switches `config` and
//! `datastore_spec`. Nothing is removed. A run that ended anywhere is carried on by the same
//! command.
//!
//! | module | job |
//! |---|---|
//! | `forward`, `back` | the two directions |
//! | `remove` | removing the flatfs when all of it is proved to be on Walrus |
//! | `deleted` | whether the blobs of deleted blocks are there |
//! | `copy`, `survey` | copying, counting and comparing blocks |
//! | `switch`, `state` | the switch, and what the next run must know |
//! | `alone` | one run at a time |
//! | `report` | the outcome |

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walrusds::admin::flatfs::Flatfs;

use super::init::settings::Settings;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::kubo::file::{failed, free_at, read};
use crate::kubo::lock::RepoLock;
use crate::kubo::spec;
use crate::source;

mod alone;
mod back;
mod copy;
mod deleted;
mod forward;
mod remove;
mod report;
mod state;
mod survey;
mod switch;

pub use remove::left;
use state::{Phase, Standing, State, To};

/// What an interrupted run tells.
const RESUME: &str = "nothing is lost; run the same command again to go on";
/// The versions of a repo whose blocks have multihashes as keys, and that are known here.
const VERSIONS: std::ops::RangeInclusive<u64> = 12..=18;

/// Moves the blocks of a Kubo repo from flatfs to Walrus, or back
///
/// Without --yes it tells what it would copy, the price, and the disk that it needs. With --yes it
/// copies every block, which may be done while the daemon runs, and then, with the daemon stopped,
/// what came since; it compares both sides, and switches config and datastore_spec. Pins, MFS, keys
/// and names stay where they are, and so do the old blocks, until --remove-old. It may be
/// interrupted at any moment: the same command goes on. The settings of a new datastore are given
/// as for `walrusds init`, in the first run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the blocks go
    #[arg(
        long,
        value_enum,
        value_name = "walrusds|flatfs",
        default_value = "walrusds"
    )]
    to: To,
    #[command(flatten)]
    settings: Settings,
    /// Goes on although a test shows something that does not work, or as another user than the
    /// repo's owner; with --remove-old, although other nodes may have deleted blocks of this one
    #[arg(long)]
    force: bool,
    /// Removes the flatfs of a converted repo, after each of its blocks is proved to be on Walrus
    #[arg(long, conflicts_with_all = ["to", "cancel"])]
    remove_old: bool,
    /// With --remove-old: reads every block back, instead of one of each blob
    #[arg(long, requires = "remove_old")]
    read_data: bool,
    /// Forgets a conversion that has not switched yet; what is on Walrus stays there
    #[arg(long, conflicts_with = "to")]
    cancel: bool,
    /// Carries it out
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let dir = source::whole_repo(&context.global)?;
    let mut repo = Repo::open(dir)?;
    let _alone = match args.yes {
        true => {
            owned(&repo.dir, args.force)?;
            let alone = alone::Alone::take(&repo.dir)?;
            // Another run may have ended just now.
            repo = Repo::open(repo.dir)?;
            Some(alone)
        }
        false => None,
    };
    match () {
        () if args.cancel => cancel(&args, context, &repo),
        () if args.remove_old => remove::run(&args, context, &repo).await,
        () if args.to == To::Walrusds => forward::run(&args, context, repo).await,
        () => back::run(&args, context, repo).await,
    }
}

/// Checks that the node can use what this run makes: an index, a journal, the files it replaces.
fn owned(repo: &Path, force: bool) -> Result<(), Failure> {
    let file = repo.join("config");
    let owner = std::fs::metadata(&file).map_err(|e| failed(&file, e))?;
    let (owner, own) = (owner.uid(), rustix::process::geteuid().as_raw());
    match owner == own || force {
        true => Ok(()),
        false => Err(failed(
            repo,
            format!(
                "its config belongs to the user {owner}, and this command runs as {own}: what it makes could not be used by \
                 the node. Run it as that user, or add --force"
            ),
        )),
    }
}

/// A repo that can be converted.
struct Repo {
    dir: PathBuf,
    /// The conversion that is under way, or the last one.
    state: Option<State>,
}

impl Repo {
    fn open(dir: PathBuf) -> Result<Repo, Failure> {
        if !dir.join("config").exists() {
            return Err(Failure::Failed(format!(
                "there is no repo in {}: it has no config; name the repo with --repo or IPFS_PATH",
                dir.display()
            )));
        }
        let file = dir.join("version");
        let version = std::fs::read_to_string(&file).map_err(|e| failed(&file, e))?;
        let known = version
            .trim()
            .parse()
            .is_ok_and(|version: u64| VERSIONS.contains(&version));
        if !known {
            return Err(Failure::Failed(format!(
                "{} has the repo version {:?}, and this walrusds knows {} to {}: bring an older repo up to date with \
                 `ipfs repo migrate`; a newer one needs a newer walrusds",
                dir.display(),
                version.trim(),
                VERSIONS.start(),
                VERSIONS.end()
            )));
        }
        let state = State::load(&dir)?;
        let repo = Repo { dir, state };
        repo.entry()?;
        Ok(repo)
    }

    /// The entry of the blocks in `Datastore.Spec`.
    fn entry(&self) -> Result<Value, Failure> {
        let file = self.dir.join("config");
        let config = read(&file)?;
        let entry = spec::of_config(&config).cloned().ok_or_else(|| {
            failed(
                &file,
                "Datastore.Spec has no mount at /blocks of its own: convert-repo moves that mount alone, so this repo \
                 cannot be converted; make a new one (walrusds init) and move the data as CAR files",
            )
        })?;
        match spec::kind(&entry) {
            "flatfs" | "walrusds" => Ok(entry),
            other => Err(failed(
                &file,
                format!(
                    "the blocks are in a datastore of type {other:?}: convert-repo knows flatfs and walrusds; move the \
                     data as CAR files, or import them (walrusds import)"
                ),
            )),
        }
    }

    /// The conversion in this direction that has not ended, with the entry as it is in `config`.
    ///
    /// # Errors
    /// One in the other direction has not ended.
    fn under_way(&self, to: To) -> Result<Option<&State>, Failure> {
        match self.state.as_ref().filter(|state| state.phase != Phase::Switched) {
            Some(state) if state.to != to => Err(Failure::Failed(format!(
                "a conversion of {} to {other} is under way: go on with it (walrusds convert-repo --to {other} --yes), or \
                 forget it (--cancel)",
                self.dir.display(),
                other = state.to.name()
            ))),
            state => Ok(state),
        }
    }

    /// Notes a conversion that switched everything and was ended before it could note that.
    fn settle(&mut self) -> Result<(), Failure> {
        let Some(state) = self.state.as_mut() else {
            return Ok(());
        };
        if state.phase == Phase::Switching && state.standing(&self.dir)? == Standing::After {
            state.ended();
            state.save(&self.dir)?;
        }
        Ok(())
    }

    /// Checks that the last conversion has reached its end: an entry in `config` that something
    /// else has written says nothing about where the blocks are.
    fn has_switched(&self) -> Result<(), Failure> {
        let halfway = self
            .state
            .as_ref()
            .filter(|state| state.phase != Phase::Switched);
        match halfway {
            None => Ok(()),
            Some(state) => Err(Failure::Failed(format!(
                "config in {} names {to} already, but the conversion to {to} had not compared the blocks yet: something \
                 else has changed config, and blocks may be missing. Put back the {from} in config and datastore_spec, and \
                 run the same command again; or remove {}, which forgets the conversion",
                self.dir.display(),
                state::FILE,
                to = state.to.name(),
                from = state.to.from().name(),
            ))),
        }
    }

    /// Checks that Kubo would start with the files as they are.
    fn fits(&self, entry: &Value) -> Result<(), Failure> {
        let file = self.dir.join("datastore_spec");
        let disk = read(&file)?;
        let short = spec::short_form(entry).map_err(|e| failed(&self.dir.join("config"), e))?;
        match spec::of_spec(&disk) == Some(&short) {
            true => Ok(()),
            false => Err(failed(
                &file,
                "it does not fit the blocks' entry in config, so Kubo does not start with this repo either: mend that first",
            )),
        }
    }

    /// The directory of a flatfs.
    fn flatfs_dir(&self, entry: &Value) -> Result<PathBuf, Failure> {
        let path = spec::datastore(entry)["path"].as_str();
        let path = path
            .filter(|path| !path.is_empty())
            .ok_or_else(|| Failure::Failed("the flatfs at /blocks has no \"path\"".to_owned()))?;
        Ok(self.dir.join(path))
    }

    fn flatfs(&self, entry: &Value) -> Result<Flatfs, Failure> {
        Ok(Flatfs::open(&self.flatfs_dir(entry)?)?)
    }
}

/// The bytes that are free for this user where a directory is or will be.
fn free_bytes(dir: &Path) -> Result<u64, Failure> {
    free_at(dir).map_err(|e| failed(dir, e))
}

/// Fails if a directory's file system has not so many bytes left.
fn room(dir: &Path, needed: u64) -> Result<(), Failure> {
    let free = free_bytes(dir)?;
    match free >= needed {
        true => Ok(()),
        false => Err(failed(
            dir,
            format!(
                "the disk has {} left, and {} are needed: make room, and run the same command again",
                crate::output::bytes(free),
                crate::output::bytes(needed)
            ),
        )),
    }
}

fn cancel(args: &Args, context: &Context, repo: &Repo) -> Result<Exit, Failure> {
    let Some(state) = repo
        .state
        .as_ref()
        .filter(|state| state.phase != Phase::Switched)
    else {
        return Err(Failure::Failed(format!(
            "no conversion of {} is under way, so there is nothing to cancel",
            repo.dir.display()
        )));
    };
    let mut report = report::Report::new(&repo.dir, state.to);
    if args.yes {
        let held = RepoLock::take(&repo.dir, "")?;
        switch::cancel(&repo.dir, state, &held)?;
        report.phase = "cancelled";
        report.applied = true;
        report.next.push(format!(
            "the repo is on {} as before; what was copied stays where it is, and another conversion finds it",
            state.to.from().name()
        ));
    }
    report.print(context)?;
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests;
