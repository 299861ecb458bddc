//! Lost blocks are stored again where copies of them are left, and rows without any copy dropped.
//!
//! [`repair`] makes a [`check`], and takes up what that reports as lost. It changes
//! nothing unless it is told to ([`Options::apply`]).
//!
//! **Invariants.**
//! - A copy counts only if it hashes to the multihash in the key.
//! - A block is stored again in a new pack, which is certified and was read back before the first
//!   row points at it. A row is moved only if it still points at the lost place's blob: what a node
//!   put or deleted meanwhile stays.
//! - A row is dropped only if it is told to ([`Options::drop`]), if no source has a copy, if the
//!   journal could be looked at, and if the loss is certain: *each* configured aggregator answers
//!   by itself that there is no such blob, and gives another blob of this index (one of another
//!   network knows none of them); or a node has seen the epoch with which the blob's
//!   storage ended, and no aggregator that answers has it. Wrong bytes, a failure, or a clock prove
//!   nothing. The row is deleted only if it still points at that blob.
//!
//! Memory is bounded by one pack and by what the check takes.
//!
//! | module | holds |
//! |---|---|
//! | `sources` | the places that may have copies |
//! | `witness` | whether an aggregator knows the blobs of this index |
//! | `again` | storing blocks again, and moving their rows |
//! | `aside` | what is in files that the journal has set aside |

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{json, Value};
use tokio_util::sync::CancellationToken;

use super::check::{self, BlobReport, Event, FindingKind, Handler};
use crate::config::Config;
use crate::datastore::Inspection;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Index, KeyRecord, Usage};
use crate::upload::Carried;
use crate::walrus::Client;

mod again;
mod aside;
mod sources;
mod witness;

use again::Again;
pub use sources::CopyFrom;
use sources::Sources;
use witness::Witness;

/// The name and version of the report's schema. Fields may be added within a version.
pub const SCHEMA: &str = "walrusds.repair/1";

/// How a repair is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The check that finds the losses.
    pub check: check::Options,
    /// Whether anything is changed, and paid for.
    pub apply: bool,
    /// Whether rows of certain losses without copies are dropped.
    pub drop: bool,
    /// Whether running totals that differ from the rows are set right.
    pub totals: bool,
    /// Further places that may have copies, asked in this order after those of this machine.
    pub from: Vec<CopyFrom>,
}

setters! { Options {
    with_check(check: check::Options);
    with_apply(apply: bool);
    with_drop(drop: bool);
    with_totals(totals: bool);
    with_from(from: Vec<CopyFrom>);
} }

/// What becomes of lost blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fate {
    /// A copy was found, and stored again if changes were asked for.
    StoredAgain,
    /// No copy was found and the loss is certain: the row is dropped if that was asked for.
    Dropped,
    /// No copy was found, and the row stays.
    Left,
}

impl Fate {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fate::StoredAgain => "stored_again",
            Fate::Dropped => "dropped",
            Fate::Left => "left",
        }
    }
}

/// What became of the lost blocks of one blob that have the same fate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Action {
    /// The blob.
    pub blob_id: String,
    /// The fate.
    pub fate: Fate,
    /// How many blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first keys, at most [`check::MOST_KEYS`].
    pub keys: Vec<String>,
    /// Where copies were found, or why a row stays.
    pub why: String,
}

impl Action {
    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "action",
            "fate": self.fate.name(),
            "blob": self.blob_id,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "keys": self.keys,
            "why": self.why,
        })
    }
}

/// What happens while a repair runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// From the check.
    Check(Event),
    /// Lost blocks were taken up.
    Action(Action),
    /// Something about a source, for people.
    Source(String),
}

/// The result of a repair.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Repaired {
    /// Whether changes were asked for.
    pub applied: bool,
    /// The result of the check.
    pub check: check::Summary,
    /// Blocks and bytes by what became of them.
    pub fates: BTreeMap<Fate, Usage>,
    /// Packs that were stored, or would be.
    pub packs: u64,
    /// Their price in storage units for one epoch, as Walrus encodes them.
    pub units: u64,
    /// What publishers said they cost (FROST).
    pub cost: u64,
    /// What was added to the running totals, or would be.
    pub totals: Option<Usage>,
}

