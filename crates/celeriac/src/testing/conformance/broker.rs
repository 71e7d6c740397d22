//! Cases about publishing, the order of reserving, waiting, and what an operator sees.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::broker::QueueStatus;
use crate::clock::{Clock, after};
use crate::store::{Then, Transaction};
use crate::testing::ManualClock;

/// First in, first out.
pub async fn messages_come_in_order_of_publishing(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b"]).await;
    publish(store, &["c"]).await;
    assert_eq!(task_ids(&reserve_from(store, &["q"], 2).await), ["a", "b"]);
    publish(store, &["d"]).await;
    assert_eq!(task_ids(&reserve(store).await), ["c", "d"]);
    assert!(reserve(store).await.is_empty());
}

/// A message of a lower number overtakes, on whichever queue it stands.
pub async fn lower_priorities_come_first_across_queues(store: &Store, _: &ManualClock) {
    let messages =
        vec![on("q", 5, "q5"), on("r", 3, "r3"), on("q", 3, "q3"), on("r", 0, "r0"), on("r", 9, "r9")];
    store.broker.publish(messages).await.unwrap();
    let deliveries = reserve_from(store, &["q", "r"], 10).await;
    let priorities: Vec<u8> = deliveries.iter().map(|delivery| delivery.priority).collect();
    assert_eq!(priorities, [0, 3, 3, 5, 9], "{deliveries:?}");
}

/// There are ten priorities.
pub async fn priorities_past_nine_count_as_nine(store: &Store, _: &ManualClock) {
    let messages = vec![on("q", 200, "a"), on("q", 9, "b"), on("q", 10, "c"), on("q", 8, "d")];
    store.broker.publish(messages).await.unwrap();
    let deliveries = reserve(store).await;
    assert_eq!(task_ids(&deliveries), ["d", "a", "b", "c"]);
    assert_eq!(deliveries[1].priority, 9);
}

/// A long queue does not starve another, within one call nor over many.
pub async fn queues_take_turns_within_a_priority(store: &Store, _: &ManualClock) {
    let long = (0..40).map(|n| on("long", 0, &format!("long-{n}")));
    let short = (0..6).map(|n| on("short", 0, &format!("short-{n}")));
    store.broker.publish(long.chain(short).collect()).await.unwrap();
    let of_short = |deliveries: &[Delivery]| deliveries.iter().filter(|d| d.queue == queue("short")).count();
    let mut deliveries = reserve_from(store, &["long", "short"], 6).await;
    assert!(of_short(&deliveries) >= 2, "within one call: {deliveries:?}");
    for _ in 0..6 {
        deliveries.extend(reserve_from(store, &["long", "short"], 1).await);
    }
    assert!(of_short(&deliveries) >= 4, "over many calls: {deliveries:?}");
    for name in ["long", "short"] {
        let of_queue: Vec<&str> =
            deliveries.iter().filter(|d| d.queue == queue(name)).map(|d| d.task_id.as_str()).collect();
        let expected: Vec<String> = (0..of_queue.len()).map(|n| format!("{name}-{n}")).collect();
        assert_eq!(of_queue, expected, "the order within a queue holds");
    }
}

/// `limit` is kept to; no queues and a limit of nothing give nothing at once.
pub async fn a_limit_bounds_and_no_queues_give_nothing(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b", "c"]).await;
    assert!(woken(store.broker.reserve(&request(&[], 5, FOREVER))).await.unwrap().is_empty());
    assert!(woken(store.broker.reserve(&request(&["q"], 0, FOREVER))).await.unwrap().is_empty());
    assert_eq!(reserve_from(store, &["q"], 2).await.len(), 2);
    assert!(reserve_from(store, &["other"], 2).await.is_empty());
    assert_eq!(reserve_from(store, &["q"], 2).await.len(), 1);
}

