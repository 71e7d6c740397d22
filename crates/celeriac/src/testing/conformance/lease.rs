//! Cases about holding a message, losing it and giving it back.

use super::*;
use crate::broker::Routed;
use crate::clock::{Clock, after};
use crate::testing::ManualClock;

/// A lease that is extended in time does not pass.
pub async fn an_extended_lease_holds(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    for _ in 0..5 {
        clock.advance(LEASE - SECOND);
        assert!(store.broker.extend(std::slice::from_ref(&delivery.tag), LEASE).await.unwrap().is_empty());
        assert_eq!(store.broker.restore().await.unwrap(), 0);
    }
    // It is started over, not added to.
    clock.advance(LEASE + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    let again = reserve_one(store).await;
    // A lease without end is legal.
    assert!(store.broker.extend(&[again.tag], Duration::MAX).await.unwrap().is_empty());
    clock.advance(SECOND * 1_000_000);
    assert_eq!(store.broker.restore().await.unwrap(), 0);
}

/// When a lease has passed, the message is delivered again under a new tag.
pub async fn a_passed_lease_is_delivered_again(store: &Store, clock: &ManualClock) {
    publish(store, &["a", "b"]).await;
    let first = reserve_from(store, &["q"], 1).await.remove(0);
    clock.advance(LEASE + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert_eq!(phase(store, "a").await, Some(Phase::Queued));
    let again = reserve(store).await;
    assert_eq!(task_ids(&again), ["a", "b"], "it keeps its place");
    assert_eq!((again[0].deliveries, again[1].deliveries), (2, 1));
    assert_ne!(again[0].tag, first.tag);
    assert_eq!(again[0].message, first.message);
    ack(store, &again[0]).await;
    assert_eq!(phase(store, "a").await, Some(Phase::Settled));
}

/// No call of the broker does anything under a tag that was lost.
pub async fn a_lost_lease_cannot_settle(store: &Store, clock: &ManualClock) {
    let lost = held(store, "a").await;
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    for again in [false, true] {
        let holder = if again { Some(reserve_one(store).await) } else { None };
        let tag = std::slice::from_ref(&lost.tag);
        let before = place(store, "a").await;
        assert_eq!(store.broker.extend(tag, LEASE).await.unwrap(), tag);
        assert_eq!(store.broker.ack(tag).await.unwrap(), tag);
        assert_eq!(store.broker.requeue(tag, None, true).await.unwrap(), tag);
        assert_eq!(store.broker.requeue(tag, None, false).await.unwrap(), tag);
        assert_eq!(store.broker.begin(tag).await.unwrap(), tag);
        assert!(!store.broker.bury(&lost.tag, "poison").await.unwrap());
        assert_eq!(place(store, "a").await, before);
        assert!(store.broker.dead(0, 10).await.unwrap().is_empty());
        if let Some(holder) = holder {
            ack(store, &holder).await;
        }
    }
    let unheard = [DeliveryTag::from("no such tag")];
    assert_eq!(store.broker.ack(&unheard).await.unwrap(), unheard);
}

/// Only leases that have passed are restored.
pub async fn restore_leaves_live_leases(store: &Store, clock: &ManualClock) {
    let old = held(store, "old").await;
    clock.advance(LEASE / 2);
    let young = held(store, "young").await;
    assert_eq!(store.broker.restore().await.unwrap(), 0);
    clock.advance(LEASE / 2 + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert_eq!(store.broker.restore().await.unwrap(), 0);
    let lost = store.broker.ack(&[old.tag.clone(), young.tag]).await.unwrap();
    assert_eq!(lost, [old.tag]);
    assert_eq!(reserve_one(store).await.task_id, id("old"));
}

/// In a call with many tags each is judged alone.
pub async fn one_lost_tag_does_not_hurt_the_others(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b", "c"]).await;
    let deliveries = reserve(store).await;
    ack(store, &deliveries[1]).await;
    let all = tags(&deliveries);
    let lost = [deliveries[1].tag.clone()];
    assert_eq!(store.broker.extend(&all, LEASE).await.unwrap(), lost);
    assert_eq!(store.broker.begin(&all).await.unwrap(), lost);
    assert_eq!(store.broker.requeue(&all, None, true).await.unwrap(), lost);
    let again = reserve(store).await;
    assert_eq!(task_ids(&again), ["a", "c"]);
    assert_eq!(store.broker.ack(&tags(&again)).await.unwrap(), []);
}

/// What is given back goes ahead of what was published after it.
pub async fn a_requeued_message_keeps_its_place(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b", "c", "d"]).await;
    let deliveries = reserve_from(store, &["q"], 2).await;
    // Given back in the wrong order on purpose.
    for delivery in deliveries.iter().rev() {
        assert!(
            store.broker.requeue(std::slice::from_ref(&delivery.tag), None, true).await.unwrap().is_empty()
        );
    }
    let again = reserve(store).await;
    assert_eq!(task_ids(&again), ["a", "b", "c", "d"]);
    let counts: Vec<u32> = again.iter().map(|delivery| delivery.deliveries).collect();
    assert_eq!(counts, [2, 2, 1, 1]);
    assert_ne!(again[0].tag, deliveries[0].tag);
}

/// What is given back for later waits until then.
pub async fn a_requeued_message_may_wait(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    let due = after(clock.now(), SECOND * 10);
    assert!(store.broker.requeue(&[delivery.tag], Some(due), true).await.unwrap().is_empty());
    let waits = place(store, "a").await.unwrap();
    assert_eq!((waits.phase, waits.due, waits.worker), (Phase::Delayed, Some(due), None));
    assert!(reserve(store).await.is_empty());
    clock.advance(SECOND * 11);
    assert_eq!(reserve_one(store).await.deliveries, 2);
}

/// A hand-back that is not the task's fault leaves its count as it was.
pub async fn uncounted_hand_backs_do_not_count(store: &Store, clock: &ManualClock) {
    let mut delivery = held(store, "a").await;
    for _ in 0..3 {
        store.broker.requeue(&[delivery.tag], None, false).await.unwrap();
        delivery = reserve_one(store).await;
        assert_eq!(delivery.deliveries, 1);
    }
    store.broker.requeue(&[delivery.tag], None, true).await.unwrap();
    delivery = reserve_one(store).await;
    assert_eq!(delivery.deliveries, 2);
    let due = Some(after(clock.now(), SECOND));
    store.broker.requeue(&[delivery.tag], due, false).await.unwrap();
    clock.advance(SECOND * 2);
    assert_eq!(reserve_one(store).await.deliveries, 2);
}

/// A task begun under early acknowledgement says so ever after, once its worker is lost.
pub async fn begun_survives_the_loss_of_its_worker(store: &Store, clock: &ManualClock) {
    let first = held(store, "a").await;
    assert!(!first.begun);
    assert!(store.broker.begin(&[first.tag]).await.unwrap().is_empty());
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    let second = reserve_one(store).await;
    assert!(second.begun);
    // Neither a hand-back nor a second loss makes it fit to run.
    store.broker.requeue(&[second.tag], None, false).await.unwrap();
    assert!(reserve_one(store).await.begun);
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    let last = reserve_one(store).await;
    assert!(last.begun);
    // The id sent anew is another run.
    ack(store, &last).await;
    assert!(!held(store, "a").await.begun);
}

/// Who gives back what it has begun says that it has not run.
pub async fn what_is_given_back_is_not_begun(store: &Store, clock: &ManualClock) {
    let first = held(store, "a").await;
    assert!(store.broker.begin(std::slice::from_ref(&first.tag)).await.unwrap().is_empty());
    store.broker.requeue(&[first.tag], None, false).await.unwrap();
    let second = reserve_one(store).await;
    assert!(!second.begun);
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    assert!(!reserve_one(store).await.begun);
}

/// A task that was only held is not begun, however often its worker is lost.
pub async fn nothing_is_begun_by_itself(store: &Store, clock: &ManualClock) {
    let due = Some(after(clock.now(), SECOND));
    store.broker.publish(vec![Routed { due, ..message("a") }]).await.unwrap();
    clock.advance(SECOND * 2);
    for _ in 0..3 {
        let delivery = reserve_one(store).await;
        assert!(!delivery.begun);
        store.broker.extend(&[delivery.tag], LEASE).await.unwrap();
        clock.advance(LEASE + SECOND);
        store.broker.restore().await.unwrap();
    }
}
