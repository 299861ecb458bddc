//! The body of an upload: pieces that are sent one after another without being joined in memory. A
//! piece lies in memory already, or is read from a file when its turn comes.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};

/// How much is read from sources at once (bytes): each read is a passage to another thread.
const READ: usize = 512 << 10;
/// Pieces of memory of at most this length (bytes) are copied into one chunk with their neighbours:
/// a pack has a few bytes before each block.
const COPIED: usize = 4 << 10;
/// Sources of at most this length (bytes) are read in one piece, so that they can check themselves.
pub const WHOLE: u64 = 4 << 20;

/// Bytes that are fetched when they are sent. Reading may block: it happens on a blocking thread.
pub trait Source: Send + Sync + fmt::Debug + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is not one byte in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `offset` on; both lie within the source. A source that is
    /// no longer than 4 MiB is read as a whole.
    ///
    /// # Errors
    /// The bytes cannot be read, or are known to be damaged.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A body to upload. Cloning it is cheap: the pieces are shared. Clones share the digest, so a body
/// is complete before it is cloned.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pieces: Vec<Piece>,
    len: u64,
    digest: Arc<OnceLock<blake3::Hash>>,
}

#[derive(Debug, Clone)]
enum Piece {
    Memory(Bytes),
    Source(Arc<dyn Source>),
}

impl Body {
    /// Appends bytes.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len() as u64;
        if !chunk.is_empty() {
            self.pieces.push(Piece::Memory(chunk));
        }
    }

    /// Appends bytes that are read when they are sent.
    pub fn push_source(&mut self, source: Arc<dyn Source>) {
        let len = source.len();
        self.len += len;
        if len > 0 {
            self.pieces.push(Piece::Source(source));
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not one byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The BLAKE3 digest of the bytes, once they were streamed or collected to the end.
    pub fn digest(&self) -> Option<blake3::Hash> {
        self.digest.get().copied()
    }

    /// The bytes in order, in chunks of at most `size` bytes (but never empty). Large pieces of
    /// memory are shared, not copied; small ones and sources are gathered into one chunk.
    pub fn stream(&self, size: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        stream::unfold(Cursor::new(self, size), |mut cursor| async move {
            let chunk = cursor.next().await?;
            Some((chunk, cursor))
        })
    }

    /// The whole body in one buffer.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    pub async fn collect(&self) -> io::Result<Bytes> {
        let mut cursor = Cursor::new(self, usize::MAX);
        let mut whole = BytesMut::new();
        while let Some(chunk) = cursor.next().await {
            whole.extend_from_slice(&chunk?);
        }
        Ok(whole.freeze())
    }
}

/// Where a stream of a body stands.
struct Cursor {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were read already, if it is a source.
    at: u64,
    /// Bytes to hand out next.
    ready: Bytes,
    size: usize,
    /// The digest of the bytes handed out so far, unless the body has one.
    hasher: Option<blake3::Hasher>,
    digest: Arc<OnceLock<blake3::Hash>>,
}

impl Cursor {
    fn new(body: &Body, size: usize) -> Self {
        Cursor {
            pieces: body.pieces.iter().cloned().collect(),
            at: 0,
            ready: Bytes::new(),
            size,
            hasher: body.digest().is_none().then(blake3::Hasher::new),
            digest: Arc::clone(&body.digest),
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ready.is_empty() {
            self.ready = match self.pieces.front()? {
                Piece::Memory(chunk) if chunk.len() > COPIED => {
                    let chunk = chunk.clone();
                    self.pieces.pop_front();
                    chunk
                }
                _ => match read(self.take_parts()).await {
                    Ok(chunk) => chunk,
                    Err(e) => {
                        self.pieces.clear();
                        self.hasher = None;
                        return Some(Err(e));
                    }
                },
            };
        }
        let chunk = self.ready.split_to(self.ready.len().min(self.size));
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
            if self.ready.is_empty() && self.pieces.is_empty() {
                let _ = self.digest.set(hasher.finalize());
            }
        }
        Some(Ok(chunk))
    }

    /// Takes as many small pieces of memory, and sources or parts of them, as are joined.
    fn take_parts(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut room = READ;
        while room > 0 {
            let (part, len) = match self.pieces.front() {
                Some(Piece::Memory(chunk)) if chunk.len() <= COPIED => {
                    (Part::Memory(chunk.clone()), chunk.len())
                }
                Some(Piece::Source(source)) => {
                    let left = source.len() - self.at;
                    let mut take = usize::try_from(left).unwrap_or(usize::MAX);
                    // Alone, or behind the few bytes that come before it.
                    let first = parts.iter().all(|part| matches!(part, Part::Memory(_)));
                    if take > room {
                        if !first {
                            break;
                        }
                        if source.len() > WHOLE {
                            take = room;
                        }
                    }
                    (Part::Source(Arc::clone(source), self.at, take), take)
                }
                _ => break,
            };
            room = room.saturating_sub(len);
            if matches!(&part, Part::Source(source, at, _) if at + (len as u64) < source.len()) {
                self.at += len as u64;
            } else {
                self.at = 0;
                self.pieces.pop_front();
            }
            parts.push(part);
        }
        parts
    }
}

/// Bytes that are joined with others into a chunk.
enum Part {
    Memory(Bytes),
    /// So many bytes of a source, from an offset on.
    Source(Arc<dyn Source>, u64, usize),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Memory(bytes) => bytes.len(),
            Part::Source(_, _, len) => *len,
        }
    }
}

