//! Taking calls in: one, or many at once.

use std::collections::{HashMap, HashSet};

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use celeriac::calls::Sent;
use celeriac::protocol::Message;
use celeriac::{QueueName, TaskId};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::{self, CONTENT_HEADER, Request, TaskRequest};
use crate::escape::segment;
use crate::floor::Floor;
use crate::input::{Document, Fields, NAME_MAX, Problems, shown};
use crate::json::compact;
use crate::problem::{Invalid, Problem};
use crate::server::Server;
use crate::view::{self, TaskView};

/// Many calls.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct BatchRequest {
    /// The calls.
    #[schema(min_items = 1)]
    tasks: Vec<TaskRequest>,
}

/// What became of many calls.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchView {
    /// One for each call, in order.
    items: Vec<BatchItem>,
}

/// What became of one of many calls.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchItem {
    /// The task's id.
    id: String,
    /// The task's name.
    task: String,
    /// It was there already, sent by another call with the same key.
    replayed: bool,
}

impl BatchView {
    pub(super) fn new(items: Vec<BatchItem>) -> Self {
        Self { items }
    }
}

impl BatchItem {
    pub(super) fn new(id: &TaskId, task: String, replayed: bool) -> Self {
        Self { id: id.to_string(), task, replayed }
    }
}

