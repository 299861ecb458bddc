//! `status`: the state of the datastore.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use walrusds::admin::{self, Ending, NodeSeen, Severity, Status};
use walrusds::datastore::Inspection;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::node::{self, Node};
use crate::output::{
    bytes, count, frost, pairs, relative, span, things, whole, whole_bytes, wrapped, Side, Table,
};
use crate::source::Source;

/// The rows of the histogram.
const ROWS: usize = 16;

/// Shows the state: blocks, blobs, waste, prices, what ends when
///
/// Reads the index, which takes the same time for any number of blocks, and the figures of a
/// running node, if there is one. Exit code 3: something needs your attention.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shows it again and again, every 2 seconds or as told, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Where the configuration was found.
    config: String,
    #[serde(flatten)]
    status: Status,
    /// The running node.
    node: Option<Node>,
    /// Why nothing is known of a node.
    no_node: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (source, inspection) = context.inspect().await?;
    let Some(seconds) = args.watch else {
        let report = look(context, &source, &inspection).await?;
        context.print(&report, || text(&report))?;
        inspection.close().await?;
        return Ok(exit(&report));
    };
    let terminal = std::io::stdout().is_terminal() && !context.global.json;
    loop {
        let report = look(context, &source, &inspection).await;
        let report = match report {
            Err(Failure::Interrupted(_)) => break,
            report => report?,
        };
        if terminal {
            // Clears the terminal, and begins at its top.
            let _ = write!(std::io::stdout(), "\x1b[2J\x1b[H");
        }
        context.print(&report, || text(&report))?;
        tokio::select! {
            () = context.stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
    }
    inspection.close().await?;
    Ok(Exit::Fine)
}

/// The state in ten lines, and what to do next.
pub async fn brief(context: &Context) -> Result<Exit, Failure> {
    let (source, inspection) = context.inspect().await?;
    let report = look(context, &source, &inspection).await?;
    context.print(&report, || {
        let mut text = lines(&report);
        text.push_str(&next(&report));
        text
    })?;
    inspection.close().await?;
    Ok(exit(&report))
}

async fn look(
    context: &Context,
    source: &Source,
    inspection: &Inspection,
) -> Result<Report, Failure> {
    let looked = async {
        let status = admin::status(inspection).await?;
        let node = node::find(&source.repo).await;
        Ok::<_, Failure>((status, node))
    };
    let (status, node) = context.or_stop("nothing was changed", looked).await?;
    context.notes(inspection);
    Ok(Report {
        config: source.found.clone(),
        no_node: node.as_ref().err().cloned(),
        node: node.ok(),
        status,
    })
}

fn exit(report: &Report) -> Exit {
    let serious = |severity| severity >= Severity::Warning;
    let mut findings = report.status.findings.iter();
    Exit::findings(findings.any(|finding| serious(finding.severity)))
}

