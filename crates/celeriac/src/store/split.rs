//! A broker and a backend that are two stores.
//!
//! Nothing can be written to both at once, so the writes are ordered such that a crash between two of them repeats
//! work and never loses it. One commit goes:
//!
//! ```text
//! 1 look      broker   is the reservation still held?      no: Lost, nothing is written
//!             backend  is the chord to fire complete?      no: NotReady, nothing is written
//! 2 follow    broker   publish, the reservation kept       only where step 3 makes the task look finished
//! 3 record    backend  results, parts, steps, log, fire
//! 4 settle    broker   what becomes of the delivery, and in the same step whatever step 2 has not published
//! ```
//!
//! A finished state is what a worker goes by when it acknowledges a redelivered task without running it, so it must
//! not be there before what follows from it (step 2 before 3). A chord must be open before its header can end, and a
//! retry takes the id that the reservation occupies, so those messages go out last, with the acknowledgement.
//!
//! What is weaker than in one store:
//!
//! - After a crash between 2 and 3, or 3 and 4, the task is delivered again. Between 2 and 3 it runs again, and what
//!   it sends is a duplicate as long as it carries the ids it had before and is marked `unique`, as every message that
//!   follows from a task should be. Between 3 and 4 a finished state is stored: `fetch` tells, and the delivery is to
//!   be acknowledged without a run.
//! - A reservation lost between 1 and 4 gives [`Outcome::Lost`] although 2 and 3 have happened.
//! - Two who fire one chord at a time may both publish its body, which is why the body has an id of its own; one of
//!   them gets [`Outcome::NotReady`].
//! - Each half knows only its own: `locate` has no states, and to send a finished task again or revive a dead one,
//!   `forget` its result first, or the old result stays. The name in the backend's feed is empty for tasks without an
//!   extended result. Lists take the states from the backend's half, and of the attempts of a task only the last one has
//!   its error, while the task waits to be tried again.
//! - A backend knows no task before something is stored under its id, and drops log records of those it does not know.
//!   A commit with log records therefore stores PENDING first where nothing is; one written with `record` alone does
//!   not.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::split_catalog::SplitCatalog;
use super::{Fence, Outcome, Result, Store, Then, Transact, Transaction};
use crate::backend::{Backend, Record, Recorded};
use crate::broker::{Broker, Routed};
use crate::id::TaskId;
use crate::protocol::{Json, ResultMeta};
use crate::state::State;

/// Orders writes over a broker and a backend that know nothing of each other.
#[derive(Debug)]
pub struct Split {
    /// The store that moves messages. Its own backend half stays empty; its atomic step settles a reservation and
    /// publishes at once.
    broker: Arc<dyn Transact>,
    backend: Arc<dyn Backend>,
}

impl Split {
    /// Over the broker of one store and the backend of another.
    #[must_use]
    pub fn new(broker: Arc<dyn Transact>, backend: Arc<dyn Backend>) -> Self {
        Self { broker, backend }
    }

    /// Carries out on the broker what `step` makes of each transaction that is still under way, in one call. One that
    /// the broker refuses is over.
    async fn on_broker(
        &self,
        under_way: &mut [UnderWay],
        step: impl Fn(&mut UnderWay) -> Option<Transaction>,
    ) -> Result<()> {
        let mut steps = Vec::new();
        let mut of = Vec::new();
        for one in under_way.iter_mut().filter(|one| one.over.is_none()) {
            if let Some(step) = step(one) {
                steps.push(step);
                of.push(one);
            }
        }
        if steps.is_empty() {
            return Ok(());
        }
        let outcomes = self.broker.commit(steps).await?;
        for (one, outcome) in of.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Committed { duplicates, .. } => one.duplicates.extend(duplicates),
                refused => one.over = Some(refused),
            }
        }
        Ok(())
    }

    /// Ends the transactions that are to fire a chord which cannot be fired.
    async fn look_at_chords(&self, under_way: &mut [UnderWay]) -> Result<()> {
        for one in under_way.iter_mut().filter(|one| one.over.is_none()) {
            if let Some(group_id) = &one.record.fire
                && self.backend.chord(group_id).await?.is_none()
            {
                one.over = Some(Outcome::NotReady);
            }
        }
        Ok(())
    }

    /// Makes the tasks of log records known to the backend.
    async fn introduce(&self, under_way: &mut [UnderWay]) -> Result<()> {
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        // Without a reservation or a message nothing says that the task is there.
        let alive = |one: &&UnderWay| one.fence.is_some() || !one.publish.is_empty() || one.follows;
        for one in under_way.iter().filter(|one| one.over.is_none()).filter(alive) {
            seen.extend(one.record.results.iter().map(|meta| meta.task_id.clone()));
            let fresh =
                one.record.log.iter().map(|line| &line.task_id).filter(|id| seen.insert((*id).clone()));
            ids.extend(fresh.cloned());
        }
        if ids.is_empty() {
            return Ok(());
        }
        let known = self.backend.fetch(&ids).await?;
        let unknown = ids.into_iter().zip(known).filter(|(_, meta)| meta.is_none());
        let results: Vec<ResultMeta> = unknown.map(|(id, _)| pending(id)).collect();
        if !results.is_empty() {
            self.backend.record(vec![Record { results, ..Record::default() }]).await?;
        }
        Ok(())
    }

    async fn record(&self, under_way: &mut [UnderWay]) -> Result<()> {
        let of: Vec<&mut UnderWay> =
            under_way.iter_mut().filter(|one| one.over.is_none() && one.has_record).collect();
        if of.is_empty() {
            return Ok(());
        }
        let mut records = Vec::new();
        let mut waiting = Vec::new();
        for one in of {
            records.push(std::mem::take(&mut one.record));
            waiting.push(one);
        }
        for (one, recorded) in waiting.into_iter().zip(self.backend.record(records).await?) {
            match recorded {
                Recorded::Written { ready } => one.ready = ready,
                Recorded::NotReady => one.over = Some(Outcome::NotReady),
            }
        }
        Ok(())
    }
}

