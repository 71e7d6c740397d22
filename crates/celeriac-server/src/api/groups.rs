//! What Celery's clients keep of groups, and take back of results: `GroupResult.save`, `restore`
//! and `delete`, `forget`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use celeriac::protocol::ResultTuple;
use celeriac::{GroupId, TaskId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::input::{Document, Name, Problems};
use crate::json::Raw;
use crate::problem::Problem;
use crate::server::Server;

/// A group to keep under its id.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct GroupRequest {
    /// The group in the form of Celery's `GroupResult.as_tuple`: `[[id, parent], [members]]`, where a member that is a task
    /// is `[[id, parent], null]`.
    #[schema(value_type = Vec<Object>, min_items = 2, max_items = 2)]
    result: (),
}

/// A group that was kept.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupView {
    /// The group, as it was handed over; null where none is kept under that id.
    #[schema(value_type = Raw)]
    result: Option<Raw>,
}

/// Keep a group
///
/// As Celery's `GroupResult.save`, so that `restore` finds it. It is kept as long as results are.
#[utoipa::path(
    put, path = "/groups/{id}", tag = "celery", operation_id = "save_group",
    params(("id" = String, Path, description = "The group's id", min_length = 1)),
    request_body = GroupRequest,
    responses((status = 204, description = "It is kept")),
)]
pub(crate) async fn save(
    State(server): State<Server>,
    Name(id): Name,
    body: Document,
) -> Result<StatusCode, Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields(&mut problems)?;
    let given = fields.value("result");
    fields.finish(&["result"], &mut problems);
    let tuple = match given {
        None => Err("missing; a group as Celery's `as_tuple` has it belongs here".to_owned()),
        Some(json) => match ResultTuple::decode(&json) {
            Ok(tuple) if tuple.children.is_some() => Ok(json),
            Ok(_) => Err("a task where a group belongs".to_owned()),
            Err(why) => Err(why.to_string()),
        },
    };
    match tuple {
        Ok(tuple) => {
            problems.check()?;
            server.app().store().backend.save_group(&GroupId::from(id), &tuple).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Err(wrong) => {
            if problems.none_so_far() {
                problems.add("/result", wrong);
            }
            problems.check().map(|()| StatusCode::NO_CONTENT)
        }
    }
}

/// Get a group that was kept
#[utoipa::path(
    get, path = "/groups/{id}", tag = "celery", operation_id = "get_group",
    params(("id" = String, Path, description = "The group's id", min_length = 1)),
    responses((status = 200, description = "What there is", body = GroupView)),
)]
pub(crate) async fn get(State(server): State<Server>, Name(id): Name) -> Result<Json<GroupView>, Problem> {
    let found = server.app().store().backend.group(&GroupId::from(id)).await?;
    Ok(Json(GroupView { result: found.as_ref().map(Raw::new) }))
}

/// Forget a group that was kept
///
/// As Celery's `GroupResult.delete`; of its members nothing.
#[utoipa::path(
    delete, path = "/groups/{id}", tag = "celery", operation_id = "delete_group",
    params(("id" = String, Path, description = "The group's id", min_length = 1)),
    responses((status = 204, description = "None is kept under that id")),
)]
pub(crate) async fn delete(State(server): State<Server>, Name(id): Name) -> Result<StatusCode, Problem> {
    server.app().store().backend.delete_group(&GroupId::from(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forget a task
///
/// Its result, log and steps, as Celery's `forget`; of one that is not finished, nothing.
#[utoipa::path(
    delete, path = "/tasks/{id}/meta", tag = "celery", operation_id = "forget_task",
    params(("id" = String, Path, description = "The task's id", min_length = 1)),
    responses((status = 204, description = "Nothing is kept of it, or it is not finished")),
)]
pub(crate) async fn forget(State(server): State<Server>, Name(id): Name) -> Result<StatusCode, Problem> {
    server.app().store().backend.forget(&[TaskId::from(id)]).await?;
    Ok(StatusCode::NO_CONTENT)
}
