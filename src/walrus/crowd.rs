//! How many reads one aggregator is asked for at a time.
//!
//! [`FIRST`] at the beginning. While that many are wanted, and answers begin as soon as they did
//! when few were under way, one more for each answer: twice as many in the time of an answer. An
//! aggregator that answers 429 or 503 is asked for half as many as were under way; from there on
//! one more for every such crowd that was answered. (Slow start; additive increase, multiplicative
//! decrease: as TCP does it.) Uploads have a limit of their own, by pack: `upload::limit`.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Reads at a time before anything is known.
const FIRST: f64 = 128.0;

/// Reads at a time at most.
const MOST: f64 = 1024.0;

/// An answer that begins within this time (or within twice the shortest time) shows that the
/// aggregator is not busy.
const SOON: Duration = Duration::from_millis(50);

/// Each longer time lets the shortest one grow by this part of it. So it doubles in 11 crowds of
/// the largest size: an aggregator that has become slower for good is not taken for a busy one.
const FORGETS: u32 = 16_384;

pub(super) struct Crowd {
    state: Mutex<Bound>,
    freed: Notify,
}

struct Bound {
    running: usize,
    most: f64,
    /// When the bound was last lowered: requests that were begun before then tell nothing new.
    lowered: Option<Instant>,
    /// The shortest time until an answer began; it grows a little with each longer one.
    shortest: Option<Duration>,
}

/// A read under way; it has ended when dropped.
pub(super) struct Member<'a> {
    crowd: &'a Crowd,
    began: Instant,
}

impl Default for Crowd {
    fn default() -> Self {
        Crowd {
            state: Mutex::new(Bound {
                running: 0,
                most: FIRST,
                lowered: None,
                shortest: None,
            }),
            freed: Notify::new(),
        }
    }
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
                if (state.running as f64) < state.most {
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
        state.most = (state.most.min(running) / 2.0).max(1.0);
        state.lowered = Some(Instant::now());
    }

    /// Notes that the aggregator answered a read, and that its answer began after `time`.
    pub(super) fn answered(&self, time: Duration) {
        let mut state = self.crowd.state.lock();
        let shortest = state
            .shortest
            .map_or(time, |shortest| time.min(shortest + shortest / FORGETS));
        state.shortest = Some(shortest);
        let more = match state.lowered {
            Some(_) => 1.0 / state.most,
            None => {
                let wanted = state.running as f64 >= state.most / 2.0;
                let soon = time <= SOON.max(shortest * 2);
                f64::from(u8::from(wanted && soon))
            }
        };
        state.most = (state.most + more).min(MOST);
        drop(state);
        self.crowd.freed.notify_one();
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.crowd.state.lock().running -= 1;
        self.crowd.freed.notify_one();
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
            next.answered(Duration::ZERO);
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

    fn fill(crowd: &Crowd) -> Vec<Member<'_>> {
        std::iter::from_fn(|| crowd.join().now_or_never()).collect()
    }

    #[tokio::test]
    async fn it_grows_while_answers_begin_as_soon_as_before() {
        let crowd = Crowd::default();
        let usual = Duration::from_millis(100);
        let mut members = fill(&crowd);
        assert_eq!(members.len(), 128);
        members.iter().for_each(|member| member.answered(usual));
        members.extend(fill(&crowd));
        assert_eq!(members.len(), 256, "twice as many");
        members.iter().for_each(|member| member.answered(usual * 3));
        assert!(fill(&crowd).is_empty(), "the aggregator is busy");
        members.truncate(100);
        members.iter().for_each(|member| member.answered(usual));
        members.extend(fill(&crowd));
        assert_eq!(members.len(), 256, "nobody wanted more");
        for _ in 0..4 {
            members.iter().for_each(|member| member.answered(usual));
            members.extend(fill(&crowd));
        }
        assert_eq!(members.len(), MOST as usize);
    }

    #[tokio::test]
    async fn a_waiting_read_is_let_in_when_another_has_ended() {
        let crowd = Crowd::default();
        let mut members = fill(&crowd);
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(crowd.join())).collect();
        for wait in &mut waiting {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        // One that was told goes away, and another gets its place.
        members.pop();
        drop(waiting.remove(0));
        let second = waiting.remove(0).await;
        drop(second);
        waiting.remove(0).await;
    }
}
