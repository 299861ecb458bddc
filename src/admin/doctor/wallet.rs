//! The operator's `walrus` program.

use std::time::SystemTime;

use super::{Diagnosis, Health};
use crate::config::Config;
use crate::lifetime::chain_of;

const PART: &str = "wallet";

pub(super) async fn look(config: &Config) -> Vec<Diagnosis> {
    let Some(command) = config.walrus_command.clone() else {
        return Vec::new();
    };
    let chain = chain_of(command);
    let bad = |test, what: String| {
        Diagnosis::new(
            PART,
            test,
            Health::Bad,
            what,
            "blobs are stored again instead of extended, which costs an upload each",
        )
        .cure("run the command of walrusCommand with `info epoch` as the node's user, and mend what it says")
    };
    let mut found = Vec::new();
    match chain.epoch().await {
        Ok(epoch) => {
            found.push(Diagnosis::good(
                PART,
                "epoch",
                format!("walrusCommand works: epoch {}", epoch.current),
            ));
            if !config.epoch_duration.is_zero() && epoch.length != config.epoch_duration {
                found.push(
                    Diagnosis::new(
                        PART,
                        "network",
                        Health::Bad,
                        format!(
                            "an epoch of the wallet's network has {} s, and the configuration says {}",
                            epoch.length.as_secs(),
                            config.epoch_duration.as_secs()
                        ),
                        "renewals would come at the wrong time: the wallet is of another network",
                    )
                    .cure(format!(
                        "\"network\": {{\"epochDurationSeconds\": {}}}, or the wallet of the other network",
                        epoch.length.as_secs()
                    )),
                );
            }
            if epoch
                .started_at
                .is_some_and(|at| at > SystemTime::now() + epoch.length)
            {
                found.push(bad(
                    "clock",
                    "the present epoch begins in the future: this machine's clock is wrong"
                        .to_owned(),
                ));
            }
        }
        Err(e) => found.push(bad("epoch", e.to_string())),
    }
    match chain.prices().await {
        Ok(prices) => found.push(Diagnosis::good(
            PART,
            "prices",
            format!(
                "a unit costs {} FROST per epoch, and {} to write",
                prices.storage, prices.write
            ),
        )),
        Err(e) if found.iter().all(|d| d.health != Health::Bad) => {
            found.push(bad("prices", e.to_string()));
        }
        Err(_) => {}
    }
    match chain.list().await {
        Ok(owned) => found.push(Diagnosis::good(
            PART,
            "blobs",
            format!("the wallet owns {} blobs that are stored now", owned.len()),
        )),
        Err(e) if found.iter().all(|d| d.health != Health::Bad) => {
            found.push(bad("blobs", e.to_string()));
        }
        Err(_) => {}
    }
    found
}
