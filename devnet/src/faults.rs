//! What is asked for.

use serde::{Deserialize, Serialize};

/// An operation of the HTTP interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// PUT of a blob.
    Put,
    /// PUT of a quilt.
    PutQuilt,
    /// GET of a whole blob.
    Get,
    /// GET of a blob with a Range header.
    Range,
    /// GET of `/byte-range`.
    ByteRange,
    /// GET by object ID, with or without a Range header.
    Object,
    /// GET of `/stream`.
    Stream,
    /// GET or POST of `/concat`.
    Concat,
    /// GET of one patch of a quilt.
    QuiltPatch,
    /// GET of the list of a quilt's patches.
    QuiltPatches,
    /// Anything else.
    Other,
}

impl Op {
    /// Whether it stores something.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Op::Put | Op::PutQuilt)
    }

    /// Whether it reads contents.
    #[must_use]
    pub fn is_read(self) -> bool {
        !self.is_write() && self != Op::Other
    }
}
