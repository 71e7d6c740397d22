//! The broker's half.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::fault::Fault;
use super::reserve::{Wanted, next_due, worth_it};
use super::rows::{column_of, time_of};
use super::step::Step;
use super::writer::{Durability, Jobs, Work};
use super::{SqliteStore, WAIT_MAX, bounds, dead, lease, messages};
use crate::broker::{
    Broker, DeadLetter, Delivery, Interrupt, Place, QueueStatus, Reserve, Revocation, Revoke, Routed,
};
use crate::clock::{Timestamp, after, until};
use crate::id::{DeliveryTag, QueueName, TaskId, WorkerName};
use crate::store::{Result, Then};

/// Deliveries on their way to whoever asked. Should that caller be gone when they arrive (dropped futures are how
/// `select!` gives up), they go back to their lines at once, instead of being out of reach until their lease has passed.
struct Held {
    deliveries: Vec<Delivery>,
    next_due: Option<i64>,
    jobs: Jobs,
}

impl Held {
    fn claim(mut self) -> (Vec<Delivery>, Option<i64>) {
        (std::mem::take(&mut self.deliveries), self.next_due)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        let tags: Vec<DeliveryTag> = self.deliveries.drain(..).map(|delivery| delivery.tag).collect();
        let (reply, answer) = tokio::sync::oneshot::channel();
        // Nobody waits for the answer of this job, which must not make it look abandoned.
        let weight = tags.len();
        let run = move |step: &mut Step<'_>| {
            let _answer = answer;
            tags.iter().try_for_each(|tag| step.give_back(tag))
        };
        let durability = Durability::Relaxed;
        self.jobs.send_now(Box::new(Work {
            durability,
            weight,
            peek: None,
            run: Some(run),
            value: None,
            reply,
        }));
    }
}

#[async_trait]
impl Broker for SqliteStore {
    async fn publish(&self, messages: Vec<Routed>) -> Result<Vec<TaskId>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        bounds::check_messages(&messages)?;
        let weight = messages.len();
        self.write("publish", Durability::Full, weight, move |step| step.publish_all(&messages)).await
    }

    async fn reserve(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        if request.queues.is_empty() || request.limit == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + request.wait.min(WAIT_MAX);
        let mut bell = self.hub.ready();
        loop {
            bell.mark_unchanged();
            let (deliveries, due) = self.reserve_now(request).await?;
            if !deliveries.is_empty() || Instant::now() >= deadline || request.stop.is_cancelled() {
                return Ok(deliveries);
            }
            let until_due = due.map_or(WAIT_MAX, |due| until(self.clock.now(), time_of(due)).min(WAIT_MAX));
            tokio::select! {
                changed = bell.changed() => {
                    if changed.is_err() {
                        return Ok(Vec::new());
                    }
                }
                () = tokio::time::sleep(until_due) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = request.stop.cancelled() => {}
            }
        }
    }

    async fn extend(&self, tags: &[DeliveryTag], lease: Duration) -> Result<Vec<DeliveryTag>> {
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let tags = tags.to_vec();
        let expires = column_of(after(self.clock.now(), lease));
        let weight = tags.len();
        self.write("extend", Durability::Relaxed, weight, move |step| step.extend(&tags, expires)).await
    }

    async fn ack(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        self.pass("acknowledge", Durability::Full, tags, Then::Ack).await
    }

    async fn requeue(
        &self,
        tags: &[DeliveryTag],
        due: Option<Timestamp>,
        counted: bool,
    ) -> Result<Vec<DeliveryTag>> {
        self.pass("requeue", Durability::Relaxed, tags, Then::Requeue { due, counted }).await
    }

    async fn bury(&self, tag: &DeliveryTag, reason: &str) -> Result<bool> {
        let then = Then::Bury { reason: reason.to_owned() };
        Ok(self.pass("bury", Durability::Full, std::slice::from_ref(tag), then).await?.is_empty())
    }

    async fn begin(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        self.pass("begin", Durability::Full, tags, Then::Begin).await
    }

    async fn restore(&self) -> Result<u64> {
        let peek = |connection: &rusqlite::Connection, now| {
            Ok::<_, Fault>((!lease::any_expired(connection, now)?).then_some(0))
        };
        self.write_if("restore", 1, peek, |step| step.restore()).await
    }

    async fn revoke(&self, request: &Revoke) -> Result<Vec<Revocation>> {
        if request.ids.is_empty() {
            return Ok(Vec::new());
        }
        let Revoke { ids, terminate, signal, worker, lease } = request.clone();
        let expires = column_of(after(self.clock.now(), lease));
        self.write("revoke", Durability::Full, ids.len(), move |step| {
            ids.iter().map(|id| step.revoke(id, lease::mark(terminate, signal), &worker, expires)).collect()
        })
        .await
    }

    async fn interrupts(
        &self,
        worker: &WorkerName,
        known: &[Interrupt],
        wait: Duration,
    ) -> Result<Vec<Interrupt>> {
        let worker = worker.clone();
        let look = move |connection: &rusqlite::Connection, _| lease::interrupts(connection, &worker);
        let news = |found: &Vec<Interrupt>| found.iter().any(|interrupt| !known.contains(interrupt));
        self.look_until("interrupts", self.hub.revoked(), wait, look, news).await
    }

    async fn locate(&self, ids: &[TaskId]) -> Result<Vec<Option<Place>>> {
        let (ids, now) = (ids.to_vec(), column_of(self.clock.now()));
        self.read("locate", move |connection| {
            let find = |id| {
                let known = messages::find(connection, id, now)?;
                Ok(known.filter(|known| known.has_message).map(|known| known.place))
            };
            ids.iter().map(find).collect()
        })
        .await
    }

    async fn queues(&self) -> Result<Vec<QueueStatus>> {
        let now = column_of(self.clock.now());
        self.read("queues", move |connection| messages::queues(connection, now)).await
    }

    async fn pause(&self, queue: &QueueName, paused: bool) -> Result<()> {
        let queue = queue.clone();
        self.write("pause", Durability::Full, 1, move |step| step.pause(&queue, paused)).await
    }

    async fn purge(&self, queue: &QueueName) -> Result<Vec<TaskId>> {
        let queue = queue.clone();
        self.write("purge", Durability::Full, 1, move |step| step.purge(&queue)).await
    }

    async fn dead(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>> {
        self.read("dead letters", move |connection| dead::page(connection, after, limit)).await
    }

    async fn revive(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        let ids = ids.to_vec();
        self.write("revive", Durability::Full, ids.len(), move |step| step.revive(&ids)).await
    }

    async fn drop_dead(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        let ids = ids.to_vec();
        self.write("drop dead letters", Durability::Full, ids.len(), move |step| step.drop_dead(&ids)).await
    }
}

