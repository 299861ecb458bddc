//! Calls of the datastore without Kubo: `tests/bench/ds`, through the Go shim.

use std::process::{Command, Stdio};

use anyhow::{ensure, Context as _, Result};

use crate::results::Calls;
use crate::settings::Settings;

/// Runs the program on servers of its own.
pub fn measure(settings: &Settings) -> Result<Vec<Calls>> {
    // It sees BENCH_SMOKE as well.
    let out = Command::new(settings.root.join("scripts/bench-ds.sh"))
        .arg("-json")
        .env("TMPDIR", &settings.dir)
        .stderr(Stdio::inherit())
        .output()
        .context("running scripts/bench-ds.sh")?;
    ensure!(
        out.status.success(),
        "scripts/bench-ds.sh ended with {}",
        out.status
    );
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a result: {line}")))
        .collect()
}
