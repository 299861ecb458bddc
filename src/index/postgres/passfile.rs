//! libpq's file of passwords (`~/.pgpass`), which lib/pq reads too: lines of
//! `host:port:database:user:password`, where `*` stands for anything.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio_postgres::config::Host;

use super::url::Spec;

/// Gives every host of `spec` the password that the file has for it. Returns a notice for the
/// operator, if there is one.
pub(super) fn fill(spec: &mut Spec) -> Option<String> {
    let path = spec.passfile.clone()?;
    let text = match read(&path) {
        Ok(text) => text?,
        Err(why) => return Some(format!("postgresURL: {}: {why}", path.display())),
    };
    for target in &mut spec.targets {
        let port = target.config.get_ports().first().copied().unwrap_or(5432);
        let host = match target.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(dir)) => dir.display().to_string(),
            None => String::new(),
        };
        let place = [&host, &port.to_string(), &spec.dbname, &spec.user];
        if let Some(password) = find(&text, place.map(String::as_str), target.unix) {
            target.config.password(password);
        }
    }
    None
}

/// The file's text; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, String> {
    let Ok(about) = std::fs::metadata(path) else {
        return Ok(None);
    };
    if !about.is_file() {
        return Err("is no file: no password is taken from it".into());
    }
    if about.permissions().mode() & 0o077 != 0 {
        return Err(
            "other users may read this file, so no password is taken from it: its permissions must be 0600".into(),
        );
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) => Err(format!("no password is taken from it: {e}")),
    }
}

/// The password of the first line that fits.
fn find(text: &str, place: [&str; 4], unix: bool) -> Option<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let fields = fields(line)?;
            let (password, names) = fields.split_last()?;
            let fits = names.iter().zip(place).enumerate().all(|(i, (name, is))| {
                name == "*" || name == is || (i == 0 && unix && name == "localhost")
            });
            (fits && !password.is_empty()).then(|| password.clone())
        })
}

/// The five fields of a line. A backslash escapes a `:` or a backslash that is part of a field.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut()?.extend(chars.next()),
            c => fields.last_mut()?.push(c),
        }
    }
    (fields.len() == 5).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::postgres::url;

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# h:1:d:u:comment\nh:1:d:v:other\nshort:line\nh:1:*:u:a\\:b\\\\c\n*:*:*:*:any\nlocalhost:1:d:u:late\n";
        assert_eq!(find(text, ["h", "1", "d", "u"], false).unwrap(), "a:b\\c");
        assert_eq!(find(text, ["h", "2", "d", "u"], false).unwrap(), "any");
        let socket = "localhost:1:d:u:local\n";
        let place = ["/run/pg", "1", "d", "u"];
        assert_eq!(find(socket, place, true).unwrap(), "local");
        assert_eq!(find(socket, place, false), None);
    }

    #[test]
    fn every_host_gets_its_own_and_others_may_not_read_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, "a:5432:d:u:one\nb:7:d:u:hunter2\n").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let url = format!("postgres://u@a,b:7,c/d?passfile={}", path.display());
        let passwords = |spec: &Spec| -> Vec<Option<Vec<u8>>> {
            let of = |t: &url::Target| t.config.get_password().map(<[u8]>::to_vec);
            spec.targets.iter().map(of).collect()
        };
        mode(0o600);
        let mut spec = url::parse(&url).unwrap();
        assert_eq!(fill(&mut spec), None);
        let expected = [Some(b"one".to_vec()), Some(b"hunter2".to_vec()), None];
        assert_eq!(passwords(&spec), expected);
        mode(0o640);
        let mut spec = url::parse(&url).unwrap();
        let notice = fill(&mut spec).unwrap();
        assert!(
            notice.contains("0600") && !notice.contains("hunter2"),
            "{notice}"
        );
        assert_eq!(passwords(&spec), [None, None, None]);
    }
}
