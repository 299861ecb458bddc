//! What an operator should know of the file.

use std::path::Path;

use rusqlite::Connection;

use super::access::{self, Access};
use crate::index::Fact;

/// Asks the file. Changes nothing.
pub(super) fn of(connection: &Connection, path: &Path) -> rusqlite::Result<Vec<Fact>> {
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    let mut found = vec![match mode.eq_ignore_ascii_case("wal") {
        true => Fact::fine("journal_mode", "the file is in WAL mode"),
        false => Fact::trouble(
            "journal_mode",
            format!("the file is in {mode} mode"),
            "readers and writers wait for each other",
            format!("sqlite3 {} \"PRAGMA journal_mode=WAL\"", path.display()),
        ),
    }];
    found.push(match access::find_out(path) {
        Access::Write => Fact::fine("writable", format!("{} may be written", path.display())),
        Access::Read(why) => Fact::trouble(
            "writable",
            format!("{}: {why}", path.display()),
            "a node that is to store blocks must write to it and to its directory",
            format!("chown the node's user {}", path.display()),
        ),
    });
    Ok(found)
}