/// A transaction between its steps.
struct UnderWay {
    fence: Option<Fence>,
    publish: Vec<Routed>,
    record: Record,
    has_record: bool,
    /// The messages go out ahead of the record.
    follows: bool,
    duplicates: Vec<TaskId>,
    ready: Vec<crate::id::GroupId>,
    over: Option<Outcome>,
}

impl UnderWay {
    fn new(transaction: Transaction) -> Self {
        let Transaction { fence, publish, record } = transaction;
        let finishes = fence.is_some() && record.results.iter().any(|meta| meta.state.is_ready());
        let follows = record.fire.is_some() || finishes;
        let has_record = !is_empty(&record);
        Self { fence, publish, record, has_record, follows, duplicates: vec![], ready: vec![], over: None }
    }

    /// A look whether the reservation is held, unless the settling itself will tell before anything is written.
    fn look(&mut self) -> Option<Transaction> {
        self.has_record.then(|| self.keep()).flatten()
    }

    fn keep(&self) -> Option<Transaction> {
        self.fence.as_ref().map(|fence| Transaction::fenced(fence.tag.clone(), Then::Keep))
    }

    fn follow(&mut self) -> Option<Transaction> {
        if !self.follows || self.publish.is_empty() {
            return None;
        }
        let publish = std::mem::take(&mut self.publish);
        Some(Transaction { publish, ..self.keep().unwrap_or_default() })
    }

    fn settle(&mut self) -> Option<Transaction> {
        let publish = std::mem::take(&mut self.publish);
        let idle = self.fence.as_ref().is_none_or(|fence| self.has_record && fence.then == Then::Keep);
        if idle && publish.is_empty() {
            return None;
        }
        Some(Transaction { fence: self.fence.take(), publish, record: Record::default() })
    }
}

fn is_empty(record: &Record) -> bool {
    let Record { fire, results, chords, parts, steps, log } = record;
    fire.is_none()
        && results.is_empty()
        && chords.is_empty()
        && parts.is_empty()
        && steps.is_empty()
        && log.is_empty()
}

fn pending(task_id: TaskId) -> ResultMeta {
    ResultMeta {
        task_id,
        state: State::Pending,
        result: Json::null(),
        traceback: None,
        children: None,
        date_done: None,
        group_id: None,
        parent_id: None,
        extended: None,
    }
}

#[async_trait]
impl Transact for Split {
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        let mut under_way: Vec<UnderWay> = transactions.into_iter().map(UnderWay::new).collect();
        self.on_broker(&mut under_way, UnderWay::look).await?;
        self.look_at_chords(&mut under_way).await?;
        self.on_broker(&mut under_way, UnderWay::follow).await?;
        self.introduce(&mut under_way).await?;
        self.record(&mut under_way).await?;
        self.on_broker(&mut under_way, UnderWay::settle).await?;
        let outcome = |one: UnderWay| {
            one.over.unwrap_or(Outcome::Committed { ready: one.ready, duplicates: one.duplicates })
        };
        Ok(under_way.into_iter().map(outcome).collect())
    }

    fn is_atomic(&self) -> bool {
        false
    }
}

