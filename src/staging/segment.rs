//! One file of the journal.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::frame::{self, Entry, Frame, FRAME_HEAD, SEGMENT_HEAD, SEGMENT_MAGIC};

const SUFFIX: &str = ".segment";

/// A segment, open for reading (and, while it is the newest, for appending).
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    path: PathBuf,
    file: File,
    /// Bytes that hold whole frames; what comes after is not part of the journal.
    len: AtomicU64,
    /// Blocks in it that are neither on Walrus and indexed nor replaced nor deleted.
    live: AtomicUsize,
    /// Nothing is appended any more.
    sealed: AtomicBool,
}

/// What is in a segment.
pub(super) struct Scan {
    /// Frames with their offsets (bytes).
    pub(super) frames: Vec<(u64, Frame)>,
    /// Bytes up to the end of the last whole frame.
    pub(super) len: u64,
    /// Frames in the middle whose values are damaged.
    pub(super) damaged: usize,
}

impl Segment {
    /// Makes a new segment. It is on disk, name and all, on return.
    pub(super) fn create(dir: &Path, id: u64) -> io::Result<Segment> {
        let path = dir.join(format!("{id:016x}{SUFFIX}"));
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let segment = Segment {
            id,
            path,
            file,
            len: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            sealed: AtomicBool::new(false),
        };
        let head = [&SEGMENT_MAGIC[..], &id.to_le_bytes()].concat();
        let made = segment
            .append(&head, std::iter::empty())
            .and_then(|_| segment.sync())
            .and_then(|()| sync_dir(dir));
        if made.is_err() {
            let _ = segment.remove();
        }
        made.map(|()| segment)
    }

    /// The segments in a directory, oldest first.
    pub(super) fn all_in(dir: &Path) -> io::Result<Vec<Segment>> {
        let mut all = Vec::new();
        for entry in dir.read_dir()? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let Some(id) = name.strip_suffix(SUFFIX) else {
                continue;
            };
            let Ok(id) = u64::from_str_radix(id, 16) else {
                continue;
            };
            let file = OpenOptions::new().read(true).append(true).open(&path)?;
            let len = file.metadata()?.len();
            all.push(Segment {
                id,
                path,
                file,
                len: AtomicU64::new(len),
                live: AtomicUsize::new(0),
                sealed: AtomicBool::new(true),
            });
        }
        all.sort_by_key(|s| s.id);
        Ok(all)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    pub(super) fn add_live(&self) {
        self.live.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn drop_live(&self) {
        self.live.fetch_sub(1, Ordering::AcqRel);
    }

    /// Appends `head` and the values; returns where they begin. After an error the segment is as
    /// before. Only one thread appends.
    pub(super) fn append<'a>(
        &self,
        head: &'a [u8],
        values: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<u64> {
        let start = self.len();
        let slices: Vec<&[u8]> = std::iter::once(head).chain(values).collect();
        match write_all(&self.file, &slices) {
            Ok(()) => {
                let written: u64 = slices.iter().map(|s| s.len() as u64).sum();
                self.len.store(start + written, Ordering::Release);
                Ok(start)
            }
            Err(e) => {
                self.truncate(start)?;
                Err(e)
            }
        }
    }

    /// Cuts off what lies behind `len` bytes.
    pub(super) fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    /// Returns when everything appended survives a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Removes the file. Readers that hold the segment go on reading.
    pub(super) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    /// Reads every frame's head and table, and with `values` the values too. What cannot be a frame
    /// ends the scan. Frames whose values are damaged are left out.
    pub(super) fn scan(&self, values: bool) -> io::Result<Scan> {
        let end = self.len();
        let mut scan = Scan {
            frames: Vec::new(),
            len: 0,
            damaged: 0,
        };
        let mut head = [0; SEGMENT_HEAD as usize];
        if end < SEGMENT_HEAD {
            return Ok(scan);
        }
        self.read_at(0, &mut head)?;
        if &head[..8] != SEGMENT_MAGIC || frame::u64_at(&head, 8) != Some(self.id) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this is no journal segment of this version",
            ));
        }
        let mut at = SEGMENT_HEAD;
        scan.len = at;
        let mut bad = 0;
        while let Some(frame) = self.frame_at(at, end)? {
            let start = at;
            at += frame.len;
            if values && !self.values_intact(start, &frame)? {
                bad += 1;
                continue;
            }
            // What is damaged before a whole frame is not the torn end.
            scan.damaged = bad;
            scan.frames.push((start, frame));
            scan.len = at;
        }
        Ok(scan)
    }

    fn frame_at(&self, at: u64, end: u64) -> io::Result<Option<Frame>> {
        let mut head = [0; FRAME_HEAD];
        let after_head = at + FRAME_HEAD as u64;
        if after_head > end {
            return Ok(None);
        }
        self.read_at(at, &mut head)?;
        let Some(len) = frame::table_len(&head).filter(|len| after_head + *len as u64 <= end)
        else {
            return Ok(None);
        };
        let mut table = vec![0; len];
        self.read_at(after_head, &mut table)?;
        Ok(frame::decode(&head, &table).filter(|frame| at + frame.len <= end))
    }

    fn values_intact(&self, start: u64, frame: &Frame) -> io::Result<bool> {
        let mut value = Vec::new();
        for entry in &frame.entries {
            if let Entry::Put {
                offset, len, crc, ..
            } = entry
            {
                value.resize(*len as usize, 0);
                self.read_at(start + offset, &mut value)?;
                if crc32fast::hash(&value) != *crc {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn write_all(mut file: &File, slices: &[&[u8]]) -> io::Result<()> {
    /// What the kernel takes in one call (IOV_MAX).
    const AT_ONCE: usize = 1024;
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

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
