//! The pace of maintenance: how many bytes renewal and repacking move in a second.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Spaces out what is moved. Without a limit it never waits.
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When the next bytes may be moved.
    next: Mutex<Instant>,
}

impl Pace {
    /// `bytes_per_second`: 0 = no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Pace {
            bytes_per_second,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may be moved. Callers wait one after another.
    pub(super) async fn moved(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        let takes = bytes as f64 / self.bytes_per_second as f64;
        *next = Instant::now() + Duration::from_secs_f64(takes.min(86_400.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_spaced_out() {
        let begun = Instant::now();
        let pace = Pace::new(1000);
        for _ in 0..3 {
            pace.moved(2000).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 4);
        let pace = Pace::new(0);
        pace.moved(u64::MAX).await;
        assert_eq!(begun.elapsed().as_secs(), 4);
    }
}
