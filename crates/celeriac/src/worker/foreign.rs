//! Runs a task of another runtime, and turns how it ended into a transaction. The runtime has stored the result and sent
//! what follows; here the message is settled, the log ended, and what the runtime could not see is handed to it to store.
//!
//! ```text
//!  wait for a seat ─► begin ─► run ─┬─ over ─────────────────────────────► settle
//!                                   └─ lost, stopped by force ─► conclude ──┘
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::ending::{self, Count};
use super::examine::Runnable;
use super::held::Run;
use super::pace;
use super::pool::{self, Limits, Within};
use crate::broker::Delivery;
use crate::clock::after;
use crate::envelopes::Envelopes;
use crate::protocol::event::EventKind;
use crate::protocol::{DecodeError, Json, Message, RawMessage, ResultMeta};
use crate::state::State;
use crate::store::{Outcome, Then, Transaction};
use crate::task::{
    Arguments, CancelReason, CancelSignal, Concluded, Context, Executor, Fault, ForeignCall, ForeignTask,
    Ran, Request, Seat, TaskOptions, Verdict,
};

/// A conclusion that could not be stored is tried again after this, and then after twice as long, up to the longest.
const CONCLUDE_PAUSE: Duration = Duration::from_millis(200);
const CONCLUDE_PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// How long a worker that shuts down goes on trying. What is not stored then is found again when its lease has passed.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

impl Shared {
    /// The options of a task that this worker knows.
    pub(super) fn options(&self, name: &str) -> Option<TaskOptions> {
        let foreign = self.executor.as_ref().and_then(|executor| executor.task(name));
        foreign.map(|task| task.options.clone()).or_else(|| self.app.registry().options(name).cloned())
    }

    /// The names of the tasks it knows, but for those that every worker does.
    pub(super) fn task_names(&self) -> Vec<Box<str>> {
        let own = self.app.registry().names().map(Box::from);
        let foreign = self.executor.as_ref().map_or_else(Vec::new, |executor| executor.names());
        own.chain(foreign.iter().map(|name| Box::from(&**name))).collect()
    }

    /// Holds as many tasks ahead as the pace of late allows.
    fn hold_ahead(&self) {
        self.slots.look_ahead(|slots| self.pace.ahead(slots));
        // The consumer may hold free slots while it waits, or wait for more than there will be.
        self.recall.recall();
    }

    /// The pool has another size.
    pub(super) fn resized(&self, slots: usize) {
        if let Some(executor) = &self.executor {
            executor.resize(slots);
        }
    }
}

/// Reads a message, and of one for another runtime only what stands outside its body.
pub(super) fn read(
    shared: &Shared,
    raw: &RawMessage,
) -> Result<(Message, Option<Arc<ForeignTask>>), DecodeError> {
    let Some(executor) = &shared.executor else { return Ok((Message::decode(raw)?, None)) };
    if let Some(message) = Message::decode_head(raw)?
        && let Some(task) = executor.task(&message.headers.task)
    {
        return Ok((message, Some(task)));
    }
    let message = Message::decode(raw)?;
    let task = executor.task(&message.headers.task);
    Ok((message, task))
}

fn call(delivery: &Delivery) -> ForeignCall {
    ForeignCall {
        message: delivery.message.clone(),
        queue: delivery.queue.clone(),
        deliveries: delivery.deliveries,
    }
}

