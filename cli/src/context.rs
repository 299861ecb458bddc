//! What every verb works with: the options, the way out, the operator's Ctrl-C.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walrusds::datastore::Inspection;

use crate::exit::{Failure, Report};
use crate::options::Global;
use crate::output::{quoted, wrapped_err};
use crate::progress::{Progress, Unit};
use crate::source::Source;

/// The version of the JSON: it grows when a field is removed or changes its meaning.
pub const SCHEMA: u32 = 1;

/// The JSON of every command: a result or an error.
#[derive(Serialize)]
struct Envelope<'a, T: Serialize> {
    schema: u32,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Report>,
}

pub struct Context {
    pub global: Global,
    /// The name of the verb, for the JSON.
    pub command: &'static str,
    /// Set by Ctrl-C and SIGTERM.
    pub stop: CancellationToken,
    /// Whether the JSON was printed: there is one document.
    pub printed: AtomicBool,
}

impl Context {
    /// Finds the configuration.
    pub fn source(&self) -> Result<Source, Failure> {
        Source::find(&self.global)
    }

    /// A command line of this program that goes on with the same datastore: `command`, and the
    /// options that lead there. What `--set` was given may be secret, so it is only named.
    pub fn again(&self, command: &str) -> String {
        let mut line = format!("walrusds {command}");
        let global = &self.global;
        // A directory without a config is no repo that can be named.
        let repo = global.repo.as_ref();
        let repo = repo.filter(|repo| global.repo_named || repo.join("config").exists());
        for (option, path) in [("repo", repo), ("config", global.config.as_ref())] {
            if let Some(path) = path {
                line.push_str(&format!(" --{option} {}", quoted(path)));
            }
        }
        if !self.global.set.is_empty() {
            line.push_str(" and the same --set");
        }
        line
    }

    /// Opens the index to look, beside the nodes that work with it.
    pub async fn inspect(&self) -> Result<(Source, Inspection), Failure> {
        let source = self.source()?;
        let inspection = Inspection::open(source.config.clone(), &source.repo);
        let inspection = self.or_stop("nothing was changed", inspection).await?;
        Ok((source, inspection))
    }

    /// Waits for work that may be dropped at any moment. `resume` tells the operator who interrupts
    /// it how to go on.
    pub async fn or_stop<T, E: Into<Failure>>(
        &self,
        resume: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Failure::Interrupted(resume.to_owned())),
            done = work => done.map_err(Into::into),
        }
    }

    /// Prints the outcome: `text` for people, `result` with `--json`.
    pub fn print<T: Serialize>(
        &self,
        result: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        self.print_both(result, None, text)
    }

    /// As [`print`](Self::print), where the command fails as well: the JSON holds both. The caller
    /// returns the failure.
    pub fn print_both<T: Serialize>(
        &self,
        result: &T,
        failure: Option<&Failure>,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let out = match self.global.json {
            true => self.envelope(Some(result), failure.map(Failure::report))?,
            false => text(),
        };
        self.printed.store(true, Relaxed);
        self.write(&out)
    }

    /// Prints an error: for people on standard error, with `--json` on standard output, too.
    pub fn print_failure(&self, failure: &Failure) {
        if matches!(failure, Failure::NoReader) {
            return;
        }
        if self.global.json && !self.printed.load(Relaxed) {
            let report = Some(failure.report());
            if let Ok(text) = self.envelope::<()>(None, report) {
                let _ = self.write(&text);
            }
        }
        let text = wrapped_err(&format!("walrusds: {failure}"), 2);
        let _ = write!(std::io::stderr(), "{text}");
    }

    fn envelope<T: Serialize>(
        &self,
        result: Option<&T>,
        error: Option<Report>,
    ) -> Result<String, Failure> {
        let envelope = Envelope {
            schema: SCHEMA,
            command: self.command,
            result,
            error,
        };
        let text = serde_json::to_string(&envelope);
        text.map_err(|e| Failure::Failed(format!("the result cannot be put into JSON: {e}")))
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let line_end = if text.ends_with('\n') { "" } else { "\n" };
        let written = write!(out, "{text}{line_end}").and_then(|()| out.flush());
        written.map_err(|e| match e.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::NoReader,
            _ => Failure::Failed(format!("standard output: {e}")),
        })
    }

    /// A line for the operator on standard error.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.global.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// What a look at the index had to say, on standard error.
    pub fn notes(&self, inspection: &Inspection) {
        while let Some(line) = inspection.next_log_line() {
            self.note(format!("{}: {}", line.level.as_str(), line.message));
        }
    }

    /// A display of long work: a bar on a terminal, plain lines otherwise.
    pub fn progress(&self, what: &str, unit: Unit) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress::new(what, unit, self.global.quiet, terminal)
    }
}
