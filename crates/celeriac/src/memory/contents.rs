//! What a store in memory holds, and the rules by which its messages move.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::control::Panel;
use super::results::Results;
use crate::broker::{
    DeadLetter, Delivery, Interrupt, Place, QueueStatus, Reserve, Revocation, Revoke, Routed,
};
use crate::catalog::{Attempt, AttemptOutcome, TaskRecord};
use crate::clock::{Timestamp, after};
use crate::id::{DeliveryTag, QueueName, TaskId, WorkerName};
use crate::protocol::{Json, RawMessage, ResultMeta};
use crate::signal::ProcessSignal;
use crate::state::{self, Move, Phase, State};
use crate::store::Then;

/// Everything in the store.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) tasks: HashMap<TaskId, Task>,
    /// The tasks that were ever published, in the order of their first acceptance.
    pub(super) accepted: BTreeMap<u64, TaskId>,
    /// Messages that wait for a worker, in the order they are to be taken.
    pub(super) waiting: HashMap<QueueName, BTreeSet<(u8, u64, TaskId)>>,
    delayed: BTreeSet<(Timestamp, u64, TaskId)>,
    held: HashMap<DeliveryTag, TaskId>,
    dead: BTreeMap<u64, TaskId>,
    paused: BTreeSet<QueueName>,
    /// When each queue last had its turn.
    turns: HashMap<QueueName, u64>,
    /// The source of all numbers: places in a queue, turns, dead letters.
    numbers: u64,
    pub(super) results: Results,
    pub(super) panel: Panel,
}

/// What is known under one id.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) name: Box<str>,
    /// The message last published under the id; none where only a result was stored.
    pub(super) message: Option<Kept>,
    pub(super) meta: Option<ResultMeta>,
    /// When it finished or its message was done with.
    pub(super) done: Option<Timestamp>,
    pub(super) log: Vec<crate::backend::LogEntry>,
    /// Its number in the order of acceptance and when that was; none where only a result was stored.
    pub(super) accepted: Option<(u64, Timestamp)>,
    pub(super) tags: Vec<Box<str>>,
    /// The run that ended it.
    pub(super) last_run: Option<Run>,
    pub(super) attempts: VecDeque<Attempt>,
}

/// Who ran a task, and since when.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) worker: WorkerName,
    pub(super) started: Timestamp,
}

/// A message and where it stands.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) queue: QueueName,
    pub(super) priority: u8,
    /// Its place in the order of publishing, which it keeps when it is handed back.
    pub(super) place: u64,
    published: Timestamp,
    deliveries: u32,
    /// A worker that had begun it was lost.
    begun: bool,
    revoked: bool,
    pub(super) stand: Stand,
    pub(super) bytes: RawMessage,
}

#[derive(Debug)]
pub(super) enum Stand {
    Delayed(Timestamp),
    Queued,
    Reserved(Lease),
    Settled,
    Dead { number: u64, reason: String, died: Timestamp },
}

#[derive(Debug)]
pub(super) struct Lease {
    tag: DeliveryTag,
    pub(super) worker: WorkerName,
    /// Since when; none where it was taken to be revoked and not to be run.
    pub(super) since: Option<Timestamp>,
    ends: Timestamp,
    begun: bool,
    /// Its holder is to be told that the task is revoked, and whether to stop it even if it runs, by which signal.
    interrupt: Option<(bool, Option<ProcessSignal>)>,
}

impl Kept {
    pub(super) fn phase(&self) -> Phase {
        match self.stand {
            Stand::Delayed(_) => Phase::Delayed,
            Stand::Queued => Phase::Queued,
            Stand::Reserved(_) => Phase::Reserved,
            Stand::Settled => Phase::Settled,
            Stand::Dead { .. } => Phase::Dead,
        }
    }

    /// The run that holds it.
    fn run(&self) -> Option<Run> {
        match &self.stand {
            Stand::Reserved(lease) => Some(Run { worker: lease.worker.clone(), started: lease.since? }),
            _ => None,
        }
    }

    fn may(&self, what: Move) -> bool {
        state::next(Some(self.phase()), what).is_some()
    }
}

