//! The repo as a whole: its contents, their integrity, and the garbage in it.

use walrus_devnet::{FaultAction, FaultRule, Op};

use super::Tour;
use crate::{lines, noise, Node};

/// `refs local`, `repo stat` and `repo verify` agree, and `repo verify` notices damage.
pub fn whole_index(tour: &mut Tour) {
    let node = tour.node();
    let blocks = node.refs_local();
    assert_eq!(node.repo_stat("NumObjects"), blocks.len() as u64);
    let size = node.repo_stat("RepoSize");

    const LEN: usize = 4 << 20;
    let blobs = tour.world.net.blobs();
    let cid = node.feed(["add", "-Q", "--cid-version=1"], &noise(61, LEN));
    let mut new_blobs = tour.world.net.blobs();
    new_blobs.retain(|blob| blobs.iter().all(|old| old.blob_id != blob.blob_id));
    let leaves = lines(&node.ok(["refs", "-r", "-u", &cid]));
    let more = node.refs_local();
    assert_eq!(leaves.len(), LEN >> 18);
    // Raw leaves have the very CIDs that `refs local` prints.
    assert!(leaves.iter().all(|leaf| more.contains(leaf)));
    assert!(blocks.iter().all(|block| more.contains(block)));
    // The leaves, the root, and in newer versions the directory that `add` works in.
    let new = more.len() - blocks.len();
    assert!((17..=18).contains(&new), "{new} new blocks");
    assert_eq!(node.repo_stat("NumObjects"), more.len() as u64);
    let grown = node.repo_stat("RepoSize") - size;
    assert!(
        (LEN as u64..LEN as u64 + 300_000).contains(&grown),
        "RepoSize grew by {grown}"
    );
    node.verify();

    let largest = new_blobs.iter().max_by_key(|blob| blob.size);
    let damaged = largest.expect("a new blob").blob_id;
    let damage = FaultRule::new(FaultAction::Corrupt { offset: 0 }).on(Op::READS);
    tour.world.net.set_faults(damage.of(damaged));
    let said = node.fails(["repo", "verify"]);
    assert!(said.contains("corrupt"), "{said}");
    node.fails(["cat", &cid]);
    // Newer versions can remove damaged blocks; adding the file again restores them.
    let drops = node.ok(["repo", "verify", "--help"]).contains("--drop");
    if drops {
        let said = node.ok(["repo", "verify", "--drop"]);
        assert!(said.contains("removed"), "{said}");
        assert!(node.refs_local().len() < more.len());
    }
    tour.world.net.clear_faults();
    node.verify();
    let content = noise(61, LEN);
    node.feed(["add", "-Q", "--cid-version=1"], &content);
    node.assert_holds(&cid, &content);
    assert!(node.refs_local() == more);
    node.verify();
}

/// Garbage collection removes blocks that nothing holds and keeps those pinned or in MFS; removed
/// blocks can be added again.
pub fn garbage(tour: &mut Tour) {
    let node = tour.node();
    unpin_all(node);
    let (kept, in_mfs) = (noise(71, 900_000), noise(72, 300_000));
    let kept_cid = node.add(&kept);
    node.feed(["files", "write", "--create", "-p", "/kept/file"], &in_mfs);
    let large = node.feed(["add", "-Q", "--pin=false"], &tour.large);
    let leaves = lines(&node.ok(["refs", "-r", "-u", &large])).len();
    let before = node.refs_local().len();

    let removed = lines(&node.ok(["repo", "gc", "-q"]));
    assert!(
        removed.len() > leaves,
        "{} of {leaves} removed",
        removed.len()
    );
    let left = node.refs_local();
    assert_eq!(before, left.len() + removed.len());
    assert_eq!(node.repo_stat("NumObjects"), left.len() as u64);
    assert!(node.repo_stat("RepoSize") < 2 << 20);
    let said = node.fails(["--offline", "cat", &large]);
    assert!(said.contains("not found"), "{said}");
    let there = || {
        node.assert_holds(&kept_cid, &kept);
        let read = node.run(["files", "read", "/kept/file"]).stdout;
        crate::assert_same(&read, &in_mfs, "the file in MFS");
        node.verify();
    };
    there();
    assert_eq!(node.ok(["repo", "gc", "-q"]), "");

    assert_eq!(node.add(&tour.large), large);
    node.assert_holds(&large, &tour.large);
    there();
}

/// Steps before this one leave pins behind.
fn unpin_all(node: &Node) {
    let pins = lines(&node.ok(["pin", "ls", "--type=recursive", "-q"]));
    let args: Vec<&str> = ["pin", "rm"]
        .into_iter()
        .chain(pins.iter().map(String::as_str))
        .collect();
    if !pins.is_empty() {
        node.ok(args);
    }
}
