//! A disk whose long writes go past the kernel's page cache.
//!
//! The problem: a write that is synced before it returns waits for the disk in any case. If it goes
//! through the page cache, the journal's thread also copies every byte to new pages first, which
//! takes longer than a quick disk takes for the bytes (docs/benchmarks.md). `O_DIRECT` spares that.
//! Where a write returns before it is synced, that holds for quick disks only: a slow one is left
//! to the page cache, and measured again from time to time.
//!
//! `O_DIRECT` wants offsets, lengths and addresses that are multiples of the device's blocks. So
//! the first and last bytes of a write take the usual way, and its middle is copied to a buffer
//! that lies right. Where they share a page of the kernel, it writes that page out and drops it
//! before the middle. The middle has a file handle of its own: readers share the segment's, and
//! their offsets are any.
//!
//! A file system that refuses is asked once; all its writes take the usual way from then on. What
//! may pass, as a lack of file handles, turns one write aside.
//!
//! The only lock taken here is the buffer's, which is innermost.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::{is_full, write_all, Disk};

/// Writes from this length on (bytes) go past the page cache: shorter ones wait for the disk's
/// answer more than for the copy.
const LONG: u64 = 1 << 20;
/// Devices have blocks of 512 or 4,096 bytes, and the page cache has pages of at least this size.
const ALIGN: usize = 4096;
/// How much is written at once (bytes).
const PORTION: usize = 4 << 20;
/// The errors of an open that the next one will meet, too: no `O_DIRECT`, no `/proc`.
const NEVER: [i32; 5] = [
    libc::EINVAL,
    libc::ENOENT,
    libc::ENOTDIR,
    libc::EACCES,
    libc::EOPNOTSUPP,
];

/// A quick disk takes no longer for a MiB. A copy to new pages takes half of that, and a processor.
const QUICK: Duration = Duration::from_millis(2);
/// How many long writes take the usual way after a slow one; twice as many after the next, and so
/// on.
const SKIPS: Range<u32> = 8..1024;

#[derive(Debug)]
pub(super) struct DirectDisk {
    buffer: Mutex<Vec<u8>>,
    refused: AtomicBool,
    /// `None`: a slow disk is waited for, too.
    speed: Option<Speed>,
}

impl DirectDisk {
    /// `waits`: each write is synced before it returns.
    pub(super) fn new(waits: bool) -> Self {
        DirectDisk {
            buffer: Mutex::default(),
            refused: AtomicBool::new(false),
            speed: (!waits).then(Speed::default),
        }
    }

    fn write_middle(&self, file: &File, direct: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.refused.load(Ordering::Relaxed) {
            return file.write_all_at(bytes, at);
        }
        match direct.write_all_at(bytes, at) {
            Err(e) if !is_full(&e) => {
                // A disk that fails does so here or at the sync, too.
                file.write_all_at(bytes, at)?;
                self.refused.store(true, Ordering::Relaxed);
                Ok(())
            }
            written => written,
        }
    }
}

impl Disk for DirectDisk {
    fn write(&self, file: &File, at: u64, slices: &[&[u8]]) -> io::Result<()> {
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let usual = len < LONG || self.refused.load(Ordering::Relaxed);
        if usual || self.speed.as_ref().is_some_and(Speed::skips) {
            return write_all(file, at, slices);
        }
        let direct = match reopen(file) {
            Ok(direct) => direct,
            Err(e) => {
                let never = e.raw_os_error().is_some_and(|e| NEVER.contains(&e));
                self.refused.fetch_or(never, Ordering::Relaxed);
                return write_all(file, at, slices);
            }
        };
        let begun = Instant::now();
        let (first, last) = (at.next_multiple_of(ALIGN as u64), at + len);
        let last = last - last % ALIGN as u64;
        let mut rest = Slices::new(slices);
        let mut edge = vec![0; (first - at) as usize];
        rest.fill(&mut edge);
        file.write_all_at(&edge, at)?;

        let mut buffer = self.buffer.lock();
        // Room to begin at an address that is a multiple of `ALIGN`.
        buffer.resize(PORTION + ALIGN, 0);
        let skip = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let mut at_middle = first;
        while at_middle < last {
            let step = (last - at_middle).min(PORTION as u64);
            let portion = &mut buffer[skip..skip + step as usize];
            rest.fill(portion);
            self.write_middle(file, &direct, at_middle, portion)?;
            at_middle += step;
        }
        drop(buffer);

        edge.resize((at + len - last) as usize, 0);
        rest.fill(&mut edge);
        file.write_all_at(&edge, last)?;
        if let Some(speed) = &self.speed {
            speed.took(begun.elapsed(), len);
        }
        Ok(())
    }
}

