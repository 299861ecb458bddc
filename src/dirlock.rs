//! A directory that belongs to one datastore at a time, in this process or another.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Holds the lock of a directory until dropped, or the process ends.
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
            .open(dir.join("LOCK"))
            .map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(DirLock(file))
    }

    /// The file, for whoever looks whether it is still the one in the directory.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing is not enough: the lock is the open file's, and a child process that this one is just
        // starting has that too, until it runs its own program.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lock_is_free_whoever_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        assert!(matches!(
            DirLock::take(dir.path()),
            Err(TryLockError::WouldBlock)
        ));
        // As a child process would have it.
        let _inherited = lock.0.try_clone().unwrap();
        drop(lock);
        DirLock::take(dir.path()).unwrap();
    }
}
