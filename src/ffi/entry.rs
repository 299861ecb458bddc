//! The frame of every entry point: catches panics and hands errors out.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::buf::walrusds_buf;
use super::codes::WALRUSDS_OK;
use crate::error::{Error, Result};

/// The reason why a call failed. Free it with `walrusds_error_free`.
#[repr(C)]
#[derive(Debug)]
pub struct walrusds_error {
    /// The same code that the call returned.
    pub code: i32,
    /// Whether the same call may succeed later without anything being changed.
    pub retryable: bool,
    /// Message for people, UTF-8, without secrets and without a final NUL.
    pub message: walrusds_buf,
}

impl walrusds_error {
    pub(super) const NONE: walrusds_error = walrusds_error {
        code: WALRUSDS_OK,
        retryable: false,
        message: walrusds_buf::EMPTY,
    };
}

impl From<&Error> for walrusds_error {
    fn from(e: &Error) -> Self {
        walrusds_error {
            code: e.kind() as i32,
            retryable: e.is_retryable(),
            message: walrusds_buf::new(e.message().to_owned().into()),
        }
    }
}

/// Runs the body of an entry point. A panic becomes an error: unwinding into C would abort the
/// host.
///
/// # Safety
/// `err` must be writable, unless it is NULL.
pub(super) unsafe fn entry(err: *mut walrusds_error, body: impl FnOnce() -> Result<()>) -> i32 {
    // The error is made only where there is a place for it: otherwise nothing would free it.
    let fill = |e: &dyn Fn() -> walrusds_error| {
        if !err.is_null() {
            // SAFETY: not NULL, writable by contract; the old contents are not read.
            unsafe { err.write(e()) };
        }
    };
    fill(&|| walrusds_error::NONE);
    let body = || {
        #[cfg(feature = "panic-hook")]
        super::panic_hook::point(super::panic_hook::IN_ENTRY);
        body()
    };
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Error::panicked(payload.as_ref())));
    match result {
        Ok(()) => WALRUSDS_OK,
        Err(e) => {
            let code = e.kind() as i32;
            fill(&|| walrusds_error::from(&e));
            code
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_panic_becomes_an_error() {
        let mut err = walrusds_error::NONE;
        // SAFETY: `err` is a live local.
        let code = unsafe { entry(&mut err, || panic!("on {}", "purpose")) };
        assert_eq!(code, ErrorKind::Panic as i32);
        assert_eq!(err.code, code);
        // SAFETY: the buffer was filled just now.
        let message = unsafe { std::slice::from_raw_parts(err.message.data, err.message.len) };
        let message = std::str::from_utf8(message).unwrap();
        assert!(message.contains("on purpose"), "{message}");
        err.message.free();
        assert!(err.message.data.is_null());
        // SAFETY: NULL is allowed.
        assert_eq!(
            unsafe { entry(std::ptr::null_mut(), || Ok(())) },
            WALRUSDS_OK
        );
    }
}
