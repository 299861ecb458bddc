//! How an import is made, and what became of the blocks.

use serde::Serialize;

/// Blocks that are named in a report; all are counted.
pub(super) const NAMED: usize = 1000;

/// How an import is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What the datastore has before `/CIQ…` in its keys: nothing where it is mounted at `/blocks`.
    pub prefix: String,
    /// Whether blocks are taken whose keys cannot be checked: keys that are no multihash, or one of
    /// a function that is not known here. They are stored anew each time.
    pub unchecked: bool,
    /// How many reads run at once.
    pub readers: usize,
    /// The most bytes of blocks in packs that are on their way. One pack is always allowed.
    pub memory_bytes: u64,
    /// Whether another import into the same index may run at the same time: blocks that both bring
    /// are paid for twice then.
    pub beside: bool,
}

setters! { Options {
    with_prefix(prefix: String);
    with_unchecked(unchecked: bool);
    with_readers(readers: usize);
    with_memory_bytes(memory_bytes: u64);
    with_beside(beside: bool);
} }

impl Default for Options {
    fn default() -> Self {
        Options {
            prefix: String::new(),
            unchecked: false,
            readers: 8,
            memory_bytes: 512 << 20,
            beside: false,
        }
    }
}

/// Blocks and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sum {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sum {
    /// Counts a block of `len` bytes.
    pub(super) fn add(&mut self, len: u64) {
        self.blocks += 1;
        self.bytes += len;
    }

    pub(super) fn plus(&mut self, other: Sum) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }
}

/// Why a block was not imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trouble {
    /// It does not hash to the multihash in its key.
    Damaged,
    /// The source cannot read it.
    Unreadable,
    /// Its key cannot be checked.
    Refused,
}

/// A block that was not imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Named {
    /// Its key in the source.
    pub key: String,
    /// The kind of the reason.
    pub trouble: Trouble,
    /// The reason, for people.
    pub why: String,
}

/// What became of the blocks of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Whether blocks were stored; else this is what would be done.
    pub applied: bool,
    /// Blocks that the source has, as far as it was gone through.
    pub found: Sum,
    /// Those that the datastore has already. They are not read.
    pub known: Sum,
    /// Those that were deleted from the datastore, and came back without an upload.
    pub undeleted: Sum,
    /// Those that were stored, or would be.
    pub stored: Sum,
    /// Those that do not hash to their keys.
    pub damaged: Sum,
    /// Those that the source could not read.
    pub unreadable: Sum,
    /// Those whose keys cannot be checked.
    pub refused: Sum,
    /// Those that were deleted from the source meanwhile.
    pub gone: Sum,
    /// Keys of the source outside the place of its blocks, such as those of pins where a datastore
    /// is mounted at `/`. They are none of the blocks that were found, and are not imported.
    pub elsewhere: Sum,
    /// Packs that were stored, or would be.
    pub packs: u64,
    /// The lengths of these packs (bytes).
    pub pack_bytes: u64,
    /// Their units, by their lengths.
    pub units: u64,
    /// What publishers said they cost (FROST).
    pub cost: u64,
    /// The first 1,000 blocks that were not imported.
    pub named: Vec<Named>,
}

impl Report {
    /// Blocks that the source has and that were not imported.
    pub fn left_out(&self) -> u64 {
        self.damaged.blocks + self.unreadable.blocks + self.refused.blocks
    }

    /// Counts and names a block that is not imported.
    pub(super) fn name(&mut self, named: Named, len: u64) {
        match named.trouble {
            Trouble::Damaged => self.damaged.add(len),
            Trouble::Unreadable => self.unreadable.add(len),
            Trouble::Refused => self.refused.add(len),
        }
        if self.named.len() < NAMED {
            self.named.push(named);
        }
    }

    /// Adds what became of a part of the blocks.
    pub(super) fn plus(&mut self, other: Report) {
        let Report {
            applied: _,
            found,
            known,
            undeleted,
            stored,
            damaged,
            unreadable,
            refused,
            gone,
            elsewhere,
            packs,
            pack_bytes,
            units,
            cost,
            named,
        } = other;
        for (sum, more) in [
            (&mut self.found, found),
            (&mut self.known, known),
            (&mut self.undeleted, undeleted),
            (&mut self.stored, stored),
            (&mut self.damaged, damaged),
            (&mut self.unreadable, unreadable),
            (&mut self.refused, refused),
            (&mut self.gone, gone),
            (&mut self.elsewhere, elsewhere),
        ] {
            sum.plus(more);
        }
        self.packs += packs;
        self.pack_bytes += pack_bytes;
        self.units += units;
        self.cost += cost;
        let room = NAMED.saturating_sub(self.named.len());
        self.named.extend(named.into_iter().take(room));
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Blocks that are done with: stored, known, or left out.
    pub done: Sum,
    /// Those of them that were stored.
    pub stored: Sum,
    /// The bytes of all blocks, about, if the source knows them.
    pub total_bytes: Option<u64>,
}
