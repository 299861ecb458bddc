//! Whether Walrus holds what the index says.
//!
//! [`check`] goes through all blobs at which rows point, in the order of the index, and looks
//!
//! - at the rows by themselves, and beside the entry of the ledger;
//! - at Walrus: whether the blob is there and long enough, and, for the blobs that are chosen,
//!   whether every block hashes to the multihash in its key;
//! - at the running totals beside the sum of the rows.
//!
//! Nothing is changed. Nodes may work with the index meanwhile: before anything is reported, the
//! rows are read once more, and what was put anew, moved or deleted meanwhile is no finding.
//!
//! A check goes on past whatever it finds. It may be stopped at any time, and goes on later from
//! its [`Cursor`]. Memory is bounded by the requests that run at a time (16 MiB each), the rows of
//! the few blobs that are looked at together, and a page of the ledger.
//!
//! | module | holds |
//! |---|---|
//! | `options` | what is read, and from where a check goes on |
//! | `finding` | what is found: kinds, severities, cures |
//! | `rows` | what rows tell by themselves |
//! | `data` | the bytes of a blob |
//! | `blob` | one blob: all of that together |
//! | `totals` | the sum of the rows, the running totals, staged blocks |
//! | `summary` | progress and result, as structs and as JSON |

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, EpochClock};
use crate::datastore::Inspection;
use crate::error::Result;
use crate::index::Index;
use crate::walrus::BlobStore;

mod blob;
mod data;
mod finding;
mod options;
mod rows;
mod summary;
mod totals;

pub(crate) use blob::BlobReport;
pub use finding::{Finding, FindingKind, Severity, MOST_KEYS};
pub use options::{Cursor, Data, Options, Sample};
pub use summary::{Event, Limit, Progress, Stopped, Summary, SCHEMA};

/// Blobs that are listed at a time.
const PAGE: usize = 1024;
/// Blobs that are looked at together.
const TOGETHER: usize = 8;
/// Soon is within this time where the length of an epoch is not known.
const SOON: Duration = Duration::from_secs(86_400);

/// What a check works with.
pub(crate) struct Parts {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The length of an epoch; zero = unknown.
    pub(crate) epoch: Duration,
}

/// What is done with the blobs that were looked at.
#[async_trait]
pub(crate) trait Handler: Send {
    /// A blob is done. Called in the order of the index.
    async fn blob(&mut self, report: &BlobReport) -> Result<()>;

    /// Something is to be told.
    fn tell(&mut self, event: Event);
}

/// Tells events and does nothing else.
struct Telling<'a>(&'a mut (dyn FnMut(Event) + Send));

#[async_trait]
impl Handler for Telling<'_> {
    async fn blob(&mut self, _: &BlobReport) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        (self.0)(event);
    }
}

/// Checks an index against Walrus; the module's head says what that means. `on` is told what is
/// found, and of each blob that is done. The check stops soon after `stop` is cancelled. Must be
/// called within a tokio runtime with several threads.
///
/// # Errors
/// The index failed. `on` was told all findings until then; the error names the cursor from which
/// another check goes on. Damage to blobs is a finding, and no error.
pub async fn check(
    inspection: &Inspection,
    options: &Options,
    on: &mut (dyn FnMut(Event) + Send),
    stop: &CancellationToken,
) -> Result<Summary> {
    let (index, store, clock) = inspection.parts();
    let parts = Parts {
        index,
        store,
        clock,
        epoch: inspection.config().epoch_duration,
    };
    run(&parts, options, &mut Telling(on), stop).await
}

/// As [`check`], with a handler of the blobs.
pub(crate) async fn run(
    parts: &Parts,
    options: &Options,
    handler: &mut dyn Handler,
    stop: &CancellationToken,
) -> Result<Summary> {
    let began = Instant::now();
    let mut summary = Summary::new(options.from.clone());
    let checked = async {
        let expected = look_around(parts, options, handler, &mut summary).await?;
        look_at_blobs(parts, options, handler, stop, expected, &mut summary).await
    };
    if let Err(e) = checked.await {
        let place = summary.cursor.to_string();
        return Err(e.context(format!("the check stopped (go on with --resume {place})")));
    }
    summary.took = began.elapsed();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = summary.took.as_secs_f64() * cores as f64;
    summary.hashing = (summary.hashing / most.max(1e-9)).min(1.0);
    Ok(summary)
}

