//! A page of query entries as a C caller sees it.

use std::ffi::c_void;
use std::ptr;
use std::time::SystemTime;

use super::codes::WALRUSDS_OK;
use crate::query::Entry;

/// One listed key. Its pointers are valid until the page is freed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct walrusds_entry {
    /// Key, UTF-8.
    pub key: *const u8,
    /// Bytes of the key.
    pub key_len: usize,
    /// Value; NULL if only keys were asked for, if it is empty, or on an error.
    pub value: *const u8,
    /// Bytes of the value.
    pub value_len: usize,
    /// Size of the value in bytes, also when only keys were asked for.
    pub size: u64,
    /// Estimate of the end of storage, Unix time in seconds; 0 = unknown.
    pub expires_at: i64,
    /// `WALRUSDS_OK`, or the code of the error with which reading this entry's value failed.
    pub code: i32,
    /// Message of that error, UTF-8.
    pub message: *const u8,
    /// Bytes of the message.
    pub message_len: usize,
}

/// Entries owned by the caller, who gives them back with `walrusds_page_free`. All zero when empty.
#[repr(C)]
#[derive(Debug)]
pub struct walrusds_page {
    /// First entry; NULL when `len` is 0.
    pub entries: *const walrusds_entry,
    /// Number of entries.
    pub len: usize,
    /// Private to the library.
    pub owner: *mut c_void,
}

/// The memory into which a page's pointers point.
struct Owner {
    // The entries point into `_rows`, whose buffers do not move when `Owner` does.
    _rows: Vec<Entry>,
    entries: Vec<walrusds_entry>,
}

impl walrusds_page {
    pub(super) const EMPTY: walrusds_page = walrusds_page {
        entries: ptr::null(),
        len: 0,
        owner: ptr::null_mut(),
    };

    pub(super) fn new(rows: Vec<Entry>) -> Self {
        if rows.is_empty() {
            return Self::EMPTY;
        }
        let entries = rows.iter().map(view).collect();
        let owner = Box::new(Owner {
            _rows: rows,
            entries,
        });
        walrusds_page {
            entries: owner.entries.as_ptr(),
            len: owner.entries.len(),
            owner: Box::into_raw(owner).cast(),
        }
    }

    /// Frees the entries and leaves an empty page.
    pub(super) fn free(&mut self) {
        let owner = std::mem::replace(self, Self::EMPTY).owner.cast::<Owner>();
        if !owner.is_null() {
            // SAFETY: `owner` came from `Box::into_raw` in `new`, and the caller hands the page
            // back once: it is empty from now on.
            drop(unsafe { Box::from_raw(owner) });
        }
    }
}

fn view(row: &Entry) -> walrusds_entry {
    let (value, error) = match &row.value {
        None => (&[][..], None),
        Some(Ok(value)) => (&value[..], None),
        Some(Err(e)) => (&[][..], Some(e)),
    };
    let message = error.map_or("", |e| e.message()).as_bytes();
    walrusds_entry {
        key: row.key.as_ptr(),
        key_len: row.key.len(),
        value: pointer(value),
        value_len: value.len(),
        size: row.size,
        expires_at: row.expires_at.map_or(0, unix_seconds),
        code: error.map_or(WALRUSDS_OK, |e| e.kind() as i32),
        message: pointer(message),
        message_len: message.len(),
    }
}

fn pointer(bytes: &[u8]) -> *const u8 {
    if bytes.is_empty() {
        ptr::null()
    } else {
        bytes.as_ptr()
    }
}

fn unix_seconds(t: SystemTime) -> i64 {
    let seconds = t
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
