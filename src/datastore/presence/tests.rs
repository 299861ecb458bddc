use super::*;
use crate::clock::SystemClock;
use crate::index::sqlite::{SqliteIndex, SqliteOptions};

async fn index(dir: &Path) -> Arc<dyn Index> {
    let options = SqliteOptions::new(dir.join("index.sqlite"), "t");
    Arc::new(SqliteIndex::open(options).await.unwrap())
}

fn presence(repo: &Path, index: &Arc<dyn Index>) -> Presence {
    Presence::new(repo, None, None, Arc::clone(index), Arc::new(SystemClock)).unwrap()
}

fn note(at: u64, blocks: Option<u64>) -> String {
    let journal = blocks.map(|blocks| JournalNote {
        blocks,
        bytes: 1,
        oldest: None,
    });
    let note = NodeNote {
        host: String::new(),
        version: "0".to_owned(),
        at,
        closed: false,
        journal,
        run: "another".to_owned(),
    };
    serde_json::json!(note).to_string()
}

#[test]
fn a_node_is_noted_at_once_and_then_rarely() {
    let second = Duration::from_secs(1);
    assert!(is_due(None, false));
    assert!(!is_due(Some(BUSY - second), true));
    assert!(is_due(Some(BUSY), true));
    assert!(!is_due(Some(IDLE - second), false));
    assert!(is_due(Some(IDLE), false));
}

#[tokio::test]
async fn a_node_keeps_its_name_and_says_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path()).await;
    let before = seconds(SystemTime::now());
    let mut first = presence(dir.path(), &index);
    assert!(first.look(false).await);
    assert!(!first.look(false).await, "it was noted just now");
    let noted = nodes(&*index).await.unwrap();
    assert_eq!(noted.len(), 1);
    let (name, note) = &noted[0];
    assert!(note.at >= before && !note.closed, "{note:?}");
    assert_eq!(note.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((name.len(), note.journal), (32, None));

    first.end(false).await;
    let mut again = presence(dir.path(), &index);
    let closed = nodes(&*index).await.unwrap();
    assert_eq!((closed.len(), &closed[0].0), (1, name));
    assert!(closed[0].1.closed);
    again.look(true).await;
    assert!(!nodes(&*index).await.unwrap()[0].1.closed);

    // Another node has another name.
    let other = tempfile::tempdir().unwrap();
    presence(other.path(), &index).look(false).await;
    assert_eq!(nodes(&*index).await.unwrap().len(), 2);
    assert!(forget(&*index, name).await.unwrap());
    assert!(!forget(&*index, name).await.unwrap());
    assert_eq!(nodes(&*index).await.unwrap().len(), 1);
    index.close().await.unwrap();
}

#[tokio::test]
async fn a_command_that_only_reads_leaves_no_note() {
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path()).await;
    presence(dir.path(), &index).end(false).await;
    assert_eq!(nodes(&*index).await.unwrap(), []);
    presence(dir.path(), &index).end(true).await;
    assert_eq!(nodes(&*index).await.unwrap().len(), 1);
    index.close().await.unwrap();
}

#[tokio::test]
async fn nodes_that_are_long_gone_are_forgotten_unless_they_left_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path()).await;
    let now = seconds(SystemTime::now());
    let old = now - 31 * 86_400;
    for (name, text) in [
        ("node:old", note(old, None)),
        ("node:empty", note(old, Some(0))),
        ("node:left", note(old, Some(1))),
        ("node:young", note(now - 86_400, None)),
        ("node:odd", "no JSON".to_owned()),
        ("nodes", "of something else".to_owned()),
    ] {
        index.set_note(name, Some(&text)).await.unwrap();
    }
    let mut presence = presence(dir.path(), &index);
    presence.look(false).await;
    let mut names: Vec<String> = nodes(&*index)
        .await
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    names.retain(|name| !presence.name.ends_with(name));
    assert_eq!(names, ["left", "young"]);
    assert!(index.note("nodes").await.unwrap().is_some());
    index.close().await.unwrap();
}

#[tokio::test]
async fn a_node_without_a_place_for_its_name_is_not_noted() {
    let dir = tempfile::tempdir().unwrap();
    let index = index(dir.path()).await;
    let none = dir.path().join("none");
    let clock = Arc::new(SystemClock);
    let presence = Presence::new(&none, None, None, Arc::clone(&index), clock);
    assert!(presence.is_none());
    // A file that a crash has left empty is made anew.
    std::fs::write(dir.path().join(IN_REPO), "").unwrap();
    let file = dir.path().join(IN_REPO);
    let name = name_in(&file).unwrap();
    assert_eq!(name_in(&file), Some(name));
    index.close().await.unwrap();
}

/// Containers of one image begin with one name. None hides what another has left in its journal.
#[tokio::test]
async fn nodes_that_begin_with_one_name_end_up_with_their_own() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let index = index(dirs[0].path()).await;
    presence(dirs[0].path(), &index);
    for copy in &dirs[1..] {
        let (from, to) = (dirs[0].path().join(IN_REPO), copy.path().join(IN_REPO));
        std::fs::copy(from, to).unwrap();
    }
    let mut all = dirs.each_ref().map(|dir| presence(dir.path(), &index));
    for _ in 0..3 {
        for one in &mut all {
            one.write(None, false).await.unwrap();
        }
    }
    let noted = nodes(&*index).await.unwrap();
    let mut runs: Vec<&str> = noted.iter().map(|(_, note)| &*note.run).collect();
    runs.sort_unstable();
    let mut known: Vec<&str> = all.iter().map(|one| &*one.run).collect();
    known.sort_unstable();
    assert_eq!(runs, known);
    // Each keeps its name from then on, also after a restart.
    for (dir, one) in dirs.iter().zip(&mut all) {
        let name = one.name.clone();
        one.write(None, true).await.unwrap();
        assert_eq!(one.name, name);
        let mut next = presence(dir.path(), &index);
        next.write(None, false).await.unwrap();
        next.write(None, false).await.unwrap();
        assert_eq!(next.name, name);
    }
    assert_eq!(nodes(&*index).await.unwrap().len(), 3);
    index.close().await.unwrap();
}
