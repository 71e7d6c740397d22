//! Calling a task by a path of its own: the body is its arguments and nothing else.

use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use axum::response::Response;
use celeriac::Json;
use celeriac::protocol::JsonMap;

use super::request::{self, What};
use super::submit;
use crate::arguments::{self, Given};
use crate::input::{Document, Fields, NAME_MAX, Name, Params, Problems, shown};
use crate::problem::Problem;
use crate::server::Server;
use crate::view::TaskView;

/// The options that a query may have: those of `POST /tasks` that are said in a word.
const NAMES: [&str; 8] =
    ["queue", "priority", "countdown", "expires", "time_limit", "soft_time_limit", "task_id", "tags"];

/// Those that are numbers; `expires` may be one.
const NUMBERS: [&str; 5] = ["priority", "countdown", "expires", "time_limit", "soft_time_limit"];

/// Call a task by name
///
/// The body is its arguments, by name. Tasks that are described have an operation of their own, which says what they take.
/// What cannot be said here, `POST /api/v1/tasks` takes.
#[utoipa::path(
    post, path = "/call/{task}", tag = "tasks", operation_id = "call_task_by_name",
    params(
        ("task" = String, Path, description = "The task's name", min_length = 1, max_length = 255),
        ("queue" = Option<String>, Query, description = "The queue; by default that of the task, of its route, or the application's", min_length = 1, max_length = 255),
        ("priority" = Option<u8>, Query, description = "0 is consumed first, 9 last", minimum = 0, maximum = 9),
        ("countdown" = Option<f64>, Query, description = "Not before so many seconds have passed", minimum = 0, maximum = 3_155_760_000_u64),
        ("expires" = Option<String>, Query, description = "Revoked when not begun by this time: a date and time, or seconds from now"),
        ("time_limit" = Option<f64>, Query, description = "Seconds after which the run is stopped", minimum = 0.001, maximum = 3_155_760_000_u64),
        ("soft_time_limit" = Option<f64>, Query, description = "Seconds after which the run is asked to stop", minimum = 0.001, maximum = 3_155_760_000_u64),
        ("task_id" = Option<String>, Query, description = "The id to have; a second call with the same id is not sent", min_length = 1, max_length = 255),
        ("tags" = Option<Vec<String>>, Query, description = "Words to find the task by", max_items = 20),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes calls of one task with the same key one call, for as long as its result is kept: visible ASCII", min_length = 1, max_length = 255),
    ),
    responses(
        (status = 202, description = "It is stored, and will run", body = TaskView, headers(
            ("Location" = String, description = "The task"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` when it was there already, sent by another call with the same key"),
        )),
        (status = 404, description = "No worker is known to run a task of this name; those that are close are named"),
        (status = 409, description = "The key or id was used before for something else"),
    ),
)]
pub(crate) async fn send(
    State(server): State<Server>,
    Name(task): Name,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    params: Params,
    body: Document,
) -> Result<Response, Problem> {
    let mut problems = Problems::default();
    let header_key = submit::header_key(&headers, &mut problems);
    if task.chars().count() > NAME_MAX {
        problems.add("task", format!("{}: a name has at most {NAME_MAX} characters", shown(&task)));
    }
    request::check_task(&task, || "task".to_owned(), &mut problems);
    check_body(body.0.as_ref(), &mut problems);
    let description = server.app().registry().description(&task);
    let given = arguments::read(description, body.0.as_ref(), &mut problems);
    let options = options(params, &mut problems);
    let has_two_keys = header_key.is_some() && options.contains_key("task_id");
    let what = What { content: content(&task, &given, &options), task, given };
    let fields = Fields::of_query(options);
    let request = request::options(fields, what, header_key.as_deref(), &NAMES, &server, &mut problems);
    problems.check()?;
    if has_two_keys {
        return Err(submit::conflict_of_keys("task_id is a key by itself; leave out the header or the id"));
    }
    // Beside `/call/…`, wherever that is mounted.
    let place = uri.path().trim_end_matches('/').rsplitn(3, '/').last().unwrap_or_default();
    submit::respond(&server, request, &format!("{place}/tasks")).await
}

/// Whether a worker could read the values in a message.
fn check_body(body: Option<&Json>, problems: &mut Problems) {
    let Some(body) = body else { return };
    if let Ok(entries) = body.entries() {
        request::check_values(&entries, "", problems);
    } else if let Ok(items) = body.array_items() {
        for (index, item) in items.iter().enumerate() {
            request::check_value(item, || format!("/{index}"), problems);
        }
    }
}

/// The query as the fields that `POST /tasks` has.
fn options(mut params: Params, problems: &mut Problems) -> JsonMap {
    let mut options = JsonMap::new();
    for name in NAMES {
        if name == "tags" {
            let tags: Vec<Json> = params.all(name).iter().map(|tag| Json::string(tag)).collect();
            if !tags.is_empty() {
                options.insert(name, Json::array(&tags));
            }
        } else if let Some(text) = params.one(name, problems) {
            let number = Some(&text).filter(|text| NUMBERS.contains(&name) && is_number(text));
            let value = number.and_then(|number| Json::parse(number).ok());
            options.insert(name, value.unwrap_or_else(|| Json::string(&text)));
        }
    }
    params.finish(&NAMES, problems);
    options
}

fn is_number(text: &str) -> bool {
    text.starts_with(|letter: char| letter == '-' || letter.is_ascii_digit())
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// What the content of the request comes to: the same as that of a call by `POST /tasks`.
fn content(task: &str, given: &Given, options: &JsonMap) -> String {
    let mut entries = options.clone();
    entries.insert("task", Json::string(task));
    if !given.args.is_empty() {
        entries.insert("args", Json::array(&given.args));
    }
    if !given.kwargs.is_empty()
        && let Ok(kwargs) = Json::from_value(&given.kwargs)
    {
        entries.insert("kwargs", kwargs);
    }
    Fields::of_query(entries).digest()
}
