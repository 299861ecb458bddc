//! What a read asks an aggregator for.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use bytes::Bytes;

use super::blob_id;
use super::transport::one_line;
use crate::error::{Error, ErrorKind, Result};

/// What is to be read.
#[derive(Clone, Copy)]
pub(super) enum Want<'a> {
    Blob(&'a str),
    Range(&'a str, u64, u64),
    Patch(&'a str),
    /// A patch of known length.
    PatchOf(&'a str, u64),
}
impl<'a> Want<'a> {
    pub(super) fn id(self) -> &'a str {
        match self {
            Want::Blob(id) | Want::Range(id, ..) | Want::Patch(id) | Want::PatchOf(id, _) => id,
        }
    }

    /// Its length, where that is known beforehand (bytes).
    pub(super) fn len(self) -> Option<u64> {
        match self {
            Want::Range(_, _, len) | Want::PatchOf(_, len) => Some(len),
            Want::Blob(_) | Want::Patch(_) => None,
        }
    }

    pub(super) fn path(self) -> String {
        match self {
            Want::Blob(id) | Want::Range(id, ..) => format!("/v1/blobs/{id}"),
            Want::Patch(id) | Want::PatchOf(id, _) => format!("/v1/blobs/by-quilt-patch-id/{id}"),
        }
    }

    pub(super) fn describe(self) -> String {
        match self {
            Want::Blob(id) => format!("reading blob {id}"),
            Want::Range(id, offset, len) => {
                format!("reading bytes {offset}-{} of blob {id}", offset + len - 1)
            }
            Want::Patch(id) | Want::PatchOf(id, _) => format!("reading quilt patch {id}"),
        }
    }

    /// The blob's 32 bytes, to look up whether this client stored it.
    pub(super) fn blob_key(self) -> Option<[u8; 32]> {
        match self {
            Want::Blob(id) | Want::Range(id, ..) => blob_id::decode(id),
            // A patch ID is the quilt's blob ID and five more bytes.
            Want::Patch(id) | Want::PatchOf(id, _) => {
                URL_SAFE_NO_PAD.decode(id).ok()?.get(..32)?.try_into().ok()
            }
        }
    }

    pub(super) fn validate(self, max: u64) -> Result<()> {
        let wrong = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        let id = self.id();
        match self {
            Want::Patch(_) | Want::PatchOf(..) => {
                let url_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if id.is_empty() || id.len() > 128 || !id.bytes().all(url_safe) {
                    let shown = one_line(id, 60);
                    return wrong(format!("{shown:?} is no quilt patch ID (base64url)"));
                }
            }
            _ if blob_id::decode(id).is_none() => {
                let shown = one_line(id, 60);
                return wrong(format!(
                    "{shown:?} is no blob ID (43 characters of base64url)"
                ));
            }
            Want::Range(_, offset, len) if offset.checked_add(len).is_none() || len > max => {
                return wrong(format!(
                    "reading {len} bytes at {offset} of blob {id}: at most {max} bytes at a time"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a whole blob holds of it; a copy if that is little, so that it does not keep the whole
    /// in memory.
    pub(super) fn cut_from(self, whole: &Bytes) -> Option<Bytes> {
        let Want::Range(_, offset, len) = self else {
            return Some(whole.clone());
        };
        let start = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        let part = whole.get(start..end)?;
        Some(if part.len() == whole.len() {
            whole.clone()
        } else {
            Bytes::copy_from_slice(part)
        })
    }
}
