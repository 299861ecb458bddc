//! Cuts off what a failed write or sync leaves behind, and writes again what counts of it.
//!
//! The problem: after a failed write or sync the bytes behind the last sync are unknown, and must
//! never be read as if they had been acknowledged. But some of them were: notes always, and blocks
//! where writes return before they are synced.
//!
//! Invariants:
//! - The values of such blocks are in memory ([`Block::hold`]) before the file is cut, until they
//!   are in another file. So they can be read and uploaded at any time. A value that the file does
//!   not give any more is reported as damaged.
//! - They are written again before any other write, as the newest values of their keys, behind the
//!   notes: each of those was written before the newest value of its key.
//! - Where a block among them needs no upload any more, a deletion is written in its place: an
//!   older value of its key, which the block had replaced, may lie in a file and must not come
//!   back.
//! - A block that was written again and is staged no longer counts as `unnoted`: its deletion must
//!   be written down.
//!
//! The caller holds the appender's lock.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::block::Block;
use super::damage;
use super::disk_error;
use super::frame::{self, Entry, Write};
use super::segment::Segment;
use super::writer::{Appender, Broken, Open};
use crate::error::{Error, Result};
use crate::log::Level;

impl Appender {
    /// Gives up the current segment: it is to be cut back to the length that was synced.
    pub(super) fn break_off(&mut self) {
        if let Some(open) = self.current.take() {
            self.inner.broken.store(true, Ordering::Release);
            self.given_up += 1;
            let blocks = self.hold_unsynced(&open);
            let keys = self.keys_unsynced(&open);
            self.broken = Some(Broken {
                segment: open.segment,
                len: open.synced.0,
                contents_len: open.synced.1,
                notes: open.notes,
                blocks,
                keys,
            });
        }
    }

    /// Takes the values of the staged blocks that will be cut off into memory.
    fn hold_unsynced(&self, open: &Open) -> Vec<Arc<Block>> {
        let unsynced = |block: &Arc<Block>| {
            block.offset >= open.synced.0 && Arc::ptr_eq(&block.segment, &open.segment)
        };
        let mut blocks: Vec<Arc<Block>> = {
            let mut state = self.inner.state.lock();
            // The next open must not take an older value for that of a block whose entry is cut
            // off.
            state.lost.retain(|_, block| !unsynced(block));
            let staged = state.blocks.values();
            staged.filter(|block| unsynced(block)).cloned().collect()
        };
        blocks.sort_unstable_by_key(|block| block.seq);
        blocks.retain(|block| match block.hold() {
            Ok(()) => true,
            Err(e) => {
                self.lose(block, &e);
                false
            }
        });
        self.inner.save_damage();
        blocks
    }

    /// The keys of the puts that will be cut off and may have been acknowledged.
    fn keys_unsynced(&self, open: &Open) -> BTreeSet<Arc<str>> {
        if !self.inner.syncs_later() {
            return BTreeSet::new();
        }
        let frames = frame::decode_contents(&open.contents).unwrap_or_default();
        let unsynced = frames.into_iter().filter(|(at, _)| *at >= open.synced.0);
        let entries = unsynced.flat_map(|(_, frame)| frame.entries);
        let key = |entry| match entry {
            Entry::Put { key, .. } => Some(key),
            _ => None,
        };
        entries.filter_map(key).collect()
    }

    /// Takes a block out of the staged ones whose value is gone with a failed sync.
    fn lose(&self, block: &Arc<Block>, why: &Error) {
        if !self.inner.state.lock().lose_block(block) {
            return;
        }
        self.inner.log.push(
            Level::Error,
            format!(
                "journal: a sync of the disk has failed, and block {} with it: {why}. {}",
                block.key(),
                damage::REMEDY
            ),
        );
    }

    /// Cuts off the bytes that a failure left behind, and writes again what was acknowledged among
    /// them.
    pub(super) fn mend(&mut self) -> Result<()> {
        let Some(broken) = &mut self.broken else {
            return Ok(());
        };
        let segment = Arc::clone(&broken.segment);
        segment.cut(broken.len).map_err(|e| {
            disk_error(
                &format!("repairing {} after a failure", segment.path().display()),
                &e,
            )
        })?;
        segment.note_contents(broken.contents_len);
        let notes = std::mem::take(&mut broken.notes);
        let blocks = std::mem::take(&mut broken.blocks);
        let keys = std::mem::take(&mut broken.keys);
        self.broken = None;
        if let Err(e) = self.write_again(&notes, &blocks, &keys) {
            // All are kept for the next attempt.
            self.break_off();
            let broken = self.broken.get_or_insert_with(|| Broken {
                len: segment.len(),
                contents_len: contents_len(&segment),
                segment,
                notes: Vec::new(),
                blocks: Vec::new(),
                keys: BTreeSet::new(),
            });
            broken.notes.extend(notes);
            broken.blocks.extend(blocks);
            broken.keys.extend(keys);
            return Err(e);
        }
        self.inner.broken.store(false, Ordering::Release);
        Ok(())
    }

    fn write_again(
        &mut self,
        notes: &[Write],
        blocks: &[Arc<Block>],
        keys: &BTreeSet<Arc<str>>,
    ) -> Result<()> {
        let mut notes = notes.to_vec();
        let blocks: Vec<&Arc<Block>> = {
            let state = self.inner.state.lock();
            let staged = |key: &str| state.blocks.contains_key(key);
            // The next open must see that a damaged block was accepted.
            let ended = keys
                .iter()
                .filter(|k| !staged(k) && !state.damaged.contains_key(*k));
            notes.extend(ended.map(|key| Write::Delete(key.to_string())));
            blocks.iter().filter(|b| state.is_current(b)).collect()
        };
        let mut writes = notes.clone();
        for block in &blocks {
            let key = block.key().to_owned();
            writes.push(Write::put(key, block.read()?));
        }
        if writes.is_empty() {
            return Ok(());
        }
        let (segment, values, seq) = self.append(&writes)?;
        if let Some(open) = &mut self.current {
            open.notes.extend_from_slice(&notes);
        }
        let mut at = values;
        let first = seq + notes.len() as u64;
        let mut state = self.inner.state.lock();
        for (block, seq) in blocks.into_iter().zip(first..) {
            if state.is_current(block) {
                let again = block.again(seq, Arc::clone(&segment), at);
                state.stage(Arc::new(again));
            } else {
                state.unnoted.insert(Arc::clone(&block.key));
            }
            at += block.len();
        }
        drop(state);
        if self.inner.syncs_later() {
            self.inner.due.note();
        }
        Ok(())
    }
}

fn contents_len(segment: &Segment) -> usize {
    usize::try_from(segment.space() - segment.len()).unwrap_or(0)
}
