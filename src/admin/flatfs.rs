//! The blocks of a Kubo repo with flatfs (`go-ds-flatfs`): a file for each block, in directories
//! that a function of the key chooses.
//!
//! ```text
//! blocks/SHARDING             /repo/flatfs/shard/v1/next-to-last/2
//! blocks/X3/CIQ…X3Y.data      a block: its file is named after its key, without the stroke
//! blocks/X3/put-123           what an old flatfs has left behind; no block
//! blocks/.temp/               files that are being written; a node empties it at its start
//! blocks/_README, blocks/diskUsage.cache
//! ```
//!
//! A reader needs no lock: files come and go by renaming, so that a file is whole or not there. A
//! writer does the same, and may work beside a node.
//!
//! Symbolic links are followed, as flatfs does: a directory, or a block, may lie on another disk. A
//! link to nothing is an error, never a block that is not there: its disk may be away.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// The file that names the function.
const SHARDING: &str = "SHARDING";
/// What its text begins with.
const VERSION: &str = "/repo/flatfs/shard/v1/";
/// The end of a block's file name.
const EXTENSION: &str = ".data";
/// The directory of files that are being written.
const TEMP: &str = ".temp";
/// The most letters of a directory's name.
const MOST_LETTERS: usize = 64;

/// How flatfs chooses the directory of a block, by the letters of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharding {
    /// The first letters.
    Prefix(usize),
    /// The last letters.
    Suffix(usize),
    /// The letters before the last one. Kubo's own choice is two.
    NextToLast(usize),
}

impl Sharding {
    /// Reads the text of the file `SHARDING`, or of `shardFunc` in Kubo's config.
    pub fn parse(text: &str) -> Option<Sharding> {
        let rest = text.trim().strip_prefix(VERSION)?;
        let (name, letters) = rest.split_once('/')?;
        let letters = letters.parse().ok();
        let letters = letters.filter(|n| (1..=MOST_LETTERS).contains(n))?;
        match name {
            "prefix" => Some(Sharding::Prefix(letters)),
            "suffix" => Some(Sharding::Suffix(letters)),
            "next-to-last" => Some(Sharding::NextToLast(letters)),
            _ => None,
        }
    }

    /// The directory of a key (without its stroke); flatfs fills up short keys with underscores.
    fn of(self, name: &str) -> String {
        let (letters, skipped) = match self {
            Sharding::Prefix(n) => {
                let padded = format!("{name}{}", "_".repeat(n));
                return padded[..n].to_owned();
            }
            Sharding::Suffix(n) => (n, 0),
            Sharding::NextToLast(n) => (n, 1),
        };
        let padded = format!("{}{name}", "_".repeat(letters + skipped));
        let end = padded.len() - skipped;
        padded[end - letters..end].to_owned()
    }
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sharding::Prefix(n) => write!(f, "{VERSION}prefix/{n}"),
            Sharding::Suffix(n) => write!(f, "{VERSION}suffix/{n}"),
            Sharding::NextToLast(n) => write!(f, "{VERSION}next-to-last/{n}"),
        }
    }
}

/// A block that a directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlatfsBlock {
    /// Its datastore key (`/CIQ…`).
    pub key: String,
    /// The length of its file (bytes).
    pub len: u64,
}

impl FlatfsBlock {
    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{}{EXTENSION}", self.key.trim_start_matches('/'))
    }
}

/// Blocks and bytes of a flatfs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlatfsSize {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether every directory was counted; else the numbers were extrapolated.
    pub exact: bool,
}

/// A directory of blocks. Its calls wait for the disk.
#[derive(Debug, Clone)]
pub struct Flatfs {
    dir: PathBuf,
    sharding: Sharding,
}

