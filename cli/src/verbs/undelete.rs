//! `undelete`: deleted blocks are brought back.

use std::time::SystemTime;

use serde::Serialize;
use walrusds::admin::{self, Target};
use walrusds::datastore::Inspection;
use walrusds::{DeletedQuery, DeletedRow, KeyRange, Usage};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{whole, whole_bytes};
use crate::progress::Unit;
use crate::when::moment;
use crate::work;

/// Rows that are listed at a time.
const PAGE: usize = 1_000;

/// Brings deleted blocks back; without --yes only counts them
///
/// Works while the index keeps their rows (keepDeletedSeconds of the node that deleted them) and
/// their blobs are stored. Nothing is uploaded. Say which: by time, by key, or --all.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keys (/CIQ…) or CIDs of single blocks
    #[arg(value_name = "KEY|CID")]
    what: Vec<String>,
    /// Deleted at this time or later: 2h (ago), or 2026-11-28T20:15:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<SystemTime>,
    /// Deleted before this time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<SystemTime>,
    /// Under keys that begin with this text
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// All that can be brought back
    #[arg(long, conflicts_with_all = ["what", "since", "until", "prefix"])]
    all: bool,
    /// Brings them back
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize, Clone, Copy, Default)]
struct Sum {
    blocks: i64,
    bytes: i64,
}

impl Sum {
    fn add(&mut self, row: &DeletedRow) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(row.row.record.size.max(0));
    }

    fn text(self) -> String {
        format!("{} blocks, {}", whole(self.blocks), whole_bytes(self.bytes))
    }
}

impl From<Usage> for Sum {
    fn from(usage: Usage) -> Sum {
        Sum {
            blocks: usage.blocks,
            bytes: usage.bytes,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether they were brought back.
    applied: bool,
    /// Deleted blocks that meet the conditions, when they were only counted.
    found: Option<Sum>,
    /// Blocks that can be read again.
    back: Option<Sum>,
    /// Blocks whose blobs' storage is over.
    over: Sum,
    /// Blocks that were put again since.
    live: Option<Sum>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let any = args.since.is_some() || args.until.is_some() || args.prefix.is_some();
    if !any && args.what.is_empty() && !args.all {
        return Err(Failure::Usage(
            "say which deleted blocks: --since 2h, --prefix, keys or CIDs, or --all".to_owned(),
        ));
    }
    let source = context.source()?;
    let mut query = DeletedQuery::default();
    (query.since, query.until) = (args.since, args.until);
    query.prefix = args.prefix.unwrap_or_default();
    for what in &args.what {
        let target = Target::parse(what).map_err(|e| Failure::Usage(e.to_string()))?;
        query.keys.push(match target {
            Target::Key(key) => key,
            Target::Cid(cid) => admin::key_of(&cid, source.prefix()),
            _ => {
                return Err(Failure::Usage(format!(
                    "{what:?} is a blob; name keys or CIDs of blocks"
                )))
            }
        });
    }
    let report = match args.yes {
        false => {
            let (_, inspection) = context.inspect().await?;
            let counted = count(&inspection, &query);
            let (found, over) = context.or_stop("nothing was changed", counted).await?;
            inspection.close().await?;
            Report {
                applied: false,
                found: Some(found),
                back: None,
                over,
                live: None,
            }
        }
        true => {
            let store = work::open(context).await?;
            let progress = context.progress("bringing back", Unit::Things("blocks"));
            let work = async {
                tokio::select! {
                    done = store.undelete(&query) => done,
                    () = context.stop.cancelled() => {
                        Err(walrusds::Error::new(walrusds::ErrorKind::Canceled, "stopped"))
                    }
                }
            };
            let done = || {
                let metrics = store.metrics();
                let back = metrics.iter().find(|(name, _)| *name == "blocks_undeleted");
                back.map(|(_, n)| *n)
            };
            let resume = "what is back stays; run the same command again for the rest";
            let done = work::attend(context, &store, progress, resume, done, work).await?;
            Report {
                applied: true,
                found: None,
                back: Some(done.back.into()),
                over: done.over.into(),
                live: Some(done.live.into()),
            }
        }
    };
    context.print(&report, || text(&report))?;
    Ok(Exit::Fine)
}

/// The deleted blocks that meet the conditions, and those of them whose storage is over.
async fn count(inspection: &Inspection, query: &DeletedQuery) -> walrusds::Result<(Sum, Sum)> {
    let epoch = inspection.epoch().await?;
    let (mut found, mut over) = (Sum::default(), Sum::default());
    let now = SystemTime::now();
    let mut add = |row: &DeletedRow| {
        found.add(row);
        let record = &row.row.record;
        let end = u64::try_from(record.end_epoch).unwrap_or(0);
        let ended = end > 0 && epoch.is_some_and(|(least, _)| least >= end);
        if ended || record.expires_at.is_some_and(|at| at <= now) {
            over.add(row);
        }
    };
    let index = inspection.index();
    if !query.keys.is_empty() {
        for row in index.deleted(&query.keys).await?.iter().flatten() {
            let after = query.since.is_none_or(|since| row.deleted_at >= since);
            let before = query.until.is_none_or(|until| row.deleted_at < until);
            if after && before && row.row.key.starts_with(&query.prefix) {
                add(row);
            }
        }
        return Ok((found, over));
    }
    let mut range = KeyRange::prefix(&query.prefix);
    loop {
        let page = index
            .list_deleted(&range, query.since, query.until, PAGE)
            .await?;
        page.iter().for_each(&mut add);
        match page.last().filter(|_| page.len() >= PAGE) {
            Some(last) => range = range.after(&*last.row.key),
            None => return Ok((found, over)),
        }
    }
}

fn text(report: &Report) -> String {
    let over = match report.over.blocks {
        0 => String::new(),
        _ => format!("storage over, cannot come back: {}\n", report.over.text()),
    };
    match (report.found, report.back, report.live) {
        (Some(found), ..) if found.blocks == 0 => "No deleted block meets this.\n".to_owned(),
        (Some(found), ..) => format!(
            "deleted: {}\n{over}Nothing was done. The same command with --yes brings them back.\n",
            found.text()
        ),
        (None, back, live) => {
            let live = live.filter(|live| live.blocks > 0);
            let live = live.map_or(String::new(), |live| {
                format!("put again since: {}\n", live.text())
            });
            format!("back: {}\n{live}{over}", back.unwrap_or_default().text())
        }
    }
}
