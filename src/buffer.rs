//! Memory for blocks in transit, used again and again.
//!
//! A reader of a file needs a window of up to 8 MiB every few milliseconds, and drops one as
//! often; a writer hands over batches of several MiB. From the allocator each of them would consist
//! of pages that the system clears first, or leave a hole between others that the allocator keeps:
//! a quarter of a second of CPU per GiB, or a hundred MiB of memory too much. So long buffers are
//! mapped, and what is not kept for the next one goes back to the system at once.

use bytes::Bytes;
use memmap2::MmapMut;
use parking_lot::Mutex;

/// Shorter buffers are left to the allocator (bytes).
const LEAST: usize = 1 << 20;

/// Capacities are multiples of this (bytes), so that windows of nearly the same length share.
const UNIT: usize = 256 << 10;

/// Most memory in idle buffers (bytes): two of the largest windows, framing included.
const IDLE: usize = 2 * ((8 << 20) + UNIT);

/// Values that are copied together take a buffer of this size (bytes).
const TOGETHER: usize = 8 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    idle: Vec::new(),
    bytes: 0,
});

struct Pool {
    /// Sorted by the time of last use, the latest last.
    idle: Vec<MmapMut>,
    /// The sum of their lengths (bytes).
    bytes: usize,
}

impl Pool {
    /// Takes an idle buffer for `len` bytes that is not much too large.
    fn take(&mut self, len: usize) -> Option<MmapMut> {
        let fits = |pages: &MmapMut| (len..=len + len / 8 + UNIT).contains(&pages.len());
        let at = self.idle.iter().rposition(fits)?;
        let pages = self.idle.remove(at);
        self.bytes -= pages.len();
        Some(pages)
    }

    /// Keeps a buffer. Returns those that have to go, to be freed without the lock.
    fn give(&mut self, pages: MmapMut) -> Vec<MmapMut> {
        self.bytes += pages.len();
        self.idle.push(pages);
        let mut gone = Vec::new();
        while self.bytes > IDLE {
            let oldest = self.idle.remove(0);
            self.bytes -= oldest.len();
            gone.push(oldest);
        }
        gone
    }
}

/// Bytes that are being gathered. Its memory goes back to the pool when the buffer, or the `Bytes`
/// made of it, is dropped.
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Heap(Vec<u8>),
    Pages(MmapMut),
}

impl Buffer {
    pub(crate) fn with_capacity(len: usize) -> Self {
        let mapped = || {
            let idle = POOL.lock().take(len);
            idle.or_else(|| MmapMut::map_anon(len.next_multiple_of(UNIT)).ok())
        };
        let pages = if len < LEAST { None } else { mapped() };
        let memory = pages.map_or_else(|| Memory::Heap(Vec::with_capacity(len)), Memory::Pages);
        Buffer { memory, len: 0 }
    }

    fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Heap(heap) => heap.capacity(),
            Memory::Pages(pages) => pages.len(),
        }
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        let len = self.len + bytes.len();
        if len > self.capacity() {
            let mut longer = Buffer::with_capacity(len.max(2 * self.len));
            longer.extend_from_slice(self.as_ref());
            *self = longer;
        }
        match &mut self.memory {
            Memory::Heap(heap) => heap.extend_from_slice(bytes),
            Memory::Pages(pages) => pages[self.len..len].copy_from_slice(bytes),
        }
        self.len = len;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Heap(Vec::new()));
        if let Memory::Pages(pages) = memory {
            if pages.len() <= IDLE {
                let gone = POOL.lock().give(pages);
                drop(gone);
            }
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(heap) => heap,
            Memory::Pages(pages) => &pages[..self.len],
        }
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

    fn pages(len: usize) -> MmapMut {
        MmapMut::map_anon(len).unwrap()
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let mut pool = Pool {
            idle: Vec::new(),
            bytes: 0,
        };
        assert!(pool.take(LEAST).is_none());
        pool.give(pages(8 << 20));
        assert!(pool.take(4 << 20).is_none(), "much too large");
        assert!(pool.take(9 << 20).is_none(), "too small");
        let again = pool.take((8 << 20) - (512 << 10)).unwrap();
        assert_eq!(again.len(), 8 << 20);
        assert_eq!(pool.bytes, 0);
        for len in [IDLE / 2, IDLE / 2, 2 << 20] {
            pool.give(pages(len));
        }
        assert_eq!(
            (pool.idle.len(), pool.bytes),
            (2, IDLE / 2 + (2 << 20)),
            "the oldest went"
        );
    }

    #[test]
    fn bytes_outlive_their_buffer() {
        let mut buffer = Buffer::with_capacity(3 << 20);
        assert!(buffer.capacity() >= 3 << 20);
        buffer.extend_from_slice(&[1, 2, 3]);
        let bytes = Bytes::from(buffer);
        let part = bytes.slice(1..);
        drop(bytes);
        let mut other = Buffer::with_capacity(3 << 20);
        other.extend_from_slice(&[9; 3]);
        assert_eq!(part, [2, 3][..]);
    }

    #[test]
    fn a_buffer_grows() {
        let mut buffer = Buffer::with_capacity(0);
        let mut all = Vec::new();
        for i in 0..40u8 {
            let piece = vec![i; 100_000];
            buffer.extend_from_slice(&piece);
            all.extend_from_slice(&piece);
            assert_eq!(buffer.as_ref(), all);
        }
        assert!(matches!(buffer.memory, Memory::Pages(_)));
        assert_eq!(Bytes::from(buffer), all);
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