impl Store {
    /// The broker of one store and the backend of another.
    #[must_use]
    pub fn split(broker: &Store, backend: &Store) -> Self {
        let transact = Arc::new(Split::new(broker.transact.clone(), backend.backend.clone()));
        Self {
            broker: broker.broker.clone() as Arc<dyn Broker>,
            backend: backend.backend.clone(),
            transact,
            catalog: Arc::new(SplitCatalog::new(broker.catalog.clone(), backend.backend.clone())),
            control: broker.control.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::backend::{ChordPart, NewChord};
    use crate::broker::{Delivery, Reserve};
    use crate::id::{GroupId, QueueName, WorkerName};
    use crate::memory::MemoryStore;
    use crate::protocol::RawMessage;
    use crate::state::Phase;
    use crate::testing::{Fault, FaultPlan, Faulty, ManualClock};

    const LEASE: Duration = Duration::from_secs(20);

    fn message(task_id: &str, body: &'static [u8]) -> Routed {
        Routed {
            task_id: TaskId::from(task_id),
            task: "t".into(),
            queue: QueueName::from("q"),
            priority: 0,
            due: None,
            unique: true,
            tags: Vec::new(),
            message: RawMessage { head: "{}".into(), body: Bytes::from_static(body) },
        }
    }

    fn success(delivery: &Delivery) -> ResultMeta {
        ResultMeta { state: State::Success, ..pending(delivery.task_id.clone()) }
    }

    /// What a worker does with one delivery: `a` asks for a retry, and then ends with a next step and a chord's part.
    async fn work(store: &Store, delivery: Delivery) -> Result<()> {
        let [stored] = &store.backend.fetch(std::slice::from_ref(&delivery.task_id)).await?[..] else {
            panic!("one answer for one id");
        };
        let fenced = Transaction::fenced(delivery.tag.clone(), Then::Ack);
        let transaction = if stored.as_ref().is_some_and(|meta| meta.state.is_ready()) {
            fenced
        } else if delivery.message.body == "1" {
            let results = vec![ResultMeta { state: State::Retry, ..pending(delivery.task_id.clone()) }];
            let again = Routed { unique: false, ..message("a", b"2") };
            let record = Record { results, ..Record::default() };
            Transaction { publish: vec![again], record, ..fenced }
        } else if delivery.task_id.as_str() == "a" {
            let part = ChordPart {
                group_id: GroupId::from("g"),
                task_id: delivery.task_id.clone(),
                index: Some(0),
                state: State::Success,
                result: Json::null(),
            };
            let record = Record { results: vec![success(&delivery)], parts: vec![part], ..Record::default() };
            Transaction { publish: vec![message("next", b"")], record, ..fenced }
        } else {
            let record = Record { results: vec![success(&delivery)], ..Record::default() };
            Transaction { record, ..fenced }
        };
        store.transact.commit(vec![transaction]).await.map(drop)
    }

    /// Sends, works and fires until nothing is left to do, or something fails.
    async fn live(store: &Store) -> Result<()> {
        let chord = NewChord { group_id: GroupId::from("g"), size: 1, body: Json::null() };
        if store.broker.locate(&[TaskId::from("a")]).await?[0].is_none() {
            let record = Record { chords: vec![chord], ..Record::default() };
            let send = Transaction { publish: vec![message("a", b"1")], record, fence: None };
            store.transact.commit(vec![send]).await?;
        }
        let request = Reserve {
            worker: WorkerName::from("w"),
            queues: vec![QueueName::from("q")],
            limit: 1,
            lease: LEASE,
            wait: Duration::ZERO,
            stop: tokio_util::sync::CancellationToken::new(),
        };
        loop {
            let delivery = store.broker.reserve(&request).await?.pop();
            let ready = store.backend.ready_chords(1).await?.pop();
            if delivery.is_none() && ready.is_none() {
                return Ok(());
            }
            if let Some(delivery) = delivery {
                work(store, delivery).await?;
            }
            if let Some(group_id) = ready {
                let record = Record { fire: Some(group_id), ..Record::default() };
                let fire = Transaction { publish: vec![message("body", b"")], record, fence: None };
                store.transact.commit(vec![fire]).await?;
            }
        }
    }

    /// Whichever call of either half fails, before or after it happened, a process that starts again finishes it all.
    #[tokio::test]
    async fn a_crash_at_any_call_loses_nothing() {
        for fault in [Fault::Before, Fault::ReplyLost] {
            for nth in 1.. {
                let clock = ManualClock::new();
                let plan = FaultPlan::nth(nth, fault);
                let half = || Store::of(MemoryStore::new(clock.shared()));
                let (broker, backend) = (half(), half());
                let sound = Store::split(&broker, &backend);
                let faulty = |half| Faulty::new(half, &plan);
                let store = Store::split(&faulty(broker), &faulty(backend));
                let survived = live(&store).await.is_ok();
                assert_eq!(survived, plan.hits() == 0, "{fault:?} at call {nth}");
                let at = format!("{fault:?} at call {nth}, {:?}", plan.last_hit());
                if !survived {
                    clock.advance(LEASE + LEASE);
                    sound.broker.restore().await.unwrap();
                    live(&sound).await.unwrap_or_else(|why| panic!("{at}: {why}"));
                }
                let ids = ["a", "next", "body"].map(TaskId::from);
                for (id, place) in ids.iter().zip(sound.broker.locate(&ids).await.unwrap()) {
                    assert_eq!(place.map(|place| place.phase), Some(Phase::Settled), "{id}, {at}");
                }
                for meta in sound.backend.fetch(&ids).await.unwrap() {
                    assert_eq!(meta.map(|meta| meta.state), Some(State::Success), "{at}");
                }
                if survived {
                    break;
                }
            }
        }
    }
}
