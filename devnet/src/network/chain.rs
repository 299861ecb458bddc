//! The operations on the chain: an owner extends, deletes and lists blobs, anyone asks for a
//! blob's status, the epoch and the prices. The rules are those of the Walrus contracts.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};

use super::answers::{blob_object, BlobObject};
use super::state::{Blob, Content};
use super::{BlobInfo, Network, MAX_EPOCHS};
use crate::blob_id::BlobId;
use crate::disk::Record;
use crate::object_id::ObjectId;
use crate::registration::{FreeStorage, Registration};

/// The address of the publisher's main wallet: the owner of every Blob object that was not sent
/// elsewhere (`send_object_to`) and is not shared.
pub const PUBLISHER_ADDRESS: ObjectId = ObjectId([0xd7; 32]);

/// The length of an epoch that is told where epochs end by hand only: Mainnet's.
const UNSET_DURATION: Duration = Duration::from_secs(14 * 86_400);

/// The reason why the chain does not do what it is asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no such object, or it is wrapped in another one.
    NoObject(ObjectId),
    /// The object belongs to another address.
    NotOwned { object: ObjectId, sender: ObjectId },
    /// The object is a shared blob, and the request takes it for an owned one.
    Shared(ObjectId),
    /// The object is no shared blob, and the request takes it for one.
    NotShared(ObjectId),
    /// This function of the contracts aborts with this error.
    Abort(&'static str, &'static str),
    /// The data directory cannot be written.
    Io(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoObject(id) => write!(f, "object {id} does not exist"),
            Refusal::NotOwned { object, sender } => {
                write!(f, "object {object} is not owned by the sender {sender}")
            }
            Refusal::Shared(id) => write!(f, "object {id} is a shared blob: use --shared"),
            Refusal::NotShared(id) => write!(f, "object {id} is not a shared blob"),
            Refusal::Abort(function, error) => write!(
                f,
                "transaction execution failed: contract execution failed in walrus::{function} at \
                 address 0x{:064} with error type {error}",
                1
            ),
            Refusal::Io(why) => write!(f, "the data directory: {why}"),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(why: io::Error) -> Self {
        Refusal::Io(why)
    }
}

/// What became of an object that was to be deleted.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// It was deleted, and its blob is gone unless another registration holds it.
    Blob(Box<BlobObject>),
    /// The sender has no unexpired Blob object of this ID.
    NotFound,
}

fn owner(registration: &Registration) -> Option<ObjectId> {
    match registration.shared_object {
        Some(_) => None,
        None => Some(registration.owner.unwrap_or(PUBLISHER_ADDRESS)),
    }
}

impl Network {
    /// The registration behind a Blob object, or behind the shared object around it.
    fn registered(&self, object: &ObjectId) -> Option<(BlobId, u64, Registration)> {
        let state = self.state.lock();
        let blob_id = *state.objects.get(object)?;
        let blob = state.blobs.get(&blob_id)?;
        let mut all = blob.registrations.iter();
        let found = all.find(|r| r.object_id == *object || r.shared_object == Some(*object))?;
        Some((blob_id, blob.size, found.clone()))
    }

    fn encoded_length(&self, size: u64) -> u64 {
        self.setup.geometry.encoded_length(size).unwrap_or(u64::MAX)
    }

    fn object_of(&self, blob_id: BlobId, size: u64, registration: &Registration) -> BlobObject {
        let mut object = blob_object(blob_id, size, self.encoded_length(size), registration);
        object.certified_epoch = (!registration.uncertified).then_some(registration.start_epoch);
        object
    }

