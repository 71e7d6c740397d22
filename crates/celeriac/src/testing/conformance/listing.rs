//! Random lives of tasks, and random lists of them, held against a model.

use std::collections::BTreeMap;

use super::catalog::every_page;
use super::*;
use crate::broker::{Revocation, Revoke};
use crate::catalog::{Listed, TaskQuery};
use crate::clock::{Clock, Timestamp, after};
use crate::store::Then;
use crate::testing::ManualClock;

const MOVES: usize = 250;
/// Half a second over, so that no lease ends in the very moment it is judged.
const LEASE: Duration = Duration::from_millis(10_500);
const NAMES: [&str; 3] = ["app.add", "app.sum", "other.add"];
const QUEUES: [&str; 2] = ["q", "r"];
const WORKERS: [&str; 4] = ["red@host/1", "red@host/2", "blue@host/1", "plain"];
const TAGS: [&str; 3] = ["x", "y", "z"];
/// Names the seed to replay.
const SEED: &str = "CELERIAC_SEED";

/// Whatever tasks have been through, each filter alone and all of them together find those that match, newest first, and
/// say of each what is so.
pub async fn random_lists_agree_with_a_model(store: &Store, clock: &ManualClock) {
    let seed =
        std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    // Shown when the case fails.
    println!("{SEED}={seed}");
    let atomic = store.transact.is_atomic();
    let mut model = Model { random: fastrand::Rng::with_seed(seed), atomic, made: 0, tasks: Vec::new() };
    for n in 0..MOVES {
        let what = model.step(store, clock).await;
        let at = format!("{SEED}={seed}, move {n}: {what}");
        if n % 5 == 0 {
            model.compare(store, clock, &TaskQuery { limit: 1000, ..TaskQuery::default() }, &at).await;
            for _ in 0..4 {
                let query = model.any_query(clock.now());
                model.compare(store, clock, &query, &at).await;
            }
        }
    }
}

/// What is known of one task.
#[derive(Debug)]
struct Known {
    task_id: String,
    task: &'static str,
    queue: &'static str,
    tags: Vec<&'static str>,
    accepted: Timestamp,
    published: Timestamp,
    due: Option<Timestamp>,
    phase: Phase,
    state: Option<State>,
    deliveries: u32,
    revoked: bool,
    lease: Option<Lease>,
    ended_by: Option<(&'static str, Timestamp)>,
    last_attempt: Option<Timestamp>,
    finished: Option<Timestamp>,
}

#[derive(Debug)]
struct Lease {
    tag: DeliveryTag,
    worker: &'static str,
    since: Timestamp,
    ends: Timestamp,
}

struct Model {
    random: fastrand::Rng,
    atomic: bool,
    /// So many ids of one task each.
    made: usize,
    /// In the order of acceptance.
    tasks: Vec<Known>,
}

impl Model {
    async fn step(&mut self, store: &Store, clock: &ManualClock) -> String {
        match self.random.u8(0..20) {
            0 if self.random.u8(0..3) == 0 => self.publish_batch(store, clock.now()).await,
            0..=5 => self.publish(store, clock.now()).await,
            6..=10 => self.reserve(store, clock.now()).await,
            11..=15 => self.end(store, clock.now()).await,
            16..=17 => self.let_time_pass(store, clock).await,
            18 if self.random.bool() => self.forget(store).await,
            18 => self.revoke(store, clock.now()).await,
            _ => self.operate(store, clock.now()).await,
        }
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(0..of.len())]
    }

    fn any_that(&mut self, is: impl Fn(&Known) -> bool) -> Option<usize> {
        let at: Vec<usize> = (0..self.tasks.len()).filter(|at| is(&self.tasks[*at])).collect();
        self.random.choice(at)
    }