impl Task {
    pub(super) fn unknown() -> Self {
        Self {
            name: "".into(),
            message: None,
            meta: None,
            done: None,
            log: Vec::new(),
            accepted: None,
            tags: Vec::new(),
            last_run: None,
            attempts: VecDeque::new(),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.state.is_ready())
    }

    /// Whether its message may still move by itself or by an operator's hand.
    pub(super) fn is_live(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.phase() != Phase::Settled)
    }

    /// Whether its message is done with, result or not.
    pub(super) fn is_settled(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.phase() == Phase::Settled)
    }

    /// It is to run again: what it came to the last time is no longer its result.
    fn reopen(&mut self) {
        (self.done, self.last_run) = (None, None);
        if self.is_finished() {
            self.meta = None;
        }
    }

    /// Notes a run that did not end the task.
    fn note_attempt(&mut self, run: Run, ended: Timestamp, outcome: AttemptOutcome, error: Option<Json>) {
        let Run { worker, started } = run;
        self.attempts.push_back(Attempt { worker, started, ended, outcome, error });
        if self.attempts.len() > TaskRecord::ATTEMPTS_MAX {
            self.attempts.pop_front();
        }
    }
}

impl Contents {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn kept(&mut self, id: &TaskId) -> Option<&mut Kept> {
        self.tasks.get_mut(id)?.message.as_mut()
    }

    /// The task held under `tag`.
    pub(super) fn holder_of(&self, tag: &DeliveryTag) -> Option<TaskId> {
        self.held.get(tag).cloned()
    }

    /// Puts the messages whose time has come where workers find them.
    pub(super) fn promote(&mut self, now: Timestamp) {
        while let Some((due, _, _)) = self.delayed.first()
            && *due <= now
        {
            let Some((_, _, id)) = self.delayed.pop_first() else { return };
            self.place_in_queue(&id, None);
        }
    }

    /// Takes the message off its line, if it stands in one.
    fn take_out(&mut self, id: &TaskId) {
        let Some(kept) = self.tasks.get(id).and_then(|task| task.message.as_ref()) else { return };
        match &kept.stand {
            Stand::Delayed(due) => {
                self.delayed.remove(&(*due, kept.place, id.clone()));
            }
            Stand::Queued => {
                if let Some(line) = self.waiting.get_mut(&kept.queue) {
                    line.remove(&(kept.priority, kept.place, id.clone()));
                }
            }
            Stand::Reserved(lease) => {
                self.held.remove(&lease.tag);
            }
            Stand::Dead { number, .. } => {
                self.dead.remove(number);
            }
            Stand::Settled => {}
        }
    }

    /// Lets the message wait on its queue, at its place in the order of publishing.
    fn place_in_queue(&mut self, id: &TaskId, due: Option<Timestamp>) {
        let Some(kept) = self.tasks.get_mut(id).and_then(|task| task.message.as_mut()) else { return };
        if let Some(due) = due {
            kept.stand = Stand::Delayed(due);
            self.delayed.insert((due, kept.place, id.clone()));
        } else {
            kept.stand = Stand::Queued;
            let line = self.waiting.entry(kept.queue.clone()).or_default();
            line.insert((kept.priority, kept.place, id.clone()));
        }
    }

