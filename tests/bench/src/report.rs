//! The results for people (Markdown) and for programs (JSON).

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{json, Value};

use crate::goals::{self, Goal};
use crate::kind::Kind;
use crate::results::{Results, Sample};
use crate::settings::Settings;
use crate::workload::{Workload, WORKLOADS};

/// Where and on what it was measured.
pub struct Machine {
    /// Day (UTC), as `2026-11-26`.
    pub date: String,
    /// Time of day (UTC), as `09:30`.
    pub time: String,
    pub cores: usize,
    cpu: String,
    memory_gib: f64,
    system: String,
    kubo: String,
    postgres: String,
    /// How busy the machine was when it began (one minute).
    load: f64,
}

impl Machine {
    pub fn look(settings: &Settings) -> Result<Machine> {
        let line = |path: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let said = |program: &std::path::Path, args: &[&str]| -> Result<String> {
            let out = Command::new(program).args(args).output()?;
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
        };
        let now = said("date".as_ref(), &["-u", "+%F %R"])?;
        let (date, time) = now.split_once(' ').context("date prints no time")?;
        let memory = line("/proc/meminfo", "MemTotal").unwrap_or_default();
        let memory: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let server = postgres::Client::connect(&settings.postgres, postgres::NoTls)?
            .query_one("SHOW server_version", &[])?
            .get::<_, String>(0);
        Ok(Machine {
            date: date.to_owned(),
            time: time.to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            cpu: line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            memory_gib: memory / f64::from(1 << 20),
            system: said("uname".as_ref(), &["-sr"])?,
            kubo: said(&settings.ipfs, &["version", "--number"])?,
            postgres: server.split(' ').next().unwrap_or_default().to_owned(),
            load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or_default(),
        })
    }

    fn line(&self) -> String {
        format!(
            "{}, {} cores ({}), {:.0} GiB, {}, Kubo {}, PostgreSQL {}; load at the beginning {:.1}",
            self.date,
            self.cores,
            self.cpu,
            self.memory_gib,
            self.system,
            self.kubo,
            self.postgres,
            self.load
        )
    }
}

/// Everything as Markdown, headings of the third level.
pub fn markdown(settings: &Settings, machine: &Machine, results: &Results) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}.", machine.line());
    let _ = writeln!(
        out,
        "{} MiB in one file, {} files of 4 KiB; medians of {} round(s), the datastores in turns.",
        settings.mib, settings.files, settings.rounds
    );
    if settings.smoke {
        out.push_str("**A smoke run: it shows that everything works, and measures nothing.**\n");
    }
    if results.page_cache_kept {
        out.push_str(
            "The kernel's page cache could not be dropped: what should be cold is warm.\n",
        );
    }
    for failure in &results.failures {
        let first = failure.lines().next().unwrap_or_default();
        let _ = writeln!(out, "\n**Failed**, and missing below: {first}");
    }
    let goals = goals::check(settings, results);
    if !goals.is_empty() {
        goal_table(&mut out, settings, &goals);
    }
    for workload in WORKLOADS {
        workload_table(&mut out, settings, workload, results);
    }
    calls_table(&mut out, results);
    opening_table(&mut out, results);
    every_run(&mut out, results);
    out
}

fn goal_table(out: &mut String, settings: &Settings, goals: &[Goal]) {
    out.push_str("\n### Goals\n\n");
    if !settings.is_full_size() {
        out.push_str("The goals are for 1024 MiB and 10,000 files: what follows says little.\n\n");
    }
    let met = goals.iter().filter(|goal| goal.met).count();
    let _ = writeln!(out, "{met} of {} met.\n", goals.len());
    out.push_str("| what | goal | measured | met |\n|---|---|---|---|\n");
    for Goal {
        what,
        goal,
        measured,
        met,
    } in goals
    {
        let met = if *met { "yes" } else { "**no**" };
        let _ = writeln!(out, "| {what} | {goal} | {measured} | {met} |");
    }
}

