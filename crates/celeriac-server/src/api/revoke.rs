//! Stopping tasks: one, or many at once.

use axum::Json;
use axum::extract::State;
use celeriac::{ProcessSignal, Revoked, TaskId};
use serde::Serialize;
use utoipa::ToSchema;

use super::bulk::{self, Meant};
use super::filter::Filter;
use crate::input::{Document, Fields, Name, Problems};
use crate::problem::Problem;
use crate::server::Server;

/// How to stop a task.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct RevokeRequest {
    /// Whether to stop it even when it runs. By default what runs goes on, and only another attempt is refused.
    terminate: Option<bool>,
    /// With `terminate`, the signal for what is a process.
    #[schema(schema_with = signal_name)]
    signal: Option<String>,
    /// Reserved: how long a task may take to stop is a setting of its worker, `worker_revoke_grace`.
    #[schema(schema_with = null)]
    grace: (),
}

/// Which tasks to stop, and how. One of `ids`, `filter` and `all`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct RevokeManyRequest {
    /// These.
    #[schema(nullable = false)]
    ids: Option<Vec<String>>,
    /// Those that match and are not finished.
    #[schema(nullable = false)]
    filter: Option<Filter>,
    /// All that are not finished.
    #[schema(schema_with = super::bulk::only_true)]
    all: (),
    /// Whether to stop those that run, too.
    terminate: Option<bool>,
    /// With `terminate`, the signal for what is a process.
    #[schema(schema_with = signal_name)]
    signal: Option<String>,
}

/// What became of a task that was to be stopped.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokeView {
    /// Its id.
    id: String,
    /// What it was found doing.
    revoked: RevokedName,
    /// The worker that runs it.
    worker: Option<String>,
    /// Whether what runs was told to stop.
    terminate: bool,
    /// What happened, for people.
    text: String,
}

/// What a task was found doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RevokedName {
    /// It waited for its time, and is revoked.
    Scheduled,
    /// It waited for a worker, and is revoked.
    Queued,
    /// A worker runs it.
    Running,
    /// A worker of Celery's has taken it. The workers that live were told, and refuse it unless it has begun.
    Elsewhere,
    /// It was finished already.
    Finished,
    /// It is not known here, but Celery may have sent it: workers were told, and refuse it when they meet it.
    Noted,
}

/// What became of tasks that were to be stopped.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct RevokeManyView {
    /// So many waited for their time, and are revoked.
    scheduled: u64,
    /// So many waited for a worker, and are revoked.
    queued: u64,
    /// So many run; with `terminate` they were told to stop.
    running: u64,
    /// So many were taken by workers of Celery's, which were told.
    elsewhere: u64,
    /// So many were finished already.
    finished: u64,
    /// So many are not known here, but Celery may have sent them: workers were told.
    noted: u64,
    /// So many ids are unknown.
    unknown: u64,
    /// More match than were taken at once: ask again.
    more: bool,
}

/// The schema of what must be left out or be `null`.
pub(crate) fn null() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::Null)).build()
}

/// The schema of the name of a signal.
fn signal_name() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    const NAMES: &str = "^SIG(HUP|INT|QUIT|ILL|TRAP|ABRT|FPE|KILL|SEGV|PIPE|ALRM|TERM|BUS|USR1|USR2|CHLD|CONT|STOP|TSTP|TTIN|TTOU|URG|XCPU|XFSZ|VTALRM|PROF|WINCH|IO)$";
    const MEANING: &str = "With `terminate`, the signal for a task that is a process, as Python's are: SIGTERM, unless \
                           another is named. A task written in Rust is told.";
    let types = SchemaType::from_iter([Type::String, Type::Null]);
    ObjectBuilder::new().schema_type(types).pattern(Some(NAMES)).description(Some(MEANING)).build()
}

