//! A small disk that can be filled. Needs the right to mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::postgres::is_root;

/// A tmpfs of its own; unmounted when dropped.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` (and a note) where this process may not mount.
    pub fn mount(megabytes: u32) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("mount point");
        let mounted = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
                .arg(dir.path())
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            println!("skipped: a full disk takes the right to mount (root)");
            return None;
        }
        Some(SmallDisk { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Mounts it again with other options, such as `ro`.
    #[allow(dead_code)] // each test binary uses its own part of this
    pub fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.dir.path())
            .status();
        assert!(status.is_ok_and(|s| s.success()), "remounting {options}");
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    /// Fills all the space that is left, and any space freed since the last call.
    pub fn fill(&self) {
        use std::io::Write;
        let mut options = std::fs::File::options();
        let file = options.create(true).append(true).open(self.filler());
        let mut file = file.expect("filler");
        let block = vec![0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Frees the space.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("removing the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server may still be about to close its files.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}
