//! The settings of a datastore that is set up: from options, variables and answers, tested as the
//! doctor tests them.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::{json, Map, Value};
use walrusds::admin::doctor::{self, aggregator, publisher, Diagnosis, Health};
use walrusds::Config;

use super::super::doctor::line;
use super::cache;
use crate::context::Context;
use crate::environment;
use crate::exit::Failure;
use crate::kubo::file::free_at;
use crate::output::wrapped_err;

/// The settings that have options of their own.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// Base URLs of publishers, separated by commas
    #[arg(long, value_name = "URL")]
    publisher: Option<String>,
    /// Base URLs of aggregators, separated by commas
    #[arg(long, value_name = "URL")]
    aggregator: Option<String>,
    /// mainnet or testnet; by the publisher's URL if it is not given
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// An SQLite file as index, for a single node; relative to the repo
    #[arg(long, value_name = "FILE")]
    index_path: Option<String>,
    /// A file with the URL of a PostgreSQL database as index, which several nodes may share (the
    /// variable WALRUSDS_POSTGRES_URL does as well)
    #[arg(long, value_name = "FILE", conflicts_with = "index_path")]
    postgres_url_file: Option<std::path::PathBuf>,
}

/// The defaults of the init profile (go-shim/envspec), where nothing else is said.
fn settle(spec: &mut Map<String, Value>) {
    let lacks = |spec: &Map<String, Value>, key: &str| !spec.contains_key(key);
    if lacks(spec, "postgresURL") && lacks(spec, "indexPath") {
        spec.insert("indexPath".into(), "walrusds-index.sqlite".into());
    }
    match spec.get("journalPath").and_then(Value::as_str) {
        Some("off") => drop(spec.remove("journalPath")),
        Some(_) => {}
        None => drop(spec.insert("journalPath".into(), "walrusds-journal".into())),
    }
    if spec.contains_key("journalPath") && lacks(spec, "drainPartialPacks") {
        spec.insert("drainPartialPacks".into(), false.into());
    }
    if lacks(spec, "network") && lacks(spec, "epochDurationSeconds") {
        let url = spec.get("publisherURL").and_then(Value::as_str);
        let testnet = url.is_some_and(|url| url.to_ascii_lowercase().contains("testnet"));
        let network = if testnet { "testnet" } else { "mainnet" };
        spec.insert("network".into(), network.into());
    }
    if lacks(spec, "epochs") {
        let mainnet = spec.get("network") == Some(&Value::from("mainnet"));
        let epochs = if mainnet { 26 } else { 14 };
        spec.insert("epochs".into(), epochs.into());
    }
    let only_reads = spec.get("disableFlush") == Some(&Value::Bool(true));
    let unknown = lacks(spec, "network") && spec.get("epochDurationSeconds") == Some(&json!(0));
    if lacks(spec, "renewIntervalSeconds") && !only_reads && !unknown {
        spec.insert("renewIntervalSeconds".into(), 3600.into());
    }
    if lacks(spec, "keepDeletedSeconds") {
        spec.insert("keepDeletedSeconds".into(), (7 * 86_400).into());
    }
}

/// The configuration of these settings with the defaults.
fn settled(spec: &Map<String, Value>) -> Result<Config, Failure> {
    let mut whole = spec.clone();
    settle(&mut whole);
    checked(&whole)
}

/// The configuration of these settings.
pub fn checked(spec: &Map<String, Value>) -> Result<Config, Failure> {
    let text = Value::Object(spec.clone()).to_string();
    Config::from_json(&text).map_err(Failure::from)
}

