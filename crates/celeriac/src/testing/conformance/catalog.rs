//! Cases about lists of tasks, and all that is known of one.

use super::*;
use crate::backend::LogEntry;
use crate::broker::{Revocation, Revoke};
use crate::catalog::{Attempt, AttemptOutcome, Listed, TaskQuery, TaskRecord};
use crate::clock::{Clock, after};
use crate::store::Then;
use crate::testing::ManualClock;

/// Every task, ten at most.
pub(super) fn all() -> TaskQuery {
    TaskQuery { limit: 10, ..TaskQuery::default() }
}

/// Follows a list to its end.
pub(super) async fn every_page(store: &Store, query: &TaskQuery) -> Vec<Listed> {
    let mut query = query.clone();
    let mut found = Vec::new();
    loop {
        let page = store.catalog.tasks(&query).await.unwrap();
        assert!(page.tasks.len() <= query.limit, "{query:?}");
        found.extend(page.tasks);
        let Some(next) = page.next else { return found };
        assert!(query.before.is_none_or(|before| next < before), "{query:?} goes on at {next}");
        query.before = Some(next);
    }
}

fn listed_ids(listed: &[Listed]) -> Vec<&str> {
    listed.iter().map(|listed| listed.task_id.as_str()).collect()
}

async fn record_of(store: &Store, task_id: &str) -> TaskRecord {
    store.catalog.task(&id(task_id)).await.unwrap().expect("the task is known")
}

async fn attempts(store: &Store, task_id: &str) -> Vec<Attempt> {
    record_of(store, task_id).await.attempts
}

/// Sends a task again from within its run, as a retry does.
async fn retry(store: &Store, delivery: &Delivery, why: &str) {
    let task_id = delivery.task_id.as_str();
    let retry = ResultMeta { result: json(why), ..meta(task_id, State::Retry) };
    let record = Record { results: vec![retry], ..Record::default() };
    let again = Transaction {
        publish: vec![message(task_id)],
        record,
        ..Transaction::fenced(delivery.tag.clone(), Then::Ack)
    };
    assert_eq!(commit(store, again).await, committed());
}

/// Ends a run with a state, at a time that the result says.
async fn end(store: &Store, clock: &ManualClock, delivery: &Delivery, state: State) {
    let ended = ResultMeta { date_done: Some(clock.now()), ..meta(delivery.task_id.as_str(), state) };
    let record = Record { results: vec![ended], ..Record::default() };
    let settle = Transaction { record, ..Transaction::fenced(delivery.tag.clone(), Then::Ack) };
    assert_eq!(commit(store, settle).await, committed());
}

/// Nobody has heard of it.
pub async fn what_is_unknown_is_not_listed(store: &Store, _: &ManualClock) {
    assert_eq!(store.catalog.tasks(&all()).await.unwrap(), crate::catalog::TaskPage::default());
    assert_eq!(store.catalog.task(&id("never")).await.unwrap(), None);
}

/// The order is that of acceptance, and neither that of the lines nor that of the ids.
pub async fn the_newest_task_comes_first(store: &Store, _: &ManualClock) {
    let later = Some(crate::clock::Timestamp::MAX);
    store.broker.publish(vec![on("r", 9, "b"), on("q", 0, "c")]).await.unwrap();
    store.broker.publish(vec![Routed { due: later, ..message("a") }]).await.unwrap();
    let found = every_page(store, &all()).await;
    assert_eq!(listed_ids(&found), ["a", "c", "b"]);
    assert!(found.windows(2).all(|two| two[0].number > two[1].number), "{found:?}");
}

