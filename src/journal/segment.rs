//! One file of the journal.
//!
//! The problem: appends must be cheap to sync, and a scan after a crash must find exactly the
//! frames that were written whole.
//!
//! Zeroes are written ahead of the frames, in growing steps, because syncing bytes that overwrite
//! zeroes is many times cheaper than syncing a file that has grown: its size and extents stay as
//! they are. A scan ends at the zeroes.
//!
//! A full segment is sealed: its zeroes are cut off and a table of contents is written behind the
//! frames, so that the next open need not visit each frame.
//!
//! Invariants:
//! - [`Segment::len`] is the end of the last whole frame. Unless the segment is sealed, only zeroes
//!   are ever left behind it, so that no old bytes can be taken for a frame. After an error the end
//!   must be [cut off](Segment::trim) or the segment [cut back](Segment::cut) before the next
//!   append.
//! - A seal is written only after the frames and the table of contents were synced, and is synced
//!   itself. [`Segment::cut`] removes it.
//! - One thread at a time changes a segment: the open, or the appender under its lock. Other
//!   threads read blocks meanwhile (`read_at`), so the lengths are atomic, and are set after the
//!   bytes were written.
//!
//! The only lock taken here is that of a segment's syncs, which is innermost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, ASIDE};
use super::frame::{self, Frame, Head, Seal};
use super::judge::{self, Verdict};
use super::salvage::{self, Salvaged};
use super::window::Window;

pub(crate) const SUFFIX: &str = ".segment";

/// How many zeroes are written ahead of the frames (bytes): a new file gets `AHEAD_LEAST`, later
/// steps follow the length of its short frames.
const AHEAD_LEAST: u64 = 64 << 10;
const AHEAD_MOST: u64 = 4 << 20;
/// Frames of at least this length (bytes) get no zeroes ahead: their own bytes cost more than the
/// growth of the file.
const LONG_FRAME: u64 = 128 << 10;

static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// A segment, open for reading (and, while it is the newest, for appending).
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    path: PathBuf,
    file: File,
    disk: Arc<dyn Disk>,
    /// The length of the whole frames (bytes); later bytes are not part of the journal.
    len: AtomicU64,
    /// The length of the file (bytes): frames, zeroes ahead, table of contents.
    file_len: AtomicU64,
    /// The length that the table of contents has, or will have (bytes).
    contents_len: AtomicU64,
    /// The number of its blocks that are neither on Walrus and indexed nor replaced nor deleted.
    live: AtomicUsize,
    /// Whether it has the first version of the layout, which is read only.
    old: AtomicBool,
    /// Whether a block in it is damaged: then the file is set aside for an operator once it is
    /// free.
    keep: AtomicBool,
    /// Bytes of short frames since the last long one: as many more are expected to follow.
    short_run: AtomicU64,
    /// Held while the file is synced: whether a sync has failed since the file was made or cut.
    sync_failed: Mutex<bool>,
}

/// The contents of a segment, as a scan finds them.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Frames with their offsets (bytes).
    pub(super) frames: Vec<(u64, Frame)>,
    /// Bytes up to the end of the last whole frame. 0 if not even the head is whole.
    pub(super) len: u64,
    /// Where the frames ought to end (bytes), if the seal says so.
    pub(super) expected: Option<u64>,
    /// Whether there are other bytes than zeroes behind the last whole frame.
    pub(super) torn: bool,
    /// The number of bytes between whole frames that are no frames.
    pub(super) gaps: u64,
    /// The same of bytes that may never have been synced: some sector of them was never written,
    /// and each frame behind them tells that frames before it were not synced.
    pub(super) unsynced: u64,
    /// Whether some of the frames may be bytes of a block: they come behind a gap whose end is not
    /// certain.
    doubtful: bool,
    /// Where a write begins of whose head or table one bit was flipped: it is known which.
    pub(super) mended: Option<u64>,
    /// The last write, if it is not whole and some of it was kept, or it may have been
    /// acknowledged.
    pub(super) rest: Option<Rest>,
    /// The table of contents, as far as the frames go.
    pub(super) contents: Vec<u8>,
    /// Whether frames may be appended: the segment is of the present version, was not sealed, and
    /// is not [odd](Self::is_odd).
    pub(super) open: bool,
}

