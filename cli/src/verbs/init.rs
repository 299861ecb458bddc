//! `init`: a new or an empty repo is set up.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::{json, Map, Value};
use walrusds::admin::doctor::{self, aggregator, publisher, Diagnosis, Health};
use walrusds::Config;

use super::doctor::line;
use crate::context::Context;
use crate::environment;
use crate::exit::{Exit, Failure};
use crate::source::repo;

mod write;

/// Sets up a new or an empty repo
///
/// Asks for publisher, aggregator, network and index (or takes them from options and WALRUSDS_*
/// variables), tests each as `doctor` does, and writes config and datastore_spec. A new repo is
/// made with `ipfs init` first. A repo that holds blocks is refused: nothing is ever written over
/// data. Other settings: --set KEY=VALUE.
#[derive(Debug, clap::Args)]
pub struct Args {
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
    /// The program that makes a new repo
    #[arg(long, value_name = "PROGRAM", default_value = "ipfs")]
    ipfs: String,
    /// Writes the repo although a test shows something that does not work
    #[arg(long)]
    force: bool,
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

fn checked(spec: &Map<String, Value>) -> Result<Config, Failure> {
    let text = Value::Object(spec.clone()).to_string();
    Config::from_json(&text).map_err(Failure::from)
}

/// Asks on the terminal; an empty answer is the default.
async fn ask(context: &Context, question: &str, default: &str) -> Result<String, Failure> {
    let shown = match default {
        "" => String::new(),
        default => format!(" [{default}]"),
    };
    let mut err = std::io::stderr();
    let _ = write!(err, "{question}{shown}: ");
    let _ = err.flush();
    let read = async {
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|n| (n, line))
        });
        match line.await.map_err(|e| Failure::Failed(e.to_string()))? {
            Ok((0, _)) | Err(_) => Err(Failure::Usage(
                "the answers ended too early: give them as options (walrusds init --help)".into(),
            )),
            Ok((_, line)) => Ok(line),
        }
    };
    let line = context.or_stop("nothing was written", read).await?;
    Ok(match line.trim() {
        "" => default.to_owned(),
        line => line.to_owned(),
    })
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
            settle(&mut whole);
            let config = checked(&whole)?;
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
            Some(e) => {
                context.note(e);
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
fn given(args: &Args, context: &Context) -> Result<Map<String, Value>, Failure> {
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

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let repo = repo(&context.global).ok_or_else(|| {
        Failure::Usage("neither --repo nor IPFS_PATH nor HOME says where the repo is".to_owned())
    })?;
    let state = write::look(&repo)?;
    let mut spec = given(&args, context)?;
    answer(
        context,
        &mut spec,
        "publisherURL",
        "Publisher (base URL; it stores, and pays)",
        args.force,
    )
    .await?;
    answer(
        context,
        &mut spec,
        "aggregatorURL",
        "Aggregator (base URL; it reads)",
        args.force,
    )
    .await?;
    let asks = !context.global.json && std::io::stdin().is_terminal();
    if asks && !spec.contains_key("network") && !spec.contains_key("epochDurationSeconds") {
        let mut guess = spec.clone();
        settle(&mut guess);
        let guess = guess["network"].as_str().unwrap_or("mainnet").to_owned();
        let network = ask(context, "Network (mainnet, testnet)", &guess).await?;
        spec.insert("network".into(), network.into());
    }
    if asks && !spec.contains_key("indexPath") && !spec.contains_key("postgresURL") {
        let question = "Index: sqlite, or the URL of a PostgreSQL database that nodes share";
        let index = ask(context, question, "sqlite").await?;
        if index != "sqlite" {
            spec.insert("postgresURL".into(), index.into());
        }
    }
    settle(&mut spec);
    let config = checked(&spec)?;
    // The rest of the doctor's tests: index, disks, wallet.
    let mut found: Vec<Diagnosis> = Vec::new();
    let tests = async {
        let mut on = |diagnosis: Diagnosis| {
            if !["publisher", "aggregator"].contains(&diagnosis.part) {
                found.push(diagnosis);
            }
        };
        let options = doctor::Options::default();
        doctor::doctor(config.clone(), &repo, &options, &mut on).await
    };
    context.or_stop("nothing was written", tests).await?;
    told(context, &found);
    if !args.force && found.iter().any(|d| d.health == Health::Bad) {
        return Err(Failure::Failed(
            "something does not work, as said above: correct it, or add --force to write the repo all the same"
                .to_owned(),
        ));
    }
    if state == write::State::New {
        context.note(format!("making a repo with: {} init", args.ipfs));
        make(&args.ipfs, &repo).await?;
        // What that program has made is looked at as any other repo.
        write::look(&repo)?;
    }
    let set_aside = write::convert(&repo, &spec, &config)?;
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
