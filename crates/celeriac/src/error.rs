//! What can go wrong for a caller, and what a caller may do about it.

use crate::id::TaskId;
use crate::protocol::{DecodeError, Exception, JsonError};
use crate::state::State;
use crate::store;

/// What calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed; see [`store::Error::is_transient`] for whether trying again helps.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The URL names a store this build does not have.
    #[error("unknown scheme in {url}: {scheme}; use sqlite://PATH, redis://HOST:PORT/DB or memory://")]
    UnknownScheme {
        /// The URL, without credentials.
        url: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// An argument, option or setting is wrong; nothing was sent.
    #[error("{what}: {why}")]
    Invalid {
        /// Which.
        what: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A canvas cannot be sent.
    #[error(transparent)]
    Canvas(#[from] crate::canvas::Error),
    /// What is stored under the id cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The task finished, and its value is not of the type asked for.
    #[error("the result of task {task_id} is not what was expected: {why}")]
    Value {
        /// The task.
        task_id: TaskId,
        /// How they differ.
        why: JsonError,
    },
    /// The wait is over and the task is not finished; it goes on.
    #[error("no result of task {task_id} within the time given; the task is still {state}")]
    Timeout {
        /// The task.
        task_id: TaskId,
        /// Its state.
        state: State,
    },
    /// The task ended in FAILURE or REVOKED.
    #[error(transparent)]
    Task(Box<TaskFailure>),
    /// No store knows the id: never sent, or its result has expired.
    #[error("task {0} is not known: never sent, or its result has expired")]
    UnknownTask(TaskId),
    /// The log of the task was trimmed: the record asked for is no longer kept.
    #[error("the log of task {task_id} was trimmed; its first record is now {first}")]
    Trimmed {
        /// The task.
        task_id: TaskId,
        /// The position of the first record that is kept.
        first: u64,
    },
}

/// How a task failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("task {task_id} ended in {state}: {}", .exception.as_ref().map_or_else(|| "no exception stored".to_owned(), ToString::to_string))]
pub struct TaskFailure {
    /// The task.
    pub task_id: TaskId,
    /// FAILURE or REVOKED.
    pub state: State,
    /// The error as stored.
    pub exception: Option<Exception>,
    /// Where it came from, for people.
    pub traceback: Option<String>,
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.into(), why: why.to_string() }
    }
}
