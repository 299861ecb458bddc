//! Copies an index to another place. Usage: `copy_index [--finish] FROM.json TO.json [REPO]`.
//!
//! FROM.json and TO.json hold a node's keys, as in Kubo's `Datastore.Spec`; relative paths in them
//! are taken from REPO. Without `--finish` it makes one pass, beside the nodes that work with the
//! index; run it again to bring over what changed. With `--finish` it compares every row, after the
//! last node that writes was stopped. It may be broken off and run again at any time.

use std::path::PathBuf;
use std::process::ExitCode;

use walrusds::{copy_index, Config, CopyReport, Copying};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let before = args.len();
    args.retain(|arg| arg != "--finish");
    let copying = match args.len() < before {
        true => Copying::Finish,
        false => Copying::Beside,
    };
    let [from, to, repo @ ..] = args.as_slice() else {
        eprintln!("usage: copy_index [--finish] FROM.json TO.json [REPO]");
        return ExitCode::from(2);
    };
    match run(from, to, repo.first(), copying) {
        Ok(report) => {
            println!("{}", line(&report));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn run(
    from: &str,
    to: &str,
    repo: Option<&String>,
    copying: Copying,
) -> Result<CopyReport, Failure> {
    let read = |path: &str| -> Result<Config, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        Ok(Config::from_json(&text).map_err(|e| format!("{path}: {e}"))?)
    };
    let (from, to) = (read(from)?, read(to)?);
    let repo = repo.map(PathBuf::from).unwrap_or_default();
    let mut progress = |report: &CopyReport| {
        eprint!("\r{}", line(report));
        Ok(())
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(copy_index(from, to, &repo, copying, &mut progress))?;
    eprintln!();
    Ok(report)
}

fn line(report: &CopyReport) -> String {
    let CopyReport {
        passes,
        compared,
        added,
        replaced,
        removed,
        blobs,
        staged,
        finished,
        ..
    } = report;
    format!(
        "passes {passes}, blocks compared {} ({} bytes), added {added}, replaced {replaced}, removed {removed}, \
         entries of blobs {blobs}, staged by Go nodes {staged}, finished {finished}",
        compared.blocks, compared.bytes
    )
}
