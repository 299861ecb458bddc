//! Finds what is left of a frame whose head or table is damaged.
//!
//! The problem: head and table share one checksum, so one flipped bit in them hides every block of
//! the write, although all of these are whole.
//!
//! First the flipped bit is looked for and undone: then all of the frame is known. If that fails,
//! the table is read as far as it makes sense, and only puts count whose keys prove their values:
//! what proves a block need not be trusted.
//!
//! No lock is taken here.

use std::io;

use super::frame::{self, Entry, Frame, FRAME_HEAD};
use super::judge::{flip, flipped_bit, has_missing_sector, SECTOR};
use super::window::Window;
use crate::multihash::{self, Match};

/// A number of an entry is not believed if it is so far above the one before it.
const JUMP: u64 = 1 << 40;
/// So much of a damaged frame is looked at to find the end of its table (bytes).
const LONGEST_TABLE: u64 = 16 << 20;

/// What was found of a frame.
#[derive(Debug)]
pub(super) struct Salvaged {
    pub(super) frame: Frame,
    /// Whether the flipped bit was found, so that all of the frame is known. Otherwise it holds the
    /// proven puts alone; its other entries are [`Entry::Lost`].
    pub(super) exact: bool,
    /// Whether a part of its head or table may never have been written.
    pub(super) unwritten: bool,
}

impl Salvaged {
    /// The number of puts that were found.
    pub(super) fn kept(&self) -> usize {
        let is_put = |entry: &&Entry| matches!(entry, Entry::Put { .. });
        self.frame.entries.iter().filter(is_put).count()
    }

    /// The length of the frame up to the end of the last proven value (bytes); 0 if there is none.
    pub(super) fn proven_len(&self) -> u64 {
        let end = |entry: &Entry| match entry {
            Entry::Put { offset, len, .. } => Some(offset + u64::from(*len)),
            _ => None,
        };
        self.frame.entries.iter().rev().find_map(end).unwrap_or(0)
    }

    /// Whether `next`, which begins where this frame's table says that it ends, surely follows it:
    /// its number does, and no byte of a value lies in between. `least`: the least number that this
    /// frame can have.
    pub(super) fn ends_before(&self, next: &Frame, least: u64) -> bool {
        let first = next.seq.checked_sub(self.frame.entries.len() as u64);
        let in_order = first.is_some_and(|first| first == self.frame.seq || first == least);
        let (head_len, len) = (self.frame.head_len, self.frame.len);
        in_order && (len == head_len || self.proven_len() == len)
    }

    /// Notes whether frames before it were not synced when it was written. It was not synced itself
    /// if a part of it was never written. If its time is missing, nothing tells of those before it:
    /// they count as not synced either.
    pub(super) fn note_joined(&mut self, tells_joined: bool) {
        let frame = &mut self.frame;
        let marked = frame.time_ms == 0 || frame.is_marked_joined();
        frame.joined = tells_joined && self.unwritten && marked;
    }

    /// The frame, with numbers that fit before those of the next one.
    pub(super) fn numbered_before(self, next: &Frame) -> Frame {
        let mut frame = self.frame;
        // Numbers go up by one for each entry.
        let before = next.seq.saturating_sub(frame.entries.len() as u64);
        frame.seq = frame.seq.min(before);
        frame
    }
}

/// Looks for a damaged frame at byte `at`, where no whole one begins. `None` if the bytes there do
/// not look like one, or it is whole and only too long for the file: then it was never
/// acknowledged.
pub(super) fn salvage(
    window: &mut Window<'_>,
    at: u64,
    end: u64,
    next_seq: u64,
) -> io::Result<Option<Salvaged>> {
    let after_head = at + FRAME_HEAD as u64;
    if after_head > end {
        return Ok(None);
    }
    let Some(head) = window.get(at, FRAME_HEAD as u64)? else {
        return Ok(None);
    };
    let magic = frame::FRAME_MAGIC.to_le_bytes();
    let wrong = std::iter::zip(magic, head).filter(|(a, b)| a != *b).count();
    if wrong > 1 {
        return Ok(None);
    }
    let declared = frame::declared_table(head);
    let lengths = std::iter::once(declared).chain((0..32).map(|bit| declared ^ (1 << bit)));
    for (n, len) in lengths.enumerate() {
        if after_head + u64::from(len) > end {
            continue;
        }
        let Some(encoded) = window.get(at, FRAME_HEAD as u64 + u64::from(len))? else {
            continue;
        };
        let mut encoded = encoded.to_vec();
        let difference = frame::checksum_difference(&encoded);
        if difference == 0 && wrong == 0 && n == 0 {
            return Ok(None);
        }
        frame::restore(&mut encoded, len);
        let mended = match frame::checksum_difference(&encoded) {
            0 => true,
            // Another length and another bit would be two flips.
            _ if n > 0 => false,
            difference => mend(&mut encoded, difference),
        };
        if !mended {
            continue;
        }
        let found = frame::decode(&encoded).filter(|f| f.seq >= next_seq && at + f.len <= end);
        if let Some(frame) = found {
            return Ok(Some(Salvaged {
                frame,
                exact: true,
                unwritten: false,
            }));
        }
    }
    by_proof(window, at, end, next_seq, declared).map(Some)
}

