//! The network behind the endpoints: the stored blobs, their end epochs and their cost.
//!
//! Nothing here knows of HTTP. All endpoints of one devnet share one [`Network`].

mod answers;
mod chain;
mod state;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blob_id::{cheap_blob_id, BlobId, Geometry, TooLarge};
use crate::disk::{Disk, Record};
use crate::object_id::ObjectId;
use crate::registration::{Anchor, FreeStorage, Registration};

use answers::blob_object;
pub(crate) use answers::{EventId, Proof, PutResult, ResourceOperation};
pub use chain::PUBLISHER_ADDRESS;
pub(crate) use chain::{Deleted, Refusal};
use state::{Blob, Content, State};

/// The longest lifetime one can buy, in epochs.
pub(crate) const MAX_EPOCHS: u32 = 53;

/// The network's prices, in FROST (10⁻⁹ WAL) per unit (begun MiB of encoded length).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Per unit and epoch of storage.
    pub storage: u64,
    /// Per unit written.
    pub write: u64,
}

impl Default for Prices {
    fn default() -> Self {
        Prices {
            storage: 100_000,
            write: 20_000,
        }
    }
}

/// A stored blob, as listed by the admin endpoints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Its ID.
    pub blob_id: BlobId,
    /// Content length.
    pub size: u64,
    /// Encoded length, by which storage is billed.
    pub encoded_size: u64,
    /// Billed units.
    pub units: u64,
    /// The largest end epoch over all registrations.
    pub end_epoch: u32,
    /// Whether any registration is still alive.
    pub live: bool,
    /// Whether all registrations are deletable.
    pub deletable: bool,
    /// All registrations, oldest first.
    pub registrations: Vec<Registration>,
}

/// The parameters of a PUT.
#[derive(Debug, Clone)]
pub(crate) struct PutRequest {
    pub epochs: u32,
    pub permanent: bool,
    pub force: bool,
    pub reuse_resources: bool,
    pub owner: Option<ObjectId>,
    pub share: bool,
    pub attributes: Vec<(String, String)>,
}

/// The reason why a PUT cannot be done.
#[derive(Debug)]
pub(crate) enum PutError {
    TooLarge,
    Epochs(u32),
    Forbidden,
    Io(io::Error),
}

/// A blob found for reading.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub blob_id: BlobId,
    pub size: u64,
    content: Content,
}

/// The target of an object ID.
pub(crate) enum Object {
    Blob {
        blob_id: BlobId,
        attributes: Vec<(String, String)>,
    },
    /// An object, but not a blob.
    Other,
}

fn now_ms() -> u64 {
    since_1970_ms(SystemTime::now())
}

fn since_1970_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// Totals of the charges since the start.
#[derive(Debug, Default)]
pub(crate) struct Billing {
    pub units: AtomicU64,
    pub cost: AtomicU64,
    pub newly_created: AtomicU64,
    pub already_certified: AtomicU64,
    pub extended: AtomicU64,
    pub deleted: AtomicU64,
}

/// How a network is set up.
#[derive(Debug)]
pub(crate) struct Setup {
    pub geometry: Geometry,
    pub cheap_ids: bool,
    pub prices: Prices,
    pub first_epoch: u32,
    pub epoch_duration: Option<Duration>,
    pub single_wallet: bool,
}

pub(crate) struct Network {
    setup: Setup,
    state: Mutex<State>,
    disk: Option<Disk>,
    /// Serialises changes, so that the journal has them in the order they took effect, while
    /// reads need no more than a moment of `state`.
    changes: Mutex<()>,
    pub billing: Billing,
}

impl Network {
    pub fn open(setup: Setup, disk: Option<Disk>, records: Vec<Record>) -> io::Result<Self> {
        let mut state = State::new(Anchor {
            epoch: setup.first_epoch,
            since: now_ms(),
        });
        for record in records {
            state.replay(record);
        }
        let network = Network {
            setup,
            state: Mutex::new(state),
            disk,
            changes: Mutex::new(()),
            billing: Billing::default(),
        };
        if let Some(disk) = &network.disk {
            let kept = {
                let mut state = network.state.lock();
                let mut lost = Vec::new();
                for (id, blob) in &state.blobs {
                    if !disk.has(id, blob.size) {
                        lost.push(*id);
                    }
                }
                for id in lost {
                    state.remove(&id);
                }
                state.snapshot()
            };
            disk.start(&kept)?;
        }
        Ok(network)
    }

