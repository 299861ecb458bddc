//! The stream of blocks that `walrusds-kubo-datastore read` writes, as a source: the blocks of a
//! datastore whose library is in Go.
//!
//! ```text
//! 8 bytes            "WDSBLK1\n"
//! for each block:    u32 length of the key, u32 length of the value, key, value
//! at the end:        u32 0xFFFFFFFF, u64 number of blocks
//! ```
//!
//! Numbers are little-endian. A stream without its end is not whole.

use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use super::offer::{Content, Offer, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

const MAGIC: [u8; 8] = *b"WDSBLK1\n";
const END: u32 = u32::MAX;
/// The buffer of the pipe (bytes).
const BUFFER: usize = 1 << 20;
/// What is kept of the program's errors (bytes).
const MOST_SAID: usize = 64 << 10;

/// The name of the program.
const PROGRAM: &str = "walrusds-kubo-datastore";
/// The exit code for "some blocks could not be read, all others were".
const SOME_UNREADABLE: i32 = 3;
/// The exit code for "another program uses the repo".
const IN_USE: i32 = 4;
/// How the program names a block that it cannot read.
const UNREADABLE: &str = ": it cannot be read: ";

/// The blocks of a stream.
pub struct FramedBlocks {
    input: BufReader<Box<dyn Read + Send>>,
    begun: bool,
    /// Whether the last read began at the end of the input, between two blocks.
    between: bool,
    blocks: u64,
    program: Option<Program>,
    /// What the program could not read, told behind its last block.
    unread: Vec<Offer>,
    ended: bool,
}

/// The program that writes a stream.
struct Program {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl FramedBlocks {
    /// The blocks of a stream that is there.
    pub fn new(input: impl Read + Send + 'static) -> FramedBlocks {
        FramedBlocks {
            input: BufReader::with_capacity(BUFFER, Box::new(input)),
            begun: false,
            between: false,
            blocks: 0,
            program: None,
            unread: Vec::new(),
            ended: false,
        }
    }

    /// Starts the program on a repo. It is looked for beside this program, and on `PATH`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it is not there, or cannot be started.
    pub fn of_repo(repo: &Path) -> Result<FramedBlocks> {
        let program = find()?;
        let mut command = Command::new(&program);
        command.arg("read").arg("--repo").arg(repo);
        Self::of_program(command)
    }

    /// Starts a program that writes a stream to its standard output.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it cannot be started.
    pub fn of_program(mut command: Command) -> Result<FramedBlocks> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |e: io::Error| {
            let text = format!("{name} cannot be started: {e}");
            Error::new(ErrorKind::Config, text).caused_by(e)
        };
        let mut child = command.spawn().map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut program = Program {
            child,
            said: Arc::clone(&said),
            listener: None,
        };
        if let Some(err) = err {
            let listener = std::thread::Builder::new()
                .name("walrusds-import".to_owned())
                .spawn(move || listen(err, &said));
            program.listener = Some(listener.map_err(failed)?);
        }
        let out: Box<dyn Read + Send> = match out {
            Some(out) => Box::new(out),
            None => Box::new(io::empty()),
        };
        let mut blocks = FramedBlocks::new(out);
        blocks.program = Some(program);
        Ok(blocks)
    }

    /// The next block. `None`: the stream has told its end.
    fn frame(&mut self) -> Result<Option<Offer>> {
        self.between = self.input.fill_buf().is_ok_and(<[u8]>::is_empty);
        if !self.begun {
            let magic: [u8; 8] = self.array()?;
            if magic != MAGIC {
                let text = format!(
                    "it begins with {:?}, and {:?} is expected: is it what {PROGRAM} writes, in this version?",
                    String::from_utf8_lossy(&magic),
                    String::from_utf8_lossy(&MAGIC)
                );
                return Err(bad(text));
            }
            self.begun = true;
            self.between = self.input.fill_buf().is_ok_and(<[u8]>::is_empty);
        }
        let key_len = u32::from_le_bytes(self.array()?);
        if key_len == END {
            let told = u64::from_le_bytes(self.array()?);
            return match told == self.blocks {
                true => Ok(None),
                false => Err(bad(format!(
                    "{} blocks came, and its end tells of {told}",
                    self.blocks
                ))),
            };
        }
        let value_len = u32::from_le_bytes(self.array()?);
        let (key_len, value_len) = (key_len as usize, value_len as usize);
        if key_len > MAX_KEY_BYTES || value_len > MAX_VALUE_BYTES {
            return Err(bad(format!(
                "a block of {value_len} bytes under a key of {key_len}: at most {MAX_VALUE_BYTES} and {MAX_KEY_BYTES} are expected"
            )));
        }
        let key = String::from_utf8(self.bytes(key_len)?)
            .map_err(|e| bad("a key that is no text".to_owned()).caused_by(e))?;
        let value = self.bytes(value_len)?;
        self.blocks += 1;
        Ok(Some(Offer::here(key, Bytes::from(value))))
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len.min(4 << 20));
        let read = (&mut self.input).take(len as u64).read_to_end(&mut bytes);
        match read {
            Ok(read) if read == len => Ok(bytes),
            Ok(_) => Err(bad(format!("it ends after {} blocks", self.blocks))),
            Err(e) => Err(Error::new(ErrorKind::Disk, e.to_string()).caused_by(e)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes(N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| bad("it is cut".to_owned()))
    }

    /// Sorts the end of a stream by what its program says of it.
    fn end(&mut self, told: Result<()>) -> Result<()> {
        self.ended = true;
        let Some(mut program) = self.program.take() else {
            return told.map_err(|e| e.context("the stream of blocks is not whole"));
        };
        // It may still be writing what is not understood here: it ends when its pipe is closed.
        self.input = BufReader::new(Box::new(io::empty()));
        let status = program
            .child
            .wait()
            .map_err(|e| Error::new(ErrorKind::Disk, format!("{PROGRAM}: {e}")).caused_by(e))?;
        if let Some(listener) = program.listener.take() {
            let _ = listener.join();
        }
        let said = String::from_utf8_lossy(&program.said.lock()).into_owned();
        match (told, status.code()) {
            (Ok(()), Some(0)) => Ok(()),
            // It leaves the end out then. A stream that breaks off elsewhere lacks more.
            (Err(_), Some(SOME_UNREADABLE)) if self.between => {
                self.unread = unread(&said);
                Ok(())
            }
            (Err(e), Some(SOME_UNREADABLE)) => {
                Err(e.context(format!("{PROGRAM}: the stream of blocks is not whole")))
            }
            (told, code) => {
                let why = match (said.trim(), told) {
                    ("", Err(e)) => e.message().to_owned(),
                    ("", Ok(())) => format!("it ended with {status}"),
                    (said, _) => said.to_owned(),
                };
                let text = format!("{PROGRAM}: {why}");
                Err(match code {
                    Some(IN_USE) => Error::retryable(ErrorKind::Locked, text),
                    _ => Error::new(ErrorKind::Disk, text),
                })
            }
        }
    }
}

impl Source for FramedBlocks {
    fn next(&mut self) -> Result<Option<Offer>> {
        if !self.ended {
            match self.frame() {
                Ok(Some(offer)) => return Ok(Some(offer)),
                Ok(None) => self.end(Ok(()))?,
                Err(e) => self.end(Err(e))?,
            }
        }
        Ok(self.unread.pop())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // After its end this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps the beginning of what the program says, and reads on so that it is not held up.
fn listen(mut err: impl Read, said: &Mutex<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = err.read(&mut piece) {
        let mut said = said.lock();
        let room = MOST_SAID.saturating_sub(said.len());
        said.extend_from_slice(&piece[..read.min(room)]);
    }
}

/// The blocks that the program could not read: it names the first ones, and tells how many there
/// are.
fn unread(said: &str) -> Vec<Offer> {
    let offer = |key: &str, why: &str| Offer::later(key, 0, Content::Unreadable(why.to_owned()));
    let mut offers = Vec::new();
    let mut all = 0;
    for line in said.lines() {
        if let Some((key, why)) = line.split_once(UNREADABLE) {
            // Its own name for a block has the prefix of the mount.
            let key = key.rfind('/').map_or(key, |at| &key[at..]);
            offers.push(offer(key, why));
        } else if let Some(rest) = line.strip_prefix("error: ") {
            let number = rest.split_once(" blocks cannot be read");
            all = number.and_then(|(n, _)| n.parse().ok()).unwrap_or(all);
        }
    }
    // An exit code that says so means one at least.
    let all = all.max(1);
    let more = (offers.len()..all).map(|_| offer("(not named)", "it cannot be read"));
    let mut more: Vec<Offer> = more.collect();
    more.append(&mut offers);
    more
}

/// Finds the program.
fn find() -> Result<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = beside.into_iter().chain(std::env::split_paths(&path));
    let found = dirs.find_map(|dir| {
        let file = dir.join(PROGRAM);
        file.is_file().then_some(file)
    });
    found.ok_or_else(|| {
        let text = format!(
            "the program {PROGRAM} is needed to read this datastore, and is neither beside walrusds nor on PATH: \
             `make kubo-datastore` builds it (with Go) and `make install-cli` installs it"
        );
        Error::new(ErrorKind::Config, text)
    })
}

fn bad(text: String) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}
