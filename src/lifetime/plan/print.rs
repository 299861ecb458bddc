//! A plan in print: JSON, and a table of 80 columns.

use std::fmt;

use super::{Action, Decision, Plan, Sum};

const WIDTH: usize = 80;

impl Plan {
    /// The plan as one JSON object.
    pub fn to_json(&self) -> String {
        // Only a map whose keys are no strings could fail, and there is none.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Action {
    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            Action::Lapse => "lapse",
            Action::Delete => "delete",
            Action::Extend => "extend",
            Action::StoreAgain => "store again",
            Action::Repack => "repack",
        }
    }
}

/// The table: two lines for each blob, and the totals at the end.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "The epoch is {}.\nWhat is bought is stored until epoch {}.\n",
            self.epoch, self.until_epoch
        )?;
        row(
            f,
            ["blob", "end", "action", "read", "write", "units", "FROST"],
        )?;
        for decision in &self.decisions {
            row(f, cells(decision).each_ref().map(String::as_str))?;
            let later = if decision.deferred {
                "in a later pass: "
            } else {
                ""
            };
            wrapped(f, &format!("{later}{}", decision.reason))?;
        }
        if self.decisions.is_empty() {
            writeln!(f, "(no blob is due)")?;
        }
        writeln!(f)?;
        row(f, ["total", "blobs", "", "read", "write", "units", "FROST"])?;
        let totals = &self.totals;
        for (name, sum) in [
            ("lapse", &totals.lapse),
            ("delete", &totals.delete),
            ("extend", &totals.extend),
            ("store again", &totals.store_again),
            ("repack", &totals.repack),
            ("all", &totals.all),
            ("later", &totals.deferred),
        ] {
            row(f, sum_cells(name, sum).each_ref().map(String::as_str))?;
        }
        let extended = totals.all_extended_frost.map_or_else(
            || "not all can be".to_owned(),
            |frost| format!("{} FROST", number(frost)),
        );
        writeln!(
            f,
            "\nFor comparison: every live blob stored again {} FROST,",
            number(totals.all_stored_again_frost)
        )?;
        writeln!(f, "every one extended: {extended}.")
    }
}

/// The widths of the columns: 80 with the spaces between them.
const COLUMNS: [usize; 7] = [12, 8, 15, 9, 9, 7, 14];

fn row(f: &mut fmt::Formatter<'_>, cells: [&str; 7]) -> fmt::Result {
    let [blob, end, action, read, write, units, frost] = cells;
    let [a, b, c, d, e, g, h] = COLUMNS;
    writeln!(
        f,
        "{blob:a$} {end:>b$} {action:c$} {read:>d$} {write:>e$} {units:>g$} {frost:>h$}"
    )
}

/// A line below a row, broken between words.
fn wrapped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    const INDENT: usize = 4;
    let mut column = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        match column {
            0 => write!(f, "{:INDENT$}{word}", "")?,
            _ if column + 1 + len > WIDTH => write!(f, "\n{:INDENT$}{word}", "")?,
            _ => {
                write!(f, " {word}")?;
                column += 1 + len;
                continue;
            }
        }
        column = INDENT + len;
    }
    writeln!(f)
}

fn cells(decision: &Decision) -> [String; 7] {
    let action = match decision.epochs {
        0 => decision.action.name().to_owned(),
        epochs @ 1..=99 => format!("{} {epochs}", decision.action.name()),
        // More than any network sells.
        _ => format!("{} >99", decision.action.name()),
    };
    let end = match decision.end_epoch {
        0 => "unknown".to_owned(),
        epoch => number(epoch.unsigned_abs()),
    };
    [
        cut(&decision.blob_id, COLUMNS[0]),
        cut(&end, COLUMNS[1]),
        action,
        size(decision.read_bytes),
        size(decision.write_bytes),
        short(decision.units),
        frost(decision.frost),
    ]
}

fn sum_cells(name: &str, sum: &Sum) -> [String; 7] {
    [
        name.to_owned(),
        short(sum.blobs),
        String::new(),
        size(sum.read_bytes),
        size(sum.write_bytes),
        short(sum.units),
        frost(sum.frost),
    ]
}

/// The beginning of a text; of a longer one, with an ellipsis.
fn cut(text: &str, width: usize) -> String {
    // Nothing in a blob ID moves the cursor.
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().map(plain).collect();
    match text.len() <= width {
        true => text,
        false => format!("{}…", &text[..width - 1]),
    }
}

fn number(n: u64) -> String {
    n.to_string()
}

/// At most 9 characters.
fn size(bytes: u64) -> String {
    if bytes == 0 {
        return "-".to_owned();
    }
    scaled(
        bytes,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
        " ",
    )
}

/// At most 7 characters.
fn short(n: u64) -> String {
    match n {
        0..=999_999 => number(n),
        _ => scaled(n, 1000.0, &["", "k", "M", "G", "T", "P", "E"], ""),
    }
}

fn scaled(n: u64, step: f64, units: &[&str], space: &str) -> String {
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 999.95 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{n}{space}{}", units[0]),
        _ => format!("{value:.1}{space}{}", units[unit]),
    }
}

/// At most 14 characters: in WAL (1e9 FROST) if it is longer.
fn frost(n: u64) -> String {
    let digits = number(n);
    match digits.len() <= COLUMNS[6] {
        true => digits,
        false => format!("{} WAL", short(n / 1_000_000_000)),
    }
}
