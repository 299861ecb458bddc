//! The cost of a blob on the network.
//!
//! Walrus bills the *encoded* size. A blob of `len` bytes becomes a matrix of P × S symbols
//! (P = n − 2f rows, S = n − f columns, f = ⌊(n − 1)/3⌋ for n shards) which is expanded to n × n,
//! and each of the n storage shards also keeps the blob's metadata (64·n + 32 bytes). Hence a small
//! blob costs nearly as much as one of some MiB: packing pays. (Formula of the RS2 encoding, as the
//! reference implementation computes `storageSize`; checked against its values in the tests.)

/// Shards of Mainnet and Testnet.
pub const DEFAULT_SHARDS: u16 = 1000;

/// Bytes of encoded size in one billing unit (1 MiB).
pub const UNIT_BYTES: u64 = 1 << 20;

/// Largest symbol of the encoding (bytes): the field has 2^16 elements and symbols are even.
const MAX_SYMBOL: u64 = 65_534;

/// Rows and columns of the source matrix: (P, S).
fn matrix(n_shards: u16) -> (u64, u64) {
    let n = u64::from(n_shards.max(1));
    let f = (n - 1) / 3;
    (n - 2 * f, n - f)
}

/// The longest blob the encoding allows (bytes): 14,599,533,452 at 1000 shards.
///
/// ```
/// assert_eq!(walrusds::walrus::cost::max_blob_size(1000), 14_599_533_452);
/// ```
pub fn max_blob_size(n_shards: u16) -> u64 {
    let (rows, columns) = matrix(n_shards);
    rows * columns * MAX_SYMBOL
}

/// Bytes that the network keeps (and bills) for a blob of `len` bytes; `None` if the blob is longer
/// than [`max_blob_size`].
///
/// ```
/// use walrusds::walrus::cost::encoded_size;
/// // One byte is billed like 400 KiB: the fixed part dominates.
/// assert_eq!(encoded_size(1, 1000), Some(66_034_000));
/// assert_eq!(encoded_size(64 << 20, 1000), Some(366_334_000));
/// ```
pub fn encoded_size(len: u64, n_shards: u16) -> Option<u64> {
    let n = u64::from(n_shards.max(1));
    let (rows, columns) = matrix(n_shards);
    if len > max_blob_size(n_shards) {
        return None;
    }
    let symbol = len.max(1).div_ceil(rows * columns).next_multiple_of(2);
    Some(n * (64 * n + 32) + n * (rows + columns) * symbol)
}

/// The longest blob (bytes) of which the encoded size is at most `encoded`; 0 if even an empty one
/// is larger.
pub(crate) fn longest_within(encoded: u64, n_shards: u16) -> u64 {
    let n = u64::from(n_shards.max(1));
    let (rows, columns) = matrix(n_shards);
    let symbols = encoded.saturating_sub(n * (64 * n + 32)) / (n * (rows + columns));
    rows * columns * (symbols & !1).min(MAX_SYMBOL)
}

/// Billing units (1 MiB of encoded size, started ones count) of a blob of `len` bytes; `None` as
/// for [`encoded_size`].
pub fn units(len: u64, n_shards: u16) -> Option<u64> {
    encoded_size(len, n_shards).map(|bytes| bytes.div_ceil(UNIT_BYTES))
}

/// Billing units of a blob of which the content's length and the encoded size are known, or one of
/// them (0: unknown); 0 if neither is.
pub(crate) fn units_of_known(bytes: u64, encoded_bytes: u64, n_shards: u16) -> u64 {
    match (encoded_bytes, bytes) {
        (0, 0) => 0,
        (0, bytes) => units(bytes, n_shards).unwrap_or(0),
        (encoded, _) => encoded.div_ceil(UNIT_BYTES),
    }
}

/// Prices that the network's nodes vote on (FROST; 1 WAL = 1e9 FROST).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// Per unit and epoch of storage.
    pub storage: u64,
    /// Per unit written, once.
    pub write: u64,
}

impl Prices {
    /// The price of storing a blob of `len` bytes for `epochs` epochs (FROST), without the gas of
    /// the two transactions; `None` if the blob is too long or the sum overflows.
    ///
    /// ```
    /// use walrusds::walrus::cost::Prices;
    /// let sample = Prices { storage: 100_000, write: 20_000 };
    /// // A 17-byte blob for five epochs: 63 units.
    /// assert_eq!(sample.cost(17, 5, 1000), Some(63 * 520_000));
    /// ```
    pub fn cost(&self, len: u64, epochs: u32, n_shards: u16) -> Option<u64> {
        let per_unit = self
            .storage
            .checked_mul(u64::from(epochs))?
            .checked_add(self.write)?;
        units(len, n_shards)?.checked_mul(per_unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_blob_of_a_size_is_found() {
        for n_shards in [100, 200, 1000] {
            for len in [1, 445_556, 445_557, 2 << 20, 64 << 20] {
                let encoded = encoded_size(len, n_shards).unwrap();
                let longest = longest_within(encoded, n_shards);
                assert!(longest >= len);
                assert_eq!(encoded_size(longest, n_shards), Some(encoded));
                assert!(encoded_size(longest + 1, n_shards).unwrap() > encoded);
                assert!(longest_within(encoded - 1, n_shards) < len);
            }
            assert_eq!(longest_within(0, n_shards), 0);
        }
    }

    #[test]
    fn table_of_known_sizes_at_1000_shards() {
        const MIB: u64 = 1 << 20;
        for (len, encoded, billed) in [
            (0, 66_034_000, 63),
            (1, 66_034_000, 63),
            (1 << 10, 66_034_000, 63),
            (256 << 10, 66_034_000, 63),
            (445_556, 66_034_000, 63),
            (MIB, 70_038_000, 67),
            (4 * MIB, 84_052_000, 81),
            (10 * MIB, 112_080_000, 107),
            (32 * MIB, 216_184_000, 207),
            (64 * MIB, 366_334_000, 350),
            (100 * MIB, 536_504_000, 512),
            (256 * MIB, 1_271_238_000, 1213),
            (1024 * MIB, 4_888_852_000, 4663),
        ] {
            assert_eq!(encoded_size(len, 1000), Some(encoded), "{len} bytes");
            assert_eq!(units(len, 1000), Some(billed), "{len} bytes");
        }
        assert_eq!(encoded_size(445_557, 1000), Some(68_036_000));
    }

    #[test]
    fn longest_blobs() {
        for (shards, longest) in [
            (4, 393_204),
            (7, 983_010),
            (10, 1_834_952),
            (13, 2_949_030),
            (1000, 14_599_533_452),
        ] {
            assert_eq!(max_blob_size(shards), longest, "{shards} shards");
            assert!(encoded_size(longest, shards).is_some());
            assert_eq!(encoded_size(longest + 1, shards), None);
        }
        assert_eq!(encoded_size(u64::MAX, 1000), None);
        assert_eq!(units(u64::MAX, 0), None);
    }

    #[test]
    fn cost_overflow_is_none() {
        let dear = Prices {
            storage: u64::MAX,
            write: 0,
        };
        assert_eq!(dear.cost(1, 2, 1000), None);
        assert_eq!(dear.cost(1, 1, 1000), None);
        assert_eq!(dear.cost(1, 0, 1000), Some(0));
    }
}
