//! Cases about messages that are sent at once, and that a store may keep together for as long as they are alike.

use super::catalog::every_page;
use super::*;
use crate::broker::{Revocation, Revoke};
use crate::catalog::TaskQuery;
use crate::clock::{Clock, after};
use crate::store::Then;
use crate::testing::ManualClock;

/// Enough for any store to take them for a batch.
const SIZE: usize = 40;

fn ids_of(batch: &[Routed]) -> Vec<TaskId> {
    batch.iter().map(|routed| routed.task_id.clone()).collect()
}

async fn send(store: &Store, batch: &[Routed]) {
    assert!(store.broker.publish(batch.to_vec()).await.unwrap().is_empty(), "they are new");
}

/// What a list shows, the oldest first.
async fn listed(store: &Store, limit: usize) -> Vec<TaskId> {
    let query = TaskQuery { limit, ..TaskQuery::default() };
    let found = every_page(store, &query).await;
    found.into_iter().rev().map(|listed| listed.task_id).collect()
}

async fn finish(store: &Store, deliveries: &[Delivery], clock: &ManualClock) {
    let end = |delivery: &Delivery| {
        let mut record = result(delivery.task_id.as_str(), State::Success);
        record.results[0].date_done = Some(clock.now());
        Transaction { record, ..Transaction::fenced(delivery.tag.clone(), Then::Ack) }
    };
    let outcomes = store.transact.commit(deliveries.iter().map(end).collect()).await.unwrap();
    assert!(outcomes.iter().all(Outcome::is_committed), "{outcomes:?}");
}

/// Each of them is known by itself before any was looked at, is in the lists between its neighbours, and comes whole.
pub async fn a_batch_is_as_many_messages(store: &Store, clock: &ManualClock) {
    publish(store, &["before"]).await;
    clock.advance(SECOND);
    let batch = batch_of(SIZE, "app.add", "q");
    send(store, &batch).await;
    let sent = clock.now();
    clock.advance(SECOND);
    publish(store, &["after"]).await;

    let all = [&ids(&["before"])[..], &ids_of(&batch), &ids(&["after"])].concat();
    for limit in [1, 7, SIZE, 1000] {
        assert_eq!(listed(store, limit).await, all, "{limit} a page");
    }
    let places = store.broker.locate(&ids_of(&batch)).await.unwrap();
    for place in places.iter().flatten() {
        assert_eq!((&*place.task, place.queue.as_str(), place.phase), ("app.add", "q", Phase::Queued));
        assert_eq!((place.published, place.deliveries, place.due), (sent, 0, None));
    }
    assert_eq!(places.iter().flatten().count(), SIZE);
    let (first, last) = (batch[0].task_id.as_str(), batch[SIZE - 1].task_id.as_str());
    for (task_id, ahead) in [(first, 1), (last, SIZE as u64)] {
        // Where the halves know nothing of each other, the backend's has not heard of it.
        let log = store.transact.is_atomic().then(Vec::new);
        assert_eq!(log_of(store, task_id).await, log, "{task_id}");
        let record = store.catalog.task(&id(task_id)).await.unwrap().unwrap();
        assert_eq!((record.ahead, record.listed.accepted), (Some(ahead), sent));
    }
    for unknown in [first.replace("0000", "0g00"), first[..35].to_owned(), format!("{first}0")] {
        assert_eq!(place(store, &unknown).await, None, "{unknown}");
    }
    let past_its_end = format!("{}{SIZE:04x}", &first[..32]);
    assert_eq!(place(store, &past_its_end).await, None);
    let status = store.broker.queues().await.unwrap().remove(0);
    assert_eq!((status.ready, status.reserved), (SIZE as u64 + 2, 0));

    let deliveries = reserve(store).await;
    assert_eq!(deliveries.iter().map(|delivery| delivery.task_id.clone()).collect::<Vec<_>>(), all);
    for (delivery, routed) in deliveries[1..].iter().zip(&batch) {
        assert_eq!(delivery.message, routed.message);
        assert_eq!((delivery.deliveries, delivery.begun, delivery.revoked), (1, false, false));
    }
    assert_eq!(listed(store, 9).await, all);
    finish(store, &deliveries, clock).await;
    assert_eq!(listed(store, 9).await, all);
    assert_eq!(phase(store, last).await, Some(Phase::Settled));
}

