//! The network's records of each blob and of its epochs, in memory and on disk.

use serde::{Deserialize, Serialize};

use crate::object_id::ObjectId;

/// One registration (a "Blob object") of a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registration {
    /// The Blob object.
    pub object_id: ObjectId,
    /// The Storage object inside it.
    pub storage_id: ObjectId,
    /// The shared object around it, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_object: Option<ObjectId>,
    /// Address it was sent to, if not kept by the publisher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ObjectId>,
    /// The epoch it was registered in, which is also the first it is stored for.
    pub start_epoch: u32,
    /// The first epoch it is no longer stored for.
    pub end_epoch: u32,
    /// Whether the owner may delete it.
    pub deletable: bool,
    /// It was registered and paid for, but never certified: nothing can be read of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertified: bool,
    /// Digest of the transaction that certified it.
    pub tx_digest: String,
    /// The storage of a deleted blob that it took over, as that was then. It may be larger than the
    /// blob needs, and keeps its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<FreeStorage>,
    /// Attributes of the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String)>,
}

impl Registration {
    /// The size of its storage (bytes), for a blob of so many encoded bytes.
    pub fn storage_size(&self, encoded: u64) -> u64 {
        self.reused.as_ref().map_or(encoded, |storage| storage.size)
    }

    /// The first epoch that its storage was paid for.
    pub(crate) fn storage_start(&self) -> u32 {
        let reused = self.reused.as_ref();
        reused.map_or(self.start_epoch, |storage| storage.start_epoch)
    }
}

/// Storage that was paid for and that no blob uses: a deleted blob leaves it to its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeStorage {
    /// The Storage object.
    pub storage_id: ObjectId,
    /// Its owner, if that is not the publisher's main wallet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ObjectId>,
    /// The first epoch it was paid for.
    pub start_epoch: u32,
    /// The first epoch it is no longer paid for.
    pub end_epoch: u32,
    /// Encoded bytes.
    pub size: u64,
}

/// The epoch clock: `epoch` began at `since`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Anchor {
    pub epoch: u32,
    /// Milliseconds since 1970.
    pub since: u64,
}
