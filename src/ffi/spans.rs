//! The spans of traced calls.

use std::time::SystemTime;

use serde_json::{json, Map, Value};

use super::buf::{clear, walrusds_buf};
use super::entry::{entry, walrusds_error};
use crate::trace::{take, Attribute, Ended};

/// Takes the spans that have ended in this process, the oldest first; never waits. A JSON array of
/// objects: `name`; `trace_id` and `span_id` of the caller's span as hex (absent: the span belongs
/// to no call); `begun_ns` and `ended_ns` (Unix, nanoseconds); `attributes`, an object of numbers
/// and texts; `error`, where it failed; `children`, the parts of a span that belongs to no call. Up
/// to 4,096 are kept, and the oldest are dropped first.
#[no_mangle]
pub unsafe extern "C" fn walrusds_spans(out: *mut walrusds_buf, err: *mut walrusds_error) -> i32 {
    // SAFETY: the caller's contract (see the head of `ffi`).
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_buf::EMPTY)?;
            let spans: Vec<Value> = take().iter().map(span).collect();
            let text = Value::from(spans).to_string();
            out.write(walrusds_buf::new(text.into()));
            Ok(())
        })
    }
}

fn span(span: &Ended) -> Value {
    let since = span.begun.duration_since(SystemTime::UNIX_EPOCH);
    let begun = since.unwrap_or_default();
    let ns = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut object = Map::new();
    object.insert("name".into(), span.name.into());
    if let Some(caller) = &span.caller {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        object.insert("trace_id".into(), hex(&caller.trace_id).into());
        object.insert("span_id".into(), hex(&caller.span_id).into());
    }
    object.insert("begun_ns".into(), ns(begun).into());
    object.insert(
        "ended_ns".into(),
        ns(begun.saturating_add(span.took)).into(),
    );
    let attributes = span.attributes.iter().map(|(name, value)| {
        let value = match value {
            Attribute::Number(n) => json!(n),
            Attribute::Text(text) => json!(text),
        };
        ((*name).to_owned(), value)
    });
    object.insert("attributes".into(), Value::Object(attributes.collect()));
    if let Some(error) = &span.error {
        object.insert("error".into(), error.as_str().into());
    }
    if !span.children.is_empty() {
        let children: Vec<Value> = span.children.iter().map(self::span).collect();
        object.insert("children".into(), children.into());
    }
    Value::Object(object)
}