    pub fn geometry(&self) -> Geometry {
        self.setup.geometry
    }

    /// Whether contents and metadata live on disk, so that touching them may block.
    pub fn on_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Whether [`Network::id_of`] takes microseconds for content of this size.
    pub fn id_is_quick(&self, size: usize) -> bool {
        self.setup.cheap_ids && size <= 1 << 20
    }

    /// The blob ID of this content. Blocks for as long as the encoding takes.
    pub fn id_of(&self, data: &[u8]) -> Result<BlobId, TooLarge> {
        self.setup.geometry.symbol_size(data.len() as u64)?;
        if self.setup.cheap_ids {
            Ok(cheap_blob_id(data))
        } else {
            self.setup.geometry.blob_id(data)
        }
    }

    // --- epochs ---------------------------------------------------------------------------

    fn epoch_at(&self, anchor: Anchor) -> u32 {
        match self.setup.epoch_duration {
            Some(duration) if !duration.is_zero() => {
                let passed =
                    u128::from(now_ms().saturating_sub(anchor.since)) / duration.as_millis().max(1);
                anchor
                    .epoch
                    .saturating_add(u32::try_from(passed).unwrap_or(u32::MAX))
            }
            _ => anchor.epoch,
        }
    }

    pub fn epoch(&self) -> u32 {
        let anchor = self.state.lock().anchor;
        self.epoch_at(anchor)
    }

    pub fn epoch_duration(&self) -> Option<Duration> {
        self.setup.epoch_duration
    }

    pub fn set_epoch(&self, epoch: u32) -> io::Result<()> {
        self.change_epoch(|_| epoch).map(|_| ())
    }

    pub fn set_epoch_since(&self, epoch: u32, since: SystemTime) -> io::Result<()> {
        self.anchor(|_| epoch, since_1970_ms(since)).map(|_| ())
    }

    pub fn advance_epoch(&self, by: u32) -> io::Result<u32> {
        self.change_epoch(|now| now.saturating_add(by))
    }

    fn change_epoch(&self, change: impl FnOnce(u32) -> u32) -> io::Result<u32> {
        self.anchor(change, now_ms())
    }

    fn anchor(&self, change: impl FnOnce(u32) -> u32, since: u64) -> io::Result<u32> {
        let _order = self.changes.lock();
        let anchor = Anchor {
            epoch: change(self.epoch()),
            since,
        };
        self.record(&Record::Clock(anchor))?;
        self.state.lock().anchor = anchor;
        Ok(anchor.epoch)
    }

    // --- writing --------------------------------------------------------------------------

    /// Whether the network's present contents answer the request.
    pub fn check(&self, id: &BlobId, request: &PutRequest) -> Result<Option<PutResult>, PutError> {
        if request.epochs == 0 || request.epochs > MAX_EPOCHS {
            return Err(PutError::Epochs(request.epochs));
        }
        let state = self.state.lock();
        if state.blocked.contains(id) {
            return Err(PutError::Forbidden);
        }
        let now = self.epoch_at(state.anchor);
        let wanted = now.saturating_add(request.epochs);
        let Some(blob) = state.blobs.get(id).filter(|_| !request.force) else {
            return Ok(None);
        };
        let fitting = || {
            let all = blob.registrations.iter();
            all.filter(|r| r.end_epoch > now && r.end_epoch >= wanted && !r.uncertified)
                .filter(|r| r.deletable != request.permanent)
        };
        let own = fitting().filter(|r| self.own(r, request));
        // A permanent registration of any owner will do; a deletable one could vanish any time.
        let anybodys = fitting().filter(|r| !r.deletable);
        let result = if let Some(own) = own.max_by_key(|r| r.end_epoch) {
            Some(PutResult::AlreadyCertified {
                blob_id: *id,
                proof: Proof::Object(own.object_id),
                end_epoch: own.end_epoch,
            })
        } else {
            let best = anybodys.max_by_key(|r| r.end_epoch);
            best.map(|r| PutResult::AlreadyCertified {
                blob_id: *id,
                proof: Proof::Event(EventId {
                    tx_digest: r.tx_digest.clone(),
                    event_seq: "0".to_owned(),
                }),
                end_epoch: r.end_epoch,
            })
        };
        if result.is_some() {
            self.billing
                .already_certified
                .fetch_add(1, Ordering::Relaxed);
        }
        Ok(result)
    }

