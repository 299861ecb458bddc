//! `import`: blocks of other datastores come into this one.

use std::fs::File;
use std::io::{stdin, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use serde::Serialize;
use walrusds::admin::flatfs::Flatfs;
use walrusds::admin::import::{
    import, look, repo_blocks, CarBlocks, CarFile, FlatfsBlocks, FramedBlocks, IndexBlocks, Named,
    Options, Report as Imported, Source as Blocks, Sum, Trouble,
};
use walrusds::datastore::Inspection;
use walrusds::ErrorKind;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, frost, things, wrapped};
use crate::progress::Unit;
use crate::source::Source;
use crate::work;

/// Blocks that were left out and are shown.
const SHOWN: usize = 20;
/// Standard input.
const STDIN: &str = "-";

/// Takes in the blocks of another datastore; without --yes only shows the price
///
/// FROM is the blocks directory of a repo with flatfs, a Kubo repo with any datastore, or CAR files
/// (- reads one from standard input). Every block is checked against its multihash. Blocks that
/// this datastore has are neither read nor paid for again, so a run that was broken off is carried
/// on by the same command. Works beside a running node. Exits with 3 if blocks were left out.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory, or CAR files
    #[arg(required_unless_present_any = ["kubo_repo", "from_config", "stream"])]
    from: Vec<PathBuf>,
    /// A Kubo repo. Other datastores than flatfs are read by the program walrusds-kubo-datastore
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "from_config", "stream"])]
    kubo_repo: Option<PathBuf>,
    /// Another datastore of walrusds, by a file as --config takes it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "stream"])]
    from_config: Option<PathBuf>,
    /// What walrusds-kubo-datastore has written (- for standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    stream: Option<PathBuf>,
    /// Also takes blocks whose keys cannot be checked; they are stored anew each time
    #[arg(long)]
    unchecked: bool,
    /// Reads that run at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    readers: u16,
    /// The most memory for packs that are on their way (MiB)
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    memory: u64,
    /// Runs although another import into the same index does: what both bring is paid for twice
    #[arg(long)]
    beside: bool,
    /// Stores the blocks and pays for them
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Where the blocks come from.
    from: String,
    #[serde(flatten)]
    imported: Imported,
    /// Epochs that are bought.
    epochs: u32,
    /// The price of the packs by their units (FROST).
    frost: u64,
    /// Whether the chain told the prices.
    prices_known: bool,
}

/// A source that was opened, and its name for people.
struct Opened {
    name: String,
    blocks: Box<dyn Blocks>,
    /// Another datastore, to be closed at the end.
    other: Option<Arc<Inspection>>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (own, inspection) = context.inspect().await?;
    let done = with(&args, context, &own, &inspection).await;
    let closed = inspection.close().await;
    let report = done?;
    closed?;
    context.print(&report, || text(&report))?;
    Ok(Exit::findings(report.imported.left_out() > 0))
}

async fn with(
    args: &Args,
    context: &Context,
    own: &Source,
    inspection: &Inspection,
) -> Result<Report, Failure> {
    let from = open(args, context).await?;
    let (name, other) = (from.name.clone(), from.other.clone());
    let options = Options::default()
        .with_prefix(own.prefix().to_owned())
        .with_unchecked(args.unchecked)
        .with_readers(usize::from(args.readers))
        .with_memory_bytes(args.memory << 20)
        .with_beside(args.beside);
    let done = match args.yes {
        true => apply(from.blocks, &options, context).await,
        false => count_only(from.blocks, &options, context, inspection).await,
    };
    if let Some(other) = other {
        other.close().await?;
    }
    let imported = done?;
    let (prices, prices_known) = inspection.prices().await;
    let epochs = inspection.config().epochs;
    let each = prices.storage.saturating_mul(epochs.into());
    let each = each.saturating_add(prices.write);
    Ok(Report {
        from: name,
        frost: imported.units.saturating_mul(each),
        imported,
        epochs,
        prices_known,
    })
}

async fn count_only(
    blocks: Box<dyn Blocks>,
    options: &Options,
    context: &Context,
    inspection: &Inspection,
) -> Result<Imported, Failure> {
    let mut progress = context.progress("counting", Unit::Bytes);
    if let Some(total) = blocks.total_bytes() {
        progress.total(total);
    }
    let mut on = |told: &walrusds::admin::import::Progress| progress.at(told.done.bytes);
    let looked = look(inspection, blocks, options, &mut on, &context.stop).await;
    looked.map_err(|e| match e.kind() {
        ErrorKind::Canceled => Failure::Interrupted("nothing was changed".to_owned()),
        _ => e.into(),
    })
}

async fn apply(
    blocks: Box<dyn Blocks>,
    options: &Options,
    context: &Context,
) -> Result<Imported, Failure> {
    let store = work::open(context).await?;
    let mut progress = context.progress("importing", Unit::Bytes);
    if let Some(total) = blocks.total_bytes() {
        progress.total(total);
    }
    let at = AtomicU64::new(0);
    let mut on = |told: &walrusds::admin::import::Progress| at.store(told.done.bytes, Relaxed);
    let resume = "what was stored stays; the same command carries on";
    let importing = import(&store, blocks, options, &mut on, &context.stop);
    let done = || Some(at.load(Relaxed));
    let ended = work::attend(context, &store, progress, resume, done, importing).await;
    if matches!(&ended, Err(Failure::Engine(e)) if e.kind() != ErrorKind::Config) {
        context.note(format!("the import ended early; {resume}"));
    }
    ended
}

