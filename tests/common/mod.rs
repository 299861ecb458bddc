//! Helpers shared by the integration tests.
#![allow(dead_code)] // each test binary uses its own part of this

pub mod mem;
pub mod postgres;
