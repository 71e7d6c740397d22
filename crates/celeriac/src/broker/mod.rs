//! The broker half of a store: moves messages from callers to workers.
//!
//! It knows queues, leases and due times, reads what [`Routed`] says, and never a body. Policy (prefetch, retry,
//! routing, what a poison message becomes) belongs to the worker and the client, written once.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::id::{DeliveryTag, QueueName, TaskId, WorkerName};
use crate::protocol::RawMessage;
use crate::signal::ProcessSignal;
use crate::state::{Phase, State};
use crate::store::Result;

/// Moves messages.
///
/// Every method may be called from any number of tasks, threads and processes at once, and each is one atomic step.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync + 'static {
    /// Stores all of `messages` or none; returns those not stored because they are duplicates (see
    /// [`Routed::unique`]). After `Ok`, a crash of this process loses none.
    async fn publish(&self, messages: Vec<Routed>) -> Result<Vec<TaskId>>;

    /// Reserves up to `request.limit` messages that are due, and waits at most `request.wait`, or until
    /// `request.stop`, for the first. Returns
    /// as soon as there is at least one, with all that are ready then; an empty answer means that the wait is over.
    ///
    /// Order: lower [`Routed::priority`] first across all queues; within one priority the queues take turns, and within
    /// a queue the order of publishing holds.
    async fn reserve(&self, request: &Reserve) -> Result<Vec<Delivery>>;

    /// Starts the lease of each reservation over, to end `lease` from now; returns the tags that are not held any
    /// more, whose tasks must stop.
    async fn extend(&self, tags: &[DeliveryTag], lease: Duration) -> Result<Vec<DeliveryTag>>;

    /// Forgets messages that are done with; returns the tags that were not held any more. For stores whose broker and
    /// backend are one, [`Transact`](crate::store::Transact) does this together with the result.
    async fn ack(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>>;

    /// Gives reserved messages back, as [`Then::Requeue`](crate::store::Then::Requeue) says; returns the tags that were
    /// not held any more.
    async fn requeue(
        &self,
        tags: &[DeliveryTag],
        due: Option<Timestamp>,
        counted: bool,
    ) -> Result<Vec<DeliveryTag>>;

    /// Puts a reserved message aside with its bytes; `false` when it was not held any more.
    async fn bury(&self, tag: &DeliveryTag, reason: &str) -> Result<bool>;

    /// Marks reserved messages as begun under early acknowledgement, as [`Then::Begin`](crate::store::Then::Begin);
    /// returns the tags that were not held any more.
    async fn begin(&self, tags: &[DeliveryTag]) -> Result<Vec<DeliveryTag>>;

    /// Returns to their queues the messages whose lease has passed, and says how many.
    async fn restore(&self) -> Result<u64>;

    /// Revokes tasks, durably. A message that waits is reserved for `request.worker`, so that the caller can settle it
    /// as revoked at once; should the caller die first, its lease passes and a worker finds the message marked
    /// [`Delivery::revoked`]. One that is held gets the mark, which [`Broker::interrupts`] tells its holder.
    async fn revoke(&self, request: &Revoke) -> Result<Vec<Revocation>>;

    /// The reservations of `worker` that were revoked and still run; waits at most `wait` for the first that is not in
    /// `known`, in all that it says: one revoked before and now to be stopped is news.
    async fn interrupts(
        &self,
        worker: &WorkerName,
        known: &[Interrupt],
        wait: Duration,
    ) -> Result<Vec<Interrupt>>;

    /// Where each message stands; `None` for an id this store does not know.
    async fn locate(&self, ids: &[TaskId]) -> Result<Vec<Option<Place>>>;

    /// Every queue that holds a message or is paused, by name.
    async fn queues(&self) -> Result<Vec<QueueStatus>>;

    /// Pauses a queue, durably: nothing is reserved from it until it is resumed. What is held goes on. Pausing one that is
    /// paused changes nothing, nor does resuming one that is not.
    async fn pause(&self, queue: &QueueName, paused: bool) -> Result<()>;

    /// Drops every message that waits on `queue`, due or delayed, and returns their ids. What is reserved stays.
    async fn purge(&self, queue: &QueueName) -> Result<Vec<TaskId>>;

    /// The dead letters, oldest first: at most `limit`, after the one numbered `after`.
    async fn dead(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>>;

    /// Sends dead letters back to their queues with their delivery count at zero; returns the ids that were dead.
    async fn revive(&self, ids: &[TaskId]) -> Result<Vec<TaskId>>;

    /// Forgets dead letters; returns the ids that were dead.
    async fn drop_dead(&self, ids: &[TaskId]) -> Result<Vec<TaskId>>;
}

/// A message and where it is to go.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The task's id, equal to the header `id`.
    pub task_id: TaskId,
    /// The task's name, equal to the header `task`.
    pub task: Box<str>,
    /// The queue.
    pub queue: QueueName,
    /// 0 is consumed first, 9 last, as Celery's Redis transport has it. Larger numbers count as 9.
    pub priority: u8,
    /// Not before this time: eta, countdown, the delay of a retry.
    pub due: Option<Timestamp>,
    /// Whether this message must not be sent when its id is known at all, be it finished. Without it a message is a
    /// duplicate only while its task waits or runs (as one live message per id is all a store holds), and sends a
    /// finished task again.
    pub unique: bool,
    /// Words to find the task by: the header `tags`, when that is a list of texts.
    pub tags: Vec<Box<str>>,
    /// What travels.
    pub message: RawMessage,
}

