//! kombu's envelope: the JSON object around a body.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::content::ContentType;
use super::headers::{At, entries};
use super::{DecodeError, Json, Properties, RawMessage, scan, writer};
use crate::clock::Timestamp;

/// What the head of a message says of where it goes, without its body being touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSummary {
    /// The task's name; `None` for protocol 1, which has it in the body.
    pub task: Option<String>,
    /// The task's id, from the headers or else from `correlation_id`.
    pub id: Option<String>,
    /// The routing key: the queue for an empty exchange.
    pub queue: String,
    /// The exchange, empty for a plain queue.
    pub exchange: String,
    /// 0 is consumed first.
    pub priority: u8,
    /// Not before this time.
    pub eta: Option<Timestamp>,
    /// Not after this time.
    pub expires: Option<Timestamp>,
    /// The content type of the body.
    pub content_type: String,
}

impl RawMessage {
    /// Takes an envelope apart: one element of a Redis list, or a line of an export. Everything but the body is kept
    /// byte for byte.
    ///
    /// # Errors
    /// The bytes are not a JSON object in UTF-8, or its body is absent or not what `body_encoding` says.
    pub fn from_envelope(envelope: &[u8]) -> Result<Self, DecodeError> {
        let text = std::str::from_utf8(envelope).map_err(|why| DecodeError::invalid("envelope", why))?;
        let mut body = None;
        let mut encoded = false;
        let mut head = String::with_capacity(text.len());
        let mut object = writer::Object::new(&mut head);
        for entry in entries(text, "envelope")? {
            let (key, value) = entry?;
            if key == "body" {
                body = Some(value);
                continue;
            }
            if key == "properties" {
                encoded = is_base64(value)?;
            }
            object.raw(&key, value);
        }
        object.end();
        let body = body.ok_or(DecodeError::Missing { part: "body" })?;
        let body = scan::string(body)
            .ok_or_else(|| At { part: "envelope", key: "body", value: body }.wrong("a string"))?;
        let body = if encoded {
            let bytes = BASE64.decode(body.as_bytes());
            Bytes::from(bytes.map_err(|why| DecodeError::invalid("body", format_args!("base64: {why}")))?)
        } else {
            Bytes::from(body.into_owned())
        };
        Ok(Self { head: head.into_boxed_str(), body })
    }

    /// The envelope with its body as `body_encoding` says, which for Celery is base64.
    ///
    /// # Errors
    /// The head is not a JSON object, or the body is to travel as text and is none.
    pub fn to_envelope(&self) -> Result<String, DecodeError> {
        let mut encoded = false;
        let mut empty = true;
        for entry in entries(&self.head, "head")? {
            let (key, value) = entry?;
            empty = false;
            if key == "properties" {
                encoded = is_base64(value)?;
            }
        }
        let mut out = String::with_capacity(self.head.len() + self.body.len() * 4 / 3 + 32);
        out.push_str("{\"body\": ");
        if encoded {
            out.push('"');
            BASE64.encode_string(&self.body, &mut out);
            out.push('"');
        } else {
            let text = std::str::from_utf8(&self.body).map_err(|why| DecodeError::invalid("body", why))?;
            writer::string(&mut out, text);
        }
        // The head was just seen to be an object; the rest of it follows the brace.
        let rest = self.head.trim_start().strip_prefix('{').unwrap_or_default();
        if !empty {
            out.push_str(", ");
        }
        out.push_str(rest.trim());
        Ok(out)
    }

    /// Reads where the message goes, and nothing else.
    ///
    /// # Errors
    /// The head is malformed, or a field that is read here is.
    pub fn summary(&self) -> Result<HeadSummary, DecodeError> {
        let head = Head::read(&self.head)?;
        let properties = head.properties()?;
        let (mut task, mut id, mut eta, mut expires) = (None, None, None, None);
        if let Some(headers) = head.headers {
            for entry in entries(headers, "headers")? {
                let (key, value) = entry?;
                let at = At { part: "headers", key: &key, value };
                match &*key {
                    "task" => task = at.text()?,
                    "id" => id = at.text()?,
                    "eta" => eta = at.time()?,
                    "expires" => expires = at.time()?,
                    _ => {}
                }
            }
        }
        let id = id.or_else(|| Some(properties.correlation_id).filter(|id| !id.is_empty()));
        Ok(HeadSummary {
            task,
            id,
            queue: properties.routing_key,
            exchange: properties.exchange,
            priority: properties.priority,
            eta,
            expires,
            content_type: head.content_type.unwrap_or_default().into_owned(),
        })
    }
}

fn is_base64(properties: &str) -> Result<bool, DecodeError> {
    let mut encoded = false;
    if properties != "null" {
        for entry in entries(properties, "properties")? {
            let (key, value) = entry?;
            if key == "body_encoding" {
                encoded = match scan::string(value).as_deref() {
                    Some("base64") => true,
                    Some("utf-8" | "utf8") => false,
                    None if value == "null" => false,
                    _ => {
                        return Err(DecodeError::invalid(
                            "properties.body_encoding",
                            format_args!("{value} is unknown"),
                        ));
                    }
                };
            }
        }
    }
    Ok(encoded)
}