    fn any_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        (self.random.u8(0..3) == 0).then(|| after(now, SECOND * self.random.u32(1..20)))
    }

    fn any_tags(&mut self) -> Vec<&'static str> {
        (0..self.random.usize(0..3)).map(|_| self.any(&TAGS)).collect()
    }

    async fn publish(&mut self, store: &Store, now: Timestamp) -> String {
        let due = self.any_due(now);
        let (task, queue, tags) = (self.any(&NAMES), self.any(&QUEUES), self.any_tags());
        // Where the halves know nothing of each other, a result stays when its task is sent again.
        let atomic = self.atomic;
        let again = if self.random.u8(0..4) == 0 {
            self.any_that(|known| known.phase == Phase::Settled && (atomic || known.state.is_none()))
        } else {
            None
        };
        let at = again.unwrap_or_else(|| {
            self.made += 1;
            let task_id = format!("{:x}-{}", self.random.u8(0..16), self.made);
            self.tasks.push(Known::new(task_id, task, queue, now));
            self.tasks.len() - 1
        });
        let known = &mut self.tasks[at];
        known.send(task, queue, tags, due, now);
        known.revoked = false;
        if known.state.as_ref().is_some_and(State::is_ready) {
            known.state = None;
        }
        let duplicates = store.broker.publish(vec![known.message()]).await.unwrap();
        assert!(duplicates.is_empty(), "{duplicates:?}");
        format!("publish {}", known.task_id)
    }

    async fn publish_batch(&mut self, store: &Store, now: Timestamp) -> String {
        let (task, queue) = (self.any(&NAMES), self.any(&QUEUES));
        let batch = batch_of(self.random.usize(14..20), task, queue);
        let known = |routed: &Routed| Known::new(routed.task_id.to_string(), task, queue, now);
        self.tasks.extend(batch.iter().map(known));
        let what = format!("publish {} as {:?}", batch.len(), batch[0].task_id);
        let duplicates = store.broker.publish(batch).await.unwrap();
        assert!(duplicates.is_empty(), "{duplicates:?}");
        what
    }

    /// Forgets some of what is finished.
    async fn forget(&mut self, store: &Store) -> String {
        let is_over = |known: &Known| {
            known.phase == Phase::Settled && known.state.as_ref().is_some_and(State::is_ready)
        };
        let forgotten: Vec<TaskId> =
            self.tasks.iter().filter(|known| is_over(known)).map(|known| id(&known.task_id)).collect();
        // Where the halves know nothing of each other, the broker's keeps its own.
        let count = if self.atomic { self.random.usize(0..=forgotten.len().min(6)) } else { 0 };
        let from = self.random.usize(0..=forgotten.len() - count);
        let forgotten = &forgotten[from..from + count];
        store.backend.forget(forgotten).await.unwrap();
        self.tasks.retain(|known| !forgotten.contains(&id(&known.task_id)));
        format!("forget {forgotten:?}")
    }

    async fn reserve(&mut self, store: &Store, now: Timestamp) -> String {
        let (queue_name, worker_name) = (self.any(&QUEUES), self.any(&WORKERS));
        let limit = self.random.usize(1..4);
        let mut request = request(&[queue_name], limit, Duration::ZERO);
        (request.worker, request.lease) = (worker(worker_name), LEASE);
        let deliveries = store.broker.reserve(&request).await.unwrap();
        for delivery in &deliveries {
            let known =
                self.tasks.iter_mut().find(|known| known.task_id == delivery.task_id.as_str()).unwrap();
            known.phase = Phase::Reserved;
            (known.due, known.deliveries) = (None, delivery.deliveries);
            let (tag, ends) = (delivery.tag.clone(), after(now, LEASE));
            known.lease = Some(Lease { tag, worker: worker_name, since: now, ends });
        }
        format!("{worker_name} reserves {:?} of {queue_name}", task_ids(&deliveries))
    }

    /// Lets a run come to any end that there is.
    async fn end(&mut self, store: &Store, now: Timestamp) -> String {
        let Some(at) = self.any_that(|known| known.lease.is_some()) else { return "nothing is held".into() };
        let due = self.any_due(now);
        let ending = self.random.u8(0..10);
        let state = match self.random.u8(0..4) {
            0 => State::Failure,
            1 => State::Revoked,
            _ => State::Success,
        };
        let known = &mut self.tasks[at];
        let lease = known.lease.take().unwrap();
        let task_id = known.task_id.clone();
        let ended = |state: &State| {
            let done = state.is_ready().then_some(now);
            vec![ResultMeta { date_done: done, ..meta(&task_id, state.clone()) }]
        };
        let mut transaction = Transaction::fenced(lease.tag.clone(), Then::Ack);
        let what = match ending {
            0..=3 => {
                transaction.record.results = ended(&state);
                known.be_over(Phase::Settled, &lease);
                (known.state, known.finished) = (Some(state.clone()), Some(now));
                state.to_string()
            }
            4 => {
                transaction.record.results = ended(&State::Retry);
                let (task, queue, tags) = (known.task, known.queue, known.tags.clone());
                known.send(task, queue, tags, due, now);
                (known.state, known.last_attempt) = (Some(State::Retry), Some(lease.since));
                transaction.publish = vec![known.message()];
                format!("retry at {due:?}")
            }
            5 => {
                known.be_over(Phase::Settled, &lease);
                known.finished = Some(now);
                "ignored".to_owned()
            }
            6 | 7 => {
                let counted = ending == 6;
                transaction.fence.as_mut().unwrap().then = Then::Requeue { due, counted };
                known.wait(due, now);
                known.deliveries -= u32::from(!counted);
                if counted || due.is_none() {
                    known.last_attempt = Some(lease.since);
                }
                format!("handed back to {due:?}, counted: {counted}")
            }
            _ => {
                transaction.fence.as_mut().unwrap().then = Then::Bury { reason: "poison".to_owned() };
                known.be_over(Phase::Dead, &lease);
                if ending == 8 {
                    transaction.record.results = ended(&State::Failure);
                    (known.state, known.finished) = (Some(State::Failure), Some(now));
                }
                "buried".to_owned()
            }
        };
        assert_eq!(commit(store, transaction).await, committed(), "{task_id} {what}");
        format!("{task_id} {what}")
    }

    /// Moves the clock by seconds, or by more than lists bounded by time make allowance for.
    async fn let_time_pass(&mut self, store: &Store, clock: &ManualClock) -> String {
        let seconds = if self.random.bool() { self.random.u32(1..9) } else { self.random.u32(600..2000) };
        clock.advance(SECOND * seconds);
        let now = clock.now();
        let mut lost = 0;
        for known in &mut self.tasks {
            if known.due.is_some_and(|due| due <= now) {
                (known.phase, known.due) = (Phase::Queued, None);
            }
            if let Some(lease) = known.lease.take_if(|lease| lease.ends < now) {
                known.last_attempt = Some(lease.since);
                known.wait(None, now);
                lost += 1;
            }
        }
        assert_eq!(store.broker.restore().await.unwrap(), lost);
        format!("{seconds} s pass, {lost} are lost")
    }

    /// Revokes what waits, and settles it at once.
    async fn revoke(&mut self, store: &Store, now: Timestamp) -> String {
        let waits = |known: &Known| matches!(known.phase, Phase::Queued | Phase::Delayed);
        let Some(at) = self.any_that(waits) else { return "nothing waits".into() };
        let known = &mut self.tasks[at];
        let ids = vec![id(&known.task_id)];
        let request = Revoke { ids, terminate: false, signal: None, worker: worker("client"), lease: LEASE };
        let found = store.broker.revoke(&request).await.unwrap().remove(0);
        let Revocation::Taken { delivery, .. } = found else { panic!("{known:?} waits: {found:?}") };
        let ended = ResultMeta { date_done: Some(now), ..meta(&known.task_id, State::Revoked) };
        let record = Record { results: vec![ended], ..Record::default() };
        let settle = Transaction { record, ..Transaction::fenced(delivery.tag, Then::Ack) };
        assert_eq!(commit(store, settle).await, committed());
        known.leave(now);
        known.state = Some(State::Revoked);
        format!("revoke {}", known.task_id)
    }

    /// What an operator may do.
    async fn operate(&mut self, store: &Store, now: Timestamp) -> String {
        let choice = self.random.u8(0..6);
        if choice == 0 {
            let queue_name = self.any(&QUEUES);
            let purged = store.broker.purge(&queue(queue_name)).await.unwrap();
            let waits = |known: &&mut Known| {
                known.queue == queue_name && matches!(known.phase, Phase::Queued | Phase::Delayed)
            };
            let mut left = 0;
            for known in self.tasks.iter_mut().filter(waits) {
                known.leave(now);
                left += 1;
            }
            assert_eq!(purged.len(), left, "purge {queue_name}");
            return format!("purge {queue_name}");
        }
        let atomic = self.atomic;
        let may =
            |known: &Known| known.phase == Phase::Dead && (choice < 3 || atomic || known.state.is_none());
        let Some(at) = self.any_that(may) else { return "nothing is dead".into() };
        let known = &mut self.tasks[at];
        let ids = [id(&known.task_id)];
        if choice < 3 {
            assert_eq!(store.broker.drop_dead(&ids).await.unwrap(), ids);
            known.phase = Phase::Settled;
            known.finished = known.finished.or(Some(now));
            return format!("drop {}", known.task_id);
        }
        assert_eq!(store.broker.revive(&ids).await.unwrap(), ids);
        known.wait(None, now);
        (known.deliveries, known.ended_by, known.finished) = (0, None, None);
        if known.state.as_ref().is_some_and(State::is_ready) {
            known.state = None;
        }
        format!("revive {}", known.task_id)
    }

    fn any_query(&mut self, now: Timestamp) -> TaskQuery {
        let mut query = TaskQuery { limit: self.random.usize(1..8), ..TaskQuery::default() };
        let states = ["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"];
        let phases = [Phase::Delayed, Phase::Queued, Phase::Reserved, Phase::Settled, Phase::Dead];
        let texts = ["app", "add", "app.sum", "1", "a-", "nothing"];
        let filters = if self.random.bool() { 1 } else { 3 };
        for _ in 0..filters {
            match self.random.u8(0..9) {
                0 => query.states.push(State::from(self.any(&states))),
                1 => query.states.extend([self.any(&states), self.any(&states)].map(State::from)),
                2 => query.phases.extend([self.any(&phases), self.any(&phases)]),
                3 => query.task = Some(self.any(&NAMES).into()),
                4 => query.queue = Some(queue(self.any(&["q", "r", "unknown"]))),
                5 => {
                    let workers = ["red@host", "blue@host", "red", WORKERS[1], "plain"];
                    query.worker = Some(self.any(&workers).into());
                }
                6 => query.tag = Some(self.any(&["x", "y", "unknown"]).into()),
                7 => query.text = Some(self.any(&texts).into()),
                _ => {
                    let ago = |seconds: u32| now - jiff::SignedDuration::from_secs(i64::from(seconds));
                    let earliest = self.random.u32(0..8000);
                    query.since = self.random.bool().then(|| ago(earliest));
                    query.until = self.random.bool().then(|| ago(self.random.u32(0..earliest + 1)));
                }
            }
        }
        query
    }

    /// Compares what a list shows with what it should.
    async fn compare(&self, store: &Store, clock: &ManualClock, query: &TaskQuery, what: &str) {
        let found = every_page(store, query).await;
        let what = format!("{what}\n{query:#?} at {}", clock.now());
        let numbers: BTreeMap<u64, &Listed> = found.iter().map(|listed| (listed.number, listed)).collect();
        assert_eq!(numbers.len(), found.len(), "{what}: a task comes twice");
        assert!(numbers.values().rev().copied().eq(&found), "{what}: the order is not that of acceptance");
        let expected: Vec<&Known> = self.tasks.iter().rev().filter(|known| known.fits(query)).collect();
        let ids = |listed: &Listed| listed.task_id.to_string();
        let expected_ids: Vec<String> = expected.iter().map(|known| known.task_id.clone()).collect();
        assert_eq!(found.iter().map(ids).collect::<Vec<_>>(), expected_ids, "{what}");
        for (listed, known) in found.iter().zip(expected) {
            known.compare(listed, &what);
            let record = store.catalog.task(&listed.task_id).await.unwrap().unwrap();
            assert_eq!(record.listed, *listed, "{what}");
            assert_eq!(record.ahead.is_some(), known.phase == Phase::Queued, "{what}\n{known:?}");
        }
    }
}

