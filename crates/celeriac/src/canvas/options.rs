//! A task's options, and the message they make.

use std::time::Duration;

use super::freeze::Tail;
use super::node::{IDEMPOTENCY_KEY, Node, decode};
use super::plan::Out;
use super::{Error, Planner};
use crate::broker::Routed;
use crate::clock::{Timestamp, after};
use crate::id::{QueueName, TaskId};
use crate::protocol::{
    Body, Compression, Embed, Headers, JsonMap, Message, Properties, Serializer, Signature, TimeLimit,
    args_repr, kwargs_repr, parse_iso8601,
};

/// Options that say how to call, not what: they mean something to the caller's library alone and are not sent.
const LOCAL: &[&str] = &[
    "add_to_parent",
    "celeriac.shape",
    "connection",
    "declare",
    "interval",
    "max_retries",
    "producer",
    "publisher",
    "result_cls",
    "retry",
    "retry_policy",
    "route_name",
    "router",
    "task_type",
    IDEMPOTENCY_KEY,
];

/// Options that have a place of their own in a message, or choose one.
const KNOWN: &[&str] = &[
    "chain",
    "chord",
    "compression",
    "countdown",
    "delivery_mode",
    "eta",
    "exchange",
    "exchange_type",
    "expiration",
    "expires",
    "group_id",
    "group_index",
    "headers",
    "ignore_result",
    "link",
    "link_error",
    "origin",
    "parent_id",
    "priority",
    "queue",
    "replaced_task_nesting",
    "reply_to",
    "retries",
    "root_id",
    "routing_key",
    "serializer",
    "shadow",
    "soft_time_limit",
    "stamped_headers",
    "task_id",
    "time_limit",
];

/// Names of headers that a message has of its own, and an application cannot have for itself.
pub const RESERVED_HEADERS: &[&str] = &[
    "argsrepr",
    "compression",
    "eta",
    "expires",
    "group",
    "group_index",
    "id",
    "ignore_result",
    "kwargsrepr",
    "lang",
    "origin",
    "parent_id",
    "redelivered",
    "replaced_task_nesting",
    "retries",
    "root_id",
    "shadow",
    "stamped_headers",
    "stamps",
    "task",
    "timelimit",
];

impl Node {
    /// Makes the message of a task and adds it to `out`. Says the task's id.
    pub(super) fn send(
        mut self,
        chain: Option<Vec<Signature>>,
        cx: &Planner<'_>,
        out: &mut Out,
    ) -> Result<String, Error> {
        let id = self.freeze(&Tail::default(), cx)?.id;
        let keyed = self.options.contains_key(IDEMPOTENCY_KEY);
        // The key itself does not travel with the later steps of a workflow, but the id made from it does.
        let unique = keyed || (cx.parent_id.is_some() && is_made_from_key(&id));
        let name = self.routed_name();
        let queue = match self.text_option("queue")? {
            Some(queue) => Some(queue),
            None => self.text_option("routing_key")?,
        };
        let queue = queue.map_or_else(|| cx.router.queue(&name), QueueName::from);
        let priority = self
            .number_option::<u8>("priority")?
            .or_else(|| cx.router.priority(&name))
            .or(cx.inherited_priority)
            .or_else(|| cx.router.default_priority())
            .unwrap_or(0);

        let eta = self.eta(cx.now)?;
        let (expires, expiration) = self.expires(cx.now)?;
        let seat = self.seat()?;
        let (stamped_headers, stamps) = self.stamps()?;
        let optional_id = |name: &str, default: &Option<TaskId>| -> Result<Option<String>, Error> {
            Ok(self.text_option(name)?.or_else(|| default.as_ref().map(TaskId::to_string)))
        };
        let headers = Headers {
            lang: "rust".to_owned(),
            task: self.task.clone(),
            id: id.clone(),
            shadow: self.text_option("shadow")?,
            eta,
            expires,
            group: seat.as_ref().map(|seat| seat.group_id.clone()),
            group_index: seat.as_ref().and_then(|seat| seat.index),
            retries: self.number_option("retries")?.unwrap_or(0),
            timelimit: TimeLimit {
                hard: self.number_option("time_limit")?,
                soft: self.number_option("soft_time_limit")?,
            },
            root_id: Some(optional_id("root_id", &cx.root_id)?.unwrap_or_else(|| id.clone())),
            parent_id: optional_id("parent_id", &cx.parent_id)?,
            argsrepr: args_repr(&self.args),
            kwargsrepr: kwargs_repr(&self.kwargs),
            origin: self.text_option("origin")?.unwrap_or_else(|| cx.origin.to_owned()),
            ignore_result: self.number_option("ignore_result")?,
            replaced_task_nesting: self.number_option("replaced_task_nesting")?.unwrap_or(0),
            custom: self.custom_headers()?,
            stamped_headers,
            stamps,
        };
        let mut properties = Properties::new(id.as_str(), queue.as_str());
        properties.reply_to = self.text_option("reply_to")?.unwrap_or_default();
        properties.priority = priority;
        properties.expiration = expiration;
        properties.other = self.other(&headers.stamps);
        let chord = match self.options.get("chord") {
            Some(chord) => Some(Box::new(decode(chord, &format!("{}: option chord", self.task))?)),
            None => None,
        };
        let embed = Embed {
            callbacks: self.signatures_option("link")?,
            errbacks: self.signatures_option("link_error")?,
            chain,
            chord,
        };
        let task = self.task.clone().into_boxed_str();
        let serializer = self.text_option("serializer")?.and_then(|name| Serializer::from_name(&name));
        let compression =
            self.text_option("compression")?.and_then(|name| Compression::from_name(&name).ok());
        let message =
            Message { headers, properties, body: Body { args: self.args, kwargs: self.kwargs, embed } };
        out.push(Routed {
            task_id: TaskId::from(id.as_str()),
            task,
            queue,
            priority,
            due: eta,
            unique,
            tags: tags(&message.headers.custom),
            // In JSON, which every consumer reads, where the form asked for is none of ours or not built in.
            message: message
                .encode_with(serializer.unwrap_or(Serializer::Json), compression)
                .or_else(|_| message.encode())?,
        })?;
        Ok(id)
    }