impl Flatfs {
    /// Opens the blocks directory of a repo, or the repo.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a directory that is none of flatfs.
    pub fn open(path: &Path) -> Result<Flatfs> {
        let inside = path.join("blocks");
        let dir = match inside.join(SHARDING).exists() {
            true => inside,
            false => path.to_owned(),
        };
        let bad = |text: String| {
            let text = format!(
                "{}: {text}; expected the blocks directory of a Kubo repo with flatfs (it has a file SHARDING), or the repo",
                path.display()
            );
            Error::new(ErrorKind::Config, text)
        };
        let text = fs::read_to_string(dir.join(SHARDING))
            .map_err(|e| bad(format!("{SHARDING}: {e}")).caused_by(e))?;
        let sharding = Sharding::parse(&text).ok_or_else(|| {
            let shown: String = text.trim().chars().take(80).collect();
            bad(format!(
                "{SHARDING} holds {shown:?}, and {VERSION}next-to-last/2 or the like is expected"
            ))
        })?;
        Ok(Flatfs { dir, sharding })
    }

    /// Makes a flatfs, as Kubo does. A directory that is one already is opened.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: the directory holds something else, or has another function.
    /// [`ErrorKind::Disk`].
    pub fn create(dir: &Path, sharding: Sharding) -> Result<Flatfs> {
        match fs::create_dir(dir) {
            Ok(()) => {
                let parent = dir.parent();
                let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                sync_dir(parent).map_err(|e| disk(parent, e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(disk(dir, e)),
        }
        if dir.join(SHARDING).exists() {
            let found = Flatfs::open(dir)?;
            return match found.sharding == sharding {
                true => Ok(found),
                false => Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "{} is a flatfs of {}, and {sharding} is asked for",
                        dir.display(),
                        found.sharding
                    ),
                )),
            };
        }
        // In one step, so that a run that is killed leaves no half of it behind.
        let temp = format!(".{SHARDING}.");
        for entry in fs::read_dir(dir).map_err(|e| disk(dir, e))? {
            let name = entry.map_err(|e| disk(dir, e))?.file_name();
            if name.as_encoded_bytes().starts_with(temp.as_bytes()) {
                // A run that was killed has left it behind.
                continue;
            }
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{} holds files and no {SHARDING}: name an empty directory, or one of flatfs",
                    dir.display()
                ),
            ));
        }
        let file = dir.join(SHARDING);
        let temp = dir.join(format!("{temp}{}", std::process::id()));
        let written = write_synced(&temp, format!("{sharding}\n").as_bytes())
            .and_then(|()| fs::rename(&temp, &file))
            .and_then(|()| sync_dir(dir));
        written.map_err(|e| disk(&file, e))?;
        Ok(Flatfs {
            dir: dir.to_owned(),
            sharding,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The function that chooses the directory of a block.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The names of the directories that may hold blocks, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub fn shards(&self) -> Result<Vec<String>> {
        let read = |entry: io::Result<fs::DirEntry>| -> io::Result<Option<String>> {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                return Ok(None);
            };
            if name.starts_with('.') {
                return Ok(None);
            }
            let kind = entry.file_type()?;
            let is_shard = match kind.is_symlink() {
                true => followed(&entry.path())?.is_dir(),
                false => kind.is_dir(),
            };
            Ok(is_shard.then_some(name))
        };
        let entries = fs::read_dir(&self.dir).map_err(|e| disk(&self.dir, e))?;
        let names = entries.filter_map(|entry| read(entry).transpose());
        let names: io::Result<Vec<String>> = names.collect();
        let mut names = names.map_err(|e| disk(&self.dir, e))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Whether the directory is still one of flatfs.
    pub(crate) fn is_there(&self) -> Result<()> {
        let path = self.dir.join(SHARDING);
        fs::metadata(&path).map(drop).map_err(|e| disk(&path, e))
    }

    /// The blocks of a directory, in the order of their keys. Files that are no blocks are left
    /// out, and so are files that vanish meanwhile, and a directory that does. A block whose file
    /// is a symbolic link to nothing has the length 0; reading it tells why.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub fn list(&self, shard: &str) -> Result<Vec<FlatfsBlock>> {
        let dir = self.dir.join(shard);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| disk(&dir, e))?,
        };
        let mut blocks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| disk(&dir, e))?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(EXTENSION));
            let Some(name) = name.filter(|name| is_name(name)) else {
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) if metadata.is_symlink() => fs::metadata(entry.path()),
                metadata => metadata,
            };
            let len = match metadata {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => match is_link(&entry.path()) {
                    true => 0,
                    false => continue,
                },
                Err(e) => return Err(disk(&entry.path(), e)),
            };
            blocks.push(FlatfsBlock {
                key: format!("/{name}"),
                len,
            });
        }
        blocks.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(blocks)
    }

    /// Blocks and bytes, by at most so many directories, evenly chosen: keys are spread evenly, so
    /// the others hold about as many.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub fn size(&self, most_shards: usize) -> Result<FlatfsSize> {
        let shards = self.shards()?;
        let step = shards.len().div_ceil(most_shards.max(1)).max(1);
        let (mut blocks, mut bytes, mut counted) = (0, 0, 0);
        for shard in shards.iter().step_by(step) {
            let list = self.list(shard)?;
            blocks += list.len() as u64;
            bytes += list.iter().map(|block| block.len).sum::<u64>();
            counted += 1;
        }
        let all = |n: u64| match counted {
            0 => 0,
            counted => (n as f64 * (shards.len() as f64 / counted as f64)) as u64,
        };
        let exact = step == 1;
        Ok(FlatfsSize {
            blocks: if exact { blocks } else { all(blocks) },
            bytes: if exact { bytes } else { all(bytes) },
            exact,
        })
    }

    /// The file of a block, whether or not it is there. `None` for a key that flatfs does not take.
    pub fn path_of(&self, key: &str) -> Option<PathBuf> {
        let name = key.strip_prefix('/').filter(|name| is_name(name))?;
        let shard = self.dir.join(self.sharding.of(name));
        Some(shard.join(format!("{name}{EXTENSION}")))
    }

    /// Reads a block. `None`: there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let Some(path) = self.path_of(key) else {
            return Ok(None);
        };
        read_block(&path).map_err(|e| disk(&path, e))
    }

    /// Whether a block is there, and how long it is (bytes).
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub fn size_of(&self, key: &str) -> Result<Option<u64>> {
        let Some(path) = self.path_of(key) else {
            return Ok(None);
        };
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(disk(&path, e)),
        }
    }

    /// Writes blocks. When it returns, they survive a power cut: each file was synced before it got
    /// its name, and each directory that changed was synced after that. Blocks that are there are
    /// replaced.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a key that flatfs does not take; [`ErrorKind::Disk`].
    /// Some blocks may be written then; the same call may be made again.
    pub fn put(&self, blocks: &[(String, Bytes)]) -> Result<()> {
        let mut changed = BTreeSet::new();
        for (key, value) in blocks {
            let path = self.path_of(key).ok_or_else(|| {
                let text =
                    format!("flatfs takes no key {key:?}: expected / and then 0-9 A-Z + - _ =");
                Error::new(ErrorKind::InvalidArgument, text)
            })?;
            let shard = path.parent().unwrap_or(&self.dir);
            match fs::create_dir(shard) {
                Ok(()) => {
                    changed.insert(self.dir.clone());
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(disk(shard, e)),
            }
            self.write(&path, value).map_err(|e| disk(&path, e))?;
            changed.insert(shard.to_owned());
        }
        for dir in &changed {
            sync_dir(dir).map_err(|e| disk(dir, e))?;
        }
        Ok(())
    }

    /// Writes a file, and gives it its name when it is synced.
    fn write(&self, path: &Path, value: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "walrusds-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Relaxed)
        );
        let dir = self.dir.join(TEMP);
        let temp = dir.join(name);
        let written = match write_synced(&temp, value) {
            // It is made when it is needed; a node that starts makes it anew.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&dir)?;
                write_synced(&temp, value)
            }
            written => written,
        };
        let named = written.and_then(|()| fs::rename(&temp, path));
        if named.is_err() {
            let _ = fs::remove_file(&temp);
        }
        named
    }
}

