//! What became of a task, for those who want to know nothing else.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use celeriac::backend::Watch;
use celeriac::protocol::{Exception, ResultMeta};
use celeriac::state::{self, Phase};
use celeriac::{State as TaskState, TaskId};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::input::{Name, Params, Problems};
use crate::json::Raw;
use crate::problem::Problem;
use crate::server::Server;
use crate::view::ErrorView;

/// What became of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultView {
    /// Its id.
    id: String,
    /// Its state.
    #[schema(example = "SUCCESS")]
    state: String,
    /// Whether it is finished.
    ready: bool,
    /// Its value, for one that succeeded. `NaN` and the infinities, which Python may write, are `null`.
    #[schema(value_type = Raw)]
    result: Option<Raw>,
    /// Its error, for one that failed or was revoked.
    error: Option<ErrorView>,
    /// Where the error came from, for people.
    traceback: Option<String>,
}

/// Get the result of a task
///
/// Answers at once, or with `wait` as soon as the task is finished, at most after so many seconds.
#[utoipa::path(
    get, path = "/tasks/{id}/result", tag = "tasks", operation_id = "get_result",
    params(
        ("id" = String, Path, description = "The task's id", min_length = 1),
        ("wait" = Option<f64>, Query, description = "Seconds to wait for the end of the task", minimum = 0),
    ),
    responses(
        (status = 200, description = "It is finished", body = ResultView),
        (status = 202, description = "It is not finished", body = ResultView),
        (status = 404),
        (status = 422),
    ),
)]
pub(crate) async fn get(
    State(server): State<Server>,
    Name(id): Name,
    mut params: Params,
) -> Result<(StatusCode, Json<ResultView>), Problem> {
    let mut problems = Problems::default();
    let wait = params.seconds("wait", server.config().wait_max, &mut problems);
    params.finish(&["wait"], &mut problems);
    problems.check()?;
    let task_id = TaskId::from(id);
    let deadline = Instant::now() + wait.unwrap_or_default();
    loop {
        let view = look(&server, &task_id).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        if view.ready {
            return Ok((StatusCode::OK, Json(view)));
        }
        if left.is_zero() || server.draining().is_cancelled() {
            return Ok((StatusCode::ACCEPTED, Json(view)));
        }
        // Dropped with the connection: when the client goes away, so does the wait.
        let watch = Watch::Result(task_id.clone());
        tokio::select! {
            waited = server.app().store().backend.wait(&watch, left.min(WAIT_PIECE)) => { waited?; }
            () = server.draining().cancelled() => {}
        }
    }
}

/// A wait is cut into pieces, so that an end that leaves no result is noticed, too.
const WAIT_PIECE: Duration = Duration::from_secs(2);

async fn look(server: &Server, task_id: &TaskId) -> Result<ResultView, Problem> {
    let ids = std::slice::from_ref(task_id);
    let store = server.app().store();
    let meta = store.backend.fetch(ids).await?.pop().flatten();
    if let Some(meta) = meta.filter(|meta| meta.state.is_ready()) {
        return Ok(finished(meta));
    }
    let Some(place) = store.find(task_id).await? else {
        return Err(super::tasks::unknown(task_id));
    };
    if place.phase == Phase::Settled {
        // It may have ended between the two looks; then its result is there now. If none is, its end was not to be told.
        let meta = store.backend.fetch(ids).await?.pop().flatten();
        if let Some(meta) = meta.filter(|meta| meta.state.is_ready()) {
            return Ok(finished(meta));
        }
    }
    Ok(ResultView {
        id: task_id.to_string(),
        state: state::shown(&place.state, place.phase).to_string(),
        ready: place.phase == Phase::Settled,
        result: None,
        error: None,
        traceback: None,
    })
}

fn finished(meta: ResultMeta) -> ResultView {
    let exception = meta.exception();
    ResultView {
        id: meta.task_id.to_string(),
        ready: true,
        result: (meta.state == TaskState::Success).then(|| Raw::new(&meta.result)),
        error: exception.as_ref().map(|exception: &Exception| ErrorView::from(exception)),
        traceback: meta.traceback,
        state: meta.state.to_string(),
    }
}
