//! Blocks that are on Walrus and whose bytes still lie in a file of the journal.
//!
//! The problem: a file leaves the journal as a whole, the oldest first. So a block that has
//! travelled stays in its file for as long as one of its neighbours, or an older file, has not. To
//! read it from Walrus meanwhile would cost a round trip for bytes that are on this disk.
//!
//! Invariants:
//! - A block is noted here before the journal forgets it as a staged one: a reader that finds it
//!   there no more finds it here.
//! - It is forgotten when its file was removed, or when the read cache, which has taken its file
//!   over, knows the block ([`Left`]). So a reader that finds it here no more finds it there, if
//!   the cache has room for it.
//! - Nothing here tells whether a block exists: that is the index's business. Only blocks whose
//!   keys name their contents are noted, and a value is compared with its checksum whenever it is
//!   read. So a note that is out of date, or damage, costs a miss.
//!
//! The lock here is innermost, and no file is read under it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::block::Block;
use super::segment::Segment;
use crate::multihash;
use crate::place::{Form, Place, Value};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Settled {
    notes: RwLock<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    places: HashMap<Arc<str>, Note>,
    /// The keys that were noted for each file, by its number.
    of_file: HashMap<u64, Vec<Arc<str>>>,
}

/// Where a value lies.
#[derive(Debug, Clone)]
struct Note {
    segment: Arc<Segment>,
    /// Where it begins in the file, and its length (bytes).
    offset: u64,
    len: u32,
    crc: u32,
}

impl Settled {
    /// Notes where blocks lie that will be staged no longer, if their keys name their contents. A
    /// block counts as live in its file until it was noted.
    pub(super) fn note<'a>(&self, blocks: impl Iterator<Item = &'a Arc<Block>>) {
        let named: Vec<_> = blocks
            .filter(|block| multihash::names_content(&block.key))
            .collect();
        let mut notes = self.notes.write();
        for block in named {
            let (segment, key) = (Arc::clone(&block.segment), Arc::clone(&block.key));
            let of_file = notes.of_file.entry(segment.id).or_default();
            of_file.push(Arc::clone(&key));
            let note = Note {
                segment,
                offset: block.offset,
                len: block.len,
                crc: block.crc,
            };
            notes.places.insert(key, note);
        }
    }

    /// The value of `len` bytes under `key`, if it is here. If it is read, it is compared with its
    /// checksum. Reads from the local disk (mostly its cache) on the calling thread.
    pub(super) fn value(&self, form: Form, key: &str, len: u64) -> Option<Value> {
        let note = self.notes.read().places.get(key)?.clone();
        if u64::from(note.len) != len {
            return None;
        }
        let place = Place::new(note.segment, note.offset, note.len, note.crc);
        place.in_form(form).ok().flatten()
    }

    /// Forgets the blocks in a file.
    pub(super) fn forget_file(&self, id: u64) {
        let mut notes = self.notes.write();
        for key in notes.of_file.remove(&id).unwrap_or_default() {
            // It may lie in a newer file as well.
            let here = |note: &Note| note.segment.id == id;
            if notes.places.get(&key).is_some_and(here) {
                notes.places.remove(&key);
            }
        }
    }
}

/// A file that was handed to the read cache. Its blocks are forgotten here when this is dropped.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) settled: Arc<Settled>,
    /// The number of the file.
    pub(super) file: u64,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.settled.forget_file(self.file);
    }
}
