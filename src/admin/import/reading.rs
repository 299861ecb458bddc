//! From offers to blocks that are ready to be packed: which of them the index lacks, their bytes,
//! and whether these hash to their keys.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::offer::{Content, Offer};
use super::report::{Named, Options, Report, Trouble};
use super::target::Target;
use super::{Batch, Held};
use crate::admin::flatfs::read_block;
use crate::dag;
use crate::detached::Detached;
use crate::error::{Error, ErrorKind, Result};
use crate::index::KeyRecord;
use crate::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::multihash::{self, KeyMultihash, Match, Multihash};
use crate::upload::{InMemory, Parcel};
use crate::walrus::Body;

/// Bytes and blocks that one thread reads and hashes at a time.
const PIECE_BYTES: u64 = 4 << 20;
const PIECE_BLOCKS: usize = 256;
/// Fetches of one piece that run at once.
const FETCHES: usize = 8;

/// Blocks that the index lacks.
pub(super) struct Piece {
    /// With their keys in the datastore.
    wanted: Vec<(String, Offer)>,
    /// What became of the others.
    report: Report,
    /// Given back when these blocks are in packs.
    held: Held,
}

/// A block on its way to a pack.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) key: String,
    /// Empty if nothing is to be stored.
    pub(super) value: Bytes,
    pub(super) len: u64,
    /// Whether the key is the multihash of the value.
    pub(super) names_content: bool,
    pub(super) is_dag_pb: bool,
}

impl Parcel for Ready {
    fn key(&self) -> &str {
        &self.key
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn is_dag_pb(&self) -> bool {
        self.is_dag_pb
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.value.clone());
    }
}

impl InMemory for Ready {
    fn value(&self) -> &Bytes {
        &self.value
    }
}

/// Why a block cannot be taken, whatever its bytes are.
fn refusal(offer: &Offer, key: &str, options: &Options) -> Option<String> {
    if !options.unchecked {
        if KeyMultihash::of(&offer.key).is_none() {
            return Some(
                "its key is no multihash (/CIQ… is expected), so that its bytes cannot be checked"
                    .to_owned(),
            );
        }
        if Multihash::of_key(&offer.key).is_none() {
            return Some(
                "its key is a multihash of a function that is not known here, so that its bytes cannot be checked"
                    .to_owned(),
            );
        }
    }
    if key.len() > MAX_KEY_BYTES || key.contains('\0') {
        return Some(format!(
            "an index takes keys of up to {MAX_KEY_BYTES} bytes without NUL"
        ));
    }
    (offer.len > MAX_VALUE_BYTES as u64).then(|| {
        format!(
            "it has {} bytes, and at most {MAX_VALUE_BYTES} are stored under one key",
            offer.len
        )
    })
}

/// Looks up which of these blocks the index has, and brings back those that were deleted and are
/// still stored.
pub(super) async fn look_up(
    target: &Target,
    options: &Options,
    batch: Batch,
) -> Result<Vec<Piece>> {
    let Batch {
        offers: batch,
        held,
    } = batch;
    let uploader = &target.uploader;
    let mut report = Report::default();
    let mut asked = Vec::with_capacity(batch.len());
    for offer in batch {
        if matches!(offer.content, Content::Elsewhere) {
            report.elsewhere.add(offer.len);
            continue;
        }
        report.found.add(offer.len);
        let key = format!("{}{}", options.prefix, offer.key);
        if let Content::Unreadable(why) = offer.content {
            let (key, trouble) = (offer.key, Trouble::Unreadable);
            report.name(Named { key, trouble, why }, offer.len);
            continue;
        }
        match refusal(&offer, &key, options) {
            None => asked.push((key, offer)),
            Some(why) => {
                let trouble = Trouble::Refused;
                let key = offer.key;
                report.name(Named { key, trouble, why }, offer.len);
            }
        }
    }
    let keys: Vec<String> = asked.iter().map(|(key, _)| key.clone()).collect();
    let traces = uploader.look_up(&keys).await?;
    let mut spares: Vec<KeyRecord> = Vec::new();
    for ((key, offer), traces) in asked.iter().zip(&traces) {
        let same = Multihash::of_key(key).is_some();
        if let Some(row) = uploader.spare(traces, offer.len, same) {
            if !spares.iter().any(|spare| spare.key == *key) {
                spares.push(KeyRecord::new(key.clone(), row.clone()));
            }
        }
    }
    let mut back: HashSet<String> = match (spares.is_empty(), target.applies()) {
        (true, _) => HashSet::new(),
        (false, false) => spares.into_iter().map(|spare| spare.key).collect(),
        (false, true) => {
            let spares = uploader.readable(spares).await;
            let keys = spares.iter().map(|spare| spare.key.clone()).collect();
            let guard = target.locks.lock(keys).await;
            // As for a put: the statement runs to its end, and is counted, also if the import is
            // given up.
            let (uploader, call) = (Arc::clone(uploader), target.call.clone());
            let work = async move {
                let _until_done = (guard, call);
                uploader.bring_back(&spares).await
            };
            Detached::new(work).await?
        }
    };
    let (mut pieces, mut wanted, mut bytes) = (Vec::new(), Vec::new(), 0);
    for ((key, offer), traces) in asked.into_iter().zip(traces) {
        // Whether the row holds these bytes is known without reading them, if the key names them.
        let same = Multihash::of_key(&key).is_some();
        if back.remove(&key) {
            report.undeleted.add(offer.len);
        } else if uploader.is_stored(traces.live.as_ref(), offer.len, same) {
            report.known.add(offer.len);
        } else {
            bytes += offer.len;
            wanted.push((key, offer));
            if bytes >= PIECE_BYTES || wanted.len() >= PIECE_BLOCKS {
                bytes = 0;
                pieces.push(Piece {
                    wanted: std::mem::take(&mut wanted),
                    report: std::mem::take(&mut report),
                    held: held.clone(),
                });
            }
        }
    }
    pieces.push(Piece {
        wanted,
        report,
        held,
    });
    Ok(pieces)
}

