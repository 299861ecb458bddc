//! The repo of a Kubo node on disk, as far as commands read or change it.
//!
//! | module | holds |
//! |---|---|
//! | `file` | reading JSON, replacing files in one step |
//! | `lock` | Kubo's own lock of a repo |
//! | `spec` | the mount of the blocks, in `config` and in `datastore_spec` |

pub mod file;
pub mod lock;
pub mod spec;
