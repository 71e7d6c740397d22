//! The broker's half.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use tokio::time::Instant;

use super::keys::STEPS;
use super::pack::Pack;
use super::transact::{id_in, lease_end};
use super::unheard::UnderWay;
use super::value::{self, into_items, items, seconds_held};
use super::{RedisStore, script};
use crate::broker::{
    Broker, DeadLetter, Delivery, Interrupt, Place, QueueStatus, Reserve, Revocation, Revoke, Routed,
};
use crate::clock::{Timestamp, until};
use crate::id::{DeliveryTag, QueueName, TaskId, WorkerName};
use crate::protocol::RawMessage;
use crate::signal::ProcessSignal;
use crate::state::Phase;
use crate::store::{Outcome, Result, Then, Transaction};

/// One reservation never takes more; a worker with more free slots asks again. Beyond this a script costs more a task, not
/// less, and the tasks wait for each other.
const RESERVED_MAX: usize = 64;
/// After a reservation of which nothing was usual, as where lists have priorities, so many more are not tried that way.
const BY_RULES: u32 = 15;
/// So many are restored, revoked, dropped a script.
const MOVED_MAX: usize = 500;
/// Waits are cut to this length, since a timer cannot be set further off.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[async_trait]
impl Broker for RedisStore {
    async fn publish(&self, messages: Vec<Routed>) -> Result<Vec<TaskId>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        // One transaction is one script, so all of them are stored or none.
        let outcomes = self.carry_out("publish", vec![Transaction::publish(messages)]).await?;
        let duplicates = |outcome| match outcome {
            Outcome::Committed { duplicates, .. } => duplicates,
            Outcome::Lost | Outcome::NotReady => Vec::new(),
        };
        Ok(outcomes.into_iter().flat_map(duplicates).collect())
    }

    async fn reserve(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        if request.limit == 0 || request.queues.is_empty() {
            return Ok(Vec::new());
        }
        for queue in &request.queues {
            self.consume(queue).await?;
        }
        // After one that left nothing there is nothing yet, most likely: the look that begins the watch tells as much, for less.
        if request.wait.is_zero() || !self.emptied.load(Ordering::Relaxed) {
            let deliveries = self.take(request).await?;
            if !deliveries.is_empty() || request.wait.is_zero() {
                return Ok(deliveries);
            }
        }
        let (Some(store), request) = (self.me.upgrade(), request.clone()) else { return Ok(Vec::new()) };
        self.link.drive("reserve", async move { store.wait_and_take(&request).await }).await
    }

    async fn extend(&self, tags: &[DeliveryTag], lease: Duration) -> Result<Vec<DeliveryTag>> {
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        let mut order = Pack::array(3);
        order.text(lease_end(now, lease)).text(seconds_held(now)).texts(tags.iter().map(DeliveryTag::as_str));
        let answer = self.order(&script::EXTEND, now, order).await?;
        Ok(items(&answer).iter().filter_map(value::text).map(DeliveryTag::from).collect())
    }

    async fn ack(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        self.settle_each("ack", tags, &Then::Ack).await
    }

    async fn requeue(
        &self,
        tags: &[DeliveryTag],
        due: Option<Timestamp>,
        counted: bool,
    ) -> Result<Vec<DeliveryTag>> {
        self.settle_each("requeue", tags, &Then::Requeue { due, counted }).await
    }

    async fn bury(&self, tag: &DeliveryTag, reason: &str) -> Result<bool> {
        let bury = Then::Bury { reason: reason.to_owned() };
        Ok(self.settle_each("bury", std::slice::from_ref(tag), &bury).await?.is_empty())
    }

    async fn begin(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>> {
        self.settle_each("begin", tags, &Then::Begin).await
    }

    async fn restore(&self) -> Result<u64> {
        let now = self.now();
        let mut restored = 0;
        loop {
            let mut order = Pack::array(1);
            order.int(MOVED_MAX as i64);
            let some = value::count(&self.order(&script::RESTORE, now, order).await?);
            restored += some;
            if some < MOVED_MAX as u64 {
                return Ok(restored);
            }
        }
    }

    async fn revoke(&self, request: &Revoke) -> Result<Vec<Revocation>> {
        let mut found = self.revoke_all(&request.ids, request).await?;
        let unknown = |revocation: &Revocation| matches!(revocation, Revocation::Unknown);
        // A Python producer may have sent them, and nobody here have had them in hand.
        let at: Vec<usize> = (0..found.len()).filter(|at| unknown(&found[*at])).collect();
        let ids: Vec<TaskId> = at.iter().map(|at| request.ids[*at].clone()).collect();
        if !ids.is_empty() && self.seek(&ids).await? > 0 {
            for (at, again) in at.into_iter().zip(self.revoke_all(&ids, request).await?) {
                found[at] = again;
            }
        }
        Ok(found)
    }

    async fn interrupts(
        &self,
        worker: &WorkerName,
        known: &[Interrupt],
        wait: Duration,
    ) -> Result<Vec<Interrupt>> {
        let key = self.link.keys().own("interrupts");
        let mut command = redis::cmd("HGETALL");
        command.arg(&key);
        let found = |answer: &Value, worker: &WorkerName| {
            let all = value::pairs(answer).into_iter();
            all.filter_map(|pair| interrupt(pair, worker)).collect::<Vec<_>>()
        };
        let (known, name) = (known.to_vec(), worker.clone());
        let news = move |answer: &Value| found(answer, &name).iter().any(|one| !known.contains(one));
        let answer = self.read_until("interrupts", key, command, wait, news).await?;
        Ok(found(&answer, worker))
    }

    async fn locate(&self, ids: &[TaskId]) -> Result<Vec<Option<Place>>> {
        let now = self.now();
        let mut places = Vec::with_capacity(ids.len());
        for known in self.look_at(ids, now).await? {
            places.push(known.place(now));
        }
        Ok(places)
    }

    async fn queues(&self) -> Result<Vec<QueueStatus>> {
        let answer = self.order(&script::QUEUES, self.now(), Pack::default()).await?;
        let mut queues: Vec<QueueStatus> = items(&answer).iter().filter_map(queue_status).collect();
        queues.sort_by(|one, other| one.queue.cmp(&other.queue));
        Ok(queues)
    }

    async fn pause(&self, queue: &QueueName, paused: bool) -> Result<()> {
        let mut command = redis::cmd(if paused { "SADD" } else { "SREM" });
        command.arg(self.link.keys().own("paused")).arg(queue.as_str());
        self.link.read("pause", &command).await.map(drop)
    }

    async fn purge(&self, queue: &QueueName) -> Result<Vec<TaskId>> {
        let now = self.now();
        let mut dropped: Vec<TaskId> = Vec::new();
        loop {
            let mut order = Pack::array(2);
            order.text(queue.as_str()).int(MOVED_MAX as i64);
            let answer = self.order(&script::PURGE, now, order).await?;
            let before = dropped.len();
            dropped.extend(items(&answer).iter().filter_map(value::text).map(TaskId::from));
            if dropped.len() == before {
                return Ok(dropped);
            }
        }
    }

    async fn dead(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(self.link.keys().own("dead")).arg(format!("({after}")).arg("+inf");
        command.arg("LIMIT").arg(0).arg(limit);
        let answer = self.link.read("dead", &command).await?;
        let ids: Vec<TaskId> = items(&answer).iter().filter_map(value::text).map(TaskId::from).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        let known = self.look_at(&ids, now).await?;
        let mut command = redis::cmd("HMGET");
        command.arg(self.link.keys().own("messages"));
        for id in &ids {
            command.arg(id.as_str());
        }
        let messages = self.link.read("dead", &command).await?;
        let letters = known.iter().zip(items(&messages));
        Ok(letters.filter_map(|(known, envelope)| known.dead_letter(value::bytes(envelope)?)).collect())
    }

    async fn revive(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        self.operate_on_dead("revive", ids).await
    }

    async fn drop_dead(&self, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        self.operate_on_dead("drop", ids).await
    }
}

