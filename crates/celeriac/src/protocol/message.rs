//! A task message: envelope, headers, properties and body.

use bytes::Bytes;

use super::content::{self, Compression, Serializer};
use super::envelope::Head;
use super::headers::Reader;
use super::{DecodeError, Json, JsonMap, Signature, writer};
use crate::clock::Timestamp;

/// A message as a store keeps it: the envelope without its body, and the body's bytes as they travel (serialized and
/// perhaps compressed, base64 taken off).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The envelope's JSON without `body`: `content-type`, `content-encoding`, `headers`, `properties`.
    pub head: Box<str>,
    /// The body.
    pub body: Bytes,
}

/// A task message, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Everything about the call that is not its arguments.
    pub headers: Headers,
    /// Everything about the transport.
    pub properties: Properties,
    /// The arguments, and what follows.
    pub body: Body,
}

/// The headers of task message protocol 2.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Headers {
    /// The language of the producer.
    pub lang: String,
    /// The task's name.
    pub task: String,
    /// The task's id.
    pub id: String,
    /// The name to show.
    pub shadow: Option<String>,
    /// Not before this time.
    pub eta: Option<Timestamp>,
    /// Not after this time.
    pub expires: Option<Timestamp>,
    /// The group, which names the chord too.
    pub group: Option<String>,
    /// The place in the group.
    pub group_index: Option<u32>,
    /// Retries made so far.
    pub retries: u32,
    /// Limits on the run.
    pub timelimit: TimeLimit,
    /// The first task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent this one.
    pub parent_id: Option<String>,
    /// The arguments as text, for people.
    pub argsrepr: String,
    /// The named arguments as text, for people.
    pub kwargsrepr: String,
    /// Who sent it.
    pub origin: String,
    /// Whether the caller wants no result; `None` leaves it to the task.
    pub ignore_result: Option<bool>,
    /// How often the task was replaced by another under its id.
    pub replaced_task_nesting: u32,
    /// Names of stamps.
    pub stamped_headers: Option<Vec<String>>,
    /// Stamps.
    pub stamps: JsonMap,
    /// Headers of the application's own; they travel on with retries.
    pub custom: JsonMap,
}

impl Headers {
    /// Whether no result is to be kept of a task whose own word on it is `of_task`.
    ///
    /// A `true` asks for none, and a `null` leaves it to the task. A `false` is an answer from producers that have three:
    /// ours, for whom it outdoes the task's own. From Python it may be Celery's default: up to 5.5 every call by name
    /// carries it, and a worker keeps nothing where either the call or the task says so. Celery 5.7 sends the same bytes
    /// where a caller insists on a result. The two cannot be told apart, so what the task's author wrote stands: a task
    /// whose callers may want its value leaves `ignore_result` to them.
    #[must_use]
    pub fn ignores_result(&self, of_task: bool) -> bool {
        match self.ignore_result {
            Some(false) if self.lang == "py" => of_task,
            asked => asked.unwrap_or(of_task),
        }
    }
}

/// Time limits as the header `timelimit` has them, which is hard first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TimeLimit {
    /// Seconds until the task is killed.
    pub hard: Option<f64>,
    /// Seconds until the task is asked to stop.
    pub soft: Option<f64>,
}

/// The transport's part of an envelope.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties {
    /// The task's id.
    pub correlation_id: String,
    /// Where a reply would go; unused by the stores here.
    pub reply_to: String,
    /// 0 is consumed first.
    pub priority: u8,
    /// The exchange, empty for a plain queue.
    pub exchange: String,
    /// The routing key: the queue for an empty exchange.
    pub routing_key: String,
    /// Delivered before.
    pub redelivered: bool,
    /// The tag under which Celery's Redis transport keeps the message while it is not acknowledged; must be unique.
    pub delivery_tag: String,
    /// Milliseconds as text, present with `expires`.
    pub expiration: Option<String>,
    /// Anything else, kept.
    pub other: JsonMap,
}

/// The body of a task message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: JsonMap,
    /// What follows the task.
    pub embed: Embed,
}

/// What follows a task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Embed {
    /// Applied with the result after success.
    pub callbacks: Vec<Signature>,
    /// Applied with the task's id after failure.
    pub errbacks: Vec<Signature>,
    /// The rest of the chain, **last step first**: the next one is the last element. `None` and `Some([])` are both
    /// seen on the wire.
    pub chain: Option<Vec<Signature>>,
    /// The body of the chord whose header this task is part of.
    pub chord: Option<Box<Signature>>,
}

