use super::piece::ENTRY_BYTES;
use super::*;

const KIB: u64 = 1024;

fn blob(len: u64) -> Bytes {
    Bytes::from(vec![7; len as usize])
}

fn good(_: &[u8]) -> Result<(), String> {
    Ok(())
}

fn bad(_: &[u8]) -> Result<(), String> {
    Err("wrong".into())
}

fn budget(kib: u64) -> i64 {
    (kib * KIB + 8 * ENTRY_BYTES) as i64
}

/// The memory with a budget of so many KiB, entries' overhead aside.
fn memory(kib: u64) -> Arc<Memory> {
    Arc::new(Memory::new(budget(kib), false))
}

fn find(memory: &Memory, id: &str, range: &Range<u64>) -> Option<Arc<Piece>> {
    memory.look(id, range).piece()
}

/// Whether all of a blob is here.
fn has_whole(memory: &Memory, id: &str) -> bool {
    let piece = find(memory, id, &(0..0));
    piece.is_some_and(|piece| piece.is_whole())
}

#[test]
fn whole_blobs_are_bounded_and_the_least_recent_goes_first() {
    let memory = memory(400);
    for id in ["a", "b", "c", "d"] {
        memory.insert_whole(id, blob(100 * KIB));
    }
    assert!(has_whole(&memory, "a"));
    memory.insert_whole("e", blob(50 * KIB));
    assert!(!has_whole(&memory, "b"), "least recently used");
    assert!(has_whole(&memory, "a"));
    assert_eq!(memory.used(), 350 * KIB + 4 * ENTRY_BYTES);
    memory.forget_whole("a");
    memory.forget_whole("a");
    assert_eq!(memory.used(), 250 * KIB + 3 * ENTRY_BYTES);
}

#[test]
fn entry_cap_and_disabled() {
    let memory = memory(400);
    memory.insert_whole("big", blob(102 * KIB));
    assert!(!has_whole(&memory, "big"));
    for budget in [0, -1, i64::MIN] {
        let off = Arc::new(Memory::new(budget, false));
        off.insert_whole("a", blob(0));
        assert!(!has_whole(&off, "a"));
        assert!(off.reserve(1).is_none());
    }
}

#[test]
fn beside_a_disk_half_is_kept_and_windows_have_as_much_as_ever() {
    let memory = Arc::new(Memory::new(budget(800), true));
    for id in ["a", "b", "c", "d", "e"] {
        memory.insert_whole(id, blob(100 * KIB));
    }
    assert_eq!(memory.used(), 400 * KIB + 4 * ENTRY_BYTES);
    let on_its_way = memory.reserve(200 * KIB);
    assert!(on_its_way.is_some());
    assert_eq!(memory.used(), 400 * KIB + 2 * ENTRY_BYTES);
    assert!(has_whole(&memory, "d") && !has_whole(&memory, "c"));
}

/// A window that no get waits for takes no room of those that a reader is about to come to.
#[test]
fn windows_that_came_ahead_stay_until_they_are_read_or_given_up() {
    let memory = memory(1600);
    for n in 0..5 {
        memory.insert("a", n * 100 * KIB, blob(100 * KIB));
    }
    let reader = [("a".into(), 0..500 * KIB)];
    assert!(memory.reserve_ahead(100 * KIB, &reader).is_none());
    assert_eq!(memory.reach("a", 0), 500 * KIB, "all are here");
    let piece = find(&memory, "a", &(0..100 * KIB)).unwrap();
    piece.block("k", &(0..100 * KIB), &good);
    let again = memory.reserve_ahead(100 * KIB, &reader);
    assert!(again.is_some(), "one was read");
    drop(again);
    let others = [("a".into(), 0..200 * KIB), ("b".into(), 0..u64::MAX)];
    let beside = memory.reserve_ahead(400 * KIB, &others);
    assert!(beside.is_some(), "no reader comes for the rest");
}

#[test]
fn pieces_are_found_by_what_they_hold() {
    let memory = memory(4000);
    memory.insert("a", 100, blob(50));
    memory.insert("a", 150, blob(50));
    memory.insert("a", 120, blob(10));
    let found = |range: Range<u64>| find(&memory, "a", &range).map(|p| p.range());
    assert_eq!(found(100..150), Some(100..150));
    assert_eq!(found(120..130), Some(100..150), "held already");
    assert_eq!(found(140..160), None, "two pieces are not joined");
    assert_eq!(found(99..101), None);
    assert_eq!(memory.reach("a", 110), 200);
    assert_eq!(memory.reach("a", 99), 99);
    assert_eq!(memory.reach("b", 7), 7);
    memory.insert("a", 90, blob(200));
    assert_eq!(found(140..160), Some(90..290));
    assert_eq!(memory.used(), 200 + ENTRY_BYTES, "what it holds is gone");
    assert!(!has_whole(&memory, "a"));
    memory.insert_whole("a", blob(300));
    assert!(has_whole(&memory, "a"));
    assert_eq!(found(0..300), Some(0..300));
}

#[test]
fn of_many_small_pieces_not_all_are_gone_through() {
    let memory = memory(4000);
    for n in 0..1000 {
        memory.insert_block("a", n * 10, blob(10), "k");
    }
    let reach = memory.reach("a", 0);
    assert!((10..1000).contains(&reach), "{reach}");
    assert!(memory.reach("a", reach) > reach, "more is here");
    assert_eq!(memory.reach("a", 9995), 10_000);
}

