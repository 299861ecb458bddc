//! Takes over files of the journal; see `retired` for the way.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::TrySendError;
use std::sync::Arc;

use super::layout::{self, Row, MAX_LEN};
use super::retired::{Adoption, Retired, ENDING};
use super::segment::Segment;
use super::worker::{structure_in, Directory, Finished, Job};
use super::{DiskCache, Slot, MAX_NAME};
use crate::dag;

/// A file takes at most one part in so many of the cache, so that it drives out no more than that
/// at once.
const SHARE: u64 = 4;

impl DiskCache {
    /// Whether the directory is still being opened for the first time: a file that has to wait for
    /// that can be taken over soon.
    pub(crate) fn is_opening(&self) -> bool {
        !*self.inner.loaded.borrow() && !self.inner.stopping.load(Relaxed)
    }

    /// The path to which a file of `len` bytes is to be renamed before it is [taken
    /// over](Self::adopt); `None` if the cache cannot take it.
    pub(crate) fn place_for(&self, len: u64) -> Option<PathBuf> {
        let inner = &self.inner;
        let fits = len <= self.max_bytes / SHARE && len < MAX_LEN / 2;
        if !fits || !inner.serving.load(Relaxed) || inner.stopping.load(Relaxed) {
            return None;
        }
        let number = inner.retired.fetch_add(1, Relaxed);
        Some(self.dir.join(format!("{number:010}.{ENDING}")))
    }

    /// Takes over a file that was renamed to a [place](Self::place_for) in the directory. Its
    /// blocks end at byte `end`; what follows them is of no use. Never waits: if the disk cannot
    /// keep up, the file is removed. `until_then` is dropped when reads find the blocks here, or it
    /// is certain that they do not.
    pub(crate) fn adopt(
        &self,
        path: PathBuf,
        end: u64,
        blocks: Vec<Retired>,
        until_then: Box<dyn Any + Send>,
    ) {
        let adoption = Adoption {
            path,
            end,
            blocks,
            _until_then: until_then,
        };
        let job = Job::Adopt(adoption);
        let refused = match &*self.queue.lock() {
            Some(queue) => queue.try_send(job).err(),
            None => Some(TrySendError::Disconnected(job)),
        };
        if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
            if let Job::Adopt(adoption) = job {
                adoption.give_up();
            }
            self.inner.counters.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl Directory<'_> {
    /// Takes over a file. After an error it is to be removed.
    pub(super) fn adopt(&mut self, adoption: &Adoption) -> io::Result<()> {
        let mut new = Vec::new();
        let mut pointers = Vec::new();
        let mut rows = Vec::new();
        {
            let map = self.inner.map.read();
            for block in &adoption.blocks {
                let name = block.name.as_bytes();
                let tag = layout::tag(name);
                let inside = block.at + u64::from(block.len) <= adoption.end;
                let fits = inside && block.len > 0 && name.len() <= MAX_NAME;
                if !fits
                    || u64::from(block.len) > self.inner.longest()
                    || map.slots.contains_key(&tag)
                {
                    continue;
                }
                new.push((tag, block));
            }
        }
        if new.is_empty() {
            adoption.give_up();
            return Ok(());
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(&adoption.path)?;
        for (tag, block) in new {
            rows.push(Row {
                tag,
                offset: (adoption.end + pointers.len() as u64) as u32,
                value_len: block.len,
                structure: is_structure(&file, block),
            });
            let place = (block.at as u32, block.len, block.crc);
            pointers.extend_from_slice(&layout::pointer(block.name.as_bytes(), place));
        }
        let end = adoption.end + pointers.len() as u64;
        pointers.extend_from_slice(&layout::table(&rows, end));
        let len = adoption.end + pointers.len() as u64;
        if len >= MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.make_room(len)?;
        file.set_len(adoption.end)?;
        file.write_all_at(&pointers, adoption.end)?;
        let id = self.take_id();
        let path = Segment::path(self.dir, id);
        fs::rename(&adoption.path, &path)?;
        let segment = Arc::new(Segment::of_file(id, path, file));
        self.total += len;
        let structure = structure_in(&rows);
        self.structure += structure;
        self.finished.push_back(Finished {
            segment: Arc::clone(&segment),
            len,
            structure,
        });
        let mut map = self.inner.map.write();
        map.segments.insert(id, segment);
        for row in rows {
            let slot = || Slot::new(id, &row);
            map.slots.entry(row.tag).or_insert_with(slot);
        }
        drop(map);
        self.count();
        Ok(())
    }
}

/// Whether a block is structure. Of most others the first bytes are enough.
fn is_structure(file: &File, block: &Retired) -> bool {
    let mut head = [0; 64];
    let head = &mut head[..block.len.min(64) as usize];
    if file.read_exact_at(head, block.at).is_err() || !dag::may_be_structure(head) {
        return false;
    }
    let mut value = vec![0; block.len as usize];
    file.read_exact_at(&mut value, block.at).is_ok() && dag::is_structure(&value)
}
