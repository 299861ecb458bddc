//! `completions`: what a shell needs to complete the command line.

use clap::Command;
use clap_complete::Shell;

use crate::exit::{Exit, Failure};

/// Prints the completions for a shell
///
/// bash: walrusds completions bash > ~/.local/share/bash-completion/completions/walrusds
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: Args, mut command: Command) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "walrusds", &mut text);
    super::print_raw(&text)?;
    Ok(Exit::Fine)
}