/// Runs a task from its beginning to where its end waits to be written.
pub(super) async fn run(
    shared: &Shared,
    delivery: &Delivery,
    message: &Message,
    task: &Arc<ForeignTask>,
    acks_late: bool,
    signal: &Arc<CancelSignal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    let Some(executor) = &shared.executor else { return };
    let limits = pool::limits(shared, message, &Runnable::Foreign(Arc::clone(task)));
    let mut begun = acks_late;
    if shared.pace.holds_ahead() && !begun {
        // While others run. Given back, it has not begun.
        if !begin(shared, delivery).await {
            return;
        }
        begun = true;
    }
    let mut waiting = pin!(sit(&**executor, signal));
    let longest = Instant::now() + shared.app.config().worker_seat_timeout;
    let waited = loop {
        match timeout(pace::PATIENCE, &mut waiting).await {
            Ok(waited) => break waited,
            // One that has a slot has its seat coming. Whether this one has, or was held ahead, cannot be told: it may have
            // been taken when tasks were short, and begin to wait when they are no longer.
            Err(_) if shared.slots.may_be_exceeded() => {
                if shared.pace.end() {
                    shared.hold_ahead();
                }
                return give_back(shared, delivery).await;
            }
            // No process can be had. Others may have some; and this worker takes no more until it has one again.
            Err(_) if Instant::now() >= longest => {
                tracing::error!(task_id = %delivery.task_id, "there is no process to run a task in, it goes back; waiting for one");
                give_back(shared, delivery).await;
                tokio::select! {
                    _ = &mut waiting => {}
                    () = shared.stopping.cancelled() => {}
                }
                drop(slot);
                return;
            }
            Err(_) => {}
        }
    };
    // Before it begins: a task that is acknowledged early is lost from then on.
    let seat = match waited {
        Waited::Seat(seat) => seat,
        Waited::Gone => return not_begun(shared, delivery, message, CancelReason::Shutdown).await,
        Waited::Stopped(reason) => return not_begun(shared, delivery, message, reason).await,
    };
    let context = Context::new(
        shared.app.clone(),
        Request::of(delivery, message.headers.clone()),
        Arc::clone(signal),
        shared.journal.clone(),
    );
    if !begun && !begin(shared, delivery).await {
        return;
    }
    let pid = seat.pid();
    let run = Run {
        tag: delivery.tag.clone(),
        context: context.clone(),
        arguments: Arguments::default(),
        priority: delivery.priority,
        acks_late,
        pid,
        started: shared.app.clock().now(),
    };
    shared.held.begin(&delivery.tag, run);
    shared.tell_started(delivery);
    shared.counters.started(&task.name);
    let began = Instant::now();
    let mut seat = seat;
    let within = loop {
        let run = seat.run(call(delivery), context.clone());
        match pool::within_limits(shared, run, limits, signal).await {
            Within::Over(Ran::NotBegun) => {}
            within => break within,
        }
        tracing::warn!(task_id = %delivery.task_id, "a process was gone before the task began there");
        let patience = shared.app.config().worker_seat_timeout;
        seat = match timeout(patience, sit(&**executor, signal)).await {
            Ok(Waited::Seat(seat)) => seat,
            Err(_) => {
                let why = "Worker exited prematurely: no other process came up.".to_owned();
                break Within::Over(Ran::HandedBack { why });
            }
            Ok(Waited::Gone) => {
                let why = "Worker exited prematurely: its runtime is gone.".to_owned();
                break Within::Over(Ran::Lost { why });
            }
            Ok(Waited::Stopped(reason)) => break Within::Stopped(reason),
        };
    };
    if shared.pace.note(began.elapsed()) {
        shared.hold_ahead();
    }
    context.flush().await;
    let end = End { shared, delivery, message, task, acks_late, limits, slot, late: context.take_late() };
    end.settle(within, signal, began.elapsed()).await;
}

/// What a wait for a seat came to.
enum Waited {
    Seat(Box<dyn Seat>),
    /// The runtime is gone, and with it all seats that might come.
    Gone,
    /// The task is told to stop.
    Stopped(CancelReason),
}

async fn sit(executor: &dyn Executor, signal: &CancelSignal) -> Waited {
    tokio::select! {
        biased;
        seat = executor.seat() => seat.map_or(Waited::Gone, Waited::Seat),
        reason = signal.stopped() => Waited::Stopped(reason),
    }
}

/// A seat for one who does not have to have it here; a worker that shuts down waits for it no longer than it must.
async fn seat_in_time(shared: &Shared, executor: &dyn Executor) -> Option<Box<dyn Seat>> {
    let patience = shared.app.config().worker_seat_timeout;
    let shutdown = async {
        shared.stopping.cancelled().await;
        tokio::time::sleep(SHUTDOWN_PATIENCE).await;
    };
    tokio::select! {
        biased;
        seat = executor.seat() => seat,
        () = tokio::time::sleep(patience) => None,
        () = shutdown => None,
    }
}

async fn begin(shared: &Shared, delivery: &Delivery) -> bool {
    let transaction = Transaction::fenced(delivery.tag.clone(), Then::Begin);
    if let Some(Outcome::Committed { .. }) = shared.settler.commit(transaction).await {
        return true;
    }
    tracing::warn!(task_id = %delivery.task_id, "lease lost before the start");
    lose(shared, delivery);
    false
}

fn lose(shared: &Shared, delivery: &Delivery) {
    ending::count(&shared.counters, Count::Lost);
    shared.held.remove(&delivery.tag);
}