impl Message {
    /// Reads a message of protocol 2 or 1, or a mixture of both.
    ///
    /// # Errors
    /// Whatever would make a Python worker drop the message, lose it or die of it. The cause names the part.
    pub fn decode(raw: &RawMessage) -> Result<Self, DecodeError> {
        let head = Head::read(&raw.head)?;
        let mut properties = head.properties()?;
        let mut reader = Reader::default();
        if let Some(headers) = head.headers {
            reader.read(headers, "headers")?;
        }
        let text = content::decode(&head.content()?, reader.compression.as_deref(), &raw.body)?;
        // The body is written by the application, so a type registered only there makes it unreadable, as in Python.
        super::extended::check(&text).map_err(|why| DecodeError::invalid("body", why))?;
        let body = if text.starts_with('{') {
            // Protocol 1 has everything in the body; headers that are there win.
            reader = Reader::default();
            let body = Body::read_protocol_1(&text, &mut reader)?;
            if let Some(headers) = head.headers {
                reader.read(headers, "headers")?;
            }
            body
        } else if reader.names_task() {
            Body::read(&text)?
        } else {
            return Err(DecodeError::Missing { part: "headers.task" });
        };
        let headers = reader.finish()?;
        if properties.correlation_id.is_empty() {
            properties.correlation_id.clone_from(&headers.id);
        }
        Ok(Self { headers, properties, body })
    }

    /// Reads everything but the body, which stays empty; `None` for a message of protocol 1, whose body has it all.
    ///
    /// # Errors
    /// As [`Message::decode`], for what is read.
    pub fn decode_head(raw: &RawMessage) -> Result<Option<Self>, DecodeError> {
        let head = Head::read(&raw.head)?;
        let mut properties = head.properties()?;
        let mut reader = Reader::default();
        if let Some(headers) = head.headers {
            reader.read(headers, "headers")?;
        }
        if !reader.names_task() {
            return Ok(None);
        }
        let headers = reader.finish()?;
        if properties.correlation_id.is_empty() {
            properties.correlation_id.clone_from(&headers.id);
        }
        Ok(Some(Self { headers, properties, body: Body::default() }))
    }

    /// Writes the message in protocol 2 with a JSON body.
    ///
    /// # Errors
    /// None today; see [`Message::encode_with`].
    pub fn encode(&self) -> Result<RawMessage, DecodeError> {
        self.encode_with(Serializer::Json, None)
    }

    /// Writes the message in protocol 2.
    ///
    /// # Errors
    /// The serializer or the compression is not built in, or the serializer has no form for a value: msgpack for an
    /// integer beyond 64 bits.
    pub fn encode_with(
        &self,
        serializer: Serializer,
        compression: Option<Compression>,
    ) -> Result<RawMessage, DecodeError> {
        let mut text = String::with_capacity(128);
        self.body.write(&mut text);
        let body = content::encode(serializer, compression, text)?;
        let mut head = String::with_capacity(1024);
        let mut object = writer::Object::new(&mut head);
        object.text("content-encoding", serializer.content_encoding());
        object.text("content-type", serializer.content_type());
        self.headers.write(object.key("headers"), compression);
        self.properties.write(object.key("properties"));
        object.end();
        Ok(RawMessage { head: head.into_boxed_str(), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_false_is_the_callers_word_from_rust_and_perhaps_a_default_from_python() {
        let keeps_nothing = |lang: &str, ignore_result, of_task| {
            Headers { lang: lang.to_owned(), ignore_result, ..Headers::default() }.ignores_result(of_task)
        };
        for lang in ["py", "rust", ""] {
            for of_task in [true, false] {
                assert!(keeps_nothing(lang, Some(true), of_task), "{lang}: a true is what was asked for");
                assert_eq!(
                    keeps_nothing(lang, None, of_task),
                    of_task,
                    "{lang}: a null is the task's to decide"
                );
            }
            assert!(!keeps_nothing(lang, Some(false), false), "{lang}: neither wants to do without");
        }
        assert!(keeps_nothing("py", Some(false), true), "what Celery 5.5 sends of every call by name");
        assert!(!keeps_nothing("rust", Some(false), true), "what is only sent where it is meant");
    }
}
