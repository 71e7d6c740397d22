//! Random moves, held to the rules of [`crate::state`] by a model that knows nothing of stores.

use std::collections::BTreeMap;

use super::*;
use crate::broker::{Revocation, Revoke, Routed};
use crate::clock::{Clock, Timestamp, after};
use crate::state::{self, Move};
use crate::store::Then;
use crate::testing::ManualClock;

const TASKS: usize = 10;
const QUEUES: [&str; 2] = ["q", "r"];
const MOVES: usize = 300;
/// Time moves by whole seconds and a lease by half a second more, so that none ends in the very moment it is judged.
const LEASE: Duration = Duration::from_millis(10_500);
/// Names the seed to replay.
const SEED: &str = "CELERIAC_SEED";

/// After each of many random moves, every task stands where the rules say and nowhere else.
pub async fn random_moves_keep_the_rules(store: &Store, clock: &ManualClock) {
    let seed =
        std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    // Shown when the case fails.
    println!("{SEED}={seed}");
    let mut model = Model::new(seed, store.transact.is_atomic());
    for n in 0..MOVES {
        let what = model.step(store, clock).await;
        model.check(store, clock, &format!("{SEED}={seed}, move {n}: {what}")).await;
    }
}

/// What is known of one id.
#[derive(Debug, Clone)]
struct Known {
    phase: Phase,
    queue: &'static str,
    priority: u8,
    /// Its place in the order of publishing.
    order: u64,
    due: Option<Timestamp>,
    deliveries: u32,
    revoked: bool,
    begun: Begun,
    lease: Option<(DeliveryTag, Timestamp)>,
    state: Option<State>,
}

/// What became of a message under early acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    No,
    /// By the worker that holds it.
    ByHolder,
    /// By a worker that was lost.
    ByLost,
}

struct Model {
    random: fastrand::Rng,
    atomic: bool,
    order: u64,
    known: BTreeMap<String, Known>,
    /// Tags that are not held any more.
    lost: Vec<DeliveryTag>,
}

