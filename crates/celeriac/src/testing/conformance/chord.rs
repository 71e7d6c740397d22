//! Cases about chords.

use super::*;
use crate::backend::{ChordPart, NewChord};
use crate::id::GroupId;
use crate::store::Then;
use crate::testing::ManualClock;

pub(super) fn part(chord: &str, task_id: &str, index: Option<u32>) -> ChordPart {
    ChordPart {
        group_id: GroupId::from(chord),
        task_id: id(task_id),
        index,
        state: State::Success,
        result: json(&format!("\"{task_id}\"")),
    }
}

pub(super) async fn open(store: &Store, chord: &str, size: u32) {
    assert_eq!(record(store, opening(chord, size)).await, written());
}

pub(super) fn opening(chord: &str, size: u32) -> Record {
    let new = NewChord { group_id: GroupId::from(chord), size, body: json(r#"{"task": "body"}"#) };
    Record { chords: vec![new], ..Record::default() }
}

/// Counts parts, and returns the chords they complete.
async fn count(store: &Store, parts: Vec<ChordPart>) -> Vec<GroupId> {
    match record(store, Record { parts, ..Record::default() }).await {
        Recorded::Written { ready } => ready,
        Recorded::NotReady => panic!("there is no condition"),
    }
}

fn firing(chord: &str) -> Record {
    Record { fire: Some(GroupId::from(chord)), ..Record::default() }
}

/// A task's end counts once however often it is told, and the chord is complete once.
pub async fn parts_count_once_and_complete_once(store: &Store, _: &ManualClock) {
    let g = GroupId::from("g");
    open(store, "g", 3).await;
    assert!(count(store, vec![part("g", "a", Some(0)), part("g", "a", Some(0))]).await.is_empty());
    assert!(count(store, vec![part("g", "a", Some(0))]).await.is_empty());
    assert!(count(store, vec![part("g", "b", Some(1))]).await.is_empty());
    assert_eq!(store.backend.chord(&g).await.unwrap(), None, "it is not complete");
    assert_eq!(count(store, vec![part("g", "c", Some(2))]).await, [g]);
    assert!(count(store, vec![part("g", "c", Some(2))]).await.is_empty(), "it was told");
    assert!(count(store, vec![part("g", "d", Some(3))]).await.is_empty(), "it is complete");
    assert_eq!(store.backend.chord(&GroupId::from("g")).await.unwrap().unwrap().parts.len(), 3);
    // Two at once, and a chord of one.
    open(store, "h", 2).await;
    open(store, "i", 1).await;
    let parts = vec![part("h", "a", None), part("i", "a", None), part("h", "b", None)];
    let mut ready = count(store, parts).await;
    ready.sort();
    assert_eq!(ready, [GroupId::from("h"), GroupId::from("i")]);
}

/// Parts come in the order of the header and whole; those with no place come last.
pub async fn parts_come_in_the_order_of_their_index(store: &Store, _: &ManualClock) {
    open(store, "g", 5).await;
    let failed =
        ChordPart { state: State::Failure, result: json(r#"{"exc_type": "E"}"#), ..part("g", "f", Some(1)) };
    for one in [part("g", "z", None), part("g", "c", Some(10)), failed.clone(), part("g", "a", Some(2))] {
        count(store, vec![one]).await;
    }
    count(store, vec![part("g", "b", Some(0))]).await;
    let ready = store.backend.chord(&GroupId::from("g")).await.unwrap().unwrap();
    assert_eq!((ready.group_id, ready.body), (GroupId::from("g"), json(r#"{"task": "body"}"#)));
    let order: Vec<&str> = ready.parts.iter().map(|part| part.task_id.as_str()).collect();
    assert_eq!(order, ["b", "f", "a", "c", "z"]);
    assert_eq!(ready.parts[1], failed);
}

/// A chord and the messages of its header go out together.
pub async fn a_chord_opens_with_its_header(store: &Store, _: &ManualClock) {
    let publish = vec![message("a"), message("b")];
    let send = Transaction { publish, record: opening("g", 2), ..Transaction::default() };
    assert_eq!(commit(store, send).await, committed());
    let deliveries = reserve(store).await;
    assert_eq!(task_ids(&deliveries), ["a", "b"]);
    let end = |n: usize| {
        let task_id = deliveries[n].task_id.as_str();
        let parts = vec![part("g", task_id, Some(n as u32))];
        let record = Record { parts, ..result(task_id, State::Success) };
        Transaction { record, ..Transaction::fenced(deliveries[n].tag.clone(), Then::Ack) }
    };
    assert_eq!(commit(store, end(0)).await, committed());
    let ready = vec![GroupId::from("g")];
    assert_eq!(commit(store, end(1)).await, Outcome::Committed { ready, duplicates: vec![] });
    // Opened and ended in one record: opening comes first.
    let both = Record { parts: vec![part("h", "x", None)], ..opening("h", 1) };
    assert_eq!(record(store, both).await, Recorded::Written { ready: vec![GroupId::from("h")] });
}

/// An open chord is not opened over.
pub async fn opening_twice_changes_nothing(store: &Store, _: &ManualClock) {
    open(store, "g", 2).await;
    count(store, vec![part("g", "a", Some(0))]).await;
    open(store, "g", 7).await;
    assert_eq!(count(store, vec![part("g", "b", Some(1))]).await.len(), 1);
    open(store, "g", 7).await;
    assert_eq!(store.backend.chord(&GroupId::from("g")).await.unwrap().unwrap().parts.len(), 2);
}

/// The end of a task whose chord was never opened, or is gone, is no matter.
pub async fn a_part_of_no_chord_is_ignored(store: &Store, _: &ManualClock) {
    assert!(count(store, vec![part("never", "a", None)]).await.is_empty());
    assert_eq!(store.backend.chord(&GroupId::from("never")).await.unwrap(), None);
    open(store, "never", 2).await;
    assert!(count(store, vec![part("never", "b", None)]).await.is_empty(), "nothing was kept of the first");
}

/// To fire what is not complete writes nothing.
pub async fn an_incomplete_chord_does_not_fire(store: &Store, _: &ManualClock) {
    open(store, "g", 2).await;
    count(store, vec![part("g", "a", None)]).await;
    for chord in ["g", "never"] {
        let fire = Record { results: vec![meta("x", State::Success)], ..firing(chord) };
        assert_eq!(record(store, fire).await, Recorded::NotReady);
        assert_eq!(fetch(store, "x").await, None);
    }
    assert_eq!(count(store, vec![part("g", "b", None)]).await.len(), 1, "it is still open");
}

/// Firing publishes the body and takes the chord away; a second time it is not there.
pub async fn a_chord_fires_once(store: &Store, _: &ManualClock) {
    open(store, "g", 1).await;
    count(store, vec![part("g", "a", None)]).await;
    let fire =
        || Transaction { publish: vec![message("body")], record: firing("g"), ..Transaction::default() };
    assert_eq!(commit(store, fire()).await, committed());
    assert_eq!(store.backend.chord(&GroupId::from("g")).await.unwrap(), None);
    assert!(store.backend.ready_chords(10).await.unwrap().is_empty());
    let delivery = reserve_one(store).await;
    ack(store, &delivery).await;
    assert_eq!(commit(store, fire()).await, Outcome::NotReady);
    assert!(reserve(store).await.is_empty());
    assert!(count(store, vec![part("g", "a", None)]).await.is_empty());
}

/// Of many who fire at a time, one does.
pub async fn racing_fires_fire_once(store: &Store, _: &ManualClock) {
    open(store, "g", 1).await;
    count(store, vec![part("g", "a", None)]).await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        racers.spawn(async move {
            let publish = vec![Routed { unique: true, ..message("body") }];
            commit(&store, Transaction { publish, record: firing("g"), ..Transaction::default() }).await
        });
    }
    let outcomes = woken(racers.join_all()).await;
    let fired = outcomes.iter().filter(|outcome| outcome.is_committed()).count();
    let refused = outcomes.iter().filter(|outcome| **outcome == Outcome::NotReady).count();
    assert_eq!((fired, refused), (1, 5), "{outcomes:?}");
    assert_eq!(reserve_one(store).await.task_id, id("body"));
}

/// However many end at a time, one of them completes the chord.
pub async fn racing_parts_complete_once(store: &Store, _: &ManualClock) {
    const SIZE: u32 = 16;
    open(store, "g", SIZE).await;
    let mut racers = tokio::task::JoinSet::new();
    for n in 0..SIZE {
        let store = store.clone();
        racers.spawn(async move { count(&store, vec![part("g", &n.to_string(), Some(n))]).await.len() });
    }
    assert_eq!(woken(racers.join_all()).await.into_iter().sum::<usize>(), 1);
    let parts = store.backend.chord(&GroupId::from("g")).await.unwrap().unwrap().parts;
    assert!(parts.iter().map(|part| part.index).eq((0..SIZE).map(Some)), "{parts:?}");
}

/// Chords that were completed and not fired are listed, oldest first.
pub async fn what_a_crash_left_behind_is_listed(store: &Store, _: &ManualClock) {
    for chord in ["open", "g", "h", "i"] {
        open(store, chord, 1).await;
    }
    for chord in ["h", "g", "i"] {
        count(store, vec![part(chord, "a", None)]).await;
    }
    let names = |names: &[&str]| names.iter().copied().map(GroupId::from).collect::<Vec<_>>();
    let listed = store.backend.ready_chords(10).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(names(&["g", "h", "i"]).iter().all(|name| listed.contains(name)), "{listed:?}");
    assert_eq!(store.backend.ready_chords(2).await.unwrap(), listed[..2]);
    assert_eq!(record(store, firing(listed[0].as_str())).await, written());
    assert_eq!(store.backend.ready_chords(10).await.unwrap(), listed[1..]);
}
