//! Where copies of lost blocks may be.
//!
//! Every copy is checked against the multihash in its key, so a source need not be trusted; a block
//! whose key names no content is taken from nowhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use super::super::flatfs::Flatfs;
use super::super::http;
use crate::config::Config;
use crate::error::Result;
use crate::index::KeyRecord;
use crate::journal::{Copies, Spare, Which};
use crate::multihash::{self, Match, Multihash};
use crate::read;
use crate::walrus::{BlobStore, Client};

/// How long a gateway may take for a block.
const PATIENCE: Duration = Duration::from_secs(60);

/// The place of a CID in the URL of a server of raw blocks.
const CID: &str = "{cid}";

/// A further place that may hold copies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyFrom {
    /// The `blocks` directory of a Kubo repo with flatfs, or the repo.
    Flatfs(PathBuf),
    /// A trustless gateway, by its base URL; or another server of raw blocks, by a URL with `{cid}`
    /// in the place of the block's CID.
    Gateway(String),
    /// Another aggregator, by its base URL.
    Aggregator(String),
}

impl CopyFrom {
    /// Reads what an operator has typed: a URL of a gateway, or a path.
    pub fn parse(text: &str) -> CopyFrom {
        match text.starts_with("http://") || text.starts_with("https://") {
            true => CopyFrom::Gateway(text.to_owned()),
            false => CopyFrom::Flatfs(text.into()),
        }
    }

    /// The name in reports.
    fn name(&self) -> &'static str {
        match self {
            CopyFrom::Flatfs(_) => "flatfs",
            CopyFrom::Gateway(_) => "gateway",
            CopyFrom::Aggregator(_) => "aggregator",
        }
    }
}

/// A copy that was found.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) value: Bytes,
    pub(super) source: &'static str,
}

/// The sources of a repair.
pub(super) struct Sources {
    journal: Copies,
    /// Why the journal, or a file that it has set aside, could not be looked at.
    pub(super) no_journal: Option<String>,
    /// Why the file of a block in a flatfs could not be read.
    unread: Mutex<Option<String>>,
    /// Blocks in the journal's files that are on Walrus by its notes, and older copies.
    travelled: Spare,
    cache: read::disk::Copies,
    /// The files that the journal has set aside.
    pub(super) aside: Spare,
    more: Vec<(&'static str, Place)>,
}

enum Place {
    Flatfs(Flatfs),
    Gateway(reqwest::Client, String),
    Aggregator(Client),
}

impl Sources {
    /// Opens the sources: journal and cache of the configuration, and others.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a source that cannot be used.
    pub(super) fn open(config: &Config, more: &[CopyFrom]) -> Result<Sources> {
        let dir = config.journal.as_ref().map(|journal| &*journal.path);
        let (journal, failed) = looked_at(dir, Copies::of);
        let mut troubles = Vec::from_iter(failed);
        // Before the cache: a file may become one of its files, and can be read all the same.
        let (travelled, failed) = looked_at(dir, |dir| Spare::of(dir, Which::Journal));
        troubles.extend(failed);
        let (aside, failed) = looked_at(dir, |dir| Spare::of(dir, Which::Aside));
        troubles.extend(failed);
        troubles.extend_from_slice(travelled.unread());
        troubles.extend_from_slice(aside.unread());
        let no_journal = troubles.into_iter().next();
        let cache = config.disk_cache.as_ref();
        let cache = cache.map(|cache| read::disk::Copies::of(&cache.path));
        let more = more.iter().map(|from| {
            let place = match from {
                CopyFrom::Flatfs(path) => {
                    let opened = Flatfs::open(path).map_err(|e| {
                        e.context("--from (a gateway's URL begins with http:// or https://)")
                    })?;
                    Place::Flatfs(opened)
                }
                CopyFrom::Gateway(url) => {
                    let url = match url.contains(CID) {
                        true => url.clone(),
                        false => http::base_url("--from", url)?,
                    };
                    Place::Gateway(http::client(PATIENCE)?, url)
                }
                CopyFrom::Aggregator(url) => {
                    let url = http::base_url("--aggregator", url)?;
                    let only = config.client().with_publishers(Vec::new());
                    Place::Aggregator(Client::new(only.with_aggregators(vec![url]))?)
                }
            };
            Ok((from.name(), place))
        });
        Ok(Sources {
            journal,
            no_journal,
            unread: Mutex::default(),
            travelled,
            cache: cache.unwrap_or_default(),
            aside,
            more: more.collect::<Result<_>>()?,
        })
    }

