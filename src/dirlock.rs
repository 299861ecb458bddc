//! A directory that belongs to one datastore at a time, in this process or another.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The lock of a directory. It is held until this is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct DirLock(File);

impl DirLock {
    /// Takes the lock, a file `LOCK` in the directory, without waiting for it.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] while it is held.
    pub(crate) fn take(dir: &Path) -> Result<DirLock, TryLockError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join("LOCK"))
            .map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(DirLock(file))
    }

    /// As [`take`](Self::take), for a directory that may not be written to. `None`: the directory
    /// has no such file, so no datastore has it open.
    pub(crate) fn take_unchanged(dir: &Path) -> Result<Option<DirLock>, TryLockError> {
        let mut options = File::options();
        let opened = options.read(true).custom_flags(libc::O_NOFOLLOW);
        match opened.open(dir.join("LOCK")) {
            Ok(file) => {
                file.try_lock()?;
                Ok(Some(DirLock(file)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(TryLockError::Error(e)),
        }
    }

    /// The locked file, to check whether it is still the one in the directory.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

/// Writes a README with this text into a directory of the datastore. A link in its place is not
/// followed: it may lead to a file of another program.
pub(crate) fn write_readme(dir: &Path, text: &str) -> io::Result<()> {
    let path = dir.join("README.txt");
    match std::fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => return Ok(()),
        Ok(_) if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) => return Ok(()),
        _ => {}
    }
    let mut options = File::options();
    options.create(true).truncate(true).write(true);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path);
    file?.write_all(text.as_bytes())
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing is not enough: the lock belongs to the open file, which a child process that is
        // being started by this one shares until it runs its own program.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_the_readme_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = dir.path().join("foreign");
        std::fs::write(&foreign, "mine").unwrap();
        std::os::unix::fs::symlink(&foreign, dir.path().join("README.txt")).unwrap();
        write_readme(dir.path(), "ours").unwrap();
        assert_eq!(std::fs::read_to_string(foreign).unwrap(), "mine");
        let own = tempfile::tempdir().unwrap();
        write_readme(own.path(), "ours").unwrap();
        write_readme(own.path(), "ours, newer").unwrap();
        let text = std::fs::read_to_string(own.path().join("README.txt")).unwrap();
        assert_eq!(text, "ours, newer");
    }

    #[test]
    fn a_dropped_lock_is_free_whoever_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        assert!(matches!(
            DirLock::take(dir.path()),
            Err(TryLockError::WouldBlock)
        ));
        // The file as a child process would inherit it.
        let _inherited = lock.0.try_clone().unwrap();
        drop(lock);
        DirLock::take(dir.path()).unwrap();
    }
}
