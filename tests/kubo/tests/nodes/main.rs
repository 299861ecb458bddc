//! Tests of real Kubo nodes. One binary, so that they share one Postgres server.

mod config;
mod container;
mod daemon;
mod export;
mod failures;
mod install;
mod local;
mod peers;
mod shared;
mod start;
mod tour;
