//! The end of a measurement.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// A time until which something is measured, unless the operator ends it before.
pub(super) struct Until {
    end: Instant,
    stop: CancellationToken,
}

impl Until {
    pub(super) fn new(time: Duration, stop: &CancellationToken) -> Until {
        Until {
            end: Instant::now() + time,
            stop: stop.clone(),
        }
    }

    /// A part of the time that is left.
    pub(super) fn part(&self, share: f64) -> Until {
        Until::new(self.left().mul_f64(share), &self.stop)
    }

    pub(super) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.left().is_zero()
    }

    /// Whether the operator ended it.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits for work; `None` if the end comes first.
    pub(super) async fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            done = tokio::time::timeout(self.left(), work) => done.ok(),
        }
    }
}
