//! The history that every way of storing is measured by: which blocks come when, and go when.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::Settings;

/// Blocks are this long (bytes), small ones more often than long ones.
const LENGTHS: std::ops::RangeInclusive<usize> = 2048..=16_384;
/// A file has up to so many blocks; all of them go together.
const FILE: std::ops::RangeInclusive<usize> = 1..=39;
/// Files come in so many steps of each epoch.
const SESSIONS: u32 = 2;
/// The part of the files that are deleted before the end.
const DELETED: f64 = 0.6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Waiting,
    Live,
    Deleted,
}

pub struct Block {
    pub seed: u64,
    pub len: usize,
    /// The step in which it comes.
    pub comes: u32,
    /// The step in which it is deleted.
    pub goes: Option<u32>,
    pub key: String,
    pub state: State,
}

impl Block {
    pub fn bytes(&self) -> Bytes {
        testkit::mem::noise(self.seed, self.len)
    }
}

/// All blocks, in the order in which they come.
pub fn make(settings: &Settings) -> Vec<Block> {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let per_epoch = settings.steps_per_epoch;
    let steps = settings.epochs * per_epoch;
    let mut sessions: Vec<u32> = Vec::new();
    for epoch in 0..settings.epochs {
        for _ in 0..SESSIONS {
            sessions.push(epoch * per_epoch + rng.random_range(0..per_epoch));
        }
    }
    let mut blocks = Vec::new();
    while blocks.len() < settings.blocks {
        let comes = sessions[rng.random_range(0..sessions.len())];
        let is_deleted = rng.random_bool(DELETED) && comes + 1 < steps;
        let goes = is_deleted.then(|| rng.random_range(comes + 1..steps));
        let left = settings.blocks - blocks.len();
        for _ in 0..rng.random_range(FILE).min(left) {
            let spread = (*LENGTHS.end() as f64 / *LENGTHS.start() as f64).ln();
            let len = *LENGTHS.start() as f64 * (spread * rng.random::<f64>()).exp();
            blocks.push(Block {
                seed: rng.random(),
                len: len as usize,
                comes,
                goes,
                key: String::new(),
                state: State::Waiting,
            });
        }
    }
    blocks.sort_by_key(|block| block.comes);
    blocks
}