/// The parts of a head, as they stand.
pub(super) struct Head<'a> {
    content_type: Option<Cow<'a, str>>,
    content_encoding: Option<Cow<'a, str>>,
    /// `None` when absent or null.
    pub(super) headers: Option<&'a str>,
    pub(super) properties: Option<&'a str>,
}

impl<'a> Head<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, DecodeError> {
        super::extended::check(text).map_err(|why| DecodeError::invalid("envelope", why))?;
        let mut head = Self { content_type: None, content_encoding: None, headers: None, properties: None };
        for entry in entries(text, "envelope")? {
            let (key, value) = entry?;
            let present = (value != "null").then_some(value);
            let text = || {
                present
                    .map(|value| {
                        scan::string(value)
                            .ok_or_else(|| At { part: "envelope", key: &key, value }.wrong("a string"))
                    })
                    .transpose()
            };
            match &*key {
                "content-type" => head.content_type = text()?,
                "content-encoding" => head.content_encoding = text()?,
                "headers" => head.headers = present,
                "properties" => head.properties = present,
                _ => {}
            }
        }
        Ok(head)
    }

    pub(super) fn content(&self) -> Result<ContentType<'_>, DecodeError> {
        let name = self.content_type.as_deref().ok_or(DecodeError::Missing { part: "content-type" })?;
        Ok(ContentType { name, encoding: self.content_encoding.as_deref() })
    }

    pub(super) fn properties(&self) -> Result<Properties, DecodeError> {
        Properties::read(self.properties.ok_or(DecodeError::Missing { part: "properties" })?)
    }
}

impl Properties {
    /// What a task sent straight to a queue needs, with a delivery tag of its own.
    #[must_use]
    pub fn new(task_id: impl Into<String>, queue: impl Into<String>) -> Self {
        Self {
            correlation_id: task_id.into(),
            routing_key: queue.into(),
            delivery_tag: uuid::Uuid::new_v4().hyphenated().to_string(),
            ..Self::default()
        }
    }

    fn read(text: &str) -> Result<Self, DecodeError> {
        let mut properties = Self::default();
        let (mut routed, mut tagged) = (false, false);
        for entry in entries(text, "properties")? {
            let (key, value) = entry?;
            let at = At { part: "properties", key: &key, value };
            match &*key {
                "correlation_id" => properties.correlation_id = at.loose_text().unwrap_or_default(),
                "reply_to" => properties.reply_to = at.loose_text().unwrap_or_default(),
                "priority" => properties.priority = priority(&at)?,
                "delivery_tag" => {
                    properties.delivery_tag = at.loose_text().ok_or_else(|| at.wrong("text"))?;
                    tagged = true;
                }
                "expiration" => properties.expiration = at.loose_text(),
                "delivery_info" => routed = properties.read_delivery_info(value)?,
                // Written anew, with the only values there are.
                "delivery_mode" | "body_encoding" => {}
                _ => {
                    properties.other.insert(key.into_owned(), Json::trusted(value));
                }
            }
        }
        if !routed {
            return Err(DecodeError::Missing { part: "properties.delivery_info.exchange" });
        }
        if !tagged {
            return Err(DecodeError::Missing { part: "properties.delivery_tag" });
        }
        Ok(properties)
    }

    /// Says whether there is an exchange, without which a Python worker loses the message.
    fn read_delivery_info(&mut self, text: &str) -> Result<bool, DecodeError> {
        const PART: &str = "properties.delivery_info";
        let mut routed = false;
        for entry in entries(text, PART)? {
            let (key, value) = entry?;
            let at = At { part: PART, key: &key, value };
            match &*key {
                "exchange" => {
                    self.exchange = at.text()?.unwrap_or_default();
                    routed = true;
                }
                "routing_key" => self.routing_key = at.text()?.unwrap_or_default(),
                "redelivered" => self.redelivered = at.boolean()?.unwrap_or_default(),
                _ => {}
            }
        }
        Ok(routed)
    }

    /// As Celery writes them, in its order.
    pub(super) fn write(&self, out: &mut String) {
        let mut object = writer::Object::new(out);
        object.text("correlation_id", &self.correlation_id);
        object.text("reply_to", &self.reply_to);
        for (key, value) in &self.other {
            object.raw(key, value.as_str());
        }
        // 2 is "persistent" in AMQP's numbers.
        object.integer("delivery_mode", 2_u8);
        if let Some(expiration) = &self.expiration {
            object.text("expiration", expiration);
        }
        let mut info = writer::Object::new(object.key("delivery_info"));
        info.text("exchange", &self.exchange);
        info.text("routing_key", &self.routing_key);
        if self.redelivered {
            info.raw("redelivered", "true");
        }
        info.end();
        object.integer("priority", self.priority);
        object.text("body_encoding", "base64");
        object.text("delivery_tag", &self.delivery_tag);
        object.end();
    }
}

/// Celery's Redis transport holds priorities to what it has lists for; so numbers out of range count as the nearest.
fn priority(at: &At<'_>) -> Result<u8, DecodeError> {
    let text = at.loose_text().unwrap_or_default();
    match text.trim() {
        "" => Ok(0),
        negative
            if negative.len() > 1
                && negative
                    .strip_prefix('-')
                    .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) =>
        {
            Ok(0)
        }
        _ => Ok(at.integer()?.unwrap_or_default().try_into().unwrap_or(u8::MAX)),
    }
}
