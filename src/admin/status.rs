//! The state of a datastore, from the index alone: its blocks and blobs, their price, and the
//! epochs with which they end.
//!
//! It is read from totals and from the ledger, so it costs the same for any number of blocks. Sums
//! over live blocks are as old as the last count of a node, which is told with them.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::finding::{Finding, Severity};
use super::forecast::{forecast, Due, Ending};
use super::inspect::per_epoch;
use super::local::Files;
use super::nodes::{self, NodeSeen};
use super::time;
use crate::config::IndexConfig;
use crate::datastore::Inspection;
use crate::error::Result;
use crate::index::ledger::number;
use crate::index::EndingIn;
use crate::plan::Terms;
use crate::rebuild::{rebuild_state, RebuildState};
use crate::walrus::cost;

/// The epochs of a forecast.
const FORECAST: u32 = 10;
/// The most epochs that networks sell.
const MOST_EPOCHS: u32 = 53;
/// A Go node stages a block for minutes; a block that waits for longer was left behind.
const STAGED_FOR: Duration = Duration::from_secs(3600);

/// The state of a datastore.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// When it was read.
    #[serde(serialize_with = "time::serialize")]
    pub at: SystemTime,
    /// `postgres` or `sqlite`.
    pub index: &'static str,
    /// The table of the index.
    pub table: String,
    /// The present epoch, the least that it can be; `None` if it is not known.
    pub epoch: Option<u64>,
    /// The most that it can be.
    pub epoch_at_most: Option<u64>,
    /// The length of an epoch (seconds); 0: not configured.
    pub epoch_seconds: u64,
    /// Blocks in the index, by its running total.
    pub blocks: i64,
    /// Their bytes.
    pub bytes: i64,
    /// The sums over live blobs.
    pub ledger: LedgerSums,
    /// Live blobs by the epochs in which they end.
    pub horizon: Vec<Ending>,
    /// What keeping them costs.
    pub price: Price,
    /// What is due in the next ten epochs; empty while the epoch is not known.
    pub forecast: Vec<Due>,
    /// How blobs are renewed.
    pub renewal: RenewalState,
    /// The write journal of this configuration.
    pub journal: Option<Files>,
    /// The disk cache of this configuration.
    pub cache: Option<Files>,
    /// Whether Go nodes have left staged blocks behind.
    pub staged_left: bool,
    /// The nodes of this index, the one that was seen last first.
    pub nodes: Vec<NodeSeen>,
    /// What an operator should act on, the worst first.
    pub findings: Vec<Finding>,
}

/// Sums over live blobs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct LedgerSums {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes, as far as they are known.
    pub bytes: u64,
    /// Units that they occupy (about).
    pub units: u64,
    /// All that was paid for them (FROST).
    pub paid_frost: u64,
    /// Live blocks at the last counts.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Bytes of blobs that belong to no live block, at the last counts. Quilts are left out: blocks
    /// do not fill their columns.
    pub waste_bytes: u64,
    /// The part of the counted blobs, without quilts, that is waste; `None` if none was counted.
    pub waste_percent: Option<f64>,
    /// Blobs that were never counted.
    pub uncounted: u64,
    /// The oldest of the counts.
    #[serde(serialize_with = "time::option::serialize")]
    pub counted_at: Option<SystemTime>,
    /// Live blocks for each blob whose blocks were counted; 0 if none was.
    pub blocks_per_blob: f64,
}

/// What keeping all live blobs costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Price {
    /// FROST per unit and epoch.
    pub storage_frost: u64,
    /// FROST per unit written.
    pub write_frost: u64,
    /// Whether the chain told them; else they are those of Walrus' documentation.
    pub known: bool,
    /// FROST per epoch.
    pub frost_per_epoch: u64,
}

/// How blobs are renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RenewalState {
    /// Whether nodes of this configuration renew.
    pub configured: bool,
    /// The time between two rounds (seconds).
    pub interval_seconds: u64,
    /// Blobs that end within this time are renewed (seconds).
    pub lead_seconds: u64,
    /// Epochs that are bought.
    pub epochs: u32,
    /// When any node ended the last round.
    #[serde(serialize_with = "time::option::serialize")]
    pub last_round: Option<SystemTime>,
}

