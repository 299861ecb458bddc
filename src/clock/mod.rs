//! Wall-clock time behind a trait, so that tests can move it, and the network's epochs, which say
//! when a blob's storage ends.

use std::time::SystemTime;

mod epochs;
mod moment;
mod seen;
mod sighting;
mod span;

pub use epochs::EpochClock;
pub use sighting::Sighting;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
mod tests;
