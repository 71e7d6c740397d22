//! What the API says of tasks.

use std::sync::Arc;

use celeriac::backend::LogEntry;
use celeriac::catalog::{Attempt, AttemptOutcome, Listed, TaskRecord};
use celeriac::protocol::{Exception, Headers, Message, ResultMeta, ResultTuple};
use celeriac::state::Phase;
use celeriac::{State, TaskId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::floor::Floor;
use crate::json::Raw;
use crate::problem::Problem;
use crate::server::Server;
use crate::why::{Facts, Reason, why};

/// All that is known of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskView {
    /// Its id.
    pub(crate) id: String,
    /// Its name; empty when its message could not be read.
    pub(crate) task: String,
    /// The name to show instead, when the caller gave one.
    pub(crate) shadow: Option<String>,
    /// PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or a state of the application's own.
    #[schema(example = "PENDING")]
    pub(crate) state: String,
    /// Where its message stands.
    pub(crate) phase: PhaseName,
    /// The positional arguments as Python would print them, cut at 1024 characters.
    #[schema(example = "(2, 'a')")]
    pub(crate) args: Option<String>,
    /// The named arguments as Python would print them, cut at 1024 characters.
    #[schema(example = "{'y': True}")]
    pub(crate) kwargs: Option<String>,
    /// The queue it waits on or came from.
    pub(crate) queue: String,
    /// 0 is consumed first, 9 last.
    pub(crate) priority: Option<u8>,
    /// Who holds it, or ended it.
    pub(crate) worker: Option<String>,
    /// Its tags.
    pub(crate) tags: Vec<String>,
    /// Its runs, oldest first, the present or last one included; no more than the newest 20 before that.
    pub(crate) attempts: Vec<AttemptView>,
    /// When what happened.
    pub(crate) times: Times,
    /// Retries made so far.
    pub(crate) retries: u32,
    /// How often its present message was delivered; `null` once it is done with.
    pub(crate) deliveries: Option<u32>,
    /// The newest progress it told.
    pub(crate) progress: Option<ProgressView>,
    /// Its value, for one that succeeded. `NaN` and the infinities, which Python may write, are `null`.
    #[schema(value_type = Raw)]
    pub(crate) result: Option<Raw>,
    /// Its error, for one that failed, was revoked or is to be tried again.
    pub(crate) error: Option<ErrorView>,
    /// Where the error came from, for people.
    pub(crate) traceback: Option<String>,
    /// The task that sent it.
    pub(crate) parent_id: Option<String>,
    /// The first task of the workflow it belongs to.
    pub(crate) root_id: Option<String>,
    /// The tasks it sent, once it has finished.
    pub(crate) children: Vec<String>,
    /// The group it belongs to.
    pub(crate) group: Option<String>,
    /// Why it does not run; `null` when it does, or is finished.
    pub(crate) waits: Option<Reason>,
}

/// A task in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskItem {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) task: String,
    /// As in the view of one task.
    #[schema(example = "SUCCESS")]
    pub(crate) state: String,
    /// Where its message stands.
    pub(crate) phase: PhaseName,
    /// The queue it waits on or came from.
    pub(crate) queue: String,
    /// Who holds it, or ended it.
    pub(crate) worker: Option<String>,
    /// Its tags.
    pub(crate) tags: Vec<String>,
    /// How often its present message was delivered; `null` once it is done with.
    pub(crate) deliveries: Option<u32>,
    /// When what happened.
    pub(crate) times: Times,
    /// Why it does not run, without the place in its queue; `null` when it does, or is finished.
    pub(crate) waits: Option<Reason>,
}

/// When what happened to a task.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Times {
    /// It was accepted first.
    #[schema(format = DateTime)]
    pub(crate) accepted: String,
    /// Its present message was published.
    #[schema(format = DateTime)]
    pub(crate) published: String,
    /// It runs not before this.
    #[schema(format = DateTime)]
    pub(crate) eta: Option<String>,
    /// It is revoked when it has not begun by this time.
    #[schema(format = DateTime)]
    pub(crate) expires: Option<String>,
    /// Its present or last run was begun.
    #[schema(format = DateTime)]
    pub(crate) started: Option<String>,
    /// It finished.
    #[schema(format = DateTime)]
    pub(crate) finished: Option<String>,
}

/// Where the message of a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PhaseName {
    /// It waits for its time.
    Delayed,
    /// It waits for a worker.
    Queued,
    /// A worker holds it.
    Reserved,
    /// It is done with.
    Settled,
    /// It was put aside.
    Dead,
}

