//! Where the configuration comes from: a file (`--config`), the repo's own config, or the
//! environment; and `--set` on top of each.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use walrusds::Config;

use crate::environment;
use crate::exit::Failure;
use crate::options::Global;

/// The type under which Kubo's configuration refers to walrusds.
const TYPE: &str = "walrusds";
/// The place at which Kubo mounts the datastore of its blocks.
const BLOCKS: &str = "/blocks";

/// A configuration, and what is known of its surroundings.
#[derive(Debug)]
pub struct Source {
    /// The checked configuration; relative paths are still relative.
    pub config: Config,
    /// The directory from which relative paths are taken: the repo, if there is one.
    pub repo: PathBuf,
    /// Where it was found, for people.
    pub found: String,
    /// The place in the repo at which the datastore is mounted, if a Kubo config says it.
    pub mountpoint: Option<String>,
}

/// The repo of a verb that works on a repo, and on no other configuration.
///
/// # Errors
/// `--config` was given, or nothing says where the repo is.
pub fn whole_repo(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(file) = &global.config {
        return Err(Failure::Usage(format!(
            "--config {}: this works on a whole repo, with its own config: name it by --repo",
            file.display()
        )));
    }
    repo(global).ok_or_else(|| {
        Failure::Usage("neither --repo nor IPFS_PATH nor HOME says where the repo is".to_owned())
    })
}

impl Source {
    /// Finds the configuration.
    ///
    /// # Errors
    /// A text that says where it was looked for.
    pub fn find(global: &Global) -> Result<Source, Failure> {
        let repo = repo(global);
        if let Some(file) = &global.config {
            let given = global.repo.clone();
            let beside = || file.parent().unwrap_or(Path::new("")).to_owned();
            return of_file(global, file, given.unwrap_or_else(beside));
        }
        if let Some(repo) = repo.clone() {
            let file = repo.join("config");
            // A config that cannot be seen is not one that is not there.
            let looked = std::fs::symlink_metadata(&file);
            if !looked.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                return of_file(global, &file, repo);
            }
        }
        let (mut spec, unknown) =
            environment::settings(std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            }))?;
        if let Some(repo) = repo.as_ref().filter(|_| global.repo_named) {
            // The environment may mean another datastore than the one that was named.
            if !spec.is_empty() || global.set.is_empty() {
                return Err(Failure::Failed(format!(
                    "--repo names {}, where there is no config: correct the path; or give the settings by --config or --set; \
                     or leave --repo out, which takes them from IPFS_PATH or the environment (WALRUSDS_*)",
                    repo.display()
                )));
            }
        }
        if spec.is_empty() && global.set.is_empty() {
            let looked = match &repo {
                Some(repo) => format!("there is no {}", repo.join("config").display()),
                None => "IPFS_PATH and HOME are not set".to_owned(),
            };
            let misspelt = match unknown.as_slice() {
                [] => String::new(),
                names => format!(" ({} is none of its settings)", names.join(", ")),
            };
            return Err(Failure::Failed(format!(
                "no configuration was found: {looked}, and no WALRUSDS_* variable is set{misspelt}. Name the repo (--repo \
                 or IPFS_PATH), a file (--config), or set WALRUSDS_PUBLISHER_URL, WALRUSDS_AGGREGATOR_URL and \
                 WALRUSDS_POSTGRES_URL or WALRUSDS_INDEX_PATH"
            )));
        }
        apply(global, &mut spec)?;
        Ok(Source {
            config: config(spec, "the environment")?,
            repo: repo.filter(|repo| repo.is_dir()).unwrap_or_default(),
            found: "the environment (WALRUSDS_*)".to_owned(),
            mountpoint: None,
        })
    }

    /// The configuration in a file, of another datastore than that of this command: `--repo` and
    /// `--set` do not belong to it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn of_other(file: &Path) -> Result<Source, Failure> {
        let repo = file.parent().unwrap_or(Path::new("")).to_owned();
        of_file(&Global::default(), file, repo)
    }

    /// What stands before `/CIQ…` in the keys of blocks: nothing, if the datastore is mounted at
    /// `/blocks` as usual.
    pub fn prefix(&self) -> &'static str {
        let mount = self.mountpoint.as_deref().unwrap_or(BLOCKS);
        BLOCKS
            .strip_prefix(mount.trim_end_matches('/'))
            .unwrap_or_default()
    }
}

/// The repo, whether or not it exists.
pub fn repo(global: &Global) -> Option<PathBuf> {
    let home = || {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
        Some(Path::new(&home).join(".ipfs"))
    };
    global.repo.clone().or_else(home)
}

