//! The outcome of a run.

use std::path::Path;

use serde::Serialize;

use super::state::To;
use super::survey::Sum;
use crate::context::Context;
use crate::exit::Failure;
use crate::output::{bytes, count, frost, pairs};

/// The price of what is stored.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Price {
    /// Packs that hold the blocks.
    pub packs: u64,
    /// Their units.
    pub units: u64,
    /// Epochs that are bought.
    pub epochs: u32,
    /// The price, or what publishers said they cost.
    pub frost: u64,
    /// Whether the chain or the publishers told it; else it is by Walrus' documentation.
    pub known: bool,
}

/// Room on the disk.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Room {
    /// Bytes that the conversion needs, about.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

/// The outcome.
#[derive(Debug, Serialize)]
pub struct Report {
    repo: String,
    to: &'static str,
    /// Whether anything was changed.
    pub applied: bool,
    /// planned, switched, removed, cancelled
    pub phase: &'static str,
    /// Blocks on the side that they come from.
    pub source: Option<Sum>,
    /// Those that the other side has already.
    pub present: Option<Sum>,
    /// Those that this run has copied, or would copy.
    pub copied: Option<Sum>,
    /// Blocks that the other side has and this one has not.
    pub only_there: Option<u64>,
    pub price: Option<Price>,
    pub room: Option<Room>,
    /// What an operator should know before.
    pub notes: Vec<String>,
    /// What remains to be done, in order.
    pub next: Vec<String>,
}

impl Report {
    pub fn new(repo: &Path, to: To) -> Report {
        Report {
            repo: repo.display().to_string(),
            to: to.name(),
            applied: false,
            phase: "planned",
            source: None,
            present: None,
            copied: None,
            only_there: None,
            price: None,
            room: None,
            notes: Vec::new(),
            next: Vec::new(),
        }
    }

    pub fn print(&self, context: &Context) -> Result<(), Failure> {
        context.print(self, || self.text())
    }

    fn text(&self) -> String {
        let mut rows = vec![("repo", self.repo.clone()), ("to", self.to.to_owned())];
        let mut row = |name, text: Option<String>| rows.extend(text.map(|text| (name, text)));
        row("blocks", self.source.map(Sum::text));
        row("there already", self.present.map(Sum::text));
        let copied = if self.applied { "copied" } else { "to copy" };
        row(copied, self.copied.map(Sum::text));
        let more = self.only_there.filter(|n| *n > 0);
        row("only there", more.map(|n| format!("{} blocks", count(n))));
        row(
            "price",
            self.price.filter(|price| price.packs > 0).map(|price| {
                let source = match (price.known, self.applied) {
                    (true, _) => "",
                    (false, true) => " (publishers told no price)",
                    (false, false) => " (sample prices)",
                };
                format!(
                    "{} in {} packs, {} units, {} epochs{source}",
                    frost(price.frost),
                    count(price.packs),
                    count(price.units),
                    price.epochs
                )
            }),
        );
        row(
            "disk",
            self.room.map(|room| {
                let (needed, free) = (bytes(room.needed), bytes(room.free));
                format!("needs {needed}, has {free}")
            }),
        );
        let mut text = pairs(&rows);
        for note in &self.notes {
            text.push_str(&format!("{note}\n"));
        }
        if !self.applied {
            text.push_str("Nothing was done. The same command with --yes carries it out.\n");
        }
        if !self.next.is_empty() {
            text.push_str("Next:\n");
        }
        for (n, next) in self.next.iter().enumerate() {
            text.push_str(&format!("  {}. {next}\n", n + 1));
        }
        text
    }
}
