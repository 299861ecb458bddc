//! Writing a repo's config and datastore_spec. Nothing is removed: the empty flatfs is moved aside,
//! and the config as it was stays beside the new one.
//!
//! Order: the blocks' directory is moved first, then datastore_spec is replaced, then config. Each
//! step is one rename. A repo that was left between two steps is taken for an empty one again. The
//! caller holds Kubo's lock of the repo, and has looked under it: no node stores a block meanwhile.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::exit::Failure;
use crate::kubo::file::{failed, read, replace};
use crate::kubo::lock::RepoLock;
use crate::kubo::spec;

/// The block of the empty directory, which every `ipfs init` stores.
const EMPTY_DIRECTORY: &str = "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y.data";

/// A repo, as `init` sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is none.
    New,
    /// It holds no block but that of the empty directory.
    Empty,
}

/// Looks at a repo.
///
/// # Errors
/// It uses walrusds already, holds data, or is in use.
pub fn look(repo: &Path) -> Result<State, Failure> {
    let file = repo.join("config");
    if !file.exists() {
        let other = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| !is_installed(&entry.file_name().to_string_lossy()))
        };
        let used = std::fs::read_dir(repo).is_ok_and(|mut all| all.any(other));
        return match used {
            true => Err(Failure::Failed(format!(
                "{} is not empty and has no config: choose another directory",
                repo.display()
            ))),
            false => Ok(State::New),
        };
    }
    let config = read(&file)?;
    if repo.join("api").exists() {
        return Err(Failure::Failed(format!(
            "a daemon seems to run on {}: stop it first (ipfs shutdown)",
            repo.display()
        )));
    }
    if config.to_string().contains(r#""type":"walrusds""#) {
        return Err(Failure::Failed(format!(
            "{} uses walrusds already: `walrusds doctor` tests it, and `ipfs config` changes settings",
            repo.display()
        )));
    }
    let mount = blocks_mount(&config).ok_or_else(|| {
        failed(&file, "Datastore.Spec has no flatfs at /blocks, which is all that init replaces: make a new repo")
    })?;
    let blocks = repo.join(mount);
    let n = count(&blocks).map_err(|e| failed(&blocks, e))?;
    match n {
        0 => Ok(State::Empty),
        n => Err(Failure::Failed(format!(
            "{} holds {n} blocks or more, and init never writes over data: use another directory (--repo), or convert the repo with all its blocks (walrusds convert-repo)",
            repo.display()
        ))),
    }
}

/// Whether the installation of the plugin (scripts/plugin-install.sh) makes a file or directory of
/// this name in the repo, before there is one.
fn is_installed(name: &str) -> bool {
    ["plugins", "lib"].contains(&name) || name.starts_with(".walrusds.so.")
}

/// The path of the flatfs at /blocks.
fn blocks_mount(config: &Value) -> Option<String> {
    let flatfs = spec::of_config(config).filter(|entry| spec::kind(entry) == "flatfs")?;
    spec::datastore(flatfs)["path"].as_str().map(str::to_owned)
}

/// The blocks of a flatfs but for the empty directory; it stops counting at some.
fn count(dir: &Path) -> std::io::Result<usize> {
    let mut n = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_symlink() && entry.path().is_dir() {
                waiting.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            n += usize::from(name.ends_with(".data") && name != EMPTY_DIRECTORY);
            if n >= 1000 {
                return Ok(n);
            }
        }
    }
    Ok(n)
}

/// Makes an empty repo one on walrusds. Returns where its flatfs was moved to.
pub fn convert(
    repo: &Path,
    settings: &Map<String, Value>,
    _held: &RepoLock,
) -> Result<Option<PathBuf>, Failure> {
    let (file, spec_file) = (repo.join("config"), repo.join("datastore_spec"));
    let mut kubo = read(&file)?;
    let mut disk = read(&spec_file)?;
    let old = blocks_mount(&kubo).ok_or_else(|| failed(&file, "no flatfs at /blocks"))?;
    let entry = spec::walrusds_entry(settings);
    let short = spec::short_form(&entry).map_err(Failure::Failed)?;
    spec::set_in_config(&mut kubo, entry).ok_or_else(|| failed(&file, "no mount at /blocks"))?;
    spec::set_in_spec(&mut disk, short).ok_or_else(|| failed(&spec_file, "no mount at /blocks"))?;
    let text = serde_json::to_string_pretty(&kubo).map_err(|e| failed(&file, e))?;
    let blocks = repo.join(old);
    let aside = match blocks.exists() {
        true => {
            let aside = repo.join("blocks.before-walrusds");
            std::fs::rename(&blocks, &aside).map_err(|e| failed(&aside, e))?;
            Some(aside)
        }
        false => None,
    };
    let kept = repo.join("config.before-walrusds");
    std::fs::copy(&file, &kept).map_err(|e| failed(&kept, e))?;
    replace(&spec_file, spec::as_go(&disk).as_bytes())?;
    replace(&file, text.as_bytes())?;
    Ok(aside)
}
