//! Starts a Citus cluster of one coordinator and some workers, runs a command with its URL in
//! `WALRUSDS_TEST_CITUS`, and stops the cluster. With that variable set, the command runs on that
//! cluster. Where the extension is not installed, the program says so and runs nothing.
//!
//! Usage: citus-cluster [--durable] WORKERS COMMAND [ARGUMENT...]
//!
//! `--durable`: with PostgreSQL's own settings of what is synced to disk, for measurements.

use std::process::{Command, ExitCode};

use testkit::citus::{given, prepare, Citus, DURABLE, VARIABLE};
use testkit::postgres::Postgres;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let durable = arguments.next_if_eq("--durable").is_some();
    let workers = arguments.next().and_then(|number| number.parse().ok());
    let (Some(workers), Some(program)) = (workers, arguments.next()) else {
        eprintln!("usage: citus-cluster [--durable] WORKERS COMMAND [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(&program);
    command.args(arguments);
    let _cluster = match given() {
        Some(url) => {
            prepare(&Postgres::at(url));
            None
        }
        None if !Citus::is_installed() => {
            println!("skipped: the extension citus is not installed");
            return ExitCode::SUCCESS;
        }
        None => {
            let settings: &[&str] = if durable { &DURABLE } else { &[] };
            let cluster = Citus::start_with(workers, settings);
            cluster.stop_with_process();
            command.env(VARIABLE, cluster.url());
            Some(cluster)
        }
    };
    match command.status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::FAILURE
        }
    }
}
