//! A store in memory, for tests: broker, backend and the atomic step over both.
//!
//! Everything stands behind one lock (`contents` holds the rules), so each call is one atomic step, and every write
//! wakes whoever waits. Nothing outlives the process, and nothing bounds what is kept but [`Backend::sweep`]: it is no
//! place for an application's tasks.

mod catalog;
mod contents;
mod control;
mod results;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use self::contents::Contents;
use crate::backend::{Backend, FeedRecord, LogPage, ReadyChord, Record, Recorded, Watch};
use crate::broker::{
    Broker, DeadLetter, Delivery, Interrupt, Place, QueueStatus, Reserve, Revocation, Revoke, Routed,
};
use crate::clock::{SharedClock, Timestamp, until};
use crate::id::{DeliveryTag, GroupId, QueueName, TaskId, WorkerName};
use crate::protocol::{Json, ResultMeta};
use crate::store::{Fence, Outcome, Result, Then, Transact, Transaction};

/// A store in memory; the URL `memory://` names it.
///
/// ```
/// use celeriac::clock::SystemClock;
/// use celeriac::memory::MemoryStore;
/// use celeriac::store::Store;
///
/// let store = Store::of(MemoryStore::new(SystemClock::shared()));
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    clock: SharedClock,
    contents: Mutex<Contents>,
    /// Counts the writes, so that one between a look and the wait that follows it is never missed.
    writes: watch::Sender<u64>,
}

impl MemoryStore {
    /// An empty store that judges leases and due times by `clock`.
    #[must_use]
    pub fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { clock, contents: Mutex::default(), writes: watch::Sender::new(0) })
    }

    fn read<T>(&self, look: impl FnOnce(&mut Contents, Timestamp) -> T) -> T {
        // A panic under the lock is a bug of this file that some test has already seen; the others may go on.
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        contents.promote(now);
        look(&mut contents, now)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Contents, Timestamp) -> T) -> T {
        let answer = self.read(change);
        self.writes.send_modify(|count| *count = count.wrapping_add(1));
        answer
    }

    /// Looks until `look` finds something or `wait` is over. It says what it found, and when time alone may change
    /// that.
    async fn wait_for<T>(
        &self,
        wait: Duration,
        mut look: impl FnMut(&mut Contents, Timestamp) -> Found<T>,
    ) -> Option<T> {
        let mut writes = self.writes.subscribe();
        // No deadline: the caller waits longer than time can count.
        let deadline = Instant::now().checked_add(wait);
        loop {
            writes.borrow_and_update();
            let sleep = match self.read(&mut look) {
                Found::Yes(found) => return Some(found),
                Found::Not { due } => due.map(|due| until(self.clock.now(), due)),
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            let sleep = [sleep, left].into_iter().flatten().min().unwrap_or(Duration::MAX);
            // Whether a write or the time ended the wait, the next look tells.
            let _ = tokio::time::timeout(sleep, writes.changed()).await;
        }
    }

    fn settle_each(&self, tags: &[DeliveryTag], then: &Then) -> Vec<DeliveryTag> {
        self.write(|contents, now| {
            let settle = |tag: &&DeliveryTag| !contents.settle(tag, then.clone(), now);
            tags.iter().filter(settle).cloned().collect()
        })
    }
}

enum Found<T> {
    Yes(T),
    Not { due: Option<Timestamp> },
}

#[async_trait]
impl Broker for MemoryStore {
    async fn publish(&self, messages: Vec<Routed>) -> Result<Vec<TaskId>> {
        Ok(self.write(|contents, now| contents.publish(messages, None, now)))
    }

    async fn reserve(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        if request.limit == 0 || request.queues.is_empty() {
            return Ok(Vec::new());
        }
        let reserving = self.wait_for(request.wait, |contents, now| match contents.reserve(request, now) {
            none if none.is_empty() => Found::Not { due: contents.next_due(&request.queues) },
            deliveries => Found::Yes(deliveries),
        });
        // What waits holds nothing, so it may be dropped.
        let found = tokio::select! {
            biased;
            found = reserving => found,
            () = request.stop.cancelled() => None,
        };
        Ok(found.unwrap_or_default())
    }

    async fn extend(&self, tags: &[DeliveryTag], lease: Duration) -> Result<Vec<DeliveryTag>> {
        Ok(self.write(|contents, now| contents.extend(tags, lease, now)))
    }

    async fn ack(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        Ok(self.settle_each(tags, &Then::Ack))
    }

    async fn requeue(
        &self,
        tags: &[DeliveryTag],
        due: Option<Timestamp>,
        counted: bool,
    ) -> Result<Vec<DeliveryTag>> {
        Ok(self.settle_each(tags, &Then::Requeue { due, counted }))
    }

    async fn bury(&self, tag: &DeliveryTag, reason: &str) -> Result<bool> {
        Ok(self.write(|contents, now| contents.settle(tag, Then::Bury { reason: reason.to_owned() }, now)))
    }

    async fn begin(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        Ok(self.settle_each(tags, &Then::Begin))
    }

    async fn restore(&self) -> Result<u64> {
        Ok(self.write(Contents::restore))
    }

    async fn revoke(&self, request: &Revoke) -> Result<Vec<Revocation>> {
        Ok(self
            .write(|contents, now| request.ids.iter().map(|id| contents.revoke(id, request, now)).collect()))
    }