/// It is told to stop while it waits for a seat.
async fn not_begun(shared: &Shared, delivery: &Delivery, message: &Message, reason: CancelReason) {
    match reason {
        CancelReason::LeaseLost => lose(shared, delivery),
        CancelReason::Revoked => {
            conclude(shared, delivery, message, Verdict::Revoked("revoked"), None, None, true).await;
        }
        _ => give_back(shared, delivery).await,
    }
}

/// It goes back to its queue as if it had never been taken.
async fn give_back(shared: &Shared, delivery: &Delivery) {
    let then = Then::Requeue { due: None, counted: false };
    let transaction = Transaction::fenced(delivery.tag.clone(), then);
    shared.settler.settle(delivery, transaction, Count::HandedBack, None).await;
}

/// Has an end stored that nobody ran to, in a task of its own.
pub(super) fn start_conclusion(
    shared: &Arc<Shared>,
    delivery: Delivery,
    message: Message,
    verdict: Verdict,
    dead: Option<String>,
    slot: Option<OwnedSemaphorePermit>,
) {
    let shared = Arc::clone(shared);
    let runs = shared.runs.clone();
    runs.spawn(async move {
        conclude(&shared, &delivery, &message, verdict, dead, None, !delivery.begun).await;
        drop(slot);
    });
}

/// A run that is over.
struct End<'a> {
    shared: &'a Shared,
    delivery: &'a Delivery,
    message: &'a Message,
    task: &'a ForeignTask,
    acks_late: bool,
    limits: Limits,
    slot: Option<OwnedSemaphorePermit>,
    /// What the runtime has handed over to be written with the end.
    late: Vec<Envelopes>,
}

