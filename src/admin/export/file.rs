//! Writing a CAR file, on a thread of its own.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::target::{key_of, Cid};
use super::CarVersion;
use crate::error::{Error, ErrorKind, Result};
use crate::multihash::push_varint;
use crate::upload::car::{file_header, Sections, DATA_AT};

/// Blocks that wait for the disk at most.
const WAITING: usize = 8;

/// How often a file may get its name while another export waits for it.
const TRIES: usize = 100;

/// What is written at once (bytes).
const BUFFER: usize = 1 << 20;

/// Where a CAR is written to.
pub struct Target(Place);

enum Place {
    File(PathBuf),
    Stream(Box<dyn Write + Send>),
}

impl Target {
    /// A new file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if something has this name already, or the name is none.
    pub fn file(path: impl Into<PathBuf>) -> Result<Target> {
        let path = path.into();
        if path.file_name().is_none() {
            let text = format!("{}: the name of a file is expected", path.display());
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(ErrorKind::InvalidArgument, there(&path)));
        }
        Ok(Target(Place::File(path)))
    }

    /// A stream, such as standard output, which takes a CARv1 only.
    pub fn stream(stream: impl Write + Send + 'static) -> Target {
        Target(Place::Stream(Box::new(stream)))
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Place::File(path) => f.debug_tuple("Target").field(path).finish(),
            Place::Stream(_) => f.write_str("Target(stream)"),
        }
    }
}

enum Message {
    Block(Cid, Bytes),
    End,
}

/// A file that was written.
#[derive(Debug)]
pub(super) struct Written {
    /// `None`: a stream.
    pub(super) path: Option<PathBuf>,
    /// Its length (bytes).
    pub(super) len: u64,
}

/// The way of blocks to the thread that writes. Dropped without [`end`](Self::end), it leaves no
/// file, and cuts a stream within a section.
pub(super) struct Sink {
    sender: mpsc::Sender<Message>,
    thread: JoinHandle<Result<Option<Written>>>,
}

impl Sink {
    /// Begins a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a stream of version 2, [`ErrorKind::Disk`].
    pub(super) fn begin(target: Target, roots: &[Cid], version: CarVersion) -> Result<Sink> {
        let out = Out::open(target.0, version)?;
        let header = roots_header(roots)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let thread = tokio::task::spawn_blocking(move || {
            let begun = Car::begin(out, &header, version)?;
            begun.write(receiver)
        });
        Ok(Sink { sender, thread })
    }

    /// Gives a block to be written. False: the thread has ended with an error, which
    /// [`end`](Self::end) tells.
    pub(super) async fn block(&self, cid: Cid, bytes: Bytes) -> bool {
        self.sender.send(Message::Block(cid, bytes)).await.is_ok()
    }

    /// Ends the file and gives it its name.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`]: it could not be written.
    pub(super) async fn end(self) -> Result<Option<Written>> {
        // If the thread has ended already, it tells why.
        let _ = self.sender.send(Message::End).await;
        self.close().await
    }

    /// Gives the file up.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub(super) async fn close(self) -> Result<Option<Written>> {
        drop(self.sender);
        self.thread
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("writing a CAR: {e}")))?
    }
}

/// The header of a CARv1, with its length before it.
fn roots_header(roots: &[Cid]) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Header<'a> {
        roots: &'a [Cid],
        version: u64,
    }
    let header = serde_ipld_dagcbor::to_vec(&Header { roots, version: 1 })
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the header of a CAR: {e}")))?;
    let mut out = Vec::new();
    push_varint(&mut out, header.len() as u64);
    out.extend(header);
    Ok(out)
}

/// Where bytes go, and how they are named in errors.
struct Out {
    name: String,
    to: To,
}

enum To {
    File {
        file: File,
        path: PathBuf,
        incomplete: Incomplete,
    },
    Stream(Box<dyn Write + Send>),
}

/// A file that is removed unless it becomes whole.
struct Incomplete(Option<PathBuf>);

impl Drop for Incomplete {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Out {
    fn open(place: Place, version: CarVersion) -> Result<Out> {
        match place {
            Place::Stream(_) if version == CarVersion::V2 => Err(Error::new(
                ErrorKind::InvalidArgument,
                "a CAR of version 2 begins with its length, so that it cannot be written to a stream: name a file, or take version 1",
            )),
            Place::Stream(stream) => Ok(Out {
                name: "standard output".to_owned(),
                to: To::Stream(stream),
            }),
            Place::File(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".incomplete");
                let name = PathBuf::from(name);
                let file = alone(&name)?;
                if path.symlink_metadata().is_ok() {
                    // Another export has ended meanwhile.
                    return Err(Error::new(ErrorKind::InvalidArgument, there(&path)));
                }
                Ok(Out {
                    name: name.display().to_string(),
                    to: To::File {
                        file,
                        path,
                        incomplete: Incomplete(Some(name)),
                    },
                })
            }
        }
    }
}

