//! A task message: envelope, headers, properties and body.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{DecodeError, Json, JsonMap, Signature};
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Headers {
    /// The language of the producer.
    #[serde(default)]
    pub lang: String,
    /// The task's name.
    pub task: String,
    /// The task's id.
    pub id: String,
    /// The name to show.
    #[serde(default)]
    pub shadow: Option<String>,
    /// Not before this time.
    #[serde(default)]
    pub eta: Option<Timestamp>,
    /// Not after this time.
    #[serde(default)]
    pub expires: Option<Timestamp>,
    /// The group, which names the chord too.
    #[serde(default)]
    pub group: Option<String>,
    /// The place in the group.
    #[serde(default)]
    pub group_index: Option<u32>,
    /// Retries made so far.
    #[serde(default)]
    pub retries: u32,
    /// Limits on the run.
    #[serde(default)]
    pub timelimit: TimeLimit,
    /// The first task of the workflow.
    #[serde(default)]
    pub root_id: Option<String>,
    /// The task that sent this one.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// The arguments as text, for people.
    #[serde(default)]
    pub argsrepr: String,
    /// The named arguments as text, for people.
    #[serde(default)]
    pub kwargsrepr: String,
    /// Who sent it.
    #[serde(default)]
    pub origin: String,
    /// Whether the caller wants no result; `None` leaves it to the task.
    #[serde(default)]
    pub ignore_result: Option<bool>,
    /// How often the task was replaced by another under its id.
    #[serde(default)]
    pub replaced_task_nesting: u32,
    /// Names of stamps.
    #[serde(default)]
    pub stamped_headers: Option<Vec<String>>,
    /// Stamps.
    #[serde(default)]
    pub stamps: JsonMap,
    /// Headers of the application's own; they travel on with retries.
    #[serde(default, flatten)]
    pub custom: JsonMap,
}

/// Time limits as the header `timelimit` has them, which is hard first.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Option<(Option<f64>, Option<f64>)>", into = "(Option<f64>, Option<f64>)")]
pub struct TimeLimit {
    /// Seconds until the task is killed.
    pub hard: Option<f64>,
    /// Seconds until the task is asked to stop.
    pub soft: Option<f64>,
}

impl From<Option<(Option<f64>, Option<f64>)>> for TimeLimit {
    fn from(pair: Option<(Option<f64>, Option<f64>)>) -> Self {
        let (hard, soft) = pair.unwrap_or_default();
        Self { hard, soft }
    }
}

impl From<TimeLimit> for (Option<f64>, Option<f64>) {
    fn from(limit: TimeLimit) -> Self {
        (limit.hard, limit.soft)
    }
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
    /// The tag under which Celery's Redis transport keeps the message while it is not acknowledged.
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
    /// Reads a message of protocol 2 or 1.
    pub fn decode(_raw: &RawMessage) -> Result<Self, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }

    /// Writes the message in protocol 2 with a JSON body.
    pub fn encode(&self) -> Result<RawMessage, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }
}

impl RawMessage {
    /// Takes an envelope apart: one element of a Redis list, or a line of an export.
    pub fn from_envelope(_envelope: &[u8]) -> Result<Self, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }

    /// The envelope with its body in base64, as Celery writes it.
    pub fn to_envelope(&self) -> Result<String, DecodeError> {
        Err(DecodeError::Missing { part: "implementation" })
    }
}
