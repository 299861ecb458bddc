//! Panics on demand, for tests/c_abi/test_panic.c. Exists only in builds with the feature
//! `panic-hook`, which no release has: scripts/c-abi-test.sh checks that its function is not
//! exported.

use std::sync::atomic::{AtomicU32, Ordering};

/// In an entry point, before its body.
pub(super) const IN_ENTRY: u32 = 1;
/// In the future that an entry point waits for, after it was polled once.
pub(super) const IN_WORK: u32 = 2;
/// In the task that opens a datastore.
pub(super) const IN_TASK: u32 = 3;
/// In a call that was started on a queue and has to wait.
pub(super) const IN_STARTED: u32 = 4;

/// The place that panics next; 0 = none.
static ARMED: AtomicU32 = AtomicU32::new(0);

/// Lets the next call that comes to `place` panic, once; 0 disarms. Returns the place that was
/// armed.
#[no_mangle]
pub extern "C" fn walrusds_test_panic(place: u32) -> u32 {
    ARMED.swap(place, Ordering::SeqCst)
}

/// Panics if this place is armed.
#[allow(clippy::panic)]
pub(super) fn point(place: u32) {
    let armed = ARMED.compare_exchange(place, 0, Ordering::SeqCst, Ordering::SeqCst);
    if armed.is_ok() {
        panic!("on purpose");
    }
}
