//! Texts of statements, and parts that several of them have.

use std::sync::Arc;

/// The text of a statement.
#[derive(Clone)]
pub(super) struct Query {
    sql: Arc<str>,
    pub(super) hot: bool,
    pub(super) fenced: bool,
}

impl Query {
    /// A statement that is used again and again (and lives as long as the index).
    pub fn hot(sql: String) -> Query {
        Query {
            sql: sql.into(),
            hot: true,
            fenced: false,
        }
    }

    /// With one more parameter after the others: until when the server may carry it out
    /// ([`super::fence`]).
    pub fn fenced(self) -> Query {
        Query {
            fenced: true,
            ..self
        }
    }

    /// A statement for now.
    pub fn once(sql: impl Into<Arc<str>>) -> Query {
        Query {
            sql: sql.into(),
            hot: false,
            fenced: false,
        }
    }

    pub fn text(&self) -> &str {
        &self.sql
    }

    /// Hot texts are few and shared: their address identifies them.
    pub(super) fn id(&self) -> usize {
        self.sql.as_ptr() as usize
    }
}

/// `sum(column)` as a bigint that saturates instead of failing on nonsense in the table.
pub(super) fn clamped_sum(column: &str) -> String {
    format!(
        "LEAST(GREATEST(COALESCE(sum({column}), 0), -9223372036854775808), 9223372036854775807)::bigint"
    )
}