/// Whether a disk is quick enough. One thread at a time writes.
#[derive(Debug, Default)]
struct Speed {
    /// How many writes take the usual way from now on, and took it after the last slow one.
    left: AtomicU32,
    last: AtomicU32,
}

impl Speed {
    /// Counts a long write; returns whether it takes the usual way.
    fn skips(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    fn took(&self, time: Duration, len: u64) {
        let quick = QUICK.mul_f64(len as f64 / f64::from(1 << 20));
        let last = self.last.load(Ordering::Relaxed);
        let next = match time <= quick {
            true => 0,
            false => (last * 2).clamp(SKIPS.start, SKIPS.end),
        };
        self.last.store(next, Ordering::Relaxed);
        self.left.store(next, Ordering::Relaxed);
    }
}

/// The same file, even if it has lost its name, for writing past the page cache.
fn reopen(file: &File) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Slices that are read one after another.
struct Slices<'a> {
    rest: &'a [&'a [u8]],
    /// How much of the first one was read (bytes).
    taken: usize,
}

impl<'a> Slices<'a> {
    fn new(slices: &'a [&'a [u8]]) -> Self {
        Slices {
            rest: slices,
            taken: 0,
        }
    }

    /// Copies the next bytes; there are as many.
    fn fill(&mut self, mut into: &mut [u8]) {
        while let (false, Some((first, others))) = (into.is_empty(), self.rest.split_first()) {
            let left = &first[self.taken..];
            let step = left.len().min(into.len());
            into[..step].copy_from_slice(&left[..step]);
            into = &mut into[step..];
            self.taken += step;
            if self.taken == first.len() {
                (self.rest, self.taken) = (others, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    /// Every edge: writes that begin and end on and off a page, over several portions, in slices of
    /// any length, with bytes before and behind.
    #[test]
    fn the_file_is_the_same_as_by_the_usual_way() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectDisk::new(true);
        let bytes: Vec<u8> = (0..9_500_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        let (direct, usual) = (dir.path().join("direct"), dir.path().join("usual"));
        let direct = disk.create(&direct).unwrap();
        let usual = RealDisk.create(&usual).unwrap();
        let mut at = 0;
        for (skip, len, piece) in [
            (0, 100, 100),
            (0, 1 << 20, 4096),
            (17, 3_000_001, 262_144),
            (0, 9_500_000, 1_000_003),
            (4096 - 118, 2 << 20, 1),
            (0, 4 << 20, 1 << 30),
        ] {
            at += skip;
            let mut slices: Vec<&[u8]> = bytes[..len].chunks(piece.max(len / 5000)).collect();
            slices.insert(1, &[]);
            disk.write(&direct, at, &slices).unwrap();
            RealDisk.write(&usual, at, &slices).unwrap();
            at += len as u64;
        }
        let read = |file: &File| {
            let mut all = vec![0; at as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            assert_eq!(file.metadata().unwrap().len(), at);
            all
        };
        assert!(read(&direct) == read(&usual));
        // Over what is there.
        disk.write(&direct, 5, &[&bytes[..]]).unwrap();
        assert!(read(&direct)[5..9_500_005] == bytes);
    }

    #[test]
    fn a_slow_disk_is_asked_less_and_less_and_a_quick_one_always() {
        let speed = Speed::default();
        let asked_after = |speed: &Speed| (0..).find(|_| !speed.skips()).unwrap();
        let (slow, quick) = (Duration::from_millis(32), Duration::from_millis(4));
        for skips in [0, 8, 16, 32, 64, 128, 256, 512, 1024, 1024] {
            assert_eq!(asked_after(&speed), skips);
            speed.took(slow, 4 << 20);
        }
        asked_after(&speed);
        speed.took(quick, 4 << 20);
        assert_eq!(asked_after(&speed), 0);
        speed.took(slow, 4 << 20);
        assert_eq!(asked_after(&speed), 8);
    }

    /// A file system without `O_DIRECT`.
    #[test]
    fn a_refusal_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectDisk::new(true);
        let file = disk.create(&dir.path().join("file")).unwrap();
        let bytes = vec![7; 3 << 20];
        // A handle that takes no bytes at this address stands for one that refuses.
        let unaligned = &bytes[1..];
        let direct = reopen(&file).unwrap();
        disk.write_middle(&file, &direct, 1, unaligned).unwrap();
        assert!(disk.refused.load(Ordering::Relaxed));
        disk.write(&file, 0, &[&bytes]).unwrap();
        let mut read = vec![0; 3 << 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
    }
}