    /// Whether the publisher's wallet could reuse this registration for this request.
    fn own(&self, registration: &Registration, request: &PutRequest) -> bool {
        self.setup.single_wallet
            && request.reuse_resources
            && registration.owner.is_none()
            && registration.shared_object.is_none()
    }

    /// Stores and certifies the blob. Blocks on the disk, if there is one.
    pub fn store(
        &self,
        id: BlobId,
        data: Bytes,
        request: &PutRequest,
    ) -> Result<PutResult, PutError> {
        let size = data.len() as u64;
        let encoded_length = self
            .setup
            .geometry
            .encoded_length(size)
            .map_err(|_| PutError::TooLarge)?;
        let units = encoded_length.div_ceil(1 << 20);
        if let Some(disk) = &self.disk {
            disk.write(&id, &data).map_err(PutError::Io)?;
        }

        let _order = self.changes.lock();
        if let Some(disk) = &self.disk {
            // Again, in case a delete came between; otherwise it only looks.
            disk.write(&id, &data).map_err(PutError::Io)?;
        }
        let now = self.epoch();
        let wanted = now.saturating_add(request.epochs);
        if let Some(result) = self.extend(&id, size, now, wanted, request)? {
            return Ok(result);
        }

        let reused = self.reusable(encoded_length, now, wanted, request);
        let registration = Registration {
            object_id: ObjectId::random(),
            storage_id: (reused.as_ref()).map_or_else(ObjectId::random, |s| s.storage_id),
            shared_object: request.share.then(ObjectId::random),
            owner: request.owner,
            start_epoch: now,
            end_epoch: reused.as_ref().map_or(wanted, |s| s.end_epoch),
            deletable: !request.permanent,
            uncertified: false,
            tx_digest: crate::object_id::random_digest(),
            reused: reused.clone(),
            attributes: request.attributes.clone(),
        };
        self.add(id, data, registration.clone())
            .map_err(PutError::Io)?;
        let prices = self.setup.prices;
        let epochs = match reused {
            Some(_) => 0,
            None => u64::from(request.epochs),
        };
        let cost = units * (prices.storage * epochs + prices.write);
        self.bill(units, cost);
        Ok(PutResult::NewlyCreated {
            shared_blob_object: registration.shared_object,
            blob_object: blob_object(id, size, encoded_length, &registration),
            resource_operation: match reused {
                Some(_) => ResourceOperation::ReuseStorage { encoded_length },
                None => ResourceOperation::RegisterFromScratch {
                    encoded_length,
                    epochs_ahead: request.epochs,
                },
            },
            cost,
        })
    }

    /// Storage of the publisher's own wallet that a deleted blob left, large enough and paid for
    /// long enough: the smallest, and of these the one that ends first. It is taken whole.
    fn reusable(
        &self,
        size: u64,
        now: u32,
        wanted: u32,
        request: &PutRequest,
    ) -> Option<FreeStorage> {
        if !self.setup.single_wallet || !request.reuse_resources {
            return None;
        }
        if request.owner.is_some() || request.share {
            return None;
        }
        let state = self.state.lock();
        let fitting = state.free.values().filter(|s| {
            s.owner.is_none() && s.size >= size && s.end_epoch > now && s.end_epoch >= wanted
        });
        fitting
            .min_by_key(|s| (s.size, s.end_epoch, s.storage_id))
            .cloned()
    }

    fn bill(&self, units: u64, cost: u64) {
        self.billing.units.fetch_add(units, Ordering::Relaxed);
        self.billing.cost.fetch_add(cost, Ordering::Relaxed);
        self.billing.newly_created.fetch_add(1, Ordering::Relaxed);
    }