    /// Publishes what is no duplicate, and returns the rest. `fenced` is the task whose end this belongs to: when it
    /// sends itself again, a revocation goes with it, and the run that ended is an attempt.
    pub(super) fn publish(
        &mut self,
        messages: Vec<Routed>,
        fenced: Option<&TaskId>,
        now: Timestamp,
    ) -> Vec<TaskId> {
        let mut duplicates = Vec::new();
        for routed in messages {
            let known = self.tasks.get(&routed.task_id);
            let stands = known.and_then(|task| task.message.as_ref());
            // What the task it belongs to sends under its own id is its next attempt, and no duplicate of itself.
            let retried = fenced == Some(&routed.task_id);
            let live = stands.is_some_and(|kept| !kept.may(Move::Publish));
            if live || (routed.unique && known.is_some() && !retried) {
                duplicates.push(routed.task_id);
                continue;
            }
            let revoked = retried && stands.is_some_and(|kept| kept.revoked);
            let place = self.number();
            let id = routed.task_id;
            let task = self.tasks.entry(id.clone()).or_insert_with(Task::unknown);
            if let Some(run) = task.last_run.take().filter(|_| retried) {
                let meta = task.meta.as_ref().filter(|meta| meta.state == State::Retry);
                let error = meta.map(|meta| meta.result.clone());
                task.note_attempt(run, now, AttemptOutcome::Retried, error);
            }
            task.reopen();
            let (number, _) = *task.accepted.get_or_insert((place, now));
            self.accepted.entry(number).or_insert_with(|| id.clone());
            (task.name, task.tags) = (routed.task, routed.tags);
            task.message = Some(Kept {
                queue: routed.queue,
                priority: routed.priority.min(9),
                place,
                published: now,
                deliveries: 0,
                begun: false,
                revoked,
                stand: Stand::Settled,
                bytes: routed.message,
            });
            self.place_in_queue(&id, routed.due.filter(|due| *due > now));
        }
        duplicates
    }

