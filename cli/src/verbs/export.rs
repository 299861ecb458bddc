//! `export`: DAGs, or everything, as CAR files.

use std::path::{Path, PathBuf};

use walrusds::admin::export::{all, dags, CarVersion, Exported, Options, Target};
use walrusds::admin::Target as Named;
use walrusds::ErrorKind;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, pairs, things};
use crate::progress::Unit;

/// The least of --max-bytes: a file per block would help nobody.
const LEAST: u64 = 1 << 20;

/// Writes DAGs, or everything, into CAR files, which `ipfs dag import` takes
///
/// Every block is checked against its CID. Changes nothing; safe beside running nodes. Exits with 3
/// if blocks are missing: they are named, and no file is left.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The roots of the DAGs (bafy…, Qm…)
    #[arg(
        value_name = "CID",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    cids: Vec<String>,
    /// Everything that lies in blobs, in several files; the same command goes on after an
    /// interruption
    #[arg(long)]
    all: bool,
    /// The file, or - for standard output; with --all a directory
    #[arg(long, short, value_name = "FILE|-|DIR")]
    output: PathBuf,
    /// 2: with an index, for programs that look blocks up in the file
    #[arg(long, value_name = "1|2", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    car_version: u8,
    /// Keeps the file though blocks are missing
    #[arg(long, conflicts_with = "all")]
    partial: bool,
    /// The most bytes of blocks in a file (--all); a blob is not divided
    #[arg(long, value_name = "N", default_value_t = 4 << 30, requires = "all")]
    max_bytes: u64,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let stream = args.output == Path::new("-");
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
    if stream && args.all {
        return usage("--all writes several files: name a directory with --output");
    }
    if stream && context.global.json {
        return usage(
            "--json and the CAR cannot both go to standard output: name a file with --output",
        );
    }
    if stream && args.car_version == 2 {
        return usage("a CAR of version 2 cannot be written to standard output, as it begins with its length: name a file with --output");
    }
    if args.all && args.max_bytes < LEAST {
        let (given, least) = (args.max_bytes, LEAST);
        return usage(&format!(
            "--max-bytes: {given} found, at least {least} expected"
        ));
    }
    let roots = args.cids.iter().map(|text| match Named::parse(text) {
        Ok(Named::Cid(cid)) => Ok(cid),
        Ok(_) => Err(Failure::Usage(format!(
            "{text:?} is no CID (bafy…, Qm…): a key or a blob ID does not say what kind of node its block is"
        ))),
        Err(e) => Err(Failure::Usage(e.to_string())),
    });
    let roots = roots.collect::<Result<Vec<_>, _>>()?;
    let target = match (args.all, stream) {
        (true, _) => None,
        (false, true) => Some(Target::stream(std::io::stdout())),
        (false, false) => {
            let target = Target::file(&args.output);
            Some(target.map_err(|e| Failure::Usage(e.to_string()))?)
        }
    };
    let version = match args.car_version {
        2 => CarVersion::V2,
        _ => CarVersion::V1,
    };
    let options = Options::default()
        .with_version(version)
        .with_partial(args.partial);
    let (source, inspection) = context.inspect().await?;
    let mut progress = context.progress("exporting", Unit::Bytes);
    let exported = match target {
        Some(target) => {
            let tell = &mut |_, bytes| progress.at(bytes);
            let (prefix, stop) = (source.prefix(), &context.stop);
            dags(&inspection, &roots, prefix, target, &options, tell, stop).await
        }
        None => {
            let mut first = true;
            let tell = &mut |bytes, total| {
                progress.total(total);
                match std::mem::take(&mut first) {
                    true => progress.resumed(bytes),
                    false => progress.at(bytes),
                }
            };
            let (dir, most) = (&args.output, args.max_bytes);
            let (prefix, stop) = (source.prefix(), &context.stop);
            all(&inspection, prefix, dir, most, &options, tell, stop).await
        }
    };
    drop(progress);
    while let Some(line) = inspection.next_log_line() {
        context.note(format!("{}: {}", line.level.as_str(), line.message));
    }
    let closed = inspection.close().await;
    let report = exported.map_err(|e| match e.kind() {
        ErrorKind::Canceled => Failure::Interrupted(match args.all {
            true => "the same command goes on after the last whole file".to_owned(),
            false => "no file was left; begin again".to_owned(),
        }),
        ErrorKind::InvalidArgument => Failure::Usage(e.to_string()),
        _ => e.into(),
    })?;
    closed?;
    match stream {
        true => context.note(text(&report).trim_end()),
        false => context.print(&report, || text(&report))?,
    }
    Ok(Exit::findings(!report.complete))
}

fn text(report: &Exported) -> String {
    let blocks = format!("{}, {}", count(report.blocks), bytes(report.bytes));
    let mut lines = vec![("blocks", blocks)];
    match report.files.as_slice() {
        [] => {}
        [file] => lines.push((
            "file",
            format!("{}, {}", file.display(), bytes(report.car_bytes)),
        )),
        [first, .., last] => lines.push((
            "files",
            format!(
                "{} to {}, {}",
                first.display(),
                last.display(),
                bytes(report.car_bytes)
            ),
        )),
    }
    for (what, n, one, many) in [
        ("missing", report.missing, "block is", "blocks are"),
        (
            "unread",
            report.unread,
            "block cannot be",
            "blocks cannot be",
        ),
    ] {
        if n > 0 {
            let end = if what == "missing" { "missing" } else { "read" };
            lines.push((what, format!("{} {end}", things(n, one, many))));
        }
    }
    if report.not_followed > 0 {
        let n = things(report.not_followed, "block is", "blocks are");
        lines.push((
            "codec",
            format!("{n} of a codec whose links are not known here"),
        ));
    }
    if report.other_keys > 0 {
        let n = things(report.other_keys, "entry is", "entries are");
        lines.push(("left out", format!("{n} no block")));
    }
    let mut text = pairs(&lines);
    for (title, blocks, n) in [
        ("missing", &report.missing_blocks, report.missing),
        ("cannot be read", &report.unread_blocks, report.unread),
    ] {
        if n == 0 {
            continue;
        }
        text.push_str(&format!("\n{title}:\n"));
        for block in blocks {
            text.push_str(&format!("  {block}\n"));
        }
        let more = n.saturating_sub(blocks.len() as u64);
        if more > 0 {
            text.push_str(&format!("  and {} more\n", count(more)));
        }
    }
    if report.unread > 0 && report.roots.is_empty() {
        text.push_str("\nThe export is not whole: the same command tries these blocks again. walrusds repair looks for copies.\n");
    } else if !report.complete && report.files.is_empty() {
        text.push_str("\nNo whole CAR was written. walrusds repair looks for copies; --partial keeps what is there.\n");
    }
    text
}
