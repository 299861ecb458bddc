//! `check`: whether Walrus holds what the index says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};
use walrusds::admin::check::{
    check, Cursor, Data, Event, Finding, FindingKind, Limit, Options, Sample, Stopped, Summary,
    SCHEMA,
};
use walrusds::admin::Target;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, quoted, span, things};
use crate::progress::{Progress, Unit};

/// The most findings that are printed, and stand in the JSON; `--report` writes all.
const PRINTED: usize = 1000;

/// Checks that Walrus holds what the index says
///
/// Looks at every blob: whether the aggregators have it, whether it is long enough, when it ends,
/// and whether rows, ledger and totals agree. With --read-data every block is read and hashed.
/// Changes nothing; safe beside running nodes. Exits with 3 if there are errors or warnings.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) what: What,
    /// Writes a line of JSON for each finding, and one for the result, into this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What is looked at; `repair` takes the same.
#[derive(Debug, clap::Args)]
pub struct What {
    /// Reads every block and hashes it
    #[arg(long)]
    read_data: bool,
    /// Reads the blocks of some blobs: 5% (others each time), or 2/7 (group 2 of 7)
    #[arg(long, value_name = "PART", conflicts_with = "read_data")]
    read_data_subset: Option<String>,
    /// Looks at the index alone and asks no aggregator
    #[arg(long, conflicts_with_all = ["read_data", "read_data_subset"])]
    index_only: bool,
    /// Looks at one blob
    #[arg(long, value_name = "BLOB", conflicts_with = "resume")]
    blob: Option<String>,
    /// Goes on where an interrupted check has stopped
    #[arg(long, value_name = "CURSOR", conflicts_with_all = ["read_data", "read_data_subset", "index_only"])]
    resume: Option<String>,
    /// Requests for data at a time (1 to 64), each of up to 16 MiB
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
}

impl What {
    /// Whether it goes on with an interrupted run.
    pub(super) fn resumes(&self) -> bool {
        self.resume.is_some()
    }

    pub(super) fn options(&self) -> Result<Options, Failure> {
        let usage = |e: walrusds::Error| Failure::Usage(e.message().to_owned());
        let from = match (&self.resume, &self.read_data_subset) {
            (Some(cursor), _) => cursor.parse::<Cursor>().map_err(usage)?,
            (None, Some(part)) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let seed = now.map_or(0, |now| now.as_secs());
                Cursor::new(Data::Read(Sample::parse(part, seed).map_err(usage)?))
            }
            (None, None) if self.read_data => Cursor::new(Data::Read(Sample::All)),
            (None, None) if self.index_only => Cursor::new(Data::None),
            (None, None) => Cursor::new(Data::Probe),
        };
        Ok(Options::default()
            .with_from(from)
            .with_only(self.blob.as_deref().map(blob_id).transpose()?)
            .with_parallel(usize::from(self.parallel)))
    }
}

/// The ID of a blob, in its usual form.
fn blob_id(text: &str) -> Result<String, Failure> {
    match Target::parse(text) {
        Ok(Target::Blob(id)) => Ok(id),
        _ => Err(Failure::Usage(format!(
            "--blob {text}: expected the ID of a blob: 43 characters of A-Z, a-z, 0-9, - and _, or a decimal number"
        ))),
    }
}

/// A file of JSON lines.
pub(super) struct Lines(Option<(PathBuf, BufWriter<File>)>);

impl Lines {
    /// `resumed`: the lines of the run that was interrupted stay.
    pub(super) fn create(path: Option<&PathBuf>, resumed: bool) -> Result<Lines, Failure> {
        let mut options = File::options();
        options.create(true).write(true);
        options.append(resumed).truncate(!resumed);
        let file = path.map(|path| match options.open(path) {
            Ok(file) => Ok((path.clone(), BufWriter::new(file))),
            Err(e) => Err(Failure::Failed(format!("--report {}: {e}", path.display()))),
        });
        file.transpose().map(Lines)
    }

    pub(super) fn write(&mut self, line: &Value) -> Result<(), Failure> {
        let Some((path, file)) = &mut self.0 else {
            return Ok(());
        };
        let written = writeln!(file, "{line}");
        written.map_err(|e| Failure::Failed(format!("--report {}: {e}", path.display())))
    }

    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        match &mut self.0 {
            Some((path, file)) => file
                .flush()
                .map_err(|e| Failure::Failed(format!("--report {}: {e}", path.display()))),
            None => Ok(()),
        }
    }
}

/// The findings that are printed, and the numbers of all.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) first: Vec<Finding>,
    kinds: BTreeMap<FindingKind, u64>,
    more: u64,
}

impl Found {
    pub(super) fn add(&mut self, finding: Finding) {
        *self.kinds.entry(finding.kind).or_default() += 1;
        match self.first.len() < PRINTED {
            true => self.first.push(finding),
            false => self.more += 1,
        }
    }

