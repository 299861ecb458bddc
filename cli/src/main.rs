//! `walrusds`, the operator's command. docs/command.md describes it.
//!
//! | module | job |
//! |---|---|
//! | `options` | the options of every command |
//! | `source` | finding the configuration; `environment` reads WALRUSDS_* and `--set` |
//! | `context` | what every verb works with: printing, progress, Ctrl-C |
//! | `verbs` | one file for each command, and their registry |
//! | `output`, `progress` | numbers, tables, bars |
//! | `node` | the figures of a running node |
//! | `kubo` | the repo of a node on disk: its config, its lock |
//! | `work` | work that changes something: a datastore beside the nodes, its log, its end |
//! | `when` | moments on the command line |
//! | `exit` | exit codes and errors |

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use tokio_util::sync::CancellationToken;

mod context;
mod environment;
mod exit;
mod kubo;
mod node;
mod options;
mod output;
mod progress;
mod source;
mod verbs;
mod when;
mod work;

use context::Context;
use exit::Failure;
use options::Global;
use verbs::Verb;

const AFTER: &str = "\
Without a command: the state in ten lines, and what to do next.

Exit codes: 0 fine, 1 error, 2 usage, 3 something needs your attention,
4 another process is at work (try again later), 130 interrupted.
docs/command.md describes every command and the JSON.";

/// Looks after an IPFS datastore on Walrus: its state, its lifetimes and prices, its repairs.
///
/// Safe beside running nodes. Nothing is changed or paid for unless the command's own help says so.
#[derive(Debug, Parser)]
#[command(name = "walrusds", version, after_help = AFTER, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.format(&mut Cli::command()).exit(),
    };
    cli.global.repo_named = matches.value_source("repo") == Some(ValueSource::CommandLine);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("walrusds: no threads can be started: {e}");
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(run(cli));
    // A thread that still looks up a name must not hold the command up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ExitCode::from(code)
}

async fn run(cli: Cli) -> u8 {
    let context = Context {
        command: verbs::name(cli.verb.as_ref()),
        global: cli.global,
        stop: CancellationToken::new(),
        printed: AtomicBool::new(false),
    };
    tokio::spawn(interrupts(context.stop.clone()));
    match verbs::run(cli.verb, &context, Cli::command()).await {
        Ok(exit) => exit.code(),
        Err(failure) => {
            context.print_failure(&failure);
            failure.code()
        }
    }
}

/// The first Ctrl-C (or SIGTERM) asks the verb to end; the second ends the program at once.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the process's own program"
)]
async fn interrupts(stop: CancellationToken) {
    use tokio::signal::unix::{signal, SignalKind};
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.is_cancelled() {
            std::process::exit(Failure::Interrupted(String::new()).code().into());
        }
        stop.cancel();
    }
}
