//! Running tasks again that are over: one, or many at once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use celeriac::again::Again;
use celeriac::state::Phase;
use celeriac::{State as TaskState, TaskId};
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::bulk::Meant;
use super::filter::Filter;
use crate::input::{Document, Name, Problems};
use crate::problem::Problem;
use crate::server::Server;
use crate::view::{self, TaskView};

/// Which tasks to run again. One of `ids`, `filter` and `all`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct RetryManyRequest {
    /// These.
    #[schema(nullable = false)]
    ids: Option<Vec<String>>,
    /// Those that match and are over. Unless it names states, only those that failed or were revoked.
    #[schema(nullable = false)]
    filter: Option<Filter>,
    /// All that failed or were revoked.
    #[schema(schema_with = super::bulk::only_true)]
    all: (),
}

/// What became of tasks that were to run again.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct RetryManyView {
    /// So many wait again under their ids.
    retried: u64,
    /// So many wait or run, and were left alone.
    unfinished: u64,
    /// So many cannot be sent again: their message is not kept.
    without_message: u64,
    /// So many ids are unknown.
    unknown: u64,
    /// More match than were taken at once: ask again.
    more: bool,
}

/// Run a task again
///
/// One that is finished or dead waits again under its id, with no retries made, and neither an eta nor a time to expire.
/// Durable steps that it finished are not run again.
#[utoipa::path(
    post, path = "/tasks/{id}/retry", tag = "tasks", operation_id = "retry_task",
    params(("id" = String, Path, description = "The task's id", min_length = 1)),
    responses(
        (status = 202, description = "It waits again", body = TaskView),
        (status = 404),
        (status = 409, description = "It waits or runs, or its message is not kept"),
    ),
)]
pub(crate) async fn one(
    State(server): State<Server>,
    Name(id): Name,
) -> Result<(StatusCode, Json<TaskView>), Problem> {
    let task_id = TaskId::from(id);
    let conflict = |slug: &str, detail: String| {
        Err(Problem::new(StatusCode::CONFLICT, slug, "it cannot be run again now", detail))
    };
    match server.app().run_again(&task_id).await? {
        Again::Sent | Again::Revived => {}
        Again::Waiting => return conflict("unfinished", "it waits to be run already".to_owned()),
        Again::Running { worker } => {
            let worker = worker.map_or_else(|| "a worker".to_owned(), |worker| worker.to_string());
            return conflict("unfinished", format!("{worker} runs it; revoke it first, or wait for its end"));
        }
        Again::NoMessage { why } => {
            return conflict("no-message", format!("{why}; send the task anew"));
        }
        Again::Unknown => return Err(super::tasks::unknown(&task_id)),
    }
    let view = view::load(&server, &task_id).await?;
    view.map(|view| (StatusCode::ACCEPTED, Json(view))).ok_or_else(|| super::tasks::unknown(&task_id))
}

/// Run many tasks again
#[utoipa::path(
    post, path = "/tasks/retry", tag = "tasks", operation_id = "retry_tasks",
    request_body = RetryManyRequest,
    responses((status = 200, description = "What happened", body = RetryManyView)),
)]
pub(crate) async fn many(
    State(server): State<Server>,
    body: Document,
) -> Result<Json<RetryManyView>, Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields(&mut problems)?;
    let meant = Meant::read(&mut fields, &server, &mut problems);
    fields.finish(&["ids", "filter", "all"], &mut problems);
    problems.check()?;
    let states = [TaskState::Failure, TaskState::Revoked];
    let (ids, more) = meant.find(&server, &[Phase::Settled, Phase::Dead], &states).await?;
    let mut view = RetryManyView { more, ..RetryManyView::default() };
    // Side by side, so that the store commits them together.
    let app = server.app();
    let mut all = futures_util::stream::iter(ids)
        .map(|task_id| async move { app.run_again(&task_id).await })
        .buffer_unordered(SIDE_BY_SIDE);
    while let Some(again) = all.try_next().await? {
        match again {
            Again::Sent | Again::Revived => view.retried += 1,
            Again::Waiting | Again::Running { .. } => view.unfinished += 1,
            Again::NoMessage { .. } => view.without_message += 1,
            Again::Unknown => view.unknown += 1,
        }
    }
    Ok(Json(view))
}

const SIDE_BY_SIDE: usize = 64;
