//! The meta of a result: what Celery keeps under `celery-task-meta-<id>`.

use super::{DecodeError, Json, JsonMap};
use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::state::State;

/// The state of a task and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultMeta {
    /// The task.
    pub task_id: TaskId,
    /// Its state.
    pub state: State,
    /// SUCCESS: the value. RETRY, FAILURE, REVOKED: an [`Exception`] or null. STARTED: `{pid, hostname}`. Others: what
    /// the application gave.
    pub result: Json,
    /// Text for people, with RETRY and FAILURE.
    pub traceback: Option<String>,
    /// The tasks it sent; `None` when there was no run.
    pub children: Option<Vec<ResultTuple>>,
    /// When it finished; `None` for states that are not final.
    pub date_done: Option<Timestamp>,
    /// Its group.
    pub group_id: Option<GroupId>,
    /// The task that sent it.
    pub parent_id: Option<TaskId>,
    /// More about the call, with the setting `result_extended`.
    pub extended: Option<Extended>,
}

/// What `result_extended` adds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Extended {
    /// The task's name.
    pub name: String,
    /// Positional arguments.
    pub args: Json,
    /// Named arguments.
    pub kwargs: Json,
    /// The worker's node name.
    pub worker: String,
    /// Retries made.
    pub retries: u32,
    /// The queue.
    pub queue: Option<String>,
    /// Stamps and anything else found.
    pub other: JsonMap,
}

/// A result and its children, as Celery's `as_tuple`: `[[id, parent], children]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultTuple {
    /// The id of a task or group.
    pub id: String,
    /// Its parent.
    pub parent: Option<Box<ResultTuple>>,
    /// `None` for a task, the members for a group.
    pub children: Option<Vec<ResultTuple>>,
}

/// An error as Celery stores it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exception {
    /// The class's name.
    pub exc_type: String,
    /// The arguments of the exception.
    #[serde(default)]
    pub exc_message: Vec<Json>,
    /// The class's module.
    #[serde(default)]
    pub exc_module: Option<String>,
}

impl ResultMeta {
    /// Reads a meta from JSON.
    pub fn decode(_bytes: &[u8]) -> Result<Self, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }

    /// Writes it as JSON, field for field as Celery does.
    pub fn encode(&self) -> Result<Json, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::null()
    }
}
