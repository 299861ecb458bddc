//! The write journals of nodes that are killed.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use walrusds::config::{Config, JournalConfig};

use testkit::model::NODES;

/// The place of a node's write journal: a new copy after each crash, which is all that is left of a
/// killed process. Files that the dead process still has open do not affect the copy.
pub struct Journals {
    dir: tempfile::TempDir,
    crashes: Mutex<[u32; NODES]>,
}

impl Journals {
    pub fn new() -> Self {
        // The test covers syncing, but not waiting for a disk.
        let memory = tempfile::tempdir_in("/dev/shm");
        Journals {
            dir: memory.or_else(|_| tempfile::tempdir()).expect("directory"),
            crashes: Mutex::default(),
        }
    }

    /// The journal of a node: a small one, whose packs leave soon.
    pub fn of(&self, node: usize) -> JournalConfig {
        let config = serde_json::json!({
            "publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1", "indexPath": "index",
            "journalPath": self.path(node), "journalMaxBytes": 64 << 10, "packIdleFlushSeconds": 30,
            "packMaxAgeSeconds": 60, "drainTimeoutSeconds": 600,
            "journalSync": if node.is_multiple_of(2) { "put" } else { "sync" },
            // The paused clock may run ahead while the thread of the journal works.
            "journalFullSeconds": 3_000_000_000_u64,
        });
        let config = Config::from_json(&config.to_string()).expect("configuration");
        config.journal.expect("a journal")
    }

    fn path(&self, node: usize) -> PathBuf {
        let crashes = self.crashes.lock()[node];
        self.dir.path().join(format!("{node}-{crashes}"))
    }

    /// Opens a copy of the journal that the dead node left behind.
    pub fn crashed(&self, node: usize) {
        let before = self.path(node);
        self.crashes.lock()[node] += 1;
        let after = self.path(node);
        // The dead process's thread may still be removing a file.
        while let Err(e) = copy(&before, &after) {
            assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
            std::fs::remove_dir_all(&after).expect("directory");
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir(to)?;
    if !from.exists() {
        return Ok(()); // it was never opened
    }
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}
