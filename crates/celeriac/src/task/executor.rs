//! Tasks that another runtime defines and runs. The worker reserves their messages, keeps their leases and limits, and
//! settles them; an [`Executor`] lends it seats, and whoever sits there decodes the body, runs the task, stores its result and
//! sends what follows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Context, TaskOptions};
use crate::id::QueueName;
use crate::protocol::{Exception, Json, RawMessage, ResultMeta};
use crate::signal::ProcessSignal;

/// A runtime with tasks of its own.
///
/// ```text
///  seat() ─► Seat ─┬─ run ─────► Ran: stored by the runtime, or lost with it
///                  └─ conclude ► stored by the runtime, which did not see the end itself
/// ```
#[async_trait]
pub trait Executor: fmt::Debug + Send + Sync + 'static {
    /// The names of its tasks, in order.
    fn names(&self) -> Vec<Arc<str>>;

    /// A task by its name.
    fn task(&self, name: &str) -> Option<Arc<ForeignTask>>;

    /// Waits for a free seat. Dropping the wait gives nothing away; dropping a seat gives it back. `None`: the runtime is
    /// gone, and there will be none.
    async fn seat(&self) -> Option<Box<dyn Seat>>;

    /// The worker runs so many at once from now on.
    fn resize(&self, size: usize);

    /// Lets its size follow what there is to do, between `least` and `most`; `false` when it cannot.
    fn autoscale(&self, least: usize, most: usize) -> bool {
        let _ = (least, most);
        false
    }

    /// Whether it stores ends itself. One that does not hands over what is to be written, and an end that only the worker
    /// has seen is the worker's to store.
    fn stores(&self) -> bool {
        true
    }

    /// How it stands, for `inspect stats`: what is told of the pool in place of the worker's own figures.
    fn figures(&self) -> Vec<(&'static str, Json)>;
}

/// A place where one task runs.
#[async_trait]
pub trait Seat: Send {
    /// The process that it is in.
    fn pid(&self) -> u32;

    /// Runs a task. [`Context::cancelled`] and [`Context::stopped`] say when it is asked and told to stop; dropping the
    /// future stops it by force, with all that it has started.
    async fn run(self: Box<Self>, call: ForeignCall, cx: Context) -> Ran;

    /// Has an end stored that the runtime has not seen, with all that follows it. Says what is stored: an end that was
    /// there before stays.
    ///
    /// # Errors
    /// Nothing is known to be stored, and why; trying again is safe.
    async fn conclude(self: Box<Self>, call: ForeignCall, verdict: Verdict) -> Result<Concluded, String>;
}

/// What an executor tells of a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ForeignTask {
    /// Its name.
    pub name: Arc<str>,
    /// Its options. What only the runtime needs, such as how often to retry, is for show.
    pub options: TaskOptions,
    /// Whether a failed task's message is done with, when it is acknowledged late; else it is dropped as rejected.
    pub acks_on_failure: bool,
    /// Whether the message of a task that ran into its hard limit is done with; else it is given back.
    pub acks_on_timeout: bool,
    /// Whether the message is given back when the process is lost in the midst of it, if it is acknowledged late.
    pub reject_on_worker_lost: bool,
    /// Whether it is tried again when the process is lost, as often as it may be.
    pub retry_on_worker_lost: bool,
}

impl ForeignTask {
    /// A task with options, and Celery's defaults for the rest.
    #[must_use]
    pub fn new(name: &str, options: TaskOptions) -> Self {
        Self {
            name: Arc::from(name),
            options,
            acks_on_failure: true,
            acks_on_timeout: true,
            reject_on_worker_lost: false,
            retry_on_worker_lost: false,
        }
    }
}

/// A message for an executor, as it travels: nothing here has looked into its body.
#[derive(Debug, Clone)]
pub struct ForeignCall {
    /// The message.
    pub message: RawMessage,
    /// The queue it came from.
    pub queue: QueueName,
    /// How often it has been delivered, this time included.
    pub deliveries: u32,
}

/// How a run ended. What follows is sent, and the result is stored but where it is left to the worker; of a loss and a
/// rejection nothing is.
#[derive(Debug, Clone, PartialEq)]
pub enum Ran {
    /// With a value.
    Succeeded {
        /// The value, where it can be shown.
        value: Json,
        /// The value as the runtime prints it.
        shown: String,
        /// How long it took there.
        took: Duration,
        /// The result, where the worker is to store it.
        left: Option<Box<ResultMeta>>,
    },
    /// With an error.
    Failed(Fault),
    /// It was sent again under its id.
    Retried(Fault),
    /// Nothing is stored, as it asked.
    Ignored,
    /// It refuses its message; nothing is stored yet.
    Rejected {
        /// Whether it wants to be delivered again.
        requeue: bool,
        /// Why.
        reason: String,
    },
    /// Its process was gone before it could begin; it may run in another at once.
    NotBegun,
    /// Its process was killed for the sake of another task: it is delivered again where it may be, and not blamed.
    HandedBack {
        /// How that came about.
        why: String,
    },
    /// Its process is gone, and with it what it did.
    Lost {
        /// How that came about.
        why: String,
    },
}

/// An error of the runtime's.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// As it is stored.
    pub exception: Exception,
    /// As the runtime prints it.
    pub shown: String,
    /// For people.
    pub traceback: Option<String>,
    /// The result, where the worker is to store it.
    pub left: Option<Box<ResultMeta>>,
}

/// An end that only the worker has seen.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// The hard limit, so many seconds.
    TimeLimit(f64),
    /// The process was lost.
    Lost(String),
    /// The task refuses its message for good.
    Rejected(String),
    /// It was revoked before it began: `revoked`, `expired`.
    Revoked(&'static str),
    /// It was revoked while it ran, and stopped by this signal.
    Terminated(ProcessSignal),
    /// No worker has a task of this name.
    NotRegistered(String),
}

impl Verdict {
    /// The exception that is stored.
    #[must_use]
    pub fn exception(&self) -> Exception {
        match self {
            Self::TimeLimit(seconds) => Exception::time_limit(*seconds),
            Self::Lost(why) => Exception::worker_lost(why),
            Self::Rejected(why) => Exception::reject(why, false),
            Self::Terminated(_) => Exception::terminated(),
            Self::NotRegistered(name) => Exception::not_registered(name),
            Self::Revoked("expired") => Exception::expired(),
            Self::Revoked(_) => Exception::revoked(),
        }
    }
}

/// What a conclusion found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concluded {
    /// The verdict is stored.
    Stored,
    /// The task had succeeded before it was lost, and that stays.
    Succeeded,
    /// It was sent again.
    Retried,
}
