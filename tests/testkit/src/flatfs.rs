//! The blocks directory of a repo of Kubo.

use std::path::Path;

use bytes::Bytes;

/// Writes blocks (key, value) as Kubo's flatfs does, below `dir/blocks`.
///
/// # Panics
/// The directory cannot be written to.
pub fn write<'a>(dir: &Path, blocks: impl IntoIterator<Item = (&'a String, &'a Bytes)>) {
    let blocks_dir = dir.join("blocks");
    std::fs::create_dir_all(&blocks_dir).unwrap();
    let shard = "/repo/flatfs/shard/v1/next-to-last/2\n";
    std::fs::write(blocks_dir.join("SHARDING"), shard).unwrap();
    for (key, value) in blocks {
        let name = key.trim_start_matches('/');
        let inside = blocks_dir.join(&name[name.len() - 3..name.len() - 1]);
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::write(inside.join(format!("{name}.data")), value).unwrap();
    }
}