/// What is left of a last write that is not whole.
#[derive(Debug)]
pub(super) struct Rest {
    /// The number of its blocks that are whole and kept.
    pub(super) kept: usize,
    /// The keys of its other entries, as far as they can be read.
    pub(super) others: Vec<String>,
    /// Whether it is more likely damaged than cut short by a crash, and so may have been
    /// acknowledged.
    pub(super) doubtful: bool,
}

impl AsRef<File> for Segment {
    fn as_ref(&self) -> &File {
        &self.file
    }
}

impl Segment {
    pub(super) fn path_of(dir: &Path, id: u64) -> PathBuf {
        dir.join(format!("{id:016x}{SUFFIX}"))
    }

    /// Makes a new segment, with at most `room` bytes of zeroes. It is on disk, name and all, on
    /// return. After an error there may be a file under its name.
    pub(super) fn create(
        dir: &Path,
        id: u64,
        disk: &Arc<dyn Disk>,
        room: u64,
    ) -> io::Result<Segment> {
        let path = Segment::path_of(dir, id);
        let segment = Segment {
            id,
            file: disk.create(&path)?,
            path,
            disk: Arc::clone(disk),
            len: AtomicU64::new(0),
            file_len: AtomicU64::new(0),
            contents_len: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            old: AtomicBool::new(false),
            keep: AtomicBool::new(false),
            short_run: AtomicU64::new(0),
            sync_failed: Mutex::new(false),
        };
        disk.write(&segment.file, 0, &[&frame::encode_head(id)])
            .and_then(|()| {
                segment.len.store(frame::SEGMENT_HEAD, Ordering::Release);
                segment
                    .file_len
                    .store(frame::SEGMENT_HEAD, Ordering::Release);
                // An error is ignored: a disk without room for the zeroes may still have some for
                // frames.
                let ahead = room.min(AHEAD_LEAST).saturating_sub(frame::SEGMENT_HEAD);
                let _ = segment.write_ahead(ahead);
                segment.sync()
            })
            .and_then(|()| disk.sync_dir(dir))
            .map(|()| segment)
    }

    /// The segments in a directory, oldest first.
    pub(super) fn all_in(dir: &Path, disk: &Arc<dyn Disk>) -> io::Result<Vec<Segment>> {
        Self::named_in(dir, disk, |name| name.strip_suffix(SUFFIX))
    }

    /// The files in a directory that were [set aside](Self::remove), for reading alone.
    pub(super) fn aside_in(dir: &Path, disk: &Arc<dyn Disk>) -> io::Result<Vec<Segment>> {
        Self::named_in(dir, disk, |name| {
            let name = name.strip_suffix(ASIDE)?.strip_suffix('.')?;
            // A number behind the first dot tells files apart that had the same name.
            name.split('.').next()
        })
    }

    /// The files in a directory in whose names `number` finds the number of a segment (in base 16),
    /// in the order of these numbers.
    fn named_in(
        dir: &Path,
        disk: &Arc<dyn Disk>,
        number: impl Fn(&str) -> Option<&str>,
    ) -> io::Result<Vec<Segment>> {
        let mut all = Vec::new();
        for entry in dir.read_dir()? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let Some(id) = number(name) else {
                continue;
            };
            let Ok(id) = u64::from_str_radix(id, 16) else {
                continue;
            };
            // Adds the path of the file to its error.
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let file = disk.open(&path).map_err(named)?;
            let len = file.metadata().map_err(named)?.len();
            all.push(Segment {
                id,
                path,
                file,
                disk: Arc::clone(disk),
                len: AtomicU64::new(len),
                file_len: AtomicU64::new(len),
                contents_len: AtomicU64::new(0),
                live: AtomicUsize::new(0),
                old: AtomicBool::new(false),
                keep: AtomicBool::new(false),
                short_run: AtomicU64::new(0),
                sync_failed: Mutex::new(false),
            });
        }
        all.sort_by_key(|s| s.id);
        Ok(all)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Bytes that the file has now.
    pub(super) fn file_len(&self) -> u64 {
        self.file_len.load(Ordering::Acquire)
    }

