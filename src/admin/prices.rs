//! What storage costs, before there is a datastore.

use crate::config::Config;
use crate::lifetime::{chain_of, SAMPLE_PRICES};
use crate::walrus::cost::Prices;

/// The network's prices, by `walrusCommand`; those of Walrus' documentation where that is not
/// configured or does not answer, and `false`.
pub async fn prices(config: &Config) -> (Prices, bool) {
    let told = match config.walrus_command.clone() {
        Some(command) => chain_of(command).prices().await.ok(),
        None => None,
    };
    match told {
        Some(prices) => (prices, true),
        None => (SAMPLE_PRICES, false),
    }
}
