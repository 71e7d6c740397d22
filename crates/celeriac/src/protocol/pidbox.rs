//! Remote control on the wire, kombu's pidbox: what is asked of workers, what they answer, and where answers go.
//!
//! A request is a broadcast; each worker that is meant answers with an object that holds its node name alone. Answers
//! travel through a direct exchange to the queue that whoever asked has bound to it.

use super::letter::{self, Address, DeliveryMode, Fields};
use super::{DecodeError, Json, JsonMap, Pattern, RawMessage, date, python_repr, writer};
use crate::clock::Timestamp;

mod info;

pub use info::{DeliveryInfo, HelloReply, QueueInfo, ScheduledInfo, TaskInfo};

/// The exchange of requests, for the default `control_exchange`.
pub const EXCHANGE: &str = "celery.pidbox";
/// The exchange of answers.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// Something asked of workers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// The command: `ping`, `stats`, `shutdown` …
    pub method: String,
    /// Its arguments by name.
    pub arguments: JsonMap,
    /// The workers it is meant for, by node name. **An empty list means all**, as does `None`.
    pub destination: Option<Vec<String>>,
    /// The workers it is meant for where no destination says so.
    pub pattern: Option<Pattern>,
    /// Under what whoever asked knows the answers.
    pub ticket: Option<String>,
    /// Where answers go; without it none is wanted.
    pub reply_to: Option<ReplyTo>,
    /// The sender's clock.
    pub clock: u64,
    /// When whoever asked stops waiting. Python's workers do not look at it.
    pub expires: Option<Timestamp>,
}

/// Where answers go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// The exchange.
    pub exchange: String,
    /// The routing key, to which whoever asked has bound a queue.
    pub routing_key: String,
}

/// What one worker answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its node name.
    pub node: String,
    /// Its incarnation, where workers of one name are told apart: a header that Python does not know and does not mind.
    pub worker: Option<String>,
    /// What it answered: mostly [`ok`] or [`error`].
    pub content: Json,
    /// The ticket of the request.
    pub ticket: String,
    /// The worker's clock.
    pub clock: u64,
}

impl Request {
    /// Reads a request; also its delivery tag, which tells it from any other.
    ///
    /// # Errors
    /// It is no request, or is meant for workers by a pattern that cannot be read.
    pub fn decode(raw: &RawMessage) -> Result<(Self, Option<String>), DecodeError> {
        let letter = letter::read(raw)?;
        let fields = Fields::of("request", &letter.body)?;
        let headers = Fields::of("headers", &letter.headers.to_json())?;
        let pattern = fields.optional_text("pattern")?.filter(|pattern| !pattern.is_empty());
        let matcher = fields.optional_text("matcher")?.filter(|matcher| !matcher.is_empty());
        // As kombu/pidbox.py, `handle_message`: one without the other means everybody.
        let pattern = match pattern.zip(matcher) {
            Some((pattern, matcher)) => Some(Pattern::of(&pattern, &matcher)?),
            None => None,
        };
        let arguments = fields.json("arguments");
        let arguments = if arguments.is_null() {
            JsonMap::new()
        } else {
            arguments.entries().map_err(|why| DecodeError::invalid("request.arguments", why))?
        };
        let reply_to = fields.json("reply_to");
        let reply_to = if reply_to.is_null() { None } else { Some(ReplyTo::read(&reply_to)?) };
        let expires = headers.float("expires", "seconds since 1970").ok().flatten();
        let request = Self {
            method: fields.text("method")?,
            arguments,
            destination: fields.optional("destination", "a list of node names")?,
            pattern,
            ticket: fields.loose_text("ticket"),
            reply_to,
            clock: headers.optional("clock", "a number").ok().flatten().unwrap_or_default(),
            expires: expires.filter(|seconds| *seconds > 0.0).and_then(date::from_epoch_seconds),
        };
        Ok((request, letter.delivery_tag))
    }

    /// Writes a request to publish on [`EXCHANGE`]; `delivery_tag` must be unique.
    #[must_use]
    pub fn encode(&self, delivery_tag: &str) -> RawMessage {
        let mut body = String::with_capacity(256);
        let mut object = writer::Object::new(&mut body);
        object.text("method", &self.method);
        writer::map(object.key("arguments"), &self.arguments);
        match &self.destination {
            None => object.raw("destination", "null"),
            Some(names) => {
                let names: Vec<Json> = names.iter().map(|name| Json::string(name)).collect();
                writer::array(object.key("destination"), &names);
            }
        }
        object.optional_text("pattern", self.pattern.as_ref().map(Pattern::as_str));
        object.optional_text("matcher", self.pattern.as_ref().map(Pattern::matcher));
        if let Some(reply_to) = &self.reply_to {
            object.optional_text("ticket", self.ticket.as_deref());
            let mut to = writer::Object::new(object.key("reply_to"));
            to.text("exchange", &reply_to.exchange);
            to.text("routing_key", &reply_to.routing_key);
            to.end();
        }
        object.end();
        let address = Address { exchange: EXCHANGE, routing_key: "", mode: DeliveryMode::Persistent };
        let headers = |headers: &mut writer::Object<'_>| {
            headers.integer("clock", self.clock);
            match self.expires {
                Some(expires) => headers.float("expires", date::epoch_seconds(expires)),
                None => headers.raw("expires", "0"),
            }
        };
        letter::write(address, delivery_tag, headers, body)
    }

    /// Whether it is meant for a worker of this node name.
    #[must_use]
    pub fn is_for(&self, node: &str) -> bool {
        match (&self.destination, &self.pattern) {
            (Some(names), _) if !names.is_empty() => names.iter().any(|name| name == node),
            (_, Some(pattern)) => pattern.matches(node),
            _ => true,
        }
    }
}

