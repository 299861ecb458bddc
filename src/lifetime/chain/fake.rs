//! A chain in memory, for tests. It has the rules of the real one, and fails on demand.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{object_id, Chain, Epoch, Failure, OwnedBlob};
use crate::error::Result;
use crate::walrus::cost::Prices;

/// A call of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Chain::epoch`].
    Epoch,
    /// [`Chain::prices`].
    Prices,
    /// [`Chain::extend`].
    Extend,
    /// [`Chain::delete`].
    Delete,
    /// [`Chain::list`].
    List,
}

/// See the module. It begins in epoch 1, with the prices of Walrus' documentation and epochs of 14
/// days.
#[derive(Debug)]
pub struct Fake {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    epoch: Epoch,
    prices: Prices,
    blobs: BTreeMap<String, OwnedBlob>,
    calls: BTreeMap<Call, u64>,
    failing: BTreeMap<Call, (Failure, u64)>,
}

impl Default for Fake {
    fn default() -> Self {
        let state = State {
            epoch: Epoch {
                current: 1,
                started_at: Some(SystemTime::UNIX_EPOCH),
                length: Duration::from_secs(14 * 86_400),
                max_ahead: 53,
            },
            prices: Prices {
                storage: 100_000,
                write: 20_000,
            },
            blobs: BTreeMap::new(),
            calls: BTreeMap::new(),
            failing: BTreeMap::new(),
        };
        Fake {
            state: Mutex::new(state),
        }
    }
}

impl Fake {
    /// Gives the wallet a blob.
    pub fn own(&self, blob: OwnedBlob) {
        let mut state = self.state.lock();
        state.blobs.insert(blob.object_id.clone(), blob);
    }

    /// Changes the present epoch.
    pub fn set_epoch(&self, epoch: Epoch) {
        self.state.lock().epoch = epoch;
    }

    /// Changes the prices.
    pub fn set_prices(&self, prices: Prices) {
        self.state.lock().prices = prices;
    }

    /// Lets the next `times` calls fail. With [`Failure::Unclear`] a change is made all the same.
    pub fn fail(&self, call: Call, failure: Failure, times: u64) {
        self.state.lock().failing.insert(call, (failure, times));
    }

    /// How often this was called.
    pub fn calls(&self, call: Call) -> u64 {
        self.state.lock().calls.get(&call).copied().unwrap_or(0)
    }
}

impl State {
    /// Counts a call; the failure that it must have.
    fn called(&mut self, call: Call) -> Option<Failure> {
        *self.calls.entry(call).or_default() += 1;
        let (failure, times) = self.failing.get_mut(&call)?;
        *times = times.checked_sub(1)?;
        Some(*failure)
    }

    fn owned(&mut self, object: &str) -> Result<&mut OwnedBlob> {
        let now = self.epoch.current;
        let object = object_id(object)?;
        let found = self.blobs.get_mut(&object);
        let alive = found.filter(|blob| blob.end_epoch > now);
        alive
            .ok_or_else(|| Failure::Absent.error(format!("the wallet has no blob object {object}")))
    }

    fn extend(&mut self, object: &str, epochs: u32) -> Result<()> {
        let latest = self.epoch.current + u64::from(self.epoch.max_ahead);
        let blob = self.owned(object)?;
        let end = blob.end_epoch + u64::from(epochs);
        if !blob.certified || end > latest {
            return Err(Failure::Refused.error("MoveAbort"));
        }
        blob.end_epoch = end;
        Ok(())
    }

    fn delete(&mut self, object: &str) -> Result<()> {
        let blob = self.owned(object)?;
        if !blob.deletable {
            return Err(Failure::Refused.error("EBlobNotDeletable"));
        }
        let object = blob.object_id.clone();
        self.blobs.remove(&object);
        Ok(())
    }
}

fn failed<T>(failure: Failure) -> Result<T> {
    Err(failure.error(format!("told to fail: {failure}")))
}

#[async_trait]
impl Chain for Fake {
    async fn epoch(&self) -> Result<Epoch> {
        let mut state = self.state.lock();
        match state.called(Call::Epoch) {
            Some(failure) => failed(failure),
            None => Ok(state.epoch),
        }
    }

    async fn prices(&self) -> Result<Prices> {
        let mut state = self.state.lock();
        match state.called(Call::Prices) {
            Some(failure) => failed(failure),
            None => Ok(state.prices),
        }
    }

    async fn extend(&self, object_id: &str, epochs: u32, _shared: bool) -> Result<()> {
        let mut state = self.state.lock();
        match state.called(Call::Extend) {
            Some(Failure::Unclear) => {
                state.extend(object_id, epochs)?;
                failed(Failure::Unclear)
            }
            Some(failure) => failed(failure),
            None => state.extend(object_id, epochs),
        }
    }

    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        let mut state = self.state.lock();
        let failure = state.called(Call::Delete);
        let mut outcomes = Vec::new();
        for id in object_ids {
            let outcome = match failure {
                Some(Failure::Unclear) => state.delete(id).and_then(|()| failed(Failure::Unclear)),
                Some(failure) => failed(failure),
                None => state.delete(id),
            };
            outcomes.push((id.clone(), outcome));
        }
        Ok(outcomes)
    }

    async fn list(&self) -> Result<Vec<OwnedBlob>> {
        let mut state = self.state.lock();
        match state.called(Call::List) {
            Some(failure) => failed(failure),
            None => {
                let now = state.epoch.current;
                let alive = state.blobs.values().filter(|blob| blob.end_epoch > now);
                Ok(alive.cloned().collect())
            }
        }
    }
}