impl Known {
    /// One that is accepted now.
    fn new(task_id: String, task: &'static str, queue: &'static str, now: Timestamp) -> Self {
        Self {
            task_id,
            task,
            queue,
            tags: Vec::new(),
            accepted: now,
            published: now,
            due: None,
            phase: Phase::Queued,
            state: None,
            deliveries: 0,
            revoked: false,
            lease: None,
            ended_by: None,
            last_attempt: None,
            finished: None,
        }
    }

    fn message(&self) -> Routed {
        Routed {
            task: self.task.into(),
            queue: queue(self.queue),
            due: self.due,
            tags: self.tags.iter().map(|tag| Box::from(*tag)).collect(),
            ..message(&self.task_id)
        }
    }

    fn send(
        &mut self,
        task: &'static str,
        queue: &'static str,
        tags: Vec<&'static str>,
        due: Option<Timestamp>,
        now: Timestamp,
    ) {
        (self.task, self.queue, self.tags) = (task, queue, tags);
        self.wait(due, now);
        (self.published, self.deliveries, self.ended_by, self.finished) = (now, 0, None, None);
    }

    fn wait(&mut self, due: Option<Timestamp>, now: Timestamp) {
        self.due = due.filter(|due| *due > now);
        self.phase = if self.due.is_some() { Phase::Delayed } else { Phase::Queued };
    }

