//! What stands between a get and an aggregator.

pub(crate) mod disk;