/// Asks on the terminal; an empty answer is the default.
async fn ask(context: &Context, question: &str, default: &str) -> Result<String, Failure> {
    let shown = match default {
        "" => String::new(),
        default => format!(" [{default}]"),
    };
    loop {
        let mut err = std::io::stderr();
        let _ = write!(err, "{question}{shown}: ");
        let _ = err.flush();
        let read = async {
            let line = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                std::io::stdin().read_line(&mut line).map(|n| (n, line))
            });
            line.await.map_err(|e| Failure::Failed(e.to_string()))
        };
        let read = context.or_stop("nothing was written", read).await;
        if read.is_err() || matches!(read, Ok(Ok((0, _)))) {
            // What follows does not stand in the line of the question.
            let _ = writeln!(err);
        }
        match read? {
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                again(context, "the answer is no UTF-8 text");
            }
            Ok((0, _)) | Err(_) => {
                return Err(Failure::Usage(
                    "the answers ended too early: give them as options (walrusds init --help)"
                        .into(),
                ))
            }
            Ok((_, line)) => {
                return Ok(match line.trim() {
                    "" => default.to_owned(),
                    line => line.to_owned(),
                })
            }
        }
    }
}

/// Says why a question is asked again.
fn again(context: &Context, why: impl std::fmt::Display) {
    context.note(wrapped_err(&why.to_string(), 2).trim_end());
}

/// Asks for a setting until the answer is one that the configuration takes.
async fn choose(
    context: &Context,
    spec: &mut Map<String, Value>,
    question: &str,
    default: &str,
    set: impl Fn(&mut Map<String, Value>, String),
) -> Result<(), Failure> {
    // What is wrong with the other settings is no reason to ask for this one again.
    settled(spec)?;
    loop {
        let mut chosen = spec.clone();
        set(&mut chosen, ask(context, question, default).await?);
        match settled(&chosen) {
            Ok(_) => {
                *spec = chosen;
                return Ok(());
            }
            Err(e) => again(context, e),
        }
    }
}

/// The answer to one question, tested: given beforehand, or asked for until it works.
async fn answer(
    context: &Context,
    spec: &mut Map<String, Value>,
    key: &str,
    question: &str,
    force: bool,
) -> Result<(), Failure> {
    loop {
        let given = spec.contains_key(key);
        if !given {
            if context.global.json || !std::io::stdin().is_terminal() {
                let option = if key == "publisherURL" {
                    "--publisher"
                } else {
                    "--aggregator"
                };
                return Err(Failure::Usage(format!(
                    "{option} is missing (or {}), and there is no terminal to ask on",
                    environment::variable(key)
                )));
            }
            let text = ask(context, question, "").await?;
            if text.is_empty() {
                continue;
            }
            spec.insert(key.to_owned(), text.into());
        }
        let tested = async {
            // The other URL may not be known yet.
            let mut whole = spec.clone();
            let url = whole[key].clone();
            for other in ["publisherURL", "aggregatorURL"] {
                whole.entry(other).or_insert(url.clone());
            }
            let config = settled(&whole)?;
            let urls = match key {
                "publisherURL" => &config.publishers,
                _ => &config.aggregators,
            };
            let mut found = Vec::new();
            for url in urls {
                found.extend(match key {
                    "publisherURL" => publisher(url, &config).await,
                    _ => aggregator(url, None).await,
                });
            }
            Ok::<_, Failure>(found)
        };
        let tested = context.or_stop("nothing was written", tested).await;
        let trouble = match tested {
            Ok(found) => {
                told(context, &found);
                let bad = found.iter().any(|d| d.health == Health::Bad);
                bad.then(|| Failure::Failed(format!(
                    "{key} does not work, as said above: correct it, or add --force to write the repo all the same"
                )))
            }
            Err(stopped @ Failure::Interrupted(_)) => return Err(stopped),
            Err(e) => Some(e),
        };
        match trouble {
            None => return Ok(()),
            Some(_) if force && given => return Ok(()),
            Some(e) if given => return Err(e),
            Some(Failure::Failed(_)) => {
                again(context, format_args!("{key} does not work, as said above"));
                spec.remove(key);
            }
            Some(e) => {
                again(context, e);
                spec.remove(key);
            }
        }
    }
}

fn told(context: &Context, found: &[Diagnosis]) {
    for diagnosis in found {
        context.note(line(diagnosis).trim_end());
    }
}

