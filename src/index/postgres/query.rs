//! Texts of statements, their parameters, and parts that several statements have.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_postgres::types::{ToSql, Type};

/// The text of a statement.
#[derive(Clone)]
pub(super) struct Query {
    sql: Arc<str>,
    pub(super) hot: bool,
    pub(super) bounded: bool,
}

impl Query {
    /// A statement that is used again and again (and lives as long as the index).
    pub fn hot(sql: String) -> Query {
        Query {
            sql: sql.into(),
            hot: true,
            bounded: false,
        }
    }

    /// Adds one more parameter after the others: the time until which the server may carry the
    /// statement out ([`super::deadline`]).
    pub fn bounded(self) -> Query {
        Query {
            bounded: true,
            ..self
        }
    }

    /// A statement that is not worth preparing.
    pub fn once(sql: impl Into<Arc<str>>) -> Query {
        Query {
            sql: sql.into(),
            hot: false,
            bounded: false,
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

/// A parameter of a statement.
pub(super) enum Param {
    Text(String),
    MaybeText(Option<String>),
    Texts(Vec<String>),
    MaybeTexts(Option<Vec<String>>),
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Bool(bool),
    Bools(Vec<bool>),
    Time(Option<SystemTime>),
    Times(Vec<Option<SystemTime>>),
}

impl Param {
    /// The value with its type, so that a statement is one round trip.
    pub fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Param::Text(text) => (text, Type::TEXT),
            Param::MaybeText(text) => (text, Type::TEXT),
            Param::Texts(texts) => (texts, Type::TEXT_ARRAY),
            Param::MaybeTexts(texts) => (texts, Type::TEXT_ARRAY),
            Param::Int(number) => (number, Type::INT8),
            Param::Ints(numbers) => (numbers, Type::INT8_ARRAY),
            Param::Float(number) => (number, Type::FLOAT8),
            Param::Bool(flag) => (flag, Type::BOOL),
            Param::Bools(flags) => (flags, Type::BOOL_ARRAY),
            Param::Time(time) => (time, Type::TIMESTAMPTZ),
            Param::Times(times) => (times, Type::TIMESTAMPTZ_ARRAY),
        }
    }

    /// A number of rows.
    pub fn count(rows: usize) -> Param {
        Param::Int(i64::try_from(rows).unwrap_or(i64::MAX))
    }
}

/// A number as a bigint that saturates instead of failing.
pub(super) fn clamped(number: &str) -> String {
    format!("LEAST(GREATEST({number}, -9223372036854775808), 9223372036854775807)::bigint")
}

/// `sum(column)` as a bigint that saturates instead of failing on nonsense in the table.
pub(super) fn clamped_sum(column: &str) -> String {
    clamped(&format!("COALESCE(sum({column}), 0)"))
}
