//! The meta of a result: what Celery keeps under `celery-task-meta-<id>`.

use std::borrow::Cow;

use bytes::Bytes;

use super::content::{self, Compression, Serializer};
use super::headers::{At, entries};
use super::{DecodeError, Exception, Json, JsonMap, date, extended, scan, writer};
use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::state::State;

/// The state of a task and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultMeta {
    /// The task.
    pub task_id: TaskId,
    /// Its state.
    pub state: State,
    /// SUCCESS: the value. RETRY, FAILURE, REVOKED: an [`Exception`] or null. STARTED: `{pid, hostname}`. Others: what
    /// the application gave.
    pub result: Json,
    /// Text for people, with RETRY and FAILURE.
    pub traceback: Option<String>,
    /// The tasks it sent; `None` when there was no run.
    pub children: Option<Vec<ResultTuple>>,
    /// When it finished; `None` for states that are not final.
    pub date_done: Option<Timestamp>,
    /// Its group.
    pub group_id: Option<GroupId>,
    /// The task that sent it.
    pub parent_id: Option<TaskId>,
    /// More about the call, with the setting `result_extended`.
    pub extended: Option<Extended>,
}

/// What `result_extended` adds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Extended {
    /// The task's name.
    pub name: String,
    /// Positional arguments.
    pub args: Json,
    /// Named arguments.
    pub kwargs: Json,
    /// The worker's node name.
    pub worker: String,
    /// Retries made.
    pub retries: u32,
    /// The queue.
    pub queue: Option<String>,
    /// Stamps and anything else found.
    pub other: JsonMap,
}

/// A result and its children, as Celery's `as_tuple`: `[[id, parent], children]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultTuple {
    /// The id of a task or group.
    pub id: String,
    /// Its parent.
    pub parent: Option<Box<ResultTuple>>,
    /// `None` for a task, the members for a group.
    pub children: Option<Vec<ResultTuple>>,
}

impl ResultMeta {
    /// A state and its result, and nothing else yet.
    #[must_use]
    pub fn new(task_id: impl Into<TaskId>, state: State, result: Json) -> Self {
        Self {
            task_id: task_id.into(),
            state,
            result,
            traceback: None,
            children: None,
            date_done: None,
            group_id: None,
            parent_id: None,
            extended: None,
        }
    }

    /// The error, for a state that has one. What is malformed there is shown as far as it goes.
    #[must_use]
    pub fn exception(&self) -> Option<Exception> {
        self.state.is_exception().then(|| Exception::decode_lossy(&self.result))
    }

    /// Reads a meta in JSON, compressed or not. A date that cannot be read counts as absent, as for Python.
    ///
    /// # Errors
    /// The bytes are not such an object; `status` or `task_id` is absent; an extended type is unknown.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_as(Serializer::Json, bytes)
    }

    /// The same in another serializer: nothing in the bytes says which, the setting `result_serializer` does.
    ///
    /// # Errors
    /// As [`ResultMeta::decode`], and the serializer or compression may not be built in.
    pub fn decode_as(serializer: Serializer, bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes = content::decompress_marked(bytes)?;
        let text = content::deserialize(serializer, &bytes)?;
        extended::check(&text).map_err(|why| DecodeError::invalid("result meta", why))?;
        Self::read(&text)
    }

    /// Writes it as JSON, field for field as Celery does.
    ///
    /// # Errors
    /// None today.
    pub fn encode(&self) -> Result<Json, DecodeError> {
        Ok(Json::trusted(&self.write()))
    }

    /// Writes it for a reader with these settings of `result_serializer` and `result_compression`.
    ///
    /// # Errors
    /// As [`Message::encode_with`](super::Message::encode_with).
    pub fn encode_with(
        &self,
        serializer: Serializer,
        compression: Option<Compression>,
    ) -> Result<Bytes, DecodeError> {
        content::compress_marked(compression, content::serialize(serializer, self.write())?)
    }

    fn read(text: &str) -> Result<Self, DecodeError> {
        const PART: &str = "result meta";
        let (mut task_id, mut state) = (None, None);
        let mut meta = Self::new("", State::Pending, Json::null());
        let mut extended = Extended::default();
        let mut named = false;
        for entry in entries(text, PART)? {
            let (key, value) = entry?;
            let at = At { part: PART, key: &key, value };
            match &*key {
                "status" => state = at.text()?,
                "result" => meta.result = Json::trusted(value),
                "traceback" => meta.traceback = at.loose_text(),
                "children" => meta.children = ResultTuple::read_list(&at)?,
                "date_done" => meta.date_done = at.time().ok().flatten(),
                "group_id" => meta.group_id = at.text()?.map(GroupId::from),
                "parent_id" => meta.parent_id = at.text()?.map(TaskId::from),
                "task_id" => task_id = at.text()?,
                "name" => {
                    extended.name = at.loose_text().unwrap_or_default();
                    named = true;
                }
                "args" => extended.args = Json::trusted(value),
                "kwargs" => extended.kwargs = Json::trusted(value),
                "worker" => extended.worker = at.loose_text().unwrap_or_default(),
                "retries" => extended.retries = at.integer()?.unwrap_or_default(),
                "queue" => extended.queue = at.loose_text(),
                _ => {
                    extended.other.insert(key.into_owned(), Json::trusted(value));
                }
            }
        }
        meta.state = state.map(State::from).ok_or(DecodeError::Missing { part: "status" })?;
        meta.task_id = task_id.map(TaskId::from).ok_or(DecodeError::Missing { part: "task_id" })?;
        meta.extended = named.then_some(extended);
        Ok(meta)
    }

    fn write(&self) -> String {
        let mut out = String::with_capacity(256 + self.result.as_str().len());
        let mut object = writer::Object::new(&mut out);
        object.text("status", self.state.as_str());
        object.raw("result", self.result.as_str());
        object.optional_text("traceback", self.traceback.as_deref());
        let children = object.key("children");
        match &self.children {
            None => children.push_str("null"),
            Some(tuples) => ResultTuple::write_list(children, tuples),
        }
        let date_done = object.key("date_done");
        match self.date_done {
            None => date_done.push_str("null"),
            Some(at) => {
                date_done.push('"');
                date::iso8601(date_done, at);
                date_done.push('"');
            }
        }
        if let Some(group_id) = &self.group_id {
            object.text("group_id", group_id.as_str());
        }
        if let Some(parent_id) = &self.parent_id {
            object.text("parent_id", parent_id.as_str());
        }
        if let Some(extended) = &self.extended {
            object.text("name", &extended.name);
            object.raw("args", extended.args.as_str());
            object.raw("kwargs", extended.kwargs.as_str());
            object.text("worker", &extended.worker);
            object.integer("retries", extended.retries);
            object.optional_text("queue", extended.queue.as_deref());
            for (key, value) in &extended.other {
                object.raw(key, value.as_str());
            }
        }
        object.text("task_id", self.task_id.as_str());
        object.end();
        out
    }
}