/// Revoke a task
///
/// What waits ends in REVOKED at once. What runs goes on, unless `terminate` is set.
#[utoipa::path(
    post, path = "/tasks/{id}/revoke", tag = "tasks", operation_id = "revoke_task",
    params(("id" = String, Path, description = "The task's id", min_length = 1)),
    request_body = Option<RevokeRequest>,
    responses((status = 200, description = "What happened", body = RevokeView), (status = 404)),
)]
pub(crate) async fn one(
    State(server): State<Server>,
    Name(id): Name,
    body: Document,
) -> Result<Json<RevokeView>, Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields_if_any(&mut problems);
    let terminate = fields.boolean("terminate", &mut problems).unwrap_or(false);
    let signal = signal(&mut fields, &mut problems);
    refuse(&mut fields, "grace", "set worker_revoke_grace where the worker runs", &mut problems);
    fields.finish(&["terminate", "signal", "grace"], &mut problems);
    problems.check()?;
    let task_id = TaskId::from(id);
    let ids = std::slice::from_ref(&task_id);
    let revoked = stop(&server, ids, terminate, signal.filter(|_| terminate)).await?.pop();
    let (revoked, worker, text) = match revoked {
        None | Some(Revoked::Unknown) => return Err(super::tasks::unknown(&task_id)),
        Some(Revoked::Scheduled) => (RevokedName::Scheduled, None, "it waited for its time, and is revoked"),
        Some(Revoked::Queued) => (RevokedName::Queued, None, "it waited for a worker, and is revoked"),
        Some(Revoked::Finished) => (RevokedName::Finished, None, "it was finished already; nothing was done"),
        Some(Revoked::Elsewhere { worker, stopped: true, .. }) => (
            RevokedName::Elsewhere,
            worker,
            "a worker of Celery's runs it, and has answered that it stops it",
        ),
        Some(Revoked::Elsewhere { worker, workers: 0, .. }) => {
            (RevokedName::Elsewhere, worker, "a worker of Celery's has taken it, and no worker answers")
        }
        Some(Revoked::Elsewhere { worker, .. }) => (
            RevokedName::Elsewhere,
            worker,
            "a worker of Celery's has taken it; the workers that live were told, and refuse it unless it has begun",
        ),
        Some(Revoked::Noted { workers: 0 }) => (
            RevokedName::Noted,
            None,
            "it is not known here, and no worker answers; it is noted, and workers of ours refuse it when they meet it",
        ),
        Some(Revoked::Noted { .. }) => (
            RevokedName::Noted,
            None,
            "it is not known here; workers were told, and refuse it when they meet it",
        ),
        Some(Revoked::Running { worker, terminate: true }) => {
            (RevokedName::Running, Some(worker), "it runs, and its worker was told to stop it")
        }
        Some(Revoked::Running { worker, terminate: false }) => (
            RevokedName::Running,
            Some(worker),
            "it runs, and goes on; only another attempt of it is refused. To stop it, send terminate",
        ),
    };
    Ok(Json(RevokeView {
        id: task_id.to_string(),
        revoked,
        worker: worker.map(|worker| worker.to_string()),
        terminate: terminate && matches!(revoked, RevokedName::Running | RevokedName::Elsewhere),
        text: text.to_owned(),
    }))
}

/// Revoke many tasks
#[utoipa::path(
    post, path = "/tasks/revoke", tag = "tasks", operation_id = "revoke_tasks",
    request_body = RevokeManyRequest,
    responses((status = 200, description = "What happened", body = RevokeManyView)),
)]
pub(crate) async fn many(
    State(server): State<Server>,
    body: Document,
) -> Result<Json<RevokeManyView>, Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields(&mut problems)?;
    let meant = Meant::read(&mut fields, &server, &mut problems);
    let terminate = fields.boolean("terminate", &mut problems).unwrap_or(false);
    let signal = signal(&mut fields, &mut problems).filter(|_| terminate);
    fields.finish(&["ids", "filter", "all", "terminate", "signal"], &mut problems);
    problems.check()?;
    let (ids, more) = meant.find(&server, bulk::UNFINISHED, &[]).await?;
    let mut view = RevokeManyView { more, ..RevokeManyView::default() };
    for ids in ids.chunks(bulk::CHUNK) {
        for revoked in stop(&server, ids, terminate, signal).await? {
            match revoked {
                Revoked::Scheduled => view.scheduled += 1,
                Revoked::Queued => view.queued += 1,
                Revoked::Running { .. } => view.running += 1,
                Revoked::Elsewhere { .. } => view.elsewhere += 1,
                Revoked::Finished => view.finished += 1,
                Revoked::Noted { .. } => view.noted += 1,
                Revoked::Unknown => view.unknown += 1,
            }
        }
    }
    Ok(Json(view))
}

async fn stop(
    server: &Server,
    ids: &[TaskId],
    terminate: bool,
    signal: Option<ProcessSignal>,
) -> Result<Vec<Revoked>, Problem> {
    Ok(match signal {
        Some(signal) => server.app().terminate(ids, signal).await?,
        None => server.app().revoke(ids, terminate).await?,
    })
}

/// A signal by its name, in full.
fn signal(fields: &mut Fields, problems: &mut Problems) -> Option<ProcessSignal> {
    let name = fields.text("signal", SIGNAL_MAX, problems)?;
    let signal = name.parse::<ProcessSignal>().ok().filter(|signal| signal.to_string() == name);
    if signal.is_none() {
        problems.add(fields.place("signal"), "no signal has this name; expected one as SIGTERM");
    }
    signal
}

/// The longest name of a signal is SIGVTALRM.
const SIGNAL_MAX: usize = 9;

fn refuse(fields: &mut Fields, name: &str, remedy: &str, problems: &mut Problems) {
    if fields.value(name).is_some() {
        problems.add(fields.place(name), format!("not supported: {remedy}"));
    }
}
