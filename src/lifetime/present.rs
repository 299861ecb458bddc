//! The present epoch, from the chain.

use super::RenewalParts;
use crate::log::Level;

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
