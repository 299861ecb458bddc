//! The embedded index in SQLite.
