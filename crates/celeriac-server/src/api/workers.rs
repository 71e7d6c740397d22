//! Workers: which live, and telling them things.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use celeriac::clock;
use celeriac::control::{Command, Report, WorkerCard};
use celeriac::protocol::JsonMap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::input::{Document, Names, Problems, shown};
use crate::json::Raw;
use crate::problem::{Invalid, Problem};
use crate::server::Server;

/// What workers can be told, in the words of Celery's remote control.
pub(crate) const COMMANDS: [&str; 17] = [
    "active",
    "active_queues",
    "add_consumer",
    "cancel_consumer",
    "conf",
    "ping",
    "pool_grow",
    "pool_shrink",
    "query_task",
    "rate_limit",
    "registered",
    "reserved",
    "revoked",
    "scheduled",
    "shutdown",
    "stats",
    "time_limit",
];

/// How long workers may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The workers that live.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkerList {
    /// By name.
    items: Vec<WorkerView>,
}

/// A worker that lives.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkerView {
    /// Its name, with what makes this start of it unique.
    name: String,
    /// Its node name, which the next start may have, too.
    node: String,
    /// The machine.
    hostname: String,
    /// The process.
    pid: u32,
    /// What it runs on.
    version: String,
    /// The queues it consumes from.
    queues: Vec<String>,
    /// The tasks it knows.
    tasks: Vec<String>,
    /// How many tasks it runs at once.
    concurrency: u32,
    /// How many it runs now.
    running: u32,
    /// It is shutting down, and takes nothing more.
    stopping: bool,
    /// When it started.
    #[schema(format = DateTime)]
    started: String,
    /// When it last said that it lives.
    #[schema(format = DateTime)]
    heartbeat: String,
    /// What it did so far.
    totals: Totals,
}

/// What a worker did so far.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Totals {
    /// Runs that ended in SUCCESS.
    succeeded: u64,
    /// Runs that ended in FAILURE.
    failed: u64,
    /// Runs to be tried again.
    retried: u64,
    /// Tasks that ended in REVOKED there.
    revoked: u64,
    /// Messages handed back.
    handed_back: u64,
    /// Runs whose lease was lost.
    lost: u64,
}

/// What workers answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Answers {
    /// One for each that did.
    replies: Vec<Answer>,
    /// Those that did not, in time.
    missing: Vec<String>,
}

/// What a worker answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Answer {
    /// Who.
    worker: String,
    /// What: `{"ok": …}`, `{"error": …}`, or the command's own form.
    content: Raw,
}

impl From<WorkerCard> for WorkerView {
    fn from(card: WorkerCard) -> Self {
        let Report { succeeded, failed, retried, revoked, handed_back, lost } = card.totals;
        Self {
            name: card.worker.to_string(),
            node: card.node.into(),
            hostname: card.hostname.into(),
            pid: card.pid,
            version: card.version.into(),
            queues: card.queues.iter().map(ToString::to_string).collect(),
            tasks: card.tasks.iter().map(ToString::to_string).collect(),
            concurrency: card.concurrency,
            running: card.running,
            stopping: card.stopping,
            started: card.started.to_string(),
            heartbeat: card.beat.to_string(),
            totals: Totals { succeeded, failed, retried, revoked, handed_back, lost },
        }
    }
}

/// List the workers that live
#[utoipa::path(
    get, path = "/workers", tag = "workers", operation_id = "list_workers",
    responses((status = 200, description = "The workers, by name", body = WorkerList)),
)]
pub(crate) async fn list(State(server): State<Server>) -> Result<Json<WorkerList>, Problem> {
    let workers = server.app().store().control.workers().await?;
    Ok(Json(WorkerList { items: workers.into_iter().map(WorkerView::from).collect() }))
}

/// Tell a worker something
///
/// The body holds the arguments of the command. All workers of a node name are told when the node is named.
#[utoipa::path(
    post, path = "/workers/{name}/{command}", tag = "workers", operation_id = "command_worker",
    params(
        ("name" = String, Path, description = "The worker's name or node name", min_length = 1),
        ("command" = String, Path, description = "What to do, in the words of Celery's remote control"),
    ),
    request_body(content = Option<Object>, description = "The arguments"),
    responses(
        (status = 200, description = "What was answered", body = Answers),
        (status = 404, description = "No live worker of this name"),
        (status = 504, description = "None of them answered within two seconds"),
    ),
)]
pub(crate) async fn command(
    State(server): State<Server>,
    Names(name, command): Names,
    body: Document,
) -> Result<Json<Answers>, Problem> {
    if !COMMANDS.contains(&&*command) {
        let close = crate::names::close(&command, COMMANDS);
        let hint = if close.is_empty() { COMMANDS.join(", ") } else { close.join(", ") };
        let problem = format!("there is no command {}; there is {hint}", shown(&command));
        return Err(Problem::invalid(vec![Invalid { at: "command".to_owned(), problem }]));
    }
    let mut problems = Problems::default();
    let arguments: JsonMap = match body.0 {
        Some(json) if !json.is_null() => json.entries().unwrap_or_else(|_| {
            problems.add("", "the arguments of a command are an object");
            JsonMap::new()
        }),
        _ => JsonMap::new(),
    };
    problems.check()?;
    let control = &server.app().store().control;
    let named = |card: &WorkerCard| card.worker.as_str() == name || *card.node == *name;
    let mut missing: Vec<_> =
        control.workers().await?.into_iter().filter(named).map(|card| card.worker).collect();
    if missing.is_empty() {
        let detail = format!("no live worker is named {}", shown(&name));
        return Err(Problem::not_found("unknown-worker", detail));
    }
    let ticket = uuid::Uuid::new_v4().to_string().into_boxed_str();
    let command = Command {
        ticket: ticket.clone(),
        method: command.into(),
        arguments: arguments.to_json(),
        destination: Some(missing.iter().map(|worker| worker.as_str().into()).collect()),
        expires: clock::after(server.app().clock().now(), ANSWER_TIME),
    };
    control.send(&command).await?;
    let replies = control.replies(&ticket, missing.len(), ANSWER_TIME).await?;
    if replies.is_empty() {
        let title = "no answer";
        let detail = format!("{} did not answer within {} s", shown(&name), ANSWER_TIME.as_secs());
        return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "no-answer", title, detail));
    }
    missing.retain(|worker| replies.iter().all(|reply| reply.worker != *worker));
    let replies = replies
        .iter()
        .map(|reply| Answer { worker: reply.worker.to_string(), content: Raw::new(&reply.content) })
        .collect();
    Ok(Json(Answers { replies, missing: missing.iter().map(ToString::to_string).collect() }))
}
