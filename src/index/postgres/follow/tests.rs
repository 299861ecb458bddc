use super::*;

fn at(at: i64) -> Position {
    Position {
        standby: true,
        at,
        page: 8192,
    }
}

fn primary(position: i64) -> Position {
    Position {
        standby: false,
        ..at(position)
    }
}

fn minutes_ago(n: u64) -> Instant {
    Instant::now() - Duration::from_secs(60 * n)
}

#[test]
fn a_standby_must_have_what_the_primary_had_lately() {
    let follow = Follow::new(Duration::from_secs(90));
    assert_eq!(follow.required(), None, "nothing is known of the primary");
    follow.note(minutes_ago(2), primary(100));
    assert_eq!(follow.required(), None, "too long ago");
    follow.note(minutes_ago(1), primary(200));
    follow.note(Instant::now(), primary(300));
    let required = follow.required().unwrap();
    assert_eq!(required, Required::At(200));
    assert!(follow.judge(required, Some(at(200))).is_ok());
    assert!(follow.judge(required, Some(at(199))).is_err());
    assert!(follow.judge(required, None).is_err());
}

#[test]
fn a_standby_must_have_what_this_node_wrote() {
    let follow = Follow::new(Duration::from_secs(90));
    follow.note(Instant::now(), primary(100));
    let writing = follow.writing();
    assert_eq!(follow.required(), None, "while it writes");
    drop(writing);
    assert_eq!(follow.required(), None, "the write may be after 100");
    follow.silent();
    assert_eq!(follow.required(), None, "also when the primary is gone");
    follow.note(Instant::now(), primary(200));
    assert_eq!(follow.required(), Some(Required::At(200)));
    follow.silent();
    assert!(follow.take_silent() && !follow.take_silent());
    assert_eq!(follow.required(), Some(Required::At(200)));
}

#[test]
fn any_standby_answers_while_the_primary_is_silent() {
    let follow = Follow::new(Duration::from_secs(1));
    follow.note(minutes_ago(1), primary(100));
    follow.silent();
    follow.rest("it was stopped");
    assert_eq!(follow.required(), Some(Required::Nothing));
    follow.note(Instant::now(), primary(200));
    assert_eq!(follow.required(), None, "it rests");
}

/// A standby that was promoted while the primary goes on has a log of its own: its position may be
/// larger than the primary's, and it lacks what the primary wrote since.
#[test]
fn a_server_that_is_no_standby_does_not_count() {
    let follow = Follow::new(Duration::from_secs(90));
    follow.note(Instant::now(), primary(100));
    let required = follow.required().unwrap();
    let promoted = Position {
        standby: false,
        ..at(200)
    };
    assert!(follow.judge(required, Some(promoted)).is_err());
    assert!(follow.take_met_primary() && !follow.take_met_primary());
    assert!(!follow.take_behind(), "no standby is behind");
    follow.silent();
    assert!(follow.judge(Required::Nothing, Some(promoted)).is_err());
    assert!(follow.judge(required, Some(at(100))).is_ok());
}

#[test]
fn standbys_that_fail_for_a_minute_are_told_of() {
    let follow = Follow::new(Duration::from_secs(90));
    follow.note(Instant::now(), primary(100));
    let required = follow.required().unwrap();
    follow.rest("it was stopped");
    assert_eq!(follow.take_failing(), None, "a moment is no outage");
    follow.state.lock().failing.as_mut().unwrap().since = minutes_ago(2);
    follow.rest("it is unknown");
    assert_eq!(follow.take_failing().as_deref(), Some("it is unknown"));
    assert_eq!(follow.take_failing(), None, "once");
    assert!(follow.judge(required, Some(at(100))).is_ok());
    follow.rest("it was stopped again");
    assert_eq!(follow.take_failing(), None, "it had counted");
}

/// The primary gives the position after the header of a new page, a standby the one before it.
#[test]
fn the_header_of_a_page_is_no_change() {
    assert!(at(16384).has(16384 + 24));
    assert!(at(16384).has(16384 + 40));
    assert!(!at(16384).has(16384 + 41));
    assert!(!at(16385).has(16384 + 24));
    assert!(!at(16000).has(16384));
}

/// A primary that was restored to an earlier moment goes on from a smaller position. A standby that
/// has followed it before has a log of its own.
#[test]
fn a_standby_that_is_ahead_of_the_primary_does_not_count() {
    let follow = Follow::new(Duration::from_secs(90));
    follow.note(Instant::now(), primary(900));
    let required = follow.required().unwrap();
    assert!(follow.judge(required, Some(at(1000))).is_ok());
    follow.note(Instant::now(), primary(500));
    assert_eq!(follow.required(), None);
    assert!(follow.take_astray() && !follow.take_astray());
    follow.silent();
    assert_eq!(follow.required(), None, "also when the primary is gone");
    follow.note(Instant::now(), primary(1000));
    assert_eq!(follow.required(), None, "the standby may be there");
    follow.note(Instant::now(), primary(1001));
    assert_eq!(follow.required(), Some(Required::At(1001)));
    assert!(!follow.take_astray());
}

#[test]
fn a_standby_may_be_ahead_of_what_the_primary_said_before() {
    let follow = Follow::new(Duration::from_secs(90));
    let asked = Instant::now();
    follow.note(asked, primary(100));
    let required = follow.required().unwrap();
    assert!(follow.judge(required, Some(at(300))).is_ok());
    // It was asked before the standby answered.
    follow.note(asked, primary(200));
    assert_eq!(follow.required(), Some(required));
}

#[test]
fn a_standby_in_place_of_the_primary_is_no_measure() {
    let follow = Follow::new(Duration::from_secs(90));
    follow.note(Instant::now(), at(100));
    assert_eq!(follow.required(), None);
}
