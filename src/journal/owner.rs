//! The index to which the blocks of a journal belong, and journals that were left behind.
//!
//! A journal belongs to one table of one index: its blocks were accepted for that table alone. The
//! file OWNER in its directory names the table by its identity, a random text that is kept with the
//! table and moves with it (to a new address, a replica, a restored copy). A journal that holds
//! blocks is only opened for the table that it names. An empty one is given to another table
//! without an error.
//!
//! The file [`PLACES`] of a repo lists where its journals were. If the configuration names another
//! place, or none, the blocks in an earlier place were accepted and would be out of sight.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{is_full, Disk, RealDisk};
use super::settled::Settled;
use super::{disk_error, replay, Staged};
use crate::dirlock::DirLock;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Level, Log};

const FILE: &str = "OWNER";
/// A file of the repo: the directories of its journals, one a line.
const PLACES: &str = "walrusds-journals";
/// How many of them are kept, the newest ones.
const MOST_PLACES: usize = 100;
/// The directory of the repo in which the init profile puts a journal.
const USUAL: &str = "walrusds-journal";

/// A table of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The identity that the index gives for the table.
    pub(crate) identity: String,
    /// The table's name, for messages. Holds no secret.
    pub(crate) name: String,
}

impl Owner {
    fn of(dir: &Path) -> io::Result<Option<Owner>> {
        let text = match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut lines = text.lines();
        let identity = lines.next().unwrap_or_default().to_owned();
        let name = lines.next().unwrap_or("unknown").to_owned();
        Ok((!identity.is_empty()).then_some(Owner { identity, name }))
    }

    /// Checks that the journal in `dir`, which is locked, may become this owner's. Changes no file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it holds blocks of another owner; [`ErrorKind::Disk`],
    /// [`ErrorKind::Corrupt`].
    pub(super) fn check(&self, dir: &Path) -> Result<()> {
        let owner = match Owner::of(dir).map_err(|e| failed(dir, &e))? {
            Some(owner) if owner.identity != self.identity => owner,
            _ => return Ok(()),
        };
        let staged = staged_in(dir)?;
        if staged.blocks == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "journalPath: {} holds {} blocks ({} bytes) that were accepted for another index (table {}), \
                 not for this one (table {}). Give this datastore a journal of its own. To bring the \
                 blocks away, start a node with that index until its journal is empty; to give them \
                 up, move the directory away",
                dir.display(),
                staged.blocks,
                staged.bytes,
                owner.name,
                self.name
            ),
        ))
    }

    /// Makes the journal in `dir`, which is locked, was checked and holds these blocks, this
    /// owner's. Returns whether it was another owner's.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub(super) fn take(
        &self,
        dir: &Path,
        disk: &dyn Disk,
        staged: Staged,
        log: &Log,
    ) -> Result<bool> {
        let before = Owner::of(dir).map_err(|e| failed(dir, &e))?;
        match &before {
            Some(owner) if owner.identity == self.identity => return Ok(false),
            None if staged.blocks > 0 => log.push(
                Level::Info,
                format!(
                    "journal {}: its {} blocks name no index yet; they are taken for those of table {}",
                    dir.display(),
                    staged.blocks,
                    self.name
                ),
            ),
            _ => {}
        }
        let text = format!("{}\n{}\n", self.identity, self.name);
        match write_whole(disk, dir, FILE, text.as_bytes()) {
            // The staged blocks must leave to make room. The next open tries again.
            Err(e) if is_full(&e) && before.is_none() && staged.blocks > 0 => {
                log.push(Level::Warn, failed(dir, &e).to_string());
                Ok(false)
            }
            written => written
                .map(|()| before.is_some())
                .map_err(|e| failed(dir, &e)),
        }
    }
}

fn failed(dir: &Path, e: &io::Error) -> Error {
    disk_error(&format!("journalPath {}: {FILE}", dir.display()), e)
}

