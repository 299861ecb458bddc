//! `init`: a new or an empty repo is set up.

use std::path::Path;

use serde_json::json;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::kubo::lock::RepoLock;
use crate::source::whole_repo;

mod cache;
pub mod settings;
mod write;

/// Sets up a new or an empty repo
///
/// Asks for publisher, aggregator, network and index (or takes them from options and WALRUSDS_*
/// variables), tests each as `doctor` does, and writes config and datastore_spec. A new repo is
/// made with `ipfs init` first. A repo that holds blocks is refused: nothing is ever written over
/// data. Other settings: --set KEY=VALUE.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: settings::Settings,
    /// The program that makes a new repo
    #[arg(long, value_name = "PROGRAM", default_value = "ipfs")]
    ipfs: String,
    /// Writes the repo although a test shows something that does not work
    #[arg(long)]
    force: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let repo = whole_repo(&context.global)?;
    let state = write::look(&repo)?;
    let given = settings::given(&args.settings, context)?;
    let (spec, config) = settings::complete(given, args.force, context, &repo).await?;
    if state == write::State::New {
        context.note(format!("making a repo with: {} init", args.ipfs));
        make(&args.ipfs, &repo).await?;
        if write::look(&repo)? == write::State::New {
            return Err(Failure::Failed(format!(
                "{} init failed: it has made no repo in {}",
                args.ipfs,
                repo.display()
            )));
        }
    }
    let held = RepoLock::take(&repo, "")?;
    // The questions and the tests took their time, and a node may have stored blocks meanwhile.
    write::look(&repo)?;
    let set_aside = write::convert(&repo, &spec, &held)?;
    let next = format!("IPFS_PATH={} ipfs daemon", repo.display());
    let result = json!({
        "repo": repo.display().to_string(),
        "datastore": config.disk_spec(),
        "set_aside": set_aside.as_ref().map(|path| path.display().to_string()),
        "next": next,
    });
    context.print(&result, || {
        let aside = set_aside.map_or_else(String::new, |path| {
            format!("The empty flatfs was moved to {}.\n", path.display())
        });
        format!(
            "{} keeps its blocks on Walrus now.\n{aside}Next, with an ipfs that has the plugin:\n  {next}\n",
            repo.display()
        )
    })?;
    Ok(Exit::Fine)
}

/// Makes a repo with Kubo's own program, which makes the keys.
async fn make(ipfs: &str, repo: &Path) -> Result<(), Failure> {
    let program = ipfs.to_owned();
    let repo = repo.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        std::process::Command::new(&program)
            .arg("init")
            .env("IPFS_PATH", &repo)
            .stdin(std::process::Stdio::null())
            .output()
    });
    let made = made.await.map_err(|e| Failure::Failed(e.to_string()))?;
    let output = made.map_err(|e| {
        Failure::Failed(format!(
            "{ipfs} cannot be run: {e}; install Kubo, name it with --ipfs, or make a repo by `ipfs init` first"
        ))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "{ipfs} init failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}