async fn read(parts: Vec<Part>) -> io::Result<Bytes> {
    let is_memory = parts.iter().all(|part| matches!(part, Part::Memory(_)));
    let join = move || {
        let mut chunk = vec![0; parts.iter().map(Part::len).sum()];
        let mut rest = chunk.as_mut_slice();
        for part in parts {
            let (here, after) = rest.split_at_mut(part.len());
            match part {
                Part::Memory(bytes) => here.copy_from_slice(&bytes),
                Part::Source(source, offset, _) => source.read_at(offset, here)?,
            }
            rest = after;
        }
        Ok(Bytes::from(chunk))
    };
    if is_memory {
        return join();
    }
    let reading = tokio::task::spawn_blocking(join);
    reading.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

impl From<Vec<u8>> for Body {
    fn from(chunk: Vec<u8>) -> Self {
        Body::from(Bytes::from(chunk))
    }
}

impl From<&'static [u8]> for Body {
    fn from(chunk: &'static [u8]) -> Self {
        Body::from(Bytes::from_static(chunk))
    }
}

impl From<Bytes> for Body {
    fn from(chunk: Bytes) -> Self {
        let mut body = Body::default();
        body.push(chunk);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;

    #[derive(Debug)]
    struct Text(&'static [u8]);

    impl Source for Text {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            let from = offset as usize;
            let bytes = self.0.get(from..from + into.len());
            into.copy_from_slice(bytes.ok_or_else(|| io::Error::other("beyond the end"))?);
            Ok(())
        }
    }

    fn mixed() -> Body {
        let mut body = Body::from(&b"memory"[..]);
        for text in ["", "ab", "cdefgh", "i"] {
            body.push_source(Arc::new(Text(text.as_bytes())));
        }
        body.push(Bytes::new());
        body.push(Bytes::from_static(b"end"));
        body
    }

    #[tokio::test]
    async fn chunks_keep_the_order_and_gather_what_is_small() {
        let body = mixed();
        assert_eq!(body.len(), 18);
        let chunks: Vec<Bytes> = body.stream(4).try_collect().await.unwrap();
        let text: Vec<&[u8]> = chunks.iter().map(|c| &c[..]).collect();
        assert_eq!(
            text,
            [&b"memo"[..], b"ryab", b"cdef", b"ghie", b"nd"],
            "all are joined, and cut"
        );
        assert_eq!(body.collect().await.unwrap(), "memoryabcdefghiend");
    }

    #[tokio::test]
    async fn a_body_that_was_sent_to_its_end_has_a_digest() {
        let body = mixed();
        let sent = body.clone();
        let mut stream = Box::pin(body.stream(4));
        for _ in 0..4 {
            assert!(stream.try_next().await.unwrap().is_some());
            assert_eq!(sent.digest(), None);
        }
        assert!(stream.try_next().await.unwrap().is_some());
        assert_eq!(sent.digest(), Some(blake3::hash(b"memoryabcdefghiend")));
        let mut broken = Body::from(&b"x"[..]);
        broken.push_source(Arc::new(Broken));
        assert!(broken.collect().await.is_err());
        assert_eq!(broken.digest(), None);
    }

    /// A pack of large blocks with a few bytes before each.
    #[tokio::test]
    async fn large_pieces_of_memory_are_shared_and_sources_are_read_together() {
        let block = Bytes::from(vec![7; COPIED + 1]);
        let mut body = Body::default();
        for _ in 0..2 {
            body.push(Bytes::from_static(b"head"));
            body.push(block.clone());
        }
        let chunks: Vec<Bytes> = body.stream(usize::MAX).try_collect().await.unwrap();
        let lens: Vec<usize> = chunks.iter().map(Bytes::len).collect();
        assert_eq!(lens, [4, COPIED + 1, 4, COPIED + 1]);
        assert_eq!(chunks[1].as_ptr(), block.as_ptr());

        let mut body = Body::default();
        for _ in 0..1000 {
            body.push(Bytes::from_static(b"head"));
            body.push_source(Arc::new(Text(b"a small block of a journal")));
        }
        let chunks: Vec<Bytes> = body.stream(usize::MAX).try_collect().await.unwrap();
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].len() as u64, body.len());
        assert!(chunks[0].starts_with(b"heada small block of a journalhead"));
    }

    /// A source of more than one read, between memory.
    #[derive(Debug)]
    struct Long;

    impl Source for Long {
        fn len(&self) -> u64 {
            WHOLE + 1
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            for (at, byte) in (offset..).zip(into) {
                *byte = (at % 251) as u8;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_long_source_comes_in_parts() {
        let mut body = Body::from(&b"before"[..]);
        body.push_source(Arc::new(Long));
        body.push(Bytes::from_static(b"after"));
        let chunks: Vec<Bytes> = body.stream(usize::MAX).try_collect().await.unwrap();
        assert!(chunks.iter().all(|chunk| chunk.len() <= READ + 11));
        let whole = chunks.concat();
        let inner = whole
            .strip_prefix(b"before")
            .and_then(|w| w.strip_suffix(b"after"));
        let inner = inner.unwrap();
        assert_eq!(inner.len() as u64, WHOLE + 1);
        assert!(inner
            .iter()
            .enumerate()
            .all(|(at, b)| *b == (at % 251) as u8));
    }

    #[derive(Debug)]
    struct Broken;

    impl Source for Broken {
        fn len(&self) -> u64 {
            10
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("damaged"))
        }
    }

    #[tokio::test]
    async fn a_source_that_fails_ends_the_stream() {
        let mut body = Body::default();
        body.push_source(Arc::new(Broken));
        body.push(Bytes::from_static(b"after"));
        let chunks: Vec<_> = futures_util::StreamExt::collect(body.stream(4)).await;
        assert_eq!(chunks.len(), 1);
        assert!(chunks[0].is_err());
        assert!(body.collect().await.is_err());
    }
}
