//! Contents and metadata on disk.
//!
//! `blobs/<hex ID>` holds a content, `journal.jsonl` one change per line. A content is complete
//! and synced before the line that names it is written, and a line is synced before the change is
//! acknowledged, so a kill at any point loses nothing that was answered: a torn last line is
//! dropped, and contents that no line names are swept at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blob_id::BlobId;
use crate::object_id::ObjectId;
use crate::registration::{Anchor, FreeStorage, Registration};

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    Clock(Anchor),
    Register {
        blob_id: BlobId,
        size: u64,
        registration: Registration,
    },
    Extend {
        blob_id: BlobId,
        object_id: ObjectId,
        end_epoch: u32,
    },
    Attributes {
        object_id: ObjectId,
        attributes: Vec<(String, String)>,
    },
    Delete {
        blob_id: BlobId,
    },
    /// One registration of a blob was deleted, and its storage is free again.
    Deregister {
        blob_id: BlobId,
        object_id: ObjectId,
        storage: FreeStorage,
    },
    /// Storage that is free, in a journal that is written anew.
    Free(FreeStorage),
    /// Storage that is forgotten.
    Forget {
        storage_id: ObjectId,
    },
}

#[derive(Debug)]
pub(crate) struct Disk {
    blobs: PathBuf,
    root: PathBuf,
    journal: Mutex<Option<File>>,
    temporary: AtomicU64,
}

impl Disk {
    /// Opens the directory, creating it if need be, and reads back the journal.
    pub fn open(root: &Path) -> io::Result<(Self, Vec<Record>)> {
        let blobs = root.join("blobs");
        fs::create_dir_all(&blobs)?;
        let mut records = Vec::new();
        match File::open(root.join("journal.jsonl")) {
            Ok(file) => {
                let mut reader = BufReader::new(file);
                let mut line = Vec::new();
                loop {
                    line.clear();
                    if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                        break; // the end, or a torn last line that was never acknowledged
                    }
                    let record = serde_json::from_slice(&line).map_err(|error| {
                        let at = records.len() + 1;
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("journal.jsonl, line {at}: {error}"),
                        )
                    })?;
                    records.push(record);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let disk = Disk {
            blobs,
            root: root.to_owned(),
            journal: Mutex::new(None),
            temporary: AtomicU64::new(0),
        };
        Ok((disk, records))
    }

    /// Writes the journal anew from what is alive, sweeps stray contents and begins to append.
    pub fn start(&self, records: &[Record]) -> io::Result<()> {
        let path = self.root.join("journal.jsonl");
        let fresh = self.root.join("journal.new");
        let mut writer = BufWriter::new(File::create(&fresh)?);
        let mut known = std::collections::HashSet::new();
        for record in records {
            writer.write_all(&line(record)?)?;
            if let Record::Register { blob_id, .. } = record {
                known.insert(name(blob_id));
            }
        }
        writer.into_inner()?.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(&self.root)?.sync_all()?;
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let stray = entry
                .file_name()
                .to_str()
                .is_none_or(|n| !known.contains(n));
            if stray {
                fs::remove_file(entry.path())?;
            }
        }
        *self.journal.lock() = Some(OpenOptions::new().append(true).open(&path)?);
        Ok(())
    }

    pub fn append(&self, record: &Record) -> io::Result<()> {
        let line = line(record)?;
        let mut journal = self.journal.lock();
        let file = journal.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&line)?;
        file.sync_data()
    }

    /// Writes a content, unless it is there already.
    pub fn write(&self, id: &BlobId, data: &[u8]) -> io::Result<()> {
        if self.has(id, data.len() as u64) {
            return Ok(());
        }
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.blobs.join(format!("{}.{number}.tmp", name(id)));
        let mut file = File::create(&temporary)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path(id))?;
        File::open(&self.blobs)?.sync_all()
    }

    pub fn has(&self, id: &BlobId, size: u64) -> bool {
        fs::metadata(self.path(id)).is_ok_and(|m| m.is_file() && m.len() == size)
    }

    pub fn read(&self, id: &BlobId, start: u64, len: u64) -> io::Result<Bytes> {
        let mut file = File::open(self.path(id))?;
        if start > 0 {
            file.seek(SeekFrom::Start(start))?;
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut data = Vec::with_capacity(len);
        file.take(len as u64).read_to_end(&mut data)?;
        if data.len() != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(data.into())
    }

    pub fn delete(&self, id: &BlobId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &BlobId) -> PathBuf {
        self.blobs.join(name(id))
    }
}

/// Hex, since blob IDs that differ in case only are one file name on some systems.
fn name(id: &BlobId) -> String {
    id.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}
