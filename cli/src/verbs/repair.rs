//! `repair`: lost blocks are stored again where copies are left.

use std::path::PathBuf;

use serde_json::{json, Value};
use walrusds::admin::check::{Event, Finding, FindingKind};
use walrusds::admin::repair::{repair, Action, CopyFrom, Fate, Options, Repaired, Told, SCHEMA};

use super::check::{ended_early, show, summary_text, unknown, Found, Lines, What};
use super::convert_repo;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{frost, things, whole, whole_bytes};
use crate::progress::Unit;

/// The most actions that are printed, and stand in the JSON; `--report` writes all.
const PRINTED: usize = 1000;

/// Stores lost blocks again from copies, and drops rows without any
///
/// Makes a check and looks for copies of what is lost: in the journal, in the cache, in files that
/// the journal has set aside, in the flatfs that convert-repo has left in the repo, and in the
/// places that --from and --aggregator name. Without --yes nothing is changed: it tells what it
/// would do, and what that would cost. A copy counts only if it hashes to its key. Rows are dropped
/// only with --drop, and only if the blob is certainly gone and no copy was found. Safe beside
/// running nodes. Exits with 3 if blocks stay lost, or if changes are waiting for --yes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// Makes the changes, and pays for what is stored again
    #[arg(long, short = 'y')]
    yes: bool,
    /// Drops rows of blocks that are certainly lost
    #[arg(long)]
    drop: bool,
    /// Sets running totals right that differ from the rows; best while no node writes
    #[arg(long)]
    totals: bool,
    /// A place with copies (repeatable): the blocks directory of a repo with flatfs, the repo, or
    /// the URL of a trustless gateway (or of a server of raw blocks, with {cid} in it)
    #[arg(long, value_name = "PATH|URL")]
    from: Vec<String>,
    /// Another aggregator that may still have the blobs (repeatable)
    #[arg(long, value_name = "URL")]
    aggregator: Vec<String>,
    /// Writes a line of JSON for each finding and action, and one for the result, into this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn action_text(action: &Action, applied: bool) -> String {
    let what = match (action.fate, applied) {
        (Fate::StoredAgain, true) => "stored again",
        (Fate::StoredAgain, false) => "to store",
        (Fate::Dropped, _) => "lost",
        _ => "left",
    };
    let blocks = things(action.blocks, "block", "blocks");
    format!("{what:<13} {}: {blocks} ({})\n", action.blob_id, action.why)
}

fn text(repaired: &Repaired, args: &Args) -> String {
    let mut text = summary_text(&repaired.check);
    let applied = repaired.applied;
    let shown = |fate| {
        let usage = repaired.of(fate);
        format!(
            "{} blocks, {}",
            whole(usage.blocks),
            whole_bytes(usage.bytes)
        )
    };
    let mut line = |name: &str, fate, note: String| {
        if repaired.of(fate).blocks > 0 {
            text.push_str(&format!("{name:<28}{}{note}\n", shown(fate)));
        }
    };
    let price = match (applied, repaired.cost) {
        (false, _) => format!(
            " (packs: {}, {} units for each epoch)",
            repaired.packs, repaired.units
        ),
        (true, cost) => format!(" (packs: {}, {})", repaired.packs, frost(cost)),
    };
    let stored = match applied {
        true => "stored again",
        false => "copies, to be stored again",
    };
    line(stored, Fate::StoredAgain, price);
    let (dropped, note) = match (applied && args.drop, args.drop) {
        (true, _) => ("lost, rows dropped", ""),
        (false, true) => ("lost, rows to be dropped", ""),
        (false, false) => ("lost", " (--drop removes their rows)"),
    };
    line(dropped, Fate::Dropped, note.to_owned());
    line("left as they are", Fate::Left, String::new());
    if let Some(totals) = repaired.totals {
        let verb = if applied { "was" } else { "is to be" };
        text.push_str(&format!(
            "{:<28}{} blocks, {} {verb} added\n",
            "running totals",
            whole(totals.blocks),
            whole_bytes(totals.bytes)
        ));
    }
    if !applied && changes(repaired, args.drop) {
        text.push_str("Nothing was changed: add --yes to do it.\n");
    }
    text
}

