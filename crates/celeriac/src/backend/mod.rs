//! The backend half of a store: keeps what became of tasks.
//!
//! States and results, task logs, durable steps, chords and groups. It knows neither how tasks run nor what follows
//! from a result.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta};
use crate::state::State;
use crate::store::Result;

/// Keeps what became of tasks.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// Writes each of `records`, wholly or not at all, and says what became of each, in order.
    async fn record(&self, records: Vec<Record>) -> Result<Vec<Recorded>>;

    /// What is stored under each id; `None` where nothing is, which Celery calls PENDING.
    async fn fetch(&self, ids: &[TaskId]) -> Result<Vec<Option<ResultMeta>>>;

    /// Waits until `watch` has something new, at most for `wait`; says whether it has. Never misses what is there
    /// already.
    async fn wait(&self, watch: &Watch, wait: Duration) -> Result<bool>;

    /// The result of a task once it is final, or what is stored when `wait` is over. A store that can tell it with the
    /// news that it is there spares who waits a look.
    async fn await_result(&self, task_id: &TaskId, wait: Duration) -> Result<Option<ResultMeta>> {
        if !wait.is_zero() {
            self.wait(&Watch::Result(task_id.clone()), wait).await?;
        }
        Ok(self.fetch(std::slice::from_ref(task_id)).await?.pop().flatten())
    }

    /// Forgets the results, logs and steps of tasks that are finished; others stay.
    async fn forget(&self, ids: &[TaskId]) -> Result<()>;

    /// Forgets what finished before `done_before`, at most about `limit` tasks a call, and chords and groups as old;
    /// returns how many tasks.
    async fn sweep(&self, done_before: Timestamp, limit: usize) -> Result<u64>;

    /// The log of a task: at most `limit` records after position `after`; `None` for an id this store does not know.
    async fn log(&self, task_id: &TaskId, after: u64, limit: usize) -> Result<Option<LogPage>>;

    /// The log records of all tasks in the order of their writing: at most `limit` after number `after`, which is a
    /// number of the feed and not a position in one task's log.
    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedRecord>>;

    /// The number of the newest record of the feed; 0 when there is none.
    async fn feed_end(&self) -> Result<u64>;

    /// The value of a finished durable step.
    async fn step(&self, task_id: &TaskId, name: &str) -> Result<Option<Json>>;

    /// A complete chord that nobody has fired, with its parts in order of [`ChordPart::index`].
    async fn chord(&self, group_id: &GroupId) -> Result<Option<ReadyChord>>;

    /// Chords that are complete and have not been fired, oldest first, at most `limit`: what a crash left behind.
    async fn ready_chords(&self, limit: usize) -> Result<Vec<GroupId>>;

    /// Keeps the shape of a group under its id, as Celery's `GroupResult.save`: the tuple form of the result.
    async fn save_group(&self, group_id: &GroupId, tuple: &Json) -> Result<()>;

    /// The shape of a saved group.
    async fn group(&self, group_id: &GroupId) -> Result<Option<Json>>;

    /// Forgets the shape of a saved group, as Celery's `GroupResult.delete`; of its members nothing. Of one that is not kept
    /// there is nothing to forget.
    async fn delete_group(&self, group_id: &GroupId) -> Result<()>;

    /// Checks the whole store, its broker's half included where that is the same: may take long, and changes nothing.
    /// A store that has nothing to check says nothing.
    async fn check(&self) -> Result<Vec<Check>> {
        Ok(Vec::new())
    }
}

/// What is written to a backend in one atomic step.
///
/// The order of effects: the condition `fire` first, and when it fails nothing is written; then results, chords, parts
/// and steps, and at last log records.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Condition and effect: this chord is complete and nobody has fired it; it is gone afterwards.
    pub fire: Option<GroupId>,
    /// States and results to store, each unless [`State::may_become`] forbids it.
    pub results: Vec<ResultMeta>,
    /// Chords to open, before any of their header tasks can end. Opening one that is open already changes nothing.
    pub chords: Vec<NewChord>,
    /// Ends of header tasks to count. Counting one twice changes nothing, nor does one of a chord that is not open.
    pub parts: Vec<ChordPart>,
    /// Durable steps that finished.
    pub steps: Vec<StepRecord>,
    /// Records to append to task logs, in this order; one for an id this store does not know is dropped.
    pub log: Vec<LogRecord>,
}

/// What became of one [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// All of it is written.
    Written {
        /// Chords that a part of it completed.
        ready: Vec<GroupId>,
    },
    /// Nothing is written: the chord to fire is not complete, or was fired already.
    NotReady,
}

/// What one check of a store found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub what: &'static str,
    /// Whether all is well.
    pub well: bool,
    /// What was found, and what to do about it.
    pub text: String,
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watch {
    /// The task is finished.
    Result(TaskId),
    /// The task's log reaches past this position.
    Log {
        /// The task.
        task_id: TaskId,
        /// The last position known.
        after: u64,
    },
    /// The feed reaches past this number.
    Feed {
        /// The last number known.
        after: u64,
    },
}

/// A record to append to the log of a task. The store gives it the next position: 1, 2, 3 … without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// The task.
    pub task_id: TaskId,
    /// `state`, `progress`, `token`, `log`, `step`, `end`, or the application's own name.
    pub event: Box<str>,
    /// The content.
    pub data: Json,
}

/// A record of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The position in the log of its task, from 1.
    pub position: u64,
    /// As in [`LogRecord::event`].
    pub event: Box<str>,
    /// The content.
    pub data: Json,
    /// When it was written.
    pub at: Timestamp,
}

/// A piece of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// The records, in order.
    pub entries: Vec<LogEntry>,
    /// The first position still kept; positions before it were trimmed. 1 for a log never trimmed.
    pub first: u64,
    /// The last position there is; 0 for an empty log.
    pub last: u64,
    /// The task is finished: nothing will follow `last`.
    pub ended: bool,
}

/// A log record among those of all tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRecord {
    /// Its number in the feed; numbers grow, with gaps.
    pub number: u64,
    /// The task.
    pub task_id: TaskId,
    /// The task's name.
    pub task: Box<str>,
    /// The record.
    pub entry: LogEntry,
}

/// The value of a durable step that finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// The task.
    pub task_id: TaskId,
    /// The step's name, made unique within the task by the caller. Recording a name twice keeps the first value.
    pub name: Box<str>,
    /// What it returned.
    pub value: Json,
}

/// A chord to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChord {
    /// The group of the header.
    pub group_id: GroupId,
    /// How many ends complete it.
    pub size: u32,
    /// The signature of the body, as on the wire.
    pub body: Json,
}

/// The end of one task of a chord's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChordPart {
    /// The chord.
    pub group_id: GroupId,
    /// The task that ended.
    pub task_id: TaskId,
    /// Its place among the results; parts without one come last.
    pub index: Option<u32>,
    /// How it ended.
    pub state: State,
    /// Its value, or its exception as in a result.
    pub result: Json,
}

/// A chord whose header has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyChord {
    /// The chord.
    pub group_id: GroupId,
    /// The signature of its body, as on the wire.
    pub body: Json,
    /// The ends of the header, in order.
    pub parts: Vec<ChordPart>,
}