    /// Extends a registration of the publisher's own wallet, if the request asks for it.
    fn extend(
        &self,
        id: &BlobId,
        size: u64,
        now: u32,
        wanted: u32,
        request: &PutRequest,
    ) -> Result<Option<PutResult>, PutError> {
        let found = {
            let state = self.state.lock();
            let found = state.blobs.get(id).and_then(|blob| {
                blob.registrations
                    .iter()
                    .filter(|r| self.own(r, request) && r.deletable != request.permanent)
                    .filter(|r| r.end_epoch > now && r.end_epoch < wanted && !r.uncertified)
                    .max_by_key(|r| r.end_epoch)
                    .cloned()
            });
            found
        };
        let Some(mut registration) = found.filter(|_| !request.force) else {
            return Ok(None);
        };
        let epochs_extended = wanted - registration.end_epoch;
        registration.end_epoch = wanted;
        self.record(&Record::Extend {
            blob_id: *id,
            object_id: registration.object_id,
            end_epoch: wanted,
        })
        .map_err(PutError::Io)?;
        self.state.lock().extend(id, registration.object_id, wanted);
        let encoded_length = self
            .setup
            .geometry
            .encoded_length(size)
            .map_err(|_| PutError::TooLarge)?;
        let units = registration.storage_size(encoded_length).div_ceil(1 << 20);
        let cost = units * self.setup.prices.storage * u64::from(epochs_extended);
        self.bill(units, cost);
        Ok(Some(PutResult::NewlyCreated {
            blob_object: blob_object(*id, size, encoded_length, &registration),
            resource_operation: ResourceOperation::ReuseAndExtend {
                encoded_length,
                epochs_extended,
            },
            cost,
            shared_blob_object: None,
        }))
    }

    fn add(&self, id: BlobId, data: Bytes, registration: Registration) -> io::Result<()> {
        let size = data.len() as u64;
        self.record(&Record::Register {
            blob_id: id,
            size,
            registration: registration.clone(),
        })?;
        let content = if self.disk.is_some() {
            Content::File
        } else {
            Content::Memory(data)
        };
        self.state.lock().register(id, size, content, registration);
        Ok(())
    }

    /// Puts content under an ID of the caller's choice, unbilled.
    pub fn insert(
        &self,
        id: BlobId,
        data: Bytes,
        epochs: u32,
        deletable: bool,
        certified: bool,
    ) -> io::Result<Registration> {
        let _order = self.changes.lock();
        self.remove(&id)?;
        if let Some(disk) = &self.disk {
            disk.write(&id, &data)?;
        }
        let now = self.epoch();
        let registration = Registration {
            object_id: ObjectId::random(),
            storage_id: ObjectId::random(),
            shared_object: None,
            owner: None,
            start_epoch: now,
            end_epoch: now.saturating_add(epochs),
            deletable,
            uncertified: !certified,
            tx_digest: crate::object_id::random_digest(),
            reused: None,
            attributes: Vec::new(),
        };
        self.add(id, data, registration.clone())?;
        Ok(registration)
    }

    /// Removes a blob with all its registrations. `false`: there was none.
    pub fn delete(&self, id: &BlobId) -> io::Result<bool> {
        let _order = self.changes.lock();
        self.remove(id)
    }

    fn remove(&self, id: &BlobId) -> io::Result<bool> {
        if !self.state.lock().blobs.contains_key(id) {
            return Ok(false);
        }
        self.record(&Record::Delete { blob_id: *id })?;
        self.state.lock().remove(id);
        if let Some(disk) = &self.disk {
            disk.delete(id)?;
        }
        Ok(true)
    }

    /// Drops blobs that no registration keeps alive; returns their number.
    pub fn collect_expired(&self) -> io::Result<usize> {
        let _order = self.changes.lock();
        let now = self.epoch();
        let dead: Vec<BlobId> = {
            let state = self.state.lock();
            let expired = state.blobs.iter().filter(|(_, b)| b.held_until() <= now);
            expired.map(|(id, _)| *id).collect()
        };
        for id in &dead {
            self.remove(id)?;
        }
        Ok(dead.len())
    }

