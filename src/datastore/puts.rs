//! The values of a batch and the checks on them: against their keys, and against the limits of an
//! index.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use bytes::Bytes;

use super::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::multihash::{self, Match};

/// A value that is to be stored.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) key: String,
    pub(super) value: Bytes,
    /// Whether the key is the multihash of the value: only then is anything stored under the key
    /// known to be this value.
    pub(super) names_content: bool,
}

impl Put {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the key is the multihash of other bytes: it could be
    /// stored and never be read.
    fn new((key, value): (String, Bytes)) -> Result<Put> {
        let names_content = match multihash::check(&key, &value) {
            Match::Yes => true,
            Match::Unknown => false,
            Match::No => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the value of {} bytes does not hash to the multihash in its key {key}: nothing was stored",
                        value.len()
                    ),
                ));
            }
        };
        Ok(Put {
            key,
            value,
            names_content,
        })
    }

    /// Whether a row of this size under its key is of this value.
    pub(super) fn is_in(&self, size: i64) -> bool {
        self.names_content && i64::try_from(self.value.len()) == Ok(size)
    }
}

/// Checks values against their keys. A large batch is shared among the processors: hashing a block
/// takes about as long as writing it into the journal.
pub(super) async fn check_puts(mut puts: Vec<(String, Bytes)>) -> Result<Vec<Put>> {
    /// A part of fewer bytes is not worth another thread.
    const PART_LEAST: usize = 512 << 10;
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = *PROCESSORS
        .get_or_init(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let check = |puts: Vec<(String, Bytes)>| -> Result<Vec<Put>> {
        puts.into_iter().map(Put::new).collect()
    };
    let bytes: usize = puts.iter().map(|(_, value)| value.len()).sum();
    let part = bytes.div_ceil(processors).max(PART_LEAST);
    let mut others = Vec::new();
    let mut in_part = 0;
    for at in (1..puts.len()).rev() {
        in_part += puts[at].1.len();
        if in_part >= part {
            let part = puts.split_off(at);
            others.push(tokio::task::spawn_blocking(move || check(part)));
            in_part = 0;
        }
    }
    let mut checked = check(puts)?;
    for part in others.into_iter().rev() {
        let part = part
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("checking a batch: {e}")))?;
        checked.extend(part?);
    }
    Ok(checked)
}

/// Refuses keys that the index cannot hold exactly.
pub(super) fn check_key(key: &str) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::InvalidArgument, what));
    if key.len() > MAX_KEY_BYTES {
        return bad(format!(
            "key of {} bytes is too long: an index holds keys of up to {MAX_KEY_BYTES} bytes",
            key.len()
        ));
    }
    if key.contains('\0') {
        return bad(format!(
            "key {key:?} holds a NUL byte, which no index can store"
        ));
    }
    Ok(())
}

pub(super) fn check_value(key: &str, len: usize) -> Result<()> {
    if len > MAX_VALUE_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("value of {len} bytes under {key} is too large: at most {MAX_VALUE_BYTES} bytes are stored under one key"),
        ));
    }
    Ok(())
}

/// The last operation on each key, in the order of first mention.
pub(super) fn last_wins(ops: Vec<Op>) -> (Vec<(String, Bytes)>, Vec<String>) {
    let mut position: HashMap<String, usize> = HashMap::with_capacity(ops.len());
    let mut last: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops {
        match position.get(op.key()) {
            Some(&at) => last[at] = op,
            None => {
                position.insert(op.key().to_owned(), last.len());
                last.push(op);
            }
        }
    }
    let mut puts = Vec::new();
    let mut deletes = Vec::new();
    for op in last {
        match op {
            Op::Put(key, value) => puts.push((key, value)),
            Op::Delete(key) => deletes.push(key),
        }
    }
    (puts, deletes)
}
