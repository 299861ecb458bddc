//! Whole bodies that several readers of ranges share: one receives a body, and it is kept for the
//! readers that had asked for the blob by then.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

/// The bodies under way, by aggregator and blob: an aggregator that does not
/// know ranges sends all of a blob to each of them.
#[derive(Default)]
pub(super) struct Joined(Mutex<HashMap<(String, String), Weak<WholeBody>>>);

/// Held by the reader that receives the body.
pub(super) type WholeBody = tokio::sync::Mutex<Option<Bytes>>;

impl Joined {
    /// The body of a blob, for a reader that is about to ask for it; given up when the last such
    /// reader lets it go.
    pub(super) fn of(&self, (origin, blob): (&str, &str)) -> Arc<WholeBody> {
        let mut bodies = self.0.lock();
        bodies.retain(|_, body| body.strong_count() > 0);
        let name = (origin.to_owned(), blob.to_owned());
        if let Some(body) = bodies.get(&name).and_then(Weak::upgrade) {
            return body;
        }
        let body = Arc::default();
        bodies.insert(name, Arc::downgrade(&body));
        body
    }
}
