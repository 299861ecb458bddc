//! Reading JSON files and replacing files.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::exit::Failure;

/// The rights of a new file: configurations hold secrets.
const PRIVATE: u32 = 0o600;

/// An error about a file or a directory.
pub fn failed(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {e}", path.display()))
}

/// The bytes that are free for this user where a path is or will be.
pub fn free_at(path: &Path) -> std::io::Result<u64> {
    let there = path.ancestors().find(|path| path.exists());
    let space = rustix::fs::statvfs(there.unwrap_or(Path::new(".")))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Reads a JSON file.
pub fn read(path: &Path) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| failed(path, e))?;
    serde_json::from_str(&text).map_err(|e| failed(path, format!("it is not valid JSON: {e}")))
}

/// Replaces a file in one step, with the rights of the old one; a new one is its owner's alone.
/// After a power cut, either the old file or the whole new one is there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let new = beside(path);
    let write = || -> std::io::Result<()> {
        let rights = match std::fs::metadata(path) {
            Ok(old) => old.permissions(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::Permissions::from_mode(PRIVATE)
            }
            Err(e) => return Err(e),
        };
        // One that was left behind may have any rights.
        remove(&new)?;
        let mut file = File::create_new(&new)?;
        file.set_permissions(rights)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_parent(path)
    };
    let written = write();
    if written.is_err() {
        let _ = remove(&new);
    }
    written.map_err(|e| failed(path, e))
}

/// Removes a file, which need not be there.
pub fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes a new name in a directory, or its absence, last through a power cut.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// The name under which the new file is written.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".walrusds-new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_told_for_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_at(&dir.path().join("not/there/yet")).unwrap() > 0);
    }

    #[test]
    fn a_file_is_replaced_with_its_rights_and_a_new_one_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        replace(&path, b"a").unwrap();
        assert_eq!(mode(&path), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::write(beside(&path), "left behind").unwrap();
        replace(&path, b"b").unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), mode(&path)),
            (b"b".to_vec(), 0o640)
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_stays_as_it_was() {
        // A directory cannot be replaced by a file.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::create_dir(&path).unwrap();
        let error = replace(&path, b"a").unwrap_err().to_string();
        assert!(error.contains("config: "), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
