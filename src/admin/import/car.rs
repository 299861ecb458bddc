//! The blocks of CAR files (versions 1 and 2), read from the front to the end, as a source.
//!
//! A file is a header and sections: the length of the rest as a varint, a CID, the block. Version 2
//! puts a header before that and an index behind it (<https://ipld.io/specs/transport/car/>); the
//! index is not used, since all blocks are read in order anyway.
//!
//! **Invariant.** A file that ends within a section is an error. What is allocated is in proportion
//! to the bytes that were read.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use ipld_core::ipld::Ipld;

use super::offer::{Offer, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_VALUE_BYTES;
use crate::multihash::varint;
use crate::upload::car::PRAGMA;

/// The buffer of a file (bytes).
const BUFFER: usize = 1 << 20;
/// The longest header (bytes): some files name very many roots.
const MOST_HEADER: u64 = 32 << 20;
/// The longest CID (bytes).
const MOST_CID: u64 = 1 << 10;
/// The header of version 2 behind the pragma: characteristics, and three numbers.
const HEADER_2: usize = 40;
/// The multihash code of a digest that is the block itself: no block is stored for it.
const IDENTITY: u64 = 0;
const DAG_PB: u64 = 0x70;

/// A CAR file that is still to be read: its name for people, its bytes, and their number if that is
/// known.
pub struct CarFile {
    name: String,
    len: Option<u64>,
    open: Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>,
}

impl CarFile {
    /// `open` is called when the turn of the file comes.
    pub fn new(
        name: impl Into<String>,
        len: Option<u64>,
        open: impl FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'static,
    ) -> CarFile {
        CarFile {
            name: name.into(),
            len,
            open: Box::new(open),
        }
    }
}

impl std::fmt::Debug for CarFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CarFile({})", self.name)
    }
}

/// The blocks of CAR files, one file after another.
pub struct CarBlocks {
    files: VecDeque<CarFile>,
    open: Option<Car>,
    total_bytes: Option<u64>,
}

impl CarBlocks {
    /// The blocks of these files, in this order.
    pub fn new(files: Vec<CarFile>) -> CarBlocks {
        let lengths = files.iter().map(|file| file.len);
        CarBlocks {
            total_bytes: lengths.sum(),
            files: files.into(),
            open: None,
        }
    }
}

impl Source for CarBlocks {
    fn next(&mut self) -> Result<Option<Offer>> {
        loop {
            if let Some(car) = &mut self.open {
                match car.section() {
                    Ok(Some(offer)) => return Ok(Some(offer)),
                    Ok(None) => self.open = None,
                    Err(e) => {
                        let (name, at) = (&car.name, car.input.at);
                        return Err(e.context(format!("{name}, at byte {at}")));
                    }
                }
            }
            let Some(file) = self.files.pop_front() else {
                return Ok(None);
            };
            let input = (file.open)().map_err(|e| disk(e).context(&file.name))?;
            self.open =
                Some(Car::open(file.name.clone(), input).map_err(|e| e.context(file.name))?);
        }
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }
}

/// A file that is being read.
struct Car {
    name: String,
    input: Input,
}

struct Input {
    bytes: BufReader<Box<dyn Read + Send>>,
    /// Bytes that were read.
    at: u64,
    /// Where the sections end, if a header says it.
    end: Option<u64>,
}

impl Car {
    fn open(name: String, bytes: Box<dyn Read + Send>) -> Result<Car> {
        let mut input = Input {
            bytes: BufReader::with_capacity(BUFFER, bytes),
            at: 0,
            end: None,
        };
        let no_car = |why: String| bad(format!("it is no CAR file: {why}"));
        let header = input.header().map_err(|e| no_car(e.message().to_owned()))?;
        let version = match version_of(&header) {
            Some(2) if *header == PRAGMA[1..] => {
                let numbers: [u8; HEADER_2] = input.array()?;
                let number = |at: usize| {
                    let bytes: [u8; 8] = numbers[at..at + 8].try_into().unwrap_or_default();
                    u64::from_le_bytes(bytes)
                };
                let (data_at, data) = (number(16), number(24));
                let end = data_at.checked_add(data);
                if data_at < input.at || end.is_none() {
                    let text = format!("its header names {data} bytes from byte {data_at} on");
                    return Err(no_car(text));
                }
                input.skip(data_at - input.at)?;
                input.end = end;
                let inner = input.header().map_err(|e| no_car(e.message().to_owned()))?;
                version_of(&inner)
            }
            version => version,
        };
        match version {
            Some(1) => Ok(Car { name, input }),
            Some(n) => Err(no_car(format!(
                "it says version {n}, and 1 or 2 are understood"
            ))),
            None => Err(no_car(
                "it does not begin with the header of one".to_owned(),
            )),
        }
    }

