//! Writing a repo's config and datastore_spec. Nothing is removed: the empty flatfs is moved aside,
//! and the config as it was stays beside the new one.
//!
//! Order: the blocks' directory is moved first, then datastore_spec is replaced, then config. Each
//! step is one rename. A repo that was left between two steps is taken for an empty one again.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{json, Map, Value};
use walrusds::Config;

use crate::exit::Failure;

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

fn failed(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {e}", path.display()))
}

fn read(path: &Path) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| failed(path, e))?;
    serde_json::from_str(&text).map_err(|e| failed(path, format!("it is not valid JSON: {e}")))
}

/// Looks at a repo.
///
/// # Errors
/// It uses walrusds already, holds data, or is in use.
pub fn look(repo: &Path) -> Result<State, Failure> {
    let file = repo.join("config");
    if !file.exists() {
        let used = std::fs::read_dir(repo).is_ok_and(|mut all| all.next().is_some());
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

/// The path of the flatfs at /blocks.
fn blocks_mount(config: &Value) -> Option<String> {
    let mounts = config.pointer("/Datastore/Spec/mounts")?.as_array()?;
    let mount = mounts
        .iter()
        .find(|mount| mount["mountpoint"] == "/blocks")?;
    let child = mount.get("child").unwrap_or(mount);
    (child["type"] == "flatfs").then(|| child["path"].as_str().map(str::to_owned))?
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
            if entry.file_type()?.is_dir() {
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
    spec: &Map<String, Value>,
    config: &Config,
) -> Result<Option<PathBuf>, Failure> {
    let (file, spec_file) = (repo.join("config"), repo.join("datastore_spec"));
    let mut kubo = read(&file)?;
    let mut disk = read(&spec_file)?;
    let old = blocks_mount(&kubo).ok_or_else(|| failed(&file, "no flatfs at /blocks"))?;
    let mut child = spec.clone();
    child.insert("type".into(), "walrusds".into());
    let mounts = kubo.pointer_mut("/Datastore/Spec/mounts");
    replace_mount(
        mounts,
        json!({
            "mountpoint": "/blocks",
            "type": "measure",
            "prefix": "walrusds.datastore",
            "child": child,
        }),
    )
    .ok_or_else(|| failed(&file, "no mount at /blocks"))?;
    let mut on_disk = config.disk_spec();
    on_disk["mountpoint"] = "/blocks".into();
    replace_mount(disk.pointer_mut("/mounts"), on_disk)
        .ok_or_else(|| failed(&spec_file, "no mount at /blocks"))?;
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
    replace(&spec_file, sorted(&disk).as_bytes())?;
    replace(&file, (text + "\n").as_bytes())?;
    Ok(aside)
}

fn replace_mount(mounts: Option<&mut Value>, new: Value) -> Option<()> {
    let mounts = mounts?.as_array_mut()?;
    let mount = mounts
        .iter_mut()
        .find(|mount| mount["mountpoint"] == "/blocks")?;
    *mount = new;
    Some(())
}

/// JSON as Go writes a map: the members in the order of their names, without spaces. Kubo compares
/// datastore_spec byte by byte.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(name, _)| name.as_str());
            let members = members
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), sorted(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(sorted).collect();
            format!("[{}]", all.join(","))
        }
        other => other.to_string(),
    }
}

/// Replaces a file in one step, with the rights of the old one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let new = path.with_extension("walrusds-new");
    let write = || -> std::io::Result<()> {
        let rights = std::fs::metadata(path)?.permissions();
        let mut file = std::fs::File::create(&new)?;
        file.set_permissions(rights)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The directory, so that the rename survives a power cut.
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|e| failed(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_is_written_as_go_writes_it() {
        let value = json!({"type": "mount", "mounts": [{"b": 1, "a": "x\"y"}]});
        assert_eq!(
            sorted(&value),
            r#"{"mounts":[{"a":"x\"y","b":1}],"type":"mount"}"#
        );
    }
}
