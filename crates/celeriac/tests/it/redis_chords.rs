//! Chords on Redis, whose parts may be Python's and ours.

use celeriac::State;
use celeriac::TaskId;
use celeriac::backend::{Backend, ChordPart, NewChord, Record, Recorded};
use celeriac::id::GroupId;
use celeriac::protocol::{Json, ResultMeta};

use crate::redis::open;
use crate::redis_server::RedisServer;

pub(crate) fn part(id: &str, index: u32) -> Record {
    let part = ChordPart {
        group_id: GroupId::from("g"),
        task_id: TaskId::from(id),
        index: Some(index),
        state: State::Success,
        result: Json::parse("1").unwrap(),
    };
    Record { parts: vec![part], ..Record::default() }
}

/// A chord may be opened by Celery, and its parts come from both sides.
#[tokio::test]
async fn chords_are_shared_with_python() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let key = "celery-taskset-meta-g";
    // The first part may end before the size is known, as Celery's publisher says it before the last message only.
    let early = store.record(vec![part("a", 0)]).await.unwrap();
    assert_eq!(early, [Recorded::Written { ready: vec![] }]);
    server.command(&["SET", &format!("{key}.s"), "3"]);
    server.command(&["ZADD", &format!("{key}.j"), "1", r#"[1, "b", "SUCCESS", 2]"#]);
    server.command(&["SADD", &format!("{key}.d"), "b:1"]);
    let last = store.record(vec![part("c", 2)]).await.unwrap();
    assert_eq!(last, [Recorded::Written { ready: vec![GroupId::from("g")] }]);
    assert!(
        server.command(&["GET", &format!("{key}.c")]).contains("celeriac"),
        "no Python worker fires it too"
    );
    let again = store.record(vec![part("c", 2)]).await.unwrap();
    assert_eq!(again, [Recorded::Written { ready: vec![] }]);
    assert!(
        server.command(&["ZRANGE", &format!("{key}.j"), "0", "-1"]).contains(r#"[1, "a", "SUCCESS", 1]"#)
    );
    let fire = Record { fire: Some(GroupId::from("g")), ..Record::default() };
    assert_eq!(store.record(vec![fire]).await.unwrap(), [Recorded::Written { ready: vec![] }]);
    assert!(server.command(&["GET", &format!("{key}.c")]).contains("done"));
    assert_eq!(server.number(&["EXISTS", &format!("{key}.s"), &format!("{key}.j"), &format!("{key}.d")]), 0);

    // One that a Python worker has claimed is not ours to fire.
    let opened = NewChord { group_id: GroupId::from("g2"), size: 1, body: Json::parse("{}").unwrap() };
    store.record(vec![Record { chords: vec![opened], ..Record::default() }]).await.unwrap();
    server.command(&["SET", "celery-taskset-meta-g2.c", "a claim of Python's"]);
    let mut late = part("a", 0);
    late.parts[0].group_id = GroupId::from("g2");
    assert_eq!(store.record(vec![late]).await.unwrap(), [Recorded::Written { ready: vec![] }]);
    assert!(store.ready_chords(10).await.unwrap().is_empty());
}

/// Results of a header that ends in groups are nested as Celery nests them, by the shape that its publisher left.
#[tokio::test]
async fn a_header_of_groups_is_nested() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let shape = r#"{"result": [["g", null], [[["inner", null], [[["a", null], null], [["b", null], null]]], [["c", null], null]]]}"#;
    server.command(&["SET", "celery-taskset-meta-g", shape]);
    let opened = NewChord { group_id: GroupId::from("g"), size: 3, body: Json::parse("{}").unwrap() };
    store.record(vec![Record { chords: vec![opened], ..Record::default() }]).await.unwrap();
    for (id, index) in [("c", 2), ("b", 1), ("a", 0)] {
        store.record(vec![part(id, index)]).await.unwrap();
    }
    let chord = store.chord(&GroupId::from("g")).await.unwrap().unwrap();
    let results: Vec<&str> = chord.parts.iter().map(|part| part.result.as_str()).collect();
    assert_eq!(results, ["[1, 1]", "1"]);
}

/// A worker of Celery 5.5 that reaches a group in a header sets the size of the chord to the group's. The body gets all
/// values all the same, once there are all.
#[tokio::test]
async fn a_header_counted_short_is_waited_for() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let shape = r#"{"result": [["g", null], [[["inner", null], [[["a", null], null], [["b", null], null]]], [["c", null], null]]]}"#;
    server.command(&["SET", "celery-taskset-meta-g", shape]);
    let opened = NewChord { group_id: GroupId::from("g"), size: 3, body: Json::parse("{}").unwrap() };
    store.record(vec![Record { chords: vec![opened], ..Record::default() }]).await.unwrap();
    store.record(vec![part("c", 1)]).await.unwrap();
    server.command(&["SET", "celery-taskset-meta-g.s", "2"]);
    let counted = store.record(vec![part("a", 0)]).await.unwrap();
    assert_eq!(counted, [Recorded::Written { ready: vec![GroupId::from("g")] }]);
    let chord = async || store.chord(&GroupId::from("g")).await.unwrap();
    assert_eq!(chord().await, None, "b has not ended");
    assert_eq!(store.ready_chords(10).await.unwrap(), [GroupId::from("g")], "it is looked at again");
    let ended = |state| ResultMeta::new(TaskId::from("b"), state, Json::parse("2").unwrap());
    store.record(vec![Record { results: vec![ended(State::Retry)], ..Record::default() }]).await.unwrap();
    assert_eq!(chord().await, None, "b is tried again");
    store.record(vec![Record { results: vec![ended(State::Success)], ..Record::default() }]).await.unwrap();
    let parts = chord().await.unwrap().parts;
    assert_eq!(parts.iter().map(|part| part.result.as_str()).collect::<Vec<_>>(), ["[1, 2]", "1"]);
}
