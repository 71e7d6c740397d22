//! Cases about the one step over both halves.

use super::*;
use crate::backend::{StepRecord, Watch};
use crate::broker::Routed;
use crate::clock::{Clock, after};
use crate::id::GroupId;
use crate::store::Then;
use crate::testing::ManualClock;

/// A transaction that touches everything there is.
fn everything(tag: &DeliveryTag, task_id: &str, then: Then) -> Transaction {
    let record = Record {
        fire: None,
        results: vec![meta(task_id, State::Success)],
        chords: chord::opening("opened", 3).chords,
        parts: vec![chord::part("g", task_id, Some(0))],
        steps: vec![StepRecord { task_id: id(task_id), name: "s".into(), value: json("1") }],
        log: vec![line(task_id, "end", "1")],
    };
    Transaction { publish: vec![message("next")], record, ..Transaction::fenced(tag.clone(), then) }
}

/// Checks whether all of [`everything`] was written, or nothing.
async fn assert_written(store: &Store, task_id: &str, written: bool) {
    let expected = written.then_some(State::Success);
    assert_eq!(state(store, task_id).await, expected);
    assert_eq!(phase(store, "next").await, written.then_some(Phase::Queued));
    let step = store.backend.step(&id(task_id), "s").await.unwrap();
    assert_eq!(step, written.then(|| json("1")));
    let log = log_of(store, task_id).await.unwrap_or_default();
    assert_eq!(log, if written { vec!["end 1"] } else { vec![] });
    let ready = store.backend.ready_chords(10).await.unwrap();
    assert_eq!(ready.contains(&GroupId::from("g")), written);
    let parts = (0..3).map(|n| chord::part("opened", &n.to_string(), None)).collect();
    let Recorded::Written { ready } = record(store, Record { parts, ..Record::default() }).await else {
        panic!("there is no condition");
    };
    assert_eq!(ready.len(), usize::from(written), "the chord is open");
}

/// All of a settlement is written, and its chord's completion is told.
pub async fn a_settlement_is_one_step(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    chord::open(store, "g", 1).await;
    let watch = Watch::Result(id("a"));
    let settle = async {
        let outcome = commit(store, everything(&delivery.tag, "a", Then::Ack)).await;
        assert_eq!(outcome, Outcome::Committed { ready: vec![GroupId::from("g")], duplicates: vec![] });
    };
    assert!(meanwhile(store.backend.wait(&watch, FOREVER), settle).await.unwrap());
    assert_written(store, "a", true).await;
    assert_eq!(phase(store, "a").await, Some(Phase::Settled));
    // Repeated, as after a lost reply, it is refused.
    assert_eq!(commit(store, everything(&delivery.tag, "a", Then::Ack)).await, Outcome::Lost);
    assert_eq!(task_ids(&reserve(store).await), ["next"]);
}

/// A retry is acknowledged, stored as RETRY and sent under the same id at once.
pub async fn a_retry_is_one_step(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    let due = Some(after(clock.now(), SECOND * 10));
    let next = RawMessage { body: bytes::Bytes::from_static(b"second"), ..message("a").message };
    let retry = Transaction {
        // Even what must not be sent twice is sent again by its own retry.
        publish: vec![Routed { due, unique: true, message: next.clone(), ..message("a") }],
        record: Record { log: vec![line("a", "state", "\"RETRY\"")], ..result("a", State::Retry) },
        ..Transaction::fenced(delivery.tag.clone(), Then::Ack)
    };
    assert_eq!(commit(store, retry.clone()).await, committed());
    let waits = place(store, "a").await.unwrap();
    assert_eq!((waits.phase, waits.due), (Phase::Delayed, due));
    assert_eq!(state(store, "a").await, Some(State::Retry));
    assert_eq!(commit(store, retry).await, Outcome::Lost);
    assert!(reserve(store).await.is_empty());
    clock.advance(SECOND * 11);
    let second = reserve_one(store).await;
    assert_eq!((second.deliveries, &second.message), (1, &next));
    let record = Record { log: vec![line("a", "end", "1")], ..result("a", State::Success) };
    let done = Transaction { record, ..Transaction::fenced(second.tag, Then::Ack) };
    assert_eq!(commit(store, done).await, committed());
    assert_eq!(state(store, "a").await, Some(State::Success));
    assert_eq!(log_of(store, "a").await.unwrap(), ["state \"RETRY\"", "end 1"], "one log for all attempts");
}

