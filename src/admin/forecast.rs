//! What renewals will cost in the epochs to come, if nothing is put and nothing is deleted.
//!
//! Blobs that end in one epoch are renewed together, so many epochs before as the lead has, and
//! again whenever what was bought runs out. The plan of a round may find a cheaper way, as it
//! repacks: a forecast is what is paid without that.

use std::time::SystemTime;

use serde::Serialize;

use super::time;
use crate::plan::Terms;

/// The live blobs that end in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Ending {
    /// The (exclusive) end epoch; 0: unknown.
    pub end_epoch: u64,
    /// When it may begin at the earliest.
    #[serde(serialize_with = "time::option::serialize")]
    pub at: Option<SystemTime>,
    /// Blobs.
    pub blobs: u64,
    /// Their bytes, as far as they are known.
    pub bytes: u64,
    /// Units that they occupy: about, as blobs of one epoch are taken for equally long.
    pub units: u64,
    /// Live blocks at the last counts.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Blobs that were never counted.
    pub uncounted: u64,
}

/// What is due in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Due {
    /// The epoch.
    pub epoch: u64,
    /// Blobs that are renewed in it.
    pub blobs: u64,
    /// Units that are bought for them.
    pub units: u64,
    /// The price, without gas (FROST).
    pub frost: u64,
}

/// The renewals of the next `count` epochs, beginning with [`Terms::epoch`].
pub fn forecast(endings: &[Ending], terms: &Terms, count: u32) -> Vec<Due> {
    let bought = u64::from(terms.epochs.clamp(2, terms.max_epochs.max(2)));
    let last = terms.epoch.saturating_add(count.into());
    let mut all: Vec<Due> = (terms.epoch..last)
        .map(|epoch| Due {
            epoch,
            ..Due::default()
        })
        .collect();
    for ending in endings
        .iter()
        .filter(|ending| ending.end_epoch > terms.epoch)
    {
        let mut end = ending.end_epoch;
        let mut turn = end.saturating_sub(terms.lead_epochs).max(terms.epoch);
        while let Some(due) = all.get_mut(usize::try_from(turn - terms.epoch).unwrap_or(usize::MAX))
        {
            let until = turn.saturating_add(bought);
            let per_unit = match terms.chain {
                true => until
                    .saturating_sub(end)
                    .saturating_mul(terms.prices.storage),
                false => bought
                    .saturating_mul(terms.prices.storage)
                    .saturating_add(terms.prices.write),
            };
            due.blobs = due.blobs.saturating_add(ending.blobs);
            due.units = due.units.saturating_add(ending.units);
            let frost = ending.units.saturating_mul(per_unit);
            due.frost = due.frost.saturating_add(frost);
            end = until.max(end);
            turn = end.saturating_sub(terms.lead_epochs).max(turn + 1);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walrus::cost::Prices;

    fn terms(chain: bool) -> Terms {
        Terms {
            epoch: 100,
            lead_epochs: 1,
            epochs: 5,
            max_epochs: 53,
            prices: Prices {
                storage: 10,
                write: 3,
            },
            n_shards: 1000,
            chain,
            reuse: None,
            max_waste_percent: 50,
            pack_target_bytes: 1 << 20,
            block_overhead_bytes: 0,
            budget_bytes: None,
        }
    }

    fn ending(end_epoch: u64, units: u64) -> Ending {
        Ending {
            end_epoch,
            units,
            blobs: 1,
            ..Ending::default()
        }
    }

    fn frost(all: &[Due]) -> Vec<u64> {
        all.iter().map(|due| due.frost).collect()
    }

    #[test]
    fn what_is_stored_again_is_paid_in_full_and_comes_back() {
        // Due in 102 (it ends in 103), until 107; due again in 106, until 111; and in 110.
        let all = forecast(&[ending(103, 7)], &terms(false), 10);
        let price = 7 * (5 * 10 + 3);
        assert_eq!(frost(&all), [0, 0, price, 0, 0, 0, price, 0, 0, 0]);
        assert_eq!((all[2].epoch, all[2].blobs, all[2].units), (102, 1, 7));
    }

    #[test]
    fn an_extension_pays_for_the_epochs_that_it_adds() {
        let all = forecast(&[ending(103, 7)], &terms(true), 3);
        assert_eq!(frost(&all), [0, 0, 7 * 10 * 4]);
    }

    #[test]
    fn what_is_overdue_is_due_now_and_what_has_ended_never() {
        let endings = [ending(101, 1), ending(100, 50), ending(0, 50)];
        let all = forecast(&endings, &terms(false), 2);
        assert_eq!(frost(&all), [53, 0]);
        // A lead longer than what is bought: every epoch.
        let greedy = Terms {
            lead_epochs: 99,
            ..terms(false)
        };
        assert_eq!(
            frost(&forecast(&[ending(101, 1)], &greedy, 3)),
            [53, 53, 53]
        );
    }
}
