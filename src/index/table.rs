//! Names of tables: validated once, always quoted in SQL.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// Postgres silently cuts longer identifiers off; two long names could become one.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The suffixes of a table's companions: the Go plugin's staging table, and the tables of this
/// library, both those of today and those that its design names.
pub(crate) const COMPANIONS: [&str; 7] = [
    "_staging", "_meta", "_leases", "_usage", "_blobs", "_deleted", "_epochs",
];

/// The columns by which the companion `_deleted` is recognised. Its column `blob` is the `blob_id`
/// of an index: with that name it would be taken for an index by walrusds nodes that do not know
/// this companion.
pub(crate) const DELETED_COLUMNS: [&str; 4] = ["key", "blob", "deleted_at", "keep_until"];

/// Whether a table with these columns is an index, and not a companion of one.
pub(crate) fn is_index(has_column: impl Fn(&str) -> bool) -> bool {
    ["key", "blob_id", "size"].into_iter().all(has_column)
}

/// A validated table name with an optional schema, with its upper and lower case as given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    schema: Option<String>,
    name: String,
}

/// Validates `[schema.]table`, each part `[A-Za-z_][A-Za-z0-9_]*` of at most 63 bytes.
///
/// # Errors
/// [`ErrorKind::Config`] naming the key `table`, the part and what is wrong with it.
pub fn parse_table(text: &str) -> Result<TableName> {
    let mut parts = text.split('.');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return Err(bad(text, "has more than one dot; expected [schema.]table"));
    }
    let (schema, name) = match second {
        Some(name) => (Some(check_part(text, first)?), check_part(text, name)?),
        None => (None, check_part(text, first)?),
    };
    Ok(TableName { schema, name })
}

fn check_part(whole: &str, part: &str) -> Result<String> {
    let mut chars = part.chars();
    let head = chars.next();
    if !head.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return Err(bad(
            whole,
            "is not an identifier; expected letters, digits and _ (not a digit first), optionally \
             after a schema and a dot",
        ));
    }
    if part.len() > MAX_IDENTIFIER_BYTES {
        return Err(bad(
            whole,
            &format!(
                "has a part of {} bytes; at most {MAX_IDENTIFIER_BYTES} are allowed",
                part.len()
            ),
        ));
    }
    Ok(part.to_owned())
}

fn bad(text: &str, what: &str) -> Error {
    let shown: String = text.chars().take(100).collect();
    Error::new(ErrorKind::Config, format!("table {shown:?} {what}"))
}

