//! Streams: the log of a task, and the feed of all tasks, as server-sent events.
//!
//! A stream begins with `retry:` and the position it begins after, sends each record with its position as `id:`, and a
//! comment when it has been silent for long. Whoever reconnects with the last id seen misses nothing and gets nothing
//! twice. After the record `end` the response ends; a reconnect then gets 204, which tells an `EventSource` to stop.
//! Closing a stream changes nothing for its task. The library does the following, see [`celeriac::event`].
//!
//! A watcher is cheap as long as the connection beneath it is: the accept loop should bound what it buffers of a response
//! that its client does not read, and no layer may compress, gather or time out these responses.

mod body;
mod feed;
mod frame;
mod page;
mod request;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use celeriac::TaskId;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::problem::{Invalid, Problem};
use crate::server::Server;
use body::Slot;
use request::Form;

pub use feed::{__path_feed, feed};
pub use page::{FeedItem, FeedView, LogItem, LogView};

/// What may stand in the query of a stream.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// The position after which records are sent: the id of the last one seen. The header `Last-Event-ID` goes before
    /// it. Default: from the first record that is kept.
    #[param(value_type = Option<u64>, minimum = 0)]
    after: Option<String>,
    /// The same as `after`.
    #[param(value_type = Option<u64>, minimum = 0)]
    last_event_id: Option<String>,
    /// The same as `after`.
    #[param(value_type = Option<u64>, minimum = 0)]
    starting_after: Option<String>,
    /// `comment`, which only connections notice, or `event`: heartbeats that a page can see. Default `comment`.
    #[param(value_type = Option<String>)]
    heartbeat: Option<String>,
    /// How many records a page has at most, when JSON is asked for.
    #[param(value_type = Option<u64>, minimum = 1)]
    limit: Option<String>,
}

/// Follows a task.
#[utoipa::path(
    get,
    path = "/tasks/{id}/events",
    tag = "tasks",
    operation_id = "task_events",
    description = "The log of a task as a stream of server-sent events: what is there, then what comes, until the \
        record `end`. Reconnect with `Last-Event-ID` to go on without a gap or a repeat; 204 says that nothing \
        follows. With `Accept: application/json` one page of the log. Closing the stream never cancels the task.",
    params(
        ("id" = String, Path, description = "The task."),
        EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event seen."),
    ),
    responses(
        (status = 200, description = "The records.", content(
            (String = "text/event-stream"),
            (LogView = "application/json"),
        )),
        (status = 204, description = "The task has ended, and nothing follows the position given."),
        (status = 404, description = "No such task.", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "Neither form is accepted.", body = Problem,
            content_type = "application/problem+json"),
        (status = 410, description = "The log was trimmed past the position; `first` is what is kept.",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The position or another parameter is not valid.", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Too many streams, a shutdown, or the store is away.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub async fn events(
    State(server): State<Server>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|error| Problem::not_found("unknown-task", error.body_text()))?;
    let task_id = TaskId::from(id);
    let form = request::form(&headers)?;
    let Query(query) = query.map_err(|error| unreadable(&error))?;
    let mut errors = Vec::new();
    let parameters = [
        ("after", query.after.as_deref()),
        ("last_event_id", query.last_event_id.as_deref()),
        ("starting_after", query.starting_after.as_deref()),
    ];
    let after = request::position(&headers, &parameters, &mut errors);
    let named_heartbeat = named_heartbeat(query.heartbeat.as_deref(), &mut errors);
    let limit = page::limit(query.limit.as_deref(), server.config(), &mut errors);
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    if form == Form::Page {
        return page::page(&server, &task_id, after, limit).await;
    }
    let slot = slot(&server)?;
    let follow = server.app().follow(&task_id, after).await?;
    if follow.is_over() {
        return Ok((StatusCode::NO_CONTENT, [(CACHE_CONTROL, NO_CACHE)]).into_response());
    }
    Ok(stream(body::body(follow, named_heartbeat, slot)))
}

/// The client for browsers, as an ES module: `import { follow } from "/celeriac.js"`.
pub async fn script() -> Response {
    let kind = HeaderValue::from_static("text/javascript; charset=utf-8");
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    (headers, include_str!("../../static/celeriac.js")).into_response()
}

const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// Tells nginx, and those who learned it from there, not to gather the response.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

fn stream(body: axum::body::Body) -> Response {
    let kind = (CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    ([kind, (CACHE_CONTROL, NO_CACHE), NO_BUFFERING], body).into_response()
}

/// A place for one more stream.
fn slot(server: &Server) -> Result<Slot, Problem> {
    let refused = |detail: String| {
        let title = "no stream can be opened now";
        // Spread, so that those who are refused together do not come back together.
        let retry_after = Some(fastrand::u64(1..=5));
        Problem {
            retry_after,
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "streams-unavailable", title, detail)
        }
    };
    if server.draining().is_cancelled() {
        return Err(refused("the server is shutting down; reconnect with the last id seen".to_owned()));
    }
    Slot::take(server).ok_or_else(|| {
        let max = server.config().streams_max;
        refused(format!("{max} streams are open, which is the bound; try again later"))
    })
}

fn named_heartbeat(text: Option<&str>, errors: &mut Vec<Invalid>) -> bool {
    match text {
        None | Some("comment") => false,
        Some("event") => true,
        Some(_) => {
            let problem = "is neither `comment` nor `event`".to_owned();
            errors.push(Invalid { at: "heartbeat".to_owned(), problem });
            false
        }
    }
}

fn unreadable(error: &QueryRejection) -> Problem {
    Problem::invalid(vec![Invalid { at: "query".to_owned(), problem: error.body_text() }])
}