    pub(super) fn reserve(&mut self, request: &Reserve, now: Timestamp) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < request.limit {
            let heads =
                request.queues.iter().filter(|queue| !self.paused.contains(*queue)).filter_map(|queue| {
                    let (priority, _, id) = self.waiting.get(queue)?.first()?;
                    Some((*priority, self.turns.get(queue).copied().unwrap_or(0), queue, id))
                });
            let Some((_, _, queue, id)) = heads.min_by_key(|(priority, turn, ..)| (*priority, *turn)) else {
                break;
            };
            let id = id.clone();
            let turn = self.number();
            self.turns.insert(queue.clone(), turn);
            deliveries.extend(self.take(&id, &request.worker, Some(now), after(now, request.lease)));
        }
        deliveries
    }

    /// Reserves one message that waits, to be run from `since` on.
    fn take(
        &mut self,
        id: &TaskId,
        worker: &WorkerName,
        since: Option<Timestamp>,
        ends: Timestamp,
    ) -> Option<Delivery> {
        self.take_out(id);
        let tag = DeliveryTag::from(uuid::Uuid::new_v4().hyphenated().to_string());
        let kept = self.kept(id)?;
        kept.deliveries = kept.deliveries.saturating_add(1);
        let worker = worker.clone();
        let lease = Lease { tag: tag.clone(), worker, since, ends, begun: false, interrupt: None };
        kept.stand = Stand::Reserved(lease);
        let delivery = Delivery {
            tag: tag.clone(),
            task_id: id.clone(),
            queue: kept.queue.clone(),
            priority: kept.priority,
            deliveries: kept.deliveries,
            begun: kept.begun,
            revoked: kept.revoked,
            message: kept.bytes.clone(),
        };
        self.held.insert(tag, id.clone());
        Some(delivery)
    }

    /// When the next delayed message of these queues is due.
    pub(super) fn next_due(&self, queues: &[QueueName]) -> Option<Timestamp> {
        let of_queues = |id: &TaskId| {
            let kept = self.tasks.get(id).and_then(|task| task.message.as_ref());
            kept.is_some_and(|kept| queues.contains(&kept.queue))
        };
        self.delayed.iter().find(|(_, _, id)| of_queues(id)).map(|(due, _, _)| *due)
    }

    fn lease(&mut self, tag: &DeliveryTag) -> Option<&mut Lease> {
        let id = self.holder_of(tag)?;
        match &mut self.kept(&id)?.stand {
            Stand::Reserved(lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn extend(&mut self, tags: &[DeliveryTag], by: Duration, now: Timestamp) -> Vec<DeliveryTag> {
        let mut lost = Vec::new();
        for tag in tags {
            match self.lease(tag) {
                Some(lease) => lease.ends = after(now, by),
                None => lost.push(tag.clone()),
            }
        }
        lost
    }

    /// Does `then` to the message held under `tag`; `false` when it is not held any more.
    pub(super) fn settle(&mut self, tag: &DeliveryTag, then: Then, now: Timestamp) -> bool {
        let Some(id) = self.holder_of(tag) else { return false };
        match then {
            Then::Keep => {}
            Then::Begin => {
                if let Some(lease) = self.lease(tag) {
                    lease.begun = true;
                }
            }
            Then::Ack => {
                self.note_last_run(&id);
                self.be_done(&id, now);
            }
            Then::Requeue { due, counted } => {
                // What is put off without being counted was not run.
                if counted || due.is_none() {
                    self.note_attempt(&id, now, AttemptOutcome::HandedBack);
                }
                self.take_out(&id);
                if let Some(kept) = self.kept(&id)
                    && !counted
                {
                    kept.deliveries = kept.deliveries.saturating_sub(1);
                }
                self.place_in_queue(&id, due.filter(|due| *due > now));
            }
            Then::Bury { reason } => {
                self.note_last_run(&id);
                self.take_out(&id);
                let number = self.number();
                if let Some(kept) = self.kept(&id) {
                    kept.stand = Stand::Dead { number, reason, died: now };
                    self.dead.insert(number, id);
                }
            }
        }
        true
    }

    fn note_last_run(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.last_run = task.message.as_ref().and_then(Kept::run);
        }
    }

    /// Notes that the run which holds a message is over and the task is not.
    fn note_attempt(&mut self, id: &TaskId, ended: Timestamp, outcome: AttemptOutcome) {
        if let Some(task) = self.tasks.get_mut(id)
            && let Some(run) = task.message.as_ref().and_then(Kept::run)
        {
            task.note_attempt(run, ended, outcome, None);
        }
    }

    fn be_done(&mut self, id: &TaskId, now: Timestamp) {
        self.take_out(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.done.get_or_insert(now);
            if let Some(kept) = &mut task.message {
                kept.stand = Stand::Settled;
            }
        }
    }

    pub(super) fn restore(&mut self, now: Timestamp) -> u64 {
        let ids: Vec<TaskId> = self.held.values().cloned().collect();
        let mut restored = 0;
        for id in ids {
            let Some(kept) = self.kept(&id) else { continue };
            let Stand::Reserved(lease) = &kept.stand else { continue };
            let ends = lease.ends;
            if ends > now {
                continue;
            }
            kept.begun |= lease.begun;
            self.note_attempt(&id, ends, AttemptOutcome::Lost);
            self.take_out(&id);
            self.place_in_queue(&id, None);
            restored += 1;
        }
        restored
    }

    pub(super) fn revoke(&mut self, id: &TaskId, request: &Revoke, now: Timestamp) -> Revocation {
        let Some(task) = self.tasks.get_mut(id) else { return Revocation::Unknown };
        let finished = task.is_finished();
        let Some(kept) = &mut task.message else {
            return if finished { Revocation::Finished } else { Revocation::Unknown };
        };
        let phase = kept.phase();
        match &mut kept.stand {
            Stand::Delayed(_) | Stand::Queued => {
                kept.revoked = true;
                match self.take(id, &request.worker, None, after(now, request.lease)) {
                    Some(delivery) => Revocation::Taken { phase, delivery: Box::new(delivery) },
                    None => Revocation::Unknown,
                }
            }
            Stand::Reserved(lease) => {
                kept.revoked = true;
                // Asked again without it, a termination stays one.
                if request.terminate || lease.interrupt.is_none() {
                    lease.interrupt = Some((request.terminate, request.signal));
                }
                Revocation::Held { worker: lease.worker.clone() }
            }
            Stand::Settled | Stand::Dead { .. } => Revocation::Finished,
        }
    }

    pub(super) fn interrupts(&self, worker: &WorkerName) -> Vec<Interrupt> {
        let of_worker = |id: &TaskId| match &self.tasks.get(id)?.message.as_ref()?.stand {
            Stand::Reserved(lease) if lease.worker == *worker => {
                let told = |(terminate, signal)| Interrupt { tag: lease.tag.clone(), terminate, signal };
                lease.interrupt.map(told)
            }
            _ => None,
        };
        self.held.values().filter_map(of_worker).collect()
    }

    pub(super) fn place(&self, id: &TaskId) -> Option<Place> {
        let task = self.tasks.get(id)?;
        let kept = task.message.as_ref()?;
        let (mut due, mut worker) = (None, None);
        match &kept.stand {
            Stand::Delayed(at) => due = Some(*at),
            Stand::Reserved(lease) => worker = Some(lease.worker.clone()),
            _ => {}
        }
        Some(Place {
            phase: kept.phase(),
            task: task.name.clone(),
            queue: kept.queue.clone(),
            state: task.meta.as_ref().map_or(State::Pending, |meta| meta.state.clone()),
            published: kept.published,
            due,
            worker,
            deliveries: kept.deliveries,
            revoked: kept.revoked,
        })
    }

    pub(super) fn queues(&self) -> Vec<QueueStatus> {
        let mut queues: BTreeMap<&QueueName, QueueStatus> = BTreeMap::new();
        for kept in self.tasks.values().filter_map(|task| task.message.as_ref()) {
            let phase = kept.phase();
            if matches!(phase, Phase::Settled | Phase::Dead) {
                continue;
            }
            let status = queues.entry(&kept.queue).or_insert_with(|| self.no_messages(&kept.queue));
            match phase {
                Phase::Delayed => status.delayed += 1,
                Phase::Reserved => status.reserved += 1,
                _ => {
                    status.ready += 1;
                    status.oldest = Some(status.oldest.map_or(kept.published, |at| at.min(kept.published)));
                }
            }
        }
        for queue in &self.paused {
            queues.entry(queue).or_insert_with(|| self.no_messages(queue));
        }
        queues.into_values().collect()
    }

    /// How a queue stands that holds no message.
    fn no_messages(&self, queue: &QueueName) -> QueueStatus {
        let paused = self.paused.contains(queue);
        QueueStatus { queue: queue.clone(), ready: 0, delayed: 0, reserved: 0, oldest: None, paused }
    }

    pub(super) fn pause(&mut self, queue: &QueueName, paused: bool) {
        if paused {
            self.paused.insert(queue.clone());
        } else {
            self.paused.remove(queue);
        }
    }

    pub(super) fn purge(&mut self, queue: &QueueName, now: Timestamp) -> Vec<TaskId> {
        let waits =
            |kept: &Kept| kept.queue == *queue && matches!(kept.stand, Stand::Delayed(_) | Stand::Queued);
        let of_queue = self.tasks.iter().filter(|(_, task)| task.message.as_ref().is_some_and(waits));
        let ids: Vec<TaskId> = of_queue.map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.be_done(id, now);
        }
        ids
    }

    pub(super) fn dead(&self, after: u64, limit: usize) -> Vec<DeadLetter> {
        let letter = |id: &TaskId| {
            let task = self.tasks.get(id)?;
            let kept = task.message.as_ref()?;
            let Stand::Dead { number, reason, died } = &kept.stand else { return None };
            Some(DeadLetter {
                number: *number,
                task_id: id.clone(),
                task: task.name.clone(),
                queue: kept.queue.clone(),
                reason: reason.clone(),
                died: *died,
                deliveries: kept.deliveries,
                message: kept.bytes.clone(),
            })
        };
        let later = self.dead.iter().filter(|(number, _)| **number > after);
        later.filter_map(|(_, id)| letter(id)).take(limit).collect()
    }

    pub(super) fn revive(&mut self, id: &TaskId) -> bool {
        if !self.is_dead(id) {
            return false;
        }
        self.take_out(id);
        let place = self.number();
        if let Some(task) = self.tasks.get_mut(id) {
            task.reopen();
            if let Some(kept) = &mut task.message {
                // A person wants it to run: nothing of its former life may stop that.
                (kept.place, kept.deliveries, kept.begun, kept.revoked) = (place, 0, false, false);
            }
        }
        self.place_in_queue(id, None);
        true
    }

    pub(super) fn drop_dead(&mut self, id: &TaskId, now: Timestamp) -> bool {
        let dead = self.is_dead(id);
        if dead {
            self.be_done(id, now);
        }
        dead
    }

    fn is_dead(&mut self, id: &TaskId) -> bool {
        self.kept(id).is_some_and(|kept| kept.phase() == Phase::Dead)
    }
}