    /// Extends a blob by so many epochs and bills their storage. A shared blob can be extended by
    /// anyone, another one by its owner.
    pub fn extend_object(
        &self,
        sender: ObjectId,
        object: ObjectId,
        shared: bool,
        epochs: u32,
    ) -> Result<(), Refusal> {
        let _order = self.changes.lock();
        let now = self.epoch();
        let found = self.registered(&object);
        let (blob_id, size, registration) = found.ok_or(Refusal::NoObject(object))?;
        match registration.shared_object {
            Some(around) if around != object => return Err(Refusal::NoObject(object)),
            Some(_) if !shared => return Err(Refusal::Shared(object)),
            None if shared => return Err(Refusal::NotShared(object)),
            _ => {}
        }
        if owner(&registration).is_some_and(|owner| owner != sender) {
            return Err(Refusal::NotOwned { object, sender });
        }
        if registration.uncertified {
            return Err(Refusal::Abort(
                "blob::assert_certified_not_expired",
                "ENotCertified",
            ));
        }
        if registration.end_epoch <= now {
            return Err(Refusal::Abort(
                "blob::assert_certified_not_expired",
                "EResourceBounds",
            ));
        }
        let end_epoch = registration.end_epoch.saturating_add(epochs);
        if epochs == 0 || end_epoch > now.saturating_add(MAX_EPOCHS) {
            return Err(Refusal::Abort(
                "system_state_inner::extend_blob",
                "EInvalidEpochsAhead",
            ));
        }
        self.record(&Record::Extend {
            blob_id,
            object_id: registration.object_id,
            end_epoch,
        })?;
        let mut state = self.state.lock();
        state.extend(&blob_id, registration.object_id, end_epoch);
        drop(state);
        let encoded = self.encoded_length(size);
        let units = registration.storage_size(encoded).div_ceil(1 << 20);
        let cost = units * self.setup.prices.storage * u64::from(epochs);
        self.billing.units.fetch_add(units, Ordering::Relaxed);
        self.billing.cost.fetch_add(cost, Ordering::Relaxed);
        self.billing.extended.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Deletes a Blob object of the sender and gives its storage back to the sender.
    pub fn delete_object(&self, sender: ObjectId, object: ObjectId) -> Result<Deleted, Refusal> {
        let _order = self.changes.lock();
        let now = self.epoch();
        let found = self.registered(&object).filter(|(_, _, registration)| {
            owner(registration) == Some(sender) && registration.end_epoch > now
        });
        let Some((blob_id, size, registration)) = found else {
            return Ok(Deleted::NotFound);
        };
        if !registration.deletable {
            return Err(Refusal::Abort("blob::delete", "EBlobNotDeletable"));
        }
        let storage = FreeStorage {
            storage_id: registration.storage_id,
            owner: registration.owner,
            start_epoch: registration.storage_start(),
            end_epoch: registration.end_epoch,
            size: registration.storage_size(self.encoded_length(size)),
        };
        self.record(&Record::Deregister {
            blob_id,
            object_id: object,
            storage: storage.clone(),
        })?;
        let last = self.state.lock().deregister(&blob_id, &object, storage);
        if let Some(disk) = self.disk.as_ref().filter(|_| last) {
            disk.delete(&blob_id)?;
        }
        self.billing.deleted.fetch_add(1, Ordering::Relaxed);
        let gone = self.object_of(blob_id, size, &registration);
        Ok(Deleted::Blob(Box::new(gone)))
    }

    /// The Blob objects of an address, by ID; shared ones belong to none.
    pub fn owned(&self, sender: ObjectId, include_expired: bool) -> Vec<BlobObject> {
        let now = self.epoch();
        let state = self.state.lock();
        let mut owned = Vec::new();
        for (blob_id, blob) in &state.blobs {
            let registrations = blob.registrations.iter();
            let of_sender = registrations
                .filter(|r| owner(r) == Some(sender) && (include_expired || r.end_epoch > now));
            owned.extend(of_sender.map(|r| self.object_of(*blob_id, blob.size, r)));
        }
        owned.sort_by_key(|object| object.id);
        owned
    }

    /// The deletable Blob objects of an address that hold this blob.
    pub fn deletable_of(&self, sender: ObjectId, blob_id: &BlobId) -> Vec<ObjectId> {
        let now = self.epoch();
        let state = self.state.lock();
        let all = state.blobs.get(blob_id).map(|blob| &blob.registrations);
        let mine = all.into_iter().flatten();
        mine.filter(|r| owner(r) == Some(sender) && r.deletable && r.end_epoch > now)
            .map(|r| r.object_id)
            .collect()
    }

    /// The registrations that were deleted since this was called last; the first call begins to
    /// keep them.
    pub fn take_deleted(&self) -> Vec<BlobInfo> {
        let mut state = self.state.lock();
        let now = self.epoch_at(state.anchor);
        let deleted = state.deleted.replace(Vec::new()).unwrap_or_default();
        let describe = |(id, size, registration): (BlobId, u64, Registration)| {
            let blob = Blob {
                size,
                content: Content::File,
                registrations: vec![registration],
            };
            self.describe(&id, &blob, now)
        };
        deleted.into_iter().map(describe).collect()
    }

    /// The storage that is paid for and that no blob uses, by ID.
    pub fn free_storage(&self) -> Vec<FreeStorage> {
        let state = self.state.lock();
        let mut free: Vec<FreeStorage> = state.free.values().cloned().collect();
        free.sort_by_key(|storage| storage.storage_id);
        free
    }

    /// A blob's status, in the words of the network. That of a deletable blob has no end epoch.
    pub fn status(&self, blob_id: &BlobId) -> Value {
        let now = self.epoch();
        let state = self.state.lock();
        let all = state.blobs.get(blob_id).map(|blob| &blob.registrations);
        let alive: Vec<&Registration> = all
            .into_iter()
            .flatten()
            .filter(|r| r.end_epoch > now)
            .collect();
        let deletable = || alive.iter().filter(|r| r.deletable);
        let counts = json!({
            "count_deletable_total": deletable().count(),
            "count_deletable_certified": deletable().filter(|r| !r.uncertified).count(),
        });
        let certified = alive.iter().filter(|r| !r.uncertified);
        let initial = certified.map(|r| r.start_epoch).min();
        let permanent = alive.iter().filter(|r| !r.deletable);
        let best = permanent.max_by_key(|r| (!r.uncertified, r.end_epoch));
        match best {
            Some(best) => json!({"permanent": {
                "endEpoch": best.end_epoch,
                "isCertified": !best.uncertified,
                "statusEvent": {"txDigest": best.tx_digest, "eventSeq": "0"},
                "deletableCounts": counts,
                "initialCertifiedEpoch": initial,
            }}),
            None if alive.is_empty() => json!("nonexistent"),
            None => json!({"deletable": {
                "initialCertifiedEpoch": initial,
                "deletableCounts": counts,
            }}),
        }
    }

    /// What `info epoch` tells.
    pub fn epoch_info(&self) -> Value {
        let anchor = self.state.lock().anchor;
        let epoch = self.epoch_at(anchor);
        let duration = self.setup.epoch_duration.filter(|d| !d.is_zero());
        let since = UNIX_EPOCH + Duration::from_millis(anchor.since);
        let passed = epoch.saturating_sub(anchor.epoch);
        let began = duration.map_or(since, |duration| since + duration * passed);
        let duration = duration.unwrap_or(UNSET_DURATION);
        json!({
            "currentEpoch": epoch,
            "startOfCurrentEpoch": {"DateTime": rfc3339(began)},
            "epochDuration": {"secs": duration.as_secs(), "nanos": duration.subsec_nanos()},
            "maxEpochsAhead": MAX_EPOCHS,
        })
    }

    /// What `info price` tells (without its examples).
    pub fn price_info(&self) -> Value {
        json!({
            "storagePricePerUnitSize": self.setup.prices.storage,
            "writePricePerUnitSize": self.setup.prices.write,
            "encodingDependentPriceInfo": [],
        })
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
