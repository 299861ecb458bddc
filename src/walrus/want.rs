//! The request of a read to an aggregator.

use super::blob_id;
use super::transport::one_line;
use super::Fetched;
use crate::error::{Error, ErrorKind, Result};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;

/// The thing to be read.
#[derive(Clone, Copy)]
pub(super) enum Want<'a> {
    /// A whole blob, and the number of bytes that it is known to have at least.
    Blob(&'a str, u64),
    Range(Part<'a>),
    Patch(&'a str),
    /// A patch of known length.
    PatchOf(&'a str, u64),
    /// The list of the members of a quilt.
    Members(&'a str),
}

/// A range of a blob.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) id: &'a str,
    pub(super) offset: u64,
    /// Not 0.
    pub(super) len: u64,
    /// Where the whole blob comes, and is at most so long (bytes), the caller wants all of it.
    pub(super) keeps: u64,
}

impl<'a> Want<'a> {
    pub(super) fn id(self) -> &'a str {
        match self {
            Want::Blob(id, _) | Want::Patch(id) | Want::PatchOf(id, _) | Want::Members(id) => id,
            Want::Range(part) => part.id,
        }
    }

    /// Its length, where that is known beforehand (bytes).
    pub(super) fn len(self) -> Option<u64> {
        match self {
            Want::Range(part) => Some(part.len),
            Want::PatchOf(_, len) => Some(len),
            Want::Blob(..) | Want::Patch(_) | Want::Members(_) => None,
        }
    }

    pub(super) fn path(self) -> String {
        match self {
            Want::Blob(id, _) | Want::Range(Part { id, .. }) => format!("/v1/blobs/{id}"),
            Want::Patch(id) | Want::PatchOf(id, _) => format!("/v1/blobs/by-quilt-patch-id/{id}"),
            Want::Members(id) => format!("/v1/quilts/{id}/patches"),
        }
    }

    pub(super) fn describe(self) -> String {
        match self {
            Want::Blob(id, _) => format!("reading blob {id}"),
            Want::Range(Part {
                id, offset, len, ..
            }) => {
                format!("reading bytes {offset}-{} of blob {id}", offset + len - 1)
            }
            Want::Patch(id) | Want::PatchOf(id, _) => format!("reading quilt patch {id}"),
            Want::Members(id) => format!("listing the members of quilt {id}"),
        }
    }

    /// The blob's 32 bytes, to look up whether this client stored it.
    pub(super) fn blob_key(self) -> Option<[u8; 32]> {
        match self {
            Want::Blob(id, _) | Want::Range(Part { id, .. }) | Want::Members(id) => {
                blob_id::decode(id)
            }
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
            Want::Range(Part { offset, len, .. })
                if offset.checked_add(len).is_none() || len > max =>
            {
                return wrong(format!(
                    "reading {len} bytes at {offset} of blob {id}: at most {max} bytes at a time"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// The part of the received bytes that was asked for.
    pub(super) fn wanted(self, fetched: &Fetched) -> Option<&[u8]> {
        match self {
            Want::Range(Part { offset, len, .. }) if fetched.whole => {
                let start = usize::try_from(offset).ok()?;
                let end = usize::try_from(offset.checked_add(len)?).ok()?;
                fetched.bytes.get(start..end)
            }
            _ => Some(&fetched.bytes),
        }
    }
}
