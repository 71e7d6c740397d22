//! Dead letters: messages put aside for a person to look at.

use axum::Json;
use axum::extract::State;
use celeriac::TaskId;
use celeriac::broker::DeadLetter;
use serde::Serialize;
use utoipa::ToSchema;

use super::{bulk, cursor, tasks};
use crate::input::{Document, Params, Problems};
use crate::problem::Problem;
use crate::server::Server;

/// A page of dead letters, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadList {
    /// The letters.
    items: Vec<DeadView>,
    /// The `cursor` of the next page; `null` when this is the last.
    next: Option<String>,
}

/// A message put aside.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadView {
    /// The task's id.
    id: String,
    /// The task's name; empty when it could not be read.
    task: String,
    /// The queue it came from.
    queue: String,
    /// Why it died.
    reason: String,
    /// When.
    #[schema(format = DateTime)]
    died: String,
    /// How often it had been delivered.
    deliveries: u32,
    /// How many bytes its body has.
    bytes: usize,
}

/// Which dead letters are meant. One of `ids` and `all`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct DeadRequest {
    /// Those of these tasks.
    #[schema(nullable = false)]
    ids: Option<Vec<String>>,
    /// Every one.
    #[schema(schema_with = super::bulk::only_true)]
    all: (),
}

/// What became of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadDone {
    /// So many were dead letters, and are not any more.
    done: usize,
    /// So many ids were not those of dead letters.
    not_dead: usize,
    /// There are more than were taken at once: ask again.
    more: bool,
}

impl From<DeadLetter> for DeadView {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.task_id.to_string(),
            task: letter.task.into(),
            queue: letter.queue.to_string(),
            reason: letter.reason,
            died: letter.died.to_string(),
            deliveries: letter.deliveries,
            bytes: letter.message.body.len(),
        }
    }
}

/// List dead letters
#[utoipa::path(
    get, path = "/dead", tag = "dead letters", operation_id = "list_dead",
    params(
        ("limit" = Option<u64>, Query, description = "How many at most", minimum = 1),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
    ),
    responses((status = 200, description = "A page of dead letters", body = DeadList), (status = 422)),
)]
pub(crate) async fn list(
    State(server): State<Server>,
    mut params: Params,
) -> Result<Json<DeadList>, Problem> {
    let mut problems = Problems::default();
    let (limit, after) = tasks::page(&server, &mut params, &mut problems);
    params.finish(&["limit", "cursor"], &mut problems);
    problems.check()?;
    // One more than asked for tells whether there is a next page.
    let mut letters = server.app().store().broker.dead(after.unwrap_or(0), limit + 1).await?;
    let more = letters.len() > limit;
    letters.truncate(limit);
    let next = letters.last().filter(|_| more).map(|letter| cursor::write(letter.number));
    Ok(Json(DeadList { items: letters.into_iter().map(DeadView::from).collect(), next }))
}

/// Send dead letters back to their queues
#[utoipa::path(
    post, path = "/dead/retry", tag = "dead letters", operation_id = "retry_dead",
    request_body = DeadRequest,
    responses((status = 200, description = "What happened", body = DeadDone)),
)]
pub(crate) async fn retry(State(server): State<Server>, body: Document) -> Result<Json<DeadDone>, Problem> {
    let (ids, more) = meant(&server, body).await?;
    let mut done = 0;
    for ids in ids.chunks(bulk::CHUNK) {
        done += server.app().store().broker.revive(ids).await?.len();
    }
    server.floor_cache().forget().await;
    Ok(Json(DeadDone { done, not_dead: ids.len().saturating_sub(done), more }))
}

/// Drop dead letters
#[utoipa::path(
    post, path = "/dead/drop", tag = "dead letters", operation_id = "drop_dead",
    request_body = DeadRequest,
    responses((status = 200, description = "What happened", body = DeadDone)),
)]
pub(crate) async fn drop_letters(
    State(server): State<Server>,
    body: Document,
) -> Result<Json<DeadDone>, Problem> {
    let (ids, more) = meant(&server, body).await?;
    let mut done = 0;
    for ids in ids.chunks(bulk::CHUNK) {
        done += server.app().store().broker.drop_dead(ids).await?.len();
    }
    Ok(Json(DeadDone { done, not_dead: ids.len().saturating_sub(done), more }))
}

/// The tasks meant, and whether there are more.
async fn meant(server: &Server, body: Document) -> Result<(Vec<TaskId>, bool), Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields(&mut problems)?;
    let everything = fields.any("all");
    match (&everything, fields.peek("ids")) {
        (Some(all), _) if all.as_str() != "true" => {
            problems.add("/all", "it can only be true; leave it out otherwise");
        }
        (Some(_), Some(_)) => problems.add("", "one of ids and all is needed, and both were given"),
        (None, None) if problems.none_so_far() => {
            problems.add("", "one of ids and all is needed, and none was given");
        }
        _ => {}
    }
    let ids = bulk::read_ids(&mut fields, server, &mut problems);
    fields.finish(&["ids", "all"], &mut problems);
    problems.check()?;
    if let Some(ids) = ids {
        return Ok((ids, false));
    }
    let max = server.config().bulk_max;
    let mut ids = Vec::new();
    let mut after = 0;
    loop {
        // In small pages, as letters come with their bytes.
        let letters = server.app().store().broker.dead(after, LETTERS).await?;
        let Some(last) = letters.last() else { return Ok((ids, false)) };
        after = last.number;
        for letter in letters {
            if ids.len() == max {
                return Ok((ids, true));
            }
            ids.push(letter.task_id);
        }
    }
}

const LETTERS: usize = 100;
