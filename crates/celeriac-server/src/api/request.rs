//! A call as clients send it, read into one that the library sends.

use std::time::Duration;

use celeriac::calls::Call;
use celeriac::canvas::RESERVED_HEADERS;
use celeriac::client::WEBHOOK_TASK;
use celeriac::protocol::{JsonMap, extended};
use celeriac::{CallOptions, Json, TaskId, Timestamp};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::arguments::{self, Given};
use crate::escape::pointer;
use crate::input::{Fields, NAME_MAX, Problems};
use crate::json::{Raw, compact};
use crate::problem::Problem;
use crate::server::Server;
use crate::webhook;

/// A call of a task.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct TaskRequest {
    /// The task's name.
    #[schema(min_length = 1, max_length = 255, example = "app.digest")]
    task: String,
    /// Positional arguments.
    args: Option<Vec<Raw>>,
    /// Named arguments.
    #[schema(value_type = Option<Object>)]
    kwargs: Option<JsonMap>,
    /// The queue; by default that of the task, of its route, or the application's.
    #[schema(min_length = 1, max_length = 255)]
    queue: Option<String>,
    /// 0 is consumed first, 9 last.
    #[schema(minimum = 0, maximum = 9)]
    priority: Option<u8>,
    /// Not before so many seconds have passed. Not together with `eta`.
    #[schema(minimum = 0, maximum = 3_155_760_000_u64)]
    countdown: Option<f64>,
    /// Not before this time. Not together with `countdown`.
    #[schema(format = DateTime)]
    eta: Option<String>,
    /// Revoked when not begun by this time: a date and time, or seconds from now.
    expires: Option<String>,
    /// Seconds after which the run is stopped.
    #[schema(minimum = 0.001, maximum = 3_155_760_000_u64)]
    time_limit: Option<f64>,
    /// Seconds after which the run is asked to stop.
    #[schema(minimum = 0.001, maximum = 3_155_760_000_u64)]
    soft_time_limit: Option<f64>,
    /// The id to have; by default a fresh one. It works as an idempotency key does: a second call with the same id is not
    /// sent.
    #[schema(min_length = 1, max_length = 255)]
    task_id: Option<String>,
    /// Makes calls of one task with the same key one call, for as long as its result is kept. The header
    /// `Idempotency-Key` is the same.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// Words to find the task by.
    #[schema(max_items = 20)]
    tags: Option<Vec<String>>,
    /// Keep no value.
    ignore_result: Option<bool>,
    /// The name to show instead of the task's.
    #[schema(min_length = 1, max_length = 255)]
    shadow: Option<String>,
    /// Headers of the application's own. Names that a task message has itself cannot be used, nor `tags`, nor such as
    /// begin with `celeriac_`.
    #[schema(value_type = Option<Object>)]
    headers: Option<JsonMap>,
    /// Where the end of the task is told, by HTTP. The server must have a secret to sign with.
    #[schema(min_length = 1, max_length = 2048, example = "https://example.com/done")]
    webhook: Option<String>,
}

const NAMES: [&str; 17] = [
    "task",
    "args",
    "kwargs",
    "queue",
    "priority",
    "countdown",
    "eta",
    "expires",
    "time_limit",
    "soft_time_limit",
    "task_id",
    "idempotency_key",
    "tags",
    "ignore_result",
    "shadow",
    "headers",
    "webhook",
];

/// A call that was read.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) call: Call,
    /// The id that the client's key or the client itself gave it.
    pub(crate) known_id: Option<TaskId>,
    /// What the content of the request comes to: also in the header [`CONTENT_HEADER`] of the message.
    pub(crate) content: String,
}

/// The header that says what the content of a request came to, so that a key used for something else is noticed.
pub(crate) const CONTENT_HEADER: &str = "celeriac_request";
pub(crate) const TAGS_MAX: usize = 20;
pub(crate) const TAG_MAX: usize = 100;
/// A hundred years.
const SECONDS_MAX: Duration = Duration::from_secs(3_155_760_000);
const SECONDS_LEAST: Duration = Duration::from_millis(1);
const URL_MAX: usize = 2048;

/// What is called, before it is known how.
#[derive(Debug)]
pub(crate) struct What {
    pub(crate) task: String,
    pub(crate) given: Given,
    /// What the content of the request comes to.
    pub(crate) content: String,
}

/// Reads a call.
pub(crate) fn read(
    mut fields: Fields,
    header_key: Option<&str>,
    server: &Server,
    problems: &mut Problems,
) -> Request {
    let content = fields.digest();
    let task = fields.required_text("task", NAME_MAX, problems);
    check_task(&task, || fields.place("task"), problems);
    let before = problems.count();
    let args = fields.items("args", usize::MAX, problems).unwrap_or_default();
    let args_at = fields.place("args");
    for (index, value) in args.iter().enumerate() {
        check_value(value, || format!("{args_at}/{index}"), problems);
    }
    let kwargs = fields.object("kwargs", problems).unwrap_or_default();
    let kwargs_at = fields.place("kwargs");
    check_values(&kwargs, &kwargs_at, problems);
    let given = Given { args, kwargs };
    // What cannot be read as arguments is not said to be missing among them.
    if let Some(description) = server.app().registry().description(&task)
        && problems.count() == before
    {
        arguments::check_names(description, &given, (&args_at, &kwargs_at), problems);
    }
    options(fields, What { task, given, content }, header_key, &NAMES, server, problems)
}

/// Whether a task may be called from outside.
pub(crate) fn check_task(task: &str, at: impl Fn() -> String, problems: &mut Problems) {
    // Whoever could send it would have anything signed with the server's secret.
    if task == WEBHOOK_TASK {
        problems.add(at(), "is for the server alone; give webhook with the task whose end is to be told");
    }
}

