//! Takes over files of the journal; see `retired` for the way.

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
use super::worker::{Directory, Job};
use super::{DiskCache, Slot, MAX_NAME};

/// A file takes at most one part in so many of the cache, so that it drives out no more than that
/// at once.
const SHARE: u64 = 4;

impl DiskCache {
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
    /// keep up, the file is removed.
    pub(crate) fn adopt(&self, path: PathBuf, end: u64, blocks: Vec<Retired>) {
        let adoption = Adoption { path, end, blocks };
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
                rows.push(Row {
                    tag,
                    offset: (adoption.end + pointers.len() as u64) as u32,
                    value_len: block.len,
                });
                let place = (block.at as u32, block.len, block.crc);
                pointers.extend_from_slice(&layout::pointer(name, place));
            }
        }
        if rows.is_empty() {
            adoption.give_up();
            return Ok(());
        }
        let end = adoption.end + pointers.len() as u64;
        pointers.extend_from_slice(&layout::table(&rows, end));
        let len = adoption.end + pointers.len() as u64;
        if len >= MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.make_room(len)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(&adoption.path)?;
        file.set_len(adoption.end)?;
        file.write_all_at(&pointers, adoption.end)?;
        let id = self.take_id();
        let path = Segment::path(self.dir, id);
        fs::rename(&adoption.path, &path)?;
        let segment = Arc::new(Segment::of_file(id, path, file));
        self.total += len;
        self.finished.push_back((Arc::clone(&segment), len));
        let mut map = self.inner.map.write();
        map.segments.insert(id, segment);
        for row in rows {
            let slot = || Slot::new(id, row.offset);
            map.slots.entry(row.tag).or_insert_with(slot);
        }
        drop(map);
        self.count();
        Ok(())
    }
}
