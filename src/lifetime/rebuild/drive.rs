//! Rebuilds an index of a list of blobs.
//!
//! **Problem.** A list may hold 100,000 blobs, and a run may end anywhere. The rows in the index
//! must stay, and of two blobs that hold the same block the one that ends later must win, also when
//! a run carries another one on.
//!
//! **Outline.** Several blobs are read at a time, each by a task of its own. Their rows are written
//! in the order of the list, which begins with the blobs that end last, many blobs in one
//! transaction ([`Ledger::place_missing`](crate::index::Ledger::place_missing)). A key that has a
//! row keeps it, whether it was there before or comes from a blob that ends later. After each
//! transaction the report is noted in the index, with how much of the list is done. A run with the
//! same list goes on there.
//!
//! **Invariants.**
//! - The rows of a blob are written only after those of all blobs before it in the list. This holds
//!   over several runs with the same list, also if they run at the same time: a run that begins at
//!   the note begins behind rows that are written. A lease keeps runs with other lists out.
//! - The note never says more than the index holds. It may say less, after a run was killed: then a
//!   part of the list is done again, and changes nothing.
//! - No node deletes a blob meanwhile whose rows are read and not written: it would have the same
//!   lease.
//! - A blob that was left out has no entry: an entry without rows would make it look like garbage.
//! - The rows in memory are those of at most [`Options::in_flight`] blobs and one transaction.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::car::rebuild_rows;
use super::list::List;
use super::quilt::rebuild_quilt;
use super::report::{note, noted, LeftOut, Report, Why};
use crate::clock::{Clock, EpochClock};
use crate::error::{one_line, Error, ErrorKind, Result};
use crate::index::{Blob, Index, KeyRecord, Record, Usage};
use crate::walrus::BlobStore;

/// Nodes that delete blobs take it as well.
pub(crate) const LEASE: &str = "rebuild";
const LEASE_TTL: Duration = Duration::from_secs(300);

/// So many blobs in a row that cannot be read, for a reason that may pass, end a run.
const MOST_UNREADABLE: usize = 64;

/// The most blobs of one transaction, so that the note follows also where blobs hold few blocks.
const BATCH_BLOBS: usize = 1_000;

/// The parts that a rebuild works with.
#[derive(Clone)]
pub struct Parts {
    /// The index that is filled.
    pub index: Arc<dyn Index>,
    /// Walrus.
    pub store: Arc<dyn BlobStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Tells when the storage of a blob ends whose end epoch alone is known.
    pub epochs: Arc<EpochClock>,
}

/// How an index is rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How many blobs are read at a time.
    pub in_flight: usize,
    /// How many rows a transaction has at least, but for the last one. Keys are random, so few rows
    /// change nearly as many pages of the index as many rows do. 200,000 take up to 200 MB of
    /// memory.
    pub batch_rows: usize,
    /// Shards of the network, on which the layout of quilts depends.
    pub n_shards: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            in_flight: 16,
            batch_rows: 200_000,
            n_shards: 1000,
        }
    }
}

setters! { Options {
    with_in_flight(in_flight: usize);
    with_batch_rows(batch_rows: usize);
    with_n_shards(n_shards: u32);
} }

/// The rows of a blob, and what is known of it.
struct Found {
    blob: Blob,
    rows: Vec<KeyRecord>,
}

/// What became of a blob that was read, and whether another attempt may succeed.
type Outcome = std::result::Result<Found, (LeftOut, Option<Error>)>;

/// Fills an index with the rows of the blobs of a list. `progress` is called after each
/// transaction, and once at the end. A run that was ended or killed is carried on by a run with the
/// same list; when a list was dealt with to its end, another run begins anew, and adds what is
/// missing. Nothing in the index is replaced. Blobs of which no rows can be made are named in the
/// report, and are no error.
///
/// Blocks that were deleted come back where their blobs still hold them: a blob does not say which
/// of its blocks are alive. A garbage collection removes them again.
///
/// # Errors
/// [`ErrorKind::Locked`] while a rebuild of another list runs, or ended less than five minutes ago
/// without giving way; [`ErrorKind::Config`] if the index can only be read; [`ErrorKind::Index`];
/// the last read's error if 64 blobs in a row could not be read.
pub async fn rebuild(
    parts: &Parts,
    list: &List,
    options: &Options,
    progress: &mut (dyn FnMut(&Report) + Send),
) -> Result<Report> {
    let index = &*parts.index;
    if let Some(why) = index.only_reads() {
        let text = format!("an index cannot be rebuilt where nothing can be written: {why}");
        return Err(Error::new(ErrorKind::Config, text));
    }
    let owner = list.fingerprint();
    let asked = Instant::now();
    if !index.try_lease(LEASE, &owner, LEASE_TTL).await? {
        let text = "another list is being rebuilt into this index, or was until less than five minutes ago: wait for its end, or go \
             on with that list. Or a node deletes blobs just now: try again in a few minutes";
        return Err(Error::new(ErrorKind::Locked, text));
    }
    let run = Run {
        parts,
        options,
        owner: &owner,
        held: Mutex::new(asked),
    };
    let report = run.all(list, progress).await;
    // It runs out by itself.
    let _ = index.release_lease(LEASE, &owner).await;
    report
}

