//! Reads the files of a journal when it is opened, and finds the staged blocks, the damaged ones,
//! and the place where writing goes on.
//!
//! The problem: after a crash or on a faulty disk, every acknowledged value must be found or
//! reported, a deleted one must not come back, and a write that was never acknowledged may be
//! dropped, but must not hide an acknowledged value.
//!
//! Invariants:
//! - The newest entry of a key decides. Files are read oldest first, and numbers go up across
//!   files.
//! - Only the end of the last file may be torn, if that file was not sealed. Any other file that
//!   ends too early is an error ([`ErrorKind::Corrupt`]), so that no loss goes unreported.
//! - The last file is synced before its blocks count as staged: later puts rely on them.
//! - Keys in the list of damaged blocks stay there until the files tell something newer.
//!
//! Outline of [`replay`]:
//! 1. Each file is scanned (`Segment::scan`). A torn end is cut off; a file without a whole head,
//!    which a crash left behind, is removed. A last write that is not whole, but holds blocks that
//!    their keys prove or may have been acknowledged, stays, and nothing is appended to its file.
//! 2. The numbers of entries that need no upload any more are collected from all files: such a note
//!    may lie in a later file than its entry.
//! 3. [`apply`] plays the entries: puts stage, deletions forget. A damaged value is forgotten if it
//!    needs no upload, is a mere copy if the staged value is the same, counts as never acknowledged
//!    if it is in the last frame, or in one that shares its sync with the last one, and a sector of
//!    it was never written, and is reported as lost otherwise.
//! 4. [`leave_out_done`] forgets the blocks that need no upload, and notes where they lie.
//! 5. [`Replayed::superseded`] names the keys for which the caller must write an entry before any
//!    other write. Once another frame or a table of contents follows, the next open could no longer
//!    tell that their last entries do not count.
//!
//! The caller holds the lock of the directory, and no other thread knows the state yet, so no lock
//! is taken here. With a disk that changes nothing (`owner::Untouched`), it serves to look at a
//! journal.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::block::Block;
use super::damage::{self, Damage, Damages};
use super::disk::{self, Disk};
use super::frame::{self, Entry};
use super::segment::{self, Segment};
use super::settled::Settled;
use super::writer::Position;
use super::StagedBlocks;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Level, Log};

/// The result of reading the files of a directory.
pub(super) struct Replayed {
    pub(super) state: StagedBlocks,
    pub(super) position: Position,
    /// Keys whose newest entry in the files is not their newest value, and must not be taken for it
    /// once other writes follow: values of the last write that may never have been written, and
    /// damaged copies of whole values.
    pub(super) superseded: Vec<String>,
}

