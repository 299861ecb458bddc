//! `make bench`: walrusds beside Kubo's own datastores, all of them in one `ipfs` program, in
//! turns.
//!
//! Prints Markdown tables; writes JSON and a plot to `build/bench/`, and with `UPDATE=1` the tables
//! and the plot into `docs/`. `scripts/bench.sh` builds what is needed and explains the settings.
#![deny(unsafe_code)]

mod calls;
mod goals;
mod kind;
mod load;
mod measure;
mod node;
mod open;
mod plot;
mod report;
mod results;
mod settings;
mod stages;
mod workload;

use std::fs;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{ensure, Context as _, Result};

use kind::Kind;
use report::Machine;
use settings::Settings;
use stages::Bench;
use workload::Stage;

const DOCS: &str = "docs/benchmarks.md";
const PLOT: &str = "docs/benchmarks.svg";
const BEGIN: &str = "<!-- bench: begin";
const END: &str = "<!-- bench: end -->";

fn main() -> Result<()> {
    let started = Instant::now();
    let settings = Settings::from_env()?;
    let names: Vec<&str> = workload::WORKLOADS
        .iter()
        .map(|workload| workload.name)
        .chain(workload::OTHERS)
        .collect();
    settings.check_names(&names)?;
    ensure!(
        !settings.update || settings.is_complete(),
        "UPDATE=1 is for complete runs: unset the BENCH_* variables"
    );
    let machine = Machine::look(&settings)?;
    let mut bench = Bench::new(settings)?;

    for round in 0..bench.settings.rounds {
        for stage in Stage::ALL {
            run_stage(&mut bench, stage, round);
        }
    }
    let settings = Rc::clone(&bench.settings);
    if settings.wants("open") {
        bench.results.opening = bench.attempt("open", |_| open::measure(&settings));
    }
    if settings.wants("datastore") {
        let calls = bench.attempt("datastore", |_| calls::measure(&settings));
        bench.results.calls = calls.unwrap_or_default();
    }
    eprintln!("{} s in all", started.elapsed().as_secs());
    publish(&bench, &machine)?;
    let failures = &bench.results.failures;
    ensure!(failures.is_empty(), "failed: {}", failures.join("; "));
    Ok(())
}

/// One round of a stage: each datastore once, a different one first each time.
fn run_stage(bench: &mut Bench, stage: Stage, round: usize) {
    let settings = Rc::clone(&bench.settings);
    let mut wanted = stage
        .workloads()
        .filter(|w| settings.wants(w.name) && (round == 0 || !w.once));
    let Some(first_wanted) = wanted.next() else {
        return;
    };
    let mut kinds = Kind::ALL.to_vec();
    kinds.retain(|kind| stage.measures(*kind) && settings.wants_peer(*kind));
    let first = round.checked_rem(kinds.len()).unwrap_or_default();
    kinds.rotate_left(first);
    for kind in kinds {
        eprintln!("round {}, {}", round + 1, kind.label());
        let what = format!("{}, {}", first_wanted.name, kind.label());
        bench.attempt(&what, |bench| stages::run(stage, bench, kind));
    }
}

/// Prints the results and saves them.
fn publish(bench: &Bench, machine: &Machine) -> Result<()> {
    let (settings, results) = (&*bench.settings, &bench.results);
    let tables = report::markdown(settings, machine, results);
    print!("{tables}");
    let out = settings.root.join("build/bench");
    fs::create_dir_all(&out)?;
    let name = format!("{}-{}", machine.date, machine.time.replace(':', ""));
    let json = out.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&report::json(settings, machine, results))?;
    fs::write(&json, text + "\n")?;
    eprintln!("written: {}", json.display());
    let caption = format!(
        "{}, {} cores, {} MiB, {} small files, medians of {}",
        machine.date, machine.cores, settings.mib, settings.files, settings.rounds
    );
    let plot = plot::svg(results, &caption);
    if let Some(plot) = &plot {
        let path = out.join(format!("{name}.svg"));
        fs::write(&path, plot)?;
        eprintln!("written: {}", path.display());
    }
    if settings.update {
        let docs = settings.root.join(DOCS);
        let section = format!("![Wall times in relation to flatfs](benchmarks.svg)\n\n{tables}");
        let text = put_between(&fs::read_to_string(&docs)?, &section)?;
        fs::write(docs, text)?;
        fs::write(
            settings.root.join(PLOT),
            plot.context("a complete run has a plot")?,
        )?;
        eprintln!("{DOCS} and {PLOT} are up to date");
    }
    Ok(())
}

/// Returns the document with other text between its markers.
fn put_between(document: &str, text: &str) -> Result<String> {
    let begin = document.find(BEGIN).context("no begin marker")?;
    let line_end = document[begin..]
        .find('\n')
        .context("no line after the marker")?;
    let end = document.find(END).context("no end marker")?;
    ensure!(
        begin + line_end < end,
        "the markers are the wrong way round"
    );
    let (head, tail) = (&document[..=begin + line_end], &document[end..]);
    Ok(format!("{head}\n{text}\n{tail}"))
}

#[cfg(test)]
mod tests {
    use super::put_between;

    #[test]
    fn replaces_what_is_between_the_markers() {
        let document = "a\n<!-- bench: begin (x) -->\nold\n<!-- bench: end -->\nb\n";
        let once = put_between(document, "new\n").unwrap();
        assert_eq!(
            once,
            "a\n<!-- bench: begin (x) -->\n\nnew\n\n<!-- bench: end -->\nb\n"
        );
        assert_eq!(put_between(&once, "new\n").unwrap(), once);
        assert!(put_between("nothing", "new").is_err());
    }
}