    /// Whether the journal holds a block under this key, which a node will store.
    pub(super) fn in_journal(&self, key: &str) -> bool {
        self.journal.contains(key)
    }

    /// A copy of a block, checked.
    pub(super) async fn find(&self, row: &KeyRecord) -> Option<Copy> {
        let name = Multihash::of_key(&row.key)?;
        let right = &|value: &Bytes| multihash::check(&row.key, value) == Match::Yes;
        if let Some(value) = self.journal.get(&row.key).filter(right) {
            return Some(Copy {
                value,
                source: "journal",
            });
        }
        if let Some(value) = self.travelled.get(&row.key, right) {
            return Some(Copy {
                value,
                source: "journal",
            });
        }
        if let Some(value) = self.cache.get(&name).filter(right) {
            return Some(Copy {
                value,
                source: "cache",
            });
        }
        if let Some(value) = self.aside.get(&row.key, right) {
            return Some(Copy {
                value,
                source: "files that the journal has set aside",
            });
        }
        for (source, place) in &self.more {
            let found = match place {
                Place::Flatfs(flatfs) => self.file_in(flatfs, &name),
                Place::Gateway(client, url) => from_gateway(client, url, &name).await,
                Place::Aggregator(client) => from_blob(client, row).await,
            };
            if let Some(value) = found.filter(right) {
                return Some(Copy { value, source });
            }
        }
        None
    }
}

impl Sources {
    /// Reads a block's file. One that may be there and cannot be read is no proof of a loss.
    fn file_in(&self, flatfs: &Flatfs, name: &Multihash) -> Option<Bytes> {
        let key = format!("/{}", BASE32_NOPAD.encode(name.as_bytes()));
        match flatfs.get(&key) {
            Ok(found) => found,
            Err(e) => {
                self.unread.lock().get_or_insert(e.to_string());
                None
            }
        }
    }

    /// Why a copy may be in a place that could not be looked at.
    pub(super) fn trouble(&self) -> Option<String> {
        let journal = self.no_journal.as_ref();
        let journal = journal.map(|why| format!("the journal cannot be read: {why}"));
        journal.or_else(|| self.unread.lock().clone())
    }
}

/// What `look` finds in the directory of the journal, if there is one; and why it failed.
fn looked_at<T: Default>(
    dir: Option<&Path>,
    look: impl Fn(&Path) -> Result<T>,
) -> (T, Option<String>) {
    match dir.map(look).transpose() {
        Ok(found) => (found.unwrap_or_default(), None),
        Err(e) => (T::default(), Some(e.to_string())),
    }
}

/// Reads a block from its place in its blob.
async fn from_blob(client: &Client, row: &KeyRecord) -> Option<Bytes> {
    let range = row.record.range().ok()?;
    let check = |bytes: &[u8]| match multihash::check(&row.key, bytes) {
        Match::No => Err("the bytes do not hash to the multihash in the key".to_owned()),
        _ => Ok(()),
    };
    let store: &dyn BlobStore = client;
    let read = match &row.record.patch_id {
        Some(patch) => {
            store
                .read_patch_of(patch, range.end - range.start, &check)
                .await
        }
        None => {
            store
                .read_range(
                    &row.record.blob_id,
                    range.start,
                    range.end - range.start,
                    &check,
                )
                .await
        }
    };
    read.ok()
}

/// Asks a trustless gateway for a raw block.
async fn from_gateway(client: &reqwest::Client, url: &str, name: &Multihash) -> Option<Bytes> {
    let cid = raw_cid(name);
    let url = match url.contains(CID) {
        true => url.replace(CID, &cid),
        false => format!("{url}/ipfs/{cid}?format=raw"),
    };
    let request = client
        .get(url)
        .header("accept", "application/vnd.ipld.raw")
        .timeout(PATIENCE);
    let response = request.send().await.ok()?;
    if response.status().as_u16() != 200 {
        return None;
    }
    let mut value = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        value.extend_from_slice(&piece.ok()?);
        if value.len() > crate::limits::MAX_VALUE_BYTES {
            return None;
        }
    }
    Some(value.into())
}

/// The CIDv1 of a raw block, in base32.
fn raw_cid(name: &Multihash) -> String {
    let mut bytes = vec![0x01, 0x55];
    bytes.extend_from_slice(name.as_bytes());
    format!("b{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cid_of_a_raw_block() {
        // The empty block.
        let key = "/CIQOHMGEIKMPYHAUTL57JSEZN64SIJ5OIHSGJG4TJSSJLGI3PBJLQVI";
        let name = Multihash::of_key(key).unwrap();
        assert_eq!(
            raw_cid(&name),
            "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
        );
    }
}
