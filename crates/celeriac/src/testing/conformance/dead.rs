//! Cases about dead letters.

use bytes::Bytes;

use super::*;
use crate::broker::Routed;
use crate::clock::Clock;
use crate::testing::ManualClock;

async fn bury(store: &Store, task_id: &str) {
    let delivery = held(store, task_id).await;
    assert!(store.broker.bury(&delivery.tag, "poison").await.unwrap());
}

/// A dead letter is all that its message was, and why and when it died.
pub async fn the_buried_keep_their_bytes(store: &Store, clock: &ManualClock) {
    let mut sent = on("q", 7, "a");
    sent.message.body = Bytes::from_static(b"\xff\x00 not text");
    store.broker.publish(vec![sent.clone()]).await.unwrap();
    let first = reserve_one(store).await;
    store.broker.requeue(&[first.tag], None, true).await.unwrap();
    let second = reserve_one(store).await;
    clock.advance(SECOND);
    assert!(store.broker.bury(&second.tag, "crashed \"twice\"").await.unwrap());
    assert!(!store.broker.bury(&second.tag, "again").await.unwrap());
    assert!(reserve(store).await.is_empty());
    assert!(store.broker.queues().await.unwrap().is_empty());
    let dead = store.broker.dead(0, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    let letter = &dead[0];
    assert_eq!((&letter.task_id, &letter.queue, &*letter.task), (&id("a"), &queue("q"), "t"));
    assert_eq!(
        (letter.reason.as_str(), letter.died, letter.deliveries),
        ("crashed \"twice\"", clock.now(), 2)
    );
    assert_eq!(letter.message, sent.message);
}

/// A dead letter sent back is as if it had never been delivered.
pub async fn the_revived_start_over(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    store.broker.begin(&[delivery.tag]).await.unwrap();
    clock.advance(LEASE + SECOND);
    store.broker.restore().await.unwrap();
    let delivery = reserve_one(store).await;
    assert!(store.broker.bury(&delivery.tag, "poison").await.unwrap());
    assert_eq!(store.broker.revive(&ids(&["a", "never"])).await.unwrap(), ids(&["a"]));
    assert!(store.broker.dead(0, 10).await.unwrap().is_empty());
    assert_eq!(phase(store, "a").await, Some(Phase::Queued));
    assert!(store.broker.revive(&ids(&["a"])).await.unwrap().is_empty());
    let again = reserve_one(store).await;
    assert_eq!((again.deliveries, again.revoked, again.begun), (1, false, false));
    assert_eq!(again.message, delivery.message);
}

/// A dead letter that is dropped is settled.
pub async fn the_dropped_are_gone(store: &Store, _: &ManualClock) {
    bury(store, "a").await;
    publish(store, &["b"]).await;
    assert_eq!(store.broker.drop_dead(&ids(&["b", "a", "never"])).await.unwrap(), ids(&["a"]));
    assert!(store.broker.dead(0, 10).await.unwrap().is_empty());
    assert!(store.broker.revive(&ids(&["a"])).await.unwrap().is_empty());
    assert_eq!(phase(store, "a").await, Some(Phase::Settled));
    assert_eq!(task_ids(&reserve(store).await), ["b"]);
}

/// Dead letters come oldest first, and a page begins after a number.
pub async fn the_dead_are_paged(store: &Store, _: &ManualClock) {
    for task_id in ["c", "a", "b"] {
        bury(store, task_id).await;
    }
    let first = store.broker.dead(0, 2).await.unwrap();
    let second = store.broker.dead(first[1].number, 2).await.unwrap();
    let found: Vec<&str> = first.iter().chain(&second).map(|letter| letter.task_id.as_str()).collect();
    assert_eq!(found, ["c", "a", "b"]);
    assert!(store.broker.dead(second[0].number, 2).await.unwrap().is_empty());
}

/// An id that lies dead is in the way of another message: a person decides.
pub async fn a_dead_id_is_not_sent_again(store: &Store, _: &ManualClock) {
    bury(store, "a").await;
    assert_eq!(store.broker.publish(vec![message("a")]).await.unwrap(), ids(&["a"]));
    let unique = Routed { unique: true, ..message("a") };
    assert_eq!(store.broker.publish(vec![unique]).await.unwrap(), ids(&["a"]));
    assert_eq!(phase(store, "a").await, Some(Phase::Dead));
}
