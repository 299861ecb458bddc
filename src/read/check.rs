//! Whether bytes are the block that a row promises.

use crate::multihash::{self, Match};

/// Which blocks are checked against the multihash in their key when they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyReads {
    /// None.
    Never,
    /// Those that come over the network. Those that were checked when they came, and are read from
    /// the local disk, are compared with a checksum.
    #[default]
    Network,
    /// All, those on the local disk too.
    Always,
}

impl VerifyReads {
    /// Whether blocks that come over the network are checked.
    pub(crate) fn network(self) -> bool {
        self != VerifyReads::Never
    }

    /// Whether blocks on the local disk are checked.
    pub(crate) fn local(self) -> bool {
        self == VerifyReads::Always
    }
}

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

    /// The same check for another block.
    pub(super) fn of(&self, key: &str, size: i64) -> Self {
        BlockCheck::new(key, size, self.verify)
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
