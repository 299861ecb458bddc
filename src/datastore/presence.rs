//! Each node notes beside the index that it is there: so an operator sees all nodes of an index at
//! one place, and sees a node that is gone while its journal held blocks.
//!
//! A node has a note of its own (`node:` and its name), so no two nodes write one row. It is
//! written with the running totals, and far more rarely ([`BUSY`], [`IDLE`]). The name lies in the
//! journal, so that a journal that moves to another machine stays the same node; without a journal
//! it lies in the repo. Two nodes of one name (their machines come from one image, or a directory
//! was copied) would hide each other: so each process of a node writes a text of its own with its
//! note, and one that finds another's in its place takes a new name. A node that only reads its
//! index leaves no note, and a note that cannot be written is left out: nothing depends on it.
//! Notes of nodes that are long gone, and whose journals were empty, are removed by the next node
//! that starts.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::{caught, Result};
use crate::index::{new_identity, Index, Notes};
use crate::journal::Journal;

/// A node that writes, or whose journal has changed, is noted so often; the first time so long
/// after it was opened.
pub(super) const BUSY: Duration = Duration::from_secs(60);
/// A node that does nothing is noted so often.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// A node that was not seen for so long, and whose journal was empty, is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(30 * 86_400);
/// Closing waits so long for the last note.
const LAST: Duration = Duration::from_secs(2);
/// The most nodes that are read.
const MOST: usize = 1_000;
/// What the names of the notes begin with.
const PREFIX: &str = "node:";
/// The file with the name of a node: in its journal, or in its repo.
const IN_JOURNAL: &str = "NODE";
const IN_REPO: &str = "walrusds-node";

/// What a node has noted of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeNote {
    /// The name of its machine; empty if that has none.
    #[serde(default)]
    pub(crate) host: String,
    /// The version of walrusds.
    #[serde(default)]
    pub(crate) version: String,
    /// When it was written, by the node's clock (seconds since 1970).
    pub(crate) at: u64,
    /// Whether the node was closed after it.
    #[serde(default)]
    pub(crate) closed: bool,
    /// Its write journal, if it has one.
    #[serde(default)]
    pub(crate) journal: Option<JournalNote>,
    /// A random text of the process that wrote it.
    #[serde(default)]
    pub(crate) run: String,
}

/// The blocks in a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalNote {
    /// Blocks that are on no other disk.
    pub(crate) blocks: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// When the oldest of them came (seconds since 1970).
    #[serde(default)]
    pub(crate) oldest: Option<u64>,
}

/// The nodes that have left notes, by their names, in the order of the names. A note that is not
/// understood is left out.
pub(crate) async fn nodes(index: &(impl Notes + ?Sized)) -> Result<Vec<(String, NodeNote)>> {
    let notes = index.notes(PREFIX, MOST).await?;
    let each = notes.into_iter().filter_map(|(name, text)| {
        let node = name.strip_prefix(PREFIX)?.to_owned();
        Some((node, serde_json::from_str(&text).ok()?))
    });
    Ok(each.collect())
}

/// Forgets a node. Returns whether it was known.
pub(crate) async fn forget(index: &(impl Notes + ?Sized), node: &str) -> Result<bool> {
    let name = format!("{PREFIX}{node}");
    let known = index.note(&name).await?.is_some();
    if known {
        index.set_note(&name, None).await?;
    }
    Ok(known)
}

/// This node's notes of itself.
pub(super) struct Presence {
    index: Arc<dyn Index>,
    clock: Arc<dyn Clock>,
    journal: Option<Arc<Journal>>,
    /// The name of its note.
    name: String,
    /// The file that holds the name.
    file: PathBuf,
    /// The text of this process in its notes.
    run: String,
    /// Whether this process has written a note under its name.
    wrote: bool,
    /// The journal as it was noted last, and when that was tried.
    noted: Option<(Instant, Option<JournalNote>)>,
    /// Whether nodes that are long gone were looked for.
    tidied: bool,
}

/// The name of this machine. A text with a zero byte fits no database.
pub(crate) fn machine() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().replace('\0', "")
}

impl Presence {
    /// `None` for a node that has no place for its name.
    pub(super) fn new(
        repo: &Path,
        journal_dir: Option<&Path>,
        journal: Option<Arc<Journal>>,
        index: Arc<dyn Index>,
        clock: Arc<dyn Clock>,
    ) -> Option<Presence> {
        let file = match journal_dir {
            Some(dir) => dir.join(IN_JOURNAL),
            None => repo.join(IN_REPO),
        };
        let name = name_in(&file)?;
        Some(Presence {
            index,
            clock,
            journal,
            name: format!("{PREFIX}{name}"),
            file,
            run: new_identity(),
            wrote: false,
            noted: None,
            tidied: false,
        })
    }

