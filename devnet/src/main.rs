//! `walrus-devnet`: a local Walrus.
#![deny(unsafe_code, missing_docs)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use tokio::signal::unix::{signal, SignalKind};
use walrus_devnet::{Devnet, Jwt, JwtAlgorithm, Options, Role};

/// A local Walrus: publisher, aggregator and admin endpoints in one process.
///
/// It speaks the HTTP interface of the real daemons, gives true blob IDs, bills by the true
/// formula and keeps an epoch clock that can be turned (see /admin in the README). For tests and
/// trials; nothing it stores is stored anywhere else.
#[derive(Parser, Debug)]
#[command(name = "walrus-devnet", version)]
struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:31415")]
    listen: SocketAddr,

    /// What to serve there
    #[arg(long, value_enum, default_value_t = RoleArg::Daemon)]
    role: RoleArg,

    /// One more address onto the same network, e.g. aggregator=127.0.0.1:31416 (repeatable)
    #[arg(long, value_name = "ROLE=ADDR", value_parser = parse_extra)]
    also: Vec<(Role, SocketAddr)>,

    /// Keep blobs and their registrations in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "memory")]
    data: Option<PathBuf>,

    /// Keep everything in memory (the default without --data)
    #[arg(long)]
    memory: bool,

    /// Number of shards; fewer than the 1000 of the real networks make IDs cheaper, and others
    #[arg(long, value_name = "N", default_value_t = 1000)]
    shards: u16,

    /// Length of an epoch, e.g. 10s, 1d, 14d [default: until advanced through /admin]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    epoch: Option<Duration>,

    /// The epoch to begin with
    #[arg(long, value_name = "N", default_value_t = 1)]
    first_epoch: u32,

    /// Blob IDs that are a fast hash of the content rather than the true ones
    #[arg(long)]
    cheap_ids: bool,

    /// How long an upload takes on top
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency_put: u64,

    /// How long a read takes on top
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency_get: u64,

    /// Largest blob that can be put, e.g. 10MiB
    #[arg(long, value_name = "BYTES", default_value = "10MiB", value_parser = parse_size)]
    max_body: u64,

    /// Largest quilt form that can be put
    #[arg(long, value_name = "BYTES", default_value = "100MiB", value_parser = parse_size)]
    max_quilt_body: u64,

    /// Largest blob the aggregator serves as a whole; larger ones get 403
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    max_blob_size: Option<u64>,

    /// Uploads that run at once, per route; as many may wait, more get 429; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_concurrency: usize,

    /// Reads that run at once, per route; 320 more may wait; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_concurrent_reads: usize,

    /// The publisher has one wallet and keeps what it registers (for reuse_resources)
    #[arg(long)]
    single_wallet: bool,

    /// Demand a JWT for PUTs, decoded with this secret (text, or hex after 0x)
    #[arg(
        long,
        value_name = "SECRET",
        env = "WALRUS_DEVNET_JWT_SECRET",
        hide_env_values = true
    )]
    jwt_decode_secret: Option<String>,

    /// Algorithm of the JWT
    #[arg(long, value_name = "ALG", default_value = "HS256")]
    jwt_algorithm: JwtAlgorithm,

    /// Demand that the JWT lives exactly so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    jwt_expiring_sec: u64,

    /// Demand that the upload is what the JWT says
    #[arg(long)]
    jwt_verify_upload: bool,

    /// Write the port to this file once ready
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,

    /// Say nothing on stderr
    #[arg(long, short, action = ArgAction::SetTrue)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    Publisher,
    Aggregator,
    Daemon,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Publisher => Role::Publisher,
            RoleArg::Aggregator => Role::Aggregator,
            RoleArg::Daemon => Role::Daemon,
        }
    }
}

fn parse_extra(text: &str) -> Result<(Role, SocketAddr), String> {
    let (role, address) = text.split_once('=').ok_or("expected ROLE=ADDR")?;
    let address = address
        .parse()
        .map_err(|why| format!("{address:?}: {why}"))?;
    Ok((role.parse()?, address))
}