    fn be_over(&mut self, phase: Phase, lease: &Lease) {
        (self.phase, self.ended_by) = (phase, Some((lease.worker, lease.since)));
    }

    /// Is done with by no worker.
    fn leave(&mut self, now: Timestamp) {
        (self.phase, self.due, self.ended_by, self.finished) = (Phase::Settled, None, None, Some(now));
    }

    fn shown(&self) -> State {
        match (&self.state, self.phase) {
            (None | Some(State::Retry), Phase::Reserved) => State::Started,
            (state, _) => state.clone().unwrap_or(State::Pending),
        }
    }

    fn worker(&self) -> Option<&'static str> {
        self.lease.as_ref().map(|lease| lease.worker).or(self.ended_by.map(|(worker, _)| worker))
    }

    fn fits(&self, query: &TaskQuery) -> bool {
        let TaskQuery { states, phases, task, queue, worker, tag, text, since, until, .. } = query;
        let node = |worker: &'static str| worker.split('/').next().unwrap();
        if !states.is_empty() && !states.contains(&self.shown()) {
            return false;
        }
        if !phases.is_empty() && !phases.contains(&self.phase) {
            return false;
        }
        let mut fits = task.as_deref().is_none_or(|task| task == self.task);
        fits &= queue.as_ref().is_none_or(|queue| queue.as_str() == self.queue);
        fits &= worker.as_deref().is_none_or(|wanted| {
            self.worker().is_some_and(|worker| worker == wanted || node(worker) == wanted)
        });
        fits &= tag.as_deref().is_none_or(|tag| self.tags.contains(&tag));
        let has = |text: &str| self.task_id.starts_with(text) || self.task.contains(text);
        fits &= text.as_deref().is_none_or(has);
        fits & since.is_none_or(|since| self.accepted >= since)
            & until.is_none_or(|until| self.accepted < until)
    }

    fn compare(&self, listed: &Listed, what: &str) {
        let Listed { number: _, task_id: _, place, accepted, worker, started, finished, tags } = listed;
        let what = format!("{what}\n{self:?}\nis {listed:?}");
        assert_eq!(
            (place.phase, &*place.task, place.queue.as_str()),
            (self.phase, self.task, self.queue),
            "{what}"
        );
        assert_eq!(
            (listed.state(), place.due, place.published),
            (self.shown(), self.due, self.published),
            "{what}"
        );
        let holder = self.lease.as_ref().map(|lease| lease.worker);
        assert_eq!(place.worker.as_ref().map(WorkerName::as_str), holder, "{what}");
        if self.phase != Phase::Settled {
            assert_eq!((place.deliveries, place.revoked), (self.deliveries, self.revoked), "{what}");
        }
        assert_eq!((*accepted, *finished), (self.accepted, self.finished), "{what}");
        assert_eq!(worker.as_ref().map(WorkerName::as_str), self.worker(), "{what}");
        let run = self.lease.as_ref().map(|lease| lease.since).or(self.ended_by.map(|(_, since)| since));
        assert_eq!(*started, run.or(self.last_attempt), "{what}");
        assert!(tags.iter().map(|tag| &**tag).eq(self.tags.iter().copied()), "{what}");
    }
}