static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Send a task
#[utoipa::path(
    post, path = "/tasks", tag = "tasks", operation_id = "send_task",
    request_body = TaskRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes calls of one task with the same key one call, for as long as its result is kept: visible ASCII", min_length = 1, max_length = 255)),
    responses(
        (status = 202, description = "It is stored, and will run", body = TaskView, headers(
            ("Location" = String, description = "The task"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` when it was there already, sent by another call with the same key"),
        )),
        (status = 404, description = "No worker is known to run a task of this name; those that are close are named"),
        (status = 409, description = "The key or id was used before for something else, or the header and the body name different keys"),
    ),
)]
pub(crate) async fn send(
    State(server): State<Server>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Document,
) -> Result<Response, Problem> {
    let mut problems = Problems::default();
    let header_key = header_key(&headers, &mut problems);
    let fields = body.fields(&mut problems)?;
    let two_keys = header_key.as_deref().and_then(|key| other_key(&fields, key));
    let request = request::read(fields, header_key.as_deref(), &server, &mut problems);
    problems.check()?;
    if let Some(detail) = two_keys {
        return Err(conflict_of_keys(detail));
    }
    request::check_webhook(&request, &server)?;
    respond(&server, request, uri.path()).await
}

/// Sends a call that was read, and shows the task. `list` is the path of the list of tasks.
pub(super) async fn respond(server: &Server, request: Request, list: &str) -> Result<Response, Problem> {
    let sent = accept(server, vec![request], |_| String::new()).await?.remove(0);
    let Some(view) = view::load(server, &sent.task_id).await? else {
        // Only an operator who drops it could come in between.
        return Err(super::tasks::unknown(&sent.task_id));
    };
    let mut response = (StatusCode::ACCEPTED, Json(view)).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(location(list, &sent.task_id)) {
        headers.insert(LOCATION, location);
    }
    if sent.duplicate {
        headers.insert(&REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Send many tasks
///
/// All are stored, in one step, or none is. Each may have an idempotency key of its own.
#[utoipa::path(
    post, path = "/tasks/batch", tag = "tasks", operation_id = "send_tasks",
    request_body = BatchRequest,
    responses(
        (status = 202, description = "They are stored, and will run", body = BatchView),
        (status = 404, description = "No worker is known to run a task of one of these names"),
        (status = 409, description = "A key or id was used before for something else"),
    ),
)]
pub(crate) async fn batch(
    State(server): State<Server>,
    body: Document,
) -> Result<(StatusCode, Json<BatchView>), Problem> {
    let mut problems = Problems::default();
    let mut fields = body.fields(&mut problems)?;
    let max = server.config().batch_max;
    match fields.peek("tasks") {
        Some(value) if value.is_null() => problems.add("/tasks", "null where a list belongs"),
        None if problems.none_so_far() => problems.add("/tasks", "missing"),
        _ => {}
    }
    let items = fields.items("tasks", max, &mut problems);
    fields.finish(&["tasks"], &mut problems);
    let items = items.unwrap_or_default();
    if items.is_empty() && problems.none_so_far() {
        problems.add("/tasks", "empty; at least one call is needed");
    }
    let mut requests = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let fields = Fields::read(item, format!("/tasks/{index}"), &mut problems);
        requests.push(request::read(fields, None, &server, &mut problems));
    }
    problems.check()?;
    for request in &requests {
        request::check_webhook(request, &server)?;
    }
    let tasks: Vec<String> = requests.iter().map(|request| request.call.task.clone()).collect();
    let sent = accept(&server, requests, |index| format!("/tasks/{index}")).await?;
    let item = |(sent, task): (Sent, String)| BatchItem {
        id: sent.task_id.to_string(),
        task,
        replayed: sent.duplicate,
    };
    let items = sent.into_iter().zip(tasks).map(item).collect();
    Ok((StatusCode::ACCEPTED, Json(BatchView { items })))
}

/// Sends calls that were read, all or none. `place` says where a call stands in the body.
async fn accept(
    server: &Server,
    requests: Vec<Request>,
    place: impl Fn(usize) -> String,
) -> Result<Vec<Sent>, Problem> {
    check_names(server, &requests, &place).await?;
    let queues = check_queues(server, &requests).await?;
    check_known(server, &requests, &place).await?;
    let calls = requests.iter().map(|request| request.call.clone()).collect();
    let sent = server.app().send_calls(calls).await?;
    let floor = server.floor().await?;
    for (queue, count) in queues {
        floor.count_sent(&queue, count);
    }
    // Another request with the same key may have come in since they were checked. Of many, the others are sent by now.
    if let [Sent { duplicate: true, .. }] = sent[..] {
        check_known(server, &requests, &place).await?;
    }
    Ok(sent)
}

/// Whether the tasks are known to somebody, where anything is known.
async fn check_names(
    server: &Server,
    requests: &[Request],
    place: &impl Fn(usize) -> String,
) -> Result<(), Problem> {
    if server.config().accept_unknown_tasks {
        return Ok(());
    }
    let mut floor = server.floor().await?;
    let mut missing = unknown_names(server, &floor, requests);
    if !missing.is_empty() {
        // The worker may have come since the picture was taken.
        floor = server.floor_cache().no_older_than(server.app().store(), JUST_NOW).await?;
        missing = unknown_names(server, &floor, requests);
    }
    let mut unknown = Vec::with_capacity(missing.len().min(ERRORS_MAX));
    for index in missing.into_iter().take(ERRORS_MAX) {
        let task = &*requests[index].call.task;
        let hint = match &crate::names::close(task, known_names(server, &floor))[..] {
            [] => "see the registry for those that are".to_owned(),
            close => format!("did you mean {}?", close.join(", ")),
        };
        let problem = format!("no worker is known to run a task {}; {hint}", shown(task));
        unknown.push(Invalid { at: format!("{}/task", place(index)), problem });
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let detail = unknown.iter().map(|invalid| &*invalid.problem).take(3).collect::<Vec<_>>().join("; ");
    Err(Problem { errors: unknown, ..Problem::not_found("unknown-task-name", detail) })
}

/// Which of the calls are of tasks that nobody knows; none where nobody says what there is.
fn unknown_names(server: &Server, floor: &Floor, requests: &[Request]) -> Vec<usize> {
    let known: HashSet<&str> = known_names(server, floor).collect();
    if known.is_empty() {
        return Vec::new();
    }
    let is_known = |task: &str| known.contains(task) || crate::why::is_built_in(task);
    let unknown = requests.iter().enumerate().filter(|(_, request)| !is_known(&request.call.task));
    unknown.map(|(index, _)| index).collect()
}

/// The tasks that this program has or knows of, and those that live workers know.
fn known_names<'a>(server: &'a Server, floor: &'a Floor) -> impl Iterator<Item = &'a str> {
    let of_workers = floor.workers.iter().flat_map(|card| &card.tasks);
    let registry = server.app().registry();
    let of_program = registry.names().map(|name| -> &'a str { name }).chain(registry.known_names());
    of_program.chain(of_workers.map(|name| &**name))
}

/// So many names are told to be unknown at once; to look for those that are close costs a little for each.
const ERRORS_MAX: usize = 20;

/// Asking for names that are not there makes the store be read no oftener than this.
const JUST_NOW: std::time::Duration = std::time::Duration::from_millis(100);

/// Whether the queues have room. Says how many messages go to each.
async fn check_queues(server: &Server, requests: &[Request]) -> Result<HashMap<QueueName, u64>, Problem> {
    let mut queues: HashMap<QueueName, u64> = HashMap::new();
    for request in requests {
        let queue = request.call.options.queue.as_deref();
        let queue = queue.map_or_else(|| server.app().queue_of(&request.call.task), QueueName::from);
        *queues.entry(queue).or_default() += 1;
    }
    check_room(server, &queues).await?;
    Ok(queues)
}

/// Whether so many messages more have room on their queues.
pub(super) async fn check_room(server: &Server, queues: &HashMap<QueueName, u64>) -> Result<(), Problem> {
    let floor = server.floor().await?;
    let bound = server.config().queue_bound;
    for (queue, count) in queues {
        let waiting = floor.waiting(queue);
        if waiting.saturating_add(*count) > bound {
            let detail = format!(
                "{waiting} messages wait on queue {}, and its bound is {bound}; try again later, or start workers",
                shown(queue.as_str())
            );
            let problem =
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", "the queue is full", detail);
            return Err(Problem { retry_after: Some(QUEUE_FULL_RETRY), ..problem });
        }
    }
    Ok(())
}

/// Seconds after which a client may ask again whether there is room.
const QUEUE_FULL_RETRY: u64 = 5;

/// Whether keys and ids that were used before were used for the same.
async fn check_known(
    server: &Server,
    requests: &[Request],
    place: &impl Fn(usize) -> String,
) -> Result<(), Problem> {
    let mut first: HashMap<&TaskId, &str> = HashMap::new();
    let mut keyed = Vec::new();
    let mut wrong = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let Some(id) = &request.known_id else { continue };
        match first.get(id) {
            Some(content) if *content != request.content => wrong.push((index, request)),
            Some(_) => {}
            None => {
                first.insert(id, &request.content);
                keyed.push((index, id, request));
            }
        }
    }
    if keyed.is_empty() {
        return Ok(());
    }
    let ids: Vec<TaskId> = keyed.iter().map(|(_, id, _)| (*id).clone()).collect();
    let places = server.app().store().broker.locate(&ids).await?;
    for ((index, id, request), found) in keyed.into_iter().zip(places) {
        if found.is_some() && !same_content(server, id, request).await? {
            wrong.push((index, request));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.sort_by_key(|(index, _)| *index);
    let mut errors = Vec::with_capacity(wrong.len());
    for (index, request) in wrong {
        let (field, problem) = match (&request.call.options.idempotency_key, &request.known_id) {
            (Some(key), Some(id)) => {
                let problem = format!(
                    "key {} was used for a call of {} with other content, task {id}; use a new key for a new call",
                    shown(key),
                    shown(&request.call.task)
                );
                ("idempotency_key", problem)
            }
            (_, id) => {
                let id = id.as_ref().map(|id| shown(id.as_str())).unwrap_or_default();
                (
                    "task_id",
                    format!("id {id} is taken by a task with other content; leave it out for a fresh one"),
                )
            }
        };
        errors.push(Invalid { at: format!("{}/{field}", place(index)), problem });
    }
    let detail = errors.first().map(|error| error.problem.clone()).unwrap_or_default();
    let title = "used before for something else";
    // The input is valid by itself; what it conflicts with is what is there.
    Err(Problem { errors, ..Problem::new(StatusCode::CONFLICT, "key-reused", title, detail) })
}

/// Whether the task that is there was made by a request of the same content, as far as can be told.
async fn same_content(server: &Server, id: &TaskId, request: &Request) -> Result<bool, Problem> {
    let record = server.app().store().catalog.task(id).await?;
    let Some(record) = record else { return Ok(true) };
    if *record.listed.place.task != *request.call.task {
        return Ok(false);
    }
    // Without its message nothing but the key tells what it was.
    let Some(Ok(message)) = record.message.as_ref().map(Message::decode) else { return Ok(true) };
    if let Some(content) = message.headers.custom.get(CONTENT_HEADER) {
        return Ok(content.as_string().as_deref() == Some(&*request.content));
    }
    // Sent by a program, not through a server.
    let text = |args: &[celeriac::Json], kwargs: &celeriac::protocol::JsonMap| {
        let mut kwargs: Vec<String> =
            kwargs.iter().map(|(name, value)| format!("{name:?}:{}", compact(value.as_str()))).collect();
        kwargs.sort();
        (compact(celeriac::Json::array(args).as_str()), kwargs)
    };
    Ok(text(&message.body.args, &message.body.kwargs) == text(&request.call.args, &request.call.kwargs))
}

/// The header `Idempotency-Key`.
pub(super) fn header_key(headers: &HeaderMap, problems: &mut Problems) -> Option<String> {
    let value = headers.get("idempotency-key")?;
    match value.to_str() {
        Ok(text) if (1..=NAME_MAX).contains(&text.len()) && !text.contains([' ', '\t']) => {
            Some(text.to_owned())
        }
        _ => {
            problems.add("Idempotency-Key", format!("not 1 to {NAME_MAX} characters of visible ASCII"));
            None
        }
    }
}

/// A request that names its call in two ways.
pub(super) fn conflict_of_keys(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, "two-keys", "two idempotency keys", detail)
}

/// What else the body says of the call's identity than the header.
fn other_key(fields: &Fields, key: &str) -> Option<String> {
    let in_body =
        |name: &str| fields.peek(name).and_then(|value| value.as_string().map(|text| text.into_owned()));
    if in_body("task_id").is_some() {
        return Some(
            "the body has a task_id, which is a key by itself; leave out the header or the id".to_owned(),
        );
    }
    let other = in_body("idempotency_key").filter(|other| other != key)?;
    Some(format!("the header says {}, the body {}; leave one out", shown(key), shown(&other)))
}

/// The address of a task below the path of the list.
fn location(list: &str, task_id: &TaskId) -> String {
    format!("{}/{}", list.trim_end_matches('/'), segment(task_id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_hold_any_id() {
        let location = |id: &str| location("/x/api/v1/tasks", &TaskId::from(id));
        assert_eq!(location("a-b.c~d"), "/x/api/v1/tasks/a-b.c~d");
        assert_eq!(location("a/b ?é"), "/x/api/v1/tasks/a%2Fb%20%3F%C3%A9");
    }
}