/// Sent again, as when the answer was lost, it is there already: while it waits, while some of it is held, and when all of
/// it is done.
pub async fn a_batch_is_sent_once(store: &Store, clock: &ManualClock) {
    let batch = batch_of(SIZE, "app.add", "q");
    let again: Vec<Routed> = batch.iter().map(|routed| Routed { unique: true, ..routed.clone() }).collect();
    send(store, &batch).await;
    assert_eq!(store.broker.publish(batch.clone()).await.unwrap(), ids_of(&batch));
    assert_eq!(store.broker.publish(again.clone()).await.unwrap(), ids_of(&batch));
    let one = store.broker.publish(vec![again[3].clone()]).await.unwrap();
    assert_eq!(one, [batch[3].task_id.clone()]);
    let status = store.broker.queues().await.unwrap().remove(0);
    assert_eq!(status.ready, SIZE as u64);

    let some = reserve_from(store, &["q"], 7).await;
    assert_eq!(store.broker.publish(again.clone()).await.unwrap(), ids_of(&batch));
    let rest = reserve(store).await;
    let found: Vec<TaskId> = some.iter().chain(&rest).map(|delivery| delivery.task_id.clone()).collect();
    assert_eq!(found, ids_of(&batch));
    finish(store, &some, clock).await;
    finish(store, &rest, clock).await;
    assert_eq!(store.broker.publish(again).await.unwrap(), ids_of(&batch));
    assert!(reserve(store).await.is_empty());
}

/// One is revoked, one comes back to its place, one is put off, one is lost, and the others are dropped.
pub async fn parts_of_a_batch_go_their_own_ways(store: &Store, clock: &ManualClock) {
    let batch = batch_of(SIZE, "app.add", "q");
    send(store, &batch).await;
    let name = |at: usize| batch[at].task_id.as_str();
    let ids = vec![id(name(20))];
    let request = Revoke { ids, terminate: false, signal: None, worker: worker("client"), lease: LEASE };
    let found = store.broker.revoke(&request).await.unwrap().remove(0);
    let Revocation::Taken { phase: from, delivery } = found else { panic!("it waits: {found:?}") };
    assert_eq!((from, delivery.task_id.as_str(), delivery.revoked), (Phase::Queued, name(20), true));
    ack_tag(store, &delivery.tag).await;

    let held = reserve_from(store, &["q"], 3).await;
    assert_eq!(task_ids(&held), [name(0), name(1), name(2)]);
    let due = after(clock.now(), SECOND * 5);
    store.broker.requeue(std::slice::from_ref(&held[0].tag), None, true).await.unwrap();
    store.broker.requeue(std::slice::from_ref(&held[1].tag), Some(due), true).await.unwrap();
    assert_eq!(phase(store, name(1)).await, Some(Phase::Delayed));
    assert_eq!(task_ids(&reserve_from(store, &["q"], 2).await), [name(0), name(3)]);
    clock.advance(LEASE * 2);
    assert_eq!(store.broker.restore().await.unwrap(), 3);
    let next = reserve_from(store, &["q"], 5).await;
    assert_eq!(task_ids(&next), [0, 1, 2, 3, 4].map(name));
    let deliveries: Vec<u32> = next.iter().map(|delivery| delivery.deliveries).collect();
    assert_eq!(deliveries, [3, 2, 2, 2, 1]);

    let mut purged = store.broker.purge(&queue("q")).await.unwrap();
    purged.sort();
    let expected: Vec<TaskId> = (5..SIZE).filter(|at| *at != 20).map(|at| id(name(at))).collect();
    assert_eq!(purged, expected);
    assert_eq!(phase(store, name(SIZE - 1)).await, Some(Phase::Settled));
    assert_eq!(listed(store, 6).await, ids_of(&batch));
}

async fn ack_tag(store: &Store, tag: &DeliveryTag) {
    assert!(store.broker.ack(std::slice::from_ref(tag)).await.unwrap().is_empty());
}

