//! What a source of an import gives.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::Result;

/// A place from which blocks are imported.
pub trait Source: Send {
    /// The next block; `None`: there are no more. Called on a thread of the import's own, so it may
    /// wait. Blocks that are read together later should come together.
    ///
    /// # Errors
    /// The source cannot be read any further. (A single block that cannot be read is told by its
    /// [`Content`].)
    fn next(&mut self) -> Result<Option<Offer>>;

    /// Told before the first block if nothing will be stored: the order of the blocks does not
    /// matter then.
    fn look_only(&mut self) {}

    /// The bytes of all blocks, about, if that is known before they are read.
    fn total_bytes(&self) -> Option<u64> {
        None
    }
}

/// A block that a source has.
#[derive(Debug)]
#[non_exhaustive]
pub struct Offer {
    /// Its key in Kubo's block store: `/` and base32 of the multihash.
    pub key: String,
    /// Its length (bytes).
    pub len: u64,
    /// Its bytes, or the way to them: blocks that are stored already are not read.
    pub content: Content,
    /// Whether a CID says that it is a dag-pb node.
    pub dag_pb: bool,
}

/// The bytes of a block, or the way to them.
#[non_exhaustive]
pub enum Content {
    /// They are here.
    Here(Bytes),
    /// A file that holds nothing else. A file that is gone when its turn comes is a block that was
    /// deleted meanwhile.
    File(PathBuf),
    /// They are fetched when this is awaited. `None`: the block was deleted meanwhile. An error
    /// counts for this block alone.
    Later(BoxFuture<'static, Result<Option<Bytes>>>),
    /// The source has found already that it cannot read them, for this reason.
    Unreadable(String),
    /// The key lies in another place than blocks, and is not imported. It is counted.
    Elsewhere,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Here(bytes) => write!(f, "Here({} bytes)", bytes.len()),
            Content::File(path) => write!(f, "File({})", path.display()),
            Content::Later(_) => f.write_str("Later"),
            Content::Unreadable(why) => write!(f, "Unreadable({why})"),
            Content::Elsewhere => f.write_str("Elsewhere"),
        }
    }
}

impl Offer {
    /// A block whose bytes are here.
    pub fn here(key: impl Into<String>, value: Bytes) -> Offer {
        Offer {
            key: key.into(),
            len: value.len() as u64,
            content: Content::Here(value),
            dag_pb: false,
        }
    }

    /// A block of `len` bytes that is read when its turn comes.
    pub fn later(key: impl Into<String>, len: u64, content: Content) -> Offer {
        Offer {
            key: key.into(),
            len,
            content,
            dag_pb: false,
        }
    }
}
