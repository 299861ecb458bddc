//! Looks at the lifetimes of blobs: what would be done, and what ends when. Nothing is changed.

use super::WalrusDatastore;
use crate::error::{caught, Result};
use crate::index::{EndingIn, Ledger};
use crate::lifetime::look;
use crate::plan::Plan;

impl WalrusDatastore {
    /// The plan of renewal for the blobs that end within the lead, as it would be carried out now,
    /// with bytes, units and FROST for each. It prints as a table (`Display`) and as JSON
    /// ([`Plan::to_json`]). Nothing is changed and nothing is paid. `None` while the present epoch
    /// is not known: no store and no chain has told it, or the length of an epoch is not
    /// configured.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn plan(&self) -> Result<Option<Plan>> {
        let _call = self.enter()?;
        caught(look(&self.shared.renewal)).await
    }

    /// The live blobs by the epochs in which they end, from the ledger: how many, their bytes, what
    /// was paid for them, and their live blocks at the last counts, with the time of the oldest
    /// count.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn horizon(&self) -> Result<Vec<EndingIn>> {
        let _call = self.enter()?;
        caught(self.shared.index.horizon()).await
    }
}