struct Run<'a> {
    parts: &'a Parts,
    options: &'a Options,
    owner: &'a str,
    /// A moment that is not after the lease was last taken.
    held: Mutex<Instant>,
}

/// Blobs that are written together.
#[derive(Default)]
struct Batch {
    /// How many blobs of the list it deals with.
    dealt_with: usize,
    blobs: Vec<Blob>,
    rows: Vec<KeyRecord>,
    left_out: Vec<LeftOut>,
}

impl Run<'_> {
    async fn all(&self, list: &List, progress: &mut (dyn FnMut(&Report) + Send)) -> Result<Report> {
        let index = &*self.parts.index;
        let now = self.parts.clock.now();
        self.parts.epochs.merge(now, &index.epochs().await?);
        let mut report = self.begun(list).await?;
        let done = usize::try_from(report.done).unwrap_or(usize::MAX);
        let rest = list.blobs().iter().skip(done);
        let mut reads = stream::iter(rest)
            .map(|blob| self.read(blob.clone()))
            .buffered(self.options.in_flight.max(1));
        let mut batch = Batch::default();
        // The blobs at the end of the batch that may be readable at another time.
        let mut unreadable = 0;
        loop {
            let read = tokio::select! {
                biased;
                read = reads.next() => read,
                // A read may take minutes, and rows wait for others.
                () = tokio::time::sleep(LEASE_TTL / 3) => {
                    self.hold().await?;
                    continue;
                }
            };
            let Some(read) = read else { break };
            if self.held.lock().elapsed() >= LEASE_TTL / 3 {
                self.hold().await?;
            }
            let read = read.map_err(|e| {
                let text = format!("the task that reads a blob ended: {e}");
                Error::new(ErrorKind::Internal, text)
            })?;
            match read {
                Ok(found) if found.rows.iter().any(|row| row.record.patch_id.is_some()) => {
                    unreadable = 0;
                    self.write(&mut batch, &mut report, progress).await?;
                    self.add_quilt(found, &mut batch, &mut report).await?;
                }
                Ok(found) => {
                    unreadable = 0;
                    batch.blobs.push(found.blob);
                    batch.rows.extend(found.rows);
                }
                Err((left_out, again)) => {
                    batch.left_out.push(left_out);
                    unreadable = if again.is_some() { unreadable + 1 } else { 0 };
                    if let Some(e) = again.filter(|_| unreadable >= MOST_UNREADABLE) {
                        // They are read again by the next run.
                        let read = batch.left_out.len().saturating_sub(unreadable);
                        batch.left_out.truncate(read);
                        batch.dealt_with = batch.dealt_with.saturating_sub(unreadable - 1);
                        self.write(&mut batch, &mut report, progress).await?;
                        return Err(e.context(format!(
                            "rebuilding stopped at blob {} of {}, since {unreadable} blobs in a row could not be read",
                            report.done + 1,
                            report.blobs,
                        )));
                    }
                }
            }
            batch.dealt_with += 1;
            let full = batch.rows.len() >= self.options.batch_rows.max(1);
            // A row of failures stays together, so that it can be taken back.
            if full || batch.dealt_with >= BATCH_BLOBS && unreadable == 0 {
                self.write(&mut batch, &mut report, progress).await?;
            }
        }
        self.write(&mut batch, &mut report, progress).await?;
        report.ended = true;
        note(index, &report).await?;
        progress(&report);
        Ok(report)
    }

    /// Prolongs the lease.
    ///
    /// # Errors
    /// It has run out since: a node may have deleted blobs whose rows were read and not written.
    /// What was written stays, and the next run reads the rest again.
    async fn hold(&self) -> Result<()> {
        let asked = Instant::now();
        let index = &self.parts.index;
        let ours = index.try_lease(LEASE, self.owner, LEASE_TTL).await?;
        let before = std::mem::replace(&mut *self.held.lock(), asked);
        if ours && before.elapsed() < LEASE_TTL {
            return Ok(());
        }
        let text = match ours {
            true => "the index did not answer for minutes; run this again, which goes on",
            false => "a rebuild of another list took over, or a node deletes blobs; run this one again when that has ended",
        };
        Err(Error::retryable(ErrorKind::Locked, text))
    }

    /// The report of the run that is carried on, or a new one.
    async fn begun(&self, list: &List) -> Result<Report> {
        let index = &*self.parts.index;
        let blobs = list.blobs().len() as u64;
        let earlier = match noted(index).await {
            // Of a version that knows more, or damaged: then all is done again.
            Err(e) if e.kind() == ErrorKind::Corrupt => None,
            earlier => earlier?,
        };
        let earlier = earlier.filter(|earlier| {
            let same = earlier.fingerprint == self.owner && earlier.blobs == blobs;
            same && !earlier.ended && earlier.done <= blobs
        });
        if let Some(earlier) = earlier {
            return Ok(earlier);
        }
        let report = Report {
            blobs,
            fingerprint: self.owner.to_owned(),
            ..Report::default()
        };
        note(index, &report).await?;
        Ok(report)
    }

    /// Begins to read a blob.
    fn read(&self, mut blob: Blob) -> AbortOnDropHandle<Outcome> {
        let Parts { clock, epochs, .. } = self.parts;
        if let (None, Ok(end @ 1..)) = (blob.expires_at, u64::try_from(blob.end_epoch)) {
            blob.expires_at = epochs.ends_at(clock.now(), end);
        }
        let (store, n_shards) = (Arc::clone(&self.parts.store), self.options.n_shards);
        AbortOnDropHandle::new(tokio::spawn(read_blob(store, blob, n_shards)))
    }

    /// Writes what was gathered, and notes it.
    async fn write(
        &self,
        batch: &mut Batch,
        report: &mut Report,
        progress: &mut (dyn FnMut(&Report) + Send),
    ) -> Result<()> {
        if batch.dealt_with == 0 {
            return Ok(());
        }
        let index = &*self.parts.index;
        self.hold().await?;
        let batch = std::mem::take(batch);
        self.place(&batch.blobs, batch.rows, report).await?;
        for left_out in batch.left_out {
            report.leave_out(left_out);
        }
        report.done += batch.dealt_with as u64;
        note(index, report).await?;
        progress(report);
        Ok(())
    }

    async fn place(
        &self,
        blobs: &[Blob],
        mut rows: Vec<KeyRecord>,
        report: &mut Report,
    ) -> Result<()> {
        if blobs.is_empty() {
            return Ok(());
        }
        let found = usage_of(&rows);
        // Among the rows of a key stays the one of the first blob: the sort is stable.
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows.dedup_by(|later, first| later.key == first.key);
        let added = self.parts.index.place_missing(blobs, &rows).await?;
        report.rebuilt += blobs.len() as u64;
        let without_end = |blob: &&Blob| blob.end_epoch == 0 && blob.expires_at.is_none();
        report.without_end += blobs.iter().filter(without_end).count() as u64;
        report.found = report.found.plus(found);
        report.added = report.added.plus(added);
        Ok(())
    }

    /// Writes the rows of a quilt, which not every table takes: alone, so that the others need not
    /// be written twice.
    async fn add_quilt(&self, found: Found, batch: &mut Batch, report: &mut Report) -> Result<()> {
        let Found { blob, rows } = found;
        let blob_id = blob.blob_id.clone();
        match self.place(&[blob], rows, report).await {
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                batch.left_out.push(left_out(blob_id, Why::NoColumn, &e));
                Ok(())
            }
            placed => placed,
        }
    }
}

