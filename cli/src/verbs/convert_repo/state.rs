//! What a conversion that is under way must know in its next run: a file in the repo.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::Failure;
use crate::kubo::file::{failed, read, remove, replace, sync_parent};
use crate::kubo::spec;

/// The file in the repo. It may hold secrets, as `config` does, so it is its owner's alone.
pub const FILE: &str = "walrusds-convert.json";
/// The version of the file.
const VERSION: u32 = 1;

/// Where the blocks of a repo go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// From flatfs to Walrus.
    Walrusds,
    /// From Walrus to a flatfs on this disk.
    Flatfs,
}

impl To {
    pub fn name(self) -> &'static str {
        match self {
            To::Walrusds => "walrusds",
            To::Flatfs => "flatfs",
        }
    }

    /// The other side.
    pub fn from(self) -> To {
        match self {
            To::Walrusds => To::Flatfs,
            To::Flatfs => To::Walrusds,
        }
    }
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Blocks are copied; the node works as before.
    Copying,
    /// All blocks are copied; `datastore_spec` or `config` may be replaced already.
    Switching,
    /// Both are.
    Switched,
}

/// A conversion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    pub to: To,
    pub phase: Phase,
    /// The entry at `/blocks` in `Datastore.Spec` before.
    pub old: Value,
    /// That entry afterwards.
    pub new: Value,
}

/// Which of the files of the repo are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// None: Kubo opens the old datastore.
    Before,
    /// `datastore_spec` alone: Kubo does not open the repo.
    Between,
    /// Both: Kubo opens the new datastore.
    After,
}

impl State {
    /// A conversion that begins.
    pub fn new(to: To, old: Value, new: Value) -> State {
        State {
            version: VERSION,
            to,
            phase: Phase::Copying,
            old,
            new,
        }
    }

    /// The conversion of a repo that is under way, or has ended.
    pub fn load(repo: &Path) -> Result<Option<State>, Failure> {
        let path = place(repo);
        if !path.exists() {
            return Ok(None);
        }
        let value = read(&path)?;
        if value["version"] != VERSION {
            return Err(failed(
                &path,
                format!(
                    "it has version {}, and this walrusds knows version {VERSION}: go on with the walrusds that began \
                     the conversion",
                    value["version"]
                ),
            ));
        }
        let state = serde_json::from_value(value);
        state.map(Some).map_err(|e| failed(&path, e))
    }

    /// Notes that everything is switched. The settings of walrusds, which may hold secrets, are
    /// forgotten: they are in `config`, or in the copy of it.
    pub fn ended(&mut self) {
        self.phase = Phase::Switched;
        for entry in [&mut self.old, &mut self.new] {
            if spec::kind(entry) != "flatfs" {
                *entry = Value::Null;
            }
        }
    }

    pub fn save(&self, repo: &Path) -> Result<(), Failure> {
        let path = place(repo);
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(&path, e))?;
        replace(&path, text.as_bytes())
    }

    /// Ends a conversion: there is nothing more to know.
    pub fn clear(repo: &Path) -> Result<(), Failure> {
        let path = place(repo);
        let cleared = remove(&path).and_then(|()| sync_parent(&path));
        cleared.map_err(|e| failed(&path, e))
    }

    /// Looks which of the files are replaced.
    ///
    /// # Errors
    /// They fit neither the old nor the new datastore.
    pub fn standing(&self, repo: &Path) -> Result<Standing, Failure> {
        let (config, disk) = (
            read(&repo.join("config"))?,
            read(&repo.join("datastore_spec"))?,
        );
        let short = |entry: &Value| spec::short_form(entry).map_err(|e| failed(&place(repo), e));
        let (old, new) = (short(&self.old)?, short(&self.new)?);
        let (config, disk) = (spec::of_config(&config), spec::of_spec(&disk));
        let config = config.and_then(|entry| spec::short_form(entry).ok());
        let is = |one: &Value, other: &Value| {
            config.as_ref() == Some(one) && disk.is_some_and(|disk| disk == other)
        };
        match () {
            () if is(&old, &old) => Ok(Standing::Before),
            () if is(&old, &new) => Ok(Standing::Between),
            () if is(&new, &new) => Ok(Standing::After),
            () => Err(Failure::Failed(format!(
                "config and datastore_spec in {} fit neither the {} from before the conversion nor the {} after it: \
                 something else has changed them since. Put back the copies {} and {}, if they are there, or remove {FILE}, \
                 which forgets the conversion and no block",
                repo.display(),
                self.to.from().name(),
                self.to.name(),
                kept(repo, "config", self.to).display(),
                kept(repo, "datastore_spec", self.to).display(),
            ))),
        }
    }
}

fn place(repo: &Path) -> PathBuf {
    repo.join(FILE)
}

/// The copy of a file of the repo from before a conversion.
pub fn kept(repo: &Path, file: &str, to: To) -> PathBuf {
    repo.join(format!("{file}.before-{}", to.name()))
}
