//! One file of the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use bytes::Bytes;

use super::layout::{
    self, Row, HEAD, JOURNAL_HEAD, MAX_LEN, POINTER_HEAD, RECORD_HEAD, ROW, TRAILER,
};
use crate::place::{self, Form, Place, Value};

/// What the names of the files end with.
pub(crate) const SUFFIX: &str = ".blocks";

/// A file of the cache. Readers hold it by an `Arc`, so they can read a removed file to its end.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u32,
    path: PathBuf,
    file: File,
    /// Whether it was taken over from the journal.
    retired: bool,
    complained: AtomicBool,
}

/// The result of a look at a record.
pub(super) enum Found {
    /// The value of the record under this name, as it was written, or its place.
    Value(Value),
    /// Another block.
    Other,
    /// No record at all, or a damaged value.
    Damaged,
}

/// What was read, if the file is long enough for it.
fn whole<T>(read: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read,
    }
}

/// The contents of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) rows: Vec<Row>,
    /// Where the records end (bytes).
    pub(super) end: u64,
    /// It has its table.
    pub(super) finished: bool,
}

impl AsRef<File> for Segment {
    fn as_ref(&self) -> &File {
        &self.file
    }
}

impl Segment {
    /// The numbers of the segments in a directory, oldest first.
    pub(super) fn all_in(dir: &Path) -> io::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|n| n.strip_suffix(SUFFIX));
            if let Some(id) = id.and_then(|id| id.parse().ok()) {
                // Files with other spellings of a number do not belong to the cache.
                if Self::path(dir, id).file_name() == Some(&name) {
                    ids.push(id);
                }
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn path(dir: &Path, id: u32) -> PathBuf {
        dir.join(format!("{id:010}{SUFFIX}"))
    }

    pub(super) fn create(dir: &Path, id: u32) -> io::Result<Segment> {
        let path = Self::path(dir, id);
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?;
        let segment = Segment {
            id,
            path,
            file,
            retired: false,
            complained: AtomicBool::new(false),
        };
        if let Err(e) = segment.write_at(HEAD, 0) {
            segment.remove();
            return Err(e);
        }
        Ok(segment)
    }

    pub(super) fn open(dir: &Path, id: u32) -> io::Result<Segment> {
        let path = Self::path(dir, id);
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self::of_file(id, path, file))
    }

    /// A segment in a file that is open.
    pub(super) fn of_file(id: u32, path: PathBuf, file: File) -> Segment {
        let mut head = [0; JOURNAL_HEAD.len()];
        let retired = file.read_exact_at(&mut head, 0).is_ok() && head == *JOURNAL_HEAD;
        Segment {
            id,
            path,
            file,
            retired,
            complained: AtomicBool::new(false),
        }
    }

    /// The contents of the file, by its table, or record by record where there is no table (a
    /// crash).
    ///
    /// # Errors
    /// It cannot be read, or is no segment.
    pub(super) fn contents(&self) -> io::Result<Contents> {
        let len = self.file.metadata()?.len();
        let mut head = [0; HEAD.len()];
        if len < HEAD.len() as u64 || len > MAX_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.file.read_exact_at(&mut head, 0)?;
        if head != *HEAD && !self.retired {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match self.table(len)? {
            Some(contents) => Ok(contents),
            None if self.retired => Err(io::ErrorKind::InvalidData.into()),
            None => self.scan(len),
        }
    }

    fn table(&self, len: u64) -> io::Result<Option<Contents>> {
        let mut end = [0; TRAILER];
        if len < (HEAD.len() + TRAILER) as u64 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut end, len - TRAILER as u64)?;
        let Some(trailer) = layout::trailer(&end, len) else {
            return Ok(None);
        };
        // No longer than the file, since it fits.
        let mut rows = vec![0; trailer.rows as usize * ROW];
        self.file.read_exact_at(&mut rows, trailer.records_end)?;
        Ok(layout::rows(&trailer, &rows).map(|rows| Contents {
            rows,
            end: trailer.records_end,
            finished: true,
        }))
    }

    fn scan(&self, len: u64) -> io::Result<Contents> {
        let mut rows = Vec::new();
        let mut at = HEAD.len() as u64;
        while let Some((head, value_len)) = self.record_head(at, len)? {
            rows.push(Row {
                tag: layout::tag(&head[RECORD_HEAD..]),
                offset: at as u32,
                value_len,
                structure: layout::is_structure(&head),
            });
            at += head.len() as u64 + u64::from(value_len);
        }
        Ok(Contents {
            rows,
            end: at,
            finished: false,
        })
    }

    /// Head and name of the record at `at`, and the length of its value, if all of it lies before
    /// `len`.
    fn record_head(&self, at: u64, len: u64) -> io::Result<Option<(Vec<u8>, u32)>> {
        let mut fixed = [0; RECORD_HEAD];
        if at + RECORD_HEAD as u64 > len {
            return Ok(None);
        }
        self.file.read_exact_at(&mut fixed, at)?;
        let Some((name_len, value_len)) = layout::record_lengths(&fixed) else {
            return Ok(None);
        };
        let mut head = vec![0; RECORD_HEAD + name_len];
        if at + head.len() as u64 + u64::from(value_len) > len {
            return Ok(None);
        }
        self.file.read_exact_at(&mut head, at)?;
        Ok(layout::is_record_head(&head).then_some((head, value_len)))
    }

    /// Looks for a value of `value_len` bytes under `name` at `offset`.
    ///
    /// # Errors
    /// The disk's. A file that is too short holds a damaged record.
    pub(super) fn find(
        self: &Arc<Self>,
        form: Form,
        offset: u32,
        name: &[u8],
        value_len: u32,
    ) -> io::Result<Found> {
        if self.retired {
            return self.find_by_pointer(form, offset, name, value_len);
        }
        let head_len = RECORD_HEAD + name.len();
        if form.is_place(value_len) {
            let mut head = vec![0; head_len];
            if self.reads(&mut head, offset)? && layout::is_record_of(&head, name, value_len) {
                let place = (
                    offset + head_len as u32,
                    value_len,
                    layout::value_crc(&head),
                );
                return self.found_at(form, place);
            }
            return self.other(offset);
        }
        // One call to the system for a short one.
        let mut record = vec![0; head_len + value_len as usize];
        if self.reads(&mut record, offset)? {
            let (head, value) = record.split_at(head_len);
            if layout::is_record_of(head, name, value_len) {
                return Ok(match layout::value_crc(head) == crc32fast::hash(value) {
                    true => Found::Value(Value::Memory(Bytes::from(record).slice(head_len..))),
                    false => Found::Damaged,
                });
            }
        }
        self.other(offset)
    }

    fn find_by_pointer(
        self: &Arc<Self>,
        form: Form,
        offset: u32,
        name: &[u8],
        value_len: u32,
    ) -> io::Result<Found> {
        let pointer = match self.pointer(offset, name.len()) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
            pointer => Some(pointer?),
        };
        match pointer {
            Some((found, (.., len, _))) if found != name || len != value_len => Ok(Found::Other),
            Some((_, place)) => self.found_at(form, place),
            None => Ok(Found::Damaged),
        }
    }

    /// The value at a place: where it begins, its length and its checksum.
    fn found_at(self: &Arc<Self>, form: Form, place: (u32, u32, u32)) -> io::Result<Found> {
        let (file, (at, len, crc)) = (Arc::clone(self), place);
        let value = whole(Place::new(file, u64::from(at), len, crc).in_form(form))?;
        Ok(value.map_or(Found::Damaged, Found::Value))
    }

    /// Whether the file has these bytes.
    fn reads(&self, into: &mut [u8], offset: u32) -> io::Result<bool> {
        match self.file.read_exact_at(into, u64::from(offset)) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true),
        }
    }

    /// There is no record of the wanted name at `offset`.
    fn other(&self, offset: u32) -> io::Result<Found> {
        let len = self.file.metadata()?.len();
        let other = self.record_head(u64::from(offset), len)?;
        Ok(other.map_or(Found::Damaged, |_| Found::Other))
    }

    /// The name in the pointer at `offset`, and where it leads: place, length and checksum of a
    /// value. `likely`: the length of the name, if it is the expected one (bytes).
    ///
    /// # Errors
    /// The disk's; `InvalidData` if there is no pointer.
    fn pointer(&self, offset: u32, likely: usize) -> io::Result<(Vec<u8>, (u32, u32, u32))> {
        let read = |len: usize| {
            let mut pointer = vec![0; len];
            let read = self.file.read_exact_at(&mut pointer, u64::from(offset));
            match read {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(io::ErrorKind::InvalidData.into())
                }
                read => read.map(|()| pointer),
            }
        };
        let mut pointer = read(POINTER_HEAD + likely)?;
        let head = pointer.first_chunk();
        let name_len = head.and_then(layout::pointer_name_len);
        let name_len = name_len.ok_or(io::ErrorKind::InvalidData)?;
        if name_len != likely {
            pointer = read(POINTER_HEAD + name_len)?;
        }
        let place = layout::pointed_at(&pointer).ok_or(io::ErrorKind::InvalidData)?;
        Ok((pointer.split_off(POINTER_HEAD), place))
    }

    /// The value at a place, if it is the one that was written there.
    fn value_at(&self, (at, len, crc): (u32, u32, u32)) -> io::Result<Option<Bytes>> {
        whole(place::read(&self.file, u64::from(at), len, crc))
    }

    /// The record at `offset`: head and name, and value.
    ///
    /// # Errors
    /// The disk's; `InvalidData` if there is none.
    pub(super) fn record(&self, offset: u32) -> io::Result<(Vec<u8>, Vec<u8>)> {
        if self.retired {
            /// Names of SHA2-256 are by far the most frequent ones.
            const LIKELY: usize = 34;
            let (name, place) = self.pointer(offset, LIKELY)?;
            let value = self.value_at(place)?;
            let value = value.ok_or(io::ErrorKind::InvalidData)?;
            return Ok((layout::record_head(&name, &value), value.into()));
        }
        let at = u64::from(offset);
        let len = self.file.metadata()?.len();
        let (head, value_len) = self
            .record_head(at, len)?
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut value = vec![0; value_len as usize];
        self.file
            .read_exact_at(&mut value, at + head.len() as u64)?;
        Ok((head, value))
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Writes the table and ends the file behind it.
    pub(super) fn finish(&self, rows: &[Row], records_end: u64) -> io::Result<()> {
        let table = layout::table(rows, records_end);
        self.write_at(&table, records_end)?;
        self.file.set_len(records_end + table.len() as u64)
    }

    /// Whether records can be appended to it.
    pub(super) fn grows(&self) -> bool {
        !self.retired
    }

    /// Cuts off what stands behind the records, to go on writing there.
    pub(super) fn reopen(&self, records_end: u64) -> io::Result<()> {
        self.file.set_len(records_end)
    }

    /// Whether the file was removed.
    pub(super) fn is_gone(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.nlink() == 0)
    }

    /// Removes the file; its space comes back when the last reader is done.
    pub(super) fn remove(&self) {
        // Nothing is lost if it stays: the next open finds it.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Whether this is the first complaint about this file.
    pub(super) fn complains_first(&self) -> bool {
        !self.complained.swap(true, Ordering::Relaxed)
    }

    pub(super) fn shown(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}