    /// Looks whether the node is to be noted, and does so. `wrote`: it has written since it was
    /// noted last. Returns whether it was noted.
    pub(super) async fn look(&mut self, wrote: bool) -> bool {
        let journal = self.journal_now();
        let due = match &self.noted {
            None => is_due(None, wrote),
            Some((at, noted)) => {
                let changed = noted.map(|j| j.blocks) != journal.map(|j| j.blocks);
                is_due(Some(at.elapsed()), wrote || changed)
            }
        };
        if !due || self.index.only_reads().is_some() {
            return false;
        }
        let _ = caught(self.write(journal, false)).await;
        if !std::mem::replace(&mut self.tidied, true) {
            let _ = caught(self.tidy()).await;
        }
        true
    }

    /// Notes that the node ends. A node that came for one command, and has neither written nor left
    /// blocks in its journal, leaves no note.
    pub(super) async fn end(&mut self, wrote: bool) {
        let journal = self.journal_now();
        let left = journal.is_some_and(|journal| journal.blocks > 0);
        if (self.noted.is_some() || wrote || left) && self.index.only_reads().is_none() {
            // A database that is away must not hold the end up.
            let _ = tokio::time::timeout(LAST, caught(self.write(journal, true))).await;
        }
    }

    fn journal_now(&self) -> Option<JournalNote> {
        let journal = self.journal.as_ref()?;
        let staged = journal.staged();
        let oldest = journal.oldest_age();
        let oldest = oldest.and_then(|age| self.clock.now().checked_sub(age));
        Some(JournalNote {
            blocks: staged.blocks,
            bytes: staged.bytes,
            oldest: oldest.map(seconds),
        })
    }

    async fn write(&mut self, journal: Option<JournalNote>, closed: bool) -> Result<()> {
        self.noted = Some((Instant::now(), journal));
        if self.wrote && self.is_shared().await? {
            if let Some(name) = new_name(&self.file) {
                self.name = format!("{PREFIX}{name}");
            }
        }
        let note = NodeNote {
            host: machine(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: seconds(self.clock.now()),
            closed,
            journal,
            run: self.run.clone(),
        };
        let text = serde_json::json!(note).to_string();
        self.index.set_note(&self.name, Some(&text)).await?;
        self.wrote = true;
        Ok(())
    }

    /// Whether another process has written under this name since this one has.
    async fn is_shared(&self) -> Result<bool> {
        let text = self.index.note(&self.name).await?.unwrap_or_default();
        let note: Option<NodeNote> = serde_json::from_str(&text).ok();
        Ok(note.is_some_and(|note| note.run != self.run))
    }

    /// Forgets nodes that are long gone and have left nothing behind.
    async fn tidy(&self) -> Result<()> {
        let before = seconds(self.clock.now()).saturating_sub(FORGOTTEN.as_secs());
        for (node, note) in nodes(&*self.index).await? {
            let left = note.journal.is_some_and(|journal| journal.blocks > 0);
            if note.at < before && !left {
                forget(&*self.index, &node).await?;
            }
        }
        Ok(())
    }
}

/// Whether a node is to be noted that was noted so long ago.
fn is_due(since: Option<Duration>, busy: bool) -> bool {
    since.is_none_or(|since| since >= if busy { BUSY } else { IDLE })
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_secs())
}

/// The name in a file, which is made if there is none. `None` if it can neither be read nor made.
fn name_in(file: &Path) -> Option<String> {
    let is_name = |name: &str| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let found = std::fs::symlink_metadata(file).ok();
    if found.is_some_and(|found| found.is_file() && found.len() < 100) {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let name = text.trim();
        if is_name(name) {
            return Some(name.to_owned());
        }
    }
    new_name(file)
}

/// Makes a new name, and the file that holds it.
fn new_name(file: &Path) -> Option<String> {
    let name = new_identity();
    let new = file.with_extension("new");
    let _ = std::fs::remove_file(&new);
    // Not through a link.
    let mut made = File::options()
        .write(true)
        .create_new(true)
        .open(&new)
        .ok()?;
    writeln!(made, "{name}").ok()?;
    // A node that loses its name in a power cut would look like one that is gone with its blocks.
    made.sync_all().ok()?;
    std::fs::rename(&new, file).ok()?;
    Some(name)
}

#[cfg(test)]
mod tests;
