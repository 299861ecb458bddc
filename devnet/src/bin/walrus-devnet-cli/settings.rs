//! The two files: of each, one line `name: value` counts.

use std::path::Path;

/// The value of the line that begins with `name:`, without quotes.
pub fn value(file: &Path, name: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|why| format!("cannot read {}: {why}", file.display()))?;
    let lines = text.lines().map(str::trim_start);
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let found = values.next().map(|value| value.trim().trim_matches('"'));
    match found.filter(|value| !value.is_empty()) {
        Some(value) => Ok(value.to_owned()),
        None => Err(format!("{}: there is no line {name}: …", file.display())),
    }
}
