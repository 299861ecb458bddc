//! Judges the values of a frame: whole, damaged, or perhaps never written.
//!
//! The problem: a value that does not match its checksum was either damaged after its write was
//! acknowledged, which is to be reported, or belongs to a write that a crash cut short, which was
//! never acknowledged. In the last write of a file both are possible.
//!
//! What tells them apart:
//! - If one flipped bit explains the wrong checksum, the value was written whole. A write that was
//!   cut short differs in many bits.
//! - A disk writes whole sectors, and a process that is killed stops between two pages or between
//!   two values. So a cut leaves out whole sectors, or whole values up to the end of the frame, and
//!   there are zeroes in their place. A sector that holds other bytes of the same frame was
//!   written.
//! - A value whose last bytes are zeroes up to the end of the frame, without a missing sector, may
//!   be either. Such a frame is doubtful: only those of its blocks count that are proven by their
//!   keys, and an operator is told.
//!
//! No lock is taken here.

use std::io;
use std::sync::Arc;

use super::frame::{Entry, Frame};
use super::window::Window;
use crate::multihash::{self, Match};

/// The size of a sector, which a disk writes wholly or not at all (bytes).
pub(super) const SECTOR: u64 = 512;

/// The state of the values of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// Some values are damaged, but the end of the frame was written.
    Damaged,
    /// The end of the frame is missing: from some byte on there are only zeroes, and every damaged
    /// value reaches up to there. `doubtful`: no missing sector explains that.
    Torn {
        doubtful: bool,
    },
}

/// Marks the entries whose values are damaged and, behind a gap, entries that cannot be trusted.
pub(super) fn judge(
    window: &mut Window<'_>,
    start: u64,
    frame: &mut Frame,
    behind_gap: bool,
) -> io::Result<Verdict> {
    let end = start + frame.len;
    // The end of the first damaged value; the other damaged values end behind it.
    let mut first_end = None;
    let (mut flipped, mut doubtful) = (false, false);
    for entry in &mut frame.entries {
        let Entry::Put {
            key,
            offset,
            len,
            crc,
        } = &*entry
        else {
            if behind_gap {
                *entry = Entry::Lost;
            }
            continue;
        };
        let at = start + offset;
        let (key, offset, len, crc) = (Arc::clone(key), *offset, *len, *crc);
        let value = window.get(at, u64::from(len))?;
        let found = value.map(crc32fast::hash);
        if found == Some(crc) {
            let other = |value: &[u8]| multihash::check(&key, value) == Match::No;
            if behind_gap && value.is_some_and(other) {
                first_end.get_or_insert(at + u64::from(len));
                *entry = Entry::Lost;
            }
            continue;
        }
        first_end.get_or_insert(at + u64::from(len));
        let one_bit = value.is_some_and(|value| is_one_flip(&key, value, crc));
        let missing = has_missing_sector(window, (at, at + u64::from(len)), (start, end))?
            || !window.other_than_zero(at, end)?;
        let unwritten = missing && !one_bit;
        flipped |= one_bit;
        doubtful |= !missing;
        *entry = match behind_gap {
            true => Entry::Lost,
            false => Entry::Damaged {
                key,
                offset,
                len,
                crc,
                unwritten,
            },
        };
    }
    Ok(match first_end {
        None => Verdict::Whole,
        Some(_) if flipped => Verdict::Damaged,
        Some(first) if window.other_than_zero(first - 1, end)? => Verdict::Damaged,
        Some(_) => Verdict::Torn { doubtful },
    })
}

/// Leaves of a frame that was not written whole only the puts whose keys prove their values: such
/// a block is what it claims to be, even if its write was never acknowledged. Returns how many are
/// left, and the keys of the others.
pub(super) fn keep_proven(
    window: &mut Window<'_>,
    start: u64,
    frame: &mut Frame,
) -> io::Result<(usize, Vec<String>)> {
    let mut kept = 0;
    let mut others = Vec::new();
    for entry in &mut frame.entries {
        let key = match entry {
            Entry::Put {
                key, offset, len, ..
            } => {
                let value = window.get(start + *offset, u64::from(*len))?;
                if value.is_some_and(|value| multihash::check(key, value) == Match::Yes) {
                    kept += 1;
                    continue;
                }
                key.to_string()
            }
            Entry::Damaged { key, .. } => key.to_string(),
            Entry::Delete(key) => std::mem::take(key),
            Entry::Done(..) | Entry::Lost => continue,
        };
        others.push(key);
        *entry = Entry::Lost;
    }
    Ok((kept, others))
}

/// Whether some sector of the bytes `part` (from, to) holds only zeroes, as far as it belongs to
/// the bytes `whole` that were written at once.
pub(super) fn has_missing_sector(
    window: &mut Window<'_>,
    part: (u64, u64),
    whole: (u64, u64),
) -> io::Result<bool> {
    let mut sector = part.0 / SECTOR * SECTOR;
    while sector < part.1 {
        let (from, to) = (sector.max(whole.0), (sector + SECTOR).min(whole.1));
        if !window.other_than_zero(from, to)? {
            return Ok(true);
        }
        sector += SECTOR;
    }
    Ok(false)
}

/// Whether one flipped bit explains that a value does not match its checksum. A key that names the
/// content has the last word: of the bits of a long value, one may explain any checksum by chance.
fn is_one_flip(key: &str, value: &[u8], crc: u32) -> bool {
    let difference = crc32fast::hash(value) ^ crc;
    let Some(bit) = flipped_bit(difference, value.len()) else {
        return false;
    };
    let mut mended = value.to_vec();
    flip(&mut mended, bit);
    multihash::check(key, &mended) != Match::No
}

/// Flips a bit, counted from the last bit of the last byte back.
pub(super) fn flip(bytes: &mut [u8], bit: usize) {
    if let Some(byte) = bytes.iter_mut().nth_back(bit / 8) {
        *byte ^= 0x80 >> (bit % 8);
    }
}

/// The bit whose flip changes the CRC-32 of `len` bytes by `difference`, counted from the last bit
/// of the last byte back; `None` if no single bit does. Of bits within 2³² - 1, at most one does.
pub(super) fn flipped_bit(difference: u32, len: usize) -> Option<usize> {
    /// The polynomial of CRC-32, with its bits reversed.
    const POLYNOMIAL: u32 = 0xedb8_8320;
    // What a flip of the last bit changes; each bit before it is one step of the register older.
    let mut change = POLYNOMIAL;
    for bit in 0..len * 8 {
        if change == difference {
            return Some(bit);
        }
        let carry = change & 1 != 0;
        change >>= 1;
        if carry {
            change ^= POLYNOMIAL;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_flipped_bit_is_found_and_two_are_not_taken_for_one(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            one: prop::sample::Index,
            two: prop::sample::Index,
        ) {
            let bits = bytes.len() * 8;
            let whole = crc32fast::hash(&bytes);
            let mut wrong = bytes.clone();
            flip(&mut wrong, one.index(bits));
            let difference = crc32fast::hash(&wrong) ^ whole;
            prop_assert_eq!(flipped_bit(difference, bytes.len()), Some(one.index(bits)));
            flip(&mut wrong, two.index(bits));
            if one.index(bits) != two.index(bits) {
                let difference = crc32fast::hash(&wrong) ^ whole;
                prop_assert_eq!(flipped_bit(difference, bytes.len()), None);
            }
        }
    }
}