/// Reads the segments of a directory. Changes files as the module says.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if a file is damaged other than at an unfinished end;
/// [`ErrorKind::Disk`].
pub(super) fn replay(
    dir: &Path,
    disk: &Arc<dyn Disk>,
    settled: &Settled,
    log: &Log,
) -> Result<Replayed> {
    let failed = |path: &Path, e: io::Error| {
        let kind = match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            _ => ErrorKind::Disk,
        };
        Error::new(kind, format!("journal file {}: {e}", path.display()))
    };
    let segments = Segment::all_in(dir, disk).map_err(|e| failed(dir, e))?;
    let (listed, unreadable) = damage::load(dir).map_err(|e| failed(dir, e))?;
    let mut state = StagedBlocks::default();
    let mut all = Vec::new();
    let mut done = Vec::new();
    let next_id = match segments.last() {
        None => 1,
        Some(last) => last.id.checked_add(1).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "journal file {}: no file can follow it, so it is none that walrusds has made. Move it away",
                    last.path().display()
                ),
            )
        })?,
    };
    let mut position = Position {
        next_seq: 1,
        next_id,
        current: None,
    };
    let last = segments.len().saturating_sub(1);
    let mut least = 0;
    for (i, segment) in segments.into_iter().enumerate() {
        let segment = Arc::new(segment);
        let scan = segment.scan(least).map_err(|e| failed(segment.path(), e))?;
        let next = scan.frames.last().map(|(_, frame)| frame.next_seq());
        least = least.max(next.unwrap_or(0));
        report_gaps(&segment, &scan, log);
        report_rest(&segment, &scan, log);
        if i == last && scan.len > 0 {
            // A process that was killed may have left frames that are not synced and would not
            // survive a power cut. Later puts rely on staged blocks.
            segment.sync().map_err(|e| failed(segment.path(), e))?;
            disk.sync_dir(dir).map_err(|e| failed(dir, e))?;
        }
        // Files before the last one, and sealed files, are whole: their ends cannot be torn.
        let expected = match scan.expected {
            None if i < last => Some(segment.file_len()),
            expected => expected,
        };
        let unborn = scan.len == 0;
        if let Some(expected) = expected.filter(|len| unborn || *len != scan.len) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "journal file {} is damaged at byte {} of {expected}: what follows cannot be read. Restore \
                     the file, or move it away to go on without the blocks in it",
                    segment.path().display(),
                    scan.len
                ),
            ));
        }
        // Nothing is appended to such a file, so it is cut to its frames, as another file will
        // follow it.
        let ends = scan.is_odd() && scan.len < segment.file_len();
        if expected.is_none() && (scan.torn || unborn || ends) {
            let dropped = segment.file_len() - scan.len;
            if unborn {
                // A crash came while the file was being made.
                segment.remove().map(drop)
            } else {
                segment.cut(scan.len)
            }
            .map_err(|e| failed(segment.path(), e))?;
            if scan.torn || unborn {
                log.push(
                    Level::Info,
                    format!(
                        "journal: {dropped} bytes of a write that was never acknowledged were dropped"
                    ),
                );
            }
            if unborn {
                continue;
            }
        }
        segment.adopt(&scan);
        if scan.open && i == last {
            position.current = Some((Arc::clone(&segment), scan.contents));
        }
        for (_, frame) in &scan.frames {
            done.extend(frame.entries.iter().filter_map(|entry| match entry {
                Entry::Done(first, last) => Some((*first, *last)),
                _ => None,
            }));
        }
        state.segments.push_back(Arc::clone(&segment));
        all.extend(
            scan.frames
                .into_iter()
                .map(|(start, frame)| (Arc::clone(&segment), start, frame)),
        );
    }
    let done = Done::new(done);
    let (unfinished, copies) = apply(&mut state, &mut position, all, &done, listed);
    leave_out_done(&mut state, settled, &done);
    report_damage(&state, dir, unreadable, log);
    if !unfinished.is_empty() {
        log.push(
            Level::Warn,
            format!(
                "journal: the last write before a crash is not whole: {} blocks of it were never acknowledged ({})",
                unfinished.len(),
                some(unfinished.iter().map(String::as_str))
            ),
        );
    }
    let damaged = |key: &String| state.damaged.contains_key(key.as_str());
    let copied = |(key, seq): (String, u64)| {
        let older = state.blocks.get(key.as_str())?.seq < seq;
        older.then_some(key)
    };
    let copies: Vec<String> = copies.into_iter().filter_map(copied).collect();
    let unfinished = unfinished.into_iter().filter(|key| !damaged(key));
    Ok(Replayed {
        superseded: unfinished.chain(copies).collect(),
        state,
        position,
    })
}

