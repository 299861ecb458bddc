//! Methods `with_FIELD` for structs that may get more fields.
//!
//! Such a struct is `#[non_exhaustive]`: a caller outside the crate cannot write it as a literal,
//! and makes it with `new` or `default` and these methods (or sets its public fields).

/// Writes `with_FIELD` for each field that is named, with the type of the argument.
macro_rules! setters {
    ($owner:ty { $($method:ident($field:ident: $argument:ty);)+ }) => {
        impl $owner {
            $(
                #[doc = concat!("The same with this [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $method(mut self, $field: $argument) -> Self {
                    self.$field = $field.into();
                    self
                }
            )+
        }
    };
}
