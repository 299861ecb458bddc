//! Spans: what the parts of a call took, for the trace to which the caller's own span belongs.
//!
//! **Problem.** The host has a tracer and the engine has none: it lives behind a C interface. And a
//! call's work goes on in tasks of several parts.
//!
//! **Outline.** A call that belongs to a trace is worked on within a [`Scope`]; parts that hand
//! work to a task of their own hand the scope along ([`current`], [`scoped`]). Where a span
//! [`begin`]s without a scope, nothing happens: that costs one look into a variable of the thread.
//! A span that has ended waits in a ring of the process until the host takes it ([`take`]) and
//! makes it a child of its own span, at the same times.
//!
//! Work that belongs to no call, as that of the journal, is a tree of its own: [`begin_tree`].
//! There are such trees only while calls of the process are traced.
//!
//! **Bounds.** The ring holds [`MOST`] spans, and a tree as many; further spans are dropped.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// Spans that wait for the host, and spans of a tree.
const MOST: usize = 4096;
/// The longest text of an error in a span (bytes).
const MOST_TEXT: usize = 400;

/// The caller's span (W3C trace context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attribute {
    Number(u64),
    Text(String),
}

impl From<u64> for Attribute {
    fn from(n: u64) -> Self {
        Attribute::Number(n)
    }
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Attribute::Text(text.to_owned())
    }
}

/// A span that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) name: &'static str,
    /// `None`: it is the root of a tree, or a part of one.
    pub(crate) caller: Option<Caller>,
    pub(crate) begun: SystemTime,
    pub(crate) took: Duration,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// The parts of a tree, at its root.
    pub(crate) children: Vec<Ended>,
}

static RING: Mutex<VecDeque<Ended>> = Mutex::new(VecDeque::new());
/// Whether a call of this process was ever traced.
static TRACED: AtomicBool = AtomicBool::new(false);

fn keep(span: Ended) {
    let mut ring = RING.lock();
    if ring.len() == MOST {
        ring.pop_front();
    }
    ring.push_back(span);
}

/// Takes the spans that have ended, the oldest first.
pub(crate) fn take() -> Vec<Ended> {
    std::mem::take(&mut *RING.lock()).into()
}

tokio::task_local! {
    static SCOPE: Scope;
}

/// Those for whom a piece of work is done.
#[derive(Debug, Clone)]
pub(crate) struct Scope(Arc<Of>);

#[derive(Debug)]
enum Of {
    /// Several calls may wait for one upload.
    Callers(Vec<Caller>),
    Tree(Mutex<Vec<Ended>>),
}

impl Scope {
    /// Work for a call.
    pub(crate) fn of(caller: Caller) -> Scope {
        TRACED.store(true, Relaxed);
        Scope(Arc::new(Of::Callers(vec![caller])))
    }

    /// Work for all of these calls. `None`: none of them is traced.
    pub(crate) fn together<'a>(scopes: impl Iterator<Item = &'a Scope>) -> Option<Scope> {
        let mut callers: Vec<Caller> = Vec::new();
        for scope in scopes {
            if let Of::Callers(some) = &*scope.0 {
                let new = some.iter().filter(|caller| !callers.contains(caller));
                let new: Vec<Caller> = new.copied().collect();
                callers.extend(new);
            }
        }
        (!callers.is_empty()).then(|| Scope(Arc::new(Of::Callers(callers))))
    }

    fn ended(&self, span: Ended) {
        match &*self.0 {
            Of::Callers(callers) => {
                for caller in callers {
                    keep(Ended {
                        caller: Some(*caller),
                        ..span.clone()
                    });
                }
            }
            Of::Tree(spans) => {
                let mut spans = spans.lock();
                if spans.len() < MOST {
                    spans.push(span);
                }
            }
        }
    }
}

/// The scope of this task, to be handed to another task.
pub(crate) fn current() -> Option<Scope> {
    SCOPE.try_with(Scope::clone).ok()
}

/// Works within a scope.
pub(crate) async fn scoped<T>(scope: Option<Scope>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| match &scope {
        None => work.as_mut().poll(cx),
        Some(scope) => SCOPE.sync_scope(scope.clone(), || work.as_mut().poll(cx)),
    })
    .await
}

/// A piece of work that is under way.
#[derive(Debug)]
pub(crate) struct Span {
    scope: Scope,
    /// Whether it is the root of the tree in `scope`.
    root: bool,
    name: &'static str,
    begun: SystemTime,
    clock: Instant,
    attributes: Vec<(&'static str, Attribute)>,
    /// `None`: it has not come to an end.
    outcome: Option<Option<String>>,
}

/// Begins a span of the call that is worked on. `None`: it is not traced.
pub(crate) fn begin(name: &'static str) -> Option<Span> {
    current().map(|scope| Span::new(scope, false, name))
}

/// Begins a tree of spans: the work that is [`scoped`] by [`Span::scope`] adds to it. `None`: no
/// call of this process is traced.
pub(crate) fn begin_tree(name: &'static str) -> Option<Span> {
    let scope = || Scope(Arc::new(Of::Tree(Mutex::default())));
    TRACED.load(Relaxed).then(|| Span::new(scope(), true, name))
}

impl Span {
    fn new(scope: Scope, root: bool, name: &'static str) -> Span {
        Span {
            scope,
            root,
            name,
            begun: SystemTime::now(),
            clock: Instant::now(),
            attributes: Vec::new(),
            outcome: None,
        }
    }

