//! Counts running calls, so that closing can wait for them and later calls are refused.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{Error, Result};

#[derive(Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    left: Notify,
}

/// A running call; counted until dropped.
pub(super) struct Pass(Arc<Gate>);

impl Gate {
    /// Lets a call in.
    pub fn enter(self: &Arc<Self>) -> Result<Pass> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::closed("the index"));
        }
        state.inside += 1;
        Ok(Pass(self.clone()))
    }

    /// Refuses calls from now on.
    pub fn shut(&self) {
        self.state.lock().closed = true;
    }

    /// Waits until the running calls have ended; false if they had not within `limit`.
    pub async fn emptied(&self, limit: Duration) -> bool {
        let wait = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.state.lock().inside == 0 {
                    return;
                }
                left.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        if state.inside == 0 {
            self.0.left.notify_waiters();
        }
    }
}
