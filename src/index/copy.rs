//! Copies an index into another one: from SQLite to PostgreSQL, or to a table in partitions or on
//! Citus.
//!
//! **Problem.** An index moves while a node works with it. The copy may be broken off and carried
//! on, must not mix two indexes, and must be shown to be complete.
//!
//! **Outline.** A pass goes through both indexes in the order of their keys, page by page, and
//! makes the copy equal: rows that are missing are added with the entries of their blobs, rows that
//! differ are replaced, rows that the source lacks are removed. A pass notes its place in the copy
//! after each page. Passes that run beside a node bring most of the rows over. The last one runs
//! when no node writes to the source any more ([`Copying::Finish`]): it compares every row, removes
//! the entries that the source has forgotten, and is repeated until it finds nothing to change.
//! Then the copy gets the identity of the source, by which journals know it.
//!
//! **Invariants.**
//! - The copy holds rows of one source alone: an index that has rows is taken only if its note
//!   names the source. A finished copy has no note, so it is not taken again.
//! - A page is committed before its place is noted. So a pass that was broken off repeats a page at
//!   most, which changes nothing.
//! - One run at a time, under a lease in the copy: a run that goes on after another one has
//!   finished would remove what nodes have stored since. Before each page a run prolongs the lease,
//!   and looks whether the copy is still unfinished.
//! - No node works with an unfinished copy (`check_finished`): a pass would remove what it stores.
//! - Nothing is written to the source.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ledger::InState;
use super::{
    new_owner, Blob, BlobState, Index, KeyRange, KeyRecord, Record, Usage, COPY, IDENTITY,
    OF_RENEWAL, STANDBY, STORAGE_LEFT,
};
use crate::error::{Error, ErrorKind, Result};

/// Rows of a page.
const PAGE: usize = 5_000;
/// The lease of a run, in the copy, and how long it lasts without a page.
const LEASE: &str = "copy";
const LEASE_TTL: Duration = Duration::from_secs(60);
/// How the names of the notes begin on which money depends: what storage is left that can be used
/// again, and for which blobs bytes were paid for in vain.
const NOTES: [&str; 2] = [STORAGE_LEFT, OF_RENEWAL];
/// The most of them that are copied.
const MOST_NOTES: usize = 100_000;
/// Passes after which a source that goes on changing is given up.
const MOST_PASSES: u32 = 5;

/// How far a copy is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// One pass, beside nodes that work with the source.
    Beside,
    /// To the end. No node may write to the source meanwhile.
    Finish,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopyReport {
    /// Passes that were made to their end.
    pub passes: u32,
    /// Blocks and bytes that the latest pass has compared.
    pub compared: Usage,
    /// Rows that were added.
    pub added: u64,
    /// Rows that were replaced.
    pub replaced: u64,
    /// Rows that were removed from the copy.
    pub removed: u64,
    /// Entries of blobs that were brought up to date, or removed with those of the source.
    pub blobs: u64,
    /// Blocks that a Go node has staged in the source. They are not copied, but the rows that some
    /// of their keys have as well are.
    pub staged: u64,
    /// Whether the copy is finished: its latest pass has found it equal to the source.
    pub finished: bool,
}

/// Told after each page; an error stops the copy, which can be carried on.
pub type CopyProgress<'a> = &'a mut (dyn FnMut(&CopyReport) -> Result<()> + Send);

#[derive(Serialize, Deserialize)]
struct Note {
    source: String,
    /// The last key of the pass that was broken off; empty at the beginning of a pass.
    after: String,
}

/// Copies the rows, the entries of blobs and the epochs of `from` to `to`, and the running total.
/// Deleted rows that are kept for undoing are not copied.
///
/// # Errors
/// [`ErrorKind::Config`] if `to` holds rows that are no copy of `from`, or, where the copy is to be
/// finished, if `from` goes on changing or is on a standby; [`ErrorKind::Locked`] if another run
/// makes this copy, or was killed within the last minute; the errors of both indexes.
pub async fn copy(
    from: &dyn Index,
    to: &dyn Index,
    copying: Copying,
    progress: CopyProgress<'_>,
) -> Result<CopyReport> {
    if copying == Copying::Finish {
        check_no_standby(from)?;
    }
    let source = from.identity().await?.ok_or_else(|| {
        bad("the source has no identity, and cannot be given one: open it with a node that may write to it first")
    })?;
    let run = Run {
        to,
        source,
        owner: new_owner(),
    };
    run.keep_lease().await?;
    let copied = run.copy(from, copying, progress).await;
    let _ = to.release_lease(LEASE, &run.owner).await;
    copied
}