/// Ten lines.
fn lines(report: &Report) -> String {
    let (status, now) = (&report.status, report.status.at);
    let ledger = &status.ledger;
    let age = |at: Option<SystemTime>| at.map_or("never".to_owned(), |at| relative(at, now));
    let blobs = match ledger.blobs {
        0 => "no blob yet".to_owned(),
        n if n == ledger.uncounted => things(n, "blob", "blobs"),
        n => format!(
            "{}, {:.0} blocks each",
            things(n, "blob", "blobs"),
            ledger.blocks_per_blob
        ),
    };
    let waste = match (ledger.waste_percent, ledger.uncounted) {
        (None, _) => "not counted yet: nodes count now and then".to_owned(),
        (Some(percent), uncounted) => {
            let missing = match uncounted {
                0 => String::new(),
                n => format!(", {} not counted yet", things(n, "blob", "blobs")),
            };
            let sum = bytes(ledger.waste_bytes);
            format!(
                "{percent:.1} % ({sum}), counted {}{missing}",
                age(ledger.counted_at)
            )
        }
    };
    let by = match status.price.known {
        true => "",
        false => " at sample prices",
    };
    let length = match status.epoch_seconds {
        0 => "of unknown length".to_owned(),
        seconds => format!("of {}", span(Duration::from_secs(seconds))),
    };
    let epoch = match (status.epoch, status.epoch_at_most) {
        (Some(least), Some(most)) if most == least => format!("{least}, {length}"),
        (Some(least), Some(most)) if most < u64::MAX => {
            format!("{least} or up to {most}, {length}")
        }
        (Some(least), _) => format!("{least} or later, {length}"),
        (None, _) => format!("not known, {length}"),
    };
    let renewal = &status.renewal;
    let renewed = match renewal.configured {
        true => format!(
            "every {}, {} at a time; last round {}",
            span(Duration::from_secs(renewal.interval_seconds)),
            things(renewal.epochs.into(), "epoch", "epochs"),
            age(renewal.last_round)
        ),
        false => format!(
            "not by this configuration; last round {}",
            age(renewal.last_round)
        ),
    };
    let due: u64 = status.forecast.iter().map(|due| due.frost).sum();
    let due = match status.forecast.len() {
        0 => "not known while the epoch is not".to_owned(),
        n => format!("{} in the next {n} epochs{by}", frost(due)),
    };
    let files = |files: &Option<admin::Files>| match files {
        None => "not configured".to_owned(),
        Some(files) if files.segments == 0 => "empty".to_owned(),
        Some(files) => {
            let sum = bytes(files.disk_bytes);
            let files_named = things(files.segments, "file", "files");
            format!(
                "{files_named}, {sum}, the oldest made {}",
                age(files.oldest)
            )
        }
    };
    let mut node = match (&report.node, &report.no_node) {
        (Some(node), _) => format!("running, API {}", node.api),
        (None, why) => why.clone().unwrap_or_default(),
    };
    match status.nodes.iter().filter(|node| node.is_here(now)).count() {
        0 => {}
        n => node.push_str(&format!(
            "; {} seen in the last half hour",
            things(n as u64, "node", "nodes")
        )),
    }
    pairs(&[
        (
            "walrusds",
            format!(
                "{} ({}, table {})",
                report.config, status.index, status.table
            ),
        ),
        (
            "blocks",
            format!(
                "{}, {}, in {blobs}",
                whole(status.blocks),
                whole_bytes(status.bytes)
            ),
        ),
        ("waste", waste),
        (
            "cost",
            format!(
                "{} units, {} per epoch{by}; {} paid so far",
                count(ledger.units),
                frost(status.price.frost_per_epoch),
                frost(ledger.paid_frost)
            ),
        ),
        ("epoch", epoch),
        ("first end", first_end(&status.horizon, now)),
        ("renewal", renewed),
        ("due", due),
        ("journal", files(&status.journal)),
        ("node", node),
    ])
}

fn first_end(horizon: &[Ending], now: SystemTime) -> String {
    let known = horizon.iter().filter(|ending| ending.end_epoch > 0);
    match known.min_by_key(|ending| ending.end_epoch) {
        None => "nothing ends".to_owned(),
        Some(first) => {
            let blobs = things(first.blobs, "blob ends", "blobs end");
            let when = first
                .at
                .map_or(String::new(), |at| format!(", {}", relative(at, now)));
            format!("{blobs} with epoch {}{when}", first.end_epoch)
        }
    }
}

/// The findings and the next command.
fn next(report: &Report) -> String {
    let findings = &report.status.findings;
    let mut text = String::from("\n");
    for finding in findings {
        let severity = finding.severity.as_str();
        text.push_str(&wrapped(&format!("{severity}: {}", finding.what), 2));
        text.push_str(&wrapped(&format!("  do: {}", finding.cure), 6));
    }
    if findings
        .iter()
        .all(|finding| finding.severity < Severity::Warning)
    {
        text.push_str("Nothing needs your attention.\n");
    }
    text.push_str("next: walrusds status (more), walrusds plan (renewals), walrusds --help\n");
    text
}

