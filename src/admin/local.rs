//! The files of a journal or a cache on the local disk, as they lie there: nothing is locked, and
//! the node that has them open may change them meanwhile.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::{shown, time};
use crate::journal::SEGMENT_SUFFIX;
use crate::read::disk::FILE_SUFFIX;

/// Files of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Files {
    /// The directory.
    #[serde(serialize_with = "shown::path")]
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
    /// The segments of a journal.
    pub(super) fn of_journal(dir: &Path) -> Files {
        Files::of(dir, SEGMENT_SUFFIX)
    }

    /// The files of a disk cache.
    pub(super) fn of_cache(dir: &Path) -> Files {
        Files::of(dir, FILE_SUFFIX)
    }

    /// The files in a directory whose names end so. Files that vanish meanwhile do not count.
    fn of(dir: &Path, suffix: &str) -> Files {
        let mut found = Files {
            path: dir.to_owned(),
            exists: dir.is_dir(),
            segments: 0,
            disk_bytes: 0,
            oldest: None,
        };
        let entries = dir.read_dir().into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let is_segment = name.as_encoded_bytes().ends_with(suffix.as_bytes());
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
    use std::sync::Arc;

    use bytes::Bytes;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::multihash::{KeyMultihash, Multihash};
    use crate::read::disk::{DiskCache, DiskCacheConfig};

    #[test]
    fn only_segments_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.segment"), vec![1; 10_000]).unwrap();
        std::fs::write(dir.path().join("LOCK"), b"x").unwrap();
        let files = Files::of_journal(dir.path());
        assert_eq!((files.exists, files.segments), (true, 1));
        assert!(files.oldest.is_some());
        assert_eq!(Files::of_cache(dir.path()).segments, 0);
        let none = Files::of_journal(&dir.path().join("none"));
        assert_eq!((none.exists, none.segments, none.oldest), (false, 0, None));
    }

    #[tokio::test]
    async fn the_files_of_a_cache_count() {
        let dir = tempfile::tempdir().unwrap();
        let config = DiskCacheConfig {
            path: dir.path().to_owned(),
            max_bytes: 64 << 20,
        };
        let cache = DiskCache::open(config, false, Arc::default());
        let value = Bytes::from_static(&[7; 5000]);
        let key = KeyMultihash::key(0x12, &Sha256::digest(&value)).unwrap();
        cache.insert(Multihash::of_key(&key).unwrap(), &value, true);
        cache.close().await;
        let files = Files::of_cache(dir.path());
        assert_eq!((files.exists, files.segments), (true, 1));
        assert!(files.disk_bytes >= 5000, "{files:?}");
    }
}
