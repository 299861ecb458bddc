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
    /// The form in which a caller gets values that are checked against their names before they are
    /// handed out, if `checked` says so.
    pub(crate) fn checked(self, checked: bool) -> Form {
        match checked {
            true => Form::Bytes,
            false => self,
        }
    }

    /// Whether a value of `len` bytes that lies in a file may be handed out by its place. Shorter
    /// ones are read at once, as that costs little.
    pub(crate) fn is_place(self, len: u32) -> bool {
        const LEAST: u32 = 128 << 10;
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
        match read_into(place.file(), place.at, place.crc, into) {
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

    /// The value in this form; `None` if it is read, and what the file has there has another
    /// checksum. Reads from the local disk (mostly its cache) on the calling thread.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` if the file ends before.
    pub(crate) fn in_form(self, form: Form) -> io::Result<Option<Value>> {
        if form.is_place(self.len) && self.is_leaf() {
            return Ok(Some(Value::File(self)));
        }
        let value = read(self.file(), self.at, self.len, self.crc)?;
        Ok(value.map(Value::Memory))
    }

    /// Whether no node with links seems to lie there: the engine wants to see the bytes of a node.
    fn is_leaf(&self) -> bool {
        let mut first = [0];
        let read = self.file().read_exact_at(&mut first, self.at);
        read.is_ok() && first[0] != dag::LINKS_FIRST
    }

    fn file(&self) -> &File {
        (*self.file).as_ref()
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
/// The disk's; `UnexpectedEof` if the file ends before.
pub(crate) fn read(file: &File, at: u64, len: u32, crc: u32) -> io::Result<Option<Bytes>> {
    let mut value = vec![0; len as usize];
    let is_right = read_into(file, at, crc, &mut value)?;
    Ok(is_right.then(|| value.into()))
}

/// Fills memory from byte `at` of a file on; returns whether the bytes have this checksum.
fn read_into(file: &File, at: u64, crc: u32, into: &mut [u8]) -> io::Result<bool> {
    file.read_exact_at(into, at)?;
    Ok(crc32fast::hash(into) == crc)
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
        place.file().write_all_at(&[6], 500).unwrap();
        let error = Value::File(place).bytes().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let place = lies(&[7; 1000]);
        place.file().set_len(1000).unwrap();
        let error = Value::File(place).bytes().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disk);
    }

    /// The reader learns the links of a node, however long it is.
    #[test]
    fn a_node_with_links_is_not_handed_out_by_its_place() {
        assert!(!lies(&[dag::LINKS_FIRST, 1, 2]).is_leaf());
        assert!(lies(&[0x0a, 1, 2]).is_leaf());
        assert!(!lies(&[]).is_leaf());
        for first in [dag::LINKS_FIRST, 0x0a] {
            let mut value = vec![7; 300_000];
            value[0] = first;
            let found = lies(&value).in_form(Form::Place).unwrap().unwrap();
            assert_eq!(matches!(found, Value::File(_)), first == 0x0a);
            assert_eq!(found.bytes().unwrap(), value);
        }
    }

    #[test]
    fn short_values_are_read_at_once() {
        assert!(!Form::Bytes.is_place(1 << 20));
        assert!(!Form::Place.is_place(1 << 10));
        assert!(Form::Place.is_place(256 << 10));
    }
}
