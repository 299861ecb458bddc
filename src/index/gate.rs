//! Counts running calls, so that closing can wait for them and later calls are refused.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};

/// See the module.
#[derive(Default)]
pub(super) struct Gate(TaskTracker);

/// A running call; counted until dropped.
pub(super) struct Pass {
    _counted: TaskTrackerToken,
}

impl Gate {
    /// Lets a call in.
    pub fn enter(self: &Arc<Self>) -> Result<Pass> {
        // Counted before the look: a close that comes between the two waits for this call.
        let counted = self.0.token();
        match self.0.is_closed() {
            true => Err(Error::closed("the index")),
            false => Ok(Pass { _counted: counted }),
        }
    }

    /// Refuses calls from now on.
    pub fn shut(&self) {
        self.0.close();
    }

    /// Waits until the gate is [`shut`](Self::shut) and the running calls have ended; false if that
    /// takes longer than `limit`.
    pub async fn emptied(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closing_sees_the_last_call_out() {
        let gate = Arc::new(Gate::default());
        let (first, second) = (gate.enter().unwrap(), gate.enter().unwrap());
        gate.shut();
        assert!(gate.enter().is_err());
        drop(first);
        assert!(!gate.emptied(Duration::from_secs(1)).await);
        drop(second);
        assert!(gate.emptied(Duration::from_secs(1)).await);
        assert!(gate.enter().is_err());
    }
}