/// Any text is a legal name, and a body is bytes.
pub async fn bytes_and_names_come_back_as_they_were(store: &Store, _: &ManualClock) {
    let mut sent = on("q'; --", 4, "Ω ' \" % \n{}:*");
    sent.task = "app.tasks.\"ø\"".into();
    sent.message.body = Bytes::from((0..=255).collect::<Vec<u8>>());
    sent.message.head = "{\"headers\":{\"id\":\"Ω\"}}".into();
    store.broker.publish(vec![sent.clone()]).await.unwrap();
    let deliveries = reserve_from(store, &["q'; --"], 5).await;
    assert_eq!(deliveries.len(), 1);
    let delivery = &deliveries[0];
    assert_eq!(delivery.message, sent.message);
    assert_eq!((&delivery.task_id, &delivery.queue, delivery.priority), (&sent.task_id, &sent.queue, 4));
    assert_eq!((delivery.deliveries, delivery.begun, delivery.revoked), (1, false, false));
    assert_eq!(place(store, sent.task_id.as_str()).await.unwrap().task, sent.task);
}

/// A live id is a duplicate and its neighbours are not, in one call as in two.
pub async fn publishing_is_all_or_nothing_but_for_duplicates(store: &Store, _: &ManualClock) {
    let batch = vec![message("a"), message("b"), message("a")];
    assert_eq!(store.broker.publish(batch).await.unwrap(), ids(&["a"]));
    let again = vec![message("b"), message("c")];
    assert_eq!(store.broker.publish(again).await.unwrap(), ids(&["b"]));
    let deliveries = reserve(store).await;
    assert_eq!(task_ids(&deliveries), ["a", "b", "c"]);
    let held = vec![message("a")];
    assert_eq!(store.broker.publish(held).await.unwrap(), ids(&["a"]), "it is held");
    assert!(store.broker.publish(vec![]).await.unwrap().is_empty());
}

/// Without `unique`, an id that is done with may be used again.
pub async fn a_settled_id_may_be_sent_again(store: &Store, _: &ManualClock) {
    let first = held(store, "a").await;
    ack(store, &first).await;
    assert!(reserve(store).await.is_empty());
    let second = held(store, "a").await;
    assert_eq!(second.deliveries, 1);
    assert_ne!(second.tag, first.tag);
}

/// With `unique`, an id that is known in any phase is a duplicate.
pub async fn a_unique_id_is_never_sent_again(store: &Store, _: &ManualClock) {
    let unique = || vec![Routed { unique: true, ..message("a") }];
    assert!(store.broker.publish(unique()).await.unwrap().is_empty());
    assert_eq!(store.broker.publish(unique()).await.unwrap(), ids(&["a"]), "queued");
    let delivery = reserve_one(store).await;
    assert_eq!(store.broker.publish(unique()).await.unwrap(), ids(&["a"]), "held");
    ack(store, &delivery).await;
    assert_eq!(store.broker.publish(unique()).await.unwrap(), ids(&["a"]), "settled");
    assert!(reserve(store).await.is_empty());
}

/// A message that is not due is not given out; when it is, it is.
pub async fn a_delayed_message_shows_when_due(store: &Store, clock: &ManualClock) {
    let due = |task_id, secs| {
        let due = Some(after(clock.now(), Duration::from_secs(secs)));
        Routed { due, ..message(task_id) }
    };
    store.broker.publish(vec![due("later", 20), due("soon", 10), due("now", 0)]).await.unwrap();
    assert_eq!(task_ids(&reserve(store).await), ["now"]);
    let found = place(store, "soon").await.unwrap();
    assert_eq!((found.phase, found.due), (Phase::Delayed, Some(after(clock.now(), SECOND * 10))));
    clock.advance(SECOND * 9);
    assert!(reserve(store).await.is_empty());
    clock.advance(SECOND * 2);
    assert_eq!(phase(store, "later").await, Some(Phase::Delayed));
    assert_eq!(task_ids(&reserve(store).await), ["soon"]);
    clock.advance(SECOND * 10);
    assert_eq!(task_ids(&reserve(store).await), ["later"]);
}