impl PhaseName {
    pub(crate) const ALL: [(&'static str, Phase); 5] = [
        ("delayed", Phase::Delayed),
        ("queued", Phase::Queued),
        ("reserved", Phase::Reserved),
        ("settled", Phase::Settled),
        ("dead", Phase::Dead),
    ];
}

impl From<Phase> for PhaseName {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Delayed => Self::Delayed,
            Phase::Queued => Self::Queued,
            Phase::Reserved => Self::Reserved,
            Phase::Settled => Self::Settled,
            Phase::Dead => Self::Dead,
        }
    }
}

/// One run of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AttemptView {
    /// The worker.
    pub(crate) worker: Option<String>,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub(crate) started: String,
    /// When it was over; `null` for one that goes on.
    #[schema(format = DateTime)]
    pub(crate) ended: Option<String>,
    /// How it ended.
    pub(crate) outcome: OutcomeName,
    /// Its error, if it had one.
    pub(crate) error: Option<ErrorView>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutcomeName {
    /// It goes on.
    Running,
    /// With a value.
    Succeeded,
    /// With an error, for good.
    Failed,
    /// With an error, and the task was sent again.
    Retried,
    /// It was stopped.
    Revoked,
    /// The message was handed back: a shutdown, a rejection.
    HandedBack,
    /// The worker was lost.
    Lost,
    /// Without a word: the task asked that its end be ignored.
    Ended,
}

/// An error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorView {
    /// Its class.
    #[serde(rename = "type")]
    #[schema(example = "ValueError")]
    pub(crate) kind: String,
    /// What it says.
    pub(crate) message: String,
}

impl From<&Exception> for ErrorView {
    fn from(exception: &Exception) -> Self {
        let message = exception.message().filter(|_| exception.exc_message.len() == 1).unwrap_or_else(|| {
            let args: Vec<&str> = exception.exc_message.iter().map(celeriac::Json::as_str).collect();
            args.join(", ")
        });
        Self { kind: exception.exc_type.clone(), message }
    }
}

/// How far a task says it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProgressView {
    /// What it said.
    pub(crate) data: Raw,
    /// When.
    #[schema(format = DateTime)]
    pub(crate) at: String,
}

impl From<LogEntry> for ProgressView {
    fn from(entry: LogEntry) -> Self {
        Self { data: Raw::new(&entry.data), at: entry.at.to_string() }
    }
}

/// The view of a task; `None` for an unknown id.
pub(crate) async fn load(server: &Server, task_id: &TaskId) -> Result<Option<TaskView>, Problem> {
    let store = server.app().store();
    let Some(record) = store.catalog.task(task_id).await? else { return Ok(None) };
    let meta = store.backend.fetch(std::slice::from_ref(task_id)).await?.pop().flatten();
    let floor = server.floor().await?;
    Ok(Some(view(server, record, meta, &floor)))
}

fn view(server: &Server, record: TaskRecord, meta: Option<ResultMeta>, floor: &Arc<Floor>) -> TaskView {
    let TaskRecord { listed, message, attempts, ahead, progress } = record;
    let state = listed.state();
    let message = message.and_then(|raw| Message::decode(&raw).ok());
    let priority = message.as_ref().map(|message| message.properties.priority);
    let headers = message.map_or_else(Headers::default, |message| message.headers);
    // What is stored may be the end of a life before this one, or a moment older than the record.
    let meta = meta.filter(|meta| meta.state == listed.place.state);
    let exception = meta.as_ref().and_then(ResultMeta::exception);
    let error = exception.as_ref().map(ErrorView::from);
    let said = exception.as_ref().map(ToString::to_string);
    let waits = waits(server, &listed, ahead, said.as_deref(), floor);
    let mut runs: Vec<AttemptView> = attempts.iter().map(attempt).collect();
    runs.extend(last_attempt(&listed, &state, &attempts, error.as_ref()));
    let nonempty = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut times = times(&listed);
    times.expires = headers.expires.map(|expires| expires.to_string());
    times.eta = times.eta.or_else(|| headers.eta.map(|eta| eta.to_string()));
    let (result, traceback, children, group, parent) = match meta {
        Some(meta) => (
            (meta.state == State::Success).then(|| Raw::new(&meta.result)),
            meta.traceback,
            children(meta.children.as_deref().unwrap_or_default()),
            meta.group_id.map(|id| id.to_string()),
            meta.parent_id.map(|id| id.to_string()),
        ),
        None => Default::default(),
    };
    TaskView {
        id: listed.task_id.to_string(),
        task: listed.place.task.to_string(),
        shadow: headers.shadow,
        state: state.to_string(),
        phase: listed.place.phase.into(),
        args: nonempty(headers.argsrepr),
        kwargs: nonempty(headers.kwargsrepr),
        queue: listed.place.queue.to_string(),
        priority,
        worker: worker(&listed),
        tags: listed.tags.iter().map(ToString::to_string).collect(),
        attempts: runs,
        times,
        retries: headers.retries,
        deliveries: deliveries(&listed),
        progress: progress.map(ProgressView::from),
        result,
        error,
        traceback,
        parent_id: headers.parent_id.or(parent),
        root_id: headers.root_id,
        children,
        group: headers.group.or(group),
        waits,
    }
}

