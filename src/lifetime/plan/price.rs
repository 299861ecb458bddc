//! What storage costs, for blobs and packs that may be of nonsensical size. Everything is counted
//! in `u128`, where no product of sizes, epochs and prices overflows in practice, and saturates.

use super::Terms;
use crate::walrus::cost::{self, UNIT_BYTES};

/// Prices of one pass: whatever is bought in it ends with the same epoch.
pub(super) struct Pricing {
    n_shards: u16,
    storage: u128,
    write: u128,
    /// The epochs from now to the end of what is bought.
    pub(super) span: u128,
    /// The epochs for which repacking is compared with other ways.
    pub(super) compared: u128,
    /// The length of a full pack.
    pub(super) target: u128,
    pub(super) target_units: u128,
}

impl Pricing {
    pub(super) fn new(terms: &Terms) -> Self {
        let n_shards = terms.n_shards;
        let longest = cost::max_blob_size(n_shards).max(1);
        let target = terms.pack_target_bytes.clamp(1, longest);
        Pricing {
            n_shards,
            storage: terms.prices.storage.into(),
            write: terms.prices.write.into(),
            span: u128::from(terms.bought()),
            compared: match terms.reuse {
                Some(_) => 1,
                None => u128::from(terms.bought()),
            },
            target: target.into(),
            target_units: units(target.into(), n_shards),
        }
    }

    /// The units of a blob of this length.
    pub(super) fn units(&self, len: u128) -> u128 {
        units(len, self.n_shards)
    }

    /// FROST for units that are kept for so many epochs longer.
    pub(super) fn extend(&self, units: u128, epochs: u128) -> u128 {
        units.saturating_mul(self.storage.saturating_mul(epochs))
    }

    /// FROST for units that are written and kept for so many epochs.
    pub(super) fn store(&self, units: u128, epochs: u128) -> u128 {
        let rate = self.storage.saturating_mul(epochs);
        units.saturating_mul(rate.saturating_add(self.write))
    }

    /// A price for the whole span, as a part of what is compared.
    pub(super) fn compared(&self, price: u128) -> u128 {
        if self.compared == self.span {
            return price;
        }
        let (compared, whole) = (self.store(1, self.compared), self.store(1, self.span));
        price.saturating_mul(compared) / whole.max(1)
    }

    /// The units of the packs that hold so many bytes together: full ones, and one for the rest.
    pub(super) fn packs(&self, bytes: u128) -> u128 {
        let rest = match bytes % self.target {
            0 => 0,
            rest => self.units(rest),
        };
        (bytes / self.target)
            .saturating_mul(self.target_units)
            .saturating_add(rest)
    }

    /// The units of so many bytes at the price of full packs.
    pub(super) fn share_of_full_packs(&self, bytes: u128) -> u128 {
        bytes
            .saturating_mul(self.target_units)
            .div_ceil(self.target)
    }
}

/// Units of an encoded size that the network told.
pub(super) fn units_of_encoded(bytes: u64) -> u128 {
    u128::from(bytes.div_ceil(UNIT_BYTES))
}

/// A length beyond what the encoding allows counts as several blobs.
fn units(len: u128, n_shards: u16) -> u128 {
    let longest = cost::max_blob_size(n_shards).max(1);
    let of = |len: u64| cost::units(len, n_shards).unwrap_or(0);
    match u64::try_from(len) {
        Ok(len) if len <= longest => of(len).into(),
        _ => (len / u128::from(longest) + 1).saturating_mul(of(longest).into()),
    }
}