/// A fence does what the broker's calls do.
pub async fn every_fate_of_a_delivery(store: &Store, clock: &ManualClock) {
    let fenced = |delivery: &Delivery, then| Transaction {
        record: Record { log: vec![line("a", "log", "1")], ..Record::default() },
        ..Transaction::fenced(delivery.tag.clone(), then)
    };
    let delivery = held(store, "a").await;
    assert_eq!(commit(store, fenced(&delivery, Then::Keep)).await, committed());
    assert_eq!(commit(store, Transaction::fenced(delivery.tag.clone(), Then::Keep)).await, committed());
    assert_eq!(phase(store, "a").await, Some(Phase::Reserved));

    let back = Then::Requeue { due: None, counted: false };
    assert_eq!(commit(store, fenced(&delivery, back)).await, committed());
    let delivery = reserve_one(store).await;
    assert_eq!(delivery.deliveries, 1);

    let due = Some(after(clock.now(), SECOND));
    let later = Then::Requeue { due, counted: true };
    assert_eq!(commit(store, fenced(&delivery, later)).await, committed());
    assert_eq!(place(store, "a").await.unwrap().due, due);
    clock.advance(SECOND * 2);
    let delivery = reserve_one(store).await;
    assert_eq!(delivery.deliveries, 2);

    assert_eq!(commit(store, fenced(&delivery, Then::Begin)).await, committed());
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    let delivery = reserve_one(store).await;
    assert!(delivery.begun);

    let bury = Then::Bury { reason: "poison".into() };
    assert_eq!(commit(store, fenced(&delivery, bury.clone())).await, committed());
    let dead = store.broker.dead(0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].reason.as_str()), (1, "poison"));
    assert_eq!(commit(store, fenced(&delivery, bury)).await, Outcome::Lost);
    assert_eq!(log_of(store, "a").await.unwrap().len(), 5);
}

/// Under a lease that was lost nothing is written, whatever was to become of the delivery.
pub async fn nothing_is_written_without_the_lease(store: &Store, clock: &ManualClock) {
    let lost = held(store, "a").await;
    chord::open(store, "g", 1).await;
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    let back = Then::Requeue { due: None, counted: true };
    let bury = Then::Bury { reason: "poison".into() };
    for then in [Then::Keep, Then::Begin, Then::Ack, back, bury] {
        assert_eq!(commit(store, everything(&lost.tag, "a", then)).await, Outcome::Lost);
        assert_eq!(commit(store, Transaction::fenced(lost.tag.clone(), Then::Ack)).await, Outcome::Lost);
    }
    assert_eq!(phase(store, "a").await, Some(Phase::Queued));
    assert_written(store, "a", false).await;
    let holder = reserve_one(store).await;
    assert_eq!(holder.deliveries, 2);
    assert_eq!(commit(store, everything(&lost.tag, "a", Then::Ack)).await, Outcome::Lost, "another holds it");
    assert_written(store, "a", false).await;
    let outcome = commit(store, everything(&holder.tag, "a", Then::Ack)).await;
    assert!(outcome.is_committed(), "{outcome:?}");
    assert_written(store, "a", true).await;
}

/// When the chord cannot be fired nothing is written, and the delivery stays held.
pub async fn nothing_is_written_without_the_chord(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    chord::open(store, "g", 1).await;
    let mut transaction = everything(&delivery.tag, "a", Then::Ack);
    transaction.record.fire = Some(GroupId::from("g"));
    assert_eq!(commit(store, transaction).await, Outcome::NotReady, "its own part comes after the condition");
    assert_written(store, "a", false).await;
    assert_eq!(phase(store, "a").await, Some(Phase::Reserved));
    ack(store, &delivery).await;
}

