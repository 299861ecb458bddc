//! `forget`: the blocks of a DAG are deleted, but for those that a pin needs.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use walrusds::admin::{self, Cid, Dag, Target};
use walrusds::datastore::Inspection;
use walrusds::{Error, ErrorKind, Op, WalrusDatastore};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, pairs, span, things};
use crate::progress::Unit;
use crate::source::Source;
use crate::work;

/// Deletions of a batch.
const BATCH: usize = 1_000;

/// Deletes the blocks of DAGs from the index; without --yes only counts them
///
/// A pin whose DAG shares blocks would lose them, so say which pins there are: --keep-pinned reads
/// the output of `ipfs pin ls` (add the MFS root: `ipfs files stat / --hash`). Deleted blocks can
/// be brought back for keepDeletedSeconds (walrusds undelete). Blobs without blocks are left to
/// end. Exits with 3 if parts of the DAGs are missing or cannot be read.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("pins").required(true))]
pub struct Args {
    /// The roots of the DAGs
    #[arg(value_name = "CID", required = true)]
    roots: Vec<String>,
    /// Keeps what these pins need: a file with the output of `ipfs pin ls`; - reads standard input
    #[arg(long, value_name = "FILE", group = "pins")]
    keep_pinned: Option<PathBuf>,
    /// There are no pins to keep
    #[arg(long, group = "pins")]
    no_pins: bool,
    /// Deletes them
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether the blocks were deleted.
    applied: bool,
    /// Blocks of the DAGs that the index has.
    blocks: u64,
    /// Their bytes.
    bytes: u64,
    /// Those of them that a pin needs, and that stay.
    kept: u64,
    /// Those that are deleted.
    deleted: u64,
    /// Whether the DAGs were read to their ends: blocks below a missing one are not found.
    complete: bool,
    /// How long the deleted blocks can be brought back (seconds).
    keep_deleted_seconds: u64,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let roots = roots(&args.roots)?;
    let pins = match &args.keep_pinned {
        Some(path) => pins(&read(path)?)
            .map_err(|e| Failure::Failed(format!("--keep-pinned {}: {e}", path.display())))?,
        None => Pins::default(),
    };
    let (source, inspection) = context.inspect().await?;
    let found = find(context, &source, &inspection, &roots, &pins);
    let (doomed, mut report) = context.or_stop("nothing was changed", found).await?;
    inspection.close().await?;
    // Blocks below a missing one were not found, so they are not forgotten.
    let exit = Exit::findings(!report.complete);
    if !args.yes || doomed.is_empty() {
        context.print(&report, || text(&report))?;
        return Ok(exit);
    }
    let store = work::open(context).await?;
    let mut progress = context.progress("deleting", Unit::Things("blocks"));
    progress.total(report.deleted);
    let done = || {
        let metrics = store.metrics();
        metrics
            .iter()
            .find(|(name, _)| *name == "deletes")
            .map(|(_, n)| *n)
    };
    let resume = "what was deleted stays so; run the same command again for the rest";
    let work = delete(context, &store, doomed);
    work::attend(context, &store, progress, resume, done, work).await?;
    report.applied = true;
    context.print(&report, || text(&report))?;
    Ok(exit)
}

fn roots(names: &[String]) -> Result<Vec<Cid>, Failure> {
    let parse = |name: &String| match Target::parse(name) {
        Ok(Target::Cid(cid)) => Ok(cid),
        Ok(_) => Err(Failure::Usage(format!("{name:?} is no CID"))),
        Err(e) => Err(Failure::Usage(e.to_string())),
    };
    names.iter().map(parse).collect()
}

/// The blocks that are to be deleted.
async fn find(
    context: &Context,
    source: &Source,
    inspection: &Inspection,
    roots: &[Cid],
    pins: &Pins,
) -> Result<(Vec<String>, Report), Failure> {
    let prefix = source.prefix();
    let mut progress = context.progress("walking the DAG", Unit::Things("blocks"));
    let (keys, dag) = admin::keys(inspection, roots, prefix, &mut |n, _| progress.at(n)).await?;
    drop(progress);
    let kept = match pins.recursive.is_empty() {
        true => HashSet::new(),
        false => {
            let mut progress = context.progress("walking the pins", Unit::Things("blocks"));
            let tell = &mut |n, _| progress.at(n);
            let (kept, all) = admin::keys(inspection, &pins.recursive, prefix, tell).await?;
            drop(progress);
            certain(&all)?;
            kept
        }
    };
    let direct: HashSet<String> = pins
        .direct
        .iter()
        .map(|cid| admin::key_of(cid, prefix))
        .collect();
    let mut doomed: Vec<String> = keys.into_iter().collect();
    doomed.retain(|key| !kept.contains(key) && !direct.contains(key));
    doomed.sort_unstable();
    let deleted = doomed.len() as u64;
    let report = Report {
        applied: false,
        blocks: dag.blocks,
        bytes: dag.bytes,
        kept: dag.blocks.saturating_sub(deleted),
        deleted,
        complete: dag.complete,
        keep_deleted_seconds: inspection.config().keep_deleted.as_secs(),
    };
    Ok((doomed, report))
}