/// The settings that were given: the environment, options, `--set`.
pub fn given(args: &Settings, context: &Context) -> Result<Map<String, Value>, Failure> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (mut spec, unknown) = environment::settings(variables)?;
    for name in unknown {
        context.note(format!("{name} is none of the settings, and has no effect"));
    }
    let mut set = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            spec.insert(key.to_owned(), value.clone().into());
        }
    };
    set("publisherURL", &args.publisher);
    set("aggregatorURL", &args.aggregator);
    set("network", &args.network);
    set("indexPath", &args.index_path);
    if let Some(file) = &args.postgres_url_file {
        let bad = |e: &dyn std::fmt::Display| {
            Failure::Failed(format!("--postgres-url-file {}: {e}", file.display()))
        };
        let url = std::fs::read_to_string(file).map_err(|e| bad(&e))?;
        if url.trim().is_empty() {
            return Err(bad(&"the file is empty"));
        }
        spec.insert("postgresURL".into(), url.trim().into());
        spec.remove("indexPath");
    } else if args.index_path.is_some() {
        spec.remove("postgresURL");
    }
    for setting in &context.global.set {
        environment::set(&mut spec, setting)?;
    }
    Ok(spec)
}

/// Completes what was given: asks for what is missing, and tests everything.
///
/// # Errors
/// Something does not work, unless it is `force`d.
pub async fn complete(
    mut spec: Map<String, Value>,
    force: bool,
    context: &Context,
    repo: &Path,
) -> Result<(Map<String, Value>, Config), Failure> {
    answer(
        context,
        &mut spec,
        "publisherURL",
        "Publisher (base URL; it stores, and pays)",
        force,
    )
    .await?;
    answer(
        context,
        &mut spec,
        "aggregatorURL",
        "Aggregator (base URL; it reads)",
        force,
    )
    .await?;
    let asks = !context.global.json && std::io::stdin().is_terminal();
    if asks && !spec.contains_key("network") && !spec.contains_key("epochDurationSeconds") {
        let mut guess = spec.clone();
        settle(&mut guess);
        let guess = guess["network"].as_str().unwrap_or("mainnet").to_owned();
        let question = "Network (mainnet, testnet)";
        choose(context, &mut spec, question, &guess, |spec, network| {
            spec.insert("network".into(), network.into());
        })
        .await?;
    }
    let asks = asks && !spec.contains_key("indexPath") && !spec.contains_key("postgresURL");
    loop {
        if asks {
            let question = "Index (sqlite, or the URL of a PostgreSQL database)";
            choose(context, &mut spec, question, "sqlite", |spec, index| {
                if index != "sqlite" {
                    spec.insert("postgresURL".into(), index.into());
                }
            })
            .await?;
        }
        let mut whole = spec.clone();
        settle(&mut whole);
        // A disk that does not tell has no room.
        cache::settle(&mut whole, repo, |path| free_at(path).unwrap_or(0));
        let config = checked(&whole)?;
        // The rest of the doctor's tests: index, disks, wallet.
        let mut found: Vec<Diagnosis> = Vec::new();
        let tests = async {
            let mut on = |diagnosis: Diagnosis| {
                if !["publisher", "aggregator"].contains(&diagnosis.part) {
                    found.push(diagnosis);
                }
            };
            let options = doctor::Options::default();
            doctor::doctor(config.clone(), repo, &options, &mut on).await
        };
        context.or_stop("nothing was written", tests).await?;
        told(context, &found);
        let bad = |part: &str| {
            let of = |d: &Diagnosis| d.health == Health::Bad && d.part == part;
            found.iter().any(of)
        };
        if asks && bad("index") && spec.remove("postgresURL").is_some() {
            again(context, "the index does not work, as said above");
            continue;
        }
        if !force && found.iter().any(|d| d.health == Health::Bad) {
            return Err(Failure::Failed(
                "something does not work, as said above: correct it, or add --force to write the repo all the same"
                    .to_owned(),
            ));
        }
        return Ok((whole, config));
    }
}
