//! Blocks that were found right since the process began, by a digest that costs less than most of
//! those that name blocks: for 256 KiB a fifth of SHA-256. Two records with the same digest are the
//! same record (BLAKE3 is a cryptographic hash; half of it is kept), so one with a known digest
//! need not be hashed by its own function again. The digest is taken the second time a record is
//! found right: many are read once.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

/// Shorter values (bytes) are hashed by their own function, which costs as little. So are all where
/// BLAKE3 is not written for wide registers; there SHA-256 may well have instructions of its own.
pub(super) const SHORTEST: usize = match cfg!(target_arch = "x86_64") {
    true => 32 << 10,
    false => usize::MAX,
};

/// Digests that are remembered: 16 GiB of blocks of 256 KiB, in about 5 MiB of memory.
const MOST: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// Half of a BLAKE3 digest of a whole record, name and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; 16]);

impl Digest {
    pub(super) fn of(record: &[u8]) -> Digest {
        let mut half = [0; 16];
        blake3::Hasher::new()
            .update(record)
            .finalize_xof()
            .fill(&mut half);
        Digest(half)
    }
}

/// See the module. Found by the tags of names.
#[derive(Debug)]
pub(super) struct Known(Mutex<LruCache<u64, Option<Digest>>>);

impl Default for Known {
    fn default() -> Self {
        // Grows as it fills.
        let mut cache = LruCache::unbounded();
        cache.resize(MOST);
        Known(Mutex::new(cache))
    }
}

impl Known {
    /// `None` if no record of this name was found right; its digest if that was taken.
    pub(super) fn get(&self, tag: u64) -> Option<Option<Digest>> {
        self.0.lock().get(&tag).copied()
    }

    /// Notes that a record was found right.
    pub(super) fn add(&self, tag: u64, digest: Option<Digest>) {
        self.0.lock().put(tag, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_whole() {
        let record = vec![7; 5000];
        let digest = Digest::of(&record);
        for at in [0, 1024, record.len() - 1] {
            let mut other = record.clone();
            other[at] ^= 1;
            assert_ne!(Digest::of(&other), digest, "byte {at}");
        }
        assert_eq!(Digest::of(&record), digest);
    }

    #[test]
    fn no_more_is_remembered_than_said() {
        let known = Known::default();
        let digest = Some(Digest([1; 16]));
        assert_eq!(known.get(1), None);
        known.add(1, None);
        assert_eq!(known.get(1), Some(None));
        known.add(1, digest);
        assert_eq!(known.get(1), Some(digest));
        assert_eq!(known.get(2), None);
        for tag in 0..2 * MOST.get() as u64 {
            known.add(tag, digest);
        }
        assert_eq!(known.0.lock().len(), MOST.get());
    }
}