/// What a worker wants.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// Who will hold the messages.
    pub worker: WorkerName,
    /// From where; an empty list gives nothing.
    pub queues: Vec<QueueName>,
    /// How many at most; a worker asks for no more than it has free slots.
    pub limit: usize,
    /// How long they are held without being extended.
    pub lease: Duration,
    /// How long to wait for the first.
    pub wait: Duration,
    /// Ends the wait early. A caller does not drop the call instead: what it had just reserved would be held by nobody.
    pub stop: CancellationToken,
}

/// A reserved message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The reservation.
    pub tag: DeliveryTag,
    /// The task's id.
    pub task_id: TaskId,
    /// The queue it came from.
    pub queue: QueueName,
    /// Its priority.
    pub priority: u8,
    /// How often it has been delivered, this time included, hand-backs that do not count left out.
    pub deliveries: u32,
    /// A worker had begun it under early acknowledgement and was lost: by its own rule it must not run again.
    pub begun: bool,
    /// It was revoked; it must not run.
    pub revoked: bool,
    /// What travels.
    pub message: RawMessage,
}

/// Which tasks to stop, and how.
#[derive(Debug, Clone)]
pub struct Revoke {
    /// The tasks.
    pub ids: Vec<TaskId>,
    /// Whether to stop one that runs, too.
    pub terminate: bool,
    /// The signal to stop it by, where it is a process; `None`: SIGTERM.
    pub signal: Option<ProcessSignal>,
    /// Who reserves what still waits.
    pub worker: WorkerName,
    /// For how long.
    pub lease: Duration,
}

/// What [`Broker::revoke`] found of one task.
#[derive(Debug, Clone)]
pub enum Revocation {
    /// It waited, in the phase named, and is now reserved for the caller, who settles it.
    Taken {
        /// [`Phase::Queued`] or [`Phase::Delayed`].
        phase: Phase,
        /// The message.
        delivery: Box<Delivery>,
    },
    /// A worker holds it, and has been or will be told.
    Held {
        /// The holder.
        worker: WorkerName,
    },
    /// A worker that does not take its tasks by this trait has taken it: one of Celery's. It is marked, so that ours do
    /// not run it again, and that worker is the caller's to tell.
    Elsewhere {
        /// That worker, where it has told what it runs.
        worker: Option<WorkerName>,
    },
    /// It was over already.
    Finished,
    /// This store does not know the id; nothing is remembered of it.
    Unknown,
}

/// A revocation that reaches a running task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupt {
    /// Which.
    pub tag: DeliveryTag,
    /// Whether it is to be stopped even though it runs.
    pub terminate: bool,
    /// The signal to stop it by, where somebody named one.
    pub signal: Option<ProcessSignal>,
}

/// Where the message of a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The phase.
    pub phase: Phase,
    /// The task's name.
    pub task: Box<str>,
    /// The queue it waits on or came from.
    pub queue: QueueName,
    /// Its state, [`State::Pending`] when none was stored.
    pub state: State,
    /// When it was accepted.
    pub published: Timestamp,
    /// When it becomes due, for [`Phase::Delayed`].
    pub due: Option<Timestamp>,
    /// Who holds it, for [`Phase::Reserved`].
    pub worker: Option<WorkerName>,
    /// How often it has been delivered.
    pub deliveries: u32,
    /// It is marked revoked.
    pub revoked: bool,
}

/// How a queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub queue: QueueName,
    /// Messages that wait for a worker.
    pub ready: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages that workers hold.
    pub reserved: u64,
    /// When the oldest message that waits for a worker was published.
    pub oldest: Option<Timestamp>,
    /// Nothing is reserved from it.
    pub paused: bool,
}

/// A message put aside.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its number, for paging.
    pub number: u64,
    /// The task's id.
    pub task_id: TaskId,
    /// The task's name, empty when it could not be read.
    pub task: Box<str>,
    /// The queue it came from.
    pub queue: QueueName,
    /// Why it died.
    pub reason: String,
    /// When.
    pub died: Timestamp,
    /// How often it had been delivered.
    pub deliveries: u32,
    /// Its bytes.
    pub message: RawMessage,
}
