//! `rebuild-index`: an index that was lost is filled again from the blobs.

use std::fs::File;
use std::io::stdin;
use std::path::{Path, PathBuf};

use serde::Serialize;
use walrusds::datastore::Inspection;
use walrusds::rebuild::{rebuild_state, List, RebuildState, Report as Rebuilt};
use walrusds::{rebuild_index, RebuildFrom};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{count, things, whole};
use crate::progress::Unit;

/// Blobs that were left out and are shown.
const SHOWN: usize = 20;

/// Fills a lost index again from the blobs; without --yes only looks at the list
///
/// The blobs come from a list (a ledger's backup, `walrus list-blobs --json`, or one ID on each
/// line), or from the wallet behind walrusCommand. Missing tables are made, missing rows are added,
/// nothing is replaced. An interrupted run is carried on by the same command.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("blobs").required(true).args(["list", "wallet"])))]
pub struct Args {
    /// The file with the list; - reads standard input
    #[arg(value_name = "LIST")]
    list: Option<PathBuf>,
    /// Takes all blobs of the wallet behind walrusCommand
    #[arg(long)]
    wallet: bool,
    /// Fills the index
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether the index was filled.
    applied: bool,
    /// Blobs of the list; `None` for a wallet that was not asked yet.
    blobs: Option<usize>,
    /// What the index says of a rebuild: `absent`, `partial` (another run may add something),
    /// `incomplete` (blobs were left out for good) or `complete`; `None` if there is no index yet.
    state: Option<&'static str>,
    /// What was done, earlier runs of the same list included.
    done: Option<Rebuilt>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let source = context.source()?;
    let list = args.list.as_deref().map(read).transpose()?;
    let mut report = Report {
        applied: false,
        blobs: list.as_ref().map(|list| list.blobs().len()),
        state: None,
        done: None,
    };
    if !args.yes {
        let found = Inspection::find(source.config, &source.repo);
        if let Some(inspection) = context.or_stop("nothing was changed", found).await? {
            report.state = Some(match rebuild_state(inspection.index()).await? {
                RebuildState::Absent => "absent",
                RebuildState::Partial(report) if report.may_go_on() => "partial",
                RebuildState::Partial(_) => "incomplete",
                RebuildState::Complete(_) => "complete",
            });
            inspection.close().await?;
        }
        context.print(&report, || looked(&report))?;
        return Ok(Exit::Fine);
    }
    let from = list.map_or(RebuildFrom::Wallet, RebuildFrom::List);
    let mut progress = context.progress("rebuilding", Unit::Things("blobs"));
    let mut first = true;
    let mut tell = |report: &Rebuilt| {
        progress.total(report.blobs);
        match std::mem::take(&mut first) {
            true => progress.resumed(report.done),
            false => progress.at(report.done),
        }
    };
    let resume = "what was added stays; the same command carries on, within five minutes or later";
    let work = rebuild_index(source.config, &source.repo, from, &mut tell);
    let done = context.or_stop(resume, work).await?;
    drop(progress);
    (report.applied, report.blobs) = (true, usize::try_from(done.blobs).ok());
    report.state = Some(if done.is_complete() {
        "complete"
    } else {
        "partial"
    });
    report.done = Some(done);
    context.print(&report, || text(&report))?;
    Ok(Exit::findings(report.state == Some("partial")))
}

fn read(path: &Path) -> Result<List, Failure> {
    if path == Path::new("-") {
        return Ok(List::read(stdin().lock())?);
    }
    let file = File::open(path).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
    List::read(file).map_err(|e| e.context(path.display()).into())
}

fn looked(report: &Report) -> String {
    let blobs = match report.blobs {
        Some(n) => format!("The list has {}.", things(n as u64, "blob", "blobs")),
        None => "The wallet is asked when the work begins.".to_owned(),
    };
    let state = match report.state {
        None => "There is no index of this configuration yet; it will be made.",
        Some("partial") => "An earlier run did not come to its end; the same list carries it on.",
        Some("incomplete") => {
            "An earlier run had to leave blobs out for good; another one adds what is missing."
        }
        Some("complete") => "An earlier run was complete; another one adds what is missing.",
        Some(_) => "The index exists, and was never rebuilt; missing rows will be added.",
    };
    format!("{blobs}\n{state}\nNothing was done. The same command with --yes fills the index.\n")
}

fn text(report: &Report) -> String {
    let Some(done) = &report.done else {
        return String::new();
    };
    let mut text = format!(
        "{} of {} rebuilt: {} blocks found, {} rows added\n",
        count(done.rebuilt),
        things(done.blobs, "blob", "blobs"),
        whole(done.found.blocks),
        whole(done.added.blocks)
    );
    if done.without_end > 0 {
        let n = things(done.without_end, "blob", "blobs");
        text.push_str(&format!(
            "the end of {n} is not known; they are not renewed before it is\n"
        ));
    }
    for (why, n) in &done.left_out {
        let n = things(*n, "blob", "blobs");
        text.push_str(&format!("left out: {n}, {}\n", why.describe()));
    }
    for blob in done.named.iter().take(SHOWN) {
        text.push_str(&format!("  {} {}\n", blob.blob_id, blob.said));
    }
    if done.named.len() > SHOWN {
        text.push_str("  and more (--json names them)\n");
    }
    text
}
