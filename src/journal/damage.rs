//! Blocks that were accepted and are damaged on this disk.
//!
//! Such a block must not hold up others: it is staged no longer, so it does not travel, no put
//! relies on it, and its file becomes free. But it was acknowledged, so readers and an operator
//! must be told of it, until a later put takes its place or its key is deleted, or the upload that
//! had read it before is indexed (`deliver::place`). Files of the
//! journal come and go, and a restart sees only those that are left; so damaged keys are listed in
//! a file of their own, one per line, which an operator can read.
//!
//! Invariants:
//! - A key is in `StagedBlocks::blocks` or in `StagedBlocks::damaged` or in neither, never in both:
//!   a put or a deletion of the key takes it out of the latter, at run time and when files are read
//!   again.
//! - `StagedBlocks::damaged` is saved before a file is removed. Until then the files tell the same:
//!   a damaged block gets no note that it needs no upload, unless it is on Walrus; a deletion of
//!   its key gets a note as any other.
//! - So at open an entry of a key in the files is newer than the key's line in the list.
//!
//! Lock order: only the appender saves, under its lock; it takes the state's lock to copy the list,
//! and releases it before it writes.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::{json, Value};

use super::disk::Disk;

/// The advice to an operator. Kubo asks no other node for a block as long as the datastore returns
/// an error for it.
pub(super) const REMEDY: &str =
    "It was accepted and is lost on this disk: put it again (ipfs add, ipfs dag import), \
     or delete it (ipfs block rm --force) to have it fetched from other nodes";

/// The list, and the name under which a new one is written.
const LIST: &str = "DAMAGED";
const LIST_NEW: &str = "DAMAGED.new";

/// The place of a damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// The name of its file.
    pub(super) file: String,
    /// Where its value begins in the file (bytes).
    pub(super) at: u64,
    pub(super) len: u32,
}

impl Damage {
    pub(super) fn words(&self, key: &str, dir: &Path) -> String {
        format!(
            "block {key} is damaged in the journal ({}, byte {})",
            dir.join(&self.file).display(),
            self.at
        )
    }
}

pub(super) type Damages = HashMap<Arc<str>, Damage>;

/// Reads the list; also returns how many of its lines cannot be read.
pub(super) fn load(dir: &Path) -> io::Result<(Damages, usize)> {
    let text = match std::fs::read(dir.join(LIST)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        read => read?,
    };
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let mut unreadable = 0;
    let damages = lines
        .filter_map(|line| {
            let read = serde_json::from_slice(line).ok().as_ref().and_then(parse);
            unreadable += usize::from(read.is_none());
            read
        })
        .collect();
    Ok((damages, unreadable))
}

fn parse(line: &Value) -> Option<(Arc<str>, Damage)> {
    let damage = Damage {
        file: line["file"].as_str()?.to_owned(),
        at: line["byte"].as_u64()?,
        len: line["length"].as_u64()?.try_into().ok()?,
    };
    Some((line["key"].as_str()?.into(), damage))
}

/// Writes the list, or removes its file if it is empty. It is on disk on return. After an error the
/// list is the former or the new one.
pub(super) fn save(dir: &Path, disk: &dyn Disk, damages: &Damages) -> io::Result<()> {
    let (list, new) = (dir.join(LIST), dir.join(LIST_NEW));
    let remove = |path: &Path| match disk.remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    if damages.is_empty() {
        remove(&list)?;
        return disk.sync_dir(dir);
    }
    let line = |(key, damage): (&Arc<str>, &Damage)| {
        let Damage { file, at, len } = damage;
        format!(
            "{}\n",
            json!({"key": &**key, "file": file, "byte": at, "length": len})
        )
    };
    let mut lines: Vec<String> = damages.iter().map(line).collect();
    lines.sort_unstable();
    remove(&new)?;
    let file = disk.create(&new)?;
    disk.write(&file, 0, &[lines.concat().as_bytes()])?;
    disk.sync(&file)?;
    disk.rename(&new, &list)?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn a_list_that_was_saved_is_read_and_odd_lines_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), (Damages::new(), 0));
        let damage = |at| Damage {
            file: "1.segment".into(),
            at,
            len: 7,
        };
        let damages = Damages::from([
            ("/a".into(), damage(64)),
            ("/with \"quotes\"\nand lines".into(), damage(u64::MAX)),
        ]);
        save(dir.path(), &RealDisk, &damages).unwrap();
        assert_eq!(load(dir.path()).unwrap(), (damages.clone(), 0));
        let path = dir.path().join(LIST);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"key\":\"/b\"}\n\xff\xff\n{\"key\":");
        std::fs::write(&path, text).unwrap();
        assert_eq!(load(dir.path()).unwrap(), (damages, 3));
        save(dir.path(), &RealDisk, &Damages::new()).unwrap();
        assert!(!path.exists());
    }
}