/// Refuses pins of which a part is not known: it may need any block.
fn certain(pins: &Dag) -> Result<(), Failure> {
    if pins.complete {
        return Ok(());
    }
    let first = pins.missing_keys.iter().chain(&pins.unread_keys).next();
    let first = first.map_or(String::new(), |key| format!("; the first: {key}"));
    Err(Failure::Failed(format!(
        "the pins are not known completely: {} missing, {} cannot be read, {} of an unknown codec{first}. What lies below \
         these may need the blocks, so nothing was deleted. A node with a journal may hold them on its disk: let it \
         empty (walrusds status), and try again",
        things(pins.missing, "block is", "blocks are"),
        things(pins.unread, "node", "nodes"),
        things(pins.not_followed, "block", "blocks"),
    )))
}

async fn delete(
    context: &Context,
    store: &WalrusDatastore,
    doomed: Vec<String>,
) -> walrusds::Result<()> {
    for batch in doomed.chunks(BATCH) {
        if context.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Canceled, "stopped"));
        }
        let batch = batch.iter().map(|key| Op::Delete(key.clone()));
        store.commit(batch.collect()).await?;
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq)]
struct Pins {
    recursive: Vec<Cid>,
    /// Blocks that are kept without what lies below them.
    direct: Vec<Cid>,
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::Failed(format!("--keep-pinned {}: {e}", path.display())))?;
    Ok(text)
}

/// The output of `ipfs pin ls`, with or without types and names. A CID without a type is kept with
/// all that lies below it.
fn pins(text: &str) -> Result<Pins, String> {
    let mut pins = Pins::default();
    for (n, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let Some(word) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let cid = match Target::parse(word) {
            Ok(Target::Cid(cid)) => cid,
            _ => {
                return Err(format!(
                    "line {} does not begin with a CID: {line:?}",
                    n + 1
                ))
            }
        };
        match words.next() {
            // The recursive pin that it belongs to is in the list, unless it was left out.
            Some("indirect" | "direct") => pins.direct.push(cid),
            _ => pins.recursive.push(cid),
        }
    }
    if pins == Pins::default() {
        return Err("it names no pin; if there are none, say --no-pins".to_owned());
    }
    Ok(pins)
}

fn text(report: &Report) -> String {
    let blocks = things(report.blocks, "block", "blocks");
    let found = format!("{blocks}, {}", bytes(report.bytes));
    let deleted = if report.applied {
        "deleted"
    } else {
        "to delete"
    };
    let mut text = pairs(&[
        ("found", found),
        ("kept for pins", count(report.kept)),
        (deleted, count(report.deleted)),
    ]);
    if !report.complete {
        text.push_str(
            "Parts of the DAG are missing or cannot be read; blocks below them were not found (walrusds inspect --recursive names \
             them).\n",
        );
    }
    let keep = std::time::Duration::from_secs(report.keep_deleted_seconds);
    text.push_str(&match keep.is_zero() {
        true => {
            "Deleted blocks cannot be brought back: keepDeletedSeconds is not set.\n".to_owned()
        }
        false => {
            let keep = span(keep);
            format!("Deleted blocks can be brought back for {keep} (walrusds undelete).\n")
        }
    });
    if !report.applied {
        text.push_str("Nothing was done. The same command with --yes deletes them.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    const B: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

    #[test]
    fn pin_lists_of_each_form_are_read() {
        let text = format!("# pins\n{A} recursive my pin\n\n{B} direct\n{B} indirect\n{A}\n");
        let pins = pins(&text).unwrap();
        assert_eq!((pins.recursive.len(), pins.direct.len()), (2, 2));
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        assert!(pins("").unwrap_err().contains("--no-pins"));
        let error = pins(&format!("{A}\nError: no pins\n")).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }
}
