//! Reads a file of the journal from front to back in large steps, and finds the frames in it.
//!
//! No lock is taken here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::frame::{self, Frame, FRAME_HEAD};

/// How many bytes are read at once.
const WINDOW: usize = 1 << 20;

/// Reads a file from front to back in large steps.
pub(super) struct Window<'a> {
    file: &'a File,
    file_len: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File, file_len: u64) -> Self {
        Window {
            file,
            file_len,
            at: 0,
            bytes: Vec::new(),
        }
    }

    /// The `len` bytes from `at` on; `None` if the file ends before.
    pub(super) fn get(&mut self, at: u64, len: u64) -> io::Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(len).filter(|end| *end <= self.file_len) else {
            return Ok(None);
        };
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            let take = len.max(WINDOW as u64).min(self.file_len - at);
            self.bytes.resize(take as usize, 0);
            // No range matches until the window was filled: the read may fail.
            self.at = u64::MAX - take;
            self.file.read_exact_at(&mut self.bytes, at)?;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        Ok(self.bytes.get(from..from + len as usize))
    }

    /// Whether some byte from `at` on is not zero.
    pub(super) fn other_than_zero_from(&mut self, at: u64) -> io::Result<bool> {
        self.other_than_zero(at, self.file_len)
    }

    /// Whether some byte between `at` and `end` is not zero.
    pub(super) fn other_than_zero(&mut self, at: u64, end: u64) -> io::Result<bool> {
        let mut at = at;
        while at < end {
            let step = (end - at).min(WINDOW as u64);
            if self
                .get(at, step)?
                .is_some_and(|bytes| bytes.iter().any(|b| *b != 0))
            {
                return Ok(true);
            }
            at += step;
        }
        Ok(false)
    }

    /// Where the bytes from `at` on that are not zero end.
    pub(super) fn end_of_bytes(&mut self, at: u64) -> io::Result<u64> {
        let (mut at, mut end) = (at, at);
        while at < self.file_len {
            let step = (self.file_len - at).min(WINDOW as u64);
            let last = self.get(at, step)?;
            let last = last.and_then(|bytes| bytes.iter().rposition(|b| *b != 0));
            end = last.map_or(end, |last| at + last as u64 + 1);
            at += step;
        }
        Ok(end)
    }

    /// The frame that begins at byte `at` and lies before `end`, with its head and table whole.
    pub(super) fn frame_at(&mut self, at: u64, end: u64) -> io::Result<Option<Frame>> {
        let after_head = at + FRAME_HEAD as u64;
        if after_head > end {
            return Ok(None);
        }
        let Some(head) = self.get(at, FRAME_HEAD as u64)? else {
            return Ok(None);
        };
        let Some(len) = head
            .first_chunk()
            .and_then(frame::table_len)
            .filter(|len| after_head + *len as u64 <= end)
        else {
            return Ok(None);
        };
        let encoded = self.get(at, (FRAME_HEAD + len) as u64)?;
        Ok(encoded
            .and_then(frame::decode)
            .filter(|frame| at + frame.len <= end))
    }

    /// The frame at byte `at` with a number that may follow `seq`, and where it begins. 0 says that
    /// nothing is known about the numbers before it.
    pub(super) fn follower_at(
        &mut self,
        at: u64,
        end: u64,
        seq: u64,
    ) -> io::Result<Option<(u64, Frame)>> {
        /// More than the number of entries in one segment.
        const NEAR: u64 = 1 << 24;
        /// In the oldest file numbers begin anywhere: the files before it are gone.
        const ANYWHERE: u64 = 1 << 48;
        let jump = if seq == 0 { ANYWHERE } else { NEAR };
        let numbers = seq..seq.saturating_add(jump);
        let found = self.frame_at(at, end)?;
        let found = found.filter(|frame| numbers.contains(&frame.seq));
        Ok(found.map(|frame| (at, frame)))
    }

    /// The next frame behind byte `at`, where there is none, with a number that may follow `seq`,
    /// and where it begins.
    pub(super) fn frame_after(
        &mut self,
        at: u64,
        end: u64,
        seq: u64,
    ) -> io::Result<Option<(u64, Frame)>> {
        let magic = frame::FRAME_MAGIC.to_le_bytes();
        let mut from = at + 1;
        while from + FRAME_HEAD as u64 <= end {
            let step = (end - from).min(WINDOW as u64);
            let Some(bytes) = self.get(from, step)? else {
                return Ok(None);
            };
            let places = bytes.windows(magic.len()).enumerate();
            let places: Vec<u64> = places
                .filter(|(_, bytes)| *bytes == magic)
                .map(|(place, _)| from + place as u64)
                .collect();
            for place in places {
                if let Some(found) = self.follower_at(place, end, seq)? {
                    return Ok(Some(found));
                }
            }
            // The steps overlap, as a magic may lie across two of them.
            from += (step - magic.len() as u64 + 1).max(1);
        }
        Ok(None)
    }
}