/// Plays the entries of the files, oldest first. `listed`: the damage that was known before.
/// Returns the keys of the last write whose values may never have been written, and the keys of
/// damaged copies of whole values, with the numbers of those copies.
fn apply(
    state: &mut StagedBlocks,
    position: &mut Position,
    frames: Vec<(Arc<Segment>, u64, frame::Frame)>,
    done: &Done,
    listed: Damages,
) -> (Vec<String>, Vec<(String, u64)>) {
    let read_at = (Instant::now(), SystemTime::now());
    let mut unfinished = Vec::new();
    let mut copies = Vec::new();
    // Keys of the list for which the files hold something newer.
    let mut newer = HashSet::new();
    // The frames from here on may never have been synced.
    let synced = frames.iter().rposition(|(_, _, frame)| !frame.joined);
    let last = synced.unwrap_or(0);
    for (i, (segment, start, frame)) in frames.into_iter().enumerate() {
        let age = read_at
            .1
            .duration_since(SystemTime::UNIX_EPOCH + Duration::from_millis(frame.time_ms))
            .unwrap_or_default();
        let staged = read_at.0.checked_sub(age).unwrap_or(read_at.0);
        for (entry, seq) in frame.entries.into_iter().zip(frame.seq..) {
            position.next_seq = position.next_seq.max(seq + 1);
            let key = match &entry {
                Entry::Damaged { unwritten, .. } if *unwritten && i >= last => None,
                Entry::Put { key, .. } | Entry::Damaged { key, .. } => Some(&**key),
                Entry::Delete(key) => Some(&**key),
                Entry::Done(..) | Entry::Lost => None,
            };
            newer.extend(key.and_then(|key| Some(listed.get_key_value(key)?.0)));
            match entry {
                Entry::Put {
                    key,
                    offset,
                    len,
                    crc,
                } => {
                    let (segment, value) = (Arc::clone(&segment), (len, crc));
                    let mut block = Block::new(key, seq, segment, start + offset, value, staged);
                    block.unproven = true.into();
                    state.stage(Arc::new(block));
                }
                // Its block needs no upload any more, so no copy is needed here.
                Entry::Damaged { key, .. } if done.contains(seq) => state.forget(&key),
                Entry::Damaged { key, unwritten, .. } if unwritten && i >= last => {
                    unfinished.push(key.to_string());
                }
                Entry::Damaged {
                    key,
                    offset,
                    len,
                    crc,
                    ..
                } => {
                    // The same value may have been written before, and be whole there.
                    let same = |old: &Arc<Block>| {
                        old.len == len && old.crc == crc && !done.contains(old.seq)
                    };
                    if state.blocks.get(&key).is_some_and(same) {
                        copies.push((key.to_string(), seq));
                    } else {
                        let damage = Damage {
                            file: segment.file_name(),
                            at: start + offset,
                            len,
                        };
                        state.lose(&key, damage);
                    }
                }
                Entry::Delete(key) => state.forget(&key),
                Entry::Done(..) | Entry::Lost => {}
            }
        }
    }
    for (key, damage) in &listed {
        // A value that was read wrong once may be read right now: memory or the disk may have
        // failed for a while.
        let block = state.blocks.get(key).filter(|b| !done.contains(b.seq));
        let found = block.map(|block| (block.read(), block.damage()));
        match found {
            Some((Err(e), damage)) if e.kind() == ErrorKind::Corrupt => state.lose(key, damage),
            None if !newer.contains(key) => state.lose(key, damage.clone()),
            _ => {}
        }
    }
    for segment in &state.segments {
        let name = segment.file_name();
        if state.damaged.values().any(|damage| damage.file == name) {
            segment.keep();
        }
    }
    state.damage_changed = state.damaged != listed;
    (unfinished, copies)
}

/// The first few keys, as a text.
fn some<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let mut shown: Vec<&str> = keys.take(6).collect();
    if let Some(more) = shown.get_mut(5) {
        *more = "…";
    }
    shown.join(", ")
}

/// Logs how many bytes of a segment are no writes. The keys of their blocks are unknown.
fn report_gaps(segment: &Segment, scan: &segment::Scan, log: &Log) {
    if scan.unsynced > 0 {
        log.push(
            Level::Warn,
            format!(
                "journal file {}: {} bytes of writes that were not synced before a power cut are missing",
                segment.path().display(),
                scan.unsynced
            ),
        );
    }
    if scan.gaps == 0 {
        return;
    }
    segment.keep();
    log.push(
        Level::Error,
        format!(
            "journal file {} is damaged: {} bytes between its writes cannot be read, and those of the blocks in them, \
             which were accepted, that their keys do not prove whole are lost on this disk. The file is kept with the ending .{} once the other blocks in \
             it are on Walrus",
            segment.path().display(),
            scan.gaps,
            disk::ASIDE
        ),
    );
}