impl SqliteStore {
    /// Reserves what is due now, and says when more will be.
    async fn reserve_now(&self, request: &Reserve) -> Result<(Vec<Delivery>, Option<i64>)> {
        let expires = column_of(after(self.clock.now(), request.lease));
        let Reserve { worker, queues, limit, .. } = request.clone();
        let wanted = Wanted { worker, queues, limit, expires };
        let (looked_at, jobs, peeked) = (wanted.queues.clone(), self.jobs.clone(), self.jobs.clone());
        let peek = move |connection: &rusqlite::Connection, now| {
            if worth_it(connection, &looked_at, now)? {
                return Ok(None);
            }
            let next_due = next_due(connection)?;
            Ok(Some(Held { deliveries: Vec::new(), next_due, jobs: peeked.clone() }))
        };
        let run = move |step: &mut Step<'_>| {
            let deliveries = step.reserve(&wanted)?;
            let next_due = if deliveries.is_empty() { next_due(step.connection)? } else { None };
            Ok(Held { deliveries, next_due, jobs })
        };
        Ok(self.write_if("reserve", request.limit.max(1), peek, run).await?.claim())
    }

    /// Does the same to many reservations; returns the tags that were not held.
    async fn pass(
        &self,
        what: &str,
        durability: Durability,
        tags: &[DeliveryTag],
        then: Then,
    ) -> Result<Vec<DeliveryTag>> {
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let tags = tags.to_vec();
        self.write(what, durability, tags.len(), move |step| {
            let mut lost = Vec::new();
            for tag in tags {
                match step.pass_fence(&tag, &then, false)? {
                    None => lost.push(tag),
                    Some(lease::Passed { settled: Some(end), run }) => {
                        step.note_settled(end.seq, run.as_ref())?;
                    }
                    Some(_) => {}
                }
            }
            Ok(lost)
        })
        .await
    }
}
