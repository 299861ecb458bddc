//! `walrus-devnet-cli`: the operator's `walrus` program, as far as an owner of blobs needs it, for
//! a running `walrus-devnet`.
#![deny(unsafe_code, missing_docs)]

mod http;
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Deserialize;
use serde_json::{json, Value};
use walrus_devnet::{BlobId, ObjectId};

/// Extend, delete and list blobs on a walrus-devnet, as the program `walrus` does it on Walrus.
///
/// Commands, flags, JSON and their traps are those of `walrus` 1.56: `delete` tells failures in
/// `error` and exits with 0, `extend` tells neither end epoch nor cost, other failures exit with 1
/// and a text on stderr.
#[derive(Parser, Debug)]
#[command(name = "walrus-devnet-cli", version)]
struct Args {
    /// Base URL of the walrus-devnet [default: `devnet_url` in the config, else
    /// http://127.0.0.1:31415]
    #[arg(long, global = true, value_name = "URL", env = "WALRUS_DEVNET_URL")]
    url: Option<String>,

    #[command(flatten)]
    app: App,
}

/// What the program is told, by flags or in JSON mode. As in the original, JSON mode forgets the
/// flags.
#[derive(clap::Args, Deserialize, Debug)]
struct App {
    /// A file with a line `devnet_url: URL`
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    config: Option<PathBuf>,

    /// A file with a line `active_address: "0x…"` [default: the publisher's main wallet]
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    wallet: Option<PathBuf>,

    /// Accepted, without effect
    #[arg(long, value_name = "MIST")]
    #[serde(default, rename = "gasBudget")]
    gas_budget: Option<u64>,

    /// Print JSON
    #[arg(long)]
    #[serde(default)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Deserialize, Debug)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Command {
    /// Run a command given as JSON: {"config": …, "wallet": …, "command": {…}}
    Json {
        /// The JSON; default: from stdin
        command_string: Option<String>,
    },
    /// Extend an owned or shared blob
    Extend {
        /// The object ID of the blob
        #[arg(long)]
        blob_obj_id: ObjectId,
        /// The ID is that of a shared blob
        #[arg(long)]
        shared: bool,
        /// How many epochs to add
        #[arg(long)]
        epochs_extended: u32,
    },
    /// List the blobs of the wallet
    ListBlobs {
        /// Expired ones, too
        #[arg(long)]
        #[serde(default)]
        include_expired: bool,
    },
    /// Delete blobs of the wallet that are deletable
    Delete {
        /// By object ID
        #[arg(long, alias = "object-id", num_args = 1.., required_unless_present = "blob_ids")]
        #[serde(default)]
        object_ids: Vec<ObjectId>,
        /// By blob ID: all objects of the wallet that hold it
        #[arg(long, alias = "blob-id", num_args = 1.., allow_hyphen_values = true)]
        #[serde(default)]
        blob_ids: Vec<BlobId>,
        /// Do not ask
        #[arg(long)]
        #[serde(default)]
        yes: bool,
        /// Do not look at the blobs afterwards
        #[arg(long)]
        #[serde(default)]
        no_status_check: bool,
    },
    /// Tell the status of a blob
    BlobStatus {
        /// Its blob ID
        #[arg(long, allow_hyphen_values = true)]
        blob_id: BlobId,
    },
    /// Tell prices or the epoch
    Info {
        /// Which of them
        #[command(subcommand)]
        command: Info,
    },
}

#[derive(Subcommand, Deserialize, Debug, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum Info {
    /// The prices of storage and writes, in FROST
    Price,
    /// The epoch, its beginning and length
    Epoch,
}

/// The command without JSON mode.
fn unwrapped(mut app: App) -> Result<App, String> {
    while let Command::Json { command_string } = &app.command {
        let text = match command_string {
            Some(text) => text.clone(),
            None => std::io::read_to_string(std::io::stdin()).map_err(|why| why.to_string())?,
        };
        app = serde_json::from_str(&text).map_err(|why| why.to_string())?;
        app.json = true;
    }
    Ok(app)
}

