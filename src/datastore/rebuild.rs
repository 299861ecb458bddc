//! An index that was lost is filled again, by a configuration alone.

use std::path::Path;
use std::sync::Arc;

use super::open::{resolved, Parts};
use crate::clock::EpochClock;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::lifetime::chain::Chain;
use crate::lifetime::{chain_of, rebuild};

/// The blobs of which an index is rebuilt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RebuildFrom {
    /// These.
    List(rebuild::List),
    /// All blobs of the wallet behind `walrusCommand`.
    Wallet,
}

/// Fills the index of a configuration with the rows of blobs: creates its tables if they are
/// missing, and adds the rows that are missing ([`rebuild::rebuild`]). Publishers are not
/// contacted. Relative paths in `config` are taken from `repo`. Nodes may work with the index
/// meanwhile. Must be called within a tokio runtime.
///
/// # Errors
/// As [`WalrusDatastore::open`](crate::WalrusDatastore::open), but for the journal, and
/// [`rebuild::rebuild`]. [`ErrorKind::Config`] for [`RebuildFrom::Wallet`] without `walrusCommand`.
pub async fn rebuild_index(
    config: Config,
    repo: &Path,
    from: RebuildFrom,
    progress: &mut (dyn FnMut(&rebuild::Report) + Send),
) -> Result<rebuild::Report> {
    let config = resolved(config, repo)?;
    let chain = config.walrus_command.clone().map(chain_of);
    let list = match (from, &chain) {
        (RebuildFrom::List(list), _) => list,
        (RebuildFrom::Wallet, Some(chain)) => rebuild::List::of_wallet(&**chain).await?,
        (RebuildFrom::Wallet, None) => {
            return Err(Error::new(
                ErrorKind::Config,
                "walrusCommand is not set: it must name the walrus program and the wallet whose blobs are to be listed",
            ));
        }
    };
    let parts = Parts::open_for_use(&config).await?;
    let index = Arc::clone(&parts.index);
    let epochs = Arc::new(EpochClock::new(config.epoch_duration));
    if let Some(chain) = &chain {
        tell_epoch(&**chain, &epochs, &config, &parts).await;
    }
    let parts = rebuild::Parts {
        index: parts.index,
        store: parts.store,
        clock: parts.clock,
        epochs,
    };
    let options = rebuild::Options::default().with_n_shards(config.n_shards);
    let report = rebuild::rebuild(&parts, &list, &options, progress).await;
    let closed = index.close().await;
    let report = report?;
    closed.map(|()| report)
}

/// Tells the clock the present epoch. Without it the ends of blobs are known by their epochs alone,
/// which is enough for a node to renew them.
async fn tell_epoch(chain: &dyn Chain, epochs: &EpochClock, config: &Config, parts: &Parts) {
    if let Ok(epoch) = chain.epoch().await {
        if epoch.length == config.epoch_duration {
            let now = parts.clock.now();
            let _ends_now = epochs.expires_at(now, epoch.current, epoch.current);
        }
    }
}