impl RedisStore {
    async fn revoke_all(&self, ids: &[TaskId], request: &Revoke) -> Result<Vec<Revocation>> {
        let now = self.now();
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(MOVED_MAX) {
            let mut order = Pack::array(5);
            order.text(request.worker.as_str()).text(lease_end(now, request.lease)).text(seconds_held(now));
            order.text(stop(request)).texts(ids.iter().map(TaskId::as_str));
            let answers = into_items(self.order(&script::REVOKE, now, order).await?);
            if answers.len() != ids.len() {
                return Err(self.link.unexpected("revoke"));
            }
            for answer in answers {
                found.push(revocation(answer).ok_or_else(|| self.link.unexpected("revoke"))?);
            }
        }
        Ok(found)
    }

    async fn settle_each(&self, what: &str, tags: &[DeliveryTag], then: &Then) -> Result<Vec<DeliveryTag>> {
        let transactions = tags.iter().map(|tag| Transaction::fenced(tag.clone(), then.clone())).collect();
        let outcomes = self.carry_out(what, transactions).await?;
        let lost = tags.iter().zip(outcomes).filter(|(_, outcome)| !outcome.is_committed());
        Ok(lost.map(|(tag, _)| tag.clone()).collect())
    }

    async fn operate_on_dead(&self, what: &str, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        let now = self.now();
        let mut were = Vec::new();
        for ids in ids.chunks(MOVED_MAX) {
            let mut order = Pack::array(2);
            order.text(what).texts(ids.iter().map(TaskId::as_str));
            let answer = self.order(&script::DEAD, now, order).await?;
            were.extend(items(&answer).iter().filter_map(value::text).map(TaskId::from));
        }
        Ok(were)
    }