impl End<'_> {
    async fn settle(self, within: Within<Ran>, signal: &CancelSignal, took: Duration) {
        let (told, by) = (signal.reason(), signal.by());
        let reason = match within {
            // What was told to stop may end as if it had been lost, and is gone as it was told to.
            Within::Over(ran @ (Ran::Lost { .. } | Ran::HandedBack { .. })) => match told {
                None | Some(CancelReason::SoftTimeLimit) => return self.over(ran, took).await,
                Some(reason) => reason,
            },
            Within::Over(ran) => return self.over(ran, took).await,
            Within::Stopped(reason) => reason,
        };
        match reason {
            CancelReason::Revoked => self.conclude(Verdict::Terminated(by), took).await,
            CancelReason::TimeLimit => {
                let limit = self.limits.hard.unwrap_or_default().as_secs_f64();
                if self.acks_late && !self.task.acks_on_timeout {
                    return self.give_back(took).await;
                }
                self.conclude(Verdict::TimeLimit(limit), took).await;
            }
            CancelReason::Shutdown if self.acks_late => {
                let then = Then::Requeue { due: None, counted: false };
                self.write(None, then, Count::HandedBack, took, None).await;
            }
            CancelReason::Shutdown | CancelReason::SoftTimeLimit => {
                let why = "the worker shut down in the midst of the task, which runs at most once";
                self.conclude(Verdict::Lost(why.to_owned()), took).await;
            }
            CancelReason::LeaseLost => {
                tracing::warn!(task_id = %self.delivery.task_id, "lease lost, the run is stopped");
                lose(self.shared, self.delivery);
            }
        }
    }

    async fn over(self, ran: Ran, took: Duration) {
        let uuid = self.delivery.task_id.to_string();
        match ran {
            Ran::Succeeded { value, shown, took, left } => {
                let is_left = left.is_some();
                let meta = left.map_or_else(|| self.meta(State::Success, value), |left| *left);
                let runtime = Some(took.as_secs_f64());
                let told = EventKind::TaskSucceeded { uuid, result: shown, runtime };
                self.write_end(meta, is_left, Count::Succeeded, took, told).await;
            }
            Ran::Failed(Fault { exception, shown, traceback, left }) => {
                let is_left = left.is_some();
                let told_here = || ResultMeta {
                    traceback: traceback.clone(),
                    ..self.meta(State::Failure, exception.encode())
                };
                let meta = left.map_or_else(told_here, |left| *left);
                let traceback = Some(traceback.unwrap_or_default());
                let told = EventKind::TaskFailed { uuid, exception: shown, traceback };
                if self.acks_late && !self.task.acks_on_failure {
                    let uuid = self.delivery.task_id.to_string();
                    let rejected = || EventKind::TaskRejected { uuid, requeue: false };
                    self.shared.announcer.task(|| self.shared.app.clock().now(), rejected);
                }
                self.write_end(meta, is_left, Count::Failed, took, told).await;
            }
            Ran::Retried(Fault { shown, traceback, .. }) => {
                let told = EventKind::TaskRetried { uuid, exception: shown, traceback };
                self.write(None, Then::Ack, Count::Retried, took, Some(told)).await;
            }
            Ran::Ignored => {
                let meta = self.meta(State::from("IGNORED"), Json::null());
                self.write(Some(meta), Then::Ack, Count::Succeeded, took, None).await;
            }
            Ran::Rejected { requeue: true, .. } if self.acks_late => self.give_back(took).await,
            Ran::Rejected { requeue: true, reason } => {
                // As Celery: it was acknowledged before it ran, and is gone. Here its caller hears of it.
                tracing::warn!(task_id = %self.delivery.task_id, "a task acknowledged early cannot be given back");
                self.conclude(Verdict::Rejected(reason), took).await;
            }
            Ran::Rejected { requeue: false, reason } => self.conclude(Verdict::Rejected(reason), took).await,
            Ran::HandedBack { .. } if self.acks_late => {
                let then = Then::Requeue { due: None, counted: false };
                self.write(None, then, Count::HandedBack, took, None).await;
            }
            Ran::HandedBack { why } | Ran::Lost { why } => self.lost(why, took).await,
            Ran::NotBegun => unreachable!("it runs in another process"),
        }
    }

    async fn lost(self, why: String, took: Duration) {
        tracing::error!(task_id = %self.delivery.task_id, task = %self.task.name, %why, "the process of a task was lost");
        let given_back = self.acks_late && self.task.reject_on_worker_lost;
        if given_back && !self.task.retry_on_worker_lost {
            self.give_back(took).await;
        } else {
            self.conclude(Verdict::Lost(why), took).await;
        }
    }

    /// It is delivered again, and that counts.
    async fn give_back(self, took: Duration) {
        let due = after(self.shared.app.clock().now(), ending::REJECT_PAUSE);
        let then = Then::Requeue { due: Some(due), counted: true };
        let uuid = self.delivery.task_id.to_string();
        let told = EventKind::TaskRejected { uuid, requeue: true };
        self.write(None, then, Count::HandedBack, took, Some(told)).await;
    }

    async fn conclude(self, verdict: Verdict, took: Duration) {
        conclude(self.shared, self.delivery, self.message, verdict, None, Some(took), self.acks_late).await;
    }

    /// Writes an end, with the result where that is left to do: then both are one step, under the lease.
    async fn write_end(self, meta: ResultMeta, is_left: bool, count: Count, took: Duration, told: EventKind) {
        let by = self.shared.ender();
        // Sent again under its id, it has not ended.
        let again = self.late.iter().any(|late| !late.messages.is_empty());
        let shown = Some(&meta).filter(|_| !again);
        let mut transaction = ending::stored(by, self.delivery, self.message, shown, Then::Ack);
        if is_left {
            transaction.record.results.push(meta);
        }
        self.late.into_iter().for_each(|late| late.add_to(&mut transaction));
        drop(self.slot);
        self.shared.settler.settle_telling(self.delivery, transaction, count, Some(took), Some(told)).await;
    }

    async fn write(
        self,
        meta: Option<ResultMeta>,
        then: Then,
        count: Count,
        took: Duration,
        told: Option<EventKind>,
    ) {
        let by = self.shared.ender();
        // Sent again under its id, it has not ended.
        let again = self.late.iter().any(|late| !late.messages.is_empty());
        let meta = meta.filter(|_| !again);
        let mut transaction = ending::stored(by, self.delivery, self.message, meta.as_ref(), then);
        self.late.into_iter().for_each(|late| late.add_to(&mut transaction));
        // The next task may start while this one's end is written.
        drop(self.slot);
        self.shared.settler.settle_telling(self.delivery, transaction, count, Some(took), told).await;
    }

    fn meta(&self, state: State, result: Json) -> ResultMeta {
        meta(self.shared, self.delivery, self.message, state, result)
    }
}

fn meta(shared: &Shared, delivery: &Delivery, message: &Message, state: State, result: Json) -> ResultMeta {
    ResultMeta {
        date_done: Some(shared.app.clock().now()),
        result,
        ..ending::meta(message, &delivery.task_id, state)
    }
}