impl Repaired {
    /// Blocks with a fate.
    pub fn of(&self, fate: Fate) -> Usage {
        self.fates.get(&fate).copied().unwrap_or_default()
    }

    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        let usage = |usage: Usage| json!({"blocks": usage.blocks, "bytes": usage.bytes});
        json!({
            "type": "repair",
            "schema": SCHEMA,
            "applied": self.applied,
            "stored_again": usage(self.of(Fate::StoredAgain)),
            "dropped": usage(self.of(Fate::Dropped)),
            "left": usage(self.of(Fate::Left)),
            "packs": self.packs,
            "units": self.units,
            "cost": self.cost,
            "totals": self.totals.map(usage),
            "check": self.check.to_json(),
        })
    }
}

/// Repairs the index of a configuration; the module's head says what that means. Relative paths are
/// taken from `repo`. `on` is told what happens. With [`Options::apply`] publishers are paid. No
/// table is created or changed. Nodes may work with the index meanwhile. Must be called within a
/// tokio runtime with several threads.
///
/// # Errors
/// As [`Inspection::open`] and [`check::check`]; [`ErrorKind::Config`] for a source that cannot be
/// used. Storing a pack failed ([`ErrorKind::Walrus`]): blocks that were stored until then keep
/// their new places, and another repair goes on from there. [`ErrorKind::TooLarge`]: no publisher
/// takes a lost block, even by itself; all else was done.
pub async fn repair(
    config: Config,
    repo: &Path,
    options: &Options,
    on: &mut (dyn FnMut(Told) + Send),
    stop: &CancellationToken,
) -> Result<Repaired> {
    let opened = match options.apply {
        true => Inspection::open_to_write(config, repo).await?,
        false => Inspection::open(config, repo).await?,
    };
    let repaired = with(&opened, options, on, stop).await;
    let closed = opened.close().await;
    let repaired = repaired?;
    closed.map(|()| repaired)
}

async fn with(
    opened: &Inspection,
    options: &Options,
    on: &mut (dyn FnMut(Told) + Send),
    stop: &CancellationToken,
) -> Result<Repaired> {
    let config = opened.config();
    let (index, store, clock) = opened.parts();
    if let Some(why) = index.only_reads().filter(|_| options.apply) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("nothing can be repaired here, as rows cannot move to what is paid for: {why}"),
        ));
    }
    let sources = Sources::open(config, &options.from)?;
    if let Some(why) = &sources.no_journal {
        on(Told::Source(format!(
            "the journal cannot be read, so no row is dropped: {why}"
        )));
    }
    let each = config.aggregators.iter().map(|aggregator| {
        let only = config.client().with_publishers(Vec::new());
        Client::new(only.with_aggregators(vec![aggregator.clone()]))
    });
    let each: Vec<Witness> = each
        .map(|client| client.map(Witness::new))
        .collect::<Result<_>>()?;
    let mut repair = Repair {
        options,
        index: Arc::clone(&index),
        sources,
        each,
        again: Again::new(opened.uploader()),
        fates: BTreeMap::new(),
        on,
    };
    let parts = check::Parts {
        index: Arc::clone(&index),
        store,
        clock,
        epoch: config.epoch_duration,
    };
    let checked = check::run(&parts, &options.check, &mut repair, stop).await;
    // The check has left blocks behind that wait for their pack to be full.
    let rest = repair.again.finish(options.apply).await;
    let check = checked.map_err(|e| match repair.again.failed {
        true => e.context(
            "some blocks from before that place were not stored, so --resume would leave them out: begin the repair anew",
        ),
        false => e,
    })?;
    rest?;
    let totals = match (check.counted, check.totals) {
        (Some(counted), Some(totals)) if options.totals && counted != totals => {
            Some(counted.minus(totals))
        }
        _ => None,
    };
    if let Some(difference) = totals.filter(|_| options.apply) {
        index.add_usage(difference).await?;
    }
    let sound = aside::proves_all_sound(&options.check, &check);
    let sound = sound && repair.again.too_large.is_none();
    aside::tell(&repair.sources, &*index, sound, repair.on).await?;
    if let Some(e) = repair.again.too_large {
        return Err(e.context("everything else was repaired, but some blocks are left"));
    }
    Ok(Repaired {
        applied: options.apply,
        packs: repair.again.packs,
        units: repair.again.units,
        cost: repair.again.cost,
        fates: repair.fates,
        check,
        totals,
    })
}

struct Repair<'a> {
    options: &'a Options,
    index: Arc<dyn Index>,
    sources: Sources,
    /// A client for each aggregator.
    each: Vec<Witness>,
    again: Again,
    fates: BTreeMap<Fate, Usage>,
    on: &'a mut (dyn FnMut(Told) + Send),
}

