//! Bytes that cross the ABI: borrowed slices in, owned buffers out.

use std::ffi::c_void;
use std::ptr;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::place::Value;

/// Bytes owned by the caller, who gives them back with `walrusds_buf_free`. All zero when empty.
#[repr(C)]
#[derive(Debug)]
pub struct walrusds_buf {
    /// First byte; NULL when `len` is 0. Read-only.
    pub data: *const u8,
    /// Length in bytes.
    pub len: usize,
    /// Private to the library.
    pub owner: *mut c_void,
}

impl walrusds_buf {
    pub(super) const EMPTY: walrusds_buf = walrusds_buf {
        data: ptr::null(),
        len: 0,
        owner: ptr::null_mut(),
    };

    pub(super) fn new(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            return Self::EMPTY;
        }
        // Boxing moves the handle, not the bytes.
        let owner = Box::new(bytes);
        walrusds_buf {
            data: owner.as_ptr(),
            len: owner.len(),
            owner: Box::into_raw(owner).cast(),
        }
    }

    /// Frees the bytes and leaves an empty buffer.
    pub(super) fn free(&mut self) {
        let owner = std::mem::replace(self, Self::EMPTY).owner.cast::<Bytes>();
        if !owner.is_null() {
            // SAFETY: `owner` came from `Box::into_raw` in `new`, and the caller hands the
            // buffer back once: it is empty from now on.
            drop(unsafe { Box::from_raw(owner) });
        }
    }
}

/// A value that was found and is not in the caller's memory yet. Owned by the caller, who takes it
/// with `walrusds_value_take` or gives it up with `walrusds_value_free`. All zero when empty.
#[repr(C)]
#[derive(Debug)]
pub struct walrusds_value {
    /// Length in bytes.
    pub len: usize,
    /// Private to the library.
    pub owner: *mut c_void,
}

impl walrusds_value {
    pub(super) const EMPTY: walrusds_value = walrusds_value {
        len: 0,
        owner: ptr::null_mut(),
    };

    pub(super) fn new(value: Value) -> Self {
        if value.len() == 0 {
            return Self::EMPTY;
        }
        walrusds_value {
            len: value.len(),
            owner: Box::into_raw(Box::new(value)).cast(),
        }
    }

    /// Leaves an empty one; `None` if it is empty already.
    pub(super) fn take(&mut self) -> Option<Box<Value>> {
        let owner = std::mem::replace(self, Self::EMPTY).owner.cast::<Value>();
        // SAFETY: `owner` came from `Box::into_raw` in `new`, and the caller hands the value back
        // once: it is empty from now on.
        (!owner.is_null()).then(|| unsafe { Box::from_raw(owner) })
    }
}

/// The slice that an argument pair describes; `(NULL, 0)` is empty.
///
/// # Safety
/// `data` must be readable for `len` elements during `'a`, unless it is NULL.
pub(super) unsafe fn slice<'a, T>(name: &str, data: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(invalid(format!("{name} is NULL but its length is {len}")));
    }
    if len > isize::MAX as usize / size_of::<T>() {
        return Err(invalid(format!("{name} has an impossible length of {len}")));
    }
    // SAFETY: not NULL, and readable for `len` elements by contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// As [`slice()`], for memory that is filled in.
///
/// # Safety
/// `data` must be readable and writable for `len` elements during `'a`, and not be accessed by any
/// other code meanwhile, unless it is NULL.
pub(super) unsafe fn slice_mut<'a, T>(name: &str, data: *mut T, len: usize) -> Result<&'a mut [T]> {
    // SAFETY: readable by contract; the slice is dropped at once.
    if unsafe { slice(name, data, len) }?.is_empty() {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, of a possible length, and by contract accessed by no other code.
    Ok(unsafe { std::slice::from_raw_parts_mut(data, len) })
}

/// Overwrites an output argument with `empty`, so that a caller that ignores the code frees
/// nothing.
///
/// # Safety
/// `out` must be writable for a `T`, unless it is NULL.
pub(super) unsafe fn clear<T>(name: &str, out: *mut T, empty: T) -> Result<()> {
    if out.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and writable by contract. The old contents are not freed: that is the
    // caller's task.
    unsafe { out.write(empty) };
    Ok(())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}
