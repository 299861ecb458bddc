//! Copies of blocks in a journal's files that are no staged blocks: for `repair`, which looks for
//! any copy of a block that is lost on Walrus.
//!
//! There are two kinds ([`Which`]). A file of the journal holds blocks that have travelled until
//! the whole file leaves. A file that was set aside has damaged blocks, and whole ones beside them.
//!
//! Every put in a file counts, also one that was replaced or deleted since: the caller checks each
//! copy against its key. No file is changed, and no lock is taken, so a node may work with the
//! journal meanwhile. A file that it removes or renames later is still read to its end.
//!
//! Memory: about 100 bytes for each put in the files. Values are read when they are asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::damage::{self, Damages};
use super::disk::Disk;
use super::disk_error;
use super::frame::Entry;
use super::owner::Untouched;
use super::segment::Segment;
use crate::error::Result;
use crate::place::{Form, Place};

/// Which files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those of the journal.
    Journal,
    /// Those that were set aside, because a block in them is damaged.
    Aside,
}

/// The puts in the files that a directory held when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// In the order of their keys; those of one key newest first.
    puts: Vec<Put>,
    files: Vec<Opened>,
    /// Why files could not be looked at.
    unread: Vec<String>,
    /// The list of damaged blocks.
    damaged: Damages,
}

#[derive(Debug)]
struct Put {
    key: Arc<str>,
    /// The number of its file in [`Spare::files`].
    file: usize,
    /// Where its value begins in the file (bytes).
    offset: u64,
    len: u32,
    crc: u32,
}

#[derive(Debug)]
struct Opened {
    segment: Arc<Segment>,
    /// Whether all of its bytes are understood.
    understood: bool,
}

/// The contents of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    /// The keys of which it has a whole value.
    pub(crate) whole: Vec<String>,
    /// The keys of which it has damaged values alone.
    pub(crate) damaged: Vec<String>,
    /// How many keys stand with this file in the list of damaged blocks: they were neither put
    /// again nor deleted since, as far as the journal knows.
    pub(crate) listed: usize,
    /// Whether all of its bytes are understood. Otherwise it may hold blocks with unknown keys.
    pub(crate) understood: bool,
}

impl Spare {
    /// Looks at the journal in `dir`, which need not exist. A file that cannot be read is left out,
    /// and [named](Self::unread).
    ///
    /// # Errors
    /// [`ErrorKind::Disk`](crate::ErrorKind::Disk): the directory cannot be read, or a file of the
    /// journal was removed just now.
    pub(crate) fn of(dir: &Path, which: Which) -> Result<Spare> {
        let mut spare = Spare::default();
        if !dir.exists() {
            return Ok(spare);
        }
        let failed = |e: io::Error| disk_error(&format!("journalPath {}", dir.display()), &e);
        let disk: Arc<dyn Disk> = Arc::new(Untouched);
        let segments = match which {
            Which::Journal => Segment::all_in(dir, &disk),
            Which::Aside => Segment::aside_in(dir, &disk),
        };
        for segment in segments.map_err(failed)? {
            if let Err(e) = spare.add(segment) {
                spare.unread.push(e);
            }
        }
        // The sort is stable: newer puts of a key were added later.
        spare.puts.reverse();
        spare.puts.sort_by(|a, b| a.key.cmp(&b.key));
        spare.damaged = damage::load(dir).map_err(failed)?.0;
        Ok(spare)
    }

    /// Adds the puts of a file; says why it cannot be read.
    fn add(&mut self, segment: Segment) -> std::result::Result<(), String> {
        let scan = segment.scan(0);
        let scan = scan.map_err(|e| format!("journal file {}: {e}", segment.path().display()))?;
        let mut understood = scan.gaps == 0
            && !scan.torn
            && scan.rest.is_none()
            && scan.expected.is_none_or(|end| end == scan.len);
        let file = self.files.len();
        for (start, frame) in scan.frames {
            for entry in frame.entries {
                match entry {
                    Entry::Put {
                        key,
                        offset,
                        len,
                        crc,
                    }
                    | Entry::Damaged {
                        key,
                        offset,
                        len,
                        crc,
                        ..
                    } => self.puts.push(Put {
                        key,
                        file,
                        offset: start + offset,
                        len,
                        crc,
                    }),
                    Entry::Lost => understood = false,
                    Entry::Delete(_) | Entry::Done(..) => {}
                }
            }
        }
        self.files.push(Opened {
            segment: Arc::new(segment),
            understood,
        });
        Ok(())
    }

    /// The names of files that could not be looked at, and why.
    pub(crate) fn unread(&self) -> &[String] {
        &self.unread
    }

    /// A value under this key that is `right`. Reads from the local disk on the calling thread.
    pub(crate) fn get(&self, key: &str, right: impl Fn(&Bytes) -> bool) -> Option<Bytes> {
        let first = self.puts.partition_point(|put| *put.key < *key);
        let puts = self.puts[first..].iter();
        puts.take_while(|put| *put.key == *key)
            .filter_map(|put| self.read(put))
            .find(right)
    }

    /// What is in each file. Reads all of their values, on the calling thread.
    pub(crate) fn contents(&self) -> Vec<Contents> {
        let empty = |opened: &Opened| Contents {
            path: opened.segment.path().to_owned(),
            whole: Vec::new(),
            damaged: Vec::new(),
            listed: 0,
            understood: opened.understood,
        };
        let mut all: Vec<Contents> = self.files.iter().map(empty).collect();
        for puts in self.puts.chunk_by(|a, b| a.key == b.key) {
            for (file, contents) in all.iter_mut().enumerate() {
                let mut here = puts.iter().filter(|put| put.file == file).peekable();
                let Some(first) = here.peek() else { continue };
                let key = first.key.to_string();
                match here.any(|put| self.read(put).is_some()) {
                    true => contents.whole.push(key),
                    false => contents.damaged.push(key),
                }
            }
        }
        for (opened, contents) in self.files.iter().zip(&mut all) {
            let name = opened.segment.file_name();
            let here = self.damaged.values().filter(|damage| damage.file == name);
            contents.listed = here.count();
        }
        all
    }

    /// The value of a put, if it can be read and is the one that was written.
    fn read(&self, put: &Put) -> Option<Bytes> {
        let file = Arc::clone(&self.files.get(put.file)?.segment);
        let value = Place::new(file, put.offset, put.len, put.crc).in_form(Form::Bytes);
        value.ok()??.bytes().ok()
    }
}