/// Undoes the flip of the one bit that explains the difference of the checksums.
fn mend(encoded: &mut [u8], difference: u32) -> bool {
    if difference.is_power_of_two() {
        // The bit of the checksum itself.
        frame::change_checksum(encoded, difference);
        return true;
    }
    let Some(bit) = flipped_bit(difference, encoded.len() - frame::CHECKED_FROM) else {
        return false;
    };
    flip(encoded, bit);
    true
}

/// Reads a damaged table as far as it makes sense, for the puts whose keys prove their values.
fn by_proof(
    window: &mut Window<'_>,
    at: u64,
    end: u64,
    next_seq: u64,
    declared: u32,
) -> io::Result<Salvaged> {
    let counted = window.get(at, (end - at).min(LONGEST_TABLE))?;
    let counted = counted.and_then(frame::table_by_count);
    // Either the length of the table is damaged or the number of its entries, or neither is.
    let by_count = with_table(window, at, end, next_seq, counted.unwrap_or(declared))?;
    if counted.is_none_or(|counted| counted == declared) {
        return Ok(by_count);
    }
    let by_length = with_table(window, at, end, next_seq, declared)?;
    Ok(match by_length.kept() > by_count.kept() {
        true => by_length,
        false => by_count,
    })
}

/// Reads a damaged frame whose table has `table` bytes.
fn with_table(
    window: &mut Window<'_>,
    at: u64,
    end: u64,
    next_seq: u64,
    table: u32,
) -> io::Result<Salvaged> {
    let after_head = at + FRAME_HEAD as u64;
    let table_end = after_head + u64::from(table);
    let known = table_end <= end;
    let last = window.end_of_bytes(at)?;
    let unwritten = match known {
        true => last < table_end || has_missing_sector(window, (at, table_end), (at, end))?,
        // Zeroes are written ahead of frames that fit into them, so a file that ends with zeroes
        // was not cut short: the length is wrong.
        false => end - last < SECTOR,
    };
    let encoded = match known {
        true => window.get(at, table_end - at)?.map(<[u8]>::to_vec),
        false => None,
    };
    let encoded = encoded.unwrap_or_default();
    let head_len = encoded.len() as u64;
    let mut len = head_len;
    let mut entries = Vec::new();
    for (key, value_len) in frame::rough_table(&encoded) {
        let offset = len;
        len = offset.saturating_add(u64::from(value_len));
        let inside = at
            .checked_add(len)
            .is_some_and(|value_end| value_end <= end);
        let value = match (inside, &key) {
            (true, Some(_)) => window.get(at + offset, u64::from(value_len))?,
            _ => None,
        };
        entries.push(match (key, value) {
            (Some(key), Some(value)) if multihash::check(key, value) == Match::Yes => Entry::Put {
                key: key.into(),
                offset,
                len: value_len,
                crc: crc32fast::hash(value),
            },
            _ => Entry::Lost,
        });
    }
    let (seq, time_ms) = frame::rough_numbers(&encoded);
    let believable = (next_seq..next_seq.saturating_add(JUMP)).contains(&seq);
    // A number that no note can be about is better than a wrong one: a note would say that its
    // block needs no upload any more.
    let otherwise = if next_seq == 0 { JUMP } else { next_seq };
    // A later scan of the file, which is cut behind this frame, must find the same.
    let least = if known { table_end - at } else { end - at };
    Ok(Salvaged {
        frame: Frame {
            seq: if believable { seq } else { otherwise },
            time_ms,
            joined: false,
            entries,
            head_len,
            len: len.max(least).min(end - at),
        },
        exact: false,
        unwritten,
    })
}