#[test]
fn windows_take_a_part_of_the_budget_until_they_are_read_again() {
    let memory = memory(800);
    for n in 0..8 {
        memory.insert("a", n * 100 * KIB, blob(100 * KIB));
    }
    let held = || {
        let at = |n: &u64| n * 100 * KIB..n * 100 * KIB + 1;
        let found = (0..8).filter(|n| find(&memory, "a", &at(n)).is_some());
        found.collect::<Vec<_>>()
    };
    assert_eq!(held(), [5, 6, 7]);
    assert_eq!(memory.wasted(), 500 * KIB);
    for n in 5..8 {
        memory.reused("a", n * 100 * KIB);
    }
    for n in 0..3 {
        memory.insert("a", n * 100 * KIB, blob(100 * KIB));
    }
    assert_eq!(held(), [0, 1, 2, 5, 6, 7]);
    let reserved = memory.reserve(200 * KIB).unwrap();
    assert!(memory.reserve(60 * KIB).is_none(), "too much on its way");
    assert!(memory.used() <= memory.budget());
    assert_eq!(held(), [2, 5, 6, 7]);
    drop(reserved);
    memory.insert("b", 0, blob(200 * KIB));
    assert_eq!(memory.shelf.lock().reserved, 0);
    assert!(find(&memory, "b", &(0..200 * KIB)).is_some());
}

#[test]
fn what_was_handed_out_goes_before_what_somebody_comes_to() {
    let memory = memory(800);
    let ahead = memory.insert("a", 0, blob(100 * KIB));
    let read = memory.insert("b", 0, blob(100 * KIB));
    let block = read.block("k", &(0..100 * KIB), &good);
    assert!(matches!(block, Block::New(_)));
    find(&memory, "b", &(0..1));
    for n in 0..2 {
        memory.insert("c", n * 100 * KIB, blob(100 * KIB));
    }
    assert!(find(&memory, "b", &(0..1)).is_none(), "though used last");
    assert!(Arc::ptr_eq(&find(&memory, "a", &(0..1)).unwrap(), &ahead));
    assert_eq!(memory.wasted(), 0);
}

/// The bytes between the blocks of a CAR file are no block's: nothing asks for them.
#[test]
fn a_window_is_handed_out_when_its_blocks_are_whatever_lies_between_them() {
    let memory = memory(800);
    let ahead = memory.insert("a", 0, blob(100 * KIB));
    let read = memory.insert("b", 0, blob(100 * KIB));
    for n in 0..10 {
        let block = n * 10 * KIB + 40..(n + 1) * 10 * KIB;
        assert!(matches!(read.block("k", &block, &good), Block::New(_)));
        assert_eq!(read.untaken() == 0, n == 9, "{n}");
    }
    find(&memory, "b", &(0..1));
    for n in 0..2 {
        memory.insert("c", n * 100 * KIB, blob(100 * KIB));
    }
    assert!(find(&memory, "b", &(0..1)).is_none(), "though used last");
    assert!(Arc::ptr_eq(&find(&memory, "a", &(0..1)).unwrap(), &ahead));
}

#[test]
fn what_is_read_again_after_it_left_stays() {
    let memory = memory(800);
    let read = |id: &str| {
        for n in 0..4 {
            let range = n * 100 * KIB..(n + 1) * 100 * KIB;
            let piece = match find(&memory, id, &range) {
                Some(piece) => piece,
                None => memory.insert(id, range.start, blob(100 * KIB)),
            };
            piece.block("k", &range, &good);
        }
    };
    let held = |id: &str| {
        let at = |n: &u64| n * 100 * KIB..n * 100 * KIB + 1;
        (0..4)
            .filter(|n| find(&memory, id, &at(n)).is_some())
            .count()
    };
    read("a");
    assert_eq!(held("a"), 3, "more than the share");
    read("b");
    assert_eq!(held("a"), 0);
    read("a");
    read("c");
    read("d");
    assert_eq!(held("a"), 4);
    let left = &memory.shelf.lock().left;
    assert!(left.len() <= 8, "as much as the budget");
}

#[test]
fn a_block_is_checked_once_and_a_wrong_one_stays_wrong() {
    let memory = memory(400);
    let piece = memory.insert("a", 1000, blob(100));
    assert_eq!(piece.block("k", &(1000..1010), &good), Block::New(blob(10)));
    assert_eq!(
        piece.block("k", &(1000..1010), &bad),
        Block::Again(blob(10))
    );
    assert_eq!(piece.block("other", &(1000..1010), &bad), Block::Wrong);
    assert_eq!(piece.block("k", &(1010..1020), &bad), Block::Wrong);
    assert_eq!(piece.block("k", &(1010..1020), &good), Block::Wrong);
    assert_eq!(piece.block("k", &(1010..1021), &good), Block::New(blob(11)));
    for outside in [990..1000, 1095..1101, 0..u64::MAX] {
        assert_eq!(piece.block("k", &outside, &good), Block::Outside);
    }
}

#[test]
fn another_look_finds_what_has_come() {
    let memory = memory(400);
    let mut look = memory.look("a", &(0..10));
    assert!(look.piece().is_none());
    assert!(memory.look_again(&mut look, "a", &(0..10)).is_none());
    memory.insert("a", 0, blob(10));
    assert!(memory.look_again(&mut look, "a", &(0..10)).is_some());
    assert!(
        memory.look_again(&mut look, "a", &(0..10)).is_none(),
        "nothing more"
    );
    assert!(look.piece().is_some());
    memory.insert("a", 0, blob(20));
    assert!(look.piece().is_none(), "it does not keep what has left");
}

#[test]
fn a_whole_blob_is_forgotten_and_a_part_is_not() {
    let memory = memory(400);
    memory.insert("part", 0, blob(10));
    memory.insert_whole("whole", blob(10));
    for id in ["part", "whole", "neither"] {
        memory.forget_whole(id);
    }
    assert!(find(&memory, "part", &(0..10)).is_some());
    assert!(find(&memory, "whole", &(0..10)).is_none());
}