/// A run, which holds the lease.
struct Run<'a> {
    to: &'a dyn Index,
    /// The identity of the source.
    source: String,
    owner: String,
}

impl Run<'_> {
    /// Takes the lease, or prolongs it.
    async fn keep_lease(&self) -> Result<()> {
        match self.to.try_lease(LEASE, &self.owner, LEASE_TTL).await? {
            true => Ok(()),
            false => Err(Error::retryable(
                ErrorKind::Locked,
                format!(
                    "another run of copy_index makes this copy, or was killed within the last {} s: end it, or wait",
                    LEASE_TTL.as_secs()
                ),
            )),
        }
    }

    /// Prolongs the lease, and checks that no other run has finished the copy meanwhile.
    async fn go_on(&self) -> Result<()> {
        self.keep_lease().await?;
        match self.to.note(COPY).await? {
            Some(_) => Ok(()),
            None => Err(bad(
                "another run has finished this copy meanwhile: nothing more is changed in it",
            )),
        }
    }

    async fn copy(
        &self,
        from: &dyn Index,
        copying: Copying,
        progress: CopyProgress<'_>,
    ) -> Result<CopyReport> {
        let (to, source) = (self.to, &self.source);
        let mut report = CopyReport::default();
        let mut after = begin(source, to).await?;
        loop {
            // Only a whole pass compares every row.
            let whole = after.is_empty();
            let place = std::mem::take(&mut after);
            let mut changed = self.pass(from, place, &mut report, progress).await?;
            report.passes += 1;
            if copying == Copying::Beside {
                return Ok(report);
            }
            self.go_on().await?;
            let forgotten = forget_with_the_source(from, to).await?;
            report.blobs += forgotten;
            changed += forgotten;
            if whole && changed == 0 {
                break;
            }
            if report.passes >= MOST_PASSES {
                return Err(bad(format!(
                "the source still changed during pass {MOST_PASSES}: stop the nodes that write to it, and run this again"
            )));
            }
        }
        self.go_on().await?;
        for beginning in NOTES {
            for (name, text) in from.notes(beginning, MOST_NOTES).await? {
                to.set_note(&name, Some(&text)).await?;
            }
        }
        to.set_note(IDENTITY, Some(source)).await?;
        to.set_note(COPY, None).await?;
        report.finished = true;
        Ok(report)
    }

    /// One pass over the keys after `after`. Returns how much was changed, in the copy and, as far
    /// as the pass noticed, in the source meanwhile.
    async fn pass(
        &self,
        from: &dyn Index,
        mut after: String,
        report: &mut CopyReport,
        progress: CopyProgress<'_>,
    ) -> Result<u64> {
        let to = self.to;
        let whole = after.is_empty();
        let (before, mut vanished) = (changes(report), 0);
        report.compared = Usage::default();
        report.staged = 0;
        loop {
            self.go_on().await?;
            let range = keys_after(&after, None);
            let keys = from.list(&range, 0, PAGE).await?;
            let last = keys.last().filter(|_| keys.len() >= PAGE);
            let last = last.map(|item| item.key.clone());
            let keys: Vec<String> = keys.into_iter().map(|item| item.key).collect();
            vanished += page(from, to, &after, last.as_deref(), &keys, report).await?;
            after = last.clone().unwrap_or_default();
            self.go_on().await?;
            set_place(to, &self.source, &after).await?;
            progress(report)?;
            if last.is_none() {
                break;
            }
        }
        without_rows(from, to, report).await?;
        to.saw_epochs(&from.epochs().await?).await?;
        if whole {
            let total = to.usage().await?;
            to.add_usage(report.compared.minus(total)).await?;
        }
        Ok(changes(report) - before + vanished)
    }
}

/// A standby may be behind its primary: a pass over it may find nothing to change while the source
/// has other rows.
fn check_no_standby(from: &dyn Index) -> Result<()> {
    match from.only_reads() {
        Some(STANDBY) => Err(bad(
            "the server of the source is a standby, which may be behind its primary, so the copy cannot be finished \
             from it: name the primary in postgresURL of the source, or all servers with \
             target_session_attrs=read-write",
        )),
        _ => Ok(()),
    }
}

/// Checks that an index is no copy that must be finished before it is used.
pub(crate) fn check_finished(index: &dyn Index) -> Result<()> {
    let Some(note) = index.unfinished_copy() else {
        return Ok(());
    };
    let source = match serde_json::from_str::<Note>(note) {
        Ok(note) => note.source,
        Err(_) => "an unknown one".to_owned(),
    };
    Err(bad(format!(
        "the index is an unfinished copy of another index ({source}), and what is stored in it would be lost when \
         the copy is finished. Stop the nodes that write to the old index, and run: cargo run --release \
         --example copy_index -- --finish FROM.json TO.json REPO"
    )))
}