/// Splits a number from the unit behind it.
fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number = number
        .parse()
        .map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, unit.trim()))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err(format!("unknown unit {unit:?}: one of ms, s, m, h, d, w")),
    };
    match number.checked_mul(ms) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err("the duration must be more than zero".to_owned()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: e.g. KiB, MiB, GiB, kB, MB, GB"
            ))
        }
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| "the size is too large".to_owned())
}

fn parse_secret(text: &str) -> Result<Vec<u8>, String> {
    let Some(digits) = text.strip_prefix("0x") else {
        return Ok(text.as_bytes().to_vec());
    };
    let wrong = || "the secret after 0x is not hex".to_owned();
    if digits.len() % 2 != 0 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

impl Args {
    fn options(&self) -> Result<Options, String> {
        let secret = self.jwt_decode_secret.as_deref().map(parse_secret);
        let jwt = Jwt {
            secret: secret.transpose()?,
            algorithm: self.jwt_algorithm,
            expiring_sec: self.jwt_expiring_sec,
            verify_upload: self.jwt_verify_upload,
        };
        Ok(Options {
            listen: self.listen,
            role: self.role.into(),
            data: self.data.clone(),
            shards: self.shards,
            cheap_ids: self.cheap_ids,
            first_epoch: self.first_epoch,
            epoch_duration: self.epoch,
            latency_put: Duration::from_millis(self.latency_put),
            latency_get: Duration::from_millis(self.latency_get),
            max_body: self.max_body,
            max_quilt_body: self.max_quilt_body,
            max_blob_size: self.max_blob_size,
            publisher_concurrency: self.max_concurrency,
            publisher_buffer: self.max_concurrency,
            aggregator_concurrency: self.max_concurrent_reads,
            single_wallet: self.single_wallet,
            jwt: Some(jwt),
            grace: Duration::from_secs(5),
            ..Options::default()
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(&args));
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Err(why) => Err(why.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("walrus-devnet: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), String> {
    let log = |message: &str| {
        if !args.quiet {
            eprintln!("{message}");
        }
    };
    // Before the first line of output: a process that waits for it may send a signal right after.
    let mut terminate = signal(SignalKind::terminate()).map_err(|why| why.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|why| why.to_string())?;

    let net = Devnet::start(args.options()?)
        .await
        .map_err(|why| format!("{}: {why}", args.listen))?;
    for (role, address) in &args.also {
        let (_, url) = net
            .add_endpoint(*role, *address)
            .map_err(|why| format!("{address}: {why}"))?;
        log(&format!("also listening on {url} ({role:?})"));
    }
    if let Some(file) = &args.port_file {
        let port = net.address().port();
        let temporary = file.with_extension("tmp");
        std::fs::write(&temporary, format!("{port}\n"))
            .and_then(|()| std::fs::rename(&temporary, file))
            .map_err(|why| format!("{}: {why}", file.display()))?;
    }
    log(&format!(
        "{} shards, {} blob IDs, epoch {}, {}",
        args.shards,
        if args.cheap_ids { "cheap" } else { "true" },
        net.epoch(),
        match &args.data {
            Some(root) => format!("data in {}", root.display()),
            None => "data in memory".to_owned(),
        }
    ));
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "listening on {}", net.url());
    let _ = stdout.flush();

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    log("stopping");
    net.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["walrus-devnet"]).unwrap();
        let options = args.options().unwrap();
        let defaults = Options::default();
        assert_eq!(options.max_body, defaults.max_body);
        assert_eq!(options.max_quilt_body, defaults.max_quilt_body);
        assert_eq!(
            options.publisher_concurrency,
            defaults.publisher_concurrency
        );
        assert_eq!(options.publisher_buffer, defaults.publisher_buffer);
        assert_eq!(
            options.aggregator_concurrency,
            defaults.aggregator_concurrency
        );
        assert_eq!(options.shards, defaults.shards);
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("14d"), Ok(Duration::from_secs(14 * 86_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0s", "s", "-1s", "1y", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("1000"), Ok(1000));
        assert!(parse_size("1x").is_err());
        assert_eq!(parse_secret("0x0aff"), Ok(vec![10, 255]));
        assert_eq!(parse_secret("text"), Ok(b"text".to_vec()));
        assert!(parse_secret("0xabc").is_err());
    }
}