/// A task as a list shows it.
pub(crate) fn item(server: &Server, listed: &Listed, floor: &Floor) -> TaskItem {
    TaskItem {
        id: listed.task_id.to_string(),
        task: listed.place.task.to_string(),
        state: listed.state().to_string(),
        phase: listed.place.phase.into(),
        queue: listed.place.queue.to_string(),
        worker: worker(listed),
        tags: listed.tags.iter().map(ToString::to_string).collect(),
        deliveries: deliveries(listed),
        times: times(listed),
        waits: waits(server, listed, None, None, floor),
    }
}

fn waits(
    server: &Server,
    listed: &Listed,
    ahead: Option<u64>,
    error: Option<&str>,
    floor: &Floor,
) -> Option<Reason> {
    why(&Facts {
        place: &listed.place,
        started: listed.started,
        ahead,
        error,
        workers: &floor.workers,
        queue: floor.queue(&listed.place.queue),
        lease: server.app().config().visibility_timeout,
    })
}

fn worker(listed: &Listed) -> Option<String> {
    listed.place.worker.as_ref().or(listed.worker.as_ref()).map(ToString::to_string)
}

/// A store may forget the count with the message.
fn deliveries(listed: &Listed) -> Option<u32> {
    (listed.place.phase != Phase::Settled).then_some(listed.place.deliveries)
}

fn times(listed: &Listed) -> Times {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    Times {
        accepted: listed.accepted.to_string(),
        published: listed.place.published.to_string(),
        eta: text(listed.place.due),
        expires: None,
        started: text(listed.started),
        finished: text(listed.finished),
    }
}

fn attempt(attempt: &Attempt) -> AttemptView {
    AttemptView {
        worker: Some(attempt.worker.to_string()),
        started: attempt.started.to_string(),
        ended: Some(attempt.ended.to_string()),
        outcome: match attempt.outcome {
            AttemptOutcome::Retried => OutcomeName::Retried,
            AttemptOutcome::HandedBack => OutcomeName::HandedBack,
            AttemptOutcome::Lost => OutcomeName::Lost,
        },
        error: attempt.error.as_ref().map(|error| ErrorView::from(&Exception::decode_lossy(error))),
    }
}

/// The run that goes on, or that ended the task. One that ended otherwise is among `before`.
fn last_attempt(
    listed: &Listed,
    state: &State,
    before: &[Attempt],
    error: Option<&ErrorView>,
) -> Option<AttemptView> {
    let started = listed.started?;
    let outcome = match (listed.place.phase, state) {
        (Phase::Reserved, _) => OutcomeName::Running,
        (Phase::Settled | Phase::Dead, State::Success) => OutcomeName::Succeeded,
        (Phase::Settled | Phase::Dead, State::Failure) => OutcomeName::Failed,
        (Phase::Settled | Phase::Dead, State::Revoked) => OutcomeName::Revoked,
        (Phase::Settled | Phase::Dead, _) => OutcomeName::Ended,
        (Phase::Queued | Phase::Delayed, _) => return None,
    };
    if before.last().is_some_and(|last| last.started == started) {
        return None;
    }
    let over = outcome != OutcomeName::Running;
    Some(AttemptView {
        worker: worker(listed),
        started: started.to_string(),
        ended: listed.finished.filter(|_| over).map(|at| at.to_string()),
        outcome,
        error: error.filter(|_| over).cloned(),
    })
}

/// The tasks in the trees of results that a task kept of what it sent.
fn children(tuples: &[ResultTuple]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<&ResultTuple> = tuples.iter().rev().collect();
    while let Some(next) = open.pop() {
        if found.len() == CHILDREN_MAX {
            break;
        }
        match &next.children {
            None => found.push(next.id.clone()),
            Some(children) => open.extend(children.iter().rev()),
        }
    }
    found
}

/// So many children a view names.
const CHILDREN_MAX: usize = 1_000;