    /// An option of any simple type; absent and null are one.
    fn number_option<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        match self.options.get(name) {
            Some(value) if !value.is_null() => {
                value.to().map(Some).map_err(|why| Error::option(&self.task, name, &why))
            }
            _ => Ok(None),
        }
    }

    /// `countdown` wins over `eta`, and one of 0 says nothing, as in Celery.
    fn eta(&self, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        match self.number_option::<f64>("countdown")? {
            Some(seconds) if seconds != 0.0 => Ok(Some(later(now, seconds))),
            _ => self.time_option("eta", now),
        }
    }

    /// When the task expires, and the same in milliseconds from now, as the property has it.
    fn expires(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<String>), Error> {
        let expires = self.time_option("expires", now)?;
        let milliseconds = match expires {
            Some(expires) => Some(expires.duration_since(now).as_millis().max(0)),
            None => self.number_option::<f64>("expiration")?.map(|seconds| (seconds * 1000.0) as i128),
        };
        Ok((expires, milliseconds.map(|milliseconds| milliseconds.to_string())))
    }

    /// A moment: seconds from now, ISO 8601, or Celery's extended type for dates.
    fn time_option(&self, name: &str, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        let Some(value) = self.options.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        if let Ok(seconds) = value.to::<f64>() {
            return Ok(Some(later(now, seconds)));
        }
        let inner = value.entries().ok().and_then(|typed| typed.get("__value__").cloned());
        let text = inner.as_ref().unwrap_or(value).as_string();
        text.and_then(|text| parse_iso8601(&text).ok()).map(Some).ok_or_else(|| {
            Error::invalid(
                format!("{}: option {name}", self.task),
                format_args!("{value} is neither seconds nor a date in ISO 8601"),
            )
        })
    }

    fn stamps(&self) -> Result<(Option<Vec<String>>, JsonMap), Error> {
        let names: Vec<String> = self
            .list_option("stamped_headers")?
            .iter()
            .filter_map(|name| name.as_string().map(Into::into))
            .collect();
        let stamps =
            names.iter().filter_map(|name| Some((name.clone(), self.options.get(name)?.clone()))).collect();
        Ok(((!names.is_empty()).then_some(names), stamps))
    }

    pub(super) fn custom_headers(&self) -> Result<JsonMap, Error> {
        let Some(headers) = self.options.get("headers").filter(|headers| !headers.is_null()) else {
            return Ok(JsonMap::new());
        };
        let mut custom = headers.entries().map_err(|why| Error::option(&self.task, "headers", &why))?;
        custom.retain(|name, _| !RESERVED_HEADERS.contains(&name));
        Ok(custom)
    }

    /// Options nobody knows travel as properties, as in Celery, where the transport may know them.
    fn other(&self, stamps: &JsonMap) -> JsonMap {
        let mut other = self.options.clone();
        other
            .retain(|name, _| !LOCAL.contains(&name) && !KNOWN.contains(&name) && !stamps.contains_key(name));
        // A message must not be able to name its own correlation id or tag.
        for own in ["correlation_id", "delivery_tag", "delivery_info", "body_encoding", "content_type"] {
            other.remove(own);
        }
        other
    }
}

/// `now` and so many seconds; negative ones are in the past, and what is no number or beyond time is as far as it goes.
pub(super) fn later(now: Timestamp, seconds: f64) -> Timestamp {
    if seconds >= 0.0 {
        after(now, Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    } else {
        let back = jiff::SignedDuration::try_from_secs_f64(seconds).unwrap_or(jiff::SignedDuration::ZERO);
        now.checked_add(back).unwrap_or(Timestamp::MIN)
    }
}

/// Whether an id is one that [`TaskId::for_key`] makes: a UUID of version 5. Ours and Celery's are of 7 and 4.
fn is_made_from_key(id: &str) -> bool {
    uuid::Uuid::try_parse(id).is_ok_and(|id| id.get_version_num() == 5)
}

/// The tags of a task: its header `tags`, when that is a list of texts.
pub(crate) fn tags(custom: &JsonMap) -> Vec<Box<str>> {
    custom.get(TAGS).and_then(|tags| tags.to().ok()).unwrap_or_default()
}

/// The header that carries the tags of a task.
pub(crate) const TAGS: &str = "tags";
