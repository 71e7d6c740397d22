//! What people ask of a store: which tasks there are, and all that is known of one.
//!
//! The paths by which tasks run never come here, so a list may cost what a list costs, but not more: each page looks at
//! no more than [`TaskQuery::EXAMINED_MAX`] tasks, and says where the next one goes on.

use std::fmt;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::backend::LogEntry;
use crate::broker::Place;
use crate::clock::Timestamp;
use crate::id::{QueueName, TaskId, WorkerName};
use crate::protocol::RawMessage;
use crate::state::{self, Phase, State};
use crate::store::Result;

/// Lists tasks, and tells all that is known of one.
#[async_trait]
pub trait Catalog: fmt::Debug + Send + Sync + 'static {
    /// A page of the tasks that match, newest first. It may hold fewer than `limit`, or none, and still not be the last:
    /// [`TaskPage::next`] alone says so.
    async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage>;

    /// All that is known of a task, as of one moment; `None` for an unknown id. A store that others send to looks for the
    /// message of a task it knows nothing of, too, among the newest of each queue.
    async fn task(&self, task_id: &TaskId) -> Result<Option<TaskRecord>>;

    /// Learns, until `stop`, of the tasks that run elsewhere than with celeriac and so are not written here by who runs
    /// them, as those of Python workers on the same queues: lists, logs and streams then have them. Any number may
    /// observe at once. Where no others can be, this only waits.
    async fn observe(&self, stop: &CancellationToken) {
        stop.cancelled().await;
    }
}

/// Which tasks to list. What is empty or `None` does not restrict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskQuery {
    /// Their state is one of these, as [`Listed::state`] has it.
    pub states: Vec<State>,
    /// Their message stands in one of these phases.
    pub phases: Vec<Phase>,
    /// Their name.
    pub task: Option<Box<str>>,
    /// The queue they wait on or came from.
    pub queue: Option<QueueName>,
    /// The worker that holds or ended them: a node name, or one incarnation of it.
    pub worker: Option<Box<str>>,
    /// One of their tags.
    pub tag: Option<Box<str>>,
    /// Text that their id begins with, or that their name contains.
    pub text: Option<Box<str>>,
    /// They were accepted at this time or later.
    pub since: Option<Timestamp>,
    /// They were accepted before this time.
    pub until: Option<Timestamp>,
    /// Older than the task with this number: [`TaskPage::next`] of the page before.
    pub before: Option<u64>,
    /// How many at most; at least 1.
    pub limit: usize,
}

impl TaskQuery {
    /// So many tasks one page looks at, at most, whether they match or not.
    pub const EXAMINED_MAX: usize = 10_000;

    /// Whether `listed` is asked for. The page's bounds, `before` and `limit`, are not looked at.
    #[must_use]
    pub fn matches(&self, listed: &Listed) -> bool {
        let place = &listed.place;
        let of_worker = |wanted: &str| {
            listed.worker.as_ref().is_some_and(|worker| {
                let worker = worker.as_str();
                worker == wanted || worker.split_once('/').is_some_and(|(node, _)| node == wanted)
            })
        };
        (self.states.is_empty() || self.states.contains(&listed.state()))
            && (self.phases.is_empty() || self.phases.contains(&place.phase))
            && self.task.as_ref().is_none_or(|task| *task == place.task)
            && self.queue.as_ref().is_none_or(|queue| *queue == place.queue)
            && self.worker.as_ref().is_none_or(|worker| of_worker(worker))
            && self.tag.as_ref().is_none_or(|tag| listed.tags.contains(tag))
            && self.text.as_ref().is_none_or(|text| {
                listed.task_id.as_str().starts_with(&**text) || place.task.contains(&**text)
            })
            && self.since.is_none_or(|since| listed.accepted >= since)
            && self.until.is_none_or(|until| listed.accepted < until)
    }
}

/// A page of tasks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskPage {
    /// The tasks, newest first.
    pub tasks: Vec<Listed>,
    /// Where the next page goes on; `None` when this is the last.
    pub next: Option<u64>,
}

/// A task among others.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its number in the order of acceptance; newer tasks have larger ones.
    pub number: u64,
    /// Its id.
    pub task_id: TaskId,
    /// Where its message stands.
    pub place: Place,
    /// When it was accepted first. [`Place::published`] is when its present message was.
    pub accepted: Timestamp,
    /// Who holds it, or ended it; `None` when nobody has yet, or the end was written by no worker.
    pub worker: Option<WorkerName>,
    /// When its present or last run was reserved.
    pub started: Option<Timestamp>,
    /// When it finished.
    pub finished: Option<Timestamp>,
    /// Its tags, in the order given.
    pub tags: Vec<Box<str>>,
}

impl Listed {
    /// The state to show: see [`state::shown`].
    #[must_use]
    pub fn state(&self) -> State {
        state::shown(&self.place.state, self.place.phase)
    }
}

/// All that is known of a task but its result, which [`Backend::fetch`](crate::backend::Backend::fetch) has.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRecord {
    /// What a list shows of it.
    pub listed: Listed,
    /// Its message as last published, for as long as the store keeps it.
    pub message: Option<RawMessage>,
    /// The runs that came before the present or last one, oldest first, the newest [`TaskRecord::ATTEMPTS_MAX`] of them.
    pub attempts: Vec<Attempt>,
    /// How many messages of its queue are to be taken before it, counted up to [`TaskRecord::AHEAD_MAX`]; `None` when it
    /// does not wait for a worker.
    pub ahead: Option<u64>,
    /// The newest `progress` record of its log.
    pub progress: Option<LogEntry>,
}

impl TaskRecord {
    /// So many attempts are kept of a task.
    pub const ATTEMPTS_MAX: usize = 20;
    /// The count of messages ahead stops here.
    pub const AHEAD_MAX: u64 = 10_000;
}

/// A run that did not end its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The worker.
    pub worker: WorkerName,
    /// When the message was reserved for it.
    pub started: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
    /// How it was over.
    pub outcome: AttemptOutcome,
    /// The error as stored, for [`AttemptOutcome::Retried`].
    pub error: Option<crate::protocol::Json>,
}

/// How a run was over that did not end its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// It failed, and the task was sent again.
    Retried,
    /// It was handed back: a shutdown, a rejection.
    HandedBack,
    /// Its lease passed: the worker was lost.
    Lost,
}

impl AttemptOutcome {
    /// The word for it, in stores and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retried => "retried",
            Self::HandedBack => "handed_back",
            Self::Lost => "lost",
        }
    }
}