    /// Bytes that the file will have once it is sealed: those that count towards the journal's
    /// limit.
    pub(super) fn space(&self) -> u64 {
        self.len() + self.contents_len.load(Ordering::Acquire)
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

    /// Appends `head` and the values; returns where they begin (bytes). One thread at a time. If
    /// the frame is short and the zeroes ahead are used up, it first writes at most `room` bytes of
    /// new ones. After an error there may be a part of the frame behind [`len`](Self::len), which
    /// must be [cut off](Self::trim) before the next append.
    pub(super) fn append<'a>(
        &self,
        head: &'a [u8],
        values: impl Iterator<Item = &'a [u8]>,
        room: impl FnOnce() -> u64,
    ) -> io::Result<u64> {
        let start = self.len();
        let slices: Vec<&[u8]> = std::iter::once(head).chain(values).collect();
        let len = slices.iter().map(|s| s.len() as u64).sum();
        if len >= LONG_FRAME {
            self.short_run.store(0, Ordering::Release);
        } else {
            let (left, wanted) = self.ahead();
            if len > left {
                // An error is ignored: a disk without room for the zeroes may still have some for
                // the frame.
                let _ = self.write_ahead(wanted.min(room()));
            }
            self.short_run.fetch_add(len, Ordering::AcqRel);
        }
        self.disk.write(&self.file, start, &slices)?;
        self.len.store(start + len, Ordering::Release);
        self.file_len.fetch_max(start + len, Ordering::AcqRel);
        Ok(start)
    }

    /// Cuts off all bytes behind the last whole frame. Not synced.
    pub(super) fn trim(&self) -> io::Result<()> {
        let len = self.len();
        self.disk.set_len(&self.file, len)?;
        self.file_len.store(len, Ordering::Release);
        Ok(())
    }

    /// How many bytes of zeroes are left for the next frames, and how many are written when they
    /// are used up.
    pub(super) fn ahead(&self) -> (u64, u64) {
        let left = self.file_len().saturating_sub(self.len());
        let run = self.short_run.load(Ordering::Acquire);
        (left, run.clamp(AHEAD_LEAST, AHEAD_MOST))
    }