    /// Reserves what is there.
    async fn take(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        self.hand_back_unheard().await?;
        match self.take_once(request).await {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "the answer to a reservation was lost, reserving again");
                self.hand_back_unheard().await?;
                self.take_once(request).await
            }
            taken => taken,
        }
    }

    async fn take_once(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        let call = UnderWay::enter(&self.reserving);
        let request = &*call.apart(request);
        let now = self.now();
        let queues = self.turns.in_order(&request.queues);
        let limit = request.limit.min(RESERVED_MAX);
        let by_rules = self.by_rules.load(Ordering::Relaxed);
        let (mut deliveries, left) = if by_rules > 0 {
            self.by_rules.store(by_rules - 1, Ordering::Relaxed);
            (Vec::new(), true)
        } else {
            let taken = self.take_usual(request, &queues, limit, now).await;
            taken.inspect_err(|_| self.unheard.note(request, now))?
        };
        if left && deliveries.is_empty() && by_rules == 0 {
            self.by_rules.store(BY_RULES, Ordering::Relaxed);
        }
        if left {
            // Another end of the lease: should the answer be lost, only what this took is to be handed back.
            let lease =
                request.lease.saturating_sub(Duration::from_micros(u64::from(!deliveries.is_empty())));
            let request = Reserve { limit: limit - deliveries.len(), lease, ..request.clone() };
            let rest = self.take_all(&request, &queues, now).await;
            match rest.inspect_err(|_| self.unheard.note(&request, now)) {
                Ok(rest) => deliveries.extend(rest),
                Err(error) if deliveries.is_empty() => return Err(error),
                Err(error) => tracing::debug!(%error, "a part of what waits was reserved"),
            }
        }
        self.emptied.store(deliveries.len() < limit.min(2), Ordering::Relaxed);
        // Shares of several queues come one after the other, and lists hold more than one priority.
        deliveries.sort_by_key(|delivery| delivery.priority);
        self.turns.took(deliveries.iter().map(|delivery| &delivery.queue));
        Ok(deliveries)
    }

    /// Reserves by all the rules.
    async fn take_all(
        &self,
        request: &Reserve,
        queues: &[&QueueName],
        now: Timestamp,
    ) -> Result<Vec<Delivery>> {
        let mut order = Pack::array(5);
        order.text(request.worker.as_str()).text(lease_end(now, request.lease)).text(seconds_held(now));
        order.int(request.limit as i64).texts(queues.iter().map(|queue| queue.as_str()));
        let mut answers = into_items(self.order(&script::RESERVE, now, order).await?).into_iter();
        let mut deliveries = Vec::with_capacity(answers.len() / 4);
        while let Some(tag) = answers.next() {
            let delivery = reserved(&tag, answers.next(), answers.next()).and_then(|mut delivery| {
                if let Value::Array(more) = answers.next()? {
                    tell_more(&mut delivery, &more)?;
                }
                Some(delivery)
            });
            deliveries.push(delivery.ok_or_else(|| self.link.unexpected("reserve"))?);
        }
        Ok(deliveries)
    }

    /// Reserves what comes, or comes due, while the caller waits.
    async fn wait_and_take(&self, request: &Reserve) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + request.wait.min(WAIT_MAX);
        let keys = self.link.keys();
        let mut watched = vec![keys.own("paused")];
        let mut reads = redis::pipe();
        reads.cmd("SMEMBERS").arg(keys.own("paused"));
        for queue in &request.queues {
            let lists = STEPS.map(|step| keys.list(queue.as_str(), step));
            let delayed = keys.delayed(queue.as_str());
            reads.cmd("EXISTS").arg(&lists).cmd("ZRANGE").arg(&delayed).arg(0).arg(0).arg("WITHSCORES");
            watched.extend(lists);
            watched.push(delayed);
        }
        let mut bell = self.link.doorbell().bell(watched);
        loop {
            let seen = Seen::of(&request.queues, &bell.look(&reads).await?);
            let due = seen.due.map(|due| until(self.now(), due));
            if seen.waits || due.is_some_and(|due| due.is_zero()) {
                let deliveries = self.take(request).await?;
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
            }
            if Instant::now() >= deadline || request.stop.is_cancelled() {
                return Ok(Vec::new());
            }
            let look_again = due.map_or(deadline, |due| deadline.min(Instant::now() + due.min(WAIT_MAX)));
            tokio::select! {
                () = bell.wait(look_again) => {}
                () = request.stop.cancelled() => return Ok(Vec::new()),
            }
            // Most often it is there: only where others were faster, the bell is armed again.
            match self.take(request).await {
                Ok(deliveries) if deliveries.is_empty() => {}
                // It may have rung because a connection was lost, and the next one be no better yet.
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "woken, and cannot reserve yet");
                }
                taken => return taken,
            }
        }
    }
}