/// Reads a block's file. `None`: there is none.
pub(crate) fn read_block(path: &Path) -> io::Result<Option<Bytes>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_link(path) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(leads_nowhere(path)),
        Err(e) => return Err(e),
    };
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut value = Vec::with_capacity(len);
    file.read_to_end(&mut value)?;
    Ok(Some(value.into()))
}

/// Whether flatfs takes this as the name of a block. It leads to no other directory.
fn is_name(name: &str) -> bool {
    let takes = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase() || b"+-_=".contains(&b);
    !name.is_empty() && name.bytes().all(takes)
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.is_symlink())
}

/// What a symbolic link leads to.
fn followed(path: &Path) -> io::Result<fs::Metadata> {
    fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => leads_nowhere(path),
        _ => e,
    })
}

fn leads_nowhere(path: &Path) -> io::Error {
    let text = format!(
        "the symbolic link {} leads to nothing: is its disk mounted?",
        path.display()
    );
    io::Error::other(text)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn disk(path: &Path, e: io::Error) -> Error {
    Error::new(ErrorKind::Disk, format!("{}: {e}", path.display())).caused_by(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_keys() {
        let parse = |text: &str| Sharding::parse(&format!("{VERSION}{text}"));
        assert_eq!(parse("next-to-last/2\n"), Some(Sharding::NextToLast(2)));
        assert_eq!(parse("prefix/3").unwrap().of("CIQABCDE"), "CIQ");
        assert_eq!(parse("suffix/2").unwrap().of("CIQABCDE"), "DE");
        assert_eq!(parse("next-to-last/2").unwrap().of("CIQABCDE"), "CD");
        assert_eq!(Sharding::NextToLast(3).of("AB"), "__A");
        assert_eq!(Sharding::Prefix(3).of("A"), "A__");
        for wrong in [
            "",
            "middle/2",
            "prefix/0",
            "prefix/x",
            "prefix",
            "prefix/9999",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for text in ["prefix/3", "suffix/2", "next-to-last/2"] {
            assert_eq!(parse(text).unwrap().to_string(), format!("{VERSION}{text}"));
        }
    }

    #[test]
    fn blocks_are_written_and_found() {
        let repo = tempfile::tempdir().unwrap();
        let dir = repo.path().join("blocks");
        let flatfs = Flatfs::create(&dir, Sharding::NextToLast(2)).unwrap();
        let blocks: Vec<(String, Bytes)> = (0..40_u8)
            .map(|n| {
                let name = data_encoding::BASE32_NOPAD.encode(&[n; 20]);
                (format!("/{name}"), Bytes::from(vec![n; usize::from(n)]))
            })
            .collect();
        flatfs.put(&blocks).unwrap();
        flatfs.put(&blocks[..3]).unwrap();
        // What is no block.
        let shard = flatfs.path_of(&blocks[0].0).unwrap();
        let shard = shard.parent().unwrap();
        fs::write(shard.join("put-123"), b"left behind").unwrap();
        fs::write(shard.join("notes.data"), b"in small letters").unwrap();
        fs::create_dir(shard.join("D.data")).unwrap();
        fs::write(dir.join("_README"), b"").unwrap();
        fs::write(dir.join("diskUsage.cache"), b"").unwrap();
        // A repo is opened as its blocks directory.
        let flatfs = Flatfs::open(repo.path()).unwrap();
        assert_eq!(flatfs.dir(), dir);
        let mut listed = Vec::new();
        for shard in flatfs.shards().unwrap() {
            listed.extend(flatfs.list(&shard).unwrap());
        }
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        let mut expected: Vec<(String, u64)> = blocks
            .iter()
            .map(|(key, value)| (key.clone(), value.len() as u64))
            .collect();
        expected.sort();
        let listed: Vec<(String, u64)> = listed.into_iter().map(|b| (b.key, b.len)).collect();
        assert_eq!(listed, expected);
        for (key, value) in &blocks {
            assert_eq!(flatfs.get(key).unwrap().as_ref(), Some(value));
            assert_eq!(flatfs.size_of(key).unwrap(), Some(value.len() as u64));
        }
        let size = flatfs.size(usize::MAX).unwrap();
        assert_eq!((size.blocks, size.bytes, size.exact), (40, 780, true));
        let about = flatfs.size(1).unwrap();
        assert!(about.blocks > 0 && !about.exact, "{about:?}");
        let temp: Vec<_> = fs::read_dir(dir.join(TEMP)).unwrap().collect();
        assert_eq!(temp.len(), 0, "{temp:?}");
    }

    #[cfg(unix)]
    #[test]
    fn symbolic_links_are_followed_and_one_to_nothing_is_an_error() {
        use std::os::unix::fs::symlink;
        let (repo, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let flatfs = Flatfs::create(&repo.path().join("blocks"), Sharding::Suffix(1)).unwrap();
        let blocks: Vec<(String, Bytes)> = ["/AA", "/BA", "/CB", "/DB"]
            .map(|key| (key.to_owned(), Bytes::from_static(b"value")))
            .into();
        flatfs.put(&blocks).unwrap();
        // A directory, and a file of another, are moved to another disk.
        let moved = |from: &Path, name: &str| {
            let to = other.path().join(name);
            fs::rename(from, &to).unwrap();
            symlink(&to, from).unwrap();
            to
        };
        let shard = moved(&flatfs.dir().join("A"), "A");
        let file = flatfs.path_of("/CB").unwrap();
        let target = moved(&file, "C");
        assert_eq!(flatfs.shards().unwrap(), ["A", "B"]);
        let keys = |shard: &str| -> Vec<(String, u64)> {
            let list = flatfs.list(shard).unwrap();
            list.into_iter()
                .map(|block| (block.key, block.len))
                .collect()
        };
        assert_eq!(keys("A"), [("/AA".to_owned(), 5), ("/BA".to_owned(), 5)]);
        assert_eq!(keys("B"), [("/CB".to_owned(), 5), ("/DB".to_owned(), 5)]);
        assert_eq!(flatfs.get("/CB").unwrap().as_deref(), Some(&b"value"[..]));

        fs::rename(&target, other.path().join("away")).unwrap();
        assert_eq!(keys("B"), [("/CB".to_owned(), 0), ("/DB".to_owned(), 5)]);
        let error = flatfs.get("/CB").unwrap_err();
        assert!(error.message().contains("leads to nothing"), "{error}");
        fs::rename(&shard, other.path().join("away too")).unwrap();
        let error = flatfs.shards().unwrap_err();
        assert!(error.message().contains("leads to nothing"), "{error}");
    }

    #[test]
    fn a_killed_making_of_a_flatfs_is_carried_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".SHARDING.4711"), "/repo/fla").unwrap();
        Flatfs::create(dir.path(), Sharding::Suffix(2)).unwrap();
        assert!(Flatfs::open(dir.path()).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let none = Flatfs::open(dir.path()).unwrap_err();
        assert!(none.message().contains("it has a file SHARDING"), "{none}");
        let flatfs = Flatfs::create(&dir.path().join("b"), Sharding::Suffix(2)).unwrap();
        let other = Flatfs::create(flatfs.dir(), Sharding::Prefix(2)).unwrap_err();
        assert!(other.message().contains("suffix/2"), "{other}");
        assert!(Flatfs::create(flatfs.dir(), Sharding::Suffix(2)).is_ok());
        // A directory with other files.
        assert!(Flatfs::create(dir.path(), Sharding::Suffix(2)).is_err());
        for key in ["CIQ", "/", "/../../x", "/a", "/A/B"] {
            let bad = flatfs.put(&[(key.to_owned(), Bytes::new())]).unwrap_err();
            assert_eq!(bad.kind(), ErrorKind::InvalidArgument, "{key}");
            assert_eq!(flatfs.get(key).unwrap(), None);
        }
        fs::write(flatfs.dir().join(SHARDING), "/repo/flatfs/shard/v2/x").unwrap();
        let wrong = Flatfs::open(flatfs.dir()).unwrap_err();
        assert!(wrong.message().contains("shard/v2/x"), "{wrong}");
    }
}