    /// The next block. `None`: the file is at its end.
    fn section(&mut self) -> Result<Option<Offer>> {
        loop {
            let input = &mut self.input;
            match input.end {
                Some(end) if input.at > end => return Err(bad(format!(
                    "its blocks should end at byte {end}: the file is cut, or its header was never completed"
                ))),
                Some(end) if input.at == end => return Ok(None),
                _ => {}
            }
            let len = match input.varint()? {
                None => {
                    return match input.end {
                        None => Ok(None),
                        Some(end) => Err(bad(format!(
                            "the file is cut: its blocks should reach to byte {end}"
                        ))),
                    }
                }
                // Padding. Zeros before other bytes are what a hole in the file has left.
                Some(0) => {
                    input.only_zeros()?;
                    return Ok(None);
                }
                Some(len) => len,
            };
            if len > MAX_VALUE_BYTES as u64 + MOST_CID {
                return Err(bad(format!(
                    "a section of {len} bytes, and a block has at most {MAX_VALUE_BYTES}: the file is damaged"
                )));
            }
            let section = input.bytes(len)?;
            let Some(cid) = Cid::of(&section) else {
                return Err(bad(
                    "a section that does not begin with a CID: the file is damaged".to_owned(),
                ));
            };
            if cid.code == IDENTITY {
                continue;
            }
            let key = format!("/{}", BASE32_NOPAD.encode(&section[cid.hash_at..cid.len]));
            let mut offer = Offer::here(key, section.slice(cid.len..));
            offer.dag_pb = cid.codec == DAG_PB;
            return Ok(Some(offer));
        }
    }
}

/// Where the parts of a CID lie.
struct Cid {
    codec: u64,
    code: u64,
    hash_at: usize,
    len: usize,
}

impl Cid {
    fn of(bytes: &[u8]) -> Option<Cid> {
        let (codec, hash) = match bytes {
            // Version 0 is a bare SHA2-256 multihash.
            [0x12, 0x20, ..] => (DAG_PB, bytes),
            [0x01, rest @ ..] => varint(rest)?,
            _ => return None,
        };
        let (code, rest) = varint(hash)?;
        let (digest, rest) = varint(rest)?;
        let rest = rest.get(usize::try_from(digest).ok()?..)?;
        Some(Cid {
            codec,
            code,
            hash_at: bytes.len() - hash.len(),
            len: bytes.len() - rest.len(),
        })
    }
}

/// The version in a header.
fn version_of(header: &[u8]) -> Option<i128> {
    let Ok(Ipld::Map(map)) = serde_ipld_dagcbor::from_slice::<Ipld>(header) else {
        return None;
    };
    match map.get("version") {
        Some(Ipld::Integer(version)) => Some(*version),
        _ => None,
    }
}

