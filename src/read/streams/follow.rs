//! How a reader goes on in another blob.
//!
//! Where the links of nodes tell which blob is next, the stream there is made before its reader
//! comes ([`Streams::follow`]). Where they do not, it is a guess: a read at the beginning of a
//! blob, soon after a stream has ended, goes on with it, and little trust is carried over.

use std::hash::BuildHasher as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::stream::{Stream, BACK, ENTRANCE};
use super::{Streams, READS_BETWEEN, STREAMS};

/// How long a stream that has ended may be gone on with in another blob: the time of a few reads.
const CARRIED: Duration = Duration::from_secs(2);

/// The worth of a stream that has ended (bytes): that its reader is the one who goes on is only a
/// guess.
const GUESSED: u64 = 1 << 20;

impl Streams {
    /// A first block has become stream `id`: at the beginning of its blob it may go on with
    /// another.
    pub(super) fn begin(&mut self, id: u64, range: &Range<u64>, now: Instant) {
        if range.start <= ENTRANCE {
            if let Some((line, run)) = self.take_ended(now) {
                if let Some(stream) = self.find(id) {
                    (stream.line, stream.run) = (line, stream.run.saturating_add(run));
                }
            }
        }
        self.forget_oldest(true, STREAMS);
    }

    /// A stream that has come to the end of its blob ends: its line, and what it had read, as far
    /// as that counts where it is not known that the reader goes on there.
    pub(super) fn take_ended(&mut self, now: Instant) -> Option<(u64, u64)> {
        let ended = self.list.iter().position(|s| {
            let recent = now.saturating_duration_since(s.used) < CARRIED;
            let near = self.reads - s.last_read <= READS_BETWEEN;
            s.flows && recent && near && s.next.is_none() && s.has_ended()
        });
        let ended = self.list.swap_remove(ended?);
        Some((ended.line, ended.run.min(GUESSED)))
    }

    /// Stream `id` goes on at `offset` of `blob`. A blob that its reader has come from is no goal.
    pub(in crate::read) fn follow(&mut self, id: u64, blob: &str, offset: u64, now: Instant) {
        let Some((line, run)) = self.find(id).map(|s| (s.line, s.run)) else {
            return;
        };
        // The blocks before that one are of the same file.
        let offset = if offset <= ENTRANCE { 0 } else { offset };
        let hash = self.hasher.hash_one(blob);
        let left = |s: &Stream| s.blob_hash == hash && s.line == line && s.id != id && !s.expected;
        if self.list.iter().any(left) {
            return;
        }
        let there = |s: &&Stream| {
            let near = s.expected || s.pos.abs_diff(offset) < BACK;
            s.blob_hash == hash && s.flows && s.id != id && near
        };
        let next = match self.list.iter_mut().find(|s| there(&&**s)) {
            Some(stream) => {
                // Most likely the same reader made that stream, and was faster.
                if stream.line == stream.id && stream.run < run {
                    (stream.line, stream.run) = (line, run);
                }
                stream.id
            }
            None => {
                let next = self.add(blob, hash, offset..offset, Some((line, run)), now);
                if let Some(stream) = self.find(next) {
                    stream.expected = true;
                }
                next
            }
        };
        // Another guess was that it is entered elsewhere.
        if let Some(stream) = self.find(next).filter(|s| s.expected && s.pos != offset) {
            (stream.pos, stream.reach, stream.run) = (offset, offset, run);
            (stream.from, stream.line) = (offset, line);
        }
        if let Some(stream) = self.find(id) {
            stream.next = Some(next);
        }
    }
}

/// So many blocks in another blob may be some that lie apart, if more lie in this one.
const FEW: usize = 16;

/// Where blocks go on that lie at `places` (offset and blob), in their order, when they leave
/// `blob`. Where one blob ends and the next begins, a few blocks lie in the other, also in the one
/// that was read before: a blob with few is no goal.
pub(in crate::read) fn next_of(
    blob: &str,
    places: impl Iterator<Item = (u64, String)>,
) -> Option<(String, u64)> {
    let mut blobs: Vec<(String, u64, usize)> = Vec::new();
    let mut here = 0;
    for (offset, id) in places {
        if id == blob {
            here += 1;
            continue;
        }
        match blobs.iter_mut().find(|known| known.0 == id) {
            Some(known) => (known.1, known.2) = (known.1.min(offset), known.2 + 1),
            None => blobs.push((id, offset, 1)),
        }
    }
    let most = blobs.iter().map(|known| known.2).max()?;
    if most < FEW.min(here) {
        return None;
    }
    let goal = blobs
        .into_iter()
        .find(|known| known.2 >= most.div_ceil(2))?;
    Some((goal.0, goal.1))
}