fn there(path: &Path) -> String {
    format!(
        "{}: there is something of this name already; give another name, or remove it",
        path.display()
    )
}

/// Opens a file that is not whole yet, empty and locked: two exports in one file would mix.
///
/// # Errors
/// [`ErrorKind::Locked`]: another export writes it. [`ErrorKind::Disk`].
fn alone(name: &Path) -> Result<File> {
    let failed = |e: &std::io::Error| disk(&name.display().to_string(), e);
    let busy = || {
        let text = format!(
            "{}: another export writes this file: wait for its end, or give another name",
            name.display()
        );
        Error::new(ErrorKind::Locked, text)
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    for _ in 0..TRIES {
        let file = options.open(name).map_err(|e| failed(&e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(e)) => return Err(failed(&e)),
            Ok(()) => {}
        }
        // The other one may have ended since the file was opened, which has another name then.
        let locked = file.metadata().map_err(|e| failed(&e))?;
        let named = std::fs::metadata(name);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            file.set_len(0).map_err(|e| failed(&e))?;
            return Ok(file);
        }
    }
    Err(busy())
}

fn disk(name: &str, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Disk, format!("{name}: {e}"))
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.to {
            To::File { file, .. } => file.write(bytes),
            To::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.to {
            To::File { file, .. } => file.flush(),
            To::Stream(stream) => stream.flush(),
        }
    }
}

/// A CAR that is being written.
struct Car {
    out: BufWriter<Out>,
    /// The length of the CARv1 so far (bytes).
    data: u64,
    /// What the index is made of; `None` in version 1.
    sections: Option<Sections>,
    /// Whether it holds all sections.
    all_indexed: bool,
}

impl Car {
    fn begin(out: Out, header: &[u8], version: CarVersion) -> Result<Car> {
        let mut car = Car {
            out: BufWriter::with_capacity(BUFFER, out),
            data: 0,
            sections: (version == CarVersion::V2).then(Sections::default),
            all_indexed: true,
        };
        if car.sections.is_some() {
            // The place of the header, whose numbers are known at the end.
            car.put(&file_header(0, false))?;
        }
        car.put(header)?;
        car.data = header.len() as u64;
        Ok(car)
    }

    fn write(mut self, mut receiver: mpsc::Receiver<Message>) -> Result<Option<Written>> {
        loop {
            match receiver.blocking_recv() {
                Some(Message::Block(cid, bytes)) => self.block(&cid, &bytes)?,
                Some(Message::End) => return self.end().map(Some),
                None => return self.cut().map(|()| None),
            }
        }
    }

    fn block(&mut self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        let name = cid.to_bytes();
        let mut head = Vec::with_capacity(name.len() + 9);
        push_varint(&mut head, (name.len() + bytes.len()) as u64);
        head.extend(name);
        if let Some(sections) = &mut self.sections {
            self.all_indexed &= sections.add(&key_of(cid, ""), self.data);
        }
        self.put(&head)?;
        self.put(bytes)?;
        self.data += (head.len() + bytes.len()) as u64;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let put = self.out.write_all(bytes);
        put.map_err(|e| disk(&self.out.get_ref().name, &e))
    }

    fn end(mut self) -> Result<Written> {
        let mut len = self.data;
        let header = match self.sections.take() {
            Some(sections) => {
                let index = sections.index();
                self.put(&index)?;
                len += DATA_AT + index.len() as u64;
                Some(file_header(self.data, self.all_indexed))
            }
            None => None,
        };
        let name = self.out.get_ref().name.clone();
        let mut out = self.out.into_inner().map_err(|e| disk(&name, e.error()))?;
        let path = match &mut out.to {
            To::Stream(stream) => stream.flush().map(|()| None),
            To::File {
                file,
                path,
                incomplete,
            } => complete(file, header.as_deref(), incomplete, path).map(Some),
        };
        let path = path.map_err(|e| disk(&name, &e))?;
        Ok(Written { path, len })
    }

    /// Ends a stream so that it is no CAR: with the head of a section and nothing behind it.
    fn cut(mut self) -> Result<()> {
        if matches!(self.out.get_ref().to, To::Stream(_)) {
            self.put(&[0x7f])?;
            let flushed = self.out.flush();
            return flushed.map_err(|e| disk(&self.out.get_ref().name, &e));
        }
        Ok(())
    }
}

/// Writes the header again, and gives the file its name when all of it is on the disk.
fn complete(
    file: &mut File,
    header: Option<&[u8]>,
    incomplete: &mut Incomplete,
    path: &Path,
) -> std::io::Result<PathBuf> {
    if let Some(header) = header {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(header)?;
    }
    file.sync_all()?;
    if let Some(from) = &incomplete.0 {
        std::fs::rename(from, path)?;
    }
    incomplete.0 = None;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(path.to_owned())
}