#[async_trait]
impl Handler for Repair<'_> {
    async fn blob(&mut self, report: &BlobReport) -> Result<()> {
        if report.lost.is_empty() {
            return Ok(());
        }
        let mut by_source: BTreeMap<&'static str, Vec<&KeyRecord>> = BTreeMap::new();
        let (mut waiting, mut gone, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for lost in &report.lost {
            let row = &lost.row;
            if let Some(copy) = self.sources.find(row).await {
                by_source.entry(copy.source).or_default().push(row);
                let block = Carried {
                    key: row.key.clone(),
                    value: copy.value,
                    from: row.record.blob_id.clone(),
                    // The codec is known from links, which are not looked for. Importers find a
                    // block under any.
                    is_dag_pb: false,
                };
                self.again.add(block, self.options.apply).await?;
            } else if self.sources.in_journal(&row.key) {
                // Its key names no content, so the copy proves nothing.
                waiting.push(row);
            } else if matches!(lost.kind, FindingKind::Missing | FindingKind::Lapsed) {
                gone.push(row);
            } else {
                kept.push(row);
            }
        }
        for (source, rows) in by_source {
            let why = format!("copies in: {source}");
            self.act(report, Fate::StoredAgain, &rows, why);
        }
        self.act(
            report,
            Fate::Left,
            &waiting,
            "the journal holds values under these keys, which name no content: put or delete them"
                .to_owned(),
        );
        self.act(
            report,
            Fate::Left,
            &kept,
            "no copy was found, and the blob is there: rows are dropped only for blobs that are gone"
                .to_owned(),
        );
        if !gone.is_empty() {
            match certain(&self.sources, &*self.index, &mut self.each, report).await? {
                Ok(why) => {
                    if self.options.apply && self.options.drop {
                        drop_rows(&*self.index, &report.blob_id, &gone).await?;
                    }
                    self.act(report, Fate::Dropped, &gone, why);
                }
                Err(why) => self.act(report, Fate::Left, &gone, why),
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        (self.on)(Told::Check(event));
    }
}

impl Repair<'_> {
    /// Counts and tells what becomes of blocks of a blob.
    fn act(&mut self, report: &BlobReport, fate: Fate, rows: &[&KeyRecord], why: String) {
        if rows.is_empty() {
            return;
        }
        let mut sum = Usage::default();
        for row in rows {
            sum = sum.plus(Usage::new(1, row.record.size.max(0)));
        }
        let all = self.fates.entry(fate).or_default();
        *all = all.plus(sum);
        let keys = rows.iter().take(check::MOST_KEYS);
        (self.on)(Told::Action(Action {
            blob_id: report.blob_id.clone(),
            fate,
            blocks: sum.blocks.unsigned_abs(),
            bytes: sum.bytes.unsigned_abs(),
            keys: keys.map(|row| row.key.clone()).collect(),
            why,
        }));
    }
}

/// Why the loss of a blob is certain; or why it is not.
async fn certain(
    sources: &Sources,
    index: &dyn Index,
    each: &mut [Witness],
    report: &BlobReport,
) -> Result<std::result::Result<String, String>> {
    if let Some(why) = sources.trouble() {
        return Ok(Err(format!("no copy was found, but {why}")));
    }
    let mut doubt = None;
    for witness in each.iter_mut() {
        match witness.read(&report.blob_id).await {
            Err(e) if e.kind() == ErrorKind::BlobNotFound => {}
            Err(e) => doubt = Some(e),
            Ok(()) => {
                return Ok(Err(
                    "no copy was found, but an aggregator has the blob".to_owned()
                ))
            }
        }
    }
    if doubt.is_none() && !report.is_over {
        for witness in each {
            if !witness.knows_the_index(index).await? {
                doubt = Some(Error::new(
                    ErrorKind::Walrus,
                    "an aggregator gives no blob of this index at all, so it may belong to another network \
                     (aggregatorURL)",
                ));
            }
        }
    }
    Ok(match doubt {
        None => Ok(
            "no copy was found, and every aggregator says that there is no such blob".to_owned(),
        ),
        Some(_) if report.is_over => {
            Ok("no copy was found, and the epoch with which the blob ended has begun".to_owned())
        }
        Some(e) => Err(format!(
            "no copy was found, but the loss is not certain: {e}"
        )),
    })
}

/// Deletes rows that still point at a blob, and counts that.
async fn drop_rows(index: &dyn Index, blob_id: &str, rows: &[&KeyRecord]) -> Result<()> {
    let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
    let removed = index.delete_from(blob_id, &keys).await?;
    index.add_usage(Usage::default().minus(removed)).await
}