/// What is forgotten is unknown, and may be sent again as anything may; the rest waits, is listed, and is run.
pub async fn the_forgotten_of_a_batch_leave_the_rest(store: &Store, clock: &ManualClock) {
    if !store.transact.is_atomic() {
        // The broker's half is not told.
        return;
    }
    let batch = batch_of(SIZE, "app.add", "q");
    let all = ids_of(&batch);
    send(store, &batch).await;
    let some = reserve_from(store, &["q"], 10).await;
    finish(store, &some, clock).await;
    store.backend.forget(&all[..4]).await.unwrap();
    assert_eq!(listed(store, 5).await, all[4..]);
    assert_eq!(place(store, all[0].as_str()).await, None);
    assert_eq!(log_of(store, all[0].as_str()).await, None);
    let done_before = after(clock.now(), SECOND);
    clock.advance(SECOND * 2);
    assert_eq!(store.backend.sweep(done_before, 100).await.unwrap(), 6);
    assert_eq!(listed(store, 5).await, all[10..]);

    // Two of the forgotten come back, as if nobody had heard of them.
    let again = vec![batch[2].clone(), Routed { unique: true, ..batch[8].clone() }];
    assert!(store.broker.publish(again).await.unwrap().is_empty());
    let expected = [&all[10..], &[all[2].clone(), all[8].clone()]].concat();
    assert_eq!(listed(store, 5).await, expected);
    let rest = reserve(store).await;
    let found: Vec<TaskId> = rest.iter().map(|delivery| delivery.task_id.clone()).collect();
    assert_eq!(found, expected);
    finish(store, &rest, clock).await;
    // The two first, which have places of their own by now, and all but one of the others.
    store.backend.forget(&expected[expected.len() - 2..]).await.unwrap();
    store.backend.forget(&all[10..SIZE - 1]).await.unwrap();
    assert_eq!(listed(store, 5).await, all[SIZE - 1..]);
    clock.advance(SECOND * 2);
    assert_eq!(store.backend.sweep(clock.now(), 7).await.unwrap(), 1);
    assert_eq!(listed(store, 5).await, []);
    assert_eq!(place(store, all[SIZE - 1].as_str()).await, None);
}

/// What has the ids of a batch and is none, or is one in part, is sent as well as any.
pub async fn what_is_like_a_batch_is_sent_as_well(store: &Store, clock: &ManualClock) {
    let tagged = |routed: Routed| Routed { tags: vec!["x".into()], ..routed };
    let put_off = |routed: Routed| Routed { due: Some(after(clock.now(), SECOND)), ..routed };
    let otherwise = |routed: &mut Routed, is: &str, would_be: &str| {
        routed.message.head = routed.message.head.replace(is, would_be).into();
    };
    let mut of_two_names = batch_of(SIZE, "app.add", "q");
    of_two_names[5].task = "app.other".into();
    otherwise(&mut of_two_names[5], "app.add", "app.other");
    let mut of_two_queues = batch_of(SIZE, "app.add", "q");
    of_two_queues[5].queue = queue("r");
    otherwise(&mut of_two_queues[5], "\"routing_key\": \"q\"", "\"routing_key\": \"r\"");
    let mut with_others = batch_of(SIZE, "app.add", "q");
    with_others[SIZE - 1] = message("another");
    let mut written_by_others = batch_of(SIZE, "app.add", "q");
    otherwise(&mut written_by_others[5], "\": ", "\":");
    let variants = [
        batch_of(SIZE, "app.add", "q").into_iter().rev().collect(),
        batch_of(SIZE, "app.add", "q").split_off(3),
        batch_of(SIZE, "app.add", "q").into_iter().map(tagged).collect(),
        batch_of(SIZE, "app.add", "q").into_iter().map(put_off).collect(),
        batch_of(2, "app.add", "q"),
        of_two_names,
        of_two_queues,
        with_others,
        written_by_others,
    ];
    for (at, variant) in variants.into_iter().enumerate() {
        send(store, &variant).await;
        assert_eq!(store.broker.publish(variant.clone()).await.unwrap(), ids_of(&variant), "variant {at}");
        clock.advance(SECOND * 2);
        let mut deliveries = reserve(store).await;
        deliveries.extend(reserve_from(store, &["r"], 1).await);
        assert_eq!(deliveries.len(), SIZE.min(variant.len()), "variant {at}");
        let mut left = variant.iter().filter(|routed| routed.queue == queue("q"));
        for delivery in &deliveries {
            let other = || variant.iter().find(|routed| routed.queue == delivery.queue);
            let routed = if delivery.queue == queue("q") { left.next() } else { other() }.unwrap();
            assert_eq!((&delivery.task_id, &delivery.message), (&routed.task_id, &routed.message));
            let listed = store.catalog.task(&routed.task_id).await.unwrap().unwrap().listed;
            assert_eq!((&listed.place.task, &listed.tags), (&routed.task, &routed.tags), "variant {at}");
        }
        finish(store, &deliveries, clock).await;
    }
}
