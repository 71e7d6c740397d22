//! Cases about revoking.

use super::*;
use crate::broker::{Interrupt, Revocation, Revoke, Routed};
use crate::clock::{Clock, after};
use crate::signal::ProcessSignal;
use crate::store::Then;
use crate::testing::ManualClock;

async fn revoke(store: &Store, task_id: &str, terminate: bool) -> Revocation {
    let request =
        Revoke { ids: vec![id(task_id)], terminate, signal: None, worker: worker("revoker"), lease: LEASE };
    let mut revocations = store.broker.revoke(&request).await.unwrap();
    assert_eq!(revocations.len(), 1);
    revocations.remove(0)
}

async fn take(store: &Store, task_id: &str, from: Phase) -> Delivery {
    match revoke(store, task_id, false).await {
        Revocation::Taken { phase, delivery } if phase == from => *delivery,
        other => panic!("{task_id} should be taken from {from:?}, is {other:?}"),
    }
}

async fn interrupts(store: &Store, name: &str) -> Vec<Interrupt> {
    store.broker.interrupts(&worker(name), &[], Duration::ZERO).await.unwrap()
}

/// A task that waits, due or not, is handed to the revoker, who settles it.
pub async fn what_waits_is_taken(store: &Store, clock: &ManualClock) {
    let due = Some(after(clock.now(), SECOND * 60));
    store.broker.publish(vec![Routed { due, ..message("later") }, message("now")]).await.unwrap();
    for (task_id, from) in [("later", Phase::Delayed), ("now", Phase::Queued)] {
        let delivery = take(store, task_id, from).await;
        assert!(delivery.revoked);
        assert_eq!((&delivery.task_id, &delivery.message), (&id(task_id), &message(task_id).message));
        let found = place(store, task_id).await.unwrap();
        assert_eq!((found.phase, found.worker), (Phase::Reserved, Some(worker("revoker"))));
        let record = result(task_id, State::Revoked);
        let settled = Transaction { record, ..Transaction::fenced(delivery.tag, Then::Ack) };
        assert_eq!(commit(store, settled).await, committed());
        assert_eq!(state(store, task_id).await, Some(State::Revoked));
    }
    clock.advance(SECOND * 61);
    assert!(reserve(store).await.is_empty());
}

