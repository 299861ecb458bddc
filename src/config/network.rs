//! The Walrus network of a node, which gives the length of an epoch.

use std::time::Duration;

use serde_json::Value;

use super::keys::MAX_SECONDS;
use super::{bad, shorten, whole_number, Fields};
use crate::error::Result;

/// The lengths of epochs of the two networks, from Walrus' documentation ("Available networks",
/// <https://docs.wal.app>).
const MAINNET_EPOCH: Duration = Duration::from_secs(14 * 86_400);
const TESTNET_EPOCH: Duration = Duration::from_secs(86_400);

impl Fields<'_> {
    /// The length of an epoch: that of the network, or the given one; zero if neither is known.
    pub(super) fn epoch_duration(&self) -> Result<Duration> {
        let given = self.seconds("epochDurationSeconds", 0)?;
        let of_network = match self.network()? {
            Some(seconds) => seconds,
            None => return Ok(given),
        };
        if given.is_zero() || given == of_network {
            return Ok(of_network);
        }
        Err(bad(format!(
            "epochDurationSeconds is {}, but an epoch of network has {} seconds: remove one of the two",
            given.as_secs(),
            of_network.as_secs()
        )))
    }

    /// The length of an epoch of the network that the configuration names or describes.
    fn network(&self) -> Result<Option<Duration>> {
        const NAME: &str = "network";
        const EXPECTED: &str =
            "\"mainnet\", \"testnet\" or an object with epochDurationSeconds alone, a whole number of at least 1";
        let described = |value: &Value| {
            let fields = value.as_object().filter(|fields| fields.len() == 1);
            let seconds = fields.and_then(|fields| fields.get("epochDurationSeconds"));
            let seconds = seconds.and_then(Value::as_number).and_then(whole_number);
            match seconds {
                Some(n) if (1..=MAX_SECONDS).contains(&n) => {
                    Ok(Some(Duration::from_secs(n.unsigned_abs())))
                }
                _ => Err(bad(format!(
                    "{NAME} is {}, expected {EXPECTED}",
                    shorten(&value.to_string())
                ))),
            }
        };
        if let Some(value @ Value::Object(_)) = self.0.get(NAME) {
            return described(value);
        }
        match self.text(NAME)?.map(str::trim) {
            None => Ok(None),
            Some("mainnet") => Ok(Some(MAINNET_EPOCH)),
            Some("testnet") => Ok(Some(TESTNET_EPOCH)),
            // A value from an environment variable is a text.
            Some(text) => match serde_json::from_str(text) {
                Ok(value @ Value::Object(_)) => described(&value),
                _ => Err(bad(format!(
                    "{NAME} is {:?}, expected {EXPECTED}",
                    shorten(text)
                ))),
            },
        }
    }
}