    /// Forgets all blobs and restarts the epoch clock and the bill.
    pub fn reset(&self) -> io::Result<()> {
        let _order = self.changes.lock();
        let ids: Vec<BlobId> = self.state.lock().blobs.keys().copied().collect();
        for id in &ids {
            self.remove(id)?;
        }
        let free: Vec<ObjectId> = self.state.lock().free.keys().copied().collect();
        for storage_id in free {
            self.record(&Record::Forget { storage_id })?;
            self.state.lock().forget(&storage_id);
        }
        let anchor = Anchor {
            epoch: self.setup.first_epoch,
            since: now_ms(),
        };
        self.record(&Record::Clock(anchor))?;
        let mut state = self.state.lock();
        state.anchor = anchor;
        state.blocked.clear();
        for total in [
            &self.billing.units,
            &self.billing.cost,
            &self.billing.newly_created,
            &self.billing.already_certified,
            &self.billing.extended,
            &self.billing.deleted,
        ] {
            total.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sets the attributes of a Blob object. `false`: there is no such object.
    pub fn set_attributes(
        &self,
        object_id: &ObjectId,
        attributes: Vec<(String, String)>,
    ) -> io::Result<bool> {
        let _order = self.changes.lock();
        if !self.state.lock().objects.contains_key(object_id) {
            return Ok(false);
        }
        self.record(&Record::Attributes {
            object_id: *object_id,
            attributes: attributes.clone(),
        })?;
        self.state.lock().set_attributes(object_id, attributes);
        Ok(true)
    }

    pub fn block(&self, id: BlobId) {
        self.state.lock().blocked.insert(id);
    }

    pub fn unblock(&self, id: &BlobId) -> bool {
        self.state.lock().blocked.remove(id)
    }

    pub fn is_blocked(&self, id: &BlobId) -> bool {
        self.state.lock().blocked.contains(id)
    }

    fn record(&self, record: &Record) -> io::Result<()> {
        match &self.disk {
            Some(disk) => disk.append(record),
            None => Ok(()),
        }
    }

    // --- reading --------------------------------------------------------------------------

    /// Finds a certified blob whose time has not run out.
    pub fn find(&self, id: &BlobId) -> Option<Found> {
        let state = self.state.lock();
        let blob = state.blobs.get(id)?;
        if blob.end_epoch() <= self.epoch_at(state.anchor) {
            return None;
        }
        Some(Found {
            blob_id: *id,
            size: blob.size,
            content: blob.content.clone(),
        })
    }

    /// `len` bytes from `start`, which must lie within the blob. Blocks on the disk, if there
    /// is one; in memory it is a slice, not a copy.
    pub fn read(&self, found: &Found, start: u64, len: u64) -> io::Result<Bytes> {
        match (&found.content, &self.disk) {
            (Content::Memory(bytes), _) => Ok(bytes.slice(start as usize..(start + len) as usize)),
            (Content::File, Some(disk)) => disk.read(&found.blob_id, start, len),
            (Content::File, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub fn object(&self, id: &ObjectId) -> Option<Object> {
        let state = self.state.lock();
        if let Some(blob_id) = state.objects.get(id) {
            let attributes = state.blobs.get(blob_id).and_then(|b| {
                let mut of = b.registrations.iter();
                of.find(|r| r.object_id == *id || r.shared_object == Some(*id))
            });
            return Some(Object::Blob {
                blob_id: *blob_id,
                attributes: attributes.map(|r| r.attributes.clone()).unwrap_or_default(),
            });
        }
        state.other_objects.contains(id).then_some(Object::Other)
    }

    fn describe(&self, id: &BlobId, blob: &Blob, now: u32) -> BlobInfo {
        let geometry = self.setup.geometry;
        BlobInfo {
            blob_id: *id,
            size: blob.size,
            encoded_size: geometry.encoded_length(blob.size).unwrap_or(u64::MAX),
            units: geometry.units(blob.size).unwrap_or(u64::MAX),
            end_epoch: blob.end_epoch(),
            live: blob.end_epoch() > now,
            deletable: blob.registrations.iter().all(|r| r.deletable),
            registrations: blob.registrations.clone(),
        }
    }

    pub fn info(&self, id: &BlobId) -> Option<BlobInfo> {
        let state = self.state.lock();
        let now = self.epoch_at(state.anchor);
        let blob = state.blobs.get(id)?;
        Some(self.describe(id, blob, now))
    }

    pub fn list(&self) -> Vec<BlobInfo> {
        let state = self.state.lock();
        let now = self.epoch_at(state.anchor);
        let blobs = state.blobs.iter();
        let mut list: Vec<BlobInfo> = blobs
            .map(|(id, blob)| self.describe(id, blob, now))
            .collect();
        list.sort_by_key(|info| info.blob_id);
        list
    }

    /// Blobs held and their bytes, expired ones included.
    pub fn totals(&self) -> (u64, u64) {
        let state = self.state.lock();
        let bytes = state.blobs.values().map(|b| b.size).sum();
        (state.blobs.len() as u64, bytes)
    }
}