/// When the revoker dies before it settles, whoever gets the message is told.
pub async fn the_taken_outlive_their_taker(store: &Store, clock: &ManualClock) {
    publish(store, &["a"]).await;
    let taken = take(store, "a", Phase::Queued).await;
    clock.advance(LEASE + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert!(place(store, "a").await.unwrap().revoked);
    let again = reserve_one(store).await;
    assert!(again.revoked);
    assert_ne!(again.tag, taken.tag);
}

/// The holder of a running task is told, and nobody else.
pub async fn what_is_held_is_interrupted(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    let other = held(store, "b").await;
    assert!(interrupts(store, "w").await.is_empty());
    let found = revoke(store, "a", true).await;
    assert!(matches!(&found, Revocation::Held { worker: holder } if *holder == worker("w")), "{found:?}");
    assert!(place(store, "a").await.unwrap().revoked);
    let told = Interrupt { tag: delivery.tag.clone(), terminate: true, signal: None };
    assert_eq!(interrupts(store, "w").await, [told]);
    assert!(interrupts(store, "other").await.is_empty());
    // It is durable: should the holder die, the next one is told with the delivery.
    clock.advance(LEASE / 2);
    assert!(store.broker.extend(&[other.tag], LEASE).await.unwrap().is_empty());
    clock.advance(LEASE / 2 + SECOND);
    assert_eq!(store.broker.restore().await.unwrap(), 1);
    assert!(interrupts(store, "w").await.is_empty(), "it does not hold it any more");
    let again = reserve_one(store).await;
    assert!(again.revoked);
    ack(store, &again).await;
    assert!(interrupts(store, "w").await.is_empty());
}

/// Who waits for interrupts is woken by a new one, and not by those he knows.
pub async fn interrupts_wake(store: &Store, _: &ManualClock) {
    publish(store, &["a", "b"]).await;
    let deliveries = reserve(store).await;
    let holder = worker("w");
    let ask = async {
        revoke(store, "a", false).await;
    };
    let told = meanwhile(store.broker.interrupts(&holder, &[], FOREVER), ask).await.unwrap();
    let a = Interrupt { tag: deliveries[0].tag.clone(), terminate: false, signal: None };
    assert_eq!(told, std::slice::from_ref(&a));
    let known = [a.clone()];
    let ask = async {
        revoke(store, "b", true).await;
    };
    let told = meanwhile(store.broker.interrupts(&holder, &known, FOREVER), ask).await.unwrap();
    let b = Interrupt { tag: deliveries[1].tag.clone(), terminate: true, signal: None };
    assert!(told.contains(&b), "{told:?}");
    let known = [a.clone(), b.clone()];
    let brief = Duration::from_millis(5);
    let told = woken(store.broker.interrupts(&holder, &known, brief)).await.unwrap();
    assert!(told.contains(&a) && told.contains(&b) && told.len() == 2, "{told:?}");
}

/// Who knows of a revocation is woken when it becomes a termination, and not when it is merely repeated.
pub async fn a_termination_of_what_is_known_wakes(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    revoke(store, "a", false).await;
    let mere = Interrupt { tag: delivery.tag.clone(), terminate: false, signal: None };
    let holder = worker("w");
    let ask = async {
        revoke(store, "a", false).await;
        revoke(store, "a", true).await;
    };
    let known = [mere];
    let told = meanwhile(store.broker.interrupts(&holder, &known, FOREVER), ask).await.unwrap();
    let terminated = Interrupt { tag: delivery.tag, terminate: true, signal: None };
    assert_eq!(told, std::slice::from_ref(&terminated));
    let brief = Duration::from_millis(5);
    let told =
        woken(store.broker.interrupts(&holder, std::slice::from_ref(&terminated), brief)).await.unwrap();
    assert_eq!(told, [terminated]);
}

/// Who stops a run is told by which signal; asked again without one, and without a termination, that stays.
pub async fn a_termination_names_its_signal(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    revoke(store, "a", false).await;
    let signal: Option<ProcessSignal> = "SIGUSR1".parse().ok();
    let request =
        Revoke { ids: vec![id("a")], terminate: true, signal, worker: worker("revoker"), lease: LEASE };
    store.broker.revoke(&request).await.unwrap();
    let told = Interrupt { tag: delivery.tag, terminate: true, signal };
    assert_eq!(interrupts(store, "w").await, std::slice::from_ref(&told));
    revoke(store, "a", false).await;
    assert_eq!(interrupts(store, "w").await, [told]);
}

/// A revoked task given back is still revoked.
pub async fn a_revoked_task_stays_so_when_handed_back(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    revoke(store, "a", false).await;
    store.broker.requeue(&[delivery.tag], None, false).await.unwrap();
    let delivery = reserve_one(store).await;
    assert!(delivery.revoked);
    let due = after(clock.now(), SECOND);
    store.broker.requeue(&[delivery.tag], Some(due), false).await.unwrap();
    clock.advance(SECOND * 2);
    assert!(reserve_one(store).await.revoked);
}

/// A task that is revoked while it runs, and then asks for a retry, is revoked in its next attempt.
pub async fn a_retry_does_not_escape(store: &Store, clock: &ManualClock) {
    let delivery = held(store, "a").await;
    revoke(store, "a", false).await;
    let retry = Transaction {
        publish: vec![Routed { due: Some(after(clock.now(), SECOND)), ..message("a") }],
        record: result("a", State::Retry),
        ..Transaction::fenced(delivery.tag, Then::Ack)
    };
    assert_eq!(commit(store, retry).await, committed());
    clock.advance(SECOND * 2);
    let next = reserve_one(store).await;
    assert!(next.revoked);
    // Sent anew by somebody else once it is over, it is another matter.
    ack(store, &next).await;
    assert!(!held(store, "a").await.revoked);
}

/// A second revocation finds what the first one made of it.
pub async fn asking_twice_changes_nothing(store: &Store, _: &ManualClock) {
    publish(store, &["a"]).await;
    let taken = take(store, "a", Phase::Queued).await;
    let again = revoke(store, "a", false).await;
    assert!(
        matches!(&again, Revocation::Held { worker: holder } if *holder == worker("revoker")),
        "{again:?}"
    );
    ack(store, &taken).await;
    assert!(matches!(revoke(store, "a", false).await, Revocation::Finished));
}

/// To ask for termination later counts, and to ask without it later takes nothing back.
pub async fn termination_may_follow(store: &Store, _: &ManualClock) {
    let delivery = held(store, "a").await;
    for (ask, terminate) in [(false, false), (true, true), (false, true)] {
        revoke(store, "a", ask).await;
        let told = Interrupt { tag: delivery.tag.clone(), terminate, signal: None };
        assert_eq!(interrupts(store, "w").await, [told]);
    }
}

/// Each id gets its own answer, in the order asked.
pub async fn the_finished_and_the_unknown_are_told_apart(store: &Store, _: &ManualClock) {
    let done = held(store, "done").await;
    ack(store, &done).await;
    publish(store, &["waits"]).await;
    let request = Revoke {
        ids: ids(&["never", "done", "waits"]),
        terminate: false,
        signal: None,
        worker: worker("revoker"),
        lease: LEASE,
    };
    let found = store.broker.revoke(&request).await.unwrap();
    let expected = matches!(
        &found[..],
        [Revocation::Unknown, Revocation::Finished, Revocation::Taken { phase: Phase::Queued, .. }]
    );
    assert!(expected, "{found:?}");
    assert_eq!(place(store, "never").await, None);
    assert!(!held(store, "never").await.revoked, "nothing is remembered of it");
}
