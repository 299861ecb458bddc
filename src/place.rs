//! A value, or the place in a local file where it lies.
//!
//! A long value that lies in a file is not read before its reader has memory for it, so it is
//! copied once: from the system's memory to the reader's.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::dag;
use crate::error::{Error, ErrorKind, Result};

/// A value that is found.
pub(crate) enum Value {
    Memory(Bytes),
    File(Place),
}

/// Where a value lies in a file. The file can be read for as long as this lives, even if it has
/// lost its name.
pub(crate) struct Place {
    file: Arc<dyn AsRef<File> + Send + Sync>,
    at: u64,
    len: u32,
    crc: u32,
}

/// The form in which a caller takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bytes,
    /// The place of a long value that lies in a local file.
    Place,
}

impl Form {
    /// Whether a value of `len` bytes that lies in a file may be handed out by its place. Shorter
    /// ones are read at once, as that costs little.
    pub(crate) fn is_place(self, len: u64) -> bool {
        const LEAST: u64 = 128 << 10;
        self == Form::Place && len >= LEAST
    }
}

impl Value {
    /// The value, read if it is in a file.
    ///
    /// # Errors
    /// Those of [`copy_to`](Self::copy_to).
    pub(crate) fn bytes(self) -> Result<Bytes> {
        if let Value::Memory(bytes) = self {
            return Ok(bytes);
        }
        let mut value = vec![0; self.len()];
        self.copy_to(&mut value)?;
        Ok(value.into())
    }

    /// Copies the value, or reads it from the local disk (mostly its cache) on the calling thread,
    /// into memory of its length.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`] if it cannot be read; [`ErrorKind::Corrupt`] if it is not the value that
    /// was written.
    pub(crate) fn copy_to(&self, into: &mut [u8]) -> Result<()> {
        let place = match self {
            Value::Memory(bytes) => {
                into.copy_from_slice(bytes);
                return Ok(());
            }
            Value::File(place) => place,
        };
        match place.read(into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the value of {place} is not what was written there"),
            )),
            Err(e) => Err(Error::new(
                ErrorKind::Disk,
                format!("the value of {place}: {e}"),
            )),
        }
    }

    /// Its length (bytes).
    pub(crate) fn len(&self) -> usize {
        match self {
            Value::Memory(bytes) => bytes.len(),
            Value::File(place) => place.len as usize,
        }
    }
}

impl Place {
    /// A value of `len` bytes at byte `at` of a file, with this checksum (CRC-32).
    pub(crate) fn new(
        file: Arc<dyn AsRef<File> + Send + Sync>,
        at: u64,
        len: u32,
        crc: u32,
    ) -> Place {
        Place { file, at, len, crc }
    }

    /// The place, unless a node with links seems to lie there: the engine wants to see its bytes.
    pub(crate) fn of_leaf(self) -> Option<Place> {
        let file: &File = (*self.file).as_ref();
        let mut first = [0];
        let read = file.read_exact_at(&mut first, self.at);
        (read.is_ok() && first[0] != dag::LINKS_FIRST).then_some(self)
    }

    /// Reads the value into memory of its length; returns whether it has its checksum. Reads from
    /// the local disk (mostly its cache) on the calling thread.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` if the file ends before.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<bool> {
        let file: &File = (*self.file).as_ref();
        file.read_exact_at(into, self.at)?;
        Ok(crc32fast::hash(into) == self.crc)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at byte {} of a local file", self.len, self.at)
    }
}

/// The value of `len` bytes at byte `at` of a file, if it has this checksum (CRC-32).
///
/// # Errors
/// As [`Place::read`].
pub(crate) fn read(file: &File, at: u64, len: u32, crc: u32) -> io::Result<Option<Bytes>> {
    let mut value = vec![0; len as usize];
    file.read_exact_at(&mut value, at)?;
    Ok((crc32fast::hash(&value) == crc).then(|| value.into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Whole(File);
    impl AsRef<File> for Whole {
        fn as_ref(&self) -> &File {
            &self.0
        }
    }

    fn lies(value: &[u8]) -> Place {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(value).unwrap();
        let crc = crc32fast::hash(value);
        Place::new(Arc::new(Whole(file)), 6, value.len() as u32, crc)
    }

    #[test]
    fn a_value_is_copied_from_memory_or_its_place() {
        let value = vec![7; 300_000];
        for found in [
            Value::Memory(value.clone().into()),
            Value::File(lies(&value)),
        ] {
            assert_eq!(found.len(), value.len());
            let mut into = vec![0; value.len()];
            found.copy_to(&mut into).unwrap();
            assert_eq!(into, value);
            assert_eq!(found.bytes().unwrap(), value);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let place = lies(&[7; 1000]);
        let file: &File = (*place.file).as_ref();
        file.write_all_at(&[6], 500).unwrap();
        let error = Value::File(place).bytes().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let place = lies(&[7; 1000]);
        let file: &File = (*place.file).as_ref();
        file.set_len(1000).unwrap();
        let error = Value::File(place).bytes().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disk);
    }

    /// The reader learns the links of a node, however long it is.
    #[test]
    fn a_node_with_links_is_not_handed_out_by_its_place() {
        assert!(lies(&[dag::LINKS_FIRST, 1, 2]).of_leaf().is_none());
        assert!(lies(&[0x0a, 1, 2]).of_leaf().is_some());
        assert!(lies(&[]).of_leaf().is_none());
    }

    #[test]
    fn short_values_are_read_at_once() {
        assert!(!Form::Bytes.is_place(1 << 20));
        assert!(!Form::Place.is_place(1 << 10));
        assert!(Form::Place.is_place(256 << 10));
    }
}