    async fn interrupts(
        &self,
        worker: &WorkerName,
        known: &[Interrupt],
        wait: Duration,
    ) -> Result<Vec<Interrupt>> {
        let found = self
            .wait_for(wait, |contents, _| {
                let all = contents.interrupts(worker);
                if all.iter().all(|one| known.contains(one)) {
                    return Found::Not { due: None };
                }
                Found::Yes(all)
            })
            .await;
        Ok(found.unwrap_or_else(|| self.read(|contents, _| contents.interrupts(worker))))
    }

    async fn locate(&self, ids: &[TaskId]) -> Result<Vec<Option<Place>>> {
        Ok(self.read(|contents, _| ids.iter().map(|id| contents.place(id)).collect()))
    }

    async fn queues(&self) -> Result<Vec<QueueStatus>> {
        Ok(self.read(|contents, _| contents.queues()))
    }

    async fn pause(&self, queue: &QueueName, paused: bool) -> Result<()> {
        self.write(|contents, _| contents.pause(queue, paused));
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<Vec<TaskId>> {
        Ok(self.write(|contents, now| contents.purge(queue, now)))
    }

    async fn dead(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>> {
        Ok(self.read(|contents, _| contents.dead(after, limit)))
    }

    async fn revive(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        Ok(self.write(|contents, _| ids.iter().filter(|id| contents.revive(id)).cloned().collect()))
    }

    async fn drop_dead(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        Ok(self.write(|contents, now| ids.iter().filter(|id| contents.drop_dead(id, now)).cloned().collect()))
    }
}

#[async_trait]
impl Backend for MemoryStore {
    async fn record(&self, records: Vec<Record>) -> Result<Vec<Recorded>> {
        let transactions = records.into_iter().map(|record| Transaction { record, ..Transaction::default() });
        let outcomes = self.commit(transactions.collect()).await?;
        let recorded = |outcome| match outcome {
            Outcome::Committed { ready, .. } => Recorded::Written { ready },
            Outcome::Lost | Outcome::NotReady => Recorded::NotReady,
        };
        Ok(outcomes.into_iter().map(recorded).collect())
    }

    async fn fetch(&self, ids: &[TaskId]) -> Result<Vec<Option<ResultMeta>>> {
        Ok(self.read(|contents, _| ids.iter().map(|id| contents.meta(id)).collect()))
    }

    async fn wait(&self, watch: &Watch, wait: Duration) -> Result<bool> {
        let seen = |contents: &mut Contents, _| {
            if contents.has_news(watch) { Found::Yes(()) } else { Found::Not { due: None } }
        };
        Ok(self.wait_for(wait, seen).await.is_some())
    }

    async fn forget(&self, ids: &[TaskId]) -> Result<()> {
        self.write(|contents, _| contents.forget(ids));
        Ok(())
    }

    async fn sweep(&self, done_before: Timestamp, limit: usize) -> Result<u64> {
        Ok(self.write(|contents, now| {
            contents.panel.expire(now);
            contents.sweep(done_before, limit)
        }))
    }

    async fn log(&self, task_id: &TaskId, after: u64, limit: usize) -> Result<Option<LogPage>> {
        Ok(self.read(|contents, _| contents.log(task_id, after, limit)))
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedRecord>> {
        Ok(self.read(|contents, _| contents.feed(after, limit)))
    }

    async fn feed_end(&self) -> Result<u64> {
        Ok(self.read(|contents, _| contents.feed_end()))
    }

    async fn step(&self, task_id: &TaskId, name: &str) -> Result<Option<Json>> {
        Ok(self.read(|contents, _| contents.step(task_id, name)))
    }

    async fn chord(&self, group_id: &GroupId) -> Result<Option<ReadyChord>> {
        Ok(self.read(|contents, _| contents.ready_chord(group_id)))
    }

    async fn ready_chords(&self, limit: usize) -> Result<Vec<GroupId>> {
        Ok(self.read(|contents, _| contents.ready_chords(limit)))
    }

    async fn save_group(&self, group_id: &GroupId, tuple: &Json) -> Result<()> {
        self.write(|contents, now| contents.save_group(group_id, tuple, now));
        Ok(())
    }

    async fn group(&self, group_id: &GroupId) -> Result<Option<Json>> {
        Ok(self.read(|contents, _| contents.group(group_id)))
    }

    async fn delete_group(&self, group_id: &GroupId) -> Result<()> {
        self.write(|contents, _| contents.delete_group(group_id));
        Ok(())
    }
}

#[async_trait]
impl Transact for MemoryStore {
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        Ok(self.write(|contents, now| {
            transactions.into_iter().map(|transaction| contents.commit(transaction, now)).collect()
        }))
    }
}

impl Contents {
    fn commit(&mut self, transaction: Transaction, now: Timestamp) -> Outcome {
        let Transaction { fence, publish, mut record } = transaction;
        if fence.as_ref().is_some_and(|fence| self.holder_of(&fence.tag).is_none()) {
            return Outcome::Lost;
        }
        if record.fire.as_ref().is_some_and(|group_id| !self.fire(group_id)) {
            return Outcome::NotReady;
        }
        let ended = self.ended(&record.log);
        let mut fenced = None;
        if let Some(Fence { tag, then }) = fence {
            fenced = self.holder_of(&tag);
            self.settle(&tag, then, now);
        }
        for meta in std::mem::take(&mut record.results) {
            self.store(meta, now);
        }
        let duplicates = self.publish(publish, fenced.as_ref(), now);
        let ready = self.record(record, &ended, now);
        Outcome::Committed { ready, duplicates }
    }
}
