//! Takes ipfs programs through the tour and prints a table of the passed steps and their durations.
//! Run by `scripts/kubo-matrix.sh`, which builds the programs.
//!
//! Usage: `kubo-matrix NAME=PROGRAM[,PLUGIN] ...`; NAME heads a column. With a plugin the index is
//! an embedded one, without it is in Postgres. Ends with 1 if a step failed.

use std::process::ExitCode;
use std::time::Duration;

use kubo_tests::tour::{self, StepResult};
use kubo_tests::{Index, Ipfs};

struct Column {
    name: String,
    steps: Vec<StepResult>,
}

fn main() -> ExitCode {
    let mut columns = Vec::new();
    for arg in std::env::args().skip(1) {
        let Some((name, files)) = arg.split_once('=') else {
            eprintln!("usage: kubo-matrix NAME=PROGRAM[,PLUGIN] ...");
            return ExitCode::from(2);
        };
        let mut files = files.split(',').map(Into::into);
        let ipfs = Ipfs {
            program: files.next().unwrap_or_default(),
            plugin: files.next(),
        };
        let index = match ipfs.plugin {
            Some(_) => Index::Sqlite,
            None => Index::Postgres,
        };
        eprintln!("== {name}");
        let steps = tour::run(&ipfs, index, |step| {
            let seconds = step.took.as_secs_f32();
            match &step.failure {
                None => eprintln!("   {:<34} {seconds:>6.1} s", step.name),
                Some(said) => eprintln!("   {:<34} {seconds:>6.1} s  FAILED: {said}", step.name),
            }
        });
        columns.push(Column {
            name: name.to_owned(),
            steps,
        });
    }
    print!("{}", table(&columns));
    let failed = columns
        .iter()
        .flat_map(|column| &column.steps)
        .filter(|step| step.failure.is_some())
        .count();
    if columns.is_empty() || failed > 0 {
        eprintln!("{failed} steps failed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// In Markdown: a row per step, a column per program, seconds or `FAILED` in the cells.
fn table(columns: &[Column]) -> String {
    let mut rows = vec![row("step", columns.iter().map(|c| c.name.clone()))];
    rows.push(row("---", columns.iter().map(|_| "---:".to_owned())));
    for (i, name) in tour::step_names().enumerate() {
        rows.push(row(
            name,
            columns.iter().map(|column| {
                let step = &column.steps[i];
                let failed = if step.failure.is_some() {
                    "FAILED "
                } else {
                    ""
                };
                format!("{failed}{}", seconds(step.took))
            }),
        ));
    }
    rows.push(row(
        "all, seconds",
        columns
            .iter()
            .map(|column| seconds(column.steps.iter().map(|step| step.took).sum())),
    ));
    rows.concat()
}

fn row(head: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    format!("| {head} | {} |\n", cells.join(" | "))
}

fn seconds(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f32())
}