/// Reads how a task is to be called: the rest of the fields, which are no more than `names`.
pub(crate) fn options(
    mut fields: Fields,
    what: What,
    header_key: Option<&str>,
    names: &[&str],
    server: &Server,
    problems: &mut Problems,
) -> Request {
    let What { task, given: Given { args, kwargs }, content } = what;
    let countdown = fields.seconds("countdown", Duration::ZERO, SECONDS_MAX, problems);
    let eta = fields.time("eta", problems);
    if countdown.is_some() && eta.is_some() {
        problems.add(fields.place("countdown"), "given together with eta; leave one of them out");
    }
    let body_key = fields.text("idempotency_key", NAME_MAX, problems);
    let task_id = fields.text("task_id", NAME_MAX, problems).map(TaskId::from);
    if task_id.is_some() && body_key.is_some() {
        problems
            .add(fields.place("idempotency_key"), "given together with task_id, which is a key by itself");
    }
    let key = body_key.or_else(|| header_key.map(str::to_owned));
    let tags = fields.texts("tags", TAGS_MAX, TAG_MAX, problems).unwrap_or_default();
    let mut headers = fields.object("headers", problems).unwrap_or_default();
    check_headers(&headers, &fields.place("headers"), problems);
    headers.insert(CONTENT_HEADER, Json::string(&content));
    let webhook = fields.text("webhook", URL_MAX, problems);
    // Without a secret none is sent anywhere, which is told apart from what is wrong with the input.
    if let Some(url) = webhook.as_deref().filter(|_| server.config().webhook_secret.is_some())
        && let Err(problem) = webhook::check_url(url, server.config())
    {
        problems.add(fields.place("webhook"), problem);
    }
    let options = CallOptions {
        eta: eta.map(not_before_1970),
        countdown,
        expires: expires(&mut fields, server, problems).map(not_before_1970),
        priority: fields
            .integer("priority", 0..=9, problems)
            .and_then(|priority| u8::try_from(priority).ok()),
        queue: fields.text("queue", NAME_MAX, problems),
        idempotency_key: key.clone().filter(|_| task_id.is_none()),
        time_limit: fields.seconds("time_limit", SECONDS_LEAST, SECONDS_MAX, problems),
        soft_time_limit: fields.seconds("soft_time_limit", SECONDS_LEAST, SECONDS_MAX, problems),
        ignore_result: fields.boolean("ignore_result", problems),
        shadow: fields.text("shadow", NAME_MAX, problems),
        tags,
        webhook,
        headers,
        task_id: task_id.clone(),
        ..CallOptions::default()
    };
    fields.finish(names, problems);
    let known_id = task_id.or_else(|| key.map(|key| TaskId::for_key(&task, &key)));
    Request { call: Call { task, args, kwargs, options }, known_id, content }
}

/// Whether a server may tell the end of this call where it asks for.
pub(crate) fn check_webhook(request: &Request, server: &Server) -> Result<(), Problem> {
    if request.call.options.webhook.is_none() || server.config().webhook_secret.is_some() {
        return Ok(());
    }
    let title = "webhooks are off";
    let detail = "this server has no secret to sign webhooks with; set webhook_secret, or leave webhook out";
    Err(Problem::new(axum::http::StatusCode::FORBIDDEN, "webhooks-off", title, detail))
}

impl Fields {
    /// What the content comes to: all fields but the key, whatever their order and spacing.
    pub(crate) fn digest(&self) -> String {
        let mut entries: Vec<(String, String)> = self
            .entries()
            .filter(|(name, value)| *name != "idempotency_key" && !value.is_null())
            .map(|(name, value)| (name.clone(), compact(value.as_str())))
            .collect();
        entries.sort();
        let mut hash = Sha256::new();
        for (name, value) in &entries {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value);
        }
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&hash.finalize()[..CONTENT_BYTES])
    }
}

/// Half of the hash tells two requests of one client apart as well as all of it.
const CONTENT_BYTES: usize = 16;

/// A date and time, or seconds from now.
fn expires(fields: &mut Fields, server: &Server, problems: &mut Problems) -> Option<Timestamp> {
    if fields.is_text("expires") {
        return fields.time("expires", problems);
    }
    let seconds = fields.seconds("expires", Duration::ZERO, SECONDS_MAX, problems)?;
    Some(celeriac::clock::after(server.app().clock().now(), seconds))
}

/// What is long past is past: Python's dates begin in year 1, and those before it would make a message unreadable there.
fn not_before_1970(at: Timestamp) -> Timestamp {
    at.max(Timestamp::UNIX_EPOCH)
}

pub(crate) fn check_values(values: &JsonMap, place: &str, problems: &mut Problems) {
    for (name, value) in values {
        let at = || format!("{place}/{}", pointer(name));
        check_value(value, at, problems);
    }
}

/// Whether a worker could read the value in a message.
pub(crate) fn check_value(value: &Json, at: impl Fn() -> String, problems: &mut Problems) {
    // Writing it anew bounds its depth, so that it fits into every message and result.
    if let Err(why) = Json::from_value(value) {
        problems.add(at(), why.to_string());
    } else if let Err(why) = extended::check_value(value) {
        problems.add(at(), why.to_string());
    }
}

fn check_headers(headers: &JsonMap, place: &str, problems: &mut Problems) {
    check_values(headers, place, problems);
    for name in headers.keys() {
        if RESERVED_HEADERS.contains(&name.as_str()) || name == "tags" || name.starts_with("celeriac_") {
            problems.add(format!("{place}/{name}"), "a message has this header of its own; use another name");
        }
    }
}
