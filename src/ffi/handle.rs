//! Handles: numbers, never pointers. A stale, freed or foreign handle is told apart from a live
//! one, instead of being followed as a pointer.

use std::collections::HashMap;
use std::sync::Arc;

use once_cell::sync::Lazy;

use super::buf::invalid;
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::RwLock;

/// The objects of one kind that the caller holds.
pub(super) struct Registry<T> {
    what: &'static str,
    /// The low bits of every handle of this kind, so that kinds cannot be mixed up.
    tag: u64,
    next: AtomicU64,
    live: Lazy<RwLock<HashMap<u64, Arc<T>>>>,
}

const TAG_BITS: u32 = 3;

impl<T> Registry<T> {
    /// `tag` (1 to 7) differs between registries.
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

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::explore;
    use crate::ErrorKind;
    use shuttle::thread;

    /// A handle leads to its own object until exactly one of the threads that remove it has got the
    /// object, and is never taken for a foreign one afterwards, however many handles come and go
    /// beside it.
    #[test]
    fn each_handle_is_given_back_once() {
        explore(4_000, || {
            let registry: Arc<Registry<usize>> = Arc::new(Registry::new("thing", 1));
            let owners = (0..3).map(|owner| {
                let registry = Arc::clone(&registry);
                thread::spawn(move || {
                    let mut used = Vec::new();
                    for turn in 0..2 {
                        let object = owner * 10 + turn;
                        let handle = registry.insert(object);
                        let users = (0..2).map(|_| {
                            let registry = Arc::clone(&registry);
                            thread::spawn(move || {
                                match registry.get(handle) {
                                    Ok(found) => assert_eq!(*found, object),
                                    Err(e) => assert_eq!(e.kind(), ErrorKind::Closed, "{e}"),
                                }
                                match registry.remove(handle) {
                                    Ok(removed) => {
                                        assert_eq!(*removed, object);
                                        1
                                    }
                                    Err(e) => {
                                        assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
                                        0
                                    }
                                }
                            })
                        });
                        let users: Vec<_> = users.collect();
                        let removed: i32 = users.into_iter().map(|u| u.join().unwrap()).sum();
                        assert_eq!(removed, 1, "who removed {handle}");
                        used.push(handle);
                    }
                    used
                })
            });
            let owners: Vec<_> = owners.collect();
            let mut used: Vec<_> = owners.into_iter().flat_map(|o| o.join().unwrap()).collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), 6, "a handle was given out twice");
            assert!(registry.live.read().is_empty());
        });
    }
}
