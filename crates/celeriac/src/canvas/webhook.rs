//! The message that tells the end of a task by HTTP, for tasks whose message asks for it.
//!
//! It is written in the same step as the end itself, so that neither is there without the other. It stands alone: it
//! belongs to no group and no chain, and nothing follows it.

use serde::Serialize;

use super::{Error, Planner};
use crate::broker::Routed;
use crate::client::{WEBHOOK_HEADER, WEBHOOK_QUEUE, WEBHOOK_TASK};
use crate::id::{QueueName, TaskId};
use crate::protocol::{
    Body, Embed, Headers, Json, JsonMap, Message, Properties, ResultMeta, args_repr, kwargs_repr,
};

/// The longest result or error that is told, in bytes; a longer one is left out, and asked for by whoever wants it.
const TOLD_BYTES_MAX: usize = 64 * 1024;

/// What is told: the second argument of [`WEBHOOK_TASK`].
#[derive(Debug, Serialize)]
struct Told<'a> {
    id: &'a str,
    task: &'a str,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Json>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// When it ended, in ISO 8601.
    at: String,
    /// Which run ended it, from 1.
    attempt: u32,
}

/// A task that ended.
pub(crate) struct Ended<'a> {
    /// Its name.
    pub(crate) task: &'a str,
    /// The headers of its message that are the application's own.
    pub(crate) headers: &'a JsonMap,
    /// How often it had been retried.
    pub(crate) retries: u32,
    /// Its end.
    pub(crate) meta: &'a ResultMeta,
    /// Names this end: the same task and run give the same id, so that an end that is written twice is told once, and a
    /// task that is sent again is told again.
    pub(crate) run: &'a str,
}

/// The message that tells of an end; `None` when nobody asked for one.
///
/// # Errors
/// The header is not a text, or the message cannot be written.
pub(crate) fn webhook(ended: &Ended<'_>, cx: &Planner<'_>) -> Result<Option<Routed>, Error> {
    let Ended { task, headers, retries, meta, run } = ended;
    let Some(header) = headers.get(WEBHOOK_HEADER).filter(|header| !header.is_null()) else {
        return Ok(None);
    };
    let Some(url) = header.as_string() else {
        return Err(Error::invalid(format!("header {WEBHOOK_HEADER}"), "not a text"));
    };
    let content = Some(&meta.result).filter(|content| content.as_str().len() <= TOLD_BYTES_MAX);
    let failed = meta.state.is_exception();
    let told = Told {
        id: meta.task_id.as_str(),
        task,
        state: meta.state.as_str(),
        result: content.filter(|_| !failed),
        error: content.filter(|_| failed),
        truncated: content.is_none(),
        at: meta.date_done.unwrap_or(cx.now).to_string(),
        attempt: retries.saturating_add(1),
    };
    let told = Json::from_value(&told).map_err(|why| Error::invalid(WEBHOOK_TASK, why))?;
    let id = TaskId::for_key(WEBHOOK_TASK, &format!("{}:{}{run}", meta.task_id.as_str().len(), meta.task_id));
    // People who look at the queue see where to and about what, and not the rest of a URL that may hold a secret.
    let shown = [Json::string(origin(&url)), Json::string(meta.task_id.as_str())];
    let headers = Headers {
        lang: "rust".to_owned(),
        task: WEBHOOK_TASK.to_owned(),
        id: id.as_str().to_owned(),
        root_id: Some(id.as_str().to_owned()),
        argsrepr: args_repr(&shown),
        kwargsrepr: kwargs_repr(&JsonMap::new()),
        origin: cx.origin.to_owned(),
        ignore_result: Some(true),
        ..Headers::default()
    };
    let mut properties = Properties::new(id.as_str(), WEBHOOK_QUEUE);
    properties.delivery_tag = (cx.ids)();
    let priority = cx.router.default_priority().unwrap_or(0);
    properties.priority = priority;
    let body = Body { args: vec![Json::string(&url), told], kwargs: JsonMap::new(), embed: Embed::default() };
    let message = Message { headers, properties, body }.encode()?;
    Ok(Some(Routed {
        task_id: id,
        task: WEBHOOK_TASK.into(),
        queue: QueueName::from(WEBHOOK_QUEUE),
        priority,
        due: None,
        unique: true,
        tags: Vec::new(),
        message,
    }))
}

/// The same message with another end, for an end that could not be stored; `None` when it is not about that task.
pub(crate) fn retold(routed: &Routed, meta: &ResultMeta) -> Option<Routed> {
    let mut message = Message::decode(&routed.message).ok()?;
    let told = message.body.args.get_mut(1)?;
    let mut entries = told.entries().ok()?;
    if *entries.get("id")? != Json::string(meta.task_id.as_str()) {
        return None;
    }
    for content in ["result", "error", "truncated"] {
        entries.remove(content);
    }
    entries.insert("state", Json::string(meta.state.as_str()));
    entries.insert("error", meta.result.clone());
    *told = entries.to_json();
    Some(Routed { message: message.encode().ok()?, ..routed.clone() })
}

/// Takes the wish to be told out of the options of a workflow, whose end is that of one of its parts.
pub(super) fn take_wish(options: &mut JsonMap) -> Option<Json> {
    let mut headers = options.get("headers")?.entries().ok()?;
    let url = headers.remove(WEBHOOK_HEADER)?;
    options.insert("headers", headers.to_json());
    Some(url)
}

/// Gives it to the part that ends the workflow, unless that has one of its own.
pub(super) fn give_wish(options: &mut JsonMap, url: Json) {
    let mut headers = options.get("headers").and_then(|headers| headers.entries().ok()).unwrap_or_default();
    if !headers.contains_key(WEBHOOK_HEADER) {
        headers.insert(WEBHOOK_HEADER, url);
    }
    options.insert("headers", headers.to_json());
}

/// Scheme and host of a URL, without user, path and query.
fn origin(url: &str) -> &str {
    let Some(start) = url.find("://").map(|at| at + 3) else { return "" };
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    if url[start..end].contains('@') { "" } else { &url[..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see_of_a_url() {
        assert_eq!(origin("https://hooks.example/services/secret?key=x"), "https://hooks.example");
        assert_eq!(origin("https://hooks.example?key=x"), "https://hooks.example");
        assert_eq!(origin("https://user:secret@hooks.example/"), "");
        assert_eq!(origin("mailto:somebody"), "");
    }
}