/// Has an end stored by the runtime, as often as it takes while the lease is held, and settles the message. Where the
/// runtime is gone for good, or no process of it can be had, a message that may is given back; another is found again when its
/// lease has passed.
async fn conclude(
    shared: &Shared,
    delivery: &Delivery,
    message: &Message,
    verdict: Verdict,
    dead: Option<String>,
    took: Option<Duration>,
    may_go_back: bool,
) {
    let Some(executor) = &shared.executor else { return };
    if !executor.stores() {
        return conclude_here(shared, delivery, message, &verdict, dead, took).await;
    }
    let mut pause = CONCLUDE_PAUSE;
    let mut patience: Option<Instant> = None;
    let found = loop {
        let Some(seat) = seat_in_time(shared, &**executor).await else {
            tracing::error!(task_id = %delivery.task_id, "there is no process to store an end by, which is left to another worker");
            if may_go_back {
                let then = Then::Requeue { due: None, counted: false };
                let transaction = Transaction::fenced(delivery.tag.clone(), then);
                shared.settler.settle(delivery, transaction, Count::HandedBack, None).await;
            } else {
                shared.held.remove(&delivery.tag);
            }
            return;
        };
        let why = match seat.conclude(call(delivery), verdict.clone()).await {
            Ok(found) => break found,
            Err(why) => why,
        };
        tracing::warn!(task_id = %delivery.task_id, %why, "an end cannot be stored, trying again");
        if shared.stopping.is_cancelled()
            && Instant::now() >= *patience.get_or_insert_with(|| Instant::now() + SHUTDOWN_PATIENCE)
        {
            tracing::error!(task_id = %delivery.task_id, "an end is not stored; it is found again when its lease has passed");
            shared.held.remove(&delivery.tag);
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(CONCLUDE_PAUSE_LONGEST);
    };
    let exception = verdict.exception();
    let uuid = delivery.task_id.to_string();
    let (state, count, told) = match (found, &verdict) {
        (Concluded::Succeeded, _) => {
            let told = EventKind::TaskSucceeded { uuid, result: String::new(), runtime: None };
            (State::Success, Count::Succeeded, told)
        }
        (Concluded::Retried, _) => {
            let told = EventKind::TaskRetried { uuid, exception: exception.python_repr(), traceback: None };
            let transaction = ending::stored(shared.ender(), delivery, message, None, Then::Ack);
            return shared
                .settler
                .settle_telling(delivery, transaction, Count::Retried, took, Some(told))
                .await;
        }
        (Concluded::Stored, Verdict::Revoked(why)) => {
            let expired = *why == "expired";
            let told = EventKind::TaskRevoked { uuid, terminated: false, signum: None, expired };
            (State::Revoked, Count::Revoked, told)
        }
        (Concluded::Stored, Verdict::Terminated(signal)) => {
            let signum = Some(i32::from(signal.number()));
            let told = EventKind::TaskRevoked { uuid, terminated: true, signum, expired: false };
            (State::Revoked, Count::Revoked, told)
        }
        (Concluded::Stored, _) => {
            let exception = exception.python_repr();
            let told = EventKind::TaskFailed { uuid, exception, traceback: Some(String::new()) };
            (State::Failure, Count::Failed, told)
        }
    };
    let result = if found == Concluded::Stored { exception.encode() } else { Json::null() };
    let meta = meta(shared, delivery, message, state, result);
    let then = dead.map_or(Then::Ack, |reason| Then::Bury { reason });
    let transaction = ending::stored(shared.ender(), delivery, message, Some(&meta), then);
    shared.settler.settle_telling(delivery, transaction, count, took, Some(told)).await;
}

/// Stores an end that the runtime has not seen, with all that follows it, as that of a task in Rust.
async fn conclude_here(
    shared: &Shared,
    delivery: &Delivery,
    message: &Message,
    verdict: &Verdict,
    dead: Option<String>,
    took: Option<Duration>,
) {
    // What follows stands in the body; of one that only Python can read, nothing is known to follow.
    let whole = Message::decode(&delivery.message);
    let message = whole.as_ref().unwrap_or_else(|why| {
        tracing::warn!(task_id = %delivery.task_id, %why, "what follows a task cannot be read, and is not told of its end");
        message
    });
    let (transaction, count) = match verdict {
        Verdict::Revoked(why) => {
            (ending::revoked(shared.ender(), delivery, message, why, false), Count::Revoked)
        }
        Verdict::Terminated(_) => {
            (ending::revoked(shared.ender(), delivery, message, "terminated", false), Count::Revoked)
        }
        other => {
            (ending::failed_unrun(shared.ender(), delivery, message, &other.exception(), dead), Count::Failed)
        }
    };
    shared.settler.settle(delivery, transaction, count, took).await;
}
