//! The datastore of the blocks of a Kubo repo, whichever it is.

use std::path::Path;

use serde_json::{Map, Value};

use super::files::FlatfsBlocks;
use super::frames::FramedBlocks;
use super::offer::Source;
use crate::admin::flatfs::Flatfs;
use crate::error::{Error, ErrorKind, Result};

/// The place of the blocks.
const BLOCKS: &str = "/blocks";

/// The blocks of a Kubo repo: those of flatfs are read here, those of other datastores by the
/// program `walrusds-kubo-datastore`, with Kubo's own libraries.
///
/// # Errors
/// [`ErrorKind::Config`]: the repo has no configuration that is understood, its blocks lie on
/// walrusds, or the program is not there. [`ErrorKind::Disk`].
pub fn repo_blocks(repo: &Path) -> Result<Box<dyn Source>> {
    let file = repo.join("config");
    let bad = |text: String| Error::new(ErrorKind::Config, format!("{}: {text}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|e| bad(e.to_string()).caused_by(e))?;
    let config: Value = serde_json::from_str(&text)
        .map_err(|e| bad("it is not valid JSON".to_owned()).caused_by(e))?;
    let spec = config.pointer("/Datastore/Spec").unwrap_or(&Value::Null);
    let (entry, kind) = of_blocks(spec)
        .ok_or_else(|| bad("Datastore.Spec has no datastore for /blocks".to_owned()))?;
    match kind {
        "flatfs" => {
            let path = entry.get("path").and_then(Value::as_str);
            let path = path.ok_or_else(|| bad("the entry of flatfs has no path".to_owned()))?;
            let flatfs = Flatfs::open(&repo.join(path))?;
            Ok(Box::new(FlatfsBlocks::new(flatfs)?))
        }
        "walrusds" => Err(bad(
            "its blocks lie on walrusds: name this file with --from-config".to_owned(),
        )),
        _ => Ok(Box::new(FramedBlocks::of_repo(repo)?)),
    }
}

/// The entry that holds the blocks, and its type: behind the mount that takes them, and behind
/// wrappers.
fn of_blocks(spec: &Value) -> Option<(&Map<String, Value>, &str)> {
    let mut entry = spec.as_object()?;
    // A wrapper in a wrapper ends.
    for _ in 0..16 {
        let kind = entry.get("type").and_then(Value::as_str)?;
        if let Some(mounts) = entry.get("mounts").and_then(Value::as_array) {
            let takes = |mount: &&Map<String, Value>| {
                let at = mount.get("mountpoint").and_then(Value::as_str);
                let at = at.map(|at| at.trim_end_matches('/'));
                at.is_some_and(|at| at.is_empty() || at == BLOCKS)
            };
            let mounts = mounts.iter().filter_map(Value::as_object).filter(takes);
            let place = |mount: &&Map<String, Value>| {
                mount["mountpoint"]
                    .as_str()
                    .map(|at| at.trim_end_matches('/').len())
            };
            entry = mounts.max_by_key(place)?;
        } else if let Some(child) = entry.get("child").and_then(Value::as_object) {
            entry = child;
        } else {
            return Some((entry, kind));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_entry_of_the_blocks_is_found() {
        let flatfs = json!({"type": "flatfs", "path": "blocks"});
        let spec = json!({"type": "mount", "mounts": [
            {"mountpoint": "/", "type": "measure", "child": {"type": "levelds"}},
            {"mountpoint": "/blocks", "type": "measure", "child": flatfs},
        ]});
        let kind = |spec: &Value| of_blocks(spec).map(|found| found.1.to_owned());
        assert_eq!(kind(&spec).as_deref(), Some("flatfs"));
        let root = json!({"type": "mount", "mounts": [
            {"mountpoint": "/", "type": "log", "child": {"type": "badgerds"}},
            {"mountpoint": "/mfs", "type": "levelds"},
        ]});
        assert_eq!(kind(&root).as_deref(), Some("badgerds"));
        assert_eq!(
            kind(&json!({"type": "pebbleds"})).as_deref(),
            Some("pebbleds")
        );
        for none in [
            json!(null),
            json!({}),
            json!({"type": "mount", "mounts": []}),
            json!({"type": "mount", "mounts": [{"mountpoint": "/x", "type": "flatfs"}]}),
        ] {
            assert_eq!(kind(&none), None, "{none}");
        }
    }
}
