//! The blocks of a cache that another process may have open, for reading alone.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::layout;
use super::segment::{Found, Segment};
use crate::multihash::Multihash;
use crate::place::{Form, Value};

/// The blocks that a cache held when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    segments: Vec<Arc<Segment>>,
    /// The number of a segment, the offset in it, and the length of the value, by tag.
    places: HashMap<u64, (usize, u32, u32)>,
}

impl Copies {
    /// Looks at the cache in `dir`. Files that cannot be read are left out.
    pub(crate) fn of(dir: &Path) -> Copies {
        let mut copies = Copies::default();
        for id in Segment::all_in(dir).unwrap_or_default() {
            let path = Segment::path(dir, id);
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let segment = Arc::new(Segment::of_file(id, path, file));
            let Ok(contents) = segment.contents() else {
                continue;
            };
            let number = copies.segments.len();
            for row in contents.rows {
                let place = (number, row.offset, row.value_len);
                copies.places.insert(row.tag, place);
            }
            copies.segments.push(segment);
        }
        copies
    }

    /// The value that `name` names, if it is here. Checked.
    pub(crate) fn get(&self, name: &Multihash) -> Option<Bytes> {
        let place = self.places.get(&layout::tag(name.as_bytes()))?;
        let (segment, offset, len) = *place;
        match self
            .segments
            .get(segment)?
            .find(Form::Bytes, offset, name.as_bytes(), len)
        {
            Ok(Found::Value(Value::Memory(value))) if name.names(&value) => Some(value),
            _ => None,
        }
    }
}
