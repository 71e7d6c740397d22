//! Cases about results, steps and groups.

use super::*;
use crate::backend::{NewChord, StepRecord, Watch};
use crate::clock::{Clock, after};
use crate::id::GroupId;
use crate::protocol::{Extended, ResultTuple};
use crate::testing::ManualClock;

/// What is stored comes back field by field, and values as the very text they were.
pub async fn every_field_of_a_result_is_kept(store: &Store, clock: &ManualClock) {
    let child = ResultTuple {
        id: "child".into(),
        parent: Some(Box::new(ResultTuple { id: "parent".into(), parent: None, children: None })),
        children: Some(vec![ResultTuple { id: "member".into(), parent: None, children: None }]),
    };
    let full = ResultMeta {
        result: json(r#"{"b": 1.50, "a": ["é", 12345678901234567890]}"#),
        traceback: Some("Traceback (most recent call last):\n  'x'".into()),
        children: Some(vec![child]),
        date_done: Some(clock.now()),
        group_id: Some(GroupId::from("group")),
        parent_id: Some(id("parent")),
        extended: Some(Extended {
            name: "app.add".into(),
            args: json("[1, 2]"),
            kwargs: json(r#"{"x": null}"#),
            worker: "w@host".into(),
            retries: 3,
            queue: Some("q".into()),
            other: [("stamps".to_owned(), json(r#"{"s": [1]}"#))].into(),
        }),
        ..meta("full", State::Failure)
    };
    let bare = ResultMeta { result: Json::null(), ..meta("bare", State::Custom("PROGRESS".into())) };
    let childless = ResultMeta { children: Some(vec![]), ..meta("childless", State::Success) };
    for meta in [full, bare, childless] {
        let record_of = Record { results: vec![meta.clone()], ..Record::default() };
        assert_eq!(record(store, record_of).await, written());
        assert_eq!(fetch(store, meta.task_id.as_str()).await, Some(meta));
    }
}

/// One answer for each id, in order, be it asked twice or never heard of.
pub async fn results_come_in_the_order_asked(store: &Store, _: &ManualClock) {
    record(store, result("a", State::Success)).await;
    record(store, result("b", State::Started)).await;
    publish(store, &["waits"]).await;
    let metas = store.backend.fetch(&ids(&["b", "never", "a", "b", "waits"])).await.unwrap();
    let states: Vec<Option<State>> = metas.into_iter().map(|meta| meta.map(|meta| meta.state)).collect();
    assert_eq!(states, [Some(State::Started), None, Some(State::Success), Some(State::Started), None]);
    assert!(store.backend.fetch(&[]).await.unwrap().is_empty());
}

/// A finished task stays as it finished.
pub async fn a_finished_state_stays(store: &Store, _: &ManualClock) {
    let progress = || State::Custom("PROGRESS".into());
    for done in [State::Success, State::Failure, State::Revoked] {
        let task_id = done.as_str();
        record(store, result(task_id, done.clone())).await;
        let before = fetch(store, task_id).await;
        for other in
            [State::Success, State::Failure, State::Revoked, State::Started, State::Retry, progress()]
        {
            if other == done {
                continue;
            }
            let late = ResultMeta { result: json("\"late\""), ..meta(task_id, other) };
            let late = Record { results: vec![late], ..Record::default() };
            assert_eq!(record(store, late).await, written(), "it is no error");
            assert_eq!(fetch(store, task_id).await, before);
        }
    }
}

/// States that are not final follow each other in any order, up to one that is.
pub async fn unfinished_states_follow_each_other(store: &Store, _: &ManualClock) {
    let progress = State::Custom("PROGRESS".into());
    let states = [State::Received, State::Started, progress, State::Retry, State::Started, State::Success];
    for next in states {
        record(store, result("a", next.clone())).await;
        assert_eq!(state(store, "a").await, Some(next));
    }
    // Within one record too.
    let results = vec![meta("b", State::Started), meta("b", State::Failure), meta("b", State::Success)];
    record(store, Record { results, ..Record::default() }).await;
    assert_eq!(state(store, "b").await, Some(State::Failure));
}

/// A result that is there already ends the wait at once.
pub async fn waiting_for_a_result_that_is_there(store: &Store, _: &ManualClock) {
    record(store, result("a", State::Failure)).await;
    assert!(woken(store.backend.wait(&Watch::Result(id("a")), FOREVER)).await.unwrap());
    assert!(store.backend.wait(&Watch::Result(id("a")), Duration::ZERO).await.unwrap());
}

/// A result that comes wakes who waits for it, and a state that is not final does not.
pub async fn waiting_for_a_result_to_come(store: &Store, _: &ManualClock) {
    let watch = Watch::Result(id("a"));
    let finish = async {
        record(store, result("a", State::Started)).await;
        record(store, result("other", State::Success)).await;
        record(store, result("a", State::Success)).await;
    };
    let wait = async {
        assert!(store.backend.wait(&watch, FOREVER).await.unwrap());
        state(store, "a").await
    };
    assert_eq!(meanwhile(wait, finish).await, Some(State::Success));
}

/// A result that comes is handed to who waits for it; who does not wait gets what is there.
pub async fn awaiting_a_result(store: &Store, _: &ManualClock) {
    let backend = &store.backend;
    let found = |meta: Option<ResultMeta>| meta.map(|meta| meta.state);
    assert_eq!(found(backend.await_result(&id("a"), Duration::ZERO).await.unwrap()), None);
    let finish = async {
        record(store, result("a", State::Started)).await;
        let started = backend.await_result(&id("a"), Duration::from_millis(5)).await;
        assert_eq!(found(started.unwrap()), Some(State::Started));
        record(store, result("a", State::Success)).await;
    };
    let wait = async { found(backend.await_result(&id("a"), FOREVER).await.unwrap()) };
    assert_eq!(meanwhile(wait, finish).await, Some(State::Success));
    assert_eq!(found(backend.await_result(&id("a"), Duration::ZERO).await.unwrap()), Some(State::Success));
}

/// A wait for what does not come is over some time.
pub async fn waiting_for_a_result_in_vain(store: &Store, _: &ManualClock) {
    record(store, result("a", State::Retry)).await;
    for task_id in ["a", "never"] {
        let watch = Watch::Result(id(task_id));
        assert!(!woken(store.backend.wait(&watch, Duration::from_millis(5))).await.unwrap());
    }
}

/// A record of a state, a log record and a step.
fn full(task_id: &str, of: State) -> Record {
    Record {
        steps: vec![StepRecord { task_id: id(task_id), name: "s".into(), value: json("1") }],
        log: vec![line(task_id, "state", "1")],
        ..result(task_id, of)
    }
}

async fn step(store: &Store, task_id: &str, name: &str) -> Option<Json> {
    store.backend.step(&id(task_id), name).await.unwrap()
}

/// What is finished is forgotten whole, and what is not stays whole.
pub async fn forget_spares_the_unfinished(store: &Store, _: &ManualClock) {
    record(store, full("done", State::Success)).await;
    record(store, full("runs", State::Started)).await;
    publish(store, &["waits"]).await;
    store.backend.forget(&ids(&["done", "runs", "waits", "never"])).await.unwrap();
    assert_eq!(fetch(store, "done").await, None);
    assert_eq!(step(store, "done", "s").await, None);
    assert!(log_of(store, "done").await.is_none_or(|log| log.is_empty()));
    let left = store.backend.feed(0, 10).await.unwrap();
    assert!(left.iter().all(|record| record.task_id == id("runs")), "{left:?}");
    assert_eq!(state(store, "runs").await, Some(State::Started));
    assert_eq!(step(store, "runs", "s").await, Some(json("1")));
    assert_eq!(log_of(store, "runs").await.unwrap().len(), 1);
    assert_eq!(reserve_one(store).await.task_id, id("waits"));
}

/// What finished long ago goes, and chords and groups as old; what runs or is younger stays.
pub async fn sweep_goes_by_age(store: &Store, clock: &ManualClock) {
    let finish = |task_id: &str| {
        let mut record = full(task_id, State::Success);
        record.results[0].date_done = Some(clock.now());
        record
    };
    let start = clock.now();
    for task_id in ["old-1", "old-2", "old-3"] {
        record(store, finish(task_id)).await;
    }
    record(store, full("runs", State::Started)).await;
    let chord = |name: &str| NewChord { group_id: GroupId::from(name), size: 1, body: json("{}") };
    let open = |name| Record { chords: vec![chord(name)], ..Record::default() };
    record(store, open("old")).await;
    store.backend.save_group(&GroupId::from("old"), &json("[]")).await.unwrap();
    clock.advance(SECOND * 100);
    record(store, finish("young")).await;
    record(store, open("young")).await;
    store.backend.save_group(&GroupId::from("young"), &json("[]")).await.unwrap();

    let before = after(start, SECOND * 50);
    let mut swept = 0;
    loop {
        let some = store.backend.sweep(before, 2).await.unwrap();
        if some == 0 {
            break;
        }
        swept += some;
    }
    assert_eq!(swept, 3);
    for task_id in ["old-1", "old-2", "old-3"] {
        assert_eq!((fetch(store, task_id).await, step(store, task_id, "s").await), (None, None));
    }
    for task_id in ["runs", "young"] {
        assert!(fetch(store, task_id).await.is_some(), "{task_id}");
        assert!(step(store, task_id, "s").await.is_some(), "{task_id}");
        assert_eq!(log_of(store, task_id).await.unwrap().len(), 1, "{task_id}");
    }
    assert_eq!(store.backend.group(&GroupId::from("old")).await.unwrap(), None);
    assert_eq!(store.backend.group(&GroupId::from("young")).await.unwrap(), Some(json("[]")));
    for (name, ready) in [("old", vec![]), ("young", vec![GroupId::from("young")])] {
        let part = chord::part(name, "p", None);
        let recorded = record(store, Record { parts: vec![part], ..Record::default() }).await;
        assert_eq!(recorded, Recorded::Written { ready }, "{name}");
    }
}

/// A step that finished keeps its value, and belongs to one task.
pub async fn the_first_value_of_a_step_stays(store: &Store, _: &ManualClock) {
    let step_of = |task_id: &str, name: &str, value: &str| StepRecord {
        task_id: id(task_id),
        name: name.into(),
        value: json(value),
    };
    publish(store, &["a", "b"]).await;
    assert_eq!(step(store, "a", "read").await, None);
    let steps = vec![step_of("a", "read", r#"{"x": 1}"#), step_of("b", "read", "2")];
    record(store, Record { steps, ..Record::default() }).await;
    let steps = vec![step_of("a", "read", "3"), step_of("a", "", "4"), step_of("a", "", "5")];
    record(store, Record { steps, ..Record::default() }).await;
    assert_eq!(step(store, "a", "read").await, Some(json(r#"{"x": 1}"#)));
    assert_eq!(step(store, "b", "read").await, Some(json("2")));
    assert_eq!(step(store, "a", "").await, Some(json("4")));
    assert_eq!(step(store, "a", "write").await, None);
    assert_eq!(step(store, "never", "read").await, None);
}

/// A group's shape is kept, a later one takes its place, and it is forgotten when that is asked for.
pub async fn groups_are_saved(store: &Store, _: &ManualClock) {
    let group_id = GroupId::from("g");
    assert_eq!(store.backend.group(&group_id).await.unwrap(), None);
    for shape in [r#"[["g", null], [[["a", null], null]]]"#, r#"[["g", null], []]"#] {
        store.backend.save_group(&group_id, &json(shape)).await.unwrap();
        assert_eq!(store.backend.group(&group_id).await.unwrap(), Some(json(shape)));
    }
    let other = GroupId::from("other");
    store.backend.save_group(&other, &json("[]")).await.unwrap();
    for _ in 0..2 {
        store.backend.delete_group(&group_id).await.unwrap();
        assert_eq!(store.backend.group(&group_id).await.unwrap(), None);
    }
    assert_eq!(store.backend.group(&other).await.unwrap(), Some(json("[]")));
}
