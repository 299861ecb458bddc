//! walrus
