//! A request on its way, and the gets that wait for it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::memory::Piece;
use crate::error::Error;

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Landed(Arc<Piece>),
    Failed(Error),
}

/// One request for a range of a blob. It runs in a task of its own, so that the get that asked
/// first may go away; when all have gone, it is given up, unless it was meant to come before them.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) range: Range<u64>,
    /// The one block that was asked for; `None` for a window.
    pub(super) alone: Option<Box<str>>,
    ahead: bool,
    waiting: AtomicUsize,
    gone: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Flight {
    pub(super) fn new(
        range: Range<u64>,
        alone: Option<Box<str>>,
        ahead: bool,
    ) -> (Arc<Flight>, watch::Sender<Option<Outcome>>) {
        let (sender, outcome) = watch::channel(None);
        let flight = Flight {
            range,
            alone,
            ahead,
            waiting: AtomicUsize::new(0),
            gone: CancellationToken::new(),
            outcome,
        };
        (Arc::new(flight), sender)
    }

    pub(super) fn join(self: &Arc<Self>) -> Passenger {
        self.waiting.fetch_add(1, SeqCst);
        Passenger(Arc::clone(self))
    }

    /// Returns once no get waits any more, unless the request was meant to come before them.
    pub(super) async fn abandoned(&self) {
        self.gone.cancelled().await;
    }

    pub(super) fn covers(&self, range: &Range<u64>) -> bool {
        self.range.start <= range.start && self.range.end >= range.end
    }
}

/// A get that waits.
pub(super) struct Passenger(Arc<Flight>);

impl Passenger {
    pub(super) fn flight(&self) -> &Flight {
        &self.0
    }

    /// `None` if the request was given up.
    pub(super) async fn outcome(&self) -> Option<Outcome> {
        let mut outcome = self.0.outcome.clone();
        let landed = outcome.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        let flight = &self.0;
        // A get that joins in this very moment finds it given up, and asks for the block alone.
        if flight.waiting.fetch_sub(1, SeqCst) == 1 && !flight.ahead {
            flight.gone.cancel();
        }
    }
}
