//! A block in the journal.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use super::damage::Damage;
use super::disk_error;
use super::segment::Segment;
use crate::dag;
use crate::error::{Error, ErrorKind, Result};
use crate::place::{Form, Place, Value};
use crate::upload::order::Order;
use crate::upload::Parcel;
use crate::walrus::{Body, Source, WHOLE};

/// A staged block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(super) key: Arc<str>,
    pub(super) seq: u64,
    pub(super) segment: Arc<Segment>,
    /// Where its value begins in the segment (bytes).
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) crc: u32,
    pub(super) staged: Instant,
    /// How often it was indexed in a blob that could not be read; after that it is stored again.
    pub(super) lost: AtomicU32,
    /// Whether a deletion of its key has failed, which may have removed its row all the same.
    pub(super) doubted: AtomicBool,
    /// Whether a note that it needs no upload was written before its row came to be in doubt. It is
    /// looked up again, but would not be back after a restart.
    pub(super) let_go: AtomicBool,
    /// Whether it was found damaged.
    pub(super) damaged: AtomicBool,
    /// Whether its row was written or found, with bytes known to be right: only the blob must be
    /// read back.
    pub(super) indexed: AtomicBool,
    /// Whether its row, if it has one, may be of a blob that was never read back: it was staged
    /// before this open, or it takes the place of a damaged one.
    pub(super) unproven: AtomicBool,
    /// Whether a link says that it is a dag-pb node, and it is one.
    pub(super) is_dag_pb: AtomicBool,
    /// Its value, if its place in the file is given up and it has no other one yet.
    held: OnceLock<Bytes>,
}

impl Block {
    /// A block that was written at `offset` of a segment, with length and checksum of its value.
    pub(super) fn new(
        key: Arc<str>,
        seq: u64,
        segment: Arc<Segment>,
        offset: u64,
        (len, crc): (u32, u32),
        staged: Instant,
    ) -> Self {
        Block {
            key,
            seq,
            segment,
            offset,
            len,
            crc,
            staged,
            lost: AtomicU32::new(0),
            doubted: AtomicBool::new(false),
            let_go: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            indexed: AtomicBool::new(false),
            unproven: AtomicBool::new(false),
            is_dag_pb: AtomicBool::new(false),
            held: OnceLock::new(),
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether its row may have been removed since it was looked up.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire)
    }

    /// Whether a later put of the same value may rely on this one: its row is not in doubt, and it
    /// would be back after a restart.
    pub(crate) fn may_be_relied_on(&self) -> bool {
        !self.is_doubted() && !self.let_go.load(Ordering::Acquire)
    }

    /// Length of the value (bytes).
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// Whether its value is compared with its checksum while it is sent. A longer one is sent in
    /// parts.
    pub(super) fn is_checked_when_sent(&self) -> bool {
        self.len() <= WHOLE
    }

    /// Notes that its row was written or found, if the bytes in its blob are known to be right.
    pub(super) fn note_indexed(&self) {
        self.indexed
            .store(self.is_checked_when_sent(), Ordering::Release);
    }

    /// The same block in another place. A blob that its row names may never have been read back.
    pub(super) fn again(&self, seq: u64, segment: Arc<Segment>, offset: u64) -> Block {
        let (key, value) = (Arc::clone(&self.key), (self.len, self.crc));
        Block {
            lost: AtomicU32::new(self.lost.load(Ordering::Relaxed)),
            doubted: AtomicBool::new(self.is_doubted()),
            unproven: AtomicBool::new(true),
            ..Block::new(key, seq, segment, offset, value, self.staged)
        }
    }

    /// The value. Reads from the local disk (mostly its cache) on the calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`] if it cannot be read now; [`ErrorKind::Corrupt`] if it is not the value
    /// that was written.
    pub(super) fn read(&self) -> Result<Bytes> {
        self.value(Form::Bytes)?.bytes()
    }