/// What came of the content of an offer.
enum Got {
    Bytes(Bytes),
    File(std::path::PathBuf),
    Gone,
    Failed(String),
    /// Nothing is to be stored, so it was not read.
    Unread,
}

impl Piece {
    /// Reads the blocks and checks them. If nothing is to be stored, only those that are here
    /// anyway are checked.
    pub(super) async fn read(self, target: &Target) -> Result<(Vec<Ready>, Report, Held)> {
        let Piece {
            wanted,
            report,
            held,
        } = self;
        if wanted.is_empty() {
            return Ok((Vec::new(), report, held));
        }
        let reads = target.applies();
        let fetch = |(key, offer): (String, Offer)| async move {
            let Offer {
                content,
                len,
                dag_pb,
                key: name,
            } = offer;
            let got = match content {
                Content::Here(bytes) => Got::Bytes(bytes),
                Content::Unreadable(why) => Got::Failed(why),
                Content::Elsewhere => Got::Gone,
                _ if !reads => Got::Unread,
                Content::File(path) => Got::File(path),
                Content::Later(fetched) => match fetched.await {
                    Ok(Some(bytes)) => Got::Bytes(bytes),
                    Ok(None) => Got::Gone,
                    Err(e) => Got::Failed(e.message().to_owned()),
                },
            };
            (key, name, len, dag_pb, got)
        };
        let fetched: Vec<_> = stream::iter(wanted)
            .map(fetch)
            .buffered(FETCHES)
            .collect()
            .await;
        let check = move || {
            let mut report = report;
            let mut ready = Vec::with_capacity(fetched.len());
            for (key, name, len, dag_pb, got) in fetched {
                check_one(key, name, len, dag_pb, got, &mut ready, &mut report);
            }
            (ready, report, held)
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("reading blocks: {e}")))
    }
}

/// Reads a file, and checks the bytes of a block.
fn check_one(
    key: String,
    name: String,
    len: u64,
    dag_pb: bool,
    got: Got,
    ready: &mut Vec<Ready>,
    report: &mut Report,
) {
    let got = match got {
        Got::File(path) => match read_block(&path) {
            Ok(Some(bytes)) => Got::Bytes(bytes),
            Ok(None) => Got::Gone,
            Err(e) => Got::Failed(format!("{}: {e}", path.display())),
        },
        got => got,
    };
    let value = match got {
        Got::Bytes(value) => value,
        Got::Gone => return report.gone.add(len),
        Got::Unread => {
            let names_content = true;
            let (value, is_dag_pb) = (Bytes::new(), false);
            ready.push(Ready {
                key,
                value,
                len,
                names_content,
                is_dag_pb,
            });
            return;
        }
        Got::File(_) | Got::Failed(_) => {
            let why = match got {
                Got::Failed(why) => why,
                _ => "it was not read".to_owned(),
            };
            let trouble = Trouble::Unreadable;
            let named = Named {
                key: name,
                trouble,
                why,
            };
            return report.name(named, len);
        }
    };
    let names_content = match multihash::check(&key, &value) {
        Match::Yes => true,
        Match::Unknown => false,
        Match::No => {
            let why = format!(
                "its {} bytes do not hash to the multihash in its key",
                value.len()
            );
            let trouble = Trouble::Damaged;
            let named = Named {
                key: name,
                trouble,
                why,
            };
            return report.name(named, len);
        }
    };
    let is_dag_pb = dag_pb && dag::is_dag_pb(&value, value.len() as u64);
    ready.push(Ready {
        key,
        len: value.len() as u64,
        value,
        names_content,
        is_dag_pb,
    });
}
