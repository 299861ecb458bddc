//! `repack`: the live blocks of sparse blobs are carried over into full packs.

use serde::Serialize;
use walrusds::{Round, Sparse};

use super::renew::outcome;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, frost, percent, things, Side, Table};
use crate::progress::Unit;
use crate::work;

/// Blobs that are shown.
const SHOWN: usize = 20;

/// Moves live blocks out of wasteful blobs into full packs; without --yes only shows the price
///
/// Renewal does so by itself when it is cheapest, which is when a blob is due. By hand it pays if
/// the storage that is left is not worth waiting for. The old blobs are left to end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Takes blobs of which so many percent are deleted blocks (default: maxWastePercent)
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=99))]
    waste: Option<u32>,
    /// Carries it out and pays for it
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether it was carried out.
    applied: bool,
    /// The least waste of a blob that is taken (percent).
    waste_percent: u32,
    sparse: Sparse,
    /// What was done.
    done: Option<Round>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (_, inspection) = context.inspect().await?;
    let waste = args.waste.unwrap_or(inspection.config().max_waste_percent);
    let sparse = inspection.sparse(waste);
    let sparse = context.or_stop("nothing was changed", sparse).await?;
    context.notes(&inspection);
    inspection.close().await?;
    let mut report = Report {
        applied: false,
        waste_percent: waste,
        sparse,
        done: None,
    };
    if !args.yes || report.sparse.blobs.is_empty() {
        context.print(&report, || text(&report))?;
        return Ok(Exit::Fine);
    }
    let store = work::open(context).await?;
    let mut progress = context.progress("repacking", Unit::Things("blobs"));
    progress.total(report.sparse.blobs.len() as u64);
    let done = || {
        let round = store.round();
        Some(round.repacked + round.failed)
    };
    let resume = "what was repacked stays so; run walrusds repack --yes again for the rest";
    let round = store.repack_once(&report.sparse, context.stop.clone().cancelled_owned());
    let round = work::attend(context, &store, progress, resume, done, round).await?;
    (report.applied, report.done) = (true, Some(round));
    context.print(&report, || outcome(&round))?;
    Ok(Exit::findings(round.failed > 0))
}

fn text(report: &Report) -> String {
    let sparse = &report.sparse;
    if sparse.blobs.is_empty() {
        return format!("No blob wastes {} % or more.\n", report.waste_percent);
    }
    let mut table = Table::new(&[
        ("blob", Side::Left),
        ("end", Side::Right),
        ("bytes", Side::Right),
        ("live", Side::Right),
        ("waste", Side::Right),
    ]);
    for blob in sparse.blobs.iter().take(SHOWN) {
        table.row([
            blob.blob_id.clone(),
            blob.end_epoch.to_string(),
            bytes(blob.bytes),
            bytes(blob.live_bytes),
            percent(blob.bytes.saturating_sub(blob.live_bytes), blob.bytes),
        ]);
    }
    let mut text = table.text();
    if sparse.blobs.len() > SHOWN {
        let more = count((sparse.blobs.len() - SHOWN) as u64);
        text.push_str(&format!("and {more} more, which the sums hold\n"));
    }
    let by = if sparse.prices_known {
        ""
    } else {
        " at sample prices"
    };
    text.push_str(&format!(
        "\n{} of {}, {} of live blocks: {} units become {}.\nThe new packs cost {} for {}{by}.\n\
         Nothing was done. walrusds repack --yes carries it out.\n",
        things(sparse.blobs.len() as u64, "blob", "blobs"),
        bytes(sparse.bytes),
        bytes(sparse.live_bytes),
        count(sparse.units_now),
        count(sparse.units_after),
        frost(sparse.frost),
        things(sparse.epochs.into(), "epoch", "epochs"),
    ));
    text
}