/// Whether the check found something that no action is about.
fn unsettled(found: &Found, repaired: &Repaired) -> bool {
    let acted = |kind: FindingKind| match kind {
        FindingKind::Missing
        | FindingKind::Lapsed
        | FindingKind::WrongBytes
        | FindingKind::BeyondEnd
        | FindingKind::BadRow => true,
        FindingKind::Totals => repaired.totals.is_some(),
        _ => false,
    };
    found.kinds().any(|kind| !acted(kind))
}

/// Whether there is something to do.
fn changes(repaired: &Repaired, drop: bool) -> bool {
    repaired.of(Fate::StoredAgain).blocks > 0
        || drop && repaired.of(Fate::Dropped).blocks > 0
        || repaired.totals.is_some()
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let source = context.source()?;
    let left = convert_repo::left(&source.repo)?.map(CopyFrom::Flatfs);
    let named = args.from.iter().map(|text| CopyFrom::parse(text));
    let mut from: Vec<CopyFrom> = left.into_iter().chain(named).collect();
    from.extend(args.aggregator.iter().cloned().map(CopyFrom::Aggregator));
    let options = Options::default()
        .with_check(args.what.options()?)
        .with_apply(args.yes)
        .with_drop(args.drop)
        .with_totals(args.totals)
        .with_from(from);
    let mut lines = Lines::create(args.report.as_ref(), args.what.resumes())?;
    lines.write(&json!({"type": "begin", "schema": SCHEMA, "config": source.found}))?;
    let mut progress = context.progress("repairing", Unit::Bytes);
    let (mut found, mut totalled, mut trouble) = (Found::default(), false, None);
    let mut actions: Vec<Action> = Vec::new();
    let mut sources: Vec<String> = Vec::new();
    let mut more = 0_u64;
    let mut write = |line: &Value| {
        if let Err(e) = lines.write(line) {
            trouble.get_or_insert(e);
            context.stop.cancel();
        }
    };
    let mut on = |told| match told {
        Told::Check(Event::Finding(finding)) => {
            write(&finding.to_json());
            found.add(finding);
        }
        Told::Check(Event::Progress(done)) => show(&mut progress, &mut totalled, &done),
        Told::Action(action) => {
            write(&action.to_json());
            match actions.len() < PRINTED {
                true => actions.push(action),
                false => more += 1,
            }
        }
        Told::Source(text) => {
            write(&json!({"type": "source", "text": text}));
            sources.push(text);
        }
        _ => {}
    };
    let config = source.config.clone();
    let repaired = repair(config, &source.repo, &options, &mut on, &context.stop).await;
    drop(progress);
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    let repaired = repaired?;
    lines.write(&repaired.to_json())?;
    lines.finish()?;
    let early = ended_early(&repaired.check, &args.what, |cursor| {
        let line = context.again(&format!("repair --resume {cursor}"));
        format!("{line}, with the other options as before")
    });
    let early = early.or_else(|| unknown(&args.what, &repaired.check));
    let result = json!({
        "repair": repaired.to_json(),
        "findings": found.first.iter().map(Finding::to_json).collect::<Vec<_>>(),
        "actions": actions.iter().map(Action::to_json).collect::<Vec<_>>(),
        "actions_left_out": more,
        "sources": sources,
    });
    let unsettled = unsettled(&found, &repaired);
    context.print_both(&result, early.as_ref(), || {
        let each = actions.iter().map(|a| action_text(a, repaired.applied));
        let mut all = each.collect::<String>();
        if more > 0 {
            all.push_str(&format!(
                "… and {more} more: --report FILE writes them all\n"
            ));
        }
        if unsettled {
            all.push_str(&found.text());
        }
        for text in &sources {
            all.push_str(&format!("{text}\n"));
        }
        all + &text(&repaired, &args)
    })?;
    if let Some(failure) = early {
        return Err(failure);
    }
    let lost = repaired.of(Fate::Left).blocks > 0
        || repaired.of(Fate::Dropped).blocks > 0 && !(args.yes && args.drop);
    let waiting = !args.yes && changes(&repaired, args.drop);
    Ok(Exit::findings(lost || waiting || unsettled))
}