impl ResultTuple {
    /// A task without a parent.
    #[must_use]
    pub fn task(id: impl Into<String>) -> Self {
        Self { id: id.into(), parent: None, children: None }
    }

    /// A group without a parent.
    #[must_use]
    pub fn group(id: impl Into<String>, members: Vec<Self>) -> Self {
        Self { id: id.into(), parent: None, children: Some(members) }
    }

    /// Reads a tuple.
    ///
    /// # Errors
    /// It is not `[[id, parent], children]`; an id alone in place of the inner pair is accepted, as in Python.
    pub fn decode(json: &Json) -> Result<Self, DecodeError> {
        Self::read(json.as_str())
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Json {
        let mut out = String::new();
        self.write(&mut out);
        Json::trusted(&out)
    }

    // The recursion of reading is bounded by the depth the scanner allows, and that of writing by what was read.
    fn read(text: &str) -> Result<Self, DecodeError> {
        let invalid = || DecodeError::invalid("result tuple", "expected [[id, parent], children]");
        let [head, children] = pair(text).ok_or_else(invalid)?;
        let (id, parent) = match pair(head) {
            Some([id, parent]) => (id, parent),
            None => (head, "null"),
        };
        let id = scan::string(id).map(Cow::into_owned).ok_or_else(invalid)?;
        let parent = if parent == "null" { None } else { Some(Box::new(Self::read(parent)?)) };
        let at = At { part: "result tuple", key: "children", value: children };
        Ok(Self { id, parent, children: Self::read_list(&at)? })
    }

    fn read_list(at: &At<'_>) -> Result<Option<Vec<Self>>, DecodeError> {
        if at.value == "null" {
            return Ok(None);
        }
        let items = scan::items(at.value).map_err(|_| at.wrong("a list"))?;
        let tuples = items.map(|item| Self::read(item.map_err(|_| at.wrong("a list"))?));
        tuples.collect::<Result<_, _>>().map(Some)
    }

    fn write(&self, out: &mut String) {
        out.push_str("[[");
        writer::string(out, &self.id);
        out.push_str(", ");
        match &self.parent {
            None => out.push_str("null"),
            Some(parent) => parent.write(out),
        }
        out.push_str("], ");
        match &self.children {
            None => out.push_str("null"),
            Some(children) => Self::write_list(out, children),
        }
        out.push(']');
    }

    fn write_list(out: &mut String, tuples: &[Self]) {
        out.push('[');
        for (index, tuple) in tuples.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            tuple.write(out);
        }
        out.push(']');
    }
}

fn pair(text: &str) -> Option<[&str; 2]> {
    let mut items = scan::items(text).ok()?;
    let pair = [items.next()?.ok()?, items.next()?.ok()?];
    items.next().is_none().then_some(pair)
}
