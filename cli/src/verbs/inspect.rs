//! `inspect`: where a block lies, in which blob, until when, at what price; a DAG with
//! `--recursive`.

use std::time::SystemTime;

use serde::Serialize;
use walrusds::admin::{self, BlobReport, BlockReport, Dag, Place, Target};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{
    bytes, count, frost, pairs, percent, relative, things, whole_bytes, Side, Table,
};
use crate::progress::Unit;

/// Blobs that are shown of a DAG.
const SHOWN: usize = 20;

/// Shows where a block lies, or what is known of a blob, or of a whole DAG
///
/// Exit code 3: neither the index nor the journal knows it, or blocks of the DAG are missing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A datastore key (/CIQ…), a CID (bafy…, Qm…) or a blob ID
    #[arg(value_name = "KEY|CID|BLOB")]
    what: String,
    /// Goes through the whole DAG below a CID: which blobs hold it, whether all of it is there
    #[arg(long, short)]
    recursive: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Block(Box<BlockReport>),
    Blob(Option<BlobReport>),
    Dag(Dag),
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let target = Target::parse(&args.what).map_err(|e| Failure::Usage(e.to_string()))?;
    if args.recursive && !matches!(target, Target::Cid(_)) {
        return Err(Failure::Usage(
            "--recursive needs a CID: a key does not say which kind of node its block is"
                .to_owned(),
        ));
    }
    let (source, inspection) = context.inspect().await?;
    let prefix = source.prefix();
    let look = async {
        Ok::<_, walrusds::Error>(match &target {
            Target::Blob(id) => Report::Blob(admin::blob(&inspection, id).await?),
            Target::Key(key) => Report::Block(Box::new(admin::block(&inspection, key).await?)),
            Target::Cid(cid) if args.recursive => {
                let mut progress = context.progress("walking", Unit::Bytes);
                let tell = &mut |_, bytes| progress.at(bytes);
                Report::Dag(admin::walk(&inspection, cid, prefix, tell).await?)
            }
            Target::Cid(cid) => {
                let key = admin::key_of(cid, prefix);
                Report::Block(Box::new(admin::block(&inspection, &key).await?))
            }
            _ => {
                return Err(walrusds::Error::new(
                    walrusds::ErrorKind::Internal,
                    "unknown target",
                ))
            }
        })
    };
    let report = context.or_stop("nothing was changed", look).await?;
    context.notes(&inspection);
    context.print(&report, || text(&report))?;
    inspection.close().await?;
    Ok(Exit::findings(match &report {
        Report::Block(block) => block.place.is_none() && !block.journaled,
        Report::Blob(blob) => blob.is_none(),
        Report::Dag(dag) => !dag.complete,
    }))
}

fn text(report: &Report) -> String {
    let now = SystemTime::now();
    match report {
        Report::Block(block) => block_text(block, now),
        Report::Blob(Some(blob)) => blob_text(blob, now),
        Report::Blob(None) => "The index knows no blob of this ID.\n".to_owned(),
        Report::Dag(dag) => dag_text(dag, now),
    }
}

fn end(epoch: i64, at: Option<SystemTime>, now: SystemTime) -> String {
    let when = at.map_or(String::new(), |at| format!(", {}", relative(at, now)));
    match epoch {
        0 => format!("unknown{when}"),
        epoch => format!("with epoch {epoch}{when}"),
    }
}

fn place_text(place: &Place) -> String {
    if place.staged {
        return format!("staged by a Go node, {}", whole_bytes(place.bytes));
    }
    let size = whole_bytes(place.bytes);
    match &place.patch_id {
        Some(patch) => format!("{size}, member {patch} of quilt {}", place.blob_id),
        None => format!("{size} at byte {} of blob {}", place.offset, place.blob_id),
    }
}

fn block_text(block: &BlockReport, now: SystemTime) -> String {
    let mut lines = vec![("key", block.key.clone())];
    match (&block.place, &block.deleted) {
        (Some(place), _) => {
            lines.push(("block", place_text(place)));
            lines.push(("ends", end(place.end_epoch, place.expires_at, now)));
        }
        (None, _) if block.journaled => lines.push((
            "block",
            "in the journal on this disk, and in no blob yet".to_owned(),
        )),
        (None, Some(kept)) => {
            let when = block
                .deleted_at
                .map_or(String::new(), |at| relative(at, now));
            lines.push((
                "block",
                format!("deleted {when}; walrusds undelete brings it back"),
            ));
            lines.push(("was", place_text(kept)));
            lines.push(("ends", end(kept.end_epoch, kept.expires_at, now)));
        }
        (None, None) => lines.push((
            "block",
            "neither in the index nor in this repo's journal; another node with a journal may hold it".to_owned(),
        )),
    }
    let mut text = pairs(&lines);
    if let Some(blob) = &block.blob {
        text.push('\n');
        text.push_str(&blob_text(blob, now));
    }
    text
}