    /// The kinds of all findings.
    pub(super) fn kinds(&self) -> impl Iterator<Item = FindingKind> + '_ {
        self.kinds.keys().copied()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.first {
            let blob = finding.blob_id.as_deref().unwrap_or("the index");
            text.push_str(&format!(
                "{:<8} {:<13} {blob}: {}, {}\n         {}\n",
                finding.severity().name(),
                finding.kind.name(),
                things(finding.blocks, "block", "blocks"),
                bytes(finding.bytes),
                finding.text
            ));
            if let Some(key) = finding.keys.first() {
                let more = match finding.blocks {
                    0 | 1 => String::new(),
                    n => format!(" and {} more", count(n - 1)),
                };
                text.push_str(&format!("         keys: {key}{more}\n"));
            }
        }
        if self.more > 0 {
            let more = count(self.more);
            text.push_str(&format!(
                "… and {more} more findings: --report FILE writes them all\n"
            ));
        }
        if !self.kinds.is_empty() {
            text.push('\n');
        }
        for kind in FindingKind::ALL {
            if let Some(n) = self.kinds.get(&kind) {
                text.push_str(&format!(
                    "{} × {}: {}\n",
                    count(*n),
                    kind.name(),
                    kind.cure()
                ));
            }
        }
        text
    }
}

/// The progress of a check on a display.
pub(super) fn show(
    progress: &mut Progress,
    totalled: &mut bool,
    done: &walrusds::admin::check::Progress,
) {
    if !*totalled {
        progress.total(done.bytes_in_all);
        *totalled = true;
    }
    progress.at(done.bytes);
}

pub(super) fn summary_text(summary: &Summary) -> String {
    let mut text = format!(
        "{} with {} of {} were looked at in {}.\n",
        things(summary.blobs, "blob", "blobs"),
        things(summary.blocks, "block", "blocks"),
        bytes(summary.bytes),
        span(summary.took)
    );
    if summary.bytes_read > 0 {
        let limit = match summary.limit() {
            Some(Limit::Hashing) => "hashing on all cores",
            _ => "the aggregator (or the network, or the index)",
        };
        text.push_str(&format!(
            "{} were read and {} verified, {}/s; the limit was {limit}, cores hashed {:.0} % of the time.\n",
            bytes(summary.bytes_read),
            things(summary.verified, "block", "blocks"),
            bytes(summary.rate() as u64),
            summary.hashing * 100.0
        ));
        if summary.unverifiable > 0 {
            text.push_str(&format!(
                "{} have keys that name no content: their lengths alone were checked.\n",
                things(summary.unverifiable, "block", "blocks")
            ));
        }
    }
    text.push_str(&match (summary.cursor.errors, summary.cursor.warnings) {
        (0, 0) => "Nothing is wrong.\n".to_owned(),
        (errors, warnings) => format!(
            "{}, {}.\n",
            things(errors, "error", "errors"),
            things(warnings, "warning", "warnings")
        ),
    });
    text
}

/// The end of a command that was given a blob which the index does not know.
pub(super) fn unknown(what: &What, summary: &Summary) -> Option<Failure> {
    let blob = what.blob.as_ref()?;
    (summary.stopped.is_none() && summary.blocks == 0 && summary.findings() == 0)
        .then(|| Failure::Failed(format!("no row of the index points at the blob {blob}")))
}

/// The end of a command whose check ended early. `go_on`: how to go on from a cursor.
pub(super) fn ended_early(
    summary: &Summary,
    what: &What,
    go_on: impl FnOnce(&Cursor) -> String,
) -> Option<Failure> {
    let go_on = match &what.blob {
        Some(_) => "the same command looks at the blob again".to_owned(),
        None => format!("go on with: {}", go_on(&summary.cursor)),
    };
    match summary.stopped? {
        Stopped::Unreadable => Some(Failure::Failed(format!(
            "the check stopped, as many blobs in a row could not be read: is the aggregator down? (walrusds doctor tells); {go_on}"
        ))),
        _ => Some(Failure::Interrupted(go_on)),
    }
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let options = args.what.options()?;
    let mut lines = Lines::create(args.report.as_ref(), args.what.resumes())?;
    let (source, inspection) = context.inspect().await?;
    lines.write(&json!({"type": "begin", "schema": SCHEMA, "config": source.found}))?;
    let mut progress = context.progress("checking", Unit::Bytes);
    let (mut found, mut totalled, mut trouble) = (Found::default(), false, None);
    let mut on = |event| match event {
        Event::Finding(finding) => {
            if let Err(e) = lines.write(&finding.to_json()) {
                trouble.get_or_insert(e);
                context.stop.cancel();
            }
            found.add(finding);
        }
        Event::Progress(done) => show(&mut progress, &mut totalled, &done),
        _ => {}
    };
    let checked = check(&inspection, &options, &mut on, &context.stop).await;
    drop(progress);
    let closed = inspection.close().await;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    let summary = checked?;
    closed?;
    lines.write(&summary.to_json())?;
    lines.finish()?;
    let early = ended_early(&summary, &args.what, |cursor| {
        let mut line = context.again(&format!("check --resume {cursor}"));
        if let Some(path) = &args.report {
            line.push_str(&format!(" --report {}", quoted(path)));
        }
        line
    });
    let early = early.or_else(|| unknown(&args.what, &summary));
    let result = json!({
        "summary": summary.to_json(),
        "findings": found.first.iter().map(Finding::to_json).collect::<Vec<_>>(),
        "findings_left_out": found.more,
    });
    context.print_both(&result, early.as_ref(), || {
        found.text() + &summary_text(&summary)
    })?;
    match early {
        Some(failure) => Err(failure),
        None => Ok(Exit::findings(summary.findings() > 0)),
    }
}
