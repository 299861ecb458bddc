//! How many reads one aggregator is asked for at a time.
//!
//! As many as callers want, until it answers 429 or 503. Then half as many as were under way; from
//! there, one more for every such crowd that was answered, until there is no need for a bound any
//! more. (Additive increase, multiplicative decrease, as TCP does it.) Uploads have a limit of
//! their own, by pack: `upload::limit`.

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A bound that has grown to this number is dropped.
const NO_BOUND: f64 = 256.0;

#[derive(Default)]
pub(super) struct Crowd {
    state: Mutex<Bound>,
    freed: Notify,
}

#[derive(Default)]
struct Bound {
    running: usize,
    most: Option<f64>,
    /// When the bound was last lowered: requests that were begun before then tell nothing new.
    lowered: Option<Instant>,
}

/// A read under way; it has ended when dropped.
pub(super) struct Member<'a> {
    crowd: &'a Crowd,
    began: Instant,
}

impl Crowd {
    /// Waits until one more read may be asked for.
    pub(super) async fn join(&self) -> Member<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.state.lock();
                let running = state.running as f64;
                if state.most.is_none_or(|most| running < most) {
                    state.running += 1;
                    return Member {
                        crowd: self,
                        began: Instant::now(),
                    };
                }
            }
            freed.await;
        }
    }
}

impl Member<'_> {
    /// Lowers the bound: the aggregator asks for fewer reads.
    pub(super) fn refused(&self) {
        let mut state = self.crowd.state.lock();
        if state.lowered.is_some_and(|at| self.began <= at) {
            return;
        }
        let running = state.running as f64;
        let most = state.most.map_or(running, |most| most.min(running));
        state.most = Some((most / 2.0).max(1.0));
        state.lowered = Some(Instant::now());
    }

    /// Notes that the aggregator answered a read.
    pub(super) fn answered(&self) {
        let mut state = self.crowd.state.lock();
        let most = state.most.map(|most| most + 1.0 / most);
        state.most = most.filter(|most| *most < NO_BOUND);
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.crowd.state.lock().running -= 1;
        self.crowd.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn it_halves_once_for_a_crowd_and_grows_by_one() {
        let crowd = Crowd::default();
        let mut members = Vec::new();
        for _ in 0..64 {
            members.push(crowd.join().await);
        }
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
        // All of them are refused, for the same reason.
        members.iter().for_each(Member::refused);
        members.truncate(32);
        assert!(crowd.join().now_or_never().is_none(), "32 run, and no more");
        members.pop();
        let next = crowd.join().now_or_never().expect("one has ended");
        assert!(crowd.join().now_or_never().is_none());
        for _ in 0..32 {
            next.answered();
        }
        let more = crowd.join().now_or_never();
        assert!(more.is_some(), "one more for 32 answers");
        assert!(crowd.join().now_or_never().is_none());
        drop(more);
        // A later refusal counts again.
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
        drop(next);
        let late = crowd.join().now_or_never().expect("room");
        late.refused();
        members.truncate(15);
        assert!(crowd.join().now_or_never().is_none(), "16 run");
    }

    #[tokio::test]
    async fn without_refusals_there_is_no_bound() {
        let crowd = Crowd::default();
        let members: Vec<_> = (0..1000)
            .map(|_| crowd.join().now_or_never().unwrap())
            .collect();
        members.iter().for_each(Member::answered);
        assert!(crowd.join().now_or_never().is_some());
    }
}
