//! `adopt-staging`: blocks that a Go node has left behind are stored.

use std::time::Duration;

use serde::Serialize;
use walrusds::datastore::Inspection;
use walrusds::{Adopted, Error, ErrorKind, Usage};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{whole, whole_bytes};
use crate::progress::Unit;
use crate::when::span;
use crate::work;

/// Staged blocks that are listed at a time.
const PAGE: usize = 1_000;

/// Stores blocks that a node with the Go plugin has left in the database; without --yes counts them
///
/// For a Go node that was shut down for good. The blocks are uploaded and paid for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Takes what was staged longer ago: longer than any upload of a Go node that still runs
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    older_than: Duration,
    /// Stores them
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize, Clone, Copy)]
struct Sum {
    blocks: i64,
    bytes: i64,
}

impl From<Usage> for Sum {
    fn from(usage: Usage) -> Sum {
        Sum {
            blocks: usage.blocks,
            bytes: usage.bytes,
        }
    }
}

impl Sum {
    fn text(self) -> String {
        format!("{} blocks, {}", whole(self.blocks), whole_bytes(self.bytes))
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether they were stored.
    applied: bool,
    /// Blocks that were left behind, when they were only counted.
    left: Option<Sum>,
    /// Blocks that were stored.
    stored: Option<Sum>,
    /// Blocks that were on Walrus already.
    known: Option<Sum>,
    /// Blocks that do not hash to their keys; they stay.
    wrong: Option<Sum>,
    /// Blocks that no publisher takes, even by themselves; they stay.
    too_large: Option<Sum>,
    /// Blocks that a Go node took meanwhile, or put anew.
    taken: Option<Sum>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let report = match args.yes {
        false => {
            let (_, inspection) = context.inspect().await?;
            let left = count(&inspection, args.older_than);
            let left = context.or_stop("nothing was changed", left).await?;
            inspection.close().await?;
            Report {
                applied: false,
                left: Some(left),
                stored: None,
                known: None,
                wrong: None,
                too_large: None,
                taken: None,
            }
        }
        true => {
            let store = work::open(context).await?;
            let progress = context.progress("storing", Unit::Things("blocks"));
            let work = async {
                tokio::select! {
                    done = store.adopt_staged(args.older_than) => done,
                    () = context.stop.cancelled() => Err(Error::new(ErrorKind::Canceled, "stopped")),
                }
            };
            let done = || {
                let metrics = store.metrics();
                let adopted = metrics.iter().find(|(name, _)| *name == "blocks_adopted");
                adopted.map(|(_, n)| *n)
            };
            let resume = "what was stored stays so; run the same command again for the rest";
            let adopted = work::attend(context, &store, progress, resume, done, work).await?;
            done_report(adopted)
        }
    };
    context.print(&report, || text(&report))?;
    let left = [report.wrong, report.too_large];
    let left = left.into_iter().flatten().any(|left| left.blocks > 0);
    Ok(Exit::findings(left))
}

fn done_report(adopted: Adopted) -> Report {
    Report {
        applied: true,
        left: None,
        stored: Some(adopted.stored.into()),
        known: Some(adopted.known.into()),
        wrong: Some(adopted.wrong.into()),
        too_large: Some(adopted.too_large.into()),
        taken: Some(adopted.taken.into()),
    }
}

async fn count(inspection: &Inspection, age: Duration) -> walrusds::Result<Sum> {
    let Some(staging) = inspection.index().staging() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "only an index in Postgres can hold blocks that Go nodes have staged; this one is in SQLite",
        ));
    };
    let mut sum = Sum {
        blocks: 0,
        bytes: 0,
    };
    let mut last = None;
    loop {
        let page = staging.left_behind(age, last.as_ref(), PAGE).await?;
        for left in &page {
            sum.blocks += 1;
            let size = i64::try_from(left.size).unwrap_or(i64::MAX);
            sum.bytes = sum.bytes.saturating_add(size);
        }
        if page.len() < PAGE {
            return Ok(sum);
        }
        last = page.into_iter().next_back();
    }
}

fn text(report: &Report) -> String {
    if let Some(left) = report.left {
        return match left.blocks {
            0 => "No Go node has left blocks behind.\n".to_owned(),
            _ => format!(
                "left behind: {}\nNothing was done. The same command with --yes stores them.\n",
                left.text()
            ),
        };
    }
    let mut text = String::new();
    for (name, sum) in [
        ("stored", report.stored),
        ("known already", report.known),
        ("taken by a Go node", report.taken),
        ("wrong bytes, left where they are", report.wrong),
        ("too large, left where they are", report.too_large),
    ] {
        let sum = sum.filter(|sum| sum.blocks > 0 || name == "stored");
        if let Some(sum) = sum {
            text.push_str(&format!("{name}: {}\n", sum.text()));
        }
    }
    text
}
