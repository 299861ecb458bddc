//! A repo of one kind, the local Walrus behind it, and the commands that are measured in it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{ensure, Context as _, Result};
use kubo_tests::{clean_command, Daemon};
use serde_json::{json, Value};
use walrus_devnet::{BlockingDevnet, Devnet, Options, Stats};

use crate::kind::Kind;
use crate::measure::{self, Cost};
use crate::results::Sample;
use crate::settings::Settings;

/// Long enough for any journal here to drain (seconds).
const DRAIN: u64 = 600;
/// Where walrusds keeps its disk cache by its profile, relative to the repo.
const CACHE: &str = "walrusds-cache";

/// Removed when dropped, with its database and its local Walrus.
pub struct Node<'a> {
    settings: &'a Settings,
    kind: Kind,
    dir: PathBuf,
    net: Option<BlockingDevnet>,
    database: Option<String>,
    /// The local Walrus's counters at the last query.
    counted: RefCell<Stats>,
}

impl<'a> Node<'a> {
    /// A new repo on a new network.
    pub fn new(settings: &'a Settings, kind: Kind) -> Result<Node<'a>> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = settings.dir.join(format!("node-{number}"));
        fs::create_dir(&dir)?;
        let mut node = Node {
            settings,
            kind,
            dir,
            net: None,
            database: None,
            counted: RefCell::default(),
        };
        let mut init = node.command(["init", "--profile", kind.profiles()]);
        if kind.is_walrusds() {
            let latency = settings.latency(kind);
            let net = Devnet::start_blocking(Options {
                cheap_ids: true,
                max_body: 1 << 30,
                latency_put: latency.put,
                latency_get: latency.get,
                ..Options::default()
            })?;
            init.env("WALRUSDS_PUBLISHER_URL", net.url());
            init.env("WALRUSDS_AGGREGATOR_URL", net.url());
            node.net = Some(net);
        }
        if kind == Kind::JournalPostgres {
            let name = format!("bench_{number}");
            sql(&settings.postgres, &format!("CREATE DATABASE {name}"))?;
            init.env("WALRUSDS_POSTGRES_URL", node.database_url(&name)?);
            node.database = Some(name);
        }
        if !kind.has_journal() {
            init.env("WALRUSDS_JOURNAL_PATH", "off"); // the profile's default is to have one
        }
        measure::command(init, &node.dir, None)?;
        if kind.has_journal() {
            node.keep_journal()?;
        }
        match kind {
            Kind::FlatfsSync => node.set("sync", json!(true))?,
            Kind::JournalSync => node.set("journalSync", json!("sync"))?,
            _ => {}
        }
        // An init may store the empty directory.
        node.count_stored(&mut Sample::default(), 0)?;
        Ok(node)
    }

    /// The server's URL with this database in place of the one it names.
    fn database_url(&self, name: &str) -> Result<String> {
        let (server, rest) = self
            .settings
            .postgres
            .rsplit_once('/')
            .context("BENCH_POSTGRES_URL names no database")?;
        let query = rest.find('?').map_or("", |at| &rest[at..]);
        Ok(format!("{server}/{name}{query}"))
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn repo(&self) -> PathBuf {
        self.dir.join("repo")
    }

    fn command<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = clean_command(&self.settings.ipfs, &self.dir);
        command.env("IPFS_PATH", self.repo()).args(args);
        command
    }

