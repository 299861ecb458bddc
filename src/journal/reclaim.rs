//! Removes files of the journal of which no block is needed any more. The appender's lock is held
//! meanwhile; the state's lock is taken and released between the calls that change files.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::segment::Segment;
use super::writer::Appender;
use crate::log::Level;

impl Appender {
    /// Removes files without live blocks, oldest first, the newest too if it is the only one.
    pub(super) fn reclaim(&mut self) {
        self.inner.save_damage();
        self.remove_free();
        // Saved once more, since files that were set aside have other names now.
        self.inner.save_damage();
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
            match oldest.remove() {
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
