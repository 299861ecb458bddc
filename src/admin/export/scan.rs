//! What is in a CAR file that an export has written: its blocks are passed over and not read.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use super::super::target::{key_of, Cid};
use crate::error::{Error, ErrorKind, Result};
use crate::upload::car::DATA_AT;

/// What a file of version 2 begins with.
const V2: &[u8] = b"\x0a\xa1\x67version\x02";
/// Where such a file has the length of its sections (bytes).
const LENGTH_AT: usize = 35;

/// Tells the keys (`/CIQ…`) of the blocks in a file.
///
/// # Errors
/// [`ErrorKind::Corrupt`]: it is no CAR, or a part of one. [`ErrorKind::Disk`].
pub(super) fn keys(path: &Path, on: &mut dyn FnMut(&str)) -> Result<()> {
    let told = read(path, on);
    told.map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            _ => ErrorKind::Disk,
        };
        Error::new(kind, format!("{}: {e}", path.display())).caused_by(e)
    })
}

fn read(path: &Path, on: &mut dyn FnMut(&str)) -> io::Result<()> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut input = BufReader::with_capacity(64 << 10, file);
    let (mut at, mut end) = (0, len);
    if input.fill_buf()?.starts_with(V2) {
        let mut head = [0; DATA_AT as usize];
        input.read_exact(&mut head)?;
        let data = head[LENGTH_AT..LENGTH_AT + 8].try_into();
        let data = u64::from_le_bytes(data.map_err(io::Error::other)?);
        (at, end) = (DATA_AT, DATA_AT.saturating_add(data));
    }
    if end > len {
        return Err(cut());
    }
    // The header with the roots.
    at += skip(&mut input, None, end - at)?;
    while at < end {
        at += skip(&mut input, Some(on), end - at)?;
    }
    Ok(())
}

/// Passes over a section, or the header (`on` is `None`). Returns how long it is.
fn skip(
    input: &mut BufReader<File>,
    on: Option<&mut dyn FnMut(&str)>,
    rest: u64,
) -> io::Result<u64> {
    let (len, head) = varint(input)?;
    if head.saturating_add(len) > rest {
        return Err(cut());
    }
    let mut behind = len;
    if let Some(on) = on {
        let cid = Cid::read_bytes(&mut *input);
        let cid = cid.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        on(&key_of(&cid, ""));
        behind = len.checked_sub(cid.encoded_len() as u64).ok_or_else(cut)?;
    }
    let behind = i64::try_from(behind).map_err(io::Error::other)?;
    input.seek_relative(behind)?;
    Ok(head + len)
}

/// A number, and how long it is.
fn varint(input: &mut impl io::Read) -> io::Result<(u64, u64)> {
    let (mut value, mut byte) = (0, [0]);
    for n in 0..9 {
        input.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << (7 * n);
        if byte[0] < 0x80 {
            return Ok((value, n + 1));
        }
    }
    let text = "a length of a section that is no number";
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is cut")
}
