//! The calls of the journal to the operating system: the seam at which tests let a disk fail.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::dirlock;

/// The ending of segments that are kept for an operator, because blocks in them are damaged.
pub(super) const ASIDE: &str = "damaged";

/// Changes files, and opens them for changes. Reading is not part of it.
pub(super) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file that exists.
    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Makes a file that did not exist.
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    /// Writes the slices one after another from byte `at` on. After an error any part may have been
    /// written. Moves the file's cursor: one thread at a time.
    fn write(&self, file: &File, at: u64, slices: &[&[u8]]) -> io::Result<()> {
        write_all(file, at, slices)
    }

    /// Makes the file end at byte `len`.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Returns when everything written survives a power cut. Fails if the file was removed
    /// meanwhile.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file was removed while it was in use",
            ));
        }
        Ok(())
    }

    /// Makes the names in a directory survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Gives a file another name in its directory; replaces a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Puts a README with this text into a directory of the journal.
    fn write_readme(&self, dir: &Path, text: &str) -> io::Result<()> {
        dirlock::write_readme(dir, text)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// Whether the disk, or the quota, has no room left.
pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The disk as it is.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {}

pub(super) fn write_all(mut file: &File, at: u64, slices: &[&[u8]]) -> io::Result<()> {
    /// How many slices the kernel takes in one call (IOV_MAX).
    const AT_ONCE: usize = 1024;
    file.seek(SeekFrom::Start(at))?;
    for group in slices.chunks(AT_ONCE) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|s| IoSlice::new(s)).collect();
        let mut rest = &mut slices[..];
        // Empty slices at the front would read as "nothing was taken".
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