/// Checks that `to` may become a copy of the source; returns the key after which to go on.
async fn begin(source: &str, to: &dyn Index) -> Result<String> {
    let identity = to.note(IDENTITY).await?;
    if identity.is_some_and(|identity| identity != source) {
        return Err(bad(
            "the index to copy to belongs to a journal of another index, or is a copy of another one: give an empty one",
        ));
    }
    if let Some(note) = to.note(COPY).await? {
        let note: Note = serde_json::from_str(&note).map_err(|e| {
            bad(format!(
                "the note {COPY:?} of the index to copy to cannot be read: {e}"
            ))
        })?;
        return match note.source == source {
            true => Ok(note.after),
            false => Err(bad(
                "the index to copy to is the unfinished copy of another index: give an empty one",
            )),
        };
    }
    if !to.list(&KeyRange::ALL, 0, 1).await?.is_empty() {
        return Err(bad(
            "the index to copy to holds rows, and is no unfinished copy of the source: give an empty one",
        ));
    }
    set_place(to, source, "").await?;
    Ok(String::new())
}

async fn set_place(to: &dyn Index, source: &str, after: &str) -> Result<()> {
    let note = Note {
        source: source.to_owned(),
        after: after.to_owned(),
    };
    let text = serde_json::to_string(&note)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("a note: {e}")))?;
    to.set_note(COPY, Some(&text)).await
}

fn changes(report: &CopyReport) -> u64 {
    report.added + report.replaced + report.removed + report.blobs
}

/// The keys after one, up to another.
fn keys_after(after: &str, last: Option<&str>) -> KeyRange {
    let mut range = KeyRange::ALL;
    range.keys_alone = true;
    if !after.is_empty() {
        range.lower = Bound::Excluded(after.to_owned());
    }
    if let Some(last) = last {
        range.upper = Bound::Included(last.to_owned());
    }
    range
}

/// Makes the copy equal to the source between two keys. `keys`: those of the source. Returns how
/// many of these it has lost since.
async fn page(
    from: &dyn Index,
    to: &dyn Index,
    after: &str,
    last: Option<&str>,
    keys: &[String],
    report: &mut CopyReport,
) -> Result<u64> {
    let found = rows_of(from, keys).await?;
    report.staged += found.staged;
    let there = to.get_many(keys).await?;
    let (mut missing, mut different, mut blobs) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for ((key, row), there) in keys.iter().zip(found.rows).zip(there) {
        let Some(row) = row else {
            continue;
        };
        known.insert(key);
        report.compared = report.compared.plus(Usage::new(1, row.size));
        blobs.insert(row.blob_id.clone());
        match there {
            None => missing.push(KeyRecord::new(key, row)),
            Some(there) if there != row => different.push(KeyRecord::new(key, row)),
            Some(_) => {}
        }
    }
    let blobs: Vec<String> = blobs.into_iter().collect();
    let entries: Vec<Blob> = from.blobs(&blobs).await?.into_iter().flatten().collect();
    if !missing.is_empty() {
        to.place_missing(&entries, &missing).await?;
        report.added += missing.len() as u64;
    }
    // Before the rows: a renewal of an entry moves the ends of its rows, too.
    report.blobs += entries_alike(to, &entries).await?;
    if !different.is_empty() {
        to.put_many(&different).await?;
        report.replaced += different.len() as u64;
    }
    // Keys of the copy that the source lacks.
    let mut at = after.to_owned();
    loop {
        let found = to.list(&keys_after(&at, last), 0, PAGE).await?;
        let extra = found
            .iter()
            .filter(|item| !known.contains(item.key.as_str()));
        let extra: Vec<String> = extra.map(|item| item.key.clone()).collect();
        if !extra.is_empty() {
            to.delete_many(&extra).await?;
            report.removed += extra.len() as u64;
        }
        match found.last() {
            Some(item) if found.len() >= PAGE => at = item.key.clone(),
            _ => break,
        }
    }
    Ok(found.gone)
}

/// What a source has under keys that it has listed.
struct Found {
    /// The row of each key, in the keys' order, whether or not a block is staged as well.
    rows: Vec<Option<Record>>,
    /// Keys with a staged block.
    staged: u64,
    /// Keys that the source has lost since.
    gone: u64,
}

