//! The operator's `walrus` program.
//!
//! It is called with flags and `--json` rather than in its JSON mode, which forgets the
//! configuration and the wallet that `walrusCommand` names. Changes go one after the other: two at
//! a time would spend the same coins for their gas.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::answers::{self, Flaw};
use super::{object_id, said, Chain, Epoch, Failure, OwnedBlob};
use crate::command::{self, Bounds, NoEnd};
use crate::error::{Error, ErrorKind, Result};
use crate::walrus::cost::Prices;

/// Most output of a question or a change that is taken (bytes).
const OUTPUT: usize = 16 << 20;
/// Most output of a list (bytes): half a million blobs.
const LIST_OUTPUT: usize = 256 << 20;
/// How many blobs one run deletes, each in a transaction of its own.
const DELETED_AT_A_TIME: usize = 20;
/// A run that deletes several may take as long as so many other changes: what is live waits for it.
const DELETION_WAITS: u32 = 4;

/// The operator's `walrus` program and the options that stand before each of its commands, such as
/// `--config` and `--wallet`. `Debug` shows the program alone, since options may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct WalrusCommand {
    program: String,
    options: Vec<String>,
}

impl WalrusCommand {
    /// A program, by name or by path, and its options.
    pub fn new(program: impl Into<String>, options: Vec<String>) -> Self {
        WalrusCommand {
            program: program.into(),
            options,
        }
    }

    /// The program, by name or by path.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The options before each command.
    pub fn options(&self) -> &[String] {
        &self.options
    }

    /// Makes a relative path of the program relative to `repo`. A name without a slash is looked
    /// for in PATH.
    pub(crate) fn resolve(&mut self, repo: &Path) {
        if self.program.contains('/') {
            let path = repo.join(&self.program);
            // A path that is no text cannot be in a configuration, but `repo` may be one.
            if let Some(path) = path.to_str() {
                self.program = path.to_owned();
            }
        }
    }
}

impl fmt::Debug for WalrusCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalrusCommand({:?}, ..)", self.program)
    }
}

/// How long runs of the program may take. A run that takes longer is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// The epoch, the prices.
    pub question: Duration,
    /// The list of blobs, which the program gathers page by page.
    pub list: Duration,
    /// An extension, or the deletion of one blob; a run that deletes several may take so much
    /// longer.
    pub change: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        TimeLimits {
            question: Duration::from_secs(120),
            list: Duration::from_secs(900),
            change: Duration::from_secs(180),
        }
    }
}

/// The chain, through the operator's program.
#[derive(Debug)]
pub struct Program {
    command: WalrusCommand,
    limits: TimeLimits,
    /// Held by the change that is under way.
    turn: Mutex<()>,
}

impl Program {
    /// The program is started by the first call.
    pub fn new(command: WalrusCommand) -> Self {
        Program {
            command,
            limits: TimeLimits::default(),
            turn: Mutex::default(),
        }
    }

    /// With other time limits.
    #[must_use]
    #[cfg_attr(not(any(test, feature = "internals")), allow(dead_code))]
    pub fn with_limits(self, limits: TimeLimits) -> Self {
        Program { limits, ..self }
    }

    /// An error of the command `what`.
    fn failed(&self, failure: Failure, what: &str, why: impl fmt::Display) -> Error {
        let program = &self.command.program;
        failure.error(format!("walrusCommand ({program} {what}): {why}"))
    }

    /// Runs the program and returns what it printed.
    async fn run(&self, what: &str, arguments: &[&str], bounds: Bounds) -> Result<Vec<u8>> {
        let options = &self.command.options;
        let all: Vec<&str> = (options.iter().map(String::as_str))
            .chain(["--json"])
            .chain(what.split(' '))
            .chain(arguments.iter().copied())
            .collect();
        let ended = command::run(&self.command.program, &all, bounds).await;
        let (failure, why) = match ended {
            Ok(ended) if ended.status.success() && !ended.cut => return Ok(ended.output),
            Ok(ended) if ended.status.success() => (
                Failure::Unusable,
                format!("it printed more than {} MiB", bounds.output >> 20),
            ),
            Ok(ended) => {
                let words = said::last_words(&ended.last_words, options);
                let failure = match ended.status.code() {
                    // Of the shell and its like: no such program; of the program: no such flag.
                    Some(2 | 126 | 127) => Failure::Unusable,
                    _ => said::failure(&words),
                };
                let colon = if words.is_empty() { "" } else { ": " };
                (failure, format!("{}{colon}{words}", ended.status))
            }
            Err(NoEnd::Start(e)) => {
                let why = format!("cannot start it: {e}");
                return Err(self.failed(Failure::Unusable, what, why));
            }
            Err(NoEnd::TimedOut(time)) => {
                let why = format!(
                    "no answer within {} s, so it was killed",
                    time.as_secs_f32()
                );
                (Failure::Unclear, why)
            }
            Err(NoEnd::Io(e)) => (Failure::Unclear, e.to_string()),
        };
        let why = said::explained(failure, why);
        Err(self.failed(failure, what, why))
    }