fn text(report: &Report) -> String {
    let status = &report.status;
    let mut text = lines(report);
    if !status.horizon.is_empty() {
        text.push_str("\nWhat ends when\n");
        text.push_str(&histogram(&status.horizon, status.at));
    }
    if status.forecast.iter().any(|due| due.blobs > 0) {
        text.push_str("\nWhat is due, if nothing changes\n");
        let mut table = Table::new(&[
            ("epoch", Side::Right),
            ("blobs", Side::Right),
            ("units", Side::Right),
            ("price", Side::Right),
        ]);
        for due in &status.forecast {
            let or_none = |n: u64, shown: String| match n {
                0 => "-".to_owned(),
                _ => shown,
            };
            table.row([
                due.epoch.to_string(),
                or_none(due.blobs, count(due.blobs)),
                or_none(due.units, count(due.units)),
                or_none(due.frost, frost(due.frost)),
            ]);
        }
        text.push_str(&table.text());
        if !status.price.known {
            text.push_str("(prices of Walrus' documentation: walrusCommand is not configured)\n");
        }
    }
    if !status.nodes.is_empty() {
        text.push_str("\nNodes of this index\n");
        text.push_str(&nodes(&status.nodes, status.at));
    }
    if let Some(cache) = &status.cache {
        let sum = bytes(cache.disk_bytes);
        text.push_str(&format!(
            "\ndisk cache: {}, {sum}\n",
            things(cache.segments, "file", "files")
        ));
    }
    if let Some(node) = report.node.as_ref().filter(|node| !node.metrics.is_empty()) {
        text.push_str("\nThe running node\n");
        let mut table = Table::new(&[("metric", Side::Left), ("value", Side::Right)]);
        for (name, value) in &node.metrics {
            table.row([name.clone(), value.to_string()]);
        }
        text.push_str(&table.text());
    }
    text.push_str(&next(report));
    text
}

/// Nodes that are shown.
const NODES: usize = 20;

/// The nodes that were seen last.
fn nodes(nodes: &[NodeSeen], now: SystemTime) -> String {
    let mut table = Table::new(&[
        ("node", Side::Left),
        ("host", Side::Left),
        ("version", Side::Left),
        ("seen", Side::Left),
        ("in its journal", Side::Right),
    ]);
    for node in nodes.iter().take(NODES) {
        let closed = if node.closed { ", closed" } else { "" };
        table.row([
            node.node.chars().take(8).collect(),
            node.host.clone(),
            node.version.clone(),
            format!("{}{closed}", relative(node.seen_at.min(now), now)),
            journal_of(node),
        ]);
    }
    let mut text = table.text();
    if nodes.len() > NODES {
        let more = nodes.len() - NODES;
        text.push_str(&format!("and {more} more (--json names them)\n"));
    }
    text
}

fn journal_of(node: &NodeSeen) -> String {
    match &node.journal {
        None => "no journal".to_owned(),
        Some(journal) if journal.blocks == 0 => "nothing".to_owned(),
        Some(journal) => format!(
            "{}, {}",
            things(journal.blocks, "block", "blocks"),
            bytes(journal.bytes)
        ),
    }
}

/// A node in a line.
pub(super) fn node_line(node: &NodeSeen) -> String {
    let seen = relative(node.seen_at, SystemTime::now());
    let host = match node.host.as_str() {
        "" => String::new(),
        host => format!(" on {host}"),
    };
    let journal = journal_of(node);
    format!(
        "node {}{host}, seen {seen}; in its journal: {journal}",
        node.node
    )
}

/// A bar for each end epoch, the first ones; those after them in one bar.
fn histogram(horizon: &[Ending], now: SystemTime) -> String {
    let mut rows: Vec<Ending> = horizon.iter().take(ROWS).cloned().collect();
    for later in horizon.iter().skip(ROWS) {
        if let Some(last) = rows.last_mut() {
            last.blobs = last.blobs.saturating_add(later.blobs);
            last.bytes = last.bytes.saturating_add(later.bytes);
            last.units = last.units.saturating_add(later.units);
        }
    }
    let most = rows
        .iter()
        .map(|row| row.units.max(row.blobs))
        .max()
        .unwrap_or(0)
        .max(1);
    let mut table = Table::new(&[
        ("epoch", Side::Right),
        ("when", Side::Left),
        ("blobs", Side::Right),
        ("bytes", Side::Right),
        ("units", Side::Right),
        ("", Side::Left),
    ]);
    let merged = horizon.len() > ROWS;
    for (i, row) in rows.iter().enumerate() {
        const WIDTH: u128 = 20;
        let later = if merged && i + 1 == ROWS { "+" } else { "" };
        let epoch = match row.end_epoch {
            0 => "unknown".to_owned(),
            epoch => format!("{epoch}{later}"),
        };
        let share = u128::from(row.units.max(row.blobs)) * WIDTH;
        let bar = usize::try_from(share.div_ceil(u128::from(most))).unwrap_or(0);
        table.row([
            epoch,
            row.at.map_or("-".to_owned(), |at| relative(at, now)),
            count(row.blobs),
            bytes(row.bytes),
            count(row.units),
            "#".repeat(bar),
        ]);
    }
    table.text()
}