impl Model {
    fn new(seed: u64, atomic: bool) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, atomic, order: 0, known: BTreeMap::new(), lost: Vec::new() }
    }

    async fn step(&mut self, store: &Store, clock: &ManualClock) -> String {
        match self.random.u8(0..20) {
            0..=4 => self.publish(store, clock.now()).await,
            5..=9 => self.reserve(store, clock.now()).await,
            10..=13 => self.settle(store, clock.now()).await,
            14 => self.extend(store, clock.now()).await,
            15..=16 => self.let_time_pass(store, clock).await,
            17 => self.revoke(store, clock.now()).await,
            18 => self.operate(store).await,
            _ => self.settle_too_late(store).await,
        }
    }

    /// Moves a task by the rules; that they allow it has been asked before.
    fn go(known: &mut Known, what: Move) {
        known.phase = state::next(Some(known.phase), what).expect("the rules allow it");
    }

    fn any_id(&mut self) -> String {
        format!("task-{}", self.random.usize(0..TASKS))
    }

    /// A task that is held, and its tag.
    fn any_held(&mut self) -> Option<(String, DeliveryTag)> {
        let held: Vec<(&String, &DeliveryTag)> =
            self.known.iter().filter_map(|(id, known)| Some((id, &known.lease.as_ref()?.0))).collect();
        let (id, tag) = *self.random.choice(&held)?;
        Some((id.clone(), tag.clone()))
    }

    fn any_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.random.bool().then(|| after(now, SECOND * self.random.u32(1..8)))
    }

    async fn publish(&mut self, store: &Store, now: Timestamp) -> String {
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..self.random.usize(1..4) {
            let task_id = self.any_id();
            let due = self.any_due(now);
            let queue_name = QUEUES[self.random.usize(0..QUEUES.len())];
            let priority = if self.random.bool() { 0 } else { 3 };
            let unique = self.random.u8(0..4) == 0;
            batch.push(Routed { due, unique, ..on(queue_name, priority, &task_id) });
            let before = self.known.get(&task_id);
            let what = if due.is_some() { Move::PublishLater } else { Move::Publish };
            let phase = state::next(before.map(|known| known.phase), what);
            let Some(phase) = phase.filter(|_| !(unique && before.is_some())) else {
                expected.push(id(&task_id));
                continue;
            };
            let old = before.and_then(|known| known.state.clone());
            let state = old.filter(|state| !(self.atomic && state.is_ready()));
            self.order += 1;
            let known = Known {
                phase,
                queue: queue_name,
                priority,
                order: self.order,
                due,
                deliveries: 0,
                revoked: false,
                begun: Begun::No,
                lease: None,
                state,
            };
            self.known.insert(task_id, known);
        }
        let what = format!("publish {batch:?}");
        let duplicates = if self.random.bool() {
            store.broker.publish(batch).await.unwrap()
        } else {
            match commit(store, Transaction::publish(batch)).await {
                Outcome::Committed { duplicates, .. } => duplicates,
                other => panic!("{what}: {other:?}"),
            }
        };
        assert_eq!(duplicates, expected, "{what}");
        what
    }

    async fn reserve(&mut self, store: &Store, now: Timestamp) -> String {
        let queues = if self.random.bool() { &QUEUES[..] } else { &QUEUES[..1] };
        let limit = self.random.usize(1..4);
        let wanted = Reserve { lease: LEASE, ..request(queues, limit, Duration::ZERO) };
        let deliveries = store.broker.reserve(&wanted).await.unwrap();
        let what = format!("reserve {limit} from {queues:?}: {deliveries:?}");
        for delivery in &deliveries {
            let waiting = |known: &&Known| known.phase == Phase::Queued && queues.contains(&known.queue);
            let least = self.known.values().filter(waiting).map(|known| known.priority).min();
            let known = &self.known[delivery.task_id.as_str()];
            assert!(waiting(&known), "{what}: {known:?}");
            assert_eq!(Some(known.priority), least, "{what}");
            let ahead = |other: &&Known| {
                other.queue == known.queue && other.priority == known.priority && other.order < known.order
            };
            let overtaken = self.known.values().filter(waiting).find(ahead);
            assert!(overtaken.is_none(), "{what}: overtakes {overtaken:?}");
            self.take(delivery, true, now, &what);
        }
        let left = self.known.values().filter(|known| known.phase == Phase::Queued);
        let left = left.filter(|known| queues.contains(&known.queue)).count();
        assert!(deliveries.len() == limit || left == 0, "{what}: {left} left");
        what
    }

    /// A delivery was handed out.
    fn take(&mut self, delivery: &Delivery, counted: bool, now: Timestamp, what: &str) {
        assert!(!self.lost.contains(&delivery.tag), "{what}: a tag is used again");
        let known = self.known.get_mut(delivery.task_id.as_str()).expect("a known task");
        Self::go(known, Move::Reserve);
        known.due = None;
        known.deliveries += u32::from(counted);
        known.lease = Some((delivery.tag.clone(), after(now, LEASE)));
        assert_eq!((delivery.deliveries, delivery.revoked), (known.deliveries, known.revoked), "{what}");
        assert_eq!((delivery.queue.as_str(), delivery.priority), (known.queue, known.priority), "{what}");
        match known.begun {
            Begun::No => assert!(!delivery.begun, "{what}"),
            Begun::ByLost => assert!(delivery.begun, "{what}"),
            Begun::ByHolder => {}
        }
    }

    /// A task is not held any more.
    fn release(&mut self, task_id: &str, what: Move) -> &mut Known {
        let known = self.known.get_mut(task_id).expect("a known task");
        Self::go(known, what);
        let (tag, _) = known.lease.take().expect("a held task");
        self.lost.push(tag);
        known
    }

    async fn settle(&mut self, store: &Store, now: Timestamp) -> String {
        let Some((task_id, tag)) = self.any_held() else { return "nothing to settle".into() };
        let tags = [tag.clone()];
        let broker = &store.broker;
        match self.random.u8(0..6) {
            0 => {
                let of = if self.random.bool() { State::Success } else { State::Failure };
                let transaction = Transaction {
                    record: result(&task_id, of.clone()),
                    ..Transaction::fenced(tag, Then::Ack)
                };
                assert_eq!(commit(store, transaction).await, committed(), "{task_id}");
                let known = self.release(&task_id, Move::Settle);
                if known.state.as_ref().is_none_or(|old| old.may_become(&of)) {
                    known.state = Some(of.clone());
                }
                format!("finish {task_id} as {of}")
            }
            1 => {
                assert!(broker.ack(&tags).await.unwrap().is_empty(), "{task_id}");
                self.release(&task_id, Move::Settle);
                format!("ack {task_id}")
            }
            2 | 3 => {
                let (due, counted) = (self.any_due(now), self.random.bool());
                assert!(broker.requeue(&tags, due, counted).await.unwrap().is_empty(), "{task_id}");
                let what = if due.is_some() { Move::RequeueLater } else { Move::Requeue };
                let known = self.release(&task_id, what);
                known.due = due;
                known.deliveries -= u32::from(!counted);
                if known.begun == Begun::ByHolder {
                    known.begun = Begun::No;
                }
                format!("requeue {task_id}, due {due:?}, counted {counted}")
            }
            4 => {
                assert!(broker.begin(&tags).await.unwrap().is_empty(), "{task_id}");
                let known = self.known.get_mut(&task_id).expect("a known task");
                if known.begun != Begun::ByLost {
                    known.begun = Begun::ByHolder;
                }
                format!("begin {task_id}")
            }
            _ => {
                assert!(broker.bury(&tag, "poison").await.unwrap(), "{task_id}");
                self.release(&task_id, Move::Bury);
                format!("bury {task_id}")
            }
        }
    }

    async fn settle_too_late(&mut self, store: &Store) -> String {
        let Some(tag) = self.random.choice(&self.lost).cloned() else { return "nothing was lost".into() };
        let what = format!("settle under the lost {tag}");
        let tags = [tag.clone()];
        match self.random.u8(0..4) {
            0 => assert_eq!(store.broker.ack(&tags).await.unwrap(), tags, "{what}"),
            1 => assert_eq!(store.broker.requeue(&tags, None, true).await.unwrap(), tags, "{what}"),
            2 => assert_eq!(store.broker.extend(&tags, LEASE).await.unwrap(), tags, "{what}"),
            _ => {
                let record = result(&self.any_id(), State::Success);
                let late = Transaction { record, ..Transaction::fenced(tag, Then::Ack) };
                assert_eq!(commit(store, late).await, Outcome::Lost, "{what}");
            }
        }
        what
    }

    async fn extend(&mut self, store: &Store, now: Timestamp) -> String {
        let Some((task_id, tag)) = self.any_held() else { return "nothing to extend".into() };
        assert!(store.broker.extend(&[tag], LEASE).await.unwrap().is_empty(), "{task_id}");
        if let Some((_, ends)) = self.known.get_mut(&task_id).and_then(|known| known.lease.as_mut()) {
            *ends = after(now, LEASE);
        }
        format!("extend {task_id}")
    }

    /// Moves the clock and restores what was lost thereby, so that no lease is both past and held.
    async fn let_time_pass(&mut self, store: &Store, clock: &ManualClock) -> String {
        let seconds = self.random.u32(1..9);
        clock.advance(SECOND * seconds);
        let now = clock.now();
        for known in self.known.values_mut() {
            if known.phase == Phase::Delayed && known.due.is_some_and(|due| due <= now) {
                Self::go(known, Move::Due);
                known.due = None;
            }
        }
        let past = |known: &Known| known.lease.as_ref().is_some_and(|(_, ends)| *ends < now);
        let past: Vec<String> =
            self.known.iter().filter(|(_, known)| past(known)).map(|(id, _)| id.clone()).collect();
        let what = format!("{seconds} s pass, {past:?} are lost");
        assert_eq!(store.broker.restore().await.unwrap(), past.len() as u64, "{what}");
        for task_id in past {
            let known = self.release(&task_id, Move::Requeue);
            if known.begun == Begun::ByHolder {
                known.begun = Begun::ByLost;
            }
        }
        what
    }

    async fn revoke(&mut self, store: &Store, now: Timestamp) -> String {
        let task_id = self.any_id();
        let request = Revoke {
            ids: vec![id(&task_id)],
            terminate: false,
            signal: None,
            worker: worker("w"),
            lease: LEASE,
        };
        let found = store.broker.revoke(&request).await.unwrap().remove(0);
        let what = format!("revoke {task_id}: {found:?}");
        let phase = self.known.get(&task_id).map(|known| known.phase);
        if let Some(known) = self.known.get_mut(&task_id)
            && matches!(phase, Some(Phase::Queued | Phase::Delayed | Phase::Reserved))
        {
            known.revoked = true;
        }
        match (phase, &found) {
            (Some(from @ (Phase::Queued | Phase::Delayed)), Revocation::Taken { phase, delivery }) => {
                assert_eq!(from, *phase, "{what}");
                // Whether this counts as a delivery is the store's affair: the task will not run.
                let counted = delivery.deliveries != self.known[&task_id].deliveries;
                self.take(delivery, counted, now, &what);
            }
            (Some(Phase::Reserved), Revocation::Held { .. })
            | (Some(Phase::Settled | Phase::Dead), Revocation::Finished)
            | (None, Revocation::Unknown) => {}
            _ => panic!("{what}, which stands at {phase:?}"),
        }
        what
    }

    /// What an operator may do.
    async fn operate(&mut self, store: &Store) -> String {
        let task_id = self.any_id();
        let ids = [id(&task_id)];
        let dead = self.known.get(&task_id).is_some_and(|known| known.phase == Phase::Dead);
        let expected = if dead { &ids[..] } else { &[] };
        match self.random.u8(0..4) {
            0 => {
                let queue_name = QUEUES[self.random.usize(0..QUEUES.len())];
                let mut purged = store.broker.purge(&queue(queue_name)).await.unwrap();
                purged.sort();
                let waits = |known: &Known| {
                    known.queue == queue_name && matches!(known.phase, Phase::Queued | Phase::Delayed)
                };
                let mut expected = Vec::new();
                for (task_id, known) in self.known.iter_mut().filter(|(_, known)| waits(known)) {
                    Self::go(known, Move::Drop);
                    known.due = None;
                    expected.push(id(task_id));
                }
                assert_eq!(purged, expected, "purge {queue_name}");
                format!("purge {queue_name}")
            }
            1 => {
                assert_eq!(store.broker.drop_dead(&ids).await.unwrap(), expected, "drop {task_id}");
                if let Some(known) = self.known.get_mut(&task_id).filter(|_| dead) {
                    Self::go(known, Move::Drop);
                }
                format!("drop {task_id}")
            }
            _ => {
                assert_eq!(store.broker.revive(&ids).await.unwrap(), expected, "revive {task_id}");
                self.order += 1;
                if let Some(known) = self.known.get_mut(&task_id).filter(|_| dead) {
                    Self::go(known, Move::Revive);
                    (known.order, known.deliveries) = (self.order, 0);
                    (known.revoked, known.begun) = (false, Begun::No);
                }
                format!("revive {task_id}")
            }
        }
    }

    /// Compares the whole store with the model.
    async fn check(&self, store: &Store, clock: &ManualClock, what: &str) {
        let all: Vec<TaskId> = (0..TASKS).map(|n| id(&format!("task-{n}"))).collect();
        let places = store.broker.locate(&all).await.unwrap();
        let metas = store.backend.fetch(&all).await.unwrap();
        for ((task_id, place), meta) in all.iter().zip(places).zip(metas) {
            let known = self.known.get(task_id.as_str());
            let at = format!("{what}\n{task_id} at {}: {known:?}\nis {place:?}", clock.now());
            assert_eq!(place.as_ref().map(|place| place.phase), known.map(|known| known.phase), "{at}");
            assert_eq!(meta.map(|meta| meta.state), known.and_then(|known| known.state.clone()), "{at}");
            let (Some(place), Some(known)) = (place, known) else { continue };
            assert_eq!(place.worker.is_some(), known.lease.is_some(), "{at}");
            if known.phase != Phase::Settled {
                assert_eq!((place.deliveries, place.revoked), (known.deliveries, known.revoked), "{at}");
                assert_eq!((place.queue.as_str(), place.due), (known.queue, known.due), "{at}");
            }
        }
        let statuses = store.broker.queues().await.unwrap();
        for name in QUEUES {
            let status = statuses.iter().find(|status| status.queue == queue(name));
            let counts = status.map_or((0, 0, 0), |status| (status.ready, status.delayed, status.reserved));
            let count =
                |phase| self.known.values().filter(|k| k.queue == name && k.phase == phase).count() as u64;
            let expected = (count(Phase::Queued), count(Phase::Delayed), count(Phase::Reserved));
            assert_eq!(counts, expected, "{what}\n{name}: {status:?}");
        }
        let dead = store.broker.dead(0, TASKS).await.unwrap();
        let expected = self.known.values().filter(|known| known.phase == Phase::Dead).count();
        assert_eq!(dead.len(), expected, "{what}: {dead:?}");
    }
}