    pub(crate) fn scope(&self) -> Scope {
        self.scope.clone()
    }

    /// The same with one more attribute.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Attribute>) -> Span {
        self.attributes.push((name, value.into()));
        self
    }

    /// Ends it; `error` says why it failed.
    pub(crate) fn end(mut self, error: Option<&dyn std::fmt::Display>) {
        let text = error.map(|error| {
            let mut text = error.to_string();
            let most = (0..=MOST_TEXT).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(most.unwrap_or(0));
            text
        });
        self.outcome = Some(text);
    }

    /// Ends it with the outcome of its work.
    pub(crate) fn done<T, E: std::fmt::Display>(span: Option<Span>, outcome: &Result<T, E>) {
        if let Some(span) = span {
            span.end(outcome.as_ref().err().map(|e| e as _));
        }
    }
}

/// Work that is dropped has ended, too.
impl Drop for Span {
    fn drop(&mut self) {
        let gone = || Some("it was given up, as nobody waited any more".to_owned());
        let children = match (&*self.scope.0, self.root) {
            (Of::Tree(spans), true) => std::mem::take(&mut *spans.lock()),
            _ => Vec::new(),
        };
        let span = Ended {
            name: self.name,
            caller: None,
            begun: self.begun,
            took: self.clock.elapsed(),
            attributes: std::mem::take(&mut self.attributes),
            error: self.outcome.take().unwrap_or_else(gone),
            children,
        };
        match self.root {
            true => keep(span),
            false => self.scope.ended(span),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(n: u8) -> Caller {
        Caller {
            trace_id: [n; 16],
            span_id: [n; 8],
        }
    }

    /// Takes what belongs to these callers. (Other tests of the process have spans as well.)
    fn of(callers: &[Caller]) -> Vec<Ended> {
        let mut ring = RING.lock();
        let all = std::mem::take(&mut *ring);
        let is_ours = |span: &Ended| span.caller.is_some_and(|c| callers.contains(&c));
        let (ours, others) = all.into_iter().partition(is_ours);
        *ring = others;
        Vec::from(ours)
    }

    #[tokio::test]
    async fn spans_belong_to_the_call_that_is_worked_on() {
        assert!(begin("nothing").is_none());
        let (one, two) = (caller(201), caller(202));
        let work = async {
            let span = begin("part").map(|span| span.with("bytes", 7));
            let scope = current();
            // A task of its own.
            let other = tokio::spawn(scoped(scope, async { drop(begin("dropped")) }));
            other.await.unwrap();
            Span::done(span, &Err::<(), _>("no room"));
            current()
        };
        let first = scoped(Some(Scope::of(one)), work).await;
        let both = [first.unwrap(), Scope::of(two), Scope::of(two)];
        let both = Scope::together(both.iter());
        scoped(both, async {
            Span::done(begin("upload"), &Ok::<_, String>(()))
        })
        .await;
        let spans = of(&[one, two]);
        let told: Vec<_> = spans
            .iter()
            .map(|s| (s.name, s.caller.unwrap().span_id[0], s.error.as_deref()))
            .collect();
        assert_eq!(
            told[1..],
            [
                ("part", 201, Some("no room")),
                ("upload", 201, None),
                ("upload", 202, None)
            ]
        );
        assert_eq!((told[0].0, told[0].1), ("dropped", 201));
        assert!(told[0].2.unwrap().contains("given up"));
        assert_eq!(spans[1].attributes, [("bytes", Attribute::Number(7))]);
        assert!(Scope::together([].into_iter()).is_none());
    }

    #[tokio::test]
    async fn a_tree_comes_as_a_whole() {
        // Calls are traced in this process.
        drop(Scope::of(caller(203)));
        let tree = begin_tree("a tree of this test").unwrap();
        let part = scoped(Some(tree.scope()), async {
            Span::done(begin("part"), &Ok::<_, String>(()));
        });
        part.await;
        tree.end(None);
        let mut ring = RING.lock();
        let at = ring.iter().position(|s| s.name == "a tree of this test");
        let tree = ring.remove(at.unwrap()).unwrap();
        assert_eq!(tree.children.len(), 1);
        assert_eq!((tree.children[0].name, tree.caller), ("part", None));
    }

    #[test]
    fn the_ring_is_bounded() {
        let ended = |took| Ended {
            name: "x",
            caller: Some(caller(204)),
            begun: SystemTime::now(),
            took: Duration::from_secs(took),
            attributes: Vec::new(),
            error: None,
            children: Vec::new(),
        };
        (0..MOST as u64 + 10).for_each(|n| keep(ended(n)));
        let spans = of(&[caller(204)]);
        assert!(spans.len() <= MOST);
        assert_eq!(spans.last().unwrap().took.as_secs(), MOST as u64 + 9);
    }
}
