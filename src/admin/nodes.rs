//! The nodes that work with an index, as each has noted itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::finding::{Finding, Severity};
use super::time;
use crate::datastore::presence::{self, NodeNote};
use crate::datastore::Inspection;
use crate::error::Result;

/// A running node notes itself at least every ten minutes; one that was not seen for so long is
/// not running.
pub(super) const GONE: Duration = presence::IDLE.saturating_mul(3);

/// A node, as it has noted itself last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodeSeen {
    /// Its name: a random text that lies in its journal, or in its repo.
    pub node: String,
    /// The name of its machine.
    pub host: String,
    /// The version of walrusds.
    pub version: String,
    /// When it was seen, by its own clock.
    #[serde(serialize_with = "time::serialize")]
    pub seen_at: SystemTime,
    /// Whether it was closed then.
    pub closed: bool,
    /// The blocks in its journal then; `None` if it has no journal.
    pub journal: Option<NodeJournal>,
}

/// Blocks that are on the disk of one node alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodeJournal {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest of them came.
    #[serde(serialize_with = "time::option::serialize")]
    pub oldest: Option<SystemTime>,
}

impl NodeSeen {
    fn of(node: String, note: NodeNote) -> NodeSeen {
        let at = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        NodeSeen {
            node,
            host: note.host,
            version: note.version,
            seen_at: at(note.at).unwrap_or(UNIX_EPOCH),
            closed: note.closed,
            journal: note.journal.map(|journal| NodeJournal {
                blocks: journal.blocks,
                bytes: journal.bytes,
                oldest: journal.oldest.and_then(at),
            }),
        }
    }

    /// Whether it may be running: it was not closed, and was seen in the last half hour.
    pub fn is_here(&self, now: SystemTime) -> bool {
        !self.closed && !self.is_gone(now)
    }

    /// Whether it was not seen for long. A moment in the future is that of another clock.
    fn is_gone(&self, now: SystemTime) -> bool {
        now.duration_since(self.seen_at)
            .is_ok_and(|since| since > GONE)
    }

    /// How far its clock is ahead, where that hides whether it is gone.
    fn is_ahead(&self, now: SystemTime) -> Option<Duration> {
        let ahead = self.seen_at.duration_since(now).ok();
        ahead.filter(|ahead| *ahead > GONE)
    }

    /// Its name, and its machine if that has a name.
    fn named(&self) -> String {
        match self.host.is_empty() {
            true => format!("node {}", self.node),
            false => format!("node {} on {}", self.node, self.host),
        }
    }
}

/// The nodes of an index, the one that was seen last first. At most a thousand.
///
/// # Errors
/// [`ErrorKind::Index`](crate::ErrorKind::Index).
pub async fn nodes(inspection: &Inspection) -> Result<Vec<NodeSeen>> {
    let noted = presence::nodes(inspection.index()).await?;
    let mut nodes: Vec<NodeSeen> = noted
        .into_iter()
        .map(|(node, note)| NodeSeen::of(node, note))
        .collect();
    nodes.sort_by(|a, b| b.seen_at.cmp(&a.seen_at).then(a.node.cmp(&b.node)));
    Ok(nodes)
}

/// Nodes that may be gone, with blocks that are on no other disk.
pub(super) fn findings(nodes: &[NodeSeen], now: SystemTime) -> Vec<Finding> {
    let mut found = left_behind(nodes, now);
    let ahead = nodes.iter().filter_map(|node| {
        let journal = node.journal.filter(|journal| journal.blocks > 0)?;
        let hours = node.is_ahead(now)?.as_secs() / 3600;
        Some(Finding::new(
            "node-clock",
            Severity::Warning,
            format!(
                "{} was last seen {hours} h from now, so its clock was wrong, or this machine's is: whether it is gone cannot \
                 be told, and its journal held {} blocks that are on no other disk",
                node.named(),
                journal.blocks
            ),
            format!(
                "set the clock; if the node is gone and its disk is lost, walrusds forget-node {} ends this message",
                node.node
            ),
        ))
    });
    found.extend(ahead);
    found
}

/// A node that is gone, and has left blocks behind that are on no other disk.
fn left_behind(nodes: &[NodeSeen], now: SystemTime) -> Vec<Finding> {
    let gone = nodes.iter().filter(|node| node.is_gone(now));
    let left = gone.filter_map(|node| {
        let journal = node.journal.filter(|journal| journal.blocks > 0)?;
        let hours = |at: SystemTime| now.duration_since(at).unwrap_or_default().as_secs() / 3600;
        let oldest = journal.oldest.map_or(String::new(), |at| {
            format!(", the oldest of them {} h old", hours(at))
        });
        Some(Finding::new(
            "node-gone",
            Severity::Warning,
            format!(
                "{} was last seen {} h ago, and its journal held {} blocks ({} bytes) that are on no other \
                 disk{oldest}",
                node.named(),
                hours(node.seen_at),
                journal.blocks,
                journal.bytes
            ),
            format!(
                "start it, and its blocks go to Walrus; if its disk is lost, walrusds forget-node {} ends this message",
                node.node
            ),
        ))
    });
    left.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, minutes: u64, blocks: Option<u64>, closed: bool) -> NodeSeen {
        NodeSeen {
            node: name.to_owned(),
            host: "h".to_owned(),
            version: "1".to_owned(),
            seen_at: now() - Duration::from_secs(60 * minutes),
            closed,
            journal: blocks.map(|blocks| NodeJournal {
                blocks,
                bytes: 10 * blocks,
                oldest: Some(now() - Duration::from_secs(7 * 3600)),
            }),
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    }

    #[test]
    fn a_node_that_is_gone_with_blocks_is_found() {
        let nodes = [
            node("here", 10, Some(5), false),
            node("just-closed", 10, Some(5), true),
            node("empty", 300, Some(0), false),
            node("without", 300, None, false),
            node("ahead", 0, Some(5), false),
        ];
        assert_eq!(left_behind(&nodes, now()), []);
        assert_eq!(left_behind(&nodes, now() - Duration::from_secs(60)), []);
        for closed in [true, false] {
            let found = left_behind(&[node("gone", 300, Some(5), closed)], now()).remove(0);
            assert_eq!((found.id, found.severity), ("node-gone", Severity::Warning));
            for part in ["gone on h", "5 h ago", "5 blocks (50 bytes)", "7 h old"] {
                assert!(found.what.contains(part), "{part}: {found}");
            }
            assert!(found.cure.contains("forget-node gone"), "{found}");
        }
    }

    /// A clock that is ahead must not hide for good that a node is gone.
    #[test]
    fn a_node_whose_clock_is_ahead_is_found_if_it_has_blocks() {
        let ahead = [
            node("ahead", 0, Some(5), false),
            node("empty", 0, None, false),
        ];
        assert_eq!(findings(&ahead, now() - GONE), []);
        let before = now() - Duration::from_secs(400 * 86_400);
        let found = findings(&ahead, before);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].id, found[0].severity),
            ("node-clock", Severity::Warning)
        );
        for part in ["node ahead on h", "9600 h", "5 blocks"] {
            assert!(found[0].what.contains(part), "{part}: {}", found[0]);
        }
    }

    #[test]
    fn a_node_is_here_if_it_was_seen_lately_and_not_closed() {
        assert!(node("a", 29, None, false).is_here(now()));
        assert!(!node("a", 29, None, true).is_here(now()));
        assert!(!node("a", 31, None, false).is_here(now()));
    }
}