async fn open(args: &Args, context: &Context) -> Result<Opened, Failure> {
    let here = |name: String, blocks: Box<dyn Blocks>| Opened {
        name,
        blocks,
        other: None,
    };
    if let Some(repo) = &args.kubo_repo {
        return Ok(here(repo.display().to_string(), repo_blocks(repo)?));
    }
    if let Some(file) = &args.from_config {
        let source = Source::of_other(file)?;
        let opened = Inspection::open(source.config.clone(), &source.repo);
        let opened = context.or_stop("nothing was changed", opened).await;
        let other = Arc::new(opened.map_err(|failure| of_other(file, failure))?);
        let blocks = IndexBlocks::new(Arc::clone(&other), source.prefix()).await?;
        return Ok(Opened {
            name: source.found,
            blocks: Box::new(blocks),
            other: Some(other),
        });
    }
    if let Some(file) = &args.stream {
        let input = read(file)?;
        return Ok(here(name_of(file), Box::new(FramedBlocks::new(input))));
    }
    match args.from.as_slice() {
        [dir] if dir.is_dir() => {
            let config = dir.join("config");
            let is_repo = config.is_file() && !dir.join("SHARDING").exists();
            // A repo that was converted has the old flatfs, and a config of walrusds.
            let old = dir.join("blocks").join("SHARDING").exists();
            let converted = old && Source::of_other(&config).is_ok();
            let blocks: Box<dyn Blocks> = match is_repo && !converted {
                true => repo_blocks(dir)?,
                false => Box::new(FlatfsBlocks::new(Flatfs::open(dir)?)?),
            };
            Ok(here(dir.display().to_string(), blocks))
        }
        files => {
            let cars = files.iter().map(|file| car(file));
            let cars = cars.collect::<Result<Vec<CarFile>, Failure>>()?;
            let names: Vec<String> = files.iter().map(|file| name_of(file)).collect();
            Ok(here(names.join(", "), Box::new(CarBlocks::new(cars))))
        }
    }
}

/// An error of the other datastore says so.
fn of_other(file: &Path, failure: Failure) -> Failure {
    match failure {
        Failure::Engine(e) => {
            let context = format!("--from-config {}", file.display());
            Failure::Engine(e.context(context))
        }
        failure => failure,
    }
}

fn name_of(file: &Path) -> String {
    match file == Path::new(STDIN) {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    }
}

fn car(file: &Path) -> Result<CarFile, Failure> {
    let name = name_of(file);
    if file == Path::new(STDIN) {
        return Ok(CarFile::new(name, None, || Ok(Box::new(stdin()))));
    }
    let bad = |why: String| Failure::Failed(format!("{name}: {why}"));
    let metadata = std::fs::metadata(file).map_err(|e| bad(e.to_string()))?;
    if metadata.is_dir() {
        return Err(bad(
            "a directory is imported alone: name one directory, or CAR files".to_owned(),
        ));
    }
    // A pipe has no length.
    let len = Some(metadata.len()).filter(|_| metadata.is_file());
    let file = file.to_owned();
    Ok(CarFile::new(name, len, move || {
        Ok(Box::new(File::open(file)?))
    }))
}

fn read(file: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    if file == Path::new(STDIN) {
        return Ok(Box::new(stdin()));
    }
    let opened = File::open(file);
    let opened = opened.map_err(|e| Failure::Failed(format!("{}: {e}", file.display())))?;
    Ok(Box::new(opened))
}

fn text(report: &Report) -> String {
    let Report { imported, .. } = report;
    let sum = |sum: Sum| {
        let blocks = things(sum.blocks, "block", "blocks");
        format!("{blocks}, {}", bytes(sum.bytes))
    };
    let mut text = format!("{:<26}{}\n", "found", sum(imported.found));
    let mut line = |name: &str, of: Sum, note: &str| {
        if of.blocks > 0 {
            text.push_str(&wrapped(&format!("{name:<26}{}{note}", sum(of)), 26));
        }
    };
    line("here already", imported.known, "");
    line("were deleted, come back", imported.undeleted, "");
    let packs = things(imported.packs, "pack", "packs");
    let (name, price) = match imported.applied {
        true => ("stored", frost(imported.cost)),
        false => {
            let by = match report.prices_known {
                true => "",
                false => " at sample prices",
            };
            let epochs = things(report.epochs.into(), "epoch", "epochs");
            (
                "to store",
                format!("{} for {epochs}{by}", frost(report.frost)),
            )
        }
    };
    let units = things(imported.units, "unit", "units");
    let note = format!(" ({packs}, {units}, {price})");
    line(name, imported.stored, &note);
    line("deleted there meanwhile", imported.gone, "");
    line(
        "in another place, not taken",
        imported.elsewhere,
        " (keys that are no blocks)",
    );
    line("damaged, left out", imported.damaged, "");
    line("unreadable, left out", imported.unreadable, "");
    line(
        "refused, left out",
        imported.refused,
        " (--unchecked takes them)",
    );
    for Named {
        key, trouble, why, ..
    } in imported.named.iter().take(SHOWN)
    {
        let what = match trouble {
            Trouble::Damaged => "damaged",
            Trouble::Unreadable => "unreadable",
            _ => "refused",
        };
        text.push_str(&wrapped(&format!("  {what}: {key}: {why}"), 4));
    }
    if imported.left_out() > SHOWN as u64 {
        let more = count(imported.left_out() - SHOWN as u64);
        text.push_str(&format!("  and {more} more (--json names up to 1,000)\n"));
    }
    if imported.stored.blocks + imported.undeleted.blocks == 0 {
        text.push_str("Nothing is left to import.\n");
    } else if !imported.applied {
        text.push_str("Nothing was done. The same command with --yes imports them.\n");
    }
    text
}