    /// Asks for something that changes nothing.
    async fn ask<T>(
        &self,
        what: &str,
        bounds: Bounds,
        read: impl FnOnce(&[u8]) -> std::result::Result<T, Flaw>,
    ) -> Result<T> {
        let output = self.run(what, &[], bounds).await?;
        let told = read(&output);
        told.map_err(|flaw| self.misunderstood(Failure::Unusable, what, &flaw))
    }

    fn misunderstood(&self, failure: Failure, what: &str, flaw: &str) -> Error {
        self.failed(
            failure,
            what,
            format!("its answer is not understood: {flaw}"),
        )
    }

    async fn delete_some(&self, object_ids: &[String]) -> Result<Vec<Result<()>>> {
        const WHAT: &str = "delete";
        let mut arguments = vec!["--yes", "--no-status-check", "--object-ids"];
        arguments.extend(object_ids.iter().map(String::as_str));
        let count = u32::try_from(object_ids.len()).unwrap_or(u32::MAX);
        let bounds = Bounds {
            time: self.limits.change.saturating_mul(count.min(DELETION_WAITS)),
            output: OUTPUT,
        };
        let output = self.run(WHAT, &arguments, bounds).await?;
        let told = answers::deleted(&output, object_ids, &self.command.options);
        let told = told.map_err(|flaw| self.misunderstood(Failure::Unclear, WHAT, &flaw))?;
        let with_context = |outcome: Result<()>| {
            outcome
                .map_err(|e| e.context(format!("walrusCommand ({} delete)", self.command.program)))
        };
        Ok(told.into_iter().map(with_context).collect())
    }
}

#[async_trait]
impl Chain for Program {
    async fn epoch(&self) -> Result<Epoch> {
        let bounds = Bounds {
            time: self.limits.question,
            output: OUTPUT,
        };
        self.ask("info epoch", bounds, answers::epoch).await
    }

    async fn prices(&self) -> Result<Prices> {
        let bounds = Bounds {
            time: self.limits.question,
            output: OUTPUT,
        };
        self.ask("info price", bounds, answers::prices).await
    }

    async fn extend(&self, object: &str, epochs: u32, shared: bool) -> Result<()> {
        const WHAT: &str = "extend";
        let object = object_id(object)?;
        if epochs == 0 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a blob cannot be extended by 0 epochs",
            ));
        }
        let count = epochs.to_string();
        let mut arguments = vec!["--blob-obj-id", &object, "--epochs-extended", &count];
        if shared {
            arguments.push("--shared");
        }
        let bounds = Bounds {
            time: self.limits.change,
            output: OUTPUT,
        };
        let _turn = self.turn.lock().await;
        let output = self.run(WHAT, &arguments, bounds).await?;
        match answers::extended(&output) {
            Ok(told) if told == epochs => Ok(()),
            Ok(told) => {
                let why = format!(
                    "it extended blob object {object} by {told} epochs instead of {epochs}"
                );
                Err(self.failed(Failure::Unclear, WHAT, why))
            }
            Err(flaw) => Err(self.misunderstood(Failure::Unclear, WHAT, &flaw)),
        }
    }

    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        let normal = object_ids.iter().map(|id| object_id(id));
        let normal: Vec<String> = normal.collect::<Result<_>>()?;
        let _turn = self.turn.lock().await;
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(normal.len());
        for some in normal.chunks(DELETED_AT_A_TIME) {
            match self.delete_some(some).await {
                Ok(told) => outcomes.extend(told),
                // A run that fails as a whole fails for the next ones, too.
                Err(e) => {
                    outcomes.extend(some.iter().map(|_| Err(e.clone())));
                    break;
                }
            }
        }
        Ok(object_ids.iter().cloned().zip(outcomes).collect())
    }

    async fn list(&self) -> Result<Vec<OwnedBlob>> {
        let bounds = Bounds {
            time: self.limits.list,
            output: LIST_OUTPUT,
        };
        self.ask("list-blobs", bounds, answers::blobs).await
    }
}
