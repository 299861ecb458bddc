//! Memory for blocks in transit, used again and again.
//!
//! A reader of a file needs a window of up to 16 MiB every few milliseconds, and drops one as
//! often; a writer hands over batches of several MiB. From the allocator each of them would consist
//! of pages that the system clears first, or leave a hole between others that the allocator keeps:
//! a quarter of a second of CPU per GiB, or a hundred MiB of memory too much.

use bytes::Bytes;
use parking_lot::Mutex;

/// Shorter buffers are left to the allocator (bytes).
const LEAST: usize = 1 << 20;

/// Capacities are multiples of this (bytes), so that windows of nearly the same length share.
const UNIT: usize = 256 << 10;

/// Most memory in idle buffers (bytes).
const IDLE: usize = 32 << 20;

/// Values that are copied together take a buffer of this size (bytes).
const TOGETHER: usize = 8 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    idle: Vec::new(),
    bytes: 0,
});

struct Pool {
    /// Sorted by the time of last use, the latest last.
    idle: Vec<Vec<u8>>,
    /// The sum of their capacities (bytes).
    bytes: usize,
}

impl Pool {
    /// Takes an idle buffer for `len` bytes that is not much too large.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (len..=len + len / 8 + UNIT).contains(&buffer.capacity());
        let at = self.idle.iter().rposition(fits)?;
        let buffer = self.idle.remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.bytes += buffer.capacity();
        self.idle.push(buffer);
        while self.bytes > IDLE {
            let oldest = self.idle.remove(0);
            self.bytes -= oldest.capacity();
        }
    }
}

/// Bytes that are being gathered. Its memory goes back to the pool when the buffer, or the `Bytes`
/// made of it, is dropped.
#[derive(Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn with_capacity(len: usize) -> Self {
        if len < LEAST {
            return Buffer(Vec::with_capacity(len));
        }
        let idle = POOL.lock().take(len);
        Buffer(idle.unwrap_or_else(|| Vec::with_capacity(len.next_multiple_of(UNIT))))
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        if (LEAST..=IDLE).contains(&buffer.capacity()) {
            POOL.lock().give(buffer);
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Bytes {
        Bytes::from_owner(buffer)
    }
}

/// Copies values, a few in each piece of memory: a piece is free when all of its values are
/// dropped.
pub(crate) fn copies(values: &[&[u8]]) -> Vec<Bytes> {
    let mut copies = Vec::with_capacity(values.len());
    let mut rest = values;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |value: &&&[u8]| {
            bytes += value.len();
            bytes <= TOGETHER
        };
        let (together, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = after;
        let len = together.iter().map(|value| value.len()).sum();
        if len < LEAST {
            copies.extend(together.iter().map(|value| Bytes::copy_from_slice(value)));
            continue;
        }
        let mut buffer = Buffer::with_capacity(len);
        together
            .iter()
            .for_each(|value| buffer.extend_from_slice(value));
        let mut all = Bytes::from(buffer);
        copies.extend(together.iter().map(|value| all.split_to(value.len())));
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let mut pool = Pool {
            idle: Vec::new(),
            bytes: 0,
        };
        assert!(pool.take(LEAST).is_none());
        pool.give(vec![7; 16 << 20]);
        assert!(pool.take(4 << 20).is_none(), "much too large");
        assert!(pool.take(17 << 20).is_none(), "too small");
        let again = pool.take(15 << 20).unwrap();
        assert!(again.is_empty() && again.capacity() == 16 << 20);
        assert_eq!(pool.bytes, 0);
        for len in [16 << 20, 16 << 20, 2 << 20] {
            pool.give(Vec::with_capacity(len));
        }
        assert_eq!(
            (pool.idle.len(), pool.bytes),
            (2, 18 << 20),
            "the oldest went"
        );
    }

    #[test]
    fn bytes_outlive_their_buffer() {
        let mut buffer = Buffer::with_capacity(3 << 20);
        assert_eq!(buffer.0.capacity(), 3 << 20);
        buffer.extend_from_slice(&[1, 2, 3]);
        let bytes = Bytes::from(buffer);
        let part = bytes.slice(1..);
        drop(bytes);
        let mut other = Buffer::with_capacity(3 << 20);
        other.extend_from_slice(&[9; 3]);
        assert_eq!(part, [2, 3][..]);
    }
    #[test]
    fn values_are_copied_as_they_are() {
        let lens = [0, 3, 300 << 10, 5 << 20, 4 << 20, 0, 20 << 20, 7, 1 << 20];
        let values: Vec<Vec<u8>> = lens
            .iter()
            .map(|&len| vec![(len % 251) as u8; len])
            .collect();
        let slices: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        assert_eq!(copies(&slices), slices);
        assert_eq!(copies(&slices[..2]), slices[..2]);
        assert!(copies(&[]).is_empty());
    }
}
