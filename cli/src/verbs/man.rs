//! `man`: the manual pages.

use std::path::PathBuf;

use clap::Command;

use crate::exit::{Exit, Failure};

/// Prints the manual page, or writes one for each command into a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Writes walrusds.1, walrusds-status.1 and so on into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: Args, command: Command) -> Result<Exit, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("the manual page: {e}"));
    match args.dir {
        Some(dir) => clap_mangen::generate_to(command, dir).map_err(failed)?,
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut text)
                .map_err(failed)?;
            super::print_raw(&text)?;
        }
    }
    Ok(Exit::Fine)
}
