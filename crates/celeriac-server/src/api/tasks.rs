//! Looking at tasks: one, or a page of many.

use axum::Json;
use axum::extract::State;
use celeriac::TaskId;
use celeriac::catalog::TaskQuery;
use serde::Serialize;
use utoipa::ToSchema;

use super::{cursor, filter};
use crate::input::{Name, Params, Problems, shown};
use crate::problem::Problem;
use crate::server::Server;
use crate::view::{self, PhaseName, TaskItem, TaskView};

/// A page of tasks, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskList {
    /// The tasks.
    items: Vec<TaskItem>,
    /// The `cursor` of the next page; `null` when this is the last. A page may hold few items and not be the last.
    next: Option<String>,
}

/// List tasks
///
/// Newest first. All parameters together restrict the list.
#[utoipa::path(
    get, path = "/tasks", tag = "tasks", operation_id = "list_tasks",
    params(
        ("state" = Option<Vec<String>>, Query, description = "Their state is one of these; repeat it, or separate them by commas"),
        ("phase" = Option<Vec<PhaseName>>, Query, description = "Their message stands in one of these phases"),
        ("task" = Option<String>, Query, description = "Their name", min_length = 1, max_length = 255),
        ("queue" = Option<String>, Query, description = "The queue they wait on or came from", min_length = 1, max_length = 255),
        ("worker" = Option<String>, Query, description = "The worker that holds or ended them: a node name, or one incarnation of it", min_length = 1, max_length = 255),
        ("tag" = Option<String>, Query, description = "One of their tags", min_length = 1, max_length = 255),
        ("q" = Option<String>, Query, description = "Text that their id begins with, or that their name contains", min_length = 1, max_length = 255),
        ("since" = Option<String>, Query, description = "They were accepted at this time or later", format = DateTime),
        ("until" = Option<String>, Query, description = "They were accepted before this time", format = DateTime),
        ("limit" = Option<u64>, Query, description = "How many at most", minimum = 1),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
    ),
    responses((status = 200, description = "A page of tasks", body = TaskList), (status = 422)),
)]
pub(crate) async fn list(
    State(server): State<Server>,
    mut params: Params,
) -> Result<Json<TaskList>, Problem> {
    let mut problems = Problems::default();
    let mut query = filter::of_params(&mut params, &mut problems);
    let (limit, before) = page(&server, &mut params, &mut problems);
    params.finish(&[&filter::NAMES[..], &["limit", "cursor"]].concat(), &mut problems);
    problems.check()?;
    query.before = before;
    let floor = server.floor().await?;
    let mut items = Vec::new();
    // A page of the store may be short without being the last: it looks at so many tasks and no more. A few of them
    // make a page here that is rarely empty.
    for _ in 0..STORE_PAGES_MAX {
        query.limit = limit - items.len();
        let page = server.app().store().catalog.tasks(&query).await?;
        items.extend(page.tasks.iter().map(|listed| view::item(&server, listed, &floor)));
        query.before = page.next;
        if items.len() >= limit || page.next.is_none() {
            return Ok(Json(TaskList { items, next: page.next.map(cursor::write) }));
        }
    }
    let next = query.before.map(cursor::write);
    Ok(Json(TaskList { items, next }))
}

/// So many pages of the store one page here looks through: 50,000 tasks.
const STORE_PAGES_MAX: usize = 50_000 / TaskQuery::EXAMINED_MAX;

/// The parameters `limit` and `cursor`.
pub(crate) fn page(server: &Server, params: &mut Params, problems: &mut Problems) -> (usize, Option<u64>) {
    let config = server.config();
    let limit = params.integer("limit", 1..=config.page_max as u64, problems);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(config.page_default);
    (limit, params.cursor(problems))
}

/// Look at a task
#[utoipa::path(
    get, path = "/tasks/{id}", tag = "tasks", operation_id = "get_task",
    params(("id" = String, Path, description = "The task's id", min_length = 1)),
    responses((status = 200, description = "All that is known of the task", body = TaskView), (status = 404)),
)]
pub(crate) async fn get(State(server): State<Server>, Name(id): Name) -> Result<Json<TaskView>, Problem> {
    let task_id = TaskId::from(id);
    view::load(&server, &task_id).await?.map(Json).ok_or_else(|| unknown(&task_id))
}

/// No store knows the id.
pub(crate) fn unknown(task_id: &TaskId) -> Problem {
    let id = shown(task_id.as_str());
    Problem::not_found("unknown-task", format!("no task {id}: never sent, or expired"))
}