/// Whoever waits is woken by what comes.
pub async fn a_waiting_reserve_is_woken_by_a_publish(store: &Store, _: &ManualClock) {
    let wanted = request(&["other", "q"], 5, FOREVER);
    let deliveries = meanwhile(store.broker.reserve(&wanted), publish(store, &["a"])).await.unwrap();
    assert_eq!(task_ids(&deliveries), ["a"]);
    let commit = async {
        commit(store, Transaction::publish(vec![message("b")])).await;
    };
    let deliveries = meanwhile(store.broker.reserve(&wanted), commit).await.unwrap();
    assert_eq!(task_ids(&deliveries), ["b"]);
}

/// Whoever waits is woken by what another gives back.
pub async fn a_waiting_reserve_is_woken_by_a_requeue(store: &Store, clock: &ManualClock) {
    let first = held(store, "a").await;
    let requeue = async {
        store.broker.requeue(std::slice::from_ref(&first.tag), None, true).await.unwrap();
    };
    let wanted = request(&["q"], 5, FOREVER);
    let second = meanwhile(store.broker.reserve(&wanted), requeue).await.unwrap();
    assert_eq!((second.len(), second[0].deliveries), (1, 2));
    clock.advance(LEASE + SECOND);
    let restore = async {
        assert_eq!(store.broker.restore().await.unwrap(), 1);
    };
    let third = meanwhile(store.broker.reserve(&wanted), restore).await.unwrap();
    assert_eq!((third.len(), third[0].deliveries), (1, 3));
}

/// Whoever waits gets what falls due meanwhile, with no other event to wake him.
pub async fn a_waiting_reserve_takes_what_falls_due(store: &Store, clock: &ManualClock) {
    clock.run();
    let due = Some(after(clock.now(), Duration::from_millis(80)));
    store.broker.publish(vec![Routed { due, ..message("a") }]).await.unwrap();
    let deliveries = woken(store.broker.reserve(&request(&["q"], 5, FOREVER))).await.unwrap();
    assert_eq!(task_ids(&deliveries), ["a"]);
    assert!(Some(clock.now()) >= due);
}

/// A wait with nothing to wait for is over some time.
pub async fn a_reserve_that_finds_nothing_ends(store: &Store, _: &ManualClock) {
    let wanted = request(&["q"], 5, Duration::from_millis(5));
    assert!(woken(store.broker.reserve(&wanted)).await.unwrap().is_empty());
}

/// No message has two holders, and all are given out.
pub async fn concurrent_reserves_share_without_overlap(store: &Store, _: &ManualClock) {
    const MESSAGES: usize = 120;
    let messages = (0..MESSAGES).map(|n| message(&n.to_string())).collect();
    store.broker.publish(messages).await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let store = store.clone();
        workers.spawn(async move {
            let wanted = Reserve { worker: worker(&n.to_string()), ..request(&["q"], 3, Duration::ZERO) };
            let mut got = Vec::new();
            loop {
                let deliveries = store.broker.reserve(&wanted).await.unwrap();
                if deliveries.is_empty() {
                    return got;
                }
                assert!(store.broker.ack(&tags(&deliveries)).await.unwrap().is_empty());
                got.extend(deliveries.into_iter().map(|delivery| delivery.task_id));
            }
        });
    }
    let got: Vec<TaskId> = woken(workers.join_all()).await.into_iter().flatten().collect();
    assert_eq!(got.len(), MESSAGES);
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), MESSAGES);
}

