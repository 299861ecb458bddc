//! Whether bytes are the block that a row promises.

use crate::multihash::{self, Match};

/// The check of one block, to be taken along into tasks.
#[derive(Debug, Clone)]
pub(crate) struct BlockCheck {
    key: Box<str>,
    /// Length that the index names (bytes).
    size: i64,
    verify: bool,
}

impl BlockCheck {
    /// `verify`: whether the bytes must hash to the multihash in the key, if it holds one.
    pub(crate) fn new(key: &str, size: i64, verify: bool) -> Self {
        BlockCheck {
            key: key.into(),
            size,
            verify,
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// # Errors
    /// The reason why these are other bytes.
    pub(crate) fn judge(&self, bytes: &[u8]) -> Result<(), String> {
        if i64::try_from(bytes.len()) != Ok(self.size) {
            return Err(format!(
                "got {} bytes, the index says {}",
                bytes.len(),
                self.size
            ));
        }
        if self.verify && multihash::check(&self.key, bytes) == Match::No {
            return Err("the bytes do not hash to the multihash in the key".to_owned());
        }
        Ok(())
    }
}
