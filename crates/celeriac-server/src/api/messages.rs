//! Messages as Celery makes them, and results as Celery reads them: for producers that have no other way to the store.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use celeriac::envelopes::{Envelopes, MESSAGES_MAX};
use celeriac::{QueueName, TaskId};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::submit::{self, BatchItem, BatchView};
use crate::input::{Document, Name, Params, Problems};
use crate::json::Raw;
use crate::problem::Problem;
use crate::server::Server;

/// Messages to publish as they are, and chords to open before any of them is there.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct MessagesRequest {
    /// The messages.
    messages: Option<Vec<MessageRequest>>,
    /// The chords.
    chords: Option<Vec<ChordRequest>>,
}

/// A message, and where it goes.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct MessageRequest {
    /// The queue.
    #[schema(min_length = 1)]
    queue: String,
    /// Celery's envelope: `body` (base64 where the properties say so), `headers` of task protocol 2, `properties`,
    /// `content-type`, `content-encoding`.
    #[schema(value_type = Object)]
    message: (),
}

/// A chord to open.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct ChordRequest {
    /// The id of the header's group.
    #[schema(min_length = 1)]
    group: String,
    /// How many ends complete it.
    #[schema(minimum = 1, maximum = 4_294_967_295_u64)]
    size: u64,
    /// The signature of the body.
    #[schema(value_type = Object)]
    body: (),
}

/// What Celery keeps of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MetaView {
    /// The meta, field for field as a result backend of Celery's has it; null while there is none.
    #[schema(value_type = Raw)]
    meta: Option<Raw>,
    /// Whether the task is finished.
    ready: bool,
}

/// Publish messages
///
/// All are stored as they are, in one step, or none is. A task that waits or runs already is not sent again.
#[utoipa::path(
    post, path = "/messages", tag = "celery", operation_id = "publish_messages",
    request_body = MessagesRequest,
    responses((status = 202, description = "They are stored", body = BatchView)),
)]
pub(crate) async fn publish(
    State(server): State<Server>,
    body: Document,
) -> Result<(StatusCode, Json<BatchView>), Problem> {
    let mut problems = Problems::default();
    let json = body.json()?;
    let envelopes = match Envelopes::read(&json) {
        Ok(envelopes) => envelopes,
        Err(wrong) => {
            wrong.into_iter().for_each(|wrong| problems.add(wrong.at, wrong.problem));
            Envelopes::default()
        }
    };
    for (list, given) in [("/results", envelopes.results.len()), ("/parts", envelopes.parts.len())] {
        if given > 0 {
            problems.add(list, "not taken here; how a task ended is for its worker to say");
        }
    }
    if problems.none_so_far() && envelopes.messages.is_empty() && envelopes.chords.is_empty() {
        problems.add("/messages", "empty; at least one message or chord is needed");
    }
    problems.check()?;
    let mut queues: std::collections::HashMap<QueueName, u64> = std::collections::HashMap::new();
    for message in &envelopes.messages {
        *queues.entry(message.queue.clone()).or_default() += 1;
    }
    submit::check_room(&server, &queues).await?;
    let sent: Vec<(TaskId, String)> =
        envelopes.messages.iter().map(|sent| (sent.task_id.clone(), sent.task.to_string())).collect();
    let duplicates = server.app().send_envelopes(envelopes).await?;
    let floor = server.floor().await?;
    for (queue, count) in queues {
        floor.count_sent(&queue, count);
    }
    let item = |(id, task): (TaskId, String)| BatchItem::new(&id, task, duplicates.contains(&id));
    Ok((StatusCode::ACCEPTED, Json(BatchView::new(sent.into_iter().map(item).collect()))))
}

/// Get what Celery keeps of a task
///
/// Answers at once, or with `wait` as soon as the task is finished, at most after so many seconds. A task of which nothing
/// is known is PENDING to Celery, so that it may be waited for before it is sent.
#[utoipa::path(
    get, path = "/tasks/{id}/meta", tag = "celery", operation_id = "get_meta",
    params(
        ("id" = String, Path, description = "The task's id", min_length = 1),
        ("wait" = Option<f64>, Query, description = "Seconds to wait for the end of the task", minimum = 0),
    ),
    responses((status = 200, description = "What there is", body = MetaView), (status = 422)),
)]
pub(crate) async fn meta(
    State(server): State<Server>,
    Name(id): Name,
    mut params: Params,
) -> Result<Response, Problem> {
    let mut problems = Problems::default();
    let wait = params.seconds("wait", server.config().wait_max, &mut problems);
    params.finish(&["wait"], &mut problems);
    problems.check()?;
    let task_id = TaskId::from(id);
    let deadline = Instant::now() + wait.unwrap_or_default();
    let backend = &server.app().store().backend;
    loop {
        let draining = server.draining().is_cancelled();
        let left = if draining { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
        let found = tokio::select! {
            found = backend.await_result(&task_id, left.min(WAIT_PIECE)) => found?,
            () = server.draining().cancelled(), if !draining => continue,
        };
        let ready = found.as_ref().is_some_and(|meta| meta.state.is_ready());
        if ready || left.is_zero() {
            let meta = found.map(|meta| meta.encode()).transpose().map_err(celeriac::Error::from)?;
            return Ok(Json(MetaView { meta: meta.as_ref().map(Raw::new), ready }).into_response());
        }
    }
}

const WAIT_PIECE: Duration = Duration::from_secs(5);

/// The bound on each list, for the description.
pub(crate) const ITEMS_MAX: usize = MESSAGES_MAX;