/// Ready, delayed and held messages are counted apart, and the oldest that waits is told.
pub async fn queues_are_counted(store: &Store, clock: &ManualClock) {
    assert!(store.broker.queues().await.unwrap().is_empty());
    let start = clock.now();
    publish(store, &["a", "b"]).await;
    clock.advance(SECOND);
    publish(store, &["c"]).await;
    let due = Some(after(clock.now(), SECOND * 60));
    store.broker.publish(vec![Routed { due, ..message("d") }, on("p", 3, "e")]).await.unwrap();
    let status = |name, ready, delayed, reserved, oldest| QueueStatus {
        queue: queue(name),
        ready,
        delayed,
        reserved,
        oldest,
        paused: false,
    };
    let p = status("p", 1, 0, 0, Some(clock.now()));
    assert_eq!(store.broker.queues().await.unwrap(), [p.clone(), status("q", 3, 1, 0, Some(start))]);
    let deliveries = reserve_from(store, &["q"], 2).await;
    assert_eq!(store.broker.queues().await.unwrap(), [p.clone(), status("q", 1, 1, 2, Some(clock.now()))]);
    ack(store, &deliveries[0]).await;
    clock.advance(SECOND * 61);
    let q = status("q", 2, 0, 1, Some(after(start, SECOND)));
    assert_eq!(store.broker.queues().await.unwrap(), [p.clone(), q]);
    store.broker.requeue(&tags(&deliveries[1..]), None, true).await.unwrap();
    let q = status("q", 3, 0, 0, Some(start));
    assert_eq!(store.broker.queues().await.unwrap(), [p, q]);
}

/// What waits goes, due or not; what is held and what stands elsewhere stays.
pub async fn purge_drops_what_waits(store: &Store, clock: &ManualClock) {
    let kept = held(store, "held").await;
    publish(store, &["ready"]).await;
    let due = Some(after(clock.now(), SECOND * 60));
    store.broker.publish(vec![Routed { due, ..message("delayed") }, on("p", 0, "other")]).await.unwrap();
    let mut purged = store.broker.purge(&queue("q")).await.unwrap();
    purged.sort();
    assert_eq!(purged, ids(&["delayed", "ready"]));
    assert!(store.broker.purge(&queue("q")).await.unwrap().is_empty());
    clock.advance(SECOND * 61);
    assert!(reserve(store).await.is_empty());
    assert_eq!(phase(store, "ready").await, Some(Phase::Settled));
    assert_eq!(phase(store, "delayed").await, Some(Phase::Settled));
    ack(store, &kept).await;
    assert_eq!(task_ids(&reserve_from(store, &["p"], 5).await), ["other"]);
}

/// Where a message stands is told in every phase, and in the order asked.
pub async fn locate_knows_every_phase(store: &Store, clock: &ManualClock) {
    let published = clock.now();
    let due = Some(after(published, SECOND * 5));
    store.broker.publish(vec![Routed { due, ..message("a") }]).await.unwrap();
    let delayed = place(store, "a").await.unwrap();
    assert_eq!((delayed.phase, delayed.due, delayed.worker), (Phase::Delayed, due, None));
    assert_eq!((delayed.published, delayed.queue, &*delayed.task), (published, queue("q"), "t"));
    assert_eq!((delayed.state, delayed.deliveries, delayed.revoked), (State::Pending, 0, false));

    clock.advance(SECOND * 6);
    let queued = place(store, "a").await.unwrap();
    assert_eq!((queued.phase, queued.due, queued.published), (Phase::Queued, None, published));

    let delivery = reserve_one(store).await;
    let reserved = place(store, "a").await.unwrap();
    assert_eq!((reserved.phase, reserved.worker), (Phase::Reserved, Some(worker("w"))));
    assert_eq!((reserved.deliveries, reserved.due), (1, None));

    store.broker.bury(&delivery.tag, "poison").await.unwrap();
    let dead = place(store, "a").await.unwrap();
    assert_eq!((dead.phase, dead.worker, dead.deliveries), (Phase::Dead, None, 1));

    let delivery = held(store, "b").await;
    let record = result("b", State::Success);
    commit(store, Transaction { record, ..Transaction::fenced(delivery.tag, Then::Ack) }).await;
    let settled = place(store, "b").await.unwrap();
    assert_eq!((settled.phase, settled.worker, settled.queue), (Phase::Settled, None, queue("q")));
    let state = if store.transact.is_atomic() { State::Success } else { State::Pending };
    assert_eq!(settled.state, state);

    let places = store.broker.locate(&ids(&["never", "b", "a", "b"])).await.unwrap();
    let phases: Vec<Option<Phase>> = places.into_iter().map(|place| place.map(|place| place.phase)).collect();
    assert_eq!(phases, [None, Some(Phase::Settled), Some(Phase::Dead), Some(Phase::Settled)]);
}