/// What is to be reserved, as far as a look at lists tells.
#[derive(Debug, Default)]
struct Seen {
    /// Messages wait on a queue that is not paused.
    waits: bool,
    /// When the next delayed message of such a queue comes due.
    due: Option<Timestamp>,
}

impl Seen {
    /// Of the queues that are paused, and for each queue how many lists it has and the head of what is delayed.
    fn of(queues: &[QueueName], answers: &[Value]) -> Self {
        let mut seen = Self::default();
        let [paused, answers @ ..] = answers else { return seen };
        let paused: Vec<&[u8]> = items(paused).iter().filter_map(value::bytes).collect();
        for (queue, answers) in queues.iter().zip(answers.chunks_exact(2)) {
            if paused.contains(&queue.as_str().as_bytes()) {
                continue;
            }
            seen.waits |= value::count(&answers[0]) > 0;
            let due = value::first_score(&answers[1]).and_then(|due| value::time(&Value::Int(due as i64)));
            seen.due = seen.due.into_iter().chain(due).min();
        }
        seen
    }
}

/// When each queue last had its turn: within a priority the one that waited longest goes first.
#[derive(Debug, Default)]
pub(super) struct Turns(std::sync::Mutex<(u64, HashMap<QueueName, u64>)>);

/// Past so many queues the turns start over.
const TURNS_MAX: usize = 10_000;

impl Turns {
    fn in_order<'q>(&self, queues: &'q [QueueName]) -> Vec<&'q QueueName> {
        let turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut ordered: Vec<&QueueName> = Vec::with_capacity(queues.len());
        for queue in queues {
            if !ordered.contains(&queue) {
                ordered.push(queue);
            }
        }
        ordered.sort_by_key(|queue| turns.1.get(*queue).copied().unwrap_or(0));
        ordered
    }

    fn took<'q>(&self, queues: impl Iterator<Item = &'q QueueName>) {
        let mut turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if turns.1.len() >= TURNS_MAX {
            turns.1.clear();
        }
        for queue in queues {
            turns.0 += 1;
            let turn = turns.0;
            turns.1.insert(queue.clone(), turn);
        }
    }
}

