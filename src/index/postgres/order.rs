//! Keys in the order of their bytes, regardless of the collation of their column.

use crate::index::keys::Compare;

/// The way to bring rows of a table into byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    /// The column collates "C", as in our tables.
    Plain,
    /// Any collation, through `text_pattern_ops` operators and the Go plugin's index for them.
    Pattern,
}

/// The operators that compare bytes.
pub(super) struct Operators {
    pub(super) greater: &'static str,
    pub(super) at_least: &'static str,
    pub(super) less: &'static str,
    pub(super) at_most: &'static str,
    /// The text after `ORDER BY key`.
    pub(super) ascending: &'static str,
    pub(super) descending: &'static str,
}

impl Operators {
    pub(super) fn operator(&self, compare: Compare) -> &'static str {
        match compare {
            Compare::Greater => self.greater,
            Compare::AtLeast => self.at_least,
            Compare::Less => self.less,
            Compare::AtMost => self.at_most,
            Compare::Not => "<>",
        }
    }
}

impl ByteOrder {
    pub(super) fn ops(self) -> Operators {
        match self {
            ByteOrder::Plain => Operators {
                greater: ">",
                at_least: ">=",
                less: "<",
                at_most: "<=",
                ascending: "",
                descending: " DESC",
            },
            ByteOrder::Pattern => Operators {
                greater: "~>~",
                at_least: "~>=~",
                less: "~<~",
                at_most: "~<=~",
                ascending: " USING ~<~",
                descending: " USING ~>~",
            },
        }
    }
}