/// A page goes on where the last one stopped, whatever was added or moved in between.
pub async fn pages_show_each_task_once(store: &Store, _: &ManualClock) {
    let names: Vec<String> = (0..7).map(|n| format!("task-{n}")).collect();
    publish(store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut query = TaskQuery { limit: 2, ..TaskQuery::default() };
    let mut seen = Vec::new();
    for round in 0.. {
        let page = store.catalog.tasks(&query).await.unwrap();
        seen.extend(page.tasks.iter().map(|listed| listed.task_id.to_string()));
        publish(store, &[&format!("new-{round}")]).await;
        reserve_from(store, &["q"], 1).await;
        query.before = page.next;
        if query.before.is_none() {
            break;
        }
    }
    assert_eq!(seen, names.iter().rev().cloned().collect::<Vec<_>>());
}

/// What is shown of a task in each state that it can be in.
pub async fn every_state_is_shown(store: &Store, clock: &ManualClock) {
    let due = after(clock.now(), SECOND);
    for ended in ["success", "failure", "revoked"] {
        let delivery = held(store, ended).await;
        end(store, clock, &delivery, State::from(ended.to_uppercase())).await;
    }
    let delivery = held(store, "dead").await;
    assert!(store.broker.bury(&delivery.tag, "poison").await.unwrap());
    let delivery = held(store, "ignored").await;
    ack(store, &delivery).await;
    held(store, "started").await;
    let delivery = held(store, "retry").await;
    retry(store, &delivery, "1").await;
    let again = reserve_one(store).await;
    publish(store, &["queued"]).await;
    store.broker.publish(vec![Routed { due: Some(due), ..message("delayed") }]).await.unwrap();

    let shown = |listed: &Listed| (listed.task_id.to_string(), listed.state(), listed.place.phase);
    let found = every_page(store, &TaskQuery { limit: 3, ..TaskQuery::default() }).await;
    let found: Vec<_> = found.iter().map(shown).collect();
    let expected = [
        ("delayed", State::Pending, Phase::Delayed),
        ("queued", State::Pending, Phase::Queued),
        ("retry", State::Started, Phase::Reserved),
        ("started", State::Started, Phase::Reserved),
        ("ignored", State::Pending, Phase::Settled),
        ("dead", State::Pending, Phase::Dead),
        ("revoked", State::Revoked, Phase::Settled),
        ("failure", State::Failure, Phase::Settled),
        ("success", State::Success, Phase::Settled),
    ];
    assert_eq!(found, expected.map(|(task_id, state, phase)| (task_id.to_owned(), state, phase)));

    // A retry that waits says so, and what has come due is queued though nobody looked.
    retry(store, &again, "2").await;
    clock.advance(SECOND * 2);
    let of = async |task_id: &str| shown(&record_of(store, task_id).await.listed);
    assert_eq!(of("retry").await, ("retry".to_owned(), State::Retry, Phase::Queued));
    assert_eq!(of("delayed").await, ("delayed".to_owned(), State::Pending, Phase::Queued));
    let queued = TaskQuery { phases: vec![Phase::Queued], ..all() };
    assert_eq!(listed_ids(&every_page(store, &queued).await), ["delayed", "queued", "retry"]);
    let retried = TaskQuery { states: vec![State::Retry, State::Revoked], ..all() };
    assert_eq!(listed_ids(&every_page(store, &retried).await), ["retry", "revoked"]);
}

/// A task says who holds it, and after that who ended it, and when each of this was.
pub async fn a_run_has_a_worker_and_its_times(store: &Store, clock: &ManualClock) {
    let accepted = clock.now();
    publish(store, &["a"]).await;
    clock.advance(SECOND);
    let started = clock.now();
    let delivery = reserve_one(store).await;
    clock.advance(SECOND);
    let listed = record_of(store, "a").await.listed;
    assert_eq!((listed.accepted, listed.place.published), (accepted, accepted));
    assert_eq!((listed.worker, listed.started, listed.finished), (Some(worker("w")), Some(started), None));
    end(store, clock, &delivery, State::Success).await;
    let finished = clock.now();
    clock.advance(SECOND);
    let listed = record_of(store, "a").await.listed;
    assert_eq!((listed.worker, listed.started), (Some(worker("w")), Some(started)));
    assert_eq!((listed.finished, listed.place.worker), (Some(finished), None));
}

/// What was revoked before anybody ran it was run by nobody.
pub async fn who_revokes_does_not_run(store: &Store, clock: &ManualClock) {
    publish(store, &["a", "b"]).await;
    let request = Revoke {
        ids: ids(&["a", "b"]),
        terminate: false,
        signal: None,
        worker: worker("client"),
        lease: LEASE,
    };
    let mut taken = store.broker.revoke(&request).await.unwrap();
    let Revocation::Taken { delivery, .. } = taken.remove(0) else { panic!("it waits") };
    end(store, clock, &delivery, State::Revoked).await;
    let listed = record_of(store, "a").await.listed;
    assert_eq!((listed.worker, listed.started, listed.finished), (None, None, Some(clock.now())));
    // The other's taker is lost.
    clock.advance(LEASE + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert_eq!(attempts(store, "b").await, []);
}

/// Each run that did not end its task is an attempt: tried again, handed back, lost.
pub async fn runs_that_end_no_task_are_attempts(store: &Store, clock: &ManualClock) {
    let mut expected = Vec::new();
    let mut over = |started, ended, outcome, error: Option<&str>| {
        expected.push(Attempt { worker: worker("w"), started, ended, outcome, error: error.map(json) });
    };
    publish(store, &["a"]).await;

    clock.advance(SECOND);
    let started = clock.now();
    let delivery = reserve_one(store).await;
    clock.advance(SECOND);
    retry(store, &delivery, r#"{"exc_type": "OSError"}"#).await;
    over(started, clock.now(), AttemptOutcome::Retried, Some(r#"{"exc_type": "OSError"}"#));
    assert_eq!(record_of(store, "a").await.listed.started, Some(started), "of its last run");
    assert_eq!(record_of(store, "a").await.attempts.len(), 1);
    assert_eq!(record_of(store, "a").await.attempts[0].error, Some(json(r#"{"exc_type": "OSError"}"#)));

    let started = clock.now();
    let delivery = reserve_one(store).await;
    clock.advance(SECOND);
    store.broker.requeue(&[delivery.tag], None, false).await.unwrap();
    over(started, clock.now(), AttemptOutcome::HandedBack, None);

    let started = clock.now();
    reserve_one(store).await;
    let ends = after(started, LEASE);
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    over(started, ends, AttemptOutcome::Lost, None);

    let started = clock.now();
    let delivery = reserve_one(store).await;
    clock.advance(SECOND);
    let soon = Some(after(clock.now(), SECOND));
    store.broker.requeue(&[delivery.tag], soon, true).await.unwrap();
    over(started, clock.now(), AttemptOutcome::HandedBack, None);

    let mut found = attempts(store, "a").await;
    if !store.transact.is_atomic() {
        // Errors stand in the other half, and only the last one.
        found[0].error.clone_from(&expected[0].error);
    }
    assert_eq!(found, expected);

    // The run that ends the task is none.
    clock.advance(SECOND * 2);
    let delivery = reserve_one(store).await;
    end(store, clock, &delivery, State::Success).await;
    assert_eq!(attempts(store, "a").await.len(), expected.len());
}

/// A message put off before it ran has had no attempt.
pub async fn what_was_put_off_was_not_attempted(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    let soon = Some(after(clock.now(), SECOND));
    store.broker.requeue(&[delivery.tag], soon, false).await.unwrap();
    let record = record_of(store, "a").await;
    assert_eq!((record.attempts, record.listed.started), (vec![], None));
}

/// Only the newest attempts are kept.
pub async fn attempts_are_bounded(store: &Store, clock: &ManualClock) {
    publish(store, &["a"]).await;
    let runs = TaskRecord::ATTEMPTS_MAX + 3;
    let mut ends = Vec::new();
    for _ in 0..runs {
        let delivery = reserve_one(store).await;
        clock.advance(SECOND);
        ends.push(clock.now());
        store.broker.requeue(&[delivery.tag], None, true).await.unwrap();
    }
    let found: Vec<_> = attempts(store, "a").await.into_iter().map(|attempt| attempt.ended).collect();
    assert_eq!(found, ends[3..]);
}

/// Tags come back in the order given, find their task, and are replaced with its message.
pub async fn tags_find_their_tasks(store: &Store, clock: &ManualClock) {
    let tagged = |task_id: &str, tags: &[&str]| Routed {
        tags: tags.iter().map(|tag| Box::from(*tag)).collect(),
        ..message(task_id)
    };
    store.broker.publish(vec![tagged("a", &["z", "a", "it's \"one\""]), tagged("b", &["a"])]).await.unwrap();
    publish(store, &["c"]).await;
    let with = |tag: &str| TaskQuery { tag: Some(tag.into()), ..all() };
    let found = every_page(store, &with("a")).await;
    assert_eq!(listed_ids(&found), ["b", "a"]);
    assert_eq!(found[1].tags, ["z".into(), "a".into(), Box::<str>::from("it's \"one\"")]);
    assert_eq!(listed_ids(&every_page(store, &with("it's \"one\"")).await), ["a"]);
    assert_eq!(every_page(store, &with("b")).await, []);

    // A duplicate changes nothing; a new message does.
    assert_eq!(store.broker.publish(vec![tagged("a", &["no"])]).await.unwrap(), ids(&["a"]));
    assert_eq!(record_of(store, "a").await.listed.tags.len(), 3);
    let delivery = reserve_from(store, &["q"], 1).await.remove(0);
    end(store, clock, &delivery, State::Success).await;
    assert!(store.broker.publish(vec![tagged("a", &["y"])]).await.unwrap().is_empty());
    assert_eq!(record_of(store, "a").await.listed.tags, [Box::<str>::from("y")]);
    assert_eq!(listed_ids(&every_page(store, &with("a")).await), ["b"]);
    assert_eq!(listed_ids(&every_page(store, &with("y")).await), ["a"]);
}

/// A message that waits for a worker knows how many go before it.
pub async fn messages_ahead_are_counted(store: &Store, clock: &ManualClock) {
    let due = Some(after(clock.now(), SECOND));
    let late = Routed { due, ..on("q", 3, "late") };
    store.broker.publish(vec![late, on("q", 3, "first"), on("r", 0, "elsewhere")]).await.unwrap();
    store.broker.publish(vec![on("q", 3, "second"), on("q", 0, "urgent"), on("q", 9, "last")]).await.unwrap();
    let ahead = async |task_id: &str| record_of(store, task_id).await.ahead;
    assert_eq!(ahead("urgent").await, Some(0));
    assert_eq!(ahead("first").await, Some(1));
    assert_eq!(ahead("second").await, Some(2));
    assert_eq!(ahead("last").await, Some(3));
    assert_eq!(ahead("elsewhere").await, Some(0));
    assert_eq!(ahead("late").await, None);
    clock.advance(SECOND * 2);
    assert_eq!(ahead("late").await, Some(1));
    assert_eq!(ahead("last").await, Some(4));
    assert_eq!(task_ids(&reserve_from(store, &["q"], 1).await), ["urgent"]);
    assert_eq!((ahead("urgent").await, ahead("late").await), (None, Some(0)));
}

/// The newest report of progress is found under what came after it.
pub async fn the_newest_progress_is_told(store: &Store, clock: &ManualClock) {
    publish(store, &["a", "b"]).await;
    let tag = reserve(store).await.remove(0).tag;
    let mut log = vec![line("a", "progress", "1"), line("a", "progress", "2"), line("b", "progress", "3")];
    log.extend((0..700).map(|_| line("a", "token", "\"t\"")));
    let write =
        Transaction { record: Record { log, ..Record::default() }, ..Transaction::fenced(tag, Then::Keep) };
    assert_eq!(commit(store, write).await, committed());
    let at = clock.now();
    let newest = LogEntry { position: 2, event: "progress".into(), data: json("2"), at };
    assert_eq!(record_of(store, "a").await.progress, Some(newest));
    publish(store, &["c"]).await;
    assert_eq!(record_of(store, "c").await.progress, None);
}

/// A record has the message as last published, and keeps it when all is over.
pub async fn a_record_has_the_message(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    assert_eq!(record_of(store, "a").await.message.as_ref(), Some(&delivery.message));
    end(store, clock, &delivery, State::Success).await;
    assert_eq!(record_of(store, "a").await.message, Some(delivery.message));
}

/// A task sent again is where it was in the order, and has its first time of acceptance.
pub async fn a_task_sent_again_keeps_its_number(store: &Store, clock: &ManualClock) {
    let accepted = clock.now();
    let delivery = held(store, "a").await;
    publish(store, &["b"]).await;
    let before = record_of(store, "a").await.listed;
    end(store, clock, &delivery, State::Failure).await;
    for _ in 0..2 {
        clock.advance(SECOND);
        assert!(store.broker.publish(vec![message("a")]).await.unwrap().is_empty());
        let listed = record_of(store, "a").await.listed;
        assert_eq!((listed.number, listed.accepted), (before.number, accepted));
        assert_eq!((listed.place.published, listed.place.phase), (clock.now(), Phase::Queued));
        assert_eq!(listed.worker, None);
        if store.transact.is_atomic() {
            assert_eq!((listed.state(), listed.finished), (State::Pending, None));
        }
        assert_eq!(listed_ids(&every_page(store, &all()).await), ["b", "a"]);
        let again = reserve(store).await.into_iter().find(|delivery| delivery.task_id == id("a")).unwrap();
        end(store, clock, &again, State::Failure).await;
        assert_eq!(record_of(store, "a").await.listed.worker, Some(worker("w")));
    }
}

/// What is forgotten is gone from the lists, and its tags and attempts with it.
pub async fn the_forgotten_is_not_listed(store: &Store, clock: &ManualClock) {
    store.broker.publish(vec![Routed { tags: vec!["x".into()], ..message("a") }]).await.unwrap();
    let delivery = reserve_one(store).await;
    store.broker.requeue(&[delivery.tag], None, true).await.unwrap();
    let delivery = reserve_one(store).await;
    end(store, clock, &delivery, State::Success).await;
    store.backend.forget(&ids(&["a"])).await.unwrap();
    if !store.transact.is_atomic() {
        // The broker's half is not told.
        assert_eq!(record_of(store, "a").await.listed.state(), State::Pending);
        return;
    }
    assert_eq!(store.catalog.task(&id("a")).await.unwrap(), None);
    assert_eq!(every_page(store, &all()).await, []);
    publish(store, &["a"]).await;
    let record = record_of(store, "a").await;
    assert_eq!((record.listed.tags, record.attempts), (vec![], vec![]));
}

/// Times bound a list even where clocks went back between two tasks.
pub async fn a_clock_set_back_hides_no_task(store: &Store, clock: &ManualClock) {
    let minute = SECOND * 60;
    let start = clock.now();
    let at = |minutes: u32| after(start, minute * minutes);
    for (minutes, task_id) in [(0, "a"), (60, "b"), (64, "c"), (61, "d"), (63, "e"), (120, "f")] {
        clock.set(at(minutes));
        publish(store, &[task_id]).await;
    }
    let found = async |since, until| {
        let listed = every_page(store, &TaskQuery { since, until, ..all() }).await;
        listed.iter().map(|listed| listed.task_id.to_string()).collect::<String>()
    };
    assert_eq!(found(Some(at(62)), None).await, "fec");
    assert_eq!(found(None, Some(at(62))).await, "dba");
    assert_eq!(found(Some(at(61)), Some(at(64))).await, "ed");
    assert_eq!(found(Some(at(120)), None).await, "f");
    assert_eq!(found(Some(at(121)), None).await, "");
    assert_eq!(found(None, Some(start)).await, "");
}
