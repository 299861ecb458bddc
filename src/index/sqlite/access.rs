//! The access that this process has to the file, and opening the file where it may only be read.
//!
//! SQLite reads a database with a write-ahead log through files beside it (`-wal`, `-shm`), which
//! it makes where they are missing. Where it may not make them, there are two cases:
//! - Another process has the database open, or was killed: the files exist and can be read.
//! - The database is at rest: there is no log beside it, everything is in the file. It is opened as
//!   `immutable`, without the files and without locks. Such a connection does not notice changes,
//!   so the file is checked before each use ([`Still`]), and the connection is opened anew if the
//!   file has changed. A writer changes the file only after it has made a log, so a read that
//!   begins before that sees the old rows whole.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::access;
use rustix::io::Errno;

/// The access to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    /// Only reading, with the reason.
    Read(&'static str),
}

/// Finds out the access to the file. A missing file counts as writable because it is to be made;
/// unclear cases are left to SQLite.
pub(super) fn find_out(path: &Path) -> Access {
    let ask = |path: &Path| access(path, rustix::fs::Access::WRITE_OK);
    let refused = |path| matches!(ask(path), Err(Errno::ACCESS | Errno::PERM | Errno::ROFS));
    let real = real(path);
    // An existing log can be written without rights to the directory.
    let has_log = || {
        ["-wal", "-shm"]
            .iter()
            .all(|s| ask(&beside(&real, s)).is_ok())
    };
    if refused(&real) {
        Access::Read("the file of indexPath may not be written to")
    } else if real.exists() && real.parent().is_some_and(refused) && !has_log() {
        Access::Read("the directory of indexPath may not be written to")
    } else {
        Access::Write
    }
}

impl Access {
    /// Opens a connection for reading.
    pub fn connect(self, path: &Path) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match self {
            // Not read-only: the reader may be the first to recover the log of a killed process.
            Access::Write => {
                Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)
            }
            Access::Read(_) if log_exists(path) => {
                Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_READ_ONLY)
            }
            Access::Read(_) => Connection::open_with_flags(
                immutable(path),
                flags | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
            ),
        }
    }

    /// The state of the file that must not change for a connection that is opened now.
    pub fn still(self, path: &Path) -> Option<Still> {
        match self {
            Access::Write => None,
            Access::Read(_) => Some(Still::new(path)),
        }
    }
}

/// A state of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Still {
    log: bool,
    /// Length and time of the last change; only where there is no log, because through a log SQLite
    /// notices changes by itself.
    file: Option<(u64, SystemTime)>,
}

impl Still {
    fn new(path: &Path) -> Still {
        let log = log_exists(path);
        let look = || {
            let file = std::fs::metadata(path).ok()?;
            Some((file.len(), file.modified().ok()?))
        };
        Still {
            log,
            file: if log { None } else { look() },
        }
    }

    pub fn is_so(&self, path: &Path) -> bool {
        *self == Still::new(path)
    }
}

fn log_exists(path: &Path) -> bool {
    beside(&real(path), "-wal").exists()
}

/// SQLite keeps its files beside the file itself, not beside a symbolic link to it.
fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The URI of a database that no process changes.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file://");
    for &byte in real(path).as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => uri.push(byte.into()),
            _ => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri + "?immutable=1"
}