fn interrupt((tag, what): (&Value, &Value), worker: &WorkerName) -> Option<Interrupt> {
    let (stop, holder) = value::text(what)?.split_at_checked(1)?;
    (holder == worker.as_str()).then(|| {
        let number = stop.as_bytes()[0].checked_sub(b'1');
        let signal = number.and_then(ProcessSignal::from_number);
        Some(Interrupt { tag: DeliveryTag::from(value::text(tag)?), terminate: number.is_some(), signal })
    })?
}

/// How what runs is to be stopped, as the record of a task has it.
fn stop(request: &Revoke) -> String {
    let signal = request.signal.map_or(0, ProcessSignal::number);
    let stop = if request.terminate { b'1' + signal } else { b'0' };
    char::from(stop).to_string()
}

/// What the scripts that reserve tell of a delivery first.
pub(super) fn reserved(tag: &Value, queue: Option<Value>, envelope: Option<Value>) -> Option<Delivery> {
    let tag = value::text(tag)?;
    Some(Delivery {
        task_id: TaskId::from(id_in(tag)?),
        tag: DeliveryTag::from(tag),
        queue: QueueName::from(value::text(&queue?)?),
        priority: 0,
        deliveries: 1,
        begun: false,
        revoked: false,
        message: message_of(value::bytes(&envelope?)?),
    })
}

fn delivery(answer: Value) -> Option<Delivery> {
    let answers = into_items(answer);
    let [tag, id, queue, envelope, more @ ..] = &answers[..] else { return None };
    let mut delivery = Delivery {
        tag: DeliveryTag::from(value::text(tag)?),
        task_id: TaskId::from(value::text(id)?),
        queue: QueueName::from(value::text(queue)?),
        priority: 0,
        deliveries: 1,
        begun: false,
        revoked: false,
        message: message_of(value::bytes(envelope)?),
    };
    tell_more(&mut delivery, more)?;
    Some(delivery)
}

/// Takes what is not the same for most: priority, deliveries, whether it was begun and revoked, and its head, if that is
/// not the envelope's.
fn tell_more(delivery: &mut Delivery, more: &[Value]) -> Option<()> {
    let [priority, deliveries, begun, revoked, head] = more else { return None };
    delivery.priority = u8::try_from(value::integer(priority)).unwrap_or(9);
    delivery.deliveries = u32::try_from(value::integer(deliveries)).unwrap_or(u32::MAX);
    delivery.begun = value::integer(begun) != 0;
    delivery.revoked = value::integer(revoked) != 0;
    if let Some(head) = value::text(head).filter(|head| !head.is_empty()) {
        delivery.message.head = head.into();
    }
    Some(())
}

/// The message in an element of a list. One whose body cannot be taken out has its text as its head: whoever decodes it
/// finds out, and the element itself stays as it is wherever it lies.
pub(super) fn message_of(envelope: &[u8]) -> RawMessage {
    RawMessage::from_kombu(envelope).unwrap_or_else(|_| match std::str::from_utf8(envelope) {
        Ok(text) => RawMessage { head: text.into(), body: bytes::Bytes::new() },
        Err(_) => RawMessage { head: "".into(), body: bytes::Bytes::copy_from_slice(envelope) },
    })
}

fn revocation(answer: Value) -> Option<Revocation> {
    let mut parts = into_items(answer).into_iter();
    match value::integer(&parts.next()?) {
        0 => Some(Revocation::Unknown),
        1 => Some(Revocation::Finished),
        2 => Some(Revocation::Held { worker: WorkerName::from(&*value::lossy(&parts.next()?)) }),
        4 => {
            let answer = parts.next()?;
            let worker = value::lossy(&answer);
            Some(Revocation::Elsewhere { worker: (!worker.is_empty()).then(|| WorkerName::from(&*worker)) })
        }
        3 => {
            let phase = if value::text(&parts.next()?) == Some("d") { Phase::Delayed } else { Phase::Queued };
            Some(Revocation::Taken { phase, delivery: Box::new(delivery(parts.next()?)?) })
        }
        _ => None,
    }
}

fn queue_status(answer: &Value) -> Option<QueueStatus> {
    let [name, ready, delayed, reserved, oldest, paused] = items(answer) else { return None };
    Some(QueueStatus {
        queue: QueueName::from(value::text(name)?),
        ready: value::count(ready),
        delayed: value::count(delayed),
        reserved: value::count(reserved),
        oldest: value::time(oldest),
        paused: value::integer(paused) != 0,
    })
}
