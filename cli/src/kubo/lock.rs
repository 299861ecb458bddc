//! Kubo's own lock of a repo, taken as Kubo takes it (go-fs-lock): a lock by `fcntl` on the whole
//! file `repo.lock`. While it is held, no daemon starts and no command of Kubo opens the repo.
//!
//! Such a lock belongs to the process: closing any descriptor of the file gives it up. So nothing
//! else of this program may open that file. Kubo removes the file when it gives its lock up, so the
//! file that was locked may be gone from the directory: then the new one is locked.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{fcntl_lock, FlockOperation};
use rustix::io::Errno;
use walrusds::{Error, ErrorKind};

use super::file::failed;
use crate::exit::Failure;

/// The file that Kubo locks. It must be empty.
const FILE: &str = "repo.lock";
/// How often the file may be replaced while it is being locked.
const TRIES: usize = 100;

/// The lock of a repo. It is held until this is dropped, or the process ends. The empty file stays,
/// as it does after a Kubo that was killed.
#[derive(Debug)]
pub struct RepoLock {
    _file: File,
}

impl RepoLock {
    /// Takes the lock without waiting for it. `None`: a daemon or a command of Kubo holds it.
    pub fn try_take(repo: &Path) -> Result<Option<RepoLock>, Failure> {
        let path = repo.join(FILE);
        for _ in 0..TRIES {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|e| failed(&path, e))?;
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => return Ok(None),
                Err(e) => return Err(failed(&path, e)),
            }
            let locked = file.metadata().map_err(|e| failed(&path, e))?;
            let named = std::fs::metadata(&path);
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
                return Ok(Some(RepoLock { _file: file }));
            }
        }
        Ok(None)
    }

    /// Takes the lock without waiting for it.
    ///
    /// # Errors
    /// One of the kind `Locked` that says what to do, with what was `done` so far.
    pub fn take(repo: &Path, done: &str) -> Result<RepoLock, Failure> {
        RepoLock::try_take(repo)?.ok_or_else(|| {
            Failure::Engine(Error::new(
                ErrorKind::Locked,
                format!(
                    "{done}the repo {} is in use by a daemon or another command: stop it (ipfs shutdown), and run \
                     the same command again",
                    repo.display()
                ),
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, Command, Stdio};

    use super::*;

    const LOCK: &str = "WALRUSDS_TEST_LOCK";

    /// No test by itself: a lock by `fcntl` belongs to a process, so the tests run this one in a
    /// process of its own. It tries the lock, says what came of it, and ends with its input.
    #[test]
    fn in_another_process() {
        let Some(path) = std::env::var_os(LOCK) else {
            return;
        };
        let mut options = File::options();
        let file = options.create(true).truncate(true).write(true);
        let file = file.open(path).unwrap();
        let taken = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        println!("\n{}", if taken { "taken" } else { "refused" });
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read_line(&mut String::new());
    }

    /// Another process, and whether it got the lock.
    fn another(repo: &Path) -> (Child, bool) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kubo::lock::tests::in_another_process",
                "--nocapture",
            ])
            .env(LOCK, repo.join(FILE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut lines = out.lines().map_while(Result::ok);
        let said = lines.find(|line| ["taken", "refused"].contains(&line.as_str()));
        let taken = said.expect("an answer") == "taken";
        // What the test program says at its end has a reader.
        std::thread::spawn(move || lines.for_each(drop));
        (child, taken)
    }

    fn end(mut child: Child) {
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn it_is_the_lock_that_other_programs_see() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RepoLock::take(dir.path(), "").unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), 0);
        let (other, taken) = another(dir.path());
        assert!(!taken);
        end(other);
        drop(lock);
        let (other, taken) = another(dir.path());
        assert!(taken);
        end(other);
    }

    #[test]
    fn a_lock_of_another_process_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let (other, taken) = another(dir.path());
        assert!(taken);
        assert!(RepoLock::try_take(dir.path()).unwrap().is_none());
        let error = RepoLock::take(dir.path(), "all is copied, but ").unwrap_err();
        assert_eq!(error.code(), 4);
        assert!(error.to_string().contains("ipfs shutdown"), "{error}");
        end(other);
        assert!(RepoLock::try_take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_file_that_its_owner_has_removed_is_not_locked_instead_of_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = RepoLock::take(dir.path(), "").unwrap();
        // As Kubo does at its end, before it gives the lock up.
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        let (other, taken) = another(dir.path());
        assert!(taken);
        drop(first);
        assert!(RepoLock::try_take(dir.path()).unwrap().is_none());
        end(other);
    }
}