    /// Writes `bytes` zeroes behind the end of the file. Not synced.
    pub(super) fn write_ahead(&self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let at = self.file_len();
            let step = left.min(ZEROES.len() as u64);
            if let Err(e) = self.disk.write(&self.file, at, &[&ZEROES[..step as usize]]) {
                // If the cut fails too, only zeroes are left there.
                let _ = self.disk.set_len(&self.file, at);
                return Err(e);
            }
            self.file_len.store(at + step, Ordering::Release);
            left -= step;
        }
        Ok(())
    }

    /// Makes the segment end after `len` bytes of frames, and syncs that: after an error the bytes
    /// behind them are unknown. It may be called again if it fails.
    pub(super) fn cut(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(&self.file, len)?;
        if !self.old.load(Ordering::Acquire) {
            self.write_seal(None)?;
        }
        // What a failed sync left behind is gone.
        *self.sync_failed.lock() = false;
        self.sync()?;
        self.len.store(len, Ordering::Release);
        self.file_len.store(len, Ordering::Release);
        Ok(())
    }

    /// Writes the table of contents and the seal. All of it is on disk on return; after an error
    /// the segment must be [cut](Self::cut).
    pub(super) fn finish(&self, contents: &[u8]) -> io::Result<()> {
        let len = self.len();
        self.disk.write(&self.file, len, &[contents])?;
        let end = len + contents.len() as u64;
        self.disk.set_len(&self.file, end)?;
        // The seal promises that everything before it is whole, so that is synced first.
        self.sync()?;
        self.write_seal(Some(Seal {
            end: len,
            contents_len: contents.len() as u64,
            contents_crc: crc32fast::hash(contents),
        }))?;
        self.sync()?;
        self.file_len.store(end, Ordering::Release);
        Ok(())
    }

    /// Sets the length of the table of contents (bytes).
    pub(super) fn note_contents(&self, len: usize) {
        self.contents_len.store(len as u64, Ordering::Release);
    }

    fn write_seal(&self, seal: Option<Seal>) -> io::Result<()> {
        let seal = frame::encode_seal(seal);
        self.disk.write(&self.file, frame::SEAL_AT, &[&seal])
    }

    /// Returns when everything appended survives a power cut. A failure is reported once by the
    /// kernel, and the bytes that it is about may count as synced afterwards. So after one all
    /// calls fail until the file is [cut](Self::cut).
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock();
        if *failed {
            return Err(io::Error::other("a sync of this file failed before"));
        }
        let synced = self.disk.sync(&self.file);
        *failed = synced.is_err();
        synced
    }

    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Notes that a block in it is damaged.
    pub(super) fn keep(&self) {
        self.keep.store(true, Ordering::Release);
    }

    /// Removes the file, or sets it aside if a block in it is damaged: under the path that is
    /// returned it is no part of the journal any more. Readers that hold the segment go on reading.
    pub(super) fn remove(&self) -> io::Result<Option<PathBuf>> {
        if !self.keep.load(Ordering::Acquire) {
            return self.disk.remove(&self.path).map(|()| None);
        }
        // Numbers begin anew in an empty journal, so an older file may have this name.
        let mut aside = self.path.with_extension(ASIDE);
        let mut n = 1;
        while aside.symlink_metadata().is_ok() {
            n += 1;
            aside = self.path.with_extension(format!("{n}.{ASIDE}"));
        }
        self.disk.rename(&self.path, &aside).map(|()| Some(aside))
    }

    /// Reads the head and table of every frame: from the table of contents if there is one,
    /// otherwise from the frames, together with their values. A put whose value is damaged is
    /// [marked](frame::Entry::Damaged), and its neighbours in the frame stay, unless the end of
    /// the last frame is missing: then only blocks stay that their keys prove.
    ///
    /// Bytes that are no frame end the scan, unless frames follow them: then a head was damaged,
    /// and the scan goes on behind it. A block may hold bytes that look like a frame; so of the
    /// frames that come behind a gap only puts count whose value is whole and is not denied by a
    /// multihash in the key, unless the damaged frame tells for certain where it ends. Of a frame
    /// whose head or table is damaged, [`salvage`] finds what it can.
    ///
    /// A table of contents would list entries that do not count, and a frame that follows one that
    /// is not whole would make it look acknowledged. So nothing is appended to a segment with such
    /// frames, and it is never sealed: each later scan finds the same.
    ///
    /// `least`: the least number that its entries can have, as far as older files tell it.
    pub(super) fn scan(&self, least: u64) -> io::Result<Scan> {
        let file_len = self.file_len();
        let mut window = Window::new(&self.file, file_len);
        let Some(head) = window.get(0, frame::SEGMENT_HEAD_OLD)?.map(<[u8]>::to_vec) else {
            let torn = window.other_than_zero_from(0)?;
            return Ok(Scan {
                torn,
                ..Scan::default()
            });
        };
        let whole = window.get(0, frame::SEGMENT_HEAD)?.map(<[u8]>::to_vec);
        let head = whole.unwrap_or(head);
        let tells_joined = frame::tells_joined(&head);
        let parsed = frame::decode_head(&head, self.id);
        let Some(head) = parsed else {
            // A power cut while the file was made may leave it short, or without content.
            if file_len < frame::SEGMENT_HEAD || !window.other_than_zero_from(0)? {
                return Ok(Scan::default());
            }
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this is no journal segment of this version",
            ));
        };
        let (start, seal) = match head {
            Head::Old => {
                self.old.store(true, Ordering::Release);
                (frame::SEGMENT_HEAD_OLD, None)
            }
            Head::Open => (frame::SEGMENT_HEAD, None),
            Head::Sealed(seal) => (frame::SEGMENT_HEAD, Some(seal)),
        };
        if let Some(scan) = seal.and_then(|seal| self.read_contents(seal)) {
            return Ok(scan);
        }
        let mut scan = Scan {
            len: start,
            expected: seal.map(|seal| seal.end),
            open: matches!(head, Head::Open),
            ..Scan::default()
        };
        let mut at = start;
        let mut next_seq = 0;
        // The least number that a frame may have whose own number is damaged or unknown.
        let mut least = least;
        let end = seal.map_or(file_len, |seal| seal.end.min(file_len));
        let values = seal.is_none();
        let mut verdict = Verdict::Whole;
        // Whether the last frame comes behind bytes that are no frame.
        let mut behind_gap = false;
        loop {
            // Numbers only go up: an older frame in this place is one that the disk has not
            // overwritten.
            let found = window.frame_at(at, end)?;
            let found = found.filter(|frame| frame.seq >= next_seq);
            let (begins, mut frame) = match found {
                Some(frame) => (at, frame),
                None if !values => break,
                None => match salvage::salvage(&mut window, at, end, least)? {
                    Some(salvaged) if salvaged.exact => {
                        scan.mended.get_or_insert(at);
                        (at, salvaged.frame)
                    }
                    mut salvaged => {
                        if let Some(salvaged) = &mut salvaged {
                            salvaged.note_joined(tells_joined);
                        }
                        let proven = salvaged.as_ref().map_or(0, Salvaged::proven_len);
                        // Behind what is proven: a block may hold bytes that look like a frame.
                        let behind = at + proven.saturating_sub(1);
                        // Where the table says that its frame ends comes first, for the same
                        // reason.
                        let follows = salvaged.as_ref().map(|s| at + s.frame.len);
                        let follower = match follows {
                            Some(follows) => window.follower_at(follows, end, least)?,
                            None => None,
                        };
                        let bridged = follower.as_ref().zip(salvaged.as_ref());
                        let bridged = bridged.is_some_and(|((_, f), s)| s.ends_before(f, least));
                        scan.doubtful |= !bridged;
                        let next = match follower {
                            Some(follower) => Some(follower),
                            None => window.frame_after(behind, end, least)?,
                        };
                        match (next, salvaged) {
                            (Some((begins, frame)), salvaged) => {
                                let gap = (at, begins);
                                match judge::has_missing_sector(&mut window, gap, gap)? {
                                    true => scan.unsynced += begins - at,
                                    false => scan.gaps += begins - at,
                                }
                                let salvaged = salvaged.map(|s| s.numbered_before(&frame));
                                scan.frames.extend(salvaged.map(|salvaged| (at, salvaged)));
                                (begins, frame)
                            }
                            (None, Some(salvaged)) => {
                                verdict = Verdict::Damaged;
                                scan.end_with(&mut window, at, salvaged)?;
                                break;
                            }
                            (None, None) => break,
                        }
                    }
                },
            };
            behind_gap = begins > at;
            frame.joined = tells_joined && frame.is_marked_joined();
            if !frame.joined {
                // What came before it was synced.
                scan.gaps += std::mem::take(&mut scan.unsynced);
            }
            next_seq = frame.next_seq();
            least = next_seq;
            at = begins + frame.len;
            if values {
                verdict = judge::judge(&mut window, begins, &mut frame, scan.doubtful)?;
            }
            if let Some(encoded) = window.get(begins, frame.head_len)? {
                frame::push_contents(&mut scan.contents, begins, encoded);
            }
            scan.frames.push((begins, frame));
            scan.len = at;
        }
        if let Verdict::Torn { doubtful } = verdict {
            scan.end_torn(&mut window, doubtful, behind_gap)?;
        }
        scan.open &= !scan.is_odd();
        scan.torn = window.other_than_zero_from(scan.len)?;
        Ok(scan)
    }

    /// Reads the table of contents; `None` if there is none, or it is damaged.
    fn read_contents(&self, seal: Seal) -> Option<Scan> {
        let file_len = self.file_len();
        if seal.end.checked_add(seal.contents_len)? != file_len {
            return None;
        }
        let mut contents = vec![0; usize::try_from(seal.contents_len).ok()?];
        self.read_at(seal.end, &mut contents).ok()?;
        if crc32fast::hash(&contents) != seal.contents_crc {
            return None;
        }
        let frames = frame::decode_contents(&contents)?;
        Some(Scan {
            frames,
            len: seal.end,
            expected: Some(seal.end),
            contents,
            ..Scan::default()
        })
    }

    /// The frames of a sealed segment, by its table of contents; `None` if it has none.
    pub(super) fn sealed_frames(&self) -> Option<Vec<(u64, Frame)>> {
        let mut head = [0; frame::SEGMENT_HEAD as usize];
        self.read_at(0, &mut head).ok()?;
        match frame::decode_head(&head, self.id)? {
            Head::Sealed(seal) => Some(self.read_contents(seal)?.frames),
            Head::Open | Head::Old => None,
        }
    }

    /// Whether a block in it is damaged.
    pub(super) fn is_kept(&self) -> bool {
        self.keep.load(Ordering::Acquire)
    }

    /// Takes the lengths from a scan.
    pub(super) fn adopt(&self, scan: &Scan) {
        self.len.store(scan.len, Ordering::Release);
        self.note_contents(scan.contents.len());
    }
}

