//! Object IDs, addresses and transaction digests: random, since no chain stands behind them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A Sui object ID or address: `0x` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    pub(crate) fn random() -> Self {
        ObjectId(rand::random())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an object ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectIdParseError;

impl fmt::Display for ObjectIdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to parse an object ID")
    }
}

impl std::error::Error for ObjectIdParseError {}

impl FromStr for ObjectId {
    type Err = ObjectIdParseError;

    /// Accepts `0x` and up to 64 hex digits, or exactly 64 hex digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = match text.strip_prefix("0x") {
            Some(digits) if (1..=64).contains(&digits.len()) => digits,
            None if text.len() == 64 => text,
            _ => return Err(ObjectIdParseError),
        };
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ObjectIdParseError);
        }
        let padded = format!("{digits:0>64}");
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(padded.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ObjectIdParseError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ObjectIdParseError)?;
        }
        Ok(ObjectId(id))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::parse(deserializer)
    }
}

/// A transaction digest: base58 of 32 random bytes.
pub(crate) fn random_digest() -> String {
    base58(rand::random())
}

fn base58(bytes: [u8; 32]) -> String {
    const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    let mut digits: Vec<u8> = Vec::with_capacity(44);
    for byte in bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    digits.resize(digits.len() + zeros, 0);
    let text = digits.iter().rev();
    text.map(|d| char::from(ALPHABET[usize::from(*d)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_ids_round_trip() {
        let id = ObjectId::random();
        assert_eq!(id.to_string().len(), 66);
        assert_eq!(id.to_string().parse(), Ok(id));
        let short: ObjectId = "0xaB1".parse().unwrap();
        assert_eq!(short.to_string(), format!("0x{:0>64}", "ab1"));
        for wrong in ["", "0x", "ab1", "0xg", "0x+1", &format!("0x{:0>65}", 1)] {
            assert!(wrong.parse::<ObjectId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn digests_are_base58() {
        assert_eq!(base58([0; 32]), "1".repeat(32));
        let mut one = [0; 32];
        one[31] = 58;
        assert_eq!(base58(one), format!("{}21", "1".repeat(31)));
        assert_eq!(base58([255; 32]).len(), 44);
        assert!((43..=44).contains(&random_digest().len()) || random_digest().len() > 40);
    }
}