/// Reads the state.
///
/// # Errors
/// [`ErrorKind::Index`](crate::ErrorKind::Index).
pub async fn status(inspection: &Inspection) -> Result<Status> {
    let (index, config) = (inspection.index(), inspection.config());
    let usage = index.usage().await?;
    let epoch = inspection.epoch().await?;
    let horizon = index.horizon().await?;
    let (prices, known) = inspection.prices().await;
    let last_round = inspection.last_round().await?;
    let rebuild = rebuild_state(index).await?;
    let staged_left = match index.staging() {
        Some(staging) => !staging.left_behind(STAGED_FOR, None, 1).await?.is_empty(),
        None => false,
    };
    let nodes = nodes::nodes(inspection).await?;
    let ledger = sums(&horizon, config.n_shards);
    let endings: Vec<Ending> = horizon
        .iter()
        .map(|ending| Ending {
            at: match number(ending.end_epoch) {
                0 => None,
                end => inspection.ends_at(end),
            },
            ..of(ending, config.n_shards)
        })
        .collect();
    let last_due = inspection.last_due();
    let terms = epoch.zip(last_due).map(|((least, _), last)| Terms {
        epoch: least,
        lead_epochs: last.saturating_sub(least),
        epochs: config.epochs,
        max_epochs: MOST_EPOCHS,
        prices,
        n_shards: u16::try_from(config.n_shards).unwrap_or(u16::MAX),
        chain: config.walrus_command.is_some(),
        reuse: config.reuse_storage.then_some(u64::MAX),
        max_waste_percent: config.max_waste_percent,
        pack_target_bytes: config.pack_target_size_bytes,
        block_overhead_bytes: 0,
        budget_bytes: None,
    });
    let price = Price {
        storage_frost: prices.storage,
        write_frost: prices.write,
        known,
        frost_per_epoch: per_epoch(ledger.units, prices),
    };
    let mut status = Status {
        at: SystemTime::now(),
        index: match &config.index {
            IndexConfig::Postgres(_) => "postgres",
            IndexConfig::Sqlite(_) => "sqlite",
        },
        table: config.table.clone(),
        epoch: epoch.map(|(least, _)| least),
        epoch_at_most: epoch.map(|(_, most)| most),
        epoch_seconds: config.epoch_duration.as_secs(),
        blocks: usage.blocks,
        bytes: usage.bytes,
        forecast: terms.map_or_else(Vec::new, |terms| forecast(&endings, &terms, FORECAST)),
        ledger,
        horizon: endings,
        price,
        renewal: RenewalState {
            configured: !config.renew_interval.is_zero() && !config.disable_flush,
            interval_seconds: config.renew_interval.as_secs(),
            lead_seconds: config.renew_lead.as_secs(),
            epochs: config.epochs,
            last_round,
        },
        journal: config.journal.as_ref().map(|j| Files::of_journal(&j.path)),
        cache: config.disk_cache.as_ref().map(|c| Files::of_cache(&c.path)),
        staged_left,
        nodes,
        findings: Vec::new(),
    };
    let mut findings = find(&status, config.max_waste_percent);
    findings.extend(nodes::findings(&status.nodes, status.at));
    if let RebuildState::Partial(report) = rebuild {
        let (severity, cure) = match report.may_go_on() {
            true => (
                Severity::Warning,
                "run walrusds rebuild-index with the same list again",
            ),
            // The others are lost, or not of walrusds. That is told once, and known.
            false => (
                Severity::Note,
                "another run adds nothing; put the blocks of lost blobs again (walrusds import, ipfs add)",
            ),
        };
        findings.push(Finding::new(
            "rebuild-partial",
            severity,
            format!(
                "the index was rebuilt of {} of {} blobs: rows may be missing",
                report.rebuilt, report.blobs
            ),
            cure,
        ));
    }
    if let Some(journal) = &config.journal {
        findings.extend(journal_finding(&status, journal.max_age));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    status.findings = findings;
    Ok(status)
}

/// A bucket of the horizon, with its units by the length of its mean blob.
fn of(ending: &EndingIn, n_shards: u32) -> Ending {
    let n_shards = u16::try_from(n_shards).unwrap_or(u16::MAX);
    let blobs = number(ending.blobs);
    let each = |sum: i64| number(sum) / blobs.max(1);
    let (bytes, encoded) = (each(ending.bytes), each(ending.encoded_bytes));
    let units = cost::units_of_known(bytes, encoded, n_shards);
    Ending {
        end_epoch: number(ending.end_epoch),
        at: None,
        blobs,
        bytes: number(ending.bytes),
        units: units.saturating_mul(blobs),
        live_blocks: number(ending.live.blocks),
        live_bytes: number(ending.live.bytes),
        uncounted: number(ending.uncounted),
    }
}

fn sums(horizon: &[EndingIn], n_shards: u32) -> LedgerSums {
    let mut sums = LedgerSums::default();
    let mut judged = 0_u64;
    for ending in horizon {
        let one = of(ending, n_shards);
        sums.blobs = sums.blobs.saturating_add(one.blobs);
        sums.bytes = sums.bytes.saturating_add(one.bytes);
        sums.units = sums.units.saturating_add(one.units);
        sums.paid_frost = sums.paid_frost.saturating_add(number(ending.cost));
        sums.live_blocks = sums.live_blocks.saturating_add(one.live_blocks);
        sums.live_bytes = sums.live_bytes.saturating_add(one.live_bytes);
        sums.uncounted = sums.uncounted.saturating_add(one.uncounted);
        judged = judged.saturating_add(number(ending.judged_bytes));
        sums.waste_bytes = sums.waste_bytes.saturating_add(number(ending.waste_bytes));
        sums.counted_at = match (sums.counted_at, ending.counted_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    if judged > 0 {
        sums.waste_percent = Some(sums.waste_bytes as f64 * 100.0 / judged as f64);
    }
    let counted_blobs = sums.blobs.saturating_sub(sums.uncounted);
    if counted_blobs > 0 {
        sums.blocks_per_blob = sums.live_blocks as f64 / counted_blobs as f64;
    }
    sums
}

/// What an operator should act on.
fn find(status: &Status, max_waste_percent: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |id, severity, what: String, cure: &str| {
        findings.push(Finding::new(id, severity, what, cure));
    };
    let renewal = &status.renewal;
    if status.epoch_seconds == 0 {
        add(
            "no-network",
            Severity::Warning,
            "the length of an epoch is not configured, so nothing is renewed and no end is estimated".to_owned(),
            "add \"network\": \"mainnet\" (or \"testnet\") and \"renewIntervalSeconds\": 3600 to the entry of walrusds in Datastore.Spec",
        );
    }
    let count = |test: &dyn Fn(&Ending) -> bool| {
        let endings = status.horizon.iter().filter(|ending| test(ending));
        endings.map(|ending| ending.blobs).sum::<u64>()
    };
    if let Some(epoch) = status.epoch {
        let lost = count(&|e| e.end_epoch > 0 && e.end_epoch <= epoch);
        if lost > 0 {
            add(
                "ended",
                Severity::Error,
                format!("the storage of {} has ended: their blocks cannot be read any more, unless they were renewed elsewhere", blobs(lost)),
                "walrusds check names the blocks; walrusds repair stores again what a journal, a cache or another repo still has",
            );
        }
        // A node spreads its renewals over the lead. What has failed until the last quarter is done
        // by all means.
        let least = Duration::from_secs(renewal.lead_seconds / 5);
        let soon = status.at.checked_add(least);
        let late = count(&|e| {
            e.end_epoch > epoch && matches!((e.at, soon), (Some(at), Some(soon)) if at <= soon)
        });
        let stale = is_stale(renewal, status.at);
        match (late, stale) {
            (0, _) => {}
            (n, true) => add(
                "lapsing",
                Severity::Error,
                format!("{} about to end, and no node has renewed any of late", are(n)),
                "start a node with renewIntervalSeconds, or run walrusds plan and then walrusds renew --yes",
            ),
            (n, false) => add(
                "renewal-late",
                Severity::Error,
                format!("{} within a fifth of the lead (renewLeadSeconds): their renewal fails", are(n)),
                "look for \"could not be renewed\" in the log of the node that renews; walrusds renew --yes tries now",
            ),
        }
    } else if status.epoch_seconds > 0 && status.ledger.blobs > 0 {
        add(
            "no-epoch",
            Severity::Note,
            "the present epoch is not known: no node has noted one, and walrusCommand does not tell it".to_owned(),
            "a node that renews notes it in its first round after a store; walrusCommand (docs/operations.md) tells it at once",
        );
    }
    let unknown = count(&|e| e.end_epoch == 0);
    if unknown > 0 {
        add(
            "no-end",
            Severity::Warning,
            format!(
                "the end of {} is not known, so they are not renewed",
                blobs(unknown)
            ),
            "rebuild-index with a list that names their ends (walrus list-blobs --json) adds them",
        );
    }
    if status
        .ledger
        .waste_percent
        .is_some_and(|p| p >= f64::from(max_waste_percent))
    {
        add(
            "waste",
            Severity::Warning,
            format!(
                "{:.0} % of what is paid for are deleted blocks",
                status.ledger.waste_percent.unwrap_or_default()
            ),
            "walrusds repack shows what it costs to carry the rest over into full packs",
        );
    }
    if status.staged_left {
        add(
            "staged",
            Severity::Warning,
            "blocks that a node with the Go plugin staged were left behind, and are not on Walrus"
                .to_owned(),
            "walrusds adopt-staging --yes stores them",
        );
    }
    findings
}

fn blobs(n: u64) -> String {
    match n {
        1 => "1 blob".to_owned(),
        n => format!("{n} blobs"),
    }
}

fn are(n: u64) -> String {
    format!("{} {}", blobs(n), if n == 1 { "is" } else { "are" })
}

/// Whether no node has made a round for so long that none can be at work.
fn is_stale(renewal: &RenewalState, now: SystemTime) -> bool {
    let patience = Duration::from_secs(renewal.interval_seconds.saturating_mul(3).max(3600));
    let since = renewal.last_round.map(|last| now.duration_since(last));
    // A round in the future was noted under another clock.
    since.is_none_or(|since| since.is_ok_and(|since| since > patience))
}

fn journal_finding(status: &Status, max_age: Duration) -> Option<Finding> {
    let oldest = status.journal.as_ref()?.oldest?;
    let age = status.at.duration_since(oldest).ok()?;
    (age > max_age.saturating_mul(10).max(Duration::from_secs(3600))).then(|| {
        Finding::new(
            "journal-old",
            Severity::Warning,
            format!(
                "the oldest file of the write journal is {} h old: blocks may wait for an upload for that long",
                age.as_secs() / 3600
            ),
            "if the node runs, its log says why uploads fail; if it is shut down, start it until the journal is empty",
        )
    })
}

#[cfg(test)]
mod tests;