    /// As [`read`](Self::read), in this form. A value at its place is not compared yet.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn value(&self, form: Form) -> Result<Value> {
        let held = || self.held.get().cloned().map(Value::Memory);
        match held() {
            Some(held) => Ok(held),
            // Its place may have been given up during the look.
            None => self.in_file(form).or_else(|e| held().ok_or(e)),
        }
    }

    fn in_file(&self, form: Form) -> Result<Value> {
        let path = self.segment.path();
        let file = Arc::clone(&self.segment);
        let read = Place::new(file, self.offset, self.len, self.crc).in_form(form);
        let value = read.map_err(|e| disk_error(&format!("reading {}", path.display()), &e))?;
        value.ok_or_else(|| {
            let dir = path.parent().unwrap_or(path);
            let words = self.damage().words(&self.key, dir);
            Error::new(ErrorKind::Corrupt, words)
        })
    }

    /// Takes the value into memory, before its place in the file is given up.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn hold(&self) -> Result<()> {
        let value = self.read()?;
        self.held.get_or_init(|| value);
        Ok(())
    }

    /// A part of the value, unchecked.
    fn part(&self, from: u64, into: &mut [u8]) -> io::Result<()> {
        let held = |held: &Bytes, into: &mut [u8]| {
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let part = held.get(from..).and_then(|rest| rest.get(..into.len()));
            into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        if let Some(value) = self.held.get() {
            return held(value, into);
        }
        let read = self.segment.read_at(self.offset + from, into);
        match self.held.get() {
            Some(value) => held(value, into),
            None => read,
        }
    }

    pub(super) fn damage(&self) -> Damage {
        Damage {
            file: self.segment.file_name(),
            at: self.offset,
            len: self.len,
        }
    }
}

/// The keys and contents of the blocks that may be dag-pb nodes, as far as they can be read. Reads
/// from the local disk on the calling thread.
pub(super) fn nodes(blocks: &[Arc<Block>]) -> Vec<(Arc<str>, Bytes)> {
    let may_be_node = |block: &&Arc<Block>| {
        let mut first = [0];
        let read = block.len() > 0 && block.part(0, &mut first).is_ok();
        read && Order::may_be_node(first[0])
    };
    let nodes = blocks.iter().filter(may_be_node);
    nodes
        .filter_map(|block| Some((Arc::clone(&block.key), block.read().ok()?)))
        .collect()
}

/// Notes that these blocks, to which links lead as to dag-pb nodes, are such nodes, as far as that
/// is true and they can be read. Reads from the local disk on the calling thread.
pub(super) fn note_dag_pb(blocks: &[Arc<Block>]) {
    for block in blocks {
        let mut head = [0; 16];
        let head = &mut head[..block.len.min(16) as usize];
        let read = block.part(0, head).is_ok();
        // Of a node without links the beginning is enough, and that is most of them.
        let is = match head.first() {
            _ if !read => false,
            Some(&first) if Order::may_be_node(first) => block
                .read()
                .is_ok_and(|value| dag::is_dag_pb(&value, block.len())),
            _ => dag::is_dag_pb(head, block.len()),
        };
        block.is_dag_pb.store(is, Ordering::Relaxed);
    }
}

impl Parcel for Arc<Block> {
    fn key(&self) -> &str {
        &self.key
    }

    fn len(&self) -> u64 {
        Block::len(self)
    }

    fn is_dag_pb(&self) -> bool {
        self.is_dag_pb.load(Ordering::Relaxed)
    }

    fn append_to(&self, body: &mut Body) {
        body.push_source(Arc::<Block>::clone(self));
    }
}

impl Source for Block {
    fn len(&self) -> u64 {
        Block::len(self)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.part(offset, into)?;
        // Long blocks are read in parts; they are checked before they are sent
        // (`deliver::prepare`).
        if into.len() as u64 == self.len() && crc32fast::hash(into) != self.crc {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a block is damaged in the journal",
            ));
        }
        Ok(())
    }
}
