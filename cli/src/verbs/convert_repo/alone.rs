//! One run at a time works on a repo. A second one would pay for the same blocks once more, and one
//! that removes files would remove those that another one has just found.

use std::fs::{File, TryLockError};
use std::path::Path;

use walrusds::{Error, ErrorKind};

use crate::exit::Failure;
use crate::kubo::file::failed;

/// What is locked: each repo has it, and nothing replaces it in a repo that is not migrated.
const FILE: &str = "version";

/// Held while a run changes anything; given up when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Alone {
    _file: File,
}

impl Alone {
    /// # Errors
    /// One of the kind `Locked`, while another run works on the repo.
    pub fn take(repo: &Path) -> Result<Alone, Failure> {
        let path = repo.join(FILE);
        // NFS takes a lock only for a file that is open to write.
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|e| failed(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Alone { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Failure::Engine(Error::new(
                ErrorKind::Locked,
                format!(
                    "another run of convert-repo works on {}: wait for its end",
                    repo.display()
                ),
            ))),
            Err(TryLockError::Error(e)) => Err(failed(&path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "18\n").unwrap();
        let first = Alone::take(dir.path()).unwrap();
        let second = Alone::take(dir.path()).unwrap_err();
        assert_eq!(second.code(), 4);
        drop(first);
        assert!(Alone::take(dir.path()).is_ok());
        let version = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(version, "18\n");
    }
}