fn blob_text(blob: &BlobReport, now: SystemTime) -> String {
    let or_unknown = |text: &str| match text.is_empty() {
        true => "unknown".to_owned(),
        false => text.to_owned(),
    };
    let by = if blob.prices_known {
        ""
    } else {
        " at sample prices"
    };
    let size = match blob.bytes {
        0 => "unknown".to_owned(),
        n => format!("{}, format {}", bytes(n), or_unknown(&blob.format)),
    };
    let waste = match blob.bytes {
        0 => String::new(),
        n => format!(", {} waste", percent(n.saturating_sub(blob.live_bytes), n)),
    };
    let live = things(blob.live_blocks, "live block", "live blocks");
    let price = format!(
        "{} units, {} per epoch{by}; {} paid so far",
        count(blob.units),
        frost(blob.frost_per_epoch),
        frost(blob.paid_frost)
    );
    let kind = if blob.deletable {
        "deletable"
    } else {
        "permanent"
    };
    let mut lines = vec![
        ("blob", blob.blob_id.clone()),
        ("object", or_unknown(&blob.object_id)),
        ("size", size),
        (
            "holds",
            format!("{live}, {}{waste}", bytes(blob.live_bytes)),
        ),
        ("price", price),
        (
            "ends",
            format!("{}, {kind}", end(blob.end_epoch, blob.expires_at, now)),
        ),
    ];
    if let Some(at) = blob.read_back_at {
        lines.push(("read back", relative(at, now)));
    }
    if !blob.in_ledger {
        lines.push(("ledger", "no entry yet: only its rows are known".to_owned()));
    }
    pairs(&lines)
}

fn dag_text(dag: &Dag, now: SystemTime) -> String {
    let mut whole = match (dag.complete, dag.missing, dag.unread) {
        (true, ..) => "all of it is there".to_owned(),
        (_, 0, 0) => String::new(),
        (_, missing, unread) => format!(
            "{} missing, {} cannot be read",
            things(missing, "block is", "blocks are"),
            things(unread, "node", "nodes")
        ),
    };
    if dag.not_followed > 0 {
        let n = things(dag.not_followed, "block is", "blocks are");
        let more = format!("{n} of a codec whose links are not known here");
        let comma = if whole.is_empty() { "" } else { ", " };
        whole.push_str(&format!("{comma}{more}"));
    }
    let by = if dag.prices_known {
        ""
    } else {
        " at sample prices"
    };
    let first = dag
        .first_end
        .as_ref()
        .map_or("not known".to_owned(), |first| {
            end(first.epoch, first.at, now)
        });
    let mut lines = vec![
        ("dag", dag.root.clone()),
        (
            "blocks",
            format!("{}, {}", count(dag.blocks), bytes(dag.bytes)),
        ),
        ("whole", whole),
        ("blobs", count(dag.blobs.len() as u64)),
        ("first end", first),
        (
            "price",
            format!(
                "{} per epoch for its bytes, {} for its blobs as a whole{by}",
                frost(dag.share_frost_per_epoch),
                frost(dag.frost_per_epoch)
            ),
        ),
    ];
    if dag.staged > 0 {
        lines.push((
            "staged",
            format!(
                "{} in no blob",
                things(dag.staged, "block is", "blocks are")
            ),
        ));
    }
    if dag.journaled > 0 {
        let n = things(dag.journaled, "block waits", "blocks wait");
        lines.push(("journal", format!("{n} on this disk, in no blob yet")));
    }
    let mut text = pairs(&lines);
    if !dag.blobs.is_empty() {
        let mut table = Table::new(&[
            ("blob", Side::Left),
            ("blocks", Side::Right),
            ("bytes", Side::Right),
            ("end", Side::Right),
        ]);
        for share in dag.blobs.iter().take(SHOWN) {
            table.row([
                share.blob_id.clone(),
                count(share.blocks),
                bytes(share.bytes),
                share.end_epoch.to_string(),
            ]);
        }
        text.push_str(&format!("\n{}", table.text()));
        if dag.blobs.len() > SHOWN {
            let more = count((dag.blobs.len() - SHOWN) as u64);
            text.push_str(&format!("and {more} more (--json has all)\n"));
        }
    }
    for (title, keys, n) in [
        ("missing", &dag.missing_keys, dag.missing),
        ("cannot be read", &dag.unread_keys, dag.unread),
    ] {
        if !keys.is_empty() {
            text.push_str(&format!("\n{title}:\n"));
            keys.iter()
                .for_each(|key| text.push_str(&format!("  {key}\n")));
            let more = n.saturating_sub(keys.len() as u64);
            if more > 0 {
                text.push_str(&format!("  and {} more\n", count(more)));
            }
        }
    }
    text
}