impl TableName {
    /// The schema, if one was given.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name without schema.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as SQL, quoted (so that keywords and case folding do not change its meaning).
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{}\"", self.name),
            None => format!("\"{}\"", self.name),
        }
    }

    /// The name as Postgres reads it when it is unquoted: in lower case.
    pub(crate) fn folded(&self) -> TableName {
        TableName {
            schema: self.schema.as_ref().map(|s| s.to_ascii_lowercase()),
            name: self.name.to_ascii_lowercase(),
        }
    }

    /// The table `<table><suffix>` in the same schema. A name that would be too long is shortened
    /// with a hash of the whole, so that two long tables never share a companion.
    pub(crate) fn companion(&self, suffix: &str) -> TableName {
        TableName {
            schema: self.schema.clone(),
            name: self.with_suffix(suffix),
        }
    }

    /// The identifier `<table><suffix>`, shortened like [`TableName::companion`].
    pub(crate) fn with_suffix(&self, suffix: &str) -> String {
        if self.name.len() + suffix.len() <= MAX_IDENTIFIER_BYTES {
            return format!("{}{suffix}", self.name);
        }
        let digest = Sha256::digest(self.name.as_bytes());
        let hash: String = digest.iter().take(5).map(|b| format!("{b:02x}")).collect();
        let keep = MAX_IDENTIFIER_BYTES - suffix.len() - hash.len() - 1;
        format!("{}_{hash}{suffix}", &self.name[..keep])
    }

    /// The table whose companion has this name; `None` if no table can have such a companion.
    pub(crate) fn main_table(&self) -> Option<TableName> {
        let mut names = COMPANIONS.iter().filter_map(|suffix| {
            let at = self.name.len().checked_sub(suffix.len())?;
            let (main, end) = self.name.split_at_checked(at)?;
            (!main.is_empty() && end.eq_ignore_ascii_case(suffix)).then_some(main)
        });
        Some(TableName {
            schema: self.schema.clone(),
            name: names.next()?.to_owned(),
        })
    }

    /// The error for a name that cannot be used because of another index.
    pub(crate) fn collides_with(&self, other: &str) -> Error {
        Error::new(
            ErrorKind::Config,
            format!(
                "table {self:?} cannot be used beside the index table {other:?}: one of the two names is that of a \
                 companion of the other (NAME and one of {}), so their rows would be taken for each other's; choose \
                 another name with \"table\", or rename one of the tables",
                COMPANIONS.join(", "),
                self = self.to_string(),
            ),
        )
    }

    /// The error for a table that has the name of the companion `_deleted` and is none.
    pub(crate) fn is_no_companion(&self, other: &str) -> Error {
        Error::new(
            ErrorKind::Config,
            format!(
                "table {self:?} cannot be used: its deleted rows are kept in {other:?}, and there is a table of that \
                 name that has other columns (expected, among others: {}); rename that table, or choose another name \
                 with \"table\"",
                DELETED_COLUMNS.join(", "),
                self = self.to_string(),
            ),
        )
    }

    /// The Go plugin's staging table. The Go plugin gives the plain name, which PostgreSQL cuts if
    /// it is too long; `None` where the cut name is the name of the table itself.
    pub(crate) fn go_staging(&self) -> Option<TableName> {
        let mut name = format!("{}_staging", self.name);
        // Names are ASCII, so this cuts at a character boundary.
        name.truncate(MAX_IDENTIFIER_BYTES);
        (name != self.name).then(|| TableName {
            schema: self.schema.clone(),
            name,
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_identifiers_and_a_schema() {
        assert_eq!(
            parse_table("walrus_index").unwrap().quoted(),
            "\"walrus_index\""
        );
        assert_eq!(parse_table("_a1").unwrap().quoted(), "\"_a1\"");
        assert_eq!(parse_table("S.Tab").unwrap().quoted(), "\"S\".\"Tab\"");
        assert_eq!(
            parse_table("S.Tab").unwrap().folded().quoted(),
            "\"s\".\"tab\""
        );
        assert_eq!(parse_table("S.Tab").unwrap().to_string(), "S.Tab");
        assert!(parse_table(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "", ".", "a.", ".a", "a.b.c", "1a", "a-b", "a b", "a\"b", "ä", "a;drop", "a\0",
        ] {
            let error = parse_table(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{bad:?}");
            assert!(error.message().starts_with("table "), "{error}");
        }
        let error = parse_table(&"a".repeat(64)).unwrap_err();
        assert!(error.message().contains("64 bytes"), "{error}");
    }

    #[test]
    fn long_names_get_distinct_companions() {
        let a = parse_table(&format!("{}a", "x".repeat(62))).unwrap();
        let b = parse_table(&format!("{}b", "x".repeat(62))).unwrap();
        let (ca, cb) = (a.companion("_leases"), b.companion("_leases"));
        assert_ne!(ca, cb);
        assert_eq!(ca.name().len(), 63);
        assert!(ca.name().ends_with("_leases"));
        assert!(a.go_staging().is_none());
        let cut = parse_table(&"x".repeat(60)).unwrap().go_staging().unwrap();
        assert_eq!(cut.name(), format!("{}_st", "x".repeat(60)));
        let short = parse_table("t").unwrap();
        assert_eq!(short.companion("_meta").name(), "t_meta");
        assert_eq!(short.go_staging().unwrap().name(), "t_staging");
    }
}
