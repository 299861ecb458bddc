//! The options of every command.

use std::path::PathBuf;

/// Options of every command.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The IPFS repo whose config is read; ~/.ipfs if none is named
    #[arg(
        long,
        value_name = "DIR",
        env = "IPFS_PATH",
        hide_env_values = true,
        global = true
    )]
    pub repo: Option<PathBuf>,
    /// Whether `--repo` was typed, and does not come from IPFS_PATH.
    #[arg(skip)]
    pub repo_named: bool,
    /// A JSON file with the settings, instead of the repo's config
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Sets one key of the configuration (repeatable); an empty value removes it
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Prints one JSON object ("schema": 1) on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes on standard error
    #[arg(long, short, global = true)]
    pub quiet: bool,
}
