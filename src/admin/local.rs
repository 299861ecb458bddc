//! The files of a journal or a cache on the local disk, as they lie there: nothing is locked, and
//! the node that has them open may change them meanwhile.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::time;

/// Files of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Files {
    /// The directory.
    pub path: PathBuf,
    /// Whether it exists.
    pub exists: bool,
    /// Segments in it.
    pub segments: u64,
    /// Their room on the disk (bytes): at least what is in them, as a part may be written ahead.
    pub disk_bytes: u64,
    /// When the oldest segment was made.
    #[serde(serialize_with = "time::option::serialize")]
    pub oldest: Option<SystemTime>,
}

impl Files {
    /// The segments in a directory. Files that vanish meanwhile do not count.
    pub(super) fn of(dir: &Path) -> Files {
        let mut found = Files {
            path: dir.to_owned(),
            exists: dir.is_dir(),
            segments: 0,
            disk_bytes: 0,
            oldest: None,
        };
        let entries = dir.read_dir().into_iter().flatten().flatten();
        for entry in entries {
            let is_segment = entry.path().extension().is_some_and(|x| x == "segment");
            let Some(meta) = entry
                .metadata()
                .ok()
                .filter(|meta| is_segment && meta.is_file())
            else {
                continue;
            };
            let made = meta.created().or_else(|_| meta.modified()).ok();
            found.segments += 1;
            // stat counts in 512 bytes on every system.
            found.disk_bytes += meta.blocks() * 512;
            found.oldest = match (found.oldest, made) {
                (Some(oldest), Some(made)) => Some(oldest.min(made)),
                (oldest, made) => oldest.or(made),
            };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.segment"), vec![1; 10_000]).unwrap();
        std::fs::write(dir.path().join("LOCK"), b"x").unwrap();
        let files = Files::of(dir.path());
        assert_eq!((files.exists, files.segments), (true, 1));
        assert!(files.oldest.is_some());
        let none = Files::of(&dir.path().join("none"));
        assert_eq!((none.exists, none.segments, none.oldest), (false, 0, None));
    }
}
