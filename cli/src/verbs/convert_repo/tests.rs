use super::*;

#[test]
fn a_disk_without_room_is_told_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    room(dir.path(), 1).unwrap();
    let error = room(dir.path(), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("the disk has "), "{error}");
    let needed = "16.0 EiB are needed: make room, and run the same command again";
    assert!(error.contains(needed), "{error}");
}
