//! The shared index in Postgres.
