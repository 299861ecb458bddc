//! The mark of an error that only says that there is no such index yet.

use std::error::Error as _;
use std::fmt;

use crate::error::Error;

/// The cause of the error of an index that was to be opened as it is, and that does not exist.
/// Other errors of opening have other causes: the index may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Absent;

impl Absent {
    /// Whether an error of opening an index says this, and nothing else.
    pub(crate) fn is_cause_of(error: &Error) -> bool {
        let cause = error.source();
        cause.is_some_and(|cause| cause.downcast_ref::<Absent>().is_some())
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no such index")
    }
}

impl std::error::Error for Absent {}