fn workload_table(out: &mut String, settings: &Settings, workload: &Workload, results: &Results) {
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| results.of(workload.name, *kind).next().is_some())
        .collect();
    if kinds.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n### {}\n\n`{}`: {}\n",
        workload.title,
        workload.name,
        workload.what(settings)
    );
    let base = workload.base;
    let any = |field: fn(&Sample) -> Option<f64>| {
        kinds
            .iter()
            .any(|kind| results.median(workload.name, *kind, field).is_some())
    };
    let mut columns: Vec<Column> = vec![
        ("wall (s)".to_owned(), |s| Some(s.wall), Show::Seconds),
        (format!("× {}", base.label()), |s| Some(s.wall), Show::Ratio),
    ];
    if let Some(unit) = workload.unit {
        columns.push((unit.to_owned(), |s| s.rate, Show::Whole));
    }
    columns.extend([
        (
            "CPU (s)".to_owned(),
            (|s| Some(s.cpu)) as Field,
            Show::Seconds,
        ),
        (format!("× {}", base.label()), |s| Some(s.cpu), Show::Ratio),
        ("peak RSS (MiB)".to_owned(), |s| Some(s.rss), Show::Whole),
        (
            format!("over {}", base.label()),
            |s| Some(s.rss),
            Show::Difference,
        ),
    ]);
    for (name, field, show) in [
        (
            "on Walrus after (s)",
            (|s| s.on_walrus) as Field,
            Show::Seconds,
        ),
        ("blobs", |s| s.blobs.map(|n| n as f64), Show::Whole),
        ("units", |s| s.units.map(|n| n as f64), Show::Whole),
        ("uploads", |s| s.uploads.map(|n| n as f64), Show::Whole),
        ("fetched (× wanted)", |s| s.fetched, Show::Seconds),
    ] {
        if any(field) {
            columns.push((name.to_owned(), field, show));
        }
    }
    out.push_str("| datastore |");
    for (name, ..) in &columns {
        let _ = write!(out, " {name} |");
    }
    let _ = writeln!(out, "\n|---|{}", "---:|".repeat(columns.len()));
    for kind in &kinds {
        let _ = write!(out, "| {} |", kind.label());
        for (_, field, show) in &columns {
            let value = results.median(workload.name, *kind, field);
            let of_base = results.median(workload.name, base, field);
            let _ = write!(out, " {} |", show.text(value, of_base));
        }
        out.push('\n');
    }
}

type Field = fn(&Sample) -> Option<f64>;
type Column = (String, Field, Show);

#[derive(Debug, Clone, Copy)]
enum Show {
    Seconds,
    Whole,
    /// To the base.
    Ratio,
    /// From the base.
    Difference,
}

impl Show {
    fn text(self, value: Option<f64>, base: Option<f64>) -> String {
        let text = value.and_then(|value| {
            Some(match self {
                Show::Seconds => format!("{value:.2}"),
                Show::Whole => format!("{value:.0}"),
                Show::Ratio => format!("{:.2}", value / base?),
                Show::Difference => format!("{:+.0}", value - base?),
            })
        });
        text.unwrap_or_else(|| "–".to_owned())
    }
}

fn calls_table(out: &mut String, results: &Results) {
    if results.calls.is_empty() {
        return;
    }
    out.push_str(
        "\n### Calls of the datastore\n\n\
         `datastore`: `tests/bench/ds`, through the Go shim, without Kubo. One run, many calls.\n\n\
         | index | call | goroutines | calls/s | CPU (µs) | p50 (µs) | p99 (µs) | threads |\n\
         |---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for c in &results.calls {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.0} | {:.2} | {:.1} | {:.1} | {} |",
            c.index,
            c.call,
            c.goroutines,
            c.calls_per_second,
            c.cpu_us_per_call,
            c.p50_us,
            c.p99_us,
            c.threads
        );
    }
}

fn opening_table(out: &mut String, results: &Results) {
    if let Some(opening) = &results.opening {
        let _ = write!(
            out,
            "\n### Opening\n\n\
             `open`: a datastore whose tables exist, as every offline command does. Medians of 30.\n\n\
             | what | ms |\n|---|---:|\n\
             | bare connection to Postgres and one statement | {:.2} |\n\
             | open, index in Postgres | {:.2} |\n\
             | open, index in SQLite | {:.2} |\n",
            opening.connect, opening.postgres, opening.sqlite
        );
    }
}

fn every_run(out: &mut String, results: &Results) {
    if results.runs.is_empty() {
        return;
    }
    out.push_str(
        "\n### Every run\n\nWall time (seconds) of the rounds in order.\n\n\
         | workload | datastore | runs |\n|---|---|---|\n",
    );
    for workload in WORKLOADS {
        for kind in Kind::ALL {
            let runs: Vec<String> = results
                .of(workload.name, kind)
                .map(|sample| format!("{:.2}", sample.wall))
                .collect();
            if !runs.is_empty() {
                let _ = writeln!(
                    out,
                    "| {} | {} | {} |",
                    workload.name,
                    kind.id(),
                    runs.join(", ")
                );
            }
        }
    }
}

/// Everything for programs.
pub fn json(settings: &Settings, machine: &Machine, results: &Results) -> Value {
    json!({
        "date": machine.date,
        "time": machine.time,
        "machine": {
            "cores": machine.cores, "cpu": machine.cpu, "memory_gib": machine.memory_gib,
            "system": machine.system, "load": machine.load,
        },
        "kubo": machine.kubo,
        "postgres": machine.postgres,
        "settings": {
            "rounds": settings.rounds, "mib": settings.mib, "files": settings.files,
            "requests": settings.requests, "smoke": settings.smoke,
            "page_cache_kept": results.page_cache_kept,
        },
        "failures": results.failures,
        "goals": goals::check(settings, results),
        "runs": results.runs,
        "calls": results.calls,
        "opening_ms": results.opening,
    })
}
