//! The records of a network in memory, and how a line of the journal changes them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::blob_id::BlobId;
use crate::disk::Record;
use crate::object_id::ObjectId;
use crate::registration::{Anchor, FreeStorage, Registration};

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    File,
}

#[derive(Debug)]
pub(crate) struct Blob {
    pub size: u64,
    pub content: Content,
    pub registrations: Vec<Registration>,
}

impl Blob {
    /// The first epoch in which nothing can be read of it.
    pub fn end_epoch(&self) -> u32 {
        let certified = self.registrations.iter().filter(|r| !r.uncertified);
        certified.map(|r| r.end_epoch).max().unwrap_or(0)
    }

    /// The first epoch in which no registration is alive, certified or not.
    pub fn held_until(&self) -> u32 {
        let ends = self.registrations.iter().map(|r| r.end_epoch);
        ends.max().unwrap_or(0)
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub anchor: Anchor,
    pub blobs: HashMap<BlobId, Blob>,
    pub objects: HashMap<ObjectId, BlobId>,
    pub other_objects: HashSet<ObjectId>,
    /// Storage without a blob, by its ID.
    pub free: HashMap<ObjectId, FreeStorage>,
    pub blocked: HashSet<BlobId>,
    /// Registrations that their owners have deleted, if they are kept: the blob, its size.
    pub deleted: Option<Vec<(BlobId, u64, Registration)>>,
}

impl State {
    /// A network without blobs.
    pub fn new(anchor: Anchor) -> Self {
        State {
            anchor,
            blobs: HashMap::new(),
            objects: HashMap::new(),
            other_objects: HashSet::new(),
            free: HashMap::new(),
            blocked: HashSet::new(),
            deleted: None,
        }
    }

    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Clock(anchor) => self.anchor = anchor,
            Record::Register {
                blob_id,
                size,
                registration,
            } => self.register(blob_id, size, Content::File, registration),
            Record::Extend {
                blob_id,
                object_id,
                end_epoch,
            } => self.extend(&blob_id, object_id, end_epoch),
            Record::Attributes {
                object_id,
                attributes,
            } => self.set_attributes(&object_id, attributes),
            Record::Delete { blob_id } => self.remove(&blob_id),
            Record::Deregister {
                blob_id,
                object_id,
                storage,
            } => {
                self.deregister(&blob_id, &object_id, storage);
            }
            Record::Free(storage) => self.keep(storage),
            Record::Forget { storage_id } => self.forget(&storage_id),
        }
    }

    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::Clock(self.anchor)];
        for (blob_id, blob) in &self.blobs {
            for registration in &blob.registrations {
                records.push(Record::Register {
                    blob_id: *blob_id,
                    size: blob.size,
                    registration: registration.clone(),
                });
            }
        }
        records.extend(self.free.values().cloned().map(Record::Free));
        records
    }

    fn keep(&mut self, storage: FreeStorage) {
        self.other_objects.insert(storage.storage_id);
        self.free.insert(storage.storage_id, storage);
    }

    /// Forgets storage that is free.
    pub fn forget(&mut self, storage_id: &ObjectId) {
        if self.free.remove(storage_id).is_some() {
            self.other_objects.remove(storage_id);
        }
    }

    /// Takes a registration away and keeps its storage; true if it was the blob's last one.
    pub fn deregister(
        &mut self,
        blob_id: &BlobId,
        object_id: &ObjectId,
        storage: FreeStorage,
    ) -> bool {
        self.objects.remove(object_id);
        self.keep(storage);
        let Some(blob) = self.blobs.get_mut(blob_id) else {
            return false;
        };
        let mut all = blob.registrations.iter();
        if let Some(at) = all.position(|r| r.object_id == *object_id) {
            let gone = blob.registrations.remove(at);
            if let Some(deleted) = &mut self.deleted {
                deleted.push((*blob_id, blob.size, gone));
            }
        }
        let last = blob.registrations.is_empty();
        if last {
            self.blobs.remove(blob_id);
        }
        last
    }

    pub fn register(
        &mut self,
        blob_id: BlobId,
        size: u64,
        content: Content,
        registration: Registration,
    ) {
        self.objects.insert(registration.object_id, blob_id);
        if let Some(shared) = registration.shared_object {
            self.objects.insert(shared, blob_id);
        }
        self.other_objects.insert(registration.storage_id);
        self.free.remove(&registration.storage_id);
        self.blobs
            .entry(blob_id)
            .or_insert_with(|| Blob {
                size,
                content,
                registrations: Vec::new(),
            })
            .registrations
            .push(registration);
    }

    pub fn registration(
        &mut self,
        blob_id: &BlobId,
        object: &ObjectId,
    ) -> Option<&mut Registration> {
        let blob = self.blobs.get_mut(blob_id)?;
        let mut all = blob.registrations.iter_mut();
        all.find(|r| r.object_id == *object || r.shared_object == Some(*object))
    }

    pub fn extend(&mut self, blob_id: &BlobId, object_id: ObjectId, end_epoch: u32) {
        if let Some(registration) = self.registration(blob_id, &object_id) {
            registration.end_epoch = end_epoch;
        }
    }

    pub fn set_attributes(&mut self, object_id: &ObjectId, attributes: Vec<(String, String)>) {
        let Some(blob_id) = self.objects.get(object_id).copied() else {
            return;
        };
        if let Some(registration) = self.registration(&blob_id, object_id) {
            registration.attributes = attributes;
        }
    }

    pub fn remove(&mut self, blob_id: &BlobId) {
        if let Some(blob) = self.blobs.remove(blob_id) {
            for registration in blob.registrations {
                self.objects.remove(&registration.object_id);
                if let Some(shared) = registration.shared_object {
                    self.objects.remove(&shared);
                }
                self.other_objects.remove(&registration.storage_id);
            }
        }
    }
}
