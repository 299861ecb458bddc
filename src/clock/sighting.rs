//! A sighting of an epoch.

use std::time::SystemTime;

/// An epoch of the network, as nodes that share an index have seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The number of the epoch.
    pub epoch: u64,
    /// When it was first seen to be the present epoch: it had begun by then.
    pub first: SystemTime,
    /// When it was last seen to be the present epoch: the next one had not begun by then. (Before
    /// `first` only if a clock was set in between.)
    pub last: SystemTime,
}
