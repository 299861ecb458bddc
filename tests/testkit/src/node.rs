//! A datastore on parts in memory, with a write journal and a read cache in a directory of its own.

use std::fs;
use std::io::ErrorKind as Io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walrusds::log::Line;
use walrusds::{ErrorKind, Result, WalrusDatastore};

use crate::mem::Parts;

/// A journal that uploads nothing by itself. Like the other settings here, these are JSON members,
/// each followed by a comma.
pub const IDLE: &str = r#""packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"#;
/// A journal that uploads all blocks soon.
pub const BUSY: &str = r#""packIdleFlushSeconds":1,"packMaxAgeSeconds":1,"#;

/// Index, store and clock of a datastore, and the directory with its journal and its cache.
pub struct Node {
    pub parts: Parts,
    pub dir: tempfile::TempDir,
}

impl Default for Node {
    fn default() -> Self {
        Node::new()
    }
}

impl Node {
    pub fn new() -> Node {
        Node::on(Parts::default())
    }

    fn on(parts: Parts) -> Node {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Node { parts, dir }
    }

    /// The directory of the write journal.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// The directory of the read cache.
    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Opens the datastore with its journal; `extra` are more settings.
    pub fn open(&self, extra: &str) -> Arc<WalrusDatastore> {
        self.try_open(extra).expect("test datastore")
    }

    /// As [`open`](Self::open), where opening may fail.
    pub fn try_open(&self, extra: &str) -> Result<Arc<WalrusDatastore>> {
        let journal = format!(r#"{extra}"journalPath":"{}","#, self.journal().display());
        self.parts.try_open(&journal).map(Arc::new)
    }

    /// As [`open`](Self::open), once an earlier datastore has released the journal: a dropped one
    /// does that within moments.
    pub async fn reopen(&self, extra: &str) -> Arc<WalrusDatastore> {
        let started = Instant::now();
        loop {
            match self.try_open(extra) {
                Err(e) if e.kind() == ErrorKind::Locked && started.elapsed() < crate::PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                opened => return opened.expect("test datastore"),
            }
        }
    }

    /// Opens the datastore with its cache in `cache` and without the cache in memory, which would
    /// answer first.
    pub fn open_cached(&self, cache: &Path, extra: &str) -> WalrusDatastore {
        let cache = cache.display();
        self.parts.open(&format!(
            r#""cachePath":"{cache}","blobCacheBytes":-1,{extra}"#
        ))
    }

    /// The journal's files, the oldest one first.
    pub fn segments(&self) -> Vec<PathBuf> {
        files(&self.journal(), "segment")
    }

    /// The journal's files that were put aside.
    pub fn put_aside(&self) -> Vec<PathBuf> {
        files(&self.journal(), "damaged")
    }

    /// The file of the journal where the bytes lie, and the place of the first one.
    pub fn place(&self, what: &[u8]) -> (PathBuf, u64) {
        place(&self.journal(), what)
    }

    /// Flips a bit of the bytes in the journal, as [`damage`] does.
    pub fn damage(&self, what: &[u8]) -> (String, u64) {
        damage(&self.journal(), what)
    }

    /// The state that a kill leaves: the journal's files as they are now, in a directory of their
    /// own, on the same parts.
    pub fn crashed(&self) -> Node {
        loop {
            let copy = Node::on(self.parts.clone());
            fs::create_dir(copy.journal()).expect("a directory");
            let mut all = entries(&self.journal()).into_iter();
            let copied = all.try_for_each(|file| {
                let name = file.file_name().expect("a name");
                fs::copy(&file, copy.journal().join(name)).map(drop)
            });
            match copied {
                Ok(()) => return copy,
                // The node has just given one of them another name.
                Err(e) if e.kind() == Io::NotFound => {}
                Err(e) => panic!("copying the journal: {e}"),
            }
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).expect("a directory");
    all.map(|entry| entry.expect("an entry").path()).collect()
}

/// The files of a directory whose names have this ending, in the order of their names.
pub fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut all = entries(dir);
    all.retain(|path| path.extension().is_some_and(|e| e == ending));
    all.sort();
    all
}

fn place(journal: &Path, what: &[u8]) -> (PathBuf, u64) {
    let mut segments = files(journal, "segment").into_iter();
    let found = segments.find_map(|path| {
        let file = fs::read(&path).expect("a segment");
        let at = file.windows(what.len()).position(|w| w == what)?;
        Some((path, at as u64))
    });
    found.expect("not in the journal")
}

/// Flips a bit in the middle of the bytes, in a journal; returns the name of the file and the place
/// of the first byte.
pub fn damage(journal: &Path, what: &[u8]) -> (String, u64) {
    let (path, at) = place(journal, what);
    let middle = what.len() / 2;
    let writing = fs::OpenOptions::new().write(true).open(&path);
    let flipped = [what[middle] ^ 1];
    writing
        .and_then(|file| file.write_all_at(&flipped, at + middle as u64))
        .expect("a segment is written to");
    let name = path.file_name().expect("a name");
    (name.to_string_lossy().into_owned(), at)
}

/// One of the datastore's metrics.
pub fn metric(ds: &WalrusDatastore, name: &str) -> u64 {
    let found = ds.metrics().into_iter().find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("no metric {name}")).1
}

/// The lines that the datastore has logged since the last call.
pub fn log(ds: &WalrusDatastore) -> Vec<Line> {
    std::iter::from_fn(|| ds.next_log_line()).collect()
}