/// The answer to a deletion that was not confirmed.
fn aborted(object_ids: &[ObjectId], blob_ids: &[BlobId]) -> Value {
    let blobs = (blob_ids.iter()).map(|id| json!({"blobId": id, "file": null, "objectId": null}));
    let objects =
        (object_ids.iter()).map(|id| json!({"blobId": null, "file": null, "objectId": id}));
    let entry = |identity: Value| json!({"blobIdentity": identity, "deletedBlobs": [], "noBlobFound": false, "aborted": true});
    blobs.chain(objects).map(entry).collect()
}

fn confirmed() -> bool {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

fn run(args: Args) -> Result<String, String> {
    let app = unwrapped(args.app)?;
    let url = match (args.url, &app.config) {
        (Some(url), _) => url,
        (None, Some(config)) => settings::value(config, "devnet_url")?,
        (None, None) => "http://127.0.0.1:31415".to_owned(),
    };
    let sender = match &app.wallet {
        Some(wallet) => {
            let address = settings::value(wallet, "active_address")?;
            let parsed = address.parse::<ObjectId>();
            Some(parsed.map_err(|why| format!("{}: {address}: {why}", wallet.display()))?)
        }
        None => None,
    };
    let (operation, body) = match app.command {
        Command::Extend {
            blob_obj_id,
            shared,
            epochs_extended,
        } => (
            "extend",
            json!({"sender": sender, "blobObjId": blob_obj_id, "shared": shared,
                   "epochsExtended": epochs_extended}),
        ),
        Command::ListBlobs { include_expired } => (
            "list",
            json!({"sender": sender, "includeExpired": include_expired}),
        ),
        Command::Delete {
            object_ids,
            blob_ids,
            yes,
            no_status_check,
        } => {
            if object_ids.is_empty() && blob_ids.is_empty() {
                return Err("neither objectIds nor blobIds is given".to_owned());
            }
            if !yes && !confirmed() {
                return Ok(aborted(&object_ids, &blob_ids).to_string());
            }
            (
                "delete",
                json!({"sender": sender, "objectIds": object_ids, "blobIds": blob_ids,
                       "noStatusCheck": no_status_check}),
            )
        }
        Command::BlobStatus { blob_id } => ("status", json!({"blobId": blob_id})),
        Command::Info { command } => match command {
            Info::Price => ("price", Value::Null),
            Info::Epoch => ("epoch", Value::Null),
        },
        Command::Json { .. } => return Err("JSON mode within JSON mode".to_owned()),
    };
    let answer = http::post(&url, &format!("/admin/chain/{operation}"), &body)?;
    Ok(match app.json {
        true => answer,
        false => format!("Success: {operation}\n{answer}"),
    })
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("Error: {why}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn json_mode_takes_the_place_of_the_flags() {
        let args = Args::try_parse_from([
            "walrus",
            "--wallet",
            "w",
            "json",
            r#"{"config":"c","command":{"delete":{"objectIds":["0x1"],"yes":true}}}"#,
        ]);
        let app = unwrapped(args.unwrap().app).unwrap();
        assert_eq!((app.config, app.wallet), (Some(PathBuf::from("c")), None));
        assert!(app.json && matches!(app.command, Command::Delete { yes: true, .. }));
    }

    #[test]
    fn shared_is_required_in_json_mode() {
        let parse = |text: &str| serde_json::from_str::<Command>(text);
        let extend = r#"{"extend":{"blobObjId":"0x1","epochsExtended":2"#;
        assert!(parse(&format!("{extend}}}}}")).is_err());
        assert!(parse(&format!("{extend},\"shared\":false}}}}")).is_ok());
        assert!(parse(r#"{"info":{"command":"epoch"}}"#).is_ok());
        assert!(parse(r#"{"listBlobs":{}}"#).is_ok());
    }
}
