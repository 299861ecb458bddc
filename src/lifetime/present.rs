//! The present epoch, from the chain.

use super::RenewalParts;
use crate::error::Result;
use crate::log::Level;
use crate::walrus::cost::Prices;

/// The prices of Walrus' documentation (FROST per unit), where the chain is not at hand. Only their
/// ratio matters for a decision.
pub(crate) const SAMPLE_PRICES: Prices = Prices {
    storage: 100_000,
    write: 20_000,
};

/// Learns the epochs that other nodes and earlier processes have seen.
pub(super) async fn learn_epochs(parts: &RenewalParts) -> Result<()> {
    let seen = parts.index.epochs().await?;
    parts.epoch_clock.merge(parts.clock.now(), &seen);
    Ok(())
}

/// The present epoch, the least and the most that it can be; `None` if nothing tells it.
pub(crate) async fn present_epoch(parts: &RenewalParts) -> Result<Option<(u64, u64)>> {
    learn_epochs(parts).await?;
    tell_epoch(parts).await;
    Ok(parts.epoch_clock.now_epoch(parts.clock.now()))
}

/// The network's prices, and whether the chain told them.
pub(crate) async fn prices(parts: &RenewalParts) -> (Prices, bool) {
    let Some(chain) = &parts.chain else {
        return (SAMPLE_PRICES, false);
    };
    match chain.prices().await {
        Ok(prices) => (prices, true),
        Err(e) => {
            let text = format!("the chain does not tell its prices: {e}");
            parts.log.push(Level::Warn, text);
            (SAMPLE_PRICES, false)
        }
    }
}

/// Tells the epoch clock which epoch it is, if the chain is at hand. A length other than the
/// configured one is an error in the log, and nothing is told: the program may speak of another
/// network. The clock itself compares the epoch with what publishers have answered.
pub(super) async fn tell_epoch(parts: &RenewalParts) {
    let Some(chain) = &parts.chain else {
        return;
    };
    let epoch = match chain.epoch().await {
        Ok(epoch) => epoch,
        Err(e) => {
            let level = match e.is_retryable() {
                true => Level::Warn,
                false => Level::Error,
            };
            let text = format!("the chain does not tell the epoch, so it is estimated: {e}");
            return parts.log.push(level, text);
        }
    };
    if epoch.length != parts.epoch {
        let text = format!(
            "an epoch has {} s by the configuration (network, epochDurationSeconds) and {} s by walrusCommand: is its \
             --config for the same network? Its epochs are not used",
            parts.epoch.as_secs(),
            epoch.length.as_secs()
        );
        return parts.log.push(Level::Error, text);
    }
    let now = parts.clock.now();
    let begun = epoch.started_at.unwrap_or(now);
    let clock = &parts.epoch_clock;
    clock.is_exactly(now, epoch.current, begun, epoch.length);
}