/// Counts what there is to do, and looks at what concerns no single blob. Returns the numbers of
/// blobs and bytes.
async fn look_around(
    parts: &Parts,
    options: &Options,
    handler: &mut dyn Handler,
    summary: &mut Summary,
) -> Result<(u64, u64)> {
    if options.only.is_some() {
        return Ok((1, 0));
    }
    let index = &*parts.index;
    let from_start = options.from.after.is_empty();
    if !from_start {
        let sum = totals::sum(index, &options.from.after).await?;
        return Ok((sum.blobs, sum.usage.bytes.max(0).unsigned_abs()));
    }
    let (mut totals, mut sum) = (index.usage().await?, totals::all(index).await?);
    if sum.moved || totals != sum.counted() {
        tokio::time::sleep(options.settle).await;
        totals = index.usage().await?;
        sum = totals::all(index).await?;
    }
    let again = index.usage().await?;
    let mut found = Vec::new();
    if !sum.moved {
        (summary.counted, summary.totals) = (Some(sum.counted()), Some(totals));
        found.extend(totals::compare(sum.counted(), totals, again));
    }
    found.extend(totals::without_blob(index).await?);
    found.extend(totals::staged(index, sum.moved).await?);
    for finding in found {
        summary.found(&finding);
        handler.tell(Event::Finding(finding));
    }
    Ok((sum.rows.blobs, sum.rows.usage.bytes.max(0).unsigned_abs()))
}

async fn look_at_blobs(
    parts: &Parts,
    options: &Options,
    handler: &mut dyn Handler,
    stop: &CancellationToken,
    (blobs_in_all, bytes_in_all): (u64, u64),
    summary: &mut Summary,
) -> Result<()> {
    let index = &parts.index;
    let epochs = EpochClock::new(parts.epoch);
    epochs.merge(parts.clock.now(), &index.epochs().await?);
    let soon = match parts.epoch.is_zero() {
        true => SOON,
        false => parts.epoch,
    };
    let looking = Arc::new(blob::Looking {
        index: Arc::clone(index),
        clock: Arc::clone(&parts.clock),
        epochs,
        soon: options.soon.unwrap_or(soon),
        data: options.from.data,
        reading: Arc::new(data::Reading {
            store: Arc::clone(&parts.store),
            permits: Semaphore::new(options.parallel.clamp(1, 64)),
            counters: data::Counters::default(),
        }),
    });
    let mut in_a_row = 0;
    let mut after = options.from.after.clone();
    let mut more = true;
    'pages: while more {
        let ids: Vec<String> = match &options.only {
            Some(only) => vec![only.clone()],
            None => {
                let page = index.blobs_of_rows(&after, PAGE).await?;
                page.into_iter().map(|blob| blob.blob_id).collect()
            }
        };
        more = options.only.is_none() && ids.len() >= PAGE;
        let entries = index.blobs(&ids).await?;
        after = ids.last().cloned().unwrap_or_default();
        let jobs = ids.into_iter().zip(entries);
        let jobs = jobs.map(|(id, entry)| blob::look(Arc::clone(&looking), id, entry));
        let mut done = stream::iter(jobs).buffered(TOGETHER);
        loop {
            let report = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    summary.stopped = Some(Stopped::Asked);
                    break 'pages;
                }
                report = done.next() => match report {
                    Some(report) => report?,
                    None => break,
                },
            };
            for finding in &report.findings {
                summary.found(finding);
                handler.tell(Event::Finding(finding.clone()));
            }
            handler.blob(&report).await?;
            summary.blobs += 1;
            summary.blocks += report.blocks;
            summary.bytes += report.bytes;
            summary.blobs_read += u64::from(report.read);
            summary.cursor.after.clone_from(&report.blob_id);
            handler.tell(Event::Progress(Progress {
                cursor: summary.cursor.clone(),
                blobs: summary.blobs,
                blobs_in_all: blobs_in_all.max(summary.blobs),
                bytes: summary.bytes,
                bytes_in_all: bytes_in_all.max(summary.bytes),
            }));
            in_a_row = match report.unreadable {
                true => in_a_row + 1,
                false => 0,
            };
            if in_a_row >= options.give_up_after.max(1) {
                summary.stopped = Some(Stopped::Unreadable);
                break 'pages;
            }
        }
    }
    let counters = &looking.reading.counters;
    summary.verified = counters.verified.load(Relaxed);
    summary.unverifiable = counters.unverifiable.load(Relaxed);
    summary.bytes_read = counters.bytes.load(Relaxed);
    summary.requests = counters.requests.load(Relaxed);
    summary.hashing = counters.hashing.load(Relaxed) as f64 / 1e9;
    Ok(())
}
