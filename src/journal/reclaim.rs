//! Removes files of the journal of which no block is needed any more, or hands them to the read
//! cache: what was just written is read soon. The cache takes only blocks whose keys name them, and
//! whether a block exists is the index's business, so a deleted one does not come back.
//!
//! The appender's lock is held meanwhile; the state's lock is taken and released between the calls
//! that change files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::disk_error;
use super::frame::{self, Entry, Frame};
use super::segment::Segment;
use super::settled::Left;
use super::writer::Appender;
use crate::error::Result;
use crate::log::Level;
use crate::multihash::Multihash;
use crate::read::disk::{Retired, JOURNAL_HEAD};

// The cache knows the journal's files by their first bytes.
const _: () =
    assert!(u64::from_ne_bytes(*JOURNAL_HEAD) == u64::from_ne_bytes(*frame::SEGMENT_MAGIC));

impl Appender {
    /// Removes files without live blocks, oldest first, the newest too if it is the only one.
    /// `patient`: not while the read cache, which may take them over, is being opened, unless their
    /// room is needed. Returns whether it is to be called again.
    pub(super) fn reclaim(&mut self, patient: bool) -> bool {
        self.inner.save_damage();
        if patient && self.waits_for_heir() {
            return true;
        }
        self.remove_free();
        // Saved once more, since files that were set aside have other names now.
        self.inner.save_damage();
        false
    }

    fn waits_for_heir(&self) -> bool {
        let opening = self.inner.heir.as_ref().is_some_and(|h| h.is_opening());
        let state = self.inner.state.lock();
        let free = state.segments.front().is_some_and(|s| s.live() == 0);
        opening && free && state.waiting_for_space == 0 && state.disk_full.is_none()
    }

    fn remove_free(&mut self) {
        loop {
            let oldest = {
                let state = self.inner.state.lock();
                match state.segments.front() {
                    Some(s) if s.live() == 0 => Arc::clone(s),
                    _ => return,
                }
            };
            match self.take_out(&oldest) {
                Ok(None) => {}
                Ok(Some(aside)) => self.renamed(&oldest, &aside),
                Err(e) => {
                    self.inner.log.push(
                        Level::Warn,
                        format!("journal: cannot remove {}: {e}", oldest.path().display()),
                    );
                    return;
                }
            }
            // If it is the newest file: everything written is published, so no write into it is
            // under way, and its notes are about blocks that are gone with it.
            if self
                .current
                .as_ref()
                .is_some_and(|o| o.segment.id == oldest.id)
            {
                self.current = None;
            }
            if self
                .broken
                .as_ref()
                .is_some_and(|b| b.segment.id == oldest.id)
            {
                self.broken = None;
                self.inner.broken.store(false, Ordering::Release);
            }
            failpoint!("journal.removed");
            {
                let mut state = self.inner.state.lock();
                state.segments.pop_front();
                if state.segments.is_empty() {
                    state.unnoted.clear();
                    // There is nothing left that could make room.
                    state.disk_full = None;
                }
            }
            self.inner.space.notify_waiters();
        }
    }

    /// Hands a file to the read cache, or removes it, or sets it aside and returns its new name.
    fn take_out(&mut self, segment: &Segment) -> Result<Option<PathBuf>> {
        let newest = self.current.as_ref().map(|open| open.segment.id);
        if self.inner.syncs_later() && newest != Some(segment.id) {
            // A key may have a newer value that is not on the disk yet, and the older one, which
            // is, in this file: a power cut must not take both.
            self.sync_all()?;
        }
        if self.retire(segment) {
            return Ok(None);
        }
        let failed = |e| disk_error("removing it", &e);
        self.remove(segment).map_err(failed)
    }

    /// Removes a file, or sets it aside.
    fn remove(&self, segment: &Segment) -> io::Result<Option<PathBuf>> {
        let removed = segment.remove()?;
        self.inner.settled.forget_file(segment.id);
        Ok(removed)
    }

    /// Hands a file to the read cache instead of removing it. `false`: it is still here.
    fn retire(&self, segment: &Segment) -> bool {
        let Some(heir) = self.inner.heir.as_ref().filter(|_| !segment.is_kept()) else {
            return false;
        };
        let current = self.current.as_ref();
        let frames = match current.filter(|open| open.segment.id == segment.id) {
            Some(open) => frame::decode_contents(&open.contents),
            None => segment.sealed_frames(),
        };
        let blocks = blocks_of(frames.unwrap_or_default());
        if blocks.is_empty() {
            return false;
        }
        let Some(place) = heir.place_for(segment.len()) else {
            return false;
        };
        // Another file system takes no file by its name.
        if self.inner.disk.rename(segment.path(), &place).is_err() {
            return false;
        }
        let left = Left {
            settled: Arc::clone(&self.inner.settled),
            file: segment.id,
        };
        heir.adopt(place, segment.len(), blocks, Box::new(left));
        true
    }

    /// Notes that the damaged blocks of a segment lie in a file of another name now.
    fn renamed(&self, segment: &Segment, aside: &Path) {
        let (from, to) = (segment.file_name(), aside.file_name().unwrap_or_default());
        let mut state = self.inner.state.lock();
        state.damage_changed = true;
        for damage in state.damaged.values_mut().filter(|d| d.file == from) {
            damage.file = to.to_string_lossy().into_owned();
        }
    }
}

/// The blocks of a file whose keys name their contents. Their puts were checked.
fn blocks_of(frames: Vec<(u64, Frame)>) -> Vec<Retired> {
    let mut blocks = Vec::new();
    for (start, frame) in frames {
        for entry in frame.entries {
            if let Entry::Put {
                key,
                offset,
                len,
                crc,
            } = entry
            {
                let at = start + offset;
                let name = Multihash::of_key(&key);
                blocks.extend(name.map(|name| Retired { name, at, len, crc }));
            }
        }
    }
    blocks
}