/// Writes a file of `dir`: after a crash it holds either the former or the new text.
fn write_whole(disk: &dyn Disk, dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    match disk.remove(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = disk.create(&new)?;
    disk.write(&file, 0, &[text])?;
    disk.sync(&file)?;
    disk.rename(&new, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// Whether a repo has, or had, a journal, as far as its files show.
pub(crate) fn had_journal(repo: &Path) -> bool {
    repo.join(PLACES).exists() || repo.join(USUAL).is_dir()
}

/// Looks for blocks in places where this repo has had journals, other than `now`, and remembers
/// `now`. `owner` is the table that is being opened.
///
/// # Errors
/// [`ErrorKind::Config`] if there are blocks of this table, or of a table that no file names: the
/// configuration would leave them out of sight.
pub(crate) fn abandoned(
    repo: &Path,
    now: Option<&Path>,
    owner: Option<&Owner>,
    log: &Log,
) -> Result<()> {
    let known = match places_of(repo) {
        Ok(known) => Some(known),
        Err(e) => {
            log.push(
                Level::Error,
                format!(
                    "the list of this repo's write journals, {}, cannot be read, so blocks in a journal that is not \
                     configured any more go unnoticed: {e}",
                    repo.join(PLACES).display()
                ),
            );
            None
        }
    };
    let real = |path: &Path| path.canonicalize().ok();
    let usual = repo.join(USUAL);
    for place in known.iter().flatten().chain([&usual]) {
        if now.is_some_and(|now| now == place || real(now).is_some_and(|n| Some(n) == real(place)))
        {
            continue;
        }
        let other = Owner::of(place).ok().flatten();
        let other = other.filter(|other| owner.is_none_or(|own| own.identity != other.identity));
        let staged = match (blocks_in(place), &other) {
            (Ok(Some(staged)), _) => staged,
            (Ok(None), _) => continue,
            (Err(e), None) => return Err(e),
            (Err(e), Some(other)) => {
                log.push(
                    Level::Error,
                    format!(
                        "the write journal {} of another index (table {}) cannot be read: {e}",
                        place.display(),
                        other.name
                    ),
                );
                continue;
            }
        };
        if let Some(other) = other {
            log.push(
                Level::Error,
                format!(
                    "the write journal {} holds {} blocks ({} bytes) that were accepted for another index \
                     (table {}). They are not uploaded until a node with that index opens it",
                    place.display(),
                    staged.blocks,
                    staged.bytes,
                    other.name
                ),
            );
            continue;
        }
        let found = match now {
            None => "no journalPath is set".to_owned(),
            Some(now) => format!("journalPath is {}", now.display()),
        };
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "journalPath: {found}, but the write journal of this repo was {}, and holds {} blocks ({} bytes) that \
                 were accepted and are not on Walrus yet. Set journalPath to it until it is empty, then \
                 change it; to give the blocks up, move that directory away",
                place.display(),
                staged.blocks,
                staged.bytes
            ),
        ));
    }
    if let (Some(known), Some(now)) = (known, now) {
        remember(repo, known, now, log);
    }
    Ok(())
}

/// The places where the repo has had journals.
fn places_of(repo: &Path) -> io::Result<Vec<PathBuf>> {
    let text = match std::fs::read(repo.join(PLACES)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let lines = text.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    Ok(lines.map(|line| OsStr::from_bytes(line).into()).collect())
}

/// Adds `now` to the list. A place that does not exist stays in it: it may be on a disk that is not
/// mounted now.
fn remember(repo: &Path, mut known: Vec<PathBuf>, now: &Path, log: &Log) {
    if known.iter().any(|place| place == now) {
        return;
    }
    known.push(now.to_owned());
    let oldest = known.len().saturating_sub(MOST_PLACES);
    let mut text = Vec::new();
    for place in &known[oldest..] {
        text.extend(place.as_os_str().as_bytes());
        text.push(b'\n');
    }
    let in_one_line = !now.as_os_str().as_bytes().contains(&b'\n');
    let written = match in_one_line {
        true => write_whole(&RealDisk, repo, PLACES, &text),
        false => Err(io::Error::other(
            "a path with a line break has no place in it",
        )),
    };
    if let Err(e) = written {
        log.push(
            Level::Warn,
            format!(
                "{}: the place of the write journal, {}, cannot be remembered: {e}",
                repo.join(PLACES).display(),
                now.display()
            ),
        );
    }
}

/// Counts the blocks of the journal in `dir`; `None` if it holds none, or a datastore has it open.
/// Holds the directory's lock meanwhile; changes no file.
fn blocks_in(dir: &Path) -> Result<Option<Staged>> {
    let is_segment = |e: std::fs::DirEntry| e.path().extension().is_some_and(|x| x == "segment");
    if !dir
        .read_dir()
        .is_ok_and(|all| all.flatten().any(is_segment))
    {
        return Ok(None);
    }
    let _lock = match DirLock::take_unchanged(dir) {
        Ok(lock) => lock,
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => {
            return Err(disk_error(&format!("journal {}: LOCK", dir.display()), &e))
        }
    };
    let staged = staged_in(dir)?;
    Ok((staged.blocks > 0).then_some(staged))
}

/// Counts the blocks of the journal in `dir`, which is locked. Changes no file.
fn staged_in(dir: &Path) -> Result<Staged> {
    let disk: Arc<dyn Disk> = Arc::new(Untouched);
    let state = replay(dir, &disk, &Settled::default(), &Log::default())?.state;
    Ok(state.staged())
}

/// A disk on which nothing is changed.
#[derive(Debug)]
pub(super) struct Untouched;

impl Disk for Untouched {
    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn create(&self, _: &Path) -> io::Result<File> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _: &File, _: u64, _: &[&[u8]]) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: &File, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}