/// In one commit, what becomes of one transaction is nothing to the others.
pub async fn neighbours_are_independent(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b", "c", "d"]).await;
    let deliveries = reserve(store).await;
    ack(store, &deliveries[1]).await;
    let settle = |delivery: &Delivery| {
        let task_id = delivery.task_id.as_str();
        let publish = vec![message(&format!("after-{task_id}"))];
        let record = Record { log: vec![line(task_id, "end", "1")], ..result(task_id, State::Success) };
        Transaction { publish, record, ..Transaction::fenced(delivery.tag.clone(), Then::Ack) }
    };
    let mut transactions: Vec<Transaction> = deliveries.iter().map(settle).collect();
    transactions[2].record.fire = Some(GroupId::from("never"));
    transactions.push(Transaction::publish(vec![message("d"), message("e")]));
    transactions.push(Transaction::default());
    let outcomes = store.transact.commit(transactions).await.unwrap();
    let duplicate = |task_id: &str| Outcome::Committed { ready: vec![], duplicates: ids(&[task_id]) };
    // One store settles `d` before the next transaction sends it again.
    let e = if store.transact.is_atomic() { committed() } else { outcomes[4].clone() };
    assert_eq!(
        outcomes,
        [committed(), Outcome::Lost, Outcome::NotReady, committed(), e.clone(), committed()]
    );
    assert!(e == committed() || e == duplicate("d"));
    assert_eq!(state(store, "a").await, Some(State::Success));
    assert_eq!((state(store, "b").await, state(store, "c").await), (None, None));
    for (task_id, expected) in [("after-a", true), ("after-b", false), ("after-c", false), ("after-d", true)]
    {
        assert_eq!(phase(store, task_id).await.is_some(), expected, "{task_id}");
    }
    assert_eq!(phase(store, "c").await, Some(Phase::Reserved));
    assert_eq!(phase(store, "e").await, Some(Phase::Queued));
    assert!(store.transact.commit(vec![]).await.unwrap().is_empty());
}

/// Of many who settle under one tag at a time, one does.
pub async fn racing_settlements_settle_once(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    let mut racers = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (store, tag) = (store.clone(), delivery.tag.clone());
        racers.spawn(async move {
            let publish = vec![message(&format!("next-{n}"))];
            commit(&store, Transaction { publish, ..Transaction::fenced(tag, Then::Ack) }).await
        });
    }
    let outcomes = woken(racers.join_all()).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_committed()).count(), 1, "{outcomes:?}");
    assert_eq!(reserve(store).await.len(), 1);
}

/// A finished task that is sent again may finish differently. Where the halves know nothing of each other, the old
/// result is to be forgotten first.
pub async fn a_finished_task_sent_again_starts_over(store: &Store, _: &ManualClock) {
    let settle = |delivery: Delivery, of: State| {
        let record = Record { log: vec![line("a", "end", "1")], ..result("a", of) };
        Transaction { record, ..Transaction::fenced(delivery.tag, Then::Ack) }
    };
    let first = held(store, "a").await;
    commit(store, settle(first, State::Failure)).await;
    let atomic = store.transact.is_atomic();
    if !atomic {
        store.backend.forget(&ids(&["a"])).await.unwrap();
    }
    let second = held(store, "a").await;
    assert_eq!(state(store, "a").await, None, "it is not finished");
    if atomic {
        let page = store.backend.log(&id("a"), 0, 10).await.unwrap().unwrap();
        assert_eq!((page.last, page.ended), (1, false), "its log goes on");
        assert_eq!(place(store, "a").await.unwrap().state, State::Pending);
    }
    assert_eq!(commit(store, settle(second, State::Success)).await, committed());
    assert_eq!(state(store, "a").await, Some(State::Success));
    assert_eq!(log_of(store, "a").await.unwrap().len(), if atomic { 2 } else { 1 });
}

/// Without a fence a transaction is a publish and a record in one.
pub async fn the_unfenced_is_unconditional(store: &Store, _: &ManualClock) {
    let send = |task_id: &str| Transaction {
        publish: vec![message(task_id)],
        record: Record { log: vec![line(task_id, "state", "\"PENDING\"")], ..Record::default() },
        fence: None,
    };
    assert_eq!(commit(store, send("a")).await, committed());
    assert_eq!(log_of(store, "a").await.unwrap(), ["state \"PENDING\""], "the message made it known");
    let again = commit(store, Transaction::publish(vec![message("a"), message("b")])).await;
    assert_eq!(again, Outcome::Committed { ready: vec![], duplicates: ids(&["a"]) });
    assert_eq!(task_ids(&reserve(store).await), ["a", "b"]);
}
