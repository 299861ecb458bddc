//! Handles are numbers, never pointers: a stale, freed or foreign one is told apart from a live
//! one, instead of being followed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use once_cell::sync::Lazy;
use parking_lot::RwLock;

use super::buf::invalid;
use crate::error::{Error, Result};

/// The objects of one kind that the caller holds.
pub(super) struct Registry<T> {
    what: &'static str,
    /// The low bits of every handle of this kind, so that kinds cannot be mixed up.
    tag: u64,
    next: AtomicU64,
    live: Lazy<RwLock<HashMap<u64, Arc<T>>>>,
}

const TAG_BITS: u32 = 2;

impl<T> Registry<T> {
    /// `tag` (1 to 3) differs between registries.
    pub(super) const fn new(what: &'static str, tag: u64) -> Self {
        Registry {
            what,
            tag,
            next: AtomicU64::new(1),
            live: Lazy::new(RwLock::default),
        }
    }

    pub(super) fn insert(&self, object: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = number << TAG_BITS | self.tag;
        self.live.write().insert(handle, Arc::new(object));
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Result<Arc<T>> {
        let live = self.live.read().get(&handle).cloned();
        live.ok_or_else(|| self.missing(handle))
    }

    pub(super) fn remove(&self, handle: u64) -> Result<Arc<T>> {
        let removed = self.live.write().remove(&handle);
        removed.ok_or_else(|| self.missing(handle))
    }

    fn missing(&self, handle: u64) -> Error {
        let number = handle >> TAG_BITS;
        let known = handle & ((1 << TAG_BITS) - 1) == self.tag
            && (1..self.next.load(Ordering::Relaxed)).contains(&number);
        if known {
            Error::closed(self.what)
        } else {
            invalid(format!("{handle} is not the handle of a {}", self.what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn misuse_is_told_apart() {
        let registry: Registry<u8> = Registry::new("thing", 1);
        let handle = registry.insert(7);
        assert_eq!(*registry.get(handle).unwrap(), 7);
        assert_eq!(
            registry.get(0).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        let other_kind = handle + 1;
        assert_eq!(
            registry.get(other_kind).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        registry.remove(handle).unwrap();
        assert_eq!(registry.get(handle).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(
            registry.remove(handle).unwrap_err().kind(),
            ErrorKind::Closed
        );
        assert_eq!(
            registry.get(u64::MAX).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }
}