impl Input {
    /// A varint. `None`: there is not one byte more.
    fn varint(&mut self) -> Result<Option<u64>> {
        let mut number = 0_u64;
        for shift in 0..10 {
            let Some(&byte) = self.bytes.fill_buf().map_err(disk)?.first() else {
                return match shift {
                    0 => Ok(None),
                    _ => Err(cut()),
                };
            };
            self.bytes.consume(1);
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * shift);
            if shifted >> (7 * shift) != bits {
                break;
            }
            number |= shifted;
            if byte & 0x80 == 0 {
                return Ok(Some(number));
            }
        }
        Err(bad(
            "a length of more than 64 bits: the file is damaged".to_owned()
        ))
    }

    fn bytes(&mut self, len: u64) -> Result<Bytes> {
        // Memory is taken as bytes arrive: a damaged length must not take a GiB.
        let mut read = Vec::with_capacity(usize::try_from(len.min(4 << 20)).unwrap_or(0));
        let taken = (&mut self.bytes).take(len).read_to_end(&mut read);
        let taken = taken.map_err(disk)? as u64;
        self.at += taken;
        match taken == len {
            true => Ok(read.into()),
            false => Err(cut()),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes(N as u64)?;
        <[u8; N]>::try_from(&bytes[..]).map_err(|_| cut())
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.bytes).take(len), &mut io::sink());
        self.at += skipped.map_err(disk)?;
        Ok(())
    }

    /// Reads to the end, where there must be nothing but zeros.
    fn only_zeros(&mut self) -> Result<()> {
        while self.end.is_none_or(|end| self.at < end) {
            let left = self.end.map_or(u64::MAX, |end| end - self.at);
            let bytes = self.bytes.fill_buf().map_err(disk)?;
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if len == 0 {
                return match self.end {
                    None => Ok(()),
                    Some(_) => Err(cut()),
                };
            }
            if let Some(other) = bytes[..len].iter().position(|byte| *byte != 0) {
                self.at += other as u64;
                return Err(bad("zeros, and then more: the file is damaged".to_owned()));
            }
            self.bytes.consume(len);
            self.at += len as u64;
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Bytes> {
        let empty = || bad("it is empty".to_owned());
        match self.varint()?.ok_or_else(empty)? {
            len if len > MOST_HEADER => Err(bad(format!("a header of {len} bytes"))),
            len => self.bytes(len),
        }
    }
}

fn bad(text: String) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

fn cut() -> Error {
    bad("the file is cut: it ends within a section".to_owned())
}

fn disk(e: io::Error) -> Error {
    Error::new(ErrorKind::Disk, e.to_string()).caused_by(e)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn cid(codec: u8, block: &[u8]) -> Vec<u8> {
        [&[1, codec, 0x12, 32][..], &Sha256::digest(block)].concat()
    }

    fn section(cid: &[u8], block: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        crate::multihash::push_varint(&mut out, (cid.len() + block.len()) as u64);
        [&out, cid, block].concat()
    }

    const HEADER: &[u8] = b"\x11\xa2\x65roots\x80\x67version\x01";

    fn read(file: Vec<u8>) -> Result<Vec<(String, Bytes, bool)>> {
        let open = move || Ok(Box::new(io::Cursor::new(file)) as Box<dyn Read + Send>);
        let mut blocks = CarBlocks::new(vec![CarFile::new("x.car", None, open)]);
        let mut found = Vec::new();
        while let Some(offer) = blocks.next()? {
            let super::super::offer::Content::Here(value) = offer.content else {
                panic!("it is read in order");
            };
            found.push((offer.key, value, offer.dag_pb));
        }
        Ok(found)
    }

    fn one() -> Vec<u8> {
        let v0 = [&[0x12, 32][..], &Sha256::digest(b"\x0a\x00")].concat();
        let identity = [1, 0x55, 0, 3, b'a', b'b', b'c'];
        [
            HEADER.to_vec(),
            section(&cid(0x55, b"raw"), b"raw"),
            section(&v0, b"\x0a\x00"),
            section(&identity, b"abc"),
            section(&cid(0x71, &[7; 300]), &[7; 300]),
        ]
        .concat()
    }

    #[test]
    fn both_versions_are_read() {
        let found = read(one()).unwrap();
        let values: Vec<(usize, bool)> = found.iter().map(|b| (b.1.len(), b.2)).collect();
        assert_eq!(values, [(3, false), (2, true), (300, false)]);
        for (key, value, _) in &found {
            assert_eq!(
                crate::multihash::check(key, value),
                crate::multihash::Match::Yes
            );
        }
        // Version 2, with padding before and an index behind.
        let (data, at) = (one(), 51 + 9_u64);
        let mut two = PRAGMA.to_vec();
        two.extend([0; 16]);
        for number in [at, data.len() as u64, at + data.len() as u64] {
            two.extend(number.to_le_bytes());
        }
        two.extend([0; 9]);
        let begin = two.len();
        two.extend(&data);
        two.extend(b"an index");
        assert_eq!(read(two.clone()).unwrap(), found);
        assert_eq!(read([one(), vec![0; 50]].concat()).unwrap(), found);
        // Cut at any place it is an error, but between sections of version 1.
        for len in 0..begin + data.len() {
            assert!(read(two[..len].to_vec()).is_err(), "{len}");
        }
        let whole = (0..one().len()).filter(|len| read(one()[..*len].to_vec()).is_ok());
        assert_eq!(whole.count(), 4);
    }

    #[test]
    fn a_hole_in_a_file_is_no_end() {
        let hole = [one(), vec![0; 5000], section(&cid(0x55, b"more"), b"more")].concat();
        let error = read(hole).unwrap_err();
        assert!(error.message().contains("zeros, and then more"), "{error}");
        // The header of a file of version 2 is completed last: no bytes of blocks are named before.
        let mut begun = PRAGMA.to_vec();
        begun.extend([0; 16]);
        for number in [51_u64, 0, 0] {
            begun.extend(number.to_le_bytes());
        }
        begun.extend(one());
        let error = read(begun).unwrap_err();
        assert!(error.message().contains("never completed"), "{error}");
    }

    #[test]
    fn anything_else_is_refused() {
        let message = |file: &[u8]| read(file.to_vec()).unwrap_err().message().to_owned();
        assert!(message(b"").contains("it is empty"));
        assert!(message(b"PK\x03\x04 some other file").contains("x.car: it is no CAR file"));
        let three = b"\x0a\xa1\x67version\x03";
        assert!(
            message(three).contains("says version 3"),
            "{}",
            message(three)
        );
        let long = [HEADER, &[0xff; 9], &[0x7f]].concat();
        assert!(message(&long).contains("more than 64 bits"));
        let long = [HEADER, &[0xff, 0xff, 0xff, 0xff, 0x7f]].concat();
        assert!(message(&long).contains("at most"), "{}", message(&long));
        let odd = [HEADER, &section(&[9, 9, 9], b"x")].concat();
        assert!(message(&odd).contains("at byte"), "{}", message(&odd));
    }
}