fn usage_of(rows: &[KeyRecord]) -> Usage {
    let all = rows.iter().map(|row| Usage::new(1, row.record.size));
    all.fold(Usage::default(), Usage::plus)
}

fn left_out(blob_id: String, why: Why, e: &Error) -> LeftOut {
    let said = one_line(e.message(), 300);
    LeftOut { blob_id, why, said }
}

async fn read_blob(store: Arc<dyn BlobStore>, mut blob: Blob, n_shards: u32) -> Outcome {
    if blob.format == "concat" {
        let left_out = LeftOut {
            blob_id: blob.blob_id,
            why: Why::Concat,
            said: "the list says so".to_owned(),
        };
        return Err((left_out, None));
    }
    let failed = |blob_id: String, e: Error| {
        let why = match e.kind() {
            ErrorKind::Unsupported => Why::Undescribed,
            ErrorKind::Corrupt => Why::Damaged,
            ErrorKind::BlobNotFound => Why::Gone,
            _ => Why::Unreadable,
        };
        let left_out = left_out(blob_id, why, &e);
        let again = (why == Why::Unreadable && e.is_retryable()).then_some(e);
        (left_out, again)
    };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let row = blob.row();
    match rebuild_rows(&*store, &blob.blob_id).await {
        Ok(rebuilt) => {
            blob.size = number(rebuilt.blob_len);
            blob.format = "car".to_owned();
            let rows = rebuilt.rows.into_iter().map(|found| KeyRecord {
                key: found.key,
                record: Record {
                    offset: number(found.offset),
                    size: number(found.len),
                    ..row.clone()
                },
            });
            let rows = rows.collect();
            Ok(Found { blob, rows })
        }
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            match rebuild_quilt(&*store, &blob.blob_id, n_shards).await {
                Ok(None) => Err(failed(blob.blob_id, e)),
                Err(of_quilt) => Err(failed(blob.blob_id, of_quilt)),
                Ok(Some(quilt)) => {
                    blob.size = number(quilt.blob_len);
                    blob.format = "quilt".to_owned();
                    let rows = quilt.blocks.into_iter().map(|member| KeyRecord {
                        key: member.key,
                        record: Record {
                            patch_id: Some(member.patch_id),
                            size: number(member.len),
                            ..row.clone()
                        },
                    });
                    let rows = rows.collect();
                    Ok(Found { blob, rows })
                }
            }
        }
        Err(e) => Err(failed(blob.blob_id, e)),
    }
}
