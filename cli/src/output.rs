//! Numbers and tables for people. The same numbers stand in the JSON in full.

use std::path::Path;
use std::time::{Duration, SystemTime};

/// A number with commas: 1,234,567.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As [`count`], for a number that a database may have made negative.
pub fn whole(n: i64) -> String {
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{}", count(n.unsigned_abs()))
}

/// Bytes in the largest unit that leaves one digit before the point.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// As [`bytes`], for a number that a database may have made negative.
pub fn whole_bytes(n: i64) -> String {
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{}", bytes(n.unsigned_abs()))
}

/// A price: in WAL (1,000,000,000 FROST) from a thousandth of one on, in FROST below.
pub fn frost(n: u64) -> String {
    match n {
        0..=999_999 => format!("{} FROST", count(n)),
        _ => {
            let wal = n as f64 / 1e9;
            let digits = if wal < 1.0 { 4 } else { 2 };
            format!("{wal:.digits$} WAL")
        }
    }
}

/// A span of time in its two largest units.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (10.., ..) => format!("{days} days"),
        (1.., ..) => format!("{days} d {hours} h"),
        (0, 1.., _) => format!("{hours} h {minutes} min"),
        (0, 0, 1..) => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{seconds} s"),
    }
}

/// A moment as a distance from now: "in 3 d 4 h", "2 min 5 s ago".
pub fn relative(at: SystemTime, now: SystemTime) -> String {
    match at.duration_since(now) {
        Ok(left) => format!("in {}", span(left)),
        Err(e) => format!("{} ago", span(e.duration())),
    }
}

/// A part of a whole, in percent; "-" of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// `n` things with their name in the right number.
pub fn things(n: u64, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ => format!("{} {many}", count(n)),
    }
}

/// The side to which a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// A table without lines, two spaces between its columns.
#[derive(Debug, Default)]
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Side)]) -> Table {
        Table {
            sides: columns.iter().map(|(_, side)| *side).collect(),
            rows: vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), side) in row.iter().zip(&widths).zip(&self.sides) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                match side {
                    Side::Left => line.push_str(&format!("{cell:<width$}")),
                    Side::Right => line.push_str(&format!("{cell:>width$}")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of a name and a value, the values below each other.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0) + 2;
    let line = |(name, value): &(&str, String)| wrapped(&format!("{name:<width$}{value}"), width);
    pairs.iter().map(line).collect()
}

/// A text for standard output, in lines that fit its terminal; those after the first one have so
/// many blanks before them. A pipe or a file gets one line, which a program can read.
pub fn wrapped(text: &str, indent: usize) -> String {
    fitted(std::io::stdout(), text, indent)
}

/// The same for standard error.
pub fn wrapped_err(text: &str, indent: usize) -> String {
    fitted(std::io::stderr(), text, indent)
}

fn fitted(terminal: impl std::os::fd::AsFd, text: &str, indent: usize) -> String {
    match terminal_size::terminal_size_of(terminal) {
        Some((width, _)) => wrapped_to(text, indent, width.0.into()),
        None => format!("{text}\n"),
    }
}

fn wrapped_to(text: &str, indent: usize, columns: usize) -> String {
    // Narrower than that, words stand alone anyhow.
    let columns = columns.max(indent + 20);
    let (mut out, mut width) = (String::new(), 0);
    // The first word keeps the blanks before it, and those after it.
    let first = text.len() - text.trim_start().len();
    let (head, rest) = text.split_at(first);
    out.push_str(head);
    width += first;
    // Whether the line has a word already.
    let mut begun = false;
    for word in rest.split_inclusive(' ') {
        let len = word.trim_end().chars().count();
        if begun && width + len > columns {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            width = indent;
        }
        out.push_str(word);
        width += word.chars().count();
        begun = true;
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_clear() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(whole(-1234), "-1,234");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(whole_bytes(-2048), "-2.0 KiB");
        assert_eq!(frost(999_999), "999,999 FROST");
        assert_eq!(frost(2_500_000_000), "2.50 WAL");
        assert_eq!(frost(1_000_000), "0.0010 WAL");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(things(1, "blob", "blobs"), "1 blob");
        assert_eq!(things(2000, "blob", "blobs"), "2,000 blobs");
    }

    #[test]
    fn spans_have_two_units() {
        let s = Duration::from_secs;
        assert_eq!(span(s(59)), "59 s");
        assert_eq!(span(s(61)), "1 min 1 s");
        assert_eq!(span(s(3_700)), "1 h 1 min");
        assert_eq!(span(s(90_000)), "1 d 1 h");
        assert_eq!(span(s(864_000)), "10 days");
        let now = SystemTime::UNIX_EPOCH + s(1000);
        assert_eq!(relative(now + s(5), now), "in 5 s");
        assert_eq!(relative(now - s(5), now), "5 s ago");
    }

    #[test]
    fn long_texts_go_on_below_themselves() {
        let text = "why:    a text that is longer than the line is";
        assert_eq!(
            wrapped_to(text, 8, 30),
            "why:    a text that is longer\n        than the line is\n"
        );
        assert_eq!(wrapped_to("short", 8, 30), "short\n");
        assert_eq!(wrapped_to("        a b", 8, 30), "        a b\n");
        let word = "x".repeat(40);
        assert_eq!(
            wrapped_to(&format!("a {word} b"), 2, 30),
            format!("a\n  {word}\n  b\n")
        );
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(&[("blob", Side::Left), ("bytes", Side::Right)]);
        table.row(["a".to_owned(), "10".to_owned()]);
        table.row(["long name".to_owned(), "1".to_owned()]);
        assert_eq!(
            table.text(),
            "blob       bytes\na             10\nlong name      1\n"
        );
        assert_eq!(
            pairs(&[("a", "1".into()), ("bcd", "2".into())]),
            "a    1\nbcd  2\n"
        );
    }
}