impl ReplyTo {
    fn read(document: &Json) -> Result<Self, DecodeError> {
        let fields = Fields::of("request.reply_to", document)?;
        Ok(Self { exchange: fields.text("exchange")?, routing_key: fields.text("routing_key")? })
    }

    /// The queue that a member of the exchange's binding table names, if it is bound to this routing key. A member is
    /// the routing key, a pattern and the queue, with `separator` between them.
    #[must_use]
    pub fn queue_of<'a>(&self, member: &'a str, separator: &str) -> Option<&'a str> {
        let (key, rest) = member.split_once(separator)?;
        let (_, queue) = rest.split_once(separator)?;
        (key == self.routing_key && !queue.is_empty()).then_some(queue)
    }

    /// The queue of a client under the name `oid`, to which answers come when it is bound.
    #[must_use]
    pub fn queue_name(oid: &str) -> String {
        format!("{oid}.{REPLY_EXCHANGE}")
    }

    /// The member of the binding table that binds the queue of `oid`.
    #[must_use]
    pub fn binding(oid: &str, separator: &str) -> String {
        format!("{oid}{separator}{separator}{}", Self::queue_name(oid))
    }
}

/// The header that names a worker's incarnation.
const WORKER: &str = "celeriac-worker";

impl Reply {
    /// Reads the answers of a message, which is one.
    ///
    /// # Errors
    /// It is no answer.
    pub fn decode(raw: &RawMessage) -> Result<Vec<Self>, DecodeError> {
        let letter = letter::read(raw)?;
        let headers = Fields::of("headers", &letter.headers.to_json())?;
        let nodes = letter.body.entries().map_err(|why| DecodeError::invalid("reply", why))?;
        let ticket = headers.loose_text("ticket").unwrap_or_default();
        let worker = headers.optional_text(WORKER)?;
        let clock = headers.optional("clock", "a number").ok().flatten().unwrap_or_default();
        let reply =
            |(node, content)| Self { node, worker: worker.clone(), content, ticket: ticket.clone(), clock };
        Ok(nodes.into_iter().map(reply).collect())
    }

    /// Writes an answer to push to the queue that is bound to `to`.
    #[must_use]
    pub fn encode(&self, to: &ReplyTo) -> RawMessage {
        let mut body = String::with_capacity(self.content.as_str().len() + 64);
        let mut object = writer::Object::new(&mut body);
        object.raw(&self.node, self.content.as_str());
        object.end();
        let address =
            Address { exchange: &to.exchange, routing_key: &to.routing_key, mode: DeliveryMode::Transient };
        let headers = |headers: &mut writer::Object<'_>| {
            headers.text("ticket", &self.ticket);
            headers.integer("clock", self.clock);
            if let Some(worker) = &self.worker {
                headers.text(WORKER, worker);
            }
        };
        letter::write(address, &letter::fresh_tag(), headers, body)
    }
}

/// The answer to a command that was done.
#[must_use]
pub fn ok(what: &Json) -> Json {
    one("ok", what)
}

/// The answer to a command that was not.
#[must_use]
pub fn error(why: &str) -> Json {
    one("error", &Json::string(why))
}

fn one(key: &str, value: &Json) -> Json {
    JsonMap::from([(key, value.clone())]).to_json()
}

/// Texts as Python prints a set of them: `{'a', 'b'}`; parts of Celery's answers.
#[must_use]
pub fn set_repr<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| python_repr(&Json::string(text))).collect();
    if texts.is_empty() { "set()".to_owned() } else { format!("{{{}}}", texts.join(", ")) }
}

/// The ids of revoked tasks in a request or answer `hello`: a list, or from Celery 5.5 an object whose keys they are.
///
/// # Errors
/// It is neither.
pub fn revoked_ids(revoked: &Json) -> Result<Vec<String>, DecodeError> {
    match revoked.as_str().as_bytes().first() {
        Some(b'n') => Ok(Vec::new()),
        Some(b'{') => {
            let ids = revoked.entries().map_err(|why| DecodeError::invalid("revoked", why))?;
            Ok(ids.into_iter().map(|(id, _)| id).collect())
        }
        _ => revoked.to().map_err(|why| DecodeError::invalid("revoked", why)),
    }
}
