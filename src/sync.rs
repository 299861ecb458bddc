//! Locks, atomics and notifications of the modules whose interleavings are explored.
//!
//! They are parking_lot's, std's and tokio's. In the build of `scripts/interleavings.sh`, made for
//! that alone, they are those of a scheduler: at every use of one of them it decides anew which
//! thread goes on.

#[cfg(not(all(test, shuttle)))]
pub(crate) use parking_lot::{Mutex, RwLock};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::atomic;
#[cfg(not(all(test, shuttle)))]
pub(crate) use tokio::sync::Notify;

#[cfg(all(test, shuttle))]
pub(crate) use explored::{Mutex, Notify, RwLock};
#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::atomic;

/// The scheduler's locks with parking_lot's interface, and a `Notify` at which it decides.
#[cfg(all(test, shuttle))]
mod explored {
    use std::sync::PoisonError;

    use shuttle::sync::atomic::{AtomicBool, Ordering};
    use shuttle::sync::{self, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Mutex(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Code inside tokio runs in one piece; other threads may run before it.
    #[derive(Debug, Default)]
    pub(crate) struct Notify {
        inner: tokio::sync::Notify,
        point: AtomicBool,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Notify::default()
        }

        fn decide(&self) -> &tokio::sync::Notify {
            self.point.load(Ordering::SeqCst);
            &self.inner
        }

        pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
            self.decide().notified()
        }

        pub(crate) fn notify_one(&self) {
            self.decide().notify_one();
        }

        pub(crate) fn notify_waiters(&self) {
            self.decide().notify_waiters();
        }
    }
}