fn of_file(global: &Global, file: &Path, repo: PathBuf) -> Result<Source, Failure> {
    let bad = |text: String| Failure::Failed(format!("{}: {text}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| bad(format!("it is not valid JSON: {e}")))?;
    let (mut spec, mountpoint) = spec_of(value).map_err(bad)?;
    apply(global, &mut spec)?;
    let found = file.display().to_string();
    Ok(Source {
        config: config(spec, &found)?,
        repo,
        found,
        mountpoint,
    })
}

fn apply(global: &Global, spec: &mut Map<String, Value>) -> Result<(), Failure> {
    let mut settings = global.set.iter();
    settings.try_for_each(|setting| environment::set(spec, setting))
}

fn config(spec: Map<String, Value>, found: &str) -> Result<Config, Failure> {
    let text = Value::Object(spec).to_string();
    Config::from_json(&text).map_err(|e| e.context(found).into())
}

/// The entry of walrusds in Kubo's config, in a `Datastore.Spec`, or in a file that holds nothing
/// else; and its mountpoint.
fn spec_of(value: Value) -> Result<(Map<String, Value>, Option<String>), String> {
    let kubo = value.get("Datastore").is_some();
    let spec = match value.pointer("/Datastore/Spec") {
        Some(spec) => spec.clone(),
        None if kubo => return Err("Datastore.Spec is missing".to_owned()),
        None => value,
    };
    let mut found = Vec::new();
    search(&spec, None, &mut found);
    match (found.len(), spec) {
        (1, _) => Ok(found.remove(0)),
        (0, Value::Object(spec)) if !kubo && !spec.contains_key("type") => Ok((spec, None)),
        (0, _) => Err(format!(
            "it has no datastore of type {TYPE:?} in Datastore.Spec: this repo does not use walrusds"
        )),
        (n, _) => Err(format!(
            "it has {n} datastores of type {TYPE:?}, and one is expected: put the entry that is meant into a file and name it with --config"
        )),
    }
}

/// Walks through mounts and wrappers (`measure`, `log`, those of other plugins).
fn search(
    value: &Value,
    mountpoint: Option<&str>,
    found: &mut Vec<(Map<String, Value>, Option<String>)>,
) {
    match value {
        Value::Object(map) => {
            let own = map.get("mountpoint").and_then(Value::as_str);
            let mountpoint = own.or(mountpoint);
            if map.get("type").and_then(Value::as_str) == Some(TYPE) {
                let mut spec = map.clone();
                spec.remove("mountpoint");
                found.push((spec, mountpoint.map(str::to_owned)));
                return;
            }
            map.values().for_each(|v| search(v, mountpoint, found));
        }
        Value::Array(list) => list.iter().for_each(|v| search(v, mountpoint, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        json!({"type": "walrusds", "table": "t"})
    }

    #[test]
    fn the_entry_is_found_behind_mounts_and_wrappers() {
        let spec = json!({"type": "mount", "mounts": [
            {"mountpoint": "/blocks", "type": "measure", "prefix": "walrus.datastore", "child": entry()},
            {"mountpoint": "/", "type": "measure", "child": {"type": "levelds", "path": "datastore"}},
        ]});
        for value in [
            spec.clone(),
            json!({"Identity": {}, "Datastore": {"Spec": spec}}),
        ] {
            let (found, mountpoint) = spec_of(value).unwrap();
            assert_eq!(Value::Object(found), entry());
            assert_eq!(mountpoint.as_deref(), Some("/blocks"));
        }
        let direct = json!({"mountpoint": "/", "type": "walrusds", "table": "t"});
        let (found, mountpoint) = spec_of(json!({"mounts": [direct]})).unwrap();
        assert_eq!(Value::Object(found), entry());
        assert_eq!(mountpoint.as_deref(), Some("/"));
    }

    #[test]
    fn a_file_may_hold_the_settings_alone() {
        let (found, mountpoint) = spec_of(json!({"table": "t"})).unwrap();
        assert_eq!((found["table"].as_str(), mountpoint), (Some("t"), None));
        let error = spec_of(json!({"Datastore": {"Spec": {"type": "flatfs"}}})).unwrap_err();
        assert!(error.contains("does not use walrusds"), "{error}");
        let twice = json!({"Datastore": {"Spec": {"mounts": [entry(), entry()]}}});
        assert!(spec_of(twice).unwrap_err().contains("has 2 datastores"));
    }

    #[test]
    fn a_mount_takes_its_part_of_a_key() {
        let json = r#"{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}"#;
        let mut source = Source {
            config: Config::from_json(json).unwrap(),
            repo: PathBuf::new(),
            found: String::new(),
            mountpoint: None,
        };
        for (mountpoint, prefix) in [(None, ""), (Some("/blocks"), ""), (Some("/"), "/blocks")] {
            source.mountpoint = mountpoint.map(str::to_owned);
            assert_eq!(source.prefix(), prefix);
        }
    }
}
