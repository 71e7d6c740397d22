//! Cases about paused queues.

use super::*;
use crate::broker::{QueueStatus, Revocation, Revoke};
use crate::clock::{Clock, after};
use crate::testing::ManualClock;

async fn pause(store: &Store, name: &str) {
    store.broker.pause(&queue(name), true).await.unwrap();
}

async fn resume(store: &Store, name: &str) {
    store.broker.pause(&queue(name), false).await.unwrap();
}

fn status(name: &str, ready: u64, paused: bool) -> QueueStatus {
    QueueStatus { queue: queue(name), ready, delayed: 0, reserved: 0, oldest: None, paused }
}

/// The others go on, whatever the priorities; what was held before goes on too.
pub async fn nothing_is_reserved_from_a_paused_queue(store: &Store, _: &ManualClock) {
    let before = held(store, "before").await;
    let messages = vec![on("q", 0, "urgent"), on("q", 5, "q"), on("r", 9, "r")];
    store.broker.publish(messages).await.unwrap();
    pause(store, "q").await;
    assert_eq!(task_ids(&reserve_from(store, &["q", "r"], 10).await), ["r"]);
    assert!(reserve_from(store, &["q", "r"], 10).await.is_empty());
    assert!(store.broker.extend(std::slice::from_ref(&before.tag), LEASE).await.unwrap().is_empty());
    ack(store, &before).await;
    resume(store, "q").await;
    assert_eq!(task_ids(&reserve_from(store, &["q", "r"], 10).await), ["urgent", "q"]);
}

/// Whoever waits gets what waited on the queue as soon as it is resumed.
pub async fn a_waiting_reserve_is_woken_by_a_resume(store: &Store, _: &ManualClock) {
    publish(store, &["a"]).await;
    pause(store, "q").await;
    let brief = request(&["q"], 5, Duration::from_millis(5));
    assert!(woken(store.broker.reserve(&brief)).await.unwrap().is_empty());
    let wanted = request(&["q"], 5, FOREVER);
    let deliveries = meanwhile(store.broker.reserve(&wanted), resume(store, "q")).await.unwrap();
    assert_eq!(task_ids(&deliveries), ["a"]);
}

/// A message whose time comes while its queue is paused is not given out, nor does it keep who waits from waiting.
pub async fn what_falls_due_waits_on_a_paused_queue(store: &Store, clock: &ManualClock) {
    let due = Some(after(clock.now(), SECOND));
    store.broker.publish(vec![Routed { due, ..message("a") }]).await.unwrap();
    pause(store, "q").await;
    clock.advance(SECOND * 2);
    assert!(reserve(store).await.is_empty());
    assert_eq!(phase(store, "a").await, Some(Phase::Queued));
    let wanted = request(&["q", "r"], 5, FOREVER);
    let other = async {
        store.broker.publish(vec![on("r", 0, "b")]).await.unwrap();
    };
    assert_eq!(task_ids(&meanwhile(store.broker.reserve(&wanted), other).await.unwrap()), ["b"]);
    resume(store, "q").await;
    assert_eq!(task_ids(&reserve(store).await), ["a"]);
}

/// What is handed back, lost and restored, or revived joins those that wait.
pub async fn what_comes_back_waits_on_a_paused_queue(store: &Store, clock: &ManualClock) {
    publish(store, &["lost", "given", "dead"]).await;
    let deliveries = reserve(store).await;
    pause(store, "q").await;
    store.broker.requeue(&[deliveries[1].tag.clone()], None, true).await.unwrap();
    assert!(store.broker.bury(&deliveries[2].tag, "poison").await.unwrap());
    assert_eq!(store.broker.revive(&ids(&["dead"])).await.unwrap(), ids(&["dead"]));
    clock.advance(LEASE + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert!(reserve(store).await.is_empty());
    resume(store, "q").await;
    assert_eq!(task_ids(&reserve(store).await), ["lost", "given", "dead"]);
}

/// Publishing, revoking and purging go on.
pub async fn a_paused_queue_takes_and_gives_up_messages(store: &Store, _: &ManualClock) {
    pause(store, "q").await;
    publish(store, &["a", "b", "c"]).await;
    let request =
        Revoke { ids: ids(&["b"]), terminate: false, signal: None, worker: worker("revoker"), lease: LEASE };
    let found = store.broker.revoke(&request).await.unwrap();
    let [Revocation::Taken { phase: Phase::Queued, delivery }] = &found[..] else {
        panic!("it waited, and is {found:?}")
    };
    ack(store, delivery).await;
    let mut purged = store.broker.purge(&queue("q")).await.unwrap();
    purged.sort();
    assert_eq!(purged, ids(&["a", "c"]));
    assert_eq!(store.broker.queues().await.unwrap(), [status("q", 0, true)], "to purge is not to resume");
}

/// A paused queue is listed even with nothing in it, and even when nothing ever was.
pub async fn paused_queues_are_listed(store: &Store, clock: &ManualClock) {
    pause(store, "new").await;
    assert_eq!(store.broker.queues().await.unwrap(), [status("new", 0, true)]);
    publish(store, &["a"]).await;
    let q = QueueStatus { oldest: Some(clock.now()), ..status("q", 1, false) };
    assert_eq!(store.broker.queues().await.unwrap(), [status("new", 0, true), q.clone()]);
    pause(store, "q").await;
    let q = QueueStatus { paused: true, ..q };
    assert_eq!(store.broker.queues().await.unwrap(), [status("new", 0, true), q.clone()]);
    resume(store, "new").await;
    assert_eq!(store.broker.queues().await.unwrap(), [q]);
}

/// It is a flag, not a count; and to resume what never was is allowed.
pub async fn pausing_twice_changes_nothing(store: &Store, _: &ManualClock) {
    resume(store, "never").await;
    assert!(store.broker.queues().await.unwrap().is_empty());
    pause(store, "q").await;
    pause(store, "q").await;
    publish(store, &["a"]).await;
    assert!(reserve(store).await.is_empty());
    resume(store, "q").await;
    assert_eq!(task_ids(&reserve(store).await), ["a"]);
    resume(store, "q").await;
    assert_eq!(store.broker.queues().await.unwrap().len(), 1);
}
