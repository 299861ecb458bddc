//! The one error type of the whole engine: a kind on which a caller can act, whether trying again
//! can help, and a message for people. Messages never hold a password, a token or a URL with user
//! info.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

/// The kinds of errors, as far as a caller would act differently. The numbers are the C ABI's codes
/// (`walrusds_code` in `include/walrusds.h`): never renumber, never reuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller passed an argument that the call cannot work with (a key with a NUL, a bad
    /// pointer, a bad handle).
    InvalidArgument = 1,
    /// A configuration key is missing, unknown, of the wrong type or out of range.
    Config = 2,
    /// The datastore, query or client is closed (or was never open).
    Closed = 3,
    /// The caller cancelled the call.
    Canceled = 4,
    /// The call's own deadline passed.
    DeadlineExceeded = 5,
    /// The index (Postgres or SQLite) failed.
    Index = 6,
    /// Publisher or aggregator failed, after the retries.
    Walrus = 7,
    /// A blob (or quilt patch) that should exist was found on no aggregator.
    BlobNotFound = 8,
    /// Bytes or rows that contradict themselves: a block that does not hash to its key, an index
    /// row that points outside its blob.
    Corrupt = 9,
    /// The publisher does not take a body of this size (413, or a reset while sending).
    TooLarge = 10,
    /// Known, but not supported by this version.
    Unsupported = 11,
    /// Another process or node holds the resource (lock, lease).
    Locked = 12,
    /// A defect of this library; please report it.
    Internal = 13,
    /// A panic was caught; please report it.
    Panic = 14,
    /// The local disk failed or is full (write journal, read cache).
    Disk = 15,
}

/// The engine's error. `Display` shows the message alone, which includes the cause; `source`
/// returns the cause itself, where there is an error of another library or of the operating system
/// behind it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    retryable: bool,
    message: String,
    source: Option<Cause>,
}

/// The cause behind an error.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that another try does not cure.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            retryable: false,
            message: message.into(),
            source: None,
        }
    }

    /// An error that may not recur when the same call is made again later.
    pub fn retryable(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            retryable: true,
            message: message.into(),
            source: None,
        }
    }

    /// Shorthand for [`ErrorKind::Closed`].
    pub fn closed(what: &str) -> Self {
        Error::new(ErrorKind::Closed, format!("{what} is closed"))
    }

    /// The error for a panic with this payload.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let what = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown cause");
        Error::new(
            ErrorKind::Panic,
            format!("walrusds panicked: {what}; please report this"),
        )
    }

    /// The same error with its cause, which must not hold a secret: programs log whole chains of
    /// errors.
    #[must_use]
    pub(crate) fn caused_by(self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.with_source(Some(Arc::new(cause)))
    }

    /// As [`caused_by`](Self::caused_by), with a cause that is shared already, or none.
    #[must_use]
    pub(crate) fn with_source(mut self, cause: Option<Cause>) -> Self {
        self.source = cause;
        self
    }

    /// The kind, to act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without anything being changed.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The message, without secrets.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `new` for each `old` in its message.
    #[must_use]
    pub(crate) fn replace(mut self, old: &str, new: &str) -> Self {
        self.message = self.message.replace(old, new);
        self
    }

    /// The same error with `context: ` before its message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

/// `text` as one line of at most `max` characters, without control characters.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut line = String::new();
    let mut count = 0;
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
            count += 1;
        }
        for c in word.chars() {
            if count == max {
                line.push('…');
                return line;
            }
            line.push(c);
            count += 1;
        }
    }
    line
}

/// Runs `work` to its end; a panic in it becomes an error. For tasks, where a panic would end more
/// than the work in which it happened, and for long-running work whose end no caller checks.
pub(crate) fn caught<T>(work: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
    // On the heap: it may consist of much, and each future around it would hold a copy on the
    // stack while it begins.
    let work = AssertUnwindSafe(Box::pin(work));
    async move {
        let ended = work.catch_unwind().await;
        ended.unwrap_or_else(|payload| Err(Error::panicked(payload.as_ref())))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source: &(dyn std::error::Error + 'static) = self.source.as_deref()?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn a_cause_can_be_asked_for_by_its_type() {
        let cause = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::new(ErrorKind::Disk, "the journal: no room").caused_by(cause);
        let error = error.context("put").clone();
        assert_eq!(error.to_string(), "put: the journal: no room");
        let source = error.source().and_then(|s| s.downcast_ref());
        let kind = source.map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::StorageFull));
        assert!(Error::closed("it").source().is_none());
    }
}
