//! What an operator should know of the file.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::access::{self, Access};
use crate::index::Fact;

/// Where the head of a file says how it is written, and the value for a write-ahead log
/// (<https://www.sqlite.org/fileformat.html>, "The Database Header").
const WRITTEN_BY: usize = 18;
const WAL: u8 = 2;

/// Looks at the file. Changes nothing. SQLite itself is not asked for the mode: a connection to a
/// database at rest that may only be read sees another one.
pub(super) fn of(path: &Path) -> std::io::Result<Vec<Fact>> {
    let mut head = [0; 20];
    File::open(path)?.read_exact(&mut head)?;
    let shown = path.display();
    let mut found = vec![match head[WRITTEN_BY] == WAL {
        true => Fact::fine("journal_mode", "the file is in WAL mode"),
        false => Fact::trouble(
            "journal_mode",
            format!("{shown} is not in WAL mode"),
            "readers and writers wait for each other",
            format!("sqlite3 {shown} \"PRAGMA journal_mode=WAL\""),
        ),
    }];
    found.push(match access::find_out(path) {
        Access::Write => Fact::fine("writable", format!("{shown} may be written")),
        Access::Read(why) => Fact::trouble(
            "writable",
            format!("{shown}: {why}"),
            "a node that is to store blocks must write to it and to its directory",
            format!("chown the node's user {shown}"),
        ),
    });
    Ok(found)
}