/// Reads the rows of keys. A lookup of a key with a staged block tells the staged block, so the row
/// of such a key is read by itself.
async fn rows_of(from: &dyn Index, keys: &[String]) -> Result<Found> {
    let mut rows = from.get_many(keys).await?;
    let gone = rows.iter().filter(|row| row.is_none()).count() as u64;
    let is_staged = |row: &Option<Record>| row.as_ref().is_some_and(|row| row.staged);
    let staged: Vec<usize> = (0..rows.len()).filter(|at| is_staged(&rows[*at])).collect();
    let staged_keys: Vec<String> = staged.iter().map(|at| keys[*at].clone()).collect();
    let beside = match from.staging() {
        Some(staging) => staging.rows_beside(&staged_keys).await?,
        None => vec![None; staged.len()],
    };
    for (at, row) in staged.iter().zip(beside) {
        rows[*at] = row;
    }
    Ok(Found {
        rows,
        staged: staged.len() as u64,
        gone,
    })
}

/// Brings the entries of blobs in the copy up to date. Returns how many it changed.
async fn entries_alike(to: &dyn Index, entries: &[Blob]) -> Result<u64> {
    let ids: Vec<String> = entries.iter().map(|blob| blob.blob_id.clone()).collect();
    let mut changed = 0;
    for (blob, there) in entries.iter().zip(to.blobs(&ids).await?) {
        let there = match there {
            Some(there) => there,
            None => {
                to.place_missing(std::slice::from_ref(blob), &[]).await?;
                changed += 1;
                continue;
            }
        };
        if told(blob) == told(&there) {
            continue;
        }
        changed += 1;
        // A renewal adds its cost to what was paid before, and moves no end backwards.
        let renewed = Blob {
            cost: blob.cost.saturating_sub(there.cost),
            ..blob.clone()
        };
        to.renewed(&renewed).await?;
        let there = to.blobs(std::slice::from_ref(&blob.blob_id)).await?;
        if there
            .into_iter()
            .flatten()
            .all(|there| told(&there) != told(blob))
        {
            replace(to, blob).await?;
        }
    }
    Ok(changed)
}

/// Replaces the entry of a blob that was forgotten in the source and stored anew since: it may end
/// earlier, and have cost less. Only an entry without rows can be forgotten. If this is broken off,
/// the rows are missing in the copy, and the pass that goes on adds them.
async fn replace(to: &dyn Index, blob: &Blob) -> Result<()> {
    let rows = to.rows_of_blob(&blob.blob_id).await?;
    let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
    to.delete_many(&keys).await?;
    let id = std::slice::from_ref(&blob.blob_id);
    to.forget_blobs(id).await?;
    to.place_missing(std::slice::from_ref(blob), &rows).await?;
    Ok(())
}

/// What an entry tells, without the counts, which each index makes for itself.
fn told(blob: &Blob) -> Blob {
    Blob {
        state: BlobState::default(),
        state_since: None,
        counted: None,
        read_back_at: None,
        ..blob.clone()
    }
}

/// Copies the entries of blobs without rows: they alone tell the prices that were paid, and the
/// objects to delete. Blobs that are in no use any more were released; the others have lost their
/// rows since they were counted last.
async fn without_rows(from: &dyn Index, to: &dyn Index, report: &mut CopyReport) -> Result<()> {
    for state in [BlobState::Live, BlobState::Released, BlobState::Deleting] {
        let mut blobs = InState::new(from, state);
        while let Some(page) = blobs.next().await? {
            report.blobs += entries_alike(to, &page).await?;
            if state == BlobState::Live {
                continue;
            }
            let ids: Vec<String> = page.iter().map(|blob| blob.blob_id.clone()).collect();
            to.set_state(&ids, BlobState::Released).await?;
            to.set_state(&ids, state).await?;
        }
    }
    Ok(())
}

/// Removes the entries of the copy that the source has not, or no more. One whose blob has rows
/// stays: an index may have rows of a blob without its entry. Returns how many were removed. From a
/// source without a ledger nothing is learned.
async fn forget_with_the_source(from: &dyn Index, to: &dyn Index) -> Result<u64> {
    let mut removed = 0;
    if !from.keeps_ledger() {
        return Ok(removed);
    }
    for state in [BlobState::Live, BlobState::Released, BlobState::Deleting] {
        let mut blobs = InState::new(to, state);
        while let Some(page) = blobs.next().await? {
            let ids: Vec<String> = page.into_iter().map(|blob| blob.blob_id).collect();
            let entries = from.blobs(&ids).await?;
            let lacking = ids.into_iter().zip(entries);
            let lacking = lacking.filter(|(_, entry)| entry.is_none());
            let lacking: Vec<String> = lacking.map(|(id, _)| id).collect();
            if !lacking.is_empty() {
                removed += to.forget_blobs(&lacking).await?;
            }
        }
    }
    Ok(removed)
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}