    /// Sets a key of the configuration of the datastore for blocks.
    fn set(&self, key: &str, value: Value) -> Result<()> {
        let path = self.repo().join("config");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let mount = &mut config["Datastore"]["Spec"]["mounts"][0];
        // A datastore that Kubo measures is the child of its mount.
        let spec = match mount.get("child") {
            Some(_) => &mut mount["child"],
            None => mount,
        };
        let spec = spec
            .as_object_mut()
            .context("the repo has no datastore for blocks alone")?;
        spec.insert(key.to_owned(), value);
        fs::write(path, serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }

    /// Runs a command without measuring it and returns its output.
    pub fn text(&self, args: &[&str]) -> Result<String> {
        let out = self.dir.join("stdout");
        self.output(args, &out)?;
        Ok(fs::read_to_string(out)?)
    }

    /// Runs a command without measuring it and writes its output to a file.
    pub fn output(&self, args: &[&str], path: &Path) -> Result<()> {
        measure::command(self.command(args), &self.dir, Some(File::create(path)?))?;
        Ok(())
    }

    /// The bytes that the local Walrus has answered so far.
    pub fn fetched(&self) -> u64 {
        self.net.as_ref().map_or(0, |net| net.stats().bytes_out)
    }

    /// Empties the disk cache: nothing but what is on Walrus remains.
    pub fn forget_cache(&self) -> Result<()> {
        let cache = self.repo().join(CACHE);
        if cache.exists() {
            fs::remove_dir_all(cache)?;
        }
        Ok(())
    }

    /// Runs and measures a command. Before it starts, earlier writes are flushed to the disk.
    pub fn measured(&self, args: &[&str]) -> Result<Cost> {
        measure::settle();
        measure::command(self.command(args), &self.dir, None)
    }

    /// Adds to the repo; returns the CID and the cost. The file or directory was read before, so
    /// that the kernel has it in memory.
    pub fn add(&self, args: &[&str], path: &Path) -> Result<(Cost, String)> {
        measure::warm(path)?;
        measure::settle();
        let out = self.dir.join("cid");
        let command = self.command(
            ["add", "-Q", "--cid-version=1"]
                .iter()
                .copied()
                .map(AsRef::as_ref)
                .chain(args.iter().map(AsRef::as_ref))
                .chain([path.as_os_str()]),
        );
        let cost = measure::command(command, &self.dir, Some(File::create(&out)?))?;
        Ok((cost, fs::read_to_string(out)?.trim().to_owned()))
    }

    /// Lets commands and daemons leave their journal as it is when they stop.
    fn keep_journal(&self) -> Result<()> {
        self.set("drainTimeoutSeconds", json!(0))?;
        self.set("drainPartialPacks", json!(false))
    }

    /// Lets commands and daemons wait until the journal is empty.
    fn empty_journal(&self) -> Result<()> {
        self.set("drainTimeoutSeconds", json!(DRAIN))?;
        self.set("drainPartialPacks", json!(true))
    }

    /// Runs a command that waits until the journal is empty; returns the duration (seconds).
    pub fn drain(&self) -> Result<f64> {
        self.empty_journal()?;
        let cost = self.measured(&["pin", "ls", "--type=recursive", "-q"])?;
        self.keep_journal()?;
        Ok(cost.wall)
    }

    /// A daemon that drains its journal when it stops.
    pub fn daemon(&self) -> Result<Daemon> {
        if self.kind.has_journal() {
            self.empty_journal()?;
        }
        Ok(Daemon::start(self.command(["daemon"])))
    }

    /// Records the data stored on Walrus since the last call, or since the repo was made. Fails if
    /// it is less than the given number of bytes.
    pub fn count_stored(&self, sample: &mut Sample, bytes: u64) -> Result<()> {
        if let Some(net) = &self.net {
            let now = net.stats();
            let before = self.counted.replace(now.clone());
            let stored = now.stored_bytes - before.stored_bytes;
            ensure!(
                stored >= bytes,
                "only {stored} of {bytes} bytes are on Walrus"
            );
            sample.blobs = Some(now.stored_blobs - before.stored_blobs);
            sample.units = Some(now.billed_units - before.billed_units);
            sample.uploads = Some(now.puts - before.puts);
        }
        Ok(())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.net = None;
        if let Some(name) = self.database.take() {
            if let Err(why) = sql(
                &self.settings.postgres,
                &format!("DROP DATABASE {name} WITH (FORCE)"),
            ) {
                eprintln!("the database of a run is left behind: {why:#}");
            }
        }
        if let Err(why) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left behind: {why}", self.dir.display());
        }
    }
}

fn sql(url: &str, statement: &str) -> Result<()> {
    postgres::Client::connect(url, postgres::NoTls)?.batch_execute(statement)?;
    Ok(())
}
