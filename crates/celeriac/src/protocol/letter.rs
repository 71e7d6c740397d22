//! kombu's messages that are no tasks: events, commands to workers and their answers. Each is an envelope with few
//! headers around one document, and nobody acknowledges it.

use super::content::{self, Serializer};
use super::envelope::Head;
use super::headers::entries;
use super::{DecodeError, Json, JsonMap, RawMessage, writer};

/// How long a message outlives the broker, in AMQP's numbers. Redis makes no difference, readers may look at it.
#[derive(Debug, Clone, Copy)]
pub(super) enum DeliveryMode {
    /// Events and answers.
    Transient = 1,
    /// Commands, and tasks.
    Persistent = 2,
}

/// Where a message is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address<'a> {
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    pub(super) mode: DeliveryMode,
}

/// Writes a message with a JSON body, as kombu does; `headers` writes the headers, `body` is the document.
pub(super) fn write(
    address: Address<'_>,
    delivery_tag: &str,
    headers: impl FnOnce(&mut writer::Object<'_>),
    body: String,
) -> RawMessage {
    let mut head = String::with_capacity(384);
    let mut object = writer::Object::new(&mut head);
    object.text("content-encoding", Serializer::Json.content_encoding());
    object.text("content-type", Serializer::Json.content_type());
    let mut inner = writer::Object::new(object.key("headers"));
    headers(&mut inner);
    inner.end();
    let mut properties = writer::Object::new(object.key("properties"));
    properties.integer("delivery_mode", address.mode as u8);
    let mut info = writer::Object::new(properties.key("delivery_info"));
    info.text("exchange", address.exchange);
    info.text("routing_key", address.routing_key);
    info.end();
    properties.integer("priority", 0_u8);
    properties.text("body_encoding", "base64");
    properties.text("delivery_tag", delivery_tag);
    properties.end();
    object.end();
    RawMessage { head: head.into_boxed_str(), body: body.into_bytes().into() }
}

/// What tells a message from any other.
pub(super) fn fresh_tag() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

/// A message, read as far as anybody looks.
pub(super) struct Letter {
    pub(super) headers: JsonMap,
    /// What tells it from any other, when it says so.
    pub(super) delivery_tag: Option<String>,
    /// The document.
    pub(super) body: Json,
}

/// Reads a message in any serializer that is read here.
pub(super) fn read(raw: &RawMessage) -> Result<Letter, DecodeError> {
    let head = Head::read(&raw.head)?;
    let headers = match head.headers {
        Some(headers) => JsonMap::read(headers).map_err(|why| DecodeError::invalid("headers", why))?,
        None => JsonMap::new(),
    };
    let compression = headers.get("compression").and_then(Json::as_string);
    let text = content::decode(&head.content()?, compression.as_deref(), &raw.body)?;
    let body = Json::parse(&text).map_err(|why| DecodeError::invalid("body", why))?;
    Ok(Letter { delivery_tag: delivery_tag(&head)?, body, headers })
}

fn delivery_tag(head: &Head<'_>) -> Result<Option<String>, DecodeError> {
    let Some(properties) = head.properties else { return Ok(None) };
    for entry in entries(properties, "properties")? {
        let (key, value) = entry?;
        if key == "delivery_tag" {
            return Ok(super::headers::At { part: "properties", key: &key, value }.loose_text());
        }
    }
    Ok(None)
}

/// The fields of a document, taken one by one. What is not asked for does not matter.
pub(super) struct Fields {
    part: &'static str,
    map: JsonMap,
}

impl Fields {
    pub(super) fn of(part: &'static str, document: &Json) -> Result<Self, DecodeError> {
        let map = document.entries().map_err(|why| DecodeError::invalid(part, why))?;
        Ok(Self { part, map })
    }

    fn at<'a>(&'a self, key: &'a str) -> Option<super::headers::At<'a>> {
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(super::headers::At { part: self.part, key, value: value.as_str() })
    }

    fn missing(&self, key: &str) -> DecodeError {
        DecodeError::invalid(format!("{}.{key}", self.part), "it is missing")
    }

    /// Text, or anything else as it stands.
    pub(super) fn loose_text(&self, key: &str) -> Option<String> {
        self.at(key)?.loose_text()
    }

    /// Text that must be there.
    pub(super) fn text(&self, key: &str) -> Result<String, DecodeError> {
        match self.at(key) {
            Some(at) => at.text().map(Option::unwrap_or_default),
            None => Err(self.missing(key)),
        }
    }

    /// Text, or nothing.
    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, DecodeError> {
        self.at(key).map_or(Ok(None), |at| at.text())
    }

    /// A value of a type, or nothing.
    pub(super) fn optional<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        what: &str,
    ) -> Result<Option<T>, DecodeError> {
        let Some(at) = self.at(key) else { return Ok(None) };
        Json::trusted(at.value).to().map(Some).map_err(|_| at.wrong(what))
    }

    /// A number, to the last bit: serde_json reads some floats to the nearest but one.
    pub(super) fn float(&self, key: &str, what: &str) -> Result<Option<f64>, DecodeError> {
        let Some(at) = self.at(key) else { return Ok(None) };
        at.value.parse().map(Some).map_err(|_| at.wrong(what))
    }

    /// A moment as a date.
    pub(super) fn time(&self, key: &str) -> Result<Option<crate::clock::Timestamp>, DecodeError> {
        self.at(key).map_or(Ok(None), |at| at.time())
    }

    /// Any value; null when absent.
    pub(super) fn json(&self, key: &str) -> Json {
        self.map.get(key).cloned().unwrap_or_default()
    }

    /// All of them.
    pub(super) fn into_map(self) -> JsonMap {
        self.map
    }
}