/// Logs that the head of a write is damaged, and that the last write of a file is not whole, if
/// some of it is kept or it may have been acknowledged.
fn report_rest(segment: &Segment, scan: &segment::Scan, log: &Log) {
    if let Some(at) = scan.mended {
        log.push(
            Level::Error,
            format!(
                "journal file {} is damaged: a bit is flipped in the head of its write at byte {at}. It is known which, \
                 so no block is lost by it; look after the disk and the memory of this machine",
                segment.path().display()
            ),
        );
    }
    let Some(rest) = &scan.rest else {
        return;
    };
    let (path, kept) = (segment.path().display(), rest.kept);
    let named = match rest.others.is_empty() {
        true => String::new(),
        false => format!(" ({})", some(rest.others.iter().map(String::as_str))),
    };
    if !rest.doubtful {
        log.push(
            Level::Warn,
            format!(
                "journal file {path}: the last write before a crash is not whole and was never acknowledged. {kept} \
                 blocks of it that are whole are kept, and {} are not{named}",
                rest.others.len()
            ),
        );
        return;
    }
    segment.keep();
    log.push(
        Level::Error,
        format!(
            "journal file {path} is damaged in its last write. {kept} blocks of it are whole and kept; others of it{named} \
             may have been accepted and be lost on this disk: look whether what was added last is there \
             (ipfs refs local, ipfs pin verify), and add it again if not. The file is kept with the ending .{} \
             once its blocks are on Walrus",
            disk::ASIDE
        ),
    );
}

/// Logs which blocks are damaged.
fn report_damage(state: &StagedBlocks, dir: &Path, unreadable: usize, log: &Log) {
    /// How many blocks have a line of their own.
    const LINES: usize = 10;
    let mut damaged: Vec<_> = state.damaged.iter().collect();
    damaged.sort_unstable_by_key(|(key, damage)| (&damage.file, damage.at, *key));
    for (key, damage) in damaged.iter().take(LINES) {
        log.push(
            Level::Error,
            format!("{}. {}", damage.words(key, dir), damage::REMEDY),
        );
    }
    if damaged.len() > LINES {
        log.push(
            Level::Error,
            format!(
                "journal: {} blocks that were accepted are damaged; the file DAMAGED in {} names them",
                damaged.len(),
                dir.display()
            ),
        );
    }
    if unreadable > 0 {
        log.push(
            Level::Error,
            format!(
                "journal: {unreadable} lines of the list of damaged blocks (DAMAGED in {}) cannot be read, and are \
                 left out of it",
                dir.display()
            ),
        );
    }
}

/// Logs which files were set aside for an operator. To say what is in them would take a read of
/// each and lookups in the index. Blocks that are lost have [lines of their own](report_damage).
pub(super) fn report_aside(dir: &Path, log: &Log) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == disk::ASIDE) {
            log.push(
                Level::Warn,
                format!(
                    "journal: {} was set aside, because a block in it is damaged. `walrusds repair` (it changes \
                     nothing without --yes) tells what is in it, and when it may be deleted",
                    path.display()
                ),
            );
        }
    }
    Ok(())
}

/// The numbers of entries that need no upload any more, as ranges.
struct Done(Vec<(u64, u64)>);

impl Done {
    /// The ranges may overlap: a block whose row came to be in doubt is settled twice.
    fn new(mut ranges: Vec<(u64, u64)>) -> Done {
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Done(joined)
    }

    fn contains(&self, seq: u64) -> bool {
        let at = self.0.partition_point(|(first, _)| *first <= seq);
        at > 0 && self.0[at - 1].1 >= seq
    }
}

/// Forgets the blocks that need no upload any more.
fn leave_out_done(state: &mut StagedBlocks, settled: &Settled, done: &Done) {
    let queue = std::mem::take(&mut state.queue);
    let (waiting, ended): (VecDeque<_>, VecDeque<_>) = queue
        .into_iter()
        .partition(|block| state.is_current(block) && !done.contains(block.seq));
    state.queue = waiting;
    settled.note(ended.iter().filter(|block| state.is_current(block)));
    for block in ended {
        state.queued_bytes -= block.len();
        if state.is_current(&block) {
            state.forget(&block.key);
        }
        block.segment.drop_live();
    }
}
