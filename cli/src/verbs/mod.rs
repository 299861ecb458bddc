//! The registry of verbs. A new verb is a file with `Args` and `run`, and three lines here.

use clap::{Command, Subcommand};

use crate::context::Context;
use crate::exit::{Exit, Failure};

mod adopt_staging;
mod bench;
mod check;
mod completions;
mod convert_repo;
mod doctor;
mod export;
mod forget;
mod forget_node;
mod import;
mod init;
mod inspect;
mod man;
mod plan;
mod rebuild_index;
mod renew;
mod repack;
mod repair;
mod status;
mod undelete;

/// A command.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Status(status::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Renew(renew::Args),
    Repack(repack::Args),
    Undelete(undelete::Args),
    Forget(forget::Args),
    ForgetNode(forget_node::Args),
    Export(export::Args),
    RebuildIndex(rebuild_index::Args),
    AdoptStaging(adopt_staging::Args),
    Import(import::Args),
    Init(init::Args),
    ConvertRepo(convert_repo::Args),
    Doctor(doctor::Args),
    Check(check::Args),
    Repair(repair::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The name of a verb in the JSON; no verb is `status`.
pub fn name(verb: Option<&Verb>) -> &'static str {
    match verb {
        None | Some(Verb::Status(_)) => "status",
        Some(Verb::Inspect(_)) => "inspect",
        Some(Verb::Plan(_)) => "plan",
        Some(Verb::Renew(_)) => "renew",
        Some(Verb::Repack(_)) => "repack",
        Some(Verb::Undelete(_)) => "undelete",
        Some(Verb::Forget(_)) => "forget",
        Some(Verb::ForgetNode(_)) => "forget-node",
        Some(Verb::Export(_)) => "export",
        Some(Verb::RebuildIndex(_)) => "rebuild-index",
        Some(Verb::AdoptStaging(_)) => "adopt-staging",
        Some(Verb::Import(_)) => "import",
        Some(Verb::Init(_)) => "init",
        Some(Verb::ConvertRepo(_)) => "convert-repo",
        Some(Verb::Doctor(_)) => "doctor",
        Some(Verb::Check(_)) => "check",
        Some(Verb::Repair(_)) => "repair",
        Some(Verb::Bench(_)) => "bench",
        Some(Verb::Completions(_)) => "completions",
        Some(Verb::Man(_)) => "man",
    }
}

/// Carries a verb out. `command` is the whole command line, for its documentation.
pub async fn run(verb: Option<Verb>, context: &Context, command: Command) -> Result<Exit, Failure> {
    match verb {
        None => status::brief(context).await,
        Some(Verb::Status(args)) => status::run(args, context).await,
        Some(Verb::Inspect(args)) => inspect::run(args, context).await,
        Some(Verb::Plan(args)) => plan::run(args, context).await,
        Some(Verb::Renew(args)) => renew::run(args, context).await,
        Some(Verb::Repack(args)) => repack::run(args, context).await,
        Some(Verb::Undelete(args)) => undelete::run(args, context).await,
        Some(Verb::Forget(args)) => forget::run(args, context).await,
        Some(Verb::ForgetNode(args)) => forget_node::run(args, context).await,
        Some(Verb::Export(args)) => export::run(args, context).await,
        Some(Verb::RebuildIndex(args)) => rebuild_index::run(args, context).await,
        Some(Verb::AdoptStaging(args)) => adopt_staging::run(args, context).await,
        Some(Verb::Import(args)) => import::run(args, context).await,
        Some(Verb::Init(args)) => init::run(args, context).await,
        Some(Verb::ConvertRepo(args)) => convert_repo::run(args, context).await,
        Some(Verb::Doctor(args)) => doctor::run(args, context).await,
        Some(Verb::Check(args)) => check::run(args, context).await,
        Some(Verb::Repair(args)) => repair::run(args, context).await,
        Some(Verb::Bench(args)) => bench::run(args, context).await,
        Some(Verb::Completions(args)) => completions::run(args, command),
        Some(Verb::Man(args)) => man::run(args, command),
    }
}

/// Prints text that is no report.
fn print_raw(text: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text).and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::NoReader,
        _ => Failure::Failed(format!("standard output: {e}")),
    })
}