impl Scan {
    /// Whether a later scan would understand the frames in another way if more followed, or if
    /// there were a table of contents.
    pub(super) fn is_odd(&self) -> bool {
        self.gaps + self.unsynced > 0 || self.mended.is_some() || self.rest.is_some()
    }

    /// Takes the last frame, whose end is missing. A write whose end is missing was never
    /// acknowledged, unless it is doubtful; blocks of it that their keys prove do no harm. Behind a
    /// gap it stays in any case: without it, a later scan would take the gap for the end.
    fn end_torn(
        &mut self,
        window: &mut Window<'_>,
        doubtful: bool,
        behind_gap: bool,
    ) -> io::Result<()> {
        let Some((begins, frame)) = self.frames.last_mut() else {
            return Ok(());
        };
        let (kept, others) = judge::keep_proven(window, *begins, frame)?;
        if kept > 0 || doubtful || behind_gap {
            self.rest = Some(Rest {
                kept,
                others,
                doubtful,
            });
            return Ok(());
        }
        self.len = *begins;
        let contents = self.contents.len() - (8 + frame.head_len as usize);
        self.contents.truncate(contents);
        self.frames.pop();
        Ok(())
    }

    /// Takes a last frame at byte `at` whose head or table is damaged.
    fn end_with(&mut self, window: &mut Window<'_>, at: u64, salvaged: Salvaged) -> io::Result<()> {
        let kept = salvaged.kept();
        if kept == 0 && salvaged.unwritten {
            return Ok(());
        }
        self.len = window.end_of_bytes(at)?.max(at + salvaged.frame.len);
        self.rest = Some(Rest {
            kept,
            others: Vec::new(),
            doubtful: !salvaged.unwritten,
        });
        if kept > 0 {
            self.frames.push((at, salvaged.frame));
        }
        Ok(())
    }
}
